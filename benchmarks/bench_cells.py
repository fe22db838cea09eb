"""Cells: how fast a million are splatted and how true the raster is; how well real tables are aligned.

The rival is the usual way: a 2D histogram of whole pixels, then scipy's Gaussian filter. It is one thread's, forgets where in
its pixel a cell lies, and is compared by its error too.
"""

from __future__ import annotations

import gzip
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regframe_cells as rc
import torch
import truth
from numpy.typing import NDArray
from records import record
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

import regframe as rf
from regframe.testing.bench import interleaved

_host = pytest.importorskip("regframe._host", reason="the host module is not built")

Array = NDArray[np.float64]
DATA = Path(os.environ.get("REGFRAME_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
SIGMA = 1.5


@pytest.fixture(scope="module")
def data() -> Path:
    if not (DATA / "05_st_heart").is_dir():
        pytest.skip("no data; set REGFRAME_DATA to the folder that has 05_st_heart")
    return DATA


def dense(points: Array, weights: Array, side: int) -> Array:
    """Every point on every pixel ``[side, side]``, float64, each Gaussian renormalised over the canvas."""
    out, at = np.zeros((side, side)), np.arange(float(side))
    for start in range(0, len(points), 4000):
        part = slice(start, start + 4000)
        y, x = (np.exp(-0.5 * ((at - points[part, d, None]) / SIGMA) ** 2) for d in (0, 1))
        out += (y * (weights[part, None] / y.sum(axis=1, keepdims=True))).T @ (x / x.sum(axis=1, keepdims=True))
    return out


def test_splat(small: bool, threads: int, report: Callable[[str], None]) -> None:
    """A million cells of any weight onto 1000 x 1000 pixels, borders included."""
    n, side = (2_000, 60) if small else (1_000_000, 1000)
    rng = np.random.default_rng(0)
    points, weights = rng.uniform(-0.5, side - 0.5, (n, 2)), rng.uniform(0.5, 2, n)
    some = min(n, 40_000)

    def splat(kept: int, dtype: Any = np.float32, count: int = threads) -> Any:
        return _host.splat(points[:kept], weights[:kept].astype(dtype), (side, side), (0, 0), (1, 1), SIGMA, count)[0][
            0
        ]

    def usual(kept: int) -> Array:
        edges = np.arange(side + 1) - 0.5
        counts = np.histogram2d(*points[:kept].T, bins=[edges, edges], weights=weights[:kept])[0]
        out: Array = gaussian_filter(counts, SIGMA, mode="constant")
        return out

    began = time.perf_counter()
    wanted = dense(points[:some], weights[:some], side)
    slow = (time.perf_counter() - began) * n / some
    errors = {
        name: float(np.abs(out - wanted).max() / wanted.max())
        for name, out in (("ours", splat(some)), ("usual", usual(some)))
    }
    assert errors["ours"] < 1e-5
    whole, other = splat(n), usual(n)
    mass = float(whole.sum(dtype=np.float64) / weights.sum() - 1)
    assert abs(mass) < 1e-6
    assert np.array_equal(whole, splat(n, count=1))
    runs = {"ours": lambda: splat(n), "one": lambda: splat(n, count=1), "usual": lambda: usual(n)}
    seconds = interleaved(runs, rounds=1 if small else 3)
    if small:
        return
    ours, one, theirs = (seconds[name] for name in ("ours", "one", "usual"))
    report(
        f"{n} cells on {side}²: {ours:.3f} s on {threads} threads, {one:.3f} s on 1; histogram and filter {theirs:.3f} s "
        f"({theirs / ours:.1f} x), every pixel of every Gaussian {slow:.0f} s "
        f"({slow / ours:.0f} x); error over the peak {errors['ours']:.1e} and {errors['usual']:.1e}; "
        f"mass {mass:+.1e} and {other.sum() / weights.sum() - 1:+.1e}"
    )
    record(
        bench="cells", what=f"{n} cells on {side}², σ {SIGMA} px", threads=threads, seconds=ours, usual_seconds=theirs,
        error=errors["ours"], usual_error=errors["usual"],
    )  # fmt: skip


@dataclass(frozen=True)
class Sections:
    """Two tables whose cells bear labels that the alignment does not see."""

    name: str
    fixed: Path
    moving: Path
    label: str
    options: dict[str, Any]

    def score(self, at: Array, fixed: rc.Cells, moving: rc.Cells) -> float:
        """Share of labelled moving cells at ``at`` whose nearest labelled fixed cell bears their label."""
        of_fixed, of_moving = fixed.words(self.label), moving.words(self.label)
        nearest = cKDTree(fixed.coords.numpy()[of_fixed != ""]).query(at[of_moving != ""])[1]
        return float(np.mean(of_fixed[of_fixed != ""][nearest] == of_moving[of_moving != ""]))


def sections(data: Path) -> Iterator[Sections]:
    stars = [data / "07_st_starmap" / f"starmap_mpfc_{name}.csv" for name in ("BZ9", "BZ5")]
    hearts = [data / "05_st_heart" / f"{name}.csv.gz" for name in ("CN73_E2", "CN73_E1")]
    yield Sections("STARmap BZ5 → BZ9, types", *stars, "layer", {"types": "celltype"})
    yield Sections("STARmap BZ5 → BZ9, density", *stars, "layer", {})
    yield Sections("heart E1 → E2, density", *hearts, "acronym", {})
    yield Sections("heart E1 → E2, density and intensity", *hearts, "acronym", {"weights": "density,intensity"})


@pytest.mark.parametrize("number", range(4))
def test_labels_agree(data: Path, number: int, small: bool, report: Callable[[str], None]) -> None:
    """Prints how many cells come to lie beside one of their label, beside doing nothing and one median on the other."""
    case = list(sections(data))[number]
    if small and number > 1:
        pytest.skip("too large for a quick run")
    fixed, moving = rc.read_cells(case.fixed), rc.read_cells(case.moving)
    images = [rf.open(cells, adapter="cells", **case.options) for cells in (fixed, moving)]
    result = rf.register(*images, transform="affine" if small and number else None)
    p, q = moving.coords.numpy(), fixed.coords.numpy()
    alike = {
        "identity": case.score(p, fixed, moving),
        "median shift": case.score(p - np.median(p, axis=0) + np.median(q, axis=0), fixed, moving),
        "affine part": case.score(result.affine.points(moving.coords).numpy(), fixed, moving),
        "aligned": case.score(result.to_fixed(moving.coords).numpy(), fixed, moving),
    }
    report(f"{case.name}: " + ", ".join(f"{name} {value:.3f}" for name, value in alike.items()) + f", {result.verdict}")
    assert alike["aligned"] >= alike["identity"] - 0.01


def bent(coords: Array, amplitude: float, seed: int) -> Array:
    """Positions moved by a smooth field that reaches ``amplitude``."""
    rng = np.random.default_rng(seed)
    unit, field = (coords - coords.min(axis=0)) / np.ptp(coords, axis=0), np.zeros_like(coords)
    for _ in range(6):
        turns, phase, weight = rng.uniform(-1.5, 1.5, 2), rng.uniform(0, 2 * np.pi, 2), rng.normal(size=2)
        field += weight * np.sin(2 * np.pi * (unit @ turns)[:, None] + phase)
    out: Array = coords + field * amplitude / np.linalg.norm(field, axis=1).max()
    return out


@pytest.mark.parametrize("quadrant", range(4))
def test_xenium_quadrant(data: Path, quadrant: int, small: bool, report: Callable[[str], None]) -> None:
    """A quadrant of the cells, bent by up to 100 µm, a fifth deleted, onto all cells and onto their inverted density."""
    if small and quadrant:
        pytest.skip("one is enough for a quick run")
    with gzip.open(data / "04_st_xenium_breast" / "pikachu.csv.gz", "rt") as file:
        rows = [line.split(",", 3) for line in file][1:]
    cells = np.array([[float(row[2]), float(row[1])] for row in rows])
    upper = cells > (cells.min(axis=0) + cells.max(axis=0)) / 2
    part = cells[(upper[:, 0] == bool(quadrant & 1)) & (upper[:, 1] == bool(quadrant & 2))]
    kept = np.random.default_rng(quadrant).random(len(part)) < 0.8
    moved = bent(part, 100.0, quadrant)[kept]
    fixed, moving = (rf.open(at, adapter="cells", columns="y,x", unit="um") for at in (cells, moved))
    assert isinstance(fixed, rf.Image)
    said = []
    targets = {"cells": fixed, "inverted image": fixed.replace(data=fixed.data.max() - fixed.data)}
    for name, target in list(targets.items())[-1 if small else 0 :]:  # the harder one for a quick run
        result = rf.register(target, moving)
        error = np.linalg.norm(result.to_fixed(torch.from_numpy(moved)).numpy() - part[kept], axis=1)
        said.append(
            f"to the {name} median {np.median(error):.1f} µm, p90 {np.quantile(error, 0.9):.1f}, {result.verdict}"
        )
        assert np.median(error) <= 5
    before = np.median(np.linalg.norm(moved - part[kept], axis=1))
    report(f"Xenium quadrant {quadrant}: before {before:.0f} µm, " + ", ".join(said))


@pytest.mark.parametrize("quadrant", range(4))
def test_xenium_expression(data: Path, quadrant: int, small: bool, report: Callable[[str], None]) -> None:
    """The same by five components that the genes of both tables share, beside the density."""
    if small:
        pytest.skip("too large for a quick run")
    pandas = pytest.importorskip("pandas")
    table = pandas.read_csv(data / "04_st_xenium_breast" / "pikachu.csv.gz", index_col=0)
    names = ["y_centroid", "x_centroid"]
    cells = table[names].to_numpy()
    upper = cells > (cells.min(axis=0) + cells.max(axis=0)) / 2
    inside = (upper[:, 0] == bool(quadrant & 1)) & (upper[:, 1] == bool(quadrant & 2))
    kept = np.random.default_rng(quadrant).random(int(inside.sum())) < 0.8
    part = table[inside][kept].copy()
    moved = bent(cells[inside], 100.0, quadrant)[kept]
    part[names] = moved
    result = rf.register(*rc.shared_components(table, part, 5, unit="um", genes=list(table.columns[3:])))
    error = np.linalg.norm(result.to_fixed(torch.from_numpy(moved)).numpy() - cells[inside][kept], axis=1)
    report(f"Xenium quadrant {quadrant}, 5 components of {table.shape[1] - 3} genes: median {np.median(error):.1f} µm, "
           f"p90 {np.quantile(error, 0.9):.1f}, {result.verdict}")  # fmt: skip
    assert np.median(error) <= 5


def test_merfish(data: Path, small: bool, report: Callable[[str], None]) -> None:
    """Two brains turned by 45°, their 15 µm counts taken for weighted cells; seven coarse points."""
    if small:
        pytest.skip("too large for a quick run")
    pair = truth.merfish(data)

    def counted(image: rf.Image) -> rf.Image:
        values = image.data[0].numpy()
        at = image.grid.coords().numpy()[values > 0]
        cells = rf.PointSet(torch.from_numpy(at), image.grid.unit, table={"n": values[values > 0]})
        out = rf.open(cells, adapter="cells", weights="n")
        assert isinstance(out, rf.Image)
        return out

    result = rf.register(counted(pair.fixed), counted(pair.moving))
    error = pair.errors(result.to_moving(torch.from_numpy(pair.q)).numpy())
    report(
        f"MERFISH S2R3 → S2R2: mean {error.mean():.0f} µm, best affine {pair.oracle().mean():.0f} µm, {result.verdict}"
    )
    assert error.mean() <= 165
