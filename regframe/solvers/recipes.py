"""The recipes: for each kind of pair of images, how its fit differs from the default one of `fit.pyramid`.

"Shared structure" is the squared correlation, 0 … 1, of the fine structure of both sides (`fit.likeness.shared_structure`).
"""

from __future__ import annotations

from ..data import PointSet
from ..fit.fluid import Following
from ..fit.prior import MARGIN_3D, Prior
from ..fit.pyramid import Cuts, Recipe
from .mixed.drawing import PER_POINT

MODELS = ("rigid", "similarity", "affine", "lddmm")
"""Models of a map that the engine can fit to any kind of pair, each a special case of the next."""
SURE = 0.9
"""How sure a solver of regframe is of a pair of its kind, 0 … 1: less than 1, so that a stranger's solver of a more special kind
of images or points comes first."""
ONE_SECTION = (0.5, 0.9)
"""Two values of the shared structure, 0 … 1, of two stained sections. Below the first they are two cuts of the tissue and an
observation counts least (`fit.pyramid.LEAST_EVIDENCE`); above the second they are one section imaged twice and it counts in
full; between the two its weight rises linearly. Two images of one section share 0.9, neighbouring sections under 0.1."""
SECTIONS = 0.15
"""Shared structure, 0 … 1, under which two stained sections are treated as neighbouring cuts, whose pieces of tissue move
independently. This and the next four constants were chosen on the landmarks of the lung sections and the layers of the Visium
sections in benchmarks/ACCURACY.md, so expect less of a gain elsewhere."""
NOTHING_SHARED = 0.01
"""Shared structure, 0 … 1, on the finest level, under which that level is left out of the fit of neighbouring cuts."""
SECTIONS_SCALE = 0.06
"""Length a of the Sobolev operator for neighbouring cuts, as a fraction of the moving canvas' extent: shorter than for two
images of one section (`fit.prior.SCALE`), because pieces of tissue move independently."""
SECTIONS_ORDER = 1.0
"""Power p of the Sobolev operator for neighbouring cuts, without unit: lower, and so rougher, than for two images of one
section."""
SECTIONS_NODES = 4
"""Velocity nodes per length a for neighbouring cuts: more than otherwise, because a velocity of lower power p has finer waves."""
FOLLOWED: tuple[tuple[str, dict[str, int]], ...] = (("lncc", {"radius": 8}),)
"""Metrics and their options by which the bend between neighbouring cuts follows."""
PLANE_SCALE = 0.08
"""Length a of the Sobolev operator for a section in a volume, as a fraction of the extent of the slab around the section
(geometric mean of the slab's two longest sides)."""
PLANE_ORDER = 2.0
"""Power p of the Sobolev operator for a section in a volume, without unit: the value used for two pictures."""
PLANE_NODES = 2
"""Velocity nodes per length a for a section in a volume: the value used for two volumes, where finer nodes cost time and memory
with the third power."""
PLANE_DEVIATION = 0.015
"""Prior standard deviation of a displacement for a section in a volume, as a fraction of the slab's extent (see `PLANE_SCALE`).
It is not adapted to the data: a wider prior would allow displacements across the section, which only fit noise. Set on two
sections of one brain."""
PLANE_ACROSS = 0.2
"""Prior standard deviation of a displacement across the section's plane, over that along the plane. Set on two sections of one
brain."""

STAINED = Recipe(
    counted=ONE_SECTION,
    cuts=Cuts(
        SECTIONS,
        Prior(SECTIONS_SCALE, SECTIONS_ORDER, SECTIONS_NODES, beyond=0.5),
        NOTHING_SHARED,
        following=Following(),
    ),
)
"""Two stained sections in transmitted light; whether they are one section or two cuts is decided from their shared structure."""
COUNTED = Recipe(sparse=True)
"""Two densities of counted things, cells say."""
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
"""A section in a volume: the search has found its plane, so only the bend is fitted."""


def drawn(points: PointSet) -> Recipe:
    """Points drawn as an image: each point counts as few observations, however many pixels it covers."""
    return Recipe(most=PER_POINT * len(points))
