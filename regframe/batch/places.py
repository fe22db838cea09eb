"""What a cell of a manifest names: a file on this disk, whatever the bytes of its name, or an address of a store elsewhere."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, PlainValidator

from ..io.paths import shown
from ..remote.address import Remote, is_address, locate
from ..remote.errors import RemoteError

_METADATA = ("zarr.json", ".zattrs", ".zgroup", ".zarray")
"""Objects at the root of a Zarr store, of format 3 or 2, by which a store is known to be the same."""
_BYTE = re.compile(r"\\x([0-9a-fA-F]{2})")


def _split(value: Any) -> Any:
    return tuple(p.strip() for p in value.split(";") if p.strip()) if isinstance(value, str) else value


def _place(value: Any) -> Path | Remote:
    return locate(value)


def _file(value: Any) -> Any:
    if is_address(value):
        raise ValueError(
            "a file on this disk; copy it, for an address can stand in fixed, moving and apply_image alone"
        )
    return value


def _start(value: Any) -> Any:
    return value if value in ("auto", "identity") else str(_file(value))


def _text(place: Any) -> str:
    return shown(str(place))


Place = Annotated[Path | Remote, PlainValidator(_place), PlainSerializer(_text, when_used="json")]
"""A path, or an address; in JSON without what is secret in it, and with bytes that are no UTF-8 written as ``\\xe9``."""
File = Annotated[Path, BeforeValidator(_file), PlainSerializer(_text, when_used="json")]
"""A path on this disk."""
Places = Annotated[tuple[Place, ...], BeforeValidator(_split)]
Files = Annotated[tuple[File, ...], BeforeValidator(_split)]
Start = Annotated[str, BeforeValidator(_start), PlainSerializer(_text, when_used="json")]
"""``auto``, ``identity`` or the path of a start."""


def argument(place: Path | Remote) -> str:
    """A place as an argument of a command, an address with its query."""
    return place.address if isinstance(place, Remote) else str(place)


def named(folder: Path, cell: str, encoding: str = "utf-8") -> str:
    """The path or address that a cell names; relative paths are relative to ``folder``.

    Of the readings of a cell the first is taken under which there is a file, else the plain one: without blanks around it; as it
    stands; by the bytes that the manifest has where it is no UTF-8 but ``encoding``; with ``\\xe9`` for a byte, as messages and
    ``ls`` write it.
    """
    plain = cell.strip()
    if is_address(plain):
        return plain
    readings = [plain, cell]
    if encoding not in ("utf-8", "utf-16", "utf-32"):
        readings += [os.fsdecode(text.encode(encoding)) for text in (plain, cell)]
    if _BYTE.search(plain):
        readings.append(_BYTE.sub(lambda found: os.fsdecode(bytes([int(found[1], 16)])), plain))
    paths = [(folder / _at_home(text)).absolute() for text in dict.fromkeys(readings)]
    return str(next((path for path in paths if _exists(path)), paths[0]))


def several(folder: Path, cell: str, encoding: str = "utf-8") -> tuple[str, ...]:
    """The places of a cell that lists them between semicolons; one where a file's own name has a semicolon."""
    whole = named(folder, cell, encoding)
    if ";" in cell and not is_address(whole) and _exists(Path(whole)):
        return (whole,)
    return tuple(named(folder, part, encoding) for part in cell.split(";") if part.strip())


def absent(place: Path | Remote) -> str | None:
    """Why there is nothing at a place, ``""`` where there just is not; None where there is something."""
    try:
        return None if place.exists() else ""
    except RemoteError as error:
        return str(error)
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        return error.strerror or str(error)


def said(value: Any) -> str:
    """A cell for a message: quoted, an address without user, password and query."""
    if not is_address(value):
        return repr(value)
    scheme, _, rest = str(value).partition("://")
    host, slash, key = rest.partition("?")[0].partition("/")
    return repr(f"{scheme}://{host.rpartition('@')[2]}{slash}{key}")


def remote_signature(place: Remote) -> dict[str, Any] | None:
    """Size, time and digest of an object, or of the metadata of a store, as the store states them; None where it does not."""
    try:
        objects = [place] if place.is_file() else [one for one in (place / n for n in _METADATA) if one.is_file()]
        stamps: Sequence[tuple[int, int, int]] = [one.stamp() for one in objects]
    except RemoteError:
        return None
    if not stamps:
        return None
    digest = hashlib.sha256(
        repr([(one.name, tag, size) for one, (tag, size, _) in zip(objects, stamps, strict=True)]).encode()
    )
    return {"size": sum(s[1] for s in stamps), "time": max(s[2] for s in stamps), "digest": digest.hexdigest()}


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _at_home(text: str) -> Path:
    """The path, a ``~`` at its beginning as the folder of a user, where there is such a one."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)
