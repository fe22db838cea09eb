"""An entry for Learn2Reg: every pair registered with regframe's defaults, its field written, scored where the truth is there.

    python -m benchmarks.learn2reg FOLDER -o OUT [--config NAME_VAL_evaluation_config.json] [--workers 4] …

FOLDER is a task of the challenge, with its ``NAME_dataset.json``. Options that are not listed below go to ``regframe batch``. OUT
gets ``submission/`` with a displacement field per pair and ``submission.zip``, ``metrics.json`` in the evaluator's form,
``cases.csv``, and ``runs/`` with a report per pair. The same command again fits only what is not done.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .. import entries
from ..entries import Fit
from . import PAIRS, Case, Task, aggregates, read_task, scored
from .fields import displacements, numbers_of, write_field


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0, 3 where a pair has no map, 2 for a folder or an option that cannot be used."""
    options, rest = parsed(argv)
    try:
        task = read_task(options.folder, options.split, options.config)
        cases = [case for number, case in enumerate(task.cases) if options.only is None or number in options.only]
        if not cases:
            raise ValueError("wanted pairs to register, got none; leave out --only")
        pairs = [case.pair for case in cases]
        if not options.no_run:
            code = entries.run(pairs, options.out, rest)
            if code not in (0, 3):
                return code
        found = entries.fits([case.pair for case in task.cases], options.out)
        archive, scores, before = submitted(task, cases, found, options.out)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    report(task, cases, found, scores, before, options.out)
    lost = entries.say_failures(pairs, found)
    print(f"{len(cases)} pairs, {lost} without a map; wrote {archive}")
    return 3 if lost else 0


def parsed(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """What was asked for, and the options of ``regframe batch``."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.learn2reg",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, help="a task's folder, or its NAME_dataset.json")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--split", choices=tuple(PAIRS), default="val", help="which pairs of NAME_dataset.json")
    parser.add_argument("--config", type=Path, help="the challenge's evaluation config: its pairs, its metrics")
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="these pairs alone, counted from 0")
    parser.add_argument("--no-run", action="store_true", help="write and score what OUT holds, fit nothing")
    return parser.parse_known_args(argv)


Figures = dict[str, dict[str, float]]


def submitted(
    task: Task, cases: Sequence[Case], found: Mapping[str, Fit], out: Path
) -> tuple[Path, Figures, dict[str, dict[str, float]]]:
    """Write the fields of all pairs, zeros for one without a map, as the challenge asks; returns the zip, and the figures.

    Args:
        task: what is entered.
        cases: those to be scored.
        found: what came of the pairs.
        out: output folder.
    """
    folder = out / "submission"
    shutil.rmtree(folder, ignore_errors=True)
    scores: Figures = {}
    before: Figures = {}
    for case in task.cases:
        fit = found[case.pair.id]
        if fit.folder is not None:
            field = displacements(fit.folder, case.pair.fixed, case.pair.moving)
        elif case.pair.fixed.is_file():
            field = np.zeros((*numbers_of(case.pair.fixed).shape[:3], 3), dtype=np.float32)
        else:
            continue
        if task.shape is not None and field.shape != task.shape:
            raise ValueError(
                f"wanted fields of {task.shape}, as the config says, got {field.shape} of {case.fixed}; "
                "name the config of this task"
            )
        first, *others = case.fields
        write_field(folder / first, field)
        for other in others:
            os.link(folder / first, folder / other)
        if case in cases:
            scores[case.name] = scored(task, case, field)
            before[case.name] = scored(task, case, np.zeros_like(field))
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.make_archive(str(folder), "zip", folder)), scores, before


def report(
    task: Task, cases: Sequence[Case], found: Mapping[str, Fit], scores: Figures, before: Figures, out: Path
) -> None:
    """Print a line per pair and the aggregates, and write both."""
    names = [method["name"] for method in task.methods]
    rows = []
    for case in cases:
        fit, one, zero = found[case.pair.id], scores.get(case.name, {}), before.get(case.name, {})
        rows.append([case.name, fit.state, f"{fit.seconds:.1f}", *(one.get(name, "") for name in names)])
        figures = [f"{name} {one[name]:.4f} (before {zero[name]:.4f})" for name in names if name in one]
        print(f"{case.name}: {', '.join([*figures, f'{fit.seconds:.0f} s', fit.state])}")
    entries.write_table(out / "cases.csv", ["case", "verdict", "seconds", *names], rows)
    total = aggregates(task, scores)
    entries.write_json(out / "metrics.json", {"name": task.name, "aggregates": total, "cases": scores})
    for name, figures_of in total.items():
        print(f"{name}: {figures_of['mean']:.5f} ± {figures_of['std']:.5f}, 30 %: {figures_of['30']:.5f}")
    left = [name for name in names if name not in total]
    if left:
        print(f"left out, for want of truth or of the package surface-distance: {', '.join(left)}")


if __name__ == "__main__":
    sys.exit(main())
