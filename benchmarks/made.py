"""Pairs of tissue with known maps, made to set the constants of a bend on: other cells, another stain, a smooth bend.

What a neighbouring section in another stain is to a section: its outlines are the same but for a smooth bend, its cells are
others, and its dyes are others. Textures are real tissue of `data/`, none of it from the lung sections that are reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates, zoom
from skimage import data as samples
from skimage.color import hed2rgb, rgb2hed
from truth import Array, Pair, background, picture

import regframe as rf

BENDS = ((60.0, 8.0), (30.0, 5.0), (15.0, 1.5))
"""Standard deviation of the smoothing of random fields, and their largest displacement, in pixels: what is left between two
sections under their affine map is of all sizes, and the larger the farther it reaches."""
OTHER_CELLS = ((3.0, 6.0),)
"""The same of the field that moves cells away from where they were, which is not part of the truth: smoothed so little that
nothing larger than a cell follows it."""
FINE = 3.0
"""Standard deviation of the Gaussian, in pixels, that parts cells from outlines."""
BETWEEN = 8
"""Pixels between two positions of which the truth is judged."""


def field(shape: tuple[int, int], rng: np.random.Generator, parts: tuple[tuple[float, float], ...]) -> Array:
    """A random displacement ``[2, H, W]`` in pixels: the sum of fields of ``parts`` (smoothing, largest displacement)."""
    out = np.zeros((2, *shape))
    for sigma, most in parts:
        one = np.stack([gaussian_filter(rng.standard_normal(shape), sigma, mode="wrap") for _ in range(2)])
        out += one * most / np.linalg.norm(one, axis=0).max()
    return out


def moved(values: Array, by: Array) -> Array:
    """Channels ``[C, H, W]`` read at every pixel plus ``by`` ``[2, H, W]``."""
    at = np.stack(np.meshgrid(*(np.arange(float(n)) for n in by.shape[1:]), indexing="ij")) + by
    return np.stack([map_coordinates(band, at, order=1, mode="nearest") for band in values])


def other_cells(values: Array, rng: np.random.Generator) -> Array:
    """Channels ``[C, H, W]`` with the fine structure of another place of as much of it, and cells moved by `OTHER_CELLS`."""
    coarse = np.stack([gaussian_filter(band, FINE) for band in values])
    fine = values - coarse
    amount = np.sqrt(gaussian_filter((fine**2).mean(axis=0), 4 * FINE)) + 1.0
    by = rng.integers(40, 80, 2)
    there = np.roll(fine / amount, by, axis=(1, 2))
    mixed = coarse + amount * there
    return moved(mixed.clip(0, 255), field((values.shape[1], values.shape[2]), rng, OTHER_CELLS))


def restained(rgb: Array, rng: np.random.Generator) -> Array:
    """An RGB section ``[3, H, W]`` (0 … 255) in other dyes: its own unmixed, mixed anew, uneven by a slow factor."""
    glass = np.median(rgb[:, gaussian_filter(rgb.mean(axis=0), 4) >= np.quantile(rgb.mean(axis=0), 0.8)], axis=1)
    dyes = rgb2hed((rgb / glass[:, None, None]).clip(0, 1).transpose(1, 2, 0)).clip(0)  # [H, W, 3]
    top = np.quantile(dyes.reshape(-1, 3), 0.995, axis=0)
    dyes = dyes / np.maximum(top, 0.5 * top.max())
    share = rng.dirichlet((1.0, 1.0), 3)
    power = rng.uniform(0.6, 1.6, 2)
    mixed = np.stack([(share[0, 0] * dyes[..., 0] + (1 - share[0, 0]) * dyes[..., 1]) ** power[0],
                      0.2 * dyes[..., 1],
                      (share[1, 0] * dyes[..., 1] + (1 - share[1, 0]) * dyes[..., 0] ** 2) ** power[1]], axis=-1)  # fmt: skip
    slow = field(rgb.shape[1:], rng, ((100.0, 0.3),))[0]
    out = hed2rgb(mixed * 0.12 * (1 + slow[..., None])) * 255
    return np.asarray(out.transpose(2, 0, 1).clip(0, 255), dtype=np.float64)


def neighbour(name: str, fixed: Array, moving: Array, number: int, cells: bool) -> Pair:
    """A pair of two pictures ``[C, H, W]`` (0 … 255) of one frame, the moving one bent; with ``cells`` its texture moved too."""
    rng = np.random.default_rng(number)
    shape = (fixed.shape[1], fixed.shape[2])
    bend = field(shape, rng, BENDS)
    if cells:
        moving = other_cells(moving, rng)
    moving = moved(moving, bend)
    one, other = (rf.Image(torch.from_numpy(a.round()).to(torch.uint8), rf.Grid(shape)) for a in (fixed, moving))
    ticks = (np.arange(BETWEEN, n - BETWEEN, BETWEEN) for n in shape)
    q = np.stack(np.meshgrid(*ticks, indexing="ij"), -1).reshape(-1, 2).astype(float)
    smooth = gaussian_filter(np.abs(fixed - background(one)[:, None, None]).mean(axis=0), 4.0)
    seen = smooth[tuple(q.astype(int).T)] > 0.25 * np.quantile(smooth, 0.95)
    q = q[seen]

    def original(points: Array) -> Array:
        return points + np.stack([map_coordinates(f, points.T, order=1, mode="nearest") for f in bend], axis=-1)

    return Pair(name, one, other, q, q, one.grid.diagonal, original=original, relative=True)


def _stained(name: str, read: Callable[[], Array], number: int) -> Pair:
    rgb = read()
    return neighbour(name, rgb, restained(rgb, np.random.default_rng(1000 + number)), number, True)


def _rgb(path: Path, size: int) -> Array:
    values = picture(path).data[:3].to(torch.float64).numpy()
    share = size / max(values.shape[1:])
    if share < 1:
        values = np.stack([zoom(gaussian_filter(band, 0.4 / share), share, order=1) for band in values])
    return np.asarray(values.clip(0, 255), dtype=np.float64)


def _planes(name: str, path: Path, number: int, planes: tuple[int, int], axis: int) -> Pair:
    volume = picture(path).data[0].to(torch.float64).numpy()
    one, other = (np.take(volume, k, axis)[None] for k in planes)
    one, other = (255 * (a / np.quantile(a, 0.999)).clip(0, 1) for a in (one, other))
    return neighbour(name, one, 255 * (1 - (other / 255) ** 0.7), number, False)


@dataclass(frozen=True)
class Made:
    """A pair that is made when asked for."""

    name: str
    make: Callable[[], Pair]


def pairs(data: Path, seed: int = 0) -> Iterator[Made]:
    """All made pairs; another ``seed`` bends and stains them otherwise."""
    tissue: dict[str, Callable[[], Array]] = {
        "bulb": partial(_rgb, data / "08_st_mob" / "MOB1.jpg", 900),
        "brain": partial(_rgb, data / "09_st_visium_misc" / "cytassist_mouse_brain" / "tissue_hires_image.png", 900),
        "cortex": partial(_rgb, data / "06_st_dlpfc" / "151673" / "tissue_lowres_image.png", 600),
        "block 1": partial(_rgb, data / "21_slides_of_one_block" / "ihc_1.png", 600),
        "block 3": partial(_rgb, data / "21_slides_of_one_block" / "ihc_3.png", 600),
        "colon": lambda: np.asarray(samples.immunohistochemistry().transpose(2, 0, 1), dtype=np.float64),
    }
    for k, (name, read) in enumerate(tissue.items()):
        number = 100 * seed + k
        yield Made(f"{name}, other cells", partial(_stained, f"{name}, other cells", read, number))
    mni = data / "14_3d_human" / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    mouse = data / "10_3d_mouse_atlas" / "CIVM_mouse.ISO.nii.gz"
    yield Made("MR planes", partial(_planes, "MR planes", mni, 100 * seed + 50, (95, 98), 2))
    yield Made("mouse MR planes", partial(_planes, "mouse MR planes", mouse, 100 * seed + 51, (120, 123), 1))
