"""From positions to pixels: the canvas, its spacing, and exact Gaussians that keep their mass."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

import regframe

Array = NDArray[np.float64]

MARGIN = 3.0
"""Standard deviations of the widest Gaussian between the outermost cell and the border of the canvas."""
NEIGHBOURS = 8
"""Rank of the neighbour whose distance tells how much room a cell has: of the cells around one in a square grid the last. A
nearer one would measure the distance within clusters."""
FINE = 1 / 3
"""Width of a proposed pixel over the width of the room that a cell has; set on the pairs of ``benchmarks/bench_cells.py``.
Not critical: on the heart spacings from 16 to 130 give a label agreement of 0.87 to 0.91 (``docs/cells.md``)."""
ASKED = 20_000
"""Cells whose neighbours are looked up, evenly drawn from the table: the median distance then is known to within 1 %."""
FEW = 50
"""Positions below which none is stray: of so few, two per cent are not one."""
STRAYED = 4.0
"""Area of a canvas of all positions over that without stray ones from which these are left off it. Below, the side of a
pixel grows by less than twice on their account."""
PROPOSED_PIXELS = 4_000_000
"""Pixels of a canvas with a proposed spacing at most: 2000 × 2000, beyond what a registration needs to find a bend."""
MOST_VALUES = 1 << 29
"""Values (pixels times channels, float32) of a raster at most: 2 GiB."""


def near(coords: Array) -> NDArray[np.bool_]:
    """Which positions ``[N, 2]`` a canvas is made for, ``[N]`` bool: all but stray ones far from the rest.

    Near are those within the middle 98 % and half of its extent around it, and what lies within half of their extent around
    them. The others are stray where leaving them out makes the canvas `STRAYED` times smaller or more; of fewer than `FEW`
    positions none are.
    """
    everywhere = np.ones(len(coords), dtype=bool)
    if len(coords) < FEW:
        return everywhere
    low, high = np.quantile(coords, (0.01, 0.99), axis=0)
    kept = everywhere
    for _ in range(2):
        half = (high - low) / 2
        kept = ((coords >= low - half) & (coords <= high + half)).all(axis=1)
        if kept.all() or not kept.any():
            return everywhere
        low, high = coords[kept].min(axis=0), coords[kept].max(axis=0)
    whole, part = (np.maximum(np.ptp(c, axis=0), np.finfo(float).tiny) for c in (coords, coords[kept]))
    gain = float(np.log(whole / part).sum())
    return kept if gain > math.log(STRAYED) else everywhere


def propose_spacing(coords: Array) -> float:
    """A pixel a third as wide (`FINE`) as the room of the median cell: the square root of the area per cell where it lies.

    The area per cell is ``π r² / 8``, with r the distance to the eighth neighbour, so that holes, glass and stray cells do
    not count. The answer is enlarged where the canvas, which is made without stray cells (`near`), would have more than
    `PROPOSED_PIXELS`, and rounded to two digits.

    Args:
        coords: positions ``[N, 2]``, in any unit of length.

    Returns:
        The spacing, in the unit of ``coords``.

    Raises:
        ValueError: where there are fewer than 16 cells, or most of them lie on one another.
    """
    from scipy.spatial import cKDTree

    step = max(1, len(coords) // ASKED)
    room = 0.0
    if len(coords) >= 2 * NEIGHBOURS:
        distance, _ = cKDTree(coords).query(coords[::step], k=NEIGHBOURS + 1)
        room = float(np.median(np.asarray(distance)[:, -1])) * math.sqrt(math.pi / NEIGHBOURS)
    if not room > 0:
        raise ValueError(
            f"wanted cells apart from each other to propose a spacing from, got {len(coords)} "
            f"{'of which most lie on one another' if len(coords) >= 2 * NEIGHBOURS else 'of them'}; state spacing=..."
        )
    spacing = FINE * room
    height, width = (float(v) + 2 * MARGIN * room for v in np.ptp(coords[near(coords)], axis=0))
    return float(f"{max(spacing, math.sqrt(height * width / PROPOSED_PIXELS)):.2g}")


def canvas(coords: Array, spacing: float, margin: float, unit: str) -> regframe.Grid:
    """The grid whose pixels hold all positions ``[N, 2]`` and ``margin`` beyond them.

    Its pixels lie at whole multiples of ``spacing``, so that tables of one space get pixels that coincide. ``coords``,
    ``spacing`` and ``margin`` are in ``unit``.
    """
    low = np.floor((coords.min(axis=0) - margin) / spacing)
    high = np.ceil((coords.max(axis=0) + margin) / spacing)
    shape = tuple(int(n) for n in high - low + 1)
    return regframe.Grid(shape, (spacing, spacing), tuple(float(v) for v in low * spacing), unit)


def rasterize(
    coords: Array, weights: Array, grid: regframe.Grid, sigmas: Sequence[float], threads: int = 0
) -> NDArray[np.float32]:
    """Sums of Gaussians of weighted positions: ``[len(sigmas) * C, H, W]`` float32, all channels of one scale together.

    A cell adds exactly its weights to the sums over the raster, also at the border, where what would hang over is made
    up for; cells beyond the area of the pixels add nothing.

    Args:
        coords: ``[N, 2]`` in the unit of ``grid``.
        weights: ``[N, C]``.
        grid: where the pixels are.
        sigmas: standard deviations, in the unit of ``grid``.
        threads: 0 for all cores.

    Raises:
        ValueError: for a raster that would be too large, or positions or weights that are not finite.
        ImportError: where the compiled module is missing.
    """
    check_size(grid, weights.shape[1] * len(sigmas))
    try:
        from regframe import _host  # type: ignore[attr-defined]  # compiled
    except ImportError as error:
        raise ImportError(
            f"wanted the compiled module regframe._host, got none; run `{regframe.ops.BUILD_COMMAND}`"
        ) from error
    out = np.empty((len(sigmas) * weights.shape[1], *grid.shape), dtype=np.float32)
    values = np.ascontiguousarray(weights, dtype=np.float32)
    for i, sigma in enumerate(sigmas):
        part = out[i * weights.shape[1] : (i + 1) * weights.shape[1]]
        part[:] = _host.splat(coords, values, grid.shape, grid.origin, grid.spacing, float(sigma), threads)[0]
    return out


def hull(coords: Array, grid: regframe.Grid) -> NDArray[np.float32]:
    """1 on the pixels ``[H, W]`` of ``grid`` whose centre is within the convex hull of positions ``[N, 2]``, else 0.

    ValueError where the positions lie on one line.
    """
    from scipy.spatial import ConvexHull, QhullError

    try:
        sides = ConvexHull(coords).equations  # [K, 3]: outward normal and offset
    except (QhullError, ValueError):
        raise ValueError(f"wanted cells that span an area for field='hull', got {len(coords)} on a line") from None
    y, x = (o + s * np.arange(n) for o, s, n in zip(grid.origin, grid.spacing, grid.shape, strict=True))
    out = np.ones(grid.shape, dtype=bool)
    for a, b, c in sides:
        out &= a * y[:, None] + b * x[None, :] + c <= 0
    return out.astype(np.float32)


def check_size(grid: regframe.Grid, channels: int) -> None:
    """ValueError for a raster of more than `MOST_VALUES`, before it is allocated."""
    if math.prod(grid.shape) * channels > MOST_VALUES:
        size = " x ".join(map(str, grid.shape))
        raise ValueError(
            f"wanted a raster of at most {MOST_VALUES} values, got {size} pixels of {grid.spacing[0]:g} {grid.unit} "
            f"in {channels} channel(s); take a larger spacing or fewer channels, and look for stray cells far from the rest"
        )
