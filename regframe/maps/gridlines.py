"""Lines of a regular grid of the moving space, as a map bends them: what shows at a glance what the map does."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data import Grid
from .base import Transform
from .pieces import NOWHERE, Pieces

SQUARES = 18
"""Squares of the grid along the longer side of the moving canvas: enough to see a bend, few enough to see the data below."""
_ALONG = 97
"""Positions along a line, joined by straight pieces."""


def grid_lines(transform: Transform, grid: Grid) -> list[NDArray[np.float64]]:
    """A regular grid over ``grid``, the moving canvas (of a volume its middle plane), mapped to the fixed space.

    Returns:
        Lines ``[n, 2]`` as (y, x), in the fixed unit.
    """
    height, width = grid.extent[-2:]
    step = max(height, width) / SQUARES
    low = [o - s / 2 for o, s in zip(grid.origin[-2:], grid.spacing[-2:], strict=True)]
    lines = []
    for axis, (extent, other) in enumerate(((height, width), (width, height))):
        for i in range(math.floor(extent / step) + 1):
            yx = torch.empty((_ALONG, 2), dtype=torch.float64)
            yx[:, axis] = low[axis] + i * step
            yx[:, 1 - axis] = low[1 - axis] + torch.linspace(0, other, _ALONG, dtype=torch.float64)
            if grid.ndim == 3:
                yx = torch.cat([torch.full((_ALONG, 1), grid.center[0], dtype=torch.float64), yx], dim=1)
            lines += _runs(transform, yx)
    return lines


def _runs(transform: Transform, at: Tensor) -> list[NDArray[np.float64]]:
    """The mapped line through positions ``[n, D]``; of a map in pieces its runs on single pieces, none where there is no map."""
    there = transform.points(at)[:, -2:].numpy()
    first = transform.parts()[0]
    if not isinstance(first, Pieces):
        return [there]
    label = first.source.at(at)
    ends = [0, *(torch.nonzero(label.diff())[:, 0] + 1).tolist(), len(at)]
    return [there[a:b] for a, b in itertools.pairwise(ends) if b - a > 1 and int(label[a]) != NOWHERE]
