"""Small inputs for the tutorials: a stained picture of scikit-image as fluorescence, cells, rounds and a piece, by known maps.

Positions of one lattice of the picture are written beside each of them, so that every tutorial can say how far off its map is.
"""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image as Picture
from scipy.ndimage import gaussian_filter

from ..data import Grid, Image
from ..maps.affine import Affine
from ..maps.base import Transform
from ..maps.resample import resample
from ..maps.sequence import Sequence
from . import demo
from .tables import table

Array = NDArray[Any]

MPP = 0.5
"""Micrometres per pixel of every picture here."""
SPACING = 60.0
"""Micrometres between the positions of which the truth is written."""
PIECE = (100, 110)
"""Pixels along y and x of the corner of the picture that ``piece.png`` shows, `LARGER` times as large."""
LARGER = 5
"""Pixels of ``piece.png`` along a pixel of the picture."""


def write(folder: Path, pair: demo.Pair) -> list[str]:
    """Write the inputs of the tutorials that are not there for other pages, and returns their names.

    ``stained.png`` is the picture; of NAME in ``fluorescence.ome.tif``, ``xenium_stained``, ``rounds/r2.ome.tif`` and
    ``piece.png`` the table ``NAME_points.csv`` holds where the positions of ``stained_points.csv`` truly lie.
    """
    whole = pair.moving
    stained = Image.from_array(whole.data.numpy(), "cyx", spacing=MPP, unit="um", name="stained")
    Picture.fromarray(np.ascontiguousarray(whole.numpy())).save(folder / "stained.png")
    blue, brown = _stains(whole.numpy())
    at = stained.grid.resampled(SPACING).coords().reshape(-1, 2)[1:-1]
    _points(folder, "stained", at)
    made = [
        *_fluorescence(folder, stained, blue, brown, at),
        *_cells(folder, stained, blue, at),
        *_rounds(folder, stained, blue, brown, at),
        *_piece(folder, stained, at),
        *_slides(folder, pair),
        *_section(folder),
    ]
    return ["stained.png", "stained_points.csv", *made]


def _stains(pixels: Array) -> tuple[Array, Array]:
    """How much of haematoxylin (nuclei) and of DAB each pixel ``[H, W]`` shows, 0 … 1."""
    from skimage.color import rgb2hed

    found = rgb2hed(pixels)
    blue, brown = (np.clip(found[..., k] / np.percentile(found[..., k], 99.5), 0, 1) for k in (0, 2))
    return blue.astype(np.float32), brown.astype(np.float32)


def turned(grid: Grid, degrees: float, shift: tuple[float, float], seed: int | None = None) -> Transform:
    """A turn about the middle of ``grid`` and a shift (y, x) in its unit; with a seed a bend of up to 10 pixels before them."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[:2, :2] = torch.tensor([[cos, -sin], [sin, cos]])
    center = torch.tensor(grid.center, dtype=torch.float64)
    matrix[:2, 2] = center - matrix[:2, :2] @ center + torch.tensor(shift, dtype=torch.float64)
    affine = Affine(matrix, grid.unit, grid.unit)
    return affine if seed is None else Sequence((demo.bending(grid, seed), affine))


def _carried(stained: Image, channels: list[Array], way: Transform, noise: int, canvas: Grid | None = None) -> Array:
    """Channels ``[C, H, W]`` of the picture, dark and noisy, as bytes, carried by ``way`` onto a canvas, its own where None."""
    generator = np.random.default_rng(noise)
    bright = np.stack([gaussian_filter(channel, 1) for channel in channels])
    image = Image.from_array(bright, "cyx", spacing=MPP, unit="um")
    data = resample(image, way, canvas or stained.grid, 0.0).data.numpy()
    return np.clip(220 * data + generator.normal(14, 4, data.shape), 0, 255).astype(np.uint8)


def _write_channels(path: Path, data: Array, names: list[str]) -> None:
    sides = {f"PhysicalSize{axis}": MPP for axis in "XY"} | {f"PhysicalSize{axis}Unit": "µm" for axis in "XY"}
    tifffile.imwrite(
        path, data, ome=True, photometric="minisblack", metadata={"axes": "CYX", "Channel": {"Name": names}, **sides}
    )


def _points(folder: Path, name: str, at: torch.Tensor) -> str:
    """Positions ``[N, 2]`` (y, x) in µm as a table with their numbers, so that two tables pair row by row."""
    rows = [(k, f"{y:.3f}", f"{x:.3f}") for k, (y, x) in enumerate(at.tolist())]
    table(folder / f"{name}_points.csv", ("id", "y_um", "x_um"), rows)
    return f"{name}_points.csv"


def _fluorescence(folder: Path, stained: Image, blue: Array, brown: Array, at: torch.Tensor) -> list[str]:
    """The picture as fluorescence: nuclei and a marker bright on dark, turned by 14° and bent."""
    way = turned(stained.grid, 14, (9.0, -12.0), seed=5)
    _write_channels(folder / "fluorescence.ome.tif", _carried(stained, [blue, brown], way, 1), ["DAPI", "marker"])
    return ["fluorescence.ome.tif", _points(folder, "fluorescence", way.points(at))]


def _cells(folder: Path, stained: Image, blue: Array, at: torch.Tensor) -> list[str]:
    """A Xenium folder of the picture turned by -20°: its image of nuclei, and its cells, half a micrometre off."""
    from skimage.feature import peak_local_max

    generator = np.random.default_rng(7)
    nuclei: Array = peak_local_max(  # type: ignore[no-untyped-call]
        gaussian_filter(blue, 2.5), min_distance=4, threshold_abs=0.2
    )
    way = turned(stained.grid, -20, (32.0, 24.0))
    seen = way.points(torch.from_numpy(nuclei * MPP)).numpy() + generator.normal(0, 0.5, nuclei.shape)
    outs, focus = folder / "xenium_stained", "morphology_focus/morphology_focus_0000.ome.tif"
    (outs / "morphology_focus").mkdir(parents=True, exist_ok=True)
    canvas = Grid((640, 640), (MPP, MPP), unit="um")
    _write_channels(outs / focus, _carried(stained, [blue], way, 2, canvas), ["DAPI"])
    rows = [(f"cell{k:05}-1", f"{x:.4f}", f"{y:.4f}", 100) for k, (y, x) in enumerate(seen)]
    plain = outs / "cells.csv"
    table(plain, ("cell_id", "x_centroid", "y_centroid", "transcript_counts"), rows)
    (outs / "cells.csv.gz").write_bytes(gzip.compress(plain.read_bytes(), mtime=0))
    plain.unlink()
    manifest = {"run_name": "made", "analysis_sw_version": "xenium-3.1.0.0", "pixel_size": MPP, "num_cells": len(seen),
                "images": {"morphology_focus_filepath": focus}}  # fmt: skip
    (outs / "experiment.xenium").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return ["xenium_stained", _points(folder, "xenium_stained", way.points(at))]


def _rounds(folder: Path, stained: Image, blue: Array, brown: Array, at: torch.Tensor) -> list[str]:
    """``rounds/``: the nuclei and another marker in each of three rounds, the second and third turned and shifted."""
    (folder / "rounds").mkdir(exist_ok=True)
    marker = {"KRT": brown, "CD3": np.clip(2 * blue * brown, 0, 1), "VIM": np.clip(brown - blue, 0, 1)}
    ways = ((0.0, (0.0, 0.0)), (3.0, (6.0, -9.0)), (-4.0, (-8.0, 5.0)))
    names = []
    for k, ((name, other), (degrees, shift)) in enumerate(zip(marker.items(), ways, strict=True), 1):
        way = turned(stained.grid, degrees, shift)
        data = _carried(stained, [blue, other], way, 10 + k)
        _write_channels(folder / "rounds" / f"r{k}.ome.tif", data, ["DAPI", name])
        names.append(_points(folder, f"r{k}", way.points(at)))
    return ["rounds", *names]


def _piece(folder: Path, stained: Image, at: torch.Tensor) -> list[str]:
    """A corner of the picture, `LARGER` times as large, turned by 160°, blurred, in grey; and three rough pairs of landmarks."""
    height, width = PIECE
    corner = Image.from_array(stained.data[:, -height:, -width:].numpy(), "cyx", spacing=1.0)
    grid = Grid((LARGER * height, LARGER * width), (1 / LARGER, 1 / LARGER), (0.0, 0.0), "px")
    grey = resample(corner, Affine.identity(2), grid).data.to(torch.float32).mean(dim=0).numpy()
    shown = np.ascontiguousarray(gaussian_filter(255 - grey, 10)[::-1, ::-1]).astype(np.uint8)
    Picture.fromarray(shown).save(folder / "piece.png")
    top, left = (n - piece for n, piece in zip(stained.grid.shape, PIECE, strict=True))

    def there(px: Array) -> Array:
        """Pixels ``[N, 2]`` (y, x) of the picture as pixels of the piece."""
        return np.asarray(np.array([LARGER * height - 1, LARGER * width - 1]) - LARGER * (px - [top, left]))

    rough = np.array([[425.0, 415.0], [500.0, 430.0], [455.0, 500.0]])
    pairs = np.hstack([rough, there(rough) + np.array([[4, -5], [-3, 4], [5, 3]])])
    table(
        folder / "piece_three.csv", ("fixed_y", "fixed_x", "moving_y", "moving_x"), pairs.round().astype(int).tolist()
    )
    inside = np.stack(np.meshgrid(np.arange(top + 10, top + height, 20), np.arange(left + 10, left + width, 20)), -1)
    inside = inside.reshape(-1, 2).astype(float)
    for name, positions in (("piece_in_stained", inside), ("piece", there(inside))):
        rows = [(k, f"{y:.2f}", f"{x:.2f}") for k, (y, x) in enumerate(positions)]
        table(folder / f"{name}_points.csv", ("id", "y", "x"), rows)
    return ["piece.png", "piece_three.csv", "piece_in_stained_points.csv", "piece_points.csv"]


def _slides(folder: Path, pair: demo.Pair) -> list[str]:
    """Where positions of ``he.ome.tif`` truly lie on ``ihc.ome.tif``, whose pixel is half of a pixel of the pair: 0.5 µm."""
    at = pair.fixed.grid.resampled(SPACING).coords().reshape(-1, 2)
    there = pair.truth.inverse().points(at)
    inside = pair.moving.grid.contains(there)
    return [_points(folder, "he", at[inside] + 0.25), _points(folder, "ihc", there[inside] + 0.25)]


def _section(folder: Path) -> list[str]:
    """Where positions of ``section.png`` truly lie in ``atlas.nrrd``, whose voxels are 50 µm: in the plane that it was cut by."""
    v, u = (
        values.ravel() for values in np.meshgrid(np.linspace(-0.6, 0.6, 4), np.linspace(-0.6, 0.6, 5), indexing="ij")
    )
    w = 0.12 + 0.05 * v - 0.04 * u
    pixels = np.stack([(v + 1.05) / 2.1 * 230, (u + 1.05) / 2.1 * 251], axis=1)
    section = [(k, f"{y:.3f}", f"{x:.3f}") for k, (y, x) in enumerate(pixels)]
    voxels = [(each + 1) / 2 * (n - 1) * 50 for each, n in zip((w, v, u), (72, 88, 96), strict=True)]
    atlas = [(k, *(f"{value:.2f}" for value in row)) for k, row in enumerate(zip(*voxels, strict=True))]
    table(folder / "section_points.csv", ("id", "y", "x"), section)
    table(folder / "atlas_points.csv", ("id", "z_um", "y_um", "x_um"), atlas)
    return ["section_points.csv", "atlas_points.csv"]
