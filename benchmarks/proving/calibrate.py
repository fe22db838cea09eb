"""What a confidence has to be, fitted on harvests of the proving ground and measured on others::

    python -m benchmarks.proving --n 420 --seed 0 --out set.jsonl     # seeds below 10000
    python -m benchmarks.proving --n 210 --seed 10000 --out seen.jsonl
    python -m benchmarks.proving.calibrate set.jsonl --check seen.jsonl

It prints, for each kind of data: how well each figure alone tells right maps from wrong and unrelated ones; the coefficients of
`regframe.confidence` fitted anew, to be pasted there (beside them their reliability on seeds that they were not fitted to, also
kind by kind); and what the coefficients that are there now do on the checked harvest. Deterministic.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import rankdata

from regframe import confidence
from regframe.confidence import Model

from .kinds import VOLUMES

Array = NDArray[np.float64]
FOLDS = 10
"""Parts of a harvest, each judged by a model that was fitted to the others; a seed's pairs are all in one part."""
RIDGE = 0.3
"""Precision of a coefficient's prior, whose feature has the standard deviation 1: few wrong maps shall not make it infinite."""
BINS = 10
"""Parts of 0 … 1, equally wide, over which reliability is measured."""
FAR = 3.0
"""Bars from which a wrong map is no near miss (as in `judge.FAR`)."""
RIGHT_LOST = 0.02
"""Share of the right maps that may end as ``fail``."""


def nested(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures by dotted name, as a harvest has them, in the form that ``metrics.json`` has."""
    out: dict[str, Any] = {}
    for name, value in figures.items():
        *groups, last = name.split(".")
        at = out
        for group in groups:
            at = at.setdefault(group, {})
        at[last] = value
    return out


def group(pair: Mapping[str, Any]) -> str:
    """Which model judges a pair: ``images``, ``volumes`` or ``points``."""
    if pair["kind"] in (*VOLUMES, "strange-volumes"):
        return "volumes"
    return "points" if "likeness" in pair["figures"] else "images"


def of_model(name: str, pairs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pairs that a model of `confidence.MODELS` speaks of: that of the place speaks of images, too."""
    return [pair for pair in pairs if group(pair) == ("images" if name == "place" else name)]


def read(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The pairs of harvests that came to a result."""
    pairs: list[dict[str, Any]] = []
    for path in paths:
        text = path.read_text()
        lines = path.suffix == ".jsonl"
        pairs += [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)["pairs"]
    return [pair for pair in pairs if pair["verdict"] != "error"]


def separation(values: Array, right: NDArray[np.bool_]) -> float:
    """Area under the ROC: how often a right map's value exceeds a wrong one's; not a number where either is missing."""
    known = np.isfinite(values)
    values, right = values[known], right[known]
    n, m = int(right.sum()), int((~right).sum())
    return float((rankdata(values)[right].sum() - n * (n + 1) / 2) / (n * m)) if n and m else math.nan


def fitted(features: Array, right: NDArray[np.bool_], signs: Array) -> Array:
    """Constant and coefficients ``[1 + K]`` of the logistic of ``features`` ``[N, K]``, each of a sign (0: any)."""
    middle, spread = features.mean(axis=0), features.std(axis=0) + 1e-9
    x = np.column_stack([np.ones(len(features)), (features - middle) / spread])
    y = right.astype(np.float64)

    def loss(beta: Array) -> tuple[float, Array]:
        z = x @ beta
        value = float(np.logaddexp(0, z).sum() - y @ z + RIDGE / 2 * beta[1:] @ beta[1:])
        slope = x.T @ (1 / (1 + np.exp(-z)) - y)
        slope[1:] += RIDGE * beta[1:]
        return value, slope

    bounds = [(None, None), *((0 if s > 0 else None, 0 if s < 0 else None) for s in signs)]
    beta = minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B", bounds=bounds).x
    slopes = beta[1:] / spread
    return np.concatenate([[beta[0] - slopes @ middle], slopes])


def predicted(beta: Array, features: Array) -> Array:
    """Confidence ``[N]`` of maps with ``features`` ``[N, K]``."""
    z = beta[0] + features @ beta[1:]
    return np.asarray(1 / (1 + np.exp(-np.clip(z, -500, 500))))


def crossed(features: Array, right: NDArray[np.bool_], signs: Array, seeds: Sequence[int]) -> Array:
    """Confidence ``[N]`` of each map by a model that has not seen its seed; every `FOLDS`-th seed is left out in turn."""
    out = np.empty(len(features))
    part = np.array(seeds) % FOLDS
    for fold in range(FOLDS):
        held = part == fold
        if held.any():
            out[held] = predicted(fitted(features[~held], right[~held], signs), features[held])
    return out


def reliability(sure: Array, right: NDArray[np.bool_]) -> tuple[list[tuple[int, float, float]], float]:
    """Number, mean confidence and share of right ones of each of `BINS` bins that holds any; and the expected calibration
    error, the mean distance of the two over all maps."""
    at = np.minimum((sure * BINS).astype(int), BINS - 1)
    rows = [(int(k.sum()), float(sure[k].mean()), float(right[k].mean())) for b in range(BINS) if (k := at == b).any()]
    return rows, sum(n * abs(mean - share) for n, mean, share in rows) / max(len(sure), 1)


def thresholds(sure: Array, right: NDArray[np.bool_], far: NDArray[np.bool_]) -> tuple[float, float]:
    """The confidence above which no map is ``far`` off, and that below which lie `RIGHT_LOST` of the right ones."""
    above = float(sure[far].max()) if far.any() else 0.0
    below = float(np.quantile(sure[right], RIGHT_LOST)) if right.any() else 0.0
    return above, below


def is_far(pair: Mapping[str, Any]) -> bool:
    """Whether a map is wrong and no near miss."""
    if pair["right"] is None:
        return True
    return not pair["right"] and (pair["median"] is None or pair["median"] > FAR * pair["bar"])


def table(sure: Array, right: NDArray[np.bool_], far: NDArray[np.bool_]) -> list[str]:
    """Reliability, calibration error and thresholds in words."""
    rows, error = reliability(sure, right)
    lines = ["| maps | confidence | of these right |", "|---|---|---|"]
    lines += [f"| {n} | {mean:.2f} | {share:.2f} |" for n, mean, share in rows]
    above, below = thresholds(sure, right, far)
    lines += [
        f"- expected calibration error {error:.3f}; area under the ROC {separation(sure, right):.3f}",
        f"- no map far off is above {above:.2f}, where {100 * float((sure[right] > above).mean()):.0f} % of the right ones are; "
        f"{100 * RIGHT_LOST:.0f} % of the right ones are below {below:.2f}, where "
        f"{100 * float((sure[far] < below).mean()) if far.any() else math.nan:.0f} % of those far off are",
    ]
    return lines


def by_kind(pairs: Sequence[Mapping[str, Any]], sure: Array, right: NDArray[np.bool_]) -> list[str]:
    """How the confidence of each kind of pair fits the share of its maps that are right: too high or too low in the mean."""
    lines = [
        "| kind | maps | right | mean confidence | lowest of a right one | highest of another |",
        "|---|---|---|---|---|---|",
    ]
    for kind in dict.fromkeys(pair["kind"] for pair in pairs):
        of = np.array([pair["kind"] == kind for pair in pairs])
        low, high = sure[of & right], sure[of & ~right]
        ends = [f"{low.min():.2f}" if len(low) else "–", f"{high.max():.2f}" if len(high) else "–"]
        lines.append(
            f"| {kind} | {int(of.sum())} | {float(right[of].mean()):.2f} | {float(sure[of].mean()):.2f} | {' | '.join(ends)} |"
        )
    return lines


def alone(pairs: Sequence[Mapping[str, Any]], right: NDArray[np.bool_]) -> list[str]:
    """Every figure by how well it tells right maps from others, the best first."""
    names = sorted({name for pair in pairs for name, v in pair["figures"].items() if isinstance(v, (int, float))})
    found = []
    for name in names:
        values = [pair["figures"].get(name) for pair in pairs]
        column = np.array([v if isinstance(v, (int, float)) else math.nan for v in values], dtype=np.float64)
        if np.nanstd(column) > 0:
            found.append((separation(column, right), name))
    found = [one for one in found if math.isfinite(one[0])]
    found.sort(key=lambda one: -abs(one[0] - 0.5))
    return [f"- {name}: {area:.3f}" for area, name in found[:20]]


def described(name: str, model: Model, pairs: list[dict[str, Any]]) -> list[str]:
    """A model fitted anew on ``pairs``, and what it is worth."""
    rows = [(pair, model.features(nested(pair["figures"]))) for pair in pairs]
    kept = [(pair, found) for pair, found in rows if found is not None]
    if not kept:
        return [f"## {name}: no pairs"]
    right = np.array([not is_far(pair) if model.near else bool(pair["right"]) for pair, _ in kept])
    far = np.array([is_far(pair) for pair, _ in kept])
    lines = [f"## {name}: {len(kept)} pairs, {int(right.sum())} right, {int(far.sum())} far off or unrelated", ""]
    lines += ["Area under the ROC of each figure alone:", *alone([pair for pair, _ in kept], right), ""]
    if right.all() or not right.any():
        return [*lines, "Nothing to fit: all are alike."]
    names = list(model.signs)
    features = np.array([[found[key] for key in names] for _, found in kept], dtype=np.float64)
    signs = np.array([model.signs[key] for key in names], dtype=np.float64)
    beta = fitted(features, right, signs)
    inner = ", ".join(f'"{key}": {value:.3g}' for key, value in zip(names, beta[1:], strict=True))
    lines += [f"Fitted: constant {beta[0]:.3g}, coefficients {{{inner}}}", "", "Cross-validated by seed:"]
    sure = crossed(features, right, signs, [pair["seed"] for pair, _ in kept])
    return [*lines, *table(sure, right, far), "", *by_kind([pair for pair, _ in kept], sure, right)]


def checked(name: str, model: Model, pairs: list[dict[str, Any]]) -> list[str]:
    """What the constants of `regframe.confidence` say of ``pairs``."""
    rows = [(pair, model(nested(pair["figures"]))) for pair in pairs]
    kept = [(pair, value) for pair, value in rows if value is not None]
    if not kept:
        return [f"## {name}: no pairs"]
    right = np.array([not is_far(pair) if model.near else bool(pair["right"]) for pair, _ in kept])
    sure = np.array([value for _, value in kept], dtype=np.float64)
    far = np.array([is_far(pair) for pair, _ in kept])
    lines = [f"## {name}, constants as they are: {len(kept)} pairs, {int(right.sum())} right", ""]
    return [*lines, *table(sure, right, far), "", *by_kind([pair for pair, _ in kept], sure, right)]


def main(argv: Sequence[str] | None = None) -> None:
    """Fit, measure, print."""
    parser = argparse.ArgumentParser("python -m benchmarks.proving.calibrate", description=__doc__)
    parser.add_argument(
        "harvests", type=Path, nargs="*", help="files that --out of the proving ground wrote, to fit on"
    )
    parser.add_argument(
        "--check", type=Path, nargs="+", default=[], help="harvests to measure the present constants on"
    )
    options = parser.parse_args(argv)
    if not options.harvests and not options.check:
        parser.error("wanted at least one harvest, got none; python -m benchmarks.proving --out FILE.json makes one")
    parts: tuple[tuple[Sequence[Path], Callable[[str, Model, list[dict[str, Any]]], list[str]]], ...] = (
        (options.harvests, described), (options.check, checked),
    )  # fmt: skip
    for paths, say in parts:
        pairs = read(paths)
        for name, model in confidence.MODELS.items() if paths else ():
            print("\n".join(say(name, model, of_model(name, pairs))), end="\n\n")


if __name__ == "__main__":
    main()
