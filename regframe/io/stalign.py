"""Points of one side in an ``.npy`` file, as STalign has them; nothing in the file is run.

| file | layout |
|---|---|
| an array (``pointsI``, ``pointsJ``) | ``[N, 2]``, rows before columns: y, x; ``[N, 3]``: z, y, x |
| what ``point_annotator.py`` saves | a dictionary ``{name: [(x, y), …]}``, pickled: x, y |

Both are in the coordinates of the side's ``x`` and ``y`` axes: its own unit.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import gate
from ..data import AXES, PointSet

_MOST = 1 << 22
"""Bytes of a file with a dictionary: some ten thousand clicks."""


def read_npy(path: str | os.PathLike[str], unit: str | None = None) -> PointSet:
    """Points of one side, with the names of STalign's structures in the column ``name``.

    Args:
        path: an ``.npy`` file in one of these layouts.
        unit: of the positions; ``"px"`` where None.

    Raises ValueError, in one sentence, for any other file.
    """
    path = Path(path)
    gate.check_file(path)
    names: list[str] = []
    with gate.reading(path, "points"):
        array = np.load(path, allow_pickle=False) if not _pickled(path) else None
    if array is None:
        names, rows = _clicked(path)
        array = np.array(rows, dtype=np.float64)[:, ::-1]
    if array.ndim != 2 or array.shape[1] not in (2, 3) or array.dtype.kind not in "fiu" or not len(array):
        raise ValueError(
            f"wanted an array [N, 2] of y, x or [N, 3] of z, y, x in {str(path)!r}, got {list(array.shape)}"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"wanted finite positions in {str(path)!r}, got others; leave these rows out")
    coords = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64))
    axes = AXES[array.shape[1]]
    table: dict[str, list[Any]] = {"name": names} if names else {}
    table |= {axis: coords[:, i].tolist() for i, axis in enumerate(axes)}
    return PointSet(coords, unit or "px", table=table, columns=tuple(axes), name=path.name)


def write_npy(points: PointSet, path: str | os.PathLike[str]) -> None:
    """The positions as an array (z,) y, x, which `read_npy` and STalign read."""
    np.save(Path(path), points.coords.numpy(), allow_pickle=False)


def _pickled(path: Path) -> bool:
    with path.open("rb") as file:
        return b"'|O'" in file.read(256)


def _clicked(path: Path) -> tuple[list[str], list[tuple[float, float]]]:
    """Names and positions (x, y) of a pickled dictionary, built from stand-ins: no name in it is looked up or called."""
    if path.stat().st_size > _MOST:
        raise ValueError(
            f"wanted at most {_MOST >> 20} MB of clicked points, got more in {str(path)!r}; save an array [N, 2]"
        )
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        header(file)
        rest = file.read()
    try:
        content = _Plain(io.BytesIO(rest)).load()
        found = content.items[0] if isinstance(content, _Array) else content
        rows = [(f"{name}{i}", float(x), float(y)) for name, points in found.items() for i, (x, y) in enumerate(points)]
    except Exception as error:
        raise ValueError(
            f"wanted a dictionary of points (x, y) in {str(path)!r} as STalign's point_annotator saves it, got another content; "
            "save the points as an array [N, 2] of y, x"
        ) from error
    if not rows:
        raise ValueError(f"wanted at least one point in {str(path)!r}, got none")
    return [name for name, _, _ in rows], [(x, y) for _, x, y in rows]


class _Array:
    """Stands in for an array; keeps its values."""

    items: Any = ()

    def __setstate__(self, state: Any) -> None:
        self.items = state[-1] if isinstance(state[-1], list) else [_double(state[-1])]


class _Type:
    """Stands in for the type of an array's values."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def _double(raw: bytes) -> float:
    (value,) = struct.unpack("<d", raw)
    return float(value)


def _scalar(_: Any, raw: bytes) -> float:
    return _double(raw)


class _Plain(pickle._Unpickler):  # that of Python itself: the compiled one allocates what the file says
    """Reads dictionaries, lists, tuples, text and numbers."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            "_reconstruct": lambda *_: _Array(),
            "ndarray": _Array,
            "dtype": _Type,
            "scalar": _scalar,
        }
        if module.split(".")[0] != "numpy" or name not in known:
            raise ValueError(f"wanted numbers, got {name}")
        return known[name]
