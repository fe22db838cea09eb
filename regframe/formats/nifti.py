"""NIfTI: one displacement field."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .itk import MAX_NUMBERS, _sitk_field, need
from .steps import Field

_NIFTI_UNITS = {0: "px", 2: "mm"}  # of other units ITK converts the nodes, but not the vectors


# ------------------------------------------------------------------------------------------------------------------ NIfTI


def write_field(path: Path, field: Field, unit: str) -> None:
    """Write a displacement field as ITK and ANTs do (vectors, intent 1007), in mm, or without a unit for pixels."""
    sitk = need("SimpleITK", path, "write")

    packed = path.name.lower().endswith(".gz")
    plain = path.with_name(path.name[:-7] + ".plain.nii") if packed else path
    sitk.WriteImage(_sitk_field(sitk, field, np.float64), str(plain), useCompression=False)
    data = bytearray(plain.read_bytes())
    if unit == "px":
        data[123] = 0  # xyzt_units: none is declared
    if packed:
        plain.unlink()
        path.write_bytes(gzip.compress(bytes(data), 6, mtime=0))
    elif unit == "px":
        path.write_bytes(bytes(data))


def read_field(path: Path) -> tuple[Field, str]:
    """A displacement field and the unit of its numbers after reading, ``mm`` or ``px``.

    Raises ValueError for a file that is no field of vectors, too large, or shorter than it declares.
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
    unit = _NIFTI_UNITS.get(head[123] & 7)
    ndim = dim[5]
    if dim[0] != 5 or dim[4] != 1 or ndim not in (2, 3) or min(dim[1:4]) < 1 or (ndim == 2) != (dim[3] == 1):
        raise ValueError(
            f"wanted a displacement field (axes x, y, z, 1 and 2 or 3 components), got {list(dim[1 : 1 + max(0, dim[0])])}"
        )
    if intent not in (1006, 1007) or unit is None:
        raise ValueError(
            f"wanted vectors (intent 1006 or 1007) in mm or without a unit, got intent {intent}, unit code {head[123]}"
        )
    count = math.prod(dim[1:4]) * ndim
    if count > MAX_NUMBERS or (code, bits) not in ((16, 32), (64, 64)) or not 0 <= offset < 1 << 20:
        raise ValueError(f"wanted at most {MAX_NUMBERS} floating point numbers of 32 or 64 bits, got {count} of {bits}")
    with _opened(path) as file:
        _read(file, int(offset))
        left = count * bits // 8
        while left and (block := _read(file, min(left, 1 << 22))):
            left -= len(block)
            # the library would turn them into zeros
            if len(block) % (bits // 8) == 0 and not np.isfinite(np.frombuffer(block, f"{order}f{bits // 8}")).all():
                raise ValueError("wanted a finite displacement field, got NaN or inf in it")
    if left:
        raise ValueError(f"wanted {count * bits // 8} bytes of displacements, got a file that was cut short")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("NiftiImageIO")
    reader.SetOutputPixelType(sitk.sitkVectorFloat64)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise ValueError("wanted a sound NIfTI file, got one that ITK cannot read") from error
    if image.GetDimension() != ndim or image.GetNumberOfComponentsPerPixel() != ndim:
        raise ValueError(f"wanted {ndim} components in {ndim} dimensions, got {image.GetNumberOfComponentsPerPixel()}")
    values = sitk.GetArrayFromImage(image).reshape(*image.GetSize()[::-1], ndim)
    direction = np.array(image.GetDirection(), dtype=np.float64).reshape(ndim, ndim)
    return Field(values, image.GetSpacing(), image.GetOrigin(), direction), "px" if unit == "px" else "mm"


def _opened(path: Path) -> BinaryIO | gzip.GzipFile:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if packed else path.open("rb")


def _read(file: BinaryIO | gzip.GzipFile, n: int) -> bytes:
    try:
        return file.read(n)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError("wanted a sound gzip file, got a damaged one or one that was cut short") from error
