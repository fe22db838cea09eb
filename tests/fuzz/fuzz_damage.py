"""Damage by seed: bits, lengths, fields of headers and of JSON, values of other types, numbers that no image has."""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

NUMBERS = ("0", "-1", "1", "65535", "65536", "2147483647", "-2147483648", "4294967296", "9223372036854775807", "1e300", "-1e300",
           "1e-300", "NaN", "Infinity", "1000000000000", "0.5")  # fmt: skip
WORDS: tuple[Any, ...] = (
    None,
    True,
    [],
    {},
    "",
    "x",
    -1,
    0,
    1e300,
    10**12,
    [[]],
    {"a": 1},
    ["a"],
    "\x1b[31mred",
    "../../up",
    3.5,
)


def damage(path: Path, seed: int) -> str:
    """Damage a file, or one file of a folder, in place; returns what was done."""
    rng = random.Random(seed)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        names = [p for p in files if p.name in ("zarr.json", ".zarray", ".zattrs", ".zgroup")]
        path = rng.choice(names if names and rng.random() < 0.6 else files)
    data = path.read_bytes()
    ways = list(_WAYS)
    if path.name.endswith((".json", ".zarray", ".zattrs", ".zgroup", ".geojson")):
        ways += ["json"] * 8
    if data[:4] in (b"II*\0", b"MM\0*"):
        ways += ["ifd"] * 6
    if data[:2] == b"\x1f\x8b":
        ways += ["inside"] * 3
    way = rng.choice(ways)
    path.write_bytes({**_WAYS, "json": _json, "ifd": _ifd, "inside": _inside}[way](data, rng))
    return f"{way} in {path.name}"


def _bits(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if out:
            out[_at(out, rng)] ^= 1 << rng.randrange(8)
    return bytes(out)


def _at(data: Any, rng: random.Random) -> int:
    """A place in a file, headers more often than pixels."""
    return rng.randrange(min(len(data), 512) if rng.random() < 0.6 else len(data))


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _gone(data: bytes, rng: random.Random) -> bytes:
    at = _at(data or b"0", rng)
    return data[:at] + data[at + rng.choice((1, 2, 4, 16, 64)) :]


def _twice(data: bytes, rng: random.Random) -> bytes:
    at = _at(data or b"0", rng)
    return data[:at] + data[at : at + rng.choice((1, 4, 16, 256))] + data[at:]


def _wild(data: bytes, rng: random.Random) -> bytes:
    """A whole number of 1 to 8 bytes with an end of its range."""
    out, width = bytearray(data), rng.choice((1, 2, 4, 8))
    at = _at(out or b"0", rng)
    value = rng.choice((0, 1, -1, 1 << (8 * width - 1), (1 << (8 * width - 1)) - 1, (1 << (8 * width)) - 2))
    out[at : at + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, rng.choice(("little", "big")))
    return bytes(out)


def _number(data: bytes, rng: random.Random) -> bytes:
    """Another number where one is written in digits."""
    found = list(re.finditer(rb"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?", data[: 1 << 16]))
    if not found:
        return _wild(data, rng)
    match = rng.choice(found)
    return data[: match.start()] + rng.choice(NUMBERS).encode() + data[match.end() :]


def _word(data: bytes, rng: random.Random) -> bytes:
    """Other words where letters are written."""
    found = list(re.finditer(rb"[A-Za-z_]{3,}", data[: 1 << 16]))
    if not found:
        return _bits(data, rng)
    match, other = rng.choice(found), rng.choice(found)
    new = rng.choice(
        (other[0], b"", b"x" * 3000, b"line skip: 5\n", b"'''", b"((((", b"\xff\xfe", b"<!ENTITY a 'b'>", b"NaN")
    )
    return data[: match.start()] + new + data[match.end() :]


def _json(data: bytes, rng: random.Random) -> bytes:
    """A value of a JSON document replaced by one of another type, or gone."""
    with contextlib.suppress(ValueError):
        document = json.loads(data)
        places: list[tuple[Any, Any]] = []
        _places(document, places)
        for _ in range(rng.choice((1, 1, 1, 2))):
            if places:
                holder, key = rng.choice(places)
                with contextlib.suppress(KeyError, IndexError, TypeError):
                    if rng.random() < 0.15:
                        del holder[key]
                    else:
                        holder[key] = rng.choice(WORDS)
        return json.dumps(document).encode()
    return _bits(data, rng)


def _places(node: Any, out: list[tuple[Any, Any]]) -> None:
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        out.append((node, key))
        _places(value, out)


def _ifd(data: bytes, rng: random.Random) -> bytes:
    """Type, count or value of a tag of the first page of a TIFF."""
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", data, 4)
    if start + 2 > len(data):
        return _bits(data, rng)
    (count,) = struct.unpack_from(order + "H", data, start)
    out, at = bytearray(data), start + 2 + 12 * rng.randrange(max(count, 1))
    field, width = rng.choice(((0, 2), (2, 2), (4, 4), (8, 4), (8, 4), (8, 2)))
    value = rng.choice((0, 1, 2, 3, 5, 7, 17, 255, 257, 65535, 1 << 30, (1 << 31) - 1, (1 << 32) - 1, start))
    out[at + field : at + field + width] = (value & ((1 << 8 * width) - 1)).to_bytes(
        width, "little" if order == "<" else "big"
    )
    return bytes(out)


def _inside(data: bytes, rng: random.Random) -> bytes:
    """Damage to what is packed."""
    try:
        plain = gzip.decompress(data)
    except (OSError, EOFError):
        return _bits(data, rng)
    return gzip.compress(rng.choice((_bits, _number, _wild, _cut, _word))(plain, rng), mtime=0)


_WAYS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bits": _bits,
    "cut": _cut,
    "gone": _gone,
    "twice": _twice,
    "wild": _wild,
    "number": _number,
    "word": _word,
}
