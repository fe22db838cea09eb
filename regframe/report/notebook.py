"""A result in a notebook: both sides over each other in a widget with swipe, flicker and opacity (extra ``notebook``)."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets
from PIL import Image as Picture

from ..data import Image, PointSet
from ..result import Result
from . import pictures

_MOST = 1200
"""Pixels along the longer side of the widest picture that is made: more than a notebook's column shows, 3 MB as PNG."""


class Viewer(anywidget.AnyWidget):  # type: ignore[misc]
    """Two pictures of one canvas, the moving side over the fixed one.

    Its traits may be read and set from Python: ``mode``, ``"swipe"``, ``"flicker"`` or ``"opacity"``, and ``amount``, 0 … 100,
    the place of the edge from the left, the pace, or how much of the moving side shows.
    """

    _esm = Path(__file__).parent / "notebook.js"
    fixed = traitlets.Bytes(help="the fixed side as PNG").tag(sync=True)
    moving = traitlets.Bytes(help="the moving side carried to the fixed one, as PNG").tag(sync=True)
    width = traitlets.Int(help="width of the pictures, in pixels").tag(sync=True)
    headline = traitlets.Unicode(help="the verdict in words").tag(sync=True)
    caption = traitlets.Unicode(help="what is shown").tag(sync=True)
    mode = traitlets.Enum(["swipe", "flicker", "opacity"], "swipe").tag(sync=True)
    amount = traitlets.Int(50, min=0, max=100).tag(sync=True)


def viewer(result: Result, fixed: Image | PointSet, moving: Image | PointSet, size: int) -> Viewer:
    """The widget of a result.

    Args:
        result: the alignment.
        fixed: the fixed data.
        moving: the moving data, as they came.
        size: pixels along the longer side of the pictures.

    Raises ValueError for a size that is none.
    """
    if not 16 <= size <= _MOST:
        raise ValueError(f"wanted a size from 16 to {_MOST} pixels, got {size}")
    canvas = pictures.canvas_of(result.fixed_grid, size)
    still = pictures.View.of(canvas, pictures.identity_map(result.fixed_grid, result.fixed_grid))
    carried = pictures.View.of(canvas, result.transform)
    made: dict[str, Any] = {}
    for name, data, view in (("fixed", fixed, still), ("moving", moving, carried)):
        side = pictures.Side.of(pictures.mosaic(data) if isinstance(data, Image) and data.labels else data, size)
        colours = side.rgb(side.picture(view))
        if isinstance(data, Image):
            colours = np.where(view.covered(data.grid)[..., None], colours, 1.0)
        made[name] = _png(colours)
    width = canvas.shape[-1]
    middle = ", its middle plane" if result.fixed_grid.ndim == 3 and not result.section else ""
    caption = f"{fixed.name}{middle}, and over it {moving.name}, carried by the map"
    return Viewer(width=width, headline=result.headline, caption=caption, **made)


def _png(colours: np.ndarray[Any, Any]) -> bytes:
    """Colours ``[h, w, 3]``, 0 … 1, as PNG."""
    out = io.BytesIO()
    Picture.fromarray(np.rint(np.clip(colours, 0, 1) * 255).astype(np.uint8)).save(out, "PNG", compress_level=3)
    return out.getvalue()
