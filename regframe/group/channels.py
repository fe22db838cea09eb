"""Which channel of each image a group is aligned by: one that is named, the one that repeats, or the one that is most alike."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from ..data import Pyramid
from ..slides.shards import RGB

Floats = NDArray[np.float64]
Channel = str | int
Wanted = Channel | Mapping[str, Channel] | Sequence[Channel | None] | None
"""What ``channel`` may be: one for all images, one per name of an image, one per image in their order, or None: chosen."""

NUCLEAR = re.compile(
    r"dapi|hoechst|draq ?5|sytox|syto ?\d|to-?pro|(?<![a-z])dna(?![a-z])|nucle(i|us|ar)|histone", re.IGNORECASE
)
"""Names of stains of the nucleus, by which rounds of one section are aligned: makers add it to every round for that purpose."""
LOOKED_AT = 256
"""Pixels along the longer side of the pictures in which channels are compared; two rounds of one section lie a small part of
their canvas apart, so that their common structure of some 4 pixels of such a picture correlates."""
BAND = (1.0, 8.0)
"""Standard deviations, in pixels of these pictures, of the finest and the coarsest structure that is compared."""


@dataclass(frozen=True)
class Choice:
    """The channel by which an image is aligned.

    Args:
        index: its number; None where all channels are taken (stained tissue in colours).
        name: its name; ``"all"`` where all are taken.
        why: ``asked for``, ``stain of the nucleus``, ``in every round``, ``most alike``, ``the only one`` or ``colours``.
    """

    index: int | None
    name: str
    why: str


def is_colour(pyramid: Pyramid) -> bool:
    """Whether an image is one in colours (stained tissue in bright field), whose three channels belong together."""
    return tuple(pyramid.channels) == RGB


def chosen(pyramids: Sequence[Pyramid], names: Sequence[str], wanted: Wanted = None) -> list[Choice]:
    """The channel of each image by which the group is aligned.

    Args:
        pyramids: the images.
        names: their names.
        wanted: see `Wanted`; a name is found in any case of its letters, and also where more follows it (``DAPI`` in ``DAPI_2``).

    Raises ValueError where an image has no such channel.
    """
    asked = _asked(wanted, names)
    found: list[Choice | None] = [
        None if want is None else _found(pyramid, name, want)
        for pyramid, name, want in zip(pyramids, names, asked, strict=True)
    ]
    for k, pyramid in enumerate(pyramids):
        if found[k] is None and is_colour(pyramid):
            found[k] = Choice(None, "all", "colours")
        elif found[k] is None and len(pyramid.channels) == 1:
            found[k] = Choice(0, pyramid.channels[0], "the only one")
        elif found[k] is None:
            nuclear = next((i for i, c in enumerate(pyramid.channels) if NUCLEAR.search(c)), None)
            found[k] = None if nuclear is None else Choice(nuclear, pyramid.channels[nuclear], "stain of the nucleus")
    left = [k for k, choice in enumerate(found) if choice is None]
    if len(left) > 1:
        repeated = _repeated([pyramids[k] for k in left])
        for k in left if repeated else []:
            index = [c.lower() for c in pyramids[k].channels].index(str(repeated))
            found[k] = Choice(index, pyramids[k].channels[index], "in every round")
    if any(choice is None for choice in found):
        _most_alike(pyramids, found)
    return [choice for choice in found if choice is not None]


def _asked(wanted: Wanted, names: Sequence[str]) -> list[Channel | None]:
    """The channel asked for, of each image."""
    if wanted is None or isinstance(wanted, (str, int)):
        return [wanted] * len(names)
    if isinstance(wanted, Mapping):
        strangers = sorted(set(wanted) - set(names))
        if strangers:
            raise ValueError(f"wanted channels of {', '.join(names)}, got one for {strangers[0]!r}; name one of these")
        return [wanted.get(name) for name in names]
    if len(wanted) != len(names):
        raise ValueError(f"wanted one channel for each of {len(names)} images, got {len(wanted)}; None where chosen")
    return list(wanted)


def _found(pyramid: Pyramid, name: str, want: Channel) -> Choice:
    """The channel of an image by number or name; ValueError where it has none such."""
    lower = [c.lower() for c in pyramid.channels]
    if isinstance(want, str) and want.isdecimal() and want not in lower:
        want = int(want)
    index: int | None = None
    if isinstance(want, int):
        index = want if 0 <= want < len(lower) else None
    else:
        key = want.lower()
        fits = [i for i, c in enumerate(lower) if c == key] or [i for i, c in enumerate(lower) if c.startswith(key)]
        index = fits[0] if fits else None
    if index is None:
        if is_colour(pyramid) and isinstance(want, str):
            return Choice(None, "all", "colours")  # stained tissue among rounds of fluorescence
        listed = ", ".join(pyramid.channels[:12])
        raise ValueError(
            f"wanted the channel {want!r} in {name}, got {listed}; name one of these, or leave the channel out to have it chosen"
        )
    return Choice(index, pyramid.channels[index], "asked for")


def _repeated(pyramids: Sequence[Pyramid]) -> str | None:
    """The first name, in small letters, of a channel that all images have; None where none is named in all."""
    common = set.intersection(*({c.lower() for c in p.channels if not c.isdecimal()} for p in pyramids))
    return next((c.lower() for c in pyramids[0].channels if c.lower() in common), None)


# ---- by likeness --------------------------------------------------------------------------------------------------------


def _most_alike(pyramids: Sequence[Pyramid], found: list[Choice | None]) -> None:
    """Fill in what is missing: the channels whose structure the images share, wherever each lies."""
    pictures = [_spectra(pyramid) for pyramid in pyramids]
    open_ones = [k for k, choice in enumerate(found) if choice is None]
    fixed = {k: choice.index for k, choice in enumerate(found) if choice is not None and choice.index is not None}
    root = next(iter(fixed), open_ones[0])
    others = [k for k in open_ones if k != root]
    if root not in fixed:
        totals = [sum(max(_likeness(one, other) for other in pictures[k]) for k in others) for one in pictures[root]]
        at = int(np.argmax(totals)) if others else 0
        found[root] = Choice(at, pyramids[root].channels[at], "most alike")
        fixed[root] = at
    for k in others:
        scores = [_likeness(pictures[root][fixed[root]], other) for other in pictures[k]]
        at = int(np.argmax(scores))
        found[k] = Choice(at, pyramids[k].channels[at], "most alike")


def small(pyramid: Pyramid, most: int = LOOKED_AT) -> Floats:
    """A small picture of every channel ``[C, h, w]``: a coarse level, averaged to at most ``most`` pixels on its longer side."""
    level = next((one for one in reversed(pyramid.levels) if max(one.grid.shape) >= most), pyramid.levels[0])
    factor = max(1, -(-max(level.grid.shape) // most))
    strips = []
    rows = factor * max(1, min(level.chunk[1], level.grid.shape[0]) // factor)
    for start in range(0, level.grid.shape[0], rows):
        stop = min(start + rows, level.grid.shape[0])
        part = level.read((slice(start, stop), slice(0, level.grid.shape[1]))).astype(np.float32)
        pooled = torch.nn.functional.avg_pool2d(
            torch.from_numpy(part)[None], factor, ceil_mode=True, count_include_pad=False
        )
        strips.append(pooled[0].numpy())
    return np.asarray(np.nan_to_num(np.concatenate(strips, axis=1)), dtype=np.float64)


def _spectra(pyramid: Pyramid) -> list[NDArray[Any]]:
    """The spectrum of the structure of each channel, of length 1, on a canvas twice as large."""
    out = []
    for plane in small(pyramid):
        rooted = np.sqrt(np.clip(plane - plane.min(), 0, None))  # single bright spots do not decide
        band = ndimage.gaussian_filter(rooted, BAND[0]) - ndimage.gaussian_filter(rooted, BAND[1])
        norm = float(np.sqrt((band**2).sum()))
        out.append(np.fft.rfft2(band / norm if norm > 0 else band, (2 * LOOKED_AT, 2 * LOOKED_AT)))
    return out


def _likeness(one: NDArray[Any], other: NDArray[Any]) -> float:
    """The highest correlation of two channels over all shifts."""
    return float(np.fft.irfft2(one * other.conj(), (2 * LOOKED_AT, 2 * LOOKED_AT)).max())
