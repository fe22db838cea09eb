"""The challenge ACROBAT (2022, 2023, https://acrobat.grand-challenge.org): its layout, its submission, its metrics.

A table of points (``acrobat_validation_points_public_1_of_1.csv``) names pairs of slides, IHC and H&E of one tumour, and points
of the IHC slide in µm from its corner; wanted are their places in the H&E slide, in µm. The metrics are those of the challenge's
``evaluation.py``, written anew. The command is `__main__`.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import entries
from ..entries import Array, Fit, Pair

WANTED = ("anon_id", "anon_filename_he", "anon_filename_ihc", "point_id", "ihc_x", "ihc_y", "mpp_ihc_10X", "mpp_he_10X")
"""Columns of the table of points; it also has ``ihc_antibody``, and ``he_x``, ``he_y`` to be filled in."""
FILLED = ("he_x", "he_y")
RESULTS = "registered_landmarks.csv"
SUFFIXES = (".tif", ".tiff", ".ome.tif", ".ome.tiff", ".ndpi", ".svs", ".ome.zarr", ".zarr", ".png", ".jpg")
"""How the slides may be stored: the table names ``.ndpi``, the published ones are ``.tif`` or ``.tiff``."""
AXES = ("x_um", "y_um")
ANNOTATOR = re.compile(r"he_(\d+)_x")

Row = dict[str, str]
Key = tuple[str, str]
"""A point: its ``anon_id`` and ``point_id``."""


@dataclass(frozen=True)
class Case:
    """A pair of slides: ``anon_id``, the images with the points to carry, and the rows of the table that these are."""

    anon_id: str
    pair: Pair
    rows: Sequence[Row]


def table_of(folder: Path) -> Path:
    """The table of points in ``folder`` or below, or ``folder`` itself where it is a table.

    Raises:
        ValueError: where there is none, or more than one.
    """
    if folder.is_file():
        return folder
    tables = (path for path in sorted(folder.rglob("*.csv")) if path.name != RESULTS)
    found = [path for path in tables if set(WANTED) <= _columns(path)]
    if len(found) != 1:
        names = ", ".join(str(path) for path in found) or "none"
        raise ValueError(
            f"wanted one table in {folder} with the columns {', '.join(WANTED)}, got {names}; "
            "name the table instead of the folder"
        )
    return found[0]


def _columns(path: Path) -> set[str]:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return {name.strip().strip('"') for name in file.readline().split(",")}


def read_cases(folder: Path, out: Path, slides: Path | None = None) -> list[Case]:
    """The pairs of a folder in the challenge's layout; their points are written to ``out/points``.

    Args:
        folder: holds the table and, at any depth, the slides; or the table.
        out: output folder of the harness.
        slides: folder of the slides where they lie elsewhere.

    Raises:
        ValueError: for a folder without the table, a cell that is no number, or a point that is there twice.
    """
    table = table_of(folder)
    stored = _slides(slides or (folder if folder.is_dir() else folder.parent))
    grouped: dict[tuple[str, ...], list[Row]] = {}
    keys: set[Key] = set()
    for row in entries.read_table(table, WANTED):
        key = (row["anon_id"], row["point_id"])
        if key in keys:
            raise ValueError(
                f"wanted every point once in {table}, got anon_id {key[0]}, point_id {key[1]} twice; remove one"
            )
        keys.add(key)
        grouped.setdefault((row["anon_id"], row["anon_filename_he"], row["anon_filename_ihc"]), []).append(row)
    return [_case(n, names, rows, stored, table, out) for n, (names, rows) in enumerate(grouped.items())]


def _slides(folder: Path) -> dict[str, Path]:
    """Every slide below a folder, by its name without suffix; of several formats the first of `SUFFIXES`."""
    found: dict[str, tuple[int, Path]] = {}
    for at, below, files in os.walk(folder):
        images = {name for name in below if name.endswith(".zarr")}
        below[:] = sorted(set(below) - images)
        for name in sorted([*files, *images]):
            rank = next((k for k, suffix in enumerate(SUFFIXES) if name.lower().endswith(suffix)), None)
            if rank is not None:
                stem = name[: -len(SUFFIXES[rank])].removesuffix(".ome")
                if stem not in found or rank < found[stem][0]:
                    found[stem] = (rank, Path(at, name))
    return {stem: path for stem, (_, path) in found.items()}


def _case(
    number: int, names: tuple[str, ...], rows: list[Row], stored: Mapping[str, Path], table: Path, out: Path
) -> Case:
    anon_id, he, ihc = names
    id_ = entries.named(number, f"{Path(ihc).stem} to {Path(he).stem}")
    points = out / "points" / f"{id_}.csv"
    entries.write_table(points, ["point_id", *AXES], [(r["point_id"], r["ihc_x"], r["ihc_y"]) for r in rows])
    entries.read_points(points, AXES)  # refuses what is no number
    fixed, moving = (stored.get(Path(name).stem, table.parent / name) for name in (he, ihc))
    # the points' µm are the table's pixel size times pixels, whatever a file declares
    cells = {"fixed_mpp": rows[0]["mpp_he_10X"], "moving_mpp": rows[0]["mpp_ihc_10X"]}
    cells |= {"fixed_set": "override=true", "moving_set": "override=true"}
    return Case(anon_id, Pair(id_, fixed, moving, points, AXES, cells), rows)


# the submission


def write_submission(table: Path, cases: Sequence[Case], found: Mapping[str, Fit], folder: Path) -> Path:
    """Write the table that the challenge takes, alone in its folder: the given one with ``he_x`` and ``he_y`` filled in, in µm.

    They stay blank where a pair has no map: the evaluator then takes the points as they lie in the IHC slide.
    """
    placed = {
        key: point for case in cases for key, point in _placed(case, found.get(case.pair.id, Fit("not run"))).items()
    }
    rows = entries.read_table(table, WANTED)
    head = list(dict.fromkeys([*rows[0], *FILLED]))
    filled = []
    for row in rows:
        point = placed.get((row["anon_id"], row["point_id"]))
        values = ("", "") if point is None else tuple(f"{value:.4f}" for value in point)
        filled.append([{**row, **dict(zip(FILLED, values, strict=True))}.get(name, "") for name in head])
    shutil.rmtree(folder, ignore_errors=True)
    entries.write_table(folder / RESULTS, head, filled)
    return folder / RESULTS


def _placed(case: Case, fit: Fit) -> dict[Key, Array]:
    if fit.points is None or len(fit.points) != len(case.rows):
        return {}
    return {(row["anon_id"], row["point_id"]): point for row, point in zip(case.rows, fit.points, strict=True)}


# the metrics


@dataclass(frozen=True)
class Truth:
    """Where people put one point in the H&E slide, in µm.

    Args:
        points: ``[annotators, 2]`` (x, y).
        largest: size of the slide ``[2]``, inf where it is not said.
    """

    points: Array
    largest: Array


def read_truth(path: Path) -> dict[Key, Truth]:
    """The places of points by annotators: columns ``he_1_x``, ``he_1_y``, ``he_2_x`` … or ``he_x``, ``he_y`` of one.

    ``max_he_x`` and ``max_he_y`` are the size of the slide. Points that lack a place by one of them are left out.

    Raises:
        ValueError: for a table without such columns, or a cell that is no number.
    """
    rows = entries.read_table(path, ("anon_id", "point_id"))
    names = [name for name in (rows[0] if rows else {}) if ANNOTATOR.fullmatch(name) or name == "he_x"]
    if not names:
        raise ValueError(
            f"wanted places in the columns he_1_x, he_1_y … or he_x, he_y of {path}, got none; name another table"
        )
    out = {}
    for row in rows:
        cells = [(row.get(x, ""), row.get(x[:-1] + "y", "")) for x in names]
        if all(x.strip() and y.strip() for x, y in cells):
            size = [float(row.get(f"max_he_{axis}") or "inf") for axis in "xy"]
            out[row["anon_id"], row["point_id"]] = Truth(np.array(cells, dtype=np.float64), np.array(size))
    return out


@dataclass(frozen=True)
class Score:
    """The error of one case in µm: 90th percentile and mean over its points, and the 90th percentile of doing nothing."""

    p90: float
    mean: float
    before: float
    n: int


def scores(cases: Sequence[Case], found: Mapping[str, Fit], truth: Mapping[Key, Truth]) -> dict[str, Score]:
    """The challenge's figures of every case with known places, by ``anon_id``.

    The error of a point is its mean distance to where the annotators put it. Points without a map count where they lie in the IHC
    slide, and none outside the H&E slide.
    """
    after: dict[str, list[float]] = {}
    before: dict[str, list[float]] = {}
    for case in cases:
        placed = _placed(case, found.get(case.pair.id, Fit("not run")))
        for row in case.rows:
            key = (row["anon_id"], row["point_id"])
            if key in truth:
                lying = np.array([float(row["ihc_x"]), float(row["ihc_y"])])
                before.setdefault(case.anon_id, []).append(_error(lying, truth[key]))
                after.setdefault(case.anon_id, []).append(_error(placed.get(key, lying), truth[key]))
    return {
        name: Score(
            p90=float(np.percentile(errors, 90)),
            mean=float(np.mean(errors)),
            before=float(np.percentile(before[name], 90)),
            n=len(errors),
        )
        for name, errors in after.items()
    }


def _error(point: Array, truth: Truth) -> float:
    inside = np.clip(point, 0.0, truth.largest)
    return float(np.linalg.norm(truth.points - inside, axis=1).mean())


def aggregates(found: Mapping[str, Score]) -> dict[str, float]:
    """The challenge's figures over cases, by its own names; 2022 was ranked by ``medianp90s``, 2023 by ``meanp90s``."""
    p90 = [one.p90 for one in found.values()]
    if not p90:
        return {}
    figures = {"medianp90s": float(np.median(p90)), "meanp90s": float(np.mean(p90)), "variancep90s": float(np.var(p90))}
    figures["meanofmeans"] = float(np.mean([one.mean for one in found.values()]))
    return figures | {f"p90-{name}": one.p90 for name, one in found.items()}
