"""Real pairs with known truth, and what may happen to them: exchanged, posed anew, cropped, bent, recoloured.

A pair holds what a user has (two images) and what only the judge knows (where fixed positions lie in the moving image).
Whatever is done to a moving image is undone on the positions before they are judged, so that errors of all variants compare.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from scipy.ndimage import center_of_mass, gaussian_filter, map_coordinates
from scipy.spatial import cKDTree
from torch import Tensor

import regframe as rf

Array = NDArray[np.float64]
WRONG = 2.0
"""Median error in percent of the moving image's diagonal above which an alignment is wrong."""
TIMES = 3.0
"""Times the untouched pair's error from which the alignment of a variant is wrong."""
NOTHING = 0.1
"""Median error in percent of the diagonal that is never wrong, however exact the untouched pair's was."""


def _same(points: Array) -> Array:
    return points


@dataclass(frozen=True)
class Pair:
    """Two images and where positions of one lie in the other.

    Args:
        name: what tables call it.
        fixed: stays where it is.
        moving: what is to be aligned, as the user has it.
        q: fixed positions ``[N, 2]`` (y, x) in the fixed unit.
        p: where they lie in the *original* moving image, ``[N, 2]`` in its unit.
        diagonal: of the original moving image, in its unit.
        unit: of ``p`` and ``diagonal``.
        original: from positions in ``moving`` to those in the original moving image.
        relative: whether tables show the median in percent of ``diagonal``, not the mean in ``unit``.
    """

    name: str
    fixed: rf.Image
    moving: rf.Image
    q: Array
    p: Array
    diagonal: float
    unit: str = "px"
    original: Callable[[Array], Array] = _same
    relative: bool = False

    @property
    def figure(self) -> str:
        """What `score` says, in words."""
        return "median rTRE, %" if self.relative else f"mean, {self.unit}"

    def summary(self, errors: Array) -> float:
        """The figure that tables show of errors ``[N]``."""
        return self.rtre(errors) if self.relative else float(errors.mean())

    def rtre(self, errors: Array) -> float:
        """The median of errors ``[N]`` in percent of the diagonal."""
        return float(np.median(errors)) / self.diagonal * 100

    def score(self, mapped: Any) -> float:
        """The figure that tables show of positions ``q`` mapped into ``moving``."""
        return self.summary(self.errors(mapped))

    def best_affine(self) -> float | None:
        """`score` of the best affine map through the truth itself, where there are positions to fit it to."""
        return self.summary(self.oracle())

    def wrong(self, mapped: Any, untouched: float | None = None) -> bool:
        """Whether positions ``q`` mapped into ``moving`` are so far off that nobody should have been told to trust them.

        Above `WRONG`, unless the best affine map through the truth is worse still (coarse landmarks), or `TIMES` the
        ``untouched`` pair's `rtre` (of a variant). What is not a number is wrong.
        """
        rtre = self.rtre(self.errors(mapped))
        bar = max(WRONG, self.rtre(self.oracle()))
        if untouched is not None:
            bar = min(bar, max(TIMES * untouched, NOTHING))
        return not rtre <= bar

    def errors(self, mapped: Any) -> Array:
        """Distances ``[N]`` between positions ``mapped`` into ``moving`` and the truth, in the original moving image's unit."""
        at = self.original(np.asarray(mapped, dtype=np.float64))
        out: Array = np.linalg.norm(at - self.p, axis=1)
        return out

    def judge(self, result: rf.Result) -> Array:
        """`errors` of a result of regframe."""
        return self.errors(result.to_moving(torch.as_tensor(self.q)).numpy())

    def before(self) -> Array:
        """Errors of doing nothing: positions taken over as they are."""
        return self.errors(self.q)

    def oracle(self) -> Array:
        """Errors of the best affine map through the truth itself."""
        ones = np.column_stack([self.q, np.ones(len(self.q))])
        matrix, *_ = np.linalg.lstsq(ones, self.p, rcond=None)
        out: Array = np.linalg.norm(ones @ matrix - self.p, axis=1)
        return out

    def exchanged(self) -> Pair:
        """Fixed and moving exchanged."""
        swapped = re.sub(r"(\S+) → (\S+)$", r"\2 → \1", self.name)
        name = swapped if swapped != self.name else f"{self.name}, exchanged"
        grid = self.fixed.grid
        return Pair(name, self.moving, self.fixed, self.p, self.q, grid.diagonal, grid.unit, relative=self.relative)


@dataclass(frozen=True)
class Labelled(Pair):
    """A pair whose truth is a label on each of many spots: ``q`` are the fixed spots, ``p`` the moving ones, unpaired.

    Args:
        of_q: label of each fixed spot.
        of_p: label of each moving spot.
    """

    of_q: tuple[str, ...] = ()
    of_p: tuple[str, ...] = ()

    @property
    def figure(self) -> str:
        """What `score` says, in words."""
        return f"agreement (centroids {self.centroids():.2f})"

    def score(self, mapped: Any) -> float:
        """Share of the moving spots with the label of the nearest fixed spot; none where a position is not a number."""
        at = self.original(np.asarray(mapped, dtype=np.float64))
        if not np.isfinite(at).all():
            return 0.0
        nearest = cKDTree(at).query(self.p)[1]
        return float(np.mean(np.array(self.of_q)[nearest] == np.array(self.of_p)))

    def centroids(self) -> float:
        """`score` after a shift of one centroid onto the other."""
        nearest = cKDTree(self.q - self.q.mean(axis=0)).query(self.p - self.p.mean(axis=0))[1]
        return float(np.mean(np.array(self.of_q)[nearest] == np.array(self.of_p)))

    def best_affine(self) -> float | None:
        """Unknown: the spots are not paired."""
        return None

    def wrong(self, mapped: Any, untouched: float | None = None) -> bool:
        """Whether fewer spots agree, by 0.02, than after a shift of one centroid onto the other."""
        return not self.score(mapped) >= self.centroids() - 0.02


def picture(path: Path) -> rf.Image:
    """The image in a file."""
    image = rf.open(path)
    assert isinstance(image, rf.Image)
    return image


def landmarks(path: Path, scale: float) -> dict[str, Array]:
    """Positions (y, x) by id of a landmark file with the columns X and Y, times ``scale``."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    key = next(iter(rows[0]))
    return {row[key]: np.array([float(row["Y"]), float(row["X"])]) * scale for row in rows}


def lungs(data: Path) -> list[Pair]:
    """The four pairs of consecutive lung sections in different stains, with manual landmarks."""
    folder = data / "02_histology_landmarks"
    pairs = []
    with (folder / "pairs.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            fixed, moving = picture(folder / row["fixed_image"]), picture(folder / row["moving_image"])
            a = landmarks(folder / row["fixed_landmarks"], float(row["fixed_landmark_scale"]))
            b = landmarks(folder / row["moving_landmarks"], float(row["moving_landmark_scale"]))
            common = [key for key in a if key in b]
            case = row["fixed_image"].split("/")[0].replace("lung-", "")
            stains = [_stain(row[side]) for side in ("fixed_image", "moving_image")]
            q, p = np.array([a[k] for k in common]), np.array([b[k] for k in common])
            name = f"{case} {stains[0]} → {stains[1]}"
            pairs.append(Pair(name, fixed, moving, q, p, moving.grid.diagonal, relative=True))
    return pairs


def _stain(path: str) -> str:
    stem = path.rsplit("/", 1)[-1].removesuffix(".jpg")
    return next(s for s in ("He", "CD31", "Ki67", "HE", "proSPC") if s in stem)


def merfish(data: Path) -> Pair:
    """Cell densities of two mouse brains, turned by about 45° against each other; seven coarse points, µm."""
    folder = data / "03_st_merfish"

    def read(name: str) -> rf.Image:
        with np.load(folder / name, allow_pickle=False) as file:
            x, y, values = file["x"], file["y"], file["I"]
        spacing = (float(y[1] - y[0]), float(x[1] - x[0]))
        return rf.Image.from_array(
            values.astype(np.float32), "cyx", spacing, (float(y[0]), float(x[0])), "µm", name=name
        )

    with (folder / "landmarks.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    q, p = (np.array([[float(r[f"{s}_y"]), float(r[f"{s}_x"])] for r in rows]) for s in ("S2R2", "S2R3"))
    fixed, moving = read("Merfish_S2_R2.npz"), read("Merfish_S2_R3.npz")
    return Pair("MERFISH S2R2 → S2R3", fixed, moving, q, p, moving.grid.diagonal, "µm")


def seed(data: Path) -> Pair:
    """The two looks of one lung section; the truth is exact."""
    folder = data / "01_seed_cells"
    fixed, moving = picture(folder / "cells2_crop.jpg"), picture(folder / "cells.jpg")
    ticks = np.arange(2.0, 221.0, 6.0)
    q = np.stack(np.meshgrid(ticks, ticks, indexing="ij"), -1).reshape(-1, 2)
    return Pair("seed", fixed, moving, q, 111 + (q - 111) * 5 / 6, moving.grid.diagonal)


def hands(data: Path) -> Pair:
    """Two X-rays of hands, seven manual points."""
    folder = data / "15_2d_classics" / "fair"
    with (folder / "hands_landmarks.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    q, p = (np.array([[float(r[f"{s}_y_px"]), float(r[f"{s}_x_px"])] for r in rows]) for s in "RT")
    fixed, moving = picture(folder / "hands-R.jpg"), picture(folder / "hands-T.jpg")
    return Pair("hands R → T", fixed, moving, q, p, moving.grid.diagonal)


def shapes(data: Path) -> list[Pair]:
    """A drawn shape and two deformed ones; nine points placed by hand, 10–25 px off."""
    folder = data / "15_2d_classics" / "shapes"

    def points(name: str) -> Array:
        with (folder / f"{name}_landmarks.tsv").open(newline="") as file:
            return np.array([[float(r["y_coord"]), float(r["x_coord"])] for r in csv.DictReader(file, delimiter="\t")])

    fixed, q = picture(folder / "reference.png"), points("reference")
    pairs = []
    for name in ("t_0", "t_1"):
        moving = picture(folder / f"{name}.png")
        pairs.append(Pair(f"shapes {name}", fixed, moving, q, points(name), moving.grid.diagonal))
    return pairs


def nuclei(data: Path) -> Pair:
    """An image of nuclei and itself turned by 20° and bent by up to 8 px: where the centres of the nuclei lie is exact."""
    folder = data / "19_nuclei"
    image, mask = picture(folder / "img2d.tif"), tifffile.imread(folder / "mask2d.tif")
    image = image.replace(data=image.data.to(torch.float32))
    q = np.array(center_of_mass(np.ones_like(mask), mask, np.unique(mask[mask > 0])))
    pair = bent(Pair("nuclei", image, image, q, q, image.grid.diagonal), 1, sigma=40.0)
    return dataclasses.replace(posed(pair, Draw(20.0, False, 1.0, (0.02, -0.01))), name="nuclei, bent and turned")


def layers(data: Path) -> list[Labelled]:
    """Three neighbouring pairs of Visium sections of human cortex; the truth is the cortical layer of each spot."""
    folder = data / "06_st_dlpfc"
    with (folder / "layer_labels.csv").open(newline="") as file:
        known = {(r["sample"], r["barcode"]): r["layer"] for r in csv.DictReader(file)}

    def read(sample: str) -> tuple[rf.Image, Array, tuple[str, ...]]:
        scale = json.loads((folder / sample / "scalefactors_json.json").read_text())["tissue_lowres_scalef"]
        with (folder / sample / "tissue_positions_list.txt").open(newline="") as file:
            rows = [r for r in csv.reader(file) if r[1] == "1" and (sample, r[0]) in known]
        at = np.array([[float(r[4]), float(r[5])] for r in rows]) * scale
        return picture(folder / sample / "tissue_lowres_image.png"), at, tuple(known[sample, r[0]] for r in rows)

    sections = {name: read(name) for name in ("151673", "151674", "151675", "151676")}
    return [
        Labelled(f"DLPFC {a} → {b}", fixed, moving, q, p, moving.grid.diagonal, of_q=of_q, of_p=of_p)
        for (a, (fixed, q, of_q)), (b, (moving, p, of_p)) in itertools.pairwise(sections.items())
    ]


def pixels(pair: Pair) -> Pair:
    """The same pair without a physical size on either side: the scale is unknown."""

    def bare(image: rf.Image) -> rf.Image:
        return image.replace(grid=rf.Grid(image.grid.shape))

    def index(grid: rf.Grid, points: Array) -> Array:
        out: Array = (points - np.array(grid.origin)) / np.array(grid.spacing)
        return out

    grid = pair.moving.grid
    return dataclasses.replace(
        pair, fixed=bare(pair.fixed), moving=bare(pair.moving), q=index(pair.fixed.grid, pair.q),
        original=lambda at: pair.original(at * np.array(grid.spacing) + np.array(grid.origin)),
    )  # fmt: skip


def background(image: rf.Image) -> Array:
    """The colour ``[C]`` of the image's border, by the median."""
    data = image.data.numpy()
    rim = np.concatenate([data[:, :2].reshape(len(data), -1), data[:, -2:].reshape(len(data), -1)], axis=1)
    sides = np.concatenate([data[:, :, :2].reshape(len(data), -1), data[:, :, -2:].reshape(len(data), -1)], axis=1)
    return np.asarray(np.median(np.concatenate([rim, sides], axis=1), axis=1), dtype=np.float64)


@dataclass(frozen=True)
class Draw:
    """A pose: turn in degrees, mirror, scale, shift as a share of the canvas."""

    angle: float
    mirror: bool
    scale: float
    shift: tuple[float, float]

    @classmethod
    def random(cls, rng: np.random.Generator) -> Draw:
        """Any turn, either mirror, scale 0.25–4 (log-uniform), shift up to a tenth of the canvas."""
        shift = rng.uniform(-0.1, 0.1, 2)
        return cls(
            float(rng.uniform(0, 360)), bool(rng.integers(2)), float(2 ** rng.uniform(-2, 2)), (shift[0], shift[1])
        )

    def __str__(self) -> str:
        return f"{self.angle:.0f}°{' mirrored' if self.mirror else ''} ×{self.scale:.2f}"


def posed(pair: Pair, draw: Draw) -> Pair:
    """``pair`` (in pixels) with the moving image turned, mirrored, scaled and shifted, on a canvas that holds it all."""
    image = pair.moving
    h, w = image.grid.shape
    c, s = math.cos(math.radians(draw.angle)), math.sin(math.radians(draw.angle))
    linear = draw.scale * np.array([[c, -s], [s, c]]) @ np.diag([1.0, -1.0 if draw.mirror else 1.0])
    middle = np.array([(h - 1) / 2, (w - 1) / 2])
    corners = np.array([[y, x] for y in (-0.5, h - 0.5) for x in (-0.5, w - 0.5)])
    moved = (corners - middle) @ linear.T
    size = np.ptp(moved, axis=0)
    shape = np.ceil(size * (1 + np.abs(draw.shift))).astype(int)
    centre = (shape - 1) / 2 + np.array(draw.shift) * size / 2
    back = np.linalg.inv(linear)
    index = np.stack(np.meshgrid(*[np.arange(n, dtype=np.float64) for n in shape], indexing="ij"), -1)
    at = (index - centre) @ back.T + middle  # [H', W', 2]
    data = image.data.to(torch.float32).numpy()
    fill = background(image)
    bands = []
    for band, colour in zip(data, fill, strict=True):
        smooth = gaussian_filter(band, 0.5 * max(1 / draw.scale - 1, 0)) if draw.scale < 1 else band
        values = map_coordinates(smooth, at.transpose(2, 0, 1), order=1, mode="nearest")
        inside = ((at > -0.5) & (at < np.array([h, w]) - 0.5)).all(-1)
        bands.append(np.where(inside, values, colour))
    out = torch.from_numpy(np.stack(bands))
    if not image.data.dtype.is_floating_point:
        out = out.round().clamp(0, 255)
    new = image.replace(data=out.to(image.data.dtype), grid=rf.Grid(tuple(int(n) for n in shape)))
    return dataclasses.replace(
        pair, name=f"{pair.name} [{draw}]", moving=new,
        original=lambda points: pair.original((points - centre) @ back.T + middle),
    )  # fmt: skip


def cropped(pair: Pair, rng: np.random.Generator, share: float = 0.4) -> Pair:
    """``pair`` (in pixels) with the moving image cropped to a random box of ``share`` of its area; the truth inside it counts."""
    h, w = pair.moving.grid.shape
    aspect = math.exp(rng.uniform(-0.3, 0.3))
    height = min(h, round(h * math.sqrt(share) * aspect))
    width = min(w, round(share * h * w / height))
    y, x = int(rng.integers(h - height + 1)), int(rng.integers(w - width + 1))
    new = pair.moving.replace(
        data=pair.moving.data[:, y : y + height, x : x + width].contiguous(), grid=rf.Grid((height, width))
    )
    inside = ((pair.p >= [y, x]) & (pair.p < [y + height, x + width])).all(axis=1)
    return dataclasses.replace(
        pair, name=f"{pair.name} [{height}×{width} at {y},{x}]", moving=new, q=pair.q[inside], p=pair.p[inside],
        original=lambda points: pair.original(points + np.array([y, x])),
    )  # fmt: skip


def recoloured(pair: Pair) -> Iterator[Pair]:
    """The moving image blurred, inverted, with another gamma, as float, grey and RGB."""
    data = pair.moving.data.to(torch.float32)
    top = 255.0
    grey = data.mean(dim=0, keepdim=True)
    ways: dict[str, Tensor] = {
        "blurred σ 3": torch.from_numpy(np.stack([gaussian_filter(b, 3.0) for b in data.numpy()])),
        "inverted": top - data,
        "gamma 0.5": top * (data / top) ** 0.5,
        "gamma 2": top * (data / top) ** 2,
        "float": data / top,
        "grey": grey,
        "RGB": grey.expand(3, -1, -1).contiguous(),
    }
    for name, values in ways.items():
        whole = values if name == "float" else values.round().clamp(0, 255).to(torch.uint8)
        image = rf.Image(whole, pair.moving.grid, name=name)
        yield dataclasses.replace(pair, name=f"{pair.name} {name}", moving=image)


def bent(pair: Pair, number: int, sigma: float = 20.0, amplitude: float = 8.0) -> Pair:
    """``pair`` (in pixels) with the moving image bent by a smooth random field of ``amplitude`` pixels at most."""
    h, w = pair.moving.grid.shape
    rng = np.random.default_rng(number)
    field = np.stack([gaussian_filter(rng.standard_normal((h, w)), sigma, mode="wrap") for _ in range(2)])
    field *= amplitude / np.linalg.norm(field, axis=0).max()
    index = np.stack(np.meshgrid(np.arange(float(h)), np.arange(float(w)), indexing="ij"))
    at = index + field  # new pixel → original position
    bands = [map_coordinates(b, at, order=1, mode="nearest") for b in pair.moving.data.to(torch.float32).numpy()]
    new = pair.moving.replace(data=torch.from_numpy(np.stack(bands)).round().to(pair.moving.data.dtype))

    def original(points: Array) -> Array:
        shift = np.stack([map_coordinates(f, points.T, order=1, mode="nearest") for f in field], axis=-1)
        return pair.original(points + shift)

    return dataclasses.replace(pair, name=f"{pair.name} bent {number}", moving=new, original=original)
