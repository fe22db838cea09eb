"""What is kept beside the output goes nowhere else, whatever lies there; a saved folder brings its landmarks back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import regframe
from regframe.report import results
from regframe.view import steps
from regframe.view.pairs import Pair

PAIR = {"id": 1, "name": "a", "fixed": [20, 30], "moving": [24, 24]}


def test_a_link_is_replaced_not_followed(opened: Callable[..., Any], tmp_path: Path) -> None:
    victim = tmp_path / "elsewhere" / "victim.txt"
    victim.parent.mkdir()
    victim.write_text("mine", encoding="utf-8")
    for suffix in (".session.json", ".landmarks.csv", ".region.csv", ".region.geojson", ".start.txt", ".steps.json"):
        (tmp_path / f"out{suffix}").symlink_to(victim)
    client, session = opened()
    assert "unreadable" in session.said
    assert client.put("/api/landmarks", json={"revision": 0, "pairs": [PAIR]}).status_code == 200
    session.worker.ask = lambda ask: None
    session.worker.touch = lambda touch: True
    for begin in ("landmarks", "shown"):
        assert client.post("/api/align", json={"begin": begin}).status_code == 200
    ring = [[0, 0], [0, 60], [60, 60], [60, 0]]
    assert client.post("/api/correct", json={"region": [ring]}).status_code == 200
    assert victim.read_text(encoding="utf-8") == "mine"
    assert [path.name for path in victim.parent.iterdir()] == ["victim.txt"]
    for suffix in (".session.json", ".landmarks.csv", ".region.csv", ".region.geojson", ".start.txt"):
        assert not (tmp_path / f"out{suffix}").is_symlink(), suffix


def test_a_saved_folder_brings_its_landmarks_back(
    opened: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names, both sides, off and trusted; what was kept of later work goes first; a history that is none is said."""
    monkeypatch.setattr(results, "write", lambda *_: None)
    client, first = opened()
    given = [
        {**PAIR, "name": "vessel", "trusted": True},
        {**PAIR, "id": 7, "name": "=corner", "moving": [30.125, 1 / 3], "on": False},
    ]
    assert client.put("/api/landmarks", json={"revision": 0, "pairs": given}).status_code == 200
    saved = Path(client.post("/api/save", json={}).json()["folder"])
    wanted = first.pairs.now

    def again(output: str, folder: Path = saved) -> Any:
        return opened(result=regframe.load(folder), folder=folder, output=tmp_path / output)

    client, session = again("next")
    assert session.pairs.now == wanted
    assert "2 landmarks of out are shown" in session.said
    assert session.pairs.can == (False, False)
    session.replay(saved / steps.STEPS)
    assert steps.read(tmp_path / "next" / steps.STEPS).pairs == wanted
    client.put("/api/landmarks", json={"revision": 0, "pairs": given[:1]})
    assert again("next")[1].pairs.now == wanted[:1]
    damaged: list[Any] = [{}, [{}], given[:1] * 2]
    for wrong in damaged:
        text = json.dumps({"format": 1, "steps": [], "landmarks": wrong})
        (saved / steps.STEPS).write_text(text, encoding="utf-8")
        client, session = again("other")
        assert session.pairs.now == ()
        assert "landmarks of out could not be read" in session.said


def test_the_landmarks_that_a_fit_began_from(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """A run of the command line or of Python has no history; its settings hold them."""
    sides = [regframe.open(path) for path in pair]
    fixed, moving = [(20.0, 30.0), (90.0, 40.0), (30.0, 110.0)], [(24.0, 24.0), (94.0, 34.0), (34.0, 104.0)]
    config = regframe.Config.model_validate({"pyramid": {"max_pixels": 4000}})
    start = regframe.landmarks(fixed=fixed, moving=moving)
    result = regframe.register(*sides, init=start, transform="affine", config=config)
    result.save(tmp_path / "run.ome.zarr")
    assert steps.landmarks_of(regframe.load(tmp_path / "run.ome.zarr"), tmp_path / "run.ome.zarr") == tuple(
        Pair(i, str(i), one, other) for i, (one, other) in enumerate(zip(fixed, moving, strict=True), 1)
    )
