"""``regframe report``: draw the page of a finished run again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ._common import bad_input, load_result, moved_options, open_recorded, recorded_run, result_argument, verbose_option


@click.command(short_help="Draw the report of a finished run again.")
@result_argument
@moved_options
@verbose_option
def report(result_folder: Path, fixed: Path | None, moving: Path | None) -> None:
    """Write OUT/report.html anew, from the saved map and the input files.

    OUT may be a map that Python saved (`result.save("NAME.ome.zarr")`): name its files with --fixed and --moving; the page is
    NAME.report.html beside it.
    """
    from ..io import outputs
    from ..report import again, results, words

    result = load_result(result_folder)
    target = again.page_path(result_folder)
    with bad_input():
        if again.run_of(result_folder) is None and fixed is not None and moving is not None:
            run: dict[str, Any] = {"fixed": {"path": str(fixed)}, "moving": {"path": str(moving)}}
        else:
            run = recorded_run(again.run_of(result_folder) or result_folder, fixed, moving)
        sides = open_recorded(run)
        with outputs.staged(target, overwrite=True) as path:
            results.write(result, *sides, path, words.Places.of(result_folder, run))
    click.echo(f"wrote {target}", err=True)
