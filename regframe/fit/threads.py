"""Threads: number of cores, threads that pay for an amount of work, and tasks that run on one thread each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

from ..machine import cores, keep_freed, settle

S = TypeVar("S")
T = TypeVar("T")

PIXELS_PER_THREAD = 150_000
"""Least number of values (pixels times channels) per thread: with fewer, another thread costs more in waiting than it saves."""


def workers_of(wanted: int | None) -> int:
    """The number of workers asked for, or one per core where None; ValueError for less than one."""
    workers = cores() if wanted is None else int(wanted)
    if workers < 1:
        raise ValueError(f"wanted at least one worker, got {workers}")
    return workers


@contextlib.contextmanager
def on_threads(n: int) -> Iterator[None]:
    """Run torch on ``n`` threads inside the block; freed memory is kept for the next arrays from then on."""
    keep_freed()
    before = torch.get_num_threads()
    if n != before:
        torch.set_num_threads(n)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


@contextlib.contextmanager
def threads_for(pixels: int) -> Iterator[None]:
    """Run torch, inside the block, on as many threads as pay for ``pixels`` values, and never more than are set.

    Threads that wait for each other after every few microseconds of work stall for whole time slices as soon as another
    process wants a core: on a busy machine two threads on a small level are many times slower than one. They also are no more
    than `cores`, whatever the machine has.
    """
    settle()
    with on_threads(max(1, min(torch.get_num_threads(), pixels // PIXELS_PER_THREAD, cores()))):
        yield


def side_by_side(run: Callable[[S], T], values: Sequence[S]) -> list[T]:
    """``run`` of every value, in their order: on the threads that torch may use here, which they share out among themselves."""
    threads = min(torch.get_num_threads(), cores())
    workers = min(threads, len(values))
    if workers < 2:
        return [run(value) for value in values]
    with ThreadPoolExecutor(workers, "regframe", torch.set_num_threads, (threads // workers,)) as pool:
        return list(pool.map(run, values))


def run_each(run: Callable[[int], T], indices: Iterable[int], workers: int) -> Iterator[tuple[int, T]]:
    """Call ``run`` for every index on ``workers`` threads (torch on one thread in each); yields index and value as they finish.

    At most twice as many indices as workers are running or waiting at a time, so that results do not pile up in memory. The first
    error cancels the rest and is raised.
    """
    with ThreadPoolExecutor(workers, "regframe", initializer=torch.set_num_threads, initargs=(1,)) as pool:
        pending: dict[Future[T], int] = {}
        following = iter(indices)
        try:
            while True:
                while len(pending) < 2 * workers and (index := next(following, None)) is not None:
                    pending[pool.submit(run, index)] = index
                if not pending:
                    return
                finished, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield pending.pop(future), future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
