"""The header of a LAS file, checked against the bytes that are there.

The reader's library takes every count in it at its word: of four billion records that no file holds it makes four billion empty
ones. Source: ASPRS, LAS specification 1.4-R15.
"""

from __future__ import annotations

import struct
from pathlib import Path

_HEADER = 375
"""Bytes of the longest header, that of version 1.4 and 1.5's beginning."""
_SHORTEST = 227
"""Bytes of the shortest header, that of versions 1.0 to 1.2."""
_RECORD, _LATE_RECORD = 54, 60
"""Bytes of the header of a variable length record, and of an extended one."""


def check_las(path: Path) -> None:
    """Refuse a LAS file whose header counts more than the file can hold.

    Raises:
        ValueError: naming the field, what it says and what there is.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEADER)
    if len(head) < _SHORTEST:
        raise ValueError(f"its header has {len(head)} bytes, not at least {_SHORTEST}")
    minor = head[25]
    length, points, records = struct.unpack_from("<HII", head, 94)
    if not _SHORTEST <= length <= points <= size:
        raise ValueError(f"its header says {length} bytes of header and points from byte {points} on, of {size} bytes")
    _check_records(records, (points - length) // _RECORD, "variable length records")
    if minor >= 4 and len(head) == _HEADER:
        first, late = struct.unpack_from("<QI", head, 235)
        _check_records(late, max(size - first, 0) // _LATE_RECORD, "extended variable length records")


def _check_records(said: int, room: int, what: str) -> None:
    if said > room:
        raise ValueError(f"its header counts {said} {what}, where at most {room} fit")
