"""Refinement at full resolution against a known map: what `register` alone leaves, and what is left after it, with the memory of
the whole process tree.

The fixed slide is that of `bench_warp_slide` (real tissue in tiles that do not repeat); the moving one is the same carried by a
known smooth map, as it is or recoloured, shaded and with noise. The rival is the map that was not refined.

As a script, ``python benchmarks/bench_refine.py --side 16384 --look changed`` prints one line.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench_warp_slide import known_map, make_slide, outline, pyramid, tree_bytes

import regframe as rf
from regframe.data import Pyramid

LOOKS = ("same", "changed")


@functools.cache
def grain() -> np.ndarray[Any, Any]:
    """Noise ``[3, 1024, 1024]``, laid over the slide again and again."""
    return np.random.default_rng(0).normal(0, 8, (3, 1024, 1024)).astype(np.float32)


def read_changed(read: Callable[..., Any], region: tuple[slice, ...]) -> np.ndarray[Any, Any]:
    """Other colours, light that falls off, noise."""
    pixels = 255.0 - read(region).astype(np.float32)
    y, x = (np.arange(r.start, r.stop) for r in region)
    taken = np.stack(
        [0.7 * pixels[1] + 0.2 * pixels[0], 0.9 * pixels[2] + 0.1 * pixels[1], 0.5 * pixels[0] + 0.1 * pixels[2]]
    )
    light = 0.9 + 0.1 * np.sin(y / 2900)[:, None] * np.cos(x / 2300)
    noise = grain()[:, y[:, None] % 1024, x[None] % 1024]
    return np.clip((255.0 - taken) * light + noise, 0, 255).astype(np.uint8)


def changed(image: Pyramid) -> Pyramid:
    """The slide as another stain and scanner would show it."""
    levels = tuple(dataclasses.replace(v, read=functools.partial(read_changed, v.read)) for v in image.levels)
    return dataclasses.replace(image, levels=levels)


def make_pair(folder: Path, side: int, look: str) -> tuple[Path, Path]:
    """Both slides as OME-Zarr with their pyramids."""
    folder.mkdir(parents=True, exist_ok=True)
    raw, fixed, moving = folder / f"{side}.zarr", folder / f"{side}-fixed.ome.zarr", folder / f"{side}-{look}.ome.zarr"
    if not fixed.exists():
        make_slide(raw, side)
        rf.warp_slide(pyramid(raw), rf.Affine.identity(2), rf.Grid((side, side)), fixed, workers=1)
        shutil.rmtree(raw)
    if not moving.exists():
        image = rf.open_pyramid(fixed)
        rf.warp_slide(changed(image) if look == "changed" else image, known_map(side), image.grid, moving, workers=1)
    return fixed, moving


def error(result: rf.Result, side: int) -> np.ndarray[Any, Any]:
    """Distances ``[N]``, in full-resolution pixels, of where tissue of the fixed slide is and where the result says it is."""
    at = torch.linspace(0, side - 1, 400, dtype=torch.float64)
    y = torch.stack(torch.meshgrid(at, at, indexing="ij"), dim=-1).reshape(-1, 2)
    truth = known_map(side).points(y)
    inside = torch.from_numpy(outline(side, y[:, 0].numpy(), y[:, 1].numpy()))
    inside &= ((truth >= 0) & (truth <= side - 1)).all(dim=1)
    off: np.ndarray[Any, Any] = (result.transform.inverse().points(y[inside]) - truth[inside]).norm(dim=1).numpy()
    return off


def run(command: list[str]) -> dict[str, float]:
    """Seconds and peak bytes of the process tree of a command."""
    began, peak, done = time.perf_counter(), [0], threading.Event()
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / "regframe"), *command],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], tree_bytes(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    process.wait()
    done.set()
    watcher.join()
    assert process.returncode == 0, f"{command[0]} ended with {process.returncode}"
    return {"seconds": time.perf_counter() - began, "peak": peak[0]}


def measure(folder: Path, side: int, look: str, workers: int, report: Callable[[str], None]) -> dict[str, Any]:
    """Register, refine and apply by the command line, each a process of its own."""
    fixed, moving = make_pair(folder, side, look)
    out, warped = folder / f"run-{side}-{look}", folder / f"run-{side}-{look}.ome.zarr"
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(warped, ignore_errors=True)
    steps = {
        "register": run(["register", str(fixed), str(moving), "-o", str(out)]),
    }
    before = error(rf.load(out), side)
    steps["refine"] = run(["refine", str(out), "--workers", str(workers)])
    result = rf.load(out)
    after = error(result, side)
    steps["apply"] = run(
        [
            "apply",
            "image",
            str(out),
            str(moving),
            "-o",
            str(warped),
            "--to",
            "fixed",
            "--level",
            "0",
            "--workers",
            str(workers),
        ]
    )
    shutil.rmtree(warped)
    rounds = result.metrics["refinement"]["rounds"]
    tiles = "; ".join(f"{r['kept']} of {r['tiles']} tiles kept, {json.dumps(r['rejected'])}" for r in rounds)
    report(
        f"{side} x {side} x 3, {look}: error median {np.median(before):.2f} -> {np.median(after):.3f} px, p90 "
        f"{np.quantile(before, 0.9):.2f} -> {np.quantile(after, 0.9):.3f} px; "
        f"{tiles}; " + ", ".join(f"{k} {v['seconds']:.0f} s, {v['peak'] / 2**20:.0f} MiB" for k, v in steps.items())
    )
    return {"before": before, "after": after, "peak": max(v["peak"] for v in steps.values())}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
@pytest.mark.parametrize("look", LOOKS)
def test_refinement_against_the_known_map(
    small: bool, look: str, tmp_path: Path, report: Callable[[str], None]
) -> None:
    if small:
        pytest.skip("tests/slides/test_refine.py refines small slides against their known maps, by the same commands")
    found = measure(tmp_path, 8192, look, 2, report)
    assert np.median(found["after"]) <= max(0.5, np.median(found["before"]))
    assert found["peak"] < 2 << 30


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, nargs="+", default=[8192])
    parser.add_argument("--look", choices=LOOKS, nargs="+", default=list(LOOKS))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "regframe-refine")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    for length in given.side:
        for appearance in given.look:
            measure(given.folder, length, appearance, given.workers, print)
