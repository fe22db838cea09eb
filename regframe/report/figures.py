"""The report's drawings with axes and colour bars, as SVG text made from small arrays; they follow a light or a dark page.

Text in a figure is ours or a number, and escaped all the same.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from ..data import Grid
from .pictures import Array

INK = "#1c2530"
MUTED = "#66717f"
RULE = "#dfe4ea"
LEVELS = ["#3b6fb6", "#e08a1e", "#2e9e6b", "#b34a8c", "#7a62c9", "#c2503f", "#4aa3b8", "#8a8f3c"]
FOLD = (0.82, 0.10, 0.16)
"""Colour of places where a map folds, red, green and blue in 0 … 1."""
BLANK = (0.933, 0.945, 0.957)
"""Colour of places without a value."""

_MAPS = {
    "viridis": "440154 48186a 472d7b 424086 3b528b 33638d 2c728e 26828e 21918c 1fa088 28ae80 3fbc73 5ec962 84d44b addc30 d8e219 "
    "fde725",
    "cividis": "00224e 002e6a 1a386f 32436d 434e6c 535a6d 61656f 6f7073 7d7c78 8c8878 9b9476 aba072 bcae6c cdbb63 dec958 f0d846 "
    "fee838",
    "magma_r": "fcfdbf fde0a1 fec287 fea571 fb8761 f4695c e55064 cf4070 b5367a 9b2e7f 812581 681c81 4f127b 341069 1c1044 090720 "
    "000004",
    "RdBu_r": "053061 175290 2a71b2 3f8ec0 6bacd1 9bc9e0 c2ddec e0ecf3 f7f6f6 fbe5d8 fbccb4 f5aa89 e48066 d05548 ba2832 930e26 "
    "67001f",
}
"""Colour maps of matplotlib (CC0) at 17 equal steps, between which colours are interpolated."""

_STYLE = (
    f"<style>text{{font:11px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;fill:{MUTED}}}"
    f".rule{{stroke:{RULE}}}.ink{{fill:{INK}}}"
    "@media (prefers-color-scheme:dark){text{fill:#9aa7b5}.rule{stroke:#34404d}.ink{fill:#e4e9ef}}</style>"
)
_HIGH = 300  # pixels of a chart


def _colours(name: str) -> NDArray[np.float64]:
    """The colours of a map ``[17, 3]``, 0 … 1."""
    return np.array([[int(c[i : i + 2], 16) / 255 for i in (0, 2, 4)] for c in _MAPS[name].split()])


def coloured(values: NDArray[Any], name: str) -> NDArray[np.float64]:
    """Colours ``[h, w, 3]``, 0 … 1, of values 0 … 1 ``[h, w]``; those that are not finite are `BLANK`."""
    known = np.isfinite(values)
    at = np.clip(np.where(known, values, 0), 0, 1)
    table = _colours(name)
    steps = np.linspace(0, 1, len(table))
    painted = np.stack([np.interp(at, steps, table[:, c]) for c in range(3)], axis=-1)
    return np.where(known[..., None], painted, np.array(BLANK))


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers between ``low`` and ``high``, about ``wanted`` of them, a step of 1, 2 or 5 times a power of ten apart."""
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return [low] if math.isfinite(low) else []
    rough = span / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((s * power for s in (1, 2, 5) if s * power >= rough), 10 * power)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A number beside an axis."""
    return f"{value:.4g}".replace("-", "−")


def svg(width: float, height: float, body: str) -> str:
    """A drawing as a document of its own."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}">{_STYLE}{body}</svg>'
    )


def _text(x: float, y: float, said: str, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{html.escape(said)}</text>'


def _raster(picture: NDArray[Any], box: tuple[float, float, float, float], kind: str, sharp: bool) -> str:
    """A picture ``[h, w, 3]``, 0 … 1, at x, y, width, height of a drawing."""
    buffer = io.BytesIO()
    pixels = PIL.Image.fromarray((np.clip(np.nan_to_num(picture), 0, 1) * 255 + 0.5).astype(np.uint8))
    pixels.save(buffer, kind.upper(), **({"quality": 80} if kind == "jpeg" else {}))
    x, y, width, height = box
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    style = ' style="image-rendering:pixelated"' if sharp else ""
    return (
        f'<image x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" preserveAspectRatio="none"{style} '
        f'href="data:image/{kind};base64,{data}"/>'
    )


@dataclass(frozen=True)
class Curve:
    """One run of values of a chart.

    Args:
        x: positions ``[n]``.
        y: values ``[n]``.
        colour: of line and dots.
        name: in the key; ``""`` for no entry.
        line: whether a line joins them.
        dot: radius of a dot in px; 0 for none.
    """

    x: Sequence[float] | NDArray[Any]
    y: Sequence[float] | NDArray[Any]
    colour: str
    name: str = ""
    line: bool = True
    dot: float = 0.0


@dataclass(frozen=True)
class Axes:
    """What stands beside a chart.

    Args:
        x: what runs across.
        y: what runs up.
        low: lowest value shown.
        high: highest value shown.
        log: whether values go up by powers of ten; both limits are positive then.
        marks: positions of vertical lines.
        wide: width in px: 820 for a chart as wide as the page, 500 for half of it, so that text is as large in both.
    """

    x: str
    y: str
    low: float
    high: float
    log: bool = False
    marks: tuple[float, ...] = ()
    wide: float = 820.0


def chart(curves: Sequence[Curve], axes: Axes) -> str:
    """A line chart as SVG; values that are not finite are left out."""
    names = [c for c in curves if c.name]
    left, top, right, bottom = (
        62.0,
        12.0,
        axes.wide - ((150.0 if axes.wide > 600 else 92.0) if names else 12.0),
        _HIGH - 44.0,
    )
    across = np.concatenate([np.asarray(c.x, dtype=float) for c in curves]) if curves else np.zeros(1)
    first, last = float(across.min()), float(across.max())
    first, last = (first - 0.5, last + 0.5) if last <= first else (first, last)
    scale = math.log10 if axes.log else float
    low, high = scale(axes.low), scale(axes.high)
    high = high if high > low else low + 1.0

    def px(x: Any) -> Any:
        return left + (np.asarray(x, dtype=float) - first) / (last - first) * (right - left)

    def py(y: Any) -> Any:
        value = np.log10(np.maximum(np.asarray(y, dtype=float), 1e-300)) if axes.log else np.asarray(y, dtype=float)
        return bottom - (value - low) / (high - low) * (bottom - top)

    parts = []
    levels = [10.0**e for e in range(math.ceil(low), math.floor(high) + 1)] if axes.log else ticks(low, high)
    for value in levels:
        at = float(py(value))
        parts.append(
            f'<path class="rule" d="M{left} {at:.1f}H{right}"/>{_text(left - 6, at + 4, number(value), "end")}'
        )
    for mark in axes.marks:
        parts.append(f'<path class="rule" d="M{px(mark):.1f} {top}V{bottom}"/>')
    for value in ticks(first, last, 8 if axes.wide > 600 else 5):
        if value == round(value):
            parts.append(_text(float(px(value)), bottom + 16, number(value)))
    for curve in curves:
        x, y = np.asarray(px(curve.x)), np.asarray(py(curve.y))
        known = np.isfinite(y)
        x, y = x[known], y[known].clip(top, bottom)
        if curve.line and len(x) > 1:
            run = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
            parts.append(f'<polyline points="{run}" fill="none" stroke="{curve.colour}" stroke-width="1.8"/>')
        if curve.dot:
            spots = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in zip(x, y, strict=True))
            parts.append(
                f'<path d="{spots}" stroke="{curve.colour}" stroke-width="{2 * curve.dot}" stroke-linecap="round" '
                f'opacity="{0.5 if curve.line else 0.9}"/>'
            )
    for i, curve in enumerate(names):
        row = top + 10 + 17 * i
        parts.append(f'<circle cx="{right + 16}" cy="{row - 4}" r="4" fill="{curve.colour}"/>')
        parts.append(_text(right + 26, row, curve.name, "start", ' class="ink"'))
    middle = (top + bottom) / 2
    parts.append(_text((left + right) / 2, _HIGH - 8, axes.x))
    parts.append(_text(14, middle, axes.y, "middle", f' transform="rotate(-90 14 {middle})"'))
    return svg(axes.wide, max(_HIGH, top + 20 + 17 * len(names)), "".join(parts))


def energy(history: list[dict[str, Any]]) -> str | None:
    """Chart of the energy per evaluation, a colour per stage and level, relative to its first value; None without history."""
    groups: dict[tuple[str, Any], list[float]] = {}
    for line in history:
        value = line.get("energy", line.get("loss"))
        if isinstance(value, (int, float)) and math.isfinite(value):
            groups.setdefault((str(line.get("stage", "")), line.get("level")), []).append(float(value))
    groups = {key: values for key, values in groups.items() if values}
    if not groups:
        return None
    curves, marks, start = [], [], 0
    for i, ((stage, level), values) in enumerate(groups.items()):
        x = np.arange(start, start + len(values))
        relative = np.array(values) / (abs(values[0]) or 1.0)
        label = " · ".join([*([stage] if stage else []), *([] if level is None else [f"level {level}"])]) or "energy"
        colour = LEVELS[i % len(LEVELS)]
        if i:
            marks.append(start - 0.5)
        curves.append(Curve(x, np.minimum.accumulate(relative), colour, label))
        curves.append(Curve(x, relative, colour, line=False, dot=1.2))
        start += len(values)
    low = min(min(v) / (abs(v[0]) or 1.0) for v in groups.values())
    margin = 1 - low + 0.02
    axes = Axes(
        "evaluation", "energy / first of its level", low - 0.05 * margin, 1.0 + 0.12 * margin, marks=tuple(marks)
    )
    return chart(curves, axes)


def field_map(
    values: NDArray[Any],
    canvas: Grid,
    label: str,
    cmap: str,
    limits: tuple[float, float],
    centre: float | None = None,
    folds: NDArray[np.bool_] | None = None,
) -> str:
    """A scalar field ``[h, w]`` on ``canvas`` with a colour bar, as SVG; NaN stays blank, places where the map folds are red.

    Args:
        values: the field.
        canvas: grid of its pixels.
        label: what the colour bar says.
        cmap: name of a colour map: viridis, cividis, magma_r, RdBu_r.
        limits: values of the first and the last colour.
        centre: value of the middle colour, between the limits; halfway where None.
        folds: where the map folds, ``[h, w]``.
    """
    low, high = limits
    middle = (low + high) / 2 if centre is None else centre
    known = [min(low, middle - 1e-12), middle, max(high, middle + 1e-12)]
    share = np.interp(values, known, [0.0, 0.5, 1.0])
    painted = coloured(np.where(np.isfinite(values), share, np.nan), cmap)
    if folds is not None and folds.any():
        wide = folds.copy()
        for axis, by in ((0, 1), (0, -1), (1, 1), (1, -1)):
            wide |= np.roll(folds, by, axis) if folds.shape[axis] > 100 else folds
        painted[wide] = FOLD
    width, height = _size(canvas)
    parts = [
        f'<rect width="{width}" height="{height}" rx="3" fill="#eef1f4"/>',
        _raster(painted, (0, 0, width, height), "png", sharp=True),
    ]
    bar, top, bottom = width + 14, 8.0, height - 8.0
    stops = "".join(f'<stop offset="{i / 16:.4f}" stop-color="#{c}"/>' for i, c in enumerate(_MAPS[cmap].split()))
    parts.append(f'<linearGradient id="g" x1="0" y1="1" x2="0" y2="0">{stops}</linearGradient>')
    parts.append(f'<rect x="{bar}" y="{top}" width="14" height="{bottom - top}" fill="url(#g)"/>')
    for value in ticks(low, high):
        y = bottom - float(np.interp(value, known, [0.0, 0.5, 1.0])) * (bottom - top)
        parts.append(_text(bar + 19, y + 4, number(value), "start"))
    x, y = bar + 70, (top + bottom) / 2
    parts.append(_text(x, y, label, "middle", f' transform="rotate(-90 {x} {y})"'))
    return svg(width + 92, height, "".join(parts))


def _size(canvas: Grid, width: float = 400.0) -> tuple[float, float]:
    """Width and height in px of a map of ``canvas``."""
    height, across = canvas.extent[-2:]
    return width, float(np.clip(width * height / across, 120.0, 700.0))


def grid_map(picture: Array, canvas: Grid, lines: list[NDArray[np.float64]]) -> str:
    """Lines ``[n, 2]`` (y, x) that are straight in the moving space, over the warped picture ``[h, w, 3]``, as SVG."""
    width, height = _size(canvas, 480.0)
    (y, x), (sy, sx) = canvas.origin[-2:], canvas.spacing[-2:]
    extent = np.array(canvas.extent[-2:])
    step = max(1, max(picture.shape[:2]) // 600)
    parts = [_raster(0.35 + 0.65 * picture[::step, ::step], (0, 0, width, height), "jpeg", sharp=False)]
    for line in lines:
        at = (line - np.array([y - sy / 2, x - sx / 2])) / extent * np.array([height, width])
        at = at[np.isfinite(at).all(axis=1)].clip(-1e4, 1e4)
        run = " ".join(f"{b:.1f},{a:.1f}" for a, b in at)
        parts.append(f'<polyline points="{run}" fill="none" stroke="#1f5fae" stroke-width="1.2" opacity=".9"/>')
    return svg(width, height, "".join(parts))


def arrow_map(picture: Array, canvas: Grid, start: NDArray[np.float64], end: NDArray[np.float64]) -> str:
    """Numbered arrows between positions ``[N, 2]`` (y, x) over a picture ``[h, w, 3]`` of ``canvas``, as SVG."""
    width, height = _size(canvas, 640.0)
    (y, x), (sy, sx) = canvas.origin[-2:], canvas.spacing[-2:]
    low, scale = np.array([y - sy / 2, x - sx / 2]), np.array([height, width]) / np.array(canvas.extent[-2:])
    step = max(1, max(picture.shape[:2]) // 700)
    parts = [_raster(0.45 + 0.55 * picture[::step, ::step], (0, 0, width, height), "jpeg", sharp=False)]
    for i, (a, b) in enumerate(zip((start - low) * scale, (end - low) * scale, strict=True)):
        if not np.isfinite([*a, *b]).all():
            continue
        (ay, ax), (by, bx) = a.clip(-1e4, 1e4), b.clip(-1e4, 1e4)
        parts.append(
            f'<path d="M{ax:.1f} {ay:.1f}L{bx:.1f} {by:.1f}" stroke="#c2410c" stroke-width="2"/>'
            f'<circle cx="{ax:.1f}" cy="{ay:.1f}" r="4" fill="none" stroke="#1f5fae" stroke-width="2"/>'
            f'<circle cx="{bx:.1f}" cy="{by:.1f}" r="2.5" fill="#c2410c"/>'
            f'<text x="{min(ax + 6, width - 24):.1f}" y="{ay - 5 if ay > 16 else ay + 16:.1f}" '
            f'style="fill:#1c2530;font-weight:700">{i + 1}</text>'
        )
    return svg(width, height, "".join(parts))
