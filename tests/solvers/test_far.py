"""Extreme numbers: the same map far from the origin as near it, or one sentence."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

import regframe as rf


def picture(scale: float = 1.0, spacing: float = 1.0, origin: float = 0.0, roll: int = 0) -> rf.Image:
    """A smooth picture of 48 x 48 pixels."""
    values = gaussian_filter(np.random.default_rng(3).random((48, 48)), 2)
    values = np.roll((values - values.min()) / np.ptp(values) * 200 * scale, roll, axis=1)
    image = rf.Image.from_array(values, "yx", spacing=spacing, unit="µm")
    return image.replace(grid=dataclasses.replace(image.grid, origin=(origin, origin)))


def cloud(shift: float, scale: float = 1.0) -> rf.PointSet:
    """Sixty points within 100 µm, around ``shift``."""
    return rf.PointSet(torch.from_numpy(np.random.default_rng(5).uniform(0, 100, (60, 2))) * scale + shift, "µm")


def test_clouds_far_from_the_origin_are_fitted_as_near_it() -> None:
    near = rf.register(cloud(0.0), cloud(3.0), transform="affine")
    far = rf.register(cloud(1e9), cloud(2e9 + 3.0), transform="affine")
    at = torch.tensor([[10.0, 20.0], [70.0, 40.0]], dtype=torch.float64)
    off = far.transform.points(at + 2e9) - 1e9 - near.transform.points(at)
    assert off.abs().max() < 1e-5  # positions at 2e9 are rounded to 5e-7
    assert (far.affine.points(at + 2e9) - far.transform.points(at + 2e9)).abs().max() < 1e-4
    assert far.verdict == near.verdict
    assert far.fixed_grid.contains(cloud(1e9).coords).all()


def test_images_far_from_the_origin_are_fitted_as_near_it() -> None:
    near = rf.register(picture(), picture(roll=2), transform="rigid")
    far = rf.register(picture(origin=1e9), picture(roll=2, origin=3e9), transform="rigid")
    at = torch.tensor([[10.0, 20.0], [30.0, 40.0]], dtype=torch.float64)
    off = far.transform.points(at + 3e9) - 1e9 - near.transform.points(at)
    assert off.abs().max() < 1e-4
    assert far.verdict == near.verdict
    back = far.transform.inverse().points(far.transform.points(at + 3e9)) - 3e9
    assert (back - at).abs().max() < 1e-4


@pytest.mark.parametrize("scale", [1e150, 1e300, 1e-300])
def test_pixels_that_double_precision_cannot_square(scale: float) -> None:
    with pytest.raises(ValueError, match="wanted pixels whose largest"):
        rf.register(picture(scale), picture(scale))


@pytest.mark.parametrize("numbers", [{"spacing": 1e300}, {"origin": 1e300}, {"origin": -1e16}])
def test_places_without_digits_left(numbers: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="wanted a fixed side"):
        rf.register(picture(**numbers), picture())


def test_clouds_without_digits_left() -> None:
    with pytest.raises(ValueError, match="wanted a fixed side"):
        rf.register(cloud(0.0, 1e150), cloud(0.0, 1e150))


def test_weights_that_are_no_numbers() -> None:
    with pytest.raises(ValueError, match="wanted finite weights"):
        rf.register(picture().replace(weight=torch.full((48, 48), float("nan"))), picture())


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_a_smoothness_that_no_map_can_have(scale: float) -> None:
    config = rf.Config.model_validate({"sobolev": {"scale": scale}})
    with pytest.raises(ValueError, match=r"sobolev\.scale"):
        rf.register(picture(), picture(), config=config)
