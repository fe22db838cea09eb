"""Small made slides of which only parts belong together: fields that overlap, cores of a microarray, cells by genes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image as Picture

from ..data import Image
from ..maps.affine import Affine
from ..maps.resample import resample
from . import demo
from .lessons import turned
from .tables import table

Array = NDArray[Any]

MPP = 0.5
"""Micrometres per pixel of the fields and cores."""
FIELDS = (2, 3)
"""Rows and columns of the fields in ``fields/``."""
FIELD = (300, 220)
"""Pixels of a field along y and x: of the demo's picture, 512 pixels wide, neighbours share 88 and 74."""
OFF_PX = 3
"""Pixels by which a field lies elsewhere than it says, at most: a stage that is well kept."""
CORE = 150
"""Pixels of the square of the demo's picture from which a round core is cut."""
ROWS, COLUMNS = 2, 3
"""Rows and columns of the cores."""
PITCH = 210
"""Pixels from the middle of one core to that of the next."""
GLASS = 243.0
"""Grey of the slide between the cores."""
STROMA = (0.92, 0.8, 0.88)
"""Share of red, green and blue that a core lets through where the picture shows glass: a core is one piece of tissue."""
GENES = {
    "tumour": (9.0, 1.0, 1.0, 4.0, 0.5, 2.0),
    "stroma": (1.0, 8.0, 1.0, 0.5, 4.0, 2.0),
    "immune": (1.0, 1.0, 9.0, 3.0, 3.0, 2.0),
}
"""Mean counts of six genes in a cell of each type of ``fixed.csv``."""


def write(folder: Path, pair: demo.Pair) -> list[str]:
    """Write ``fields``, ``all.ome.tif``, ``TileConfiguration.txt``, and the cores ``cores_he.png`` and ``cores_ihc.png``."""
    return [*_fields(folder, pair), *_cores(folder, pair)]


def _fields(folder: Path, pair: demo.Pair) -> list[str]:
    """Six fields of the picture, bright on dark, darker towards their borders, with the place of the stage in each file."""
    generator = np.random.default_rng(51)
    whole = 255 - pair.moving.data.to(torch.float32).mean(dim=0).numpy()
    (folder / "fields").mkdir(exist_ok=True)
    steps = [(n - size - 2 * OFF_PX) // (count - 1) for n, size, count in zip(whole.shape, FIELD, FIELDS, strict=True)]
    y, x = (np.linspace(-1, 1, n) for n in FIELD)
    lamp = 1 - 0.1 * (y[:, None] ** 2 + x**2)
    lines = ["dim = 2"]
    with tifffile.TiffWriter(folder / "all.ome.tif", ome=True) as everything:
        for k, (row, column) in enumerate(np.ndindex(*FIELDS)):
            said = np.array([row * steps[0], column * steps[1]]) + OFF_PX
            top, left = said + generator.integers(-OFF_PX, OFF_PX + 1, 2)
            seen = whole[top : top + FIELD[0], left : left + FIELD[1]] * lamp + generator.normal(0, 2, FIELD)
            pixels = np.clip(seen, 0, 255).astype(np.uint8)
            metadata = {**_stage(said), "Name": f"f{k}"}
            tifffile.imwrite(
                folder / "fields" / f"f{k}.ome.tif", pixels, ome=True, photometric="minisblack", metadata=metadata
            )
            everything.write(pixels, photometric="minisblack", metadata=metadata)
            lines.append(f"f{k}.ome.tif; ; ({said[1]:.1f}, {said[0]:.1f})")
    (folder / "TileConfiguration.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ["fields", "all.ome.tif", "TileConfiguration.txt"]


def _stage(place: Array) -> dict[str, Any]:
    """OME metadata of a field whose first pixel lies at ``place`` (y, x), in pixels."""
    sides = {f"PhysicalSize{axis}": MPP for axis in "XY"} | {f"PhysicalSize{axis}Unit": "µm" for axis in "XY"}
    where = {f"Position{axis}": float(at) * MPP for axis, at in zip("YX", place, strict=True)}
    return {"axes": "YX", **sides, "Plane": {**where, "PositionXUnit": "µm", "PositionYUnit": "µm"}}


def _cores(folder: Path, pair: demo.Pair) -> list[str]:
    """A microarray on two slides: round cores, each turned and shifted on the second, paler one; one is missing there."""
    generator = np.random.default_rng(52)
    picture = pair.moving.data.to(torch.float32) * torch.tensor(STROMA)[:, None, None]
    slides = np.full((2, 3, (ROWS + 1) * PITCH - 60, (COLUMNS + 1) * PITCH - 60), GLASS, np.float32)
    corners = [(60 + 180 * row, 5 + 170 * column) for row, column in np.ndindex(ROWS, COLUMNS)]
    for k, (top, left) in enumerate(corners):
        core = Image.from_array(picture[:, top : top + CORE, left : left + CORE].numpy(), "cyx", spacing=1.0)
        row, column = divmod(k, COLUMNS)
        for side, degrees in enumerate((0.0, float(generator.uniform(-15, 15)))):
            if side and k == ROWS * COLUMNS - 1:
                continue  # lost from the second slide
            shift = generator.uniform(-6, 6, 2).round() if side else np.zeros(2)
            y, x = (int(v) for v in np.array([(row + 1) * PITCH, (column + 1) * PITCH]) - 30 - CORE // 2 + shift)
            way = turned(core.grid, degrees, (0.0, 0.0)) if side else Affine.identity(2)
            data = resample(core, way, core.grid, GLASS).data.numpy()
            slides[side, :, y : y + CORE, x : x + CORE] = np.where(_round(), data, GLASS)
    slides[1] = 0.8 * slides[1] + 0.2 * GLASS
    slides += generator.normal(0, 2, slides.shape)
    for name, slide in zip(("cores_he.png", "cores_ihc.png"), np.clip(slides, 0, 255).astype(np.uint8), strict=True):
        Picture.fromarray(np.ascontiguousarray(np.moveaxis(slide, 0, -1))).save(folder / name)
    return ["cores_he.png", "cores_ihc.png"]


def _round() -> Array:
    """Which pixels of a square of `CORE` belong to its core: ``[CORE, CORE]``."""
    at = np.arange(CORE) - (CORE - 1) / 2
    return np.asarray(np.hypot(at[:, None], at) < 0.48 * CORE)


def write_genes(folder: Path) -> list[str]:
    """``fixed.h5ad`` and ``moving.h5ad``: the cells of the two tables with counts of six genes. ImportError without anndata."""
    import anndata
    import pandas

    generator = np.random.default_rng(53)
    for name in ("fixed", "moving"):
        cells = pandas.read_csv(folder / f"{name}.csv")
        counts = generator.poisson([GENES[kind] for kind in cells["type"]]).astype(np.float32)
        made = anndata.AnnData(
            counts,
            obs=pandas.DataFrame({"type": pandas.Categorical(cells["type"])}, index=cells["id"].astype(str)),
            var=pandas.DataFrame(index=[f"gene{k}" for k in range(counts.shape[1])]),
            obsm={"spatial": cells[["x", "y"]].to_numpy()},
        )
        made.write_h5ad(folder / f"{name}.h5ad")
    return ["fixed.h5ad", "moving.h5ad"]


def write_tables(folder: Path) -> list[str]:
    """``rounds.csv``, the table of the rounds in ``rounds/``."""
    table(folder / "rounds.csv", ("file", "name"), [(f"rounds/r{k}.ome.tif", f"r{k}") for k in (1, 2, 3)])
    return ["rounds.csv"]
