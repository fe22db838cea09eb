"""Many fields of view as one slide, shard by shard, as `regframe.slides.warp` carries one; with a stated rule for the seams."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ..data import Grid, Level, Pyramid
from ..maps.affine import Affine
from ..maps.base import Transform
from ..remote.address import Remote
from .merged import unread
from .shards import Array
from .warp import SlideOptions, SlideWarp, backdrop

Seam = Literal["feathered", "nearest"]
"""What a pixel that several fields show is made of: all of them, each weighted by its distance from that field's border; or the
field whose border is farthest away, alone, so that no value is mixed."""


@dataclass(frozen=True)
class Field:
    """A field of a mosaic.

    Args:
        pyramid: its pixels, in the source space and unit of its map.
        transform: from its space to the canvas, affine.
    """

    pyramid: Pyramid
    transform: Transform


@dataclass(frozen=True)
class MosaicWarp(SlideWarp):
    """The plan of a slide that is made of fields; run and resumed as a `SlideWarp`. `mosaicked` makes one.

    Args:
        fields: the fields, of the same channels and type.
        seam: see `Seam`.
    """

    fields: tuple[Field, ...] = ()
    seam: Seam = "feathered"

    @functools.cached_property
    def _plans(self) -> tuple[SlideWarp, ...]:
        """The warp of every field, its border continued: what lies beyond is given no weight."""
        options = SlideOptions(background="border")
        return tuple(SlideWarp(one.pyramid, one.transform, self.grid, self.path, options) for one in self.fields)

    def _warped(self, region: tuple[slice, ...]) -> Array | None:
        sides = tuple(r.stop - r.start for r in region)
        total: Array | None = None
        weight = np.zeros(sides, np.float32)
        for one, plan in zip(self.fields, self._plans, strict=True):
            depth = _depth(one, self.grid, region)
            if depth is None:
                continue
            part = plan._warped(region)
            assert part is not None
            if total is None:
                total = np.zeros(part.shape, np.float64 if part.dtype.itemsize > 2 else np.float32)
            if self.seam == "nearest":
                ahead = depth > weight
                total[:, ahead] = part[:, ahead]
                weight = np.maximum(weight, depth)
            else:
                total += part * depth
                weight += depth
        if total is None:
            return None
        lit = weight > 0
        if self.seam == "feathered":
            total /= np.where(lit, weight, 1.0)
        total[:, ~lit] = self.fill or 0.0
        if self.dtype.kind == "f":
            return total.astype(self.dtype)
        info = np.iinfo(self.dtype)
        return np.asarray(np.clip(np.rint(total), info.min, info.max).astype(self.dtype))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of everything that the pixels and their place in the store depend on."""
        sha = hashlib.sha256()
        facts = (
            self.dtype.str,
            self.pyramid.channels,
            self.pyramid.colors,
            self.pyramid.waves,
            self.identity,
            self.seam,
        )
        sha.update(repr((*facts, self.fill, self.options.chunk, self._edge)).encode())
        for plan in self._plans:
            sha.update(plan.fingerprint.encode())
        return sha.hexdigest()


def _depth(one: Field, grid: Grid, region: tuple[slice, ...]) -> Array | None:
    """Distance ``[*region]`` of each pixel of the canvas from the border of a field, in its pixels; 0 beyond. None where all is.

    A pixel whose middle lies on the field's outermost pixels has at least half a pixel, so that nothing of a field is lost.
    """
    pull = one.transform.inverse()
    assert isinstance(pull, Affine)
    own = one.pyramid.grid
    whole = np.linalg.inv(own.index_to_position().numpy()) @ pull.matrix.numpy() @ grid.index_to_position().numpy()
    rows, columns = (np.arange(r.start, r.stop, dtype=np.float64) for r in region)
    depth: Array | None = None
    for axis, n in enumerate(own.shape):
        at = whole[axis, 0] * rows[:, None] + whole[axis, 1] * columns[None, :] + whole[axis, 2]
        inner = np.minimum(at, n - 1 - at) + 0.5
        depth = inner if depth is None else np.minimum(depth, inner)
    assert depth is not None
    clear = np.where(depth >= 0.5 - 1e-6, depth, 0.0).astype(np.float32)
    return clear if clear.any() else None


def mosaicked(
    fields: tuple[Field, ...],
    grid: Grid,
    path: Path | Remote,
    name: str,
    seam: Seam = "feathered",
    identity: str = "",
) -> MosaicWarp:
    """The plan of one slide of many fields; where none lies, it is white for colours in bright field, else 0.

    Raises ValueError for no field, fields of other channels or types, another rule for the seams, and another kind of output.
    """
    if seam not in get_args(Seam):
        raise ValueError(f"wanted seams {' or '.join(get_args(Seam))}, got {seam!r}; choose one of these")
    if not fields:
        raise ValueError("wanted fields with a place, got none; look at the reasons in metrics.json")
    first = fields[0].pyramid
    if any(one.pyramid.channels != first.channels or one.pyramid.dtype != first.dtype for one in fields):
        raise ValueError("wanted fields of the same channels and type of pixels, got several; convert them to one")
    whole = Level(grid, (len(first.channels), *grid.shape), unread)
    pyramid = Pyramid((whole,), first.dtype, first.channels, first.colors, name=name, waves=first.waves)
    options = SlideOptions(background=backdrop(first))
    return MosaicWarp(pyramid, Affine.identity(2, grid.unit), grid, path, options, identity, fields, seam)


# ---- flat field ---------------------------------------------------------------------------------------------------------

ORDER = 4
"""Order of the polynomial in y and x whose exponential is the brightness of a field."""
POWERS = tuple((i, j) for i in range(ORDER + 1) for j in range(ORDER + 1 - i) if i + j > 0)
"""Its terms, without the constant."""


@dataclass(frozen=True)
class Flat:
    """How bright an evenly lit object is over a field.

    Args:
        terms: coefficients ``[C, len(POWERS)]`` of the logarithm, in coordinates from -1 to 1 over the field.
    """

    terms: Array

    def over(self, shape: tuple[int, ...], region: tuple[slice, ...]) -> Array:
        """The brightness ``[C, *region]`` of a field of ``shape`` pixels, 1 in the mean over the field."""
        out = [np.exp(self._log(shape, region, channel)) / self._mean(channel) for channel in range(len(self.terms))]
        return np.stack(out)

    def _mean(self, channel: int) -> float:
        shape = (64, 64)
        return float(np.exp(self._log(shape, (slice(0, 64), slice(0, 64)), channel)).mean())

    def _log(self, shape: tuple[int, ...], region: tuple[slice, ...], channel: int) -> Array:
        rows, columns = ((2 * np.arange(r.start, r.stop) + 1) / n - 1.0 for r, n in zip(region, shape, strict=True))
        total = np.zeros((len(rows), len(columns)))
        for (i, j), term in zip(POWERS, self.terms[channel], strict=True):
            total += term * np.outer(rows**i, columns**j)
        return total

    def flattened(self, pyramid: Pyramid) -> Pyramid:
        """A field whose pixels are divided by the brightness; values and type stay what they are in the mean."""
        levels = tuple(
            dataclasses.replace(level, read=_Flattened(level.read, self, level.grid.shape)) for level in pyramid.levels
        )
        return dataclasses.replace(pyramid, levels=levels)


@dataclass(frozen=True)
class _Flattened:
    """Reads regions of a field and divides them by its brightness; can be pickled."""

    read: Any
    flat: Flat
    shape: tuple[int, ...]

    def __call__(self, region: tuple[slice, ...]) -> Array:
        pixels = self.read(region)
        out = pixels / self.flat.over(self.shape, region)
        if pixels.dtype.kind == "f":
            return np.asarray(out.astype(pixels.dtype))
        info = np.iinfo(pixels.dtype)
        return np.asarray(np.clip(np.rint(out), info.min, info.max).astype(pixels.dtype))


def describe(flat: Flat) -> list[float]:
    """Darkest over brightest place of each channel."""
    whole = flat.over((64, 64), (slice(0, 64), slice(0, 64)))
    return [float(one.min() / one.max()) for one in whole if math.isfinite(float(one.max()))]
