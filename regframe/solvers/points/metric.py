"""Two clouds under a metric of somebody's choice, from the pose that the mixture found."""

from __future__ import annotations

import functools
import math
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from ... import ops, reference
from ...config import Config
from ...data import PointSet
from ...fit.clouds import Floats, match, outliers_of, spacing_of, thinned
from ...fit.frames import Increment
from ...fit.lbfgs import minimize
from ...fit.velocity import VelocitySpace, enough_steps
from ...maps import homogeneous
from .bend import CloudFit, bent_start
from .straight import SHARPEST, State, Tell

# ---- another metric ------------------------------------------------------------------------------------------------


class PointMetric(Protocol):
    """What is asked of a metric of two point sets (see `regframe.contracts.Metric`)."""

    likelihood: ClassVar[bool]

    def prepare(self, fixed: Any, moving: Any) -> None:
        """Look at both sides of a level."""
        ...

    def __call__(self, warped: Tensor, fixed: Tensor, weight: Tensor) -> Tensor:
        """Mismatch, a scalar."""
        ...


class MetricEnergy:
    """``E(q, u) = N m + |u|²/2`` (``N/2 log m`` where m is no likelihood) of any point metric, and its gradient."""

    def __init__(
        self, p: Floats, q: Floats, weight: Floats, metric: PointMetric, start: Tensor, increment: Increment,
        space: VelocitySpace | None,
    ) -> None:  # fmt: skip
        self.p, self.q, self.weight = (torch.from_numpy(v).to(torch.float32) for v in (p, q, weight))
        self.metric, self.start, self.increment, self.space = metric, start, increment, space
        self.observations = float(weight.sum())
        self._rim = torch.from_numpy(np.stack([q.min(axis=0), q.max(axis=0)]))
        self._zoom = float(homogeneous.determinant(start).abs()) ** (-1 / p.shape[1])
        self.n_evaluations = 0

    def __call__(self, x: Tensor) -> tuple[float, Tensor]:
        """Energy and gradient ``[K + P]`` at ``x``."""
        self.n_evaluations += 1
        size = self.increment.size
        u = x[size:].detach()
        with torch.enable_grad():
            affine = x[:size].detach().requires_grad_(True)
            moved, leaves = self.p, [affine]
            if self.space is not None:
                velocity, grid = self.space.velocity(u).requires_grad_(True), self.space.grid
                moved = ops.flow_points(moved, velocity, grid.spacing, grid.origin, self.space.n_steps, False)
                leaves.append(velocity)
            pullback = homogeneous.compose(self.start, self.increment.matrix(affine))
            warped = reference.carry(homogeneous.inverse(pullback).to(torch.float32), moved)
            value = self.metric(warped, self.q, self.weight)
            value = self.observations * (value if self.metric.likelihood else 0.5 * (value + 1e-5).log())
            gradients = torch.autograd.grad(value, leaves)
        if self.space is None:
            return float(value.detach()), gradients[0]
        regularizer = 0.5 * float(torch.linalg.vector_norm(u, dtype=torch.float64)) ** 2
        return float(value.detach()) + regularizer, torch.cat([gradients[0], self.space.adjoint(gradients[1]) + u])

    def movement(self, change: Tensor) -> float:
        """The largest distance a change of the variables moves a point, to first order, in fixed pixels."""
        size = self.increment.size
        step = self.increment.matrix(change[:size]) - torch.eye(self.p.shape[1] + 1, dtype=torch.float64)
        moved = float(reference.carry(step, self._rim).norm(dim=1).max())
        if self.space is not None:
            displacement = self.space.velocity(change[size:]).mean(dim=0)
            moved += self._zoom * float(displacement.square().sum(dim=0).max().sqrt())
        return moved


def with_metric(
    metric: PointMetric, straight: State, fit: CloudFit, bent: bool, p: Floats, q: Floats, before: float, config: Config,
    tell: Tell | None,
) -> CloudFit:  # fmt: skip
    """The same pose, settled (and bent) with a metric of somebody's choice on thinned clouds; the mixture gives the weights."""
    if bent:
        fit = bent_start(straight, p, q, before, config)
    for number, count in enumerate((512, 2048)):
        if number and max(len(p), len(q)) <= 512:
            break
        pl, ql = thinned(p, count), thinned(q, count)
        volume = float(np.prod(np.ptp(q, axis=0)))
        metric.prepare(PointSet(torch.from_numpy(ql)), PointSet(torch.from_numpy(pl)))
        if fit.space is not None and config.n_steps is None:
            fit.space = enough_steps(fit.space, fit.x[fit.increment.size :])
        found = match(fit.warp(pl), ql, max(straight.sigma, spacing_of(ql)), straight.outliers, volume)
        weight = np.bincount(found.rows.reshape(-1), found.share.reshape(-1), minlength=len(pl)).clip(1e-3, 1.0)
        energy = MetricEnergy(pl, ql, weight, metric, fit.start, fit.increment, fit.space)
        outcome = minimize(
            energy, fit.x, energy.movement, max_iter=config.optimizer.max_iter, tolerance=config.optimizer.tolerance,
            memory=config.optimizer.memory, worthwhile=1e-4 * energy.observations,
            callback=None if tell is None else functools.partial(tell, "metric", number),
        )  # fmt: skip
        fit.x, fit.energy = outcome.x, outcome.energy
        fit.n_evaluations += energy.n_evaluations
        fit.reasons.append(outcome.reason)
        fit.sigma = spacing_of(ql)
        for _ in range(30):
            found = match(fit.warp(pl), ql, fit.sigma, fit.outliers, volume)
            fit.outliers = outliers_of(found)
            fit.sigma = min(max(math.sqrt(found.square), SHARPEST * spacing_of(ql)), fit.sigma)
        fit.history.append(
            {"stage": "metric", "level": number, "iteration": outcome.iterations, "energy": outcome.energy}
        )
    return fit
