"""``regframe compose``: results in a chain as one."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._common import (
    BadInput,
    bad_input,
    emit_json,
    finish,
    folder_option,
    json_option,
    load_result,
    open_recorded,
    overwrite_option,
    recorded_run,
    require_option,
    result_type,
    verbose_option,
)

if TYPE_CHECKING:
    from ..data import Image, PointSet
    from ..result import Result


@click.command(short_help="Join results A→B→C to one.")
@click.argument("results", nargs=-1, required=True, type=result_type, metavar="A B ...")
@folder_option()
@click.option(
    "--inverse",
    "backwards",
    type=click.IntRange(min=1),
    multiple=True,
    metavar="N",
    help="Take the N-th result backwards, from its fixed to its moving side; may be repeated.",
)
@overwrite_option
@require_option
@json_option
@verbose_option
@click.pass_context
def compose(
    ctx: click.Context,
    results: tuple[Path, ...],
    out: Path,
    backwards: tuple[int, ...],
    overwrite: bool,
    require: str,
    as_json: bool,
) -> None:
    """Join the results A, B, ... (folders that register, import, refine or compose wrote) to one, in the order of application.

    The fixed side of each is the moving side of the next. OUT takes the moving side of the first to the fixed side of the last,
    and is used like any other: apply, export, evaluate, report. Its verdict is the worst of theirs or worse; position_sd adds up.
    """
    from .. import composition
    from ..io import outputs
    from ..report import results as pages

    with bad_input():
        outputs.check_folder(out, overwrite, [path / outputs.TRANSFORM for path in results])
    steps = [load_result(path) for path in results]
    runs = [_run(path, i in backwards) for i, path in enumerate(results, 1)]
    with bad_input():
        whole = composition.compose(*steps, inverse=backwards)
    for i, (before, after) in enumerate(itertools.pairwise(runs), 1):
        ends = before.get("fixed", {}).get("path"), after.get("moving", {}).get("path")
        if all(ends) and ends[0] != ends[1]:
            click.echo(
                f"Note: result {i} ends at {ends[0]}, result {i + 1} begins at {ends[1]}: is it one image?", err=True
            )
    run: dict[str, Any] = {"composed": [path.resolve() for path in results], "inverse": list(backwards)}
    run |= {side: runs[k][side] for side, k in (("fixed", -1), ("moving", 0)) if side in runs[k]}
    with bad_input():
        pages.write_run(out, whole, _sides(run, whole), run, overwrite)
    if as_json:
        emit_json({**whole.metrics, "output": str(out)})
    else:
        click.echo(repr(whole))
        for reason in whole.reasons:
            click.echo(f"  {reason}")
    click.echo(f"wrote {out}", err=True)
    finish(whole.metrics, ctx, require)


def _run(path: Path, backwards: bool) -> dict[str, Any]:
    """What a result recorded of its files, sides exchanged where it is taken backwards; empty where that is not known."""
    try:
        run = recorded_run(path, None, None)
    except (ValueError, OSError):
        return {}
    return {**run, "fixed": run["moving"], "moving": run["fixed"]} if backwards else run


def _sides(run: dict[str, Any], whole: Result) -> tuple[Image | PointSet, Image | PointSet] | None:
    """The data of both ends for the page; None where they are not to be had, or not on the canvases of the map."""
    from ..data import Image

    if not {"fixed", "moving"} <= run.keys():
        return None
    try:
        fixed, moving = open_recorded(run)
    except BadInput:
        return None
    grids = [data.grid if isinstance(data, Image) else None for data in (fixed, moving)]
    return (fixed, moving) if grids == [whole.fixed_grid, whole.moving_grid] else None
