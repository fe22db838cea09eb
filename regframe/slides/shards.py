"""The shards of an output on their way to the disk: what every format of a large image offers `regframe.slides.warp`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data import Grid

Array = NDArray[Any]

RGB = ("red", "green", "blue")
"""Channel names by which an image of three colours is known."""


@dataclass(frozen=True)
class ShardStore(ABC):
    """Pixels of a pyramid, shard by shard, in a folder that several processes write to at once.

    Args:
        folder: where they lie until all are there.
        levels: grids, finest first.
        shards: pixels per axis of a shard, by level.
        tile: pixels per axis that are compressed together.
        dtype: of the pixels.
        channels: their names.
        fill: value where no shard wrote.
        labels: whether values are ids, so that coarser levels keep every second pixel instead of means.
    """

    folder: Path
    levels: tuple[Grid, ...]
    shards: tuple[int, ...]
    tile: int
    dtype: np.dtype[Any]
    channels: tuple[str, ...]
    fill: float
    labels: bool = False

    @abstractmethod
    def create(self) -> None:
        """Make the folder, with no shard in it."""

    @abstractmethod
    def write(self, level: int, place: tuple[int, ...], pixels: Array | None) -> list[str]:
        """Write the pixels ``[C, y, x]`` of the shard at ``place`` (row, column), or nothing for None: all of it is background.

        Returns the names, in the folder, of the files it is in: none where it is background.
        """

    @abstractmethod
    def read(self, level: int, region: Sequence[slice]) -> Array:
        """Pixels ``[C, y, x]`` of a region that begins and ends with shards, or with the level."""

    @abstractmethod
    def finish(self, target: Path, name: str, colors: Sequence[str], version: str) -> Path:
        """Complete the output once every shard is there, and say where it lies: in the folder, or at ``target``.

        Args:
            target: place beside the folder for an output that is one file.
            name: what viewers call the image.
            colors: one ``RRGGBB`` per channel.
            version: of regframe, where the format has a place for it.
        """
