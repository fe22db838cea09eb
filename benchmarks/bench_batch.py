"""A cohort of real pairs with four that cannot work: against the same registrations started one by one, on one worker and on two,
with a worker killed on the way."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest
import records

from regframe.batch import Job, JobEvent, Limits, Outcome, pools, run_batch, work

SETTINGS = ("pyramid.max_pixels=200000",)
LUNG = "02_histology_landmarks/lung-lesion_3/29-041-Izd2-w35-"
PAIRS = {
    "seed": ("01_seed_cells/cells2_crop.jpg", "01_seed_cells/cells.jpg"),
    "hands": ("15_2d_classics/fair/hands-R.jpg", "15_2d_classics/fair/hands-T.jpg"),
    "slices": ("15_2d_classics/ants/r16slice.jpg", "15_2d_classics/ants/r64slice.jpg"),
    "lung_cd31": (f"{LUNG}He-les3.jpg", f"{LUNG}CD31-3-les3.jpg"),
    "lung_ki67": (f"{LUNG}He-les3.jpg", f"{LUNG}Ki67-7-les3.jpg"),
    "lung_both": (f"{LUNG}CD31-3-les3.jpg", f"{LUNG}Ki67-7-les3.jpg"),
    "lung_prospc": ("02_histology_landmarks/lung-lesion_1/Izd2-29-041-w35_HE.jpg",
                    "02_histology_landmarks/lung-lesion_1/Izd2-29-041-w35_proSPC.jpg"),
    "cortex_34": ("06_st_dlpfc/151673/tissue_lowres_image.png", "06_st_dlpfc/151674/tissue_lowres_image.png"),
    "cortex_45": ("06_st_dlpfc/151674/tissue_lowres_image.png", "06_st_dlpfc/151675/tissue_lowres_image.png"),
    "cortex_56": ("06_st_dlpfc/151675/tissue_lowres_image.png", "06_st_dlpfc/151676/tissue_lowres_image.png"),
}  # fmt: skip
"""Ten pairs; turned round they are twenty."""
TIMED = ("metrics.json", "report.html", "transform.ome.zarr/regframe/zarr.json")
FEW = ("seed", "hands", "slices", "cortex_34")


def good(data: Path, names: tuple[str, ...], small: bool) -> list[Job]:
    """The pairs, both ways; where ``small`` one of them, hardly fitted."""
    if small:
        fixed, moving = PAIRS["seed"]
        return [
            Job(
                id="seed",
                fixed=data / fixed,
                moving=data / moving,
                settings=("transform=affine", "optimizer.max_iter=4"),
            )
        ]
    jobs = []
    for name in names:
        for turn, order in (("", 1), ("_back", -1)):
            fixed, moving = PAIRS[name][::order]
            jobs.append(Job(id=f"{name}{turn}", fixed=data / fixed, moving=data / moving, settings=SETTINGS))
    return jobs


def bad(data: Path, folder: Path) -> list[Job]:
    """A damaged file, a missing one, two organs, and one that unpacks to more than it may take."""
    seed, lung, cortex = (data / PAIRS[name][0] for name in ("seed", "lung_cd31", "cortex_34"))
    (folder / "damaged.jpg").write_bytes(lung.read_bytes()[:20_000])
    PIL.Image.new("RGB", (12_000, 12_000), (240, 235, 238)).save(folder / "vast.png")
    return [
        Job(id="damaged", fixed=folder / "damaged.jpg", moving=lung, settings=SETTINGS),
        Job(id="missing", fixed=folder / "nothing.tif", moving=lung, settings=SETTINGS),
        Job(id="organs", fixed=lung, moving=cortex, settings=SETTINGS),
        Job(id="vast", fixed=folder / "vast.png", moving=seed, settings=SETTINGS, memory=450 << 20),
    ]


def alone(job: Job, out: Path) -> None:
    line = [sys.executable, "-c", "from regframe.cli import main; main()", "register", *job.register_arguments(out)]
    done = subprocess.run(line, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode in (0, 3), done.stderr


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of a result, with how long it took left out."""
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    for name in TIMED:
        text = re.sub(rb'"seconds": [\d.e-]+', b"", found[name])
        found[name] = re.sub(rb">(time</dt><dd>[^<]*|seconds</td><td>[\d.e-]+)<", b"><", text)
    return {name: data for name, data in found.items() if name not in (work.RECORD, work.LOG)}


def times(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".lock")}


@pytest.fixture
def data_dir() -> Path:
    folder = Path(os.environ.get("REGFRAME_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set REGFRAME_DATA to their folder")
    return folder


@pytest.fixture(autouse=True)
def _needs_dask() -> None:
    pytest.importorskip("distributed")


def test_a_cohort(data_dir: Path, tmp_path: Path, small: bool, report: Callable[[str], None]) -> None:
    if small:
        pytest.skip("tests/batch/test_batch.py kills a worker of a smaller batch, and compares the same bytes")
    jobs = good(data_dir, tuple(PAIRS), small)
    broken = bad(data_dir, tmp_path)
    everything = [*jobs, *(broken[:2] if small else broken)]
    limits = Limits(memory=3 << 30, threads=1)
    killed: list[int] = []
    out = tmp_path / "out"
    with pools.Cluster(workers=2) as pool:
        client = pool._client
        pids = client.run(os.getpid)
        names = {str(w["name"]): pids[address] for address, w in client.scheduler_info()["workers"].items()}

        def kill(step: JobEvent) -> None:
            if step.kind == "started" and step.id == jobs[-1].id and not killed:
                killed.append(names[step.worker])
                threading.Timer(1.0, os.kill, (killed[0], signal.SIGKILL)).start()

        began = time.monotonic()
        outcomes = {o.id: o for o in run_batch(everything, out, pool, limits, progress=kill)}
        seconds = time.monotonic() - began
        assert list(pool.run(abs, [(-1,)])) == [(0, 1)]
        assert killed[0] not in client.run(os.getpid).values()

    same = []
    for job in jobs:
        assert outcomes[job.id].status == "done", outcomes[job.id].reasons
        assert len(outcomes[job.id].attempts) == 1
        alone(job, tmp_path / "alone" / job.id)
        same.append(contents(out / job.id) == contents(tmp_path / "alone" / job.id))
    before = times(out)
    began = time.monotonic()
    assert all(o.kept for o in run_batch(everything, out, pools.InTurn(), limits))
    again = time.monotonic() - began
    assert times(out) == before
    report(
        f"{len(everything)} jobs in {seconds:.0f} s on two workers, one of them killed; {sum(same)} of {len(same)} good ones "
        f"have the bytes they have alone; run again: {again:.2f} s"
    )
    for job in everything[len(jobs) :]:
        outcome: Outcome = outcomes[job.id]
        report(f"{outcome.id}: {outcome.state}, {len(outcome.attempts)} attempt(s), {outcome.peak_memory >> 20} MiB: "
               f"{'; '.join(outcome.reasons)}")  # fmt: skip
        assert outcome.state != "pass"
        assert outcome.reasons
    assert all(same)
    keep = os.environ.get("REGFRAME_BENCH_KEEP")
    if keep:
        shutil.copytree(out, keep)
    records.record(benchmark="batch", jobs=len(everything), seconds=seconds, same=sum(same), again=again)


def test_two_workers_against_one(data_dir: Path, tmp_path: Path, small: bool, report: Callable[[str], None]) -> None:
    if small:
        pytest.skip("a figure of throughput; tests/batch/test_batch.py runs what it runs")
    jobs = good(data_dir, FEW, small)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(2):
        for workers in (1, 2):
            with pools.Cluster(workers=workers) as pool:
                began = time.monotonic()
                outcomes = run_batch(jobs, tmp_path / f"{workers}-{turn}", pool, Limits(memory=3 << 30, threads=1))
                seconds[workers].append(time.monotonic() - began)
                assert all(o.status == "done" for o in outcomes)
    began = time.monotonic()
    for job in jobs:
        alone(job, tmp_path / "alone" / job.id)
    plain = time.monotonic() - began
    one, two = min(seconds[1]), min(seconds[2])
    load = os.getloadavg()[0]
    report(
        f"{len(jobs)} jobs: two workers {one / two:.2f} times as fast as one; one takes {one / plain:.2f} times what a loop over "
        f"`regframe register` does ({one:.0f}, {two:.0f}, {plain:.0f} s; {os.cpu_count()} cores, load {load:.1f})"
    )
    records.record(benchmark="batch workers", jobs=len(jobs), one=one, two=two, plain=plain)
