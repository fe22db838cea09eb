"""One round of a refinement as independent tasks: every tile is looked at under the map as it is when the round begins.

No tile reads what another one found, so their order and the processes that look at them do not matter. `Sweep` looks at tiles in
this process; `SweepTask` is the same for others, which read the round's map from the folder where its measurements are kept.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from .. import devices
from ..contracts import Progress
from ..data import Grid, Level, Pyramid
from ..fit.threads import on_threads
from ..io import store
from ..io.tasks import Kept, Pool, Threads, answers, read_record, write_record
from ..maps.base import Transform
from ..result import Result
from . import tiles
from .windows import WINDOW, Look, Seen, look_at

TILE = 8 * WINDOW
"""Side of a tile, in pixels of the level. A tile is read, kept or rejected as a whole; it holds 32 windows that measure and 32
that judge."""
TISSUE = 0.02
"""Least share of a tile that tissue must cover for the tile to be examined."""


@dataclass(frozen=True)
class Sweep:
    """The tiles of one resolution, and all that is needed to look at one of them.

    Args:
        level: the fixed level that is looked at.
        source: the moving level that is carried onto it.
        moving: the finest moving grid.
        pull: the map from fixed to moving positions.
        places: the tiles with tissue, in pixels of the level.
        look: weights of the channels, and where there is tissue.
    """

    level: Level
    source: Level
    moving: Grid
    pull: Transform
    places: list[tuple[slice, slice]]
    look: Look

    @classmethod
    def of(cls, fixed: Pyramid, moving: Pyramid, transform: Transform, factor: float, look: Look) -> Sweep:
        """The sweep over the level with pixels of ``factor`` finest pixels, under ``transform`` (moving to fixed, `known`)."""
        level = tiles.choose(fixed, factor)
        pull = transform.inverse()
        source = tiles.choose(moving, tiles.needed(moving, pull, level.grid.spacing))
        return cls(level, source, moving.grid, pull, tissue_tiles(level.grid, look), look)

    def run(self, index: int) -> Seen:
        """The measurements in one tile."""
        return look_at(self.level, self.source, self.moving, self.pull, self.places[index], self.look)


def measured(
    sweep: Sweep,
    task: SweepTask | None,
    pool: Pool,
    kept: Kept,
    number: int,
    progress: Callable[[Progress], object] | None,
) -> list[Seen]:
    """The measurements in each tile of a sweep, the kept ones among them.

    Args:
        sweep: the tiles.
        task: the sweep for the processes of ``pool``; None where that has threads of this one.
        pool: who looks at the tiles.
        kept: measurements of an earlier run; new ones are added.
        number: number of the round, which names its measurements.
        progress: called after every tile.
    """
    name = f"pixels of {sweep.level.grid.pixel:.4g} {sweep.level.grid.unit}"
    count = len(sweep.places)
    run = sweep.run if task is None else task.run
    names = [f"{number}-{index:06d}" for index in range(count)]
    seen = [Seen.nothing("")] * count
    found = answers(pool, run, [(index,) for index in range(count)], kept, names, Seen)
    for done, (index, tile) in enumerate(found, start=1):
        seen[index] = tile
        if progress is not None:
            progress(Progress(name, done, count))
    return seen


def tissue_tiles(grid: Grid, look: Look) -> list[tuple[slice, slice]]:
    """The tiles of a level that contain enough tissue (`TISSUE`)."""
    found = []
    for y in range(0, grid.shape[0], TILE):
        for x in range(0, grid.shape[1], TILE):
            region = slice(y, min(y + TILE, grid.shape[0])), slice(x, min(x + TILE, grid.shape[1]))
            if min(r.stop - r.start for r in region) < WINDOW:
                continue
            inner = []
            for r, o, s, oo, ss, n in zip(
                region, grid.origin, grid.spacing, look.grid.origin, look.grid.spacing, look.grid.shape, strict=True
            ):
                a, b = (r.start * s + o - oo) / ss, ((r.stop - 1) * s + o - oo) / ss
                inner.append(slice(min(max(0, math.floor(a)), n - 1), min(n, math.ceil(b) + 1)))
            if look.tissue[tuple(inner)].mean() > TISSUE:
                found.append(region)
    return found


# ------------------------------------------------------------------------------------------------- for other processes


@dataclass(frozen=True)
class _Stored:
    """A `Look`, the factor of its sweep and the device, as they are written for other processes."""

    fixed: NDArray[np.float64]
    moving: NDArray[np.float64]
    tissue: NDArray[np.bool_]
    shape: NDArray[np.int64]
    spacing: NDArray[np.float64]
    origin: NDArray[np.float64]
    unit: str
    factor: float
    device: str


@dataclass(frozen=True)
class SweepTask:
    """A `Sweep` for other processes, which see the same files: two pyramids that read from files, and a folder.

    Args:
        fixed: every resolution of the fixed image, in its place.
        moving: every resolution of the moving image, in its place.
        folder: where `write` put the map and the look of the round.
        number: number of the round.
        token: differs between any two sweeps, so that a process that holds one of an earlier call opens this one.
    """

    fixed: Pyramid
    moving: Pyramid
    folder: str
    number: int
    token: str

    def write(self, result: Result, transform: Transform, factor: float, look: Look, device: str) -> None:
        """Write the map and the look for those who `run` the task.

        Args:
            result: the registration; its map is replaced by ``transform``.
            transform: the map as it is when the round begins.
            factor: pixels of the sweep, in finest fixed pixels.
            look: weights of the channels and tissue; its device is left out.
            device: where others look at tiles, as `refine` takes it: each chooses its own GPU.
        """
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # fields for other programs may be as coarse as they like: nobody reads them
            store.save(dataclasses.replace(result, transform=transform), self._map, overwrite=True, tolerance=math.inf)
        grid = look.grid
        write_record(
            self._look,
            _Stored(
                look.fixed.numpy(), look.moving.numpy(), look.tissue, np.array(grid.shape), np.array(grid.spacing),
                np.array(grid.origin), grid.unit, factor, device,
            ),
        )  # fmt: skip

    def run(self, index: int) -> Seen:
        """The measurements in one tile; the map and the look are read once per process.

        Raises ValueError where they are not there: this process sees other files than the one that wrote them.
        """
        global _opened
        with _lock:
            if _opened is None or _opened[0] != self.token:
                _opened = (self.token, self._open())
            sweep = _opened[1]
        with on_threads(1), torch.no_grad():  # one thread per task: every core runs a task of its own
            return sweep.run(index)

    @property
    def _map(self) -> Path:
        return Path(self.folder) / f"round-{self.number}.ome.zarr"

    @property
    def _look(self) -> Path:
        return Path(self.folder) / f"round-{self.number}.npz"

    def _open(self) -> Sweep:
        stored = read_record(self._look, _Stored)
        if stored is None:
            raise ValueError(
                f"wanted the map of the round in {self.folder} on every worker, got none; workers have to see the same files "
                "under the same paths"
            )
        grid = Grid(
            tuple(int(n) for n in stored.shape),
            tuple(stored.spacing.tolist()),
            tuple(stored.origin.tolist()),
            stored.unit,
        )
        weights = torch.from_numpy(stored.fixed), torch.from_numpy(stored.moving)
        look = Look(*weights, stored.tissue, grid, devices.chosen(stored.device, 0))
        return Sweep.of(self.fixed, self.moving, store.load(self._map).transform, stored.factor, look)


_opened: tuple[str, Sweep] | None = None
"""The last sweep of which this process looked at a tile, by its token."""
_lock = threading.Lock()


def is_here(pool: Pool) -> bool:
    """Whether a pool runs tasks in this process, which needs no files for that."""
    return isinstance(pool, Threads)
