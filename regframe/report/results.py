"""The report page of a registration, and the folder of a run with that page in it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .. import verdict
from ..data import Grid, Image, PointSet
from ..fit.uncertainty import radius_90
from ..io import outputs
from ..maps import plane
from ..maps.affine import Affine
from ..maps.gridlines import grid_lines
from ..result import Result
from ..verdict import CLEAR, MEANING
from . import dots, figures, pictures, pieces, sections, words
from .page import Picture, data_uri, fill, jpeg, svg_uri
from .pictures import Array, Side, View
from .words import Places

MAX_PX = 900
"""Pixels along the longer side of the large pictures."""

_DRAWN = ("pieces", "landmarks")
"""Entries of a result's metrics that the page draws, and does not list among its figures."""

MAX_BYTES = 5_000_000
"""Largest page in bytes, small enough to be mailed; pictures are compressed more strongly until it is reached."""


def write_run(
    path: Path,
    result: Result,
    sides: tuple[Image | PointSet, Image | PointSet] | None,
    run: dict[str, Any],
    overwrite: bool = False,
    *extras: Callable[[Path], object],
) -> None:
    """Write the folder of a run with its page ``report.html``, complete or not at all.

    ``sides`` are the fixed and the moving data, which the page shows; without them no page is written. ``extras`` are called
    before the page is written. A page that cannot be drawn is a warning: the result is kept without it. The other arguments, and
    what is raised, are those of `regframe.io.outputs.write`.
    """

    def page(folder: Path) -> None:
        if sides is None:
            return
        try:
            write(result, *sides, folder / outputs.REPORT, Places.of(path, run))
        except OSError:  # the disk is full, say: what is written beside it would not be whole either
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no reason to lose the map
            (folder / outputs.REPORT).unlink(missing_ok=True)
            reason = " ".join(str(error).split()) or type(error).__name__
            warnings.warn(
                f"the result is written, but not its page ({type(error).__name__}: {reason}); try `regframe report {path}`",
                stacklevel=2,
            )

    outputs.write(path, result, run, overwrite, *extras, page)


def write(
    result: Result, fixed: Image | PointSet, moving: Image | PointSet, path: str | Path, places: Places | None = None
) -> None:
    """Write the report of ``result`` as one HTML file.

    Args:
        result: the registration.
        fixed: the fixed data.
        moving: the moving data.
        path: the file, replaced if it exists.
        places: where the run and its inputs lie, for the commands that the page shows; stand-ins where None.
    """
    more = sections.gathered(result)
    for max_px, quality in ((MAX_PX, 86), (700, 78), (480, 70)):
        html = render(result, fixed, moving, max_px, quality, places, more)
        if len(html) <= MAX_BYTES:
            break
    Path(path).write_text(html, encoding="utf-8")


def render(
    result: Result,
    fixed: Image | PointSet,
    moving: Image | PointSet,
    max_px: int = MAX_PX,
    quality: int = 86,
    places: Places | None = None,
    more: tuple[list[sections.Shown], list[str]] = ([], []),
) -> str:
    """The page as text; ``max_px`` bounds the pictures' longer side, ``quality`` is JPEG's, ``more`` is what packages add."""
    places = places or Places()
    _, summary = MEANING.get(result.verdict, ("", ""))  # type: ignore[call-overload]
    return fill(
        "report.html",
        verdict=result.verdict,
        title=verdict.headline(result.verdict, result.confidence),
        summary=summary,
        expected=words.expected(result),
        reasons=words.remarks(result),
        steps=words.next_steps(result, places),
        python=words.python_lines(places),
        shell=words.shell_lines(places),
        cards=_cards(result.metrics),
        sides=[_side_facts("Fixed", fixed, result.fixed_grid), _side_facts("Moving", moving, result.moving_grid)],
        pieces=pieces.shown(result, fixed, moving, max_px),
        table=list(_flatten({name: value for name, value in result.metrics.items() if name not in _DRAWN})),
        config=list(_flatten(result.config.model_dump(mode="json"))),
        more=more[0],
        left_out=more[1],
        **_draw(result, fixed, moving, max_px, quality),
    )


def _draw(
    result: Result, fixed: Image | PointSet, moving: Image | PointSet, max_px: int, quality: int
) -> dict[str, Any]:
    if isinstance(fixed, PointSet) and isinstance(moving, PointSet):
        return _draw_points(result, fixed, moving, max_px)
    if result.section and isinstance(fixed, Image) and isinstance(moving, Image):
        fixed = plane.lift(fixed) if fixed.grid.ndim == 2 else fixed
        moving = pictures.mosaic(moving) if moving.labels else moving
    fixed, moving = (pictures.blanked(data) if isinstance(data, Image) else data for data in (fixed, moving))
    canvas = pictures.canvas_of(result.fixed_grid, max_px)
    own = Affine.identity(result.fixed_grid.ndim, result.fixed_grid.unit)
    start = result.affine if result.section else pictures.identity_map(result.moving_grid, result.fixed_grid)
    f, m = Side.of(fixed, max_px), Side.of(moving, max_px)

    view_before, view_after = View.of(canvas, start), View.of(canvas, result.transform)
    still = f.picture(View.of(canvas, own))
    before, after = m.picture(view_before), m.picture(view_after)
    seen_before, seen_after = view_before.covered(result.moving_grid), view_after.covered(result.moving_grid)
    f_ink, f_rgb = f.ink(still), f.rgb(still)
    m = m.attuned(after, f_ink, seen_after)
    b_ink, a_ink = m.ink(before) * seen_before, m.ink(after) * seen_after
    a_rgb = pictures.fade(m.rgb(after), seen_after)
    b_rgb = pictures.fade(m.rgb(before), seen_before)

    def shown(title: str, picture: Array, note: str = "", part: str = "") -> Picture:
        return Picture(title, jpeg(picture, quality), note, part)

    own_canvas = pictures.canvas_of(result.moving_grid, max_px)
    at_home = m.picture(View.of(own_canvas, Affine.identity(result.moving_grid.ndim, result.moving_grid.unit)))
    colours = pictures.MAGENTA_GREEN
    overlay_before, overlay_after = pictures.overlay(f_ink, b_ink), pictures.overlay(f_ink, a_ink)
    viewer = [
        shown("Overlay after", overlay_after, colours),
        shown("Overlay before", overlay_before, colours),
        shown("Checkerboard after", pictures.checkerboard(f_rgb, a_rgb), "fixed and warped moving in turn"),
        shown("Checkerboard before", pictures.checkerboard(f_rgb, b_rgb), "fixed and unaligned moving in turn"),
        shown("Fixed", f_rgb, "flip between this and the next to see what moves", "fixed"),
        shown("Moving, warped", a_rgb, "on the fixed canvas; hatched: outside the moving side", "moving"),
    ]
    other = _other_pose(result)
    rival = []
    if other is not None:
        view = View.of(canvas, other)
        ink = m.ink(m.picture(view)) * view.covered(result.moving_grid)
        rival = [
            shown("The other pose", pictures.overlay(f_ink, ink), "the next best start, which fits nearly as well")
        ]
    volume = result.fixed_grid.ndim == 3
    return {
        "pair": [shown("Fixed", f_rgb), shown("Moving, as it came", m.rgb(at_home))],
        "overlays": [
            Picture("Before", jpeg(pictures.halved(overlay_before), quality), colours),
            Picture("After", jpeg(pictures.halved(overlay_after), quality), colours),
        ],
        "viewer": viewer + rival,
        "plane": "The section, and the volume in its plane: before it was bent, and after."
        if result.section
        else "Middle plane of the fixed volume."
        if volume
        else "",
        "close_up": "At full resolution, where the two sides are most alike and where least: fixed, warped moving, and both.",
        "insets": _insets(result, _Drawn(fixed, moving, (f, m), canvas, f_ink, a_ink, seen_after), quality),
        "maps": _maps(result, pictures.canvas_of(result.fixed_grid, min(max_px, 240)), canvas, a_rgb, seen_after),
        "landmarks": _landmarks(result, canvas, overlay_after),
        "energy": _maybe("Energy", figures.energy(result.history)),
    }


def _draw_points(result: Result, fixed: PointSet, moving: PointSet, max_px: int) -> dict[str, Any]:
    """The pictures of two point sets, as dots; in the form that `_draw` returns."""
    unit = result.fixed_grid.unit
    still, own = dots.Cloud.of(fixed, "fixed", dots.FIXED), dots.Cloud.of(moving, "moving", dots.MOVING)
    before = own.moved(pictures.identity_map(result.moving_grid, result.fixed_grid), unit)
    after = own.moved(result.transform, unit)
    left_out = dots.remarks(still, own)

    def png(title: str, *clouds: dots.Cloud, note: str = dots.NOTE + left_out, part: str = "") -> Picture:
        around = (still, after) if part else ()  # what the viewer lays on each other shows one extent
        return Picture(title, data_uri(dots.picture(clouds, max_px, around=around), "png"), note, part)

    both = png("Overlay after", still, after), png("Overlay before", still, before)
    pair = png("Fixed", still, note="all of it"), png("Moving, as it came", own)
    warped = png("Moving, warped", after, note="in the fixed space", part="moving")
    alone = png("Fixed", still, note="all of it", part="fixed")
    other = _other_pose(result)
    rival = []
    if other is not None:
        note = "the next best start, which fits nearly as well"
        rival = [png("The other pose", still, own.moved(other, unit), note=note)]

    def window(title: str, where: Any, *clouds: dots.Cloud, part: str = "") -> Picture:
        return Picture(title, data_uri(dots.picture(clouds, 360, where), "png"), part=part)

    small = pictures.canvas_of(result.fixed_grid, min(max_px, 240))
    plane = Grid(small.shape[-2:], small.spacing[-2:], small.origin[-2:], small.unit)
    canvas = pictures.lift(plane.resampled(max(plane.extent) / max_px), result.fixed_grid)
    return {
        "pair": list(pair),
        "overlays": [Picture("Before", both[1].uri, both[1].note), Picture("After", both[0].uri, both[0].note)],
        "viewer": [*both, alone, warped, *rival],
        "dots": True,
        "plane": "Seen along z, left, and along y, right." if fixed.ndim == 3 else "",
        "close_up": "Where both sides have most points: fixed, warped moving, and both.",
        "insets": [
            CloseUp(
                number,
                f"Dense place {number}",
                (
                    window("fixed", at, still, part="fixed"),
                    window("moving, warped", at, after, part="moving"),
                    window("overlay", at, still, after),
                ),
            )
            for number, at in enumerate(dots.places((still, after), 3), start=1)
        ],
        "maps": _maps(result, small, canvas, dots.raster(after, canvas), np.ones(canvas.shape[-2:], dtype=np.bool_)),
        "landmarks": _landmarks(result, canvas, dots.raster(still, canvas)),
        "energy": _maybe("Energy", figures.energy(result.history)),
    }


def _landmarks(result: Result, canvas: Grid, picture: Array) -> Picture | None:
    """The landmarks that moved the map, else those it began from, over ``picture``; arrows run from each fixed one to where the
    map takes its partner."""
    pairs = result.metrics.get("landmarks") or (result.config.init_options if result.config.init == "landmarks" else {})
    if not {"fixed", "moving"} <= set(pairs) or not len(pairs["fixed"]):
        return None
    fixed, moving = (torch.tensor(pairs[side], dtype=torch.float64) for side in ("fixed", "moving"))
    if fixed.shape != moving.shape or fixed.shape[-1] != result.transform.ndim:
        return None
    carried = result.transform.points(moving)
    away = torch.linalg.vector_norm(carried - fixed, dim=1) / result.fixed_grid.pixel
    drawn = figures.arrow_map(picture, canvas, fixed[:, -2:].numpy(), carried[:, -2:].numpy())
    note = (
        f"An arrow runs from each fixed landmark (of {len(away)}) to where the map takes its partner; at the median "
        f"{float(away.median()):.3g} px apart, at most {float(away.max()):.3g} px (number {int(away.argmax()) + 1})."
    )
    return Picture("Landmarks", svg_uri(drawn), note)


def _other_pose(result: Result) -> Affine | None:
    """The second-best pose of the search, where it fits nearly as well as the best one; else None."""
    runner_up, margin = result.metrics.get("runner_up"), result.metrics.get("pose_margin")
    if not runner_up or margin is None or margin >= CLEAR:
        return None
    matrix = torch.tensor(runner_up["matrix"], dtype=torch.float64)
    return Affine(matrix, result.moving_grid.unit, result.fixed_grid.unit)


@dataclass(frozen=True)
class _Drawn:
    """Both sides of a result, and their appearance on the fixed canvas.

    Args:
        fixed: the fixed data, at full resolution.
        moving: the moving data, at full resolution.
        looks: the two sides prepared for drawing.
        canvas: grid of the large pictures.
        ink: ink of the fixed side ``[h, w]``, 0 … 1.
        moved: ink of the warped moving side ``[h, w]``, 0 … 1.
        seen: pixels ``[h, w]`` that the warped moving side covers.
    """

    fixed: Image | PointSet
    moving: Image | PointSet
    looks: tuple[Side, Side]
    canvas: Grid
    ink: Array
    moved: Array
    seen: NDArray[np.bool_]


@dataclass(frozen=True)
class CloseUp:
    """One place at full resolution.

    Args:
        number: its number on the page, from 1.
        title: what is special about it.
        pictures: fixed, warped moving, both.
        note: a figure of it.
    """

    number: int
    title: str
    pictures: tuple[Picture, ...]
    note: str = ""


def _insets(result: Result, drawn: _Drawn, quality: int) -> list[CloseUp]:
    """Close-ups (fixed, warped moving, overlay) at full resolution, where both sides are most alike and where least."""
    size = max(16, min(drawn.ink.shape) // 5)
    if min(drawn.ink.shape) < 48:
        return []
    most, least = pictures.spots(drawn.ink, drawn.moved, drawn.seen, size, 2)
    out: list[CloseUp] = []
    for word, places in (("Most", most), ("Least", least)):
        for i, spot in enumerate(places):
            number = f" {i + 1}" if len(places) > 1 else ""
            note = f"Correlation of both sides (tones adapted) {spot.likeness:.2f}."
            row = _closeups(result, drawn, (spot.top, spot.left), size, quality)
            out.append(CloseUp(len(out) + 1, f"{word} agreement{number}", row, note))
    return out


def _closeups(result: Result, drawn: _Drawn, corner: tuple[int, int], size: int, quality: int) -> tuple[Picture, ...]:
    """The square of ``size`` canvas pixels at ``corner``: fixed, warped moving, both."""
    canvas, (f, m) = drawn.canvas, drawn.looks
    plane = Grid(
        (size, size),
        canvas.spacing[-2:],
        tuple(o + s * i for o, s, i in zip(canvas.origin[-2:], canvas.spacing[-2:], corner, strict=True)),
        canvas.unit,
    )
    pixel = max(min(result.fixed_grid.spacing[-2:]), max(plane.extent) / 320)
    region = pictures.lift(plane.resampled(pixel), result.fixed_grid)
    own = Affine.identity(region.ndim, region.unit)
    still = _closeup(drawn.fixed, f, View.of(region, own))
    moved = _closeup(drawn.moving, m, View.of(region, result.transform))
    return (
        Picture("fixed", jpeg(f.rgb(still), quality), part="fixed"),
        Picture("moving, warped", jpeg(m.rgb(moved), quality), part="moving"),
        Picture("overlay", jpeg(pictures.overlay(f.ink(still), m.ink(moved)), quality)),
    )


def _closeup(data: Image | PointSet, side: Side, view: View) -> Array:
    """Values of the original data on a small canvas; only the part of an image that is needed is read."""
    if isinstance(data, PointSet):
        return side.picture(view)
    needed = view.positions.reshape(-1, data.grid.ndim)
    needed = needed[torch.isfinite(needed).all(dim=1)]
    if not len(needed):  # a piece without a partner
        return view.sample(side.data) if isinstance(side.data, Image) else side.picture(view)
    span = float((needed.amax(0) - needed.amin(0)).max())
    cut = pictures.crop(data, needed, margin=2 * max(data.grid.spacing))
    return view.sample(pictures.shrink(cut, span / max(view.canvas.shape)))


def _on_canvas(values: torch.Tensor, grid: Grid, canvas: Grid) -> Array:
    """Values ``[*S]`` on ``grid``, resampled on ``canvas`` to ``[h, w]``."""
    image = Image(values[None].to(torch.float32), grid)
    return View.of(canvas, Affine.identity(canvas.ndim, canvas.unit)).sample(image)[0]  # type: ignore[no-any-return]


def _maps(result: Result, small: Grid, canvas: Grid, warped: Array, seen: NDArray[np.bool_]) -> list[Picture]:
    """Weights, uncertainty, local area change, displacement beyond the affine part, and the deformed grid."""
    maps = []
    if result.weight is not None and result.weight_grid is not None:
        weight = np.clip(_on_canvas(result.weight, result.weight_grid, small), 0, 1)
        drawn = figures.field_map(weight, small, "probability", "viridis", (0.0, 1.0))
        note = "Probability that a fixed pixel shows matching tissue, not background or an artefact."
        maps.append(Picture("Matching weight", svg_uri(drawn), note))

    positions = small.coords()
    pulled = result.transform.inverse().points(positions)
    inside = result.moving_grid.contains(pulled).reshape(small.shape[-2:]).numpy()
    noun = "volume" if small.ndim == 3 else "area"

    if result.position_sd is not None and result.weight_grid is not None:
        radius = radius_90(small.ndim) * _on_canvas(result.position_sd, result.weight_grid, small)
        shown = np.where(inside, radius, np.nan)
        top = float(np.nanpercentile(shown, 99.5)) if inside.any() else 1.0
        unit = result.fixed_grid.unit
        drawn = figures.field_map(shown, small, unit, "cividis", (0.0, max(top, 1e-12)))
        note = "Nine positions in ten are expected to lie within this distance of where they belong."
        maps.append(Picture(f"Position uncertainty (90 % radius, {unit})", svg_uri(drawn), note))

    affine = float(torch.linalg.det(_linear(result)))
    determinant = result.transform.inverse().jacobian_determinant(small).reshape(small.shape[-2:]).numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        change = np.where(determinant * affine > 0, 1 / (determinant * affine), np.nan)
    spread = float(np.nanpercentile(np.abs(np.log2(change[inside])), 99.5)) if inside.any() else 0.0
    spread = float(np.clip(spread, 0.05, 3.0)) if math.isfinite(spread) else 1.0
    drawn = figures.field_map(
        np.where(inside, change, np.nan), small, f"{noun} ratio", "RdBu_r", (2**-spread, 2**spread), 1.0,
        folds=inside & ~(determinant * affine > 0),
    )  # fmt: skip
    note = f"Local {noun} change of the moving tissue beyond the affine part; red dots would be folds."
    maps.append(Picture("Jacobian determinant", svg_uri(drawn), note))

    pixel = result.moving_grid.pixel
    bend = torch.linalg.vector_norm(pulled - result.affine.inverse().points(positions), dim=-1) / pixel
    shift = np.where(inside, bend.reshape(small.shape[-2:]).numpy(), np.nan)
    top = float(np.nanmax(shift)) if inside.any() else 1.0
    drawn = figures.field_map(shift, small, "moving px", "magma_r", (0.0, max(top, 1e-3)))
    maps.append(Picture("Displacement", svg_uri(drawn), "How far the map departs from its affine part."))

    drawn = figures.grid_map(pictures.fade(warped, seen), canvas, grid_lines(result.transform, result.moving_grid))
    maps.append(Picture("Deformed grid", svg_uri(drawn), "Lines that are straight in the moving space."))
    return maps


def _linear(result: Result) -> torch.Tensor:
    """The linear part ``[D, D]`` of the affine part of the map, from the images of the unit vectors."""
    ndim = result.affine.ndim
    unit = torch.cat([torch.zeros(1, ndim, dtype=torch.float64), torch.eye(ndim, dtype=torch.float64)])
    moved = result.affine.points(unit)
    return (moved[1:] - moved[0]).T


def _maybe(title: str, drawn: str | None) -> Picture | None:
    return None if drawn is None else Picture(title, svg_uri(drawn))


def _side_facts(role: str, data: Image | PointSet, grid: Grid) -> dict[str, str]:
    size = " × ".join(str(n) for n in grid.shape) + " px"
    spacing = " × ".join(f"{s:.4g}" for s in dict.fromkeys(grid.spacing)) + f" {grid.unit}"
    if isinstance(data, PointSet):
        return {"role": role, "name": data.name, "facts": f"{len(data):,} points in {data.unit}"}
    n = len(data.channels)
    channels = "1 channel" if n == 1 else f"{n} channels"
    declared = "no spacing declared" if grid.unit == "px" else f"pixel {spacing}"
    dtype = str(data.data.dtype).removeprefix("torch.")
    return {"role": role, "name": data.name, "facts": f"{size}, {channels}, {dtype}, {declared}"}


def _cards(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """The few figures that readers look for first, as far as they are present; experts find all of them in their table."""

    def get(name: str) -> float | None:
        value = metrics.get(name)
        return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None

    wanted: tuple[tuple[str, float | None, Callable[[float], str]], ...] = (
        ("confidence", get("confidence"), verdict.spoken),
        ("matching tissue", get("matching_fraction"), lambda v: f"{100 * v:.0f} %"),
        ("folded tissue", get("folding_fraction") or None, lambda v: f"{100 * v:.2g} %"),
        ("time", get("seconds"), lambda v: f"{v:.2g} s" if v < 10 else f"{v:.0f} s"),
    )
    return [(name, show(value)) for name, value, show in wanted if value is not None]


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings or figures as pairs of dotted name and text."""
    if isinstance(value, dict):
        if not value and prefix:
            yield prefix, "–"
        for key, item in value.items():
            yield from _flatten(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, (list, tuple)) and not any(isinstance(v, (dict, list, tuple)) for v in value):
        yield prefix, "; ".join(_text(v) for v in value) or "–"
    else:
        yield prefix, _text(value)


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.5g}"
    return str(value)
