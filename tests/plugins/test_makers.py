"""Slides by the layouts of their makers: the scan, its pixel size, names and colours; files that an OME-TIFF names."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regframe_image.raw as raw_module
import tifffile
from PIL import Image as Pillow
from PIL import ImageCms
from regframe_image.adapter import ImageAdapter

RNG = np.random.default_rng(11)


def pixels(*shape: int, dtype: str = "u1") -> Any:
    return RNG.integers(0, 250, shape).astype(dtype)


def planes(array: Any) -> Any:
    return np.moveaxis(array, -1, 0)


def whole(pyramid: Any, level: int = 0) -> Any:
    return pyramid.levels[level].read(tuple(slice(0, n) for n in pyramid.levels[level].grid.shape))


def listed(pyramid: Any) -> list[tuple[str, str, bool]]:
    return [(s.name, s.role, s.read) for s in pyramid.series]


# ---------------------------------------------------------------------------------------------------------------- Aperio


def test_svs_with_label_and_macro(tmp_path: Path) -> None:
    scan, text = pixels(160, 208, 3), "Aperio Image Library v12\n208x160 |AppMag = 20|MPP = 0.5"
    label, macro = pixels(300, 280, 3), pixels(310, 720, 3)  # larger than the scan, as of a small scan they are
    with tifffile.TiffWriter(tmp_path / "a.svs") as writer:
        told: dict[str, Any] = {"photometric": "rgb", "metadata": None, "description": text}
        writer.write(scan, tile=(64, 64), **told)
        writer.write(scan[::8, ::8], **told)
        writer.write(scan[::4, ::4], tile=(64, 64), **told)
        writer.write(label, subfiletype=1, **(told | {"description": "Aperio Image Library v12\nlabel 280x300"}))
        writer.write(macro, subfiletype=9, **(told | {"description": "Aperio Image Library v12\nmacro 720x310"}))
    pyramid = ImageAdapter().pyramid(tmp_path / "a.svs")
    assert listed(pyramid) == [
        ("Baseline", "image", True),
        ("Thumbnail", "thumbnail", False),
        ("Label", "label", False),
        ("Macro", "macro", False),
    ]
    assert [level.grid.spacing for level in pyramid.levels] == [(0.5, 0.5), (2.0, 2.0)]
    assert np.array_equal(whole(pyramid), planes(scan))
    assert np.array_equal(whole(pyramid, 1), planes(scan[::4, ::4]))
    with pytest.warns(UserWarning, match="what is read is its label"):
        image = ImageAdapter(series="Label").open(tmp_path / "a.svs")
    assert np.array_equal(image.data.numpy(), planes(label))
    assert image.grid.unit == "px"  # the pixel size is the scan's


# ------------------------------------------------------------------------------------------------------------- Hamamatsu


def write_ndpi(path: Path, images: list[tuple[Any, float, float]]) -> None:
    """Hamamatsu's layout: a TIFF whose offsets of directories have 64 bits, and a high word for each tag behind them.

    Args:
        path: to write.
        images: pixels, magnification (−1 for the macro image, −2 for the map) and micron per pixel of each page.
    """
    out = bytearray(struct.pack("<2sHQ", b"II", 42, 0))
    link = 4
    for array, magnification, micron in images:
        height, width = array.shape[:2]
        data, extra = len(out), bytearray()
        out += array.tobytes()
        at = len(out)
        per_cm = (round(1e4 / micron * 1000), 1000)

        def aside(content: bytes, at: int = at, extra: bytearray = extra) -> int:
            place = at + len(extra)
            extra += content + bytes(len(content) % 2)
            return place

        bits, maker = aside(struct.pack("<3H", 8, 8, 8)), aside(b"Hamamatsu\0")
        across = aside(struct.pack("<2I", *per_cm))
        entries = [
            (254, 4, 1, 0), (256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, bits), (259, 3, 1, 1), (262, 3, 1, 2),
            (271, 2, 10, maker), (273, 4, 1, data), (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, array.nbytes),
            (282, 5, 1, across), (283, 5, 1, across), (284, 3, 1, 1), (296, 3, 1, 3), (65420, 4, 1, 1),
            (65421, 11, 1, struct.unpack("<I", struct.pack("<f", magnification))[0]), (65424, 4, 1, 0),
        ]  # fmt: skip
        out += extra
        struct.pack_into("<Q", out, link, len(out))
        out += struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
        link = len(out)
        out += bytes(8) + bytes(4 * len(entries))
    path.write_bytes(out)


def test_ndpi_scan_among_macro_and_map(tmp_path: Path) -> None:
    scan, macro, chart = pixels(160, 208, 3), pixels(400, 600, 3), pixels(30, 60, 3)
    images = [
        (scan, 40.0, 0.25),
        (np.ascontiguousarray(scan[::2, ::2]), 20.0, 0.5),
        (macro, -1.0, 50.0),
        (chart, -2.0, 50.0),
    ]
    write_ndpi(tmp_path / "a.ndpi", images)
    pyramid = ImageAdapter().pyramid(tmp_path / "a.ndpi")
    assert [level.grid.shape for level in pyramid.levels] == [(160, 208), (80, 104)]
    assert [level.grid.to_unit("µm").spacing[0] for level in pyramid.levels] == pytest.approx([0.25, 0.5])
    assert np.array_equal(whole(pyramid), planes(scan))
    assert [role for _, role, _ in listed(pyramid)] == ["image", "macro", "macro"]
    with pytest.warns(UserWarning, match="what is read is its macro"):
        assert np.array_equal(ImageAdapter(series="Macro").open(tmp_path / "a.ndpi").data.numpy(), planes(macro))


# ----------------------------------------------------------------------------------------------------------------- Leica


def scn(path: Path, images: list[dict[str, Any]]) -> None:
    """Leica's collection: images with a view in nm, each with levels (``pages``, an array per channel and level)."""
    parts, pages = [], []
    for number, one in enumerate(images):
        height, width = one["pages"][0][0].shape[:2]
        dimensions = ""
        for level, channels in enumerate(one["pages"]):
            for channel, page in enumerate(channels):
                h, w = page.shape[:2]
                dimensions += f'<dimension sizeX="{w}" sizeY="{h}" r="{level}" c="{channel}" ifd="{len(pages)}"/>'
                pages.append(page)
        said = "".join(
            f'<channel index="{i}" name="{n}" rgb="{c}"/>' for i, (n, c) in enumerate(one.get("channels", ()))
        )
        parts.append(
            f'<image name="image_{number}"><pixels sizeX="{width}" sizeY="{height}">{dimensions}</pixels>'
            f'<view sizeX="{width * one["nm"]}" sizeY="{height * one["nm"]}" offsetX="0" offsetY="0"/>'
            f"<scanSettings><channelSettings>{said}</channelSettings></scanSettings></image>"
        )
    xml = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f'<collection name="c" sizeX="9" sizeY="9">{"".join(parts)}</collection></scn>'
    )
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for i, page in enumerate(pages):
            photometric = "rgb" if page.ndim == 3 else "minisblack"
            writer.write(page, tile=(64, 64), photometric=photometric, metadata=None, description=xml if i == 0 else "")


def test_scn_collection_of_two_sections(tmp_path: Path) -> None:
    macro, small, large = pixels(300, 500, 3), pixels(90, 100, 3), pixels(160, 208, 3)
    coarse = pixels(80, 104, 3)
    images: list[dict[str, Any]] = [
        {"nm": 16000, "pages": [[macro]]},
        {"nm": 500, "pages": [[small]]},
        {"nm": 500, "pages": [[large], [coarse]]},
    ]
    scn(tmp_path / "a.scn", images)
    with pytest.warns(UserWarning, match=r"holds 3 images; series 2 .image_2.* is read"):
        pyramid = ImageAdapter().pyramid(tmp_path / "a.scn")
    assert [level.grid.to_unit("µm").spacing for level in pyramid.levels] == [(0.5, 0.5), (1.0, 1.0)]
    assert np.array_equal(whole(pyramid), planes(large))
    assert np.array_equal(whole(pyramid, 1), planes(coarse))
    other = ImageAdapter(series="image_1").open(tmp_path / "a.scn")
    assert np.array_equal(other.data.numpy(), planes(small))
    assert other.grid.to_unit("µm").spacing == (0.5, 0.5)
    over = ImageAdapter(series=0).pyramid(tmp_path / "a.scn")
    assert over.grid.to_unit("µm").spacing == (16.0, 16.0)


def test_scn_channels_have_names_and_colours(tmp_path: Path) -> None:
    channels = [pixels(90, 100, dtype="u2") for _ in range(3)]
    told = (("405|Empty", "#0000ff"), ("L5|Empty", "#00ff00"), ("TX2|Empty", "#ff0000"))
    scn(tmp_path / "a.scn", [{"nm": 325, "pages": [channels], "channels": told}])
    pyramid = ImageAdapter().pyramid(tmp_path / "a.scn")
    assert np.array_equal(whole(pyramid), np.stack(channels))
    assert pyramid.channels == tuple(name for name, _ in told)
    assert pyramid.colors == ("0000FF", "00FF00", "FF0000")


# ---------------------------------------------------------------------------------------------------- PerkinElmer, Akoya


def test_qptiff_channels_and_levels(tmp_path: Path) -> None:
    names = (("DAPI", "0,0,255"), ("Opal 520", "0,255,0"), ("Opal 690", "255,0,0"))
    scan = pixels(3, 160, 208, dtype="u2")
    with tifffile.TiffWriter(tmp_path / "a.qptiff") as writer:
        told: dict[str, Any] = {"software": "PerkinElmer-QPI", "metadata": None, "photometric": "minisblack"}
        for step in (1, 2):
            for page, (name, colour) in zip(scan, names, strict=True):
                xml = (
                    '<?xml version="1.0"?><PerkinElmer-QPI-ImageDescription><DescriptionVersion>2</DescriptionVersion>'
                    f"<ImageType>FullResolution</ImageType><Name>{name}</Name><Color>{colour}</Color>"
                    + ("<Biomarker>CD8</Biomarker>" if name == "Opal 690" else "")
                    + "</PerkinElmer-QPI-ImageDescription>"
                )
                per_cm = 1e4 / 0.5 / step
                resolution: dict[str, Any] = {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER"}
                writer.write(page[::step, ::step], tile=(64, 64), description=xml, **told, **resolution)
            if step == 1:
                writer.write(pixels(40, 52, 3), **(told | {"photometric": "rgb"}))
        for shape in ((300, 600, 3), (200, 210, 3)):
            writer.write(pixels(*shape), **(told | {"photometric": "rgb"}))
    pyramid = ImageAdapter().pyramid(tmp_path / "a.qptiff")
    assert listed(pyramid) == [
        ("Baseline", "image", True),
        ("Thumbnail", "thumbnail", False),
        ("Macro", "macro", False),
        ("Label", "label", False),
    ]
    assert [level.grid.to_unit("µm").spacing for level in pyramid.levels] == [(0.5, 0.5), (1.0, 1.0)]
    assert pyramid.channels == ("DAPI", "Opal 520", "CD8")
    assert pyramid.colors == ("0000FF", "00FF00", "FF0000")
    assert np.array_equal(whole(pyramid), scan)
    assert np.array_equal(whole(pyramid, 1), scan[:, ::2, ::2])


# ------------------------------------------------------------------------------------------------ OME-TIFF in several files


def several(folder: Path, compression: str | None) -> tuple[list[Path], Any]:
    """Three channels in a file each, every file with the OME-XML of all, as Xenium's morphology images are."""
    scan, names = pixels(3, 70, 90, dtype="u2"), [f"ch000{i}_stain.ome.tif" for i in range(3)]
    tiff = "".join(
        f'<TiffData FirstC="{i}" FirstT="0" FirstZ="0" IFD="0" PlaneCount="1"><UUID FileName="{n}">urn:uuid:{i}</UUID></TiffData>'
        for i, n in enumerate(names)
    )
    channels = "".join(f'<Channel ID="Channel:0:{i}" Name="stain {i}" SamplesPerPixel="1"/>' for i in range(3))
    for i, name in enumerate(names):
        xml = (
            f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{i}">'
            '<Image ID="Image:0" Name="Image"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="90" SizeY="70" '
            f'SizeZ="1" SizeC="3" SizeT="1" PhysicalSizeX="0.2125" PhysicalSizeY="0.2125">{channels}{tiff}</Pixels></Image></OME>'
        )
        tile: dict[str, Any] = {"tile": (32, 32), "compression": compression} if compression else {}
        tifffile.imwrite(folder / name, scan[i], photometric="minisblack", metadata=None, description=xml, **tile)
    return [folder / name for name in names], scan


@pytest.mark.parametrize("compression", ["zlib", None])
def test_a_missing_sibling_is_named_and_never_black(tmp_path: Path, compression: str | None) -> None:
    paths, scan = several(tmp_path, compression)
    assert np.array_equal(ImageAdapter().open(paths[0]).data.numpy(), scan)
    paths[1].unlink()
    raw_module._kept.cache_clear()
    with (
        pytest.warns(UserWarning, match=r"1 of its 3 planes lie in files that are missing \(ch0001_stain\.ome\.tif\)"),
        pytest.raises(ValueError, match=r"wanted the files that hold its other planes, got no ch0001_stain\.ome\.tif"),
    ):
        ImageAdapter().open(paths[0])
    with pytest.warns(UserWarning, match="are missing"):
        image = ImageAdapter(channels="stain 2").open(paths[0])
    assert np.array_equal(image.data.numpy()[0], scan[2])


def test_an_ome_tiff_whose_xml_is_elsewhere_says_so(tmp_path: Path) -> None:
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1">'
        '<BinaryOnly MetadataFile="a.companion.ome" UUID="urn:uuid:0"/></OME>'
    )
    scan = pixels(40, 50)
    tifffile.imwrite(tmp_path / "a.ome.tif", scan, photometric="minisblack", metadata=None, description=xml)
    with pytest.warns(UserWarning, match=r"lies in a\.companion\.ome; its own pages are read and no others"):
        assert np.array_equal(ImageAdapter().open(tmp_path / "a.ome.tif").data.numpy()[0], scan)


# ---------------------------------------------------------------------------------------------------------------- profiles


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.jpg"])
def test_a_colour_profile_is_not_applied_and_info_says_so(tmp_path: Path, name: str) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    scan, path = pixels(24, 32, 3), tmp_path / name
    if name.endswith("tif"):
        tifffile.imwrite(path, scan, photometric="rgb", iccprofile=profile)
    else:
        Pillow.fromarray(scan).save(path, icc_profile=profile)
    with Pillow.open(io.BytesIO(path.read_bytes())) as plain:
        stored = np.asarray(plain)
    pyramid = ImageAdapter().pyramid(path)
    assert np.array_equal(whole(pyramid), planes(stored))
    assert any("colour profile (ICC) is not applied" in note for note in pyramid.notes)
