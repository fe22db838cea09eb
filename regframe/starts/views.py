"""The images that the pose search compares: intensity and edges of one side at several resolutions, with weights.

An "octave" is a halving of the resolution; octave 0 is the finest.

Where a constant names no source, neither a paper nor a calibration is recorded for it; ``benchmarks/ACCURACY.md`` (any pose,
crops) shows what they achieve together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import Grid
from ..fit.halvings import Halvings, halve

FINEST = 320
"""Largest length of the longer side of the finest image (octave 0), in pixels: the pose search needs no more."""
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


@dataclass(frozen=True)
class View:
    """One side at one octave.

    Args:
        data: intensity and edge strength ``[2, H, W]``, each with weighted mean 0 and variance 1.
        weight: weight of each pixel ``[H, W]``, 0 … 1.
        grid: the pixels' grid in the side's normalised frame.
    """

    data: Tensor
    weight: Tensor
    grid: Grid


class Views:
    """One side of a pair at every octave, as the pose search compares it.

    Intensity is the first principal component of the channels; edge strength is the magnitude of their gradient, taken one
    octave finer. Neither depends on a stain's colour, except for the sign of the intensity, which the comparison ignores.

    Args:
        side: a 2D image; the weight of its pixels is kept.
    """

    def __init__(self, side: Halvings) -> None:
        data, mask, grid = side.at(side.times_until(lambda grid: max(grid.shape) <= FINEST))
        weight = trust(data)
        if mask is not None:
            weight = weight * mask
        known = (weight > 0).to(data.dtype)  # pixels of weight 0 must not be averaged into others, on any octave
        mean = ((data * weight).sum(dim=(1, 2)) / weight.sum().clamp(min=1e-6))[:, None, None]
        stack = torch.cat([(data - mean) * known, known[None], weight[None]])
        self._stacks = [(stack, grid)]
        while min(grid.shape) >= 16:
            stack, grid = halve(stack, grid, [0, 1])
            self._stacks.append((stack, grid))
        self._views: dict[int, View] = {}
        self._axis = _principal(data - mean, weight)
        octave = 0
        while octave + 1 < len(self._stacks) and max(self._stacks[octave][1].shape) > COARSEST:
            octave += 1
        view = self._view(octave)
        energy = F.avg_pool2d((view.weight * (view.data[1] - view.data[1].min()))[None, None], 5, 1, 2)
        spread = float(energy.sum()) ** 2 / max(float(energy.square().sum()), 1e-12)  # pixels the edges spread over
        spread = max(spread, float(view.weight.sum()) / 16, 4.0)
        self.extent = math.sqrt(spread * math.prod(view.grid.spacing))
        """Side length of a square as large as the tissue, in the side's normalised frame."""

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
            edges = _slope(*_clean(self._stacks[max(octave - 1, 0)][0]))[None, None]
            if octave > 0:
                edges = F.adaptive_avg_pool2d(edges, (weight.shape[0], weight.shape[1]))
            edges = F.avg_pool2d(edges, 3, 1, 1, count_include_pad=False)[0, 0]
            data = torch.stack([intensity, edges])
            total = weight.sum().clamp(min=1e-6)
            data = data - (data * weight).sum(dim=(1, 2), keepdim=True) / total
            deviation = ((data * data * weight).sum(dim=(1, 2), keepdim=True) / total).sqrt()
            self._views[octave] = View(data / deviation.clamp(min=1e-6), weight, grid)
        return self._views[octave]


def trust(data: Tensor) -> Tensor:
    """The weight of each pixel ``[H, W]`` of an image ``[C, H, W]``: `EMPTY` where it is constant, 0 where it was filled in.

    A constant area is background where the image fades into it. Where the image leaps to it (`LEAP`), the area lies beyond
    what was recorded, such as the corners of a turned image.
    """
    h, w = data.shape[1:]
    padded = F.pad(data[None], (1, 1, 1, 1), mode="replicate")[0]
    change = torch.maximum(
        (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]).abs(), (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]).abs()
    ).amax(dim=0)
    constant = _shrunk(change < CONSTANT, 1)  # drop areas under 3 x 3 pixels, which may be alike by chance
    constant = _grown(constant, 1)
    out = torch.ones((h, w), dtype=torch.float32)
    out[constant] = EMPTY
    rest = constant.clone()
    for _ in range(3):  # at most three constant colours are examined
        if int(rest.sum()) < 0.002 * h * w:
            break
        colour = data[:, rest].median(dim=1).values
        area = rest & ((data - colour[:, None, None]).abs().amax(dim=0) < 3 * CONSTANT)
        if not bool(area.any()):  # the median of several colours need not be one of them: take the first pixel's
            colour = data[:, rest][:, 0]
            area = rest & ((data - colour[:, None, None]).abs().amax(dim=0) < 3 * CONSTANT)
        ring = _grown(area, 4) & ~_grown(area, 2) & ~constant
        if bool(ring.any()):
            leap = (data[:, ring] - colour[:, None]).square().mean(dim=0).sqrt().median()
            if float(leap) > LEAP:
                out[_grown(area, 2)] = 0.0
        rest = rest & ~area
    # a drawing consists of constant areas, so all its pixels keep full weight
    return out if float((out == 1).to(torch.float32).mean()) > DRAWING else torch.ones_like(out)


def _grown(mask: Tensor, by: int) -> Tensor:
    return F.max_pool2d(mask[None, None].to(torch.float32), 2 * by + 1, 1, by)[0, 0] > 0


def _shrunk(mask: Tensor, by: int) -> Tensor:
    return ~_grown(~mask, by)


def _principal(data: Tensor, weight: Tensor) -> Tensor:
    """The first principal direction ``[C, 1, 1]`` of the channels of ``data`` ``[C, H, W]`` about 0."""
    flat, w = data.reshape(data.shape[0], -1), weight.reshape(-1)
    directions: Tensor = torch.linalg.eigh((flat * w) @ flat.T)[1]
    return directions[:, -1, None, None]


def _clean(stack: Tensor) -> tuple[Tensor, Tensor]:
    """The mean ``[C, H, W]`` of the known pixels in each pixel of an octave, and where enough of them are known ``[H, W]``."""
    known = stack[-2]
    enough = known > 0.25
    return torch.where(enough, stack[:-2] / known.clamp(min=0.25), 0.0), enough


def _slope(data: Tensor, known: Tensor) -> Tensor:
    """Gradient magnitude ``[H, W]`` over the channels of ``data`` ``[C, H, W]``; 0 beside pixels that are not known."""
    dy = data.diff(dim=1, append=data[:, -1:]) * (known & torch.cat([known[1:], known[-1:]]))
    dx = data.diff(dim=2, append=data[:, :, -1:]) * (known & torch.cat([known[:, 1:], known[:, -1:]], dim=1))
    return (dy**2 + dx**2).sum(dim=0).sqrt()
