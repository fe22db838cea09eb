"""Unpacking in bounded steps: no stream becomes larger than it was allowed, whatever its header says."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .limits import allowance, most_bytes, too_much
from .places import check_file

_STEP = 1 << 22
"""Bytes that are unpacked at a time: 4 MiB."""
_MEMORY = 1 << 30
"""Bytes that the dictionary of an LZMA stream may take; its highest preset takes 64 MiB."""
_GZIP = b"\x1f\x8b"

_MAKERS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(31),
    "zlib": lambda: zlib.decompressobj(15),
    "bz2": bz2.BZ2Decompressor,
    "lzma": lambda: lzma.LZMADecompressor(memlimit=_MEMORY),
}


def expand(data: Any, kind: str, most: int, make: Callable[[], Any] | None = None) -> bytes:
    """The unpacked bytes of a stream, and of those that follow it.

    Args:
        data: the packed bytes.
        kind: ``gzip``, ``zlib``, ``bz2`` or ``lzma``.
        most: bytes that may come out.
        make: a new decompressor, where that of ``kind`` is not the right one.

    Raises ValueError, half a sentence, for a stream that is damaged, cut short, or goes on after ``most`` bytes.
    """
    rest, parts, size = bytes(data), [], 0
    make = make or _MAKERS[kind]
    while rest:
        stream = make()
        try:
            while not stream.eof:
                part = stream.decompress(rest, most + 1 - size)
                rest = getattr(stream, "unconsumed_tail", b"")
                size += len(part)
                if size > most:
                    raise ValueError(f"its {kind} stream unpacks to more than {most} bytes")
                parts.append(part)
                if not part and not rest and not stream.eof:
                    raise ValueError(f"its {kind} stream is cut short")
        except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
            raise ValueError(f"its {kind} stream is damaged ({error})") from error
        rest = stream.unused_data
        if kind == "zlib" or not rest.strip(b"\0"):
            break
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_plain(path: str | os.PathLike[str], most: int | None = None) -> bytes:
    """The bytes of a regular file, unpacked where it is gzipped.

    Args:
        path: of the file.
        most: bytes that may come out; None: what `allowance` grants its size.

    Raises ValueError for what is no regular file, a damaged stream and one that is too large; OSError as opening it does.
    """
    path = Path(path)
    check_file(path, folder=False)
    size = path.stat().st_size
    if size > (most_bytes() if most is None else most):
        raise too_much(path.name, most_bytes() if most is None else most)
    raw = path.read_bytes()
    if raw[:2] != _GZIP:
        return raw
    granted = allowance(len(raw)) if most is None else most
    try:
        return expand(raw, "gzip", granted)
    except ValueError as error:
        if "more than" in str(error):
            raise too_much(path.name, granted) from error
        raise


def head_of(path: str | os.PathLike[str], count: int) -> bytes:
    """The first ``count`` bytes of a regular file, unpacked where it is gzipped; what there is of them where it is damaged."""
    check_file(path, folder=False)
    with Path(path).open("rb") as file:
        head = file.read(max(count, 2))
        if head[:2] != _GZIP:
            return head[:count]
        file.seek(0)
        stream, out = zlib.decompressobj(31), b""
        try:
            while len(out) < count and not stream.eof and (part := stream.unconsumed_tail or file.read(4096)):
                out += stream.decompress(part, count - len(out))
        except zlib.error:
            pass
        return out


def unpacked_size(path: str | os.PathLike[str], most: int) -> int:
    """Bytes that a file comes to, unpacked where it is gzipped, counted without keeping them; counting stops beyond ``most``.

    Raises ValueError, half a sentence, for a damaged stream.
    """
    path = Path(path)
    check_file(path, folder=False)
    with path.open("rb") as plain:
        if plain.read(2) != _GZIP:
            return path.stat().st_size
    found = 0
    try:
        with gzip.open(path) as file:
            while found <= most and (block := file.read(_STEP)):
                found += len(block)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"its gzip stream is damaged ({error})") from error
    return found
