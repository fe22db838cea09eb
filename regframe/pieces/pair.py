"""Which piece belongs to which: by place on the grid of a microarray, by likeness of all pairs elsewhere."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..data import unit_ratio
from .find import Found, Piece
from .match import ACROSS, Likeness, View, likeness, view

Floats = NDArray[np.float64]
Tell = Callable[[int, int], object]

FLOOR = 25.0
"""Likeness (nats) under which no pair is believed: 180 unlike pairs of cores (`benchmarks.slides_in_pieces.microarray`, seeds
0 and
1) have 7 in the median and under 24 in 95 of 100; parts of one torn section have 43 and more with the whole, which is less like
them than their own core is."""
UNLIKE = 0.98
"""Quantile of the likeness of pairs that do not belong together, on the two slides at hand, from which a pair is believed."""
POOR = 0.4
"""Likeness of a core with what lies at its place, over the median of all cores, under which it is compared with others too: it
may have been exchanged."""
ENOUGH = 0.4
"""Share of the cores that have to be alike at their places for the grid to lie as it was taken to."""
VOTERS = 8
"""Cores that are compared with all others to find how the grid lies, where it does not lie as it is."""
SCALES_APART = 1.25
"""Ratio of the sizes of pieces from which two slides without a stated pixel size are taken to differ in magnification."""
SHARED = 0.2
"""Share of its own tissue that a part may have in common with another part of the same section."""
SAMPLED = 3000
"""Pixels of a piece at which that is looked at."""


@dataclass(frozen=True)
class Believed:
    """A pair of pieces that look alike.

    Args:
        fixed: index of the fixed piece.
        moving: index of the moving piece.
        likeness: how alike they are, and in which pose.
        sure: whether they are more alike than pairs that do not belong together.
    """

    fixed: int
    moving: int
    likeness: Likeness
    sure: bool = True


@dataclass
class Sides:
    """The pieces of both slides, and how alike they are, each pair compared once.

    Args:
        fixed: the pieces of the fixed slide.
        moving: those of the moving slide.
        mirrored: whether the moving slide lies turned over.
        tell: called with the number of pairs that were compared and of those there may be.
    """

    fixed: Found
    moving: Found
    mirrored: bool = False
    tell: Tell | None = None
    _views: dict[tuple[str, int], View] = field(default_factory=dict)
    _known: dict[tuple[int, int, bool], Likeness] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.size = _size(self.fixed, self.moving)
        of = [[piece.diameter for piece in found.pieces] for found in (self.fixed, self.moving)]
        if self.on_grid:
            across = float(np.median(of[0]))
        else:  # a whole section, and its parts, have to lie on one canvas
            across = max([*of[0], *(self.size * d for d in of[1])])
        self.pixel = across / ACROSS

    @property
    def compared(self) -> int:
        """Pairs that were compared so far."""
        return len(self._known)

    @property
    def on_grid(self) -> bool:
        """Whether both slides are microarrays."""
        return bool(self.fixed.rows and self.moving.rows)

    def alike(self, fixed: int, moving: int, mirrored: bool | None = None) -> Likeness:
        """How alike two pieces are."""
        over = self.mirrored if mirrored is None else mirrored
        key = (fixed, moving, over)
        if key not in self._known:
            self._known[key] = likeness(self._view("fixed", fixed), self._view("moving", moving), over)
            if self.tell is not None:
                self.tell(len(self._known), len(self.fixed.pieces) * len(self.moving.pieces))
        return self._known[key]

    def _view(self, side: str, k: int) -> View:
        if (side, k) not in self._views:
            found = self.fixed if side == "fixed" else self.moving
            pixel = self.pixel if side == "fixed" else self.pixel / self.size
            self._views[side, k] = view(found, found.pieces[k], pixel)
        return self._views[side, k]


def _size(fixed: Found, moving: Found) -> float:
    """Fixed units per moving unit: as stated, or by the size of the pieces where at least one side is in pixels."""
    stated = unit_ratio(moving.grid.unit, fixed.grid.unit)
    areas = [sorted((piece.area for piece in found.pieces), reverse=True) for found in (fixed, moving)]
    if fixed.rows and moving.rows:
        seen = math.sqrt(float(np.median(areas[0]) / np.median(areas[1])))
    else:
        seen = math.sqrt(sum(areas[0]) / sum(areas[1]))
    if stated is None:
        return seen
    apart = max(seen, 1 / seen)
    same = fixed.grid.unit != "px" or apart < SCALES_APART or len(areas[0]) != len(areas[1])
    return stated if same else seen


# ---- a microarray --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lie:
    """How the grid of the moving slide lies on that of the fixed one.

    Args:
        matrix: what it does to ``(row, column)``: a turn by a multiple of 90 degrees, or such a turn of the mirror image.
        shift: rows and columns that are added then.
    """

    matrix: tuple[tuple[int, int], tuple[int, int]] = ((1, 0), (0, 1))
    shift: tuple[int, int] = (0, 0)

    def __call__(self, place: tuple[int, int]) -> tuple[int, int]:
        """The place on the fixed grid of a moving place."""
        (a, b), (c, d) = self.matrix
        return a * place[0] + b * place[1] + self.shift[0], c * place[0] + d * place[1] + self.shift[1]

    @property
    def mirrored(self) -> bool:
        """Whether the slide lies turned over."""
        (a, b), (c, d) = self.matrix
        return a * d - b * c < 0

    @property
    def words(self) -> str:
        """How the grid lies, in words; empty where it lies as it is."""
        (a, _), (c, _) = self.matrix
        turn = round(math.degrees(math.atan2(c, a))) % 360
        said = [f"turned by {turn}°"] if turn else []
        said += ["turned over"] if self.mirrored else []
        said += (
            [f"shifted by {self.shift[0]} rows and {self.shift[1]} columns"]
            if self.shift != (0, 0) and not turn
            else []
        )
        return ", ".join(said)


def _lies() -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    for a, b in itertools.product((1, -1), (1, -1)):
        yield (a, 0), (0, b)
        yield (0, a), (b, 0)


def by_place(sides: Sides, seed: int = 0) -> tuple[list[Believed], Lie]:
    """Cores that belong together, by their place on the grid and by their likeness; and how the grid lies.

    Every core is compared with the one at its place. Where few are alike the grid lies otherwise: then some cores are compared
    with all others, turned over too, and vote. Cores that are not alike at their place are compared with each other.
    """
    lie = Lie()
    limit = _limit(sides, lie, seed)
    held = _placed(sides, lie)
    if sum(sides.alike(*pair).score >= limit for pair in held) < ENOUGH * max(len(held), 1):
        found = _voted(sides, limit)
        if found is not None:
            lie = found
            sides.mirrored = lie.mirrored
            limit = _limit(sides, lie, seed)
            held = _placed(sides, lie)
    scores = {pair: sides.alike(*pair).score for pair in held}
    good = [score for score in scores.values() if score >= limit]
    poor = max(limit, POOR * float(np.median(good))) if good else limit
    settled = {pair for pair, score in scores.items() if score >= poor}
    fixed = sorted(set(range(len(sides.fixed.pieces))) - {i for i, _ in settled})
    moving = sorted(set(range(len(sides.moving.pieces))) - {j for _, j in settled})
    chosen = settled | set(_assigned(sides, fixed, moving, set(held)))
    out = [Believed(i, j, sides.alike(i, j), sides.alike(i, j).score >= limit) for i, j in sorted(chosen)]
    return [pair for pair in out if pair.sure or (pair.fixed, pair.moving) in scores], lie


def _placed(sides: Sides, lie: Lie) -> list[tuple[int, int]]:
    """Pairs of cores ``(fixed, moving)`` that lie at one place."""
    there = {piece.place: i for i, piece in enumerate(sides.fixed.pieces)}
    return [
        (there[at], j)
        for j, piece in enumerate(sides.moving.pieces)
        if piece.place and (at := lie(piece.place)) in there
    ]


def _limit(sides: Sides, lie: Lie, seed: int) -> float:
    """The likeness from which a pair is believed: that of pairs which do not belong together, one for each core.

    A pair of different places that is more alike than what lies at either of them may be a core that was exchanged: it is not
    counted.
    """
    rng = np.random.default_rng(seed)
    held = _placed(sides, lie)
    at_fixed, at_moving = dict(held), {j: i for i, j in held}
    others = []
    for j in range(len(sides.moving.pieces)):
        i = int(rng.integers(len(sides.fixed.pieces)))
        own = [sides.alike(*pair).score for pair in ((at_moving.get(j), j), (i, at_fixed.get(i))) if None not in pair]
        if i != at_moving.get(j) and own and (score := sides.alike(i, j).score) < max(own):
            others.append(score)
    return max(FLOOR, float(np.quantile(others, UNLIKE))) if others else FLOOR


def _voted(sides: Sides, limit: float) -> Lie | None:
    """How the grid lies by the vote of a few cores; None where they do not agree."""
    pieces = sides.moving.pieces
    voters = np.unique(np.linspace(0, len(pieces) - 1, VOTERS).astype(int))
    votes: Counter[Lie] = Counter()
    for j in voters.tolist():
        for over in (False, True):
            scores = [sides.alike(i, j, over).score for i in range(len(sides.fixed.pieces))]
            i = int(np.argmax(scores))
            here, there = pieces[j].place, sides.fixed.pieces[i].place
            if scores[i] < limit or here is None or there is None:
                continue
            for matrix in _lies():
                y, x = Lie(matrix)(here)
                lie = Lie(matrix, (there[0] - y, there[1] - x))
                if lie.mirrored == over:
                    votes[lie] += 1
    if not votes:
        return None
    (best, n), *rest = votes.most_common(2)
    return best if n >= 3 and (not rest or n > rest[0][1]) else None


def _assigned(
    sides: Sides, fixed: Sequence[int], moving: Sequence[int], at_place: set[tuple[int, int]]
) -> Iterable[tuple[int, int]]:
    """The cores of both sides that are left, one to one, such that the likeness of all pairs together is largest."""
    if not fixed or not moving:
        return []
    scores = np.array([[sides.alike(i, j).score for j in moving] for i in fixed])
    # between two that are as unlike, the one at its place
    scores += [[1e-3 * ((i, j) in at_place) for j in moving] for i in fixed]
    rows, columns = linear_sum_assignment(-scores)
    return [(fixed[a], moving[b]) for a, b in zip(rows.tolist(), columns.tolist(), strict=True)]


# ---- sections and torn parts ---------------------------------------------------------------------------------------------


def by_likeness(sides: Sides) -> Iterator[Believed]:
    """Pairs that are alike, the most alike first; whoever takes them sees to it that they do not lie on each other."""
    pairs = itertools.product(range(len(sides.fixed.pieces)), range(len(sides.moving.pieces)))
    alike = [Believed(i, j, sides.alike(i, j)) for i, j in pairs]
    yield from sorted((p for p in alike if p.likeness.score >= FLOOR), key=lambda p: -p.likeness.score)


def compatible(sides: Sides, pair: Believed, taken: Sequence[tuple[Believed, Tensor]]) -> bool:
    """Whether a pair may be joined to those that are taken, each with its pose ``[3, 3]``.

    One piece may belong to several of the other side, the parts that it was torn into, if they do not lie on each other.
    """
    own = pair.likeness.matrix
    for other, pose in taken:
        if (other.fixed, other.moving) == (pair.fixed, pair.moving):
            return False
        if other.fixed == pair.fixed:  # both moving pieces lie on one fixed piece
            back = torch.linalg.inv(pose) @ own
            if _covered(sides.moving, pair.moving, sides.moving, other.moving, back) > SHARED:
                return False
        if other.moving == pair.moving:
            back = pose @ torch.linalg.inv(own)
            if _covered(sides.fixed, pair.fixed, sides.fixed, other.fixed, back) > SHARED:
                return False
    return True


def _covered(found: Found, k: int, other: Found, there: int, matrix: Tensor) -> float:
    """Share of the smaller of two pieces that the matrix lays on the other one."""
    share = []
    for (a, p), (b, q), way in (
        ((found, k), (other, there), matrix.numpy()),
        ((other, there), (found, k), np.linalg.inv(matrix.numpy())),
    ):
        at = _pixels(a, a.pieces[p])
        index = np.round((at @ way[:2, :2].T + way[:2, 2] - b.grid.origin) / b.grid.spacing).astype(int)
        inside = ((index >= 0) & (index < b.labels.shape)).all(axis=1)
        hit = np.zeros(len(at), dtype=bool)
        hit[inside] = b.labels[tuple(index[inside].T)] == b.pieces[q].number
        share.append(float(hit.mean()))
    return max(share)


def _pixels(found: Found, piece: Piece) -> Floats:
    """Positions ``[N, 2]`` of pixels of a piece."""
    index = np.argwhere(found.labels[piece.box] == piece.number) + [s.start for s in piece.box]
    index = index[:: max(1, len(index) // SAMPLED)]
    out: Floats = np.asarray(found.grid.origin) + np.asarray(found.grid.spacing) * index
    return out
