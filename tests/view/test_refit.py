"""What the other process is asked after a drag, or for a region: shown, superseded, saved, repeated by the printed command."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click.testing
import pytest
import torch

import regframe
from regframe.cli import main
from regframe.contracts import Progress
from regframe.correction.images import Looked
from regframe.report import results
from regframe.view import regions, worker
from regframe.view.session import Session
from regframe.view.worker import GaveWay, Touch, touched

PAIRS = [
    {"id": i, "name": str(i), "fixed": [y, x], "moving": [y + 4 + dy, x - 6 + dx]}
    for i, (y, x, dy, dx) in enumerate(
        [(30, 40, 1, 0), (90, 40, 0, 1), (30, 110, 0, -1), (90, 110, -1, 0), (60, 75, 2, 2)], 1
    )
]
REGION = [[[25, 35], [25, 115], [100, 115], [100, 35]]]


@pytest.fixture(scope="module")
def finished(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the pair."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    words = [
        "register",
        *map(str, pair),
        "-o",
        str(folder),
        "--transform",
        "affine",
        "--set",
        "pyramid.max_pixels=5000",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "write", lambda *_: None)
        ran = click.testing.CliRunner().invoke(main, words)
    assert ran.exit_code in (0, 3), ran.output
    return folder


@pytest.fixture
def started(
    opened: Callable[..., Any], pair: tuple[Path, Path], finished: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, Session, list[Touch]]:
    """A page of the run, with landmarks, whose other process answers at once; and what it was asked."""
    monkeypatch.setattr(results, "write", lambda *_: None)  # the report is tested elsewhere
    client, session = opened(result=regframe.load(finished), folder=finished)
    looked, asked = Looked.of(*map(regframe.open, pair)), []

    def touch(question: Touch) -> bool:
        asked.append(question)
        session._heard("touched", (question.number, touched(question, looked)))
        return True

    monkeypatch.setattr(session.worker, "touch", touch)
    assert client.put("/api/landmarks", json={"revision": 0, "pairs": PAIRS}).status_code == 200
    return client, session, asked


def same(one: Path, other: Path) -> None:
    """Two folders of one map, equal to the byte."""
    files = [
        sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file()) for folder in (one, other)
    ]
    assert files[0] == files[1]
    for file in files[0]:
        assert (one / file).read_bytes() == (other / file).read_bytes(), file


def test_a_region_is_corrected_and_the_command_repeats_it(started: Any, tmp_path: Path) -> None:
    client, session, asked = started
    before = session.current.result.transform
    answer = client.post("/api/correct", json={"region": REGION})
    assert answer.status_code == 200, answer.text
    assert asked[0].rings
    assert session.fresh.title == "Corrected in a region"
    client.post("/api/decide", json={"take": True})
    told = client.post("/api/save", json={}).json()
    words = shlex.split(told["command"])
    assert words[:2] == ["regframe", "correct"]
    kept = Path(told["folder"]).rename(tmp_path / "page")
    ran = click.testing.CliRunner().invoke(main, words[1:])
    assert ran.exit_code == 0, ran.output
    same(kept, tmp_path / "out")
    found = regframe.load(tmp_path / "out").transform
    at = regions.read(tmp_path / "out.region.geojson", session.grids().fixed).box
    outside = torch.tensor([[5.0, 5], [110, 140], [at[0][0] - 1, 60]], dtype=torch.float64)
    inside = torch.tensor([[60.0, 75]], dtype=torch.float64)
    assert torch.equal(found.inverse().points(outside), before.inverse().points(outside))
    assert float((found.inverse().points(inside) - before.inverse().points(inside)).norm()) > 0.05
    assert client.post("/api/correct", json={"region": [[[1, 1], [2, 2]]]}).status_code == 400
    assert client.post("/api/correct", json={"region": "everything"}).status_code == 400


def test_a_drag_is_answered_at_once_and_then_by_the_images(started: Any, tmp_path: Path) -> None:
    client, session, asked = started
    client.post("/api/follow", json={})
    assert len(asked) == 1
    steps = [step["do"] for step in session.fresh.steps]
    assert steps in (["open", "refit"], ["open", "bend"])  # the images may ask for nothing
    at = torch.tensor([PAIRS[4]["fixed"]], dtype=torch.float64)
    to = torch.tensor([PAIRS[4]["moving"]], dtype=torch.float64)
    assert float((session.fresh.result.transform.inverse().points(at) - to).norm()) < 1.5
    client.post("/api/decide", json={"take": True})
    told = client.post("/api/save", json={}).json()
    words = shlex.split(told["command"])
    assert words[1] == "view"
    kept = Path(told["folder"]).rename(tmp_path / "page")
    ran = click.testing.CliRunner().invoke(main, words[1:])
    assert ran.exit_code == 0, ran.output
    same(kept, tmp_path / "out")
    assert [step["do"] for step in json.loads((tmp_path / "out" / "steps.json").read_text())["steps"]] == steps


def test_an_answer_that_comes_too_late_is_dropped(started: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client, session, _ = started
    waiting: list[Touch] = []
    monkeypatch.setattr(session.worker, "touch", lambda question: waiting.append(question) or True)
    client.post("/api/follow", json={})
    client.post("/api/follow", json={})
    first, second = waiting
    shown = session.fresh.key
    session._heard("touched", (first.number, session.current.result))
    assert session.fresh.key == shown
    session._heard("untouched", (second.number, "wanted more, got less"))
    assert session.fresh.key == shown
    client.post("/api/follow", json={})
    client.post("/api/decide", json={"take": True})
    taken = session.current.key
    session._heard("touched", (waiting[-1].number, session.current.result))
    assert session.fresh is None
    assert session.current.key == taken
    monkeypatch.setattr(session.worker, "touch", lambda question: False)  # an alignment runs
    assert client.post("/api/correct", json={"region": REGION}).status_code == 400


def test_a_short_fit_gives_way() -> None:
    class Pipe:
        asked = False

        def poll(self) -> bool:
            return self.asked

    pipe = Pipe()
    worker._give_way(pipe, Progress("lddmm", 1, 2))  # type: ignore[arg-type]
    pipe.asked = True
    with pytest.raises(GaveWay):
        worker._give_way(pipe, Progress("lddmm", 1, 2))  # type: ignore[arg-type]
