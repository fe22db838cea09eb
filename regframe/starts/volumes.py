"""Where two volumes start: as they lie or middle on middle, each refined on a coarse level."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..config import Config
from ..data import unit_ratio
from ..fit.energy import ImageMetric
from ..fit.frames import Frame, Increment
from ..fit.halvings import Halvings, Level
from ..fit.pyramid import Fit, build_levels, fit_level
from ..fit.threads import threads_for
from ..maps.homogeneous import compose, inverse
from ..reference import carry
from .pose import APART, EQUAL, Pose


def search_volume(fixed: Halvings, moving: Halvings, metric: Callable[[Level], ImageMetric], config: Config) -> Pose:
    """The better of the identity and the alignment of both middles, each refined on a coarse level."""
    ratio = unit_ratio(moving.grid.unit, fixed.grid.unit)
    ndim = fixed.grid.ndim
    zoom = ratio if ratio is not None else fixed.grid.diagonal / moving.grid.diagonal
    centred = torch.diag(torch.tensor([*[zoom] * ndim, 1.0], dtype=torch.float64))
    identity = centred.clone()
    middles = [torch.tensor(grid.center, dtype=torch.float64) for grid in (fixed.grid, moving.grid)]
    centred[:-1, -1] = middles[0] - zoom * middles[1]
    starts = [identity, centred] if ratio is not None and not torch.equal(identity, centred) else [centred]
    to_fixed, to_moving = Frame.of(fixed.grid).matrix(), Frame.of(moving.grid).matrix()
    kind = "rigid" if config.transform == "rigid" else "similarity"
    radius = math.hypot(*Frame.of(fixed.grid).grid(fixed.grid).extent) / 2
    scored: list[tuple[float, Tensor]] = []
    quick = config.model_copy(
        update={"optimizer": config.optimizer.model_copy(update={"max_iter": 30, "tolerance": 0.05})}
    )
    levels: list[Level] = []
    for matrix in starts:
        start = compose(to_moving, inverse(matrix), inverse(to_fixed))
        if not levels:
            levels = build_levels(fixed, moving, start, quick)[:1]
        increment = Increment(kind, ndim, radius)
        fit = Fit(torch.zeros(increment.size, dtype=torch.float32), start, increment, None)
        with threads_for(levels[0].work):
            fit = fit_level(fit, levels[0], metric(levels[0]), quick, stage="pose", number=0, constant_weights=True)
        if fit.overlap is None or not math.isfinite(fit.mismatch):
            continue
        share = float(fit.overlap.mean())
        # explained variance counts in proportion to the share of the fixed image it explains
        gain = -math.log(max(fit.mismatch, 1e-6)) * share
        scored.append((gain, compose(inverse(to_fixed), inverse(fit.pullback), to_moving)))
    if not scored:
        return Pose(starts[0], 0.0, None)
    highest = max(score for score, _ in scored)
    # of poses that fit equally well the plainest: the identity comes first
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
