"""Points against an image: nuclei found again one by one, cells against their inverted density, and pairs that are wrong.

Beside ours: doing nothing, the best affine map of the true pairs, and the drawing's map alone, without the step to single
nuclei.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench_cells import bent
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

import regframe as rf
from regframe.solvers.mixed import nuclei as mixed_nuclei

Array = NDArray[np.float64]
DATA = Path(os.environ.get("REGFRAME_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
SPOILT: dict[str, dict[str, Any]] = {
    "as it is": {},
    "inverted": {"invert": True},
    "noise of a fifth of the range": {"noise": 0.2},
    "a fifth deleted, as many added, inverted, noise": {"noise": 0.1, "invert": True, "lost": 0.2},
}


@pytest.fixture(scope="module")
def data() -> Path:
    if not (DATA / "19_nuclei").is_dir():
        pytest.skip("no data; set REGFRAME_DATA to the folder that has 19_nuclei")
    return DATA


@dataclass(frozen=True)
class Nuclei:
    """A warped picture of nuclei, their middles before, and where they truly are after.

    Args:
        image: warped.
        points: middles in the unwarped picture, some lost and others invented where that is asked for.
        before: all middles ``[N, 2]``.
        after: where they are ``[N, 2]``.
        inside: which lie on the warped canvas.
        whole: which are cut by no border, before or after.
        own: the warped instances, and the id of each middle.
    """

    image: rf.Image
    points: rf.PointSet
    before: Array
    after: Array
    inside: NDArray[np.bool_]
    whole: NDArray[np.bool_]
    own: tuple[NDArray[np.integer[Any]], NDArray[np.integer[Any]]]

    def figures(self, at: Array) -> dict[str, float]:
        """Mean error of all on the canvas and of the whole ones, and the share whose nearest instance is its own."""
        error = np.linalg.norm(at - self.after, axis=1)
        mask, ids = self.own
        _, index = ndimage.distance_transform_edt(mask == 0, return_indices=True)
        near = np.clip(np.rint(at[self.inside]), 0, np.array(mask.shape) - 1).astype(int)
        found = mask[index[0][tuple(near.T)], index[1][tuple(near.T)]]
        return {
            "mean": float(error[self.inside].mean()),
            "whole": float(error[self.whole].mean()),
            "own": float((found == ids[self.inside]).mean()),
        }


def nuclei(
    folder: Path, seed: int, bend: float = 10.0, noise: float = 0.0, invert: bool = False, lost: float = 0.0
) -> Nuclei:
    """The picture turned by up to 8°, stretched by up to 5 %, shifted by up to 12 px and bent by ``bend`` px, black beyond."""
    import tifffile

    picture, mask = (tifffile.imread(folder / "19_nuclei" / name) for name in ("img2d.tif", "mask2d.tif"))
    picture, ids = picture.astype(np.float64), np.unique(mask)[1:]
    before = np.array(ndimage.center_of_mass(np.ones_like(mask), mask, ids))
    rng = np.random.default_rng(seed)
    size = np.array(picture.shape)
    middle = (size - 1) / 2
    angle, stretch, shift = np.deg2rad(rng.uniform(-8, 8)), np.exp(rng.uniform(-0.05, 0.05, 2)), rng.uniform(-12, 12, 2)
    linear = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.diag(stretch)
    waves = [(rng.uniform(-1.5, 1.5, 2), rng.uniform(0, 2 * np.pi), rng.normal(size=2)) for _ in range(6)]

    def field(y: Array) -> Array:
        out = np.zeros_like(y)
        for turns, phase, weight in waves:
            out += weight * np.sin(2 * np.pi * ((y / size) @ turns)[..., None] + phase)
        return out

    lattice = np.stack(np.meshgrid(*(np.arange(float(n)) for n in size), indexing="ij"), axis=-1)
    scale = bend / np.linalg.norm(field(lattice), axis=-1).max()

    def back(y: Array) -> Array:
        out: Array = (y - middle) @ linear.T + middle + shift + scale * field(y)
        return out

    at = back(lattice).transpose(2, 0, 1)
    warped = ndimage.map_coordinates(picture, at, order=3, mode="constant", cval=0)
    instances = ndimage.map_coordinates(mask, np.rint(at), order=0, mode="constant", cval=0)
    warped = warped + rng.normal(size=warped.shape) * noise * np.ptp(np.percentile(picture, [1, 99]))
    warped = warped.max() - warped if invert else warped
    after = before.copy()
    for _ in range(100):
        after = after + np.linalg.solve(linear, (before - back(after)).T).T
    kept = before[rng.random(len(before)) >= lost]
    points = np.concatenate([kept, rng.uniform(0, 1, (round(lost * len(before)), 2)) * size])
    inside = ((after >= 0) & (after <= size - 1)).all(axis=1)
    cut = set()
    for one in (mask, instances):
        cut |= set(np.concatenate([one[0], one[-1], one[:, 0], one[:, -1]]).tolist())
    whole = inside & np.array([i not in cut for i in ids.tolist()])
    image = rf.Image.from_array(warped.astype(np.float32))
    return Nuclei(image, rf.PointSet(torch.from_numpy(points)), before, after, inside, whole, (instances, ids))


def best_affine(p: Array, q: Array) -> Array:
    rows = np.c_[p, np.ones(len(p))]
    out: Array = rows @ np.linalg.lstsq(rows, q, rcond=None)[0]
    return out


@pytest.mark.parametrize("spoilt", SPOILT)
@pytest.mark.parametrize("bend", [5.0, 10.0, 15.0])
def test_nuclei(
    data: Path, spoilt: str, bend: float, small: bool, report: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prints mean errors over random maps, points on either side, and how many middles lie on their own nucleus."""
    if small and (spoilt != "as it is" or bend != 5):
        pytest.skip("one is enough for a quick run")
    found: dict[str, list[dict[str, float]]] = {}
    verdicts = []
    for seed in range(1 if small else 5):
        case = nuclei(data, seed, bend, **SPOILT[spoilt])
        before = torch.from_numpy(case.before)
        found.setdefault("doing nothing", []).append(case.figures(case.before))
        affine = best_affine(case.before, case.after)
        found.setdefault("best affine map of the true pairs", []).append(case.figures(affine))
        for moving in (True,) if small else (True, False):
            side = "points moving" if moving else "points fixed"
            for alone in (True, False):
                with monkeypatch.context() as patch:
                    if alone:
                        patch.setattr(mixed_nuclei, "settle", lambda fit, *_: (fit, None))
                    result = rf.register(case.image, case.points) if moving else rf.register(case.points, case.image)
                at = result.to_fixed(before) if moving else result.to_moving(before)
                name = f"{side}, drawing alone" if alone else side
                found.setdefault(name, []).append(case.figures(at.numpy()))
                if not alone:
                    verdicts.append(result.verdict)
    for name, rows in found.items():
        mean, whole, own = (np.array([row[key] for row in rows]) for key in ("mean", "whole", "own"))
        report(f"nuclei, bent {bend:g} px, {spoilt}: {name}: mean {mean.mean():.2f} px (worst {mean.max():.2f}), of whole "
               f"nuclei {whole.mean():.2f}, on their own {own.mean():.3f} (worst {own.min():.3f})")  # fmt: skip
    report(f"nuclei, bent {bend:g} px, {spoilt}: verdicts {' '.join(verdicts)}")
    assert all(row["own"] >= 0.97 for row in found["points moving"])


@pytest.mark.parametrize("quadrant", range(4))
def test_xenium(data: Path, quadrant: int, small: bool, report: Callable[[str], None]) -> None:
    """A quadrant of the cells, bent by up to 100 µm, a fifth deleted, as bare points against the inverted density of all."""
    if small and quadrant != 3:
        pytest.skip("one is enough for a quick run")
    with gzip.open(data / "04_st_xenium_breast" / "pikachu.csv.gz", "rt") as file:
        rows = [line.split(",", 3) for line in file][1:]
    cells = np.array([[float(row[2]), float(row[1])] for row in rows])
    upper = cells > (cells.min(axis=0) + cells.max(axis=0)) / 2
    part = cells[(upper[:, 0] == bool(quadrant & 1)) & (upper[:, 1] == bool(quadrant & 2))]
    kept = np.random.default_rng(quadrant).random(len(part)) < 0.8
    points = rf.PointSet(torch.from_numpy(bent(part, 100.0, quadrant)[kept]), "um")
    density = rf.open(cells, adapter="cells", columns="y,x", unit="um")
    assert isinstance(density, rf.Image)
    image = density.replace(data=density.data.max() - density.data)
    for name, result in (("moving", rf.register(image, points)), ("fixed", rf.register(points, image))):
        at = result.to_fixed(points.coords) if name == "moving" else result.to_moving(points.coords)
        error = np.linalg.norm(at.numpy() - part[kept], axis=1)
        report(f"Xenium quadrant {quadrant}, points {name}: median {np.median(error):.1f} µm, p90 {np.quantile(error, 0.9):.1f}, "
               f"{result.verdict}")  # fmt: skip
        assert np.median(error) <= 5


def test_wrong_pairs(data: Path, small: bool, report: Callable[[str], None]) -> None:
    """Points that have nothing to do with the image: none may pass."""
    if small:
        pytest.skip("tests/solvers/test_mixed.py has points that do not belong to an image, on either side")
    verdicts = []
    for seed in range(6):
        case, rng = nuclei(data, seed, noise=0.1), np.random.default_rng(seed)
        for points in (rng.uniform(0, 512, (125, 2)), case.before + 20 * rng.normal(size=case.before.shape)):
            cloud = rf.PointSet(torch.from_numpy(points))
            verdicts += [rf.register(case.image, cloud).verdict, rf.register(cloud, case.image).verdict]
    report(f"wrong pairs: {', '.join(f'{verdicts.count(v)} {v}' for v in ('pass', 'warn', 'fail'))}")
    assert "pass" not in verdicts


def test_figures_see_a_swap(data: Path) -> None:
    """The figures are 0 and 1 for the truth, and see two nuclei exchanged."""
    case = nuclei(data, 0)
    assert case.figures(case.after)["mean"] == 0
    swapped = case.after.copy()
    first = int(np.flatnonzero(case.whole)[0])
    other = int(cKDTree(case.after).query(case.after[first], k=2)[1][1])
    swapped[[first, other]] = swapped[[other, first]]
    assert case.figures(swapped)["own"] < case.figures(case.after)["own"]
