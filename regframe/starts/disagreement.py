"""Which pairs of landmarks disagree with the others: a search for the wrong ones, which then lose their weight.

A pair is either right, and then lies near a map of all right pairs, or it is wrong and may lie anywhere. The choice of the wrong
ones that makes the pairs likeliest is taken. Maps are similarities that may shear a little: with four to six pairs a free affine
map would follow the wrong one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
FEWEST = 4
"""Pairs from which one can be told to disagree: two give any similarity exactly, and the other two have to agree."""
NOISE = 0.01
"""Expected distance per axis between a right pair and the map of all, as a share of the spread of the pairs (rms distance from
their middle): what clicks and bends of tissue come to. This, `BELIEVED` and `RARE` were chosen beforehand and checked on 660
made sets (`tests/starts/test_disagreement.py` makes such sets); `SHEAR` was added after those, and 880 fresh sets were measured
then."""
BELIEVED = 4.0
"""How many observations `NOISE` counts as, beside those of the pairs."""
SHEAR = 0.05
"""Standard deviation, without unit, of how far a map is from a similarity."""
RARE = 0.05
"""Share of pairs that are wrong, before anything is known."""
_ALL = 400
"""Choices of wrong pairs that are tried in full; where there are more, pairs are left out one by one, the worst first, from the
map of the few that agree best."""


class Disagreement(NamedTuple):
    """How pairs agree.

    Args:
        off: distance ``[N]`` of each pair's fixed position from where the agreeing others expect it, in the fixed unit.
        odd: whether each disagrees ``[N]``.
    """

    off: Array
    odd: NDArray[np.bool_]

    def sentences(self, unit: float = 1.0, name: str = "px") -> list[str]:
        """One sentence for each pair that disagrees, counted from 1; lengths are divided by ``unit`` and called ``name``."""
        others = int((~self.odd).sum())
        return [
            f"pair {i + 1} disagrees by {self.off[i] / unit:.3g} {name} with the other {others}"
            for i in np.flatnonzero(self.odd)
        ]


def disagreement(p: Array, q: Array) -> Disagreement:
    """How pairs ``p -> q`` (``[N, D]`` each, D 2 or 3) agree; none disagrees with fewer than `FEWEST` (one more in 3D)."""
    n, ndim = p.shape
    if n < FEWEST + (ndim == 3):
        return Disagreement(np.zeros(n), np.zeros(n, dtype=np.bool_))
    spread = _spread(q)
    kept, best = np.ones(n, dtype=np.bool_), math.inf
    for wrong in _choices(p, q):
        right = np.ones(n, dtype=np.bool_)
        right[list(wrong)] = False
        cost = _cost(p, q, right, spread)
        if cost < best:
            kept, best = right, cost
    off = np.empty(n)
    for i in range(n):
        others = kept & (np.arange(n) != i)
        off[i] = np.linalg.norm(_map(p[others], q[others])(p[i : i + 1]) - q[i])
    return Disagreement(off, ~kept)


def _choices(p: Array, q: Array) -> Iterable[tuple[int, ...]]:
    """Sets of pairs that may be wrong: fewer than half, so that at least three remain."""
    n, ndim = p.shape
    most = min((n - 1) // 2, n - ndim - 1)
    sizes = range(most + 1)
    if sum(math.comb(n, k) for k in sizes) <= _ALL:
        return itertools.chain.from_iterable(itertools.combinations(range(n), k) for k in sizes)
    random, core, least = np.random.default_rng(0), None, math.inf
    for _ in range(_ALL):
        few = random.choice(n, ndim + 1, replace=False)
        away = np.linalg.norm(_map(p[few], q[few])(p) - q, axis=1)
        middle = float(np.sort(away)[n // 2])
        if middle < least:
            core, least = np.argsort(away)[: n // 2 + 1], middle
    assert core is not None
    for _ in range(3):  # the half that agrees, found again by its own map
        away = np.linalg.norm(_map(p[core], q[core])(p) - q, axis=1)
        core = np.argsort(away)[: n // 2 + 1]
    order = [int(i) for i in np.argsort(-away)]
    return [tuple(order[:k]) for k in sizes]


def _cost(p: Array, q: Array, right: NDArray[np.bool_], spread: float) -> float:
    """Negative log-likelihood of a choice of right pairs, up to a constant."""
    ndim, n, wrong = p.shape[1], int(right.sum()), int((~right).sum())
    fitted = _map(p[right], q[right])
    away = fitted(p[right]) - q[right]
    free = max(ndim * n - (1 + ndim + ndim * (ndim - 1) // 2), 0)  # a similarity has 4 numbers, in 3D 7
    expected = (NOISE * spread) ** 2
    variance = (float((away**2).sum()) + fitted.sheared + BELIEVED * expected) / (free + BELIEVED)
    near = n * ndim / 2 * math.log(2 * math.pi * variance) + (free + BELIEVED) / 2
    anywhere = wrong * ndim * math.log(2 * spread)
    cost: float = near + anywhere - wrong * math.log(RARE) - n * math.log(1 - RARE)
    return cost


def _spread(q: Array) -> float:
    """Root of the mean squared distance from the middle, by the median so that a wrong one hardly counts."""
    middle = np.median(q, axis=0)
    return float(max(np.median(np.linalg.norm(q - middle, axis=1)), 1e-12 * (1 + np.abs(middle).max())))


@dataclass(frozen=True)
class _Map:
    matrix: Array
    before: Array
    after: Array
    sheared: float = 0.0
    """What its shear costs, as a sum of squared distances."""

    def __call__(self, at: Array) -> Array:
        moved: Array = (at - self.before) @ self.matrix.T + self.after
        return moved


def _map(p: Array, q: Array) -> _Map:
    """The map of pairs: the better of a similarity and a mirrored one (Umeyama 1991), sheared as far as the pairs call for it."""
    before, after = p.mean(axis=0), q.mean(axis=0)
    a, b = p - before, q - after
    ndim, squares = p.shape[1], float((a**2).sum())
    if not squares > 0:
        return _Map(np.eye(ndim), before, after)
    u, values, v = np.linalg.svd(b.T @ a)
    found: tuple[float, Array] | None = None
    for hand in (1.0, -1.0):
        signs = np.ones(ndim)
        signs[-1] = hand
        turn = (u * signs) @ v
        linear = turn * float((values * signs).sum()) / squares
        left = float(((a @ linear.T - b) ** 2).sum())
        # mirrored sides are rare, and few or flat pairs fit both
        left = left * (1.0 if np.linalg.det(turn) > 0 else 1.1)
        if found is None or left < found[0]:
            found = left, linear
    assert found is not None
    linear = found[1]
    ridge = (NOISE / SHEAR) ** 2 * squares / len(p)
    rest = (b - a @ linear.T).T @ a @ np.linalg.inv(a.T @ a + ridge * np.eye(ndim))
    return _Map(linear + rest, before, after, ridge * float((rest**2).sum()))
