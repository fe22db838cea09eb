"""Medical volumes in one file: NIfTI, NRRD and MetaImage, through SimpleITK, turned to the axes (z, y, x) of LPS."""

from __future__ import annotations

import math
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import regframe

from .colour import RGB
from .headers import HEADER as _HEADER
from .headers import fields_of
from .nifti import check_orientation, nearest_upright, read_header, sheared
from .raw import Array, Raw, needed, readable, unreadable
from .units import calibrate

SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha")
_TURNED = 0.02
"""Sine of the angle between an axis of the file and its axis of space above which the reader says that it leaves the turn
out: 0.02, about 1°, moves the ends of a volume of 100 pixels by one pixel from its middle."""
_NIFTI_1_HEADER = 348
"""Bytes of a NIfTI-1 header, its first number; a NIfTI-2 header has `_NIFTI_2_HEADER`."""
_NIFTI_2_HEADER = 540


def volume_kind(path: Path, head: bytes) -> str | None:
    """``NIfTI``, ``NRRD`` or ``MetaImage`` by the first bytes of a file, unpacked where it is gzipped; None for others."""
    if head[:4] == b"NRRD":
        return "NRRD"
    if head[:10] in (b"ObjectType", b"NDims = 2\n", b"NDims = 3\n"):
        return "MetaImage"
    if head[:2] == b"\x1f\x8b":
        head = regframe.gate.head_of(path, _NIFTI_1_HEADER)
    else:
        with path.open("rb") as file:
            head = file.read(_NIFTI_1_HEADER)
    if len(head) == _NIFTI_1_HEADER and head[344:348] in (b"n+1\0", b"ni1\0"):
        return "NIfTI"
    if len(head) >= 12 and struct.unpack("<i", head[:4])[0] == _NIFTI_2_HEADER and head[4:8] == b"n+2\0":
        return "NIfTI"
    return None


def open_volume(path: Path, kind: str, insist: bool = False) -> Raw:
    """The header of a volume; positions are those of ITK's physical space (LPS), components in tensor order.

    Axes are permuted and flipped to run along x to the left, y to the back, z to the head; a turn that remains is left
    out, and said so. NIfTI and MetaImage are in mm, NRRD in what ``space units`` says, axis by axis. Of the two orientations of
    a NIfTI file the sform counts; where it is sheared, the qform. ValueError for a damaged file, one whose pixels lie in another
    file, one of more than 3 spatial axes, one whose axes are sheared, or whose sform mirrors its qform; ImportError names the
    extra where the reader is missing.

    Args:
        path: of the file.
        kind: ``NIfTI``, ``NRRD`` or ``MetaImage``.
        insist: whether an sform counts although it mirrors the qform.
    """
    sitk: Any = needed("SimpleITK", "itk", path, "read")
    fields = fields_of(path, kind)
    reader = sitk.ImageFileReader()
    upright, said = False, ""
    colour = "rgb" in fields.get("kinds", "").lower() or "3-color" in fields.get("kinds", "").lower()
    with readable(path, kind):
        if kind == "NIfTI":
            header = read_header(path)
            said, colour = check_orientation(path, header, insist), header.colour
            upright = header.nearly_upright
        try:
            with _quiet(sitk), nearest_upright(upright), regframe.native_path(path) as native:
                reader.SetFileName(str(native))
                reader.ReadImageInformation()
        except RuntimeError as error:
            if "orthonormal" not in str(error):
                raise
            raise _sheared(path) from error
        size, spacing, origin = reader.GetSize(), reader.GetSpacing(), reader.GetOrigin()
        parts, dtype = reader.GetNumberOfComponents(), _dtype(sitk, reader.GetPixelID())
        direction = np.array(reader.GetDirection(), dtype=np.float64).reshape(len(size), len(size))
    ndim, lead = min(len(size), 3), len(size) - min(len(size), 3)
    if any(n > 1 for n in size[4:]) or not all(math.isfinite(v) for v in (*spacing, *origin)):
        raise ValueError(f"wanted a volume of 2 to 4 axes in a finite space, got {str(path)!r} with sizes {size}")
    axis, sign = _lying(path, direction[:ndim, :ndim])  # for each direction x, y, z of space
    corner = np.array([(size[a] - 1) * (s < 0) for a, s in zip(axis, sign, strict=True)], dtype=np.float64)
    index = np.zeros(ndim)
    index[axis] = corner
    first = np.array(origin[:ndim]) + direction[:ndim, :ndim] @ (np.array(spacing[:ndim]) * index)
    names = "xyz"[:ndim]
    shape = (*size[ndim:][::-1], *(size[a] for a in reversed(axis)))
    axes = "?" * max(lead - 1, 0) + "t" * min(lead, 1) + names[::-1]

    read = _Decode(path, kind, tuple(axis), tuple(sign), lead, math.prod(size) * parts * dtype.itemsize, upright)
    numbers = {n: float(spacing[a]) for n, a in zip(names, axis, strict=True)}
    counted = [n for n in names[::-1] if n in "yx" or size[axis[names.index(n)]] > 1]
    starts = {n: float(v) for n, v in zip(names, first, strict=True)}
    words = _words(fields, kind, dict(zip(names, axis, strict=True)))
    found = calibrate(numbers, words, counted, path.name)
    # of numbers without a unit the ratios count: in pixels, of which the finer side in the plane is 1
    wide = [n for n in "yx" if size[axis[names.index(n)]] > 1] or ["x"]
    pixel = 1.0 if any(words.values()) else min(numbers[n] for n in wide)
    return Raw.whole(
        shape if parts == 1 else (*shape, parts),
        dtype,
        axes if parts == 1 else axes + "c",
        read,
        spacing={n: v / pixel for n, v in found.spacing(numbers, {}).items()},
        origin={n: v / pixel for n, v in found.origin(starts, {}).items()},
        unit=found.unit,
        channels=RGB if parts == 3 and (colour or dtype == np.uint8) else (),
        alpha=parts == 4 and colour,
        format=kind,
        guessed=tuple(found.filled),
        doubts=found.doubts,
        said=(said,) if said else (),
        notes=found.notes,
    )


def _lying(path: Path, direction: Array) -> tuple[list[int], list[int]]:
    """For each axis of space the file's nearest axis and its sense; says where a turn is left out, and refuses a shear.

    Args:
        path: of the file.
        direction: ``[D, D]``, its columns the directions of the file's axes in space, of length 1.
    """
    if sheared(direction):
        raise _sheared(path)
    axis, sign, off = _turn(direction)
    if off > _TURNED:
        warnings.warn(
            f"{path.name} lies obliquely in its space, by {math.degrees(math.asin(min(off, 1.0))):.0f}°; its axes are "
            "taken for those of the space",
            stacklevel=7,
        )
    return axis, sign


def _sheared(path: Path) -> ValueError:
    return ValueError(
        f"wanted axes that stand upright on each other, got sheared ones in {str(path)!r}; resample the volume to a grid"
    )


def _words(fields: dict[str, str], kind: str, along: dict[str, int]) -> dict[str, str | None]:
    """The unit of each axis of space: that of NRRD as its header spells it, None where it does not; else mm.

    Args:
        fields: of a text header.
        kind: of the file.
        along: the file's axis along each axis of space.
    """
    if kind != "NRRD":
        return dict.fromkeys(along, "mm")
    of_space, of_axes = (_quoted(fields.get(key, "")) for key in ("space units", "units"))
    if of_space:
        return {name: of_space[i] if i < len(of_space) else None for i, name in enumerate("xyz"[: len(along)])}
    of_axes = of_axes[len(of_axes) - len(along) :]  # a first axis of components has a unit of its own
    return {name: of_axes[a] if a < len(of_axes) else None for name, a in along.items()}


def _quoted(text: str) -> list[str]:
    """The units in a field of an NRRD header: quoted, with blanks inside or not, or bare words."""
    return [quoted or bare for quoted, bare in re.findall(r'"([^"]*)"|(\S+)', text)]


@contextmanager
def _quiet(sitk: Any) -> Iterator[None]:
    """Keep the library from printing what it doubts of a header; what matters is found and said here."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        with regframe.gate.muted():
            yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


@dataclass(frozen=True)
class _Decode:
    """The values of a volume, its axes permuted and flipped to those of space.

    Args:
        path: of the file.
        kind: its format.
        axis: for each direction x, y, z of space the file's axis along it.
        sign: for each of these 1, or -1 where the file counts the other way.
        lead: axes before the spatial ones, 1 with time.
        nbytes: of its pixels, unpacked.
        upright: whether axes that are nearly upright on each other are taken for such.
    """

    path: Path
    kind: str
    axis: tuple[int, ...]
    sign: tuple[int, ...]
    lead: int
    nbytes: int
    upright: bool = False

    def __call__(self) -> Array:
        sitk: Any = needed("SimpleITK", "itk", self.path, "read")
        if self.kind == "NIfTI":  # a file cut short is filled up with zeros by the library
            _check_length(self.path, self.nbytes)
        with (
            readable(self.path, self.kind),
            _quiet(sitk),
            nearest_upright(self.upright),
            regframe.native_path(self.path) as native,
        ):
            array: Array = sitk.GetArrayFromImage(sitk.ReadImage(str(native)))  # (t,) z, y, x (, c)
        lead, ndim = self.lead, len(self.axis)
        order = [lead + ndim - 1 - a for a in reversed(self.axis)]
        array = array.transpose(*range(lead), *order, *range(lead + ndim, array.ndim))
        for place, s in enumerate(reversed(self.sign)):
            if s < 0:
                array = np.flip(array, lead + place)
        return np.ascontiguousarray(array)


def write_volume(path: Path, array: Array, spacing: tuple[float, ...], origin: tuple[float, ...], unit: str) -> None:
    """Write ``[C, *S]`` with spacing and origin in ``unit`` (mm, or px for NRRD), components (z,) y, x, in LPS."""
    sitk: Any = needed("SimpleITK", "itk", path, "write")
    many = array.shape[0] > 1
    moved = np.ascontiguousarray(np.moveaxis(array, 0, -1) if many else array[0])
    image = sitk.GetImageFromArray(moved, isVector=many)
    image.SetSpacing([float(v) for v in reversed(spacing)])
    image.SetOrigin([float(v) for v in reversed(origin)])
    with regframe.native_path(path, write=True) as native:
        sitk.WriteImage(image, str(native), useCompression=True)
    if path.suffix.lower() == ".nrrd" and unit != "px":  # the library leaves the unit out
        written = path.read_bytes()
        line = ("space units:" + f' "{unit}"' * len(spacing) + "\n").encode()
        path.write_bytes(written.replace(b"\nkinds:", b"\n" + line + b"kinds:", 1))


def _check_length(path: Path, wanted: int) -> None:
    """ValueError where a NIfTI file, unpacked, is shorter than its pixels."""
    try:
        found = regframe.gate.unpacked_size(path, wanted + _HEADER)
    except (OSError, ValueError) as error:
        raise unreadable(path, "NIfTI", error) from error
    if found < wanted + _NIFTI_1_HEADER:
        raise unreadable(path, "NIfTI", ValueError(f"{found} bytes for {wanted} bytes of pixels"))


def _turn(direction: Array) -> tuple[list[int], list[int], float]:
    """For each axis of space the file's nearest axis and its sense (1 or -1), and the largest sine of an angle that is left.

    Args:
        direction: ``[D, D]``, its columns the directions of the file's axes in space, of length 1.
    """
    left, axis = np.abs(direction).copy(), [0] * len(direction)
    for _ in range(len(direction)):
        row, column = (int(i) for i in np.unravel_index(int(left.argmax()), left.shape))
        axis[row] = column
        left[row, :] = left[:, column] = -1
    sign = [1 if direction[row, column] >= 0 else -1 for row, column in enumerate(axis)]
    plain = np.zeros_like(direction)
    for row, (column, sense) in enumerate(zip(axis, sign, strict=True)):
        plain[row, column] = sense
    return axis, sign, float(np.abs(direction - plain).max())


def _dtype(sitk: Any, pixel: int) -> np.dtype[Any]:
    """The array type of a SimpleITK pixel type."""
    names = {
        f"sitk{vector}{name}": numpy
        for vector in ("", "Vector")
        for name, numpy in (
            ("UInt8", "u1"), ("Int8", "i1"), ("UInt16", "u2"), ("Int16", "i2"), ("UInt32", "u4"), ("Int32", "i4"),
            ("UInt64", "u8"), ("Int64", "i8"), ("Float32", "f4"), ("Float64", "f8"),
        )
    }  # fmt: skip
    for name, numpy in names.items():
        if getattr(sitk, name) == pixel:
            return np.dtype(numpy)
    raise ValueError(f"its pixels are {sitk.GetPixelIDValueAsString(pixel)}, not numbers")
