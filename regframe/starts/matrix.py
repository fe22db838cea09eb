"""The start that is given as numbers, so that a file of settings can hold it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from ..contracts import Candidate, Start, Task


class Matrix(Start):
    """An affine map as numbers, moving → fixed in the units of the two sides.

    Args:
        rows: ``[D+1, D+1]``, positions in the order (z,) y, x; the last row is 0 … 0 1.
    """

    name: ClassVar[str] = "matrix"

    def __init__(self, rows: Sequence[Sequence[float]]) -> None:
        try:
            self.rows = [[float(v) for v in row] for row in rows]
            matrix = torch.tensor(self.rows, dtype=torch.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"wanted rows of numbers for a matrix, got {rows!r}; give [[a, b, t], [c, d, u], [0, 0, 1]]"
            ) from error
        size = len(self.rows)
        last = [0.0] * (size - 1) + [1.0]
        if tuple(matrix.shape) not in ((3, 3), (4, 4)) or self.rows[-1] != last or not bool(matrix.isfinite().all()):
            raise ValueError(
                f"wanted 3 or 4 rows of as many finite numbers, the last one 0 … 0 1, got {self.rows}; the order is (z,) y, x"
            )
        self._matrix = matrix

    def find(self, task: Task) -> list[Candidate]:  # noqa: D102
        return [Candidate(self._matrix)]
