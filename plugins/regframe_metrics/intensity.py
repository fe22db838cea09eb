"""``ssd`` and ``ncc``: intensities compared pixel by pixel, over the whole image."""

from __future__ import annotations

from torch import Tensor

from ._common import TINY, ImageMetric, correlation, flag, matched, standardise, weighted_mean

_FLOOR = 1e-6
"""Variance added to both sides of a correlation, in variances of the whole image: a thousandth of its deviation, so that an image
without contrast counts as unexplained."""


class SSD(ImageMetric):
    """Weighted mean squared difference of intensities, in units of the fixed image's variance; for one modality on both sides."""

    name = "ssd"

    def __call__(self, warped: Tensor, fixed: Tensor, weight: Tensor) -> Tensor:
        """Mean over pixels and channels; wants the same channels on both sides."""
        matched(warped, fixed, "ssd")
        _, target = self._standardised(warped, fixed, weight)
        assert self._scales is not None
        # both sides by the scale of the fixed one, so that equal intensities stay equal
        return weighted_mean((standardise(warped, self._scales[0]) - target).square(), weight)


class NCC(ImageMetric):
    """One minus the squared correlation of intensities under the weight; blind to brightness, contrast and polarity.

    Args:
        signed: True for one minus the correlation itself, where bright must stay bright.

    Where the sides differ in channels each side's mean channel is compared.
    """

    name = "ncc"

    def __init__(self, signed: bool = False) -> None:
        super().__init__()
        self.signed = flag("signed", signed)

    def __call__(self, warped: Tensor, fixed: Tensor, weight: Tensor) -> Tensor:
        """0 for a perfect linear relation, 1 for none (``signed``: up to 2)."""
        moving, target = matched(*self._standardised(warped, fixed, weight), self.name)
        x, y = moving.reshape(moving.shape[0], -1), target.reshape(target.shape[0], -1)  # [C, N]
        w = weight.reshape(-1) / weight.sum().clamp_min(TINY)
        x = x - (x * w).sum(dim=1, keepdim=True)
        y = y - (y * w).sum(dim=1, keepdim=True)
        covariance = (w * x * y).sum(dim=1)
        return 1 - correlation(covariance, (w * x * x).sum(dim=1), (w * y * y).sum(dim=1), _FLOOR, self.signed).mean()
