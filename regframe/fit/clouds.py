"""Clouds of points under a Gaussian mixture: checks, thinning, the E step over nearest pairs, closed forms of the M step.

Each fixed point is compared with its `NEIGHBOURS` nearest moving points only (k-d tree), so memory is linear in the number of
points. A "place" is a point, or the mean of several points after thinning.

Source: Myronenko & Song 2010 (coherent point drift); Umeyama 1991 (closed forms).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..data import Grid, PointSet
from .closed import turn_of

Floats = NDArray[np.float64]

NEIGHBOURS = (16, 10)
"""Number of nearest mapped moving points that a fixed point is compared with: for at most `SMALL` fixed points, and for more."""
SMALL = 600
"""Number of fixed points up to which accuracy is cheap: such clouds get more neighbours and slower cooling."""
MOST_PIXELS = 1 << 24
"""Largest number of pixels of a cloud's canvas (64 MB in float32): one stray point far away must not ask for more."""


# ---- one side ----------------------------------------------------------------------------------------------------


def check_cloud(points: PointSet, side: str) -> None:
    """Refuse a cloud from which no map follows: empty, not finite, too few distinct points, or all on one line or plane."""
    ndim = points.ndim
    if len(points) == 0:
        raise ValueError(f"wanted points on the {side} side, got none; check the file and its filter")
    bad = int((~torch.isfinite(points.coords)).any(dim=1).sum())
    if bad:
        raise ValueError(
            f"wanted finite positions on the {side} side, got {bad} of {len(points)} points with NaN or inf; leave these rows out"
        )
    if points.weights is not None and not (
        bool(torch.isfinite(points.weights).all())
        and float(points.weights.min()) >= 0
        and float(points.weights.sum()) > 0
    ):
        raise ValueError(f"wanted finite weights of at least 0 on the {side} side, not all 0, got others; mend these")
    places = distinct(points)
    if len(places) < ndim + 2:
        raise ValueError(
            f"wanted at least {ndim + 2} distinct {ndim}D points on the {side} side, got {len(places)} "
            f"(of {len(points)} rows); fewer determine no map: pair them as landmarks instead"
        )
    spread = np.linalg.svd(places - places.mean(axis=0), compute_uv=False)
    if not spread[-1] > 1e-6 * spread[0]:
        flat = "line" if ndim == 2 or not spread[1] > 1e-6 * spread[0] else "plane"
        raise ValueError(
            f"wanted {side} points that span {ndim}D, got {len(points)} on one {flat}; "
            + ("leave the constant axis out and register in 2D" if flat == "plane" else "add points off the line")
        )


def distinct(points: PointSet) -> Floats:
    """The distinct positions ``[N', D]`` of points with a weight above 0, sorted, so that the order of rows does not matter."""
    coords = points.coords if points.weights is None else points.coords[points.weights > 0]
    out: Floats = np.unique(coords.numpy(), axis=0)
    return out


def spacing_of(places: Floats) -> float:
    """Median distance from a place to its nearest neighbour, for distinct places ``[N, D]``, in their length unit."""
    from scipy.spatial import cKDTree

    step = max(1, len(places) // 20_000)
    distance = np.asarray(cKDTree(places).query(places[::step], k=2)[0])
    return float(np.median(distance[:, 1]))


AROUND = 16
"""Neighbours by whose distance the density of points is told: known to within a quarter, over four rooms of a point across."""


def room_of(places: Floats) -> Floats:
    """One over the density of places ``[N, D]`` at each of them ``[N]``, in their volume; the density integrates to 1.

    By the distance to the `AROUND`-th neighbour, which leaves the place itself out.
    """
    from scipy.spatial import cKDTree

    n, ndim = places.shape
    k = min(AROUND, n - 1)
    radius = np.asarray(cKDTree(places).query(places, k=k + 1)[0])[:, -1]
    ball = math.pi ** (ndim / 2) / math.gamma(ndim / 2 + 1) * np.maximum(radius, 1e-9) ** ndim
    out: Floats = ball * (n - 1) / max(k - 1, 1)
    return out


def canvas(points: PointSet) -> Grid:
    """The canvas of a cloud: its bounding box, with pixels as wide as the median distance to the nearest neighbour.

    It defines what "px" means for points, and is the canvas of stores and reports. Pixels are wider where there would be more
    than `MOST_PIXELS` of them.
    """
    places = distinct(points)
    low, extent = places.min(axis=0), np.ptp(places, axis=0)
    spacing = spacing_of(places)
    while math.prod(math.ceil(e / spacing) + 1 for e in extent) > MOST_PIXELS:
        spacing *= 1.1
    shape = tuple(math.ceil(e / spacing) + 1 for e in extent)
    origin = tuple(float(v) for v in low + (extent - spacing * (np.array(shape) - 1)) / 2)
    return Grid(shape, (spacing,) * points.ndim, origin, points.unit)


def thinned(places: Floats, count: int) -> Floats:
    """About ``count`` places ``[K, D]``, each the mean of equally many points: the leaves of a k-d tree.

    ``count`` is rounded to a power of two; clouds of at most ``count`` places are returned unchanged.
    """
    if len(places) <= count:
        return places
    blocks = [places]
    for _ in range(round(math.log2(count))):
        halves = []
        for block in blocks:
            axis = int(np.argmax(np.ptp(block, axis=0)))
            middle = len(block) // 2
            order = np.argpartition(block[:, axis], middle)
            halves += [block[order[:middle]], block[order[middle:]]]
        blocks = halves
    return np.stack([block.mean(axis=0) for block in blocks])


def some(places: Floats, count: int, seed: int) -> Floats:
    """At most ``count`` of the places, drawn without replacement, in their original order."""
    if len(places) <= count:
        return places
    rows = np.random.default_rng(seed).choice(len(places), count, replace=False)
    return places[np.sort(rows)]


# ---- the mixture ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Match:
    """Fixed points against mapped moving ones at one scale.

    Args:
        rows: rows of the nearest moving points of each fixed point ``[M, K]``.
        share: posterior probability of each pair ``[M, K]``; the rest to 1 belongs to the uniform class.
        log_density: log-density of each fixed point ``[M]``, in nats.
        square: mean squared distance per axis of the pairs, weighted by ``share``.
    """

    rows: NDArray[np.intp]
    share: Floats
    log_density: Floats
    square: float


def match(warped: Floats, fixed: Floats, sigma: float, outliers: float, volume: float | Floats) -> Match:
    """One E step (Myronenko & Song 2010, eq. 6) over the nearest pairs.

    Args:
        warped: mapped moving points ``[N, D]``.
        fixed: fixed points ``[M, D]``.
        sigma: σ, in the length unit of the positions.
        outliers: ω, share of fixed points without a partner.
        volume: V, volume over which points without a partner are spread evenly; or one over the density of those at each fixed
            point ``[M]``.
    """
    squares, rows = nearest(warped, fixed)
    return posterior(squares, rows, sigma, outliers, volume, len(warped), fixed.shape[1])


def nearest(warped: Floats, fixed: Floats) -> tuple[Floats, NDArray[np.intp]]:
    """Squared distances ``[M, K]`` from fixed points ``[M, D]`` to the nearest mapped moving ones ``[N, D]``, and their rows."""
    from scipy.spatial import cKDTree

    k = min(NEIGHBOURS[len(fixed) > SMALL], len(warped))
    found = cKDTree(warped).query(fixed, k=k)
    distance, rows = (np.asarray(part).reshape(len(fixed), k) for part in found)
    return distance**2, rows


def posterior(
    squares: Floats, rows: NDArray[np.intp], sigma: float, outliers: float, volume: float | Floats, n: int, ndim: int
) -> Match:
    """`match` from distances that are already known.

    Args:
        squares: squared distances ``[M, K]``.
        rows: rows of the moving points they belong to ``[M, K]``.
        sigma: σ, in the length unit of the positions.
        outliers: ω.
        volume: V, one or ``[M]``.
        n: number of moving points in all.
        ndim: 2 or 3.
    """
    constant = math.log((1 - outliers) / n) - ndim * math.log(sigma) - ndim / 2 * math.log(2 * math.pi)
    logits = constant - squares / (2 * sigma**2)
    uniform = np.log(max(outliers, 1e-300) / volume)
    top = np.maximum(logits.max(axis=1), uniform)
    share = np.exp(logits - top[:, None])
    total = share.sum(axis=1) + np.exp(uniform - top)
    share /= total[:, None]
    mass = share.sum()
    return Match(rows, share, top + np.log(total), float((share * squares).sum() / max(mass, 1e-12) / ndim))


def fit_pairs(kind: str, p: Floats, q: Floats, w: Floats) -> Floats:
    """The least-squares map ``[D+1, D+1]`` of ``p`` onto ``q`` (``[N, D]``) with weights ``w`` ``[N]`` (Umeyama 1991)."""
    ndim = p.shape[1]
    w = w / max(w.sum(), 1e-300)
    mean_p, mean_q = w @ p, w @ q
    dp, dq = p - mean_p, q - mean_q
    cross = (dq * w[:, None]).T @ dp
    if kind == "affine":
        gram = (dp * w[:, None]).T @ dp
        linear = np.linalg.solve(gram + 1e-12 * np.trace(gram) * np.eye(ndim), cross.T).T
    else:
        linear, values = turn_of(cross)
        if kind == "similarity":
            linear = linear * float(values.sum() / max(float((w[:, None] * dp * dp).sum()), 1e-300))
    matrix = np.eye(ndim + 1)
    matrix[:-1, :-1], matrix[:-1, -1] = linear, mean_q - linear @ mean_p
    return matrix


def carried(matrix: Floats, p: Floats) -> Floats:
    """Positions ``[N, D]`` mapped by a homogeneous matrix ``[D+1, D+1]``."""
    out: Floats = p @ matrix[:-1, :-1].T + matrix[:-1, -1]
    return out


def outliers_of(found: Match) -> float:
    """ω after an E step, under a weak prior (a tenth as many points) that nine in ten have a partner."""
    n = len(found.share)
    alone = n - float(found.share.sum())
    return float(min(max((alone + 0.1 * n * 0.1) / (1.1 * n), 1e-6), 0.99))


def radius_of(c: Floats) -> float:
    """Root mean square distance of places ``[N, D]`` from their middle."""
    return float(np.sqrt(((c - c.mean(axis=0)) ** 2).sum(axis=1).mean()))
