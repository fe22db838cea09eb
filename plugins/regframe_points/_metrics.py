"""How well two point clouds agree, pair by pair in tiles: memory does not grow with the number of pairs."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

import regframe

TILE = 2048
"""Points along both sides of a tile: its 4 million pairs take 16 MB in float32, twice that while they are worked on."""
PROBE = 4000
"""Points whose nearest neighbour is looked for to find the spacing, evenly drawn: their median is then known to about 1 %."""
_NO_VOLUME = 1e-300
"""Least volume of the fixed points' box, in their unit: of points on a line, so that the logarithm stays finite."""
_TINY = 1e-30
"""Least sum of weights, or norm of a cloud, that is divided by."""


class _TiledMetric(regframe.Metric):
    """A metric whose scale is given in spacings of the fixed points, which ``prepare`` measures."""

    accepts: ClassVar[tuple[type, type]] = (regframe.PointSet, regframe.PointSet)

    def __init__(self, scale: float = 1.5) -> None:
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"wanted a scale above 0, in spacings of the fixed points, got {scale!r}")
        self.scale = float(scale)
        self._length: float | None = None

    def prepare(self, fixed: regframe.Image | regframe.PointSet, moving: regframe.Image | regframe.PointSet) -> None:
        """Take the median distance between nearest fixed neighbours as the unit of ``scale``."""
        if not isinstance(fixed, regframe.PointSet) or not isinstance(moving, regframe.PointSet):
            raise TypeError("wanted two point sets, got an image; use a metric for images")
        self._length = _spacing(fixed.coords)

    def sigma(self, fixed: Tensor) -> float:
        """σ in the positions' own length: ``scale`` times the spacing that `prepare` measured (or that of ``fixed``)."""
        return self.scale * (self._length if self._length is not None else _spacing(fixed))


class PointMixture(_TiledMetric):
    """Mean negative log-likelihood of the fixed points as draws from Gaussians centred on the moving ones.

    ``-1/M Σ_j log( (1 - ω) Σ_i W_i N(y_j; x_i, σ²) / Σ_i W_i + ω / V )``, V the volume of the fixed points' box
    (Myronenko & Song 2010, "Point set registration: coherent point drift").

    Args:
        scale: σ over the spacing of the fixed points; at 1.5 the Gaussians of neighbours still overlap without a gap.
        outliers: ω, the share of fixed points without a partner, between 0 and 1.
    """

    name = "mixture"
    likelihood = True

    def __init__(self, scale: float = 1.5, outliers: float = 0.1) -> None:
        super().__init__(scale)
        if isinstance(outliers, bool) or not isinstance(outliers, (int, float)) or not 0 < outliers < 1:
            raise ValueError(f"wanted a share of outliers between 0 and 1, got {outliers!r}")
        self.outliers = float(outliers)

    def __call__(self, warped: Tensor, fixed: Tensor, weight: Tensor) -> Tensor:
        """The negative log-likelihood per fixed point: ``warped`` ``[N, D]``, ``fixed`` ``[M, D]``, ``weight`` ``[N]``."""
        _check(warped, fixed, weight)
        box = fixed.detach().amax(dim=0) - fixed.detach().amin(dim=0)
        volume = max(float(box.to(torch.float64).prod()), _NO_VOLUME)
        value: Tensor = _MixtureSum.apply(warped, fixed, weight, self.sigma(fixed.detach()), self.outliers, volume)  # type: ignore[no-untyped-call]  # torch leaves apply untyped
        return value


class Kernel(_TiledMetric):
    """Squared distance of both clouds as measures, under a Gaussian kernel, over the squared norm of the fixed one.

    ``( |μ_x|² - 2⟨μ_x, μ_y⟩ + |μ_y|² ) / |μ_y|²`` with ``⟨μ, ν⟩ = ∫∫ exp(-|x - y|²/2σ²) dμ dν``, masses that sum to 1:
    the kernel of currents and varifolds without a tangent (Glaunès, Trouvé & Younes 2004, "Diffeomorphic matching of
    distributions").

    Args:
        scale: σ over the spacing of the fixed points.
    """

    name = "kernel"

    def __call__(self, warped: Tensor, fixed: Tensor, weight: Tensor) -> Tensor:
        """The relative squared distance: ``warped`` ``[N, D]``, ``fixed`` ``[M, D]``, ``weight`` ``[N]``."""
        _check(warped, fixed, weight)
        sigma = self.sigma(fixed.detach())
        a = weight / weight.sum().clamp(min=_TINY)
        b = fixed.new_full((len(fixed),), 1 / len(fixed))
        own, cross, other = (
            _KernelSum.apply(*args, sigma)  # type: ignore[no-untyped-call]  # torch leaves apply untyped
            for args in ((warped, warped, a, a), (warped, fixed, a, b), (fixed, fixed, b, b))
        )
        value: Tensor = (own - 2 * cross + other) / other.detach().clamp(min=_TINY)
        return value


def _check(warped: Tensor, fixed: Tensor, weight: Tensor) -> None:
    if warped.ndim != 2 or fixed.ndim != 2 or warped.shape[1] != fixed.shape[1] or weight.shape != warped.shape[:1]:
        raise ValueError(
            f"wanted warped [N, D], fixed [M, D] and weight [N], got {list(warped.shape)}, {list(fixed.shape)} and "
            f"{list(weight.shape)}"
        )
    if not len(warped) or not len(fixed):
        raise ValueError("wanted points on both sides, got none on one; check the data")


def _spacing(coords: Tensor) -> float:
    """Median distance between a point and the nearest one at another place, of ``[N, D]``, from about `PROBE` points."""
    places = torch.unique(coords.to(torch.float64), dim=0)
    if len(places) < 2:
        raise ValueError(f"wanted at least two distinct points, got {len(places)}; check the data")
    probe = places[:: max(1, len(places) // PROBE)]
    nearest = torch.full((len(probe),), torch.inf, dtype=torch.float64)
    for start in range(0, len(places), TILE):
        # by differences: through products of coordinates a place would no longer be at distance 0 from itself
        mode = "donot_use_mm_for_euclid_dist"
        distance = torch.cdist(probe, places[start : start + TILE], compute_mode=mode)
        distance[distance == 0] = torch.inf
        nearest = torch.minimum(nearest, distance.amin(dim=1))
    return float(nearest.median())


def _squares(x: Tensor, y: Tensor) -> Tensor:
    """``|x_i - y_j|²`` ``[n, m]``, by differences: products of coordinates would lose small distances."""
    out = (x[:, None, 0] - y[None, :, 0]).square_()
    for d in range(1, x.shape[1]):
        out += (x[:, None, d] - y[None, :, d]).square_()
    return out


class _MixtureSum(torch.autograd.Function):
    """`PointMixture` over tiles, which the backward pass computes again instead of keeping them."""

    @staticmethod
    def forward(
        ctx: Any, warped: Tensor, fixed: Tensor, weight: Tensor, sigma: float, outliers: float, volume: float
    ) -> Tensor:
        ndim = warped.shape[1]
        constant = math.log(1 - outliers) - ndim / 2 * math.log(2 * math.pi * sigma**2)
        uniform = math.log(outliers / volume)
        logs = (weight / weight.sum().clamp(min=_TINY)).log() + constant  # -inf where a point is hidden
        density = torch.empty(len(fixed), dtype=warped.dtype)
        for row in range(0, len(fixed), TILE):
            y = fixed[row : row + TILE]
            total = torch.full((len(y),), uniform, dtype=warped.dtype)
            for column in range(0, len(warped), TILE):
                tile = _squares(y, warped[column : column + TILE]).mul_(-1 / (2 * sigma**2))
                tile += logs[column : column + TILE]
                total = torch.logaddexp(total, torch.logsumexp(tile, dim=1))
            density[row : row + TILE] = total
        ctx.save_for_backward(warped, fixed, logs, density)
        ctx.sigma = sigma
        return -density.mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        warped, fixed, logs, density = ctx.saved_tensors
        out = torch.zeros_like(warped)
        for row in range(0, len(fixed), TILE):
            y, d = fixed[row : row + TILE], density[row : row + TILE]
            for column in range(0, len(warped), TILE):
                x = warped[column : column + TILE]
                share = _squares(y, x).mul_(-1 / (2 * ctx.sigma**2))
                share += logs[column : column + TILE]
                share = share.sub_(d[:, None]).exp_()
                out[column : column + TILE] += share.sum(dim=0)[:, None] * x - share.T @ y
        return grads[0] * out / (ctx.sigma**2 * len(fixed)), None, None, None, None, None


class _KernelSum(torch.autograd.Function):
    """``Σ_ij a_i b_j exp(-|x_i - y_j|²/2σ²)`` over tiles, differentiable in both sides' positions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, a: Tensor, b: Tensor, sigma: float) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        x_grad, y_grad = torch.zeros_like(x), torch.zeros_like(y)
        for row in range(0, len(x), TILE):
            rows = slice(row, row + TILE)
            for column in range(0, len(y), TILE):
                columns = slice(column, column + TILE)
                tile = _squares(x[rows], y[columns]).mul_(-1 / (2 * sigma**2)).exp_()
                tile *= a[rows, None]
                tile *= b[None, columns]
                total += tile.sum(dtype=torch.float64)
                if ctx.needs_input_grad[0]:
                    x_grad[rows] += tile @ y[columns] - tile.sum(dim=1)[:, None] * x[rows]
                if ctx.needs_input_grad[1]:
                    y_grad[columns] += tile.T @ x[rows] - tile.sum(dim=0)[:, None] * y[columns]
        ctx.save_for_backward(x_grad / sigma**2, y_grad / sigma**2)
        return total.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_grad, y_grad = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return grads[0] * x_grad if wanted[0] else None, grads[0] * y_grad if wanted[1] else None, None, None, None
