"""What the page shows is what regframe.resample gives; every answer to nonsense is one sentence."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Picture

import regframe
from regframe.evaluation import match_probability
from regframe.view.display import Look
from regframe.view.session import Session, Setting
from regframe.view.source import Side, Source
from regframe.view.tiles import TILE, Canvas, Kept, Warped


def picture(answer: Any) -> np.ndarray[Any, Any]:
    assert answer.status_code == 200, answer.text
    return np.asarray(Picture.open(io.BytesIO(answer.content)))


def test_tiles_are_the_pixels_of_resample(opened: Callable[..., Any], pair: tuple[Path, Path]) -> None:
    client, session = opened()
    session.place(7.0, False, 1.1, (2.5, -3.0))
    session.decide(True)
    shown = session.current
    fixed, moving = (regframe.open(path) for path in pair)
    wanted = regframe.resample(moving, shown.result.transform, fixed.grid).data.numpy().transpose(1, 2, 0)
    inside = moving.grid.contains(shown.result.transform.inverse().points(fixed.grid.coords())).numpy()
    level = session.canvas.top
    got = picture(client.get(f"/tiles/moving/{shown.key}/{level}/0/0"))
    assert got.shape == (120, 150, 4)
    assert (got[..., 3] == 255 * inside).all()
    assert np.abs(got[..., :3].astype(int) - wanted.astype(int))[inside].max() <= 1
    assert (
        picture(client.get(f"/tiles/fixed/{shown.key}/{level}/0/0"))[..., :3] == fixed.data.numpy().transpose(1, 2, 0)
    ).all()


def test_the_files_own_pixels_are_what_a_warp_would_give(pair: tuple[Path, Path]) -> None:
    """A side that is not moved is read, not warped, at the resolutions that it has itself."""
    side = Side.of(Source(pair[0]))
    assert side.pyramid is not None
    canvas = Canvas(side.pyramid.levels[0].grid)
    still = Warped(side.pyramid, regframe.Affine.identity(2, side.grid.unit), canvas)
    for level in (canvas.top, canvas.top - 1, canvas.top - 3):
        region = tuple(slice(n // 3, n) for n in canvas.at(level).shape)
        read, seen = still.pixels(level, region)
        assert (seen == 255).all()
        assert np.array_equal(read, still._plan(level, False).pixels(region))


def test_coarse_levels_are_means(opened: Callable[..., Any], pair: tuple[Path, Path]) -> None:
    client, session = opened()
    own = np.asarray(Picture.open(pair[0])).astype(float)
    got = picture(client.get(f"/tiles/fixed/{session.current.key}/{session.canvas.top - 1}/0/0")).astype(float)
    mean = own.reshape(60, 2, 75, 2, 3).mean(axis=(1, 3))
    assert np.abs(got - mean).max() <= 1


@pytest.mark.parametrize(
    "path",
    [
        "/tiles/moving/none/3/0/0",
        "/tiles/other/KEY/3/0/0",
        "/tiles/moving/KEY/99/0/0",
        "/tiles/moving/KEY/3/5/0",
        "/tiles/moving/KEY/-1/0/0",
        "/layers/KEY/weight",
        "/lines/KEY/other",
        "/drawn/KEY/0",
        "/api/values?key=KEY&y=1",
        "/api/values?key=KEY&y=nan&x=1",
        "/api/values?key=KEY&y=1e300&x=1",
        "/api/export/other",
    ],
)
def test_nonsense_is_one_sentence(opened: Callable[..., Any], path: str) -> None:
    client, session = opened()
    answer = client.get(path.replace("KEY", session.current.key))
    assert answer.status_code in (400, 404)
    assert "Traceback" not in answer.text


def test_values_under_the_pointer(opened: Callable[..., Any], pair: tuple[Path, Path]) -> None:
    client, session = opened()
    found = client.get(f"/api/values?key={session.current.key}&y=30&x=40").json()
    assert list(found["fixed"].values()) == np.asarray(Picture.open(pair[0]))[30, 40].tolist()
    assert found["moving_at"] == [30, 40]
    assert client.get(f"/api/values?key={session.current.key}&y=-30&x=40").json()["fixed"] is None


def test_channels_are_drawn_as_asked(tmp_path: Path) -> None:
    import tifffile

    path = tmp_path / "cells.ome.tif"
    planes = np.stack([np.full((40, 50), 100, np.uint16), np.full((40, 50), 300, np.uint16)])
    planes[:, 0, 0] = 0
    tifffile.imwrite(path, planes, metadata={"axes": "CYX", "Channel": {"Name": ["<b>DAPI</b>", "CD3"]}})
    side = Side.of(Source(path))
    assert side.pyramid is not None
    look = Look.of(side.pyramid)
    assert (look.kind, look.names) == ("channels", ("<b>DAPI</b>", "CD3"))
    drawn = look.draw(planes, look.style("0:ff0000:0:200,1:00ff80:0:300"))
    assert drawn[5, 5].tolist() == [128, 255, 128]
    assert look.draw(planes, look.style("none")).max() == 0
    for wrong in ("0:ff0000:0", "9:ff0000:0:1", "0:red:0:1", "0:ff0000:0:1e999", "<script>"):
        with pytest.raises(ValueError, match="wanted"):
            look.style(wrong)


def test_what_is_kept_is_bounded() -> None:
    kept = Kept(100, len)
    made = []
    for i in range(50):
        kept.get(i, lambda i=i: made.append(i) or b"x" * 30)
    assert kept.held <= 100
    assert kept.get(49, lambda: b"") == b"x" * 30
    assert len(made) == 50


def test_a_result_with_layers_and_points(opened: Callable[..., Any], pair: tuple[Path, Path], tmp_path: Path) -> None:
    fixed, moving = (regframe.open(path) for path in pair)
    result = regframe.register(fixed, moving, transform="affine", init="identity")
    client, session = opened(result=result, folder=tmp_path / "run")
    key = session.current.key
    state = client.get("/api/state").json()
    assert state["maps"]["current"]["layers"] == ["weight", "sd", "area", "bend"]
    for name in state["maps"]["current"]["layers"]:
        assert picture(client.get(f"/layers/{key}/{name}")).shape[:2] == (256, 320)
        legend = client.get(f"/layers/{key}/{name}/legend").json()
        assert legend["low"] < legend["high"]
    values = client.get(f"/api/values?key={key}&y=60&x=70").json()["layers"]
    weight = match_probability(result, torch.tensor([[60.0, 70.0]], dtype=torch.float64))
    assert values["weight"] == pytest.approx(float(weight))
    assert values["area"] == pytest.approx(1.0, abs=1e-6)
    assert len(client.get(f"/lines/{key}/grid").json()) > 20
    assert all(len(line) == 2 for line in client.get(f"/lines/{key}/arrows").json())


def test_points_are_drawn_where_they_are(pair: tuple[Path, Path], tmp_path: Path) -> None:
    table = tmp_path / "cells.csv"
    table.write_text("x,y\n3,5\n10,20\n", encoding="utf-8")
    shapes = tmp_path / "area.geojson"
    shapes.write_text('{"type": "LineString", "coordinates": [[0.5, 0.5], [10.5, 20.5]]}', encoding="utf-8")
    from starlette.testclient import TestClient

    from regframe.view.server import application

    setting = Setting(Source(pair[0]), Source(pair[1]), tmp_path / "out")
    gate, session = application(setting, "word", {"fixed": [table, shapes]})
    client = TestClient(gate, base_url="http://localhost:1")
    client.get("/?token=word")
    key = session.current.key
    assert np.frombuffer(client.get(f"/drawn/{key}/0").content, "<f4").tolist() == [3.5, 5.5, 10.5, 20.5]
    assert np.frombuffer(client.get(f"/drawn/{key}/1").content, "<f4").tolist() == [0.5, 0.5, 10.5, 20.5]
    drawings = client.get("/api/state").json()["drawings"]
    assert [drawing["offsets"] for drawing in drawings] == [[], [0, 2]]


def test_tables_and_volumes(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    table = tmp_path / "cells.csv"
    table.write_text("x,y\n" + "".join(f"{i},{2 * i}\n" for i in range(9)), encoding="utf-8")
    session = Session(Setting(Source(table), Source(pair[1]), tmp_path / "out"))
    assert session.fixed.points is not None
    assert session.tile("moving", session.current.key, session.canvas.top, 0, 0, "")
    with pytest.raises(ValueError, match="pixels"):
        session.tile("fixed", session.current.key, session.canvas.top, 0, 0, "")
    assert TILE == 512
    np.save(tmp_path / "volume.npy", np.zeros((8, 9, 10), np.float32))
    volume = Source(tmp_path / "volume.npy", None, {"axes": "zyx"})
    assert Side.of(volume).grid.ndim == 3
    with pytest.raises(ValueError, match="volume"):
        Session(Setting(volume, Source(pair[1]), tmp_path / "out"))
