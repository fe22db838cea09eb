"""A pair whose true map is known: a real histology image, and a bent, turned, scaled and recoloured copy of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import Grid, Image
from ..maps.affine import Affine
from ..maps.base import Transform
from ..maps.flow import Flow
from ..maps.resample import resample
from ..maps.sequence import Sequence
from ..result import Result

ANGLE = 24.0
"""Rotation of the copy, in degrees."""

SCALE = 1.08
"""Size of the copy, over that of the original."""

BEND_PX = 10.0
"""Largest displacement of the bend, in px."""


@dataclass(frozen=True)
class Pair:
    """Two images and the true map between them.

    Args:
        fixed: the copy.
        moving: the original.
        truth: the true map, moving → fixed.
    """

    fixed: Image
    moving: Image
    truth: Transform


def make(seed: int = 0) -> Pair:
    """The immunohistochemistry image of scikit-image (moving), and its warped and recoloured copy (fixed)."""
    from skimage.data import immunohistochemistry

    pixels = immunohistochemistry()  # type: ignore[no-untyped-call]
    moving = Image.from_array(pixels, axes="yxc", name="stained section")
    truth = Sequence((bending(moving.grid, seed), turn(moving.grid)))
    carried = resample(moving, truth, moving.grid)
    fixed = carried.replace(data=recoloured(carried.data), name="bent and recoloured copy")
    return Pair(fixed, moving, truth)


def bending(grid: Grid, seed: int) -> Flow:
    """A smooth diffeomorphism of ``grid``'s space whose largest displacement is `BEND_PX` pixels."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn((1, grid.ndim, *(6,) * grid.ndim), generator=generator, dtype=torch.float64)
    nodes = torch.nn.functional.interpolate(coarse, size=(49, 49), mode="bicubic", align_corners=True)
    spacing = tuple(1.4 * e / 48 for e in grid.extent)  # a margin of a fifth on either side
    origin = tuple(c - 24 * s for c, s in zip(grid.center, spacing, strict=True))
    edge = torch.sin(torch.linspace(0, math.pi, 49, dtype=torch.float64)) ** 0.5  # fades to nothing at the border
    nodes = nodes * edge[:, None] * edge[None, :]
    size = torch.linalg.vector_norm(nodes, dim=1).max()
    return Flow(nodes * (BEND_PX * grid.pixel / size), Grid((49, 49), spacing, origin, grid.unit), n_steps=8)


def turn(grid: Grid) -> Affine:
    """Rotation by `ANGLE` and scaling by `SCALE` about the middle of ``grid``."""
    cos, sin = SCALE * math.cos(math.radians(ANGLE)), SCALE * math.sin(math.radians(ANGLE))
    linear = torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)
    center = torch.tensor(grid.center, dtype=torch.float64)
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[:2, :2] = linear
    matrix[:2, 2] = center - linear @ center
    return Affine(matrix, grid.unit, grid.unit)


def recoloured(data: Tensor) -> Tensor:
    """``[3, *S]`` uint8 with mixed channels, one of them inverted, another with another gamma, as a different stain would be."""
    value = data.to(torch.float64) / 255
    mix = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1], [0.1, 0.7, 0.2]], dtype=torch.float64)
    mixed = torch.einsum("ij,j...->i...", mix, value) ** 1.4
    mixed[1] = 1 - mixed[1]
    return (mixed * 255).round().clamp(0, 255).to(torch.uint8)


def errors(pair: Pair, result: Result) -> dict[str, dict[str, float]]:
    """Distance to the true map in moving px, before and after, over the fixed pixels that show moving tissue."""
    y = pair.fixed.grid.resampled(2 * pair.fixed.grid.pixel).coords().reshape(-1, 2)
    true = pair.truth.inverse().points(y)
    inside = pair.moving.grid.contains(true)
    y, true = y[inside], true[inside]
    found = {"before": y, "after": result.transform.inverse().points(y)}
    pixel = pair.moving.grid.pixel
    return {name: _statistics(torch.linalg.vector_norm(x - true, dim=-1) / pixel) for name, x in found.items()}


def _statistics(error: Tensor) -> dict[str, float]:
    return {"mean": float(error.mean()), "p95": float(error.quantile(0.95)), "max": float(error.max())}
