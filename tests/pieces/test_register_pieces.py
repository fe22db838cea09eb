"""Slides in pieces, made of the tissue that scikit-image ships: found, matched, registered, named."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from scipy.ndimage import map_coordinates

import regframe as rf
from benchmarks import pieces as measured
from benchmarks import slides_in_pieces as made
from regframe import verdict
from regframe.cli import main
from regframe.pieces import match, pair
from regframe.pieces.align import asked
from regframe.pieces.find import find
from regframe.pieces.pair import Sides, by_place

SHIPPED = ("colon",)
"""Tissue that is there without a folder of data."""
SMALL = made.Made(2, 3, diameter=56, missing=1, exchanged=2, turn=180.0, tissues=SHIPPED)


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


def test_a_grid_that_lies_turned_over_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair, "VOTERS", 3)
    monkeypatch.setattr(match, "CANVAS", 60)  # smaller, and so faster
    monkeypatch.setattr(match, "ACROSS", 36)
    monkeypatch.setattr(pair, "ACROSS", 36)
    slides = made.microarray(4, made.Made(2, 3, diameter=56, missing=0, exchanged=0, lean=0.0, tissues=SHIPPED))
    over = slides.moving.replace(data=slides.moving.data.flip(-1))
    found = find(slides.fixed, 6, 2, 3), find(over, 6, 2, 3)
    pairs, lie = by_place(Sides(*found))
    assert lie.mirrored
    assert all(lie(found[1].pieces[p.moving].place or (9, 9)) == found[0].pieces[p.fixed].place for p in pairs)
    assert len(pairs) == 6


def torn() -> tuple[rf.Image, rf.Image, dict[int, np.ndarray[Any, Any]]]:
    """A section, its two halves turned by 10 degrees against each other, and the map of each half."""
    tissue = made.tissue("colon")
    assert tissue is not None
    yy, xx = np.mgrid[:150, :190].astype(float)
    inside = ((yy - 75) / 52) ** 2 + ((xx - 95) / 68) ** 2 < 1
    cut = (slice(100, 250), slice(100, 290))
    rng = np.random.default_rng(0)
    fixed = made.stained(np.where(inside, 0.12 + 0.88 * tissue.first[cut], 0.0), made.HE, rng)
    density, maps = np.zeros((150, 190)), {}
    for sign in (-1, 1):
        maps[sign] = made.turn_about(5.0 * sign, np.array([75.0, 95.0 + 34 * sign]), np.array([75.0, 95.0 + 41 * sign]))
        at = made.carried(np.linalg.inv(maps[sign]), np.stack([yy, xx], axis=-1).reshape(-1, 2)).T
        own = map_coordinates((inside & (sign * (xx - 95) > 0)).astype(float), at, order=1) > 0.5
        shown = map_coordinates(tissue.second[cut], at, order=1)
        density += np.where(own, 0.12 + 0.88 * shown, 0.0).reshape(150, 190)
    return fixed, made.stained(density, made.DAB, rng), maps


def test_a_torn_section_from_the_command_line(tmp_path: Path) -> None:
    fixed, moving, maps = torn()
    for name, image in (("f.png", fixed), ("m.png", moving)):
        Image.fromarray(image.numpy()).save(tmp_path / name)
    sides = [str(tmp_path / "f.png"), str(tmp_path / "m.png")]
    run = CliRunner().invoke(
        main, ["register", *sides, "-o", str(tmp_path / "out"), "--pieces", "auto", "--transform", "rigid", "--json"]
    )
    assert run.exit_code == 0, run.output
    figures = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [entry["partner"] for entry in figures["pieces"]] == ["1", "1"]
    assert (tmp_path / "out" / "report.html").is_file()
    result = rf.load(tmp_path / "out")
    for sign in (-1, 1):
        at = np.array([[75.0, 95.0 + 40 * sign], [60.0, 95.0 + 20 * sign]])
        off = np.linalg.norm(result.to_moving(torch.from_numpy(at)).numpy() - made.carried(maps[sign], at), axis=1)
        assert off.max() < 1
    (seam,) = figures["seams"]
    assert seam["side"] == "fixed"
    assert 8 < seam["jump"]["median"] < 30
    bad = CliRunner().invoke(
        main, ["register", *sides, "-o", str(tmp_path / "no"), "--pieces", "2", "--init", "identity"]
    )
    assert bad.exit_code == 2
    assert "--pieces alone" in bad.output


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
