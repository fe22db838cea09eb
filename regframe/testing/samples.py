"""Small inputs for every command that README and docs show: images of scikit-image, and tables and volumes made with seeds."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image as Picture

from .. import plugins
from ..data import Grid, Image
from ..maps.affine import Affine
from ..maps.resample import resample
from . import demo, lessons, parts, visium
from .tables import table

Array = NDArray[Any]

MPP = 0.5
"""Micrometres per pixel that the slides made here state."""

ROUGH_PX = 6.0
"""How far off the rough landmarks are, in px in the mean: as far as a hand that clicks on a thumbnail."""

CELLS = ((190.0, 140.0, "epithelium"), (300.0, 260.0, "macrophage"), (380.0, 330.0, "vessel"))
"""Positions (x, y) in pixels of the moving image and types of the three cells of ``cells.csv``."""


def write_pair(folder: Path, pair: demo.Pair) -> list[Path]:
    """Write the pair of the demo with all that its commands take: two images, cells, drawn shapes, rough and true landmarks.

    Returns the files, in the order in which the README names them. ``fixed.png`` and ``moving.png`` are the pair,
    ``three.csv`` three rough pairs of landmarks, ``f.csv`` and ``m.csv`` 100 true pairs, row by row; all in pixels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in (("fixed.png", pair.fixed), ("moving.png", pair.moving)):
        _save(image, folder / name)
    rows = [(i, f"{x:g}", f"{y:g}", kind) for i, (x, y, kind) in enumerate(CELLS, 1)]
    table(folder / "cells.csv", ("id", "x", "y", "type"), rows)
    _true_pairs(folder, pair)
    ring, dot = [[160, 140], [350, 160], [330, 370], [160, 140]], [390, 250]
    shapes: list[dict[str, Any]] = [{"type": "Polygon", "coordinates": [ring]}, {"type": "Point", "coordinates": dot}]
    _collection(folder / "drawn.geojson", shapes)
    height, width = pair.moving.grid.shape
    Picture.fromarray(np.tri(height, width, dtype=np.uint8)).save(folder / "mask.png")
    names = ("fixed.png", "moving.png", "cells.csv", "three.csv", "f.csv", "m.csv", "drawn.geojson", "mask.png")
    return [folder / name for name in names]


def _true_pairs(folder: Path, pair: demo.Pair) -> None:
    """``f.csv`` and ``m.csv``, true partners on a lattice of the fixed image, and ``three.csv``, three of them moved by hand."""
    lattice = pair.fixed.grid.resampled(24 * pair.fixed.grid.pixel).coords().reshape(-1, 2)
    partners = pair.truth.inverse().points(lattice)
    inside = pair.moving.grid.contains(partners)
    generator = np.random.default_rng(0)
    fixed, moving = lattice[inside].numpy(), partners[inside].numpy()
    chosen = np.sort(generator.permutation(len(fixed))[:100])
    for name, points in (("f.csv", fixed), ("m.csv", moving)):
        table(folder / name, ("y", "x"), [(f"{y:.4f}", f"{x:.4f}") for y, x in points[chosen]])
    corners = [int(np.argmax(fixed @ direction)) for direction in ([-1, -1], [-1, 1], [2, 0.3])]
    rough = np.hstack([fixed[corners], moving[corners]]) + generator.normal(0, ROUGH_PX / np.sqrt(np.pi / 2), (3, 4))
    table(folder / "three.csv", ("fixed_y", "fixed_x", "moving_y", "moving_x"), rough.round().astype(int).tolist())


def write(folder: Path) -> tuple[list[Path], list[str]]:
    """Write every file that README and docs name into ``folder``, with seeds: the same bytes of tables and pixels each time.

    Returns the files and folders written, and one sentence for each that was left out because a package is missing.
    Nothing in ``folder`` is replaced but files of the same name. OSError where it cannot be written.
    """
    pair = demo.make()
    made = write_pair(folder, pair)
    left_out: list[str] = []
    writers: tuple[Callable[[Path, demo.Pair], list[str]], ...] = (
        _slides,
        _clouds,
        _nuclei,
        _atlas,
        _sections,
        lessons.write,
        visium.write,
        parts.write,
        _corrections,
    )
    for writer in writers:
        made += [folder / name for name in writer(folder, pair)]
    table(folder / "jobs.csv", ("id", "fixed", "moving"), [("mouse1", "fixed.png", "moving.png"),
                                                          ("mouse2", "he.ome.zarr", "ihc.ome.zarr")])  # fmt: skip
    made.append(folder / "jobs.csv")
    try:
        made.append(_h5ad(folder / "cells.h5ad"))
        made += [folder / name for name in parts.write_genes(folder)]
    except ImportError:
        left_out.append("cells.h5ad, fixed.h5ad and moving.h5ad need anndata: pip install 'regframe[anndata]'")
    return made, left_out


def _slides(folder: Path, pair: demo.Pair) -> list[str]:
    """The pair at twice its size with pixels of `MPP` µm, as pyramids in the formats that slides come in."""
    sides = {name: _enlarged(image) for name, image in (("he", pair.fixed), ("ihc", pair.moving))}
    for name, image in sides.items():
        _save(image, folder / f"{name}.ome.zarr")
        _save(image, folder / f"{name}.ome.tif")
    _save(sides["he"], folder / "slide.ome.zarr")
    channel = sides["he"].data[:1].numpy()
    with tifffile.TiffWriter(folder / "slide.ome.tif", ome=True) as file:
        file.write(channel[0], photometric="minisblack", metadata={**_pixels(MPP), "Name": "scan"})
        file.write(channel[0, ::8, ::8], photometric="minisblack", metadata={"axes": "YX", "Name": "label"})
    tifffile.imwrite(
        folder / "morphology.ome.tif", channel[0], ome=True, photometric="minisblack", metadata=_pixels(MPP)
    )
    forward = Affine(demo.turn(pair.moving.grid).matrix, "px", "px").matrix.numpy()
    matrix = forward[[1, 0, 2]][:, [1, 0, 2]]  # [3, 3] of (y, x, 1) -> of (x, y, 1)
    matrix[:2, 2] *= 2  # the slides have twice as many pixels; half a pixel more is within a rough start's error
    table(folder / "he_imagealignment.csv", (), [[f"{value:.6f}" for value in row] for row in matrix])
    return ["he.ome.zarr", "ihc.ome.zarr", "he.ome.tif", "ihc.ome.tif", "slide.ome.zarr", "slide.ome.tif",
            "morphology.ome.tif", "he_imagealignment.csv"]  # fmt: skip


def _enlarged(image: Image) -> Image:
    """``image`` at twice its number of pixels, each of `MPP` µm, its corner at the origin of its space."""
    height, width = image.grid.shape
    finer = Grid((2 * height, 2 * width), (0.5, 0.5), (-0.25, -0.25), image.grid.unit)
    carried = resample(image, Affine(torch.eye(3, dtype=torch.float64), image.grid.unit, image.grid.unit), finer)
    return Image.from_array(carried.data.numpy(), axes="cyx", spacing=MPP, unit="um", name=image.name)


def _clouds(folder: Path, pair: demo.Pair) -> list[str]:
    """``fixed.csv`` and ``moving.csv``: 500 cells in µm in a crooked tissue, the moving ones turned, shifted, jittered."""
    generator = np.random.default_rng(1)
    t = generator.random(500) ** 1.3
    middle = np.stack([300 * np.sin(5 * t) + 250 * t, 300 * np.cos(3 * t) * (1 + t)], axis=1)
    fixed = middle + generator.normal(0, 25, middle.shape) + 800
    cos, sin = np.cos(0.6), np.sin(0.6)
    moving = (fixed - 800) @ [[cos, -sin], [sin, cos]] + [700, 900] + generator.normal(0, 2, fixed.shape)
    types = np.where(t < 0.4, "tumour", np.where(t < 0.7, "stroma", "immune"))
    for name, points in (("fixed.csv", fixed), ("moving.csv", moving)):
        rows = [(i, f"{x:.2f}", f"{y:.2f}", kind) for i, ((x, y), kind) in enumerate(zip(points, types, strict=True))]
        table(folder / name, ("id", "x", "y", "type"), rows)
    return ["fixed.csv", "moving.csv"]


def _nuclei(folder: Path, pair: demo.Pair) -> list[str]:
    """``dapi.tif``, 400 bright nuclei in pixels of 1 µm, and what others found of them, turned and shifted, half a µm off.

    ``nuclei.csv`` is a bare table, turned by 10°; ``xenium_outs`` a folder as the instrument writes it, turned by -15°.
    """
    generator = np.random.default_rng(2)
    places = generator.uniform(-1, 1, (700, 2))
    radius = 0.75 + 0.2 * np.sin(3 * np.arctan2(places[:, 0], places[:, 1]))
    places = (places[np.hypot(*places.T) < radius] * 230 + 256)[:400]  # [N, 2], (y, x)
    _picture(folder / "dapi.tif", places, generator)
    table(folder / "nuclei.csv", ("x_um", "y_um"), [(f"{x:.2f}", f"{y:.2f}") for y, x in _found(places, 10, generator)])
    outs = folder / "xenium_outs"
    (outs / "morphology_focus").mkdir(parents=True, exist_ok=True)
    seen = _found(places, -15, generator)
    focus = "morphology_focus/morphology_focus_0000.ome.tif"
    _picture(outs / focus, seen, generator)
    rows = [(f"aaaa{i:04x}-1", f"{x:.4f}", f"{y:.4f}", 100) for i, (y, x) in enumerate(seen)]
    plain = outs / "cells.csv"
    table(plain, ("cell_id", "x_centroid", "y_centroid", "transcript_counts"), rows)
    (outs / "cells.csv.gz").write_bytes(gzip.compress(plain.read_bytes(), mtime=0))
    plain.unlink()
    manifest = {"run_name": "made", "analysis_sw_version": "xenium-3.1.0.0", "pixel_size": 1.0, "num_cells": len(seen),
                "images": {"morphology_focus_filepath": focus}}  # fmt: skip
    (outs / "experiment.xenium").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return ["dapi.tif", "nuclei.csv", "xenium_outs"]


def _found(places: Array, degrees: float, generator: np.random.Generator) -> Array:
    """``places`` ``[N, 2]`` (y, x) turned by ``degrees`` about the middle of the picture, 512 px wide, shifted and jittered."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turned = (places - 256) @ [[cos, -sin], [sin, cos]] + [262, 270]
    return np.asarray(turned + generator.normal(0, 0.5, turned.shape))


def _picture(path: Path, places: Array, generator: np.random.Generator) -> None:
    """An OME-TIFF of 560 × 560 px of 1 µm with a bright spot of 2.5 px at each of ``places`` ``[N, 2]`` (y, x)."""
    y, x = np.mgrid[:560, :560]
    spots = np.zeros(y.shape)
    for row, column in places:
        near = np.s_[max(int(row) - 12, 0) : int(row) + 13, max(int(column) - 12, 0) : int(column) + 13]
        spots[near] += np.exp(-((y[near] - row) ** 2 + (x[near] - column) ** 2) / (2 * 2.5**2))
    grey = np.clip(200 * spots + generator.normal(12, 3, spots.shape), 0, 255).astype(np.uint8)
    tifffile.imwrite(path, grey, ome=True, photometric="minisblack", metadata=_pixels(1.0))


def _pixels(mpp: float) -> dict[str, Any]:
    """OME metadata of a plane with pixels of ``mpp`` µm."""
    sides = {f"PhysicalSize{axis}": mpp for axis in "XY"} | {f"PhysicalSize{axis}Unit": "µm" for axis in "XY"}
    return {"axes": "YX", **sides}


REGIONS = {1: "cortex", 2: "ventricle", 3: "nucleus", 4: "tract"}
"""Ids of the labels of ``atlas.nrrd`` and the names of their regions."""


def _atlas(folder: Path, pair: demo.Pair) -> list[str]:
    """``atlas.nrrd``, a volume of labels like a small organ, ``ontology.csv``, and ``section.png``, one oblique plane of it."""
    shape = (72, 88, 96)
    z, y, x = (np.linspace(-1, 1, n).reshape([-1 if i == k else 1 for i in range(3)]) for k, n in enumerate(shape))
    labels = _organ(z, y, x)
    header = f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: {shape[2]} {shape[1]} {shape[0]}\nencoding: raw\n\n"
    (folder / "atlas.nrrd").write_bytes(header.encode() + labels.tobytes())  # x runs fastest
    v, u = np.mgrid[-1.05:1.05:231j, -1.05:1.05:252j]
    plane = _organ(0.12 + 0.05 * v - 0.04 * u, v, u)
    generator = np.random.default_rng(3)
    colours = np.array([[244, 242, 246], [201, 150, 190], [236, 225, 236], [150, 90, 160], [225, 190, 215]])
    drawn = colours[plane] + generator.normal(0, 6, (*plane.shape, 3))
    Picture.fromarray(np.clip(drawn, 0, 255).astype(np.uint8)).save(folder / "section.png")
    table(folder / "ontology.csv", ("id", "name"), list(REGIONS.items()))
    table(folder / "places.csv", ("id", "x", "y"), [(1, 60, 115), (2, 126, 60), (3, 170, 150)])
    return ["atlas.nrrd", "ontology.csv", "section.png", "places.csv"]


def _organ(z: Array, y: Array, x: Array) -> Array:
    """Labels at positions of -1 … 1: a body that narrows along z, with two hollows, a nucleus on either side and a tract."""
    z, y, x = np.broadcast_arrays(z, y, x)
    width = 0.9 - 0.25 * z
    body = (y / 0.8) ** 2 + (x / width) ** 2 + z**2 / 0.95 - 0.25 * np.exp(-(((y + 0.8) / 0.2) ** 2) - (x / 0.15) ** 2)
    labels = np.where(body < 0.9, 1, 0)
    inner = labels == 1
    labels[inner & (((np.abs(x) - 0.22) / 0.12) ** 2 + ((y + 0.15 + 0.2 * z) / 0.3) ** 2 < 1)] = 2
    labels[inner & (((np.abs(x) - 0.45) / 0.2) ** 2 + ((y - 0.25) / 0.2) ** 2 + (z / 0.7) ** 2 < 1)] = 3
    labels[inner & ((x / 0.5) ** 2 + ((y + 0.42 - 0.15 * z) / 0.07) ** 2 < 1)] = 4
    return labels.astype(np.uint8)


def _sections(folder: Path, pair: demo.Pair) -> list[str]:
    """``sections/s00.png`` …: six neighbouring cuts, each turned and shifted by up to 8° and 12 px, of 2 µm a pixel."""
    generator = np.random.default_rng(4)
    (folder / "sections").mkdir(parents=True, exist_ok=True)
    coarse = pair.moving.grid.resampled(2 * pair.moving.grid.pixel)
    for k in range(6):
        angle, (dy, dx) = np.radians(generator.uniform(-8, 8)), generator.uniform(-12, 12, 2)
        matrix = torch.eye(3, dtype=torch.float64)
        matrix[:2, :2] = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        center = torch.tensor(pair.moving.grid.center, dtype=torch.float64)
        matrix[:2, 2] = center - matrix[:2, :2] @ center + torch.tensor([dy, dx], dtype=torch.float64)
        unit = pair.moving.grid.unit
        _save(resample(pair.moving, Affine(matrix, unit, unit), coarse), folder / "sections" / f"s{k:02}.png")
    return ["sections"]


def _corrections(folder: Path, pair: demo.Pair) -> list[str]:
    """``here.geojson``, a rectangle of the fixed image, ``pairs.csv``, true landmarks in it; ``ihc.geojson``, shapes drawn on the
    slide; ``rounds.csv``, a table of the rounds."""
    left, top, right, bottom = 150, 150, 350, 350
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    _collection(folder / "here.geojson", [{"type": "Polygon", "coordinates": [ring]}])
    at = torch.tensor([[y, x] for y in (210.0, 290.0) for x in (210.0, 290.0)] + [[250.0, 250.0]], dtype=torch.float64)
    rows = torch.cat([at, pair.truth.inverse().points(at)], dim=1).tolist()
    header = ("name", "fixed_y", "fixed_x", "moving_y", "moving_x")
    table(folder / "pairs.csv", header, [(k, *(f"{v:.3f}" for v in row)) for k, row in enumerate(rows, 1)])
    drawn = json.loads((folder / "drawn.geojson").read_text(encoding="utf-8"))["features"]
    shapes = [dict(feature["geometry"]) for feature in drawn]  # the slide has twice as many pixels
    for shape in shapes:
        shape["coordinates"] = (2 * np.asarray(shape["coordinates"])).tolist()
    _collection(folder / "ihc.geojson", shapes)
    return ["here.geojson", "pairs.csv", "ihc.geojson", *parts.write_tables(folder)]


def _collection(path: Path, shapes: list[dict[str, Any]]) -> None:
    """Write shapes as GeoJSON."""
    features = [{"type": "Feature", "geometry": shape, "properties": {}} for shape in shapes]
    text = json.dumps({"type": "FeatureCollection", "features": features}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")


def _h5ad(path: Path) -> Path:
    """An AnnData of 60 cells in µm of the moving slide, two genes each. ImportError without anndata."""
    import anndata

    generator = np.random.default_rng(6)
    xy = generator.uniform(80, 430, (60, 2))
    counts = generator.poisson(3, (60, 2)).astype(np.float32)
    anndata.AnnData(counts, obsm={"spatial": xy}).write_h5ad(path)
    return path


def _save(image: Image, path: Path) -> None:
    """Write by suffix, with whatever adapter reads images."""
    plugins.find_adapter(image).save(image, path)
