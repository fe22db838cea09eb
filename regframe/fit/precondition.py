"""Variables in which an energy is about equally curved along all, and descent in them.

The matching term holds the coarsest waves of a velocity many orders of magnitude more firmly than the finest; in the variables of
`Preconditioner` L-BFGS need not learn that.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from .energy import Energy
from .lbfgs import Descent, Outcome, minimize
from .mapspace import MapSpace

FIRST_STEP = 0.25
"""First step over the gradient in preconditioned variables: the inverse of the curvature there, which is about 1 and seldom above
4 (5 to 7 at most on the synthetic pair of the benchmarks)."""


class Objective(Protocol):
    """An energy of the variables of a `MapSpace`."""

    def __call__(self, x: Tensor) -> tuple[float, Tensor]:
        """Energy and gradient ``[K + P]`` at ``x`` ``[K + P]``."""
        ...

    def movement(self, change: Tensor) -> float:
        """The largest distance that a change of the variables moves anything, in the energy's own pixels."""
        ...


class Preconditioner:
    """A symmetric linear change of variables ``x = P z`` in which the energy is about equally curved along all of them.

    The matching term curves the energy by ``N |∇f|² / m`` per squared pixel of displacement. Against the prior that is
    nothing for the finest waves and everything for the coarsest, whose variables are therefore scaled down, each by the
    square root of its own curvature.

    Args:
        maps: what the variables mean; maps that bend.
        canvas: how many nodes of the velocity's grid of waves lie on the moving canvas.
        curvature: of the energy, per squared fixed pixel of displacement of the whole canvas.
    """

    def __init__(self, maps: MapSpace, canvas: float, curvature: float) -> None:
        increment, space = maps.increment, maps.space
        assert space is not None
        # a canvas turned by one pixel at its rim moves by 6^-1/2 of it per axis
        q = torch.full((increment.size,), 6.0**0.5, dtype=torch.float32)
        q[: increment.ndim] = 1.0
        moving = curvature * maps.zoom**2  # per squared moving pixel
        hessian = moving / (canvas * space.n_slices) * space.symbol.to(torch.float64) ** 2
        u = ((1 + hessian) ** -0.5)[..., None].expand(*space.shape, 2)
        self._scale = torch.cat([q / math.sqrt(max(curvature, 1e-12)), u.reshape(-1).to(torch.float32)])

    def __call__(self, z: Tensor) -> Tensor:
        """``x`` ``[K + P]`` of ``z`` ``[K + P]``; also from a gradient in ``x`` to the one in ``z``."""
        return z * self._scale

    def inverse(self, x: Tensor) -> Tensor:
        """``z`` ``[K + P]`` of ``x`` ``[K + P]``."""
        return x / self._scale


def precondition(energy: Energy, predicted: Tensor) -> Preconditioner:
    """Variables in which ``energy`` is about equally curved, judged by the contrast-mapped moving image ``[C_f, *S_f]``."""
    space = energy.maps.space
    assert space is not None
    level, ndim = energy.level, energy.level.fixed_grid.ndim
    w = energy.weight
    total = w.sum().clamp(min=1e-12)
    residual = float((((level.fixed - predicted) ** 2).mean(dim=0) * w).sum() / total)
    slope = 0.0  # mean squared derivative along an axis, per fixed pixel
    for d in range(ndim):
        if predicted.shape[1 + d] > 2:
            n = predicted.shape[1 + d]
            step = (predicted.narrow(1 + d, 2, n - 2) - predicted.narrow(1 + d, 0, n - 2)) / (
                2 * level.fixed_grid.spacing[d]
            )
            slope += float(((step**2).mean(dim=0) * w.narrow(d, 1, n - 2)).sum() / total) / ndim
    curvature = energy.observations * slope / max(residual, 1e-5)
    canvas = math.prod(level.moving_grid.extent) / math.prod(space.waves.spacing)
    return Preconditioner(energy.maps, max(canvas, 1.0), curvature)


def descend(
    energy: Objective,
    x: Tensor,
    descent: Descent,
    change: Preconditioner | None = None,
    callback: Callable[[int, float], None] | None = None,
) -> Outcome:
    """Minimise an energy from ``x`` ``[K + P]``, in the variables of ``change`` where there is one; see `lbfgs.minimize`.

    The variables of an affine increment alone are scaled to pixels already and need no change.
    """
    if change is None:
        return minimize(energy, x, energy.movement, descent, callback)

    def changed(z: Tensor) -> tuple[float, Tensor]:
        value, gradient = energy(change(z))
        return value, change(gradient)

    outcome = minimize(
        changed,
        change.inverse(x),
        lambda z: energy.movement(change(z)),
        dataclasses.replace(descent, first_step=FIRST_STEP),
        callback,
    )
    return dataclasses.replace(outcome, x=change(outcome.x))
