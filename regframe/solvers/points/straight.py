"""The straight map of two clouds, annealed from a wide scale to a narrow one, coarse to fine."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ...fit.clouds import Floats, Match, carried, fit_pairs, match, outliers_of, radius_of, some, spacing_of, thinned

COOLING = 0.75
"""Factor from one scale σ to the next."""
SHARPEST = 1e-4
"""Smallest σ of a straight map, in spacings of the fixed points: what is closer is the same place."""
LEAST_MATCHED = 0.4
"""Share of the points matched at a wider scale that a narrower one must still match to be believed."""
MOST_FITTED = 1200
"""Fixed points that the finest level looks at, at most; every moving point may be their partner."""
THINNED = (128, 512)
"""Places that larger clouds are thinned to, level by level, before that."""


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
        narrowest: smallest scale, in the same length.
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


Tell = Callable[[str, int, int, float], None]


def straighten(kind: str, p: Floats, q: Floats, start: Floats, seed: int, tell: Tell | None = None) -> State:
    """The map of ``kind`` from a pose, coarse to fine: thinned clouds first, then the points themselves.

    Args:
        kind: ``rigid``, ``similarity`` or ``affine``; for ``affine`` a similarity goes before it.
        p: moving ``[N, D]``.
        q: fixed ``[M, D]``.
        start: ``[D+1, D+1]``.
        seed: of the draw of points at the finest level.
        tell: called with stage, level, iteration and energy per fixed point.
    """
    level = 0
    state = State(start, 0.08 * radius_of(q), 0.1)
    kinds = [kind] if kind != "affine" else ["similarity", "affine"]
    for count in THINNED:
        if 2 * count <= max(len(p), len(q)):
            ps, qs = thinned(p, count), thinned(q, count)
            for one in kinds:
                state = anneal(one, ps, qs, replace(state, value=-math.inf), 0.5 * spacing_of(qs))
                state = replace(state, sigma=1.5 * state.sigma)
                if tell is not None:
                    tell("affine", level, 1, -state.value)
            kinds, level = kinds[-1:], level + 1
    qs, spacing = some(q, MOST_FITTED, seed), spacing_of(q)
    for one in kinds:
        wide = max(state.sigma, (AFFINE_WIDE if one == "affine" and len(kinds) > 1 else WIDE) * spacing)
        state = anneal(one, p, qs, replace(state, sigma=wide, value=-math.inf), SHARPEST * spacing)
        if tell is not None:
            tell("affine", level, 1, -state.value)
    return state


AFFINE_WIDE = 4.0
"""The same where an affine map follows a similarity, which can be far off."""
WIDE = 1.5
"""σ that a level starts with at least, in spacings of its fixed points."""
