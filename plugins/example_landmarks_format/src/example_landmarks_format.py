"""A format of maps for regframe: landmark tables of BigWarp (Fiji), from which it makes a thin-plate spline."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.interpolate import RBFInterpolator
from torch import Tensor

import regframe

STEPS = {2: (4, 6, 9, 13, 19, 27), 3: (3, 4, 6, 8, 10)}
"""Landmarks along the longest axis that are tried in turn: up to 729 and 1000, which BigWarp still solves in seconds."""
PROBES = {2: 41, 3: 15}
"""Positions along each axis at which the error is measured."""
NODES = {2: 250_000, 3: 250_000}
"""Largest number of nodes of the field that a table is read as."""
MOST_ROWS = 4000
"""Largest number of landmarks that are read: a spline through them takes the cube of it."""
STRAIGHT = 1e-9
"""Largest distance, as a share of the extent of the landmarks, from an affine map that is rounding."""


class BigWarp(regframe.MapFormat):
    """.bigwarp.csv: landmarks for BigWarp (Fiji), rows of name, active, moving x, y(, z), fixed x, y(, z).

    BigWarp fits a thin-plate spline to them. A map is written as landmarks on a grid over the fixed side, no more of them than
    keep the spline within the tolerance; what that leaves is measured and told. A table is read as its affine map where the
    landmarks lie on one, and as the spline on a field over the fixed canvas otherwise.

    Args:
        landmarks: along the longest axis of the fixed side; 0 takes as many as the tolerance needs.
    """

    name = "bigwarp"
    suffixes = (".bigwarp.csv",)
    default_unit = "um"

    def __init__(self, landmarks: int = 0) -> None:
        if (
            isinstance(landmarks, bool)
            or not isinstance(landmarks, int)
            or not (landmarks == 0 or 2 <= landmarks <= 60)
        ):
            raise ValueError(f"wanted 2 to 60 landmarks along an axis, or 0, got {landmarks!r}")
        self.landmarks = landmarks

    def write(self, result: Any, path: Path, *, to: Any, unit: str, tolerance: float) -> regframe.Written:
        """Both directions are in a table, so that ``to`` does not matter."""
        fixed, moving = result.fixed_grid, result.moving_grid
        units = ("px" if fixed.unit == "px" else unit, "px" if moving.unit == "px" else unit)
        probes = _spread(fixed, PROBES[fixed.ndim])
        truth = result.to_moving(probes)
        tried = (self.landmarks,) if self.landmarks else STEPS[fixed.ndim]
        for count in tried:
            at = _spread(fixed, count)
            there = result.to_moving(at)
            error = float((_spline(at, there)(probes) - truth).norm(dim=1).max()) / moving.pixel
            if error <= tolerance:
                break
        shown = "{:.15g}".format
        a, b = (_ratio(grid.unit, word) for grid, word in zip((fixed, moving), units, strict=True))
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
            for number, (m, f) in enumerate(zip((there * b).flip(1).tolist(), (at * a).flip(1).tolist(), strict=True)):
                writer.writerow([f"Pt-{number}", "true", *map(shown, m), *map(shown, f)])
        return regframe.Written(self.name, (path,), "moving", units, error)

    def read(self, path: Path, fixed: Any, moving: Any, *, to: Any, unit: str) -> regframe.Transform:
        """The affine map or spline of the active landmarks."""
        if fixed is None or moving is None:
            raise ValueError(
                f"wanted the canvases of both sides to read {path.name}, got none; give --fixed and --moving"
            )
        there, at = _table(path, fixed.ndim)
        there, at = there * _ratio(unit, moving.unit), at * _ratio(unit, fixed.unit)
        affine = _affine(at, there)
        off = float((_apply(affine, at) - there).norm(dim=1).max())
        to_moving = regframe.Affine(affine, fixed.unit, moving.unit)
        if off <= STRAIGHT * float((there.amax(0) - there.amin(0)).norm()):
            return to_moving.inverse()
        nodes = fixed
        if math.prod(fixed.shape) > NODES[fixed.ndim]:
            nodes = fixed.resampled(
                tuple(s * (math.prod(fixed.shape) / NODES[fixed.ndim]) ** (1 / fixed.ndim) for s in fixed.spacing)
            )
        coords = nodes.coords()
        bent = _spline(at, there)(coords.reshape(-1, fixed.ndim))
        field = (
            (_apply(to_moving.inverse().matrix, bent) - coords.reshape(-1, fixed.ndim))
            .reshape(coords.shape)
            .movedim(-1, 0)
        )
        bend = regframe.Displacement(field.contiguous(), nodes)
        return regframe.Sequence((bend, to_moving)).inverse()

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """A first line of BigWarp's own: a name, true or false, then 4 or 6 numbers, all of them in quotes."""
        try:
            with path.open("rb") as file:
                line = file.read(4096).splitlines()[0].decode("utf-8")
            words = next(csv.reader([line]))
            return line.startswith('"') and len(words) in (6, 8) and words[1] in ("true", "false")
        except (OSError, ValueError, IndexError, StopIteration, csv.Error):
            return False


def _ratio(unit: str, other: str) -> float:
    """Factor from one unit to another; 1 where a side is in pixels, which are written as pixels."""
    return 1.0 if "px" in (unit, other) else float(regframe.unit_ratio(unit, other) or math.nan)


def _spread(grid: regframe.Grid, count: int) -> Tensor:
    """Positions ``[N, D]`` over a canvas, ``count`` along its longest axis, at least 2 along any that has them."""
    longest = max(grid.extent)
    axes = []
    for origin, spacing, n, extent in zip(grid.origin, grid.spacing, grid.shape, grid.extent, strict=True):
        number = max(2, min(count, math.ceil(count * extent / longest)))
        axes.append(torch.linspace(origin, origin + spacing * (n - 1), min(n, number), dtype=torch.float64))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, grid.ndim)


class _spline:
    """The thin-plate spline through landmarks: r² log r in 2D, r in 3D, as BigWarp's."""

    def __init__(self, at: Tensor, there: Tensor) -> None:
        self.middle, self.size = at.mean(0), float((at.amax(0) - at.amin(0)).max())
        self.made = RBFInterpolator(
            ((at - self.middle) / self.size).numpy(),
            there.numpy(),
            kernel="thin_plate_spline" if at.shape[1] == 2 else "linear",
            degree=1,
        )

    def __call__(self, coords: Tensor) -> Tensor:
        return torch.from_numpy(self.made(((coords - self.middle) / self.size).numpy()))


def _affine(at: Tensor, there: Tensor) -> Tensor:
    """The least-squares affine map ``[D+1, D+1]``."""
    ndim = at.shape[1]
    middle = at.mean(0)
    ones = torch.cat([at - middle, torch.ones((len(at), 1), dtype=torch.float64)], 1)
    solved = torch.linalg.lstsq(ones, there, driver="gelsd").solution.T
    matrix = torch.eye(ndim + 1, dtype=torch.float64)
    matrix[:ndim, :ndim], matrix[:ndim, ndim] = solved[:, :ndim], solved[:, ndim] - solved[:, :ndim] @ middle
    return matrix


def _apply(matrix: Tensor, coords: Tensor) -> Tensor:
    return coords @ matrix[:-1, :-1].T + matrix[:-1, -1]


def _rows(path: Path) -> Iterator[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.reader(file)


def _table(path: Path, ndim: int) -> tuple[Tensor, Tensor]:
    """Moving and fixed positions ``[N, D]`` of the active landmarks, (z,) y, x; ValueError for another table."""
    found: list[list[float]] = []
    try:
        for row in _rows(path):
            if not row:
                continue
            if len(row) != 2 + 2 * ndim or row[1].strip().lower() not in ("true", "false"):
                raise ValueError(f"a row of {len(row)} entries")
            if row[1].strip().lower() == "true":
                found.append([float(word) for word in row[2:]])
                if not all(map(math.isfinite, found[-1])):
                    raise ValueError("a landmark that was set on one side alone")
            if len(found) > MOST_ROWS:
                raise ValueError(f"more than {MOST_ROWS} landmarks")
    except (ValueError, csv.Error) as error:
        raise ValueError(
            f"wanted rows of a name, true or false, and {2 * ndim} numbers in {path.name}, got {error}; save them anew"
        ) from error
    table = torch.tensor(found, dtype=torch.float64).reshape(-1, 2, ndim).flip(2)
    for side in (0, 1):
        values = (
            np.linalg.svd((table[:, side] - table[:, side].mean(0)).numpy(), compute_uv=False)
            if len(table) > ndim
            else [0.0]
        )
        if not values[-1] > 1e-9 * values[0]:
            raise ValueError(
                f"wanted at least {ndim + 1} active landmarks that span the space in {path.name}, got {len(table)} that do not"
            )
    if len(np.unique(table[:, 1].numpy(), axis=0)) != len(table):
        raise ValueError(f"wanted fixed landmarks at places of their own in {path.name}, got two at one; delete one")
    return table[:, 0], table[:, 1]


@regframe.hookimpl
def regframe_formats() -> list[type[regframe.MapFormat]]:
    """The formats of maps of this plug-in."""
    return [BigWarp]
