"""The bent map of two clouds: a velocity under the mixture's likelihood, followed from a wide scale to a narrow one."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ... import ops, reference
from ...config import Config
from ...data import Grid
from ...fit.clouds import SMALL, Floats, match, outliers_of, some, spacing_of, thinned
from ...fit.frames import Increment
from ...fit.lbfgs import FIRST_STEP, minimize
from ...fit.velocity import Preconditioner, VelocitySpace, enough_steps, smooth_size
from ...maps import homogeneous
from .straight import LEAST_MATCHED, MOST_FITTED, THINNED, WIDE, State, Tell

COOLING_BEND = (0.75, 0.55)
"""The same for a bent map, of up to `SMALL` fixed points and of more."""
SHARPEST_BEND = (0.05, 0.15)
"""The same of a bent one, of up to `SMALL` fixed points and of more."""


# ---- bent maps -----------------------------------------------------------------------------------------------------

SCALE = 0.15
"""Default length a of the Sobolev operator, as a fraction of the moving canvas' extent (geometric mean of its sides)."""
NODES = {2: 3.0, 3: 2.0}
"""Velocity nodes per length a, by dimension."""
DEVIATION = 0.1
"""Prior standard deviation of a displacement before anything is known, as the same fraction."""
DEVIATION_MARGIN = 2.0
"""The prior deviation over the rms displacement found so far."""
DEVIATION_FLOOR = 0.03
"""Smallest prior deviation, in moving pixels."""
WORTH = 3e-3
"""Nats per fixed point that the last steps of a descent must have gained to go on."""
ROUNDS = 1
"""Times the neighbours are looked for at every scale."""
STEPS = (8, 5)
"""Descent steps between, of up to `SMALL` fixed points and of more."""
MOST_VARIABLES = 400_000
"""Values of a velocity at most."""


class CloudEnergy:
    """``E(q, u) = -Σ_j log p(y_j) + |u|²/2`` for given neighbours, σ and ω, and its gradient.

    By Fisher's identity its gradient is that of the EM bound, so descending it is EM with an inexact M step.

    Args:
        p: moving points ``[N, D]`` in the moving frame.
        q: fixed points ``[M, D]`` in the fixed frame.
        rows: neighbours ``[M, K]`` among ``p``.
        count: n of the mixture.
        sigma: σ in fixed pixels.
        outliers: ω.
        volume: V.
        increment: parametrisation of the affine part.
        start: ``B_0`` ``[D+1, D+1]``, fixed → moving.
        space: velocities.
        weight: what an observation counts.
    """

    def __init__(
        self, p: Floats, q: Floats, rows: NDArray[np.intp], count: int, sigma: float, outliers: float, volume: float,
        increment: Increment, start: Tensor, space: VelocitySpace, weight: float = 1.0,
    ) -> None:  # fmt: skip
        ndim = p.shape[1]
        used, place = np.unique(rows, return_inverse=True)
        self.p = torch.from_numpy(p[used]).to(torch.float32)  # [N', D]
        self.q = torch.from_numpy(q).to(torch.float32)  # [M, D]
        self.rows = torch.from_numpy(place.reshape(-1))  # [M * K]
        self.sigma, self.weight = sigma, weight
        self.increment, self.start, self.space = increment, start, space
        self._constant = math.log((1 - outliers) / count) - ndim * math.log(sigma) - ndim / 2 * math.log(2 * math.pi)
        self._uniform = torch.tensor(math.log(outliers / volume), dtype=torch.float32)
        self._rim = torch.from_numpy(np.stack([q.min(axis=0), q.max(axis=0)]))
        self._zoom = float(homogeneous.determinant(start).abs()) ** (-1 / ndim)
        self.n_evaluations = 0
        self.value = math.nan
        self.regularizer = 0.0

    def __call__(self, x: Tensor) -> tuple[float, Tensor]:
        """Energy and gradient ``[K + P]`` at ``x``."""
        self.n_evaluations += 1
        size, grid, ndim = self.increment.size, self.space.grid, self.p.shape[1]
        u = x[size:].detach()
        with torch.enable_grad():
            affine = x[:size].detach().requires_grad_(True)
            velocity = self.space.velocity(u).requires_grad_(True)
            moved = ops.flow_points(self.p, velocity, grid.spacing, grid.origin, self.space.n_steps, False)
            pullback = homogeneous.compose(self.start, self.increment.matrix(affine))
            warped = reference.carry(homogeneous.inverse(pullback).to(torch.float32), moved)  # [N', D]
            pairs = warped.index_select(0, self.rows).reshape(len(self.q), -1, ndim)
            squares = (pairs - self.q[:, None]).square().sum(dim=2)  # [M, K]
            density = torch.logsumexp(self._constant - squares / (2 * self.sigma**2), dim=1)
            value = -self.weight * torch.logaddexp(density, self._uniform).sum()
            a_grad, v_grad = torch.autograd.grad(value, (affine, velocity))
        self.value = float(value.detach())
        self.regularizer = 0.5 * float(torch.linalg.vector_norm(u, dtype=torch.float64)) ** 2
        return self.value + self.regularizer, torch.cat([a_grad, self.space.adjoint(v_grad) + u])

    def movement(self, change: Tensor) -> float:
        """The largest distance a change of the variables moves a point, to first order, in units of σ."""
        size = self.increment.size
        step = self.increment.matrix(change[:size]) - torch.eye(self.p.shape[1] + 1, dtype=torch.float64)
        moved = float(reference.carry(step, self._rim).norm(dim=1).max())
        displacement = self.space.velocity(change[size:]).mean(dim=0)
        moved += self._zoom * float(displacement.square().sum(dim=0).max().sqrt())
        return float(moved / self.sigma)


@dataclass
class CloudFit:
    """Where a fit stands.

    Args:
        x: variables ``[K + P]``: the affine increment and the whitened velocity.
        start: ``B_0`` ``[D+1, D+1]``, fixed frame → moving frame.
        increment: parametrisation of the affine part.
        space: velocities, or None for a straight map.
        sigma: σ in fixed pixels.
        outliers: ω.
        history: one entry per scale.
        reasons: how the last descents ended.
        n_evaluations: of an energy, or of an E step.
        energy: the lowest of the last descent.
    """

    x: Tensor
    start: Tensor
    increment: Increment
    space: VelocitySpace | None
    sigma: float
    outliers: float
    history: list[dict[str, Any]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    n_evaluations: int = 0
    energy: float = math.inf

    @property
    def pullback(self) -> Tensor:
        """Inverse affine map ``[D+1, D+1]`` of the frames."""
        return homogeneous.compose(self.start, self.increment.matrix(self.x[: self.increment.size]))

    def warp(self, p: Floats) -> Floats:
        """Moving-frame points ``[N, D]`` in the fixed frame."""
        at = torch.from_numpy(p)
        if self.space is not None:
            grid, velocity = self.space.grid, self.space.velocity(self.x[self.increment.size :]).to(torch.float64)
            at = ops.flow_points(at, velocity, grid.spacing, grid.origin, self.space.n_steps, False)
        out: Floats = reference.carry(homogeneous.inverse(self.pullback), at).detach().numpy()
        return out


def velocity_space(moving: Grid, config: Config) -> VelocitySpace:
    """Velocities for a cloud's box (in its frame): smoothness from its extent, nodes over the box and two lengths a around."""
    extent = math.prod(moving.extent) ** (1 / moving.ndim)
    scale = extent * SCALE if config.sobolev.scale is None else config.sobolev.scale
    deviation = extent * DEVIATION if config.sigma_regularizer is None else config.sigma_regularizer
    spacing = scale / NODES[moving.ndim]
    n_slices = config.n_slices or 3
    while True:
        shape = tuple(smooth_size(max(4, math.ceil((e + 4 * scale) / spacing))) for e in moving.extent)
        if math.prod(shape) * moving.ndim * n_slices <= MOST_VARIABLES:
            break
        spacing *= 1.1
    nodes = Grid(shape, (spacing,) * moving.ndim, tuple(-(n - 1) / 2 * spacing for n in shape))
    return VelocitySpace(nodes, n_slices, config.n_steps or n_slices, scale, config.sobolev.order or 2.0, deviation)


def bend(
    p: Floats, q: Floats, fit: CloudFit, config: Config, narrowest: float, level: int = 0, tell: Tell | None = None
) -> CloudFit:
    """Follow a bent fit from its scale to narrower ones, as long as the posterior gains; the best is kept.

    Args:
        p: moving ``[N, D]`` in its frame.
        q: fixed ``[M, D]`` in its frame.
        fit: with a velocity space.
        narrowest: smallest σ, in fixed pixels.
        level: what the log calls it.
        tell: called with stage, level, iteration and energy at every scale.
    """
    volume = float(np.prod(np.ptp(q, axis=0)))
    space = fit.space
    assert space is not None
    size = fit.increment.size
    lowest, best, worse = math.inf, fit, 0
    canvas_nodes = max(1.0, float(np.prod(np.ptp(p, axis=0))) / math.prod(space.waves.spacing))
    zoom = float(homogeneous.determinant(fit.start).abs()) ** (-1 / p.shape[1])
    now = replace(fit, history=list(fit.history))
    while True:
        for _ in range(ROUNDS):
            assert now.space is not None
            if config.n_steps is None:
                now.space = enough_steps(now.space, now.x[size:])
            found = match(now.warp(p), q, now.sigma, now.outliers, volume)
            now.outliers = outliers_of(found)
            energy = CloudEnergy(
                p, q, found.rows, len(p), now.sigma, now.outliers, volume, now.increment, now.start, now.space
            )
            curvature = float(found.share.sum()) / now.sigma**2
            change = Preconditioner(now.increment, now.space, canvas_nodes, curvature, curvature * zoom**2)
            outcome = minimize(
                functools.partial(_changed, energy, change), change.inverse(now.x), functools.partial(_moved, energy, change),
                max_iter=STEPS[len(q) > SMALL], tolerance=0.02, max_move=4.0, memory=config.optimizer.memory,
                first_step=FIRST_STEP, worthwhile=WORTH * len(q),
            )  # fmt: skip
            now.x = change(outcome.x)
            now.n_evaluations += energy.n_evaluations + 1
            if outcome.reason == "diverged":
                now.reasons = [*now.reasons, "diverged"]
                return best
        energy(now.x)
        total = energy.value + energy.regularizer
        now.history.append(
            {
                "stage": "lddmm", "level": level, "iteration": len(now.history), "energy": total, "matching": energy.value,
                "regularizer": energy.regularizer, "sigma": now.sigma, "outliers": now.outliers,
            }
        )  # fmt: skip
        if tell is not None:
            tell("lddmm", level, len(now.history), total)
        lost = 1 - now.outliers < LEAST_MATCHED * (1 - best.outliers)
        if total < lowest and not lost:
            lowest, best, worse = total, replace(now), 0
        else:
            worse += 1
        if worse >= 3 or lost or now.sigma <= narrowest:
            break
        if config.sigma_regularizer is None:
            _adapt(now, p)
        residual = math.sqrt(max(found.square, 0.0))
        now.sigma = max(min(now.sigma * COOLING_BEND[len(q) > SMALL], max(2 * residual, 0.3 * now.sigma)), narrowest)
    best.energy = lowest
    best.history, best.n_evaluations, best.reasons = now.history, now.n_evaluations, [*best.reasons, outcome.reason]
    return best


def _adapt(fit: CloudFit, p: Floats) -> None:
    """Set the prior's deviation from the displacement found so far (empirical Bayes), leaving the velocity as it is."""
    assert fit.space is not None
    grid, size = fit.space.grid, fit.increment.size
    at = torch.from_numpy(p).to(torch.float32)
    moved = ops.flow_points(at, fit.space.velocity(fit.x[size:]), grid.spacing, grid.origin, fit.space.n_steps, False)
    rms = float((moved - at).square().mean().sqrt())
    deviation = max(DEVIATION_MARGIN * rms, DEVIATION_FLOOR)
    fit.x = torch.cat([fit.x[:size], fit.x[size:] * (fit.space.deviation / deviation)])
    fit.space = fit.space.with_deviation(deviation)


def _changed(energy: CloudEnergy, change: Preconditioner, z: Tensor) -> tuple[float, Tensor]:
    value, gradient = energy(change(z))
    return value, change(gradient)


def _moved(energy: CloudEnergy, change: Preconditioner, z: Tensor) -> float:
    return energy.movement(change(z))


def extent_of(c: Floats) -> Grid:
    """The box of a cloud about the origin of its frame, as a grid of pixels about 1 wide: what `velocity_space` wants."""
    reach = np.abs(c).max(axis=0)
    return Grid(tuple(max(1, math.ceil(2 * r)) for r in reach), (1.0,) * c.shape[1], tuple(-float(r) for r in reach))


def bent_start(straight: State, p: Floats, q: Floats, before: float, config: Config) -> CloudFit:
    """A fit that has not bent yet: ``before`` is the change of unit that went before the straight map."""
    increment = Increment("affine", p.shape[1], max(float(np.linalg.norm(np.ptp(q, axis=0))) / 2, 1e-9))
    matrix = straight.matrix @ np.diag([*[before] * p.shape[1], 1.0])
    space = velocity_space(extent_of(p), config)
    x = torch.zeros(increment.size + space.size, dtype=torch.float32)
    start = homogeneous.inverse(torch.from_numpy(matrix))
    return CloudFit(x, start, increment, space, straight.sigma, straight.outliers)


def straight_fit(straight: State, p: Floats, q: Floats, before: float, kind: str) -> CloudFit:
    """A fit that does not bend."""
    increment = Increment(kind, p.shape[1], max(float(np.linalg.norm(np.ptp(q, axis=0))) / 2, 1e-9))
    matrix = straight.matrix @ np.diag([*[before] * p.shape[1], 1.0])
    start = homogeneous.inverse(torch.from_numpy(matrix))
    x = torch.zeros(increment.size, dtype=torch.float32)
    return CloudFit(x, start, increment, None, straight.sigma, straight.outliers, energy=-straight.value)


def bend_levels(p: Floats, q: Floats, seed: int) -> list[tuple[Floats, Floats]]:
    """Both clouds, coarse to fine, as a bent map is fitted to them."""
    count = THINNED[-1]
    coarse = [(thinned(p, count), thinned(q, count))] if 2 * count <= max(len(p), len(q)) else []
    return [*coarse, (p, some(q, MOST_FITTED, seed))]


def bend_pyramid(straight: State, p: Floats, q: Floats, before: float, config: Config, tell: Tell | None) -> CloudFit:
    """The bent map from a straight one, coarse to fine, the last level with all moving points."""
    fit = bent_start(straight, p, q, before, config)
    levels = bend_levels(p, q, config.seed)
    for number, (pl, ql) in enumerate(levels):
        spacing = spacing_of(ql)
        fit.sigma = max(fit.sigma, WIDE * spacing)
        fit = bend(
            pl,
            ql,
            fit,
            config,
            (SHARPEST_BEND[len(ql) > SMALL] if number == len(levels) - 1 else 0.5) * spacing,
            number,
            tell,
        )
    return fit
