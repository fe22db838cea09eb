"""Images bent at random from one tissue: how far the maps of each to one of them, and to their mean, lie from the known ones.

    python benchmarks/templates.py [--images 12] [--size 256] [--bend 6] [--noise 4] [--seed 0] [--references 12]

A map to a single reference is compared with the known map to it; a map to the mean with the known map to the mean shape, which is
known up to one turn and shift common to all. Also printed: the error from image to image by way of either.
"""

from __future__ import annotations

import argparse
import itertools
import time
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates
from skimage import data

import regframe as rf

Floats = NDArray[np.float64]
PAD = 48
"""Pixels of tissue beyond the canvas, more than twice the largest bend."""
RIM = 36
"""Pixels at the rim where nothing is measured: there an image shows what the others do not."""


class Bent:
    """Images of one tissue with known bends.

    Args:
        n: how many.
        size: pixels per axis.
        bend: largest displacement in pixels, smooth over 40.
        noise: standard deviation, of 255.
        seed: of bends and noise.
    """

    def __init__(self, n: int, size: int, bend: float, noise: float, seed: int) -> None:
        rng = np.random.default_rng(seed)
        whole = size + 2 * PAD
        tissue = 255 - data.immunohistochemistry().astype(float).mean(-1)[:whole, :whole]
        self.n, self.size, self.bends, self.images = n, size, [], []
        grid = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), -1).reshape(-1, 2).astype(float)
        for k in range(n):
            field = np.stack([gaussian_filter(rng.standard_normal((whole, whole)), 40, mode="reflect") for _ in "yx"])
            self.bends.append(field * bend / np.linalg.norm(field, axis=0).max())
            seen = map_coordinates(tissue, (self.onto(k, grid) + PAD).T, order=3).reshape(size, size)
            noisy = (seen + rng.normal(0, noise, seen.shape)).astype(np.float32)
            self.images.append(rf.Image.from_array(noisy, "yx", name=f"image {k}"))
        line = np.linspace(RIM, size - 1 - RIM, 20)
        self.probes = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)

    def onto(self, k: int, at: Floats) -> Floats:
        """Where positions ``[N, 2]`` of image ``k`` lie in the tissue."""
        by = [map_coordinates(each, (at + PAD).T, order=3, mode="nearest") for each in self.bends[k]]
        return np.asarray(at + np.stack(by, 1))

    def back(self, k: int, at: Floats) -> Floats:
        """Where positions of the tissue lie in image ``k``."""
        x = at.copy()
        for _ in range(40):
            x = at - (self.onto(k, x) - x)
        return x

    def pairs(self, results: list[rf.Result]) -> float:
        """Mean error from image to image, in pixels."""
        found = []
        for k, other in itertools.permutations(range(self.n), 2):
            want = self.back(other, self.onto(k, self.probes))
            there = results[k].to_fixed(torch.from_numpy(self.probes))
            found.append(np.linalg.norm(results[other].to_moving(there).numpy() - want, axis=1).mean())
        return float(np.mean(found))

    def to_one(self, results: list[rf.Result], reference: int) -> float:
        """Mean error of the maps to one of the images."""
        found = []
        for k in range(self.n):
            if k != reference:
                want = self.back(reference, self.onto(k, self.probes))
                there = results[k].to_fixed(torch.from_numpy(self.probes)).numpy()
                found.append(np.linalg.norm(there - want, axis=1).mean())
        return float(np.mean(found))

    def to_mean(self, results: list[rf.Result]) -> float:
        """Mean error of the maps to the mean shape, which is known up to a turn and a shift."""
        want, got = [], []
        for k in range(self.n):
            tissue = self.onto(k, self.probes)
            want.append(np.mean([self.back(other, tissue) for other in range(self.n)], axis=0))
            got.append(results[k].to_fixed(torch.from_numpy(self.probes)).numpy())
        w, g = np.concatenate(want), np.concatenate(got)
        u, _, vt = np.linalg.svd((g - g.mean(0)).T @ (w - w.mean(0)))
        return float(np.linalg.norm(g - ((w - w.mean(0)) @ (u @ vt).T + g.mean(0)), axis=1).mean())


def main() -> None:
    """Print one line per reference, and one for the mean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("images", 12), ("size", 256), ("seed", 0), ("references", 12)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, value in (("bend", 6.0), ("noise", 4.0)):
        parser.add_argument(f"--{name}", type=float, default=value)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    bent = Bent(args.images, args.size, args.bend, args.noise, args.seed)
    best = np.inf
    for r in range(min(args.references, args.images)):
        began = time.process_time()
        results = [rf.register(bent.images[r], image) for image in bent.images]
        own = bent.to_one(results, r)
        best = min(best, own)
        spent = time.process_time() - began
        print(f"to image {r}: {own:.4f} px, image to image {bent.pairs(results):.4f} px, {spent:.0f} s", flush=True)
    began = time.process_time()
    group = rf.register_group(bent.images, reference="none")
    results = [group[k] for k in range(bent.n)]
    mean, told = bent.to_mean(results), group.metrics["template"]
    print(
        f"to the mean: {mean:.4f} px ({mean / best:.2f} of the best reference), image to image {bent.pairs(results):.4f} px, "
        f"bias {told['bias_px']:.4f} px, {len(group.pairs)} pairs, {time.process_time() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
