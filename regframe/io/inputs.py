"""The inputs of a command: the output is none of them, and none of them is replaced while it is read.

A command notes each input when it opens it (`note`). Before anything that it wrote gets its name, all that it noted are looked at
again (`check_untouched`): an output made of two states of one file would be wrong without a word.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_MOST = 4096
"""Number of files of a folder that are looked at, in the order of their names: some 20 ms on a disk. Beyond it only the
folders' own times tell."""
_BESIDE = {".mhd": (".raw", ".zraw"), ".nhdr": (".raw", ".raw.gz"), ".hdr": (".img",)}
"""Files that a header alone names, by its suffix: formats whose pixels lie beside it."""

_ZARR = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")
"""Files by which a folder is known to be a Zarr store, of format 3 or 2."""

Fact = tuple[Path, str, bool, int, int, int]
"""A folder, a name in it, whether size and time count, both, and the inode."""
Facts = tuple[Fact, ...]
_noted: ContextVar[dict[Path, Facts] | None] = ContextVar("noted", default=None)


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Notes of inputs are kept while the block runs; a block in a block keeps its own."""
    token = _noted.set({})
    try:
        yield
    finally:
        _noted.reset(token)


def note(source: object) -> None:
    """Remember how an input is now; what is no path of this disk, or is not there, is passed over."""
    noted = _noted.get()
    if noted is None or not isinstance(source, str | os.PathLike):
        return
    path = Path(source).absolute()
    if path not in noted and path.exists():
        noted[path] = facts_of(path)


def check_untouched(output: Path | None = None) -> None:
    """Raise ValueError, in one sentence, where an input is no longer as it was noted, or would be replaced by ``output``."""
    noted = _noted.get() or {}
    if output is not None:
        check_apart(output, noted)
    for path, before in noted.items():
        if any(_fact(*fact[:3]) != fact for fact in before):
            raise ValueError(
                f"wanted {path} to stay as it is while it is read, got one that was replaced or changed meanwhile; nothing was "
                "written: run the same again once it is complete"
            )


def facts_of(path: Path) -> Facts:
    """Size, time of change and inode of an input: of a file and those that belong to it, of a folder and what it holds.

    Of folders in a Zarr store the time counts too, so that a new chunk is seen; elsewhere others may put files into them.
    """
    if not path.is_dir():
        beside = (path.with_suffix(suffix).name for suffix in _BESIDE.get(path.suffix.lower(), ()))
        return tuple(_fact(path.parent, name, timed=True) for name in (path.name, *beside))
    store = any((path / name).is_file() for name in _ZARR)
    facts, left = [_fact(path, "", store)], _MOST
    for folder, folders, files in os.walk(path):
        here = Path(folder).relative_to(path)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        facts += [_fact(path, str(here / name), store) for name in folders]
        kept = sorted(name for name in files if not name.startswith(".") or name in _ZARR)[: max(0, left)]
        facts += [_fact(path, str(here / name), timed=True) for name in kept]
        left -= len(kept) + len(folders)
        if left < -_MOST:
            break
    return tuple(facts)


def _fact(base: Path, name: str, timed: bool) -> Fact:
    """What is compared of one file or folder; zeros for one that is not there."""
    try:
        found = (base / name).stat()
    except OSError:
        return base, name, timed, 0, 0, 0
    return base, name, timed, *((found.st_size, found.st_mtime_ns) if timed else (0, 0)), found.st_ino


def steady(path: Path, read: Callable[[Path], T]) -> T:
    """What ``read`` makes of ``path``, read again where the file or folder was replaced meanwhile.

    ValueError where that happens over and over.
    """
    for _ in range(5):
        before = facts_of(path)
        try:
            found = read(path)
        except (ValueError, OSError):
            if all(_fact(*fact[:3]) == fact for fact in before):
                raise
            continue
        if all(_fact(*fact[:3]) == fact for fact in before):
            return found
    raise ValueError(
        f"wanted {path} to stay as it is while it is read, got one that is replaced over and over; try again"
    )


def check_apart(output: Path, inputs: Iterable[object]) -> None:
    """Raise ValueError, in one sentence, where ``output`` is an input, lies in one, or holds one.

    What is no path of this disk is passed over.
    """
    place = Path(os.path.realpath(output))
    named = Path(os.path.realpath(output.parent)) / output.name
    for source in inputs:
        if not isinstance(source, str | os.PathLike):
            continue
        given = Path(source)
        real = Path(os.path.realpath(given))
        if real in (place, named) or _same(output, given):
            how = "which is an input itself"
        elif real.is_dir() and (real in place.parents or real in named.parents):
            how = f"which lies in the input {given}"
        elif named in real.parents or place in real.parents:
            how = f"in which the input {given} lies"
        else:
            continue
        raise ValueError(f"wanted an output apart from what is read, got {output}, {how}; choose another name")


def _same(one: Path, other: Path) -> bool:
    with contextlib.suppress(OSError):
        return one.samefile(other)
    return False
