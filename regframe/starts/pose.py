"""A pose that was found without landmarks, and the straight map of a kind that is nearest to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..fit.closed import turn_of

APART = 0.1
"""Distance, over the smaller side's diagonal, from which two poses are truly different."""
EQUAL = 0.02
"""Relative difference of two scores that says nothing about which pose is right; the plainest then is taken."""


def nearest_of_kind(matrix: Tensor, kind: str, scale: float, center: tuple[float, ...]) -> Tensor:
    """The rigid (times the known ``scale`` between the units) or similarity matrix nearest to an affine one.

    ``center`` ``[D]`` of the moving space is mapped to where the affine map puts it; other kinds come back as they are.
    """
    if kind not in ("rigid", "similarity"):
        return matrix
    turn, values = turn_of(matrix[:-1, :-1], handed=None)
    out = matrix.clone()
    out[:-1, :-1] = turn * (scale if kind == "rigid" else float(values.mean()))
    middle = torch.tensor(center, dtype=torch.float64)
    out[:-1, -1] = matrix[:-1, :-1] @ middle + matrix[:-1, -1] - out[:-1, :-1] @ middle
    return out


@dataclass(frozen=True)
class Pose:
    """A start found without landmarks.

    Args:
        matrix: ``A`` ``[D+1, D+1]``, moving → fixed, physical.
        score: how well it fits, higher is better: nats of likeness in the coarse images (2D), explained variance (3D).
        margin: how much less, relative to ``score``, the best truly different pose scores, at least 0; None where none was
            tried.
        runner_up: the matrix of that pose, or None.
        runner_up_score: its score, or None.
        decided: what was decided by what is likely and not by the data, in a sentence; empty where nothing was.
    """

    matrix: Tensor
    score: float
    margin: float | None
    runner_up: Tensor | None = None
    runner_up_score: float | None = None
    decided: str = ""
