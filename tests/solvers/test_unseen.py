"""Pixels that say nothing of the tissue: whatever they hold, the map is that of the picture without them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from scipy import ndimage

import regframe as rf
from regframe.solvers import preparation, unseen

SIZE = (120, 150)


def tissue(number: int = 0, sigma: float = 1.5) -> np.ndarray:
    """Texture from 100 to 1100, uint16."""
    out = ndimage.gaussian_filter(np.random.default_rng(number).standard_normal(SIZE), sigma)
    return (100 + 1000 * (out - out.min()) / np.ptp(out)).astype(np.uint16)


def settled(array: np.ndarray) -> tuple[rf.Image, rf.Image, unseen.Unseen]:
    image = rf.Image.from_array(array)
    return (image, *unseen.settled(image))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.float32, np.float64])
def test_an_ordinary_picture_comes_back_as_it_is(dtype: type) -> None:
    image, out, found = settled((tissue() // 8).astype(dtype))
    assert out is image
    assert found == unseen.Unseen()


@pytest.mark.parametrize("value", [6000, 65535])
@pytest.mark.parametrize("number", [1, 60, 180])
def test_hot_pixels_become_like_their_neighbours(number: int, value: int) -> None:
    clean = tissue()
    hot = clean.copy()
    rng = np.random.default_rng(1)
    hot.ravel()[rng.choice(hot.size, number, replace=False)] = value
    _, out, found = settled(hot)
    at = torch.from_numpy(hot == value)
    assert out.weight is None
    assert found.stray_fraction == pytest.approx(number / hot.size)
    got = out.data[0].to(torch.float32)
    truth = torch.from_numpy(clean.astype(np.float32))
    assert torch.equal(got[~at], truth[~at])
    assert float((got - truth)[at].abs().max()) < 300


def test_single_bright_pixels_stay_where_they_are_what_the_picture_shows() -> None:
    array = tissue() // 20
    at = np.random.default_rng(0).random(SIZE) < 0.04
    array[at] = 1000
    _, out, found = settled(array)
    got = out.data[0].to(torch.float32).numpy()
    assert found.stray_fraction == 0
    assert (got[at] > array[~at].max()).mean() > 0.99  # cut, but still brighter than the rest


@pytest.mark.parametrize("value", [-9999.0, 1e20, -3.4e38, np.nan])
@pytest.mark.parametrize("where", ["wedge", "hole", "most"])
def test_no_data_has_no_weight_and_leaves_no_value(value: float, where: str) -> None:
    array = tissue().astype(np.float32)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    gone = {"wedge": y + x < 60, "hole": np.hypot(y - 60, x - 70) < 20, "most": np.hypot(y - 60, x - 70) > 45}[where]
    array[gone] = value
    _, out, found = settled(array)
    assert out.weight is not None
    assert np.array_equal(out.weight.numpy() == 0, gone) or (out.weight.numpy() == 0)[gone].mean() > 0.99
    assert float(out.weight[torch.from_numpy(~gone)].min()) == 1
    assert float(out.data.min()) >= 100
    assert float(out.data.max()) <= 1100
    share = found.nan_fraction if np.isnan(value) else found.nodata_fraction
    assert share == pytest.approx(gone.mean(), abs=0.002)
    assert found.nodata_value == (None if np.isnan(value) else pytest.approx(value))


def test_specks_at_the_end_of_the_scale_do_not_count() -> None:
    array, (y, x) = tissue(), np.mgrid[: SIZE[0], : SIZE[1]]
    dust = np.hypot(y - 40, x - 50) < 6
    array[dust] = 65535
    _, out, found = settled(array)
    assert out.weight is not None
    assert 0.8 * dust.sum() <= int((out.weight == 0).sum()) <= dust.sum()  # its rim is drawn by its neighbours
    assert int(out.data.to(torch.int32).max()) < 2100
    assert found.nodata_value == 65535


@pytest.mark.parametrize("value", [0, 65535])
@pytest.mark.parametrize("axis", [0, 1])
def test_lines_that_a_camera_lost(axis: int, value: int) -> None:
    clean = tissue()
    array = clean.copy()
    np.moveaxis(array, axis, 0)[40:42] = value
    _, out, found = settled(array)
    got = np.moveaxis(out.data[0].numpy(), axis, 0).astype(float)
    truth = np.moveaxis(clean, axis, 0).astype(float)
    assert out.weight is None
    assert found.stray_fraction == pytest.approx(2 / SIZE[axis])
    assert np.array_equal(np.delete(got, [40, 41], axis=0), np.delete(truth, [40, 41], axis=0))
    assert np.abs(got - truth)[40:42].max() < 500


def test_even_rows_of_glass_are_no_lost_lines() -> None:
    array = np.full((60, 80), 250, np.uint8)
    array[20:40, 30:60] = tissue()[:20, :30] // 8
    array[::4, ::7] -= 1  # rows that are not quite even between rows that are
    image, out, _ = settled(array)
    assert out is image


def test_one_colour_of_a_picture_is_no_marker() -> None:
    """Ink, white paper and black glass of 8 bits are in the range of pictures."""
    array = np.repeat((tissue() // 8 + 100)[..., None], 3, axis=-1).astype(np.uint8)
    array[50:60] = (20, 40, 60)
    _, _, found = settled(array)
    assert found.nodata_fraction == 0


def test_labels_are_left_alone() -> None:
    ids = np.zeros(SIZE, np.int32)
    ids[20:40, 20:40], ids[60:80, 60:80] = 1, 900_000
    image = rf.Image.from_array(ids, labels=True)
    assert unseen.settled(image)[0] is image


def test_hot_voxels_and_unimaged_parts_of_a_volume() -> None:
    clean = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((20, 30, 40)), 1.5).astype(np.float32)
    array = clean.copy()
    array[10, 15, 20] = 1e6
    array[:, :5] = np.nan
    out, look = preparation.prepare(rf.Image.from_array(array, "zyx"))
    assert float(out.data.abs().max()) <= np.abs(clean).max()
    assert out.weight is not None
    assert float(out.weight[:, :5].max()) == 0
    assert float(out.weight[:, 5:].min()) == 1
    assert look.nan_fraction == pytest.approx(5 / 30)
    assert look.stray_fraction == pytest.approx(1 / array.size)


@pytest.mark.parametrize("fill", [0, 900, 5000])
def test_a_wedge_in_one_corner_is_padding(fill: int) -> None:
    array, (y, x) = tissue(), np.mgrid[: SIZE[0], : SIZE[1]]
    gone = y / 100 + x / 70 < 1
    array[gone] = fill
    out, look = preparation.prepare(rf.Image.from_array(array))
    assert look.padded_fraction + look.nodata_fraction == pytest.approx(gone.mean(), abs=0.01)
    assert out.weight is not None
    assert float(out.weight[torch.from_numpy(gone)].max()) == 0
    # nothing of the wedge is left to spread when the picture is halved
    assert int(out.data.to(torch.int32).min()) >= 100
    assert int(out.data.to(torch.int32).max()) <= 1100


# ---- the whole way -------------------------------------------------------------------------------------------------------


def views(data_dir: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Two views of one section, floats of 0 to 255; the map between them ``[3, 3]`` (moving to fixed); what was imaged of
    the moving one."""
    whole = np.asarray(Pillow.open(data_dir / "01_seed_cells" / "cells2_crop.jpg").convert("L"), dtype=np.float64)
    fixed = 255 - whole[20:190, 10:210]
    turn = np.deg2rad(14.0)
    linear = 1.04 * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    middle = (np.array(fixed.shape) - 1) / 2
    matrix = np.eye(3)
    matrix[:2, :2], matrix[:2, 2] = linear, middle - linear @ middle + [6, -4]
    moving = ndimage.affine_transform(255 - whole, linear, matrix[:2, 2] + [20, 10], output_shape=fixed.shape, order=1)
    imaged = ndimage.affine_transform(np.ones(fixed.shape), linear, matrix[:2, 2], order=0) > 0.5
    return fixed, moving, matrix, imaged


def error(result: rf.Result, matrix: np.ndarray) -> float:
    """Largest error in the middle of the fixed canvas, in pixels."""
    at = np.stack(np.meshgrid(np.linspace(30, 140, 7), np.linspace(40, 160, 7), indexing="ij"), -1).reshape(-1, 2)
    there = result.to_moving(torch.from_numpy(at)).numpy()
    back = there @ matrix[:2, :2].T + matrix[:2, 2]
    return float(np.linalg.norm(back - at, axis=1).max())


def hot(array: np.ndarray, number: int, value: float) -> np.ndarray:
    out = array.copy()
    out.ravel()[np.random.default_rng(array.size + int(array.sum())).choice(out.size, number, replace=False)] = value
    return out


SPOILT: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "two hot pixels": lambda a, _: hot(a.astype(np.uint16), 2, 50_000),
    "saturated pixels": lambda a, _: hot((a * 16).astype(np.uint16), 30, 65535),
    "dead and hot pixels of floats": lambda a, _: hot(hot(a.astype(np.float32), 100, -500.0), 100, 1e6),
    "a no-data wedge": lambda a, seen: np.where(seen, a, -9999).astype(np.float32),
    "a NaN wedge": lambda a, seen: np.where(seen, a, np.nan).astype(np.float32),
    "a white frame of 16 bits": lambda a, _: np.pad(a[9:-9, 9:-9].astype(np.uint16), 9, constant_values=65535),
    "a lost row": lambda a, _: np.where(np.arange(len(a))[:, None] == 57, 0, a).astype(np.uint8),
}


@pytest.mark.parametrize("what", SPOILT)
def test_what_says_nothing_does_not_move_the_map(what: str, data_dir: Path) -> None:
    """Each of them alone put the map 20 to 200 px off, or was refused."""
    fixed, moving, matrix, imaged = views(data_dir)
    above = np.arange(len(fixed))[:, None] >= 14  # the fixed side was cut straight
    pair = [SPOILT[what](side, seen) for side, seen in ((fixed, above), (moving, imaged))]
    transform = "lddmm" if what in ("saturated pixels", "a NaN wedge") else "affine"
    result = rf.register(*(rf.Image.from_array(side) for side in pair), transform=transform)
    assert error(result, matrix) < 0.3
    assert result.verdict == "pass"
    remarks = " ".join(result.reasons)
    look = result.metrics["preparation"]["moving"]
    if "NaN" in what:
        assert "of the moving image is not a number (NaN) and counts as no data" in remarks
        assert look["nan_fraction"] == pytest.approx(1 - imaged.mean(), abs=1e-3)
    if "no-data" in what:
        assert "of the moving image lies far off all the rest (-9999) and counts as no data" in remarks
        assert look["nodata_value"] == -9999
    if "pixels" in what:
        assert 0 < look["stray_fraction"] < 0.01


def test_a_slanting_line_of_pixels_is_no_straight_canvas() -> None:
    """Its pixels span no area, so they have no convex hull."""
    mask = torch.eye(100, dtype=torch.bool)
    assert not preparation._polygonal(mask)
    assert not preparation._polygonal(mask.flip(0))
    assert preparation._polygonal(torch.ones(100, 100).tril().bool())


def test_what_was_not_imaged_stays_so_when_it_is_carried(data_dir: Path) -> None:
    fixed, moving, _, imaged = views(data_dir)
    moving = np.where(imaged, moving, np.nan).astype(np.float32)
    image = rf.Image.from_array(moving)
    result = rf.register(rf.Image.from_array(fixed.astype(np.float32)), image, transform="affine")
    carried = result.to_fixed(image).data[0].numpy()
    at = result.to_moving(result.fixed_grid.coords().reshape(-1, 2)).numpy().reshape(*carried.shape, 2)
    inside = (at >= 3).all(-1) & (at <= np.array(moving.shape) - 4).all(-1)
    there = at[inside].round().astype(int)
    deep = ndimage.binary_erosion(imaged, iterations=3), ndimage.binary_erosion(~imaged, iterations=3)
    known, gone = (mask[there[:, 0], there[:, 1]] for mask in deep)
    assert not np.isnan(carried[inside][known]).any()
    assert np.isnan(carried[inside][gone]).all()


@pytest.mark.parametrize(("share", "refused"), [(0.5, False), (0.95, True)])
def test_an_image_of_hardly_any_numbers_is_refused(share: float, refused: bool) -> None:
    array = tissue().astype(np.float32)
    array[: round(share * len(array))] = np.nan
    pair = rf.Image.from_array(tissue()), rf.Image.from_array(array)
    if refused:
        with pytest.raises(ValueError, match=r"in at least 10% of the pixels of the moving image, got NaN in 95\.0%"):
            rf.register(*pair)
    else:
        assert (
            rf.register(*pair, transform="rigid", init="identity").metrics["preparation"]["moving"]["nan_fraction"]
            == 0.5
        )


def test_infinite_pixels_are_refused() -> None:
    array = tissue().astype(np.float32)
    array[3, 4] = np.inf
    with pytest.raises(ValueError, match=r"got 1 infinite ones; write NaN for no data"):
        rf.register(rf.Image.from_array(array), rf.Image.from_array(tissue()))
