"""Time to a given landmark error: regframe against picsl-greedy, antspyx and itk-elastix on pairs whose map is known.

Every tool runs in a process of its own that imports it once (`rivals_worker`); from images in memory to a map is what is
timed. The runs take turns, tool by tool, and each tool's settings trade time for error. The rivals stay in their own
environment: see `rivals`. Without one regframe is measured alone, and the benchmark says so.
"""

import json
import math
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import make_table
import numpy as np
import pytest
import records
import rivals
import synthetic
from numpy.typing import NDArray

import regframe as rf

Array = NDArray[Any]

# the three rough landmarks of the seed pair, (y, x)
LANDMARKS = {
    "moving": [[150.0, 190.0], [100.0, 60.0], [75.0, 100.0]],
    "fixed": [[160.0, 200.0], [100.0, 50.0], [75.0, 100.0]],
}
DEFAULT = rivals.Setting("regframe", "default", {})
COARSER = tuple(
    rivals.Setting("regframe", f"`pyramid.finest={n}`{said}", {"config": {"pyramid": {"finest": n}}, **start})
    for n, said, start in (
        (1, "", {}),
        (2, "", {}),
        (2, ", from the identity, as greedy starts", {"init": "identity"}),
        (3, ", from the identity", {"init": "identity"}),
    )
)
WITH_LANDMARKS = rivals.Setting("regframe", "default, three rough landmarks", {"landmarks": LANDMARKS})


SLOW = 15.0
"""Seconds beyond which a setting is run once: it decides nothing."""


@dataclass(frozen=True)
class Case:
    """A pair ``[C, H, W]``, fixed positions ``[N, 2]`` to ask for, the error ``[N]`` in px of what comes back, and who runs."""

    name: str
    fixed: Array
    moving: Array
    probes: NDArray[np.float64]
    error: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    settings: tuple[rivals.Setting, ...]


def synthetic_case(side: int) -> Case:
    """Inverted contrast, noise on both sides, a turn, a zoom, a shift and four bends."""
    pair = synthetic.make(side)
    probes = pair.probes()
    name = f"synthetic pair, {side} × {side}"
    return Case(
        name,
        pair.fixed.data.numpy(),
        pair.moving.data.numpy(),
        probes,
        lambda mapped: pair.error(mapped, probes),
        (DEFAULT, *COARSER, *rivals.SYNTHETIC),
    )


def seed_case(folder: Path) -> Case:
    """H&E against its grey, inverted and unzoomed self; asked for at every fixed pixel of the overlap."""
    fixed, moving = rf.open(folder / "cells2_crop.jpg"), rf.open(folder / "cells.jpg")
    matrix = json.loads((folder / "gt.json").read_text())["matrix_crop_to_cells_xy"]
    coords = fixed.grid.coords().reshape(-1, 2)
    truth = matrix[0][2] + matrix[0][0] * coords
    inside = moving.grid.contains(truth)
    probes, truth = coords[inside].double().numpy(), truth[inside].double().numpy()
    pair = (np.asarray(image.data) for image in (fixed, moving))
    return Case(
        "seed pair, 223 × 223",
        *pair,
        probes,
        lambda mapped: np.linalg.norm(mapped - truth, axis=1),
        (DEFAULT, WITH_LANDMARKS, *rivals.SEED),
    )


@dataclass(frozen=True)
class Field:
    """Those who run: a worker per tool that is there and passed its check, and a sentence per tool that is not."""

    workers: dict[str, rivals.Worker]
    missing: list[str]


@pytest.fixture(scope="module")
def field() -> Iterator[Field]:
    """regframe, and each rival found in the environment that ``REGFRAME_RIVALS`` names, after it found known maps."""
    threads = 2
    python = os.environ.get("REGFRAME_RIVALS")
    with ExitStack() as stack:
        workers = {"regframe": stack.enter_context(rivals.Worker("regframe", sys.executable, threads))}
        missing = [] if python else [f"rivals skipped, REGFRAME_RIVALS is not set: {rivals.HOW_TO_GET}"]
        for tool in dict.fromkeys(setting.tool for setting in rivals.SYNTHETIC) if python else ():
            worker = stack.enter_context(rivals.Worker(tool, python, threads))
            try:
                worker.check()
            except rivals.RivalError as error:
                missing.append(f"{tool} skipped: {error}")
            else:
                workers[tool] = worker
        yield Field(workers, missing)


def in_turns(settings: Sequence[rivals.Setting]) -> list[rivals.Setting]:
    """Tool A, B, C, D, A, B, …: a machine that is busy for a while is unfair to all alike."""
    by_tool: dict[str, list[rivals.Setting]] = {}
    for setting in settings:
        by_tool.setdefault(setting.tool, []).append(setting)
    return [setting for setting in chain.from_iterable(zip_longest(*by_tool.values())) if setting]


def measure(case: Case, field: Field, small: bool, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """A record per setting: medians over the rounds of seconds and of the error's mean and 95th percentile, and the worst mean.

    A position that is not a number counts as wrong by the image's diagonal.
    """
    settings = in_turns([setting for setting in case.settings if setting.tool in field.workers])
    if small:
        settings = settings[: len(field.workers)]
    for worker in field.workers.values():
        worker.load(case.fixed, case.moving, case.probes)
    rounds = 1 if small else 3
    runs: dict[rivals.Setting, list[tuple[float, float, float]]] = {setting: [] for setting in settings}
    for turn in range(rounds):
        for setting in list(runs):
            if turn and runs[setting][0][0] > SLOW:
                continue
            try:
                seconds, mapped = field.workers[setting.tool].run(setting.job)
            except rivals.RivalError as error:
                if setting.tool == "regframe":
                    raise
                say(f"dropped: {setting.text}: {error}")
                del runs[setting]
                continue
            error_px = np.nan_to_num(case.error(mapped), nan=math.hypot(*case.moving.shape[1:]))
            runs[setting].append((seconds, float(error_px.mean()), float(np.quantile(error_px, 0.95))))
    records = []
    for setting, taken in runs.items():
        seconds, mean, p95 = (statistics.median(column) for column in zip(*taken, strict=True))
        worker = field.workers[setting.tool]
        named = {"bench": "register", "pair": case.name, "tool": setting.tool, "settings": setting.text}
        figures = {
            "seconds": seconds,
            "error_mean": mean,
            "error_p95": p95,
            "error_worst": max(run[1] for run in taken),
        }
        records.append(named | figures | {"threads": worker.threads, "rounds": len(taken), "version": worker.version})
    return records


def compare(case: Case, small: bool, field: Field, report: Callable[[str], None]) -> None:
    """Measure, refuse a regframe that is lost, then print a table and what each rival needs for regframe's error."""
    rows = measure(case, field, small, report)
    for row in rows:
        if row["tool"] == "regframe":
            assert row["error_mean"] < 1.0, f"a time is worth nothing without a map: {row}"
    for sentence in field.missing:
        report(sentence)
    report(
        f"{case.name}, {field.workers['regframe'].threads} threads, medians of {rows[0]['rounds']} rounds "
        f"(one where a run takes over {SLOW:.0f} s)"
    )
    report("| tool | settings | s | error mean, px | p95, px | worst round's mean, px |")
    report("|---|---|---|---|---|---|")
    for row in rows:
        what = f"{row['tool']} {row['version']} | {row['settings']}"
        errors = " | ".join(f"{row[key]:.3f}" for key in ("error_mean", "error_p95", "error_worst"))
        report(f"| {what} | {row['seconds']:.2f} | {errors} |")
    ours = rows[0]
    for tool in list(field.workers)[1:]:
        runs = [row for row in rows if row["tool"] == tool]
        if runs:
            best, reached = rivals.equal_error(runs, ours["error_mean"])
            said = "at regframe's error or below" if reached else "never at regframe's error; its most accurate"
            spent = f"{best['seconds']:.2f} s, {best['seconds'] / ours['seconds']:.2f} x regframe's"
            report(f"{tool}, {said}: {best['error_mean']:.3f} px in {spent}")
            fast, reached = rivals.equal_error([row for row in rows if row["tool"] == "regframe"], best["error_mean"])
            if reached:
                ratio = best["seconds"] / fast["seconds"]
                report(
                    f"  regframe at that error or below: {fast['seconds']:.2f} s ({fast['settings']}), {ratio:.1f} x as fast"
                )
    if not small:
        for row in (make_table.circumstances(), *rows):
            records.record(**row)


def test_synthetic(small: bool, field: Field, report: Callable[[str], None]) -> None:
    """1 Mpx, and 128 px when small."""
    compare(synthetic_case(128 if small else 1024), small, field, report)


def test_seed(small: bool, field: Field, report: Callable[[str], None]) -> None:
    """The seed pair; only regframe is given the landmarks, and it runs without them too, as the rivals do."""
    data = Path(os.environ.get("REGFRAME_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    folder = data / "01_seed_cells"
    if not folder.is_dir():
        pytest.skip("no seed pair; set REGFRAME_DATA to the folder that has 01_seed_cells")
    compare(seed_case(folder), small, field, report)


def test_page(tmp_path: Path) -> None:
    """What is measured can be rendered: every kind of record, a figure, a later record in the place of an earlier one."""
    run = {"bench": "register", "pair": "a pair", "threads": 2, "error_mean": 0.5, "error_p95": 1.0}
    lines = [
        make_table.circumstances(),
        {**run, "tool": "regframe", "settings": "default", "seconds": 9.0},
        {**run, "tool": "regframe", "settings": "default", "seconds": 2.0},
        {**run, "tool": "other", "settings": "slow", "seconds": 8.0},
        {**run, "tool": "other", "settings": "fast", "seconds": 1.0, "error_mean": 0.7},
        {
            "bench": "scale",
            "side": 1024,
            "mpx": 1.0,
            "seconds": 2.0,
            "peak_bytes": 2**24,
            "error_mean": 0.5,
            "error_p95": 1.0,
        }
        | {"threads": 2},
        {"bench": "ops", "op": "warp", "kernel_ms": 10.0, "eager_ms": 50.0, "compiled_ms": None, "ratio": 5.0},
        {"bench": "energy", "what": "literal eager", "ms": 20.0, "ratio": 10.0},
    ]
    machines = make_table.read(json.dumps(line) for line in lines)
    page = make_table.document(machines, "page.svg", "make")
    assert "| regframe | default | 2 |" in page
    assert "| other | fastest at that error or below | 8 | 0.5 | 4 |" in page
    assert all(heading in page for heading in ("## Size", "## Kernels", "## One evaluation"))
    figure = make_table.draw(machines)
    assert figure is not None
    figure.savefig(tmp_path / "page.svg")
