"""Samples a bend as displacement fields that other programs read: exactly where that is possible, else within a tolerance.

In one direction a flow takes explicit Euler steps, and each step is a displacement field on the velocity's own nodes: nothing
is lost. In the other direction it solves for each step. The solution has its kinks where the velocity's nodes are mapped to,
between the nodes of any regular grid, and a field that is linear between nodes misses them by a quarter of kink times spacing.
Where a single field would need too many nodes, each step is therefore undone by two fields: a smooth one, which brings the
kinks to within a fraction of a pixel of where the nodes were, and a second one on nodes at those places.
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
"""Largest number of nodes of a single field, and of the fields of one direction in a store: 32 MB in 2D."""

MAX_FIELDS = 48
"""Largest number of fields in which one map is written or read: every program applies them one by one."""

_TEST_POSITIONS = 1 << 16
"""Number of random positions at which the interpolation error is measured."""
_SAFETY = 0.8
"""Share of the tolerance that must be kept at the test positions, because the largest error lies between them."""
_BLOCK = 1 << 18
"""Number of positions mapped at once: 4 to 6 MB of coordinates."""
_SMALL = 1 << 20
"""Number of nodes up to which a single field is preferred to several, which every reader would have to apply one by one."""
_REFINED = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32)
"""Numbers of field nodes per node of the bend, along each axis, that are tried."""
_FIRST = 4
"""Finest value of `_REFINED` that is tried at first: most maps need no finer one."""
_ROUNDED = 12
"""Value of `_REFINED` from which kinks are rounded off over half a node only, so that the second field has less to correct."""
_ORDER = 1.7
"""Exponent with which the error falls with the spacing, as measured: kinks alone give 1, curvature gives 2."""


class Chain(NamedTuple):
    """Displacement fields to be applied one after the other.

    Args:
        fields: the fields, the first applied first; a field that is applied several times is the same object each time.
        max_error: largest distance to the exact map at the test positions, in pixels.
        mean_error: mean distance to the exact map at the test positions, in pixels.
    """

    fields: tuple[Displacement, ...]
    max_error: float
    mean_error: float

    @property
    def distinct(self) -> list[Displacement]:
        """Each distinct field once, in the order of its first use."""
        return list({id(field): field for field in self.fields}.values())

    @property
    def nodes(self) -> int:
        """Total number of nodes of the `distinct` fields."""
        return sum(math.prod(field.grid.shape) for field in self.distinct)


def chain_of(
    bend: Flow | Displacement,
    box: Tensor,
    pixel: tuple[float, ...],
    tolerance: float,
    max_nodes: int,
    exact: bool = False,
) -> Chain:
    """``bend`` over ``box`` ``[2, D]`` as displacement fields, with an error of at most ``tolerance`` pixels if nodes allow.

    Args:
        bend: the map, in the direction that is wanted.
        box: lowest and highest positions that are mapped.
        pixel: size of a pixel along each axis.
        tolerance: largest error, in pixels.
        max_nodes: largest number of nodes of all fields together, each distinct field counted once. A single field has
            `MAX_NODES` at most.
        exact: keep fields that are exact in double precision.
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
    """The explicit steps of ``bend`` as exact displacement fields, first applied first; empty where it solves for its steps.

    Our `Displacement` fades to zero over one cell beyond its nodes; other programs end it at the outermost nodes. A rim of
    zeros is therefore added to each field. A step that is taken several times is the same object each time.
    """
    solves = not bend.reverse if isinstance(bend, Flow) else bend.inverted
    steps = _steps(bend)
    if solves or len(steps) > MAX_FIELDS:
        return []
    return _each(_zero_rim, steps)


def _steps(bend: Flow | Displacement) -> list[Displacement]:
    """The explicit Euler steps behind ``bend``, in its order of application; ``bend`` either takes them or undoes them."""
    if isinstance(bend, Displacement):
        return [Displacement(bend.field, bend.grid)]
    n_steps, n_slices = bend.n_steps or 1, bend.velocity.shape[0]
    slices = [Displacement(v.to(torch.float64) / -n_steps, bend.grid) for v in bend.velocity]
    order = reversed(range(n_steps)) if bend.reverse else range(n_steps)
    return [slices[step * n_slices // n_steps] for step in order]


def _each(function: Callable[[Displacement], Displacement], fields: Sequence[Displacement]) -> list[Displacement]:
    """``function`` applied to every field, but only once to a field that occurs several times."""
    done = {id(field): function(field) for field in {id(f): f for f in fields}.values()}
    return [done[id(field)] for field in fields]


def _zero_rim(step: Displacement) -> Displacement:
    """``step`` with one more node, of value zero, on every side."""
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
    """``exact`` over ``box`` ``[2, D]`` as the coarsest field within ``tolerance``; also its largest and mean error in pixels.

    Where possible its nodes coincide with those of ``base``: there a piecewise linear velocity has its kinks, and kinks between
    nodes cause most of the error. Where `MAX_NODES` is too few for the tolerance, it is as fine as `MAX_NODES` allows.
    """
    return _field(exact, base, box, pixel, _coarsest(exact, base, box, pixel, tolerance)[0])


def _coarsest(
    exact: Transform, base: Grid, box: Tensor, pixel: tuple[float, ...], tolerance: float
) -> tuple[list[float], float]:
    """Spacing of the coarsest field that ``tolerance`` and `MAX_NODES` allow, and its error in pixels.

    ``exact`` is evaluated only at the nodes around the test positions. The error of linear interpolation falls with the first
    (kinks) to second power (smooth parts) of the spacing, so a spacing that is too coarse by the second power is not tried.
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
    """Positions ``[N, D]`` as a field with nodes of ``grid`` would map them, interpolated from ``exact`` at the nodes."""
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
    """Displacements ``[D, *S]`` of the nodes of ``grid`` under ``function``."""
    nodes = grid.coords().reshape(-1, grid.ndim)
    moved = torch.cat([function(block) - block for block in torch.split(nodes, _BLOCK)])
    return moved.T.reshape(grid.ndim, *grid.shape).contiguous()


def _tests(exact: Transform, box: Tensor, n: int = _TEST_POSITIONS) -> tuple[Tensor, Tensor]:
    """Random positions ``[N, D]`` in ``box``, and their images under ``exact``."""
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
    """A grid over ``box`` with about the spacing ``wanted``, aligned with ``base``.

    Per axis its spacing is a multiple or an integer fraction of that of ``base``.
    """
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
    """The inverse of the steps behind ``bend``, each as two fields; None where there would be too many fields.

    All fields have one spacing per axis, the coarsest that the tolerance asks for and ``max_nodes`` allow.
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
    """Box ``[2, D]`` around all positions that are passed on the way, one pixel wider on each side."""
    low, high = box
    for step in steps:
        where = _blockwise(step.inverse().points, where)
        low, high = torch.minimum(low, where.amin(dim=0)), torch.maximum(high, where.amax(dim=0))
    margin = torch.tensor(pixel, dtype=torch.float64)
    return torch.stack([low - margin, high + margin])


def _grids(step: Displacement, box: Tensor, refined: int) -> tuple[Grid, Grid, Grid]:
    """Grids, over the boxes each has to cover, of the second field, of the first field, and of the smooth step that it undoes."""
    reach = step.field.reshape(step.grid.ndim, -1).abs().amax(dim=1).to(torch.float64)  # [D]
    wide = [torch.stack([box[0] - i * reach, box[1] + i * reach]) for i in range(3)]
    spacing = [s / refined for s in step.grid.spacing]
    first, second, third = (_node_grid(step.grid, b, spacing) for b in wide)
    return first, second, third


def _pair(
    step: Displacement, box: Tensor, pixel: tuple[float, ...], tolerance: float, refined: int
) -> tuple[Displacement, Displacement]:
    """The inverse of ``step`` as two fields: a smooth one, and one whose kinks lie nearly on its own nodes.

    The first field undoes the step with its kinks rounded off; the second corrects what remains, the first field's interpolation
    error included. The node values of the second field are chosen such that its error is zero on average rather than at the
    nodes: at nodes alone the error would have one sign everywhere, and add up from step to step.

    Args:
        step: the explicit step to undo.
        box: lowest and highest positions that are mapped ``[2, D]``.
        pixel: size of a pixel along each axis.
        tolerance: largest error, in pixels.
        refined: field nodes per node of the step, along each axis.
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
    # between two nodes the error is a parabola that is 0 at both: its mean is two thirds of its value in the middle
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
    """``values`` in single precision, rounded to a power of two far below the tolerance, so that they compress well."""
    step = 2.0 ** math.floor(math.log2(max(tolerance, 1e-6) * min(pixel) / 32))
    return ((values / step).round() * step).to(torch.float32)
