"""A map as other programs hold it: a list of matrices and displacement fields ("steps"), components in the order x, y(, z).

ITK and the programs built on it (SimpleITK, ANTs, elastix, 3D Slicer) hold maps in this form. Their numbers carry no unit.
Positions of a side in a length unit are written in one unit, mm unless the user names another; positions of a side in pixels are
written in pixels, with the centre of the first pixel at 0. In this module ``unit`` always means that unit of the numbers in a
file, and ``factor`` what a length of a side is multiplied by to be in it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from torch import Tensor

from ..config import Config
from ..contracts import Side, Written
from ..data import Grid, unit_ratio
from ..io import fields
from ..maps import bends
from ..maps.affine import Affine
from ..maps.base import Transform
from ..maps.displacement import Displacement
from ..maps.fields import coarsest_field, rounded
from ..maps.flow import Flow
from ..maps.sequence import Sequence as MapSequence
from ..maps.sequence import in_a_row
from ..result import Result

Array = NDArray[np.float64]

MOST_NODES = 1 << 25
"""Largest number of nodes of all fields of one direction, in a file that can hold several fields.

A bound on memory: 512 MiB in double precision in 2D, 768 MiB in 3D, before compression.
"""
UPRIGHT = 1e-9
"""Largest difference between an entry of a field's direction matrix and the unit matrix for its axes to count as not turned.

Far above rounding (1e-16); across a canvas of 100 000 pixels such a turn moves a position by a ten-thousandth of a pixel.
"""
RIGHT_ANGLES = 1e-4
"""Largest entry of ``Q Qᵀ - I`` for a direction matrix ``Q`` to count as a rotation: NIfTI stores rotations in single precision
(1e-7)."""
FADE = 0.5
"""Largest difference of a displacement between neighbouring nodes, in nodes, with which a field fades to zero outside its grid.

From 1 on the map would fold; half of that keeps its inverse easy to solve.
"""
MOST_FADE = 256
"""Largest number of nodes added on each side of a field for it to fade: a bound on memory. A field with larger displacements at
its border fades faster than `FADE`."""
PROBES = 1 << 14
"""Number of positions on the canvas at which a written map is compared with the exact one.

``benchmarks/bench_interchange.py`` tests at eight times as many and finds errors at most a fifth larger.
"""
_BLOCK = 1 << 18  # number of nodes that are sampled at once: positions of 6 MiB in 3D


@dataclass(frozen=True)
class Field:
    """``x -> x + d(x)``, linear between nodes at ``origin + direction · (spacing * index)``.

    Args:
        values: ``[*S, D]``, axes in the order (z,) y, x, components in the order x, y(, z).
        spacing: distance of nodes along the axes x, y(, z).
        origin: position of the first node, x, y(, z).
        direction: ``[D, D]``, columns are the axes' directions.
    """

    values: Array
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: Array

    def __post_init__(self) -> None:
        ndim = len(self.spacing)
        if not all(math.isfinite(v) and v > 0 for v in self.spacing) or not np.isfinite(self.origin).all():
            raise ValueError(
                f"wanted a field with positive spacing and a finite origin, got {self.spacing}, {self.origin}"
            )
        if not np.isfinite(self.values).all():
            raise ValueError("wanted a finite displacement field, got NaN or inf in it")
        off = float(np.abs(self.direction @ self.direction.T - np.eye(ndim)).max())
        if not off < RIGHT_ANGLES:
            raise ValueError(
                f"wanted a field whose axes are at right angles, got the direction {self.direction.tolist()}"
            )


Step = Array | Field
"""One elementary map: a homogeneous matrix ``[D+1, D+1]``, or a field."""


def number_unit(unit: str, wanted: str) -> str:
    """Unit in which positions of a side are written: ``wanted``, or pixels for a side in pixels."""
    return "px" if unit == "px" else wanted


def per_unit(unit: str, wanted: str) -> float:
    """The number by which a length of 1 ``unit`` is written in the unit ``wanted``."""
    ratio = unit_ratio(unit, number_unit(unit, wanted))
    assert ratio is not None
    return ratio


def along_x(grid: Grid, unit: str) -> tuple[list[float], list[float]]:
    """Spacing and origin of a canvas along x, y(, z), in the numbers of a file."""
    factor = per_unit(grid.unit, unit)
    return [s * factor for s in reversed(grid.spacing)], [o * factor for o in reversed(grid.origin)]


def turned(matrix: Any, source: float = 1.0, target: float = 1.0) -> Array:
    """A homogeneous matrix ``[D+1, D+1]`` with the order of components reversed (y, x ↔ x, y), and converted to a file's unit.

    Args:
        matrix: map of positions.
        source: factor of the side it takes positions from: what a length of 1 is written as.
        target: factor of the side it takes positions to.
    """
    old = np.asarray(matrix, dtype=np.float64)
    new = np.eye(len(old))
    new[:-1, :-1] = old[:-1, :-1][::-1, ::-1] * (target / source)
    new[:-1, -1] = old[:-1, -1][::-1] * target
    return new


def to_field(field: Displacement, factor: float) -> Field:
    """A displacement field of regframe with components in the order x, y(, z), all lengths multiplied by ``factor``."""
    grid = field.grid
    values = np.moveaxis(field.field.to(torch.float64).numpy(), 0, -1)[..., ::-1] * factor
    return Field(
        np.ascontiguousarray(values),
        tuple(v * factor for v in reversed(grid.spacing)),
        tuple(v * factor for v in reversed(grid.origin)),
        np.eye(grid.ndim),
    )


def inverse_of(matrix: Array) -> Array:
    """The inverse of a homogeneous matrix ``[D+1, D+1]``; ValueError for a singular one."""
    return Affine(torch.from_numpy(matrix)).inverse().matrix.numpy()


def steps_of(result: Result, to: Side, unit: str, tolerance: float, max_nodes: int) -> list[Step]:
    """The map to the side ``to`` as steps, the first applied first; its bend as fields in the space of the bend.

    In one direction a flow takes explicit steps: there each step is a field, without loss. In the other direction the bend is
    sampled within ``tolerance`` (pixels), as far as ``max_nodes`` allow. A field that is applied several times is the same
    object.
    """
    here = result.moving_grid.unit
    row: list[Step | None] = []
    for leg in fields.legs(result, tolerance, max_nodes, (f"to_{to}",), exact=True):
        middle = leg.unit if leg.pixel else here  # a map that does not bend is one matrix from side to side
        outer = [
            None if matrix is None else turned(matrix, per_unit(a, unit), per_unit(b, unit))
            for matrix, a, b in ((leg.before, here, middle), (leg.after, middle, result.fixed_grid.unit))
        ]
        if to == "moving":
            outer = [None if matrix is None else inverse_of(matrix) for matrix in outer[::-1]]
        steps = [outer[0], *_bent_steps(leg, to, per_unit(leg.unit, unit), tolerance), outer[1]]
        row = [*row, *steps] if to == "fixed" else [*steps, *row]
        here = leg.unit
    return [step for step in row if step is not None]


def _bent_steps(leg: fields.Bent, to: Side, factor: float, tolerance: float) -> list[Field]:
    """The bend of a leg towards the side ``to`` as fields, the first applied first, in the file's unit; none where it has none.

    ``factor`` converts lengths of the bend's space to that unit.
    """
    chain = leg.to_fixed if to == "fixed" else leg.to_moving
    if chain is None:
        return []
    pixel = [p * factor for p in leg.pixel]
    written: dict[int, Field] = {}
    for field in chain.distinct:
        step = to_field(field, factor)
        # multiplying by the factor undoes the rounding of a sampled field, which makes it compress well: round again
        if field.field.dtype == torch.float32 and factor != 1:
            values = rounded(torch.from_numpy(step.values), pixel, tolerance / 4)
            step = dataclasses.replace(step, values=values.to(torch.float64).numpy())
        written[id(field)] = step
    return [written[id(field)] for field in chain.fields]


def apply_steps(steps: Sequence[Step], points: Array) -> Array:
    """Positions ``[N, D]``, components x, y(, z), mapped by steps as ITK does it.

    A field is linear between its nodes and displaces nothing outside its outermost pixels.
    """
    for step in steps:
        if isinstance(step, Field):
            size = np.array(step.values.shape[:-1][::-1])
            index = ((points - step.origin) @ step.direction) / step.spacing  # [N, D], in nodes
            inside = np.all((index >= -0.5) & (index < size - 0.5), axis=1, keepdims=True)  # [N, 1]
            at = np.clip(index, 0, size - 1)[:, ::-1].T
            moved = [map_coordinates(step.values[..., d], at, order=1) for d in range(len(size))]
            points = points + np.where(inside, np.stack(moved, axis=1), 0.0)
        else:
            points = points @ step[:-1, :-1].T + step[:-1, -1]
    return points


# ------------------------------------------------------------------------------------------------- the error of a file


def sides(fixed: Grid, moving: Grid, to: Side) -> tuple[Grid, Grid]:
    """The canvas on which positions lie, and the canvas to which a map to the side ``to`` takes them."""
    return (fixed, moving) if to == "moving" else (moving, fixed)


def way_of(result: Result, to: Side) -> Transform:
    """The exact map to the side ``to``."""
    return result.transform if to == "fixed" else result.transform.inverse()


def positions_on(grid: Grid) -> Tensor:
    """Random positions ``[N, D]`` on a canvas, up to the outer edges of its pixels; the same ones in each call."""
    generator = torch.Generator().manual_seed(0)
    low = torch.tensor([o - s / 2 for o, s in zip(grid.origin, grid.spacing, strict=True)], dtype=torch.float64)
    random = torch.rand((PROBES, grid.ndim), generator=generator, dtype=torch.float64)
    return low + random * torch.tensor(grid.extent, dtype=torch.float64)


def largest_distance(a: Tensor, b: Tensor, grid: Grid) -> float:
    """Largest distance between corresponding positions ``[N, D]``, in pixels of ``grid``."""
    return float(((a - b) / torch.tensor(grid.spacing, dtype=torch.float64)).norm(dim=-1).max())


def error_of(steps: Sequence[Step], result: Result, to: Side, unit: str) -> float:
    """Largest distance between the map of ``steps`` and the exact map on the canvas, in pixels of the side ``to``."""
    source, target = sides(result.fixed_grid, result.moving_grid, to)
    where = positions_on(source)
    found = apply_steps(steps, np.ascontiguousarray(where.numpy()[:, ::-1]) * per_unit(source.unit, unit))
    there = torch.from_numpy(np.ascontiguousarray(found[:, ::-1] / per_unit(target.unit, unit)))
    return largest_distance(there, way_of(result, to).points(where), target)


def written_steps(name: str, path: Path, steps: Sequence[Step], result: Result, to: Side, unit: str) -> Written:
    """The record of one file of format ``name`` that holds ``steps``."""
    units = (number_unit(result.fixed_grid.unit, unit), number_unit(result.moving_grid.unit, unit))
    return Written(name, (path,), to, units, error_of(steps, result, to, unit))


# ------------------------------------------------------------------------------------------------ one field for the whole


def whole_field(result: Result, to: Side, unit: str, tolerance: float) -> Field:
    """The whole map to the side ``to``, affine part included, as one field over the canvas of the other side.

    Raises ValueError where exactly one side is in pixels: a displacement between two units has no meaning.
    """
    source, target = sides(result.fixed_grid, result.moving_grid, to)
    units = {number_unit(grid.unit, unit) for grid in (source, target)}
    if len(units) != 1:
        raise ValueError(
            f"wanted both sides in pixels or both in length units for one displacement field, got fixed in "
            f"{result.fixed_grid.unit} and moving in {result.moving_grid.unit}; write --format ants or itk, which keep the "
            "affine part apart"
        )
    label = units.pop()
    grid = _scaled(source, per_unit(source.unit, unit), label)
    exact = MapSequence((_scale(grid, source.unit), way_of(result, to), _scale_back(target, unit, label)))
    pixel = tuple(s * per_unit(target.unit, unit) for s in target.spacing)
    return _sampled(exact, grid, _box(grid), pixel, tolerance)


class AroundAffine(NamedTuple):
    """A map in the form of ANTs: a matrix, and displacement fields of the fixed space for the rest.

    Args:
        matrix: homogeneous ``[D+1, D+1]``, fixed → moving.
        fields: None for a map that does not bend. A fixed position is displaced by the first field, then mapped by the matrix; a
            moving position is mapped by the inverse matrix, then displaced by the second field.
    """

    matrix: Array
    fields: tuple[Field, Field] | None


def around_affine(result: Result, unit: str, tolerance: float) -> AroundAffine:
    """The map in the form of ANTs, in numbers of ``unit``; fields are within ``tolerance`` pixels, as far as nodes allow."""
    fixed, moving = result.fixed_grid, result.moving_grid
    forward = Affine(bends.product(result.affine.parts(), fixed.ndim), moving.unit, fixed.unit)
    matrix = turned(forward.inverse().matrix, per_unit(fixed.unit, unit), per_unit(moving.unit, unit))
    if not bends.bent(result.transform):
        return AroundAffine(matrix, None)
    label, factor = number_unit(fixed.unit, unit), per_unit(fixed.unit, unit)
    grid = _scaled(fixed, factor, label)
    ends = _scale(grid, fixed.unit), _scale_back(fixed, unit, label)
    phi = result.transform
    canvas = torch.cat([forward.points(_corners(moving)) * factor, _corners(grid)])
    box = torch.stack([canvas.amin(dim=0), canvas.amax(dim=0)])
    size = (forward.matrix[:-1, :-1] * torch.tensor(moving.spacing, dtype=torch.float64)).norm(dim=1) * factor
    pixel = tuple(float(v) for v in size)
    margin = 2 * torch.maximum(size, torch.tensor(grid.spacing, dtype=torch.float64))
    box = torch.stack([box[0] - margin, box[1] + margin])
    warp = MapSequence((ends[0], phi.inverse(), forward, ends[1]))
    back = MapSequence((ends[0], forward.inverse(), phi, ends[1]))
    fields = _sampled(warp, grid, box, pixel, tolerance), _sampled(back, grid, box, pixel, tolerance)
    return AroundAffine(matrix, fields)


def _corners(grid: Grid) -> Tensor:
    """Outer corners of the corner pixels, ``[2^D, D]``."""
    low = [o - s / 2 for o, s in zip(grid.origin, grid.spacing, strict=True)]
    ends = [torch.tensor([a, a + e], dtype=torch.float64) for a, e in zip(low, grid.extent, strict=True)]
    return torch.stack(torch.meshgrid(*ends, indexing="ij"), dim=-1).reshape(-1, grid.ndim)


def _box(grid: Grid) -> Tensor:
    """Lowest and highest position ``[2, D]`` of a canvas, with a margin of two pixels."""
    corners, margin = _corners(grid), 2 * torch.tensor(grid.spacing, dtype=torch.float64)
    return torch.stack([corners.amin(dim=0) - margin, corners.amax(dim=0) + margin])


def _scaled(grid: Grid, factor: float, unit: str) -> Grid:
    """A canvas with all lengths multiplied by ``factor``, in the unit ``unit``."""
    return Grid(grid.shape, tuple(s * factor for s in grid.spacing), tuple(o * factor for o in grid.origin), unit)


def _scale(numbers: Grid, unit: str) -> Affine:
    """The affine map from positions in the unit of ``numbers`` (a canvas in a file's numbers) to positions in ``unit``."""
    ratio = unit_ratio(numbers.unit, unit)
    assert ratio is not None
    return Affine(torch.diag(torch.tensor([*[ratio] * numbers.ndim, 1.0], dtype=torch.float64)), numbers.unit, unit)


def _scale_back(side: Grid, wanted: str, label: str) -> Affine:
    """The affine map from positions of a side to the numbers of a file in ``wanted``; these get the unit ``label``."""
    factor = per_unit(side.unit, wanted)
    return Affine(torch.diag(torch.tensor([*[factor] * side.ndim, 1.0], dtype=torch.float64)), side.unit, label)


def _sampled(exact: Transform, base: Grid, box: Tensor, pixel: tuple[float, ...], tolerance: float) -> Field:
    """``exact`` as a field whose node spacing and origin are single-precision numbers, as NIfTI's headers require.

    Args:
        exact: map within the numbers of a file.
        base: canvas; the coarsest nodes have a multiple of its spacing.
        box: lowest and highest position ``[2, D]`` that the nodes have to cover.
        pixel: size of a pixel of the destination along (z,) y, x; the unit of ``tolerance``.
        tolerance: largest error by interpolation, in pixels.
    """
    grid = coarsest_field(exact, base, box, pixel, tolerance)[0].grid
    grid = Grid(
        grid.shape,
        tuple(float(np.float32(s)) for s in grid.spacing),
        tuple(float(np.float32(o)) for o in grid.origin),
        grid.unit,
    )
    nodes = grid.coords().reshape(-1, grid.ndim)
    moved = torch.cat([exact.points(block) - block for block in torch.split(nodes, _BLOCK)])
    return to_field(Displacement(moved.T.reshape(grid.ndim, *grid.shape), grid), 1.0)


# -------------------------------------------------------------------------------------------------- from steps to a map


def transform_of(steps: Sequence[Step], source: Grid, target: Grid, unit: str) -> Transform:
    """The map from positions of ``source`` to those of ``target`` that ``steps``, in numbers of ``unit``, describe.

    The first step is applied first. Raises ValueError for steps of another dimension or a singular matrix.
    """
    for given in steps:
        found = len(given.spacing) if isinstance(given, Field) else len(given) - 1
        if found != source.ndim or source.ndim != target.ndim:
            raise ValueError(
                f"wanted a map of {source.ndim} dimensions, as the fixed side has, got one of {found} "
                f"and a moving or fixed side of {target.ndim}; check the files"
            )
    joined = _joined(steps)
    numbers = [number_unit(grid.unit, unit) for grid in (source, target)]
    parts: list[Transform] = []
    at = numbers[0]

    def line(matrix: Any, to: str) -> None:
        nonlocal at
        step = Affine(torch.as_tensor(matrix), at, to)
        step.inverse()  # raises ValueError for a singular matrix
        if parts and isinstance(parts[-1], Affine):
            step = Affine(step.matrix @ parts[-1].matrix, parts[-1].source_unit, to)
            parts.pop()
        parts.append(step)
        at = to

    if source.unit != at:
        at = source.unit
        line(np.diag([*[per_unit(source.unit, unit)] * source.ndim, 1.0]), numbers[0])
    for step in joined:
        if isinstance(step, np.ndarray):
            line(turned(step), numbers[1])
            continue
        if isinstance(step, list):
            parts.append(_flow(step, at))
            continue
        plain = float(np.abs(step.direction - np.eye(source.ndim)).max()) < UPRIGHT
        turn = np.eye(source.ndim + 1)
        turn[:-1, :-1] = step.direction
        if not plain:
            line(turned(turn.T), at)
        field, rest = _extended(step, plain, at)
        parts.append(field)
        if rest is not None:
            line(turned(rest), at)
        if not plain:
            line(turned(turn), at)
    if at != target.unit:
        line(np.diag([*[1 / per_unit(target.unit, unit)] * source.ndim, 1.0]), target.unit)
    if not parts:
        parts.append(Affine.identity(source.ndim, source.unit))
    return in_a_row(parts)


def _joined(steps: Sequence[Step]) -> list[Step | list[Field]]:
    """Steps in which consecutive fields on equal nodes are collected into lists (see `_equal_nodes`)."""
    found: list[Step | list[Field]] = []
    for step in steps:
        last = found[-1] if found else None
        row = last if isinstance(last, list) else [last] if isinstance(last, Field) else []
        if isinstance(step, Field) and row and _equal_nodes(row[0], step):
            found[-1] = [*row, step]
        else:
            found.append(step)
    return found


def _equal_nodes(a: Field, b: Field) -> bool:
    """Whether two fields have equal, unturned nodes and are zero at their border, as the steps of a flow are."""
    upright = np.array_equal(a.direction, np.eye(len(a.spacing))) and np.array_equal(b.direction, a.direction)
    same = (a.spacing, a.origin, a.values.shape) == (b.spacing, b.origin, b.values.shape)
    return upright and same and all(_border(f.values, np.array(f.spacing)) == 0 for f in (a, b))


def _flow(fields: Sequence[Field], unit: str) -> Flow:
    """Fields on equal nodes, the first applied first, as the flow whose inverse takes these as explicit steps."""
    grid = _extended(fields[0], True, unit)[0].grid
    velocity = [
        np.moveaxis(field.values[..., ::-1], -1, 0) * -len(fields) for field in reversed(fields)
    ]  # T of [D, *S]
    return Flow(torch.from_numpy(np.stack(velocity)), grid, len(fields), reverse=True)


def folded(transform: Transform) -> Transform:
    """``transform`` in which consecutive fields that are the steps of a flow are joined to that flow.

    Such fields have equal nodes and are zero at their border.
    """
    parts: list[Transform] = []
    row: list[Displacement] = []
    for part in transform.parts():
        if isinstance(part, Displacement) and _ends_in_zeros(part):
            if row and row[0].grid != part.grid:
                parts.append(_joined_steps(row))
                row = []
            row.append(part)
            continue
        parts += [_joined_steps(row)] if row else []
        row = []
        parts.append(part)
    parts += [_joined_steps(row)] if row else []
    return in_a_row(parts)


def _joined_steps(row: Sequence[Displacement]) -> Transform:
    """Displacement fields on equal nodes, the first applied first, as one flow; a single field is returned as it is."""
    if len(row) == 1:
        return row[0]
    velocity = torch.stack([step.field.to(torch.float64) * -len(row) for step in reversed(row)])  # [T, D, *S]
    return Flow(velocity, row[0].grid, len(row), reverse=True)


def _ends_in_zeros(step: Displacement) -> bool:
    """Whether a field is zero at its border, so that it may be a step of a flow."""
    values = np.moveaxis(step.field.to(torch.float64).numpy(), 0, -1)  # [*S, D]
    return not step.inverted and _border(values, np.ones(step.ndim)) == 0


def _extended(field: Field, plain: bool, unit: str) -> tuple[Displacement, Array | None]:
    """A field as a `Displacement` and a matrix that follows it; together they have an inverse everywhere.

    Within the field's outermost pixels the two together equal the field. A field that is not zero at its border is split: its
    affine part becomes the matrix, which continues outside, and the rest fades to zero outside.

    Args:
        field: the field as it was read.
        plain: whether its axes are not turned. If they are turned, nodes and displacements are taken along the field's own axes.
        unit: unit of its numbers.
    """
    ndim = len(field.spacing)
    values, spacing = field.values, np.array(field.spacing)
    origin = np.array(field.origin) if plain else field.direction.T @ np.array(field.origin)
    values = values if plain else values @ field.direction  # [*S, D] along the field's own axes
    rest: Array | None = None
    if (
        _border(values, spacing) > 0
    ):  # ITK: in the outer half of an outermost pixel the displacement is that of its node
        values, origin = np.pad(values, [(1, 1)] * ndim + [(0, 0)], mode="edge"), origin - spacing
    if _border(values, spacing) > FADE:
        axes = [origin[d] + spacing[d] * np.arange(n) for d, n in enumerate(values.shape[:-1][::-1])]
        nodes = np.stack(np.meshgrid(*axes[::-1], indexing="ij")[::-1], axis=-1).reshape(-1, ndim)  # x, y(, z)
        middle = nodes.mean(axis=0)
        ones = np.column_stack([nodes - middle, np.ones(len(nodes))])
        there = nodes + values.reshape(-1, ndim)
        # on a regular grid about its centre the normal equations are diagonal, so they lose no precision
        solution = np.linalg.lstsq(ones.T @ ones, ones.T @ there, rcond=None)[0]
        linear, shift = solution[:-1].T, solution[-1] - solution[:-1].T @ middle
        if np.linalg.matrix_rank(linear) == ndim:
            rest = np.eye(ndim + 1)
            rest[:-1, :-1], rest[:-1, -1] = linear, shift
            values = (np.linalg.solve(linear, (there - shift).T).T - nodes).reshape(values.shape)
    reach = _border(values, spacing)
    if reach > 0:
        fade = min(MOST_FADE, math.ceil(reach / FADE))
        values = np.pad(values, [(fade, fade)] * ndim + [(0, 0)], mode="linear_ramp")
        origin = origin - spacing * fade
    moved = np.moveaxis(values[..., ::-1], -1, 0)
    grid = Grid(moved.shape[1:], tuple(spacing[::-1].tolist()), tuple(origin[::-1].tolist()), unit)
    return Displacement(torch.from_numpy(np.ascontiguousarray(moved)), grid), rest


def _border(values: Array, spacing: Array) -> float:
    """Largest component of a displacement at the border of a field ``[*S, D]``, in nodes."""
    sides = [values.take(end, axis) for axis in range(values.ndim - 1) for end in (0, -1)]
    return max(float(np.abs(side / spacing).max()) for side in sides)


# -------------------------------------------------------------------------------------------------------------- results


def both_canvases(name: str, fixed: Grid | None, moving: Grid | None) -> tuple[Grid, Grid]:
    """The canvases of both images; ValueError where the user gave none and a file of format ``name`` holds none."""
    if fixed is None or moving is None:
        raise ValueError(
            f"wanted the canvases of both images, which {name} does not hold, got none; give fixed and moving"
        )
    return fixed, moving


def map_of(steps: Sequence[Step], fixed: Grid, moving: Grid, to: Side, unit: str) -> Transform:
    """The map moving → fixed described by ``steps`` to the side ``to``; raises what `transform_of` raises."""
    source, target = sides(fixed, moving, to)
    way = transform_of(steps, source, target, unit)
    return way if to == "fixed" else way.inverse()


def unjudged(transform: Transform, fixed: Grid, moving: Grid, figures: dict[str, Any] | None = None) -> Result:
    """A map moving → fixed as a result without verdict, with ``figures`` as its metrics."""
    lines = [part for part in transform.parts() if isinstance(part, Affine)]
    affine = Affine(bends.product(lines, transform.ndim), transform.source_unit, transform.target_unit)
    straight = len(lines) == len(transform.parts())
    config = Config(transform="affine" if straight else "lddmm")
    return Result(transform, fixed, moving, dict(figures or {}), config, affine)
