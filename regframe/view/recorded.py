"""The two sides of a result, opened for looking: as its run recorded them, at every resolution, where the result puts them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..data import Grid, Image, PointSet, Pyramid
from ..remote.address import locate
from ..report.again import recorded
from ..result import Result
from ..slides.levels import pyramid_of
from .source import Side, Source

Given = str | Path | None


def open_sides(
    result: Result, fixed: Given = None, moving: Given = None
) -> tuple[Pyramid | PointSet, Pyramid | PointSet]:
    """The fixed and the moving data of a saved result, lazy, each in the space and unit of its side.

    Args:
        result: as `regframe.load` returns it.
        fixed: where the fixed file lies now; where the run recorded it if None.
        moving: where the moving file lies now, likewise.

    Returns:
        For each side an image at every resolution, put on the side's canvas, or its points. A small image without coarser
        resolutions gets some, in memory; a volume has the one that was registered.

    Raises:
        ValueError: nothing records what a side was (a map that was saved alone), or the file does not fit the result.
        FileNotFoundError: a file is not where it was; pass its path.
    """
    run = recorded(result.folder)
    found = []
    for side, given, canvas in (("fixed", fixed, result.fixed_grid), ("moving", moving, result.moving_grid)):
        how: dict[str, Any] = dict(run.get(side) or {})
        if given is not None:
            how["path"] = os.fspath(given)
        if not how.get("path"):
            raise ValueError(f"wanted the {side} file of this result, which nothing records; pass {side}=, its path")
        place = locate(how["path"])
        if not place.exists():
            raise FileNotFoundError(
                f"wanted the {side} file at {how['path']}, which does not exist; pass {side}=, where it lies now"
            )
        found.append(_opened(Source(place, how.get("adapter"), how.get("options") or {}), canvas))
    return found[0], found[1]


def _opened(source: Source, canvas: Grid) -> Pyramid | PointSet:
    if canvas.ndim == 2:
        pyramid = Side.of(source, canvas).pyramid
        if pyramid is not None:
            return pyramid
    data = source.data()
    return pyramid_of(data) if isinstance(data, Image) else data
