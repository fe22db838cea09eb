"""``regframe report``: draw the page of a finished run again."""

from __future__ import annotations

from pathlib import Path

import click

from ._common import bad_input, load_result, moved_options, open_recorded, recorded_run, result_argument, verbose_option


@click.command(short_help="Draw the report of a finished run again.")
@result_argument
@moved_options
@verbose_option
def report(result_folder: Path, fixed: Path | None, moving: Path | None) -> None:
    """Write OUT/report.html anew, from the saved map and the input files."""
    from ..io import outputs
    from ..report import results, words

    result = load_result(result_folder)
    target = result_folder / outputs.REPORT
    with bad_input():
        run = recorded_run(result_folder, fixed, moving)
        sides = open_recorded(run)
        with outputs.staged(target, overwrite=True) as path:
            results.write(result, *sides, path, words.Places.of(result_folder, run))
    click.echo(f"wrote {target}", err=True)
