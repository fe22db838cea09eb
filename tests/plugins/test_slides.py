"""Large images: levels and regions of every format, what is read for them, which level is registered on, and damage."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import re
import shutil
import struct
import tracemalloc
import warnings
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from regframe_image import raw as raw_module

import regframe as rf
from regframe.cli import main
from regframe.slides import levels

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 255, (150, 210), dtype=np.uint8)
RGB = RNG.integers(0, 255, (150, 210, 3), dtype=np.uint8)
STACK = RNG.integers(0, 4000, (3, 100, 90), dtype=np.uint16)


def region(*bounds: tuple[int, int]) -> tuple[slice, ...]:
    return tuple(slice(*b) for b in bounds)


def halved(array: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return np.ascontiguousarray(array[::2, ::2])


def store(
    path: Path,
    arrays: list[np.ndarray],
    version: str = "0.5",
    step: float = 0.5,
    **kwargs: Any,  # type: ignore[type-arg]
) -> Path:
    """An OME-Zarr image ``[c, y, x]`` of ``step`` µm at full resolution."""
    group: Any = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    datasets = []
    for k, array in enumerate(arrays):
        factor = arrays[0].shape[-1] / array.shape[-1]
        options = {"chunks": (1, 32, 32), **kwargs}
        group.create_array(str(k), shape=array.shape, dtype=array.dtype, **options)[...] = array
        scale, shift = [1, step * factor, step * factor], [0, step * (factor - 1) / 2, step * (factor - 1) / 2]
        moves: list[Any] = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": shift}]
        if version == "0.6":
            ends = {"input": {"path": str(k)}, "output": {"name": "physical"}}
            moves = [{"type": "sequence", "transformations": moves, **ends}]
        datasets.append({"path": str(k), "coordinateTransformations": moves})
    axes = [{"name": "c", "type": "channel"}, *({"name": a, "type": "space", "unit": "micrometer"} for a in "yx")]
    multiscale: dict[str, Any] = {"datasets": datasets}
    if version == "0.6":
        multiscale["coordinateSystems"] = [{"name": "other", "axes": axes[1:]}, {"name": "physical", "axes": axes}]
    else:
        multiscale["axes"] = axes
    body = {"multiscales": [multiscale], "omero": {"channels": [{"label": "DAPI", "color": "0000ff"}]}}
    group.attrs.update({"ome": {"version": version, **body}} if version != "0.4" else body)
    return path


def retag(data: bytearray, tag: int, value: int) -> None:
    """Put another number into a tag of the only page of a little-endian TIFF."""
    (at,) = struct.unpack_from("<I", data, 4)
    (n,) = struct.unpack_from("<H", data, at)
    entries = {struct.unpack_from("<H", data, at + 2 + 12 * k)[0]: at + 2 + 12 * k for k in range(n)}
    struct.pack_into("<HII", data, entries[tag] + 2, 4, 1, value)


def edit(path: Path, change: Any) -> None:
    """Change the multiscales metadata of a store."""
    file = path / "zarr.json"
    whole = json.loads(file.read_text())
    change(whole["attributes"]["ome"]["multiscales"][0])
    file.write_text(json.dumps(whole))


# ---- every format, by region --------------------------------------------------------------------------------------


def formats(folder: Path) -> Iterator[tuple[str, Path, np.ndarray, dict[str, Any]]]:  # type: ignore[type-arg]
    """A file of every layout with its pixels ``[c, (z,) y, x]`` and the options it needs."""
    first = np.moveaxis(RGB, -1, 0)

    def tiff(name: str, array: np.ndarray, **kwargs: Any) -> Path:  # type: ignore[type-arg]
        tifffile.imwrite(folder / name, array, **kwargs)
        return folder / name

    yield "tiled", tiff("a.tif", RGB, tile=(64, 48), compression="zlib", predictor=True), first, {}
    yield "strips", tiff("b.tif", GREY, rowsperstrip=7, compression="lzw"), GREY[None], {}
    yield "plain", tiff("c.tif", GREY), GREY[None], {}
    yield "planar", tiff("d.tif", first, tile=(32, 32), planarconfig="separate", photometric="rgb"), first, {}
    yield "big", tiff("e.tif", STACK, byteorder=">", photometric="minisblack"), STACK, {"axes": "cyx"}
    yield (
        "pages",
        tiff("f.ome.tif", STACK, tile=(32, 32), metadata={"axes": "CYX"}, photometric="minisblack"),
        STACK,
        {},
    )
    yield "imagej", tiff("g.tif", STACK, imagej=True, metadata={"axes": "ZYX"}), STACK[None], {}
    yield (
        "gaps",
        tiff("h.tif", STACK, metadata=None, contiguous=False, photometric="minisblack"),
        STACK,
        {"axes": "cyx"},
    )
    np.save(folder / "i.npy", GREY)
    yield "npy", folder / "i.npy", GREY[None], {}
    Pillow.fromarray(RGB).save(folder / "j.png")
    yield "png", folder / "j.png", first, {}
    values = np.stack([GREY, GREY[::-1]])
    yield "zarr", store(folder / "k.zarr", [values]), values, {}
    yield "shards", store(folder / "l.zarr", [values], chunks=(1, 32, 32), shards=(1, 96, 64)), values, {}
    shutil.make_archive(str(folder / "m.zarr"), "zip", folder / "k.zarr")
    yield "zip", folder / "m.zarr.zip", values, {}
    yield "array", zarr.save_array(folder / "n.zarr", GREY) or folder / "n.zarr", GREY[None], {"axes": "yx"}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, np.ndarray, dict[str, Any]]]:  # type: ignore[type-arg]
    return {name: rest for name, *rest in formats(tmp_path_factory.mktemp("formats"))}  # type: ignore[misc]


NAMES = [
    "tiled",
    "strips",
    "plain",
    "planar",
    "big",
    "pages",
    "imagej",
    "gaps",
    "npy",
    "png",
    "zarr",
    "shards",
    "zip",
    "array",
]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_region_is_a_piece_of_the_whole(samples: Any, name: str, data: st.DataObject) -> None:
    path, array, options = samples[name]
    pyramid = rf.open_pyramid(path, **options)
    assert pyramid.grid.shape == array.shape[1:]
    assert (pyramid.dtype, len(pyramid.channels)) == (array.dtype, array.shape[0])
    bounds = [
        sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in array.shape[1:]
    ]
    window = tuple(slice(a, b) for a, b in bounds)
    found = pyramid.levels[0].read(window)
    assert np.array_equal(found, array[(slice(None), *window)])
    assert found.dtype == pyramid.dtype
    assert np.array_equal(rf.open(path, **options).data.numpy(), array)


@pytest.mark.parametrize("name", NAMES)
def test_threads_and_pickles(samples: Any, name: str) -> None:
    path, array, options = samples[name]
    level = pickle.loads(pickle.dumps(rf.open_pyramid(path, **options).levels[0]))  # noqa: S301 - made above
    rows = [(min(r, array.shape[-2] - 20), min(r, array.shape[-2] - 20) + 20) for r in range(0, 150, 9)] * 2
    depth = [(0, n) for n in array.shape[1:-2]]

    def read(rows: tuple[int, int]) -> bool:
        window = region(*depth, rows, (3, 80))
        return np.array_equal(level.read(window), array[(slice(None), *window)])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, rows))


def _read(level: rf.Level) -> np.ndarray:  # type: ignore[type-arg]
    return level.read(region((10, 40), (20, 60)))


def test_a_level_is_read_in_another_process(samples: Any) -> None:
    chosen = ("tiled", "zip")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(_read, [rf.open_pyramid(samples[n][0]).levels[0] for n in chosen]))
    for name, array in zip(chosen, found, strict=True):
        assert np.array_equal(array, samples[name][1][:, 10:40, 20:60])


def test_channels_planes_and_opacity(tmp_path: Path) -> None:
    values = RNG.integers(0, 60000, (2, 3, 4, 50, 40), dtype=np.uint16)  # t, z, c, y, x
    tifffile.imwrite(tmp_path / "a.ome.tif", values, metadata={"axes": "TZCYX"}, tile=(16, 16))
    pyramid = rf.open_pyramid(tmp_path / "a.ome.tif", t=1, z=2, channels=[3, 0])
    assert np.array_equal(pyramid.levels[0].read(region((5, 30), (7, 9))), values[1, 2, [3, 0], 5:30, 7:9])
    assert pyramid.channels == ("3", "0")
    volume = rf.open_pyramid(tmp_path / "a.ome.tif", t=0)
    assert volume.grid.axes == ("z", "y", "x")
    assert np.array_equal(
        volume.levels[0].read(region((1, 2), (0, 50), (3, 5))), values[0, 1:2, :, :, 3:5].swapaxes(0, 1)
    )
    clear = np.dstack([RGB[:20, :20], np.full((20, 20), 255, np.uint8)])
    clear[3, 4] = (10, 20, 30, 0)
    Pillow.fromarray(clear).save(tmp_path / "b.png")
    pyramid = rf.open_pyramid(tmp_path / "b.png", channels="red,blue")
    assert pyramid.levels[0].read(region((3, 4), (4, 5))).ravel().tolist() == [255, 255]
    assert pyramid.channels == ("red", "blue")


@pytest.mark.parametrize("version", ["0.4", "0.5", "0.6"])
def test_levels_of_ome_zarr(tmp_path: Path, version: str) -> None:
    arrays = [GREY[None], GREY[None, ::2, ::2], GREY[None, ::4, ::4]]
    pyramid = rf.open_pyramid(store(tmp_path / "a.zarr", arrays, version))
    assert [level.grid.shape for level in pyramid.levels] == [(150, 210), (75, 105), (38, 53)]
    assert pyramid.levels[1].grid.spacing == pytest.approx((1.0, 1.0))
    assert pyramid.levels[1].grid.origin == pytest.approx((0.25, 0.25))
    assert (pyramid.grid.unit, pyramid.channels, pyramid.colors) == ("µm", ("DAPI",), ("0000FF",))
    assert pyramid.levels[0].chunk == (1, 32, 32)
    for level, array in zip(pyramid.levels, arrays, strict=True):
        assert np.array_equal(level.read(region((1, 30), (2, 40))), array[:, 1:30, 2:40])
    assert len(rf.open_pyramid(tmp_path / "a.zarr", level=1).levels) == 2
    assert np.array_equal(pyramid.image(2).data.numpy(), arrays[2])


def test_bioformats2raw_and_label_images(tmp_path: Path) -> None:
    store(tmp_path / "a.zarr" / "0", [GREY[None]])
    zarr.open_group(tmp_path / "a.zarr", mode="a").attrs["ome"] = {"version": "0.5", "bioformats2raw.layout": 3}
    assert np.array_equal(
        rf.open_pyramid(tmp_path / "a.zarr").levels[0].read(region((0, 9), (0, 9))), GREY[None, :9, :9]
    )
    path = store(tmp_path / "b.zarr", [STACK[:1]])
    group = zarr.open_group(path, mode="a")
    group.attrs["ome"] = {**dict(group.attrs["ome"]), "image-label": {}}  # type: ignore[dict-item]
    assert rf.open_pyramid(path).labels


def test_arrays_that_name_their_axes(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=STACK, dimension_names=["c", "y", "x"])
    assert rf.open_pyramid(tmp_path / "a.zarr").channels == ("0", "1", "2")


def test_planes_in_several_files(tmp_path: Path) -> None:
    def write(other: str, tile: Any = None, pack: Any = None) -> None:
        names = {"a.ome.tif": "urn:uuid:1", other: "urn:uuid:2"}
        parts = "".join(
            f'<TiffData FirstC="{c}" FirstZ="0" FirstT="0" IFD="0" PlaneCount="1">'
            f'<UUID FileName="{name}">{uuid}</UUID></TiffData>'
            for c, (name, uuid) in enumerate(names.items())
        )
        for c, (name, uuid) in enumerate(names.items()):
            text = (
                f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{uuid}"><Image ID="Image:0">'
                '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="90" SizeY="100" SizeC="2" SizeZ="1" '
                f'SizeT="1"><Channel ID="Channel:0:0"/><Channel ID="Channel:0:1"/>{parts}</Pixels></Image></OME>'
            )
            tifffile.imwrite(tmp_path / name, STACK[c], description=text, metadata=None, tile=tile, compression=pack)

    for tile, pack in ((None, None), ((32, 32), "zlib")):
        write("b.ome.tif", tile, pack)
        found = rf.open_pyramid(tmp_path / "a.ome.tif").levels[0].read(region((10, 60), (20, 80)))
        assert np.array_equal(found, STACK[:2, 10:60, 20:80])
    (tmp_path / "sub").mkdir()
    write("sub/b.ome.tif")
    with pytest.raises(ValueError, match="its pages lie in other folders"):
        rf.open_pyramid(tmp_path / "a.ome.tif")


def test_an_array_that_changed_is_opened_anew(tmp_path: Path) -> None:
    path = store(tmp_path / "a.zarr", [GREY[None]])
    level = rf.open_pyramid(path).levels[0]
    level.read(region((0, 5), (0, 5)))
    zarr.open_group(path, mode="a").create_array("0", data=STACK[:1], overwrite=True, chunks=(1, 20, 20))
    assert np.array_equal(rf.open_pyramid(path).levels[0].read(region((0, 5), (0, 5))), STACK[:1, :5, :5])
    raw_module._kept.cache_clear()
    with pytest.raises(ValueError, match="the store is another one than when it was opened"):
        level.read(region((0, 5), (0, 5)))


def svs(path: Path, mpp: float | None = 0.25) -> None:
    """Aperio's layout: the image, a thumbnail in strips, then the levels."""
    text = f"Aperio Image Library v1\n210x150 |AppMag = 40{'' if mpp is None else f'|MPP = {mpp}'}"
    with tifffile.TiffWriter(path) as writer:
        options: dict[str, Any] = {"photometric": "rgb", "metadata": None, "description": text}
        writer.write(RGB, tile=(64, 64), **options)
        writer.write(halved(halved(halved(RGB))), rowsperstrip=8, **options)
        writer.write(halved(RGB), tile=(64, 64), **options)
        writer.write(halved(halved(RGB)), tile=(64, 64), **options)


def test_levels_of_svs(tmp_path: Path) -> None:
    svs(tmp_path / "a.svs")
    pyramid = rf.open_pyramid(tmp_path / "a.svs")
    assert [level.grid.shape for level in pyramid.levels] == [(150, 210), (75, 105), (38, 53)]
    assert [level.grid.spacing[0] for level in pyramid.levels] == [0.25, 0.5, 1.0]
    assert pyramid.grid.unit == "µm"
    found = pyramid.levels[2].read(region((0, 38), (10, 53)))
    assert np.array_equal(found, np.moveaxis(halved(halved(RGB)), -1, 0)[:, :, 10:])
    svs(tmp_path / "b.svs", None)
    assert rf.open_pyramid(tmp_path / "b.svs").grid.unit == "px"


def test_levels_of_pyramidal_tiff(tmp_path: Path) -> None:
    for ome in (False, True):
        with tifffile.TiffWriter(tmp_path / "a.tif", ome=ome) as writer:
            writer.write(RGB, subifds=2, tile=(64, 64), photometric="rgb", compression="zstd")
            writer.write(halved(RGB), subfiletype=1, tile=(64, 64), photometric="rgb", compression="zstd")
            writer.write(halved(halved(RGB)), subfiletype=1, tile=(64, 64), photometric="rgb", compression="zstd")
        pyramid = rf.open_pyramid(tmp_path / "a.tif")
        assert [level.grid.shape for level in pyramid.levels] == [(150, 210), (75, 105), (38, 53)]
        assert np.array_equal(
            pyramid.levels[1].read(region((3, 9), (60, 80))), np.moveaxis(RGB[6:18:2, 120:160:2], -1, 0)
        )


def test_pixel_sizes_of_makers(tmp_path: Path) -> None:
    philips = (
        '<?xml version="1.0" encoding="UTF-8" ?>\n<DataObject ObjectType="DPUfsImport">'
        '<Attribute Name="DICOM_PIXEL_SPACING" Group="0x0028" Element="0x0030" PMSVR="IDoubleArray">'
        '"0.000226891" "0.000226907"</Attribute></DataObject>'
    )
    tifffile.imwrite(
        tmp_path / "a.tif", np.zeros((512, 512, 3), np.uint8), tile=(512, 512), software="Philips DP v1.0",
        description=philips, metadata=None, photometric="rgb",
    )  # fmt: skip
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.is_philips
    grid = rf.open_pyramid(tmp_path / "a.tif").grid
    assert (grid.unit, grid.spacing) == ("mm", (0.000226891, 0.000226907))
    tifffile.imwrite(tmp_path / "b.tif", GREY, resolution=(40000, 40000), resolutionunit="CENTIMETER")
    assert rf.open_pyramid(tmp_path / "b.tif").grid.unit == "px"  # a print size, whoever wrote it


# ---- only what is needed ------------------------------------------------------------------------------------------


def test_a_region_reads_its_chunks_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.zarr"
    group: Any = zarr.open_group(path, mode="w")
    array = group.create_array("0", shape=(3, 40_000, 40_000), dtype="uint8", chunks=(1, 512, 512))
    array[:, 1024:2048, 1024:2048] = 7
    axes = [{"name": a, "type": "channel" if a == "c" else "space"} for a in "cyx"]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [{"path": "0"}]}]}
    level = rf.open_pyramid(path, channels=[1]).levels[0]
    read: list[str] = []
    get = zarr.storage.LocalStore.get

    async def counted(self: Any, key: str, *args: Any, **kwargs: Any) -> Any:
        read.append(key)
        return await get(self, key, *args, **kwargs)

    monkeypatch.setattr(zarr.storage.LocalStore, "get", counted)
    level.read(region((0, 1), (0, 1)))  # opens the array
    read.clear()
    tracemalloc.start()
    found = level.read(region((1024, 2048), (1000, 2048)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sorted(read) == sorted(f"0/c/1/{y}/{x}" for y in (2, 3) for x in (1, 2, 3))
    assert int(found[:, :, 24:].min()) == 7
    assert peak < 8 << 20


def test_a_region_decodes_its_tiles_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RGB, tile=(32, 32), compression="zlib", photometric="rgb")
    level = rf.open_pyramid(tmp_path / "a.tif").levels[0]
    stored: Any = level.read.read  # type: ignore[attr-defined]
    layout = raw_module.kept(stored.__call__.__globals__["_layouts"], stored.path, stored.stamp)[0]
    decode, seen = layout.page.decode, []

    def counted(data: bytes, index: int, **kwargs: Any) -> Any:
        seen.append(index)
        return decode(data, index, **kwargs)

    monkeypatch.setitem(layout.page.__dict__, "decode", counted)
    level.read(region((33, 64), (60, 100)))
    assert seen == [7 + 1, 7 + 2, 7 + 3]


def wide(shape: tuple[int, ...], chunk: tuple[int, ...], labels: bool = False) -> tuple[rf.Pyramid, list[int]]:
    """A pyramid of one level whose pixels are made when they are read, and how many were read at once."""
    sizes: list[int] = []

    def read(window: tuple[slice, ...]) -> np.ndarray:  # type: ignore[type-arg]
        axes = [np.arange(s.start, s.stop) for s in window]
        value = np.add.outer(axes[0] * 3, axes[1]) % 251
        sizes.append(value.size)
        return value[None].astype(np.uint8)

    level = rf.Level(rf.Grid(shape, 0.5, (1.0, 2.0), "µm"), chunk, read)
    return rf.Pyramid((level,), np.dtype(np.uint8), ("0",), labels=labels), sizes


@pytest.mark.parametrize(("chunk", "factor"), [((1, 64, 64), (4, 4)), ((1, 30, 50), (4, 8)), ((1, 301, 403), (3, 5))])
def test_averaging_over_blocks(monkeypatch: pytest.MonkeyPatch, chunk: Any, factor: tuple[int, int]) -> None:
    pyramid, sizes = wide((301, 403), chunk)
    monkeypatch.setattr(levels, "_STRIP", 1 << 12)
    image = rf.read_level(pyramid, 0, factor)
    whole = (np.add.outer(np.arange(301) * 3, np.arange(403)) % 251).astype(np.float64)
    for y, x in ((0, 0), (5, 7), (image.grid.shape[0] - 1, image.grid.shape[1] - 1)):
        block = whole[y * factor[0] : (y + 1) * factor[0], x * factor[1] : (x + 1) * factor[1]]
        assert abs(float(image.data[0, y, x]) - block.mean()) <= 0.5
    assert image.grid.spacing == (0.5 * factor[0], 0.5 * factor[1])
    assert image.grid.origin == (1.0 + 0.25 * (factor[0] - 1), 2.0 + 0.25 * (factor[1] - 1))
    assert sum(sizes) == 301 * 403
    if chunk[1] < 300:
        assert max(sizes) < 301 * 403 / 4


def test_ids_are_picked_and_not_averaged() -> None:
    pyramid, _ = wide((40, 42), (1, 16, 16), labels=True)
    image = rf.read_level(pyramid, 0, (4, 4))
    whole = np.add.outer(np.arange(40) * 3, np.arange(42)) % 251
    assert np.array_equal(image.data[0].numpy(), whole[2::4][:, [*range(2, 42, 4), 41]])
    assert image.grid.origin == (1.0 + 0.5 * 2, 2.0 + 0.5 * 2)


@pytest.mark.parametrize(
    ("shapes", "level", "factor"),
    [
        ([(2000, 2000)], 0, (1, 1)),
        ([(2048, 4096)], 0, (1, 1)),
        ([(40_000, 40_000), (10_000, 10_000), (2500, 2500), (625, 625)], 2, (1, 1)),
        ([(40_000, 40_000), (20_000, 20_000), (10_000, 10_000), (500, 500)], 2, (4, 4)),
        ([(100_000, 80_000)], 0, (32, 32)),
        ([(100, 100), (50, 50)], 0, (1, 1)),
        ([(200, 300, 400)], 0, (1, 1, 1)),
        ([(100, 2000, 2000)], 0, (4, 4, 4)),
        ([(100, 2000, 2000), (100, 500, 500)], 1, (1, 1, 1)),
    ],
)
def test_the_level_to_register_on(shapes: list[tuple[int, ...]], level: int, factor: tuple[int, ...]) -> None:
    grids = [rf.Grid(s, tuple(n / m for n, m in zip(shapes[0], s, strict=True))) for s in shapes]
    pyramid = rf.Pyramid(tuple(rf.Level(g, (1, *g.shape), None) for g in grids), np.dtype("u1"), ("0",))  # type: ignore[arg-type]
    assert rf.choose_level(pyramid) == (level, factor)


def test_planes_far_apart_are_kept() -> None:
    thick = rf.Level(rf.Grid((100, 2000, 2000), (8.0, 0.5, 0.5), unit="µm"), (1, 1, 512, 512), None)  # type: ignore[arg-type]
    assert rf.choose_level(rf.Pyramid((thick,), np.dtype("u1"), ("0",))) == (0, (1, 4, 4))


def test_large_images_open_at_a_level_for_registration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = [GREY[None], GREY[None, ::2, ::2], GREY[None, ::4, ::4]]
    path = store(tmp_path / "a.zarr", arrays)
    monkeypatch.setattr(levels, "ENOUGH", 75 * 105)
    opened = rf.open(path)
    assert isinstance(opened, rf.Image)
    assert np.array_equal(opened.data.numpy(), arrays[1])
    assert str(opened.reading) == "level 1 of 3, of 150 × 210 px"
    assert rf.open(path, level=0).grid.shape == (150, 210)
    assert rf.open(path, level=0).reading is None  # type: ignore[union-attr]
    assert rf.open(path, labels=True).grid.shape == (150, 210)
    monkeypatch.setattr(levels, "WHOLE", {2: 4000, 3: 4000})
    opened = rf.open(path)
    assert isinstance(opened, rf.Image)
    assert opened.reading is not None
    assert (opened.reading.level, opened.reading.factor, opened.grid.shape) == (1, (2, 2), (38, 53))
    blocks = np.pad(arrays[1][0].astype(float), ((0, 1), (0, 1)), mode="edge").reshape(38, 2, 53, 2).mean((1, 3))
    assert np.abs(opened.data[0].numpy() - blocks).max() <= 0.5
    assert opened.grid.origin == pytest.approx((0.75, 0.75))


def test_register_says_what_it_read(tmp_path: Path) -> None:
    """Both files larger than is read whole, of different levels: the map is the one of the physical space."""
    y, x = np.mgrid[:3000, :3200]
    spots = np.random.default_rng(3).uniform(300, 2700, (60, 2))
    scene = np.zeros((750, 800), np.float32)
    for k, (a, b) in enumerate(spots / 4):
        scene += (60 + 2 * k) * np.exp(-((y[:750, :800] - a) ** 2 + (x[:750, :800] - b) ** 2) / (120 + 12 * k))
    scene = np.clip(scene, 0, 250)
    big = np.kron(scene, np.ones((4, 4), np.float32)).astype(np.uint8)
    moved = np.roll(big, (64, -96), (0, 1))
    store(tmp_path / "f.zarr", [big[None]], chunks=(1, 512, 512))
    options: dict[str, Any] = {
        "tile": (256, 256),
        "metadata": {"axes": "YX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5},
    }
    with tifffile.TiffWriter(tmp_path / "m.ome.tif", ome=True) as writer:
        writer.write(moved, subifds=1, **options)
        writer.write(moved.reshape(1500, 2, 1600, 2).mean((1, 3)).astype(np.uint8), subfiletype=1, tile=(256, 256))
    args = ["register", str(tmp_path / "f.zarr"), str(tmp_path / "m.ome.tif"), "-o", str(tmp_path / "out"), "--json"]
    done = CliRunner().invoke(main, [*args, "--transform", "rigid"])
    assert done.exit_code == 0, done.output
    assert "fixed: f.zarr read at level 0 of 1, averaged over 2 × 2 pixels, of 3000 × 3200 px" in done.stderr
    assert "moving: m.ome.tif read at level 1 of 2, of 3000 × 3200 px" in done.stderr
    found = json.loads(done.stdout)["preparation"]
    assert found["fixed"]["reading"]["averaged"] == [2, 2]
    assert found["moving"]["reading"] == {
        "level": 1, "levels": 2, "averaged": [1, 1], "full_shape": [3000, 3200], "full_spacing": [0.5, 0.5],
    }  # fmt: skip
    result = rf.load(tmp_path / "out")
    import torch

    place = torch.tensor([[700.0, 800.0]], dtype=torch.float64)
    assert (result.to_fixed(place) - place)[0].tolist() == pytest.approx([-32.0, 48.0], abs=0.5)


# ---- real files ---------------------------------------------------------------------------------------------------

SLIDES = "18_slide_formats"


@pytest.mark.parametrize(
    "name",
    [
        "boxes.tiff",
        "cmu_small_region.svs",
        "yb10kx5k.zstd.tiff",
        "grey10kx5k.tif",
        "wsireg_mc_im_8bit.tiff",
        "wsireg_rgb_im_8bit.tiff",
        "wsireg_sc_im_8bit.tiff",
        "2010-06-18x24y5z1t2c8b-text.ome.tiff",
    ],
)
def test_real_tiffs_agree_with_tifffile(data_dir: Path, name: str) -> None:
    path = data_dir / SLIDES / name
    pyramid = rf.open_pyramid(path)
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        assert len(pyramid.levels) == len(series.levels)
        for level, own in zip(pyramid.levels, series.levels, strict=True):
            array = own.asarray()
            axes = own.axes.replace("S", "C")
            array = array if "C" in axes else array[None]
            array = array.transpose(
                [("C" + axes if "C" not in axes else axes).index(a) for a in "CZYX" if a in "C" + axes]
            )
            n, m = array.shape[-2:]
            for y, x in (((0, n), (0, m)), ((n // 3, n // 3 + 9), (m // 2, m))):
                window = region(*((0, k) for k in array.shape[1:-2]), y, x)
                assert np.array_equal(level.read(window), array[(slice(None), *window)])
    expected = ("µm", (0.499, 0.499)) if name.endswith("svs") else ("px", (1.0,) * pyramid.grid.ndim)
    assert (pyramid.grid.unit, pyramid.grid.spacing) == expected


@pytest.mark.parametrize(
    "name", ["boxes.tiff", "cmu_small_region.svs", "yb10kx5k.zstd.tiff", "boxes_0.dcm", "boxes_1.dcm"]
)
def test_real_slides_agree_with_openslide(data_dir: Path, name: str) -> None:
    openslide = pytest.importorskip("openslide", reason="the extra openslide is not installed")
    path = data_dir / SLIDES / name
    pyramid = rf.open_pyramid(path)
    slide = openslide.OpenSlide(str(path))
    assert [level.grid.shape[::-1] for level in pyramid.levels] == list(slide.level_dimensions)
    if not name.endswith("tiff"):  # of plain TIFFs it takes the print resolution
        mpp = tuple(float(slide.properties[f"openslide.mpp-{a}"]) for a in "yx")
        assert (pyramid.grid.unit, pyramid.grid.spacing) == ("µm", pytest.approx(mpp))
    for k, (level, factor) in enumerate(zip(pyramid.levels, slide.level_downsamples, strict=True)):
        n, m = min(level.grid.shape[0], 700), min(level.grid.shape[1], 600)
        y, x = (level.grid.shape[0] - n) // 2, (level.grid.shape[1] - m) // 2
        if factor != int(factor):
            y = x = 0
        own = np.asarray(slide.read_region((int(x * factor), int(y * factor)), k, (m, n)).convert("RGB"))
        found = np.moveaxis(level.read(region((y, y + n), (x, x + m))), 0, -1)
        assert int(np.abs(own.astype(int) - found.astype(int)).max()) <= 2  # two JPEG decoders


def test_a_real_zarr_agrees_with_zarr(data_dir: Path) -> None:
    path = data_dir / SLIDES / "sample_float32_8bit_range.zarr.zip"
    with pytest.warns(UserWarning, match="declares a spacing of"):
        pyramid = rf.open_pyramid(path)
    with zipfile.ZipFile(path), zarr.storage.ZipStore(path, mode="r") as opened:
        array = np.asarray(zarr.open_group(opened, mode="r", zarr_format=2)["0"][:])  # type: ignore[index]
    assert np.array_equal(pyramid.levels[0].read(region((0, 100), (5, 80))), np.moveaxis(array, -1, 0)[:, :, 5:80])
    assert len(pyramid.channels) == 4


def test_dicom_without_the_extra(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match=r"wanted the package openslide to read .* pip install 'regframe\[openslide\]'"
    ):
        rf.open_pyramid(data_dir / SLIDES / "boxes_0.dcm")
    done = CliRunner().invoke(main, ["info", str(data_dir / SLIDES / "boxes_0.dcm")])
    assert done.exit_code == 2


def test_dicom_that_is_no_slide(tmp_path: Path) -> None:
    pytest.importorskip("openslide", reason="the extra openslide is not installed")
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM" + bytes(64))
    with pytest.raises(ValueError, match="wanted a readable slide image"):
        rf.open_pyramid(tmp_path / "a.dcm")


# ---- contradictions -----------------------------------------------------------------------------------------------


def test_the_levels_metadata_beside_another_one(tmp_path: Path) -> None:
    path = store(tmp_path / "a.zarr", [GREY[None]])
    (path / "OME").mkdir()
    text = (
        '<OME><Image><Pixels PhysicalSizeX="{}" PhysicalSizeXUnit="nm" PhysicalSizeY="500" PhysicalSizeYUnit="nm"/>'
        "</Image></OME>"
    )
    (path / "OME" / "METADATA.ome.xml").write_text(text.format(500))
    assert rf.open_pyramid(path).grid.spacing == (0.5, 0.5)
    (path / "OME" / "METADATA.ome.xml").write_text(text.format(250))
    with pytest.raises(
        ValueError, match=r"wanted one pixel size in .* got 0\.5 µm in its OME-Zarr metadata and 0\.25 µm"
    ):
        rf.open_pyramid(path)


def test_a_stated_pixel_size_against_the_files_own(tmp_path: Path) -> None:
    path = str(store(tmp_path / "a.zarr", [GREY[None]]))
    args = ["register", path, path, "-o", str(tmp_path / "out"), "--dry-run", "--fixed-mpp"]
    done = CliRunner().invoke(main, [*args, "1.0"])
    assert done.exit_code == 2
    assert "wanted the pixel size that a.zarr declares, 0.5 µm, or none stated, got 1 µm" in done.stderr
    assert CliRunner().invoke(main, [*args, "0.5"]).exit_code == 0
    assert CliRunner().invoke(main, [*args, "1.0", "--fixed-set", "override=true"]).exit_code == 0


# ---- damage -------------------------------------------------------------------------------------------------------


def test_a_chunk_that_is_missing_holds_the_fill_value(tmp_path: Path) -> None:
    path = store(tmp_path / "a.zarr", [GREY[None]], fill_value=9)
    (path / "0" / "c" / "0" / "1" / "2").unlink()
    found = rf.open_pyramid(path).levels[0].read(region((0, 150), (0, 210)))[0]
    assert int(found[32:64, 64:96].min()) == int(found[32:64, 64:96].max()) == 9
    found[32:64, 64:96] = GREY[32:64, 64:96]
    assert np.array_equal(found, GREY)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("keep", [0, 5, 100, 700])
def test_a_chunk_that_is_cut_short(tmp_path: Path, version: str, packed: bool, keep: int) -> None:
    kwargs: dict[str, Any] = {} if packed else {"compressors": None}
    path = store(tmp_path / "a.zarr", [GREY[None], GREY[None, ::2, ::2]], version, **kwargs)
    chunk = path / "1" / ("0.1.2" if version == "0.4" else "c/0/1/2")
    chunk.write_bytes(chunk.read_bytes()[:keep])
    level = rf.open_pyramid(path).levels[1]
    assert level.read(region((0, 32), (0, 32))).shape == (1, 32, 32)
    with pytest.raises(ValueError, match=r"cannot be decoded in level 1 at c 0:1, y 0:75, x 40:105 \("):
        level.read(region((0, 75), (40, 105)))


def test_a_packed_chunk_is_never_read_beyond_its_end(tmp_path: Path) -> None:
    """Blosc keeps what does not shrink as it is, and its decoder trusts the header's length."""
    from zarr.codecs import BloscCodec

    blosc = BloscCodec(cname="lz4", shuffle="bitshuffle", typesize=1)
    path = store(tmp_path / "a.zarr", [GREY[None]], compressors=blosc)
    chunk = path / "0" / "c" / "0" / "0" / "0"
    whole = chunk.read_bytes()
    for damaged in (whole[:200], whole[:-1], whole[:4] + b"\xff\xff\xff\x7f" + whole[8:]):
        chunk.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"cannot be decoded in level 0 at .* \(a chunk (has|unpacks)"):
            rf.open_pyramid(path).levels[0].read(region((0, 10), (0, 10)))
    path = store(tmp_path / "b.zarr", [GREY[None]], compressors=blosc, chunks=(1, 32, 32), shards=(1, 160, 224))
    shard = path / "0" / "c" / "0" / "0" / "0"
    data = bytearray(shard.read_bytes())
    first = data.index(whole[:16])
    data[first + 12 : first + 16] = struct.pack("<I", 1 << 30)
    shard.write_bytes(data)
    with pytest.raises(ValueError, match="a chunk has 1040 of 1073741824 bytes"):
        rf.open_pyramid(path).levels[0].read(region((0, 150), (0, 210)))


def test_a_tile_that_is_cut_short_or_scrambled(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for fault in ("end", "noise"):
        tifffile.imwrite(path, GREY, tile=(64, 64), compression="zlib")
        with tifffile.TiffFile(path) as file:
            offsets, counts = file.pages.first.dataoffsets, file.pages.first.databytecounts
        whole = bytearray(path.read_bytes())
        if fault == "end":
            path.write_bytes(whole[: offsets[-1] + 10])
        else:
            whole[offsets[-1] : offsets[-1] + counts[-1]] = bytes(counts[-1])
            path.write_bytes(whole)
        level = rf.open_pyramid(path).levels[0]
        assert np.array_equal(level.read(region((0, 128), (0, 192)))[0], GREY[:128, :192])
        with pytest.raises(ValueError, match=r"cannot be decoded in level 0 at y 140:150, x 200:210 \("):
            level.read(region((140, 150), (200, 210)))


def test_a_shape_that_is_a_lie(tmp_path: Path) -> None:
    path = store(tmp_path / "a.zarr", [GREY[None], GREY[None, ::2, ::2]])
    file = path / "1" / "zarr.json"
    whole = json.loads(file.read_text())
    told = {**whole, "shape": [1, 300, 400]}
    file.write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"wanted levels from fine to coarse, got .* level=0 reads the first alone"):
        rf.open_pyramid(path)
    assert rf.open(path, level=0).grid.shape == (150, 210)
    file.write_text(json.dumps({**whole, "shape": [1, 75, 60]}))
    with pytest.raises(ValueError, match=r"wanted levels that show one field, got 60 µm along x in level 1 and 105"):
        rf.open_pyramid(path)
    file.write_text(json.dumps({**whole, "shape": [75, 105]}))
    with pytest.raises(ValueError, match="wanted a readable OME-Zarr image"):
        rf.open_pyramid(path)
    grid = whole["chunk_grid"]["configuration"]
    file.write_text(
        json.dumps({**whole, "chunk_grid": {"name": "regular", "configuration": {**grid, "chunk_shape": [1, 16, 16]}}})
    )
    with pytest.raises(ValueError, match=r"cannot be decoded in level 1 at"):
        rf.open_pyramid(path).levels[1].read(region((0, 10), (0, 10)))
    tifffile.imwrite(tmp_path / "a.tif", GREY, rowsperstrip=10, compression="zlib")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    retag(data, 257, 40000)
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(ValueError, match="wanted a readable TIFF"):
        rf.open_pyramid(tmp_path / "a.tif").levels[0].read(region((150, 160), (0, 210)))


def test_an_array_of_a_billion_squared(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    group: Any = zarr.open_group(path, mode="w")
    group.create_array("0", shape=(10**9, 10**9), dtype="uint8", chunks=(1024, 1024))
    axes = [{"name": "y"}, {"name": "x"}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [{"path": "0"}]}]}
    tracemalloc.start()
    pyramid = rf.open_pyramid(path)
    assert pyramid.levels[0].read(region((10**9 - 5, 10**9), (0, 7))).shape == (1, 5, 7)
    for options, message in (
        ({}, "wanted at most 64 GiB of pixels to average"),
        ({"level": 0}, "wanted at most 4 GiB"),
    ):
        with pytest.raises(ValueError, match=rf"{message}( of pixels)?, got 9\.31e\+08 GiB declared by a\.zarr"):
            rf.open(path, **options)
    done = CliRunner().invoke(main, ["info", str(path), "--thumbnail", str(tmp_path / "a.png")])
    assert done.exit_code == 2
    assert "wanted at most 68.7 GB to read for a thumbnail" in done.stderr
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


@pytest.mark.parametrize("key", ["../b.zarr/0", "0/../../b.zarr/0", "/etc", "..", "C:\\b", "file://b", "", 3])
def test_a_path_that_leaves_the_store(tmp_path: Path, key: Any) -> None:
    store(tmp_path / "b.zarr", [GREY[None]])
    path = store(tmp_path / "a.zarr", [GREY[None]])
    edit(path, lambda m: m["datasets"][0].update(path=key))
    with pytest.raises(ValueError, match="wanted the paths of the levels inside the store"):
        rf.open_pyramid(path)


def test_an_absurd_number_of_levels(tmp_path: Path) -> None:
    path = store(tmp_path / "a.zarr", [GREY[None]])
    edit(path, lambda m: m.update(datasets=m["datasets"] * 100_000))
    with pytest.raises(ValueError, match="wanted 1 to 32 resolutions, got 100000"):
        rf.open_pyramid(path)
    edit(path, lambda m: m.update(datasets=[]))
    with pytest.raises(ValueError, match="wanted 1 to 32 resolutions, got 0"):
        rf.open_pyramid(path)
    with tifffile.TiffWriter(tmp_path / "a.tif", ome=True) as writer:
        writer.write(GREY, subifds=40, tile=(16, 16))
        for k in range(40):
            writer.write(GREY[: 140 - k, : 200 - k], subfiletype=1, tile=(16, 16))
    with pytest.raises(ValueError, match="wanted 1 to 32 resolutions, got 41"):
        rf.open_pyramid(tmp_path / "a.tif")


def test_a_tile_made_to_exhaust_the_memory(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY[:40, :40], tile=(16, 16), compression="zlib")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    retag(data, 322, 65520)
    retag(data, 323, 65520)
    (tmp_path / "a.tif").write_bytes(data)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"wanted a tile about as large as the image at most, got \(65520, 65520, 1\)"):
        rf.open_pyramid(tmp_path / "a.tif")
    path = store(tmp_path / "a.zarr", [GREY[None]])
    file = path / "0" / "zarr.json"
    whole = json.loads(file.read_text())
    whole["chunk_grid"]["configuration"]["chunk_shape"] = [1, 10**6, 10**6]
    file.write_text(json.dumps(whole))
    with pytest.raises(ValueError, match="wanted a chunk about as large as the image at most"):
        rf.open_pyramid(path)
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


def test_a_file_that_was_replaced(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY, tile=(64, 64))
    level = pickle.loads(pickle.dumps(rf.open_pyramid(tmp_path / "a.tif").levels[0]))  # noqa: S301 - made above
    raw_module._kept.cache_clear()
    tifffile.imwrite(tmp_path / "b.tif", halved(GREY), tile=(64, 64))
    (tmp_path / "b.tif").replace(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="the file is another one than when it was opened"):
        level.read(region((0, 5), (0, 5)))


# ---- info ---------------------------------------------------------------------------------------------------------


def test_info_of_levels(tmp_path: Path) -> None:
    arrays = [np.stack([GREY, GREY]), np.stack([GREY, GREY])[:, ::2, ::2]]
    path = store(tmp_path / "a.zarr", arrays)
    done = CliRunner().invoke(main, ["info", str(path), "--json"])
    found = json.loads(done.stdout)
    assert (found["axes"], found["unit"], found["dtype"]) == ("yx", "µm", "uint8")
    assert found["levels"][1] == {
        "shape": [75, 105], "spacing": [1.0, 1.0], "origin": [0.25, 0.25], "chunk": [1, 32, 32], "bytes": 15750,
        "registered_on": False, "averaged": [1, 1],
    }  # fmt: skip
    shown = CliRunner().invoke(main, ["info", str(path), "--thumbnail", str(tmp_path / "a.png")])
    assert "level 1    75 × 105 px of 1 × 1 µm, chunks of 1 × 32 × 32, 15.8 kB" in shown.stdout
    assert re.search("level 0 .* registered on", shown.stdout)
    with Pillow.open(tmp_path / "a.png") as shown_:
        assert shown_.size == (210, 150)
    again = CliRunner().invoke(main, ["info", str(path), "--thumbnail", str(tmp_path / "a.png")])
    assert again.exit_code == 2
    assert "--overwrite" in again.stderr
    (tmp_path / "p.csv").write_text("y,x\n1,2\n")
    points = CliRunner().invoke(main, ["info", str(tmp_path / "p.csv"), "--thumbnail", str(tmp_path / "p.png")])
    assert points.exit_code == 2
    assert "wanted an image for --thumbnail, got points" in points.stderr


def test_a_missing_pixel_size_is_said(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY)
    done = CliRunner().invoke(main, ["info", str(tmp_path / "a.tif")])
    assert "Warning: a.tif declares no pixel size" in done.stderr
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rf.open_pyramid(tmp_path / "a.tif").grid.unit == "px"


def test_thumbnail_of_a_volume(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK, imagej=True, metadata={"axes": "ZYX"})
    done = CliRunner().invoke(main, ["info", str(tmp_path / "a.tif"), "--thumbnail", str(tmp_path / "a.png")])
    assert done.exit_code == 0, done.output
    with Pillow.open(tmp_path / "a.png") as drawn:
        shown = np.asarray(drawn).astype(float)
    assert np.corrcoef(shown.ravel(), STACK[1].ravel())[0, 1] > 0.99


def test_an_adapter_without_pyramid(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("y,x\n1,2\n")
    with pytest.raises(rf.PluginError, match=r"wanted an image that is read level by level, got .*p\.csv"):
        rf.open_pyramid(tmp_path / "p.csv")
