"""The straight map (rigid, similarity or affine) of two clouds, annealed from a wide scale σ to a narrow one, coarse to fine.

Where a constant names no source, neither a paper nor a calibration is recorded for it; ``benchmarks/bench_points.py`` measures
what they achieve together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ...config import Config
from ...fit.clouds import Floats, Match, carried, fit_pairs, match, outliers_of, radius_of, some, spacing_of, thinned
from ...fit.frames import affine_kind
from ...fit.steps import Report, Stage

COOLING = 0.75
"""Factor from one scale σ to the next: small enough a change for EM to follow the optimum as it moves."""
SHARPEST = 1e-4
"""Smallest σ of a straight map, in spacings of the fixed points: points nearer to each other than that are practically one."""
LEAST_MATCHED = 0.4
"""Share of the points matched at the best scale so far that a narrower scale must still match to be accepted. Otherwise a few
points that lie on each other by chance would win."""
MOST_FITTED = 1200
"""Largest number of fixed points in the fit of the finest level; every moving point may be the partner of one."""
THINNED = (128, 512)
"""Places to which larger clouds are thinned on the levels before the finest one, coarse to fine."""
FIRST_SCALE = 0.08
"""σ at the start, over the root mean square radius of the fixed cloud: a little above the last scale of the pose search
(`starts.points.SETTLED`)."""
FIRST_OUTLIERS = 0.1
"""Share ω of fixed points without a partner at the start: the value of the pose search (`starts.points.ALONE`)."""
WIDE = 1.5
"""Least σ at the start of a level, in spacings of its fixed points: a point that is off by the distance of two neighbours must
still find its own partner. Chosen on the fish and the bunnies of benchmarks/bench_points.py."""
AFFINE_WIDE = 4.0
"""Least σ at the start of an affine map that follows a similarity, in spacings of the fixed points: the similarity may be far
off. Chosen on the fish and the bunnies of benchmarks/bench_points.py."""
RELAXED = 1.5
"""Factor by which σ is widened between two thinned levels, because the places of the next level are other ones."""


@dataclass(frozen=True)
class State:
    """A straight map and how well it fits.

    Args:
        matrix: ``A`` ``[D+1, D+1]``, moving → fixed.
        sigma: σ, in fixed pixels.
        outliers: ω, the share of fixed points without a partner.
        value: mean log-density of the fixed points, in nats, higher is better.
    """

    matrix: Floats
    sigma: float
    outliers: float
    value: float = -math.inf


def anneal(kind: str, p: Floats, q: Floats, start: State, narrowest: float, steps: int = 2) -> State:
    """The straight map of ``kind`` under which the moving points explain ``q`` best, followed from a wide scale to a narrow one.

    ``steps`` EM steps are made at each scale. The state of the scale with the highest likelihood is returned.

    Args:
        kind: ``rigid``, ``similarity`` or ``affine``; ``start`` must be of this kind. For a rigid map with a known change of
            unit, ``p`` is scaled beforehand.
        p: moving points ``[N, D]``.
        q: fixed points ``[M, D]``.
        start: the map and the widest scale.
        narrowest: smallest σ, in fixed pixels.
        steps: EM steps per scale.
    """
    volume = float(np.prod(np.ptp(q, axis=0)))
    now, best = start, start
    worse = 0
    while True:
        for _ in range(steps):
            found = match(carried(now.matrix, p), q, now.sigma, now.outliers, volume)
            now = replace(now, matrix=m_step(kind, p, q, found, now.matrix), outliers=outliers_of(found))
        value = float(match(carried(now.matrix, p), q, now.sigma, now.outliers, volume).log_density.mean())
        now = replace(now, value=value)
        lost = 1 - now.outliers < LEAST_MATCHED * (1 - best.outliers)
        if value > best.value and not lost:
            best, worse = now, 0
        else:
            worse += 1
        if worse >= 8 or now.sigma <= narrowest or lost:
            break
        residual = math.sqrt(max(found.square, 0.0))  # far below σ where pairs fit exactly: then σ may shrink faster
        now = replace(now, sigma=max(min(now.sigma * COOLING, max(2 * residual, 0.2 * now.sigma)), narrowest))
    return best


def m_step(kind: str, p: Floats, q: Floats, found: Match, before: Floats) -> Floats:
    """The least-squares map ``[D+1, D+1]`` of ``kind`` for the pairs of an E step; ``before`` where they are too few."""
    keep = found.share > 1e-8
    rows, w = found.rows[keep], found.share[keep]
    at = np.broadcast_to(np.arange(len(q))[:, None], keep.shape)[keep]
    if w.sum() < p.shape[1] + 1:
        return before
    mirrored = np.linalg.det(before[:-1, :-1]) < 0
    if kind == "affine" or not mirrored:
        matrix = fit_pairs(kind, p[rows], q[at], w)
        return matrix if np.isfinite(matrix).all() and np.linalg.det(matrix[:-1, :-1]) != 0 else before
    flip = np.eye(p.shape[1] + 1)
    flip[0, 0] = -1
    return fit_pairs(kind, carried(flip, p[rows]), q[at], w) @ flip


# ---- straight maps -------------------------------------------------------------------------------------------------


def straighten(p: Floats, q: Floats, start: Floats, config: Config, report: Report = None) -> State:
    """Fit the straight map from a pose, coarse to fine: thinned clouds first, then the points themselves.

    Args:
        p: moving points ``[N, D]``, in fixed pixels.
        q: fixed points ``[M, D]``, in fixed pixels.
        start: the pose ``[D+1, D+1]``.
        config: gives the kind of map (an affine map is preceded by a similarity) and the seed of the random subset of points on
            the finest level.
        report: called after each level, with the energy in nats per fixed point.
    """
    kind, level = affine_kind(config.transform), 0
    state = State(start, FIRST_SCALE * radius_of(q), FIRST_OUTLIERS)
    kinds = [kind] if kind != "affine" else ["similarity", "affine"]
    for count in THINNED:
        if 2 * count <= max(len(p), len(q)):
            ps, qs = thinned(p, count), thinned(q, count)
            for one in kinds:
                state = anneal(one, ps, qs, replace(state, value=-math.inf), 0.5 * spacing_of(qs))
                state = replace(state, sigma=RELAXED * state.sigma)
                stage_of("affine", level, config).tell(report, 1, -state.value)
            kinds, level = kinds[-1:], level + 1
    qs, spacing = some(q, MOST_FITTED, config.seed), spacing_of(q)
    for one in kinds:
        before, wide = state, max(state.sigma, (AFFINE_WIDE if one == "affine" and len(kinds) > 1 else WIDE) * spacing)
        state = anneal(one, p, qs, replace(before, sigma=wide, value=-math.inf), SHARPEST * spacing)
        if state.value < before.value:  # so wide a scale that all points seemed to be without a partner
            narrow = replace(before, sigma=max(before.sigma, WIDE * spacing), value=-math.inf)
            state = max(before, anneal(one, p, qs, narrow, SHARPEST * spacing), key=lambda each: each.value)
        stage_of("affine", level, config).tell(report, 1, -state.value)
    return state


def stage_of(name: str, level: int, config: Config) -> Stage:
    """A `Stage` of the fit of two clouds.

    It always counts as the last one: how many levels will follow is not known in advance.
    """
    return Stage(name, level, level + 1, config.optimizer.max_iter)
