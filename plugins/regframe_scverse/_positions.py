"""Positions at the door of both containers: from their order (x, y) to a side's (y, x) in its unit, and back."""

from __future__ import annotations

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
