"""The starts: where a fit begins, either searched for or given by the user.

``identity`` leaves both sides as they lie, ``landmarks`` makes a start of paired points, ``matrix`` takes one as numbers,
``stated`` in words (``rotate=90,mirror``): ``init`` takes these by name. ``images``, ``volumes``, ``section`` and ``points``
search for one where ``init`` is ``auto``. ``views`` prepares the images that the search compares, ``evidence`` compares them
at many poses, ``weighing`` weighs the best of these by their evened fine structure, ``priors`` tells which poses are likely
beforehand; ``pose`` defines what searches of images return; ``given`` reads the argument ``init``; ``scale`` reads what the
units tell about the scale between the two sides; ``disagreement`` finds the pairs of landmarks that are wrong, ``exchanged``
tells whether their sides are the wrong way round.
"""

from __future__ import annotations

from typing import Any

from ..hookspecs import hookimpl


@hookimpl
def regframe_starts() -> list[type[Any]]:
    """The starts of regframe that ``init`` takes by name; a new one is entered here and nowhere else."""
    from .identity import Identity
    from .landmarks import PairedLandmarks
    from .matrix import Matrix
    from .stated import Stated

    return [Identity, PairedLandmarks, Matrix, Stated]
