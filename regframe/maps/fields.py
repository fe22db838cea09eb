"""A bend as displacement fields that other programs read: exact where it can be, else as finely as a tolerance asks.

A flow takes plain steps one way, each of which is a field on the velocity's own nodes. The other way it solves for them, and
what it finds has its kinks where the nodes of the velocity come to lie, between those of any grid: a field that is linear
between nodes is off by a quarter of kink times spacing there. Where a single field would take too many nodes, a step is
undone by two: a smooth one that takes the kinks to within a fraction of a pixel of where the nodes were, then one
on nodes that lie there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor

from ..data import Grid
from .base import Transform
from .displacement import Displacement
from .flow import Flow

MAX_NODES = 1 << 22
"""Nodes of a single field at most, and of the stored fields of one direction, whatever their error: 32 MB in 2D."""

MAX_FIELDS = 48
"""Fields that one map is written or read as, at most: every program applies them one by one."""

_TEST_POSITIONS = 1 << 16
"""Random positions at which the interpolation error is measured."""
_SAFETY = 0.8
"""Share of the tolerance that is asked for at the test positions, since the worst error lies between them."""
_BLOCK = 1 << 18
"""Positions carried at once: 4 to 6 MB of coordinates."""
_SMALL = 1 << 20
"""Nodes up to which one field is preferred to several, which every reader must apply one by one."""
_REFINED = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32)
"""Nodes of a field per node of the bend, along each axis, that are tried."""
_FIRST = 4
"""Finest of `_REFINED` to begin with: most maps need no finer one."""
_ROUNDED = 12
"""Of `_REFINED`, from which on kinks are rounded off over half a node only, which leaves less of them to the second field."""
_ORDER = 1.7
"""Power of the spacing with which the error falls, as measured; kinks alone go with the first, curvature with the second."""


class Chain(NamedTuple):
    """Fields one after the other, the first applied first.

    Args:
        fields: a field that is applied several times is one object.
        max_error: largest distance to the exact map at the test positions, in pixels.
        mean_error: the mean of that distance.
    """

    fields: tuple[Displacement, ...]
    max_error: float
    mean_error: float

    @property
    def distinct(self) -> list[Displacement]:
        """Each field once, in the order of its first use."""
        return list({id(field): field for field in self.fields}.values())

    @property
    def nodes(self) -> int:
        """Nodes of the `distinct` fields."""
        return sum(math.prod(field.grid.shape) for field in self.distinct)


def chain_of(
    bend: Flow | Displacement,
    box: Tensor,
    pixel: tuple[float, ...],
    tolerance: float,
    max_nodes: int,
    exact: bool = False,
) -> Chain:
    """``bend`` over ``box`` ``[2, D]`` as fields that are off by ``tolerance`` px at most, or as little as ``max_nodes`` allow.

    Args:
        bend: the map in the direction that is wanted.
        box: where positions come from.
        pixel: size of a pixel per axis.
        tolerance: largest error, in pixels.
        max_nodes: of all fields together, each counted once; a single one has `MAX_NODES` at most.
        exact: keep double precision.
    """
    steps = plain_steps(bend)
    if steps:
        steps = steps if exact else _single_precision(steps)
        return Chain(tuple(steps), *_measured(steps, *_tests(bend, box), pixel))
    spacing, expected = _coarsest(bend, bend.grid, box, pixel, tolerance)
    nodes = math.prod(_node_grid(bend.grid, box, spacing).shape)
    several = None
    if nodes > _SMALL or expected > tolerance:
        several = _undone(bend, box, pixel, tolerance, max_nodes)
        good = several is not None and several.max_error <= max(tolerance, expected)
        if several is not None and good and (expected > tolerance or several.nodes <= nodes):
            return several
    field, *error = _field(bend, bend.grid, box, pixel, spacing)
    single = Chain((field,), *error)
    return single if several is None or single.max_error <= several.max_error else several


# --------------------------------------------------------------------------------------------------------- exact steps


def plain_steps(bend: Flow | Displacement) -> list[Displacement]:
    """What ``bend`` does to positions as fields, exactly, first applied first; none where it solves for them.

    A `Displacement` fades to zero over one cell beyond its nodes; other programs end it there, so a rim of zeros is added to
    each. A step that is taken several times is one object.
    """
    solves = not bend.reverse if isinstance(bend, Flow) else bend.inverted
    steps = _steps(bend)
    if solves or len(steps) > MAX_FIELDS:
        return []
    return _each(_zero_rim, steps)


def _steps(bend: Flow | Displacement) -> list[Displacement]:
    """The plain steps of ``bend``, in its order: it takes them, or undoes them."""
    if isinstance(bend, Displacement):
        return [Displacement(bend.field, bend.grid)]
    n_steps, n_slices = bend.n_steps or 1, bend.velocity.shape[0]
    slices = [Displacement(v.to(torch.float64) / -n_steps, bend.grid) for v in bend.velocity]
    order = reversed(range(n_steps)) if bend.reverse else range(n_steps)
    return [slices[step * n_slices // n_steps] for step in order]


def _each(function: Callable[[Displacement], Displacement], fields: Sequence[Displacement]) -> list[Displacement]:
    """``function`` of every field, called once for a field that occurs several times."""
    done = {id(field): function(field) for field in {id(f): f for f in fields}.values()}
    return [done[id(field)] for field in fields]


def _zero_rim(step: Displacement) -> Displacement:
    """``step`` with one more node of zeros on every side."""
    grid = step.grid
    padded = torch.nn.functional.pad(step.field, (1, 1) * grid.ndim)
    origin = tuple(o - s for o, s in zip(grid.origin, grid.spacing, strict=True))
    return Displacement(padded, Grid(tuple(n + 2 for n in grid.shape), grid.spacing, origin, grid.unit))


def _single_precision(fields: Sequence[Displacement]) -> list[Displacement]:
    return _each(lambda f: Displacement(f.field.to(torch.float32), f.grid), fields)


# -------------------------------------------------------------------------------------------------- one field, sampled


def coarsest_field(
    exact: Transform, base: Grid, box: Tensor, pixel: tuple[float, ...], tolerance: float
) -> tuple[Displacement, float, float]:
    """``exact`` over ``box`` ``[2, D]`` as a field as coarse as ``tolerance`` allows, with its largest and mean error in px.

    Nodes coincide with the nodes of ``base`` where they can: there a piecewise linear velocity has its kinks, and a
    kink between two nodes is what costs. Where `MAX_NODES` do not reach the tolerance, it is as fine as they allow.
    """
    return _field(exact, base, box, pixel, _coarsest(exact, base, box, pixel, tolerance)[0])


def _coarsest(
    exact: Transform, base: Grid, box: Tensor, pixel: tuple[float, ...], tolerance: float
) -> tuple[list[float], float]:
    """Spacing of the coarsest field that ``tolerance`` and `MAX_NODES` allow, and its error in px.

    Only the nodes around the test positions are asked for. Linear interpolation errs with the first (kinks) to second power
    (smooth parts) of the spacing, so a spacing coarser than the second power promises need not be tried.
    """
    where, there = _tests(exact, box, _TEST_POSITIONS // 4)
    size = torch.tensor(pixel, dtype=torch.float64)
    factor = max(1.0, float(((box[1] - box[0]) / size).max()) / 2)  # spacing in pixels
    best: tuple[list[float], float] | None = None
    tried: Grid | None = None
    while True:
        grid = _node_grid(base, box, [factor * p for p in pixel])
        beyond = math.prod(grid.shape) > MAX_NODES
        while beyond and best is not None and math.prod(grid.shape) > MAX_NODES:
            factor *= max(1.02, (math.prod(grid.shape) / MAX_NODES) ** (1 / (2 * base.ndim)))
            grid = _node_grid(base, box, [factor * p for p in pixel])
        if best is None or grid != tried:
            error = float(((_between(exact, grid, where) - there) / size).norm(dim=-1).max())
            found, tried = ([factor * p for p in pixel], error), grid
            best = found if best is None or not beyond or error < best[1] else best
        if beyond or best[1] <= _SAFETY * tolerance:
            return best
        factor *= min(2**-0.5, (_SAFETY * tolerance / best[1]) ** 0.5)


def _between(exact: Transform, grid: Grid, where: Tensor) -> Tensor:
    """Where a field with nodes of ``grid`` would take positions ``[N, D]``."""
    origin, spacing = (torch.tensor(v, dtype=torch.float64) for v in (grid.origin, grid.spacing))
    top = torch.tensor(grid.shape, dtype=torch.float64) - 2
    index = (where - origin) / spacing
    first = torch.minimum(index.floor().clamp(min=0), top)
    part = index - first  # [N, D]
    moved = torch.zeros_like(where)
    for corner in torch.cartesian_prod(*[torch.arange(2.0, dtype=torch.float64)] * grid.ndim):
        node = origin + (first + corner) * spacing
        weight = torch.where(corner > 0, part, 1 - part).prod(dim=1, keepdim=True)
        moved += weight * (_blockwise(exact.points, node) - node)
    return where + moved


def _field(
    exact: Transform, base: Grid, box: Tensor, pixel: tuple[float, ...], spacing: Sequence[float]
) -> tuple[Displacement, float, float]:
    grid = _node_grid(base, box, spacing)
    field = Displacement(_offsets(exact.points, grid).to(torch.float32), grid)
    return field, *_measured([field], *_tests(exact, box), pixel)


def _offsets(function: Callable[[Tensor], Tensor], grid: Grid) -> Tensor:
    """How far ``function`` carries the nodes of ``grid``, ``[D, *S]``."""
    nodes = grid.coords().reshape(-1, grid.ndim)
    moved = torch.cat([function(block) - block for block in torch.split(nodes, _BLOCK)])
    return moved.T.reshape(grid.ndim, *grid.shape).contiguous()


def _tests(exact: Transform, box: Tensor, n: int = _TEST_POSITIONS) -> tuple[Tensor, Tensor]:
    """Positions ``[N, D]`` all over ``box`` and where they belong."""
    generator = torch.Generator().manual_seed(0)
    random = torch.rand((n, box.shape[1]), generator=generator, dtype=torch.float64)
    where = box[0] + random * (box[1] - box[0])
    return where, _blockwise(exact.points, where)


def _measured(
    fields: Sequence[Displacement], where: Tensor, there: Tensor, pixel: tuple[float, ...]
) -> tuple[float, float]:
    for field in fields:
        where = _blockwise(field.points, where)
    error = ((where - there) / torch.tensor(pixel, dtype=torch.float64)).norm(dim=-1)
    return float(error.max()), float(error.mean())


def _node_grid(base: Grid, box: Tensor, wanted: Sequence[float]) -> Grid:
    """A grid over ``box`` with about the ``wanted`` spacing; its nodes are among those of ``base`` or between them."""
    shape, spacing, origin = [], [], []
    for d in range(base.ndim):
        unit = base.spacing[d]
        step = unit / math.ceil(unit / wanted[d] - 1e-9) if wanted[d] < unit else unit * math.floor(wanted[d] / unit)
        first = math.floor((float(box[0, d]) - base.origin[d]) / step + 1e-9)
        last = max(first + 1, math.ceil((float(box[1, d]) - base.origin[d]) / step - 1e-9))
        shape.append(last - first + 1)
        spacing.append(step)
        origin.append(base.origin[d] + first * step)
    return Grid(tuple(shape), tuple(spacing), tuple(origin), base.unit)


def _blockwise(function: Callable[[Tensor], Tensor], coords: Tensor) -> Tensor:
    return torch.cat([function(block) for block in torch.split(coords, _BLOCK)])


# -------------------------------------------------------------------------------------------- two fields for each step


def _undone(
    bend: Flow | Displacement, box: Tensor, pixel: tuple[float, ...], tolerance: float, max_nodes: int
) -> Chain | None:
    """The steps that ``bend`` undoes, each by two fields; None where there are too many of them.

    All fields have one spacing, the coarsest that ``tolerance`` and ``max_nodes`` allow.
    """
    steps = _steps(bend)
    different = list({id(step): step for step in steps}.values())
    if 2 * len(steps) > MAX_FIELDS:
        return None
    where, there = _tests(bend, box)
    box = _passed(steps, box, where, pixel)

    def nodes(refined: int) -> int:
        return sum(math.prod(grid.shape) for step in different for grid in _grids(step, box, refined)[:2])

    allowed = [n for n in _REFINED if nodes(n) <= max_nodes]
    best: Chain | None = None
    tried = [n for n in allowed if n <= _FIRST][-1:]
    while tried:
        pairs = {id(step): _pair(step, box, pixel, tolerance, tried[-1]) for step in different}
        fields = [field for step in steps for field in pairs[id(step)]]
        found = Chain(tuple(fields), *_measured(fields, where, there, pixel))
        best = found if best is None or found.max_error < best.max_error else best
        finer = [n for n in allowed if n > tried[-1]]
        if best.max_error <= _SAFETY * tolerance or not finer or not math.isfinite(found.max_error):
            break
        wanted = tried[-1] * (found.max_error / (_SAFETY * tolerance)) ** (1 / _ORDER)
        tried.append(next((n for n in finer if n >= wanted), finer[-1]))
    return best


def _passed(steps: Sequence[Displacement], box: Tensor, where: Tensor, pixel: tuple[float, ...]) -> Tensor:
    """Box around everywhere that positions come by."""
    low, high = box
    for step in steps:
        where = _blockwise(step.inverse().points, where)
        low, high = torch.minimum(low, where.amin(dim=0)), torch.maximum(high, where.amax(dim=0))
    margin = torch.tensor(pixel, dtype=torch.float64)
    return torch.stack([low - margin, high + margin])


def _grids(step: Displacement, box: Tensor, refined: int) -> tuple[Grid, Grid, Grid]:
    """Nodes of the second field, of the first, and of the smooth step that the first undoes: each covers what it needs."""
    reach = step.field.reshape(step.grid.ndim, -1).abs().amax(dim=1).to(torch.float64)  # [D]
    wide = [torch.stack([box[0] - i * reach, box[1] + i * reach]) for i in range(3)]
    spacing = [s / refined for s in step.grid.spacing]
    first, second, third = (_node_grid(step.grid, b, spacing) for b in wide)
    return first, second, third


def _pair(
    step: Displacement, box: Tensor, pixel: tuple[float, ...], tolerance: float, refined: int
) -> tuple[Displacement, Displacement]:
    """The inverse of ``step`` as a smooth field and one whose kinks lie on its nodes, nearly.

    The first undoes the step with its kinks rounded off; the second does the rest, and makes up for how far the first is off
    by being interpolated. Its nodes are moved so that it is right on the average rather than at its nodes: that error
    has one sign, and would add up from step to step.
    """
    corrected, undone, smooth = _grids(step, box, refined)
    rounded_off = Displacement(_smooth(step, smooth, 2 if refined >= _ROUNDED else 1), smooth).inverse()
    first = Displacement(rounded(_offsets(rounded_off.points, undone), pixel, tolerance), undone)

    back, exact = first.inverse(), step.inverse()

    def rest(x: Tensor) -> Tensor:
        return exact.points(back.points(x))

    field = _offsets(rest, corrected)  # [D, *S]
    ndim = corrected.ndim
    cells = tuple(n - 1 for n in corrected.shape)
    middle = tuple(o + s / 2 for o, s in zip(corrected.origin, corrected.spacing, strict=True))
    pool = torch.nn.functional.avg_pool2d if ndim == 2 else torch.nn.functional.avg_pool3d
    over = pool(field[None], 2, 1)[0] - _offsets(rest, Grid(cells, corrected.spacing, middle, corrected.unit))
    over = torch.nn.functional.pad(over[None], (1, 1) * ndim, mode="replicate")
    # of a parabola that vanishes at the nodes the mean is two thirds of what it is in the middle
    field = field - 2 / 3 * pool(over, 2, 1)[0]
    return first, Displacement(rounded(field, pixel, tolerance), corrected)


def _smooth(step: Displacement, grid: Grid, parts: int) -> Tensor:
    """``step`` ``[D, *S]`` at the nodes of ``grid`` as a cubic spline through it, with ``parts`` knots per node."""
    values = torch.nn.functional.pad(step.field.to(torch.float64), (2, 2) * step.grid.ndim)
    size = tuple((n - 1) * parts + 1 for n in values.shape[1:])
    mode = "bilinear" if step.grid.ndim == 2 else "trilinear"
    knots = torch.nn.functional.interpolate(values[None], size=size, mode=mode, align_corners=True)[0].numpy()
    origin, spacing = (torch.tensor(v, dtype=torch.float64) for v in (step.grid.origin, step.grid.spacing))
    index = ((grid.coords().reshape(-1, grid.ndim) - origin) / spacing + 2) * parts
    found = [map_coordinates(knot, index.T.numpy(), order=3, mode="constant") for knot in knots]
    return torch.from_numpy(np.stack(found)).reshape(grid.ndim, *grid.shape)


def rounded(values: Tensor, pixel: Sequence[float], tolerance: float) -> Tensor:
    """``values`` in single precision, rounded to a power of two far below ``tolerance``: so they can be compressed."""
    step = 2.0 ** math.floor(math.log2(max(tolerance, 1e-6) * min(pixel) / 32))
    return ((values / step).round() * step).to(torch.float32)
