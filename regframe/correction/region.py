"""A region of the fixed side in which a map is corrected, and how a correction fades towards its outline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..data import Grid
from ..slides.field import Array

SEAM = 0.2
"""Width of the seam along the inside of the outline, over the greatest distance of a place in the region from it: within the seam
a correction fades from whole to nothing. Set on made faults (`tests/correction`)."""
MOST = 5000
"""Vertices of a region at most: what a hand draws has some hundred."""
_ROWS = 4096
"""Places whose distance from the outline is computed at once: 4096 × 5000 edges take 160 MB."""


@dataclass(frozen=True)
class Region:
    """The inside of one or several closed outlines of the fixed side; a place inside two of them is outside (a hole).

    Args:
        rings: vertices ``[K][2]`` as (y, x) of each outline, in the fixed unit; the last one is joined to the first.

    Raises ValueError for fewer than three vertices, more than `MOST`, or one that is not finite.
    """

    rings: tuple[tuple[tuple[float, float], ...], ...]

    def __post_init__(self) -> None:
        if not self.rings or any(len(ring) < 3 for ring in self.rings):
            raise ValueError("wanted a region with at least three corners, got fewer; draw around the place to correct")
        count = sum(len(ring) for ring in self.rings)
        if count > MOST:
            raise ValueError(f"wanted a region of at most {MOST} corners, got {count}; simplify its outline")
        if not all(math.isfinite(v) for ring in self.rings for vertex in ring for v in vertex):
            raise ValueError("wanted a region whose corners are finite, got NaN or inf")
        low, high = self.box
        if not (high > low).all():
            raise ValueError("wanted a region with an inside, got corners on one line")

    @classmethod
    def of(cls, rings: Sequence[Sequence[Sequence[float]]]) -> Region:
        """The region of outlines given as lists."""
        return cls(tuple(tuple((float(y), float(x)) for y, x in _open(ring)) for ring in rings))

    @property
    def box(self) -> tuple[Array, Array]:
        """Lower and upper corner ``[2]``."""
        every = np.array([vertex for ring in self.rings for vertex in ring])
        return every.min(axis=0), every.max(axis=0)

    def depth(self, at: Array) -> Array:
        """Distance ``[N]`` of places ``[N, 2]`` from the outline, in the fixed unit; 0 outside."""
        a = np.concatenate([np.array(ring) for ring in self.rings])
        b = np.concatenate([np.roll(np.array(ring), -1, axis=0) for ring in self.rings])
        edge = b - a
        length = np.maximum((edge**2).sum(axis=1), 1e-300)
        out = np.empty(len(at))
        for start in range(0, len(at), _ROWS):
            p = at[start : start + _ROWS, None]  # [n, 1, 2]
            share = np.clip(((p - a) * edge).sum(axis=2) / length, 0, 1)
            away = np.sqrt((((p - a) - share[..., None] * edge) ** 2).sum(axis=2)).min(axis=1)
            crosses = (a[:, 0] > p[..., 0]) != (b[:, 0] > p[..., 0])
            with np.errstate(divide="ignore", invalid="ignore"):
                x = a[:, 1] + (p[..., 0] - a[:, 0]) / edge[:, 0] * edge[:, 1]
            inside = (crosses & (p[..., 1] < x)).sum(axis=1) % 2 == 1
            out[start : start + _ROWS] = np.where(inside, away, 0.0)
        return out

    def window(self, grid: Grid) -> Array:
        """How much of a correction counts at the nodes of a grid ``[*S]``: 1 inside, 0 outside, smooth in the seam between.

        The nodes next to the outline are 0 too, so that what is linear between nodes is nothing outside.
        """
        depth = self.depth(grid.coords().reshape(-1, grid.ndim).numpy())
        reach = math.sqrt(
            sum(s**2 for s in grid.spacing)
        )  # a cell's diagonal: such nodes touch no cell that reaches out
        return _smooth((depth - reach) / max(SEAM * float(depth.max()), 1e-300)).reshape(grid.shape)

    def share(self, at: Array, deepest: float) -> Array:
        """How much of a correction counts at places ``[N, 2]``; ``deepest`` is the greatest depth of the region."""
        return _smooth(self.depth(at) / (SEAM * deepest))


def _smooth(t: Array) -> Array:
    """From 0 to 1 where ``t`` goes from 0 to 1, with two derivatives that begin and end at 0."""
    t = np.clip(t, 0, 1)
    out: Array = t**3 * (10 - 15 * t + 6 * t**2)
    return out


def _open(ring: Sequence[Sequence[float]]) -> Sequence[Sequence[float]]:
    """An outline without its last vertex where that repeats the first."""
    return ring[:-1] if len(ring) > 1 and list(ring[0]) == list(ring[-1]) else ring
