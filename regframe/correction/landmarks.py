"""A map corrected through landmarks over its whole canvas, at once, and further by what the images say.

The bend is the posterior mean of the Gaussian process that a refinement uses (`regframe.slides.field`): it goes through the
pairs to their accuracy, is nothing far from them, and is kept gentle enough to have an inverse.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..contracts import Progress
from ..data import Grid
from ..evaluation import map_figures
from ..maps.base import Transform
from ..maps.bends import split_last
from ..maps.sequence import in_a_row
from ..result import Result
from ..slides.field import (
    MOST_NODES,
    NODES,
    STEEP,
    Array,
    Evidence,
    Field,
    Process,
    joined,
    length_before,
    nodes_of,
    steepest,
)
from ..slides.through import gentle
from ..verdict import Finding, conclude, folds, round_trip
from .images import Beyond, Looked

ACCURACY = 0.5
"""Standard deviation of a landmark, in fixed pixels at full resolution, up to which the bend goes through it."""
HELD = 4.0
"""Standard deviations (`ACCURACY`) that a fit of the images may leave a landmark off: beyond that, they contradict it, and who
placed it is believed. One click in a hundred is 3 off; of made faults (`benchmarks/bench_correct.py`, seeds 51 and 62) such a
click costs less with 4."""
_EARLIER = "before the correction: "
_REACH = 0.6
"""Correlation length of the bend over the median distance of a pair from its nearest neighbour: neighbours are bent together, and
a single pair moves what lies around it."""
_WIDEST, _LEAST = 1 / 6, 1 / 64
"""Largest and least correlation length, over the diagonal of the fixed canvas."""


def bent(transform: Transform, fixed: Grid, p: Tensor, q: Tensor) -> Transform:
    """The map with the smooth bend added that takes each ``p`` to its ``q``; as it was where all are there already.

    Args:
        transform: the map, moving → fixed.
        fixed: canvas of the fixed side.
        p: moving positions ``[M, D]``, D 2 or 3.
        q: fixed positions ``[M, D]``.

    Raises ValueError, in one sentence, where pairs contradict each other.
    """
    field = _field(transform, fixed, p, q)
    return transform if field is None else joined(transform, field)


def refitted(
    base: Result, looked: Looked, p: Tensor, q: Tensor, report: Callable[[Progress], object] | None = None
) -> Transform | None:
    """The map bent through pairs and then, where the images ask for it, by a short fit that is held to the pairs.

    None where the images ask for nothing, so that `bent` is all there is. Arguments as of `bent`; ``report`` is called after each
    step, and what it raises ends the fit. Raises what `bent` raises.
    """
    transform, fixed = base.transform, base.fixed_grid
    first = _field(transform, fixed, p, q)
    now = base if first is None else dataclasses.replace(base, transform=joined(transform, first))
    beyond = looked.beyond(now, (p, q), ACCURACY * fixed.pixel, report=report)
    if beyond is None:
        return None
    field = _together(transform, fixed, first, beyond)
    if field is None:
        return None
    found = joined(transform, field)
    last = put_back(found, p, q, fixed)
    last_field = None if last is None else _field(found, fixed, p, last)
    return found if last_field is None else joined(transform, _after(field, last_field))


def figures(found: Result, p: Tensor, q: Tensor, where: str = "") -> dict[str, Any]:
    """The base's figures, those of the map taken anew, and the remark that landmarks moved it (``where``, in words).

    ``landmarks`` has the ``moving`` and ``fixed`` positions of all that moved the map, those of earlier corrections first: the
    report draws them.
    """
    away = ((found.transform.points(p) - q).norm(dim=1) / found.fixed_grid.pixel).tolist()
    metrics = {**found.metrics, **map_figures(found), "landmark_residual_px": away}
    metrics.pop("confidence", None)  # it was that of the map before
    metrics["landmarks"] = _all_landmarks(found.metrics.get("landmarks"), p.tolist(), q.tolist())
    kept = [_before(Finding(**item)) for item in metrics.get("findings", ()) if not _of_map(item["sentence"])]
    several = "a landmark" if len(away) == 1 else f"{len(away)} landmarks"
    said = Finding("warn", f"corrected {where}by {several} by hand, which nothing else has confirmed")
    return metrics | conclude([said, *kept, *folds(metrics), *round_trip(metrics)])


def _all_landmarks(before: Any, moving: list[Any], fixed: list[Any]) -> dict[str, list[Any]]:
    """Landmarks of earlier corrections and of this one; of two that share a position on either side the later one."""
    pairs = list(zip(moving, fixed, strict=True))
    if before:
        kept = zip(before["moving"], before["fixed"], strict=True)
        pairs = [(m, f) for m, f in kept if m not in moving and f not in fixed] + pairs
    return {"moving": [m for m, _ in pairs], "fixed": [f for _, f in pairs]}


def put_back(transform: Transform, p: Tensor, q: Tensor, fixed: Grid) -> Tensor | None:
    """Where a map that followed the images has still to take pairs ``p -> q`` (``[M, D]`` each): landmarks have the last word.

    Of a pair that the images left farther off than a click can be (`HELD`) its own fixed position, of the others where the map
    takes them now: what images told about those is kept. None where no pair is so far off.
    """
    now = transform.points(p)
    far = (now - q).norm(dim=1) > HELD * ACCURACY * fixed.pixel
    return torch.where(far[:, None], q, now) if bool(far.any()) else None


def apart(z: Array, otherwise: float) -> float:
    """Median distance of a position from its nearest neighbour; ``otherwise`` of a single one."""
    if len(z) < 2:
        return otherwise
    between = np.linalg.norm(z[:512, None] - z[None], axis=2)
    between[between == 0] = np.inf
    nearest = between.min(axis=1)
    finite = nearest[np.isfinite(nearest)]
    return float(np.median(finite)) if finite.size else otherwise


def _field(transform: Transform, fixed: Grid, p: Tensor, q: Tensor) -> Field | None:
    """The field that takes each ``p`` to its ``q``; None where all are there already."""
    head, tail = split_last(transform)
    before = length_before(tail)
    back = tail.inverse()
    z = back.points(q)
    source = in_a_row(head).points(p) if head else p
    d = (source - z).numpy()
    size = float(np.linalg.norm(d, axis=1).max())
    accuracy = ACCURACY * fixed.pixel * before
    if size < 1e-3 * accuracy:
        return None
    low, high = _bounds(back, fixed)
    diagonal = fixed.diagonal * before
    length = min(max(_REACH * apart(z.numpy(), diagonal), _LEAST * diagonal), _WIDEST * diagonal)
    if fixed.ndim == 3:  # of a volume no finer than memory allows
        length = max(length, NODES * (float(np.prod(high - low)) / MOST_NODES) ** (1 / 3))
    n = len(p)
    evidence = Evidence(z.numpy(), d, np.full(d.shape, accuracy), np.arange(n), np.ones(n, dtype=np.bool_))
    process = Process(head, low, high, tail.source_unit, accuracy)
    field = gentle(process, evidence, length, max(size, 4 * accuracy))
    if field is None:
        raise ValueError("wanted landmarks to which a map can be bent without folding, got some that contradict each other; "
                         "turn off the one that is marked")  # fmt: skip
    return field


def _together(transform: Transform, fixed: Grid, first: Field | None, beyond: Beyond) -> Field | None:
    """The field of landmarks with what images ask for beyond it, as one; None where it would be too steep for an inverse."""
    head, tail = split_last(transform)
    before = length_before(tail)
    low, high = _bounds(tail.inverse(), fixed)
    wanted = before * beyond.spacing
    if first is not None:
        wanted = min(wanted, min(first.grid.spacing))
    wanted = max(wanted, math.sqrt(float(np.prod(high - low)) / MOST_NODES))
    grid = nodes_of(head, low, high, wanted, tail.source_unit)
    z = grid.coords().reshape(-1, 2)
    y = tail.points(z)
    e = tail.inverse().points(y + torch.from_numpy(beyond.at(y.numpy()))) - z
    d = e.numpy() if first is None else e.numpy() + first.at((z + e).numpy())
    field = Field(torch.from_numpy(d.T.reshape(2, *grid.shape)), grid)
    return field if steepest(field) < STEEP else None


def _after(field: Field, last: Field) -> Field:
    """A field with a further one before it, as one, on the nodes of the first."""
    z = field.grid.coords().reshape(-1, 2).numpy()
    d = last.at(z)
    both = d + field.at(z + d)
    return Field(torch.from_numpy(both.T.reshape(2, *field.grid.shape).copy()), field.grid)


def _bounds(back: Transform, fixed: Grid) -> tuple[Array, Array]:
    """Lower and upper corner of the canvas before the map's last affine part."""
    low = [o - s / 2 for o, s in zip(fixed.origin, fixed.spacing, strict=True)]
    high = [a + e for a, e in zip(low, fixed.extent, strict=True)]
    ends = list(itertools.product(*zip(low, high, strict=True)))
    corners = back.points(torch.tensor(ends, dtype=torch.float64))
    return corners.amin(dim=0).numpy(), corners.amax(dim=0).numpy()


def _before(said: Finding) -> Finding:
    """A remark of the judge on how sure the map was, told as one on the map before."""
    if "(confidence " not in said.sentence or said.sentence.startswith(_EARLIER):
        return said
    return dataclasses.replace(said, sentence=_EARLIER + said.sentence, remedy="")


def _of_map(sentence: str) -> bool:
    """Whether a remark is on the map alone, and is made anew."""
    return any(
        word in sentence for word in ("the map folds", "its inverse", "placed by hand", "by hand, which nothing")
    )
