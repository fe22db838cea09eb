"""One piecewise map of the maps of all pieces, with its seams, weights and figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from ..data import Grid
from ..maps.affine import Affine
from ..maps.base import Transform
from ..maps.pieces import NOWHERE, Cells, Pieces, fitted_affine
from ..result import Result
from .find import Found
from .fit import Fit
from .pair import Sides

TRUSTED = 512
"""Pixels along the longer side of the grid of weights of the whole."""


def joined(sides: Sides, fits: Sequence[Fit]) -> Pieces:
    """The maps of pieces as one: each position belongs to the nearest piece of its side.

    A piece that was torn, on the other side, belongs to several parts: there each position belongs to the part that it lies in,
    or nearest to, under that part's own map.
    """
    maps = [result_of(fit).transform for fit in fits]
    back = [one.inverse() for one in maps]
    source = _cells(sides.moving, [f.pair.moving for f in fits], sides.fixed, [f.pair.fixed for f in fits], maps)
    target = _cells(sides.fixed, [f.pair.fixed for f in fits], sides.moving, [f.pair.moving for f in fits], back)
    return Pieces(tuple(maps), source, target)


def result_of(fit: Fit) -> Result:
    """The result of a pair that has one."""
    assert fit.result is not None
    return fit.result


def _cells(found: Found, own: Sequence[int], other: Found, theirs: Sequence[int], maps: Sequence[Transform]) -> Cells:
    """The labels of one side.

    Args:
        found: its pieces.
        own: index of each map's piece on this side.
        other: the pieces of the other side.
        theirs: index of each map's piece there.
        maps: from this side to the other.
    """
    nearest = ndimage.distance_transform_edt(found.labels == 0, return_distances=False, return_indices=True)
    piece = found.labels[tuple(nearest)]  # [h, w], from 1
    labels = np.full(piece.shape, NOWHERE, dtype=np.int16)
    for number in range(1, len(found.pieces) + 1):
        parts = [k for k, i in enumerate(own) if found.pieces[i].number == number]
        here = piece == number
        if len(parts) == 1:
            labels[here] = parts[0]
        elif parts:
            rows = np.argwhere(here)
            at = torch.from_numpy(rows * np.array(found.grid.spacing) + np.array(found.grid.origin))
            away = np.stack([_away(other, theirs[k], maps[k].points(at)) for k in parts])
            labels[tuple(rows.T)] = np.array(parts)[away.argmin(axis=0)]
    return Cells(torch.from_numpy(labels), found.grid)


def _away(found: Found, k: int, at: Tensor) -> NDArray[np.float64]:
    """Distance ``[N]`` of positions from a piece, in pixels of its labels; negative within it."""
    mask = found.mask(found.pieces[k].number)
    signed = ndimage.distance_transform_edt(~mask) - ndimage.distance_transform_edt(mask)
    index = ((at.numpy() - found.grid.origin) / found.grid.spacing).T
    inside = [np.clip(v, 0, n - 1) for v, n in zip(index, mask.shape, strict=True)]
    beyond = np.sqrt(sum((v - c) ** 2 for v, c in zip(index, inside, strict=True)))
    out: NDArray[np.float64] = ndimage.map_coordinates(signed, inside, order=1) + beyond
    return out


def affine_of(phi: Pieces, sides: Sides, fits: Sequence[Fit], moved: Sequence[bool]) -> Affine:
    """The affine map nearest to the pieces that lie at their place, or to all where there are none."""
    spots = []
    for fit, elsewhere in zip(fits, moved, strict=True):
        if elsewhere and not all(moved):
            continue
        piece = sides.moving.pieces[fit.pair.moving]
        reach = piece.diameter / 3
        ticks = torch.tensor([[y, x] for y in (-reach, 0, reach) for x in (-reach, 0, reach)], dtype=torch.float64)
        spots.append(torch.tensor(piece.centre, dtype=torch.float64) + ticks)
    return fitted_affine(phi, phi.source.grid, spots)


def trust(phi: Pieces, fits: Sequence[Fit], fixed: Grid) -> tuple[Tensor | None, Tensor | None, Grid | None]:
    """Weight and `position_sd` of the whole on one grid of the fixed side: each piece's own, 0 off all pieces."""
    results = [result_of(fit) for fit in fits]
    if any(r.weight is None or r.weight_grid is None for r in results):
        return None, None, None
    grid = fixed.resampled(max(max(fixed.extent) / TRUSTED, *fixed.spacing))
    label = phi.target.at(grid.coords().reshape(-1, grid.ndim)).reshape(grid.shape)
    weight, sd = torch.zeros(grid.shape), torch.zeros(grid.shape)
    spread = all(r.position_sd is not None for r in results)
    for k, r in enumerate(results):
        here = label == k
        at = grid.coords()[here]
        own = r.weight_grid
        assert own is not None
        assert r.weight is not None
        inside = own.contains(at)
        weight[here] = torch.where(inside, _sampled(r.weight, own, at), torch.tensor(0.0))
        if spread and r.position_sd is not None:
            sd[here] = _sampled(r.position_sd, own, at)
    return weight, sd if spread else None, grid


def _sampled(values: Tensor, grid: Grid, at: Tensor) -> Tensor:
    """Values of the nearest pixels at positions ``[N, D]``."""
    index = (at - torch.tensor(grid.origin)) / torch.tensor(grid.spacing)
    rows = [index[:, d].round().clamp(0, n - 1).long() for d, n in enumerate(grid.shape)]
    out: Tensor = values[tuple(rows)].to(torch.float32)
    return out


def figures(fits: Sequence[Fit], phi: Pieces, sides: Sides) -> dict[str, Any]:
    """The figures of the whole map that follow from those of its pieces: never taken across a seam."""
    each = [result_of(fit).metrics for fit in fits]
    there = phi.inverse()
    off: list[Tensor] = []
    for fit in fits:
        piece = sides.moving.pieces[fit.pair.moving]
        rows = np.argwhere(ndimage.binary_erosion(sides.moving.labels[piece.box] == piece.number, iterations=2))
        rows = rows[:: max(1, len(rows) // 500)] + [s.start for s in piece.box]
        at = torch.from_numpy(rows * np.array(sides.moving.grid.spacing) + np.array(sides.moving.grid.origin))
        off.append((there.points(phi.points(at)) - at).norm(dim=1))
    away = torch.cat(off) / math.prod(sides.moving.grid.spacing) ** 0.5
    settled = away[torch.isfinite(away)]
    beyond = float((settled > 1).to(torch.float64).mean()) if len(settled) else 0.0
    within = settled[settled <= 1]
    sure = [m["confidence"] for m in each if m.get("confidence") is not None]
    return {
        "model": f"{len(fits)} pieces",
        "roundtrip_px": {
            "mean": float(within.mean()) if len(within) else 0.0,
            "max": float(within.max()) if len(within) else 0.0,
        },
        "beside_seams": beyond,
        "jacobian_min": min(m["jacobian_min"] for m in each),
        "jacobian_max": max(m["jacobian_max"] for m in each),
        "folding_fraction": max(m["folding_fraction"] for m in each),
        "matching_fraction": float(np.mean([m["matching_fraction"] for m in each])),
        "n_evaluations": sum(m["n_evaluations"] for m in each),
        "energy": {"first": None, "last": None},
        "pose_margin": None,
        "metric": each[0]["metric"],
        **({"confidence": float(np.mean(sure))} if sure else {}),
    }
