"""What the pose search looks at: intensity and edges of one side at several resolutions, and how far to trust each pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import Grid
from ..fit.halvings import Halvings, halve

FINEST = 320
"""Pixels along the longer side of the finest image that is looked at."""
COARSEST = 64
"""Pixels along the longer side of the image that shows how far the tissue extends."""
EMPTY = 0.2
"""What a pixel without any contrast counts, of 1: clean background says a little of where the tissue ends."""
LEAP = 0.75
"""Standard deviations by which an image leaps to a constant colour that is not its background but a filled-in canvas."""
DRAWING = 0.1
"""Share of an image that must vary for its constant parts to count less; an image with less of it is a drawing, whose areas all
count."""
CONSTANT = 0.01
"""Standard deviations within which neighbouring pixels count as constant."""


@dataclass(frozen=True)
class View:
    """One side at one resolution.

    Args:
        data: intensity and edge strength ``[2, H, W]``, standardised.
        weight: how far each pixel is trusted ``[H, W]``, 0 … 1.
        grid: in the side's normalised frame.
    """

    data: Tensor
    weight: Tensor
    grid: Grid


class Views:
    """One side of a pair as the pose search sees it, at every octave.

    Intensity is the channels' first principal component, edge strength the magnitude of their gradient one octave finer.
    Neither depends on the colour of a stain; what does, the intensity's sign, is left to those who compare.

    Args:
        side: a 2D image; its mask is kept.
    """

    def __init__(self, side: Halvings) -> None:
        data, mask, grid = side.at(side.times_until(lambda grid: max(grid.shape) <= FINEST))
        weight = trust(data)
        if mask is not None:
            weight = weight * mask
        known = (weight > 0).to(data.dtype)  # what is not known must not leak into what is, on any octave
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
        """Length of the sides of a square as large as the tissue, in the side's normalised frame."""

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
    """How far each pixel of an image ``[C, H, W]`` is trusted, ``[H, W]``: `EMPTY` where it is constant, 0 where filled in.

    An area of one colour that the image fades into is its background; one that it leaps to lies beyond what was recorded,
    such as the corners of a turned image.
    """
    h, w = data.shape[1:]
    padded = F.pad(data[None], (1, 1, 1, 1), mode="replicate")[0]
    change = torch.maximum(
        (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]).abs(), (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]).abs()
    ).amax(dim=0)
    constant = _shrunk(change < CONSTANT, 1)  # not a few pixels that happen to be alike
    constant = _grown(constant, 1)
    out = torch.ones((h, w), dtype=torch.float32)
    out[constant] = EMPTY
    rest = constant.clone()
    for _ in range(3):  # colours
        if int(rest.sum()) < 0.002 * h * w:
            break
        colour = data[:, rest].median(dim=1).values
        area = rest & ((data - colour[:, None, None]).abs().amax(dim=0) < 3 * CONSTANT)
        if not bool(area.any()):  # several colours, none of them in the middle
            colour = data[:, rest][:, 0]
            area = rest & ((data - colour[:, None, None]).abs().amax(dim=0) < 3 * CONSTANT)
        ring = _grown(area, 4) & ~_grown(area, 2) & ~constant
        if bool(ring.any()):
            leap = (data[:, ring] - colour[:, None]).square().mean(dim=0).sqrt().median()
            if float(leap) > LEAP:
                out[_grown(area, 2)] = 0.0
        rest = rest & ~area
    # what consists of constant areas is a drawing
    return out if float((out == 1).to(torch.float32).mean()) > DRAWING else torch.ones_like(out)


def _grown(mask: Tensor, by: int) -> Tensor:
    return F.max_pool2d(mask[None, None].to(torch.float32), 2 * by + 1, 1, by)[0, 0] > 0


def _shrunk(mask: Tensor, by: int) -> Tensor:
    return ~_grown(~mask, by)


def _principal(data: Tensor, weight: Tensor) -> Tensor:
    """The direction ``[C, 1, 1]`` in which the channels of ``data`` ``[C, H, W]`` vary most about 0."""
    flat, w = data.reshape(data.shape[0], -1), weight.reshape(-1)
    directions: Tensor = torch.linalg.eigh((flat * w) @ flat.T)[1]
    return directions[:, -1, None, None]


def _clean(stack: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the known pixels alone ``[C, H, W]``, and where enough of them are known ``[H, W]``, of an octave."""
    known = stack[-2]
    enough = known > 0.25
    return torch.where(enough, stack[:-2] / known.clamp(min=0.25), 0.0), enough


def _slope(data: Tensor, known: Tensor) -> Tensor:
    """Gradient magnitude ``[H, W]`` over the channels of ``data`` ``[C, H, W]``, 0 beside what is not known."""
    dy = data.diff(dim=1, append=data[:, -1:]) * (known & torch.cat([known[1:], known[-1:]]))
    dx = data.diff(dim=2, append=data[:, :, -1:]) * (known & torch.cat([known[:, 1:], known[:, -1:]], dim=1))
    return (dy**2 + dx**2).sum(dim=0).sqrt()
