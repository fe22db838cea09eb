"""Point clouds for regframe: the adapters ``points`` (tables), ``ply`` and ``las``, the metrics ``mixture`` and ``kernel``."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

import regframe

from ._files import LasAdapter, PlyAdapter

if TYPE_CHECKING:
    import torch
else:
    torch = regframe.later.torch

_HEAD = 4096
"""Bytes at the beginning of a file, unpacked, by which text is told from other data."""
_SUFFIXES = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz", ".pts", ".fcsv")

_IMAGEJ = (".roi", ".zip")


class PointsAdapter(regframe.Adapter):
    """Positions in a text table (CSV, TSV, white space, elastix ``.pts``) with all of its other columns, in points of ImageJ
    (``.roi``, ``RoiSet.zip``), or in an array.

    Args:
        columns: which columns are the positions, where their names leave it open: ``"x=NAME,y=NAME"``; for a file
            without a header, or an array, the names of its columns in order, e.g. ``"x,y"``.
        unit: of columns whose names end in none, ``"px"`` where None.
    """

    name = "points"
    writes: ClassVar[Mapping[type, tuple[str, ...]]] = {
        regframe.PointSet: (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz")
    }

    def __init__(self, columns: str | None = None, unit: str | None = None) -> None:
        if columns is not None and not isinstance(columns, str):
            columns = ",".join(map(str, columns))
        self.columns = columns
        self.unit = unit

    def matches(self, source: Any) -> float:
        """1 for a `PointSet`, 0.9 for points of ImageJ, 0.6 for a text file with a table's suffix, else 0."""
        if isinstance(source, regframe.PointSet):
            return 1.0
        if not isinstance(source, (str, Path)) or not str(source).lower().endswith((*_SUFFIXES, *_IMAGEJ)):
            return 0.0
        path = Path(source)
        if not path.is_file():
            return 0.0
        if str(source).lower().endswith(_IMAGEJ):
            return 0.9 if _selections(path) else 0.0
        head = regframe.gate.head_of(path, _HEAD)
        return 0.6 if regframe.is_text(head) else 0.1

    def open(self, source: Any) -> regframe.PointSet:
        """The positions with their table; ValueError where it is not clear which columns they are in."""
        if isinstance(source, regframe.PointSet):
            return source
        if isinstance(source, np.ndarray) or torch.is_tensor(source):
            return self._from_array(np.asarray(source))
        points = regframe.read_points(source, self.columns, self.unit)
        if self.unit and points.unit != regframe.canonical_unit(self.unit) and str(source).lower().endswith(_IMAGEJ):
            raise ValueError(
                f"wanted positions in px, as selections of ImageJ have them, got unit={self.unit!r}; leave it out"
            )
        return points

    def _from_array(self, array: np.ndarray[Any, Any]) -> regframe.PointSet:
        axes = [name.strip().lower() for name in (self.columns or "").split(",")]
        if array.ndim != 2 or array.dtype.kind not in "iuf" or array.shape[1] not in (2, 3):
            raise ValueError(
                f"wanted an array [N, 2] or [N, 3] of numbers, got shape {list(array.shape)} of {array.dtype}; make a table of it"
            )
        if sorted(axes) != ["x", "y", "z"][: array.shape[1]]:
            raise ValueError(
                f"wanted the names of the axes of an array of shape {list(array.shape)}, got {self.columns!r}; "
                "say which column is which with columns='x,y' or 'y,x'"
            )
        order = [axes.index(axis) for axis in "zyx"[3 - array.shape[1] :]]
        coords = torch.from_numpy(np.ascontiguousarray(array[:, order], dtype=np.float64))
        return regframe.PointSet(coords, self.unit or "px", name="array")

    def apply(self, source: Any, transform: regframe.Transform, grid: regframe.Grid | None = None) -> regframe.PointSet:
        """The same table in the same order, positions carried by ``transform``; ``grid`` plays no part."""
        return regframe.move_points(self.open(source), transform)

    def save(self, data: regframe.Image | regframe.PointSet, path: Path) -> None:
        """Write the table, position columns replaced; see `regframe.write_points`."""
        if not isinstance(data, regframe.PointSet):
            raise TypeError(f"wanted a PointSet to write a table, got {type(data).__name__}; use another adapter")
        regframe.write_points(data, path)

    @classmethod
    def sample(cls, folder: Path) -> Path:
        """A table of 40 cells in µm, for ``regframe plugins --check``."""
        path = Path(folder) / "sample.csv"
        rows = "".join(f"c{i},{3.5 * (i % 7)},{i / 8},kind {i % 4}\n" for i in range(40))
        path.write_text(f"id,x_um,y_um,kind\n{rows}", encoding="utf-8")
        return path


def _selections(path: Path) -> bool:
    """Whether a file is a selection of ImageJ's, or a set of them; of a set no more than its list of contents is read."""
    with path.open("rb") as file:
        if file.read(4) == b"Iout":
            return True
        file.seek(0)
        try:
            with zipfile.ZipFile(file) as archive:
                return any(name.lower().endswith(".roi") for name in archive.namelist())
        except (zipfile.BadZipFile, ValueError, RuntimeError, OSError, EOFError):
            return False


@regframe.hookimpl
def regframe_adapters() -> list[type[regframe.Adapter]]:
    """The adapters of this plug-in."""
    return [PointsAdapter, PlyAdapter, LasAdapter]


@regframe.hookimpl
def regframe_metrics() -> list[type[regframe.Metric]]:
    """The metrics of this plug-in."""
    from ._metrics import Kernel, PointMixture

    return [PointMixture, Kernel]
