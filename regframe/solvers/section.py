"""A section in a volume: a search places it on an oblique plane, then it is bent within a slab of the volume."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .. import plugins, verdict
from ..contracts import Fitted, Solver, Task
from ..data import Grid, Image, PointSet
from ..fit.halvings import Halvings
from ..fit.threads import threads_for
from ..maps.affine import Affine
from ..maps.plane import lift, nearest
from ..starts import pose
from ..starts import section as place
from ..starts.given import given
from ..starts.scale import Scale
from ..starts.section import RATIO
from ..verdict import Finding
from . import raster, recipes
from .preparation import grey, prepare
from .raster import Compared, Run
from .recipes import SURE

SLAB = 0.08
"""Margin of the slab of volume that is kept around a section, as a fraction of the diagonal of the box around the placed
section. It has to hold the bend and the reach of its smoothness: five prior standard deviations (`recipes.PLANE_DEVIATION` is
0.015 of a similar extent), or one length a (`recipes.PLANE_SCALE`, 0.08)."""
PAINT_AREA = 30.0
"""Pixels of the section that count as one independent observation of a label's colour, since neighbouring pixels resemble each
other. It matters only for labels that the section hardly shows, whose colour is drawn towards the mean of all tissue."""
SEEN_IN_VOLUME = 200_000
"""About how many pixels of the section are used to colour a volume of labels: a bound on time; the mean colour of a label
changes little with more pixels."""


class Section(Solver):
    """A 2D fixed image and a moving volume: the section's plane is searched for, then the two are fitted as images."""

    name: ClassVar[str] = "section"
    models: ClassVar[tuple[str, ...]] = recipes.MODELS
    default: ClassVar[str] = "mi"
    """Name of the metric where the user names none and the volume holds intensities: mutual information, because a section and
    a volume need not show the same quantity."""
    for_labels: ClassVar[str] = "contrast"
    """Name of the metric where the user names none and the volume holds labels: every label is given the mean colour that the
    section shows there (`painted`), so both sides show the same quantity."""

    def matches(self, fixed: Image | PointSet, moving: Image | PointSet) -> float:  # noqa: D102
        if not (isinstance(fixed, Image) and isinstance(moving, Image)):
            return 0.0
        return SURE if (fixed.grid.ndim, moving.grid.ndim) == (2, 3) else 0.0

    def check(self, task: Task) -> list[Finding]:  # noqa: D102
        assert isinstance(task.fixed, Image)
        assert isinstance(task.moving, Image)
        for image, side in ((task.fixed, "fixed"), (task.moving, "moving")):
            raster.check_image(image, side)
        raster.check_metric(task.metric)
        return raster.check_units(task.fixed.grid.unit, task.moving.grid.unit)

    def fit(self, task: Task) -> Fitted:  # noqa: D102
        assert isinstance(task.fixed, Image)
        assert isinstance(task.moving, Image)
        with threads_for(max(task.fixed.data.numel(), task.moving.data.numel())):
            pair = self._compare(task)
            done, sd, findings = self._run(pair, task)
            found = raster.fitted(pair, done, task.moving.grid)
            found.figures["plane"] = _plane_figures(found.affine, found.fixed_grid, sd)
            return dataclasses.replace(found, section=True, findings=findings)

    def judge(self, fitted: Fitted) -> Iterable[Finding]:  # noqa: D102
        return verdict.of_images(fitted.figures, fitted.transform.ndim)

    def _compare(self, task: Task) -> Compared:
        assert isinstance(task.fixed, Image)
        assert isinstance(task.moving, Image)
        (fixed, one), (moving, other) = prepare(task.fixed), prepare(task.moving)
        if one.brightfield:
            fixed = grey(fixed)
        if task.metric is not None:
            return Compared(fixed, moving, (one, other), task.metric, "as asked for")
        if moving.labels:
            why = "every label takes the colour that the section shows there"
            return Compared(fixed, moving, (one, other), plugins.metric(self.for_labels), why)
        why = "a section and a volume need not show the same"
        return Compared(fixed, moving, (one, other), plugins.metric(self.default), why)

    def _run(self, pair: Compared, task: Task) -> tuple[Run, float | None, tuple[Finding, ...]]:
        """Search for the plane, cut a slab of the volume around it, and fit the bend.

        Returns the fit; the spread at the section's corners of the planes that fit about equally well (standard deviation, in the
        volume's unit; None where the plane was given); and the findings of the search.
        """
        fixed, moving, config = pair.fixed, pair.moving, task.config
        side, found, sd = Halvings(lift(fixed)), None, None
        findings: tuple[Finding, ...] = ()
        start = given(side.grid, moving.grid, task.start, config)
        if start is None:
            plane = place.search(fixed, Halvings(moving), config)
            factor = Scale.of(fixed.grid, moving.grid).factor
            start = pose.nearest_of_kind(plane.pose.matrix, config.transform, factor, moving.grid.center)
            found, sd = plane.pose, plane.sd
            findings = (verdict.either_side(),) if plane.either_side else ()
        seen = side.physical(side.times_until(lambda grid: math.prod(grid.shape) <= SEEN_IN_VOLUME))
        at = Affine(start, moving.grid.unit, fixed.grid.unit).inverse().points(seen.grid.coords())
        volume = slab(moving, at)
        # the recipe does not refine the plane: locally, a section hardly determines shifts across its own plane, while the
        # search has compared planes of the whole volume
        sides = side, Halvings(painted(volume, seen, at) if moving.labels else volume)
        fit = raster.fit(pair, sides, start, task, recipes.PLANE)
        return Run(sides, start, found, fit), sd, findings


def _plane_figures(affine: Affine, grid: Grid, sd: float | None) -> dict[str, Any]:
    """Position and tilt of a section in its volume, in the volume's unit, components in the order ``(z, y, x)``."""
    middle = torch.tensor(grid.center, dtype=torch.float64)
    steps = torch.diag(torch.tensor(grid.spacing, dtype=torch.float64))[1:]
    at = affine.inverse().points(torch.cat([middle[None], middle + steps]))  # [3, 3]
    down, right = at[1] - at[0], at[2] - at[0]
    normal = torch.nn.functional.normalize(torch.linalg.cross(down, right), dim=0)
    tilt = math.degrees(math.acos(min(1.0, float(normal.abs().max()))))
    return {
        "middle": at[0].tolist(),
        "normal": normal.tolist(),
        "tilt_degrees": tilt,
        "pixel": [float(down.norm()), float(right.norm())],
        "corner_sd": sd,
    }


def slab(volume: Image, at: Tensor, margin: float = SLAB) -> Image:
    """The box of a volume around a section that was placed in it.

    Args:
        volume: the whole volume.
        at: positions of the section's pixels in the volume, ``[..., 3]``, in its unit.
        margin: width added on every side, as a fraction of the diagonal of the box around ``at``.
    """
    at = at.reshape(-1, 3)
    low, high = at.amin(dim=0), at.amax(dim=0)
    more = margin * float((high - low).norm())
    part, origin = [], []
    for d, (n, s, o) in enumerate(zip(volume.grid.shape, volume.grid.spacing, volume.grid.origin, strict=True)):
        first = min(max(math.floor((float(low[d]) - more - o) / s), 0), n - 1)
        last = min(max(math.ceil((float(high[d]) + more - o) / s), first), n - 1)
        first, last = max(0, min(first, last - 7)), min(n - 1, max(last, first + 7))
        part.append(slice(first, last + 1))
        origin.append(o + s * first)
    data = volume.data[(slice(None), *part)]
    weight = None if volume.weight is None else volume.weight[tuple(part)]
    return volume.replace(
        data=data, weight=weight,
        grid=Grid(tuple(data.shape[1:]), volume.grid.spacing, tuple(origin), volume.grid.unit),
    )  # fmt: skip


def painted(labels: Image, section: Image, at: Tensor) -> Image:
    """A volume of labels in which every label has the mean colour that the section shows where the label lies.

    A label that the section hardly shows gets nearly the mean colour of all tissue.

    Args:
        labels: ``[1, *S]``; 0 marks what is not tissue.
        section: ``[C, *S_f]``.
        at: positions of the section's pixels in the volume, ``[*S_f, 3]``, in the volume's unit.
    """
    ids, codes = np.unique(labels.data[0].numpy(), return_inverse=True)
    volume = torch.from_numpy(codes.reshape(labels.grid.shape))
    nothing = int(np.searchsorted(ids, 0)) if bool((ids == 0).any()) else len(ids)
    found = nearest(volume, labels.grid, at.reshape(-1, 3), nothing)
    values = section.data.to(torch.float32).flatten(1)  # [C, n]
    weight = torch.ones(len(found)) if section.weight is None else section.weight.to(torch.float32).flatten()
    weight = weight / PAINT_AREA
    n = len(ids) + 1
    mass = torch.zeros(n).index_add_(0, found, weight)
    total = torch.zeros((n, len(values))).index_add_(0, found, (values * weight).T)
    tissue = torch.arange(n) != nothing
    middle = total[tissue].sum(dim=0) / mass[tissue].sum().clamp(min=1e-6)
    colour = (total + middle / RATIO) / (mass[:, None] + 1 / RATIO)
    if mass[nothing] > 0:
        colour[nothing] = total[nothing] / mass[nothing]
    data = colour.T[:, volume.reshape(-1)].reshape(-1, *labels.grid.shape)
    return Image(data, labels.grid, section.channels, weight=labels.weight, name=labels.name)
