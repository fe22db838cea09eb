"""What came of two clouds: maps, figures, matching probability, position uncertainty."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from ...config import Config
from ...data import Grid, PointSet
from ...fit import uncertainty
from ...fit.clouds import Floats, carried, match, some
from ...fit.frames import Frame
from ...fit.velocity import physical_maps
from ...maps import homogeneous
from ...maps.affine import Affine
from ...maps.base import Transform
from ...starts.points import CLEAR, Found
from .bend import SCALE, CloudFit
from .straight import MOST_FITTED

CONVINCING = 2.0
"""Standard errors by which it must."""
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


# ---- what came of it -----------------------------------------------------------------------------------------------

PROBED = 20_000
"""Points at which the figures are taken, at most."""


def finish(
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
