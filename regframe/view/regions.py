"""A region of the fixed side in a file: GeoJSON outlines, in pixels of full resolution from the corner of the first one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..correction.region import Region
from ..data import Grid, PointSet
from ..io.outputs import to_json
from ..io.shapes import read_shapes
from ..io.tables import replace_file, to_unit_of

RING = 2
"""Kind of a closed outline among shapes (`regframe.maps.shapes.Shapes`)."""


def write(rings: Sequence[Sequence[Sequence[float]]], path: Path, grid: Grid) -> None:
    """Write outlines ``[R][K][2]``, (y, x) in the unit of a grid, in its pixels."""
    polygons = []
    for ring in rings:
        xy = [
            [(x - grid.origin[1]) / grid.spacing[1] + 0.5, (y - grid.origin[0]) / grid.spacing[0] + 0.5]
            for y, x in ring
        ]
        polygons.append([[*xy, xy[0]]])
    geometry = {"type": "MultiPolygon", "coordinates": polygons}
    feature = {"type": "Feature", "properties": {"name": "corrected here"}, "geometry": geometry}
    replace_file(path, (to_json({"type": "FeatureCollection", "features": [feature]}) + "\n").encode())


def read(path: Path, grid: Grid) -> Region:
    """The region of a file: every closed outline in it, holes as holes, in the unit of a grid.

    Raises FileNotFoundError, or ValueError in one sentence where it holds none.
    """
    shapes = read_shapes(path, "px", max_bytes=64 << 20)
    coords = to_unit_of(PointSet(shapes.coords.to(torch.float64), "px"), grid).coords.tolist()
    ends = shapes.offsets.tolist()
    rings = [coords[a:b] for a, b, kind in zip(ends, ends[1:], shapes.kinds.tolist(), strict=False) if kind == RING]
    if not rings:
        raise ValueError(
            f"wanted outlines (polygons) in {path.name}, got points or lines alone; draw around the place to correct"
        )
    return Region.of(rings)
