"""``regframe apply``: carry images, point tables and shapes through a saved map, either way."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from ._common import (
    BadInput,
    adapter_options,
    bad_input,
    describe_grid,
    emit_json,
    json_option,
    load_result,
    open_side,
    overwrite_option,
    path_type,
    verbose_option,
)

if TYPE_CHECKING:
    from ..contracts import Adapter
    from ..data import Grid, Image, PointSet
    from ..shapes import Shapes

_F = TypeVar("_F", bound=Callable[..., Any])
_LOOKED_AT = 2048
"""Pixels along each side that are looked at for ids."""
_FEW = 16
"""Whole numbers that are few."""
_RATIO = 0.02  # how far two extents may differ before they are not taken for the same field


@click.group(short_help="Carry images, points or shapes through a saved map.")
def apply() -> None:
    """Carry data through the map of a result.

    ``--to fixed`` takes moving-space data to the fixed space, ``--to moving`` takes fixed-space data back.
    """


def _common(spacing: str) -> Callable[[_F], _F]:
    """The arguments and options of all three; ``spacing`` is the help of ``--input-spacing``."""

    def decorate(command: _F) -> _F:
        for option in reversed(
            (
                click.argument("result_folder", type=path_type, metavar="OUT"),
                click.argument("input_file", type=path_type, metavar="INPUT"),
                click.option("-o", "--output", type=path_type, required=True, help="File to write."),
                click.option("--to", type=click.Choice(["fixed", "moving"]), required=True, help="Space to go to."),
                click.option("--input-spacing", type=float, metavar="S", help=spacing),
                overwrite_option,
                verbose_option,
            )
        ):
            command = option(command)
        return command

    return decorate


@apply.command(short_help="Resample an image on the other side's canvas.")
@_common(
    "Pixel size of the input, in the unit of the side it belongs to; its outer corner is put on that of the side's first pixel."
)
@click.option("--adapter", metavar="NAME", help="Adapter of the input; sniffed otherwise.")
@click.option("--adapter-set", metavar="K=V", multiple=True, help="Option of the adapter, e.g. axes=cyx.")
@click.option("--labels", is_flag=True, help="Values are ids (a segmentation, a mask): the nearest, never a mean.")
def image(
    result_folder: Path,
    input_file: Path,
    output: Path,
    to: str,
    input_spacing: float | None,
    overwrite: bool,
    adapter: str | None,
    adapter_set: tuple[str, ...],
    labels: bool,
) -> None:
    """Resample INPUT on the canvas of the side named by --to; the suffix of the output says its format.

    INPUT belongs to the other side: it is the file that was registered, or the same field at another resolution. Its
    channels and its type are kept; of labels every id comes through exactly, and 0 lies where INPUT has nothing.
    """
    from .. import outputs
    from ..data import Image

    _check_spacing(input_spacing)
    with bad_input():
        outputs.check_file(output, overwrite)
    result = load_result(result_folder)
    options = adapter_options(adapter_set, "--adapter-set") | ({"labels": True} if labels else {})
    data, reader, _ = open_side(input_file, adapter, options, 0)
    if not isinstance(data, Image):
        raise BadInput(f"wanted an image, got points in {input_file}; use `regframe apply points`")
    side = result.moving_grid if to == "fixed" else result.fixed_grid
    with bad_input():
        placed = data.replace(grid=place(data.grid, side, input_spacing))
        moved = result.to_fixed(placed) if to == "fixed" else result.to_moving(placed)
        with outputs.staged(output, overwrite) as path:
            reader.save(moved, path)
    click.echo(f"wrote {output}: {describe_grid(moved.grid)}", err=True)
    if (ids := _id_like(data)) and not labels and not data.labels:
        click.echo(
            f"Warning: the values of {input_file.name} look like ids ({ids} whole numbers in flat patches), and were averaged "
            "where they meet; --labels keeps them",
            err=True,
        )


def _id_like(image: Image) -> int:
    """How many values an image has where they look like the ids of a segmentation or mask, else 0.

    Ids are whole numbers in flat patches: off the commonest value most neighbours are alike, and where they are not they
    differ by more than a step, unless there are few of them.
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
    if len(values) > _FEW and len(jumps) and int((jumps > 2).sum()) < 0.2 * len(jumps):  # bands of a smooth picture
        return 0
    return len(values)


@apply.command(short_help="Move the positions of a table.")
@_common(
    "Pixel size of coordinates in pixels, in the unit of the side they belong to. Coordinates count from the middle of the "
    "first pixel, which is position 0: they are multiplied by it (those of `apply shapes` count from its corner)."
)
@click.option(
    "--columns", metavar="X,Y", help="Position columns, e.g. x=T_x,y=T_y, or the columns of a header-less file."
)
@click.option("--adapter", metavar="NAME", help="Adapter of the input, e.g. cells; a text table or sniffed otherwise.")
@click.option("--adapter-set", metavar="K=V", multiple=True, help="Option of the adapter, e.g. unit=um.")
def points(
    result_folder: Path,
    input_file: Path,
    output: Path,
    to: Literal["fixed", "moving"],
    input_spacing: float | None,
    overwrite: bool,
    columns: str | None,
    adapter: str | None,
    adapter_set: tuple[str, ...],
) -> None:
    """Move the positions of the table INPUT: same rows, same order, new columns at the end.

    match_probability says how likely the position shows tissue that both sides have, position_sd how far off it may be
    (standard deviation per axis, in the unit of the destination; both blank outside the fixed canvas),
    in_canvas whether it lies on the canvas of the destination; with "regframe_" before them where the table has such
    columns already.
    """
    import regframe

    from .. import outputs

    _check_spacing(input_spacing)
    with bad_input():
        outputs.check_file(output, overwrite)
    result = load_result(result_folder)
    source = result.moving_grid if to == "fixed" else result.fixed_grid
    note = ""
    with bad_input():
        unit = "px" if input_spacing else source.unit
        if adapter is None:
            try:
                reader, (table, note) = None, _text_table(input_file, columns, unit)
            except ValueError:  # some other kind of table
                adapter = _sniffed(input_file)
                if adapter is None:
                    raise
        if adapter is not None:
            options = adapter_options(adapter_set, "--adapter-set") | ({"columns": columns} if columns else {})
            reader, table, note = _native(input_file, adapter, options, unit)
        carried = regframe.carry_points(result, in_unit(table, source, input_spacing), to)
        extra = {name: values.tolist() for name, values in carried.columns(table.table).items()}
        with outputs.staged(output, overwrite) as path:
            if reader is None:
                regframe.write_points(carried.points, path, {name: _texts(values) for name, values in extra.items()})
            else:  # formats with types of their own
                reader.save(carried.points.replace(table={**carried.points.table, **extra}), path)
    click.echo(f"wrote {output}: {len(carried.points)} points in {carried.points.unit}", err=True)
    if note:
        click.echo(f"Note: {note}", err=True)


def _text_table(path: Path, columns: str | None, unit: str) -> tuple[PointSet, str]:
    """The table, and a note where ``unit``, that of the side, was taken for positions which declare none."""
    import regframe

    table = regframe.read_points(path, columns=columns, unit=unit)
    names = regframe.PointTable(path, {name: [] for name in table.table}, ())
    declared = regframe.position_columns(names, columns)[1]
    return table, _undeclared(
        unit, "a unit in the columns' names (x_um, y_um) states another"
    ) if declared is None and unit != "px" else ""


def _undeclared(unit: str, way: str) -> str:
    return f"positions that declare no unit were taken in {unit}, as the side they belong to; {way}"


def _sniffed(path: Path) -> str | None:
    """The adapter that knows ``path``, None where none does."""
    import regframe

    with contextlib.suppress(ValueError):
        return regframe.find_adapter(path).name
    return None


def _texts(values: list[Any]) -> list[str]:
    """Truth as words, numbers of four digits, blanks for what is not known."""
    return [str(v).lower() if isinstance(v, bool) else "" if math.isnan(v) else f"{v:.4g}" for v in values]


def _as_it_is(path: Path, adapter: str, options: dict[str, Any], unit: str) -> tuple[Adapter, Image | PointSet]:
    """An adapter, and what it carries where nothing moves; ``unit`` is the first that is tried where it cannot open it.

    Too few cells to be drawn are carried all the same.
    """
    import regframe

    from ..data import UNITS, Image

    try:
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


def _native(path: Path, adapter: str, options: dict[str, Any], unit: str) -> tuple[Adapter, PointSet, str]:
    """The table as the adapter carries it, the adapter, and a note where ``unit``, that of the side, was taken for positions
    which declare none."""

    from ..data import PointSet

    reader, native = _as_it_is(path, adapter, options, unit)
    note = ""
    if unit != "px" and "unit" not in options and isinstance(native, PointSet) and native.unit == "px":
        with contextlib.suppress(BadInput):  # pixels by its own word: whoever converts them says what is missing
            reader, native = _as_it_is(path, adapter, {**options, "unit": unit}, unit)
            note = _undeclared(unit, "--adapter-set unit=U states another")
    if not isinstance(native, PointSet):
        raise ValueError(f"wanted a table of positions, got an image in {path}; use `regframe apply image`")
    return reader, native, note


@apply.command(short_help="Move the shapes of a GeoJSON file.")
@_common(
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
    result_folder: Path,
    input_file: Path,
    output: Path,
    to: str,
    input_spacing: float | None,
    overwrite: bool,
    unit: str | None,
    output_spacing: float | None,
    pixel_origin: Any,
    tolerance: float,
    max_vertices: int | None,
    as_json: bool,
) -> None:
    """Move the points, lines and polygons of the GeoJSON file INPUT; properties, ids and order stay as they are.

    Coordinates are pixels of the full-resolution image, as QuPath writes them. Where the side they belong to has a
    physical unit, --input-spacing says how long such a pixel is, or --unit that they are lengths; this is never guessed.
    Edges get new vertices where the map bends them. The output is in the unit of the destination, or in pixels of
    --output-spacing.
    """
    import regframe

    from .. import outputs
    from ..shapes import MAX_VERTICES

    _check_spacing(input_spacing)
    _check_spacing(output_spacing, "--output-spacing")
    with bad_input():
        outputs.check_file(output, overwrite)
    result = load_result(result_folder)
    source, target, transform = result.moving_grid, result.fixed_grid, result.transform
    if to == "moving":
        source, target, transform = target, source, transform.inverse()
    with bad_input():
        given = regframe.read_shapes(input_file, unit=unit or "px", pixel_origin=pixel_origin)
        before = given.to_positions(source, input_spacing)
        after = regframe.move_shapes(before, transform, target, tolerance, max_vertices or MAX_VERTICES)
        crossing, crossed = int(before.crossings().sum()), int(after.crossings().sum())
        pixels = output_spacing is not None or target.unit == "px"
        written = after.to_pixels(target, output_spacing) if pixels else after
        with outputs.staged(output, overwrite) as path:
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
        notes.append(f"{crossed} rings cross themselves ({crossing} did in the input); they are carried as they are")
    return notes


def _check_spacing(spacing: float | None, option: str = "--input-spacing") -> None:
    if spacing is not None and not (math.isfinite(spacing) and spacing > 0):
        raise BadInput(f"wanted a positive {option}, got {spacing}")


def place(grid: Grid, side: Grid, spacing: float | None) -> Grid:
    """Where an image's pixels lie in the space of ``side``, in its unit.

    With ``spacing`` (in the side's unit) its outer edges are put on the side's lower edges. Without it the same number
    of pixels is the side's own grid, and another number needs a spacing of its own that makes it the same field.
    Raises ValueError where none of this tells where it lies.
    """
    from ..data import Grid, unit_ratio

    if grid.ndim != side.ndim:
        raise ValueError(f"wanted an image of {side.ndim} axes for this result, got {grid.ndim}")
    if spacing is not None:
        origin = tuple(o - s / 2 + spacing / 2 for o, s in zip(side.origin, side.spacing, strict=True))
        return _same_field(Grid(grid.shape, (spacing,) * grid.ndim, origin, side.unit), side)
    ratio = unit_ratio(grid.unit, side.unit)
    if grid.shape == side.shape:
        declared = ratio is not None and (grid.unit != "px" or side.unit == "px")
        if declared and not _close(
            grid.to_unit(side.unit).extent if grid.unit != side.unit else grid.extent, side.extent
        ):
            raise ValueError(
                f"wanted the field of this result ({describe_grid(side)}), got {describe_grid(grid)}; "
                "state --input-spacing if the file's own is wrong"
            )
        return side
    if ratio is None:
        raise ValueError(
            f"wanted an image of {describe_grid(side)}, got {describe_grid(grid)}, which does not say how they "
            f"relate; state --input-spacing in {side.unit}"
        )
    own = Grid(grid.shape, tuple(s * ratio for s in grid.spacing), tuple(o * ratio for o in grid.origin), side.unit)
    if own.unit == "px" and not _close(own.extent, side.extent):
        raise ValueError(
            f"wanted an image of {describe_grid(side)}, got {describe_grid(grid)}, which is another size; "
            "state --input-spacing in px of that side if it is the same field"
        )
    return _same_field(own, side)


def _same_field(grid: Grid, side: Grid) -> Grid:
    low = [
        max(a - s / 2, b - t / 2)
        for a, s, b, t in zip(grid.origin, grid.spacing, side.origin, side.spacing, strict=True)
    ]
    high = [
        min(a - s / 2 + e, b - t / 2 + f)
        for a, s, e, b, t, f in zip(
            grid.origin, grid.spacing, grid.extent, side.origin, side.spacing, side.extent, strict=True
        )
    ]
    if any(a >= b for a, b in zip(low, high, strict=True)):
        raise ValueError(
            f"wanted an image that overlaps the field of this result ({describe_grid(side)}), "
            f"got {describe_grid(grid)} elsewhere"
        )
    if not _close(grid.extent, side.extent):
        click.echo(
            f"Warning: the input covers another extent ({describe_grid(grid)}) than the side it belongs to "
            f"({describe_grid(side)})",
            err=True,
        )
    return grid


def _close(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(abs(a - b) <= _RATIO * b for a, b in zip(one, other, strict=True))


def in_unit(points: PointSet, side: Grid, spacing: float | None) -> PointSet:
    """Points in the unit of ``side``; ``spacing`` multiplies pixels; ValueError where the units do not fit."""
    from ..tables import to_unit_of

    if spacing is None:
        return to_unit_of(points, side)
    if points.unit != "px":
        raise ValueError(
            f"wanted coordinates in px to multiply by a spacing, got columns in {points.unit}; leave it out"
        )
    return points.replace(coords=points.coords * spacing, unit=side.unit)
