"""The images that the pose search compares: intensity and edges of one side at several resolutions, with weights.

An "octave" is a halving of the resolution; octave 0 is the finest.

Where a constant names no source, neither a paper nor a calibration is recorded for it; ``benchmarks/ACCURACY.md`` (any pose,
crops) shows what they achieve together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import Grid
from ..fit.halvings import Halvings, halve

FINEST = {2: 320, 3: 128}
"""Largest length of the longest side of the finest image (octave 0), in pixels, by the number of axes: the pose search needs no
more."""
COARSEST = 64
"""Pixels along the longer side at or below which an octave is used to measure how far the tissue extends."""
EMPTY = 0.2
"""Weight of a pixel without any contrast, over that of others: clean background tells a little about where the tissue ends."""
LEAP = 0.75
"""Root mean square difference, in standard deviations of the image, between an area of constant colour and the ring around it.
Above it the area is filled-in canvas; below it the image fades into it, as into its background."""
DRAWING = 0.1
"""Least share of pixels with contrast for constant areas to lose weight. An image with less of it is a drawing, whose constant
areas are its content and keep full weight."""
CONSTANT = 0.01
"""Difference between neighbouring pixels, in standard deviations of the image, below which they count as constant."""

FLAT = 0.3
"""Variance, over that of the fine structure of the whole side, that is added to a neighbourhood's before its contrast is evened:
noise of flat neighbourhoods is not blown up to structure. Set on made pairs of `benchmarks.proving`, seeds 300 to 309."""


@dataclass(frozen=True)
class View:
    """One side at one octave.

    Args:
        data: intensity and edge strength ``[2, *S]``, each with weighted mean 0 and variance 1.
        weight: weight of each pixel ``[*S]``, 0 … 1.
        grid: the pixels' grid in the side's normalised frame.
    """

    data: Tensor
    weight: Tensor
    grid: Grid

    @property
    def outlines(self) -> Tensor:
        """Edge strength ``[*S]`` above that of what has none: the least, or in a volume, of which noise outside may be the larger
        part, the median."""
        edges = self.data[1]
        return (edges - (edges.min() if edges.ndim == 2 else edges.median())).clamp(min=0)


class Views:
    """One side of a pair at every octave, as the pose search compares it.

    Intensity is the first principal component of the channels; edge strength is the magnitude of their gradient, taken one
    octave finer. Neither depends on a stain's colour, except for the sign of the intensity, which the comparison ignores.

    Args:
        side: an image or a volume; the weight of its pixels is kept.
    """

    def __init__(self, side: Halvings) -> None:
        self.ndim = ndim = side.grid.ndim
        data, mask, grid = side.at(side.times_until(lambda grid: max(grid.shape) <= FINEST[ndim]))
        weight = trust(data, filled=side.image.counted is None)
        if side.stained is not None:
            stained = side.stained[None, None].to(weight.dtype)
            tissue = F.interpolate(stained, size=tuple(weight.shape), mode="area")[0, 0]
            weight = torch.minimum(weight, EMPTY + (1 - EMPTY) * tissue)
        if mask is not None:
            weight = weight * mask
        known = (weight > 0).to(data.dtype)  # pixels of weight 0 must not be averaged into others, on any octave
        mean = ((data * weight).flatten(1).sum(dim=1) / weight.sum().clamp(min=1e-6)).reshape(-1, *(1,) * ndim)
        stack = torch.cat([(data - mean) * known, known[None], weight[None]])
        self._stacks = [(stack, grid)]
        while axes := _halved(grid):
            stack, grid = halve(stack, grid, axes)
            self._stacks.append((stack, grid))
        self._views: dict[int, View] = {}
        self._axis = _principal(data - mean, weight)
        octave = 0
        while octave + 1 < len(self._stacks) and max(self._stacks[octave][1].shape) > COARSEST:
            octave += 1
        view = self._view(octave)
        energy = mean_around((view.weight * view.outlines)[None, None], 5)
        spread = float(energy.sum()) ** 2 / max(float(energy.square().sum()), 1e-12)  # pixels the edges spread over
        spread = max(spread, float(view.weight.sum()) / 4**ndim, 4.0)
        self.extent = (spread * math.prod(view.grid.spacing)) ** (1 / ndim)
        """Side length of a square or cube as large as the tissue, in the side's normalised frame."""

    def at(self, spacing: float) -> View:
        """The coarsest view whose pixels are no larger than about ``spacing``, or the finest there is."""
        octave = 0
        while octave + 1 < len(self._stacks) and max(self._stacks[octave + 1][1].spacing) <= 1.1 * spacing:
            octave += 1
        return self._view(octave)

    def _view(self, octave: int) -> View:
        if octave not in self._views:
            stack, grid = self._stacks[octave]
            weight = stack[-1]
            intensity = (_clean(stack)[0] * self._axis).sum(dim=0)
            finer, finer_grid = self._stacks[max(octave - 1, 0)]
            edges = _slope(*_clean(finer), finer_grid.spacing)[None, None]
            if octave > 0:
                shrink: Any = F.adaptive_avg_pool2d if weight.ndim == 2 else F.adaptive_avg_pool3d
                edges = shrink(edges, tuple(weight.shape))
            edges = mean_around(edges, 3, inside=True)[0, 0]
            data = torch.stack([intensity, edges])
            total, dims = weight.sum().clamp(min=1e-6), tuple(range(1, data.ndim))
            data = data - (data * weight).sum(dim=dims, keepdim=True) / total
            deviation = ((data * data * weight).sum(dim=dims, keepdim=True) / total).sqrt()
            self._views[octave] = View(data / deviation.clamp(min=1e-6), weight, grid)
        return self._views[octave]


class Fine(Views):
    """The fine structure of one side: `Views` less their means over neighbourhoods, at about the same contrast everywhere.

    Outlines and shades, which fit at many wrong poses, are gone; what is left fits at the right one alone, and only near it.

    Args:
        side: what is compared as a whole.
        local: pixels across a neighbourhood, of an image of the spacing that is asked for.
    """

    def __init__(self, side: Views, local: int) -> None:
        self.ndim, self.extent = side.ndim, side.extent
        self._side, self._local = side, local
        self._fine: dict[tuple[int, int], View] = {}

    def at(self, spacing: float) -> View:
        """`Views.at`, with the mean and the contrast of neighbourhoods of ``local`` times ``spacing`` taken out."""
        view = self._side.at(spacing)
        width = max(3, 2 * round((self._local * spacing / max(view.grid.spacing) - 1) / 2) + 1)
        key = id(view), width
        if key not in self._fine:
            self._fine[key] = _evened(view, width)
        return self._fine[key]


def _evened(view: View, width: int) -> View:
    """A view less its mean over neighbourhoods of ``width`` pixels, over the deviation there (`FLAT`)."""
    weight, dims = view.weight, tuple(range(1, view.data.ndim))
    near = mean_around(weight[None, None], width)[0].clamp(min=1e-6)
    total = weight.sum().clamp(min=1e-6)

    def local(values: Tensor) -> Tensor:
        return mean_around((values * weight)[None], width)[0] / near

    def mean(values: Tensor) -> Tensor:
        return (values * weight).sum(dim=dims, keepdim=True) / total

    data = view.data - local(view.data)
    square = data * data
    data = data / (local(square) + FLAT * mean(square)).sqrt().clamp(min=1e-6)
    data = data - mean(data)
    return View(data / mean(data * data).sqrt().clamp(min=1e-6), weight, view.grid)


def _halved(grid: Grid) -> list[int]:
    """The axes along which an octave has half the pixels of the one before; none where it is the last."""
    finest = min(grid.spacing)
    if grid.ndim == 2:
        return [0, 1] if min(grid.shape) >= 16 else []
    return [d for d in range(grid.ndim) if grid.spacing[d] < 1.5 * finest and grid.shape[d] >= 16]


def mean_around(values: Tensor, width: int, inside: bool = False) -> Tensor:
    """The mean over squares or cubes of ``width`` pixels of values ``[N, C, *S]``, beyond whose border lie zeros, or with
    ``inside`` nothing."""
    for d in range(2, values.ndim):  # axis by axis, which is faster
        values = _mean_along(values, d, width, inside)
    return values


def _mean_along(values: Tensor, axis: int, width: int, inside: bool) -> Tensor:
    """`mean_around` along one axis alone.

    The axes behind it are handed to the kernel as channels, of which it takes many at a time: several times as fast as windows
    along the last axis, and the same sums.
    """
    last = axis == values.ndim - 1
    if last:  # has no axis behind it: the one before it becomes that
        values, axis = values.mT.contiguous(), axis - 1
    before, behind = values.shape[:axis], values.shape[axis + 1 :]
    flat = values.reshape(math.prod(before), values.shape[axis], 1, math.prod(behind)).permute(0, 3, 1, 2)
    out = F.avg_pool2d(flat, (width, 1), 1, (width // 2, 0), count_include_pad=not inside)
    out = out.permute(0, 2, 3, 1).reshape(*before, out.shape[2], *behind)
    return out.mT.contiguous() if last else out


def trust(data: Tensor, filled: bool = True) -> Tensor:
    """The weight of each pixel ``[*S]`` of an image ``[C, *S]``: `EMPTY` where it is constant, 0 where it was filled in.

    A constant area is background where the image fades into it. Where the image leaps to it (`LEAP`), the area lies beyond
    what was recorded, such as the corners of a turned image. Around an organ cut out of a volume it leaps, too, but the organ's
    surface is real: nothing of a volume is taken for filled in. Nor is anything of a density (`Image.counted`): it leaps at the
    outline of the tissue, beyond which things were looked for and none were found.

    Args:
        data: the image ``[C, *S]``.
        filled: whether constant areas may be canvas; False for densities.
    """
    shape = data.shape[1:]
    change = torch.zeros(shape, dtype=data.dtype)
    for d, n in enumerate(shape, start=1):
        after = torch.cat([data.narrow(d, 1, n - 1), data.narrow(d, n - 1, 1)], dim=d)
        before = torch.cat([data.narrow(d, 0, 1), data.narrow(d, 0, n - 1)], dim=d)
        change = torch.maximum(change, (after - before).abs().amax(dim=0))
    constant = _shrunk(change < CONSTANT, 1)  # drop areas under 3 x 3 pixels, which may be alike by chance
    constant = _grown(constant, 1)
    out = torch.ones(shape, dtype=torch.float32)
    out[constant] = EMPTY
    rest = constant.clone()
    for _ in range(3 if filled and len(shape) == 2 else 0):  # at most three constant colours are examined
        if int(rest.sum()) < 0.002 * rest.numel():
            break
        colour = data[:, rest].median(dim=1).values
        area = rest & ((data - colour.reshape(-1, *(1,) * len(shape))).abs().amax(dim=0) < 3 * CONSTANT)
        if not bool(area.any()):  # the median of several colours need not be one of them: take the first pixel's
            colour = data[:, rest][:, 0]
            area = rest & ((data - colour.reshape(-1, *(1,) * len(shape))).abs().amax(dim=0) < 3 * CONSTANT)
        ring = _grown(area, 4) & ~_grown(area, 2) & ~constant
        if bool(ring.any()):
            leap = (data[:, ring] - colour[:, None]).square().mean(dim=0).sqrt().median()
            if float(leap) > LEAP:
                out[_grown(area, 2)] = 0.0
        rest = rest & ~area
    # a drawing consists of constant areas, so all its pixels keep full weight
    return out if float((out == 1).to(torch.float32).mean()) > DRAWING else torch.ones_like(out)


def _grown(mask: Tensor, by: int) -> Tensor:
    out = mask[None].to(torch.float32)
    for d in range(1, out.ndim):  # axis by axis, which is faster and comes to the same
        line = out.movedim(d, -1)
        out = F.max_pool1d(line.reshape(1, -1, line.shape[-1]), 2 * by + 1, 1, by).reshape(line.shape).movedim(-1, d)
    return out[0] > 0


def _shrunk(mask: Tensor, by: int) -> Tensor:
    return ~_grown(~mask, by)


def _principal(data: Tensor, weight: Tensor) -> Tensor:
    """The first principal direction ``[C, 1, …]`` of the channels of ``data`` ``[C, *S]`` about 0."""
    flat, w = data.reshape(data.shape[0], -1), weight.reshape(-1)
    directions: Tensor = torch.linalg.eigh((flat * w) @ flat.T)[1]
    return directions[:, -1].reshape(-1, *(1,) * (data.ndim - 1))


def _clean(stack: Tensor) -> tuple[Tensor, Tensor]:
    """The mean ``[C, *S]`` of the known pixels in each pixel of an octave, and where enough of them are known ``[*S]``."""
    known = stack[-2]
    enough = known > 0.25
    return torch.where(enough, stack[:-2] / known.clamp(min=0.25), 0.0), enough


def _slope(data: Tensor, known: Tensor, spacing: tuple[float, ...]) -> Tensor:
    """Gradient magnitude ``[*S]`` over the channels of ``data`` ``[C, *S]``, per least ``spacing``; 0 beside pixels that are not
    known."""
    square = torch.zeros_like(data)
    for d, n in enumerate(known.shape):
        beside = torch.cat([known.narrow(d, 1, n - 1), known.narrow(d, n - 1, 1)], dim=d)
        change = data.diff(dim=d + 1, append=data.narrow(d + 1, n - 1, 1)) * (min(spacing) / spacing[d])
        square = square + (change * (known & beside)) ** 2
    return square.sum(dim=0).sqrt()
