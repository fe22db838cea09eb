"""``regframe demo``: one real image against a bent, turned and recoloured copy of itself, whose true map is known; and the files
that README and docs name."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..display.bars import Bars
from ._common import bad_input, emit_json, finish, json_option, overwrite_option, path_type, verbose_option

if TYPE_CHECKING:
    from ..testing.demo import Pair

INPUTS = "inputs"
"""Folder within that of the demo which keeps what was aligned, and the tables of the commands to try next."""


@click.command(short_help="Align a real image to a bent, recoloured copy and print the error.")
@click.option(
    "-o", "--output", "out", type=path_type, default=Path("demo-output"), show_default=True, help="Folder to write."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the bending.")
@click.option(
    "--data",
    type=path_type,
    metavar="DIR",
    help="Align nothing: write into DIR every file that README and docs name, so that their commands run there.",
)
@overwrite_option
@json_option
@verbose_option
@click.pass_context
def demo(ctx: click.Context, out: Path, seed: int, data: Path | None, overwrite: bool, as_json: bool) -> None:
    """Align an immunohistochemistry image to a bent, turned and recoloured copy of itself, and print the error.

    The folder keeps the two images and tables for the commands that are printed at the end.
    """
    if data is not None:
        _write_data(data, overwrite, as_json)
        return
    with bad_input():
        from ..io import outputs

        outputs.check_folder(out, overwrite)
    import regframe

    from ..report import results
    from ..testing import demo, samples

    pair = demo.make(seed)
    with Bars() as progress, bad_input():
        result = regframe.register(pair.fixed, pair.moving, progress=progress)
    errors = demo.errors(pair, result)
    run = {"demo": {"seed": seed, "error_px": errors}, **_sides(out, pair)}
    with bad_input():
        results.write_run(
            out,
            result,
            (pair.fixed, pair.moving),
            run,
            overwrite,
            lambda folder: samples.write_pair(folder / INPUTS, pair),
        )
    if as_json:
        emit_json({**result.metrics, "error_px": errors, "output": str(out), "next": next_commands(out / INPUTS)})
    else:
        click.echo(f"{result!r}")
        click.echo("error against the known map, over the whole overlap, in moving px:")
        for name in ("before", "after"):
            figures = errors[name]
            click.echo(
                f"  {name:<7} mean {figures['mean']:8.3f}   p95 {figures['p95']:8.3f}   max {figures['max']:8.3f}"
            )
        click.echo(f"wrote {out}; open {(out / 'report.html').resolve().as_uri()}")
        click.echo("\ntry next (the first one writes what the others need):")
        for line in next_commands(out / INPUTS):
            click.echo(f"  {line}")
    finish(result.metrics, ctx)


def _sides(out: Path, pair: Pair) -> dict[str, Any]:
    """Where the two images will lie, as `register` records it, so that `view` and `report` find them."""
    from .. import plugins

    return {
        side: {
            "path": (out / INPUTS / f"{side}.png").resolve(),
            "adapter": plugins.find_adapter(image).name,
            "options": {},
        }
        for side, image in (("fixed", pair.fixed), ("moving", pair.moving))
    }


def next_commands(inputs: Path) -> list[str]:
    """Three commands on the files in ``inputs`` that work as they stand in the folder from which this one was called."""
    where = Path(sys.argv[0])
    found = shutil.which("regframe")
    same = found is not None and where.exists() and Path(found).resolve() == where.resolve()
    program = "regframe" if same or where.stem != "regframe" else str(where)
    run = f"{inputs.parent}-run"
    fixed, moving, cells, f, m = (
        str(inputs / name) for name in ("fixed.png", "moving.png", "cells.csv", "f.csv", "m.csv")
    )
    return [
        shlex.join([program, "register", fixed, moving, "-o", run, "--overwrite"]),
        shlex.join([program, "evaluate", run, "--fixed-landmarks", f, "--moving-landmarks", m]),
        shlex.join([program, "apply", "points", run, cells, "-o", f"{run}/moved.csv", "--to", "fixed"]),
    ]


def _write_data(folder: Path, overwrite: bool, as_json: bool) -> None:
    """Write the files of README and docs, say which, and what was left out for want of a package."""
    with bad_input():
        if folder.exists() and not overwrite and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(f"{folder} exists and is not empty; pass --overwrite to write its files again")
        from ..testing import samples

        folder.mkdir(parents=True, exist_ok=True)
        made, left_out = samples.write(folder)
    if as_json:
        emit_json({"output": str(folder), "files": [str(path) for path in made], "left_out": left_out})
        return
    click.echo(f"wrote {len(made)} files to {folder}: {', '.join(path.name for path in made)}")
    for sentence in left_out:
        click.echo(f"left out: {sentence}")
    click.echo(f"next: cd {shlex.quote(str(folder))}, and run the commands of the README as they are printed")
