"""Maps of positions, `Affine`, `Flow`, `Displacement` and their `Sequence`, and images pulled through them.

Direction is defined here once. A `Transform` maps a *position of its source space* to a *position of its target
space* (``points``). A registration's map ``Φ = A φ₁`` has the moving space as source and the fixed space as target. An
image of the source space is carried to the target space by pull-back: its value at a target position ``y`` is the
source image at ``transform.inverse().points(y)``. There is no third way to use a map, and no flag for its direction.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import homogeneous, ops, reference
from .data import AXES, Grid, Image, PointSet, canonical_unit

_CHUNK = 1 << 20  # positions handled at once where a generic map needs its coordinates in memory


class Transform(ABC):
    """A map of positions; ``source_unit`` and ``target_unit`` say in which length unit each side is."""

    source_unit: str
    target_unit: str

    @property
    @abstractmethod
    def ndim(self) -> int:
        """Number of components of a position, 2 or 3."""

    @property
    def axes(self) -> tuple[str, ...]:
        """Order of the components of a position."""
        return AXES[self.ndim]

    @abstractmethod
    def points(self, coords: Tensor) -> Tensor:
        """Target positions ``[..., D]`` (float64) of source positions ``[..., D]``; NaN stays NaN."""

    @abstractmethod
    def inverse(self) -> Transform:
        """The map from target to source; ``t.inverse().points(t.points(x))`` is ``x`` to rounding."""

    def jacobian_determinant(self, grid: Grid) -> Tensor:
        """Ratio of target to source area (volume) per pixel of ``grid``, ``[*S]``; ≤ 0 where the map folds.

        From the mapped corners of each pixel, so a fold between two pixel centres is seen. ``grid`` lies in the source
        space; the unit is (target unit / source unit) to the power D.
        """
        _check_grid(self, grid)
        corners = Grid(
            tuple(n + 1 for n in grid.shape),
            grid.spacing,
            tuple(o - s / 2 for o, s in zip(grid.origin, grid.spacing, strict=True)),
            grid.unit,
        )
        mapped = self.points(corners.coords())  # [*(S+1), D]
        columns = []
        for d in range(grid.ndim):
            edge = mapped.diff(dim=d) / grid.spacing[d]
            for other in range(grid.ndim):
                if other != d:
                    n = edge.shape[other]
                    edge = (edge.narrow(other, 0, n - 1) + edge.narrow(other, 1, n - 1)) / 2
            columns.append(edge)
        determinant: Tensor = torch.linalg.det(torch.stack(columns, dim=-1))
        return determinant

    def to_displacement(self, grid: Grid) -> Displacement:
        """The map as ``points(x) - x`` at the pixels of ``grid`` (source space); both sides must share a unit."""
        _check_grid(self, grid)
        if self.source_unit != self.target_unit:
            raise ValueError(
                f"wanted a map within one unit, got {self.source_unit} → {self.target_unit}; "
                "a displacement between two units has no meaning: keep the affine part apart"
            )
        coords = grid.coords()
        field = (self.points(coords) - coords).movedim(-1, 0).contiguous()  # [D, *S]
        return Displacement(field, grid)

    def parts(self) -> tuple[Transform, ...]:
        """The elementary maps this one consists of, first applied first."""
        return (self,)


@dataclass(frozen=True)
class Affine(Transform):
    """``x -> M x + t`` as a homogeneous matrix ``[D+1, D+1]`` (float64), components in tensor-axis order."""

    matrix: Tensor
    source_unit: str = "px"
    target_unit: str = "px"

    def __post_init__(self) -> None:
        matrix = torch.as_tensor(self.matrix, dtype=torch.float64).detach().cpu()
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] not in (3, 4):
            raise ValueError(f"wanted a homogeneous matrix [3, 3] or [4, 4], got {tuple(matrix.shape)}")
        if not torch.isfinite(matrix).all():
            raise ValueError("wanted a finite matrix, got NaN or inf entries")
        last = torch.zeros(matrix.shape[0], dtype=torch.float64)
        last[-1] = 1.0
        if not torch.equal(matrix[-1], last):
            raise ValueError(f"wanted a last row of zeros and a one, got {matrix[-1].tolist()}")
        object.__setattr__(self, "matrix", matrix)
        _canonical_units(self)

    @classmethod
    def identity(cls, ndim: int, unit: str = "px") -> Affine:
        """The map that leaves every position where it is."""
        return cls(torch.eye(ndim + 1, dtype=torch.float64), unit, unit)

    @property
    def ndim(self) -> int:  # noqa: D102
        return int(self.matrix.shape[0]) - 1

    def points(self, coords: Tensor) -> Tensor:  # noqa: D102
        x = _check_coords(coords, self.ndim)
        return homogeneous.carry(self.matrix, x)

    def inverse(self) -> Affine:  # noqa: D102
        determinant = homogeneous.determinant(self.matrix)
        scale = self.matrix[:-1, :-1].abs().max()
        if not abs(float(determinant)) > 1e-12 * float(scale) ** self.ndim:
            raise ValueError(f"wanted an invertible affine map, got determinant {float(determinant):.3g}")
        return Affine(homogeneous.inverse(self.matrix), self.target_unit, self.source_unit)


@dataclass(frozen=True)
class Flow(Transform):
    """The end of the flow of a time-dependent velocity, a diffeomorphism of one space onto itself.

    ``points`` carries a moving-space position along ``φ₁`` (towards the fixed image), ``inverse().points`` back by the
    pull-back rule of METHOD; the two are exact inverses of each other (see `regframe.reference`).

    Args:
        velocity: ``[T, D, *S]`` in ``grid.unit`` per unit time.
        grid: where its nodes are; outside it the velocity is zero.
        n_steps: Euler steps in all, a multiple of T; T where None.
        reverse: True for ``φ₁⁻¹``; set by ``inverse()``.
    """

    velocity: Tensor
    grid: Grid
    n_steps: int | None = None
    reverse: bool = False

    def __post_init__(self) -> None:
        if self.velocity.ndim != 2 + self.grid.ndim or tuple(self.velocity.shape[2:]) != self.grid.shape:
            raise ValueError(f"wanted a velocity [T, D, {self.grid.shape}], got {tuple(self.velocity.shape)}")
        if self.velocity.shape[1] != self.grid.ndim:
            raise ValueError(f"wanted {self.grid.ndim} components of velocity, got {self.velocity.shape[1]}")
        if not torch.isfinite(self.velocity).all():
            raise ValueError("wanted a finite velocity, got NaN or inf entries")
        n_slices = int(self.velocity.shape[0])
        n_steps = n_slices if self.n_steps is None else int(self.n_steps)
        if n_slices < 1 or n_steps < 1 or n_steps % n_slices:
            raise ValueError(f"wanted n_steps as a multiple of the {n_slices} time slices, got {n_steps}")
        object.__setattr__(self, "velocity", self.velocity.detach().cpu())
        object.__setattr__(self, "n_steps", n_steps)

    @property
    def source_unit(self) -> str:  # type: ignore[override]  # noqa: D102
        return self.grid.unit

    @property
    def target_unit(self) -> str:  # type: ignore[override]  # noqa: D102
        return self.grid.unit

    @property
    def ndim(self) -> int:  # noqa: D102
        return self.grid.ndim

    def points(self, coords: Tensor) -> Tensor:  # noqa: D102
        x = _check_coords(coords, self.ndim)
        assert self.n_steps is not None
        return _finite_only(
            lambda p: ops.flow_points(
                p, self.velocity.to(torch.float64), self.grid.spacing, self.grid.origin, self.n_steps or 1, self.reverse
            ),
            x,
        )

    def inverse(self) -> Flow:  # noqa: D102
        return dataclasses.replace(self, reverse=not self.reverse)


@dataclass(frozen=True)
class Displacement(Transform):
    """``x -> x + d(x)`` with ``d`` multilinear on a grid and zero outside it (fading over one cell).

    Args:
        field: ``[D, *S]`` in ``grid.unit``, components in tensor-axis order.
        grid: where its nodes are.
        inverted: True for the map that undoes it, solved by Newton's method; set by ``inverse()``.
    """

    field: Tensor
    grid: Grid
    inverted: bool = False

    def __post_init__(self) -> None:
        if tuple(self.field.shape) != (self.grid.ndim, *self.grid.shape):
            raise ValueError(f"wanted a field [{self.grid.ndim}, {self.grid.shape}], got {tuple(self.field.shape)}")
        if not torch.isfinite(self.field).all():
            raise ValueError("wanted a finite displacement, got NaN or inf entries")
        object.__setattr__(self, "field", self.field.detach().cpu())

    @property
    def source_unit(self) -> str:  # type: ignore[override]  # noqa: D102
        return self.grid.unit

    @property
    def target_unit(self) -> str:  # type: ignore[override]  # noqa: D102
        return self.grid.unit

    @property
    def ndim(self) -> int:  # noqa: D102
        return self.grid.ndim

    def points(self, coords: Tensor) -> Tensor:  # noqa: D102
        x = _check_coords(coords, self.ndim)
        # one pull-back step of the velocity -d is x + d(x); undoing it is the step towards the fixed image
        velocity = -self.field.to(torch.float64)[None]
        return _finite_only(
            lambda p: ops.flow_points(p, velocity, self.grid.spacing, self.grid.origin, 1, not self.inverted), x
        )

    def inverse(self) -> Displacement:  # noqa: D102
        return dataclasses.replace(self, inverted=not self.inverted)


@dataclass(frozen=True)
class Sequence(Transform):
    """Several maps one after the other, the first applied first; units must meet."""

    transforms: tuple[Transform, ...]

    def __post_init__(self) -> None:
        parts = tuple(itertools.chain.from_iterable(t.parts() for t in self.transforms))
        if not parts:
            raise ValueError("wanted at least one map in a sequence, got none")
        if len({t.ndim for t in parts}) != 1:
            raise ValueError(f"wanted maps of one dimension, got {[t.ndim for t in parts]}")
        for first, second in itertools.pairwise(parts):
            if first.target_unit != second.source_unit:
                raise ValueError(f"wanted maps whose units meet, got {first.target_unit} before {second.source_unit}")
        object.__setattr__(self, "transforms", parts)

    @property
    def source_unit(self) -> str:  # type: ignore[override]  # noqa: D102
        return self.transforms[0].source_unit

    @property
    def target_unit(self) -> str:  # type: ignore[override]  # noqa: D102
        return self.transforms[-1].target_unit

    @property
    def ndim(self) -> int:  # noqa: D102
        return self.transforms[0].ndim

    def points(self, coords: Tensor) -> Tensor:  # noqa: D102
        for transform in self.transforms:
            coords = transform.points(coords)
        return coords

    def inverse(self) -> Sequence:  # noqa: D102
        return Sequence(tuple(t.inverse() for t in reversed(self.transforms)))

    def parts(self) -> tuple[Transform, ...]:  # noqa: D102
        return self.transforms


def resample(image: Image, transform: Transform, grid: Grid, background: float | None = None) -> Image:
    """``image`` carried by ``transform`` (source: the image's space) onto ``grid`` (target space), in its own dtype.

    Intensities are interpolated linearly and rounded for integer dtypes; labels take the nearest pixel, ids kept.
    Target pixels that map outside the image get ``background``; where None, the nearest border value (labels: 0).
    """
    if transform.ndim != image.grid.ndim or transform.ndim != grid.ndim:
        raise ValueError(
            f"wanted an image, a map and a grid of one dimension, got {image.grid.ndim}, {transform.ndim}, {grid.ndim}"
        )
    if transform.source_unit != image.grid.unit or transform.target_unit != grid.unit:
        raise ValueError(
            f"wanted an image in {transform.source_unit} and a grid in {transform.target_unit} for this map, "
            f"got {image.grid.unit} and {grid.unit}; convert with Grid.to_unit or state the spacing"
        )
    pull = transform.inverse()
    start = (0,) * grid.ndim
    data = resample_part(image.data, image.grid, start, pull, grid, start, grid.shape, image.labels, background)
    weight = None
    if image.weight is not None:
        mask = image.weight[None].to(torch.float32)
        weight = resample_part(mask, image.grid, start, pull, grid, start, grid.shape, False, 0.0)[0]
    return image.replace(data=data, grid=grid, weight=weight, reading=None)


def resample_part(
    part: Tensor,
    image_grid: Grid,
    image_offset: tuple[int, ...],
    pull: Transform,
    grid: Grid,
    offset: tuple[int, ...],
    shape: tuple[int, ...],
    labels: bool = False,
    background: float | None = None,
) -> Tensor:
    """A tile of what `resample` gives, from the part of the image that it needs; the same pixels, bit for bit.

    Args:
        part: ``[C, *part]``, the pixels from ``image_offset`` of an image on ``image_grid``.
        image_grid: of the whole image.
        image_offset: index of the part's first pixel.
        pull: from target positions to positions of the image.
        grid: of the whole target.
        offset: index of the tile's first pixel in ``grid``.
        shape: pixels of the tile.
        labels: take the nearest pixel, ids kept.
        background: value beyond the whole image's pixels; where None, the nearest border value (labels: 0).

    Returns:
        ``[C, *shape]`` in the part's dtype.
    """
    dtype = part.dtype
    if labels and background is None:
        background = 0.0
    if background is not None and not dtype.is_floating_point:
        background = float(min(max(round(background), torch.iinfo(dtype).min), torch.iinfo(dtype).max))
    if not labels:
        if dtype in (torch.float64, torch.int32, torch.int64, torch.uint32, torch.uint64):
            working = torch.float64
        else:
            working = dtype if dtype in (torch.uint8, torch.uint16) else torch.float32
        fused = _fusible(pull)
        if fused is not None:
            out = _fused(part.to(working), image_grid, image_offset, fused, grid, offset, shape, background)
            return out if out.dtype == dtype else _rounded(out, dtype)
        working = torch.float64 if working == torch.float64 else torch.float32
        source = part.to(working)
    out = torch.empty((part.shape[0], *shape), dtype=dtype if labels else working)
    flat, stored = out.reshape(part.shape[0], -1), part.reshape(part.shape[0], -1)
    spacing = torch.tensor(image_grid.spacing, dtype=torch.float64)
    origin = torch.tensor(image_grid.origin, dtype=torch.float64)
    for rows, coords in _chunks(grid, offset, shape):
        at = pull.points(coords)
        index = (at - origin) / spacing  # [n, D], in pixels of the whole image
        if labels:
            address = torch.zeros(index.shape[0], dtype=torch.long)
            for d, n in enumerate(part.shape[1:]):
                nearest = index[:, d].round().nan_to_num(0.0).clamp(0, image_grid.shape[d] - 1).long()
                address = address * n + (nearest - image_offset[d]).clamp(0, n - 1)
            values = stored[:, address]
        else:
            values = reference.sample_part(source, index, image_grid.shape, image_offset)
        if background is not None:
            values = torch.where(image_grid.contains(at), values, torch.tensor(background).to(values.dtype))
        flat[:, rows] = values
    return out if labels else _rounded(out, dtype)


def move_points(points: PointSet, transform: Transform) -> PointSet:
    """``points`` carried by ``transform``, same order, table untouched, now in the target's unit."""
    if points.ndim != transform.ndim:
        raise ValueError(
            f"wanted points of {transform.ndim} components for this map, got {points.ndim} ({', '.join(points.axes)}); "
            "choose their columns, or use a map of that dimension"
        )
    if points.unit != transform.source_unit:
        raise ValueError(f"wanted points in {transform.source_unit} for this map, got {points.unit}; state the spacing")
    return points.replace(coords=transform.points(points.coords), unit=transform.target_unit)


def _fused(
    part: Tensor,
    image_grid: Grid,
    image_offset: tuple[int, ...],
    pull: _Fused,
    grid: Grid,
    offset: tuple[int, ...],
    shape: tuple[int, ...],
    background: float | None,
) -> Tensor:
    affine, flow, after = pull
    ndim = grid.ndim
    matrix = homogeneous.compose(affine, grid.index_to_position())[:ndim]
    if flow is None:
        velocity, v_grid, n_steps = torch.zeros((1, ndim, *(1,) * ndim)), Grid((1,) * ndim), 1
    else:
        velocity, v_grid, n_steps = flow.velocity, flow.grid, flow.n_steps or 1
    return ops.warp_crop(
        part, velocity, matrix, shape, offset, image_grid.shape, image_offset, image_grid.spacing, image_grid.origin,
        v_grid.spacing, v_grid.origin, n_steps, background, None if after is None else after[:ndim],
    )  # fmt: skip


def _rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Floats in ``dtype``, rounded and clamped where it holds whole numbers."""
    if dtype.is_floating_point:
        return values.to(dtype)
    info = torch.iinfo(dtype)
    top = float(info.max)
    if top > info.max:  # 2^63 and 2^64 fit a double, but not the type
        top = math.nextafter(top, 0.0)
    return values.round().clamp(info.min, top).to(dtype)


def _chunks(grid: Grid, offset: tuple[int, ...], shape: tuple[int, ...]) -> Iterable[tuple[slice, Tensor]]:
    """Flat slices of a tile of ``grid`` and their positions ``[n, D]``, in bands along the first axis, to bound the memory.

    A position depends on the pixel's index in ``grid`` alone.
    """
    per_row = math.prod(shape[1:])
    band = max(1, _CHUNK // max(1, per_row))
    for start in range(0, shape[0], band):
        n = min(band, shape[0] - start)
        axes = [
            o + s * (torch.arange(m, dtype=torch.float64) + first)
            for o, s, m, first in zip(
                grid.origin, grid.spacing, (n, *shape[1:]), (offset[0] + start, *offset[1:]), strict=True
            )
        ]
        coords = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
        yield slice(start * per_row, (start + n) * per_row), coords.reshape(-1, grid.ndim)


_Fused = tuple[Tensor, Flow | None, Tensor | None]


def _fusible(pull: Transform) -> _Fused | None:
    """``pull`` as `ops.warp_crop` fuses it, else None: an affine matrix, then a reversed flow, if any; or an affine matrix, a
    flow that is not reversed, and the affine matrix after it."""
    before = after = torch.eye(pull.ndim + 1, dtype=torch.float64)
    flow: Flow | None = None
    for part in pull.parts():
        if isinstance(part, Affine):
            if flow is None:
                before = homogeneous.compose(part.matrix, before)
            else:
                after = homogeneous.compose(part.matrix, after)
        elif isinstance(part, Flow) and flow is None:
            flow = part
        else:
            return None
    if flow is None or flow.reverse:
        return (before, flow, None) if torch.equal(after, torch.eye(pull.ndim + 1, dtype=torch.float64)) else None
    return before, flow, after


def _finite_only(function: object, coords: Tensor) -> Tensor:
    """Apply a map of ``[N, D]`` to ``[..., D]`` coordinates; rows that are not finite come back as NaN."""
    flat = coords.reshape(-1, coords.shape[-1])
    finite = torch.isfinite(flat).all(dim=-1)
    assert callable(function)
    if bool(finite.all()):
        return torch.as_tensor(function(flat)).reshape(coords.shape)
    out = torch.full_like(flat, float("nan"))
    out[finite] = function(flat[finite])
    return out.reshape(coords.shape)


def _check_coords(coords: Tensor, ndim: int) -> Tensor:
    x = torch.as_tensor(coords, dtype=torch.float64)
    if x.ndim < 1 or x.shape[-1] != ndim:
        raise ValueError(f"wanted coordinates [..., {ndim}] in the order {AXES[ndim]}, got {tuple(x.shape)}")
    return x


def _check_grid(transform: Transform, grid: Grid) -> None:
    if grid.ndim != transform.ndim or grid.unit != transform.source_unit:
        raise ValueError(
            f"wanted a grid of {transform.ndim} axes in {transform.source_unit} (the map's source), "
            f"got {grid.ndim} axes in {grid.unit}"
        )


def _canonical_units(affine: Affine) -> None:
    object.__setattr__(affine, "source_unit", canonical_unit(affine.source_unit))
    object.__setattr__(affine, "target_unit", canonical_unit(affine.target_unit))
