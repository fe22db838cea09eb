"""``regframe batch``: a table of registrations."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import interrupts
from ._common import (
    EXIT_FAIL,
    BadInput,
    bad_input,
    emit_json,
    file_type,
    folder_option,
    json_option,
    path_type,
    require_option,
    save_warped_option,
    verbose_option,
    workers_option,
)
from .outside import pool_of
from .progress import JobTable
from .register import resolved_config

if TYPE_CHECKING:
    from ..batch import Job, Limits, Outcome, Pool

_LEAST = 2 << 30
"""Least memory of a job in bytes, before more jobs run side by side: slides of any size are registered and carried within it."""
_SHARE = 0.9
"""Share of the machine's memory for all jobs together; the rest is for the system and the supervisor."""


@click.command(short_help="Run a table of registrations.")
@click.argument("manifest", type=file_type, metavar="MANIFEST.csv")
@folder_option("DIR", "Folder to write; a folder in it per job.")
@click.option("--config", "config_file", type=path_type, metavar="F.yaml", help="Settings of the rows that name none.")
@click.option(
    "--set", "settings", metavar="A.B=C", multiple=True, help="One setting for all rows; a row's own counts more."
)
@save_warped_option
@click.option("--refine", is_flag=True, help="Make every map exact at full resolution, tile by tile.")
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="A Dask scheduler, or its scheduler file, instead of workers here; NAME://… is the back end of a package.",
)
@workers_option("Jobs side by side here; from cores and memory otherwise.")
@click.option(
    "--gpus",
    metavar="N|all",
    help="Fit on GPUs of this machine: one job side by side on each; rows that name a device keep it.",
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
@require_option
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
    gpus: str | None,
    threads: int | None,
    memory: str | None,
    timeout: float | None,
    retry_failed: bool,
    dry_run: bool,
    require: str,
    as_json: bool,
) -> None:
    """Run every registration of MANIFEST.csv, each in a process of its own, and write DIR/summary.html.

    A row is a job: id, fixed, moving, and what the commands call by the same names (config, set, fixed_adapter, landmarks,
    fixed_landmarks, moving_landmarks, apply_image, apply_points …). Jobs that DIR holds already are left as they are, so that
    the same command goes on where it was interrupted. A job that breaks is tried once more with a simpler model.

    Exit codes: 0 every map is as good as --require asks, 3 a verdict is worse or a job has no result, 2 a manifest that cannot
    be used or a scheduler that is not there, 1 a defect.
    """
    from ..batch import Limits, parse_size, read_manifest, run_batch

    with bad_input():
        defaults: dict[str, Any] = {"set": settings, "save_warped": save_warped, "refine": refine}
        if config_file is not None:
            defaults["config"] = str(config_file.absolute())
        cards = _gpus(gpus, workers, scheduler)
        if cards:
            defaults["device"] = "cuda"
        jobs = read_manifest(manifest, defaults)
        most = None if memory is None else parse_size(memory)
    _check_settings(jobs, elsewhere=scheduler is not None)
    pool, limits = _plan(jobs, scheduler, len(cards) or workers, Limits(most, timeout, threads or 0), cards)
    if dry_run:
        _dry_run(jobs, out, limits, retry_failed, as_json)
        return
    with bad_input(), JobTable(len(jobs)) as board:

        def opened(n: int) -> contextlib.AbstractContextManager[Pool]:
            return board.said(pool(n))

        try:
            outcomes = run_batch(jobs, out, opened, limits, retry_failed, board)
        except ConnectionError as error:
            raise BadInput(str(error)) from error
        except KeyboardInterrupt as stop:
            board.close()
            done = sum(1 for job in jobs if (out / job.id / "job.json").is_file())
            interrupts.say(f"interrupted; {done} of {len(jobs)} jobs are done: the same command goes on from there")
            ctx.exit(interrupts.code_of(stop))
    _finish(outcomes, out, as_json)
    if not all(outcome.state in ("pass", require) for outcome in outcomes):
        ctx.exit(EXIT_FAIL)


def _gpus(asked: str | None, workers: int | None, scheduler: str | None) -> list[str]:
    """Words for the GPUs that --gpus asks for (`regframe.devices.visible`); none where it is not given."""
    if asked is None:
        return []
    from .. import devices

    if workers is not None or scheduler is not None:
        raise BadInput("wanted --gpus alone, got it beside --workers or --scheduler; the GPUs are this machine's")
    if asked != "all" and not (asked.isdecimal() and int(asked) > 0):
        raise BadInput(f"wanted --gpus N, a number from 1, or all, got {asked!r}")
    return devices.visible(max(1, len(devices.found())) if asked == "all" else int(asked))


def _check_settings(jobs: tuple[Job, ...], elsewhere: bool) -> None:
    """Read settings and settings files once, before the first job runs; devices are not looked for where jobs run elsewhere."""
    seen: dict[Any, None] = {}
    for job in jobs:
        options = {
            "config_file": job.config, "settings": job.settings, "metric": job.metric, "transform": job.transform,
            "device": None if elsewhere else job.device, "effort": job.effort, "seed": job.seed,
            "metric_set": job.metric_set,
        }  # fmt: skip
        key = tuple(options.values())
        if key in seen or (job.config is not None and not job.config.exists()):  # a missing file: its job reports it
            continue
        seen[key] = None
        try:
            resolved_config(options)
        except click.ClickException as error:
            raise BadInput(f"job {job.id}: {error.format_message()}") from error


def _plan(
    jobs: tuple[Job, ...],
    scheduler: str | None,
    workers: int | None,
    asked: Limits,
    gpus: list[str],
) -> tuple[Any, Limits]:
    """The pool that runs the jobs, and the limits of a job, of which 0 threads are no limit yet.

    Both follow from the machine and the manifest, and do not depend on how many jobs are left.
    """
    from ..batch import Cluster, InTurn, Limits, machine
    from ..batch.pools import available

    memory, timeout, threads = asked.memory, asked.timeout, asked.threads or None
    if scheduler is not None:
        if workers is not None:
            raise BadInput("wanted --workers or --scheduler, got both; the workers are the cluster's")
        outside = pool_of(scheduler)
        if outside is not None:
            return outside, Limits(memory, timeout, threads or 1)
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
    if gpus:
        return (lambda n: Cluster(gpus=gpus if tiles else gpus[:n])), limits
    return (lambda n: Cluster(workers=side_by_side if tiles else min(side_by_side, n))), limits


def _dry_run(jobs: tuple[Job, ...], out: Path, limits: Limits, retry_failed: bool, as_json: bool) -> None:
    from ..batch import places
    from ..batch.work import finished
    from ..io.paths import shown

    kept = [
        job
        for job in jobs
        if (found := finished(job, out / job.id, limits)) and not (retry_failed and found.status == "failed")
    ]
    absent = [
        shown(f"{job.id}: {place}{f' ({why})' if why else ''}")
        for job in jobs
        for place in job.inputs.values()
        if (why := places.absent(place)) is not None
    ]
    if as_json:
        todo = [job.id for job in jobs if job not in kept]
        emit_json({"dry_run": True, "output": out, "jobs": len(jobs), "run": todo, "absent": absent})
        return
    click.echo(
        f"{len(jobs)} jobs, {len(kept)} done already, {len(jobs) - len(kept)} to run (nothing was run or written)"
    )
    for line in absent:
        click.echo(f"  not there: {line}")


def _finish(outcomes: tuple[Outcome, ...], out: Path, as_json: bool) -> None:
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
