"""Maps given by displacements on a grid, the form in which other programs store maps."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..data import Grid, tensor_of
from .base import OnGrid, Transform, check_coords, check_grid, finite_only


@dataclass(frozen=True)
class Displacement(OnGrid):
    """``x -> x + d(x)`` with ``d`` multilinear on a grid and zero outside it (fading over one cell).

    Args:
        field: ``[D, *S]`` in ``grid.unit``, components in tensor-axis order.
        grid: grid of its nodes.
        inverted: True for the inverse of ``x + d(x)``, which is solved by Newton's method; set by ``inverse()``.
    """

    field: Tensor
    grid: Grid
    inverted: bool = False

    def __repr__(self) -> str:
        """Sizes in place of numbers."""
        nodes, backwards = " × ".join(map(str, self.grid.shape)), ", inverted" if self.inverted else ""
        return f"Displacement({nodes} nodes, {self.grid.unit}{backwards})"

    def __post_init__(self) -> None:
        object.__setattr__(self, "field", tensor_of(self.field).detach().cpu())
        if tuple(self.field.shape) != (self.grid.ndim, *self.grid.shape):
            raise ValueError(f"wanted a field [{self.grid.ndim}, {self.grid.shape}], got {tuple(self.field.shape)}")
        if not torch.isfinite(self.field).all():
            raise ValueError("wanted a finite displacement, got NaN or inf entries")

    def points(self, coords: Tensor) -> Tensor:  # noqa: D102
        x = check_coords(coords, self.ndim)
        # a flow of one Euler step with velocity -d: towards the moving image it maps x to x + d(x), towards the fixed image
        # it solves for the inverse
        velocity = -self.field.to(torch.float64)[None]
        return finite_only(
            lambda p: ops.flow_points(p, velocity, self.grid.spacing, self.grid.origin, 1, not self.inverted), x
        )

    def inverse(self) -> Displacement:  # noqa: D102
        return dataclasses.replace(self, inverted=not self.inverted)


def displacement_of(transform: Transform, grid: Grid) -> Displacement:
    """The displacement ``points(x) - x`` of any map at the pixels of ``grid``, a grid of the map's source space.

    Raises ValueError where the two sides of the map have different units, or ``grid`` lies elsewhere.
    """
    check_grid(transform, grid)
    if transform.source_unit != transform.target_unit:
        raise ValueError(
            f"wanted a map within one unit, got {transform.source_unit} → {transform.target_unit}; "
            "a displacement between two units has no meaning: keep the affine part apart"
        )
    coords = grid.coords()
    field = (transform.points(coords) - coords).movedim(-1, 0).contiguous()  # [D, *S]
    return Displacement(field, grid)
