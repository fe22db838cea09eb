"""The start that moves nothing: both sides as they lie, in their own coordinates."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data import Grid
from .scale import Scale


def as_they_lie(fixed: Grid, moving: Grid) -> Tensor:
    """``A`` ``[D+1, D+1]`` float64 of equal positions: the change of unit alone, by a factor of 1 where it is not known."""
    factor = Scale.of(fixed, moving).factor
    return torch.diag(torch.tensor([*[factor] * moving.ndim, 1.0], dtype=torch.float64))
