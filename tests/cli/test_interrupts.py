"""SIGINT and SIGTERM end a command within a second, in one sentence, with nothing left; doctor names what kills leave."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import click.testing
import pytest

from regframe.cli import main
from regframe.io import claims

COMMAND = """
import hashlib, subprocess, sys, time
from pathlib import Path
import click
from regframe.cli import main
from regframe.io import outputs
how, target = sys.argv.pop(), Path(sys.argv.pop())

@main.command()
def busy():
    child = subprocess.Popen(["sleep", "60"]) if how == "child" else None
    with outputs.staged(target, overwrite=True) as path:
        path.write_text("half")
        print(child.pid if child else 0, flush=True)
        if how == "stuck":  # a library that does not come back, whatever signals come
            hashlib.pbkdf2_hmac("sha256", b"a", b"b", 10**9)
        while True:
            time.sleep(0.01)
main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize(
    ("number", "how"),
    [(signal.SIGINT, "python"), (signal.SIGTERM, "python"), (signal.SIGTERM, "stuck"), (signal.SIGINT, "child")],
)
def test_a_signal_ends_a_command_within_a_second(tmp_path: Path, number: signal.Signals, how: str) -> None:
    target = tmp_path / "out.txt"
    target.write_text("before")
    line = [sys.executable, "-c", COMMAND, "busy", str(target), how]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        time.sleep(0.05)
        process.send_signal(number)
        sent = time.monotonic()
        _, said = process.communicate(timeout=20)
        took = time.monotonic() - sent
    assert process.returncode == 128 + number
    assert [line.startswith("interrupted; ") for line in said.splitlines()] == [True], said
    assert took < 1.0 or os.getloadavg()[0] > 2 * (os.cpu_count() or 1), f"{took:.2f} s"
    assert target.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["out.txt"]
    if child:
        state = Path(f"/proc/{child}/stat")
        assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_doctor_names_and_removes_what_interrupted_runs_left(tmp_path: Path) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    gone = tmp_path / f".a.csv.{claims._machine()}-{process.pid}-1-abcd.partial"
    far = tmp_path / ".b.csv.00000000-7-1-abcd.partial"
    for folder in (gone, far, tmp_path / "slide.zarr.partial"):
        folder.mkdir()
    (far / claims.OWNER).write_text(json.dumps({"host": "node7"}))
    (tmp_path / "slide.zarr.partial" / "plan.json").write_text("{}")
    runner = click.testing.CliRunner()
    told = runner.invoke(main, ["doctor", str(tmp_path)]).output
    assert f"{gone}: dead of process {process.pid}, --clean removes it" in told
    assert f"{far}: unknown of process 7 on node7, left alone" in told
    assert "slide.zarr.partial: unfinished, kept" in told
    assert gone.exists()
    state = json.loads(runner.invoke(main, ["doctor", str(tmp_path), "--clean", "--json"]).stdout)
    assert next(one["action"] for one in state["left_over"]) == "removed"
    assert {p.name for p in tmp_path.iterdir()} == {far.name, "slide.zarr.partial"}
    assert runner.invoke(main, ["doctor", str(tmp_path / "no")]).exit_code == 2


def test_a_port_that_takes_a_connection_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    from regframe.batch import pools

    monkeypatch.setattr(pools, "ANSWER", -4)  # five seconds more are given
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with (
            pytest.raises(ValueError, match=r"wanted a Dask scheduler at tcp://127.0.0.1:\d+, got no answer"),
            pools.Cluster(address),
        ):
            pass
