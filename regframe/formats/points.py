"""Corresponding positions on both sides, as a table (csv) or as points (GeoJSON), for programs that cannot hold a map."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..contracts import MapFormat, Side, Written
from ..data import Grid, PointSet
from ..io.shapes import write_shapes
from ..io.tables import write_points
from ..maps.shapes import Shapes
from ..result import Result
from .steps import sides, way_of

LATTICE = 33
"""Number of positions along the longest axis of the canvas, where the user gives neither positions nor their distance.

That makes about a thousand positions in 2D, which a table can still show and to which a thin-plate spline can still be fitted.
"""
MOST_POINTS = 1 << 22
"""Largest number of positions in one file: at some hundred bytes each, a few hundred megabytes."""


class Points(MapFormat):
    """Positions of one side, and the positions to which the map takes them.

    Args:
        points: positions of the side opposite to ``to``, in its unit; a regular grid on its canvas where None.
        spacing: distance of the grid's positions, in that unit; 1/`LATTICE` of the longest axis where None.
    """

    def __init__(self, points: PointSet | None = None, spacing: float | None = None) -> None:
        if points is not None and not isinstance(points, PointSet):
            raise ValueError(f"wanted a PointSet as points (on the command line: --points FILE), got {points!r:.80}")
        if spacing is not None and not (isinstance(spacing, (int, float)) and math.isfinite(spacing) and spacing > 0):
            raise ValueError(f"wanted a positive spacing of the points, got {spacing!r}")
        self.points = points
        self.spacing = spacing

    def read(self, path: Path, fixed: Grid | None, moving: Grid | None, *, to: Side, unit: str) -> NoReturn:
        """Refused: positions do not determine the map between them."""
        raise ValueError(
            f"wanted a map, got points in {path.name!r}, which say nothing of what lies between them; fit one to them with "
            "`regframe register --landmarks`"
        )

    def carried(self, result: Result, to: Side) -> Carried:
        """The positions and their images under the map."""
        source, target = sides(result.fixed_grid, result.moving_grid, to)
        coords = self._lattice(source) if self.points is None else _of_side(self.points, source)
        there = way_of(result, to).points(coords)
        fixed, moving = (coords, there) if to == "moving" else (there, coords)
        columns = {**_columns("fixed", result.fixed_grid, fixed), **_columns("moving", result.moving_grid, moving)}
        return Carried(source, target, coords, there, columns)

    def _lattice(self, canvas: Grid) -> Tensor:
        """Positions ``[N, D]`` of a regular grid on a canvas."""
        step = self.spacing or max(canvas.extent) / LATTICE
        count = math.prod(max(1.0, extent / step) for extent in canvas.extent)
        if count > MOST_POINTS:
            raise ValueError(f"wanted at most {MOST_POINTS} points, got {count:.3g}; take a larger spacing")
        return canvas.resampled(step).coords().reshape(-1, canvas.ndim)

    def written(self, result: Result, path: Path, to: Side) -> Written:
        """The record of a file of positions; it holds no map, so no error is stated."""
        return Written(self.name, (path,), to, (result.fixed_grid.unit, result.moving_grid.unit), None)


class Csv(Points):
    """.csv: positions on both sides as a table."""

    name = "csv"
    suffixes = (".csv", ".tsv", ".csv.gz")

    def write(self, result: Result, path: Path, *, to: Side, unit: str, tolerance: float) -> Written:
        """Write exact positions in the units of the canvases; further columns of given points follow."""
        found = self.carried(result, to)
        table = {name: [repr(v) for v in values] for name, values in found.columns.items()}
        extra: dict[str, Any] = {}
        if self.points is not None:
            extra = {n: v for n, v in self.points.table.items() if n not in {*self.points.columns, *table}}
        names = list(table)[: found.source.ndim] if to == "moving" else list(table)[found.source.ndim :]
        whole = PointSet(found.coords, found.source.unit, table={**table, **extra}, columns=tuple(names))
        write_points(whole, path)
        return self.written(result, path, to)


class GeoJson(Points):
    """.geojson: positions on both sides as points, for QuPath."""

    name = "geojson"
    suffixes = (".geojson", ".geojson.gz")

    def write(self, result: Result, path: Path, *, to: Side, unit: str, tolerance: float) -> Written:
        """Write a point at each mapped position, with the coordinates of both sides as its properties."""
        found = self.carried(result, to)
        if found.source.ndim != 2:
            raise ValueError("wanted a map of two dimensions for GeoJSON, which is flat, got one of 3; write csv")
        if not bool(torch.isfinite(found.there).all()):
            raise ValueError("wanted finite positions for GeoJSON, got NaN or inf; write csv")
        corner = 0.5 if found.target.unit == "px" else 0.0  # in GeoJSON of images, pixels count from their corners
        features = [
            {
                "type": "Feature",
                "id": str(i),
                "geometry": {"type": "Point", "coordinates": [x, y]},
                "properties": {name: values[i] for name, values in found.columns.items()},
            }
            for i, (y, x) in enumerate((found.there + corner).tolist())
        ]
        document = {"type": "FeatureCollection", "features": features}
        write_shapes(Shapes.from_geojson(document, found.target.unit, "corner", path.name), path, "corner")
        return self.written(result, path, to)


@dataclass(frozen=True)
class Carried:
    """Positions and their images under a map.

    Args:
        source: canvas of the side that the positions are on.
        target: canvas of the side to which they are mapped.
        coords: positions ``[N, D]``, in the unit of the source.
        there: mapped positions ``[N, D]``, in the unit of the target.
        columns: coordinates of the fixed side, then of the moving side, by names such as ``fixed_y_um``.
    """

    source: Grid
    target: Grid
    coords: Tensor
    there: Tensor
    columns: dict[str, list[float]]


def _of_side(points: PointSet, source: Grid) -> Tensor:
    """Positions ``[N, D]`` that the user gave; ValueError where they have another unit or dimension than the side."""
    if points.unit != source.unit or points.ndim != source.ndim:
        raise ValueError(
            f"wanted points of the side they come from, in {source.unit} with {source.ndim} components, got {points.unit} "
            f"with {points.ndim}"
        )
    return points.coords


def _columns(side: Side, grid: Grid, coords: Tensor) -> dict[str, list[float]]:
    """The components of positions ``[N, D]`` by column name: side, axis and unit (no unit for pixels)."""
    unit = "" if grid.unit == "px" else "_" + {"µm": "um"}.get(grid.unit, grid.unit)
    return {f"{side}_{axis}{unit}": coords[:, d].tolist() for d, axis in enumerate(grid.axes)}
