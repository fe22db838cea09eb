"""``regframe refine``: the map of a finished run, made exact at full resolution."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._common import (
    BadInput,
    bad_input,
    emit_json,
    finish,
    json_option,
    load_result,
    open_levels,
    open_side,
    overwrite_option,
    path_type,
    verbose_option,
)

if TYPE_CHECKING:
    from ..contracts import Progress
    from ..data import Pyramid
    from ..registration import Result

workers_option = click.option(
    "--workers", type=click.IntRange(min=1), metavar="N", help="Threads of the refinement; one per core otherwise."
)


@click.command(short_help="Make the map of a finished run exact at full resolution.")
@click.argument("result_folder", type=path_type, metavar="OUT")
@click.option("-o", "--output", type=path_type, metavar="NEW", help="Folder to write; OUT itself where not given.")
@click.option("--fixed", type=path_type, metavar="FILE", help="The fixed file, where it lies elsewhere now.")
@click.option("--moving", type=path_type, metavar="FILE", help="The moving file, where it lies elsewhere now.")
@workers_option
@overwrite_option
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
    workers: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Compare both images tile by tile at full resolution and correct the map where that can be shown to help.

    A tile whose held-out windows do not get better leaves the map as it was. OUT is replaced when all is done, its
    warped data left out, which another map made.
    """
    import yaml

    from ..io import outputs

    out = output or result_folder
    result = load_result(result_folder)
    with bad_input():
        if not outputs.is_output(result_folder):
            raise ValueError(f"wanted a folder that `regframe register` wrote, got {result_folder}")
        run: dict[str, Any] = (yaml.safe_load((result_folder / outputs.CONFIG).read_text(encoding="utf-8")) or {}).get(
            "run"
        ) or {}
        ours = {outputs.TRANSFORM, outputs.METRICS, outputs.CONFIG, outputs.LOG, outputs.REPORT}
        strangers = sorted(
            p.name for p in result_folder.iterdir() if p.name not in ours and not p.name.startswith("warped")
        )
        if output is None and strangers:
            raise ValueError(
                f"wanted a folder with nothing but a run to replace it, got {strangers[0]!r} in {result_folder}; "
                "move it away, or write elsewhere with -o"
            )
        outputs.check_folder(out, overwrite or output is None)
        for side, given in (("fixed", fixed), ("moving", moving)):
            how = run.setdefault(side, {})
            if given is not None:
                how["path"] = str(given.resolve())
            if not how.get("path"):
                raise ValueError(f"wanted the {side} file, which {outputs.CONFIG} does not name; pass --{side} FILE")
            if not Path(how["path"]).exists():
                raise FileNotFoundError(
                    f"wanted the {side} file at {how['path']}, which does not exist; pass --{side} FILE"
                )
    refined = run_refinement(result, levels(run), workers)
    sides = [
        open_side(Path(run[s]["path"]), run[s].get("adapter"), run[s].get("options") or {})[0]
        for s in ("fixed", "moving")
    ]
    with bad_input():
        outputs.write(out, refined, sides[0], sides[1], run, overwrite or output is None)
    if as_json:
        emit_json({**refined.metrics, "output": str(out)})
    else:
        click.echo(f"wrote {out} (report: {out / outputs.REPORT})")
    finish(refined.metrics, ctx)


def levels(run: Mapping[str, Mapping[str, Any]]) -> tuple[Pyramid, Pyramid]:
    """Every resolution of both sides of a run; `BadInput` where one has no pixels, or is a volume."""
    from ..data import Image
    from ..slides.levels import pyramid_of

    found = []
    for side in ("fixed", "moving"):
        path = Path(run[side]["path"])
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


def run_refinement(result: Result, sides: tuple[Pyramid, Pyramid], workers: int | None) -> Result:
    """`regframe.refine` with its progress, and what it did, on stderr."""
    import regframe

    from ..slides.refine import told

    bars: Any = contextlib.nullcontext()
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress as Bars

        bars = Bars(console=Console(stderr=True))
    tasks: dict[str, Any] = {}
    with bad_input(), bars as shown:

        def progress(step: Progress) -> None:
            name, done, total = step.stage, step.done, step.total
            if shown is not None:
                if name not in tasks:
                    tasks[name] = shown.add_task(f"refining, {name}", total=total)
                shown.update(tasks[name], completed=done)
            elif done * 4 // total > (done - 1) * 4 // total:
                click.echo(f"refining, {name}: {done} of {total} tiles", err=True)

        refined = regframe.refine(result, *sides, workers=workers, progress=progress)
    for line in told(refined.metrics):
        click.echo(f"refined, {line}", err=True)
    return refined
