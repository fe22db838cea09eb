"""Goes on from a map that is nearly right: only a bend is fitted, on the finest levels, from where the images are laid now.

The moving side has been carried by that map onto the fixed side's pixels, so that the fit begins at nothing. The bend is kept
where the images call for it, as `fit_pyramid` keeps one.
"""

from __future__ import annotations

import math

import torch

from .frames import Frame, Increment
from .mapspace import MapSpace
from .pyramid import Fit, LevelRules, Pair, build_levels, fit_bend, fit_level
from .steps import Report, Stage
from .threads import threads_for


def fit_on(pair: Pair, shared: float = 0.0, report: Report = None) -> Fit | None:
    """The bend that the images ask for beyond the map that laid them; None where they are different cuts of tissue.

    The cells of another cut match by chance anywhere, and a short fit cannot tell; the whole fit follows them in small steps.

    Args:
        pair: both sides on pixels of one field, the moving side carried by the map; landmarks likewise.
        shared: shared structure of both sides, 0 … 1, as far as it is known: where they lie badly they seem to share less.
        report: called after each step; what it raises ends the fit.
    """
    grid = pair.fixed.grid
    start = torch.eye(grid.ndim + 1, dtype=torch.float64)
    levels = build_levels(pair.fixed, pair.moving, start, pair.config)
    increment = Increment("still", grid.ndim, math.hypot(*Frame.of(grid).grid(grid).extent) / 2)
    fit = Fit(torch.zeros(0, dtype=torch.float32), MapSpace(start, increment), asked="still")
    with threads_for(levels[-1].work):
        stage = Stage("as it lies", len(levels) - 1, len(levels), 1)
        fit = fit_level(fit, levels[-1], pair, stage, LevelRules(held=True), report)
    fit.texture = max(shared, fit.shared)
    if pair.recipe.cuts is not None and fit.texture < pair.recipe.cuts.below:
        return None
    return fit_bend(fit, levels, len(levels) - 1, pair, report)
