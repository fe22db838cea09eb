"""The two sides of a view, opened from their files as a registration opens them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import plugins
from ..data import Grid, Image, Level, PointSet, Pyramid
from ..remote.address import Remote
from ..slides.levels import pyramid_of
from ..slides.place import place_pyramid
from ..slides.tiles import halved, halved_grid

_OF_POINTS = 2048
"""Pixels along the longer side of the canvas of a side that has no pixels: more than any screen shows of it at once."""

_IN_MEMORY = 256 << 20
"""Bytes of an image without coarser resolutions up to which it is held, with them, in memory: half of what the server
may take."""
_COARSEST = 512
"""Pixels along the longer side of the coarsest resolution that is made: what a page shows as a whole."""


@dataclass(frozen=True)
class Source:
    """A file and how it is opened; it can be sent to another process.

    Args:
        path: the file, folder or address.
        adapter: name of the adapter that reads it; found by asking all adapters where None.
        options: options of the adapter.
    """

    path: Path | Remote
    adapter: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def data(self) -> Image | PointSet:
        """What is registered; raises what `regframe.open` raises."""
        return plugins.find_adapter(self.path, self.adapter, **dict(self.options)).open(self.path)

    def pyramid(self) -> Pyramid | None:
        """Every resolution of an image; None of a side without pixels."""
        options = {key: value for key, value in self.options.items() if key != "level"}
        found = plugins.find_adapter(self.path, self.adapter, **options).pyramid(self.path)
        if found is None:
            data = self.data()
            found = pyramid_of(data) if isinstance(data, Image) else None
        return None if found is None else _with_levels(found)


@dataclass(frozen=True)
class Side:
    """One side as it is shown.

    Args:
        name: of the file.
        grid: the canvas of the side, in the unit of its positions; that of a registration where there is one.
        pyramid: its pixels, None where it has none.
        points: its points ``[N, 2]`` as (y, x), None where it has pixels.
    """

    name: str
    grid: Grid
    pyramid: Pyramid | None
    points: torch.Tensor | None

    @classmethod
    def of(cls, source: Source, canvas: Grid | None = None) -> Side:
        """Open a side; ``canvas`` is that of a registration, to which its finest pixels are put.

        Raises what `regframe.open` raises, and ValueError for points of a volume.
        """
        pyramid = source.pyramid()
        if pyramid is None:
            data = source.data()
            assert isinstance(data, PointSet)
            _check_plane(data.ndim, source.path.name)
            grid = canvas or _around(data)
            return cls(source.path.name, grid, None, data.coords)
        if canvas is not None:
            try:
                pyramid = place_pyramid(pyramid, canvas)
            except ValueError:  # the finest level does not say where it lies: what was registered does
                data = source.data()
                if not isinstance(data, Image) or data.grid != canvas:
                    raise
                pyramid = pyramid_of(data)
        return cls(source.path.name, canvas or pyramid.grid, pyramid, None)


def finest(side: Side) -> Grid:
    """The finest pixels of a side; of one without pixels, its canvas."""
    return side.grid if side.pyramid is None else side.pyramid.grid


def _with_levels(pyramid: Pyramid) -> Pyramid:
    """An image of one resolution with coarser ones made of it in memory, where it is small enough for that."""
    level = pyramid.levels[0]
    size = len(pyramid.channels) * math.prod(level.grid.shape) * pyramid.dtype.itemsize
    if len(pyramid.levels) > 1 or level.grid.ndim != 2 or size > _IN_MEMORY:
        return pyramid
    data = pyramid.image().data.numpy()
    levels = [_held(level.grid, data)]
    while max(data.shape[1:]) > _COARSEST:
        data = halved(data, pyramid.labels)
        levels.append(_held(halved_grid(levels[-1].grid, pyramid.labels), data))
    return dataclasses.replace(pyramid, levels=tuple(levels), dtype=data.dtype)


def _held(grid: Grid, data: np.ndarray[Any, Any]) -> Level:
    return Level(grid, data.shape, lambda region: data[(slice(None), *region)])


def _check_plane(ndim: int, name: str) -> None:
    if ndim != 2:
        raise ValueError(
            f"wanted two flat images or tables to view, got a volume in {name}; open one of its planes (z=K)"
        )


def _around(points: PointSet) -> Grid:
    """A canvas around points, with a margin of a fiftieth."""
    finite = points.coords[torch.isfinite(points.coords).all(dim=1)]
    if not len(finite):
        raise ValueError(f"wanted points with positions in {points.name}, got none")
    low, high = finite.amin(dim=0), finite.amax(dim=0)
    extent = (high - low).clamp(min=1e-9)
    low, extent = low - extent / 50, extent * 1.04
    step = float(extent.max()) / _OF_POINTS
    shape = tuple(max(1, round(float(e) / step)) for e in extent)
    return Grid(shape, (step, step), tuple(float(o) + step / 2 for o in low), points.unit)
