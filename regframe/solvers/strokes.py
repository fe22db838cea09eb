"""Strokes of a pen: long dark lines of even width and colour that were drawn over a picture of any kind.

Ink covers what is below it and has a contrast that no tissue has, so that it leads a search astray: it has no partner on the
other side. Tissue has dark lines, too (vessels, membranes, folds, furrows), but they vary in width, in colour or in darkness, or
the picture consists of them. Sizes in pixels refer to the thinned picture of about `plain.LOOKED_AT` pixels. "Level" is what a
pixel would have if everything dark and narrower than `WIDEST` were filled up (a grey closing), per channel.

All constants were set on pictures of `benchmarks.proving` whose drawn pixels are known, ``mixture`` 1000 to 1049 and ``dirt``
1000 to 1019, beside 132 pictures without ink (`shared/data`, planes of its volumes, photographs).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Pixels = NDArray[np.float32]
Mask = NDArray[np.bool_]

WIDEST = 25
"""Pixels across of the widest stroke that is filled up, about."""
ALONG = 7
"""Pixels to either side along which a stroke is compared with itself."""
WAYS = 12
"""Directions in which that is done; strokes are even along one of them."""
DEEP = 0.3
"""Least share of its level's light that a pixel of a stroke lacks."""
DARK = 0.06
"""The same in absolute terms, over the 99th percentile of levels: noise of dark places lacks a large share of little."""
EVEN = 0.1
"""Largest standard deviation along a stroke, over the light that it lacks: in most pictures 90 % of the drawn
pixels have less than 0.08."""
LONG = 80.0
"""Least length of a stroke: its area over its width, or the diagonal of its box where that is more."""
ALIKE = 20.0
"""Least length of further pieces of the colour of such a stroke, which tissue of its own darkness has cut up."""
LACKING = 0.5
"""Least share of its level's light that a stroke lacks in the median: 0.53 and more of the drawn ones."""
ONE_COLOUR = 0.35
"""Largest standard deviation of the colour of a stroke, over the light that it lacks: light varies along it."""
ONE_WIDTH = 0.16
"""Largest standard deviation of the width of a stroke within `NEAR`, over its width."""
WIDTHS = 0.4
"""The same over the whole of it: it may cross others, that are wider or narrower, and is one piece with them."""
BROAD = 18.0
"""Largest width of a stroke, in pixels; what is about as broad as `WIDEST` is the rest of something broader. The widest drawn
piece has 16."""
RAGGED = 0.6
"""Standard deviation of half the width in pixels, up to which any stroke has one width: noise frays the thin ones."""
NEAR = 21
"""Pixels across the neighbourhood in which a stroke has one width."""
OTHERWISE = 0.04
"""Largest share of the picture that other dark even things may cover: where they cover more the picture consists of them."""
MOST = 0.1
"""Largest share of the picture that strokes may cover, without their rims: 0.053 is the most that was drawn."""
REST = 0.1
"""Least range of the intensities beside strokes, a hundredth at either end aside, over the light that these lack: a drawing
consists of its lines, and has nothing beside them."""
RIM = 4
"""Pixels beside a stroke that are hidden, too: its blurred edge."""
LEAST = 30
"""Pixels that a piece of a stroke covers at least."""


def strokes(data: Pixels, seen: Mask) -> Mask:
    """Pixels ``[H, W]`` that were drawn over, with their rims.

    Args:
        data: the thinned picture ``[C, H, W]``, in intensities of at least 0 where 0 is no light.
        seen: pixels ``[H, W]`` that count.
    """
    dark = _dark(data, seen)
    even = dark.even()
    labels, number = ndimage.label(even, np.ones((3, 3)))
    pieces = _pieces(dark, labels, number)
    drawn = [piece for piece in pieces if piece.length >= LONG]
    further = [p for p in pieces if p.length < LONG and any(p.like(stroke) for stroke in drawn)]
    covered = np.isin(labels, [piece.label for piece in drawn + further])
    whole = seen.sum()
    if not drawn or (even & ~covered).sum() > OTHERWISE * whole or covered.sum() > MOST * whole:
        return np.zeros_like(seen)
    out: Mask = ndimage.binary_dilation(covered, iterations=RIM) & seen
    beside = dark.data[:, seen & ~ndimage.binary_dilation(out, iterations=RIM)]
    if not beside.size:
        return np.zeros_like(seen)
    low, high = np.quantile(beside, (0.01, 0.99), axis=1)
    shows = float(np.linalg.norm(high - low)) > REST * float(np.median([piece.depth for piece in drawn]))
    return out if shows else np.zeros_like(seen)


@dataclass(frozen=True)
class _Dark:
    """What is darker than its level.

    Args:
        data: the picture without its finest noise ``[C, H, W]``.
        depth: light that each pixel lacks ``[H, W]``.
        share: the same over its level.
        deep: where that is enough for ink ``[H, W]``.
    """

    data: Pixels
    depth: Pixels
    share: Pixels
    deep: Mask

    def even(self) -> Mask:
        """Where ``[H, W]`` that is the same along a line in any direction."""
        out = np.zeros_like(self.deep)
        wide = np.pad(self.data, ((0, 0), (ALONG, ALONG), (ALONG, ALONG)), mode="edge")
        across = wide.shape[2]
        bands = wide.reshape(len(wide), -1)
        steps = np.arange(-ALONG, ALONG + 1)
        rows, columns = np.nonzero(self.deep)
        left = (rows + ALONG) * across + columns + ALONG  # those that no direction has shown to be even
        most = len(steps) * (EVEN * self.depth[rows, columns]) ** 2
        for angle in np.arange(WAYS) * math.pi / WAYS:
            beside = np.round(steps * math.sin(angle)).astype(int) * across + np.round(steps * math.cos(angle)).astype(
                int
            )
            spread = np.zeros(len(left), np.float32)
            for band in bands:
                away = band[left[:, None] + beside] - band[left, None]
                spread += np.einsum("ij,ij->i", away, away) - away.sum(axis=1) ** 2 / len(steps)
            even = spread < most
            at = left[even]
            out[at // across - ALONG, at % across - ALONG] = True
            left, most = left[~even], most[~even]
        return out


def _dark(data: Pixels, seen: Mask) -> _Dark:
    smooth = np.stack([ndimage.gaussian_filter(band, 1.0) for band in data])
    level = np.stack([_filled(band) for band in smooth])
    whole = np.linalg.norm(level, axis=0)
    depth = np.linalg.norm(level - smooth, axis=0)
    usual = float(np.quantile(whole[seen], 0.99)) if seen.any() else 0.0
    share = depth / np.maximum(whole, 1e-12)
    return _Dark(smooth, depth, share, seen & (share > DEEP) & (depth > DARK * usual))


def _filled(band: Pixels) -> Pixels:
    """The grey closing of ``[H, W]``; beyond its border all is dark, so that what is dark along it is not filled."""
    beside = WIDEST // 2
    closed: Pixels = ndimage.grey_closing(np.pad(band, beside), (WIDEST, WIDEST))
    return closed[beside:-beside, beside:-beside]


@dataclass(frozen=True)
class _Piece:
    """A connected piece of what may be a stroke: its label, length, colour ``[C]`` and the light that it lacks."""

    label: int
    length: float
    colour: Pixels
    depth: float

    def like(self, other: _Piece) -> bool:
        """Whether it is of the other's colour."""
        return bool(np.linalg.norm(self.colour - other.colour) < ONE_COLOUR * other.depth)


def _pieces(dark: _Dark, labels: NDArray[np.signedinteger[Any]], number: int) -> list[_Piece]:
    """The pieces that have one width, one colour, and lack enough light."""
    mask = labels > 0
    areas = np.bincount(labels.ravel(), minlength=number + 1)
    radius = ndimage.distance_transform_edt(ndimage.binary_dilation(mask))
    ridge = mask & (radius >= ndimage.maximum_filter(radius, 3))
    out = []
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if areas[label] < LEAST:
            continue
        around = tuple(slice(max(0, part.start - NEAR), part.stop + NEAR) for part in box)
        own = labels[around] == label
        width = 2 * float(np.quantile(radius[around][own], 0.9))
        length = max(areas[label] / width, math.hypot(*(part.stop - part.start for part in box)))
        if length < ALIKE or width > BROAD or float(np.median(dark.share[around][own])) < LACKING:
            continue
        depth = float(np.median(dark.depth[around][own]))
        colours = dark.data[:, around[0], around[1]][:, own]
        if float(np.sqrt(colours.var(axis=1).sum())) > ONE_COLOUR * depth:
            continue
        line = own & ridge[around]
        widths = radius[around][line]
        mean = float(widths.mean())
        if _uneven(radius[around], line) < max(ONE_WIDTH * mean, RAGGED) and float(widths.std()) < WIDTHS * mean:
            out.append(_Piece(label, length, np.median(colours, axis=1), depth))
    return out


def _uneven(radius: NDArray[np.float64], ridge: Mask) -> float:
    """Standard deviation of the ``radius`` along a ``ridge``, each ``[H, W]``, within `NEAR`, in pixels."""
    count, first, second = (
        ndimage.uniform_filter(np.where(ridge, values, 0.0), NEAR, mode="constant")
        for values in (1.0, radius, radius**2)
    )
    mean = first[ridge] / count[ridge]
    variance = np.clip(second[ridge] / count[ridge] - mean**2, 0, None)
    return float(np.sqrt(variance.mean()))
