"""Whether pairs of landmarks have their fixed and moving sides exchanged: told by the images, or the map."""

from __future__ import annotations

import torch

from ..config import Config
from ..data import Image
from ..fit.frames import Frame, zoom_of
from ..fit.halvings import Halvings
from ..maps.base import Transform
from ..maps.homogeneous import compose, inverse
from .evidence import FINE_SIZE, anywhere, evidence, seen
from .given import given
from .images import refine
from .landmarks import Landmarks
from .priors import chance
from .views import Views

CLEAR = 40.0
"""Nats by which images have to be more alike with the sides of the pairs exchanged, before that is said. Exchanged pairs of the
images of `regframe demo` and of three pairs of lung sections, as they lie and turned by 90°, have 105 to 705; of 15 sets of four
pairs at random places the most had 16."""
BETTER = 10.0
"""How many times smaller the median distance of the pairs under the map of a fit has to be with both sides exchanged (the factor
of x and y exchanged in ``regframe evaluate``)."""


def fit_exchanged(transform: Transform, pairs: Landmarks) -> tuple[float, float] | None:
    """Median distances of the pairs, as they were given and with both sides exchanged, where a map fits them far better so.

    In the fixed unit; None where it does not, or of fewer than three pairs, which tell nothing.
    """
    if len(pairs.fixed) < 3:
        return None
    own, other = (
        float(torch.linalg.vector_norm(transform.points(m) - f, dim=1).nanmedian())
        for m, f in ((pairs.moving, pairs.fixed), (pairs.fixed, pairs.moving))
    )
    return (own, other) if BETTER * other < own else None


def exchanged(fixed: Image, moving: Image, pairs: Landmarks, config: Config) -> bool:
    """Whether images are clearly more alike near the start of the pairs with fixed and moving exchanged than near their own.

    False for pairs of which either way gives no start.
    """
    sides = Halvings.of(fixed), Halvings.of(moving)
    f, m = (Views(side) for side in sides)
    poses = []
    for ones in (pairs, Landmarks(moving=pairs.fixed, fixed=pairs.moving)):
        try:
            start = given(fixed.grid, moving.grid, ones, config)
        except ValueError:
            return False
        assert start is not None
        back = compose(Frame.of(moving.grid).matrix(), inverse(start), inverse(Frame.of(fixed.grid).matrix()))
        poses.append(back)
    _, match = refine(f, m, torch.stack(poses)[:, :-1].to(torch.float32), FINE_SIZE, "affine")
    unit = chance(evidence(seen(f, FINE_SIZE), m, anywhere(f, zoom_of(poses[0]))))
    own, other = (match.evidence() / unit).tolist()
    return bool(other - own > CLEAR)
