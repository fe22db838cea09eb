"""`compose`: results in a chain, A → B → C, as one result with one map, one verdict and one uncertainty."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import evaluation, verdict
from .config import Config
from .data import Grid, unit_ratio
from .maps import bends
from .maps.affine import Affine
from .maps.base import Transform
from .maps.homogeneous import compose as product
from .maps.homogeneous import inverse
from .maps.known import known
from .maps.sequence import in_a_row
from .result import Result
from .verdict import Finding
from .versions import versions

MOST_NODES = 50_000
"""Pixels of the grid of weight and `position_sd` at most: as many as of the figures of a map (`evaluation.map_figures`)."""
MEET = 0.5
"""Area that two canvases have in common over that which they cover together, below which a person is asked whether they show one
image. A crop of half of an image passes; two images of unlike size or spacing do not."""


def compose(*results: Result, inverse: Iterable[int] = ()) -> Result:
    """The map from the moving side of the first result to the fixed side of the last, through the sides between them.

    Affine maps are multiplied, and one bend is kept as it is; several bends become one displacement field within
    `maps.known.TOLERANCE_PX` moving pixels, so that every format and store holds the whole.

    ``match_probability`` is the product of those of the steps, 0 off a canvas between. ``position_sd`` is the root of the sum of
    their squares, each carried to the last space by the affine maps after it: errors of the steps are taken to be independent. It
    is None where a step has none. The verdict is the worst of the steps', or worse; the confidence is the product of theirs.

    Args:
        results: two or more, in the order of application; the fixed side of one is the moving side of the next.
        inverse: numbers, from 1, of those to be taken backwards, from their fixed to their moving side.

    Raises:
        ValueError: for fewer than two results, sides between two that are not one (other unit or dimension, canvases apart), a
            section in a volume, or a number that is none of theirs.
    """
    began = time.perf_counter()
    backwards = set(inverse)
    if len(results) < 2:
        raise ValueError(
            f"wanted two results or more to compose, got {len(results)}; name them in the order of application"
        )
    if not backwards <= set(range(1, len(results) + 1)):
        raise ValueError(f"wanted numbers from 1 to {len(results)} of results to invert, got {sorted(backwards)}")
    steps = tuple(_Step(result, i in backwards) for i, result in enumerate(results, 1))
    findings = list(_meetings(steps))
    first, last = steps[0].source, steps[-1].target
    transform, affine = _joined(steps)
    grid = last if math.prod(last.shape) <= MOST_NODES else _coarse(last)
    weight, sd = _trust(steps, grid)
    config = Config(transform="lddmm" if bends.split(transform)[1] is not None else "affine")
    whole = Result(
        transform, last, first, {}, config, affine,
        weight=weight, weight_grid=None if weight is None else grid, position_sd=sd,
    )  # fmt: skip
    metrics = _figures(whole, steps, began)
    findings += verdict.of_chain([step.result.metrics for step in steps], metrics)
    return Result(**{**whole.__dict__, "metrics": metrics | verdict.conclude(findings)})


@dataclass(frozen=True)
class _Step:
    """A result as a step of a chain, forwards (moving → fixed) or backwards.

    Args:
        result: the result.
        backwards: whether it takes positions from its fixed to its moving side.
    """

    result: Result
    backwards: bool

    @property
    def source(self) -> Grid:
        """Canvas of the side that positions come from."""
        return self.result.fixed_grid if self.backwards else self.result.moving_grid

    @property
    def target(self) -> Grid:
        """Canvas of the side that positions are taken to."""
        return self.result.moving_grid if self.backwards else self.result.fixed_grid

    @property
    def transform(self) -> Transform:
        """The map from source to target."""
        return self.result.transform.inverse() if self.backwards else self.result.transform

    @property
    def matrix(self) -> Tensor:
        """The affine part of the map, ``[D+1, D+1]``."""
        matrix = bends.product(self.result.affine.parts(), self.source.ndim)
        return inverse(matrix) if self.backwards else matrix

    def probability(self, coords: Tensor) -> Tensor | None:
        """Probability ``[N]`` that target positions ``[N, D]`` have a partner; None where the result has no weights."""
        if self.result.weight is None:
            return None
        on_fixed = self.result.transform.points(coords) if self.backwards else coords
        return evaluation.match_probability(self.result, on_fixed).nan_to_num(0.0)

    def spread(self, coords: Tensor) -> Tensor | None:
        """Standard deviation ``[N]`` per axis of target positions ``[N, D]``, in the target's unit; None where it is not known.

        Off the fixed canvas it is that of the nearest position on it.
        """
        if self.result.position_sd is None:
            return None
        on_fixed = self.result.transform.points(coords) if self.backwards else coords
        grid = self.result.fixed_grid
        low = torch.tensor(grid.origin, dtype=torch.float64)
        high = low + torch.tensor(grid.spacing, dtype=torch.float64) * (torch.tensor(grid.shape) - 1)
        clamped = torch.minimum(torch.maximum(on_fixed, low), high)
        return evaluation.position_sd(self.result, clamped, "moving" if self.backwards else "fixed")


def _meetings(steps: Sequence[_Step]) -> Iterable[Finding]:
    """Remarks on the sides where two steps meet; ValueError where they cannot be one."""
    for i, (one, other) in enumerate(itertools.pairwise(steps), 1):
        if one.result.section or other.result.section:
            raise ValueError("wanted maps between images of one dimension, got a section in a volume; use it by itself")
        here, there = one.target, other.source
        if here.ndim != there.ndim:
            raise ValueError(
                f"wanted result {i + 1} to begin where result {i} ends, got {there.ndim}D after {here.ndim}D; check their order"
            )
        ratio = unit_ratio(there.unit, here.unit)
        if ratio is None:
            raise ValueError(
                f"wanted result {i + 1} to begin where result {i} ends, got {there.unit} after {here.unit}; register both with "
                "the spacing of the image between them"
            )
        share = _in_common(here, there, ratio)
        if share == 0:
            raise ValueError(
                f"wanted result {i + 1} to begin where result {i} ends, got canvases that do not overlap; check their order, or "
                f"--inverse {i} or --inverse {i + 1}"
            )
        if share < MEET:
            yield verdict.other_canvas(i, share, MEET)


def _in_common(a: Grid, b: Grid, ratio: float) -> float:
    """Area that two canvases have in common over that which they cover together; lengths of ``b`` are multiplied by ``ratio``."""
    both, each = 1.0, [1.0, 1.0]
    for d in range(a.ndim):
        ends = [
            ((o - s / 2) * f, (o + s * (n - 0.5)) * f)
            for o, s, n, f in (
                (a.origin[d], a.spacing[d], a.shape[d], 1.0),
                (b.origin[d], b.spacing[d], b.shape[d], ratio),
            )
        ]
        both *= max(0.0, min(ends[0][1], ends[1][1]) - max(ends[0][0], ends[1][0]))
        each = [area * (high - low) for area, (low, high) in zip(each, ends, strict=True)]
    return both / (sum(each) - both)


def _between(one: _Step, other: _Step) -> Affine:
    """The change of unit from the target of a step to the source of the next."""
    ratio = unit_ratio(one.target.unit, other.source.unit)
    assert ratio is not None
    matrix = torch.diag(torch.tensor([ratio] * one.target.ndim + [1.0], dtype=torch.float64))
    return Affine(matrix, one.target.unit, other.source.unit)


def _joined(steps: Sequence[_Step]) -> tuple[Transform, Affine]:
    """The whole map, with one bend at most, and its affine part."""
    parts: list[Transform] = list(steps[0].transform.parts())
    matrix = steps[0].matrix
    for one, other in itertools.pairwise(steps):
        unit = _between(one, other)
        parts += [unit, *other.transform.parts()] if unit.source_unit != unit.target_unit else other.transform.parts()
        matrix = product(product(other.matrix, unit.matrix), matrix)
    source, target = steps[0].source, steps[-1].target
    affine = Affine(matrix, source.unit, target.unit)
    if sum(not isinstance(part, Affine) for part in parts) <= 1:
        return in_a_row(_merged(parts)), affine
    rest = _Rest(in_a_row(parts), affine)
    return known(in_a_row([affine, rest]), source, target), affine


def _merged(parts: Sequence[Transform]) -> list[Transform]:
    """The parts of a map with affine ones in a row multiplied."""
    out: list[Transform] = []
    for part in parts:
        last = out[-1] if out else None
        if isinstance(part, Affine) and isinstance(last, Affine):
            out[-1] = Affine(product(part.matrix, last.matrix), last.source_unit, part.target_unit)
        else:
            out.append(part)
    return out


@dataclass(frozen=True)
class _Rest(Transform):
    """What a map does after its affine part, in the space of its target; it is sampled by `known`.

    Args:
        whole: the map.
        affine: its affine part.
        turned: whether this is the inverse.
    """

    whole: Transform
    affine: Affine
    turned: bool = False

    @property
    def source_unit(self) -> str:  # type: ignore[override]
        return self.whole.target_unit

    @property
    def target_unit(self) -> str:  # type: ignore[override]
        return self.whole.target_unit

    @property
    def ndim(self) -> int:
        return self.whole.ndim

    def points(self, coords: Tensor) -> Tensor:
        if self.turned:
            return self.affine.points(self.whole.inverse().points(coords))
        return self.whole.points(self.affine.inverse().points(coords))

    def inverse(self) -> _Rest:
        return _Rest(self.whole, self.affine, not self.turned)


def _coarse(grid: Grid) -> Grid:
    """The canvas with about `MOST_NODES` pixels."""
    factor = (math.prod(grid.shape) / MOST_NODES) ** (1 / grid.ndim)
    return grid.resampled([s * min(factor, n) for s, n in zip(grid.spacing, grid.shape, strict=True)])


def _trust(steps: Sequence[_Step], grid: Grid) -> tuple[Tensor | None, Tensor | None]:
    """Probability of a match and standard deviation of the position, ``[*S]`` each on a grid of the last space.

    None where it is not known. Without probabilities there is no standard deviation either: a result holds both on one grid.
    """
    coords = grid.coords().reshape(-1, grid.ndim)  # [N, D], of the target of the step that is looked at
    weight: Tensor | None = None
    variance: Tensor | None = torch.zeros(len(coords), dtype=torch.float64)
    size = 1.0  # of a length in the target of this step, in the last space
    for i in range(len(steps) - 1, -1, -1):
        step = steps[i]
        seen, spread = step.probability(coords), step.spread(coords)
        if seen is not None:
            weight = seen if weight is None else weight * seen
        variance = None if variance is None or spread is None else variance + (size * spread).square()
        if i:
            coords = _between(steps[i - 1], step).inverse().points(step.transform.inverse().points(coords))
            ratio = unit_ratio(steps[i - 1].target.unit, step.source.unit) or 1.0
            size *= ratio * abs(float(torch.linalg.det(step.matrix[:-1, :-1]))) ** (1 / grid.ndim)
    found = [None if values is None else values.reshape(grid.shape).to(torch.float32) for values in (weight, variance)]
    return found[0], None if found[0] is None or found[1] is None else found[1].sqrt()


def _figures(whole: Result, steps: Sequence[_Step], began: float) -> dict[str, object]:
    """The entries of ``metrics.json``, verdict excepted."""
    each = [step.result.metrics for step in steps]
    sure = [metrics.get("confidence") for metrics in each]
    margins = [metrics["pose_margin"] for metrics in each if metrics.get("pose_margin") is not None]
    confidence = None if None in sure else math.prod(float(value) for value in sure if value is not None)
    return {
        "model": f"composed of {len(steps)} maps",
        "steps": [
            {
                "verdict": metrics.get("verdict"),
                "confidence": metrics.get("confidence"),
                "model": metrics.get("model"),
                "inverse": step.backwards,
            }
            for metrics, step in zip(each, steps, strict=True)
        ],
        "metric": {"name": "none", "why": "the map was composed"},
        **evaluation.map_figures(whole),
        "matching_fraction": None if whole.weight is None else float(whole.weight.mean()),
        **({} if confidence is None else {"confidence": confidence}),
        "pose_margin": min(margins, default=None),
        "n_evaluations": 0,
        "energy": {"first": None, "last": None},
        "seconds": time.perf_counter() - began,
        "versions": versions(),
        "seed": 0,
    }
