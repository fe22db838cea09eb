"""What the images say beyond a map that landmarks have just corrected: a short fit that begins where the map laid them.

Both sides are prepared once, as a registration prepares them, and kept at every resolution, so that a landmark that is dragged
costs a warp and a few dozen steps on one or two levels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..config import Config
from ..contracts import Progress, Task
from ..data import Grid, Image
from ..fit.frames import Frame
from ..fit.halvings import Halvings
from ..fit.pyramid import Fit, Pair, to_moving
from ..fit.threads import on_threads
from ..fit.warm import fit_on
from ..maps.base import Transform
from ..maps.resample import resample
from ..reference import carry
from ..result import Result
from ..slides.field import Array
from ..solvers.images import Images, recipe_of

PIXELS = 160_000
"""Pixels of the fixed side that a short fit looks at, at most: a fit of so many takes half a second to one second of a core."""
_LEVELS = 3
"""Resolutions of a short fit: a map that passes through its landmarks is off by less than the coarser one's reach."""
_STEPS = 40
"""Steps on each resolution at most: a fit that begins near its end takes 20 to 40, and one that would take more is not short."""
_LEAST = 24
"""Pixels along the shorter side, at least, of what is looked at: less holds no structure to align."""


@dataclass(frozen=True)
class Beyond:
    """A bend of the fixed space that images ask for: ``y -> y + e(y)`` before the map's inverse.

    Args:
        fit: the fit, both of whose frames are that of ``grid``.
        grid: the pixels that were looked at.
    """

    fit: Fit
    grid: Grid

    @property
    def spacing(self) -> float:
        """Distance of its nodes, in the fixed unit."""
        assert self.fit.space is not None
        return min(self.fit.space.grid.spacing) * self.grid.pixel

    def at(self, y: Array) -> Array:
        """``e`` at fixed positions ``[N, D]``; 0 where nothing was looked at."""
        coords = torch.from_numpy(y)
        frame = Frame.of(self.grid)
        there = carry(frame.matrix(), coords)
        moved = (to_moving(self.fit, there) - there) * frame.length
        found: Array = torch.where(self.grid.contains(coords)[:, None], moved, 0.0).numpy()
        return found


class Looked:
    """Both sides of a pair of flat images, prepared for comparison, at every resolution.

    Args:
        fixed: the fixed image.
        moving: the moving image.

    Raises what preparing them raises.
    """

    def __init__(self, fixed: Image, moving: Image) -> None:
        solver = Images()
        task = Task(fixed=fixed, moving=moving, metric=None, start="auto", config=Config(), progress=None)
        solver.check(task)
        self._pair = solver.compare(task)
        self._sides = self._pair.halvings()

    @classmethod
    def of(cls, fixed: object, moving: object) -> Looked | None:
        """Both sides, where they are flat images with intensities; None otherwise, or where they hold nothing to compare."""
        for side in (fixed, moving):
            if not isinstance(side, Image) or side.labels or side.grid.ndim != 2:
                return None
        assert isinstance(fixed, Image)
        assert isinstance(moving, Image)
        try:
            return cls(fixed, moving)
        except ValueError:
            return None

    def beyond(
        self,
        base: Result,
        pairs: tuple[Tensor, Tensor],
        accuracy: float,
        box: tuple[Array, Array] | None = None,
        report: Callable[[Progress], object] | None = None,
        pixels: int = PIXELS,
    ) -> Beyond | None:
        """What the images ask for beyond a map; None where they ask for nothing, or cannot tell.

        Args:
            base: the map, with the figures of its registration: whether both sides are different cuts of tissue, and how much
                fine structure they share, is taken from these where they say, and judged anew where they do not.
            pairs: moving and fixed positions ``[M, 2]`` of landmarks, which the fit is held to.
            accuracy: their standard deviation, in the fixed unit.
            box: lower and upper corner of what is looked at, in the fixed unit; the whole canvas where None.
            report: called after each step; what it raises ends the fit.
            pixels: of the fixed side that are looked at, at most; with more, both sides are halved until they are few enough.
        """
        cuts, transform = base.metrics.get("neighbouring_sections"), base.transform
        fixed = None if cuts else self._fixed(box, pixels)
        if fixed is None:
            return None
        size = self._sides[1].grid.pixel * _size(transform, fixed.grid)  # of a moving pixel, in the fixed unit
        times = max(0, round(math.log2(fixed.grid.pixel / size)))
        moving = self._sides[1].physical(times)
        if moving.weight is None:
            moving = moving.replace(weight=torch.ones(moving.grid.shape))
        laid = resample(moving, transform, fixed.grid)
        if laid.weight is None or not bool((laid.weight > 0.5).any()):
            return None
        config = Config.model_validate(
            {
                "transform": "lddmm",
                "n_slices": 1,
                "pyramid": {"levels": _LEVELS, "max_pixels": 1 << 40},
                "optimizer": {"max_iter": _STEPS},
            }
        )
        held = None
        if len(pairs[0]):
            matrix = Frame.of(fixed.grid).matrix()
            held = carry(matrix, transform.points(pairs[0])), carry(matrix, pairs[1]), accuracy / fixed.grid.pixel
        both, recipe = (Halvings(fixed), Halvings(laid)), recipe_of(self._pair)
        if cuts is not None:
            recipe = dataclasses.replace(recipe, cuts=None)
        shared = float(base.metrics.get("shared_structure") or 0.0)
        with on_threads(1):  # the same bits wherever it is repeated
            fit = fit_on(Pair(*both, self._pair.ready, config, held, recipe), shared, report)
        return None if fit is None or fit.space is None else Beyond(fit, fixed.grid)

    def _fixed(self, box: tuple[Array, Array] | None, pixels: int) -> Image | None:
        """The fixed side, or the part of it in a box, with so many pixels at most; None where there are too few."""
        side = self._sides[0]
        times = 0
        while True:
            image = side.physical(times)
            image = image if box is None else _cut(image, *box)
            if min(image.grid.shape) < _LEAST:
                return None
            if math.prod(image.grid.shape) <= pixels:
                return image
            times += 1


def _cut(image: Image, low: Array, high: Array) -> Image:
    """The pixels of an image whose middles lie in a box."""
    grid, region = image.grid, []
    for a, b, o, s, n in zip(low, high, grid.origin, grid.spacing, grid.shape, strict=True):
        first = min(max(math.ceil((a - o) / s), 0), n)
        region.append(slice(first, max(first, min(math.floor((b - o) / s) + 1, n))))
    origin = tuple(o + s * r.start for o, s, r in zip(grid.origin, grid.spacing, region, strict=True))
    shape = tuple(r.stop - r.start for r in region)
    if not all(shape):
        shape, region = (1, 1), [slice(0, 1), slice(0, 1)]
    part = Grid(shape, grid.spacing, origin, grid.unit)
    weight = None if image.weight is None else image.weight[tuple(region)]
    return image.replace(data=image.data[(slice(None), *region)], grid=part, weight=weight)


def _size(transform: Transform, grid: Grid) -> float:
    """Fixed lengths per moving length about the middle of a grid."""
    middle, step = np.array(grid.center), max(grid.extent) / 4
    corners = torch.from_numpy(middle + step * np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    y = transform.inverse().points(corners)
    area = abs(float(torch.linalg.det(torch.stack([y[1] - y[0], y[2] - y[0]]))))
    return step / math.sqrt(area) if area > 0 and math.isfinite(area) else 1.0
