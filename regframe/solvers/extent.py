"""How far what a picture shows reaches: a single bright pixel, or one thin line, cannot say how another picture lies on it."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .plain import SAMPLED

TURNS = 180
"""Directions, evenly spaced over half a turn, along which the extent is measured: the narrowest then is overestimated by 0.02 %
of the length across it at most."""


@dataclass(frozen=True)
class Extent:
    """How much of a picture differs from its commonest values.

    Args:
        pixels: how many pixels do.
        width: extent of these, in pixels, along their narrowest direction in a plane of two axes; of a volume as it is seen along
            that axis along which they are widest.
        common: the commonest value of each channel.
    """

    pixels: int
    width: float
    common: tuple[float, ...]


def extent(data: Tensor, counts: Tensor | None, enough: float) -> Extent | None:
    """How far the pixels of ``[C, *S]`` reach that differ from the commonest value of their channel, or None: ``enough`` or more.

    ``counts`` ``[*S]`` is False where a pixel does not count, None where all do. The commonest value is that of a sample of about
    `SAMPLED` pixels; only of pictures that look narrow in it every pixel is examined.
    """
    step = max(1, math.floor((math.prod(data.shape[1:]) / SAMPLED) ** (1 / (data.ndim - 1))))
    every = (slice(None, None, step),) * (data.ndim - 1)
    kept = np.ones(data[0][every].shape, np.bool_) if counts is None else counts[every].cpu().numpy()
    if not kept.any():  # all that counts lies between
        return None
    apart, common = np.zeros_like(kept), []
    for channel in data:
        sample = channel[every].cpu().numpy()
        found, times = np.unique(sample[kept], return_counts=True)
        common.append(found[times.argmax()])
        apart |= (sample != common[-1]) & kept
        if width_of(apart, step) >= enough:
            return None
    apart = np.zeros(data.shape[1:], np.bool_)
    for channel, value in zip(data, common, strict=True):
        apart |= channel.cpu().numpy() != value
    if counts is not None:
        apart &= counts.cpu().numpy()
    width = width_of(apart)
    return None if width >= enough else Extent(int(apart.sum()), width, tuple(float(value) for value in common))


def width_of(mask: NDArray[np.bool_], step: int = 1) -> float:
    """Extent along the narrowest direction of what is True, in pixels of which ``mask`` holds every ``step``-th one.

    Of a volume the largest of those of its projections along each axis; 0 where nothing is True.
    """
    if not mask.any():
        return 0.0
    planes = [mask]
    if mask.ndim == 3:
        planes = [np.asarray(mask.any(axis=axis)) for axis in range(3)]
    return max(_narrowest(plane, step) for plane in planes)


def _narrowest(mask: NDArray[np.bool_], step: int) -> float:
    rows = np.flatnonzero(mask.any(axis=1))
    part = mask[rows]
    first, last = part.argmax(axis=1), part.shape[1] - 1 - part[:, ::-1].argmax(axis=1)
    places = np.array(
        list(itertools.chain(zip(rows, first, strict=True), zip(rows, last, strict=True))), dtype=np.float64
    )
    turns = np.arange(TURNS) * (np.pi / TURNS)
    along = step * places @ np.array([np.sin(turns), np.cos(turns)])
    return float(np.ptp(along, axis=0).min()) + 1.0
