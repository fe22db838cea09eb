"""How well a bend follows, and whether it arrives: every pair's affine map once, kept, then a bend from it in any setting::

    python benchmarks/bends.py --pairs lungs --set metric=lncc --set metric_options.radius=8 --set matching.enabled=false
    python benchmarks/bends.py --pairs made --seed 3
    python benchmarks/bends.py --pairs lungs --noise 1e-6 --isa baseline,avx2,avx512

Prints per pair the median and the 90 % quantile of the error in percent of the moving image's diagonal, under the affine map
and under the bent one. Constants are set on ``made`` (known maps, benchmarks/made.py) and reported on ``lungs``.

``--rivals PYTHON`` (benchmarks/rivals.py makes one) prints other tools' bends from the same affine maps beside ours.
``--noise`` fits again with that much relative noise in the moving image, ``--isa`` in a process for each of these
instruction sets, and both print how far the map has moved.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made
import numpy as np
import rivals
import torch
import truth
from numpy.typing import NDArray
from torch import Tensor

import regframe as rf

NOISE_SEED = 5
"""Seed of the noise that is added to a moving image."""


def pairs(data: Path, kind: str, seed: int) -> Iterator[truth.Pair]:
    """The pairs of a kind: ``lungs``, ``made``, or ``others`` (seed, seed bent, hands, nuclei, MERFISH)."""
    if kind == "lungs":
        yield from truth.lungs(data)
    elif kind == "made":
        for one in made.pairs(data, seed):
            yield one.make()
    else:
        yield truth.seed(data)
        yield truth.bent(truth.seed(data), 1)
        yield truth.hands(data)
        yield truth.nuclei(data)
        yield truth.merfish(data)


def affine(pair: truth.Pair, kind: str, cache: Path) -> Tensor:
    """The affine map ``[3, 3]`` that regframe finds for a pair, kept in ``cache``; of made pairs from where they lie."""
    digest = hashlib.sha256(pair.fixed.data.numpy().tobytes() + pair.moving.data.numpy().tobytes()).hexdigest()[:16]
    file = cache / f"{digest}.npy"
    if not file.exists():
        init = "identity" if kind == "made" else "auto"
        cache.mkdir(parents=True, exist_ok=True)
        np.save(file, rf.register(pair.fixed, pair.moving, transform="affine", init=init).affine.matrix.numpy())
    return torch.from_numpy(np.load(file))


def bent(pair: truth.Pair, start: Tensor, config: rf.Config) -> rf.Result:
    """The pair registered from an affine map ``[3, 3]``."""
    return rf.register(pair.fixed, pair.moving, init=start_of(pair, start), config=config)


def start_of(pair: truth.Pair, matrix: Tensor) -> rf.Affine:
    """An affine map ``[3, 3]`` with the units of a pair."""
    return rf.Affine(matrix, pair.moving.grid.unit, pair.fixed.grid.unit)


def through(matrix: Tensor, q: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fixed positions ``q`` ``[N, 2]`` in the moving image under an affine map ``[3, 3]`` from there to the fixed one."""
    back = np.linalg.inv(matrix.numpy())
    out: NDArray[np.float64] = q @ back[:2, :2].T + back[:2, 2]
    return out


def config_of(settings: list[str]) -> rf.Config:
    """The settings of ``group.name=value``, values as in JSON."""
    said: dict[str, Any] = {}
    for setting in settings:
        path, _, text = setting.partition("=")
        *groups, name = path.split(".")
        group = said
        for one in groups:
            group = group.setdefault(one, {})
        try:
            group[name] = json.loads(text)
        except json.JSONDecodeError:
            group[name] = text
    return rf.Config.model_validate(said)


def noisy(pair: truth.Pair, share: float) -> rf.Image:
    """The moving image as float32 with white noise of ``share`` of its own standard deviation."""
    values = pair.moving.data.to(torch.float64)
    rng = np.random.default_rng(NOISE_SEED)
    noise = torch.from_numpy(rng.standard_normal(tuple(values.shape)))
    return pair.moving.replace(data=(values + share * values.std() * noise).to(torch.float32))


def probes(pair: truth.Pair) -> Tensor:
    """Positions ``[N, 2]`` on which two maps are compared, every 20th pixel of the fixed image and inside it."""
    grid = pair.fixed.grid
    coords = grid.coords()[10:-10:20, 10:-10:20]
    return coords.reshape(-1, 2)


def apart(pair: truth.Pair, one: NDArray[np.float64], other: NDArray[np.float64]) -> str:
    """How far apart two maps put the probes, in moving pixels."""
    far = np.linalg.norm(one - other, axis=1) / pair.moving.grid.pixel
    return f"{np.median(far):8.4f} {np.quantile(far, 0.95):8.4f}"


def on(isa: str, arguments: list[str]) -> list[NDArray[np.float64]]:
    """Where every pair's probes land in a process that runs one instruction set."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mapped.npz"
        command = [sys.executable, __file__, *arguments, "--write", str(file)]
        subprocess.run(command, check=True, env=os.environ | {"REGFRAME_ISA": isa}, stdout=subprocess.DEVNULL)
        with np.load(file) as kept:
            return [kept[key] for key in kept.files]


def beside(python: str, wanted: list[truth.Pair], starts: list[Tensor]) -> None:
    """Print other tools' bends of the pairs, each from its affine map ``[3, 3]`` in ``starts``: as the table of ours."""
    for setting in rivals.BENDS:
        print(f"{setting.tool}: {setting.text}", flush=True)
        rows = []
        with rivals.Worker(setting.tool, python, torch.get_num_threads()) as worker:
            worker.check()
            for pair, matrix in zip(wanted, starts, strict=True):
                fixed, moving = (side.grid.index_to_position().numpy() for side in (pair.fixed, pair.moving))
                index = (pair.q - fixed[:2, 2]) / fixed.diagonal()[:2]
                worker.load(pair.fixed.data.numpy(), pair.moving.data.numpy(), index)
                start = np.linalg.inv(matrix.numpy() @ moving) @ fixed  # [3, 3], from fixed to moving indices
                try:
                    seconds, mapped = worker.run({**setting.job, "start": start[:2].tolist()})
                except rivals.RivalError as error:
                    print(f"{pair.name:28s} {error}", flush=True)
                    continue
                errors = 100 * pair.errors(mapped * moving.diagonal()[:2] + moving[:2, 2]) / pair.diagonal
                rows.append([float(np.median(errors)), float(np.quantile(errors, 0.9))])
                print(f"{pair.name:28s} {'':13s} {rows[-1][0]:6.3f} {rows[-1][1]:6.3f} {seconds:6.1f}", flush=True)
        means = " ".join(f"{v:6.3f}" for v in np.mean(rows, axis=0))
        print(f"{f'mean of {len(rows)}':28s} {'':13s} {means}", flush=True)


def options() -> argparse.Namespace:
    """What was asked for on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", choices=("lungs", "made", "others"), default="made")
    parser.add_argument("--only", default="", help="pairs whose name holds this text")
    parser.add_argument("--seed", type=int, default=0, help="of the made pairs")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the fit")
    parser.add_argument("--noise", type=float, default=0.0, help="fit again with this share of noise")
    parser.add_argument("--isa", default="", help="instruction sets to fit again on, with commas between")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "regframe-bends")
    parser.add_argument("--rivals", default="", metavar="PYTHON", help="the Python that has the other tools")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Print the table."""
    asked = options()
    warnings.simplefilter("ignore")
    data, config = Path(os.environ["REGFRAME_DATA"]), config_of(asked.set)
    wanted = [pair for pair in pairs(data, asked.pairs, asked.seed) if asked.only in pair.name]
    sets = [name for name in asked.isa.split(",") if name]
    arguments = ["--pairs", asked.pairs, "--only", asked.only, "--seed", str(asked.seed), "--cache", str(asked.cache)]
    arguments += [part for setting in asked.set for part in ("--set", setting)]
    print(f"{'pair':28s} {'affine':>13s} {'bent':>13s} {'s':>6s}  verdict", flush=True)
    rows, mapped, starts = [], [], []
    for pair in wanted:
        start = affine(pair, asked.pairs, asked.cache)
        starts.append(start)
        began = time.perf_counter()
        result = bent(pair, start, config)
        seconds = time.perf_counter() - began
        by_affine = pair.errors(through(start, pair.q))
        errors = [100 * e / pair.diagonal for e in (by_affine, pair.judge(result))]
        row = [float(f) for e in errors for f in (np.median(e), np.quantile(e, 0.9))]
        rows.append(row)
        mapped.append(result.to_moving(probes(pair)).numpy())
        said = " ".join(f"{v:6.3f}" for v in row)
        line = f"{pair.name:28s} {said} {seconds:6.1f}  {result.verdict} {result.metrics['model']}"
        if asked.noise > 0:
            again = rf.register(pair.fixed, noisy(pair, 0.0), init=start_of(pair, start), config=config)
            moved = rf.register(pair.fixed, noisy(pair, asked.noise), init=start_of(pair, start), config=config)
            line += f"  noise {apart(pair, *(r.to_moving(probes(pair)).numpy() for r in (again, moved)))} px"
        print(line, flush=True)
    means = " ".join(f"{v:6.3f}" for v in np.mean(rows, axis=0))
    print(f"{'mean':28s} {means}", flush=True)
    if asked.rivals:
        beside(asked.rivals, wanted, starts)
    if asked.write:
        np.savez(asked.write, *mapped)
    for name, places in ((name, on(name, arguments)) for name in sets):
        for pair, here, there in zip(wanted, mapped, places, strict=True):
            print(f"{pair.name:28s} {name:8s} {apart(pair, here, there)} px", flush=True)


if __name__ == "__main__":
    main()
