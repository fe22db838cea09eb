"""What a group asks of volumes: that there are no flat images among them, and where their tissue is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from skimage.filters import threshold_otsu

from ..data import Image, Pyramid
from ..solvers.raster import check_image
from ..stack.posegraph import Floats, Node


def check_axes(pyramids: Sequence[Pyramid], names: Sequence[str]) -> None:
    """ValueError for images among volumes."""
    first = pyramids[0].grid.ndim
    for pyramid, name in zip(pyramids, names, strict=True):
        if pyramid.grid.ndim != first:
            raise ValueError(
                f"wanted images alone or volumes alone, got {first} axes in {names[0]} and {pyramid.grid.ndim} in {name}; "
                "leave one sort out"
            )


def tissue_of(image: Image, most: int) -> tuple[Node, Floats, str]:
    """Moments of the tissue of a volume, at most ``most`` positions on it, and why it shows none, or ``""``."""
    grid = image.grid
    middle = np.array(grid.center)
    nowhere = Node(np.tile(middle, (6, 1)), grid.diagonal)
    try:
        check_image(image, "volume")
    except ValueError as error:
        return nowhere, middle[None], str(error)
    step = max(1, math.ceil((math.prod(grid.shape) / 200_000) ** (1 / 3)))
    thin = image.data[(slice(None), *(slice(step // 2, None, step) for _ in grid.shape))].to(
        dtype=image.data.float().dtype
    )
    values = np.nan_to_num(thin.mean(dim=0).numpy()).astype(np.float64)
    ends = np.concatenate([values.take(side, axis).ravel() for axis in range(values.ndim) for side in (0, -1)])
    apart = np.abs(values - float(np.median(ends)))
    mask = apart > float(threshold_otsu(apart)) if apart.max() > apart.min() else np.ones(apart.shape, bool)  # type: ignore[no-untyped-call]
    index = np.argwhere(mask) * step + step // 2
    at = index * np.array(grid.spacing) + np.array(grid.origin)
    if len(at) < 16:
        return nowhere, middle[None], "no tissue was found in it"
    lengths, axes = np.linalg.eigh(np.cov(at.T))
    arms = axes * np.sqrt(grid.ndim * np.clip(lengths, 1e-12, None))
    node = Node(at.mean(axis=0) + np.concatenate([arms.T, -arms.T]), float(np.sqrt(lengths.sum())))
    return node, at[:: max(1, -(-len(at) // most))], ""
