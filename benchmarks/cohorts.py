"""Volumes without a reference: a real brain under known bends, and two real slabs with labels.

python benchmarks/cohorts.py --animals 4 --factor 5     # the mouse volume of 10_3d_mouse_atlas
python benchmarks/cohorts.py --slabs                    # the two human slabs of 14_3d_human
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

import regframe as rf

Floats = NDArray[np.float64]
DATA = Path(os.environ.get("REGFRAME_DATA", "data"))
BEND, NOISE = 2.0, 4.0
"""Largest displacement in voxels of the coarse volume, and standard deviation of the noise in its values (0 to 255)."""


def averaged(image: rf.Image, factor: tuple[int, ...]) -> rf.Image:
    """A volume averaged over blocks."""
    data = torch.nn.functional.avg_pool3d(image.data.float()[None], factor)[0]
    grid = image.grid.in_blocks(factor, [(f - 1) / 2 for f in factor])
    return image.replace(
        data=data, grid=rf.Grid(tuple(data.shape[1:]), grid.spacing, grid.origin, grid.unit), weight=None
    )


def made(n: int, factor: int, seed: int) -> tuple[list[rf.Image], list[Floats]]:
    """``n`` animals, and the displacement ``[3, *S]`` in voxels that takes each one's voxels to the tissue."""
    rng = np.random.default_rng(seed)
    found = rf.open(DATA / "10_3d_mouse_atlas" / "CIVM_mouse.ISO.nii.gz")
    assert isinstance(found, rf.Image)
    base = averaged(found, (factor,) * 3)
    values = base.data[0].numpy().astype(float)
    grid = np.stack(np.meshgrid(*map(np.arange, values.shape), indexing="ij")).astype(float)
    images, bends = [], []
    for k in range(n):
        bend = np.stack([gaussian_filter(rng.standard_normal(values.shape), 7, mode="reflect") for _ in "zyx"])
        bend *= BEND / np.linalg.norm(bend, axis=0).max()
        seen = map_coordinates(values, grid + bend, order=3, mode="nearest") + rng.normal(0, NOISE, values.shape)
        images.append(base.replace(data=torch.from_numpy(seen.astype(np.float32))[None], name=f"animal {k}"))
        bends.append(bend)
    return images, bends


def errors(results: list[rf.Result], images: list[rf.Image], bends: list[Floats]) -> tuple[float, float]:
    """Mean distance in voxels from animal to animal over the tissue, by the maps and by none."""
    grid = images[0].grid
    spacing, origin = np.array(grid.spacing), np.array(grid.origin)
    tissue = np.argwhere(gaussian_filter(images[0].data[0].numpy(), 2) > 40).astype(float)
    at = tissue[:: max(1, len(tissue) // 2000)]
    found, none = [], []
    for k, other in itertools.permutations(range(len(images)), 2):
        place = at + np.stack([map_coordinates(b, at.T, order=3, mode="nearest") for b in bends[k]], axis=1)
        want = place.copy()
        for _ in range(30):
            by = np.stack([map_coordinates(b, want.T, order=3, mode="nearest") for b in bends[other]], axis=1)
            want = place - by
        there = results[k].to_fixed(torch.from_numpy(at * spacing + origin))
        got = (results[other].to_moving(there).numpy() - origin) / spacing
        found.append(np.linalg.norm(got - want, axis=1).mean())
        none.append(np.linalg.norm(at - want, axis=1).mean())
    return float(np.mean(found)), float(np.mean(none))


def dice(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """Mean overlap of the labels that both have in 50 voxels or more."""
    known = [v for v in np.unique(one) if v and (one == v).sum() >= 50 and (other == v).sum() >= 50]
    return float(
        np.mean([2 * ((one == v) & (other == v)).sum() / ((one == v).sum() + (other == v).sum()) for v in known])
    )


def slabs() -> None:
    """Two real slabs to their mean; their labels carried there and compared."""
    folder = DATA / "14_3d_human" / "jlf"
    images, labels = [], []
    for k in (1, 2):
        shown, ids = rf.open(folder / f"ilist{k}.nii.gz"), rf.open(folder / f"slist{k}.nii.gz", labels=True)
        assert isinstance(shown, rf.Image)
        assert isinstance(ids, rf.Image)
        axis = int(np.argmin(shown.grid.shape))
        images.append(averaged(shown, tuple(1 if d == axis else 3 for d in range(3))).replace(name=f"slab {k}"))
        labels.append(ids)
    began = time.process_time()
    group = rf.register_group(images, reference="none")
    spent = time.process_time() - began
    grid = labels[group.reference].grid
    carried = [rf.resample(ids, group[k].transform, grid).data[0].numpy() for k, ids in enumerate(labels)]
    same = rf.Affine.identity(3, grid.unit)
    before = dice(*(rf.resample(ids, same, grid).data[0].numpy() for ids in labels))
    told = f"labels' Dice in the mean {dice(*carried):.3f}, {before:.3f} as they lie"
    print(f"slabs: {group!r}, {told}, {spent:.0f} s of processor")
    print(f"  {group.metrics['template']}")


def main() -> None:
    """Print what is left of the known bends, to one animal and to the mean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--animals", type=int, default=4)
    parser.add_argument("--factor", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--references", nargs="+", default=["0", "none"])
    parser.add_argument("--slabs", action="store_true")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.slabs:
        slabs()
        return
    images, bends = made(given.animals, given.factor, given.seed)
    print(f"{given.animals} volumes of {' x '.join(map(str, images[0].grid.shape))} voxels", flush=True)
    for reference in given.references:
        began = time.process_time()
        group = rf.register_group(images, reference=reference)
        results = [group[k] for k in range(given.animals)]
        off, none = errors(results, images, bends)
        print(f"reference {reference}: animal to animal {off:.3f} voxels ({none:.2f} without a map), {len(group.pairs)} pairs, "
              f"{time.process_time() - began:.0f} s of processor, {group.metrics.get('template', '')}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
