"""Large elements of a SpatialData: carried block by block, never computed as a whole; the map beside them is read again."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regframe_scverse as rs
import torch
from fake_result import fake_result

import regframe as rf

pytestmark = pytest.mark.filterwarnings("default")

SIZE, CHUNK = 2048, 128
MOVING = rf.Grid((SIZE, SIZE), 1.0, (0.5, 0.5), "µm")
TURN = torch.tensor([[0.9, -0.3, 300.0], [0.4, 1.1, -100.0], [0, 0, 1]], dtype=torch.float64)


class Counted:
    """A picture made chunk by chunk, which counts the bytes of all chunks made, and of those in memory at once at most."""

    def __init__(self) -> None:
        self.bytes = self.held = self.most = 0

    def gone(self, nbytes: int) -> None:
        """A chunk has been freed."""
        self.held -= nbytes

    def level(self, factor: int, channels: int = 3) -> Any:
        """Dask array ``[C, y, x]`` of every ``factor``-th pixel of a smooth picture."""
        import dask.array

        def block(block_info: Any = None) -> Any:
            (c0, c1), (y0, y1), (x0, x1) = block_info[None]["array-location"]
            c, y, x = np.ogrid[c0:c1, y0:y1, x0:x1]
            one, other = np.sin(factor * y / 150), np.cos(factor * x / 90)
            made = ((40 * c + 80 + 30 * one).astype(np.uint8) + (30 + 30 * other).astype(np.uint8)).astype(np.uint8)
            self.bytes += made.nbytes
            self.held += made.nbytes
            self.most = max(self.most, self.held)
            weakref.finalize(made, self.gone, made.nbytes)
            return made

        n = SIZE // factor
        chunks = ((channels,), *[(min(CHUNK, n),) * (n // min(CHUNK, n))] * 2)
        return dask.array.map_blocks(block, chunks=chunks, dtype=np.uint8, meta=np.empty((0,) * 3, np.uint8))


def scales(counted: Counted, count: int) -> Any:
    """A SpatialData with the picture ``he`` of several scales in µm."""
    sd = pytest.importorskip("spatialdata", reason="spatialdata is not installed: regframe[spatialdata]")
    import xarray
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Scale, set_transformation

    levels = [Image2DModel.parse(counted.level(2**k), dims=("c", "y", "x")) for k in range(count)]
    if count == 1:
        element: Any = levels[0]
    else:
        for level in levels:
            level.attrs.clear()
        element = xarray.DataTree.from_dict({f"scale{k}": xarray.Dataset({"image": a}) for k, a in enumerate(levels)})
    set_transformation(element, {"global": Scale([1.0, 1.0], ("x", "y"))}, set_all=True)
    counted.bytes = counted.most = 0
    return sd.SpatialData(images={"he": element})


def finest(element: Any) -> Any:
    return element["scale0"]["image"] if hasattr(element, "children") else element


def same(got: Any, expected: Any) -> None:
    """Pixels alike but for halves that round the other way, one in 100 000 at most."""
    assert got.shape == expected.shape
    off = np.abs(got.astype(int) - expected)
    assert off.max() <= 1
    assert (off > 0).mean() < 1e-5


def test_a_large_image_is_carried_block_by_block(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spatialdata = pytest.importorskip("spatialdata", reason="spatialdata is not installed: regframe[spatialdata]")
    import dask

    monkeypatch.setattr(rf.SlideOptions, "edge", lambda *_: 512)  # pixels of a block
    fixed = rf.Grid((100, 130), 10.0, (5.0, 5.0), "µm")
    result = fake_result(fixed, MOVING, TURN)
    counted = Counted()
    data = scales(counted, 3)
    whole = SIZE * SIZE * 3
    rs.align_elements(data, result, unit="um", spacing=1.0, map_path=tmp_path / "map.ome.zarr")
    assert counted.bytes == 0  # nothing is computed before somebody asks
    twin = data["he_aligned"]
    assert [dict(node.sizes)["x"] for node in twin.children.values()] == [1300, 650, 325]
    array = finest(twin).data
    assert array.shape == (3, 1000, 1300)
    assert array.chunksize == (3, 512, 512)
    # one block, within the tissue: what a block of the source needs, not more
    one = array[:, 512:768, 512:768].compute(scheduler="synchronous")
    needed = counted.bytes
    assert (
        0 < needed < 0.15 * whole
    )  # of a part of a block, turned by 20°: at most 5 × 5 chunks of 16 × 16, and the border
    # the pixels are those of the whole
    with dask.config.set(scheduler="synchronous"):
        picture = rf.Image.from_array(counted.level(1).compute(), "cyx", 1.0, (0.5, 0.5), unit="µm")
        expected = rf.resample(picture, result.transform, fixed.resampled(1.0), 0.0).data.numpy()
    same(one, expected[:, 512:768, 512:768])
    same(array[1, 700:750:7, 1100].compute(), expected[1, 700:750:7, 1100])
    # written as a whole: blocks share source chunks, and memory stays that of a few blocks
    counted.bytes = counted.most = 0
    with dask.config.set(scheduler="synchronous"):
        spatialdata.SpatialData(images={"he_aligned": twin}).write(tmp_path / "s.zarr")
    assert counted.bytes < 1.2 * whole  # every level from one of its own size
    assert counted.most < 0.25 * whole  # the chunks of one block
    assert counted.held == 0
    again = spatialdata.read_zarr(tmp_path / "s.zarr")["he_aligned"]
    same(finest(again).values, expected)
    at = {"x": 700.5, "y": 600.5}
    coarse = [float(node["image"][1].sel(at, method="nearest").values) for node in again.children.values()]
    np.testing.assert_allclose(coarse, coarse[0], atol=2)  # all levels lie alike


def test_coarse_canvases_read_coarse_levels() -> None:
    counted = Counted()
    data = scales(counted, 4)
    result = fake_result(rf.Grid((160, 160), 10.0, (5.0, 5.0), "µm"), MOVING, TURN)
    rs.align_elements(data, result, unit="um")
    assert data["he_aligned"].shape == (3, 160, 160)
    data["he_aligned"].compute()
    assert counted.bytes < 0.04 * SIZE * SIZE * 3  # the level of 8 µm, an eighth of the pixels per axis, and its border
    counted.bytes = 0
    image = rs.open_element(data, "he", unit="um")
    assert image.grid.shape == (2048, 2048)  # what a registration needs
    assert counted.bytes == 2048 * 2048 * 3
    np.testing.assert_allclose(image.grid.origin, 0.5)
    assert rs.open_element(data, "he", unit="um", scale=3).grid.spacing == (8.0, 8.0)


def test_white_around_brightfield_and_images_of_one_scale() -> None:
    sd = pytest.importorskip("spatialdata", reason="spatialdata is not installed: regframe[spatialdata]")
    from spatialdata.models import Image2DModel, Labels2DModel

    grid = rf.Grid((64, 64))
    shift = torch.eye(3, dtype=torch.float64)
    shift[:2, 2] = 20
    bright = np.full((3, 64, 64), 240, np.uint8)
    data = sd.SpatialData(
        images={"he": Image2DModel.parse(bright, dims=("c", "y", "x"), c_coords=["r", "g", "b"])},
        labels={"ids": Labels2DModel.parse(np.full((64, 64), 2**40, np.int64), dims=("y", "x"))},
    )
    rs.align_elements(data, fake_result(grid, grid, shift, bend=0.0))
    corner = data["he_aligned"].values[:, [0, 40], [0, 40]]
    np.testing.assert_array_equal(corner, [[255, 240]] * 3)
    ids = data["ids_aligned"].values
    assert ids.dtype == np.int64
    assert (ids[0, 0], ids[40, 40]) == (0, 2**40)


@pytest.mark.parametrize("place", ["inside", "beside"])
def test_the_map_is_found_again(place: str, tmp_path: Path) -> None:
    sd = pytest.importorskip("spatialdata", reason="spatialdata is not installed: regframe[spatialdata]")
    import geopandas
    from spatialdata.models import ShapesModel

    spots = geopandas.GeoDataFrame({"radius": [1.0, 1.0]}, geometry=geopandas.points_from_xy([9, 30], [8, 10]))
    data = sd.SpatialData(shapes={"spots": ShapesModel.parse(spots)})
    store = tmp_path / "s.zarr"
    data.write(store)
    result = fake_result(rf.Grid((60, 90)), rf.Grid((70, 80)))
    path = store / "regframe" / "aligned.ome.zarr" if place == "inside" else tmp_path / "map.ome.zarr"
    with pytest.raises(ValueError, match=r"that elements were carried to \(none\), got 'aligned'; name one"):
        rs.load_map(data)
    rs.align_elements(data, result, map_path=path)
    reference = {"coordinate_system": "aligned", "map": path.name if place == "beside" else "regframe/aligned.ome.zarr"}
    assert data["spots_aligned"].attrs["regframe"] == reference
    data.write_element("spots_aligned")
    data.write_transformations("spots")
    data.write_attrs()
    again = sd.read_zarr(store)
    assert set(again.shapes) == {"spots", "spots_aligned"}
    where = torch.tensor([[20.0, 30.0], [50.0, 10.0]], dtype=torch.float64)
    for held in (data, again):
        loaded = rs.load_map(held)
        assert torch.equal(loaded.transform.points(where), result.transform.points(where))
    import zarr

    scene = zarr.open_group(path, mode="r").attrs["ome"]["scene"]  # RFC-5, for others
    assert {system["name"] for system in scene["coordinateSystems"]} >= {"fixed", "moving"}
    path.rename(tmp_path / "elsewhere.ome.zarr")
    with pytest.raises(FileNotFoundError, match=r"wanted the map .* in .*s\.zarr or .*, got none; say where"):
        rs.load_map(again)
    again.attrs["regframe"]["aligned"]["map"] = "elsewhere.ome.zarr"
    assert rs.load_map(again, folder=tmp_path).fixed_grid == result.fixed_grid
    again.attrs["regframe"]["aligned"]["map"] = None
    with pytest.raises(ValueError, match="wanted the map to 'aligned', got none saved"):
        rs.load_map(again)
