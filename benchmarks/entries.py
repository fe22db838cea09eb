"""What the harnesses of challenges (`benchmarks.anhir`, `benchmarks.learn2reg` …) share: pairs run as a batch, and what it left.

A pair is one row of a manifest for ``regframe batch``: a process of its own, a folder that is whole or not there, not fitted
again when the command is given again, and a sentence where it failed. Points are carried as its ``apply_points``.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RUNS = "runs"
"""Folder of the batch below the output folder."""
MANIFEST = "jobs.csv"
"""Table of the batch, beside it."""


@dataclass(frozen=True)
class Pair:
    """Two data sets of a challenge and the points of the moving one that it wants in the fixed one.

    Args:
        id: name of its folder in `RUNS`; see `named`.
        fixed: image that stays where it is: the challenge's target.
        moving: image that is brought onto it: the challenge's source.
        points: positions in ``moving``, as ``regframe apply points`` reads them; None where the challenge wants the map itself.
        axes: names of its columns of x and of y; None for a file that is no CSV table, whose positions are left to the harness.
        cells: more columns of the manifest, such as ``fixed_mpp``.
    """

    id: str
    fixed: Path
    moving: Path
    points: Path | None = None
    axes: tuple[str, str] | None = None
    cells: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Fit:
    """What came of a pair.

    Args:
        state: the verdict, ``failed`` or ``not run``.
        points: the pair's points ``[N, 2]`` (x, y) carried to the fixed image, in the unit of their table; None without a map,
            and where the pair names no table.
        seconds: wall time of the whole process: reading, fitting, carrying, report.
        reasons: of the verdict, or why there is no map.
        folder: holds the map, as `regframe.load` takes it, and ``applied/``; None without a map.
    """

    state: str
    points: Array | None = None
    seconds: float = float("nan")
    reasons: tuple[str, ...] = ()
    folder: Path | None = None


def named(number: int, text: str) -> str:
    """A name that a batch takes as an id: a number, so that it is unique, and what can be kept of ``text``."""
    kept = re.sub(r"[^\w.+=@-]+", "_", text, flags=re.ASCII).strip("_.-")
    return f"{number:03d}_{kept[:90]}".rstrip("_.- ")


def run(pairs: Sequence[Pair], out: Path, arguments: Sequence[str] = ()) -> int:
    """Run every pair that ``out`` does not hold yet.

    Args:
        pairs: what to register.
        out: output folder; `MANIFEST` and `RUNS` in it are written.
        arguments: options of ``regframe batch``, such as ``--workers 4`` or ``--set transform=affine``.

    Returns:
        Its exit code: 0, 3 where a pair has no map or one that is not trusted, 130 or 143 after an interrupt.

    Raises:
        ValueError: for options that ``regframe batch`` does not take, with its own sentence.
    """
    import click

    from regframe.cli import main

    manifest = out / MANIFEST
    write_table(manifest, *_manifest(pairs))
    try:
        return int(
            main(["batch", str(manifest), "-o", str(out / RUNS), *arguments], "regframe", standalone_mode=False) or 0
        )
    except click.ClickException as error:
        raise ValueError(error.format_message()) from error


def _manifest(pairs: Sequence[Pair]) -> tuple[list[str], list[list[str]]]:
    more = sorted({name for pair in pairs for name in pair.cells})
    head = ["id", "fixed", "moving", "apply_points", *more]
    rows = []
    for pair in pairs:
        places = ["" if place is None else str(place.absolute()) for place in (pair.fixed, pair.moving, pair.points)]
        rows.append([pair.id, *places, *(pair.cells.get(name, "") for name in more)])
    return head, rows


def fits(pairs: Iterable[Pair], out: Path) -> dict[str, Fit]:
    """What ``out`` holds of every pair, by its id."""
    return {pair.id: _fit(pair, out / RUNS / pair.id) for pair in pairs}


def _fit(pair: Pair, folder: Path) -> Fit:
    try:
        record = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Fit("not run")
    reasons, seconds = tuple(record.get("reasons") or ()), float(record["seconds"])
    carried = None if pair.points is None else folder / "applied" / pair.points.name
    if record["status"] != "done" or not (carried is None or carried.is_file()):
        return Fit("failed", None, seconds, reasons)
    points = None if carried is None or pair.axes is None else read_points(carried, pair.axes)
    if points is not None and not np.isfinite(points).all():
        return Fit("failed", None, seconds, (*reasons, "positions that are no numbers"))
    return Fit(record["verdict"], points, seconds, reasons, folder)


def read_points(path: Path, axes: tuple[str, str]) -> Array:
    """The positions ``[N, 2]`` of a table, by the names of its columns of x and of y.

    Raises:
        ValueError: for a table without these columns, or a cell that is no number.
    """
    rows = read_table(path, axes)
    try:
        points = [[float(row[name]) for name in axes] for row in rows]
    except ValueError as error:
        raise ValueError(
            f"wanted numbers in the columns {' and '.join(axes)} of {path}, got {error}; correct the table"
        ) from error
    return np.array(points, dtype=np.float64).reshape(-1, 2)


def read_table(path: Path, wanted: Iterable[str]) -> list[dict[str, str]]:
    """The rows of a CSV table by the names of its columns, which are stripped of blanks.

    Raises:
        ValueError: for a table that lacks one of the columns ``wanted``.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        head = [name.strip() for name in next(reader, [])]
        rows = [dict(zip(head, cells, strict=False)) for cells in reader if any(cell.strip() for cell in cells)]
    absent = [name for name in wanted if name not in head]
    if absent:
        raise ValueError(f"wanted the columns {', '.join(absent)} in {path}, got {', '.join(head)}; name another table")
    return rows


def write_table(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV table aside and rename it, so that it is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)
    aside.replace(path)


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """Write a JSON object aside and rename it; what is no number becomes null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in values.items()}
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    aside.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    aside.replace(path)


def say_failures(pairs: Iterable[Pair], found: Mapping[str, Fit]) -> int:
    """Print a line for every pair without a map; returns their number."""
    lost = [pair.id for pair in pairs if found[pair.id].folder is None]
    for name in lost:
        print(f"  {name}: {found[name].state}{': ' * bool(found[name].reasons)}{'; '.join(found[name].reasons)}")
    return len(lost)
