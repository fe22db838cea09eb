"""Which fields overlap, and how: along stated places, or searched over all pairs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..contracts import Progress
from . import overlap
from .fields import Stated, View
from .overlap import Floats, Found

REACH = 0.08
"""How far a field may lie from where it is said to, over its longer side; `LEAST_REACH` pixels at least. Stages repeat to a few
µm, 1 to 2 % of a field; what is stated by hand or by a nominal overlap is off by more."""
LEAST_REACH = 32
"""The least such distance in pixels."""
NARROW = 16
"""Pixels per axis that two fields must be able to share for their pair to be tried."""
MOST_SEARCHED = 30
"""Fields at most whose places are searched: all pairs are tried, and their number grows with the square."""
MOST_SHARED = 0.6
"""Largest overlap that is searched, over a field: what covers more is another picture of one place, and dirt on the camera, which
lies on one place in every picture, lies above."""
HOPEFUL = 0.02
"""Confidence at coarse pixels from which a pair is looked at in full."""
DIRECTIONS = tuple(
    (swap, np.array(signs)) for swap in (False, True) for signs in ((-1.0, 1.0), (1.0, 1.0), (1.0, -1.0), (-1.0, -1.0))
)
"""Ways in which a stage's axes may lie to those of the pixels: exchanged, and each turned round; first y upwards, as
ASHLAR reads all."""
ASKED = 6
"""Pairs by which the direction of a stage is told."""
ENOUGH = 0.5
"""Share of these pairs, of those beside and of those above each other, whose overlap is sure, from which no other direction is
tried."""


@dataclass(frozen=True)
class Overlap:
    """Two fields that were compared.

    Args:
        fixed: number of the field in whose pixels the pose is.
        moving: number of the other.
        found: how it lies; None where nothing fits.
    """

    fixed: int
    moving: int
    found: Found | None

    @property
    def confidence(self) -> float:
        """How sure the overlap is, 0 … 1."""
        return 0.0 if self.found is None else self.found.confidence


@dataclass
class Finder:
    """Compares fields.

    Args:
        fields: the fields.
        turning: whether small turns are looked for.
        reach: how far a field may lie from where it is said to, in pixels.
        progress: called before each pair.
        known: what was found before, by pair, shift and reach.
    """

    fields: Sequence[View]
    turning: bool = True
    reach: float | None = None
    progress: Callable[[Progress], object] | None = None
    known: dict[tuple[Any, ...], Found | None] = field(default_factory=dict)

    @property
    def around(self) -> int:
        """How far a field may lie from where it is said to, in pixels."""
        longest = max(max(one.grid.shape) for one in self.fields)
        return math.ceil(max(LEAST_REACH, REACH * longest) if self.reach is None else self.reach)

    def along(self, places: Sequence[Floats | None]) -> list[Overlap]:
        """All pairs that overlap at their stated places, or may."""
        pairs = self._near(places, self.around)
        out = []
        for k, (a, b) in enumerate(pairs):
            self._tell(k, len(pairs))
            at = places[b] - places[a]  # type: ignore[operator]
            out.append(Overlap(a, b, self.pair(a, b, at, self.around)))
        return out

    def _near(self, places: Sequence[Floats | None], reach: int) -> list[tuple[int, int]]:
        """Pairs that share `NARROW` pixels per axis if each is off by half of ``reach``, the widest overlaps first."""
        found = []
        for a, b in itertools.combinations(range(len(self.fields)), 2):
            one, other = places[a], places[b]
            if one is None or other is None:
                continue
            sides = [
                min(n, d + m) - max(0.0, d)
                for d, n, m in zip(other - one, self.fields[a].grid.shape, self.fields[b].grid.shape, strict=True)
            ]
            if min(sides) + reach / 2 >= NARROW:
                found.append((-max(0.0, sides[0]) * max(0.0, sides[1]), a, b))
        return [(a, b) for _, a, b in sorted(found)]

    def pair(self, a: int, b: int, at: Floats, reach: int) -> Found | None:
        """How field ``b`` lies on field ``a``, within ``reach`` pixels of the shift ``at``; read is only what may overlap."""
        key = (a, b, *at.tolist(), reach)
        if key not in self.known:
            self.known[key] = self._pair(a, b, at, reach)
        return self.known[key]

    def _pair(self, a: int, b: int, at: Floats, reach: int) -> Found | None:
        low = np.floor(at - reach).astype(int)
        high = np.ceil(at + reach).astype(int)
        one, other = self.fields[a].grid.shape, self.fields[b].grid.shape
        first, start, stop, end = [], [], [], []
        for lo, hi, n, m in zip(low, high, one, other, strict=True):
            first.append(max(0, int(lo)))
            stop.append(min(n, int(hi) + m))
            start.append(max(0, -int(hi)))
            end.append(min(m, n - int(lo)))
        if any(s - f < NARROW for f, s in zip([*first, *start], [*stop, *end], strict=True)):
            return None
        here = self.fields[a].plane(tuple(slice(f, s) for f, s in zip(first, stop, strict=True)))
        there = self.fields[b].plane(tuple(slice(f, s) for f, s in zip(start, end, strict=True)))
        off = np.array(start) - np.array(first)
        bounds = [tuple(int(v) for v in (edge + off)) for edge in (low, high)]
        found = overlap.match(here, there, bounds[0], bounds[1], self.turning)  # type: ignore[arg-type]
        return None if found is None else _whole(found, first, start, there.size / math.prod(other))

    def directed(self, stated: Stated) -> tuple[list[Floats | None], str]:
        """Stated places in the pixels' directions, and what was changed: stages are tried in every direction."""
        places = list(stated.places)
        if stated.sure:
            return places, ""
        scores: list[float] = []
        turned = [
            [None if p is None else (p[::-1] if swap else p) * signs for p in places] for swap, signs in DIRECTIONS
        ]
        for way in turned:
            kinds = [pairs for pairs in self._by_axis(way) if pairs]
            sure = [sum(self._confidence(a, b, way) for a, b in pairs) for pairs in kinds]
            scores.append(sum(sure))
            if kinds and all(score >= ENOUGH * len(pairs) for score, pairs in zip(sure, kinds, strict=True)):
                break
        best = int(np.argmax(scores))
        if scores[best] < ENOUGH:  # nothing says: as most makers have it
            best = next(i for i, (swap, signs) in enumerate(DIRECTIONS) if not swap and tuple(signs) == (-1.0, 1.0))
        swap, signs = DIRECTIONS[best]
        words = ["x and y exchanged"] * swap + [f"{a} turned round" for a, s in zip("yx", signs, strict=True) if s < 0]
        return turned[best], ", ".join(words)

    def _by_axis(self, places: Sequence[Floats | None]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """The widest overlaps of fields above each other, and of those beside each other; neither tells the other's direction."""
        above: list[tuple[int, int]] = []
        beside: list[tuple[int, int]] = []
        for a, b in self._near(places, 0):
            dy, dx = np.abs(places[b] - places[a])  # type: ignore[operator]
            (above if dy > dx else beside).append((a, b))
        return above[: ASKED // 2], beside[: ASKED // 2]

    def _confidence(self, a: int, b: int, places: Sequence[Floats | None]) -> float:
        """How sure the overlap of two fields at these places is."""
        found = self.pair(a, b, places[b] - places[a], self.around)  # type: ignore[operator]
        return 0.0 if found is None else found.confidence

    def searched(self) -> list[Overlap]:
        """All pairs, each at any shift; ValueError for too many fields."""
        n = len(self.fields)
        if n > MOST_SEARCHED:
            raise ValueError(
                f"wanted positions of {n} fields, got none; up to {MOST_SEARCHED} are searched: state them with --layout"
            )
        small = [one.coarse() for one in self.fields]
        pairs, out = list(itertools.combinations(range(n), 2)), []
        for k, (a, b) in enumerate(pairs):
            self._tell(k, len(pairs))
            (here, factor), (there, _) = small[a], small[b]
            bounds = [n - NARROW for n in here.shape], [-(m - NARROW) for m in there.shape]
            most = MOST_SHARED * min(here.size, there.size)
            found = overlap.match(here, there, tuple(bounds[1]), tuple(bounds[0]), self.turning, most)
            if found is None or found.confidence < HOPEFUL:
                out.append(Overlap(a, b, found))
                continue
            if factor == 1:
                out.append(Overlap(a, b, found))
                continue
            middle = found.probes.mean(axis=0)
            at = (found.matrix[:2, :2] @ middle + found.matrix[:2, 2] - middle) * factor
            out.append(Overlap(a, b, self.pair(a, b, at, math.ceil(4 * factor) + NARROW)))
        return out

    def _tell(self, k: int, n: int) -> None:
        if self.progress is not None:
            self.progress(Progress("pairs", k, n))


def _whole(found: Found, first: Sequence[int], start: Sequence[int], part: float) -> Found:
    """What was found between parts of two fields, in pixels of the whole."""
    here, there = np.eye(3), np.eye(3)
    here[:2, 2], there[:2, 2] = first, start
    return Found(
        here @ found.matrix @ np.linalg.inv(there), found.confidence, found.likeness, found.probes + np.array(start), found.sd,
        found.share * part, found.evidence,
    )  # fmt: skip
