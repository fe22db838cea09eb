"""The start that moves nothing: both sides as they lie, in their own coordinates."""

from __future__ import annotations

import torch
from torch import Tensor

from .scale import Scale


def as_they_lie(scale: Scale, ndim: int) -> Tensor:
    """``A`` ``[D+1, D+1]`` float64 of equal positions: the change of unit alone, by a factor of 1 where it is not known."""
    return torch.diag(torch.tensor([*[scale.factor] * ndim, 1.0], dtype=torch.float64))
