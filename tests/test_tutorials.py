"""The tutorials run as they are printed, on files that anyone can make, and the notebooks are made of them."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import regframe as rf
from regframe.cli import main

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
NAMES = ("stains", "fluorescence", "xenium", "cells", "atlas", "rounds", "slide", "wrong")
WITHIN_PX = {
    "stains": 0.1,
    "fluorescence": 0.5,
    "xenium": 0.5,
    "cells": 1.0,
    "atlas": 4.0,
    "rounds": 0.1,
    "slide": 0.5,
    "wrong": 3.0,
}
"""Mean error in moving pixels (of tables: units, of the atlas voxels) that the last command of each tutorial may print: about
twice what it printed when it was written."""


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_tutorials", DOCS / "make_tutorials.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_tutorials"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `regframe demo --data` writes."""
    folder = tmp_path_factory.mktemp("tutorials") / "demo-data"
    assert CliRunner().invoke(main, ["demo", "--data", str(folder)]).exit_code == 0
    return folder


def test_there_are_eight_of_one_screen_each(maker: ModuleType) -> None:
    pages = sorted((DOCS / "tutorials").glob("*.md"))
    assert {page.stem for page in pages} == set(NAMES) == set(maker.PAGES)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 45, page.name
        assert "## Is it right?" in text, page.name
        assert f"(images/{page.stem}.jpg)" in text, page.name
        assert f"(docs/tutorials/{page.name})" in readme, page.name
        assert maker.commands(page.stem)[-1][0] == "evaluate", page.name
        with Image.open(DOCS / "tutorials" / "images" / f"{page.stem}.jpg") as picture:
            picture.verify()
    sizes = [path.stat().st_size for path in (DOCS / "tutorials" / "images").iterdir()]
    assert len(sizes) == len(NAMES)
    assert max(sizes) < 50_000


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_its_page_run_and_small(name: str, maker: ModuleType) -> None:
    path = DOCS / "notebooks" / f"{name}.ipynb"
    assert path.stat().st_size <= 150_000
    held = json.loads(path.read_text(encoding="utf-8"))
    assert maker.sources(held) == maker.sources(maker.notebook(name)), (
        f"run python docs/make_tutorials.py --run DIR {name}"
    )
    code = [cell for cell in held["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code)
    said = json.dumps([cell["outputs"] for cell in code])
    assert "image/jpeg" in said
    assert "Traceback" not in said
    assert str(Path.home()) not in said


def test_bars_and_empty_outputs_are_left_out(maker: ModuleType) -> None:
    stream = {"output_type": "stream", "name": "stdout"}
    outputs = [
        {**stream, "text": "\x1b[2K\n"},
        {**stream, "text": "affine ━━━ 3 / 200\r\nwrote run\r\n"},
        {"output_type": "execute_result", "data": {"text/plain": "<Axes>"}},
    ]
    assert maker.quiet(outputs) == [{**stream, "text": "wrote run\n"}]
    assert maker.quiet(outputs[:1]) == []


def test_the_truth_beside_the_inputs_is_true(tmp_path: Path) -> None:
    from regframe.testing import demo, lessons

    made = lessons.write(tmp_path, demo.make())
    assert {name.split("/")[0] for name in made} == {path.name for path in tmp_path.iterdir()}
    stained, moved = (rf.open(path) for path in (tmp_path / "stained.png", tmp_path / "rounds" / "r1.ome.tif"))
    assert moved.grid.spacing == (0.5, 0.5)
    assert (tmp_path / "stained_points.csv").read_text() == (
        tmp_path / "r1_points.csv"
    ).read_text()  # round 1 is not moved
    dark = 255 - np.asarray(stained).astype(float).mean(axis=-1)
    piece = np.asarray(Image.open(tmp_path / "piece.png")).astype(float)
    pairs = [rows(tmp_path / f"{name}_points.csv") for name in ("piece_in_stained", "piece")]
    seen = [values[tuple(at.round().astype(int).T)] for values, at in zip((dark, piece), pairs, strict=True)]
    assert np.corrcoef(*seen)[0, 1] > 0.5  # the piece is blurred by two pixels of the picture
    labels = rf.open(tmp_path / "atlas.nrrd") if (tmp_path / "atlas.nrrd").exists() else None
    assert labels is None  # of the files of other pages none is written here


def rows(path: Path) -> np.ndarray:
    with path.open(encoding="utf-8") as file:
        return np.array([[float(row["y"]), float(row["x"])] for row in csv.DictReader(file)])


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:regframe. one side declares no pixel size:UserWarning"
)  # of the section, as its page says
@pytest.mark.parametrize("name", NAMES)
def test_a_tutorial_runs_as_printed(name: str, maker: ModuleType, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    matplotlib.use("Agg")
    monkeypatch.chdir(place)
    for command in maker.commands(name):
        done = CliRunner().invoke(main, command)
        assert done.exit_code == (3 if command[:2] == ["register", "stained.png"] and "first" in command else 0), (
            done.output
        )
    (error,) = [line for line in done.stdout.splitlines() if line.startswith("after, px")]
    assert float(error.split()[2]) < WITHIN_PX[name]
    for body in [body for kind, body in maker.parts(name) if kind == "python"]:
        exec(compile(body, name, "exec"), {})
    matplotlib.pyplot.close("all")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(name: str, maker: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("nbclient", reason="needs the extra docs")
    pytest.importorskip("ipykernel", reason="needs the extra docs")
    folder = tmp_path / "demo-data"
    assert CliRunner().invoke(main, ["demo", "--data", str(folder)]).exit_code == 0
    made = maker.run(maker.notebook(name), folder)
    said = json.dumps(made)
    assert "after, px" in said
    assert "image/jpeg" in said
