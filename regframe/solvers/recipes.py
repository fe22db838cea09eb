"""What kinds of pairs of images ask of the engine: how their fit differs from that of any two pictures or volumes."""

from __future__ import annotations

from ..data import PointSet
from ..fit.prior import MARGIN_3D, Prior
from ..fit.pyramid import Cuts, Recipe
from .mixed.drawing import PER_POINT

MODELS = ("rigid", "similarity", "affine", "lddmm")
"""Models of a map that the engine fits to any kind of pair: each is a case of the next."""
ONE_SECTION = (0.5, 0.9)
"""Share of the fine structure, 0 … 1, under which two stained sections are two cuts, and from which they are one; between them
observations count in part. Two looks at one section share 0.9, neighbouring sections under 0.1."""
SECTIONS = 0.15
"""Share of the fine structure under which two stained sections are neighbouring ones, whose pieces move by themselves. This and
the next constants were chosen on the lung and Visium sections of benchmarks/ACCURACY.md."""
NOTHING_SHARED = 0.01
"""Share of the fine structure on the finest level under which that level is left out of the fit of neighbouring sections."""
SECTIONS_SCALE = 0.06
"""Length a of the Sobolev operator for neighbouring sections, as a fraction of the moving canvas' extent: shorter than between
two looks at one section."""
SECTIONS_ORDER = 1.0
"""Power p for neighbouring sections."""
SECTIONS_NODES = 4
"""Velocity nodes per length a for neighbouring sections: a lower power has finer waves."""
PLANE_SCALE = 0.08
"""Length a for a section in a volume, as a fraction of the extent of the part of the volume around it (its two longest
sides)."""
PLANE_ORDER = 2.0
"""Power p for a section in a volume."""
PLANE_NODES = 2
"""Velocity nodes per length a for a section in a volume."""
PLANE_DEVIATION = 0.015
"""Prior standard deviation of a displacement for a section in a volume, as a fraction of that extent. It is not adapted, for it
would buy displacements across the section that only fit noise. Set on two sections of one brain."""
PLANE_ACROSS = 0.2
"""Standard deviation of a displacement across the section, over that along it. Set on two sections of one brain."""

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
