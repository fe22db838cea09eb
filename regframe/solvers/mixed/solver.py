"""The solver of points against an image; either may be the fixed side."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar, Literal

from ... import verdict
from ...contracts import Fitted, Known, Solver, Task
from ...data import Image, PointSet
from ...fit.clouds import check_cloud
from ...fit.threads import threads_for
from ...verdict import Finding
from .. import raster, recipes, samples
from ..images import Images
from ..recipes import SURE
from .drawing import draw, regular

Side = Literal["fixed", "moving"]


class Mixed(Solver):
    """Points against an image: the points are drawn as a density image; resolved single nuclei then refine the map."""

    name: ClassVar[str] = "mixed"
    models: ClassVar[tuple[str, ...]] = recipes.MODELS

    @classmethod
    def sample(cls) -> Known | None:  # noqa: D102
        return samples.mixed()

    def matches(self, fixed: Image | PointSet, moving: Image | PointSet) -> float:  # noqa: D102
        return SURE if isinstance(fixed, PointSet) != isinstance(moving, PointSet) else 0.0

    def check(self, task: Task) -> list[Finding]:  # noqa: D102
        points, image, side = _split(task)
        check_cloud(points, side)
        raster.check_image(image, "moving" if side == "fixed" else "fixed")
        raster.check_metric(task.metric)
        units = (points.unit, image.grid.unit)
        return raster.check_units(*(units if side == "fixed" else units[::-1]))

    def fit(self, task: Task) -> Fitted:  # noqa: D102
        points, image, side = _split(task)
        drawing = draw(points, image, side)
        raster.check_image(drawing, side)
        changed = (drawing, task.moving) if side == "fixed" else (task.fixed, drawing)
        task = dataclasses.replace(task, fixed=changed[0], moving=changed[1])
        with threads_for(max(drawing.data.numel(), image.data.numel())):
            pair = Images().compare(task)
            done = raster.run(pair, task, recipes.drawn(points))
            seen = None
            if raster.pairs(done.sides, task) is None:
                from . import nuclei  # which no other kind of pair waits for

                fit, seen = nuclei.settle(done.fit, pair.fixed, pair.moving, points, side, task.config)
                done = dataclasses.replace(done, fit=fit)
            found = raster.fitted(pair, done, pair.moving.grid)
        drawn = {"side": side, "points": len(points), "spacing": drawing.grid.pixel}
        return dataclasses.replace(
            found,
            figures=found.figures | {"drawn": drawn, "nuclei": seen},
            findings=(verdict.lattice(),) if regular(points) else (),
        )

    def judge(self, fitted: Fitted) -> Iterable[Finding]:  # noqa: D102
        return verdict.of_images(fitted.figures, fitted.transform.ndim)


def _split(task: Task) -> tuple[PointSet, Image, Side]:
    """The points, the image, and which side the points are."""
    if isinstance(task.fixed, PointSet):
        assert isinstance(task.moving, Image)
        return task.fixed, task.moving, "fixed"
    assert isinstance(task.moving, PointSet)
    return task.moving, task.fixed, "moving"
