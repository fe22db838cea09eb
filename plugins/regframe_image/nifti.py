"""The two orientations in a NIfTI header, and what to do where they contradict each other."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import regframe

from .raw import Array
from .units import CONTRADICTION

_SHEAR = 0.01
"""Cosine of the angle between two axes of a file above which they do not stand upright on each other: 0.01, half a degree, is
what an affine alignment leaves that was composed of rounded numbers, and moves the end of 100 pixels by one."""
_EXACT = 1e-5
"""Cosine up to which the library itself takes axes for upright, with room for its own rounding: it refuses from 1e-4 on."""
_PERMISSIVE = "ITK_NIFTI_SFORM_PERMISSIVE"
"""ITK's switch for sforms whose axes are not quite upright."""
_LOCK = threading.RLock()
_COLOUR = (128, 2304)
"""Values of ``datatype`` for pixels in colour: RGB24 and RGBA32."""


@dataclass(frozen=True)
class Header:
    """The orientation of a NIfTI file.

    Args:
        sform: axes of the file in space ``[3, 3]``, columns, in mm; None where its code says that there is none.
        qform: the other statement of the same.
        steps: distance of pixels along each axis of the file (``pixdim``), in its unit; NaN along axes of one entry.
        colour: whether pixels are red, green and blue.
    """

    sform: Array | None
    qform: Array | None
    steps: Array
    colour: bool

    @property
    def nearly_upright(self) -> bool:
        """Whether the library has to be told to take the axes of the sform for upright."""
        return self.sform is not None and sheared(self.sform, _EXACT) and not sheared(self.sform)


def read_header(path: Path) -> Header:
    """The orientation in the header of a NIfTI-1 or NIfTI-2 file, plain or gzipped; FAULTS where there is none."""
    head = regframe.gate.head_of(path, 540)
    order = "<" if struct.unpack_from("<i", head)[0] in (348, 540) else ">"
    second = struct.unpack_from(order + "i", head)[0] == 540
    dim, datatype, codes, quatern, rows, pixdim, kind = (
        (16, 12, 344, 352, 400, 104, "d") if second else (40, 70, 252, 256, 280, 76, "f")
    )
    sizes = struct.unpack_from(order + ("8q" if second else "8h"), head, dim)
    if not 1 <= sizes[0] <= 7 or min(sizes[1 : 1 + sizes[0]]) < 1:
        raise ValueError(f"dim is {list(sizes)}, not the number of axes and their sizes")
    thin = np.array([i >= sizes[0] or sizes[i + 1] <= 1 for i in range(3)])
    qcode, scode = struct.unpack_from(order + ("2i" if second else "2h"), head, codes)
    steps = struct.unpack_from(f"{order}4{kind}", head, pixdim)
    b, c, d = struct.unpack_from(f"{order}3{kind}", head, quatern)
    sform = np.array(struct.unpack_from(f"{order}12{kind}", head, rows)).reshape(3, 4)[:, :3]
    lengths = np.abs(np.where(thin & (np.array(steps[1:4]) == 0), 1.0, steps[1:4]))
    qform = _rotation(b, c, d) * lengths * np.array([1, 1, -1 if steps[0] < 0 else 1])
    if thin[2] and not np.linalg.norm(sform[:, 2]):  # of one plane: the direction that is missing
        sform[:, 2] = np.cross(sform[:, 0], sform[:, 1])
    lengths = np.where(thin, np.nan, lengths)
    colour = struct.unpack_from(order + "h", head, datatype)[0] in _COLOUR
    return Header(sform if scode > 0 else None, qform if qcode > 0 else None, lengths, colour)


def _rotation(b: float, c: float, d: float) -> Array:
    """The rotation ``[3, 3]`` of a unit quaternion whose real part is positive and left out."""
    a = max(0.0, 1 - b * b - c * c - d * d) ** 0.5
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )


def sheared(axes: Array, limit: float = _SHEAR) -> bool:
    """Whether the axes of a file, the columns of ``[D, D]``, do not stand upright on each other, by a cosine above ``limit``, or
    one has no length."""
    lengths = np.linalg.norm(axes, axis=0)
    if not np.isfinite(axes).all() or (lengths <= 0).any():
        return True
    cosines = (axes / lengths).T @ (axes / lengths)
    return bool(np.abs(cosines - np.eye(len(axes))).max() > limit)


def _disagreement(sform: Array, steps: Array) -> float:
    """Largest relative difference between the lengths of the columns of an sform and the field ``pixdim``."""
    counted = np.isfinite(steps) & (steps > 0)
    ratios = np.linalg.norm(sform, axis=0)[counted] / steps[counted]
    return float(np.abs(ratios - 1).max(initial=0.0))


@contextmanager
def nearest_upright(needed: bool) -> Iterator[None]:
    """Let the library take the nearest upright axes for those of an sform that `sheared` lets pass; by default it refuses shears
    from a cosine of 1e-4 on, with a text of its own. It reads this from the environment."""
    if not needed:
        yield
        return
    with _LOCK:
        before = os.environ.get(_PERMISSIVE)
        os.environ[_PERMISSIVE] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[_PERMISSIVE]
            else:
                os.environ[_PERMISSIVE] = before


def check_orientation(path: Path, header: Header, insist: bool) -> str:
    """What is to be said of a header whose statements differ; empty where nothing is.

    Args:
        path: of the file.
        header: its orientation.
        insist: whether the user says that the sform counts.

    Raises:
        ValueError: for an sform that mirrors what the qform does not, and for one that no grid can follow.
    """
    sform, qform = header.sform, header.qform
    if sform is not None and sheared(sform):
        if qform is None or sheared(qform):
            raise ValueError(
                f"wanted axes that stand upright on each other, got a sheared sform in {str(path)!r} and no qform beside it; "
                "resample the volume to a grid, or correct the sform"
            )
        return f"{path.name} has a sheared sform, which no grid follows; its qform is taken instead"
    if sform is not None and bool((off := _disagreement(sform, header.steps)) > CONTRADICTION):
        if not insist and (qform is None or sheared(qform)):
            raise ValueError(
                f"wanted one pixel size in {str(path)!r}, got an sform {off:.0%} off its field pixdim; correct one of "
                "them, or set override=true to take pixdim"
            )
        return f"{path.name} has an sform whose pixel size differs from its field pixdim by {off:.0%}; pixdim is taken"
    if sform is None or qform is None or sheared(qform):
        return ""
    if np.linalg.det(sform) * np.linalg.det(qform) < 0:
        if not insist:
            raise ValueError(
                f"wanted one orientation in {str(path)!r}, got an sform that is the mirror image of its qform, so that left and "
                "right cannot be told; correct one of them, or set override=true to take the sform"
            )
        return f"{path.name} has an sform that is the mirror image of its qform; the sform is taken, as was asked for"
    return ""
