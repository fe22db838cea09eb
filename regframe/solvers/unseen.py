"""Pixels that say nothing of the tissue: not numbers, a value that stands for no data, pixels and lines far off the rest.

They are put right before anything is measured or averaged: one pixel of 10⁴ deviations carries as much of a variance as 10⁸
others, and a halved image spreads it over its neighbours.
"""

from __future__ import annotations

import dataclasses
import itertools
import weakref
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ..data import Image
from .plain import FAR, SAMPLED, usual_range

MOSTLY = 0.9
"""Share of the pixels that may be no number: of an image with more of them too little is left to align."""
NEAR = 1.0
"""Widths of the usual range that a value may lie outside of it and be left as it is. Of 87 pictures of tissue,
cells and everyday things (``shared/data``, scikit-image) 78 have no pixel further out and none has 3 in 10⁴."""
STRAYS = 0.02
"""Share of the pixels that may be replaced by their neighbours' median: where more lie far off, single bright pixels are what
the image shows, and they are only cut at `NEAR`. Sensors with 1 % of hot pixels are bad ones."""
LINES = 3
"""Neighbouring rows, or columns, of one value each that are a defect of the camera at most: more of them may be a band that
was not imaged."""
OFF = 0.1
"""Share of the range of intensities, a hundredth at either end aside, by which half of the pixels on either side of such a line
must differ from it: empty glass has rows of one value too, beside rows that differ by the noise of a JPEG."""
MARKERS = 4
"""Values that stand for no data in one channel at most: two are known to occur together, too low and too high."""


@dataclass(frozen=True)
class Unseen:
    """What did not count of an image, as shares of its canvas.

    Args:
        nan_fraction: not a number.
        nodata_fraction: one value far off all others.
        nodata_value: that value, of the first channel that has one, or None.
        stray_fraction: single pixels and lines far off, which their neighbours replace.
    """

    nan_fraction: float = 0.0
    nodata_fraction: float = 0.0
    nodata_value: float | None = None
    stray_fraction: float = 0.0


_Watched = tuple["weakref.ref[Tensor]", int]
_nothing: dict[int, tuple[_Watched, _Watched | None]] = {}
"""By the identity of the pixels of an image, and their count of versions, with the image's weight: in which of them `settled`
found nothing. None of them is kept alive by that."""


def found_nothing(image: Image) -> bool:
    """Whether `settled` has looked at this very image before, unchanged as far as torch knows, and gave it back as it was.

    For what is only shown: pixels that were changed through an array of numpy that they share are not noticed.
    """
    data, weight = _nothing.get(id(image.data), (None, None))
    if data is None or not _same(data, image.data):
        return False
    return weight is None if image.weight is None else weight is not None and _same(weight, image.weight)


def _same(watched: _Watched, tensor: Tensor) -> bool:
    return watched[0]() is tensor and watched[1] == tensor._version


def _note_nothing(image: Image) -> None:
    key = id(image.data)
    if image.data.is_inference() or (
        image.weight is not None and image.weight.is_inference()
    ):  # without a count of versions
        return
    data = weakref.ref(image.data, lambda _: _nothing.pop(key, None))
    weight = None if image.weight is None else (weakref.ref(image.weight), image.weight._version)
    _nothing[key] = (data, image.data._version), weight


def not_finite(data: Tensor) -> Tensor | None:
    """Where any channel of ``[C, *S]`` is no number or infinite, ``[*S]``, or None where none is."""
    if not data.dtype.is_floating_point:
        return None
    bad = ~torch.isfinite(data)
    return bad.any(dim=0) if bool(bad.any()) else None


def settled(image: Image) -> tuple[Image, Unseen]:
    """The image without the pixels that say nothing of the tissue, and what they were.

    What is not a number, and what holds one repeated value `FAR` outside the usual range of a channel, gets weight 0 and the
    value of the nearest pixel that counts, which nothing spreads from. Other pixels `NEAR` outside are replaced by the median
    of their neighbours, where most of these are usual, or else cut to that limit; so are `LINES` of one value. Labels, and
    images in which nothing is unusual, come back as they are.
    """
    if image.labels:
        return image, Unseen()
    data, lost = image.data, not_finite(image.data)
    hidden = torch.zeros(image.grid.shape, dtype=torch.bool) if lost is None else lost.clone()
    if image.weight is not None:
        hidden |= image.weight == 0
    if bool(hidden.all()):
        return image, Unseen()
    out, lines = _without_lines(data)
    marked, stray, value = torch.zeros_like(hidden), lines, None
    for c in range(len(data)):
        usual = _usual(out[c], hidden)
        if usual is None:
            continue
        channel = out[c].to(_working(data.dtype))
        if out is data:
            out = data.clone()
        fixed, replaced, rest = _replaced(channel, hidden, usual)
        out[c] = fixed.to(data.dtype)
        stray, marked = stray | replaced, marked | rest
        value = usual.markers[0] if value is None and bool(rest.any()) else value
    hidden |= marked
    if out is data and not bool(hidden.any()):
        _note_nothing(image)
        return image, Unseen()
    shares = [0.0 if mask is None else float(mask.to(torch.float32).mean()) for mask in (lost, marked, stray)]
    weight = image.weight
    if lost is not None or bool(marked.any()):
        weight = (torch.ones(image.grid.shape) if weight is None else weight) * ~hidden
    image = dataclasses.replace(image, data=filled(out, hidden), weight=weight)
    return image, Unseen(shares[0], shares[1], value, shares[2])


def _working(dtype: torch.dtype) -> torch.dtype:
    """A type of floats that holds what ``dtype`` does."""
    small = (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.float16, torch.float32)
    return torch.float32 if dtype in small else torch.float64


def filled(data: Tensor, hidden: Tensor) -> Tensor:
    """``[C, *S]`` with the value of the nearest other pixel wherever ``hidden`` ``[*S]``."""
    if not bool(hidden.any()) or bool(hidden.all()):
        return data
    mask, out = hidden.numpy(), data.numpy().copy()  # numpy indexes all types
    nearest = ndimage.distance_transform_edt(mask, return_distances=False, return_indices=True)
    places = tuple(axis[mask] for axis in nearest)
    for channel in out:
        channel[mask] = channel[places]
    return torch.from_numpy(out)


@dataclass(frozen=True)
class _Usual:
    """The values of a channel that are taken for signal: those from ``low`` to ``high``, but none of ``markers``."""

    low: float
    high: float
    markers: tuple[float, ...]

    def strange(self, values: Tensor) -> Tensor:
        """Which of ``values`` are no signal."""
        out = (values < self.low) | (values > self.high)
        for marker in self.markers:
            out |= values == marker
        return out


def _usual(channel: Tensor, hidden: Tensor) -> _Usual | None:
    """The signal of a channel ``[*S]``, looked for among pixels that are not ``hidden`` ``[*S]``; None where nothing else is in
    it, and where it has none: one value, or single pixels on one."""
    places = torch.arange(0, channel.numel(), max(1, channel.numel() // SAMPLED))
    windows = _windows(channel, ~hidden, places, 1)  # [n, k]
    seen = channel.numpy()
    if bool(hidden.any()):
        seen = seen[~hidden.numpy()]
    colour = channel.dtype == torch.uint8  # between black and white any value is one that pictures show, ink for one
    markers: list[float] = []
    while len(markers) < MARKERS and seen.size:
        for extreme in (float(seen.max()), float(seen.min())):
            without = torch.where(windows == extreme, torch.nan, windows)
            low, high = usual_range(without.numpy())
            beyond = max(extreme - high, low - extreme)
            plausible = extreme == 255 if colour else extreme != 0
            if plausible and high > low and beyond > FAR * (high - low) and int((seen == extreme).sum()) > 1:
                markers.append(extreme)
                seen, windows = seen[seen != extreme], without
                break
        else:
            break
    low, high = usual_range(windows.numpy())
    low, high = low - NEAR * (high - low), high + NEAR * (high - low)
    if not high > low or (not markers and low <= float(seen.min()) and float(seen.max()) <= high):
        return None
    return _Usual(low, high, tuple(markers))


def _windows(channel: Tensor, known: Tensor, places: Tensor, radius: int) -> Tensor:
    """Values ``[n, k]`` around flat ``places`` ``[n]`` of ``[*S]``, the place itself among them, NaN where they are not
    ``known`` ``[*S]`` or beyond the border."""
    index = np.unravel_index(places.numpy(), tuple(channel.shape))
    flat, seen = channel.numpy().reshape(-1), known.reshape(-1)
    columns = []
    for offset in itertools.product(*(range(-radius, radius + 1) if n > 1 else (0,) for n in channel.shape)):
        at = [i + o for i, o in zip(index, offset, strict=True)]
        inside = np.logical_and.reduce([(a >= 0) & (a < n) for a, n in zip(at, channel.shape, strict=True)])
        clipped = [a.clip(0, n - 1) for a, n in zip(at, channel.shape, strict=True)]
        there = np.ravel_multi_index(clipped, tuple(channel.shape))
        good = torch.from_numpy(inside) & seen[torch.from_numpy(there)]
        columns.append(torch.where(good, torch.from_numpy(flat[there].astype(np.float64)), torch.nan))
    return torch.stack(columns, dim=1)


def _replaced(channel: Tensor, hidden: Tensor, usual: _Usual) -> tuple[Tensor, Tensor, Tensor]:
    """A channel ``[*S]`` with its strange pixels put right, which of them their neighbours replaced, and which stand for no
    data, each ``[*S]``."""
    strange = usual.strange(channel) & ~hidden
    none = torch.zeros_like(strange)
    places = strange.reshape(-1).nonzero()[:, 0]
    known = ~(strange | hidden)
    flat = channel.reshape(-1)
    marker = torch.zeros(len(places), dtype=torch.bool)
    for value in usual.markers:
        marker |= flat[places] == value
    edge = _on_edge(strange) if bool(marker.any()) else strange
    looked = edge.reshape(-1)[places]  # what lies deep inside an area has no neighbours to ask
    lonely, median = torch.zeros_like(marker), torch.zeros(len(places), dtype=torch.float64)
    if bool(looked.any()):
        windows = _windows(channel, known, places[looked], 2 if channel.ndim == 2 else 1)
        lonely[looked] = (~windows.isnan()).sum(dim=1) >= windows.shape[1] / 2
        median[looked] = windows.nanmedian(dim=1).values
    marker &= ~lonely
    if int(lonely.sum()) > STRAYS * channel.numel():
        lonely = torch.zeros_like(lonely)
    values = torch.where(lonely, median, flat[places].to(torch.float64).clamp(usual.low, usual.high))
    out = channel.clone()
    out.view(-1)[places] = values.to(channel.dtype)
    replaced, rest = none.clone(), none.clone()
    replaced.view(-1)[places[lonely]] = True
    rest.view(-1)[places[marker]] = True
    return out, replaced, rest


def _on_edge(mask: Tensor) -> Tensor:
    """The pixels of a mask ``[*S]`` within two of its border."""
    return mask & ~torch.from_numpy(ndimage.binary_erosion(mask.numpy(), iterations=2, border_value=1))


def _without_lines(data: Tensor) -> tuple[Tensor, Tensor]:
    """``[C, *S]`` with rows and columns that a camera lost, each of one value, drawn between their neighbours; and where
    they are, ``[*S]``."""
    where = torch.zeros(data.shape[1:], dtype=torch.bool)
    if data.ndim != 3:
        return data, where
    out, step = data, max(1, data[0].numel() // SAMPLED)
    sample = data.numpy().reshape(len(data), -1)[:, ::step].astype(np.float64)
    least = OFF * np.ptp(np.nanquantile(sample, [0.01, 0.99])) if np.isfinite(sample).any() else np.inf
    for axis in (1, 2):
        across = data.transpose(1, axis)  # [C, lines, along]
        values = across.numpy()
        even = (values == values[..., :1]).all(axis=(0, 2)).tolist()
        for start, stop in _runs(even):
            if start == 0 or stop == len(even) or stop - start > LINES:
                continue
            lost, before, after = (across[:, k].to(torch.float64) for k in (start, start - 1, stop))
            off = [float((side - lost).abs().amax(dim=0).median()) for side in (before, after)]
            if not min(off) > least:
                continue
            out = out.clone() if out is data else out
            lines = out.transpose(1, axis)
            for k in range(start, stop):
                share = (k - start + 1) / (stop - start + 1)
                lines[:, k] = ((1 - share) * before + share * after).to(data.dtype)
            where.transpose(0, axis - 1)[start:stop] = True
    return out, where


def _runs(flags: list[bool]) -> list[tuple[int, int]]:
    """Start and stop of each run of True."""
    bounds = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(flags, dtype=np.int8), [0]])))
    return [(int(a), int(b)) for a, b in zip(bounds[::2], bounds[1::2], strict=True)]
