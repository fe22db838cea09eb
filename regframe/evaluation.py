"""Figures on single positions under a result: how far each can be trusted, its partner, and its error at known pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .data import Image, PointSet, tensor_of, unit_ratio
from .fit import clouds
from .maps import bends
from .maps.plane import lift_points, nearest
from .reference import sample_image
from .result import Result


class PointMatch(NamedTuple):
    """The partner of each fixed point among the moving points.

    Args:
        row: row of the nearest moving point under the map ``[M]``; -1 where the fixed point more likely has no partner.
        probability: probability that a fixed point has any partner ``[M]``, by the mixture to which the map was fitted.
    """

    row: Tensor
    probability: Tensor


class CarriedPoints(NamedTuple):
    """Points moved to the other side, with figures on how far each can be trusted there.

    Args:
        points: the moved points in their original order, with their table, in the unit of the destination.
        match_probability: probability that the position shows tissue that both sides have, ``[N]`` in 0 … 1; NaN off the fixed
            canvas, or where the result has no weights.
        position_sd: standard deviation per axis of the moved position, ``[N]`` in the unit of the destination; NaN off the fixed
            canvas, or where the result has no such figure.
        in_canvas: whether the moved position lies on the canvas of the destination, ``[N]`` bool.
    """

    points: PointSet
    match_probability: Tensor
    position_sd: Tensor
    in_canvas: Tensor

    def columns(self, existing: Mapping[str, Sequence[Any]] | None = None) -> dict[str, Tensor]:
        """The three figures by column name, to be added to a table.

        A name gets the prefix ``regframe_`` where ``existing`` has a column of that name which regframe did not write.
        """
        existing = {} if existing is None else existing
        added = {name: getattr(self, name) for name in self._fields[1:]}
        return {f"regframe_{n}" if _is_foreign(existing.get(n, ()), n) else n: v for n, v in added.items()}


def carry_points(result: Result, points: PointSet, to: Literal["fixed", "moving"] = "fixed") -> CarriedPoints:
    """Move ``points`` to the side ``to`` and look up what the result knows of each position.

    Raises ValueError for points in another unit or dimension than that of the side they belong to.
    """
    if to not in ("fixed", "moving"):
        raise ValueError(f"wanted 'fixed' or 'moving' as the side to go to, got {to!r}; choose one")
    if result.section and to == "moving" and points.ndim == 2:
        points = lift_points(points)
    after = result.to_fixed(points) if to == "fixed" else result.to_moving(points)
    on_fixed = (after if to == "fixed" else points).coords
    sd = position_sd(result, on_fixed, to)
    sd[~torch.isfinite(after.coords).all(dim=1)] = torch.nan  # of a map in pieces, on one without a partner
    canvas = result.fixed_grid if to == "fixed" else result.moving_grid
    return CarriedPoints(
        after,
        match_probability(result, on_fixed),
        sd,
        canvas.contains(after.coords),
    )


def labels_at(labels: Image, points: PointSet) -> Tensor:
    """Id ``[N]`` of the nearest pixel of a label image or volume at each point; 0 off the image.

    Raises ValueError for an image that is not one of labels, and for points of another unit or dimension.
    """
    if not labels.labels:
        raise ValueError(f"wanted an image of labels, got the intensities of {labels.name}; open it with labels=True")
    if (points.unit, points.ndim) != (labels.grid.unit, labels.grid.ndim):
        raise ValueError(
            f"wanted {labels.grid.ndim}D points in {labels.grid.unit}, as {labels.name} is, got {points.ndim}D ones in "
            f"{points.unit}; state its spacing and unit"
        )
    return nearest(torch.from_numpy(labels.data[0].numpy().astype("int64")), labels.grid, points.coords)


def match_probability(result: Result, coords: Tensor) -> Tensor:
    """Matching probability ``[N]`` at fixed-space positions ``[N, D]``; NaN off the fixed canvas, or without weights."""
    return _at(result.weight, result, coords).clamp(0, 1)


def position_sd(result: Result, coords: Tensor, to: str) -> Tensor:
    """Standard deviation per axis ``[N]`` of the map at fixed-space positions ``[N, D]``, in the unit of the side ``to``.

    NaN off the fixed canvas, or where the result has no such figure.
    """
    sd = _at(result.position_sd, result, coords)
    if to == "moving":
        ndim = result.affine.ndim
        unit = torch.cat([torch.zeros(1, ndim, dtype=torch.float64), torch.eye(ndim, dtype=torch.float64)])
        moved = result.affine.points(unit)
        sd = sd * torch.linalg.det(moved[1:] - moved[0]).abs() ** (-1 / ndim)
    return sd


def match_points(result: Result, fixed: PointSet, moving: PointSet) -> PointMatch:
    """For each point of ``fixed``, its partner in ``moving`` under the map of two registered point sets.

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


def map_figures(result: Result) -> dict[str, Any]:
    """The figures that follow from a map alone: ``roundtrip_px``, ``jacobian_min`` and ``max``, ``folding_fraction``,
    ``overlap_fraction``; on the fixed canvas, at 50 000 positions where it has more pixels."""
    phi, back, fixed, moving = result.transform, result.transform.inverse(), result.fixed_grid, result.moving_grid
    coarse = max(1.0, (math.prod(fixed.shape) / 50_000) ** (1 / fixed.ndim))
    grid = (
        fixed
        if coarse == 1
        else fixed.resampled([s * min(coarse, n) for s, n in zip(fixed.spacing, fixed.shape, strict=True)])
    )
    coords = grid.coords()
    at = back.points(coords)
    inside = moving.contains(at)
    seen = inside if bool(inside.any()) else torch.ones_like(inside)
    error = ((phi.points(at) - coords).norm(dim=-1) / fixed.pixel)[seen].nan_to_num(math.inf)
    linear = torch.linalg.det(bends.product(result.affine.parts(), fixed.ndim)[:-1, :-1])
    area = (back.jacobian_determinant(grid) * linear)[seen]
    return {
        "roundtrip_px": {"mean": float(error.mean()), "max": float(error.max())},
        "jacobian_min": float(area.min()),
        "jacobian_max": float(area.max()),
        "folding_fraction": float((area <= 0).to(torch.float64).mean()),
        "overlap_fraction": float(inside.to(torch.float64).mean()),
    }


def evaluate(result: Result, fixed: PointSet | Tensor, moving: PointSet | Tensor) -> dict[str, Any]:
    """Errors at paired positions, taken in the moving space: ``Φ⁻¹(fixed)`` against ``moving``.

    Args:
        result: the registration.
        fixed: ``[N, D]`` in the fixed side's unit, row ``i`` paired with row ``i`` of ``moving``; of a section in a volume
            ``[N, 2]`` is enough, in its plane.
        moving: ``[N, D]`` in the moving side's unit.

    Returns:
        ``n``; ``unit``; ``tre`` (in ``unit``) and ``tre_px`` (in moving pixels), each with mean, median, p90 and max;
        ``rtre_median``, the median error divided by the moving image's diagonal; ``before``, the errors of the identity map in
        the same layout, or None where the two units cannot be compared. ``unplaced``, of a map in pieces, is the number of pairs
        on pieces without a partner: they have no error, and are in no other figure.

    Raises:
        ValueError: where the sides differ in length, dimension or unit, or hold a position that is not finite.
    """
    grid = result.moving_grid
    if result.section and isinstance(fixed, PointSet) and fixed.ndim == 2:
        fixed = lift_points(fixed)
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
    unplaced = int((~torch.isfinite(after)).sum())  # of a map in pieces, on a piece without a partner
    if unplaced == len(after):
        raise ValueError(
            f"wanted landmarks where there is a map, got {unplaced} on pieces without a partner; look at the report"
        )
    if unplaced:
        kept = torch.isfinite(after)
        f, m, after = f[kept], m[kept], after[kept]
    ratio = unit_ratio(result.fixed_grid.unit, grid.unit)
    before = None if ratio is None else torch.linalg.vector_norm(f * ratio - m, dim=-1)
    return {
        "n": int(f.shape[0]),
        "unit": grid.unit,
        **({"unplaced": unplaced} if unplaced else {}),
        **_figures(after, grid.pixel, grid.diagonal),
        "before": None if before is None else _figures(before, grid.pixel, grid.diagonal),
    }


def _at(values: Tensor | None, result: Result, coords: Tensor) -> Tensor:
    """Interpolates ``values`` of the weight grid at fixed positions ``[N, D]``; NaN off the fixed canvas, or where None."""
    if values is None or result.weight_grid is None:
        return torch.full(coords.shape[:1], float("nan"), dtype=torch.float64)
    grid = result.weight_grid
    index = (coords - torch.tensor(grid.origin, dtype=torch.float64)) / torch.tensor(grid.spacing, dtype=torch.float64)
    value = sample_image(values[None].to(torch.float64), index.nan_to_num(0.0))[0]
    return torch.where(result.fixed_grid.contains(coords), value, torch.nan)


def _is_foreign(column: Sequence[Any], name: str) -> bool:
    """Whether the existing column ``name`` holds the user's own data, rather than values that an earlier run of regframe wrote.

    The user's column must be kept; regframe's own is replaced.
    """
    for cell in column:
        value = str(cell).lower()
        value = "" if value in ("nan", "<na>", "none") else value  # missing values count as blanks
        if name == "in_canvas" and value not in ("true", "false"):
            return True
        if name == "match_probability" and value and not _is_number(value, 1.0):
            return True
        if name == "position_sd" and value and not _is_number(value, math.inf):
            return True
    return False


def _is_number(value: str, most: float) -> bool:
    """Whether a cell holds a number from 0 to ``most``."""
    try:
        return 0 <= float(value) <= most
    except ValueError:
        return False


def _coords(points: PointSet | Tensor, ndim: int, unit: str, side: str) -> Tensor:
    if isinstance(points, PointSet):
        if points.unit != unit:
            raise ValueError(f"wanted {side} landmarks in {unit}, got {points.unit}; state their spacing")
        points = points.coords
    coords = tensor_of(points, torch.float64)
    if coords.ndim != 2 or coords.shape[1] != ndim:
        raise ValueError(f"wanted {side} landmarks [N, {ndim}], got {tuple(coords.shape)}")
    bad = torch.nonzero(~torch.isfinite(coords).all(dim=-1))
    if len(bad):
        raise ValueError(f"wanted finite {side} landmarks, got a missing value in row {int(bad[0])}; remove the pair")
    return coords


def _figures(error: Tensor, pixel: float, diagonal: float) -> dict[str, Any]:
    """Mean, median, 90th percentile and maximum of ``error`` ``[N]``, in its unit and in pixels."""
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
