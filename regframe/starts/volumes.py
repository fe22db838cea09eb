"""The start of two volumes: as they lie, or middle on middle, whichever fits better after a short fit on a coarse level."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..config import Config
from ..data import Grid
from ..fit.energy import ImageMetric
from ..fit.frames import Frame, Increment
from ..fit.halvings import Halvings, Level
from ..fit.mapspace import MapSpace
from ..fit.pyramid import Fit, LevelRules, Pair, build_levels, fit_level
from ..fit.steps import Stage
from ..fit.threads import threads_for
from ..maps.homogeneous import compose, inverse
from ..reference import carry
from .identity import as_they_lie
from .pose import APART, EQUAL, Pose
from .scale import Scale

QUICK_STEPS = 30
"""Largest number of steps of the short fit of one start: it only has to tell two starts apart."""
QUICK_TOLERANCE = 0.05
"""Movement per step, in pixels of the coarsest level, at which the short fit ends: a twentieth of a pixel is below what tells
two starts apart."""


def search_volume(fixed: Halvings, moving: Halvings, metric: Callable[[Level], ImageMetric], config: Config) -> Pose:
    """The better of two starts: the identity, and middle on middle; each is first fitted on the coarsest level."""
    ndim = fixed.grid.ndim
    starts = _starts(fixed.grid, moving.grid)
    to_fixed, to_moving = Frame.of(fixed.grid).matrix(), Frame.of(moving.grid).matrix()
    kind = "rigid" if config.transform == "rigid" else "similarity"
    radius = math.hypot(*Frame.of(fixed.grid).grid(fixed.grid).extent) / 2
    scored: list[tuple[float, Tensor]] = []
    quick = config.model_copy(
        update={
            "optimizer": config.optimizer.model_copy(update={"max_iter": QUICK_STEPS, "tolerance": QUICK_TOLERANCE})
        }
    )
    pair = Pair(fixed, moving, metric, quick)
    stage, rules = Stage("pose", 0, 1, QUICK_STEPS), LevelRules(constant_weights=True)
    levels: list[Level] = []
    for matrix in starts:
        start = compose(to_moving, inverse(matrix), inverse(to_fixed))
        if not levels:
            levels = build_levels(fixed, moving, start, quick)[:1]
        increment = Increment(kind, ndim, radius)
        fit = Fit(torch.zeros(increment.size, dtype=torch.float32), MapSpace(start, increment))
        with threads_for(levels[0].work):
            fit = fit_level(fit, levels[0], pair, stage, rules)
        if fit.overlap is None or not math.isfinite(fit.mismatch):
            continue
        share = float(fit.overlap.mean())
        # gain: minus the log of the mismatch per pixel, times the overlap, so that a good match of a small part does not win
        gain = -math.log(max(fit.mismatch, 1e-6)) * share
        scored.append((gain, compose(inverse(to_fixed), inverse(fit.pullback), to_moving)))
    if not scored:
        return Pose(starts[0], 0.0, None)
    highest = max(score for score, _ in scored)
    # among poses that fit equally well take the first one, which is the identity where the units allow it
    score, best = next(pair for pair in scored if pair[0] >= highest - EQUAL * abs(highest))
    corners = moving.grid.corners()
    rivals = [
        (other, matrix)
        for other, matrix in scored
        if float(carry(matrix - best, corners).norm(dim=1).mean()) > APART * fixed.grid.diagonal
    ]
    if not rivals:
        return Pose(best, score, None)
    rival, runner_up = max(rivals, key=lambda pair: pair[0])
    return Pose(best, score, max(0.0, (score - rival) / max(abs(score), 1e-9)), runner_up, rival)


def _starts(fixed: Grid, moving: Grid) -> list[Tensor]:
    """The starts to compare, ``A`` ``[D+1, D+1]`` each.

    As both sides lie, where their units can be converted; and middle on middle, where that is a different map.
    """
    scale = Scale.of(fixed, moving)
    zoom = scale.ratio if scale.ratio is not None else fixed.diagonal / moving.diagonal
    centred = torch.diag(torch.tensor([*[zoom] * fixed.ndim, 1.0], dtype=torch.float64))
    middles = [torch.tensor(grid.center, dtype=torch.float64) for grid in (fixed, moving)]
    centred[:-1, -1] = middles[0] - zoom * middles[1]
    lying = as_they_lie(fixed, moving)
    return [lying, centred] if scale.ratio is not None and not torch.equal(lying, centred) else [centred]
