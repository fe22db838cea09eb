"""The part of the page on a slide in pieces: both slides with the number, partner and verdict of every piece, and a table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import verdict
from ..data import Grid, Image, PointSet
from ..maps.affine import Affine
from ..result import Result
from . import figures
from .page import Picture, svg_uri
from .pictures import Side, View, canvas_of

COLOURS = {"pass": "#1d7a46", "warn": "#b45309", "fail": "#b91c1c"}
"""Of a piece by its verdict; one without a partner has that of a failure, and a broken line."""
ACROSS = 620.0
"""Width of a slide in the drawing, in px."""


@dataclass(frozen=True)
class Shown:
    """What the page shows of pieces.

    Args:
        pictures: the fixed and the moving slide.
        rows: of the table, as text.
        sentence: what is drawn.
    """

    pictures: tuple[Picture, ...]
    rows: tuple[tuple[str, ...], ...]
    sentence: str


def shown(result: Result, fixed: Image | PointSet, moving: Image | PointSet, max_px: int) -> Shown | None:
    """The pieces of a result; None where it has none."""
    pieces = result.metrics.get("pieces")
    if not pieces or not isinstance(fixed, Image) or not isinstance(moving, Image):
        return None
    drawn = []
    for title, image, grid, side in (
        ("Fixed", fixed, result.fixed_grid, "fixed"),
        ("Moving", moving, result.moving_grid, "moving"),
    ):
        drawn.append(Picture(title, svg_uri(_slide(image, grid, _boxes(pieces, side), min(max_px, 700)))))
    unit = result.fixed_grid.unit
    rows = tuple(_row(piece, unit) for piece in pieces)
    placed = sum(piece["partner"] is not None for piece in pieces)
    sentence = (
        f"{placed} pieces have a partner. Green: confirmed; orange: not confirmed; red and broken: no partner. On the fixed "
        "slide stands the name of the moving piece that lies there where it is another one."
    )
    return Shown(tuple(drawn), rows, sentence)


def _boxes(pieces: list[dict[str, Any]], side: str) -> list[tuple[list[float], str, str, bool]]:
    """Box, words, verdict and whether it has a partner of each piece of a side."""
    out = []
    for piece in pieces:
        on = piece["partner"] is not None
        if side == "moving" and piece["side"] == "moving":
            out.append((piece["box"], piece["id"], piece["verdict"], on))
        elif side == "fixed" and on:
            same = piece["partner"] == piece["id"]
            words = piece["partner"] if same else f"{piece['partner']} ← {piece['id']}"
            out.append((piece["partner_box"], words, piece["verdict"], True))
        elif side == "fixed" and piece["side"] == "fixed":
            out.append((piece["box"], piece["id"], "fail", False))
    return _merged(out)


def _merged(boxes: list[tuple[list[float], str, str, bool]]) -> list[tuple[list[float], str, str, bool]]:
    """The boxes with those of one piece that belongs to several parts written once."""
    out: dict[tuple[float, ...], tuple[list[float], str, str, bool]] = {}
    for box, words, said, on in boxes:
        key = tuple(box)
        if key in out:
            before = out[key]
            worst = "fail" if "fail" in (said, before[2]) else "warn" if "warn" in (said, before[2]) else "pass"
            words, said = f"{before[1]}, {words.rpartition('← ')[2]}", worst
        out[key] = (box, words, said, on)
    return list(out.values())


def _slide(image: Image, grid: Grid, boxes: list[tuple[list[float], str, str, bool]], max_px: int) -> str:
    """A slide with its pieces, as SVG."""
    canvas = canvas_of(grid, max_px)
    side = Side.of(image, max_px)
    picture = side.rgb(side.picture(View.of(canvas, Affine.identity(grid.ndim, grid.unit))))
    height, across = canvas.extent
    width, tall = ACROSS, float(np.clip(ACROSS * height / across, 60.0, 900.0))
    low = np.array([o - s / 2 for o, s in zip(canvas.origin, canvas.spacing, strict=True)])
    scale = np.array([tall, width]) / np.array(canvas.extent)
    parts = [figures._raster(0.25 + 0.75 * picture, (0, 0, width, tall), "jpeg", sharp=False)]
    for box, words, said, on in boxes:
        (y, x), (b, r) = ((np.array(v) - low) * scale for v in (box[:2], box[2:]))
        colour, dash = COLOURS[said if on else "fail"], "" if on else ' stroke-dasharray="5 4"'
        parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{r - x:.1f}" height="{b - y:.1f}" rx="5" fill="none" stroke="{colour}" '
            f'stroke-width="2"{dash}/>'
        )
        more = f' style="fill:{colour};font-weight:700;paint-order:stroke;stroke:#fff;stroke-width:3px"'
        size = math.hypot(r - x, b - y)
        parts.append(figures._text((x + r) / 2, y + 13 if size > 40 else y - 3, words, more=more))
    return figures.svg(width, tall, "".join(parts))


def _row(piece: dict[str, Any], unit: str) -> tuple[str, ...]:
    name = f"{piece['id']} ({piece['side']})" if piece["partner"] is None else str(piece["id"])
    if piece["partner"] is None:
        return (name, "none", "no map", "–", "–", "–")
    shift = " × ".join(f"{v:.4g}" for v in piece["shift"])
    sure = "–" if piece["confidence"] is None else verdict.spoken(piece["confidence"])
    mirrored = ", mirrored" if piece["mirrored"] else ""
    there = str(piece["partner"]) + ("" if piece["at_place"] else " (another place)")
    return (name, there, str(piece["verdict"]), sure, f"{piece['turn']:.1f}°{mirrored}", f"{shift} {unit} (y, x)")
