"""The bars of point clouds, with defaults: fish, bunnies, outliers and missing parts, 100 000 points, round trips.

``python benchmarks/bench_points.py [--large | --calibration]`` prints a line for each; pycpd
beside them where ``REGFRAME_RIVALS`` names a Python that has it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

import regframe as rf

Floats = NDArray[np.float64]
DATA = (
    Path(os.environ.get("REGFRAME_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data") / "17_point_clouds"
)
PAIRS = {
    "fish": ("pycpd/fish_source.txt", "pycpd/fish_target.txt"),
    "bunny": ("pycpd/bunny_source.txt", "pycpd/bunny_target.txt"),
    "bunny-x/-y": ("probreg/bunny-x.txt", "probreg/bunny-y.txt"),
}
PEER = """
import json, sys, time, numpy as np, pycpd
p, q = np.loadtxt(sys.argv[1]), np.loadtxt(sys.argv[2])
began = time.perf_counter()
moved = pycpd.DeformableRegistration(X=q, Y=p).register()[0]
print(json.dumps([float(np.linalg.norm(moved - q, axis=1).mean()), time.perf_counter() - began]))
"""


def cloud(array: Floats) -> rf.PointSet:
    return rf.PointSet(torch.from_numpy(np.ascontiguousarray(array)))


def run(p: Floats, q: Floats, kind: str, truth: tuple[Floats, Floats]) -> tuple[float, str, str]:
    """Mean row error over ``truth``, time and verdict."""
    began, worked = time.perf_counter(), time.process_time()
    result = rf.register(cloud(q), cloud(p), transform=kind)
    seconds = f"{time.perf_counter() - began:.2f} s ({time.process_time() - worked:.2f} s of one core)"
    moved = result.to_fixed(torch.from_numpy(truth[0])).numpy()
    return float(np.linalg.norm(moved - truth[1], axis=1).mean()), seconds, result.verdict


def best_affine(p: Floats, q: Floats) -> float:
    rows = np.c_[p, np.ones(len(p))]
    return float(np.linalg.norm(rows @ np.linalg.lstsq(rows, q, rcond=None)[0] - q, axis=1).mean())


def turn(ndim: int, seed: int) -> Floats:
    if ndim == 3:
        return np.asarray(Rotation.random(random_state=seed).as_matrix())
    a = 1.7 * seed
    return np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])


def spoiled(p: Floats, q: Floats, seed: int) -> Iterator[tuple[str, Floats, Floats, NDArray[np.intp]]]:
    """30 % outliers on one side, a quarter missing on the other, at random and in one piece; the rows both have."""
    rng = np.random.default_rng(seed)

    def dirty(c: Floats) -> Floats:
        return np.r_[c, rng.uniform(c.min(0), c.max(0), (round(0.3 * len(c)), c.shape[1]))]

    for name in ("at random", "in one piece"):
        order = (
            rng.permutation(len(p)) if name == "at random" else np.argsort(p @ rng.normal(size=p.shape[1])).astype(int)
        )
        kept = np.sort(order[len(p) // 4 :])
        yield f"missing fixed, {name}", dirty(p), q[kept], kept
        yield f"missing moving, {name}", p[kept], dirty(q), kept


def peer(name: str) -> str:
    python = os.environ.get("REGFRAME_RIVALS")
    if not python:
        return "pycpd: not run (REGFRAME_RIVALS is not set)"
    files = [str(DATA / part) for part in PAIRS[name]]
    done = subprocess.run([python, "-c", PEER, *files], capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        return f"pycpd: not run ({done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'failed'})"
    error, seconds = json.loads(done.stdout)
    return f"pycpd deformable, defaults: {error:.4g}, {seconds:.1f} s"


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def bars(turns: int, seeds: int) -> None:
    pairs = {name: tuple(np.loadtxt(DATA / part) for part in parts) for name, parts in PAIRS.items()}
    run(*pairs["bunny"], "rigid", pairs["bunny"])  # what is loaded once is not timed
    for name in ("fish", "bunny-x/-y"):
        p, q = pairs[name]
        error, seconds, verdict = run(p, q, "lddmm", (p, q))
        print(
            f"{name}: {error:.4g} in {seconds}, {verdict}; best affine by its rows {best_affine(p, q):.4g}; {peer(name)}"
        )
    p, q = pairs["bunny"]
    errors = [run(p @ turn(3, s).T, q, "rigid", (p @ turn(3, s).T, q))[0] for s in range(turns)]
    print(f"bunny, rigid, {turns} turns: at most {max(errors):.3g}")
    for name, kind, enough in (("fish", "lddmm", 0.078), ("bunny", "rigid", 2e-4), ("bunny-x/-y", "lddmm", 0.106)):
        p, q = pairs[name]
        found: dict[str, list[float]] = {}
        for seed in range(seeds):
            turned = p @ turn(p.shape[1], seed).T
            for what, one, other, kept in spoiled(turned, q, seed):
                found.setdefault(what, []).append(run(one, other, kind, (turned[kept], q[kept]))[0])
        for what, values in found.items():
            good = sum(value <= enough for value in values)
            print(
                f"{name}, 30 % outliers, {what}: median {np.median(values):.3g}, {good} of {len(values)} within {enough:g}"
            )


def smooth(p: Floats, size: float, seed: int) -> Floats:
    """``p`` moved by a smooth field of rms ``size`` per axis, of waves not much shorter than the cloud."""
    rng = np.random.default_rng(seed)
    field = np.zeros_like(p)
    for _ in range(6):
        phase = np.pi * (p - p.min(0)) / np.ptp(p, axis=0).max() @ rng.normal(size=p.shape[1]) + rng.uniform(
            0, 2 * np.pi
        )
        field += np.sin(phase)[:, None] * rng.normal(size=p.shape[1])
    return p + size * field / max(float(np.sqrt((field**2).mean())), 1e-12)


def calibration(seeds: int) -> None:
    """How many errors lie within one and two of the stated `position_sd` where a known map, noise and missing points made the
    fixed side: 0.68 and 0.95 if it says what is so."""
    with gzip.open(DATA.parent / "04_st_xenium_breast" / "bulbasaur.csv.gz", "rt") as file:
        rows = [line.split(",", 3) for line in file][1:]
    cells = np.array([[float(row[2]), float(row[1])] for row in rows])
    fish, bunny = (np.loadtxt(DATA / PAIRS[name][0]) for name in ("fish", "bunny"))
    for name, every in (("fish", fish), ("bunny", bunny), ("3000 Xenium cells", cells)):
        for kind, size in (("rigid", 0.0), ("lddmm", 0.03)):
            for noise in (0.2, 0.5):
                found: list[tuple[float, ...]] = []
                for seed in range(seeds):
                    rng = np.random.default_rng(seed)
                    p = every[np.sort(rng.permutation(len(every))[:3000])]
                    spacing = float(np.median(cKDTree(p).query(p, k=2)[0][:, 1]))
                    truth = smooth(p, size * float(np.ptp(p, axis=0).max()), seed)
                    q = (truth + rng.normal(size=p.shape) * noise * spacing)[rng.random(len(p)) > 0.2]
                    result = rf.register(cloud(q), cloud(p), transform=kind, init="identity")
                    carried = rf.carry_points(result, cloud(p))
                    sd = carried.position_sd.numpy()
                    error = (carried.points.coords.numpy() - truth)[np.isfinite(sd)] / spacing
                    sd = sd[np.isfinite(sd), None] / spacing
                    within = (np.abs(error) <= sd).mean(), (np.abs(error) <= 2 * sd).mean()
                    rms = np.sqrt((error**2).mean()), np.sqrt((sd**2).mean())
                    found.append((*map(float, (*within, *rms)), float(result.metrics["model"] == "lddmm")))
                one, two, off, said, bent = np.array(found).T
                print(
                    f"{name}, {kind}, noise of {noise} spacings, 20 % gone: {one.mean():.2f} within 1 sd, {two.mean():.2f} "
                    f"within 2; median error {np.median(off):.3g}, sd {np.median(said):.3g} spacings; "
                    f"bent in {bent.sum():.0f} of {seeds}"
                )


def large(n: int) -> None:
    rng = np.random.default_rng(0)
    t = rng.uniform(0, 6, (n, 2))
    q = np.stack(
        [np.sin(t[:, 0]) * (3 + np.cos(t[:, 1])), np.cos(1.3 * t[:, 0]) * t[:, 0], np.sin(t[:, 1]) + 0.1 * t[:, 0]], 1
    )
    p = q @ turn(3, 1).T
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    for kind, truth in (("rigid", q), ("lddmm", q + 0.2 * np.sin(q[:, [1, 2, 0]]))):
        error, seconds, verdict = run(p, truth, kind, (p, truth))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{n} against {n} points, {kind}: {error:.3g} in {seconds}, {verdict}, peak {peak:.2f} GiB, "
            f"{start:.2f} before; best affine {best_affine(p, truth):.3g}"
        )
    result = rf.register(cloud(truth), cloud(p))
    many = torch.from_numpy(rng.uniform(p.min(0), p.max(0), (10 * n, 3)))
    there = result.to_fixed(many)
    seconds = timed(lambda: result.to_fixed(many)), timed(lambda: result.to_moving(there))
    off = (result.to_moving(there) - many).norm(dim=1).mean() / result.moving_grid.pixel
    print(f"round trip of {10 * n} points: {float(off):.2g} px, {seconds[0]:.2f} s there, {seconds[1]:.2f} s back")


def test_bench_points_runs_small() -> None:
    large(600)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true", help="only the large clouds, in a process of their own")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--calibration", action="store_true", help="only whether position_sd is as large as the errors")
    options = parser.parse_args()
    if options.large:
        large(100_000)
    elif options.calibration:
        calibration(options.seeds)
    else:
        bars(options.turns, options.seeds)
