"""The landmarks of a view: pairs of positions with names, undo and redo, and the pair that disagrees with the others."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..starts.landmarks import fit_points

Array = NDArray[np.float64]
MOST = 50_000
"""Pairs that a list may have: what a request may bring (`regframe.view.gate.MOST_BYTES`)."""
_NAME = 200
"""Characters of a name."""
_KEPT = 200
"""States that can be undone."""
FEWEST = 4
"""Pairs from which one can be told to disagree: three give any affine map exactly."""
_TRIES = 400
"""Subsets of pairs of which a map is made, where there are more: of 7 pairs, all. With two thirds of the pairs right, the chance
that not one subset of three holds right pairs alone is below 1e-60."""
_CUT = 3.0
"""Robust standard deviations from which a pair disagrees; 2.5 to 3 is usual (Rousseeuw & Leroy 1987)."""
_LEAST = 0.01
"""Share of the spread of the pairs below which no pair disagrees: bends of tissue differ from an affine map by as much."""


class Stale(ValueError):
    """A change was made to a list that has changed meanwhile, in another window."""


@dataclass(frozen=True)
class Pair:
    """One landmark on both sides.

    Args:
        id: a number that no other pair of the list has.
        name: what the user calls it.
        fixed: ``(y, x)`` on the fixed side, in its unit.
        moving: ``(y, x)`` on the moving side, in its unit.
        on: whether it counts.
        trusted: whether it counts although it disagrees with the others.
    """

    id: int
    name: str
    fixed: tuple[float, float]
    moving: tuple[float, float]
    on: bool = True
    trusted: bool = False

    @classmethod
    def of(cls, given: Any) -> Pair:
        """A pair out of what a page or a file says; ValueError, in one sentence, for anything else."""
        if not isinstance(given, Mapping):
            raise ValueError(f"wanted a pair of landmarks, got {type(given).__name__}")
        number, name = given.get("id"), given.get("name")
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 1 << 31:
            raise ValueError("wanted a whole number for each pair, got something else")
        if not isinstance(name, str) or len(name) > _NAME:
            raise ValueError(f"wanted a name of at most {_NAME} characters for pair {number}, got another")
        sides = []
        for side in ("fixed", "moving"):
            value = given.get(side)
            if not (isinstance(value, Sequence) and len(value) == 2 and all(_finite(v) for v in value)):
                raise ValueError(
                    f"wanted two finite numbers y, x on the {side} side of pair {number}, got something else"
                )
            sides.append((float(value[0]), float(value[1])))
        return cls(number, name, sides[0], sides[1], bool(given.get("on", True)), bool(given.get("trusted", False)))


class Pairs:
    """A list of pairs that remembers its earlier states; safe to use from several threads."""

    def __init__(self, pairs: Iterable[Pair] = ()) -> None:
        self._states: list[tuple[Pair, ...]] = [tuple(pairs)]
        self._place = 0
        self.revision = 0
        self._lock = threading.Lock()

    @property
    def now(self) -> tuple[Pair, ...]:
        """The pairs as they are."""
        return self._states[self._place]

    @property
    def can(self) -> tuple[bool, bool]:
        """Whether there is something to undo, and something to redo."""
        return self._place > 0, self._place + 1 < len(self._states)

    def put(self, pairs: Iterable[Pair], revision: int | None = None) -> int:
        """Replace the list; returns its new revision.

        Raises `Stale` where ``revision`` is not the present one, ValueError for two pairs with one number or for too many.
        """
        fresh = tuple(pairs)
        if len(fresh) > MOST:
            raise ValueError(f"wanted at most {MOST} pairs, got {len(fresh)}")
        if len({pair.id for pair in fresh}) != len(fresh):
            raise ValueError("wanted another number for each pair, got one twice")
        with self._lock:
            if revision is not None and revision != self.revision:
                raise Stale(
                    "the landmarks were changed in another window meanwhile; this window shows them as they are now"
                )
            self._states = [*self._states[: self._place + 1][-_KEPT:], fresh]
            self._place = len(self._states) - 1
            self.revision += 1
            return self.revision

    def step(self, by: int) -> int:
        """Undo (-1) or redo (+1), where there is something; returns the revision."""
        with self._lock:
            place = self._place + by
            if 0 <= place < len(self._states):
                self._place = place
                self.revision += 1
            return self.revision

    def added(self, found: Iterable[tuple[str, tuple[float, float], tuple[float, float], bool]]) -> tuple[Pair, ...]:
        """The list with further pairs (name, fixed, moving, on) behind it; it is not changed."""
        pairs = list(self.now)
        number = itertools.count(max((pair.id for pair in pairs), default=0) + 1)
        for name, fixed, moving, on in found:
            i = next(number)
            pairs.append(Pair(i, (name or str(i))[:_NAME], fixed, moving, on))
        return tuple(pairs)


@dataclass(frozen=True)
class Judged:
    """How well a pair fits.

    Args:
        residual: distance, under the shown map, of the moving landmark from the fixed one, in the fixed unit.
        shown: where the map takes the moving landmark, ``(y, x)`` on the fixed side.
        off: how far it lies from where the other pairs expect it, in the fixed unit; None where too few pairs say.
        odd: whether it disagrees with the others.
    """

    residual: float
    shown: tuple[float, float]
    off: float | None
    odd: bool


def judged(pairs: Sequence[Pair], points: Any) -> list[Judged]:
    """Each pair's residual under a map (``points``: ``[N, 2]`` to ``[N, 2]``), and whether it disagrees with the others."""
    if not pairs:
        return []
    moved = points(torch.tensor([pair.moving for pair in pairs], dtype=torch.float64))
    fixed = torch.tensor([pair.fixed for pair in pairs], dtype=torch.float64)
    away = (moved - fixed).norm(dim=1).tolist()
    on = [i for i, pair in enumerate(pairs) if pair.on]
    off: list[float | None] = [None] * len(pairs)
    odd = [False] * len(pairs)
    if len(on) >= FEWEST:
        p, q = np.array([pairs[i].moving for i in on]), np.array([pairs[i].fixed for i in on])
        far, marks = disagreement(p, q)
        for i, value, mark in zip(on, far.tolist(), marks.tolist(), strict=True):
            off[i], odd[i] = value, mark
    return [
        Judged(a, (y, x), o, w)
        for a, (y, x), o, w in zip(away, moved.tolist(), off, odd, strict=True)
    ]  # fmt: skip


def disagreement(p: Array, q: Array) -> tuple[Array, NDArray[np.bool_]]:
    """How far each pair ``p -> q`` (``[N, 2]`` each, N ≥ 4) lies from the affine map of those that agree; and which disagree.

    The map with the least median of squares over maps of three pairs (of two, a similarity, where there are only four), then the
    least squares of the pairs within `_CUT` robust standard deviations of it (Rousseeuw 1984).
    """
    n = len(p)
    size = 3 if n > FEWEST else 2
    kept = n // 2 + (size + 1) // 2  # the pairs that have to agree: more than half
    best: tuple[float, Array] | None = None
    for subset in _subsets(n, size):
        for mirrored in (False, True) if size == 2 else (False,):
            away = _away(p, q, subset, mirrored)
            score = float(np.sort(away)[min(kept, n) - 1])
            if math.isfinite(score) and (best is None or score < best[0]):
                best = score, away
    if best is None:
        return np.zeros(n), np.zeros(n, dtype=np.bool_)
    spread = float(np.sqrt(((q - np.median(q, axis=0)) ** 2).sum(axis=1).mean()))
    cut = max(_CUT * 1.4826 * (1 + 5 / max(1, n - size)) * best[0], _LEAST * spread)
    agree = best[1] <= cut
    if 3 <= agree.sum() < n or agree.all():
        fitted, _ = fit_points(
            torch.from_numpy(p[agree]), torch.from_numpy(q[agree]), "affine" if agree.sum() > 3 else "similarity"
        )
        away = (fitted.points(torch.from_numpy(p)) - torch.from_numpy(q)).norm(dim=1).numpy()
        if agree.sum() > 3:
            return away, (away > cut) & ~agree
    return best[1], ~agree


def _subsets(n: int, size: int) -> Iterable[tuple[int, ...]]:
    if math.comb(n, size) <= _TRIES:
        return itertools.combinations(range(n), size)
    random = np.random.default_rng(0)
    return [tuple(random.choice(n, size, replace=False).tolist()) for _ in range(_TRIES)]


def _away(p: Array, q: Array, subset: tuple[int, ...], mirrored: bool) -> Array:
    """Distances ``[N]`` of all pairs from the map of a few of them; inf where these lie in one place or on one line."""
    rows = list(subset)
    nothing = np.full(len(p), np.inf)
    if len(rows) == 2:  # a similarity as a complex factor
        a, b = p[:, 0] + 1j * p[:, 1] * (-1 if mirrored else 1), q[:, 0] + 1j * q[:, 1]
        if a[rows[1]] == a[rows[0]]:
            return nothing
        factor = (b[rows[1]] - b[rows[0]]) / (a[rows[1]] - a[rows[0]])
        turned: Array = np.abs(factor * (a - a[rows[0]]) + b[rows[0]] - b)
        return turned
    one = np.column_stack([p, np.ones(len(p))])
    sides = np.linalg.svd(p[rows] - p[rows].mean(axis=0), compute_uv=False)
    if not sides[1] > 1e-3 * sides[0]:
        return nothing
    away: Array = np.linalg.norm(one @ np.linalg.solve(one[rows], q[rows]) - q, axis=1)
    return away


def used(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs that a fit takes: those that are on, without those that disagree unless the user trusts them."""
    on = [pair for pair in pairs if pair.on]
    if len(on) < FEWEST:
        return on
    _, odd = disagreement(np.array([pair.moving for pair in on]), np.array([pair.fixed for pair in on]))
    return [pair for pair, mark in zip(on, odd.tolist(), strict=True) if pair.trusted or not mark]


def plain(pairs: Iterable[Pair]) -> list[dict[str, Any]]:
    """Pairs as plain data, as `Pair.of` takes them."""
    return [asdict(pair) for pair in pairs]


def renamed(pair: Pair, name: str) -> Pair:
    """A pair under another name."""
    return replace(pair, name=name[:_NAME])


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
