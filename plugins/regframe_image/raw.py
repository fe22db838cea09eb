"""The image that every reader hands to the adapter (`Raw`), and tools of the readers: checks of size, kept files, errors."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import os
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import regframe

Array = np.ndarray[Any, Any]
Region = tuple[slice, ...]
"""One slice per stored axis, start and stop explicit."""

MAX_LEVELS = 32
"""Resolutions that a file may declare: 32 halvings turn 4 billion pixels of one axis into one."""
ROWS_BYTES = 1 << 20
"""Bytes of neighbouring rows that count as one chunk where a file has no tiles: much for one read, little for the memory."""
_SMALL_CHUNK = 64 << 20
"""Bytes to which one chunk may always unpack: any machine has them, so a small image in one large tile is no attack."""
_PADDING = 4
"""How many times the bytes of its image a larger chunk may have: a tile that is twice too wide and twice too high, as where
a coarse level is smaller than one tile."""

FAULTS: tuple[type[Exception], ...] = (
    OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError, ArithmeticError, EOFError, struct.error,
    zlib.error, zipfile.BadZipFile,
)  # fmt: skip
"""Exceptions that libraries raise over a file that is damaged, cut short or not of the format that its name says."""


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
    """An image before its pixels are read: the declarations of its header, and a reader of regions for each level.

    Args:
        axes: one letter per stored axis, lower case: ``t z c y x``, ``s`` for colour samples, anything else for unknown.
        dtype: of the stored values.
        levels: finest first.
        unit: of spacing and origin, None where the file declares none.
        channels: channel names, empty where the file has none.
        colors: ``RRGGBB`` per channel, empty where the file has none.
        waves: excitation and emission wavelength of each channel in nm, empty where the file has none.
        stage: position of the stage along y and x in µm; empty where the file states none.
        alpha: True where the last channel is opacity.
        premultiplied: True where the colours were multiplied by it when they were stored.
        labels: True where the file says that its values are ids.
        format: what `regframe info` calls it.
        series: the images of the file, where it holds several.
        guessed: axes whose spacing the file does not declare, and which got that of another axis.
        doubts: sentences on the declared pixel size, to be said aloud unless the user states another.
        said: sentences to be said aloud in any case.
        notes: sentences for `regframe info` alone.
    """

    axes: str
    dtype: np.dtype[Any]
    levels: tuple[Resolution, ...]
    unit: str | None = None
    channels: tuple[str, ...] = ()
    colors: tuple[str, ...] = ()
    alpha: bool = False
    premultiplied: bool = False
    labels: bool = False
    format: str = ""
    series: tuple[regframe.Series, ...] = ()
    guessed: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    waves: tuple[tuple[float | None, float | None], ...] = ()
    stage: tuple[float, ...] = ()

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
        self._read, self._array, self._lock = state["_read"], None, threading.Lock()


@dataclass(frozen=True)
class InMemory:
    """Regions of an array that is there already."""

    array: Array

    def __call__(self, region: Region) -> Array:
        """The values of one region."""
        return self.array[region]


Stamp = tuple[int, int, int]
"""Inode, size in bytes and time of change in ns of a file."""


Place = Path | regframe.Remote
"""Where a file or store lies: on this disk, or under an address."""


def stamp(path: Place) -> Stamp:
    """The `Stamp` of a file: another file in its place, or a change, has another one."""
    if isinstance(path, regframe.Remote):
        return path.stamp()
    found = path.stat()
    return (found.st_ino, found.st_size, found.st_mtime_ns)


def check_unchanged(now: Stamp, before: Stamp, what: str = "file") -> None:
    """ValueError where a file is no longer the one whose header was read."""
    if now != before:
        raise ValueError(f"the {what} is another one than when it was opened")


def kept(build: Callable[..., Any], *arguments: Any) -> Any:
    """What ``build`` returns for its arguments, built once per process: threads share an opened file, forked processes must
    not, because they would share its position too."""
    with _LOCK:
        return _kept(os.getpid(), build, *arguments)


_LOCK = threading.RLock()


@functools.lru_cache(maxsize=32)  # files: a pair of slides needs two, a stack a few more, and each holds a descriptor
def _kept(_: int, build: Callable[..., Any], *arguments: Any) -> Any:
    return build(*arguments)


def unreadable(path: Place, kind: str, error: BaseException, where: str = "") -> ValueError:
    """The one sentence for a file that is damaged or not what it seems."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(
        f"wanted a readable {kind} image, got {str(path)!r}, which cannot be decoded{where} ({reason[:200]}); is the copy "
        "complete?"
    )


@contextmanager
def readable(path: Place, kind: str, where: str = "", also: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn what a library raises over a file into the one sentence of `unreadable`: `FAULTS`, ``also`` its own exceptions, and
    whatever else `regframe.gate` takes for the file's fault.

    A ValueError that begins with "wanted" is a sentence of ours already and passes as it is, and so does what went wrong on the
    way to a remote store.
    """
    try:
        yield
    except MemoryError as error:
        raise unreadable(path, kind, error, where) from error
    except Exception as error:
        ours = isinstance(error, ValueError) and str(error).startswith("wanted")
        known = isinstance(error, (*FAULTS, *also)) and not isinstance(error, regframe.RemoteError)
        if ours or (not known and regframe.gate.passes(error)):
            raise
        raise unreadable(path, kind, error, where) from error


def needed(package: str, extra: str, path: Path, what: str) -> ModuleType:
    """The optional ``package`` with which to ``what`` (read, write) a file; ImportError names the ``extra`` that brings it."""
    if importlib.util.find_spec(package) is None:
        raise ImportError(
            f"wanted the package {package} to {what} {str(path)!r}, which is not installed; get it with: "
            f"pip install 'regframe[{extra}]'"
        )
    return importlib.import_module(package)


def place(level: int, axes: str, region: Region) -> str:
    """Where in an image a fault is: " in level 1 at y 0:512, x 0:512"."""
    spots = ", ".join(
        f"{a} {s.start}:{s.stop}" for a, s in zip(axes, region, strict=True) if a in "tzcyx?" and s.start is not None
    )
    return f" in level {level} at {spots}"


def check_level(path: Place, level: int, levels: int) -> None:
    """ValueError where a file has no such resolution."""
    if not 0 <= level < levels:
        has = "1 resolution: leave it out" if levels == 1 else f"{levels} resolutions"
        raise ValueError(f"wanted a level from 0 to {levels - 1} of {str(path)!r}, got {level}; it has {has}")


def check_count(path: Place, levels: int) -> None:
    """ValueError for a number of levels that no image has."""
    if not 1 <= levels <= MAX_LEVELS:
        raise ValueError(f"wanted 1 to {MAX_LEVELS} resolutions, got {levels} declared by {str(path)!r}; write it anew")


def check_chunk(path: Place, what: str, chunk: Sequence[int], shape: Sequence[int], itemsize: int) -> None:
    """ValueError where one chunk would unpack to much more than the image it is part of."""
    one, image = math.prod(chunk) * itemsize, math.prod(shape) * itemsize
    if any(n < 1 for n in chunk) or one > max(_SMALL_CHUNK, _PADDING * image):
        raise ValueError(
            f"wanted {what} about as large as the image at most, got {tuple(chunk)} for a shape of {tuple(shape)} in "
            f"{str(path)!r}, {one / 2**30:.3g} GiB each; the file is damaged or made to exhaust the memory"
        )


def rows(shape: Sequence[int], at: int, itemsize: int) -> tuple[int, ...]:
    """The chunk of an array stored value after value: whole rows of axis ``at``, `ROWS_BYTES` of them, in one entry of the
    axes before."""
    row = math.prod(shape[at + 1 :]) * itemsize
    return *(1 for _ in shape[:at]), max(1, min(shape[at], ROWS_BYTES // max(row, 1))), *shape[at + 1 :]


def reduction(full: Sequence[int], level: Sequence[int]) -> tuple[float, ...]:
    """Pixels of full resolution per pixel of a level, per axis.

    A writer that halves 1001 pixels stores 500 or 501 of them, each 2 wide: where a whole number explains the level's size
    to within one pixel, it is that number, else the ratio of both sizes.
    """
    factors = []
    for n, m in zip(full, level, strict=True):
        whole = max(1, round(n / m))
        factors.append(float(whole) if abs(n / whole - m) < 1 else n / m)
    return tuple(factors)


def check_npy(path: Path) -> None:
    """ValueError, half a sentence, where an npy file is shorter than the array that its header declares."""
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        there = path.stat().st_size - file.tell()
    if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize > there:
        raise ValueError(f"its header declares shape {shape} of {dtype}, and {there} bytes follow")
