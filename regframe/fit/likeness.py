"""How alike two aligned images are: contrast map, shared fine structure, coincidence, number of independent observations."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from .velocity import smooth_size

CORRELATION_LIMIT = 30.0
"""Largest number of pixels per independent observation, however smooth the residual: a smooth image never counts as none."""


def fit_contrast(warped: Tensor, fixed: Tensor, weight: Tensor, order: int = 1, ridge: float = 1e-4) -> Tensor:
    """Apply the contrast map ``f_θ``: each fixed channel as a polynomial of the moving channels, by weighted ridge regression.

    Args:
        warped: ``[C_m, *S]``.
        fixed: ``[C_f, *S]``.
        weight: ``[*S]`` ≥ 0.
        order: highest power of each channel.
        ridge: strength of the ridge, over the mean variance of the features.

    Returns:
        ``f_θ(warped)`` ``[C_f, *S]``, detached.
    """
    with torch.no_grad():
        flat, w = fixed.reshape(fixed.shape[0], -1), weight.reshape(-1)
        features = torch.cat([warped.reshape(warped.shape[0], -1) ** p for p in range(1, order + 1)])  # [F, N]
        n = features.shape[0]
        total = w.sum(dtype=torch.float64).clamp(min=1e-12)
        both = torch.cat([features, flat])  # [F + C_f, N]
        mean = ((both @ w).to(torch.float64) / total).to(both.dtype)
        both -= mean[:, None]
        products = ((both[:n] * w) @ both.T).to(torch.float64) / total  # [F, F + C_f]
        gram, cross = products[:, :n], products[:, n:]
        gram = gram + ridge * (gram.diagonal().mean() + 1e-12) * torch.eye(n, dtype=gram.dtype, device=gram.device)
        theta: Tensor = torch.linalg.solve(gram, cross).to(features.dtype)
        return torch.addmm(mean[n:, None], theta.T, both[:n]).reshape(fixed.shape)


BLOCK = 8
"""Side in pixels of the blocks whose mean is subtracted. The fine structure that remains shows cells rather than outlines."""


def shared_structure(predicted: Tensor, fixed: Tensor, weight: Tensor) -> float:
    """Squared correlation, 0 … 1, of the fine structure of two images (each minus the mean of its blocks of `BLOCK` pixels).

    About 0.9 for two images of one section, about 0 for neighbouring sections, whose cells are other cells. A negative
    correlation counts as 0.

    Args:
        predicted: the contrast-mapped moving image ``[C, *S]``.
        fixed: ``[C, *S]``.
        weight: ``[*S]``.
    """
    p, w = _fine(predicted, weight)
    f, _ = _fine(fixed, weight)
    every = tuple(range(1, p.ndim))
    product = (p * f * w).sum(dim=every).clamp(min=0)
    squares = ((p * p * w).sum(dim=every) * (f * f * w).sum(dim=every)).clamp(min=1e-12)
    return float((product.square() / squares).mean())


def _fine(data: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """``data`` ``[C, *S]`` minus the weighted mean of each block of `BLOCK` pixels, and its weight, both cut to whole blocks."""
    sizes = [min(BLOCK, n) for n in weight.shape]
    inside = tuple(slice(0, n // b * b) for n, b in zip(weight.shape, sizes, strict=True))
    split = [m for n, b in zip(weight.shape, sizes, strict=True) for m in (n // b, b)]
    within = tuple(range(2, 2 * len(sizes) + 1, 2))
    weight, data = weight[inside], data[(slice(None), *inside)]
    w, parts = weight.reshape(1, *split), data.reshape(data.shape[0], *split)
    mean = (parts * w).sum(dim=within, keepdim=True) / w.sum(dim=within, keepdim=True).clamp(min=1e-6)
    return (parts - mean).reshape(data.shape), weight


BESIDE = 6
"""Shift in pixels along an axis from which on the match of fine structure is independent of the match in place."""


def coincidence(predicted: Tensor, fixed: Tensor, weight: Tensor) -> float:
    """Standard deviations by which the fine structure of two images correlates better in place than when shifted.

    The correlation in place is compared with those under all other whole-pixel shifts that leave at least a third of the overlap;
    these show what chance, outlines and common periods contribute. Right alignments reach 10 and more where any structure is
    shared; wrong ones stay under 10, mostly under 6.

    Args:
        predicted: the contrast-mapped moving image ``[C, *S]``.
        fixed: ``[C, *S]``.
        weight: ``[*S]``; pixels with more than 0.5 count.

    Returns:
        The number of standard deviations; 0 where the overlap is too small to tell.
    """
    seen = (weight > 0.5).to(fixed.dtype)
    p, w = _fine(predicted, seen)
    f, _ = _fine(fixed, seen)
    size = [smooth_size(2 * n) for n in w.shape]
    dims = tuple(range(-len(size), 0))
    spectrum, mask = torch.fft.rfftn(p * w, s=size, dim=dims), torch.fft.rfftn(w, s=size, dim=dims)
    product = (spectrum.conj() * torch.fft.rfftn(f * w, s=size, dim=dims)).sum(dim=0)
    pairs = torch.fft.irfftn(mask.conj() * mask, s=size, dim=dims).clamp(min=1.0)
    score = torch.fft.irfftn(product, s=size, dim=dims) / pairs.sqrt()  # a sum over n pairs varies by chance with √n
    first = (0,) * w.ndim
    elsewhere = pairs > pairs[first] / 3
    near = torch.zeros_like(elsewhere)
    near[tuple(slice(0, BESIDE) for _ in size)] = True
    for d in range(w.ndim):
        near = near | near.roll(1 - BESIDE, dims=d)
    values = score[elsewhere & ~near]
    if values.numel() < 64 or not float(values.std()) > 0:
        return 0.0
    return float((score[first] - values.mean()) / values.std())


TILE = 256
"""Pixels along an axis above which the residual is examined in parts of half this size, to save time and memory."""
TILES = 4
"""Number of parts along each such axis, spread evenly."""


def correlation_area(residual: Tensor, weight: Tensor) -> float:
    """Pixels per independent observation of a residual: its integrated squared autocorrelation ``Σ_r ρ(r)²``.

    This is Bartlett's formula for the effective sample size: 1 for white noise, about ``l^D`` for structure of size ``l``
    pixels. ρ is the weighted autocorrelation (by zero-padded FFT). Images of more than `TILE` pixels along an axis are
    examined in parts.

    Args:
        residual: ``[C, *S]``.
        weight: ``[*S]``.
    """
    parts = [
        [slice(None)]
        if n <= TILE
        else [slice(o, o + TILE // 2) for o in torch.linspace(0, n - TILE // 2, TILES).round().long().tolist()]
        for n in weight.shape
    ]
    dims = tuple(range(1, residual.ndim))
    mean = (residual * weight).sum(dim=dims, keepdim=True) / weight.sum().clamp(min=1e-12)
    size = [n if n <= TILE else TILE // 2 for n in weight.shape]
    reach = [max(4, n // 8) for n in size]  # largest lag in pixels: small enough to occur in many pairs
    shape = [smooth_size(n + r) for n, r in zip(size, reach, strict=True)]
    power = pairs_power = torch.zeros((), device=residual.device)
    for part in itertools.product(*parts):
        w = weight[part]
        r = (residual[(slice(None), *part)] - mean) * w
        power = power + torch.fft.rfftn(r, s=shape, dim=dims).abs().square().sum(dim=0)
        pairs_power = pairs_power + torch.fft.rfftn(w, s=shape).abs().square()
    auto, pairs = torch.fft.irfftn(power, s=shape), torch.fft.irfftn(pairs_power, s=shape)
    peak = float(auto.reshape(-1)[0] / pairs.reshape(-1)[0].clamp(min=1e-12))
    if not peak > 0:
        return 1.0
    enough = pairs > 0.1 * pairs.reshape(-1)[0]
    for d, (n, most) in enumerate(zip(shape, reach, strict=True)):
        lag = torch.arange(n, device=enough.device)
        lag = torch.minimum(lag, n - lag)
        enough = enough & (lag <= most).reshape([-1 if i == d else 1 for i in range(len(shape))])
    pairs = pairs.clamp(min=1e-12)
    rho = torch.where(enough, auto / pairs / peak, torch.zeros_like(auto))
    # by chance alone the squared sample correlation of n pairs is area / n in the mean; dividing by 1 + chance removes that
    chance = float(torch.where(enough, 1 / pairs.clamp(min=1.0), torch.zeros_like(pairs)).sum())
    area = float((rho**2).sum()) / (1 + chance)
    return min(max(area, 1.0), CORRELATION_LIMIT)
