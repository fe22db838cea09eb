"""Alignments opened, made and used in a real viewer, whose layers have several resolutions, pixel sizes and places."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import napari_regframe
import numpy as np
import pytest
import torch
from conftest import COARSE, FINE, FIXED_AT, SHIFT, levels_of
from napari.layers import Image, Labels, Points, Shapes
from napari_regframe import carrying, landmarks, places, reading, widgets
from npe2 import PluginManager, PluginManifest
from qtpy.QtWidgets import QApplication

import regframe as rf

Pair = tuple[rf.Image, rf.Image]


@pytest.fixture
def opened(viewer: Any, pair: Pair) -> tuple[Any, Any, Any]:
    """The viewer with both images as multiscale layers."""
    layers = [
        viewer.add_image(
            levels_of(image.data), multiscale=True, rgb=True, name=image.name, **places.layer_place(image.grid)
        )
        for image in pair
    ]
    return viewer, layers[0], layers[1]


def shifted(unit: str = "µm") -> rf.Result:
    """The exact alignment of the pair."""
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[:2, 2] = -torch.tensor(SHIFT, dtype=torch.float64)
    to_fixed = rf.Affine(matrix, unit, unit)
    grids = rf.Grid((620, 640), FINE, FIXED_AT, unit), rf.Grid((400, 410), COARSE, (0.0, 0.0), unit)
    metrics = {"verdict": "pass", "reasons": [], "n_evaluations": 0, "seconds": 0.0, "roundtrip_px": {"mean": 0.0}}
    return rf.Result(to_fixed, *grids, metrics, rf.Config(), to_fixed)


def wait(panel: Any, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not panel.go.enabled and time.monotonic() < end:
        QApplication.processEvents()
        time.sleep(0.02)
    assert panel.go.enabled


def inside(a: Any, b: Any) -> np.ndarray[Any, Any]:
    """Mean difference of two pictures ``[H, W, 3]`` where neither is the white beyond an image."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    seen = (b < 255).any(axis=-1)
    return np.abs(a - b)[seen].mean()


# ---- the manifest, opening -------------------------------------------------------------------------------------------


def test_the_manifest_names_what_is_there() -> None:
    manifest = PluginManifest.from_file(Path(napari_regframe.__path__[0]) / "napari.yaml")
    for command in manifest.contributions.commands:
        module, _, name = command.python_name.partition(":")
        assert callable(getattr(__import__(module, fromlist=[name]), name))


@pytest.mark.parametrize("inner", ["", "transform.ome.zarr"])
def test_a_run_is_opened_warped_and_lazy(viewer: Any, run: Path, pair: Pair, inner: str) -> None:
    fixed, moved, *doubt = viewer.open(str(run / inner), plugin="napari-regframe")
    assert (fixed.multiscale, moved.multiscale, fixed.rgb, moved.rgb) == (True, True, True, True)
    assert [level.shape for level in moved.data] == [level.shape for level in fixed.data]
    assert hasattr(moved.data[0], "compute")
    assert np.allclose(moved.scale, FINE)
    assert np.allclose(moved.translate, FIXED_AT)
    assert {str(unit) for unit in moved.units} == {"micrometer"}
    assert np.array_equal(fixed.data[0].compute(), np.moveaxis(pair[0].data.numpy(), 0, -1))
    for level in range(2):
        assert inside(fixed.data[level], moved.data[level]) < 6
    result = carrying.result_of(moved)
    assert result is not None
    whole = result.to_fixed(pair[1])
    assert np.array_equal(np.asarray(moved.data[0]), np.moveaxis(whole.data.numpy(), 0, -1))
    assert [layer.visible for layer in doubt] == [False] * len(doubt)


def test_what_is_no_run_is_left_to_others(tmp_path: Path) -> None:
    assert reading.reader_of(str(tmp_path)) is None
    (tmp_path / "a.csv").write_text("index,axis-0,axis-1\n0,1,2\n")
    assert landmarks.reader_of(str(tmp_path / "a.csv")) is None


def test_a_moved_file_is_named(run: Path, tmp_path: Path) -> None:
    result = rf.load(run)
    with pytest.raises(FileNotFoundError, match="wanted the moving file at"):
        rf.open_sides(result, moving=tmp_path / "gone.ome.zarr")
    with pytest.raises(ValueError, match="which nothing records; pass fixed="):
        rf.open_sides(shifted())


def test_points_are_shown_moved(pair: Pair) -> None:
    dots = rf.PointSet(np.array([[50.0, 60.0], [80.0, 90.0]]), "µm", table={"kind": ["a", "b"]}, name="cells")
    image = places.pyramid_of(Image(np.zeros((40, 50), np.uint8), name="plain"))
    made = [layer for layer in reading.layers_of(shifted(), image, dots) if layer[2] == "points"]
    data, how, _ = made[0]
    assert np.allclose(data * how["scale"] + how["translate"], dots.coords.numpy() - SHIFT)
    assert how["features"] == {"kind": ["a", "b"]}


# ---- aligning --------------------------------------------------------------------------------------------------------


def test_two_layers_are_aligned(opened: tuple[Any, Any, Any]) -> None:
    viewer, fixed, moving = opened
    _, panel = viewer.window.add_plugin_dock_widget("napari-regframe", "Align two layers")
    panel.fixed.value, panel.moving.value, panel.model.value = fixed, moving, "turned, scaled and sheared"
    marks = np.array([[80.0, 90.0], [200.0, 220.0], [120.0, 250.0]])
    on_fixed = viewer.add_points(
        (marks - FIXED_AT) / FINE, name="a", **places.layer_place(rf.Grid((9, 9), FINE, FIXED_AT, "µm"))
    )
    on_moving = viewer.add_points(marks + SHIFT, name="b", units=("um", "um"))
    panel.fixed_points.value, panel.moving_points.value = on_fixed, on_moving
    seen: list[float] = []
    panel.bar.changed.connect(seen.append)
    assert panel.align() is not None
    wait(panel)
    assert not panel.stop.enabled
    result = panel.result
    assert result is not None, panel.says.value
    where = torch.tensor([[60.0, 60.0], [280.0, 300.0]], dtype=torch.float64)
    off = (result.to_moving(where) - where - torch.tensor(SHIFT)).norm(dim=1)
    assert float(off.max()) < 0.1
    added = viewer.layers["moving (on fixed)"]
    assert [level.shape for level in added.data] == [level.shape for level in fixed.data]
    assert inside(fixed.data[0], added.data[0]) < 6
    assert not moving.visible
    words = panel.says.value
    assert words.startswith("Confirmed")
    assert "3 landmarks lie" in words
    assert "of where they belong" in words
    assert np.allclose(on_fixed.features["off"], 0, atol=0.1)
    assert 100 in seen


def test_it_is_stopped(opened: tuple[Any, Any, Any]) -> None:
    viewer, fixed, moving = opened
    panel = widgets.Align(viewer)
    panel.fixed.reset_choices()
    viewer.window.add_dock_widget(panel)
    panel.fixed.value, panel.moving.value = fixed, moving
    assert panel.align() is not None
    assert panel.align() is None
    panel.end()
    wait(panel)
    assert panel.says.value == "stopped; nothing was changed"
    assert len(viewer.layers) == 2


def test_what_cannot_be_aligned_is_said(opened: tuple[Any, Any, Any]) -> None:
    viewer, fixed, moving = opened
    panel = widgets.Align(viewer)
    viewer.window.add_dock_widget(panel)
    panel.fixed.value = panel.moving.value = fixed
    assert panel.align() is None
    assert "wanted two different layers" in panel.says.value
    panel.moving.value = moving
    moving.rotate = 20
    assert panel.align() is None
    assert "turned, mirrored or sheared" in panel.says.value


# ---- places ----------------------------------------------------------------------------------------------------------


def test_levels_of_a_layer_share_their_corner() -> None:
    levels = [np.zeros((n, 2 * n), np.uint8) for n in (101, 50, 25)]
    layer = Image(levels, multiscale=True, scale=(2, 4), translate=(10, 20), units=("mm", "mm"))
    grids = [level.grid for level in places.pyramid_of(layer).levels]
    assert [grid.unit for grid in grids] == ["mm"] * 3
    assert [grid.spacing for grid in grids] == [(2, 4), (4, 8), (8, 16)]
    assert [tuple(o - s / 2 for o, s in zip(g.origin, g.spacing, strict=True)) for g in grids] == [(9, 18)] * 3


def test_layers_without_a_unit_lie_where_they_are_drawn() -> None:
    result = shifted()
    layer = Points(np.array([[5.0, 6.0]]), scale=(2, 2), translate=(1, 1))
    assert np.array_equal(places.positions(layer, layer.data, result.fixed_grid), [[11.0, 13.0]])
    inches = Points(np.array([[5.0, 6.0]]), units=("mm", "mm"))
    assert np.allclose(places.positions(inches, inches.data, result.fixed_grid), [[5000.0, 6000.0]])


@pytest.mark.parametrize("first", [True, False])
def test_the_moving_layer_is_another_one_from_the_start(viewer: Any, first: bool) -> None:
    """Whether the panel was open before the images or not."""
    panel = viewer.window.add_plugin_dock_widget("napari-regframe", "Align two layers")[1] if first else None
    layers = [viewer.add_image(np.zeros((20, 30)), name=name) for name in ("a", "b")]
    panel = panel or viewer.window.add_plugin_dock_widget("napari-regframe", "Align two layers")[1]
    assert {panel.fixed.value, panel.moving.value} == set(layers)


# ---- carrying --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["fixed", "moving"])
def test_points_and_shapes_are_carried(viewer: Any, to: str) -> None:
    result = shifted()
    sign = -1 if to == "fixed" else 1
    viewer.add_image(np.zeros((9, 9)), name="map", metadata={reading.RESULT: {"result": result, "side": "fixed"}})
    dots = viewer.add_points(
        np.array([[50.0, 60.0], [70.0, 90.0]]),
        scale=(2, 2),
        units=("um", "um"),
        size=[3, 5],
        features={"k": ["a", "b"]},
    )
    box = np.array([[10.0, 10.0], [10.0, 60.0], [40.0, 60.0], [40.0, 10.0]])
    drawn = viewer.add_shapes([box, box, box[:3]], shape_type=["rectangle", "ellipse", "path"], units=("um", "um"))
    panel = viewer.window.add_plugin_dock_widget("napari-regframe", "Move a layer")[1]
    panel.by.value, panel.to.value = viewer.layers["map"], to
    panel.layer.value = dots
    (moved,) = panel.carry()
    world = np.array([moved.data_to_world(point) for point in moved.data])
    assert np.allclose(world, dots.data * 2 + sign * np.array(SHIFT))
    assert np.allclose(moved.size * moved.scale[0], np.array([3, 5]) * 2)
    assert list(moved.features["k"]) == ["a", "b"]
    panel.layer.value = drawn
    (shapes,) = panel.carry()
    assert list(shapes.shape_type) == ["polygon", "polygon", "path"]
    for outline, begun in zip((shapes.data[0], shapes.data[2]), (box, box[:3]), strict=True):
        assert np.allclose(outline * shapes.scale + shapes.translate, begun + sign * np.array(SHIFT))
    ring = shapes.data[1] * shapes.scale + shapes.translate - sign * np.array(SHIFT)
    assert np.allclose(((ring - [25, 35]) / [15, 25] ** np.array(1.0)).__pow__(2).sum(axis=1), 1)


def test_there_and_back_is_where_it_was() -> None:
    result = shifted()
    dots = Points(np.array([[50.0, 60.0]]), units=("um", "um"))
    ((data, how, _),) = carrying.carry(dots, result, "fixed")
    ((data, how, _),) = carrying.carry(
        Points(data, **{k: how[k] for k in ("scale", "translate", "units")}), result, "moving"
    )
    assert np.allclose(data * how["scale"] + how["translate"], dots.data)


def test_labels_are_carried_with_their_ids() -> None:
    result = shifted()
    ids = np.zeros((620, 640), np.int32)
    ids[100:200, 150:300], ids[300:420, 320:400] = 7, 70000
    layer = Labels(ids, **places.layer_place(result.fixed_grid))
    ((data, _, kind),) = carrying.carry(layer, result, "moving")
    assert kind == "labels"
    assert isinstance(data, np.ndarray)
    assert set(np.unique(data)) == {0, 7, 70000}
    rows, columns = np.nonzero(data == 7)
    centre = np.array([rows.mean(), columns.mean()]) * COARSE
    assert np.allclose(centre, np.array([149.5, 224.5]) * FINE + FIXED_AT + SHIFT, atol=COARSE)


def test_an_image_of_the_moving_side_is_carried(pair: Pair) -> None:
    layer = Image(pair[1].data[0].numpy(), name="DAPI", **places.layer_place(pair[1].grid), colormap="blue")
    ((data, how, kind),) = carrying.carry(layer, shifted(), "fixed")
    assert (kind, how["name"], how["colormap"].name) == ("image", "DAPI (on fixed)", "blue")
    one = pair[1].replace(data=pair[1].data[:1], channels=("0",))
    assert np.array_equal(np.asarray(data[0]), shifted().to_fixed(one).data[0].numpy())


def test_points_of_a_section_go_into_its_volume() -> None:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, 3] = torch.tensor([-30.0, 2.0, 5.0])
    way, flat = rf.Affine(matrix, "µm", "µm"), shifted()
    plane, volume = rf.Grid((1, 40, 50), 2.0, (), "µm"), rf.Grid((60, 50, 60), 1.0, (), "µm")
    result = rf.Result(way, plane, volume, flat.metrics, flat.config, way, section=True)
    (found,) = carrying.carry(Points(np.array([[5.0, 6.0]]), units=("um", "um")), result, "moving")
    assert np.allclose(found[0] * found[1]["scale"] + found[1]["translate"], [[30.0, 3.0, 1.0]])
    with pytest.raises(ValueError, match="a plane fills no volume"):
        carrying.carry(Image(np.zeros((40, 50)), units=("um", "um")), result, "moving")


# ---- landmarks -------------------------------------------------------------------------------------------------------


def test_landmarks_go_out_and_come_in(viewer: Any, tmp_path: Path) -> None:
    moving = viewer.add_points(
        np.array([[1.5, 2.0], [3.25, 4.0]]), name="moving marks", scale=(2, 2), units=("um", "um")
    )
    fixed = viewer.add_points(np.array([[10.0, 20.0], [30.0, 41.0]]), name="fixed marks")
    path = tmp_path / "pairs.csv"
    assert viewer.layers.selection
    viewer.layers.selection = {fixed, moving}
    assert PluginManager.instance().get_writer(str(path), ["points", "points"], "napari-regframe")[0] is not None
    written = viewer.layers.save(str(path), selected=True, plugin="napari-regframe")
    assert [Path(one).name for one in written] == ["pairs.csv"]
    assert path.read_text().splitlines()[0] == "fixed_y,fixed_x,moving_y_um,moving_x_um"
    one, other = viewer.open(str(path), plugin="napari-regframe")
    assert np.array_equal(one.data, fixed.data)
    assert np.array_equal(other.data, moving.data * 2)
    assert [str(unit) for unit in other.units] == ["micrometer", "micrometer"]


def test_a_wrong_pair_is_named() -> None:
    spots = np.array([[80.0, 90.0], [200.0, 220.0], [120.0, 250.0], [250.0, 100.0], [160.0, 160.0], [90.0, 200.0]])
    fixed, moving = Points(spots, units=("um", "um")), Points(spots + SHIFT, units=("um", "um"))
    assert "disagrees" not in landmarks.remarks(fixed, moving, shifted())
    moving.data = moving.data + np.eye(6)[2][:, None] * [0, 90]
    assert "pair 3 disagrees by 90 µm" in landmarks.remarks(fixed, moving, shifted())
    with pytest.raises(ValueError, match="as many points each"):
        landmarks.pairs(fixed, Points(spots[:3]), *(shifted().fixed_grid,) * 2)
    assert isinstance(Shapes([]), Shapes)
