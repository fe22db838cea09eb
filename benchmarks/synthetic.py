"""Pairs of any size with a known map: tissue-like texture given by formulas, so that no side is resampled from the other.

The moving image is a function of position; the fixed image is the same function, inverted, at the true map of its pixels, with
noise of its own. Both are therefore exact at every pixel, and the truth is a formula too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates, spline_filter

import regframe as rf

Array = NDArray[np.float64]

_LATTICE = 128
"""Nodes per side of each octave's periodic lattice."""


@dataclass(frozen=True)
class Pair:
    """A fixed and a moving image whose map is known.

    Args:
        fixed: ``[1, side, side]``, unit px.
        moving: likewise.
        side: pixels per side.
    """

    fixed: rf.Image
    moving: rf.Image
    side: int

    def truth(self, index: Array) -> Array:
        """Moving positions ``[N, 2]`` of fixed positions ``[N, 2]`` (pixels, y before x)."""
        return true_map(index, self.side)

    def error(self, mapped: Array, index: Array) -> Array:
        """Distance ``[N]`` in pixels between positions that a tool maps ``index`` to and the truth."""
        out: Array = np.linalg.norm(np.asarray(mapped) - self.truth(index), axis=1)
        return out

    def probes(self, per_side: int = 64) -> Array:
        """A lattice of fixed positions ``[N, 2]`` whose true place lies on the moving image."""
        ticks = np.linspace(0, self.side - 1, per_side)
        index = np.stack(np.meshgrid(ticks, ticks, indexing="ij"), axis=-1).reshape(-1, 2)
        at = self.truth(index)
        return index[((at >= 0) & (at <= self.side - 1)).all(axis=1)]


def true_map(index: Array, side: int) -> Array:
    """A turn, a zoom, a shift and four bends: 27 px of motion in the mean at 1024 px, and in proportion elsewhere."""
    s = side / 1024
    y, x = (np.asarray(index)[:, d] / s for d in range(2))  # as if the side were 1024
    angle, zoom = math.radians(2.2), 1.02
    cy, cx = y - 511.5, x - 511.5
    out_y = 511.5 + zoom * (math.cos(angle) * cy - math.sin(angle) * cx) + 15.6
    out_x = 511.5 + zoom * (math.sin(angle) * cy + math.cos(angle) * cx) - 17.7
    turn = 2 * math.pi
    out_y = out_y + 6.0 * np.sin(turn * x / 610 + 0.3) * np.cos(turn * y / 800) + 3.0 * np.sin(turn * (x + y) / 420)
    out_x = out_x + 6.0 * np.cos(turn * y / 570 - 0.8) + 3.0 * np.sin(turn * (x - 0.6 * y) / 450 + 1.0)
    return np.stack([out_y, out_x], axis=1) * s


class _Texture:
    """Smooth periodic noise in octaves, then tissue with an edge, lumen and nuclei."""

    def __init__(self, seed: int, side: int) -> None:
        rng = np.random.default_rng(seed)
        self.periods = [side / 5.0, side / 14.0, side / 40.0, 30.0, 12.0]
        self.lattices = [
            spline_filter(rng.standard_normal((_LATTICE, _LATTICE)), mode="grid-wrap") for _ in self.periods
        ]

    def __call__(self, at: Array) -> NDArray[np.float32]:
        coarse, middle, fine, cells, grain = (
            map_coordinates(lattice, at.T / period + 7.3, order=3, mode="grid-wrap", prefilter=False)
            for period, lattice in zip(self.periods, self.lattices, strict=True)
        )
        tissue = 1 / (1 + np.exp(-6 * (coarse + 0.5 * middle + 1.3)))
        nuclei = 1 / (1 + np.exp(-5 * (cells + 0.4 * grain - 0.6)))
        out: Array = tissue * (0.35 + 0.1 * middle + 0.12 * fine + 0.04 * grain + 0.45 * nuclei)
        return out.astype(np.float32)


def make(side: int, seed: int = 0, noise: float = 0.03, rows: int = 64) -> Pair:
    """A pair of ``side`` x ``side`` pixels, made in strips so that 64 Mpx need no more than the two images."""
    texture = _Texture(seed, side)
    rng = np.random.default_rng(seed + 1)
    moving = np.empty((1, side, side), dtype=np.float32)
    fixed = np.empty_like(moving)
    columns = np.arange(side, dtype=np.float64)
    for top in range(0, side, rows):
        lines = np.arange(top, min(top + rows, side), dtype=np.float64)
        index = np.stack(np.meshgrid(lines, columns, indexing="ij"), axis=-1).reshape(-1, 2)
        shape = (len(lines), side)
        moving[0, top : top + rows] = texture(index).reshape(shape)
        fixed[0, top : top + rows] = 1 - texture(true_map(index, side)).reshape(shape)
        for image in (moving, fixed):
            image[0, top : top + rows] += noise * rng.standard_normal(shape, dtype=np.float32)
    grid = rf.Grid((side, side))
    return Pair(rf.Image(torch.from_numpy(fixed), grid), rf.Image(torch.from_numpy(moving), grid), side)
