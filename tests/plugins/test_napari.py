"""What of the plug-in for napari needs no napari: its manifest names what is there, its layers hold the pixels of the map.

With napari its own tests run: ``python -m pytest plugins/napari-regframe``.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from fake_result import fake_result

import regframe as rf

HOME = Path(__file__).resolve().parents[2] / "plugins" / "napari-regframe"
SOURCE = HOME / "src" / "napari_regframe"


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    pytest.importorskip("dask.array", reason="needs dask: pip install 'regframe[batch]'")
    monkeypatch.syspath_prepend(str(HOME / "src"))
    from napari_regframe import reading

    return reading


def test_the_manifest_names_functions_that_are_there() -> None:
    manifest = yaml.safe_load((SOURCE / "napari.yaml").read_text())
    about = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]
    assert about["entry-points"]["napari.manifest"] == {manifest["name"]: "napari_regframe:napari.yaml"}
    commands = manifest["contributions"].pop("commands")
    for command in commands:
        module, _, name = command["python_name"].partition(":")
        tree = ast.parse((SOURCE / f"{module.removeprefix('napari_regframe.')}.py").read_text())
        assert name in {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    used = {each["command"] for part in manifest["contributions"].values() for each in part}
    assert used == {command["id"] for command in commands}


def side(grid: rf.Grid, channels: tuple[str, ...], labels: bool = False) -> rf.Pyramid:
    """Random pixels at two resolutions."""
    high = 5 if labels else 255
    fine = np.random.default_rng(len(channels)).integers(0, high, (len(channels), *grid.shape), dtype=np.uint8)
    coarse = np.ascontiguousarray(fine[:, ::2, ::2])
    levels = [
        rf.Level(at, pixels.shape, lambda region, pixels=pixels: pixels[(slice(None), *region)])  # type: ignore[misc]
        for at, pixels in ((grid, fine), (grid.in_blocks((2, 2), (0.5, 0.5)), coarse))
    ]
    return rf.Pyramid(tuple(levels), fine.dtype, channels, labels=labels, name="side")


@pytest.mark.parametrize(
    ("channels", "labels"), [(("red", "green", "blue"), False), (("DAPI", "CD3"), False), (("ids",), True)]
)
def test_layers_are_lazy_and_hold_the_pixels_of_the_map(
    reading: ModuleType, channels: tuple[str, ...], labels: bool
) -> None:
    grids = rf.Grid((90, 110), 0.5, (4.0, -3.0), "µm"), rf.Grid((80, 100), 0.6, (1.0, 2.0), "µm")
    result = fake_result(*grids, bend=3.0)
    moving = side(grids[1], channels, labels)
    layers: list[tuple[Any, dict[str, Any], str]] = reading.layers_of(result, side(grids[0], channels, labels), moving)
    pictures = [layer for layer in layers if "metadata" in layer[1] and layer[1]["metadata"]]
    one = channels[0] == "red"
    assert len(pictures) == (2 if one else 2 * len(channels))
    assert {kind for *_, kind in pictures} == {"labels" if labels else "image"}
    whole = result.to_fixed(moving.image()).data.numpy()
    for number, (data, how, _) in enumerate(pictures[len(pictures) // 2 :]):
        assert how["multiscale"]
        assert (how["scale"], how["translate"]) == (grids[0].spacing, grids[0].origin)
        assert how["units"] == ("micrometer", "micrometer")
        assert hasattr(data[0], "dask"), "nothing was computed yet"
        assert np.array_equal(np.asarray(data[0]), np.moveaxis(whole, 0, -1) if one else whole[number])
        part = np.asarray(data[0][20:31, 50:70])
        assert np.array_equal(part, np.asarray(data[0])[20:31, 50:70])


def test_volumes_are_carried_as_a_whole_once_they_are_looked_at(reading: ModuleType) -> None:
    grid = rf.Grid((5, 20, 24), (2.0, 0.5, 0.5), unit="µm")
    pixels = np.random.default_rng(0).integers(0, 999, (1, *grid.shape), dtype=np.uint16)
    level = rf.Level(grid, pixels.shape, lambda region: pixels[(slice(None), *region)])
    volume = rf.Pyramid((level,), pixels.dtype, ("0",), name="brain")
    result = fake_result(grid, grid, bend=0.5)
    fixed, moved, *_ = reading.layers_of(result, volume, volume)
    assert np.array_equal(np.asarray(fixed[0]), pixels[0])
    assert hasattr(moved[0], "dask")
    assert np.array_equal(np.asarray(moved[0]), result.to_fixed(volume.image()).data.numpy()[0])
    assert moved[1]["axis_labels"] == ("z", "y", "x")


def test_what_is_no_run_is_not_taken(reading: ModuleType, tmp_path: Path) -> None:
    assert reading.reader_of(str(tmp_path)) is None
    assert reading.reader_of([str(tmp_path)]) is None
    (tmp_path / "transform.ome.zarr").mkdir()
    assert reading.reader_of(str(tmp_path)) is not None
