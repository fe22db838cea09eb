"""The interface of output formats for large images: writing and reading the shards of a pyramid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data import Grid
from ..remote.address import Remote

Array = NDArray[Any]

RGB = ("red", "green", "blue")
"""Channel names by which an image is recognised as an RGB image."""


@dataclass(frozen=True)
class ShardStore(ABC):
    """Pixels of a pyramid, shard by shard, in a folder to which several processes write at once.

    Args:
        folder: the folder of the unfinished output; in a remote store the output itself.
        levels: grids of the levels, finest first.
        shards: pixels per axis of a shard, by level.
        tile: pixels per axis that are compressed together.
        dtype: of the pixels.
        channels: names of the channels.
        fill: value of shards that are not written.
        labels: whether values are ids; coarser levels then take every second pixel instead of means.
        waves: excitation and emission wavelength of each channel in nm, as in `regframe.Pyramid`.
    """

    folder: Path | Remote
    levels: tuple[Grid, ...]
    shards: tuple[int, ...]
    tile: int
    dtype: np.dtype[Any]
    channels: tuple[str, ...]
    fill: float
    labels: bool = False
    waves: tuple[tuple[float | None, float | None], ...] = ()

    @property
    def disk(self) -> Path:
        """The folder, of a store that lies on this disk."""
        assert isinstance(self.folder, Path)
        return self.folder

    @abstractmethod
    def create(self) -> None:
        """Make the folder, with no shard in it."""

    @abstractmethod
    def write(self, level: int, place: tuple[int, ...], pixels: Array | None) -> list[str]:
        """Write the pixels ``[C, y, x]`` of the shard at ``place`` (row, column); None where all of them are background.

        Returns the names, relative to the folder, of the files that hold the shard: none where it is background.
        """

    @abstractmethod
    def read(self, level: int, region: Sequence[slice]) -> Array:
        """Pixels ``[C, y, x]`` of a region whose borders are borders of shards or of the level."""

    @abstractmethod
    def finish(self, target: Path, name: str, colors: Sequence[str], version: str) -> Path:
        """Complete the output once every shard is written; returns its path, in the folder or at ``target``.

        Args:
            target: path beside the folder, for an output that is a single file.
            name: name of the image that viewers show.
            colors: one ``RRGGBB`` per channel.
            version: version of regframe, recorded where the format has a place for it.
        """
