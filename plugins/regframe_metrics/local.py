"""``lncc``: correlation in a box around each pixel, with its gradient in closed form."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._common import TINY, ImageMetric, Memory, Side, box_sum, flag, known, matched, whole

_FLOOR = 1e-4
"""Variance added to both sides of each box, in variances of the whole image: the square of 1 % of its deviation. Below that a box
holds noise, and the rounding of float32 moments."""
_LEAST_MASS = 1e-6
"""Least weight that a box's mean is divided by, over the number of its pixels: a box of hidden pixels gets a finite mean."""


class _FixedBoxes(NamedTuple):
    """The fixed side and the mean and variance of its boxes, ``[C, *S]`` each, and the inverse weight of each box ``[*S]``."""

    target: Tensor
    mean: Tensor
    variance: Tensor
    per_mass: Tensor


class LNCC(ImageMetric):
    """One minus the squared local correlation, in a box of ``2 radius + 1`` pixels around each one.

    With ``⟨·⟩`` the mean over the box of a pixel under the weight W, and x, y the standardised sides::

        value = Σ W (1 - r) / Σ W,   r = c² / (v_x v_y),   c = ⟨xy⟩ - ⟨x⟩⟨y⟩,   v = ⟨x²⟩ - ⟨x⟩² + floor

    r is a function of ⟨x⟩, ⟨x²⟩ and ⟨xy⟩; a box sum is its own adjoint, so the gradient is three more box sums::

        dr/dx = W [ y B(a) + 2 x B(b) - B(a ⟨y⟩ + 2 b ⟨x⟩) ],   a = 2 c / (v_x v_y),   b = -r / v_x

    with B the sum over the box divided by the mass of W in each (Cachier et al. 2003; Avants et al. 2008). The
    cost hardly depends on the radius.

    Args:
        radius: half width of the box in pixels; wide boxes are for sections that differ in fine texture.
        signed: True for one minus the correlation itself, where bright must stay bright.

    Means, variances and covariances are weighted in each box. Where the sides differ in channels each side's mean
    channel is compared.
    """

    name = "lncc"

    def __init__(self, radius: int = 4, signed: bool = False) -> None:
        super().__init__()
        self.radius = whole("radius", radius, 1, " pixel")
        self.signed = flag("signed", signed)
        self._memory: Memory[_FixedBoxes] = Memory()

    def _learn(self, fixed: Side, moving: Side) -> None:
        super()._learn(fixed, moving)
        self._memory = Memory()

    def __call__(self, warped: Tensor, fixed: Tensor, weight: Tensor) -> Tensor:
        """Weighted mean over pixels of their box's mismatch; flat boxes count as unexplained."""
        x, y = matched(*self._standardised(warped, fixed, weight), self.name)  # [C, *S]
        w = weight.detach().to(x)
        memory = self._memory.get((y, w), lambda: self._boxes(y.detach(), w))
        return known(x, lambda asked: self._compute(x.detach(), w, memory, asked))

    def _boxes(self, target: Tensor, weight: Tensor) -> _FixedBoxes:
        """Means and variances of the fixed side's boxes."""
        with torch.no_grad():
            area = 1.0
            for length in weight.shape:
                area *= 2 * min(self.radius, length - 1) + 1
            per_mass = 1 / box_sum(weight, self.radius).clamp_min(_LEAST_MASS * area)  # [*S]
            mean, variance = torch.empty_like(target), torch.empty_like(target)
            for c, y in enumerate(target):
                moment = weight * y
                mean[c] = box_sum(moment, self.radius) * per_mass
                variance[c] = box_sum(moment * y, self.radius) * per_mass - mean[c] ** 2
            return _FixedBoxes(target, mean, variance.clamp_min_(0).add_(_FLOOR), per_mass)

    def _compute(self, data: Tensor, weight: Tensor, fixed: _FixedBoxes, asked: bool) -> tuple[Tensor, Tensor | None]:
        """Value and, if asked for, gradient ``[C, *S]`` in ``data`` ``[C, *S]``; one channel at a time."""
        total = weight.sum(dtype=torch.float64).clamp_min(TINY) * data.shape[0]
        share = weight / total.to(weight)  # [*S]
        value = torch.zeros((), dtype=torch.float64, device=data.device)
        gradient = torch.empty_like(data) if asked else None
        for c, x in enumerate(data):
            y, mean_y, var_y = fixed.target[c], fixed.mean[c], fixed.variance[c]
            moment = weight * x
            mean = box_sum(moment, self.radius) * fixed.per_mass
            variance = (box_sum(moment * x, self.radius) * fixed.per_mass).addcmul_(mean, mean, value=-1)
            covariance = (box_sum(moment * y, self.radius) * fixed.per_mass).addcmul_(mean, mean_y, value=-1)
            positive = variance > 0
            variance = variance.clamp_min_(0).add_(_FLOOR)
            product = variance * var_y
            # r and its derivatives in covariance and variance of x
            if self.signed:
                a = product.rsqrt_()
                r = covariance * a
                b = r / variance * -0.5
            else:
                a = covariance / product
                r = covariance * a
                a *= 2
                b = -r / variance
            value += torch.dot(share.reshape(-1), (1 - r).reshape(-1))
            if gradient is None:
                continue
            scale = share * fixed.per_mass
            a *= scale
            b *= scale * positive
            of_mean = (a * mean_y).addcmul_(b, mean, value=2)
            a, b, of_mean = (box_sum(part, self.radius) for part in (a, b, of_mean))
            slope = torch.mul(y, a, out=a).addcmul_(x, b, value=2).sub_(of_mean)
            torch.mul(slope, weight, out=gradient[c]).neg_()
        return value.to(data.dtype), gradient
