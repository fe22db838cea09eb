"""How right mosaics are: a real picture is cut into overlapping fields with known places, and put together again.

    python benchmarks/mosaics.py --seeds 101 102        # 3 x 4 fields of 512 px, a tenth of overlap
    python benchmarks/mosaics.py --seeds 101 --search   # nothing is said of where they lie
    python benchmarks/mosaics.py --null                 # evidence between strips that share nothing

Every field is shifted by up to 15 px against the stated place and turned by up to 0.5°; its edges are darker than its
middle by 15 to 30 %, its camera adds noise, and one field shows glass alone.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

import regframe as rf
from regframe.mosaic import overlap
from regframe.mosaic.mosaic import planned

Floats = NDArray[np.float64]
DATA = Path(os.environ.get("REGFRAME_DATA", "data"))
ROWS, COLUMNS, SIZE, SHARED = 3, 4, 512, 0.1
"""Fields, pixels of each per axis, and the overlap of neighbours over that."""
STAGE, TURN = 15.0, 0.5
"""Largest error of a stated place in pixels and largest turn in degrees."""
PAD = 64
"""Pixels of the picture beyond the fields on each side."""


@dataclass(frozen=True)
class Made:
    """Fields that were cut out of a picture.

    Args:
        fields: pixels of each.
        poses: ``[3, 3]`` of each, from its pixels to those of the picture.
        stated: places that are said of them, in pixels.
        blank: number of the field that shows glass alone.
        light: brightness of a field, 1 in the middle.
    """

    fields: list[NDArray[np.uint16]]
    poses: list[Floats]
    stated: list[Floats]
    blank: int
    light: Floats


def picture(name: str) -> Floats:
    """A real picture, bright where there is tissue."""
    if name == "he":
        shown = tifffile.imread(DATA / "18_slide_formats" / "cmu_small_region.svs").astype(np.float64).mean(axis=2)
        return 260.0 - shown
    if name == "ihc":
        from PIL import Image

        image = Image.open(DATA / "02_histology_landmarks" / "lung-lesion_1" / "Izd2-29-041-w35_proSPC.jpg")
        return 260.0 - np.asarray(image.resize((image.width * 2, image.height * 2), 3), dtype=np.float64).mean(axis=2)
    raise ValueError(f"wanted the picture he or ihc, got {name!r}")


def cut(base: Floats, seed: int, size: int = SIZE, blank: int | None = None) -> Made:
    """The fields of a seed."""
    rng = np.random.default_rng(seed)
    step, c = round(size * (1 - SHARED)), (size - 1) / 2
    rows, columns = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    middle = c * rng.uniform(0.9, 1.1, 2)
    light = 1 - rng.uniform(0.15, 0.3) * ((rows - middle[0]) ** 2 + (columns - middle[1]) ** 2) / c**2 / 2
    empty = int(rng.integers(ROWS * COLUMNS)) if blank is None else blank
    fields, poses, stated = [], [], []
    for k in range(ROWS * COLUMNS):
        place = np.array(divmod(k, COLUMNS)) * float(step)
        turn = math.radians(rng.uniform(-TURN, TURN))
        pose = np.eye(3)
        pose[:2, :2] = [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]
        pose[:2, 2] = place + rng.uniform(-STAGE, STAGE, 2) + c - pose[:2, :2] @ [c, c]
        at = np.stack([rows, columns], axis=-1).reshape(-1, 2) @ pose[:2, :2].T + pose[:2, 2] + PAD
        seen = map_coordinates(base, at.T, order=3, mode="reflect").reshape(size, size)
        if k == empty:
            seen = np.full((size, size), float(np.quantile(base, 0.02)))
        counts = rng.poisson(np.clip(seen * light, 0, None) * 4) / 4 + rng.normal(0, 2, seen.shape)
        fields.append(np.clip(np.rint(counts * 16), 0, 65535).astype(np.uint16))
        poses.append(pose)
        stated.append(place)
    return Made(fields, poses, stated, empty, light)


def images(made: Made) -> list[rf.Image]:
    """The fields as images, named by row and column."""
    return [
        rf.Image.from_array(one, "yx", name=f"r{k // COLUMNS}c{k % COLUMNS}", channels=("grey",))
        for k, one in enumerate(made.fields)
    ]


def errors(mosaic: rf.Mosaic, made: Made) -> tuple[Floats, Floats]:
    """Errors in pixels of the fields' middles and of their corners, after the one rigid map that the whole is free in."""
    n = made.fields[0].shape[0] - 1.0
    corners = np.array([[n / 2, n / 2], [0, 0], [0, n], [n, 0], [n, n]])
    found, wanted = [], []
    for result, pose in zip(mosaic.results, made.poses, strict=True):
        if result is not None:
            found.append(result.transform.points(rf_tensor(corners)).numpy())
            wanted.append(corners @ pose[:2, :2].T + pose[:2, 2])
    a, b = np.concatenate(found), np.concatenate(wanted)
    u, _, vt = np.linalg.svd((b - b.mean(axis=0)).T @ (a - a.mean(axis=0)))
    off = (a - a.mean(axis=0)) @ (u @ vt).T + b.mean(axis=0) - b
    away = np.linalg.norm(off, axis=1).reshape(-1, 5)
    return away[:, 0], away[:, 1:].ravel()


def rf_tensor(values: Floats) -> torch.Tensor:
    """A tensor of positions."""

    return torch.from_numpy(values)


def evenness(mosaic: rf.Mosaic, shown: list[rf.Image], made: Made, folder: Path) -> tuple[float, float]:
    """Root mean square error of the brightness that is told, and of none, over the fields, in percent of the mean."""
    plan = planned(mosaic, folder / "x.ome.zarr", shown, "nearest", True)
    flat = plan.fields[0].pyramid.levels[0].read.flat
    size = made.light.shape
    told = flat.over(size, tuple(slice(0, n) for n in size))[0]
    true = made.light / made.light.mean()
    return 100 * float(np.std(told / true)), 100 * float(np.std(true))


def null() -> None:
    """Evidence, beyond chance, for the best shift between strips that share nothing."""
    rng, found = np.random.default_rng(5), []
    pictures = [picture("he"), picture("ihc"), gaussian_filter(rng.standard_normal((900, 900)), 2.0) * 100 + 200]
    for k in range(90):
        base = pictures[k % 3]
        h, w = int(rng.choice([200, 300, 450])), int(rng.choice([50, 90, 130]))
        while True:
            (y, x), (v, u) = (
                (rng.integers(0, base.shape[0] - h + 1), rng.integers(0, base.shape[1] - w + 1)) for _ in range(2)
            )
            if abs(y - v) >= h or abs(x - u) >= 2 * w:
                break
        strips = [
            rng.poisson(np.clip(s, 0, None) * 4) / 4 for s in (base[y : y + h, x : x + w], base[v : v + h, u : u + w])
        ]
        one = overlap.match(*strips, (-40, 20 - w), (40, w - 20))
        if one is not None:
            found.append(one.confidence)
    print(
        f"{len(found)} pairs of strips: confidence at most {max(found):.3f}, 90 % below {np.quantile(found, 0.9):.3f}"
    )


def main() -> None:
    """Cut, put together, print what is left of the known places."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--picture", default="he")
    parser.add_argument("--size", type=int, default=SIZE)
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--null", action="store_true")
    given = parser.parse_args()
    if given.null:
        null()
        return
    base = picture(given.picture)
    for seed in given.seeds:
        made = cut(base, seed, given.size)
        shown = images(made)
        began, cpu = time.perf_counter(), time.process_time()
        mosaic = rf.register_mosaic(shown, layout="none" if given.search else made.stated)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        lost = [name for name, result in zip(mosaic.names, mosaic.results, strict=True) if result is None]
        middles, corners = errors(mosaic, made)
        print(f"seed {seed}: {mosaic!r}, {cpu:.1f} s of processor ({seconds:.1f} s)")
        print(
            f"  middles {np.sqrt((middles**2).mean()):.3f} px rms, worst {middles.max():.3f}; corners "
            f"{np.sqrt((corners**2).mean()):.3f} rms, worst {corners.max():.3f}; without a place {lost} (blank: "
            f"{mosaic.names[made.blank]})"
        )
        used = [pair for pair in mosaic.metrics["pairs"] if pair["used"]]
        print(f"  {len(used)} overlaps used of {len(mosaic.metrics['pairs'])} tried")
        with tempfile.TemporaryDirectory() as scratch:
            told, none = evenness(mosaic, shown, made, Path(scratch))
            print(f"  flat field: {told:.2f} % rms off, {none:.2f} % without")
            began, cpu = time.perf_counter(), time.process_time()
            mosaic.write_slide(Path(scratch) / "m.ome.zarr", images=shown, workers=1)
            cpu = time.process_time() - cpu
            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(
                f"  slide written in {cpu:.1f} s of processor ({time.perf_counter() - began:.1f} s), peak memory {most:.0f} MiB"
            )


if __name__ == "__main__":
    main()
