"""An object of a store as a file that is read block by block."""

from __future__ import annotations

import functools
import io
import os
from collections import OrderedDict
from typing import Any

from .address import Remote, Stamp

_BLOCK = 1 << 14
"""Bytes that are read at once for a small read: the directory of a TIFF with its tags, which lie close together."""
_KEPT = 256
"""Blocks of one file that are kept: 4 MiB, the directories of a large pyramid."""


class Blocks:
    """Blocks of an object that were read, the last ones kept.

    Args:
        most: how many.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.held: OrderedDict[int, bytes] = OrderedDict()

    def keep(self, index: int, data: bytes) -> None:
        """Keep a block, and drop the one that was read longest ago where there are too many."""
        self.held[index] = data
        while len(self.held) > self.most:
            self.held.popitem(last=False)


@functools.lru_cache(maxsize=16)
def _blocks(_: int, where: Remote, stamp: Stamp) -> Blocks:
    """The blocks of one state of an object: whoever opens it again finds what was read."""
    return Blocks(_KEPT)


class RangedFile(io.BufferedIOBase):
    """Reads an object by byte ranges: small reads in blocks, which are kept, large ones as they are.

    Args:
        where: the object.
        stamp: its stamp, whose second number is its size.
    """

    def __init__(self, where: Remote, stamp: Stamp) -> None:
        super().__init__()
        self.where = where
        self.size = stamp[1]
        self.blocks = _blocks(os.getpid(), where, stamp)
        self._at = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The position in bytes."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position in bytes."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise ValueError(f"wanted a position from 0, got {start + offset}")
        self._at = start + offset
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to ``size`` bytes, fewer only at the end."""
        stop = self.size if size is None or size < 0 else min(self._at + size, self.size)
        start, self._at = self._at, max(stop, self._at)
        if stop <= start:
            return b""
        if stop - start > _BLOCK:
            return self.where.read_ranges([(start, stop)])[0]
        return b"".join(self._part(i, start, stop) for i in range(start // _BLOCK, -(-stop // _BLOCK)))

    def read1(self, size: int = -1, /) -> bytes:
        """As `read`."""
        return self.read(size)

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer; returns the number of bytes."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    readinto1 = readinto

    def _part(self, index: int, start: int, stop: int) -> bytes:
        """What a read takes of one block."""
        first = index * _BLOCK
        data = self.blocks.held.get(index)
        if data is None:
            (data,) = self.where.read_ranges([(first, min(first + _BLOCK, self.size))])
            self.blocks.keep(index, data)
        return data[max(start - first, 0) : stop - first]
