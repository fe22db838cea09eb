"""What lies beyond an image: white around brightfield, else 0. One rule for every way to carry an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data import Image

ROWS = 8
"""Rows along the upper and the lower border that are looked at."""
COLUMNS = 8192
"""Most columns of them, from the middle."""


def backdrop_of(image: Image) -> float:
    """The value beyond the pixels of an image: the highest one of its type for brightfield, else 0."""
    planes = image.data.flatten(1, -3) if image.grid.ndim == 3 else image.data[:, None]
    width = planes.shape[-1]
    columns = slice(max(0, width // 2 - COLUMNS // 2), width // 2 + COLUMNS // 2)
    if image.labels or image.data.dtype.is_floating_point or image.data.shape[0] != 3:
        return 0.0
    ends = [planes[..., :ROWS, columns], planes[..., -ROWS:, columns]]
    return around([end.numpy() for end in ends], image.labels)


def around(frames: Sequence[NDArray[Any]], labels: bool = False) -> float:
    """The value beyond an image with these pixels ``[C, …]`` along its border.

    Brightfield has three channels of unsigned integers, each above the middle of its type in the median along the border.
    """
    dtype = frames[0].dtype
    if labels or dtype.kind != "u" or len(frames[0]) != 3:
        return 0.0
    top = float(np.iinfo(dtype).max)
    bright = [float(np.median(np.concatenate([f[c].ravel() for f in frames]))) > top / 2 for c in range(3)]
    return top if all(bright) else 0.0
