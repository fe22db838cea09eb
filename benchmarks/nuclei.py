"""Which nucleus is which between two made rounds of a real picture (``19_nuclei``), found in the pixels or as label images.

    python benchmarks/nuclei.py --seeds 0 1 2 3 4 --part right

The second round is the picture turned by up to 1°, shifted by up to 15 px, bent by up to 3 px, with a tenth of the
nuclei taken out and noise; its map is known, so that what is measured is the finding and the matching. A match is right
where both places lie in one nucleus. Recall counts every nucleus of which both rounds show 12 pixels or more, cut by
the border or touching others too.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import tifffile
from scipy import ndimage

import regframe as rf
from regframe.group import nuclei

DATA = Path(os.environ.get("REGFRAME_DATA", "data"))
PARTS = {"left": slice(0, 256), "right": slice(256, 512), "all": slice(0, 512)}
"""Constants were set on the left half."""


def once(seed: int, part: str, labels: bool) -> tuple[tuple[int, ...], list[float], list[bool]]:
    """Nuclei matched right, wrong pairs, nuclei that both show, the same of those that no border cuts; and every pair's
    probability and whether it is right."""
    columns = PARTS[part]
    picture = tifffile.imread(DATA / "19_nuclei" / "img2d.tif")[:, columns].astype(np.float64)
    mask = tifffile.imread(DATA / "19_nuclei" / "mask2d.tif")[:, columns].astype(np.int32)
    rng, shape = np.random.default_rng(seed), np.array(picture.shape)
    at = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).astype(float)
    bend = np.stack([ndimage.gaussian_filter(rng.standard_normal(shape), 60, mode="reflect") for _ in range(2)])
    bend *= 3 / np.linalg.norm(bend, axis=0).max()
    angle, middle = np.deg2rad(rng.uniform(-1, 1)), (shape - 1) / 2
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shift = rng.uniform(-15, 15, 2)
    there = np.tensordot(turn, at + bend - middle[:, None, None], 1) + (middle + shift)[:, None, None]
    known = np.unique(mask)[1:]
    gone = np.isin(mask, rng.choice(known, len(known) // 10, replace=False))
    dark = float(np.median(picture[mask == 0]))
    taken = np.where(ndimage.binary_dilation(gone, iterations=2) & ((mask == 0) | gone), dark, picture)
    seen = ndimage.map_coordinates(taken, there, order=3, mode="constant", cval=dark)
    other_mask = ndimage.map_coordinates(np.where(gone, 0, mask), there, order=0, mode="constant")
    shown = [rng.poisson(np.clip(values, 0, None) * 4) for values in (picture, seen)]
    if labels:
        one, other = (nuclei.of_labels(rf.Image.from_array(m, "yx", labels=True)) for m in (mask, other_mask))
    else:
        one, other = (nuclei.found(rf.Image.from_array(values.astype(np.float32), "yx")) for values in shown)

    def forward(at: np.ndarray) -> np.ndarray:
        return np.stack([ndimage.map_coordinates(band, at.T, order=1, mode="nearest") for band in there], axis=1)

    def back(at: np.ndarray) -> np.ndarray:
        return np.asarray((at - middle - shift) @ turn + middle)

    def within(at: np.ndarray) -> np.ndarray:
        return np.asarray(((at >= 0) & (at <= shape - 1)).all(axis=1))

    fixed, moving = one.shared(lambda at: within(back(at))), other.shared(lambda at: within(forward(at)))
    moved, on = forward(moving), within(back(fixed))
    found = nuclei.match(fixed, moved, on, one.size)
    own, its = (
        values[tuple(np.clip(np.rint(coords).astype(int), 0, shape - 1).T)]
        for values, coords in ((mask, fixed[found.fixed]), (other_mask, moving[found.moving]))
    )
    right, sure = (own == its) & (own > 0), found.probability >= 0.5
    areas = [np.bincount(m.ravel(), minlength=int(mask.max()) + 1)[1:] for m in (mask, other_mask)]
    both = (areas[0] >= 12) & (areas[1] >= 12)
    cut = {int(v) for m in (mask, other_mask) for edge in (m[0], m[-1], m[:, 0], m[:, -1]) for v in np.unique(edge)}
    ids = set((np.flatnonzero(both) + 1).tolist())
    matched, wrong = set(own[right & sure].tolist()), int((~right & sure).sum())
    counts = (len(matched & ids), wrong, len(ids), len(matched & (ids - cut)), len(ids - cut))
    return counts, found.probability.tolist(), right.tolist()


def main() -> None:
    """Print precision, recall and calibration over seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--part", choices=tuple(PARTS), default="all")
    given = parser.parse_args()
    for labels in (True, False):
        runs = [once(seed, given.part, labels) for seed in given.seeds]
        hits, wrong, there, inner, whole = np.sum([run[0] for run in runs], axis=0)
        p, r = (np.concatenate([np.array(run[k], dtype=float) for run in runs]) for k in (1, 2))
        bins = np.minimum((p * 10).astype(int), 9)
        off = sum(abs(p[bins == b].mean() - r[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins))
        print(f"{'labels' if labels else 'pixels'}: precision {hits / (hits + wrong):.3f}, recall {hits / there:.3f} "
              f"({inner / whole:.3f} of those that no border cuts), calibration {off:.3f}, {there} nuclei")  # fmt: skip


if __name__ == "__main__":
    main()
