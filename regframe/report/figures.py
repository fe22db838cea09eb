"""The report's drawings with axes and colour bars, as PNG bytes; uses Figure objects only, no global state of matplotlib."""

from __future__ import annotations

import io
import math
import warnings
from typing import Any

import numpy as np
from matplotlib import font_manager  # noqa: F401 - loads the fonts once, before figures are timed
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ..data import Grid
from .pictures import Array

INK = "#1c2530"
MUTED = "#66717f"
RULE = "#dfe4ea"
LEVELS = ["#3b6fb6", "#e08a1e", "#2e9e6b", "#b34a8c", "#7a62c9", "#c2503f", "#4aa3b8", "#8a8f3c"]
STYLE: dict[str, Any] = {"fontsize": 9, "color": MUTED}


def figure_of(width: float, height: float) -> Figure:
    """A figure of ``width`` × ``height`` inches at 150 dpi."""
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def png_of(figure: Figure) -> bytes:
    """A figure of `figure_of` as PNG bytes; drawn once, where ``figure.savefig`` draws all twice to lay it out."""
    buffer, canvas = io.BytesIO(), figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hide matplotlib's warnings on layout and missing glyphs
        canvas.print_png(buffer)  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def plain_axes(axes: Any) -> None:
    """Give axes two faint lines and small numbers."""
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(RULE)
    axes.tick_params(colors=MUTED, labelsize=8, length=3)


def _map_size(extent: tuple[float, ...]) -> tuple[float, float]:
    """Figure size in inches for a map of this extent (height, width), with space for a colour bar."""
    ratio = extent[0] / extent[1]
    width = 4.6
    return width, float(np.clip((width - 0.85) * ratio + 0.2, 1.8, 7.0))


def _edges(canvas: Grid) -> tuple[float, float, float, float]:
    """The ``extent`` argument of matplotlib for an image on ``canvas``: left, right, bottom, top."""
    (y, x), (h, w) = canvas.origin[-2:], canvas.shape[-2:]
    sy, sx = canvas.spacing[-2:]
    return x - sx / 2, x + sx * (w - 0.5), y + sy * (h - 0.5), y - sy / 2


def energy(history: list[dict[str, Any]]) -> bytes | None:
    """Plot of the energy per evaluation, a colour per stage and level, each relative to its first value; None without history."""
    groups: dict[tuple[str, Any], list[float]] = {}
    for line in history:
        value = line.get("energy", line.get("loss"))
        if isinstance(value, (int, float)) and math.isfinite(value):
            groups.setdefault((str(line.get("stage", "")), line.get("level")), []).append(float(value))
    groups = {key: values for key, values in groups.items() if values}
    if not groups:
        return None
    figure = figure_of(8.2, 3.0)
    axes = figure.add_subplot()
    plain_axes(axes)
    start = 0
    for i, ((stage, level), values) in enumerate(groups.items()):
        x = np.arange(start, start + len(values))
        reference = abs(values[0]) or 1.0
        relative = np.array(values) / reference
        label = " · ".join([*([stage] if stage else []), *([] if level is None else [f"level {level}"])]) or "energy"
        colour = LEVELS[i % len(LEVELS)]
        if i:
            axes.axvline(start - 0.5, color=RULE, linewidth=0.8, zorder=0)
        axes.plot(x, np.minimum.accumulate(relative), color=colour, linewidth=1.8, label=label)
        axes.scatter(x, relative, s=5, color=colour, alpha=0.45, linewidths=0)
        start += len(values)
    lows = [min(v) / (abs(v[0]) or 1.0) for v in groups.values()]
    axes.set_ylim(min(lows) - 0.05 * (1 - min(lows) + 0.02), 1.0 + 0.12 * (1 - min(lows) + 0.02))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("evaluation", **STYLE)
    axes.set_ylabel("energy / first of its level", **STYLE)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    columns = 1 if len(groups) <= 5 else 2
    axes.legend(
        fontsize=7.5, frameon=False, labelcolor=INK, loc="upper left", bbox_to_anchor=(1.0, 1.02), ncols=columns
    )
    return png_of(figure)


def field_map(
    values: NDArray[Any],
    canvas: Grid,
    label: str,
    cmap: str,
    limits: tuple[float, float],
    centre: float | None = None,
    folds: NDArray[np.bool_] | None = None,
) -> bytes:
    """A scalar field ``[h, w]`` on ``canvas`` with a colour bar; NaN stays blank, places where the map folds are red dots."""
    figure = figure_of(*_map_size(canvas.extent[-2:]))
    axes = figure.add_subplot()
    low, high = limits
    options: dict[str, Any] = {"vmin": low, "vmax": high}
    if centre is not None:
        options = {"norm": TwoSlopeNorm(centre, min(low, centre - 1e-6), max(high, centre + 1e-6))}
    axes.set_facecolor("#eef1f4")
    shown = axes.imshow(
        np.ma.masked_invalid(values), cmap=cmap, extent=_edges(canvas), interpolation="nearest", **options
    )
    if folds is not None and folds.any():
        rows, cols = np.nonzero(folds)
        y = canvas.origin[-2] + canvas.spacing[-2] * rows
        x = canvas.origin[-1] + canvas.spacing[-1] * cols
        axes.scatter(x, y, s=6, color="#d11a2a", linewidths=0)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(RULE)
    bar = figure.colorbar(shown, ax=axes, fraction=0.05, pad=0.02)
    bar.set_label(label, **STYLE)
    bar.ax.tick_params(colors=MUTED, labelsize=8)
    bar.outline.set_visible(False)
    return png_of(figure)


def grid_map(picture: Array, canvas: Grid, lines: list[NDArray[np.float64]]) -> bytes:
    """Lines ``[n, 2]`` (y, x) that are straight in the moving space, drawn over the warped picture ``[h, w, 3]``."""
    height, width = canvas.extent[-2:]
    figure = figure_of(4.6, float(np.clip(4.6 * height / width, 1.8, 7.0)))
    axes = figure.add_axes((0, 0, 1, 1))
    figure.set_layout_engine("none")
    left, right, bottom, top = _edges(canvas)
    axes.imshow(0.35 + 0.65 * picture, extent=(left, right, bottom, top), interpolation="bilinear")
    axes.add_collection(LineCollection([line[:, ::-1] for line in lines], colors="#1f5fae", linewidths=0.9, alpha=0.9))
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    axes.set_axis_off()
    return png_of(figure)
