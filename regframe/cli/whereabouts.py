"""Where the points of a table lie: in pixels of full resolution, and whether on the canvas they belong to at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .asread import finest_of

if TYPE_CHECKING:
    from ..data import Grid, PointSet
    from ..evaluation import CarriedPoints

FULL_RESOLUTION = {"pxl_row_in_fullres", "pxl_col_in_fullres"}
"""Position columns of Visium's ``tissue_positions``, whose names say that they are pixels of full resolution."""
MOST = 0.95
"""Share of points that a factor has to bring onto the canvas to be named."""
LEAST = 0.1
"""Share of the canvas, per axis, that these points then have to span: any small factor brings all onto the first pixels."""


def in_full_resolution(table: PointSet) -> bool:
    """Whether the names of the position columns say that they are pixels of full resolution."""
    return bool(table.columns) and set(table.columns) <= FULL_RESOLUTION


def pixels_of(folder: Path, side: str, grid: Grid) -> Grid:
    """The finest pixels of a side, where its file is known and states them; those that were registered otherwise."""
    finest = finest_of(folder, side)
    return grid if finest is None or finest.ndim != grid.ndim or finest.unit != grid.unit else finest


def full_pixel(folder: Path, side: str, grid: Grid) -> float | None:
    """Size of a full-resolution pixel of the slide that was registered, said on stderr; None where it is not known."""
    finest = finest_of(folder, side)
    if finest is None or finest.unit != grid.unit or len(set(finest.spacing)) > 1:
        return None
    size = finest.spacing[0]
    click.echo(
        f"Note: pixels of the input were taken to be {size:.6g} {finest.unit} long, as those of the {side} slide; "
        "--input-spacing says otherwise",
        err=True,
    )
    return size


def in_pixels(carried: CarriedPoints, pixels: Grid) -> CarriedPoints:
    """Moved points in pixels, as they came; the spread of each as well."""
    import torch

    origin, spacing = (torch.tensor(v, dtype=torch.float64) for v in (pixels.origin, pixels.spacing))
    points = carried.points.replace(coords=(carried.points.coords - origin) / spacing, unit="px")
    return carried._replace(points=points, position_sd=carried.position_sd / pixels.pixel)


def off_canvas(points: PointSet, grid: Grid, side: str, given: float | None) -> str | None:
    """A sentence where no point lies on the canvas that they belong to, with the factor that would bring them there.

    Args:
        points: in the unit of ``grid``.
        grid: the canvas.
        side: its name.
        given: the factor that they were multiplied by already.
    """
    from ..data import describe_grid

    if points.ndim != grid.ndim or not len(points) or bool(grid.contains(points.coords).any()):
        return None
    factor = likely_factor(points, grid)
    way = "check the unit and the order of x and y" if factor is None else (
        f"multiplied by {factor:.6g} they would: --input-spacing {factor * (given or 1.0):.6g}"
    )  # fmt: skip
    return f"none of {len(points)} points lies on the {side} canvas ({describe_grid(grid)}); {way}"


def likely_factor(points: PointSet, grid: Grid) -> float | None:
    """The factor between usual units of a position, or one pixel, that brings nearly all points onto a canvas."""
    for factor in (grid.pixel, 1 / grid.pixel, 1e-3, 1e3):
        at = points.coords * factor
        span = at.amax(dim=0) - at.amin(dim=0)
        wide = all(float(s) >= LEAST * e for s, e in zip(span, grid.extent, strict=True))
        if wide and float(grid.contains(at).double().mean()) >= MOST:
            return factor
    return None
