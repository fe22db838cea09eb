"""Two densities of the same cells, refined by the cells themselves.

A density says where there are many cells; that one cell lies here and its neighbours there says far more, where both sides show
the same cells. So two densities whose cells are known are fitted once more, in the same space of maps: the cells of the side that
has fewer are taken as draws from a Gaussian mixture around the mapped cells of the other side, and whatever has no partner belongs
to a uniform class. That fit begins from the pose and from the map that the densities gave. Whether both sides show the same cells
is not asked of the user: the map is taken where it explains cells that it was not fitted to better than the map of the densities
does, at a scale that tells one cell from the next. Neighbouring sections hold other cells, and fail that test.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from ..config import Config
from ..data import Image
from ..fit.clouds import Floats, some, spacing_of
from ..fit.frames import Frame, Increment
from ..fit.mapspace import MapSpace
from ..fit.prior import PICTURES, velocity_space
from ..fit.pyramid import Fit
from .points.align import best_scale
from .points.bend import CloudFit, Clouds, bend

FEWEST = 30
"""Distinct cells on either side under which nothing is refined: fewer determine no bend."""
MOST = 6000
"""Cells drawn, at most, that a map is fitted to, and at most as many that it is tested on; every cell of the other side may be
the partner of one. More take time and change no position by a hundredth of a cell's room."""
WIDEST = 3.0
"""σ at the start, in pixels of the coarser side, which are a third as wide as the room of its cells (`plugins/regframe_cells`):
what a pose, or a map of densities, may be off by. At 6 fewer made pairs (`benchmarks.proving`, seeds 500 to 504) come home."""
SHARPEST = 0.3
"""Smallest σ, in pixels of the finer side: a tenth of the room of a cell. No instrument puts a cell where another one does by
less, and below it a bend follows a few cells that lie on each other by chance."""
APART = 1.0
"""Largest σ of a map that tells cells from their neighbours, over the median distance to the nearest one, of the denser side."""
REGULAR = 0.15
"""Spread of the distances to the nearest neighbour (standard deviation over mean), of positions of which no two lie on each other,
under which these are a lattice of spots, which fits at every shift by its own period, and no cells. Lattices have 0 to 0.05,
cells of the tables of ``benchmarks/proving`` 0.3 to 0.6."""
LAST = None
FOLDS = 3
"""Parts of the cells drawn, each of which is held out once."""
SURE = 4.0
"""Standard errors by which cells that were held out must be explained better. By chance one test in 30 000 is so sure."""


@dataclass(frozen=True)
class Refined:
    """A map refined by cells.

    Args:
        fit: the fit.
        clouds: the cells that it was fitted to, those with a weight in it.
        gain: mean rise of the log-density of cells that were held out, over the map of the densities, in nats per cell.
        error: standard error of it.
    """

    fit: CloudFit
    clouds: Clouds
    gain: float
    error: float


def cells_of(image: Image) -> Floats | None:
    """Positions ``[N, 2]`` of the distinct cells of an image in its normalised frame; None where they are not known, too few,
    or a lattice."""
    if image.things is None or image.grid.ndim != 2:
        return None
    grid = Frame.of(image.grid).grid(image.grid)
    at: Floats = np.unique(image.things.numpy() * np.array(grid.spacing) + np.array(grid.origin), axis=0)
    at = at[(np.abs(at) <= np.array(grid.extent) / 2).all(axis=1)]  # stray ones are not on the canvas
    if len(at) < FEWEST:
        return None
    distance = np.asarray(cKDTree(at).query(at, k=2)[0])[:, 1]
    return at if distance.std() > REGULAR * distance.mean() else None


def refined(fit: Fit, sides: tuple[Image, Image], began: Tensor, config: Config) -> Refined | None:
    """The map of two densities refined by their cells; None where these are not known, or do not confirm one.

    Args:
        fit: the map of the densities.
        sides: the fixed and the moving one.
        began: the pose from which ``fit`` began, its inverse ``[3, 3]`` in the normalised frames.
        config: all settings.
    """
    q, p = (cells_of(side) for side in sides)
    if p is None or q is None or config.transform != "lddmm":
        return None
    backwards = len(p) < len(q)
    centres, drawn = (q, p) if backwards else (p, q)
    clouds = Clouds(centres, some(drawn, MOST, config.seed), 1.0, config, backwards=backwards, among=True)
    drawn = clouds.q
    narrowest = SHARPEST * min(1.0, 1 / fit.maps.zoom if backwards else fit.maps.zoom)
    assert isinstance(clouds.volume, np.ndarray)

    def explained(state: CloudFit, rows: NDArray[np.intp]) -> Floats:
        return best_scale(state.warp(centres, backwards), drawn[rows], narrowest, 0.5, clouds.volume[rows])

    known = CloudFit(fit.x, fit.maps, narrowest, 0.5)
    best: tuple[float, CloudFit, Floats] | None = None
    folds = np.array_split(np.random.default_rng(config.seed).permutation(len(drawn)), FOLDS)
    for start in _starts(fit, sides[1], began, clouds):
        parts = []
        for rows in folds:
            others = np.delete(drawn, rows, axis=0)
            tried = bend(clouds.of(centres, others), dataclasses.replace(start), narrowest)
            parts.append(explained(tried, rows) - explained(known, rows))
        value = np.concatenate(parts)
        if best is None or value.mean() > best[0]:
            best = float(value.mean()), start, value
    if best is None:
        return None
    gain, error = best[0], float(best[2].std() / math.sqrt(len(best[2])))
    global LAST
    LAST = (gain, error, best[1].space is fit.space)
    if not gain > SURE * error:
        return None
    final = bend(clouds, best[1], narrowest)
    resolved = APART * spacing_of(centres) * (1 / fit.maps.zoom if backwards else fit.maps.zoom)
    if not math.isfinite(final.energy) or final.sigma > resolved:
        return None
    return Refined(final, clouds, gain, error)


def _starts(fit: Fit, moving: Image, began: Tensor, clouds: Clouds) -> Iterator[CloudFit]:
    """Where a fit of cells begins: from the pose, and from the map of the densities."""
    zoom = fit.maps.zoom
    sigma = WIDEST * max(1.0, zoom) / (zoom if clouds.backwards else 1.0)
    increment = Increment("affine", 2, fit.increment.radius)
    pose = CloudFit(torch.zeros(increment.size), MapSpace(began, increment), sigma, 0.5)
    densities = CloudFit(fit.x, fit.maps, sigma, 0.5)
    for start in (pose, densities):
        if start.space is None:
            start.bend(velocity_space(moving.grid, clouds.config, PICTURES, start.start))
        yield start
