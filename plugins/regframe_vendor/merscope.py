"""Vizgen MERSCOPE: a region's tables in µm, a mosaic per stain and plane, and the matrix from µm to mosaic pixels.

Layout: Vizgen's "MERSCOPE data output" and the formats of the Vizgen Post-processing Tool, whose tables may bear a prefix
(``cellpose_cell_metadata.csv``). Ids are in ``EntityID``, or in a first column without a name as older software wrote them.
"""

from __future__ import annotations

import math
import re
from typing import ClassVar

from .folder import Folder
from .layouts import PIXEL, Choice, Found, Layout, Picture, Table, chosen_one, parquet_first

_MOSAIC = re.compile(r"^mosaic_(?P<stain>.+)_z(?P<z>\d+)\.tiff?$", re.IGNORECASE)
_MATRICES = ("images/micron_to_mosaic_pixel_transform.csv", "images/microns_to_mosaic_pixel_transform.csv",
             "micron_to_mosaic_pixel_transform.csv")  # fmt: skip
"""The matrix, in both spellings and where people put it."""
_OBLIQUE = 1e-6
"""Largest entry off the diagonal of that matrix, over those on it, that is rounding."""
MIDDLE = 3
"""The plane that is read of the seven that an instrument images by default, 0 … 6."""
STAIN = "DAPI"
"""The stain that is read where the user names none: nuclei, which other stains show too."""


class Merscope(Layout):
    """A region of a MERSCOPE run."""

    name: ClassVar[str] = "merscope"
    signs: ClassVar[str] = "cell_metadata.csv, detected_transcripts.csv or images/mosaic_STAIN_zN.tif"

    def recognises(self, folder: Folder) -> float:
        """By the tables and the matrix; a run with a folder per region by these."""
        signs = ("detected_transcripts.csv", "cell_metadata.csv", "cell_by_gene.csv", *_MATRICES)
        found = sum((folder.root / name).is_file() for name in signs)
        if found:
            return 0.9 if found > 1 else 0.6
        regions = folder.folders("region_*")
        return max((self.recognises(folder.below(name)) for name in regions[:3]), default=0.0)

    def find(self, folder: Folder, choice: Choice) -> Found:
        """Tables, mosaics and where these lie in µm."""
        notes: tuple[str, ...] = ()
        regions = folder.folders("region_*")
        if regions:
            name = chosen_one(regions, choice.region, f"the MERSCOPE run {str(folder.root)!r}")
            notes = (f"its region {name} is read" + (f" of {', '.join(regions)}" if len(regions) > 1 else ""),)
            folder = folder.below(name)
        tables = {}
        cells = folder.first(*parquet_first("cell_metadata")) or next(iter(folder.files("*_cell_metadata.csv")), None)
        if cells is not None:
            tables["cells"] = Table(folder.root / cells, ("center_x", "center_y"))
        transcripts = folder.first(*parquet_first("detected_transcripts"))
        if transcripts is not None:
            tables["transcripts"] = Table(folder.root / transcripts, ("global_x", "global_y"))
        images, why, said = _mosaics(folder, choice)
        missing = {
            "cells": "no cell_metadata.csv; segment the region, or take use=transcripts",
            "transcripts": "no detected_transcripts.csv; copy the folder whole",
            "image": why,
        }
        return Found("MERSCOPE", "", tables, images, missing, (*notes, *said))


def _mosaics(folder: Folder, choice: Choice) -> tuple[dict[str, Picture], str, tuple[str, ...]]:
    """The mosaics of the plane that is wanted, by stain, DAPI first; why there is none; and what was chosen."""
    found: dict[int, dict[str, str]] = {}
    for name in folder.files("mosaic_*.[tT][iI][fF]*", "images"):
        match = _MOSAIC.match(name.rpartition("/")[2])
        if match is not None:
            found.setdefault(int(match["z"]), {})[match["stain"]] = name
    if not found:
        return {}, "no images/mosaic_STAIN_zN.tif; copy the folder whole", ()
    planes = sorted(found)
    z = (MIDDLE if MIDDLE in found else planes[len(planes) // 2]) if choice.z is None else choice.z
    if z not in found:
        return {}, f"no mosaic of plane {z}; choose z out of {', '.join(map(str, planes))}", ()
    matrix = folder.first(*_MATRICES)
    if matrix is None:
        return (
            {},
            "its mosaics, but no images/micron_to_mosaic_pixel_transform.csv to place them; copy the folder whole",
            (),
        )
    spacing, origin = _placed(folder, matrix)
    stains = sorted(found[z], key=lambda stain: (stain.upper() != STAIN, stain))
    said = f"its pictures are of plane {z}, of {spacing[1]:.6g} µm per pixel, placed by {matrix}"
    others = ", ".join(str(n) for n in planes if n != z)
    pictures = {s: Picture(folder.root / found[z][s], spacing, origin=origin) for s in stains}
    return pictures, "", (f"{said}; z={others} takes others" if others else said,)


def _placed(folder: Folder, name: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """µm per pixel and position of the first pixel, (y, x), from the matrix µm → pixel, which is in x, y."""
    where = str(folder.root / name)
    rows = [re.split(r"[\s,;]+", line.strip()) for line in folder.text(name).splitlines() if line.strip()]
    try:
        matrix = [[float(cell) for cell in row] for row in rows]
    except ValueError:
        matrix = []
    if [len(row) for row in matrix] != [3, 3, 3] or not all(math.isfinite(v) for row in matrix for v in row):
        raise ValueError(f"wanted 3 × 3 numbers in {where!r}, got something else; copy the maker's file anew")
    (sx, b, tx), (c, sy, ty), last = matrix
    scale = max(abs(sx), abs(sy))
    straight = abs(b) <= _OBLIQUE * scale and abs(c) <= _OBLIQUE * scale and last == [0.0, 0.0, 1.0]
    if not straight or not all(PIXEL[0] <= 1 / s <= PIXEL[1] if s > 0 else False for s in (sx, sy)):
        raise ValueError(
            f"wanted a matrix that scales µm to pixels and shifts them in {where!r}, got {matrix}; "
            "open the mosaic by itself and state its spacing"
        )
    return (1 / sy, 1 / sx), (-ty / sy, -tx / sx)
