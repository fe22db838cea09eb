"""Tools of all metrics: scales of either side, weighted means, box sums, a memory for results of the fixed side alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

import regframe

TINY = 1e-30
"""Least sum of weights that a mean is divided by: far below any real weight, it keeps a mean over no weight at all finite."""
_CONSTANT = 1e-20
"""Variance over squared mean below which a channel is constant: the square of 1e-10, well above the rounding of float64 moments
and well below the step of 8-bit or float32 intensities."""
_NO_MEAN = 1e-300
"""What is added to the squared mean in that comparison, so that a channel of zeros is constant too."""

T = TypeVar("T")
Scale = tuple[Tensor, Tensor]
"""Mean and standard deviation per channel, ``[C]`` float64 each."""


class Side(NamedTuple):
    """One image as a metric gets to know it: data ``[C, *S]``, weight ``[*S]`` or None, and the spacing of its axes."""

    data: Tensor
    weight: Tensor | None
    spacing: tuple[float, ...]


class ImageMetric(regframe.Metric):
    """A metric of images that are standardised: it learns mean and deviation of either side in ``prepare``, or else in the
    first call."""

    accepts = (regframe.Image, regframe.Image)

    def __init__(self) -> None:
        self._scales: tuple[Scale, Scale] | None = None
        self._stated: tuple[Tensor, Tensor] | None = None
        """Both scales again, ``[2, C]`` each, on the CPU: numbers that a call needs without waiting for the images' device."""
        self._deviations: tuple[list[float], list[float]] = ([], [])
        """Standard deviation per channel of the fixed and of the moving side."""

    def prepare(self, fixed: regframe.Image | regframe.PointSet, moving: regframe.Image | regframe.PointSet) -> None:
        """Take mean and standard deviation per channel of either image, under its own weight, and what else it needs."""
        if not (isinstance(fixed, regframe.Image) and isinstance(moving, regframe.Image)):
            raise TypeError(f"wanted two images, got {type(fixed).__name__} and {type(moving).__name__}")
        self._learn(*(Side(side.data, side.weight, tuple(side.grid.spacing)) for side in (fixed, moving)))

    def _learn(self, fixed: Side, moving: Side) -> None:
        self._scales = scale_of(fixed.data, fixed.weight), scale_of(moving.data, moving.weight)
        of_fixed, of_moving = (torch.stack(scale).cpu() for scale in self._scales)
        self._stated = of_fixed, of_moving
        self._deviations = of_fixed[1].tolist(), of_moving[1].tolist()

    def _standardised(self, warped: Tensor, fixed: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Both sides as ``[C, *S]`` with mean 0 and deviation 1; ValueError where shapes do not fit."""
        self._check(warped, fixed, weight)
        of_fixed, of_moving = self._both_scales(warped, fixed, weight)
        return standardise(warped, of_moving), standardise(fixed, of_fixed)

    def _check(self, warped: Tensor, fixed: Tensor, weight: Tensor) -> None:
        if warped.shape[1:] != fixed.shape[1:] or weight.shape != fixed.shape[1:]:
            raise ValueError(
                f"wanted warped [C_m, *S], fixed [C_f, *S] and weight [*S] on one grid, got {tuple(warped.shape)}, "
                f"{tuple(fixed.shape)} and {tuple(weight.shape)}"
            )

    def _both_scales(self, warped: Tensor, fixed: Tensor, weight: Tensor) -> tuple[Scale, Scale]:
        """Mean and deviation per channel of the fixed and of the moving side."""
        if self._scales is None:
            even = (1.0,) * weight.ndim
            self._learn(Side(fixed.detach(), weight.detach(), even), Side(warped.detach(), weight.detach(), even))
        assert self._scales is not None
        for data, (mean, _) in zip((fixed, warped), self._scales, strict=True):
            if mean.shape[0] != data.shape[0]:
                raise ValueError(
                    f"wanted {mean.shape[0]} channels as in prepare, got {data.shape[0]}; call prepare for these images"
                )
        return self._scales


def scale_of(data: Tensor, weight: Tensor | None) -> Scale:
    """Weighted mean and standard deviation per channel, ``[C]`` float64; a constant channel has deviation 1."""
    with torch.no_grad():
        flat = data.detach().reshape(data.shape[0], -1).to(torch.float64)  # [C, N]
        w = torch.ones_like(flat[0]) if weight is None else weight.detach().reshape(-1).to(flat)
        total = w.sum().clamp_min(TINY)
        mean = (flat @ w) / total
        variance = ((flat - mean[:, None]) ** 2 @ w) / total
        flat_channel = variance <= _CONSTANT * (mean**2 + _NO_MEAN)
        return mean, torch.where(flat_channel, torch.ones_like(variance), variance).sqrt()


def standardise(data: Tensor, scale: Scale) -> Tensor:
    """``[C, *S]`` less the mean of each channel, over its deviation."""
    mean, deviation = scale
    shape = (-1, *(1,) * (data.ndim - 1))
    return (data - mean.to(data).reshape(shape)) / deviation.to(data).reshape(shape)


CHUNK = 1 << 15
"""Pixels whose features are held at once on the CPU: four features in float32 take half a megabyte, which stays in a core's
cache."""
CHUNK_ELSEWHERE = 1 << 24
"""The same on another device, whose cores are many, and whose time goes to starting each operation."""


def chunks(values: Tensor) -> list[slice]:
    """Cuts of the pixels of ``[C, N]`` that are handled one after another."""
    size = CHUNK if values.is_cpu else CHUNK_ELSEWHERE
    return [slice(start, start + size) for start in range(0, values.shape[-1], size)]


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean of values ``[C, *S]`` over channels and pixels, these under a weight ``[*S]``."""
    return (values * weight).sum() / (values.shape[0] * weight.sum().clamp_min(TINY))


def matched(warped: Tensor, fixed: Tensor, what: str) -> tuple[Tensor, Tensor]:
    """Both sides ``[C, *S]`` to be compared channel by channel: as they are, or each side's mean channel where they differ in
    number. ValueError for the metric ``ssd`` (``what``), which compares intensities themselves."""
    if warped.shape[0] == fixed.shape[0]:
        return warped, fixed
    if what == "ssd":
        raise ValueError(
            f"wanted as many moving as fixed channels for ssd, got {warped.shape[0]} and {fixed.shape[0]}; "
            "choose channels, or use the metric contrast"
        )
    return warped.mean(dim=0, keepdim=True), fixed.mean(dim=0, keepdim=True)


def correlation(covariance: Tensor, variance_x: Tensor, variance_y: Tensor, floor: float, signed: bool) -> Tensor:
    """Correlation, squared unless ``signed``; ``floor``, in the variances' unit, is added to them so that flat inputs give 0."""
    product = (variance_x + floor) * (variance_y + floor)
    return covariance * product.rsqrt() if signed else covariance * covariance / product


def box_sum(values: Tensor, radius: int) -> Tensor:
    """Sum over the box of ``2 radius + 1`` pixels around each pixel of ``[*S]``, zero outside; its own adjoint.

    Axis by axis, from sums over 1, 2, 4 … neighbours, each made of two of the one before: about ``2 log₂ radius``
    additions per pixel and axis, and, unlike with differences of running sums, nothing cancels.
    """
    for dim, length in enumerate(values.shape):
        r = min(radius, length - 1)
        if r < 1:
            continue
        padding = [0] * (2 * values.ndim)
        padding[2 * (values.ndim - 1 - dim)] = padding[2 * (values.ndim - 1 - dim) + 1] = r
        sums = torch.nn.functional.pad(values, padding)  # over `size` neighbours, from each on
        size, offset, rest = 1, 1, r  # 2 r + 1 in binary ends in 1
        values = sums.narrow(dim, 0, length)
        while rest:
            sums = sums.narrow(dim, 0, sums.shape[dim] - size) + sums.narrow(dim, size, sums.shape[dim] - size)
            size *= 2
            if rest & 1:
                values = values + sums.narrow(dim, offset, length)
                offset += size
            rest >>= 1
    return values


def flag(name: str, value: object) -> bool:
    """``value`` where it is true or false, else ValueError."""
    if not isinstance(value, bool):
        raise ValueError(f"wanted {name} to be true or false, got {value!r}")
    return value


def whole(name: str, value: object, least: int, unit: str = "") -> int:
    """``value`` where it is an integer of at least ``least``, else ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"wanted a {name} of at least {least}{unit}, got {value!r}")
    return value


def known(warped: Tensor, compute: Callable[[bool], tuple[Tensor, Tensor | None]]) -> Tensor:
    """The value of ``compute`` with its gradient attached to ``warped``; it can be differentiated once.

    Args:
        warped: ``[C, *S]``.
        compute: told whether the gradient is asked for, it returns the value and the gradient ``[C, *S]`` or None; it
            runs without a graph.
    """
    asked = warped.requires_grad and torch.is_grad_enabled()
    with torch.no_grad():
        value, gradient = compute(asked)
    if gradient is None:
        return value
    out: Tensor = _Known.apply(warped, value, gradient)  # type: ignore[no-untyped-call]  # torch leaves apply untyped
    return out


class _Known(torch.autograd.Function):
    """Attaches a gradient to a value that was computed along with it."""

    @staticmethod
    def forward(ctx: Any, warped: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad, None, None


class Memory(Generic[T]):
    """A result that depends on the fixed side and the weight alone, kept from call to call while both hold the same values.

    Copies of both are compared value by value, which costs a hundredth of what is saved and is right where a tensor was
    changed in place. On another device than the CPU that would wait for the device at every call: there both have to be the very
    tensors of the call before, unchanged by their count of versions. A copied or pickled metric begins with an empty memory.

    Args:
        by_tensor: whether that holds on the CPU too, for what costs little more to make than two images cost to compare.
    """

    def __init__(self, by_tensor: bool = False) -> None:
        self._by_tensor = by_tensor
        self._key: tuple[Tensor, ...] = ()
        self._versions: list[int] = []
        self._kept: T | None = None

    def get(self, key: tuple[Tensor, ...], make: Callable[[], T]) -> T:
        """The result of ``make`` from the last call where the tensors of ``key`` were equal, else a new one."""
        if self._kept is None or not self._known(key):
            self._key = ()  # the old result is let go before the new one takes its memory
            self._kept = None
            self._kept = make()
            copied = not self._by_tensor
            self._key = tuple(t.detach().clone() if copied and t.is_cpu else t for t in key)
            self._versions = [t._version for t in key]
        return self._kept

    def _known(self, key: tuple[Tensor, ...]) -> bool:
        if self._by_tensor or (key and not key[0].is_cpu):
            same = len(key) == len(self._key) and all(new is old for new, old in zip(key, self._key, strict=True))
            return same and [t._version for t in key] == self._versions
        return len(key) == len(self._key) and all(
            new.dtype == old.dtype and new.device == old.device and torch.equal(new, old)
            for new, old in zip(key, self._key, strict=True)
        )

    def __reduce__(self) -> tuple[type[Memory[T]], tuple[bool]]:
        return type(self), (self._by_tensor,)
