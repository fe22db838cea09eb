"""The report page of a group: the matrix of its pairs, the images one after another in one place, drift and residual of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data import Grid, Image
from ..group.group import Group
from ..group.pairs import Pair
from ..maps.affine import Affine
from ..maps.resample import resample
from . import figures
from .page import Picture, fill, jpeg, svg_uri
from .pictures import Array, Look, canvas_of, look_of, overlay, plane_of, shrink
from .words import quoted, small

_HEADLINES = {
    "pass": ("Confirmed", "Every image has its place."),
    "warn": ("Not confirmed throughout", "Look at the images named below before you use them."),
    "fail": ("No evidence", "Most images have no place. Nothing was thrown away."),
}
CELL = 96
"""Pixels along the longer side of a picture in the matrix of pairs."""
FLICKER = 560
"""Pixels along the longer side of the images that are shown one after another."""
MOST_CELLS = 12
"""Images up to which the matrix shows an overlay of every pair; of more it shows verdicts alone."""
MOST_FRAMES = 24
"""Images at most that are shown one after another; of more every second, third … one."""
LOSSES = 220
"""Pixels along the longer side of the pictures of lost tissue."""
LOST_COLOUR = np.array([0.85, 0.15, 0.1], dtype=np.float32)
"""Colour of lost tissue, red, green and blue."""
SECONDS = 0.9
"""Seconds for which each is shown: long enough to look at a place, short enough to see it jump."""


def write(group: Group, images: Sequence[Image], path: Path, out: Path = Path("OUT")) -> None:
    """Write the report of ``group`` as one HTML file.

    ``images`` are those that were registered, in the group's order; ``out`` is the group's folder, for the lines that the page
    shows.
    """
    path.write_text(render(group, images, out), encoding="utf-8")


def render(group: Group, images: Sequence[Image], out: Path = Path("OUT")) -> str:
    """The page as text; ValueError for another number of images than the group has."""
    if len(images) != len(group.names):
        raise ValueError(
            f"wanted {len(group.names)} images, got {len(images)}; give one for each, in the group's order"
        )
    title, summary = _HEADLINES[group.verdict]
    m = group.metrics
    cards = [("images placed", f"{m['n_placed']} of {m['n_images']}"), ("pairs tried", str(len(m["pairs"])))]
    if m["residual_px"] is not None:
        cards.append(("pairs disagree by, median", f"{small(m['residual_px'])} px"))
    if m["drift_px"]:
        cards.append(("moved, median", f"{m['drift_px']['median']:.3g} px"))
        cards.append(("moved, at most", f"{m['drift_px']['max']:.3g} px"))
    shown = _Shown(group, images)
    frames = shown.frames()
    return fill(
        "group.html",
        verdict=group.verdict,
        title=title,
        summary=summary,
        reasons=group.reasons,
        cards=cards,
        names=group.names,
        matrix=shown.matrix(),
        frames=frames,
        losses=shown.losses(),
        period=f"{SECONDS * max(len(frames), 1):.3g}",
        on=f"{100 / max(len(frames), 1):.4g}",
        drift=Picture(
            "Drift",
            svg_uri(_drift(m)),
            "How far each image lay from its place (blue), how much its map bends (orange), and by how much its pairs disagree "
            "(green).",
        ),
        images=[_row(image) for image in m["images"]],
        out=quoted(out),
        reference=group.names[group.reference],
        space=group.names[group.reference] if group.template is None else "the mean of all",
        canvas=" × ".join(str(n) for n in images[group.reference].grid.shape),
    )


class _Shown:
    """The pictures of a group, all in the look of each image by itself.

    Args:
        group: the group.
        images: its images.
    """

    def __init__(self, group: Group, images: Sequence[Image]) -> None:
        self.group, self.images = group, images
        self.looks = [look_of(shrink(image, max(image.grid.extent) / FLICKER)) for image in images]

    def matrix(self) -> list[list[dict[str, str]]]:
        """The cells of the matrix: row the image that stayed, column the one brought onto it; on the diagonal the images."""
        by_pair = {(pair.fixed, pair.moving): pair for pair in self.group.pairs}
        used = {(pair["fixed"], pair["moving"]): pair for pair in self.group.metrics["pairs"]}
        pictured = len(self.images) <= MOST_CELLS
        rows = []
        for a, name in enumerate(self.group.names):
            row = []
            for b, other in enumerate(self.group.names):
                cell = {"uri": "", "verdict": "", "said": "", "title": ""}
                if a == b:
                    cell |= {
                        "uri": self._alone(a),
                        "verdict": self.group.metrics["images"][a]["verdict"],
                        "title": name,
                    }
                elif (a, b) in by_pair:
                    told = used[name, other]
                    said = "left out" if not told["used"] and told["verdict"] != "fail" else f"{told['confidence']:.0%}"
                    cell |= {
                        "verdict": told["verdict"],
                        "said": said,
                        "title": f"{other} on {name}: {told['reasons'][0] if told['reasons'] else ''}",
                    }
                    cell["uri"] = self._pair(by_pair[a, b]) if pictured else ""
                row.append(cell)
            rows.append(row)
        return rows

    def _alone(self, k: int) -> str:
        small = shrink(self.images[k], max(self.images[k].grid.extent) / CELL)
        return jpeg(self.looks[k].rgb(_values(small)), 80)

    def _pair(self, pair: Pair) -> str:
        """The overlay of a pair on the canvas of its fixed image; empty where there is no map."""
        if pair.result is None:
            return ""
        grid = _canvas(self.images[pair.fixed].grid, CELL)
        same = Affine.identity(grid.ndim, grid.unit)
        fixed = _carried(self.images[pair.fixed], same, grid)
        moving = _carried(self.images[pair.moving], pair.result.transform, grid)
        ink = self.looks[pair.fixed].ink(fixed)
        own = self.looks[pair.moving].attuned(moving, ink, np.ones(ink.shape, dtype=np.bool_))
        return jpeg(overlay(ink, own.ink(moving)), 80)

    def frames(self) -> list[dict[str, str]]:
        """Every image with a place, on the canvas of the reference, with the moment at which it is shown."""
        placed = [k for k, result in enumerate(self.group.results) if result is not None]
        placed = placed[:: -(-len(placed) // MOST_FRAMES)]
        grid = _canvas(self.images[self.group.reference].grid, FLICKER)
        out = []
        for _n, k in enumerate(placed):
            picture = _carried(self.images[k], self.group[k].transform, grid)
            look: Look = self.looks[k]
            verdict = self.group.metrics["images"][k]["verdict"]
            frame = {"uri": jpeg(look.rgb(picture), 82), "name": self.group.names[k], "verdict": verdict}
            out.append(frame)
        for name, image in (("mean of all", self.group.template), ("their variance", self.group.variance)):
            if image is not None:
                small = _carried(image, Affine.identity(grid.ndim, grid.unit), grid)
                uri = jpeg(look_of(shrink(image, max(image.grid.extent) / FLICKER)).rgb(small), 82)
                out.append({"uri": uri, "name": name, "verdict": "pass"})
        return [frame | {"delay": f"{SECONDS * n:.3g}"} for n, frame in enumerate(out)]

    def losses(self) -> list[dict[str, str]]:
        """Every image with a place, tissue that it has lost in red; nothing where that is not known."""
        lost, out = self.group.lost, []
        told = {image["name"]: image for image in self.group.metrics["images"]}
        shown = () if lost is None else tuple(enumerate(lost.channels))[1:]
        for n, name in shown[:: -(-len(shown) // MOST_FRAMES) or 1]:
            assert lost is not None
            k = self.group.names.index(name)
            grid = _canvas(lost.grid, LOSSES)
            picture = self.looks[k].rgb(_carried(self.images[k], self.group[k].transform, grid))
            plane = lost.replace(data=lost.data[n : n + 1].to(torch.float32), channels=(name,))
            gone = _carried(plane, Affine.identity(grid.ndim, grid.unit), grid)[0].clip(0, 1)[..., None]
            marked = picture * (1 - 0.6 * gone) + LOST_COLOUR * 0.6 * gone
            share = told[name].get("lost_fraction")
            out.append({"uri": jpeg(marked.astype(np.float32), 80), "name": name, "said": _percent(share)})
        return out


def _canvas(grid: Grid, most: int) -> Grid:
    """The same canvas, of a volume its middle plane, with at most ``most`` pixels along its longer side."""
    if grid.ndim == 3:
        return canvas_of(grid, most)
    return grid.resampled(tuple(s * max(1.0, max(grid.shape) / most) for s in grid.spacing))


def _carried(image: Image, transform: Any, grid: Grid) -> Array:
    """The pixels ``[C, h, w]`` of an image on a canvas, averaged before they are carried."""
    small = shrink(image.replace(weight=None), grid.pixel)
    return _values(resample(small, transform, grid, "auto"))


def _values(image: Image) -> Array:
    return plane_of(image.data)


def _drift(metrics: dict[str, Any]) -> str:
    """Chart of how far each image lay from its place, its bend, and its residual, in pixels."""
    images = metrics["images"]
    curves = []
    for n, name in enumerate(("moved", "bend", "residual")):
        known = [(k, value) for k, image in enumerate(images) if (value := _off(image, name)) is not None]
        if known:
            x, y = zip(*known, strict=True)
            curves.append(figures.Curve(x, [max(v, 1e-3) for v in y], figures.LEVELS[n], name, line=n == 0, dot=3.5))
    values = [value for curve in curves for value in curve.y]
    low, high = (min(values), max(values)) if values else (0.1, 1.0)
    return figures.chart(curves, figures.Axes("image, in order", "px", low / 2, high * 2, log=True))


def _off(image: dict[str, Any], name: str) -> float | None:
    """A distance of an image in pixels; None of the reference, and where it is not known."""
    found = image["residual_px"] if name == "residual" else (image["drift"] or {}).get(f"{name}_px")
    return None if image["reference"] or found is None else float(found)


def _row(image: dict[str, Any]) -> dict[str, str]:
    drift = None if image["reference"] else image["drift"]
    return {
        "name": image["name"],
        "verdict": image["verdict"],
        "channel": image["channel"],
        "way": "reference"
        if image["reference"]
        else "no place"
        if drift is None
        else ", ".join(image["via"]) or "its own pair",
        "moved": "–" if drift is None else f"{drift['moved_px']:.3g}",
        "turn": "–" if drift is None else f"{drift['turn_degrees']:.2f}°",
        "scale": "–" if drift is None else f"{drift['scale']:.4f}",
        "bend": "–" if drift is None else f"{drift['bend_px']:.2g}",
        "residual": small(image["residual_px"]),
        "lost": _percent(image.get("lost_fraction")),
        "reasons": "; ".join(image["reasons"]),
    }


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"
