"""NIfTI files: a map as one displacement field."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..contracts import MapFormat, Side, Written
from ..data import Grid
from ..io.paths import native_path
from ..maps.base import Transform
from ..result import Result
from .itk import MAX_NUMBERS, need, sitk_field
from .steps import Field, both_canvases, map_of, number_unit, sides, whole_field, written_steps

_UNITS = {0: "px", 2: "mm"}  # by NIfTI's code; in other units ITK would convert the nodes but not the vectors
_UNIT_BYTE = 123  # offset of that code in the header
_MOST_OFFSET = 1 << 20  # largest number of bytes before the data: the header takes 352, extensions some thousands


class Nifti(MapFormat):
    """.nii.gz: one displacement field, affine part and all."""

    name = "nifti"
    suffixes = (".nii", ".nii.gz")

    def write(self, result: Result, path: Path, *, to: Side, unit: str, tolerance: float) -> Written:
        """Write the whole map as one field over the canvas from which positions come."""
        check_mm(self.name, unit, "leave it out, or write itk")
        need("SimpleITK", path, "write")
        if not path.name.lower().endswith(self.suffixes):
            raise ValueError(f"wanted a name that ends in .nii or .nii.gz, got {path.name!r}")
        field = whole_field(result, to, unit, tolerance)
        source = sides(result.fixed_grid, result.moving_grid, to)[0]
        write_field(path, field, number_unit(source.unit, unit))
        return written_steps(self.name, path, [field], result, to, unit)

    def read(self, path: Path, fixed: Grid | None, moving: Grid | None, *, to: Side, unit: str) -> Transform:
        """Read the field of the file."""
        fixed, moving = both_canvases(self.name, fixed, moving)
        check_mm(self.name, unit, "leave it out")
        field, numbers = read_field(path)
        check_declared(numbers, fixed, moving)
        return map_of([field], fixed, moving, to, unit)


def check_mm(name: str, unit: str, remedy: str) -> None:
    """Refuse any unit but mm, in which files of the format ``name`` are by the NIfTI standard."""
    if unit != "mm":
        raise ValueError(f"wanted mm, in which {name} is by its standard, got unit {unit!r}; {remedy}")


def check_declared(numbers: str, fixed: Grid, moving: Grid) -> None:
    """Refuse a field without a unit where an image has one. (A field that declares mm may be in pixels: ANTs always does.)"""
    if numbers == "px" and {fixed.unit, moving.unit} != {"px"}:
        raise ValueError(
            f"wanted fields in mm, as the images are in {fixed.unit} and {moving.unit}, got one without a unit, in pixels"
        )


def write_field(path: Path, field: Field, unit: str) -> None:
    """Write a displacement field as ITK and ANTs do (vectors, intent 1007), in mm, or without a unit for ``px``."""
    sitk = need("SimpleITK", path, "write")

    packed = path.name.lower().endswith(".gz")
    plain = path.with_name(path.name[:-7] + ".plain.nii") if packed else path
    with native_path(plain, write=True) as native:
        sitk.WriteImage(sitk_field(sitk, field), str(native), useCompression=False)
    data = bytearray(plain.read_bytes())
    if unit == "px":
        data[_UNIT_BYTE] = 0  # no unit declared
    if packed:
        plain.unlink()
        path.write_bytes(gzip.compress(bytes(data), 6, mtime=0))
    elif unit == "px":
        path.write_bytes(bytes(data))


def read_field(path: Path) -> tuple[Field, str]:
    """A displacement field, and the unit of its numbers after reading (``mm`` or ``px``).

    Raises ValueError for a file that is not a field of vectors, too large, or shorter than it declares.
    """
    sitk = need("SimpleITK", path, "read")

    with _opened(path) as file:
        head = _read(file, 352)
    if len(head) < 348 or head[344:348] not in (b"n+1\0",):
        raise ValueError("wanted a NIfTI-1 file in one piece (.nii, .nii.gz), got something else")
    order = "<" if struct.unpack_from("<i", head)[0] == 348 else ">"
    dim = struct.unpack_from(f"{order}8h", head, 40)
    intent, code, bits = struct.unpack_from(f"{order}3h", head, 68)
    offset = struct.unpack_from(f"{order}f", head, 108)[0]
    unit = _UNITS.get(head[_UNIT_BYTE] & 7)
    ndim = dim[5]
    if dim[0] != 5 or dim[4] != 1 or ndim not in (2, 3) or min(dim[1:4]) < 1 or (ndim == 2) != (dim[3] == 1):
        raise ValueError(
            f"wanted a displacement field (axes x, y, z, 1 and 2 or 3 components), got {list(dim[1 : 1 + max(0, dim[0])])}"
        )
    if intent not in (1006, 1007) or unit is None:
        raise ValueError(
            f"wanted vectors (intent 1006 or 1007) in mm or without a unit, got intent {intent}, unit code {head[_UNIT_BYTE]}"
        )
    count = math.prod(dim[1:4]) * ndim
    if count > MAX_NUMBERS or (code, bits) not in ((16, 32), (64, 64)) or not 0 <= offset < _MOST_OFFSET:
        raise ValueError(f"wanted at most {MAX_NUMBERS} floating point numbers of 32 or 64 bits, got {count} of {bits}")
    with _opened(path) as file:
        _read(file, int(offset))
        left = count * bits // 8
        while left and (block := _read(file, min(left, 1 << 22))):
            left -= len(block)
            # NaN and inf must be found here, because ITK turns them into zeros
            if len(block) % (bits // 8) == 0 and not np.isfinite(np.frombuffer(block, f"{order}f{bits // 8}")).all():
                raise ValueError("wanted a finite displacement field, got NaN or inf in it")
    if left:
        raise ValueError(f"wanted {count * bits // 8} bytes of displacements, got a file that was cut short")
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NiftiImageIO")
    reader.SetOutputPixelType(sitk.sitkVectorFloat64)
    try:
        with native_path(path) as native:
            reader.SetFileName(str(native))
            image = reader.Execute()
    except RuntimeError as error:
        raise ValueError("wanted a sound NIfTI file, got one that ITK cannot read") from error
    if image.GetDimension() != ndim or image.GetNumberOfComponentsPerPixel() != ndim:
        raise ValueError(f"wanted {ndim} components in {ndim} dimensions, got {image.GetNumberOfComponentsPerPixel()}")
    values = sitk.GetArrayFromImage(image).reshape(*image.GetSize()[::-1], ndim)
    direction = np.array(image.GetDirection(), dtype=np.float64).reshape(ndim, ndim)
    return Field(values, image.GetSpacing(), image.GetOrigin(), direction), "px" if unit == "px" else "mm"


def _opened(path: Path) -> BinaryIO | gzip.GzipFile:
    """The file, opened for reading; unpacked where its first bytes are those of gzip, whatever its name."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if packed else path.open("rb")


def _read(file: BinaryIO | gzip.GzipFile, n: int) -> bytes:
    """At most ``n`` bytes of the file; ValueError where they cannot be unpacked."""
    try:
        return file.read(n)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError("wanted a sound gzip file, got a damaged one or one that was cut short") from error
