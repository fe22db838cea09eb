"""`PyramidAdapter`: a slide format is a list of levels and a function that reads a region; the rest comes with it."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..contracts import Adapter
from ..data import Grid, Image, Level, PointSet, Pyramid
from ..maps.base import Transform
from ..maps.resample import resample
from . import tiles
from .levels import choose_level, read_level

COARSEST = 512
"""Largest number of pixels per axis of the coarsest level that is written: what a viewer shows as a whole."""
BLOCK = 256
"""Pixels per axis that are read together where a format does not say in which blocks it stores them."""


@dataclass(frozen=True)
class _Region:
    """Reads a region of one level; it can be pickled where the adapter can, for workers on other machines."""

    adapter: PyramidAdapter
    source: Any
    level: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    channels: int

    def __call__(self, region: tuple[slice, ...]) -> np.ndarray[Any, Any]:
        array = np.asarray(self.adapter.read(self.source, self.level, region))
        wanted = (self.channels, *(r.stop - r.start for r in region))
        if array.shape != wanted or array.dtype != self.dtype:
            raise ValueError(
                f"wanted pixels {wanted} of {self.dtype} from the adapter {self.adapter.name!r} for a region of level "
                f"{self.level}, got {array.shape} of {array.dtype}"
            )
        return array


class TileWriter(ABC):
    """A file of a slide format that is being written; what `PyramidAdapter.begin` returns.

    One thread calls it. Every pixel of every level comes once: level by level, finest first, row of blocks by row of blocks.
    """

    @abstractmethod
    def write(self, level: int, region: tuple[slice, ...], block: np.ndarray[Any, Any]) -> None:
        """Write the pixels ``[C, *region]`` of a region (one slice per axis) of a level, 0 the finest."""

    @abstractmethod
    def finish(self) -> None:
        """Complete the file or folder: nothing is written after this."""


class PyramidAdapter(Adapter):
    """A slide format, read region by region: a subclass says `levels` and reads one (`read`), beside `matches`.

    Opening for a registration, whole slides tile by tile, and carrying come with it. Images that were carried are written by the
    adapter that writes the file's suffix; a subclass writes its own format with `begin` and ``writes_tiles``.
    """

    writes_tiles: ClassVar[tuple[str, ...]] = ()
    """Ends of file names (small letters, with the dot) under which `begin` writes images, however large; optional."""

    block: int = BLOCK
    """Pixels per axis of the blocks that the file stores: reads aligned to them decode the fewest."""
    labels: bool = False
    """True where values are ids, which are never averaged."""

    def __init_subclass__(cls, **options: Any) -> None:
        """State what is written tile by tile among what is written at all (``writes``)."""
        super().__init_subclass__(**options)
        if cls.writes_tiles and Image not in cls.writes:
            cls.writes = {**cls.writes, Image: tuple(cls.writes_tiles)}

    @abstractmethod
    def levels(self, source: Any) -> Sequence[Grid]:
        """The grid of every resolution, finest first: shape ``(z,) y, x``, spacing and origin of pixel centres, and their unit.

        Raises ValueError, in one sentence, for a file that is damaged.
        """

    @abstractmethod
    def read(self, source: Any, level: int, region: tuple[slice, ...]) -> np.ndarray[Any, Any]:
        """The pixels ``[C, *region]`` of a region inside one level, one slice per axis; from any thread or process."""

    def channels(self, source: Any) -> Sequence[str]:
        """Names of the channels, all of them; ``("0",)``, ``("0", "1", …)`` by the first pixel where this is not overridden."""
        first = self.read(source, 0, tuple(slice(0, 1) for _ in self.levels(source)[0].shape))
        return tuple(map(str, range(len(first))))

    def pyramid(self, source: Any) -> Pyramid:
        """Every resolution, lazy."""
        grids = tuple(self.levels(source))
        if not grids:
            raise ValueError(f"wanted at least one level in {source}, got none; is the file whole?")
        corner = np.asarray(self.read(source, 0, tuple(slice(0, 1) for _ in grids[0].shape)))
        names = tuple(self.channels(source))
        if corner.ndim != grids[0].ndim + 1 or len(names) != len(corner):
            raise ValueError(
                f"wanted pixels [C, {', '.join(grids[0].axes)}] and a name for each channel from the adapter {self.name!r}, got "
                f"{corner.shape} and {len(names)} names"
            )
        found = []
        for number, grid in enumerate(grids):
            chunk = (len(corner), *(min(self.block, n) for n in grid.shape))
            found.append(Level(grid, chunk, _Region(self, source, number, grid.shape, corner.dtype, len(corner))))
        name = Path(source).name if isinstance(source, (str, os.PathLike)) else self.name
        return Pyramid(tuple(found), corner.dtype, names, labels=self.labels, name=name)

    def open(self, source: Any) -> Image:
        """As many pixels as a registration needs."""
        pyramid = self.pyramid(source)
        return read_level(pyramid, *choose_level(pyramid))

    def apply(self, source: Any, transform: Transform, grid: Grid | None = None) -> Image:
        """The image as `open` reads it, resampled on ``grid``, its own where None; whole slides are carried tile by tile."""
        image = self.open(source)
        return resample(image, transform, image.grid if grid is None else grid, "auto")

    def begin(self, path: Path, levels: Sequence[Grid], dtype: np.dtype[Any], channels: Sequence[str]) -> TileWriter:
        """Begin a file of this format, of any size; optional, with ``writes_tiles``.

        Args:
            path: where to write, a file or a folder: a name that does not exist yet, in a temporary folder, ending as the user's
                path does.
            levels: grid of every level, finest first, each half as fine as the one before.
            dtype: type of the pixels.
            channels: names of the channels.

        Raises ValueError, in one sentence, for what the format cannot hold (a unit, a dtype).
        """
        raise ValueError(
            f"wanted an adapter that writes {Path(path).name!r}, got {self.name!r}, which only reads; take .ome.tif or .ome.zarr"
        )

    def save(self, data: Image | PointSet, path: Path) -> None:
        """An image that is in memory, by `begin`; refused where the subclass has none."""
        if self.writes_tiles and isinstance(data, Image):
            grid, pixels = data.grid, data.data.numpy()
            grids = [grid]
            while grid.ndim == 2 and max(grids[-1].shape) > COARSEST:
                grids.append(tiles.halved_grid(grids[-1], data.labels))
            out = self.begin(path, grids, pixels.dtype, data.channels)
            for level, each in enumerate(grids):
                pixels = tiles.halved(pixels, data.labels) if level else pixels
                out.write(level, tuple(slice(0, n) for n in each.shape), pixels)
            out.finish()
            return
        raise ValueError(
            f"wanted an adapter that writes {Path(path).name!r}, got {self.name!r}, which only reads; take .ome.tif or .ome.zarr"
        )
