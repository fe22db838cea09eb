"""Point sets drawn as dots, before and after registration; volumes are seen from two sides."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch
from numpy.typing import NDArray

from ..data import Grid, PointSet
from ..maps.base import Transform
from ..maps.resample import move_points
from . import figures
from .figures import INK, MUTED, RULE
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
    clouds: tuple[Cloud, ...],
    max_px: int,
    window: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
    around: tuple[Cloud, ...] = (),
) -> bytes:
    """The dots of one or two sides as a PNG, at most ``max_px`` pixels along the longer side, not counting the axes.

    Args:
        clouds: the dots, in one unit, drawn in this order.
        max_px: largest number of pixels along the longer side.
        window: lowest and highest corner ``[2]`` (y, x) to show; everything where None.
        around: clouds whose extent is shown in place of that of ``clouds``.
    """
    ndim = clouds[0].coords.shape[1]
    views = (
        ((1, 0),) if ndim == 2 else ((2, 1),) if window is not None else ((2, 1), (2, 0))
    )  # (axis across, axis down)
    everything = np.concatenate([c.coords for c in around or clouds])
    low, high = everything.min(axis=0), everything.max(axis=0)
    if window is not None:
        low, high = low.copy(), high.copy()
        low[-2:], high[-2:] = window
    span = np.maximum(high - low, 1e-9 * max(float((high - low).max()), 1e-300))
    margin = 0.02 * float(span.max()) if window is None else 0.0
    low, high = low - margin, high + margin
    span = high - low
    wide, tall = [float(span[v[0]]) for v in views], [float(span[v[1]]) for v in views]
    scale = min(max_px / sum(wide), max_px / max(tall))  # px per unit
    panels = []
    for view in views:
        size = max(round(float(span[view[1]]) * scale), 24), max(round(float(span[view[0]]) * scale), 24)
        panel = np.ones((*size, 3), dtype=np.float32)
        for number, cloud in enumerate(clouds):
            shown = cloud.coords
            if window is not None:
                shown = shown[((shown[:, -2:] >= low[-2:]) & (shown[:, -2:] <= high[-2:])).all(axis=1)]
            across, down = view
            at = (shown[:, [down, across]] - low[[down, across]]) * scale
            on_top = number == len(clouds) - 1 and number > 0
            _stamp(panel, at, _radius(len(shown), max_px * max_px, on_top), cloud.colour)
        panels.append((panel, view))
    if window is not None:
        return _framed(panels[0][0])
    return _with_axes(panels, (low, scale), clouds, ndim)


def _radius(count: int, room: float, on_top: bool) -> float:
    """Radius of a dot in px: of a quarter of the space per dot, within bounds; smaller for dots on top of another side."""
    area = float(np.clip(0.25 * room / max(count, 1), 3.0, 100.0))
    return math.sqrt(area * (0.4 if on_top else 1.0) / math.pi)


def _stamp(panel: Array, at: NDArray[np.float64], radius: float, colour: str) -> None:
    """Draw round dots with soft rims at positions ``[N, 2]`` (y, x) in px into ``panel`` ``[h, w, 3]``."""
    height, width = panel.shape[:2]
    cover = np.zeros((height, width), dtype=np.float32)
    nearest = np.floor(at).astype(np.int64)
    reach = math.ceil(radius + 0.5)
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            index = nearest + np.array([dy, dx])
            away = np.hypot(*(index + 0.5 - at).T)
            part = np.clip(radius + 0.5 - away, 0, 1)
            keep = (part > 0) & ((index >= 0) & (index < np.array([height, width]))).all(axis=1)
            np.maximum.at(cover, (index[keep, 0], index[keep, 1]), part[keep].astype(np.float32))
    paint = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)], dtype=np.float32)
    panel += cover[..., None] * (paint - panel)


def _bytes(picture: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _drawn(panel: Array) -> PIL.Image.Image:
    return PIL.Image.fromarray((np.clip(panel, 0, 1) * 255 + 0.5).astype(np.uint8))


def _framed(panel: Array) -> bytes:
    picture = _drawn(panel)
    pen = PIL.ImageDraw.Draw(picture)
    pen.rectangle((0, 0, picture.width - 1, picture.height - 1), outline=RULE)
    return _bytes(picture)


def _with_axes(
    panels: list[tuple[Array, tuple[int, int]]],
    frame: tuple[NDArray[np.float64], float],
    clouds: tuple[Cloud, ...],
    ndim: int,
) -> bytes:
    """The panels side by side, with numbers beside them, names of the axes, and a key where there are two sides."""
    low, scale = frame
    size = max(
        13, round(max(max(panel.shape[:2]) for panel, _ in panels) / 43)
    )  # px; the page shows large pictures at half size
    left, gap, bottom, top = 5 * size, 2 * size, 3 * size + 6, 2 * size + 4 if len(clouds) > 1 else size
    width = sum(panel.shape[1] + left for panel, _ in panels) + gap
    height = top + max(panel.shape[0] for panel, _ in panels) + bottom
    picture = PIL.Image.new("RGB", (max(width, 260), height), "white")
    pen = PIL.ImageDraw.Draw(picture)
    font = PIL.ImageFont.load_default(size)
    names = "zyx"[3 - ndim :]
    unit = clouds[0].unit.replace("µ", "u")  # the font that Pillow carries has no µ
    x = left
    for panel, (across, down) in panels:
        tall, wide = panel.shape[:2]
        picture.paste(_drawn(panel), (x, top))
        pen.line((x - 1, top, x - 1, top + tall, x + wide, top + tall), fill=RULE)
        for value in figures.ticks(float(low[across]), float(low[across]) + wide / scale, max(2, wide // (8 * size))):
            at = x + (value - float(low[across])) * scale
            pen.text((at, top + tall + 4), f"{value:.6g}", fill=MUTED, font=font, anchor="mt")
        for value in figures.ticks(float(low[down]), float(low[down]) + tall / scale, max(2, tall // (6 * size))):
            at = top + (value - float(low[down])) * scale
            pen.text((x - 6, at), f"{value:.6g}", fill=MUTED, font=font, anchor="rm")
        pen.text(
            (x + wide / 2, top + tall + size + 10), f"{names[across]} ({unit})", fill=MUTED, font=font, anchor="mt"
        )
        pen.text((x - left + 4, top - 2), names[down], fill=MUTED, font=font, anchor="lt")
        x += wide + left
    if len(clouds) > 1:
        x = left
        for cloud in clouds:
            pen.ellipse((x, size // 2, x + size // 1.6, size // 2 + size // 1.6), fill=cloud.colour)
            pen.text((x + size, 0.8 * size), cloud.name, fill=INK, font=font, anchor="lm")
            x += 8 * size
    return _bytes(picture)


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
