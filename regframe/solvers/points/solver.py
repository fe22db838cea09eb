"""The solver of two point clouds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar

import torch

from ... import plugins, verdict
from ...contracts import Fitted, Known, Otherwise, Solver, Task
from ...data import Image, PointSet, unit_ratio
from ...fit import clouds
from ...fit.threads import threads_for
from ...starts.given import given
from ...verdict import Finding
from .. import recipes, samples
from ..recipes import SURE


class Points(Solver):
    """Two point sets: the fixed points are taken as draws from a Gaussian mixture around the mapped moving points."""

    name: ClassVar[str] = "points"
    models: ClassVar[tuple[str, ...]] = recipes.MODELS
    drawn_by: ClassVar[str] = "cells"
    """Name of the adapter that draws both sides as densities where the points themselves find nothing."""

    @classmethod
    def sample(cls) -> Known | None:  # noqa: D102
        return samples.points()

    def matches(self, fixed: Image | PointSet, moving: Image | PointSet) -> float:  # noqa: D102
        return SURE if isinstance(fixed, PointSet) and isinstance(moving, PointSet) else 0.0

    def check(self, task: Task) -> list[Finding]:  # noqa: D102
        fixed, moving, metric = task.fixed, task.moving, task.metric
        assert isinstance(fixed, PointSet)
        assert isinstance(moving, PointSet)
        for points, side in ((fixed, "fixed"), (moving, "moving")):
            clouds.check_cloud(points, side)
        if fixed.ndim != moving.ndim:
            raise ValueError(
                f"wanted two point sets of one dimension, got {fixed.ndim}D fixed and {moving.ndim}D moving points; "
                "leave out or add the z column"
            )
        if metric is not None and metric.accepts != (PointSet, PointSet):
            wants = " and ".join(t.__name__ for t in metric.accepts)
            raise ValueError(f"wanted a metric for two point sets, got {type(metric).name!r}, which compares {wants}")
        if unit_ratio(moving.unit, fixed.unit) is not None:
            return []
        return [
            verdict.unknown_scale(
                fixed.unit, moving.unit, "unit", "name the unit in the columns (y_um, x_um) to fix it"
            )
        ]

    def fit(self, task: Task) -> Fitted:  # noqa: D102
        from .align import align  # which images do not wait for

        assert isinstance(task.fixed, PointSet)
        assert isinstance(task.moving, PointSet)
        grids = clouds.canvas(task.fixed), clouds.canvas(task.moving)
        start = given(*grids, task.start, task.config)
        with threads_for(len(task.fixed)):
            found = align(task.fixed, task.moving, grids, start, task.config, task.metric, task.progress)
            threads = torch.get_num_threads()
        metric: dict[str, Any] = {"name": "mixture", "why": "the one for points"}
        if task.metric is not None:
            metric = {"name": type(task.metric).name, "why": "as asked for"}
        metric |= found.figures.get("metric", {})
        return dataclasses.replace(found, figures=found.figures | {"metric": metric, "threads": threads})

    def judge(self, fitted: Fitted) -> Iterable[Finding]:  # noqa: D102
        return verdict.of_points(fitted.figures)

    def otherwise(self, task: Task) -> Otherwise | None:
        """Both sides as images of the density of their points: other individuals have other cells, but like tissue.

        None in 3D, where a metric for points was asked for, and where a side cannot be drawn.
        """
        fixed, moving = task.fixed, task.moving
        assert isinstance(fixed, PointSet)
        assert isinstance(moving, PointSet)
        if fixed.ndim != 2 or task.metric is not None:
            return None
        try:
            sides = [plugins.open(_bare(points), adapter=self.drawn_by) for points in (fixed, moving)]
        except ValueError:  # too few points, or no such adapter
            return None
        return Otherwise(dataclasses.replace(task, fixed=sides[0], moving=sides[1]), verdict.as_densities())


def _bare(points: PointSet) -> PointSet:
    """The positions of the points that count, without their table."""
    coords = points.coords if points.weights is None else points.coords[points.weights > 0]
    return PointSet(coords, points.unit, name=points.name)
