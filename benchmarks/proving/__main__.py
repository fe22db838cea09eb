"""Many made pairs, aligned and judged: see `benchmarks.proving`."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: many processes of one thread

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import regframe as rf

from . import draw, judge, kinds, sources
from .judge import Judged
from .work import runs

LINES = ".jsonl"
"""How the name of a file ends that gets one pair a line."""


def population(names: Sequence[str], number: int, seed: int) -> list[tuple[str, int]]:
    """``number`` pairs: the kinds in turn, seeds from ``seed`` on."""
    return [(names[i % len(names)], seed + i // len(names)) for i in range(number)]


def parsed(argv: Sequence[str] | None, names: Sequence[str]) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser("python -m benchmarks.proving", description=__doc__)
    parser.add_argument("--n", type=int, default=len(names), help="number of pairs (default: one of each kind)")
    parser.add_argument(
        "--seed", type=int, default=0, help="first seed; below 10000 to set constants on, above to check"
    )
    parser.add_argument("--kinds", nargs="+", choices=list(names), default=list(names), metavar="KIND",
                        help=f"of {', '.join(names)}")  # fmt: skip
    parser.add_argument("--transform", help="as regframe.register has it (default: its own)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes of one thread each")
    parser.add_argument(
        "--out",
        type=Path,
        help="write every pair's figures and the failing seeds to this JSON file; one of JSON lines "
        "(.jsonl) gets every pair as soon as it is judged, and a call again goes on where one was ended",
    )
    parser.add_argument(
        "--only", action="append", metavar="KIND:SEED", help="this pair alone; may be given several times"
    )
    parser.add_argument("--draw", type=Path, nargs="?", const=Path(), metavar="FOLDER",
                        help="with --only: write a PNG of each pair into this folder")  # fmt: skip
    options = parser.parse_args(argv)
    if options.n < 1 or options.seed < 0 or options.workers < 1:
        parser.error(
            f"wanted --n and --workers of at least 1 and --seed of at least 0, got {options.n}, {options.workers}, {options.seed}"
        )
    if options.draw is not None and not options.only:
        parser.error("wanted --only KIND:SEED with --draw, got none; name the pairs to draw")
    for text in options.only or []:
        kind, _, seed = text.rpartition(":")
        if kind not in names or not seed.isdigit():
            parser.error(f"wanted KIND:SEED with a kind of {', '.join(names)}, got {text!r}")
    return options


def gone_on(tasks: list[tuple[str, int, str | None]], path: Path | None) -> list[tuple[str, int, str | None]]:
    """The tasks that a file of JSON lines does not hold yet; all where there is no such file."""
    if path is None or path.suffix != LINES or not path.exists():
        return tasks
    held = [json.loads(line) for line in path.read_text().splitlines()]
    known = {(pair["kind"], pair["seed"], pair["transform"]) for pair in held}
    return [task for task in tasks if task not in known]


def add(run: Judged, options: argparse.Namespace) -> None:
    """Write a pair as one more line of the file ``--out``."""
    with options.out.open("a") as file:
        file.write(json.dumps(run.record() | {"transform": options.transform}, default=str) + "\n")


def only(options: argparse.Namespace) -> list[Judged]:
    """The pairs that were named, one after another, each in words and where wanted as a picture."""
    out = []
    torch.set_num_threads(1)
    for text in options.only:
        kind, _, seed = text.rpartition(":")
        made = kinds.made(kind, int(seed), sources.data_folder())
        judged, result = judge.judge(made, options.transform)
        out.append(judged)
        print(f"{judged.name}: {'; '.join(made.story)}")
        print(f"  of {', '.join(made.sources)}; verdict {judged.verdict}: {'; '.join(judged.reasons) or 'no remarks'}")
        if options.draw is not None:
            options.draw.mkdir(parents=True, exist_ok=True)
            path = options.draw / f"proving-{kind}-{seed}.png"
            draw.draw(made, judged, result, path)
            print(f"  {path}")
    return out


def command(options: argparse.Namespace, run: Judged) -> str:
    """What repeats a pair and draws it."""
    model = f" --transform {shlex.quote(options.transform)}" if options.transform else ""
    return f"python -m benchmarks.proving --only {run.name}{model} --draw"


def main(argv: Sequence[str] | None = None) -> list[Judged]:
    """Measure what was asked for, print it, and write it down where wanted."""
    data = sources.data_folder()
    options = parsed(argv, kinds.kinds(data))
    if data is None:
        print(
            "No data folder (REGFRAME_DATA, else ../shared/data): only scikit-image's tissue, "
            f"{len(kinds.WITHOUT_DATA)} of {len(kinds.KINDS)} kinds. Pairs of a seed are others than with it.", file=sys.stderr,
        )  # fmt: skip
    began = time.perf_counter()
    lines = options.out is not None and options.out.suffix == LINES
    if options.only:
        done = only(options)
        for run in done if lines else ():
            add(run, options)
    else:
        tasks = [(kind, seed, options.transform) for kind, seed in population(options.kinds, options.n, options.seed)]
        tasks, done = gone_on(tasks, options.out), []
        for run in runs(tasks, max(1, min(options.workers, len(tasks)))):
            done.append(run)
            if lines:
                add(run, options)
            if sys.stderr.isatty():
                print(f"\r{len(done)} of {len(tasks)}  {run.name}        ", end="", file=sys.stderr, flush=True)
    print(f"\n{judge.tables(done)}\n")
    failing = [run for run in done if run.failing]
    for run in failing:
        error = "" if run.right is None else f"{run.median:.3g} px of {run.bar:.2g}, "
        print(
            f"{run.name}: {error}{run.verdict}: {run.reasons[0] if run.reasons else 'no remarks'}\n    {command(options, run)}"
        )
    print(f"\n{len(done)} pairs in {time.perf_counter() - began:.0f} s, {options.workers} processes")
    if options.out and not lines:
        page = {
            "command": shlex.join([Path(sys.argv[0]).name, *(sys.argv[1:] if argv is None else argv)]),
            "regframe": rf.__version__, "data": data is not None, "transform": options.transform,
            "failing": [run.name for run in failing], "pairs": [run.record() for run in done],
        }  # fmt: skip
        options.out.write_text(json.dumps(page, indent=1, default=str) + "\n")
    return done


if __name__ == "__main__":
    main()
