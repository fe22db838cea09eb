"""``regframe refine``: the map of a finished run, made exact at full resolution."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..display.bars import Bars
from ._common import (
    BadInput,
    bad_input,
    device_option,
    emit_json,
    finish,
    json_option,
    load_result,
    moved_options,
    open_levels,
    open_recorded,
    open_side,
    overwrite_option,
    path_type,
    recorded_run,
    require_option,
    result_argument,
    verbose_option,
    workers_option,
)
from .clusters import cluster_at, kept_beside, kept_when_interrupted, scheduler_option

if TYPE_CHECKING:
    from ..data import Pyramid
    from ..result import Result

STEPS = "steps.json"
"""What was done on the live page to make a map; it does not make the refined one, and is left out with it."""

threads_option = workers_option("Threads of the refinement; one per core otherwise.")


@click.command(short_help="Make the map of a finished run exact at full resolution.")
@result_argument
@click.option("-o", "--output", type=path_type, metavar="NEW", help="Folder to write; OUT itself where not given.")
@moved_options
@device_option("Where tiles are carried and windows compared.  [default: cpu]")
@workers_option(
    "Threads of the refinement; one per core otherwise. With --scheduler: what a cluster must have more of."
)
@scheduler_option("look at the tiles")
@overwrite_option
@require_option
@json_option
@verbose_option
@click.pass_context
def refine(
    ctx: click.Context,
    /,
    result_folder: Path,
    output: Path | None,
    fixed: Path | None,
    moving: Path | None,
    device: str | None,
    workers: int | None,
    scheduler: str | None,
    overwrite: bool,
    require: str,
    as_json: bool,
) -> None:
    """Compare both images tile by tile at full resolution and correct the map where that can be shown to help.

    A tile whose held-out windows do not get better leaves the map as it was. OUT is replaced when all is done, its
    warped data left out, which another map made. Run the same command again to go on with one that was interrupted.
    """
    from ..io import outputs
    from ..remote.address import locate
    from ..report import results

    out = output or result_folder
    result = load_result(result_folder)
    with bad_input():
        run = recorded_run(result_folder, fixed, moving)
        ours = {outputs.TRANSFORM, outputs.METRICS, outputs.CONFIG, outputs.LOG, outputs.REPORT, STEPS}
        strangers = sorted(
            p.name for p in result_folder.iterdir() if p.name not in ours and not p.name.startswith("warped")
        )
        if output is None and strangers:
            raise ValueError(
                f"wanted a folder with nothing but a run to replace it, got {strangers[0]!r} in {result_folder}; "
                "move it away, or write elsewhere with -o"
            )
        read = [locate(run[side]["path"]) for side in ("fixed", "moving")]
        if out.resolve() != result_folder.resolve():
            read.append(result_folder / outputs.TRANSFORM)
        outputs.check_folder(out, overwrite or output is None, read)
    folder = kept_beside(out)
    with kept_when_interrupted(folder, "tiles"):
        refined = run_refinement(result, levels(run), workers, device or "cpu", scheduler, folder)
        sides = open_recorded(run)
        with bad_input():
            results.write_run(out, refined, sides, run, overwrite or output is None)
    if as_json:
        emit_json({**refined.metrics, "output": str(out)})
    else:
        click.echo(f"wrote {out} (report: {out / outputs.REPORT})")
    finish(refined.metrics, ctx, require)


def levels(run: Mapping[str, Mapping[str, Any]]) -> tuple[Pyramid, Pyramid]:
    """Every resolution of both sides of a run; `BadInput` where a side has no pixels or is a volume."""
    from ..data import Image
    from ..remote.address import locate
    from ..slides.levels import pyramid_of

    found = []
    for side in ("fixed", "moving"):
        path = locate(run[side]["path"])
        options = {k: v for k, v in (run[side].get("options") or {}).items() if k != "level"}
        pyramid, _ = open_levels(path, run[side].get("adapter"), options)
        if pyramid is None:
            data = open_side(path, run[side].get("adapter"), options)[0]
            if not isinstance(data, Image):
                raise BadInput(f"wanted two images to refine, got points in {path.name}; leave the refinement out")
            pyramid = pyramid_of(data)
        if pyramid.grid.ndim != 2:
            raise BadInput(f"wanted two 2D images to refine, got a volume in {path.name}; leave the refinement out")
        found.append(pyramid)
    return found[0], found[1]


def run_refinement(
    result: Result,
    sides: tuple[Pyramid, Pyramid],
    workers: int | None,
    device: str = "cpu",
    scheduler: str | None = None,
    folder: Path | None = None,
) -> Result:
    """Run `regframe.refine` and print its progress and what it did on stderr.

    Args:
        result: the registration.
        sides: every resolution of the fixed and of the moving image.
        workers: threads; beside a scheduler, what it must have more of.
        device: where tiles are carried and windows compared.
        scheduler: address of a Dask scheduler whose workers look at the tiles.
        folder: where measurements are kept as they come.
    """
    import regframe

    from .. import verdict

    if scheduler is not None:
        with bad_input():
            scheduler = _reached(scheduler, sides)
    with bad_input(), Bars() as progress:
        there = contextlib.nullcontext() if scheduler is None else cluster_at(scheduler, workers, "tiles")
        with there as pool:
            refined = regframe.refine(
                result, *sides, workers=workers, progress=progress, device=device, client=pool, folder=folder
            )
    for finding in verdict.of_refinement(refined.metrics["refinement"]["rounds"], refined.fixed_grid.unit):
        click.echo(f"refined, {finding.sentence}", err=True)
    return refined


def _reached(scheduler: str, sides: tuple[Pyramid, Pyramid]) -> str | None:
    """The address of a scheduler whose workers can read both sides; None, with a note, where a side is read as a whole."""
    from .. import batch
    from ..io.tasks import is_sent

    whole = [side.name for side in sides if not is_sent(side)]
    if not whole:
        return scheduler
    with batch.Cluster(scheduler):  # an address is no less wrong where nothing is sent there
        pass
    click.echo(f"Note: {whole[0]} is read as a whole, and looked at here", err=True)
    return None
