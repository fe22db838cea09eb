"""Tables of points: full-resolution pixels go back as such, and points that lie nowhere are said, with the factor."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from click.testing import CliRunner
from fake_result import fake_result

import regframe as rf
from regframe.cli import main
from regframe.io import outputs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the coarse level (2 µm) of two slides with pixels of 0.5 µm."""
    folder = tmp_path_factory.mktemp("spots")
    for side in ("fixed", "moving"):
        data = np.random.default_rng(0).integers(0, 255, (256, 320), dtype=np.uint8)
        with tifffile.TiffWriter(folder / f"{side}.ome.tif", ome=True) as tiff:
            size = {"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm"}
            tiff.write(data, subifds=1, tile=(64, 64), metadata={"axes": "YX", **size})
            tiff.write(data[::4, ::4], subfiletype=1, tile=(64, 64))
    grid = rf.open(folder / "fixed.ome.tif", level=1).grid
    sides = {
        s: {"path": str(folder / f"{s}.ome.tif"), "adapter": "image", "options": {"level": 1}}
        for s in ("fixed", "moving")
    }
    outputs.write(folder / "run", fake_result(grid, grid, bend=0.0), sides)
    return folder


def moved(run: Path, text: str, *options: str) -> tuple[rf.PointSet, str]:
    (run / "in.csv").write_text(text)
    done = CliRunner().invoke(
        main,
        ["apply", "points", str(run / "run"), str(run / "in.csv"), "-o", str(run / "out.csv"), "--to", "fixed", "--overwrite",
         *options],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return rf.read_points(run / "out.csv"), done.stderr


def test_spots_go_back_in_pixels_of_full_resolution(run: Path) -> None:
    header = "barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres\n"
    out, _ = moved(run, header + "A-1,1,0,0,200,100\nA-2,1,0,1,40,300\n")
    assert out.columns == ("pxl_row_in_fullres", "pxl_col_in_fullres")
    assert out.unit == "px"
    result = rf.load(run / "run" / "transform.ome.zarr")  # 0.5 µm a pixel, on both sides
    expected = result.to_fixed(torch.tensor([[100.0, 50.0], [20.0, 150.0]], dtype=torch.float64)) / 0.5
    assert torch.allclose(out.coords, expected)


def test_points_of_imagej_go_back_in_pixels_of_full_resolution(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a .roi, as a table, out of a RoiSet.zip; a table goes into a .roi; and `info` says what the file is."""
    pytest.importorskip("roifile", reason="needs roifile: pip install 'regframe[roi]'")
    result = rf.load(run / "run" / "transform.ome.zarr")  # 0.5 µm a pixel, on both sides
    at = torch.tensor([[200.0, 100.0], [40.25, 300.5]], dtype=torch.float64)
    expected = result.to_fixed(at * 0.5) / 0.5
    rf.write_points(rf.PointSet(at, "px"), run / "in.roi")
    with zipfile.ZipFile(run / "RoiSet.zip", "w") as archive:
        archive.write(run / "in.roi", "cells.roi")
    (run / "um.csv").write_text("x_um,y_um\n50,100\n150.25,20.125\n")

    def carried(name: str, out: str) -> rf.PointSet:
        words = [
            "apply",
            "points",
            str(run / "run"),
            str(run / name),
            "-o",
            str(run / out),
            "--to",
            "fixed",
            "--overwrite",
        ]
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0, done.output
        assert ("positions alone" in done.stderr) == out.endswith(".roi")
        return rf.read_points(run / out)

    for name in ("in.roi", "RoiSet.zip", "um.csv"):
        found = carried(name, "out.roi")
        assert found.unit == "px"
        assert torch.allclose(found.coords, expected, atol=1e-4), name  # the file holds float32
    table = carried("RoiSet.zip", "out.csv")
    assert torch.allclose(table.coords, expected, atol=1e-4)
    assert list(table.table) == ["selection", "x_px", "y_px", "match_probability", "position_sd", "in_canvas"]
    assert table.table["in_canvas"] == ["true", "true"]
    done = CliRunner().invoke(main, ["info", str(run / "RoiSet.zip"), "--json"])
    facts = json.loads(done.stdout)
    assert (facts["kind"], facts["n"], facts["unit"]) == ("points", 2, "px")
    assert facts["bounds"] == [at.amin(0).tolist(), at.amax(0).tolist()]
    for words, says in (
        ("apply points run in.roi -o out.zip --to fixed", "ending in .roi"),
        ("apply shapes run in.roi -o out.geojson --to fixed", "`regframe apply points`"),
        ("info in.roi --set unit=um", "leave it out"),
    ):
        monkeypatch.chdir(run)
        done = CliRunner().invoke(main, words.split())
        assert done.exit_code == 2
        assert says in done.output


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("y,x\n2000,9000\n90000,100000\n", "--input-spacing 0.001"),
        ("y,x\n9000,9000\n9001,9001\n", "check the unit and the order of x and y"),
    ],
)
def test_points_that_lie_nowhere_are_said(run: Path, text: str, says: str) -> None:
    _, said = moved(run, text)
    assert "none of 2 points lies on the moving canvas" in said
    assert says in said
    assert "none of" not in moved(run, "y,x\n10,20\n90000,100000\n")[1]


def test_shapes_take_the_pixel_size_of_the_slide_that_was_registered(run: Path) -> None:
    square = [[40, 60], [80, 60], [80, 100], [40, 100], [40, 60]]
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [square]}}
    (run / "in.geojson").write_text(json.dumps(feature))
    written = []
    for options in ([], ["--input-spacing", "0.5"]):
        files = [
            str(run / "run"),
            str(run / "in.geojson"),
            "-o",
            str(run / "out.geojson"),
            "--to",
            "fixed",
            "--overwrite",
        ]
        done = CliRunner().invoke(main, ["apply", "shapes", *files, *options])
        assert done.exit_code == 0, done.output
        assert ("taken to be 0.5 µm long" in done.stderr) == (not options)
        written.append((run / "out.geojson").read_text())
    assert written[0] == written[1]


def test_a_dry_run_says_level_and_memory(run: Path) -> None:
    files = [
        str(run / "fixed.ome.tif"),
        str(run / "moving.ome.tif"),
        "-o",
        str(run / "no"),
        "--level",
        "1",
        "--dry-run",
    ]
    done = CliRunner().invoke(main, ["register", *files])
    assert done.exit_code == 0, done.output
    assert "level 1" in done.stdout
    assert "memory  0.0102 MB" in done.stdout
    assert not (run / "no").exists()
