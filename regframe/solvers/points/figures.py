"""What came of two clouds: maps, figures, matching probability, position uncertainty."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

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
"""Points at which the figures of a map of points are taken, at most: more change no digit that is printed."""


MOST_AREAS = 40_000
"""Places at which the change of area of a map of points is taken, at most: one every two hundredth of the canvas in 2D."""


def finish(
    sides: tuple[PointSet, PointSet],
    grids: tuple[Grid, Grid],
    clouds: Clouds,
    fit: CloudFit,
    search: tuple[Found | None, float | None],
    held: dict[str, float] | None,
) -> Fitted:
    """Maps, figures, matching probability and position uncertainty of a fit.

    Args:
        sides: fixed and moving points, as they came.
        grids: the canvas of each, in its unit.
        clouds: what was fitted, each in its frame.
        fit: where it ended.
        search: the pose that was found without landmarks, or None, and how clear it was, 0 … 1, or None.
        held: what bending gained on points that were held out, or None where no bend was asked for.
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
    grid = fixed_grid.resampled(
        tuple(max(3 * s, e / 64) for s, e in zip(fixed_grid.spacing, fixed_grid.extent, strict=True))
    )
    at = grid.coords().reshape(-1, fixed.ndim).numpy()
    _, rows = cKDTree(physical.numpy()).query(at, k=min(8, len(physical)))
    unbent = config.transform == "lddmm" and fit.space is None
    sd = _position_sd(fit, p, some(q, MOST_FITTED, config.seed), unbent, fixed_grid, grid)
    here = sd.reshape(-1).numpy()[cKDTree(at).query(physical.numpy())[1]]
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
    """Round trip, change of area and bending of a map, at points of both sides.

    Args:
        phi: moving → fixed.
        affine: its affine part alone.
        grids: canvas of either side.
        physical: fixed points ``[M, D]`` in their unit.
        own: moving points ``[N, D]`` in their frame.
    """
    fixed, moving = grids
    back = phi.inverse()
    error = (phi.points(back.points(physical)) - physical).norm(dim=1) / fixed.pixel
    factor = max(1.0, (math.prod(fixed.shape) / MOST_AREAS) ** (1 / fixed.ndim))
    coarse = fixed.resampled(tuple(s * factor for s in fixed.spacing))
    where = torch.from_numpy(cKDTree(physical.numpy()).query(coarse.coords().reshape(-1, fixed.ndim).numpy())[0])
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
    """Mean log density, in nats, of points ``[M, D]`` under one broad Gaussian, or even over their box if that is more."""
    broad = -0.5 * (np.linalg.slogdet(2 * math.pi * math.e * np.cov(q.T))[1])
    return float(max(broad, -math.log(volume)))


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
    """A pose of the search (between the frames, the change of unit before it) as ``A`` in physical units."""
    to_fixed, to_moving = (Frame.of(grid).matrix().numpy() for grid in grids)
    out: Floats = np.linalg.inv(to_fixed) @ pose @ np.diag([*[before] * (len(pose) - 1), 1.0]) @ to_moving
    return out
