"""A map of two images fitted coarse to fine: the affine part first, then both together, then whether the bend was worth it.

Each level alternates between the descent of its energy and the E step of the matching weights.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..config import Config
from ..data import Grid, Image
from ..maps import homogeneous
from .energy import Energy, ImageMetric
from .frames import Frame, Increment
from .halvings import Halvings, Level, noise_share, soften
from .lbfgs import FIRST_STEP, minimize
from .likeness import coincidence, correlation_area, fit_contrast, shared_structure
from .mixture import Mixture
from .prior import velocity_space
from .threads import threads_for
from .velocity import Preconditioner, VelocitySpace, enough_steps

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
CHORD = 16
"""Pixels of a level between two nodes from which twice as many per axis are worth their price: the chords of long waves are
far off there, and cells still large enough to be walked through fast."""
BENDING_EVIDENCE = 5.0
"""Nats by which the energy of a bent map must be lower than the best affine one's for the bend to be kept."""
DEVIATION_FLOOR = 0.03
"""Smallest prior deviation the fit may arrive at, in moving pixels."""
DEVIATION_MARGIN = 3.0
"""The prior deviation of the next level over the rms displacement found so far: wide enough to leave room for more."""
NOISY = 0.5
"""Share of the moving image's squared gradient above which noise would steer the finest level: both sides are softened."""
WORTHWHILE = 1e-4
"""Nats per independent observation below which the gain of `PATIENCE` steps of a bent fit is not worth them."""
LEAST = 1.0
"""Nats that those steps must gain at least on all levels but the finest, which need not be settled to the last."""


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
        shared: share of the fine structure that both images have at the last level (`likeness.shared_structure`).
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
