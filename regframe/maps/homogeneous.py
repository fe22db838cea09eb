"""Products, determinants and inverses of homogeneous matrices ``[D+1, D+1]`` in a fixed order of operations.

A BLAS may sum in another order for another memory alignment, which changes the last bits; for matrices this small it is no
faster. Everything here is differentiable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..later import torch

if TYPE_CHECKING:
    from torch import Tensor


def compose(*matrices: Tensor) -> Tensor:
    """The product ``matrices[0] · matrices[1] · …``; applied to a position, the last matrix acts first."""
    out = matrices[0]
    for matrix in matrices[1:]:
        out = (out.unsqueeze(2) * matrix.unsqueeze(0)).sum(dim=1)
    return out


def determinant(matrix: Tensor) -> Tensor:
    """Determinant of the linear part of a homogeneous matrix."""
    m = matrix
    if matrix.shape[0] == 3:
        return m[0, 0] * m[1, 1] - m[0, 1] * m[1, 0]
    minors = _adjugate_row(m)
    return m[0, 0] * minors[0] + m[1, 0] * minors[1] + m[2, 0] * minors[2]


def inverse(matrix: Tensor) -> Tensor:
    """Inverse of a homogeneous matrix, by cofactors; the last row is exact."""
    m, ndim = matrix, matrix.shape[0] - 1
    if ndim == 2:
        adjugate = torch.stack([torch.stack([m[1, 1], -m[0, 1]]), torch.stack([-m[1, 0], m[0, 0]])])
    else:
        rows = []
        for i in range(3):  # adjugate[i, j] is the cofactor of m[j, i]
            a, b = [k for k in range(3) if k != i]
            row = []
            for j in range(3):
                c, d = [k for k in range(3) if k != j]
                sign = 1.0 if (i + j) % 2 == 0 else -1.0
                row.append(sign * (m[c, a] * m[d, b] - m[c, b] * m[d, a]))
            rows.append(torch.stack(row))
        adjugate = torch.stack(rows)
    linear = adjugate / determinant(matrix)
    shift = -(linear * m[None, :-1, ndim]).sum(dim=1)
    last = torch.zeros((1, ndim + 1), dtype=matrix.dtype, device=matrix.device)
    last[0, -1] = 1.0
    return torch.cat([torch.cat([linear, shift[:, None]], dim=1), last])


def _adjugate_row(m: Tensor) -> list[Tensor]:
    """Cofactors of the first column of a 3 × 3 linear part."""
    return [
        m[1, 1] * m[2, 2] - m[1, 2] * m[2, 1],
        m[0, 2] * m[2, 1] - m[0, 1] * m[2, 2],
        m[0, 1] * m[1, 2] - m[0, 2] * m[1, 1],
    ]
