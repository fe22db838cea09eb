"""The image and the point adapter: formats, spacing, levels, what is refused and with which sentence, writing."""

from __future__ import annotations

import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import zarr
from PIL import Image as Pillow

import regframe as rf

RAMP = (np.arange(12 * 20).reshape(12, 20) % 251).astype(np.uint8)
RGB = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=-1)


def image(source: Any, **options: Any) -> rf.Image:
    opened = rf.open(source, **options)
    assert isinstance(opened, rf.Image)
    return opened


def png_header(width: int, height: int, depth: int = 8, colour: int = 0) -> bytes:
    """A PNG that declares a size and holds no pixels to speak of."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


# ---- reading --------------------------------------------------------------------------------------------------------


def test_png_and_jpeg(tmp_path: Path) -> None:
    Pillow.fromarray(RGB).save(tmp_path / "a.png")
    opened = image(tmp_path / "a.png")
    assert np.array_equal(opened.data.numpy(), RGB.transpose(2, 0, 1))
    assert opened.channels == ("red", "green", "blue")
    assert (opened.grid.spacing, opened.grid.origin, opened.grid.unit) == ((1.0, 1.0), (0.0, 0.0), "px")
    assert opened.name == "a.png"
    Pillow.fromarray(RAMP).save(tmp_path / "a.jpg", quality=100)
    opened = image(str(tmp_path / "a.jpg"))
    assert opened.data.shape == (1, 12, 20)
    assert np.array_equal(opened.data[0].numpy(), np.asarray(Pillow.open(tmp_path / "a.jpg")))


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 3)])
def test_sixteen_bits_are_kept(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = (np.arange(np.prod(shape)).reshape(shape) * 700).astype(np.uint16)
    adapter = rf.adapter("image")
    first = rf.Image.from_array(values, axes="yxc"[: len(shape)])
    adapter.save(first, tmp_path / "a.png")
    opened = image(tmp_path / "a.png")
    assert opened.data.dtype == torch.uint16
    assert np.array_equal(opened.data.numpy(), first.data.numpy())


def test_palettes_are_colours_or_ids(tmp_path: Path) -> None:
    ids = Pillow.fromarray((RAMP % 3).astype(np.uint8), mode=None).convert("P")
    ids.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    ids.save(tmp_path / "p.png")
    colours = image(tmp_path / "p.png")
    assert colours.data[:, 0, 1].tolist() == [40, 50, 60]
    labels = image(tmp_path / "p.png", labels=True)
    assert labels.labels
    assert np.array_equal(labels.data[0].numpy(), RAMP % 3)
    tifffile.imwrite(
        tmp_path / "p.tif",
        RAMP % 2,
        photometric="palette",
        colormap=np.tile(np.arange(256, dtype=np.uint16) * 256, (3, 1)),
    )
    assert image(tmp_path / "p.tif").data.shape == (3, 12, 20)
    assert image(tmp_path / "p.tif", labels=True).data.shape == (1, 12, 20)


def test_opacity(tmp_path: Path) -> None:
    alpha = np.full((12, 20, 1), 255, np.uint8)
    Pillow.fromarray(np.concatenate([RGB, alpha], axis=-1)).save(tmp_path / "a.png")
    assert np.array_equal(image(tmp_path / "a.png").data.numpy(), RGB.transpose(2, 0, 1))
    alpha[0, :10] = 0
    Pillow.fromarray(np.concatenate([RGB, alpha], axis=-1)).save(tmp_path / "b.png")
    with pytest.warns(UserWarning, match=r"b\.png is not opaque in 4\.2% of its pixels; it is composited over white"):
        opened = image(tmp_path / "b.png")
    assert opened.data.shape[0] == 3
    assert (opened.data[:, 0, :10] == 255).all()
    assert np.array_equal(opened.data[:, 1:].numpy(), RGB.transpose(2, 0, 1)[:, 1:])


def test_exif_orientation_is_said_and_not_applied(tmp_path: Path) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = 6
    Pillow.fromarray(RAMP).save(tmp_path / "a.jpg", exif=exif)
    with pytest.warns(UserWarning, match="EXIF orientation 6"):
        assert image(tmp_path / "a.jpg").grid.shape == (12, 20)


def test_content_counts_and_not_the_suffix(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.jpg", RGB, photometric="rgb")
    assert np.array_equal(image(tmp_path / "a.jpg").data.numpy(), RGB.transpose(2, 0, 1))


def test_a_print_resolution_is_no_spacing(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RAMP, resolution=(300, 300), resolutionunit="inch")
    assert image(tmp_path / "a.tif").grid.unit == "px"
    tifffile.imwrite(tmp_path / "b.tif", RAMP, resolution=(3000, 3000), resolutionunit="centimeter")
    assert image(tmp_path / "b.tif").grid.spacing == (1.0, 1.0)


def test_spacing_of_ome_imagej_and_svs(tmp_path: Path) -> None:
    metadata = {"axes": "CYX", "PhysicalSizeX": 250.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.5}
    metadata |= {"Channel": {"Name": ["DAPI", "CD31"]}}  # type: ignore[dict-item]
    tifffile.imwrite(
        tmp_path / "a.ome.tif", np.stack([RAMP, RAMP]), ome=True, photometric="minisblack", metadata=metadata
    )
    opened = image(tmp_path / "a.ome.tif")
    assert opened.grid.unit == "nm"
    assert opened.grid.spacing == pytest.approx((500.0, 250.0))
    assert opened.channels == ("DAPI", "CD31")
    assert image(tmp_path / "a.ome.tif", unit="mm", channels="CD31").grid.spacing == pytest.approx((5e-4, 2.5e-4))
    stated: dict[str, Any] = {"spacing": "0.5,0.25", "unit": "mm"}
    with pytest.raises(ValueError, match=r"wanted the pixel size that a\.ome\.tif declares, 500 nm, .*got 0\.5 mm"):
        rf.open(tmp_path / "a.ome.tif", **stated)
    assert image(tmp_path / "a.ome.tif", **stated, override=True).grid.spacing == (0.5, 0.25)
    assert image(tmp_path / "a.ome.tif", spacing="0.505,0.25").grid.spacing == (0.505, 0.25)

    tifffile.imwrite(
        tmp_path / "b.tif", RAMP, imagej=True, resolution=(2.0, 4.0), metadata={"unit": "micron", "axes": "YX"}
    )
    assert (image(tmp_path / "b.tif").grid.unit, image(tmp_path / "b.tif").grid.spacing) == ("µm", (0.25, 0.5))
    tifffile.imwrite(tmp_path / "c.tif", RAMP, imagej=True, resolution=(72.0, 72.0), metadata={"unit": "inch"})
    assert image(tmp_path / "c.tif").grid.unit == "px"


def test_levels_of_a_pyramid(tmp_path: Path) -> None:
    big = np.random.default_rng(0).integers(0, 255, (101, 200), dtype=np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as writer:
        metadata = {"axes": "YX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
        writer.write(big, subifds=1, metadata=metadata, tile=(16, 16))
        writer.write(big[:100:2, ::2], subfiletype=1, tile=(16, 16))
    level = image(tmp_path / "a.ome.tif", level=1)
    assert level.grid.shape == (50, 100)
    assert level.grid.spacing == (1.0, 1.0)
    assert level.grid.origin == (0.25, 0.25)
    assert image(tmp_path / "a.ome.tif", level=1, spacing=0.2, override=True).grid.spacing == (0.4, 0.4)
    with pytest.raises(ValueError, match=r"wanted a level from 0 to 1 .* got 2; it has 2"):
        rf.open(tmp_path / "a.ome.tif", level=2)


def test_axes_of_stacks(tmp_path: Path) -> None:
    stack = np.arange(4 * 6 * 7, dtype=np.uint16).reshape(4, 6, 7)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack")
    with pytest.raises(
        ValueError, match=r"wanted named axes for a\.tif of shape \(4, 6, 7\), got 'qyx'; state them"
    ) as said:
        rf.open(tmp_path / "a.tif")
    assert "--moving-set axes=zyx" in str(said.value)
    assert image(tmp_path / "a.tif", axes="zyx").data.shape == (1, 4, 6, 7)
    assert image(tmp_path / "a.tif", axes="cyx", channels=[2, "0"]).channels == ("2", "0")
    plane = image(tmp_path / "a.tif", axes="zyx", z=2)
    assert np.array_equal(plane.data[0].numpy(), stack[2])
    with pytest.raises(ValueError, match="wanted one of the 4 entries of axis t"):
        rf.open(tmp_path / "a.tif", axes="tyx")
    assert np.array_equal(image(tmp_path / "a.tif", axes="tyx", t=3).data[0].numpy(), stack[3])
    with pytest.raises(ValueError, match="wanted t from 0 to 3"):
        rf.open(tmp_path / "a.tif", axes="tyx", t=4)
    with pytest.raises(ValueError, match="wanted z only for an image that has this axis"):
        rf.open(tmp_path / "a.tif", axes="cyx", z=4)
    with pytest.raises(ValueError, match="wanted 3 distinct axes"):
        rf.open(tmp_path / "a.tif", axes="yx")


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr(tmp_path: Path, version: str) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2 if version == "0.4" else 3)
    values = np.arange(2 * 12 * 20, dtype=np.uint16).reshape(1, 2, 12, 20)
    datasets = []
    for level, factor in enumerate((1, 2)):
        part = values[..., ::factor, ::factor]
        group.create_array(str(level), shape=part.shape, dtype=part.dtype, chunks=(1, 1, 8, 8))[...] = part
        transformations: list[dict[str, Any]] = [{"type": "scale", "scale": [1, 1, 0.5 * factor, 500 * factor]}]
        if level:
            transformations.append({"type": "translation", "translation": [0, 0, 0.25, 250]})
        datasets.append({"path": str(level), "coordinateTransformations": transformations})
    axes = [
        {"name": "t", "type": "time"},
        {"name": "c", "type": "channel"},
        {"name": "y", "type": "space", "unit": "micrometer"},
        {"name": "x", "type": "space", "unit": "nanometer"},
    ]
    scale = [{"type": "scale", "scale": [1, 1, 2, 2]}]
    multiscales = [{"axes": axes, "datasets": datasets, "coordinateTransformations": scale}]
    body = {"multiscales": multiscales, "omero": {"channels": [{"label": "DAPI"}, {"label": "CD31"}]}}
    group.attrs.update({"ome": {"version": version, **body}} if version == "0.5" else body)
    opened = image(tmp_path / "a.zarr", unit="µm")
    assert opened.grid.spacing == pytest.approx((1.0, 1.0))
    assert opened.channels == ("DAPI", "CD31")
    assert np.array_equal(opened.data.numpy(), values[0])
    coarse = image(tmp_path / "a.zarr", level=1, unit="um")
    assert coarse.grid.spacing == pytest.approx((2.0, 2.0))
    assert coarse.grid.origin == pytest.approx((0.5, 0.5))
    with pytest.raises(ValueError, match="it has 2 resolution"):
        rf.open(tmp_path / "a.zarr", level=2)
    shutil.make_archive(str(tmp_path / "b.zarr"), "zip", tmp_path / "a.zarr")
    assert np.array_equal(image(tmp_path / "b.zarr.zip").data.numpy(), values[0])


def test_zarr_that_is_no_image(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    group.create_group("tables")
    with pytest.raises(ValueError, match="whose members are tables; name the folder of one image"):
        rf.open(tmp_path / "a.zarr")
    zarr.save_array(tmp_path / "b.zarr", np.ones((3, 4), np.float32))
    with pytest.raises(ValueError, match="wanted named axes"):
        rf.open(tmp_path / "b.zarr")
    assert image(tmp_path / "b.zarr", axes="yx").grid.shape == (3, 4)
    group.attrs["ome"] = {"multiscales": [{"axes": ["y"], "datasets": [{"path": "0"}]}]}
    with pytest.raises(ValueError, match="wanted a readable OME-Zarr image"):
        rf.open(tmp_path / "a.zarr")
    (tmp_path / "c.zarr").mkdir()
    with pytest.raises(ValueError, match="whose content is none of these"):
        rf.open(tmp_path / "c.zarr")


def test_arrays_tensors_and_images(tmp_path: Path) -> None:
    assert image(RAMP).data.shape == (1, 12, 20)
    assert image(torch.from_numpy(RGB)).data.shape == (3, 12, 20)
    with pytest.raises(ValueError, match="wanted named axes for array"):
        rf.open(np.zeros((5, 6, 7)))
    first = image(RAMP, spacing=0.5)
    assert first.grid.unit == "µm"
    assert image(first).grid == first.grid
    assert image(first, unit="mm").grid.spacing == (0.0005, 0.0005)
    assert image(first, spacing=2, unit="mm").grid.spacing == (2.0, 2.0)
    np.save(tmp_path / "a.npy", RAMP)
    assert np.array_equal(image(tmp_path / "a.npy").data[0].numpy(), RAMP)
    np.save(tmp_path / "b.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="wanted a readable npy image"):
        rf.open(tmp_path / "b.npy")
    assert image(np.full((1, 1), 5, np.uint8)).grid.shape == (1, 1)
    assert image(np.ones((4, 4), bool)).data.dtype == torch.uint8


@pytest.mark.parametrize(
    "name",
    [
        "01_seed_cells/cells.jpg",
        "11_sections_to_atlas/641_2002_2568_NM01_s044.png",
        "18_slide_formats/boxes.tiff",
        "18_slide_formats/wsireg_mc_im_8bit.tiff",
        "18_slide_formats/wsireg_rgb_im_8bit.tiff",
        "18_slide_formats/2010-06-18x24y5z1t2c8b-text.ome.tiff",
        "19_nuclei/mask2d.tif",
    ],
)
def test_real_files(data_dir: Path, name: str) -> None:
    opened = image(data_dir / name)
    assert opened.grid.unit == "px"
    assert float(opened.data.to(torch.float64).std()) > 0


def test_a_slide_states_its_spacing(data_dir: Path) -> None:
    opened = image(data_dir / "18_slide_formats/cmu_small_region.svs")
    assert (opened.grid.shape, opened.grid.spacing, opened.grid.unit) == ((2967, 2220), (0.499, 0.499), "µm")
    level = image(data_dir / "18_slide_formats/boxes.tiff", level=2)
    assert (level.grid.shape, level.grid.spacing, level.grid.origin) == ((62, 75), (4.0, 4.0), (1.5, 1.5))
    with pytest.warns(UserWarning, match="declares a spacing of"):
        opened = image(data_dir / "18_slide_formats/sample_float32_8bit_range.zarr.zip")
    assert opened.data.shape == (4, 100, 100)


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"wanted an existing file or folder, got '.*none.png'"):
        rf.open(tmp_path / "none.png")


def test_text_renamed_to_png(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(
        ValueError, match=r"wanted a PNG, JPEG, TIFF, Zarr, NIfTI, NRRD or npy image, got .* none of these"
    ):
        rf.open(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "tif.lzw", "npy"])
@pytest.mark.parametrize("keep", [0.02, 0.3, 0.7])
def test_truncated_files(tmp_path: Path, suffix: str, keep: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    path = tmp_path / f"a.{suffix.partition('.')[0]}"
    if suffix.startswith("tif"):
        tifffile.imwrite(path, noise, compression="lzw" if "lzw" in suffix else None, rowsperstrip=8)
    elif suffix == "npy":
        np.save(path, noise)
    else:
        Pillow.fromarray(noise).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: max(20, int(len(whole) * keep))])
    with pytest.raises(ValueError, match="wanted a readable") as caught:
        rf.open(path)
    assert "\n" not in str(caught.value)


def test_declared_sizes_are_judged_before_anything_is_allocated(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_header(200_000, 200_000))
    with pytest.raises(ValueError, match=r"wanted at most 4 GiB of pixels, got 37\.3 GiB declared by a\.png"):
        rf.open(tmp_path / "a.png")
    limit = Pillow.MAX_IMAGE_PIXELS
    (tmp_path / "b.png").write_bytes(png_header(30_000, 30_000, 16, 2))
    with pytest.raises(ValueError, match=r"got 5\.03 GiB"):
        rf.open(tmp_path / "b.png")
    assert limit == Pillow.MAX_IMAGE_PIXELS
    with tifffile.TiffWriter(tmp_path / "c.tif") as writer:
        writer.write(RAMP, subifds=1, metadata=None)
        writer.write(RAMP[::2, ::2], subfiletype=1, metadata=None)
    with pytest.raises(ValueError, match=r"choose a coarser level \(it has 2\), or raise max_bytes"):
        rf.open(tmp_path / "c.tif", max_bytes=100)
    group = zarr.open_group(tmp_path / "d.zarr", mode="w")
    group.create_array("0", shape=(10**6, 10**6), dtype="uint8", chunks=(1000, 1000))
    group.attrs["ome"] = {"multiscales": [{"axes": [{"name": "y"}, {"name": "x"}], "datasets": [{"path": "0"}]}]}
    with pytest.raises(ValueError, match="got 931 GiB declared"):
        rf.open(tmp_path / "d.zarr")


def test_pixels_that_are_not_finite(tmp_path: Path) -> None:
    values = np.zeros((2, 5, 6), np.float32)
    values[1, 2, 3] = np.nan
    values[1, 4, 5] = -np.inf
    tifffile.imwrite(tmp_path / "a.tif", values, metadata={"axes": "CYX"})
    with pytest.raises(
        ValueError,
        match=r"got 1 NaN and 1 infinite values of 60 in a\.tif, the first in channel 1 at pixel y 2, x 3; replace",
    ):
        rf.open(tmp_path / "a.tif")
    assert image(tmp_path / "a.tif", channels=0).data.shape == (1, 5, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": -1}, "wanted a level of 0 or more"),
        ({"level": "high"}, "wanted a level of 0 or more"),
        ({"labels": "yes"}, "wanted labels to be true or false"),
        ({"spacing": 0}, "wanted a positive spacing"),
        ({"spacing": "wide"}, "wanted a positive spacing"),
        ({"spacing": [1, 2, 3]}, "wanted 1 or 2 spacings"),
        ({"unit": "parsec"}, "wanted a length unit"),
        ({"unit": "mm"}, "which declares none, got only the unit mm"),
        ({"channels": "infrared"}, r"wanted channels of array \(0, .*got 'infrared'"),
        ({"channels": ""}, "wanted at least one channel"),
        ({"channels": 7}, "got 7; name one"),
        ({"labels": True, "axes": "cyx"}, None),
        ({"radius": 1}, "wanted options of the adapter 'image' .* got 'radius'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str | None) -> None:
    source = RGB.astype(np.float32).transpose(2, 0, 1) if message is None else RAMP
    with pytest.raises(ValueError, match=message or "wanted one channel of whole numbers for labels"):
        rf.open(source, **options)


# ---- writing and carrying -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".tif", ".ome.tif", ".zarr", ".ome.zarr"])
@pytest.mark.parametrize("source", [RAMP, RGB], ids=["grey", "rgb"])
def test_what_is_saved_reads_back(tmp_path: Path, suffix: str, source: np.ndarray) -> None:  # type: ignore[type-arg]
    first = image(source, spacing=(0.5, 0.25)).replace(
        channels=("red", "green", "blue") if source is RGB else ("DAPI",)
    )
    adapter = rf.adapter("image")
    adapter.save(first, tmp_path / f"a{suffix}")
    adapter.save(first, tmp_path / f"a{suffix}")  # the caller has said that it may
    back = image(tmp_path / f"a{suffix}")
    assert torch.equal(back.data, first.data)
    if suffix != ".png":
        assert back.grid == first.grid
        assert back.channels == first.channels
    assert [p.name for p in tmp_path.iterdir()] == [f"a{suffix}"]


@pytest.mark.parametrize("suffix", [".tif", ".zarr"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"])
def test_every_type_is_kept(tmp_path: Path, suffix: str, dtype: str) -> None:
    values = (np.arange(2 * 3 * 5 * 6).reshape(2, 3, 5, 6) - 7).astype(dtype)
    first = image(values, axes="czyx", spacing=(3, 2, 1), unit="mm")
    rf.adapter("image").save(first, tmp_path / f"a{suffix}")
    back = image(tmp_path / f"a{suffix}")
    assert torch.equal(back.data, first.data)
    assert back.grid == first.grid


def test_zarr_keeps_origin_and_makes_levels(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    values = generator.integers(0, 1000, (1, 601, 1030)).astype(np.uint16)
    grid = rf.Grid((601, 1030), (0.5, 0.5), (-3.0, 4.0), "µm")
    adapter = rf.adapter("image")
    for labels in (False, True):
        path = tmp_path / f"{labels}.zarr"
        adapter.save(rf.Image(torch.from_numpy(values), grid, labels=labels), path)
        assert image(path).grid == grid
        coarse = image(path, level=1)
        assert coarse.grid.shape == (301, 515)
        assert coarse.grid.origin == ((-3.0, 4.0) if labels else (-2.75, 4.25))
        block = values[0, :2, :2]
        assert coarse.data[0, 0, 0] == (block[0, 0] if labels else np.rint(block.mean()))
        assert coarse.data[0, -1, 0] == (values[0, -1, 0] if labels else np.rint(values[0, -1, :2].mean()))


def test_what_a_format_cannot_hold(tmp_path: Path) -> None:
    adapter = rf.adapter("image")
    grey = image(RAMP)
    for source, name, message in [
        (
            grey.replace(data=grey.data.float()),
            "a.png",
            "wanted one or three channels of uint8 or uint16 in 2D for PNG",
        ),
        (grey.replace(data=grey.data.short()), "a.jpg", "for JPEG, got shape"),
        (grey.replace(labels=True), "a.jpg", "wanted an image for JPEG, got labels"),
        (image(np.zeros((2, 4, 4), np.uint8), axes="cyx"), "a.png", "write .tif or .zarr instead"),
        (grey, "a.bmp", "wanted an image file ending in"),
    ]:
        with pytest.raises(ValueError, match=message):
            adapter.save(source, tmp_path / name)
    with pytest.raises(TypeError, match="wanted an Image"):
        adapter.save(rf.PointSet(torch.zeros(1, 2)), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
    labels = image(RAMP.astype(np.int64), labels=True)
    adapter.save(labels, tmp_path / "l.png")
    assert torch.equal(image(tmp_path / "l.png", labels=True).data.long(), labels.data)


def test_images_are_resampled(tmp_path: Path) -> None:
    Pillow.fromarray(RAMP).save(tmp_path / "a.png")
    shift = rf.Affine(torch.tensor([[1.0, 0, 2], [0, 1, 3], [0, 0, 1]]))
    adapter = rf.adapter("image")
    moved = adapter.apply(tmp_path / "a.png", shift)
    assert isinstance(moved, rf.Image)
    assert np.array_equal(moved.data[0, 2:, 3:].numpy(), RAMP[:-2, :-3])
    canvas = rf.Grid((3, 4), (1.0, 1.0), (2.0, 3.0))
    moved = adapter.apply(tmp_path / "a.png", shift, canvas)
    assert isinstance(moved, rf.Image)
    assert np.array_equal(moved.data[0].numpy(), RAMP[:3, :4])
    with pytest.raises(ValueError, match="wanted a grid in mm"):
        adapter.apply(tmp_path / "a.png", rf.Affine(torch.eye(3), "px", "mm"))


def test_the_points_adapter(tmp_path: Path) -> None:
    path = tmp_path / "cells.csv"
    path.write_text("id,x_px,y_px,gene\na,1,2,B2M\n")
    points = rf.open(path)
    assert isinstance(points, rf.PointSet)
    adapter = rf.find_adapter(path)
    assert adapter.name == "points"
    scale = rf.Affine(torch.diag(torch.tensor([0.5, 0.5, 1.0])), "px", "µm")
    moved = adapter.apply(path, scale)
    adapter.save(moved, tmp_path / "moved.csv")
    assert (tmp_path / "moved.csv").read_text() == "id,x_um,y_um,gene\na,0.5,1.0,B2M\n"
    assert rf.open(points) is points
    headless = tmp_path / "h.txt"
    headless.write_text("1 2\n")
    assert len(rf.open(headless, columns="x,y")) == 1  # type: ignore[arg-type]
    assert rf.open(headless, columns=["x", "y"], unit="mm").unit == "mm"  # type: ignore[union-attr]
    with pytest.raises(TypeError, match="wanted a PointSet"):
        adapter.save(image(RAMP), tmp_path / "x.csv")


# ---- what does not count -------------------------------------------------------------------------------------------------


def test_a_stated_value_and_nan_hold_no_data(tmp_path: Path) -> None:
    values = np.arange(60, dtype=np.float32).reshape(1, 6, 10).repeat(2, axis=0)
    values[:, :2] = -9999
    values[0, 5, 5] = -9999  # the other channel was measured
    values[1, 4, 4] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", values, metadata={"axes": "CYX"})
    assert image(tmp_path / "a.tif").weight is None
    for stated in (-9999, "-9999"):
        found = image(tmp_path / "a.tif", nodata=stated)
        assert found.weight is not None
        assert torch.equal(found.weight == 0, torch.arange(6)[:, None].expand(6, 10) < 2)
        assert torch.equal(found.data[:, :4], torch.from_numpy(values[:, :4]))  # values stay
    gone = image(tmp_path / "a.tif", nodata="nan", channels=1).weight
    assert gone is not None
    assert (gone == 0).nonzero().tolist() == [[4, 4]]
    bytes_ = np.repeat(np.arange(60, dtype=np.uint8).reshape(6, 10, 1), 3, axis=-1)
    bytes_[0, 0] = 255
    whole = image(bytes_, nodata=255).weight
    assert whole is not None
    assert (whole == 0).nonzero().tolist() == [[0, 0]]


def test_a_block_with_a_pixel_of_no_data_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regframe.slides.levels.WHOLE", {2: 300, 3: 300})
    values = np.full((40, 30), 100, np.uint16)
    values[7, 9] = 65535
    tifffile.imwrite(tmp_path / "a.tif", values)
    found = image(tmp_path / "a.tif", nodata=65535)
    assert found.grid.shape == (20, 15)
    assert found.weight is not None
    assert (found.weight == 0).nonzero().tolist() == [[3, 4]]


@pytest.mark.parametrize("scale", [1, 2, 0.5])
@pytest.mark.parametrize("kind", ["file", "array", "image"])
def test_a_mask_of_any_resolution(scale: float, kind: str, tmp_path: Path) -> None:
    picture = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32)
    counts = np.zeros((round(24 * scale), round(32 * scale)), np.uint8)
    counts[: round(12 * scale)] = 7
    mask: Any = {"array": counts, "image": rf.Image.from_array(counts)}.get(kind, tmp_path / "mask.png")
    if kind == "file":
        Pillow.fromarray(counts).save(mask)
    found = image(picture, mask=mask)
    assert found.weight is not None
    assert torch.equal(found.weight > 0, (torch.arange(24) < 12)[:, None].expand(24, 32))
    both = image(picture, mask=mask, nodata=5).weight
    assert both is not None
    assert float(both[0, 5]) == 0
    assert int((both > 0).sum()) == 12 * 32 - 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodata": "none"}, r"wanted a number or \"nan\" for nodata, got 'none'"),
        ({"nodata": -1}, r"that array can hold \(uint8\), got -1"),
        ({"nodata": 1.5}, r"can hold \(uint8\), got 1\.5"),
        ({"mask": np.ones((30, 90), np.uint8)}, r"canvas of array, 30 x 30 pixels .* got the mask of 30 x 90; cut it"),
        ({"mask": np.zeros((30, 30), np.uint8)}, r"leaves something of array, got the mask, which is 0 everywhere"),
        ({"mask": np.ones((4, 30, 30), np.uint8)}, r"wanted named axes"),
        ({"mask": np.eye(30, dtype=np.uint8), "nodata": 9}, r"wanted pixels of array that count, got none"),
    ],
)
def test_what_cannot_say_what_counts(options: dict[str, Any], message: str) -> None:
    picture = np.where(np.eye(30) > 0, 9, 4).astype(np.uint8)
    with pytest.raises(ValueError, match=message):
        image(picture, **options)


def test_a_stated_value_that_occurs_nowhere_is_said() -> None:
    with pytest.warns(UserWarning, match="array holds no pixel of the value 7 that was stated as nodata"):
        assert image(np.zeros((5, 6), np.uint8), nodata=7).weight is None
