"""Slides in pieces, made of the tissue that scikit-image ships: found, matched, registered, named."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import regframe as rf
from benchmarks import pieces as measured
from benchmarks import slides_in_pieces as made
from regframe import verdict
from regframe.cli import main
from regframe.pieces.align import asked
from regframe.pieces.find import find
from regframe.pieces.match import ACROSS, likeness, view
from regframe.pieces.pair import Sides, by_place

SMALL = made.Made(2, 3, diameter=72, missing=1, exchanged=2, turn=180.0)


@pytest.fixture(scope="module")
def array() -> made.Slides:
    return made.microarray(3, SMALL)


@pytest.fixture(scope="module")
def aligned(array: made.Slides) -> rf.Result:
    return rf.register_pieces(array.fixed, array.moving, pieces="2x3", config=rf.Config(transform="rigid"))


def test_a_microarray_each_core_its_own_map(array: made.Slides, aligned: rf.Result) -> None:
    found = measured.judged(array, aligned)
    assert (found["right"], found["n"]) == (3, 3)
    assert (found["moved"], found["n_moved"], found["falsely"]) == (2, 2, [])
    assert found["missing"]
    said = " ".join(aligned.reasons)
    assert array.missing[0] in said
    assert all(piece.name in said for piece in array.pieces if piece.moved)
    entries = [entry for entry in aligned.metrics["pieces"] if entry["partner"] is not None]
    for entry in entries:
        (truth,) = (piece for piece in array.pieces if piece.name == entry["partner"])
        assert truth.matrix is not None
        turn = math.degrees(math.atan2(truth.matrix[0, 1], truth.matrix[0, 0]))  # of the inverse: moving to fixed
        assert abs(math.remainder(entry["turn"] - turn, 360)) < 1


def test_what_has_no_partner_is_moved_nowhere(array: made.Slides, aligned: rf.Result) -> None:
    (missing,) = (piece for piece in array.pieces if piece.matrix is None)
    assert bool(aligned.to_moving(torch.from_numpy(missing.at)).isnan().all())
    shown = aligned.to_fixed(array.moving)
    y, x = missing.at.mean(axis=0).astype(int)
    assert bool(
        (shown.data[:, y - 10 : y + 10, x - 10 : x + 10] == 255).all()
    )  # beside a bright-field image lies white


def test_saved_and_shown(array: made.Slides, aligned: rf.Result, tmp_path: Path) -> None:
    aligned.save(tmp_path / "a.ome.zarr")
    again = rf.load(tmp_path / "a.ome.zarr")
    at = torch.from_numpy(np.concatenate([piece.at for piece in array.pieces]))
    assert np.array_equal(again.to_moving(at).numpy(), aligned.to_moving(at).numpy(), equal_nan=True)
    rf.write_report(again, tmp_path / "report.html", array.fixed, array.moving)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h2>Pieces</h2>" in page
    assert "(fixed)</td><td>none" in page
    assert "another place" in page


def test_a_grid_that_lies_turned_over_is_found() -> None:
    slides = made.microarray(4, made.Made(2, 3, diameter=72, missing=0, exchanged=0, lean=0.0))
    over = slides.moving.replace(data=slides.moving.data.flip(-1))
    found = find(slides.fixed, 6, 2, 3), find(over, 6, 2, 3)
    pairs, lie = by_place(Sides(*found))
    assert lie.mirrored
    assert all(lie(found[1].pieces[p.moving].place or (9, 9)) == found[0].pieces[p.fixed].place for p in pairs)
    assert len(pairs) == 6


def test_likeness_finds_any_turn(array: made.Slides) -> None:
    fixed, moving = find(array.fixed, 6, 2, 3), find(array.moving, 6, 2, 3)
    (piece,) = (
        p for p in fixed.pieces if p.name == next(t.name for t in array.pieces if t.matrix is not None and not t.moved)
    )
    partner = next(p for p in moving.pieces if p.place == piece.place)
    other = next(p for p in moving.pieces if p.place != piece.place)
    pixel = piece.diameter / ACROSS
    one = view(fixed, piece, pixel)
    assert likeness(one, view(moving, partner, pixel)).score > 2 * likeness(one, view(moving, other, pixel)).score


def torn(gap: int = 4) -> tuple[rf.Image, rf.Image]:
    """A section, and its two halves turned by 10 degrees against each other."""
    tissue = made.tissue("colon")
    assert tissue is not None
    yy, xx = np.mgrid[:200, :240].astype(float)
    inside = ((yy - 100) / 70) ** 2 + ((xx - 120) / 90) ** 2 < 1
    rng = np.random.default_rng(0)
    fixed = made._stained(np.where(inside, 0.12 + 0.88 * tissue.first[100:300, 100:340], 0.0), made.HE, rng)
    density = np.zeros((200, 240))
    for sign in (-1, 1):
        matrix = made.turn_about(
            5.0 * sign, np.array([100.0, 120.0 + 45 * sign]), np.array([100.0, 120.0 + (50 + gap) * sign])
        )
        at = made.carried(np.linalg.inv(matrix), np.stack([yy, xx], axis=-1).reshape(-1, 2)).T
        own = made.map_coordinates((inside & (sign * (xx - 120) > 0)).astype(float), at, order=1) > 0.5
        shown = made.map_coordinates(tissue.second[100:300, 100:340], at, order=1)
        density += np.where(own, 0.12 + 0.88 * shown, 0.0).reshape(200, 240)
    return fixed, made._stained(density, made.DAB, rng)


def test_a_torn_section_is_whole_on_the_other_side() -> None:
    fixed, moving = torn()
    result = rf.register_pieces(fixed, moving, config=rf.Config(transform="rigid"))
    left, right = np.array([[100.0, 70.0], [80.0, 90.0]]), np.array([[100.0, 170.0], [120.0, 150.0]])
    for sign, at in ((-1, left), (1, right)):
        matrix = made.turn_about(5.0 * sign, np.array([100.0, 120.0 + 45 * sign]), np.array([100.0, 120.0 + 54 * sign]))
        off = np.linalg.norm(result.to_moving(torch.from_numpy(at)).numpy() - made.carried(matrix, at), axis=1)
        assert off.max() < 1
    (seam,) = result.metrics["seams"]
    assert seam["side"] == "fixed"
    assert 10 < seam["jump"]["median"] < 30
    backwards = find(moving), find(fixed)
    assert [len(side.pieces) for side in backwards] == [2, 1]


def test_from_the_command_line(tmp_path: Path) -> None:
    fixed, moving = torn()
    for name, image in (("f.png", fixed), ("m.png", moving)):
        _png(image, tmp_path / name)
    run = CliRunner().invoke(
        main, ["register", str(tmp_path / "f.png"), str(tmp_path / "m.png"), "-o", str(tmp_path / "out"), "--pieces", "2",
               "--transform", "rigid", "--json"],
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    figures = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [entry["partner"] for entry in figures["pieces"]] == ["1", "1"]
    assert (tmp_path / "out" / "report.html").is_file()
    bad = CliRunner().invoke(
        main, ["register", str(tmp_path / "f.png"), str(tmp_path / "m.png"), "-o", str(tmp_path / "no"), "--pieces", "2",
               "--init", "identity"],
    )  # fmt: skip
    assert bad.exit_code == 2
    assert "--pieces alone" in bad.output


def _png(image: rf.Image, path: Path) -> None:
    from PIL import Image

    Image.fromarray(image.numpy()).save(path)


@pytest.mark.parametrize(
    ("said", "means"), [("auto", (None, 0, 0)), (3, (3, 0, 0)), ("6x8", (48, 6, 8)), ("2 × 3", (6, 2, 3))]
)
def test_what_may_be_asked_for(said: str | int, means: tuple[int | None, int, int]) -> None:
    assert asked(said) == means


@pytest.mark.parametrize("said", ["0", "six", "1x8", "6x", -2, True])
def test_what_may_not(said: str | int) -> None:
    with pytest.raises(ValueError, match="wanted pieces"):
        asked(said)


def test_bad_input_is_refused_in_a_sentence() -> None:
    flat = rf.Image.from_array(np.full((64, 64), 200, np.uint8), "yx")
    with pytest.raises(ValueError, match="contrast"):
        rf.register_pieces(flat, flat)
    volume = rf.Image.from_array(np.random.default_rng(0).random((9, 9, 9), np.float32), "zyx")
    with pytest.raises(ValueError, match="a volume of 3 axes"):
        rf.register_pieces(volume, volume)
    with pytest.raises(ValueError, match="init 'auto'"):
        rf.register_pieces(volume, volume, config=rf.Config(init="identity"))


def test_the_verdict_of_pieces() -> None:
    own = {"side": "moving", "partner": "1", "at_place": True, "verdict": "pass", "confidence": 0.99, "id": "1"}
    lost = {"side": "moving", "partner": None, "verdict": "fail", "confidence": None, "id": "2"}
    figures = {"pieces": [own], "seams": [], "folding_fraction": 0.0}
    assert verdict.worst(verdict.of_pieces(figures)) == "pass"
    assert verdict.worst(verdict.of_pieces(figures | {"pieces": [own, lost]})) == "warn"
    assert verdict.worst(verdict.of_pieces(figures | {"pieces": [own, lost, lost | {"id": "3"}]})) == "fail"
