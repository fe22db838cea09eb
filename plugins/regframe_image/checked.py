"""Blosc chunks of Zarr arrays, checked before they are decoded.

The library trusts the lengths in a chunk's header and reads past the end of a chunk that was cut short.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import zarr
from zarr.codecs import BloscCodec
from zarr.registry import register_codec
from zarr.storage import WrapperStore

_HEADER = 16
"""Bytes of a Blosc header: four of flags, then the unpacked size, the block size and the packed size, four bytes each."""
_METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")


class CheckedBlosc(BloscCodec):
    """zarr's Blosc codec for format 3, chunks inside shards included, with the check of `check_blosc` before it decodes."""

    async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        dtype = chunk_spec.dtype
        item = dtype.itemsize if hasattr(dtype, "itemsize") else dtype.to_native_dtype().itemsize
        check_blosc(chunk_bytes[:_HEADER].to_bytes(), len(chunk_bytes), math.prod(chunk_spec.shape) * item)
        return await super()._decode_single(chunk_bytes, chunk_spec)


register_codec("blosc", CheckedBlosc)


class CheckedChunks(WrapperStore[Any]):
    """The store of one array of zarr format 2 whose chunks Blosc compressed, each of ``nbytes`` bytes once decoded."""

    def __init__(self, store: Any, nbytes: int) -> None:
        super().__init__(store)
        self.nbytes = nbytes

    def _with_store(self, store: Any) -> CheckedChunks:
        return CheckedChunks(store, self.nbytes)

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """The bytes under a key; ValueError for a chunk that `check_blosc` refuses."""
        value = await super().get(key, prototype, byte_range)
        if value is not None and key.rpartition("/")[2] not in _METADATA:
            check_blosc(value[:_HEADER].to_bytes(), len(value), self.nbytes)
        return value


def check_blosc(header: bytes, length: int, nbytes: int) -> None:
    """ValueError where a chunk cannot be what its header says.

    Args:
        header: the first bytes of the chunk.
        length: bytes of the whole chunk.
        nbytes: bytes that it has to unpack to.
    """
    if len(header) < _HEADER:
        raise ValueError(f"a chunk has {length} bytes, which is less than the header of its codec")
    unpacked, _, packed = struct.unpack("<III", header[4:16])
    if packed > length:
        raise ValueError(f"a chunk has {length} of {packed} bytes")
    if unpacked != nbytes:
        raise ValueError(f"a chunk unpacks to {unpacked} bytes instead of {nbytes}")


def open_checked(store: Any, key: str = "") -> Any:
    """The array or group under ``key`` of a store, read-only, whose Blosc chunks are checked as they are read."""
    name = f"{CheckedBlosc.__module__}.{CheckedBlosc.__qualname__}"
    with zarr.config.set({"codecs.blosc": name}):
        node: Any = zarr.open(store, mode="r")
        node = node[key] if key else node
        if isinstance(node, zarr.Array) and node.metadata.zarr_format == 2:
            compressor = node.metadata.compressor
            if getattr(compressor, "codec_id", None) == "blosc" and not node.metadata.filters:
                nbytes = math.prod(node.chunks) * node.dtype.itemsize
                return zarr.open_array(CheckedChunks(store, nbytes), path=key, mode="r")
        return node
