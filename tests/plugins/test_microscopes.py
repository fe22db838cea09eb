"""Files of microscopes: which image is read, where its pixels are, what it says of them."""

from __future__ import annotations

import importlib.util
import pickle
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import microscope_files as files
import numpy as np
import pytest
import regframe_image.microscopes as microscopes
import tifffile
from regframe_image.adapter import ImageAdapter

RNG = np.random.default_rng(7)


def pixels(*shape: int, dtype: str = "u2") -> Any:
    return RNG.integers(0, 250, shape).astype(dtype)


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


nd2, lif, czi, vsi = needs("nd2"), needs("liffile"), needs("pylibCZIrw"), needs("bioio_vsi")
oib = needs("oiffile")


def read(path: Path, **options: Any) -> Any:
    image = ImageAdapter(**options).open(path)
    return image.data.numpy(), image


@nd2
def test_nd2_stack_of_two_channels(tmp_path: Path) -> None:
    data = pixels(3, 20, 30, 2)
    path = files.write_nd2(tmp_path / "a.nd2", data, [("z", 3, 2.0)], [("DAPI", 0xFF0000), ("Cy5", 0x0000FF)])
    array, image = read(path)
    assert np.array_equal(array, data.transpose(3, 0, 1, 2))
    assert image.grid.spacing == (2.0, 0.25, 0.25)
    assert image.grid.unit == "µm"
    assert image.channels == ("DAPI", "Cy5")
    pyramid = ImageAdapter().pyramid(path)
    assert pyramid.colors == ("0000FF", "FF0000")
    window = pickle.loads(pickle.dumps(pyramid.levels[0].read))((slice(1, 2), slice(3, 9), slice(4, 5)))  # noqa: S301
    assert np.array_equal(window, data.transpose(3, 0, 1, 2)[:, 1:2, 3:9, 4:5])
    assert read(path, z=1)[0].shape == (2, 20, 30)


@nd2
def test_nd2_positions_are_series_and_times_are_chosen(tmp_path: Path) -> None:
    data = pixels(6, 8, 9, 1)  # times, then positions
    path = files.write_nd2(tmp_path / "a.nd2", data, [("t", 3, 0.0), ("p", 2, 0.0)], names=("left", "right"))
    with pytest.warns(UserWarning, match="holds 2 images; series 0"):
        first, _ = read(path, t=2)
    assert np.array_equal(first[0], data[4, ..., 0])
    for chosen in (1, "right"):
        array, image = read(path, t=1, series=chosen)
        assert np.array_equal(array[0], data[3, ..., 0])
    assert image.channels == ("DAPI",)
    with pytest.raises(ValueError, match=r"3 entries of axis t.*t=0"):
        read(path)
    with pytest.raises(ValueError, match=r"wanted a series of a\.nd2"):
        read(path, series="middle")


@nd2
def test_nd2_picture_without_calibration(tmp_path: Path) -> None:
    data = pixels(1, 8, 9, 3, dtype="u1")
    path = files.write_nd2(tmp_path / "a.nd2", data, micron=None, channels=(("Brightfield", 0xFFFFFF),))
    with pytest.warns(UserWarning, match="blue first"):
        array, image = read(path)
    assert np.array_equal(array, data[0, ..., ::-1].transpose(2, 0, 1))
    assert image.channels == ("red", "green", "blue")
    assert image.grid.unit == "px"


@nd2
def test_nd2_frames_that_are_missing_are_no_zeros(tmp_path: Path) -> None:
    path = files.write_nd2(tmp_path / "a.nd2", pixels(3, 20, 30, 2), [("z", 3, 2.0)], left_out=(1,))
    with pytest.raises(ValueError, match=r"wanted a readable ND2 image.*frame 1 was never recorded"):
        read(path)
    whole = files.write_nd2(tmp_path / "b.nd2", pixels(1, 20, 30, 2)).read_bytes()
    (tmp_path / "c.nd2").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="wanted a readable ND2 image"):
        read(tmp_path / "c.nd2")


@lif
def test_lif_takes_the_scan_and_says_so(tmp_path: Path) -> None:
    scan, other = pixels(2, 4, 20, 30), pixels(12, 13, dtype="u1")
    path = files.write_lif(
        tmp_path / "a.lif",
        [
            {"name": "Overview", "data": pixels(60, 70), "axes": "yx", "steps": {"x": 1e-5, "y": 1e-5}},
            {"name": "Series001", "data": other, "axes": "yx", "steps": {"x": 5e-7, "y": 5e-7}},
            {
                "name": "Series002", "data": scan, "axes": "czyx", "steps": {"x": 5e-7, "y": 2.5e-7, "z": 2e-6},
                "channels": (("Blue", "DAPI"), ("Red", "")),
            },
        ],
    )  # fmt: skip
    with pytest.warns(UserWarning, match="holds 3 images; series 2 .Series002"):
        array, image = read(path)
    assert np.array_equal(array, scan)
    assert image.grid.spacing == pytest.approx((2.0, 0.25, 0.5))
    assert image.grid.unit == "µm"
    assert image.channels == ("DAPI", "Red")
    series = ImageAdapter(series=1).pyramid(path).series
    assert [(s.name, s.role, s.read) for s in series] == [
        ("Overview", "macro", False),
        ("Series001", "image", True),
        ("Series002", "image", False),
    ]
    assert np.array_equal(read(path, series="Series001")[0][0], other)


@lif
@pytest.mark.parametrize("tags", [(1, 2, 3), (3, 2, 1)])
@pytest.mark.parametrize("axes", ["yxs", "syx"])
def test_lif_pictures_have_their_colours_in_order(tmp_path: Path, tags: tuple[int, ...], axes: str) -> None:
    data = pixels(*({"y": 9, "x": 11, "s": 3}[a] for a in axes), dtype="u1")
    path = files.write_lif(tmp_path / "a.lif", [{"name": "he", "data": data, "axes": axes, "tags": tags}])
    array, image = read(path)
    planes = data.transpose([axes.index(a) for a in "syx"])
    assert np.array_equal(array, planes if tags[0] == 1 else planes[::-1])
    assert image.channels == ("red", "green", "blue")


@lif
def test_lif_tiles_of_a_mosaic_are_series(tmp_path: Path) -> None:
    tiles, merged = pixels(4, 8, 9), pixels(15, 17)
    steps = {"x": 1e-6, "y": 1e-6}
    path = files.write_lif(
        tmp_path / "a.lif",
        [
            {"name": "scan", "data": tiles, "axes": "myx", "steps": steps},
            {"name": "scan_Merged", "data": merged, "axes": "yx", "steps": steps},
        ],
    )
    with pytest.warns(UserWarning, match="series 4 .scan_Merged"):
        assert np.array_equal(read(path)[0][0], merged)
    assert np.array_equal(read(path, series="scan, tile 2")[0][0], tiles[2])
    (tmp_path / "b.lif").write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="wanted a readable LIF image"):
        read(tmp_path / "b.lif", series=4)


def two_scenes(path: Path, dtype: str = "u2") -> tuple[Path, Any, Any]:
    """Two scenes of two channels; the larger one in four tiles, with a level of half and a quarter."""
    large, small = pixels(2, 70, 90, dtype=dtype), pixels(2, 20, 30, dtype=dtype)
    coarse = {2: pixels(2, 35, 45, dtype=dtype), 4: pixels(2, 18, 23, dtype=dtype)}
    tiles = []
    for c in range(2):
        for y, x in ((0, 0), (0, 50), (40, 0), (40, 50)):
            part = large[c, y : y + 40, x : x + 50]
            tiles.append({"data": part, "at": (1000 + x, -30 + y), "dims": {"C": c, "S": 1}})
        tiles += [{"data": d[c], "at": (1000, -30), "dims": {"C": c, "S": 1}, "ratio": r} for r, d in coarse.items()]
        tiles.append({"data": small[c], "at": (-500, 7), "dims": {"C": c, "S": 0}})
    return files.write_czi(path, tiles, files.CHANNELS), {1: large} | coarse, small


@czi
def test_czi_levels_of_the_larger_scene(tmp_path: Path) -> None:
    path, levels, small = two_scenes(tmp_path / "a.czi")
    with pytest.warns(UserWarning, match="holds 2 images; series 1 .B2"):
        pyramid = ImageAdapter().pyramid(path)
    assert pyramid.channels == ("DAPI", "Cy5")
    assert pyramid.colors == ("0000FF", "FF00FF")
    assert len(pyramid.levels) == 3
    for level, (ratio, data) in zip(pyramid.levels, levels.items(), strict=True):
        assert level.grid.shape == data.shape[1:]
        assert level.grid.spacing == pytest.approx((0.25 * ratio, 0.5 * ratio))
        assert level.grid.origin == pytest.approx((0.25 * (ratio - 1) / 2, 0.5 * (ratio - 1) / 2))
        height, width = data.shape[1:]
        assert np.array_equal(level.read((slice(0, height), slice(0, width))), data)
        assert np.array_equal(level.read((slice(3, 11), slice(5, 6))), data[:, 3:11, 5:6])
    assert np.array_equal(read(path, series="A1")[0], small)
    assert np.array_equal(read(path, series=0, channels="Cy5")[0][0], small[1])


@czi
def test_czi_picture_in_colour_is_white_where_nothing_was_scanned(tmp_path: Path) -> None:
    one, two = pixels(20, 30, 3, dtype="u1"), pixels(20, 30, 3, dtype="u1")
    path = files.write_czi(tmp_path / "a.czi", [{"data": one}, {"data": two, "at": (40, 0)}])
    array, image = read(path)
    assert np.array_equal(array[:, :, :30], one.transpose(2, 0, 1))
    assert np.array_equal(array[:, :, 40:], two.transpose(2, 0, 1))
    assert bool((array[:, :, 30:40] == 255).all())
    assert image.channels == ("red", "green", "blue")
    assert image.grid.unit == "px"


@czi
def test_czi_planes_types_and_axes(tmp_path: Path) -> None:
    data = pixels(3, 2, 12, 14)
    tiles = [{"data": data[z, t], "dims": {"C": 0, "Z": z, "T": t}} for z in range(3) for t in range(2)]
    path = files.write_czi(tmp_path / "a.czi", tiles, files.CHANNELS)
    array, image = read(path, t=1)
    assert np.array_equal(array[0], data[:, 1])
    assert image.grid.spacing == pytest.approx((2.0, 0.25, 0.5))
    assert image.channels == ("0",)  # its metadata name two
    mixed = [{"data": pixels(12, 14), "dims": {"C": 0}}, {"data": pixels(12, 14, dtype="u1"), "dims": {"C": 1}}]
    array, _ = read(files.write_czi(tmp_path / "b.czi", mixed))
    assert array.dtype == np.uint16
    assert np.array_equal(array[1], mixed[1]["data"])
    later = [{"data": data[z, 0], "dims": {"C": 0, "Z": z + 5}} for z in range(2)]  # as a part of a file is saved
    assert np.array_equal(read(files.write_czi(tmp_path / "d.czi", later))[0][0], data[:2, 0])
    gaps = [{"data": data[z, c], "dims": {"C": c, "Z": z}} for z in range(3) for c in range(2)][:-1]
    files.write_czi(tmp_path / "e.czi", gaps)
    with pytest.raises(ValueError, match=r"its plane .*z 2, c 1 was never recorded"):
        read(tmp_path / "e.czi")
    lit = [{"data": pixels(12, 14), "dims": {"C": 0, "I": i}} for i in range(2)]
    with pytest.raises(ValueError, match="got 2 entries of i; convert it to OME-Zarr"):
        read(files.write_czi(tmp_path / "c.czi", lit))


@czi
def test_czi_of_the_makers_own_writer(tmp_path: Path) -> None:
    from pylibCZIrw import czi as library

    data = pixels(40, 50)
    with library.create_czi(str(tmp_path / "a.czi"), compression_options="zstd1:ExplicitLevel=2") as document:
        document.write(data[..., None], plane={"C": 0})
        document.write_metadata("a", channel_names={0: "DAPI"}, scale_x=4e-7, scale_y=4e-7)
    array, image = read(tmp_path / "a.czi")
    assert np.array_equal(array[0], data)
    assert image.grid.spacing == pytest.approx((0.4, 0.4))
    assert image.channels == ("DAPI",)
    content = bytearray((tmp_path / "a.czi").read_bytes())
    at = content.find(b"ZISRAWSUBBLOCK")
    content[at : at + 4] = b"XXXX"
    (tmp_path / "b.czi").write_bytes(content)
    with pytest.raises(ValueError, match="wanted a readable CZI image"):
        read(tmp_path / "b.czi")


@oib
def test_oif_planes_by_channel_and_depth(tmp_path: Path) -> None:
    data = pixels(2, 3, 12, 14)
    path, folder = tmp_path / "a.oif", tmp_path / "a.oif.files"
    folder.mkdir()
    for c in range(2):
        for z in range(3):
            tifffile.imwrite(folder / f"s_C{c + 1:03}Z{z + 1:03}.tif", data[c, z])
    sections = {
        "ProfileSaveInfo": {"Name": '"OIF"', "Version": '"1.0"'},
        "Axis 3 Parameters Common": {
            "AxisCode": '"Z"', "StartPosition": 4000.0, "EndPosition": 0.0, "MaxSize": 3, "UnitName": '"nm"',
        },
        "Channel 1 Parameters": {"CH Name": '"CH1"', "DyeName": '"DAPI"'},
        "Channel 2 Parameters": {"CH Name": '"CH2"', "DyeName": '"Cy5"'},
        "Reference Image Parameter": {
            "WidthConvertValue": 0.5, "WidthUnit": '"um"', "HeightConvertValue": 0.25, "HeightUnit": '"um"',
        },
    }  # fmt: skip
    text = "".join(f"[{k}]\r\n" + "".join(f"{a}={b}\r\n" for a, b in v.items()) for k, v in sections.items())
    path.write_bytes(text.encode("utf-16"))
    array, image = read(path)
    assert np.array_equal(array, data)
    assert image.grid.spacing == (2.0, 0.25, 0.5)
    assert image.grid.unit == "µm"
    assert image.channels == ("DAPI", "Cy5")
    assert np.array_equal(read(path, z=2, channels="Cy5")[0][0], data[1, 2])
    (folder / "s_C002Z002.tif").unlink()
    path.write_bytes(path.read_bytes() + "\r\n".encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"5 of its 6 planes are there"):
        read(path)


def damaged(content: bytes, seed: int) -> bytes:
    """A file cut short, or with a few bytes changed anywhere, at its beginning or at its end."""
    rng = np.random.default_rng(seed)
    kind, n = seed % 4, len(content)
    if kind == 0:
        return content[: int(rng.integers(0, n))]
    out, reach = bytearray(content), min(n, 3000)
    for _ in range(int(rng.integers(1, 6))):
        at = int(rng.integers(0, n if kind == 1 else reach))
        out[n - 1 - at if kind == 3 else at] = int(rng.integers(0, 256))
    return bytes(out)


@pytest.mark.parametrize(
    "kind", [pytest.param("nd2", marks=nd2), pytest.param("lif", marks=lif), pytest.param("czi", marks=czi)]
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_one_sentence(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "nd2":
        files.write_nd2(path, pixels(4, 8, 9, 2), [("p", 2, 0.0), ("z", 2, 2.0)], [("DAPI", 1), ("Cy5", 2)])
    elif kind == "lif":
        files.write_lif(path, [{"name": n, "data": pixels(2, 8, 9), "axes": "cyx"} for n in "ab"])
    else:
        two_scenes(path)
    content, refused = path.read_bytes(), []
    for seed in range(40):
        other = tmp_path / f"{seed}.{kind}"
        other.write_bytes(damaged(content, seed))
        try:
            read(other, series=seed % 2, max_bytes=1 << 22)
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) >= 5
    assert all(sentence.startswith("wanted") for sentence in refused)


@vsi
def test_vsi_says_what_its_reader_says(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.vsi", pixels(8, 8))
    with pytest.raises(ValueError, match=r"wanted a VSI file that is understood.*bioformats2raw"):
        read(tmp_path / "a.vsi")


@vsi
def test_vsi_of_a_microscope_as_its_package_brings_one() -> None:
    import bioio_vsi

    path = Path(str(bioio_vsi.__file__)).parent / "tests" / "resources" / "vsi-ets-test-jpg2k.vsi"
    if not path.is_file():
        pytest.skip("this build of bioio-vsi brings no sample file")
    array, image = read(path, z=3)
    assert np.array_equal(array[1], bioio_vsi.open_vsi(str(path)).read_plane(c=1, z=3))
    assert image.grid.spacing == pytest.approx((0.108333, 0.108333), rel=1e-4)
    assert image.channels == ("C405", "C488")
    pyramid = ImageAdapter().pyramid(path)
    assert pyramid.grid.shape == (11, 1682, 1645)
    assert pyramid.grid.spacing[0] == 1.0
    assert np.array_equal(pyramid.levels[0].read((slice(3, 4), slice(5, 90), slice(7, 99)))[:, 0], array[:, 5:90, 7:99])


def test_a_vsi_is_never_its_preview(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "a.vsi", pixels(8, 8))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"wanted the package bioio_vsi.*pip install 'regframe\[vsi\]'"):
        read(tmp_path / "a.vsi")
    for name in ("a.oir", "frame_t_0.ets"):
        (tmp_path / name).write_bytes(b"x" * 200)
        with pytest.raises(ValueError, match="bioformats2raw"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "head", "extra"),
    [
        ("a.nd2", b"\xda\xce\xbe\x0a", "nd2"),
        ("a.lif", b"\x70\0\0\0\x05\0\0\0\x2a", "lif"),
        ("a.czi", b"ZISRAWFILE", "czi"),
        ("a.oib", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "oib"),
    ],
)
def test_what_to_install_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, head: bytes, extra: str
) -> None:
    (tmp_path / name).write_bytes(head.ljust(200, b"\0"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=rf"wanted the package .* pip install 'regframe\[{extra}\]'"):
        read(tmp_path / name)


def test_formats_are_told_by_their_content(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w"):
        assert microscopes.microscope_kind(Path("a.nd2"), b"PK\3\4") is None
    jp2 = b"\0\0\0\x0cjP  \r\n"
    assert microscopes.microscope_kind(Path("a.jp2"), jp2) is None
    assert microscopes.microscope_kind(Path("A.ND2"), jp2) == "ND2"
    assert microscopes.microscope_kind(Path(tempfile.gettempdir()) / "x", b"ZISRAWFILE") == "CZI"
