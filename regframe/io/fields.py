"""The map of a result as matrices and displacement fields, the form that other programs read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..data import Grid
from ..maps import bends
from ..maps.affine import Affine
from ..maps.base import Transform
from ..maps.displacement import Displacement
from ..maps.fields import MAX_NODES, Chain, chain_of
from ..maps.flow import Flow
from ..maps.pieces import as_displacement, in_pieces
from ..result import Result

TOLERANCE_PX = 0.003
"""Largest error that displacement fields may add by being interpolated, in pixels of the moving image.

About the error of the most exact fits (0.002 px or less on the seed pair, whose map is known: ``benchmarks/ACCURACY.md``), so
that nothing is lost by reading the fields instead of the exact map.
"""


class Bent(NamedTuple):
    """A map ``after · bend · before`` (moving → fixed) with its bend as displacement fields both ways.

    Args:
        before: homogeneous matrix ``[D+1, D+1]`` from the moving space to the space of the bend; None where the two are one
            space.
        to_fixed: the bend as fields; None where the map does not bend, or this direction was not asked for.
        to_moving: the inverse of the bend as fields; None in the same cases as ``to_fixed``.
        after: homogeneous matrix ``[D+1, D+1]`` from the space of the bend to the fixed space; None where the two are one
            space. For a map that does not bend, the whole map.
        unit: length unit of the space of the bend; of the fixed space for a map that does not bend.
        pixel: size of a moving pixel along each axis of that space; empty for a map that does not bend.
    """

    before: Tensor | None
    to_fixed: Chain | None
    to_moving: Chain | None
    after: Tensor | None
    unit: str
    pixel: tuple[float, ...] = ()


def as_fields(
    result: Result,
    tolerance: float = TOLERANCE_PX,
    max_nodes: int = MAX_NODES,
    wanted: Sequence[str] = ("to_fixed", "to_moving"),
    exact: bool = False,
) -> Bent:
    """The map of ``result`` as matrices and displacement fields; the fields are as coarse as ``tolerance`` allows.

    Args:
        result: any registration.
        tolerance: largest error that fields may add through interpolation between nodes, in moving pixels.
        max_nodes: largest number of nodes of all fields of one direction together.
        wanted: directions in which the bend is needed: ``to_fixed``, ``to_moving`` or both.
        exact: whether fields that need no sampling are kept in double precision.

    Raises ValueError for a map that bends twice; `legs` takes it leg by leg.
    """
    found = legs(result, tolerance, max_nodes, wanted, exact)
    if len(found) > 1:
        bends.split(result.transform)  # says so
    return found[0]


def legs(
    result: Result,
    tolerance: float = TOLERANCE_PX,
    max_nodes: int = MAX_NODES,
    wanted: Sequence[str] = ("to_fixed", "to_moving"),
    exact: bool = False,
) -> list[Bent]:
    """As `as_fields`, of a map that may bend several times: one leg for each bend, the first applied first.

    Each leg begins where the one before ends; only the last one has an ``after``. Errors and nodes are shared out evenly.
    """
    if in_pieces(result.transform):
        return [_of_pieces(result, wanted)]
    parts, ndim = result.transform.parts(), result.transform.ndim
    at = [i for i, part in enumerate(parts) if not isinstance(part, Affine)]
    if not at:
        return [Bent(None, None, None, bends.product(parts, ndim), result.transform.target_unit)]
    found, begin = [], 0
    for k in at:
        bend = parts[k]
        if not isinstance(bend, (Flow, Displacement)):
            raise ValueError(f"wanted a map made of Affine, Flow and Displacement, got {type(bend).__name__}")
        box, pixel = _region(result, parts[:k], bend, parts[k + 1 :]), _pixel_after(result.moving_grid, parts[:k])
        chains: dict[str, Chain] = {}
        for name in wanted:
            way = bend if name == "to_fixed" else bend.inverse()
            chains[name] = chain_of(way, box, pixel, tolerance / len(at), max_nodes // len(at), exact)
        rest = parts[k + 1 :] if k == at[-1] else ()
        matrices = [bends.product(row, ndim) if row else None for row in (parts[begin:k], rest)]
        way_there, way_back = chains.get("to_fixed"), chains.get("to_moving")
        found.append(Bent(matrices[0], way_there, way_back, matrices[1], bend.grid.unit, pixel))
        begin = k + 1
    return found


def _of_pieces(result: Result, wanted: Sequence[str]) -> Bent:
    """A map in pieces as a field for each direction, which jumps at the seams, before an affine matrix."""
    chains: dict[str, Chain] = {}
    after: Tensor | None = None
    pixel = torch.tensor(result.moving_grid.spacing, dtype=torch.float64)
    for name in wanted:
        bend, straight = as_displacement(result.transform, result.moving_grid, result.fixed_grid, name[3:]).parts()
        assert isinstance(bend, Displacement)
        assert isinstance(straight, Affine)
        after = straight.matrix
        field = Displacement(bend.field.to(torch.float32), bend.grid)
        lost = (field.field.to(torch.float64) - bend.field).abs() / pixel.reshape(-1, *(1,) * bend.ndim)
        chains[name] = Chain((field,), float(lost.max()), float(lost.mean()))
    unit, spacing = result.moving_grid.unit, result.moving_grid.spacing
    return Bent(None, chains.get("to_fixed"), chains.get("to_moving"), after, unit, spacing)


def around(result: Result) -> tuple[Tensor, tuple[float, ...]]:
    """The region in which the first bend is needed: a box ``[2, D]`` in its space around both canvases; and a moving pixel's size
    there.

    Both in the unit of the bend. The map has to bend.
    """
    parts = result.transform.parts()
    k = next(i for i, part in enumerate(parts) if not isinstance(part, Affine))
    bend = parts[k]
    assert isinstance(bend, (Flow, Displacement))
    return _region(result, parts[:k], bend, parts[k + 1 :]), _pixel_after(result.moving_grid, parts[:k])


def _region(
    result: Result, before: Sequence[Transform], bend: Flow | Displacement, after: Sequence[Transform]
) -> Tensor:
    """Box ``[2, D]`` in the bend's space around both canvases, before and after the bend, cut to where the bend is not zero."""
    moving, fixed = _canvas_lattice(result.moving_grid), _canvas_lattice(result.fixed_grid)
    for part in before:
        moving = part.points(moving)
    for part in reversed(after):
        fixed = part.inverse().points(fixed)
    seen = torch.cat([moving, bend.points(moving), fixed, bend.inverse().points(fixed)])  # [N, D]
    margin = 2 * torch.tensor(_pixel_after(result.moving_grid, before), dtype=torch.float64)
    # more than a cell outside its grid the velocity is zero, so that positions stay where they are
    grid = bend.grid
    origin, spacing, shape = (torch.tensor(v, dtype=torch.float64) for v in (grid.origin, grid.spacing, grid.shape))
    lower, upper = origin - spacing, origin + spacing * shape
    low = torch.minimum(torch.maximum(seen.amin(dim=0) - margin, lower), upper)
    high = torch.minimum(torch.maximum(seen.amax(dim=0) + margin, lower), upper)
    return torch.stack([low, high])


def _pixel_after(grid: Grid, before: Sequence[Transform]) -> tuple[float, ...]:
    """Size of a moving pixel per axis in the space of the bend, ``before`` being the maps from the moving space to it, of which
    bends are left out: they change little."""
    matrix = bends.product([part for part in before if isinstance(part, Affine)], grid.ndim)[:-1, :-1]
    step = matrix @ torch.diag(torch.tensor(grid.spacing, dtype=torch.float64))
    return tuple(float(row.norm()) for row in step)


def _canvas_lattice(grid: Grid) -> Tensor:
    """Positions ``[N, D]`` evenly over a canvas, its outer pixel edges included: 4000 to 5000 in 2D and in 3D."""
    n = 65 if grid.ndim == 2 else 17
    axes = [
        torch.linspace(o - s / 2, o + s * (size - 0.5), n, dtype=torch.float64)
        for o, s, size in zip(grid.origin, grid.spacing, grid.shape, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, grid.ndim)
