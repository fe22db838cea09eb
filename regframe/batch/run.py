"""Runs a whole batch: finds the jobs that are left, runs them, reports progress, writes the summary."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..io import outputs
from ..io.inputs import check_apart
from ..io.tasks import Pool
from . import summary
from .manifest import Job
from .work import LOCK, Limits, Outcome, Stopped, finished, read_record, run_job


@dataclass(frozen=True)
class JobEvent:
    """One event of a job in a batch.

    Args:
        kind: ``started``, ``kept`` (finished by an earlier run) or ``ended``.
        id: the job's id.
        done: number of finished jobs, this one included unless it has just started.
        total: number of jobs in the batch.
        worker: name of the worker, for a job that started.
        outcome: the job's outcome, unless it has just started.
    """

    kind: Literal["started", "kept", "ended"]
    id: str
    done: int
    total: int
    worker: str = ""
    outcome: Outcome | None = None


def run_batch(
    jobs: Sequence[Job],
    out: Path,
    pool: Pool | Callable[[int], contextlib.AbstractContextManager[Pool]],
    limits: Limits | None = None,
    retry_failed: bool = False,
    progress: Callable[[JobEvent], object] | None = None,
) -> tuple[Outcome, ...]:
    """Run every job that ``out`` does not hold yet, and write ``summary.csv`` and ``summary.html``.

    Args:
        jobs: the jobs of a manifest.
        out: the output folder; each job gets ``out/ID``, complete or not at all.
        pool: the pool that runs the jobs, or a function that returns one for a number of jobs; it is called only if jobs are
            left.
        limits: memory, time and threads of a job.
        retry_failed: run again jobs that failed before.
        progress: called with every event.

    Returns:
        One outcome per job, in their order. After an interrupt KeyboardInterrupt is raised again, and the summary lists the
        pending jobs.

    Raises:
        BlockingIOError: another batch writes to ``out``.
        FileExistsError: a job's folder exists and no batch wrote it.
        OSError: ``out`` cannot be written.
    """
    limits = limits or Limits()
    tell = progress or (lambda event: None)
    out = out.absolute()
    outputs.check_writable(out)
    out.mkdir(parents=True, exist_ok=True)
    for job in jobs:
        check_apart(out / job.id, job.inputs.values())
    with _locked(out):
        _sweep(out)
        _check_foreign(jobs, out)
        found: dict[int, Outcome] = {}
        for index, job in enumerate(jobs):
            outcome = finished(job, out / job.id, limits)
            if outcome is not None and not (retry_failed and outcome.status == "failed"):
                found[index] = outcome
                tell(JobEvent("kept", job.id, len(found), len(jobs), outcome=outcome))
        todo = [index for index in range(len(jobs)) if index not in found]
        if not todo and summary.is_written(out, [found[i] for i in range(len(jobs))]):
            return tuple(found[i] for i in range(len(jobs)))
        try:
            if todo:
                with pool(len(todo)) if callable(pool) else contextlib.nullcontext(pool) as chosen:
                    _run(jobs, todo, out, chosen, limits, found, tell)
        finally:
            _sweep(out)
            outcomes = tuple(found.get(i) or Outcome(id=job.id, status="pending") for i, job in enumerate(jobs))
            summary.write(outcomes, out)
    return outcomes


def _run(
    jobs: Sequence[Job],
    todo: Sequence[int],
    out: Path,
    pool: Pool,
    limits: Limits,
    found: dict[int, Outcome],
    tell: Callable[[JobEvent], object],
) -> None:
    def started(at: int, worker: str) -> None:
        tell(JobEvent("started", jobs[todo[at]].id, len(found), len(jobs), worker))

    ended = pool.run(run_job, [(jobs[index], out, limits) for index in todo], started)
    try:
        for at, result in ended:
            index = todo[at]
            if isinstance(result, Stopped):
                continue
            if isinstance(result, BaseException):
                result = Outcome(id=jobs[index].id, status="failed", reasons=(_sentence(result),))
            found[index] = result
            tell(JobEvent("ended", result.id, len(found), len(jobs), outcome=result))
    finally:
        close = getattr(ended, "close", None)
        if close is not None:
            close()


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"its folder could not be written: {error.strerror}" + (f" ({error.filename})" if error.filename else "")
    return f"its task broke: {type(error).__name__}: {' '.join(str(error).split())}"


def _check_foreign(jobs: Sequence[Job], out: Path) -> None:
    for job in jobs:
        folder = out / job.id
        if (folder.exists() or folder.is_symlink()) and read_record(folder) is None:
            raise FileExistsError(
                f"output {folder} exists and was not written by a batch; it is left alone: choose another id or output folder"
            )


def _sweep(out: Path) -> None:
    """Remove what killed processes left half-written.

    Each folder is renamed first: a process on another machine that is about to finish it then finds it missing, not emptied.
    """
    for item in [*out.glob(".*.partial"), *out.glob(".*.swept")]:
        if item.is_dir() and not item.is_symlink():
            gone = item.with_name(item.name.removesuffix(".swept") + ".swept")
            with contextlib.suppress(OSError):
                item.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep other batches out of the folder; the system releases the lock however this process ends."""
    try:
        import fcntl
    except ImportError:  # no fcntl on this system: two batches on one folder are not prevented
        yield
        return
    descriptor = os.open(out / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip() or "another process"
            raise BlockingIOError(
                f"wanted {out} for this batch alone, got one that runs already ({owner}); wait for it or choose another folder"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
