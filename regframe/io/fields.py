"""The map of a result as matrices and displacement fields, the form that other programs read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..data import Grid
from ..maps import bends
from ..maps.affine import Affine
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
    """

    before: Tensor | None
    to_fixed: Chain | None
    to_moving: Chain | None
    after: Tensor | None


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

    Raises ValueError for a map that bends twice.
    """
    if in_pieces(result.transform):
        return _of_pieces(result, wanted)
    before, bend, after = bends.split(result.transform)
    ndim = result.transform.ndim
    if bend is None:
        return Bent(None, None, None, bends.product(before, ndim))
    box, pixel = around(result)
    chains: dict[str, Chain] = {}
    for name in wanted:
        way = bend if name == "to_fixed" else bend.inverse()
        chains[name] = chain_of(way, box, pixel, tolerance, max_nodes, exact)
    matrices = [bends.product(parts, ndim) if parts else None for parts in (before, after)]
    return Bent(matrices[0], chains.get("to_fixed"), chains.get("to_moving"), matrices[1])


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
    return Bent(None, chains.get("to_fixed"), chains.get("to_moving"), after)


def around(result: Result) -> tuple[Tensor, tuple[float, ...]]:
    """The region in which the bend is needed: a box ``[2, D]`` in its space around both canvases; and a moving pixel's size
    there.

    Both in the unit of the bend. The map has to bend.
    """
    before, bend, after = bends.split(result.transform)
    assert bend is not None
    return _region(result, before, bend, after), _pixel_after(result.moving_grid, before)


def _region(result: Result, before: list[Affine], bend: Flow | Displacement, after: list[Affine]) -> Tensor:
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


def _pixel_after(grid: Grid, before: Sequence[Affine]) -> tuple[float, ...]:
    """Size of a moving pixel per axis in the space of the bend, ``before`` being the affine maps from the moving space to it."""
    matrix = bends.product(before, grid.ndim)[:-1, :-1]
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
