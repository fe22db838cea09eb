"""The processor that this process may use: cores, limits of control groups, and how threads wait for each other."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

POLICY = "OMP_WAIT_POLICY"
"""Variable of the environment that says how OpenMP threads wait; it is read once, when torch is loaded."""
_STIRRED = 1 << 20
"""Values of a tensor that torch surely changes on all its threads: it takes a thread per 32 768."""

MAPPED = 32 << 20
"""Bytes from which an array has pages of its own, which go back to the system with it: the most that glibc takes by itself."""
KEPT = 256 << 20
"""Bytes of freed memory that a process keeps for the next arrays, before it gives them back to the system."""
_MALLOPT = {-3: MAPPED, -1: KEPT}  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h
_DASK = ("MALLOC_TRIM_THRESHOLD_", "65536")  # what Dask gives every worker, nobody having asked for it

_parked: list[threading.Thread] = []
_keeping: list[bool] = []


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


def keep_freed() -> bool:
    """Have this process keep memory that it frees for what it needs next; returns whether it does.

    A fit frees and asks for arrays of the same sizes over and over. glibc gives many of them back to the system in between, which
    clears every page again when it is asked for; it gives back nearly all of them in the workers of Dask, which ask it to: on a
    virtual machine a quarter of the time of a stack of sections. What else the environment states (``MALLOC_…_``,
    ``GLIBC_TUNABLES``) stays as it is, and so does every other allocator.
    """
    if not _keeping:
        _keeping.append(not _stated() and all(_mallopt(name, value) for name, value in _MALLOPT.items()))
    return _keeping[0]


def _stated() -> bool:
    """Whether the environment says how memory is to be kept, or brings an allocator of its own."""
    words = (os.environ.get("GLIBC_TUNABLES", ""), os.environ.get("LD_PRELOAD", ""))
    limits = (pair for pair in os.environ.items() if pair[0].startswith("MALLOC_") and pair != _DASK)
    return any("malloc" in word for word in words) or any(limits)


def _mallopt(name: int, value: int) -> bool:
    """Set one of glibc's limits of its allocator; False where there is no such allocator."""
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    library = ctypes.CDLL(None)
    return hasattr(library, "gnu_get_libc_version") and bool(library.mallopt(name, value))


def settle() -> None:
    """Have OpenMP threads sleep while they wait, where torch was loaded before regframe could ask for it.

    GNU's OpenMP, which torch brings on Linux, lets threads spin for milliseconds, unless there are more of them than cores:
    beside another busy process a fit of many short parallel loops then takes ten times as long. So a thread that does nothing
    keeps threads of its own: from then on none spins for longer than microseconds. Nothing happens on a single thread.
    """
    if _parked or not sys.platform.startswith("linux") or not torch_came_first():
        return
    import torch

    if torch.get_num_threads() < 2:
        return
    ready = threading.Event()

    def park() -> None:
        torch.zeros(_STIRRED).add_(1)  # a parallel loop, after which the thread keeps its helpers
        ready.set()
        threading.Event().wait()

    _parked.append(threading.Thread(target=park, name="regframe-parked", daemon=True))
    _parked[0].start()
    ready.wait(10)
