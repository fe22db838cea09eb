"""The merged slide: channels, names, colours, wavelengths, pixels; what is dropped, subtracted, put beside, resumed."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import zarr
from click.testing import CliRunner
from fake_rounds import MAPS, Register, bytes_of, section, shown

import regframe as rf
from regframe.cli import main
from regframe.group import merge, pairs
from regframe.group.group import Group
from regframe.io.tasks import Threads
from regframe.slides.merged import merged
from regframe.slides.warp import SlideOptions

MARKERS = (("CD3", "CD8"), ("CD20", "CD68"), ("AF1", "AF2"))
WAVES = (461.0, 519.0, 668.0)


def planes(k: int) -> np.ndarray[Any, Any]:
    """DAPI and two markers of round ``k``, ``[3, H, W]`` uint16; of the third round a background."""
    bases = (section(0), section(20 + k), section(40 + k))
    out = np.stack([shown(base, MAPS[k], 3 * k + i).data[0].numpy() for i, base in enumerate(bases)])
    if k == 2:
        out[1:] = 40
    return out


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three rounds of three channels with colours and wavelengths, 0.5 µm."""
    folder = tmp_path_factory.mktemp("rounds")
    out = []
    for k, name in enumerate("abc"):
        channels = [
            {"Name": n, "Color": c, "EmissionWavelength": w, "EmissionWavelengthUnit": "nm"}
            for n, c, w in zip(("DAPI", *MARKERS[k]), (0x0000FFFF, 0x00FF00FF, -16776961), WAVES, strict=True)
        ]
        size = {f"PhysicalSize{a}{u}": v for a in "XY" for u, v in (("", 0.5), ("Unit", "µm"))}
        out.append(folder / f"{name}.ome.tif")
        tifffile.imwrite(
            out[-1],
            planes(k),
            ome=True,
            photometric="minisblack",
            metadata={"axes": "CYX", "Channel": channels, **size},
        )
    return out


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Register:
    """`register` that knows the maps of a, b and c, in µm."""
    maps = {}
    for name, matrix in zip("abc", MAPS, strict=False):
        maps[name] = matrix.copy()
        maps[name][:2, 2] *= 0.5
    stand_in = Register(maps)
    monkeypatch.setattr(pairs, "register", stand_in)
    return stand_in


@pytest.fixture
def group(known: Register, files: list[Path]) -> Group:
    """The three rounds on the first."""
    return rf.register_group(files, transform="affine", reference="a")


def test_all_channels_of_all_rounds_with_their_names_colours_and_wavelengths(group: Group, tmp_path: Path) -> None:
    names = ("DAPI (a)", "CD3", "CD8", "DAPI (b)", "CD20", "CD68", "DAPI (c)", "AF1", "AF2")
    for suffix in ("ome.tif", "ome.zarr"):
        (path,) = rf.merge_group(group, tmp_path / f"m.{suffix}", workers=1)
        found = rf.open_pyramid(path)
        assert found.channels == names
        assert found.colors == ("0000FF", "00FF00", "FF0000") * 3
        assert [wave[1] for wave in found.waves] == list(WAVES) * 3
        assert found.dtype == np.uint16
        assert found.grid == rf.open_pyramid(group.sources[0]).grid
    raw, root = tifffile.imread(tmp_path / "m.ome.tif"), zarr.open_group(tmp_path / "m.ome.zarr", mode="r")
    stored = np.asarray(root["0"][...])  # type: ignore[index]
    assert np.array_equal(raw, stored)
    assert np.array_equal(stored[:3], planes(0))
    for k in (1, 2):
        image = rf.open(group.sources[k])
        wanted = rf.resample(image, group[k].transform, found.grid, 0.0).data.numpy()
        assert np.array_equal(stored[3 * k : 3 * k + 3], wanted)


def test_repeats_are_dropped_and_a_background_is_subtracted(group: Group, tmp_path: Path) -> None:
    (path,) = rf.merge_group(group, tmp_path / "m.ome.zarr", repeats="drop", subtract="c", workers=1)
    found = rf.open(path)
    assert found.channels == ("DAPI", "CD3", "CD8", "CD20", "CD68")
    assert found.data.dtype == torch.uint16
    own = planes(0).astype(int)
    inside = rf.resample(rf.open(group.sources[2]), group[2].transform, found.grid, 0.0).data[1].numpy().astype(int)
    assert np.array_equal(found.data[0].numpy(), own[0])  # the stain of the nucleus stays
    assert np.array_equal(found.data[1].numpy(), np.maximum(own[1] - inside, 0))
    with pytest.raises(ValueError, match="wanted a background other than the reference, got a"):
        rf.merge_group(group, tmp_path / "n.ome.zarr", subtract="a")
    with pytest.raises(ValueError, match="wanted as background one of a, b, c, got 'q'"):
        rf.merge_group(group, tmp_path / "n.ome.zarr", subtract="q")


def test_a_stopped_merge_goes_on_to_the_same_bytes(
    group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = merge.planned(group, tmp_path / "whole.ome.zarr", None).slide
    assert plan is not None
    options = SlideOptions(background=0.0, chunk=16, shard=32)

    def sharded(name: str) -> Any:
        return merged(plan.layers, plan.grid, tmp_path / name, "m", None, options)

    sharded("whole.ome.zarr").write(1)
    cut = sharded("cut.ome.zarr")
    with cut.started():
        for index in (0, 3, 4):
            cut.run(index)
    assert not (tmp_path / "cut.ome.zarr").exists()
    ran: list[int] = []
    again = sharded("cut.ome.zarr")
    run = type(again).run
    monkeypatch.setattr(type(again), "run", lambda self, index: (ran.append(index), run(self, index)))
    again.write(1)
    assert not {0, 3, 4} & set(ran)
    assert bytes_of(tmp_path / "cut.ome.zarr") == bytes_of(tmp_path / "whole.ome.zarr")


def test_the_command_writes_it_and_again_changes_nothing(known: Register, files: list[Path], tmp_path: Path) -> None:
    arguments = ["rounds", *map(str, files), "-o", str(tmp_path / "OUT"), "--transform", "affine", "--reference", "a"]
    arguments += ["--merged", str(tmp_path / "m.ome.tif"), "--repeats", "drop", "--workers", "1", "--json"]
    first = CliRunner().invoke(main, arguments)
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout)["merged"] == [str(tmp_path / "m.ome.tif")]
    before = bytes_of(tmp_path)
    second = CliRunner().invoke(main, arguments)
    assert second.exit_code == 0, second.output
    assert bytes_of(tmp_path) == before
    other = CliRunner().invoke(main, [a if a != "drop" else "keep" for a in arguments])
    assert other.exit_code == 2
    assert "m.ome.tif exists" in other.output
    alone = CliRunner().invoke(main, ["rounds", *map(str, files), "-o", str(tmp_path / "X"), "--subtract", "c"])
    assert alone.exit_code == 2
    assert "wanted --merged FILE beside --subtract" in alone.output


def test_stained_tissue_is_written_beside(known: Register, files: list[Path], tmp_path: Path) -> None:
    rgb = 255 - np.repeat((planes(1)[:1] // 8).clip(0, 255).astype(np.uint8), 3, axis=0)
    size = {f"PhysicalSize{a}{u}": v for a in "XY" for u, v in (("", 0.5), ("Unit", "µm"))}
    tifffile.imwrite(
        tmp_path / "b.ome.tif", rgb.transpose(1, 2, 0), ome=True, photometric="rgb", metadata={"axes": "YXS", **size}
    )
    group = rf.register_group([files[0], tmp_path / "b.ome.tif"], transform="affine", reference="a")
    assert group.metrics["images"][1]["channel_why"] == "colours"
    slide, beside = rf.merge_group(group, tmp_path / "m.ome.zarr", workers=1)
    assert beside.name == "m.b.ome.zarr"
    assert rf.open(slide).channels == ("DAPI", "CD3", "CD8")
    found = rf.open(beside)
    assert found.channels == ("red", "green", "blue")
    assert found.data.dtype == torch.uint8
    assert found.grid == rf.open(slide).grid


def test_types_that_differ_are_held_by_one(known: Register, tmp_path: Path) -> None:
    small = rf.Image.from_array(
        (planes(0)[:1] // 16).astype(np.uint8), "cyx", 0.5, unit="µm", channels=("DAPI",), name="a"
    )
    large = rf.Image.from_array(planes(1)[:2], "cyx", 0.5, unit="µm", channels=("DAPI", "X"), name="b")
    group = rf.register_group([small, large], transform="affine", reference="a")
    (path,) = rf.merge_group(group, tmp_path / "m.ome.zarr", images=[small, large], workers=1)
    found = rf.open(path)
    assert found.data.dtype == torch.uint16
    assert np.array_equal(found.data[0].numpy(), small.data[0].numpy())
    with pytest.raises(ValueError, match="which is no file; pass them as images="):
        rf.merge_group(group, tmp_path / "n.ome.zarr")


def test_a_pixel_size_that_was_stated_is_stated_again(known: Register, tmp_path: Path) -> None:
    paths = []
    for k, name in enumerate("ab"):
        paths.append(str(tmp_path / f"{name}.tif"))
        tifffile.imwrite(paths[-1], planes(k)[:2], photometric="minisblack", metadata={"axes": "CYX"})
    arguments = [
        "rounds",
        *paths,
        "-o",
        str(tmp_path / "OUT"),
        "--transform",
        "affine",
        "--reference",
        "a",
        "--mpp",
        "0.5",
    ]
    arguments += [
        "--channel",
        "0",
        "--merged",
        str(tmp_path / "m.ome.zarr"),
        "--matches",
        str(tmp_path / "m.csv"),
        "--workers",
        "1",
    ]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    found = rf.open_pyramid(tmp_path / "m.ome.zarr")
    assert (found.grid.spacing, found.grid.unit) == ((0.5, 0.5), "µm")
    assert found.channels == ("a 0", "a 1", "b 0", "b 1")


def test_workers_of_others_write_the_same_bytes(group: Group, files: list[Path], tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    rf.merge_group(group, tmp_path / "a" / "m.ome.zarr")
    seen: list[rf.Progress] = []
    images = [rf.open(file, adapter="image") for file in files]
    with ThreadPoolExecutor(2) as client:
        rf.merge_group(group, tmp_path / "b" / "m.ome.zarr", client=client, progress=seen.append)
        assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")  # and nothing lies beside the slide
        assert seen[-1].done == seen[-1].total
        with pytest.raises(ValueError, match="wanted files as images beside a client, got an image in memory"):
            rf.merge_group(group, tmp_path / "c.ome.zarr", images=images, client=client)
    with pytest.raises(ValueError, match=r"wanted a dask\.distributed\.Client"):
        rf.merge_group(group, tmp_path / "c.ome.zarr", client="tcp://127.0.0.1:8786")


def test_a_shard_that_fails_elsewhere_is_said_and_the_same_call_goes_on(
    group: Group, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(job: merge.MergeJob, number: int, index: int) -> int:
        raise OSError("the disk of worker 2 is full")

    with ThreadPoolExecutor(1) as client:
        with monkeypatch.context() as patch:
            patch.setattr(merge, "run_shard", lost)
            with pytest.raises(OSError, match="the disk of worker 2 is full"):
                rf.merge_group(group, tmp_path / "m.ome.zarr", client=client)
        assert not (tmp_path / "m.ome.zarr").exists()
        (path,) = rf.merge_group(group, tmp_path / "m.ome.zarr", client=client)
    assert rf.open_pyramid(path).grid.shape == rf.open_pyramid(files[0]).grid.shape


def test_the_command_spreads_it_over_a_scheduler(
    known: Register, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["rounds", *map(str, files), "--transform", "affine", "--reference", "a"]
    asked: list[tuple[str, int | None]] = []

    @contextlib.contextmanager
    def cluster_at(address: str, here: int | None, what: str) -> Iterator[Threads]:
        asked.append((address, here))
        yield Threads(2)

    monkeypatch.setattr(sys.modules["regframe.cli.rounds"], "cluster_at", cluster_at)
    for name, more in (("x", []), ("y", ["--scheduler", "tcp://somewhere:8786"])):
        (tmp_path / name).mkdir()
        merged_to = ["-o", str(tmp_path / name / "OUT"), "--merged", str(tmp_path / name / "m.ome.zarr")]
        done = CliRunner().invoke(main, [*arguments, *merged_to, *more])
        assert done.exit_code == 0, done.output
    assert asked == [("tcp://somewhere:8786", None)]
    assert bytes_of(tmp_path / "x" / "m.ome.zarr") == bytes_of(tmp_path / "y" / "m.ome.zarr")
    alone = CliRunner().invoke(main, [*arguments, "-o", str(tmp_path / "z"), "--scheduler", "s"])
    assert alone.exit_code == 2
    assert "wanted --merged FILE beside --scheduler" in alone.output
