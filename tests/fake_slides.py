"""Large images for tests of what is done tile by tile: a zarr pyramid on disk behind a `Pyramid`, a bent map, a slow reader."""

from __future__ import annotations

import functools
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from fake_result import smooth_velocity

import regframe as rf
from regframe.data import Level, Pyramid
from regframe.slides import tiles
from regframe.slides.warp import SlideOptions, SlideWarp


def read(path: str, delay: float, region: tuple[slice, ...]) -> np.ndarray[Any, Any]:
    time.sleep(delay)
    array: Any = zarr.open_array(path, mode="r")
    return np.asarray(array[(slice(None), *region)])


def pixels(shape: tuple[int, ...], dtype: str = "u1", seed: int = 0) -> np.ndarray[Any, Any]:
    """Blobs on a bright ground with noise over them, ``[C, y, x]``; whole numbers for integer types."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((1, shape[0], 9, 11)))
    smooth = torch.nn.functional.interpolate(coarse, size=shape[1:], mode="bicubic", align_corners=True)[0].numpy()
    values = 0.2 + 0.6 * smooth.clip(0, 1) + 0.1 * rng.random(shape)
    edge = np.minimum.outer(*(np.minimum(np.arange(n), np.arange(n)[::-1]) for n in shape[1:]))
    values = np.where(edge < 12, 0.95, values)
    kind = np.dtype(dtype)
    return values.astype(kind) if kind.kind == "f" else (values * min(np.iinfo(kind).max, 60000)).astype(kind)


def on_disk(
    folder: Path,
    data: np.ndarray[Any, Any],
    levels: int = 1,
    chunk: int = 64,
    labels: bool = False,
    delay: float = 0.0,
    channels: tuple[str, ...] = (),
    unit: str = "px",
    spacing: float = 1.0,
) -> Pyramid:
    """The pixels as a pyramid of zarr arrays in ``folder``."""
    grid, found = rf.Grid(data.shape[1:], spacing, unit=unit), []
    for i in range(levels):
        path = folder / str(i)
        if not path.exists():
            store: Any = zarr.create_array(path, shape=data.shape, chunks=(1, chunk, chunk), dtype=data.dtype)
            store[...] = data
        found.append(Level(grid, (1, chunk, chunk), functools.partial(read, str(path), delay)))
        grid, data = tiles.halved_grid(grid, labels), tiles.halved(data, labels)
    names = channels or ("red", "green", "blue")[: data.shape[0]] + tuple(str(i) for i in range(3, data.shape[0]))
    return Pyramid(tuple(found), data.dtype, names, labels=labels, name=folder.name)


def bent(grid: rf.Grid, bend: float = 12.0, turn: float = 0.15, nodes: int = 7) -> rf.Transform:
    """A smooth map of the grid's space, turned and shifted too."""
    spacing = tuple(e / (nodes - 3) for e in grid.extent)
    v_grid = rf.Grid((nodes, nodes), spacing, tuple(-s for s in spacing), grid.unit)
    flow = rf.Flow(smooth_velocity(v_grid, bend * grid.pixel, seed=3), v_grid, n_steps=4)
    c, s = np.cos(turn), np.sin(turn)
    middle = torch.tensor(grid.center, dtype=torch.float64)
    linear = torch.tensor([[c, -s], [s, c]], dtype=torch.float64) * 1.02
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[:2, :2] = linear
    matrix[:2, 2] = middle - linear @ middle + 9.3 * grid.pixel
    return rf.Sequence((flow, rf.Affine(matrix, grid.unit, grid.unit)))


def plan(folder: str, path: str, delay: float = 0.0, **options: Any) -> SlideWarp:
    """A warp that a process of its own can make again from two paths."""
    data = pixels((3, 300, 340))
    pyramid = on_disk(Path(folder), data, delay=delay)
    grid = rf.Grid((310, 350))
    cut = SlideOptions(**({"chunk": 32, "shard": 64} | options))
    return SlideWarp(pyramid, bent(pyramid.grid), grid, rf.locate(path), cut)


if __name__ == "__main__":  # folder, output, seconds per read, workers, shard, chunk where it is not the usual one
    cut = dict(zip(("shard", "chunk"), map(int, sys.argv[5:]), strict=False))
    plan(sys.argv[1], sys.argv[2], float(sys.argv[3]), **cut).write(int(sys.argv[4]))
