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


@click.command(short_help="Measure the error at known landmarks.")
@result_argument
@click.option("--fixed-landmarks", type=path_type, required=True, metavar="F.csv", help="Positions on the fixed side.")
@click.option(
    "--moving-landmarks", type=path_type, required=True, metavar="M.csv", help="Positions on the moving side."
)
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
    fixed_landmarks: Path,
    moving_landmarks: Path,
    fixed_spacing: float | None,
    moving_spacing: float | None,
    as_json: bool,
) -> None:
    """Print how far fixed landmarks, mapped to the moving space, lie from their moving partners.

    Rows are joined on a column that names them (id, label, name, an index) where both files have one, else row by row; which
    it was is said. ``before`` is the error of the identity map.
    """
    import regframe

    from ..data import describe_grid
    from ..evaluation import evaluate as measure
    from ..io.tables import paired

    result = load_result(result_folder)
    sides: list[PointSet] = []
    with bad_input():
        for path, grid, spacing in (
            (fixed_landmarks, result.fixed_grid, fixed_spacing),
            (moving_landmarks, result.moving_grid, moving_spacing),
        ):
            if spacing is not None and not spacing > 0:
                raise BadInput(f"wanted a positive spacing for {path}, got {spacing}")
            table = regframe.read_points(path, unit=grid.unit if spacing is None else "px")
            points = in_unit(table, grid, spacing)
            sides.append(points)
            outside = int((~grid.contains(points.coords)).sum()) if points.ndim == grid.ndim else 0
            if outside:
                click.echo(
                    f"Warning: {outside} of {len(points)} landmarks of {path} lie outside the image "
                    f"({describe_grid(grid)}); check the order of the axes, or state the spacing they are in",
                    err=True,
                )
        pairs = paired(sides[0], sides[1])
        figures = measure(result, pairs.fixed, pairs.moving) | {"paired_on": pairs.column}
    click.echo(pairs.words, err=True)
    if as_json:
        emit_json(figures)
    else:
        _print(figures)


def _print(figures: dict[str, Any]) -> None:
    before = figures["before"]
    click.echo(f"{figures['n']} pairs, error in the moving space")
    click.echo(f"{'':12}{'mean':>11}{'median':>11}{'p90':>11}{'max':>11}")
    units = [("px", "tre_px")] + ([(figures["unit"], "tre")] if figures["unit"] != "px" else [])
    for unit, key in units:
        for name, errors in (("before", before), ("after", figures)):
            if errors is not None:
                row = "".join(f"{errors[key][statistic]:>11.4g}" for statistic in ("mean", "median", "p90", "max"))
                click.echo(f"{f'{name}, {unit}':12}{row}")
    was = "" if before is None else f" (before {100 * before['rtre_median']:.3g} %)"
    click.echo(f"median over the moving diagonal: {100 * figures['rtre_median']:.3g} %{was}")
