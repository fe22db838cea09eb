"""Landmarks and layers of a pair of volumes: positions of three numbers, slices of the layers, a bend, files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from starlette.testclient import TestClient

import regframe
from regframe.correction.landmarks import bent
from regframe.data import Grid
from regframe.maps.affine import Affine
from regframe.view import pairfiles
from regframe.view.bend import started
from regframe.view.pairs import Pair
from regframe.view.server import application
from regframe.view.session import Session, Setting
from regframe.view.source import Source

SHAPE = (12, 30, 40)
SPOTS = [(3.0, 6.0, 8.0), (8.0, 7.0, 30.0), (6.0, 22.0, 9.0), (3.0, 24.0, 31.0), (9.0, 15.0, 20.0), (5.0, 12.0, 25.0)]


@pytest.fixture
def page(tmp_path: Path) -> Iterator[tuple[TestClient, Session]]:
    """A page of two small volumes, with a bent map that has figures of how sure it is."""
    for name in ("fixed", "moving"):
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(0).integers(0, 255, SHAPE).astype(np.uint8))
    sides = [Source(tmp_path / f"{name}.npy", None, {"axes": "zyx"}) for name in ("fixed", "moving")]
    grid = Grid(SHAPE, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), "px")
    found = started(torch.eye(4, dtype=torch.float64), grid, grid)
    q = torch.tensor(SPOTS, dtype=torch.float64)
    transform = bent(found.transform, grid, q + torch.tensor([0.0, 0.5, -1.5]), q)
    values = torch.linspace(0, 1, SHAPE[0])[:, None, None].expand(SHAPE).contiguous()
    base = regframe.Result(transform, grid, grid, found.metrics, found.config, found.affine,
                           weight=values, weight_grid=grid, position_sd=1 + values)  # fmt: skip
    gate, session = application(Setting(*sides, tmp_path / "out", base), token="word")
    session.worker.touch = lambda touch: False  # type: ignore[method-assign]
    client = TestClient(gate, base_url="http://127.0.0.1:8000")
    client.get("/?token=word")
    yield client, session
    session.close()


def put(client: TestClient, spots: list[Any], moved: Any = (0.0, 0.0, 0.0)) -> Any:
    revision = client.get("/api/landmarks").json()["revision"]
    rows = [
        {"id": i, "name": f"m{i}", "fixed": list(at), "moving": [a + b for a, b in zip(at, moved, strict=True)]}
        for i, at in enumerate(spots, 1)
    ]
    return client.put("/api/landmarks", json={"revision": revision, "pairs": rows})


def test_a_volume_bends_to_its_landmarks() -> None:
    grid = Grid((60, 120, 160), (2.0, 1.0, 1.0), (0.0, 0.0, 0.0), "um")
    random = np.random.default_rng(1)
    q = torch.tensor(random.uniform(10, (110, 110, 150), (7, 3)))
    p = q + torch.tensor(random.normal(0, 3, (7, 3)))
    found = bent(Affine.identity(3, "um"), grid, p, q)
    assert float((found.points(p) - q).norm(dim=1).max()) < 0.5  # what a click is trusted to
    assert float((found.inverse().points(found.points(q)) - q).norm(dim=1).max()) < 1e-6
    again = bent(found, grid, p + 1, q)  # on a map that is bent already
    assert float((again.points(p + 1) - q).norm(dim=1).max()) < 0.5


def test_landmarks_on_slices(page: tuple[TestClient, Session]) -> None:
    client, session = page
    answer = put(client, SPOTS, (0.0, 2.0, 0.0)).json()
    assert [len(pair["shown"]) for pair in answer["pairs"]] == [3] * 6
    key = session.current.key
    partner = client.post("/api/predict", json={"key": key, "side": "fixed", "at": [4, 10, 12]}).json()["at"]
    assert len(partner) == 3
    assert client.post("/api/follow", json={}).status_code == 200
    assert session.fresh is not None
    assert max(pair["residual"] for pair in session.landmarks(session.fresh.key)["pairs"]) < 0.5
    wrong = [*SPOTS[:5], (5.0, 12.0, 25.0)]
    rows = [{"id": i, "name": "", "fixed": at, "moving": at} for i, at in enumerate(wrong, 1)]
    rows[5]["moving"] = (5.0, 28.0, 2.0)
    revision = client.get("/api/landmarks").json()["revision"]
    told = client.put("/api/landmarks", json={"revision": revision, "pairs": rows}).json()
    assert [pair["odd"] for pair in told["pairs"]] == [False] * 5 + [True]
    flat = [{"id": 1, "name": "", "fixed": [1, 2], "moving": [1, 2]}]
    refused = client.put("/api/landmarks", json={"revision": revision + 1, "pairs": flat})
    assert refused.status_code == 400
    assert "3 numbers" in refused.json()["problem"]


@pytest.mark.parametrize("name", pairfiles.OF_VOLUMES)
def test_files_hold_three_axes(page: tuple[TestClient, Session], name: str) -> None:
    client, session = page
    put(client, SPOTS, (0.25, 2.0, -1.0))
    text = client.get(f"/api/export/{name}").text
    before = session.pairs.now
    read = pairfiles.read(text, session.grids())
    assert [(one[1], one[2]) for one in read] == [(pair.fixed, pair.moving) for pair in before]
    assert client.post("/api/import", json={"both": text}).status_code == 200
    assert [pair.fixed for pair in session.pairs.now[6:]] == [pair.fixed for pair in before]
    if name == "csv":
        assert next(csv.reader(io.StringIO(text)))[1:4] == ["fixed_z", "fixed_y", "fixed_x"]
    assert client.get("/api/export/qupath-fixed").status_code == 400
    assert client.post("/api/import", json={"both": "fixed_y,fixed_x,moving_y,moving_x\n1,2,3,4\n"}).status_code == 400


@pytest.mark.parametrize(("plane", "size"), [("z:6", (240, 320)), ("y:9", (96, 320)), ("x:11", (128, 320))])
def test_layers_of_slices(page: tuple[TestClient, Session], plane: str, size: tuple[int, int]) -> None:
    client, session = page
    key = session.current.key
    assert session.map_of(key).fields.names == ("weight", "sd", "area", "bend")
    for name in ("weight", "sd", "area", "bend"):
        answer = client.get(f"/layers/{key}/{name}", params={"plane": plane})
        picture = np.asarray(Picture.open(io.BytesIO(answer.content)).convert("RGBA"))
        assert picture.shape[:2] == size
        assert (picture[..., 3] == 255).mean() > 0.5
        legend = client.get(f"/layers/{key}/{name}/legend", params={"plane": plane}).json()
        assert legend["low"] < legend["high"]
    weight = np.asarray(Picture.open(io.BytesIO(client.get(f"/layers/{key}/weight", params={"plane": "y:9"}).content)))
    assert weight[2, 160, 0] < weight[-2, 160, 0]  # from dark to yellow along z
    for lines in ("grid", "arrows"):
        found = client.get(f"/lines/{key}/{lines}", params={"plane": plane}).json()
        assert len(found) > 10
        x, y = np.array([at for line in found for at in line]).T
        canvas = session.planes.canvases[plane[0]].grids[0]  # type: ignore[union-attr]
        assert x.min() > -3
        assert x.max() < canvas.shape[1] + 3
        assert y.min() > -3
        assert y.max() < canvas.shape[0] + 3
    under = client.get("/api/values", params={"key": key, "y": 9, "x": 20, "plane": "z:6"}).json()
    assert under["layers"]["weight"] == pytest.approx(6 / 11, abs=1e-6)
    assert under["layers"]["sd"] == pytest.approx(2.5003 * (1 + 6 / 11), rel=1e-3)


def test_a_pair_has_as_many_numbers_on_both_sides() -> None:
    with pytest.raises(ValueError, match="both sides"):
        Pair.of({"id": 1, "name": "", "fixed": [1, 2, 3], "moving": [1, 2]})
