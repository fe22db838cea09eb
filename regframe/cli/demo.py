"""``regframe demo``: one real image against a bent, turned and recoloured copy of itself, whose true map is known."""

from __future__ import annotations

from pathlib import Path

import click

from ..display.bars import Bars
from ._common import bad_input, emit_json, finish, json_option, overwrite_option, path_type, verbose_option


@click.command(short_help="Align a real image to a bent, recoloured copy and print the error.")
@click.option(
    "-o", "--output", "out", type=path_type, default=Path("demo-output"), show_default=True, help="Folder to write."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the bending.")
@overwrite_option
@json_option
@verbose_option
@click.pass_context
def demo(ctx: click.Context, out: Path, seed: int, overwrite: bool, as_json: bool) -> None:
    """Align an immunohistochemistry image to a bent, turned and recoloured copy of itself, and print the error."""
    with bad_input():
        from ..io import outputs

        outputs.check_folder(out, overwrite)
    import regframe

    from ..report import results
    from ..testing import demo

    pair = demo.make(seed)
    with Bars() as progress, bad_input():
        result = regframe.register(pair.fixed, pair.moving, progress=progress)
    errors = demo.errors(pair, result)
    run = {"demo": {"seed": seed, "error_px": errors}}
    with bad_input():
        results.write_run(out, result, (pair.fixed, pair.moving), run, overwrite)
    if as_json:
        emit_json({**result.metrics, "error_px": errors, "output": str(out)})
    else:
        click.echo(f"{result!r}")
        click.echo("error against the known map, over the whole overlap, in moving px:")
        for name in ("before", "after"):
            figures = errors[name]
            click.echo(
                f"  {name:<7} mean {figures['mean']:8.3f}   p95 {figures['p95']:8.3f}   max {figures['max']:8.3f}"
            )
        click.echo(f"wrote {out}; open {(out / 'report.html').resolve().as_uri()}")
    finish(result.metrics, ctx)
