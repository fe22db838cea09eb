"""A map corrected by landmarks at once: affine by all of them where it was a start by hand, then bent to them, smoothly.

The bend is the posterior mean of the Gaussian process that a refinement uses (`regframe.slides.field`): it goes through the
pairs to their accuracy, is nothing far from them, and is kept gentle enough to have an inverse.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..config import Config
from ..data import Grid
from ..evaluation import map_figures
from ..maps.affine import Affine
from ..maps.base import Transform
from ..maps.bends import split_last
from ..maps.sequence import in_a_row
from ..result import Result
from ..slides.field import Evidence, Process, joined, length_before
from ..slides.through import gentle
from ..starts.landmarks import check_spread, fit_points
from ..verdict import Finding, conclude, folds, round_trip
from .pairs import Pair

ACCURACY = 0.5
"""Standard deviation of a landmark, in fixed pixels at full resolution, up to which the bend goes through it."""
_REACH = 0.6
"""Correlation length of the bend over the median distance of a pair from its nearest neighbour: neighbours are bent together, and
a single pair moves what lies around it."""
_WIDEST, _LEAST = 1 / 6, 1 / 64
"""Largest and least correlation length, over the diagonal of the fixed canvas."""
BENT = 4
"""Pairs from which a start by hand is bent: fewer give turn, shift and scale alone."""


def corrected(base: Result, pairs: Sequence[Pair], by_hand: bool) -> Result:
    """The result with its map corrected by pairs.

    Args:
        base: what is corrected; always the map before any landmark, so that moving a landmark twice is moving it once.
        pairs: the landmarks that count.
        by_hand: whether ``base`` is a start by hand: then the pairs first give a new affine map.

    Raises ValueError, in one sentence, where pairs are too few or lie on one line.
    """
    if not pairs:
        raise ValueError("wanted at least one pair of landmarks that counts, got none; add one")
    p = torch.tensor([pair.moving for pair in pairs], dtype=torch.float64)
    q = torch.tensor([pair.fixed for pair in pairs], dtype=torch.float64)
    transform, affine = base.transform, base.affine
    if by_hand:
        transform = affine = _affine(affine, p, q)
    if not by_hand or len(pairs) >= BENT:
        transform = _bent(transform, base.fixed_grid, p, q)
    found = dataclasses.replace(base, transform=transform, affine=affine)
    return dataclasses.replace(found, metrics=_figures(found, p, q))


def started(matrix: Any, fixed: Grid, moving: Grid) -> Result:
    """A start by hand as a result: an affine map that nothing but the user's eye has judged."""
    map_ = Affine(torch.as_tensor(matrix, dtype=torch.float64), moving.unit, fixed.unit)
    found = Result(map_, fixed, moving, {}, Config(transform="affine"), map_)
    said = [Finding("warn", "placed by hand; nothing was measured")]
    metrics = {"model": "affine", "n_evaluations": 0, "seconds": 0.0, **map_figures(found)}
    return dataclasses.replace(found, metrics=metrics | conclude([*said, *folds(metrics), *round_trip(metrics)]))


def _affine(start: Transform, p: torch.Tensor, q: torch.Tensor) -> Affine:
    """The affine map of the pairs; of one or two the start, shifted to them."""
    unit = start.source_unit, start.target_unit
    if len(p) >= 3:
        for coords, side in ((p, "moving"), (q, "fixed")):
            check_spread(coords, side)
        return Affine(fit_points(p, q, "affine")[0].matrix, *unit)
    (part,) = start.parts()
    assert isinstance(part, Affine)
    shift = torch.eye(3, dtype=torch.float64)
    shift[:-1, -1] = (q - start.points(p)).mean(dim=0)
    return Affine(shift @ part.matrix, *unit)


def _bent(transform: Transform, fixed: Grid, p: torch.Tensor, q: torch.Tensor) -> Transform:
    """The map with the smooth bend added that takes each ``p`` to its ``q``; as it was where all are there already."""
    head, tail = split_last(transform)
    before = length_before(tail)
    back = tail.inverse()
    z = back.points(q)
    source = in_a_row(head).points(p) if head else p
    d = (source - z).numpy()
    size = float(np.linalg.norm(d, axis=1).max())
    accuracy = ACCURACY * fixed.pixel * before
    if size < 1e-3 * accuracy:
        return transform
    corners = back.points(_corners(fixed))
    low, high = corners.amin(dim=0).numpy(), corners.amax(dim=0).numpy()
    diagonal = fixed.diagonal * before
    length = min(max(_REACH * _apart(z.numpy(), diagonal), _LEAST * diagonal), _WIDEST * diagonal)
    n = len(p)
    evidence = Evidence(z.numpy(), d, np.full((n, 2), accuracy), np.arange(n), np.ones(n, dtype=np.bool_))
    process = Process(head, low, high, tail.source_unit, accuracy)
    field = gentle(process, evidence, length, max(size, 4 * accuracy))
    if field is None:
        raise ValueError("wanted landmarks to which a map can be bent without folding, got some that contradict each other; "
                         "turn off the one that is marked")  # fmt: skip
    return joined(transform, field)


def _apart(z: np.ndarray[Any, Any], diagonal: float) -> float:
    """Median distance of a position from its nearest neighbour; of one position the diagonal."""
    if len(z) < 2:
        return diagonal
    apart = np.linalg.norm(z[:512, None] - z[None], axis=2)
    apart[apart == 0] = np.inf
    nearest = apart.min(axis=1)
    finite = nearest[np.isfinite(nearest)]
    return float(np.median(finite)) if finite.size else diagonal


def _corners(grid: Grid) -> torch.Tensor:
    low = [o - s / 2 for o, s in zip(grid.origin, grid.spacing, strict=True)]
    high = [a + e for a, e in zip(low, grid.extent, strict=True)]
    return torch.tensor([[y, x] for y in (low[0], high[0]) for x in (low[1], high[1])], dtype=torch.float64)


def _figures(found: Result, p: torch.Tensor, q: torch.Tensor) -> dict[str, Any]:
    """The base's figures, those of the map taken anew, and the remark that landmarks moved it."""
    away = ((found.transform.points(p) - q).norm(dim=1) / found.fixed_grid.pixel).tolist()
    metrics = {**found.metrics, **map_figures(found), "landmark_residual_px": away}
    kept = [Finding(**item) for item in metrics.get("findings", ()) if not _of_map(item["sentence"])]
    several = "a landmark" if len(away) == 1 else f"{len(away)} landmarks"
    said = Finding("warn", f"corrected by {several} by hand, which nothing else has confirmed")
    return metrics | conclude([said, *kept, *folds(metrics), *round_trip(metrics)])


def _of_map(sentence: str) -> bool:
    """Whether a remark is on the map alone, and is made anew."""
    return any(
        word in sentence for word in ("the map folds", "its inverse", "placed by hand", "by hand, which nothing")
    )
