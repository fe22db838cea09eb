"""What the argument ``init`` says where it may be a file: a saved result, or an affine map of another program, as a start."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .. import plugins, strangers
from ..contracts import Side
from ..data import Grid, Image, PointSet
from ..gate.meant import meant
from ..io.claims import heal
from ..io.inputs import note, steady
from ..maps import bends
from ..result import Result
from ..starts.stated import RUNNER_UP, said

WORDS = ("auto", RUNNER_UP, "rotate=90", "mirror", "scale=2")
"""The words that ``init`` takes beside the names of starts and of files, as a message lists them."""


def names_start(init: str) -> bool:
    """Whether a value of ``init`` names a start: no file, but ``auto``, a word that a plug-in provides, or FILE.py:CLASS.

    Raises ValueError for words such as ``rotate=left``.
    """
    if init == "auto" or Path(init).exists():
        return init == "auto"
    if strangers.in_file(init) or init == RUNNER_UP or said(init) is not None:
        return True
    return init.rpartition("/")[2] in {entry.name for entry in plugins.entries("start")}


def begun(init: Any, fixed: Image | PointSet, moving: Image | PointSet) -> tuple[Any, str]:
    """The argument ``init`` of `regframe.register` with a file replaced by the map in it, and a remark or ``""``.

    Args:
        init: what the user gave. A path, or text that names neither a start nor says one in words, is read.
        fixed: the fixed side.
        moving: the moving side.

    Raises:
        FileNotFoundError: for a path of nothing.
        ValueError: for a file that holds no affine map, or a word that is no start.
        ImportError: for a file whose reader is an extra.
    """
    if not isinstance(init, os.PathLike) and (not isinstance(init, str) or names_start(init)):
        return init, ""
    path = Path(init)
    note(path)
    if not path.is_file():
        return saved(path), ""
    found, remark = of_file(path, fixed, moving)
    return found, f"the start was read from {path.name}: {remark}" if remark else ""


def saved(path: Path) -> Result:
    """The result that was saved at ``path``.

    Raises FileNotFoundError for a path of nothing, and ValueError where it is one word, meant as the name of a start.
    """
    from ..io.store import load  # it loads zarr, which a fit does not need

    if not path.exists():
        heal(path)
    if not path.exists():
        names = ", ".join((*WORDS, *(entry.name for entry in plugins.entries("start"))))
        word = len(path.parts) == 1 and not path.suffix
        raise (ValueError if word else FileNotFoundError)(
            f"wanted the name of a start, got {str(path)!r}, which does not exist as a file or folder either; take one "
            f"of {names}, or name a saved result or the file of an affine map{meant(path, names.split(', '))}"
        )
    return steady(path, load)


def of_file(
    path: Path,
    fixed: Image | PointSet,
    moving: Image | PointSet,
    *,
    to: Side | None = None,
    unit: str | None = None,
) -> tuple[Result, str]:
    """The affine map of another program's file as a start, moving → fixed, and how a bare matrix was taken, or ``""``.

    Args:
        path: the file, of any format that `regframe.read_map` reads.
        fixed: the fixed side; where it was reduced when it was read, pixels count on its finest level.
        moving: the moving side, likewise.
        to: the side that the file's map takes positions to; where None, ``fixed`` for a bare matrix and ``moving`` for others.
        unit: length unit of the file's numbers, or ``px``; where None what the format declares.

    Raises:
        ValueError: for a file that holds no map, or one that bends.
        ImportError: for a file whose reader is an extra.
    """
    from . import exchange  # likewise

    try:
        chosen = exchange.format_of(path)
    except ValueError as error:
        raise ValueError(
            f"wanted a start in words (rotate=90, mirror, scale=2), a saved result or the file of an affine map, got "
            f"{path.name!r}, which is none of these"
        ) from error
    bare = chosen.default_unit is None and not chosen.in_pixels
    own: dict[str, Any] = {}
    grids: list[Grid] = []
    for side, data in (("fixed", fixed), ("moving", moving)):
        if not isinstance(data, Image):
            grids.append(Grid((1,) * data.ndim, unit=data.unit))
            continue
        grids.append(data.grid)
        if (chosen.in_pixels or (bare and unit == "px")) and data.grid.unit != "px":
            own[f"{side}_pixels"] = data.grid if data.reading is None else data.reading.full
    if bare and unit is None and any(grid.unit != "px" for grid in grids):
        raise ValueError(
            f"wanted the unit of the numbers in {path}, a bare matrix, got none; state it with --init-unit um (or px, pixels at "
            f"full resolution), in Python init=regframe.read_map({path.name!r}, fixed.grid, moving.grid, to=…, unit=…)"
        )
    result = exchange.read_map(
        path, grids[0], grids[1], chosen.name, to=to or ("fixed" if bare else "moving"), unit=unit, **own
    )
    if bends.split(result.transform)[1] is not None:
        raise ValueError(f"wanted an affine map to start from, got one that bends in {path}; import it instead")
    return result, str(result.metrics.get("imported", {}).get("said") or "")
