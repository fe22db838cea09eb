"""An entry for ACROBAT: every pair registered with regframe's defaults, the submission written, scored where the truth is there.

    python -m benchmarks.acrobat FOLDER -o OUT [--truth PLACES.csv] [--workers 4] [--refine] …

FOLDER holds the challenge's table of points and, at any depth, its slides. Options that are not listed below go to
``regframe batch``. OUT gets ``submission/registered_landmarks.csv``, ``metrics.json``, ``cases.csv``, and ``runs/`` with a report
per pair. The same command again fits only what is not done.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from .. import entries
from . import Case, Score, aggregates, read_cases, read_truth, scores, table_of, write_submission


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0, 3 where a pair has no map, 2 for a folder or an option that cannot be used."""
    options, rest = parsed(argv)
    try:
        everything = read_cases(options.folder, options.out, options.slides)
        cases = [case for case in everything if options.only is None or case.anon_id in options.only]
        if not cases:
            raise ValueError("wanted pairs to register, got none; leave out --only, or name an anon_id of the table")
        pairs = [case.pair for case in cases]
        if not options.no_run:
            code = entries.run(pairs, options.out, rest)
            if code not in (0, 3):
                return code
        found = entries.fits([case.pair for case in everything], options.out)
        written = write_submission(table_of(options.folder), everything, found, options.out / "submission")
        judged = scores(cases, found, {} if options.truth is None else read_truth(options.truth))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    report(cases, found, judged, options.out)
    lost = entries.say_failures(pairs, found)
    print(f"{len(cases)} pairs, {lost} without a map, {len(judged)} cases with known places; wrote {written}")
    return 3 if lost else 0


def parsed(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """What was asked for, and the options of ``regframe batch``."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.acrobat",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, help="the challenge's folder, or its table of points")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--slides", type=Path, help="folder of the slides, where it is another")
    parser.add_argument("--truth", type=Path, help="table of where people put the points in the H&E slides")
    parser.add_argument("--only", nargs="+", metavar="ANON_ID", help="these cases alone")
    parser.add_argument("--no-run", action="store_true", help="write and score what OUT holds, fit nothing")
    return parser.parse_known_args(argv)


def report(cases: Sequence[Case], found: Mapping[str, entries.Fit], judged: Mapping[str, Score], out: Path) -> None:
    """Print a line per case with known places and the aggregates, and write both."""
    rows = []
    for case in cases:
        fit, one = found[case.pair.id], judged.get(case.anon_id)
        figures = ["", "", "", ""] if one is None else [one.p90, one.mean, one.before, one.n]
        rows.append([case.anon_id, case.pair.id, fit.state, f"{fit.seconds:.1f}", *figures])
    head = ["anon_id", "pair", "verdict", "seconds", "p90_um", "mean_um", "p90_before_um", "n"]
    entries.write_table(out / "cases.csv", head, rows)
    for name, one in judged.items():
        states = ", ".join(found[case.pair.id].state for case in cases if case.anon_id == name)
        print(
            f"{name}: 90th percentile {one.p90:.2f} µm (before {one.before:.2f}), "
            f"mean {one.mean:.2f} µm, {one.n} points, {states}"
        )
    figures = aggregates(judged)
    entries.write_json(out / "metrics.json", figures)
    if figures:
        print(f"median of the 90th percentiles {figures['medianp90s']:.2f} µm, mean {figures['meanp90s']:.2f} µm")


if __name__ == "__main__":
    sys.exit(main())
