"""How far a fit that ran out of iterations would still have moved: measured by letting it go on for a while."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import Optimizer
from .energy import Energy
from .lbfgs import Descent
from .likeness import fit_contrast
from .precondition import descend, precondition
from .uncertainty import blocks_of, on_pixels

STEPS = 40
"""Further iterations, without unit: a fifth of the default limit, so that the cost stays below a fifth of the last level."""
AHEAD = 2.0
"""How far the fit's end is taken to lie, over how far the further iterations went, without unit.

At 1 it came out 1.3 to 1.7 times the true distance on bent noise with known ends (seeds 0 and 1 of `tests/fit/test_further.py`,
stopped after 3 to 12 iterations), which end within the further iterations; doubled for fits that do not.
"""


def still_to_move(energy: Energy, x: Tensor) -> Tensor:
    """How far each fixed pixel of the last level ``[*S_f]`` is expected to move still, per axis, in fixed pixels.

    The map that was found is left as it is; what it would have become adds to the standard deviation of its positions.

    Args:
        energy: the energy that was minimised.
        x: the variables ``[K + P]`` at which its minimisation was stopped.
    """
    maps, level = energy.maps, energy.level
    change = None
    if maps.space is not None:
        with torch.no_grad():
            predicted = fit_contrast(energy.warp(x, level.moving, level.moving_grid), level.fixed, energy.weight)
        change = precondition(energy, predicted)
    usual = Optimizer()
    end = descend(energy, x, Descent(STEPS, usual.tolerance, usual.memory), change).x
    blocks = blocks_of(level.fixed_grid)
    at = blocks.coords().reshape(-1, blocks.ndim)
    with torch.no_grad():
        shift = maps.zoom * (maps.points(end, at, to_moving=True) - maps.points(x, at, to_moving=True))
    per_axis = shift.square().mean(dim=-1).sqrt().reshape(blocks.shape)
    return on_pixels((AHEAD * per_axis).cpu().numpy(), level.fixed_grid)
