"""That `accuracy` still runs: one small pair through the table of errors, the count of verdicts, a row that raises."""

import os
from pathlib import Path

import accuracy
import numpy as np
import pytest
import torch
import truth
from scipy.ndimage import map_coordinates

import regframe as rf

DATA = Path(os.environ.get("REGFRAME_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


@pytest.fixture
def data() -> Path:
    if not (DATA / "01_seed_cells").is_dir():
        pytest.skip("no seed pair; set REGFRAME_DATA to the folder that has 01_seed_cells")
    return DATA


def test_row(data: Path) -> None:
    """The seed pair, aligned and judged; peers that were not started are said not to have run."""
    bench = accuracy.Bench(data, quick=True)
    run = accuracy.truth_row(bench, truth.seed(data))
    assert run.wrong is False, run
    assert bench.lines[-1].startswith("| seed | mean, px | 14.2 |")
    assert bench.lines[-1].count("not run") == 3
    accuracy.verdicts(bench)
    assert "- wrong ones called pass: **0** (must be 0)" in bench.lines


def test_scores(data: Path) -> None:
    """The truth itself has no error, doing nothing is wrong, and a pose is undone on the positions it is judged by."""
    pair = truth.seed(data)
    assert pair.score(pair.p) == 0
    assert not pair.wrong(pair.p, untouched=0.0)
    assert pair.wrong(pair.q)
    assert pair.wrong(pair.p * float("nan"))
    posed = truth.posed(pair, truth.Draw(30.0, True, 2.0, (0.1, 0.0)))
    index = np.array([[300, 300], [200, 340], [410, 280]])
    expected = map_coordinates(pair.moving.data[0].numpy().astype(float), posed.original(index).T, order=1)
    np.testing.assert_allclose(posed.moving.data[0, *index.T].numpy(), expected, atol=0.51)


def test_a_row_that_raises() -> None:
    """What is raised is the row's reason, and the verdict table counts it."""
    bench = accuracy.Bench(Path())
    flat = rf.Image(torch.zeros(1, 16, 16), rf.Grid((16, 16)))
    run, result = bench.register("unlike", "nothing", flat, flat)
    assert result is None
    assert run.verdict == "error"
    assert "constant" in run.reasons[0]
    accuracy.verdicts(bench)
    assert "| unlike | 0 | 0 | 0 | 0 | 0 | 0 | 0 | 0 | 1 |" in bench.lines


def test_verdicts() -> None:
    """A wrong one that passed is named; right ones are counted by what was said of them."""
    bench = accuracy.Bench(Path())
    said = [("pass", True), ("pass", False), ("warn", False), ("fail", False), ("pass", None)]
    bench.runs += [accuracy.Run("poses", f"run {i}", verdict, wrong=w) for i, (verdict, w) in enumerate(said)]
    accuracy.verdicts(bench)
    assert "| all | 1 | 1 | 0 | 0 | 3 | 1 | 1 | 1 | 0 |" in bench.lines
    assert "- wrong ones called pass: **1** (must be 0): run 0" in bench.lines
    assert "- right ones called fail: **33 %** (at most 5 %): run 3" in bench.lines
