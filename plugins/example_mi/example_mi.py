"""Mutual information of two images (Viola and Wells 1997; cubic B-spline Parzen window of Mattes et al. 2003)."""

import torch
from torch import Tensor

import regframe


class MutualInformation(regframe.Metric):
    """Minus the mutual information, in nats, of the two sides' mean channels; ``bins`` intensity bins per side."""

    name = "example_mi"
    likelihood = True

    def __init__(self, bins: int = 32) -> None:
        if not isinstance(bins, int) or bins < 4:
            raise ValueError(f"wanted at least 4 bins, got {bins!r}")
        self.bins = bins

    def prepare(self, fixed: regframe.Image | regframe.PointSet, moving: regframe.Image | regframe.PointSet) -> None:
        """Take the range of either side's intensities."""
        if not (isinstance(fixed, regframe.Image) and isinstance(moving, regframe.Image)):
            raise TypeError("wanted two images, got points; choose a metric for points")
        self.ranges = [torch.aminmax(side.data.float().mean(dim=0)) for side in (fixed, moving)]

    def __call__(self, warped: Tensor, fixed: Tensor, weight: Tensor) -> Tensor:
        """``-Σ p(i, j) log p(i, j) / (p(i) p(j))`` over the weighted joint histogram."""
        f, m = (self._bin(x.mean(dim=0).flatten(), *r) for x, r in zip((fixed, warped), self.ranges, strict=True))
        w = weight.flatten() / weight.sum().clamp_min(1e-30)
        joint = torch.full((self.bins**2,), 1e-12, dtype=w.dtype, device=w.device)
        row, base = f.round().long() * self.bins, m.detach().floor().long()
        for k in (-1, 0, 1, 2):  # the four bins a cubic B-spline reaches
            d = (m - base - k).abs()
            spline = torch.where(d < 1, 2 / 3 - d**2 + d**3 / 2, (2 - d).clamp_min(0) ** 3 / 6)
            joint = joint.index_add(0, row + base + k, w * spline)
        p = (joint / joint.sum()).reshape(self.bins, self.bins)  # [fixed, moving]
        return -(p * (p / (p.sum(0, keepdim=True) * p.sum(1, keepdim=True))).log()).sum()

    def _bin(self, values: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Intensities as positions on the axis of bins, 1 … bins - 2.001: a spline reaches one bin before and two after."""
        scale = (self.bins - 3.001) / (high - low).clamp_min(1e-12)
        return 1 + ((values - low.to(values)) * scale.to(values)).clamp(0, self.bins - 3.001)


@regframe.hookimpl
def regframe_metrics() -> list[type[regframe.Metric]]:
    """The metric of this plug-in."""
    return [MutualInformation]
