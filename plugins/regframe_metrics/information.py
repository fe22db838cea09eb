"""``mi`` and ``nmi``: how much one side's intensities tell of the other's, whatever the relation."""

from __future__ import annotations

import itertools
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

import regframe

from ._common import TINY, ImageMetric, Memory, Scale, Side, chunks, known, standardise, whole

OUTSIDE = 1e-3
"""Share of an image's pixels that lie beyond either end of the bins' range: 1 in 1000, so that a few very bright pixels, dust or
a scanner's mark, do not leave most bins empty."""

SAMPLE = 1 << 18
"""Pixels, evenly drawn, from which the range is taken at most: beyond either end lie 262 of them, a count known to 6 %."""

_POINT = 1e-12
"""Entropy of a joint histogram, in nats, below which all pixels lie in one bin: rounding."""

# Cubic B-spline: its weight for the bins b - 1 … b + 2, and its slope, as polynomials in t, 0 at b and 1 at b + 1. [4, power]
_SPLINE = torch.tensor(
    [[1, -3, 3, -1], [4, 0, -6, 3], [1, 3, 3, -3], [0, 0, 0, 1]], dtype=torch.float64
) / 6  # fmt: skip
_SLOPE = _SPLINE[:, 1:] * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
# Linear B-spline: its weight for the bins j and j + 1. [2, power]
_LINE = torch.tensor([[1, -1], [0, 1]], dtype=torch.float64)
_LINE_SLOPE = (_LINE[:, :, None, None] * _SLOPE).tolist()  # as numbers, [2, power, 4, power]


class _Axis(NamedTuple):
    """Lines through the space of a side's channels, along which intensities are binned.

    The position of intensities I ``[C]`` along line k is ``matrix[k] · I - offset[k]``: 0 at the lower end of the bins'
    range and 1 at the upper. ``matrix`` is ``[K, C]``, ``offset`` ``[K]``.
    """

    matrix: Tensor
    offset: Tensor


class MutualInformation(ImageMetric):
    """Minus the mutual information of the two sides in nats, from a joint histogram smoothed by B-splines.

    With p the weighted joint histogram over bins i (fixed) and j (moving), a pixel being shared out among 2 × 4 bins by
    a linear B-spline β₁ on the fixed side and a cubic one β₃ on the moving side::

        p_ij = Σ_x W β₁(i - f(x)) β₃(j - m(x)) / Σ_x W,    value = -Σ_ij p_ij log(p_ij / (p_i p_j))
        d value / dm(x) = Σ_ij W β₁(i - f) β₃'(j - m) log(p_ij / p_j) / Σ W

    (Mattes et al. 2003, "PET-CT image registration in the chest using free-form deformations"; Viola and Wells
    1997 for the idea; the sum over j of β₃' is 0, so terms of i alone and constants drop out.) The moving side
    needs a smooth kernel because it is differentiated; the fixed side's keeps grey values between two bins from being rounded.

    The splines are polynomials in the position t, s within a cell, so a pixel only adds W tᵖ s^q to the moments of its one cell;
    cells are spread to bins afterwards. The gradient is one polynomial per cell too, which every pixel of the cell reads.

    Several channels: each side is reduced to its first principal component (of its standardised channels, found in
    ``prepare``), with ``components`` > 1 to as many, and the value is the mean over all pairs of a fixed and a moving one. The
    bins reach over all but the `OUTSIDE` lowest and highest pixels of the image; values beyond are at the end, without gradient.

    Args:
        bins: how many on either side, 5 or more.
        components: how many principal components of either side, at most as many as it has channels.
    """

    name = "mi"
    likelihood = True
    _normalized: ClassVar[bool] = False

    def __init__(self, bins: int = 32, components: int = 1) -> None:
        super().__init__()
        self.bins = whole("number of bins", bins, 5)
        self.components = whole("number of components", components, 1)
        self._axes: tuple[_Axis, _Axis] | None = None
        self._lines: tuple[Memory[Tensor], Memory[Tensor]] = Memory(by_tensor=True), Memory(by_tensor=True)
        """The fixed and the moving image along their axes, as `fused` last saw them."""

    def _learn(self, fixed: Side, moving: Side) -> None:
        super()._learn(fixed, moving)
        assert self._scales is not None
        of_fixed, of_moving = (
            self._axis(side, scale) for side, scale in zip((fixed, moving), self._scales, strict=True)
        )
        self._axes = of_fixed, of_moving
        self._lines = Memory(by_tensor=True), Memory(by_tensor=True)

    def __call__(self, warped: Tensor, fixed: Tensor, weight: Tensor) -> Tensor:
        """0 for sides that tell nothing of each other; the better the lower, at most by log of the bins."""
        self._check(warped, fixed, weight)
        self._both_scales(warped, fixed, weight)
        return known(warped, lambda asked: self._compute(warped.detach(), fixed.detach(), weight.detach(), asked))

    def fused(
        self, path: regframe.ops.Path, moving: Tensor, fixed: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """The value of `__call__` and its gradients in two passes that hold nothing of the image's size
        (`regframe.ops.information`); None where there are more bins or components than the op takes.

        An image's positions along its axes are linear in its channels, so the moving ones are taken before the image is warped,
        once for all calls with the same two images.
        """
        if self._axes is None or self.bins > regframe.ops.MOST_BINS:
            return None
        if max(axis.matrix.shape[0] for axis in self._axes) > regframe.ops.MOST_LINES:
            return None
        self._both_scales(moving, fixed, weight)  # checks the channels
        of_fixed, of_moving = (
            memory.get((data,), lambda data=data, axis=axis: _along(data, axis))  # type: ignore[misc]  # bound now
            for memory, data, axis in zip(self._lines, (fixed, moving), self._axes, strict=True)
        )
        found = regframe.ops.information(path, of_moving, of_fixed, weight, self.bins, self._normalized)
        return found.value, found.velocity_grad, found.matrix_grad

    def _axis(self, side: Side, scale: Scale) -> _Axis:
        """Principal components of the standardised channels and their range, among the pixels that count."""
        with torch.no_grad():
            flat = side.data.detach().reshape(side.data.shape[0], -1)  # [C, N]
            keep = None if side.weight is None else side.weight.detach().reshape(-1) > 0
            if keep is not None and bool(keep.any()):
                flat = flat[:, keep]
            sample = standardise(flat[:, :: max(1, -(-flat.shape[1] // SAMPLE))].to(torch.float64), scale)  # [C, n]
            if sample.shape[0] == 1:
                lines = torch.ones((1, 1), dtype=torch.float64, device=sample.device)
            else:
                centred = sample - sample.mean(dim=1, keepdim=True)
                lines = torch.linalg.eigh(centred @ centred.T).eigenvectors.T.flip(0)[: self.components]  # [K, C]
            along = (lines @ sample).sort(dim=1).values  # [K, n]
            n = along.shape[1]
            skip = int(OUTSIDE * n)
            low, high = along[:, skip], along[:, n - 1 - skip]
            narrow = high <= low  # few pixels differ at all: all of them count
            low, high = torch.where(narrow, along[:, 0], low), torch.where(narrow, along[:, -1], high)
            width = torch.where(high > low, high - low, torch.ones_like(low))
            matrix = lines / (scale[1] * width[:, None])  # [K, C]
            return _Axis(matrix, matrix @ scale[0] + low / width)

    def _compute(self, warped: Tensor, fixed: Tensor, weight: Tensor, asked: bool) -> tuple[Tensor, Tensor | None]:
        """Value and, if asked for, gradient ``[C_m, *S]``, in two passes over chunks: moments of the cells, then gradients."""
        assert self._axes is not None
        x_all, y_all, w_all = warped.reshape(warped.shape[0], -1), fixed.reshape(fixed.shape[0], -1), weight.reshape(-1)
        of_fixed, of_moving = (_Axis(*(t.to(x_all) for t in axis)) for axis in self._axes)
        n_f, n_m = of_fixed.matrix.shape[0], of_moving.matrix.shape[0]
        pairs = list(itertools.product(range(n_f), range(n_m)))
        rows, columns = self.bins - 1, self.bins - 3  # cells: between two bins, and where four bins are in reach
        moments = torch.zeros((n_f, n_m, 8, rows * columns), dtype=torch.float64, device=x_all.device)
        parts, kept = chunks(x_all), []
        for part in parts:
            w = w_all[part].to(x_all)
            row, s, _ = _cells(y_all[:, part], of_fixed, rows)  # [K_f, n]
            column, t, inside = _cells(x_all[:, part], of_moving, columns)  # [K_m, n]
            for i, k in pairs:
                cell = torch.add(column[k], row[i], alpha=columns)
                counts = x_all.new_zeros((8, rows * columns))
                share = w
                for power in range(4):
                    counts[power].index_add_(0, cell, share)
                    counts[4 + power].index_add_(0, cell, share * s[i])
                    share = share * t[k]
                moments[i, k] += counts
            if asked:
                kept.append((row, s, column, t, inside))
        total = w_all.sum(dtype=torch.float64).clamp_min(TINY)
        value = torch.zeros((), dtype=torch.float64, device=x_all.device)
        tables = []
        for i, k in pairs:
            one, slope = self._value(_spread(moments[i, k], rows, columns) / total)
            value += one / len(pairs)
            tables.append(_polynomials(slope, columns).to(x_all))  # [cells, 8]
        if not asked:
            return value.to(warped.dtype), None
        gradient = torch.empty_like(x_all)
        scale = (columns / (len(pairs) * total)).to(x_all)
        for part, (row, s, column, t, inside) in zip(parts, kept, strict=True):
            along = torch.zeros_like(t)  # [K_m, n]
            for (i, k), table in zip(pairs, tables, strict=True):
                read = table.index_select(0, torch.add(column[k], row[i], alpha=columns))  # [n, 8]
                first, second, third = (torch.addcmul(read[:, p], read[:, 4 + p], s[i]) for p in range(3))
                along[k] += third.mul_(t[k]).add_(second).mul_(t[k]).add_(first)
            along.mul_(inside).mul_(w_all[part].to(x_all) * scale)
            gradient[:, part] = of_moving.matrix.T @ along
        return value.to(warped.dtype), gradient.reshape(warped.shape)

    def _value(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """Value of a joint histogram ``[bins, bins]`` (fixed, moving) of sum 1, and its slope in each bin, without the terms that
        drop out of the gradient."""
        joint, of_fixed, of_moving = _logs(p)
        return -(p * (joint - of_fixed - of_moving)).sum(), of_moving - joint


class NormalizedMutualInformation(MutualInformation):
    """Two minus the normalised mutual information (H(fixed) + H(moving)) / H(both): 0 for a one-to-one relation, 1 for none.

    Entropies are those of the histogram of ``mi``, whose options it shares; dividing by the joint entropy makes
    up for how much of either image is in the overlap (Studholme et al. 1999, "An overlap invariant entropy measure of 3D medical
    image alignment"). Its scale is free: it is no likelihood.
    """

    name = "nmi"
    likelihood = False
    _normalized = True

    def _value(self, p: Tensor) -> tuple[Tensor, Tensor]:
        joint, of_fixed, of_moving = _logs(p)
        entropy = -(p * joint).sum()
        alone = entropy <= _POINT  # one bin, which tells nothing
        entropy = entropy.clamp_min(_POINT)
        ratio = -(p * (of_fixed + of_moving)).sum() / entropy
        slope = (of_moving - ratio * joint) / entropy
        return torch.where(alone, 1.0, 2 - ratio), torch.where(alone, 0.0, slope)


def _along(data: Tensor, axis: _Axis) -> Tensor:
    """Positions ``[K, *S]`` of an image ``[C, *S]`` along the lines of an axis."""
    with torch.no_grad():
        flat = data.detach().reshape(data.shape[0], -1)
        out = axis.matrix.to(flat) @ flat
        return out.sub_(axis.offset.to(flat)[:, None]).reshape(-1, *data.shape[1:])


def _cells(data: Tensor, axis: _Axis, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of ``[C, n_px]``: the cell (int64), the position in it in 0 … 1, and whether in range, each ``[K, n_px]``."""
    along = (axis.matrix @ data).sub_(axis.offset[:, None]).mul_(n)
    inside = (along >= 0) & (along <= n)
    along.clamp_(0, n)
    cell = along.floor().clamp_max_(n - 1)
    return cell.to(torch.int64), along.sub_(cell), inside


def _spread(moments: Tensor, rows: int, columns: int) -> Tensor:
    """Bins ``[rows + 1, columns + 3]`` of the moments ``[8, rows * columns]`` (powers of t, then of t times s) of cells."""
    cells = moments.reshape(2, 4, rows, columns)
    shares = torch.einsum("aq,bp,qprc->abrc", _LINE.to(moments), _SPLINE.to(moments), cells)
    out = moments.new_zeros((rows + 1, columns + 3))
    for a in range(2):
        for b in range(4):
            out[a : a + rows, b : b + columns] += shares[a, b]
    return out.clamp_min_(0)  # a bin of nothing may come out of its moments as less, by rounding


def _polynomials(slope: Tensor, columns: int) -> Tensor:
    """The slope of the value in a pixel's moving position, as a polynomial per cell ``[cells, 8]``.

    ``slope`` ``[bins, bins]`` is that of the value in each bin; the coefficients are those of 1, t, t², none, and these times s.
    """
    rows = slope.shape[0] - 1
    out = slope.new_zeros((2, 4, rows, columns))
    for a in range(2):
        for b in range(4):
            reached = slope[a : a + rows, b : b + columns]
            for q in range(2):
                for p in range(3):
                    out[q, p].add_(reached, alpha=_LINE_SLOPE[a][q][b][p])
    return out.reshape(8, rows * columns).T.contiguous()


def _logs(p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logarithms of a joint histogram and of both its margins, 0 for empty bins, each to be broadcast over ``[bins, bins]``."""
    margins = p, p.sum(dim=1, keepdim=True), p.sum(dim=0, keepdim=True)
    joint, of_fixed, of_moving = (torch.where(q > 0, q, torch.ones_like(q)).log() for q in margins)
    return joint, of_fixed, of_moving
