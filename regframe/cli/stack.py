"""``regframe stack``: serial sections in, one volume and a map for each out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..display.bars import Bars
from ._common import (
    BadInput,
    adapter_options,
    bad_input,
    device_option,
    emit_json,
    finish,
    folder_option,
    input_options,
    input_type,
    json_option,
    level_option,
    open_side,
    overwrite_option,
    path_type,
    require_option,
    verbose_option,
    workers_option,
)
from .clusters import cluster_at, kept_beside, kept_when_interrupted, scheduler_option
from .register import resolved_config

if TYPE_CHECKING:
    from ..data import Image

ORDERS = ("natural", "number", "given")
_LEAST = 2 << 30
"""Memory of the machine for each process that is started without being asked, in bytes: one takes 0.4 GiB and what it reads of
the sections."""
_WORTH_SPREADING = 8
"""Number of sections from which their pairs are spread over processes without being asked: these take two seconds to start, as
long as a few pairs."""


@click.command(short_help="Align serial sections into one volume.")
@click.argument("sections", type=input_type, nargs=-1, required=True)
@folder_option()
@click.option(
    "--order",
    default="natural",
    show_default=True,
    metavar="natural|number|given|FILE.csv",
    help="By name, by the last number of the name (gaps stay empty), as given, or a table: section[, position].",
)
@click.option(
    "--reference",
    default="middle",
    show_default=True,
    metavar="N|middle|chain",
    help="Section that stays where it is, counted from 0 in the order; chain: each hung on the one before, to compare.",
)
@click.option(
    "--transform",
    type=click.Choice(["rigid", "affine", "lddmm"]),
    default="rigid",
    show_default=True,
    help="affine undoes the stretch of single sections; lddmm then bends each onto the average of its neighbours.",
)
@click.option("--spacing-z", type=float, metavar="S", help="Distance of two sections, in the unit of their pixels.")
@click.option("--mpp", type=float, metavar="UM", help="Pixel size of the sections in µm.")
@click.option("--channel", metavar="C", help="Channel of the sections, by name or number.")
@level_option("Pyramid level that is read of every section.")
@input_options("Adapter of the sections; sniffed otherwise.", "Option of the adapter.")
@click.option(
    "--guide", type=path_type, metavar="VOLUME", help="Volume of the organ, first plane at the first section."
)
@click.option(
    "--hold",
    type=float,
    metavar="N",
    help="Keep shifts slower than N sections: the places on the canvas mean something.",
)
@click.option(
    "--metric", metavar="NAME", help="Metric by which every pair is compared; chosen from the data otherwise."
)
@click.option("--metric-set", metavar="K=V", multiple=True, help="Option of the metric.")
@click.option("--config", "config_file", type=path_type, metavar="FILE.yaml", help="Settings for every pair.")
@click.option("--set", "settings", metavar="K=V", multiple=True, help="One setting, such as pyramid.max_pixels=300000.")
@device_option("Where every pair is fitted; auto: on a GPU where there is one and they are large.  [default: cpu]")
@workers_option("Pairs side by side here, in a process each; from cores and memory otherwise, one by one without Dask.")
@scheduler_option("register the pairs")
@click.option("--reach", type=click.IntRange(1, 8), default=2, show_default=True, help="Neighbours to a side.")
@overwrite_option
@require_option
@json_option
@verbose_option
@click.pass_context
def stack(ctx: click.Context, /, **options: Any) -> None:
    """Align serial SECTIONS (files, or one folder of them) and write a volume, a map per section, figures and a report.

    Each section is registered to several neighbours, and all pairs are reconciled at once, so that errors do not add up.
    Sections without tissue are left out, damaged ones are bridged and named. Run the same command again to go on with one
    that was interrupted.
    """
    out: Path = options["out"]
    with bad_input():
        from ..report import stacks
        from ..stack import align, sections

        order = options["order"]
        paths, positions = sections.sort_sections(
            image_files(options["sections"]), order if order in ORDERS else _table(order)
        )
        align.check_output(out, options["overwrite"], [*paths, options["guide"]])
    config = resolved_config({**options, "transform": None})
    if config.metric == "auto" and config.metric_options:
        raise BadInput("wanted --metric beside --metric-set, got options alone; name the metric they are for")
    chosen = adapter_options(options["adapter_set"], "--adapter-set", options["mpp"], options["channel"])
    images = [_open(path, options, chosen) for path in paths]
    guide = None
    if options["guide"] is not None:
        guide = _image(open_side(options["guide"], None, {})[0], options["guide"])
        with bad_input():
            if guide.grid.unit != images[0].grid.unit and images[0].grid.unit != "px":
                guide = guide.replace(grid=guide.grid.to_unit(images[0].grid.unit))
    reference: str = options["reference"]
    wanted: int | str = int(reference) if reference.lstrip("-").isdigit() else reference
    folder = kept_beside(out)
    with kept_when_interrupted(folder, "pairs"):
        chosen_options = align.StackOptions(options["reach"], guide, options["hold"])
        with Bars() as progress, bad_input(), _workers(options, len(images)) as pool:
            found = align.align_stack(
                images,
                positions=positions,
                spacing_z=options["spacing_z"],
                reference=wanted,
                transform=options["transform"],
                options=chosen_options,
                config=config,
                progress=progress,
                client=pool,
                folder=folder,
            )
        with bad_input():
            stacks.save(found, out, images, options["overwrite"])
    if options["as_json"]:
        emit_json({**found.metrics, "output": str(out)})
    else:
        click.echo(repr(found))
        for reason in found.reasons:
            click.echo(f"  {reason}")
        drift = found.metrics["drift"]
        if drift["loops_px"]:
            click.echo(
                f"  loops of three sections close within {drift['loops_px']['median']:.2g} px (median), "
                f"{drift['loops_px']['max']:.2g} px at most"
            )
        click.echo(f"wrote {out} (report: {out / 'report.html'})")
    finish(found.metrics, ctx, options["require"])


@contextlib.contextmanager
def _workers(options: dict[str, Any], n: int) -> Iterator[Any]:
    """Who registers the pairs of ``n`` sections: a cluster, processes here, or None for this process."""
    from ..batch import Cluster, machine
    from ..batch.pools import available

    scheduler, workers = options["scheduler"], options["workers"]
    if scheduler is not None:
        if workers is not None:
            raise ValueError("wanted --workers or --scheduler, got both; the workers are the cluster's")
        with cluster_at(scheduler, None, f"the pairs of {n} sections") as pool:
            yield pool
        return
    if not available() and workers is not None and workers > 1:
        raise ValueError("wanted Dask for --workers, got none; install it with: pip install 'regframe[batch]'")
    cores, memory = machine()
    side_by_side = min(workers or min(cores, memory // _LEAST), n - 1)
    if not available() or side_by_side < 2 or (workers is None and n < _WORTH_SPREADING):
        yield None
        return
    with contextlib.ExitStack() as held:
        pool = None
        try:
            pool = held.enter_context(Cluster(workers=side_by_side))
        except (RuntimeError, OSError) as error:
            if workers is not None:
                raise ValueError(f"wanted {side_by_side} processes for the pairs, got none: {error}") from error
            click.echo(
                f"Note: no processes could be started ({error}); pairs are registered one after another", err=True
            )
        try:
            yield pool
        except ConnectionError as error:
            raise BadInput(str(error)) from error


def image_files(given: tuple[Path, ...]) -> list[Path]:
    """The files given, or, for a folder, its files that some adapter reads."""
    if (
        len(given) == 1
        and given[0].is_dir()
        and not (given[0] / "zarr.json").exists()
        and not (given[0] / ".zattrs").exists()
    ):
        import regframe

        from ..contracts import Adapter

        found = []
        for path in sorted(given[0].iterdir()):
            if path.name.startswith("."):
                continue
            try:
                # an adapter that overrides `pyramid` reads images, whatever its name
                if type(regframe.find_adapter(path)).pyramid is not Adapter.pyramid:
                    found.append(path)
            except (ValueError, OSError):
                continue
        if len(found) < 2:
            raise ValueError(
                f"wanted a folder of at least two sections, got {len(found)} images in {given[0]}; name files"
            )
        return found
    for path in given:
        if not path.exists():
            raise ValueError(f"wanted an existing file or folder, got {str(path)!r}, which does not exist")
    return list(given)


def _table(order: str) -> Path:
    path = Path(order)
    if path.suffix.lower() != ".csv" or not path.is_file():
        raise ValueError(f"wanted {', '.join(ORDERS)} or a CSV file that exists as --order, got {order!r}")
    return path


def _open(path: Path, options: dict[str, Any], chosen: dict[str, Any]) -> Image:
    return _image(open_side(path, options["adapter"], chosen, options["level"])[0], path)


def _image(data: Any, path: Path) -> Image:
    from ..data import Image

    if not isinstance(data, Image):
        raise BadInput(f"wanted an image, got points in {path}; open them with --adapter cells, which rasterises them")
    return data
