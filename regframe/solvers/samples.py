"""Small made pairs whose maps are known, one for each kind of pair, by which the solvers are checked where they are installed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..contracts import Known
from ..data import Grid, Image, PointSet
from ..maps.affine import Affine
from ..maps.resample import resample

SIDE = 96
"""Pixels along a side of the made images: small, so that a check takes a second or two."""
TURN, SHIFT = 0.12, 4.0
"""Turn in radians and shift in pixels of the known map: enough that a start as the sides lie is wrong by several pixels."""
COUNT = 400
"""Number of made points."""


def _map() -> Affine:
    cos, sin = math.cos(TURN), math.sin(TURN)
    middle = (SIDE - 1) / 2
    matrix = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    matrix[:2, 2] = middle - matrix[:2, :2] @ torch.full((2,), middle, dtype=torch.float64) + SHIFT
    return Affine(matrix)


def _texture(generator: torch.Generator) -> Tensor:
    """Blobs of two sizes on an empty ground ``[1, SIDE, SIDE]``, 0 … 1."""
    at = torch.stack(torch.meshgrid(*(torch.arange(float(SIDE)),) * 2, indexing="ij"), dim=-1)
    middle = (SIDE - 1) / 2
    out = torch.zeros((SIDE, SIDE))
    for k in range(60):
        radius = 1.5 if k % 2 else 4.0
        place = middle + (torch.rand(2, generator=generator) - 0.5) * 0.62 * SIDE
        out = torch.maximum(out, torch.exp(-(at - place).square().sum(dim=-1) / (2 * radius**2)))
    return out[None]


def images() -> Known:
    """Two pictures of the same blobs, one of them turned and shifted."""
    grid = Grid((SIDE, SIDE))
    moving = Image(_texture(torch.Generator().manual_seed(1)), grid, ("blobs",))
    right = _map()
    return Known(resample(moving, right, grid), moving, right)


def points() -> Known:
    """Two sets of the same points, one of them turned and shifted."""
    generator = torch.Generator().manual_seed(2)
    moving = SIDE * torch.rand((COUNT, 2), generator=generator, dtype=torch.float64) * torch.tensor([1.0, 0.6])
    right = _map()
    return Known(PointSet(right.points(moving)), PointSet(moving), right)


def mixed() -> Known:
    """Points, and a picture with a blob at every one of them, turned and shifted."""
    generator = torch.Generator().manual_seed(3)
    middle = (SIDE - 1) / 2
    places = (
        middle
        + (torch.rand((COUNT // 4, 2), generator=generator, dtype=torch.float64) - 0.5)
        * torch.tensor([0.7, 0.45])
        * SIDE
    )
    right = _map()
    at = Grid((SIDE, SIDE)).coords()
    away = (at[:, :, None] - right.points(places)).square().sum(dim=-1)
    picture = torch.exp(-away / (2 * 1.5**2)).sum(dim=-1)[None].to(torch.float32)
    return Known(Image(picture, Grid((SIDE, SIDE)), ("nuclei",)), PointSet(places), right, tolerance=0.015)
