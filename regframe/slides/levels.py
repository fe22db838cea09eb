"""Chooses the level of a pyramid that is registered, and reads it, averaged where it is too large, in bounded memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..data import Grid, Image, Level, Pyramid
from ..later import torch


def pyramid_of(image: Image) -> Pyramid:
    """An image in memory, as a pyramid of one level."""
    data = image.data.numpy()
    level = Level(image.grid, data.shape, lambda region: data[(slice(None), *region)])
    return Pyramid((level,), data.dtype, image.channels, labels=image.labels, name=image.name)


_Array = np.ndarray[Any, Any]

ENOUGH = 1_500_000
"""Pixels of an image beyond which a registration gains nothing: the solver halves larger images (default of
``Config.pyramid.max_pixels``)."""
WHOLE = {2: 1 << 23, 3: 1 << 25}
"""Pixels of an image (2 axes) or volume (3 axes) up to which a level is read without averaging: 8 and 32 million, a matter of
memory."""
_STRIP = 8 << 20
"""Bytes read at once while blocks are averaged: about 8 MiB, or one row of chunks where that is more."""


def choose_level(pyramid: Pyramid) -> tuple[int, tuple[int, ...]]:
    """The level to register, and how many of its pixels per axis to average into one (1: none).

    It is the coarsest level with at least `ENOUGH` pixels, or the finest level where all have fewer. A level with more than
    `WHOLE` pixels is averaged over blocks of a power of two, the finer axes of a volume first, until it has no more.
    """
    sizes = [math.prod(level.grid.shape) for level in pyramid.levels]
    level = max((k for k, size in enumerate(sizes) if size >= ENOUGH), default=0)
    grid = pyramid.levels[level].grid
    factor = [1] * grid.ndim
    while math.prod(-(-n // f) for n, f in zip(grid.shape, factor, strict=True)) > WHOLE[grid.ndim]:
        steps = [s * f for s, f in zip(grid.spacing, factor, strict=True)]
        wide = [n > f for n, f in zip(grid.shape, factor, strict=True)]
        finest = min(s for s, w in zip(steps, wide, strict=True) if w)
        factor = [f * 2 if w and s < 1.5 * finest else f for f, s, w in zip(factor, steps, wide, strict=True)]
    return level, tuple(factor)


def read_level(pyramid: Pyramid, level: int, factor: tuple[int, ...]) -> Image:
    """One level, averaged over blocks of ``factor`` pixels, strip by strip: never more than a row of chunks in memory at once.

    The last block of an axis may be smaller. Of labels, the pixel nearest to the middle of each block is taken.
    """
    chosen = pyramid.levels[level]
    grid = chosen.grid
    shape = tuple(-(-n // f) for n, f in zip(grid.shape, factor, strict=True))
    out = np.empty((len(pyramid.channels), *shape), pyramid.dtype)
    row = len(pyramid.channels) * math.prod(grid.shape[1:]) * pyramid.dtype.itemsize
    step = math.lcm(min(chosen.chunk[1], grid.shape[0]), factor[0])
    if step * row > 4 * _STRIP:  # chunk and block borders coincide too rarely: read block by block, some chunks twice
        step = max(factor[0], min(chosen.chunk[1], grid.shape[0]) // factor[0] * factor[0])
    step *= max(1, _STRIP // (step * row))
    for start in range(0, grid.shape[0], step):
        stop = min(start + step, grid.shape[0])
        at = slice(start // factor[0], -(-stop // factor[0]))
        for left, right, across in _columns(grid, chosen.chunk, factor, row, stop - start):
            region = (slice(start, stop), *(slice(0, n) for n in grid.shape[1:-1]), slice(left, right))
            out[:, at, ..., across] = _averaged(chosen.read(region), factor, pyramid.labels)
    placed = grid.in_blocks(factor, [f // 2 if pyramid.labels else (f - 1) / 2 for f in factor])
    return Image(torch.from_numpy(out), placed, pyramid.channels, labels=pyramid.labels, name=pyramid.name)


def _columns(
    grid: Grid, chunk: tuple[int, ...], factor: tuple[int, ...], row: int, height: int
) -> list[tuple[int, int, slice]]:
    """Pieces of a strip that is too large to be read at once: start, stop and blocks of each, in whole chunks and blocks."""
    width = grid.shape[-1]
    pieces = -(-height * row // (2 * _STRIP))
    step = math.lcm(min(chunk[-1], width), factor[-1])
    step *= max(1, -(-width // pieces) // step)
    return [(a, min(a + step, width), slice(a // factor[-1], -(-min(a + step, width) // factor[-1])))
            for a in range(0, width, step)]  # fmt: skip


def _averaged(array: _Array, factor: tuple[int, ...], labels: bool) -> _Array:
    """Block means of ``[C, *S]`` in its own dtype; summed axis by axis, exactly for integers."""
    if labels:
        index = [np.minimum(np.arange(0, n, f) + f // 2, n - 1) for n, f in zip(array.shape[1:], factor, strict=True)]
        picked: _Array = array[np.ix_(np.arange(len(array)), *index)]
        return picked
    small = array.dtype in (np.uint8, np.uint16) and math.prod(factor) <= 1 << 16
    total: _Array = array
    counts = np.ones([1] * array.ndim)
    for axis, f in enumerate(factor, start=1):
        if f == 1:
            continue
        before = (slice(None),) * axis
        first = total[(*before, slice(0, None, f))]
        sums = first.astype(np.uint32 if small else np.int64 if array.dtype.kind in "ui" else array.dtype)
        for k in range(1, f):  # the last block may be shorter
            part = total[(*before, slice(k, None, f))]
            sums[(*before, slice(0, part.shape[axis]))] += part
        held = np.minimum(f, total.shape[axis] - f * np.arange(sums.shape[axis]))
        counts = counts * held.reshape([-1 if a == axis else 1 for a in range(array.ndim)])
        total = sums
    mean: _Array = total / counts
    return (mean if array.dtype.kind == "f" else np.rint(mean)).astype(array.dtype)
