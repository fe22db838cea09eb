"""The part of a volume around a section, and a volume of labels painted in the section's colours."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..data import Grid, Image
from ..maps.plane import nearest
from ..starts.section import RATIO

SLAB = 0.08
"""How much of a volume is kept around a section, of its diagonal: what it may bend by, and what its smoothness reaches."""
PAINT_AREA = 30.0
"""Pixels that one observation of a label's colour stands for."""


def slab(volume: Image, at: Tensor, margin: float = SLAB) -> Image:
    """The part of a volume around a section.

    Args:
        volume: as it is.
        at: where the section's pixels lie in it, ``[..., 3]``, in its unit.
        margin: how much more than the section needs, of its diagonal.
    """
    at = at.reshape(-1, 3)
    low, high = at.amin(dim=0), at.amax(dim=0)
    more = margin * float((high - low).norm())
    part, origin = [], []
    for d, (n, s, o) in enumerate(zip(volume.grid.shape, volume.grid.spacing, volume.grid.origin, strict=True)):
        first = min(max(math.floor((float(low[d]) - more - o) / s), 0), n - 1)
        last = min(max(math.ceil((float(high[d]) + more - o) / s), first), n - 1)
        first, last = max(0, min(first, last - 7)), min(n - 1, max(last, first + 7))
        part.append(slice(first, last + 1))
        origin.append(o + s * first)
    data = volume.data[(slice(None), *part)]
    weight = None if volume.weight is None else volume.weight[tuple(part)]
    return volume.replace(
        data=data, weight=weight,
        grid=Grid(tuple(data.shape[1:]), volume.grid.spacing, tuple(origin), volume.grid.unit),
    )  # fmt: skip


def painted(labels: Image, section: Image, at: Tensor) -> Image:
    """A volume of labels in the colours of a section: every label in the mean of what the section shows there.

    Labels that the section hardly shows come close to the mean of its tissue.

    Args:
        labels: ``[1, *S]``; 0 is what is not tissue.
        section: ``[C, *S_f]``.
        at: where its pixels lie in the volume, ``[*S_f, 3]``, in its unit.
    """
    ids, codes = np.unique(labels.data[0].numpy(), return_inverse=True)
    volume = torch.from_numpy(codes.reshape(labels.grid.shape))
    nothing = int(np.searchsorted(ids, 0)) if bool((ids == 0).any()) else len(ids)
    found = nearest(volume, labels.grid, at.reshape(-1, 3), nothing)
    values = section.data.to(torch.float32).flatten(1)  # [C, n]
    weight = torch.ones(len(found)) if section.weight is None else section.weight.to(torch.float32).flatten()
    weight = weight / PAINT_AREA
    n = len(ids) + 1
    mass = torch.zeros(n).index_add_(0, found, weight)
    total = torch.zeros((n, len(values))).index_add_(0, found, (values * weight).T)
    tissue = torch.arange(n) != nothing
    middle = total[tissue].sum(dim=0) / mass[tissue].sum().clamp(min=1e-6)
    colour = (total + middle / RATIO) / (mass[:, None] + 1 / RATIO)
    if mass[nothing] > 0:
        colour[nothing] = total[nothing] / mass[nothing]
    data = colour.T[:, volume.reshape(-1)].reshape(-1, *labels.grid.shape)
    return Image(data, labels.grid, section.channels, weight=labels.weight, name=labels.name)
