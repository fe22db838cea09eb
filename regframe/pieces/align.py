"""`register_pieces`: a slide that lies in pieces, each registered by itself, joined to one piecewise map."""

from __future__ import annotations

import dataclasses
import re
import time
import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor

from .. import plugins, strangers, verdict
from ..config import Config
from ..contracts import Progress
from ..data import Image
from ..display.bars import shown
from ..registration import register, settled
from ..result import Result
from ..solvers.raster import check_image
from ..verdict import Finding
from ..versions import versions
from . import join
from .find import find
from .fit import Fit, fit
from .judge import entries, seams
from .pair import Believed, Lie, Sides, by_likeness, by_place, compatible

PART = 0.8
"""Area of a piece, over that of its partner, under which it is a part of it: beyond its edge the partner goes on. Of one section
cut twice the areas differ by a tenth; the larger of two torn parts rarely is more than three quarters."""
SETTLED = 0.9
"""Confidence from which a confirmed map of two cores at one place is taken although they are not more alike than others are:
of 13 maps between unlike cores (`benchmarks.slides_in_pieces.microarray`, seed 0) the surest had 0.88."""
MOST = 3
"""Pairs of one piece that are registered before it is given up."""

Told = Callable[[Progress], object] | None


def register_pieces(
    fixed: Any,
    moving: Any,
    *,
    pieces: str | int = "auto",
    config: Config | None = None,
    progress: bool | Callable[[Progress], object] | None = None,
) -> Result:
    """Register slides that lie in pieces: sections beside each other, cores of a microarray, torn parts.

    The pieces of each slide are found, matched, and registered one by one by `register`; the result's map takes each position by
    the map of the piece that it lies on or nearest to. A piece without a partner has no map: its positions become NaN, and it is
    named in ``metrics["pieces"]`` and in the reasons of the verdict. Where each slide shows one piece, this is `register`.

    Args:
        fixed: a 2D `Image`, or anything `regframe.open` reads as one; it stays where it is.
        moving: likewise; it is brought onto the fixed one.
        pieces: ``auto``; a number N, the N largest pieces of a slide, parted where they touch; or ``6x8``, cores on a grid of so
            many rows and columns.
        config: all settings of the registration of each piece; the start is that of the matching.
        progress: True draws bars (None does in a notebook and at a Python prompt); a function is called with a
            `Progress` after every step.

    Raises:
        ValueError: for data that are no 2D images, a slide without tissue, ``pieces`` that say nothing, no grid of that size, or
            settings of a start.
    """
    began = time.perf_counter()
    most, rows, columns = asked(pieces)
    config = settled(config, None)
    if config.init != "auto":
        raise ValueError(
            f"wanted init 'auto' to register pieces, whose starts are found by their likeness, got {config.init!r}; leave it out"
        )
    images = _opened(fixed, "fixed"), _opened(moving, "moving")
    with strangers.named(), shown(progress) as told:
        found = [find(image, most, rows, columns) for image in images]
        sides = Sides(found[0], found[1], tell=_teller(told))
        if all(len(side.pieces) == 1 for side in found):
            return _single(images, config, told)
        fits, lie = _on_grid(images, sides, config, told) if sides.on_grid else _free(images, sides, config, told)
        return _whole(images, sides, fits, lie, config, began)


def asked(pieces: str | int) -> tuple[int | None, int, int]:
    """Number of pieces, rows and columns that ``pieces`` ask for; None and 0 where they are to be found.

    Raises ValueError for anything but ``auto``, a number from 1, and ROWSxCOLS from 2x2.
    """
    text = str(pieces).strip().lower()
    if text == "auto" and not isinstance(pieces, bool):
        return None, 0, 0
    if re.fullmatch(r"[1-9]\d{0,3}", text):
        return int(text), 0, 0
    found = re.fullmatch(r"([1-9]\d{0,2})\s*[x×]\s*([1-9]\d{0,2})", text)
    if found is None or min(int(n) for n in found.groups()) < 2:
        raise ValueError(
            f"wanted pieces 'auto', a number from 1, or ROWSxCOLS from 2x2, got {pieces!r}; e.g. pieces='6x8'"
        )
    return int(found[1]) * int(found[2]), int(found[1]), int(found[2])


def _opened(source: Any, side: str) -> Image:
    image = source
    if not isinstance(source, Image):
        reader = plugins.find_adapter(source)
        image = reader.open(source)
    if not isinstance(image, Image) or image.grid.ndim != 2 or image.labels:
        what = f"a volume of {image.grid.ndim} axes" if isinstance(image, Image) else type(image).__name__
        what = "labels" if isinstance(image, Image) and image.labels else what
        raise ValueError(
            f"wanted a 2D image as the {side} side to find pieces on, got {what}; register it without pieces"
        )
    check_image(image, side)
    return image


def _teller(told: Told) -> Callable[[int, int], object] | None:
    return None if told is None else lambda done, total: told(Progress("likeness", done, max(done, total)))


def _single(images: tuple[Image, Image], config: Config, told: Told) -> Result:
    """The result of `register` where each side is one piece."""
    result = register(*images, config=config, progress=told)
    remark = Finding("pass", "one piece was found on each side: they were registered as they are")
    found = [*(Finding(**item) for item in result.metrics["findings"]), remark]
    return dataclasses.replace(result, metrics=result.metrics | verdict.conclude(found) | {"pieces": []})


def _on_grid(images: tuple[Image, Image], sides: Sides, config: Config, told: Told) -> tuple[list[Fit], Lie]:
    """The cores that were registered, and how the grid lies."""
    pairs, lie = by_place(sides, config.seed)
    fits = []
    for k, pair in enumerate(pairs):
        if told is not None:
            told(Progress("pieces", k, len(pairs)))
        fits.append(fit(images, sides, pair, config))
    return fits, lie


def _free(images: tuple[Image, Image], sides: Sides, config: Config, told: Told) -> tuple[list[Fit], Lie]:
    """The pieces that were registered, the most alike first; several may be parts of one of the other side."""
    fits: list[Fit] = []
    taken: list[tuple[Believed, Tensor]] = []
    tried = {"fixed": [0] * len(sides.fixed.pieces), "moving": [0] * len(sides.moving.pieces)}
    for pair in by_likeness(sides):
        used = {i for one, _ in taken for i in [("fixed", one.fixed), ("moving", one.moving)]}
        free = ("moving", pair.moving) not in used or ("fixed", pair.fixed) not in used
        worn = tried["moving"][pair.moving] >= MOST and tried["fixed"][pair.fixed] >= MOST
        if not free or worn or not compatible(sides, pair, taken):
            continue
        if told is not None:
            told(Progress("pieces", len(fits), len(sides.moving.pieces)))
        one, other = sides.fixed.pieces[pair.fixed], sides.moving.pieces[pair.moving]
        ratio = other.area * sides.size**2 / one.area
        done = fit(images, sides, pair, config, (ratio > 1 / PART, ratio < PART))
        tried["moving"][pair.moving] += 1
        tried["fixed"][pair.fixed] += 1
        fits.append(done)
        if placed(done):
            taken.append((pair, _matrix(done)))
    return fits, Lie()


def placed(done: Fit) -> bool:
    """Whether a pair's map is taken: it was found by likeness and is not contradicted, or it is confirmed beyond doubt."""
    if done.result is None or done.verdict == "fail":
        return False
    return done.pair.sure or (done.verdict == "pass" and done.confidence >= SETTLED)


def _matrix(done: Fit) -> Tensor:
    """The affine part of a map ``[3, 3]``."""
    (part,) = join.result_of(done).affine.parts()
    matrix: Tensor = part.matrix  # type: ignore[attr-defined]
    return matrix


def _whole(
    images: tuple[Image, Image], sides: Sides, fits: list[Fit], lie: Lie, config: Config, began: float
) -> Result:
    """The result of all pieces that were placed."""
    good = [done for done in fits if placed(done)]
    if not good:
        return _none(images, sides, fits, config, began)
    phi = join.joined(sides, good)
    listed = entries(sides, fits, good, lie)
    moved = [not entry["at_place"] for entry in listed if entry["partner"] is not None]
    affine = join.affine_of(phi, sides, good, moved)
    weight, sd, grid = join.trust(phi, good, images[0].grid)
    stated = seams(phi, sides, good)
    metrics = {
        **join.figures(good, phi, sides),
        "pieces": listed,
        "seams": stated,
        "grid": {"rows": sides.fixed.rows, "columns": sides.fixed.columns, "lies": lie.words}
        if sides.on_grid
        else None,
        "likeness_pairs": sides.compared,
        "seconds": time.perf_counter() - began,
        "versions": versions(),
        "seed": config.seed,
    }
    metrics |= verdict.conclude(verdict.of_pieces(metrics))
    return Result(
        phi, images[0].grid, images[1].grid, metrics, config, affine,
        history=[{**step, "piece": k + 1} for k, done in enumerate(good) for step in join.result_of(done).history],
        weight=weight, weight_grid=grid, position_sd=sd,
    )  # fmt: skip


def _none(images: tuple[Image, Image], sides: Sides, fits: list[Fit], config: Config, began: float) -> Result:
    """The result where no piece has a partner: the slides as one, with a verdict that says so."""
    said = f"no piece of {images[1].name} has a partner on {images[0].name}"
    warnings.warn(f"regframe: {said}; both were registered as they are", UserWarning, stacklevel=3)
    result = register(*images, config=config)
    lost = Finding(
        "fail", f"{said}: {len(sides.moving.pieces)} and {len(sides.fixed.pieces)} were compared; the map is of the whole slides",
        remedy="state --pieces N or ROWSxCOLS, or crop both sides to one piece",
    )  # fmt: skip
    found = [*(Finding(**item) for item in result.metrics["findings"]), lost]
    more = {"pieces": entries(sides, fits, [], Lie()), "seconds": time.perf_counter() - began}
    return dataclasses.replace(result, metrics=result.metrics | verdict.conclude(found) | more)
