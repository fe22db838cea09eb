"""What kinds of pairs of images ask of the engine: how their fit differs from that of any two pictures or volumes."""

from __future__ import annotations

from ..data import PointSet
from ..fit.prior import MARGIN_3D, Prior
from ..fit.pyramid import Cuts, Recipe
from .mixed.drawing import PER_POINT

ONE_SECTION = (0.5, 0.9)
"""Share of the fine structure, 0 … 1, under which two stained sections are two cuts, and from which they are one: what is between
counts in part. Two looks at one section share 0.9, neighbouring sections under 0.1."""
SECTIONS = 0.15
"""Share under which two stained sections are neighbouring ones, whose pieces move by themselves."""
NOTHING_SHARED = 0.01
"""Share on the finest level under which that level is left out of the fit of neighbouring sections."""
SECTIONS_SCALE = 0.06
"""Length a of the Sobolev operator where neighbouring sections are aligned, as a fraction of the moving canvas' extent: pieces of
tissue move by themselves between the cuts."""
SECTIONS_ORDER = 1.0
"""Power p there."""
SECTIONS_NODES = 4
"""Velocity nodes per length a there."""
PLANE_SCALE = 0.08
"""Length a where a section is placed in a volume, as a fraction of the extent of what is around it (its two longest sides)."""
PLANE_ORDER = 2.0
"""Power p there."""
PLANE_NODES = 2
"""Velocity nodes per length a there."""
PLANE_DEVIATION = 0.015
"""Prior standard deviation of a displacement there, as a fraction of that extent. It is not adapted, for it would buy
displacements across the section that only fit noise."""
PLANE_ACROSS = 0.2
"""Standard deviation of a displacement across the section there, over that along it."""

STAINED = Recipe(
    counted=ONE_SECTION,
    cuts=Cuts(SECTIONS, Prior(SECTIONS_SCALE, SECTIONS_ORDER, SECTIONS_NODES, beyond=0.5), NOTHING_SHARED),
)
"""Two stained sections in transmitted light: of one cut, or of two, which is found out from what they share."""
PLANE = Recipe(
    moves=False,
    prior=Prior(
        PLANE_SCALE,
        PLANE_ORDER,
        PLANE_NODES,
        PLANE_DEVIATION,
        slices=1,
        margin=MARGIN_3D,
        adapts=None,
        across=PLANE_ACROSS,
    ),
)
"""A section in a volume: its plane is known from the search, and only the bend is fitted."""


def drawn(points: PointSet) -> Recipe:
    """Points drawn as an image: however many pixels they cover, each is worth few observations."""
    return Recipe(most=PER_POINT * len(points))
