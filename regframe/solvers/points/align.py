"""Registers two point clouds: pose search, annealed Gaussian mixture, and a bend that is kept only where it is confirmed.

The fixed points are taken as draws from a Gaussian mixture centred on the mapped moving points, with a uniform class for
points that have no partner::

    p(y) = (1 - ω) / n Σ_i N(y; Φ(x_i), σ²) + ω / V

The scale σ of the mixture starts wide and shrinks as long as the likelihood rises; ω, the share of points without a
partner, is estimated at every scale. Distant pairs are ignored: each fixed point is compared with its `clouds.NEIGHBOURS` nearest
moving points (found with a k-d tree), and while σ is wide both clouds are thinned to as many places as σ can tell apart. Memory
is therefore linear in the number of points. A "place" is a point, or the mean of several points after thinning; a "spacing" is
the median distance of a place to its nearest neighbour.

Sources: Myronenko & Song 2010 (coherent point drift: the mixture, its uniform class, its EM steps); Rose 1998
(deterministic annealing); Umeyama 1991 (closed forms); Alexa 2022 (super-Fibonacci spirals: turns spread evenly over
SO(3)); Beg et al. 2005 (LDDMM).

Where a constant names no source, neither a paper nor a calibration is recorded for it; ``benchmarks/bench_points.py`` measures
what they achieve together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ...config import Config
from ...contracts import Fitted
from ...data import Grid, Original, PointSet
from ...fit.clouds import (
    SMALL,
    Floats,
    carried,
    distinct,
    nearest,
    outliers_of,
    posterior,
    radius_of,
    some,
    spacing_of,
    thinned,
)
from ...fit.frames import Frame, affine_kind
from ...fit.steps import Report
from ...starts.points import APART, Found, search, unlikely
from ...starts.scale import Scale
from ...verdict import CONVINCING
from .bend import (
    SHARPEST_BEND,
    THINNED_SHARPEST,
    CloudFit,
    Clouds,
    bend,
    bend_pyramid,
    bent_start,
    straight_fit,
)
from .figures import PROBED, finish
from .metric import PointMetric, with_metric
from .straight import COOLING, SHARPEST, THINNED, WIDE, State, anneal, stage_of, straighten

TRIED = 256
"""Places to which both clouds are thinned while several poses are compared: a bend of so few takes little time."""
VARIED = 3
"""Number of poses (the best ones) for which other sizes are tried, where the size is unknown and no pose stands out."""
VARIED_SIZES = (0.8, 1.25, 1.5)
"""Factors on the size of such a pose: values between and beyond the sizes of the pose search (`starts.points.SIZES`)."""
EXPLAINED = 1.0
"""Nats per fixed point by which a bent map, its bending included, may miss the energy of a map that explains every point
exactly at the narrowest scale. Within this margin no other pose is tried."""
HELD_OUT = 1000
"""Largest number of held-out fixed points on which a bend must prove itself. Half of the fixed points are held out, or a
quarter where there are at most half of `clouds.SMALL`."""
PLAIN = 1.6
"""Nats per fixed point, cost of the bending included, by which a bend must lower the energy of a small cloud to be kept
although held-out points do not confirm it. Chosen on the fish and the bunnies of benchmarks/bench_points.py."""
FAR = 0.5
"""Distance from the range that holds the middle 98 % of a cloud's coordinates, over the length of that range, beyond which a
point takes no part in the fit."""
SCALES = 24
"""Number of scales σ at which held-out points are judged, each 1 / `COOLING` times the one before: a factor of a thousand in
all."""


def taking_part(c: Floats) -> Floats:
    """The points ``[N', D]`` of ``[N, D]`` that are not far outside the rest (see `FAR`); all points of clouds under 50."""
    if len(c) < 50:
        return c
    low, high = np.quantile(c, [0.01, 0.99], axis=0)
    reach = FAR * (high - low)
    out: Floats = c[((c >= low - reach) & (c <= high + reach)).all(axis=1)]
    return out


@dataclass(frozen=True)
class Begun:
    """The straight map (rigid, similarity or affine) of two clouds, and how it was found.

    Args:
        straight: the map.
        margin: ``1 - exp(-Δ)``, where Δ is how many nats per point less the best truly different pose explains; None where no
            other pose was compared.
        n_evaluations: energy evaluations spent on comparing poses.
        bent: the bend that was fitted to all points while poses were compared; None where the clouds are too large for that.
    """

    straight: State
    margin: float | None = None
    n_evaluations: int = 0
    bent: CloudFit | None = None


def align(
    fixed: PointSet,
    moving: PointSet,
    grids: tuple[Grid, Grid],
    start: Tensor | None,
    config: Config,
    metric: PointMetric | None = None,
    report: Report = None,
) -> Fitted:
    """Register two point sets that have passed `Points.check`.

    Args:
        fixed: the side that stays where it is.
        moving: the side that is mapped onto it.
        grids: the canvas of the fixed and of the moving side.
        start: ``A`` ``[D+1, D+1]``, moving → fixed in physical units, or None to search for a pose.
        config: all settings.
        metric: the metric that decides the final map; the mixture where None.
        report: called after every step.
    """
    config = _in_pixels(config, grids[1].pixel)
    scale = Scale.of(*grids)
    to_fixed, to_moving = (Frame.of(grid).matrix().numpy() for grid in grids)
    q, p = (taking_part(carried(m, distinct(s))) for m, s in ((to_fixed, fixed), (to_moving, moving)))
    originals = tuple(
        Original(grid.unit, grid.pixel, grid.center, grid, name=side.name)
        for grid, side in zip(grids, (fixed, moving), strict=True)
    )
    clouds = Clouds(p, q, scale.factor * grids[1].pixel / grids[0].pixel, config, (originals[0], originals[1]))
    found: Found | None = None
    if start is None:
        known = scale.settled(config.transform)
        found = search(clouds.scaled, q, known, affine_kind(config.transform) == "affine")
        begun = best_pose(found, clouds, known, report)
    else:
        unscale = np.diag([*[1 / clouds.before] * fixed.ndim, 1.0])
        pose = to_fixed @ start.numpy() @ np.linalg.inv(to_moving) @ unscale
        begun = Begun(straighten(clouds.scaled, q, pose, config, report))
    fit, held = _bent_if_it_helps(begun, clouds, metric, report)
    fit.n_evaluations += begun.n_evaluations
    return finish((fixed, moving), grids, clouds, fit, (found, begun.margin), held)


def _in_pixels(config: Config, pixel: float) -> Config:
    """The settings, with every length converted to moving pixels of width ``pixel``."""
    sobolev, deviation = config.sobolev, config.sigma_regularizer
    if sobolev.scale is not None:
        sobolev = sobolev.model_copy(update={"scale": sobolev.scale / pixel})
    return config.model_copy(
        update={"sobolev": sobolev, "sigma_regularizer": None if deviation is None else deviation / pixel}
    )


def _bent_if_it_helps(
    begun: Begun, clouds: Clouds, metric: PointMetric | None, report: Report
) -> tuple[CloudFit, dict[str, float] | None]:
    """The map from a pose, bent where a bend is asked for and confirmed on held-out points.

    Also returns the figures of that test (see `held_out`), None where no bend is asked for.
    """
    straight, tried = begun.straight, begun.bent
    fit = straight_fit(straight, clouds)
    held: dict[str, float] | None = None
    bent = False
    if clouds.config.transform == "lddmm":
        held = held_out(straight, clouds)
        bent = held["gain"] > CONVINCING * held["error"]
        if tried is not None:  # a bend of all points that needs no holding out: few of them cannot be done without
            held["energy_gain"] = -straight.value - tried.energy / len(clouds.q)
            bent = bent or held["energy_gain"] > PLAIN
            if not bent or (tried.energy / len(clouds.q) > -straight.value):
                tried = None
    if metric is not None:
        fit = with_metric(metric, straight, fit, bent, clouds, report)
    elif bent:
        fit = tried if tried is not None else bend_pyramid(straight, clouds, report)
    return fit, held


def best_pose(found: Found, clouds: Clouds, known: bool, report: Report = None) -> Begun:
    """Compare the poses of a search by the map that is asked for, and fit the straight map from the best one.

    Args:
        found: outcome of the search.
        clouds: the clouds.
        known: whether the size of the moving cloud is known from the units.
        report: called for every pose that is tried.
    """
    config, ps, q = clouds.config, clouds.scaled, clouds.q
    margin = None if found.runner_up_score is None else 1 - math.exp(min(0.0, found.runner_up_score - found.score))
    poses = [found.matrix, *found.rivals]
    vary = not known and ps.shape[1] == 2 and (len(poses) > 1 or max(len(ps), len(q)) <= SMALL)
    if len(poses) == 1 and not vary:
        return Begun(straighten(ps, q, found.matrix, config, report), margin)
    pt, qt = thinned(ps, TRIED), thinned(q, TRIED)
    if vary:
        poses += _other_sizes(poses[:VARIED], ps.mean(axis=0))
    few = clouds.of(pt / clouds.before, qt)
    narrowest = (SHARPEST_BEND[0] if len(qt) == len(q) else THINNED_SHARPEST) * spacing_of(qt)
    tried: list[_Tried] = []
    for number, pose in enumerate(poses):
        one = _try(pose, pt, few, narrowest)
        tried.append(one)
        stage_of("pose", number, config).tell(report, 1, one.energy)
        exact = math.log(len(pt)) + len(pose[:-1]) * (math.log(narrowest) + math.log(2 * math.pi) / 2)
        if one.bent is not None and one.energy < exact + EXPLAINED:
            break
    best = min(tried, key=lambda one: one.cost)
    if best.bent is not None and not best.energy < exact + EXPLAINED:
        best = _confirmed(best, min(tried, key=lambda one: one.straight), clouds)
    reach = APART * radius_of(best.warped)
    apart = [one.cost for one in tried if np.linalg.norm(one.warped - best.warped, axis=1).mean() > reach]
    if len(tried) == 1 and found.runner_up is not None:
        # this pose explains every point exactly, so that its rival is fitted without a bend, only to state a margin
        apart = [-straighten(pt, qt, found.runner_up, config).value + tried[0].cost - tried[0].energy]
    margin = None
    if apart:
        behind = best.cost - min(apart)
        margin = 1 - math.exp(min(behind, 0.0)) if math.isfinite(best.cost) else 0.0
    straight = straighten(ps, q, best.pose, config, report)
    whole = len(pt) == len(ps) and len(qt) == len(q)
    evaluations = sum(one.bent.n_evaluations for one in tried if one.bent is not None)
    return Begun(straight, margin, evaluations, best.bent if whole else None)


@dataclass(frozen=True)
class _Tried:
    """One pose that was tried.

    Args:
        pose: ``A`` ``[D+1, D+1]``.
        energy: energy of the map fitted from it, in nats per fixed point.
        straight: cost of the straight map alone, in nats per fixed point.
        cost: the energy with what the pose pays for being unusual (`starts.points.unlikely`), in nats per fixed point.
        warped: mapped positions of the moving places ``[N, D]``, in fixed pixels.
        bent: the bend, where one is asked for.
    """

    pose: Floats
    energy: float
    straight: float
    cost: float
    warped: Floats
    bent: CloudFit | None


def _other_sizes(poses: list[Floats], middle: Floats) -> list[Floats]:
    """Each pose ``[D+1, D+1]``, enlarged by every factor of `VARIED_SIZES` about the middle ``[D]`` of the moving cloud."""
    out = []
    for pose in poses:
        for size in VARIED_SIZES:
            other = pose.copy()
            other[:-1, :-1] *= size
            other[:-1, -1] += (pose[:-1, :-1] - other[:-1, :-1]) @ middle
            out.append(other)
    return out


def _try(pose: Floats, pt: Floats, few: Clouds, narrowest: float) -> _Tried:
    """Fit the map from one pose on thinned clouds: straight, then bent where that is asked for.

    Args:
        pose: ``[D+1, D+1]``, applied to moving places in fixed pixels.
        pt: the moving places ``[N, D]``, in fixed pixels.
        few: the thinned clouds, moving places in moving pixels.
        narrowest: smallest σ of the bend, in fixed pixels.
    """
    qt, config = few.q, few.config
    state = straighten(pt, qt, pose, config)
    pays = float(unlikely(torch.from_numpy(pose[None, :-1, :-1]))) / len(qt) if pt.shape[1] == 3 else 0.0
    if config.transform != "lddmm":
        cost = pays - state.value
        return _Tried(pose, -state.value, cost, cost, carried(state.matrix, pt), None)
    fit = bent_start(state, few)
    fit.sigma = max(fit.sigma, WIDE * spacing_of(qt))
    fit = bend(few, fit, narrowest)
    energy = fit.energy / len(qt)
    return _Tried(pose, energy, pays - state.value, pays + energy, fit.warp(few.p), fit)


def _confirmed(best: _Tried, plain: _Tried, clouds: Clouds) -> _Tried:
    """The pose with the ``best`` bent map, or that with the best straight one, ``plain``, where held-out points confirm no bend.

    A bend that many points have no partner under explains them from a wrong pose as well as from the right one.
    """
    if best is plain:
        return best
    held = held_out(straighten(clouds.scaled, clouds.q, best.pose, clouds.config), clouds)
    return best if held["gain"] > CONVINCING * held["error"] else plain


def held_out(straight: State, clouds: Clouds) -> dict[str, float]:
    """Test of a bend: fitted to some of the fixed points, it must explain the others better than a straight map does.

    Returns ``gain``, the mean rise of the held-out log-density in nats per point; ``error``, its standard error; and
    ``straight`` and ``bent``, the mean log-densities themselves.
    """
    ps, q, config, before = clouds.scaled, clouds.q, clouds.config, clouds.before
    order = np.random.default_rng(config.seed).permutation(len(q))
    kept = len(q) - len(q) // (2 if len(q) > SMALL // 2 else 4)
    one, other = thinned(q[order[:kept]], THINNED[-1]), q[order[kept:][:HELD_OUT]]
    if len(one) <= ps.shape[1] + 2:
        return {"gain": 0.0, "error": math.inf, "straight": straight.value, "bent": straight.value}
    pt = thinned(ps, THINNED[-1])
    spacing = spacing_of(one)
    exact = len(pt) == len(ps) and len(one) == kept
    rival = anneal(
        "affine", pt, one, replace(straight, sigma=max(straight.sigma, WIDE * spacing), value=-math.inf),
        (SHARPEST if exact else THINNED_SHARPEST) * spacing,
    )  # fmt: skip
    if rival.sigma > straight.sigma and exact:  # the fit of all points is the sharper one: use it for either half
        rival = straight
    few = clouds.of(pt / before, one)
    fit = bent_start(rival, few)
    fit.sigma = max(fit.sigma, WIDE * spacing)
    fit = bend(few, fit, (SHARPEST_BEND[0] if exact else THINNED_SHARPEST) * spacing)
    whole = some(ps, PROBED, config.seed)  # the moving points by which held-out points are explained, under every map
    bent, flat, given = (
        best_scale(warped, other, min(state.sigma, straight.sigma), state.outliers, clouds.volume)
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


def best_scale(warped: Floats, fixed: Floats, sigma: float, outliers: float, volume: float | Floats) -> Floats:
    """Log-densities ``[M]`` of held-out points, at the scale σ under which they are most likely.

    That scale is wider than the one of the fit, which lies closer to the points it was fitted to.

    Args:
        warped: moving points in the fixed frame ``[N, D]``.
        fixed: held-out points ``[M, D]``.
        sigma: narrowest scale, in fixed pixels.
        outliers: ω to begin with.
        volume: V, in fixed pixels to the D-th power, one or ``[M]``.
    """
    best = np.full(len(fixed), -np.inf)
    squares, rows = nearest(warped, fixed)
    for _ in range(SCALES):
        for _ in range(2):
            found = posterior(squares, rows, sigma, outliers, volume, len(warped), fixed.shape[1])
            outliers = outliers_of(found)
        if found.log_density.mean() > best.mean():
            best = found.log_density
        sigma *= 1 / COOLING
    return best
