"""What every reader hands to the adapter, and what they share: axis names, the size limit, error sentences."""

from __future__ import annotations

import functools
import math
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Region = tuple[slice, ...]
"""One slice per stored axis, start and stop explicit."""

MAX_LEVELS = 32
"""Resolutions a file may declare: 32 halvings reduce anything to a point."""
_BOMB = 64 << 20
_LARGER = 4


@dataclass(frozen=True)
class Resolution:
    """One level as it is stored.

    Args:
        shape: pixels per stored axis.
        chunk: pixels per stored axis that are decoded together.
        read: the values of a region, all stored axes kept; it can be pickled and called from several threads.
        spacing: per spatial axis name, in the unit of the file; empty where the file declares none.
        origin: per spatial axis name, position of the first pixel's centre.
        factor: per spatial axis name, pixels of full resolution per pixel of this level.
    """

    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    read: Callable[[Region], Array]
    spacing: dict[str, float] = field(default_factory=dict)
    origin: dict[str, float] = field(default_factory=dict)
    factor: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Raw:
    """An image before it is read: what its header declares, and how to get its pixels.

    Args:
        axes: one letter per stored axis, lower case: ``t z c y x``, ``s`` for colour samples, anything else for unknown.
        dtype: of the stored values.
        levels: finest first.
        unit: of spacing and origin, None where the file declares none.
        channels: channel names, empty where the file has none.
        colors: ``RRGGBB`` per channel, empty where the file has none.
        alpha: True where the last channel is opacity.
        labels: True where the file says that its values are ids.
        format: what `regframe info` calls it.
    """

    axes: str
    dtype: np.dtype[Any]
    levels: tuple[Resolution, ...]
    unit: str | None = None
    channels: tuple[str, ...] = ()
    colors: tuple[str, ...] = ()
    alpha: bool = False
    labels: bool = False
    format: str = ""

    @classmethod
    def whole(cls, shape: Sequence[int], dtype: Any, axes: str, read: Callable[[], Array], **kwargs: Any) -> Raw:
        """An image of one resolution, in a format that is decoded as a whole: it is decoded once and then kept."""
        level = {name: kwargs.pop(name) for name in ("spacing", "origin") if name in kwargs}
        one = Resolution(tuple(shape), tuple(shape), Whole(read), **level)
        return cls(axes, np.dtype(dtype), (one,), **kwargs)


class Whole:
    """Regions of an array that can only be read as a whole: read when the first is asked for, and kept."""

    def __init__(self, read: Callable[[], Array]) -> None:
        self._read = read
        self._array: Array | None = None
        self._lock = threading.Lock()

    def __call__(self, region: Region) -> Array:
        """The values of one region."""
        with self._lock:
            if self._array is None:
                self._array = self._read()
        return self._array[region]

    def __getstate__(self) -> dict[str, Any]:
        return {"_read": self._read}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_read"])  # type: ignore[misc]


@dataclass(frozen=True)
class InMemory:
    """Regions of an array that is there already."""

    array: Array

    def __call__(self, region: Region) -> Array:
        """The values of one region."""
        return self.array[region]


Stamp = tuple[int, int, int]


def stamp(path: Path) -> Stamp:
    """What tells a file from another one that was put in its place: its number, size and time of change."""
    found = path.stat()
    return (found.st_ino, found.st_size, found.st_mtime_ns)


def kept(build: Callable[..., Any], *arguments: Any) -> Any:
    """What ``build`` makes of its arguments, made once per process: opened files are shared by threads, not by forks."""
    with _LOCK:
        return _kept(os.getpid(), build, *arguments)


_LOCK = threading.RLock()


@functools.lru_cache(maxsize=32)
def _kept(_: int, build: Callable[..., Any], *arguments: Any) -> Any:
    return build(*arguments)


def unreadable(path: Path, kind: str, error: BaseException, where: str = "") -> ValueError:
    """The one sentence for a file that is damaged or not what it seems."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(
        f"wanted a readable {kind} image, got {str(path)!r}, which cannot be decoded{where} ({reason[:200]})"
    )


def place(level: int, axes: str, region: Region) -> str:
    """Where in an image a fault is: " in level 1 at y 0:512, x 0:512"."""
    spots = ", ".join(
        f"{a} {s.start}:{s.stop}" for a, s in zip(axes, region, strict=True) if a in "tzcyx?" and s.start is not None
    )
    return f" in level {level} at {spots}"


def check_level(path: Path, level: int, levels: int) -> None:
    """ValueError where a file has no such resolution."""
    if not 0 <= level < levels:
        raise ValueError(
            f"wanted a level from 0 to {levels - 1} of {str(path)!r}, got {level}; it has {levels} resolution(s)"
        )


def check_count(path: Path, levels: int) -> None:
    """ValueError for a number of levels that no image has."""
    if not 1 <= levels <= MAX_LEVELS:
        raise ValueError(f"wanted 1 to {MAX_LEVELS} resolutions, got {levels} declared by {str(path)!r}; write it anew")


def check_chunk(path: Path, what: str, chunk: Sequence[int], shape: Sequence[int], itemsize: int) -> None:
    """ValueError where one chunk would unpack to much more than the image it is part of."""
    one, image = math.prod(chunk) * itemsize, math.prod(shape) * itemsize
    if any(n < 1 for n in chunk) or one > max(_BOMB, _LARGER * image):
        raise ValueError(
            f"wanted {what} about as large as the image at most, got {tuple(chunk)} for a shape of {tuple(shape)} in "
            f"{str(path)!r}, {one / 2**30:.3g} GiB each; the file is damaged or made to exhaust the memory"
        )


def reduction(full: Sequence[int], level: Sequence[int]) -> tuple[float, ...]:
    """Pixels of full resolution per pixel of a level: the whole number writers round by, else the plain ratio."""
    factors = []
    for n, m in zip(full, level, strict=True):
        whole = max(1, round(n / m))
        factors.append(float(whole) if abs(n / whole - m) < 1 else n / m)
    return tuple(factors)
