"""How many threads a fit runs on, and that those which wait sleep: from Python too, whatever was imported first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import click.testing
import pytest
import torch

import regframe
from regframe import machine
from regframe.cli import main
from regframe.fit import threads


def group(root: Path, own: Path, second: bool, limits: dict[str, str]) -> None:
    """Control groups of a version under ``root``, by path, with what they state; ``own`` names the innermost."""
    for path, stated in limits.items():
        place = (root if second else root / "cpu,cpuacct") / path
        place.mkdir(parents=True, exist_ok=True)
        if second:
            (place / "cpu.max").write_text(stated)
        else:
            for word, number in zip(("quota", "period"), stated.split(), strict=True):
                (place / f"cpu.cfs_{word}_us").write_text(number)
    kinds = "0::" if second else "5:cpu,cpuacct:"
    own.write_text(f"7:memory:/elsewhere\n{kinds}/{list(limits)[-1]}\n")


@pytest.mark.parametrize(
    ("second", "limits", "cores"),
    [
        (True, {"": "max 100000", "job": "150000 100000"}, 1.5),
        (True, {"job": "200000 100000", "job/task": "max 100000"}, 2.0),
        (True, {"job": "50000 100000", "job/task": "400000 100000"}, 0.5),
        (True, {"job": "max 100000"}, None),
        (False, {"docker/a": "300000 100000"}, 3.0),
        (False, {"docker/a": "-1 100000"}, None),
        (True, {"job": "nonsense"}, None),
    ],
)
def test_a_control_group_limits_the_cores(
    tmp_path: Path, second: bool, limits: dict[str, str], cores: float | None
) -> None:
    group(tmp_path / "root", tmp_path / "own", second, limits)
    assert machine.quota(tmp_path / "root", tmp_path / "own") == cores


def test_where_nothing_is_said_there_is_no_limit(tmp_path: Path) -> None:
    assert machine.quota(tmp_path, tmp_path / "none") is None


@pytest.mark.parametrize(
    ("allowed", "quota", "cores"), [(8, None, 8), (8, 2.0, 2), (8, 2.5, 3), (8, 0.2, 1), (2, 16.0, 2)]
)
def test_a_fit_takes_no_more_threads_than_there_are_cores(
    monkeypatch: pytest.MonkeyPatch, allowed: int, quota: float | None, cores: int
) -> None:
    monkeypatch.setattr(machine, "allowed", lambda: allowed)
    monkeypatch.setattr(machine, "quota", lambda: quota)
    assert machine.cores() == cores
    assert threads.workers_of(None) == cores
    before = torch.get_num_threads()
    with threads.on_threads(8), threads.threads_for(10**9):
        assert torch.get_num_threads() == cores
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("given", "first", "says"),
    [
        ({}, "", "PASSIVE False"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "", "ACTIVE False"),
        ({"GOMP_SPINCOUNT": "5"}, "", "None False"),
        ({}, "import types, sys; sys.modules['torch'] = types.ModuleType('torch')", "None True"),
        (
            {"OMP_WAIT_POLICY": "ACTIVE"},
            "import types, sys; sys.modules['torch'] = types.ModuleType('torch')",
            "ACTIVE False",
        ),
    ],
)
def test_importing_asks_for_threads_that_sleep(given: dict[str, str], first: str, says: str) -> None:
    code = f"{first}\nimport os, regframe; print(os.environ.get('OMP_WAIT_POLICY'), regframe.torch_came_first)"
    bare = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**bare, **given}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == says


@pytest.mark.parametrize(("first", "n", "parked"), [(True, 2, 1), (True, 1, 0), (False, 2, 0)])
def test_threads_that_torch_lets_spin_are_throttled(
    monkeypatch: pytest.MonkeyPatch, first: bool, n: int, parked: int
) -> None:
    """Where torch came first one thread is parked, once; never on a single thread, whose loops wait for nobody."""
    monkeypatch.setattr(regframe, "torch_came_first", first)
    monkeypatch.setattr(machine, "_parked", [])
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    before = {t.ident for t in threading.enumerate()}
    assert machine.waiting() == ("spinning" if first else "asleep")
    with threads.on_threads(n):
        machine.settle()
        machine.settle()
    assert len({t.ident for t in threading.enumerate()} - before) == parked
    assert machine.waiting() == ("asleep" if parked or not first else "spinning")


def test_doctor_says_what_it_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "allowed", lambda: 6)
    monkeypatch.setattr(machine, "quota", lambda: 1.5)
    done = click.testing.CliRunner().invoke(main, ["doctor"], catch_exceptions=False)
    assert f"processor  {os.cpu_count()} cores, 6 allowed, time for 1.5 of them (control group), load " in done.stdout
    assert "threads that wait are " in done.stdout
    done = click.testing.CliRunner().invoke(main, ["doctor", "--json"], catch_exceptions=False)
    found = json.loads(done.stdout)
    assert found["cores"] == 2
    assert found["processor"]["quota"] == 1.5


FREED = """
import resource, sys
import numpy as np
from regframe import machine
kept = machine.keep_freed() if len(sys.argv) > 1 else False
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(200):
    np.ones(1 << 17)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
"""Two hundred arrays of 1 MiB, one after another: 256 pages each."""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_kept_for_what_comes_next() -> None:
    """In a worker of Dask too, which asks glibc to give everything back; what a user states is left alone."""

    def faults(*words: str, **stated: str) -> tuple[str, int]:
        bare = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))
        }
        run = subprocess.run(
            [sys.executable, "-c", FREED, *words],
            env=bare | stated,
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
        kept, count = run.stdout.split()
        return kept, int(count)

    assert machine.keep_freed() in (True, False)  # twice is as good as once
    if faults("keep")[0] != "True":
        pytest.skip("another allocator than glibc's")
    dask = {"MALLOC_TRIM_THRESHOLD_": "65536"}
    assert faults(**dask)[1] > 40_000
    assert faults("keep", **dask)[1] < 8_000
    assert faults("keep", MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"
    assert faults("keep", GLIBC_TUNABLES="glibc.malloc.trim_threshold=131072")[0] == "False"


def test_two_things_are_done_side_by_side_on_the_threads_that_torch_may_use() -> None:
    def of(value: int) -> tuple[int, int, str]:
        return value, torch.get_num_threads(), threading.current_thread().name

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert [found[:2] for found in threads.side_by_side(of, (3, 1, 2))] == [(3, 1), (1, 1), (2, 1)]
        torch.set_num_threads(2)
        found = threads.side_by_side(of, (3, 1))
        assert [value for value, _, _ in found] == [3, 1]
        if machine.cores() > 1:
            assert all(inner == 1 and name.startswith("regframe") for _, inner, name in found)
        assert torch.get_num_threads() == 2
        with pytest.raises(ZeroDivisionError):
            threads.side_by_side(lambda value: 1 // value, (1, 0))
    finally:
        torch.set_num_threads(before)
