"""``regframe mosaic``: fields that overlap at their borders in, one slide and a map for each out."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..display.bars import Bars
from . import interrupts
from ._common import (
    BadInput,
    adapter_options,
    bad_input,
    emit_json,
    file_type,
    finish,
    folder_option,
    input_options,
    json_option,
    overwrite_option,
    require_option,
    say_placed,
    verbose_option,
    workers_option,
)
from .stack import image_files

if TYPE_CHECKING:
    from ..mosaic.fields import View
    from ..mosaic.mosaic import Mosaic


@click.command(short_help="Put fields that overlap at their borders together.")
@click.argument("images", type=file_type, nargs=-1, required=True)
@folder_option()
@click.option(
    "--layout",
    type=str,
    metavar="FILE|none",
    help="Where the fields lie: Fiji's TileConfiguration.txt or a table name, y, x; what files say otherwise; none: searched.",
)
@click.option(
    "--seam",
    type=click.Choice(["feathered", "nearest"]),
    default="feathered",
    show_default=True,
    help="Where fields overlap: all, each by the distance from its border; or the one whose border is farthest, alone.",
)
@click.option(
    "--flat-field", is_flag=True, help="Divide every field by the brightness of an even object, told from all of them."
)
@click.option(
    "--transform",
    type=click.Choice(["rigid", "translation"]),
    default="rigid",
    show_default=True,
    help="Shifts and small turns, or shifts alone.",
)
@click.option(
    "--reach", type=float, metavar="PX", help="How far a field may lie from where it is said to; 8 % of it otherwise."
)
@click.option("--channel", metavar="C", help="Channel to place by, by name or number; chosen otherwise.")
@click.option("--mpp", type=float, metavar="UM", help="Pixel size of the fields in µm.")
@input_options("Adapter of the fields; sniffed otherwise.", "Option of the adapter.")
@click.option("--no-slide", is_flag=True, help="Write maps, figures and the report alone.")
@workers_option("Threads that write the slide; one per core otherwise.")
@overwrite_option
@require_option
@json_option
@verbose_option
@click.pass_context
def mosaic(ctx: click.Context, /, **options: Any) -> None:
    """Put IMAGES together that overlap at their borders: fields of a microscope, capture areas of one section.

    IMAGES are files of one pixel size, or a folder of them, or a table (CSV, TSV) with the columns file and, if wanted, name, y
    and x; or one file that holds all fields. Writes a map for each, their places, a report, and mosaic.ome.zarr. A field that
    overlaps no other is named, and is not placed. The same command after an interruption goes on.
    """
    out: Path = options["out"]
    with bad_input():
        views, layout = _views(options)
    try:
        found, kept = _mosaic(views, layout, options)
        slide = None if options["no_slide"] or not found.metrics["n_placed"] else _slide(found, options)
    except KeyboardInterrupt as stop:
        interrupts.say("interrupted; shards that were finished are kept: run the same command again to go on")
        ctx.exit(interrupts.code_of(stop))
    if options["as_json"]:
        emit_json({**found.metrics, "output": str(out), "kept": kept, "slide": slide})
    else:
        say_placed(found, out, kept)
        if slide is not None:
            click.echo(f"wrote {slide}")
    finish(found.metrics, ctx, options["require"])


def _views(options: dict[str, Any]) -> tuple[list[View], Any]:
    """The fields, open, and their layout."""
    from ..group import folder
    from ..io import inputs
    from ..mosaic import fields

    given, layout = options["images"], options["layout"]
    names: list[str] | None = None
    channels: dict[str, str] = {}
    if len(given) == 1 and given[0].suffix.lower() in (".csv", ".tsv", ".txt"):
        files, names, channels = folder.read_manifest(given[0])
        lost = [file for file in files if not file.exists()]
        if lost:
            raise ValueError(f"wanted the fields of {given[0]}, got {str(lost[0])!r}, which does not exist")
        layout = str(given[0]) if layout is None and _says_places(given[0]) else layout
    else:
        files = list(given) if len(given) == 1 and given[0].is_file() else image_files(given)
    if layout not in (None, "none") and not Path(layout).is_file():
        raise BadInput(f"wanted a file as --layout, got {layout!r}, which is none")
    if not options["overwrite"]:
        inputs.check_apart(options["out"], files)
    chosen = adapter_options(options["adapter_set"], "--adapter-set", options["mpp"])
    if options["adapter"] is not None:
        chosen["adapter"] = options["adapter"]
    for file in files:
        inputs.note(file)
    wanted = options["channel"] or next(iter(channels.values()), None)
    found = fields.opened(files, names, wanted, chosen)
    click.echo(f"{len(found)} fields, placed by {found[0].choice.name} ({found[0].choice.why})", err=True)
    return found, layout


def _says_places(table: Path) -> bool:
    """Whether a table of files has columns of positions."""
    from ..mosaic.layout import read_layout

    try:
        read_layout(table)
    except ValueError:
        return False
    return True


def _mosaic(views: list[View], layout: Any, options: dict[str, Any]) -> tuple[Mosaic, bool]:
    """The mosaic, and whether its folder was finished before."""
    from ..io import outputs
    from ..mosaic import align, mosaic
    from ..report import mosaics

    plan = _plan(views, layout, options)
    with bad_input():
        if not options["overwrite"] and mosaic.is_mosaic(options["out"]):
            before = mosaic.load_mosaic(options["out"])
            if before.metrics.get("plan") == plan:
                return before, True
        mosaic.check(options["out"], options["overwrite"], [view.source for view in views])
    with Bars() as progress, bad_input():
        found = align.placed(views, layout, options["transform"], options["reach"], progress)
        found.metrics["plan"] = plan
        shown = None
        if found.metrics["n_placed"]:
            shown = mosaic.planned(found, options["out"] / mosaic.SLIDE, None, options["seam"], options["flat_field"])
        mosaic.write(
            found,
            options["out"],
            options["overwrite"],
            lambda path: mosaics.write(found, shown, path / outputs.REPORT, options["out"]),
        )
    return found, False


def _plan(views: list[View], layout: Any, options: dict[str, Any]) -> str:
    """Hash of all that the places depend on."""
    from ..remote.address import locate
    from ..slides.job import identity_of
    from ..versions import version

    said = None if layout in (None, "none") else Path(layout).read_bytes()
    facts = [version(), layout, said, options["transform"], options["reach"]]
    facts += [(v.name, identity_of(locate(v.source)), dict(v.options), v.choice.name, repr(v.grid)) for v in views]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _slide(found: Mosaic, options: dict[str, Any]) -> str:
    """Write the slide, or go on with it; returns its place."""
    from ..group import folder
    from ..mosaic import mosaic

    out: Path = options["out"]
    with Bars() as progress, bad_input():
        plan = mosaic.planned(found, out / mosaic.SLIDE, None, options["seam"], options["flat_field"])
        if options["overwrite"] or not folder.was_written(out, plan):
            other = (out / mosaic.SLIDE).exists() and not options["overwrite"]
            if other:
                raise ValueError(
                    f"wanted the slide of these seams and this flat field, got another in {out / mosaic.SLIDE}; name another "
                    "output, or pass --overwrite"
                )
            folder.note_begun(out, plan, True)
            plan.write(options["workers"], options["overwrite"], progress)
    return str(plan.path)
