"""How time and memory grow with the image: synthetic pairs from 1 to 64 Mpx, each registered in a fresh process.

The pair is made here and handed over as files, so that neither its making nor what the making leaves in the allocator
shows in the figures; a fresh process has nothing else in memory either.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import records
import synthetic
import torch
from make_table import circumstances

import regframe as rf

STATUS = Path("/proc/self/status")
NEEDED = 8 * 2**30
"""Bytes of free memory from which 64 Mpx are tried without being asked for."""


def kib(path: Path, key: str) -> int:
    """A line such as ``VmRSS: 1234 kB`` of a file in /proc."""
    return next(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(key + ":"))


def child(folder: Path, side: int, rounds: int, threads: int) -> None:
    """Register the pair in ``folder``; print median seconds, peak bytes beyond the images, error mean and p95 in px."""
    torch.set_num_threads(threads)
    small = synthetic.make(64)
    rf.register(small.fixed, small.moving, transform="affine")  # imports, plug-ins and threads are there from here on
    grid = rf.Grid((side, side))
    fixed, moving = (rf.Image(torch.from_numpy(np.load(folder / f"{name}.npy")), grid) for name in ("fixed", "moving"))
    pair = synthetic.Pair(fixed, moving, side)
    seconds = []
    for turn in range(rounds):
        if turn == 0:
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
            before = kib(STATUS, "VmRSS")
        began = time.perf_counter()
        result = rf.register(fixed, moving)
        seconds.append(time.perf_counter() - began)
        if turn == 0:  # the allocator is still as found, so this peak is the largest
            peak = kib(STATUS, "VmHWM") - before
    probes = pair.probes()
    error = pair.error(result.to_moving(torch.from_numpy(probes)).numpy(), probes)
    out = [statistics.median(seconds), peak * 1024, float(error.mean()), float(np.quantile(error, 0.95))]
    print(json.dumps(out))


def run(side: int, rounds: int, threads: int) -> dict[str, float]:
    """One record of a pair of ``side`` x ``side`` pixels."""
    with tempfile.TemporaryDirectory() as folder:
        pair = synthetic.make(side)
        for name, image in {"fixed": pair.fixed, "moving": pair.moving}.items():
            np.save(Path(folder) / f"{name}.npy", image.data.numpy())
        del pair, image
        done = subprocess.run(
            [sys.executable, __file__, folder, str(side), str(rounds), str(threads)],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    seconds, peak, mean, p95 = json.loads(done.stdout.splitlines()[-1])
    return {
        "side": side, "mpx": side**2 / 2**20, "seconds": seconds, "peak_bytes": peak, "error_mean": mean, "error_p95": p95,
    }  # fmt: skip


def sizes(small: bool) -> list[int]:
    """Sides; the largest only where memory allows or ``REGFRAME_BENCH_LARGE=1`` asks for it."""
    if small:
        return [64]
    large = os.environ.get("REGFRAME_BENCH_LARGE") == "1" or kib(Path("/proc/meminfo"), "MemAvailable") * 1024 >= NEEDED
    return [1024, 2048, 4096] + ([8192] if large else [])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
def test_scale(small: bool, threads: int, report: Callable[[str], None]) -> None:
    """Prints time and memory per Mpx and the ratio to the smallest pair; refuses an error above a thousandth of the side."""
    if not small:
        records.record(**circumstances())
    report(f"synthetic pairs, {threads} threads, peak memory beyond the images")
    report("| side | Mpx | s | s per Mpx | time / first's | MiB | bytes per pixel | error mean, px | p95, px |")
    report("|---|---|---|---|---|---|---|---|---|")
    first = 0.0
    for side in sizes(small):
        row = run(side, 1 if small or side > 2048 else 3, threads)
        assert row["error_mean"] < max(1.0, side / 1024), f"a time is worth nothing without a map: {row}"
        first = first or row["seconds"]
        mpx, seconds, peak = row["mpx"], row["seconds"], row["peak_bytes"]
        report(
            f"| {side} | {mpx:.3g} | {seconds:.2f} | {seconds / mpx:.2f} | {seconds / first:.2f} | {peak / 2**20:.0f} | "
            f"{peak / side**2:.0f} | {row['error_mean']:.3f} | {row['error_p95']:.3f} |"
        )
        if not small:
            records.record(bench="scale", pair="synthetic", tool="regframe", threads=threads, **row)


if __name__ == "__main__":
    child(Path(sys.argv[1]), *map(int, sys.argv[2:]))
