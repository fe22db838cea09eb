"""A map taken apart at what bends it: affine maps before, the bend, affine maps after."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import homogeneous
from .affine import Affine
from .base import Transform
from .displacement import Displacement
from .flow import Flow


def split(transform: Transform) -> tuple[list[Affine], Flow | Displacement | None, list[Affine]]:
    """The affine maps before the bend, the bend, and the affine maps after it, each in the order of application.

    A map that does not bend has all its affine maps before, and None as its bend. Raises ValueError for a map that bends
    twice, or by a map other than `Flow` and `Displacement`.
    """
    parts = transform.parts()
    bent = [i for i, part in enumerate(parts) if not isinstance(part, Affine)]
    if len(bent) > 1:
        raise ValueError(f"wanted a map with at most one flow or displacement, got {len(bent)}; save them one by one")
    if not bent:
        return _affines(parts), None, []
    bend = parts[bent[0]]
    if not isinstance(bend, (Flow, Displacement)):
        raise ValueError(f"wanted a map made of Affine, Flow and Displacement, got {type(bend).__name__}")
    return _affines(parts[: bent[0]]), bend, _affines(parts[bent[0] + 1 :])


def split_last(transform: Transform) -> tuple[tuple[Transform, ...], Affine]:
    """What comes before the last affine maps of a map, however often it bends, and these last ones as one.

    The first is empty where nothing bends; the second is the identity of the target space where the map ends in a bend.
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
    """The matrix ``[D+1, D+1]`` (float64) of affine maps one after the other, the first applied first.

    The identity where there are none. Raises ValueError for a map that is not affine.
    """
    matrix = torch.eye(ndim + 1, dtype=torch.float64)
    for affine in affines:
        if not isinstance(affine, Affine):
            raise ValueError(f"wanted affine maps to multiply, got {type(affine).__name__}")
        matrix = affine.matrix @ matrix
    return matrix


def carried_length(length: float, transform: Transform) -> float:
    """A length of the source space as the affine parts of a map leave it, in the target unit.

    Multiplied by the D-th root of their change of area (volume); what a bend adds differs from place to place and is left out.
    """
    for part in transform.parts():
        if isinstance(part, Affine):
            length *= abs(float(torch.linalg.det(part.matrix[:-1, :-1]))) ** (1 / transform.ndim)
    return length


def _affines(parts: Sequence[Transform]) -> list[Affine]:
    """Parts that are known to be affine."""
    return [part for part in parts if isinstance(part, Affine)]
