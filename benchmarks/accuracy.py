"""How right regframe is on real pairs, and whether its verdict knows::

    .venv/bin/python benchmarks/accuracy.py --rivals DIR/bin/python --markdown

Five sections and a summary, each printed as it is measured: pairs with ground truth, with the rivals beside them (``truth``);
any pose (``poses``); crops (``crops``); pairs that do not belong together (``unlike``); pairs of which no truth is known
(``through``). A row that raises says so and stops nothing. ``--quick``, or ``REGFRAME_BENCH_SMALL=1``, takes a few rows of each.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import blind
import make_table
import numpy as np
import rivals
import torch
import truth
from rivals_worker import grey
from scipy.ndimage import map_coordinates

import regframe as rf

BAR = 1.3
"""Times the untouched pair's error up to which a posed pair is right."""
NOTHING = 0.3
"""Pixels within which a pose of the seed pair is right all the same: its untouched error is next to nothing."""
CROPPED = 2.0
"""Median rTRE in percent below which a crop is right."""


@dataclass
class Run:
    """One registration: what it was, what it cost, what it said of itself and what is known of it."""

    section: str
    name: str
    verdict: str = "error"
    seconds: float = math.nan
    wrong: bool | None = None
    """Whether the alignment is wrong; None where nobody knows."""
    reasons: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass
class Bench:
    """What all sections share: where the data are, who else runs, and what was said and measured so far."""

    data: Path
    quick: bool = False
    peers: dict[str, rivals.Worker] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    rounds: int = 1
    lines: list[str] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)

    def say(self, *lines: str) -> None:
        """Print, and keep for the page."""
        self.lines += lines
        for line in lines:
            print(line, flush=True)

    def head(self, title: str, text: str, columns: Sequence[str]) -> None:
        """A heading, a paragraph and the head of a table."""
        self.say("", f"## {title}", "", text, "", _row(columns), "|---" * len(columns) + "|")

    def register(self, section: str, name: str, fixed: rf.Image, moving: rf.Image) -> tuple[Run, rf.Result | None]:
        """Align, and write down what is known of any run; what is raised becomes the verdict ``error`` and its reason."""
        run = Run(section, name)
        self.runs.append(run)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # what is doubtful is among the reasons
                result = rf.register(fixed, moving)
        except Exception as error:  # noqa: BLE001 - one row must not take the others down
            run.reasons = [f"{type(error).__name__}: {error}"]
            return run, None
        run.verdict, run.reasons, run.seconds = result.verdict, list(result.reasons), result.metrics["seconds"]
        run.figures = {key: result.metrics[key] for key in ("model", "confidence", "explained_variance")}
        return run, result


def _row(cells: Iterable[object]) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return (f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}") if isinstance(value, float) else str(value)


def _mapped(result: rf.Result, pair: truth.Pair) -> truth.Array:
    out: truth.Array = result.to_moving(torch.as_tensor(pair.q)).numpy()
    return out


# 1 — pairs with ground truth

RADIUS = 2.146
"""Standard deviations per axis that 90 % of a plane's normal distribution lie within."""
BY_HAND = 2.5 / 1.177
"""The same of a landmark that people placed on the lung sections, in pixels: their median distance is 2.5."""


def coverage(result: rf.Result, pair: truth.Pair, mapped: truth.Array) -> float | None:
    """Percent of the landmarks that lie within the 90 % radius of where regframe puts them; None without landmarks."""
    if isinstance(pair, truth.Labelled) or result.position_sd is None or result.weight_grid is None:
        return None
    grid = result.weight_grid
    index = (pair.q - np.array(grid.origin)) / np.array(grid.spacing)
    sd = map_coordinates(result.position_sd.numpy(), index.T, order=1, mode="nearest")
    sd = sd / float(torch.linalg.det(result.affine.matrix[:2, :2]).abs()) ** 0.5
    radius = RADIUS * np.hypot(sd, BY_HAND if pair.relative else 0.0)
    return 100 * float((pair.errors(mapped) <= radius).mean())


def pairs(data: Path, quick: bool) -> Iterable[Callable[[], list[truth.Pair]]]:
    """The pairs with ground truth, a set at a time, read when called."""

    def both(read: Callable[[], list[truth.Pair]]) -> Callable[[], list[truth.Pair]]:
        return lambda: [one for pair in read() for one in (pair, pair.exchanged())]

    def recoloured() -> list[truth.Pair]:
        return list(truth.recoloured(truth.seed(data)))

    yield lambda: [truth.seed(data)]
    if quick:
        yield lambda: truth.lungs(data)[-1:]
        yield lambda: recoloured()[:2]
        return
    yield both(lambda: truth.lungs(data))
    yield both(lambda: [truth.merfish(data)])
    yield lambda: [truth.bent(truth.seed(data), number) for number in (1, 2, 3)]
    yield recoloured
    yield both(lambda: [truth.hands(data)])
    yield both(lambda: truth.shapes(data))
    yield lambda: [truth.nuclei(data)]
    yield lambda: list(truth.layers(data))


def with_truth(bench: Bench) -> None:
    """Error before, at the best affine map, at regframe's affine map, in the end, and that of every peer."""
    tools = [setting.tool for setting in rivals.UNTUNED]
    own = ["before", "oracle affine", "our affine", "regframe", "s", "verdict", "model", "within 90 %"]
    settings = "; ".join(f"{s.tool}: {s.text}" for s in rivals.UNTUNED)
    bench.head(
        "Pairs with ground truth",
        "Fixed image first. No landmark, no setting, each tool from its own start; the peers get the luminance, in pixels. "
        "*Within 90 %*: percent of the landmarks within the 90 % radius of `position_sd`; 80 to 97 are wanted of lungs and "
        "known maps that bend. "
        f"*Oracle affine*: the best affine map through the truth itself. {settings} (medians of {bench.rounds} rounds). "
        f"{' '.join(bench.absent)}".strip(),
        ["pair", "figure", *own, *(c for tool in tools for c in (tool, "s"))],
    )
    for read in pairs(bench.data, bench.quick):
        for pair in read():
            truth_row(bench, pair)


def truth_row(bench: Bench, pair: truth.Pair) -> Run:
    """One pair with ground truth, aligned by regframe and by every peer."""
    run, result = bench.register("truth", pair.name, pair.fixed, pair.moving)
    scores, covered = {"before": pair.score(pair.q), "oracle": pair.best_affine()}, None
    if result is not None:
        mapped = _mapped(result, pair)
        affine = result.affine.inverse().points(torch.as_tensor(pair.q)).numpy()
        scores |= {"affine": pair.score(affine), "regframe": pair.score(mapped)}
        run.wrong = pair.wrong(mapped)
        covered = coverage(result, pair, mapped)
    cells: list[object] = [scores.get(key) for key in ("before", "oracle", "affine", "regframe")]
    cells += [run.seconds, _said(run, result), run.figures.get("model"), covered]
    for setting in rivals.UNTUNED:
        error, seconds = peer(bench, setting, pair)
        scores[setting.tool] = error if isinstance(error, float) else None
        run.figures[f"{setting.tool}_seconds"] = seconds
        cells += [error, seconds]
    run.figures |= {"figure": pair.figure, "scores": scores}
    bench.say(_row([pair.name, pair.figure, *cells]))
    return run


def peer(bench: Bench, setting: rivals.Setting, pair: truth.Pair) -> tuple[float | str, float | None]:
    """Score and seconds of a peer, or why there are none."""
    worker = bench.peers.get(setting.tool)
    if worker is None:
        return "not run", None
    bare = truth.pixels(pair)
    try:
        worker.load(grey(bare.fixed.data.numpy())[None], grey(bare.moving.data.numpy())[None], bare.q)
        taken = [worker.run(setting.job) for _ in range(bench.rounds)]
    except rivals.RivalError as error:
        return ("timed out" if "hung" in str(error) else "crashed"), None
    score = float(np.median(np.nan_to_num([bare.score(mapped) for _, mapped in taken], nan=math.inf)))
    return (score if math.isfinite(score) else "diverged"), float(np.median([seconds for seconds, _ in taken]))


def _said(run: Run, result: rf.Result | None) -> str:
    """The verdict, or what was raised."""
    return run.verdict if result is not None else run.reasons[0].replace("|", "/")[:120]


# 2 and 3 — the same pairs, posed and cropped anew


@dataclass(frozen=True)
class Untouched:
    """A pair in pixels as it came, and how far regframe was off on it: the figure of its tables, and its `rtre`."""

    pair: truth.Pair
    score: float
    rtre: float

    @property
    def seed(self) -> bool:
        """Whether the truth is exact, so that a multiple of the untouched error says nothing."""
        return self.pair.name == "seed"


def untouched(bench: Bench, section: str, all_pairs: Sequence[truth.Pair]) -> list[Untouched]:
    """The pairs in pixels, aligned as they are."""
    out = []
    for pair in map(truth.pixels, all_pairs):
        run, result = bench.register(section, f"{pair.name}, untouched", pair.fixed, pair.moving)
        errors = np.full(len(pair.q), math.inf) if result is None else pair.judge(result)
        run.wrong = None if result is None else pair.wrong(_mapped(result, pair))
        out.append(Untouched(pair, pair.summary(errors), pair.rtre(errors)))
    return out


def poses(bench: Bench) -> None:
    """Any turn, either mirror, scale 0.25–4, any shift: 40 draws over six pairs, the scale unknown."""
    columns = ["draw", "pair", "pose", "error", "untouched", "ratio", "right", "confidence", "verdict", "s"]
    bench.head(
        "Any pose",
        f"The moving image posed anew, sizes unknown. Right: at most {BAR} times the untouched pair's error; "
        f"(yes): the seed pair, whose untouched error is next to nothing, within {NOTHING} px. said: the mirror image was taken, "
        "as the files lie, and it is said that both fit as well. The draw is the random seed.",
        columns,
    )
    data = bench.data
    known = [truth.seed(data)] if bench.quick else [*truth.lungs(data), truth.merfish(data), truth.seed(data)]
    all_pairs = untouched(bench, "poses", known)
    strict = allowed = trusted = mirrors = 0
    number = 2 if bench.quick else 40
    for seed in range(number):
        base = all_pairs[seed % len(all_pairs)]
        draw = truth.Draw.random(np.random.default_rng(seed))
        pair = truth.posed(base.pair, draw)
        run, result = bench.register("poses", f"draw {seed}: {pair.name}", pair.fixed, pair.moving)
        score, word = math.nan, "no"
        if result is not None:
            score, run.wrong = pair.summary(pair.judge(result)), pair.wrong(_mapped(result, pair), base.rtre)
            if score <= BAR * base.score:
                word, strict = "yes", strict + 1
            elif base.seed and score <= NOTHING:
                word = "(yes)"
            elif draw.mirror and result.metrics.get("mirror_fits"):
                word, mirrors = "said", mirrors + 1
        allowed += word in ("yes", "(yes)")
        trusted += word in ("no", "said") and run.verdict == "pass"
        run.figures |= {"score": score, "untouched": base.score, "right": word}
        shown = [score, f"{_cell(base.score)} ({base.pair.figure})", score / base.score if base.score else None, word]
        rest = [run.figures.get("confidence"), _said(run, result), run.seconds]
        bench.say(_row([seed, base.pair.name, draw, *shown, *rest]))
    bench.say(
        "",
        f"**{allowed} of {number} right** ({strict} without the seed's allowance); of the {number - allowed} others "
        f"{mirrors} lie as the files do and say so, {trusted} called pass (must be 0).",
    )


def crops(bench: Bench) -> None:
    """The moving image cut to 40 % of its area, anywhere: 20 draws over the lung pairs and the seed."""
    columns = ["draw", "crop", "median rTRE, %", "untouched", "right", "confidence", "verdict", "s"]
    bench.head("Crops", f"Two fifths of the moving image. Right: median rTRE below {CROPPED} %.", columns)
    known = [truth.seed(bench.data)] if bench.quick else [*truth.lungs(bench.data), truth.seed(bench.data)]
    all_pairs = untouched(bench, "crops", known)
    right, number = 0, 1 if bench.quick else 20
    for seed in range(number):
        base = all_pairs[seed % len(all_pairs)]
        pair = truth.cropped(base.pair, np.random.default_rng(seed))
        run, result = bench.register("crops", f"draw {seed}: {pair.name}", pair.fixed, pair.moving)
        rtre = math.nan
        if result is not None:
            rtre, run.wrong = pair.rtre(pair.judge(result)), pair.wrong(_mapped(result, pair), base.rtre)
        good = rtre < CROPPED
        right += good
        run.figures |= {"rtre": rtre, "untouched": base.rtre}
        cells = [rtre, base.rtre, "yes" if good else "no", run.figures.get("confidence"), _said(run, result)]
        bench.say(_row([seed, pair.name, *cells, run.seconds]))
    bench.say("", f"**{right} of {number} right.**")


# 4 — pairs that do not belong together


def unlike(bench: Bench) -> None:
    """Whatever is found is wrong, so a ``pass`` is an error."""
    columns = ["pair", "explained variance", "confidence", "verdict", "s", "first reason"]
    bench.head("Pairs that do not belong together", "A `pass` is an error.", columns)
    passed = number = 0
    for read in list(blind.unlike(bench.data))[: 2 if bench.quick else None]:
        two = read()
        run, result = bench.register("unlike", two.name, two.fixed, two.moving)
        run.wrong = True
        explained = run.figures.get("explained_variance", {}).get("final")
        passed, number = passed + (run.verdict == "pass"), number + 1
        reason = run.reasons[0] if run.reasons else None
        bench.say(_row([two.name, explained, run.figures.get("confidence"), _said(run, result), run.seconds, reason]))
    bench.say("", f"**{passed} of {number} called pass** (must be 0).")


# 5 — the verdict


def verdicts(bench: Bench) -> None:
    """Over all runs whose truth is known: what was said of the right ones and of the wrong ones."""
    columns = ["section", "wrong", "of these pass", "warn", "fail", "right", "of these pass", "warn", "fail", "errors"]
    bench.head(
        "The verdict",
        f"Wrong: a median rTRE over {truth.WRONG:g} % (where the best affine map through the landmarks is worse still: over "
        f"that), or over {truth.TIMES:g} times the untouched pair's and over {truth.NOTHING} %; label agreement below that "
        "of the centroids; whatever does not belong together.",
        columns,
    )
    judged = [run for run in bench.runs if run.wrong is not None or run.verdict == "error"]
    for section in [*dict.fromkeys(run.section for run in judged), "all"]:
        some = [run for run in judged if section in (run.section, "all")]
        cells: list[object] = [section]
        for wrong in (True, False):
            said = [run.verdict for run in some if run.wrong is wrong and run.verdict != "error"]
            cells += [len(said), *(said.count(word) for word in ("pass", "warn", "fail"))]
        bench.say(_row([*cells, sum(run.verdict == "error" for run in some)]))
    trusted = [run.name for run in judged if run.wrong and run.verdict == "pass"]
    right = [run for run in judged if run.wrong is False]
    refused = [run.name for run in right if run.verdict == "fail"]
    share = [100 * sum(run.verdict == word for run in right) / max(len(right), 1) for word in ("fail", "pass")]
    bench.say(
        "",
        f"- wrong ones called pass: **{len(trusted)}** (must be 0){_named(trusted)}",
        f"- right ones called fail: **{share[0]:.0f} %** (at most 5 %){_named(refused)}",
        f"- right ones called pass: **{share[1]:.0f} %** (at least 80 %)",
    )


def _named(names: list[str]) -> str:
    return f": {'; '.join(names)}" if names else ""


# 6 — pairs of which no truth is known


def through(bench: Bench) -> None:
    """Verdict and explained variance where there is no truth to judge by."""
    stages = ["as they lie", "pose", "affine", "end"]
    bench.head(
        "Run-through",
        "No truth is known; figures are the share of the fixed image's variance that the moving one explains.",
        ["pair", "pixels", *stages, "model", "confidence", "verdict", "s", "reasons"],
    )
    for read in list(blind.belonging(bench.data))[: 1 if bench.quick else None]:
        for two in read()[: 1 if bench.quick else None]:
            run, result = bench.register("through", two.name, two.fixed, two.moving)
            explained = run.figures.get("explained_variance", {})
            run.figures["untouched"] = as_they_lie(two.fixed, two.moving)
            cells = [run.figures["untouched"], *(explained.get(key) for key in ("start", "affine", "final"))]
            size = " → ".join("×".join(map(str, image.grid.shape)) for image in (two.fixed, two.moving))
            cells += [run.figures.get("model"), run.figures.get("confidence"), _said(run, result), run.seconds]
            bench.say(_row([two.name, size, *cells, "; ".join(run.reasons)]))


def as_they_lie(fixed: rf.Image, moving: rf.Image) -> float:
    """Share of the fixed image's variance that the moving one's channels explain, pixel on pixel."""
    h, w = (min(a, b) for a, b in zip(fixed.grid.shape, moving.grid.shape, strict=True))
    step = max(1, round(math.sqrt(h * w / 150_000)))
    target, given = (
        image.data.to(torch.float64)[:, :h:step, :w:step].flatten(1).T.numpy() for image in (fixed, moving)
    )
    given = np.column_stack([given, np.ones(len(given))])
    rest = target - given @ np.linalg.lstsq(given, target, rcond=None)[0]
    spread = ((target - target.mean(axis=0)) ** 2).sum()
    return float(1 - (rest**2).sum() / spread) if spread else 0.0


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "truth": with_truth,
    "poses": poses,
    "crops": crops,
    "unlike": unlike,
    "through": through,
}


def enter_peers(bench: Bench, stack: ExitStack, python: str | None, threads: int) -> None:
    """Start every peer and make it find known maps first; who does not is absent, and it is said why."""
    if python is None:
        bench.absent.append(f"Peers not run: {rivals.HOW_TO_GET}.")
        return
    for setting in rivals.UNTUNED:
        worker = stack.enter_context(rivals.Worker(setting.tool, python, threads))
        try:
            worker.check()
        except (rivals.RivalError, OSError) as error:
            bench.absent.append(f"{setting.tool} not run: {error}.")
        else:
            bench.peers[setting.tool] = worker


def main(argv: Sequence[str] | None = None) -> Bench:
    """Measure what was asked for, print it, and write it down where wanted."""
    here = Path(__file__).resolve()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("::")[0])
    default = Path(os.environ.get("REGFRAME_DATA") or here.parents[2] / "shared" / "data")
    parser.add_argument("--data", type=Path, default=default, help="folder of the real data (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), metavar="NAME")
    parser.add_argument("--rivals", default=os.environ.get("REGFRAME_RIVALS"), help="the Python that has the peers")
    parser.add_argument("--rounds", type=int, default=1, help="of each peer; most draw at random, the median is shown")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--quick", action="store_true", default=os.environ.get("REGFRAME_BENCH_SMALL") == "1", help="a few rows of each"
    )
    parser.add_argument("--json", type=Path, help="append a line per run to this file")
    page = here.with_name("ACCURACY.md")
    parser.add_argument("--markdown", type=Path, nargs="?", const=page, help=f"write the page (default: {page.name})")
    options = parser.parse_args(argv)
    if not options.data.is_dir():
        parser.error(f"wanted the folder of the real data, got {options.data}; set --data or REGFRAME_DATA")
    torch.set_num_threads(options.threads)
    bench = Bench(options.data, options.quick, rounds=options.rounds)
    about = make_table.circumstances()
    made = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    bench.say("# Accuracy", "", f"{about['date']}, {about['machine']}, {options.threads} threads; {made}.")
    bench.say("", f"    {about['command']}")
    with ExitStack() as stack:
        if "truth" in options.only:
            enter_peers(bench, stack, options.rivals, options.threads)
        for name in options.only:
            try:
                SECTIONS[name](bench)
            except Exception as error:  # noqa: BLE001 - one section must not take the others down
                bench.say("", f"{name} ended early: {type(error).__name__}: {error}")
        verdicts(bench)
    if options.json:
        with options.json.open("a") as file:
            file.writelines(json.dumps(asdict(run)) + "\n" for run in bench.runs)
    if options.markdown:
        options.markdown.write_text("\n".join(bench.lines) + "\n")
    return bench


if __name__ == "__main__":
    main()
