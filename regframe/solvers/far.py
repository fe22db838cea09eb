"""Data that lie far from their origin, fitted where they lie near it: a fit at 1e9 has lost nine of its sixteen digits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from ..contracts import Fitted, Task
from ..data import Grid, Image, PointSet
from ..maps.affine import Affine
from ..maps.sequence import in_a_row

FAR = 1e6
"""Distance from the origin, in extents of the data, from which they are moved: a slide on its stage lies within 100, a section in
the coordinates of a country within 10 000; at 1e6 a thousandth of a pixel is still ten thousand times the rounding."""
_EDGE = 1e13
"""Distance from the origin, in pixels, beyond which neighbouring pixels cannot be told apart: at 1e13 positions are rounded to 2
thousandths of a pixel."""
_LENGTHS = (1e-50, 1e50)
"""Pixel sizes and extents that are computed with: products of a few of them stay within double precision (1e-308 … 1e308)."""


def check_place(data: Image | PointSet, side: str) -> None:
    """ValueError for data whose pixel size or place has no digits left to compute with."""
    middle, extent, pixel = _box(data)
    if not (_LENGTHS[0] <= pixel and extent <= _LENGTHS[1] and middle.abs().max() <= _LENGTHS[1] * 1e3):
        raise ValueError(
            f"wanted a {side} side whose sizes are between {_LENGTHS[0]:g} and {_LENGTHS[1]:g}, got {pixel:g} and {extent:g} "
            f"around {middle.abs().max():g} {_unit(data)}; check its unit and pixel size"
        )
    if float(middle.abs().max()) > _EDGE * pixel:
        raise ValueError(
            f"wanted a {side} side nearer its origin than {_EDGE:g} pixels, got one at {middle.abs().max():g} {_unit(data)} of "
            f"pixels of {pixel:g}, where numbers no longer tell pixels apart; correct its origin"
        )


def brought_near(task: Task) -> tuple[Task, Callable[[Fitted], Fitted]]:
    """The task with data that lie `FAR` away moved to their origin, and a function that carries its fit back to their place.

    Only where the start is searched for: one that is given is in the data's own coordinates.
    """
    shifts = [_shift(data) for data in (task.fixed, task.moving)]
    searched = isinstance(task.start, str) and task.start == "auto"
    if not searched or len(shifts[0]) != len(shifts[1]) or not any(bool(shift.any()) for shift in shifts):
        return task, lambda fitted: fitted
    fixed, moving = (_moved(data, -shift) for data, shift in zip((task.fixed, task.moving), shifts, strict=True))

    def back(fitted: Fitted) -> Fitted:
        forth, home = _by(-shifts[1], fitted.affine.source_unit), _by(shifts[0], fitted.affine.target_unit)
        affine = home.matrix @ fitted.affine.matrix @ forth.matrix
        return dataclasses.replace(
            fitted,
            transform=in_a_row([forth, *fitted.transform.parts(), home]),
            affine=Affine(affine, fitted.affine.source_unit, fitted.affine.target_unit),
            fixed_grid=_shifted(fitted.fixed_grid, shifts[0]),
            moving_grid=_shifted(fitted.moving_grid, shifts[1]),
            weight_grid=None if fitted.weight_grid is None else _shifted(fitted.weight_grid, shifts[0]),
        )

    return dataclasses.replace(task, fixed=fixed, moving=moving), back


def _unit(data: Image | PointSet) -> str:
    return data.grid.unit if isinstance(data, Image) else data.unit


def _box(data: Image | PointSet) -> tuple[Tensor, float, float]:
    """Middle ``[D]``, extent and pixel size of data, in their unit; of points a thousandth of the extent counts as a pixel."""
    if isinstance(data, Image):
        grid = data.grid
        origin, extent = (torch.tensor(v, dtype=torch.float64) for v in (grid.origin, grid.extent))
        return origin + extent / 2, float(extent.max()), min(grid.spacing)
    low, high = data.coords.amin(0), data.coords.amax(0)
    longest = float((high - low).max())
    return low / 2 + high / 2, longest, longest / 1000


def _shift(data: Image | PointSet) -> Tensor:
    """The middle of far data ``[D]``, rounded to whole extents so that moving them back is exact; 0 for near ones."""
    middle, extent, _ = _box(data)
    if float(middle.abs().max()) <= FAR * extent:
        return torch.zeros_like(middle)
    return torch.round(middle / extent) * extent


def _moved(data: Image | PointSet, shift: Tensor) -> Image | PointSet:
    if isinstance(data, Image):
        return data.replace(grid=_shifted(data.grid, shift))
    return data.replace(coords=data.coords + shift)


def _shifted(grid: Grid, shift: Tensor) -> Grid:
    origin = tuple(o + s for o, s in zip(grid.origin, shift.tolist(), strict=True))
    return Grid(grid.shape, grid.spacing, origin, grid.unit)


def _by(shift: Tensor, unit: str) -> Affine:
    """The shift as a map of one space onto itself."""
    matrix = torch.eye(len(shift) + 1, dtype=torch.float64)
    matrix[:-1, -1] = shift
    return Affine(matrix, unit, unit)
