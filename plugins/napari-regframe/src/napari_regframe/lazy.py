"""Arrays for layers whose pixels are read, or warped, when they are looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
from dask.delayed import delayed
from numpy.typing import NDArray

import regframe as rf

Array = NDArray[Any]
da: Any = dask.array  # some of its functions are untyped
CHUNK = 512
"""Pixels per axis that are warped together: 0.15 s for three channels of a slide of 12 000 px, on a core that others used too."""


class _Tiles:
    """What dask asks of an array ``[C, *S]``, or ``[*S, C]`` where colours come last, answered by a function of regions."""

    def __init__(
        self, read: Callable[[tuple[slice, ...]], Array], channels: int, shape: tuple[int, ...], dtype: Any, last: bool
    ) -> None:
        self._read, self._last = read, last
        self.shape = (*shape, channels) if last else (channels, *shape)
        self.ndim, self.dtype = len(self.shape), np.dtype(dtype)

    def __getitem__(self, key: tuple[slice, ...]) -> Array:
        ends = [part.indices(n) for part, n in zip(key, self.shape, strict=True)]
        parts = [slice(start, stop) for start, stop, _ in ends]
        region = tuple(parts[:-1] if self._last else parts[1:])
        pixels = self._read(region)
        return np.moveaxis(pixels, 0, -1)[..., parts[-1]] if self._last else pixels[parts[0]]


def _array(
    read: Callable[[tuple[slice, ...]], Array],
    channels: int,
    shape: tuple[int, ...],
    dtype: Any,
    last: bool,
    chunk: tuple[int, ...],
) -> Any:
    tiles = _Tiles(read, channels, shape, dtype, last)
    chunks = (*chunk, channels) if last else (channels, *chunk)
    meta = np.empty((0,) * tiles.ndim, tiles.dtype)
    return da.from_array(tiles, chunks=chunks, asarray=False, fancy=False, inline_array=True, meta=meta)


def is_rgb(pyramid: rf.Pyramid) -> bool:
    """Whether an image is shown in its own colours: three channels of bytes, red, green and blue."""
    names = [name.lower() for name in pyramid.channels]
    return np.dtype(pyramid.dtype) == np.uint8 and names in (["r", "g", "b"], ["red", "green", "blue"], ["0", "1", "2"])


def stored(pyramid: rf.Pyramid) -> list[Any]:
    """The levels of an image as dask arrays ``[C, *S]``, finest first; ``[*S, C]`` where it `is_rgb`."""
    found = []
    for level in pyramid.levels:
        chunk = tuple(min(max(n, CHUNK), m) for n, m in zip(level.chunk[1:], level.grid.shape, strict=True))
        found.append(_array(level.read, len(pyramid.channels), level.grid.shape, pyramid.dtype, is_rgb(pyramid), chunk))
    return found


def warped(pyramid: rf.Pyramid, transform: rf.Transform, grids: Sequence[rf.Grid]) -> list[Any]:
    """An image carried by ``transform`` onto each of ``grids`` as dask arrays, laid out as `stored` does.

    Each piece is computed by the code that ``regframe apply image`` writes whole slides with, from the resolution that fits it.
    """
    found = []
    for grid in grids:
        # the path plays no part where only `pixels` is called
        plan = rf.SlideWarp(pyramid, transform, grid, Path("shown.zarr"), rf.SlideOptions())
        chunk = tuple(min(CHUNK, n) for n in grid.shape)
        found.append(_array(plan.pixels, len(pyramid.channels), grid.shape, plan.dtype, is_rgb(pyramid), chunk))
    return found


def resampled(image: rf.Image, carry: Callable[[rf.Image], rf.Image], grid: rf.Grid) -> list[Any]:
    """A volume, or a section of one, carried as a whole once it is looked at: one dask array ``[C, *S]``."""
    shape = (len(image.channels), *grid.shape)
    whole = delayed(lambda: carry(image).data.numpy())()
    dtype = image.data.numpy().dtype
    return [da.from_delayed(whole, shape, dtype, meta=np.empty((0,) * len(shape), dtype))]


def canvases(grid: rf.Grid) -> list[rf.Grid]:
    """A canvas at full resolution and halved until one tile holds it: where no image says which resolutions there are."""
    grids = [grid]
    while grids[-1].ndim == 2 and max(grids[-1].shape) > CHUNK:
        grids.append(grids[-1].in_blocks((2, 2), (0.5, 0.5)))
    return grids
