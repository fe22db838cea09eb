"""Points drawn as an image of their density, so that they can be compared with an image.

Lengths are stated in terms of the spacing of the points (`room_of`): the width of the square or cube that each point has to
itself.

Where a constant names no source, neither a paper nor a calibration is recorded for it; ``benchmarks/bench_mixed.py`` measures
what they achieve together.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from ...data import Grid, Image, PointSet, unit_ratio
from ...fit.clouds import distinct

NEIGHBOURS = 8
"""Rank of the neighbour whose distance measures the spacing of the points: far enough that chance pairs do not count, near
enough that holes do not."""
DRAWN = 0.2
"""Standard deviation of the Gaussian that is drawn for a point, over the spacing of the points: neighbouring points then stay
apart."""
FINE = 0.4
"""Width of a pixel of the drawing, over the standard deviation of a drawn point: fine enough to sample the Gaussian smoothly."""
MARGIN = 3.0
"""Distance from the outermost points to the border of the drawing, in standard deviations of a drawn point: beyond 3 the
Gaussian is practically 0."""
RIM = 0.5
"""Width of the rim around the points' convex hull in which the drawing still has weight, over the spacing of the points. Inside
it the absence of points is information; beyond it nothing is known."""
LATTICE = 1.1
"""Ratio of the 90 % to the 10 % quantile of the distances to the nearest neighbour, below which the points lie on a lattice."""
MOST_PIXELS = 4_000_000
"""Pixels of a drawing at most, a bound on memory and time; beyond it pixels become wider."""
PER_POINT = 4.0
"""Largest number of independent observations, per drawn point, that the fit of the drawing counts: a point is one position,
however many pixels it covers."""


def room_of(points: PointSet) -> float:
    """The spacing of the points, in their unit: the width of the square (or cube) that the median point has to itself.

    It follows from the distance to the eighth neighbour: the volume of a ball of that radius, divided by eight, to the power 1/D.
    The median keeps holes, empty glass and stray points from counting.
    """
    from scipy.spatial import cKDTree

    places = distinct(points)
    k = min(NEIGHBOURS, len(places) - 1)
    step = max(1, len(places) // 20_000)
    distance = np.asarray(cKDTree(places).query(places[::step], k=[k + 1])[0])
    ball = math.pi if points.ndim == 2 else 4 / 3 * math.pi
    return float(np.median(distance) * (ball / k) ** (1 / points.ndim))


def regular(points: PointSet) -> bool:
    """Whether the points lie on a lattice, as the spots of an array do: their density shows only where the lattice ends."""
    from scipy.spatial import cKDTree

    places = distinct(points)
    step = max(1, len(places) // 20_000)
    near = np.asarray(cKDTree(places).query(places[::step], k=2)[0])[:, 1]
    low, high = np.quantile(near, [0.1, 0.9])
    return bool(high < LATTICE * low)


def draw(points: PointSet, image: Image, side: str) -> Image:
    """The points as an image of their density, each drawn as a Gaussian.

    Its resolution follows from the spacing of the points and from the image's pixels. It has weight 0 outside the convex hull of
    the points and a rim.

    Args:
        points: the points to draw; weights count.
        image: what the drawing will be compared with; where the units allow, its pixels set the least width of a Gaussian.
        side: ``fixed`` or ``moving``, the side of the points; used in messages.

    Raises:
        ValueError: for too few points, and for points scattered so widely that pixels would be wider than their spacing.
    """
    from scipy.spatial import ConvexHull

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
