"""Point sets drawn as dots, before and after registration; volumes are seen from two sides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from ..data import Grid, PointSet
from ..maps.base import Transform
from ..maps.resample import move_points
from .figures import INK, RULE, STYLE, figure_of, plain_axes, png_of
from .pictures import Array

FIXED, MOVING = "#0072b2", "#e69f00"
"""Colours of the two sides: blue and orange of Okabe & Ito 2008, distinguishable with any colour vision."""
NOTE = "fixed in blue, moving in orange, on top"
MOST_DOTS = 30_000
"""Largest number of dots drawn per side: more are not visible at the size of the picture."""


@dataclass(frozen=True)
class Cloud:
    """The dots of one side.

    Args:
        coords: positions ``[N, D]``, finite; a sample where there are more than `MOST_DOTS`.
        total: number of points of which the dots are a sample.
        name: name in the key.
        colour: colour of the dots.
        unit: unit of the positions.
    """

    coords: NDArray[np.float64]
    total: int
    name: str
    colour: str
    unit: str

    @classmethod
    def of(cls, points: PointSet, name: str, colour: str) -> Cloud:
        """The dots of a point set."""
        coords = points.coords.numpy()
        coords = coords[np.isfinite(coords).all(axis=1)]
        total = len(coords)
        if total > MOST_DOTS:
            coords = coords[np.sort(np.random.default_rng(0).choice(total, MOST_DOTS, replace=False))]
        return cls(coords, total, name, colour, points.unit)

    def moved(self, transform: Transform, unit: str) -> Cloud:
        """The dots mapped by ``transform`` into a space whose unit is ``unit``; positions that it maps to NaN are dropped."""
        carried = move_points(PointSet(torch.from_numpy(self.coords), self.unit), transform).coords.numpy()
        keep = np.isfinite(carried).all(axis=1)
        return Cloud(carried[keep], self.total, self.name, self.colour, unit)

    @property
    def remark(self) -> str:
        """A note on how many points were left out; ``""`` where none were."""
        return f"{self.name}: {MOST_DOTS:,} of {self.total:,} points" if self.total > MOST_DOTS else ""


def remarks(*clouds: Cloud) -> str:
    """The notes of several clouds on points that were left out, to be added to a caption."""
    said = ", ".join(c.remark for c in clouds if c.remark)
    return f" ({said}, drawn by chance)" if said else ""


def picture(
    clouds: tuple[Cloud, ...], max_px: int, window: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
) -> bytes:
    """The dots of one or two sides as a PNG, at most ``max_px`` pixels along the longer side.

    Args:
        clouds: the dots, in one unit, drawn in this order.
        max_px: largest number of pixels along the longer side.
        window: lowest and highest corner ``[2]`` (y, x) to show; everything where None.
    """
    ndim = clouds[0].coords.shape[1]
    views = (
        ((1, 0),) if ndim == 2 else ((2, 1),) if window is not None else ((2, 1), (2, 0))
    )  # (axis across, axis down)
    everything = np.concatenate([c.coords for c in clouds])
    low, high = everything.min(axis=0), everything.max(axis=0)
    if window is not None:
        low, high = low.copy(), high.copy()
        low[-2:], high[-2:] = window
    span = np.maximum(high - low, 1e-9 * max(float((high - low).max()), 1e-300))
    margin = 0.02 * float(span.max()) if window is None else 0.0
    low, high = low - margin, high + margin
    span = high - low
    wide, tall = [float(span[v[0]]) for v in views], [float(span[v[1]]) for v in views]
    scale = min(max_px / 150 / sum(wide), max_px / 150 / max(tall))  # inches per unit
    frame = (0.6 * len(views), 0.75 if len(clouds) > 1 else 0.5) if window is None else (0.0, 0.0)
    width, height = max(sum(wide) * scale, 1.6) + frame[0], max(max(tall) * scale, 1.2) + frame[1]
    figure = figure_of(width, height)
    panels = figure.subplots(1, len(views), squeeze=False, width_ratios=[max(w, 0.15 * sum(wide)) for w in wide])[0]
    for axes, (across, down) in zip(panels, views, strict=True):
        for number, cloud in enumerate(clouds):
            shown = cloud.coords
            if window is not None:
                shown = shown[((shown[:, -2:] >= low[-2:]) & (shown[:, -2:] <= high[-2:])).all(axis=1)]
            axes.scatter(
                shown[:, across], shown[:, down], color=cloud.colour, linewidths=0,
                s=_area(len(shown), width, height, number == len(clouds) - 1 and number > 0),
            )  # fmt: skip
        axes.set_xlim(low[across], high[across])
        axes.set_ylim(high[down], low[down])  # rows count downwards
        axes.set_aspect("equal", adjustable="box")
        if window is not None:
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_color(RULE)
            continue
        plain_axes(axes)
        names = "zyx"[3 - ndim :]
        axes.set_xlabel(f"{names[across]} ({clouds[0].unit})", **STYLE)
        axes.set_ylabel(f"{names[down]} ({clouds[0].unit})", **STYLE)
    if len(clouds) > 1 and window is None:
        key = [Line2D([], [], marker="o", linestyle="", color=c.colour, markersize=4, label=c.name) for c in clouds]
        figure.legend(
            handles=key, loc="outside upper left", ncols=2, frameon=False, fontsize=8, labelcolor=INK, handletextpad=0.2
        )
    return png_of(figure)


def _area(count: int, width: float, height: float, on_top: bool) -> float:
    """Area of a dot in pt²: a quarter of the space per dot, within bounds; smaller for dots drawn on top of another side."""
    room = 72**2 * width * height / max(count, 1)
    area = float(np.clip(0.25 * room, 0.6, 24.0))
    return area * (0.4 if on_top else 1.0)


def places(
    clouds: tuple[Cloud, ...], count: int, share: float = 0.2
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Windows (y, x) of ``share`` of the first cloud's extent, where all clouds have most points, apart from each other."""
    first = clouds[0].coords[:, -2:]
    low, high = first.min(axis=0), first.max(axis=0)
    size = share * np.maximum(high - low, 0.2 * float((high - low).max()))
    bins = [np.linspace(a - s / 2, b + s / 2, 41) for a, b, s in zip(low, high, size, strict=True)]
    score = np.ones((40, 40))
    for cloud in clouds:
        counts = np.histogram2d(cloud.coords[:, -2], cloud.coords[:, -1], bins=bins)[0]
        reach = [max(1, round(float(s / (b[1] - b[0])))) for s, b in zip(size, bins, strict=True)]
        padded = np.pad(counts, [(r // 2, r - r // 2) for r in reach]).cumsum(axis=0).cumsum(axis=1)
        padded = np.pad(padded, ((1, 0), (1, 0)))
        r, s = reach
        box = padded[r:, s:] - padded[:-r, s:] - padded[r:, :-s] + padded[:-r, :-s]
        score = score * np.sqrt(box[:40, :40])
    found = []
    middles = [(b[1:] + b[:-1]) / 2 for b in bins]
    for _ in range(count):
        i, j = np.unravel_index(int(score.argmax()), score.shape)
        if score[i, j] <= 0:
            break
        middle = np.array([middles[0][i], middles[1][j]])
        found.append((middle - size / 2, middle + size / 2))
        near = [np.abs(m - c) < s for m, c, s in zip(middles, middle, size, strict=True)]
        score[np.ix_(*near)] = 0
    return found


def raster(cloud: Cloud, canvas: Grid) -> Array:
    """The dots in grey on white, 2 × 2 pixels each, ``[h, w, 3]``."""
    out = np.ones((*canvas.shape[-2:], 3), dtype=np.float32)
    index = np.rint((cloud.coords[:, -2:] - np.array(canvas.origin[-2:])) / np.array(canvas.spacing[-2:])).astype(
        np.int64
    )
    for shift in ((0, 0), (0, 1), (1, 0), (1, 1)):
        at = index + np.array(shift)
        at = at[((at >= 0) & (at < np.array(out.shape[:2]))).all(axis=1)]
        out[at[:, 0], at[:, 1]] = 0.45
    return out
