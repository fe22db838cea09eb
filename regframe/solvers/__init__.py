"""One file or folder per kind of pair: ``images``, ``section`` (in a volume), ``points``, ``mixed`` (points and an image).

``raster`` is what all that compare images share, ``preparation`` finds background, padding, printed marks and ink, ``recipes``
say how the fit of a kind of pair differs from that of others.
"""

from __future__ import annotations

from ..contracts import Solver
from .images import Images
from .mixed.solver import Mixed
from .points.solver import Points
from .section import Section

BUILT_IN: tuple[type[Solver], ...] = (Images, Section, Points, Mixed)
"""The solvers that come with regframe: the one place where a new one is entered."""
