"""Long runs: one process that registers and carries points over and over, and a batch whose workers are killed at random.

    python benchmarks/bench_endurance.py --registrations 200 --points 2000
    python benchmarks/bench_endurance.py --jobs 1000 --kills 20
    python benchmarks/bench_endurance.py --jobs 200 --restarts

Wanted: memory flat (at most 2 % more than after the first ten), open files flat, the same bytes at the end as at the beginning;
of a batch with 3 % bad jobs, nothing lost and nothing done twice, also where the Dask scheduler that it was given is killed and
started again, stays away, or the batch itself is killed. Run by pytest it takes small numbers, and no bound of time or
memory is asserted.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import gc
import hashlib
import json
import multiprocessing
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import records
import torch

import regframe as rf
from regframe.batch import Job, Limits, pools, run_batch
from regframe.cli import main as regframe_main

FIRST = 10
"""Runs after which memory counts as what a run needs: caches are filled, and the allocator has what it keeps."""


def resident() -> int:
    """Resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    """Number of files that this process holds open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def small_pair(seed: int = 17, side: int = 64) -> tuple[rf.Image, rf.Image]:
    """Two images of one texture, 2 and 3 pixels apart."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((1, 1, side // 6, side // 6), generator=generator)
    wide = torch.nn.functional.interpolate(coarse, size=(side + 8, side + 8), mode="bicubic")[0]
    grid = rf.Grid((side, side))
    return rf.Image(wide[:, 4 : side + 4, 4 : side + 4].clone(), grid), rf.Image(
        wide[:, 2 : side + 2, 1 : side + 1].clone(), grid
    )


def over_and_over(count: int, once: Callable[[], bytes]) -> dict[str, Any]:
    """Call ``once`` so many times: memory and open files on the way, and whether its bytes stay the same."""
    memory, files, marks = [], [], set()
    first = min(FIRST, max(1, count // 2))
    for k in range(count):
        marks.add(hashlib.sha256(once()).hexdigest())
        if k % max(1, count // 100) == 0 or k < 2 * first:
            gc.collect()
        memory.append(resident())
        files.append(open_files())
    early, late = statistics.median(memory[first : 2 * first]), statistics.median(memory[-first:])
    return {
        "runs": count,
        "memory_mib": [round(v / 2**20, 1) for v in (early, late)],
        "growth_percent": round(100 * (late / early - 1), 2),
        "open_files": [files[min(first, count - 1)], files[-1]],
        "same_bytes": len(marks) == 1,
    }


def registrations(count: int) -> dict[str, Any]:
    """Register one small pair over and over."""
    fixed, moving = small_pair()
    config = rf.Config.model_validate({"transform": "lddmm", "optimizer": {"max_iter": 20}})

    def once() -> bytes:
        result = rf.register(fixed, moving, config=config)
        points = torch.rand((200, 2), dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 60
        return bytes(result.to_fixed(points).numpy().tobytes())

    return over_and_over(count, once)


def carried(count: int, folder: Path) -> dict[str, Any]:
    """``regframe apply points`` over and over in this process: a stored result is read, a table read, carried and written."""
    fixed, moving = small_pair()
    run, table, out = folder / "run.ome.zarr", folder / "cells.csv", folder / "out.csv"
    rf.register(fixed, moving, transform="affine").save(run)
    rows = np.random.default_rng(3).random((500, 2)) * 60
    table.write_text("y,x\n" + "".join(f"{y:.3f},{x:.3f}\n" for y, x in rows))
    line = ["apply", "points", str(run), str(table), "--to", "fixed", "-o", str(out), "--overwrite"]
    stderr = sys.stderr

    def once() -> bytes:
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - a device
            sys.stderr = nowhere
            try:
                regframe_main(line, standalone_mode=False)
            finally:
                sys.stderr = stderr
        return out.read_bytes()

    found = over_and_over(count, once)
    found["left"] = sorted(p.name for p in folder.iterdir() if p.name.endswith(".partial"))
    return found


def small_jobs(jobs: int, folder: Path, rng: random.Random, bad: float) -> tuple[list[Job], set[int]]:
    """Jobs over one small pair, a share of which get a file that is cut short; and the numbers of these."""
    import tifffile

    for name, image in zip(("fixed", "moving"), small_pair(), strict=True):
        tifffile.imwrite(folder / f"{name}.tif", (image.data[0].numpy() * 255).clip(0, 255).astype(np.uint8))
    (folder / "bad.tif").write_bytes((folder / "fixed.tif").read_bytes()[:200])
    wrong = set(rng.sample(range(jobs), max(1, round(bad * jobs))))
    fast = ("transform=affine", "optimizer.max_iter=4")
    rows = [
        Job(
            id=f"j{k:04d}",
            fixed=folder / "fixed.tif",
            moving=folder / ("bad.tif" if k in wrong else "moving.tif"),
            init="identity",
            settings=fast,
        )
        for k in range(jobs)
    ]
    return rows, wrong


def cohort(jobs: int, kills: int, folder: Path, seed: int = 0, bad: float = 0.03) -> dict[str, Any]:
    """A batch of small jobs, some of them bad, on two workers that are killed at random: what was lost or done twice."""
    rng = random.Random(seed)
    rows, wrong = small_jobs(jobs, folder, rng, bad)
    events: list[str] = []
    moments = sorted(rng.sample(range(1, 2 * jobs), kills))  # numbers of jobs begun and ended
    stop = threading.Event()
    killed = 0

    def kill() -> None:
        nonlocal killed
        for moment in moments:
            while len(events) < moment and not stop.wait(0.1):
                pass
            workers = [p for p in multiprocessing.active_children() if p.is_alive()]
            if workers and not stop.is_set():
                rng.choice(workers).kill()
                killed += 1

    killer = threading.Thread(target=kill)
    began = time.monotonic()
    killer.start()
    try:
        with pools.Cluster(workers=2) as pool:
            outcomes = run_batch(
                rows, folder / "out", pool, Limits(threads=1), progress=lambda e: events.append(f"{e.kind} {e.id}")
            )
    finally:
        stop.set()
        killer.join()
    seconds = time.monotonic() - began
    again = run_batch(rows, folder / "out", pools.InTurn(), Limits(threads=1))  # all is kept: nothing runs
    with (folder / "out" / "summary.csv").open(encoding="utf-8") as file:
        listed = [row["id"] for row in csv.DictReader(file)]
    ended = [e for e in events if e.startswith("ended")]
    maps = {hash_of(folder / "out" / row.id / "transform.ome.zarr") for k, row in enumerate(rows) if k not in wrong}
    return {
        "jobs": jobs,
        "bad": len(wrong),
        "killed_workers": killed,
        "seconds": round(seconds, 1),
        "done": sum(o.status == "done" for o in outcomes),
        "failed_as_wanted": sum(o.status == "failed" for k, o in enumerate(outcomes) if k in wrong),
        "lost": len({row.id for row in rows} - set(listed)) + sum(o.state == "pending" for o in outcomes),
        "twice": len(ended) - len(set(ended)) + len(listed) - len(set(listed)),
        "run_again": sum(not o.kept for o in again),
        "different_maps": len(maps) - 1,
        "left": sorted(p.name for p in (folder / "out").iterdir() if p.name.endswith((".partial", ".swept"))),
    }


@contextlib.contextmanager
def supervised(port: int, workers: int, scratch: Path) -> Iterator[dict[str, subprocess.Popen[bytes] | None]]:
    """A Dask scheduler on a port and its workers; a worker that ended is started again, as systemd and Kubernetes do.

    The scheduler is started again only where ``found["scheduler"]`` is set to None by the caller.
    """
    address, stop = f"tcp://127.0.0.1:{port}", threading.Event()
    python = [sys.executable, "-m"]
    lines = {
        "scheduler": [*python, "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"],
        **{
            f"w{k}": [
                *python, "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny", "--name", f"w{k}",
                "--no-dashboard", "--memory-limit", "0", "--local-directory", str(scratch), "--death-timeout", "60",
            ]
            for k in range(workers)
        },
    }  # fmt: skip
    found: dict[str, subprocess.Popen[bytes] | None] = dict.fromkeys(lines)

    def watch() -> None:
        while not stop.wait(0.2):
            for name, line in lines.items():
                process = found[name]
                if process is None or (name != "scheduler" and process.poll() is not None):
                    found[name] = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        stop.set()
        watcher.join()
        for process in found.values():
            if process is not None:
                process.kill()
                process.wait()


class Written:
    """How often the record of each job was written, seen by its inode and time."""

    def __init__(self, out: Path) -> None:
        self.out, self.seen = out, dict[str, set[tuple[int, int]]]()

    def look(self) -> int:
        """Look once; returns the number of finished jobs."""
        for record in self.out.glob("j*/job.json"):
            with contextlib.suppress(OSError):
                stat = record.stat()
                self.seen.setdefault(record.parent.name, set()).add((stat.st_ino, stat.st_mtime_ns))
        return len(self.seen)

    def until(self, many: int, batch: subprocess.Popen[str]) -> None:
        """Look until so many jobs are finished, or the batch ended."""
        while self.look() < many and batch.poll() is None:
            time.sleep(0.1)


def restarts(jobs: int, folder: Path, seed: int = 0, bad: float = 0.03, back: float = 30.0) -> dict[str, Any]:
    """`regframe batch` on a scheduler that is killed and comes back, then killed itself, then without a scheduler for good.

    At a quarter of the jobs the scheduler is killed and started again 5 s later; at a half the batch is killed, and the same
    command run; at three quarters the scheduler is killed and stays away, so that the batch ends after ``back`` seconds; then it
    is started again, and the same command run to its end.
    """
    rows, wrong = small_jobs(jobs, folder, random.Random(seed), bad)
    table = folder / "jobs.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "fixed", "moving", "init", "set"])
        writer.writerows([[r.id, r.fixed, r.moving, r.init, ";".join(r.settings)] for r in rows])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out, said = folder / "out", folder / "said.txt"
    code = f"from regframe.batch import pools; pools.BACK = {back}; from regframe.cli import main; main()"
    line = [sys.executable, "-c", code, "batch", str(table), "-o", str(out), "--scheduler", f"tcp://127.0.0.1:{port}"]
    written, codes = Written(out), []

    def run() -> subprocess.Popen[str]:
        with said.open("a") as file:
            return subprocess.Popen(line, stdout=file, stderr=file, text=True)

    def kill(found: dict[str, subprocess.Popen[bytes] | None]) -> None:
        scheduler = found["scheduler"]
        assert scheduler is not None
        scheduler.kill()
        scheduler.wait()

    began = time.monotonic()
    with supervised(port, 2, folder / "dask") as found:
        time.sleep(5)
        batch = run()
        written.until(jobs // 4, batch)
        kill(found)
        time.sleep(5)
        found["scheduler"] = None
        written.until(jobs // 2, batch)
        batch.kill()
        codes.append(batch.wait())
        batch = run()
        written.until(3 * jobs // 4, batch)
        kill(found)
        written.until(jobs + 1, batch)
        codes.append(batch.wait())
        at_end = written.look()
        found["scheduler"] = None
        time.sleep(5)
        batch = run()
        written.until(jobs + 1, batch)
        codes.append(batch.wait())
    written.look()
    seconds = time.monotonic() - began
    again = run_batch(rows, out, pools.InTurn(), Limits(threads=1))  # all is kept: nothing runs
    with (out / "summary.csv").open(encoding="utf-8") as file:
        listed = [row["id"] for row in csv.DictReader(file)]
    text = said.read_text(encoding="utf-8").splitlines()
    told = [text_line.split()[1].rstrip(":") for text_line in text if text_line.startswith("[")]
    maps = {hash_of(out / row.id / "transform.ome.zarr") for k, row in enumerate(rows) if k not in wrong}
    return {
        "jobs": jobs,
        "bad": len(wrong),
        "seconds": round(seconds, 1),
        "exit_codes": codes,
        "done_when_it_ended": at_end,
        "said": [shown for shown in text if "scheduler" in shown],
        "done": sum(o.status == "done" for o in again),
        "failed_as_wanted": sum(o.status == "failed" for k, o in enumerate(again) if k in wrong),
        "lost": len({row.id for row in rows} - set(listed)),
        "written_twice": sum(len(times) > 1 for times in written.seen.values()),
        "told_twice": len(told) - len(set(told)),
        "run_again": sum(not o.kept for o in again),
        "different_maps": len(maps) - 1,
        "left": sorted(p.name for p in out.iterdir() if p.name.endswith((".partial", ".swept"))),
    }


def hash_of(folder: Path) -> str:
    """A hash of the arrays of a stored map; its figures hold the time that the fit took."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "zarr.json":
            digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


# --------------------------------------------------------------------------------------------------- small, as tests


def test_registrations_leave_nothing_behind() -> None:
    found = registrations(3)
    assert found["same_bytes"]
    assert found["open_files"][1] <= found["open_files"][0] + 2  # the loop of zarr is opened once
    records.record(benchmark="endurance registrations", **found)


def test_carried_points_leave_nothing_behind(tmp_path: Path) -> None:
    found = carried(6, tmp_path)
    assert found["same_bytes"]
    assert found["open_files"][1] <= found["open_files"][0]
    assert found["left"] == []
    records.record(benchmark="endurance points", **found)


def main() -> int:
    """The script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--registrations", type=int, default=0)
    parser.add_argument("--points", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=0)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--restarts", action="store_true", help="kill scheduler and batch instead of workers")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="regframe-endurance-") as name:
        if options.registrations:
            print(json.dumps({"registrations": registrations(options.registrations)}), flush=True)
        if options.points:
            print(json.dumps({"apply points": carried(options.points, Path(name))}), flush=True)
        if options.jobs and options.restarts:
            print(json.dumps({"scheduler": restarts(options.jobs, Path(name), options.seed)}), flush=True)
        elif options.jobs:
            print(json.dumps({"batch": cohort(options.jobs, options.kills, Path(name), options.seed)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
