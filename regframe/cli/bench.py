"""``regframe bench``: how fast the engine is on this machine, beside eager torch measured in the same run."""

from __future__ import annotations

from typing import Any

import click

from ._common import emit_json, json_option, verbose_option


@click.command(short_help="Measure the engine on this machine, beside eager torch.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads; as many as torch takes otherwise.")
@click.option("--quick", is_flag=True, help="Small images: a look, not a figure to quote.")
@json_option
@verbose_option
def bench(threads: int | None, quick: bool, as_json: bool) -> None:
    """Measure the hot loop against eager torch, and one registration whose truth is known. Takes about a minute.

    Values and gradients are compared before anything is timed; runs take turns, and the median counts.
    """
    import torch

    from ..testing import bench

    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        machine = bench.machine()
        if not as_json:
            click.echo(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in machine.items()))
        rows = []
        for row in bench.short(rounds=1 if quick else 7, scale=0.125 if quick else 1.0):
            rows.append(row)
            if not as_json:
                click.echo(_line(row))
    finally:
        torch.set_num_threads(before)
    if as_json:
        emit_json({"machine": machine, "measurements": rows})


def _line(row: dict[str, Any]) -> str:
    took = f"{row['seconds'] * 1e3:.1f} ms" if row["seconds"] < 1 else f"{row['seconds']:.2f} s"
    text = f"{row['what']}: {took}"
    if "rival" in row:
        text += f", {row['rival']} {row['rival_seconds'] * 1e3:.1f} ms: {row['ratio']:.1f} times as long"
    if "error_px" in row:
        text += f", error {row['error_px']:.3f} px in the mean, {row['n_evaluations']} evaluations"
    return text
