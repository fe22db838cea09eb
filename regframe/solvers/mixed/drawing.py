"""Points drawn as an image of their density, to be compared with an image."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial import ConvexHull, cKDTree

from ...data import Grid, Image, PointSet, unit_ratio
from ...fit.clouds import distinct

NEIGHBOURS = 8
"""The distance to the neighbour of this rank tells how much room a point has."""
DRAWN = 0.2
"""Standard deviation of a drawn point over the width of its room."""
FINE = 0.4
"""Width of a pixel of the drawing over that standard deviation."""
MARGIN = 3.0
"""Standard deviations between the outermost points and the border of the drawing."""
RIM = 0.5
"""Width of the rim around the hull of the points, in rooms of a point, within which their absence says something; of what lies
beyond nothing is known."""
LATTICE = 1.1
"""Ratio of the distances to the nearest neighbour, nine tenths to one tenth, under which points lie on a lattice."""
MOST_PIXELS = 4_000_000
"""Pixels of a drawing at most."""
PER_POINT = 4.0
"""Independent observations that a raster fit counts for every drawn point at most: it is one position, however many pixels it
covers."""


def room_of(points: PointSet) -> float:
    """Width of the room that the median point has, in its unit: the D-th root of the volume per neighbour.

    From the distance to the eighth neighbour, so that holes, glass and strays do not count.
    """
    places = distinct(points)
    k = min(NEIGHBOURS, len(places) - 1)
    step = max(1, len(places) // 20_000)
    distance = np.asarray(cKDTree(places).query(places[::step], k=[k + 1])[0])
    ball = math.pi if points.ndim == 2 else 4 / 3 * math.pi
    return float(np.median(distance) * (ball / k) ** (1 / points.ndim))


def regular(points: PointSet) -> bool:
    """Whether the points lie on a lattice, as spots do: their density then shows where they end and nothing else."""
    places = distinct(points)
    step = max(1, len(places) // 20_000)
    near = np.asarray(cKDTree(places).query(places[::step], k=2)[0])[:, 1]
    low, high = np.quantile(near, [0.1, 0.9])
    return bool(high < LATTICE * low)


def draw(points: PointSet, image: Image, side: str) -> Image:
    """The points as an image of their density, each a Gaussian, as finely as their distances and the image ask for.

    It has no weight beyond the convex hull of the points and a rim.

    Args:
        points: to be drawn; weights count.
        image: what they are to be compared with; its pixels are no wider than those of the drawing, where the units tell.
        side: ``fixed`` or ``moving``, for messages.

    Raises:
        ValueError: for points that are too few, or scattered over a canvas that nobody could want.
    """
    if points.ndim != image.grid.ndim:
        raise ValueError(
            f"wanted points and an image of one dimension, got {points.ndim}D points and a {image.grid.ndim}D image; "
            "leave out or add the z column"
        )
    if len(distinct(points)) <= NEIGHBOURS:
        raise ValueError(
            f"wanted more than {NEIGHBOURS} distinct points on the {side} side to draw against an image, "
            f"got {len(distinct(points))}; pair them as landmarks instead"
        )
    room = room_of(points)
    ratio = unit_ratio(image.grid.unit, points.unit)
    sigma = DRAWN * room
    if ratio is not None:
        sigma = max(sigma, ratio * image.grid.pixel)
    spacing = FINE * sigma
    coords = points.coords.numpy()
    low = coords.min(axis=0) - MARGIN * sigma
    extent = np.ptp(coords, axis=0) + 2 * MARGIN * sigma
    spacing = max(spacing, float(np.prod(extent / spacing) / MOST_PIXELS) ** (1 / points.ndim) * spacing)
    if spacing > room:
        raise ValueError(
            f"wanted {side} points that lie together, got {len(points)} over {' x '.join(f'{e:.4g}' for e in extent)} "
            f"{points.unit} at a distance of {room:.3g}; leave out the stray ones far from the rest"
        )
    sigma = max(sigma, spacing)
    shape = tuple(math.ceil(e / spacing) + 1 for e in extent)
    grid = Grid(shape, (spacing,) * points.ndim, tuple(float(v) for v in low), points.unit)
    weights = np.ones(len(points)) if points.weights is None else points.weights.numpy().astype(np.float64)
    index = (coords - low) / spacing
    first = np.floor(index).astype(np.intp)
    part = index - first
    out = np.zeros(shape)
    for corner in np.ndindex(*(2,) * points.ndim):
        share = weights * np.prod(np.where(corner, part, 1 - part), axis=1)
        np.add.at(out, tuple((first + np.array(corner)).clip(0, np.array(shape) - 1).T), share)
    data = gaussian_filter(out, sigma / spacing, mode="constant").astype(np.float32)
    sides = ConvexHull(distinct(points)).equations  # [K, D+1]: outward normal and offset
    known = np.ones(shape, dtype=bool)
    axes = [o + spacing * np.arange(n) for o, n in zip(low, shape, strict=True)]
    for *normal, offset in sides:
        reach = functools.reduce(np.add.outer, [a * x for a, x in zip(normal, axes, strict=True)])
        known &= reach + offset <= RIM * room
    weight = torch.from_numpy(known.astype(np.float32))
    return Image(torch.from_numpy(data)[None], grid, ("density",), weight=weight, name=points.name)
