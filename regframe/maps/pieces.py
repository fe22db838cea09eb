"""A map in pieces: each piece of a slide has a map of its own, and every position belongs to exactly one piece.

Which piece a position belongs to is the label of the nearest pixel of an image of labels, one on either side. Where two labels
meet is a *seam*: the map may jump there. On the side of a piece that has no partner there is no map: its positions become NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from scipy import ndimage
from torch import Tensor

from ..data import Grid
from .affine import Affine
from .base import Transform, check_coords, check_grid, finite_only
from .displacement import Displacement
from .sequence import in_a_row

MOST_NODES = 1 << 21
"""Nodes of the displacement field that stands for a map in pieces in other programs' files, at most: a jump is then as sharp as
some 1400 nodes along each axis of a plane make it."""
NOWHERE = -1
"""Label of positions that have no map."""


@dataclass(frozen=True)
class Cells:
    """Which piece each position of a side belongs to.

    Args:
        labels: number of the piece ``[*S]``, int16, from 0; `NOWHERE` for a piece without a map.
        grid: where its pixels are; positions off it count as those of the nearest pixel.

    Raises ValueError where shapes differ or a label is below `NOWHERE`.
    """

    labels: Tensor
    grid: Grid

    def __post_init__(self) -> None:
        if tuple(self.labels.shape) != self.grid.shape:
            raise ValueError(f"wanted labels of shape {self.grid.shape}, got {tuple(self.labels.shape)}")
        object.__setattr__(self, "labels", self.labels.to(torch.int16))
        if int(self.labels.min()) < NOWHERE:
            raise ValueError(f"wanted labels from {NOWHERE}, got {int(self.labels.min())}")

    def at(self, coords: Tensor) -> Tensor:
        """The label ``[N]`` of each position ``[N, D]``, all finite."""
        address = torch.zeros(len(coords), dtype=torch.long)
        for d, n in enumerate(self.grid.shape):
            index = ((coords[:, d] - self.grid.origin[d]) / self.grid.spacing[d]).round().clamp(0, n - 1).long()
            address = address * n + index
        return self.labels.reshape(-1)[address].long()

    def present(self, low: Tensor, high: Tensor) -> list[int]:
        """The labels, `NOWHERE` excepted, of positions in a box from ``low`` to ``high`` ``[D]``."""
        inside = []
        for d, n in enumerate(self.grid.shape):
            ends = [(float(v[d]) - self.grid.origin[d]) / self.grid.spacing[d] for v in (low, high)]
            first, last = (min(max(round(v), 0), n - 1) for v in (ends[0] - 0.5, ends[1] + 0.5))
            inside.append(slice(first, last + 1))
        return [k for k in torch.unique(self.labels[tuple(inside)]).tolist() if k != NOWHERE]

    def filled(self) -> Cells:
        """The labels with that of the nearest piece wherever a piece has no map."""
        gone = (self.labels == NOWHERE).numpy()
        if not gone.any() or gone.all():
            return self
        nearest = ndimage.distance_transform_edt(
            gone, sampling=self.grid.spacing, return_distances=False, return_indices=True
        )
        return Cells(self.labels[tuple(torch.from_numpy(axis) for axis in nearest)], self.grid)


@dataclass(frozen=True)
class Pieces(Transform):
    """One map per piece, each from the same source space to the same target space.

    A position of the source takes the map of the piece that it belongs to; `inverse` looks the label up on the target side. The
    way there and back ends where it began on every piece; beside a seam it may end up to the width of the gap away.

    Args:
        maps: one per piece, in the order of their labels.
        source: which piece a source position belongs to.
        target: which piece a target position belongs to.

    Raises ValueError for no map, maps between different spaces, or a label without a map.
    """

    maps: tuple[Transform, ...]
    source: Cells
    target: Cells

    def __post_init__(self) -> None:
        if not self.maps:
            raise ValueError("wanted at least one map of a piece, got none")
        if any(isinstance(part, Pieces) for one in self.maps for part in one.parts()):
            raise ValueError("wanted a map without pieces for each piece, got pieces within pieces")
        spaces = {(m.ndim, m.source_unit, m.target_unit) for m in self.maps}
        sides = (self.source.grid.ndim, self.source.grid.unit, self.target.grid.unit)
        if spaces != {sides} or self.target.grid.ndim != self.source.grid.ndim:
            raise ValueError(f"wanted maps between the spaces of both labels, {sides}, got {sorted(spaces)}")
        most = max(int(cells.labels.max()) for cells in (self.source, self.target))
        if most >= len(self.maps):
            raise ValueError(f"wanted a map for each label, got label {most} and {len(self.maps)} maps")

    @property
    def ndim(self) -> int:  # noqa: D102
        return self.source.grid.ndim

    @property
    def source_unit(self) -> str:  # type: ignore[override]  # noqa: D102
        return self.source.grid.unit

    @property
    def target_unit(self) -> str:  # type: ignore[override]  # noqa: D102
        return self.target.grid.unit

    def points(self, coords: Tensor) -> Tensor:
        """Target positions ``[..., D]`` (float64) of source positions ``[..., D]``; NaN on a piece without a map."""
        return finite_only(self._moved, check_coords(coords, self.ndim))

    def _moved(self, flat: Tensor) -> Tensor:
        label = self.source.at(flat)
        out = torch.full_like(flat, float("nan"))
        for k in torch.unique(label).tolist():
            if k != NOWHERE:
                rows = label == k
                out[rows] = self.maps[k].points(flat[rows])
        return out

    def inverse(self) -> Pieces:  # noqa: D102
        return Pieces(tuple(m.inverse() for m in self.maps), self.target, self.source)

    def filled(self) -> Pieces:
        """The map with that of the nearest piece wherever there is none: finite everywhere."""
        return Pieces(self.maps, self.source.filled(), self.target.filled())

    def jacobian_determinant(self, grid: Grid) -> Tensor:
        """Ratio of target to source area for each pixel ``[*S]``, by the map of the piece that its centre lies on, so that no
        seam is crossed; NaN where there is no map."""
        check_grid(self, grid)
        out = torch.full(grid.shape, float("nan"), dtype=torch.float64)
        for k, box, mask in self.boxes(grid, (0,) * grid.ndim, grid.shape):
            part = Grid(
                tuple(s.stop - s.start for s in box),
                grid.spacing,
                tuple(o + w * s.start for o, w, s in zip(grid.origin, grid.spacing, box, strict=True)),
                grid.unit,
            )
            found = self.maps[k].jacobian_determinant(part)
            out[box] = torch.where(mask, found, out[box])
        return out

    def boxes(
        self, grid: Grid, offset: tuple[int, ...], shape: tuple[int, ...]
    ) -> Iterator[tuple[int, tuple[slice, ...], Tensor]]:
        """Each piece that pixels of a tile belong to: its number, the box of them within the tile, and which of the box they are.

        Args:
            grid: a grid of the source space.
            offset: index of the tile's first pixel.
            shape: pixels of the tile per axis.
        """
        axes = [
            o + s * (torch.arange(n, dtype=torch.float64) + first)
            for o, s, n, first in zip(grid.origin, grid.spacing, shape, offset, strict=True)
        ]
        index = [
            ((at - o) / s).round().clamp(0, n - 1).long()
            for at, o, s, n in zip(
                axes, self.source.grid.origin, self.source.grid.spacing, self.source.grid.shape, strict=True
            )
        ]
        labels = self.source.labels[torch.meshgrid(*index, indexing="ij")]
        for k, box in enumerate(ndimage.find_objects(labels.numpy().astype("int32") + 1)):
            if box is not None:
                yield k, box, labels[box] == k


def as_displacement(transform: Transform, moving: Grid, fixed: Grid, to: str = "fixed") -> Transform:
    """A map with pieces as an affine map and one displacement field, exact at its nodes in the direction to the side ``to``.

    Between two nodes on either side of a seam the field is no map of any piece: it jumps there. Positions that have no map take
    that of the nearest piece. The map is meant for the direction ``to`` alone; the other one is solved for.

    Args:
        transform: from the moving to the fixed space.
        moving: canvas of the moving side.
        fixed: canvas of the fixed side.
        to: ``fixed`` or ``moving``.
    """
    whole = in_a_row(part.filled() if isinstance(part, Pieces) else part for part in transform.parts())
    straight = fitted_affine(whole, moving)
    grid = moving
    if to == "moving":
        corners = straight.inverse().points(fixed.corners())
        low, high = (torch.minimum, torch.maximum)
        first = low(corners.amin(dim=0), moving.corners().amin(dim=0))
        last = high(corners.amax(dim=0), moving.corners().amax(dim=0))
        shape = tuple(math.ceil(float(e) / s) + 1 for e, s in zip(last - first, moving.spacing, strict=True))
        grid = Grid(shape, moving.spacing, tuple(first.tolist()), moving.unit)
    factor = max(1.0, (math.prod(grid.shape) / MOST_NODES) ** (1 / grid.ndim))
    if factor > 1:
        grid = grid.resampled([s * factor for s in grid.spacing])
    nodes = grid.coords().reshape(-1, grid.ndim)
    if to == "fixed":
        there = straight.inverse().points(whole.points(nodes))
    else:
        there = whole.inverse().points(straight.points(nodes))
    field = (there - nodes).T.reshape(grid.ndim, *grid.shape).contiguous()
    return in_a_row([Displacement(field, grid, inverted=to == "moving"), straight])


def in_pieces(transform: Transform) -> bool:
    """Whether a map has pieces."""
    return any(isinstance(part, Pieces) for part in transform.parts())


def fitted_affine(transform: Transform, grid: Grid, rows: Iterable[Tensor] = ()) -> Affine:
    """The affine map that is nearest to a map at positions of its source, by least squares.

    Args:
        transform: the map.
        grid: canvas of its source; positions evenly over it are taken.
        rows: positions ``[N, D]`` to take instead.
    """
    given = list(rows)
    if given:
        at = torch.cat(given)
    else:
        coarse = grid.resampled([e / min(n, 24) for e, n in zip(grid.extent, grid.shape, strict=True)])
        at = coarse.coords().reshape(-1, grid.ndim)
    there = transform.points(at)
    known = torch.isfinite(there).all(dim=1)
    at, there = at[known], there[known]
    middle = at.mean(dim=0)
    columns = torch.cat([at - middle, torch.ones(len(at), 1, dtype=torch.float64)], dim=1)
    found = torch.linalg.lstsq(columns, there).solution.T  # [D, D+1]
    matrix = torch.eye(grid.ndim + 1, dtype=torch.float64)
    matrix[:-1, :-1] = found[:, :-1]
    matrix[:-1, -1] = found[:, -1] - found[:, :-1] @ middle
    return Affine(matrix, transform.source_unit, transform.target_unit)
