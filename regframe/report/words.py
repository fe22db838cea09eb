"""What a report says in words: the expected error, what to do next, and the commands with the user's own paths."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..result import Result


@dataclass(frozen=True)
class Places:
    """Where a run lies and what it was made of, as a user would type it.

    Args:
        out: folder of the run.
        fixed: the fixed file.
        moving: the moving file.
    """

    out: str = "OUT"
    fixed: str = "fixed"
    moving: str = "moving.tif"

    @classmethod
    def of(cls, out: Path, run: dict[str, Any]) -> Places:
        """The places of a run whose inputs are recorded in ``run``; stand-ins for those that are not."""
        found = {
            side: typed(str(run[side]["path"]))
            for side in ("fixed", "moving")
            if isinstance(run.get(side), dict) and run[side].get("path")
        }
        return cls(out=typed(str(out)), **found)


def typed(path: str) -> str:
    """A path as it would be typed in the present folder: relative where it lies below it."""
    try:
        return str(Path(path).relative_to(Path.cwd())) if Path(path).is_absolute() else path
    except (ValueError, OSError):
        return path


def quoted(path: Path) -> str:
    """A path as it would be typed into Python in the present folder."""
    return json.dumps(typed(str(path)), ensure_ascii=False)


def small(value: float | None) -> str:
    """The size of an error: two digits, none below a thousandth of its unit; ``–`` where it is not known."""
    if value is None or not math.isfinite(value):
        return "–"
    return "under 0.001" if value < 1e-3 else f"{value:.2g}"


def expected(result: Result) -> str:
    """The expected error in a sentence; ``""`` where it is not known, or the map has nothing that speaks for it."""
    radius = result.expected_error
    if radius is None or result.verdict not in ("pass", "warn"):
        return ""
    unit, pixel = result.fixed_grid.unit, result.fixed_grid.pixel
    in_px = "" if unit == "px" else f" ({radius / pixel:.2g} px)"
    said = f"{radius:.2g} {unit}{in_px}: nine positions in ten are expected to lie within it, at a typical place"
    return said if result.verdict == "pass" else f"{said}, if the map is right, which is not confirmed"


def remarks(result: Result) -> list[str]:
    """The reasons for the verdict, without what to do about them where `next_steps` says that."""
    told = {f"{f['sentence']}; {f['remedy']}": str(f["sentence"]) for f in _findings(result) if f.get("remedy")}
    return [told.get(reason, reason) for reason in result.reasons]


def next_steps(result: Result, places: Places) -> list[str]:
    """What may help, the most serious first; nothing where the map is confirmed and nothing is remarked."""
    remedies = dict.fromkeys(str(f["remedy"]) for f in _findings(result) if f.get("remedy"))
    steps = [f"{remedy[0].upper()}{remedy[1:].rstrip('.')}." for remedy in remedies]
    if result.verdict == "pass":
        return steps
    steps.append("Look at the places of least agreement below: does the same tissue lie there on both sides?")
    steps.append(
        "If you can see what belongs together and the map missed it, mark pairs of places in "
        f"`regframe view {shlex.quote(places.out)}` and align from there."
    )
    if result.verdict == "fail":
        steps.append(
            "If you cannot, the two sides may not show the same tissue; no setting makes a map of an unrelated pair right."
        )
    return steps


def _findings(result: Result) -> list[dict[str, Any]]:
    """The findings of a result as plain data, as far as they are whole; results of other programs have none."""
    found = result.metrics.get("findings")
    whole = found if isinstance(found, list) else []
    return [f for f in whole if isinstance(f, dict) and isinstance(f.get("sentence"), str)]


def python_lines(places: Places) -> str:
    """Python that loads and uses the map."""
    return (
        "import regframe as rf\n\n"
        f"result = rf.load({places.out!r})\n"
        f"aligned = result.to_fixed(rf.open({places.moving!r}))  # images are resampled, points are moved\n"
        "drawn = result.to_moving(annotations)  # and back"
    )


def shell_lines(places: Places) -> str:
    """Commands that use the map."""
    out, moving = shlex.quote(places.out), shlex.quote(places.moving)
    return (
        f"regframe view {out}\n"
        f"regframe apply image {out} {moving} -o warped.tif --to fixed\n"
        f"regframe apply points {out} cells.csv -o moved.csv --to fixed\n"
        f"regframe evaluate {out} --fixed-landmarks f.csv --moving-landmarks m.csv"
    )
