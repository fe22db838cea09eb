"""Two made folders of Visium for the page on neighbours: the tissue of the demo's picture, the second turned, bent, paler."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Picture

from ..data import Grid, Image
from ..maps.resample import resample
from . import demo
from .lessons import turned
from .tables import table

PIXEL = 8.0
"""Micrometres per pixel of the pictures ``tissue_hires_image.png``: a capture area of 6.5 mm has 800 of them."""
HIRES = 0.25
"""Pixels of those pictures along one of the full image, which is not there."""
CORNER = (0.5 / HIRES - 0.5) * PIXEL * HIRES
"""Micrometres from the middle of the full image's first pixel, from where spots are counted, to that of the picture's."""
PITCH = 100.0
"""Micrometres between neighbouring spots of Visium, as its maker states."""
PAPER = 243.0
"""Grey of the slide where there is no tissue."""
NAMES = ("visium_a", "visium_b")
Positions = NDArray[np.float64]


def write(folder: Path, pair: demo.Pair) -> list[str]:
    """Write ``visium_a`` and ``visium_b`` and where the spots of each truly lie, in µm; returns their names.

    ``visium_b_points.csv`` holds, row by row, the positions on b of what ``visium_a_points.csv`` shows on a.
    """
    pixels = np.ascontiguousarray(pair.moving.numpy())
    tissue = Image.from_array(pixels, spacing=PIXEL, unit="um")
    way = turned(tissue.grid, -17, (160.0, -240.0), seed=9)
    carried = resample(tissue, way, tissue.grid, PAPER).data.numpy()  # [C, H, W]
    noise = np.random.default_rng(41).normal(0, 3, carried.shape)
    paler = np.clip(0.85 * carried + 0.15 * PAPER + noise, 0, 255).astype(np.uint8)
    spots = _spots(tissue.grid)
    for name, picture in zip(NAMES, (pixels, np.moveaxis(paler, 0, -1)), strict=True):
        _folder(folder / name, np.ascontiguousarray(picture), spots)
    on_a = torch.from_numpy(np.stack([row[1] for row in spots]))[40::90]
    on_b = way.points(on_a)
    kept = tissue.grid.contains(on_b)
    for name, positions in zip(NAMES, (on_a[kept], on_b[kept]), strict=True):
        rows = [(k, f"{y:.2f}", f"{x:.2f}") for k, (y, x) in enumerate((positions + CORNER).tolist())]
        table(folder / f"{name}_points.csv", ("id", "y_um", "x_um"), rows)
    return [*NAMES, *(f"{name}_points.csv" for name in NAMES)]


def _spots(grid: Grid) -> list[tuple[tuple[int, int], Positions]]:
    """Array (row, column) and position (y, x) in µm of every spot that lies on the picture."""
    height, width = (n * PIXEL for n in grid.shape)
    found = []
    for row in range(int((height - PITCH) / (PITCH * np.sqrt(3) / 2))):
        for column in range(row % 2, int(2 * (width - PITCH) / PITCH), 2):
            position = np.array([PITCH / 2 + row * PITCH * np.sqrt(3) / 2, PITCH / 2 + column * PITCH / 2])
            found.append(((row, column), position))
    return found


def _folder(folder: Path, picture: NDArray[np.uint8], spots: list[tuple[tuple[int, int], Positions]]) -> None:
    """One section as Space Ranger leaves it: picture, spots in pixels of the full image, scale factors."""
    spatial = folder / "spatial"
    spatial.mkdir(parents=True, exist_ok=True)
    Picture.fromarray(picture).save(spatial / "tissue_hires_image.png")
    full = PIXEL * HIRES
    rows: list[tuple[Any, ...]] = []
    for (row, column), position in spots:
        y, x = (position / PIXEL).round().astype(int).clip(0, np.array(picture.shape[:2]) - 1)
        dark = 255 - float(picture[max(y - 3, 0) : y + 4, max(x - 3, 0) : x + 4].mean())
        at = [f"{(value + CORNER) / full:.2f}" for value in position]
        rows.append((f"r{row:03}c{column:03}-1", int(dark > 40), row, column, *at))
    header = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")
    table(spatial / "tissue_positions.csv", header, rows)
    factors = {"tissue_hires_scalef": HIRES, "spot_diameter_fullres": 65 / full}
    (spatial / "scalefactors_json.json").write_text(json.dumps(factors) + "\n", encoding="utf-8")
