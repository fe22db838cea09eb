"""NanoString (Bruker) CosMx: flat files whose positions are in pixels of the slide, and a picture per field of view.

Layout: "flat files" of the public data (2022) and of AtoMx 1.3 and later: ``S0_metadata_file.csv``, ``S0_tx_file.csv``,
``S0_fov_positions_file.csv``, gzipped or not, ``_`` or ``-`` before the last part. The newer positions have columns in mm
beside those in pixels, from which the pixel size is measured.
"""

from __future__ import annotations

import fnmatch
import itertools
import re
import statistics
from typing import ClassVar

import regframe

from .folder import Folder
from .layouts import PIXEL, Choice, Found, Layout, Table, chosen_one
from .tables import unpacked

MICRONS_PER_PIXEL = 0.12028
"""Pixel size of the instrument, µm: NanoString's SMI documents (0.120280945). Taken where the folder holds no length."""
FIRST_CAMERA = ((5472.0, 3648.0), 0.18)
"""Pixels (x, y) of a field of view of the first public data (lung, 2022), and their size in µm by its readme."""
_ALIKE = 0.01
"""Relative difference within which a step between fields of view is that of a camera."""
_FILE = re.compile(
    r"^(?P<sample>.*?)[_-](?P<kind>metadata_file|tx_file|fov_positions_file|exprMat_file)\.(csv|csv\.gz|parquet)$"
)
_PLACES = ("", "flatFiles", "Flatfiles_RNA")
"""Folders that hold the flat files, and folders of folders that do."""


class CosMx(Layout):
    """A slide of a CosMx run."""

    name: ClassVar[str] = "cosmx"
    signs: ClassVar[str] = "SAMPLE_metadata_file.csv and SAMPLE_fov_positions_file.csv"

    def recognises(self, folder: Folder) -> float:
        """By the flat files."""
        kinds = {kind for files in _flat(folder).values() for kind in files}
        return 0.9 if len(kinds) > 1 else 0.6 if kinds else 0.0

    def find(self, folder: Folder, choice: Choice) -> Found:
        """Tables and pixel size."""
        samples = _flat(folder)
        names = sorted(samples)
        if not names:
            raise ValueError(
                f"wanted {self.signs} in {str(folder.root)!r}, got neither; name the folder of the flat files"
            )
        name = chosen_one(names, choice.region, f"the CosMx folder {str(folder.root)!r}")
        files = samples[name]
        pixel, note = _pixel(folder, files.get("fov_positions_file"), choice.spacing)
        tables = {}
        for use, kind, columns in (
            ("cells", "metadata_file", ("CenterX_global_px", "CenterY_global_px")),
            ("transcripts", "tx_file", ("x_global_px", "y_global_px")),
        ):
            if kind in files:
                tables[use] = Table(folder.root / files[kind], columns, "px", pixel)
        missing = {
            "cells": f"no {name}_metadata_file.csv; export the flat files anew",
            "transcripts": f"no {name}_tx_file.csv; export the flat files anew",
            "image": "a picture per field of view and none of the whole; stitch them and open the mosaic, or take use=cells",
        }
        upright = "y of its slide frame points up, its pictures' y down: a picture may come out mirrored"
        return Found("CosMx", "", tables, {}, missing, (note, upright))


def _flat(folder: Folder) -> dict[str, dict[str, str]]:
    """The flat files by sample and kind, of the first place that has any."""
    for place in _PLACES:
        below = [f"{place}/{n}" for n in _names(folder, place)] if place else []
        for under in (place, *below):
            out: dict[str, dict[str, str]] = {}
            for name in folder.files("*_file.*", under):
                match = _FILE.match(name.rpartition("/")[2])
                if match is not None:
                    out.setdefault(match["sample"], {}).setdefault(match["kind"], name)
            if out:
                return out
    return {}


def _names(folder: Folder, place: str) -> list[str]:
    return [name.rpartition("/")[2] for name in folder.folders("*", place) if not fnmatch.fnmatchcase(name, ".*")]


def _pixel(folder: Folder, file: str | None, stated: float | None) -> tuple[float, str]:
    """Micrometres per pixel, and where that is from; ValueError where the folder shows that it is another camera's."""
    columns = {} if file is None else _numbers(folder, file)
    measured = _measured(columns)
    if measured is not None:
        if stated is not None and abs(stated / measured - 1) > _ALIKE:
            raise ValueError(
                f"wanted the {measured:.5g} µm per pixel that mm and pixels in {file} give, got spacing={stated:g}; leave one out"
            )
        return measured, f"{measured:.6g} µm per pixel, measured from mm and pixels in {file}"
    if stated is not None:
        return stated, f"{stated:g} µm per pixel, as stated"
    (width, height), size = FIRST_CAMERA
    steps = [_step(columns.get(axis, [])) for axis in ("x_global_px", "y_global_px")]
    if any(s is not None and abs(s / n - 1) < _ALIKE for s, n in zip(steps, (width, height), strict=True)):
        raise ValueError(
            f"wanted the pixel size of {str(folder.root)!r}, whose fields of view are as wide as those of the first camera, got "
            f"none; state it with spacing={size}"
        )
    return MICRONS_PER_PIXEL, f"{MICRONS_PER_PIXEL} µm per pixel, the instrument's; spacing= states another"


def _numbers(folder: Folder, file: str) -> dict[str, list[float]]:
    """The position columns of the table of fields of view, by lower-case name; empty where it cannot be read."""
    path = folder.path(file)
    if path is None or path.suffix == ".parquet":
        return {}
    with unpacked(path):
        table = regframe.read_table(path)
    wanted = {n: n.lower() for n in table.names if re.fullmatch(r"(?i)[xy]_(global_)?(px|mm)", n)}
    if not wanted:
        return {}
    numbers = table.numbers(list(wanted)).T.tolist()
    return dict(zip(wanted.values(), numbers, strict=True))


def _measured(columns: dict[str, list[float]]) -> float | None:
    """µm per pixel from the extent of the fields of view in mm and in pixels; None where it is not to be had."""
    found = []
    for axis in "xy":
        px = next((columns[n] for n in (f"{axis}_global_px", f"{axis}_px") if n in columns), [])
        mm = next((columns[n] for n in (f"{axis}_global_mm", f"{axis}_mm") if n in columns), [])
        if len(px) > 1 and len(mm) == len(px) and max(px) > min(px) and max(mm) > min(mm):
            found.append(1000 * (max(mm) - min(mm)) / (max(px) - min(px)))
    if not found or not all(PIXEL[0] <= value <= PIXEL[1] for value in found) or max(found) > (1 + _ALIKE) * min(found):
        return None
    return sum(found) / len(found)


def _step(values: list[float]) -> float | None:
    """The usual distance of neighbouring fields of view along one axis, px."""
    places = sorted(set(values))
    steps = [b - a for a, b in itertools.pairwise(places) if b - a > 1]
    return statistics.median(steps) if steps else None
