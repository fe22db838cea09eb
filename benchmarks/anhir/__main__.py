"""An entry for ANHIR: every pair registered with regframe's defaults, the submission written, scored where the truth is there.

    python -m benchmarks.anhir FOLDER -o OUT [--workers 4] [--set transform=affine] …

FOLDER is the challenge's ``dataset_ANHIR`` or its ``images``, or a cover table. Options that are not listed below go to
``regframe batch``. OUT gets ``submission/`` and ``submission.zip``, ``metrics.json`` with the challenge's aggregates,
``cases.csv``, and ``runs/`` with a report per pair. The same command again fits only what is not done.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from .. import entries
from . import Case, Score, aggregates, read_cases, scored, write_submission


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0, 3 where a pair has no map, 2 for a folder or an option that cannot be used."""
    options, rest = parsed(argv)
    try:
        everything = read_cases(options.folder, options.landmarks)
        cases = [case for case in everything if wanted(case, options)]
        if not cases:
            raise ValueError("wanted pairs to register, got none; leave out --status or --only")
        pairs = [case.pair for case in cases]
        if not options.no_run:
            code = entries.run(pairs, options.out, rest)
            if code not in (0, 3):
                return code
        found = entries.fits([case.pair for case in everything], options.out)
        archive = write_submission(everything, found, options.out / "submission", options.computer)
        judged = {case.pair.id: scored(case, found[case.pair.id]) for case in cases}
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    scores = {name: one for name, one in judged.items() if one is not None}
    report(cases, found, scores, options.out)
    lost = entries.say_failures(pairs, found)
    print(f"{len(cases)} pairs, {lost} without a map, {len(scores)} with landmarks of the target; wrote {archive}")
    return 3 if lost else 0


def parsed(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """What was asked for, and the options of ``regframe batch``."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.anhir",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, help="the challenge's folder, or its cover table")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--landmarks", type=Path, action="append", default=[], help="a further folder of landmarks")
    parser.add_argument("--status", choices=("training", "evaluation"), help="pairs of this part alone")
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="pairs of these rows of the cover alone")
    parser.add_argument("--computer", type=Path, help="computer-performances.json, to be taken into the submission")
    parser.add_argument("--no-run", action="store_true", help="write and score what OUT holds, fit nothing")
    return parser.parse_known_args(argv)


def wanted(case: Case, options: argparse.Namespace) -> bool:
    """Whether a pair was asked for."""
    return (options.only is None or case.number in options.only) and options.status in (None, case.row.get("status"))


def report(cases: Sequence[Case], found: dict[str, entries.Fit], scores: dict[str, Score], out: Path) -> None:
    """Print a line per pair and the aggregates, and write both."""
    head = ["pair", "verdict", "seconds", *Score.__dataclass_fields__]
    rows = []
    for case in cases:
        fit, one = found[case.pair.id], scores.get(case.pair.id)
        figures = list(asdict(one).values()) if one is not None else [""] * len(Score.__dataclass_fields__)
        rows.append([case.pair.id, fit.state, f"{fit.seconds:.1f}", *figures])
        if one is not None:
            print(
                f"{case.pair.id}: median rTRE {one.median:.5f} (before {one.before:.5f}), largest {one.largest:.5f}, "
                f"robustness {one.robustness:.3f}, {fit.seconds:.0f} s, {fit.state}"
            )
    entries.write_table(out / "cases.csv", head, rows)
    figures = aggregates(scores, cases, found)
    entries.write_json(out / "metrics.json", figures)
    if scores:
        print(
            f"AMrTRE {figures['Average-Median-rTRE']:.5f}, MMrTRE {figures['Median-Median-rTRE']:.5f}, "
            f"AMxrTRE {figures['Average-Max-rTRE']:.5f}, average robustness {figures['Average-Robustness']:.4f}"
        )


if __name__ == "__main__":
    sys.exit(main())
