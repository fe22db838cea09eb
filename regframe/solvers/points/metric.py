"""Two clouds fitted under a metric that the user chose, from the pose that the mixture found."""

from __future__ import annotations

import functools
import math
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from ... import ops, reference
from ...data import PointSet
from ...fit import measured
from ...fit.clouds import Floats, match, outliers_of, spacing_of, thinned
from ...fit.lbfgs import Descent
from ...fit.mapspace import MapSpace
from ...fit.precondition import descend
from ...fit.steps import Report
from ...maps import homogeneous
from .bend import CloudFit, Clouds, bent_start
from .straight import SHARPEST, State, stage_of

PLACES = (512, 2048)
"""Places to which both clouds are thinned, level by level, because the time of a metric may grow with the product of both
numbers."""
LEAST_WEIGHT = 1e-3
"""Smallest weight of a moving point, over the largest possible one: its weight is estimated by the mixture, not by this metric,
so it is never quite ignored."""
WORTHWHILE = 1e-4
"""Nats per moving point that the last steps of a descent must have gained together for it to continue."""
SETTLING = 30
"""EM steps after each level that estimate the mixture's σ anew; σ shrinks to the residual in far fewer."""


class PointMetric(Protocol):
    """The part of `regframe.contracts.Metric` that is used on two point sets."""

    likelihood: ClassVar[bool]

    def prepare(self, fixed: Any, moving: Any) -> None:
        """Precompute what depends on the two sides of a level alone."""
        ...

    def __call__(self, warped: Tensor, fixed: Tensor, weight: Tensor) -> Tensor:
        """The mismatch, a scalar."""
        ...


class MetricEnergy:
    """Energy of a point metric with value m, and its gradient, in nats.

    ``E(q, u) = N m + |u|²/2`` where the metric is a likelihood, ``N/2 log m + |u|²/2`` where it is not.
    N is the sum of the points' weights.
    """

    def __init__(self, p: Floats, q: Floats, weight: Floats, metric: PointMetric, maps: MapSpace) -> None:
        self.p, self.q, self.weight = (torch.from_numpy(v).to(torch.float32) for v in (p, q, weight))
        self.metric, self.maps = metric, maps
        self.observations = float(weight.sum())
        self._rim = torch.from_numpy(np.stack([q.min(axis=0), q.max(axis=0)]))
        self.n_evaluations = 0
        self.steep = False  # whether the metric ever had a gradient

    def __call__(self, x: Tensor) -> tuple[float, Tensor]:
        """Energy and gradient ``[K + P]`` at ``x``."""
        self.n_evaluations += 1
        space = self.maps.space
        q, u = self.maps.split(x.detach())
        with torch.enable_grad():
            affine = q.requires_grad_(True)
            moved, leaves = self.p, [affine]
            if space is not None and u is not None:
                velocity, grid = space.velocity(u).requires_grad_(True), space.grid
                moved = ops.flow_points(moved, velocity, grid.spacing, grid.origin, space.n_steps, False)
                leaves.append(velocity)
            pullback = self.maps.pullback(affine)
            warped = reference.carry(homogeneous.inverse(pullback).to(torch.float32), moved)
            value = measured.scalar(self.metric, self.metric(warped, self.q, self.weight))
            if not self.metric.likelihood:
                measured.check_positive(self.metric, float(value.detach()))
            value = self.observations * (value if self.metric.likelihood else 0.5 * (value + measured.FLOOR).log())
            gradients = measured.gradients(value, leaves)
        if self.n_evaluations == 1:
            measured.check_finite(self.metric, float(value.detach()), gradients)
        self.steep = self.steep or any(bool(gradient.any()) for gradient in gradients)
        if space is None or u is None:
            return float(value.detach()), gradients[0]
        regularizer = 0.5 * float(torch.linalg.vector_norm(u, dtype=torch.float64)) ** 2
        return float(value.detach()) + regularizer, torch.cat([gradients[0], space.adjoint(gradients[1]) + u])

    def constant(self, x: Tensor) -> bool:
        """Whether the metric has one value wherever the moving points lie; asked only where it never had a gradient."""
        if self.steep:
            return False
        moved = self.maps.points(x.detach(), self.p.to(torch.float64)).detach().to(torch.float32)
        return measured.constant(self.metric, moved, self.q, self.weight)

    def movement(self, change: Tensor) -> float:
        """The largest distance a change of the variables moves a point, to first order, in fixed pixels."""
        rim, bend = self.maps.moves(change, self._rim)
        return float(rim.norm(dim=1).max()) + float(bend)


def with_metric(
    metric: PointMetric, straight: State, fit: CloudFit, bent: bool, clouds: Clouds, report: Report = None
) -> CloudFit:
    """Fit the map from a pose under the user's metric, on thinned clouds; the mixture gives the weights of the points.

    Args:
        metric: the user's metric.
        straight: the pose, and the mixture's scale at it.
        fit: the pose as a fit.
        bent: whether the map may bend.
        clouds: the clouds.
        report: called after every step.
    """
    p, q, config = clouds.p, clouds.q, clouds.config
    if bent:
        fit = bent_start(straight, clouds)
    for number, count in enumerate(PLACES):
        if number and max(len(p), len(q)) <= PLACES[0]:
            break
        pl, ql = thinned(p, count), thinned(q, count)
        known = clouds.originals or (None, None)
        metric.prepare(PointSet(torch.from_numpy(ql), before=known[0]), PointSet(torch.from_numpy(pl), before=known[1]))
        fit.take_enough_steps(config)
        spacing = spacing_of(ql)
        found = match(fit.warp(pl), ql, max(straight.sigma, spacing), straight.outliers, clouds.volume)
        weight = np.bincount(found.rows.reshape(-1), found.share.reshape(-1), minlength=len(pl)).clip(LEAST_WEIGHT, 1.0)
        energy = MetricEnergy(pl, ql, weight, metric, fit.maps)
        options = config.optimizer
        descent = Descent(
            options.max_iter, options.tolerance, options.memory, worthwhile=WORTHWHILE * energy.observations
        )
        outcome = descend(
            energy, fit.x, descent, callback=functools.partial(stage_of("metric", number, config).tell, report)
        )
        fit.x, fit.energy = outcome.x, outcome.energy
        fit.n_evaluations += energy.n_evaluations
        fit.reasons.append(outcome.reason)
        fit.sigma = spacing
        for _ in range(SETTLING):
            found = match(fit.warp(pl), ql, fit.sigma, fit.outliers, clouds.volume)
            fit.outliers = outliers_of(found)
            fit.sigma = min(max(math.sqrt(found.square), SHARPEST * spacing), fit.sigma)
        fit.history.append(
            {"stage": "metric", "level": number, "iteration": outcome.iterations, "energy": outcome.energy}
        )
        fit.constant = energy.constant(fit.x)
    return fit
