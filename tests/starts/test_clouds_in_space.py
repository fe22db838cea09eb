"""Poses of clouds in space: sides that show unlike parts of an elongated body, and what unusual poses pay."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

import regframe as rf
from regframe.starts import points
from regframe.starts.priors import AS_THEY_LIE, TURN

Array = NDArray[np.float64]


def worm(seed: int) -> tuple[Array, Array, Array, Array]:
    """Fixed and moving points of one body of which one side shows more, and moving positions with where they belong.

    Three in ten of each side have no partner, the others are off by a fifth of the distance to their neighbours.
    """
    rng = np.random.default_rng(seed)
    body = np.c_[rng.normal(0, 4, 240), rng.normal(0, 7, 240), rng.uniform(0, 150, 240)]
    turn = Rotation.from_rotvec(np.radians(rng.uniform(-14, 14, 3))).as_matrix()
    head = body[body[:, 2] < 105]

    def seen(at: Array) -> Array:
        kept = at[rng.random(len(at)) < 0.75]
        return kept + rng.normal(0, 0.8, kept.shape)

    moved = (head - 30) @ turn.T + 34
    return seen(body), (seen(head) - 30) @ turn.T + 34, moved, head


def error(seed: int, kind: str = "rigid") -> float:
    fixed, moving, at, truth = worm(seed)
    result = rf.register(*(rf.PointSet(torch.from_numpy(side), "µm") for side in (fixed, moving)), transform=kind)
    return float(np.median(np.linalg.norm(result.to_fixed(torch.from_numpy(at)).numpy() - truth, axis=1)))


def test_sides_that_show_unlike_parts_are_slid_along_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    assert max(error(seed) for seed in range(3)) < 1.5
    monkeypatch.setattr(points, "ALONG", (0.0,))
    assert max(error(seed) for seed in range(3)) > 5


def test_a_mirrored_body_is_not_preferred() -> None:
    assert max(error(seed, "affine") for seed in range(3)) < 2


def test_what_poses_in_space_pay() -> None:
    slight, anywhere = (torch.from_numpy(Rotation.from_rotvec([a, 0, 0]).as_matrix()) for a in (TURN, 2.0))
    flip = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    pays = points.unlikely(torch.stack([torch.eye(3, dtype=torch.float64), 2 * slight, anywhere, anywhere @ flip]))
    assert float(pays[0]) == pytest.approx(0, abs=1e-6)
    assert 0.4 < float(pays[1]) < 0.5  # one standard deviation, whatever the size
    density = AS_THEY_LIE / ((2 * math.pi) ** 1.5 * TURN**3) * 8 * math.pi**2 / (1 - AS_THEY_LIE)
    assert float(pays[2]) == pytest.approx(math.log(density + 1), rel=1e-3)
    assert float(pays[3] - pays[2]) == pytest.approx(points.MIRRORED)


def test_two_worms(data_dir: object) -> None:
    """Neurons of two animals: 48 of 196 and 168 are named in both, of which the best affine map puts 28 nearest to their own."""
    from pathlib import Path

    folder = Path(str(data_dir)) / "17_point_clouds" / "fdnc_neurons"
    if not folder.is_dir():
        pytest.skip("no neurons in the data folder")
    fixed, moving = (np.loadtxt(folder / f"{name}.csv", delimiter=",", skiprows=1) for name in ("template", "test"))
    names = np.loadtxt(folder / "correspondences.csv", delimiter=",", skiprows=1, usecols=(1, 2), dtype=int)
    result = rf.register(*(rf.PointSet(torch.from_numpy(side[:, :0:-1].copy()), "µm") for side in (fixed, moving)))
    at = result.to_fixed(torch.from_numpy(moving[names[:, 1], :0:-1].copy())).numpy()
    nearest = np.linalg.norm(at[:, None] - fixed[None, :, :0:-1], axis=2).argmin(axis=1)
    assert np.mean(nearest == names[:, 0]) >= 0.5
    assert result.verdict == "warn"
