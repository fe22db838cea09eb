"""``python tests/fuzz --first 0 --count 3000``: damaged files by seed, and a table of what regframe did over them."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

from fuzz_run import BAD, Bench, Outcome, in_children, table  # noqa: E402 - they lie beside this file
from fuzz_seeds import SEEDS  # noqa: E402


def main() -> int:
    """Run, print failures as they come, then the table; 1 where there was one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--count", type=int, default=500, help="damaged files")
    parser.add_argument("--kinds", help="kinds of files, with commas; all where not stated")
    parser.add_argument("--whole", action="store_true", help="register what is read, instead of a dry run")
    parser.add_argument("--log", type=Path, help="file of lines of JSON, to which each outcome is added as it comes")
    parser.add_argument("--all", action="store_true", help="print every outcome")
    stated = parser.parse_args()
    kinds = stated.kinds.split(",") if stated.kinds else list(SEEDS)
    cases = [(kinds[i % len(kinds)], stated.first + i) for i in range(stated.count)]
    outcomes: list[Outcome] = []

    def tell(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if stated.log is not None:
            with stated.log.open("a") as file:
                file.write(json.dumps(vars(outcome)) + "\n")
        if outcome.word in BAD or stated.all:
            print(f"{outcome.word}: {outcome.kind} {outcome.seed} ({outcome.what}): {outcome.said[-700:]}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), kinds, stated.whole)
        for line in bench.unsound():
            print(f"sound, and not read: {line}", flush=True)
        in_children(bench, cases, tell)
    print(table(outcomes))
    return int(any(o.word in BAD for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
