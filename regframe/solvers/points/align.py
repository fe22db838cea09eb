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

import math
from dataclasses import replace

import numpy as np
from torch import Tensor

from ...config import Config
from ...contracts import Fitted
from ...data import Grid, PointSet
from ...fit.clouds import SMALL, Floats, carried, distinct, match, outliers_of, radius_of, some, spacing_of, thinned
from ...fit.frames import Frame
from ...starts.points import APART, Found, search
from ...verdict import CONVINCING
from .bend import SHARPEST_BEND, CloudFit, bend, bend_pyramid, bent_start, straight_fit
from .figures import PROBED, finish
from .metric import PointMetric, with_metric
from .straight import COOLING, SHARPEST, THINNED, WIDE, State, Tell, anneal, straighten

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
PLAIN = 1.6
"""Nats per fixed point, its own price included, by which a bend of a small cloud may be kept all the same."""
FAR = 0.5
"""Points beyond the middle 98 % of a cloud by more than this share of their extent, along any axis, do not take part in the
fit."""


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
) -> Fitted:
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
        straight, margin, n_tried, tried = best_pose(found, ps, p, q, before, known, config, tell)
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
        fit = with_metric(metric, straight, fit, bent, p, q, before, config, tell)
    elif bent:
        fit = tried if tried is not None else bend_pyramid(straight, p, q, before, config, tell)
    fit.n_evaluations += n_tried
    return finish(fixed, moving, grids, fit, p, q, found, margin, held, before, config)


def _in_pixels(config: Config, pixel: float) -> Config:
    """The settings with their lengths in moving pixels."""
    sobolev, deviation = config.sobolev, config.sigma_regularizer
    if sobolev.scale is not None:
        sobolev = sobolev.model_copy(update={"scale": sobolev.scale / pixel})
    return config.model_copy(
        update={"sobolev": sobolev, "sigma_regularizer": None if deviation is None else deviation / pixel}
    )


def best_pose(
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
    apart = [e for e, _, w, _ in tried if np.linalg.norm(w - warped, axis=1).mean() > APART * radius_of(warped)]
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
            outliers = outliers_of(found)
        if found.log_density.mean() > best.mean():
            best = found.log_density
        sigma *= 1 / COOLING
    return best
