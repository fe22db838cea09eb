"""Who does the work: this process, one piece after another, or the workers of a Dask cluster.

A task is a function that can be imported and arguments that are paths, options and numbers, never arrays.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import pickle
import queue
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import regframe

if TYPE_CHECKING:
    from ..contracts import Progress

RESUBMITTED = 5
"""How often a task that Dask gave up, because its workers died, is handed in again: a job's own process takes none with it."""
TASK_BYTES = 1 << 16
"""Most bytes of one task: paths, options and a number fit, an array does not."""

_FIRST = 1 << 30  # more than there are jobs

Item = tuple[Any, ...]


class Pool(Protocol):
    """Runs a function over many arguments."""

    name: str
    workers: int

    def run(
        self, function: Callable[..., Any], items: Sequence[Item], started: Callable[[int, str], object] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Index and result of each item as it ends, an exception in its place where it raised.

        ``started`` is called with an index and the name of a worker. Closing the iterator stops what is running.
        """
        ...


class Plan(Protocol):
    """A large output that is made shard by shard and can go on where it was left.

    A plan whose shards need others first has ``rounds`` too: sequences of indices, each needing all earlier ones. One that knows
    which shards an earlier run made says so by ``done()``.
    """

    @property
    def shards(self) -> int:
        """Number of shards."""
        ...

    def run(self, index: int) -> object:
        """Make one shard and write it; nothing where it is there already."""
        ...

    def finish(self) -> object:
        """Complete the output once every shard is there."""
        ...


def spread(
    plan: Plan,
    pool: Pool,
    run: Callable[[int], object] | None = None,
    progress: Callable[[Progress], object] | None = None,
    finish: Callable[[], object] | None = None,
) -> None:
    """Make every shard of ``plan`` that is missing on the workers of ``pool``, then finish it here.

    Args:
        plan: what is made; `run` of it, or of the argument, is what travels.
        pool: the workers, which see the same files.
        run: makes a shard by its index, where the plan itself should not travel: a function over paths and options.
        progress: called when a shard is done, with the stage ``shards``, how many are done and how many there are.
        finish: instead of the plan's own.

    Raises:
        ValueError: for a task that is too large to be paths and options.
        Exception: what a shard raised; those that were made stay, so that the same call goes on from there.
    """
    from ..contracts import Progress  # loads torch, which workers that only start jobs never need

    task = plan.run if run is None else run
    size = len(pickle.dumps(task))
    if size > TASK_BYTES:
        raise ValueError(
            f"wanted a task of paths and options, at most {TASK_BYTES} bytes, got {size}; pass `run` over paths"
        )
    made = set(plan.done()) if hasattr(plan, "done") else set()
    done = len(made)
    for indices in getattr(plan, "rounds", None) or (range(plan.shards),):
        ended = pool.run(task, [(index,) for index in indices if index not in made])
        with contextlib.closing(ended):  # type: ignore[type-var]
            for _, result in ended:
                if isinstance(result, BaseException):
                    raise result
                done += 1
                if progress is not None:
                    progress(Progress("shards", done, plan.shards))
    (plan.finish if finish is None else finish)()


def machine() -> tuple[int, int]:
    """Cores and bytes of memory this process may use, whatever bounds them: the machine, its affinity, a control group."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for folder in _control_groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")):
        with contextlib.suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            cores = min(cores, max(1, int(quota) // int(period)))
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):
                memory = min(memory, int((folder / name).read_text()))
    return cores, memory


def _control_groups(own: Path, root: Path) -> Iterator[Path]:
    """The folders of the control groups this process is in, and of those around them."""
    with contextlib.suppress(OSError, ValueError):
        for line in own.read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            base = root if not kinds else root / "memory" if "memory" in kinds.split(",") else None
            if base is not None and ".." not in path:
                place = base / path.strip("/")
                yield from (place, *(p for p in place.parents if p == base or base in p.parents))


def share() -> int:
    """Bytes of memory that a task of this worker may take: the worker's, or the machine's, over its threads."""
    worker = _worker()
    if worker is None:
        return int(0.9 * machine()[1])
    limit = worker.memory_manager.memory_limit or 0.9 * machine()[1]
    return int(limit / max(1, worker.state.nthreads))


def stopped() -> bool:
    """Whether the task this thread runs is wanted no more: its client cancelled it, or is gone."""
    worker = _worker()
    if worker is None:
        return False
    task = worker.state.tasks.get(sys.modules["distributed.worker"].thread_state.key)
    return task is None or task.state in ("cancelled", "released", "forgotten")


def scheduler() -> str | None:
    """Address of the cluster whose worker runs this thread; None elsewhere."""
    worker = _worker()
    return None if worker is None else str(worker.scheduler.address)


def step_aside() -> None:
    """Give the thread's place among the worker's tasks to another one: this task only waits from here on."""
    if _worker() is not None:
        importlib.import_module("distributed").secede()


def _worker() -> Any:
    """The Dask worker whose task this thread runs, None elsewhere."""
    if "distributed.worker" not in sys.modules:
        return None
    with contextlib.suppress(ValueError):
        return sys.modules["distributed.worker"].get_worker()
    return None


class InTurn:
    """One piece after another, in this process."""

    name = "one after another"
    workers = 1

    def run(
        self, function: Callable[..., Any], items: Sequence[Item], started: Callable[[int, str], object] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """See `Pool`."""
        for index, item in enumerate(items):
            if started is not None:
                started(index, "here")
            try:
                result = function(*item)
            except Exception as error:  # noqa: BLE001 - handed on, as a cluster would
                result = error
            yield index, result


class Cluster:
    """The workers of a Dask cluster: one of this machine's own, or any that runs already.

    Use it as a context manager. It needs the extra ``batch``.

    Args:
        address: of a scheduler, or the path of a scheduler file; None starts workers here.
        workers: processes to start here, one task each at a time.
        first: let what is run go before all that others wait for; the shards of a job that is nearly done.
    """

    def __init__(self, address: str | None = None, workers: int = 1, first: bool = False) -> None:
        if not available():
            raise ValueError("wanted Dask for a cluster, got none; install it with: pip install 'regframe[batch]'")
        self.address, self.workers, self.first = address, workers, first
        self.name = "Dask"
        self._open = contextlib.ExitStack()
        self._client: Any = None

    def __enter__(self) -> Cluster:
        dask: Any = importlib.import_module("dask")
        distributed: Any = importlib.import_module("distributed")
        self._open.enter_context(
            dask.config.set(
                {"distributed.scheduler.allowed-failures": RESUBMITTED, "distributed.admin.tick.limit": "1h"}
            )
        )
        try:
            if self.address is None:
                # a job's process has a limit of its own, a worker only waits for it: it needs none
                cluster = distributed.LocalCluster(
                    n_workers=self.workers,
                    threads_per_worker=1,
                    memory_limit=0,
                    dashboard_address="127.0.0.1:0",
                    silence_logs=logging.CRITICAL,
                )
                self._open.callback(_close, cluster)
                self._client = self._open.enter_context(distributed.Client(cluster))
                self.name = f"Dask on this machine, {self.workers} workers"
            else:
                self._client = self._open.enter_context(self._connect(distributed.Client))
                self._check_versions()
                slots = self._client.nthreads()
                self.workers = sum(slots.values())
                self.name = f"Dask at {self._client.scheduler.address}, {len(slots)} workers, {self.workers} threads"
        except BaseException:
            self._open.close()
            raise
        return self

    def _connect(self, client: Any) -> Any:
        file = Path(str(self.address))
        try:
            return client(scheduler_file=str(file)) if file.is_file() else client(self.address, timeout="20s")
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(
                f"wanted a Dask scheduler at {self.address}, got no answer ({str(error).splitlines()[0]}); check the address"
            ) from error

    def _check_versions(self) -> None:
        for address, version in self._client.run(_version, on_error="return").items():
            if version != regframe.__version__:
                found = f"no regframe ({version})" if isinstance(version, BaseException) else f"regframe {version}"
                raise ValueError(
                    f"wanted regframe {regframe.__version__} on every worker, got {found} at {address}; install the same"
                )

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def run(
        self, function: Callable[..., Any], items: Sequence[Item], started: Callable[[int, str], object] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """See `Pool`; a task whose worker dies goes to another one."""
        distributed: Any = importlib.import_module("distributed")
        client, topic = self._client, f"regframe-{uuid.uuid4().hex}"
        if started is not None:
            client.subscribe_topic(topic, lambda event: started(*event[1]))
        ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        futures: dict[Any, int] = {}
        losses = [0] * len(items)

        def submit(index: int) -> None:
            key = f"{topic}-{index}-{losses[index]}"
            rank = (_FIRST if self.first else 0) - index
            future = client.submit(_told, function, items[index], topic, index, key=key, priority=rank, pure=False)
            futures[future] = index
            future.add_done_callback(ended.put)

        try:
            for index in range(len(items)):
                submit(index)
            while futures:
                try:
                    future = ended.get(timeout=1)
                except queue.Empty:
                    future = None
                if client.status not in ("running", "connecting"):
                    raise ConnectionError(
                        f"the Dask scheduler was lost ({self.name}); the same command goes on where it was"
                    )
                if future is None:
                    continue
                index = futures.pop(future)
                error = future.exception() if future.status == "error" else None
                if future.status in ("cancelled", "lost") or isinstance(error, distributed.KilledWorker):
                    losses[index] += 1
                    if losses[index] <= RESUBMITTED:
                        submit(index)
                        continue
                    error = RuntimeError(
                        f"the workers it was given to died, {losses[index]} times over; look at their logs"
                    )
                yield index, future.result() if error is None else error
                future.release()
        finally:
            if futures:
                with contextlib.suppress(Exception):
                    client.cancel(list(futures), force=True)
            if started is not None:
                with contextlib.suppress(Exception):
                    client.unsubscribe_topic(topic)


def available() -> bool:
    """Whether Dask is installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("dask", "distributed"))


def _told(function: Callable[..., Any], item: Item, topic: str, index: int) -> Any:
    worker = _worker()
    worker.log_event(topic, [index, str(worker.name)])
    return function(*item)


def _version() -> str:
    return regframe.__version__


def _close(cluster: Any) -> None:
    with contextlib.suppress(Exception):
        cluster.close(timeout=10)
