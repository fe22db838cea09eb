"""`register_mosaic`: places fields of view that overlap at their borders on one canvas."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch

from .. import verdict
from ..config import Config
from ..contracts import Progress
from ..data import Grid
from ..display.bars import shown
from ..group.channels import Wanted
from ..group.judge import nothing
from ..maps.affine import Affine
from ..result import Result
from ..stack.posegraph import carry
from ..verdict import Finding
from ..versions import versions
from . import fields
from .fields import View
from .links import Finder, Overlap
from .mosaic import Mosaic
from .overlap import Floats
from .solve import SURE, Solved, solve

Transform = Literal["rigid", "translation"]


def register_mosaic(
    images: Iterable[Any],
    *,
    names: Sequence[str] | None = None,
    layout: Any = None,
    channel: Wanted = None,
    transform: Transform = "rigid",
    reach: float | None = None,
    progress: bool | Callable[[Progress], object] | None = None,
) -> Mosaic:
    """Place images that overlap at their borders on one canvas: fields of a microscope, capture areas of one section.

    Args:
        images: 2D `Image` objects, or anything `regframe.open` reads as one, of one pixel size and the same channels; or one file
            that holds all fields.
        names: a name for each; those of the images or files where None.
        layout: where the fields lie: Fiji's ``TileConfiguration.txt`` or a table name, y, x; a mapping from names to ``(y, x)``,
            or one pair per field, in the fields' unit, of their first pixel. Where None, what the files say: origins of
            OME-Zarr, or the stage's positions in OME, whose directions are tried. ``"none"``, and where nothing is said: places
            are searched, of up to 30 fields.
        channel: the channel to place by, as in `regframe.register_group`.
        transform: ``rigid``: shifts and small turns; ``translation``: shifts alone.
        reach: how far a field may lie from where it is said to, in pixels; 8 % of its longer side where None.
        progress: True draws bars (None does in a notebook and at a Python prompt); a function is called before each
            pair.

    Raises:
        ValueError: fewer than two fields, points, volumes, ids, several units, pixel sizes or sets of channels, a layout that
            does not belong to them, or too many fields without one.
    """
    views = fields.opened(images, names, channel)
    with shown(progress) as told:
        return placed(views, layout, transform, reach, told)


def placed(
    views: list[View],
    layout: Any = None,
    transform: Transform = "rigid",
    reach: float | None = None,
    progress: Callable[[Progress], object] | None = None,
) -> Mosaic:
    """`register_mosaic` of fields that are open."""
    began = time.perf_counter()
    if transform not in ("rigid", "translation"):
        raise ValueError(f"wanted transform rigid or translation, got {transform!r}; choose one of these")
    if reach is not None and not (math.isfinite(reach) and reach > 0):
        raise ValueError(f"wanted a reach of more than 0 pixels, got {reach}; leave it out to have 8 % of a field")
    stated = fields.stated(views, layout)
    finder = Finder(views, transform == "rigid", reach, progress)
    places, changed = finder.directed(stated) if stated else (list(stated.places), "")
    overlaps = finder.along(places) if stated else finder.searched()
    solved = solve(views, overlaps, places, transform == "rigid")
    results, canvas = _results(views, solved)
    metrics = _metrics(views, overlaps, solved, results, places)
    metrics |= {
        "transform": transform,
        "layout": {"source": stated.source or "searched", "directions": changed},
        "canvas": {"shape": list(canvas.shape), "origin": list(canvas.origin), "unit": canvas.unit},
        "seconds": time.perf_counter() - began,
        "versions": versions(),
    }
    return Mosaic(tuple(v.name for v in views), tuple(results), canvas, metrics, tuple(v.said for v in views))


def _results(views: Sequence[View], solved: Solved) -> tuple[list[Result | None], Grid]:
    """One result per field, None without a place; and the canvas that holds all of them."""
    grid = views[0].grid
    ends = []
    for k, pose in solved.poses.items():
        h, w = views[k].grid.shape
        ends.append(carry(pose, np.array([[0, 0], [0, w - 1], [h - 1, 0], [h - 1, w - 1]], dtype=np.float64)))
    if not ends:
        return [None] * len(views), Grid(grid.shape, grid.spacing, (), grid.unit)
    low = np.floor(np.concatenate(ends).min(axis=0) + 1e-6)
    high = np.ceil(np.concatenate(ends).max(axis=0) - 1e-6)
    spacing = np.array(grid.spacing)
    shape = tuple(int(n) + 1 for n in high - low)
    canvas = Grid(shape, grid.spacing, tuple(float(v) for v in low * spacing), grid.unit)
    onto = np.diag([*spacing, 1.0])
    results: list[Result | None] = []
    for k, view in enumerate(views):
        if k not in solved.poses:
            results.append(None)
            continue
        matrix = onto @ solved.poses[k] @ np.linalg.inv(view.grid.index_to_position().numpy())
        matrix[2] = 0.0, 0.0, 1.0
        same = Affine(torch.from_numpy(matrix), view.grid.unit, canvas.unit)
        results.append(Result(same, canvas, view.grid, nothing() | {"model": "rigid"}, Config(), same))
    return results, canvas


# ---- figures ------------------------------------------------------------------------------------------------------------


def _metrics(
    views: Sequence[View],
    overlaps: Sequence[Overlap],
    solved: Solved,
    results: list[Result | None],
    places: Sequence[Floats | None],
) -> dict[str, Any]:
    """Verdict, fields and overlaps; writes each field's own verdict into its result."""
    entries = []
    for k, view in enumerate(views):
        pose, used = solved.poses.get(k), solved.used(k)
        off = [link.residual for link in used if math.isfinite(link.residual)]
        entry = {
            "name": view.name,
            "options": dict(view.options),
            "channel": view.choice.name,
            "placed": pose is not None,
            "y_px": None if pose is None else float(pose[0, 2]),
            "x_px": None if pose is None else float(pose[1, 2]),
            "turn_degrees": None if pose is None else math.degrees(math.atan2(pose[1, 0], pose[0, 0])),
            "moved_px": _moved(view, pose, places[k]),
            "overlaps": len(used),
            "confidence": max((link.ncc for link in used), default=0.0) if pose is not None else None,
            "residual_px": float(np.median(off)) if off else None,
        }
        findings = _findings(k, views, overlaps, solved)
        if pose is None and places[k] is None and any(place is not None for place in places):
            findings = [verdict.unplaced("the layout does not say where it lies; add it, or place all without one")]
        entries.append(entry | verdict.conclude(findings))
        result = results[k]
        if result is not None:
            result.metrics.update(verdict.conclude(findings) | {"confidence": entry["confidence"], "field": entry})
    off = [link.residual for link in solved.links if link.weight > 0 and math.isfinite(link.residual)]
    return {
        **verdict.conclude(verdict.of_group(entries, "fields")),
        "n_images": len(views),
        "n_placed": len(solved.poses),
        "residual_px": float(np.sqrt(np.mean(np.square(off)))) if off else None,
        "images": entries,
        "pairs": [_pair(one, link, views) for one, link in zip(overlaps, solved.links, strict=True)],
    }


def _moved(view: View, pose: Floats | None, place: Floats | None) -> float | None:
    """How far the middle of a field lies from where it was said to, in pixels."""
    if pose is None or place is None:
        return None
    middle = (np.array(view.grid.shape) - 1.0) / 2
    return float(np.linalg.norm(carry(pose, middle[None])[0] - middle - place))


def _pair(one: Overlap, link: Any, views: Sequence[View]) -> dict[str, Any]:
    found = one.found
    return {
        "fixed": views[one.fixed].name,
        "moving": views[one.moving].name,
        "confidence": one.confidence,
        "used": link.weight > 0,
        "likeness": None if found is None else found.likeness,
        "share": None if found is None else found.share,
        "sd_px": None if found is None else found.sd,
        "residual_px": link.residual if math.isfinite(link.residual) else None,
    }


def _findings(k: int, views: Sequence[View], overlaps: Sequence[Overlap], solved: Solved) -> list[Finding]:
    own = [
        (one, link)
        for one, link in zip(overlaps, solved.links, strict=True)
        if k in (one.fixed, one.moving) and one.found is not None
    ]
    other = {id(one): views[one.fixed if one.moving == k else one.moving].name for one, _ in own}
    if k not in solved.poses:
        island = next((group for group in solved.islands[1:] if k in group), ())
        if island:
            beside = verdict.some([views[j].name for j in island if j != k])
            return [verdict.unplaced(f"overlaps {beside} alone, and none of them a field of the mosaic")]
        best = max(own, key=lambda pair: pair[0].confidence, default=None)
        near = f" (surest with {other[id(best[0])]}: {best[0].confidence:.0%})" if best is not None else ""
        return [verdict.unplaced(f"overlaps no other field, or shows nothing there to place it by{near}")]
    used = [(one, link) for one, link in own if link.weight > 0]
    findings = []
    lost = [other[id(one)] for one, link in own if link.weight == 0 and one.confidence >= SURE]
    if lost:
        findings.append(verdict.contradicted(lost))
    if all(one.confidence < SURE for one, _ in used):
        names = verdict.some([other[id(one)] for one, _ in used])
        findings.append(verdict.unconfirmed_pair(f"its overlap with {names}", []))
    if not findings:
        findings.append(Finding("pass", f"placed by its overlap with {verdict.some([other[id(o)] for o, _ in used])}"))
    return findings
