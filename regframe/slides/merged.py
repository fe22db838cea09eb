"""Several large images on one canvas, as the channels of one slide; shard by shard, as `regframe.slides.warp` carries one."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data import Grid, Level, Pyramid
from ..maps.affine import Affine
from ..maps.base import Transform
from .shards import Array
from .warp import SlideOptions, SlideWarp


@dataclass(frozen=True)
class Layer:
    """An image whose channels, or some of them, become channels of a merged slide.

    Args:
        pyramid: the image, in the source space and unit of its map.
        transform: from the image's space to that of the canvas.
        take: numbers of the channels that are taken, in their order.
        names: their names in the merged slide.
        minus: for each of them the number of the background's channel that is subtracted, or None; empty where nothing is.
    """

    pyramid: Pyramid
    transform: Transform
    take: tuple[int, ...]
    names: tuple[str, ...]
    minus: tuple[int | None, ...] = ()


@dataclass(frozen=True)
class MergedWarp(SlideWarp):
    """The plan of a slide that is merged of several images; run and resumed as a `SlideWarp`. `merged` makes one.

    Args:
        layers: the images, in the order of their channels.
        background: the image whose channels ``minus`` of the layers name: subtracted where it lies, never below 0.
    """

    layers: tuple[Layer, ...] = ()
    background: Layer | None = None

    @functools.cached_property
    def _plans(self) -> tuple[SlideWarp, ...]:
        """The warp of every layer, and at last of the background, onto the canvas."""
        every = (*self.layers, *([] if self.background is None else [self.background]))
        options = SlideOptions(background=0.0)
        return tuple(SlideWarp(one.pyramid, one.transform, self.grid, self.path, options) for one in every)

    def _warped(self, region: tuple[slice, ...]) -> Array | None:
        sides = tuple(r.stop - r.start for r in region)
        dark: Array | None = None
        if self.background is not None:
            dark = self._plans[-1]._warped(region)
        out = np.zeros((len(self.pyramid.channels), *sides), self.dtype)
        first, seen = 0, False
        for layer, plan in zip(self.layers, self._plans, strict=False):
            part = plan._warped(region)
            own = out[first : first + len(layer.take)]
            first += len(layer.take)
            if part is None:
                continue
            seen = True
            for i, channel in enumerate(layer.take):
                other = layer.minus[i] if layer.minus else None
                own[i] = part[channel] if other is None or dark is None else _less(part[channel], dark[other])
        return out if seen else None

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of everything that the pixels and their place in the store depend on."""
        sha = hashlib.sha256()
        facts = (self.dtype.str, self.pyramid.channels, self.pyramid.colors, self.pyramid.waves, self.identity)
        sha.update(repr((*facts, self.options.chunk, self._edge)).encode())
        for plan, layer in zip(self._plans, (*self.layers, self.background), strict=False):
            assert layer is not None
            sha.update(plan.fingerprint.encode())
            sha.update(repr((layer.take, layer.names, layer.minus)).encode())
        return sha.hexdigest()


def merged(
    layers: tuple[Layer, ...],
    grid: Grid,
    path: Path,
    name: str,
    background: Layer | None = None,
    options: SlideOptions | None = None,
    identity: str = "",
) -> MergedWarp:
    """The plan of one slide with the channels of all layers.

    Pixels keep their values; where the layers differ in type, it is the smallest type that holds all of them exactly.

    Args:
        layers: the images.
        grid: the canvas, 2D.
        path: ``NAME.zarr`` or ``NAME.ome.tif``.
        name: name of the slide.
        background: what is subtracted.
        options: how the output is cut.
        identity: distinguishes inputs that are else alike.

    Raises ValueError for layers that do not fit the canvas, two channels of one name, and another kind of output.
    """
    names = tuple(n for layer in layers for n in layer.names)
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice or not names:
        raise ValueError(f"wanted channels of different names, got {', '.join(twice) or 'none'}; rename them")
    colors = tuple(_colour(layer.pyramid, i) for layer in layers for i in layer.take)
    waves = tuple(_wave(layer.pyramid, i) for layer in layers for i in layer.take)
    dtype = np.result_type(*[layer.pyramid.dtype for layer in layers])
    whole = Level(grid, (len(names), *grid.shape), unread)
    pyramid = Pyramid(
        (whole,), dtype, names, colors, name=name, waves=waves if any(wave != (None, None) for wave in waves) else ()
    )
    chosen = options or SlideOptions(background=0.0)
    same = Affine.identity(2, grid.unit)
    return MergedWarp(pyramid, same, grid, path, chosen, identity, layers, background)


def _less(pixels: Array, dark: Array) -> Array:
    """Pixels without a background, not below 0, in their own type."""
    if pixels.dtype.kind == "f":
        return np.asarray(np.maximum(pixels - dark, 0), dtype=pixels.dtype)
    return np.asarray(np.where(pixels > dark, pixels - np.minimum(pixels, dark), 0), dtype=pixels.dtype)


_WHEEL = ("FFFFFF", "00FF00", "FF0000", "00FFFF", "FF00FF", "FFFF00")
"""Colours of the channels of an image that states none, in their order; a nuclear stain that comes first stays white."""


def _colour(pyramid: Pyramid, channel: int) -> str:
    if len(pyramid.colors) == len(pyramid.channels):
        return pyramid.colors[channel]
    return _WHEEL[channel % len(_WHEEL)]


def _wave(pyramid: Pyramid, channel: int) -> tuple[float | None, float | None]:
    return pyramid.waves[channel] if len(pyramid.waves) == len(pyramid.channels) else (None, None)


def unread(_: Any) -> Array:
    """Stands for the pixels of a slide that is made of others; ValueError."""
    raise ValueError("wanted pixels of the layers of a merged slide, got a request for its own; run its plan")
