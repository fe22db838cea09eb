"""The solvers, one file or folder per kind of pair: ``images``, ``section`` (in a volume), ``points``, ``mixed`` (points, image).

``raster`` holds what all solvers that compare images share; ``preparation`` finds background, padding, printed marks and ink,
``strokes`` lines that were drawn over a picture, ``counts`` pictures that hold few things a pixel, ``unseen`` what holds no
data, ``extent`` how far what a picture shows reaches; ``plain`` looks first, with numpy alone; ``recipes`` states, for each
kind of pair, how its fit differs from the default; ``far`` brings data near their origin; ``samples`` are small pairs whose
maps are known; ``cellwise`` settles densities of the same cells on the cells themselves.
"""

from __future__ import annotations

from typing import Any

from ..hookspecs import hookimpl


@hookimpl
def regframe_solvers() -> list[type[Any]]:
    """The solvers of regframe; a new one is entered here and nowhere else. They are imported when they are asked for."""
    from .images import Images
    from .mixed.solver import Mixed
    from .points.solver import Points
    from .section import Section

    return [Images, Section, Points, Mixed]
