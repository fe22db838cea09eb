"""OME-Zarr 0.5 output: every shard is one file of a sharded Zarr array and is written by one worker."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import threading
import weakref
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec
from zarr.storage import LocalStore

from ..data import ome_unit
from ..io.paths import shown
from .shards import Array, ShardStore

_COLOURS = ("FF0000", "00FF00", "0000FF")
_EFFORT = 3
"""Compression level of zstd: its own default."""


@dataclass(frozen=True)
class ZarrStore(ShardStore):
    """A sharded OME-Zarr group that becomes the output as it is."""

    def create(self) -> None:  # noqa: D102
        self.create_in(LocalStore(self.disk))

    def create_in(self, store: Any) -> Any:
        """The group with all its levels, empty, in a Zarr store."""
        root = zarr.create_group(store=store, zarr_format=3)
        root.update_attributes({"regframe": {"complete": False}})
        for level in range(len(self.levels)):
            self.create_level(root, level)
        return root

    def create_level(self, root: Any, level: int) -> Any:
        """The array of one level, empty, in a group."""
        shard = self.shards[level]
        return root.create_array(
            str(level),
            shape=(len(self.channels), *self.levels[level].shape),
            dtype=self.dtype,
            chunks=(1, self.tile, self.tile),
            shards=(len(self.channels), shard, shard),
            compressors=BloscCodec(cname="zstd", clevel=_EFFORT, shuffle="bitshuffle", typesize=self.dtype.itemsize),
            fill_value=self.fill if self.dtype.kind == "f" else int(self.fill),
            dimension_names=["c", "y", "x"],
        )

    def region_of(self, level: int, place: tuple[int, ...], pixels: Array) -> tuple[slice, ...]:
        """The region of a level that the pixels ``[C, y, x]`` of a shard fill."""
        shard = self.shards[level]
        return slice(None), *(slice(i * shard, i * shard + n) for i, n in zip(place, pixels.shape[1:], strict=True))

    def write(self, level: int, place: tuple[int, ...], pixels: Array | None) -> list[str]:  # noqa: D102
        name = f"{level}/c/0/{place[0]}/{place[1]}"
        file = self.disk / name
        # delete what a killed writer may have left: zarr would merge it with the new pixels
        file.unlink(missing_ok=True)
        if pixels is not None:
            alone(self._arrays[level]._async_array.setitem(self.region_of(level, place, pixels), pixels))
        return [name] if pixels is not None and file.exists() else []

    def read(self, level: int, region: Sequence[slice]) -> Array:  # noqa: D102
        return np.asarray(alone(self._arrays[level]._async_array.getitem((slice(None), *region))))

    def finish(self, target: Path, name: str, colors: Sequence[str], version: str) -> Path:  # noqa: D102
        root = zarr.open_group(LocalStore(self.disk), mode="r+")
        root.update_attributes(self.described(name, colors, version))
        return self.disk

    def described(self, name: str, colors: Sequence[str], version: str) -> dict[str, Any]:
        """The attributes of the group once every shard is written."""
        ome = {
            "version": "0.5",
            "multiscales": [self._multiscale(name, version)],
            "omero": {"channels": self._windows(colors)},
        }
        return {"ome": ome, "regframe": {"complete": True, "version": version}}

    @functools.cached_property
    def _arrays(self) -> list[Any]:
        root = zarr.open_group(LocalStore(self.disk), mode="r+")
        return [root[str(i)] for i in range(len(self.levels))]

    def _multiscale(self, name: str, version: str) -> dict[str, Any]:
        """Axes, and the scale and translation of every level."""
        grid = self.levels[0]
        unit = {} if grid.unit == "px" else {"unit": ome_unit(grid.unit)}
        axes: list[dict[str, Any]] = [{"name": "c", "type": "channel"}]
        axes += [{"name": axis, "type": "space", **unit} for axis in grid.axes]
        datasets = [
            {
                "path": str(i),
                "coordinateTransformations": [
                    {"type": "scale", "scale": [1.0, *level.spacing]},
                    {"type": "translation", "translation": [0.0, *level.origin]},
                ],
            }
            for i, level in enumerate(self.levels)
        ]
        kind = "nearest" if self.labels else "mean"
        method = "every second pixel along y and x" if self.labels else "mean over 2 × 2 pixels in y and x"
        made = {"description": method, "method": "regframe", "version": version}
        return {"name": shown(name), "axes": axes, "datasets": datasets, "type": kind, "metadata": made}

    def coarsest(self) -> Array:
        """All pixels ``[C, y, x]`` of the coarsest level."""
        return np.asarray(self._arrays[-1][...])

    def _windows(self, colors: Sequence[str]) -> list[dict[str, Any]]:
        """Display range of each channel: its range in the coarsest level, or the full range for 8-bit colour images."""
        coarsest = self.coarsest()
        channels = []
        for i, (name, color) in enumerate(zip(self.channels, colors, strict=True)):
            window = (float(coarsest[i].min()), float(coarsest[i].max()))
            if tuple(colors) == _COLOURS and self.dtype == np.uint8:
                window = (0.0, 255.0)
            low, high = (0.0 if math.isnan(v) else v for v in window)
            entry: dict[str, Any] = {"label": name, "color": color, "active": True}
            for key, length in zip(
                ("excitationWave", "emissionWave"), self.waves[i] if self.waves else (), strict=False
            ):
                if length is not None:  # the names that OMERO, whose rendering settings this block holds, gives them
                    entry[key] = length
            channels.append(entry | {"window": {"min": low, "max": high, "start": low, "end": high}})
        return channels


@contextlib.contextmanager
def quiet_zarr() -> Iterator[None]:
    """Switch off zarr's own concurrency: each of our workers already keeps one core busy."""
    with zarr.config.set({"async.concurrency": 1}):
        yield


_own = threading.local()


def alone(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine of zarr on an event loop of this thread; on zarr's single loop all workers would wait for each other."""
    if (
        asyncio._get_running_loop() is not None
    ):  # a notebook's thread has a loop that runs, and a thread has one at most
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(alone, work).result()
    if not hasattr(_own, "loop"):
        _own.loop = asyncio.new_event_loop()
        _own.loop.set_default_executor(ThreadPoolExecutor(1, "slide-codec"))
        weakref.finalize(threading.current_thread(), _own.loop.close)
    return _own.loop.run_until_complete(work)
