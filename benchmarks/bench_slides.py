"""Reading of slides: a region through a pyramid against its library, and averaging over blocks against mere decoding, with the
memory each takes."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import records
import tifffile
import zarr
from zarr.codecs import BloscCodec

import regframe as rf

TILE = 512

CHILD = """
import sys
from pathlib import Path
import numpy as np
import regframe as rf

def kib(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))

rf.open(np.zeros((8, 8), np.uint8))
Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
before = kib("VmRSS:")
image = rf.open(sys.argv[1])
print(kib("VmHWM:") - before, image.grid.shape[0])
"""


def make(folder: Path, side: int) -> dict[str, Path]:
    """The same pixels ``[3, side, side]`` as OME-Zarr of one level and as tiled TIFF."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 200, (side // 8, side // 8, 3), dtype=np.uint8)
    pixels = np.kron(coarse, np.ones((8, 8, 1), np.uint8)) + rng.integers(0, 20, (side, side, 1), dtype=np.uint8)
    group: Any = zarr.open_group(folder / "a.zarr", mode="w")
    blosc = BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle", typesize=1)
    array = group.create_array("0", shape=(3, side, side), dtype="u1", chunks=(3, TILE, TILE), compressors=blosc)
    array[...] = np.moveaxis(pixels, -1, 0)
    axes = [{"name": a, "type": "channel" if a == "c" else "space"} for a in "cyx"]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [{"path": "0"}]}]}
    tifffile.imwrite(folder / "a.tif", pixels, tile=(TILE, TILE), compression="zlib", photometric="rgb")
    return {"zarr": folder / "a.zarr", "tiff": folder / "a.tif"}


def in_turns(rounds: int, *works: Callable[[], object]) -> list[float]:
    """Median seconds of each, taken in turns."""
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for own, work in zip(seconds, works, strict=True):
            began = time.perf_counter()
            work()
            own.append(time.perf_counter() - began)
    return [statistics.median(own) for own in seconds]


@pytest.mark.parametrize("kind", ["zarr", "tiff"])
def test_regions_against_the_library(tmp_path: Path, small: bool, report: Callable[[str], None], kind: str) -> None:
    side = 1024 if small else 8192
    path = make(tmp_path, side)[kind]
    level = rf.open_pyramid(path).levels[0]
    corners = [(y, x) for y in range(0, side, TILE) for x in range(0, side, TILE)][: 4 if small else 64]

    def own() -> list[np.ndarray]:  # type: ignore[type-arg]
        return [level.read((slice(y, y + TILE), slice(x, x + TILE))) for y, x in corners]

    if kind == "zarr":
        array: Any = zarr.open_array(path / "0", mode="r")

        def other() -> list[np.ndarray]:  # type: ignore[type-arg]
            return [array[:, y : y + TILE, x : x + TILE] for y, x in corners]
    else:

        def other() -> list[np.ndarray]:  # type: ignore[type-arg]
            with tifffile.TiffFile(path) as file:
                store: Any = zarr.open_array(file.aszarr(), mode="r")
                return [np.moveaxis(store[y : y + TILE, x : x + TILE], -1, 0) for y, x in corners]

    assert all(np.array_equal(a, b) for a, b in zip(own(), other(), strict=True))
    ours, theirs = in_turns(1 if small else 7, own, other)
    report(f"{kind}: regions of {TILE}² take {ours / theirs:.2f} times what the library alone takes")
    records.record(benchmark="regions", kind=kind, side=side, seconds=ours, library=theirs)


def test_averaging_against_decoding(tmp_path: Path, small: bool, report: Callable[[str], None]) -> None:
    side = 3072 if small else 16384
    path = make(tmp_path, side)["zarr"]
    array: Any = zarr.open_array(path / "0", mode="r")

    def decode() -> None:
        for y in range(0, side, TILE):
            array[:, y : y + TILE]

    image = rf.open(path)
    assert isinstance(image, rf.Image)
    assert image.reading is not None
    factor = image.reading.factor[0]
    block = np.asarray(array[:, 5 * factor : 6 * factor, 7 * factor : 8 * factor]).mean(axis=(1, 2))
    assert np.abs(image.data[:, 5, 7].numpy() - block).max() <= 0.5
    ours, theirs = in_turns(1 if small else 3, lambda: rf.open(path), decode)
    done = subprocess.run([sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, check=True)
    peak, rows = map(int, done.stdout.split())
    assert rows == image.grid.shape[0]
    report(
        f"{side}² x 3 averaged to {rows}²: {ours / theirs:.2f} times the time of decoding it, "
        f"{peak / 1024:.0f} MiB of {side**2 * 3 / 2**20:.0f} MiB"
    )
    records.record(benchmark="averaging", side=side, seconds=ours, decoding=theirs, peak_bytes=peak * 1024)
