"""Stored axes of an image, and where each of them goes: the one place where pixels, positions, regions and names are permuted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from .raw import Array, Region

_T = TypeVar("_T")

WORDS = {
    "channel": "c", "channels": "c", "band": "c", "time": "t", "frame": "t", "depth": "z", "plane": "z", "height": "y",
    "row": "y", "rows": "y", "width": "x", "column": "x", "columns": "x", "col": "x", "sample": "s", "samples": "s",
}  # fmt: skip
"""Axes that are named by a word, as xarray and array libraries name them, and the letters for them."""


def letter(name: str, kind: str = "") -> str:
    """One letter for an axis of this name; ``c`` or ``t`` by its kind, ``?`` for a name that is not known.

    Args:
        name: as the file spells it.
        kind: ``space``, ``time`` or ``channel``, where the file says.
    """
    if kind == "channel":
        return "c"
    if kind == "time":
        return "t"
    name = str(name).strip().lower()
    return name if len(name) == 1 else WORDS.get(name, "?")


@dataclass(frozen=True)
class Order:
    """How stored axes become those of an image, ``[C, (z,) y, x]``.

    Args:
        stored: one letter per stored axis, in any order: ``t z c s y x``, others with one entry.
        planes: entry to take along each stored axis that the image has not.
        spatial: the stored axes that become the image's spatial ones, in its order.
        channels: entries of ``c``, 0 where there is no such axis.
        samples: entries of ``s``, 1 where there is no such axis.
    """

    stored: str
    planes: tuple[tuple[str, int], ...] = ()
    spatial: tuple[str, ...] = ("y", "x")
    channels: int = 0
    samples: int = 1

    @classmethod
    def of(cls, stored: str, shape: Sequence[int], planes: Mapping[str, int]) -> Order:
        """The order of an image of this stored shape without ``planes``."""
        sizes = dict(zip(stored, shape, strict=True))
        spatial = tuple(a for a in "zyx" if a in stored and a not in planes)
        return cls(stored, tuple(planes.items()), spatial, sizes.get("c", 0), sizes.get("s", 1))

    def pick(self, values: Mapping[str, _T], default: _T | None = None) -> tuple[_T, ...]:
        """Values that are given per stored axis (sizes, spacings, origins), in the order of the image's spatial axes."""
        if default is None:
            return tuple(values[a] for a in self.spatial)
        return tuple(values.get(a, default) for a in self.spatial)

    def region(self, window: Region, channels: slice) -> Region:
        """The stored region of a window of the image's spatial axes, of some entries of ``c`` and all samples."""
        at: dict[str, slice] = dict(zip(self.spatial, window, strict=True))
        at |= {axis: slice(index, index + 1) for axis, index in self.planes}
        at |= {"c": channels if self.channels else slice(None), "s": slice(0, self.samples)}
        return tuple(at[a] for a in self.stored)

    def arranged(self, array: Array) -> Array:
        """``[C, *S]`` of a stored region; entries of ``c`` and ``s`` become one axis, samples of one channel side by side."""
        gone = {axis for axis, _ in self.planes}
        array = array.reshape([n for n, a in zip(array.shape, self.stored, strict=True) if a not in gone])
        axes = "".join(a for a in self.stored if a not in gone)
        for axis in "sc":
            if axis not in axes:
                array, axes = array[None], axis + axes
        array = array.transpose([axes.index(a) for a in ("c", "s", *self.spatial)])
        return array.reshape(-1, *array.shape[2:])
