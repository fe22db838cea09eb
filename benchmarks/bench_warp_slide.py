"""Large slides: warping one tile by tile beside merely decoding and encoding it again, memory as it grows, workers.

The slide is made of real tissue (`data/`; noise where it is absent): tiles mirrored, turned and shaded so that nothing repeats,
cut to a large tissue outline. The rival reads every shard of it and writes it back with its pyramid, with the same codec, the
same shards and the same threads: what no warp can be faster than.

As a script, ``python benchmarks/bench_warp_slide.py --side 16384`` prints one line per measurement; each runs in a process of its
own, whose peak is that of the whole process tree.
"""

import argparse
import functools
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from zarr.codecs import BloscCodec

import regframe as rf
from regframe.data import Level, Pyramid
from regframe.slides import tiles
from regframe.slides import warp as slides_warp

TILE = 512
DATA = Path(os.environ.get("REGFRAME_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


# ---- the slide ------------------------------------------------------------------------------------------------------


@functools.cache
def tissue() -> list[np.ndarray[Any, Any]]:
    """Pieces ``[3, TILE, TILE]`` of real stained sections."""
    import PIL.Image

    out = []
    for path in sorted((DATA / "02_histology_landmarks").rglob("*.jpg"))[:12]:
        with PIL.Image.open(path) as picture:
            image = np.moveaxis(np.asarray(picture.convert("RGB")), -1, 0)
        for y in range(0, image.shape[1] - TILE + 1, TILE):
            for x in range(0, image.shape[2] - TILE + 1, TILE):
                piece = image[:, y : y + TILE, x : x + TILE]
                if piece.mean() < 225:  # mostly tissue
                    out.append(np.ascontiguousarray(piece))
    if not out:
        rng = np.random.default_rng(0)
        out = [rng.integers(90, 220, (3, TILE, TILE), dtype=np.uint8) for _ in range(4)]
    return out


def outline(side: int, y: np.ndarray[Any, Any], x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Whether a pixel is tissue: a lobed disc."""
    dy, dx = y / side - 0.5, x / side - 0.5
    angle, radius = np.arctan2(dy, dx), np.hypot(dy, dx)
    return radius < 0.40 + 0.04 * np.sin(5 * angle) + 0.02 * np.cos(11 * angle + 1)


def block(side: int, row: int, column: int) -> np.ndarray[Any, Any]:
    """One tile ``[3, TILE, TILE]`` of the slide; a tile is never the same as another."""
    rng = np.random.default_rng((row, column))
    pieces = tissue()
    y = (row * TILE + np.arange(TILE))[:, None]
    x = (column * TILE + np.arange(TILE))[None]
    inside = outline(side, y, x)
    piece = np.full((3, TILE, TILE), 243, np.uint8)
    if inside.any():
        found = np.rot90(pieces[rng.integers(len(pieces))], rng.integers(4), (1, 2))
        found = found[:, :, ::-1] if rng.random() < 0.5 else found
        shade = 0.85 + 0.25 * rng.random((3, 1, 1)) + 0.1 * np.sin(y / 190 + x / 260)
        piece = np.where(inside, np.clip(found * shade, 0, 255), piece).astype(np.uint8)
    return piece


def make_slide(path: Path, side: int) -> None:
    """The finest level of an OME-Zarr slide, of `warp.CHUNK` chunks in shards."""
    if path.exists():
        return
    aside = path.with_suffix(".making")
    shutil.rmtree(aside, ignore_errors=True)
    array: Any = new_array(aside, (3, side, side), 4096)
    for y in range(0, side, 4096):
        for x in range(0, side, 4096):
            rows, columns = (range(a // TILE, -(-min(a + 4096, side) // TILE)) for a in (y, x))
            pixels = np.concatenate(
                [np.concatenate([block(side, r, c) for c in columns], axis=2) for r in rows], axis=1
            )
            array[:, y : y + 4096, x : x + 4096] = pixels[:, : side - y, : side - x]
    aside.rename(path)


def new_array(path: Path, shape: tuple[int, ...], shard: int) -> Any:
    """An empty array as `warp.SlideWarp` makes them."""
    return zarr.create_array(
        path, shape=shape, dtype="u1", chunks=(1, 512, 512), shards=(3, shard, shard), fill_value=255,
        compressors=BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle", typesize=1),
    )  # fmt: skip


def read(path: str, region: tuple[slice, ...]) -> np.ndarray[Any, Any]:
    """Pixels of a region."""
    return np.asarray(opened(path)[(slice(None), *region)])


@functools.cache
def opened(path: str) -> Any:
    """The array, opened once per process."""
    return zarr.open_array(path, mode="r")


def pyramid(path: Path) -> Pyramid:
    """The slide, lazy."""
    array = opened(str(path))
    level = Level(rf.Grid(array.shape[1:]), (1, 512, 512), functools.partial(read, str(path)))
    return Pyramid((level,), np.dtype("u1"), ("red", "green", "blue"), name=path.name)


def read_made(side: int, region: tuple[slice, ...]) -> np.ndarray[Any, Any]:
    """Pixels of a region of a slide that lies nowhere."""
    first = [r.start // TILE for r in region]
    rows = [
        np.concatenate([block(side, r, c) for c in range(first[1], -(-region[1].stop // TILE))], axis=2)
        for r in range(first[0], -(-region[0].stop // TILE))
    ]
    inner = (slice(r.start - f * TILE, r.stop - f * TILE) for r, f in zip(region, first, strict=True))
    return np.concatenate(rows, axis=1)[(slice(None), *inner)]


def made(side: int) -> Pyramid:
    """A slide too large to be kept: its tiles are made as they are read."""
    level = Level(rf.Grid((side, side)), (1, TILE, TILE), functools.partial(read_made, side))
    return Pyramid((level,), np.dtype("u1"), ("red", "green", "blue"), name=f"{side}")


def known_map(side: int) -> rf.Transform:
    """A smooth bend of 0.4 % of the side, a turn of 4 degrees and a shift."""
    nodes = 24
    spacing = side / (nodes - 5)
    grid = rf.Grid((nodes, nodes), spacing, (-2 * spacing,) * 2)
    at = torch.linspace(0, 2 * math.pi, nodes, dtype=torch.float64)
    bend = torch.stack([torch.sin(2 * at)[:, None] * torch.cos(at), torch.cos(at)[:, None] * torch.sin(3 * at)])
    flow = rf.Flow(0.004 * side * bend[None].repeat(3, 1, 1, 1), grid)
    c, s = math.cos(math.radians(4)), math.sin(math.radians(4))
    linear = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    matrix = torch.eye(3, dtype=torch.float64)
    middle = torch.full((2,), side / 2, dtype=torch.float64)
    matrix[:2, :2], matrix[:2, 2] = linear, middle - linear @ middle + 0.003 * side
    return rf.Sequence((flow, rf.Affine(matrix)))


# ---- what is measured, each in a process of its own --------------------------------------------------------------------


def warp(source: Path, out: Path, workers: int) -> None:
    """The slide through the known map; one that lies nowhere is made as it is read."""
    image = pyramid(source) if source.exists() else made(int(source.stem))
    rf.warp_slide(image, known_map(image.grid.shape[0]), image.grid, out, workers=workers)


def sample(source: Path, out: Path, workers: int) -> None:
    """Eight shards in the middle of a slide of `made`, whose side is the source's name."""
    image = made(int(source.stem))
    plan = slides_warp.SlideWarp(image, known_map(image.grid.shape[0]), image.grid, out)
    middle = plan.rounds[0][len(plan.rounds[0]) // 2 :][:8]
    with plan.started(), ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(plan.run, middle))


def recode(source: Path, out: Path, workers: int) -> None:
    """The rival: every shard decoded, halved and encoded, nothing else, by the same threads."""
    image = pyramid(source)
    plan = slides_warp.SlideWarp(image, rf.Affine.identity(2), image.grid, out)

    def plain(level: Level, pull: Any, grid: Any, region: tuple[slice, ...], *_: Any) -> np.ndarray[Any, Any]:
        return level.read(region)

    tiles.warp_tile = plain  # type: ignore[assignment]
    plan.write(workers)


def measure(what: str, source: Path, workers: int) -> dict[str, float]:
    """Seconds and peak bytes of the process tree of one run."""
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        out = Path(folder) / "out.ome.zarr"
        process = subprocess.Popen(
            [sys.executable, __file__, "--run", what, str(source), str(out), str(workers)],
            stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        peak = [0]
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.02):
                peak[0] = max(peak[0], tree_bytes(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        text, _ = process.communicate()
        done.set()
        watcher.join()
        assert process.returncode == 0
    return {**json.loads(text.splitlines()[-1]), "peak": peak[0]}


def tree_bytes(pid: int) -> int:
    """Resident bytes of a process and its children."""
    total = 0
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        total += pages * os.sysconf("SC_PAGE_SIZE")
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(tree_bytes(int(child)) for child in (task / "children").read_text().split())
    except (OSError, IndexError):
        pass
    return total


def run_child(what: str, source: str, out: str, workers: str) -> None:
    """Time one run, imports and the first kernel aside."""
    torch.set_num_threads(1)
    rf.resample(rf.Image(torch.zeros(1, 8, 8), rf.Grid((8, 8))), rf.Affine.identity(2), rf.Grid((8, 8)))
    began, cpu = time.perf_counter(), time.process_time()
    {"warp": warp, "recode": recode, "sample": sample}[what](Path(source), Path(out), int(workers))
    print(json.dumps({"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}))


def compare(source: Path, workers: int, rounds: int, report: Callable[[str], None]) -> None:
    """Warp and rival in turns."""
    rows: dict[str, list[dict[str, float]]] = {"recode": [], "warp": []}
    for _ in range(rounds):
        for what, found in rows.items():
            found.append(measure(what, source, workers))
    best = {what: min(r["seconds"] for r in found) for what, found in rows.items()}
    cpu = {what: min(r["cpu"] for r in found) for what, found in rows.items()}
    peak = max(r["peak"] for r in rows["warp"])
    side = opened(str(source)).shape[1]
    report(
        f"{side} x {side} x 3 uint8, {workers} workers: warp {best['warp']:.1f} s ({side**2 / best['warp'] / 1e6:.1f} Mpx/s), "
        f"decode + encode {best['recode']:.1f} s, ratio {best['warp'] / best['recode']:.2f} "
        f"(of processor time {cpu['warp'] / cpu['recode']:.2f}), peak {peak / 2**20:.0f} MiB"
    )


def scaling(source: Path, rounds: int, report: Callable[[str], None]) -> None:
    """One worker beside two, in turns."""
    rows: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for workers, found in rows.items():
            found.append(measure("warp", source, workers)["seconds"])
    one, two = min(rows[1]), min(rows[2])
    report(f"one worker {one:.1f} s, two {two:.1f} s: {one / two:.2f} times as fast")


# ---- as tests -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where slides are made, once."""
    return tmp_path_factory.mktemp("slides")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
def test_warp_beside_decode_and_encode(small: bool, folder: Path, report: Callable[[str], None]) -> None:
    side = 1024 if small else 8192
    make_slide(folder / f"{side}.zarr", side)
    compare(folder / f"{side}.zarr", 2, 1 if small else 3, report)
    if not small:
        scaling(folder / f"{side}.zarr", 2, report)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
def test_memory_does_not_grow(small: bool, folder: Path, report: Callable[[str], None]) -> None:
    peaks = []
    for side in (1024,) if small else (4096, 16384):
        make_slide(folder / f"{side}.zarr", side)
        peaks.append(measure("warp", folder / f"{side}.zarr", 2)["peak"])
        report(f"{side} x {side} x 3: peak {peaks[-1] / 2**20:.0f} MiB of the process tree")
    if not small:
        peaks.append(measure("sample", folder / "65536.zarr", 2)["peak"])
        report(f"65536 x 65536 x 3, eight of its shards: peak {peaks[-1] / 2**20:.0f} MiB")
    assert max(peaks) < 2 << 30


def test_the_slide_does_not_repeat() -> None:
    side = 4096
    assert not np.array_equal(block(side, 3, 3), block(side, 3, 4))
    assert (block(side, 0, 0) == 243).all()  # glass


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        run_child(*sys.argv[2:])
    else:
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("--side", type=int, nargs="+", default=[8192])
        parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "regframe-slides")
        parser.add_argument("--workers", type=int, default=2)
        parser.add_argument("--rounds", type=int, default=3)
        parser.add_argument("--only", choices=["ratio", "memory", "workers"], nargs="+", default=["ratio", "workers"])
        given = parser.parse_args()
        given.folder.mkdir(parents=True, exist_ok=True)
        for length in given.side:
            image = given.folder / f"{length}.zarr"
            if length <= 40_000:  # larger ones are made as they are read, which takes most of the time
                make_slide(image, length)
            if "ratio" in given.only:
                compare(image, given.workers, given.rounds, print)
            if "workers" in given.only:
                scaling(image, given.rounds, print)
            if "memory" in given.only:
                found = measure("warp", image, given.workers)
                print(
                    f"{length} x {length} x 3, the whole: peak {found['peak'] / 2**20:.0f} MiB, {found['seconds']:.1f} s",
                    flush=True,
                )
