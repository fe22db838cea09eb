"""`regframe bench`: what it measures is checked first, and what it prints says what stood beside it."""

import itertools
import json
import os
import subprocess
import sys

import click.testing
import pytest
import torch

from regframe import ops
from regframe.cli import main
from regframe.testing import bench

needs_build = pytest.mark.skipif(not ops.is_built(), reason=f"build the ops with `{ops.BUILD_COMMAND}`")


@needs_build
def test_the_short_form_measures_against_eager_torch() -> None:
    n_kernels = len(bench.SIZES) + (torch.get_num_threads() > 1)
    rows = list(itertools.islice(bench.short(rounds=1, scale=1 / 32), n_kernels))
    assert [row["what"] for row in rows if row["what"].startswith("warp")] == [
        f"warp and its gradients, {n}" for n in bench.SIZES
    ]
    for row in rows:
        assert row["ratio"] == pytest.approx(row["rival_seconds"] / row["seconds"])


@needs_build
@pytest.mark.parametrize("ndim", [2, 3])
def test_nothing_is_timed_that_is_wrong(ndim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = bench.make_case(ndim, 32, 2, 3, 8)
    grad = torch.ones_like(case[0])
    bench.check(case, 4, grad)
    right = bench.kernel
    monkeypatch.setattr(bench, "kernel", lambda c: right(c) * 1.02)
    with pytest.raises(ArithmeticError, match="tolerance"):
        bench.check(case, 4, grad)


def test_runs_take_turns_and_the_first_round_does_not_count() -> None:
    turns: list[str] = []
    seconds = bench.interleaved({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, rounds=3, in_a_row=2)
    assert turns == ["a", "b"] + ["a", "a", "b", "b"] * 3
    assert set(seconds) == {"a", "b"}


def test_the_machine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = bench.machine()
    assert machine["torch"] == torch.__version__
    assert machine["threads"] == torch.get_num_threads()
    if ops.is_built():
        assert machine["instruction_set"] in ("baseline", "avx2", "avx512")
        monkeypatch.setenv("REGFRAME_ISA", "baseline")
        assert bench.instruction_set() == "baseline"


def test_the_command_prints_each_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"what": "warp", "seconds": 0.01, "rival": "eager torch", "rival_seconds": 0.08, "ratio": 8.0},
        {"what": "register", "seconds": 2.5, "error_px": 0.03, "n_evaluations": 200},
    ]
    asked: list[tuple[int, float]] = []

    def short(rounds: int, scale: float) -> list[dict[str, object]]:
        asked.append((rounds, scale))
        return rows

    monkeypatch.setattr(bench, "short", short)
    before = torch.get_num_threads()
    outcome = click.testing.CliRunner().invoke(main, ["bench", "--quick", "--threads", "1"])
    assert outcome.exit_code == 0, outcome.output
    assert "warp: 10.0 ms, eager torch 80.0 ms: 8.0 times as long" in outcome.stdout
    assert "register: 2.50 s, error 0.030 px in the mean, 200 evaluations" in outcome.stdout
    assert torch.get_num_threads() == before
    outcome = click.testing.CliRunner().invoke(main, ["bench", "--json"])
    assert json.loads(outcome.stdout)["measurements"] == rows
    assert asked == [(1, 0.125), (7, 1.0)]


def test_the_command_line_asks_for_threads_that_sleep_while_they_wait() -> None:
    name = "OMP_WAIT_POLICY"
    code = f"import os; before = os.environ.get('{name}'); import regframe.cli; print(before, os.environ['{name}'])"
    bare = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    for env, says in ((bare, "None PASSIVE"), ({**bare, "OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE ACTIVE")):
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == says
