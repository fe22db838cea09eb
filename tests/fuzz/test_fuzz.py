"""Damaged files of every kind: none ends in a defect, a crash or a hang, takes the memory, or says more than a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz_run import BAD, Bench, Outcome, in_children, table
from fuzz_seeds import SEEDS

COUNT, FIRST = 253, 20_000
"""Damaged files in every run of the tests, and the first seed: the same ones each time."""
MANY = 20_000
"""Damaged files of the slow test."""


def _damaged(folder: Path, first: int, count: int) -> None:
    pytest.importorskip("SimpleITK")
    pytest.importorskip("anndata")
    bench = Bench(folder)
    assert bench.unsound() == []
    kinds = list(SEEDS)
    outcomes: list[Outcome] = []
    in_children(bench, [(kinds[i % len(kinds)], first + i) for i in range(count)], outcomes.append)
    wrong = [o for o in outcomes if o.word in BAD]
    assert not wrong, table(outcomes) + "\n" + "\n".join(map(str, wrong[:20]))
    assert len(outcomes) == count


def test_damaged_files(tmp_path: Path) -> None:
    _damaged(tmp_path, FIRST, COUNT)


@pytest.mark.slow
def test_many_damaged_files(tmp_path: Path) -> None:
    _damaged(tmp_path, 1_000_000, MANY)


def test_a_child_that_dies_or_hangs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fuzz_run

    bench = Bench(tmp_path, ["png"])
    monkeypatch.setattr(fuzz_run, "DEADLINE", 1.0)
    told: list[Outcome] = []
    for end, word in (("os.kill(os.getpid(), 9)", "signal"), ("time.sleep(60)", "hang")):
        monkeypatch.setattr(
            fuzz_run, "run", lambda arguments, end=end: exec(end, {"os": fuzz_run.os, "time": fuzz_run.time})
        )
        in_children(bench, [("png", 1)], told.append)
        assert told.pop().word == word


@pytest.mark.parametrize("number", ["1e300", "-1e300", "1e160"])
def test_an_affine_map_of_numbers_whose_power_overflows(tmp_path: Path, number: str) -> None:
    from fuzz_run import run, word_for

    bench = Bench(tmp_path, ["itk"])
    path = bench.sound["itk"]
    path.write_text(path.read_text().replace("Parameters: 1.0", f"Parameters: {number}"))
    code, said = run(bench.command("itk", path))
    assert word_for(code, said) == "refused", said
    assert "wanted an invertible affine map" in said
