"""Whether landmarks have x and y of one side, or both sides, exchanged: what `regframe evaluate` says where they fit only so."""

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
    """A sentence where pairs ``[N, D]`` fit with x and y of one file, or both sides, exchanged, and not as they were read.

    Args:
        result: of a pair of images.
        fixed, moving: positions in the units of their sides.
        files: where the fixed and the moving ones were read from; x and y of one file with both are not asked about.
    """
    if fixed.shape[0] < FEWEST or fixed.shape[1] != moving.shape[1] or fixed.shape[1] != result.transform.ndim:
        return None
    one_file = files[0] == files[1]

    def median(f: Tensor, m: Tensor) -> float:
        return float(torch.linalg.vector_norm(result.transform.inverse().points(f) - m, dim=1).nanmedian())

    before = median(fixed, moving)
    columns = "exchange the columns fixed_… and moving_…" if one_file else "exchange the two files"
    ways = [(median(moving, fixed), "both sides", columns)]
    if fixed.shape[1] == 2 and not one_file:
        turned = (fixed.flip(1), moving), (fixed, moving.flip(1))
        ways += [
            (median(*pairs), f"x and y of {path}", "exchange the names of its columns")
            for pairs, path in zip(turned, files, strict=True)
        ]
    least, what, remedy = min(ways)
    if not BETTER * least < before:
        return None
    unit = result.moving_grid.unit or "px"
    return f"with {what} exchanged the median error is {least:.3g} {unit}, as read {before:.3g} {unit}; {remedy}"
