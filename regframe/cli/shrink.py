"""``regframe shrink-case``: a pair that goes wrong, small and nameless enough to be attached to a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ._common import (
    bad_input,
    emit_json,
    json_option,
    open_side,
    path_type,
    place_type,
    side_options,
    stated,
    verbose_option,
)


@click.command("shrink-case", short_help="Make a small, nameless copy of a pair, to attach to a report.")
@click.argument("fixed", type=place_type)
@click.argument("moving", type=place_type)
@click.option(
    "-o", "--output", "out", type=path_type, default=Path("case.zip"), show_default=True, help="Zip to write."
)
@click.option("--pixels", type=int, default=256, show_default=True, help="Longest side of a thumbnail, at most 1024.")
@side_options("fixed")
@side_options("moving")
@json_option
@verbose_option
def shrink_case(out: Path, pixels: int, as_json: bool, **options: Any) -> None:
    """Write thumbnails of FIXED and MOVING (of tables: thinned positions) and the versions of this installation into a zip.

    No names of files, patients, channels or columns go in, no dates and no other metadata. What is drawn into the pixels
    themselves stays, so look at both pictures before you send them.
    """
    from ..testing import cases

    sides = [
        open_side(options[side], options[f"{side}_adapter"], stated(side, options))[0] for side in ("fixed", "moving")
    ]
    with bad_input():
        said = cases.shrink(sides[0], sides[1], out, pixels)
    if as_json:
        emit_json({"output": str(out), **said})
        return
    click.echo(
        f"wrote {out}: {said['fixed']['file']}, {said['moving']['file']} and case.json, {out.stat().st_size / 1e3:.0f} kB"
    )
    click.echo(f"does it go wrong in the same way? unzip it and run `{said['command']}`")
    click.echo("look at both pictures before you send them: what is written into the pixels is still there")
