"""``regframe export`` and ``regframe import``: a map in the files of other programs, out and in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..formats import BUILT_IN, TOLERANCE_PX
from ._common import (
    BadInput,
    bad_input,
    emit_json,
    finest_grid,
    finish,
    input_type,
    json_option,
    load_result,
    open_side,
    overwrite_option,
    parse_pairs,
    path_type,
    recorded_run,
    require_option,
    result_type,
    sentence,
    side_options,
    stated,
    verbose_option,
)

if TYPE_CHECKING:
    from ..contracts import Side, Written
    from ..data import Grid, Image, PointSet
    from ..result import Result

EXPORT_HELP = """Write the map of OUT to PATH in the format of another program.

\b
""" + "\n".join(f"{each.name:<8} {each.summary}" for each in BUILT_IN)  # fmt: skip

_F = TypeVar("_F", bound=Callable[..., Any])


def _names(_: click.Context, __: click.Parameter, begun: str) -> list[str]:
    """What the shell offers behind ``--format``."""
    names = [each.name for each in BUILT_IN] + [name for name, _ in _installed()]
    return [name for name in names if name.startswith(begun)]


_format_option = click.option(
    "--format",
    "name",
    metavar="NAME",
    shell_complete=_names,
    help="Format of the file, one of those that `regframe export --help` lists; its suffix says it otherwise.",
)
_format_set_option = click.option(
    "--format-set", "settings", multiple=True, metavar="KEY=VALUE", help="An option of the format; may be repeated."
)
_unit_option = click.option(
    "--unit",
    metavar="U",
    help="Of the numbers, where a side has a length unit; mm where not given. Bare matrices need it: px, um …",
)


def _format_settings(pairs: tuple[str, ...]) -> dict[str, Any]:
    """The options given by ``--format-set``; `BadInput` for one that the command has as an option of its own."""
    values = parse_pairs(pairs, "--format-set")
    taken = {"result", "path", "format", "fixed", "moving", "to", "unit", "tolerance", "overwrite"} & values.keys()
    if taken:
        raise BadInput(
            f"wanted an option of the format in --format-set, got {', '.join(sorted(taken))}, which every one has"
        )
    return values


def _to_option(said: str) -> Callable[[_F], _F]:
    return click.option("--to", type=click.Choice(["fixed", "moving"]), default="moving", show_default=True, help=said)


def _installed() -> list[tuple[str, str]]:
    """Name and summary of the formats that are not regframe's own; nothing is imported where no such package is installed."""
    from importlib.metadata import entry_points

    if all(point.dist is not None and point.dist.name == "regframe" for point in entry_points(group="regframe")):
        return []
    from .. import plugins

    return [(each.name, each.summary.rstrip(".")) for each in plugins.entries("format") if not each.shipped]


class _Listing(click.Command):
    """A command whose help ends with the formats that installed packages add."""

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The text, and a list of these formats."""
        super().format_help_text(ctx, formatter)
        found = _installed()
        if found:
            with formatter.section("Formats of installed packages"):
                formatter.write_dl(found)


@click.command(cls=_Listing, short_help="Write a map for another program.", help=EXPORT_HELP)
@click.argument("result_folder", type=result_type, metavar="OUT")
@_format_option
@_format_set_option
@click.option("-o", "--output", type=path_type, required=True, metavar="PATH", help="File to write; ants: a prefix.")
@_to_option("Side that the transform takes positions to; moving is what draws the moving image on the fixed canvas.")
@_unit_option
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, min_open=True),
    default=TOLERANCE_PX,
    show_default=True,
    metavar="PX",
    help="Largest error of displacement fields, in pixels; a larger one makes smaller files.",
)
@click.option("--points", "points_file", type=path_type, metavar="FILE", help="csv, geojson: positions to move.")
@click.option("--spacing", type=float, metavar="S", help="csv, geojson: distance of the points of a regular grid.")
@overwrite_option
@json_option
@verbose_option
def export(
    result_folder: Path,
    name: str | None,
    settings: tuple[str, ...],
    output: Path,
    to: Side,
    unit: str | None,
    tolerance: float,
    points_file: Path | None,
    spacing: float | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write the map of OUT to PATH; the help text for users is `EXPORT_HELP`."""
    import regframe

    from ..formats import exchange
    from ..io.inputs import check_apart
    from ..io.outputs import TRANSFORM

    result = load_result(result_folder)
    side = result.fixed_grid if to == "moving" else result.moving_grid
    options = {"spacing": spacing, **_format_settings(settings)}
    with bad_input():
        in_pixels = exchange.format_of(output, name, reading=False).in_pixels
    if unit == "px" or in_pixels:
        options = {**_recorded_pixels(result_folder, result), **options}
    with bad_input():
        check_apart(output, [result_folder / TRANSFORM, points_file])
        if points_file is not None:
            options["points"] = regframe.read_points(points_file, unit=side.unit)
        try:
            written = regframe.write_map(
                result, output, name, to=to, unit=unit, tolerance=tolerance, overwrite=overwrite, **options
            )
        except ImportError as error:
            raise BadInput(sentence(error)) from error
    if as_json:
        emit_json(dataclasses.asdict(written))
    for file in written.files:
        click.echo(f"wrote {file}", err=True)
    _say_numbers(written, side.ndim)


def _recorded_pixels(folder: Path, result: Result) -> dict[str, Any]:
    """The options of a bare matrix that state the images' own pixels, from the files that were registered.

    `BadInput` where a side has a length unit and its file is not known or gone.
    """
    from ..remote.address import locate

    found: dict[str, Any] = {}
    for side, grid in (("fixed", result.fixed_grid), ("moving", result.moving_grid)):
        if grid.unit == "px":
            continue
        with bad_input():
            try:
                run = recorded_run(folder, None, None)[side]
            except (ValueError, OSError) as error:
                raise BadInput(
                    f"wanted the file of the {side} side, whose pixels --unit px counts ({sentence(error)}); state their size "
                    f"with --unit 0.25um, or --format-set {side}_unit=0.25um where the sides differ"
                ) from error
        found[f"{side}_pixels"] = finest_grid(locate(run["path"]), run.get("adapter"), run.get("options") or {})
    return found


def _say_numbers(written: Written, ndim: int) -> None:
    """Print what a file does not state itself: direction, units, canvas."""
    if written.max_error_px is None or written.self_contained:
        return
    numbers = " ".join(
        f"{unit} on the {side} side," for side, unit in zip(("fixed", "moving"), written.units, strict=True)
    )
    grid = "; ".join(f"{key} {' '.join(f'{v:.9g}' for v in values)}" for key, values in written.resample.items())
    click.echo(
        f"takes positions to the {written.to} side; {numbers} {written.max_error_px:.1g} px off at most", err=True
    )
    click.echo(f"canvas to draw on (x, y{', z' if ndim == 3 else ''}): {grid}", err=True)


@click.command("import", cls=_Listing, short_help="Take over a map that another program made.")
@click.argument("path", type=path_type)
@_format_option
@_format_set_option
@click.option("-o", "--output", "out", type=path_type, required=True, metavar="OUT", help="Folder to write.")
@click.option(
    "--fixed", type=input_type, metavar="FILE", help="The fixed image; npz and regframe's own ngff need none."
)
@click.option("--moving", type=input_type, metavar="FILE", help="The moving image; with --fixed or not at all.")
@_to_option("Side that the file's transform takes positions to.")
@_unit_option
@click.option("--fixed-system", metavar="NAME", help="ngff: coordinate system of the fixed side.  [default: fixed]")
@click.option("--moving-system", metavar="NAME", help="ngff: that of the moving side.  [default: moving]")
@click.option("--level", type=click.IntRange(min=0), metavar="N", help="Pyramid level that is read of both images.")
@side_options("fixed")
@side_options("moving")
@overwrite_option
@require_option
@json_option
@verbose_option
@click.pass_context
def import_(ctx: click.Context, /, **options: Any) -> None:
    """Take over the map in PATH as a folder OUT that `regframe apply` and the other commands read.

    The images say where their pixels lie. Nobody judged the map, so its verdict is warn at best; the report shows the overlay.
    For --format ants PATH is the output prefix of antsRegistration.
    """
    import regframe

    from ..formats import exchange
    from ..io import inputs, outputs
    from ..report import results

    path, out = options["path"], options["out"]
    with bad_input():
        if (options["fixed"] is None) != (options["moving"] is None):
            raise ValueError("wanted both --fixed and --moving, or neither, got one of them")
        read = [path, options["fixed"], options["moving"]]
        outputs.check_folder(out, options["overwrite"], read)
        inputs.note(path)
    sides: list[Image | PointSet] = []
    run: dict[str, Any] = {"imported": path.resolve()}
    for side in ("fixed", "moving"):
        file = options[side]
        if file is None:
            continue
        data, adapter, used = open_side(file, options[f"{side}_adapter"], stated(side, options), options["level"])
        sides.append(data)
        run[side] = {"path": file.resolve(), "adapter": adapter.name, "options": used}
    fixed, moving = [_canvas(data) for data in sides] or (None, None)
    own = _format_settings(options["settings"])
    with bad_input():
        in_pixels = exchange.format_of(path, options["name"]).in_pixels
    if in_pixels or "px" in (options["unit"], own.get("fixed_unit"), own.get("moving_unit")):
        for side, grid in (("fixed", fixed), ("moving", moving)):
            if grid is not None and grid.unit != "px":
                own[f"{side}_pixels"] = finest_grid(options[side], run[side]["adapter"], run[side]["options"])
    if options["fixed_system"] or options["moving_system"]:
        own["systems"] = (options["fixed_system"] or "fixed", options["moving_system"] or "moving")
    with bad_input():
        try:
            result = regframe.read_map(
                path, fixed, moving, options["name"], to=options["to"], unit=options["unit"], **own
            )
        except ImportError as error:
            raise BadInput(sentence(error)) from error
        results.write_run(out, result, (sides[0], sides[1]) if sides else None, run, options["overwrite"])
    if options["as_json"]:
        emit_json(result.metrics)
    trip = result.metrics["roundtrip_px"]
    said = result.metrics.get("imported", {}).get("said")
    if said:
        click.echo(f"{said}; --to, --unit and --format-set axes=yx say it is otherwise", err=True)
    click.echo(f"wrote {out}: {result.verdict}, round trip {trip['mean']:.2g} px (at most {trip['max']:.2g})", err=True)
    for reason in result.reasons:
        click.echo(f"Note: {reason}", err=True)
    finish(result.metrics, ctx, options["require"])


def _canvas(data: Image | PointSet) -> Grid:
    """The canvas of an image, or of points and whatever an adapter reads as points (meshes): their bounding box."""
    import regframe

    from ..data import Image

    if isinstance(data, Image):
        return data.grid
    with bad_input():
        return regframe.canvas(data)
