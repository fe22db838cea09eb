"""Both sides as pictures on one canvas: images resampled, points as densities, volumes by their middle plane.

"Ink" is the amount of signal of a pixel, 0 … 1, whether signal is dark or bright in the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data import Grid, Image, PointSet, unit_ratio
from ..maps.affine import Affine
from ..maps.base import Transform
from ..maps.pieces import in_pieces
from ..maps.resample import move_points
from ..solvers.unseen import found_nothing, settled

Array: TypeAlias = NDArray[np.float32]

MAGENTA_GREEN = "fixed in magenta, moving (tones adapted) in green, agreement in black"
_BAND = 1 << 24  # number of values averaged at once while a large image is shrunk
_COLOURS = np.array(
    [[0.0, 0.62, 0.91], [0.9, 0.1, 0.55], [0.95, 0.75, 0.1], [0.2, 0.75, 0.35], [0.95, 0.45, 0.1], [0.55, 0.35, 0.9]],
    dtype=np.float32,
)


def canvas_of(grid: Grid, max_px: int) -> Grid:
    """A grid of square pixels over the extent of ``grid``, at most ``max_px`` per side; for a volume, of its middle plane."""
    height, width = grid.extent[-2:]
    spacing = max(max(height, width) / max_px, min(grid.spacing[-2:]))
    plane = Grid(grid.shape[-2:], grid.spacing[-2:], grid.origin[-2:], grid.unit).resampled(spacing)
    return lift(plane, grid)


def lift(plane: Grid, grid: Grid) -> Grid:
    """A 2D grid as a part of ``grid``: itself, or the middle plane of a volume."""
    if grid.ndim == 2:
        return plane
    return Grid((1, *plane.shape), (grid.spacing[0], *plane.spacing), (grid.center[0], *plane.origin), plane.unit)


def identity_map(moving: Grid, fixed: Grid) -> Affine:
    """The map before registration: equal positions, or equal pixels where the units cannot be converted."""
    ratio = unit_ratio(moving.unit, fixed.unit)
    if ratio is not None:
        scale = [ratio] * moving.ndim
        shift = [0.0] * moving.ndim
    else:
        scale = [f / m for f, m in zip(fixed.spacing, moving.spacing, strict=True)]
        shift = [f - m * s for f, m, s in zip(fixed.origin, moving.origin, scale, strict=True)]
    matrix = torch.diag(torch.tensor([*scale, 1.0], dtype=torch.float64))
    matrix[:-1, -1] = torch.tensor(shift, dtype=torch.float64)
    return Affine(matrix, moving.unit, fixed.unit)


def mosaic(labels: Image) -> Image:
    """A label image as a picture: every id gets a shade of grey of its own, 0 is black."""
    ids = torch.from_numpy(labels.data.numpy().astype("int64"))
    shade = 0.25 + 0.75 * ((ids * 2654435761) % 997).to(torch.float32) / 997
    return labels.replace(data=torch.where(ids == 0, 0.0, shade), labels=False)


def shrink(image: Image, spacing: float) -> Image:
    """``image`` averaged over blocks in y and x so that its pixels are about ``spacing`` wide; labels are thinned instead."""
    factor = [max(1, math.floor(spacing / s + 1e-6)) for s in image.grid.spacing[-2:]]
    if factor == [1, 1]:
        return image
    data = image.data
    if image.labels:
        data = data[..., factor[0] // 2 :: factor[0], factor[1] // 2 :: factor[1]]
    else:
        flat = data.reshape(-1, 1, *data.shape[-2:])
        rows = factor[0] * max(1, _BAND // (flat.shape[0] * flat.shape[-1] * factor[0]))
        bands = [
            torch.nn.functional.avg_pool2d(flat[..., top : top + rows, :].to(torch.float32), factor, ceil_mode=True)
            for top in range(0, flat.shape[-2], rows)
        ]
        small = torch.cat(bands, dim=-2)
        data = small.reshape(*data.shape[:-2], *small.shape[-2:])
    grid = image.grid
    factors = [1] * (grid.ndim - 2) + factor
    coarse = Grid(
        tuple(data.shape[1:]),
        tuple(s * f for s, f in zip(grid.spacing, factors, strict=True)),
        tuple(o + s * (f - 1) / 2 for o, s, f in zip(grid.origin, grid.spacing, factors, strict=True)),
        grid.unit,
    )
    return image.replace(data=data, grid=coarse, weight=None)


def crop(image: Image, positions: Tensor, margin: float) -> Image:
    """The part of ``image`` around ``positions`` ``[..., D]``, with a ``margin`` in its unit; at least one pixel."""
    flat = positions.reshape(-1, image.grid.ndim)
    origin = torch.tensor(image.grid.origin, dtype=torch.float64)
    spacing = torch.tensor(image.grid.spacing, dtype=torch.float64)
    top = torch.tensor(image.grid.shape)
    low = ((flat.amin(0) - margin - origin) / spacing).floor().long().clamp(min=0)
    high = ((flat.amax(0) + margin - origin) / spacing).ceil().long() + 1
    low = torch.minimum(low, top - 1)
    high = torch.maximum(torch.minimum(high, top), low + 1)
    data = image.data[(slice(None), *(slice(int(a), int(b)) for a, b in zip(low, high, strict=True)))]
    start = tuple(float(o + s * i) for o, s, i in zip(origin, spacing, low, strict=True))
    return image.replace(
        data=data, grid=Grid(tuple(data.shape[1:]), image.grid.spacing, start, image.grid.unit), weight=None
    )


@dataclass(frozen=True)
class Look:
    """How the values of one side are turned into ink and colour; determined once, so that before and after are comparable.

    Args:
        low: value of each channel that becomes 0 ``[C]``.
        high: value of each channel that becomes 1 ``[C]``.
        dark: whether dark values are the signal of a channel (brightfield) ``[C]``.
        colour: whether the image has natural colours.
        labels: whether values are ids.
        share: weight of each channel in the ink ``[C]``; equal weights where None.
        curve: tone curve of the ink, as values from and to; None for none.
    """

    low: Array  # [C]
    high: Array  # [C]
    dark: NDArray[np.bool_]  # [C]: True where dark values are the signal (bright field)
    colour: bool
    labels: bool
    share: Array | None = None  # [C]: how much each channel says; equally where None
    curve: tuple[Array, Array] | None = None  # tone curve of the ink, from and to

    def ink(self, picture: Array) -> Array:
        """Ink ``[h, w]``, 0 … 1, of ``picture`` ``[C, h, w]``."""
        value = self.values(picture)
        value = np.where(self.dark[:, None, None], 1 - value, value)
        mixed = np.average(value, axis=0, weights=self.share)
        ink = np.clip(mixed * 1.15, 0, 1) ** 0.8 if self.curve is None else np.interp(mixed, *self.curve)
        return np.where(known_of(picture), ink, 0).astype(np.float32)

    def values(self, picture: Array) -> Array:
        """``picture`` ``[C, h, w]`` scaled to 0 … 1 over the range of each channel."""
        span = np.maximum(self.high - self.low, 1e-12)[:, None, None]
        return np.asarray(np.clip((picture - self.low[:, None, None]) / span, 0, 1), dtype=np.float32)

    def attuned(self, picture: Array, ink: Array, seen: NDArray[np.bool_]) -> Look:
        """This look with polarity, channel weights and tones chosen so that ``picture`` resembles ``ink`` ``[h, w]``.

        Where one stain is dark another may be bright: an overlay should show differences in place, not in colour. Only pixels
        ``seen`` count. Where nothing resembles, the look is unchanged.
        """
        seen = seen & known_of(picture)
        if seen.sum() < 64 or self.labels:
            return self
        value = self.values(picture)[:, seen]  # [C, n]
        target = ink[seen]
        value_0, target_0 = value - value.mean(axis=1, keepdims=True), target - target.mean()
        norm = np.sqrt((value_0**2).sum(axis=1) * (target_0**2).sum())
        likeness = (value_0 * target_0).sum(axis=1) / np.maximum(norm, 1e-12)  # [C]
        if np.abs(likeness).max() < 0.1:
            return self
        dark, share = likeness < 0, np.abs(likeness) ** 2
        mixed = np.average(np.where(dark[:, None], 1 - value, value), axis=0, weights=share)
        ranks = np.linspace(0, 100, 33)
        source = np.percentile(mixed, ranks) + np.arange(33) * 1e-6  # increasing, as interpolation wants it
        curve = source.astype(np.float32), np.percentile(target, ranks).astype(np.float32)
        return replace(self, dark=dark, share=share.astype(np.float32), curve=curve)

    def rgb(self, picture: Array) -> Array:
        """Colours ``[h, w, 3]``, 0 … 1, of ``picture`` ``[C, h, w]``."""
        if self.labels:
            ids = picture[0].astype(np.int64)
            colours = _COLOURS[ids % len(_COLOURS)] * (0.75 + 0.25 * np.sin(ids * 1.7))[..., None]
            return np.where((ids == 0)[..., None], np.float32(0.97), colours).astype(np.float32)
        if self.colour:
            return np.clip(np.moveaxis(picture[:3], 0, -1) / 255, 0, 1).astype(np.float32)
        value = self.values(picture)
        if value.shape[0] == 1:
            return np.repeat(value[0][..., None], 3, axis=-1)
        shades = _COLOURS[np.arange(value.shape[0]) % len(_COLOURS)]  # [C, 3]
        return np.clip(np.tensordot(value, shades, axes=(0, 0)), 0, 1).astype(np.float32)


@dataclass(frozen=True)
class View:
    """A canvas, and for each of its pixels the position on the side that is drawn on it.

    Args:
        canvas: grid of ``[h, w]`` or ``[1, h, w]`` pixels.
        transform: the map from the side's space to the canvas' space.
        positions: ``[*canvas.shape, D]``, in the side's space.
    """

    canvas: Grid
    transform: Transform
    positions: Tensor

    @classmethod
    def of(cls, canvas: Grid, transform: Transform, nodes: int = 200) -> View:
        """The view of a canvas: positions are exact at ``nodes`` per side and interpolated between them, enough for a picture.

        Those of a map in pieces are exact everywhere: nothing may be interpolated across a seam.
        """
        nodes = max(canvas.shape) if in_pieces(transform) else nodes
        shape = tuple(min(n, nodes) for n in canvas.shape)
        spacing = tuple(
            s * (n - 1) / max(1, k - 1) for s, n, k in zip(canvas.spacing, canvas.shape, shape, strict=True)
        )
        coarse = Grid(shape, tuple(s or 1.0 for s in spacing), canvas.origin, canvas.unit)
        exact = transform.inverse().points(coarse.coords())  # [*shape, D]
        fine = torch.nn.functional.interpolate(
            exact.movedim(-1, 0)[None].reshape(1, -1, *shape[-2:]),
            size=canvas.shape[-2:],
            mode="bilinear",
            align_corners=True,
        )  # [1, D, h, w]
        return cls(canvas, transform, fine[0].movedim(0, -1).reshape(*canvas.shape, canvas.ndim))

    def covered(self, grid: Grid) -> NDArray[np.bool_]:
        """Whether each pixel ``[h, w]`` shows a part of ``grid``."""
        return grid.contains(self.positions).reshape(self.canvas.shape[-2:]).numpy()

    def sample(self, image: Image) -> Array:
        """Values ``[C, h, w]`` of ``image`` at the positions, its border continued; of labels the nearest pixel."""
        size = torch.tensor(image.grid.shape, dtype=torch.float64)
        origin = torch.tensor(image.grid.origin, dtype=torch.float64)
        spacing = torch.tensor(image.grid.spacing, dtype=torch.float64)
        index = ((self.positions - origin) / spacing).nan_to_num(0.0)
        unit = torch.where(size > 1, 2 * index / (size - 1).clamp(min=1) - 1, torch.zeros_like(index))
        out = torch.nn.functional.grid_sample(
            image.data[None].to(torch.float32),
            unit.flip(-1)[None].to(torch.float32),  # grid_sample wants x first
            mode="nearest" if image.labels else "bilinear",
            padding_mode="border",
            align_corners=True,
        )
        return plane_of(out[0])


@dataclass(frozen=True)
class Side:
    """One side of a registration, prepared for drawing.

    Args:
        data: the image (shrunk), or the points.
        look: how values become ink and colour; None for points.
    """

    data: Image | PointSet
    look: Look | None

    @classmethod
    def of(cls, data: Image | PointSet, max_px: int) -> Side:
        """Prepare a side: an image is shrunk to about the resolution of the picture, and its range of values is determined."""
        if isinstance(data, PointSet):
            return cls(data, None)
        grid = data.grid
        spacing = max(max(grid.extent[-2:]) / max_px, min(grid.spacing[-2:]))
        small = shrink(data, spacing)
        look = look_of(small)
        if data.data.shape[0] == 3 and data.data.dtype == torch.uint8:  # means of bytes are colours still
            look = replace(look, colour=True)
        return cls(small, look)

    def picture(self, view: View) -> Array:
        """Values ``[C, h, w]`` of an image, or the density of points ``[1, h, w]``, 0 … 1, on a view."""
        if isinstance(self.data, PointSet):
            return density(move_points(self.data, view.transform), view.canvas)
        return view.sample(self.data)

    def attuned(self, picture: Array, ink: Array, seen: NDArray[np.bool_]) -> Side:
        """This side, its ink made to resemble the ink of the other side (see `Look.attuned`)."""
        return self if self.look is None else replace(self, look=self.look.attuned(picture, ink, seen))

    def ink(self, picture: Array) -> Array:
        """Ink ``[h, w]``, 0 … 1."""
        return self.look.ink(picture) if self.look else picture[0]

    def rgb(self, picture: Array) -> Array:
        """Colours ``[h, w, 3]`` in 0 … 1, hatched where there are no data."""
        if self.look is None:
            return np.repeat(1 - picture[0][..., None], 3, axis=-1)
        known = known_of(picture)
        return self.look.rgb(picture) if known.all() else fade(self.look.rgb(np.nan_to_num(picture)), known)


def blanked(image: Image) -> Image:
    """``image`` with NaN where it does not count or holds no data, and without pixels far off (`unseen.settled`)."""
    shown = image if found_nothing(image) else settled(image)[0]
    if shown.labels or shown.weight is None or not bool((shown.weight == 0).any()):
        return shown
    return shown.replace(data=torch.where(shown.weight == 0, torch.nan, shown.data.to(torch.float32)))


def known_of(picture: Array) -> NDArray[np.bool_]:
    """Where ``picture`` ``[C, h, w]`` shows data, ``[h, w]``."""
    return np.asarray(np.isfinite(picture).all(axis=0))


def plane_of(data: Tensor) -> Array:
    """``[..., h, w]`` as numpy ``[C, h, w]``; of a volume ``[C, z, y, x]`` the middle plane."""
    if data.ndim == 4:
        data = data[:, data.shape[1] // 2]
    return np.asarray(data.to(torch.float32).numpy(), dtype=np.float32)


def look_of(image: Image) -> Look:
    """The range of values per channel, and whether signal is dark, judged by the border, which is mostly background."""
    data = plane_of(image.data.to(torch.float32))  # [C, h, w]
    step = max(1, math.isqrt(data[0].size // 200_000))
    sample = data[:, ::step, ::step].reshape(data.shape[0], -1)
    sample = np.where(np.isfinite(sample), sample, np.nan)
    low = np.nanpercentile(sample, 0.5, axis=1).astype(np.float32)
    high = np.nanpercentile(sample, 99.5, axis=1).astype(np.float32)
    border = np.concatenate([data[:, 0], data[:, -1], data[:, :, 0], data[:, :, -1]], axis=1)
    dark = np.nanmedian(border, axis=1) > (low + high) / 2
    colour = data.shape[0] == 3 and image.data.dtype == torch.uint8
    if not colour and data.shape[0] == 3 and tuple(c.lower() for c in image.channels) in _RGB_NAMES:
        colour = float(np.nanmax(sample)) > 1.5 and float(np.nanmax(sample)) <= 255
    return Look(low, high, dark, colour, image.labels)


_RGB_NAMES = {("r", "g", "b"), ("red", "green", "blue")}


def density(points: PointSet, canvas: Grid) -> Array:
    """The blurred density of points on ``canvas``, ``[1, h, w]``, 0 … 1; points of volumes are projected along z."""
    yx = points.coords[:, -2:].numpy()
    yx = np.ascontiguousarray(yx[np.isfinite(yx).all(axis=1)])
    out = _splat(yx, Grid(canvas.shape[-2:], canvas.spacing[-2:], canvas.origin[-2:], canvas.unit))
    positive = out[out > 1e-3 * out.max()]
    top = float(np.percentile(positive, 99)) if positive.size else 1.0
    return np.asarray(np.clip(out / top, 0, 1) ** 0.6, dtype=np.float32)[None]


def _splat(yx: NDArray[np.float64], canvas: Grid) -> NDArray[Any]:
    """The sum of Gaussians at positions ``[N, 2]`` on a 2D ``canvas``, at least 1.2 pixels wide."""
    width = max(1.2, max(canvas.shape) / 500)  # standard deviation of a Gaussian in px
    try:
        from .. import _host  # type: ignore[attr-defined]
    except ImportError:  # without the compiled helper: to the nearest pixel, then blurred
        from scipy.ndimage import gaussian_filter

        index = (yx - np.array(canvas.origin)) / np.array(canvas.spacing)
        edges = [np.arange(n + 1) - 0.5 for n in canvas.shape]
        counts, _, _ = np.histogram2d(index[:, 0], index[:, 1], bins=edges)
        return np.asarray(gaussian_filter(counts, width, mode="constant"))
    weights = np.ones(len(yx), dtype=np.float32)
    raster, _ = _host.splat(yx, weights, canvas.shape, canvas.origin, canvas.spacing, width * canvas.pixel)
    return np.asarray(raster[0])


def overlay(fixed: Array, moving: Array) -> Array:
    """Two ink maps ``[h, w]`` as one picture ``[h, w, 3]`` on white: fixed magenta, moving green, both black."""
    return np.stack([1 - moving, 1 - fixed, 1 - moving], axis=-1)


def halved(picture: Array) -> Array:
    """``picture`` ``[h, w, 3]`` at half its size, unless it is too small for that."""
    if min(picture.shape[:2]) < 512:
        return picture
    height, width = (n // 2 * 2 for n in picture.shape[:2])
    blocks = picture[:height, :width].reshape(height // 2, 2, width // 2, 2, 3)
    return np.asarray(blocks.mean(axis=(1, 3)), dtype=np.float32)


def checkerboard(fixed: Array, moving: Array, tiles: int = 8) -> Array:
    """Two ``[h, w, 3]`` pictures in alternating squares, ``tiles`` along the longer side."""
    height, width = fixed.shape[:2]
    size = max(1, math.ceil(max(height, width) / tiles))
    y, x = np.arange(height) // size, np.arange(width) // size
    pick = ((y[:, None] + x[None, :]) % 2 == 0)[..., None]
    return np.where(pick, fixed, moving)


def fade(picture: Array, covered: NDArray[np.bool_]) -> Array:
    """``picture`` ``[h, w, 3]`` with light grey hatching where the moving side does not cover it."""
    height, width = covered.shape
    stripes = ((np.arange(height)[:, None] + np.arange(width)[None, :]) // 6 % 2).astype(np.float32)
    blank = (0.93 + 0.03 * stripes)[..., None]
    return np.where(covered[..., None], picture, blank).astype(np.float32)


@dataclass(frozen=True)
class Spot:
    """A square of a canvas that is worth a close look.

    Args:
        top: row of its upper left pixel.
        left: column of it.
        likeness: correlation of the ink of both sides in it, −1 … 1.
    """

    top: int
    left: int
    likeness: float


def likeness(one: Array, other: Array, size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Correlation of two ink maps ``[h, w]`` in the square of ``size`` pixels around each pixel, and the first's deviation."""
    from scipy.ndimage import uniform_filter

    a, b = one.astype(np.float64), other.astype(np.float64)

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(uniform_filter(values, size, mode="constant"))

    mean_a, mean_b = mean(a), mean(b)
    spread_a = np.maximum(mean(a * a) - mean_a**2, 0)
    spread_b = np.maximum(mean(b * b) - mean_b**2, 0)
    shared = mean(a * b) - mean_a * mean_b
    product = np.sqrt(spread_a * spread_b)
    return np.where(product > 1e-6, shared / np.maximum(product, 1e-6), 0.0), np.sqrt(spread_a)


def spots(fixed: Array, moving: Array, seen: NDArray[np.bool_], size: int, count: int) -> tuple[list[Spot], list[Spot]]:
    """Squares of ``size`` pixels where two ink maps ``[h, w]`` are most alike, and where least, up to ``count`` each, apart.

    Only squares count that lie inside the canvas, that the moving side covers (``seen``), and that show structure on the fixed
    side: at least `STRUCTURE` of what nine squares in ten stay below.
    """
    from scipy.ndimage import uniform_filter

    alike, spread = likeness(fixed, moving, size)
    half = size // 2
    allowed = uniform_filter(seen.astype(np.float64), size, mode="constant") > 0.98
    border = np.zeros_like(allowed)
    border[half : allowed.shape[0] - half, half : allowed.shape[1] - half] = True
    allowed &= border
    if not allowed.any():
        return [], []
    allowed &= spread >= max(STRUCTURE * float(np.percentile(spread[allowed], 90)), 1e-4)
    found: tuple[list[Spot], list[Spot]] = ([], [])
    for places, score in zip(found, (alike, -alike), strict=True):
        for _ in range(count):
            if not allowed.any():
                break
            y, x = np.unravel_index(int(np.argmax(np.where(allowed, score, -np.inf))), score.shape)
            places.append(Spot(max(0, int(y) - half), max(0, int(x) - half), float(alike[y, x])))
            reach = round(size * 1.1)
            allowed[max(0, y - reach) : y + reach, max(0, x - reach) : x + reach] = False
    return found


STRUCTURE = 0.5
"""Least standard deviation of the fixed side's ink in a close-up, as a share of the 90th percentile over all squares: empty glass
is alike everywhere, and says nothing. Chosen by eye on the lung sections of the demonstration data."""
