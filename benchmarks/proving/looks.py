"""What may happen to a picture without moving its tissue: stain, light, dirt, blur, what is missing and what is not its own.

Each look is ``look(rng, picture) -> picture``; parameters are drawn from the distributions stated in its docstring.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_dilation, gaussian_filter
from skimage.color import hed2rgb, rgb2hed

from .sources import Array, Mask, Pixels, Texture


@dataclass(frozen=True)
class Picture:
    """A picture under way.

    Args:
        data: ``[C, *S]``, 0 to 1; above 1 where a detector failed.
        seen: ``[*S]``: which pixels show the tissue they should.
        ground: colour ``[C]`` of what lies beside it.
        stained: whether it is RGB of a stained section.
        other: tissue that has no business here.
        counts: cells that a pixel of value 1 of the texture was expected to hold, where they were counted.
    """

    data: Pixels
    seen: Mask
    ground: Pixels
    stained: bool
    other: Texture | None = None
    counts: float = 0.0

    def with_data(self, data: Array | Pixels) -> Picture:
        """The picture with other pixels, clipped to 0 … 1."""
        return dataclasses.replace(self, data=np.clip(data, 0, 1).astype(np.float32))

    def without(self, lost: Mask, instead: Array | Pixels) -> Picture:
        """The picture with ``instead`` (broadcast to ``[C, *S]``) where ``lost``."""
        data = np.where(lost, instead, self.data).astype(np.float32)
        return dataclasses.replace(self, data=data, seen=self.seen & ~lost)


Look = Callable[[np.random.Generator, Picture], Picture]


def blob(rng: np.random.Generator, shape: tuple[int, ...], low: float, high: float) -> Mask:
    """One ragged patch that covers ``low`` to ``high`` of the picture (less at its border)."""
    centre = np.array([rng.uniform(0.15 * n, 0.85 * n) for n in shape])
    away = np.sqrt(sum((np.arange(n).reshape([-1 if k == d else 1 for k in range(len(shape))]) - centre[d]) ** 2
                       for d, n in enumerate(shape)))  # fmt: skip
    rough = gaussian_filter(rng.standard_normal(shape), min(shape) / 20, mode="wrap")
    away = away + rough / rough.std() * min(shape) * 0.06
    out: Mask = away <= np.quantile(away, rng.uniform(low, high))
    return out


def stain(rng: np.random.Generator, picture: Picture) -> Picture:
    """Unmix haematoxylin, eosin and DAB; each weaker or stronger by 2^N(0, 0.5²), eosin and DAB exchanged in every second
    picture; grey pictures get `contrast`."""
    if not picture.stained:
        return contrast(rng, picture)
    amounts = rgb2hed(np.moveaxis(picture.data, 0, -1))
    amounts = np.clip(amounts, 0, None) * 2.0 ** rng.normal(0, 0.5, 3)
    if rng.random() < 0.5:
        amounts = amounts[..., [0, 2, 1]]
    return picture.with_data(np.moveaxis(hed2rgb(amounts), -1, 0))


def contrast(rng: np.random.Generator, picture: Picture) -> Picture:
    """Gamma 2^U(-1, 1); grey pictures are inverted in every third."""
    out = picture.data**2.0 ** rng.uniform(-1, 1)
    if len(out) == 1 and rng.random() < 1 / 3:
        out = 1 - out
    return picture.with_data(out)


def tone(rng: np.random.Generator, picture: Picture) -> Picture:
    """Another exposure: brightness times U(0.85, 1.1), gamma 2^U(-0.3, 0.3)."""
    return picture.with_data(rng.uniform(0.85, 1.1) * picture.data**2.0 ** rng.uniform(-0.3, 0.3))


def light(rng: np.random.Generator, picture: Picture) -> Picture:
    """Uneven light: times a smooth field between 1 and U(0.4, 0.8), correlated over a quarter of the picture."""
    shape = picture.seen.shape
    coarse = tuple(max(2, n // 8) for n in shape)
    field = gaussian_filter(rng.standard_normal(coarse), [n / 4 for n in coarse], mode="reflect")
    at = np.meshgrid(*[np.arange(n) * c // n for n, c in zip(shape, coarse, strict=True)], indexing="ij")
    field = gaussian_filter(field[tuple(at)], 8.0)
    field = (field - field.min()) / max(float(np.ptp(field)), 1e-9)
    return picture.with_data(picture.data * (1 - (1 - rng.uniform(0.4, 0.8)) * field))


def blur(rng: np.random.Generator, picture: Picture) -> Picture:
    """Out of focus: Gaussian of U(0.7, 2.5) px."""
    sigma = rng.uniform(0.7, 2.5)
    return picture.with_data(np.stack([gaussian_filter(band, sigma) for band in picture.data]))


def noise(rng: np.random.Generator, picture: Picture) -> Picture:
    """White noise of U(0.01, 0.05)."""
    return picture.with_data(picture.data + rng.uniform(0.01, 0.05) * rng.standard_normal(picture.data.shape))


def hot(rng: np.random.Generator, picture: Picture) -> Picture:
    """1 to 20 pixels at 1 to 16 times full scale (16 bit holds that), 1 to 20 at 0."""
    data = picture.data.copy()
    for value in (2.0 ** rng.uniform(0, 4), 0.0):
        number = int(rng.integers(1, 21))
        where = tuple(rng.integers(n, size=number) for n in picture.seen.shape)
        data[:, *where] = value
    return dataclasses.replace(picture, data=data)


def wedge(rng: np.random.Generator, picture: Picture) -> Picture:
    """A corner of 3–15 % of the picture constant 0 or 1, as scanners fill what they have not seen."""
    shape = picture.seen.shape
    angle = rng.uniform(0, 2 * np.pi)
    y, x = (np.linspace(-1, 1, n) for n in shape)
    side = np.sin(angle) * y[:, None] + np.cos(angle) * x[None]
    return picture.without(side > np.quantile(side, 1 - rng.uniform(0.03, 0.15)), np.float32(rng.integers(2)))


def ink(rng: np.random.Generator, picture: Picture) -> Picture:
    """One to three strokes of a pen, 4–14 px wide, dark or blue or green."""
    shape = picture.seen.shape
    drawn = np.zeros(shape, dtype=bool)
    for _ in range(rng.integers(1, 4)):
        ends = rng.uniform(0, 1, (3, 2)) * np.array(shape)
        t = np.linspace(0, 1, 600)[:, None]
        path = (1 - t) ** 2 * ends[0] + 2 * t * (1 - t) * ends[1] + t**2 * ends[2]
        at = np.clip(path.astype(int), 0, np.array(shape) - 1)
        stroke = np.zeros(shape, dtype=bool)
        stroke[tuple(at.T)] = True
        drawn |= binary_dilation(stroke, iterations=int(rng.integers(2, 8)))
    colours = np.array([[0.05, 0.05, 0.05], [0.1, 0.15, 0.5], [0.05, 0.35, 0.2]])
    colour = colours[rng.integers(3)]
    return picture.without(drawn, (colour if len(picture.data) == 3 else colour[:1])[:, None, None])


def missing(rng: np.random.Generator, picture: Picture) -> Picture:
    """A patch of 5–20 % that is not there."""
    lost = blob(rng, picture.seen.shape, 0.05, 0.20)
    return picture.without(lost, picture.ground.reshape(-1, *[1] * lost.ndim))


def foreign(rng: np.random.Generator, picture: Picture) -> Picture:
    """A patch of 3–12 % that shows tissue of another kind."""
    if picture.other is None:
        return missing(rng, picture)
    shape = picture.seen.shape
    other = picture.other
    pad = [(0, 0), *((0, max(0, n - m)) for n, m in zip(shape, other.shape, strict=True))]
    data = np.pad(other.data, pad, mode="reflect")[:, : shape[0], : shape[1]]
    if len(data) != len(picture.data):
        data = np.repeat(data.mean(axis=0, keepdims=True), len(picture.data), axis=0)
    return picture.without(blob(rng, shape, 0.03, 0.12), data)


def sparse(rng: np.random.Generator, picture: Picture) -> Picture:
    """Another technology's density: counts drawn at U(0.5, 4) cells a pixel of full density, a third to all of them found."""
    most = rng.uniform(0.5, 4.0)
    counts = most * rng.uniform(1 / 3, 1.0)
    counted = picture.with_data(rng.poisson(picture.data * counts) / (most * 1.5))
    return dataclasses.replace(counted, counts=counts)


def depth(rng: np.random.Generator, data: Pixels) -> Pixels | np.ndarray:
    """The pixels as files have them: 8 bit, 12 bits of 16, or float."""
    kind = int(rng.integers(4))
    if kind < 2:
        return np.clip(np.round(data * 255), 0, 255).astype(np.uint8)
    if kind == 2:
        return np.clip(np.round(data * 4095), 0, 65535).astype(np.uint16)
    return data
