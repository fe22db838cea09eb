"""What the report says: the expected error, what to do next, and commands with the user's own paths."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from fake_result import fake_result

import regframe as rf
from regframe.display import lines
from regframe.report import results, words
from regframe.report.words import Places

GRID = rf.Grid((60, 70), 0.5, (), "µm")
FOUND = {"severity": "warn", "sentence": "it <leans>", "figure": 1.0, "threshold": 0.5, "remedy": "straighten it"}


def made(verdict: str = "pass") -> rf.Result:
    result = fake_result(GRID, GRID, verdict=verdict, findings=[FOUND], reasons=["it <leans>; straighten it"])
    return dataclasses.replace(result, position_sd=torch.full(result.weight_grid.shape, 1.0))  # type: ignore[union-attr]


def test_the_expected_error_stands_in_the_headline_in_the_fixed_unit() -> None:
    assert words.expected(made()).startswith("2.1 µm (4.3 px): nine positions in ten")
    assert words.expected(made("warn")).endswith("if the map is right, which is not confirmed")
    assert words.expected(made("fail")) == ""  # nothing speaks for the map: no number that looks as if something did
    assert words.expected(fake_result(GRID, GRID)) == ""


def test_next_steps_are_the_remedies_of_what_was_found() -> None:
    image = rf.Image(torch.rand((1, 60, 70)), GRID)
    page = results.render(made("warn"), image, image, 100, 50, Places("my run", "a.tif", "b's.tif"))
    assert "<li>Straighten it.</li>" in page
    assert "it &lt;leans&gt;" in page
    assert "<li>it &lt;leans&gt;</li>" in page  # the remark is said once, and what helps once
    assert "regframe view &#39;my run&#39;" in page
    assert "rf.load(&#39;my run&#39;)" in page
    assert "unrelated pair" not in page
    assert "unrelated pair" in " ".join(words.next_steps(made("fail"), Places()))


def test_the_paths_are_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = {"fixed": {"path": tmp_path / "slides" / "a.tif"}, "moving": {"path": "/elsewhere/b.csv"}}
    assert Places.of(Path("out"), run) == Places("out", str(Path("slides") / "a.tif"), "/elsewhere/b.csv")
    assert Places.of(tmp_path / "out", {}) == Places("out")


@pytest.mark.parametrize("side", ["image", "points"])
def test_landmarks_are_drawn_with_their_residuals(side: str) -> None:
    image = rf.Image(torch.rand((1, 60, 70)), GRID)
    data = image if side == "image" else rf.PointSet(torch.rand((40, 2)) * 30, "µm")
    options = {"fixed": [[5.0, 5.0], [20.0, 9.0]], "moving": [[6.0, 6.0], [20.0, 9.0]]}
    result = fake_result(GRID, GRID, bend=0.0)
    assert 'alt="Landmarks"' not in results.render(result, data, data, 100, 50)
    config = result.config.model_copy(update={"init": "landmarks", "init_options": options})
    page = results.render(dataclasses.replace(result, config=config), data, data, 100, 50)
    assert 'alt="Landmarks"' in page
    assert "at most 2.83 px (number 1)" in page
    moved = {"fixed": [[5.0, 5.0]], "moving": [[9.0, 8.0]]}  # a map corrected by others than it began from shows those
    later = dataclasses.replace(result, config=config, metrics={**result.metrics, "landmarks": moved})
    page = results.render(later, data, data, 100, 50)
    assert "(of 1)" in page
    assert "at most 10 px" in page


def test_figures_for_experts_are_folded_away() -> None:
    image = rf.Image(torch.rand((1, 60, 70)), GRID)
    page = results.render(made(), image, image, 100, 50)
    assert page.count("<details>") == 4
    assert "<details open" not in page
    assert "prefers-color-scheme: dark" in page


def test_small_errors_and_own_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the pages of stacks, rounds and mosaics show: no digits that no pixel shows, and paths as they would be typed here."""
    assert [words.small(value) for value in (None, math.nan, 2.2e-5, 0.0, 0.0234, 3.456)] == [
        "–", "–", "under 0.001", "under 0.001", "0.023", "3.5",
    ]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert words.quoted(tmp_path / "a b" / "c.ome.zarr") == '"a b/c.ome.zarr"'
    assert words.quoted(Path("/elsewhere") / 'x"y') == '"/elsewhere/x\\"y"'


def test_no_line_of_a_page_ends_within_an_option() -> None:
    said = lines.unbroken("<b> goes on; give --moving-mpp 0.5, -o or --set a.b=c, not half-way at 3-5 or x--y")
    assert said == (
        '&lt;b&gt; goes on; give <span class="option">--moving-mpp</span> 0.5, <span class="option">-o</span> or '
        '<span class="option">--set</span> a.b=c, not half-way at 3-5 or x--y'
    )
