"""``lncc``: correlation in a box around each pixel, with its gradient in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

import regframe

from ._common import ImageMetric, Memory, Side, flag, known, matched, standardise, whole

_FLOOR = 1e-4
"""Variance added to both sides of each box, in variances of the whole image: the square of 1 % of its deviation. Below that a box
holds noise, and the rounding of float32 moments."""


class LNCC(ImageMetric):
    """One minus the squared local correlation, in a box of ``2 radius + 1`` pixels around each one.

    With ``⟨·⟩`` the mean over the box of a pixel under the weight W, and x, y the standardised sides::

        value = Σ W (1 - r) / Σ W,   r = c² / (v_x v_y),   c = ⟨xy⟩ - ⟨x⟩⟨y⟩,   v = ⟨x²⟩ - ⟨x⟩² + floor

    r is a function of ⟨x⟩, ⟨x²⟩ and ⟨xy⟩; a box sum is its own adjoint, so the gradient is three more box sums::

        dr/dx = W [ y B(a) + 2 x B(b) - B(a ⟨y⟩ + 2 b ⟨x⟩) ],   a = 2 c / (v_x v_y),   b = -r / v_x

    with B the sum over the box of W times its argument over the mass of W in each box (Cachier et al. 2003; Avants et al. 2008).
    One op makes both (`regframe.ops.correlation`); the cost hardly depends on the radius.

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
        self._sides: Memory[tuple[Tensor, Tensor]] = Memory(by_tensor=True)
        """The moving and the fixed image, standardised and of as many channels, as `fused` last saw them."""

    def _learn(self, fixed: Side, moving: Side) -> None:
        super()._learn(fixed, moving)
        self._sides = Memory(by_tensor=True)

    def __call__(self, warped: Tensor, fixed: Tensor, weight: Tensor) -> Tensor:
        """Weighted mean over pixels of their box's mismatch; flat boxes count as unexplained."""
        x, y = matched(*self._standardised(warped, fixed, weight), self.name)  # [C, *S]
        return self._value(x, y, weight).to(warped.dtype)

    def fused(
        self, path: regframe.ops.Path, moving: Tensor, fixed: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """The value of `__call__` and its gradients; None before `prepare`.

        Standardising and taking the mean channel are linear, so the moving image is standardised before it is warped, once for
        all calls with the same two images.
        """
        if self._scales is None:
            return None
        of_fixed, of_moving = self._both_scales(moving, fixed, weight)  # checks the channels
        x, y = self._sides.get(
            (moving, fixed), lambda: matched(standardise(moving, of_moving), standardise(fixed, of_fixed), self.name)
        )
        with torch.enable_grad():
            velocity, matrix = path.velocity.detach().requires_grad_(True), path.matrix.detach().requires_grad_(True)
            value = self._value(regframe.ops.warp(x, *path._replace(velocity=velocity, matrix=matrix)), y, weight)
            velocity_grad, matrix_grad = torch.autograd.grad(value, (velocity, matrix))
        return value.detach(), velocity_grad, matrix_grad

    def _value(self, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        """The op's value, a float64 scalar with its gradient in ``x``, of standardised sides ``[C, *S]``."""

        def compute(asked: bool) -> tuple[Tensor, Tensor | None]:
            found = regframe.ops.correlation(x, y.to(x), weight.to(x), self.radius, _FLOOR, self.signed, asked)
            return found.value, found.gradient if asked else None

        return known(x, compute)
