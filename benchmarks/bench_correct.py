"""A made fault in a right map, mended in its region by landmarks and images: how far off the map is before and after.

``python benchmarks/bench_correct.py --seeds 40:46 [--landmarks 5] [--no-images]``. Every seed is one fault in made tissue and one
in real H&E (a square of a slide of `data/`, where there is one). Each side has 700 px; the moving one is in other dyes
(`proving.looks.stain`), with noise, turned by up to 6°. The map is right but for a bump of 30 px, a Gaussian of 60 px; the region
is drawn at 1.1 times its rim.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import tifffile
import torch
from proving.looks import Picture, stain
from proving.sources import Array
from scipy.ndimage import gaussian_filter

import regframe as rf
from regframe.correction.here import correct
from regframe.correction.images import Looked
from regframe.correction.region import Region
from regframe.maps.affine import Affine
from regframe.maps.flow import Flow
from regframe.maps.resample import resample
from regframe.maps.sequence import Sequence

SIZE, SPREAD, FAULT = 700, 60.0, 30.0
"""Pixels: of each side of a picture, of the bump's standard deviation, of its height."""
CLICK = 0.5
"""Standard deviation of a click per axis, in pixels: 0.7 px from where it should be."""
NOISE = 6.0
"""Standard deviation of the moving side's noise, of 255."""
NEAR, GLASS = 8.0, 25.0
"""Where tissue lies: smoothed by so many pixels it is darker than white by so much (of 255). On glass nothing tells where a
position belongs."""
SPOTS = ((0.0, 0.0), (-0.95, 0.3), (0.75, 0.9), (0.4, -1.05), (-0.6, -0.75))
"""Where landmarks are clicked, about the middle of the fault, in multiples of `SPREAD`."""


def made(rng: np.random.Generator) -> Array:
    """Brightfield noise of several scales, ``[3, H, W]`` (0 … 255)."""
    noise = np.stack([gaussian_filter(rng.standard_normal((SIZE, SIZE)), s) for s in (2.5, 4, 7)])
    ink = (noise - noise.min(axis=(1, 2), keepdims=True)) / np.ptp(noise, axis=(1, 2), keepdims=True)
    return np.rint(255 - 200 * ink)


def real(rng: np.random.Generator, path: Path) -> Array:
    """A square of a slide in H&E, as much of it tissue as three draws find, ``[3, H, W]`` (0 … 255)."""
    whole = tifffile.imread(path, key=0).astype(np.float64)
    corners = [[int(rng.integers(0, n - SIZE)) for n in whole.shape[:2]] for _ in range(3)]
    squares = [whole[y : y + SIZE, x : x + SIZE] for y, x in corners]
    return min(squares, key=lambda square: float(square.mean())).transpose(2, 0, 1)


def image(values: Array) -> rf.Image:
    """Channels ``[3, H, W]`` as an image."""
    grid = rf.Grid((SIZE, SIZE))
    return rf.Image(torch.from_numpy(np.rint(values.clip(0, 255)).astype(np.uint8)), grid, ("R", "G", "B"))


def faulty(true: Affine, middle: Array, towards: Array) -> rf.Result:
    """A result whose map is off by up to `FAULT` within three `SPREAD` of ``middle``, and right elsewhere."""
    nodes = rf.Grid((SIZE // 4 + 1, SIZE // 4 + 1), (4.0, 4.0))
    away = np.linalg.norm(nodes.coords().numpy() - middle, axis=-1) / SPREAD
    bump = FAULT * np.exp(-0.5 * away**2) * np.clip(3 - away, 0, 1)
    velocity = torch.from_numpy(towards[:, None, None] * bump)[None].to(torch.float32)
    canvas = rf.Grid((SIZE, SIZE))
    figures = {"neighbouring_sections": False, "shared_structure": 0.6}
    return rf.Result(Sequence((true, Flow(velocity, nodes, 4))), canvas, canvas, figures, rf.Config(), true)


def around(middle: Array, radius: float = 3.3 * SPREAD) -> Region:
    """What a hand draws about the fault: 24 corners."""
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return Region.of([(middle + radius * np.stack([np.sin(angle), np.cos(angle)], axis=1)).tolist()])


def one(seed: int, path: Path | None, landmarks: int, images: bool) -> str:
    """Mends one fault; a line of figures, in pixels."""
    rng = np.random.default_rng(seed)
    values = made(rng) if path is None else real(rng, path)
    fixed = image(values)
    turn, middle = np.radians(rng.uniform(-6, 6)), rng.uniform(280, 420, 2)
    c, s = np.cos(turn), np.sin(turn)
    true = Affine(torch.tensor([[c, -s, 20.0], [s, c, -15.0], [0, 0, 1]], dtype=torch.float64), "px", "px")
    picture = Picture(values / 255, np.ones(values.shape[1:], np.bool_), np.ones(3), stained=True)
    stained = 255 * stain(rng, picture).data + rng.normal(0, NOISE, values.shape)
    moving = resample(image(stained), true.inverse(), fixed.grid, "auto")
    angle = rng.uniform(0, 2 * np.pi)
    base = faulty(true, middle, np.array([np.sin(angle), np.cos(angle)]))
    spots = np.array(SPOTS)[:landmarks] + rng.normal(0, 0.15, (landmarks, 2))
    q = torch.from_numpy(middle + SPREAD * spots)
    clicks = torch.from_numpy(rng.normal(0, CLICK, (landmarks, 2)))
    p = true.inverse().points(q) + clicks
    looked = Looked.of(fixed, moving) if images else None
    region, began = around(middle), time.process_time()
    found = correct(base, region, p, q, looked)
    took = time.process_time() - began
    at = fixed.grid.coords()[::3, ::3].reshape(-1, 2)
    truth, inside = true.inverse().points(at), torch.from_numpy(region.depth(at.numpy()) > 0)
    before, after = ((map_.transform.inverse().points(at) - truth).norm(dim=1) for map_ in (base, found))
    outside = float((after - before)[~inside].abs().max())
    tissue = torch.from_numpy(gaussian_filter(255 - values.mean(axis=0), NEAR)[::3, ::3].reshape(-1) > GLASS)
    off, seen = after[inside], after[inside & tissue]
    return (
        f"{'made' if path is None else 'real'} {seed}: {float(before.max()):.1f} -> mean {float(off.mean()):.2f}, "
        f"95 of 100 {float(off.quantile(0.95)):.2f}, most {float(seen.max()):.2f} on tissue, "
        f"{float(off.max()):.2f} with glass, farthest click {float(clicks.norm(dim=1).max()):.2f}, "
        f"outside {outside:.1e}, images {found.metrics['corrections'][-1]['images']}, {took:.2f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="40:46", help="first and one beyond the last")
    parser.add_argument("--landmarks", type=int, default=len(SPOTS))
    parser.add_argument("--no-images", action="store_true")
    data = Path(os.environ.get("REGFRAME_DATA", "data"))
    parser.add_argument("--slide", type=Path, default=data / "18_slide_formats" / "cmu_small_region.svs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    first, last = map(int, given.seeds.split(":"))
    for seed in range(first, last):
        for path in (None, given.slide):
            if path is None or path.exists():
                print(one(seed, path, given.landmarks, not given.no_images), flush=True)


if __name__ == "__main__":
    main()
