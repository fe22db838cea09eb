"""Point clouds in binary files: PLY and LAS/LAZ, each with its reader as an extra."""

from __future__ import annotations

import importlib
import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

import regframe

from ._las import check_las

if TYPE_CHECKING:
    import torch
else:
    torch = regframe.later.torch

MOST_POINTS = 200_000_000
"""Points that a file may declare before it is refused unread: their positions alone take 4.8 GB in float64."""
_MOST_PER_BYTE = 8
"""Points that one byte of a file may hold at most: LAZ packs a point of regular data into a few bits."""
_HEADER = 1 << 16
"""Bytes within which the text header of a PLY file ends."""
_LAS_STEPS = 1e9
"""Steps of a LAS file's whole numbers (signed, 32 bits: 2.1e9) over the extent of the points: about a billionth of it each."""
_LEAST_STEP = 1e-12
"""Least size of such a step, in the positions' unit, for points that all lie at one place."""


class _CloudFile(regframe.Adapter):
    """Positions x, y, z in a binary file that begins with a magic word; ``reader`` is the package that reads and writes it."""

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
        self._need(path, "read")
        try:
            x, y, z, table, rest = self._read(path)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"wanted a {self.name.upper()} point cloud, got {str(path)!r} ({reason}); check the file"
            ) from error
        axes = [y, x] if z is None else [z, y, x]
        coords = torch.from_numpy(np.stack([np.asarray(a, dtype=np.float64) for a in axes], axis=1))
        names = ("y", "x") if z is None else ("z", "y", "x")
        columns = {name: [repr(v) for v in coords[:, i].tolist()] for i, name in reversed(list(enumerate(names)))}
        fields: dict[str, Any] = {"table": {**columns, **table}, "columns": names, "name": path.name}
        if rest is not None:
            return PlyCloud(coords, self.unit or "px", **fields, rest=rest)
        return regframe.PointSet(coords, self.unit or "px", **fields)

    def _read(self, path: Path) -> tuple[Any, Any, Any, dict[str, list[str]], PlyRest | None]:
        raise NotImplementedError

    def apply(self, source: Any, transform: regframe.Transform, grid: regframe.Grid | None = None) -> regframe.PointSet:
        """The same points in the same order, carried by ``transform``; ``grid`` plays no part."""
        data = source if isinstance(source, regframe.PointSet) else self.open(source)
        return regframe.move_points(data, transform)

    def save(self, data: regframe.Image | regframe.PointSet, path: Path) -> None:
        """Write the format's own file where the suffix asks for it, else a table; ValueError for a column of words."""
        if not isinstance(data, regframe.PointSet):
            raise TypeError(f"wanted a PointSet, got {type(data).__name__}; use another adapter")
        path = Path(path)
        if not path.name.lower().endswith(self.suffixes):
            regframe.write_points(data, path)
            return
        self._need(path, "write")
        columns: dict[str, Any] = {}
        for name, cells in data.table.items():
            if name in data.columns:
                continue
            try:
                values = [float(cell) for cell in cells]
            except ValueError:
                raise ValueError(
                    f"wanted columns of numbers for {path.name!r}, got words in {name!r}; write a .csv instead"
                ) from None
            whole = all(v.is_integer() and abs(v) < 2**31 for v in values)
            columns[name] = np.array(values, dtype=np.int32 if whole else np.float64)
        places = data.coords.numpy().astype(np.float64)
        z = places[:, 0] if data.ndim == 3 else None
        rest = data.rest if isinstance(data, PlyCloud) and data.rest is not None and data.rest.n == len(data) else None
        self._write(path, places[:, -1], places[:, -2], z, columns, rest)

    def _write(self, path: Path, x: Any, y: Any, z: Any, columns: dict[str, Any], rest: PlyRest | None) -> None:
        raise NotImplementedError

    def _need(self, path: Path, what: str) -> None:
        if importlib.util.find_spec(self.reader) is None:
            raise ImportError(
                f"wanted the package {self.reader} to {what} {str(path)!r}, which is not installed; "
                "get it with: pip install 'regframe[pointcloud]'"
            )


@dataclass(frozen=True)
class PlyRest:
    """What a PLY file holds beside its vertices' positions; ``n`` vertices are what its faces refer to.

    Args:
        n: number of vertices.
        elements: the file's other elements (faces, edges …), by place in the file; None stands for the vertices.
        types: numpy types of the vertices' properties by name.
        text: whether the file is text.
        comments: comment lines of the header.
    """

    n: int
    elements: tuple[Any, ...]
    types: dict[str, Any]
    text: bool
    comments: tuple[str, ...]


@dataclass(frozen=True)
class PlyCloud(regframe.PointSet):
    """The vertices of a PLY file, and what is written beside them when they have moved: they keep their order.

    Args:
        rest: everything else in the file; None where the points come from elsewhere.
    """

    rest: PlyRest | None = None


class PlyAdapter(_CloudFile):
    """Vertices of a PLY file, text or binary; every other property of a vertex is carried along as a column, faces as they are.

    Args:
        unit: of the positions, ``"px"`` where None: the format has no field for it.
    """

    name = "ply"
    magic = b"ply"
    reader = "plyfile"
    suffixes = (".ply",)

    def _read(self, path: Path) -> tuple[Any, Any, Any, dict[str, list[str]], PlyRest | None]:
        _check_size(_ply_count(path), path)
        plyfile = importlib.import_module("plyfile")
        whole = plyfile.PlyData.read(str(path), mmap=False)
        vertex = whole["vertex"].data
        names = vertex.dtype.names or ()
        if not {"x", "y"} <= set(names):
            raise ValueError(f"its vertices have {', '.join(names) or 'no properties'}, not x and y")
        table = {n: [str(v) for v in vertex[n].tolist()] for n in names if n not in ("x", "y", "z")}
        others = tuple(None if element.name == "vertex" else element for element in whole.elements)
        types = {name: vertex.dtype[name] for name in names}
        rest = PlyRest(len(vertex), others, types, bool(whole.text), tuple(whole.comments))
        return vertex["x"], vertex["y"], vertex["z"] if "z" in names else None, table, rest

    def _write(self, path: Path, x: Any, y: Any, z: Any, columns: dict[str, Any], rest: PlyRest | None) -> None:
        plyfile = importlib.import_module("plyfile")
        types = {} if rest is None else rest.types
        columns = {name: _as_before(values, types.get(name)) for name, values in columns.items()}
        fields = {"x": x, "y": y} | ({} if z is None else {"z": z}) | columns
        vertex = np.empty(len(x), dtype=[(name, values.dtype) for name, values in fields.items()])
        for name, values in fields.items():
            vertex[name] = values
        vertices = plyfile.PlyElement.describe(vertex, "vertex")
        elements = [vertices] if rest is None else [vertices if other is None else other for other in rest.elements]
        said = {} if rest is None else {"text": rest.text, "comments": list(rest.comments)}
        plyfile.PlyData(elements, **said).write(str(path))


def _as_before(values: Any, kind: Any) -> Any:
    """Values of a column in the numpy type that it had in the file, where that holds them."""
    if kind is None or kind.kind not in "iuf":
        return values
    with np.errstate(invalid="ignore", over="ignore"):
        cast = values.astype(kind)
    return cast if np.array_equal(cast, values, equal_nan=kind.kind == "f") or kind.kind == "f" else values


class LasAdapter(_CloudFile):
    """Points of a LAS file; intensity and classification are carried along as columns.

    Args:
        unit: of the positions, ``"px"`` where None: the format's own field, a code of a map projection, is not read.
    """

    name = "las"
    magic = b"LASF"
    reader = "laspy"
    suffixes = (".las", ".laz")

    def _read(self, path: Path) -> tuple[Any, Any, Any, dict[str, list[str]], PlyRest | None]:
        laspy = importlib.import_module("laspy")
        check_las(path)
        with laspy.open(str(path)) as file:
            _check_size(int(file.header.point_count), path)
            cloud = file.read()
        table = {n: [str(v) for v in np.asarray(cloud[n]).tolist()] for n in ("intensity", "classification")}
        return cloud.x, cloud.y, cloud.z, table, None

    def _write(self, path: Path, x: Any, y: Any, z: Any, columns: dict[str, Any], rest: PlyRest | None) -> None:
        """The format rounds positions to whole multiples of a step: here a billionth of the extent, or `_LEAST_STEP`."""
        laspy = importlib.import_module("laspy")
        own = {"intensity", "classification"}
        if set(columns) - own:
            raise ValueError(
                f"wanted no columns but intensity and classification for {path.name!r}, "
                f"got {', '.join(sorted(set(columns) - own))}; write a .csv instead"
            )
        axes = [x, y, np.zeros_like(x) if z is None else z]
        header = laspy.LasHeader(point_format=0, version="1.2")
        header.offsets = np.array([a.min() if len(a) else 0.0 for a in axes])
        header.scales = np.array([max(float(np.ptp(a)) / _LAS_STEPS if len(a) else 0.0, _LEAST_STEP) for a in axes])
        cloud = laspy.LasData(header)
        cloud.x, cloud.y, cloud.z = axes
        for name, values in columns.items():
            setattr(cloud, name, values)
        with path.open("wb") as file:
            cloud.write(file, do_compress=path.suffix.lower() == ".laz")


def _ply_count(path: Path) -> int:
    """How many vertices the header declares."""
    with path.open("rb") as file:
        head = file.read(_HEADER).split(b"end_header", 1)[0]
    for line in head.splitlines():
        words = line.split()
        if words[:2] == [b"element", b"vertex"] and len(words) == 3 and words[2].isdigit():
            return int(words[2])
    raise ValueError("its header declares no vertices")


def _check_size(count: int, path: Path) -> None:
    """ValueError for more points than the file can hold, before anything of that size is allocated."""
    if count > min(MOST_POINTS, _MOST_PER_BYTE * path.stat().st_size + 1):
        raise ValueError(
            f"it declares {count} points, more than its {math.ceil(path.stat().st_size / 1024)} KiB can hold"
        )
