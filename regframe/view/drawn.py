"""Points and outlines that lie over the pictures: cells, spots, annotations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from .. import plugins
from ..data import Grid, PointSet
from ..io.shapes import read_shapes
from ..io.tables import to_unit_of
from ..maps.shapes import POINTS

MOST = 2_000_000
"""Positions of one drawing that are sent to the page: 16 MB; of more every second, third … point is
drawn, and the page says so."""


@dataclass(frozen=True)
class Drawing:
    """Positions that are drawn over the pictures.

    Args:
        name: of the file.
        side: whose space they lie in.
        coords: ``[N, 2]`` as (y, x), in the unit of the side.
        offsets: where each line begins in ``coords``, with the end behind; empty where all are points.
        left_out: positions that are not drawn.
    """

    name: str
    side: Literal["fixed", "moving"]
    coords: torch.Tensor
    offsets: tuple[int, ...] = ()
    left_out: int = 0

    @classmethod
    def of_points(cls, name: str, side: Literal["fixed", "moving"], coords: torch.Tensor) -> Drawing:
        """Points, thinned to `MOST`."""
        step = -(-len(coords) // MOST)
        kept = coords[::step] if step > 1 else coords
        return cls(name, side, kept, left_out=len(coords) - len(kept))

    @classmethod
    def of_file(cls, path: Path, side: Literal["fixed", "moving"], grid: Grid) -> Drawing:
        """GeoJSON, or a table of points; raises what reading it raises."""
        if path.name.lower().endswith((".geojson", ".json", ".geojson.gz", ".json.gz")):
            shapes = read_shapes(path, "px")
            coords = to_unit_of(PointSet(shapes.coords, "px"), grid).coords
            if bool((shapes.kinds == POINTS).all()):
                return cls.of_points(path.name, side, coords)
            return cls(path.name, side, coords, tuple(shapes.offsets.tolist()))
        data = plugins.open(path)
        if not isinstance(data, PointSet):
            raise ValueError(f"wanted points or GeoJSON to draw over the pictures, got an image in {path}")
        if data.ndim != 2:
            raise ValueError(f"wanted points of a plane to draw, got {data.ndim} components in {path}")
        return cls.of_points(path.name, side, to_unit_of(data, grid).coords)

    def positions(self, to_fixed: Callable[[torch.Tensor], torch.Tensor], grid: Grid) -> bytes:
        """Positions on the canvas, in its pixels from the corner of the first, x before y, as float32; NaN where unknown."""
        at = self.coords if self.side == "fixed" else to_fixed(self.coords)
        index = (at - torch.tensor(grid.origin)) / torch.tensor(grid.spacing) + 0.5
        return np.ascontiguousarray(index.numpy()[:, ::-1].astype("<f4")).tobytes()
