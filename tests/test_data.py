"""Grid, Image and PointSet: positions, units, and what they refuse."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import regframe as rf
from regframe.data import OME_UNITS, UNITS, canonical_unit, unit_ratio


def test_units() -> None:
    assert [canonical_unit(u) for u in (None, "", "um", "Micrometer", "µm", "mm", "pixels")] == [
        "px", "px", "µm", "µm", "µm", "mm", "px",
    ]  # fmt: skip
    assert unit_ratio("mm", "um") == pytest.approx(1000)
    assert unit_ratio("px", "pixel") == 1
    assert unit_ratio("px", "mm") is None
    with pytest.raises(ValueError, match="wanted a length unit"):
        canonical_unit("parsec")
    assert {canonical_unit(long): short for short, long in OME_UNITS.items()} == {unit: unit for unit in UNITS}


def test_positions_of_a_grid() -> None:
    grid = rf.Grid((3, 5), (2.0, 0.5), (10.0, -1.0), "um")
    assert grid.axes == ("y", "x")
    assert grid.unit == "µm"
    assert grid.extent == (6.0, 2.5)
    assert grid.diagonal == pytest.approx(6.5)
    assert grid.pixel == pytest.approx(1.0)
    assert grid.center == (12.0, 0.0)
    coords = grid.coords()
    assert coords.shape == (3, 5, 2)
    assert coords[2, 4].tolist() == [14.0, 1.0]
    homogeneous = grid.index_to_position() @ torch.tensor([2.0, 4.0, 1.0], dtype=torch.float64)
    assert homogeneous.tolist() == [14.0, 1.0, 1.0]
    inside = grid.contains(torch.tensor([[9.0, -1.25], [8.9, 0.0], [15.0, 1.25], [15.1, 0.0]], dtype=torch.float64))
    assert inside.tolist() == [True, False, True, False]


def test_a_grid_in_another_spacing_and_unit() -> None:
    grid = rf.Grid((8, 8), 1.0, unit="mm")  # type: ignore[arg-type]
    coarse = grid.resampled(2.0)
    assert (coarse.shape, coarse.spacing, coarse.origin) == ((4, 4), (2.0, 2.0), (0.5, 0.5))
    assert coarse.extent == grid.extent
    micro = grid.to_unit("µm")
    assert micro.spacing == pytest.approx((1000.0, 1000.0))
    assert micro.unit == "µm"
    with pytest.raises(ValueError, match="wanted a grid in a length unit"):
        rf.Grid((8, 8)).to_unit("mm")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((3,),), "2 or 3 axes"),
        (((3, 0),), "at least one pixel"),
        (((3, 3), (1.0, 1.0, 1.0)), "2 components"),
        (((3, 3), (0.0, 1.0)), "positive spacing"),
        (((3, 3), (float("nan"), 1.0)), "positive spacing"),
        (((3, 3), (1.0, 1.0), (float("inf"), 0.0)), "finite origin"),
        (((3, 3), (1.0, 1.0), (0.0, 0.0), "ell"), "length unit"),
    ],
)
def test_a_grid_refuses(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rf.Grid(*arguments)  # type: ignore[arg-type]


def test_data_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        rf.Grid((2, 2)).unit = "mm"  # type: ignore[misc]


def test_images_from_arrays() -> None:
    rgb = np.zeros((6, 7, 3), dtype=np.uint8)
    assert rf.Image.from_array(rgb).data.shape == (3, 6, 7)
    assert rf.Image.from_array(rgb[..., 0]).data.shape == (1, 6, 7)
    assert rf.Image.from_array(np.zeros((2, 3, 4, 5), np.float32), "zycx").data.shape == (4, 2, 3, 5)
    image = rf.Image.from_array(rgb, spacing=0.5, unit="um", channels=("r", "g", "b"))
    assert image.grid.spacing == (0.5, 0.5)
    assert image.replace(name="n").channels == ("r", "g", "b")
    for dtype in (">u2", "bool", "float16", ">f8", "uint32"):
        assert rf.Image.from_array(np.ones((2, 2)).astype(dtype)).data.sum() == 4
    strided = np.arange(12).reshape(3, 4)[::-1, ::2]
    assert rf.Image.from_array(strided).data[0].tolist() == strided.tolist()


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (np.zeros((3, 6, 7)), {}, "wanted axes for an array"),
        (np.zeros((3, 6)), {"axes": "yxc"}, "wanted 2 distinct axes"),
        (np.zeros((3, 6)), {"axes": "zy"}, "at least the axes y and x"),
        (np.zeros((3, 6)), {"axes": "ty"}, "distinct axes out of"),
        (np.zeros((3, 6), complex), {}, "numeric array"),
        (np.zeros((3, 6)), {"channels": ("a", "b")}, "1 channel names, got 2"),
        (np.zeros((3, 6)), {"weight": torch.ones(2, 2)}, "wanted a weight of shape"),
    ],
)
def test_images_refuse(array: np.ndarray, options: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match=message):
        rf.Image.from_array(array, **options)


def test_images_want_tensors_on_their_grid() -> None:
    with pytest.raises(TypeError, match="wanted a torch tensor"):
        rf.Image([[[0.0, 0.0], [0.0, 0.0]]], rf.Grid((2, 2)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="wanted data"):
        rf.Image(torch.zeros(1, 2, 3), rf.Grid((2, 2)))


def test_point_sets() -> None:
    points = rf.PointSet(torch.tensor([[1, 2], [3, 4]]), "micron", table={"a": ["x", "y"]})
    assert points.coords.dtype == torch.float64
    assert (len(points), points.ndim, points.axes, points.unit) == (2, 2, ("y", "x"), "µm")
    with pytest.raises(ValueError, match="wanted coordinates"):
        rf.PointSet(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="wanted one weight per point"):
        rf.PointSet(torch.zeros(2, 2), weights=torch.ones(3))
    with pytest.raises(ValueError, match="another number in"):
        rf.PointSet(torch.zeros(2, 2), table={"a": ["x"]})
