"""The processes of jobs are forked from one that has loaded everything: what becomes of them and of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from regframe.batch import forkserver

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True, scope="module")
def closed() -> Iterator[None]:
    yield
    forkserver.close()


def start(log: Path, *command: str, **environment: str) -> forkserver.Running:
    with log.open("ab") as file:
        return forkserver.start(command, file, {**ENVIRONMENT, **environment})


def end(process: forkserver.Running) -> int:
    """Close its stdin, as a supervisor does or leaves behind; its exit code."""
    assert process.stdin is not None
    process.stdin.close()
    return process.wait()


def waits(process: forkserver.Running) -> bool:
    """Whether the process still waits for its order."""
    time.sleep(0.1)
    return process.poll() is None


def test_processes_end_with_their_own_codes_and_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.csv").write_text("x,y\n1,2\n3,4\n")
    right, wrong, here = (tmp_path / f"{name}.log" for name in ("right", "wrong", "here"))
    processes = [start(right, "--help"), start(wrong, "nonsense"), start(here, "info", "here.csv")]
    assert [end(p) for p in processes] == [0, 2, 0]
    assert [p.poll() for p in processes] == [0, 2, 0]
    assert "Usage: regframe" in right.read_text()
    assert "No such command 'nonsense'" in wrong.read_text()
    assert "points" in here.read_text()  # found in the folder of whoever asked


def test_a_process_is_killed_alone(tmp_path: Path) -> None:
    first, second = (start(tmp_path / "log", "batch-job", str(tmp_path / name)) for name in "ab")
    assert isinstance(first, forkserver.Forked)
    assert waits(first)
    first.kill()
    assert end(first) == -signal.SIGKILL
    assert waits(second)
    with pytest.raises(ProcessLookupError):
        os.kill(first.pid, 0)
    assert end(second) == 1  # it has no order: its supervisor is gone


def test_with_its_server_a_job_is_lost_and_the_next_one_has_a_new_one_with_its_environment(tmp_path: Path) -> None:
    process = start(tmp_path / "log", "batch-job", str(tmp_path / "lost"))
    assert waits(process)
    title = Path(f"/proc/{process.pid}/cmdline").read_bytes()
    server = forkserver._server
    assert server is not None
    server._process.kill()
    assert end(process) == -signal.SIGKILL
    state = Path(f"/proc/{process.pid}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"  # nobody may care to reap it
    assert end(start(tmp_path / "log", "--help", REGFRAME_ISA="baseline")) == 0
    assert forkserver._server is not None
    assert forkserver._server.environment["REGFRAME_ISA"] == "baseline"
    pytest.importorskip("setproctitle")
    assert title.startswith(f"regframe batch-job {tmp_path}/lost".encode())


def test_without_a_server_a_process_is_started_afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(environment: object) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(forkserver, "_Server", none)
    process = start(tmp_path / "log", "--help", SEEN="by the job")
    assert not isinstance(process, forkserver.Forked)
    assert end(process) == 0


def test_what_a_job_needs_is_loaded_before_it(tmp_path: Path) -> None:
    """Else each job loads it again; and nothing that is loaded has started a thread, which a fork would lose."""
    code = (
        "import importlib, json, os, sys\n"
        "from regframe.batch import forkserver\n"
        "for name in forkserver.LOADED: importlib.import_module(name)\n"
        "print(json.dumps([len(os.listdir('/proc/self/task')), sorted(sys.modules)]))\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    threads, loaded = json.loads(said.stdout)
    assert threads == 1
    assert {"torch", "regframe.solvers.images", "regframe_image.adapter", "regframe.report.results"} <= set(loaded)
    assert not {"matplotlib", "pandas", "dask", "distributed"} & set(loaded)
