"""Maps from a texture to a picture of it: poses, bends, pieces, tears, folds; each exact in both directions.

``pull`` takes positions of the picture to the texture (for rendering), ``push`` those of the texture to the picture (for the
truth). What has no counterpart is not a number. Positions are ``[N, D]`` in pixels, (y, x) or (z, y, x).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from .sources import Array, Mask, Pixels, Texture


class Map(Protocol):
    """A change of place."""

    def pull(self, at: Array) -> Array:
        """Texture positions ``[N, D]`` of picture positions."""
        ...

    def push(self, at: Array) -> Array:
        """Picture positions ``[N, D]`` of texture positions."""
        ...


@dataclass(frozen=True)
class Linear:
    """``x ↦ matrix x + shift``, pushed."""

    matrix: Array
    shift: Array

    def pull(self, at: Array) -> Array:
        out: Array = (at - self.shift) @ np.linalg.inv(self.matrix).T
        return out

    def push(self, at: Array) -> Array:
        out: Array = at @ self.matrix.T + self.shift
        return out


@dataclass(frozen=True)
class Bend:
    """Pulls ``x ↦ x + field(x)``: a smooth field ``[D, *nodes]`` in pixels, given every ``step`` pixels."""

    field: Array
    step: float

    def _sample(self, at: Array) -> Array:
        known = np.nan_to_num(at) / self.step
        shift = np.stack([map_coordinates(f, known.T, order=1, mode="nearest") for f in self.field], axis=-1)
        return np.asarray(np.where(np.isfinite(at), shift, np.nan))

    def pull(self, at: Array) -> Array:
        return np.asarray(at + self._sample(at))

    def push(self, at: Array) -> Array:
        out = at
        for _ in range(60):  # halves its error each time at least: `bend` keeps the slope below STEEPEST
            out = at - self._sample(out)
        return np.asarray(out)


@dataclass(frozen=True)
class Pieces:
    """The texture cut by a straight line into two sides, the far one turned about ``pivot`` and shifted away.

    Args:
        point: on the cut, ``[2]``.
        normal: towards the far side, unit length.
        turn: of the far side, in radians.
        shift: of the far side, ``[2]``.
        pivot: about which it is turned.
    """

    point: Array
    normal: Array
    turn: float
    shift: Array
    pivot: Array

    def _far(self, at: Array) -> Mask:
        return np.asarray((at - self.point) @ self.normal > 0)

    def pull(self, at: Array) -> Array:
        near = np.where(self._far(at)[:, None], np.nan, at)
        back = (at - self.pivot - self.shift) @ rotation(self.turn) + self.pivot
        return np.asarray(np.where(self._far(back)[:, None], back, near))

    def push(self, at: Array) -> Array:
        moved = (at - self.pivot) @ rotation(self.turn).T + self.pivot + self.shift
        return np.asarray(np.where(self._far(at)[:, None], moved, at))


@dataclass(frozen=True)
class Tear:
    """A wedge of half-angle ``opening`` (radians) that opens from ``tip`` in the direction ``along`` (radians); all around it
    gives way: an angle t from the tear becomes ``opening + t (π - opening) / π``."""

    tip: Array
    along: float
    opening: float

    def _polar(self, at: Array) -> tuple[Array, Array]:
        away = at - self.tip
        angle = np.angle(np.exp(1j * (np.arctan2(away[:, 0], away[:, 1]) - self.along)))
        return np.linalg.norm(away, axis=1), angle

    def _place(self, radius: Array, angle: Array) -> Array:
        whole = angle + self.along
        return np.asarray(self.tip + radius[:, None] * np.stack([np.sin(whole), np.cos(whole)], axis=1))

    def pull(self, at: Array) -> Array:
        radius, angle = self._polar(at)
        old = (np.abs(angle) - self.opening) * math.pi / (math.pi - self.opening)
        return self._place(radius, np.where(old < 0, np.nan, np.sign(angle) * old))

    def push(self, at: Array) -> Array:
        radius, angle = self._polar(at)
        new = self.opening + np.abs(angle) * (math.pi - self.opening) / math.pi
        return self._place(radius, np.where(angle < 0, -new, new))


@dataclass(frozen=True)
class Fold:
    """A strip of ``width`` pixels beyond a line folded under: what lies beyond comes nearer by it."""

    point: Array
    normal: Array
    width: float

    def pull(self, at: Array) -> Array:
        far = (at - self.point) @ self.normal > 0
        return np.asarray(at + np.where(far, self.width, 0.0)[:, None] * self.normal)

    def push(self, at: Array) -> Array:
        beyond = (at - self.point) @ self.normal
        moved = at - np.where(beyond > self.width, self.width, 0.0)[:, None] * self.normal
        return np.asarray(np.where(((beyond > 0) & (beyond <= self.width))[:, None], np.nan, moved))


@dataclass(frozen=True)
class Chain:
    """Maps one after another, the first next to the texture."""

    maps: tuple[Map, ...] = ()

    def pull(self, at: Array) -> Array:
        for one in reversed(self.maps):
            at = one.pull(at)
        return at

    def push(self, at: Array) -> Array:
        for one in self.maps:
            at = one.push(at)
        return at

    @property
    def cut(self) -> bool:
        """Whether some of it is not smooth."""
        return any(isinstance(one, (Pieces, Tear, Fold)) for one in self.maps)


STEEPEST = 0.45
"""Largest slope of a drawn bend, in pixels of displacement a pixel: nothing folds, and its inverse converges."""


def bend(rng: np.random.Generator, shape: Sequence[int], size: float, sigma: float) -> Bend:
    """A smooth random bend of at most ``size`` pixels (less where it would be too steep), correlated over ``sigma`` pixels."""
    step = max(1.0, sigma / 8)
    nodes = tuple(int(n / step) + 2 for n in shape)
    field = np.stack([gaussian_filter(rng.standard_normal(nodes), sigma / step, mode="wrap") for _ in shape])
    field *= size / np.linalg.norm(field, axis=0).max()
    slope = max(np.abs(np.diff(f, axis=d)).max() / step for f in field for d in range(len(shape)))
    return Bend(field * min(1.0, STEEPEST / len(shape) / slope), step)


def rotation(angle: float) -> Array:
    """The turn of a plane by ``angle`` radians, (y, x)."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s], [s, c]])


def rotation3(rng: np.random.Generator, most: float) -> Array:
    """A turn of space about any axis by up to ``most`` radians."""
    axis = rng.standard_normal(3)
    return np.asarray(Rotation.from_rotvec(axis / np.linalg.norm(axis) * rng.uniform(0, most)).as_matrix())


def pose(matrix: Array, old: Sequence[int], shift: Array) -> tuple[Linear, tuple[int, ...]]:
    """The texture of size ``old`` moved by ``matrix`` about its middle, on a canvas that holds it all, and off its middle by
    ``shift`` (a share of the canvas); and the canvas."""
    middle = (np.array(old) - 1) / 2
    corners = np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in old], indexing="ij"), -1).reshape(-1, len(old))
    size = np.ptp((corners - middle) @ matrix.T, axis=0)
    shape = np.ceil(size * (1 + np.abs(shift)) - 1e-6).astype(int)
    centre = (shape - 1) / 2 + shift * size / 2
    return Linear(matrix, centre - matrix @ middle), tuple(int(n) for n in shape)


def held(matrix: Array, shape: Sequence[int], shift: Array) -> tuple[Linear, tuple[int, ...]]:
    """As `pose`, on a canvas of the texture's own ``shape``; what is moved beyond it is lost."""
    size = np.array(shape)
    return Linear(matrix, (size - 1) / 2 + shift * size - matrix @ ((size - 1) / 2)), tuple(shape)


def indices(shape: Sequence[int]) -> Array:
    """Positions ``[N, D]`` of all pixels."""
    grid = np.meshgrid(*[np.arange(n, dtype=np.float64) for n in shape], indexing="ij")
    return np.stack(grid, -1).reshape(-1, len(shape))


def render(texture: Texture, chain: Chain, shape: Sequence[int], shrink: float) -> tuple[Pixels, Mask]:
    """The picture ``[C, *shape]`` of ``texture`` moved by ``chain``, and which pixels ``[*shape]`` show it.

    Interpolated once, by cubic splines (linearly in space); where the picture has ``shrink`` (> 1) times fewer pixels along an
    axis the texture is smoothed first.
    """
    at = chain.pull(indices(shape))
    size = np.array(texture.shape)
    with np.errstate(invalid="ignore"):
        inside = ((at > -0.5) & (at < size - 0.5)).all(axis=1)
    known = np.where(inside[:, None], at, 0.0).T
    bands = []
    for band, colour in zip(texture.data, texture.ground(), strict=True):
        smooth = gaussian_filter(band, 0.5 * (shrink - 1)) if shrink > 1 else band
        values = map_coordinates(smooth, known, order=3 if len(size) == 2 else 1, mode="nearest")
        bands.append(np.where(inside, values, colour).reshape(shape))
    data: NDArray[np.float32] = np.clip(np.stack(bands), 0, 1).astype(np.float32)
    return data, inside.reshape(shape)
