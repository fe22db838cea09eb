"""Measures the error of a map window by window, from the fine structure of both images at full resolution.

Where a constant names no source, neither a paper nor a calibration is recorded for it; ``benchmarks/bench_refine.py`` measures
what they achieve together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from ..data import Grid, Level
from ..fit.halvings import soften
from ..fit.likeness import BESIDE, CORRELATION_LIMIT
from ..fit.velocity import smooth_size
from ..maps.base import Transform
from . import tiles
from .field import Array

WINDOW = 128
"""Side of a window, in pixels of the level."""
SEARCH = 24
"""Distance, in pixels of the level, to every side of its expected place within which a window is searched for."""
BAND = 33
"""Side in pixels of the boxes whose mean is subtracted before a window is searched for: removes shading."""
FINE = 9
"""Side in pixels of the boxes whose mean is subtracted before a window judges: leaves fine structure only."""
PEAK = 6.0
"""Height of the correlation peak, in standard deviations above the other places in the search range, from which a window counts
as found. Among the 2400 places of a search range chance reaches 3.5."""


@dataclass(frozen=True)
class Seen:
    """The measurements in one tile.

    Args:
        places: positions ``[N, D]`` of the middles of the windows that were found, in the fixed space.
        shifts: offset ``[N, D]`` from each position to the moving image's match, in the fixed unit.
        sd: standard deviation of the offset per axis ``[N, D]``, in the fixed unit.
        judges: positions ``[M, D]`` of the middles of the windows that judge.
        surfaces: their correlation by displacement in pixels of the level, ``[M, 2 SEARCH + 1, 2 SEARCH + 1]`` float16.
        chance: ``[M, 2]``: standard deviation of that correlation over all displacements, and of its change from one pixel to the
            next, which is what a displacement gains by chance.
        status: the reason where there are no measurements, or ``""``.
    """

    places: Array
    shifts: Array
    sd: Array
    judges: Array
    surfaces: NDArray[np.float16]
    chance: Array
    status: str = ""

    @classmethod
    def nothing(cls, status: str) -> Seen:
        """A tile without measurements, for the reason ``status``."""
        none, size = np.zeros((0, 2)), 2 * SEARCH + 1
        return cls(none, none, none, none, np.zeros((0, size, size), np.float16), none, status)


@dataclass(frozen=True)
class Look:
    """How the channels of both images are reduced to one, and where there is tissue.

    Args:
        fixed: weight of each fixed channel ``[C_f]``.
        moving: weight of each moving channel ``[C_m]``, such that the two weighted sums correlate most.
        tissue: tissue mask ``[*S]`` of the fixed side.
        grid: grid of the mask.
        device: where tiles are carried and windows compared.
    """

    fixed: Tensor
    moving: Tensor
    tissue: NDArray[np.bool_]
    grid: Grid
    device: torch.device | str = "cpu"


def correlations(surfaces: NDArray[np.float16], moved: Array) -> tuple[Array, Array]:
    """Correlation of M windows in place, and under a displacement.

    Args:
        surfaces: correlation by displacement ``[M, R, R]``.
        moved: displacement ``[M, 2]`` in pixels, clamped to `SEARCH`.
    """
    before = surfaces[:, SEARCH, SEARCH].astype(np.float64)
    after = np.empty(len(surfaces))
    for i, (surface, shift) in enumerate(zip(surfaces, moved, strict=True)):
        at = np.clip(SEARCH + shift, 0, 2 * SEARCH)
        first = np.clip(np.floor(at).astype(int) - 4, 0, 2 * SEARCH - 8)
        part = surface[first[0] : first[0] + 9, first[1] : first[1] + 9].astype(np.float64)
        after[i] = ndimage.map_coordinates(part, (at - first)[:, None], order=3, mode="nearest")[0]
    return before, after


# ----------------------------------------------------------------------------------------------------------- one tile


def look_at(
    level: Level, source: Level, moving: Grid, pull: Transform, region: tuple[slice, slice], look: Look
) -> Seen:
    """The measurements in one tile of the fixed level."""
    grid = level.grid
    counts = [(r.stop - r.start) // WINDOW for r in region]
    wide = tuple(
        slice(max(0, r.start - SEARCH - BAND), min(n, r.stop + SEARCH + BAND))
        for r, n in zip(region, grid.shape, strict=True)
    )
    # first pixel [row, column] of each window; windows whose search range leaves the moving image are dropped
    starts = np.array([(region[0].start + i * WINDOW, region[1].start + j * WINDOW)
                       for i in range(counts[0]) for j in range(counts[1])]).reshape(-1, 2)  # fmt: skip
    within = ((starts >= SEARCH) & (starts + WINDOW + SEARCH <= np.array(grid.shape))).all(axis=1)
    steps = np.array(
        [(a, b) for a in (-SEARCH, WINDOW // 2, WINDOW + SEARCH) for b in (-SEARCH, WINDOW // 2, WINDOW + SEARCH)]
    )
    at = (starts[:, None] + steps) * np.array(grid.spacing) + np.array(grid.origin)  # [N, 9, 2]
    within &= moving.contains(pull.points(torch.from_numpy(at))).all(dim=1).numpy()
    if not within.any():
        return Seen.nothing("at the rim of an image")
    pixels = tiles.warp_tile(source, pull, grid, wide, False, None, look.device)
    if pixels is None:
        return Seen.nothing("at the rim of an image")
    other = _projected(pixels, look.moving)
    one = _projected(level.read(wide), look.fixed)
    del pixels
    first = np.array([w.start for w in wide])
    middles = (starts + (WINDOW - 1) / 2) * np.array(grid.spacing) + np.array(grid.origin)
    parity = (starts // WINDOW).sum(axis=1) % 2 == 0
    places, shifts, sds = [], [], []
    chosen = np.flatnonzero(within & parity)
    a, b = (soften(without_mean(image, BAND)[None])[0] for image in (one, other))
    for i, surface in zip(chosen, _surfaces(a, b, starts[chosen] - first, look.device), strict=True):
        found = _peak(surface)
        if found is not None:
            places.append(middles[i])
            shifts.append(found[0] * np.array(grid.spacing))
            sds.append(found[1] * np.array(grid.spacing))
    judging = np.flatnonzero(within & ~parity)
    a, b = (without_mean(image, FINE) for image in (one, other))
    surfaces = _surfaces(a, b, starts[judging] - first, look.device)
    own = _deviations(surfaces)
    steps = np.maximum(*(_deviations(np.diff(surfaces, axis=d)) for d in (1, 2)))
    seen = own > 0
    return Seen(
        np.array(places).reshape(-1, 2),
        np.array(shifts).reshape(-1, 2),
        np.array(sds).reshape(-1, 2),
        middles[judging[seen]],
        surfaces[seen].astype(np.float16),
        np.stack([own[seen], steps[seen]], axis=1),
    )


def _deviations(values: NDArray[np.float32]) -> Array:
    """Standard deviation ``[N]`` of N surfaces ``[N, h, w]``, each without the few values that stand out."""
    flat = values.reshape(len(values), values.shape[1] * values.shape[2])
    found: Array = 1.4826 * np.median(np.abs(flat - np.median(flat, axis=1, keepdims=True)), axis=1).astype(np.float64)
    return found


def _projected(pixels: NDArray[Any], weight: Tensor) -> Tensor:
    """The weighted sum ``[H, W]`` of channels ``[C, H, W]``."""
    out = torch.zeros(pixels.shape[1:])
    for channel, w in zip(pixels, weight.tolist(), strict=True):
        out.add_(torch.from_numpy(channel.astype(np.float32)), alpha=w)
    return out


def without_mean(image: Tensor, size: int) -> Tensor:
    """``[H, W]`` minus its mean over a box of ``size`` pixels around each pixel."""
    return image - torch.from_numpy(ndimage.uniform_filter(image.numpy(), size, mode="nearest"))


def _surfaces(
    one: Tensor, other: Tensor, starts: NDArray[np.int64], device: torch.device | str = "cpu"
) -> NDArray[np.float32]:
    """Normalised cross-correlations ``[N, 2 R + 1, 2 R + 1]`` of N windows of ``one``, by displacement of ``other``.

    All windows are compared at once: Python's lock is held for moments only, and other threads look at other tiles meanwhile.
    """
    if not len(starts):
        return np.zeros((0, 2 * SEARCH + 1, 2 * SEARCH + 1), np.float32)
    f, m = one.to(device), other.to(device)
    sums = [_summed_areas(v) for v in (m, m * m)]
    corners = starts.tolist()
    windows = torch.stack([f[y : y + WINDOW, x : x + WINDOW] for y, x in corners])
    around = torch.stack([m[y - SEARCH : y + WINDOW + SEARCH, x - SEARCH : x + WINDOW + SEARCH] for y, x in corners])
    total, square = (torch.stack([_box_sums(s, y - SEARCH, x - SEARCH) for y, x in corners]) for s in sums)
    found: NDArray[np.float32] = _compared(windows, around, total, square).cpu().numpy()
    return found


def _summed_areas(image: Tensor) -> Tensor:
    """Sums ``[W + 1, H + 1]`` float64 of an image ``[H, W]`` over everything to the left and above, columns first.

    Both sums run along what is contiguous in memory, which is ten times faster than the other way.
    """
    rows = image.cumsum(1, dtype=torch.float64)
    out = rows.new_zeros(image.shape[1] + 1, image.shape[0] + 1)
    out[1:, 1:] = rows.T
    return out.cumsum_(1)


def _box_sums(sums: Tensor, y: int, x: int) -> Tensor:
    """Sums over boxes of `WINDOW` pixels ``[2 R + 1, 2 R + 1]``, the first of which begins at ``(y, x)``; from summed areas."""
    span = 2 * SEARCH + 1
    low, high = (sums[x + d : x + d + span] for d in (0, WINDOW))
    found = high[:, y + WINDOW : y + WINDOW + span] - high[:, y : y + span]
    return found.sub_(low[:, y + WINDOW : y + WINDOW + span] - low[:, y : y + span]).T


def _compared(windows: Tensor, around: Tensor, total: Tensor, square: Tensor) -> Tensor:
    """The correlations of N windows with wider ones, by displacement.

    Args:
        windows: ``[N, W, W]``.
        around: ``[N, W + 2 R, W + 2 R]``.
        total: sums of the wider ones over the boxes that the windows are laid on ``[N, 2 R + 1, 2 R + 1]`` float64.
        square: sums of their squares, likewise.

    Returns:
        ``[N, 2 R + 1, 2 R + 1]`` float32.
    """
    n = smooth_size(WINDOW + 2 * SEARCH)
    span = 2 * SEARCH + 1
    f = windows - windows.mean(dim=(1, 2), keepdim=True)
    length = torch.linalg.vector_norm(f, dim=(1, 2), dtype=torch.float64)[:, None, None]
    across = torch.fft.rfft2(f, s=(n, n)).conj_physical_().mul_(torch.fft.rfft2(around, s=(n, n)))
    product = torch.fft.irfft2(across, s=(n, n))[:, :span, :span]
    spread = square.addcmul(total, total, value=-1 / WINDOW**2).clamp_(min=0).sqrt_().mul_(length)
    return torch.where(spread > 1e-6 * WINDOW**2, product / spread.clamp(min=1e-12), 0.0).to(torch.float32)


def _peak(surface: NDArray[np.float32]) -> tuple[Array, Array] | None:
    """Displacement ``[2]`` of the peak of a surface, to a fraction of a pixel, and its standard deviation per axis.

    None where the peak stands out too little (`PEAK`) or lies at the border. The position follows from a parabola through the
    nine values around the peak. The standard deviation is the Cramér–Rao bound of a shift: with ``n`` independent pixels, a
    correlation ``r`` that falls off with the Hessian ``-H`` has the information ``n r (-H) / (1 - r²)``.
    """
    y, x = np.unravel_index(int(surface.argmax()), surface.shape)
    size = surface.shape[0]
    if min(y, x) < 1 or max(y, x) > size - 2:
        return None
    r = float(surface[y, x])
    rows, columns = np.ogrid[:size, :size]
    elsewhere = surface[(abs(rows - y) > BESIDE) | (abs(columns - x) > BESIDE)]
    if not elsewhere.std() > 0 or r - elsewhere.mean() < PEAK * elsewhere.std():
        return None
    p = surface[y - 1 : y + 2, x - 1 : x + 2].astype(np.float64)
    slope = np.array([(p[2] - p[0]).sum() / 6, (p[:, 2] - p[:, 0]).sum() / 6])
    cross = (p[2, 2] + p[0, 0] - p[2, 0] - p[0, 2]) / 4
    curve = np.array(
        [[(p[2] + p[0] - 2 * p[1]).sum() / 3, cross], [cross, (p[:, 2] + p[:, 0] - 2 * p[:, 1]).sum() / 3]]
    )
    if np.linalg.eigvalsh(curve)[-1] >= -1e-6:
        return None
    step = -np.linalg.solve(curve, slope)
    if np.abs(step).max() > 1:
        return None
    information = -curve * (WINDOW**2 / CORRELATION_LIMIT) * r / max(1 - r * r, 1e-3)
    deviation = np.sqrt(np.diag(np.linalg.inv(information)))
    return np.array([y - size // 2, x - size // 2]) + step, deviation
