"""How far a registration is off at known pairs of positions: the target registration error."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import clouds
from .data import PointSet, unit_ratio
from .registration import Result


class PointMatch(NamedTuple):
    """Which moving point each fixed one is.

    Args:
        row: row of the moving points ``[M]``, the nearest under the map; -1 where a partner is less likely than not.
        probability: that a fixed point has a partner at all ``[M]``, by the mixture the map was fitted with.
    """

    row: Tensor
    probability: Tensor


def match_points(result: Result, fixed: PointSet, moving: PointSet) -> PointMatch:
    """The partners of two registered point sets, row by row of ``fixed``.

    Raises ValueError for the result of two images, and for points in another unit than the result's.
    """
    figures = result.metrics
    if "scale_px" not in figures:
        raise ValueError("wanted the result of registering two point sets, got one of images; register the points")
    for points, grid, side in ((fixed, result.fixed_grid, "fixed"), (moving, result.moving_grid, "moving")):
        if (points.unit, points.ndim) != (grid.unit, grid.ndim):
            raise ValueError(
                f"wanted {grid.ndim}D {side} points in {grid.unit}, got {points.ndim}D ones in {points.unit}; state the unit"
            )
        clouds.check_cloud(points, side)
    pixel, volume = result.fixed_grid.pixel, 1.0
    for extent in result.fixed_grid.extent:
        volume *= extent
    found = clouds.match(
        result.to_fixed(moving).coords.numpy(),
        fixed.coords.numpy(),
        figures["scale_px"] * pixel,
        figures["outliers"],
        volume,
    )
    probability = torch.from_numpy(found.share.sum(axis=1))
    nearest = torch.from_numpy(found.rows[:, 0].astype("int64"))
    return PointMatch(torch.where(probability > 0.5, nearest, -1), probability)


def evaluate(result: Result, fixed: PointSet | Tensor, moving: PointSet | Tensor) -> dict[str, Any]:
    """Errors at paired positions, taken in the moving space: ``Φ⁻¹(fixed)`` against ``moving``.

    Args:
        result: the registration.
        fixed: ``[N, D]`` in the fixed side's unit, row ``i`` paired with row ``i`` of ``moving``.
        moving: ``[N, D]`` in the moving side's unit.

    Returns:
        ``n``; ``unit``; ``tre`` (in ``unit``) and ``tre_px`` (in moving pixels), each with mean, median, p90 and max;
        ``rtre_median``, the median over the moving image's diagonal; ``before``, the same for the identity map, or None
        where the two units cannot be compared.

    Raises:
        ValueError: where the sides differ in length, dimension or unit, or hold a position that is not finite.
    """
    grid = result.moving_grid
    f = _coords(fixed, result.fixed_grid.ndim, result.fixed_grid.unit, "fixed")
    m = _coords(moving, grid.ndim, grid.unit, "moving")
    if f.shape[0] != m.shape[0]:
        raise ValueError(
            f"wanted one moving landmark per fixed landmark, got {f.shape[0]} fixed and {m.shape[0]} moving; "
            "pair them row by row, or give both an id column"
        )
    if f.shape[0] == 0:
        raise ValueError("wanted at least one pair of landmarks, got none; check the files and their ids")
    after = torch.linalg.vector_norm(result.transform.inverse().points(f) - m, dim=-1)
    ratio = unit_ratio(result.fixed_grid.unit, grid.unit)
    before = None if ratio is None else torch.linalg.vector_norm(f * ratio - m, dim=-1)
    return {
        "n": int(f.shape[0]),
        "unit": grid.unit,
        **_figures(after, grid.pixel, grid.diagonal),
        "before": None if before is None else _figures(before, grid.pixel, grid.diagonal),
    }


def _coords(points: PointSet | Tensor, ndim: int, unit: str, side: str) -> Tensor:
    if isinstance(points, PointSet):
        if points.unit != unit:
            raise ValueError(f"wanted {side} landmarks in {unit}, got {points.unit}; state their spacing")
        points = points.coords
    coords = torch.as_tensor(points, dtype=torch.float64)
    if coords.ndim != 2 or coords.shape[1] != ndim:
        raise ValueError(f"wanted {side} landmarks [N, {ndim}], got {tuple(coords.shape)}")
    bad = torch.nonzero(~torch.isfinite(coords).all(dim=-1))
    if len(bad):
        raise ValueError(f"wanted finite {side} landmarks, got a missing value in row {int(bad[0])}; remove the pair")
    return coords


def _figures(error: Tensor, pixel: float, diagonal: float) -> dict[str, Any]:
    """Statistics of ``error`` ``[N]``."""
    figures = {
        "mean": float(error.mean()),
        "median": float(error.quantile(0.5)),
        "p90": float(error.quantile(0.9)),
        "max": float(error.max()),
    }
    return {
        "tre": figures,
        "tre_px": {name: value / pixel for name, value in figures.items()},
        "rtre_median": figures["median"] / diagonal,
    }
