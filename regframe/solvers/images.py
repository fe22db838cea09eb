"""The solver of two 2D images, or of two volumes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from .. import plugins, verdict
from ..contracts import Fitted, Known, Solver, Task
from ..data import Image, PointSet, describe_grid
from ..fit.pyramid import Recipe
from ..fit.threads import side_by_side, threads_for
from ..verdict import CONFIRMED, NO_EVIDENCE, TOGETHER, Finding
from . import raster, recipes, samples
from .counts import counting, evened
from .preparation import grey, prepare
from .raster import Compared
from .recipes import SURE

SETTLED = 0.96
"""Confidence from which a map of two images by one curve between their intensities is not fitted again by their local
correlation. Of 20 such maps of the proving ground that were fitted both ways (`mixture`, `light`, `torn`, `dirt`, seeds below
500) eleven were wrong, with confidences of up to 0.93; by local correlation nine of these came right, the others within 1.5
bars. One that was right was wrong by it, by 1.04 bars, and had less confidence so."""
KEPT = 0.88
"""Share of the nats of evidence by the independent judge that the other of two fits has to have, where it is confirmed, to be
taken for its higher confidence: the right ones of `SETTLED` had 89.9 % and more, for a bend that follows light may gain some.
One that is not confirmed has to have all of them."""
GAIN = 0.03
"""Confidence by which the other of two fits has to be likelier, else they are as good as one another and the first stays: half
the least gain (0.057) of the 12 maps of `SETTLED` that became better by it."""


class Images(Solver):
    """Two images of one dimension, compared pixel by pixel: a search for the pose, then a fit coarse to fine.

    Args:
        again: whether a map that is doubtful by the metric of the solver's own choice is fitted again by another one, and the
            likelier of both taken.
    """

    def __init__(self, again: bool = True) -> None:
        if not isinstance(again, bool):
            raise ValueError(f"wanted true or false as the option 'again' of the solver images, got {again!r}")
        self.again = again

    name: ClassVar[str] = "images"
    models: ClassVar[tuple[str, ...]] = recipes.MODELS
    default: ClassVar[str] = "contrast"
    """Name of the metric where the user names none: it predicts the fixed intensities from the moving ones."""
    between_stains: ClassVar[str] = "mi"
    """Name of the metric where the user names none and both images are stained sections: mutual information, because the
    densities of two stains need not be related linearly."""
    in_uneven_light: ClassVar[str] = "lncc"
    """Name of the metric by which a fit is made again where the user names none and the default led away from the start, or to a
    map that is doubtful: light and shading that differ over the image contradict any one curve between both intensities."""

    @classmethod
    def sample(cls) -> Known | None:  # noqa: D102
        return samples.images()

    def matches(self, fixed: Image | PointSet, moving: Image | PointSet) -> float:  # noqa: D102
        if not (isinstance(fixed, Image) and isinstance(moving, Image)):
            return 0.0
        return SURE if fixed.grid.ndim == moving.grid.ndim else 0.1

    def check(self, task: Task) -> list[Finding]:  # noqa: D102
        fixed, moving = task.fixed, task.moving
        assert isinstance(fixed, Image)
        assert isinstance(moving, Image)
        for image, side in ((fixed, "fixed"), (moving, "moving")):
            raster.check_image(image, side)
        if fixed.grid.ndim > moving.grid.ndim:
            raise ValueError(
                f"wanted the section as the fixed side and the volume as the moving one, got a {fixed.grid.ndim}D fixed and a "
                f"{moving.grid.ndim}D moving image ({fixed.name}: {describe_grid(fixed.grid)}; {moving.name}: "
                f"{describe_grid(moving.grid)}); swap them, take one plane of the volume (z=), or name the axes when opening them"
            )
        raster.check_metric(task.metric)
        return raster.check_units(fixed.grid.unit, moving.grid.unit)

    def fit(self, task: Task) -> Fitted:  # noqa: D102
        assert isinstance(task.fixed, Image)
        assert isinstance(task.moving, Image)
        with threads_for(max(task.fixed.data.numel(), task.moving.data.numel())):
            pair = self.compare(task)
            done = raster.by_cells(raster.run(pair, task, recipe_of(pair)), pair, task, recipe_of(pair))
            fitted = raster.fitted(pair, done, task.moving.grid)
            flat = task.fixed.grid.ndim == 2  # a volume is fitted again only where it is lost: that takes long
            sure = fitted.figures["confidence"] if flat else None
            doubted = done.fit.lost or (flat and _doubted(pair, fitted.figures))
            if task.metric is not None or done.cells is not None or not doubted or not self.again:
                return fitted
            other = self.otherwise_compared(task, pair)
            again = raster.again(done, other, task, recipe_of(other))
            instead = raster.fitted(other, again, task.moving.grid)
            found = (instead.figures["place_confidence"] or 0.0) >= NO_EVIDENCE
            likelier = found and _likelier(instead.figures, fitted.figures)
            better = done.fit.lost and not again.fit.lost if sure is None else likelier
            confirmed = (instead.figures["confidence"] or 0.0) >= CONFIRMED
            least = (fitted.figures["evidence"] or 0.0) * (KEPT if confirmed else 1.0)
            return instead if better and (instead.figures["evidence"] or 0.0) >= least else fitted

    def judge(self, fitted: Fitted) -> Iterable[Finding]:  # noqa: D102
        yield from verdict.of_images(fitted.figures, fitted.transform.ndim)
        yield from verdict.held_to_landmarks(fitted.figures)

    def compare(self, task: Task) -> Compared:
        """Both sides prepared, and the metric by which to compare them."""
        (fixed, one), (moving, other) = side_by_side(prepare, _sides(task))
        stained = one.brightfield and other.brightfield
        if task.metric is not None:
            return Compared(fixed, moving, (one, other), task.metric, "as asked for", stained)
        if stained:
            why = "both are stained sections in transmitted light, whose densities and shading need not follow one line"
            metric = plugins.metric(self.between_stains)
            followed = tuple(plugins.metric(name, **options) for name, options in recipes.FOLLOWED)
            return Compared(grey(fixed), grey(moving), (one, other), metric, why, stained, followed=followed)
        why = "one side's intensities are taken to explain the other's"
        if fixed.counted is not None and moving.counted is not None:
            why = "both are densities of counted things, whose roots vary evenly"
            looks = one, other
            return Compared(evened(fixed), evened(moving), looks, plugins.metric(self.default), why, counted=True)
        return Compared(fixed, moving, (one, other), plugins.metric(self.default), why)

    def otherwise_compared(self, task: Task, pair: Compared) -> Compared:
        """Another comparison of the sides of ``pair``, for a fit that went astray or is not confirmed.

        Densities of counted things are compared as they are, not by roots, and other images by their local correlation.
        """
        said = f"a map by {type(pair.metric).name} was doubtful"
        if pair.counted:
            (fixed, one), (moving, other) = side_by_side(prepare, _sides(task))
            why = f"{said} by roots of counts, and is likelier by the counts themselves"
            return Compared(fixed, moving, (one, other), plugins.metric(self.default), why, counted=True)
        why = f"{said}, and is likelier by local correlation, which bears uneven light and stain"
        return dataclasses.replace(pair, metric=plugins.metric(self.in_uneven_light), why=why)


def _sides(task: Task) -> tuple[Image, Image]:
    """Both sides as they are, or as densities of counted things where both hold counts and no metric is asked for."""
    assert isinstance(task.fixed, Image)
    assert isinstance(task.moving, Image)
    if task.metric is None:
        fixed, moving = counting(task.fixed), counting(task.moving)
        if fixed.counted is not None and moving.counted is not None:
            return fixed, moving
    return task.fixed, task.moving


def recipe_of(pair: Compared) -> Recipe:
    """How the fit of a pair differs from the default, by what its sides are."""
    return recipes.STAINED if pair.stained else recipes.COUNTED if pair.counted else Recipe()


def _doubted(pair: Compared, figures: Mapping[str, Any]) -> bool:
    """Whether a map with these figures asks for another comparison: it is not likely, or windows contradict it together."""
    sure, limit = figures["confidence"], CONFIRMED if pair.stained or pair.counted else SETTLED
    return sure is not None and (sure < limit or (not pair.counted and figures["agreement"]["together"] >= TOGETHER))


def _likelier(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the figures of ``one`` map speak for it rather than for the ``other``.

    It has more confidence by `GAIN`, or windows contradict the other one together, and of this one, which is confirmed, more
    agree and fewer contradict it together.
    """
    (here, there), sure = (figures["agreement"] for figures in (one, other)), one["confidence"] or 0.0
    agrees = here["together"] < there["together"] and here["nats"] > there["nats"]
    mended = there["together"] >= TOGETHER and sure >= CONFIRMED and agrees
    return bool(mended or sure > (other["confidence"] or 0.0) + GAIN)
