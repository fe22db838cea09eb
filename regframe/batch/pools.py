"""Runs tasks: in this process one after another, or on the workers of a Dask cluster.

A task is an importable function with arguments that are paths, options and numbers, never arrays.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import logging
import multiprocessing
import os
import queue
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import regframe

from ..devices import VISIBLE
from ..io.tasks import InTurn as InTurn
from ..io.tasks import Item, check_size
from ..io.tasks import Pool as Pool
from ..machine import allowed, quota
from ..versions import version

RESUBMITTED = 5
"""Number of times that a task is submitted again after Dask gave it up because its workers died. The task itself cannot kill a
worker, because a job runs in a process of its own."""
REPLACED = 10
"""Number of times that each worker on this machine is replaced between two finished tasks: more is no accident."""
PATIENCE = 5.0
"""Seconds without a process after which a worker counts as lost; Dask starts the next one at once, if it does."""
ANSWER = 20
"""Seconds that a scheduler has to answer: ten times what one over a slow line takes."""
BACK = 300.0
"""Seconds that are waited for a scheduler that was lost, and for a worker of it: what starts it again (systemd, Kubernetes, a
person who looks) takes a minute or two."""
LOST = 10
"""Number of times that the scheduler may be lost between two finished tasks: more is no accident."""
_AGAIN = 0.5
"""Seconds between two looks for a scheduler that was lost."""
_FIRST = 1 << 30
"""Priority of tasks that go before all others, larger than the priorities of jobs, which count down from 0."""


class Plan(Protocol):
    """A large output that is computed shard by shard and can be continued after an interruption.

    A plan with dependences between shards also has ``rounds``: sequences of indices, each of which needs all earlier ones. A plan
    that knows which shards an earlier run finished also has ``done()``.
    """

    @property
    def shards(self) -> int:
        """Number of shards."""
        ...

    def run(self, index: int) -> object:
        """Compute one shard and write it; does nothing where it is already written."""
        ...

    def finish(self) -> object:
        """Complete the output once every shard is written."""
        ...


def spread(
    plan: Plan,
    pool: Pool,
    run: Callable[[int], object] | None = None,
    progress: Callable[[regframe.Progress], object] | None = None,
    finish: Callable[[], object] | None = None,
) -> None:
    """Compute every missing shard of ``plan`` on the workers of ``pool``, then finish the output in this process.

    Args:
        plan: the plan; its method `run` is sent to the workers, or ``run`` instead.
        pool: the workers; they have to see the same files.
        run: function that computes a shard by its index, where the plan itself should not be sent: a function of paths and
            options.
        progress: called after each shard, with the stage ``shards``.
        finish: function to call instead of the plan's own `finish`.

    Raises:
        ValueError: for a task that is too large to be paths and options.
        Exception: what a shard raised. Finished shards are kept, so that the same call continues from there.
    """
    task = plan.run if run is None else run
    check_size(task, "pass `run` over paths")
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
                    progress(regframe.Progress("shards", done, plan.shards))
    (plan.finish if finish is None else finish)()


def machine() -> tuple[int, int]:
    """Number of cores and bytes of memory that this process may use: limited by the machine, its affinity, or a control group."""
    given = quota()
    cores = allowed() if given is None else max(1, min(allowed(), int(given)))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for folder in _control_groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):
                memory = min(memory, int((folder / name).read_text()))
    return cores, memory


def _control_groups(own: Path, root: Path) -> Iterator[Path]:
    """The folders of the control groups that contain this process, innermost first."""
    with contextlib.suppress(OSError, ValueError):
        for line in own.read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            base = root if not kinds else root / "memory" if "memory" in kinds.split(",") else None
            if base is not None and ".." not in path:
                place = base / path.strip("/")
                yield from (place, *(p for p in place.parents if p == base or base in p.parents))


def share() -> int:
    """Bytes of memory that a task of this worker may use: the worker's limit divided by its threads.

    Nine tenths of the machine's memory take the place of a limit that is not set; outside a cluster, a task may use all of it.
    """
    worker = _worker()
    if worker is None:
        return int(0.9 * machine()[1])
    limit = worker.memory_manager.memory_limit or 0.9 * machine()[1]
    return int(limit / max(1, worker.state.nthreads))


def stopped() -> bool:
    """Whether the task that this thread runs is no longer wanted: its client or scheduler is gone, or has cancelled it.

    A worker ends once its scheduler is gone. The task is given to another one, which must not meet this one's process.
    """
    worker = _worker()
    if worker is None:
        return False
    if worker.status.name in ("closing", "closed", "failed"):
        return True
    task = worker.state.tasks.get(sys.modules["distributed.worker"].thread_state.key)
    return task is None or task.state in ("cancelled", "released", "forgotten")


def scheduler() -> str | None:
    """Address of the cluster to which this thread's worker belongs; None outside a cluster."""
    worker = _worker()
    return None if worker is None else str(worker.scheduler.address)


def step_aside() -> None:
    """Release this task's place on the worker to another task, because from here on it only waits."""
    if _worker() is not None:
        importlib.import_module("distributed").secede()


def _worker() -> Any:
    """The Dask worker whose task this thread runs; None outside a cluster."""
    if "distributed.worker" not in sys.modules:
        return None
    with contextlib.suppress(ValueError):
        return sys.modules["distributed.worker"].get_worker()
    return None


class _Tasks:
    """The tasks of one call of `Cluster.run` that have no answer yet, as a client sees them.

    Args:
        function: what a task calls.
        items: its arguments, for each task.
        started: called with the index of a task and the name of its worker.
        rank: priority of the first task; later ones count down from it.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        items: Sequence[Item],
        started: Callable[[int, str], object] | None,
        rank: int,
    ) -> None:
        self.function, self.items, self.started, self.rank = function, items, started, rank
        self.left = dict.fromkeys(range(len(items)), 0)  # index: how many workers died of it
        self.futures: dict[Any, int] = {}
        self.broken = False
        self._topic = f"regframe-{uuid.uuid4().hex}"
        self._round = 0
        self._client: Any = None
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def begin(self, client: Any) -> None:
        """Give a client every task that has no answer; what an earlier client was given no longer counts."""
        self._client, self.futures, self.broken = client, {}, False
        self._queue = queue.SimpleQueue()  # nothing of an earlier client comes in here
        self._round += 1
        try:
            if self.started is not None:
                told = self.started
                client.subscribe_topic(self._topic, lambda event: told(*event[1]))
            for index in self.left:
                self._submit(index)
        except Exception:  # Dask raises errors of many types where the scheduler is gone; any other is the caller's
            if client.status == "running":
                raise
            self.broken = True

    def _submit(self, index: int) -> None:
        future = self._client.submit(
            _told, self.function, self.items[index], self._topic, index,
            key=f"{self._topic}-{self._round}-{index}-{self.left[index]}", priority=self.rank - index, pure=False,
        )  # fmt: skip
        self.futures[future] = index
        future.add_done_callback(self._queue.put)

    def ended(self, seconds: float) -> Any:
        """A task that ended; None where none did in so many seconds."""
        try:
            return self._queue.get(timeout=seconds)
        except queue.Empty:
            return None

    def answer(self, future: Any) -> tuple[int, Any] | None:
        """Index and result of a task that ended.

        None where it has no result: because its worker died, and it is given to another one, or because the client lost the
        scheduler, which makes these tasks `broken`.
        """
        distributed: Any = importlib.import_module("distributed")
        index, result = self.futures.pop(future), None
        if future.status == "cancelled":
            self.broken = True
            return None
        error = future.exception() if future.status == "error" else None
        if error is None:
            try:
                result = future.result(timeout=ANSWER)
            except Exception as lost:  # noqa: BLE001 - what a task raises is no such error: this one cannot be fetched
                if future.status == "cancelled" or self._client.status != "running":
                    self.broken = True
                    return None
                error = distributed.KilledWorker(str(lost), None, 0, 0)
        if isinstance(error, distributed.KilledWorker):
            self.left[index] += 1
            if self.left[index] <= RESUBMITTED:
                self._submit(index)
                return None
            error = RuntimeError(f"the workers it was given to died, {self.left[index]} times over; look at their logs")
        del self.left[index]
        with contextlib.suppress(Exception):
            future.release()
        return index, result if error is None else error

    def end(self) -> None:
        """Take back what has no answer."""
        if self._client is None or self._client.status != "running":
            return
        if self.futures:
            with contextlib.suppress(Exception):
                self._client.cancel(list(self.futures), force=True)
        if self.started is not None:
            with contextlib.suppress(Exception):
                self._client.unsubscribe_topic(self._topic)


def _silent(line: str) -> None:
    """Say nothing."""


def _has_workers(client: Any, until: float) -> bool:
    """Whether a scheduler has a worker, or gets one before a moment of `time.monotonic`; False too where it is lost again."""
    with contextlib.suppress(Exception):
        while client.status == "running":
            if client.nthreads():
                return True
            if time.monotonic() > until:
                break
            time.sleep(_AGAIN)
    return False


class Cluster:
    """The workers of a Dask cluster: started on this machine, or those of a running scheduler.

    Use it as a context manager. It needs the extra ``batch``.

    Args:
        address: address of a scheduler, or path of a scheduler file; None starts workers here.
        workers: number of processes to start here, each running one task at a time.
        first: whether tasks go before all waiting ones; used for the shards of a job that is nearly done.
        gpus: words for GPUs (`regframe.devices.visible`); each worker started here sees one of them alone. There is one worker
             for each then, in a cluster of dask-cuda where that is installed.

    Attributes:
        say: called with a line where the scheduler was lost, and where it is found again; says nothing where not set.
    """

    def __init__(
        self, address: str | None = None, workers: int = 1, first: bool = False, gpus: Sequence[str] = ()
    ) -> None:
        if not available():
            raise ValueError("wanted Dask for a cluster, got none; install it with: pip install 'regframe[batch]'")
        self.address, self.workers, self.first = address, len(gpus) or workers, first
        self.gpus = tuple(gpus)
        self.name = "Dask"
        self.say: Callable[[str], object] = _silent
        self._open = contextlib.ExitStack()
        self._client: Any = None
        self._here: Any = None  # the cluster that was started on this machine
        self._gone: dict[Any, float] = {}  # since when a worker of it has no process

    def __enter__(self) -> Cluster:
        dask: Any = importlib.import_module("dask")
        distributed: Any = importlib.import_module("distributed")
        self._open.enter_context(
            dask.config.set(
                {
                    "distributed.scheduler.allowed-failures": RESUBMITTED,
                    "distributed.admin.tick.limit": "1h",
                    "distributed.deploy.lost-worker-timeout": "1h",  # a busy machine takes long to start one again
                }
            )
        )
        try:
            if self.address is None:
                cluster = self._started(distributed)
                self._here = cluster
                self._open.callback(_close, cluster)
                self._client = self._open.enter_context(distributed.Client(cluster, set_as_default=False))
                each = ", a GPU each" if self.gpus else ""
                self.name = f"Dask on this machine, {self.workers} workers{each}"
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

    def _started(self, distributed: Any) -> Any:
        """A cluster on this machine; its workers need no memory limit: a job runs in a process of its own, which has one."""
        options: dict[str, Any] = {
            "threads_per_worker": 1, "memory_limit": 0, "host": "127.0.0.1", "dashboard_address": "127.0.0.1:0",
            "security": _encrypts() or None, "silence_logs": logging.CRITICAL,
        }  # fmt: skip
        if not self.gpus:
            return distributed.LocalCluster(n_workers=self.workers, **options)
        if importlib.util.find_spec("dask_cuda") is not None:
            cuda: Any = importlib.import_module("dask_cuda")
            return cuda.LocalCUDACluster(CUDA_VISIBLE_DEVICES=",".join(self.gpus), n_workers=self.workers, **options)
        cluster = distributed.LocalCluster(n_workers=0, **options)
        one_gpu_each(cluster, self.gpus)
        cluster.scale(self.workers)
        return cluster

    def _connect(self, client: Any, seconds: float | None = None) -> Any:
        """A client of the scheduler; ValueError where none answers in time, `ANSWER` seconds where none are stated.

        The client is made in a thread: it waits without end for a program that takes the connection and says nothing.
        """
        made: queue.SimpleQueue[Any] = queue.SimpleQueue()
        seconds = ANSWER if seconds is None else seconds
        file = Path(str(self.address))
        place = {"scheduler_file": str(file)} if file.is_file() else {"address": self.address}

        def make() -> None:
            try:
                limit, security = f"{seconds:g} s", _own_security(str(self.address))
                made.put(
                    client(**place, timeout=limit, security=security, set_as_default=False)
                )  # Dask's users keep theirs
            except (OSError, ValueError, TypeError) as error:
                made.put(error)

        threading.Thread(target=make, name="regframe-connect", daemon=True).start()
        try:
            found = made.get(timeout=seconds + 5)
        except queue.Empty:
            found = TimeoutError(f"nothing within {seconds + 5:g} s")
        if isinstance(found, BaseException):
            raise ValueError(
                f"wanted a Dask scheduler at {self.address}, got no answer ({(str(found) or repr(found)).splitlines()[0]}); "
                "check the address"
            ) from found
        return found

    def _check_versions(self) -> None:
        for address, there in self._client.run(version, on_error="return").items():
            if there != version():
                found = f"no regframe ({there})" if isinstance(there, BaseException) else f"regframe {there}"
                raise ValueError(
                    f"wanted regframe {version()} on every worker, got {found} at {address}; install that one"
                )
        here = strangers_here()
        if not here:
            return
        for address, there in self._client.run(strangers_here, on_error="return").items():
            known = there if isinstance(there, dict) else {}
            for name, (number, point) in here.items():
                if known.get(name, ("",))[0] != number:
                    found = f"{name} {known[name][0]}" if name in known else "none"
                    raise ValueError(
                        f"wanted the plug-in {name} {number} on every worker, got {found} at {address}; install that one "
                        f"there, or leave it out here with REGFRAME_DISABLE_PLUGINS={point}"
                    )

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):  # at once: closing in good order takes seconds
            for process in multiprocessing.active_children():
                process.kill()
            if self.address is None:
                return
        self._open.close()

    def run(
        self, function: Callable[..., Any], items: Sequence[Item], started: Callable[[int, str], object] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """See `Pool`; a task whose worker dies is given to another worker.

        A scheduler of others that is lost is waited for, `BACK` seconds; then all that has no answer is given to it again.
        ConnectionError where it stays away.
        """
        tasks = _Tasks(function, items, started, _FIRST if self.first else 0)
        replaced = lost = 0
        try:
            tasks.begin(self._client)
            while tasks.left:
                future = tasks.ended(1)
                answer = None if future is None else tasks.answer(future)
                if answer is not None:
                    replaced = lost = 0
                    yield answer
                elif tasks.broken or self._client.status != "running":
                    lost += 1
                    tasks.begin(self._found_again(len(tasks.left), lost))
                elif future is None:
                    replaced += self._replace()
                    if replaced > REPLACED * self.workers:
                        raise ConnectionError(
                            f"the workers ended {replaced} times before they finished a task ({self.name}); look at the "
                            "machine's memory and log; the same command goes on where it was"
                        )
        finally:
            tasks.end()

    def _found_again(self, left: int, times: int) -> Any:
        """A client of the scheduler that was lost, once that answers and has a worker; ConnectionError where it stays away."""
        distributed: Any = importlib.import_module("distributed")
        gone = f"the Dask scheduler was lost ({self.name})"
        ending = "the same command goes on where it was"
        if self.address is None or times > LOST:
            raise ConnectionError(f"{gone}{f' {times} times over' if times > LOST else ''}; {ending}")
        self.say(f"{gone}: waiting up to {BACK:g} s for it and a worker; {left} tasks have no answer yet")
        until, lacking = time.monotonic() + BACK, "it did not answer"
        with contextlib.suppress(Exception):
            self._client.close(timeout=1)
        while True:
            try:
                client = self._connect(distributed.Client, max(1.0, min(ANSWER, until - time.monotonic())))
            except ValueError:
                client = None
            if client is not None:
                if _has_workers(client, until):
                    break
                lacking = "it had no worker"
                with contextlib.suppress(Exception):
                    client.close(timeout=1)
            if time.monotonic() > until:
                raise ConnectionError(f"{gone}, and {lacking} within {BACK:g} s; {ending}")
            time.sleep(_AGAIN)
        self._client = self._open.enter_context(client)
        self._check_versions()
        self.say(f"the Dask scheduler at {client.scheduler.address} answers again: it is given {left} tasks")
        return client

    def _replace(self) -> int:
        """Start new workers on this machine for those whose processes are gone for good; returns their number.

        Dask itself starts a worker again that dies at work; one that dies while it starts it may give up.
        """
        if self._here is None:
            return 0
        now = time.monotonic()
        known = dict(self._here.workers)  # without those that Dask removed
        gone = [name for name in self._here.worker_spec if name not in known or not known[name].is_alive()]
        self._gone = {name: self._gone.get(name, now) for name in gone}
        lost = [name for name, since in self._gone.items() if now - since > PATIENCE]
        if lost:
            self._here.loop.add_callback(self._start_again, lost)
        return len(lost)

    def _start_again(self, lost: Sequence[Any]) -> None:
        """Forget these workers and start as many; runs in the loop of the cluster, which never waits for what is stuck."""
        for name in lost:
            self._here.worker_spec.pop(name, None)
            self._gone.pop(name, None)
            nanny = self._here.workers.pop(name, None)
            if nanny is not None:
                self._here.loop.add_callback(nanny.close, reason="its process is gone")
        self._here.scale(self.workers)


def one_gpu_each(cluster: Any, gpus: Sequence[str]) -> None:
    """Let every worker that a cluster on this machine starts from now on see one GPU alone: one that no other worker has."""
    plain = cluster.new_worker_spec

    def specified() -> dict[Any, Any]:
        seen = [(one["options"].get("env") or {}).get(VISIBLE) for one in cluster.worker_spec.values()]
        free = min(gpus, key=seen.count)
        made = {}
        for name, one in plain().items():
            env = {**(one["options"].get("env") or {}), VISIBLE: free}
            made[name] = {**one, "options": {**one["options"], "env": env}}
        return made

    cluster.new_worker_spec = specified


def strangers_here() -> dict[str, tuple[str, str]]:
    """Version and an entry point of every plug-in package in use here that is not regframe's, by the name of its distribution.

    Those that ``REGFRAME_DISABLE_PLUGINS`` leaves out are not in use.
    """
    disabled = {name.strip() for name in os.environ.get("REGFRAME_DISABLE_PLUGINS", "").split(",")}
    points = [] if "all" in disabled else importlib.metadata.entry_points(group="regframe")
    return {
        point.dist.name: (point.dist.version, point.name)
        for point in points
        if point.dist is not None and point.dist.name != "regframe" and point.name not in disabled
    }


_trusted: dict[str, str] = {}
"""Certificates and key of the cluster to which this process's worker belongs, as the worker's process handed them on."""
_TLS = ("tls_ca_file", "tls_client_cert", "tls_client_key")


def credentials() -> dict[str, str]:
    """What a process needs beside the address to speak with this worker's cluster.

    Empty where that is not encrypted, or where Dask's own settings name files.
    """
    worker = _worker()
    found = {} if worker is None else {name: getattr(worker.security, name, None) for name in _TLS}
    return {name: text for name, text in found.items() if isinstance(text, str) and "\n" in text}


def trust(given: Mapping[str, str]) -> None:
    """Take the `credentials` that the worker's process handed on."""
    _trusted.update(given)


def _own_security(address: str) -> Any:
    """What a client needs for an encrypted cluster started by a batch; None where Dask's own settings say it."""
    if not _trusted or not address.startswith("tls://"):
        return None
    return importlib.import_module("distributed").Security(require_encryption=True, **_trusted)


def _encrypts() -> bool:
    """Whether a cluster on this machine can ask for a certificate; without one, any user of this machine may send it code."""
    return importlib.util.find_spec("cryptography") is not None


def available() -> bool:
    """Whether Dask is installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("dask", "distributed"))


def _told(function: Callable[..., Any], item: Item, topic: str, index: int) -> Any:
    worker = _worker()
    worker.log_event(topic, [index, str(worker.name)])
    return function(*item)


def _close(cluster: Any) -> None:
    with contextlib.suppress(Exception):
        cluster.close(timeout=10)
