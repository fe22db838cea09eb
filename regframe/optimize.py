"""Limited-memory BFGS for an energy in whitened variables, where descent is well conditioned and needs no step size.

Source: Nocedal & Wright, Numerical Optimization, 2nd ed., algorithms 7.4 (two loops) and 3.1 (backtracking), with the
first step and every later one bounded by the movement it causes, in pixels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .config import Config
from .data import Grid, Image
from .lddmm import (
    Energy,
    Frame,
    Halvings,
    ImageMetric,
    Increment,
    Level,
    Mixture,
    Preconditioner,
    VelocitySpace,
    coincidence,
    correlation_area,
    fit_contrast,
    noise_share,
    shared_structure,
    smooth_size,
    soften,
)
from .maps import homogeneous

SCALE = 0.1
"""Default length a of the Sobolev operator, as a fraction of the moving canvas' extent (geometric mean of its sides)."""
ORDER = 2.0
"""Default power p of the Sobolev operator."""
SECTIONS_SCALE = 0.06
"""Length a where neighbouring sections are aligned: pieces of tissue move by themselves between the cuts."""
SECTIONS_ORDER = 1.0
"""Power p there."""
SECTIONS_NODES = 4
"""Velocity nodes per length a there."""
LEAST_EVIDENCE = 0.25
"""What an observation counts at least, however little fine structure both sides share, and between neighbouring sections."""
ENOUGH_SHARED = 0.5
"""Share of the fine structure from which an observation counts in full."""
ONE_SECTION = (0.5, 0.9)
"""The same for two stained sections: under the first they are two cuts, from the second on one."""
SECTIONS = 0.15
"""Share under which two stained sections are neighbouring ones, whose pieces move by themselves."""
NOTHING_SHARED = 0.01
"""Share of the fine structure under which the finest level of neighbouring sections is left out."""
MOST_VARIABLES = 6_000_000
"""Values of a velocity at most; a finer one is given wider nodes, and more memory would not make it better."""
NODES = 3
"""Velocity nodes per length a: with fewer, the kinks of the multilinear velocity cost accuracy and storage."""
SCALE_3D = 0.042
"""Length a in a volume: organs fold in three directions."""
ORDER_3D = 1.0
"""Power p there."""
NODES_3D = 2
"""Velocity nodes per length a there, where they cost more."""
MARGIN_3D = 2.5
"""Lengths a by which velocities reach beyond a volume: there the far end of the period is no longer felt."""
PLANE_SCALE = 0.08
"""Length a where a section is placed in a volume, as a fraction of what is around it."""
PLANE_ORDER = 2.0
"""Power p there."""
PLANE_NODES = 2
"""Velocity nodes per length a there."""
PLANE_DEVIATION = 0.015
"""Prior standard deviation of a displacement there, as the same fraction; it is not adapted, for it would buy displacements
across the section that only fit noise."""
PLANE_ACROSS = 0.2
"""Deviation of a displacement across the section there, over that along it."""
CHORD = 16
"""Pixels of a level between two nodes from which twice as many per axis are worth their price: the chords of long waves are
far off there, and cells still large enough to be walked through fast."""
DEVIATION = 0.1
"""Prior standard deviation of a displacement before anything is known, as the same fraction."""
BENDING_EVIDENCE = 5.0
"""Nats by which the energy of a bent map must be lower than the best affine one's for the bend to be kept."""
DEVIATION_FLOOR = 0.03
"""Smallest prior deviation the fit may arrive at, in moving pixels."""
DEVIATION_MARGIN = 3.0
"""The prior deviation of the next level over the rms displacement found so far: wide enough to leave room for more."""

FIRST_STEP = 0.25
"""First step over the gradient in preconditioned variables, whose curvature is about 1 and seldom above 4."""
NOISY = 0.5
"""Share of the moving image's squared gradient above which noise would steer the finest level: both sides are softened."""
PATIENCE = 5
"""Steps over which a fit must have gained something to go on."""
WORTHWHILE = 1e-4
"""Nats per independent observation below which the gain of `PATIENCE` steps of a bent fit is not worth them."""
LEAST = 1.0
"""Nats that those steps must gain at least on all levels but the finest, which need not be settled to the last."""
PIXELS_PER_THREAD = 150_000
"""Pixels (times channels) below which another thread costs more than it brings."""


@contextlib.contextmanager
def threads_for(pixels: int) -> Iterator[None]:
    """Run on as many threads as the work is worth, never more than are set.

    Threads that wait for each other after every few microseconds of work stall for whole time slices as soon as another
    process wants a core: on a busy machine two threads on a small level are many times slower than one.
    """
    before = torch.get_num_threads()
    wanted = max(1, min(before, pixels // PIXELS_PER_THREAD))
    if wanted != before:
        torch.set_num_threads(wanted)
    try:
        yield
    finally:
        if wanted != before:
            torch.set_num_threads(before)


FloatArray = NDArray[np.float64]
Evaluate = Callable[[Tensor], tuple[float, Tensor]]
"""From variables ``[P]`` to the energy and its gradient ``[P]``; a non-finite energy rejects the point."""


@dataclass
class Outcome:
    """Where a minimisation ended and why.

    Args:
        x: variables ``[P]`` of the lowest energy seen.
        energy: the energy there.
        iterations: steps taken.
        reason: ``converged`` (the last steps moved nothing), ``flat`` (no lower point along the descent direction),
            ``slow`` (out of iterations while the last steps gained next to nothing), ``max_iter`` (out of iterations
            while they still gained), or ``diverged`` (the energy was not finite at the start).
    """

    x: Tensor
    energy: float
    iterations: int
    reason: str


def dot(a: Tensor, b: Tensor) -> float:
    """Inner product of ``[P]`` and ``[P]`` in float64."""
    return float(torch.dot(a.to(torch.float64), b.to(torch.float64)))


class _History:
    """The last pairs of steps and gradient changes, and the product of the inverse Hessian they imply.

    Every product of two of them is kept, so that a direction costs one pass over the pairs for their products with the
    gradient, one for the sum, and the two loops run on numbers (Chen et al. 2014, "Large-scale L-BFGS using MapReduce").
    """

    def __init__(self, memory: int, like: Tensor) -> None:
        self.memory = memory
        self._rows = torch.zeros((2 * memory, like.numel()), dtype=like.dtype)  # steps, then changes
        self._products = np.zeros((2 * memory, 2 * memory))
        self._order: list[int] = []  # slots, oldest first

    def clear(self) -> None:
        """Forget all pairs."""
        self._order.clear()

    def __bool__(self) -> bool:
        return bool(self._order)

    def _with(self, row: Tensor) -> FloatArray:
        """Products ``[2 memory]`` of all rows in use with ``row``; the rest is of no meaning."""
        out: FloatArray = torch.mv(self._rows, row).numpy().astype(np.float64)
        return out

    def add(self, step: Tensor, change: Tensor) -> None:
        """Remember a pair, unless the energy did not curve upwards along it."""
        norms = [float(torch.linalg.vector_norm(row, dtype=torch.float64)) for row in (step, change)]
        if not dot(step, change) > 1e-10 * norms[0] * norms[1]:
            return
        m = self.memory
        slot = len(self._order) if len(self._order) < m else self._order.pop(0)
        self._rows[slot], self._rows[m + slot] = step, change
        for k, row in ((slot, step), (m + slot, change)):
            self._products[k] = self._products[:, k] = self._with(row)
        self._order.append(slot)

    def direction(self, gradient: Tensor) -> Tensor:
        """Minus the inverse Hessian times ``gradient``."""
        if not self._order:
            return -gradient
        m, products = self.memory, self._products
        with_gradient = self._with(gradient)
        weights, scale = np.zeros(2 * m), 1.0  # the vector is scale * (gradient + Σ weights * rows)
        alphas = []
        for k in reversed(self._order):
            alpha = (with_gradient[k] + weights @ products[k]) / products[k, m + k]
            weights[m + k] -= alpha
            alphas.append(alpha)
        last = self._order[-1]
        scale = products[last, m + last] / products[m + last, m + last]
        weights *= scale
        for k, alpha in zip(self._order, reversed(alphas), strict=True):
            beta = (scale * with_gradient[m + k] + weights @ products[m + k]) / products[k, m + k]
            weights[k] += alpha - beta
        out = torch.mv(self._rows.T, torch.from_numpy(weights).to(gradient.dtype))
        return out.add_(gradient, alpha=scale).neg_()


def minimize(
    evaluate: Evaluate,
    x: Tensor,
    movement: Callable[[Tensor], float],
    *,
    max_iter: int,
    tolerance: float,
    memory: int = 12,
    max_move: float = 8.0,
    first_move: float = 1.0,
    first_step: float | None = None,
    worthwhile: float = 0.0,
    callback: Callable[[int, float], None] | None = None,
) -> Outcome:
    """Minimise ``evaluate`` from ``x`` ``[P]``.

    Args:
        movement: from a change of the variables to the largest distance it moves a pixel, in pixels of the level.
        max_iter: steps at most.
        tolerance: three steps in a row that move less than this (pixels) end it: converged.
        max_move: no step is tried that moves more than this (pixels).
        first_move: length of the first step, which has no curvature to go by (pixels).
        first_step: the first step over the gradient at most, where the curvature is known to be about 1 along all variables.
        worthwhile: energy that `PATIENCE` steps must gain together; less ends it: converged.
        callback: called with the step's number and the energy after each step.
    """
    energy, gradient = evaluate(x)
    if not (math.isfinite(energy) and bool(torch.isfinite(gradient).all())):
        return Outcome(x, energy, 0, "diverged")
    history = _History(memory, x)
    quiet = 0
    past = deque([energy], maxlen=PATIENCE + 1)
    for iteration in range(1, max_iter + 1):
        direction = history.direction(gradient)
        slope = dot(direction, gradient)
        if not slope < 0:  # the curvature pairs have gone stale: start again from steepest descent
            history.clear()
            direction = -gradient
            slope = dot(direction, gradient)
            if not slope < 0:
                return Outcome(x, energy, iteration - 1, "converged")
        moved = movement(direction)
        if history:
            t = min(1.0, max_move / max(moved, 1e-30))
        else:
            t = min(math.inf if first_step is None else first_step, first_move / max(moved, 1e-30))
        accepted = None
        for _ in range(12):
            trial = x + t * direction
            new_energy, new_gradient = evaluate(trial)
            if math.isfinite(new_energy) and new_energy <= energy + 1e-4 * t * slope:
                accepted = trial
                break
            if math.isfinite(new_energy):  # minimum of the parabola through both values and the slope
                shrink = -slope * t / (2 * (new_energy - energy - slope * t))
                t *= min(max(shrink, 0.1), 0.6)
            else:
                t *= 0.1
            if t * moved < 0.01 * tolerance:
                break
        if accepted is None:
            if history:
                history.clear()
                first_move = max(tolerance, min(first_move, t * moved * 4))
                first_step = None if first_step is None else min(first_step, 4 * t)
                quiet += 1
                if quiet < 2:
                    continue
                return Outcome(x, energy, iteration, "converged")
            return Outcome(x, energy, iteration, "flat")
        history.add(accepted - x, new_gradient - gradient)
        x, energy, gradient = accepted, new_energy, new_gradient
        if callback is not None:
            callback(iteration, energy)
        quiet = quiet + 1 if t * moved < tolerance else 0
        past.append(energy)
        if quiet >= 3 or (len(past) > PATIENCE and past[0] - energy < worthwhile):
            return Outcome(x, energy, iteration, "converged")
    slow = len(past) > PATIENCE and past[0] - energy < 10 * worthwhile
    return Outcome(x, energy, max_iter, "slow" if slow else "max_iter")


@dataclass
class Fit:
    """Where a fit over a pyramid stands: the variables and what they belong to.

    Args:
        x: variables ``[K + P]`` (see `lddmm.Energy.split`).
        start: ``B_0`` ``[D+1, D+1]``, inverse affine map of the normalised frames the increment is taken from.
        increment: parametrisation of the affine part.
        space: velocities, or None.
        weight: matching probability ``[*S_f]`` of the last level, mask and overlap included, or None.
        matching: EM posterior ``[*S_f]`` of the last level alone.
        history: one entry per step.
        reasons: how each level's minimisation ended, coarse to fine.
        n_evaluations: energy evaluations in all.
        observations: N of the last energy.
        mismatch: the metric's value where the last level ended.
        bending_gain: how much lower the energy of the bent map is than that of the best affine one, in nats; None where
            no bending was asked for.
        shared: share of the fine structure that both images have at the last level (`lddmm.shared_structure`).
        texture: the same on the finest level of the affine fit.
        stained: whether both sides are stained sections.
        sections: whether they are neighbouring ones: cells of one are not those of the other.
        last: the energy that ``x`` minimises, or None.
    """

    x: Tensor
    start: Tensor
    increment: Increment
    space: VelocitySpace | None
    weight: Tensor | None = None
    matching: Tensor | None = None
    overlap: Tensor | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    n_evaluations: int = 0
    observations: float = 1.0
    mismatch: float = math.nan
    bending_gain: float | None = None
    shared: float = 1.0
    texture: float = 1.0
    stained: bool = False
    sections: bool = False
    last: Energy | None = None

    @property
    def pullback(self) -> Tensor:
        """Inverse affine map ``[D+1, D+1]`` of the normalised frames."""
        return homogeneous.compose(self.start, self.increment.matrix(self.x[: self.increment.size]))

    @property
    def velocity(self) -> Tensor | None:
        """``[T, D, *S]`` in moving pixels, or None for an affine map."""
        return None if self.space is None else self.space.velocity(self.x[self.increment.size :])


def adapt_prior(fit: Fit, moving: Grid) -> None:
    """Set the prior's deviation from the displacement found so far (empirical Bayes), leaving the velocity as it is.

    A pair that an affine map explains ends with a stiff prior, so that textureless regions stay where the affine map puts
    them; a bent pair keeps a loose one.

    Args:
        fit: after at least one level of both parts.
        moving: the moving canvas in its frame; nodes of the margin do not count.
    """
    assert fit.space is not None
    velocity = fit.velocity
    assert velocity is not None
    displacement = velocity.mean(dim=0)  # [D, *S]
    inside = moving.contains(fit.space.grid.coords())
    rms = float((displacement**2).sum(dim=0)[inside].mean().div(moving.ndim).sqrt())
    deviation = max(DEVIATION_MARGIN * rms, DEVIATION_FLOOR)
    u = fit.x[fit.increment.size :] * (fit.space.deviation / deviation)
    fit.space = fit.space.with_deviation(deviation)
    fit.x = torch.cat([fit.x[: fit.increment.size], u])


STEEPEST = 0.25
"""Largest ``h dv/dX`` a fit is integrated with; well below 1/D, so that it may grow within a round without folding."""
MOST_STEPS = 48
"""Euler steps at most."""


def enough_steps(space: VelocitySpace, u: Tensor) -> VelocitySpace:
    """The space with as many Euler steps as its velocity needs for every step to be invertible."""
    n_steps = space.n_steps
    while n_steps < MOST_STEPS and space.with_steps(n_steps).steep(u) > STEEPEST:
        n_steps += space.n_slices
    return space.with_steps(n_steps)


def fit_level(
    fit: Fit,
    level: Level,
    metric: ImageMetric,
    config: Config,
    *,
    stage: str,
    number: int,
    constant_weights: bool,
    fine: bool = True,
    least: float = 0.0,
    landmarks: tuple[Tensor, Tensor, float] | None = None,
    callback: Callable[[str, int, int, float], None] | None = None,
    most: float | None = None,
) -> Fit:
    """Minimise the energy of one level, alternating with the E step of the matching weights.

    Args:
        stage: what progress and log call it.
        number: index of the level, 0 the coarsest.
        constant_weights: True in the initial phase, where every overlapping pixel counts as matching.
        fine: whether the level is as fine as the finest of the affine fit, so that the structure shared on it counts.
        least: nats that `PATIENCE` steps of a bent fit must gain at least, however few the observations.
        callback: called with stage, level, iteration and energy.
        most: independent observations that are counted at most, or None.
    """
    rounds = 1 if constant_weights or not config.matching.enabled else config.matching.rounds
    x, done = fit.x, 0
    mixture: Mixture | None = None
    posterior = torch.ones(level.fixed_grid.shape, dtype=torch.float32)
    for turn in range(rounds):
        if fit.space is not None and config.n_steps is None:
            fit.space = enough_steps(fit.space, x[fit.increment.size :])
        energy = Energy(
            level, metric, fit.increment, fit.start, fit.space, torch.ones(level.fixed_grid.shape, dtype=torch.float32), 1.0,
            config.sigma_match, landmarks,
        )  # fmt: skip
        overlap = energy.overlap(x)
        with torch.no_grad():
            warped = energy.warp(x, level.moving, level.moving_grid)
        predicted = fit_contrast(warped, level.fixed, overlap * posterior)
        if not constant_weights and config.matching.enabled:
            settling = 1
            if mixture is None:
                mixture = Mixture.start(level.fixed, predicted, overlap)
                settling = 3  # before the classes steer anything
            for _ in range(settling):
                mixture.update(level.fixed, predicted, overlap)
            posterior = mixture.matching(level.fixed, predicted)
        weight = overlap * posterior
        area = correlation_area(level.fixed - predicted, weight)
        energy.weight = weight
        fit.shared = shared_structure(predicted, level.fixed, weight)
        # structure that only one side has matches by chance wherever the map puts it: it is no evidence for a map
        shared = fit.texture  # that of the affine map, for nothing may bend itself evidence where cells are others
        if fine and fit.space is not None and not fit.sections:
            shared = max(shared, fit.shared)
        none, enough = ONE_SECTION if fit.stained else (0.0, ENOUGH_SHARED)
        evidence = min(max((shared - none) / (enough - none), LEAST_EVIDENCE), 1.0)
        energy.observations = float(weight.sum(dtype=torch.float64)) / area * evidence
        if most is not None:
            energy.observations = min(energy.observations, most)

        def step(iteration: int, value: float, energy: Energy = energy, before: int = done) -> None:
            entry = {"stage": stage, "level": number, "iteration": before + iteration, "energy": value, **energy.parts}
            fit.history.append(entry)
            if callback is not None:
                callback(stage, number, before + iteration, value)

        last = turn == rounds - 1
        budget = max(config.optimizer.max_iter - done, 0)
        # an affine increment is scaled to pixels already
        change = None if fit.space is None else precondition(energy, predicted)
        outcome = minimize(
            energy if change is None else functools.partial(_changed, energy, change),
            x if change is None else change.inverse(x),
            energy.movement if change is None else functools.partial(_moved, energy, change),
            max_iter=budget if last else min(budget, max(5, config.optimizer.max_iter // 5)),
            tolerance=config.optimizer.tolerance if last else 4 * config.optimizer.tolerance,
            memory=config.optimizer.memory,
            first_step=None if change is None else FIRST_STEP,
            worthwhile=0.0 if fit.space is None else max(WORTHWHILE * energy.observations, least),
            callback=step,
        )
        fit.n_evaluations += energy.n_evaluations
        done += outcome.iterations
        x = outcome.x if change is None else change(outcome.x)
        if outcome.reason == "diverged":
            break
    energy(x)
    fit.mismatch = energy.parts["mismatch"]
    fit.x, fit.weight, fit.matching, fit.overlap = x, weight, posterior, overlap
    fit.observations, fit.last = energy.observations, energy
    fit.reasons.append(outcome.reason)
    return fit


def _changed(energy: Energy, change: Preconditioner, z: Tensor) -> tuple[float, Tensor]:
    value, gradient = energy(change(z))
    return value, change(gradient)


def _moved(energy: Energy, change: Preconditioner, z: Tensor) -> float:
    return energy.movement(change(z))


def precondition(energy: Energy, predicted: Tensor) -> Preconditioner:
    """Variables in which ``energy`` is about equally curved, judged by the contrast-mapped moving image ``[C_f, *S_f]``."""
    assert energy.space is not None
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
    canvas = math.prod(level.moving_grid.extent) / math.prod(energy.space.waves.spacing)
    return Preconditioner(energy.increment, energy.space, max(canvas, 1.0), curvature, curvature * energy.zoom**2)


COARSEST = 40
"""Pixels along the shorter side of the fixed image at the coarsest level, about."""


def build_levels(fixed: Image | Halvings, moving: Image | Halvings, start: Tensor, config: Config) -> list[Level]:
    """Both sides over a pyramid, coarse to fine, at matching resolutions, in their normalised frames.

    Args:
        fixed: standardised here; ``weight`` is its mask.
        moving: likewise.
        start: ``B_0``, which says how large a moving pixel is in fixed pixels.
    """
    fixed, moving = Halvings.of(fixed), Halvings.of(moving)
    ndim = fixed.grid.ndim
    zoom = float(homogeneous.determinant(start).abs()) ** (-1 / ndim)  # fixed pixels per moving pixel
    sizes = sorted(fixed.grid.shape)
    short = sizes[-2]  # the shorter side of a 2D image, the middle one of a volume
    finest = config.pyramid.finest
    while math.prod(fixed.grid.shape) / 2 ** (ndim * finest) > config.pyramid.max_pixels:
        finest += 1
    coarsest = max(finest, math.floor(math.log2(max(short / COARSEST, 1))))
    if config.pyramid.levels is not None:
        coarsest = finest + config.pyramid.levels - 1
    levels: list[Level] = []
    for k in range(coarsest, finest - 1, -1):
        f_data, f_weight, f_grid = fixed.at(k)
        m_data, m_weight, m_grid = moving.at(max(0, round(k - math.log2(zoom))))
        if f_weight is None:
            f_weight = torch.ones(f_grid.shape, dtype=torch.float32)
        if levels and levels[-1].fixed_grid.shape == f_grid.shape:
            continue
        if k == finest and noise_share(m_data) > NOISY:
            f_data, m_data = soften(f_data), soften(m_data)
        levels.append(Level(f_data, m_data, f_grid, m_grid, f_weight, m_weight))
    return levels


def velocity_space(moving: Grid, config: Config, sections: bool = False, plane: Tensor | None = None) -> VelocitySpace:
    """Velocities for a moving canvas: smoothness from its extent, `NODES` nodes to a scale over twice the canvas.

    Args:
        moving: the moving canvas, in its physical unit.
        config: settings; lengths in the moving unit.
        sections: whether neighbouring sections are aligned, which needs rougher velocities.
        plane: where a section is placed in a slab of a volume, ``B`` ``[4, 4]`` of the normalised frames; else None.
    """
    grid = Frame.of(moving).grid(moving)
    extent = math.prod(grid.extent) ** (1 / grid.ndim)
    flat = grid.ndim == 2
    relative, order, per_scale = (SCALE, ORDER, NODES) if flat else (SCALE_3D, ORDER_3D, NODES_3D)
    n_slices = config.n_slices or (3 if flat else 1)
    if sections:
        relative, order, per_scale = SECTIONS_SCALE, SECTIONS_ORDER, SECTIONS_NODES
    stiff = None
    if plane is not None:
        normal = torch.linalg.cross(plane[:3, 1], plane[:3, 2])
        normal = normal / normal.norm()
        stiff = torch.eye(3, dtype=torch.float64) - (1 - PLANE_ACROSS) * torch.outer(normal, normal)
        extent = math.prod(sorted(grid.extent)[1:]) ** 0.5  # of the section, not of the slab's thickness
        relative, order, per_scale = PLANE_SCALE, PLANE_ORDER, PLANE_NODES
    scale = extent * relative if config.sobolev.scale is None else config.sobolev.scale / moving.pixel
    deviation = extent * (DEVIATION if plane is None else PLANE_DEVIATION)
    if config.sigma_regularizer is not None:
        deviation = config.sigma_regularizer / moving.pixel
    spacing = scale / per_scale
    while True:
        shape = []
        for d in range(grid.ndim):
            margin = max(grid.extent[d] / 2, 2 * scale) if flat and grid.shape[d] > 1 else MARGIN_3D * scale
            shape.append(smooth_size(max(4, math.ceil((grid.extent[d] + 2 * margin) / spacing))))
        if math.prod(shape) * grid.ndim * n_slices <= MOST_VARIABLES:
            break
        spacing *= 1.25
    origin = tuple(-(n - 1) / 2 * spacing for n in shape)
    nodes = Grid(tuple(shape), (spacing,) * grid.ndim, origin)
    return VelocitySpace(
        nodes, n_slices, config.n_steps or n_slices, scale, config.sobolev.order or order, deviation, stiff=stiff
    )


def seen_at(fit: Fit, level: Level, metric: ImageMetric) -> tuple[Tensor, Tensor, Tensor]:
    """The contrast-mapped moving image under a fit at any level, the fixed one, and the weight of their overlap."""
    weight = torch.ones(level.fixed_grid.shape, dtype=torch.float32)
    energy = Energy(level, metric, fit.increment, fit.start, fit.space, weight, 1.0)
    with torch.no_grad():
        weight = energy.overlap(fit.x)
        warped = energy.warp(fit.x, level.moving, level.moving_grid)
    return fit_contrast(warped, level.fixed, weight), level.fixed, weight


def fit_pyramid(
    fixed: Image | Halvings,
    moving: Image | Halvings,
    start: Tensor,
    metric: Callable[[Level], ImageMetric],
    config: Config,
    landmarks: tuple[Tensor, Tensor, float] | None = None,
    callback: Callable[[str, int, int, int, float], None] | None = None,
    stained: bool = False,
    most: float | None = None,
    section: bool = False,
) -> Fit:
    """Fit the map coarse to fine: the affine part first, then both together.

    Args:
        start: ``B_0`` ``[D+1, D+1]``, inverse affine map of the normalised frames (fixed → moving).
        metric: makes the similarity ready for a level.
        landmarks: moving and fixed positions in their frames and σ_P in fixed pixels, or None.
        callback: called with stage, level, number of levels, iteration and energy after each step.
        stained: whether both sides are stained sections in transmitted light.
        most: independent observations that are counted at most, or None.
        section: whether the fixed side is one plane of the moving volume.
    """
    fixed, moving = Halvings.of(fixed), Halvings.of(moving)
    ndim = fixed.grid.ndim
    levels = build_levels(fixed, moving, start, config)

    def step(stage: str, number: int, iteration: int, energy: float) -> None:
        if callback is not None:
            callback(stage, number, len(levels), iteration, energy)

    kind = "still" if section else "affine" if config.transform == "lddmm" else config.transform
    radius = math.hypot(*Frame.of(fixed.grid).grid(fixed.grid).extent) / 2
    increment = Increment(kind, ndim, radius)
    fit = Fit(torch.zeros(increment.size, dtype=torch.float32), start, increment, None)
    bending = config.transform == "lddmm"
    rigid_levels = levels[:-1] if bending and len(levels) > 1 else levels
    if section:  # its plane is known already
        rigid_levels = [] if bending else levels[-1:]
    for number, level in enumerate(rigid_levels):
        with threads_for(level.work):
            fit = fit_level(
                fit, level, metric(level), config, stage="affine", number=number, constant_weights=number == 0,
                landmarks=landmarks, callback=step, most=most,
            )  # fmt: skip
    if not bending:
        return fit
    fit.texture = fit.shared
    fit.stained, fit.sections = stained, stained and fit.shared < SECTIONS
    if (
        fit.sections
        and len(levels) > 1
        and shared_structure(*seen_at(fit, levels[-1], metric(levels[-1]))) < NOTHING_SHARED
    ):
        levels = levels[:-1]
    space = velocity_space(moving.grid, config, fit.sections, fit.start if section else None)
    fit.space = space
    fit.x = torch.cat([fit.x, torch.zeros(space.size, dtype=torch.float32)])
    for number, level in enumerate(levels):
        with threads_for(level.work):
            if number > 0 and config.sigma_regularizer is None and not section:
                adapt_prior(fit, level.moving_grid)
            fit.space = fit.space.with_finer(
                2 if min(space.waves.spacing) >= CHORD * min(level.moving_grid.spacing) else 1
            )
            fit = fit_level(
                fit, level, metric(level), config, stage="lddmm", number=number, constant_weights=number == 0,
                fine=number >= len(rigid_levels) - 1, least=LEAST if level is not levels[-1] else 0.0,
                landmarks=landmarks, callback=step, most=most,
            )  # fmt: skip
    with threads_for(levels[-1].work):
        return simpler_if_as_good(fit, levels[-1], metric(levels[-1]), config, landmarks, step)


def simpler_if_as_good(
    fit: Fit,
    level: Level,
    metric: ImageMetric,
    config: Config,
    landmarks: tuple[Tensor, Tensor, float] | None,
    callback: Callable[[str, int, int, float], None],
) -> Fit:
    """The best affine map instead of a bent one whose bending the data do not ask for.

    Both are judged by the same energy (weights and N of the bent fit): the negative log-posterior, in which the bent map
    pays for its bending, so a bend that only fits noise loses.
    """
    assert fit.space is not None
    assert fit.weight is not None
    bent = Energy(
        level, metric, fit.increment, fit.start, fit.space, fit.weight, fit.observations, config.sigma_match, landmarks
    )
    with_bending, _ = bent(fit.x)
    straight = Energy(
        level, metric, fit.increment, fit.pullback, None, fit.weight, fit.observations, config.sigma_match, landmarks
    )

    def step(iteration: int, value: float) -> None:
        fit.history.append(
            {"stage": "straight", "level": level_number, "iteration": iteration, "energy": value, **straight.parts}
        )
        callback("straight", level_number, iteration, value)

    level_number = int(fit.history[-1]["level"]) if fit.history else 0
    outcome = minimize(
        straight, torch.zeros(fit.increment.size, dtype=torch.float32), straight.movement,
        max_iter=config.optimizer.max_iter, tolerance=config.optimizer.tolerance, memory=config.optimizer.memory,
        callback=step,
    )  # fmt: skip
    fit.n_evaluations += straight.n_evaluations + bent.n_evaluations
    fit.bending_gain = outcome.energy - with_bending
    overlap = straight.overlap(outcome.x)
    simpler = dataclasses.replace(
        fit,
        x=outcome.x,
        start=fit.pullback,
        space=None,
        overlap=overlap,
        reasons=[*fit.reasons, outcome.reason],
        last=straight,
    )
    if fit.bending_gain <= BENDING_EVIDENCE:
        return simpler
    # what a loss gains by bending it may have gained by matching what does not belong together: another judge
    judged = [seen_at(one, level, metric) for one in (fit, simpler)]
    helps = any(measure(*judged[0]) >= measure(*judged[1]) for measure in (shared_structure, coincidence))
    return fit if helps else simpler
