"""Where the pixels of a large image lie: the canvas of an output, and the levels of a pyramid on a side's canvas."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterable
from typing import Literal

import numpy as np
import torch

from ..data import Grid, Pyramid, describe_grid, unit_ratio
from ..maps.base import Transform
from ..maps.bends import carried_length
from ..result import Result

_OUTLINE = 512
"""Positions per edge of a 2D canvas at which a map is evaluated to find the bounding box of the mapped canvas: a bend changes
little between two of them."""
_OUTLINE_3D = 32
"""Positions per edge of a volume for that purpose; fewer, because its outline consists of faces."""
_SNAP = 0.1
"""Relative difference between a pixel size and the destination's own times a power of two, below which the latter is used."""
_RATIO = 0.02
"""Relative difference of two extents below which both are taken for one field of view: a level of a pyramid loses up to a
pixel."""
_ROUNDING = 1e-4
"""Relative difference of two pixel sizes below which both are one: what decimals of a file's pixel size leave open."""
Canvas = Literal["fixed", "moving", "union"]
"""Side, or union of both sides, whose field of view an output fills."""


# ------------------------------------------------------------------------------------------------------------- canvases


def canvas_grid(
    result: Result,
    to: Literal["fixed", "moving"],
    canvas: Canvas | None = None,
    spacing: float | None = None,
    region: Iterable[tuple[float, float]] | None = None,
    source: Pyramid | None = None,
    level: int | None = None,
    finest: Grid | None = None,
) -> Grid:
    """The grid of an output in the space of the side ``to``: its field of view, its pixel size, and the part of it that is
    wanted.

    Its pixels are those of the destination's canvas in the result, evenly split or joined, counted from its lower corner. The
    field of the other side and the union continue the same rows and columns.

    Args:
        result: the map and both canvases.
        to: the destination.
        canvas: ``fixed``, ``moving`` or ``union``; the destination's own where None. For the other side, it is the bounding
            box of its mapped canvas.
        spacing: pixel size of the output. Where None, the mapped pixel size of ``level``, replaced by the destination's own
            times a power of two where the two are within a tenth; without ``level``, the pixel size of the destination's canvas.
        region: first and last position per axis; pixels whose centres lie between them are kept.
        source: the image that has ``level``.
        level: resolution of the image that decides the pixel size.
        finest: the finest pixels of the destination, where they are known: an output of that pixel size has just these.

    Raises:
        ValueError: for a region without a pixel of the canvas.
    """
    own, other = (result.fixed_grid, result.moving_grid) if to == "fixed" else (result.moving_grid, result.fixed_grid)
    forth = result.transform if to == "fixed" else result.transform.inverse()
    if spacing is None and level is not None and source is not None:
        if not 0 <= level < len(source.levels):
            raise ValueError(f"wanted a level from 0 to {len(source.levels) - 1} of {source.name}, got {level}")
        spacing = _spacing_of(source.levels[level].grid, forth, own if finest is None else finest)
    if finest is not None and spacing is not None and _splits(finest, own) and _near(spacing, finest):
        own = finest
    grid = own if spacing is None or own.spacing == (spacing,) * own.ndim else own.resampled(spacing)
    low, high = np.zeros(own.ndim, dtype=np.int64), np.array(grid.shape)
    if canvas not in (None, to):
        positions = forth.points(_outline(other)).numpy()
        if not np.isfinite(positions).all():
            raise ValueError("wanted a map that is finite along the border of the other canvas, got NaN or inf")
        edge = np.array(grid.origin) - np.array(grid.spacing) / 2
        a = np.floor((positions.min(axis=0) - edge) / grid.spacing + 1e-6).astype(np.int64)
        b = np.ceil((positions.max(axis=0) - edge) / grid.spacing - 1e-6).astype(np.int64)
        low, high = (a, b) if canvas != "union" else (np.minimum(low, a), np.maximum(high, b))
    if region is not None:
        bounds = np.array([tuple(pair) for pair in region], dtype=np.float64)
        if bounds.shape != (grid.ndim, 2) or not np.isfinite(bounds).all():
            raise ValueError(f"wanted a first and a last position for each of {grid.ndim} axes, got {bounds.tolist()}")
        first = np.ceil((bounds[:, 0] - grid.origin) / grid.spacing - 1e-9).astype(np.int64)
        last = np.ceil((bounds[:, 1] - grid.origin) / grid.spacing - 1e-9).astype(np.int64)
        whole = [
            (o + s * (a - 0.5), o + s * (b - 0.5))
            for o, s, a, b in zip(grid.origin, grid.spacing, low, high, strict=True)
        ]
        low, high = np.maximum(low, first), np.minimum(high, last)
        if (high <= low).any():
            told = ", ".join(f"{a:.6g}:{b:.6g}" for a, b in whole)
            raise ValueError(
                f"wanted a region with pixels of the canvas, which covers {told} {grid.unit}, got "
                + ",".join(f"{a:.6g}:{b:.6g}" for a, b in bounds)
            )
    if not low.any() and tuple(high) == grid.shape:
        return grid
    origin = tuple(o + s * int(a) for o, s, a in zip(grid.origin, grid.spacing, low, strict=True))
    return Grid(tuple(int(b - a) for a, b in zip(low, high, strict=True)), grid.spacing, origin, grid.unit)


def _near(spacing: float, grid: Grid) -> bool:
    return all(abs(spacing / s - 1) < _ROUNDING for s in grid.spacing)


def _splits(finest: Grid, own: Grid) -> bool:
    """Whether ``finest`` covers the field of ``own``, to within a pixel of the latter."""
    if finest.ndim != own.ndim or finest.unit != own.unit:
        return False
    edges = [
        (f.origin[d] - f.spacing[d] / 2, f.origin[d] - f.spacing[d] / 2 + f.extent[d], f.spacing[d])
        for f in (finest, own)
        for d in range(own.ndim)
    ]
    pairs = zip(edges[: own.ndim], edges[own.ndim :], strict=True)
    return all(abs(a[0] - b[0]) <= b[2] and abs(a[1] - b[1]) <= b[2] and a[2] <= b[2] for a, b in pairs)


def _spacing_of(grid: Grid, transform: Transform, own: Grid) -> float:
    """Mapped size of a pixel of ``grid``, replaced by a power of two times the size of ``own`` where the two are close."""
    size = carried_length(grid.pixel, transform)
    power = math.log2(size / own.pixel)
    nearest = own.pixel * 2.0 ** round(power)
    return nearest if abs(size / nearest - 1) <= _SNAP else size


def _outline(grid: Grid) -> torch.Tensor:
    """Positions ``[N, D]`` along the outer pixel edges of a grid: of a 2D grid its border, of a 3D grid its faces."""
    low = [o - s / 2 for o, s in zip(grid.origin, grid.spacing, strict=True)]
    steps = _OUTLINE if grid.ndim == 2 else _OUTLINE_3D
    lines = [torch.linspace(a, a + e, steps + 1, dtype=torch.float64) for a, e in zip(low, grid.extent, strict=True)]
    found = []
    for d in range(grid.ndim):
        axes = [line[[0, -1]] if e == d else line for e, line in enumerate(lines)]
        found.append(torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, grid.ndim))
    return torch.cat(found)


def place_pyramid(pyramid: Pyramid, side: Grid, spacing: float | None = None) -> Pyramid:
    """The pyramid with its finest level moved to where `place` puts it in the space of ``side``; the other levels move along."""
    native, placed = pyramid.grid, place(pyramid.grid, side, spacing)
    if placed == native:
        return pyramid
    scale = [p / n for p, n in zip(placed.spacing, native.spacing, strict=True)]
    levels = []
    for level in pyramid.levels:
        grid = level.grid
        moved = Grid(
            grid.shape,
            tuple(s * k for s, k in zip(grid.spacing, scale, strict=True)),
            tuple(p + (o - n) * k for p, o, n, k in zip(placed.origin, grid.origin, native.origin, scale, strict=True)),
            placed.unit,
        )
        levels.append(dataclasses.replace(level, grid=moved))
    return dataclasses.replace(pyramid, levels=tuple(levels))


def place(grid: Grid, side: Grid, spacing: float | None) -> Grid:
    """The grid of an image in the space of ``side``, in its unit.

    With ``spacing`` (in the side's unit) the image's lower outer edges are put on those of the side. Without it, an image with
    as many pixels as the side gets the side's grid, and any other image must declare a spacing with which it covers the side's
    field of view. Raises ValueError where none of these determines its place.
    """
    if grid.ndim != side.ndim:
        raise ValueError(f"wanted an image of {side.ndim} axes for this result, got {grid.ndim}")
    if spacing is not None:
        origin = tuple(o - s / 2 + spacing / 2 for o, s in zip(side.origin, side.spacing, strict=True))
        return _same_field(Grid(grid.shape, (spacing,) * grid.ndim, origin, side.unit), side)
    ratio = unit_ratio(grid.unit, side.unit)
    if grid.shape == side.shape:
        declared = ratio is not None and (grid.unit != "px" or side.unit == "px")
        if declared and not _close(
            grid.to_unit(side.unit).extent if grid.unit != side.unit else grid.extent, side.extent
        ):
            raise ValueError(
                f"wanted the field of this result ({describe_grid(side)}), got {describe_grid(grid)}; "
                "state --input-spacing if the file's own is wrong"
            )
        return side
    if ratio is None:
        raise ValueError(
            f"wanted an image of {describe_grid(side)}, got {describe_grid(grid)}, which does not say how they "
            f"relate; state --input-spacing in {side.unit}"
        )
    own = Grid(grid.shape, tuple(s * ratio for s in grid.spacing), tuple(o * ratio for o in grid.origin), side.unit)
    if own.unit == "px" and not _close(own.extent, side.extent):
        raise ValueError(
            f"wanted an image of {describe_grid(side)}, got {describe_grid(grid)}, which is another size; "
            "state --input-spacing in px of that side if it is the same field"
        )
    return _same_field(own, side)


def _same_field(grid: Grid, side: Grid) -> Grid:
    """``grid``, provided it overlaps the field of ``side`` (else ValueError); warns where the two cover different extents."""
    low = [
        max(a - s / 2, b - t / 2)
        for a, s, b, t in zip(grid.origin, grid.spacing, side.origin, side.spacing, strict=True)
    ]
    high = [
        min(a - s / 2 + e, b - t / 2 + f)
        for a, s, e, b, t, f in zip(
            grid.origin, grid.spacing, grid.extent, side.origin, side.spacing, side.extent, strict=True
        )
    ]
    if any(a >= b for a, b in zip(low, high, strict=True)):
        raise ValueError(
            f"wanted an image that overlaps the field of this result ({describe_grid(side)}), "
            f"got {describe_grid(grid)} elsewhere"
        )
    if not _close(grid.extent, side.extent):
        warnings.warn(
            f"the input covers another extent ({describe_grid(grid)}) than the side it belongs to "
            f"({describe_grid(side)})",
            stacklevel=4,
        )
    return grid


def _close(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(abs(a - b) <= _RATIO * b for a, b in zip(one, other, strict=True))
