"""Which maps are right, and what was said of them: one pair judged, and tables of many."""

from __future__ import annotations

import math
import time
import traceback
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.ndimage import map_coordinates

import regframe as rf

from .pairs import Made
from .sources import Array

TIMES = 2.0
"""Times the best attainable error up to which a map is right."""
NOTHING = 0.5
"""Pixels of the coarser side up to which any map is right."""
FAR = 3.0
"""Bars from which a wrong map is no near miss."""
VERDICTS = ("pass", "warn", "fail")
RADIUS = {2: 2.146, 3: 2.500}
"""Standard deviations per axis that 90 % of a normal distribution in so many dimensions lie within (χ distribution)."""
LEFT_OUT = ("reasons", "findings", "versions", "runner_up", "plane", "seconds", "seed")
"""What of a result's metrics is no figure that a judge could use."""


@dataclass(frozen=True)
class Judged:
    """What became of a pair. Errors in pixels of the coarser side; not a number where the two are unrelated or nothing came.

    Args:
        right: whether the median error is within `TIMES` the best attainable, or `NOTHING`; None where the two are unrelated.
        bar: that limit.
        attainable: the best attainable error.
        covered: share of the positions within the 90 % radius of ``position_sd``.
        verdict: ``error`` where regframe raised.
        seconds: of processor time, which is that on the clock where one thread has a core to itself.
    """

    kind: str
    seed: int
    verdict: str
    right: bool | None
    median: float
    p90: float
    most: float
    bar: float
    attainable: float
    covered: float
    seconds: float
    reasons: tuple[str, ...] = ()
    story: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What repeats it: ``KIND:SEED``."""
        return f"{self.kind}:{self.seed}"

    @property
    def failing(self) -> bool:
        """Whether somebody should look: wrong, raised, a right one contradicted, or unrelated tissue not refused."""
        if self.right is None:
            return self.verdict != "fail"
        return not self.right or self.verdict not in VERDICTS[:2]

    def record(self) -> dict[str, Any]:
        """As JSON has it: what is not a number is null."""
        flat = asdict(self)
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in flat.items()}


def judge(made: Made, transform: str | None = None) -> tuple[Judged, rf.Result | None]:
    """Align the pair with nothing set but ``transform``, and judge the map; what is raised becomes the verdict ``error``."""
    began, result, reasons = time.process_time(), None, ()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is doubtful is among the reasons
            result = rf.register(made.fixed, made.moving, transform=transform)
        reasons = tuple(result.reasons)
    except Exception as error:  # noqa: BLE001 - one pair must not take the others down
        reasons = (f"{type(error).__name__}: {error}", traceback.format_exc(limit=-2))
    seconds = time.process_time() - began
    errors = _errors(made, result)
    finite = np.where(np.isfinite(errors), errors, np.inf)
    bar = max(NOTHING, TIMES * made.attainable)
    median, p90, most = (
        float(np.quantile(finite, s, method="nearest")) if len(finite) else math.nan for s in (0.5, 0.9, 1)
    )
    figures = (
        {} if result is None else scalars({key: value for key, value in result.metrics.items() if key not in LEFT_OUT})
    )
    judged = Judged(
        made.kind, made.seed, "error" if result is None else str(result.verdict), median <= bar if made.related else None,
        median, p90, most, bar, made.attainable, covered(made, result, errors), seconds, reasons, made.story, made.sources,
        figures,
    )  # fmt: skip
    return judged, result


def scalars(figures: Mapping[str, Any], prefix: str = "") -> dict[str, float | str | None]:
    """Nested figures as one dictionary of numbers and words by dotted name: ``coincidence.affine``; a list is its last entry."""
    out: dict[str, float | str | None] = {}
    for key, value in figures.items():
        if isinstance(value, Mapping):
            out |= scalars(value, f"{prefix}{key}.")
            continue
        last = value[-1] if isinstance(value, (list, tuple)) and value else value
        if isinstance(last, (bool, int, float)):
            out[prefix + key] = float(last) if math.isfinite(last) else None
        elif isinstance(last, str) or last is None:
            out[prefix + key] = last
    return out


def _errors(made: Made, result: rf.Result | None) -> Array:
    """Distances ``[N]`` to the truth in pixels of the coarser side."""
    if result is None:
        return np.full(len(made.q), np.inf)
    at = result.to_moving(torch.as_tensor(made.q)).numpy()
    return np.asarray(np.linalg.norm(at - made.p, axis=1) / made.pixel)


def covered(made: Made, result: rf.Result | None, errors: Array) -> float:
    """Share of the positions that lie within the 90 % radius of where regframe puts them; not a number where it does not say."""
    if result is None or result.position_sd is None or result.weight_grid is None or not made.related:
        return math.nan
    grid = result.weight_grid
    index = (made.q - np.array(grid.origin)) / np.array(grid.spacing)
    size = len(grid.shape)
    if index.shape[1] != size:
        return math.nan
    sd = map_coordinates(result.position_sd.double().numpy(), index.T, order=1, mode="nearest")
    scale = float(torch.linalg.det(result.affine.matrix[:size, :size]).abs()) ** (1 / size)  # sd is in the fixed unit
    return float((errors <= RADIUS[size] * sd / scale / made.pixel).mean())


def tables(runs: Sequence[Judged]) -> str:
    """The table of kinds, the table of verdicts, and what the bars of the proving ground count."""
    kinds = list(dict.fromkeys(run.kind for run in runs))
    head = ["kind", "n", "right", "median", "p90", "worst", "median/bar", "within 90 %", "CPU s"]
    head += [f"right: {v}" for v in VERDICTS] + [f"wrong: {v}" for v in VERDICTS] + ["error"]
    rows = [_row(kind, [run for run in runs if run.kind == kind]) for kind in kinds]
    if len(kinds) > 1:
        rows.append(_row("all related", [run for run in runs if run.right is not None]))
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += ["| " + " | ".join(cells) + " |" for cells in rows]
    return "\n".join([*lines, "", *_summary(runs)])


def _row(kind: str, runs: Sequence[Judged]) -> list[str]:
    """One kind: of each pair's median error and of its 90th percentile the median over pairs, of its largest the largest."""
    known = [run for run in runs if run.right is not None]
    share = f"{100 * np.mean([bool(run.right) for run in known]):.0f} %" if known else "–"
    cells = [kind, str(len(runs)), share]
    cells += [_number([run.median for run in known], np.median), _number([run.p90 for run in known], np.median)]
    cells += [_number([run.most for run in known], np.max)]
    cells += [_number([run.median / run.bar for run in known], np.median)]
    cells += [_number([100 * run.covered for run in known if math.isfinite(run.covered)], np.mean)]
    cells += [_number([run.seconds for run in runs], np.median)]
    for right in (True, False):
        said = [run.verdict for run in runs if bool(run.right) is right]
        cells += [str(said.count(word)) for word in VERDICTS]
    return [*cells, str(sum(run.verdict == "error" for run in runs))]


def _number(values: Iterable[float], how: Any) -> str:
    listed = list(values)
    return f"{float(how(listed)):.3g}" if listed else "–"


def _summary(runs: Sequence[Judged]) -> list[str]:
    """The counts that have bars."""
    right = [run for run in runs if run.right]
    lines = [f"Median, p90, worst: error in px of the coarser side. Right: median within {NOTHING} px or {TIMES:g} times "
             "the best attainable. What was said of unrelated ones stands under wrong."]  # fmt: skip

    def count(what: str, of: Sequence[Judged], which: Sequence[Judged]) -> None:
        if of:
            lines.append(f"- {what}: {len(which)} of {len(of)} ({100 * len(which) / len(of):.0f} %)")

    wrong = [run for run in runs if run.right is False]
    passed = [run for run in wrong if run.verdict == "pass"]
    count("wrong ones that pass", wrong, passed)
    count(f"wrong ones that pass, off by more than {FAR:g} bars", wrong, [r for r in passed if r.median > FAR * r.bar])
    for verdict in ("pass", "fail"):
        count(f"right ones that {verdict}", right, [r for r in right if r.verdict == verdict])
    strangers = [run for run in runs if run.right is None]
    for verdict in ("fail", "pass"):
        count(f"unrelated ones that {verdict}", strangers, [r for r in strangers if r.verdict == verdict])
    return lines
