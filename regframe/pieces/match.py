"""How alike two pieces are at any turn and shift, in milliseconds: which core may be which, and where a fit may begin.

Both pieces are drawn small, as their fine structure: the density of the stain and how steeply it changes, each without what is
coarser than an eighth of the piece. Their correlation is taken at all shifts by Fourier transform, and at all turns. What two
stains do to one tissue is not known: the density may correlate with either sign.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from .find import Found, Piece

Floats = NDArray[np.float64]

ACROSS = 56
"""Pixels across a piece (the diameter of a disc of its area) as it is compared: finer structure does not survive a coarse
turn."""
CANVAS = 96
"""Pixels per axis of what is compared: room for a piece of `ACROSS` at any turn, shifted by a quarter of its size."""
TURNS = 48
"""Turns that are tried, evenly over the circle: from one to the next the rim of a piece moves by less than four pixels."""
FINER = (-3.0, -1.5, 1.5, 3.0)
"""Degrees about the best turn that are tried then, twice, the second time by a third of them."""
PER_CELL = 16.0
"""Pixels of a piece, as it is compared, that count as one independent sample: structure is about four pixels wide."""
COVERED = 0.55
"""Share of the smaller piece that has to lie on the other one."""


NOISE = 0.7
"""Least width, in pixels of the slide, of the Gaussian by which a piece is smoothed: a small core has no pixels to average."""


@dataclass(frozen=True)
class Likeness:
    """The best pose of a piece on another.

    Args:
        score: nats by which the correlation of fine structure speaks for the pose.
        correlation: of the density and of its steepness, -1 … 1.
        matrix: the pose, homogeneous ``[3, 3]``, moving → fixed, in the units of the sides.
        turn: of it, in degrees, counterclockwise as the picture is seen.
    """

    score: float
    correlation: tuple[float, float]
    matrix: Tensor
    turn: float


@dataclass(frozen=True)
class View:
    """A piece as it is compared.

    Args:
        features: density and steepness, without what is coarse, ``[2, n, n]``; 0 off the piece.
        mask: of the piece ``[n, n]``, 0 … 1.
        centre: position of the middle of the canvas, in the unit of the side.
        pixel: of the canvas, in that unit.
    """

    features: Tensor
    mask: Tensor
    centre: tuple[float, float]
    pixel: float

    @cached_property
    def spectra(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of the features, of their squares and of the mask."""
        return torch.fft.rfft2(self.features), torch.fft.rfft2(self.features**2), torch.fft.rfft2(self.mask)


def view(found: Found, piece: Piece, pixel: float) -> View:
    """A piece drawn with pixels of so many units of its side, in the middle of a canvas."""
    spacing = found.grid.spacing
    inside = found.labels[piece.box] == piece.number
    density = found.density[piece.box] * inside
    block = [max(1.0, pixel / s) for s in spacing]
    soft = [max(b / 2.5, NOISE) for b in block]
    values, weight = (ndimage.gaussian_filter(a.astype(np.float32), soft) for a in (density, inside))
    middle = (CANVAS - 1) / 2
    first = [s.start for s in piece.box]
    at = [(c - o) / s - f for c, o, s, f in zip(piece.centre, found.grid.origin, spacing, first, strict=True)]
    scale = [pixel / s for s in spacing]
    offset = [a - middle * k for a, k in zip(at, scale, strict=True)]
    drawn = [
        ndimage.affine_transform(a, np.array(scale), offset, (CANVAS, CANVAS), order=1, mode="constant")
        for a in (values, weight)
    ]
    mask = np.clip(drawn[1], 0, 1)
    value = np.asarray(drawn[0] / np.maximum(mask, 0.05), dtype=np.float32)
    steep = ndimage.gaussian_gradient_magnitude(_continued(value, mask > 0.5), 1.0)
    whole = ndimage.binary_erosion(mask > 0.9, iterations=2)
    features = []
    feature: NDArray[Any]
    for feature in (value, steep):
        coarse = _smoothed(feature, whole, ACROSS / 8)
        fine = (feature - coarse) * whole
        spread = math.sqrt(float((fine**2).sum()) / max(int(whole.sum()), 1))
        features.append(np.clip(fine / max(spread, 1e-6), -3, 3))
    return View(
        torch.from_numpy(np.stack(features)).to(torch.float32),
        torch.from_numpy(whole.astype(np.float32)),
        piece.centre,
        pixel,
    )


def _continued(value: NDArray[np.float32], inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Values beyond a piece as those of its nearest pixel, so that its edge is not steep."""
    if not inside.any():
        return value
    nearest = ndimage.distance_transform_edt(~inside, return_distances=False, return_indices=True)
    out: NDArray[np.float32] = value[tuple(nearest)]
    return out


def _smoothed(value: NDArray[np.float32], inside: NDArray[np.bool_], width: float) -> NDArray[np.float32]:
    """The mean around each pixel of those inside."""
    share = ndimage.gaussian_filter(inside.astype(np.float32), width)
    mean = ndimage.gaussian_filter(value * inside, width) / np.maximum(share, 1e-3)
    return np.asarray(mean, dtype=np.float32)


def likeness(fixed: View, moving: View, mirrored: bool = False, turns: Sequence[float] | None = None) -> Likeness:
    """The best pose of ``moving`` on ``fixed``.

    Args:
        fixed: the piece that stays.
        moving: the piece that is turned and shifted.
        mirrored: whether left and right are exchanged first.
        turns: in degrees, to be tried; all around where None.
    """
    angles = [360.0 * k / TURNS for k in range(TURNS)] if turns is None else list(turns)
    score, found, shift, best = _best(fixed, moving, angles, mirrored)
    for share in (1.0, 1 / 3):
        more = _best(fixed, moving, [best + share * d for d in FINER], mirrored)
        if more[0] > score:
            score, found, shift, best = more
    return Likeness(score, found, _pose(fixed, moving, best, shift, mirrored), math.remainder(best, 360.0))


def _best(
    fixed: View, moving: View, angles: Sequence[float], mirrored: bool
) -> tuple[float, tuple[float, float], tuple[int, int], float]:
    """Score, correlations, shift in pixels and turn of the best pose among some turns."""
    turned, mask = _turned(moving, angles, mirrored)  # [A, 2, n, n], [A, n, n]
    other, other2 = torch.fft.rfft2(turned), torch.fft.rfft2(turned**2)
    weight = torch.fft.rfft2(mask)[:, None]
    one, one2, seen = fixed.spectra
    both = _back(seen, weight[:, 0])  # [A, n, n] pixels on both
    product = _back(one[None], other)
    energy = _back(one2[None], weight).clamp(min=0) * _back(seen[None, None], other2).clamp(min=0)
    least = COVERED * min(float(fixed.mask.sum()), float(moving.mask.sum()))
    rho = product / energy.sqrt().clamp(min=1e-3 * max(least, 1.0))
    rho = (rho * (both >= max(least, 1.0))[:, None]).clamp(-0.99, 0.99)
    rho[:, 1] = rho[:, 1].clamp(min=0)  # tissue is steep where it is steep, whatever the stain
    score = -0.5 * both / PER_CELL * torch.log1p(-rho.square()).sum(dim=1)
    at = int(score.argmax())
    k, rest = divmod(at, CANVAS * CANVAS)
    y, x = divmod(rest, CANVAS)
    shift = tuple(v - CANVAS if v > CANVAS // 2 else v for v in (y, x))
    return float(score.reshape(-1)[at]), (float(rho[k, 0, y, x]), float(rho[k, 1, y, x])), shift, angles[k]  # type: ignore[return-value]


def _back(one: Tensor, other: Tensor) -> Tensor:
    """The cross-correlation of two spectra: the value at a shift by which ``other`` is moved."""
    out: Tensor = torch.fft.irfft2(one * other.conj(), s=(CANVAS, CANVAS))
    return out


def _linear(angle: float, mirrored: bool) -> Tensor:
    """The matrix ``[2, 2]`` (y, x) that mirrors and then turns by degrees, counterclockwise as the picture is seen."""
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    matrix = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    if mirrored:
        matrix = matrix @ torch.tensor([[1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
    return matrix


def _turned(moving: View, angles: Sequence[float], mirrored: bool) -> tuple[Tensor, Tensor]:
    """Features ``[A, 2, n, n]`` and mask ``[A, n, n]`` of a piece, turned about the middle of the canvas."""
    back = torch.stack([torch.linalg.inv(_linear(angle, mirrored)) for angle in angles]).to(torch.float32)
    ticks = (2 * torch.arange(CANVAS, dtype=torch.float32) + 1) / CANVAS - 1
    at = torch.stack(torch.meshgrid(ticks, ticks, indexing="ij"), dim=-1).reshape(-1, 2)  # [n n, 2] y, x
    there = (at @ back.transpose(1, 2)).reshape(len(angles), CANVAS, CANVAS, 2).flip(-1)
    stack = torch.cat([moving.features, moving.mask[None]])[None].expand(len(angles), -1, -1, -1)
    out = torch.nn.functional.grid_sample(stack, there, align_corners=False)
    return out[:, :2], out[:, 2]


def _pose(fixed: View, moving: View, angle: float, shift: tuple[int, int], mirrored: bool) -> Tensor:
    """The pose as a matrix ``[3, 3]``, moving → fixed, in the units of the sides."""
    linear = _linear(angle, mirrored) * (fixed.pixel / moving.pixel)
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[:2, :2] = linear
    there = torch.tensor(fixed.centre, dtype=torch.float64) + fixed.pixel * torch.tensor(shift, dtype=torch.float64)
    matrix[:2, 2] = there - linear @ torch.tensor(moving.centre, dtype=torch.float64)
    return matrix
