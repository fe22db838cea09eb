"""The start that moves nothing: both sides stay where they are in their own coordinates."""

from __future__ import annotations

from typing import ClassVar

import torch

from ..contracts import Candidate, Start, Task
from ..data import Image, PointSet, unit_ratio


class Identity(Start):
    """Both sides as they lie: equal positions coincide, after one unit is converted to the other where that can be done."""

    name: ClassVar[str] = "identity"

    def find(self, task: Task) -> list[Candidate]:  # noqa: D102
        factor = unit_ratio(unit_of(task.moving), unit_of(task.fixed)) or 1.0
        ndim = task.moving.grid.ndim if isinstance(task.moving, Image) else task.moving.ndim
        return [Candidate(torch.diag(torch.tensor([*[factor] * ndim, 1.0], dtype=torch.float64)))]


def unit_of(side: Image | PointSet) -> str:
    """The unit of the positions of one side."""
    return side.grid.unit if isinstance(side, Image) else side.unit
