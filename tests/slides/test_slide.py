"""Large images warped tile by tile: the same pixels however they are cut, nothing lost when a run is killed, faults in words."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import fake_slides as slides
import numpy as np
import pytest
import tifffile
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import regframe as rf
from regframe.data import Level, Pyramid
from regframe.slides import place, tiles, warp
from regframe.slides.warp import SlideOptions, SlideWarp

HERE = Path(__file__).resolve().parents[1]


def levels_of(path: Path) -> list[np.ndarray[Any, Any]]:
    root = zarr.open_group(path, mode="r")
    return [np.asarray(root[d["path"]]) for d in root.attrs["ome"]["multiscales"][0]["datasets"]]  # type: ignore[index, call-overload, union-attr]


def whole(plan: SlideWarp) -> list[np.ndarray[Any, Any]]:
    """What `resample` of the whole image gives, and its halves."""
    source = plan.source
    data = source.read(tuple(slice(0, n) for n in source.grid.shape))
    image = rf.Image(torch.from_numpy(data), source.grid, labels=plan.pyramid.labels)
    out = [rf.resample(image, plan.transform, plan.grid, plan.fill).data.numpy()]
    for _ in plan.levels[1:]:
        out.append(tiles.halved(out[-1], plan.pyramid.labels))
    return out


def same(path: Path, expected: list[np.ndarray[Any, Any]]) -> bool:
    found = levels_of(path)
    return len(found) == len(expected) and all(
        a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(found, expected, strict=True)
    )


@pytest.fixture
def source(tmp_path: Path) -> Pyramid:
    return slides.on_disk(tmp_path / "source", slides.pixels((3, 700, 900)))


# ---- tiled = whole --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "chunk", "shard", "workers", "background"),
    [
        (1, 32, 64, 2, "auto"),
        (1, 32, 256, 2, "border"),
        (3, 64, 128, 3, 7.0),
        (3, 512, 1024, 1, "auto"),
        (3, 128, 256, 1, "border"),
    ],
)
def test_tiled_is_whole(
    tmp_path: Path, channels: int, chunk: int, shard: int, workers: int, background: warp.Background
) -> None:
    source = slides.on_disk(tmp_path / "source", slides.pixels((channels, 470, 560)))
    grid = rf.Grid((540, 650), origin=(-20.0, -31.0))
    out = tmp_path / "out.ome.zarr"
    plan = SlideWarp(source, slides.bent(source.grid), grid, out, SlideOptions(None, background, chunk, shard))
    seen: list[tuple[int, int]] = []
    plan.write(workers, progress=lambda step: seen.append((step.done, step.total)))
    assert same(out, whole(plan))
    assert len(levels_of(out)) == 2
    assert seen[-1] == (plan.shards, plan.shards)
    assert not plan.partial.exists()


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "u4", "f4", "f8"])
@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("inverse", [False, True])
def test_every_type_and_both_directions(tmp_path: Path, dtype: str, labels: bool, inverse: bool) -> None:
    if labels and dtype.startswith("f"):
        pytest.skip("labels are whole numbers")
    source = slides.on_disk(tmp_path / "s", slides.pixels((1, 150, 190), dtype), labels=labels)
    move = slides.bent(source.grid)
    plan = SlideWarp(
        source, move.inverse() if inverse else move, rf.Grid((170, 180), origin=(-9.0, 4.0)), tmp_path / "o.zarr",
        SlideOptions(chunk=16, shard=64),
    )  # fmt: skip
    plan.write(2)
    assert same(plan.path, whole(plan))
    found = levels_of(plan.path)[0]
    assert found.dtype == np.dtype(dtype)
    if labels:
        assert set(np.unique(found)) <= {0, *np.unique(slides.pixels((1, 150, 190), dtype))}


def test_ids_of_64_bits_come_through(tmp_path: Path) -> None:
    data = (np.arange(120 * 130, dtype=np.uint64) + (np.uint64(1) << np.uint64(60)))[None].reshape(1, 120, 130)
    source = slides.on_disk(tmp_path / "s", data, labels=True)
    plan = SlideWarp(source, rf.Affine.identity(2), source.grid, tmp_path / "o.zarr", SlideOptions(chunk=16, shard=32))
    plan.write(1)
    assert np.array_equal(levels_of(plan.path)[0], data)


@settings(max_examples=15)
@given(
    bend=st.floats(0, 60),
    turn=st.floats(-4, 4),
    start=st.tuples(st.integers(0, 200), st.integers(0, 200)),
    size=st.tuples(st.integers(1, 120), st.integers(1, 120)),
    inverse=st.booleans(),
)
def test_the_source_box_holds_every_path(
    bend: float, turn: float, start: tuple[int, int], size: tuple[int, int], inverse: bool
) -> None:
    source = rf.Grid((250, 230), (0.7, 0.9), (3.0, -8.0))
    move = slides.bent(source, bend, turn)
    pull = move if inverse else move.inverse()
    grid = rf.Grid((400, 400), (0.8, 0.6), (-5.0, 2.0))
    region = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
    boxes = tiles.source_boxes(pull, grid, region, source)
    part = rf.Grid(
        size, grid.spacing, tuple(o + s * a for o, s, a in zip(grid.origin, grid.spacing, start, strict=True))
    )
    index = (pull.points(part.coords()).reshape(-1, 2) - torch.tensor(source.origin)) / torch.tensor(source.spacing)
    low, high = torch.from_numpy(boxes[:, 0].min(axis=0)), torch.from_numpy(boxes[:, 1].max(axis=0))
    assert (index.floor() >= low + 1).all()
    assert (index.floor() + 1 <= high).all()
    # each path is in a box of its own, too, or chunks between boxes would be missed
    at = index[:, None].floor()
    held = (at >= torch.from_numpy(boxes[:, 0])) & (at + 1 <= torch.from_numpy(boxes[:, 1]))  # [N, boxes, 2]
    assert held.all(dim=-1).any(dim=-1).all()


def test_the_box_of_a_displacement_holds_every_path() -> None:
    nodes = rf.Grid((6, 5), (50.0, 60.0), (-20.0, -10.0))
    field = slides.smooth_velocity(nodes, 18.0)[0]
    source = rf.Grid((200, 210))
    for move in (rf.Displacement(field, nodes), rf.Displacement(field, nodes).inverse()):
        boxes = tiles.source_boxes(move, source, (slice(20, 90), slice(0, 210)), source)
        at = move.points(source.coords()[20:90]).reshape(-1, 2)
        assert (at.floor() >= torch.from_numpy(boxes[:, 0].min(axis=0))).all()
        assert (at.floor() + 1 <= torch.from_numpy(boxes[:, 1].max(axis=0))).all()
        assert boxes[:, 1].max() - boxes[:, 0].min() < 260  # and is no more than that


def test_only_the_chunks_that_are_needed_are_read(source: Pyramid, tmp_path: Path) -> None:
    seen = np.zeros((700, 900), dtype=bool)
    inner = source.levels[0].read

    def spy(region: tuple[slice, ...]) -> np.ndarray[Any, Any]:
        seen[region] = True
        return inner(region)

    spied = dataclasses.replace(source, levels=(Level(source.grid, (1, 64, 64), spy),))
    turn = slides.bent(source.grid, 3.0, 0.8)
    grid = rf.Grid((128, 256), origin=(300.0, 300.0))
    tile = tiles.warp_tile(spied.levels[0], turn.inverse(), grid, (slice(0, 128), slice(0, 256)), False, 0.0)
    assert tile is not None
    assert 128 * 256 <= seen.sum() < 0.75 * 700 * 500  # a turned strip, not its bounding box
    index = turn.inverse().points(grid.coords()).round().long().reshape(-1, 2)
    assert seen[index[:, 0].clamp(0, 699), index[:, 1].clamp(0, 899)].all()
    seen[:] = False
    beyond, everything = rf.Grid((9, 9), origin=(5000.0, 0.0)), (slice(0, 9), slice(0, 9))
    assert tiles.warp_tile(spied.levels[0], turn.inverse(), beyond, everything, False, 0.0) is None
    assert not seen.any()


def test_halves_are_means_rounded_to_even() -> None:
    every = np.array(np.meshgrid(*[np.arange(4, dtype=np.uint8)] * 4)).reshape(4, -1)  # all remainders of four pixels
    block = np.stack([every[:2].T.reshape(-1), every[2:].T.reshape(-1)])[None]
    expected = np.rint(every.mean(axis=0)).astype(np.uint8)
    assert np.array_equal(tiles.halved(block, False)[0, 0], expected)
    for dtype in ("u1", "u2", "i4", "f4"):
        for shape in ((2, 7, 9), (1, 1, 6), (3, 130, 70)):
            data = slides.pixels(shape, dtype)
            padded = np.pad(data, [(0, 0), (0, shape[1] % 2), (0, shape[2] % 2)], mode="edge").astype(np.float64)
            mean = padded.reshape(shape[0], padded.shape[1] // 2, 2, padded.shape[2] // 2, 2).mean(axis=(2, 4))
            mean = mean if dtype == "f4" else np.rint(mean)
            assert np.array_equal(tiles.halved(data, False), mean.astype(dtype))


# ---- which level ----------------------------------------------------------------------------------------------------


def test_the_level_fits_the_spacing(tmp_path: Path) -> None:
    source = slides.on_disk(tmp_path / "s", slides.pixels((1, 256, 256)), levels=3)
    for step, index, factor in (
        (0.5, 0, 1),
        (1.0, 0, 1),
        (1.9, 0, 1),
        (2.0, 1, 1),
        (5.0, 2, 1),
        (8.0, 2, 2),
        (13.0, 2, 3),
    ):
        level = tiles.choose(source, step)
        assert level.grid.spacing[0] == source.levels[index].grid.spacing[0] * factor, step
    assert tiles.needed(source, rf.Affine(torch.diag(torch.tensor([2.0, 2.0, 1.0]))), (3.0, 3.0)) == pytest.approx(6)


def test_what_is_finer_than_wanted_is_averaged(tmp_path: Path) -> None:
    data = slides.pixels((2, 250, 262))
    source = slides.on_disk(tmp_path / "s", data)
    level = tiles.averaged(source.levels[0], 4)
    found = level.read((slice(3, level.grid.shape[0]), slice(0, 40)))
    assert level.grid.origin == (1.5, 1.5)
    block = data[:, 12:16, 8:12].astype(float).mean(axis=(1, 2))
    assert np.array_equal(found[:, 0, 2], np.rint(block))
    last = data[:, 248:, 8:12].astype(float).mean(axis=(1, 2))  # two rows are left
    assert np.array_equal(found[:, -1, 2], np.rint(last))
    plan = SlideWarp(source, rf.Affine.identity(2), source.grid.resampled(4.0), tmp_path / "o.zarr",
                     SlideOptions(chunk=16, shard=32))  # fmt: skip
    plan.write(1)
    assert same(plan.path, whole(plan))
    labels = tiles.averaged(source.levels[0], 4, labels=True)
    assert np.array_equal(labels.read((slice(0, 9), slice(0, 9))), data[:, :36:4, :36:4])


# ---- what is written ------------------------------------------------------------------------------------------------


def test_names_colours_and_spacing_are_kept(tmp_path: Path) -> None:
    source = slides.on_disk(
        tmp_path / "s",
        slides.pixels((4, 600, 80), "u2"),
        channels=("DAPI", "CD3", "CD8", "Ki67"),
        unit="µm",
        spacing=0.5,
    )
    source = dataclasses.replace(source, colors=("0000FF", "FF0000", "00FF00", "FFFF00"))
    grid = rf.Grid((610, 80), 0.5, (2.0, -1.0), "µm")
    out = rf.warp_slide(
        source, rf.Affine.identity(2, "µm"), grid, tmp_path / "o.ome.zarr", options=SlideOptions(chunk=64, shard=128)
    )
    attributes: Any = dict(zarr.open_group(out, mode="r").attrs)
    assert [c["label"] for c in attributes["ome"]["omero"]["channels"]] == list(source.channels)
    assert [c["color"] for c in attributes["ome"]["omero"]["channels"]] == list(source.colors)
    assert attributes["regframe"]["complete"] is True
    for level in (0, 1):
        image = rf.open(out, level=level)
        assert isinstance(image, rf.Image)
        halved = tiles.halved_grid(grid, False) if level else grid
        assert image.grid == halved
    array: Any = zarr.open_group(out, mode="r")["0"]
    assert array.shards == (4, 128, 128)
    assert "bitshuffle" in str(array.compressors).lower()
    assert array.fill_value == 0


@pytest.mark.parametrize(("channels", "dtype"), [(3, "u1"), (3, "u2"), (2, "u2"), (1, "f4"), (5, "u1")])
def test_ome_tiff(tmp_path: Path, channels: int, dtype: str) -> None:
    source = slides.on_disk(tmp_path / "s", slides.pixels((channels, 620, 700), dtype), unit="µm", spacing=0.25)
    move = slides.bent(source.grid)
    options = SlideOptions(chunk=128, shard=512)
    rf.warp_slide(source, move, source.grid, tmp_path / "o.ome.zarr", options=options)
    rf.warp_slide(source, move, source.grid, tmp_path / "o.ome.tif", workers=2, options=options)
    assert {p.name for p in tmp_path.iterdir()} == {"s", "o.ome.zarr", "o.ome.tif"}
    expected = levels_of(tmp_path / "o.ome.zarr")
    with tifffile.TiffFile(tmp_path / "o.ome.tif") as file:
        assert file.is_ome
        series = file.series[0]
        assert len(series.levels) == 2
        for level, pixels in zip(series.levels, expected, strict=True):
            found = level.asarray()
            found = np.moveaxis(found, -1, 0) if found.ndim == 3 and found.shape[-1] == 3 else found
            assert np.array_equal(found.reshape(pixels.shape), pixels)
        assert series.keyframe.is_tiled
    image = rf.open(tmp_path / "o.ome.tif")
    assert isinstance(image, rf.Image)
    assert image.grid.spacing == (0.25, 0.25)
    assert image.grid.unit == "µm"
    assert image.channels == source.channels


@pytest.mark.parametrize("channels", [1, 3])
def test_ome_tiff_shard_by_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int) -> None:
    """Coarse levels are made of tiles, parts without pixels are background, and a run that was stopped goes on."""
    monkeypatch.setattr(warp, "COARSEST", 16)
    source = slides.on_disk(tmp_path / "s", slides.pixels((channels, 150, 170)))
    grid = rf.Grid((230, 300), origin=(0.0, -140.0))
    plan = SlideWarp(source, slides.bent(source.grid), grid, tmp_path / "o.ome.tif", SlideOptions(None, 7, 16, 32))
    assert len(plan.rounds) > 2
    with plan.started():
        for index in plan.rounds[0][:30]:
            plan.run(index)
    again = dataclasses.replace(plan)
    seen: list[int] = []
    again.write(2, progress=lambda step: seen.append(step.done))
    assert seen[0] == 31
    expected = whole(plan)
    assert (expected[0] == 7).all(axis=(0, 1)).any()
    with tifffile.TiffFile(tmp_path / "o.ome.tif") as file:
        assert len(file.series[0].levels) == len(expected)
        for level, pixels in zip(file.series[0].levels, expected, strict=True):
            found = level.asarray()
            found = np.moveaxis(found, -1, 0) if channels == 3 else found
            assert np.array_equal(found.reshape(pixels.shape), pixels)
    shutil.rmtree(tmp_path / "s")
    assert [p.name for p in tmp_path.iterdir()] == ["o.ome.tif"]


def test_background(tmp_path: Path) -> None:
    grid = rf.Grid((40, 500), origin=(0.0, -400.0))
    bright = slides.on_disk(tmp_path / "b", slides.pixels((3, 90, 90)))
    dark = slides.on_disk(tmp_path / "d", 255 - slides.pixels((3, 90, 90)))
    grey = slides.on_disk(tmp_path / "g", slides.pixels((1, 90, 90)))
    for i, (source, given_, wanted) in enumerate(
        ((bright, "auto", 255), (dark, "auto", 0), (grey, "auto", 0), (bright, 9, 9), (bright, "border", None))
    ):
        out = rf.warp_slide(
            source, rf.Affine.identity(2), grid, tmp_path / f"{i}.zarr",
            options=SlideOptions(background=given_, chunk=16, shard=32),  # type: ignore[arg-type]
        )  # fmt: skip
        found = levels_of(out)[0][:, :, :380]
        expected = source.levels[0].read((slice(0, 40), slice(0, 1))) if wanted is None else wanted
        assert (found == expected).all()
        empty = not (out / "0" / "c" / "0" / "0" / "0").exists()
        assert empty == (wanted is not None)  # what is background throughout takes no space
    with pytest.raises(ValueError, match="wanted a background that uint8 holds, got 300"):
        rf.warp_slide(bright, rf.Affine.identity(2), grid, tmp_path / "x.zarr", options=SlideOptions(background=300))


# ---- shards as tasks ------------------------------------------------------------------------------------------------


def test_shards_run_in_any_order_and_process(tmp_path: Path) -> None:
    rf.warp_slide(
        *(lambda p: (p.pyramid, p.transform, p.grid))(slides.plan(str(tmp_path / "s"), str(tmp_path / "a.zarr"))),
        tmp_path / "a.zarr", options=SlideOptions(chunk=32, shard=64),
    )  # fmt: skip
    plan: SlideWarp = pickle.loads(  # noqa: S301 - our own bytes
        pickle.dumps(slides.plan(str(tmp_path / "s"), str(tmp_path / "b.zarr")))
    )
    with plan.started():
        with pytest.raises(ValueError, match=f"wanted all {plan.shards} shards of b.zarr"):
            plan.finish()
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # and this process beside it
            for batch in plan.rounds:
                order = list(batch)
                random.Random(1).shuffle(order)
                elsewhere = pool.map(plan.run, order[::2])
                for index in order[1::2]:
                    plan.run(index)
                list(elsewhere)
        with pytest.raises(ValueError, match="wanted a shard from 0"):
            plan.run(plan.shards)
        plan.finish()
    assert same(tmp_path / "b.zarr", levels_of(tmp_path / "a.zarr"))


def test_many_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warp, "COARSEST", 16)
    source = slides.on_disk(tmp_path / "s", slides.pixels((1, 300, 340)))
    plan = SlideWarp(
        source, slides.bent(source.grid), rf.Grid((310, 350)), tmp_path / "o.zarr", SlideOptions(chunk=16, shard=32)
    )
    assert [len(batch) for batch in plan.rounds] == [110, 30, 9, 4, 1]
    plan.write(2)
    found, expected = levels_of(plan.path), whole(plan)
    assert len(found) == 6
    assert same(plan.path, expected)


# ---- killed, and faults ---------------------------------------------------------------------------------------------


def start(tmp_path: Path, delay: float = 0.05, workers: int = 2, shard: int = 64) -> subprocess.Popen[str]:
    options = [str(v) for v in (tmp_path / "s", tmp_path / "o.zarr", delay, workers, shard)]
    command = [sys.executable, str(HERE / "fake_slides.py"), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE}:{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def wait_for(plan: SlideWarp, shards: int, process: subprocess.Popen[str]) -> None:
    """Until the process has the output, and so many shards are done."""
    deadline = time.monotonic() + 60
    lock = plan.partial / "lock"
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            if str(process.pid) in lock.read_text() and len(plan.done()) >= shards:
                return
        time.sleep(0.005)


def killed(tmp_path: Path, kills: int, shard: int) -> None:
    plan = slides.plan(str(tmp_path / "s"), str(tmp_path / "o.zarr"), shard=shard)
    draw = random.Random(kills)
    for _ in range(kills):
        process = start(tmp_path, 0.03, draw.choice([1, 2]), shard)
        before = len(plan.done())
        wait_for(plan, before + draw.randint(0, 3), process)
        time.sleep(draw.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        if (plan.partial / "plan.json").exists():  # it was not killed while it prepared
            with pytest.raises(ValueError, match="left unfinished; run the same command again"):
                rf.open(plan.partial)
        assert len(plan.done()) >= before
    assert not plan.path.exists()
    plan.write(2)
    assert not plan.partial.exists()
    assert not list(plan.path.rglob("*.partial"))
    assert same(plan.path, whole(plan))


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    killed(tmp_path, 2, 64)


@pytest.mark.slow
def test_a_run_killed_twenty_times_goes_on(tmp_path: Path) -> None:
    killed(tmp_path, 20, 32)


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    plan = slides.plan(str(tmp_path / "s"), str(tmp_path / "o.zarr"))
    with plan.started():
        for index in (0, 3, 4):
            plan.run(index)
    times = {p: p.stat().st_mtime_ns for p in plan.partial.rglob("c/*/*/*") if p.is_file()}
    assert times
    seen: list[int] = []
    plan.write(1, progress=lambda step: seen.append(step.done))
    assert seen[0] == 4
    for path, written in times.items():
        assert (plan.path / path.relative_to(plan.partial / "store")).stat().st_mtime_ns == written


def test_a_shard_that_is_lost_is_made_again(tmp_path: Path) -> None:
    """A file that is not there would read as background."""
    plan = slides.plan(str(tmp_path / "s"), str(tmp_path / "o.zarr"))
    with plan.started():
        for index in range(plan.shards):
            plan.run(index)
        lost = min(p for p in plan.partial.rglob("c/*/*/*") if p.is_file())
        lost.unlink()
        with pytest.raises(ValueError, match=f"wanted all {plan.shards} shards of o.zarr, got 1 less"):
            plan.finish()
    plan.write(1)
    assert same(plan.path, whole(plan))


def test_other_inputs_are_not_mixed_in(tmp_path: Path) -> None:
    plan = slides.plan(str(tmp_path / "s"), str(tmp_path / "o.zarr"))
    with plan.started():
        plan.run(0)
    for change in (
        {"grid": rf.Grid((310, 351))},
        {"transform": rf.Affine.identity(2)},
        {"options": dataclasses.replace(plan.options, background=3.0)},
        {"identity": "x"},
    ):
        other = dataclasses.replace(plan, **change)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="got other inputs or settings than it was begun with"):
            other.write(1)
    assert plan.done() == {0}
    other.write(1, overwrite=True)
    assert same(plan.path, whole(other))


def test_an_output_that_exists_is_kept(tmp_path: Path) -> None:
    plan = slides.plan(str(tmp_path / "s"), str(tmp_path / "o.zarr"))
    plan.write(1)
    with pytest.raises(FileExistsError, match="exists"):
        plan.write(1)
    plan.write(1, overwrite=True)
    assert same(plan.path, whole(plan))
    (tmp_path / "folder.zarr").mkdir()
    (tmp_path / "folder.zarr" / "thesis.tex").write_text("years")
    with pytest.raises(FileExistsError, match="no Zarr store"):
        dataclasses.replace(plan, path=tmp_path / "folder.zarr").write(1, overwrite=True)
    (tmp_path / "n.zarr.partial").mkdir()
    (tmp_path / "n.zarr.partial" / "thesis.tex").write_text("years")
    with pytest.raises(FileExistsError, match="not ours"):
        dataclasses.replace(plan, path=tmp_path / "n.zarr").write(1)
    assert (tmp_path / "n.zarr.partial" / "thesis.tex").exists()


def test_two_processes_do_not_write_one_output(tmp_path: Path) -> None:
    plan = slides.plan(str(tmp_path / "s"), str(tmp_path / "o.zarr"))
    process = start(tmp_path, 0.3, 1)
    wait_for(plan, 1, process)
    with pytest.raises(BlockingIOError, match=f"written by process {process.pid}"):
        plan.write(1)
    process.kill()
    process.communicate()
    plan.write(1)  # the lock of the dead is no lock
    assert same(plan.path, whole(plan))


def test_disk_full(tmp_path: Path) -> None:
    plan = slides.plan(str(tmp_path / "s"), str(tmp_path / "o.zarr"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = 3 * 64 * 64 // 3
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard))
        with pytest.raises(OSError, match=r"cannot write .*o\.zarr: File too large"):
            plan.write(2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not plan.path.exists()
    plan.write(2)
    assert same(plan.path, whole(plan))


def test_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = slides.plan(str(tmp_path / "s"), str(tmp_path / "locked" / "o.zarr"))
    (tmp_path / "locked").mkdir(mode=0o500)
    if os.geteuid() == 0:  # whom no mode keeps out
        plan = dataclasses.replace(plan, path=Path("/proc/o.zarr"))
    with pytest.raises(OSError, match="cannot write"):
        plan.write(1)


@pytest.mark.parametrize("fault", ["truncated", "garbled"])
def test_a_damaged_chunk_is_an_error_not_a_hole(tmp_path: Path, fault: str) -> None:
    plan = slides.plan(str(tmp_path / "s"), str(tmp_path / "o.zarr"))
    chunk = tmp_path / "s" / "0" / "c" / "1" / "2" / "3"
    intact = chunk.read_bytes()
    chunk.write_bytes(intact[: len(intact) // 2] if fault == "truncated" else b"\0" * 90)
    with pytest.raises(ValueError, match=r"wanted the pixels of s for the part .*, got: "):
        plan.write(2)
    assert plan.done()
    assert not plan.path.exists()
    chunk.write_bytes(intact)
    plan.write(2)
    assert same(plan.path, whole(plan))


def test_messages(source: Pyramid, tmp_path: Path) -> None:
    move, grid = rf.Affine.identity(2), source.grid
    for change, message in (
        ({"path": tmp_path / "o.png"}, r"ending in \.zarr or \.ome\.tif"),
        ({"grid": rf.Grid((9, 9, 9))}, "wanted a 2D image"),
        ({"grid": rf.Grid((9, 9), unit="µm")}, "convert with Grid.to_unit"),
        ({"options": {"level": 4}}, "wanted a level from 0 to 0"),
        ({"options": {"chunk": 100}}, "power of two"),
        ({"options": {"shard": 512}}, "2 at least"),
        ({"options": {"shard": 3 * 512}}, "times a power of two"),
        ({"options": {"background": "white"}}, "auto, border or a number"),
    ):
        options: dict[str, Any] = {"pyramid": source, "transform": move, "grid": grid, "path": tmp_path / "o.zarr"}
        with pytest.raises(ValueError, match=message):
            SlideWarp(**(options | change | {"options": SlideOptions(**change.get("options", {}))}))
    with pytest.raises(ValueError, match="at least one worker"):
        rf.warp_slide(source, move, grid, tmp_path / "o.zarr", workers=0)


# ---- canvases -------------------------------------------------------------------------------------------------------


def result(fixed: rf.Grid, moving: rf.Grid, shift: tuple[float, float] = (0.0, 0.0), scale: float = 1.0) -> Any:
    from fake_result import fake_result

    matrix = torch.diag(torch.tensor([scale, scale, 1.0], dtype=torch.float64))
    matrix[:2, 2] = torch.tensor(shift)
    return fake_result(fixed, moving, matrix, bend=0.0, weight=False)


def test_canvases() -> None:
    fixed, moving = rf.Grid((100, 120), 2.0, unit="µm"), rf.Grid((80, 50), 2.0, unit="µm")
    found = result(fixed, moving, (-40.0, 200.0))
    assert place.canvas_grid(found, "fixed") == fixed
    image = place.canvas_grid(found, "fixed", "moving")
    assert (image.shape, image.origin) == ((80, 50), (-40.0, 200.0))
    union = place.canvas_grid(found, "fixed", "union")
    assert (union.shape, union.origin) == ((120, 150), (-40.0, 0.0))
    back = place.canvas_grid(found, "moving", "fixed")
    assert (back.shape, back.origin) == ((100, 120), (40.0, -200.0))
    part = place.canvas_grid(found, "fixed", region=((10.0, 30.0), (-50.0, 8.5)))
    assert (part.shape, part.origin) == ((10, 5), (10.0, 0.0))
    fine = place.canvas_grid(found, "fixed", spacing=0.5)
    assert (fine.shape, fine.origin) == ((400, 480), (-0.75, -0.75))  # the same outer edges
    with pytest.raises(ValueError, match="wanted a region with pixels of the canvas, which covers -1:199, -1:239 µm"):
        place.canvas_grid(found, "fixed", region=((500.0, 600.0), (0.0, 9.0)))


def test_a_level_gives_its_pixel_size(tmp_path: Path) -> None:
    fixed, moving = rf.Grid((100, 120), 2.0, unit="µm"), rf.Grid((80, 50), 2.0, unit="µm")
    source = slides.on_disk(tmp_path / "s", slides.pixels((1, 320, 200)), levels=3, unit="µm", spacing=0.5)
    near = result(fixed, moving, scale=1.03)
    assert place.canvas_grid(near, "fixed", source=source, level=0).spacing == (0.5, 0.5)  # that of the fixed slide
    assert place.canvas_grid(near, "fixed", source=source, level=1).spacing == (1.0, 1.0)
    far = result(fixed, moving, scale=1.3)
    assert place.canvas_grid(far, "fixed", source=source, level=0).spacing == pytest.approx((0.65, 0.65))
    with pytest.raises(ValueError, match="wanted a level from 0 to 2"):
        place.canvas_grid(near, "fixed", source=source, level=3)


def test_every_level_of_a_pyramid_is_placed(tmp_path: Path) -> None:
    source = slides.on_disk(tmp_path / "s", slides.pixels((1, 320, 200)), levels=3, unit="nm", spacing=500.0)
    side = rf.Grid((80, 50), 2.0, (0.75, 0.75), "µm")
    placed = place.place_pyramid(source, side)
    assert [level.grid.spacing[0] for level in placed.levels] == pytest.approx([0.5, 1.0, 2.0])
    assert [level.grid.origin[0] for level in placed.levels] == pytest.approx([0.0, 0.25, 0.75])
    assert place.place_pyramid(source, side, 0.51).levels[1].grid.spacing == pytest.approx((1.02, 1.02))


def test_shards_run_inside_a_running_loop(tmp_path: Path) -> None:
    """As in a notebook, whose thread has a loop of its own."""
    plan = slides.plan(str(tmp_path / "s"), str(tmp_path / "o.zarr"))

    async def cell() -> None:
        with plan.started():
            plan.run(0)
        plan.write(1)

    asyncio.run(cell())
    assert same(plan.path, whole(plan))


def test_the_plan_tells_what_it_is(tmp_path: Path) -> None:
    plan = slides.plan(str(tmp_path / "s"), str(tmp_path / "o.zarr"))
    with plan.started():
        told = json.loads((plan.partial / "plan.json").read_text())
        assert told["what"] == "s onto 310 × 350 px of 1 px"
        store: Any = zarr.open_group(plan.partial / "store", mode="r")
        assert store.attrs["regframe"] == {"complete": False}
        with pytest.raises(ValueError, match="left unfinished"):
            rf.open(plan.partial / "store")
