"""How much may be read, unpacked or declared: one absolute limit that the user can raise, and ratios that no sound file has."""

from __future__ import annotations

import os
import re

MOST_BYTES = "REGFRAME_MAX_BYTES"
"""Name of the environment variable that raises (or lowers) the limit of `most_bytes`; ``regframe --max-bytes`` sets it."""
_DEFAULT = 4 << 30
"""Bytes that one file or one array of it may unpack to where nothing is stated: 4 GiB, a quarter of a usual workstation."""
FREE = 64 << 20
"""Bytes to which anything may unpack, whatever its ratio: 64 MiB, which any machine has."""
_RATIO = 200
"""Bytes of text that one packed byte may become beyond `FREE`: tables of measurements are packed 2 to 20 times, columns that hold
one value only up to 100 times; a bomb is packed 1000 times and more."""
_DEFLATE = 1032
"""Bytes that one byte of a deflate stream can become at most, by its format (zlib's manual, "Maximum compression factor")."""

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgt])i?)?b?\s*", re.IGNORECASE)


def parse_size(text: str) -> int:
    """A number of bytes such as ``8G``, ``512 MiB`` or ``1000000``; ValueError in one sentence for anything else."""
    match = _SIZE.fullmatch(text)
    size = round(float(match[1]) * 1024 ** (" kmgt".index((match[2] or " ").lower()))) if match else 0
    if size < 1:
        raise ValueError(f"wanted a size such as 8G or 512M as the most bytes to read, got {text!r}; state one")
    return size


def most_bytes() -> int:
    """Bytes that one file, or one array of it, may take once it is unpacked: what `MOST_BYTES` says, else 4 GiB."""
    stated = os.environ.get(MOST_BYTES, "").strip()
    return parse_size(stated) if stated else _DEFAULT


def set_most_bytes(text: str) -> None:
    """State the limit of `most_bytes` for this process and those that it starts; ValueError for what is no size."""
    parse_size(text)
    os.environ[MOST_BYTES] = text


def allowance(packed: int, ratio: int = _RATIO) -> int:
    """Bytes that ``packed`` bytes may unpack to: ``ratio`` times as many, `FREE` at least, `most_bytes` at most."""
    return min(most_bytes(), max(FREE, ratio * packed))


def check_declared(name: str, what: str, declared: int, there: int, ratio: int = _DEFLATE) -> None:
    """ValueError where a file declares more than its bytes can hold, or than may be read at all.

    Args:
        name: of the file, for the message.
        what: field and value that were declared, for the message: ``"shape (3, 4)"``.
        declared: bytes that this comes to, unpacked.
        there: bytes of the file, packed.
        ratio: bytes that one packed byte can become at most.
    """
    if declared > max(FREE, ratio * there):
        raise ValueError(
            f"wanted a file as large as what it declares, got {what}, {_sized(declared)} once unpacked, in the "
            f"{_sized(there)} of {name!r}; the file is damaged or made to exhaust the memory"
        )
    check_unpacks(name, what, declared)


def check_unpacks(name: str, what: str, declared: int) -> None:
    """ValueError where what a file declares is more than `most_bytes`."""
    if declared > most_bytes():
        raise ValueError(
            f"wanted at most {_sized(most_bytes())} at once, got {what}, {_sized(declared)}, in {name!r}; cut the file, or "
            f"raise the limit with --max-bytes or {MOST_BYTES}"
        )


def too_much(name: str, most: int) -> ValueError:
    """The error for a stream that goes on after ``most`` bytes."""
    mend = f", or raise the limit with --max-bytes or {MOST_BYTES}" if most >= most_bytes() else ""
    return ValueError(
        f"wanted at most {_sized(most)} unpacked from {name!r}, got more; the file is damaged or made to exhaust the "
        f"memory: unpack it yourself if you trust it{mend}"
    )


def _sized(n: int) -> str:
    """A number of bytes in a readable unit."""
    value = float(n)
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.4g} {unit}"
