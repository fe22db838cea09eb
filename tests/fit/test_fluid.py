"""The bend that follows: it arrives, it finds a known bend, it never folds, and it has nothing to follow in unrelated tissue."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, gaussian_filter1d, map_coordinates
from torch import Tensor

import regframe as rf
from regframe import plugins
from regframe.fit import fluid
from regframe.fit.energy import ImageMetric
from regframe.fit.frames import Increment
from regframe.fit.halvings import Halvings, Level
from regframe.fit.mapspace import MapSpace
from regframe.fit.prior import Prior
from regframe.fit.pyramid import build_levels
from regframe.fit.velocity import physical_maps

SHAPE = (240, 300)
PRIOR = Prior(0.06, 1.0, 4, beyond=0.5)
HOW = fluid.Following()


def tissue(seed: int) -> np.ndarray:
    """Structure of several sizes ``[*SHAPE]``."""
    rng = np.random.default_rng(seed)
    parts = [gaussian_filter(rng.standard_normal(SHAPE), s) * s for s in (2.0, 5.0, 12.0)]
    return np.asarray(sum(parts), dtype=np.float64)


def bend(most: float, seed: int = 1) -> np.ndarray:
    """A smooth displacement ``[2, *SHAPE]`` of at most so many pixels."""
    rng = np.random.default_rng(seed)
    out = np.stack([gaussian_filter(rng.standard_normal(SHAPE), 30.0) for _ in range(2)])
    return np.asarray(out * most / np.linalg.norm(out, axis=0).max())


def image(values: np.ndarray) -> rf.Image:
    """An image of pixels of size 1."""
    return rf.Image(torch.from_numpy(values[None].astype(np.float32)), rf.Grid(values.shape))


def carried(values: np.ndarray, by: np.ndarray) -> np.ndarray:
    """An image read at every pixel plus ``by``."""
    at = np.stack(np.meshgrid(*(np.arange(float(n)) for n in SHAPE), indexing="ij")) + by
    return np.asarray(map_coordinates(values, at, order=3, mode="nearest"))


def lncc(level: Level) -> ImageMetric:
    """The local correlation, prepared for a level."""
    metric = plugins.metric("lncc", radius=8)
    metric.prepare(rf.Image(level.fixed, level.fixed_grid), rf.Image(level.moving, level.moving_grid))
    return metric


def found(
    fixed: np.ndarray, moving: np.ndarray, pullback: Tensor | None = None
) -> tuple[fluid.Followed, list[Level], Tensor]:
    """What follows from where the images lie, or from an affine map; the levels; and that map."""
    start = torch.eye(3, dtype=torch.float64) if pullback is None else pullback
    sides = Halvings(image(fixed)), Halvings(image(moving))
    levels = build_levels(*sides, start, rf.Config())
    return fluid.follow(levels, start, [lncc], PRIOR, HOW), levels, start


def landing(result: fluid.Followed, start: Tensor, at: Tensor) -> Tensor:
    """Positions ``[N, 2]`` of the fixed frame in the moving one."""
    maps = MapSpace(start, Increment("still", 2, 1.0), result.space)
    return maps.points(result.variables, at, to_moving=True)


def inner(step: int = 10) -> Tensor:
    """Positions ``[N, 2]`` of the fixed frame, 20 pixels and more inside the canvas."""
    axes = [torch.arange(20, n - 20, step, dtype=torch.float64) - (n - 1) / 2 for n in SHAPE]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 2)


def test_noise_in_the_seventh_digit_does_not_move_it() -> None:
    fixed, moving = tissue(0), carried(tissue(0), bend(6.0))
    moving = moving + 0.5 * moving.std() * np.random.default_rng(3).standard_normal(SHAPE)
    noise = 1e-6 * moving.std() * np.random.default_rng(4).standard_normal(SHAPE)
    one, other = (found(fixed, m) for m in (moving, moving + noise))
    moved = (landing(one[0], one[2], inner()) - landing(other[0], other[2], inner())).norm(dim=1)
    assert float(moved.median()) < 0.01
    assert float(moved.max()) < 0.1


@pytest.mark.parametrize("turn", [0.0, 40.0])
def test_it_finds_a_known_bend(turn: float) -> None:
    # the moving image, read at each position plus the bend, is the fixed one; under a turn the start takes it to the same frame
    by, moving = bend(12.0), tissue(0)
    if turn:
        angle = math.radians(turn)
        linear = torch.tensor(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64
        )
    else:
        linear = torch.eye(2, dtype=torch.float64)
    middle = (np.array(SHAPE)[:, None, None] - 1) / 2
    places = np.stack(np.meshgrid(*(np.arange(float(n)) for n in SHAPE), indexing="ij")) + by - middle
    at = np.einsum("ij,jhw->ihw", linear.numpy(), places) + middle
    fixed = map_coordinates(moving, at, order=3, mode="reflect")
    start = torch.eye(3, dtype=torch.float64)
    start[:2, :2] = linear
    result, _, _ = found(fixed, moving, start)
    where = inner()
    pixel = where.numpy() + (np.array(SHAPE) - 1) / 2
    shift = np.stack([map_coordinates(b, pixel.T, order=1) for b in by], axis=-1)
    truth = (where + torch.from_numpy(shift)) @ linear.T
    radius = where.norm(dim=1) < 90  # what is seen of the moving image under any turn
    before = (where @ linear.T - truth).norm(dim=1)[radius]
    error = (landing(result, start, where) - truth).norm(dim=1)[radius]
    assert float(before.median()) > 1.5
    assert float(error.median()) < 0.25
    assert float(error.quantile(0.9)) < 0.8


def test_the_stored_map_is_the_one_that_was_followed() -> None:
    fixed, moving = tissue(0), carried(tissue(0), bend(8.0))
    result, _, start = found(fixed, moving)
    maps = MapSpace(start, Increment("still", 2, 1.0), result.space)
    stored = result.space.velocity(result.variables)
    again = result.space.whitened(stored)
    assert torch.allclose(result.space.velocity(again), stored, atol=1e-4)
    there = landing(result, start, inner())
    back = maps.points(result.variables, there)
    assert float((back - inner()).norm(dim=1).max()) < 1e-6


def test_it_never_folds() -> None:
    """Of tissue that has nothing in common with the other side, too."""
    fixed, moving = tissue(0), tissue(7)
    result, _, start = found(fixed, moving)
    grid = image(fixed).grid
    _, phi = physical_maps(start, result.space, result.space.velocity(result.variables), grid, grid)
    assert float(phi.inverse().jacobian_determinant(grid).min()) > 0.1
    assert result.space.steep(result.variables) < 0.25


def test_pixels_held_out_tell_whether_there_is_anything_to_follow() -> None:
    fixed, moving = tissue(0), carried(tissue(0), bend(6.0))
    gains = []
    for one in (moving, tissue(7)):
        sides = Halvings(image(fixed)), Halvings(image(one))
        start = torch.eye(3, dtype=torch.float64)
        levels = fluid.levels_to_follow(build_levels(*sides, start, rf.Config()), HOW)
        gains.append(fluid.held_out(levels, start, lncc, HOW))
    assert gains[0].mean > 0.05
    assert gains[1].mean < 0.01
    assert gains[0].share > 0.95


def test_a_velocity_that_cannot_be_whitened_is_refused() -> None:
    result, _, _ = found(tissue(0), tissue(0))
    finer = result.space.with_finer(2)
    with pytest.raises(ValueError, match="wanted a space"):
        finer.whitened(finer.velocity(result.variables))


def test_noise_does_not_choose_another_bend() -> None:
    """Near the gains from which a smoother bend is taken, too: the reach changes without a jump."""
    fixed, moving = tissue(0), carried(tissue(0), bend(6.0))
    sides = Halvings(image(fixed)), Halvings(image(moving))
    start = torch.eye(3, dtype=torch.float64)
    levels = fluid.levels_to_follow(build_levels(*sides, start, rf.Config()), HOW)
    smoother = dataclasses.replace(HOW, reach=HOW.smoother)
    rough, smooth = (fluid.held_out(levels, start, lncc, one).mean for one in (HOW, smoother))
    found_at = []
    for off in (-1e-6, 1e-6):
        ratio = smooth / rough + off
        how = dataclasses.replace(HOW, margin=(ratio, 1.1 * ratio))
        found_at.append(fluid.chosen(levels, start, lncc, how).how.reach)
    assert found_at[0] == pytest.approx(found_at[1], abs=1e-4)
    assert found_at[0] == pytest.approx(HOW.reach, abs=1e-4)
    between = dataclasses.replace(HOW, margin=(0.9 * smooth / rough, 1.1 * smooth / rough))
    assert HOW.reach < fluid.chosen(levels, start, lncc, between).how.reach < HOW.smoother


def test_what_may_be_chance_is_shrunk() -> None:
    assert fluid.Gain(0.02, 0.0).share == 1
    assert fluid.Gain(0.02, 0.01).share == 0.75
    assert fluid.Gain(0.02, 0.03).share == 0
    assert fluid.Gain(-0.02, 0.001).share == 0
    assert fluid.Gain(0.0, math.inf).share == 0


def test_of_a_small_gain_a_part_of_the_bend_is_taken() -> None:
    fixed, moving = tissue(0), carried(tissue(0), bend(6.0))
    sides = Halvings(image(fixed)), Halvings(image(moving))
    start = torch.eye(3, dtype=torch.float64)
    levels = fluid.levels_to_follow(build_levels(*sides, start, rf.Config()), HOW)
    whole, half = (fluid.follow(levels, start, [lncc], PRIOR, HOW, share) for share in (1.0, 0.5))
    shifts = [landing(one, start, inner()) - inner() for one in (whole, half)]
    assert float(shifts[1].norm(dim=1).mean() / shifts[0].norm(dim=1).mean()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("shape", [(40, 31), (3, 90), (12, 9, 20)])
@pytest.mark.parametrize("deviation", [0.4, 2.0, 9.0])
def test_smoothing_is_a_gaussian_with_zeros_beyond(shape: tuple[int, ...], deviation: float) -> None:
    values = torch.randn((2, *shape), generator=torch.Generator().manual_seed(1))
    reach = math.ceil(3 * deviation)
    wanted = values.numpy().astype(np.float64)
    for axis in range(1, values.ndim):
        wanted = gaussian_filter1d(wanted, deviation, axis=axis, mode="constant", radius=reach)
    np.testing.assert_allclose(fluid.smoothed(values, deviation).numpy(), wanted, atol=2e-6)
    assert torch.equal(fluid.smoothed(values, 0.0), values)
