"""Stacks of sections whose true poses are known: planes of a volume, each moved by a map of its own; and a real series.

Run as ``python benchmarks/bench_stack.py [--planes 30] [--rivals PYTHON]``; the data are read from ``$REGFRAME_DATA``, else
``../shared/data``. The error of a section is how far its pose is from the truth, rms over the tissue, after the one rigid motion
of the whole stack that fits best. Beside the reconciled stack: a plain chain of the same pairs, each section hung on the one
before it, and, where a Python with antspyx is named, a chain of ANTs' rigid registrations.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import os
import re
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import regframe as rf

Floats = NDArray[np.float64]
DATA = Path(os.environ.get("REGFRAME_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
TEMPLATE = "10_3d_mouse_atlas/CIVM_mouse.ISO.nii.gz"
HUMAN = "14_3d_human/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
PARTS = ("many", "known", "worn", "stretched", "damaged", "series")
SERIES = "13_nissl_serial/nissl_contig_0300_0339.zip"

PEER = """
import json, sys, time
import ants
import numpy as np
planes = np.load(sys.argv[1])
images = [ants.from_numpy(np.ascontiguousarray(plane, dtype=np.float32)) for plane in planes]
probes = np.load(sys.argv[2])
import pandas
began, out = time.perf_counter(), []
for fixed, moving in zip(images, images[1:]):
    found = ants.registration(fixed, moving, type_of_transform="Rigid")["fwdtransforms"]
    moved = ants.apply_transforms_to_points(2, pandas.DataFrame(probes, columns=["x", "y"]), found)
    out.append(moved[["x", "y"]].to_numpy().tolist())
print(json.dumps({"seconds": time.perf_counter() - began, "maps": out}))
"""
"""Fixed positions to moving ones, first axis first, for every neighbouring pair."""


@dataclass(frozen=True)
class Jittered:
    """Sections, and the true map ``[3, 3]`` of each into the volume's plane (in px); ``probes`` are positions there."""

    images: list[rf.Image]
    truth: list[Floats]
    probes: Floats


def jittered(volume: NDArray[np.float32], turn: float, shift: float, stretch: float, seed: int) -> Jittered:
    """Planes ``[Z, H, W]`` each moved by a random rigid map (degrees, px) and stretch on a canvas of its own size."""
    rng = np.random.default_rng(seed)
    images, truth = [], []
    tissue = np.argwhere(volume.mean(axis=0) > 0.15 * volume.mean(axis=0).max()).astype(np.float64)
    spread = tissue[:: max(1, len(tissue) // 200)]
    for k, plane in enumerate(volume):
        h, w = (n + int(rng.integers(16, 48)) for n in plane.shape)
        a = math.radians(rng.uniform(-turn, turn))
        linear = np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
        linear = linear @ (np.eye(2) + rng.uniform(-stretch, stretch, (2, 2)))
        matrix = np.eye(3)  # from the section to the plane
        matrix[:2, :2] = linear
        middle, there = np.array([h - 1, w - 1]) / 2, (np.array(plane.shape) - 1) / 2
        matrix[:2, 2] = there - linear @ (middle + rng.uniform(-shift, shift, 2))
        whole = rf.Image.from_array(np.ascontiguousarray(plane), "yx")
        to_section = rf.Affine(torch.from_numpy(np.linalg.inv(matrix)))
        moved = rf.resample(whole, to_section, rf.Grid((h, w)), background=0.0)
        images.append(moved.replace(name=f"{k:03d}"))
        truth.append(matrix)
    return Jittered(images, truth, spread)


def errors(poses: Sequence[Floats | None], stack: Jittered) -> Floats:
    """Rms error over the tissue per section, in px, after the best global rigid motion; NaN where there is no pose."""
    home = np.c_[stack.probes, np.ones(len(stack.probes))]
    moved = [
        None if a is None else (home @ (a @ np.linalg.inv(t)).T)[:, :2] for a, t in zip(poses, stack.truth, strict=True)
    ]
    there = np.concatenate([m for m in moved if m is not None])
    here = np.tile(stack.probes, (len(there) // len(stack.probes), 1))
    cp, cq = here.mean(axis=0), there.mean(axis=0)
    u, _, vh = np.linalg.svd((there - cq).T @ (here - cp))
    turn = u @ np.diag([1.0, np.sign(np.linalg.det(u @ vh))]) @ vh
    ideal = (stack.probes - cp) @ turn.T + cq
    return np.array([math.nan if m is None else math.sqrt(((m - ideal) ** 2).sum(axis=1).mean()) for m in moved])


def poses_of(found: rf.Stack) -> list[Floats | None]:
    return [None if r is None else np.asarray(r.affine.matrix.numpy()) for r in found.results]  # type: ignore[attr-defined]


def chain(found: rf.Stack) -> list[Floats | None]:
    """Poses of the stack's own neighbouring pairs hung on each other: what ``reference="chain"`` gives."""
    at = {(link.fixed, link.moving): link.matrix for link in found.links}
    out: list[Floats | None] = [np.eye(3)]
    pose = np.eye(3)
    for k in range(len(found.results) - 1):
        pose = pose @ at[k, k + 1]
        out.append(pose)
    return out


def wear(image: rf.Image, seed: int) -> rf.Image:
    """A section with tissue lost in three discs, uneven light and noise."""
    rng = np.random.default_rng(seed)
    data = image.data[0].numpy().astype(np.float64)
    h, w = data.shape
    y, x = np.mgrid[:h, :w]
    for _ in range(3):
        cy, cx = rng.uniform(0.25, 0.75) * h, rng.uniform(0.25, 0.75) * w
        data = np.where((y - cy) ** 2 + (x - cx) ** 2 < (0.1 * min(h, w)) ** 2, 0.0, data)
    light = 1 + 0.4 * (rng.uniform(-1, 1) * (y / h - 0.5) + rng.uniform(-1, 1) * (x / w - 0.5))
    data = data * light + 0.06 * data.max() * rng.normal(size=data.shape)
    return image.replace(data=torch.from_numpy(data.astype(np.float32))[None])


def said(name: str, off: Floats, seconds: float) -> str:
    """One line of the table: mean, median, worst, and how far the two ends of the stack are apart."""
    ends = np.nanmean(np.r_[off[:3], off[-3:]])
    return (
        f"| {name} | {np.nanmean(off):.2f} | {np.nanmedian(off):.2f} | {np.nanmax(off):.2f} | {ends:.2f} | "
        f"{int(np.isnan(off).sum())} | {seconds:.0f} |"
    )


CASES = {
    "mouse coronal": (TEMPLATE, 1),
    "mouse horizontal": (TEMPLATE, 0),
    "mouse sagittal": (TEMPLATE, 2),
    "human axial": (HUMAN, 0),
    "human coronal": (HUMAN, 1),
    "human sagittal": (HUMAN, 2),
}
"""Volume, and the axis across its planes."""


def template(data: Path, planes: int, step: int = 2, case: str = "mouse coronal") -> NDArray[np.float32]:
    """Planes ``[Z, H, W]`` of a volume, ``step`` voxels apart (mouse: 50 µm, human: 1 mm), from its middle."""
    name, axis = CASES[case]
    volume = np.moveaxis(rf.open(data / name).data[0].to(torch.float32).numpy(), axis, 0)
    first = volume.shape[0] // 2 - step * planes // 2
    return np.ascontiguousarray(volume[first : first + step * planes : step])


def register_chain(stack: Jittered) -> tuple[list[Floats | None], float]:
    """Poses of a chain of `regframe.register`, as it comes, and the seconds it took."""
    began, pose, out = time.perf_counter(), np.eye(3), [np.eye(3)]
    for fixed, moving in itertools.pairwise(stack.images):
        found = rf.register(fixed, moving, transform="rigid").affine
        assert isinstance(found, rf.Affine)
        pose = pose @ found.matrix.numpy()
        out.append(pose)
    return list(out), time.perf_counter() - began


def many(options: argparse.Namespace) -> None:
    """Several volumes, axes and seeds, clean and worn, rivals in the same run."""
    print(f"\n## {options.planes} planes, {options.step} voxels apart, ±12°, ±15 px: mean / worst error in px (s)\n")
    print(
        "| planes | seed | chain of `register` | chain of the stack's pairs | `regframe stack` | ANTs `Rigid`, chain |"
    )
    print("|---|---|---|---|---|---|")

    def cell(poses: Sequence[Floats | None], stack: Jittered, seconds: float | None) -> str:
        off = errors(poses, stack)
        took = "" if seconds is None else f" ({seconds:.0f})"
        lost = f", {int(np.isnan(off).sum())} lost" if np.isnan(off).any() else ""
        return f"{np.nanmean(off):.2f} / {np.nanmax(off):.2f}{lost}{took}"

    for case in options.cases:
        name, is_worn = case.removesuffix(" worn"), case.endswith(" worn")
        volume = template(options.data, options.planes, options.step, name)
        for seed in options.seeds:
            stack = jittered(volume, 12, 15, 0.0, seed=seed)
            if is_worn:
                images = [wear(image, 100 * seed + k) for k, image in enumerate(stack.images)]
                stack = dataclasses.replace(stack, images=images)
            poses, seconds = register_chain(stack)
            plain = cell(poses, stack, seconds)
            began = time.perf_counter()
            found = rf.align_stack(stack.images, options=rf.StackOptions(check_mirrors=False))
            own = cell(poses_of(found), stack, time.perf_counter() - began)
            rival = "–"
            if options.rivals:
                answer = ants_chain(options.rivals, stack, options.threads)
                rival = answer if isinstance(answer, str) else cell(answer[0], stack, answer[1])
            print(f"| {case} | {seed} | {plain} | {cell(chain(found), stack, None)} | {own} | {rival} |", flush=True)


def ants_chain(python: str, stack: Jittered, threads: int) -> tuple[list[Floats | None], float] | str:
    """Poses of a chain of ANTs' rigid registrations, or why there are none."""
    h, w = (max(image.grid.shape[d] for image in stack.images) for d in (0, 1))
    planes = np.zeros((len(stack.images), h, w), np.float32)
    for k, image in enumerate(stack.images):
        planes[k, : image.grid.shape[0], : image.grid.shape[1]] = image.data[0].numpy()
    corners = np.array([[0.0, 0.0], [h - 1.0, 0.0], [0.0, w - 1.0], [h - 1.0, w - 1.0]])
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/planes.npy", planes)
        np.save(f"{folder}/probes.npy", corners)
        environment = {**os.environ, "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": str(threads), "TMPDIR": folder}
        command = [python, "-c", PEER, f"{folder}/planes.npy", f"{folder}/probes.npy"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800, env=environment)
    if done.returncode:
        return f"ants: not run ({(done.stderr.strip().splitlines() or ['failed'])[-1]})"
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    home, pose, out = np.c_[corners, np.ones(4)], np.eye(3), [np.eye(3)]
    for there in answer["maps"]:  # fixed → moving
        matrix = np.eye(3)
        matrix[:2] = np.linalg.lstsq(home, np.array(there), rcond=None)[0].T
        pose = pose @ np.linalg.inv(matrix)
        out.append(pose)
    return list(out), float(answer["seconds"])


def known(volume: NDArray[np.float32], python: str | None, threads: int, step: int) -> None:
    """Planes of the template, rigid jitter of 12° and 15 px."""
    print(f"\n## {len(volume)} planes of the template, {50 * step} µm apart, ±12°, ±15 px; px of 50 µm\n")
    print("| stack | mean | median | worst | both ends | unplaced | s |\n|---|---|---|---|---|---|---|")
    stack = jittered(volume, 12, 15, 0.0, seed=0)
    solid = rf.Image.from_array(volume.max() - ndimage_smooth(volume), "zyx", spacing=(1.0, 1.0, 1.0))
    runs: list[tuple[str, dict[str, Any]]] = [
        ("reconciled", {}),
        ("reconciled, with the volume (smoothed, inverted) as guide", {"guide": solid}),
    ]
    for name, options in runs:
        began = time.perf_counter()
        found = rf.align_stack(stack.images, spacing_z=1.0, options=rf.StackOptions(check_mirrors=False, **options))
        seconds = time.perf_counter() - began
        if not options:
            print(said("plain chain of the same pairs", errors(chain(found), stack), seconds))
        print(said(name, errors(poses_of(found), stack), seconds), flush=True)
        if not options:
            print_figures(found)
    if python:
        answer = ants_chain(python, stack, threads)
        print(answer if isinstance(answer, str) else said("ANTs `Rigid`, chain", errors(answer[0], stack), answer[1]))


def worn(volume: NDArray[np.float32]) -> None:
    """Sections with holes, uneven light and noise, so that single pairs are off."""
    print("\n## The same, worn: three holes in each section, uneven light, noise\n")
    print("| stack | mean | median | worst | both ends | unplaced | s |\n|---|---|---|---|---|---|---|")
    clean = jittered(volume, 12, 15, 0.0, seed=0)
    stack = dataclasses.replace(clean, images=[wear(image, seed) for seed, image in enumerate(clean.images)])
    for reach in (2, 4):
        began = time.perf_counter()
        found = rf.align_stack(stack.images, options=rf.StackOptions(reach=reach, check_mirrors=False))
        seconds = time.perf_counter() - began
        if reach == 2:
            print(said("plain chain of the same pairs", errors(chain(found), stack), seconds))
        print(said(f"reconciled, {reach} neighbours to a side", errors(poses_of(found), stack), seconds), flush=True)
        print_figures(found)


def stretched(volume: NDArray[np.float32]) -> None:
    """Sections that the knife has stretched and sheared."""
    print("\n## The same with ±3 % of stretch and shear\n")
    print("| stack | mean | median | worst | both ends | unplaced | s |\n|---|---|---|---|---|---|---|")
    stack = jittered(volume, 12, 15, 0.03, seed=1)
    for transform in ("rigid", "affine"):
        began = time.perf_counter()
        found = rf.align_stack(stack.images, options=rf.StackOptions(check_mirrors=False), transform=transform)
        seconds = time.perf_counter() - began
        print(said(f"{transform}, plain chain of the same pairs", errors(chain(found), stack), seconds))
        print(said(f"{transform}, reconciled", errors(poses_of(found), stack), seconds), flush=True)


def damaged(volume: NDArray[np.float32]) -> None:
    """What happens to series in real life, and what is said of it."""
    print("\n## The same, rigid, with damage: one blank, one half, one turned over, two exchanged\n")
    stack = jittered(volume, 12, 15, 0.0, seed=2)
    images, n = list(stack.images), len(stack.images)
    blank, half, over, swap = n // 6, n // 3, n // 2, 2 * n // 3
    images[blank] = images[blank].replace(data=torch.zeros_like(images[blank].data))
    torn = images[half].data.clone()
    torn[:, :, torn.shape[2] // 2 :] = 0
    images[half] = images[half].replace(data=torn)
    images[over] = images[over].replace(data=images[over].data.flip(2).contiguous())
    images[swap], images[swap + 1] = images[swap + 1], images[swap]
    began = time.perf_counter()
    found = rf.align_stack(images)
    truth = list(stack.truth)
    truth[swap], truth[swap + 1] = truth[swap + 1], truth[swap]
    poses = [None if k == over else pose for k, pose in enumerate(poses_of(found))]  # it has no pose without a mirror
    off = errors(poses, Jittered(images, truth, stack.probes))
    print(
        f"blank {blank}, half {half}, turned over {over}, exchanged {swap} and {swap + 1}; {time.perf_counter() - began:.0f} s"
    )
    print(f"error of the others: mean {np.nanmean(off):.2f}, worst {np.nanmax(off):.2f} px; the half {off[half]:.2f}")
    for section in found.metrics["sections"]:
        if section["reasons"]:
            print(f"- {section['name']}: {section['verdict']}: {'; '.join(section['reasons'])}")


def ndimage_smooth(volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every plane averaged over 3 × 3 pixels."""
    planes = torch.nn.functional.avg_pool2d(torch.from_numpy(volume)[:, None], 3, 1, 1)[:, 0]
    return np.asarray(planes.numpy())


def print_figures(found: rf.Stack) -> None:
    """Coherence and drift as the stack itself states them."""
    m = found.metrics
    one, other, drift = m["coherence"]["before"], m["coherence"]["after"], m["drift"]
    loops = drift["loops_px"] or {"median": math.nan, "max": math.nan}
    print(
        f"|  its own figures: correlation {one['ncc']:.3f} → {other['ncc']:.3f}, mutual information {one['nmi']:.3f} → "
        f"{other['nmi']:.3f}, Dice {one['dice']:.3f} → {other['dice']:.3f}; loops {loops['median']:.2f} px (median), "
        f"{loops['max']:.2f} at most; a chain departs by {drift['chain_departs_px'] or math.nan:.2f} px | | | | | | |"
    )


def series(data: Path) -> None:
    """The 40 Nissl sections: no truth but their order."""
    print("\n## 40 Nissl sections\n")
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(data / SERIES) as archive:
        numbered = {}
        for name in archive.namelist():
            found = re.fullmatch(r"[^/\\]*_(\d+)\.jpg", Path(name).name)
            if found:
                path = Path(folder) / Path(name).name
                path.write_bytes(archive.read(name))
                numbered[int(found[1])] = rf.open(path).replace(name=found[1])
        images = [numbered[number] for number in sorted(numbered)]
    for transform in ("rigid", "affine", "lddmm"):
        began = time.perf_counter()
        found_stack = rf.align_stack(images, transform=transform)
        print(f"{transform}: {found_stack} in {time.perf_counter() - began:.0f} s")
        print_figures(found_stack)
        for reason in found_stack.reasons:
            print(f"- {reason}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--planes", type=int, default=30)
    parser.add_argument("--step", type=int, default=2, help="voxels of 50 µm between two planes")
    parser.add_argument("--rivals", default=os.environ.get("REGFRAME_RIVALS"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=PARTS, nargs="+", metavar="PART")
    names = [*CASES, *(f"{name} worn" for name in CASES)]
    parser.add_argument("--cases", choices=names, nargs="+", metavar="CASE", default=names[:6], help="planes of `many`")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of `many`")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    made = f"regframe {version('regframe')}, torch {torch.__version__}"
    print(f"{datetime.now(UTC):%Y-%m-%d}; {made}; {options.threads} threads; load {os.getloadavg()[0]:.1f}")
    chosen = options.only or PARTS
    if set(chosen) - {"many", "series"}:
        volume = template(options.data, options.planes, options.step)
    for part in chosen:
        if part == "many":
            many(options)
        elif part == "known":
            known(volume, options.rivals, options.threads, options.step)
        elif part == "series":
            series(options.data)
        else:
            {"worn": worn, "stretched": stretched, "damaged": damaged}[part](volume)


def test_bench_stack_runs_small() -> None:
    y, x = np.mgrid[:48, :56].astype(np.float32)
    planes = []
    for k in range(3):
        blob = np.exp(-(((y - 24) / 15) ** 2) - ((x - 28) / 19) ** 2)
        planes.append(blob * (2 + np.sin(x / 3 + 0.2 * k) * np.cos(y / 4)) * 90)
    stack = jittered(np.stack(planes).astype(np.float32), 8, 4, 0.0, seed=0)
    found = rf.align_stack(stack.images, options=rf.StackOptions(check_mirrors=False))
    assert np.nanmax(errors(poses_of(found), stack)) < 1.0


if __name__ == "__main__":
    main()
