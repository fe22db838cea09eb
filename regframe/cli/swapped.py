"""Whether the landmarks of one side have x and y exchanged: what `regframe evaluate` says where they fit only the other way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..result import Result

BETTER = 10.0
"""How many times smaller the median error has to be with x and y of one side exchanged before that is said: landmarks that are
off by a wrong map do not fit so much better turned over their diagonal (set on the pair of ``regframe demo``)."""
FEWEST = 3
"""Pairs from which that is said: one or two fit either way too easily."""


def swapped(result: Result, fixed: Tensor, moving: Tensor, files: tuple[Path, Path]) -> str | None:
    """A sentence where pairs ``[N, 2]`` (y, x) of an image fit with x and y of one file exchanged, and not as they were read.

    Args:
        result: of a pair of images.
        fixed, moving: positions in the units of their sides.
        files: where the fixed and the moving ones were read from.
    """
    if fixed.shape[0] < FEWEST or fixed.shape[1] != 2 or moving.shape[1] != 2:
        return None

    def median(f: Tensor, m: Tensor) -> float:
        return float(torch.linalg.vector_norm(result.transform.inverse().points(f) - m, dim=1).nanmedian())

    before = median(fixed, moving)
    turned = {files[0]: median(fixed.flip(1), moving), files[1]: median(fixed, moving.flip(1))}
    path = min(turned, key=lambda name: turned[name])
    if not BETTER * turned[path] < before:
        return None
    unit = result.moving_grid.unit or "px"
    return (
        f"with x and y of {path} exchanged the median error is {turned[path]:.3g} {unit}, as read {before:.3g} {unit}; exchange "
        "the names of its columns"
    )
