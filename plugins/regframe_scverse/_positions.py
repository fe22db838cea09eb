"""Positions at the door of both containers: from their order (x, y) to a side's (y, x) in its unit, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

import regframe

Array = NDArray[np.float64]
Side = Literal["fixed", "moving"]
"""A side of a registration, here the one that data are carried to."""


def sides(result: regframe.Result, to: Side) -> tuple[regframe.Grid, regframe.Grid, regframe.Transform]:
    """Canvas of the side that data come from, canvas of the side that they go to, and the map from one to the other."""
    if not isinstance(result, regframe.Result):
        raise TypeError(f"wanted a regframe.Result, got {type(result).__name__}; load a saved one with regframe.load")
    if to == "fixed":
        return result.moving_grid, result.fixed_grid, result.transform
    if to == "moving":
        return result.fixed_grid, result.moving_grid, result.transform.inverse()
    raise ValueError(f"wanted 'fixed' or 'moving' as the side to go to, got {to!r}; choose one")


def ratio(unit: str | None, side: regframe.Grid, what: str) -> float:
    """Factor from ``unit`` to that of ``side``; ValueError where it is needed and not stated, or cannot be converted.

    ``what`` says in an error which positions the unit is of.
    """
    if unit is None and side.unit != "px":
        raise ValueError(
            f"wanted the unit of {what}, which declares none, for a side in {side.unit}, got none; state it with unit=..."
        )
    stated = regframe.canonical_unit(unit)
    factor = regframe.unit_ratio(stated, side.unit)
    if factor is None:
        raise ValueError(
            f"wanted {what} in a unit that converts to {side.unit}, as the side it belongs to, got {stated}; multiply "
            f"by the size of a pixel and state that unit, or register with a spacing"
        )
    return factor


def axes_of(entry: Any, columns: str | None, ndim: int, what: str) -> tuple[list[int], str | None]:
    """Numbers of the columns of an entry of ``obsm`` that hold x, y(, z), in this order, and the unit that their names state.

    Args:
        entry: an array ``[N, K]`` or a data frame.
        columns: what the user names, ``"x=0,y=1"``, by number or name; None: by the names of a frame, else in order.
        ndim: 2 or 3, of the side that the positions belong to.
        what: name of the entry, for errors.

    Raises ValueError where it is open which columns they are.
    """
    names = [str(name) for name in getattr(entry, "columns", ())]
    count = int(np.shape(entry)[1]) if np.ndim(entry) == 2 else 0
    wanted = "xyz"[:ndim]
    if columns is None and names and not all(name.isdigit() for name in names):
        table = regframe.PointTable(Path(what), {name: [] for name in names}, ())
        chosen, unit = regframe.position_columns(table, None)
        return [names.index(name) for name in reversed(chosen)], unit
    if columns is None:
        return list(range(count)), None
    items = [item.partition("=") for item in columns.replace(" ", "").split(",")]
    stated = {axis: name if equals else axis for axis, equals, name in items}
    known = names or list("xyz"[:count])
    places = [
        known.index(name) if (name := stated.get(axis, "")) in known else int(name) if name.isdecimal() else -1
        for axis in wanted
    ]
    if sorted(stated) != list(wanted) or not all(0 <= place < count for place in places):
        raise ValueError(
            f"wanted a column of {what} ({count} columns) for each of {', '.join(wanted)}, got {columns!r}; write e.g. x=0,y=1"
        )
    return places, None


def points(xyz: Any, scale: float, side: regframe.Grid, what: str) -> regframe.PointSet:
    """Positions ``[N, D]`` in the order x, y(, z) as a `PointSet` in the unit of ``side``; NaN stays NaN.

    Args:
        xyz: the positions, whole numbers or floats.
        scale: factor that they are multiplied by.
        side: grid of the side that they belong to.
        what: name of the entry that holds them, for errors.
    """
    array = np.asarray(xyz)
    if array.ndim != 2 or array.shape[1] != side.ndim or array.dtype.kind not in "iuf":
        names = ", ".join(side.axes[::-1])
        raise ValueError(
            f"wanted positions [N, {side.ndim}] ({names}) in {what}, got shape {list(array.shape)} of {array.dtype}; "
            "name the entry that holds them"
        )
    if len(array) and not np.isfinite(array).any():
        raise ValueError(f"wanted positions in {what}, got no finite one; check how it was made")
    turned = np.ascontiguousarray(array[:, ::-1], dtype=np.float64) * scale
    return regframe.PointSet(torch.from_numpy(turned), side.unit, name=what)


def turned(coords: torch.Tensor) -> Array:
    """A copy of positions ``[N, D]``, from tensor order to the order x, y(, z)."""
    return np.ascontiguousarray(coords.numpy()[:, ::-1])
