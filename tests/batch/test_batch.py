"""Batches: the manifest, what counts as done, the limits of a job's process, Dask workers that die, what is left on the disk."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import PIL.Image
import pytest
import zarr
from fake_plan import FakePlan, run_shard
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import affine_transform, gaussian_filter

from regframe.batch import (
    InTurn,
    Job,
    JobEvent,
    Limits,
    ManifestError,
    Outcome,
    forkserver,
    parse_size,
    pools,
    read_manifest,
    run_batch,
    spread,
    summary,
    work,
)
from regframe.batch import run as batch_run
from regframe.cli import main
from regframe.io import outputs

QUICK = "transform=affine; init=identity; optimizer.max_iter=4"
SOUGHT = "transform=affine; optimizer.max_iter=4"
"""As `QUICK`, from a pose that is looked for."""
TIMED = {"metrics.json", "report.html", "transform.ome.zarr/regframe/zarr.json"}
"""Files of a result that hold how long it took; everything else is the same bytes."""


def tissue(seed: int, size: int = 64) -> np.ndarray[Any, np.dtype[np.float64]]:
    grain = gaussian_filter(np.random.default_rng(seed).random((size, size)), 2)
    grain = (grain - grain.min()) / (grain.max() - grain.min())
    y, x = np.mgrid[:size, :size] - size / 2
    return 255 * np.where((y / 0.42) ** 2 + (x / 0.34) ** 2 < size**2, 0.3 + 0.7 * grain, 0)


def save(path: Path, pixels: np.ndarray[Any, np.dtype[np.float64]]) -> Path:
    PIL.Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A folder of two pairs, a damaged image, a table and landmarks."""
    folder = tmp_path / "in"
    folder.mkdir()
    for k in range(2):
        save(folder / f"f{k}.png", tissue(k))
        save(folder / f"m{k}.png", affine_transform(tissue(k), [[0.98, 0.06], [-0.06, 0.98]], [2, -1], order=1))
    (folder / "damaged.png").write_bytes((folder / "f0.png").read_bytes()[:700])
    (folder / "cells.csv").write_text("id,x,y\n7,30,40\n8,33,20\n")
    (folder / "points.csv").write_text("y,x\n30,40\n20,33\n41,30\n")
    return folder


def manifest(folder: Path, *rows: dict[str, str], name: str = "jobs.csv") -> Path:
    columns = list(dict.fromkeys(["id", "fixed", "moving", *(key for row in rows for key in row)]))
    with (folder / name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return folder / name


def row(id: str, k: int = 0, **more: str) -> dict[str, str]:
    return {"id": id, "fixed": f"f{k}.png", "moving": f"m{k}.png", "set": QUICK, **more}


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file below a folder."""
    found = {p.relative_to(folder).as_posix(): p.stat() for p in folder.rglob("*") if p.is_file()}
    found.pop(batch_run.LOCK, None)
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of a result, with how long it took left out."""
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    for name in TIMED:
        text = re.sub(rb'"seconds": [\d.e-]+', b"", found[name])
        found[name] = re.sub(rb">(time</dt><dd>[^<]*|seconds</td><td>[\d.e-]+)<", b"><", text)
    return found


def command(*arguments: object, code: int = 0) -> click.testing.Result:
    outcome = click.testing.CliRunner().invoke(main, ["batch", *map(str, arguments)])
    assert outcome.exit_code == code, (outcome.exit_code, outcome.stdout, outcome.stderr, outcome.exception)
    return outcome


# ------------------------------------------------------------------------------------------------------ the manifest


def test_rows_become_jobs(tmp_path: Path) -> None:
    path = tmp_path / "jobs.csv"
    path.write_text(
        "\ufeffid,fixed,moving,set,fixed_set,apply_points,memory,level,save_warped\n"
        "a,x/f.tif,/abs/m.tif,transform=affine; seed=3,channels=DAPI,one.csv; two.csv,2GiB,1,\n\n"
        "b,f.tif,m.tif,,,,,,yes\n"
    )
    a, b = read_manifest(path, {"set": ("seed=1",), "save_warped": False})
    assert (a.fixed, a.moving) == (tmp_path / "x/f.tif", Path("/abs/m.tif"))
    assert a.settings == ("seed=1", "transform=affine", "seed=3")
    assert a.memory == 2 << 30
    assert [p.name for p in a.apply_points] == ["one.csv", "two.csv"]
    assert (a.level, a.save_warped, b.save_warped) == (1, False, True)
    line = a.register_arguments(Path("/out"))
    assert line[-3:] == ["--", str(a.fixed), str(a.moving)]
    assert {"--level=1", "--set=seed=3", "--fixed-set=channels=DAPI", "--output=/out"} <= set(line)
    carry = Job(
        id="c", fixed=Path("/f"), moving=Path("/m"), apply_labels=(Path("/x/mask.ome.tif"),), apply_labels_spacing=0.5,
        apply_labels_level=0, refine=True,
    )  # fmt: skip
    assert {"--refine", "--workers=3"} <= set(carry.register_arguments(Path("/out"), 3))
    ((name, line),) = carry.later_arguments(Path("/out"), 3)
    assert "--level=0" in line
    assert name == "apply labels mask.ome.tif"
    assert line[:3] == ["apply", "image", "--to=fixed"]
    assert {"--labels", "--workers=3", "--input-spacing=0.5", "--output=/out/applied/mask.ome.zarr"} <= set(line)
    assert list(a.inputs) == ["fixed", "moving", "apply_points:0", "apply_points:1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,fixed,moving,fixed_adaptor\na,f,m,x\n", "did you mean 'fixed_adapter'"),
        ("id,fixed\na,f\n", "got no 'moving'"),
        ("id,fixed,moving,moving\na,f,m,m\n", "'moving' more than once"),
        ("id,fixed,moving\n", "a header alone"),
        ("", "an empty file"),
        ("id,fixed,moving\na,f\n", "line 2: wanted 3 cells, got 2"),
        ("id,fixed,moving\na,f,m\nA,f,m\n", "line 3: wanted ids that differ, got 'A', which line 2 has"),
        ("id,fixed,moving\na,,m\n", "line 2: wanted a value in the column 'fixed', got a blank"),
        ("id,fixed,moving,memory\na,f,m,lots\n", "'memory' a size such as 2GiB or 800MB, got 'lots'"),
        ("id,fixed,moving,level\na,f,m,-1\n", "'level' greater than or equal to 0, got '-1'"),
        ("id,fixed,moving,fixed_landmarks\na,f,m,l\n", "fill in both or neither"),
        ("id,fixed,moving,apply_points\na,f,m,x/c.csv; y/C.csv\n", "named apart"),
        ('id,fixed,moving\na,"f,m\n', "wanted a CSV table"),
        *(
            (f"id,fixed,moving\n{bad},f,m\n", "line 2")
            for bad in ("../a", "a/b", ".a", "a.", "a\\b", "summary.csv", "NUL", "x" * 101)
        ),
    ],
)
def test_a_bad_manifest_names_line_and_column(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "jobs.csv"
    path.write_text(text)
    with pytest.raises(ManifestError, match=re.escape(message)):
        read_manifest(path)
    assert message in command(path, "-o", tmp_path / "out", code=2).stderr
    assert not (tmp_path / "out").exists()


@given(st.text(min_size=1, max_size=20))
def test_an_id_is_a_folder_of_its_own(text: str) -> None:
    try:
        job = Job(id=text, fixed=Path("f"), moving=Path("m"))
    except ValueError:
        return
    assert Path("/out", job.id).parent == Path("/out")
    assert os.path.normpath(f"/out/{job.id}") == f"/out/{text}"
    assert not job.id.startswith((".", "-", " "))


@pytest.mark.parametrize(
    ("text", "size"), [("2GiB", 2 << 30), ("800 MB", 800_000_000), ("4g", 4 << 30), ("10", 10), ("1.5k", 1536)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_control_groups_bound_the_machine(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/slurm/job_7\n")
    found = [p.relative_to(tmp_path).as_posix() for p in pools._control_groups(own, tmp_path / "sys")]
    assert found == ["sys/slurm/job_7", "sys/slurm", "sys"]
    own.write_text("5:cpu,cpuacct:/x\n4:memory:/docker/1\n")
    found = [p.relative_to(tmp_path).as_posix() for p in pools._control_groups(own, tmp_path / "sys")]
    assert found == ["sys/memory/docker/1", "sys/memory/docker", "sys/memory"]
    assert list(pools._control_groups(tmp_path / "absent", tmp_path)) == []
    cores, memory = pools.machine()
    assert 1 <= cores <= (os.cpu_count() or 1)
    assert memory > 1 << 28


def test_wrong_settings_are_said_before_anything_runs(pairs: Path) -> None:
    path = manifest(pairs, row("a"), row("b", set="optimiser.max_iter=3"))
    assert "job b: there is no setting 'optimiser'" in command(path, "-o", pairs / "out", code=2).stderr
    both = command(manifest(pairs, row("a")), "-o", pairs / "out", "--scheduler", "tcp://x:1", "--workers", 2, code=2)
    assert "wanted --workers or --scheduler, got both" in both.stderr
    assert not (pairs / "out").exists()


def test_a_dry_run_writes_nothing(pairs: Path) -> None:
    path = manifest(pairs, row("a"), row("b", moving="absent.png"))
    said = command(path, "-o", pairs / "out", "--dry-run").stdout
    assert "2 jobs, 0 done already, 2 to run" in said
    assert "b: " in said
    assert "absent.png" in said
    assert not (pairs / "out").exists()


def test_the_supervisor_loads_no_torch() -> None:
    code = "import sys, regframe.batch, regframe.cli.batch\nassert not {'torch', 'distributed'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# ------------------------------------------------------------------------------------------------ what is done already


@pytest.fixture
def left(tmp_path: Path) -> tuple[Job, Path, Outcome]:
    """A job that failed in an earlier run, its folder, and its record."""
    for name in ("f.png", "m.png"):
        (tmp_path / name).write_bytes(name.encode() * 100)
    job = Job(id="a", fixed=tmp_path / "f.png", moving=tmp_path / "m.png")
    attempt = work.Attempt(work.AS_ASKED, "memory", "too large", 1.0, 100)
    inputs = {name: work.signature(path) for name, path in job.inputs.items()}
    outcome = Outcome(
        "a", "failed", reasons=("x",), attempts=(attempt,), limits={"memory": 100, "timeout": None}, options=job.options,
        inputs=inputs,
    )  # fmt: skip
    (tmp_path / "a").mkdir()
    write_record(tmp_path / "a", outcome)
    return job, tmp_path / "a", outcome


def write_record(folder: Path, outcome: Outcome) -> None:
    values = {name: getattr(outcome, name) for name in outcome.__dataclass_fields__ if name != "kept"}
    values["attempts"] = [vars(a) for a in outcome.attempts]
    (folder / work.RECORD).write_text(outputs.to_json(values))


def test_a_job_is_done_while_nothing_changed(left: tuple[Job, Path, Outcome]) -> None:
    job, folder, _ = left
    limits = Limits(memory=100)
    assert work.finished(job, folder, limits)
    os.utime(job.fixed, ns=(1, 1))  # touched, same content
    assert work.finished(job, folder, limits)
    assert work.finished(job.model_copy(update={"memory": 90}), folder, limits)
    assert not work.finished(job, folder, Limits(memory=101))  # it may take more now
    assert not work.finished(job.model_copy(update={"seed": 4}), folder, limits)
    job.fixed.write_bytes(b"F" * 500)
    assert not work.finished(job, folder, limits)
    job.fixed.unlink()
    assert not work.finished(job, folder, limits)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": "a"}', '{"id": "a", "status": "done", "attempts": [1]}'])
def test_a_damaged_record_is_none(left: tuple[Job, Path, Outcome], text: str) -> None:
    job, folder, _ = left
    (folder / work.RECORD).write_text(text)
    assert work.finished(job, folder, Limits()) is None


def test_a_record_whose_files_are_gone_or_lie_outside_is_none(left: tuple[Job, Path, Outcome]) -> None:
    job, folder, outcome = left
    write_record(folder, replace(outcome, status="done", verdict="pass"))
    assert work.finished(job, folder, Limits()) is None
    write_record(folder, replace(outcome, applied=("../../secret",)))
    assert work.read_record(folder) is None


def test_stores_are_told_apart(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    (store / "c").mkdir(parents=True)
    (store / "zarr.json").write_text("{}")
    (store / "c" / "0").write_bytes(b"123")
    before = work.signature(store)
    assert before == work.signature(store)
    (store / "c" / "1").write_bytes(b"")
    now = work.signature(store)
    assert before is not None
    assert now is not None
    assert now["digest"] != before["digest"]
    assert work.signature(tmp_path / "absent") is None


def test_folders_of_others_are_left_alone(pairs: Path) -> None:
    (pairs / "out" / "a").mkdir(parents=True)
    (pairs / "out" / "a" / "mine.txt").write_text("keep")
    said = command(manifest(pairs, row("a")), "-o", pairs / "out", code=2).stderr
    assert "was not written by a batch" in said
    assert (pairs / "out" / "a" / "mine.txt").read_text() == "keep"


def test_two_batches_do_not_share_a_folder(pairs: Path) -> None:
    path = manifest(pairs, row("a"))
    with batch_run._locked(_made(pairs / "out")):
        said = command(path, "-o", pairs / "out", code=2).stderr
    assert f"process {os.getpid()} on" in said
    assert not (pairs / "out" / "a").exists()


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


# --------------------------------------------------------------------------------------------- one job, without Dask


def test_without_dask_jobs_run_in_turn_and_broken_ones_are_reported(
    pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "available", lambda: False)
    path = manifest(pairs, row("damaged", fixed="damaged.png"))
    outcome = command(path, "-o", pairs / "out", "--threads", 1, "--json", code=3)
    assert "one after another" in outcome.stderr
    assert "regframe[batch]" in outcome.stderr
    told = json.loads(outcome.stdout)
    assert told["counts"] == {"failed": 1, "fail": 0, "warn": 0, "pass": 0, "pending": 0}
    assert "cannot be decoded" in told["jobs"][0]["reasons"]
    before = tree(pairs / "out")
    command(path, "-o", pairs / "out", "--threads", 1, code=3)
    assert tree(pairs / "out") == before
    assert "wanted Dask for --workers" in command(path, "-o", pairs / "out", "--workers", "2", code=2).stderr


def test_a_job_that_takes_too_long_is_stopped_twice(pairs: Path) -> None:
    jobs = read_manifest(manifest(pairs, row("slow", timeout="0.2")))
    (slow,) = run_batch(jobs, pairs / "out", InTurn())
    assert [a.outcome for a in slow.attempts] == ["time", "time"]
    assert "longer than the 0.2 s" in slow.reasons[0]
    assert "so did a simpler model" in slow.reasons[0]
    assert {p.name for p in (pairs / "out" / "slow").iterdir()} == {work.RECORD, work.LOG}


def test_a_full_disk_is_no_verdict_on_the_job(pairs: Path) -> None:
    """Files may not grow beyond 100 KiB: the job fails with the reason, and is not done when there is room again."""
    path, out = manifest(pairs, row("a")), pairs / "out"
    code = "from regframe.batch import pools; from regframe.cli import main; pools.available = lambda: False; main()"
    line = f"ulimit -f 100; exec {sys.executable} -c '{code}' batch {path} -o {out}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    (job,) = read_manifest(path)
    record = work.read_record(out / "a")
    assert record is not None
    assert [a.outcome for a in record.attempts] == ["disk"]
    assert "File too large" in record.reasons[0]
    assert ".partial" not in (out / "a" / work.LOG).read_text()
    assert work.finished(job, out / "a", Limits()) is None
    assert {p.name for p in (out / "a").iterdir()} == {work.RECORD, work.LOG}


def test_a_job_that_breaks_once_is_done_with_a_simpler_model(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process is killed as soon as it runs."""
    start = forkserver.start
    started: list[Any] = []

    def starting(*arguments: Any, **options: Any) -> Any:
        process = start(*arguments, **options)
        if not started:
            os.kill(process.pid, signal.SIGKILL)
        started.append(process)
        return process

    monkeypatch.setattr(work.forkserver, "start", starting)
    (outcome,) = run_batch(
        read_manifest(manifest(pairs, row("a", set="init=identity; optimizer.max_iter=4"))), pairs / "out", InTurn()
    )
    assert outcome.status == "done"
    assert outcome.model == work.SIMPLER
    assert [a.outcome for a in outcome.attempts] == ["killed", "done"]
    assert "SIGKILL" in outcome.reasons[0]
    assert "simpler model" in outcome.reasons[0]
    text = (pairs / "out" / "a" / "config.resolved.yaml").read_text()
    assert "transform: affine" in text
    assert f"max_pixels: {work.SIMPLER_PIXELS}" in text
    assert "simpler model" in (pairs / "out" / summary.PAGE).read_text()


class Cohort:
    """A pool that answers at once."""

    name, workers = "made up", 1

    def __init__(self, outcome: Callable[[Job], Outcome]) -> None:
        self.outcome = outcome

    def run(self, function: Any, items: Any, started: Any = None) -> Iterator[tuple[int, Any]]:
        for index, (job, _, _) in enumerate(items):
            yield index, self.outcome(job)


def test_a_summary_of_all_there_is(tmp_path: Path) -> None:
    """Verdicts, a second attempt, names that HTML and spreadsheets would read as something else."""
    attempt = work.Attempt(work.AS_ASKED, "done", "", 3.0, 5 << 20)
    found = {
        "good": Outcome("good", "done", "pass", attempts=(attempt,), figures={"matching_fraction": 0.5}),
        "so so": Outcome(
            "so so", "done", "warn", ("<script>alert(1)</script>", "=1+1"), work.SIMPLER, (attempt, attempt)
        ),
        "wrong": Outcome("wrong", "done", "fail", ("the sides do not match",), attempts=(attempt,)),
        "lost": Outcome("lost", "failed", None, ("=cmd()",)),
    }
    jobs = [Job(id=name, fixed=Path("f"), moving=Path("m")) for name in found]
    outcomes = run_batch(jobs, tmp_path, Cohort(lambda job: found[job.id]))
    assert [o.state for o in outcomes] == ["pass", "warn", "fail", "failed"]
    page = (tmp_path / summary.PAGE).read_text()
    assert "<script>" not in page
    assert [page.index(f">{name}</h3>") for name in ("lost", "wrong", "so so", "good")] == sorted(
        page.index(f">{name}</h3>") for name in found
    )
    assert 'href="so%20so/report.html"' in page
    with (tmp_path / summary.TABLE).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["reasons"] for row in rows][1:] == [
        "<script>alert(1)</script> | =1+1",
        "the sides do not match",
        "'=cmd()",
    ]
    assert [row["verdict"] for row in rows] == ["pass", "warn", "fail", ""]
    assert rows[0]["peak_memory_mib"] == "5"


def test_jobs_of_one_verdict_come_in_the_order_of_their_confidence(tmp_path: Path) -> None:
    sure = {"a": 0.9, "b": None, "c": 0.72, "d": 0.999}
    found = {name: Outcome(name, "done", "pass", figures={"confidence": value}) for name, value in sure.items()}
    page = summary.page(list(found.values()), tmp_path)
    assert sorted(found, key=lambda name: page.index(f">{name}</h3>")) == ["b", "c", "a", "d"]
    assert "confidence <b>72 %</b>" in page
    assert "over 99 %" in page
    with io.StringIO(summary.table(list(found.values()))) as file:
        rows = list(csv.DictReader(file))
    assert [row["confidence"] for row in rows] == ["0.9", "", "0.72", "0.999"]
    assert "pose_margin" not in rows[0]


# --------------------------------------------------------------------------------------------------- a real cluster


@dataclass(frozen=True)
class Loopback:
    """A scheduler and workers that are processes of their own."""

    file: Path
    scheduler: subprocess.Popen[bytes]
    workers: dict[str, subprocess.Popen[bytes]]


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Loopback]:
    file, scratch = folder / "scheduler.json", folder / "dask"
    common = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
         "--scheduler-file", str(file)], **common,
    )  # fmt: skip
    workers: dict[str, subprocess.Popen[bytes]] = {}

    def start(name: str) -> None:
        workers[name] = subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(file), "--nthreads", "1",
             "--no-nanny", "--name", name, "--no-dashboard", "--memory-limit", "0", "--local-directory", str(scratch)],
            **common,
        )  # fmt: skip

    start("one")
    start("two")
    try:
        yield Loopback(file, scheduler, workers)
    finally:
        for process in (scheduler, *workers.values()):
            process.kill()
            process.wait()


@pytest.fixture
def loopback(tmp_path: Path) -> Iterator[Loopback]:
    """A cluster of a test that kills some of it."""
    pytest.importorskip("distributed")
    with started(tmp_path) as found:
        yield found


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    """A cluster of tests that leave it whole."""
    pytest.importorskip("distributed")
    with started(tmp_path_factory.mktemp("cluster")) as found:
        yield found


def cluster(loopback: Loopback) -> Any:
    for _ in range(200):
        if loopback.file.exists():
            break
        time.sleep(0.05)
    from distributed import Client

    with Client(scheduler_file=str(loopback.file)) as client:  # type: ignore[no-untyped-call]
        client.wait_for_workers(2, timeout=30)  # type: ignore[no-untyped-call]
    return pools.Cluster(str(loopback.file))


def test_a_batch_on_two_workers_one_of_which_is_killed(
    pairs: Path, loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Good jobs end as they would alone, broken ones with their reasons, and a dead worker costs none."""
    path = manifest(
        pairs,
        row(
            "a",
            fixed_landmarks="points.csv",
            moving_landmarks="points.csv",
            apply_points="cells.csv",
            apply_shapes="absent.geojson",
        ),
        row("b", 1, set=SOUGHT),
        row("damaged", fixed="damaged.png"),
        row("absent", moving="absent.png"),
        row("vast", moving="vast.png", memory="380MiB"),
    )
    PIL.Image.new("RGB", (7000, 7000)).save(pairs / "vast.png", compress_level=1)
    jobs, out = read_manifest(path), pairs / "out"
    killed: list[str] = []

    def kill(step: JobEvent) -> None:
        if step.kind == "started" and step.id == "b" and not killed:
            killed.append(step.worker)
            threading.Timer(0.5, loopback.workers[step.worker].kill).start()

    limits = Limits(memory=2 << 30)
    with cluster(loopback) as pool:
        assert pool.workers == 2
        outcomes = {o.id: o for o in run_batch(jobs, out, pool, limits, progress=kill)}
        assert loopback.workers[killed[0]].wait(5) == -signal.SIGKILL
        assert list(pool.run(abs, [(-3,)])) == [(0, 3)]  # the cluster is alive
    assert {o.id: o.status for o in outcomes.values()} == {
        "a": "failed", "b": "done", "damaged": "failed", "absent": "failed", "vast": "failed",
    }  # fmt: skip
    assert "cannot be decoded" in outcomes["damaged"].reasons[0]
    assert "which does not exist" in outcomes["absent"].reasons[0]
    assert [a.outcome for a in outcomes["vast"].attempts] == ["memory", "memory"]
    assert outcomes["vast"].peak_memory < 500 << 20
    assert "more than the 380 MiB of memory it may take" in outcomes["vast"].reasons[0]
    assert outcomes["a"].verdict is not None
    assert outcomes["a"].reasons[0].startswith("apply shapes absent.geojson: ")
    assert outcomes["a"].evaluation is not None
    assert outcomes["a"].evaluation["n"] == 3
    assert outcomes["a"].applied == ("applied/cells.csv",)
    assert "match_probability" in (out / "a" / "applied" / "cells.csv").read_text()
    assert not list(out.glob(".*.partial"))

    alone = pairs / "alone"
    line = ["register", "f1.png", "m1.png", "-o", str(alone), *(f"--set={pair.strip()}" for pair in SOUGHT.split(";"))]
    monkeypatch.chdir(pairs)
    with one_thread():
        done = click.testing.CliRunner().invoke(main, line)
    assert done.exit_code == 0, done.stderr
    batch, single = contents(out / "b"), contents(alone)
    del batch[work.RECORD], batch[work.LOG]
    for page in (batch, single):  # its commands name the paths of the run
        said = page["report.html"].decode().replace(f"{pairs}/", "").replace("out/b", "alone")
        page["report.html"] = said.encode()
    assert batch == single

    before = tree(out)
    assert [o.kept for o in run_batch(jobs, out, _unused, limits)] == [True] * 5
    assert tree(out) == before

    with (out / summary.TABLE).open(encoding="utf-8") as file:
        table = {line["id"]: line for line in csv.DictReader(file)}
    assert list(table) == [job.id for job in jobs]
    assert float(table["a"]["tre_px_median"]) < 64
    page = (out / summary.PAGE).read_text()
    assert page.count("data:image/jpeg") == 4  # before and after of two
    assert 'href="a/report.html"' in page
    assert "http" not in page.partition("<body>")[2]
    assert all((out / target).exists() for target in re.findall(r'href="([^"#]+)"', page))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """As many threads as a job has; their number is written down with its result."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _unused(n: int) -> Any:
    raise AssertionError(f"a pool for {n} jobs, where none is left")


def jobs_running(out: Path) -> list[str]:
    """The processes of jobs that write below ``out``."""
    found = []
    for item in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = item.read_bytes().decode().replace("\0", " ")
        except OSError:
            continue
        if f" batch-job {out}/" in line:
            found.append(item.parent.name)
    return found


def until(ready: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def interrupt(path: Path, out: Path, number: int, group: bool, *more: str) -> tuple[int, str]:
    """Start a batch, send it (or it and all it started) a signal once jobs run; its exit code and what it said."""
    # on a busy machine a batch may need longer to end in good order than the time after which it is ended by force
    code = "from regframe.cli import interrupts, main; interrupts.PATIENCE = 60; main()"
    line = [sys.executable, "-c", code, "batch", str(path), "-o", str(out), *more]
    process = subprocess.Popen(
        line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        until(lambda: jobs_running(out))
        (os.killpg if group else os.kill)(process.pid, number)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    until(lambda: not jobs_running(out))
    return process.returncode, said


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_an_interrupted_batch_leaves_no_process_and_goes_on(pairs: Path, standing: Loopback) -> None:
    cluster(standing)
    path, out = manifest(pairs, row("a")), pairs / "out"
    code, said = interrupt(path, out, signal.SIGINT, True, "--workers", "2", "--threads", "1")
    assert (code, "0 of 1 jobs are done" in said) == (130, True), said
    assert {p.name for p in out.iterdir()} == {batch_run.LOCK, summary.TABLE, summary.PAGE}
    assert (out / summary.TABLE).read_text().count(",pending,") == 1
    code, _ = interrupt(path, out, signal.SIGKILL, False, "--scheduler", str(standing.file))
    assert code == -signal.SIGKILL
    assert command(path, "-o", out, "--scheduler", standing.file).stdout.startswith("1 job: ")
    assert not list(out.glob(".*.partial"))


def test_a_scheduler_that_is_lost(loopback: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    import dask

    monkeypatch.setattr(pools, "BACK", 1.0)  # seconds that a lost scheduler is waited for
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}), cluster(loopback) as pool:
        threading.Timer(1.0, loopback.scheduler.kill).start()
        with pytest.raises(ConnectionError, match="the Dask scheduler was lost"):
            list(pool.run(time.sleep, [(60,)]))
    assert (
        dask.config.get("scheduler", None) is None
    )  # whoever computes with Dask in this process afterwards does so as before


def test_a_scheduler_that_is_not_there() -> None:
    pytest.importorskip("distributed")
    with (
        pytest.raises(ValueError, match="wanted a Dask scheduler at no/such/thing, got no answer"),
        pools.Cluster("no/such/thing"),
    ):
        pass


# ----------------------------------------------------------------------------------------------------------- shards


LARGE = 2500
"""Pixels along the side of an image of five shards: four, and one of coarser levels."""


def large(path: Path, side: int = LARGE) -> Path:
    """An image of the field of `tissue`."""
    array: Any = zarr.create_array(
        path, shape=(side, side), dtype="u1", chunks=(1024, 1024), dimension_names=["y", "x"]
    )
    array[:] = (np.arange(side)[:, None] // 40 + np.arange(side) // 23).astype(np.uint8)
    return path


def test_a_large_image_is_shards_on_the_cluster(pairs: Path, standing: Loopback) -> None:
    """The tiles of one job, and those of ``apply image``, go to all workers; the pixels are those of one process."""
    image = large(pairs / "large.zarr")
    spacing = str(tissue(0).shape[0] / LARGE)
    path = manifest(pairs, row("a", apply_image=image.name, apply_image_spacing=spacing, apply_image_level="0"))
    out = pairs / "out"
    with cluster(standing) as pool:
        outcomes = run_batch(read_manifest(path), out, pool, Limits(memory=2 << 30))
    assert [o.status for o in outcomes] == ["done"], outcomes[0].reasons
    assert "5 shards on Dask at tcp://127.0.0.1" in (out / "a" / work.LOG).read_text()

    line = ["apply", "image", out / "a", image, "--to", "fixed", "--input-spacing", spacing, "--level", "0", "-o"]
    for name, more, said in (("spread", ("--scheduler", standing.file), "5 shards on"), ("alone", (), "wrote")):
        outcome = click.testing.CliRunner().invoke(main, [*map(str, [*line, pairs / f"{name}.ome.zarr", *more])])
        assert outcome.exit_code == 0, outcome.stderr
        assert said in outcome.stderr
    stores = (pairs / "alone.ome.zarr", pairs / "spread.ome.zarr", out / "a" / "applied" / "large.ome.zarr")
    files = [{p.relative_to(s): p.read_bytes() for p in s.rglob("*") if p.is_file()} for s in stores]
    assert len(files[0]) > 8
    assert files[0] == files[1] == files[2]

    refused = click.testing.CliRunner().invoke(
        main, [*map(str, [*line, pairs / "x.png", "--scheduler", standing.file])]
    )
    assert refused.exit_code == 2
    assert "wanted an output ending in .zarr or .tif for --scheduler, got 'x.png'" in refused.stderr


def test_shards_are_spread_and_a_dead_worker_costs_none(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    plan = FakePlan(tmp_path, 8, deadly=3)
    steps: list[tuple[int, int]] = []
    with pools.Cluster(workers=2) as pool:
        spread(plan, pool, progress=lambda step: steps.append((step.done, step.total)))
        assert (tmp_path / "finished").read_text() == "140"
        assert (tmp_path / "died").exists()
        assert steps == [(k, 9) for k in range(1, 10)]
        assert len({p.read_text() for p in tmp_path.glob("*.by")} - {str(os.getpid())}) >= 2
        before = tree(tmp_path)
        spread(plan, pool, functools.partial(run_shard, str(tmp_path), 8))  # nothing is made twice
        assert {k: v for k, v in tree(tmp_path).items() if k != "finished"} == {
            k: v for k, v in before.items() if k != "finished"
        }


def test_a_broken_shard_stops_the_plan_and_the_rest_stays(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shard 4 cannot be read"):
        spread(FakePlan(tmp_path, broken=4), InTurn())
    assert not (tmp_path / "finished").exists()
    first = (tmp_path / "3.txt").stat().st_mtime_ns
    spread(FakePlan(tmp_path), InTurn())
    assert (tmp_path / "finished").read_text() == "55"
    assert (tmp_path / "3.txt").stat().st_mtime_ns == first


def test_no_array_travels(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wanted a task of paths and options, at most 65536 bytes"):
        spread(FakePlan(tmp_path), InTurn(), functools.partial(print, np.zeros(10_000)))


def test_a_worker_that_dies_as_it_starts_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask restarts a worker that dies at work, gives up one that dies while it starts, and removes one that is slow to come."""
    pytest.importorskip("distributed")
    monkeypatch.setattr(pools, "PATIENCE", 0.5)
    with pools.Cluster(workers=1) as pool:
        for removed in (False, True):
            (nanny,) = pool._here.workers.values()
            pool._here.sync(nanny.close)
            assert not nanny.is_alive()
            if removed:
                pool._here.workers.clear()
            assert list(pool.run(abs, [(-3,)])) == [(0, 3)]
