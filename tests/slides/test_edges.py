"""One rule for what lies beyond an image, and outputs with just the pixels of the other side's finest level."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import zarr
from click.testing import CliRunner
from fake_result import fake_result
from PIL import Image

import regframe as rf
from regframe import plugins
from regframe.cli import main
from regframe.data import Grid
from regframe.io import outputs

SHIFT = torch.tensor([[1.0, 0.0, 30.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)


def moving(kind: str) -> np.ndarray:
    """A picture whose border is neither white nor 0."""
    noise = np.random.default_rng(0).integers(0, 40, (60, 70, 3))
    if kind == "brightfield":
        return (noise + 180).astype(np.uint8)
    if kind == "grey":
        return (noise[..., 0] + 90).astype(np.uint8)
    return (noise[..., 0] + 1000).astype(np.float32)


@pytest.mark.parametrize(("kind", "beyond"), [("brightfield", 255), ("grey", 0), ("float", 0)])
def test_every_way_fills_alike(tmp_path: Path, kind: str, beyond: int) -> None:
    pixels, suffix = moving(kind), ".tif" if kind == "float" else ".png"
    file = tmp_path / f"moving{suffix}"
    if kind == "float":
        tifffile.imwrite(file, pixels)
    else:
        Image.fromarray(pixels).save(file)
    grid = Grid((60, 70))
    result = fake_result(grid, grid, SHIFT, bend=0.0)
    result.save(tmp_path / "map.ome.zarr")
    shown = result.to_fixed(rf.open(file)).data
    kept = plugins.find_adapter(file).apply(file, result.transform, result.fixed_grid).data  # what --save-warped writes
    assert torch.equal(shown, kept)
    assert bool((shown[:, :29] == beyond).all())
    assert bool((shown[:, 31:] != beyond).any())
    for name in ("out.zarr", "out.tif", "out" + suffix):
        done = CliRunner().invoke(
            main, ["apply", "image", str(tmp_path / "map.ome.zarr"), str(file), "-o", str(tmp_path / name), "--to", "fixed",
                   "--overwrite"],
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        assert torch.equal(rf.open(tmp_path / name).data, shown)


def test_level_0_has_the_finest_shape_of_the_other_side(tmp_path: Path) -> None:
    """Levels of a pyramid lose up to a pixel each: 501 rows become 62, which are 496."""
    fine, step = np.random.default_rng(0).integers(0, 255, (501, 395), dtype=np.uint8), 8
    for side in ("fixed", "moving"):
        with tifffile.TiffWriter(tmp_path / f"{side}.ome.tif", ome=True) as tiff:
            size = {"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm"}
            tiff.write(fine, subifds=1, tile=(64, 64), metadata={"axes": "YX", **size})
            tiff.write(fine[::step, ::step][:62, :49], subfiletype=1, tile=(64, 64))
    coarse = rf.open(tmp_path / "fixed.ome.tif", level=1).grid
    assert coarse.shape == (62, 49)
    result = fake_result(coarse, coarse, bend=0.0)
    sides = {
        s: {"path": str(tmp_path / f"{s}.ome.tif"), "adapter": "image", "options": {"level": 1}}
        for s in ("fixed", "moving")
    }
    outputs.write(tmp_path / "run", result, sides)
    for name in ("out.zarr", "out.png"):
        done = CliRunner().invoke(
            main, ["apply", "image", str(tmp_path / "run"), str(tmp_path / "moving.ome.tif"), "-o", str(tmp_path / name),
                   "--to", "fixed", "--level", "0"],
        )  # fmt: skip
        assert done.exit_code == 0, done.output
    assert zarr.open_group(tmp_path / "out.zarr", mode="r")["0"].shape[-2:] == fine.shape
    out = rf.open(tmp_path / "out.png").data[0].numpy()
    assert out.shape == fine.shape
    assert (out == fine).mean() > 0.99
