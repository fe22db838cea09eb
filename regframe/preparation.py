"""What a picture of tissue needs before it is compared: how it was made, its background, and canvas that nobody imaged."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import ConvexHull
from skimage.filters import threshold_otsu
from torch import Tensor

from .data import Image
from .lddmm import flattest

LOOKED_AT = 500_000
"""Pixels that are looked at, about."""
PADDED = 0.005
"""Smallest share of a canvas that one exact colour from a corner on must fill to be padding."""
APART = 0.1
"""Share of the range of intensities by which two colours differ that are not the same background."""
RECTANGULAR = 0.95
"""How much of the least turned rectangle around it an imaged area fills, when the rest of the canvas is padding."""
BRIGHT = 0.7
"""Share of the range above which a background is that of transmitted light."""
NEUTRAL = 0.15
"""Largest spread of its channels, as a share of the range."""


@dataclass(frozen=True)
class Look:
    """What was found out about one side.

    Args:
        brightfield: a stained section in transmitted light: three channels, background bright and nearly neutral.
        background: colour ``[C]`` of the background, in the image's intensities.
        tissue_fraction: share of the canvas that differs from the background (Otsu's threshold).
        padded_fraction: share of the canvas that was filled up, not imaged; it does not count.
    """

    brightfield: bool
    background: tuple[float, ...]
    tissue_fraction: float
    padded_fraction: float


def prepare(image: Image) -> tuple[Image, Look]:
    """The image with weight 0 where its canvas was only filled up, and what it looks like.

    Padding is a region of one exact colour that reaches from a corner inwards, is not the colour of the background and
    leaves a turned or straight rectangle: the black wedges beside a turned section on white glass, but neither the empty glass
    itself nor the black around a brain, whose outlines help.
    Volumes come back as they are.
    """
    if image.grid.ndim != 2:
        return image, Look(False, (), 1.0, 0.0)
    step = max(1, round((image.data[0].numel() / LOOKED_AT) ** 0.5))
    data = image.data[:, ::step, ::step].to(torch.float32)  # [C, h, w]
    low, high = float(data.amin()), float(data.amax())
    high = max(high, 255.0) if image.data.dtype == torch.uint8 else high
    span = max(high - low, 1e-12)
    trusted = torch.ones(data.shape[1:]) if image.weight is None else image.weight[::step, ::step].to(torch.float32)
    filled = _filled(data)
    rest = trusted * ~filled
    background = flattest(data, rest if bool(rest.any()) else trusted)  # [C]
    padded = torch.zeros_like(filled)
    for y in (0, -1):
        for x in (0, -1):
            colour = data[:, y, x]
            if bool(filled[y, x]) and float((colour - background).abs().amax()) > APART * span:
                padded |= filled & (data == colour[:, None, None]).all(dim=0)
    weight = image.weight
    if bool(padded.any()) and _rectangular(~padded) < RECTANGULAR:
        padded = torch.zeros_like(padded)  # the picture itself, a dark brain on black or a hand
    if bool(padded.any()):
        whole = torch.zeros(image.grid.shape, dtype=torch.bool)
        for y in (0, -1):
            for x in (0, -1):
                corner = (y % data.shape[1], x % data.shape[2])
                if bool(padded[corner]):
                    whole |= _from_corner((image.data == image.data[:, y, x][:, None, None]).all(dim=0), y, x)
        # beside it lie pixels that were mixed with it
        whole = torch.from_numpy(ndimage.binary_dilation(whole.numpy(), iterations=2))
        weight = (torch.ones(image.grid.shape) if weight is None else weight) * ~whole
        image = dataclasses.replace(image, weight=weight)
    level = (background - low) / span
    brightfield = (
        len(background) == 3
        and float(level.mean()) > BRIGHT
        and float(level.amax() - level.amin()) < NEUTRAL
        and float((data.mean(dim=0) > background.mean() + APART * span).to(torch.float32).mean()) < PADDED
    )
    apart = (data - background[:, None, None]).norm(dim=0)[~padded]
    tissue = 0.0
    if float(apart.amax()) > float(apart.amin()):
        threshold = float(threshold_otsu(apart.numpy()))  # type: ignore[no-untyped-call]
        tissue = float((apart > threshold).to(torch.float32).mean())
    share = float(padded.to(torch.float32).mean())
    return image, Look(brightfield, tuple(background.tolist()), tissue * (1 - share), share)


def grey(image: Image) -> Image:
    """The mean of the channels as one channel: what two stains of neighbouring sections have in common is their
    density, and their colours only mislead."""
    return dataclasses.replace(image, data=image.data.to(torch.float32).mean(dim=0, keepdim=True), channels=("grey",))


def _filled(data: Tensor) -> Tensor:
    """Pixels ``[H, W]`` of one exact colour that reach from a corner over a good part of ``[C, H, W]``."""
    out = torch.zeros(data.shape[1:], dtype=torch.bool)
    for y in (0, -1):
        for x in (0, -1):
            same = _from_corner((data == data[:, y, x][:, None, None]).all(dim=0), y, x)
            if float(same.to(torch.float32).mean()) > PADDED:
                out |= same
    return out


def _rectangular(mask: Tensor) -> float:
    """How much of the least rectangle around it, turned as may be, the pixels of a mask ``[H, W]`` fill."""
    rows = mask.nonzero().to(torch.float64)
    if len(rows) < 16 or float(rows.amax(dim=0).sub(rows.amin(dim=0)).amin()) < 2:
        return 0.0
    corners = torch.cat([rows + torch.tensor([dy, dx]) for dy in (-0.5, 0.5) for dx in (-0.5, 0.5)]).numpy()
    hull = corners[ConvexHull(corners).vertices]
    areas = []
    for edge in np.diff(np.vstack([hull, hull[:1]]), axis=0):
        along = edge / np.linalg.norm(edge)
        areas.append(np.prod(np.ptp(hull @ np.array([along, [-along[1], along[0]]]).T, axis=0)))
    return len(rows) / float(min(areas))


def _from_corner(same: Tensor, y: int, x: int) -> Tensor:
    """The connected part of a mask ``[H, W]`` that holds its corner ``[y, x]``."""
    labels, _ = ndimage.label(same.numpy())
    return torch.from_numpy(np.asarray(labels == labels[y, x])) if labels[y, x] else torch.zeros_like(same)
