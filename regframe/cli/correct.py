"""``regframe correct``: the map of a finished run, corrected in one region and left as it is elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._common import (
    bad_input,
    emit_json,
    finish,
    json_option,
    load_result,
    moved_options,
    overwrite_option,
    path_type,
    recorded_run,
    require_option,
    result_argument,
    verbose_option,
)

if TYPE_CHECKING:
    from ..data import Grid
    from ..view.pairs import Pair


@click.command(short_help="Correct the map of a finished run in one region.")
@result_argument
@click.option(
    "--region",
    type=path_type,
    required=True,
    metavar="FILE",
    help="GeoJSON outlines on the fixed side, in pixels of full resolution, as QuPath writes them.",
)
@click.option(
    "--landmarks",
    type=path_type,
    metavar="FILE",
    help="Pairs as register takes them, or of BigWarp, Warpy, Xenium Explorer; those in the region count.",
)
@click.option("-o", "--output", type=path_type, required=True, metavar="NEW", help="Folder to write.")
@moved_options
@overwrite_option
@require_option
@json_option
@verbose_option
@click.pass_context
def correct(
    ctx: click.Context,
    /,
    result_folder: Path,
    region: Path,
    landmarks: Path | None,
    output: Path,
    fixed: Path | None,
    moving: Path | None,
    **options: Any,
) -> None:
    """Bend the map to the landmarks inside a region, then to what the images show there; elsewhere it stays the same to the bit.

    Without landmarks the images alone are gone by. Draw the region wider than the fault: within a fifth of its half width from
    the outline the correction fades to nothing. What `regframe view` does by "Correct here" is this command.
    """
    from ..correction.images import Looked
    from ..io import outputs
    from ..report import results
    from ..view import regions, steps
    from ..view.bend import corrected_here
    from ..view.source import Side, finest

    result = load_result(result_folder)
    with bad_input():
        run = recorded_run(result_folder, fixed, moving)
        sources = [_source(run[side]) for side in ("fixed", "moving")]
        read = [result_folder / outputs.TRANSFORM, *(source.path for source in sources)]
        outputs.check_folder(output, options["overwrite"], read)
        grids = [
            finest(Side.of(source, grid))
            for source, grid in zip(sources, (result.fixed_grid, result.moving_grid), strict=True)
        ]
        rings = regions.read(region, grids[0]).rings
        pairs = [] if landmarks is None else _pairs(landmarks, grids)
        data = sources[0].data(), sources[1].data()
        found = corrected_here(result, rings, pairs, Looked.of(*data))
        text = steps.written(steps.History((steps.opened(result_folder), steps.mended(rings, pairs)), tuple(pairs)))
        kept = {side: run[side] for side in ("fixed", "moving")} | {"landmarks": None, "init": "auto"}
        results.write_run(
            output, found, data, kept, options["overwrite"],
            lambda folder: (folder / steps.STEPS).write_text(text, encoding="utf-8"),
        )  # fmt: skip
    entry = found.metrics["corrections"][-1]
    if options["as_json"]:
        emit_json({**found.metrics, "output": str(output)})
    else:
        several = "one landmark" if entry["landmarks"] == 1 else f"{entry['landmarks']} landmarks"
        by = f"{several} and the images" if entry["images"] else several
        click.echo(f"wrote {output}: moved by {entry['moved']['max']:.3g} px at most in the region, by {by}")
    finish(found.metrics, ctx, options["require"])


def _source(how: dict[str, Any]) -> Any:
    from ..remote.address import locate
    from ..view.source import Source

    return Source(locate(how["path"]), how.get("adapter"), how.get("options") or {})


def _pairs(path: Path, grids: list[Grid]) -> list[Pair]:
    """The pairs of a file that are on."""
    from ..view import pairfiles
    from ..view.pairs import Pair

    found = pairfiles.read(path.read_text(encoding="utf-8-sig"), pairfiles.Sides(*grids))
    return [Pair(i, name, f, m) for i, (name, f, m, on) in enumerate(found, 1) if on]
