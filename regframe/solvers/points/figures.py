"""The results of a fit of two clouds: maps, figures, matching probability, position uncertainty."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import confidence
from ...contracts import Fitted
from ...data import Grid, PointSet
from ...fit import uncertainty
from ...fit.clouds import Floats, carried, match, some
from ...fit.frames import Frame
from ...fit.velocity import physical_maps
from ...maps import homogeneous
from ...maps.affine import Affine
from ...maps.base import Transform
from ...starts.points import Found
from .bend import SCALE, CloudFit, Clouds
from .straight import MOST_FITTED

PROBED = 20_000
"""Largest number of points at which the figures of a map are computed: more would change no digit that is printed."""


MOST_AREAS = 40_000
"""Largest number of grid positions at which the change of area is computed: 200 along each side of a 2D canvas."""


def finish(
    sides: tuple[PointSet, PointSet],
    grids: tuple[Grid, Grid],
    clouds: Clouds,
    fit: CloudFit,
    search: tuple[Found | None, float | None],
    held: dict[str, float] | None,
) -> Fitted:
    """The maps, figures, matching probability and position uncertainty of a finished fit.

    Args:
        sides: fixed and moving points, as they were given.
        grids: the canvas of the fixed and of the moving side, in its unit.
        clouds: the points that were fitted, in their frames.
        fit: the finished fit.
        search: the outcome of the pose search and the margin of its pose, 0 … 1; None for each where there was none.
        held: the test of the bend on held-out points (see `align.held_out`); None where no bend was asked for.
    """
    (fixed, moving), (fixed_grid, moving_grid) = sides, grids
    p, q, config, (found, margin) = clouds.p, clouds.q, clouds.config, search
    velocity = None if fit.space is None else fit.space.velocity(fit.x[fit.increment.size :])
    affine, phi = physical_maps(fit.pullback, fit.space, velocity, *grids)
    warped = fit.warp(p)
    seen_q, seen_p = some(q, PROBED, config.seed), some(warped, PROBED, config.seed)
    forth = match(warped, seen_q, fit.sigma, fit.outliers, clouds.volume)
    matched = forth.share.sum(axis=1)
    matched_moving = match(q, seen_p, fit.sigma, fit.outliers, clouds.volume).share.sum(axis=1)
    nearest = np.linalg.norm(warped[forth.rows[:, 0]] - seen_q, axis=1)
    value = float(forth.log_density.mean())
    if fit.space is not None and held is not None:
        value = held["bent"]
    physical = torch.from_numpy(carried(Frame.of(fixed_grid).matrix().inverse().numpy(), seen_q))
    figures: dict[str, Any] = {
        **_of_the_map(phi, affine, grids, physical, some(p, PROBED, config.seed)),
        "matching_fraction": float(matched.mean()),
        "matching_fraction_moving": float(matched_moving.mean()),
        "pose_margin": margin,
        "pose_score": None if found is None else found.score,
        "runner_up": None
        if found is None or found.runner_up is None
        else {"matrix": _physical(found.runner_up, clouds.before, grids).tolist(), "score": found.runner_up_score},
        "likeness": value - _structureless(q, clouds.volume),
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
    if fit.constant:
        figures["metric"] = {"constant": True}
    figures["confidence"] = confidence.of_points(figures, fixed.ndim)
    grid = fixed_grid.resampled(
        tuple(max(3 * s, e / 64) for s, e in zip(fixed_grid.spacing, fixed_grid.extent, strict=True))
    )
    at = grid.coords().reshape(-1, fixed.ndim).numpy()
    _, rows = _tree(physical.numpy()).query(at, k=min(8, len(physical)))
    unbent = config.transform == "lddmm" and fit.space is None
    sd = position_sd(fit, p, some(q, MOST_FITTED, config.seed), unbent, fixed_grid, grid)
    here = sd.reshape(-1).numpy()[_tree(at).query(physical.numpy())[1]]
    figures["position_sd"] = {
        "median": float(np.median(here)),
        "p90": float(np.quantile(here, 0.9)),
        "unit": fixed.unit,
    }
    weight = torch.from_numpy(matched[rows].reshape(*grid.shape, -1).mean(axis=-1)).to(torch.float32)
    return Fitted(phi, affine, fixed_grid, moving_grid, figures, fit.history, weight.clamp(0, 1), grid, sd)


def _of_the_map(
    phi: Transform, affine: Affine, grids: tuple[Grid, Grid], physical: Tensor, own: Floats
) -> dict[str, Any]:
    """Figures of a map: round trip, change of area, size of the bend.

    Args:
        phi: the map, moving → fixed.
        affine: its affine part alone.
        grids: canvas of the fixed and of the moving side.
        physical: fixed points ``[M, D]`` in their unit.
        own: moving points ``[N, D]`` in their frame.
    """
    fixed, moving = grids
    back = phi.inverse()
    error = (phi.points(back.points(physical)) - physical).norm(dim=1) / fixed.pixel
    factor = max(1.0, (math.prod(fixed.shape) / MOST_AREAS) ** (1 / fixed.ndim))
    coarse = fixed.resampled(tuple(s * factor for s in fixed.spacing))
    where = torch.from_numpy(_tree(physical.numpy()).query(coarse.coords().reshape(-1, fixed.ndim).numpy())[0])
    near = where.reshape(coarse.shape) <= 2 * max(coarse.pixel, fixed.pixel)
    area = (back.jacobian_determinant(coarse) * homogeneous.determinant(affine.matrix))[near]
    there = torch.from_numpy(carried(Frame.of(moving).matrix().inverse().numpy(), own))
    shift = (phi.points(there) - affine.points(there)).norm(dim=1) / fixed.pixel
    return {
        "roundtrip_px": {"mean": float(error.mean()), "max": float(error.max())},
        "jacobian_min": float(area.min()),
        "jacobian_max": float(area.max()),
        "folding_fraction": float((area <= 0).to(torch.float64).mean()),
        "bending_px": {"mean": float(shift.mean()), "max": float(shift.max())},
    }


def _structureless(q: Floats, volume: float) -> float:
    """Mean log-density, in nats per point, of points ``[M, D]`` under a model without structure.

    That is one Gaussian of their own covariance, or a uniform density over their box, whichever is higher.
    """
    broad = -0.5 * (np.linalg.slogdet(2 * math.pi * math.e * np.cov(q.T))[1])
    return float(max(broad, -math.log(volume)))


def position_sd(fit: CloudFit, p: Floats, q: Floats, unbent: bool, fixed: Grid, onto: Grid) -> Tensor:
    """Standard deviation per axis ``[*S]`` of the mapped position on the grid ``onto``, in the fixed unit.

    It is `uncertainty.position_sd_of_points`. Where a bend was asked for and not confirmed, σ² is added to the variance, because
    a bend of that size would have gone unnoticed.

    Args:
        fit: the finished fit.
        p: moving points ``[N, D]`` in their frame.
        q: the fixed points ``[M, D]`` that the finest level looked at, in their frame.
        unbent: whether a bend was asked for and not confirmed.
        fixed: canvas of the fixed side, physical.
        onto: grid of the fixed space at which the figure is wanted, physical.
    """
    ndim, volume = q.shape[1], float(np.prod(np.ptp(q, axis=0)))
    warped = fit.warp(p)
    found = match(warped, q, fit.sigma, fit.outliers, volume)
    residual = q[:, None] - warped[found.rows]  # [M, K, D]
    pull = np.einsum("mk,mkd->md", found.share, residual)
    spread = np.einsum("mk,mkd->m", found.share, residual**2) - (pull**2).sum(axis=1)
    hold = found.share.sum(axis=1) / fit.sigma**2 - spread / (ndim * fit.sigma**4)
    reach = (
        fit.space.scale * fit.maps.zoom
        if fit.space is not None
        else SCALE * float(np.prod(np.ptp(q, axis=0))) ** (1 / ndim)
    )
    sd = uncertainty.position_sd_of_points(q, pull / fit.sigma**2, hold, fixed, fit.maps, reach, onto)
    if unbent:
        sd = (sd**2 + fit.sigma**2).sqrt()
    return sd * fixed.pixel


def _physical(pose: Floats, before: float, grids: tuple[Grid, Grid]) -> Floats:
    """A pose of the search, between the frames of both sides, as ``A`` in physical units."""
    to_fixed, to_moving = (Frame.of(grid).matrix().numpy() for grid in grids)
    out: Floats = np.linalg.inv(to_fixed) @ pose @ np.diag([*[before] * (len(pose) - 1), 1.0]) @ to_moving
    return out


def _tree(places: Floats) -> Any:
    """A search tree of positions ``[N, D]``; scipy's is loaded where one is needed."""
    from scipy.spatial import cKDTree

    return cKDTree(places)
