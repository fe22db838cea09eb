"""Points of one side as ImageJ and Fiji keep them: a multipoint in a ``.roi`` file, or several selections in a ``RoiSet.zip``.

Positions are x, y in pixels and, since ImageJ 1.52u (2020), those of points count from the middle of the first pixel, as ours do;
outlines count from its corner, and are no points. The bytes are read and written by the package roifile (BSD-3-Clause), an extra.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import lzma
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from .. import gate
from ..data import PointSet

SUFFIXES = (".roi", ".zip")
"""Ends of the names of such files."""
_FIRST = b"Iout"
"""First bytes of a selection."""
_ZIP = b"PK"
_MOST = 1 << 24
"""Bytes of one selection, at most: a million points."""
_MOST_IN_ALL = 1 << 26
"""Bytes of all selections of a set, at most."""
_MOST_ENTRIES = 50_000
"""Selections of a set, at most."""

OUTLINES = "outlines of ImageJ are moved as GeoJSON: import them in QuPath, export GeoJSON, `regframe apply shapes`"
"""What to do with a selection that is no points."""
_COLUMNS = ("y_px", "x_px")

Named = tuple[str, tuple[float, float]]
"""Name and position (y, x), in pixels from the middle of the first one."""


def can() -> bool:
    """Whether the package that reads and writes selections is installed."""
    return importlib.util.find_spec("roifile") is not None


def is_rois(data: bytes) -> bool:
    """Whether bytes begin as a selection of ImageJ's, or as a set of them, does."""
    return data[:4] == _FIRST or data[:2] == _ZIP


def parsed(data: bytes) -> list[Named]:
    """The points of a ``.roi`` file or a ``RoiSet.zip``, in their order.

    Points of a multipoint are called by their number, one that is alone in its selection by that selection's name.

    Raises ValueError, in one sentence, for other selections and damaged or huge files; ImportError where roifile is missing.
    """
    roifile = _needed("read")
    selections = _unpacked(data) if data[:2] == _ZIP else [data]
    found: list[Named] = []
    for selection in selections:
        name, places = _points(roifile, selection)
        for x, y in places.tolist():
            number = str(len(found) + 1)
            found.append((name if name and len(places) == 1 else number, (y, x)))
    if not found:
        raise ValueError("wanted points in a file of ImageJ, got none in it")
    return found


def written(places: Sequence[tuple[float, float]]) -> bytes:
    """Positions (y, x) in pixels as one multipoint; the format holds float32: 0.002 px at 20 000 px.

    Raises ValueError where there are none or too many, ImportError where roifile is missing.
    """
    roifile = _needed("write")
    if not 0 < len(places) <= _MOST_ENTRIES:
        raise ValueError(f"wanted 1 to {_MOST_ENTRIES} points for a file of ImageJ, got {len(places)}; write a .csv")
    coords = np.array(places, dtype=np.float64)[:, ::-1]
    roi = roifile.ImagejRoi.frompoints(coords, name="landmarks")
    roi.roitype = roifile.ROI_TYPE.POINT
    data: bytes = roi.tobytes()
    return data


def read_roi(path: str | os.PathLike[str]) -> PointSet:
    """Points of one side in pixels, with the column ``selection``; raises what `parsed` raises, naming the file.

    The column is not called a name, by which two files would be joined: ImageJ names points by where they lie.
    """
    path = Path(path)
    gate.check_file(path, folder=False)
    if path.stat().st_size > _MOST_IN_ALL:
        raise ValueError(f"wanted at most {_MOST_IN_ALL >> 20} MB of points in {str(path)!r}, got more")
    try:
        found = parsed(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{error} ({str(path)!r})") from error
    coords = torch.tensor([at for _, at in found], dtype=torch.float64)
    table = {"selection": [name for name, _ in found]}
    table |= {name: [repr(v) for v in coords[:, d].tolist()] for d, name in reversed(list(enumerate(_COLUMNS)))}
    return PointSet(coords, "px", table=table, columns=_COLUMNS, name=path.name)


def of_points(points: PointSet, name: str) -> bytes:
    """Points in pixels as one multipoint, positions alone; ``name`` is that of the file, for the sentences.

    Raises what `written` raises, and ValueError for another unit, a volume or positions that are not finite.
    """
    if points.unit != "px" or points.ndim != 2:
        raise ValueError(
            f"wanted points of a plane in px for {name!r}, got {points.ndim} components in {points.unit}; write a .csv"
        )
    coords = points.coords.detach().cpu()
    if not bool(coords.isfinite().all()):
        raise ValueError(f"wanted finite positions for {name!r}, got some that are none; write a .csv")
    return written([(y, x) for y, x in coords.tolist()])


def _points(roifile: ModuleType, data: bytes) -> tuple[str, np.ndarray]:
    """Name and positions ``[N, 2]`` (x, y) of one selection."""
    try:
        with gate.chatter():
            roi = roifile.ImagejRoi.frombytes(data)
        kind, places, name = roi.roitype, np.asarray(roi.coordinates(), dtype=np.float64), str(roi.name or "")
    except Exception as error:
        if gate.passes(error) and not isinstance(error, NotImplementedError):
            raise
        raise ValueError("wanted a selection as ImageJ saves it, got damaged bytes or another file") from error
    if kind != roifile.ROI_TYPE.POINT:
        raise ValueError(
            f"wanted points in a file of ImageJ, got a selection of the type {kind.name.lower()}; {OUTLINES}"
        )
    if places.ndim != 2 or places.shape[1] != 2 or not np.isfinite(places).all():
        raise ValueError("wanted finite positions in a file of ImageJ, got others")
    return gate.printable(name), places


def _unpacked(data: bytes) -> list[bytes]:
    """The selections of a set, in their order; names in it are no paths here, and no size that it states is believed."""
    found: list[bytes] = []
    left = _MOST_IN_ALL
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.lower().endswith(".roi")]
            if len(entries) > _MOST_ENTRIES:
                raise ValueError(f"wanted at most {_MOST_ENTRIES} selections in a file of ImageJ, got {len(entries)}")
            for entry in entries:
                with archive.open(entry) as file:
                    part = file.read(min(_MOST, left) + 1)
                left -= len(part)
                if len(part) > _MOST or left < 0:
                    raise ValueError(f"wanted at most {_MOST_IN_ALL >> 20} MB of selections of ImageJ, got more")
                found.append(part)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, OSError) as error:
        raise ValueError("wanted a sound RoiSet.zip, got a damaged or locked one; save it anew") from error
    return found


def _needed(what: str) -> ModuleType:
    if not can():
        raise ImportError(
            f"wanted the package roifile to {what} selections of ImageJ, which is not installed; get it with: "
            "pip install 'regframe[roi]', or use a table X, Y"
        )
    return importlib.import_module("roifile")
