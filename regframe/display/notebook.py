"""How data and results show themselves in a notebook: small pictures, tables of facts, and axes to draw on.

Everything here takes plain arrays and text; matplotlib is loaded by `axes_of` alone, where something is plotted.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

THUMBNAIL = 240
"""Pixels along the longer side of a picture in a notebook's cell: it stands beside a table of about ten lines."""
MOST_POINTS = 20_000
"""Largest number of points drawn: more are not visible at the size of a notebook's figure."""
SHADES = np.array(
    [[1.0, 1.0, 1.0], [0.9, 0.1, 0.9], [0.1, 0.9, 0.2], [0.2, 0.6, 1.0], [1.0, 0.7, 0.1], [1.0, 0.3, 0.3]],
    dtype=np.float32,
)
"""Colours in which the channels of a fluorescence image are added, from the second shade on; one channel is grey."""


def rgb(pixels: NDArray[Any], labels: bool = False) -> NDArray[np.float32]:
    """Colours ``[h, w, 3]``, 0 … 1, of ``pixels`` ``[h, w, C]``.

    Three channels of bytes are colours. Others are scaled from their 0.5th to their 99.5th percentile and added, each in a
    colour of its own; ids get a colour each, 0 is white. Values that are not finite are black.
    """
    if labels:
        ids = np.nan_to_num(pixels[..., 0].astype(np.float64)).astype(np.int64)
        hue = (ids * 2654435761 % 997 / 997)[..., None] + np.array([0.0, 1 / 3, 2 / 3])
        return np.asarray(
            np.where((ids == 0)[..., None], 1.0, 0.55 + 0.4 * np.cos(2 * math.pi * hue)), dtype=np.float32
        )
    if pixels.shape[-1] in (3, 4) and pixels.dtype == np.uint8:
        return np.asarray(pixels[..., :3], dtype=np.float32) / np.float32(255)
    values = pixels.astype(np.float32)
    step = max(1, math.isqrt(values[..., 0].size // 200_000))
    sample = np.where(np.isfinite(values[::step, ::step]), values[::step, ::step], np.nan).reshape(-1, values.shape[-1])
    known = sample[np.isfinite(sample).all(axis=1)]
    if not len(known):
        return np.zeros((*values.shape[:2], 3), dtype=np.float32)
    low, high = np.percentile(known, 0.5, axis=0), np.percentile(known, 99.5, axis=0)
    scaled = np.clip(np.nan_to_num(values - low) / np.maximum(high - low, 1e-12), 0, 1)
    colours = SHADES[:1] if values.shape[-1] == 1 else SHADES[1 + np.arange(values.shape[-1]) % (len(SHADES) - 1)]
    return np.asarray(np.clip(scaled @ colours, 0, 1), dtype=np.float32)


def thinned(pixels: NDArray[Any], longest: int) -> NDArray[Any]:
    """``pixels`` ``[h, w, …]`` with every n-th row and column, so that the longer side has about ``longest``."""
    step = max(1, -(-max(pixels.shape[:2]) // longest))
    return pixels[step // 2 :: step, step // 2 :: step] if min(pixels.shape[:2]) > step // 2 else pixels[::step, ::step]


def dots(coords: NDArray[np.float64]) -> NDArray[np.float32]:
    """Points ``[N, 2]`` (y, x) in grey on white, the longer side of their box `THUMBNAIL` pixels, ``[h, w, 3]``."""
    known = coords[np.isfinite(coords).all(axis=1)]
    if not len(known):
        return np.ones((8, 8, 3), dtype=np.float32)
    low, span = known.min(axis=0), np.ptp(known, axis=0)
    pixel = max(float(span.max()), 1e-300) / (THUMBNAIL - 8)
    at = np.rint((known - low) / pixel).astype(np.int64) + 3
    height, width = (int(n) for n in at.max(axis=0) + 5)
    counts = np.bincount((at[:, 0] * width + at[:, 1]), minlength=height * width).reshape(height, width)
    around = counts[1:-1, 1:-1] + counts[:-2, 1:-1] + counts[2:, 1:-1] + counts[1:-1, :-2] + counts[1:-1, 2:]
    ink = np.minimum(0.45 + 0.15 * np.pad(around, 1), 0.95) * (np.pad(around, 1) > 0)
    return np.asarray(np.repeat((1 - ink)[..., None], 3, axis=-1), dtype=np.float32)


MOST_DRAWN = 20_000
"""Lines and points that are drawn one by one: a third of a second."""
_MARK = np.array([[-1, 0], [1, 0], [0, 0], [0, -1], [0, 1]], dtype=np.float64)
"""A point as a cross, (y, x), around its middle."""


def ink(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """The amount of signal ``[h, w]``, 0 … 1, of colours ``[h, w, 3]``: dark on a bright border, or bright on a dark one."""
    grey = picture.mean(axis=-1)
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    low, high = np.percentile(grey, (0.5, 99.5))
    scaled = np.clip((grey - low) / max(float(high - low), 1e-6), 0, 1)
    signal = 1 - scaled if np.median(border) > (low + high) / 2 else scaled
    return np.asarray(signal, dtype=np.float32)


def fitted(values: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """``values`` ``[h, w]`` on another number of rows and columns, of each the nearest."""
    rows, columns = ((np.arange(n) + 0.5) * m / n for n, m in zip(shape, values.shape, strict=True))
    return np.asarray(values[np.ix_(rows.astype(np.int64), columns.astype(np.int64))])


def lines(drawn: Sequence[NDArray[np.float64]], window: tuple[float, float, float, float]) -> NDArray[np.float32]:
    """Lines ``[n, 2]`` (y, x) in blue on white, ``[h, w, 3]``; ``window`` as `edges` gives it."""
    import PIL.Image
    import PIL.ImageDraw

    left, right, bottom, top = window
    scale = THUMBNAIL / max(right - left, bottom - top)
    size = max(8, round((right - left) * scale)), max(8, round((bottom - top) * scale))
    picture = PIL.Image.new("RGB", size, "white")
    pen = PIL.ImageDraw.Draw(picture)
    for line in drawn:
        at = (line[:, ::-1] - np.array([left, top])) * scale
        pen.line([(float(x), float(y)) for x, y in at[np.isfinite(at).all(axis=1)].clip(-1e4, 1e4)], fill="#1f5fae")
    return np.asarray(picture, dtype=np.float32) / np.float32(255)


def outlines(drawn: Sequence[NDArray[np.float64]], points: NDArray[np.float64]) -> NDArray[np.float32]:
    """Lines ``[n, 2]`` (y, x) and points ``[N, 2]`` in blue on white, the longer side of their box `THUMBNAIL` pixels.

    Of more than `MOST_DRAWN` the vertices alone, as `dots` draws them.
    """
    whole = np.concatenate([*drawn, points.reshape(-1, 2)])
    if len(drawn) + len(points) > MOST_DRAWN:
        return dots(whole)
    known = whole[np.isfinite(whole).all(axis=1)]
    if not len(known):
        return np.ones((8, 8, 3), dtype=np.float32)
    low, high = known.min(axis=0), known.max(axis=0)
    margin = 0.04 * max(float((high - low).max()), 1e-300)
    marks = [at + 0.4 * margin * _MARK for at in points]
    (top, left), (bottom, right) = low - margin, high + margin
    return lines([*drawn, *marks], (left, right, bottom, top))


def uri(picture: NDArray[Any]) -> str:
    """A picture ``[h, w, 3]``, 0 … 1, as the data URI of a PNG."""
    import PIL.Image

    buffer = io.BytesIO()
    PIL.Image.fromarray((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def table(title: str, facts: Sequence[tuple[str, str]], picture: NDArray[Any] | None = None) -> str:
    """The HTML of a notebook's cell: a title, facts by name, and a picture ``[h, w, 3]``; all text is escaped."""
    lines = "".join(
        f"<tr><td style='text-align:left;opacity:.7'>{html.escape(name)}</td>"
        f"<td style='text-align:left;overflow-wrap:anywhere'>{html.escape(value)}</td></tr>"
        for name, value in facts
    )
    shown = "" if picture is None else f"<img src='{uri(picture)}' alt='' style='max-width:{THUMBNAIL}px'>"
    return (
        "<div style='display:flex;flex-wrap:wrap;gap:16px;align-items:flex-start'>"
        f"{shown}<div><b>{html.escape(title)}</b><table>{lines}</table></div></div>"
    )


def axes_of(axes: Any | None, title: str, unit: str) -> Any:
    """``axes``, or new ones where None, with a title and names of the axes in ``unit``; rows count downwards."""
    if axes is None:
        import matplotlib.pyplot as plt

        axes = plt.subplots(layout="constrained")[1]
    axes.set_title(title)
    axes.set_xlabel(f"x ({unit})")
    axes.set_ylabel(f"y ({unit})")
    return axes


def edges(shape: Sequence[int], spacing: Sequence[float], origin: Sequence[float]) -> tuple[float, float, float, float]:
    """matplotlib's ``extent`` of pixels whose last two axes are y and x: left, right, bottom, top, rows counting downwards."""
    (y, x), (sy, sx), (h, w) = origin[-2:], spacing[-2:], shape[-2:]
    return x - sx / 2, x + sx * (w - 0.5), y + sy * (h - 0.5), y - sy / 2
