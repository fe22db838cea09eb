"""A map corrected by landmarks at once: affine by all of them where it was a start by hand, then bent to them, smoothly, and
then by what the images say (`regframe.correction`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..config import Config
from ..contracts import Progress
from ..correction.here import correct
from ..correction.images import Looked
from ..correction.landmarks import bent, figures, refitted
from ..correction.region import Region
from ..data import Grid
from ..evaluation import map_figures
from ..maps.affine import Affine
from ..maps.base import Transform
from ..result import Result
from ..starts.landmarks import check_spread, fit_points
from ..verdict import Finding, conclude, folds, round_trip
from .pairs import Pair

Report = Callable[[Progress], object] | None
BENT = 4
"""Pairs from which a start by hand is bent, in 3D one more: fewer give turn, shift and scale alone."""


def corrected(base: Result, pairs: Sequence[Pair], by_hand: bool) -> Result:
    """The result with its map corrected by pairs.

    Args:
        base: what is corrected; always the map before any landmark, so that moving a landmark twice is moving it once.
        pairs: the landmarks that count.
        by_hand: whether ``base`` is a start by hand: then the pairs first give a new affine map.

    Raises ValueError, in one sentence, where pairs are too few or lie on one line.
    """
    base, p, q, bends = _begun(base, pairs, by_hand)
    found = dataclasses.replace(base, transform=bent(base.transform, base.fixed_grid, p, q)) if bends else base
    return dataclasses.replace(found, metrics=figures(found, p, q))


def looked_at(
    base: Result, pairs: Sequence[Pair], by_hand: bool, looked: Looked, report: Report = None
) -> Result | None:
    """As `corrected`, and then by a short fit of the images that is held to the pairs; None where they ask for nothing more.

    ``report`` is called after each step of it; what it raises ends it.
    """
    base, p, q, bends = _begun(base, pairs, by_hand)
    transform = refitted(base, looked, p, q, report) if bends else None
    if transform is None:
        return None
    found = dataclasses.replace(base, transform=transform)
    return dataclasses.replace(found, metrics=figures(found, p, q))


def corrected_here(
    base: Result, rings: Any, pairs: Sequence[Pair], looked: Looked | None, report: Report = None
) -> Result:
    """The result with its map corrected in a region alone (`regframe.correction.here.correct`).

    Args:
        base: what is corrected.
        rings: outlines of the region, ``[R][K][2]`` as (y, x) on the fixed side.
        pairs: the landmarks that count.
        looked: both sides as images, or None.
        report: called after each step.
    """
    p = torch.tensor([pair.moving for pair in pairs], dtype=torch.float64).reshape(-1, 2)
    q = torch.tensor([pair.fixed for pair in pairs], dtype=torch.float64).reshape(-1, 2)
    return correct(base, Region.of(rings), p, q, looked, report)


def started(matrix: Any, fixed: Grid, moving: Grid) -> Result:
    """A start by hand as a result: an affine map that nothing but the user's eye has judged."""
    map_ = Affine(torch.as_tensor(matrix, dtype=torch.float64), moving.unit, fixed.unit)
    found = Result(map_, fixed, moving, {}, Config(transform="affine"), map_)
    said = [Finding("warn", "placed by hand; nothing was measured")]
    metrics = {"model": "affine", "n_evaluations": 0, "seconds": 0.0, **map_figures(found)}
    return dataclasses.replace(found, metrics=metrics | conclude([*said, *folds(metrics), *round_trip(metrics)]))


def _begun(base: Result, pairs: Sequence[Pair], by_hand: bool) -> tuple[Result, torch.Tensor, torch.Tensor, bool]:
    """What is bent: the result, of a start by hand with a new affine map; moving and fixed positions; whether to bend at all."""
    if not pairs:
        raise ValueError("wanted at least one pair of landmarks that counts, got none; add one")
    p = torch.tensor([pair.moving for pair in pairs], dtype=torch.float64)
    q = torch.tensor([pair.fixed for pair in pairs], dtype=torch.float64)
    if by_hand:
        affine = _affine(base.affine, p, q)
        base = dataclasses.replace(base, transform=affine, affine=affine)
    return base, p, q, not by_hand or len(pairs) >= BENT + (p.shape[1] == 3)


def _affine(start: Transform, p: torch.Tensor, q: torch.Tensor) -> Affine:
    """The affine map of the pairs; of one or two the start, shifted to them."""
    unit = start.source_unit, start.target_unit
    if len(p) >= 3:
        for coords, side in ((p, "moving"), (q, "fixed")):
            check_spread(coords, side)
        return Affine(fit_points(p, q, "affine")[0].matrix, *unit)
    (part,) = start.parts()
    assert isinstance(part, Affine)
    shift = torch.eye(p.shape[1] + 1, dtype=torch.float64)
    shift[:-1, -1] = (q - start.points(p)).mean(dim=0)
    return Affine(shift @ part.matrix, *unit)
