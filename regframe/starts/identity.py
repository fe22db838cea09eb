"""The start that moves nothing: both sides stay where they are in their own coordinates."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data import Grid
from .scale import Scale


def as_they_lie(fixed: Grid, moving: Grid) -> Tensor:
    """The start ``A`` ``[D+1, D+1]`` float64 under which equal positions coincide.

    It only converts the moving unit to the fixed one; by a factor of 1 where the units cannot be converted.
    """
    factor = Scale.of(fixed, moving).factor
    return torch.diag(torch.tensor([*[factor] * moving.ndim, 1.0], dtype=torch.float64))
