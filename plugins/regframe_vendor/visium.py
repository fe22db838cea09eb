"""10x Genomics Visium and Visium HD: spots or bins in pixels of the full image, scale factors, and two reduced pictures.

Layout: "Space Ranger spatial outputs". The positions are ``tissue_positions_list.csv`` without a header up to Space Ranger 1.3,
``tissue_positions.csv`` with one from 2.0 on, ``tissue_positions.parquet`` for Visium HD, whose bins have a folder each,
``binned_outputs/square_008um/spatial``. Only HD states micrometres per pixel; they follow from the array elsewhere.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .folder import Folder, Record
from .layouts import PIXEL, Choice, Found, Layout, Picture, Table
from .tables import COUNTS, read

POSITIONS = ("tissue_positions.parquet", "tissue_positions.csv", "tissue_positions_list.csv")
"""Tables of spots or bins, the newest first."""
MATRICES = ("filtered_feature_bc_matrix.h5", "raw_feature_bc_matrix.h5")
"""Files of the counts, by barcode."""
SCALES = "scalefactors_json.json"
"""The file of the scale factors."""
PITCH = 100.0
"""Distance of neighbouring spots of a Visium array, µm, centre to centre (10x Genomics), of 6.5 and 11 mm capture areas."""
SPOT = 65.0
"""Diameter, µm, of the spot whose pixels ``spot_diameter_fullres`` counts (10x Genomics, "Space Ranger spatial outputs"):
a little more than the 55 µm that are printed."""
BIN = 8
"""Side of the bins that are read where the user names none, µm: the size that 10x Genomics recommends to begin with. Bins of
2 µm are sixteen times as many."""
STRAIGHT = 0.01
"""Largest distance of spots from the array that they are laid on, in pitches, root mean square: a tenth of a spot's radius,
far more than the rounding to whole pixels."""
DIFFERENT = 0.02
"""Relative difference of two figures for the pixel size above which both are told."""
_BINS = re.compile(r"^square_(\d{3})um$")
_NAMES = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")
_PICTURES = {"hires": "tissue_hires_image.png", "lowres": "tissue_lowres_image.png"}


class Visium(Layout):
    """A capture area of a Visium or a Visium HD slide."""

    name: ClassVar[str] = "visium"
    signs: ClassVar[str] = "spatial/tissue_positions.csv (or _list.csv, .parquet) or binned_outputs/square_008um"

    def recognises(self, folder: Folder) -> float:
        """By the folder ``spatial`` or ``binned_outputs``, in ``outs`` or right there."""
        return 0.9 if _root(folder) is not None else 0.0

    def find(self, folder: Folder, choice: Choice) -> Found:
        """Spots or bins, pictures and pixel size."""
        root = _root(folder)
        if root is None:
            raise ValueError(
                f"wanted {self.signs} in {str(folder.root)!r}, got neither; name the folder that holds them"
            )
        spatial, vendor, notes = _chosen(root, choice)
        place = f"{spatial}/" if spatial else ""
        scales = root.json(root.needed((place + SCALES,), "the scale of the pictures", "copy the folder whole"))
        positions = root.first(*(place + name for name in POSITIONS))
        table = None if positions is None else root.root / positions
        pixel, note = _pixel(scales, table, choice.spacing)
        tables = {}
        if table is not None:
            bare = table.name == POSITIONS[-1] and not _headed(table)
            columns = None if bare else (_NAMES[5], _NAMES[4])
            tables["cells"] = Table(table, columns, "px", pixel, COUNTS, _matrix(root, spatial))
        images = {}
        for name, file in _PICTURES.items():
            path = root.path(place + file) or root.path(f"spatial/{file}")
            scale = scales.number(f"tissue_{name}_scalef", 1e-6, 1.0, "a scale factor")
            if path is not None and scale is not None:
                spacing, origin = (
                    pixel / scale,
                    (0.5 / scale - 0.5) * pixel,
                )  # a reduced pixel's centre is that of its patch
                images[name] = Picture(path, (spacing, spacing), origin=(origin, origin))
        missing = {
            "cells": f"none of {', '.join(POSITIONS)} in {place or './'}; copy the folder whole",
            "transcripts": "no transcripts, which this assay does not locate; take use=cells",
            "image": f"no {' or '.join(_PICTURES.values())} in {place or './'} with its scale factor; copy the folder whole",
        }
        if vendor == "Visium" and tables and images:
            note += "; spots show little more than an outline: use=image registers the tissue, and its map moves them"
        return Found(vendor, "", tables, images, missing, (*notes, note))


def _root(folder: Folder) -> Folder | None:
    """The folder that holds ``spatial`` or ``binned_outputs``, or is ``spatial`` itself."""
    for place in (folder, *([folder.below("outs")] if folder.inside("outs") else [])):
        if place.folders("square_*um", "binned_outputs") or any(
            (place.root / sub / name).is_file() for sub in ("spatial", ".") for name in (*POSITIONS, SCALES)
        ):
            return place
    return None


def _chosen(root: Folder, choice: Choice) -> tuple[str, str, tuple[str, ...]]:
    """The folder of the scale factors, the name of the assay, and what else there is."""
    bins = {}
    for name in root.folders("square_*um", "binned_outputs"):
        match = _BINS.match(name.rpartition("/")[2])
        if match is not None:
            bins[int(match[1])] = name
    if not bins:
        if choice.bin is not None:
            raise ValueError(
                f"wanted bins of {choice.bin} µm in {str(root.root)!r}, got a folder without binned_outputs; leave bin out"
            )
        spatial = "spatial" if (root.root / "spatial").is_dir() else ""
        hd = root.first(f"{spatial}/{SCALES}" if spatial else SCALES)
        return spatial, "Visium HD" if hd and "bin_size_um" in root.json(hd).fields else "Visium", ()
    size = choice.bin if choice.bin is not None else BIN if BIN in bins else min(bins, key=lambda n: abs(n - BIN))
    if size not in bins:
        raise ValueError(
            f"wanted bins of {', '.join(map(str, sorted(bins)))} µm, which {str(root.root)!r} holds, got bin={size}; choose one"
        )
    others = [str(n) for n in sorted(bins) if n != size]
    notes = [f"its bins of {size} µm are read" + (f"; bin={' or '.join(others)} takes others" if others else "")]
    if root.folders("segmented_outputs"):
        notes.append("its segmented_outputs (cells as polygons) are not read")
    return f"{bins[size]}/spatial", "Visium HD", tuple(notes)


def _matrix(root: Folder, spatial: str) -> Path | None:
    """The matrix of counts beside the folder of the scale factors, of what lies on tissue or of all."""
    place = spatial.rpartition("/")[0]
    name = root.first(*(f"{place}/{file}".lstrip("/") for file in MATRICES))
    return None if name is None else root.root / name


def _headed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(7).lower() == b"barcode"


def _pixel(scales: Record, table: Path | None, stated: float | None) -> tuple[float, str]:
    """Micrometres per pixel of the full image, and where that is from."""
    declared = scales.number("microns_per_pixel", *PIXEL, "micrometres per pixel")
    if declared is not None:
        side = scales.number("bin_size_um", *PIXEL, "the side of a bin, µm")
        across = scales.number("spot_diameter_fullres", 1e-3, 1e6, "the pixels across a bin")
        if side and across and abs(side / across / declared - 1) > DIFFERENT:
            raise ValueError(
                f"wanted one pixel size in {scales.where!r}, got {declared:g} µm as microns_per_pixel and {side / across:g} µm "
                "from the bins; copy the maker's file anew"
            )
        if stated is not None and abs(stated / declared - 1) > DIFFERENT:
            raise ValueError(
                f"wanted the {declared:g} µm per pixel of {scales.where!r}, got spacing={stated:g}; leave it out"
            )
        return declared, f"{declared:.6g} µm per pixel of the full image, as {SCALES} states"
    if stated is not None:
        return stated, f"{stated:g} µm per pixel of the full image, as stated"
    measured = None if table is None else _lattice(table)
    across = scales.number("spot_diameter_fullres", 1e-3, 1e6, "the pixels across a spot")
    if measured is None and across is None:
        raise ValueError(
            f"wanted an array of spots or 'spot_diameter_fullres' in {scales.where!r} for the pixel size, got neither; state "
            "it with spacing=UM"
        )
    if measured is None:
        assert across is not None
        return SPOT / across, f"{SPOT / across:.6g} µm per pixel of the full image, from spots {SPOT:g} µm wide"
    also = ""
    if across is not None and abs(SPOT / across / measured - 1) > DIFFERENT:
        also = f" (spot_diameter_fullres would give {SPOT / across:.4g})"
    return measured, f"{measured:.6g} µm per pixel of the full image, from spots {PITCH:g} µm apart{also}"


def _lattice(path: Path) -> float | None:
    """µm per pixel from the affine map of the array (column, row) to pixels; None where the spots lie on no such array.

    Neighbours in a row of the array differ by 2 in ``array_col``, rows are half a pitch · √3 apart.
    """
    points = read(path, None, "px")
    if len(points) < 3 or not {"array_row", "array_col"} <= set(points.table):
        return None
    try:
        row, column = (np.asarray(points.table[n]).astype(np.float64) for n in ("array_row", "array_col"))
    except ValueError:
        return None
    ideal: NDArray[np.float64] = np.stack([column / 2, row * np.sqrt(3) / 2, np.ones(len(row))], axis=1)  # pitches
    pixels = points.coords.numpy()  # (y, x)
    solution, _, rank, _ = np.linalg.lstsq(ideal, pixels, rcond=None)
    if rank < 3:
        return None
    pitch = float(np.sqrt(abs(np.linalg.det(solution[:2]))))
    off = float(np.sqrt(np.mean(np.sum((ideal @ solution - pixels) ** 2, axis=1))))
    if not np.isfinite(pitch) or pitch <= 0 or off > max(STRAIGHT * pitch, 1.0):
        return None
    size = PITCH / pitch
    return size if PIXEL[0] <= size <= PIXEL[1] else None
