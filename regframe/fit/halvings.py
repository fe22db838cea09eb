"""One side of a pair at every resolution: standardised, halved repeatedly, softened where noise would bias the fit."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import Grid, Image, Original
from .frames import Frame


@dataclass(frozen=True)
class Side:
    """What is known of a side beside its pixels.

    Args:
        original: the side before it was standardised.
        channels: one name per channel.
    """

    original: Original
    channels: tuple[str, ...]


@dataclass
class Level:
    """One pyramid level: both sides at a resolution, with the grids in their normalised frames.

    Args:
        fixed: ``[C_f, *S_f]`` float32.
        moving: ``[C_m, *S_m]`` float32.
        fixed_grid: grid of the fixed pixels, in the fixed frame.
        moving_grid: grid of the moving pixels, in the moving frame.
        fixed_weight: ``[*S_f]`` in 0 … 1, the fixed side's own mask.
        moving_weight: ``[*S_m]`` or None where every moving pixel counts.
        sides: the fixed and the moving side as they were, and the names of their channels; None where that is not known.
    """

    fixed: Tensor
    moving: Tensor
    fixed_grid: Grid
    moving_grid: Grid
    fixed_weight: Tensor
    moving_weight: Tensor | None
    sides: tuple[Side, Side] | None = None

    @functools.cached_property
    def trusted(self) -> Tensor:
        """The moving side's mask ``[1, *S_m]``, with 0 on the border pixels, whose values are continued outside the image."""
        out = torch.ones(self.moving_grid.shape, dtype=torch.float32, device=self.moving.device)
        if self.moving_weight is not None:
            out = self.moving_weight.clone()
        for d, n in enumerate(self.moving_grid.shape):
            if n > 2:
                out.narrow(d, 0, 1).zero_()
                out.narrow(d, n - 1, 1).zero_()
        return out[None]

    @property
    def work(self) -> int:
        """Number of values that one evaluation handles: pixels times channels of the larger side."""
        return max(self.fixed.numel(), self.moving.numel())


def halve(data: Tensor, grid: Grid, axes: Sequence[int]) -> tuple[Tensor, Grid]:
    """``data`` ``[C, *S]`` at half the resolution along ``axes``, low-passed with [1, 3, 3, 1]/8, and the matching grid."""
    shape, spacing, origin = list(grid.shape), list(grid.spacing), list(grid.origin)
    for d in axes:
        n = data.shape[1 + d]
        m = n // 2

        def part(start: int, stop: int, data: Tensor = data, d: int = d) -> Tensor:
            return data[(slice(None),) * (1 + d) + (slice(start, stop, 2),)]

        first, second = part(0, 2 * m), part(1, 2 * m)  # pixels 2 i and 2 i + 1
        out = (first + second).mul_(3 / 8)
        inner = out.narrow(1 + d, 1, m - 1)
        inner.add_(
            second.narrow(1 + d, 0, m - 1), alpha=1 / 8
        )  # pixel 2 i - 1; at the border the first pixel is repeated
        out.narrow(1 + d, 0, 1).add_(first.narrow(1 + d, 0, 1), alpha=1 / 8)
        out.narrow(1 + d, 0, m - 1).add_(first.narrow(1 + d, 1, m - 1), alpha=1 / 8)  # pixel 2 i + 2
        out.narrow(1 + d, m - 1, 1).add_(part(min(2 * m, n - 1), min(2 * m, n - 1) + 1), alpha=1 / 8)
        data = out
        shape[d], origin[d], spacing[d] = m, origin[d] + spacing[d] / 2, spacing[d] * 2
    return data, Grid(tuple(shape), tuple(spacing), tuple(origin), grid.unit)


def noise_share(data: Tensor) -> float:
    """Share of the squared gradient of an image ``[C, *S]`` that is white noise, 0 … 1; 1 for pure noise.

    From the second difference along all axes at once, which leaves little but noise (Immerkær 1996); fine texture counts as noise
    too.
    """
    rough, slope, ndim = data, 0.0, 0
    for d in range(1, data.ndim):
        n = data.shape[d]
        if n > 2:
            slope += float((data.narrow(d, 1, n - 1) - data.narrow(d, 0, n - 1)).square().mean())
            rough = (rough.narrow(d, 0, n - 2) - 2 * rough.narrow(d, 1, n - 2) + rough.narrow(d, 2, n - 2)) / 6**0.5
            ndim += 1
    return 2 * ndim * float(rough.square().mean()) / slope if slope > 0 else 0.0


def soften(data: Tensor) -> Tensor:
    """``data`` ``[C, *S]`` filtered with [1, 2, 1]/4 along every axis, the border repeated.

    A linearly interpolated image is smoother between its pixels than at them: the variance of white noise falls there by up to
    2^-D. A fit would therefore prefer positions half a pixel off. In a softened image neighbouring pixels are alike already,
    which removes most of that preference.
    """
    for d in range(1, data.ndim):
        n = data.shape[d]
        if n > 1:
            out = data / 2
            out.narrow(d, 1, n - 1).add_(data.narrow(d, 0, n - 1), alpha=1 / 4)
            out.narrow(d, 0, n - 1).add_(data.narrow(d, 1, n - 1), alpha=1 / 4)
            for i in (0, n - 1):
                out.narrow(d, i, 1).add_(data.narrow(d, i, 1), alpha=1 / 4)
            data = out
    return data


def standardized(image: Image) -> Tensor:
    """The channels ``[C, *S]`` float32 with mean 0 and variance 1 over trusted pixels; constant channels become 0."""
    return _standardized(image)[0]


def _standardized(image: Image) -> tuple[Tensor, Tensor, Tensor]:
    """`standardized`, with the mean and the standard deviation ``[C]`` of the channels, 0 for a constant one."""
    data = image.data.to(torch.float32)
    dims = tuple(range(1, data.ndim))
    if image.weight is None:
        mean = data.mean(dim=dims, keepdim=True, dtype=torch.float64).to(torch.float32)
        data = data - mean
        variance = data.square().mean(dim=dims, keepdim=True, dtype=torch.float64)
    else:
        w = image.weight.to(torch.float32)
        total = w.sum(dtype=torch.float64).clamp(min=1e-12)
        mean = ((data * w).sum(dim=dims, keepdim=True, dtype=torch.float64) / total).to(torch.float32)
        data = data - mean
        variance = data.square().mul_(w).sum(dim=dims, keepdim=True, dtype=torch.float64) / total
    scale = variance.sqrt().to(torch.float32)
    gain = torch.where(scale > 1e-6 * (mean.abs() + 1e-30), 1 / scale.clamp(min=1e-30), 0.0)
    return data.mul_(gain), mean.flatten(), torch.where(gain > 0, scale, 0.0).flatten()


class Halvings:
    """One side of a pair: standardised, in its normalised frame, at any number of halvings; each is computed once and kept.

    It is made on the host, where starts are searched and figures drawn; `on` carries it to the device where the fit runs.

    Args:
        image: the side; its ``weight`` is its mask.
        stained: where it shows stained tissue and not glass ``[h, w]``, on any number of pixels; None where that is not known.
    """

    def __init__(self, image: Image, stained: Tensor | None = None) -> None:
        self.image, self.grid, self.stained = image, image.grid, stained
        weight = None if image.weight is None else image.weight.to(torch.float32)
        data, mean, scale = _standardized(image)
        frame = Frame.of(image.grid)
        self._made = [(data, weight, frame.grid(image.grid))]
        self._elsewhere: dict[torch.device, Halvings] = {}
        self.side = Side(
            Original(
                image.grid.unit,
                frame.length,
                frame.center,
                image.grid,
                tuple(mean.tolist()),
                tuple(scale.tolist()),
                image.name,
            ),
            image.channels,
        )

    @classmethod
    def of(cls, side: Image | Halvings) -> Halvings:
        """``side`` itself, or the halvings of an image."""
        return side if isinstance(side, Halvings) else cls(side)

    def on(self, device: torch.device | str) -> Halvings:
        """This side at all resolutions on another device: the finest one is copied, the others are computed there."""
        device = torch.device(device)
        data, weight, grid = self._made[0]
        if device == data.device:
            return self
        if device not in self._elsewhere:
            there = copy.copy(self)
            there._made = [(data.to(device), None if weight is None else weight.to(device), grid)]
            there._elsewhere = {}
            self._elsewhere[device] = there
        return self._elsewhere[device]

    def physical(self, times: int) -> Image:
        """The image after ``times`` halvings, on a grid in the data set's own unit."""
        data, weight, grid = self.at(times)
        length = Frame.of(self.grid).length
        origin = tuple(o * length + c for o, c in zip(grid.origin, self.grid.center, strict=True))
        return Image(
            data, Grid(grid.shape, tuple(s * length for s in grid.spacing), origin, self.grid.unit), weight=weight
        )

    def times_until(self, small: Callable[[Grid], bool]) -> int:
        """The smallest number of halvings after which ``small(grid)`` is true, or as many as are possible."""
        times = 0
        while not small(self.at(times)[2]) and self.at(times + 1)[2] is not self.at(times)[2]:
            times += 1
        return times

    def at(self, times: int) -> tuple[Tensor, Tensor | None, Grid]:
        """Data ``[C, *S]``, mask ``[*S]`` or None, and grid after ``times`` halvings, or after as many as are possible."""
        while len(self._made) <= times:
            data, weight, grid = self._made[-1]
            finest = min(grid.spacing)
            axes = [d for d in range(grid.ndim) if grid.spacing[d] < 1.5 * finest and grid.shape[d] >= 8]
            if not axes:
                break
            stacked = data if weight is None else torch.cat([data, weight[None]])
            stacked, grid = halve(stacked, grid, axes)
            self._made.append((stacked, None, grid) if weight is None else (stacked[:-1], stacked[-1], grid))
        return self._made[min(times, len(self._made) - 1)]
