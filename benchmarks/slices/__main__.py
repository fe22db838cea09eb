"""An entry for benchmarks of spatial transcriptomics: pairs of slices registered with regframe's defaults, matched, scored.

    python -m benchmarks.slices FOLDER -o OUT [--components 5] [--pi] [--workers 4] …

FOLDER has the layout of SLAT's benchmark (``adata1.h5ad`` beside ``adata2.h5ad``, at any depth), or is a folder of slices, each
aligned to the one before it. Options that are not listed below go to ``regframe batch``. For each pair OUT gets
``submission/PLACE/regframe/`` with ``metrics.yaml`` and ``matching.csv``; ``cases.csv``, ``metrics.json``; and ``runs/`` with a
report and the query with ``obsm["spatial_aligned"]``. The same command again fits only what is not done.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .. import entries
from ..entries import Fit
from . import (
    ALIGNED,
    CELL_TYPES,
    METHOD,
    REGIONS,
    Case,
    match,
    read_cases,
    read_slice,
    scored,
    shared_labels,
    write_matching,
    write_metrics,
    write_pi,
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0, 3 where a pair has no map, 2 for a folder or an option that cannot be used."""
    options, rest = parsed(argv)
    try:
        cases = read_cases(options.folder, options.components)
        cases = [case for number, case in enumerate(cases) if options.only is None or number in options.only]
        if not cases:
            raise ValueError("wanted pairs to register, got none; leave out --only")
        pairs = [case.pair for case in cases]
        if not options.no_run:
            code = entries.run(pairs, options.out, rest)
            if code not in (0, 3):
                return code
        found = entries.fits(pairs, options.out)
        scores = {case.name: submitted(case, found[case.pair.id], options) for case in cases}
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    report(cases, found, scores, options.out)
    lost = entries.say_failures(pairs, found)
    print(f"{len(cases)} pairs, {lost} without a map; wrote {options.out / 'submission'}")
    return 3 if lost else 0


def parsed(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """What was asked for, and the options of ``regframe batch``."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.slices",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, help="folder of pairs, or of slices")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--components", type=int, default=0, metavar="N", help="align by N components of the expression, not by density"
    )
    parser.add_argument(
        "--cell-types", nargs="+", default=CELL_TYPES, metavar="COLUMN", help="columns of obs to look for"
    )
    parser.add_argument(
        "--regions", nargs="+", default=REGIONS, metavar="COLUMN", help="likewise, of regions or layers"
    )
    parser.add_argument("--pi", action="store_true", help="write pi.gz too, the match as PASTE's matrix (large)")
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="these pairs alone, counted from 0")
    parser.add_argument("--no-run", action="store_true", help="write and score what OUT holds, fit nothing")
    return parser.parse_known_args(argv)


def submitted(case: Case, fit: Fit, options: argparse.Namespace) -> dict[str, float]:
    """Write what the benchmarks score of one pair; returns the figures, those of doing nothing under ``before_…``.

    A pair without a map has no match, and no figures of one.
    """
    columns = {"types": options.cell_types, "regions": options.regions}
    reference, query = (read_slice(path, columns) for path in (case.pair.fixed, case.pair.moving))
    types, regions = (shared_labels(reference, query, kind) for kind in columns)
    unmoved = scored(match(reference.positions, query.positions), types, regions)
    before = {f"before_{name}": value for name, value in unmoved.items()}
    if fit.folder is None:
        return before
    carried = read_slice(fit.folder / "applied" / case.pair.moving.name, {}, ALIGNED).positions
    if len(carried) != len(query.positions) or not np.isfinite(carried).all():
        raise ValueError(f"wanted {len(query.positions)} aligned positions in {fit.folder}, got others; run it again")
    matching = match(reference.positions, carried)
    figures = scored(matching, types, regions)
    place = options.out / "submission" / (case.place if case.place.parts else case.pair.id) / METHOD
    write_matching(place / "matching.csv", matching)
    write_metrics(place / "metrics.yaml", figures | {"run_time": fit.seconds})
    if options.pi:
        write_pi(place / "pi.gz", matching, len(reference.positions))
    return figures | before


def report(cases: Sequence[Case], found: Mapping[str, Fit], scores: Mapping[str, dict[str, float]], out: Path) -> None:
    """Print a line per pair and the means over pairs, and write both."""
    names = list(dict.fromkeys(name for one in scores.values() for name in one))
    rows = []
    for case in cases:
        fit, one = found[case.pair.id], scores[case.name]
        rows.append([case.name, fit.state, f"{fit.seconds:.1f}", *(one.get(name, "") for name in names)])
        print(f"{case.name}: {', '.join([*lines(one), f'{fit.seconds:.0f} s', fit.state])}")
    entries.write_table(out / "cases.csv", ["pair", "verdict", "seconds", *names], rows)
    means = {name: float(np.mean([one[name] for one in scores.values() if name in one])) for name in names}
    entries.write_json(out / "metrics.json", means)
    if len(cases) > 1 and means:
        print(f"means over pairs: {', '.join(lines(means))}")


def lines(figures: Mapping[str, float]) -> list[str]:
    """Each figure with that of doing nothing."""
    return [
        f"{name} {value:.4f} (before {figures[f'before_{name}']:.4f})"
        for name, value in figures.items()
        if not name.startswith("before_")
    ]


if __name__ == "__main__":
    sys.exit(main())
