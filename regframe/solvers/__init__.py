"""The solvers, one file or folder per kind of pair: ``images``, ``section`` (in a volume), ``points``, ``mixed`` (points, image).

``raster`` holds what all solvers that compare images share; ``preparation`` finds background, padding, printed marks and ink,
``unseen`` what holds no data; ``recipes`` states, for each kind of pair, how its fit differs from the default; ``far`` brings
data near their origin.
"""

from __future__ import annotations

from ..contracts import Solver
from .images import Images
from .mixed.solver import Mixed
from .points.solver import Points
from .section import Section

BUILT_IN: tuple[type[Solver], ...] = (Images, Section, Points, Mixed)
"""The solver classes of regframe; a new solver is entered here and nowhere else. Of equally confident solvers the first one is
used."""
