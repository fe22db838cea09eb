"""Two densities of the same cells, refined by the cells themselves.

A density says where there are many cells; that one cell lies here and its neighbours there says far more, where both sides show
the same cells. So two densities whose cells are known (`Image.things`) are fitted once more, in the same space of maps: the cells
of the side that has fewer are taken as draws from a Gaussian mixture around the mapped cells of the other side
(`points.bend.CloudEnergy`). That fit begins from the pose, and from the map that the densities gave. Whether both sides show the
same cells is not asked of the user. Cells that were held out answer it: they must have partners where the map puts them, rather
than two cells farther on. Neighbouring sections hold other cells, and keep the map of the densities.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import Config
from ..data import Grid, Image
from ..fit.clouds import Floats, match, outliers_of, room_of, some, spacing_of
from ..fit.frames import Frame, Increment
from ..fit.mapspace import MapSpace
from ..fit.prior import PICTURES, velocity_space
from ..fit.pyramid import Fit, LevelRules, Pair, build_levels, fit_level
from ..fit.steps import Stage
from .points.align import best_scale
from .points.bend import CloudFit, Clouds, bend
from .points.figures import position_sd

MANY = 300_000
"""Things on either side above which nothing is refined: transcripts, not cells."""
FEWEST = 30
"""Distinct cells on either side under which nothing is refined: fewer determine no bend."""
MOST = 3000
"""Cells drawn, at most, that a map is fitted to; every cell of the other side may be the partner of one. So many fix a bend to a
hundredth of a cell's room already."""
WIDEST = 3.0
"""σ at the start, in pixels of the coarser side, which the adapter makes a third as wide as the room of its cells: what a pose,
or a map of densities, may be off by. Of 3, 6 and 12 px, on eleven made pairs (`benchmarks.proving`, seeds 500 to 504 and five
that were wrong before), 3 brings most home."""
SHARPEST = 0.3
"""Smallest σ, in pixels of the finer side, a tenth of the room of a cell: below it a bend follows a few cells that lie on each
other by chance (with 0.1 a made pair ends 1.3 px off that ends 0.4 px off with a wider σ)."""
APART = 0.75
"""Largest σ of a map that tells cells from their neighbours, over the median distance to the nearest one of the denser side.
Right maps of made pairs have 0.1 to 0.6; one that was 1.07 of its bar off, `block` 40004, had 0.98."""
REGULAR = 0.15
"""Spread of the distances to the nearest neighbour (standard deviation over mean) under which positions are a lattice of spots,
which fits wherever it is shifted by its own period, and no cells. Lattices have 0 to 0.05, cells 0.3 to 0.6."""
UNSEEN = 0.1
"""Rms displacement that the prior allows for at a scale σ, over σ, whatever was found so far. Without it the prior of few cells
closes before their bend is seen, and `position_sd` holds 16 to 64 % of the positions, not 90; with 0.2 and 0.5 a bend of 200
cells follows their jitter (`technologies`, seeds 500 to 502 of ``benchmarks/proving``, and one more)."""
FOLDS = 3
"""Parts of the cells drawn; each is held out once from a fit to the others."""
STEP = 2.0
"""Shift by which a map is made a wrong one, in median distances to the nearest neighbour of the denser side: far enough to part
partners, near enough for either side's density to be the same."""
SURE = 5.0
"""Standard errors by which held-out cells must be explained better in place than when shifted by `STEP`. Made pairs of the same
cells (seeds 500 to 511 of ``benchmarks/proving``) have 7 to 30."""


@dataclass(frozen=True)
class Refined:
    """A map refined by cells.

    Args:
        fit: the fit.
        clouds: the cells that it was fitted to.
        gain: mean rise of the log-density of held-out cells over the map of the densities, in nats per cell.
        sure: standard errors by which they are explained better than under shifted maps (see `SURE`).
        pose: whether the fit began from the pose, not from the map of the densities.
    """

    fit: CloudFit
    clouds: Clouds
    gain: float
    sure: float
    pose: bool

    @property
    def forwards(self) -> CloudFit:
        """The fit as one that draws the fixed cells: σ in fixed pixels, ω the share of those without a partner."""
        if not self.clouds.backwards:
            return self.fit
        fit = dataclasses.replace(self.fit, sigma=self.fit.sigma * self.fit.maps.zoom)
        moving, fixed = self.clouds.q, self.clouds.p
        warped, volume = fit.warp(moving), float(np.prod(np.ptp(fixed, axis=0)))
        for _ in range(3):
            fit.outliers = outliers_of(match(warped, fixed, fit.sigma, fit.outliers, volume))
        return fit

    def position_sd(self, fixed: Grid, onto: Grid) -> Tensor:
        """Standard deviation per axis ``[*S]`` of mapped positions on the grid ``onto``, in the unit of the canvas ``fixed``."""
        q, p = (self.clouds.p, self.clouds.q) if self.clouds.backwards else (self.clouds.q, self.clouds.p)
        return position_sd(self.forwards, p, some(q, MOST, self.clouds.config.seed), False, fixed, onto)

    def figures(self) -> dict[str, Any]:
        """The entry ``cells`` of ``metrics.json``."""
        return {
            "gain": self.gain,
            "sure": self.sure,
            "partners": 1 - self.fit.outliers,
            "scale": self.fit.sigma
            / spacing_of(self.clouds.p)
            / (1 if not self.clouds.backwards else 1 / self.fit.maps.zoom),
            "from": "pose" if self.pose else "densities",
        }


@dataclass(frozen=True)
class _Tried:
    """Fits from one start, each to all but one part of the cells drawn, and how well each explains that part."""

    start: CloudFit
    maps: list[CloudFit]
    explained: list[Floats]


class _Test:
    """The cells of both sides, and how well maps explain some of them that they were not fitted to.

    A cell without a partner is taken to lie where its own side has cells, so that densities explain nothing here.
    """

    def __init__(self, clouds: Clouds, narrowest: float) -> None:
        self.clouds, self.narrowest = clouds, narrowest
        self.room = room_of(clouds.q)
        self.parts = np.array_split(np.random.default_rng(clouds.config.seed).permutation(len(clouds.q)), FOLDS)

    def explained(self, fit: CloudFit, rows: NDArray[np.intp], shift: Floats | float = 0.0) -> Floats:
        """Log-densities of cells drawn, ``rows``, under a map that is shifted, each at the likeliest σ."""
        clouds = self.clouds
        warped = fit.warp(clouds.p, clouds.backwards) + shift
        return best_scale(warped, clouds.q[rows], self.narrowest, 0.5, self.room[rows])

    def fitted(self, start: CloudFit, rows: NDArray[np.intp] | None = None) -> CloudFit:
        """The fit from ``start``, to all cells drawn but ``rows``."""
        clouds = self.clouds
        q = clouds.q if rows is None else np.delete(clouds.q, rows, axis=0)
        return bend(clouds.of(clouds.p, q), dataclasses.replace(start), self.narrowest)

    def tried(self, start: CloudFit, parts: list[NDArray[np.intp]]) -> _Tried:
        """Fits from ``start``, each without one of ``parts``."""
        maps = [self.fitted(start, rows) for rows in parts]
        return _Tried(start, maps, [self.explained(one, rows) for one, rows in zip(maps, parts, strict=True)])

    def shifted(self, maps: list[CloudFit], step: float) -> Floats:
        """What maps explain when they are shifted by ``step``, the mean of three directions, of all cells in order of parts."""
        out = []
        for angle in np.arange(3) * 2 * math.pi / 3 + 0.4:
            shift = step * np.array([math.sin(angle), math.cos(angle)])
            out.append(np.concatenate([self.explained(o, r, shift) for o, r in zip(maps, self.parts, strict=True)]))
        return np.asarray(np.mean(out, axis=0))


def cells_of(image: Image) -> Floats | None:
    """Positions ``[N, 2]`` of the distinct cells of an image in its normalised frame; None where they are not known, too few
    or too many, or a lattice."""
    if image.things is None or image.grid.ndim != 2 or len(image.things) > MANY:
        return None
    grid = Frame.of(image.grid).grid(image.grid)
    at: Floats = np.unique(image.things.numpy() * np.array(grid.spacing) + np.array(grid.origin), axis=0)
    at = at[(np.abs(at) <= np.array(grid.extent) / 2).all(axis=1)]  # stray ones are not on the canvas
    if len(at) < FEWEST:
        return None
    from scipy.spatial import cKDTree  # a tenth of a second that images need not wait for

    distance = np.asarray(cKDTree(at).query(at, k=2)[0])[:, 1]
    return at if distance.std() > REGULAR * distance.mean() else None


def refined(fit: Fit, sides: tuple[Image, Image], began: Tensor, config: Config) -> Refined | None:
    """The map of two densities refined by their cells; None where these are not known, or are not the same ones.

    Args:
        fit: the map of the densities.
        sides: the fixed and the moving one.
        began: the pose from which ``fit`` began, its inverse ``[3, 3]`` in the normalised frames.
        config: all settings.
    """
    q, p = (cells_of(side) for side in sides)
    if p is None or q is None or config.transform != "lddmm":
        return None
    backwards, zoom = len(p) < len(q), fit.maps.zoom
    centres, drawn = (q, p) if backwards else (p, q)
    own = 1 / zoom if backwards else zoom  # size of a pixel of the centres' side, in pixels of the side of those drawn
    clouds = Clouds(centres, some(drawn, MOST, config.seed), 1.0, config, backwards=backwards, unseen=UNSEEN)
    test = _Test(clouds, SHARPEST * min(1.0, own))
    starts = list(_starts(fit, sides[1], began, clouds, WIDEST * max(1.0, own)))
    first = [test.tried(start, test.parts[:1]) for start in starts]
    chosen = max(range(len(starts)), key=lambda i: float(first[i].explained[0].mean()))
    rest = test.tried(starts[chosen], test.parts[1:])
    maps, here = first[chosen].maps + rest.maps, np.concatenate(first[chosen].explained + rest.explained)
    apart = own * spacing_of(centres)
    rise = here - test.shifted(maps, STEP * apart)
    sure = float(rise.mean() / max(rise.std() / math.sqrt(len(rise)), 1e-9))
    if sure < SURE:
        return None
    known = CloudFit(fit.x, fit.maps, test.narrowest, 0.5)
    more = here - np.concatenate([test.explained(known, rows) for rows in test.parts])
    gain, error = float(more.mean()), float(more.std() / math.sqrt(len(more)))
    final = (
        test.fitted(starts[chosen]) if gain > -error else None
    )  # few cells tell maps apart less than right from wrong
    if final is None or not math.isfinite(final.energy) or final.sigma > APART * apart:
        return None
    return Refined(final, clouds, gain, sure, chosen == 0)


def _starts(fit: Fit, moving: Image, began: Tensor, clouds: Clouds, sigma: float) -> Iterator[CloudFit]:
    """Where a fit of cells begins, at the scale ``sigma``: from the pose, and from the map of the densities."""
    increment = Increment("affine", 2, fit.increment.radius)
    pose = CloudFit(torch.zeros(increment.size), MapSpace(began, increment), sigma, 0.5)
    densities = CloudFit(fit.x, fit.maps, sigma, 0.5)
    for start in (pose, densities):
        if start.space is None:
            start.bend(velocity_space(moving.grid, clouds.config, PICTURES, start.start))
        yield start


def adopted(fit: Fit, found: Refined, pair: Pair) -> Fit:
    """The ``fit`` of two densities with the map that their cells gave, its weights and energy on the finest level."""
    level = build_levels(pair.fixed, pair.moving, found.fit.start, pair.config)[-1]
    number = int(fit.history[-1]["level"]) if fit.history else 0
    lines = [line | {"stage": "cells", "level": number} for line in found.fit.history]
    out = dataclasses.replace(
        fit, x=found.fit.x, maps=found.fit.maps, history=[*fit.history, *lines], reasons=[*fit.reasons], lost=False, torn=None,
        n_evaluations=fit.n_evaluations + found.fit.n_evaluations,
    ).on(level.fixed.device)  # fmt: skip
    return fit_level(out, level, pair, Stage("cells", number, 1, len(lines)), LevelRules(held=True))
