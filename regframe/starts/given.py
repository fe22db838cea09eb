"""A start that is given: as the files lie, landmarks, or an affine map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..config import Config
from ..data import Grid
from ..maps.affine import Affine
from ..maps.base import Transform
from ..maps.homogeneous import determinant
from .landmarks import Landmarks, fit_points


def given(grids: tuple[Grid, Grid], init: Any, ratio: float | None, config: Config) -> Tensor | None:
    """The start ``A`` ``[D+1, D+1]`` that ``init`` names, in physical units; None where it has to be searched for."""
    fixed, moving = grids
    ndim = moving.ndim
    if config.transform == "rigid" and ratio is None:
        raise ValueError(
            f"wanted both sides in length units for a rigid map, got fixed in {fixed.unit} and moving in "
            f"{moving.unit}; state the missing spacing or unit, or use transform='similarity'"
        )
    if isinstance(init, str) and init == "auto":
        return None
    if isinstance(init, str) and init == "identity":
        return torch.diag(torch.tensor([*[ratio or 1.0] * ndim, 1.0], dtype=torch.float64))
    if isinstance(init, Landmarks):
        if init.moving.shape[1] != ndim:
            raise ValueError(f"wanted landmarks of {ndim} components, got {init.moving.shape[1]}")
        kind = "affine" if config.transform == "lddmm" else config.transform
        matrix = fit_points(init.moving * (ratio or 1.0), init.fixed, kind)[0].matrix.clone()
        matrix[:-1, :-1] = matrix[:-1, :-1] * (ratio or 1.0)
        if not float(determinant(matrix).abs()) > 0:
            raise ValueError("wanted landmarks that give an invertible map, got a singular one; check their pairing")
        return matrix
    if not isinstance(init, Transform):
        raise ValueError(f"wanted init 'auto', 'identity', landmarks, a Transform or a Result, got {init!r}")
    parts = init.parts()
    if len(parts) != 1 or not isinstance(parts[0], Affine) or init.ndim != ndim:
        raise ValueError(
            f"wanted an affine map of {ndim}D to start from, got {type(init).__name__} of {init.ndim}D; "
            "pass the .affine of a result"
        )
    if (init.source_unit, init.target_unit) != (moving.unit, fixed.unit):
        raise ValueError(
            f"wanted a start from {moving.unit} to {fixed.unit}, got one from {init.source_unit} to {init.target_unit}"
        )
    return parts[0].matrix


def check_inside(pairs: Landmarks, fixed: Grid, moving: Grid) -> None:
    """Raise ValueError for landmarks outside the images, or of another dimension."""
    for coords, grid, side in ((pairs.fixed, fixed, "fixed"), (pairs.moving, moving, "moving")):
        if coords.shape[1] != grid.ndim:
            raise ValueError(f"wanted {side} landmarks of {grid.ndim} components, got {coords.shape[1]}")
        outside = int((~grid.contains(coords)).sum())
        if outside:
            raise ValueError(
                f"wanted {side} landmarks inside the {side} image, got {outside} of {len(coords)} outside; "
                "check their unit and the order of x and y"
            )
