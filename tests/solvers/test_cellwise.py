"""Densities of the same cells are refined by the cells; those of other cells, and lattices of spots, are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import regframe as rf
from regframe.config import Config
from regframe.fit.clouds import match, room_of
from regframe.fit.frames import Frame, Increment
from regframe.fit.mapspace import MapSpace
from regframe.fit.prior import PICTURES, velocity_space
from regframe.maps.affine import Affine
from regframe.maps.resample import resample
from regframe.solvers.cellwise import cells_of, refined
from regframe.solvers.points.bend import CloudEnergy, CloudFit

Array = NDArray[np.float64]


def tissue(rng: np.random.Generator, n: int) -> Array:
    """Cells ``[n, 2]`` of an uneven tissue, none closer to another than half its room of 10."""
    out: list[Array] = []
    size = 10 * np.sqrt(n)
    while len(out) < n:
        at = rng.uniform(0, size, 2)
        if rng.random() < 0.3 + 0.7 * np.sin(at[0] / 60) ** 2 * np.cos(at[1] / 45) ** 2 and (
            not out or np.linalg.norm(np.array(out) - at, axis=1).min() > 4
        ):
            out.append(at)
    return np.array(out)


def bent(at: Array) -> Array:
    """Where cells lie on the moving side."""
    angle = 0.5
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    wave = 5 * np.stack([np.sin(at[:, 1] / 50), np.cos(at[:, 0] / 60)], axis=1)
    out: Array = (at + wave) @ turn.T + [30.0, 80.0]
    return out


def drawn(at: Array) -> rf.Image:
    image = rf.open(np.ascontiguousarray(at), adapter="cells", columns="y,x", unit="um")
    assert isinstance(image, rf.Image)
    return image


def test_the_same_cells_bring_the_map_to_a_fraction_of_a_room() -> None:
    rng = np.random.default_rng(3)
    cells = tissue(rng, 350)
    few = rng.random(len(cells)) < 0.5
    found = cells[rng.random(len(cells)) < 0.9]
    result = rf.register(drawn(found), drawn(bent(cells[few]) + rng.normal(0, 1.0, (few.sum(), 2))))
    error = np.linalg.norm(result.to_moving(torch.from_numpy(cells)).numpy() - bent(cells), axis=1)
    assert np.median(error) < 1.0  # µm, of a room of 10
    assert result.metrics["cells"]["sure"] > 5
    assert result.metrics["confidence"] >= 0.95
    assert result.verdict == "pass"
    assert result.position_sd is not None
    assert 0.1 < float(result.metrics["position_sd"]["median"]) < 2.0


@pytest.mark.parametrize("same", [False, True])
def test_only_the_same_cells_refine_a_map(same: bool) -> None:
    """From a map that is right to a third of a room: half of the cells on one side, the other half, or the same ones, moved."""
    rng = np.random.default_rng(4)
    cells = tissue(rng, 500)
    half = rng.random(len(cells)) < 0.5
    fixed, moving = drawn(cells if same else cells[half]), drawn(cells[~half] + [40.0, -7.0])
    truth = torch.eye(3, dtype=torch.float64)
    truth[:2, 2] = torch.tensor([43.0, -8.0])
    frames = [Frame.of(side.grid).matrix() for side in (moving, fixed)]
    began = frames[0] @ truth @ torch.linalg.inv(frames[1])
    fit = CloudFit(torch.zeros(6), MapSpace(began, Increment("affine", 2, 40.0)), 1.0, 0.5)
    found = refined(fit, (fixed, moving), began, Config())  # type: ignore[arg-type]  # a fit of images has these fields, too
    assert (found is not None) is same


@pytest.mark.parametrize(("jitter", "known"), [(0.0, False), (0.02, False), (0.3, True)])
def test_a_lattice_of_spots_is_no_cells(jitter: float, known: bool) -> None:
    at = np.stack(np.meshgrid(np.arange(20.0), np.arange(20.0)), axis=-1).reshape(-1, 2)
    at = at + jitter * np.random.default_rng(0).standard_normal(at.shape)
    assert (cells_of(drawn(10 * at)) is not None) is known


def test_things_follow_a_grid_and_are_lost_by_resampling() -> None:
    at = tissue(np.random.default_rng(5), 60)
    image = drawn(at)
    assert image.things is not None
    assert np.allclose(image.grid.origin + image.things.numpy() * image.grid.spacing, at)
    still = Affine.identity(2, image.grid.unit)
    assert resample(image, still, image.grid.resampled((20.0, 20.0))).things is None


@pytest.mark.parametrize("backwards", [False, True])
def test_the_gradient_of_the_energy_of_points(backwards: bool) -> None:
    rng = np.random.default_rng(6)
    p, q = rng.uniform(-20, 20, (60, 2)), rng.uniform(-20, 20, (40, 2))
    start = torch.tensor([[0.5, 0.1, 1.0], [-0.1, 0.6, -2.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    space = velocity_space(rf.Grid((50, 50)), Config(), PICTURES)
    maps = MapSpace(start, Increment("affine", 2, 30.0), space)
    x = 0.1 * torch.from_numpy(rng.standard_normal(maps.size)).to(torch.float32)
    warped = maps.points(x, torch.from_numpy(p), to_moving=backwards).detach().numpy()
    rows = match(warped, q, 4.0, 0.3, 1600.0).rows
    energy = CloudEnergy(p, q, rows, 4.0, 0.3, 1600.0, maps, backwards)
    _, gradient = energy(x)
    for number in range(3):
        way = torch.zeros_like(x)
        way[: maps.increment.size] = torch.from_numpy(rng.standard_normal(maps.increment.size)).to(torch.float32)
        way[maps.increment.size :] = 0.05 * torch.from_numpy(rng.standard_normal(maps.space.size)).to(torch.float32)  # type: ignore[union-attr]
        ends = [energy(x + step * way)[0] for step in (0.02, -0.02)]
        assert (ends[0] - ends[1]) / 0.04 == pytest.approx(float(gradient @ way), rel=0.03, abs=0.05), number


def test_the_room_of_places_is_one_over_their_density() -> None:
    even = np.random.default_rng(7).uniform(0, 10, (4000, 2))
    assert np.median(room_of(even)) == pytest.approx(100, rel=0.1)
    one = match(even[:50], even[50:90], 0.5, 0.4, 100.0)
    each = match(even[:50], even[50:90], 0.5, 0.4, np.full(40, 100.0))
    assert np.array_equal(one.share, each.share)
