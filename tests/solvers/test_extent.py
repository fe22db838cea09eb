"""A picture of which only a spot or a thin line differs from the rest is refused; small, sparse and narrow ones are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import regframe as rf
from regframe.solvers.extent import extent, width_of
from regframe.solvers.raster import check_image

SIZE = (90, 110)


def image(pixels: np.ndarray, weight: np.ndarray | None = None) -> rf.Image:
    data = torch.from_numpy(pixels)[None]
    kept = None if weight is None else torch.from_numpy(weight.astype(np.float32))
    return rf.Image(data, rf.Grid(pixels.shape, 1.0), weight=kept)


def black(*shape: int) -> np.ndarray:
    return np.zeros(shape or SIZE, np.float32)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(50, 10, shape).astype(np.float32)


def band(width: int, turn: float) -> np.ndarray:
    """A textured band of about this width, turned by some degrees, on black."""
    y, x = np.indices(SIZE) - np.array(SIZE)[:, None, None] / 2
    across = np.cos(np.radians(turn)) * y - np.sin(np.radians(turn)) * x
    return np.where(np.abs(across) < width / 2, noise(*SIZE), 0).astype(np.float32)


@pytest.mark.parametrize("turn", [0, 90, 30, 45, 71])
def test_the_width_of_a_band_is_found_whichever_way_it_lies(turn: float) -> None:
    for width in (3, 6, 12):
        assert abs(width_of(band(width, turn) != 0) - width) < 1.5


@pytest.mark.parametrize("side", ["fixed", "moving"])
@pytest.mark.parametrize("turn", [0, 90, 45, 30])
def test_a_line_is_refused_and_a_band_is_not(turn: float, side: str) -> None:
    with pytest.raises(ValueError, match=f"wanted a {side} image .* pixels that differ from 0 lie in a strip"):
        check_image(image(band(5, turn)), side)
    check_image(image(band(11, turn)), side)


def test_a_curve_is_not_a_line() -> None:
    pixels = black()
    x = np.arange(110)
    pixels[(45 + 20 * np.sin(x / 20)).astype(int), x] = 1
    check_image(image(pixels), "fixed")


def test_sparse_spots_and_small_pictures_go_through() -> None:
    pixels = black()
    pixels[[10, 80, 40], [12, 30, 100]] = 1  # three, not in one line
    check_image(image(pixels), "fixed")
    pixels[[80, 40], [30, 100]] = 0
    pixels += noise(*SIZE) / 1e3  # one spot on the noise of a camera
    check_image(image(pixels), "fixed")
    check_image(image(noise(8, 8)), "fixed")


def test_what_does_not_count_does_not_widen_it() -> None:
    pixels, kept = black(), np.ones(SIZE, bool)
    pixels[40, 20:90] = 7
    pixels[70:] = noise(20, 110)
    check_image(image(pixels), "moving")
    kept[70:] = False
    with pytest.raises(ValueError, match="the 70 pixels that differ from 0 lie in a strip one pixel wide"):
        check_image(image(pixels, kept), "moving")
    with pytest.raises(ValueError, match="the 70 pixels"):
        check_image(image(np.where(kept, pixels, np.nan)), "moving")
    kept[40] = False
    with pytest.raises(ValueError, match="pixels that count are all 0"):
        check_image(image(pixels, kept), "moving")


def test_one_of_many_channels_that_shows_something_is_enough() -> None:
    data = torch.zeros(4, *SIZE)
    data[0, 40] = 1
    with pytest.raises(ValueError, match="differ from 0, 0, 0, 0"):
        check_image(rf.Image(data, rf.Grid(SIZE, 1.0)), "fixed")
    data[3] = torch.from_numpy(noise(*SIZE))
    check_image(rf.Image(data, rf.Grid(SIZE, 1.0)), "fixed")


def test_of_a_volume_a_plane_goes_through_and_a_line_does_not() -> None:
    for axis in range(3):
        pixels = black(20, 30, 40)
        plane = np.moveaxis(pixels, axis, 0)[9]
        plane[...] = noise(*plane.shape)
        check_image(image(pixels), "fixed")
        pixels[...] = 0
        plane[5] = 1
        with pytest.raises(ValueError, match="one pixel wide"):
            check_image(image(pixels), "fixed")


def test_a_large_picture_is_examined_where_its_sample_misses_what_it_shows() -> None:
    pixels = np.zeros((1200, 1300), np.uint16)  # every fifth pixel is sampled
    pixels[601, 601:604] = 9
    found = extent(torch.from_numpy(pixels)[None], None, 8)
    assert found is not None
    assert (found.pixels, found.width, found.common) == (3, 1.0, (0.0,))
    pixels[601:612, 601:604] = pixels[606, 590:620] = 9
    assert extent(torch.from_numpy(pixels)[None], None, 8) is None


def test_a_narrow_picture_is_still_aligned() -> None:
    still, moved = black(64, 80), black(64, 80)
    strip = torch.nn.functional.avg_pool2d(torch.from_numpy(noise(18, 64))[None], 3, 1)[0].numpy()  # 16 x 62
    still[24:40, 8:70] = moved[27:43, 10:72] = strip
    result = rf.register(image(still), image(moved))
    assert np.abs(np.asarray(result.to_fixed(np.array([[35.0, 40.0]]))) - [32, 38]).max() < 0.5
