"""The flow of a velocity, whose inverse is exact."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..data import Grid, tensor_of
from .base import OnGrid, check_coords, finite_only


@dataclass(frozen=True)
class Flow(OnGrid):
    """The end of the flow of a time-dependent velocity: a diffeomorphism of one space onto itself.

    ``points`` carries a moving-space position along ``φ₁`` (towards the fixed image); ``inverse().points`` carries it back by the
    pull-back rule of docs/method.md. The two are exact inverses of each other (see `regframe.reference`).

    Args:
        velocity: ``[T, D, *S]`` in ``grid.unit`` per unit time.
        grid: grid of its nodes; outside it the velocity is zero.
        n_steps: total number of Euler steps, a multiple of T; T where None.
        reverse: True for ``φ₁⁻¹``; set by ``inverse()``.
    """

    velocity: Tensor
    grid: Grid
    n_steps: int | None = None
    reverse: bool = False

    def __repr__(self) -> str:
        """Sizes in place of numbers."""
        nodes, backwards = " × ".join(map(str, self.grid.shape)), ", reverse" if self.reverse else ""
        return (
            f"Flow({nodes} nodes, {len(self.velocity)} time slices, {self.n_steps} steps, {self.grid.unit}{backwards})"
        )

    def __post_init__(self) -> None:
        object.__setattr__(self, "velocity", tensor_of(self.velocity).detach().cpu())
        if self.velocity.ndim != 2 + self.grid.ndim or tuple(self.velocity.shape[2:]) != self.grid.shape:
            raise ValueError(f"wanted a velocity [T, D, {self.grid.shape}], got {tuple(self.velocity.shape)}")
        if self.velocity.shape[1] != self.grid.ndim:
            raise ValueError(f"wanted {self.grid.ndim} components of velocity, got {self.velocity.shape[1]}")
        if not torch.isfinite(self.velocity).all():
            raise ValueError("wanted a finite velocity, got NaN or inf entries")
        n_slices = int(self.velocity.shape[0])
        n_steps = n_slices if self.n_steps is None else int(self.n_steps)
        if n_slices < 1 or n_steps < 1 or n_steps % n_slices:
            raise ValueError(f"wanted n_steps as a multiple of the {n_slices} time slices, got {n_steps}")
        object.__setattr__(self, "n_steps", n_steps)

    def points(self, coords: Tensor) -> Tensor:  # noqa: D102
        x = check_coords(coords, self.ndim)
        assert self.n_steps is not None
        return finite_only(
            lambda p: ops.flow_points(
                p, self.velocity.to(torch.float64), self.grid.spacing, self.grid.origin, self.n_steps or 1, self.reverse
            ),
            x,
        )

    def inverse(self) -> Flow:  # noqa: D102
        return dataclasses.replace(self, reverse=not self.reverse)
