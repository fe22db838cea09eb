"""Blosc chunks whose length is checked before they are decoded: the library trusts their header, and reads on behind a chunk
that was cut short."""

from __future__ import annotations

import math
import struct
from typing import Any

import zarr
from zarr.codecs import BloscCodec
from zarr.registry import register_codec
from zarr.storage import WrapperStore

_HEADER = 16
_METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")


class CheckedBlosc(BloscCodec):
    """The codec of zarr 3, in shards too."""

    async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        dtype = chunk_spec.dtype
        item = dtype.itemsize if hasattr(dtype, "itemsize") else dtype.to_native_dtype().itemsize
        check_blosc(chunk_bytes[:_HEADER].to_bytes(), len(chunk_bytes), math.prod(chunk_spec.shape) * item)
        return await super()._decode_single(chunk_bytes, chunk_spec)


register_codec("blosc", CheckedBlosc)


class CheckedChunks(WrapperStore[Any]):
    """The chunks of one array of zarr 2, each compressed by Blosc and of ``nbytes`` once decoded."""

    def __init__(self, store: Any, nbytes: int) -> None:
        super().__init__(store)
        self.nbytes = nbytes

    def _with_store(self, store: Any) -> CheckedChunks:
        return CheckedChunks(store, self.nbytes)

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """The bytes under a key; ValueError for a chunk that is not whole."""
        value = await super().get(key, prototype, byte_range)
        if value is not None and key.rpartition("/")[2] not in _METADATA:
            check_blosc(value[:_HEADER].to_bytes(), len(value), self.nbytes)
        return value


def check_blosc(header: bytes, length: int, nbytes: int) -> None:
    """ValueError where a chunk is shorter than its header says, or unpacks to another size than it should."""
    if len(header) < _HEADER:
        raise ValueError(f"a chunk has {length} bytes, which is less than the header of its codec")
    unpacked, _, packed = struct.unpack("<III", header[4:16])
    if packed > length:
        raise ValueError(f"a chunk has {length} of {packed} bytes")
    if unpacked != nbytes:
        raise ValueError(f"a chunk unpacks to {unpacked} bytes instead of {nbytes}")


def open_checked(store: Any, key: str = "") -> Any:
    """A node of a store, read-only, whose chunks are checked."""
    name = f"{CheckedBlosc.__module__}.{CheckedBlosc.__qualname__}"
    with zarr.config.set({"codecs.blosc": name}):
        node: Any = zarr.open(store, mode="r")
        node = node[key] if key else node
        if isinstance(node, zarr.Array) and node.metadata.zarr_format == 2:
            compressor = node.metadata.compressor
            if getattr(compressor, "codec_id", None) == "blosc" and not node.metadata.filters:
                nbytes = math.prod(node.chunks) * node.dtype.itemsize
                return zarr.open_array(CheckedChunks(store, nbytes), path=key or None, mode="r")
        return node
