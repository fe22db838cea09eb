"""Point clouds in binary files: PLY and LAS/LAZ, each with its reader as an extra."""

from __future__ import annotations

import importlib
import importlib.util
import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

import regframe

MOST_POINTS = 200_000_000
"""Points that a file may declare before it is refused unread."""


class _CloudFile(regframe.Adapter):
    """What PLY and LAS share: positions x, y, z in a file with a magic word, written as a table."""

    magic: ClassVar[bytes]
    reader: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]

    def __init__(self, unit: str | None = None) -> None:
        self.unit = unit

    def matches(self, source: Any) -> float:
        """0.9 for a file with the suffix and the magic word, else 0."""
        if not isinstance(source, (str, Path)) or not str(source).lower().endswith(self.suffixes):
            return 0.0
        path = Path(source)
        if not path.is_file():
            return 0.0
        with path.open("rb") as file:
            return 0.9 if file.read(len(self.magic)) == self.magic else 0.0

    def open(self, source: Any) -> regframe.PointSet:
        """The positions, in the file's order; ImportError names the extra where the reader is missing."""
        path = Path(source)
        if importlib.util.find_spec(self.reader) is None:
            raise ImportError(
                f"wanted the package {self.reader} to read {str(path)!r}, which is not installed; "
                "get it with: pip install 'regframe[pointcloud]'"
            )
        try:
            x, y, z, table = self._read(path)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"wanted a {self.name.upper()} point cloud, got {str(path)!r} ({reason}); check the file"
            ) from error
        axes = [y, x] if z is None else [z, y, x]
        coords = torch.from_numpy(np.stack([np.asarray(a, dtype=np.float64) for a in axes], axis=1))
        names = ("y", "x") if z is None else ("z", "y", "x")
        columns = {name: [repr(v) for v in coords[:, i].tolist()] for i, name in reversed(list(enumerate(names)))}
        return regframe.PointSet(coords, self.unit or "px", table={**columns, **table}, columns=names, name=path.name)

    def _read(self, path: Path) -> tuple[Any, Any, Any, dict[str, list[str]]]:
        raise NotImplementedError

    def apply(self, source: Any, transform: regframe.Transform, grid: regframe.Grid | None = None) -> regframe.PointSet:
        """The same points in the same order, carried by ``transform``; ``grid`` plays no part."""
        data = source if isinstance(source, regframe.PointSet) else self.open(source)
        return regframe.move_points(data, transform)

    def save(self, data: regframe.Image | regframe.PointSet, path: Path) -> None:
        """Write a table beside what the suffix says: ``.csv`` takes the place of the cloud's own."""
        if not isinstance(data, regframe.PointSet):
            raise TypeError(f"wanted a PointSet, got {type(data).__name__}; use another adapter")
        regframe.write_points(data, path)


class PlyAdapter(_CloudFile):
    """Vertices of a PLY file, text or binary; every other property of a vertex is carried along as a column.

    Args:
        unit: what the positions are in, ``"px"`` where None: the format has no field for it.
    """

    name = "ply"
    magic = b"ply"
    reader = "plyfile"
    suffixes = (".ply",)

    def _read(self, path: Path) -> tuple[Any, Any, Any, dict[str, list[str]]]:
        _check_size(_ply_count(path), path)
        plyfile = importlib.import_module("plyfile")
        vertex = plyfile.PlyData.read(str(path), mmap=False)["vertex"].data
        names = vertex.dtype.names or ()
        if not {"x", "y"} <= set(names):
            raise ValueError(f"its vertices have {', '.join(names) or 'no properties'}, not x and y")
        table = {n: [str(v) for v in vertex[n].tolist()] for n in names if n not in ("x", "y", "z")}
        return vertex["x"], vertex["y"], vertex["z"] if "z" in names else None, table


class LasAdapter(_CloudFile):
    """Points of a LAS file; intensity and classification are carried along as columns.

    Args:
        unit: what the positions are in, ``"px"`` where None.
    """

    name = "las"
    magic = b"LASF"
    reader = "laspy"
    suffixes = (".las", ".laz")

    def _read(self, path: Path) -> tuple[Any, Any, Any, dict[str, list[str]]]:
        laspy = importlib.import_module("laspy")
        with laspy.open(str(path)) as file:
            _check_size(int(file.header.point_count), path)
            cloud = file.read()
        table = {n: [str(v) for v in np.asarray(cloud[n]).tolist()] for n in ("intensity", "classification")}
        return cloud.x, cloud.y, cloud.z, table


def _ply_count(path: Path) -> int:
    """Vertices that the header declares."""
    with path.open("rb") as file:
        head = file.read(1 << 16).split(b"end_header", 1)[0]
    for line in head.splitlines():
        words = line.split()
        if words[:2] == [b"element", b"vertex"] and len(words) == 3 and words[2].isdigit():
            return int(words[2])
    raise ValueError("its header declares no vertices")


def _check_size(count: int, path: Path) -> None:
    """Refuse a count that cannot be, before anything of that size is allocated."""
    if count > min(MOST_POINTS, 8 * path.stat().st_size + 1):
        raise ValueError(
            f"it declares {count} points, more than its {math.ceil(path.stat().st_size / 1024)} KiB can hold"
        )
