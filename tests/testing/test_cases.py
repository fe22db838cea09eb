"""`regframe shrink-case`: small, still the same field, and without a name."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import regframe as rf
from regframe.cli import main
from regframe.data import Grid, Image, PointSet
from regframe.testing import cases

SECRET = "Mustermann"


def slide(path: Path, height: int = 900, width: int = 700) -> Path:
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([(y // 4 + x // 8) % 256, x % 251, np.full_like(x, 90)]).astype(np.uint8)
    image = Image.from_array(pixels, axes="cyx", spacing=0.5, unit="um", name=SECRET, channels=(SECRET, "b", "c"))
    rf.adapter("image").save(image, path)
    return path


def table(path: Path, rows: int = 5000) -> Path:
    xy = np.random.default_rng(0).uniform(0, 400, (rows, 2))
    lines = [f"{SECRET}{i},{a:.2f},{b:.2f},{SECRET}" for i, (a, b) in enumerate(xy)]
    path.write_text("patient,x_um,y_um,name\n" + "\n".join(lines) + "\n")
    return path


def test_a_case_is_small_nameless_and_opens(tmp_path: Path) -> None:
    out = tmp_path / "case.zip"
    arguments = [slide(tmp_path / f"{SECRET}.ome.tif"), table(tmp_path / f"{SECRET}.csv"), "-o", out]
    done = CliRunner().invoke(main, ["shrink-case", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    assert "look at both pictures" in done.output
    assert out.stat().st_size < 400_000
    with zipfile.ZipFile(out) as archive:
        assert archive.namelist() == ["case.json", "fixed.ome.tif", "moving.csv"]
        everything = b"".join(archive.read(name) for name in archive.namelist())
        archive.extractall(tmp_path / "there")
    for word in (SECRET, str(tmp_path), "patient"):
        assert word.encode() not in everything
    fixed = rf.open(tmp_path / "there" / "fixed.ome.tif")
    assert max(fixed.grid.shape) <= 256
    assert fixed.grid.unit == "µm"
    assert fixed.grid.spacing == (2.0, 2.0)
    points = rf.read_points(tmp_path / "there" / "moving.csv")
    assert len(points) == cases.POINTS
    assert points.unit == "µm"
    said = json.loads((tmp_path / "there" / "case.json").read_text())
    assert said["fixed"]["shape"] == [900, 700]
    assert said["versions"]["torch"] == torch.__version__
    again = CliRunner().invoke(main, ["shrink-case", *map(str, arguments)])
    assert again.exit_code == 2
    assert "exists" in again.output


@pytest.mark.parametrize(("shape", "labels"), [((300, 512), False), ((300, 512), True), ((20, 300, 270), False)])
def test_a_thumbnail_shows_the_field_where_it_was(shape: tuple[int, ...], labels: bool) -> None:
    grid = Grid(shape, 0.5, (1.0,) * len(shape), "µm")
    ramp = grid.coords()[..., -1].round()[None]
    small = cases.thumbnail(Image(ramp.to(torch.int32 if labels else torch.float32), grid, labels=labels), 64)
    assert max(small.grid.shape) <= 64
    assert small.data.shape[1:] == small.grid.shape
    off = (small.data[0].to(torch.float64) - small.grid.coords()[..., -1]).abs().max()
    assert float(off) <= (small.grid.spacing[-1] / 2 + 0.5 if labels else 0.5)
    if labels:
        assert set(small.data.unique().tolist()) <= set(ramp.unique().tolist())


@pytest.mark.parametrize("pixels", [8, 4000])
def test_a_case_is_not_the_data(pixels: int, tmp_path: Path) -> None:
    points = PointSet(torch.rand(5, 2))
    with pytest.raises(ValueError, match="a case is not the data"):
        cases.shrink(points, points, tmp_path / "case.zip", pixels)
    assert not (tmp_path / "case.zip").exists()
