"""Colours of image files: what PhotometricInterpretation and display colours say, against Pillow and libtiff."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import plain_files as plain
import pytest
import tifffile
from click.testing import CliRunner
from PIL import Image as Pillow
from PIL import ImageCms

import regframe as rf
from regframe.cli import main

RNG = np.random.default_rng(7)
RGB = np.asarray(
    Pillow.fromarray(RNG.integers(0, 255, (8, 10, 3), dtype=np.uint8)).resize((40, 32), Pillow.Resampling.BICUBIC)
)
PLANES = np.ascontiguousarray(np.moveaxis(RGB, -1, 0))
GREY = np.ascontiguousarray(RGB[..., 0])
COLOURS = ("red", "green", "blue")
UM = dict.fromkeys("zyx", "micrometer")


def pixels(path: Path, **options: Any) -> np.ndarray:  # type: ignore[type-arg]
    """``[y, x, c]`` of a file."""
    opened = rf.open(path, **options)
    assert isinstance(opened, rf.Image)
    return np.moveaxis(opened.data.numpy(), 0, -1)


def off(one: np.ndarray, other: np.ndarray) -> float:  # type: ignore[type-arg]
    """Mean difference of two pictures in grey values."""
    return float(np.abs(one.astype(np.float64) - other.astype(np.float64)).mean())


def pillow_tiff(path: Path, mode: str, **options: Any) -> Path:
    """The picture in a mode of Pillow's, as it writes it."""
    picture = Pillow.fromarray(RGB)
    if mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(picture, srgb, lab, outputMode="LAB")
        assert converted is not None
    else:
        converted = picture.convert(mode)
    out = io.BytesIO()
    converted.save(out, "TIFF", **options)
    path.write_bytes(out.getvalue())
    return path


# ---- what PhotometricInterpretation says ---------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
@pytest.mark.parametrize(("mode", "most"), [("RGB", 0.0), ("CMYK", 0.0), ("YCbCr", 1.5), ("LAB", 1.5), ("P", 20.0)])
def test_modes_of_pillow(tmp_path: Path, mode: str, most: float, compression: str | None) -> None:
    path = pillow_tiff(tmp_path / "a.tif", mode, **({"compression": compression} if compression else {}))
    assert rf.open(path).channels == COLOURS
    found = pixels(path)
    assert off(found, RGB) <= most
    if mode != "LAB":  # which libtiff takes for another white
        assert off(found, imagecodecs.tiff_decode(path.read_bytes(), asrgb=True)[..., :3]) < 0.6
        assert off(found, np.asarray(Pillow.open(path).convert("RGB"))) < 0.6


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "YCbCr"])
def test_modes_of_pillow_in_jpeg(tmp_path: Path, mode: str) -> None:
    path = pillow_tiff(tmp_path / "a.tif", mode, compression="jpeg", quality=95)
    assert off(pixels(path), imagecodecs.tiff_decode(path.read_bytes(), asrgb=True)[..., :3]) < 0.6


@pytest.mark.parametrize("planar", [True, False])
@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("photometric", ["rgb", "separated", "ycbcr", "cielab", "icclab"])
def test_planes_and_tiles_of_one_picture_agree(tmp_path: Path, photometric: str, planar: bool, tile: Any) -> None:
    stored = np.dstack([255 - RGB, np.zeros_like(GREY)]) if photometric == "separated" else RGB
    tifffile.imwrite(tmp_path / "plain.tif", stored, photometric=photometric, planarconfig="contig")
    array = np.ascontiguousarray(np.moveaxis(stored, -1, 0)) if planar else stored
    tifffile.imwrite(
        tmp_path / "a.tif", array, photometric=photometric, planarconfig="separate" if planar else "contig", tile=tile,
        compression="zlib",
    )  # fmt: skip
    opened = rf.open(tmp_path / "a.tif")
    assert opened.channels == COLOURS
    assert np.array_equal(opened.data.numpy(), rf.open(tmp_path / "plain.tif").data.numpy())
    if photometric in ("rgb", "separated"):
        assert np.array_equal(opened.data.numpy(), PLANES)
    level = rf.open_pyramid(tmp_path / "a.tif").levels[0]
    assert np.array_equal(level.read((slice(5, 20), slice(7, 33))), opened.data.numpy()[:, 5:20, 7:33])
    picked = rf.open(tmp_path / "a.tif", channels="blue,red")
    assert np.array_equal(picked.data.numpy(), opened.data.numpy()[[2, 0]])


def test_lab_of_both_kinds_is_one(tmp_path: Path) -> None:
    path = pillow_tiff(tmp_path / "a.tif", "LAB")
    stored = tifffile.imread(path)
    tifffile.imwrite(tmp_path / "b.tif", stored ^ np.array([0, 128, 128], np.uint8), photometric="icclab")
    assert np.array_equal(pixels(tmp_path / "b.tif"), pixels(path))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_where_zero_is_white(tmp_path: Path, dtype: Any) -> None:
    values = GREY.astype(dtype) * (257 if dtype == np.uint16 else 1)
    tifffile.imwrite(tmp_path / "a.tif", np.iinfo(dtype).max - values, photometric="miniswhite")
    assert np.array_equal(pixels(tmp_path / "a.tif")[..., 0], values)
    assert np.array_equal(pixels(tmp_path / "a.tif", labels=True)[..., 0], np.iinfo(dtype).max - values)
    assert "it is inverted" in rf.open_pyramid(tmp_path / "a.tif").notes[0]
    tifffile.imwrite(tmp_path / "f.tif", GREY.astype(np.float32), photometric="miniswhite")
    assert np.array_equal(pixels(tmp_path / "f.tif")[..., 0], GREY)
    alpha = np.full_like(GREY, 255)
    both = np.dstack([255 - GREY, alpha])
    tifffile.imwrite(
        tmp_path / "b.tif", both, photometric="miniswhite", extrasamples=["unassalpha"], planarconfig="contig"
    )
    assert np.array_equal(pixels(tmp_path / "b.tif")[..., 0], GREY)


def test_one_bit_where_zero_is_white(tmp_path: Path) -> None:
    black = GREY > 128
    for value, wanted in ((0, ~black), (1, black)):
        Pillow.fromarray(black).save(tmp_path / f"{value}.tif", tiffinfo={262: value})
        raw = imagecodecs.tiff_decode((tmp_path / f"{value}.tif").read_bytes(), asrgb=True)[..., 0] > 0
        assert np.array_equal(pixels(tmp_path / f"{value}.tif")[..., 0] > 0, raw)
        assert raw.shape == wanted.shape


@pytest.mark.parametrize("kind", ["assocalpha", "unassalpha"])
def test_colours_that_were_multiplied_by_their_opacity(tmp_path: Path, kind: Any) -> None:
    alpha = np.linspace(0, 255, GREY.size).reshape(GREY.shape).astype(np.uint8)
    opacity = alpha[..., None] / 255
    stored = np.rint(RGB * opacity).astype(np.uint8) if kind == "assocalpha" else RGB
    tifffile.imwrite(tmp_path / "a.tif", np.dstack([stored, alpha]), photometric="rgb", extrasamples=[kind])
    with pytest.warns(UserWarning, match="composited over white"):
        found = pixels(tmp_path / "a.tif")
    assert np.abs(found - (RGB * opacity + 255 * (1 - opacity))).max() <= 1.01


def test_a_sample_beside_the_colours_is_kept(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif",
        np.dstack([RGB, GREY]),
        photometric="rgb",
        extrasamples=["unspecified"],
        planarconfig="contig",
    )
    opened = rf.open(tmp_path / "a.tif")
    assert opened.channels == (*COLOURS, "extra 1")
    assert np.array_equal(opened.data[3].numpy(), GREY)


def test_three_samples_that_are_no_colours(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="minisblack", planarconfig="contig")
    assert rf.open(tmp_path / "a.tif").channels == ("0", "1", "2")
    assert np.array_equal(pixels(tmp_path / "a.tif"), RGB)


def retagged(path: Path, tag: int, value: int) -> Path:
    """The file with another value in a tag of its first page."""
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages.first.tags[tag].overwrite(value)
    return path


def test_jpeg_2000_of_aperio_is_ycbcr_whatever_it_says(tmp_path: Path) -> None:
    stored = np.asarray(Pillow.fromarray(RGB).convert("YCbCr"))
    for photometric in ("rgb", "ycbcr"):
        path = tmp_path / f"{photometric}.tif"
        tifffile.imwrite(
            path, stored, photometric=photometric, compression=33003, planarconfig="contig",
            compressionargs={"codecformat": "j2k", "mct": False, "level": 0},
        )  # fmt: skip
        assert rf.open(path).channels == COLOURS
        assert off(pixels(path), RGB) < 1.5


def test_what_cannot_be_converted_is_refused_by_name(tmp_path: Path) -> None:
    deep = np.dstack([RGB, GREY]).astype(np.uint16)
    tifffile.imwrite(tmp_path / "cmyk.tif", deep, photometric="separated", planarconfig="contig")
    tifffile.imwrite(tmp_path / "lab.tif", RGB.astype(np.uint16), photometric="cielab", planarconfig="contig")
    tifffile.imwrite(tmp_path / "cfa.tif", GREY, photometric="cfa")
    tifffile.imwrite(tmp_path / "log.tif", RGB, photometric="logluv", planarconfig="contig")
    for name, word in (("cmyk", "CMYK"), ("lab", "CIELab"), ("cfa", "CFA"), ("log", "LOGLUV")):
        with pytest.raises(
            ValueError, match=f"wanted a TIFF in grey, RGB.*got {word} of .*{name}.tif'; save it as RGB$"
        ):
            rf.open(tmp_path / f"{name}.tif")
    pillow_tiff(tmp_path / "narrow.tif", "YCbCr")
    with tifffile.TiffFile(tmp_path / "narrow.tif", mode="r+") as file:
        file.pages.first.tags["ReferenceBlackWhite"].overwrite((16, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1))
    with pytest.raises(ValueError, match="got YCbCr of 3 samples of uint8"):
        rf.open(tmp_path / "narrow.tif")


def test_inks_that_are_no_cmyk_are_channels(tmp_path: Path) -> None:
    four = np.dstack([RGB, GREY])
    tifffile.imwrite(
        tmp_path / "a.tif", four, photometric="separated", planarconfig="contig", extratags=[(332, 3, 1, 2, True)]
    )
    opened = rf.open(tmp_path / "a.tif")
    assert opened.channels == ("0", "1", "2", "3")
    assert np.array_equal(pixels(tmp_path / "a.tif"), four)


def test_palettes_of_sixteen_and_of_eight_bits(tmp_path: Path) -> None:
    colours = RNG.integers(0, 255, (3, 256), dtype=np.uint16)
    for name, stored in (("deep", colours * 257), ("flat", colours)):
        tifffile.imwrite(tmp_path / f"{name}.tif", GREY, photometric="palette", colormap=stored)
        assert np.array_equal(pixels(tmp_path / f"{name}.tif"), np.moveaxis(colours[:, GREY], 0, -1))


# ---- what OME and OMERO say ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [None, ["H&E"]])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_named_picture_is_a_picture(tmp_path: Path, names: list[str] | None, dtype: Any) -> None:
    metadata = {"axes": "YXS", **({"Channel": {"Name": names}} if names else {})}
    tifffile.imwrite(tmp_path / "a.ome.tif", RGB.astype(dtype), ome=True, photometric="rgb", metadata=metadata)
    pyramid = rf.open_pyramid(tmp_path / "a.ome.tif")
    assert pyramid.channels == COLOURS
    assert np.array_equal(pyramid.image().data.numpy(), PLANES)
    assert any("H&E" in note for note in pyramid.notes) is bool(names)


PAINT = [0xFF0000FF, 0x00FF00FF, 0x0000FFFF]


@pytest.mark.parametrize(
    ("names", "paint", "dtype", "picture"),
    [
        (["red", "green", "blue"], None, np.uint8, True),
        (["R", "G", "B"], None, np.uint16, True),
        (["Channel 0", "Channel 1", "Channel 2"], PAINT, np.uint8, True),
        (["Channel 0", "Channel 1", "Channel 2"], PAINT, np.uint16, False),
        (["Cy5", "FITC", "DAPI"], PAINT, np.uint8, False),
        (["Channel 0", "Channel 1", "Channel 2"], PAINT[::-1], np.uint8, False),
        (["Channel 0", "Channel 1", "Channel 2"], None, np.uint8, False),
    ],
)
def test_three_planes_are_a_picture_where_their_colours_say_so(
    tmp_path: Path, names: list[str], paint: list[int] | None, dtype: Any, picture: bool
) -> None:
    signed = [p - (1 << 32) if p >= 1 << 31 else p for p in paint or ()]
    channel = {"Name": names, **({"Color": signed} if paint else {})}
    values = PLANES.astype(dtype)
    tifffile.imwrite(
        tmp_path / "a.ome.tif", values, ome=True, photometric="minisblack", metadata={"axes": "CYX", "Channel": channel}
    )
    omero = [{"label": n, **({"color": f"{paint[i] >> 8:06x}"} if paint else {})} for i, n in enumerate(names)]
    store = plain.image(tmp_path / "a.zarr", [values], "cyx", [dict.fromkeys("yx", 1.0)], UM, omero=omero)
    for path in (tmp_path / "a.ome.tif", store):
        opened = rf.open(path)
        assert (opened.channels == COLOURS) is picture
        assert picture or opened.channels == tuple(names)
        assert np.array_equal(opened.data.numpy(), values)


def test_the_xml_beside_a_zarr_says_that_three_channels_are_one_picture(tmp_path: Path) -> None:
    root = plain.group(tmp_path / "a.zarr", {"bioformats2raw.layout": 3})
    plain.image(root / "0", [PLANES.astype(np.uint16)], "cyx", [dict.fromkeys("yx", 1.0)], UM)
    (root / "OME").mkdir()
    xml = plain.ome_xml([{"name": "slide", "pixels": {"SizeX": 40}, "channels": [{"SamplesPerPixel": 3}]}])
    (root / "OME" / "METADATA.ome.xml").write_text(xml, encoding="utf-8")
    assert rf.open(root).channels == COLOURS


def test_colours_of_volumes(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK", reason="needs the extra itk")
    block = np.stack([RGB, RGB[::-1], RGB[:, ::-1]])
    for suffix in ("nii", "nrrd", "mha"):
        sitk.WriteImage(sitk.GetImageFromArray(block, isVector=True), str(tmp_path / f"a.{suffix}"))
        opened = rf.open(tmp_path / f"a.{suffix}")
        assert (opened.grid.shape, opened.channels) == ((3, 32, 40), COLOURS)
        assert np.array_equal(np.moveaxis(opened.data.numpy(), 0, -1), block)


# ---- written as it was read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["tif", "png", "zarr"])
def test_a_picture_is_written_as_one(tmp_path: Path, suffix: str) -> None:
    Pillow.fromarray(RGB).save(tmp_path / "rgb.png")
    names = {"named": "rgb", "planar": "rgb", "cmyk": "separated"}
    tifffile.imwrite(
        tmp_path / "named.tif", RGB, ome=True, photometric="rgb", metadata={"axes": "YXS", "Channel": {"Name": ["H&E"]}}
    )
    tifffile.imwrite(tmp_path / "planar.tif", PLANES, photometric="rgb", planarconfig="separate")
    pillow_tiff(tmp_path / "cmyk.tif", "CMYK")
    for name in names:
        opened = rf.open(tmp_path / f"{name}.tif")
        assert isinstance(opened, rf.Image)
        path = tmp_path / f"{name}.out.{suffix}"
        rf.adapter("image").save(opened, path)
        if suffix == "zarr":
            omero = rf.open_pyramid(path)
            assert (omero.channels, omero.colors) == (COLOURS, ("FF0000", "00FF00", "0000FF"))
            assert np.array_equal(omero.image().data.numpy(), PLANES)
            continue
        written = Pillow.open(path)
        assert written.mode == "RGB"
        assert np.array_equal(np.asarray(written), RGB)


def test_the_cases_of_colour(tmp_path: Path) -> None:
    folder = plain.case("34")
    rgb = np.asarray(Pillow.open(folder / "rgb.png"))

    def run(*words: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            done = CliRunner().invoke(main, [str(word) for word in words])
        assert done.exit_code == 0, done.output

    out = tmp_path / "out"
    run("register", folder / "rgb.png", folder / "rgb.png", "--init", "identity", "--transform", "rigid", "-o", out)
    for name in ("named.ome", "planar", "cmyk", "ycbcr", "lab"):
        for suffix in ("tif", "png"):
            path = tmp_path / f"{name}.w.{suffix}"
            run("apply", "image", out, folder / f"{name}.tif", "--to", "fixed", "-o", path)
            written = Pillow.open(path)
            assert written.mode == "RGB"
            assert off(np.asarray(written), rgb) < 1.5
