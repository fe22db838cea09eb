"""The rotation nearest to a cross-covariance, in closed form.

Source: Umeyama 1991, "Least-squares estimation of transformation parameters between two point patterns".
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Matrices = TypeVar("Matrices", Tensor, NDArray[np.float64])


def turn_of(cross: Matrices, handed: Any = 1.0) -> tuple[Matrices, Matrices]:
    """The orthogonal matrices ``[..., D, D]`` nearest to cross-covariances ``Σ q pᵀ`` ``[..., D, D]``, for torch or numpy.

    Args:
        cross: of centred pairs, fixed times moving; or any linear map.
        handed: required determinant: 1 for a rotation, -1 for a mirrored one (a scalar, or ``[...]``); None for the nearer.

    Returns:
        The orthogonal matrices, and the singular values ``[..., D]``. The last value is negative where the nearest matrix has the
        other determinant. Their sum, over the variance of the moving side, is the size of a similarity.
    """
    xp: Any = torch if isinstance(cross, Tensor) else np
    u, values, vh = xp.linalg.svd(cross)
    if handed is None:
        return u @ vh, values
    sign = xp.ones_like(values)
    sign[..., -1] = xp.sign(xp.linalg.det(u) * xp.linalg.det(vh) * handed)
    return (u * sign[..., None, :]) @ vh, values * sign
