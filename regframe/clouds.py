"""Point clouds against each other, without a raster: pose search, annealed Gaussian mixture, bend, verdict.

The fixed points are taken as draws from a Gaussian mixture centred on the mapped moving points, with a uniform class for
what has no partner::

    p(y) = (1 - ω) / n Σ_i N(y; Φ(x_i), σ²) + ω / V

σ, the scale of the metric, starts wide and shrinks until the likelihood no longer asks for it; ω, the share without a
partner, is estimated at every scale. Far pairs do not count: each fixed point is compared with its `NEIGHBOURS` nearest
moving points (a k-d tree), and while σ is wide both sides are thinned to as many places as σ can tell apart. Memory is
therefore linear in the number of points.

Sources: Myronenko & Song 2010 (coherent point drift: the mixture, its uniform class, its EM steps); Rose 1998
(deterministic annealing); Umeyama 1991 (closed forms); Alexa 2022 (super-Fibonacci spirals: turns spread evenly over
SO(3)); Beg et al. 2005 (LDDMM).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from . import ops, reference
from .config import Config
from .data import Grid, PointSet
from .fit import uncertainty
from .fit.frames import Frame, Increment
from .fit.lbfgs import FIRST_STEP, minimize
from .fit.velocity import Preconditioner, VelocitySpace, enough_steps, physical_maps, smooth_size
from .maps import homogeneous
from .maps.affine import Affine
from .maps.base import Transform

Floats = NDArray[np.float64]

NEIGHBOURS = (16, 10)
"""Nearest mapped moving points that a fixed point is compared with, of up to `SMALL` fixed points and of more."""
SMALL = 600
"""Fixed points up to which care is cheap: more neighbours and slower cooling."""
COOLING = 0.75
"""Factor from one scale σ to the next."""
COOLING_BEND = (0.75, 0.55)
"""The same for a bent map, of up to `SMALL` fixed points and of more."""
SHARPEST = 1e-4
"""Smallest σ of a straight map, in spacings of the fixed points: what is closer is the same place."""
SHARPEST_BEND = (0.05, 0.15)
"""The same of a bent one, of up to `SMALL` fixed points and of more."""
LEAST_MATCHED = 0.4
"""Share of the points matched at a wider scale that a narrower one must still match to be believed."""
MOST_FITTED = 1200
"""Fixed points that the finest level looks at, at most; every moving point may be their partner."""
THINNED = (128, 512)
"""Places that larger clouds are thinned to, level by level, before that."""
MOST_PIXELS = 1 << 24
"""Pixels of the canvas of a cloud at most."""


# ---- one side ----------------------------------------------------------------------------------------------------


def check_cloud(points: PointSet, side: str) -> None:
    """Refuse a cloud that no map follows from: empty, not finite, too few distinct points, on one line or plane."""
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
    """The distinct positions of weight above 0 ``[N', D]``, in an order that does not depend on the rows': a position
    counts once."""
    coords = points.coords if points.weights is None else points.coords[points.weights > 0]
    out: Floats = np.unique(coords.numpy(), axis=0)
    return out


def spacing_of(places: Floats) -> float:
    """The median distance of a place to its nearest neighbour, of distinct places ``[N, D]``."""
    step = max(1, len(places) // 20_000)
    distance = np.asarray(cKDTree(places).query(places[::step], k=2)[0])
    return float(np.median(distance[:, 1]))


def canvas(points: PointSet) -> Grid:
    """The grid of a cloud: its bounding box with pixels as wide as the median distance to the nearest neighbour.

    It is what "px" means for points, and the canvas of the store and of the report. Pixels are wider where there would be
    more than `MOST_PIXELS` of them.
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
    """About ``count`` places ``[K, D]`` that stand for equally many points each: means of the leaves of a k-d tree.

    ``count`` is taken as a power of two; fewer points come back as they are.
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
    """At most ``count`` of the places, drawn without replacement, in their order."""
    if len(places) <= count:
        return places
    rows = np.random.default_rng(seed).choice(len(places), count, replace=False)
    return places[np.sort(rows)]


# ---- the mixture ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Match:
    """Fixed points against mapped moving ones at one scale.

    Args:
        rows: the nearest moving points of each fixed one ``[M, K]``.
        share: posterior probability of each pair ``[M, K]``; what is missing to 1 is the uniform class.
        log_density: of each fixed point ``[M]``, in nats per fixed unit volume.
        square: mean squared distance per axis of the pairs, weighted by ``share``.
    """

    rows: NDArray[np.intp]
    share: Floats
    log_density: Floats
    square: float


def match(warped: Floats, fixed: Floats, sigma: float, outliers: float, volume: float) -> Match:
    """One E step (Myronenko & Song 2010, eq. 6) over the nearest pairs.

    Args:
        warped: ``[N, D]``.
        fixed: ``[M, D]``.
        sigma: σ, in the same length.
        outliers: ω.
        volume: V.
    """
    k = min(NEIGHBOURS[len(fixed) > SMALL], len(warped))
    found = cKDTree(warped).query(fixed, k=k)
    distance, rows = (np.asarray(part).reshape(len(fixed), k) for part in found)
    return posterior(distance**2, rows, sigma, outliers, volume, len(warped), fixed.shape[1])


def posterior(
    squares: Floats, rows: NDArray[np.intp], sigma: float, outliers: float, volume: float, n: int, ndim: int
) -> Match:
    """`match`, of squared distances ``[M, K]`` that are known already."""
    constant = math.log((1 - outliers) / n) - ndim * math.log(sigma) - ndim / 2 * math.log(2 * math.pi)
    logits = constant - squares / (2 * sigma**2)
    uniform = math.log(max(outliers, 1e-300) / volume)
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
        u, s, vh = np.linalg.svd(cross)
        sign = np.ones(ndim)
        sign[-1] = np.sign(np.linalg.det(u) * np.linalg.det(vh)) or 1.0
        linear = (u * sign) @ vh
        if kind == "similarity":
            linear = linear * float((s * sign).sum() / max(float((w[:, None] * dp * dp).sum()), 1e-300))
    matrix = np.eye(ndim + 1)
    matrix[:-1, :-1], matrix[:-1, -1] = linear, mean_q - linear @ mean_p
    return matrix


def carried(matrix: Floats, p: Floats) -> Floats:
    """Positions ``[N, D]`` under ``[D+1, D+1]``."""
    out: Floats = p @ matrix[:-1, :-1].T + matrix[:-1, -1]
    return out


@dataclass(frozen=True)
class State:
    """A straight map and how it fits.

    Args:
        matrix: ``A`` ``[D+1, D+1]``, moving → fixed.
        sigma: σ.
        outliers: ω.
        value: mean log density of the fixed points there, higher is better.
    """

    matrix: Floats
    sigma: float
    outliers: float
    value: float = -math.inf


def anneal(kind: str, p: Floats, q: Floats, start: State, narrowest: float, steps: int = 2) -> State:
    """The straight map of ``kind`` that explains ``q`` best by ``p``, followed from a wide scale to a narrow one.

    At each scale ``steps`` EM steps are made; the scale of the highest likelihood is kept and settled there.

    Args:
        kind: ``rigid``, ``similarity`` or ``affine``; ``start`` is of it (a rigid map with a known change of unit in it: scale
            ``p`` before).
        p: moving ``[N, D]``.
        q: fixed ``[M, D]``.
        start: with the widest scale.
        narrowest: smallest scale, in the same length.
    """
    volume = float(np.prod(np.ptp(q, axis=0)))
    now, best = start, start
    worse = 0
    while True:
        for _ in range(steps):
            found = match(carried(now.matrix, p), q, now.sigma, now.outliers, volume)
            now = replace(now, matrix=_m_step(kind, p, q, found, now.matrix), outliers=_outliers(found))
        value = float(match(carried(now.matrix, p), q, now.sigma, now.outliers, volume).log_density.mean())
        now = replace(now, value=value)
        lost = 1 - now.outliers < LEAST_MATCHED * (1 - best.outliers)
        if value > best.value and not lost:
            best, worse = now, 0
        else:
            worse += 1
        if worse >= 8 or now.sigma <= narrowest or lost:
            break
        residual = math.sqrt(max(found.square, 0.0))  # far below σ where the pairs are exact: no need to go slowly
        now = replace(now, sigma=max(min(now.sigma * COOLING, max(2 * residual, 0.2 * now.sigma)), narrowest))
    return best


def _m_step(kind: str, p: Floats, q: Floats, found: Match, before: Floats) -> Floats:
    keep = found.share > 1e-8
    rows, w = found.rows[keep], found.share[keep]
    at = np.broadcast_to(np.arange(len(q))[:, None], keep.shape)[keep]
    if w.sum() < p.shape[1] + 1:
        return before
    mirrored = np.linalg.det(before[:-1, :-1]) < 0
    if kind == "affine" or not mirrored:
        matrix = fit_pairs(kind, p[rows], q[at], w)
        return matrix if np.isfinite(matrix).all() and np.linalg.det(matrix[:-1, :-1]) != 0 else before
    flip = np.eye(p.shape[1] + 1)
    flip[0, 0] = -1
    return fit_pairs(kind, carried(flip, p[rows]), q[at], w) @ flip


def _outliers(found: Match) -> float:
    """ω after an E step, with a weak prior (a tenth of the points) in favour of a partner."""
    n = len(found.share)
    alone = n - float(found.share.sum())
    return float(min(max((alone + 0.1 * n * 0.1) / (1.1 * n), 1e-6), 0.99))


# ---- the pose ------------------------------------------------------------------------------------------------------

TURNS_PLANE = 24
"""Turns tried around the full circle."""
TURNS_SPACE = 256
"""Turns tried over SO(3), about 40° apart."""
SIZES = {2: (0.8, 1.0, 1.25), 3: (1.0,)}
"""Sizes tried where it is not known, about the one that makes both clouds spread equally far."""
SCANNED = (64, (0.5, 0.4, 0.32, 0.25), 128)
"""Places per side, scales (over the fixed cloud's rms radius) and how many poses go on, of the first scan."""
SIFTED = (128, (0.22, 0.18, 0.15, 0.12, 0.1), 8)
"""The same of the second, which fits sizes too."""
SETTLED = (256, (0.1, 0.085, 0.07, 0.06, 0.05, 0.05), 8)
"""The same of the last."""
ALONE = 0.1
"""ω of the pose search."""
UNMIRRORED = 0.3
"""How much less, relatively, a pose without a mirror may score and still be preferred."""
CLEAR = 0.3
"""Margin of the pose, ``1 - exp(-nats per point)``, below which another one may as well be right."""
SLACK = 0.4
"""Nats per point (of both sides) by which a pose may score less than the best and still be tried."""
RIVALS = 8
"""Poses at most from which the map asked for is tried."""
APART = 0.15
"""Mean distance, over the moving cloud's rms radius, from which two poses are truly different."""


@dataclass(frozen=True)
class Found:
    """A pose found without landmarks.

    Args:
        matrix: ``A`` ``[D+1, D+1]``, moving → fixed.
        score: nats per point by which both clouds explain each other better than one broad Gaussian does.
        margin: how much less, relative to ``score``, the best truly different pose scores.
        runner_up: the matrix of that pose, or None.
        runner_up_score: its score.
    """

    matrix: Floats
    score: float
    margin: float | None
    runner_up: Floats | None = None
    runner_up_score: float | None = None
    rivals: tuple[Floats, ...] = ()


def turns(ndim: int) -> Tensor:
    """Rotations ``[B, D, D]`` spread evenly: the circle, or super-Fibonacci spirals on SO(3) (Alexa 2022)."""
    if ndim == 2:
        angle = 2 * math.pi * torch.arange(TURNS_PLANE, dtype=torch.float64) / TURNS_PLANE
        return torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).reshape(-1, 2, 2)
    s = torch.arange(TURNS_SPACE, dtype=torch.float64) + 0.5
    r, big_r = (s / TURNS_SPACE).sqrt(), (1 - s / TURNS_SPACE).sqrt()
    alpha, beta = 2 * math.pi * s / math.sqrt(2.0), 2 * math.pi * s / 1.533751168755204288118041
    x, y, z, w = r * alpha.sin(), r * alpha.cos(), big_r * beta.sin(), big_r * beta.cos()
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
        2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
        2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    around = torch.stack(rows, dim=1).reshape(-1, 3, 3)
    return torch.cat([torch.eye(3, dtype=torch.float64)[None], around])


def search(p: Floats, q: Floats, known: bool, mirror: bool) -> Found:
    """The pose of ``p`` ``[N, D]`` on ``q`` ``[M, D]``: any turn and shift, any size unless ``known``, a mirror if allowed.

    Every turn (and mirror, and size) starts an EM of its own with the middles together; all run as one batch on thinned
    clouds while σ shrinks, and the better half goes on.
    """
    ndim = p.shape[1]
    mean_p, mean_q = p.mean(axis=0), q.mean(axis=0)
    radius_p, radius_q = (float(np.sqrt(((c - c.mean(axis=0)) ** 2).sum(axis=1).mean())) for c in (p, q))
    unit = radius_q
    base = 1.0 if known else radius_q / radius_p
    sizes = [1.0] if known else [base * s for s in SIZES[ndim]]
    if not known and all(abs(math.log(s)) > 0.1 for s in sizes):
        sizes.append(1.0)
    around = turns(ndim)
    if mirror:
        flip = torch.eye(ndim, dtype=torch.float64)
        flip[-1, -1] = -1
        around = torch.cat([around, around @ flip])
    linear = torch.cat([around * s for s in sizes]).to(torch.float32)  # [B, D, D], of p in units
    shift = torch.zeros((len(linear), ndim), dtype=torch.float32)

    def side(c: Floats, mean: Floats, count: int) -> Tensor:
        return torch.from_numpy((thinned(c, count) - mean) / unit).to(torch.float32)

    volume = float(np.prod(np.ptp(q, axis=0) / unit))
    for number, (count, scales, keep) in enumerate((SCANNED, SIFTED, SETTLED)):
        ps, qs = side(p, mean_p, count), side(q, mean_q, count)
        for scale in scales:
            linear, shift = _batch_step(ps, qs, linear, shift, scale, volume, number > 0 and not known)
        score = _batch_score(ps, qs, linear, shift, scales[-1], volume)
        chosen = _distinct(ps, linear, shift, score, keep, 0.05 if number == 0 else APART)
        linear, shift, score = linear[chosen], shift[chosen], score[chosen]
    score = score - _broad(ps, qs)
    mirrored = torch.linalg.det(linear) < 0
    best = int(score.argmax())
    if bool(mirrored[best]) and bool((~mirrored).any()):
        other = int(torch.where(mirrored, -torch.inf, score).argmax())
        if float(score[other]) >= (1 - UNMIRRORED) * float(score[best]):
            best = other
    moved = ps @ linear.mT + shift[:, None]
    apart = (moved - moved[best]).norm(dim=2).mean(dim=1) > APART * float(torch.linalg.det(linear[best]).abs()) ** (
        1 / ndim
    )

    def matrix(i: int) -> Floats:
        out = np.eye(ndim + 1)
        out[:-1, :-1] = linear[i].to(torch.float64).numpy()
        out[:-1, -1] = mean_q + unit * shift[i].to(torch.float64).numpy() - out[:-1, :-1] @ mean_p
        return out

    top = float(score[best])
    order = [i for i in score.argsort(descending=True).tolist() if i != best and float(score[i]) > top - SLACK]
    rivals = tuple(matrix(i) for i in order[: RIVALS - 1])
    if not bool(apart.any()):
        return Found(matrix(best), top, None, rivals=rivals)
    rival = int(torch.where(apart, score, -torch.inf).argmax())
    margin = max(0.0, (top - float(score[rival])) / max(abs(top), 1e-9))
    return Found(matrix(best), top, margin, matrix(rival), float(score[rival]), rivals)


def _squares(ps: Tensor, qs: Tensor, linear: Tensor, shift: Tensor) -> Tensor:
    """Squared distances ``[B, M, N]``."""
    moved = ps @ linear.mT + shift[:, None]  # [B, N, D]
    cross = qs @ moved.mT
    return (qs.square().sum(1)[:, None] + moved.square().sum(2)[:, None, :] - 2 * cross).clamp_(min=0)


def _batch_step(
    ps: Tensor, qs: Tensor, linear: Tensor, shift: Tensor, sigma: float, volume: float, resize: bool
) -> tuple[Tensor, Tensor]:
    """One EM step of B poses at once: ``linear`` ``[B, D, D]``, ``shift`` ``[B, D]``."""
    ndim = ps.shape[1]
    share = _squares(ps, qs, linear, shift).mul_(-1 / (2 * sigma**2)).exp_()
    uniform = ALONE / (1 - ALONE) * len(ps) * (2 * math.pi * sigma**2) ** (ndim / 2) / volume
    share /= share.sum(dim=2, keepdim=True) + uniform
    by_p, by_q = share.sum(dim=1), share.sum(dim=2)  # [B, N], [B, M]
    total = by_p.sum(dim=1).clamp(min=1e-6)
    mean_p, mean_q = by_p @ ps / total[:, None], by_q @ qs / total[:, None]
    cross = (share @ ps).mT @ qs  # Σ p qᵀ, [B, D, D]
    cross = cross.mT / total[:, None, None] - mean_q[:, :, None] * mean_p[:, None, :]
    u, s, vh = torch.linalg.svd(cross)
    sign = torch.ones_like(s)
    sign[:, -1] = torch.sign(torch.linalg.det(u) * torch.linalg.det(vh) * torch.linalg.det(linear))
    turn = (u * sign[:, None, :]) @ vh
    size = torch.linalg.det(linear).abs() ** (1 / ndim)
    if resize:
        spread = (by_p @ ps.square().sum(1)) / total - mean_p.square().sum(1)
        fitted = (s * sign).sum(1) / spread.clamp(min=1e-9)
        size = fitted.clamp(min=0.5 * size, max=2 * size)
    linear = turn * size[:, None, None]
    return linear, mean_q - (linear @ mean_p[:, :, None])[:, :, 0]


def _batch_score(ps: Tensor, qs: Tensor, linear: Tensor, shift: Tensor, sigma: float, volume: float) -> Tensor:
    """Mean log density ``[B]`` of the fixed points given the moving ones plus that of the moving ones given the fixed."""
    ndim = ps.shape[1]
    near = _squares(ps, qs, linear, shift).mul_(-1 / (2 * sigma**2)).exp_()
    constant = (1 - ALONE) * (2 * math.pi * sigma**2) ** (-ndim / 2)
    forth = (near.mean(dim=2) * constant + ALONE / volume).log().mean(dim=1)
    back = (near.mean(dim=1) * constant + ALONE / volume).log().mean(dim=1)
    score: Tensor = forth + back + torch.linalg.det(linear).abs().log()
    return score


def _broad(ps: Tensor, qs: Tensor) -> float:
    """The score of one Gaussian for either cloud, each of its own covariance: what no structure at all comes to."""
    out = 0.0
    for c in (ps, qs):
        covariance = torch.cov(c.T)
        out -= 0.5 * float(torch.logdet(2 * math.pi * math.e * covariance))
    return out


def _distinct(ps: Tensor, linear: Tensor, shift: Tensor, score: Tensor, keep: int, apart: float) -> Tensor:
    """Indices of the ``keep`` best poses no two of which put the cloud in nearly the same place."""
    moved = ps @ linear.mT + shift[:, None]
    order = score.argsort(descending=True)
    chosen: list[int] = []
    for i in order.tolist():
        if chosen and float((moved[chosen] - moved[i]).norm(dim=2).mean(dim=1).min()) < apart:
            continue
        chosen.append(i)
        if len(chosen) == keep:
            break
    return torch.tensor(chosen)


# ---- straight maps -------------------------------------------------------------------------------------------------


Tell = Callable[[str, int, int, float], None]


def straighten(kind: str, p: Floats, q: Floats, start: Floats, seed: int, tell: Tell | None = None) -> State:
    """The map of ``kind`` from a pose, coarse to fine: thinned clouds first, then the points themselves.

    Args:
        kind: ``rigid``, ``similarity`` or ``affine``; for ``affine`` a similarity goes before it.
        p: moving ``[N, D]``.
        q: fixed ``[M, D]``.
        start: ``[D+1, D+1]``.
        seed: of the draw of points at the finest level.
        tell: called with stage, level, iteration and energy per fixed point.
    """
    level = 0
    state = State(start, 0.08 * _radius(q), 0.1)
    kinds = [kind] if kind != "affine" else ["similarity", "affine"]
    for count in THINNED:
        if 2 * count <= max(len(p), len(q)):
            ps, qs = thinned(p, count), thinned(q, count)
            for one in kinds:
                state = anneal(one, ps, qs, replace(state, value=-math.inf), 0.5 * spacing_of(qs))
                state = replace(state, sigma=1.5 * state.sigma)
                if tell is not None:
                    tell("affine", level, 1, -state.value)
            kinds, level = kinds[-1:], level + 1
    qs, spacing = some(q, MOST_FITTED, seed), spacing_of(q)
    for one in kinds:
        wide = max(state.sigma, (AFFINE_WIDE if one == "affine" and len(kinds) > 1 else WIDE) * spacing)
        state = anneal(one, p, qs, replace(state, sigma=wide, value=-math.inf), SHARPEST * spacing)
        if tell is not None:
            tell("affine", level, 1, -state.value)
    return state


def _radius(c: Floats) -> float:
    return float(np.sqrt(((c - c.mean(axis=0)) ** 2).sum(axis=1).mean()))


# ---- bent maps -----------------------------------------------------------------------------------------------------

SCALE = 0.15
"""Default length a of the Sobolev operator, as a fraction of the moving canvas' extent (geometric mean of its sides)."""
NODES = {2: 3.0, 3: 2.0}
"""Velocity nodes per length a, by dimension."""
DEVIATION = 0.1
"""Prior standard deviation of a displacement before anything is known, as the same fraction."""
DEVIATION_MARGIN = 2.0
"""The prior deviation over the rms displacement found so far."""
DEVIATION_FLOOR = 0.03
"""Smallest prior deviation, in moving pixels."""
AFFINE_WIDE = 4.0
"""The same where an affine map follows a similarity, which can be far off."""
WIDE = 1.5
"""σ that a level starts with at least, in spacings of its fixed points."""
WORTH = 3e-3
"""Nats per fixed point that the last steps of a descent must have gained to go on."""
ROUNDS = 1
"""Times the neighbours are looked for at every scale."""
STEPS = (8, 5)
"""Descent steps between, of up to `SMALL` fixed points and of more."""
MOST_VARIABLES = 400_000
"""Values of a velocity at most."""


class CloudEnergy:
    """``E(q, u) = -Σ_j log p(y_j) + |u|²/2`` for given neighbours, σ and ω, and its gradient.

    By Fisher's identity its gradient is that of the EM bound, so descending it is EM with an inexact M step.

    Args:
        p: moving points ``[N, D]`` in the moving frame.
        q: fixed points ``[M, D]`` in the fixed frame.
        rows: neighbours ``[M, K]`` among ``p``.
        count: n of the mixture.
        sigma: σ in fixed pixels.
        outliers: ω.
        volume: V.
        increment: parametrisation of the affine part.
        start: ``B_0`` ``[D+1, D+1]``, fixed → moving.
        space: velocities.
        weight: what an observation counts.
    """

    def __init__(
        self, p: Floats, q: Floats, rows: NDArray[np.intp], count: int, sigma: float, outliers: float, volume: float,
        increment: Increment, start: Tensor, space: VelocitySpace, weight: float = 1.0,
    ) -> None:  # fmt: skip
        ndim = p.shape[1]
        used, place = np.unique(rows, return_inverse=True)
        self.p = torch.from_numpy(p[used]).to(torch.float32)  # [N', D]
        self.q = torch.from_numpy(q).to(torch.float32)  # [M, D]
        self.rows = torch.from_numpy(place.reshape(-1))  # [M * K]
        self.sigma, self.weight = sigma, weight
        self.increment, self.start, self.space = increment, start, space
        self._constant = math.log((1 - outliers) / count) - ndim * math.log(sigma) - ndim / 2 * math.log(2 * math.pi)
        self._uniform = torch.tensor(math.log(outliers / volume), dtype=torch.float32)
        self._rim = torch.from_numpy(np.stack([q.min(axis=0), q.max(axis=0)]))
        self._zoom = float(homogeneous.determinant(start).abs()) ** (-1 / ndim)
        self.n_evaluations = 0
        self.value = math.nan
        self.regularizer = 0.0

    def __call__(self, x: Tensor) -> tuple[float, Tensor]:
        """Energy and gradient ``[K + P]`` at ``x``."""
        self.n_evaluations += 1
        size, grid, ndim = self.increment.size, self.space.grid, self.p.shape[1]
        u = x[size:].detach()
        with torch.enable_grad():
            affine = x[:size].detach().requires_grad_(True)
            velocity = self.space.velocity(u).requires_grad_(True)
            moved = ops.flow_points(self.p, velocity, grid.spacing, grid.origin, self.space.n_steps, False)
            pullback = homogeneous.compose(self.start, self.increment.matrix(affine))
            warped = reference.carry(homogeneous.inverse(pullback).to(torch.float32), moved)  # [N', D]
            pairs = warped.index_select(0, self.rows).reshape(len(self.q), -1, ndim)
            squares = (pairs - self.q[:, None]).square().sum(dim=2)  # [M, K]
            density = torch.logsumexp(self._constant - squares / (2 * self.sigma**2), dim=1)
            value = -self.weight * torch.logaddexp(density, self._uniform).sum()
            a_grad, v_grad = torch.autograd.grad(value, (affine, velocity))
        self.value = float(value.detach())
        self.regularizer = 0.5 * float(torch.linalg.vector_norm(u, dtype=torch.float64)) ** 2
        return self.value + self.regularizer, torch.cat([a_grad, self.space.adjoint(v_grad) + u])

    def movement(self, change: Tensor) -> float:
        """The largest distance a change of the variables moves a point, to first order, in units of σ."""
        size = self.increment.size
        step = self.increment.matrix(change[:size]) - torch.eye(self.p.shape[1] + 1, dtype=torch.float64)
        moved = float(reference.carry(step, self._rim).norm(dim=1).max())
        displacement = self.space.velocity(change[size:]).mean(dim=0)
        moved += self._zoom * float(displacement.square().sum(dim=0).max().sqrt())
        return float(moved / self.sigma)


@dataclass
class CloudFit:
    """Where a fit stands.

    Args:
        x: variables ``[K + P]``: the affine increment and the whitened velocity.
        start: ``B_0`` ``[D+1, D+1]``, fixed frame → moving frame.
        increment: parametrisation of the affine part.
        space: velocities, or None for a straight map.
        sigma: σ in fixed pixels.
        outliers: ω.
        history: one entry per scale.
        reasons: how the last descents ended.
        n_evaluations: of an energy, or of an E step.
        energy: the lowest of the last descent.
    """

    x: Tensor
    start: Tensor
    increment: Increment
    space: VelocitySpace | None
    sigma: float
    outliers: float
    history: list[dict[str, Any]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    n_evaluations: int = 0
    energy: float = math.inf

    @property
    def pullback(self) -> Tensor:
        """Inverse affine map ``[D+1, D+1]`` of the frames."""
        return homogeneous.compose(self.start, self.increment.matrix(self.x[: self.increment.size]))

    def warp(self, p: Floats) -> Floats:
        """Moving-frame points ``[N, D]`` in the fixed frame."""
        at = torch.from_numpy(p)
        if self.space is not None:
            grid, velocity = self.space.grid, self.space.velocity(self.x[self.increment.size :]).to(torch.float64)
            at = ops.flow_points(at, velocity, grid.spacing, grid.origin, self.space.n_steps, False)
        out: Floats = reference.carry(homogeneous.inverse(self.pullback), at).detach().numpy()
        return out


def velocity_space(moving: Grid, config: Config) -> VelocitySpace:
    """Velocities for a cloud's box (in its frame): smoothness from its extent, nodes over the box and two lengths a around."""
    extent = math.prod(moving.extent) ** (1 / moving.ndim)
    scale = extent * SCALE if config.sobolev.scale is None else config.sobolev.scale
    deviation = extent * DEVIATION if config.sigma_regularizer is None else config.sigma_regularizer
    spacing = scale / NODES[moving.ndim]
    n_slices = config.n_slices or 3
    while True:
        shape = tuple(smooth_size(max(4, math.ceil((e + 4 * scale) / spacing))) for e in moving.extent)
        if math.prod(shape) * moving.ndim * n_slices <= MOST_VARIABLES:
            break
        spacing *= 1.1
    nodes = Grid(shape, (spacing,) * moving.ndim, tuple(-(n - 1) / 2 * spacing for n in shape))
    return VelocitySpace(nodes, n_slices, config.n_steps or n_slices, scale, config.sobolev.order or 2.0, deviation)


def bend(
    p: Floats, q: Floats, fit: CloudFit, config: Config, narrowest: float, level: int = 0, tell: Tell | None = None
) -> CloudFit:
    """Follow a bent fit from its scale to narrower ones, as long as the posterior gains; the best is kept.

    Args:
        p: moving ``[N, D]`` in its frame.
        q: fixed ``[M, D]`` in its frame.
        fit: with a velocity space.
        narrowest: smallest σ, in fixed pixels.
        level: what the log calls it.
        tell: called with stage, level, iteration and energy at every scale.
    """
    volume = float(np.prod(np.ptp(q, axis=0)))
    space = fit.space
    assert space is not None
    size = fit.increment.size
    lowest, best, worse = math.inf, fit, 0
    canvas_nodes = max(1.0, float(np.prod(np.ptp(p, axis=0))) / math.prod(space.waves.spacing))
    zoom = float(homogeneous.determinant(fit.start).abs()) ** (-1 / p.shape[1])
    now = replace(fit, history=list(fit.history))
    while True:
        for _ in range(ROUNDS):
            assert now.space is not None
            if config.n_steps is None:
                now.space = enough_steps(now.space, now.x[size:])
            found = match(now.warp(p), q, now.sigma, now.outliers, volume)
            now.outliers = _outliers(found)
            energy = CloudEnergy(
                p, q, found.rows, len(p), now.sigma, now.outliers, volume, now.increment, now.start, now.space
            )
            curvature = float(found.share.sum()) / now.sigma**2
            change = Preconditioner(now.increment, now.space, canvas_nodes, curvature, curvature * zoom**2)
            outcome = minimize(
                functools.partial(_changed, energy, change), change.inverse(now.x), functools.partial(_moved, energy, change),
                max_iter=STEPS[len(q) > SMALL], tolerance=0.02, max_move=4.0, memory=config.optimizer.memory,
                first_step=FIRST_STEP, worthwhile=WORTH * len(q),
            )  # fmt: skip
            now.x = change(outcome.x)
            now.n_evaluations += energy.n_evaluations + 1
            if outcome.reason == "diverged":
                now.reasons = [*now.reasons, "diverged"]
                return best
        energy(now.x)
        total = energy.value + energy.regularizer
        now.history.append(
            {
                "stage": "lddmm", "level": level, "iteration": len(now.history), "energy": total, "matching": energy.value,
                "regularizer": energy.regularizer, "sigma": now.sigma, "outliers": now.outliers,
            }
        )  # fmt: skip
        if tell is not None:
            tell("lddmm", level, len(now.history), total)
        lost = 1 - now.outliers < LEAST_MATCHED * (1 - best.outliers)
        if total < lowest and not lost:
            lowest, best, worse = total, replace(now), 0
        else:
            worse += 1
        if worse >= 3 or lost or now.sigma <= narrowest:
            break
        if config.sigma_regularizer is None:
            _adapt(now, p)
        residual = math.sqrt(max(found.square, 0.0))
        now.sigma = max(min(now.sigma * COOLING_BEND[len(q) > SMALL], max(2 * residual, 0.3 * now.sigma)), narrowest)
    best.energy = lowest
    best.history, best.n_evaluations, best.reasons = now.history, now.n_evaluations, [*best.reasons, outcome.reason]
    return best


def _adapt(fit: CloudFit, p: Floats) -> None:
    """Set the prior's deviation from the displacement found so far (empirical Bayes), leaving the velocity as it is."""
    assert fit.space is not None
    grid, size = fit.space.grid, fit.increment.size
    at = torch.from_numpy(p).to(torch.float32)
    moved = ops.flow_points(at, fit.space.velocity(fit.x[size:]), grid.spacing, grid.origin, fit.space.n_steps, False)
    rms = float((moved - at).square().mean().sqrt())
    deviation = max(DEVIATION_MARGIN * rms, DEVIATION_FLOOR)
    fit.x = torch.cat([fit.x[:size], fit.x[size:] * (fit.space.deviation / deviation)])
    fit.space = fit.space.with_deviation(deviation)


def _changed(energy: CloudEnergy, change: Preconditioner, z: Tensor) -> tuple[float, Tensor]:
    value, gradient = energy(change(z))
    return value, change(gradient)


def _moved(energy: CloudEnergy, change: Preconditioner, z: Tensor) -> float:
    return energy.movement(change(z))


def extent_of(c: Floats) -> Grid:
    """The box of a cloud about the origin of its frame, as a grid of pixels about 1 wide: what `velocity_space` wants."""
    reach = np.abs(c).max(axis=0)
    return Grid(tuple(max(1, math.ceil(2 * r)) for r in reach), (1.0,) * c.shape[1], tuple(-float(r) for r in reach))


def bent_start(straight: State, p: Floats, q: Floats, before: float, config: Config) -> CloudFit:
    """A fit that has not bent yet: ``before`` is the change of unit that went before the straight map."""
    increment = Increment("affine", p.shape[1], max(float(np.linalg.norm(np.ptp(q, axis=0))) / 2, 1e-9))
    matrix = straight.matrix @ np.diag([*[before] * p.shape[1], 1.0])
    space = velocity_space(extent_of(p), config)
    x = torch.zeros(increment.size + space.size, dtype=torch.float32)
    start = homogeneous.inverse(torch.from_numpy(matrix))
    return CloudFit(x, start, increment, space, straight.sigma, straight.outliers)


def straight_fit(straight: State, p: Floats, q: Floats, before: float, kind: str) -> CloudFit:
    """A fit that does not bend."""
    increment = Increment(kind, p.shape[1], max(float(np.linalg.norm(np.ptp(q, axis=0))) / 2, 1e-9))
    matrix = straight.matrix @ np.diag([*[before] * p.shape[1], 1.0])
    start = homogeneous.inverse(torch.from_numpy(matrix))
    x = torch.zeros(increment.size, dtype=torch.float32)
    return CloudFit(x, start, increment, None, straight.sigma, straight.outliers, energy=-straight.value)


# ---- all of it -----------------------------------------------------------------------------------------------------

TRIED = 256
"""Places that both clouds are thinned to where several poses are tried."""
VARIED = 3
"""Poses of which other sizes are tried too where none stands out."""
EXPLAINED = 1.0
"""Nats per fixed point, bending included, by which a bent map may fall short of explaining every point exactly at the
narrowest scale and still need no rival."""
HELD_OUT = 1000
"""Fixed points at most, of the half (a quarter where they are few) that is held out, on which a bend of the rest must help."""
CONVINCING = 2.0
"""Standard errors by which it must."""
PLAIN = 1.6
"""Nats per fixed point, its own price included, by which a bend of a small cloud may be kept all the same."""
FAR = 0.5
"""Points beyond the middle 98 % of a cloud by more than this share of their extent, along any axis, do not take part in the
fit."""
BLUR = 0.05
"""Nats per point over one broad Gaussian under which the clouds are not believed to match."""
VIOLENT = 10.0
"""Change of area that is not believed without a remark."""
STRONG = 3.0
"""The same where many points have no partner."""


@dataclass(frozen=True)
class Aligned:
    """What `align` found, in physical units."""

    transform: Transform
    affine: Affine
    figures: dict[str, Any]
    verdict: str
    reasons: list[str]
    history: list[dict[str, Any]]
    weight: Tensor
    weight_grid: Grid
    position_sd: Tensor


def taking_part(c: Floats) -> Floats:
    """The points that are not far beyond the rest (see `FAR`)."""
    if len(c) < 50:
        return c
    low, high = np.quantile(c, [0.01, 0.99], axis=0)
    reach = FAR * (high - low)
    out: Floats = c[((c >= low - reach) & (c <= high + reach)).all(axis=1)]
    return out


def align(
    fixed: PointSet,
    moving: PointSet,
    grids: tuple[Grid, Grid],
    start: Tensor | None,
    ratio: float | None,
    config: Config,
    metric: PointMetric | None = None,
    tell: Tell | None = None,
) -> Aligned:
    """Register two checked clouds.

    Args:
        fixed: stays where it is.
        moving: is brought onto it.
        grids: the canvas of each.
        start: ``A`` ``[D+1, D+1]``, physical, or None to search for it.
        ratio: moving lengths in fixed ones, None where the units do not say; pixels do not fix the size but for a rigid map.
        config: all settings.
        metric: the measure to end with; the mixture where None.
        tell: called with stage, level, iteration and energy.
    """
    config = _in_pixels(config, grids[1].pixel)
    ndim, kind = fixed.ndim, "affine" if config.transform == "lddmm" else config.transform
    to_fixed, to_moving = (Frame.of(grid).matrix().numpy() for grid in grids)
    q, p = (taking_part(carried(m, distinct(s))) for m, s in ((to_fixed, fixed), (to_moving, moving)))
    before = (ratio or 1.0) * grids[1].pixel / grids[0].pixel
    known = config.transform == "rigid" or (ratio is not None and "px" not in (fixed.unit, moving.unit))
    ps = p * before
    found: Found | None = None
    if start is None:
        found = search(ps, q, known, kind == "affine")
        straight, margin, n_tried, tried = _best_pose(found, ps, p, q, before, known, config, tell)
    else:
        pose = to_fixed @ start.numpy() @ np.linalg.inv(to_moving) @ np.diag([*[1 / before] * ndim, 1.0])
        straight, margin, n_tried, tried = straighten(kind, ps, q, pose, config.seed, tell), None, 0, None
    fit = straight_fit(straight, p, q, before, kind)
    held: dict[str, float] | None = None
    bent = False
    if config.transform == "lddmm":
        held = held_out(ps, p, q, straight, before, config)
        bent = held["gain"] > CONVINCING * held["error"]
        if tried is not None:  # a bend of all points that needs no holding out: few of them cannot be done without
            held["energy_gain"] = -straight.value - tried.energy / len(q)
            bent = bent or held["energy_gain"] > PLAIN
            if not bent or (tried.energy / len(q) > -straight.value):
                tried = None
    if metric is not None:
        fit = _with_metric(metric, straight, fit, bent, p, q, before, config, tell)
    elif bent:
        fit = tried if tried is not None else _bend_pyramid(straight, p, q, before, config, tell)
    fit.n_evaluations += n_tried
    return _finish(fixed, moving, grids, fit, p, q, found, margin, held, before, config)


def _in_pixels(config: Config, pixel: float) -> Config:
    """The settings with their lengths in moving pixels."""
    sobolev, deviation = config.sobolev, config.sigma_regularizer
    if sobolev.scale is not None:
        sobolev = sobolev.model_copy(update={"scale": sobolev.scale / pixel})
    return config.model_copy(
        update={"sobolev": sobolev, "sigma_regularizer": None if deviation is None else deviation / pixel}
    )


def _levels(p: Floats, q: Floats, seed: int) -> list[tuple[Floats, Floats]]:
    """Both clouds, coarse to fine, as a bent map is fitted to them."""
    count = THINNED[-1]
    coarse = [(thinned(p, count), thinned(q, count))] if 2 * count <= max(len(p), len(q)) else []
    return [*coarse, (p, some(q, MOST_FITTED, seed))]


def _bend_pyramid(straight: State, p: Floats, q: Floats, before: float, config: Config, tell: Tell | None) -> CloudFit:
    fit = bent_start(straight, p, q, before, config)
    levels = _levels(p, q, config.seed)
    for number, (pl, ql) in enumerate(levels):
        spacing = spacing_of(ql)
        fit.sigma = max(fit.sigma, WIDE * spacing)
        fit = bend(
            pl,
            ql,
            fit,
            config,
            (SHARPEST_BEND[len(ql) > SMALL] if number == len(levels) - 1 else 0.5) * spacing,
            number,
            tell,
        )
    return fit


def _best_pose(
    found: Found, ps: Floats, p: Floats, q: Floats, before: float, known: bool, config: Config, tell: Tell | None
) -> tuple[State, float | None, int, CloudFit | None]:
    """The straight map from the pose that the map asked for explains the clouds best from, how clear that was, and its price.

    The margin is ``1 - exp(-Δ)``, Δ the nats per point by which the best truly different pose explains less.
    """
    kind = "affine" if config.transform == "lddmm" else config.transform
    margin = None if found.runner_up_score is None else 1 - math.exp(min(0.0, found.runner_up_score - found.score))
    poses = [found.matrix, *found.rivals]
    vary = not known and ps.shape[1] == 2 and (len(poses) > 1 or max(len(ps), len(q)) <= SMALL)
    if len(poses) == 1 and not vary:
        return straighten(kind, ps, q, found.matrix, config.seed, tell), margin, 0, None
    pt, qt = thinned(ps, TRIED), thinned(q, TRIED)
    if vary:
        middle = ps.mean(axis=0)
        for pose in poses[:VARIED]:
            for size in (0.8, 1.25, 1.5):
                other = pose.copy()
                other[:-1, :-1] *= size
                other[:-1, -1] += (pose[:-1, :-1] - other[:-1, :-1]) @ middle
                poses.append(other)
    tried: list[tuple[float, Floats, Floats, CloudFit | None]] = []
    evaluations = 0
    spacing = spacing_of(qt)
    narrowest = (SHARPEST_BEND[0] if len(qt) == len(q) else 0.5) * spacing
    for number, pose in enumerate(poses):
        state = straighten(kind, pt, qt, pose, config.seed)
        energy, warped, fit = -state.value, carried(state.matrix, pt), None
        if config.transform == "lddmm":
            fit = bent_start(state, pt / before, qt, before, config)
            fit.sigma = max(fit.sigma, WIDE * spacing)
            fit = bend(pt / before, qt, fit, config, narrowest)
            energy, warped = fit.energy / len(qt), fit.warp(pt / before)
            evaluations += fit.n_evaluations
        tried.append((energy, pose, warped, fit))
        if tell is not None:
            tell("pose", number, 1, energy)
        exact = math.log(len(pt)) + len(pose[:-1]) * (math.log(narrowest) + math.log(2 * math.pi) / 2)
        if fit is not None and energy < exact + EXPLAINED:
            break
    energy, pose, warped, bent = min(tried, key=lambda one: one[0])
    apart = [e for e, _, w, _ in tried if np.linalg.norm(w - warped, axis=1).mean() > APART * _radius(warped)]
    if (
        len(tried) == 1 and found.runner_up is not None
    ):  # explained to the last point: no rival needs to bend against it
        apart = [-straighten(kind, pt, qt, found.runner_up, config.seed).value]
    margin = None
    if apart:
        behind = energy - min(apart)
        margin = 1 - math.exp(min(behind, 0.0)) if math.isfinite(energy) else 0.0
    straight = straighten(kind, ps, q, pose, config.seed, tell)
    whole = len(pt) == len(ps) and len(qt) == len(q)
    return straight, margin, evaluations, bent if whole else None


def held_out(ps: Floats, p: Floats, q: Floats, straight: State, before: float, config: Config) -> dict[str, float]:
    """What a bend found on some of the fixed points gains on the others, in nats per point, with its standard error."""
    order = np.random.default_rng(config.seed).permutation(len(q))
    kept = len(q) - len(q) // (2 if len(q) > SMALL // 2 else 4)
    one, other = thinned(q[order[:kept]], THINNED[-1]), q[order[kept:][:HELD_OUT]]
    if len(one) <= p.shape[1] + 2:
        return {"gain": 0.0, "error": math.inf, "straight": straight.value, "bent": straight.value}
    pt = thinned(ps, THINNED[-1])
    volume = float(np.prod(np.ptp(q, axis=0)))
    spacing = spacing_of(one)
    exact = len(pt) == len(ps) and len(one) == kept
    rival = anneal(
        "affine", pt, one, replace(straight, sigma=max(straight.sigma, WIDE * spacing), value=-math.inf),
        (SHARPEST if exact else 0.5) * spacing,
    )  # fmt: skip
    if rival.sigma > straight.sigma and exact:  # what all points agreed on goes for either half
        rival = straight
    fit = bent_start(rival, pt / before, one, before, config)
    fit.sigma = max(fit.sigma, WIDE * spacing)
    fit = bend(pt / before, one, fit, config, (SHARPEST_BEND[0] if exact else 0.5) * spacing)
    whole = some(ps, PROBED, config.seed)  # as many points explain the others under either map
    bent, flat, given = (
        best_scale(warped, other, min(state.sigma, straight.sigma), state.outliers, volume)
        for warped, state in (
            (fit.warp(whole / before), fit),
            (carried(rival.matrix, whole), rival),
            (carried(straight.matrix, whole), straight),
        )
    )
    if given.mean() > flat.mean():
        flat = given
    difference = bent - flat
    return {
        "gain": float(difference.mean()),
        "error": float(difference.std() / math.sqrt(len(difference))),
        "straight": float(flat.mean()),
        "bent": float(bent.mean()),
    }


def best_scale(warped: Floats, fixed: Floats, sigma: float, outliers: float, volume: float) -> Floats:
    """Log densities ``[M]`` of points that were not fitted, at the scale that suits them best: a fit is closer to its own."""
    best = np.full(len(fixed), -np.inf)
    for _ in range(24):
        for _ in range(2):
            found = match(warped, fixed, sigma, outliers, volume)
            outliers = _outliers(found)
        if found.log_density.mean() > best.mean():
            best = found.log_density
        sigma *= 1 / COOLING
    return best


# ---- another metric ------------------------------------------------------------------------------------------------


class PointMetric(Protocol):
    """What is asked of a metric of two point sets (see `regframe.contracts.Metric`)."""

    likelihood: ClassVar[bool]

    def prepare(self, fixed: Any, moving: Any) -> None:
        """Look at both sides of a level."""
        ...

    def __call__(self, warped: Tensor, fixed: Tensor, weight: Tensor) -> Tensor:
        """Mismatch, a scalar."""
        ...


class MetricEnergy:
    """``E(q, u) = N m + |u|²/2`` (``N/2 log m`` where m is no likelihood) of any point metric, and its gradient."""

    def __init__(
        self, p: Floats, q: Floats, weight: Floats, metric: PointMetric, start: Tensor, increment: Increment,
        space: VelocitySpace | None,
    ) -> None:  # fmt: skip
        self.p, self.q, self.weight = (torch.from_numpy(v).to(torch.float32) for v in (p, q, weight))
        self.metric, self.start, self.increment, self.space = metric, start, increment, space
        self.observations = float(weight.sum())
        self._rim = torch.from_numpy(np.stack([q.min(axis=0), q.max(axis=0)]))
        self._zoom = float(homogeneous.determinant(start).abs()) ** (-1 / p.shape[1])
        self.n_evaluations = 0

    def __call__(self, x: Tensor) -> tuple[float, Tensor]:
        """Energy and gradient ``[K + P]`` at ``x``."""
        self.n_evaluations += 1
        size = self.increment.size
        u = x[size:].detach()
        with torch.enable_grad():
            affine = x[:size].detach().requires_grad_(True)
            moved, leaves = self.p, [affine]
            if self.space is not None:
                velocity, grid = self.space.velocity(u).requires_grad_(True), self.space.grid
                moved = ops.flow_points(moved, velocity, grid.spacing, grid.origin, self.space.n_steps, False)
                leaves.append(velocity)
            pullback = homogeneous.compose(self.start, self.increment.matrix(affine))
            warped = reference.carry(homogeneous.inverse(pullback).to(torch.float32), moved)
            value = self.metric(warped, self.q, self.weight)
            value = self.observations * (value if self.metric.likelihood else 0.5 * (value + 1e-5).log())
            gradients = torch.autograd.grad(value, leaves)
        if self.space is None:
            return float(value.detach()), gradients[0]
        regularizer = 0.5 * float(torch.linalg.vector_norm(u, dtype=torch.float64)) ** 2
        return float(value.detach()) + regularizer, torch.cat([gradients[0], self.space.adjoint(gradients[1]) + u])

    def movement(self, change: Tensor) -> float:
        """The largest distance a change of the variables moves a point, to first order, in fixed pixels."""
        size = self.increment.size
        step = self.increment.matrix(change[:size]) - torch.eye(self.p.shape[1] + 1, dtype=torch.float64)
        moved = float(reference.carry(step, self._rim).norm(dim=1).max())
        if self.space is not None:
            displacement = self.space.velocity(change[size:]).mean(dim=0)
            moved += self._zoom * float(displacement.square().sum(dim=0).max().sqrt())
        return moved


def _with_metric(
    metric: PointMetric, straight: State, fit: CloudFit, bent: bool, p: Floats, q: Floats, before: float, config: Config,
    tell: Tell | None,
) -> CloudFit:  # fmt: skip
    """The same pose, settled (and bent) with a metric of somebody's choice on thinned clouds; the mixture gives the weights."""
    if bent:
        fit = bent_start(straight, p, q, before, config)
    for number, count in enumerate((512, 2048)):
        if number and max(len(p), len(q)) <= 512:
            break
        pl, ql = thinned(p, count), thinned(q, count)
        volume = float(np.prod(np.ptp(q, axis=0)))
        metric.prepare(PointSet(torch.from_numpy(ql)), PointSet(torch.from_numpy(pl)))
        if fit.space is not None and config.n_steps is None:
            fit.space = enough_steps(fit.space, fit.x[fit.increment.size :])
        found = match(fit.warp(pl), ql, max(straight.sigma, spacing_of(ql)), straight.outliers, volume)
        weight = np.bincount(found.rows.reshape(-1), found.share.reshape(-1), minlength=len(pl)).clip(1e-3, 1.0)
        energy = MetricEnergy(pl, ql, weight, metric, fit.start, fit.increment, fit.space)
        outcome = minimize(
            energy, fit.x, energy.movement, max_iter=config.optimizer.max_iter, tolerance=config.optimizer.tolerance,
            memory=config.optimizer.memory, worthwhile=1e-4 * energy.observations,
            callback=None if tell is None else functools.partial(tell, "metric", number),
        )  # fmt: skip
        fit.x, fit.energy = outcome.x, outcome.energy
        fit.n_evaluations += energy.n_evaluations
        fit.reasons.append(outcome.reason)
        fit.sigma = spacing_of(ql)
        for _ in range(30):
            found = match(fit.warp(pl), ql, fit.sigma, fit.outliers, volume)
            fit.outliers = _outliers(found)
            fit.sigma = min(max(math.sqrt(found.square), SHARPEST * spacing_of(ql)), fit.sigma)
        fit.history.append(
            {"stage": "metric", "level": number, "iteration": outcome.iterations, "energy": outcome.energy}
        )
    return fit


# ---- what came of it -----------------------------------------------------------------------------------------------

PROBED = 20_000
"""Points at which the figures are taken, at most."""


def _finish(
    fixed: PointSet, moving: PointSet, grids: tuple[Grid, Grid], fit: CloudFit, p: Floats, q: Floats, found: Found | None,
    margin: float | None, held: dict[str, float] | None, before: float, config: Config,
) -> Aligned:  # fmt: skip
    """Maps, figures, verdict and the matching probability on a grid."""
    fixed_grid, moving_grid = grids
    velocity = None if fit.space is None else fit.space.velocity(fit.x[fit.increment.size :])
    affine, phi = physical_maps(fit.pullback, fit.space, velocity, *grids)
    back = phi.inverse()
    volume = float(np.prod(np.ptp(q, axis=0)))
    warped = fit.warp(p)
    seen_q, seen_p = some(q, PROBED, config.seed), some(warped, PROBED, config.seed)
    forth = match(warped, seen_q, fit.sigma, fit.outliers, volume)
    matched = forth.share.sum(axis=1)
    matched_moving = match(q, seen_p, fit.sigma, fit.outliers, volume).share.sum(axis=1)
    nearest = np.linalg.norm(warped[forth.rows[:, 0]] - seen_q, axis=1)
    covariance = np.cov(q.T)
    broad = -0.5 * (np.linalg.slogdet(2 * math.pi * math.e * covariance)[1])
    base = max(broad, -math.log(volume))
    value = float(forth.log_density.mean())
    if fit.space is not None and held is not None:
        value = held["bent"]
    physical = torch.from_numpy(carried(Frame.of(fixed_grid).matrix().inverse().numpy(), seen_q))
    error = (phi.points(back.points(physical)) - physical).norm(dim=1) / fixed_grid.pixel
    factor = max(1.0, (math.prod(fixed_grid.shape) / 40_000) ** (1 / fixed.ndim))
    coarse = fixed_grid.resampled(tuple(s * factor for s in fixed_grid.spacing))
    where = torch.from_numpy(cKDTree(physical.numpy()).query(coarse.coords().reshape(-1, fixed.ndim).numpy())[0])
    near = where.reshape(coarse.shape) <= 2 * max(coarse.pixel, fixed_grid.pixel)
    area = (back.jacobian_determinant(coarse) * homogeneous.determinant(affine.matrix))[near]
    own = torch.from_numpy(carried(Frame.of(moving_grid).matrix().inverse().numpy(), some(p, PROBED, config.seed)))
    shift = (phi.points(own) - affine.points(own)).norm(dim=1) / fixed_grid.pixel
    figures: dict[str, Any] = {
        "roundtrip_px": {"mean": float(error.mean()), "max": float(error.max())},
        "jacobian_min": float(area.min()),
        "jacobian_max": float(area.max()),
        "folding_fraction": float((area <= 0).to(torch.float64).mean()),
        "matching_fraction": float(matched.mean()),
        "matching_fraction_moving": float(matched_moving.mean()),
        "pose_margin": margin,
        "pose_score": None if found is None else found.score,
        "runner_up": None
        if found is None or found.runner_up is None
        else {"matrix": _physical(found.runner_up, before, grids).tolist(), "score": found.runner_up_score},
        "bending_px": {"mean": float(shift.mean()), "max": float(shift.max())},
        "likeness": value - base,
        "held_out": held,
        "scale_px": fit.sigma,
        "outliers": fit.outliers,
        "residual_px": {"median": float(np.median(nearest)), "p90": float(np.quantile(nearest, 0.9))},
        "points": {"fixed": len(fixed), "moving": len(moving), "fixed_used": len(q), "moving_used": len(p)},
        "model": config.transform if config.transform != "lddmm" else ("affine" if fit.space is None else "lddmm"),
        "energy": {
            "first": fit.history[0]["energy"] if fit.history else fit.energy,
            "last": fit.history[-1]["energy"] if fit.history else fit.energy,
        },
        "convergence": fit.reasons,
        "sobolev": None
        if fit.space is None
        else {
            "scale": fit.space.scale * moving_grid.pixel,
            "order": fit.space.order,
            "deviation": fit.space.deviation * moving_grid.pixel,
        },
        "n_evaluations": fit.n_evaluations,
    }
    verdict, reasons = _judge(figures)
    grid = fixed_grid.resampled(
        tuple(max(3 * s, e / 64) for s, e in zip(fixed_grid.spacing, fixed_grid.extent, strict=True))
    )
    k = min(8, len(physical))
    _, rows = cKDTree(physical.numpy()).query(grid.coords().reshape(-1, fixed.ndim).numpy(), k=k)
    unbent = config.transform == "lddmm" and fit.space is None
    sd = _position_sd(fit, p, some(q, MOST_FITTED, config.seed), unbent, fixed_grid, grid)
    here = sd.reshape(-1).numpy()[cKDTree(grid.coords().reshape(-1, fixed.ndim).numpy()).query(physical.numpy())[1]]
    figures["position_sd"] = {
        "median": float(np.median(here)),
        "p90": float(np.quantile(here, 0.9)),
        "unit": fixed.unit,
    }
    weight = torch.from_numpy(matched[rows].reshape(*grid.shape, -1).mean(axis=-1)).to(torch.float32)
    return Aligned(phi, affine, figures, verdict, reasons, fit.history, weight.clamp(0, 1), grid, sd)


def _position_sd(fit: CloudFit, p: Floats, q: Floats, unbent: bool, fixed: Grid, onto: Grid) -> Tensor:
    """Standard deviation per axis ``[*S]`` of what lies at ``onto``, physical: `uncertainty.position_sd_of_points`.

    Where a bend was asked for and none was confirmed, σ² is added: one of that size would not have shown.

    Args:
        fit: where it ended.
        p: moving ``[N, D]`` in their frame.
        q: the fixed points ``[M, D]`` that the fit looked at, in theirs.
        unbent: whether a bend was asked for and not confirmed.
        fixed: canvas.
        onto: physical, of the fixed side.
    """
    ndim, volume = q.shape[1], float(np.prod(np.ptp(q, axis=0)))
    warped = fit.warp(p)
    found = match(warped, q, fit.sigma, fit.outliers, volume)
    residual = q[:, None] - warped[found.rows]  # [M, K, D]
    pull = np.einsum("mk,mkd->md", found.share, residual)
    spread = np.einsum("mk,mkd->m", found.share, residual**2) - (pull**2).sum(axis=1)
    hold = found.share.sum(axis=1) / fit.sigma**2 - spread / (ndim * fit.sigma**4)
    zoom = float(homogeneous.determinant(fit.start).abs()) ** (-1 / ndim)
    reach = fit.space.scale * zoom if fit.space is not None else SCALE * float(np.prod(np.ptp(q, axis=0))) ** (1 / ndim)
    sd = uncertainty.position_sd_of_points(
        q, pull / fit.sigma**2, hold, fixed, fit.increment, fit.space, reach, zoom, onto
    )
    if unbent:
        sd = (sd**2 + fit.sigma**2).sqrt()
    return sd * fixed.pixel


def _physical(pose: Floats, before: float, grids: tuple[Grid, Grid]) -> Floats:
    """A pose of the search (between the frames, the change of unit before it) as ``A`` in physical units."""
    to_fixed, to_moving = (Frame.of(grid).matrix().numpy() for grid in grids)
    out: Floats = np.linalg.inv(to_fixed) @ pose @ np.diag([*[before] * (len(pose) - 1), 1.0]) @ to_moving
    return out


def _judge(figures: dict[str, Any]) -> tuple[str, list[str]]:
    """``pass``, ``warn`` or ``fail``, and why."""
    fail, warn = [], []
    if "diverged" in figures["convergence"]:
        fail.append("the fit diverged: the energy was not finite")
    if figures["likeness"] < BLUR:
        fail.append("the clouds have no structure in common: one broad blur explains the fixed points as well")
    both = min(figures["matching_fraction"], figures["matching_fraction_moving"])
    if both < 0.1:
        fail.append(f"only {both:.0%} of the points of one side have a partner on the other")
    elif both < 0.4:
        warn.append(f"only {both:.0%} of the points of one side have a partner on the other")
    low, high = figures["jacobian_min"], figures["jacobian_max"]
    if low < 1 / VIOLENT or high > VIOLENT:
        warn.append(f"the map changes areas {max(high, 1 / max(low, 1e-6)):.0f}-fold somewhere")
    held = figures["held_out"]
    if figures["model"] == "lddmm" and held is not None and held["gain"] <= CONVINCING * held["error"]:
        warn.append("the bend was not confirmed on points that were held out: look at the overlay")
    if (low < 1 / STRONG or high > STRONG) and both < 0.8:
        warn.append(
            f"much bending brought only {both:.0%} of the points to a partner: unlike shapes can be bent alike, so look at "
            "the overlay"
        )
    if figures["folding_fraction"] > 0:
        warn.append(f"the map folds over at {figures['folding_fraction']:.2%} of the places")
    if figures["roundtrip_px"]["mean"] > 0.02 or figures["roundtrip_px"]["max"] > 0.1:
        warn.append(f"the map and its inverse disagree by up to {figures['roundtrip_px']['max']:.2g} px")
    if figures["pose_margin"] is not None and figures["pose_margin"] < CLEAR:
        warn.append("another pose fits nearly as well: look at the overlay before you trust this one")
    if fail:
        return "fail", fail + warn
    return ("warn", warn) if warn else ("pass", [])
