"""Volumes on the page: planes across any axis of the fixed side, each a flat canvas of square pixels."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data import AXES, Grid, Level, Pyramid
from ..maps.base import Transform
from ..maps.resample import Part, Tile, resample_part
from .tiles import Canvas

Array = NDArray[Any]
MOST = 256 << 20
"""Bytes of a volume that are held, at most: half of what the server may take."""
_ASKED = re.compile(r"([zyx]):(\d{1,7})")


class Planes:
    """The planes of a volume that can be shown.

    Args:
        grid: finest pixels of the fixed side, ``(z, y, x)``.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.canvases = {}
        for axis, name in enumerate(AXES[3]):
            kept = [d for d in range(3) if d != axis]
            shape, spacing, origin = (
                tuple(values[d] for d in kept) for values in (grid.shape, grid.spacing, grid.origin)
            )
            flat = Grid(shape, spacing, origin, grid.unit)  # type: ignore[arg-type]
            if flat.spacing[0] != flat.spacing[1]:
                flat = flat.resampled(min(flat.spacing))
            self.canvases[name] = Canvas(flat)

    def read(self, text: str) -> tuple[str, int]:
        """The axis and the number of the plane that a page asks for as ``z:12``; the middle one across z where it says nothing.

        ValueError for one that there is not.
        """
        if not text:
            return "z", self.grid.shape[0] // 2
        match = _ASKED.fullmatch(text)
        if match is None or int(match[2]) >= self.grid.shape[AXES[3].index(match[1])]:
            raise ValueError(f"wanted a plane as z:12, y:12 or x:12, within the volume, got {text[:20]!r}")
        return match[1], int(match[2])

    def whole(self, plane: tuple[str, int], level: int | None = None) -> Grid:
        """The pixels of a plane at a level as viewers count, as a volume that is one pixel thick; the finest where None."""
        name, number = plane
        canvas = self.canvases[name]
        axis, flat = AXES[3].index(name), canvas.at(canvas.top if level is None else level)
        at = self.grid.origin[axis] + number * self.grid.spacing[axis]

        def thick(values: tuple[Any, ...], own: Any) -> tuple[Any, ...]:
            return (*values[:axis], own, *values[axis:])

        spacing = thick(flat.spacing, self.grid.spacing[axis])
        return Grid(thick(flat.shape, 1), spacing, thick(flat.origin, at), self.grid.unit)

    def position(self, plane: tuple[str, int], at: tuple[float, float]) -> tuple[float, ...]:
        """The position ``(z, y, x)`` of a place on a plane."""
        axis = AXES[3].index(plane[0])
        across = self.grid.origin[axis] + plane[1] * self.grid.spacing[axis]
        return (*at[:axis], across, *at[axis:])

    def told(self) -> list[dict[str, Any]]:
        """Each axis for the page: name, number of planes, where the first lies and how far apart they are, and its canvas."""
        return [
            {"axis": name, "count": self.grid.shape[i], "first": self.grid.origin[i], "step": self.grid.spacing[i],
             **canvas.told()}
            for i, (name, canvas) in enumerate(self.canvases.items())
        ]  # fmt: skip


class WarpedPlanes:
    """A volume carried onto planes, tile by tile.

    Args:
        pyramid: the volume, in the source space of the map; its finest resolution of at most `MOST` bytes is held in memory.
        transform: to the space of the planes.
        planes: where it is shown.

    Raises ValueError where no resolution is that small.
    """

    def __init__(self, pyramid: Pyramid, transform: Transform, planes: Planes) -> None:
        self._planes, self._pull, self._labels = planes, transform.inverse(), pyramid.labels
        self._level, self._data = _held(pyramid)

    def pixels(self, plane: tuple[str, int], level: int, region: tuple[slice, slice]) -> tuple[Array, Array]:
        """Pixels ``[C, h, w]`` of a region of a plane, and where the volume is ``[h, w]`` uint8: 255, beyond it 0."""
        axis = AXES[3].index(plane[0])
        whole = (*region[:axis], slice(0, 1), *region[axis:])
        tile = Tile(
            self._planes.whole(plane, level), tuple(r.start for r in whole), tuple(r.stop - r.start for r in whole)
        )
        none = (0, 0, 0)
        grid = self._level.grid
        at = (_positions(tile.grid, whole)).reshape(-1, 3)
        inside = grid.contains(self._pull.points(at)).reshape(tile.shape).squeeze(axis)
        seen = (inside.to(torch.uint8) * 255).numpy()
        found = resample_part(Part(self._data, grid, none), self._pull, tile, self._labels)
        return found.squeeze(1 + axis).numpy(), seen


def _positions(grid: Grid, region: tuple[slice, ...]) -> torch.Tensor:
    """Positions ``[*region, 3]`` of a part of a grid."""
    axes = [
        o + s * torch.arange(r.start, r.stop, dtype=torch.float64)
        for o, s, r in zip(grid.origin, grid.spacing, region, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def _held(pyramid: Pyramid) -> tuple[Level, torch.Tensor]:
    """The finest level of a volume that may be held in memory, and its pixels."""
    each = len(pyramid.channels) * pyramid.dtype.itemsize
    for level in pyramid.levels:
        if math.prod(level.grid.shape) * each <= MOST:
            data = np.ascontiguousarray(level.read(tuple(slice(0, n) for n in level.grid.shape)))
            return level, torch.from_numpy(data if data.dtype.isnative else data.astype(data.dtype.newbyteorder("=")))
    size = math.prod(pyramid.levels[-1].grid.shape) * each
    raise ValueError(
        f"wanted a volume of at most {MOST >> 20} MiB at one of its resolutions to view, got {size >> 20} MiB in {pyramid.name}; "
        "open one plane (z=K), or write it with coarser levels"
    )
