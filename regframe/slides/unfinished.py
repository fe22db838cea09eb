"""The unfinished output of a slide: what it was begun from, which shards are done, who writes it, and how it is completed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..io.claims import claimed, complete, write_moves
from ..io.inputs import check_untouched
from ..io.outputs import check_own
from ..io.replacing import InTwoSteps, check_kind, put, settle, settle_name
from ..io.whole import check_whole
from ..plugins import PLAN

DONE, LOCK, STORE = "done", "lock", "store"
"""Names in the place of an unfinished output: marks of the shards, the lock, and on a disk the store itself."""


class Unfinished(ABC):
    """The place of an unfinished output, to which several threads and processes write."""

    @abstractmethod
    def check_target(self, overwrite: bool) -> None:
        """FileExistsError where the output exists and may not be replaced."""

    @abstractmethod
    def locked(self) -> AbstractContextManager[None]:
        """Hold the place, which is made where it is not there; BlockingIOError where another process has it."""

    @abstractmethod
    def prepare(self, overwrite: bool, wanted: str, what: str, create: Callable[[], object]) -> None:
        """Leave the place as an earlier run of the same plan left it, or empty it.

        Args:
            overwrite: drop what was begun from something else.
            wanted: hash of the plan.
            what: the plan in words.
            create: makes the empty store.
        """

    @abstractmethod
    def done(self) -> set[int]:
        """Shards that are marked as written."""

    @abstractmethod
    def is_done(self, index: int) -> bool:
        """Whether one shard is."""

    @abstractmethod
    def mark(self, index: int, names: Sequence[str]) -> None:
        """Mark a shard as written, in files of these names, none where it is background."""

    @abstractmethod
    def drop_lost(self) -> None:
        """Take the marks off shards whose files are missing; a reader would take them for background."""

    @abstractmethod
    def complete(self, overwrite: bool, finish: Callable[[Path], Path]) -> None:
        """Give the output its name, once ``finish`` has written what was missing, and drop the marks."""


def same_plan(text: str, wanted: str) -> tuple[bool, str]:
    """Whether the text of a plan is that of the hash ``wanted``, and the plan in words."""
    try:
        found = json.loads(text)
        return found["hash"] == wanted, str(found["what"])
    except (ValueError, KeyError, TypeError):
        return False, "unreadable"


def other_plan(place: Any, told: str) -> ValueError:
    """The error of an unfinished output that was begun from something else."""
    return ValueError(
        f"wanted to go on with {place}, got other inputs or settings than it was begun with ({told}); "
        "run those to the end, pass --overwrite to begin anew, or choose another name"
    )


@dataclass(frozen=True)
class OnDisk(Unfinished):
    """A folder beside the output, which gets the output's name by renaming.

    Args:
        path: the output.
        partial: the folder.
    """

    path: Path
    partial: Path

    def check_target(self, overwrite: bool) -> None:  # noqa: D102
        if not overwrite and (self.path.exists() or self.path.is_symlink()):
            raise FileExistsError(f"output {self.path} exists; choose another name, or pass --overwrite to replace it")
        check_kind(self.path)
        check_own(self.path)
        self.partial.parent.mkdir(parents=True, exist_ok=True)
        self.partial.mkdir(exist_ok=True)

    def locked(self) -> AbstractContextManager[None]:  # noqa: D102
        return _locked(self.partial)

    def prepare(self, overwrite: bool, wanted: str, what: str, create: Callable[[], object]) -> None:  # noqa: D102
        plan, store = self.partial / PLAN, self.partial / STORE
        if plan.is_file():
            try:
                same, told = same_plan(plan.read_text(encoding="utf-8"), wanted)
            except ValueError:  # not even text
                same, told = False, "unreadable"
            if same and store.is_dir():
                return
            if not same and not overwrite:
                raise other_plan(self.partial, told)
        strangers = {p.name for p in self.partial.iterdir()} - {PLAN, DONE, LOCK, STORE, self.path.name}
        strangers = {name for name in strangers if not name.startswith("tmp")}
        if strangers:
            raise FileExistsError(f"{self.partial} holds {sorted(strangers)[0]}, which is not ours; move it away")
        for item in self.partial.iterdir():
            if item.is_dir():
                shutil.rmtree(item)
            elif item.name != LOCK:
                item.unlink()
        create()
        (self.partial / DONE).mkdir()
        aside = self.partial / "tmp-plan"
        aside.write_text(json.dumps({"hash": wanted, "what": what}), encoding="utf-8")
        aside.rename(plan)  # last, because a folder without this file is started again from the beginning

    def done(self) -> set[int]:  # noqa: D102
        folder = self.partial / DONE
        return {int(p.name) for p in folder.iterdir() if p.name.isdecimal()} if folder.is_dir() else set()

    def is_done(self, index: int) -> bool:  # noqa: D102
        return (self.partial / DONE / str(index)).exists()

    def mark(self, index: int, names: Sequence[str]) -> None:  # noqa: D102
        aside = self.partial / f"tmp-{index}-{os.getpid()}-{threading.get_ident()}"
        aside.write_text("\n".join(names), encoding="utf-8")
        aside.rename(self.partial / DONE / str(index))

    def drop_lost(self) -> None:  # noqa: D102
        store = self.partial / STORE
        for index in sorted(self.done()):
            mark = self.partial / DONE / str(index)
            if not all((store / name).is_file() for name in mark.read_text(encoding="utf-8").split()):
                mark.unlink(missing_ok=True)

    def complete(self, overwrite: bool, finish: Callable[[Path], Path]) -> None:  # noqa: D102
        for stray in (self.partial / STORE).rglob("*.partial"):  # left by writers that were killed
            stray.unlink()
        ready = finish(self.partial / self.path.name)
        for file in [ready] if ready.is_file() else []:
            check_whole(file, self.path)
        settle(ready, self.path)
        check_untouched(self.path)
        try:
            put(ready, self.path, overwrite)
        except FileExistsError as error:
            if overwrite:
                raise
            raise FileExistsError(
                f"output {self.path} appeared while this ran; remove it and run again, or pass --overwrite"
            ) from error
        except InTwoSteps:
            with claimed(self.path) as aside:
                ready.rename(aside / self.path.name)
                write_moves(aside, [(aside / self.path.name, self.path)])
                complete(aside)
        settle_name(self.path.parent)
        shutil.rmtree(self.partial, ignore_errors=True)


@contextlib.contextmanager
def going_on(folder: Path, wanted: str, what: str) -> Iterator[Path]:
    """Hold a folder of kept answers, and give the place in it where they are; those of another plan are dropped.

    Args:
        folder: the folder, which is made where it is not there.
        wanted: hash of the plan.
        what: the plan in words.

    Raises BlockingIOError where another process uses the folder, FileExistsError where it holds what is not of regframe, OSError
    where it cannot be written.
    """
    place = OnDisk(folder, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with place.locked():
        place.prepare(True, wanted, what, (folder / STORE).mkdir)
        yield folder / STORE


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; BlockingIOError where another process has it. The system releases it when a process dies."""
    path = folder / LOCK
    with path.open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lost = not path.exists() or os.fstat(lock.fileno()).st_ino != path.stat().st_ino
        except BlockingIOError:
            lost = True
        if lost:
            lock.seek(0)
            who = lock.read().strip() or "another process"
            raise BlockingIOError(
                f"wanted {folder.with_suffix('').name} for this process alone, got one that is written by {who}; wait for "
                "it, or choose another name"
            )
        lock.seek(0)
        lock.truncate()
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield
