"""Hidden folders ``.NAME.….partial`` in which outputs are written: whose each is, and what becomes of those of the dead.

The folder's name holds who made it: a mark of the machine as it is running now, the number of the process and the moment at which
that began. A process number alone is given to others after a while; with its beginning it is not. The file `OWNER` in it says
the same to people. The next run of the same output removes the folders of processes that are dead, ``regframe doctor --clean``
those of all outputs. A folder in which the moves were written down (`MOVES`) is not removed before they are completed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .paths import shown
from .replacing import FULL, not_written

OWNER, MOVES = ".owner.json", ".moves.json"
"""Files in such a folder: who made it; which of its files get which names. Neither is part of an output."""
SUFFIX = ".partial"
_NAME = re.compile(
    r"\.(?P<stem>.*)\.(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-(?P<start>\d+)-(?P<random>[a-z0-9_]+)\.partial"
)
_LONGEST = 120
"""Bytes of an output's name that the folder's name repeats: with the rest, at most 60 bytes, it stays below the 255 that file
systems take, and below the 143 of encrypted ones where the output's name is short."""

_TRIES, _PAUSE = 10, 0.02
"""How often a folder is removed in which something appears while it is, and seconds between: another thread of this process, as
of a store's library, still writes into it."""

live: set[Path] = set()
"""The folders of this process; what ends a process by force removes them."""
past: deque[Path] = deque(maxlen=16)
"""The last folders of this process that were removed: what a thread that was not told to stop makes anew, `sweep` removes. A
command writes a few at once; a process that runs for days must not keep them all."""


@dataclass(frozen=True)
class Claim:
    """A hidden folder that an output was, or is, written in.

    Args:
        path: the folder.
        state: ``alive`` and ``dead``, as its process is; ``unknown`` for one of another machine or container.
        owner: its process in words.
    """

    path: Path
    state: Literal["alive", "dead", "unknown"]
    owner: str


# --------------------------------------------------------------------------------------------------------------- making


@contextlib.contextmanager
def claimed(target: Path) -> Iterator[Path]:
    """A new hidden folder beside ``target``, removed at the end, whatever happens.

    Folders that dead processes left for the same output go first. Parents of ``target`` are made; those are removed again where
    the block raises. OSError where nothing can be made there.
    """
    made = [folder for folder in (target.parent, *target.parent.parents) if not folder.exists()]  # deepest first
    target.parent.mkdir(parents=True, exist_ok=True)
    heal(target)
    folder: Path | None = None
    try:
        try:
            folder = hidden(target.parent, target.name)
            live.add(folder)
            facts = {"process": os.getpid(), "host": socket.gethostname(), "writes": shown(target.name)}
            (folder / OWNER).write_text(json.dumps(facts), encoding="utf-8")
        except OSError as error:
            if error.errno in FULL:
                raise not_written(target, error.errno) from error
            raise
        yield folder
        made = []
    finally:
        if folder is not None:
            remove(folder)
            live.discard(folder)
        for empty in made:
            with contextlib.suppress(OSError):
                empty.rmdir()


def hidden(parent: Path, name: str) -> Path:
    """Make a hidden folder of this process in ``parent``, for an output called ``name``."""
    own = f"{_machine()}-{os.getpid()}-{_start_of(os.getpid())}-"
    return Path(tempfile.mkdtemp(prefix=f".{_stem(name)}.{own}", suffix=SUFFIX, dir=parent))


def remove(folder: Path) -> None:
    """Remove a hidden folder; what was to be moved out of it according to `MOVES` is moved first."""
    with contextlib.suppress(OSError):
        complete(folder)
    for _ in range(_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.lexists(folder):
            break
        time.sleep(_PAUSE)
    past.append(folder)


def sweep() -> None:
    """Remove again what threads of this process, which is about to end, write into folders that were removed."""
    for _ in range(_TRIES if past else 0):
        for folder in list(past):
            shutil.rmtree(folder, ignore_errors=True)
        time.sleep(_PAUSE / 2)


def _stem(name: str) -> str:
    """The beginning of an output's name, cut between characters."""
    kept = name
    while len(os.fsencode(kept)) > _LONGEST:
        kept = kept[:-1]
    return kept


# -------------------------------------------------------------------------------------------------------- several moves


def write_moves(folder: Path, moves: Sequence[tuple[Path, Path]]) -> None:
    """Write down which items of ``folder`` get which names beside it, before the first of them does."""
    names = [[os.fsencode(item.name).hex(), os.fsencode(target.name).hex()] for item, target in moves]
    aside = folder / f"{MOVES}.new"
    with aside.open("w", encoding="utf-8") as file:
        json.dump(names, file)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(folder / MOVES)


def drop_moves(folder: Path) -> None:
    """Forget what was written down: all is done, or all was put back."""
    (folder / MOVES).unlink(missing_ok=True)


def complete(folder: Path) -> bool:
    """Carry out the moves that were written down and are not done yet; returns whether there were any."""
    try:
        names = json.loads((folder / MOVES).read_text(encoding="utf-8"))
        moves = [(_plain(folder, item), _plain(folder.parent, target)) for item, target in names]
    except (OSError, ValueError, TypeError):
        return False
    for number, (item, target) in enumerate(moves):
        if not os.path.lexists(item):
            continue
        if target.is_dir() and not target.is_symlink():
            with contextlib.suppress(FileNotFoundError):
                target.rename(folder / f".old-{number}")
        with contextlib.suppress(FileNotFoundError):  # another process completes the same
            item.rename(target)
    drop_moves(folder)
    return True


def _plain(folder: Path, name: str) -> Path:
    """A path in ``folder`` of a name that was written down; ValueError for a name that leads elsewhere."""
    text = os.fsdecode(bytes.fromhex(name))
    if Path(text).name != text or text in ("", ".", ".."):
        raise ValueError(f"wanted a plain name, got {text!r}")
    return folder / text


# -------------------------------------------------------------------------------------------------------------- finding


def heal(target: Path) -> None:
    """Remove the hidden folders that dead processes left for the output ``target``; complete what they were about to move."""
    stem = _stem(target.name)
    for claim in found(target.parent):
        match = _NAME.fullmatch(claim.path.name)
        if claim.state == "dead" and match is not None and match["stem"] == stem:
            remove(claim.path)


def found(folder: Path) -> list[Claim]:
    """The hidden folders of outputs that lie in ``folder``."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if e.name.startswith(".") and e.name.endswith(SUFFIX))
    except OSError:
        return []
    return [_claim(folder / name, match) for name in names if (match := _NAME.fullmatch(name))]


def _claim(path: Path, match: re.Match[str]) -> Claim:
    pid, start = int(match["pid"]), int(match["start"])
    host = ""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        host = str(json.loads((path / OWNER).read_text(encoding="utf-8"))["host"])
    owner = f"process {pid}" + (f" on {host}" if host else "")
    if match["machine"] != _machine():
        return Claim(path, "unknown", owner)
    return Claim(path, "alive" if _start_of(pid) == start else "dead", owner)


@functools.cache
def _machine() -> str:
    """A mark of this machine since it was started, and of the set of process numbers (container) that this process sees."""
    facts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        facts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:8]


def _start_of(pid: int) -> int:
    """When a process began, in the system's clock ticks since its own start; 0 where there is no such process, 1 where the system
    does not tell.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        fields = text.rpartition(")")[2].split()
        return 0 if fields[0] in "ZX" else int(fields[19])
    except (OSError, ValueError, IndexError):
        if Path("/proc/self/stat").exists():
            return 0
    try:  # no /proc
        os.kill(pid, 0)
    except ProcessLookupError:
        return 0
    except OSError:
        pass
    return 1
