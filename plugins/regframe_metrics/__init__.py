"""The metrics that ship with regframe: ``contrast``, ``ssd``, ``ncc`` and ``lncc``.

All compare images by a weighted mean over fixed pixels, lower is better, differentiable in what was warped.
Intensities are standardised once in ``prepare``, so no metric depends on the scale of either side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import regframe

_TINY = 1e-30  # keeps a mean over no weight at all finite
_CHUNK = 1 << 15  # pixels whose features are held at once: they stay in cache


class _ImageMetric(regframe.Metric):
    """What the four share: mean and deviation of either side, from ``prepare`` or else from the first call."""

    accepts = (regframe.Image, regframe.Image)

    def __init__(self) -> None:
        self._scales: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None

    def prepare(self, fixed: regframe.Image | regframe.PointSet, moving: regframe.Image | regframe.PointSet) -> None:
        """Take mean and standard deviation per channel of either image, under its own weight."""
        if not (isinstance(fixed, regframe.Image) and isinstance(moving, regframe.Image)):
            raise TypeError(f"wanted two images, got {type(fixed).__name__} and {type(moving).__name__}")
        self._scales = _scale(fixed.data, fixed.weight), _scale(moving.data, moving.weight)

    def _standardised(self, warped: Tensor, fixed: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Both sides as ``[C, *S]`` with mean 0 and deviation 1; ValueError where shapes do not fit."""
        self._check(warped, fixed, weight)
        of_fixed, of_moving = self._both_scales(warped, fixed, weight)
        return _apply(warped, of_moving), _apply(fixed, of_fixed)

    def _check(self, warped: Tensor, fixed: Tensor, weight: Tensor) -> None:
        if warped.shape[1:] != fixed.shape[1:] or weight.shape != fixed.shape[1:]:
            raise ValueError(
                f"wanted warped [C_m, *S], fixed [C_f, *S] and weight [*S] on one grid, got {tuple(warped.shape)}, "
                f"{tuple(fixed.shape)} and {tuple(weight.shape)}"
            )

    def _both_scales(
        self, warped: Tensor, fixed: Tensor, weight: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Mean and deviation per channel of the fixed and of the moving side."""
        if self._scales is None:
            self._scales = _scale(fixed, weight), _scale(warped, weight)
        for data, (mean, _) in zip((fixed, warped), self._scales, strict=True):
            if mean.shape[0] != data.shape[0]:
                raise ValueError(
                    f"wanted {mean.shape[0]} channels as in prepare, got {data.shape[0]}; call prepare for these images"
                )
        return self._scales


def _scale(data: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weighted mean and standard deviation per channel, ``[C]`` float64; a constant channel has deviation 1."""
    with torch.no_grad():
        flat = data.detach().reshape(data.shape[0], -1).to(torch.float64)  # [C, N]
        w = torch.ones_like(flat[0]) if weight is None else weight.detach().reshape(-1).to(flat)
        total = w.sum().clamp_min(_TINY)
        mean = (flat @ w) / total
        variance = ((flat - mean[:, None]) ** 2 @ w) / total
        flat_channel = variance <= 1e-20 * (mean**2 + 1e-300)
        return mean, torch.where(flat_channel, torch.ones_like(variance), variance).sqrt()


def _apply(data: Tensor, scale: tuple[Tensor, Tensor]) -> Tensor:
    mean, deviation = scale
    shape = (-1, *(1,) * (data.ndim - 1))
    return (data - mean.to(data).reshape(shape)) / deviation.to(data).reshape(shape)


def _weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean of ``[C, *S]`` under ``[*S]``, over channels too."""
    return (values * weight).sum() / (values.shape[0] * weight.sum().clamp_min(_TINY))


def _matched(warped: Tensor, fixed: Tensor, what: str) -> tuple[Tensor, Tensor]:
    """Both sides channel by channel; each side's mean channel where their numbers differ."""
    if warped.shape[0] == fixed.shape[0]:
        return warped, fixed
    if what == "ssd":
        raise ValueError(
            f"wanted as many moving as fixed channels for ssd, got {warped.shape[0]} and {fixed.shape[0]}; "
            "choose channels, or use the metric contrast"
        )
    return warped.mean(dim=0, keepdim=True), fixed.mean(dim=0, keepdim=True)


class Contrast(_ImageMetric):
    """Mean squared residual of the best contrast map: METHOD's ``f_θ``, which lets one modality explain another.

    Per fixed channel an affine, or with ``order`` 2 or 3 a polynomial, function of the moving channels (their powers,
    without products of two channels), fitted by weighted ridge regression at every call::

        value = 1/C_f Σ_c min_θ [ Σ_y W(y) (θ_c · φ(I(y)) - J_c(y))² / Σ_y W(y) + ridge |θ_c|² ],  φ = (1, I, … I^order)

    with both sides standardised and the constant not penalised. θ is solved in float64 without a graph and held fixed
    in the gradient, which is exact: at the minimum the derivative in θ is zero (envelope theorem), the ridge being
    part of the value.

    Args:
        order: highest power, 1 to 3.
        ridge: strength of the ridge; harmless small by default, it only decides where channels are collinear or
            constant.
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
        """``[C_f, 1 + order * C_m]`` float64 of the last fit, for standardised intensities: constant, linear, square
        …"""

    def fit(self, warped: Tensor, fixed: Tensor, weight: Tensor) -> Tensor:
        """Solve for θ ``[C_f, 1 + order * C_m]`` (float64) and keep it."""
        return self._fit(*self._standardised(warped, fixed, weight), weight)

    def predict(self, warped: Tensor) -> Tensor:
        """``f_θ(I)`` of the last fit in the fixed image's intensities, ``[C_f, *S]``."""
        if self._scales is None:
            raise ValueError("wanted a fitted contrast map, got none; call fit or the metric first")
        (mean, deviation), of_moving = self._scales
        shape = (-1, *(1,) * (warped.ndim - 1))
        out = self._map(_apply(warped, of_moving))
        return out * deviation.to(out).reshape(shape) + mean.to(out).reshape(shape)

    def residual(self, warped: Tensor, fixed: Tensor) -> Tensor:
        """``f_θ(I) - J`` of the last fit in standard deviations of the fixed image, ``[C_f, *S]``."""
        if self._scales is None:
            raise ValueError("wanted a fitted contrast map, got none; call fit or the metric first")
        return self._map(_apply(warped, self._scales[1])) - _apply(fixed, self._scales[0])

    def __call__(self, warped: Tensor, fixed: Tensor, weight: Tensor) -> Tensor:
        """Weighted mean squared residual after the fit; 0 is a perfect explanation, 1 none at all."""
        self._check(warped, fixed, weight)
        (mean_f, scale_f), (mean_m, scale_m) = self._both_scales(warped, fixed, weight)
        value: Tensor = _Contrast.apply(warped, fixed, weight, mean_f, scale_f, mean_m, scale_m, self)
        return value

    def fused(
        self, path: regframe.ops.Path, moving: Tensor, fixed: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """The same value and its gradients in two passes that keep nothing of the image's size (`regframe.ops.contrast`)."""
        if self._scales is None or self.order * moving.shape[0] > regframe.ops.MOST_FEATURES:
            return None
        of_fixed, of_moving = (torch.stack(scale) for scale in self._both_scales(moving, fixed, weight))
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
            for start in range(0, w.shape[0], _CHUNK):
                part = slice(start, start + _CHUNK)
                phi = self._features(x[:, part])  # [P, n]
                weighted = (phi * w[part]).T  # [n, P]
                gram += phi @ weighted
                right += (y[:, part] @ weighted).T
            return self._solve(gram, right, w.sum(dtype=torch.float64))

    def _solve(self, gram: Tensor, right: Tensor, total: Tensor) -> Tensor:
        total = total.clamp_min(_TINY)
        penalty = torch.full((gram.shape[0],), self.ridge, dtype=torch.float64, device=gram.device)
        penalty[0] = 1e-12  # only so that no weight at all is solvable
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
        ctx: Any,
        warped: Tensor,
        fixed: Tensor,
        weight: Tensor,
        mean_f: Tensor,
        scale_f: Tensor,
        mean_m: Tensor,
        scale_m: Tensor,
        metric: Contrast,
    ) -> Tensor:
        x_all, y_all, w_all = warped.reshape(warped.shape[0], -1), fixed.reshape(fixed.shape[0], -1), weight.reshape(-1)
        mean_f, scale_f, mean_m, scale_m = (t.to(x_all)[:, None] for t in (mean_f, scale_f, mean_m, scale_m))
        n_m, n_f, order = x_all.shape[0], y_all.shape[0], metric.order
        size = 1 + order * n_m
        gram = torch.zeros((size, size), dtype=torch.float64, device=x_all.device)
        right = torch.zeros((size, n_f), dtype=torch.float64, device=x_all.device)
        chunks = [slice(start, start + _CHUNK) for start in range(0, w_all.shape[0], _CHUNK)]
        for part in chunks:
            phi = metric._features((x_all[:, part] - mean_m) / scale_m)  # [P, n]
            weighted = (phi * w_all[part]).T  # [n, P]
            gram += phi @ weighted
            right += (((y_all[:, part] - mean_f) / scale_f) @ weighted).T
        total = w_all.sum(dtype=torch.float64).clamp_min(_TINY)
        theta64 = metric._solve(gram, right, total)
        theta = theta64.to(x_all)
        gradient = torch.empty_like(x_all) if ctx.needs_input_grad[0] else None
        squares = torch.zeros((), dtype=torch.float64, device=x_all.device)
        for part in chunks:
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
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return (gradient * grad, *[None] * 7)


class SSD(_ImageMetric):
    """Weighted mean squared difference of intensities, in units of the fixed image's variance; for like modalities."""

    name = "ssd"

    def __call__(self, warped: Tensor, fixed: Tensor, weight: Tensor) -> Tensor:
        """Mean over pixels and channels; wants the same channels on both sides."""
        _matched(warped, fixed, "ssd")
        _, target = self._standardised(warped, fixed, weight)
        assert self._scales is not None
        # both sides by the scale of the fixed one: it is the difference that counts
        return _weighted_mean((_apply(warped, self._scales[0]) - target).square(), weight)


class NCC(_ImageMetric):
    """One minus the squared correlation of intensities under the weight; blind to brightness, contrast and polarity.

    Args:
        signed: True for one minus the correlation itself, where bright must stay bright.

    Where the sides differ in channels each side's mean channel is compared.
    """

    name = "ncc"

    def __init__(self, signed: bool = False) -> None:
        super().__init__()
        self.signed = _flag("signed", signed)

    def __call__(self, warped: Tensor, fixed: Tensor, weight: Tensor) -> Tensor:
        """0 for a perfect linear relation, 1 for none (``signed``: up to 2)."""
        moving, target = _matched(*self._standardised(warped, fixed, weight), self.name)
        x, y = moving.reshape(moving.shape[0], -1), target.reshape(target.shape[0], -1)  # [C, N]
        w = weight.reshape(-1) / weight.sum().clamp_min(_TINY)
        x = x - (x * w).sum(dim=1, keepdim=True)
        y = y - (y * w).sum(dim=1, keepdim=True)
        covariance = (w * x * y).sum(dim=1)
        return 1 - _correlation(covariance, (w * x * x).sum(dim=1), (w * y * y).sum(dim=1), 1e-6, self.signed).mean()


class LNCC(_ImageMetric):
    """One minus the squared local correlation, in a box of ``2 radius + 1`` pixels around each one.

    Args:
        radius: half width of the box in pixels; wide boxes are for sections that differ in fine texture.
        signed: True for one minus the correlation itself, where bright must stay bright.

    Means, variances and covariances are weighted in each box. Where the sides differ in channels each side's mean
    channel is compared.
    """

    name = "lncc"

    def __init__(self, radius: int = 4, signed: bool = False) -> None:
        super().__init__()
        if isinstance(radius, bool) or not isinstance(radius, int) or radius < 1:
            raise ValueError(f"wanted a radius of at least 1 pixel, got {radius!r}")
        self.radius = radius
        self.signed = _flag("signed", signed)

    def __call__(self, warped: Tensor, fixed: Tensor, weight: Tensor) -> Tensor:
        """Weighted mean over pixels of their box's mismatch; flat boxes count as unexplained."""
        x, y = _matched(*self._standardised(warped, fixed, weight), self.name)  # [C, *S]
        w = weight.expand_as(x[:1])
        sums = _box_mean(torch.cat([w, w * x, w * y, w * x * x, w * y * y, w * x * y]), self.radius)
        mass, rest = sums[:1], sums[1:].reshape(5, *x.shape)
        mean_x, mean_y, xx, yy, xy = (part / mass.clamp_min(1e-6) for part in rest)
        variance_x = (xx - mean_x * mean_x).clamp_min(0)
        variance_y = (yy - mean_y * mean_y).clamp_min(0)
        # the floor is 1 % of the image's deviation: below it a box is noise (and float32 cancellation)
        return _weighted_mean(1 - _correlation(xy - mean_x * mean_y, variance_x, variance_y, 1e-4, self.signed), weight)


def _correlation(covariance: Tensor, variance_x: Tensor, variance_y: Tensor, floor: float, signed: bool) -> Tensor:
    """Correlation, squared unless ``signed``, with ``floor`` added to the variances so that flat inputs give 0."""
    product = (variance_x + floor) * (variance_y + floor)
    return covariance * product.rsqrt() if signed else covariance * covariance / product


def _box_mean(maps: Tensor, radius: int) -> Tensor:
    """Sum over a box around each pixel of ``[K, *S]``, zero outside, divided by the full box's size, axis by axis."""
    ndim = maps.ndim - 1
    pool = torch.nn.functional.avg_pool2d if ndim == 2 else torch.nn.functional.avg_pool3d
    for d in range(ndim):
        r = min(radius, maps.shape[1 + d] - 1)
        if r == 0:
            continue
        kernel = [2 * r + 1 if k == d else 1 for k in range(ndim)]
        padding = [r if k == d else 0 for k in range(ndim)]
        if maps.shape[1 + d] < 2 * r + 1:  # avg_pool3d wants the kernel within the input before it is padded
            maps = torch.nn.functional.pad(maps, [r if k == d else 0 for k in reversed(range(ndim)) for _ in "ab"])
            padding = [0] * ndim
        maps = pool(maps[None], kernel, stride=1, padding=padding)[0]
    return maps


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"wanted {name} to be true or false, got {value!r}")
    return value


@regframe.hookimpl
def regframe_metrics() -> Sequence[type[regframe.Metric]]:
    """The metrics of this plug-in."""
    return [Contrast, SSD, NCC, LNCC]
