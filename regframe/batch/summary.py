"""The summary of a batch: ``summary.csv`` and ``summary.html``, one self-contained page."""

from __future__ import annotations

import base64
import csv
import html.parser
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .. import verdict
from ..display.lines import unbroken
from ..io import outputs
from ..io.paths import shown
from ..io.spreadsheet import text_cell
from . import work
from .work import Outcome

TABLE = "summary.csv"
PAGE = "summary.html"
STATES = ("failed", "fail", "warn", "pass", "pending")
"""Possible states of a job, worst first."""

_MAX_REPORT = 32 << 20
"""Largest report, in bytes, from which pictures are taken; regframe's own stay under 5 MB."""
_FIGURES = ("n_evaluations", "matching_fraction", "folding_fraction")
_WORDS = {
    "failed": "stopped with an error, see its log",
    "fail": "contradicted, or no evidence",
    "warn": "not confirmed",
    "pass": "confirmed",
    "pending": "not run yet",
}


def write(outcomes: Sequence[Outcome], out: Path) -> None:
    """Write both files, each of them complete or not at all."""
    with outputs.staged(out / TABLE, overwrite=True) as path:
        path.write_text(shown(table(outcomes)), encoding="utf-8")
    with outputs.staged(out / PAGE, overwrite=True) as path:
        path.write_text(shown(page(outcomes, out)), encoding="utf-8")


def is_written(out: Path, outcomes: Sequence[Outcome]) -> bool:
    """Whether both files exist with the content for these outcomes."""
    try:
        return (out / PAGE).is_file() and (out / TABLE).read_text(encoding="utf-8") == shown(table(outcomes))
    except (OSError, UnicodeDecodeError):
        return False


def row(outcome: Outcome) -> dict[str, Any]:
    """One job as plain values, for the table and for ``--json``."""
    measured = outcome.evaluation or {}
    before = measured.get("before") or {}
    ran = bool(outcome.attempts)
    return {
        "id": outcome.id,
        "status": outcome.status,
        "verdict": outcome.verdict,
        "confidence": outcome.figures.get("confidence"),
        "reasons": " | ".join(outcome.reasons),
        "model": outcome.model,
        "attempts": len(outcome.attempts),
        "seconds": round(outcome.seconds, 2) if ran else None,
        "peak_memory_mib": outcome.peak_memory >> 20 if ran else None,
        "threads": outcome.threads if ran else None,
        **{name: outcome.figures.get(name) for name in _FIGURES},
        "roundtrip_px_max": (outcome.figures.get("roundtrip_px") or {}).get("max"),
        "n_landmarks": measured.get("n"),
        "tre_px_median_before": before.get("tre_px", {}).get("median"),
        "tre_px_median": measured.get("tre_px", {}).get("median"),
        "tre_px_p90": measured.get("tre_px", {}).get("p90"),
        "rtre_median": measured.get("rtre_median"),
        "host": outcome.host,
        "version": outcome.version,
        "report": f"{outcome.id}/{outputs.REPORT}" if outcome.verdict is not None else None,
        "applied": " | ".join(f"{outcome.id}/{name}" for name in outcome.applied),
    }


def table(outcomes: Sequence[Outcome]) -> str:
    """``summary.csv``: one row per job in the manifest's order; blank cells where a value is not known."""
    rows = [row(outcome) for outcome in outcomes]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: _cell(v) for k, v in line.items()} for line in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6g}"
    return text_cell(value)


def page(outcomes: Sequence[Outcome], out: Path) -> str:
    """``summary.html``: counts, then every job with its overlays before and after, the worst first: by verdict, then by
    confidence."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["unbroken"] = unbroken
    width = 300 if len(outcomes) <= 60 else 200 if len(outcomes) <= 300 else 130
    groups = []
    for state in STATES:
        chosen = [_item(o, out, width) for o in sorted(outcomes, key=_confidence) if o.state == state]
        if chosen:
            groups.append({"state": state, "words": _WORDS[state], "jobs": chosen})
    eyes = sum(o.state not in ("pass", "pending") for o in outcomes)
    again = sum(len(o.attempts) > 1 for o in outcomes)
    return environment.get_template("summary.html").render(
        total=len(outcomes), groups=groups, eyes=eyes, again=again, kept=sum(o.kept for o in outcomes), wide=width
    )


def _confidence(outcome: Outcome) -> float:
    """What jobs of one state are sorted by, the least sure first; where nothing is known of it, before all others."""
    value = outcome.figures.get("confidence")
    return -1.0 if value is None else float(value)


def _item(outcome: Outcome, out: Path, width: int) -> dict[str, Any]:
    line = row(outcome)
    facts: list[tuple[str, str]] = []
    if line["confidence"] is not None:
        facts.append(("confidence", verdict.spoken(line["confidence"])))
    if line["tre_px_median"] is not None:
        was = "" if line["tre_px_median_before"] is None else f" (before {line['tre_px_median_before']:.3g})"
        facts.append(("landmark error, median", f"{line['tre_px_median']:.3g} px{was}"))
    if line["matching_fraction"] is not None:
        facts.append(("matching", f"{100 * line['matching_fraction']:.0f} %"))
    if line["folding_fraction"]:
        facts.append(("folded", f"{100 * line['folding_fraction']:.2g} %"))
    if line["seconds"] is not None:
        facts.append(("time", f"{line['seconds']:.1f} s"))
        facts.append(("memory", f"{line['peak_memory_mib']} MiB"))
    folder = quote(outcome.id)
    links = [("report", f"{folder}/{outputs.REPORT}")] if outcome.verdict is not None else []
    if outcome.attempts:
        links.append(("log", f"{folder}/{work.LOG}"))
    links += [(name.removeprefix("applied/"), f"{folder}/{quote(name)}") for name in outcome.applied]
    return {
        "id": outcome.id,
        "state": outcome.state,
        "reasons": outcome.reasons,
        "simpler": outcome.model == work.SIMPLER,
        "facts": facts,
        "links": links,
        "pictures": _thumbnails(out / outcome.id / outputs.REPORT, width) if outcome.verdict is not None else {},
    }


class _Overlays(html.parser.HTMLParser):
    """Finds the two overlays of both sides, before and after, in a report."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        for name in ("before", "after"):
            if tag == "img" and (values.get("alt") or "").lower() == f"overlay {name}" and values.get("src"):
                self.found.setdefault(name, str(values["src"]))


def _thumbnails(report: Path, width: int) -> dict[str, str]:
    """Small pictures from a job's report as data URIs, by ``before`` and ``after``; empty where it has none."""
    import PIL.Image

    overlays = _Overlays()
    small: dict[str, str] = {}
    try:
        if report.stat().st_size > _MAX_REPORT:
            return {}
        overlays.feed(report.read_text(encoding="utf-8"))
        for name, uri in overlays.found.items():
            data = base64.b64decode(uri.partition(",")[2])
            with PIL.Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as picture:
                image = picture.convert("RGB")
                image.thumbnail((width, width))
                buffer = io.BytesIO()
                image.save(buffer, "JPEG", quality=76, optimize=True)
            small[name] = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    except (OSError, ValueError):
        return {}
    return small
