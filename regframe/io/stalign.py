"""Points of one side in an ``.npy`` file, as STalign has them; nothing in the file is run.

| file | layout |
|---|---|
| an array (``pointsI``, ``pointsJ``) | ``[N, 2]``, rows before columns: y, x; ``[N, 3]``: z, y, x |
| what ``point_annotator.py`` saves | a dictionary ``{name: [(x, y), …]}``, pickled: x, y |

Both are in the coordinates of the side's ``x`` and ``y`` axes: its own unit.
"""

from __future__ import annotations

import os
import pickletools
import struct
from dataclasses import dataclass
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
        content = _read(rest)
        found = content.state[-1][0] if isinstance(content, _Made) else content
        rows = [
            (f"{name}{i}", _number(x), _number(y)) for name, points in found.items() for i, (x, y) in enumerate(points)
        ]
    except Exception as error:
        raise ValueError(
            f"wanted a dictionary of points (x, y) in {str(path)!r} as STalign's point_annotator saves it, got another content; "
            "save the points as an array [N, 2] of y, x"
        ) from error
    if not rows:
        raise ValueError(f"wanted at least one point in {str(path)!r}, got none")
    return [name for name, _, _ in rows], [(x, y) for _, x, y in rows]


@dataclass
class _Made:
    """What the file would have a function make: the function's name, its arguments, and a state; none is looked up or called."""

    name: str
    arguments: Any
    state: Any = ()


def _number(value: Any) -> float:
    """A number of a click: a plain one, or one of numpy's, whose eight bytes lie in its arguments or its state."""
    if isinstance(value, _Made):
        raw = value.arguments[1] if value.name.endswith(" scalar") else value.state[-1]
        (value,) = struct.unpack("<d", raw)
    return float(value)


def _read(data: bytes) -> Any:
    """The dictionaries, lists, tuples, text and numbers that pickle instructions describe.

    The instructions are taken apart by `pickletools`, which runs none, and replayed on plain values alone; ValueError for one
    that is not listed here.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def marked() -> list[Any]:
        start = marks.pop()
        values = stack[start:]
        del stack[start:]
        return values

    def last(count: int) -> list[Any]:
        values = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return values

    argument: Any
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in ("PROTO", "FRAME", "STOP"):
            continue
        if name == "MARK":
            marks.append(len(stack))
        elif name in _LITERALS:
            stack.append(argument)
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            memo[len(memo) if name == "MEMOIZE" else int(argument)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument)])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(last(int(name[-1]))))
        elif name in ("TUPLE", "LIST"):
            stack.append((tuple if name == "TUPLE" else list)(marked()))
        elif name in ("APPEND", "APPENDS"):
            values = last(1) if name == "APPEND" else marked()
            stack[-1].extend(values)
        elif name in ("DICT", "SETITEM", "SETITEMS"):
            values = last(2) if name == "SETITEM" else marked()
            if name == "DICT":
                stack.append({})
            stack[-1].update(zip(values[::2], values[1::2], strict=True))
        elif name == "GLOBAL":
            stack.append(str(argument))
        elif name == "STACK_GLOBAL":
            stack.append(" ".join(last(2)))
        elif name == "REDUCE":
            stack.append(_Made(*last(2)))
        elif name == "BUILD":
            (state,) = last(1)
            stack[-1].state = state
        else:
            raise ValueError(f"wanted numbers and text, got the instruction {name}")
    (value,) = stack
    return value


_LITERALS = frozenset(
    ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
     "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
)  # fmt: skip
_EMPTY: dict[str, type] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
"""Instructions of pickle that put a value on the stack: the one they carry, an empty one, a constant."""
