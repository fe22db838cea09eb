"""Preconditioned descent: variables in which the energy is about equally curved along every direction.

The matching term holds the longest waves of a velocity many orders of magnitude more firmly than the shortest. L-BFGS would
have to learn that; in the variables of `Preconditioner` it is already accounted for.
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
"""First step as a multiple of the gradient, in preconditioned variables: the inverse of the curvature, which is about 1 there
and seldom above 4 (at most 5 to 7 on the synthetic pair of the benchmarks)."""


class Objective(Protocol):
    """An energy of the variables of a `MapSpace`."""

    def __call__(self, x: Tensor) -> tuple[float | Tensor, Tensor]:
        """Energy and gradient ``[K + P]`` at ``x`` ``[K + P]``."""
        ...

    def movement(self, change: Tensor) -> float | Tensor:
        """The largest distance that a change of the variables moves anything, in the energy's own pixels."""
        ...


class Preconditioner:
    """A linear scaling of the variables ``x = P z`` under which the energy is about equally curved along all of them.

    The matching term contributes a curvature of ``N |∇f|² / m`` per squared pixel of displacement. Relative to the prior this is
    negligible for the shortest waves and dominant for the longest. Each variable is therefore divided by the square root of
    its own curvature.

    Args:
        maps: the maps that the variables choose among; they must bend.
        canvas: number of nodes of the grid of waves that lie on the moving canvas.
        curvature: curvature of the energy, in nats per squared fixed pixel of a displacement of the whole canvas.
    """

    def __init__(self, maps: MapSpace, canvas: float, curvature: float) -> None:
        increment, space = maps.increment, maps.space
        assert space is not None
        # turning the canvas by one pixel at its rim displaces it by 6^-1/2 pixels rms per axis
        q = torch.full((increment.size,), 6.0**0.5, dtype=torch.float32, device=space.device)
        q[: increment.ndim] = 1.0
        moving = curvature * maps.zoom**2  # per squared moving pixel
        hessian = moving / (canvas * space.n_slices) * space.symbol.to(torch.float64) ** 2
        u = ((1 + hessian) ** -0.5)[..., None].expand(*space.shape, 2)
        self._scale = torch.cat([q / math.sqrt(max(curvature, 1e-12)), u.reshape(-1).to(torch.float32)])

    def __call__(self, z: Tensor) -> Tensor:
        """``x`` ``[K + P]`` from ``z`` ``[K + P]``; also, as P is symmetric, the gradient in ``z`` from that in ``x``."""
        return z * self._scale

    def inverse(self, x: Tensor) -> Tensor:
        """``z`` ``[K + P]`` of ``x`` ``[K + P]``."""
        return x / self._scale


def precondition(energy: Energy, predicted: Tensor) -> Preconditioner:
    """The preconditioner of an energy, from its curvature at the current map.

    Args:
        energy: the energy; its maps must bend.
        predicted: the contrast-mapped moving image ``[C_f, *S_f]``, whose gradient gives the curvature.
    """
    space = energy.maps.space
    assert space is not None
    level, ndim = energy.level, energy.level.fixed_grid.ndim
    w = energy.weight
    total = w.sum().clamp(min=1e-12)
    residual = float((((level.fixed - predicted) ** 2).mean(dim=0) * w).sum() / total)
    slope = 0.0  # squared derivative per fixed pixel, mean over pixels, channels and axes
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
    """Minimise an energy from ``x`` ``[K + P]``, in preconditioned variables where ``change`` is given; see `lbfgs.minimize`.

    Affine increments alone need no preconditioner: their variables are scaled to pixels.
    """
    if change is None:
        return minimize(energy, x, energy.movement, descent, callback)

    def changed(z: Tensor) -> tuple[float | Tensor, Tensor]:
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
