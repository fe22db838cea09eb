"""Where neighbouring windows contradict a map together: one that is wrong in one place alone, beside a tear say.

A window of texture that repeats may be sure of a wrong place by itself. Neighbours that are sure of wrong places and would all
be moved alike are not by chance: two moves that may lie anywhere within the reach of `fit.agreement` are alike (`ALIKE`) once in
40 pairs of neighbours.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

ALIKE = 2.5
"""Difference of the moves of two neighbouring windows, in pixels along every axis, up to which they would be moved alike: what
counts as one place (`fit.agreement.NEAR`)."""


def together(place: Tensor, wrong: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
    """The largest group of neighbouring windows that contradict a map alike, corner to corner included.

    Args:
        place: moves ``[N, D]`` that windows would make, in pixels.
        wrong: which of them contradict ``[N]``.
        shown: where on the lattice of windows they are, ``[*lattice]`` with N true values.

    Returns:
        Their places on the lattice ``[M, D]`` and their moves ``[M, D]``; M is 0 where none contradicts.
    """
    at = shown.nonzero()[wrong]
    moves = place[wrong]
    number = {tuple(index): k for k, index in enumerate(at.tolist())}
    steps = [step for step in itertools.product((-1, 0, 1), repeat=shown.ndim) if any(step)]
    left, largest = set(range(len(at))), list[int]()
    while left:
        group = [left.pop()]
        for k in group:  # grows while it is walked
            for step in steps:
                other = number.get(tuple(i + s for i, s in zip(at[k].tolist(), step, strict=True)))
                if other in left and float((moves[k] - moves[other]).abs().max()) <= ALIKE:
                    left.remove(other)
                    group.append(other)
        largest = group if len(group) > len(largest) else largest
    chosen = torch.tensor(sorted(largest), dtype=torch.int64, device=at.device)
    return at[chosen], moves[chosen]
