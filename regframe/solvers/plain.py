"""What is looked at first in a picture, with numpy alone: the usual range of a channel, and whether anything could be no data."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

USUAL = 0.001
"""Share of the pixels, medians of their neighbourhood, that lie below the usual range of an image, and above it. Hot pixels
reach 1 % in bad sensors, but a median of neighbours hardly ever is one."""
FAR = 3.0
"""Widths of the usual range by which one repeated value must lie outside of it to stand for no data. Markers in use (-9999,
1e20, 65535 of a 12-bit camera) come to 10 and more; air of -3024 in a CT of -1000 to 1500 stays under 1."""
SAMPLED = 50_000
"""Pixels from which the usual range is taken, about: its ends then rest on 50 of them."""
LOOKED_AT = 300_000
"""About how many pixels of a picture are examined: larger pictures are thinned to every n-th pixel along each axis, which
bounds the time and gives sizes in pixels one meaning."""
PADDED = 0.005
"""Least share of the canvas that a region of one exact colour, reaching in from a corner, must fill to count as padding. In
`_lit` also the largest share of pixels that may be brighter than the background of transmitted light."""
CORNERS = ((0, 0), (0, -1), (-1, 0), (-1, -1))
"""Indices of a picture's corner pixels, (y, x)."""


def usual_range(windows: NDArray[np.floating]) -> tuple[float, float]:
    """The usual range of windows ``[n, k]``, NaN where nothing is known: that of their medians, `USUAL` of them aside.

    Of an even number of values the median is the lower one in the middle; (0, 0) where no window knows anything.
    """
    ordered = np.sort(windows, axis=1)  # NaN comes last
    known = (~np.isnan(windows)).sum(axis=1)
    rows = np.flatnonzero(known)
    if not len(rows):
        return 0.0, 0.0
    medians = np.sort(ordered[rows, (known[rows] - 1) // 2])
    skip = int(USUAL * len(medians))
    return float(medians[skip]), float(medians[len(medians) - 1 - skip])


def plain(data: NDArray[np.generic]) -> bool:
    """Whether no pixel of a picture or volume ``[C, *S]`` without weights stands for no data, by a look that costs little.

    True is sure: `preparation.prepare` finds nothing then that is no number, no data, or filled up. False means that something
    may be.
    """
    if data.dtype.kind == "f" and not bool(np.isfinite(data).all()):
        return False
    if any(_marked(channel, data.dtype == np.uint8) for channel in data):
        return False
    if data.ndim != 3:
        return True
    step = max(1, round((data[0].size / LOOKED_AT) ** 0.5))
    sample = data[:, ::step, ::step]
    inner = [(y + 1 if y == 0 else y - 1, x + 1 if x == 0 else x - 1) for y, x in CORNERS if min(sample.shape[1:]) > 2]
    for y, x in (*CORNERS, *inner):  # a corner's own pixel may be a broken one
        same = np.logical_and.reduce([channel == channel[y, x] for channel in sample])
        if same.mean() > 0.9 * PADDED and _reaches(
            same, (y % same.shape[0], x % same.shape[1]), 0.9 * PADDED * same.size
        ):
            return False
    return True


def _reaches(mask: NDArray[np.bool_], start: tuple[int, int], most: float) -> bool:
    """Whether the pixels of a mask ``[h, w]`` that hang together with one of them, corners included, are more than ``most``."""
    height, width = mask.shape
    seen, waiting = {start}, [start]
    while waiting and len(seen) <= most:
        y, x = waiting.pop()
        for near in itertools.product((y - 1, y, y + 1), (x - 1, x, x + 1)):
            if near not in seen and 0 <= near[0] < height and 0 <= near[1] < width and mask[near]:
                seen.add(near)
                waiting.append(near)
    return len(seen) > most


def _marked(channel: NDArray[np.generic], colour: bool) -> bool:
    """Whether the highest or the lowest value of a channel ``[*S]`` could stand for no data (see `unseen.settled`)."""
    flat = channel.reshape(-1)
    for extreme in (flat.max(), flat.min()):
        plausible = extreme == 255 if colour else extreme != 0
        if not plausible or int((flat == extreme).sum()) < 2:
            continue
        places = np.arange(0, flat.size, max(1, flat.size // SAMPLED))
        windows = _around(channel, places)
        windows[windows == float(extreme)] = np.nan
        low, high = usual_range(windows)
        beyond = max(float(extreme) - high, low - float(extreme))
        if not high > low or beyond > 0.9 * FAR * (high - low):  # a tenth aside: the kinds of floats differ
            return True
    return False


def _around(channel: NDArray[np.generic], places: NDArray[np.intp]) -> NDArray[np.float64]:
    """Values ``[n, k]`` of the neighbours of flat ``places`` of ``[*S]`` and their own, NaN beyond the border."""
    padded = np.pad(channel.astype(np.float64), 1, constant_values=np.nan)
    index = np.unravel_index(places, channel.shape)
    offsets = np.indices((3,) * channel.ndim).reshape(channel.ndim, -1).T
    return np.stack([padded[tuple(i + o for i, o in zip(index, offset, strict=True))] for offset in offsets], axis=1)
