"""The challenge ANHIR (ISBI 2019, https://anhir.grand-challenge.org): its layout, its submission, its metrics.

A *cover* table (``dataset_medium.csv`` …) names pairs: source and target image, and the landmarks of both, relative to the
folders of images and of landmarks. The source is registered to the target, and its landmarks are carried there. The metrics are
those of the challenge's evaluator (BIRL, ``bm_ANHIR/evaluate_submission.py``), written anew. The command is `__main__`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .. import entries
from ..entries import Array, Fit, Pair

COVER = ("Target image", "Source image", "Target landmarks", "Source landmarks")
"""Columns that say what a pair is; the evaluator joins a submission to its own table by them."""
WARPED = "Warped source landmarks"
TIME = "Execution time [minutes]"
DIAGONAL = "Image diagonal [pixels]"
STATUS = "status"
RESULTS = "registration-results.csv"
COMPUTER = "computer-performances.json"
AXES = ("X", "Y")
SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".ome.tif", ".svs", ".ndpi", ".mrxs")


@dataclass(frozen=True)
class Case:
    """One row of the cover.

    Args:
        number: the row's own number, in the column without a name.
        pair: its images and the source landmarks.
        row: the row as it stands there.
        truth: the target landmarks; None where the challenge keeps them back.
    """

    number: int
    pair: Pair
    row: Mapping[str, str]
    truth: Path | None

    @property
    def tissue(self) -> str:
        """The kind of tissue: the first part of the path of its landmarks, without the number of the block."""
        return re.sub(r"_\d+$", "", self.row["Target landmarks"].split("/")[0])


def cover_of(folder: Path) -> Path:
    """The cover table in ``folder`` or in its folder ``images``, or ``folder`` itself where it is a table.

    Raises:
        ValueError: where there is none, or more than one.
    """
    if folder.is_file():
        return folder
    found = [table for place in (folder, folder / "images") for table in sorted(place.glob("dataset*.csv"))]
    if len(found) != 1:
        names = ", ".join(str(path) for path in found) or "none"
        raise ValueError(
            f"wanted one table dataset*.csv in {folder}, got {names}; name the table instead of the folder"
        )
    return found[0]


def read_cases(folder: Path, landmarks: Sequence[Path] = ()) -> list[Case]:
    """The pairs of a folder in the challenge's layout, in the cover's order.

    Args:
        folder: holds the cover, images and landmarks: in one tree, or in folders of their own (``images``, ``landmarks``); or the
            cover.
        landmarks: further folders of landmarks, looked at first.

    Raises:
        ValueError: for a folder without a cover, or a cover without the columns of the challenge.
    """
    cover = cover_of(folder)
    root = cover.parent.parent if cover.parent.name == "images" else cover.parent
    roots = [cover.parent, root, *sorted(place for place in root.iterdir() if place.is_dir())]
    cases = []
    for number, row in enumerate(entries.read_table(cover, COVER)):
        number = int(row[""]) if row.get("", "").isdigit() else number
        fixed, moving = (_image(row[f"{side} image"], roots) for side in ("Target", "Source"))
        source = _found(row["Source landmarks"], [*landmarks, *roots]) or cover.parent / row["Source landmarks"]
        source_image, target_image = Path(row["Source image"]), Path(row["Target image"])
        name = f"{source_image.parts[0]} {source_image.stem} to {target_image.stem}"
        pair = Pair(entries.named(number, name), fixed, moving, source, AXES)
        cases.append(Case(number, pair, row, _found(row["Target landmarks"], [*landmarks, *roots])))
    return cases


def _found(name: str, roots: Iterable[Path]) -> Path | None:
    return next((place / name for place in roots if name and (place / name).is_file()), None)


def _image(name: str, roots: Sequence[Path]) -> Path:
    """Where an image is, whatever its format; where it would be in the first folder, if there is none."""
    stem = name.removesuffix(Path(name).suffix)
    names = [name, *(stem + suffix for suffix in SUFFIXES)]
    return next((found for each in names if (found := _found(each, roots))), roots[0] / name)


# the submission


def write_submission(
    cases: Sequence[Case], found: Mapping[str, Fit], folder: Path, computer: Path | None = None
) -> Path:
    """Write the folder that the challenge takes, and its zip beside it.

    `RESULTS` is the cover with warped landmarks and minutes filled in, blank where a pair has no map (the evaluator then takes
    the landmarks as they lie); landmarks are ``,X,Y`` in pixels of the target image, numbered from 1.

    Args:
        cases: all pairs of the cover.
        found: what came of them, by the pair's id.
        folder: is replaced.
        computer: the file `COMPUTER` that the challenge's own ``bm_comp_perform.py`` wrote on this machine, to be taken along.
    """
    shutil.rmtree(folder, ignore_errors=True)
    head = [*COVER, *(name for name in cases[0].row if name not in (*COVER, "", WARPED, TIME)), WARPED, TIME]
    rows = []
    for case in cases:
        fit, place = found.get(case.pair.id, Fit("not run")), ""
        if fit.points is not None:
            place = f"landmarks/{case.pair.id}.csv"
            numbered = [(n, *(f"{value:.4f}" for value in point)) for n, point in enumerate(fit.points, start=1)]
            entries.write_table(folder / place, ["", *AXES], numbered)
        filled = {**case.row, WARPED: place, TIME: f"{fit.seconds / 60:.6f}" if place else ""}
        rows.append([case.number, *(filled.get(name, "") for name in head)])
    if computer is not None:
        shutil.copyfile(computer, folder / COMPUTER)
    entries.write_table(folder / RESULTS, ["", *head], rows)
    return Path(shutil.make_archive(str(folder), "zip", folder))


# the metrics


@dataclass(frozen=True)
class Score:
    """How far the landmarks of one pair lie from where people put them, over the target image's diagonal (rTRE).

    ``robustness`` is the share of landmarks that came nearer; ``before`` the median rTRE of doing nothing; ``complete`` whether
    every landmark was carried, without which the pair counts as not registered.
    """

    median: float
    mean: float
    largest: float
    robustness: float
    before: float
    complete: bool


def score(source: Array, target: Array, warped: Array | None, diagonal: float) -> Score:
    """The challenge's figures of one pair.

    Args:
        source: landmarks ``[N, 2]`` in the source image, in pixels.
        target: those in the target image ``[M, 2]``, in the same order; of unequal numbers the first ones count.
        warped: ``source`` carried to the target image; None where the pair has no map.
        diagonal: of the target image, in pixels.

    Raises:
        ValueError: for no landmarks, or no diagonal.
    """
    common = min(len(source), len(target))
    if not common or not diagonal > 0:
        raise ValueError(
            f"wanted landmarks on both sides and a diagonal, got {len(source)}, {len(target)} and {diagonal}; correct the tables"
        )
    before = np.linalg.norm(source[:common] - target[:common], axis=1) / diagonal
    complete = warped is not None and len(warped) == len(source)
    after = np.linalg.norm(warped[:common] - target[:common], axis=1) / diagonal if complete else before  # type: ignore[index]
    return Score(
        median=float(np.median(after)),
        mean=float(after.mean()),
        largest=float(after.max()),
        robustness=float((after < before).mean()),
        before=float(np.median(before)),
        complete=complete,
    )


def scored(case: Case, fit: Fit) -> Score | None:
    """The figures of a pair; None where its target landmarks are kept back, or its source ones are absent."""
    if case.truth is None or case.pair.points is None or not case.pair.points.is_file():
        return None
    source, target = entries.read_points(case.pair.points, AXES), entries.read_points(case.truth, AXES)
    return score(source, target, fit.points, _diagonal(case))


def _diagonal(case: Case) -> float:
    stated = case.row.get(DIAGONAL, "").strip()
    if stated:
        return float(stated)
    with Image.open(case.pair.fixed) as image:
        return float(np.hypot(*image.size))


def aggregates(scores: Mapping[str, Score], cases: Sequence[Case], found: Mapping[str, Fit]) -> dict[str, float]:
    """The challenge's figures over pairs, by its own names, also by status and by tissue.

    ``Average-Median-rTRE`` is AMrTRE, ``Median-Median-rTRE`` MMrTRE; those ending in ``-Robust`` leave out pairs of which half
    the landmarks or more came no nearer.
    """
    judged = [case for case in cases if case.pair.id in scores]
    out: dict[str, float] = {"Average-Robustness": _over(np.mean, [scores[c.pair.id].robustness for c in judged])}
    figures = {"Median-rTRE": "median", "Max-rTRE": "largest", "Average-rTRE": "mean", "Robustness": "robustness"}
    statistics = {"Average": np.mean, "Median": np.median}
    parts = {f"_{case.row.get(STATUS)}": case.row.get(STATUS) for case in judged if case.row.get(STATUS)}
    tissues = {f"_tissue_{case.tissue}": case.tissue for case in judged}
    for name, figure in figures.items():
        for word, over in statistics.items():

            def of(some: Iterable[Case], figure: str = figure, over: object = over) -> float:
                return _over(over, [getattr(scores[case.pair.id], figure) for case in some])

            if name != "Robustness":
                out[f"{word}-{name}"] = of(judged)
                out[f"{word}-{name}-Robust"] = of(c for c in judged if scores[c.pair.id].robustness > 0.5)
            for end, status in parts.items():
                out[f"{word}-{name}{end}"] = of(c for c in judged if c.row.get(STATUS) == status)
            for end, tissue in tissues.items():
                out[f"{word}-{name}{end}"] = of(c for c in judged if c.tissue == tissue)
    minutes = [found[c.pair.id].seconds / 60 for c in judged if found[c.pair.id].points is not None]
    out |= {f"{word}-Time": _over(over, minutes) for word, over in statistics.items()}
    return out


def _over(statistic: object, values: Sequence[float]) -> float:
    return float(statistic(values)) if values and callable(statistic) else float("nan")
