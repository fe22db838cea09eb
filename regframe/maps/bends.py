"""Splits a map at its bend into affine maps before it, the bend itself, and affine maps after it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from . import homogeneous
from .affine import Affine
from .base import Transform
from .displacement import Displacement
from .flow import Flow
from .pieces import Pieces


def bent(transform: Transform) -> bool:
    """Whether a map bends, once or more often."""
    return any(not isinstance(part, Affine) for part in transform.parts())


def split(transform: Transform) -> tuple[list[Affine], Flow | Displacement | None, list[Affine]]:
    """The affine maps before the bend, the bend, and the affine maps after it; affine maps in the order of application.

    For a map that does not bend, all affine maps come before, and the bend is None. Raises ValueError for a map that bends
    more than once, or that bends by another kind of map than `Flow` and `Displacement`.
    """
    parts = transform.parts()
    bent = [i for i, part in enumerate(parts) if not isinstance(part, Affine)]
    if len(bent) > 1:
        raise ValueError(f"wanted a map with at most one flow or displacement, got {len(bent)}; save them one by one")
    if not bent:
        return _affines(parts), None, []
    bend = parts[bent[0]]
    if isinstance(bend, Pieces):
        raise ValueError("wanted one map for the whole image, got one in pieces; register the pieces one by one")
    if not isinstance(bend, (Flow, Displacement)):
        raise ValueError(f"wanted a map made of Affine, Flow and Displacement, got {type(bend).__name__}")
    return _affines(parts[: bent[0]]), bend, _affines(parts[bent[0] + 1 :])


def split_last(transform: Transform) -> tuple[tuple[Transform, ...], Affine]:
    """The parts of a map before its last affine maps, and these last affine maps as one.

    The parts are empty where nothing bends. The affine map is the identity of the target space where the map ends in a bend.
    """
    parts = transform.parts()
    n = len(parts)
    while n and isinstance(parts[n - 1], Affine):
        n -= 1
    last = _affines(parts[n:])
    if not last:
        return parts, Affine.identity(transform.ndim, transform.target_unit)
    matrix = torch.eye(transform.ndim + 1, dtype=torch.float64)
    for affine in last:
        matrix = homogeneous.compose(affine.matrix, matrix)
    return parts[:n], Affine(matrix, last[0].source_unit, transform.target_unit)


def product(affines: Sequence[Transform], ndim: int) -> Tensor:
    """The product ``[D+1, D+1]`` (float64) of affine maps, the first applied first; the identity where there are none.

    Raises ValueError for a map that is not affine.
    """
    matrix = torch.eye(ndim + 1, dtype=torch.float64)
    for affine in affines:
        if not isinstance(affine, Affine):
            raise ValueError(f"wanted affine maps to multiply, got {type(affine).__name__}")
        matrix = affine.matrix @ matrix
    return matrix


def carried_length(length: float, transform: Transform) -> float:
    """A length of the source space, mapped to the target unit by the affine parts of a map.

    It is multiplied by the D-th root of their change of area (volume). The bend, which differs from place to place, is ignored.
    """
    for part in transform.parts():
        if isinstance(part, Pieces):  # the middle one of the pieces
            length = statistics.median(carried_length(length, one) for one in part.maps)
        if isinstance(part, Affine):
            length *= abs(float(torch.linalg.det(part.matrix[:-1, :-1]))) ** (1 / transform.ndim)
    return length


def _affines(parts: Sequence[Transform]) -> list[Affine]:
    """The parts as a list of affine maps, where all of them are known to be affine."""
    return [part for part in parts if isinstance(part, Affine)]
