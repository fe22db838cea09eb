"""Parts of a remote shard that were read are not read again with the whole; a killed run loses little."""

from __future__ import annotations

from pathlib import Path

import fake_stores as stores
import numpy as np
import pytest

import regframe as rf
from regframe.slides.warp import SlideOptions, SlideWarp

pytest.importorskip("obstore")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Noise as OME-Zarr in shards of 128 pixels with chunks of 64."""
    data = np.random.default_rng(0).integers(0, 255, (1, 512, 512), np.uint8)
    level = rf.Level(rf.Grid((512, 512), unit="px"), (1, 64, 64), lambda region: data[(slice(None), *region)])
    pyramid = rf.Pyramid((level,), data.dtype, ("grey",))
    folder = tmp_path / "web" / "in.zarr"
    SlideWarp(pyramid, rf.Affine.identity(2), level.grid, folder, SlideOptions(chunk=64, shard=128)).write(1)
    return folder


def test_every_byte_of_a_level_is_read_once(source: Path, tmp_path: Path) -> None:
    with stores.web(source.parent) as (url, log):
        pyramid = rf.open_pyramid(f"{url}/in.zarr")
        log.clear()
        same = rf.Affine.identity(2)
        SlideWarp(pyramid, same, pyramid.grid, tmp_path / "o.zarr", SlideOptions(chunk=64, shard=128)).write(1)
    stored = sum(p.stat().st_size for p in (source / "0").rglob("*") if p.is_file())
    assert log.sent < 1.05 * stored  # 1.5 × before: the chunks around every shard, and then the whole shards
    there, written = rf.open_pyramid(source).image().data, rf.open_pyramid(tmp_path / "o.zarr").image().data
    assert bool((there == written).all())


@pytest.mark.parametrize("part", [(slice(0, 64), slice(64, 128)), (slice(64, 128), slice(0, 128)), (slice(0, 1),) * 2])
def test_parts_make_the_whole(source: Path, part: tuple[slice, slice]) -> None:
    """Any part of a shard, then all of it: the pixels are those of the file."""
    expected = rf.open_pyramid(source).image().data.numpy()
    with stores.web(source.parent) as (url, log):
        level = rf.open_pyramid(f"{url}/in.zarr").levels[0]
        np.testing.assert_array_equal(level.read(part), expected[:, *part])
        log.clear()
        np.testing.assert_array_equal(level.read((slice(0, 128),) * 2), expected[:, :128, :128])
        assert 0 < log.sent < (source / "0" / "c" / "0" / "0" / "0").stat().st_size


def test_another_shard_under_the_name_is_read_anew(source: Path) -> None:
    expected = rf.open_pyramid(source).image().data.numpy()
    shards = [source / "0" / "c" / "0" / "0" / str(i) for i in (0, 1)]
    with stores.web(source.parent) as (url, _):
        level = rf.open_pyramid(f"{url}/in.zarr").levels[0]
        level.read((slice(0, 64), slice(0, 64)))
        shards[0].write_bytes(shards[1].read_bytes())
        np.testing.assert_array_equal(level.read((slice(0, 128),) * 2), expected[:, :128, 128:256])


@pytest.mark.parametrize(
    ("shape", "edge"), [((8192, 8192), 2048), ((16384, 16384), 4096), ((4096, 4096), 2048), ((40000, 900), 2048)]
)
def test_small_outputs_have_small_shards(shape: tuple[int, int], edge: int) -> None:
    assert SlideOptions().edge(3, shape) == edge
    assert SlideOptions(shard=4096).edge(3, shape) == 4096
