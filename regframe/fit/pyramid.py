"""Fits a map of two images coarse to fine: first its affine part, then affine part and bend, then whether to keep the bend.

On each level the descent of the energy alternates with the estimation of the matching weights. The pyramid does not know what
kind of pair it fits: the solver states in a `Recipe` what to do differently. "Shared structure" is
`likeness.shared_structure`, 0 … 1.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ..config import Config
from ..data import Grid, Image
from ..reference import carry
from ..verdict import VIOLENT
from . import fluid
from .energy import Energy, ImageMetric
from .frames import KINDS, Frame, Increment, affine_kind, zoom_of
from .halvings import Halvings, Level, noise_share, soften
from .lbfgs import Descent
from .likeness import coincidence, correlation_area, fit_contrast, shared_structure
from .mapspace import MapSpace, Standing
from .mixture import SHARPEST, Mixture
from .precondition import descend, precondition
from .prior import FREE, PICTURES, VOLUMES, Prior, velocity_space
from .steps import Report, Stage, Steps
from .threads import threads_for
from .whole import Whole, strain

LEAST_EVIDENCE = 0.25
"""Least weight of an observation, 0 … 1, however little fine structure both sides share: coarse structure is evidence too."""
ENOUGH_SHARED = 0.5
"""Shared structure, 0 … 1, from which an observation counts in full: two images of one bent section share 0.2 to 0.9."""
CHORD = 16
"""Distance of velocity nodes, in pixels of a level, from which the velocity is evaluated on twice as many nodes per axis. At
that distance linear interpolation misses the waves by pixels, while cells are still large enough for the kernel to be fast."""
BENDING_EVIDENCE = 5.0
"""Nats by which the energy of a bent map must be lower than that of the best affine map for the bend to be kept: odds of 150 to
1."""
NOISY = 0.5
"""Share of the moving image's squared gradient, 0 … 1, that is white noise, above which noise would bias the finest level
towards positions between pixels; both sides are then softened."""
WORTHWHILE = 1e-4
"""Nats per independent observation that `PATIENCE` steps of a bent fit must gain together for it to continue."""
WORTHWHILE_3D = 1e-3
"""The same between two volumes, where a step costs many times as much. Population: twelve made volumes (``benchmarks/proving``,
`volume` and `turned-volume` 120 to 125): errors as with `WORTHWHILE` (0.371 and 0.374 of a voxel), in less time."""
LEAST = 1.0
"""Nats that `PATIENCE` steps of a bent fit must gain together on every level but the finest, however few the observations:
coarse levels need not be minimised to the last digit."""
TORN = 10 * VIOLENT
"""Change of area, as a ratio, beyond which a bend is none of tissue, whatever it explains: one that does not is looked for; where
none is found the affine map is kept."""
LOST = 0.75
"""Share of the judge's nats at the start that a fit must have lost for simpler ones to be looked at: a start was fitted to what
the judge sees, too, if coarser, so that lesser differences between both say nothing."""
SETTLING = 3
"""Number of EM steps before the classes are used for the first time, because their first guess is rough."""


@dataclass(frozen=True)
class Cuts:
    """What is done differently where both sides turn out to be neighbouring cuts of tissue, with other cells in each.

    Args:
        below: shared structure under the affine map, 0 … 1, below which the sides are treated as different cuts.
        prior: prior of the bend between different cuts.
        nothing: shared structure on the finest level, 0 … 1, below which that level is left out.
        weighed: whether the matching weights steer the bend between different cuts. They come from the contrast model, which the
            cells of another cut contradict nearly everywhere; False: they are reported, and every overlapping pixel steers.
        following: how a bend follows in small steps where the shared structure is below `Recipe.counted`, so that observations
            count least; None: it is fitted like any other, with the prior.
    """

    below: float
    prior: Prior
    nothing: float
    weighed: bool = False
    following: fluid.Following | None = None


@dataclass(frozen=True)
class Recipe:
    """How the fit of a kind of pair differs from that of any two pictures or volumes; the defaults are theirs.

    Args:
        moves: whether the affine part is fitted; where False the start is kept and only the bend is fitted.
        prior: prior of the bend; `prior.PICTURES` or `prior.VOLUMES` where None.
        counted: two values of the shared structure, 0 … 1: an observation counts `LEAST_EVIDENCE` near the first, in full from
            the second on, and proportionally between.
        cuts: what to do where the sides are different cuts; None where shared structure does not tell.
        most: largest number of independent observations that are counted.
        sparse: whether much of both sides is exactly empty, as densities of things are. What is empty on both sides fits exactly
            under any map, so it has no say in how well tissue fits where it matches.
    """

    moves: bool = True
    prior: Prior | None = None
    counted: tuple[float, float] = (0.0, ENOUGH_SHARED)
    cuts: Cuts | None = None
    most: float = math.inf
    sparse: bool = False

    def counts(self, shared: float) -> float:
        """Weight of an observation, `LEAST_EVIDENCE` … 1, where both sides have this much shared structure."""
        none, enough = self.counted
        return min(max((shared - none) / (enough - none), LEAST_EVIDENCE), 1.0)


class Judge(Protocol):
    """An independent measure of how well two sides match, which no fit descends."""

    def __call__(self, to_moving: Callable[[Tensor], Tensor], pullback: Tensor) -> float:
        """Nats, more is better, less what is unusual of the map.

        Args:
            to_moving: takes positions ``[N, D]`` of the fixed frame to the moving one.
            pullback: the affine part of it ``[D+1, D+1]``.
        """
        ...


@dataclass(frozen=True)
class Pair:
    """Two images and how they are to be fitted.

    Args:
        fixed: the side that stays where it is.
        moving: the side that is mapped onto ``fixed``.
        metric: function that prepares the metric for a pyramid level and returns it.
        config: all settings.
        landmarks: moving and fixed positions ``[M, D]`` in their frames and σ_P in fixed pixels, or None.
        recipe: how the fit of this kind of pair differs from the default.
        judge: says whether a richer model of a map is worth it, beside the energies; None where there is none.
        followed: functions that prepare a metric for a pyramid level, by which a bend follows between different cuts; where
            empty, it is fitted like any other.
    """

    fixed: Halvings
    moving: Halvings
    metric: Callable[[Level], ImageMetric]
    config: Config
    landmarks: tuple[Tensor, Tensor, float] | None = None
    recipe: Recipe = Recipe()
    judge: Judge | None = None
    followed: tuple[Callable[[Level], ImageMetric], ...] = ()

    def energy(self, level: Level, metric: ImageMetric, maps: MapSpace, weight: Tensor, observations: float) -> Energy:
        """The energy of a level, in these settings."""
        return Energy(level, metric, maps, weight, observations, self.config.sigma_match, self.landmarks)


@dataclass(frozen=True)
class LevelRules:
    """How the fit of one level differs from that of others.

    Args:
        constant_weights: True on the first level of a stage, where every overlapping pixel counts as matching.
        fine: whether the level is at least as fine as the finest level of the affine fit; only then may shared structure found on
            it raise the weight of observations.
        least: nats that `PATIENCE` steps of a bent fit must gain together, however few the observations.
        held: True where the map stays as it is, and only the weights are found.
        whole: change of area, as a ratio, that has a price (`whole.Whole`).
    """

    constant_weights: bool = False
    fine: bool = True
    least: float = 0.0
    held: bool = False
    whole: float = math.inf


@dataclass
class Fit(Standing):
    """The state of a fit over a pyramid: variables, maps, and what has been found so far.

    Args:
        weight: weight of each fixed pixel of the last level ``[*S_f]``: matching probability, mask and overlap; or None.
        matching: matching probability of the last level alone ``[*S_f]``.
        overlap: weight ``[*S_f]`` of the last level's pixels that map onto trusted moving pixels.
        history: one entry per step.
        reasons: how the minimisation of each level ended, coarse to fine (see `lbfgs.Outcome`).
        n_evaluations: total number of energy evaluations.
        observations: N of the last energy.
        mismatch: the metric's value at the end of the last level.
        bending_gain: nats by which the energy of the bent map is lower than that of the best affine map; of a bend that was
            followed, by which its matching term is lower than that of the affine map. None where no bend was asked for.
        shared: shared structure on the last level, 0 … 1.
        texture: shared structure on the finest level of the affine fit, 0 … 1.
        sections: whether the sides are different cuts of tissue (see `Cuts`).
        nats: evidence for the map by the independent judge, in nats; None where there is no judge.
        straight_nats: that of the affine fit before it was bent; None where there is no judge or no bend was tried.
        asked: kind of the affine part that was asked for, which ``increment`` may be simpler than.
        lost: whether the affine fit led away from a start that the judge preferred (see `LOST`).
        torn: by how much a bend changed areas that was given up for it, or fitted again within what tissue does; or None.
        following: whether the bend was found by `fluid.follow`.
        held_out: what pixels gained by a bend that followed others (`fluid.held_out`); None where that was not asked.
        held: whether the map is the one that was held to the landmarks; None where ``sigma_landmarks`` is not set.
        moved: how far the last level of a bent fit moved what both sides show, rms in pixels of the moving image, or None.
        last: the energy that ``x`` minimises, or None.
        steep: whether the metric had a gradient anywhere.
    """

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
    sections: bool = False
    nats: float | None = None
    straight_nats: float | None = None
    asked: str = ""
    lost: bool = False
    torn: float | None = None
    following: bool = False
    held_out: float | None = None
    held: bool | None = None
    moved: float | None = None
    last: Energy | None = None
    steep: bool = False

    def on_host(self) -> Fit:
        """This fit with all its tensors on the host, for figures and results; ``last`` stays with the images of its level."""
        out = self.on("cpu")
        weight, matching, overlap = (
            None if value is None else value.cpu() for value in (self.weight, self.matching, self.overlap)
        )
        return dataclasses.replace(out, weight=weight, matching=matching, overlap=overlap)


def adapt_prior(fit: Fit, moving: Grid, margin: float) -> None:
    """Set the prior's deviation from the displacement found so far; see `Standing.adapt_prior`.

    Args:
        fit: a fit after at least one level with a bend.
        moving: the moving canvas in its frame; the displacement at nodes outside it is left out.
        margin: the prior standard deviation over the rms displacement.
    """
    assert fit.space is not None
    velocity = fit.velocity
    assert velocity is not None
    displacement = velocity.mean(dim=0)  # [D, *S]
    inside = moving.contains(fit.space.grid.coords(displacement.device))
    fit.adapt_prior(float((displacement**2).sum(dim=0)[inside].mean().div(moving.ndim).sqrt()), margin)


def _filled(level: Level, predicted: Tensor) -> Tensor:
    """Where either side is not empty ``[*S_f]``, of fixed images and predictions ``[C_f, *S_f]`` in standard deviations.

    Empty is what lies less than `SHARPEST` above a channel's least value.
    """
    ndim = level.fixed_grid.ndim
    empty = level.fixed.flatten(1).amin(dim=1).reshape(-1, *(1,) * ndim) + SHARPEST
    return ((level.fixed > empty) | (predicted > empty)).any(dim=0)


def _classes(mixture: Mixture | None, level: Level, predicted: Tensor, overlap: Tensor) -> Mixture:
    """The mixture of a level after one more EM step (`SETTLING` steps where it is new).

    Args:
        mixture: the mixture so far, or None.
        level: the images.
        predicted: the contrast-mapped moving image ``[C_f, *S_f]``.
        overlap: weight of the overlap ``[*S_f]``.
    """
    settling = 1
    if mixture is None:
        mixture = Mixture.start(level.fixed, predicted, overlap)
        settling = SETTLING
    for _ in range(settling):
        mixture.update(level.fixed, predicted, overlap)
    return mixture


def fit_level(fit: Fit, level: Level, pair: Pair, stage: Stage, rules: LevelRules, report: Report = None) -> Fit:
    """Minimise the energy of one level in several rounds; before each one the matching weights are estimated anew."""
    config, metric = pair.config, pair.metric(level)
    weighed = config.matching.enabled and not rules.constant_weights
    steered = weighed and not (fit.sections and pair.recipe.cuts is not None and not pair.recipe.cuts.weighed)
    rounds, done = config.matching.rounds if steered else 1, 0
    mixture: Mixture | None = None
    posterior = ones = torch.ones_like(level.fixed_weight, dtype=torch.float32)
    for turn in range(rounds):
        fit.take_enough_steps(config)
        energy = pair.energy(level, metric, fit.maps, ones, 1.0)
        overlap = energy.overlap(fit.x)
        with torch.no_grad():
            warped = energy.warp(fit.x, level.moving, level.moving_grid)
        predicted = fit_contrast(warped, level.fixed, overlap * posterior)
        if weighed:
            told = overlap * _filled(level, predicted) if pair.recipe.sparse else overlap
            mixture = _classes(mixture, level, predicted, told)
            posterior = mixture.matching(level.fixed, predicted)
        energy.weight = weight = overlap * posterior if steered else overlap
        area = correlation_area(level.fixed - predicted, weight)
        fit.shared = shared_structure(predicted, level.fixed, weight)
        # observations count by the structure that both sides share: structure of one side alone matches by chance anywhere.
        # Between different cuts, only what the affine map shares counts: a bend could create more by chance.
        shared = fit.texture
        if rules.fine and fit.space is not None and not fit.sections:
            shared = max(shared, fit.shared)
        observations = float(weight.sum(dtype=torch.float64)) / area * pair.recipe.counts(shared)
        energy.observations = min(observations, pair.recipe.most)
        if rules.held:
            continue
        descent = _descent(config, done, turn == rounds - 1)
        change = None
        if fit.space is not None:
            change = precondition(energy, predicted)
            shape = level.fixed_grid.shape
            worth = (
                WORTHWHILE_3D if len(shape) == 3 and min(shape) > 1 else WORTHWHILE
            )  # a section in a volume is a picture
            least = max(worth * energy.observations, rules.least)
            descent = dataclasses.replace(descent, worthwhile=least)
        within = energy if math.isinf(rules.whole) else Whole(energy, fit.x, rules.whole)
        outcome = descend(within, fit.x, descent, change, Steps(stage, energy, fit.history, report, done))
        fit.n_evaluations += energy.n_evaluations
        done += outcome.iterations
        fit.x = outcome.x
        if outcome.reason == "diverged":
            break
    energy(fit.x)
    fit.mismatch = energy.parts["mismatch"]
    fit.steep = fit.steep or energy.steep
    fit.weight, fit.matching, fit.overlap = weight, posterior, overlap
    fit.observations, fit.last = energy.observations, energy
    fit.reasons.append("held" if rules.held else outcome.reason)
    return fit


def _descent(config: Config, done: int, last: bool) -> Descent:
    """Limits of one round of a level: all rounds but the last one are only rough.

    Args:
        config: all settings.
        done: steps already made on this level.
        last: whether this is the last round.
    """
    options = config.optimizer
    budget = max(options.max_iter - done, 0)
    if last:
        return Descent(budget, options.tolerance, options.memory)
    return Descent(min(budget, max(5, options.max_iter // 5)), 4 * options.tolerance, options.memory)


COARSEST = 40
"""About how many pixels the shorter side of the fixed image has on the coarsest level: few enough for descent to correct a
shift by several pixels of that level, enough to show the shape of the tissue."""


def build_levels(fixed: Image | Halvings, moving: Image | Halvings, start: Tensor, config: Config) -> list[Level]:
    """Both sides on every pyramid level, coarse to fine, at matching resolutions, in their normalised frames.

    Args:
        fixed: the fixed side; its ``weight`` is its mask.
        moving: the moving side; its ``weight`` is its mask.
        start: ``B_0`` ``[D+1, D+1]``, from which the size of a moving pixel in fixed pixels follows.
        config: states the resolutions that are wanted.
    """
    fixed, moving = Halvings.of(fixed), Halvings.of(moving)
    ndim = fixed.grid.ndim
    zoom = zoom_of(start)  # fixed pixels per moving pixel
    sizes = sorted(fixed.grid.shape)
    short = sizes[-2]  # the shorter side of a 2D image, the middle one of a volume
    finest = config.pyramid.finest
    while math.prod(fixed.grid.shape) / 2 ** (ndim * finest) > config.most_of(fixed.grid.shape):
        finest += 1
    coarsest = max(finest, math.floor(math.log2(max(short / COARSEST, 1))))
    if config.pyramid.levels is not None:
        coarsest = finest + config.pyramid.levels - 1
    levels: list[Level] = []
    for k in range(coarsest, finest - 1, -1):
        f_data, f_weight, f_grid = fixed.at(k)
        m_data, m_weight, m_grid = moving.at(max(0, round(k - math.log2(zoom))))
        if f_weight is None:
            f_weight = torch.ones(f_grid.shape, dtype=torch.float32, device=f_data.device)
        if levels and levels[-1].fixed_grid.shape == f_grid.shape:
            continue
        if k == finest and noise_share(m_data) > NOISY:
            f_data, m_data = soften(f_data), soften(m_data)
        levels.append(Level(f_data, m_data, f_grid, m_grid, f_weight, m_weight, (fixed.side, moving.side)))
    return levels


def seen_at(fit: Fit, level: Level, metric: ImageMetric) -> tuple[Tensor, Tensor, Tensor]:
    """The images under a fit, at any level, for judging them.

    Returns the contrast-mapped moving image ``[C_f, *S_f]``, the fixed image ``[C_f, *S_f]``, and the weight of their overlap
    ``[*S_f]``.
    """
    energy = Energy(level, metric, fit.maps, torch.ones_like(level.fixed_weight, dtype=torch.float32), 1.0)
    with torch.no_grad():
        weight = energy.overlap(fit.x)
        warped = energy.warp(fit.x, level.moving, level.moving_grid)
    return fit_contrast(warped, level.fixed, weight), level.fixed, weight


def fit_pyramid(pair: Pair, start: Tensor, report: Report = None) -> Fit:
    """Fit the map coarse to fine: the affine part first, then both together.

    Args:
        pair: the two images and how to fit them.
        start: ``B_0`` ``[D+1, D+1]``, inverse affine map of the normalised frames (fixed → moving).
        report: called after each step.
    """
    grid = pair.fixed.grid
    bending = pair.config.transform == "lddmm"
    levels = build_levels(pair.fixed, pair.moving, start, pair.config)
    straight = levels[:-1] if bending and len(levels) > 1 else levels
    if not pair.recipe.moves:
        straight = [] if bending else levels[-1:]

    def straight_fit(kind: str, held: bool = False) -> Fit:
        increment = Increment(kind, grid.ndim, math.hypot(*Frame.of(grid).grid(grid).extent) / 2)
        fit = Fit(torch.zeros(increment.size, dtype=torch.float32), MapSpace(start, increment))
        for number, level in enumerate(straight):
            stage = Stage("affine", number, len(levels), pair.config.optimizer.max_iter)
            rules = LevelRules(constant_weights=number == 0, held=held)
            with threads_for(level.work):
                fit = fit_level(fit, level, pair, stage, rules, report)
        return fit

    kind = affine_kind(pair.config.transform) if pair.recipe.moves else "still"
    fit = _worth_it(straight_fit, kind, pair)
    fit.asked = kind
    if not bending:
        return fit
    fit.texture = fit.shared
    cuts = pair.recipe.cuts
    fit.sections = cuts is not None and fit.shared < cuts.below
    if cuts is not None and fit.sections and len(levels) > 1:
        finest = levels[-1]
        if shared_structure(*seen_at(fit, finest, pair.metric(finest))) < cuts.nothing:
            levels.pop()
    if cuts is not None and cuts.following is not None and pair.followed and fit.shared < pair.recipe.counted[0]:
        followed = _follow(fit, levels, pair, cuts, report)
        if followed is not None:
            return followed
    return fit_bend(fit, levels, len(straight) - 1, pair, report)


def _follow(fit: Fit, levels: list[Level], pair: Pair, cuts: Cuts, report: Report) -> Fit | None:
    """The bend that follows by `fluid.follow`, after the affine fit, or the affine fit, where the judge prefers it.

    None where pixels that had no say in a bend gain too little by it: there is nothing to follow then.
    """
    assert cuts.following is not None
    before = dataclasses.replace(fit, history=list(fit.history), reasons=list(fit.reasons))
    used = fluid.levels_to_follow(levels, cuts.following)
    with threads_for(used[-1].work):
        choice = fluid.chosen(used, fit.pullback, pair.followed[0], cuts.following)
        fit.held_out = choice.gain.mean
        if choice.gain.share == 0:
            return None
        found = fluid.follow(used, fit.pullback, pair.followed, cuts.prior, choice.how, choice.gain.share)
    for number, values in enumerate(found.values):
        index = len(levels) - len(used) + number % len(used)
        stage = Stage("following", index, len(levels), len(values))
        for k, value in enumerate(values):
            fit.history.append({"stage": stage.name, "level": index, "iteration": k + 1, "energy": value})
        if values:
            stage.tell(report, len(values), values[-1])
    fit.n_evaluations += sum(map(len, found.values))
    fit.maps = MapSpace(fit.pullback, fit.increment, found.space)
    fit.x = torch.cat([0 * fit.x.to(found.variables.device), found.variables])
    fit.following = True
    level, stage = levels[-1], Stage("lddmm", len(levels) - 1, len(levels), 1)
    with threads_for(level.work):
        fit = fit_level(fit, level, pair, stage, LevelRules(held=True), report)
        assert fit.last is not None
        fit.history.append(
            {"stage": stage.name, "level": stage.level, "iteration": 1, "energy": float(fit.last(fit.x)[0])}
            | fit.last.parts
        )
        straight = Energy(level, fit.last.metric, fit.maps.with_space(None), fit.last.weight, fit.observations)
        straight(0 * before.x)
        fit.bending_gain = straight.parts["matching"] - fit.last.parts["matching"]
        return fit if pair.judge is None else _no_worse(fit, before, level, pair, pair.judge)


def to_moving(fit: Fit, at: Tensor) -> Tensor:
    """Positions ``[N, D]`` of the fixed frame in the moving one, under a fit."""
    return fit.maps.points(fit.x, at, to_moving=True)


class _Straight(Protocol):
    """Makes the affine fit of a kind of increments, or weighs the start as it is where that is ``held``."""

    def __call__(self, kind: str, held: bool = False) -> Fit: ...


def _worth_it(fitted: _Straight, kind: str, pair: Pair) -> Fit:
    """The fit of the asked ``kind``, or a simpler one where the judge sees no more in the richer one than chance gives.

    Simpler ones, and the start itself, are looked at only where the fit has `LOST` much of what it began with, by the judge.
    """
    fit = fitted(kind)
    if pair.judge is None or kind not in KINDS:
        return fit
    judge, start = pair.judge, fit.start

    def judged(one: Fit) -> float:
        return judge(functools.partial(to_moving, one), one.pullback) - FREE * one.increment.size

    began = judge(functools.partial(carry, start), start)
    best = judged(fit)
    kept = best + FREE * fit.increment.size
    if kept >= began or kept > (1 - LOST) * began:
        return fit
    n_evaluations, chosen = fit.n_evaluations, fit
    for simpler in KINDS[: KINDS.index(kind)]:
        other = fitted(simpler)
        n_evaluations += other.n_evaluations
        if (nats := judged(other)) > best:
            chosen, best = other, nats
    if (1 - LOST) * began > best:
        chosen = fitted(KINDS[0], held=True)
    chosen.n_evaluations, chosen.lost = n_evaluations, True
    return chosen


def fit_bend(fit: Fit, levels: list[Level], fine: int, pair: Pair, report: Report) -> Fit:
    """Fit affine part and bend together over all ``levels``, after the affine fit.

    Args:
        fit: the affine fit.
        levels: the levels, coarse to fine.
        fine: index of the first level that counts as fine (see `LevelRules`).
        pair: the two images and how to fit them.
        report: called after each step.
    """
    config = pair.config
    before = dataclasses.replace(fit, history=list(fit.history), reasons=list(fit.reasons))
    prior = pair.recipe.prior or (PICTURES if pair.moving.grid.ndim == 2 else VOLUMES)
    if fit.sections and pair.recipe.cuts is not None:
        prior = pair.recipe.cuts.prior
    space = velocity_space(pair.moving.grid, config, prior, fit.start)
    fit.bend(space.on(levels[0].fixed.device))
    seen = levels[0].fixed_grid.coords().reshape(-1, levels[0].fixed_grid.ndim)  # [N, D]

    def bent(fit: Fit, first: int = 0, most: float = math.inf) -> list[Fit]:
        """The fit after each of the levels from the ``first`` on, with a price on areas changed by ``most``."""
        after = []
        for number, level in enumerate(levels[first:], first):
            was = to_moving(fit, seen)  # [N, D]
            with threads_for(level.work):
                if number > 0 and config.sigma_regularizer is None and prior.adapts is not None:
                    adapt_prior(fit, level.moving_grid, prior.adapts)
                assert fit.space is not None
                finer = 2 if min(space.waves.spacing) >= CHORD * min(level.moving_grid.spacing) else 1
                fit.maps = fit.maps.with_space(fit.space.with_finer(finer))
                stage = Stage("lddmm", number, len(levels), config.optimizer.max_iter)
                least = LEAST if level is not levels[-1] else 0.0
                fit = fit_level(
                    fit, level, pair, stage, LevelRules(number == 0, number >= fine, least, whole=most), report
                )
            fit.moved = _moved(fit, seen, was, pair.moving.grid)
            after.append(_kept(fit))
        return after

    states = [_kept(fit), *bent(fit)]
    fit = states[-1] if config.sigma_regularizer is not None else _whole(states, bent)
    with threads_for(levels[-1].work):
        fit = simpler_if_as_good(fit, levels[-1], pair, len(levels), report)
        return fit if pair.judge is None else _no_worse(fit, before, levels[-1], pair, pair.judge)


def _kept(fit: Fit) -> Fit:
    """A copy of the state of a fit, which further levels do not change."""
    return dataclasses.replace(fit, history=list(fit.history), reasons=list(fit.reasons))


def _whole(states: list[Fit], again: Callable[[Fit, int, float], list[Fit]]) -> Fit:
    """The last fit of ``states``, or where that one has `TORN` the last one of a second try.

    Which descent tears is a matter of the last bits where a bend is strong. The second one, on which changes of area have a price
    (`whole.Whole`), goes on from before the first level that changed them more than `VIOLENT`-fold. Where it does so too, the
    first one stays.

    Args:
        states: the fit before the first level, and after each.
        again: fits the levels from a number on, with a price on changes of area beyond a ratio; gives the fit after each.
    """
    last, strains = states[-1], [_strain(fit) for fit in states[1:]]
    if strains[-1] <= TORN:
        return last
    first = next(number for number, much in enumerate(strains) if much > VIOLENT)
    second = again(_kept(states[first]), first, VIOLENT)[-1]
    chosen = last if _strain(second) > VIOLENT else second
    chosen.n_evaluations = last.n_evaluations + second.n_evaluations - states[first].n_evaluations
    chosen.torn = strains[-1]
    return chosen


def _moved(fit: Fit, seen: Tensor, was: Tensor, moving: Grid) -> float:
    """How far a fit moved positions ``[N, D]`` of the fixed frame that both sides show, rms in pixels of the moving image.

    Args:
        fit: the fit.
        seen: the positions.
        was: where they were in the moving frame before ``[N, D]``.
        moving: canvas of the moving image in its frame.
    """
    now = to_moving(fit, seen)
    shown = moving.contains(now)
    if not bool(shown.any()):
        return math.inf
    return float((now - was)[shown].square().sum(dim=-1).mean().sqrt()) / min(moving.spacing)


def _no_worse(fit: Fit, before: Fit, level: Level, pair: Pair, judge: Judge) -> Fit:
    """A fit that was bent, or the affine one ``before`` the bend, carried to the last level, where the judge prefers it."""
    ends = [judge(functools.partial(to_moving, one), one.pullback) for one in (fit, before)]
    fit.straight_nats = before.straight_nats = ends[1]
    much = _strain(fit)
    if ends[0] - ends[1] >= 0 and much <= TORN:
        return fit
    torn = much if fit.torn is None and much > TORN else fit.torn
    stage = Stage("straight", int(fit.history[-1]["level"]) if fit.history else 0, 1, pair.config.optimizer.max_iter)
    spent = fit.n_evaluations - before.n_evaluations
    bending_gain, history = fit.bending_gain, fit.history
    fit = fit_level(before, level, pair, stage, LevelRules())
    fit.n_evaluations += spent
    fit.bending_gain, fit.history, fit.torn = bending_gain, history, torn
    return fit


def _strain(fit: Fit) -> float:
    """`whole.strain` of a fit on its last level."""
    assert fit.last is not None
    return strain(fit.last, fit.x)


def simpler_if_as_good(fit: Fit, level: Level, pair: Pair, n_levels: int, report: Report = None) -> Fit:
    """The bent fit, or the best affine map where the data do not call for the bend.

    Both are judged by one energy (with the weights and N of the bent fit): the negative log-posterior, in which the bent map
    pays for its bending, so that a bend that only fits noise loses.

    Args:
        fit: the bent fit, after its last level.
        level: its last level.
        pair: the two images and how they were fitted.
        n_levels: number of levels.
        report: called after each step.
    """
    assert fit.space is not None
    assert fit.weight is not None
    metric, options = pair.metric(level), pair.config.optimizer
    bent = pair.energy(level, metric, fit.maps, fit.weight, fit.observations)
    with_bending = float(bent(fit.x)[0])
    maps = MapSpace(fit.pullback, fit.increment)
    straight = pair.energy(level, metric, maps, fit.weight, fit.observations)
    stage = Stage("straight", int(fit.history[-1]["level"]) if fit.history else 0, n_levels, options.max_iter)
    outcome = descend(
        straight,
        torch.zeros(fit.increment.size, dtype=torch.float32),
        Descent(options.max_iter, options.tolerance, options.memory),
        callback=Steps(stage, straight, fit.history, report),
    )
    fit.n_evaluations += straight.n_evaluations + bent.n_evaluations
    fit.bending_gain = outcome.energy - with_bending
    simpler = dataclasses.replace(
        fit,
        x=outcome.x,
        maps=maps,
        overlap=straight.overlap(outcome.x),
        reasons=[*fit.reasons, outcome.reason],
        last=straight,
    )
    if fit.bending_gain <= BENDING_EVIDENCE:
        return simpler
    # the energy may have fallen by matching unrelated structure; so the bend must also raise one of two measures it was not
    # fitted to
    judged = [seen_at(one, level, metric) for one in (fit, simpler)]
    helps = any(measure(*judged[0]) >= measure(*judged[1]) for measure in (shared_structure, coincidence))
    return fit if helps else simpler
