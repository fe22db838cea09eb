"""``regframe info``, ``plugins`` and ``doctor``: what a file is, what is installed, whether it works."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._common import (
    BadInput,
    adapter_options,
    bad_input,
    describe_grid,
    emit_json,
    json_option,
    open_side,
    path_type,
    verbose_option,
)

if TYPE_CHECKING:
    from ..contracts import Adapter
    from ..data import Grid, Image, PointSet


@click.command(short_help="Say what a file or a result is.")
@click.argument("path", type=path_type)
@click.option("--adapter", metavar="NAME", help="Adapter; sniffed otherwise.")
@click.option("--set", "pairs", metavar="K=V", multiple=True, help="Option of the adapter.")
@json_option
@verbose_option
def info(path: Path, adapter: str | None, pairs: tuple[str, ...], as_json: bool) -> None:
    """Say how regframe reads PATH: size, spacing, channels, adapter; or what a result holds."""
    from .. import outputs

    with bad_input():
        if not path.exists():
            raise FileNotFoundError(f"wanted an existing file or folder, got {str(path)!r}, which does not exist")
    if outputs.is_output(path) or path.name == outputs.TRANSFORM:
        found = _result_facts(path)
    else:
        data, reader, _ = open_side(path, adapter, adapter_options(pairs, "--set"))
        found = facts(data, reader)
    if as_json:
        emit_json({"path": path, **found})
        return
    for name, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {_short(v)}" for k, v in value.items())
        elif isinstance(value, (list, tuple)):
            value = ", ".join(_short(v) for v in value)
        click.echo(f"{name:<10} {value}")


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " × ".join(_short(v) for v in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def facts(data: Image | PointSet, adapter: Adapter) -> dict[str, Any]:
    """What `info` says of opened data."""
    from ..data import Image

    if isinstance(data, Image):
        return {
            "kind": "labels" if data.labels else "image",
            "adapter": adapter.name,
            "name": data.name,
            **_grid_facts(data.grid),
            "dtype": str(data.data.dtype).removeprefix("torch."),
            "channels": list(data.channels),
        }
    finite = data.coords[data.coords.isfinite().all(dim=1)]
    bounds = [finite.amin(0).tolist(), finite.amax(0).tolist()] if len(finite) else []
    return {
        "kind": "points",
        "adapter": adapter.name,
        "name": data.name,
        "n": len(data),
        "axes": "".join(data.axes),
        "unit": data.unit,
        "bounds": bounds,
        "columns": list(data.table),
    }


def _grid_facts(grid: Grid) -> dict[str, Any]:
    return {
        "axes": "".join(grid.axes),
        "shape": list(grid.shape),
        "spacing": list(grid.spacing),
        "origin": list(grid.origin),
        "unit": grid.unit,
    }


def _result_facts(path: Path) -> dict[str, Any]:
    import regframe

    with bad_input():
        result = regframe.load(path)
    metrics = result.metrics
    return {
        "kind": "result",
        "verdict": result.verdict,
        "reasons": list(result.reasons),
        "map": " then ".join(type(part).__name__ for part in result.transform.parts()),
        "fixed": describe_grid(result.fixed_grid),
        "moving": describe_grid(result.moving_grid),
        "metric": (metrics.get("metric") or {}).get("name", result.config.metric),
        "seconds": metrics.get("seconds"),
        "roundtrip_px": metrics.get("roundtrip_px"),
    }


@click.command(short_help="List, check or begin plug-ins.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--check", is_flag=True, help="Test what is installed (NAMEs alone where given); exit code 1 on a failure."
)
@click.option(
    "--new", "new", metavar="NAME", help="Write a package with a metric, an adapter and their tests into ./NAME."
)
@json_option
@verbose_option
@click.pass_context
def plugins(ctx: click.Context, names: tuple[str, ...], check: bool, new: str | None, as_json: bool) -> None:
    """List the adapters and metrics that are installed, and what is wrong with the plug-ins that are left out.

    With --check the kit of `regframe.testing` is run on them: on all, or on those of the NAMEs, each an adapter, a metric, an
    entry point or a package. With --new a package to start from is written, which passes these checks.
    """
    if (check and new is not None) or (names and not check):
        raise BadInput("wanted either --check, with names or without, or --new NAME, got something else; see --help")
    if new is not None:
        _new(new, as_json)
        return
    if check:
        _check(ctx, names, as_json)
        return
    from .. import plugins as found

    providers = found.providers()
    if as_json:
        emit_json(
            {
                kind: [
                    {"name": e.name, "provider": e.provider, "summary": e.summary, "options": list(e.options)}
                    for e in entries
                ]
                for kind, entries in (("adapters", found.adapters()), ("metrics", found.metrics()))
            }
            | {
                "plugins": [
                    {"name": p.name, "distribution": p.distribution, "status": p.status, "problems": list(p.problems)}
                    for p in providers
                ]
            }
        )
        return
    for title, entries in (("adapters", found.adapters()), ("metrics", found.metrics())):
        click.echo(f"{title}:")
        if not entries:
            click.echo("  none")
        for entry in entries:
            click.echo(f"  {entry.name:<12} {entry.summary}")
            options = f"options: {', '.join(entry.options)}; " if entry.options else ""
            click.echo(f"  {'':<12} {options}from {entry.provider}")
    for provider in providers:
        if provider.status != "ok":
            click.echo(f"left out: {provider.name} of {provider.distribution} ({provider.status})")
            for problem in provider.problems:
                click.echo(f"  {problem}")


def _new(name: str, as_json: bool) -> None:
    """Write a package and say what to do with it."""
    from .. import scaffold

    with bad_input():
        folder = scaffold.new_plugin(name, Path.cwd())
    files = sorted(str(path.relative_to(folder.parent)) for path in folder.rglob("*") if path.is_file())
    if as_json:
        emit_json({"folder": folder, "files": files})
        return
    for file in files:
        click.echo(f"wrote {file}")
    click.echo(
        f"next: pip install -e {name}, then `regframe plugins --check {name}` and, in {name}, `python -m pytest`"
    )


def _check(ctx: click.Context, names: tuple[str, ...], as_json: bool) -> None:
    """Run the kit and print a table; exit code 1 where a check failed."""
    from .. import testing

    with bad_input():
        outcomes = testing.check_installed(names)
    done: list[testing.Outcome] = []
    skipped: dict[str, list[str]] = {}
    subject = ""

    def end() -> None:
        for reason, checks in skipped.items():
            click.echo(f"  skipped  {', '.join(checks) if len(checks) < 5 else f'{len(checks)} checks'}: {reason}")
        skipped.clear()

    for outcome in outcomes:
        done.append(outcome)
        if as_json:
            continue
        title = f"{outcome.kind} {outcome.name}, from {outcome.provider}"
        if title != subject:
            end()
            click.echo(title)
            subject = title
        words = outcome.check.replace("_", " ")
        if outcome.status == "skipped":
            skipped.setdefault(outcome.message, []).append(words)
        else:
            click.echo(f"  {'ok' if outcome.status == 'ok' else 'FAILED':<8} {words:<32} {outcome.seconds:6.2f} s")
            if outcome.status == "failed":
                click.echo(f"           {outcome.message}")
    failed = [outcome for outcome in done if outcome.status == "failed"]
    counts = {status: sum(o.status == status for o in done) for status in ("ok", "failed", "skipped")}
    if as_json:
        emit_json({"healthy": not failed, **counts, "checks": [dataclasses.asdict(o) for o in done]})
    else:
        end()
        click.echo(", ".join(f"{n} {status}" for status, n in counts.items()))
    if failed:
        ctx.exit(1)


@click.command(short_help="Check the installation.")
@json_option
@verbose_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Say which versions run, whether the compiled ops are there and right, and what the plug-ins are."""
    import torch

    from .. import ops, outputs
    from .. import plugins as found

    broken = [p for p in found.providers() if p.status == "broken"]
    check = _self_check()
    state: dict[str, Any] = {
        "versions": outputs.versions(),
        "ops": {"built": ops.is_built(), **_build_facts()},
        "host": _importable("regframe._host"),
        "threads": torch.get_num_threads(),
        "cuda": {
            "torch": torch.version.cuda,
            "available": torch.cuda.is_available(),
            "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
        "adapters": sorted({e.name for e in found.adapters()}),
        "metrics": sorted({e.name for e in found.metrics()}),
        "broken_plugins": [f"{p.name} of {p.distribution}: {'; '.join(p.problems)}" for p in broken],
        "check": check,
    }
    healthy = check["ok"] and not broken and ops.is_built()
    if as_json:
        emit_json({"healthy": healthy, **state})
    else:
        _print_state(state)
        click.echo("all is well" if healthy else "something is amiss: see above")
    if not check["ok"]:
        ctx.exit(1)


def _build_facts() -> dict[str, Any]:
    """Which kernels of the compiled ops this machine runs."""
    import os

    import torch

    from .. import ops

    if not ops.is_built():
        return {}
    best = torch.backends.cpu.get_cpu_capability().lower()  # what the dispatch of the ops goes by, too
    isa = os.environ.get("REGFRAME_ISA") or (best if best in ("avx2", "avx512") else "baseline")
    return {"isa": isa, "cuda": torch._C._dispatch_has_kernel_for_dispatch_key("regframe::warp", "CUDA")}


def _importable(name: str) -> bool:
    import importlib

    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def _self_check() -> dict[str, Any]:
    """Warp a small image by the ops and by their reference, and map points there and back."""
    import torch

    from .. import ops, reference

    start = time.perf_counter()
    generator = torch.Generator().manual_seed(0)
    image = torch.rand((2, 48, 40), generator=generator)
    velocity = torch.rand((3, 2, 12, 10), generator=generator) * 4 - 2
    matrix = torch.tensor([[0.98, 0.05, 1.0], [-0.05, 0.98, 2.0]], dtype=torch.float64)
    grid = ((48, 40), (0, 0), (1.0, 1.0), (0.0, 0.0), (4.0, 4.0), (0.0, 0.0), 3)
    error = (ops.warp(image, velocity, matrix, *grid) - reference.warp(image, velocity, matrix, *grid)).abs().max()
    points = torch.rand((500, 2), generator=generator, dtype=torch.float64) * 36
    flow = (velocity.double(), (4.0, 4.0), (0.0, 0.0), 3)
    there = ops.flow_points(points, *flow, False)
    trip = (ops.flow_points(there, *flow, True) - points).abs().max()
    ok = bool(error < 1e-4) and bool(trip < 1e-6)
    seconds = time.perf_counter() - start
    return {"ok": ok, "warp_error": float(error), "roundtrip_px": float(trip), "seconds": round(seconds, 3)}


def _print_state(state: dict[str, Any]) -> None:
    from .. import ops

    click.echo("versions   " + ", ".join(f"{name} {version}" for name, version in state["versions"].items()))
    if state["ops"]["built"]:
        kernels = f"{state['ops']['isa']} kernels{', CUDA kernels' if state['ops']['cuda'] else ''}"
        click.echo(f"ops        compiled, {kernels}")
    else:
        click.echo(f"ops        not compiled, the slow reference runs; build them with `{ops.BUILD_COMMAND}`")
    click.echo(f"host       {'compiled' if state['host'] else 'not compiled'}, {state['threads']} threads")
    cuda = state["cuda"]
    device = ", ".join(cuda["devices"]) if cuda["available"] else "none"
    click.echo(f"cuda       {device} (torch built for {cuda['torch'] or 'the CPU only'})")
    click.echo(f"adapters   {', '.join(state['adapters']) or 'none'}")
    click.echo(f"metrics    {', '.join(state['metrics']) or 'none'}")
    for line in state["broken_plugins"]:
        click.echo(f"broken     {line}")
    check = state["check"]
    click.echo(
        f"check      {'ok' if check['ok'] else 'FAILED'}: warp against its reference {check['warp_error']:.1g}, "
        f"round trip {check['roundtrip_px']:.1g} px, {check['seconds']:.2g} s"
    )
