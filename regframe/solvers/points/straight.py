"""The straight map of two clouds, annealed from a wide scale to a narrow one, coarse to fine."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ...config import Config
from ...fit.clouds import Floats, Match, carried, fit_pairs, match, outliers_of, radius_of, some, spacing_of, thinned
from ...fit.frames import affine_kind
from ...fit.steps import Report, Stage

COOLING = 0.75
"""Factor from one scale σ to the next: the mixture's optimum moves little enough for EM to follow it."""
SHARPEST = 1e-4
"""Smallest σ of a straight map, in spacings of the fixed points: points nearer than that are one place."""
LEAST_MATCHED = 0.4
"""Share of the points matched at a wider scale that a narrower one must still match to be believed: else a few points that
happen to lie on each other are taken for the answer."""
MOST_FITTED = 1200
"""Fixed points that the finest level looks at, at most; every moving point may be their partner."""
THINNED = (128, 512)
"""Places that larger clouds are thinned to, level by level, before the finest."""
FIRST_SCALE = 0.08
"""σ that a pose is followed from, over the root mean square radius of the fixed cloud: about where the pose search ends."""
FIRST_OUTLIERS = 0.1
"""Share ω without a partner that a pose is followed from."""
WIDE = 1.5
"""σ that a level starts with at least, in spacings of its fixed points: a point that is off by its distance to a neighbour must
still find its own partner. Chosen on the fish and the bunnies of benchmarks/bench_points.py."""
AFFINE_WIDE = 4.0
"""σ that an affine map starts with at least where it follows a similarity, which can be far off, in spacings of the points."""
RELAXED = 1.5
"""Factor by which σ is widened again from one thinned level to the next: their places are others."""


@dataclass(frozen=True)
class State:
    """A straight map and how it fits.

    Args:
        matrix: ``A`` ``[D+1, D+1]``, moving → fixed.
        sigma: σ.
        outliers: ω.
        value: mean log density of the fixed points there, higher is better.
    """

    matrix: Floats
    sigma: float
    outliers: float
    value: float = -math.inf


def anneal(kind: str, p: Floats, q: Floats, start: State, narrowest: float, steps: int = 2) -> State:
    """The straight map of ``kind`` that explains ``q`` best by ``p``, followed from a wide scale to a narrow one.

    At each scale ``steps`` EM steps are made; the scale of the highest likelihood is kept and settled there.

    Args:
        kind: ``rigid``, ``similarity`` or ``affine``; ``start`` is of it (a rigid map with a known change of unit in it: scale
            ``p`` before).
        p: moving ``[N, D]``.
        q: fixed ``[M, D]``.
        start: with the widest scale.
        narrowest: smallest scale σ, in fixed pixels.
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
        residual = math.sqrt(max(found.square, 0.0))  # far below σ where the pairs are exact: no need to go slowly
        now = replace(now, sigma=max(min(now.sigma * COOLING, max(2 * residual, 0.2 * now.sigma)), narrowest))
    return best


def m_step(kind: str, p: Floats, q: Floats, found: Match, before: Floats) -> Floats:
    """The map ``[D+1, D+1]`` of ``kind`` that brings the pairs of an E step together; ``before`` where they are too few."""
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
    """The straight map from a pose, coarse to fine: thinned clouds first, then the points themselves.

    Args:
        p: moving ``[N, D]``.
        q: fixed ``[M, D]``.
        start: ``[D+1, D+1]``.
        config: says of which kind the map is (before an affine map a similarity is fitted), and the seed of the draw of
            points at the finest level.
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
        wide = max(state.sigma, (AFFINE_WIDE if one == "affine" and len(kinds) > 1 else WIDE) * spacing)
        state = anneal(one, p, qs, replace(state, sigma=wide, value=-math.inf), SHARPEST * spacing)
        stage_of("affine", level, config).tell(report, 1, -state.value)
    return state


def stage_of(name: str, level: int, config: Config) -> Stage:
    """A stage of two clouds: how many levels there will be is not known before the last."""
    return Stage(name, level, level + 1, config.optimizer.max_iter)
