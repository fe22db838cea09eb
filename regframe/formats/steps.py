"""A map as other programs hold it: matrices and displacement fields one after the other, components in the order x, y(, z).

Everything of ITK's family (SimpleITK, ANTs, elastix, Slicer) thinks so. Numbers carry no unit there: a side in a length unit is
written in one unit (mm, unless asked otherwise), a side in pixels in pixels, its first pixel's centre at 0 and 1 apart.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from torch import Tensor

from ..data import Grid, unit_ratio
from ..io.fields import around, as_fields
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
Side = Literal["fixed", "moving"]

_SAME = 1e-9  # largest departure of a direction matrix from a rotation (or reflection)
_FADE = 0.5  # largest change of a field from node to node outside of what is known: under 1, so that it does not fold
_MOST_FADE = 256  # nodes


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
        if not off < 1e-4:
            raise ValueError(
                f"wanted a field whose axes are at right angles, got the direction {self.direction.tolist()}"
            )


Step = Array | Field
"""One elementary map: a homogeneous matrix ``[D+1, D+1]`` or a field."""


def number_unit(unit: str, wanted: str) -> str:
    """The unit in which positions of a side in ``unit`` are written: ``wanted``, or pixels for a side in pixels."""
    return "px" if unit == "px" else wanted


def per_unit(unit: str, wanted: str) -> float:
    """The number that a length of 1 ``unit`` is written as."""
    ratio = unit_ratio(unit, number_unit(unit, wanted))
    assert ratio is not None
    return ratio


def turned(matrix: Any, source: float = 1.0, target: float = 1.0) -> Array:
    """A matrix ``[D+1, D+1]`` with the order of its components turned round, numbers of the sides multiplied."""
    old = np.asarray(matrix, dtype=np.float64)
    new = np.eye(len(old))
    new[:-1, :-1] = old[:-1, :-1][::-1, ::-1] * (target / source)
    new[:-1, -1] = old[:-1, -1][::-1] * target
    return new


def to_field(field: Displacement, factor: float) -> Field:
    """A field of ours, its lengths multiplied."""
    grid = field.grid
    values = np.moveaxis(field.field.to(torch.float64).numpy(), 0, -1)[..., ::-1] * factor
    return Field(
        np.ascontiguousarray(values),
        tuple(v * factor for v in reversed(grid.spacing)),
        tuple(v * factor for v in reversed(grid.origin)),
        np.eye(grid.ndim),
    )


def steps_of(result: Result, to: Side, unit: str, tolerance: float, max_nodes: int) -> list[Step]:
    """The map to the side ``to``, first applied first, the bend as fields in the space it lives in.

    In the direction in which a flow takes plain steps, each step is a field, and all is exact; in the other, the bend is
    sampled as finely as ``tolerance`` wants and ``max_nodes`` allow. Steps that are the same are one object.
    """
    before, bend, after = bends.split(result.transform)
    moving, fixed = result.moving_grid.unit, result.fixed_grid.unit
    between = fixed if bend is None else bend.grid.unit
    outer = [
        turned(bends.product(parts, result.transform.ndim), per_unit(a, unit), per_unit(b, unit)) if parts else None
        for parts, a, b in ((before, moving, between), (after, between, fixed))
    ]
    if to == "moving":
        outer = [None if matrix is None else _inverse(matrix) for matrix in outer[::-1]]
    middle: list[Field] = []
    if bend is not None:
        bent = as_fields(result, tolerance, max_nodes, (f"to_{to}",), exact=True)
        chain = bent.to_fixed if to == "fixed" else bent.to_moving
        assert chain is not None
        factor = per_unit(between, unit)
        pixel = [p * factor for p in around(result)[1]]
        as_ours = {id(field): to_field(field, factor) for field in chain.distinct}
        for key, field in zip(list(as_ours), chain.distinct, strict=True):
            if (
                field.field.dtype == torch.float32 and factor != 1
            ):  # sampled: what was rounded no longer is, in another unit
                values = rounded(torch.from_numpy(as_ours[key].values), pixel, tolerance / 4)
                as_ours[key] = dataclasses.replace(as_ours[key], values=values.to(torch.float64).numpy())
        middle = [as_ours[id(field)] for field in chain.fields]
    return [step for step in (outer[0], *middle, outer[1]) if step is not None]


def _inverse(step: Step) -> Array:
    assert not isinstance(step, Field)
    return Affine(torch.from_numpy(step)).inverse().matrix.numpy()


def apply_steps(steps: Sequence[Step], points: Array) -> Array:
    """Positions ``[N, D]`` (x, y(, z)) carried as ITK does: a field is linear, and zero outside its outermost pixels."""
    for step in steps:
        if isinstance(step, Field):
            size = np.array(step.values.shape[:-1][::-1])
            index = ((points - step.origin) @ step.direction) / step.spacing  # [N, D]
            inside = np.all((index >= -0.5) & (index < size - 0.5), axis=1, keepdims=True)  # [N, 1]
            at = np.clip(index, 0, size - 1)[:, ::-1].T
            moved = [map_coordinates(step.values[..., d], at, order=1) for d in range(len(size))]
            points = points + np.where(inside, np.stack(moved, axis=1), 0.0)
        else:
            points = points @ step[:-1, :-1].T + step[:-1, -1]
    return points


# ------------------------------------------------------------------------------------------------ one field for the whole


def whole_field(result: Result, to: Side, unit: str, tolerance: float) -> Field:
    """The map to the side ``to``, affine part and all, as one field over the canvas of the other side.

    Raises ValueError where one side is in pixels and the other is not: a displacement between the two has no meaning.
    """
    source, target = (
        (result.fixed_grid, result.moving_grid) if to == "moving" else (result.moving_grid, result.fixed_grid)
    )
    units = {number_unit(grid.unit, unit) for grid in (source, target)}
    if len(units) != 1:
        raise ValueError(
            f"wanted both sides in pixels or both in length units for one displacement field, got fixed in "
            f"{result.fixed_grid.unit} and moving in {result.moving_grid.unit}; write --format ants or itk, which keep the "
            "affine part apart"
        )
    way = result.transform if to == "fixed" else result.transform.inverse()
    label = units.pop()
    grid = _scaled(source, per_unit(source.unit, unit), label)
    exact = MapSequence((_scale(grid, source.unit), way, _scale_back(target, unit, label)))
    pixel = tuple(s * per_unit(target.unit, unit) for s in target.spacing)
    return _sampled(exact, grid, _box(grid), pixel, tolerance)


def around_affine(result: Result, unit: str, tolerance: float) -> tuple[Array, Field | None, Field | None]:
    """The map as ANTs holds it: a matrix (fixed → moving) and what is left, as fields of the fixed space both ways.

    A fixed position is displaced by the first field, then carried by the matrix; a moving one by the inverse matrix, then
    displaced by the second field. No fields where the map does not bend.
    """
    fixed, moving = result.fixed_grid, result.moving_grid
    forward = Affine(bends.product(result.affine.parts(), fixed.ndim), moving.unit, fixed.unit)
    matrix = turned(forward.inverse().matrix, per_unit(fixed.unit, unit), per_unit(moving.unit, unit))
    if bends.split(result.transform)[1] is None:
        return matrix, None, None
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
    return matrix, _sampled(warp, grid, box, pixel, tolerance), _sampled(back, grid, box, pixel, tolerance)


def _corners(grid: Grid) -> Tensor:
    """Outer corners of the outermost pixels, ``[2^D, D]``."""
    low = [o - s / 2 for o, s in zip(grid.origin, grid.spacing, strict=True)]
    ends = [torch.tensor([a, a + e], dtype=torch.float64) for a, e in zip(low, grid.extent, strict=True)]
    return torch.stack(torch.meshgrid(*ends, indexing="ij"), dim=-1).reshape(-1, grid.ndim)


def _box(grid: Grid) -> Tensor:
    corners, margin = _corners(grid), 2 * torch.tensor(grid.spacing, dtype=torch.float64)
    return torch.stack([corners.amin(dim=0) - margin, corners.amax(dim=0) + margin])


def _scaled(grid: Grid, factor: float, unit: str) -> Grid:
    return Grid(grid.shape, tuple(s * factor for s in grid.spacing), tuple(o * factor for o in grid.origin), unit)


def _scale(numbers: Grid, unit: str) -> Affine:
    """From the numbers of a file to a side's unit."""
    ratio = unit_ratio(numbers.unit, unit)
    assert ratio is not None
    return Affine(torch.diag(torch.tensor([*[ratio] * numbers.ndim, 1.0], dtype=torch.float64)), numbers.unit, unit)


def _scale_back(side: Grid, wanted: str, label: str) -> Affine:
    factor = per_unit(side.unit, wanted)
    return Affine(torch.diag(torch.tensor([*[factor] * side.ndim, 1.0], dtype=torch.float64)), side.unit, label)


def _sampled(exact: Transform, base: Grid, box: Tensor, pixel: tuple[float, ...], tolerance: float) -> Field:
    """``exact`` at nodes whose spacing and origin single precision holds, as the headers of volumes want them."""
    grid = coarsest_field(exact, base, box, pixel, tolerance)[0].grid
    grid = Grid(
        grid.shape,
        tuple(float(np.float32(s)) for s in grid.spacing),
        tuple(float(np.float32(o)) for o in grid.origin),
        grid.unit,
    )
    nodes = grid.coords().reshape(-1, grid.ndim)
    moved = torch.cat([exact.points(block) - block for block in torch.split(nodes, 1 << 18)])
    return to_field(Displacement(moved.T.reshape(grid.ndim, *grid.shape), grid), 1.0)


# -------------------------------------------------------------------------------------------------------- the other way


def transform_of(steps: Sequence[Step], source: Grid, target: Grid, unit: str) -> Transform:
    """The map from positions of ``source`` to those of ``target`` that ``steps`` are, first applied first.

    Raises ValueError for steps of another dimension, a matrix that cannot be inverted, or more than one field.
    """
    for given in steps:
        found = len(given.spacing) if isinstance(given, Field) else len(given) - 1
        if found != source.ndim or source.ndim != target.ndim:
            raise ValueError(
                f"wanted a map of {source.ndim} dimensions, as the fixed side has, got one of {found} "
                f"and a moving or fixed side of {target.ndim}; check the files"
            )
    joined = _joined(steps)
    if sum(not isinstance(step, np.ndarray) for step in joined) > 1:
        raise ValueError(
            "wanted a map with one displacement field, or several in a row on the same nodes, got several on nodes of their own; "
            "compose them where they come from (antsApplyTransforms -o [field.nii.gz,1], sitk.TransformToDisplacementField; "
            "regframe export --to moving)"
        )
    numbers = [number_unit(grid.unit, unit) for grid in (source, target)]
    parts: list[Transform] = []
    at = numbers[0]

    def line(matrix: Any, to: str) -> None:
        nonlocal at
        step = Affine(torch.as_tensor(matrix), at, to)
        step.inverse()  # a singular one is refused
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
        plain = float(np.abs(step.direction - np.eye(source.ndim)).max()) < _SAME
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
    """Steps in which a row of fields on the same upright nodes that end in zeros is one."""
    found: list[Step | list[Field]] = []
    for step in steps:
        last = found[-1] if found else None
        row = last if isinstance(last, list) else [last] if isinstance(last, Field) else []
        if isinstance(step, Field) and row and _same_nodes(row[0], step):
            found[-1] = [*row, step]
        else:
            found.append(step)
    return found


def _same_nodes(a: Field, b: Field) -> bool:
    upright = np.array_equal(a.direction, np.eye(len(a.spacing))) and np.array_equal(b.direction, a.direction)
    same = (a.spacing, a.origin, a.values.shape) == (b.spacing, b.origin, b.values.shape)
    return upright and same and all(_border(f.values, np.array(f.spacing)) == 0 for f in (a, b))


def _flow(fields: Sequence[Field], unit: str) -> Flow:
    """Fields on the same nodes, one after the other, as the flow whose steps they are."""
    grid = _extended(fields[0], True, unit)[0].grid
    velocity = [np.moveaxis(field.values[..., ::-1], -1, 0) * -len(fields) for field in reversed(fields)]
    return Flow(torch.from_numpy(np.stack(velocity)), grid, len(fields), reverse=True)


def folded(transform: Transform) -> Transform:
    """``transform`` with fields in a row on the same nodes, that end in zeros, as the flow whose steps they are."""
    parts: list[Transform] = []
    row: list[Displacement] = []
    for part in transform.parts():
        if isinstance(part, Displacement) and _ends_in_zeros(part):
            if row and row[0].grid != part.grid:
                parts.append(_steps_as_one(row))
                row = []
            row.append(part)
            continue
        parts += [_steps_as_one(row)] if row else []
        row = []
        parts.append(part)
    parts += [_steps_as_one(row)] if row else []
    return in_a_row(parts)


def _steps_as_one(row: Sequence[Displacement]) -> Transform:
    if len(row) == 1:
        return row[0]
    velocity = torch.stack([step.field.to(torch.float64) * -len(row) for step in reversed(row)])
    return Flow(velocity, row[0].grid, len(row), reverse=True)


def _ends_in_zeros(step: Displacement) -> bool:
    values = np.moveaxis(step.field.to(torch.float64).numpy(), 0, -1)
    return not step.inverted and _border(values, np.ones(step.ndim)) == 0


def _extended(field: Field, plain: bool, unit: str) -> tuple[Displacement, Array | None]:
    """A field as ours and the matrix that follows it, so that it has an inverse beyond its border too.

    Inside its outermost pixels both together are the field, exactly. One that does not end in zeros has its affine part
    taken out, which goes on outside, and what is left of it fades.
    """
    ndim = len(field.spacing)
    values, spacing = field.values, np.array(field.spacing)
    origin = np.array(field.origin) if plain else field.direction.T @ np.array(field.origin)
    values = values if plain else values @ field.direction  # [*S, D] along the field's own axes
    rest: Array | None = None
    if _border(values, spacing) > 0:  # the outer halves of the outermost pixels are as their nodes
        values, origin = np.pad(values, [(1, 1)] * ndim + [(0, 0)], mode="edge"), origin - spacing
    if _border(values, spacing) > _FADE:
        axes = [origin[d] + spacing[d] * np.arange(n) for d, n in enumerate(values.shape[:-1][::-1])]
        nodes = np.stack(np.meshgrid(*axes[::-1], indexing="ij")[::-1], axis=-1).reshape(-1, ndim)  # x, y(, z)
        middle = nodes.mean(axis=0)
        ones = np.column_stack([nodes - middle, np.ones(len(nodes))])
        there = nodes + values.reshape(-1, ndim)
        # the normal equations of centred nodes are diagonal, up to the shift
        solution = np.linalg.lstsq(ones.T @ ones, ones.T @ there, rcond=None)[0]
        linear, shift = solution[:-1].T, solution[-1] - solution[:-1].T @ middle
        if np.linalg.matrix_rank(linear) == ndim:
            rest = np.eye(ndim + 1)
            rest[:-1, :-1], rest[:-1, -1] = linear, shift
            values = (np.linalg.solve(linear, (there - shift).T).T - nodes).reshape(values.shape)
    reach = _border(values, spacing)
    if reach > 0:
        fade = min(_MOST_FADE, math.ceil(reach / _FADE))
        values = np.pad(values, [(fade, fade)] * ndim + [(0, 0)], mode="linear_ramp")
        origin = origin - spacing * fade
    moved = np.moveaxis(values[..., ::-1], -1, 0)
    grid = Grid(moved.shape[1:], tuple(spacing[::-1].tolist()), tuple(origin[::-1].tolist()), unit)
    return Displacement(torch.from_numpy(np.ascontiguousarray(moved)), grid), rest


def _border(values: Array, spacing: Array) -> float:
    """Largest displacement at the border, in nodes."""
    sides = [values.take(end, axis) for axis in range(values.ndim - 1) for end in (0, -1)]
    return max(float(np.abs(side / spacing).max()) for side in sides)
