"""Threads: number of cores, threads that pay for an amount of work, and tasks that run on one thread each."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")

PIXELS_PER_THREAD = 150_000
"""Least number of values (pixels times channels) per thread: with fewer, another thread costs more in waiting than it saves."""


POLICY = "OMP_WAIT_POLICY"
"""Variable of the environment that says how OpenMP threads wait; it is read once, when torch is loaded."""
_STIRRED = 1 << 20
"""Values of a tensor that torch surely changes on all its threads: it takes a thread per 32 768."""

_parked: list[threading.Thread] = []


def allowed() -> int:
    """Number of cores on which this process may run: those of the machine, or of its affinity (taskset, SLURM)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """Cores' worth of time that the control groups of this process (a container, a job) allow; None where they set no limit."""
    least: float | None = None
    for most, period in _limits(root, own):
        if most > 0 and period > 0:
            least = min(most / period, least or math.inf)
    return least


def _limits(root: Path, own: Path) -> Iterator[tuple[int, int]]:
    """Microseconds of processor time per period, and the period, of every control group that contains this process."""
    with contextlib.suppress(OSError, ValueError):
        for line in own.read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            second = not kinds  # of the two versions of control groups
            if ".." in path or not (second or "cpu" in kinds.split(",")):
                continue
            base = root if second else next((p for p in (root / kinds, root / "cpu") if p.is_dir()), root / "cpu")
            place = base / path.strip("/")
            for folder in (place, *(p for p in place.parents if p == base or base in p.parents)):
                with contextlib.suppress(OSError, ValueError):
                    if second:
                        most, period = (folder / "cpu.max").read_text().split()
                        yield (0 if most == "max" else int(most)), int(period)
                    else:
                        most, period = ((folder / f"cpu.cfs_{word}_us").read_text() for word in ("quota", "period"))
                        yield int(most), int(period)


def cores() -> int:
    """Number of cores that this process may use: those it may run on, and no more than its control groups give time for."""
    given = quota()
    return allowed() if given is None else max(1, min(allowed(), math.ceil(given)))


def waiting() -> str:
    """How threads wait for each other here: ``"asleep"``, or ``"spinning"`` where torch was loaded before regframe could ask.

    What a user states by `POLICY` is kept; spinning threads that `settle` has throttled count as asleep.
    """
    asked = os.environ.get(POLICY, "").upper()
    return "spinning" if (asked == "ACTIVE" or (torch_came_first() and not _parked)) else "asleep"


def torch_came_first() -> bool:
    """Whether torch was loaded before regframe, in an environment that says nothing of how threads wait."""
    return bool(getattr(sys.modules.get("regframe"), "torch_came_first", False))


def settle() -> None:
    """Have OpenMP threads sleep while they wait, where torch was loaded before regframe could ask for it.

    GNU's OpenMP, which torch brings on Linux, lets threads spin for milliseconds, unless there are more of them than cores:
    beside another busy process a fit of many short parallel loops then takes ten times as long. So a thread that does nothing
    keeps threads of its own: from then on none spins for longer than microseconds. Nothing happens on a single thread.
    """
    if _parked or not sys.platform.startswith("linux") or torch.get_num_threads() < 2 or not torch_came_first():
        return
    ready = threading.Event()

    def park() -> None:
        torch.zeros(_STIRRED).add_(1)  # a parallel loop, after which the thread keeps its helpers
        ready.set()
        threading.Event().wait()

    _parked.append(threading.Thread(target=park, name="regframe-parked", daemon=True))
    _parked[0].start()
    ready.wait(10)


def workers_of(wanted: int | None) -> int:
    """The number of workers asked for, or one per core where None; ValueError for less than one."""
    workers = cores() if wanted is None else int(wanted)
    if workers < 1:
        raise ValueError(f"wanted at least one worker, got {workers}")
    return workers


@contextlib.contextmanager
def on_threads(n: int) -> Iterator[None]:
    """Run torch on ``n`` threads inside the block."""
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
