"""The result of a search for a start, and the nearest rigid or similarity map to an affine one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..fit.closed import turn_of

APART = 0.1
"""Mean distance between the images of the smaller side's corners under two poses, over that side's diagonal, from which the two
are different poses."""
EQUAL = 0.02
"""Relative difference between two scores below which they do not tell which pose is right; the plainer pose is then taken."""


def nearest_of_kind(matrix: Tensor, kind: str, scale: float, center: tuple[float, ...]) -> Tensor:
    """The rigid or similarity matrix nearest to an affine one; matrices of other kinds are returned as they are.

    Args:
        matrix: ``[D+1, D+1]``.
        kind: the model that is asked for.
        scale: one moving unit in fixed units; the size that a rigid map gets.
        center: position ``[D]`` of the moving space that goes where ``matrix`` puts it.
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
    """A start that was found without landmarks.

    Args:
        matrix: ``A`` ``[D+1, D+1]``, moving → fixed, in physical units.
        score: how well it fits, higher is better. Nats of likeness between coarse images; for a section in a volume the
            log-posterior of its plane, in nats.
        margin: how much lower the best different pose scores, relative to ``score``, at least 0 (for a section see
            `section.DOUBT`); None where no other pose was tried.
        runner_up: matrix of the best different pose, or None.
        runner_up_score: its score, or None.
        decided: what was decided by what is likely and not by the data, in a sentence; empty where nothing was.
        mirror: whether it is that the sides are not mirrored.
    """

    matrix: Tensor
    score: float
    margin: float | None
    runner_up: Tensor | None = None
    runner_up_score: float | None = None
    decided: str = ""
    mirror: bool = False
