"""What is laid over the pictures: the local change of area, how sure each position is, and so on; their legends and values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.measure import find_contours

from ..data import Grid
from ..evaluation import match_probability, position_sd
from ..fit.uncertainty import radius_90
from ..maps import bends
from ..maps.base import Transform
from ..result import Result

Array = NDArray[Any]
LAYERS = {
    "weight": ("Matching tissue", "probability that both sides show the same tissue here"),
    "sd": ("How sure", "nine positions in ten lie within this distance of where they belong"),
    "area": (
        "Change of area",
        "how much the moving tissue was widened or narrowed here, beyond its change of size as a whole",
    ),
    "bend": ("Bend", "how far the map departs here from turn, shift, scale and shear alone"),
}
"""Name and meaning of each layer of colours, by the word in addresses."""
_STEPS = 320
"""Pixels along the longer side of a layer: the maps are smooth."""
_LINES, _ALONG = 24, 97
"""Lines of the deformed grid along the longer side, and positions along each of them."""
_ARROWS = 22
"""Arrows along the longer side."""
_RAMPS = {
    "weight": ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)),
    "sd": ((0, 34, 78), (66, 78, 108), (125, 124, 120), (187, 175, 113), (254, 232, 56)),
    "area": ((33, 102, 172), (146, 197, 222), (247, 247, 247), (244, 165, 130), (178, 24, 43)),
    "bend": ((252, 253, 191), (254, 159, 109), (222, 73, 104), (114, 31, 129), (20, 14, 54)),
}
"""Colours from the lowest to the highest value: viridis, cividis, a blue-white-red and magma, five of each."""


class Slice(NamedTuple):
    """A plane of a volume.

    Args:
        grid: its pixels, a volume that is one pixel thick.
        across: the axis it is thin along, 0 … 2.
    """

    grid: Grid
    across: int


@dataclass(frozen=True)
class Layer:
    """A layer of colours.

    Args:
        colours: ``[h, w, 4]`` uint8; clear where there is no value.
        low: value of the first colour of the legend.
        high: value of the last one.
        unit: of both.
        ramp: colours of the legend, ``RRGGBB``, from low to high.
    """

    colours: Array
    low: float
    high: float
    unit: str
    ramp: tuple[str, ...]


class Fields:
    """The values of a map at fixed positions.

    Args:
        transform: moving → fixed.
        result: the registration that found it; None for a start by hand, which has no figures.
        fixed: canvas of the fixed side.
        moving: canvas of the moving side.
    """

    def __init__(self, transform: Transform, result: Result | None, fixed: Grid, moving: Grid) -> None:
        self._back, self._forth, self._result = transform.inverse(), transform, result
        self._fixed, self._moving = fixed, moving
        affine = result.affine if result is not None else transform
        parts = affine.parts()
        self._affine = affine.inverse()
        self._size = abs(float(torch.linalg.det(bends.product(parts, fixed.ndim)[:-1, :-1])))

    @property
    def names(self) -> tuple[str, ...]:
        """The layers that there are."""
        if self._result is None:
            return ()
        weight = ("weight",) if self._result.weight is not None else ()
        return (*weight, *(("sd",) if self._result.position_sd is not None else ()), "area", "bend")

    def values(self, name: str, at: torch.Tensor) -> Array:
        """Values ``[N]`` of a layer at fixed positions ``[N, D]``; NaN where it has none."""
        if self._result is None or name not in self.names:
            raise ValueError(f"wanted one of the layers {', '.join(self.names) or 'of a fitted map'}, got {name!r}")
        if name == "weight":
            return match_probability(self._result, at).numpy()
        if name == "sd":
            spread = position_sd(self._result, at, "fixed")
            return radius_90(at.shape[1]) * spread.numpy()
        pulled = self._back.points(at)
        inside = self._moving.contains(pulled).numpy()
        if name == "bend":
            away = (pulled - self._affine.points(at)).norm(dim=1).numpy()
            return np.where(inside, away * self._size ** (1 / at.shape[1]), np.nan)
        step = self._fixed.pixel / 2
        along = step * torch.eye(at.shape[1], dtype=torch.float64)
        slopes = [(self._back.points(at + d) - self._back.points(at - d)) / (2 * step) for d in along]
        area = torch.linalg.det(torch.stack(slopes, dim=1)).abs().numpy() * self._size
        with np.errstate(divide="ignore"):
            return np.where(inside & (area > 0), 1 / area, np.nan)

    def layer(self, name: str, cut: Slice | None = None) -> Layer:
        """A layer in colours, over the whole fixed canvas, or over a slice of a volume."""
        grid, kept = self._seen(cut, _STEPS)
        found = self.values(name, grid.coords().reshape(-1, grid.ndim)).reshape([grid.shape[d] for d in kept])
        low, high = _range(name, found)
        share = (np.log2(found) - math.log2(low)) / (math.log2(high) - math.log2(low)) if name == "area" else (
            (found - low) / (high - low)
        )  # fmt: skip
        ramp = np.array(_RAMPS[name], np.float64)
        at = np.nan_to_num(np.clip(share, 0, 1)) * (len(ramp) - 1)
        below = np.minimum(at.astype(int), len(ramp) - 2)
        colours = ramp[below] + (ramp[below + 1] - ramp[below]) * (at - below)[..., None]
        alpha = np.where(np.isfinite(found), 255, 0)
        words = {"weight": "", "area": "×"}
        out = np.dstack([colours, alpha]).round().astype(np.uint8)
        return Layer(
            out,
            low,
            high,
            words.get(name, self._fixed.unit),
            tuple("{:02x}{:02x}{:02x}".format(*one) for one in _RAMPS[name]),
        )

    def cuts(self, cut: Slice) -> list[list[list[float]]]:
        """Where a slice of a volume cuts the planes that are flat and even on the moving side, across the two axes of the slice;
        as positions (row, column) on the slice, in its unit.
        """
        grid, kept = self._seen(cut, _STEPS)
        pulled = self._back.points(grid.coords().reshape(-1, 3))
        inside = self._moving.contains(pulled)
        pulled = torch.where(inside[:, None], pulled, torch.nan).reshape(*(grid.shape[d] for d in kept), 3)
        step = max(self._moving.extent) / _LINES
        origin, spacing = (np.array([values[d] for d in kept]) for values in (grid.origin, grid.spacing))
        lines = []
        for axis in kept:
            low = self._moving.origin[axis] - self._moving.spacing[axis] / 2
            for i in range(math.floor(self._moving.extent[axis] / step) + 1):
                found: list[Array] = find_contours(pulled[..., axis].numpy(), low + i * step)  # type: ignore[no-untyped-call]
                lines += [_plain(torch.from_numpy(origin + spacing * line)) for line in found]
        return lines

    def lines(self) -> list[list[list[float]]]:
        """Lines that are straight on the moving side, as fixed positions (y, x)."""
        grid = self._moving
        step = max(grid.extent) / _LINES
        low = [o - s / 2 for o, s in zip(grid.origin, grid.spacing, strict=True)]
        lines = []
        for axis in (0, 1):
            for i in range(math.floor(grid.extent[axis] / step) + 1):
                yx = torch.empty((_ALONG, 2), dtype=torch.float64)
                yx[:, axis] = low[axis] + i * step
                yx[:, 1 - axis] = low[1 - axis] + torch.linspace(0, grid.extent[1 - axis], _ALONG, dtype=torch.float64)
                lines.append(_plain(self._forth.points(yx)))
        return lines

    def arrows(self, cut: Slice | None = None) -> list[list[list[float]]]:
        """Where turn, shift, scale and shear alone would take a position, and where the map takes it: pairs of (y, x).

        On a slice of a volume as they are seen from in front of it: pairs of (row, column).
        """
        grid, kept = self._seen(cut, _ARROWS)
        ends = grid.coords().reshape(-1, grid.ndim)
        pulled = self._back.points(ends)
        inside = self._moving.contains(pulled)
        starts = self._affine.inverse().points(pulled)
        return [_plain(torch.stack(pair)[:, kept]) for pair in zip(starts[inside], ends[inside], strict=True)]

    def _seen(self, cut: Slice | None, steps: int) -> tuple[Grid, list[int]]:
        """The canvas, or a slice of it, in so many pixels along its longer side; and the two axes that are seen."""
        grid = self._fixed if cut is None else cut.grid
        kept = [d for d in range(grid.ndim) if cut is None or d != cut.across]
        longest = max(grid.extent[d] for d in kept)
        counts = [max(2, round(steps * e / longest)) if d in kept else 1 for d, e in enumerate(grid.extent)]
        return grid.resampled([e / n for e, n in zip(grid.extent, counts, strict=True)]), kept


def _plain(positions: torch.Tensor) -> list[list[float]]:
    rounded: list[list[float]] = positions.tolist()
    return [[y, x] for y, x in rounded if math.isfinite(y) and math.isfinite(x)]


def _range(name: str, values: Array) -> tuple[float, float]:
    """Lowest and highest value of the legend."""
    if name == "weight":
        return 0.0, 1.0
    finite = values[np.isfinite(values)]
    if name == "area":
        spread = float(np.percentile(np.abs(np.log2(finite)), 99.5)) if finite.size else 0.0
        spread = min(max(spread, 0.05), 3.0)
        return 2.0**-spread, 2.0**spread
    top = float(np.percentile(finite, 99.5)) if finite.size else 1.0
    return 0.0, max(top, 1e-9)
