"""``regframe batch``: a table of registrations."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from ._common import EXIT_FAIL, BadInput, bad_input, emit_json, json_option, path_type, verbose_option
from .register import _config

if TYPE_CHECKING:
    from ..batch import Job, Limits, Outcome, Pool, Progress

_LEAST = 2 << 30  # memory a job gets before more of them run side by side
_SHARE = 0.9  # of the machine's memory that jobs may take
_TONES = {"pass": "green", "warn": "yellow", "fail": "red", "failed": "red"}


@click.command(short_help="Run a table of registrations.")
@click.argument("manifest", type=path_type, metavar="MANIFEST.csv")
@click.option(
    "-o",
    "--output",
    "out",
    type=path_type,
    required=True,
    metavar="DIR",
    help="Folder to write; a folder in it per job.",
)
@click.option("--config", "config_file", type=path_type, metavar="F.yaml", help="Settings of the rows that name none.")
@click.option(
    "--set", "settings", metavar="A.B=C", multiple=True, help="One setting for all rows; a row's own counts more."
)
@click.option("--save-warped", is_flag=True, help="Also write the moving data on the fixed canvas.")
@click.option("--refine", is_flag=True, help="Make every map exact at full resolution, tile by tile.")
@click.option(
    "--scheduler", metavar="ADDRESS", help="A Dask scheduler, or its scheduler file, instead of workers here."
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Jobs side by side here; from cores and memory otherwise.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Threads per job; cores over jobs otherwise, 1 on a cluster.",
)
@click.option(
    "--memory",
    metavar="SIZE",
    help="Memory a job may take, e.g. 4GiB; the machine's over the jobs side by side otherwise.",
)
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), metavar="S", help="Seconds an attempt may take."
)
@click.option("--retry-failed", is_flag=True, help="Run jobs again that failed in an earlier run.")
@click.option("--dry-run", is_flag=True, help="Check the manifest, say what would run, write nothing.")
@json_option
@verbose_option
@click.pass_context
def batch(
    ctx: click.Context,
    manifest: Path,
    out: Path,
    config_file: Path | None,
    settings: tuple[str, ...],
    save_warped: bool,
    refine: bool,
    scheduler: str | None,
    workers: int | None,
    threads: int | None,
    memory: str | None,
    timeout: float | None,
    retry_failed: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Run every registration of MANIFEST.csv, each in a process of its own, and write DIR/summary.html.

    A row is a job: id, fixed, moving, and what the commands call by the same names (config, set, fixed_adapter, landmarks,
    fixed_landmarks, moving_landmarks, apply_image, apply_points …). Jobs that DIR holds already are left as they are, so that
    the same command goes on where it was interrupted. A job that breaks is tried once more with a simpler model.

    Exit codes: 0 every job passed, perhaps with remarks, 3 a verdict is fail or a job has no result, 2 a manifest that cannot be
    used, 1 a defect.
    """
    from ..batch import parse_size, read_manifest, run_batch

    with bad_input():
        defaults: dict[str, Any] = {"set": settings, "save_warped": save_warped, "refine": refine}
        if config_file is not None:
            defaults["config"] = str(config_file.absolute())
        jobs = read_manifest(manifest, defaults)
        most = None if memory is None else parse_size(memory)
    _check_settings(jobs)
    pool, limits = _plan(jobs, scheduler, workers, threads, most, timeout)
    if dry_run:
        _dry_run(jobs, out, limits, retry_failed, as_json)
        return
    with bad_input(), _terminated(), Board(len(jobs)) as board:

        def opened(n: int) -> contextlib.AbstractContextManager[Pool]:
            return board.said(pool(n))

        try:
            outcomes = run_batch(jobs, out, opened, limits, retry_failed, board)
        except ConnectionError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt as stop:
            board.close()
            done = sum(1 for job in jobs if (out / job.id / "job.json").is_file())
            click.echo(
                f"interrupted; {done} of {len(jobs)} jobs are done: the same command goes on from there", err=True
            )
            ctx.exit(stop.args[0] if stop.args else 130)
    _finish(outcomes, out, as_json, ctx)


def _check_settings(jobs: tuple[Job, ...]) -> None:
    """Settings and settings files are read before the first job runs, not by each of them."""
    seen: dict[Any, None] = {}
    for job in jobs:
        options = {
            "config_file": job.config, "settings": job.settings, "metric": job.metric, "transform": job.transform,
            "device": job.device, "seed": job.seed, "metric_set": job.metric_set,
        }  # fmt: skip
        key = tuple(options.values())
        if key in seen or (job.config is not None and not job.config.exists()):  # the job itself says so
            continue
        seen[key] = None
        try:
            _config(options)
        except click.ClickException as error:
            raise BadInput(f"job {job.id}: {error.format_message()}") from error


def _plan(
    jobs: tuple[Job, ...],
    scheduler: str | None,
    workers: int | None,
    threads: int | None,
    memory: int | None,
    timeout: float | None,
) -> tuple[Any, Limits]:
    """Who runs the jobs, and what each may take; both depend on the machine and the manifest, not on what is left to do."""
    from ..batch import Cluster, InTurn, Limits, machine
    from ..batch.pools import available

    if scheduler is not None:
        if workers is not None:
            raise BadInput("wanted --workers or --scheduler, got both; the workers are the cluster's")
        if not available():
            raise BadInput("wanted Dask for --scheduler, got none; install it with: pip install 'regframe[batch]'")
        return (lambda n: Cluster(scheduler)), Limits(memory, timeout, threads or 1)
    cores, whole = machine()
    most = int(_SHARE * whole)
    side_by_side = 1
    if available():
        side_by_side = workers or max(1, min(cores // (threads or 1), most // (memory or _LEAST), len(jobs)))
    elif workers is not None and workers > 1:
        raise BadInput("wanted Dask for --workers, got none; install it with: pip install 'regframe[batch]'")
    limits = Limits(memory or most // side_by_side, timeout, threads or max(1, cores // side_by_side))
    if not available():
        return (lambda n: contextlib.nullcontext(InTurn())), limits
    # a job with images to carry has tasks for workers that have no job of their own
    tiles = any(job.apply_image or job.apply_labels for job in jobs)
    return (lambda n: Cluster(workers=side_by_side if tiles else min(side_by_side, n))), limits


def _dry_run(jobs: tuple[Job, ...], out: Path, limits: Limits, retry_failed: bool, as_json: bool) -> None:
    from ..batch.work import finished

    kept = [
        job
        for job in jobs
        if (found := finished(job, out / job.id, limits)) and not (retry_failed and found.status == "failed")
    ]
    absent = [f"{job.id}: {path}" for job in jobs for path in job.inputs.values() if not path.exists()]
    if as_json:
        todo = [job.id for job in jobs if job not in kept]
        emit_json({"dry_run": True, "output": out, "jobs": len(jobs), "run": todo, "absent": absent})
        return
    click.echo(
        f"{len(jobs)} jobs, {len(kept)} done already, {len(jobs) - len(kept)} to run (nothing was run or written)"
    )
    for line in absent:
        click.echo(f"  not there: {line}")


def _finish(outcomes: tuple[Outcome, ...], out: Path, as_json: bool, ctx: click.Context) -> None:
    from ..batch.summary import PAGE, STATES, row

    counts = {state: sum(o.state == state for o in outcomes) for state in STATES}
    said = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    if as_json:
        emit_json({"output": out, "counts": counts, "jobs": [row(outcome) for outcome in outcomes]})
    else:
        click.echo(f"{len(outcomes)} job{'' if len(outcomes) == 1 else 's'}: {said}")
        for outcome in outcomes:
            if outcome.state in ("failed", "fail"):
                click.echo(f"  {outcome.id}: {outcome.state}: {'; '.join(outcome.reasons)}")
        click.echo(f"wrote {out / PAGE}")
    if any(outcome.state not in ("pass", "warn") for outcome in outcomes):
        ctx.exit(EXIT_FAIL)


@contextlib.contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM, which schedulers of clusters send, ends a batch as Ctrl-C does."""

    def stop(number: int, _: Any) -> None:
        raise KeyboardInterrupt(128 + number)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Board:
    """Live progress on stderr: a table on a terminal, else a line per job that ended."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._running: dict[str, tuple[float, str]] = {}
        self._ended: list[Outcome] = []
        self._done = self._kept = 0
        self._began = time.monotonic()
        self._live: Any = None

    def __enter__(self) -> Board:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), get_renderable=self._table, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the last state on the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    @contextlib.contextmanager
    def said(self, pool: contextlib.AbstractContextManager[Pool]) -> Iterator[Pool]:
        """Say who does the work once it is there."""
        with pool as opened:
            hint = (
                "" if opened.name != "one after another" else " (pip install 'regframe[batch]' runs them side by side)"
            )
            self._line(f"running on {opened.name}" if not hint else f"running {opened.name}{hint}")
            yield opened

    def __call__(self, step: Progress) -> None:
        """Take one step of `regframe.batch.run_batch`."""
        if step.event == "started":
            self._running[step.id] = (time.monotonic(), step.worker)
            return
        self._done = step.done
        if step.event == "kept":
            self._kept += 1
            return
        self._running.pop(step.id, None)
        outcome = step.outcome
        assert outcome is not None
        self._ended.append(outcome)
        if self._live is None:
            width = len(str(step.total))
            why = f": {outcome.reasons[0]}" if outcome.reasons else ""
            self._line(
                f"[{step.done:>{width}}/{step.total}] {outcome.id}: {outcome.state}, {outcome.seconds:.1f} s{why}"
            )

    def _line(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(text, highlight=False)
        else:
            click.echo(text, err=True)

    def _table(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        counts = {state: sum(o.state == state for o in self._ended) for state in _TONES}
        head = Text(f"{self._done} of {self.total} jobs")
        if self._kept:
            head.append(f", {self._kept} of them done before", style="dim")
        for state, count in counts.items():
            if count:
                head.append(f"   {count} {state}", style=_TONES[state])
        now = time.monotonic()
        ran, left = len(self._ended), self.total - self._done
        if ran and left:
            head.append(f"   about {(now - self._began) / ran * left / 60:.0f} min left", style="dim")
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", expand=True)
        for name, most in (("job", 32), ("state", 8), ("time", 9)):
            table.add_column(name, overflow="ellipsis", no_wrap=True, max_width=most)
        table.add_column("remark", overflow="ellipsis", no_wrap=True, ratio=1)
        for outcome in self._ended[-8:]:
            why = Text(outcome.reasons[0] if outcome.reasons else "")
            word = Text(outcome.state, style=_TONES.get(outcome.state, ""))
            table.add_row(Text(outcome.id), word, f"{outcome.seconds:.1f} s", why)
        for name, (began, worker) in list(self._running.items())[:16]:
            table.add_row(Text(name), "running", f"{now - began:.0f} s", Text(f"on worker {worker}"))
        return Group(head, table)
