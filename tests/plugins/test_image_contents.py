"""What a file holds: several images of which one is the scan, axes of one entry, and what `regframe info` says of both."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import plain_files as plain
import pytest
import tifffile
from click.testing import CliRunner
from PIL import Image as Pillow

import regframe as rf
from regframe.cli import main

RNG = np.random.default_rng(5)
SCAN = RNG.integers(0, 255, (30, 40, 3), dtype=np.uint8)
LABEL = RNG.integers(0, 255, (20, 24, 3), dtype=np.uint8)
UM = dict.fromkeys("zyx", "micrometer")


def command(*words: str) -> Any:
    """A command whose warnings are printed, as outside the tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        return CliRunner().invoke(main, list(words))


def info(path: Path, *more: str) -> dict[str, Any]:
    done = command("info", str(path), "--json", *more)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def said(path: Path, **options: Any) -> tuple[Any, list[str]]:
    """The image, and what was said aloud."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        opened = rf.open(path, **options)
    return opened, [str(w.message) for w in caught]


def planes(array: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return np.ascontiguousarray(np.moveaxis(array, -1, 0))


# ---- several images ------------------------------------------------------------------------------------------------------


def ome_tiff(path: Path, images: list[tuple[str, Any, dict[str, Any]]]) -> Path:
    with tifffile.TiffWriter(path, ome=True) as writer:
        for name, array, metadata in images:
            writer.write(array, photometric="rgb", metadata={"axes": "YXS", "Name": name, **metadata})
    return path


MICRONS = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}


@pytest.mark.parametrize("name", ["label", "Label Image", "slide_label", "Macro", "overview", "thumbnail", "Barcode"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("large", [True, False])
def test_a_label_is_not_the_scan(tmp_path: Path, name: str, last: bool, large: bool) -> None:
    beside = np.repeat(np.repeat(LABEL, 3, 0), 3, 1) if large else LABEL
    images = [(name, beside, {}), ("tissue", SCAN, MICRONS)]
    path = ome_tiff(tmp_path / "a.ome.tif", images[::-1] if last else images)
    opened, words = said(path)
    assert np.array_equal(opened.data.numpy(), planes(SCAN))
    assert (opened.grid.unit, opened.grid.spacing) == ("µm", (0.5, 0.5))
    assert bool(words) is not last  # a scan that comes first is what anybody expects
    series = rf.open_pyramid(path).series if last else info(path)["series"]
    assert len(series) == 2
    beside_at = 1 if last else 0
    opened, words = said(path, series=name)
    assert np.array_equal(opened.data.numpy(), planes(beside))
    assert "which is no scan" in words[0]
    assert np.array_equal(said(path, series=beside_at)[0].data.numpy(), planes(beside))


def test_names_that_only_resemble_a_label(tmp_path: Path) -> None:
    images = [("label-free scan", SCAN, MICRONS), ("macrophages", LABEL, MICRONS)]
    opened, words = said(ome_tiff(tmp_path / "a.ome.tif", images))
    assert opened.data.shape == (3, 30, 40)
    assert "holds 2 images; series 0 (label-free scan, 30 × 40 px) is read, and not 1 (macrophages" in words[0]


def test_two_scenes_are_listed_and_chosen(tmp_path: Path) -> None:
    images = [("one", LABEL, MICRONS), ("two", SCAN, {"PhysicalSizeX": 2.0, "PhysicalSizeY": 2.0})]
    path = ome_tiff(tmp_path / "a.ome.tif", images)
    found = info(path)
    assert [s["name"] for s in found["series"]] == ["one", "two"]
    assert [s["read"] for s in found["series"]] == [False, True]
    assert [s["spacing"] for s in found["series"]] == [[0.5, 0.5], [2.0, 2.0]]
    assert any("series= chooses" in note for note in found["notes"])
    assert info(path, "--set", "series=one")["spacing"] == [0.5, 0.5]
    assert info(path, "--set", "series=0")["shape"] == [20, 24]
    text = command("info", str(path)).output
    assert "series 0   one: 20 × 24 px of 0.5 × 0.5 µm" in text
    assert "series 1   two: 30 × 40 px of 2 × 2 µm, 3 samples, read" in text
    for wrong in (2, "three", "-1"):
        with pytest.raises(ValueError, match=r"wanted a series of a\.ome\.tif \(0 one, 1 two\)"):
            rf.open(path, series=wrong)
    with pytest.raises(ValueError, match="wanted a series by number, from 0, or by name"):
        rf.open(path, series=-1)


def test_a_tiff_whose_first_page_is_a_thumbnail(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(LABEL, photometric="rgb", metadata=None)
        writer.write(SCAN, photometric="rgb", metadata=None, tile=(16, 16), compression="zlib")
    opened, words = said(tmp_path / "a.tif")
    assert np.array_equal(opened.data.numpy(), planes(SCAN))
    assert "series 1" in words[0]
    whole = rf.open_pyramid(tmp_path / "a.tif", series=1).levels[0]
    assert np.array_equal(whole.read((slice(3, 29), slice(7, 33))), planes(SCAN)[:, 3:29, 7:33])


def test_one_image_has_no_other(tmp_path: Path) -> None:
    Pillow.fromarray(SCAN).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", SCAN, photometric="rgb")
    store = plain.image(tmp_path / "a.zarr", [planes(SCAN)], "cyx", [dict.fromkeys("yx", 1.0)], UM)
    for path in (tmp_path / "a.png", tmp_path / "a.tif", store):
        assert rf.open(path, series=0).data.shape == (3, 30, 40)
        with pytest.raises(ValueError, match=r"wanted .*series"):
            rf.open(path, series=1)


def scenes(root: Path, names: tuple[str, ...] = ("0", "1"), **attributes: Any) -> Path:
    """A store as bioformats2raw writes it: a label, then the scan."""
    plain.group(root, {"bioformats2raw.layout": 3, **attributes})
    for name, array, step in zip(names, (LABEL, SCAN), (20.0, 0.5), strict=True):
        plain.image(root / name, [planes(array)], "cyx", [dict.fromkeys("yx", step)], UM)
    return root


def test_the_groups_of_bioformats2raw(tmp_path: Path) -> None:
    path = scenes(tmp_path / "a.zarr")
    opened, words = said(path)
    assert np.array_equal(opened.data.numpy(), planes(SCAN))
    assert "a.zarr holds 2 images; series 1 (30 × 40 px) is read, and not 0 (20 × 24 px)" in words[0]
    assert [s["shape"] for s in info(path)["series"]] == [[3, 20, 24], [3, 30, 40]]
    opened, words = said(path, series=0)
    assert (opened.grid.spacing, words) == ((20.0, 20.0), [])
    shutil.make_archive(str(tmp_path / "b.zarr"), "zip", path)
    assert said(tmp_path / "b.zarr.zip")[0].data.shape == (3, 30, 40)


def test_a_photograph_of_the_glass_without_a_name(tmp_path: Path) -> None:
    large = np.tile(LABEL, (4, 4, 1))
    coarse = {"PhysicalSizeX": 0.02, "PhysicalSizeXUnit": "mm", "PhysicalSizeY": 20, "PhysicalSizeYUnit": "µm"}
    for k, sizes in enumerate(({}, coarse)):
        opened, words = said(ome_tiff(tmp_path / f"{k}.ome.tif", [("", large, sizes), ("", SCAN, MICRONS)]))
        assert np.array_equal(opened.data.numpy(), planes(SCAN))
        assert "series 1 (30 × 40 px) is read, and not 0 (80 × 96 px)" in words[0]


def test_names_and_pixel_sizes_of_the_xml_beside(tmp_path: Path) -> None:
    path = scenes(tmp_path / "a.zarr")
    sizes = {"PhysicalSizeX": 20, "PhysicalSizeY": 20}
    images = [{"name": "Label image", "pixels": sizes}, {"name": "Scan", "pixels": sizes | MICRONS}]
    (path / "OME").mkdir()
    (path / "OME" / "METADATA.ome.xml").write_text(plain.ome_xml(images), encoding="utf-8")
    found = info(path)
    assert [(s["name"], s["role"], s["read"]) for s in found["series"]] == [
        ("Label image", "label", False),
        ("Scan", "image", True),
    ]
    assert said(path, series="Scan")[0].grid.spacing == (0.5, 0.5)
    images[1]["pixels"] = {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
    (path / "OME" / "METADATA.ome.xml").write_text(plain.ome_xml(images), encoding="utf-8")
    with pytest.raises(ValueError, match="wanted one pixel size"):
        said(path)
    assert said(path, series=0)[0].grid.spacing == (20.0, 20.0)


def test_a_list_of_series_a_plate_and_several_multiscales(tmp_path: Path) -> None:
    path = scenes(tmp_path / "a.zarr", ("left", "right"))
    plain.group(path / "OME", {"series": ["left", "right"]})
    assert said(path)[0].data.shape == (3, 30, 40)
    assert said(path, series="left")[0].data.shape == (3, 20, 24)

    plate = plain.group(tmp_path / "b.zarr", {"plate": {"wells": [{"path": "A/1"}, {"path": "B/2"}]}})
    for well, array in (("A/1", LABEL), ("B/2", SCAN)):
        plain.group(plate / well[0])
        plain.group(plate / well, {"well": {"images": [{"path": "0"}]}})
        plain.image(plate / well / "0", [planes(array)], "cyx", [dict.fromkeys("yx", 1.0)], UM)
    opened, words = said(plate)
    assert opened.data.shape == (3, 30, 40)
    assert "holds 2 images" in words[0]
    assert said(plate, series="A/1/0")[0].data.shape == (3, 20, 24)

    steps = [dict.fromkeys("yx", 1.0)]
    first = plain.multiscale("cyx", steps, UM, name="first")
    second = plain.multiscale("cyx", steps, UM, name="second")
    second["datasets"][0]["path"] = "1"
    both = plain.group(tmp_path / "c.zarr", {"multiscales": [first, second]})
    plain.array(both / "0", planes(LABEL))
    plain.array(both / "1", planes(SCAN))
    assert said(both)[0].data.shape == (3, 30, 40)
    assert said(both, series="first")[0].data.shape == (3, 20, 24)


def test_a_segmentation_beside_an_image_is_no_rival(tmp_path: Path) -> None:
    path = plain.image(tmp_path / "a.zarr", [planes(SCAN)], "cyx", [dict.fromkeys("yx", 0.5)], UM)
    plain.group(path / "labels", {"labels": ["nuclei"]})
    ids = np.arange(1200, dtype=np.int32).reshape(30, 40)
    plain.image(path / "labels" / "nuclei", [ids], "yx", [dict.fromkeys("yx", 0.5)], UM)
    opened, words = said(path)
    assert (opened.data.shape, words) == ((3, 30, 40), [])
    assert [s["role"] for s in info(path)["series"]] == ["image", "ids"]
    opened, words = said(path, series="labels/nuclei")
    assert (opened.labels, words) == (True, [])
    assert np.array_equal(opened.data[0].numpy(), ids)


@pytest.mark.parametrize(
    ("name", "shape"), [("label_first.ome.tif", (60, 80)), ("two_scenes.ome.tif", (60, 50)), ("bf2raw.zarr", (60, 80))]
)
def test_the_cases_of_several_images(name: str, shape: tuple[int, ...]) -> None:
    found = info(plain.case(f"06/{name}"))
    assert tuple(found["shape"]) == shape
    assert found["spacing"] == [0.5, 0.5]
    assert len(found["series"]) == 2


# ---- axes of one entry ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("letters", ["tczyx", "czyx", "zyx", "zcyx", "xyz", "yxz"])
def test_one_plane_of_a_zarr_is_an_image(tmp_path: Path, letters: str) -> None:
    sizes = {"t": 1, "c": 2, "z": 1, "y": 9, "x": 12}
    values = RNG.integers(0, 255, [sizes[a] for a in letters], dtype=np.uint8)
    scale, shift = {"z": 5.0, "y": 0.5, "x": 0.25}, {"z": 12.5, "y": 3.0, "x": 4.0}
    path = plain.image(tmp_path / "a.zarr", [values], letters, [scale], UM, shifts=[shift])
    opened, words = said(path)
    order = [letters.index(a) for a in "tczyx" if a in letters]
    assert np.array_equal(opened.data.numpy().reshape(-1, 9, 12), values.transpose(order).reshape(-1, 9, 12))
    assert (opened.grid.spacing, opened.grid.unit, words) == ((0.5, 0.25), "µm", [])
    assert opened.grid.origin == (3.0, 4.0)
    assert any("axis z: it has one entry at 12.5 µm and is dropped" in note for note in info(path)["notes"])
    assert rf.open(path, z=0).grid == opened.grid


def test_a_plane_without_a_thickness_says_nothing_of_it(tmp_path: Path) -> None:
    values = RNG.integers(0, 255, (1, 9, 12), dtype=np.uint8)
    path = plain.image(tmp_path / "a.zarr", [values], "zyx", [{"z": 0.0, "y": 0.5, "x": 0.5}], UM | {"z": None})
    assert said(path)[1] == []


def test_one_plane_of_a_tiff_is_an_image(tmp_path: Path) -> None:
    stack = RNG.integers(0, 255, (1, 2, 9, 12), dtype=np.uint8)
    sizes = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 3.0}
    tifffile.imwrite(tmp_path / "a.ome.tif", stack, metadata={"axes": "ZCYX", **sizes}, photometric="minisblack")
    tifffile.imwrite(
        tmp_path / "b.tif", stack, imagej=True, metadata={"axes": "ZCYX", "unit": "um"}, resolution=(2.0, 2.0)
    )
    tifffile.imwrite(tmp_path / "c.tif", stack[:, 0], metadata={"axes": "ZYX"}, photometric="minisblack")
    for name in ("a.ome.tif", "b.tif"):
        opened = rf.open(tmp_path / name)
        assert (opened.data.shape, opened.grid.spacing, opened.grid.unit) == ((2, 9, 12), (0.5, 0.5), "µm")
    assert rf.open(tmp_path / "c.tif").data.shape == (1, 9, 12)


def test_one_plane_of_an_array_is_an_image(tmp_path: Path) -> None:
    plane = RNG.integers(0, 255, (9, 12), dtype=np.uint8)
    for axis in range(3):
        np.save(tmp_path / f"{axis}.npy", np.expand_dims(plane, axis))
        assert np.array_equal(rf.open(tmp_path / f"{axis}.npy").data[0].numpy(), plane)
    assert rf.open(plane[None], axes="zyx").grid.ndim == 2
    assert rf.open(np.stack([plane] * 3, -1)[None]).data.shape == (3, 9, 12)


@pytest.mark.parametrize("suffix", ["nii", "nii.gz", "nrrd", "mha"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_plane_of_a_volume_is_an_image(tmp_path: Path, suffix: str, axis: int) -> None:
    sitk = pytest.importorskip("SimpleITK", reason="needs the extra itk")
    block = np.arange(9 * 10 * 11, dtype=np.int16).reshape(9, 10, 11)
    plane = np.take(block, [4], axis)
    volume = sitk.GetImageFromArray(plane)
    volume.SetSpacing((0.5, 2.0, 3.0))
    path = tmp_path / f"a.{suffix}"
    sitk.WriteImage(volume, str(path))
    pyramid = rf.open_pyramid(path)
    steps = [s for a, s in enumerate((3.0, 2.0, 0.5)) if a != axis]
    finest = min(steps[-1:] if axis == 2 else [s for a, s in enumerate((3.0, 2.0, 0.5)) if a not in (0, axis)])
    assert pyramid.grid.spacing == tuple(s / finest if suffix == "nrrd" else s for s in steps)  # which has no unit
    assert np.array_equal(pyramid.image().data[0].numpy(), plane.squeeze(axis))
    assert any("zyx"[axis] in note and "dropped" in note for note in pyramid.notes)


def test_a_volume_stays_one_where_only_its_coarse_levels_are_thin(tmp_path: Path) -> None:
    levels = [RNG.integers(0, 255, (4 // f, 32 // f, 32 // f), dtype=np.uint8) for f in (1, 2, 4)]
    scales = [dict.fromkeys("zyx", float(f)) for f in (1, 2, 4)]
    shifts = [dict.fromkeys("zyx", (f - 1) / 2) for f in (1, 2, 4)]
    path = plain.image(tmp_path / "a.zarr", levels, "zyx", scales, UM, shifts=shifts)
    pyramid = rf.open_pyramid(path)
    assert [level.grid.shape for level in pyramid.levels] == [(4, 32, 32), (2, 16, 16), (1, 8, 8)]


@pytest.mark.parametrize("named", [True, False])
def test_a_zarr_from_before_transformations(tmp_path: Path, named: bool) -> None:
    levels = [RNG.integers(0, 255, (1, 2, 1, 16 // f, 24 // f), dtype=np.uint8) for f in (1, 2)]
    path = plain.image(tmp_path / "a.zarr", levels, "tczyx", [{}, {}], {})
    attributes = json.loads((path / ".zattrs").read_text())
    entry = attributes["multiscales"][0]
    entry["axes"] = list("tczyx")
    entry["datasets"] = [{"path": d["path"]} for d in entry["datasets"]]
    if not named:
        del entry["axes"]
    (path / ".zattrs").write_text(json.dumps(attributes))
    pyramid = rf.open_pyramid(path)
    assert [level.grid.spacing for level in pyramid.levels] == [(1.0, 1.0), (2.0, 2.0)]
    assert pyramid.levels[1].grid.origin == (0.5, 0.5)
    assert np.array_equal(pyramid.image(1).data.numpy(), levels[1][0, :, 0])


def test_two_sides_of_different_dimension_are_named(tmp_path: Path) -> None:
    Pillow.fromarray(SCAN).save(tmp_path / "plane.png")
    np.save(tmp_path / "block.npy", RNG.integers(0, 255, (9, 30, 40), dtype=np.uint8))
    paths = [str(tmp_path / "plane.png"), str(tmp_path / "block.npy"), "-o", str(tmp_path / "out"), "--dry-run"]
    done = command("register", *paths, "--moving-set", "axes=zyx")
    assert done.exit_code == 0, done.output
    assert "plane.png is one plane (30 × 40 px" in done.stderr
    assert "block.npy a volume (9 × 30 × 40 px" in done.stderr
    paths[:2] = paths[1::-1]
    done = command("register", *paths[:4], "--fixed-set", "axes=zyx")
    assert done.exit_code == 2
    assert "got a 3D fixed and a 2D moving image (block.npy: 9 × 30 × 40 px" in done.output


def test_the_case_of_one_plane(tmp_path: Path) -> None:
    folder = plain.case("07")
    found = info(folder / "moving.ome.zarr")
    assert (found["axes"], found["shape"]) == ("yx", [165, 223])
    truth = np.load(folder / "m.npy")
    fixed, moving = rf.open(folder / "fixed.png", spacing=1), rf.open(folder / "moving.ome.zarr")
    result = rf.register(fixed, moving)
    at = moving.grid.coords().reshape(-1, 2)[::997]
    moved = result.to_fixed(at)
    right = at.numpy() @ truth[:2, :2].T + truth[:2, 2]
    assert float(np.linalg.norm(moved.numpy() - right, axis=1).mean()) < 0.1
