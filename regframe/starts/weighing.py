"""What a pair shows of a pose by two looks at it: as it is, and by its fine structure at one contrast everywhere.

Outlines, holes, strokes and shades weigh much in a picture as it is, and may lie alike at a wrong pose; evened fine structure
(`views.Fine`) is alike at the right one alone. A picture without fine structure is seen by the first look alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .evidence import AT_ONCE, FINE_SIZE, LOCAL, Match, anywhere, compare, evidence, seen
from .priors import chance
from .views import Fine, Views

FINER_SIZE = {2: 96, 3: 20}
"""Pixels along the side of a square or cube as large as the tissue, where fine structure is compared. Of six made pairs with
a rival (`crop` 11 and 12, `mixture` 1024, `pieces` 501, `serial` 502, `sizes` 500) 96 puts the true pose 1.7 to 14 times ahead
of the best wrong one, 64 pixels 0.8 to 6 times, the first look 0.15 to 1.5 times."""
LEADS = 1.5
"""Times the nats of the first look that fine structure shows of a pose, from which outlines alone have not brought it about:
wrong ones of `crop` 11 and 12 and `mixture` 1024 have 0.6 to 1.3, right ones of the six pairs of `FINER_SIZE` 2.0 to 15."""
PLENTY = 500.0
"""Nats of evidence, in the pair's own unit, from which a pose is not doubted for that: the wrong ones of the six pairs of
`FINER_SIZE` have up to 453."""


class Weights:
    """Evidence of poses of two pictures by both looks, in the unit of the first; of volumes and densities by the first alone.

    The fine structure of a density of cells is chance, for the most part.

    Each look is counted in the unit that the pair itself sets for it (`priors.chance`), and a pose is worth what the look says
    that sees more of it: either may be the one that suits a pair.

    Args:
        fixed: stays where it is.
        moving: is brought onto it.
        zoom: fixed pixels per moving pixel, about.
        twice: whether there are two looks.
    """

    def __init__(self, fixed: Views, moving: Views, zoom: float, twice: bool = True) -> None:
        nowhere = anywhere(fixed, zoom)
        self.unit = chance(evidence(seen(fixed, FINE_SIZE), moving, nowhere))
        """Raw nats that one honest nat stands for."""
        self.fine = Fine(fixed, LOCAL[fixed.ndim]), Fine(moving, LOCAL[fixed.ndim])
        """Both sides by the second look."""
        self._rate = self.unit / chance(self._alike(nowhere)) if twice else 0.0

    def __call__(self, poses: Tensor, fit: Match) -> tuple[Tensor, Tensor]:
        """Raw evidence ``[N]`` of poses ``[N, D, D+1]`` by the look that sees more, and what each has by both looks ``[N]``: 0
        where it is doubtful whether more than outlines are alike (`LEADS`).

        Args:
            poses: pullbacks of the normalised frames.
            fit: how they match at `FINE_SIZE` as they are.
        """
        plain = fit.evidence()
        if not self._rate:
            return plain, plain
        fine = self._rate * self._alike(poses)
        most = torch.maximum(plain, fine)
        clear = (fine > LEADS * plain) | (most > PLENTY * self.unit)
        return most, torch.where(clear, torch.minimum(plain, fine), 0.0)

    def _alike(self, poses: Tensor) -> Tensor:
        """Nats of likeness ``[N]`` of fine structure."""
        on = seen(self.fine[0], FINER_SIZE)
        few = max(1, AT_ONCE // (2 * on[0].numel()))
        return torch.cat([compare(*on, self.fine[1], part).score for part in poses.chunk(-(-len(poses) // few))])
