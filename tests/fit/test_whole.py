"""Bends that tear are fitted again, at a price on changes of area."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

import regframe as rf
from regframe.fit import pyramid, whole
from regframe.fit.energy import Energy
from regframe.fit.frames import Increment
from regframe.fit.halvings import Level
from regframe.fit.mapspace import MapSpace
from regframe.fit.prior import velocity_space
from regframe.fit.whole import Whole, strain

SIZE = 40


def _bent(by: float) -> tuple[rf.Image, rf.Image]:
    """Texture, and the same bent by up to ``by`` pixels."""
    rng = np.random.default_rng(3)
    texture = gaussian_filter(rng.standard_normal((SIZE, SIZE)), 2.0).astype(np.float32)
    at = np.mgrid[:SIZE, :SIZE].astype(float)
    at[0] += by * np.sin(2 * np.pi * at[1] / SIZE)
    moved = map_coordinates(texture, at, order=3, mode="reflect")
    return rf.Image.from_array(texture, axes="yx"), rf.Image.from_array(moved.astype(np.float32), axes="yx")


def _energy() -> Energy:
    """An energy of two pictures whose maps bend."""
    fixed, moving = _bent(2.0)
    ones = torch.ones(fixed.grid.shape)
    level = Level(fixed.data, moving.data, fixed.grid, moving.grid, ones, None)
    space = velocity_space(moving.grid, rf.Config())
    maps = MapSpace(torch.eye(3, dtype=torch.float64), Increment("affine", 2, SIZE / 2), space)
    return Energy(level, rf.metric("contrast"), maps, ones, 100.0)


@pytest.fixture(scope="module")
def energy() -> Energy:
    return _energy()


def _wave(energy: Energy, size: float) -> torch.Tensor:
    """Variables of a random bend."""
    generator = torch.Generator().manual_seed(0)
    return size * torch.cat([torch.zeros(6), torch.randn(energy.maps.size - 6, generator=generator)])


def test_strain_is_that_of_the_bend_alone(energy: Energy) -> None:
    assert strain(energy, _wave(energy, 0.0)) == pytest.approx(1.0, abs=1e-4)
    scaled = _wave(energy, 0.0)
    scaled[2:6] = 5.0  # of the affine part
    assert strain(energy, scaled) == pytest.approx(1.0, abs=1e-3)
    little, much = (strain(energy, _wave(energy, s)) for s in (0.02, 0.05))
    assert 1.02 < little < much


@pytest.mark.parametrize("size", [0.005, 0.05, 0.3])  # within what is free, beyond, folded
def test_changes_of_area_have_a_price_with_its_gradient(energy: Energy, size: float) -> None:
    x = _wave(energy, size)
    x[:6] = torch.tensor([0.5, -0.3, 2.0, 1.0, -1.0, 0.5])
    with_price = Whole(energy, x, 1.2)
    value, gradient = with_price(x)
    without, plain = energy(x)
    if size == 0.005:
        assert float(value) == pytest.approx(float(without), abs=1e-4)
        torch.testing.assert_close(gradient, plain)
    else:
        assert float(value) > float(without) + 0.01
    way = _wave(energy, 1.0)
    way[:6] = 1.0
    step = 2e-5
    ahead, behind = (float(with_price(x + s * step * way)[0] - energy(x + s * step * way)[0]) for s in (1, -1))
    slope = float((gradient - plain).to(torch.float64) @ way.to(torch.float64))
    assert slope == pytest.approx(
        (ahead - behind) / (2 * step), rel=0.05, abs=1e-3 * abs(float(value - without)) + 1e-3
    )


def test_a_larger_change_of_area_may_be_free(energy: Energy) -> None:
    x = _wave(energy, 0.05)
    assert float(Whole(energy, x, 1.2)(x)[0]) > float(Whole(energy, x, 2.0)(x)[0]) >= float(energy(x)[0])
    assert float(Whole(energy, x, 1e6)(x)[0]) == pytest.approx(float(energy(x)[0]), abs=1e-4)


def test_a_bend_that_tears_is_fitted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed, moving = _bent(3.0)
    free = rf.register(fixed, moving, init="identity", metric="contrast")
    assert free.metrics["torn"] is None
    changed = max(free.metrics["jacobian_max"], 1 / free.metrics["jacobian_min"])
    monkeypatch.setattr(pyramid, "TORN", 1 + 0.5 * (changed - 1))
    monkeypatch.setattr(pyramid, "VIOLENT", 1 + 0.48 * (changed - 1))
    monkeypatch.setattr(whole, "PRICE", 1e4)
    held = rf.register(fixed, moving, init="identity", metric="contrast")
    assert held.metrics["torn"] > pyramid.TORN
    assert held.metrics["model"] == "lddmm"
    assert max(held.metrics["jacobian_max"], 1 / held.metrics["jacobian_min"]) < 1 + 0.8 * (changed - 1)
    explained = held.metrics["explained_variance"]
    assert explained["final"] > explained["affine"]
    assert any("it was bent less" in reason for reason in held.reasons)
    assert held.verdict != "pass"
