"""A pair of volumes: planes across every axis, the moving side warped, what has no meaning there refused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image as Picture
from scipy import ndimage
from starlette.testclient import TestClient

import regframe
from regframe.data import Grid
from regframe.view.planes import Planes
from regframe.view.server import application
from regframe.view.session import Setting
from regframe.view.source import Source

SHAPE = (20, 30, 40)


@pytest.fixture
def volumes(tmp_path: Path) -> tuple[Path, Path]:
    """Noise of 20 × 30 × 40 voxels, twice as thick as wide; the moving side lies three voxels further along x."""
    noise = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((20, 30, 50)), 2)
    whole = np.rint(255 * (noise - noise.min()) / np.ptp(noise)).astype(np.uint8)
    pixels = {f"PhysicalSize{a}": s for a, s in zip("XYZ", (1.0, 1.0, 2.0), strict=True)}
    units = {f"PhysicalSize{a}Unit": "µm" for a in "XYZ"}
    for name, x in (("fixed", 5), ("moving", 2)):
        tifffile.imwrite(
            tmp_path / f"{name}.ome.tif", whole[:, :, x : x + 40], metadata={"axes": "ZYX", **pixels, **units}
        )
    return tmp_path / "fixed.ome.tif", tmp_path / "moving.ome.tif"


def test_slices_of_both_sides(volumes: tuple[Path, Path], tmp_path: Path) -> None:
    fixed, moving = map(regframe.open, volumes)
    shift = np.eye(4)
    shift[2, 3] = -3.0
    base = regframe.register(fixed, moving, transform="rigid", init=regframe.Affine(shift, "µm", "µm"))
    gate, session = application(Setting(*map(Source, volumes), tmp_path / "out", base), token="word")
    try:
        client = TestClient(gate, base_url="http://127.0.0.1:8000")
        client.get("/?token=word")
        told = client.get("/api/state").json()
        assert [(plane["axis"], plane["count"]) for plane in told["planes"]] == [("z", 20), ("y", 30), ("x", 40)]
        assert [(plane["height"], plane["width"]) for plane in told["planes"]] == [(30, 40), (40, 40), (40, 30)]
        key, values = told["maps"]["current"]["key"], fixed.data[0].numpy()
        shown = {}
        for axis, number, level in (("z", 7, 6), ("y", 11, 6), ("x", 20, 6)):
            for side in ("fixed", "moving"):
                answer = client.get(f"/tiles/{side}/{key}/{level}/0/0", params={"plane": f"{axis}:{number}"})
                assert answer.status_code == 200, answer.text
                shown[axis, side] = np.asarray(Picture.open(io.BytesIO(answer.content)).convert("RGB"))[..., 0].astype(
                    float
                )
        for (axis, _side), picture in shown.items():
            plane = {"z": values[7], "y": values[:, 11], "x": values[:, :, 20]}[axis].astype(float)
            if axis != "z":  # square pixels: every row of the file is two rows of the screen
                assert picture.shape == (2 * plane.shape[0], plane.shape[1])
                picture = picture.reshape(plane.shape[0], 2, -1).mean(axis=1)
            inner = (slice(2, -2), slice(6, -6))
            assert np.corrcoef(picture[inner].ravel(), plane[inner].ravel())[0, 1] > 0.97, axis
        under = client.get("/api/values", params={"key": key, "y": 11, "x": 20, "plane": "z:7"}).json()
        assert under["fixed_at"] == [14.0, 11.0, 20.0]
        assert next(iter(under["fixed"].values())) == values[7, 11, 20]
        for plane in ("z:20", "w:1", "z:-1", "x"):
            assert client.get(f"/tiles/fixed/{key}/6/0/0", params={"plane": plane}).status_code == 400
        for path, body in (("place", {"turn": 5}), ("correct", {"region": [[[0, 0], [0, 9], [9, 9]]]}),
                           ("align", {"begin": "shown"})):  # fmt: skip
            answer = client.post(f"/api/{path}", json=body)
            assert answer.status_code == 400
            assert "volumes" in answer.json()["problem"], path
    finally:
        session.close()


def test_planes_have_square_pixels() -> None:
    planes = Planes(Grid((10, 20, 30), (3.0, 1.0, 1.5), (1.0, 0.0, 0.0), "µm"))
    assert planes.canvases["z"].grids[0].spacing == (1.0, 1.0)
    assert planes.canvases["x"].grids[0].spacing == (1.0, 1.0)
    assert planes.position(("y", 4), (2.0, 3.0)) == (2.0, 4.0, 3.0)
    assert planes.read("") == ("z", 5)
    with pytest.raises(ValueError, match="within the volume"):
        planes.read("y:20")


def test_one_volume_and_one_picture(volumes: tuple[Path, Path], pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two flat sides or two volumes"):
        application(Setting(Source(volumes[0]), Source(pair[1]), tmp_path / "out"))
