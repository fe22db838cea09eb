"""The solver of two 2D images, or of two volumes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from .. import plugins, verdict
from ..contracts import Fitted, Solver, Task
from ..data import Image, PointSet
from ..fit.pyramid import Recipe
from ..fit.threads import threads_for
from ..verdict import Finding
from . import raster, recipes
from .preparation import evened, grey, prepare
from .raster import Compared


class Images(Solver):
    """Two images of one dimension, compared pixel by pixel: a search for the pose, then a fit coarse to fine."""

    name: ClassVar[str] = "images"
    models: ClassVar[tuple[str, ...]] = recipes.MODELS
    default: ClassVar[str] = "contrast"
    """Name of the metric where the user names none: it predicts the fixed intensities from the moving ones."""
    between_stains: ClassVar[str] = "mi"
    """Name of the metric where the user names none and both images are stained sections: mutual information, because the
    densities of two stains need not be related linearly."""

    def matches(self, fixed: Image | PointSet, moving: Image | PointSet) -> float:  # noqa: D102
        if not (isinstance(fixed, Image) and isinstance(moving, Image)):
            return 0.0
        return 1.0 if fixed.grid.ndim == moving.grid.ndim else 0.1

    def check(self, task: Task) -> list[Finding]:  # noqa: D102
        fixed, moving = task.fixed, task.moving
        assert isinstance(fixed, Image)
        assert isinstance(moving, Image)
        for image, side in ((fixed, "fixed"), (moving, "moving")):
            raster.check_image(image, side)
        if fixed.grid.ndim > moving.grid.ndim:
            raise ValueError(
                f"wanted the section as the fixed side and the volume as the moving one, got a {fixed.grid.ndim}D fixed and a "
                f"{moving.grid.ndim}D moving image; swap them, or name the axes when opening them"
            )
        raster.check_metric(task.metric)
        return raster.check_units(fixed.grid.unit, moving.grid.unit)

    def fit(self, task: Task) -> Fitted:  # noqa: D102
        assert isinstance(task.fixed, Image)
        assert isinstance(task.moving, Image)
        with threads_for(max(task.fixed.data.numel(), task.moving.data.numel())):
            pair = self.compare(task)
            recipe = recipes.STAINED if pair.stained else recipes.COUNTED if pair.counted else Recipe()
            return raster.fitted(pair, raster.run(pair, task, recipe), task.moving.grid)

    def judge(self, fitted: Fitted) -> Iterable[Finding]:  # noqa: D102
        return verdict.of_images(fitted.figures, fitted.transform.ndim)

    def compare(self, task: Task) -> Compared:
        """Both sides prepared, and the metric by which to compare them."""
        assert isinstance(task.fixed, Image)
        assert isinstance(task.moving, Image)
        (fixed, one), (moving, other) = prepare(task.fixed), prepare(task.moving)
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
