"""The report page of a mosaic: all fields in their places with name, outline and verdict, and a table of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from ..mosaic.mosaic import SLIDE, Mosaic
from ..slides.mosaicked import MosaicWarp, mosaicked
from . import figures
from .page import Picture, fill, svg_uri
from .pictures import canvas_of, look_of, plane_of
from .pieces import COLOURS
from .words import quoted, small

_HEADLINES = {
    "pass": ("Confirmed", "Every field has its place."),
    "warn": ("Not confirmed throughout", "Look at the fields named below before you use them."),
    "fail": ("No evidence", "Most fields have no place. Nothing was thrown away."),
}
MOST = 900
"""Pixels along the longer side of the picture."""


def write(mosaic: Mosaic, plan: MosaicWarp | None, path: Path, out: Path = Path("OUT")) -> None:
    """Write the report of ``mosaic`` as one HTML file.

    ``plan`` is that of its slide, None where no field has a place; ``out`` the mosaic's folder, for the page's lines.
    """
    path.write_text(render(mosaic, plan, out), encoding="utf-8")


def render(mosaic: Mosaic, plan: MosaicWarp | None, out: Path = Path("OUT")) -> str:
    """The page as text."""
    m = mosaic.metrics
    title, summary = _HEADLINES[mosaic.verdict]
    used = [pair for pair in m["pairs"] if pair["used"]]
    cards = [
        ("fields placed", f"{m['n_placed']} of {m['n_images']}"),
        ("overlaps", f"{len(used)} of {len(m['pairs'])} tried"),
    ]
    if m["residual_px"] is not None:
        cards.append(("overlaps disagree by", f"{small(m['residual_px'])} px"))
    moved = [entry["moved_px"] for entry in m["images"] if entry["moved_px"] is not None]
    if moved:
        cards.append(("from the stated places, at most", f"{max(moved):.3g} px"))
    return fill(
        "mosaic.html",
        verdict=mosaic.verdict,
        title=title,
        summary=summary,
        reasons=mosaic.reasons,
        cards=cards,
        picture=None if plan is None else Picture("Mosaic", svg_uri(_drawn(mosaic, plan))),
        layout=m["layout"],
        fields=[_row(entry) for entry in m["images"]],
        pairs=[_pair(pair) for pair in m["pairs"]],
        out=quoted(out),
        slide=quoted(out / SLIDE),
        canvas=" × ".join(str(n) for n in mosaic.canvas.shape),
        first=next((name for name, result in zip(mosaic.names, mosaic.results, strict=True) if result is not None), ""),
    )


def _drawn(mosaic: Mosaic, plan: MosaicWarp) -> str:
    """All fields in their places, with their outlines, as SVG."""
    grid = canvas_of(mosaic.canvas, MOST)
    image = mosaicked(plan.fields, grid, plan.path, plan.pyramid.name, plan.seam).image()
    picture = look_of(image).rgb(plane_of(image.data))
    tall, wide = (float(n) for n in grid.shape)
    low = np.array([o - s / 2 for o, s in zip(grid.origin, grid.spacing, strict=True)])
    parts = [figures._raster(picture, (0, 0, wide, tall), "jpeg", sharp=False)]
    for name, result, entry in zip(mosaic.names, mosaic.results, mosaic.metrics["images"], strict=True):
        if result is None:
            continue
        corners = result.transform.points(result.moving_grid.corners()[[0, 1, 3, 2]]).numpy()
        at = (corners - low) / np.array(grid.spacing)
        colour = COLOURS[entry["verdict"]]
        points = " ".join(f"{x:.1f},{y:.1f}" for y, x in at)
        parts.append(f'<polygon points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        y, x = at.mean(axis=0)
        more = f' style="fill:{colour};font-weight:700;paint-order:stroke;stroke:#fff;stroke-width:3px"'
        parts.append(figures._text(float(x), float(y), name, more=more))
    return figures.svg(wide, tall, "".join(parts))


def _turn(degrees: float | None) -> str:
    return "–" if degrees is None else f"{round(degrees, 3) + 0.0:.3f}"


def _row(entry: dict[str, Any]) -> dict[str, str]:
    def said(key: str, form: str) -> str:
        return "–" if entry[key] is None else format(entry[key], form)

    place = (
        "–"
        if entry["y_px"] is None
        else ", ".join(format(round(entry[axis], 2) + 0.0, ".2f") for axis in ("y_px", "x_px"))
    )
    return {
        "name": entry["name"], "verdict": entry["verdict"], "place": place, "turn": _turn(entry["turn_degrees"]),
        "moved": said("moved_px", ".2f"), "overlaps": str(entry["overlaps"]), "residual": small(entry["residual_px"]),
        "reasons": "; ".join(entry["reasons"]),
    }  # fmt: skip


def _pair(pair: dict[str, Any]) -> dict[str, str]:
    def said(key: str, form: str) -> str:
        return "–" if pair[key] is None or not math.isfinite(pair[key]) else format(pair[key], form)

    return {
        "names": f"{pair['moving']} on {pair['fixed']}", "used": "yes" if pair["used"] else "no",
        "confidence": said("confidence", ".0%"), "likeness": said("likeness", ".2f"), "share": said("share", ".1%"),
        "residual": small(pair["residual_px"]),
    }  # fmt: skip
