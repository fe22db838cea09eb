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

from ..starts.disagreement import FEWEST, disagreement

MOST = 50_000
"""Pairs that a list may have: what a request may bring (`regframe.view.gate.MOST_BYTES`)."""
_NAME = 200
"""Characters of a name."""
_KEPT = 200
"""States that can be undone."""


class Stale(ValueError):
    """A change was made to a list that has changed meanwhile, in another window."""


@dataclass(frozen=True)
class Pair:
    """One landmark on both sides.

    Args:
        id: a number that no other pair of the list has.
        name: what the user calls it.
        fixed: ``(y, x)``, of volumes ``(z, y, x)``, on the fixed side, in its unit.
        moving: on the moving side likewise.
        on: whether it counts.
        trusted: whether it counts although it disagrees with the others.
    """

    id: int
    name: str
    fixed: tuple[float, ...]
    moving: tuple[float, ...]
    on: bool = True
    trusted: bool = False

    @classmethod
    def of(cls, given: Any, ndim: int | None = None) -> Pair:
        """A pair out of what a page or a file says; ValueError, in one sentence, for anything else.

        ``ndim`` is the number of axes of the pair that is shown, 2 or 3; either where None.
        """
        if not isinstance(given, Mapping):
            raise ValueError(f"wanted a pair of landmarks, got {type(given).__name__}")
        number, name = given.get("id"), given.get("name")
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 1 << 31:
            raise ValueError("wanted a whole number for each pair, got something else")
        if not isinstance(name, str) or len(name) > _NAME:
            raise ValueError(f"wanted a name of at most {_NAME} characters for pair {number}, got another")
        sides: list[tuple[float, ...]] = []
        for side in ("fixed", "moving"):
            value = given.get(side)
            if not isinstance(value, Sequence) or len(value) not in (2, 3) or not all(_finite(v) for v in value):
                raise ValueError(
                    f"wanted finite numbers y, x (of volumes z, y, x) on the {side} side of pair {number}, got something else"
                )
            sides.append(tuple(map(float, value)))
        axes = ndim or len(sides[0])
        if any(len(side) != axes for side in sides):
            raise ValueError(
                f"wanted {axes} numbers on both sides of pair {number}, got {len(sides[0])} and {len(sides[1])}"
            )
        return cls(number, name, sides[0], sides[1], bool(given.get("on", True)), bool(given.get("trusted", False)))


class Pairs:
    """A list of pairs that remembers its earlier states; safe to use from several threads.

    Raises ValueError for two pairs with one number or for too many.
    """

    def __init__(self, pairs: Iterable[Pair] = ()) -> None:
        self._states: list[tuple[Pair, ...]] = [_checked(pairs)]
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
        fresh = _checked(pairs)
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

    def added(self, found: Iterable[tuple[str, tuple[float, ...], tuple[float, ...], bool]]) -> tuple[Pair, ...]:
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
        shown: where the map takes the moving landmark, ``((z,) y, x)`` on the fixed side.
        off: how far it lies from where the other pairs expect it, in the fixed unit; None where too few pairs say.
        odd: whether it disagrees with the others.
    """

    residual: float
    shown: tuple[float, ...]
    off: float | None
    odd: bool


def judged(pairs: Sequence[Pair], points: Any) -> list[Judged]:
    """Each pair's residual under a map (``points``: ``[N, D]`` to ``[N, D]``), and whether it disagrees with the others."""
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
        Judged(a, tuple(at), o, w)
        for a, at, o, w in zip(away, moved.tolist(), off, odd, strict=True)
    ]  # fmt: skip


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


def _checked(pairs: Iterable[Pair]) -> tuple[Pair, ...]:
    found = tuple(pairs)
    if len(found) > MOST:
        raise ValueError(f"wanted at most {MOST} pairs, got {len(found)}")
    if len({pair.id for pair in found}) != len(found):
        raise ValueError("wanted another number for each pair, got one twice")
    return found


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
