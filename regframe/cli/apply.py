"""``regframe apply``: carry images, point tables and shapes through a saved map, either way."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ..display.bars import Bars
from . import interrupts
from ._common import (
    BadInput,
    adapter_options,
    bad_input,
    device_option,
    emit_json,
    input_options,
    input_type,
    json_option,
    level_option,
    load_result,
    on_disk,
    open_side,
    options,
    overwrite_option,
    place_type,
    result_argument,
    say_notes,
    sentence,
    verbose_option,
    workers_option,
)
from .asread import as_read, finest_of
from .clusters import cluster_at, scheduler_option
from .streams import STREAM, streamed
from .whereabouts import full_pixel, in_full_resolution, in_pixels, off_canvas, pixels_of

if TYPE_CHECKING:
    from ..contracts import Adapter, Progress
    from ..data import Grid, Image, PointSet
    from ..maps.shapes import Shapes
    from ..remote.address import Remote
    from ..slides import job as slides_job
    from ..slides import warp

_LOOKED_AT = 2048
"""Pixels along each side of the corner that is examined for ids: enough of a mask to show flat patches, 32 MiB at most."""
_FEW = 16
"""Number of different values up to which an image counts as a mask even where neighbouring values differ by 1 or 2: classes,
not grey levels."""
_BY_CONTENT = 0.9
"""Confidence from which an adapter has recognised content, not just a text table (`Adapter.matches`)."""
_WORTH_SPREADING = 4
"""Number of shards from which they are sent to a cluster; fewer are computed here before a cluster has answered."""


@click.group(short_help="Move images, points or shapes by a saved map.")
def apply() -> None:
    """Move data by the map of a result.

    ``--to fixed`` takes moving-space data to the fixed space, ``--to moving`` takes fixed-space data back.
    """


@dataclasses.dataclass(frozen=True)
class Order:
    """The arguments common to the three commands: what to carry, through which map, and where to write it.

    Args:
        result_folder: the result with the map.
        input_file: the data, on the side opposite to ``to``.
        output: the file to write.
        to: side to whose space the data are carried.
        input_spacing: size of the input's pixels in the unit of its side; None where the input states it.
        overwrite: replace ``output``.
    """

    result_folder: Path
    input_file: Path | Remote
    output: Path | Remote
    to: Literal["fixed", "moving"]
    input_spacing: float | None
    overwrite: bool


def _carries(
    spacing: str, streams: bool = False, remote: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The arguments and options of all three commands, passed on as an `Order`.

    Args:
        spacing: the help of --input-spacing.
        streams: whether ``-`` stands for standard input and output.
        remote: whether addresses are taken, beside paths.
    """
    also = "; - for standard {}" if streams else ""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(*, result_folder: Path, input_file: Path | Remote, output: Path | Remote, to: Any, input_spacing: float | None,
                overwrite: bool, **own: Any) -> None:  # fmt: skip
            from ..io import inputs, outputs

            _check_spacing(input_spacing)
            with bad_input():
                if not remote:
                    input_file, output = on_disk(input_file, "an input"), on_disk(output, "an output")
                if not isinstance(output, Path):
                    if output.suffix.lower() != ".zarr":
                        raise ValueError(f"wanted an output ending in .zarr in a remote store, got {output.name!r}")
                    output.check_writable()
                elif not (streams and output == STREAM):
                    outputs.check_file(output, overwrite, (input_file, result_folder / outputs.TRANSFORM))
                inputs.note(input_file)
            command(Order(result_folder, input_file, output, to, input_spacing, overwrite), **own)

        return options(
            result_argument,
            click.argument("input_file", type=input_type, metavar="INPUT"),
            click.option(
                "-o", "--output", type=place_type, required=True, help=f"File to write{also.format('output')}."
            ),
            click.option("--to", type=click.Choice(["fixed", "moving"]), required=True, help="Space to go to."),
            click.option("--input-spacing", type=float, metavar="S", help=spacing),
            overwrite_option,
            verbose_option,
        )(run)

    return decorate


@apply.command(short_help="Resample an image on the other side's canvas.")
@_carries(
    "Pixel size of the input, in the unit of the side it belongs to; its outer corner is put on that of the side's first pixel.",
    remote=True,
)
@input_options("Adapter of the input; sniffed otherwise.", "Option of the adapter, e.g. axes=cyx.")
@click.option("--labels", is_flag=True, help="Values are ids (a segmentation, a mask): the nearest, never a mean.")
@click.option(
    "--canvas",
    type=click.Choice(["fixed", "moving", "union"]),
    help="Whose field to fill, in the space of --to; the side of --to where not given.",
)
@click.option("--spacing", type=float, metavar="S", help="Pixel size of the output, in the unit of the destination.")
@click.option("--region", metavar="Y0:Y1,X0:X1", help="Part of the canvas to fill, in the unit of the destination.")
@level_option(
    "Resolution of the input to read, 0 the finest; the output gets its pixel size where --spacing is not given."
)
@click.option(
    "--background",
    default="auto",
    show_default=True,
    metavar="V",
    help="Value where the input has nothing: a number, border (its border goes on), or auto: white for brightfield, else 0.",
)
@device_option("Where the tiles of a large image are carried.  [default: cpu]")
@workers_option(
    "Threads for large images made here; one per core otherwise. With --scheduler: what a cluster must have more of."
)
@scheduler_option("make the tiles of .zarr or .tif outputs")
def image(
    order: Order,
    adapter: str | None,
    adapter_set: tuple[str, ...],
    labels: bool,
    canvas: Any,
    spacing: float | None,
    region: str | None,
    level: int | None,
    background: str,
    device: str | None,
    workers: int | None,
    scheduler: str | None,
) -> None:
    """Resample INPUT on the canvas of the side named by --to; the suffix of the output says its format.

    INPUT belongs to the other side: it is the file that was registered, which then is read with the options of that
    run (series, axes, a pixel size by hand), or the same field at another resolution. Its
    channels and its type are kept; of labels every id comes through exactly, and 0 lies where INPUT has nothing.

    What is written to .zarr or .tif is resampled tile by tile, with a pyramid, and never held in memory as a whole; run
    the same command again to go on with one that was interrupted.
    """
    import regframe

    from .. import plugins
    from ..data import Image, describe_grid
    from ..io import outputs
    from ..remote.address import address_of
    from ..slides import job as slides_job
    from ..slides import levels, place, warp

    _check_spacing(spacing, "--spacing")
    part = _region(region)
    fill = _background(background)
    output, to = order.output, order.to
    tiled = output.suffix.lower() in (".zarr", ".tif", ".tiff") or plugins.tile_writer(output.name) is not None
    if scheduler is not None and not tiled:
        raise BadInput(f"wanted an output ending in .zarr or .tif for --scheduler, got {output.name!r}")
    options = adapter_options(adapter_set, "--adapter-set") | ({"labels": True} if labels else {})
    spaced, away = order.input_spacing is not None, "moving" if to == "fixed" else "fixed"
    adapter, options = as_read(order.result_folder, away, order.input_file, adapter, options, spaced)
    job = slides_job.SlideJob(
        str(order.result_folder.absolute()), address_of(order.input_file), address_of(output), to, adapter,
        tuple(options.items()), order.input_spacing, canvas, spacing, part, level, fill,
        finest_of(order.result_folder, to), device or "cpu",
    )  # fmt: skip
    if tiled:
        if _warp_slide(job, workers, scheduler, order.overwrite):
            return
        if scheduler is not None:
            with bad_input():
                _check_scheduler(scheduler)
            click.echo(f"Note: {order.input_file.name} is read as a whole, and resampled here", err=True)
    elif _warp_small(job, order.overwrite):
        return
    output = on_disk(output, "an output for an image that is read as a whole")
    result = load_result(order.result_folder)
    data, reader, _ = open_side(order.input_file, adapter, options, level or 0)
    if not isinstance(data, Image):
        raise BadInput(f"wanted an image, got points in {order.input_file}; use `regframe apply points`")
    side = result.moving_grid if to == "fixed" else result.fixed_grid
    with bad_input():
        placed = data.replace(grid=place.place(data.grid, side, order.input_spacing))
        whole = levels.pyramid_of(placed)
        grid = place.canvas_grid(result, to, canvas, spacing, part, whole, None if level is None else 0, job.finest)
        number = warp.backdrop(whole) if fill == "auto" else None if fill == "border" else float(fill)
        transform = result.transform if to == "fixed" else result.transform.inverse()
        moved = regframe.resample(placed, transform, grid, number)
        writer = plugins.find_writer(reader, moved, output, order.input_file)
        with outputs.staged(output, order.overwrite) as path:
            writer.save(moved, path)
    click.echo(f"wrote {output}: {describe_grid(moved.grid)}", err=True)
    if not labels and not data.labels:
        _warn_of_ids(data, order.input_file)


def _warn_of_ids(image: Image, path: Path | Remote) -> None:
    ids = _id_like(image)
    if ids:
        click.echo(
            f"Warning: the values of {path.name} look like ids ({ids} whole numbers in flat patches), and were averaged "
            "where they meet; --labels keeps them",
            err=True,
        )


def _id_like(image: Image) -> int:
    """Number of different values of an image that looks like a segmentation or mask; 0 for other images.

    Ids are integers in flat patches: away from the most frequent value most neighbours are equal, and those that differ do so by
    more than a step, unless there are only a few values.
    """
    import torch

    if image.data.shape[0] != 1 or image.grid.ndim not in (2, 3):
        return 0
    plane = image.data[0] if image.grid.ndim == 2 else image.data[0, image.data.shape[1] // 2]
    plane = plane[:_LOOKED_AT, :_LOOKED_AT]
    plane = plane.to(torch.float64) if plane.is_floating_point() else plane.to(torch.int64)
    if plane.is_floating_point() and not bool((plane == plane.round()).all()):
        return 0
    values, counts = torch.unique(plane, return_counts=True)
    if len(values) < 2:
        return 0
    commonest = values[counts.argmax()]
    steps = []
    for one, other in ((plane[:, 1:], plane[:, :-1]), (plane[1:], plane[:-1])):
        steps.append((one - other)[(one != commonest) & (other != commonest)].abs())
    step = torch.cat(steps)
    jumps = step[step > 0]
    if not len(step) or len(jumps) > 0.5 * len(step):
        return 0
    if len(values) > _FEW and len(jumps) and int((jumps > 2).sum()) < 0.2 * len(jumps):  # a smooth picture, in steps
        return 0
    return len(values)


def _warp_slide(job: slides_job.SlideJob, workers: int | None, scheduler: str | None, overwrite: bool) -> bool:
    """Carry an image shard by shard, with progress; returns False where its adapter reads it only as a whole."""
    import torch

    from ..data import Grid, Image, describe_grid
    from ..remote.address import locate

    with bad_input():
        if not Path(job.result).exists():
            return False  # opening it as a whole then reports the fault in the usual words
        try:
            plan = job.plan()
        except ImportError as error:
            raise BadInput(sentence(error)) from error
    if plan is None:
        return False
    try:
        with bad_input(), Bars() as progress:
            if scheduler is None or plan.shards < _WORTH_SPREADING:
                if scheduler is not None:
                    _check_scheduler(scheduler)
                plan.write(workers, overwrite, progress)
            else:
                _spread(plan, job, scheduler, workers, overwrite, progress)
    except KeyboardInterrupt as stop:
        kept = f"{len(plan.done())} of {plan.shards} shards are kept in {plan.partial}"
        interrupts.say(f"interrupted; {kept}: run the same command again to go on")
        click.get_current_context().exit(interrupts.code_of(stop))
    click.echo(f"wrote {plan.path}: {describe_grid(plan.grid)}, {len(plan.levels)} levels", err=True)
    if not plan.pyramid.labels and len(plan.pyramid.channels) == 1:
        corner = plan.source.read(tuple(slice(0, min(n, _LOOKED_AT)) for n in plan.source.grid.shape))
        shape = corner.shape[1:]
        _warn_of_ids(Image(torch.from_numpy(corner.copy()), Grid(shape)), locate(job.input))
    finest = plan.source.grid.pixel
    if job.level is None and job.spacing is None and plan.pyramid.grid.pixel < finest * 0.75:
        click.echo(
            f"Note: pixels are as large as those that were registered; --level 0 writes them at the input's full resolution "
            f"({plan.pyramid.grid.pixel:.6g} {plan.pyramid.grid.unit})",
            err=True,
        )
    return True


def _warp_small(job: slides_job.SlideJob, overwrite: bool) -> bool:
    """Carry part of a large image, or a coarse version of it, to a file that is written at once; False for small images."""
    from .. import plugins
    from ..data import describe_grid
    from ..io import outputs
    from ..remote.address import locate
    from ..slides.levels import WHOLE

    with bad_input():
        if not Path(job.result).exists():
            return False
        try:
            plan = dataclasses.replace(job, output=job.output + ".zarr").plan()
        except ImportError:  # a missing package is reported where the file is opened as a whole
            return False
        if plan is None or (len(plan.pyramid.levels) == 1 and math.prod(plan.pyramid.grid.shape) <= WHOLE[2]):
            return False
        reader = plugins.find_adapter(job.input, job.adapter, **dict(job.options))
        moved = plan.image()
        writer = plugins.find_writer(reader, moved, Path(job.output), job.input)
        with outputs.staged(Path(job.output), overwrite) as path:
            writer.save(moved, path)
    click.echo(f"wrote {job.output}: {describe_grid(plan.grid)}", err=True)
    if not plan.pyramid.labels:
        _warn_of_ids(moved, locate(job.input))
    return True


def _check_scheduler(address: str) -> None:
    """ValueError where no scheduler answers: an address is no less wrong where the work is too small to be spread."""
    from .. import batch

    with batch.Cluster(address):
        pass


def _spread(
    plan: warp.SlideWarp,
    job: slides_job.SlideJob,
    address: str,
    here: int | None,
    overwrite: bool,
    progress: Callable[[Progress], object],
) -> None:
    """Have the shards computed by a cluster, each as a task of paths and a number.

    ``here`` is the number of threads that compute them in this process instead, where few shards are left.
    """
    from .. import batch
    from ..slides import job as slides_job

    with cluster_at(address, here, f"{plan.shards} shards") as pool:
        if pool is None:
            plan.write(here, overwrite, progress)
            return
        with plan.started(overwrite):
            run = functools.partial(slides_job.run_shard, dataclasses.replace(job, made_of=plan.fingerprint))
            batch.spread(plan, pool, run, progress, lambda: plan.finish(overwrite))


def _background(text: str) -> Any:
    if text in ("auto", "border"):
        return text
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise BadInput(f"wanted --background as auto, border or a number, got {text!r}")
    return number


def _region(text: str | None) -> tuple[tuple[float, float], ...] | None:
    if text is None:
        return None
    try:
        pairs = tuple(tuple(float(v) for v in axis.split(":")) for axis in text.split(","))
    except ValueError:
        pairs = ()
    if not pairs or not all(len(p) == 2 and math.isfinite(p[0]) and math.isfinite(p[1]) and p[0] < p[1] for p in pairs):
        raise BadInput(f"wanted --region as Y0:Y1,X0:X1 with the smaller first, got {text!r}")
    return tuple((p[0], p[1]) for p in pairs)


@apply.command(short_help="Move the positions of a table.")
@_carries(
    "Pixel size of coordinates in pixels, in the unit of the side they belong to. Coordinates count from the middle of the "
    "first pixel, which is position 0: they are multiplied by it (those of `apply shapes` count from its corner).",
    streams=True,
)
@click.option(
    "--columns", metavar="X,Y", help="Position columns, e.g. x=T_x,y=T_y, or the columns of a header-less file."
)
@input_options(
    "Adapter of the input, e.g. cells; a text table or sniffed otherwise.", "Option of the adapter, e.g. unit=um."
)
@click.option(
    "--labels",
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True),
    help="Label image of the destination, e.g. an atlas: its id at every point becomes the column label.",
)
@click.option("--labels-set", metavar="K=V", multiple=True, help="Option of the label image, e.g. spacing=25, unit=um.")
@click.option(
    "--label-names",
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Table of ids and names (columns id and acronym or name): becomes the column region.",
)
def points(
    order: Order,
    columns: str | None,
    adapter: str | None,
    adapter_set: tuple[str, ...],
    labels: Path | None,
    labels_set: tuple[str, ...],
    label_names: Path | None,
) -> None:
    """Move the positions of the table INPUT (- for standard input): same rows, same order, new columns at the end.

    match_probability says how likely the position shows tissue that both sides have, position_sd how far off it may be
    (standard deviation per axis, in the unit of the destination; both blank outside the fixed canvas),
    in_canvas whether it lies on the canvas of the destination; with "regframe_" before them where the table has such
    columns already. A .pts file and ImageJ's .roi hold positions alone. Points of ImageJ (.roi, RoiSet.zip) count pixels of the
    slide at full resolution, and go back in such pixels.
    """
    import regframe

    from .. import plugins
    from ..io import imagej, outputs

    to = order.to
    result = load_result(order.result_folder)
    source = result.moving_grid if to == "fixed" else result.fixed_grid
    notes: tuple[str, ...] = ()
    with (
        bad_input(),
        streamed(on_disk(order.input_file, "an input"), on_disk(order.output, "an output")) as (input_file, output),
    ):
        if output.name.lower().endswith(".zip"):
            raise ValueError(f"wanted a name ending in .roi (points of ImageJ) or .csv, got {output.name!r}")
        to_roi = output.name.lower().endswith(".roi")
        unit = "px" if order.input_spacing else source.unit
        adapter = adapter or _own_reader(input_file)
        if adapter is None:
            try:
                reader, (table, notes) = None, _text_table(input_file, columns, unit)
            except ValueError:  # not a text table
                adapter = _sniffed(input_file)
                if adapter is None:
                    raise
        if adapter is not None:
            options = adapter_options(adapter_set, "--adapter-set") | ({"columns": columns} if columns else {})
            reader, table, notes = _native(input_file, adapter, options, unit)
            say_notes(reader, input_file, "input")
        away = "moving" if to == "fixed" else "fixed"
        rois = input_file.name.lower().endswith(imagej.SUFFIXES)
        full = (rois or in_full_resolution(table)) and order.input_spacing is None
        pixels = pixels_of(order.result_folder, away, source) if full else source
        placed = in_unit(table, pixels, order.input_spacing)
        warning = off_canvas(placed, source, away, order.input_spacing)
        carried = regframe.carry_points(result, placed, to)
        if (full or to_roi) and carried.points.unit != "px":
            other = result.fixed_grid if to == "fixed" else result.moving_grid
            carried = in_pixels(carried, pixels_of(order.result_folder, to, other))
        extra = {name: values.tolist() for name, values in carried.columns(table.table).items()}
        extra |= _regions(carried.points, table, labels, labels_set, label_names)
        writer = (
            None
            if reader is None or rois or to_roi
            else plugins.find_writer(reader, carried.points, output, input_file)
        )
        with outputs.staged(output, order.overwrite) as path:
            if writer is None:
                regframe.write_points(carried.points, path, {name: _texts(values) for name, values in extra.items()})
            else:  # formats with column types
                writer.save(carried.points.replace(table={**carried.points.table, **extra}), path)
    click.echo(f"wrote {order.output}: {len(carried.points)} points in {carried.points.unit}", err=True)
    if warning:
        click.echo(f"Warning: {warning}", err=True)
    if to_roi:
        notes += ("a .roi holds positions alone; write a .csv for names and the new columns",)
    for note in notes:
        click.echo(f"Note: {note}", err=True)


def _regions(
    moved: PointSet, table: PointSet, labels: Path | None, options: tuple[str, ...], names: Path | None
) -> dict[str, list[Any]]:
    """The columns ``label`` and ``region`` for points in the destination's space."""
    import regframe

    if labels is None:
        if names is not None or options:
            raise ValueError(
                "wanted --labels FILE beside --label-names and --labels-set, got none; name the label image"
            )
        return {}
    image = regframe.open(labels, **(adapter_options(options, "--labels-set") | {"labels": True}))
    if not isinstance(image, regframe.Image):
        raise ValueError(f"wanted a label image, got points in {labels.name}")

    def own(name: str) -> str:
        return f"regframe_{name}" if name in table.table else name

    ids = regframe.labels_at(image, moved).tolist()
    out: dict[str, list[Any]] = {own("label"): ids}
    if names is not None:
        known = regframe.read_label_names(names)
        out[own("region")] = [known.get(i, "") for i in ids]
    return out


def _text_table(path: Path, columns: str | None, unit: str) -> tuple[PointSet, tuple[str, ...]]:
    """The table, and notes: how its text was read, and where positions without a unit were taken in ``unit``."""
    import regframe

    table = regframe.read_table(path, columns)
    points = regframe.read_points(table, columns, unit)
    notes = table.notes
    if unit != "px" and regframe.position_columns(table, columns)[1] is None:
        notes += (_undeclared(unit, "a unit in the columns' names (x_um, y_um) states another"),)
    return points, notes


def _undeclared(unit: str, way: str) -> str:
    return f"positions that declare no unit were taken in {unit}, as the side they belong to; {way}"


def _sniffed(path: Path) -> str | None:
    """Name of the adapter that recognises ``path``; None where none does."""
    import regframe

    with contextlib.suppress(ValueError):
        return regframe.find_adapter(path).name
    return None


def _own_reader(path: Path) -> str | None:
    """Name of the adapter that recognises ``path`` by its content, or by the files of a folder, and is not just one for any text
    table; None where none does."""
    import regframe

    with contextlib.suppress(ValueError, OSError):
        reader = regframe.find_adapter(path)
        if path.is_dir() or reader.matches(path) >= _BY_CONTENT:
            return reader.name
    return None


def _texts(values: list[Any]) -> list[str]:
    """Cells of a column: booleans as words, ids and names unchanged, other numbers with four digits, unknown values blank."""

    def text(value: Any) -> str:
        if isinstance(value, float):
            return "" if math.isnan(value) else f"{value:.4g}"
        return str(value).lower() if isinstance(value, bool) else str(value)

    return [text(value) for value in values]


def _as_it_is(path: Path, adapter: str, options: dict[str, Any], unit: str) -> tuple[Adapter, Image | PointSet]:
    """An adapter, and its data under the identity map; ``unit`` is tried first where the adapter cannot open the file as it is.

    A table with too few cells to be drawn is carried as well.
    """
    import regframe

    from ..data import UNITS, Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how the table would be drawn; it is only carried
            data, reader, _ = open_side(path, adapter, options)
    except BadInput:
        for known in dict.fromkeys([unit, "px", *UNITS]):
            with contextlib.suppress(ValueError, ImportError):
                reader = regframe.find_adapter(path, adapter, **options)
                return reader, reader.apply(path, regframe.Affine.identity(2, known))
        raise
    at = (2, data.grid.unit) if isinstance(data, Image) else (data.ndim, data.unit)
    with bad_input():
        return reader, reader.apply(path, regframe.Affine.identity(*at))


def _native(path: Path, adapter: str, options: dict[str, Any], unit: str) -> tuple[Adapter, PointSet, tuple[str, ...]]:
    """The adapter, the table as it carries it, and a note where positions without a unit were taken to be in ``unit``."""

    from ..data import PointSet

    reader, native = _as_it_is(path, adapter, options, unit)
    notes: tuple[str, ...] = ()
    if unit != "px" and "unit" not in options and isinstance(native, PointSet) and native.unit == "px":
        with contextlib.suppress(BadInput):  # the table states pixels: their conversion later reports what is missing
            reader, native = _as_it_is(path, adapter, {**options, "unit": unit}, unit)
            notes = (_undeclared(unit, "--adapter-set unit=U states another"),)
    if not isinstance(native, PointSet):
        raise ValueError(f"wanted a table of positions, got an image in {path}; use `regframe apply image`")
    return reader, native, notes


@apply.command(short_help="Move the shapes of a GeoJSON file.")
@_carries(
    "Pixel size of the input, in the unit of the side it belongs to. Coordinates count from the outer corner of the first pixel "
    "of the image, as QuPath does, or as --pixel-origin says (those of `apply points` count from its middle)."
)
@click.option("--unit", metavar="U", help="Unit of the input where it is no pixel: nm, um, mm.")
@click.option(
    "--output-spacing",
    type=float,
    metavar="S",
    help="Write pixels of this size, in the unit of the destination, as QuPath wants them for an image of that pixel size.",
)
@click.option(
    "--pixel-origin",
    type=click.Choice(["corner", "center"]),
    default="corner",
    show_default=True,
    help="Where pixels count from: the outer corner of the first one (QuPath) or its center.",
)
@click.option(
    "--tolerance",
    type=float,
    default=0.1,
    show_default=True,
    metavar="PX",
    help="How far an edge may lie from where the map takes it, in pixels of the destination.",
)
@click.option("--max-vertices", type=click.IntRange(min=1), metavar="N", help="Largest number of vertices to write.")
@json_option
def shapes(
    order: Order,
    unit: str | None,
    output_spacing: float | None,
    pixel_origin: Any,
    tolerance: float,
    max_vertices: int | None,
    as_json: bool,
) -> None:
    """Move the points, lines and polygons of the GeoJSON file INPUT; properties, ids and order stay as they are.

    Coordinates are pixels of the full-resolution image, as QuPath writes them. Where the side they belong to has a
    physical unit, the slide that was registered says how long such a pixel is, where its file is still there; else, or for
    shapes drawn on another image, --input-spacing does, or --unit says that they are lengths.
    Edges get new vertices where the map bends them. The output is in the unit of the destination, or in pixels of
    --output-spacing.
    """
    import regframe

    from ..io import outputs
    from ..maps.shapes import MAX_VERTICES

    _check_spacing(output_spacing, "--output-spacing")
    output, to = on_disk(order.output, "an output"), order.to
    result = load_result(order.result_folder)
    source, target, transform = result.moving_grid, result.fixed_grid, result.transform
    if to == "moving":
        source, target, transform = target, source, transform.inverse()
    with bad_input():
        given = regframe.read_shapes(
            on_disk(order.input_file, "an input"), unit=unit or "px", pixel_origin=pixel_origin, empty=True
        )
        spacing = order.input_spacing
        if spacing is None and given.unit == "px" != source.unit:
            spacing = full_pixel(order.result_folder, "moving" if to == "fixed" else "fixed", source)
        before = given.to_positions(source, spacing)
        after = regframe.move_shapes(before, transform, target, tolerance, max_vertices or MAX_VERTICES)
        crossing, crossed = int(before.crossings().sum()), int(after.crossings().sum())
        pixels = output_spacing is not None or target.unit == "px"
        written = after.to_pixels(target, output_spacing) if pixels else after
        with outputs.staged(output, order.overwrite) as path:
            regframe.write_shapes(written, path, pixel_origin)
    sides = ("moving", "fixed") if to == "fixed" else ("fixed", "moving")
    outside = [int(before.outside(source).sum()), int(after.outside(target).sum())]
    if as_json:
        emit_json(
            {
                "output": output,
                "shapes": len(after),
                "unit": written.unit,
                "tolerance_px": tolerance,
                "vertices": {"read": len(before.coords), "written": len(after.coords)},
                "outside_canvas": dict(zip(sides, outside, strict=True)),
                "self_intersecting": {"read": crossing, "written": crossed},
                "notes": list(given.notes),
            }
        )
    click.echo(
        f"wrote {output}: {len(after)} shapes in {written.unit}, {len(after.coords)} vertices "
        f"({len(before.coords)} in the input)",
        err=True,
    )
    for note in _shape_notes(given, before, sides, outside, crossing, crossed):
        click.echo(f"Note: {note}", err=True)


def _shape_notes(
    given: Shapes, before: Shapes, sides: tuple[str, str], outside: list[int], crossing: int, crossed: int
) -> list[str]:
    notes = list(given.notes)
    if outside[0]:
        notes.append(
            f"{outside[0]} of {len(before.coords)} vertices lie outside the {sides[0]} image; if that is not so, check "
            "their unit and the order of x and y"
        )
    if outside[1]:
        notes.append(f"{outside[1]} of the vertices written lie outside the {sides[1]} image")
    if crossing or crossed:
        notes.append(f"{crossed} rings cross themselves ({crossing} did in the input); they are moved as they are")
    return notes


def _check_spacing(spacing: float | None, option: str = "--input-spacing") -> None:
    if spacing is not None and not (math.isfinite(spacing) and spacing > 0):
        raise BadInput(f"wanted a positive {option}, got {spacing}")


def in_unit(points: PointSet, side: Grid, spacing: float | None) -> PointSet:
    """Points in the unit of ``side``, pixels multiplied by ``spacing``; ValueError where the units cannot be converted."""
    from ..io.tables import to_unit_of

    if spacing is None:
        return to_unit_of(points, side)
    if points.unit != "px":
        raise ValueError(
            f"wanted coordinates in px to multiply by a spacing, got columns in {points.unit}; leave it out"
        )
    return points.replace(coords=points.coords * spacing, unit=side.unit)
