"""``regframe report``: draw the page of a finished run again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ._common import bad_input, load_result, open_side, path_type, verbose_option


@click.command(short_help="Draw the report of a finished run again.")
@click.argument("result_folder", type=path_type, metavar="OUT")
@click.option("--fixed", type=path_type, metavar="FILE", help="The fixed file, where it lies elsewhere now.")
@click.option("--moving", type=path_type, metavar="FILE", help="The moving file, where it lies elsewhere now.")
@verbose_option
def report(result_folder: Path, fixed: Path | None, moving: Path | None) -> None:
    """Write OUT/report.html anew, from the saved map and the input files."""
    import yaml

    from .. import report as page
    from ..io import outputs

    result = load_result(result_folder)
    sides = []
    with bad_input():
        if not outputs.is_output(result_folder):
            raise ValueError(f"wanted a folder that `regframe register` wrote, got {result_folder}")
        text = (result_folder / outputs.CONFIG).read_text(encoding="utf-8")
        run: dict[str, Any] = (yaml.safe_load(text) or {}).get("run") or {}
        for side, given in (("fixed", fixed), ("moving", moving)):
            how = run.get(side) or {}
            path = given or (Path(how["path"]) if how.get("path") else None)
            if path is None:
                raise ValueError(f"wanted the {side} file, which {outputs.CONFIG} does not name; pass --{side} FILE")
            if not path.exists():
                raise FileNotFoundError(f"wanted the {side} file at {path}, which does not exist; pass --{side} FILE")
            sides.append(open_side(path, how.get("adapter"), how.get("options") or {})[0])
        target = result_folder / outputs.REPORT
        with outputs.staged(target, overwrite=True) as path:
            page.write(result, sides[0], sides[1], path)
    click.echo(f"wrote {target}", err=True)
