"""One rule for pixels: a position is that of the middle of a pixel, the first at 0; counted from its corner it is 0.5 more."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

import regframe as rf
from regframe.data import Grid
from regframe.io.tables import read_points, to_unit_of
from regframe.view import pairfiles

GRID = Grid((20, 30), (0.5, 0.5), (10.0, 20.0), "µm")
"""A side with a pixel size and a place; the mark is the middle of its pixel in row 3 and column 5."""
MARK = (11.5, 22.5)
POINT = {"type": "Feature", "properties": {"name": "a"}, "geometry": {"type": "Point", "coordinates": [5.5, 3.5]}}


def table(name: str, text: str) -> Callable[[Path], list[float]]:
    def read(folder: Path) -> list[float]:
        (folder / name).write_text(text)
        row: list[float] = to_unit_of(read_points(folder / name), GRID).coords[0].tolist()
        return row

    return read


def pairs(name: str, text: str) -> Callable[[Path], list[float]]:
    def read(folder: Path) -> list[float]:
        (folder / name).write_text(text)
        fixed, _, units = rf.read_landmarks(folder / name)
        assert units[0] == "px"
        row: list[float] = to_unit_of(rf.PointSet(fixed, "px"), GRID).coords[0].tolist()
        return row

    return read


def on_the_page(text: str) -> Callable[[Path], list[float]]:
    return lambda _: list(pairfiles.read_side(text, GRID)[0][1])


def shape(folder: Path) -> list[float]:
    (folder / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [POINT]}))
    begins = Grid(GRID.shape, GRID.spacing, unit="µm")  # shapes count from the corner of the slide, not of a part of it
    at = rf.read_shapes(folder / "a.geojson").to_positions(begins, 0.5).coords[0]
    row: list[float] = (at + torch.tensor(GRID.origin)).tolist()
    return row


@pytest.mark.parametrize(
    "read",
    [
        pytest.param(table("a.csv", "y_px,x_px\n3,5\n"), id="table of pixels"),
        pytest.param(table("a.pts", "index\n1\n5 3\n"), id="elastix"),
        pytest.param(table("a.csv", "AAAC-1,1,0,0,3,5\n"), id="Visium"),
        pytest.param(pairs("a.csv", "fixedX,fixedY,alignmentX,alignmentY\n5,3,1,1\n"), id="Xenium Explorer"),
        pytest.param(on_the_page("index,axis-0,axis-1\n0,3,5\n"), id="napari"),
        pytest.param(on_the_page(" ,X,Y\n1,5,3\n"), id="ImageJ"),
        pytest.param(on_the_page(json.dumps(POINT)), id="QuPath point, from the corner"),
        pytest.param(shape, id="GeoJSON shape, from the corner"),
    ],
)
def test_every_format_means_the_same_pixel(tmp_path: Path, read: Callable[[Path], list[float]]) -> None:
    assert read(tmp_path) == pytest.approx(MARK)


def test_levels_of_an_image_share_their_corner(tmp_path: Path) -> None:
    data = np.zeros((64, 96), dtype=np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as tiff:
        size = {"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm"}
        tiff.write(data, subifds=1, tile=(16, 16), metadata={"axes": "YX", **size})
        tiff.write(data[::4, ::4], subfiletype=1, tile=(16, 16))
    fine, coarse = (rf.open(tmp_path / "a.ome.tif", level=level).grid for level in (0, 1))
    assert fine.origin == (0.0, 0.0)  # the middle of the first pixel
    corners = [torch.tensor(g.origin) - torch.tensor(g.spacing) / 2 for g in (fine, coarse)]
    assert torch.allclose(corners[0], corners[1])
