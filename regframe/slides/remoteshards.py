"""OME-Zarr output in a remote store: every shard is one object, which appears as a whole or not at all.

The shards lie under their final names from the beginning. What makes an image of them, the metadata of the group, is written
last: until then no reader takes the output for an image. Marks of the shards that are done lie under ``NAME.zarr.partial/``.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.core.buffer import cpu
from zarr.storage import MemoryStore

from ..plugins import PLAN
from ..remote.address import Remote
from .shards import Array
from .unfinished import DONE, LOCK, Unfinished, other_plan, same_plan
from .zarrshards import ZarrStore, alone

_ROOT = "zarr.json"
"""Name of the metadata of the group, without which a store is none."""
_LEASE = 120
"""Seconds after which a lock that was not renewed counts for nothing, where its process cannot be asked whether it lives: a
writer renews it four times in this while."""


@dataclass(frozen=True)
class RemoteShards(ZarrStore):
    """A sharded OME-Zarr group whose objects are put into a remote store."""

    @property
    def _root(self) -> Remote:
        assert isinstance(self.folder, Remote)
        return self.folder

    def create(self) -> None:  # noqa: D102
        made: dict[str, Any] = {}
        self.create_in(MemoryStore(made))
        for name in sorted(set(made) - {_ROOT}):
            (self._root / name).write_bytes(made[name].to_bytes())

    def write(self, level: int, place: tuple[int, ...], pixels: Array | None) -> list[str]:  # noqa: D102
        if pixels is None:
            return []
        made: dict[str, Any] = {}
        array = self.create_level(zarr.create_group(store=MemoryStore(made), zarr_format=3), level)
        alone(array._async_array.setitem(self.region_of(level, place, pixels), pixels))
        name = f"{level}/c/0/{place[0]}/{place[1]}"
        if name not in made:
            return []
        (self._root / name).write_bytes(made[name].to_bytes())
        return [name]

    def read(self, level: int, region: Sequence[slice]) -> Array:  # noqa: D102
        held: dict[str, Any] = {}
        array = self.create_level(zarr.create_group(store=MemoryStore(held), zarr_format=3), level)
        spans = (range(s.start // self.shards[level], -(-s.stop // self.shards[level])) for s in region)
        for row, column in itertools.product(*spans):  # by whole shards: zarr would ask for each chunk
            name = f"{level}/c/0/{row}/{column}"
            with contextlib.suppress(FileNotFoundError):  # background
                held[name] = cpu.Buffer.from_bytes((self._root / name).read_bytes())
        return np.asarray(alone(array._async_array.getitem((slice(None), *region))))

    def finish(self, target: Path, name: str, colors: Sequence[str], version: str) -> Path:  # noqa: D102
        made: dict[str, Any] = {}
        self.create_in(MemoryStore(made)).update_attributes(self.described(name, colors, version))
        (self._root / _ROOT).write_bytes(made[_ROOT].to_bytes())
        return target

    def coarsest(self) -> Array:  # noqa: D102
        last = len(self.levels) - 1
        return self.read(last, tuple(slice(0, n) for n in self.levels[last].shape))


@dataclass(frozen=True)
class InStore(Unfinished):
    """Marks of an unfinished output in a remote store.

    Args:
        path: the output.
        partial: what the names of the marks begin with.
    """

    path: Remote
    partial: Remote

    def check_target(self, overwrite: bool) -> None:  # noqa: D102
        if (self.path / _ROOT).is_file():
            if not overwrite:
                raise FileExistsError(
                    f"output {self.path} exists; choose another name, or pass --overwrite to replace it"
                )
        elif next(self.path.keys(), None) is not None and not (self.partial / PLAN).is_file():
            raise FileExistsError(
                f"output {self.path} holds what is no Zarr store; it is left alone: choose another name"
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:  # noqa: D102
        place = self.partial / LOCK
        if place.is_file():
            self._check_stale(place.read_bytes())
        place.write_bytes(_lease())
        ended = threading.Event()

        def renew() -> None:
            while not ended.wait(_LEASE / 4):
                with contextlib.suppress(OSError):
                    place.write_bytes(_lease())

        thread = threading.Thread(target=renew, name="slide-lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            with contextlib.suppress(OSError):
                place.unlink()

    def _check_stale(self, lease: bytes) -> None:
        """BlockingIOError where the process that wrote a lease may still live."""
        try:
            found = json.loads(lease)
            host, pid, age = str(found["host"]), int(found["pid"]), time.time() - float(found["time"])
        except (ValueError, KeyError, TypeError):
            return
        if age > _LEASE or (host == socket.gethostname() and not _lives(pid)):
            return
        raise BlockingIOError(
            f"wanted {self.path} for this process alone, got one that process {pid} on {host} writes, heard of "
            f"{max(age, 0):.0f} s ago; wait for it (if it was killed, {_LEASE} s), or choose another name"
        )

    def prepare(self, overwrite: bool, wanted: str, what: str, create: Callable[[], object]) -> None:  # noqa: D102
        plan = self.partial / PLAN
        if plan.is_file():
            text = plan.read_bytes().decode("utf-8", "replace")
            same, told = same_plan(text, wanted)
            if same and json.loads(text).get("ready"):
                return
            if not same and not overwrite:
                raise other_plan(self.partial, told)
        facts = {"hash": wanted, "what": what}
        plan.write_bytes(json.dumps(facts | {"ready": False}).encode())
        (self.path / _ROOT).unlink()  # first: what is left of a store that is being emptied is no image
        for place in (self.path, self.partial / DONE):
            if names := list(place.keys()):
                place.unlink(*names)
        create()
        plan.write_bytes(json.dumps(facts | {"ready": True}).encode())

    def done(self) -> set[int]:  # noqa: D102
        return {int(name) for name in (self.partial / DONE).keys() if name.isdecimal()}  # noqa: SIM118 - no dict

    def is_done(self, index: int) -> bool:  # noqa: D102
        return (self.partial / DONE / str(index)).is_file()

    def mark(self, index: int, names: Sequence[str]) -> None:  # noqa: D102
        (self.partial / DONE / str(index)).write_bytes("\n".join(names).encode())

    def drop_lost(self) -> None:  # noqa: D102
        there = set(self.path.keys())
        for index in sorted(self.done()):
            mark = self.partial / DONE / str(index)
            if not set(mark.read_bytes().decode().split()) <= there:
                mark.unlink()

    def complete(self, overwrite: bool, finish: Callable[[Path], Path]) -> None:  # noqa: D102
        if (self.path / _ROOT).is_file() and not overwrite:
            raise FileExistsError(
                f"output {self.path} appeared while this ran; remove it and run again, or pass --overwrite"
            )
        finish(Path(self.path.name))
        with contextlib.suppress(OSError):  # the image is whole, whatever is left beside it
            self.partial.unlink(*sorted(self.partial.keys(), key=lambda name: name == PLAN))


def _lease() -> bytes:
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}).encode()


def _lives(pid: int) -> bool:
    """Whether there is a process of this number on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
