"""A Zarr store under an address, read-only: nothing is written to it but by whole objects, see `Remote.write_bytes`."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import Future
from typing import Any

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest

from .address import ATTEMPTS, Remote, check_size
from .errors import RemoteError
from .held import Held

_METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
_XML = 16 << 20
"""Bytes of metadata of one node at most: those of a plate of thousands of images are a few megabytes."""


class RemoteZarr(Store):
    """The objects below an address as a Zarr store: a chunk, or part of a shard, is one request.

    Args:
        root: address of the store.
        most: bytes of one chunk at most, compressed; larger ones are refused before they are read.
    """

    def __init__(self, root: Remote, most: int = 1 << 31) -> None:
        super().__init__(read_only=True)
        self.root, self.most = root, most
        self._held = Held()
        self._tags: dict[str, int] = {}
        self._coming: dict[str, Future[None]] = {}  # objects that are being read as a whole

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteZarr) and self.root == other.root

    def __hash__(self) -> int:
        return hash(self.root)

    def __str__(self) -> str:
        return str(self.root)

    def with_read_only(self, read_only: bool = False) -> RemoteZarr:
        """The store itself: it is always read-only."""
        return self

    supports_writes = supports_deletes = supports_partial_writes = False

    @property
    def supports_listing(self) -> bool:
        """Whether the store says what it holds."""
        return self.root.lists

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """The bytes under a key, or part of them; None where there are none."""
        if key.rpartition("/")[2] in _METADATA:
            return await self._got(key, prototype, byte_range)
        coming = self._coming.get(key)
        if coming is not None:  # another thread reads the whole: what it holds then need not be read twice
            await asyncio.wrap_future(coming)
        if byte_range is not None or key in self._coming:
            return await self._got(key, prototype, byte_range)
        mine: Future[None] = Future()
        self._coming[key] = mine
        try:
            return await self._got(key, prototype, None)
        finally:
            del self._coming[key]
            mine.set_result(None)

    async def _got(self, key: str, prototype: Any, byte_range: Any) -> Any:
        metadata = key.rpartition("/")[2] in _METADATA
        where = self.root / key
        obs, store = where.store()
        options: Any = None
        if isinstance(byte_range, RangeByteRequest):
            options = {"range": (byte_range.start, byte_range.end)}
        elif isinstance(byte_range, OffsetByteRequest):
            options = {"range": {"offset": byte_range.offset}}
        elif isinstance(byte_range, SuffixByteRequest):
            options = {"range": {"suffix": byte_range.suffix}}
        kept = self._kept(key, byte_range)
        if kept is None and byte_range is None and not metadata:
            kept = await asyncio.to_thread(self._completed, key)
        if kept is not None:
            return prototype.buffer.from_bytes(kept)
        for attempt in range(ATTEMPTS):
            try:
                answer = await obs.get_async(store, where.key, **({"options": options} if options else {}))
                first, last = answer.range
                check_size(where, last - first, _XML if metadata else self.most)
                data = bytes(await answer.bytes_async())
                break
            except RemoteError:
                raise
            except Exception as error:  # noqa: BLE001 - obstore's own, which name secrets
                if isinstance(error, FileNotFoundError):
                    return None
                said, again = where.said("read", error)
                if said.kind == "denied" and metadata:  # of a bucket that may not be listed, what is not there
                    return None
                if not again or attempt + 1 == ATTEMPTS:
                    raise said from None
                await asyncio.sleep(0.2 * 2**attempt)
        if len(data) != last - first:
            raise RemoteError(f"cannot read {where}: it ends after {len(data)} of {last - first} bytes")
        if not metadata:
            self._held.keep((key, byte_range), data)
            self._tags[key] = zlib.crc32(str(answer.meta.get("e_tag") or "").encode())
        return prototype.buffer.from_bytes(data)

    def _kept(self, key: str, byte_range: Any) -> bytes | None:
        """What was read before: the part itself, or the object that it is part of."""
        part = self._held.get((key, byte_range))
        if part is not None or byte_range is None:
            return part
        whole = self._held.get((key, None))
        if whole is None:
            return None
        if isinstance(byte_range, RangeByteRequest):
            return whole[byte_range.start : byte_range.end]
        if isinstance(byte_range, SuffixByteRequest):
            return whole[-byte_range.suffix :]
        return None

    def _completed(self, key: str) -> bytes | None:
        """The whole of an object, some parts of which were read before: only the rest is read. None where none were, and where
        another object has come under its name since."""
        parts = {
            (part.start, part.end): data
            for name, part in self._held.keys()  # noqa: SIM118 - no dict
            if name == key and isinstance(part, RangeByteRequest) and (data := self._held.get((name, part))) is not None
        }
        if not parts:
            return None
        where = self.root / key
        tag, size, _ = where.stamp()
        if tag != self._tags.get(key):
            return None
        check_size(where, size, self.most)
        gaps, at = [], 0
        for start, end in sorted(parts):
            if start > at:
                gaps.append((at, start))
            at = max(at, end)
        if size > at:
            gaps.append((at, size))
        whole = bytearray(size)
        for (start, end), data in [*parts.items(), *zip(gaps, where.read_ranges(gaps), strict=True)]:
            whole[start:end] = data
        self._held.keep((key, None), bytes(whole))
        for part in parts:
            self._held.drop((key, RangeByteRequest(*part)))
        return bytes(whole)

    async def get_partial_values(self, prototype: Any, key_ranges: Iterable[tuple[str, Any]]) -> list[Any]:
        """The parts under several keys, at the same time."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Whether there is an object under a key."""
        return await asyncio.to_thread((self.root / key).is_file)

    async def set(self, key: str, value: Any) -> None:
        """Refused."""
        raise RemoteError(f"cannot write {self.root / key}: it was opened for reading")

    async def delete(self, key: str) -> None:
        """Refused."""
        raise RemoteError(f"cannot delete {self.root / key}: it was opened for reading")

    async def _keys(self, prefix: str) -> list[str]:
        where = self.root / prefix if prefix else self.root
        if not self.root.lists:
            raise RemoteError(f"cannot list {where}: a web server does not say what it holds")
        head = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        return [head + key for key in await asyncio.to_thread(lambda: list(where.keys()))]

    async def list(self) -> AsyncIterator[str]:
        """All keys."""
        for key in await self._keys(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """All keys below a prefix."""
        for key in await self._keys(prefix):
            yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """What lies directly below a prefix."""
        where = self.root / prefix.strip("/") if prefix.strip("/") else self.root
        if not self.root.lists:
            raise RemoteError(f"cannot list {where}: a web server does not say what it holds")
        for name in await asyncio.to_thread(where.children):
            yield name
