"""The page of a saved result drawn again: of a run with its recorded inputs, of a map saved from Python with given ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .. import gate, plugins
from ..data import Image, PointSet
from ..io import outputs
from ..remote.address import locate
from ..result import Result
from . import results
from .words import Places


def page_path(folder: Path) -> Path:
    """Where the page of a saved result lies: in the folder of a run, beside a map that was saved alone."""
    run = run_of(folder)
    if run is not None:
        return run / outputs.REPORT
    return folder.with_name(folder.name.removesuffix(".ome.zarr") + "." + outputs.REPORT)


def run_of(folder: Path) -> Path | None:
    """The run's folder that ``folder`` is, or whose ``transform.ome.zarr`` it is; None where it is a map saved alone."""
    if outputs.is_output(folder):
        return folder
    inside = folder.name == outputs.TRANSFORM and outputs.is_output(folder.parent)
    return folder.parent if inside else None


def write(result: Result, path: Path | None, fixed: Any, moving: Any) -> Path:
    """What `Result.report` does: returns the file that was written."""
    saved = result.folder
    if path is None and saved is None:
        raise ValueError("wanted a path for the page of a result that was never saved, got none; name a file (.html)")
    target = page_path(saved) if path is None and saved is not None else Path(str(path))
    sides, run = _sides(saved, fixed, moving)
    places = Places.of(target if saved is None else run_of(saved) or saved, run)
    with outputs.staged(target, overwrite=True) as aside:
        results.write(result, sides[0], sides[1], aside, places)
    return target


def viewer(result: Result, fixed: Any, moving: Any, size: int) -> Any:
    """What `Result.viewer` does: returns the widget."""
    try:
        from . import notebook
    except ImportError as error:
        raise ImportError(
            f"wanted the extra 'notebook' for the viewer, got {error}; pip install 'regframe[notebook]'"
        ) from error
    sides, _ = _sides(result.folder, fixed, moving)
    return notebook.viewer(result, sides[0], sides[1], size)


def sides(result: Result, fixed: Any, moving: Any) -> tuple[Image | PointSet, Image | PointSet]:
    """Both sides, opened where they are not given, as the run recorded them; ValueError where nothing says what a side was."""
    found, _ = _sides(result.folder, fixed, moving)
    return found[0], found[1]


def _sides(saved: Path | None, fixed: Any, moving: Any) -> tuple[list[Image | PointSet], dict[str, dict[str, Any]]]:
    """Both sides, opened where they are not given, and how; ValueError where nothing says what a side was."""
    run = {side: dict(how) for side, how in recorded(saved).items()}
    sides: list[Image | PointSet] = []
    for side, given in (("fixed", fixed), ("moving", moving)):
        if isinstance(given, (Image, PointSet)):
            sides.append(given)
            run.pop(side, None)
            continue
        how = run.setdefault(side, {})
        if given is not None:
            how["path"] = os.fspath(given)
        if not how.get("path"):
            raise ValueError(
                f"wanted the {side} data to draw, which nothing records; pass {side}=, an image, points or a path"
            )
        source = locate(how["path"])
        sides.append(plugins.open(source, how.get("adapter"), **(how.get("options") or {})))
    return sides, run


def recorded(folder: Path | None) -> dict[str, dict[str, Any]]:
    """How the sides of a saved run were opened: ``path``, ``adapter`` and ``options`` by side; empty where nothing records it."""
    run = None if folder is None else run_of(folder)
    if run is None or not (run / outputs.CONFIG).is_file():
        return {}
    written = gate.read_yaml(run / outputs.CONFIG)
    sides = written.get("run") if isinstance(written, dict) else None
    if not isinstance(sides, dict):
        return {}
    return {side: sides[side] for side in ("fixed", "moving") if isinstance(sides.get(side), dict)}
