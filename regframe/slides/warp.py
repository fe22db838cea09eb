"""Carries a large image by a map, shard by shard, from a lazy pyramid to a file; the whole is never in memory.

A shard is the unit of work: one task computes it, reads the chunks in its source region, writes it once together with its part of
the coarser levels, and marks it as done. An unfinished output lies in ``NAME.partial`` beside its final name; another call with
the same arguments continues with the shards that are missing. Pixels do not depend on how the output is cut, on the number of
workers, or on interruptions: they are those of `regframe.resample`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from .. import devices
from ..contracts import Progress
from ..data import Grid, Image, Level, Pyramid, describe_grid
from ..display.bars import shown
from ..fit.threads import on_threads, run_each, workers_of
from ..maps.backdrop import COLUMNS, ROWS, around
from ..maps.base import Transform
from ..maps.known import known
from ..maps.pieces import Pieces
from ..plugins import PARTIAL, tile_writer
from ..remote.address import Remote, locate
from ..remote.errors import RemoteError
from ..versions import version
from . import tiles
from .foreignshards import ForeignStore
from .reader import COARSEST, PyramidAdapter
from .remoteshards import InStore, RemoteShards
from .shards import RGB, Array, ShardStore
from .tifftiles import DTYPES, TileStore
from .unfinished import STORE, OnDisk, Unfinished
from .zarrshards import ZarrStore, quiet_zarr

CHUNK = 512
"""Pixels per axis that are compressed together, unless the caller says otherwise: a quarter of a MiB for one 8-bit channel."""
SHARD_BYTES = 64 << 20
"""Largest shard, in bytes of its pixels (all channels). A worker needs about five times as much memory (docs/slides.md)."""
LARGEST_SHARD = 4096
"""Largest number of pixels per axis of a shard, however few bytes a pixel has."""
FEWEST = 16
"""Number of shards of the finest level from which they are as large as the limits allow; those of a smaller image are smaller,
down to `_WIDE` chunks per axis. What is in hand when a run is killed is read again: with two workers an eighth at most."""
_WIDE = 4
"""Chunks per axis of a shard, down to which it is made smaller to have `FEWEST`: below, most of what a shard reads would be the
neighbours' chunks around it."""
WHOLE_BYTES = 4 << 30
"""Largest image that `SlideWarp.image` returns in memory, in bytes of its pixels."""
_FORMAT = 2
"""Version of the layout of an unfinished output; one with another version is started again from the beginning."""

Background = float | Literal["auto", "border"]


@dataclass(frozen=True)
class SlideOptions:
    """How a large image is read and how the output is cut.

    Args:
        level: resolution of the image to read, 0 the finest. None takes the coarsest level that is fine enough for the canvas,
            averaged where its pixels are at least two times finer than needed.
        background: value beyond the image's pixels; ``"border"`` continues its border; ``"auto"`` is white for a
            brightfield image (three channels of whole numbers, bright along its edges), else 0.
        chunk: pixels per axis that are compressed together, a power of two from 16.
        shard: pixels per axis of a shard of the finest level, ``chunk`` times a power of two (2 or more); None takes the
            largest within `SHARD_BYTES` and `LARGEST_SHARD` of which there are `FEWEST` or more.
        device: where intensities are carried: ``cpu``, ``cuda`` or ``cuda:N``; ``auto`` is the CPU, because reading and
            compressing take longer than carrying. On another device the pixels are the same but for rounding.

    Raises ValueError for a chunk, shard, background or device that is none of these.
    """

    level: int | None = None
    background: Background = "auto"
    chunk: int = CHUNK
    shard: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        devices.check(self.device)
        chunk, shard = self.chunk, self.shard
        if chunk < 16 or chunk & (chunk - 1):
            raise ValueError(f"wanted a chunk of a power of two from 16 pixels, got {chunk}")
        if shard is not None and (shard < 2 * chunk or shard & (shard - 1)):
            raise ValueError(
                f"wanted a shard of the chunk's {chunk} pixels times a power of two, 2 at least, got {shard}"
            )
        if isinstance(self.background, str) and self.background not in ("auto", "border"):
            raise ValueError(f"wanted a background of auto, border or a number, got {self.background!r}")

    def edge(self, pixel_bytes: int, shape: tuple[int, ...] | None = None) -> int:
        """Pixels per axis of a shard of the finest level, for pixels of so many bytes in all channels.

        ``shape`` is that of the output, in pixels; None where the number of shards plays no part.
        """
        if self.shard is not None:
            return self.shard
        edge = 2 * self.chunk
        while edge < LARGEST_SHARD and pixel_bytes * (2 * edge) ** 2 <= SHARD_BYTES:
            if (
                shape is not None
                and edge >= _WIDE * self.chunk
                and math.prod(-(-n // (2 * edge)) for n in shape) < FEWEST
            ):
                break
            edge *= 2
        return edge


def warp_slide(
    pyramid: Pyramid,
    transform: Transform,
    grid: Grid,
    path: str | Path | Remote,
    *,
    options: SlideOptions | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    progress: bool | Callable[[Progress], object] | None = None,
) -> Path | Remote:
    """Carry a large image by ``transform`` onto ``grid`` and write it, with its pyramid, to ``path``.

    Args:
        pyramid: the image, in the map's source space and unit.
        transform: from the image's space to that of ``grid``.
        grid: the canvas to fill, 2D, in the map's target unit.
        path: ``NAME.zarr`` (OME-Zarr 0.5, sharded), also ``s3://`` or ``gs://``, or ``NAME.ome.tif`` (tiled, with a pyramid), or
            a name that a plug-in writes tile by tile (`regframe.PyramidAdapter`).
        options: which level is read, what lies beyond the image, how the output is cut.
        workers: threads; None takes one per core.
        overwrite: replace the output if it exists, and drop an unfinished one that was begun from something else.
        progress: True draws a bar (None does in a notebook and at a Python prompt); a function is called after every
            shard, with the stage ``shards``, the number done and the total.

    Returns:
        ``path``.

    Raises:
        ValueError: for what does not fit together, a damaged image, or an unfinished output of other inputs.
        FileExistsError: the output exists.
        BlockingIOError: another process is writing the same output.
        OSError: the output cannot be written; what was done stays, and a second call goes on from there.
    """
    plan = SlideWarp(pyramid, transform, grid, locate(path), options or SlideOptions())
    with shown(progress) as told:
        return plan.write(workers, overwrite, told)


@dataclass(frozen=True)
class SlideWarp:
    """The plan of `warp_slide`, whose shards any process may compute, within a round in any order.

    ``with plan.started(): ...`` opens (or resumes) the output, ``plan.run(index)`` computes shard ``index`` of
    ``range(plan.shards)``, ``plan.finish()`` completes it; `write` does all this on threads. `rounds` states which shards
    depend on
    others: the shards of the first round hold the finest pixels, the few of later rounds hold coarser levels, computed from
    what earlier rounds wrote. A plan can be pickled; where only paths can be sent, see `SlideJob`.

    Args:
        pyramid: the image, in the map's source space and unit.
        transform: from the image's space to that of ``grid``.
        grid: the canvas to fill, 2D, in the map's target unit.
        path: the output, ``NAME.zarr`` or ``NAME.ome.tif``, or a plug-in's; ``NAME.zarr`` also under an address.
        options: which level is read, the background, how the output is cut.
        identity: text that distinguishes two runs with equal arguments but other input (a file's size and time, say), so that
            neither continues the other's output.

    Raises ValueError for an image, a map and a canvas that do not fit together, and for another kind of output.
    """

    pyramid: Pyramid
    transform: Transform
    grid: Grid
    path: Path | Remote
    options: SlideOptions = field(default_factory=SlideOptions)
    identity: str = ""

    def __post_init__(self) -> None:
        grid, source = self.grid, self.pyramid.grid
        if grid.ndim != 2 or source.ndim != 2 or self.transform.ndim != 2:
            raise ValueError(
                f"wanted a 2D image, map and canvas to warp tile by tile, got {source.ndim}, {self.transform.ndim} and "
                f"{grid.ndim} axes; use regframe.resample for volumes"
            )
        if self.transform.source_unit != source.unit or self.transform.target_unit != grid.unit:
            raise ValueError(
                f"wanted an image in {self.transform.source_unit} and a canvas in {self.transform.target_unit} for this "
                f"map, got {source.unit} and {grid.unit}; convert with Grid.to_unit or state the spacing"
            )
        object.__setattr__(self, "transform", known(self.transform, source, grid))
        level = self.options.level
        if level is not None and not 0 <= level < len(self.pyramid.levels):
            raise ValueError(
                f"wanted a level from 0 to {len(self.pyramid.levels) - 1} of {self.pyramid.name}, got {level}"
            )
        object.__setattr__(self, "path", locate(self.path))
        if isinstance(self.path, Remote):
            self.path.check_writable()
        if isinstance(self.path, Remote) and self._tiff:
            raise ValueError(f"wanted an output ending in .zarr in a remote store, got {self.path.name!r}")
        if not self._tiff and self.path.suffix.lower() != ".zarr" and self._writer is None:
            raise ValueError(
                f"wanted an output ending in .zarr or .ome.tif, got {self.path.name!r}; choose one of these"
            )
        if self._tiff and self.dtype.newbyteorder("=") not in [np.dtype(t) for t in DTYPES]:
            raise ValueError(f"wanted pixels of at most 32 bits for OME-TIFF, got {self.dtype}; write .zarr instead")

    # ---- the plan ---------------------------------------------------------------------------------------------------

    @property
    def partial(self) -> Path | Remote:
        """The folder, or in a remote store the beginning of the names, of the unfinished output."""
        return self.path.with_name(self.path.name + PARTIAL)

    @functools.cached_property
    def place(self) -> Unfinished:
        """The marks of the unfinished output, on this disk or in a remote store."""
        if isinstance(self.path, Remote):
            return InStore(self.path, self.path.with_name(self.path.name + PARTIAL))
        return OnDisk(self.path, self.path.with_name(self.path.name + PARTIAL))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the pixels that are written."""
        dtype = self.pyramid.dtype
        if dtype == np.bool_:
            return np.dtype(np.uint8)
        return np.dtype(np.float32) if dtype == np.float16 else np.dtype(dtype).newbyteorder("=")

    @functools.cached_property
    def source(self) -> Level:
        """The level of the image that is read."""
        if self.options.level is not None:
            return self.pyramid.levels[self.options.level]
        return tiles.choose(self.pyramid, tiles.needed(self.pyramid, self._pull, self.grid.spacing))

    @functools.cached_property
    def fill(self) -> float | None:
        """The background as a number of the image's type, or None where the border is continued."""
        value = backdrop(self.pyramid) if self.options.background == "auto" else self.options.background
        if value == "border":
            return 0.0 if self.pyramid.labels else None
        number = float(value)
        if self.dtype.kind in "ui":
            info = np.iinfo(self.dtype)
            if not (math.isfinite(number) and info.min <= round(number) <= info.max):
                raise ValueError(f"wanted a background that {self.dtype} holds, got {number}")
            number = float(round(number))
        return number

    @functools.cached_property
    def levels(self) -> tuple[Grid, ...]:
        """The grids of the output's levels, finest first."""
        grids = [self.grid]
        while max(grids[-1].shape) > COARSEST:
            grids.append(tiles.halved_grid(grids[-1], self.pyramid.labels))
        return tuple(grids)

    @functools.cached_property
    def rounds(self) -> tuple[range, ...]:
        """Indices of the shards of each round; the shards of a round need all earlier rounds to be complete."""
        out: list[range] = []
        for base in range(0, max(1, len(self.levels) - 1), self._depth):
            count = math.prod(-(-n // self._edge) for n in self.levels[base].shape)
            first = out[-1].stop if out else 0
            out.append(range(first, first + count))
        return tuple(out)

    @property
    def shards(self) -> int:
        """Number of shards in all rounds."""
        return self.rounds[-1].stop

    def done(self) -> set[int]:
        """Shards that are marked as written."""
        return self.place.done()

    # ---- running ----------------------------------------------------------------------------------------------------

    def write(
        self,
        workers: int | None = None,
        overwrite: bool = False,
        progress: Callable[[Progress], object] | None = None,
    ) -> Path | Remote:
        """Compute every missing shard on ``workers`` threads, then finish; see `warp_slide`."""
        workers = workers_of(workers)
        with self.started(overwrite), quiet_zarr():
            finished = len(self.done())
            with on_threads(1):
                for batch in self.rounds:
                    for _ in run_each(self.run, sorted(set(batch) - self.done()), workers):
                        finished += 1
                        if progress is not None:
                            progress(Progress("shards", finished, self.shards))
            self.finish(overwrite)
        return self.path

    def image(self, most: int = WHOLE_BYTES) -> Image:
        """The output as an image in memory; ValueError for more than ``most`` bytes."""
        shape = (len(self.pyramid.channels), *self.grid.shape)
        size = math.prod(shape) * self.dtype.itemsize
        if size > most:
            raise ValueError(
                f"wanted at most {most / 2**30:.3g} GiB of pixels at once, got {size / 2**30:.3g} GiB for "
                f"{describe_grid(self.grid)}; write .zarr or .tif, a part of it (--region), or larger pixels (--spacing)"
            )
        out = np.empty(shape, self.dtype)
        for start in range(0, self.grid.shape[0], self._edge):
            region = (slice(start, min(start + self._edge, self.grid.shape[0])), slice(0, self.grid.shape[1]))
            out[:, region[0]] = self.pixels(region)
        return Image(
            torch.from_numpy(out), self.grid, self.pyramid.channels, self.pyramid.labels, name=self.pyramid.name
        )

    def pixels(self, region: tuple[slice, ...]) -> Array:
        """The output's pixels ``[C, *region]`` at full resolution, computed now; nothing is written, so ``path`` plays no part.

        Args:
            region: one slice per axis, with start and stop inside the canvas and no step. For about five times its pixels
                memory is needed.

        Raises ValueError where the image's pixels cannot be read.
        """
        part = self._warped(region)
        if part is None:
            sides = (r.stop - r.start for r in region)
            return np.full((len(self.pyramid.channels), *sides), self.fill or 0, self.dtype)
        return part

    def covered(self, region: tuple[slice, ...]) -> bool:
        """Whether every pixel of a region surely comes from within the image; False also where only the bounds are too wide."""
        if any(isinstance(part, Pieces) for part in self._pull.parts()):
            return False
        boxes = tiles.source_boxes(self._pull, self.grid, region, self.source.grid)
        return bool(((boxes[:, 0] >= 0) & (boxes[:, 1] < np.array(self.source.grid.shape))).all())

    def _warped(self, region: tuple[slice, ...]) -> Array | None:
        """Pixels of a region, None where all of them are background."""
        with self._reading(region):
            device = devices.chosen(self.options.device, 0)
            return tiles.warp_tile(self.source, self._pull, self.grid, region, self.pyramid.labels, self.fill, device)

    @contextlib.contextmanager
    def started(self, overwrite: bool = False) -> Iterator[SlideWarp]:
        """Open the output for writing, new or as an earlier run of this plan left it, and lock it against other processes."""
        with self._explained():
            self.place.check_target(overwrite)
        with self.place.locked():
            with self._explained():
                what = f"{self.pyramid.name} onto {describe_grid(self.grid)}"
                self.place.prepare(overwrite, self.fingerprint, what, self._store.create)
            yield self

    def run(self, index: int) -> None:
        """Compute one shard: its pixels, and its part of the coarser levels."""
        if self.place.is_done(index):
            return
        order = next((i for i, batch in enumerate(self.rounds) if index in batch), None)
        if order is None:
            raise ValueError(f"wanted a shard from 0 to {self.shards - 1}, got {index}")
        base = order * self._depth
        grid = self.levels[base]
        across = -(-grid.shape[1] // self._edge)
        place = divmod(index - self.rounds[order].start, across)
        region = tuple(
            slice(i * self._edge, min((i + 1) * self._edge, n)) for i, n in zip(place, grid.shape, strict=True)
        )
        pixels: Array | None
        if order == 0:
            pixels = self._warped(region)
        else:
            pixels = self._store.read(base, region)
        written = []
        with self._explained():
            if order == 0:
                written += self._store.write(0, place, pixels)
            for level in range(base + 1, min(base + self._depth, len(self.levels) - 1) + 1):
                pixels = None if pixels is None else tiles.halved(pixels, self.pyramid.labels)
                written += self._store.write(level, place, pixels)
            self.place.mark(index, written)

    def finish(self, overwrite: bool = False) -> None:
        """Complete the metadata and rename the output to its final name, once every shard is written."""
        with self._explained():
            self.place.drop_lost()
        missing = self.shards - len(self.done())
        if missing:
            raise ValueError(f"wanted all {self.shards} shards of {self.path.name}, got {missing} less; run them first")
        with self._explained():
            self.place.complete(
                overwrite, lambda target: self._store.finish(target, self.pyramid.name, self._colors(), version())
            )

    # ---- inside -----------------------------------------------------------------------------------------------------

    @property
    def _tiff(self) -> bool:
        return self.path.suffix.lower() in (".tif", ".tiff")

    @functools.cached_property
    def _writer(self) -> PyramidAdapter | None:
        """The plug-in that writes the output, where it is neither OME-Zarr nor OME-TIFF."""
        if self._tiff or isinstance(self.path, Remote) or self.path.suffix.lower() == ".zarr":
            return None
        found = tile_writer(self.path.name)
        return found if isinstance(found, PyramidAdapter) else None

    @functools.cached_property
    def _pull(self) -> Transform:
        return self.transform.inverse()

    @property
    def _edge(self) -> int:
        """Pixels per axis of a shard of the finest level."""
        return self.options.edge(len(self.pyramid.channels) * self.dtype.itemsize, self.grid.shape)

    @property
    def _depth(self) -> int:
        """Number of coarser levels that a shard can write by itself: those whose shards halve in size from level to level."""
        return (self._edge // self.options.chunk).bit_length() - 1

    def _shard_of(self, level: int) -> int:
        """Pixels per axis of a shard of a level."""
        return self._edge if level == 0 else self._edge >> ((level - 1) % self._depth + 1)

    @functools.cached_property
    def _store(self) -> ShardStore:
        """The store of the shards, in the format that the output's name asks for."""
        kind: Callable[..., ShardStore] = TileStore if self._tiff else ZarrStore
        folder: Path | Remote = self.partial / STORE
        if isinstance(self.path, Remote):
            kind, folder = RemoteShards, self.path
        if self._writer is not None:
            kind = functools.partial(ForeignStore, writer=self._writer)
        return kind(
            folder,
            self.levels,
            tuple(self._shard_of(i) for i in range(len(self.levels))),
            self.options.chunk,
            self.dtype,
            tuple(self.pyramid.channels),
            self.fill or 0.0,
            self.pyramid.labels,
            tuple(self.pyramid.waves),
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of everything that the pixels and their place in the store depend on."""
        sha = hashlib.sha256()
        pyramid = self.pyramid
        facts = (
            _FORMAT, version(), self.identity, pyramid.name, str(pyramid.dtype), pyramid.channels, pyramid.colors,
            pyramid.labels, [level.grid for level in pyramid.levels], self.source.grid, self.grid, self.fill,
            self.options.chunk, self._edge,
        )  # fmt: skip
        sha.update(repr(facts).encode())
        if (
            devices.chosen(self.options.device, 0).type != "cpu"
        ):  # what one device began, another goes on with in other bits
            sha.update(b"cuda")
        for part in self.transform.parts():
            add_to_hash(part, sha)
        coarsest = pyramid.levels[-1]
        middle = middle_of(coarsest)
        with self._reading(middle):
            sha.update(np.ascontiguousarray(coarsest.read(middle)).tobytes())
        return sha.hexdigest()

    def _colors(self) -> tuple[str, ...]:
        """One ``RRGGBB`` per channel: the image's own, or red, green and blue for three channels, or white."""
        names = self.pyramid.channels
        if len(self.pyramid.colors) == len(names):
            return tuple(self.pyramid.colors)
        return ("FF0000", "00FF00", "0000FF") if names == RGB else ("FFFFFF",) * len(names)

    @contextlib.contextmanager
    def _reading(self, region: tuple[slice, ...]) -> Iterator[None]:
        """Turns errors of the image's reader into a ValueError that names the part that could not be read."""
        try:
            yield
        except MemoryError:
            raise
        except Exception as error:  # a plug-in's reader may raise anything
            reason = " ".join(str(error).split()) or type(error).__name__
            where = ", ".join(f"{r.start}:{r.stop}" for r in region)
            raise ValueError(
                f"wanted the pixels of {self.pyramid.name} for the part {where}, got: {reason}; mend the file and run the "
                "same again, which goes on from there"
            ) from error

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns errors of the output's disk into an OSError of one sentence that states what is left."""
        try:
            yield
        except (FileExistsError, BlockingIOError):
            raise
        except OSError as error:
            kept = ""
            with contextlib.suppress(OSError):
                if n := len(self.done()):
                    kept = f"; {n} of {self.shards} shards are kept in {self.partial.name}: run the same again to go on"
            if isinstance(error, RemoteError):
                raise RemoteError(f"{error}{kept}", error.kind) from error
            raise type(error)(
                f"cannot write {self.path}: {error.strerror or error}{kept or '; choose another output'}"
            ) from error


def middle_of(level: Level) -> tuple[slice, ...]:
    """A chunk in the middle of a level, at most 512 pixels along each axis: what tells one image from another."""
    return tuple(
        slice(n // 2 // c * c, min(n, n // 2 // c * c + min(c, 512)))
        for n, c in zip(level.grid.shape, level.chunk[1:], strict=True)
    )


def add_to_hash(part: Transform, sha: Any) -> None:
    """Add an elementary map to a hash; of a map in pieces the map and the labels of each piece."""
    sha.update(repr(type(part).__name__).encode())
    if isinstance(part, Pieces):
        for cells in (part.source, part.target):
            sha.update(repr(cells.grid).encode() + cells.labels.numpy().tobytes())
        for one in (each for piece in part.maps for each in piece.parts()):
            add_to_hash(one, sha)
        return
    for entry in dataclasses.fields(part):  # type: ignore[arg-type]
        value = getattr(part, entry.name)
        sha.update(value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode())


def backdrop(pyramid: Pyramid) -> float:
    """Background for ``"auto"``: the highest value for a brightfield image, else 0, judged by the coarsest level's border."""
    dtype = np.dtype(pyramid.dtype)
    if pyramid.labels or dtype.kind != "u" or len(pyramid.channels) != 3:
        return 0.0
    level = pyramid.levels[-1]
    *depth, height, width = level.grid.shape
    columns = slice(max(0, width // 2 - COLUMNS // 2), min(width // 2 + COLUMNS // 2, width))
    ends = slice(0, min(ROWS, height)), slice(max(0, height - ROWS), height)
    return around([level.read((*(slice(0, n) for n in depth), rows, columns)) for rows in ends])
