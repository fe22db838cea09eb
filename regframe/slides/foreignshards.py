"""Outputs in a stranger's format: shards wait in a Zarr store, and are handed to the format's own writer once all are there."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import strangers
from .reader import PyramidAdapter, TileWriter
from .zarrshards import ZarrStore


@dataclass(frozen=True)
class ForeignStore(ZarrStore):
    """A sharded Zarr store that is copied, shard by shard, into the file of a `PyramidAdapter`.

    Shards are computed by many threads and machines, in any order and over several runs; a writer gets them from one thread, in
    order, so that it needs to know of none of that.

    Args:
        writer: the adapter whose ``begin`` makes the file.
    """

    writer: PyramidAdapter | None = None

    def finish(self, target: Path, name: str, colors: Sequence[str], version: str) -> Path:  # noqa: D102
        assert self.writer is not None
        if target.is_dir():  # left by a run that was killed here
            shutil.rmtree(target)
        target.unlink(missing_ok=True)
        with strangers.named():
            out = self.writer.begin(target, self.levels, self.dtype, self.channels)
            strangers.returned(out, TileWriter, self.writer, "begin")
            for level in range(len(self.levels)):
                for region in self._regions(level):
                    out.write(level, region, self.read(level, region))
            out.finish()
        if not target.exists():
            raise strangers.PluginFault(
                f"wanted {self.writer.name!r} to write {target.name}, got nothing there; report this to who wrote "
                f"{strangers.words(self.writer, 'adapter')}, or write .ome.zarr"
            )
        return target

    def _regions(self, level: int) -> Iterator[tuple[slice, ...]]:
        """The regions of a level's shards, row by row."""
        edge, (height, width) = self.shards[level], self.levels[level].shape
        for row, column in ((i, j) for i in range(math.ceil(height / edge)) for j in range(math.ceil(width / edge))):
            yield tuple(slice(i * edge, min((i + 1) * edge, n)) for i, n in ((row, height), (column, width)))
