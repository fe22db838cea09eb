"""Two brain slabs: labels carried from one to the other, with ANTs SyN beside.

Run as ``python benchmarks/bench_volumes.py``; the data are read from ``$REGFRAME_DATA``, else ``../shared/data``.
``--made 128 256`` takes made volumes whose map is known instead.
``--rivals PYTHON`` (else ``REGFRAME_RIVALS``) names the Python that has antspyx. Both read the same files and have the same
number of threads; each carries the moving labels with its own nearest-neighbour sampling, and the Dice
coefficients are computed here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import regframe as rf
from regframe import reference

DATA = Path(os.environ.get("REGFRAME_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
FOLDER = "14_3d_human/jlf"
LIMIT = 1800.0
"""Seconds after which a rival is stopped."""

PEER = """
import json, sys, time
from importlib.metadata import version
import ants
import numpy as np
fixed, moving, labels, out, options = sys.argv[1:]
fixed, moving, labels = (ants.image_read(path) for path in (fixed, moving, labels))
began, worked = time.perf_counter(), time.process_time()
found = ants.registration(fixed, moving, **json.loads(options))
seconds, cpu = time.perf_counter() - began, time.process_time() - worked
carried = ants.apply_transforms(fixed, labels, found["fwdtransforms"], interpolator="nearestNeighbor")
ants.image_write(carried, out)
warps = [path for path in found["fwdtransforms"] if path.endswith(".nii.gz")]
area = ants.create_jacobian_determinant_image(fixed, warps[0]).numpy() if warps else np.ones(1)
answer = {"seconds": seconds, "cpu": cpu, "folding": float((area <= 0).mean()), "smallest": float(area.min())}
print(json.dumps(answer | {"version": version("antspyx")}))
"""

RIVALS: tuple[dict[str, Any], ...] = (
    {"type_of_transform": "Affine"},
    {"type_of_transform": "SyN"},
    {"type_of_transform": "SyN", "reg_iterations": [100, 100, 50]},
    {"type_of_transform": "SyNCC"},
)
"""Arguments of ``ants.registration``; what is not named is its default (SyN: mutual information, 40 x 20 x 0 iterations)."""

SETTINGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("affine", {"transform": "affine"}),
    ("default", {}),
    ("`optimizer.max_iter=25`", {"optimizer": {"max_iter": 25}}),
    ("`pyramid.finest=1`", {"pyramid": {"finest": 1}}),
)


@dataclass(frozen=True)
class Row:
    """One run: mean Dice over the labels above 0, seconds on the clock and of all cores, share of folded voxels, smallest
    Jacobian determinant."""

    tool: str
    settings: str
    dice: float
    each: tuple[float, ...]
    seconds: float
    cpu: float
    folding: float
    smallest: float

    def __str__(self) -> str:
        each = ", ".join(f"{value:.3f}" for value in self.each)
        figures = (
            f"{self.dice:.4f} | {each} | {self.seconds:.1f} | {self.cpu:.1f} | {self.folding:.2%} | {self.smallest:.2f}"
        )
        return f"| {self.tool} | {self.settings} | {figures} |"


def dice(carried: NDArray[Any], target: NDArray[Any]) -> tuple[float, ...]:
    """Dice coefficient of every label of ``target`` above 0."""
    found = []
    for label in np.unique(target[target > 0]):
        one, other = carried == label, target == label
        found.append(2 * float((one & other).sum()) / float(one.sum() + other.sum()))
    return tuple(found)


def files(folder: Path) -> tuple[Path, Path, Path, Path]:
    """Fixed and moving image, fixed and moving labels."""
    one, two, one_labels, two_labels = (folder / f"{kind}list{k}.nii.gz" for kind in "is" for k in (1, 2))
    return one, two, one_labels, two_labels


def ours(folder: Path, name: str, settings: dict[str, Any], init: str = "auto") -> Row:
    """regframe with one of `SETTINGS`, from a start that is searched for, or the one that ``init`` names."""
    fixed, moving, of_fixed, of_moving = (rf.open(path, labels=path.name.startswith("s")) for path in files(folder))
    began, worked = time.perf_counter(), time.process_time()
    result = rf.register(fixed, moving, init=init, config=rf.Config.model_validate(settings))
    seconds = time.perf_counter() - began, time.process_time() - worked
    each = dice(result.to_fixed(of_moving).data[0].numpy(), of_fixed.data[0].numpy())
    area = result.metrics["folding_fraction"], result.metrics["jacobian_min"]
    return Row("regframe", name, float(np.mean(each)), each, *seconds, *area)


def theirs(folder: Path, python: str, options: dict[str, Any], threads: int) -> Row | str:
    """ANTs with one of `RIVALS`, or why there is no figure."""
    fixed, moving, of_fixed, of_moving = files(folder)
    names = ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
    with tempfile.TemporaryDirectory() as aside:
        out = Path(aside) / "carried.nii.gz"
        command = [python, "-c", PEER, *map(str, (fixed, moving, of_moving, out)), json.dumps(options)]
        environment = {**os.environ, **dict.fromkeys(names, str(threads)), "TMPDIR": aside}
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT, env=environment)
        except subprocess.TimeoutExpired:
            return f"ants {options}: stopped after {LIMIT:.0f} s"
        if done.returncode:
            said = done.stderr.strip().splitlines()
            return f"ants {options}: failed ({said[-1] if said else 'it said nothing'})"
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        each = dice(rf.open(out, labels=True).data[0].numpy(), rf.open(of_fixed, labels=True).data[0].numpy())
    rest = ", ".join(f"{key}={value}" for key, value in options.items() if key != "type_of_transform")
    name = f"`{options['type_of_transform']}{f'({rest})' if rest else ''}`"
    figures = float(np.mean(each)), each, answer["seconds"], answer["cpu"], answer["folding"], answer["smallest"]
    return Row(f"ants {answer['version']}", name, *figures)


def made(side: int, seed: int = 1) -> tuple[rf.Image, rf.Image, torch.Tensor]:
    """Two volumes ``[side]³`` of one smooth thing, and where voxels of the moving one truly lie in the fixed one ``[*S, 3]``:
    bent by a hundredth of the side in the mean."""
    shape, generator = (side,) * 3, torch.Generator().manual_seed(seed)
    grid = rf.Grid(shape)

    def smooth(noise: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(noise[None], shape, mode="trilinear", align_corners=True)[0]

    image = sum(smooth(torch.rand((1, *(side // k,) * 3), generator=generator)) for k in (4, 16))
    assert isinstance(image, torch.Tensor)
    bend = smooth(torch.randn((3, 5, 5, 5), generator=generator)) * side / 150
    truth = grid.coords().to(torch.float32) + bend.movedim(0, -1)
    return rf.Image(image, grid), rf.Image(reference.sample_image(image, truth), grid), truth


def known(side: int) -> str:
    """A row about two made volumes: seconds, the error of the map in voxels away from the rim, and memory."""
    fixed, moving, truth = made(side)
    before = peak()
    began, worked = time.perf_counter(), time.process_time()
    result = rf.register(fixed, moving)
    seconds = time.perf_counter() - began, time.process_time() - worked
    inner = (slice(side // 32, -(side // 32), side // 32),) * 3
    at, there = fixed.grid.coords()[inner].reshape(-1, 3), truth[inner].reshape(-1, 3)
    error = (result.transform.points(at) - there).norm(dim=-1)
    moved = float((there - at).norm(dim=-1).median())
    figures = f"{moved:.2f} | {float(error.median()):.3f} | {float(error.quantile(0.9)):.3f}"
    return f"| {side}³ | {figures} | {seconds[0]:.1f} | {seconds[1]:.1f} | {before:.0f} | {peak():.0f} |"


def peak() -> float:
    """Most memory of this process so far, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--rivals", default=os.environ.get("REGFRAME_RIVALS"), help="the Python that has antspyx")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=["regframe", "ants"], default=["regframe", "ants"])
    parser.add_argument("--settings", type=int, nargs="+", default=range(len(SETTINGS)), help="places in SETTINGS")
    parser.add_argument("--slow", action="store_true", help="also the rival's settings that take many minutes")
    parser.add_argument("--made", type=int, nargs="+", metavar="SIDE", help="instead: made volumes whose map is known")
    options = parser.parse_args(arguments)
    folder = options.data / FOLDER
    if not folder.is_dir() and not options.made:
        parser.error(f"wanted the two brain slabs in {folder}, got nothing; set --data or REGFRAME_DATA")
    torch.set_num_threads(options.threads)
    made = f"regframe {version('regframe')}, torch {torch.__version__}"
    print(f"{datetime.now(UTC):%Y-%m-%d}; {made}; {options.threads} threads; load {os.getloadavg()[0]:.1f}\n")
    if options.made:
        print(
            "| voxels | moved by | error | 90 % | s | s of all cores | peak before, MiB | peak, MiB |\n"
            + "|---" * 8
            + "|"
        )
        for side in options.made:
            print(known(side), flush=True)
        return
    print(
        "| tool | settings | mean Dice | of each label | s | s of all cores | folded | smallest Jacobian |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for name, settings in (SETTINGS[i] for i in options.settings if "regframe" in options.only):
        print(ours(folder, name, settings), flush=True)
    if "ants" not in options.only:
        return
    if options.rivals is None:
        print("\nANTs not run: set --rivals or REGFRAME_RIVALS (python benchmarks/rivals.py --install DIR)")
        return
    for setting in RIVALS if options.slow else RIVALS[:-1]:
        print(theirs(folder, options.rivals, setting, options.threads), flush=True)


def test_dice_of_what_is_known() -> None:
    target = np.array([0, 1, 1, 2, 2, 2])
    assert dice(target, target) == (1.0, 1.0)
    assert dice(np.array([1, 1, 0, 2, 2, 0]), target) == (0.5, 0.8)


def test_bench_volumes_runs_small() -> None:
    folder = DATA / FOLDER
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set REGFRAME_DATA to their folder")
    row = ours(folder, "small", {"pyramid": {"finest": 2}, "optimizer": {"max_iter": 5}}, init="identity")
    assert row.dice > 0.7
    assert row.folding < 1e-4  # after five steps


def test_made_volumes_move_as_they_say() -> None:
    fixed, moving, truth = made(24)
    carried = reference.sample_image(fixed.data, truth)
    assert torch.equal(carried, moving.data)
    assert 0.05 < float((truth - fixed.grid.coords()).norm(dim=-1).median()) < 1


if __name__ == "__main__":
    main()
