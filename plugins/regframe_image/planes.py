"""Tools of the readers of microscopes' files (ND2, LIF, CZI, VSI): planes by their place, names and colours of channels."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .colour import RGB
from .raw import Array, Region, Stamp, place, readable

TILE = 1024
"""Pixels along y and x of a chunk where a file holds whole planes, or does not say how it is tiled: about a megabyte."""
CONVERT = (
    "convert it to OME-Zarr with bioformats2raw, or export OME-TIFF from the microscope's own program, and give that"
)
"""What to do with a file that no reader here understands."""

Plane = tuple[int, ...]
"""Which plane of an image: an index per axis before y and x."""


@dataclass(frozen=True)
class PlanesRegion:
    """Regions of one level of an image that is read plane by plane.

    Args:
        path: of the file.
        stamp: of the file as it was opened.
        kind: of the file, for messages.
        series: which image of the file.
        level: which resolution, 0 the finest.
        axes: one letter per stored axis, the last ones ``yx`` or ``yxs``.
        window: the values ``[h, w]`` or ``[h, w, samples]`` of one plane within two slices along y and x.
        also: exceptions of the library beside the usual.
    """

    path: Path
    stamp: Stamp
    kind: str
    series: int
    level: int
    axes: str
    window: Callable[[PlanesRegion, Plane, slice, slice], Array]
    also: tuple[type[Exception], ...] = ()

    def __call__(self, region: Region) -> Array:
        """The values of one region; ValueError names it where they cannot be read."""
        n = self.axes.index("y")
        outer = [range(s.start, s.stop) for s in region[:n]]
        y, x, *samples = region[n:]
        with readable(self.path, self.kind, place(self.level, self.axes, region), self.also):
            parts = []
            for index in itertools.product(*outer):
                plane = self.window(self, index, y, x)
                parts.append(plane[..., samples[0]] if samples else plane)
            return np.stack(parts).reshape(*(len(r) for r in outer), *parts[0].shape)


def taken_axes(sizes: Mapping[str, int], path: Path, kind: str) -> str:
    """The axes of an image without those of one entry beside ``c``, in the order of ``sizes``.

    Raises:
        ValueError: for an axis of several entries that is neither time, depth nor channel; it begins with "wanted".
    """
    odd = [f"{n} entries of {axis}" for axis, n in sizes.items() if axis not in "tzcyxs" and n > 1]
    if odd:
        raise ValueError(
            f"wanted axes t, z, c, y and x in {path.name!r}, a {kind} file, got {', '.join(odd)}; {CONVERT}"
        )
    return "".join(axis for axis, n in sizes.items() if axis in "cyxs" or n > 1)


def channel_names(names: Sequence[str], samples: int) -> tuple[str, ...]:
    """The names of the channels that come out: those of the file where they tell the channels apart, of a picture its colours.

    Args:
        names: of the stored channels, as the file gives them; empty ones where it does not.
        samples: stored samples of each channel: 3 in colour, else 1.
    """
    given = tuple(str(name).strip() for name in names)
    told = all(given) and len(set(given)) == len(given)
    if samples == 1:
        return given if told else ()
    if len(given) <= 1:
        return RGB
    return tuple(f"{name} {colour}" for name in given for colour in RGB) if told else ()


def in_micron(
    numbers: Mapping[str, float], words: Mapping[str, str | None]
) -> tuple[dict[str, float], dict[str, str | None]]:
    """Lengths and their units with micron in the place of the metre, in which two makers state pixel sizes."""
    metres = {a for a in numbers if words.get(a) in ("m", "meter", "metre")}
    return (
        {a: n * 1e6 if a in metres else n for a, n in numbers.items()},
        {a: "µm" if a in metres else words.get(a) for a in numbers},
    )


def hex_colours(colours: Sequence[str]) -> tuple[str, ...]:
    """``RRGGBB`` per channel, out of ``#RRGGBB`` or ``#AARRGGBB``; empty where one has none."""
    found = [re.fullmatch(r"#?(?:[0-9A-Fa-f]{2})?([0-9A-Fa-f]{6})", str(c)) for c in colours]
    return tuple(m[1].upper() for m in found if m) if found and all(found) else ()
