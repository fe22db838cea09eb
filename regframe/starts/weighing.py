"""What a pair shows of a pose by two looks at it: as it is, and by its fine structure at one contrast everywhere.

Outlines, holes, strokes and shades weigh much in a picture as it is, and may lie alike at a wrong pose; evened fine structure
(`views.Fine`) is alike at the right one alone. Tissue of another stain or section may differ there, so that both count.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .evidence import AT_ONCE, FINE_SIZE, LOCAL, Match, anywhere, compare, evidence, seen
from .priors import chance
from .views import Fine, Views


class Weights:
    """Evidence of poses of two planes by both looks, in the unit of the first; of two volumes by the first alone.

    Each look is counted in the unit that the pair itself sets for it (`priors.chance`). Of 46 made pairs (`benchmarks.proving`,
    14 kinds, seeds 500 to 511, and four of `mixture`, whose pose the first look alone had lost) the true pose leads the best
    wrong one by 1.0 to 60 times by the first look, by 1.0 to 53 times by the second, and where the first has it behind
    (`mixture` 1024: 39 to 65 nats) by 138 to 32 nats.

    Args:
        fixed: stays where it is.
        moving: is brought onto it.
        zoom: fixed pixels per moving pixel, about.
    """

    def __init__(self, fixed: Views, moving: Views, zoom: float) -> None:
        nowhere = anywhere(fixed, zoom)
        self.unit = chance(evidence(seen(fixed, FINE_SIZE), moving, nowhere))
        """Raw nats that one honest nat stands for."""
        self.fine = Fine(fixed, LOCAL[fixed.ndim]), Fine(moving, LOCAL[fixed.ndim])
        """Both sides by the second look."""
        self._rate = self.unit / chance(self._alike(nowhere)) if fixed.ndim == 2 else 0.0

    def __call__(self, poses: Tensor, fit: Match) -> tuple[Tensor, Tensor]:
        """Raw evidence ``[N]`` of poses ``[N, D, D+1]``: the mean of both looks, and the lesser of them.

        Args:
            poses: pullbacks of the normalised frames.
            fit: how they match at `FINE_SIZE` as they are.
        """
        plain = fit.evidence()
        if not self._rate:
            return plain, plain
        fine = self._rate * self._alike(poses)
        return (plain + fine) / 2, torch.minimum(plain, fine)

    def _alike(self, poses: Tensor) -> Tensor:
        """Nats of likeness ``[N]`` of fine structure."""
        on = seen(self.fine[0], FINE_SIZE)
        few = max(1, AT_ONCE // (2 * on[0].numel()))
        return torch.cat([compare(*on, self.fine[1], part).score for part in poses.chunk(-(-len(poses) // few))])
