"""Olympus FluoView OIB and OIF through the package oiffile, an extra: a TIFF for each plane, read as it is needed."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .planes import TILE, Plane, PlanesRegion, channel_names, taken_axes
from .raw import Array, Raw, Resolution, Stamp, check_unchanged, kept, needed, readable, stamp
from .series import only_series
from .units import calibrate

_ALSO = (NotImplementedError, AssertionError)
"""What oiffile raises beside the usual over damaged files."""


@dataclass(frozen=True)
class _Document:
    """The planes of a file.

    Args:
        file: the library's reader, which closes with this.
        axes: before y and x, the outermost first.
        shape: entries along these.
        names: the file of every plane, in their order.
        size: rows and columns.
        dtype: of the pixels.
    """

    file: Any
    axes: str
    shape: tuple[int, ...]
    names: tuple[str, ...]
    size: tuple[int, int]
    dtype: np.dtype[Any]

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            self.file.close()


def open_fluoview(path: Path, wanted: int | str | None = None) -> Raw:
    """The planes of a file; pixel size and names of the channels (their dye, else their number) as it declares them.

    ImportError names the extra where oiffile is missing, ValueError what is wrong with the file.

    Args:
        path: of the file; of an OIF the one beside its folder ``NAME.oif.files``.
        wanted: number of the image, which can only be the first.
    """
    needed("oiffile", "oib", path, "read")
    only_series(wanted, path.name)
    with readable(path, "OIB", also=_ALSO):
        identity = stamp(path)
        document = kept(_opened, path, identity)
        settings = document.file.mainfile
        numbers, words = _steps(settings)
        sizes = dict(zip(document.axes, document.shape, strict=True)) | dict(zip("yx", document.size, strict=True))
    axes = taken_axes(sizes, path, "OIB")
    size = calibrate(numbers, words, [a for a in "zyx" if a in axes], path.name)
    shape = tuple(sizes[a] for a in axes)
    chunk = tuple(min(n, TILE) if a in "yx" else 1 for a, n in zip(axes, shape, strict=True))
    read = PlanesRegion(path, identity, "OIB", 0, 0, axes, _window, _ALSO)
    return Raw(
        axes,
        document.dtype,
        (Resolution(shape, chunk, read, size.spacing(numbers, {})),),
        size.unit,
        channel_names(_channels(settings, sizes.get("c", 1)), 1),
        format="Olympus FluoView",
        guessed=tuple(size.filled),
        doubts=size.doubts,
        notes=size.notes,
    )


def _opened(path: Path, identity: Stamp) -> _Document:
    import oiffile

    check_unchanged(stamp(path), identity)
    file = oiffile.OifFile(path)
    if not file.series:
        raise ValueError("no plane lies in it")
    series: Any = file.series[0]
    names = tuple(map(str, series))
    axes, shape = str(series.axes).lower(), tuple(map(int, series.shape))
    if "c" not in axes and math.prod(shape) == 1:
        axes, shape = "c", (1,)
    if len(axes) != len(shape) or math.prod(shape) != len(names):
        raise ValueError(f"{len(names)} of its {math.prod(shape)} planes are there")
    first = file.asarray(names[0])
    if first.ndim != 2:
        raise ValueError(f"its planes have {first.ndim} axes")
    return _Document(file, axes, shape, names, (first.shape[0], first.shape[1]), np.dtype(first.dtype))


def _steps(settings: Any) -> tuple[dict[str, float], dict[str, str | None]]:
    """Distance of pixels and of planes, each with its unit as the file spells it."""
    numbers: dict[str, float] = {}
    words: dict[str, str | None] = {}
    reference = settings.get("Reference Image Parameter", {})
    for axis, key in (("y", "Height"), ("x", "Width")):
        with contextlib.suppress(KeyError, TypeError, ValueError):
            numbers[axis] = float(reference[f"{key}ConvertValue"])
            words[axis] = str(reference.get(f"{key}Unit") or "") or None
    deep: Any = next(
        (settings[k] for k in settings if k.endswith("Parameters Common") and settings[k].get("AxisCode") == "Z"), {}
    )
    with contextlib.suppress(KeyError, TypeError, ValueError, ZeroDivisionError):
        numbers["z"] = abs(float(deep["EndPosition"]) - float(deep["StartPosition"])) / (int(deep["MaxSize"]) - 1)
        words["z"] = str(deep.get("UnitName") or "") or None
    return {a: n for a, n in numbers.items() if n > 0}, words


def _channels(settings: Any, n: int) -> list[str]:
    """The name of every channel: the dye where each has another one, else what the program calls it."""
    said = [settings.get(f"Channel {i + 1} Parameters", {}) for i in range(n)]
    dyes = [str(s.get("DyeName") or "") for s in said]
    return dyes if all(dyes) and len(set(dyes)) == n else [str(s.get("CH Name") or "") for s in said]


def _window(read: PlanesRegion, plane: Plane, y: slice, x: slice) -> Array:
    """A window of one plane."""
    document = kept(_opened, read.path, read.stamp)
    at = dict(zip(read.axes, plane, strict=False))
    index = 0
    for axis, n in zip(document.axes, document.shape, strict=True):
        index = index * n + at.get(axis, 0)
    found: Array = document.file.asarray(document.names[index])
    if found.shape != document.size:
        raise ValueError(f"its plane {index} has {found.shape} pixels instead of {document.size}")
    return found[y, x].astype(document.dtype)
