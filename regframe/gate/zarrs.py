"""Zarr stores whose every file and every chunk is held against its size before it is read or unpacked.

`GatedStore` opens regular files inside the store alone and no more of them than a chunk can have; `open_gated` gives every
codec of an array the size that a chunk has to unpack to. Codecs that run code, or that no image has, are refused.
"""

from __future__ import annotations

import copy
import lzma
import math
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numcodecs.abc
import zarr
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec
from zarr.registry import register_codec
from zarr.storage import LocalStore, WrapperStore, ZipStore

from .places import check_inside
from .unpack import expand

METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
"""Files of a store that hold no pixels."""
MOST_METADATA = 256 << 20
"""Bytes of one such file: that of all nodes of a large plate together is some megabytes, the history of a stored result more."""
_SLACK = 1 << 20
"""Bytes that a chunk may have beside twice its pixels: headers, and the index of a shard."""
_BLOSC = 16
"""Bytes of a Blosc header: four of flags, then the unpacked size, the block size and the packed size, four bytes each."""
_TINY = 4096
"""Values of a chunk below which a store of more than `_MANY` chunks is refused: 64 × 64, a quarter of the smallest tile that
writers choose. Each chunk costs some 150 µs, whatever its size."""
_MANY = 1 << 15
"""Chunks of fewer than `_TINY` values that an array may have: 32 768 take five seconds."""
_MOST_INNER = 1 << 24
"""Inner chunks of one shard: their index of 16 bytes each is read as a whole."""
_DICTIONARY = 1 << 28
"""Bytes of the dictionary that a filter of LZMA may declare: its highest preset takes 64 MiB."""

SAFE = frozenset(
    (
        "bytes", "endian", "blosc", "gzip", "zstd", "crc32c", "sharding_indexed", "transpose", "zlib", "bz2", "lzma", "lz4",
        "delta", "shuffle", "fixedscaleoffset", "quantize", "bitround", "packbits", "astype", "crc32", "adler32", "fletcher32",
        "jenkins_lookup3",
    )
)  # fmt: skip
"""Codecs that are decoded, of either format; none of them runs code (``pickle``) or makes objects (``vlen-utf8``, ``json2``)."""


class GatedStore(WrapperStore[Any]):
    """A store on this disk, read-only.

    Args:
        store: a `LocalStore` or `ZipStore`.
        root: its path.
        most: bytes of one chunk file at most; None: of any.
    """

    def __init__(self, store: Any, root: Path | None = None, most: int | None = None) -> None:
        super().__init__(store)
        self.root = root if isinstance(store, LocalStore) else None
        self.most = most

    def _with_store(self, store: Any) -> GatedStore:
        return GatedStore(store, self.root, self.most)

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """The bytes under a key; ValueError for a file that is none, leads out of the store, or is larger than it can be."""
        metadata = key.rpartition("/")[2] in METADATA
        most = MOST_METADATA if metadata else self.most
        if self.root is not None:
            place = self.root / key
            check_inside(place, self.root)
            size = place.stat().st_size if place.is_file() else 0
        else:
            size = _entry_size(self._store, key)
        if most is not None and size > most and (byte_range is None or metadata):
            raise ValueError(f"{key} has {size} bytes, more than the {most} that it can have")
        value = await super().get(key, prototype, byte_range)
        if value is not None and most is not None and len(value) > most:
            raise ValueError(f"{key} has {len(value)} bytes, more than the {most} that it can have")
        return value

    async def get_partial_values(self, prototype: Any, key_ranges: Any) -> list[Any]:
        """The parts under several keys."""
        return [await self.get(key, prototype, part) for key, part in key_ranges]

    async def exists(self, key: str) -> bool:
        """Whether there is something under a key, inside the store."""
        if self.root is not None:
            check_inside(self.root / key, self.root)
        return bool(await super().exists(key))


def _entry_size(store: Any, key: str) -> int:
    """Bytes that the directory of a zip file declares for an entry, more than which are never unpacked; 0 for none."""
    archive = getattr(store, "_zf", None)
    try:
        return int(archive.getinfo(key).file_size) if archive is not None else 0
    except KeyError:
        return 0


def store_at(path: Path, most: int | None = None) -> GatedStore:
    """The store in a folder or zip file.

    Raises ValueError, half a sentence, for a zip file that has an entry twice, or metadata that unpack to more than they can be.
    """
    if path.is_dir():
        return GatedStore(LocalStore(path, read_only=True), path, most)
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if len({entry.filename for entry in entries}) < len(entries):
            raise ValueError("it holds an entry twice")
        for entry in entries:
            if entry.filename.rpartition("/")[2] in METADATA and entry.file_size > MOST_METADATA:
                raise ValueError(f"its entry {entry.filename} declares {entry.file_size} bytes")
    return GatedStore(ZipStore(path, mode="r", read_only=True), None, most)


def open_gated(store: Any, key: str = "") -> Any:
    """The array or group under ``key`` of a store, read-only; chunks of an array are checked and bounded as they are read.

    Raises ValueError, half a sentence, for codecs that are not read and chunks that are none.
    """
    names = {name: f"{cls.__module__}.{cls.__qualname__}" for name, cls in _BOUNDED.items()}
    with zarr.config.set({f"codecs.{name}": where for name, where in names.items()}):
        node: Any = zarr.open(store, mode="r")
        node = node[key] if key else node
        if not isinstance(node, zarr.Array):
            return node
        check_array(node)
        nbytes = math.prod(node.chunks) * node.dtype.itemsize
        if node.metadata.zarr_format == 2:
            return _bounded_v2(node, nbytes)
        for codec in _codecs(node.metadata.codecs):
            inner = getattr(codec, "_codec", None)
            if isinstance(inner, numcodecs.abc.Codec):
                vars(codec)["_codec"] = BoundedCodec(inner, nbytes)
        return node


def check_array(array: Any) -> None:
    """ValueError, half a sentence, for an array whose codecs are not read, or whose chunks are too many or too small."""
    metadata = array.metadata
    if metadata.zarr_format == 2:
        codecs = [getattr(c, "codec_id", "") for c in (metadata.compressor, *(metadata.filters or ())) if c is not None]
    else:
        codecs = [str(c.to_dict()["name"]).removeprefix("numcodecs.") for c in _codecs(metadata.codecs)]
    strange = sorted(set(codecs) - SAFE)
    if strange:
        raise ValueError(f"its codec {strange[0]!r} is not read; write it with blosc, zstd or gzip")
    for c in (getattr(metadata, "compressor", None), *(getattr(metadata, "filters", None) or ())):
        for part in getattr(c, "filters", None) or ():
            if isinstance(part, dict) and int(part.get("dict_size", 0)) > _DICTIONARY:
                raise ValueError(f"its LZMA filter declares a dictionary of {part['dict_size']} bytes")
    if any(n < 1 for n in array.chunks):
        raise ValueError(f"it declares chunks of {array.chunks}")
    count = math.prod(-(-n // c) for n, c in zip(array.shape, array.chunks, strict=True))
    inner = array.shards is not None and math.prod(array.shards) // max(math.prod(array.chunks), 1)
    if inner and inner > _MOST_INNER:
        raise ValueError(f"it declares {inner} chunks in one shard")
    if count > _MANY and math.prod(array.chunks) < _TINY:
        raise ValueError(
            f"it has {count} chunks of {array.chunks} for a shape of {array.shape}, which would take minutes to read; write it "
            "in chunks of 256 × 256 or more"
        )


def _codecs(codecs: Any) -> list[Any]:
    """The codecs of an array of format 3, those inside shards included."""
    found: list[Any] = []
    for codec in codecs:
        found.append(codec)
        found.extend(_codecs((*getattr(codec, "codecs", ()), *getattr(codec, "index_codecs", ()))))
    return found


def _bounded_v2(array: Any, nbytes: int) -> Any:
    """An array of format 2 whose compressor and filters unpack no more than a chunk has."""
    metadata = copy.copy(array.metadata)
    if metadata.compressor is not None:
        most = nbytes if not metadata.filters else 2 * nbytes + _SLACK
        object.__setattr__(metadata, "compressor", BoundedCodec(metadata.compressor, most, exact=not metadata.filters))
    if metadata.filters:
        object.__setattr__(metadata, "filters", tuple(BoundedCodec(f, 8 * nbytes + _SLACK) for f in metadata.filters))
    inner = array._async_array
    return zarr.Array(type(inner)(metadata=metadata, store_path=array.store_path))


class BoundedCodec(numcodecs.abc.Codec):  # type: ignore[misc]
    """A codec of numcodecs that unpacks to ``most`` bytes at most.

    Args:
        inner: the codec.
        most: bytes that may come out of `decode`.
        exact: whether as many have to.
    """

    def __init__(self, inner: Any, most: int, exact: bool = False) -> None:
        self.inner, self.most, self.exact = inner, most, exact
        self.codec_id = inner.codec_id

    def encode(self, buf: Any) -> Any:
        """Refused: files that were opened to be read are not written."""
        raise NotImplementedError

    def decode(self, buf: Any, out: Any = None) -> Any:
        """The unpacked bytes; ValueError, half a sentence, where these are more, or the chunk is damaged."""
        if self.codec_id not in _UNPACKED:
            return self.inner.decode(buf)
        data = memoryview(numcodecs.compat.ensure_contiguous_ndarray(buf)).cast("B")
        return _UNPACKED[self.codec_id](data, self.most, self.exact, self.inner)

    def get_config(self) -> dict[str, Any]:
        """That of the codec."""
        return dict(self.inner.get_config())


def _blosc(data: memoryview, most: int, exact: bool, inner: Any) -> Any:
    check_blosc(bytes(data[:_BLOSC]), len(data), most, exact)
    return inner.decode(data)


def _zstd(data: memoryview, most: int, exact: bool, inner: Any) -> Any:
    declared = zstd_size(bytes(data[:18]))
    if declared is None:
        import imagecodecs

        return imagecodecs.zstd_decode(bytes(data), out=most)
    if declared > most:
        raise ValueError(f"a chunk unpacks to {declared} bytes instead of {most}")
    return inner.decode(data)


def _lz4(data: memoryview, most: int, exact: bool, inner: Any) -> Any:
    declared = struct.unpack("<i", data[:4])[0] if len(data) >= 4 else -1
    if not 0 <= declared <= most:
        raise ValueError(f"a chunk unpacks to {declared} bytes instead of {most}")
    return inner.decode(data)


def _lzma(data: memoryview, most: int, exact: bool, inner: Any) -> Any:
    limit = None if inner.format == lzma.FORMAT_RAW else 1 << 30
    return expand(
        data, "lzma", most, lambda: lzma.LZMADecompressor(format=inner.format, memlimit=limit, filters=_filters(inner))
    )


def _filters(inner: Any) -> Any:
    return inner.filters if inner.format == lzma.FORMAT_RAW else None


def _stream(kind: str) -> Callable[[memoryview, int, bool, Any], bytes]:
    def unpack(data: memoryview, most: int, exact: bool, inner: Any) -> bytes:
        return expand(data, kind, most)

    return unpack


_UNPACKED: dict[str, Callable[[memoryview, int, bool, Any], Any]] = {
    "blosc": _blosc,
    "zstd": _zstd,
    "lz4": _lz4,
    "lzma": _lzma,
    "gzip": _stream("gzip"),
    "zlib": _stream("zlib"),
    "bz2": _stream("bz2"),
}
"""How the streams of each codec that can grow are unpacked in bounds."""


def zstd_size(head: bytes) -> int | None:
    """Bytes that the first frame of a Zstandard stream declares to unpack to; None where it does not say (RFC 8878, 3.1.1)."""
    if len(head) < 6 or head[:4] != b"\x28\xb5\x2f\xfd":
        raise ValueError("a chunk is no Zstandard stream")
    flags = head[4]
    single, size = bool(flags & 0x20), flags >> 6
    if not size and not single:
        return None
    at = 5 + (not single) + (0, 1, 2, 4)[flags & 3]
    width = (1, 2, 4, 8)[size]
    if len(head) < at + width:
        raise ValueError("a chunk is cut short")
    return int.from_bytes(head[at : at + width], "little") + (256 if size == 1 else 0)


def check_blosc(header: bytes, length: int, nbytes: int, exact: bool = True) -> None:
    """ValueError where a chunk cannot be what its header says; the library trusts it, and reads past the end of a short one.

    Args:
        header: the first bytes of the chunk.
        length: bytes of the whole chunk.
        nbytes: bytes that it has to unpack to.
        exact: whether it has to unpack to as many, not to fewer.
    """
    if len(header) < _BLOSC:
        raise ValueError(f"a chunk has {length} bytes, which is less than the header of its codec")
    unpacked, _, packed = struct.unpack("<III", header[4:16])
    if packed > length:
        raise ValueError(f"a chunk has {length} of {packed} bytes")
    if unpacked > nbytes or (exact and unpacked != nbytes):
        raise ValueError(f"a chunk unpacks to {unpacked} bytes instead of {nbytes}")


def _nbytes(spec: Any) -> int:
    """Bytes of a chunk of format 3, unpacked."""
    dtype = spec.dtype
    item = dtype.itemsize if hasattr(dtype, "itemsize") else dtype.to_native_dtype().itemsize
    return int(math.prod(spec.shape) * item)


class BoundedBlosc(BloscCodec):
    """zarr's Blosc codec for format 3, chunks inside shards included, with the check of `check_blosc` before it decodes."""

    async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        check_blosc(chunk_bytes[:_BLOSC].to_bytes(), len(chunk_bytes), _nbytes(chunk_spec))
        return await super()._decode_single(chunk_bytes, chunk_spec)


class BoundedGzip(GzipCodec):
    """zarr's gzip codec for format 3, which unpacks no more than a chunk has."""

    async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        data = expand(chunk_bytes.to_bytes(), "gzip", 2 * _nbytes(chunk_spec) + _SLACK)
        return chunk_spec.prototype.buffer.from_bytes(data)


class BoundedZstd(ZstdCodec):
    """zarr's Zstandard codec for format 3, which unpacks no more than a chunk has."""

    async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        most = 2 * _nbytes(chunk_spec) + _SLACK
        declared = zstd_size(chunk_bytes[:18].to_bytes())
        if declared is None:
            import imagecodecs

            return chunk_spec.prototype.buffer.from_bytes(imagecodecs.zstd_decode(chunk_bytes.to_bytes(), out=most))
        if declared > most:
            raise ValueError(f"a chunk unpacks to {declared} bytes, more than {most}")
        return await super()._decode_single(chunk_bytes, chunk_spec)


_BOUNDED: dict[str, Any] = {"blosc": BoundedBlosc, "gzip": BoundedGzip, "zstd": BoundedZstd}
for _name, _class in _BOUNDED.items():
    register_codec(_name, _class)
