"""What was done to a map, as plain steps that can be written down, read again and repeated without a browser."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..correction.images import Looked
from ..data import Image, PointSet
from ..formats import exchange
from ..io.outputs import to_json
from ..io.tables import replace_file
from ..result import Result
from .bend import corrected, started
from .pairs import Pair, plain
from .worker import Ask, Touch, aligned, touched

STEPS = "steps.json"
"""Name, in the folder of a run, of the file that says how its map came about."""
_FORMAT = 1
"""Version of its layout."""
Step = dict[str, Any]
_MOST = 64 << 20
"""Largest file of steps that is read, in bytes."""


@dataclass(frozen=True)
class History:
    """How a map came about.

    Args:
        steps: what was done, in order.
        pairs: the landmarks as they were when it was saved, those that are off too.
    """

    steps: tuple[Step, ...]
    pairs: tuple[Pair, ...] = ()


def written(history: History) -> str:
    """A history as JSON."""
    return to_json({"format": _FORMAT, "steps": history.steps, "landmarks": plain(history.pairs)}, indent=1) + "\n"


def read(path: Path) -> History:
    """The history in a file; ValueError, in one sentence, for another file."""
    if path.stat().st_size > _MOST:
        raise ValueError(f"wanted the steps of a view in {path}, got a file of more than {_MOST >> 20} MiB")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"wanted the steps of a view in {path}, got no JSON") from error
    steps = found.get("steps") if isinstance(found, dict) else None
    if not isinstance(steps, list) or not all(isinstance(step, dict) and "do" in step for step in steps):
        raise ValueError(f"wanted the steps of a view in {path}, got another file")
    if found.get("format") != _FORMAT:
        raise ValueError(f"wanted steps of version {_FORMAT} in {path}, got {found.get('format')!r}; update regframe")
    pairs = found.get("landmarks", [])
    if not isinstance(pairs, list):
        raise ValueError(f"wanted a list of landmarks in {path}, got something else")
    return History(tuple(steps), tuple(map(Pair.of, pairs)))


def landmarks_of(result: Result, folder: Path) -> tuple[Pair, ...]:
    """The landmarks of a saved result: those of its history, else those that its fit began from; none where there are none.

    ValueError, in one sentence, for a history that cannot be read.
    """
    path = folder / STEPS
    if path.is_file():
        found = read(path).pairs
        if found:
            return found
    config = result.config
    begun = config.init_options if config.init == "landmarks" else {}
    sides = zip(begun.get("fixed", ()), begun.get("moving", ()), strict=False)
    return tuple(Pair(i, str(i), tuple(fixed), tuple(moving)) for i, (fixed, moving) in enumerate(sides, 1))


def opened(folder: Path) -> Step:
    """A map that was there."""
    return {"do": "open", "folder": str(folder)}


def placed(matrix: torch.Tensor) -> Step:
    """A start by hand."""
    return {"do": "place", "matrix": matrix.tolist()}


def fitted(ask: Ask) -> Step:
    """An alignment."""
    return {"do": "align", "config": ask.config, "pairs": ask.pairs, "matrix": ask.matrix}


def bent(pairs: Sequence[Pair], by_hand: bool) -> Step:
    """A correction by landmarks."""
    return {"do": "bend", "pairs": plain(pairs), "by_hand": by_hand}


def looked(pairs: Sequence[Pair], by_hand: bool) -> Step:
    """A correction by landmarks, and further by what the images say."""
    return {"do": "refit", "pairs": plain(pairs), "by_hand": by_hand}


def mended(rings: Sequence[Any], pairs: Sequence[Pair]) -> Step:
    """A correction in a region alone; its outlines and landmarks on the fixed side's canvas."""
    return {"do": "correct", "region": [list(map(list, ring)) for ring in rings], "pairs": plain(pairs)}


def repeated(
    steps: Sequence[Step], base: Result | None, data: tuple[Image | PointSet, Image | PointSet], start: Result
) -> Result:
    """The result of steps.

    Args:
        steps: what to do, in order.
        base: the map that the first step may open; None where there is none.
        data: both sides as they are registered.
        start: the two sides as they lie, whose canvases a start by hand takes.

    Raises ValueError, in one sentence, for steps that cannot be repeated on this pair.
    """
    found: Result | None = None
    images: Looked | None = None
    for step in steps:
        try:
            if step["do"] == "open":
                found = base
            elif step["do"] == "place":
                found = started(step["matrix"], start.fixed_grid, start.moving_grid)
            elif step["do"] == "align":
                pairs = step.get("pairs")
                found = aligned(
                    data, Ask(step["config"], None if pairs is None else (pairs[0], pairs[1]), step.get("matrix"))
                )
            elif step["do"] == "bend" and found is not None:
                found = corrected(found, [Pair.of(pair) for pair in step["pairs"]], bool(step["by_hand"]))
            elif step["do"] in ("refit", "correct") and found is not None:
                images = images or Looked.of(*data)
                touch = Touch(0, found, step["pairs"], bool(step.get("by_hand")), step.get("region"))
                found = touched(touch, images) or found
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"wanted whole steps to repeat, got one that lacks {error}") from error
    if found is None:
        raise ValueError("wanted steps that lead to a map of this pair, got none; view the folder that they begin with")
    return found


def kept_start(start: Result, path: Path) -> tuple[list[list[float]], list[str]]:
    """Write a start by hand beside the output, as ``regframe register --init`` reads it; its matrix as read, and the options."""
    units = [grid.unit for grid in (start.fixed_grid, start.moving_grid) if grid.unit != "px"]
    unit = units[0] if units else None
    exchange.write_map(start, path, "matrix", to="fixed", unit=unit, overwrite=True)
    found = exchange.read_map(path, start.fixed_grid, start.moving_grid, "matrix", to="fixed", unit=unit)
    (part,) = found.affine.parts()
    matrix: list[list[float]] = part.matrix.tolist()  # type: ignore[attr-defined]
    return matrix, ["--init", str(path), "--init-to", "fixed", *([] if unit is None else ["--init-unit", unit])]


def line(words: Sequence[object]) -> str:
    """A command as it is typed."""
    return " ".join(shlex.quote(str(word)) for word in words)


def option_words(side: str, adapter: str | None, options: Mapping[str, Any]) -> list[str]:
    """The options of a command line by which a side is opened as it was."""
    words = [] if adapter is None else [f"--{side}-adapter", adapter]
    for name, value in options.items():
        words += [f"--{side}-set", f"{name}={json.dumps(value, ensure_ascii=False)}"]
    return words


def keep(path: Path, text: str) -> None:
    """Write a small file aside, then give it its name."""
    replace_file(path, text.encode())
