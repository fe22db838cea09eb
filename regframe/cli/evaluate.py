"""``regframe evaluate``: the error of a result at known pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._common import (
    BadInput,
    bad_input,
    emit_json,
    json_option,
    load_result,
    path_type,
    result_argument,
    verbose_option,
)
from .apply import in_unit

if TYPE_CHECKING:
    from ..data import PointSet
    from ..result import Result


@click.command(short_help="Measure the error at known landmarks.")
@result_argument
@click.option(
    "--landmarks",
    type=path_type,
    metavar="P.csv",
    help="Pairs in one file, as `regframe register --landmarks` takes them.",
)
@click.option("--fixed-landmarks", type=path_type, metavar="F.csv", help="Or: positions on the fixed side …")
@click.option("--moving-landmarks", type=path_type, metavar="M.csv", help="… and their partners on the moving side.")
@click.option(
    "--fixed-spacing", type=float, metavar="S", help="Factor from the fixed file's coordinates to the side's unit."
)
@click.option(
    "--moving-spacing", type=float, metavar="S", help="Factor from the moving file's coordinates to the side's unit."
)
@json_option
@verbose_option
def evaluate(
    result_folder: Path,
    landmarks: Path | None,
    fixed_landmarks: Path | None,
    moving_landmarks: Path | None,
    fixed_spacing: float | None,
    moving_spacing: float | None,
    as_json: bool,
) -> None:
    """Print how far fixed landmarks, mapped to the moving space, lie from their moving partners.

    Rows are joined on a column that names them (id, label, name, an index) where both files have one, else row by row; which
    it was is said. ``before`` is the error of the identity map.
    """
    from ..data import describe_grid
    from ..evaluation import evaluate as measure
    from ..io.tables import paired
    from .swapped import swapped
    from .whereabouts import likely_factor

    result = load_result(result_folder)
    sides: list[PointSet] = []
    with bad_input():
        files = _read(result, landmarks, (fixed_landmarks, moving_landmarks), (fixed_spacing, moving_spacing))
        grids = result.fixed_grid, result.moving_grid
        for side, (path, table, spacing), grid in zip(("fixed", "moving"), files, grids, strict=True):
            points = in_unit(table, grid, spacing)
            sides.append(points)
            outside = int((~grid.contains(points.coords)).sum()) if points.ndim == grid.ndim else 0
            if outside:
                factor = likely_factor(points, grid)
                way = "check the order of the axes, or state the spacing they are in" if factor is None else (
                    f"multiplied by {factor:.6g} they would not: --{side}-spacing {factor * (spacing or 1.0):.6g}"
                )  # fmt: skip
                click.echo(
                    f"Warning: {outside} of {len(points)} landmarks of {path} lie outside the image "
                    f"({describe_grid(grid)}); {way}",
                    err=True,
                )
        pairs = paired(sides[0], sides[1])
        figures = measure(result, pairs.fixed, pairs.moving) | {"paired_on": pairs.column}
    click.echo(pairs.words, err=True)
    places = files[0][0], files[-1][0]
    odd = swapped(result, pairs.fixed.coords, pairs.moving.coords, places)
    if odd:
        click.echo(f"Warning: {odd}", err=True)
    if as_json:
        emit_json(figures)
    else:
        _print(figures)


def _read(
    result: Result,
    both: Path | None,
    each: tuple[Path | None, Path | None],
    spacings: tuple[float | None, float | None],
) -> list[tuple[Path, PointSet, float | None]]:
    """File, positions and spacing of the fixed and of the moving side; of one file of pairs, or of a file for each side."""
    import regframe

    from ..data import PointSet

    grids = result.fixed_grid, result.moving_grid
    for spacing in spacings:
        if spacing is not None and not spacing > 0:
            raise BadInput(f"wanted a positive spacing, got {spacing}")
    own = tuple(grid.unit if spacing is None else "px" for grid, spacing in zip(grids, spacings, strict=True))
    if both is not None and each == (None, None):
        fixed, moving, units = regframe.read_landmarks(both)
        coords = zip((fixed, moving), units, own, spacings, strict=True)
        return [(both, PointSet(at, unit or mine), spacing) for at, unit, mine, spacing in coords]
    if both is not None or each[0] is None or each[1] is None:
        given = (("--landmarks", both), ("--fixed-landmarks", each[0]), ("--moving-landmarks", each[1]))
        got = " and ".join(name for name, value in given if value is not None) or "none of them"
        raise BadInput(
            f"wanted --landmarks P, or --fixed-landmarks F and --moving-landmarks M, got {got}; give pairs in one file, or a "
            "file for each side"
        )
    named = zip(each, own, spacings, strict=True)
    return [(path, regframe.read_points(path, unit=mine), spacing) for path, mine, spacing in named if path is not None]


def _print(figures: dict[str, Any]) -> None:
    before = figures["before"]
    click.echo(f"{figures['n']} pairs, error in the moving space")
    if figures.get("unplaced"):
        click.echo(f"{figures['unplaced']} more lie on pieces without a partner and have no error")
    click.echo(f"{'':12}{'mean':>11}{'median':>11}{'p90':>11}{'max':>11}")
    units = [("px", "tre_px")] + ([(figures["unit"], "tre")] if figures["unit"] != "px" else [])
    for unit, key in units:
        for name, errors in (("before", before), ("after", figures)):
            if errors is not None:
                row = "".join(f"{errors[key][statistic]:>11.4g}" for statistic in ("mean", "median", "p90", "max"))
                click.echo(f"{f'{name}, {unit}':12}{row}")
    was = "" if before is None else f" (before {100 * before['rtre_median']:.3g} %)"
    click.echo(f"median over the moving diagonal: {100 * figures['rtre_median']:.3g} %{was}")
