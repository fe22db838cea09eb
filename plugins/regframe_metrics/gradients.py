"""``ngf``: edges compared by their direction alone."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ._common import TINY, ImageMetric, Memory, Side, known


class _Stencil(NamedTuple):
    """Weights of the difference between each two neighbours along one axis, ``[*S]`` less one pixel along it: in the derivative
    at the pixel ``before`` the gap and in that at the pixel ``after`` it."""

    before: Tensor
    after: Tensor


class _Fixed(NamedTuple):
    """All that depends on the weight and the fixed side alone.

    Args:
        stencils: one per axis, None where the axis is one pixel long.
        share: weight of each pixel in the value ``[*S]``; they sum to 1.
        tensor: components ``[*S]`` of the fixed side's normalised structure tensor, the upper triangle row by row.
    """

    stencils: list[_Stencil | None]
    share: Tensor
    tensor: list[Tensor]


class NGF(ImageMetric):
    """One minus the squared cosine between the two gradients: normalised gradient fields, blind to polarity place by place.

    For one channel a side::

        value = Σ W (1 - ⟨n_m, n_f⟩²) / Σ W,   n = ∇I / √(|∇I|² + η²)

    (Haber and Modersitzki 2006, "Intensity gradient based registration and fusion of multi-modal images"). Several
    channels, any number on either side, give each side its structure tensor S = Σ_c ∇I_c ∇I_cᵀ; the
    squared scalar product becomes the trace of the tensors' product, which equals it for one channel::

        r = tr(S_m S_f) / ((tr S_m + η_m²) (tr S_f + η_f²)),   dr/d∇I_c = 2 (P ∇I_c - r ∇I_c) / (tr S_m + η_m²)

    with P = S_f / (tr S_f + η_f²). Channels are standardised, gradients taken per pixel (axes weighed by the spacing, where
    it differs between them). η is chosen in ``prepare``: ``edge`` times the mean of √(tr S) over the image (the rule of that
    paper, where ``edge`` is the noise level); flatter places count as unexplained.

    The derivative at x is the mean of the differences to the pixels after and before, each weighted by W of the
    pixel that it reads: central where both are seen, one-sided beside a border or a hidden pixel.

    Args:
        edge: gradient above which a place is an edge, in mean gradients of its image.
    """

    name = "ngf"

    def __init__(self, edge: float = 1.0) -> None:
        super().__init__()
        if isinstance(edge, bool) or not (isinstance(edge, (int, float)) and math.isfinite(edge) and edge > 0):
            raise ValueError(f"wanted a positive edge, got {edge!r}")
        self.edge = float(edge)
        self._eta = (1.0, 1.0)
        self._per_pixel: tuple[float, ...] = ()
        self._memory: Memory[_Fixed] = Memory()

    def _learn(self, fixed: Side, moving: Side) -> None:
        super()._learn(fixed, moving)
        assert self._scales is not None
        self._memory = Memory()
        self._per_pixel = _relative(fixed.spacing)
        eta_f, eta_m = (self._mean_gradient(*pair) for pair in zip((fixed, moving), self._deviations, strict=True))
        self._eta = self.edge * eta_f, self.edge * eta_m

    def __call__(self, warped: Tensor, fixed: Tensor, weight: Tensor) -> Tensor:
        """0 where all edges agree in direction, 1 where none do."""
        self._check(warped, fixed, weight)
        self._both_scales(warped, fixed, weight)
        deviation_f, deviation_m = self._deviations
        memory = self._memory.get((fixed, weight), lambda: self._look(fixed.detach(), weight.detach(), deviation_f))
        return known(warped, lambda asked: self._compute(warped.detach(), deviation_m, memory, asked))

    def _mean_gradient(self, side: Side, deviation: list[float]) -> float:
        """Weighted mean of √(tr S) of the standardised image; 1 where it is constant."""
        with torch.no_grad():
            data = side.data.detach() if side.data.is_floating_point() else side.data.to(torch.float32)
            weight = torch.ones_like(data[0]) if side.weight is None else side.weight.detach().to(data)
            stencils = _stencils(weight, _relative(side.spacing))
            trace = torch.zeros_like(weight)
            for channel, factor in zip(data, _inverse(deviation), strict=True):
                for part in _gradient(channel, stencils, factor):
                    trace.addcmul_(part, part)
            total = float(weight.sum(dtype=torch.float64))
            mean = float((trace.sqrt_() * weight).sum(dtype=torch.float64)) / max(total, TINY)
            return mean if mean > 0 else 1.0

    def _look(self, fixed: Tensor, weight: Tensor, deviation: list[float]) -> _Fixed:
        """Stencils of the weight, and the fixed side's normalised structure tensor."""
        with torch.no_grad():
            w = weight.to(fixed)
            stencils = _stencils(w, self._per_pixel)
            ndim = w.ndim
            tensor = [torch.zeros_like(w) for _ in range(ndim * (ndim + 1) // 2)]
            for channel, factor in zip(fixed, _inverse(deviation), strict=True):
                parts = _gradient(channel, stencils, factor)
                for k, (i, j) in enumerate(_upper(ndim)):
                    tensor[k].addcmul_(parts[i], parts[j])
            trace = torch.full_like(w, self._eta[0] ** 2)
            for k, (i, j) in enumerate(_upper(ndim)):
                if i == j:
                    trace += tensor[k]
            total = w.sum(dtype=torch.float64).clamp_min(TINY)
            return _Fixed(stencils, w / total.to(w), [part.div_(trace) for part in tensor])

    def _compute(
        self, data: Tensor, deviation: list[float], fixed: _Fixed, asked: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Value and, if asked for, gradient ``[C, *S]`` in ``data`` ``[C, *S]``."""
        ndim = fixed.share.ndim
        factors = _inverse(deviation)
        gradients, turned = [], []  # ∇I_c and P ∇I_c
        above = torch.zeros_like(fixed.share)
        below = torch.full_like(fixed.share, self._eta[1] ** 2)
        for channel, factor in zip(data, factors, strict=True):
            parts = _gradient(channel, fixed.stencils, factor)
            image = [torch.zeros_like(part) for part in parts]
            for k, (i, j) in enumerate(_upper(ndim)):
                image[i].addcmul_(fixed.tensor[k], parts[j])
                if i != j:
                    image[j].addcmul_(fixed.tensor[k], parts[i])
            for part, other in zip(parts, image, strict=True):
                above.addcmul_(part, other)
                below.addcmul_(part, part)
            gradients.append(parts)
            turned.append(image)
        r = above.div_(below)
        value = ((1 - r) * fixed.share).sum(dtype=torch.float64)
        if not asked:
            return value.to(data.dtype), None
        slope = (fixed.share / below).mul_(-2)
        gradient = torch.zeros_like(data)
        for out, parts, image, factor in zip(gradient, gradients, turned, factors, strict=True):
            for d, (part, other, stencil) in enumerate(zip(parts, image, fixed.stencils, strict=True)):
                if stencil is not None:
                    _adjoint(out, other.addcmul_(r, part, value=-1).mul_(slope).mul_(factor), stencil, d)
        return value.to(data.dtype), gradient


def _inverse(values: list[float]) -> list[float]:
    """One over each of some numbers."""
    return [1 / value for value in values]


def _upper(ndim: int) -> list[tuple[int, int]]:
    """Row and column of the upper triangle of a matrix ``[ndim, ndim]``, row by row."""
    return [(i, j) for i in range(ndim) for j in range(i, ndim)]


def _relative(spacing: tuple[float, ...]) -> tuple[float, ...]:
    """Spacings over their geometric mean, without a unit: 1 for isotropic pixels."""
    mean = math.prod(spacing) ** (1 / len(spacing))
    return tuple(s / mean for s in spacing)


def _stencils(weight: Tensor, spacing: tuple[float, ...]) -> list[_Stencil | None]:
    """The weights of the differences along each axis: no pixel of weight > 0 reads one of weight 0."""
    out: list[_Stencil | None] = []
    for d, (n, step) in enumerate(zip(weight.shape, spacing, strict=True)):
        if n < 2:
            out.append(None)
            continue
        first, last = weight.narrow(d, 0, n - 1), weight.narrow(d, 1, n - 1)
        both = torch.zeros_like(weight)
        both.narrow(d, 0, n - 1).add_(last)
        both.narrow(d, 1, n - 1).add_(first)
        both.clamp_min_(TINY).mul_(step)
        out.append(_Stencil(last / both.narrow(d, 0, n - 1), first / both.narrow(d, 1, n - 1)))
    return out


def _gradient(channel: Tensor, stencils: list[_Stencil | None], factor: float) -> list[Tensor]:
    """Derivatives ``[*S]`` of ``factor`` times a channel ``[*S]`` along each axis."""
    out = []
    for d, stencil in enumerate(stencils):
        n = channel.shape[d]
        part = torch.zeros_like(channel)
        if stencil is not None:
            change = (channel.narrow(d, 1, n - 1) - channel.narrow(d, 0, n - 1)).mul_(factor)
            part.narrow(d, 0, n - 1).addcmul_(change, stencil.before)
            part.narrow(d, 1, n - 1).addcmul_(change, stencil.after)
        out.append(part)
    return out


def _adjoint(out: Tensor, part: Tensor, stencil: _Stencil, d: int) -> None:
    """Add to ``out`` ``[*S]`` the gradient in the channel that a gradient ``part`` ``[*S]`` in its derivative along axis ``d``
    leads to: the adjoint of `_gradient`."""
    n = part.shape[d]
    change = (part.narrow(d, 0, n - 1) * stencil.before).addcmul_(part.narrow(d, 1, n - 1), stencil.after)
    out.narrow(d, 1, n - 1).add_(change)
    out.narrow(d, 0, n - 1).sub_(change)
