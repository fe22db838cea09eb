"""Landmarks: kept, undone, judged; in files of other programs; the map that follows them."""

from __future__ import annotations

import base64
import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import regframe
from regframe.data import Grid
from regframe.view import pairfiles
from regframe.view.bend import corrected, started
from regframe.view.pairs import Pair, Pairs, Stale, disagreement, judged, used

SIDES = pairfiles.Sides(Grid((100, 120), (0.5, 0.5), (0.25, 0.25), "µm"), Grid((90, 110)))


def pairs_of(n: int = 9, bad: int | None = None) -> list[Pair]:
    """Pairs on a lattice under a turned and shrunk map; one of them may be wrong by some 40 px."""
    matrix = np.array([[0.96, -0.1], [0.12, 0.95]])
    found = []
    for i, (y, x) in enumerate(itertools.islice(itertools.product((15, 60, 105), (20, 75, 130)), n)):
        moving = matrix @ (y, x) + (3, -4) + (0.3 * np.sin(i), 0.3 * np.cos(2 * i))
        if i == bad:
            moving += (30, -25)
        found.append(Pair(i + 1, f"p{i + 1}", (float(y), float(x)), (float(moving[0]), float(moving[1]))))
    return found


def test_undo_and_redo() -> None:
    pairs = Pairs()
    one, two = pairs_of(2)
    pairs.put([one])
    pairs.put([one, two], pairs.revision)
    pairs.step(-1)
    assert pairs.now == (one,)
    assert pairs.can == (True, True)
    pairs.step(1)
    pairs.step(1)
    assert pairs.now == (one, two)
    pairs.step(-1)
    pairs.put([two])
    assert pairs.can == (True, False)
    with pytest.raises(Stale):
        pairs.put([], 1)
    with pytest.raises(ValueError, match="twice"):
        pairs.put([one, one])


@pytest.mark.parametrize(
    "given",
    [
        None,
        {},
        {"id": "1", "name": "", "fixed": [1, 2], "moving": [1, 2]},
        {"id": True, "name": "", "fixed": [1, 2], "moving": [1, 2]},
        {"id": 1, "name": 3, "fixed": [1, 2], "moving": [1, 2]},
        {"id": 1, "name": "x" * 999, "fixed": [1, 2], "moving": [1, 2]},
        {"id": 1, "name": "", "fixed": [1, float("nan")], "moving": [1, 2]},
        {"id": 1, "name": "", "fixed": [1], "moving": [1, 2]},
        {"id": 1, "name": "", "fixed": "12", "moving": [1, 2]},
    ],
)
def test_a_pair_is_checked(given: Any) -> None:
    with pytest.raises(ValueError, match="wanted"):
        Pair.of(given)


@pytest.mark.parametrize("n", [4, 5, 6, 9])
@pytest.mark.parametrize("seed", range(3))
def test_the_wrong_pair_is_found(n: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    p = random.uniform(0, 1000, (n, 2))
    turn = np.array([[0.8, -0.6], [0.6, 0.8]]) * np.array([1, -1]) ** seed
    q = p @ turn.T + random.normal(0, 1.5, (n, 2))
    assert not disagreement(p, q)[1].any()
    wrong = int(random.integers(n))
    q[wrong] += (260, -260)
    away, odd = disagreement(p, q)
    assert np.flatnonzero(odd).tolist() == [wrong]
    assert away[wrong] > 180


def test_a_wrong_pair_is_left_out_unless_it_is_trusted() -> None:
    pairs = pairs_of(6, bad=2)
    assert [pair.id for pair in used(pairs)] == [1, 2, 4, 5, 6]
    trusted = [Pair(**{**pair.__dict__, "trusted": pair.id == 3}) for pair in pairs]
    assert len(used(trusted)) == 6
    off = [Pair(**{**pair.__dict__, "on": pair.id != 3}) for pair in pairs]
    assert [pair.id for pair in used(off)] == [1, 2, 4, 5, 6]


def test_a_wrong_sixth_hardly_moves_the_map() -> None:
    five, six = pairs_of(5), pairs_of(6, bad=5)
    start = started(torch.eye(3), Grid((120, 150)), Grid((120, 150)))
    maps = [corrected(start, used(pairs), True).transform for pairs in (five, six)]
    truth = pairs_of(9)
    errors = []
    for map_ in maps:
        errors.append(np.mean([one.residual for one in judged(truth, map_.points)]))
    assert errors[1] <= 1.2 * errors[0]


def test_the_map_goes_through_its_landmarks() -> None:
    start = started(torch.eye(3), Grid((120, 150)), Grid((120, 150)))
    pairs = pairs_of(9)
    found = corrected(start, pairs, True)
    assert max(one.residual for one in judged(pairs, found.transform.points)) < 0.5
    again = corrected(found, pairs, False)
    assert max(one.residual for one in judged(pairs, again.transform.points)) < 0.5
    assert found.metrics["folding_fraction"] == 0
    assert found.metrics["roundtrip_px"]["max"] < 0.05
    dragged = [*pairs[:4], Pair(5, "p5", pairs[4].fixed, (pairs[4].moving[0] + 6, pairs[4].moving[1])), *pairs[5:]]
    moved = corrected(found, dragged, False)
    assert judged(dragged, moved.transform.points)[4].residual < 0.5
    far = torch.tensor([[2.0, 2.0]], dtype=torch.float64)
    assert float((moved.transform.inverse().points(far) - found.transform.inverse().points(far)).norm()) < 0.5
    assert moved.verdict == "warn"
    with pytest.raises(ValueError, match="at least one pair"):
        corrected(found, [], False)
    line = [Pair(i, "", (10.0 * i, 10.0 * i), (10.0 * i, 10.0 * i)) for i in range(4)]
    with pytest.raises(ValueError, match="on one line"):
        corrected(start, line, True)


@pytest.mark.parametrize("name", ["csv", "bigwarp", "explorer"])
def test_files_of_both_sides_read_back(name: str) -> None:
    pairs = pairs_of(4)
    text = pairfiles.WRITERS[name][1](pairs, SIDES)
    found = pairfiles.read(text, SIDES)
    for pair, (label, fixed, moving, on) in zip(pairs, found, strict=True):
        assert fixed == pytest.approx(pair.fixed, abs=1e-9)
        assert moving == pytest.approx(pair.moving, abs=1e-9)
        assert on
        assert name == "explorer" or label == pair.name


@pytest.mark.parametrize("name", ["qupath", "napari", "imagej", "imagej-roi", "stalign"])
def test_files_of_one_side_read_back(name: str) -> None:
    pairs = pairs_of(4)
    if name == "imagej-roi":
        pytest.importorskip("roifile", reason="needs roifile: pip install 'regframe[roi]'")
    texts = [pairfiles.WRITERS[f"{name}-{side}"][1](pairs, SIDES) for side in ("fixed", "moving")]
    fixed, moving = (
        pairfiles.read_side(text, grid) for text, grid in zip(texts, (SIDES.fixed, SIDES.moving), strict=True)
    )
    found = pairfiles.together(fixed, list(reversed(moving)) if name == "qupath" else moving)
    close = 1e-5 if name == "imagej-roi" else 1e-9  # numbers of 4 bytes
    for pair, (_, f, m, _) in zip(pairs, found, strict=True):
        assert f == pytest.approx(pair.fixed, abs=close)
        assert m == pytest.approx(pair.moving, abs=close)


def test_layouts_as_their_programs_document_them() -> None:
    bigwarp = '"Pt-0","true","10.0","20.0","30.0","40.0"\n"Pt-1","false","1.0","2.0","3.0","4.0"\n'
    assert pairfiles.read(bigwarp, SIDES) == [
        ("Pt-0", (40.0, 30.0), (20.0, 10.0), True),
        ("Pt-1", (4.0, 3.0), (2.0, 1.0), False),
    ]
    explorer = "fixedX,fixedY,alignmentX,alignmentY\n10,20,30,40\n"
    assert pairfiles.read(explorer, SIDES)[0][1:3] == ((10.25, 5.25), (40.0, 30.0))
    assert pairfiles.read_side("index,axis-0,axis-1\n0.0,7.0,8.0\n", SIDES.moving) == [("1", (7.0, 8.0))]
    assert pairfiles.read_side(" ,X,Y\n1,8,7\n", SIDES.moving) == [("1", (7.0, 8.0))]
    point = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [8.5, 7.5]}, "properties": {"name": "A"}}
    assert pairfiles.read_side(json.dumps([point]), SIDES.moving) == [("A", (7.0, 8.0))]
    out = io.BytesIO()
    np.save(out, {"A": [(8.0, 7.0)]}, allow_pickle=True)  # what STalign's point_annotator saves
    assert pairfiles.read_side(out.getvalue(), SIDES.moving) == [("A0", (7.0, 8.0))]


@pytest.mark.parametrize(
    "text", ["", "a,b\n1,2\n", "fixed_y,fixed_x\n1,2\n", "<svg/onload=alert(1)>", "{", '{"type": "Point"}', "\0"]
)
def test_other_files_are_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="wanted") as told:
        pairfiles.read(text, SIDES)
    assert "/tmp" not in str(told.value)
    with pytest.raises(ValueError, match="wanted"):
        pairfiles.read_side(text, SIDES.fixed)


def test_a_name_is_no_formula() -> None:
    text = pairfiles.write_csv([Pair(1, "=1+1", (1.0, 2.0), (3.0, 4.0))], SIDES)
    assert "\n'=1+1," in text


def test_landmarks_over_the_wire(opened: Callable[..., Any], tmp_path: Path) -> None:
    client, session = opened()
    pairs = [{"id": p.id, "name": p.name, "fixed": p.fixed, "moving": p.moving} for p in pairs_of(6, bad=3)]
    pairs[0]["name"] = "<img src=x onerror=alert(1)>"
    answer = client.put("/api/landmarks", json={"revision": 0, "pairs": pairs})
    assert answer.status_code == 200, answer.text
    rows = answer.json()["pairs"]
    assert [row["odd"] for row in rows] == [False, False, False, True, False, False]
    assert rows[0]["name"] == "<img src=x onerror=alert(1)>"
    assert client.put("/api/landmarks", json={"revision": 0, "pairs": []}).status_code == 409
    assert client.put("/api/landmarks", json={"revision": 1, "pairs": [{"id": 1}]}).status_code == 400
    assert client.post("/api/landmarks/undo", json={}).json()["pairs"] == []
    assert len(client.post("/api/landmarks/redo", json={}).json()["pairs"]) == 6
    revision = session.pairs.revision
    answer = client.put("/api/landmarks", json={"revision": revision, "pairs": pairs, "follow": True}).json()
    assert answer["maps"]["fresh"]["title"] == "Corrected by landmarks"
    line = [pair | {"fixed": [i, i], "moving": [i, i]} for i, pair in enumerate(pairs)]
    answer = client.put("/api/landmarks", json={"revision": revision + 1, "pairs": line, "follow": True}).json()
    assert "on one line" in answer["problem"]
    client.post("/api/landmarks/undo", json={})
    maps = client.post("/api/follow", json={}).json()
    assert maps["fresh"]["title"] == "Corrected by landmarks"
    at = client.post(
        "/api/predict", json={"key": maps["fresh"]["key"], "side": "fixed", "at": pairs[0]["fixed"]}
    ).json()["at"]
    assert at == pytest.approx(pairs[0]["moving"], abs=0.6)
    for name in pairfiles.offered(flat=True):
        assert client.get(f"/api/export/{name}").status_code == 200
    coded = [name for name in ("stalign", "imagej-roi") if f"{name}-fixed" in pairfiles.offered(flat=True)]
    for name in coded:
        both = {
            side: base64.b64encode(client.get(f"/api/export/{name}-{side}").content) for side in ("fixed", "moving")
        }
        answer = client.post("/api/import", json={side: {"base64": data.decode()} for side, data in both.items()})
        added = answer.json()["pairs"][6:]
        assert [row["fixed"] for row in added] == [pytest.approx(pair["fixed"], abs=1e-4) for pair in pairs]
        client.post("/api/landmarks/undo", json={})
    assert "for each side" in client.post("/api/import", json={"both": {"base64": ""}}).json()["problem"]
    assert client.post("/api/import", json={"fixed": {"base64": "!"}, "moving": ""}).status_code == 400
    own = client.get("/api/export/csv").text
    client.put("/api/landmarks", json={"revision": session.pairs.revision, "pairs": []})
    assert len(client.post("/api/import", json={"both": own}).json()["pairs"]) == 6
    assert client.post("/api/import", json={"both": "nonsense"}).status_code == 400
    client2, again = opened()  # a server that was killed
    assert len(again.pairs.now) == 6
    assert "6 landmarks" in client2.get("/api/state").json()["said"]
    (tmp_path / "out.session.json").write_text("broken", encoding="utf-8")
    _, third = opened()
    assert "set aside" in third.said
    assert third.pairs.now == ()


def test_placing_by_hand(opened: Callable[..., Any]) -> None:
    client, session = opened()
    client.post("/api/place", json={"turn": 90})
    middle = torch.tensor([session.moving.grid.center], dtype=torch.float64)
    right = middle + torch.tensor([[0.0, 10.0]])
    moved = session.fresh.result.transform.points(torch.cat([middle, right])).numpy()
    assert moved[0] == pytest.approx(session.fixed.grid.center)
    assert moved[1] - moved[0] == pytest.approx((10, 0), abs=1e-9)  # what lay on the right now lies below
    client.post("/api/place", json={"mirror": True, "scale": 2, "shift": [3, 4]})
    moved = session.fresh.result.transform.points(torch.cat([middle, right])).numpy()
    assert moved[0] == pytest.approx(np.add(session.fixed.grid.center, (3, 4)))
    assert np.linalg.norm(moved[1] - moved[0]) == pytest.approx(20)
    assert client.post("/api/decide", json={"take": False}).json()["fresh"] is None
    for wrong in ({"scale": 0}, {"scale": "1e999"}, {"turn": None}, {"shift": [1]}, {"to": "other"}):
        assert client.post("/api/place", json=wrong).status_code == 400


def test_save_equals_the_command_line(
    opened: Callable[..., Any], pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shlex

    import click.testing

    from regframe.cli import main
    from regframe.report import results
    from regframe.view.session import Session
    from regframe.view.worker import aligned

    monkeypatch.setattr(results, "write", lambda *_: None)  # the page is not what is compared
    config = regframe.Config.model_validate({"transform": "affine", "pyramid": {"max_pixels": 5000}})
    client, session = opened(config=config, words=("--transform", "affine", "--set", "pyramid.max_pixels=5000"))
    monkeypatch.setattr(session.worker, "ask", lambda ask: session._heard("done", aligned((fixed, moving), ask)))
    fixed, moving = (regframe.open(path) for path in pair)
    pairs = [{"id": i, "name": str(i), "fixed": [y, x], "moving": [y + 4.2, x - 5.9]}
             for i, (y, x) in enumerate([(20.5, 30.25), (90, 40), (30, 110.125), (100, 120), (60, 70)])]  # fmt: skip
    client.put("/api/landmarks", json={"revision": 0, "pairs": pairs})
    for begin in ("landmarks", "shown"):
        assert client.post("/api/align", json={"begin": begin}).status_code == 200
        client.post("/api/decide", json={"take": True})
        told = client.post("/api/save", json={}).json()
        words = shlex.split(told["command"])
        assert words[:2] == ["regframe", "register"]
        ours = Path(told["folder"])
        kept = ours.rename(tmp_path / f"page-{begin}")
        ran = click.testing.CliRunner().invoke(main, words[1:])
        assert ran.exit_code in (0, 3), ran.output
        for file in sorted(path.relative_to(kept) for path in kept.rglob("*") if path.is_file()):
            if file.name in ("metrics.json", "steps.json") or file == Path("transform.ome.zarr/regframe/zarr.json"):
                continue  # seconds
            assert (ours / file).read_bytes() == (kept / file).read_bytes(), file
        mine, theirs = (json.loads((folder / "metrics.json").read_text()) for folder in (kept, ours))
        assert {k: v for k, v in mine.items() if k != "seconds"} == {k: v for k, v in theirs.items() if k != "seconds"}
    client.post("/api/follow", json={})
    client.post("/api/decide", json={"take": True})
    told = client.post("/api/save", json={}).json()
    assert shlex.split(told["command"])[:2] == ["regframe", "view"]
    saved = regframe.load(told["folder"])
    replayed = Session(dataclasses_replace(session.setting, output=tmp_path / "again"))
    replayed.replay(tmp_path / "out.steps.json")
    again = regframe.load(tmp_path / "again")
    at = saved.fixed_grid.coords()
    assert torch.equal(saved.transform.inverse().points(at), again.transform.inverse().points(at))
    assert json.loads((tmp_path / "again" / "steps.json").read_text())["steps"][-1]["do"] == "bend"


def dataclasses_replace(value: Any, **changes: Any) -> Any:
    import dataclasses

    return dataclasses.replace(value, **changes)
