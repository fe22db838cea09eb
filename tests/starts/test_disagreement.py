"""A wrong pair of landmarks: it is named, loses its weight, and hardly moves the map."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

import regframe as rf
from regframe.starts.disagreement import disagreement
from regframe.starts.landmarks import fit_points

RIGHT = np.array([[40.0, 50.0], [50.0, 200.0], [190.0, 60.0], [200.0, 190.0], [120.0, 130.0]])


def made(seed: int, n: int, wrong: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pairs under a known map with clicks that scatter, which of them are wrong, and the map on a grid."""
    rng = np.random.default_rng(seed)
    angle, size, turn = rng.uniform(0, 2 * np.pi), 1000.0, np.eye(2)
    turn[:] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    zoom = np.exp(rng.normal(0, 0.3))
    linear = zoom * turn @ (np.eye(2) + rng.normal(0, 0.03, (2, 2)))
    waves, phases = rng.normal(0, 2 * np.pi / 1500, (4, 2)), rng.uniform(0, 2 * np.pi, 4)
    bend = rng.normal(0, 1, (4, 2)) * rng.uniform(0, 15) / 2

    def true(x: np.ndarray) -> np.ndarray:
        return np.asarray((x + np.cos(x @ waves.T + phases) @ bend) @ linear.T)

    p, grid = rng.uniform(80, 920, (n, 2)), rng.uniform(0, size, (400, 2))
    q = true(p + rng.normal(0, rng.uniform(1, 5), p.shape))
    odd = rng.choice(n, wrong, replace=False)
    away = rng.normal(size=(wrong, 2))
    q[odd] += away / np.linalg.norm(away, axis=1, keepdims=True) * zoom * rng.uniform(100, 600, (wrong, 1))
    return p, q, odd, grid, true(grid)


def error(p: np.ndarray, q: np.ndarray, grid: np.ndarray, true: np.ndarray) -> float:
    fitted, _ = fit_points(torch.from_numpy(p), torch.from_numpy(q))
    return float(np.linalg.norm(fitted.points(torch.from_numpy(grid)).numpy() - true, axis=1).mean())


@pytest.mark.parametrize(("n", "wrong", "share"), [(5, 1, 0.9), (6, 1, 0.97), (8, 2, 0.97), (6, 0, 0.95)])
def test_a_wrong_pair_hardly_moves_the_map(n: int, wrong: int, share: float) -> None:
    good = 0
    for seed in range(1000, 1040):
        p, q, odd, grid, true = made(seed, n, wrong)
        right = np.ones(n, dtype=bool)
        right[odd] = False
        kept = ~disagreement(p, q).odd
        good += error(p[kept], q[kept], grid, true) <= 1.2 * error(p[right], q[right], grid, true)
    assert good >= share * 40


def test_in_space() -> None:
    p = np.random.default_rng(0).uniform(0, 100, (7, 3))
    q = p[:, ::-1] * 1.2 + 3
    q[4] += 40
    assert np.flatnonzero(disagreement(p, q).odd).tolist() == [4]


@functools.cache
def pair(size: int = 240) -> tuple[rf.Image, rf.Image]:
    noise = gaussian_filter(np.random.default_rng(1).standard_normal((size + 20, size + 20)), size / 60)
    at = np.mgrid[: size + 20, : size + 20].astype(float)
    moving = map_coordinates(noise, at + np.array([6.0, -4.0])[:, None, None], order=1, mode="reflect")
    inside = slice(5, size + 5)
    return tuple(rf.Image.from_array(image[inside, inside].astype(np.float32), axes="yx") for image in (noise, moving))  # type: ignore[return-value]


MOVED = RIGHT - np.array([6.0, -4.0])


def test_register_names_it_and_keeps_the_map() -> None:
    fixed, moving = pair()
    wrong = RIGHT.copy()
    wrong[1] += [90.0, -60.0]
    with pytest.warns(UserWarning, match="pair 2 disagrees by 1.. px with the other 4"):
        result = rf.register(
            fixed, moving, transform="affine", init=rf.landmarks(fixed=wrong, moving=MOVED),
            config=rf.Config(sigma_landmarks=1.0),
        )  # fmt: skip
    assert result.metrics["landmark_weight"] == [1, 0, 1, 1, 1]
    assert any("pair 2 disagrees" in finding["sentence"] for finding in result.metrics["findings"])
    away = (result.to_fixed(torch.from_numpy(MOVED)) - torch.from_numpy(RIGHT)).norm(dim=1)
    assert float(away.max()) < 0.3


@functools.cache
def held(noise: float, sigma: float | None) -> float:
    """Mean error in pixels of a map that is held to landmarks with scatter ``noise`` by ``sigma``, or begins with them."""
    fixed, moving = pair(96)
    right = RIGHT * 0.4
    clicked = right + np.random.default_rng(3).normal(0, noise, right.shape)
    init = rf.landmarks(fixed=clicked, moving=right - np.array([6.0, -4.0]))
    config = rf.Config() if sigma is None else rf.Config(sigma_landmarks=sigma)
    result = rf.register(fixed, moving, transform="affine", init=init, config=config)
    back = result.to_fixed(torch.from_numpy(right - np.array([6.0, -4.0])))
    return float((back - torch.from_numpy(right)).norm(dim=1).mean())


@pytest.mark.filterwarnings("ignore:regframe. pair")
@pytest.mark.parametrize("sigma", [0.05, 2.0])
@pytest.mark.parametrize("noise", [0.2, 4.0])
def test_sigma_landmarks_never_makes_a_map_worse(sigma: float, noise: float) -> None:
    assert held(noise, sigma) <= max(1.05 * held(noise, None), 0.05)


def test_sides_by_name_and_exchanged() -> None:
    named = rf.landmarks(fixed=RIGHT, moving=MOVED)
    assert torch.equal(named.fixed, rf.landmarks(MOVED, RIGHT).fixed)
    with pytest.raises(ValueError, match="by name"):
        rf.landmarks(RIGHT, fixed=RIGHT)
    fixed, moving = pair()
    large = rf.Image.from_array(np.pad(np.asarray(moving.data[0]), ((0, 200), (0, 200)), mode="reflect"), axes="yx")
    with pytest.raises(ValueError, match="swap fixed and moving"):
        rf.register(fixed, large, init=rf.landmarks(fixed=RIGHT + 200, moving=MOVED))
