"""Runs one job: its process, its limits, a second attempt after a breakdown, and the folder it leaves.

This code runs wherever a worker is and never loads torch; only the process that it starts does.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import regframe

from ..io import outputs
from ..remote.address import Remote
from . import forkserver, pools
from .manifest import Job
from .places import absent, argument, remote_signature

RECORD = "job.json"
LOG = "job.log"
LOCK = ".regframe-batch.lock"
"""File in the output folder that a batch holds, and writes when it begins."""
AS_ASKED = "as asked"
SIMPLER = "simpler, at a coarser level"
SIMPLER_PIXELS = 375_000
"""Pixels of the finest level in the second attempt: a quarter of the default of ``pyramid.max_pixels``."""

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE}
_POLL = 0.02
"""Seconds between two checks of a process's memory; a process can allocate some 100 MB in that time."""
_HASHED = 8 << 20
"""Bytes that are hashed at either end of a file: a changed header or tail is noticed, and a slide of 50 GB takes no time."""
_MAX_RECORD = 4 << 20
"""Largest ``job.json`` or log that is read, in bytes; a record of regframe has some kB."""
_FIGURES = (
    "seconds", "n_evaluations", "matching_fraction", "roundtrip_px", "jacobian_min", "folding_fraction", "pose_margin",
    "confidence", "metric", "model",
)  # fmt: skip


class Stopped(Exception):
    """The batch was interrupted; nothing of the job is kept."""


@dataclass(frozen=True)
class Limits:
    """Limits of one job.

    Args:
        memory: bytes; None: the worker's memory divided by the number of tasks it runs at once.
        timeout: seconds per attempt; None: no limit.
        threads: number of threads of the job's process.
    """

    memory: int | None = None
    timeout: float | None = None
    threads: int = 1

    def of(self, job: Job) -> Limits:
        """The limits of ``job``: those it states itself, and these for the rest."""
        return replace(self, memory=job.memory or self.memory, timeout=job.timeout or self.timeout)


@dataclass(frozen=True)
class Attempt:
    """One process of a job, and how it ended: ``done``, ``bad input``, ``disk``, ``defect``, ``memory``, ``killed``, ``time``.

    Args:
        model: what was attempted: `AS_ASKED` or `SIMPLER`.
        outcome: how it ended, one of the words above.
        reason: why, in a sentence.
        seconds: wall time.
        peak_memory: largest resident size in bytes.
    """

    model: str
    outcome: str
    reason: str
    seconds: float
    peak_memory: int


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job.

    Args:
        id: the job's id.
        status: ``done``, ``failed`` or ``pending``.
        verdict: verdict of the registration; None without one.
        reasons: reasons for the verdict, or for the failure.
        model: the attempt that gave the result: `AS_ASKED` or `SIMPLER`; None without a result.
        attempts: all processes of the job, in order.
        figures: some entries of ``metrics.json``.
        evaluation: output of ``regframe evaluate``; None without landmarks.
        applied: files that were carried, relative to the job's folder.
        seconds: wall time.
        threads: number of threads of its process.
        limits: memory in bytes and time in seconds that it was allowed.
        host: machine on which it ran.
        version: version of regframe.
        options: the row of the manifest.
        inputs: signatures of the input files (see `signature`).
        kept: whether an earlier run of the batch finished it.
    """

    id: str
    status: str
    verdict: str | None = None
    reasons: tuple[str, ...] = ()
    model: str | None = None
    attempts: tuple[Attempt, ...] = ()
    figures: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] | None = None
    applied: tuple[str, ...] = ()
    seconds: float = 0.0
    threads: int = 1
    limits: dict[str, float | None] = field(default_factory=dict)
    host: str = ""
    version: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    kept: bool = False

    @property
    def state(self) -> str:
        """The state shown in summaries: ``failed`` or ``pending``, else the verdict."""
        return self.status if self.status != "done" or self.verdict is None else self.verdict

    @property
    def peak_memory(self) -> int:
        """Largest memory of any of its processes, in bytes."""
        return max((a.peak_memory for a in self.attempts), default=0)


# ------------------------------------------------------------------------------------------------------- finished jobs


def signature(path: Path | Remote) -> dict[str, Any] | None:
    """Size, time and digest of a file, or of a folder's content; None where it does not exist.

    For a file the digest covers the first and the last 8 MiB; for a folder, names and sizes of its files and the text of its
    metadata; under an address, what the store states of the object or of the metadata.
    """
    if isinstance(path, Remote):
        return remote_signature(path)
    try:
        if path.is_dir():
            return _folder_signature(path)
        found = path.stat()
        digest = hashlib.sha256()
        with path.open("rb") as file:
            digest.update(file.read(_HASHED))
            if found.st_size > _HASHED:
                file.seek(max(_HASHED, found.st_size - _HASHED))
                digest.update(file.read(_HASHED))
        return {"size": found.st_size, "time": found.st_mtime_ns, "digest": digest.hexdigest()}
    except OSError:
        return None


def _folder_signature(path: Path) -> dict[str, Any]:
    size, newest, digest = 0, 0, hashlib.sha256()
    for folder, below, files in os.walk(path):
        below.sort()
        for name in sorted(files):
            file = Path(folder, name)
            found = file.stat()
            size, newest = size + found.st_size, max(newest, found.st_mtime_ns)
            digest.update(os.fsencode(file.relative_to(path)) + f"\0{found.st_size}\0".encode())
            if name.startswith((".z", "zarr.json")) and found.st_size < _HASHED:
                digest.update(file.read_bytes())
    return {"size": size, "time": newest, "digest": digest.hexdigest()}


def _unchanged(path: Path | Remote, before: Any) -> bool:
    """Whether a file is unchanged: same size and time, or the same content where only its time differs."""
    if not isinstance(before, dict):
        return before is None and absent(path) is not None
    with contextlib.suppress(OSError):
        if isinstance(path, Path) and path.is_file():
            found = path.stat()
            if found.st_size != before.get("size"):
                return False
            if found.st_mtime_ns == before.get("time"):
                return True
    now = signature(path)
    return now is not None and (now["size"], now["digest"]) == (before.get("size"), before.get("digest"))


def finished(job: Job, folder: Path, limits: Limits) -> Outcome | None:
    """The outcome of this very job in an earlier run; None where it has to be run.

    A failed job counts as finished, unless it exceeded its limits and now has higher ones, or could not write its output.
    """
    found = read_record(folder)
    if found is None or found.options != job.options or found.status not in ("done", "failed"):
        return None
    inputs = job.inputs
    if set(inputs) != set(found.inputs) or not all(_unchanged(inputs[name], found.inputs[name]) for name in inputs):
        return None
    if found.verdict is not None and not (outputs.is_output(folder) and (folder / outputs.REPORT).is_file()):
        return None
    if any(not (folder / name).exists() for name in found.applied):
        return None
    if found.verdict is None and found.attempts:
        limits = limits.of(job)
        last = found.attempts[-1].outcome
        if last == "disk":
            return None
        if last in ("killed", "defect"):
            return None if found.version != regframe.__version__ else replace(found, kept=True)
        most = found.limits.get("memory" if last == "memory" else "timeout") or math.inf
        if last == "memory" and limits.memory is not None and limits.memory > most:
            return None
        if last == "time" and (limits.timeout or math.inf) > most:
            return None
    return replace(found, kept=True)


def _finished_meanwhile(job: Job, out: Path, limits: Limits) -> Outcome | None:
    """The outcome of a job that ended since the batch that now holds ``out`` began; None where there is none.

    Both times are those of the file system of ``out``, so that the clocks of machines do not matter.
    """
    try:
        began, ended = (out / LOCK).stat().st_mtime_ns, (out / job.id / RECORD).stat().st_mtime_ns
    except OSError:
        return None
    found = finished(job, out / job.id, limits) if ended > began else None
    return None if found is None else replace(found, kept=False)


def read_record(folder: Path) -> Outcome | None:
    """The outcome in a folder's ``job.json``; None where it cannot be read."""
    path = folder / RECORD
    try:
        if path.stat().st_size > _MAX_RECORD:
            return None
        values = json.loads(path.read_text(encoding="utf-8"))
        values["attempts"] = tuple(Attempt(**a) for a in values["attempts"])
        for name in ("reasons", "applied"):
            values[name] = tuple(str(v) for v in values[name])
        found = Outcome(**values)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    typed = isinstance(found.options, dict) and isinstance(found.inputs, dict) and isinstance(found.limits, dict)
    inside = all(not Path(name).is_absolute() and ".." not in Path(name).parts for name in found.applied)
    return found if typed and inside and isinstance(found.figures, dict) else None


# ------------------------------------------------------------------------------------------------------ running a job


def run_job(job: Job, out: Path, limits: Limits) -> Outcome:
    """Run a job in processes of its own, and write ``out/ID`` completely or not at all.

    A job that this batch has finished already, and whose answer was lost with its worker or scheduler, is not run again.

    Raises Stopped where the batch ended meanwhile, OSError where the folder cannot be written.
    """
    answered = _finished_meanwhile(job, out, limits)
    if answered is not None:
        return answered
    began = time.monotonic()
    limits = limits.of(job)
    if limits.memory is None:
        limits = replace(limits, memory=pools.share())
    inputs = {name: signature(path) for name, path in job.inputs.items()}
    with outputs.staged(out / job.id, overwrite=True) as folder:
        log = folder.parent / LOG
        attempts: list[Attempt] = []
        report: dict[str, Any] = {}
        for model in (AS_ASKED, SIMPLER):
            _clear(folder.parent, keep=log)
            attempt, report = _attempt(job, folder, log, limits, model)
            attempts.append(attempt)
            if attempt.outcome in ("done", "bad input", "disk"):
                break
        done = attempts[-1].outcome == "done"
        if not done:
            _clear(folder.parent, keep=log)
        folder.mkdir(exist_ok=True)
        metrics = json.loads((folder / outputs.METRICS).read_text(encoding="utf-8")) if done else {}
        broken = report.get("broken", []) if done else []
        outcome = Outcome(
            id=job.id,
            status="done" if done and not broken else "failed",
            verdict=metrics.get("verdict"),
            reasons=tuple(r.replace(str(folder), str(out / job.id)) for r in _reasons(attempts, metrics, broken)),
            model=attempts[-1].model if done else None,
            attempts=tuple(attempts),
            figures={name: metrics[name] for name in _FIGURES if name in metrics},
            evaluation=_evaluation(folder),
            applied=tuple(sorted(f"applied/{p.name}" for p in (folder / "applied").glob("*"))),
            seconds=time.monotonic() - began,
            threads=limits.threads,
            limits={"memory": limits.memory, "timeout": limits.timeout},
            host=socket.gethostname(),
            version=regframe.__version__,
            options=job.options,
            inputs=inputs,
        )
        _renamed(log, folder, out / job.id).rename(folder / LOG)
        if (folder / outputs.REPORT).is_file():
            _in_place(folder / outputs.REPORT, folder)
        values = asdict(outcome)
        del values["kept"]
        (folder / RECORD).write_text(outputs.to_json(values, indent=2) + "\n", encoding="utf-8")
    return outcome


def _reasons(attempts: list[Attempt], metrics: dict[str, Any], broken: list[str]) -> list[str]:
    lost = [a for a in attempts if a.outcome != "done"]
    if not lost:
        first = []
    elif metrics:
        first = [f"{lost[0].reason}; this is the result of a simpler model at a coarser level"]
    elif len({a.outcome for a in lost}) < len(lost):
        first = [f"{lost[0].reason}; so did a simpler model at a coarser level"]
    else:
        first = [lost[0].reason, *(f"{a.model}: {a.reason}" for a in lost[1:])]
    return [*first, *broken, *(str(r) for r in metrics.get("reasons", ()))]


def _renamed(log: Path, folder: Path, final: Path) -> Path:
    """The log, with the temporary name of the folder replaced by its final name."""
    if log.stat().st_size <= _MAX_RECORD:
        log.write_bytes(log.read_bytes().replace(os.fsencode(folder), os.fsencode(final)))
    return log


def _in_place(page: Path, folder: Path) -> None:
    """The commands that a page shows, with the folder as it will be called: beside, not within, the hidden one."""
    hidden, final = os.fsencode(f"{folder.parent.name}/{folder.name}"), os.fsencode(folder.name)
    page.write_bytes(page.read_bytes().replace(hidden, final))


def _evaluation(folder: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else None
    return None


def _clear(folder: Path, keep: Path) -> None:
    """Remove what a failed attempt left, except ``keep``."""
    for item in folder.iterdir():
        if item.is_dir():
            shutil.rmtree(item, ignore_errors=True)
        elif item != keep:
            item.unlink()


def _attempt(job: Job, folder: Path, log: Path, limits: Limits, model: str) -> tuple[Attempt, dict[str, Any]]:
    """Run one process to its end; returns how it ended, and its report."""
    began = time.monotonic()
    asked = job if model == AS_ASKED else job.model_copy(update={"refine": False})
    answer, waits = folder.parent / "answer.json", folder.parent / "waits"
    order = {
        "register": asked.register_arguments(folder, limits.threads),
        "later": list(job.later_arguments(folder, limits.threads)),
        "folder": str(folder),
        "answer": str(answer),
        "scheduler": pools.scheduler(),  # the cluster on which shards of large images may run as tasks
        "credentials": pools.credentials(),  # sent through a pipe: others can read arguments and environment
        "waits": str(waits),
        "memory": limits.memory,
        "simpler": _simpler(job) if model == SIMPLER else [],
        "sides": _sides(job) if model == SIMPLER else {},
    }
    peak, broke, aside = 0, "", False
    with log.open("ab") as lines:
        lines.write(f"--- {model}\n".encode())
        lines.flush()
        process = forkserver.start(
            ["batch-job", str(folder.parent.parent / job.id)], lines, _environment(limits.threads)
        )
        assert process.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(order).encode() + b"\n")
                process.stdin.flush()  # stdin stays open: the process ends itself when it is closed
            looked = began
            while process.poll() is None:
                now = time.monotonic()
                resident = _resident(process.pid)
                peak = max(peak, resident)
                if limits.memory is not None and resident > limits.memory:
                    broke = "memory"
                elif limits.timeout is not None and now - began > limits.timeout:
                    broke = "time"
                elif now - looked > 0.5:
                    looked = now
                    if pools.stopped():
                        raise Stopped(f"the batch ended while {job.id} ran")
                    if not aside and waits.exists():
                        pools.step_aside()
                        aside = True
                if broke:
                    process.kill()
                    break
                time.sleep(_POLL)
        finally:
            if process.poll() is None:
                process.kill()
            code = process.wait()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
    report: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        report = json.loads(answer.read_text(encoding="utf-8"))
    answer.unlink(missing_ok=True)
    waits.unlink(missing_ok=True)
    outcome, reason = _ending(code, broke, report, limits, peak)
    return Attempt(model, outcome, reason, time.monotonic() - began, peak), report


def _ending(code: int, broke: str, report: dict[str, Any], limits: Limits, peak: int) -> tuple[str, str]:
    refused = report.get("outcome") == "memory"
    if broke == "memory" or refused:
        how = "the system refused it more" if refused else f"it was stopped at {_mib(peak)}"
        return "memory", f"needed more than the {_mib(limits.memory or 0)} of memory it may take ({how})"
    if broke == "time":
        return "time", f"ran longer than the {limits.timeout:g} s it may take"
    if code < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            hint = ", by someone or by a system short of memory" if name == "SIGKILL" else ""
            return "killed", f"its process was ended by {name}{hint}; {LOG} holds what it said"
    if "outcome" in report:
        return str(report["outcome"]), str(report.get("reason", ""))
    return "defect", f"its process ended with exit code {code} and without an answer; {LOG} holds what it said"


def _simpler(job: Job) -> list[str]:
    """Options of the second attempt: no bend, and at most a quarter of the pixels; a model simpler than affine is kept."""
    named = [pair.partition("=")[2].strip() for pair in job.settings if pair.partition("=")[0].strip() == "transform"]
    asked = job.transform or (named[-1] if named else None)
    kind = asked if asked in ("rigid", "similarity") else "affine"
    return [f"--transform={kind}", f"--set=pyramid.max_pixels={SIMPLER_PIXELS}"]


def _sides(job: Job) -> dict[str, Any]:
    """Path and adapter options of each side, for opening it one level coarser."""
    return {
        side: {
            "path": argument(getattr(job, side)),
            "adapter": getattr(job, f"{side}_adapter"),
            "options": list(getattr(job, f"{side}_set")),
            "level": job.level,
        }
        for side in ("fixed", "moving")
    }


def _environment(threads: int) -> dict[str, str]:
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return {**os.environ, **counts}


def _resident(pid: int) -> int:
    """Resident memory of a process in bytes; 0 where the system does not tell, or the process is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return 0


_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def _mib(size: int) -> str:
    return f"{size / (1 << 30):.3g} GiB" if size >= 1 << 30 else f"{size / (1 << 20):.0f} MiB"


# ---------------------------------------------------------------------------------------- inside the job's process


def obey(memory: int | None) -> None:
    """Limit the memory of this process: beyond ``memory`` bytes the system refuses allocations.

    ``RLIMIT_DATA`` counts private writable memory, which is what torch, numpy and decoders allocate. Unlike ``RLIMIT_AS`` it
    counts neither the mapped files of libraries nor reserved address space. With a GPU, whose driver maps memory in its own
    way, and where more is reserved already than the machine has, as a sanitizer does, no limit is set, and the supervisor's
    check of the resident size has to suffice.
    """
    if memory is not None and sys.platform == "linux":
        import resource

        import torch

        if not torch.cuda.is_available() and _private() <= pools.machine()[1]:
            resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))


def _private() -> int:
    """Bytes of private writable memory that this process has reserved; 0 where the system does not tell."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmData:"):
                return int(line.split()[1]) << 10
    return 0


def end_with_parent() -> None:
    """End this process as soon as the pipe from its supervisor breaks, so that no job outlives its worker."""

    def watch() -> None:
        with contextlib.suppress(OSError, ValueError):
            while os.read(0, 1024):
                pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def cause(error: BaseException | None) -> str | None:
    """``memory`` where an error (or its cause) is a refused allocation, ``disk`` where a file could not be written; else None."""
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        if number in _DISK:
            return "disk"
        text = str(error).lower()
        refused = any(
            said in text for said in ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc")
        )
        if refused or isinstance(error, MemoryError) or number == errno.ENOMEM:
            return "memory"
        error = error.__cause__ or error.__context__
    return None
