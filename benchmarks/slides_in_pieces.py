"""Slides in pieces whose maps are known: microarrays, torn sections, several sections, all cut from real tissue.

Both sides are sampled from the same pictures (`proving.sources`), each at its own positions, so that neither is resampled from
the other; they differ in stain, in noise and in the edge of each piece.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter, map_coordinates, uniform_filter

import regframe as rf

from .proving import sources

Floats = NDArray[np.float64]
TISSUES = (
    "colon", "retina", "lung 3 He", "lung 1 HE", "cortex 151673", "MOB1", "hemisphere", "spots", "section s044", "skin",
)  # fmt: skip
"""Pictures that cores are cut from: one of each tissue, so that no two cores show one place."""
HE, DAB = (0.55, 0.95, 0.45), (0.45, 0.7, 1.0)
"""Optical density per channel of the two made stains."""
GLASS = 243.0
"""Intensity of empty glass, of 255."""
NOISE = 4.0
"""Standard deviation of the camera's noise, of 255."""


@dataclass(frozen=True)
class Truth:
    """One made piece.

    Args:
        name: of the piece.
        at: positions ``[N, 2]`` (y, x, in fixed pixels) on the piece.
        matrix: its map, fixed → moving, ``[3, 3]``; None where the moving side lacks it.
        moved: whether it lies at another piece's place on the moving side.
    """

    name: str
    at: Floats
    matrix: Floats | None
    moved: bool = False

    def error(self, result: rf.Result) -> Floats:
        """Distance ``[N]`` in moving pixels of where a result takes these positions from where they belong."""
        assert self.matrix is not None
        found = result.to_moving(torch.from_numpy(self.at)).numpy()
        out: Floats = np.linalg.norm(found - carried(self.matrix, self.at), axis=1)
        return np.nan_to_num(out, nan=np.inf)


@dataclass(frozen=True)
class Slides:
    """Two made slides.

    Args:
        fixed: RGB, 8 bits.
        moving: likewise.
        pieces: what is on them.
        missing: names of pieces that only the fixed side has.
    """

    fixed: rf.Image
    moving: rf.Image
    pieces: tuple[Truth, ...]
    missing: tuple[str, ...] = field(default=())


def carried(matrix: Floats, at: Floats) -> Floats:
    """Positions ``[N, 2]`` under a homogeneous matrix."""
    out: Floats = at @ matrix[:2, :2].T + matrix[:2, 2]
    return out


def turn_about(angle: float, here: Floats, there: Floats) -> Floats:
    """The matrix that turns by ``angle`` (degrees) and takes the position ``here`` to ``there``."""
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    matrix = np.eye(3)
    matrix[:2, :2] = [[c, -s], [s, c]]
    matrix[:2, 2] = there - matrix[:2, :2] @ here
    return matrix


@dataclass(frozen=True)
class _Tissue:
    """Two densities ``[H, W]`` of one picture, 0 … 1, as two stains show it, and how much of a window is tissue."""

    first: NDArray[np.float32]
    second: NDArray[np.float32]
    mask: NDArray[np.bool_]


@cache
def tissue(name: str) -> _Tissue | None:
    """The densities of a picture; None where it is not there."""
    found = [source for source in sources.pictures(sources.data_folder()) if source.name == name]
    if not found:
        return None
    texture = found[0].read()
    ground = texture.ground().reshape(-1, 1, 1)
    away = texture.data - ground
    if texture.stained:
        away = -np.log(np.clip(texture.data / np.maximum(ground, 0.05), 0.08, 1.0))
    mixes = np.array([[0.2, 0.6, 0.2], [0.6, 0.25, 0.15]])[:, : len(away)]
    densities = []
    for mix in mixes:
        density = np.tensordot(mix / mix.sum(), away, 1)
        densities.append(np.clip(density / np.percentile(density, 99.5), 0, 1).astype(np.float32))
    return _Tissue(densities[0], densities[1], texture.tissue_mask())


def places(
    rng: np.random.Generator, diameter: int, n: int, tissues: tuple[str, ...] = TISSUES
) -> list[tuple[str, Floats]]:
    """``n`` places, none closer than a diameter to another of its picture, at which there is tissue to see."""
    found: list[tuple[str, Floats]] = []
    for name in tissues:
        one = tissue(name)
        if one is None:
            continue
        share = uniform_filter(one.mask.astype(np.float32), diameter)
        size = diameter // 2 + 4
        fine = one.first - gaussian_filter(one.first, 6)
        detail = np.sqrt(np.maximum(uniform_filter(fine**2, diameter), 0))
        good = (share > 0.6) & (detail > 0.03)
        good[:size], good[-size:], good[:, :size], good[:, -size:] = False, False, False, False
        while good.any():
            at = rng.choice(np.flatnonzero(good))
            y, x = divmod(int(at), good.shape[1])
            found.append((name, np.array([y, x], dtype=np.float64)))
            good[max(0, y - diameter) : y + diameter, max(0, x - diameter) : x + diameter] = False
    if len(found) < n:
        raise ValueError(f"wanted tissue for {n} cores of {diameter} px, got {len(found)} places; make them smaller")
    return [found[i] for i in rng.permutation(len(found))[:n]]


def _edge(rng: np.random.Generator, rough: float) -> Floats:
    """Radius ``[360]`` of a disc's edge by direction, about 1."""
    waves = [rng.normal(0, rough / k) * np.cos(k * np.radians(np.arange(360)) + rng.uniform(0, 7)) for k in range(2, 9)]
    return 1 + np.sum(waves, axis=0)


def stained(density: Floats, stain: tuple[float, ...], rng: np.random.Generator) -> rf.Image:
    """An RGB image of a section of so much ``density`` ``[H, W]``."""
    light = GLASS * np.exp(-1.5 * density[..., None] * np.array(stain))
    light += rng.normal(0, NOISE, light.shape)
    return rf.Image.from_array(np.clip(light, 0, 255).astype(np.uint8), "yxc")


def _draw(
    canvas: Floats, at: Floats, radius: float, picture: NDArray[np.float32], to_picture: Floats, edge: Floats
) -> None:
    """Draw a disc of a picture at a position of a canvas; ``to_picture`` takes canvas positions to the picture's."""
    low = np.floor(at - 1.3 * radius).astype(int).clip(0)
    high = np.minimum(np.ceil(at + 1.3 * radius).astype(int), canvas.shape)
    index = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij"), axis=-1)
    away = index - at
    there = carried(to_picture, index.reshape(-1, 2).astype(np.float64))
    centre = carried(to_picture, at[None])[0]
    direction = np.degrees(np.arctan2(*(there - centre).T)).astype(int) % 360
    inside = np.hypot(*away.reshape(-1, 2).T) < radius * edge[direction]
    values = map_coordinates(picture, there.T, order=1, mode="reflect")
    part = canvas[low[0] : high[0], low[1] : high[1]].reshape(-1)
    part = np.where(inside, np.maximum(0.12 + 0.88 * values, part), part)
    canvas[low[0] : high[0], low[1] : high[1]] = part.reshape(high - low)


@dataclass(frozen=True)
class Made:
    """How a microarray is made.

    Args:
        rows: of cores.
        columns: of cores.
        diameter: of a core, in pixels.
        turn: largest turn of a core in degrees; 180 for any.
        missing: cores that the moving side lacks.
        exchanged: cores that lie at another's place.
        lean: turn of the whole array on the moving slide in degrees.
        tissues: pictures to cut the cores from.
    """

    rows: int = 6
    columns: int = 8
    diameter: int = 140
    turn: float = 15.0
    missing: int = 4
    exchanged: int = 2
    lean: float = 2.0
    tissues: tuple[str, ...] = TISSUES


def microarray(seed: int, made: Made = Made()) -> Slides:
    """A microarray on two slides; cores have the names ``R1C1`` … of their place on the fixed side."""
    rng = np.random.default_rng(seed)
    n, pitch, radius = made.rows * made.columns, 1.45 * made.diameter, made.diameter / 2
    cut = places(rng, made.diameter + 8, n, made.tissues)
    nodes = np.array([[(r + 0.75) * pitch, (c + 0.75) * pitch] for r in range(made.rows) for c in range(made.columns)])
    size = (int((made.rows + 0.5) * pitch), int((made.columns + 0.5) * pitch))
    middle = np.array(size) / 2
    whole = turn_about(made.lean * rng.choice([-1, 1]), middle, middle + rng.uniform(-12, 12, 2))
    chosen = rng.permutation(n)
    lost, swapped = set(chosen[: made.missing].tolist()), chosen[made.missing : made.missing + made.exchanged].tolist()
    place = dict(zip(swapped, [*swapped[1:], *swapped[:1]], strict=True))
    one, other = np.zeros(size), np.zeros(size)
    pieces, ticks = [], np.linspace(-0.65, 0.65, 7) * radius
    lattice = np.stack(np.meshgrid(ticks, ticks, indexing="ij"), axis=-1).reshape(-1, 2)
    lattice = lattice[np.hypot(*lattice.T) < 0.85 * radius]
    for i, (name, where) in enumerate(cut):
        picture = tissue(name)
        assert picture is not None
        here = nodes[i] + rng.uniform(-0.05, 0.05, 2) * made.diameter
        edge = _edge(rng, 0.05)
        own = turn_about(rng.uniform(0, 360), here, where)
        _draw(one, here, radius, picture.first, own, edge)
        called = f"R{i // made.columns + 1}C{i % made.columns + 1}"
        if i in lost:
            pieces.append(Truth(called, here + lattice, None))
            continue
        there = carried(whole, nodes[place.get(i, i)][None])[0] + rng.uniform(-0.08, 0.08, 2) * made.diameter
        matrix = turn_about(rng.uniform(-made.turn, made.turn), here, there)
        edge = edge * _edge(rng, 0.015)
        _draw(other, there, radius, picture.second, own @ np.linalg.inv(matrix), edge)
        pieces.append(Truth(called, here + lattice, matrix, i in place))
    missing = tuple(piece.name for piece in pieces if piece.matrix is None)
    return Slides(stained(one, HE, rng), stained(other, DAB, rng), tuple(pieces), missing)


def section(name: str, size: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Two densities of a whole section on glass of about ``size`` pixels per axis, and its outline."""
    found = [source for source in sources.pictures(sources.data_folder()) if source.name == name]
    if not found:
        raise ValueError(f"wanted the data folder (REGFRAME_DATA) with {name!r}, got none; state it")
    texture = found[0].read()
    texture = texture.resized(size / max(texture.shape))
    away = -np.log(np.clip(texture.data / texture.ground().reshape(-1, 1, 1), 0.08, 1.0))
    out = []
    for mix in np.array([[0.2, 0.6, 0.2], [0.6, 0.25, 0.15]])[:, : len(away)]:
        density = np.tensordot(mix / mix.sum(), away, 1)
        out.append(np.clip(density / np.percentile(density, 99.5), 0, 1).astype(np.float32))
    smooth = gaussian_filter(out[0], 3.0)
    return out[0], out[1], smooth > 0.12


def torn(seed: int, name: str = "hemisphere", size: int = 640, apart: float = 10.0, gap: float = 6.0) -> Slides:
    """A section that is whole on the fixed slide and torn in two on the moving one, its parts turned against each other."""
    rng = np.random.default_rng(seed)
    first, second, mask = section(name, size)
    pad = size // 6
    first, second = (np.pad(np.where(mask, d, 0.0), pad) for d in (first, second))
    mask = np.pad(mask, pad)
    inner = np.argwhere(mask)
    middle, angle = inner.mean(axis=0), rng.uniform(0, math.pi)
    along, across = np.array([math.sin(angle), math.cos(angle)]), np.array([math.cos(angle), -math.sin(angle)])
    index = np.stack(np.meshgrid(*(np.arange(n) for n in mask.shape), indexing="ij"), axis=-1).astype(np.float64)
    t, off = (index - middle) @ along, (index - middle) @ across
    extent = np.ptp((inner - middle) @ along)
    off = off + 0.02 * extent * np.sin(6 * t / extent + rng.uniform(0, 7)) + 0.006 * extent * np.sin(31 * t / extent)
    moving, pieces = np.zeros(mask.shape), []
    taken = np.zeros(mask.shape, dtype=bool)
    for k, sign in enumerate((-1, 1)):
        own = mask & (sign * off > 0)
        centre = np.argwhere(own).mean(axis=0)
        push = gap / 2 + 0.5 * math.radians(apart) * extent / 2
        matrix = turn_about(sign * apart / 2, centre, centre + sign * push * across + rng.uniform(-8, 8, 1) * along)
        back = np.linalg.inv(matrix)
        there = carried(back, index.reshape(-1, 2)).T
        shown = map_coordinates(own.astype(np.float32), there, order=1).reshape(mask.shape) > 0.5
        shown &= ~taken
        taken |= shown
        values = map_coordinates(second, there, order=1).reshape(mask.shape)
        moving = np.where(shown, 0.1 + 0.9 * values, moving)
        inside = np.argwhere(binary_erosion(own, iterations=4))
        pieces.append(Truth(f"part {k + 1}", rng.choice(inside, 200, replace=False).astype(np.float64), matrix))
    fixed = stained(np.where(mask, 0.1 + 0.9 * first, 0.0), HE, rng)
    return Slides(fixed, stained(moving, DAB, rng), tuple(pieces))


def sections(seed: int, size: int = 260) -> Slides:
    """Three sections of different tissue side by side; the other slide has two of them, in another order and turned."""
    rng = np.random.default_rng(seed)
    names = [str(name) for name in rng.permutation(["hemisphere", "MOB1", "cortex 151673"])]
    step, height = int(1.5 * size), int(1.6 * size)
    canvases = [np.zeros((height, 3 * step)) for _ in range(2)]
    order = [int(i) for i in rng.permutation(3)]
    if order == [0, 1, 2]:
        order = [2, 0, 1]
    lost = int(rng.integers(3))
    index = np.stack(np.meshgrid(*(np.arange(n) for n in canvases[0].shape), indexing="ij"), axis=-1).reshape(-1, 2)
    pieces = []
    for i, name in enumerate(names):
        first, second, mask = section(name, size)
        middle = np.argwhere(mask).mean(axis=0)
        here = np.array([height / 2, (i + 0.5) * step]) + rng.uniform(-10, 10, 2)
        there = np.array([height / 2, (order[i] + 0.5) * step]) + rng.uniform(-10, 10, 2)
        matrix = turn_about(rng.uniform(-30, 30), here, there)
        back = turn_about(0.0, here, middle)
        for canvas, density, way in ((canvases[0], first, back), (canvases[1], second, back @ np.linalg.inv(matrix))):
            if canvas is canvases[1] and i == lost:
                continue
            at = carried(way, index.astype(np.float64)).T
            shown = map_coordinates(mask.astype(np.float32), at, order=1) > 0.5
            values = map_coordinates(density, at, order=1)
            canvas += np.where(shown, 0.1 + 0.9 * values, 0.0).reshape(canvas.shape)
        inside = np.argwhere(distance_transform_edt(mask) > 5)
        at = rng.choice(inside, 100, replace=False) - middle + here
        pieces.append(Truth(name, at, None if i == lost else matrix, order[i] != i))
    missing = tuple(piece.name for piece in pieces if piece.matrix is None)
    return Slides(stained(canvases[0], HE, rng), stained(canvases[1], DAB, rng), tuple(pieces), missing)
