"""Normalised frames of both sides, and affine maps as small increments on a start.

In its normalised frame, a side's positions are in pixels from the middle of its canvas. Fits happen in these frames, so that
nothing depends on the unit of a data set.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import Grid
from ..maps import homogeneous

KINDS = ("rigid", "similarity", "affine")
"""Kinds of increments that move, each a case of the next."""


@dataclass(frozen=True)
class Frame:
    """A normalised frame: ``x_n = (x - center) / length``.

    Args:
        center: physical position of the origin, the middle of the canvas.
        length: physical length of a unit, the size of a pixel.
    """

    center: tuple[float, ...]
    length: float

    @classmethod
    def of(cls, grid: Grid) -> Frame:
        """The normalised frame of a side with this canvas."""
        return cls(grid.center, grid.pixel)

    def matrix(self) -> Tensor:
        """Homogeneous matrix ``[D+1, D+1]`` (float64) from physical to normalised positions."""
        ndim = len(self.center)
        out = torch.eye(ndim + 1, dtype=torch.float64) / self.length
        out[:-1, -1] = -torch.tensor(self.center, dtype=torch.float64) / self.length
        out[-1, -1] = 1.0
        return out

    def grid(self, grid: Grid) -> Grid:
        """``grid`` expressed in this frame."""
        spacing = tuple(s / self.length for s in grid.spacing)
        if grid.center == self.center:  # computed from the shape alone, so that the unit does not change the last bits
            return Grid(grid.shape, spacing, tuple(-s * (n - 1) / 2 for s, n in zip(spacing, grid.shape, strict=True)))
        origin = tuple((o - c) / self.length for o, c in zip(grid.origin, self.center, strict=True))
        return Grid(grid.shape, spacing, origin)


class Increment:
    """Affine increments ``H(q)`` of the fixed frame, scaled so that a unit of ``q`` moves the canvas' rim by one pixel.

    The inverse affine map is ``B(q) = B_0 H(q)``. Where the start ``B_0`` is rigid (or a similarity) and the increments are,
    ``B`` is.

    Args:
        kind: ``rigid``, ``similarity`` or ``affine``; or ``still``, which has no variables.
        ndim: 2 or 3.
        radius: half the diagonal of the fixed canvas, in fixed pixels.
    """

    def __init__(self, kind: str, ndim: int, radius: float) -> None:
        self.kind, self.ndim, self.radius = kind, ndim, radius
        turns = ndim * (ndim - 1) // 2
        self.size = {"still": 0, "rigid": ndim + turns, "similarity": ndim + turns + 1, "affine": ndim + ndim * ndim}[
            kind
        ]

    def matrix(self, q: Tensor) -> Tensor:
        """``H(q)`` ``[D+1, D+1]`` (float64) of ``q`` ``[K]``; differentiable."""
        ndim = self.ndim
        if self.kind == "still":
            return torch.eye(ndim + 1, dtype=torch.float64)
        q = q.to(torch.float64)
        linear = q[ndim:] / self.radius
        if self.kind == "affine":
            block = torch.eye(ndim, dtype=torch.float64) + linear.reshape(ndim, ndim)
        else:
            upper = torch.triu_indices(ndim, ndim, offset=1)
            turns = upper.shape[1]
            skew = torch.zeros((ndim, ndim), dtype=torch.float64).index_put((upper[0], upper[1]), linear[:turns])
            block = torch.linalg.matrix_exp(skew - skew.T)
            if self.kind == "similarity":
                block = block * torch.exp(linear[turns])
        top = torch.cat([block, q[:ndim, None]], dim=1)  # [D, D+1]
        last = torch.zeros((1, ndim + 1), dtype=torch.float64)
        last[0, -1] = 1.0
        return torch.cat([top, last])

    def gradient(self, q: Tensor, gradient: Tensor) -> Tensor:
        """The gradient in ``q`` ``[K]``, from the gradient ``[D+1, D+1]`` in ``H(q)`` (chain rule).

        ``q`` is on the host; where ``H`` is linear in it the result stays on the device of ``gradient``, else it is on the host.
        """
        ndim = self.ndim
        if self.kind == "still":
            return torch.zeros(0, dtype=torch.float64)
        if self.kind == "affine":  # linear in q
            return torch.cat([gradient[:ndim, ndim], gradient[:ndim, :ndim].reshape(-1) / self.radius])
        with torch.enable_grad():
            at = q.detach().to(torch.float64).requires_grad_(True)
            return torch.autograd.grad((self.matrix(at) * gradient.to(at.device)).sum(), at)[0]


def affine_kind(transform: str) -> str:
    """Kind of the affine part of a transform model: ``affine`` for ``lddmm``, else the model itself."""
    return "affine" if transform == "lddmm" else transform


def zoom_of(pullback: Tensor) -> float:
    """Fixed lengths per moving length under an inverse affine map ``[D+1, D+1]``: geometric mean of its stretches."""
    zoom: float = float(homogeneous.determinant(pullback).abs()) ** (-1 / (pullback.shape[0] - 1))
    return zoom
