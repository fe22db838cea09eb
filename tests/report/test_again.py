"""The page of a saved result drawn again, from Python and from the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner
from fake_result import fake_result

import regframe as rf
from regframe.cli import main
from regframe.report import results

GRID = rf.Grid((40, 50))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50), dtype=np.uint8)
    paths = tmp_path / "fixed one.png", tmp_path / "moving.png"
    for path in paths:
        PIL.Image.fromarray(pixels).save(path)
    return paths


def test_a_run_shows_itself_again(files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fixed, moving = files
    run = {
        side: {"path": path, "adapter": "image", "options": {}}
        for side, path in zip(("fixed", "moving"), files, strict=True)
    }
    results.write_run(tmp_path / "out", fake_result(GRID, GRID), (rf.open(fixed), rf.open(moving)), run)
    first = (tmp_path / "out" / "report.html").read_bytes()
    assert b"regframe apply image out moving.png" in first
    for folder in (Path("out"), Path("out") / "transform.ome.zarr"):
        (tmp_path / "out" / "report.html").unlink()
        assert rf.load(folder).report() == Path("out") / "report.html"
        assert (tmp_path / "out" / "report.html").read_bytes() == first
    elsewhere = rf.load("out").report(tmp_path / "b.html", moving=rf.PointSet(torch.rand((30, 2)) * 40, name="spots"))
    assert "spots" in elsewhere.read_text(encoding="utf-8")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    assert rf.load("out").overlay().get_title() == "fixed one.png and moving.png"
    pyplot.close("all")


def test_a_map_saved_from_python_has_its_page_beside_it(files: tuple[Path, Path], tmp_path: Path) -> None:
    fake_result(GRID, GRID).save(tmp_path / "mine.ome.zarr")
    result = rf.load(tmp_path / "mine.ome.zarr")
    with pytest.raises(ValueError, match="wanted the fixed data to draw, which nothing records; pass fixed="):
        result.report()
    with pytest.raises(ValueError, match="pass fixed="):
        result.overlay()
    page = result.report(fixed=files[0], moving=rf.open(files[1]))
    assert page == tmp_path / "mine.report.html"
    first = page.read_text(encoding="utf-8")
    page.unlink()
    store = str(tmp_path / "mine.ome.zarr")
    done = CliRunner().invoke(main, ["report", store, "--fixed", str(files[0]), "--moving", str(files[1])])
    assert done.exit_code == 0, done.output
    assert page.read_text(encoding="utf-8").count("<img") == first.count("<img")
    done = CliRunner().invoke(main, ["report", store])
    assert done.exit_code == 2
    assert "--fixed and --moving" in done.output


def test_a_result_in_memory_wants_a_path(tmp_path: Path) -> None:
    image = rf.Image(torch.rand((1, 40, 50)), GRID)
    with pytest.raises(ValueError, match="wanted a path for the page"):
        fake_result(GRID, GRID).report(fixed=image, moving=image)
    page = fake_result(GRID, GRID).report(tmp_path / "a.html", image, image)
    assert "<h1>Confirmed</h1>" in page.read_text(encoding="utf-8")
