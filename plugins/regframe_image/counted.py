"""Which pixels of an image count: stated values for no data, masks, and what is no number."""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import regframe

from .raw import Array, Region

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = regframe.later.torch

_SHAPE = 1.5
"""Pixels by which an axis of a mask may differ from that of its image, sizes apart: rounding costs half of one on either side."""


def number(value: float | str | None) -> float | None:
    """A stated value for no data, None where nothing is stated; ValueError for what is no number."""
    if value is None:
        return None
    try:
        if isinstance(value, bool):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f'wanted a number or "nan" for nodata, got {value!r}') from None


def check_finite(image: regframe.Image) -> None:
    """ValueError for infinite pixels; those that are no number (NaN) hold no data."""
    if not image.data.dtype.is_floating_point:
        return
    bad = ~torch.isfinite(image.data)
    n_bad, n_nan = int(bad.sum()), int(torch.isnan(image.data).sum())
    if n_bad == n_nan:
        return
    first = torch.nonzero(bad)[0].tolist()
    where = ", ".join(f"{a} {i}" for a, i in zip(image.grid.axes, first[1:], strict=True))
    raise ValueError(
        f"wanted finite pixels, got {n_nan} NaN and {n_bad - n_nan} infinite values of {image.data.numel()} "
        f"in {image.name}, the first in channel {image.channels[first[0]]} at pixel {where}; "
        f"replace them by numbers, or by NaN where there are no data"
    )


def holds(array: Array, value: float) -> Array:
    """Where all channels of ``[C, *S]`` hold a value for no data, ``[*S]``."""
    if math.isnan(value):
        same: Array = np.not_equal(array, array)
    else:
        same = np.equal(array, np.asarray(value).astype(array.dtype))
    out: Array = np.logical_and.reduce(same, axis=0)
    return out


@dataclass(frozen=True)
class _Holds:
    """Reads where a level holds a value for no data, ``[1, *region]``: 1 there, else 0."""

    read: Callable[[Region], Array]
    value: float

    def __call__(self, region: Region) -> Array:
        return holds(self.read(region), self.value)[None].astype(np.float32)


def without_data(image: regframe.Image, value: float, pyramid: regframe.Pyramid | None = None) -> regframe.Image:
    """The image with weight 0 where it holds ``value`` in all channels.

    Args:
        image: as it was read.
        value: that stands for no data.
        pyramid: what it was read of where that is larger: a block does not count if any of its pixels holds the value, and the
            pixels beside those of a coarser level, which were mixed with it, neither.
    """
    if not image.data.dtype.is_floating_point:
        info = torch.iinfo(image.data.dtype)
        if not (math.isnan(value) or (info.min <= value <= info.max and value == round(value))):
            raise ValueError(
                f"wanted a value for nodata that {image.name} can hold ({str(image.data.dtype)[6:]}), got {value:g}; "
                "check the file, or leave nodata out"
            )
    reading = image.reading
    if pyramid is not None and reading is not None and max(reading.factor) > 1:
        levels = tuple(dataclasses.replace(one, read=_Holds(one.read, value)) for one in pyramid.levels)
        where = dataclasses.replace(pyramid, levels=levels, dtype=np.dtype(np.float32), channels=("no data",))
        gone = regframe.read_level(where, reading.level, reading.factor).data[0] > 0
    else:
        gone = torch.from_numpy(holds(image.data.numpy(), value))
    if not bool(gone.any()):
        warnings.warn(f"{image.name} holds no pixel of the value {value:g} that was stated as nodata", stacklevel=4)
        return image
    if reading is not None and reading.level > 0:
        beside = torch.nn.functional.max_pool2d if gone.ndim == 2 else torch.nn.functional.max_pool3d
        gone = beside(gone[None, None].to(torch.float32), 3, 1, 1)[0, 0] > 0
    return _hidden(image, gone)


def masked(image: regframe.Image, mask: regframe.Image, name: str) -> regframe.Image:
    """The image with weight 0 where a mask of its canvas, of the same or another resolution, is 0 in all channels.

    ValueError for a mask of another shape, and for one that hides everything.
    """
    wanted, got = image.grid.shape, mask.grid.shape
    if len(wanted) != len(got):
        raise ValueError(
            f"wanted a mask of {len(wanted)} axes for {image.name}, got {name} of {len(got)}; choose a plane"
        )
    scale = math.prod(g / w for g, w in zip(got, wanted, strict=True)) ** (1 / len(wanted))
    if any(abs(g - w * scale) > max(_SHAPE, _SHAPE * scale) for g, w in zip(got, wanted, strict=True)):
        sizes = [" x ".join(str(n) for n in shape) for shape in (wanted, got)]
        raise ValueError(
            f"wanted a mask of the canvas of {image.name}, {sizes[0]} pixels or that at another resolution, got {name} of "
            f"{sizes[1]}; cut it to the same field"
        )
    counts = torch.nan_to_num(mask.data.to(torch.float64)).ne(0).any(dim=0)
    for axis, (w, g) in enumerate(zip(wanted, got, strict=True)):
        nearest = ((torch.arange(w, dtype=torch.float64) + 0.5) * g / w).floor().long().clamp(max=g - 1)
        counts = counts.index_select(axis, nearest)
    if not bool(counts.any()):
        raise ValueError(f"wanted a mask that leaves something of {image.name}, got {name}, which is 0 everywhere")
    return _hidden(image, ~counts)


def _hidden(image: regframe.Image, gone: Tensor) -> regframe.Image:
    """The image with weight 0 where ``gone`` ``[*S]``; ValueError where nothing is left."""
    weight = torch.ones(image.grid.shape) if image.weight is None else image.weight.to(torch.float32)
    weight = weight * ~gone
    if not bool((weight > 0).any()):
        raise ValueError(f"wanted pixels of {image.name} that count, got none; check nodata and mask")
    return image.replace(weight=weight)


def source_name(source: Any) -> str:
    """What messages call a mask."""
    return Path(source).name if isinstance(source, (str, os.PathLike)) else "the mask"
