"""``contrast``: one modality explained by another, through the best affine or polynomial map of intensities."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import regframe

from ._common import TINY, ImageMetric, Scale, chunks, standardise

_SOLVABLE = 1e-12
"""Ridge on the constant of the map, beside moments of order 1: too small to change a fit, it keeps one of no weight solvable."""


class Contrast(ImageMetric):
    """Mean squared residual of the best contrast map: METHOD's ``f_θ``, which lets one modality explain another.

    Per fixed channel an affine, or with ``order`` 2 or 3 a polynomial, function of the moving channels (their powers,
    without products of two channels), fitted by weighted ridge regression at every call::

        value = 1/C_f Σ_c min_θ [ Σ_y W(y) (θ_c · φ(I(y)) - J_c(y))² / Σ_y W(y) + ridge |θ_c|² ],  φ = (1, I, … I^order)

    with both sides standardised and the constant not penalised. θ is solved in float64 without a graph and held fixed
    in the gradient, which is exact: at the minimum the derivative in θ is zero (envelope theorem), the ridge being
    part of the value.

    Args:
        order: highest power, 1 to 3.
        ridge: strength of the ridge, beside the variance of a standardised channel, which is 1. The default is so small
            that it decides only where channels are collinear or constant.
    """

    name = "contrast"

    def __init__(self, order: int = 1, ridge: float = 1e-6) -> None:
        super().__init__()
        if isinstance(order, bool) or not isinstance(order, int) or not 1 <= order <= 3:
            raise ValueError(f"wanted an order of 1, 2 or 3, got {order!r}")
        if not (isinstance(ridge, (int, float)) and math.isfinite(ridge) and ridge > 0):
            raise ValueError(f"wanted a positive ridge, got {ridge!r}")
        self.order = order
        self.ridge = float(ridge)
        self.theta: Tensor | None = None
        """Coefficients of the last fit ``[C_f, 1 + order * C_m]``, float64, for standardised intensities: constant, linear,
        square …; None before the first."""

    def fit(self, warped: Tensor, fixed: Tensor, weight: Tensor) -> Tensor:
        """Solve for θ ``[C_f, 1 + order * C_m]`` (float64) and keep it."""
        return self._fit(*self._standardised(warped, fixed, weight), weight)

    def predict(self, warped: Tensor) -> Tensor:
        """``f_θ(I)`` of the last fit in the fixed image's intensities, ``[C_f, *S]``."""
        if self._scales is None:
            raise ValueError("wanted a fitted contrast map, got none; call fit or the metric first")
        (mean, deviation), of_moving = self._scales
        shape = (-1, *(1,) * (warped.ndim - 1))
        out = self._map(standardise(warped, of_moving))
        return out * deviation.to(out).reshape(shape) + mean.to(out).reshape(shape)

    def residual(self, warped: Tensor, fixed: Tensor) -> Tensor:
        """``f_θ(I) - J`` of the last fit in standard deviations of the fixed image, ``[C_f, *S]``."""
        if self._scales is None:
            raise ValueError("wanted a fitted contrast map, got none; call fit or the metric first")
        return self._map(standardise(warped, self._scales[1])) - standardise(fixed, self._scales[0])

    def __call__(self, warped: Tensor, fixed: Tensor, weight: Tensor) -> Tensor:
        """Weighted mean squared residual after the fit; 0 is a perfect explanation, 1 none at all."""
        self._check(warped, fixed, weight)
        value: Tensor = _Contrast.apply(warped, fixed, weight, self._both_scales(warped, fixed, weight), self)  # type: ignore[no-untyped-call]  # torch leaves apply untyped
        return value

    def fused(
        self, path: regframe.ops.Path, moving: Tensor, fixed: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """The value of `__call__` and its gradients in two passes that hold nothing of the image's size
        (`regframe.ops.contrast`); None where there are more features than the op takes."""
        if self._scales is None or self.order * moving.shape[0] > regframe.ops.MOST_FEATURES:
            return None
        self._both_scales(moving, fixed, weight)  # checks the channels
        assert self._stated is not None
        of_fixed, of_moving = self._stated
        fit = regframe.ops.contrast(path, moving, fixed, weight, of_moving, of_fixed, self.order, self.ridge)
        self.theta = fit.theta
        return fit.value, fit.velocity_grad, fit.matrix_grad

    def _features(self, x: Tensor) -> Tensor:
        """Powers ``[1 + order * C_m, n]`` of standardised channels ``[C_m, n]``: constant, linear, square …"""
        powers = [torch.ones_like(x[:1])]
        for _ in range(self.order):
            powers.append(x if len(powers) == 1 else powers[-1] * x)
        return torch.cat(powers)

    def _fit(self, moving: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """θ of standardised ``[C_m, *S]`` and ``[C_f, *S]``, from weighted moments summed up in float64."""
        with torch.no_grad():
            x = moving.detach().reshape(moving.shape[0], -1)  # [C_m, N]
            y = target.detach().reshape(target.shape[0], -1)  # [C_f, N]
            w = weight.detach().reshape(-1)
            size = 1 + self.order * x.shape[0]
            gram = torch.zeros((size, size), dtype=torch.float64, device=x.device)
            right = torch.zeros((size, y.shape[0]), dtype=torch.float64, device=x.device)
            for part in chunks(x):
                phi = self._features(x[:, part])  # [P, n]
                weighted = (phi * w[part]).T  # [n, P]
                gram += phi @ weighted
                right += (y[:, part] @ weighted).T
            return self._solve(gram, right, w.sum(dtype=torch.float64))

    def _solve(self, gram: Tensor, right: Tensor, total: Tensor) -> Tensor:
        """θ ``[C_f, P]`` of the weighted moments ``[P, P]`` and ``[P, C_f]`` and the weight that they sum over; it is kept."""
        total = total.clamp_min(TINY)
        penalty = torch.full((gram.shape[0],), self.ridge, dtype=torch.float64, device=gram.device)
        penalty[0] = _SOLVABLE
        self.theta = torch.linalg.solve(gram / total + torch.diag(penalty), right / total).T.contiguous()
        return self.theta

    def _map(self, moving: Tensor) -> Tensor:
        """``θ · φ`` of standardised ``[C_m, *S]``: ``[C_f, *S]``, by Horner's rule over the powers."""
        if self.theta is None:
            raise ValueError("wanted a fitted contrast map, got none; call fit or the metric first")
        theta = self.theta.to(moving)
        flat = moving.reshape(moving.shape[0], -1)  # [C_m, N]
        out = theta[:, :1]
        power = flat
        for k in range(self.order):
            part = theta[:, 1 + k * flat.shape[0] : 1 + (k + 1) * flat.shape[0]]  # [C_f, C_m]
            power = flat if k == 0 else power * flat
            out = out + part @ power
        return out.reshape(theta.shape[0], *moving.shape[1:])


class _Contrast(torch.autograd.Function):
    """Value and gradient of `Contrast` in two passes over chunks that stay in cache: moments, then residuals.

    The gradient in the warped image, ``2 w (θ φ(x) - y)ᵀ θ φ'(x)`` over the total weight, falls out of the second pass.
    """

    @staticmethod
    def forward(
        ctx: Any, warped: Tensor, fixed: Tensor, weight: Tensor, scales: tuple[Scale, Scale], metric: Contrast
    ) -> Tensor:
        x_all, y_all, w_all = warped.reshape(warped.shape[0], -1), fixed.reshape(fixed.shape[0], -1), weight.reshape(-1)
        (mean_f, scale_f), (mean_m, scale_m) = (
            [t.to(x_all)[:, None] for t in scale] for scale in scales
        )  # [C, 1] each
        n_m, n_f, order = x_all.shape[0], y_all.shape[0], metric.order
        size = 1 + order * n_m
        gram = torch.zeros((size, size), dtype=torch.float64, device=x_all.device)
        right = torch.zeros((size, n_f), dtype=torch.float64, device=x_all.device)
        parts = chunks(x_all)
        for part in parts:
            phi = metric._features((x_all[:, part] - mean_m) / scale_m)  # [P, n]
            weighted = (phi * w_all[part]).T  # [n, P]
            gram += phi @ weighted
            right += (((y_all[:, part] - mean_f) / scale_f) @ weighted).T
        total = w_all.sum(dtype=torch.float64).clamp_min(TINY)
        theta64 = metric._solve(gram, right, total)
        theta = theta64.to(x_all)
        gradient = torch.empty_like(x_all) if ctx.needs_input_grad[0] else None
        squares = torch.zeros((), dtype=torch.float64, device=x_all.device)
        for part in parts:
            x = (x_all[:, part] - mean_m) / scale_m  # [C_m, n]
            residual = theta @ metric._features(x) - (y_all[:, part] - mean_f) / scale_f  # [C_f, n]
            pulled = residual * w_all[part]
            squares += (pulled * residual).sum(dtype=torch.float64)
            if gradient is not None:
                slope, power = theta[:, 1 : 1 + n_m].T @ pulled, x  # [C_m, n]
                for k in range(1, order):
                    block = theta[:, 1 + k * n_m : 1 + (k + 1) * n_m]
                    slope = slope + (k + 1) * power * (block.T @ pulled)
                    power = power * x
                gradient[:, part] = slope
        if gradient is not None:
            gradient.mul_((2 / (n_f * total)).to(gradient) / scale_m)
            ctx.save_for_backward(gradient.reshape(warped.shape))
        penalty = metric.ridge * theta64[:, 1:].square().sum() / n_f
        return (squares / (n_f * total) + penalty).to(warped.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grad, *[None] * 4)
