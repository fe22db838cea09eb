"""What QuPath opens, read as others read it: a warped slide as OME-TIFF and carried annotations, in the fixed slide's pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from click.testing import CliRunner
from fake_result import fake_result

import regframe as rf
from regframe.cli import main

PIXEL = 0.5


def drawn(folder: Path) -> Path:
    """Annotations as QuPath exports them: a polygon with a class and a measurement, a cell with its nucleus."""
    ring = [[100, 120], [400, 130], [380, 420], [90, 400], [100, 120]]
    cell = [[200, 200], [230, 200], [230, 230], [200, 230], [200, 200]]
    nucleus = [[210, 210], [220, 210], [220, 220], [210, 220], [210, 210]]
    features: list[dict[str, Any]] = [
        {"type": "Feature", "id": "a", "geometry": {"type": "Polygon", "coordinates": [ring]},
         "properties": {"objectType": "annotation", "classification": {"name": "Tumor", "color": [200, 0, 0]}}},
        {"type": "Feature", "id": "b", "geometry": {"type": "Polygon", "coordinates": [cell]},
         "nucleusGeometry": {"type": "Polygon", "coordinates": [nucleus]},
         "properties": {"objectType": "cell", "measurements": {"Nucleus: Area": 25.0}}},
    ]  # fmt: skip
    path = folder / "drawn.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, rf.Result]:
    """The commands of docs/qupath.md on a map that bends: the warped slide, the carried annotations, Warpy's file."""
    folder = tmp_path_factory.mktemp("qupath")
    grid = rf.Grid((600, 640), PIXEL, unit="µm")
    turn = torch.tensor([[0.98, -0.1, 30.0], [0.1, 0.98, -12.0], [0, 0, 1]], dtype=torch.float64)
    result = fake_result(rf.Grid((300, 320), 2 * PIXEL, (PIXEL / 2,) * 2, "µm"), grid, turn, bend=8.0)
    result.save(folder / "run.ome.zarr")
    pixels = np.random.default_rng(0).integers(0, 255, (3, 600, 640), dtype=np.uint8)
    size = {"PhysicalSizeX": PIXEL, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": PIXEL, "PhysicalSizeYUnit": "µm"}
    source, run = folder / "moving.ome.tif", str(folder / "run.ome.zarr")
    tifffile.imwrite(source, np.moveaxis(pixels, 0, -1), photometric="rgb", metadata={"axes": "YXS", **size})
    image = [str(source), "-o", str(folder / "warped.ome.tif"), "--spacing", str(PIXEL)]
    shapes = [str(drawn(folder)), "-o", str(folder / "carried.geojson"), "--output-spacing", str(PIXEL)]
    for words in (["image", run, *image], ["shapes", run, *shapes, "--input-spacing", str(PIXEL)]):
        done = CliRunner().invoke(main, ["apply", *words, "--to", "fixed"])
        assert done.exit_code == 0, done.output
    return folder, result


def test_the_warped_slide_is_a_pyramid_with_its_pixel_size(files: tuple[Path, rf.Result]) -> None:
    folder, _ = files
    with tifffile.TiffFile(folder / "warped.ome.tif") as file:
        assert file.is_ome
        (series,) = file.series
        assert series.shape[:2] == (600, 640)
        assert len(series.levels) > 1
        assert series.keyframe.is_tiled
        assert series.keyframe.photometric == tifffile.PHOTOMETRIC.RGB


def test_its_metadata_follow_the_schema(files: tuple[Path, rf.Result]) -> None:
    ome_types = pytest.importorskip("ome_types", reason="needs ome-types, which holds OME's schema")
    pytest.importorskip("lxml", reason="needs lxml, with which ome-types checks")
    pixels = ome_types.from_tiff(files[0] / "warped.ome.tif", validate=True).images[0].pixels
    assert (pixels.size_x, pixels.size_y) == (640, 600)
    assert (pixels.physical_size_x, pixels.physical_size_y) == (PIXEL, PIXEL)
    assert pixels.physical_size_x_unit.value == "µm"


def test_carried_annotations_are_geojson_in_pixels_of_the_fixed_slide(files: tuple[Path, rf.Result]) -> None:
    folder, result = files
    document = json.loads((folder / "carried.geojson").read_text())
    before = json.loads((folder / "drawn.geojson").read_text())
    for old, new in zip(before["features"], document["features"], strict=True):
        assert new["properties"] == old["properties"]
        for member in ("geometry", "nucleusGeometry"):
            if member in old:
                corner = np.array(old[member]["coordinates"][0][0])[::-1]
                position = torch.from_numpy(corner * PIXEL - PIXEL / 2)  # from the outer corner to positions of centres
                there = (result.to_fixed(position[None]).numpy()[0] + PIXEL / 2) / PIXEL
                assert np.allclose(new[member]["coordinates"][0][0], there[::-1], atol=1e-6)


def test_they_are_valid_to_another_reader(files: tuple[Path, rf.Result]) -> None:
    geojson = pytest.importorskip("geojson", reason="needs geojson, which checks documents")
    read = geojson.loads((files[0] / "carried.geojson").read_text())
    assert read.is_valid, read.errors()
    assert len(read["features"]) == 2


def test_warpys_map_agrees_with_what_was_carried(files: tuple[Path, rf.Result]) -> None:
    """Warpy takes the objects that `apply shapes` carried back to where they were drawn."""
    from test_qupath import imglib

    folder, result = files
    fine = rf.Grid((600, 640), PIXEL, unit="µm")
    path = folder / "transform_2_1.json"
    written = rf.write_map(result, path, "warpy", tolerance=0.005, fixed_pixels=fine, moving_pixels=fine)
    assert written.max_error_px is not None
    carried = json.loads((folder / "carried.geojson").read_text())["features"][1]["geometry"]["coordinates"][0]
    at = np.hstack([np.array(carried[:4]), np.zeros((4, 1))])
    back = imglib(json.loads(path.read_text()), at)[:, :2]
    assert np.linalg.norm(back - [200, 200], axis=1).min() < written.max_error_px + 1e-6
