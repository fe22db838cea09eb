"""OME-TIFF output: tiles are encoded where they are computed, into one file per shard and level, and joined at the end.

A TIFF can neither be written by several processes nor be continued after an interruption. Every shard therefore leaves its tiles,
encoded as in the TIFF, in a file of its own. At the end their bytes are copied one after another, without decoding.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import struct
import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from ..io.paths import shown
from .shards import RGB, Array, ShardStore

DTYPES = ("u1", "u2", "u4", "i1", "i2", "i4", "f4", "f8")
"""Pixel types that a TIFF can hold."""
_EFFORT = 1
"""Compression level of deflate: three times as fast as the usual level 6, for 2 % more bytes on stained tissue."""
_NO_ID = f"urn:uuid:{uuid.UUID(int=0)}"
"""What stands for the id of an OME-TIFF until its content is known. Without one the library would take an id of the time and of
this machine's network address."""
_DESCRIPTION = 270
"""Number of the tag of a TIFF that holds its description, from its specification."""
_BIG = 3 << 30
"""Bytes of pixels from which 64-bit offsets are used. 32-bit offsets reach 4 GiB; incompressible data take slightly more bytes
than their pixels."""


@dataclass(frozen=True)
class TileStore(ShardStore):
    """Encoded tiles in files ``LEVEL/ROW.COLUMN``, one per shard, from which a single OME-TIFF is put together."""

    @property
    def rgb(self) -> bool:
        """Whether the three channels of a pixel are stored next to each other (RGB)."""
        return self.channels == RGB and self.dtype in (np.uint8, np.uint16)

    def create(self) -> None:  # noqa: D102
        self.disk.mkdir()

    def write(self, level: int, place: tuple[int, ...], pixels: Array | None) -> list[str]:  # noqa: D102
        if pixels is None:
            return []
        tiles = [self._encode(tile) for tile in _cut(pixels, self.tile, self.rgb)]
        ends = np.cumsum([len(tile) for tile in tiles], dtype="<u8")
        name = f"{level}/{place[0]}.{place[1]}"
        file = self.disk / name
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(f"{file.name}.{os.getpid()}.{threading.get_ident()}.partial")
        with aside.open("wb") as out:
            out.write(struct.pack("<Q", len(tiles)) + ends.tobytes())
            out.writelines(tiles)
        aside.rename(file)
        return [name]

    def read(self, level: int, region: Sequence[slice]) -> Array:  # noqa: D102
        shape, size = self.levels[level].shape, self.tile
        out = np.full((len(self.channels), *(r.stop - r.start for r in region)), self.fill, self.dtype)
        for y in range(region[0].start, region[0].stop, size):
            for x in range(region[1].start, region[1].stop, size):
                rows, columns = slice(y, min(y + size, shape[0])), slice(x, min(x + size, shape[1]))
                target = out[
                    :,
                    y - region[0].start : rows.stop - region[0].start,
                    x - region[1].start : columns.stop - region[1].start,
                ]
                for c, part in enumerate([target] if self.rgb else target):
                    found = self._bytes(level, c, y // size, x // size)
                    if found is not None:
                        part[...] = self._decode(found)[..., : rows.stop - y, : columns.stop - x]
        return out

    def finish(self, target: Path, name: str, colors: Sequence[str], version: str) -> Path:
        """Join all tiles at ``target``: one OME-TIFF with its pyramid in sub-images."""
        import tifffile

        grid = self.levels[0]
        metadata: dict[str, Any] = {"axes": "YXS" if self.rgb else "CYX", "Name": shown(name), "UUID": _NO_ID}
        if not (grid.unit == "px" and all(s == 1 for s in grid.spacing)):
            for axis, step in zip("YX", grid.spacing, strict=True):
                metadata[f"PhysicalSize{axis}"] = step
                metadata[f"PhysicalSize{axis}Unit"] = "pixel" if grid.unit == "px" else grid.unit
        if not self.rgb:
            numbers = [int.from_bytes(bytes.fromhex(c) + b"\xff", "big", signed=True) for c in colors]
            metadata["Channel"] = [
                {"Name": channel, "Color": number} | _waves(self.waves[i] if self.waves else (None, None))
                for i, (channel, number) in enumerate(zip(self.channels, numbers, strict=True))
            ]
        options: dict[str, Any] = {
            "tile": (self.tile, self.tile),
            "compression": "zlib",
            "predictor": self._differences,
            "photometric": "rgb" if self.rgb else "minisblack",
            "planarconfig": "contig" if self.rgb else None,
            "dtype": self.dtype,
        }
        total = sum(math.prod(level.shape) for level in self.levels) * len(self.channels) * self.dtype.itemsize
        digest = hashlib.blake2b(repr((metadata, self.dtype.str, self.levels)).encode(), digest_size=16)
        with tifffile.TiffWriter(target, bigtiff=total > _BIG, ome=True) as tif:
            for i, level in enumerate(self.levels):
                shape = (*level.shape, 3) if self.rgb else (len(self.channels), *level.shape)
                extra: dict[str, Any] = {"subifds": len(self.levels) - 1, "metadata": metadata}
                if i:
                    extra = {"subfiletype": 1, "metadata": None}
                tif.write(_counted(self._all(i), digest), shape=shape, **options, **extra)
        _put_id(target, uuid.uuid5(uuid.NAMESPACE_OID, digest.hexdigest()))
        return target

    # ---- inside -----------------------------------------------------------------------------------------------------

    @property
    def _differences(self) -> bool:
        return self.dtype.kind in "ui"

    def _encode(self, tile: Array) -> bytes:
        if self._differences:
            tile = imagecodecs.delta_encode(tile, axis=-2 if self.rgb else -1)
        return bytes(imagecodecs.deflate_encode(tile.tobytes(), _EFFORT))

    def _decode(self, data: bytes) -> Array:
        """A decoded tile; channels first where it is RGB."""
        shape = (self.tile, self.tile, 3) if self.rgb else (self.tile, self.tile)
        flat = imagecodecs.deflate_decode(data, out=math.prod(shape) * self.dtype.itemsize)
        tile: Array = np.frombuffer(flat, self.dtype).reshape(shape)
        if self._differences:
            tile = imagecodecs.delta_decode(tile, axis=-2 if self.rgb else -1)
        return np.moveaxis(tile, -1, 0) if self.rgb else tile

    def _bytes(self, level: int, channel: int, row: int, column: int) -> bytes | None:
        """The encoded tile at a place of a level; None where it is background."""
        per = self.shards[level] // self.tile
        file = self.disk / str(level) / f"{row // per}.{column // per}"
        try:
            stat = file.stat()
        except FileNotFoundError:
            return None
        ends = _ends(str(file), stat.st_ino, stat.st_mtime_ns)
        height, width = (
            min(per, -(-(n - i // per * self.shards[level]) // self.tile))
            for n, i in zip(self.levels[level].shape, (row, column), strict=True)
        )
        at = (channel * height + row % per) * width + column % per
        start = 0 if at == 0 else int(ends[at - 1])
        with file.open("rb") as source:
            source.seek(8 + ends.nbytes + start)
            return source.read(int(ends[at]) - start)

    def _all(self, level: int) -> Iterator[bytes]:
        """Every tile of a level in the order of the TIFF: channel by channel (unless RGB), row by row."""
        shape = (self.tile, self.tile, 3) if self.rgb else (self.tile, self.tile)
        empty = self._encode(np.full(shape, self.fill, self.dtype))
        rows, columns = (-(-n // self.tile) for n in self.levels[level].shape)
        for c in range(1 if self.rgb else len(self.channels)):
            for row in range(rows):
                for column in range(columns):
                    found = self._bytes(level, c, row, column)
                    yield empty if found is None else found


def _waves(wave: tuple[float | None, float | None]) -> dict[str, Any]:
    """The attributes of OME-XML for the excitation and emission wavelength of a channel, in nm."""
    out: dict[str, Any] = {}
    for kind, length in zip(("Excitation", "Emission"), wave, strict=True):
        if length is not None:
            out |= {f"{kind}Wavelength": length, f"{kind}WavelengthUnit": "nm"}
    return out


@functools.lru_cache(maxsize=512)
def _ends(file: str, *stamp: int) -> NDArray[np.uint64]:
    """End of each tile in a file, in bytes after its table; ``stamp`` (size, time) keeps a changed file from the cache."""
    with Path(file).open("rb") as source:
        (count,) = struct.unpack("<Q", source.read(8))
        return np.frombuffer(source.read(8 * count), "<u8")


def _counted(tiles: Iterator[bytes], digest: Any) -> Iterator[bytes]:
    """The tiles, each added to a hash on its way."""
    for tile in tiles:
        digest.update(tile)
        yield tile


def _put_id(path: Path, identity: uuid.UUID) -> None:
    """Put the id of the content in place of `_NO_ID`, which is as long."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        tag = file.pages.first.tags[_DESCRIPTION]
        at, count = tag.valueoffset, tag.count
    with path.open("r+b") as out:
        out.seek(at)
        text = out.read(count)
        out.seek(at)
        out.write(text.replace(_NO_ID.encode(), f"urn:uuid:{identity}".encode()))


def _cut(pixels: Array, size: int, rgb: bool) -> Iterator[Array]:
    """Tiles of ``[C, y, x]``: channel by channel, or with channels last where RGB; tiles at the border are padded with zeros."""
    channels, height, width = pixels.shape
    for planes in [slice(0, channels)] if rgb else [slice(c, c + 1) for c in range(channels)]:
        for y in range(0, height, size):
            for x in range(0, width, size):
                tile = pixels[planes, y : y + size, x : x + size]
                gap = [(0, 0), (0, size - tile.shape[1]), (0, size - tile.shape[2])]
                tile = np.pad(tile, gap) if gap[1][1] or gap[2][1] else tile
                yield np.ascontiguousarray(np.moveaxis(tile, 0, -1)) if rgb else np.ascontiguousarray(tile[0])
