"""Pixels as pictures: brightfield as it is, fluorescence as a sum of coloured channels, ids in colours of their own."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from ..data import Level, Pyramid

Array = NDArray[Any]
PALETTE = ("4c8dff", "41d66b", "ff5a5a", "ff5ae6", "4ae3e3", "ffd24a")
"""Colours of channels that state none, in order: blue first, as most files begin with the nuclei."""
SHOWN = 4
"""Channels that are on at first, from the first: more than four colours cannot be told apart in a sum."""
_SEEN = 1 << 20
"""Pixels of the coarsest level, at most, from which contrast is set."""
_LOW, _HIGH = 1.0, 99.8
"""Percentiles of a channel between which it is drawn at first, as viewers of fluorescence do."""
_ENTRY = re.compile(r"(\d{1,4}):([0-9a-fA-F]{6}):([-+.0-9eE]{1,25}):([-+.0-9eE]{1,25})")


@dataclass(frozen=True)
class Channel:
    """How a channel is drawn.

    Args:
        index: its place in the image.
        color: ``RRGGBB`` of its highest value.
        low: value that is drawn black.
        high: value that is drawn in full.
    """

    index: int
    color: str
    low: float
    high: float


@dataclass(frozen=True)
class Look:
    """How an image is drawn unless the page says otherwise.

    Args:
        kind: ``rgb`` (brightfield: three channels are the colours themselves), ``channels`` or ``labels``.
        channels: every channel with its colour and contrast.
        limits: lowest and highest value of each channel, for the controls.
        names: names of the channels.
    """

    kind: str
    channels: tuple[Channel, ...]
    limits: tuple[tuple[float, float], ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, pyramid: Pyramid) -> Look:
        """The look of an image, from its coarsest level."""
        if pyramid.labels:
            return cls("labels", (), (), tuple(pyramid.channels))
        seen = _glance(pyramid.levels[-1])
        if len(pyramid.channels) == 3 and pyramid.dtype.kind == "u" and pyramid.dtype.itemsize == 1 and _rgb(pyramid):
            return cls("rgb", (), (), tuple(pyramid.channels))
        channels, limits = [], []
        for i, values in enumerate(seen):
            finite = values[np.isfinite(values)].astype(np.float64)
            finite = finite if finite.size else np.zeros(1)
            low, high = (float(v) for v in np.percentile(finite, (_LOW, _HIGH)))
            least, most = float(finite.min()), float(finite.max())
            if not high > low:
                low, high = least, most if most > least else least + 1
            one = len(seen) == 1
            named = pyramid.colors[i] if len(pyramid.colors) == len(seen) else "ffffff" if one else PALETTE[i % 6]
            channels.append(Channel(i, named.lower(), low, high))
            limits.append((least, most if most > least else least + 1))
        return cls("channels", tuple(channels), tuple(limits), tuple(pyramid.channels))

    def style(self, text: str) -> tuple[Channel, ...]:
        """The channels that the page asks for, ``index:RRGGBB:low:high,…``; those of the look where ``text`` is empty.

        ValueError where the text says something else.
        """
        if not text:
            return self.channels[:SHOWN]
        if text == "none":
            return ()
        found = []
        for entry in text.split(",")[: len(self.channels)]:
            match = _ENTRY.fullmatch(entry)
            if match is None or int(match[1]) >= len(self.channels):
                raise ValueError(f"wanted channels as index:RRGGBB:low:high, got {entry[:40]!r}")
            low, high = float(match[3]), float(match[4])
            if not (math.isfinite(low) and math.isfinite(high)):
                raise ValueError("wanted a finite contrast, got one that is not")
            found.append(Channel(int(match[1]), match[2].lower(), low, high))
        return tuple(found)

    def draw(self, pixels: Array, channels: Sequence[Channel]) -> Array:
        """``[C, h, w]`` as colours ``[h, w, 3]`` uint8."""
        if self.kind == "rgb":
            return np.ascontiguousarray(pixels.transpose(1, 2, 0))
        if self.kind == "labels":
            return _mosaic(pixels[0])
        out = np.zeros((*pixels.shape[1:], 3), np.float32)
        for channel in channels:
            span = channel.high - channel.low or 1.0
            level = np.clip((pixels[channel.index].astype(np.float32) - channel.low) / span, 0, 1)
            level = np.nan_to_num(level)
            for k in range(3):
                share = int(channel.color[2 * k : 2 * k + 2], 16)
                if share:
                    out[..., k] += share * level
        colours: Array = np.rint(np.clip(out, 0, 255)).astype(np.uint8)
        return colours


def png(colours: Array, alpha: Array | None = None) -> bytes:
    """Colours ``[h, w, 3]`` uint8, with ``alpha`` ``[h, w]`` uint8 where some of it is seen through, as PNG."""
    if alpha is not None and not (alpha == 255).all():
        colours = np.dstack([colours, alpha])
    # level 1, strategy "Huffman", filter "Paeth": of the fast ones the smallest on tissue, five times as fast as Pillow
    return bytes(imagecodecs.png_encode(np.ascontiguousarray(colours), level=1, strategy=2, filter=128))


def _mosaic(ids: Array) -> Array:
    """Ids as colours: each has its own, 0 is black."""
    mixed: Any = ids.astype(np.uint64) * np.uint64(2654435761)
    colours = np.stack([((mixed >> np.uint64(8 * k)) & np.uint64(0x7F)) + np.uint64(96) for k in range(3)], axis=-1)
    out: Array = np.where((ids == 0)[..., None], 0, colours).astype(np.uint8)
    return out


def _rgb(pyramid: Pyramid) -> bool:
    names = [name.lower() for name in pyramid.channels]
    return names in (["r", "g", "b"], ["red", "green", "blue"], ["0", "1", "2"])


def _glance(level: Level) -> Array:
    """A level's pixels ``[C, h, w]``, of a large one a square in its middle, of a volume its middle plane."""
    *deep, height, width = level.grid.shape
    planes = [slice(n // 2, n // 2 + 1) for n in deep]
    side = min(height, width, math.isqrt(_SEEN))
    rows, columns = slice(0, height), slice(0, width)
    if height * width > _SEEN:
        top, left = (height - side) // 2, (width - side) // 2
        rows, columns = slice(top, top + side), slice(left, left + side)
    seen = level.read((*planes, rows, columns))
    return seen.reshape(seen.shape[0], *seen.shape[-2:])
