"""``regframe rounds``: many images of one tissue in, a map for each and one space for all out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
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
    level_option,
    overwrite_option,
    path_type,
    require_option,
    say_placed,
    verbose_option,
    workers_option,
)
from .clusters import cluster_at, scheduler_option
from .register import resolved_config
from .stack import image_files

if TYPE_CHECKING:
    from ..config import Config
    from ..group.group import Group
    from ..group.members import Member


@click.command(short_help="Bring many images of one tissue into one space.")
@click.argument("images", type=file_type, nargs=-1, required=True)
@folder_option()
@click.option(
    "--reference",
    default="auto",
    show_default=True,
    metavar="NAME|auto|none",
    help="Image that stays where it is, by name or number from 0; auto: the one that the others match best; none: all come to "
    "their mean, which is written too.",
)
@click.option(
    "--channel",
    "channels",
    multiple=True,
    metavar="C|NAME=C",
    help="Channel to align by, of all images or of one; chosen otherwise: DAPI, or what repeats, or what is most alike.",
)
@click.option(
    "--transform",
    type=click.Choice(["rigid", "affine", "lddmm"]),
    help="Model of the maps; lddmm (affine and a bend, where the data call for it) where not stated.",
)
@click.option("--mpp", type=float, metavar="UM", help="Pixel size of the images in µm.")
@level_option("Pyramid level that is read of every image.")
@input_options("Adapter of the images; sniffed otherwise.", "Option of the adapter.")
@click.option(
    "--metric", metavar="NAME", help="Metric by which every pair is compared; chosen from the data otherwise."
)
@click.option("--metric-set", metavar="K=V", multiple=True, help="Option of the metric.")
@click.option(
    "--merged",
    type=path_type,
    metavar="FILE",
    help="Also write all channels of all images as one slide, .ome.zarr or .ome.tif; images in colours beside it.",
)
@click.option(
    "--repeats",
    type=click.Choice(["keep", "drop"]),
    default="keep",
    show_default=True,
    help="Whether the merged slide keeps the channel aligned by (DAPI) of every image, or of the reference alone.",
)
@click.option(
    "--subtract", metavar="NAME", help="Image of the background, subtracted from the merged slide's channels."
)
@click.option(
    "--matches", type=path_type, metavar="FILE", help="Also write which nucleus is which: a table, .csv or .parquet."
)
@click.option(
    "--labels",
    multiple=True,
    metavar="NAME=FILE",
    help="Label image of the nuclei of an image, for --matches; found in the channel aligned by otherwise.",
)
@workers_option("Threads that write the merged slide; one per core otherwise.")
@scheduler_option("write the merged slide")
@click.option("--config", "config_file", type=path_type, metavar="FILE.yaml", help="Settings for every pair.")
@click.option("--set", "settings", metavar="K=V", multiple=True, help="One setting, such as pyramid.max_pixels=300000.")
@overwrite_option
@require_option
@json_option
@verbose_option
@click.pass_context
def rounds(ctx: click.Context, /, **options: Any) -> None:
    """Bring IMAGES of one tissue into the space of one of them: rounds of one section, or sections of one block.

    IMAGES are files, or a folder of them, or a table (CSV, TSV) with the columns file, name and channel. Writes a map for each
    image, figures, the pairs that were tried, and a report. A run that was killed goes on where it was; the same command after
    its end changes nothing.
    """
    out: Path = options["out"]
    pairs = (("subtract", "merged"), ("workers", "merged"), ("scheduler", "merged"), ("labels", "matches"))
    for name, beside in pairs:
        if options[name] and options[beside] is None:
            raise BadInput(f"wanted --{beside} FILE beside --{name}, got none; name what to write")
    members, config = _members(options)
    try:
        group, kept = _group(members, config, options)
        matched = None if options["matches"] is None else _matched(group, options)
        slides = [] if options["merged"] is None else _merged(group, out, options)
    except KeyboardInterrupt as stop:
        interrupts.say("interrupted; pairs and shards that were finished are kept: run the same command again to go on")
        ctx.exit(interrupts.code_of(stop))
    if options["as_json"]:
        emit_json({**group.metrics, "output": str(out), "kept": kept, "merged": slides, "matches": matched})
    else:
        say_placed(group, out, kept)
        for name, one in (matched or {}).items():
            most = "" if one["ceiling"] is None else f", {one['ceiling']:.0%} between halves of one image"
            click.echo(
                f"  {name}: {one['share']:.0%} of {one['n']} nuclei matched ({one['chance']:.1%} by chance{most})"
            )
        for slide in slides:
            click.echo(f"wrote {slide}")
    finish(group.metrics, ctx, options["require"])


def _group(members: list[Member], config: Config, options: dict[str, Any]) -> tuple[Group, bool]:
    """The group, and whether its folder was finished before."""
    from ..group.folder import Run
    from ..io import outputs

    run = Run(options["out"], members, options["reference"], config)
    with bad_input():
        found = None if options["overwrite"] else run.finished()
    if found is not None:
        return found, True
    with Bars() as progress, bad_input():
        from ..report import groups

        shown = [member.image for member in members]
        found = run.write(
            options["overwrite"],
            progress,
            lambda group, folder: groups.write(group, shown, folder / outputs.REPORT, options["out"]),
        )
    return found, False


def _members(options: dict[str, Any]) -> tuple[list[Member], Config]:
    """The images, open, and the settings of every pair."""
    with bad_input():
        from ..group import align, folder, members
        from ..io import inputs

        files, names, channels = _listed(options["images"], folder)
        if not options["overwrite"]:
            inputs.check_apart(options["out"], files)
    config = resolved_config(options)
    with bad_input():
        config = align.checked(config, None)
    if config.metric == "auto" and config.metric_options:
        raise BadInput("wanted --metric beside --metric-set, got options alone; name the metric they are for")
    chosen = adapter_options(options["adapter_set"], "--adapter-set", options["mpp"])
    if options["level"] is not None:
        chosen["level"] = options["level"]
    if options["adapter"] is not None:
        chosen["adapter"] = options["adapter"]
    with bad_input():
        for file in files:
            inputs.note(file)
        wanted = _channels(options["channels"], channels, files, names)
        found = members.opened(files, names, wanted, chosen)
    for member in found:
        click.echo(f"{member.name}: aligned by {member.choice.name} ({member.choice.why})", err=True)
    return found, config


def _listed(given: tuple[Path, ...], folder: Any) -> tuple[list[Path], list[str] | None, dict[str, str]]:
    """Files, their names where a table states them, and channels by name or file."""
    from ..stack.sections import sort_sections

    if len(given) == 1 and given[0].suffix.lower() in (".csv", ".tsv", ".txt"):
        files, names, channels = folder.read_manifest(given[0])
        for file in files:
            if not file.exists():
                raise ValueError(f"wanted the images of {given[0]}, got {str(file)!r}, which does not exist")
        return files, names, channels
    paths = image_files(given)
    return (sort_sections(paths, "natural")[0] if len(given) == 1 else paths), None, {}


def _channels(stated: tuple[str, ...], listed: dict[str, str], files: list[Path], names: list[str] | None) -> Any:
    """What `regframe.register_group` takes as ``channel``."""
    from ..group.members import names_of

    called = names_of(files, names)
    by_name: dict[str, str | int] = {
        name: listed[key]
        for name, file in zip(called, files, strict=True)
        for key in (name, str(file))
        if key in listed
    }
    common: str | None = None
    for one in stated:
        name, equals, channel = one.rpartition("=")
        if equals and name in called:
            by_name[name] = channel
        elif common is None:
            common = one
        else:
            raise BadInput(f"wanted one --channel for all, or NAME=C with a name of {', '.join(called)}, got {one!r}")
    if not by_name:
        return common
    return by_name if common is None else {name: by_name.get(name, common) for name in called}


def _matched(group: Group, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Match the nuclei of all images and write their table; returns the figures of each image."""
    with bad_input():
        from ..group import nuclei

        labels = {}
        for pair in options["labels"]:
            name, equals, file = pair.rpartition("=")
            if not equals:
                raise BadInput(f"wanted --labels NAME=FILE, got {pair!r}")
            labels[name] = Path(file)
        found = nuclei.match_nuclei(group, labels=labels)
        nuclei.write_matches(options["matches"], group, found, options["overwrite"])
    return nuclei.figures(group, found)


def _merged(group: Group, out: Path, options: dict[str, Any]) -> list[str]:
    """Write the merged slide, or go on with it; returns the files."""
    with bad_input():
        from ..group import folder, merge
        from ..io import inputs

        inputs.check_apart(options["merged"], [out, *options["images"]])
        plan = merge.planned(group, options["merged"], None, options["repeats"], options["subtract"])
    for name in plan.dropped:
        click.echo(f"merged: {name} is left out, a repeat of the reference's", err=True)
    for name in plan.left_out:
        click.echo(f"merged: {name} is no part of it", err=True)
    left = [
        number for number, each in enumerate(plan.plans) if options["overwrite"] or not folder.was_written(out, each)
    ]
    shards = sum(plan.plans[number].shards for number in left)
    with Bars() as progress, bad_input(), _workers(options, shards) as pool:
        for number in left:
            each = plan.plans[number]
            folder.note_begun(out, each, options["overwrite"])
            if pool is None:
                each.write(options["workers"], options["overwrite"], progress)
            else:
                job = merge.MergeJob(
                    str(out.absolute()),
                    str(options["merged"].absolute()),
                    repeats=options["repeats"],
                    subtract=options["subtract"],
                )
                job.write(plan, number, pool, options["overwrite"], progress)
    return [str(each.path) for each in plan.plans]


@contextlib.contextmanager
def _workers(options: dict[str, Any], shards: int) -> Iterator[Any]:
    """Who computes the shards: the workers of a scheduler, or None for this process."""
    if options["scheduler"] is None or not shards:
        yield None
        return
    with cluster_at(options["scheduler"], options["workers"], f"{shards} shards") as pool:
        yield pool
