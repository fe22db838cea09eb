"""A map corrected in one region, through landmarks there and by what the images say there; elsewhere it is the same, bit for bit.

The correction is a flow of its own behind the map, in the fixed space, whose velocity is exactly 0 at every node with a cell that
reaches out of the region: a position outside is moved by exactly nothing, forth and back.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..contracts import Progress
from ..data import Grid
from ..maps.flow import Flow
from ..maps.sequence import Sequence
from ..result import Result
from ..slides.field import NODES, Evidence, Field, steepest
from ..slides.through import posterior
from .images import Beyond, Looked
from .landmarks import ACCURACY, apart, figures, put_back
from .region import SEAM, Region

_REACH = 1.0
"""Correlation length of a correction over the median distance of a pair from its nearest neighbour."""
_WIDEST, _LEAST = 0.5, 0.2
"""Largest and least correlation length of a correction, over the greatest depth of the region."""
_SHARE = 0.1
"""Least share of a correction that counts at a landmark for it to have a say: nearer to the outline, hardly anything moves."""
_MOST_NODES = 60_000
"""Nodes of a correction, at most."""
_SOON = 3
"""Power by which what images ask for counts sooner in the seam than what landmarks ask for. Between landmarks and outline the
bend through landmarks is a guess, of which a share ``w`` is there already; with images at ``w`` too a quarter of the guess would
stay in the middle of the seam, with ``1 - (1 - w)³`` a tenth. On made and real tissue with made faults of 30 px (seeds 10 to 13)
the largest error is 1.2 px in the mean of the faults; with a power of 1 it is 1.5 px."""
_PIXELS = 640_000
"""Pixels of the region and what is around it that are looked at, at most: four times as many as while a landmark is dragged."""
_STEEP = 0.2
"""Largest change of a correction between two nodes, over their distance, that one Euler step takes."""
_MOST_STEPS = 24
"""Euler steps of a correction, at most: with more of them tissue would be torn."""
_AROUND = 0.1
"""How far beyond the region, over its size, images are looked at: so that the fit knows that they agree there."""


def correct(
    result: Result,
    region: Region,
    moving: Tensor,
    fixed: Tensor,
    looked: Looked | None = None,
    report: Callable[[Progress], object] | None = None,
) -> Result:
    """The result with its map corrected inside a region, with a smooth seam.

    Args:
        result: a registration of two flat sides.
        region: where the map may change, on the fixed side.
        moving: landmarks ``[M, 2]`` on the moving side, in its unit; only those whose fixed position is in the region count.
        fixed: the same landmarks on the fixed side.
        looked: both sides as images, by which what landmarks leave is refined; None where landmarks alone are to count.
        report: called after each step of that; what it raises ends it.

    Returns:
        The result with the map corrected; ``metrics["corrections"]`` has one more entry: ``box`` (lower and upper corner, fixed
        unit), ``landmarks`` that counted, ``moved`` (largest and median move within the region, fixed pixels), ``images``
        (whether they had a say) and ``steps`` of the flow. Its verdict is ``warn`` at best, for nothing has confirmed it.

    Raises:
        ValueError: in one sentence, for a region off the canvas, one without landmarks and without images to go by, or landmarks
            that would tear the map.
    """
    if result.fixed_grid.ndim != 2 or result.moving_grid.ndim != 2:
        raise ValueError("wanted a map of two flat sides to correct in a region, got one of volumes")
    deepest = _deepest(region, result.fixed_grid)
    counts = region.share(fixed.numpy(), deepest) > _SHARE if len(fixed) else np.zeros(0, np.bool_)
    p, q = moving[torch.from_numpy(counts)], fixed[torch.from_numpy(counts)]
    if not len(p) and looked is None:
        raise ValueError("wanted a landmark well inside the region, got none; add one there, or draw the region wider")
    field = _through(result, region, deepest, p, q)
    beyond = None
    if looked is not None:
        low, high = region.box
        more = _AROUND * (high - low)
        box = low - more, high + more
        now = dataclasses.replace(result, transform=_added(result, field))
        beyond = looked.beyond(now, (p, q), ACCURACY * result.fixed_grid.pixel, box, report, _PIXELS)
    if beyond is not None:
        field = _together(region, field, beyond)
        now = dataclasses.replace(result, transform=_added(result, field))
        last = put_back(now.transform, p, q, result.fixed_grid)
        if last is not None:
            field = _after(region, field, _through(now, region, deepest, p, last))
    steps = _steps(field)
    if steps > _MOST_STEPS:
        raise ValueError(
            "wanted landmarks to which the map can be bent within the region without tearing it, got a correction too large for "
            "it; draw the region wider, or turn off the landmark that is wrong"
        )
    found = dataclasses.replace(result, transform=_added(result, field))
    moved = np.linalg.norm(field.values.numpy(), axis=0)[region.window(field.grid) > 0.5] / result.fixed_grid.pixel
    low, high = region.box
    entry = {
        "box": [low.tolist(), high.tolist()],
        "landmarks": len(p),
        "moved": {"median": float(np.median(moved)) if moved.size else 0.0, "max": float(moved.max(initial=0.0))},
        "images": beyond is not None,
        "steps": steps,
    }
    metrics = figures(found, p, q, "in a region ")
    metrics["corrections"] = [*result.metrics.get("corrections", ()), entry]
    return dataclasses.replace(found, metrics=metrics)


def _deepest(region: Region, fixed: Grid) -> float:
    """The greatest distance of a place in the region from its outline; ValueError where nothing of it lies on the canvas."""
    grid = _grid(region, fixed.unit, max(float(v) for v in region.box[1] - region.box[0]) / 64)
    at = grid.coords().reshape(-1, 2)
    depth = region.depth(at.numpy())
    if not bool((fixed.contains(at).numpy() & (depth > 0)).any()):
        raise ValueError("wanted a region on the fixed side's canvas, got one beyond it; mind the unit of its corners")
    return float(depth.max())


def _grid(region: Region, unit: str, spacing: float) -> Grid:
    """Nodes over a region, with one to spare on every side."""
    low, high = region.box
    spacing = max(spacing, math.sqrt(float(np.prod(high - low)) / _MOST_NODES))
    shape = tuple(int(n) for n in np.ceil((high - low) / spacing) + 3)
    return Grid(shape, (spacing, spacing), tuple((low - spacing).tolist()), unit)


def _through(result: Result, region: Region, deepest: float, p: Tensor, q: Tensor) -> Field:
    """The field that takes the map's inverse at each ``q`` to its ``p``; 0 where there is no landmark."""
    unit, pixel = result.fixed_grid.unit, result.fixed_grid.pixel
    length = min(max(_REACH * apart(q.numpy(), math.inf), _LEAST * deepest), _WIDEST * deepest)
    grid = _grid(region, unit, min(length / NODES, SEAM * deepest / 6))
    if not len(p):
        return Field(torch.zeros((2, *grid.shape), dtype=torch.float64), grid)
    d = (result.transform.points(p) - q).numpy()
    accuracy = ACCURACY * pixel
    n = len(p)
    evidence = Evidence(q.numpy(), d, np.full((n, 2), accuracy), np.arange(n), np.ones(n, dtype=np.bool_))
    deviation = max(float(np.linalg.norm(d, axis=1).max()), 4 * accuracy)
    return posterior(grid, evidence, length, deviation, accuracy, region.window(grid))


def _together(region: Region, first: Field, beyond: Beyond) -> Field:
    """The field of landmarks with what images ask for beyond it, within the region."""
    grid = _grid(region, first.grid.unit, min(*first.grid.spacing, beyond.spacing))
    y = grid.coords().reshape(-1, 2).numpy()
    window = region.window(grid).reshape(-1, 1)
    e = beyond.at(y) * (1 - (1 - window) ** _SOON)
    d = np.where(window > 0, e + first.at(y + e), 0.0)
    return Field(torch.from_numpy(d.T.reshape(2, *grid.shape).copy()), grid)


def _after(region: Region, field: Field, last: Field) -> Field:
    """A field with a further one before it, as one, on the nodes of the first."""
    y = field.grid.coords().reshape(-1, 2).numpy()
    d = last.at(y)
    both = np.where(region.window(field.grid).reshape(-1, 1) > 0, d + field.at(y + d), 0.0)
    return Field(torch.from_numpy(both.T.reshape(2, *field.grid.shape).copy()), field.grid)


def _steps(field: Field) -> int:
    """Euler steps that keep the flow of a field invertible."""
    return max(1, math.ceil(steepest(field) / _STEEP))


def _added(result: Result, field: Field) -> Any:
    """The map with a field behind it, as a flow of its own; the map itself where the field is nothing."""
    if not bool(field.values.any()):
        return result.transform
    steps = min(_steps(field), _MOST_STEPS)
    values, at = field.values, field.grid.coords()
    fixed = (field.values == 0).all(dim=0)
    for _ in range(4 if steps > 1 else 0):  # adjust the velocity until its steps together displace by the field
        flow = Flow((-values)[None].to(torch.float32), field.grid, steps, reverse=True)
        values = values + (field.values - (flow.points(at) - at).movedim(-1, 0))
        values = torch.where(fixed, 0.0, values)
    flow = Flow((-values)[None].to(torch.float32), field.grid, steps)
    return Sequence((*result.transform.parts(), flow))
