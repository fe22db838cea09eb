"""The bent map of two clouds: a velocity fitted under the mixture's likelihood, from a wide scale σ to a narrow one.

Where a constant names no source, neither a paper nor a calibration is recorded for it; ``benchmarks/bench_points.py`` measures
what they achieve together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ... import ops, reference
from ...config import Config
from ...data import Grid, Original
from ...fit.clouds import SMALL, Floats, match, outliers_of, some, spacing_of, thinned
from ...fit.frames import Increment, affine_kind
from ...fit.lbfgs import Descent
from ...fit.mapspace import MapSpace, Standing
from ...fit.precondition import Preconditioner, descend
from ...fit.prior import Prior, velocity_space
from ...fit.steps import Report
from ...maps import homogeneous
from .straight import LEAST_MATCHED, MOST_FITTED, THINNED, WIDE, State, stage_of

COOLING_BEND = (0.75, 0.55)
"""Factor from one scale σ to the next while a bend is fitted: for at most `clouds.SMALL` fixed points, and for more, whose
steps cost more."""
SHARPEST_BEND = (0.05, 0.15)
"""Smallest σ of a bent map, in spacings of the fixed points: for at most `clouds.SMALL` fixed points, and for more."""
THINNED_SHARPEST = 0.5
"""Smallest σ of a map of thinned clouds, in spacings of the fixed places: each place stands for points scattered around it."""
SCALE = 0.15
"""Length a of the Sobolev operator, as a fraction of the moving cloud's extent (geometric mean of the sides of its box). Chosen
on the fish and the bunnies of benchmarks/bench_points.py."""
ORDER = 2.0
"""Power p of the Sobolev operator, without unit: the value used for two pictures (`fit.prior.ORDER`)."""
NODES = {2: 3.0, 3: 2.0}
"""Velocity nodes per length a, by dimension: the values used for pictures and for volumes."""
DEVIATION_MARGIN = 2.0
"""Prior standard deviation of a displacement at the next scale, over the rms displacement found so far. Smaller than for images
(`fit.prior.DEVIATION_MARGIN`), because successive scales are closer to each other than pyramid levels."""
MOST_VARIABLES = 400_000
"""Largest number of values of a velocity: far more than any cloud determines, and a bound on memory."""
PRIORS = {
    ndim: Prior(SCALE, ORDER, nodes, adapts=DEVIATION_MARGIN, most=MOST_VARIABLES, widening=1.1)
    for ndim, nodes in NODES.items()
}
"""The prior of the bend of two clouds, by dimension. Its nodes reach two lengths a beyond the box of the moving cloud."""
WORTH = 3e-3
"""Nats per fixed point that the last steps of a descent must have gained together for it to continue."""
STEPS = (8, 5)
"""Steps of one descent at most, for at most `clouds.SMALL` fixed points and for more; after it neighbours are searched for
again."""
TOLERANCE = 0.02
"""Movement of a step, in units of σ, below which a descent ends: smaller movements hardly change which points are neighbours."""
MAX_MOVE = 4.0
"""Largest movement of a step, in units of σ: after a larger one the neighbours would be other points."""


@dataclass(frozen=True)
class Clouds:
    """Two clouds that are fitted to each other, each in its own normalised frame.

    Args:
        p: moving points ``[N, D]``, in moving pixels.
        q: fixed points ``[M, D]``, in fixed pixels.
        before: size of one moving pixel in fixed pixels, from the units; applied to moving points before a straight map.
        config: all settings, lengths in moving pixels.
        originals: the fixed and the moving side before they were brought into their frames, or None.
        backwards: whether ``p`` are the fixed points and ``q`` the moving ones: the moving points are then taken as draws around
            the fixed ones, pulled back, and σ and V are in moving pixels. Of two sides the one with fewer points is to be drawn:
            its points have partners, where most of the other's have none.
        unseen: rms displacement, over σ, that the prior allows for although no such bend was found: at a wide σ a bend of parts
            of it is not seen yet, and a prior that shut it out would keep it out at every narrower one.
    """

    p: Floats
    q: Floats
    before: float
    config: Config
    originals: tuple[Original, Original] | None = None
    backwards: bool = False
    unseen: float = 0.0

    @property
    def scaled(self) -> Floats:
        """Moving points ``[N, D]``, in fixed pixels."""
        return self.p * self.before

    @property
    def volume(self) -> float:
        """V: volume of the box of ``q``, in its pixels to the D-th power."""
        return float(np.prod(np.ptp(self.q, axis=0)))

    @property
    def radius(self) -> float:
        """Half the diagonal of the fixed cloud's box, in fixed pixels: the length that scales affine increments."""
        return max(float(np.linalg.norm(np.ptp(self.q, axis=0))) / 2, 1e-9)

    def of(self, p: Floats, q: Floats) -> Clouds:
        """These clouds with other points ``p`` and ``q``, such as thinned ones."""
        return replace(self, p=p, q=q)


class CloudEnergy:
    """``E(q, u) = -Σ_j log p(y_j) + |u|²/2`` in nats, for given neighbours, σ and ω, and its gradient.

    By Fisher's identity this is the gradient of the EM bound too, so a descent of E is EM with an inexact M step.

    Args:
        p: moving points ``[N, D]`` in the moving frame.
        q: fixed points ``[M, D]`` in the fixed frame.
        rows: the K nearest moving points of each fixed one ``[M, K]``.
        sigma: σ in fixed pixels.
        outliers: ω, the share of fixed points without a partner.
        volume: V, in fixed pixels to the D-th power.
        maps: the maps that the variables choose among; they must bend.
        backwards: whether ``p`` are fixed points and ``q`` moving ones (see `Clouds`); lengths are then in moving pixels.
    """

    def __init__(
        self,
        p: Floats,
        q: Floats,
        rows: NDArray[np.intp],
        sigma: float,
        outliers: float,
        volume: float,
        maps: MapSpace,
        backwards: bool = False,
    ) -> None:
        ndim = p.shape[1]
        used, place = np.unique(rows, return_inverse=True)
        self.p = torch.from_numpy(p[used]).to(torch.float32)  # [N', D]
        self.q = torch.from_numpy(q).to(torch.float32)  # [M, D]
        self.rows = torch.from_numpy(place.reshape(-1))  # [M * K]
        self.sigma, self.maps, self.backwards = sigma, maps, backwards
        self._constant = math.log((1 - outliers) / len(p)) - ndim * math.log(sigma) - ndim / 2 * math.log(2 * math.pi)
        self._uniform = torch.tensor(math.log(outliers / volume), dtype=torch.float32)
        self._rim = torch.from_numpy(np.stack([(rim := p if backwards else q).min(axis=0), rim.max(axis=0)]))
        self.n_evaluations = 0
        self.value = math.nan
        self.regularizer = 0.0

    def __call__(self, x: Tensor) -> tuple[float, Tensor]:
        """Energy and gradient ``[K + P]`` at ``x``."""
        self.n_evaluations += 1
        space = self.maps.space
        q, u = self.maps.split(x.detach())
        assert space is not None
        assert u is not None
        with torch.enable_grad():
            affine = q.requires_grad_(True)
            velocity = space.velocity(u).requires_grad_(True)
            pullback, grid = self.maps.pullback(affine), space.grid
            if self.backwards:
                at = reference.carry(pullback.to(torch.float32), self.p)
                warped = ops.flow_points(at, velocity, grid.spacing, grid.origin, space.n_steps, True)  # [N', D]
            else:
                moved = ops.flow_points(self.p, velocity, grid.spacing, grid.origin, space.n_steps, False)
                warped = reference.carry(homogeneous.inverse(pullback).to(torch.float32), moved)  # [N', D]
            pairs = warped.index_select(0, self.rows).reshape(len(self.q), -1, self.p.shape[1])
            squares = (pairs - self.q[:, None]).square().sum(dim=2)  # [M, K]
            density = torch.logsumexp(self._constant - squares / (2 * self.sigma**2), dim=1)
            value = -torch.logaddexp(density, self._uniform).sum()
            a_grad, v_grad = torch.autograd.grad(value, (affine, velocity))
        self.value = float(value.detach())
        self.regularizer = 0.5 * float(torch.linalg.vector_norm(u, dtype=torch.float64)) ** 2
        return self.value + self.regularizer, torch.cat([a_grad, space.adjoint(v_grad) + u])

    def movement(self, change: Tensor) -> float:
        """The largest distance a change of the variables moves a point, to first order, in units of σ."""
        rim, bend = self.maps.moves(change, self._rim)
        return (float(rim.norm(dim=1).max()) + float(bend)) / (self.sigma * (self.maps.zoom if self.backwards else 1.0))


@dataclass
class CloudFit(Standing):
    """The state of a fit of two clouds: variables, maps, scale, and what has happened so far.

    Args:
        sigma: σ in fixed pixels.
        outliers: ω, the share of fixed points without a partner.
        history: one entry per scale.
        reasons: how each stage ended (see `lbfgs.Outcome`).
        n_evaluations: number of energy evaluations and E steps.
        energy: lowest energy of the last stage, in nats; for a straight fit in nats per fixed point.
        constant: whether the user's metric had one value wherever the points lay, so that it says nothing.
    """

    sigma: float
    outliers: float
    history: list[dict[str, Any]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    n_evaluations: int = 0
    energy: float = math.inf
    constant: bool = False

    def warp(self, p: Floats, backwards: bool = False) -> Floats:
        """Points of the moving frame ``[N, D]``, mapped to the fixed frame; or the other way, ``backwards``."""
        out: Floats = self.maps.points(self.x, torch.from_numpy(p), to_moving=backwards).detach().numpy()
        return out


def bend(clouds: Clouds, fit: CloudFit, narrowest: float, level: int = 0, report: Report = None) -> CloudFit:
    """Fit a bend at its scale σ, then at narrower ones, as long as the energy falls; the best fit is returned.

    Args:
        clouds: the clouds.
        fit: the fit to start from, with a velocity space.
        narrowest: smallest σ, in fixed pixels.
        level: index of the level, for the history.
        report: called at every scale.
    """
    q, config = clouds.q, clouds.config
    large = len(q) > SMALL
    lowest, best, worse = math.inf, fit, 0
    now = replace(fit, history=list(fit.history))
    while True:
        reason, energy, square = _descend_at_scale(clouds, now)
        if reason == "diverged":
            now.reasons = [*now.reasons, reason]
            return best
        energy(now.x)
        total = energy.value + energy.regularizer
        now.history.append(
            {
                "stage": "lddmm", "level": level, "iteration": len(now.history), "energy": total, "matching": energy.value,
                "regularizer": energy.regularizer, "sigma": now.sigma, "outliers": now.outliers,
            }
        )  # fmt: skip
        stage_of("lddmm", level, config).tell(report, len(now.history), total)
        lost = 1 - now.outliers < LEAST_MATCHED * (1 - best.outliers)
        if total < lowest and not lost:
            lowest, best, worse = total, replace(now), 0
        else:
            worse += 1
        if worse >= 3 or lost or now.sigma <= narrowest:
            break
        if config.sigma_regularizer is None:
            sigma = now.sigma / (1.0 if clouds.backwards else now.maps.zoom)  # in moving pixels
            now.adapt_prior(max(_rms(now, clouds), clouds.unseen * sigma), DEVIATION_MARGIN)
        residual = math.sqrt(max(square, 0.0))
        now.sigma = max(min(now.sigma * COOLING_BEND[large], max(2 * residual, 0.3 * now.sigma)), narrowest)
    best.energy = lowest
    best.history, best.n_evaluations, best.reasons = now.history, now.n_evaluations, [*best.reasons, reason]
    return best


def _descend_at_scale(clouds: Clouds, fit: CloudFit) -> tuple[str, CloudEnergy, float]:
    """One scale: find neighbours, estimate ω, and make some steps of descent; ``fit`` is updated.

    Returns the reason for which the descent ended, the energy it minimised, and the mean squared distance per axis of the pairs
    before it.
    """
    p, q, config = clouds.p, clouds.q, clouds.config
    fit.take_enough_steps(config)
    assert fit.space is not None
    found = match(fit.warp(p, clouds.backwards), q, fit.sigma, fit.outliers, clouds.volume)
    fit.outliers = outliers_of(found)
    energy = CloudEnergy(p, q, found.rows, fit.sigma, fit.outliers, clouds.volume, fit.maps, clouds.backwards)
    own, sigma = (q, fit.sigma * fit.maps.zoom) if clouds.backwards else (p, fit.sigma)
    nodes = max(1.0, float(np.prod(np.ptp(own, axis=0))) / math.prod(fit.space.waves.spacing))
    change = Preconditioner(fit.maps, nodes, float(found.share.sum()) / sigma**2)
    descent = Descent(
        STEPS[len(q) > SMALL], TOLERANCE, config.optimizer.memory, max_move=MAX_MOVE, worthwhile=WORTH * len(q)
    )
    outcome = descend(energy, fit.x, descent, change)
    fit.x = outcome.x
    fit.n_evaluations += energy.n_evaluations + 1
    return outcome.reason, energy, found.square


def _rms(fit: CloudFit, clouds: Clouds) -> float:
    """Root mean square displacement per axis of the moving points by the fit's velocity, in moving pixels."""
    assert fit.space is not None
    assert fit.velocity is not None
    grid, at = fit.space.grid, torch.from_numpy(clouds.q if clouds.backwards else clouds.p).to(torch.float32)
    moved = ops.flow_points(at, fit.velocity, grid.spacing, grid.origin, fit.space.n_steps, False)
    return float((moved - at).square().mean().sqrt())


def extent_of(c: Floats) -> Grid:
    """The box of a cloud, symmetric about the origin of its frame, as a grid of pixels of width 1.

    `velocity_space` takes a grid where images have their canvas.
    """
    reach = np.abs(c).max(axis=0)
    return Grid(tuple(max(1, math.ceil(2 * r)) for r in reach), (1.0,) * c.shape[1], tuple(-float(r) for r in reach))


def straight_fit(straight: State, clouds: Clouds) -> CloudFit:
    """A straight map as a `CloudFit` without velocity."""
    increment = Increment(affine_kind(clouds.config.transform), clouds.p.shape[1], clouds.radius)
    x = torch.zeros(increment.size, dtype=torch.float32)
    maps = MapSpace(_start(straight, clouds), increment)
    return CloudFit(x, maps, straight.sigma, straight.outliers, energy=-straight.value)


def bent_start(straight: State, clouds: Clouds) -> CloudFit:
    """A straight map as a `CloudFit` whose velocity is 0."""
    ndim = clouds.p.shape[1]
    increment = Increment("affine", ndim, clouds.radius)
    x = torch.zeros(increment.size, dtype=torch.float32)
    fit = CloudFit(x, MapSpace(_start(straight, clouds), increment), straight.sigma, straight.outliers)
    fit.bend(velocity_space(extent_of(clouds.p), clouds.config, PRIORS[ndim]))
    return fit


def _start(straight: State, clouds: Clouds) -> Tensor:
    """The inverse map ``B_0`` ``[D+1, D+1]`` of a straight map, from the fixed frame to moving pixels."""
    matrix = straight.matrix @ np.diag([*[clouds.before] * clouds.p.shape[1], 1.0])
    return homogeneous.inverse(torch.from_numpy(matrix))


def bend_levels(clouds: Clouds) -> list[Clouds]:
    """The clouds of each level of a bent fit, coarse to fine: thinned ones first, where the clouds are large enough."""
    count, p, q = THINNED[-1], clouds.p, clouds.q
    coarse = [clouds.of(thinned(p, count), thinned(q, count))] if 2 * count <= max(len(p), len(q)) else []
    return [*coarse, clouds.of(p, some(q, MOST_FITTED, clouds.config.seed))]


def bend_pyramid(straight: State, clouds: Clouds, report: Report = None) -> CloudFit:
    """Fit a bend from a straight map, coarse to fine; the last level uses every moving point."""
    fit = bent_start(straight, clouds)
    levels = bend_levels(clouds)
    for number, level in enumerate(levels):
        spacing = spacing_of(level.q)
        fit.sigma = max(fit.sigma, WIDE * spacing)
        sharpest = SHARPEST_BEND[len(level.q) > SMALL] if number == len(levels) - 1 else THINNED_SHARPEST
        fit = bend(level, fit, sharpest * spacing, number, report)
    return fit
