"""Affine maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import reference
from ..data import canonical_unit, tensor_of
from ..later import torch
from . import homogeneous
from .base import Transform, check_coords

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Affine(Transform):
    """``x -> M x + t``, components in tensor-axis order.

    Args:
        matrix: homogeneous, ``[D+1, D+1]``, kept in float64; its last row is zeros and a one.
        source_unit: length unit of the positions it takes.
        target_unit: length unit of the positions it gives; the matrix includes the change of unit.

    Raises ValueError for another shape, another last row, or an entry that is not finite.
    """

    matrix: Tensor
    source_unit: str = "px"
    target_unit: str = "px"

    def __post_init__(self) -> None:
        matrix = tensor_of(self.matrix, torch.float64).detach().cpu()
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] not in (3, 4):
            raise ValueError(f"wanted a homogeneous matrix [3, 3] or [4, 4], got {tuple(matrix.shape)}")
        if not torch.isfinite(matrix).all():
            raise ValueError("wanted a finite matrix, got NaN or inf entries")
        last = torch.zeros(matrix.shape[0], dtype=torch.float64)
        last[-1] = 1.0
        if not torch.equal(matrix[-1], last):
            raise ValueError(f"wanted a last row of zeros and a one, got {matrix[-1].tolist()}")
        object.__setattr__(self, "matrix", matrix)
        object.__setattr__(self, "source_unit", canonical_unit(self.source_unit))
        object.__setattr__(self, "target_unit", canonical_unit(self.target_unit))

    @classmethod
    def identity(cls, ndim: int, unit: str = "px") -> Affine:
        """The map that leaves every position where it is, in one unit."""
        return cls(torch.eye(ndim + 1, dtype=torch.float64), unit, unit)

    @property
    def ndim(self) -> int:  # noqa: D102
        return int(self.matrix.shape[0]) - 1

    def points(self, coords: Tensor) -> Tensor:  # noqa: D102
        x = check_coords(coords, self.ndim)
        return reference.carry(self.matrix, x)

    def inverse(self) -> Affine:  # noqa: D102
        determinant = homogeneous.determinant(self.matrix)
        scale = self.matrix[:-1, :-1].abs().max()
        if not bool(determinant.abs() > 1e-12 * scale**self.ndim):  # as tensors: a power may be infinite
            raise ValueError(
                f"wanted an invertible affine map, got determinant {float(determinant):.3g} with entries up to "
                f"{float(scale):.3g}, which flattens what it maps"
            )
        return Affine(homogeneous.inverse(self.matrix), self.target_unit, self.source_unit)
