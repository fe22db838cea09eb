"""Pieces of both pictures on the fixed canvas, made when they are asked for; the last ones are kept.

The fixed picture is the fixed image under the identity, the moving one the moving image under the map, so both come from the one
code that also writes whole warped slides (`regframe.slides.warp`): a pixel on the screen is a pixel of ``apply image``.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ..data import Grid, Level, Pyramid
from ..maps.affine import Affine
from ..maps.base import Transform
from ..slides.tiles import halved_grid
from ..slides.warp import SlideOptions, SlideWarp

Array = NDArray[Any]
T = TypeVar("T")
TILE = 512
"""Pixels per axis of a tile: of a screen full of tiles of 256 pixels a third of the time is spent on asking for each."""
KEPT_PIXELS = 96 << 20
"""Bytes of pixels that are kept, so that another contrast or colour does not warp anew: about 120 tiles of three channels."""
KEPT_FILES = 48 << 20
"""Bytes of finished pictures that are kept: about 150 tiles."""


class Kept:
    """A store of the values that were used last, bounded in bytes; safe to use from several threads.

    Args:
        most: bytes in all.
        size: bytes of one value.
    """

    def __init__(self, most: int, size: Callable[[Any], int]) -> None:
        self._most, self._size, self._held = most, size, 0
        self._values: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of ``key``, made where it is not kept; two threads may make the same one."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                value: T = self._values[key]
                return value
        value = make()
        with self._lock:
            if key not in self._values:
                self._values[key] = value
                self._held += self._size(value)
                while self._held > self._most and len(self._values) > 1:
                    _, old = self._values.popitem(last=False)
                    self._held -= self._size(old)
        return value

    @property
    def held(self) -> int:
        """Bytes that are kept now."""
        return self._held


class Canvas:
    """The canvas that both pictures share, at every resolution.

    Args:
        grid: pixels of full resolution.
    """

    def __init__(self, grid: Grid) -> None:
        self.grids = [grid]
        while max(self.grids[-1].shape) > 1:
            self.grids.append(halved_grid(self.grids[-1], False))

    @property
    def top(self) -> int:
        """Number of the finest level as viewers count: the coarsest, one pixel, is 0."""
        return len(self.grids) - 1

    def at(self, level: int) -> Grid:
        """The grid of a level as viewers count; ValueError where there is none."""
        if not 0 <= level <= self.top:
            raise ValueError(f"wanted a level from 0 to {self.top}, got {level}")
        return self.grids[self.top - level]

    def told(self) -> dict[str, Any]:
        """The canvas for the page."""
        grid = self.grids[0]
        return {"width": grid.shape[1], "height": grid.shape[0], "spacing": grid.spacing, "origin": grid.origin,
                "unit": grid.unit, "levels": self.top, "tile": TILE}  # fmt: skip

    def region(self, level: int, column: int, row: int) -> tuple[slice, slice]:
        """Rows and columns of a tile; ValueError where it lies beyond the canvas."""
        height, width = self.at(level).shape
        if not (0 <= row * TILE < height and 0 <= column * TILE < width):
            raise ValueError(f"wanted a tile of the canvas, got column {column}, row {row}")
        return (
            slice(row * TILE, min((row + 1) * TILE, height)),
            slice(column * TILE, min((column + 1) * TILE, width)),
        )


class Warped:
    """An image carried onto a canvas, tile by tile.

    Args:
        pyramid: the image, in the source space of the map.
        transform: to the space of the canvas.
        canvas: where it is shown.
    """

    def __init__(self, pyramid: Pyramid, transform: Transform, canvas: Canvas) -> None:
        self._canvas = canvas
        self._plans: dict[tuple[int, bool], SlideWarp] = {}
        self._pyramids = (pyramid, _everywhere(pyramid))
        self._transform = transform
        parts = transform.parts()
        self._still = all(isinstance(part, Affine) and _is_identity(part) for part in parts)

    def pixels(self, level: int, region: tuple[slice, slice]) -> tuple[Array, Array]:
        """Pixels ``[C, h, w]`` of a region of a level, and where the image is ``[h, w]`` uint8: 255, beyond it 0."""
        plan = self._plan(level, False)
        if self._still and plan.source.grid == self._canvas.at(level):  # the file's own pixels
            pixels = np.asarray(plan.source.read(region))
            return pixels, np.full(pixels.shape[1:], 255, np.uint8)
        if plan.covered(region):
            pixels = plan.pixels(region)
            return pixels, np.full(pixels.shape[1:], 255, np.uint8)
        seen = self._plan(level, True).pixels(region)[0]
        if not seen.any():
            return np.zeros((len(plan.pyramid.channels), *seen.shape), plan.dtype), seen
        return plan.pixels(region), seen

    def _plan(self, level: int, mask: bool) -> SlideWarp:
        plan = self._plans.get((level, mask))
        if plan is None:
            options = SlideOptions(background=0.0 if mask else "border")
            grid = self._canvas.at(level)
            plan = SlideWarp(self._pyramids[mask], self._transform, grid, Path("shown.zarr"), options)
            self._plans[level, mask] = plan
        return plan


def _is_identity(part: Affine) -> bool:
    return part.source_unit == part.target_unit and bool((part.matrix == torch.eye(len(part.matrix))).all())


def _everywhere(pyramid: Pyramid) -> Pyramid:
    """An image of 255 on the pixels of another one: carried along, it tells where that one is."""

    def level(one: Level) -> Level:
        def read(region: tuple[slice, ...]) -> Array:
            return np.full((1, *(part.stop - part.start for part in region)), 255, np.uint8)

        return Level(one.grid, (1, *one.chunk[1:]), read)

    levels = tuple(level(one) for one in pyramid.levels)
    return dataclasses.replace(
        pyramid, levels=levels, dtype=np.dtype(np.uint8), channels=("seen",), colors=(), labels=False
    )
