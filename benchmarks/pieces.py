"""Slides in pieces whose maps are known (`slides_in_pieces`): how many pieces come right, which are named, seconds.

    python -m benchmarks.pieces [--case array any torn sections] [--seeds 0 1 2] [--rows 6 --columns 8]

``array`` is a microarray whose cores are turned by up to 15 degrees, ``any`` one whose cores lie at any turn; both lack 4 cores,
and 2 are exchanged. A core is right if it has its own partner and its median position is within `RIGHT` pixels. Beside a torn
section stands what one smooth map of the whole leaves (``--one-map``).
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import regframe as rf

from . import slides_in_pieces as made

RIGHT = 2.0
"""Median distance, in pixels, of the positions on a piece from where they belong, up to which it is right."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line per slide."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--case", nargs="+", default=["array", "any", "torn", "sections"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=6)
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--one-map", action="store_true", help="register the torn section as a whole too")
    options = parser.parse_args(arguments)
    size = {"rows": options.rows, "columns": options.columns}
    cases: dict[str, Callable[[int], made.Slides]] = {
        "array": lambda seed: made.microarray(seed, made.Made(**size)),
        "any": lambda seed: made.microarray(seed, made.Made(turn=180.0, **size)),
        "torn": made.torn,
        "sections": made.sections,
    }
    warnings.simplefilter("ignore", UserWarning)
    for case in options.case:
        for seed in options.seeds:
            slides = cases[case](seed)
            print(f"{case} {seed}: {line(slides)}", flush=True)
            if case == "torn" and options.one_map:
                whole = rf.register(slides.fixed, slides.moving)
                print(f"{case} {seed}: one map of the whole: {errors(slides, whole)}", flush=True)


def line(slides: made.Slides, **options: Any) -> str:
    """What came of registering two slides in pieces, in words."""
    began, worked = time.perf_counter(), time.process_time()
    result = rf.register_pieces(slides.fixed, slides.moving, **options)
    took, worked = time.perf_counter() - began, time.process_time() - worked
    found = judged(slides, result)
    moved = f", {found['moved']} of {found['n_moved']} exchanged ones found and named" if found["n_moved"] else ""
    missing = f", missing named: {found['missing']}" if slides.missing else ""
    return (
        f"{found['right']} of {found['n']} at their place right{moved}{missing}; "
        f"{errors(slides, result)}; {result.verdict}, {found['confirmed']} confirmed; {took:.1f} s, {worked:.1f} s of processor"
    )


def judged(slides: made.Slides, result: rf.Result) -> dict[str, Any]:
    """How many pieces are right, and whether those that are missing or exchanged are named as such."""
    there = [piece for piece in slides.pieces if piece.matrix is not None]
    right = {piece.name: float(np.median(piece.error(result))) <= RIGHT for piece in there}
    entries = result.metrics["pieces"]
    alone = {entry["id"] for entry in entries if entry["partner"] is None and entry["side"] == "fixed"}
    away = {entry["partner"] for entry in entries if entry["partner"] is not None and not entry["at_place"]}
    array = slides.pieces[0].name.startswith("R1C1")
    moved = {piece.name for piece in there if piece.moved} if array else set()
    return {
        "n": len(there) - len(moved),
        "right": sum(good for name, good in right.items() if name not in moved),
        "n_moved": len(moved),
        "moved": sum(right[name] and name in away for name in moved),
        "missing": alone == set(slides.missing) if array else len(alone) == len(slides.missing),
        "falsely": sorted(away - moved),
        "confirmed": sum(entry["verdict"] == "pass" for entry in entries),
    }


def errors(slides: made.Slides, result: rf.Result) -> str:
    """Median error of the pieces: in the middle and the worst."""
    off = [float(np.median(piece.error(result))) for piece in slides.pieces if piece.matrix is not None]
    each = ", ".join(f"{value:.2f}" for value in off) if len(off) < 5 else f"{np.median(off):.2f}, worst {max(off):.2f}"
    return f"median error of a piece {each} px"


if __name__ == "__main__":
    main()
