"""Pairs of tables of cells and of bare points with known maps: what two measurements of one tissue leave of its cells."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial import cKDTree

import regframe as rf

from . import maps, sources
from .pairs import Made, Rng, seeded
from .sources import Array, Mask, Table

PIXELS = 3.0
"""Pixels a cell's room is wide, as the adapter ``cells`` proposes; bends are drawn in these pixels."""
FEWEST = 40
"""Cells on either side of which a pair is made at least: of the rectangles of a ragged tissue some hold next to none, and nobody
would align ten points."""
ATTEMPTS = 20
"""Draws of a pair at most until both sides have `FEWEST` cells."""
JUDGED = 2000
"""Cells, at most, at which a pair is judged."""


@dataclass(frozen=True)
class Measurement:
    """What a technology makes of cells. Lengths in rooms of a cell (square root of its area).

    Args:
        kept: range of the share of the cells that it finds.
        doubled: range of the share that it finds twice.
        jitter: range of the standard deviation, per axis, of where it puts them.
        merged: chance that two cells closer than 0.7 rooms are taken for one.
        uneven: whether what it finds varies smoothly over the field, down to a third.
        block: whether 10–30 % of the field are missing.
        outliers: range of the share of points that are none.
    """

    kept: tuple[float, float] = (1.0, 1.0)
    doubled: tuple[float, float] = (0.0, 0.0)
    jitter: tuple[float, float] = (0.0, 0.1)
    merged: float = 0.0
    uneven: bool = False
    block: bool = False
    outliers: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class CellRecipe:
    """How a kind of pair of tables is made.

    Args:
        fixed: measures the fixed side.
        moving: measures the moving side.
        turn: most that the moving side is turned, degrees.
        bend: range of the largest bend in pixels of a third of a room.
        number: range of the number of cells in the field before anything is measured.
        bare: whether both sides are bare points, not densities.
    """

    fixed: Measurement = Measurement()
    moving: Measurement = Measurement()
    turn: float = 180.0
    bend: tuple[float, float] = (2.0, 10.0)
    number: tuple[int, int] = (1500, 6000)
    bare: bool = False


def field_of(rng: Rng, table: Table, number: int) -> Array:
    """The cells of a random rectangle of the table that holds about ``number``; all where there are no more."""
    at = table.at
    if len(at) <= number * 1.1:
        return at
    low, size = at.min(axis=0), np.ptp(at, axis=0)
    best = at
    for _ in range(8):  # tissue does not fill its rectangle: that of eight which comes closest
        share = math.sqrt(number / len(at)) * np.array([a := math.exp(rng.uniform(-0.2, 0.2)), 1 / a])
        share = np.minimum(share * rng.uniform(1.0, 1.3), 1.0)
        start = low + rng.uniform(0, 1, 2) * (1 - share) * size
        inside = at[((at >= start) & (at <= start + share * size)).all(axis=1)]
        if abs(len(inside) - number) < abs(len(best) - number):
            best = inside
    return best


def room(at: Array) -> float:
    """Square root of the area that a cell has: of the median distance to the sixth neighbour, √(π r² / 6)."""
    distance = np.median(cKDTree(at).query(at, 7)[0][:, 6])
    return float(distance * math.sqrt(math.pi / 6))


def measured(rng: Rng, at: Array, how: Measurement) -> tuple[Array, Mask, float, list[str]]:
    """The positions found of cells ``at`` (in rooms), which of the cells lie where it looked, the jitter, and words."""
    size, low = np.ptp(at, axis=0), at.min(axis=0)
    looked = np.ones(len(at), dtype=bool)
    story = []
    if how.block:
        angle = rng.uniform(0, 2 * math.pi)
        side = (at - low) / size @ np.array([math.sin(angle), math.cos(angle)])
        share = rng.uniform(0.1, 0.3)
        middle = rng.uniform(share / 2, 1 - share / 2) if rng.random() < 0.5 else 1 - share / 2
        looked = ~(
            (side > np.quantile(side, middle - share / 2)) & (side <= np.quantile(side, min(1, middle + share / 2)))
        )
        story.append(f"{share:.0%} missing")
    kept = rng.uniform(*how.kept)
    chance = np.full(len(at), kept)
    if how.uneven:
        smooth = gaussian_filter(rng.standard_normal((64, 64)), 10, mode="reflect")
        smooth = (smooth - smooth.min()) / np.ptp(smooth)
        chance *= 1 / 3 + 2 / 3 * map_coordinates(smooth, ((at - low) / size * 63).T, order=1)
    found = at[looked & (rng.random(len(at)) < chance)]
    if how.merged:
        pairs = cKDTree(found).query_pairs(0.7, output_type="ndarray")
        pairs = pairs[np.lexsort(pairs.T[::-1])]
        pairs = pairs[rng.random(len(pairs)) < how.merged]
        middles = found[pairs].mean(axis=1)
        found = np.concatenate([np.delete(found, np.unique(pairs), axis=0), middles])
    doubled = found[rng.random(len(found)) < rng.uniform(*how.doubled)]
    found = np.concatenate([found, doubled + rng.normal(0, 0.2, doubled.shape)])
    jitter = rng.uniform(*how.jitter)
    found = found + rng.normal(0, jitter, found.shape)
    none = round(rng.uniform(*how.outliers) * len(found))
    found = np.concatenate([found, low + rng.uniform(0, 1, (none, 2)) * size])
    story.append(f"{len(found)} of {len(at)} found, jitter {jitter:.2f}")
    return found[rng.permutation(len(found))], looked, jitter, story


def make(kind: str, seed: int, data: Path | None, recipe: CellRecipe) -> Made:
    """A pair of tables: the cells of one field, measured twice, the second time moved."""
    assert data is not None
    rng = seeded(kind, seed)
    for _ in range(ATTEMPTS):
        made = _drawn(rng, kind, seed, data, recipe)
        if made is not None:
            return made
    raise RuntimeError(f"wanted {FEWEST} cells on both sides of {kind}:{seed}, got fewer in {ATTEMPTS} draws")


def _drawn(rng: Rng, kind: str, seed: int, data: Path, recipe: CellRecipe) -> Made | None:
    """One draw of a pair, or None where a side has fewer than `FEWEST` cells."""
    tables = [*sources.tables(data), sources.nuclei(data)] if recipe.bare else list(sources.tables(data))
    table = tables[int(rng.integers(len(tables)))]
    chosen = field_of(rng, table, int(rng.integers(*recipe.number)))
    unit = room(chosen)
    at = chosen / unit
    fixed, seen, first, said = measured(rng, at, recipe.fixed)
    again, seen_too, second, said_too = measured(rng, at, recipe.moving)
    if min(len(fixed), len(again)) < FEWEST:
        return None
    low, size = at.min(axis=0), np.ptp(at, axis=0)
    chain: list[maps.Map] = [maps.Linear(np.eye(2) * PIXELS, -low * PIXELS)]
    bent = rng.uniform(*recipe.bend)
    if bent:
        shape = tuple(int(n) + 1 for n in size * PIXELS)
        chain.append(maps.bend(rng, shape, bent, rng.uniform(40, 100)))
    turn, mirror = math.radians(rng.uniform(-recipe.turn, recipe.turn)), table.tissue == "breast" and rng.random() < 0.1
    matrix = maps.rotation(turn) @ np.diag([1.0, -1.0 if mirror else 1.0])
    chain.append(maps.Linear(matrix * unit / PIXELS, rng.uniform(-0.3, 0.3, 2) * size * unit))
    whole = maps.Chain(tuple(chain))
    judged = np.flatnonzero(seen & seen_too)
    judged = judged[rng.permutation(len(judged))[:JUDGED]]
    sides = [_side(points, table.unit, recipe.bare) for points in (fixed * unit, whole.push(again))]
    pixel = unit if recipe.bare else max(side.grid.spacing[0] for side in sides if isinstance(side, rf.Image))
    jitter = math.hypot(first, second) * unit / pixel
    story = (f"{table.name}, {len(at)} cells", *said, *said_too, f"bent by {bent:.1f} px",
             f"{math.degrees(turn):.0f}°{' mirrored' if mirror else ''}")  # fmt: skip
    made = Made(
        kind, seed, sides[0], sides[1], at[judged] * unit, whole.push(at[judged]), pixel, jitter, story, (table.name,)
    )
    return made.exchanged(1.0) if rng.random() < 0.5 else made


def strangers(kind: str, seed: int, data: Path | None) -> Made:
    """The cells of fields of two different tissues, turned; in every second pair bare points, in the others drawn."""
    assert data is not None
    rng = seeded(kind, seed)
    tables = sources.tables(data)
    first = tables[int(rng.integers(len(tables)))]
    others = [table for table in tables if table.tissue != first.tissue]
    second, bare = others[int(rng.integers(len(others)))], rng.random() < 0.5
    sides, story = [], []
    for table in (first, second):
        chosen = field_of(rng, table, int(rng.integers(*((300, 1200) if bare else (1500, 6000)))))
        found, _, _, said = measured(rng, chosen / room(chosen), Measurement((0.6, 1.0), jitter=(0.0, 0.2)))
        turn = rng.uniform(-180, 180)
        sides.append(_side(found @ maps.rotation(math.radians(turn)).T * PIXELS, "px", bare))
        story += [table.name, *said, f"{turn:.0f}°"]
    none = np.zeros((0, 2))
    return Made(kind, seed, sides[0], sides[1], none, none, story=tuple(story), sources=(first.name, second.name))


def _side(points: Array, unit: str, bare: bool) -> rf.Image | rf.PointSet:
    """What a user opens: bare points, or cells by the adapter of that name with its own settings."""
    if bare:
        return rf.PointSet(torch.from_numpy(np.ascontiguousarray(points)), unit)
    image = rf.open(np.ascontiguousarray(points), adapter="cells", columns="y,x", unit=unit)
    assert isinstance(image, rf.Image)
    return image
