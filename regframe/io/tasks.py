"""Independent tasks: run in turn, on threads here or on the workers of others, each answer kept on disk as it comes.

A pool is a `Pool`; `pool_of` makes one of what a caller passed as ``client``. `answers` runs the tasks that a folder of `Kept`
answers has no file of yet. An answer is a dataclass of arrays, numbers and texts, and its file an ``.npz`` without pickles.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import queue
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Item = tuple[Any, ...]
T = TypeVar("T")
TASK_BYTES = 1 << 16
"""Largest task in bytes: paths, options and numbers fit, an array does not."""
LARGEST_ANSWER = 1 << 28
"""Largest answer that is read back, in bytes of its arrays: a thousand times that of a tile of 64 windows."""
_AGAIN = 1.0
"""Seconds after which a client that answers nothing is asked whether it still has a scheduler."""


class Pool(Protocol):
    """Calls a function with many arguments."""

    name: str
    workers: int

    def run(
        self, function: Callable[..., Any], items: Sequence[Item], started: Callable[[int, str], object] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Yields index and result of each item as it finishes; where the call raised, the exception is the result.

        ``started`` is called with the index and the name of the worker. Closing the iterator stops what is running.
        """
        ...


class InTurn:
    """Runs tasks one after another, in this process."""

    name = "one after another"
    workers = 1

    def run(
        self, function: Callable[..., Any], items: Sequence[Item], started: Callable[[int, str], object] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """See `Pool`."""
        for index, item in enumerate(items):
            if started is not None:
                started(index, "here")
            yield index, _called(function, item)


class Threads:
    """Runs tasks on threads of this process, torch on one thread in each.

    Args:
        workers: number of threads.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.name = f"{workers} threads"

    def run(
        self, function: Callable[..., Any], items: Sequence[Item], started: Callable[[int, str], object] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """See `Pool`; at most two tasks a thread are begun before their answers are taken."""
        from ..fit.threads import run_each

        def call(index: int) -> Any:
            if started is not None:
                started(index, threading.current_thread().name)
            return _called(function, items[index])

        return run_each(call, range(len(items)), self.workers)


class Submitted:
    """Gives tasks to whatever has ``submit``: a ``dask.distributed.Client``, or a ``concurrent.futures.Executor``.

    A Dask scheduler itself gives a task whose worker died to another worker.

    Args:
        client: the client; it stays open.
    """

    def __init__(self, client: Any) -> None:
        self.client = client
        slots = getattr(client, "nthreads", None)
        self.workers = max(1, sum(slots().values()) if callable(slots) else int(getattr(client, "_max_workers", 1)))
        self.name = f"{type(client).__name__}, {self.workers} workers"

    def run(
        self, function: Callable[..., Any], items: Sequence[Item], started: Callable[[int, str], object] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """See `Pool`; nothing is known of when a task starts, so ``started`` is not called.

        ConnectionError where the scheduler is lost before all is done.
        """
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        # Dask takes the answer of an equal call from its memory unless it is told that the function is not pure
        how = {"pure": False} if hasattr(self.client, "scheduler") else {}
        left: dict[Any, int] = {}
        try:
            for index, item in enumerate(items):
                future = self.client.submit(function, *item, **how)
                left[future] = index
                future.add_done_callback(done.put)
            while left:
                try:
                    future = done.get(timeout=_AGAIN)
                except queue.Empty:
                    if getattr(self.client, "status", "running") not in ("running", "connecting"):
                        raise self._lost(len(left)) from None
                    continue
                yield left.pop(future), self._outcome(future, len(left) + 1)
        finally:
            for future in left:
                with contextlib.suppress(Exception):
                    future.cancel()

    def _outcome(self, future: Any, left: int) -> Any:
        """What a finished task returned, or the exception that it raised."""
        try:
            return future.result()
        except CancelledError as error:
            raise self._lost(left) from error
        except Exception as error:  # noqa: BLE001 - handed on, as `Pool` says
            return error

    def _lost(self, left: int) -> ConnectionError:
        return ConnectionError(
            f"wanted answers to {left} more tasks from {self.name}, got none: its scheduler was lost, or they were "
            "cancelled; start it again and make the same call"
        )


def _called(function: Callable[..., Any], item: Item) -> Any:
    """What a call returned, or the exception that it raised."""
    try:
        return function(*item)
    except Exception as error:  # noqa: BLE001 - handed on, as `Pool` says
        return error


def pool_of(client: Any, otherwise: Callable[[], Pool]) -> Pool:
    """The pool behind the argument ``client`` of a public function: a pool itself, or what has ``submit``.

    Args:
        client: what the caller passed; None takes the pool that ``otherwise`` makes.
        otherwise: makes the pool of this process.

    Raises ValueError for what is neither.
    """
    if client is None:
        return otherwise()
    if callable(getattr(client, "submit", None)):
        return Submitted(client)
    if callable(getattr(client, "run", None)) and hasattr(client, "workers"):
        pool: Pool = client
        return pool
    raise ValueError(
        f"wanted a dask.distributed.Client (or a concurrent.futures.Executor) as client, got {type(client).__name__}; make one "
        "with distributed.Client(address)"
    )


def check_size(task: Any, cure: str) -> None:
    """ValueError for a task that cannot be sent, or is too large for that (`TASK_BYTES`); ``cure`` says what to do."""
    size = _sent(task)
    if isinstance(size, Exception) or size > TASK_BYTES:
        got = f"one that cannot be sent ({size})" if isinstance(size, Exception) else str(size)
        raise ValueError(f"wanted a task of paths and options, at most {TASK_BYTES} bytes, got {got}; {cure}")


def is_sent(part: Any) -> bool:
    """Whether a part of a task can be sent to other processes and is small enough for that."""
    size = _sent(part)
    return not isinstance(size, Exception) and size <= TASK_BYTES


def _sent(part: Any) -> int | Exception:
    """Bytes that are sent of it, or why it cannot be."""
    try:
        return len(pickle.dumps(part))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        return error


# ------------------------------------------------------------------------------------------------------- kept answers


class Kept:
    """Answers in a folder, one file each: what is there need not be computed again.

    A file that is damaged, too large, or of another kind counts as missing.

    Args:
        folder: the folder, which is made where it is not there; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def put(self, name: str, answer: Any) -> None:
        """Keep a dataclass of arrays, numbers and texts under a name; nothing where there is no folder.

        OSError where it cannot be written.
        """
        if self.folder is not None:
            write_record(self.folder / f"{name}.npz", answer)

    def get(self, name: str, kind: type[T]) -> T | None:
        """The answer of that name; None where there is none that can be read."""
        return None if self.folder is None else read_record(self.folder / f"{name}.npz", kind)


def write_record(path: Path, record: Any) -> None:
    """Write a dataclass of arrays, numbers and texts as one ``.npz``, complete or not at all.

    Fields that are None are left out.
    """
    values = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    aside = path.with_name(f"tmp-{os.getpid()}-{threading.get_ident()}-{path.name}")
    try:
        arrays: Any = {name: np.asarray(value) for name, value in values.items() if value is not None}
        np.savez(aside, **arrays)
        aside.rename(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def read_record(path: Path, kind: type[T]) -> T | None:
    """The dataclass in a file of `write_record`; None where there is none, or one that cannot be read as ``kind``."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > LARGEST_ANSWER:
                return None
        with np.load(path, allow_pickle=False) as file:
            values = {name: _plain(file[name]) for name in file.files}
        return kind(**values)
    except (OSError, EOFError, ValueError, TypeError, KeyError, NotImplementedError, zipfile.BadZipFile):
        return None


def _plain(value: NDArray[Any]) -> Any:
    return value if value.ndim else value.item()


def answers(
    pool: Pool,
    function: Callable[..., T],
    items: Sequence[Item],
    kept: Kept,
    names: Sequence[str],
    kind: type[T],
) -> Iterator[tuple[int, T]]:
    """Index and answer of every item: first those that are kept, then the others as a pool finishes them, kept from then on.

    Args:
        pool: who calls the function.
        function: what a task calls; for a pool of other processes it can be imported there.
        items: its arguments, for each task.
        kept: answers of an earlier run.
        names: name of each answer.
        kind: dataclass of the answers.

    Raises what a task raised, once; what was finished stays kept.
    """
    todo = []
    for index, name in enumerate(names):
        found = kept.get(name, kind)
        if found is None:
            todo.append(index)
        else:
            yield index, found
    ended = pool.run(function, [items[index] for index in todo])
    with contextlib.closing(ended):  # type: ignore[type-var]
        for at, answer in ended:
            if isinstance(answer, BaseException):
                raise answer
            kept.put(names[todo[at]], answer)
            yield todo[at], answer
