"""``regframe export`` and ``regframe import``: a map in the files of other programs, out and in."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._common import (
    BadInput,
    adapter_options,
    bad_input,
    emit_json,
    finish,
    json_option,
    load_result,
    open_side,
    overwrite_option,
    path_type,
    sentence,
    side_options,
    verbose_option,
)

if TYPE_CHECKING:
    from ..data import Image, PointSet

FORMATS = ("itk", "ants", "nifti", "elastix", "npz", "ngff", "csv", "geojson")

_format_option = click.option(
    "--format", "name", type=click.Choice(FORMATS), help="Format of the file; its suffix says it otherwise."
)


@click.command(short_help="Write a map for another program.")
@click.argument("result_folder", type=path_type, metavar="OUT")
@_format_option
@click.option("-o", "--output", type=path_type, required=True, metavar="PATH", help="File to write; ants: a prefix.")
@click.option(
    "--to",
    type=click.Choice(["fixed", "moving"]),
    default="moving",
    show_default=True,
    help="Side that the transform takes positions to; moving is what draws the moving image on the fixed canvas.",
)
@click.option(
    "--unit", default="mm", show_default=True, metavar="U", help="Of the numbers, where a side has a length unit."
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, min_open=True),
    default=0.001,
    show_default=True,
    metavar="PX",
    help="Largest error of displacement fields, in pixels; a larger one makes smaller files.",
)
@click.option("--points", "points_file", type=path_type, metavar="FILE", help="csv, geojson: positions to carry.")
@click.option("--spacing", type=float, metavar="S", help="csv, geojson: distance of the points of a regular grid.")
@overwrite_option
@json_option
@verbose_option
def export(
    result_folder: Path,
    name: Any,
    output: Path,
    to: Any,
    unit: str,
    tolerance: float,
    points_file: Path | None,
    spacing: float | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write the map of OUT to PATH in the format of another program.

    \b
    itk      .h5, .tfm or .mat: SimpleITK, ITK, 3D Slicer; needs the extra itk, as the next two do
    ants     PATH0GenericAffine.mat, PATH1Warp.nii.gz, PATH1InverseWarp.nii.gz: antsApplyTransforms
    nifti    .nii.gz: one displacement field, affine part and all
    elastix  .txt: transform parameters of an affine map
    npz      plain numpy arrays, exact
    ngff     an OME-Zarr 0.6 store
    csv      positions on both sides; geojson the same, as points
    """
    import regframe

    result = load_result(result_folder)
    side = result.fixed_grid if to == "moving" else result.moving_grid
    with bad_input():
        points = None if points_file is None else regframe.read_points(points_file, unit=side.unit)
        try:
            written = regframe.write_map(
                result,
                output,
                name,
                to=to,
                unit=unit,
                points=points,
                spacing=spacing,
                overwrite=overwrite,
                tolerance=tolerance,
            )
        except ImportError as error:
            raise BadInput(sentence(error)) from error
    if as_json:
        emit_json(dataclasses.asdict(written))
    for file in written.files:
        click.echo(f"wrote {file}", err=True)
    if written.max_error_px is not None and written.format not in ("npz", "ngff"):
        numbers = " ".join(
            f"{unit} on the {side_name} side,"
            for side_name, unit in zip(("fixed", "moving"), written.units, strict=True)
        )
        grid = "; ".join(f"{key} {' '.join(f'{v:.9g}' for v in values)}" for key, values in written.resample.items())
        click.echo(
            f"takes positions to the {written.to} side; {numbers} {written.max_error_px:.1g} px off at most", err=True
        )
        click.echo(f"canvas to draw on (x, y{', z' if side.ndim == 3 else ''}): {grid}", err=True)


@click.command("import", short_help="Take over a map that another program made.")
@click.argument("path", type=path_type)
@_format_option
@click.option("-o", "--output", "out", type=path_type, required=True, metavar="OUT", help="Folder to write.")
@click.option("--fixed", type=path_type, metavar="FILE", help="The fixed image; npz and regframe's own ngff need none.")
@click.option("--moving", type=path_type, metavar="FILE", help="The moving image, likewise.")
@click.option(
    "--to",
    type=click.Choice(["fixed", "moving"]),
    default="moving",
    show_default=True,
    help="Side that the file's transform takes positions to.",
)
@click.option(
    "--unit", default="mm", show_default=True, metavar="U", help="Of the numbers, where a side has a length unit."
)
@click.option("--fixed-system", default="fixed", show_default=True, metavar="NAME", help="ngff: its coordinate system.")
@click.option("--moving-system", default="moving", show_default=True, metavar="NAME", help="ngff: likewise.")
@click.option("--level", type=click.IntRange(min=0), metavar="N", help="Pyramid level that is read of both images.")
@side_options("fixed")
@side_options("moving")
@overwrite_option
@json_option
@verbose_option
@click.pass_context
def import_(ctx: click.Context, /, **options: Any) -> None:
    """Take over the map in PATH as a folder OUT that `regframe apply` and the other commands read.

    The images say where their pixels lie. Nobody judged the map, so its verdict is warn at best; the report shows the overlay.
    For --format ants PATH is the output prefix of antsRegistration.
    """
    import regframe

    from ..io import outputs
    from ..report import results

    path, out = options["path"], options["out"]
    with bad_input():
        if (options["fixed"] is None) != (options["moving"] is None):
            raise ValueError("wanted both --fixed and --moving, or neither, got one of them")
        outputs.check_folder(out, options["overwrite"])
    sides: list[Image | PointSet] = []
    run: dict[str, Any] = {"imported": path.resolve()}
    for side in ("fixed", "moving"):
        file = options[side]
        if file is None:
            continue
        given = [options[f"{side}_{key}"] for key in ("adapter", "set", "mpp", "channel")]
        arguments = adapter_options(given[1], f"--{side}-set", given[2], given[3])
        data, adapter, used = open_side(file, given[0], arguments, options["level"])
        sides.append(data)
        run[side] = {"path": file.resolve(), "adapter": adapter.name, "options": used}
    grids = [_canvas(data) for data in sides]
    with bad_input():
        try:
            result = regframe.read_map(
                path,
                grids[0] if grids else None,
                grids[1] if grids else None,
                format=options["name"],
                to=options["to"],
                unit=options["unit"],
                systems=(options["fixed_system"], options["moving_system"]),
            )
        except ImportError as error:
            raise BadInput(sentence(error)) from error
        results.write_run(out, result, (sides[0], sides[1]) if sides else None, run, options["overwrite"])
    if options["as_json"]:
        emit_json(result.metrics)
    trip = result.metrics["roundtrip_px"]
    click.echo(f"wrote {out}: {result.verdict}, round trip {trip['mean']:.2g} px (at most {trip['max']:.2g})", err=True)
    for reason in result.reasons:
        click.echo(f"Note: {reason}", err=True)
    finish(result.metrics, ctx)


def _canvas(data: Image | PointSet) -> Any:
    from ..data import Image

    if not isinstance(data, Image):
        raise BadInput(
            f"wanted an image, whose canvas the map belongs to, got points in {data.name}; rasterise with --*-adapter cells"
        )
    return data.grid
