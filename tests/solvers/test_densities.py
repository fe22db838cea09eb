"""Densities of counted things: roots of counts, empty surroundings, and clouds of other cells of one tissue."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import regframe as rf
from regframe.fit.pyramid import Recipe
from regframe.solvers import raster, recipes
from regframe.solvers.counts import evened
from regframe.solvers.points.solver import Points

Array = NDArray[np.float64]


def cells(at: Array, unit: str = "µm") -> rf.Image:
    image = rf.open(at, adapter="cells", columns="y,x", unit=unit)
    assert isinstance(image, rf.Image)
    return image


def tissue(seed: int, number: int, size: float = 100.0) -> Array:
    """Cells at random in a lopsided ring with denser blobs, as other cells of one tissue are."""
    rng, blobs = np.random.default_rng(seed), np.random.default_rng(99).uniform(0.2, 0.8, (9, 2)) * size
    out: list[Array] = []
    while len(out) < number:
        at = rng.uniform(0, size, 2)
        radius = np.hypot(at[0] - 0.5 * size, 1.4 * (at[1] - 0.45 * size)) / size
        near = np.exp(-((at - blobs) ** 2).sum(axis=1) / (2 * (0.06 * size) ** 2)).sum()
        if 0.2 < radius < 0.5 and rng.random() < 0.15 + 0.85 * min(near, 1.0):
            out.append(at)
    return np.array(out)


def field(seed: int, number: int, size: float = 100.0) -> Array:
    """Cells at random in a square field of view, somewhat denser in blobs."""
    rng, blobs = np.random.default_rng(seed), np.random.default_rng(99).uniform(0.1, 0.9, (9, 2)) * size
    out: list[Array] = []
    while len(out) < number:
        at = rng.uniform(0, size, 2)
        near = np.exp(-((at - blobs) ** 2).sum(axis=1) / (2 * (0.08 * size) ** 2)).sum()
        if rng.random() < 0.3 + 0.7 * min(near, 1.0):
            out.append(at)
    return np.array(out)


def moved(at: Array) -> Array:
    """Turned by 25° and bent by up to 2.5."""
    angle = np.radians(25)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    bent = at + 2.5 * np.stack([np.sin(at[:, 1] / 14), np.cos(at[:, 0] / 16)], axis=1)
    out: Array = (bent - 50) @ turn.T + 70
    return out


def test_roots_of_counts_vary_evenly() -> None:
    rng = np.random.default_rng(0)
    at = rng.uniform(0, 1, (4000, 2)) ** np.array([1.0, 2.5]) * 60
    image = rf.open(at, adapter="cells", columns="y,x", unit="px", spacing=0.5)
    assert isinstance(image, rf.Image)
    assert image.counted is not None
    width = image.grid.shape[1]
    spreads = []
    for one in (image, evened(image)):
        data = one.data[0, 10:-10].double().numpy()
        spreads.append([data[:, round(a * width) : round(b * width)].std() for a, b in ((0.1, 0.14), (0.6, 0.8))])
    assert spreads[0][0] > 1.7 * spreads[0][1]  # dense tissue varies more
    assert 0.8 < spreads[1][0] / spreads[1][1] < 1.25
    assert 0.4 < spreads[1][0] < 0.6  # the root of a count varies by one half


def test_only_what_is_counted_has_roots_taken() -> None:
    at = np.random.default_rng(1).uniform(0, 50, (300, 2))
    image = cells(at)
    measured = image.replace(counted=None)
    assert evened(measured) is measured
    table = rf.PointSet(torch.from_numpy(at), table={"w": np.linspace(-1, 1, 300)})
    weighed = rf.open(table, adapter="cells", weights="w")
    assert isinstance(weighed, rf.Image)
    assert weighed.counted is None
    with pytest.raises(ValueError, match="wanted a positive number of things"):
        image.replace(counted=-1.0)


def test_empty_surroundings_do_not_hide_a_bend(monkeypatch: pytest.MonkeyPatch) -> None:
    at, rng = tissue(0, 1500), np.random.default_rng(6)
    fixed, moving = at[rng.random(len(at)) < 0.85], at[rng.random(len(at)) < 0.7]
    side = np.linspace(-30.0, 130.0, 9)
    frame = [(y, x) for y in side for x in side if {y, x} & {side[0], side[-1]}]
    lone = np.array(frame)  # half of the canvas is empty but for these
    fixed, moving = np.concatenate([fixed, lone]), np.concatenate([moving, lone])

    def error() -> tuple[float, str]:
        result = rf.register(cells(fixed), cells(moved(moving)))
        off = result.to_fixed(torch.from_numpy(moved(at))).numpy() - at
        return float(np.median(np.linalg.norm(off, axis=1))), result.verdict

    monkeypatch.setattr(raster, "by_cells", lambda done, *_: done)  # of densities whose cells are not the same ones
    found, verdict = error()
    assert verdict == "pass"
    assert found < 0.18
    monkeypatch.setattr(recipes, "COUNTED", Recipe())
    assert error()[0] > 1.2 * found


def test_clouds_of_partly_other_cells_are_compared_by_their_density(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = field(1, 1800)
    moving = moved(np.concatenate([fixed[:1080], field(2, 720)]))
    sides = [rf.PointSet(torch.from_numpy(side), "µm") for side in (fixed, moving)]
    result = rf.register(*sides)
    assert result.verdict != "fail"
    assert any("density of their points" in reason for reason in result.reasons)
    truth = field(3, 300)
    off = result.to_fixed(torch.from_numpy(moved(truth))).numpy() - truth
    assert np.median(np.linalg.norm(off, axis=1)) < 5.0  # a cell has a room of 3.3 to itself
    weighted = dataclasses.replace(sides[1], weights=torch.ones(len(moving)))
    assert torch.equal(rf.register(sides[0], weighted).affine.matrix, result.affine.matrix)
    monkeypatch.setattr(Points, "otherwise", lambda self, task: None)
    assert rf.register(*sides).verdict == "fail"


def test_too_few_points_stay_points() -> None:
    rng = np.random.default_rng(3)
    few = rf.PointSet(torch.from_numpy(rng.uniform(0, 9, (12, 2))))
    other = rf.PointSet(torch.from_numpy(rng.uniform(0, 9, (14, 2))))
    result = rf.register(few, other)
    assert not any("density of their points" in reason for reason in result.reasons)
