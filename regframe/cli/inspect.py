"""``regframe info``, ``plugins`` and ``doctor``: what a file is, what is installed, whether it works."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..gate.screen import printable
from . import folders
from ._common import (
    BadInput,
    adapter_options,
    bad_input,
    emit_json,
    input_type,
    json_option,
    open_levels,
    open_side,
    overwrite_option,
    path_type,
    verbose_option,
)
from .leftovers import extras, left_over

if TYPE_CHECKING:
    from ..contracts import Adapter
    from ..data import Grid, Image, PointSet, Pyramid, Series
    from ..plugins import Entry
    from ..remote.address import Remote

_THUMBNAIL = 512
"""Largest number of pixels along the longer side of a thumbnail."""
_READ = 64 << 30
"""Largest number of bytes of an image that are read for a thumbnail: some minutes from a disk."""


@click.command(short_help="Say what a file or a result is.")
@click.argument("path", type=input_type)
@click.option("--adapter", metavar="NAME", help="Adapter; sniffed otherwise.")
@click.option("--set", "pairs", metavar="K=V", multiple=True, help="Option of the adapter.")
@click.option("--thumbnail", type=path_type, metavar="FILE.png", help="Write a small picture of an image.")
@overwrite_option
@json_option
@verbose_option
def info(
    path: Path | Remote,
    adapter: str | None,
    pairs: tuple[str, ...],
    thumbnail: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Say how regframe reads PATH: levels, size, spacing, channels, adapter; or what a result holds.

    Of an image the metadata are read, whatever its size, and where a level is small enough to be registered as it is, its
    pixels, for the share of them that holds no data.
    """
    from ..io import outputs

    with bad_input():
        if thumbnail is not None:
            if thumbnail.suffix.lower() != ".png":
                raise ValueError(f"wanted a thumbnail ending in .png, got {str(thumbnail)!r}; change its name")
            outputs.check_file(thumbnail, overwrite, [path])
    if isinstance(path, Path) and (outputs.is_output(path) or path.name == outputs.TRANSFORM):
        found, pyramid = _result_facts(path), None
    elif isinstance(path, Path) and (several := folders.of(path)) is not None:
        found, pyramid = {"kind": several.kind, "report": several.page, "results": several.results}, None
    else:
        options = adapter_options(pairs, "--set")
        pyramid, reader = open_levels(path, adapter, options)
        if pyramid is not None:
            found = _pyramid_facts(pyramid, reader) | _no_data(pyramid, reader, path, bool(options))
        else:
            found = facts(open_side(path, adapter, options)[0], reader)
            with bad_input():
                found |= {"notes": list(notes)} if (notes := reader.notes(path)) else {}
    if thumbnail is not None:
        if pyramid is None:
            raise BadInput(f"wanted an image for --thumbnail, got {found['kind']} in {path}")
        with bad_input(), outputs.staged(thumbnail, overwrite) as aside:
            _draw(pyramid, aside)
        click.echo(f"wrote {thumbnail}", err=True)
    if pyramid is not None and pyramid.grid.unit == "px":
        what = "pixel size" if set(pyramid.grid.spacing) == {1.0} else "unit of length for its pixel size"
        click.echo(f"Warning: {path.name} declares no {what}; its positions are in pixels until it is stated", err=True)
    if as_json:
        emit_json({"path": path, **found})
        return
    for name, value in found.items():
        if name in ("levels", "series", "notes"):
            _LINES[name](value, found["unit"])
            continue
        if name == "no_data":
            name, value = "no data", _shares(value)
        if isinstance(value, dict):
            value = ", ".join(f"{k} {_short(v)}" for k, v in value.items())
        elif isinstance(value, (list, tuple)):
            value = ", ".join(_short(v) for v in value)
        _say(f"{name:<10} {value}")


def _say(line: str) -> None:
    """Print a line with words out of a file, which may not move the terminal's cursor."""
    click.echo(printable(line))


def _shares(found: dict[str, float]) -> str:
    """Shares of the canvas without data, in words."""
    words = {
        "nan": "not a number",
        "nodata": f"{found.get('nodata_value', 0):g}",
        "padded": "filled up",
        "masked": "hidden",
    }
    told = [f"{found[name]:.2%} {word}" for name, word in words.items() if found[name] > 0]
    return ", ".join(told) or "none found"


def _print_levels(levels: list[dict[str, Any]], unit: str) -> None:
    """Print one line for each resolution."""
    for k, level in enumerate(levels):
        share = f"chunks of {_short(level['chunk'])}, {_size(level['bytes'])}"
        note = ", registered on" if level["registered_on"] else ""
        if note and max(level["averaged"]) > 1:
            note += f" averaged over {_short(level['averaged'])}"
        _say(f"level {k:<4} {_short(level['shape'])} px of {_short(level['spacing'])} {unit}, {share}{note}")


def _print_series(series: list[dict[str, Any]], _: str) -> None:
    """Print one line for each image of a file."""
    for one in series:
        sizes = dict(zip(one["axes"], one["shape"], strict=True))
        size = _short([n for a, n in sizes.items() if a in "zyx" and (n > 1 or a in "yx")])
        also = "".join(f", {n} {word}" for a, word in _MANY.items() if (n := sizes.get(a, 1)) > 1)
        known = all(s is not None for s in one["spacing"])
        spacing = f" of {_short(one['spacing'])} {one['unit']}" if known else ""
        role = "" if one["role"] == "image" else f", {one['role']}"
        mark = ", read" if one["read"] else ""
        _say(f"series {one['number']:<3} {one['name'] or '(no name)'}: {size} px{spacing}{also}{role}{mark}")


def _print_notes(notes: list[str], _: str) -> None:
    """Print one line for each remark on how a file was read."""
    for note in notes:
        _say(f"{'note':<10} {note}")


_LINES: dict[str, Callable[[Any, str], None]] = {
    "levels": _print_levels,
    "series": _print_series,
    "notes": _print_notes,
}
"""How facts that take one line each are printed."""
_MANY = {"t": "times", "c": "channels", "s": "samples"}
"""Axes of an image that are no directions, and what their entries are."""


def _size(n: int) -> str:
    """A number of bytes in a readable unit."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n < 1000 or unit == "TB":
            break
        n /= 1000  # type: ignore[assignment]
    return f"{n:.3g} {unit}"


def _draw(pyramid: Pyramid, path: Path) -> None:
    """Write a thumbnail of at most `_THUMBNAIL` pixels a side.

    It shows the colours of a brightfield image, else the mean of the channels, stretched; of a volume the middle plane.
    """
    import numpy as np
    from PIL import Image as Pillow

    from ..slides.levels import read_level

    sizes = [max(level.grid.shape[-2:]) for level in pyramid.levels]
    level = max((k for k, size in enumerate(sizes) if size >= _THUMBNAIL), default=0)
    grid = pyramid.levels[level].grid
    n_bytes = math.prod(grid.shape[-2:]) * len(pyramid.channels) * pyramid.dtype.itemsize
    if n_bytes > _READ:
        raise ValueError(
            f"wanted at most {_size(_READ)} to read for a thumbnail, got {_size(n_bytes)} in the coarsest level that has "
            f"{_THUMBNAIL} pixels; give the image more levels"
        )
    if grid.ndim == 3:
        pyramid, level = _middle_plane(pyramid, level), 0
    factor = max(1, -(-max(grid.shape[-2:]) // _THUMBNAIL))
    array = read_level(pyramid, level, (factor, factor)).data.numpy()  # [C, h, w]
    if pyramid.channels != ("red", "green", "blue") or array.dtype != np.uint8:
        grey = array.astype(np.float32).mean(axis=0)
        low, high = np.quantile(grey, [0.001, 0.999])
        array = (np.clip((grey - low) / max(float(high - low), 1e-12), 0, 1) * 255).astype(np.uint8)[None]
    Pillow.fromarray(array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)).save(path, format="PNG")


def _middle_plane(pyramid: Pyramid, level: int) -> Pyramid:
    """The plane in the middle of one level of a volume, as a pyramid of one level."""
    from ..data import Grid, Level

    volume = pyramid.levels[level]
    grid, z = volume.grid, volume.grid.shape[0] // 2
    flat = Grid(grid.shape[1:], grid.spacing[1:], grid.origin[1:], grid.unit)
    plane = Level(
        flat, (volume.chunk[0], *volume.chunk[2:]), lambda region: volume.read((slice(z, z + 1), *region))[:, 0]
    )
    return dataclasses.replace(pyramid, levels=(plane,))


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " × ".join(_short(v) for v in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def facts(data: Image | PointSet, adapter: Adapter) -> dict[str, Any]:
    """The output of `info` on opened data."""
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


def _pyramid_facts(pyramid: Pyramid, adapter: Adapter) -> dict[str, Any]:
    """The output of `info` on an image, from its metadata alone."""
    from ..slides.levels import choose_level

    chosen, factor = (0, (1,) * pyramid.grid.ndim) if pyramid.labels else choose_level(pyramid)
    return {
        "kind": "labels" if pyramid.labels else "image",
        "adapter": adapter.name,
        "name": pyramid.name,
        **_grid_facts(pyramid.grid),
        "dtype": str(pyramid.dtype),
        "channels": list(pyramid.channels),
        **({"colors": list(pyramid.colors)} if pyramid.colors else {}),
        "levels": [
            {
                "shape": list(level.grid.shape),
                "spacing": list(level.grid.spacing),
                "origin": list(level.grid.origin),
                "chunk": list(level.chunk),
                "bytes": math.prod(level.grid.shape) * len(pyramid.channels) * pyramid.dtype.itemsize,
                "registered_on": k == chosen,
                "averaged": list(factor) if k == chosen else [1] * pyramid.grid.ndim,
            }
            for k, level in enumerate(pyramid.levels)
        ],
        **({"series": [_series_facts(one) for one in pyramid.series]} if pyramid.series else {}),
        **({"notes": list(pyramid.notes)} if pyramid.notes else {}),
    }


def _series_facts(one: Series) -> dict[str, Any]:
    """The fields of a `Series`, None where its file declares no spacing along an axis."""
    spacing = [s if math.isfinite(s) else None for s in one.spacing]
    return dataclasses.asdict(one) | {"shape": list(one.shape), "spacing": spacing}


def _no_data(pyramid: Pyramid, adapter: Adapter, path: Path | Remote, stated: bool) -> dict[str, Any]:
    """Shares of the canvas that hold no data, as a registration finds them; nothing for labels, for what is too large to be read
    for this, and for what cannot be registered.

    ``stated`` says that the adapter has options, such as a mask. Most pictures have no such pixels, which is seen without torch.
    """
    from ..slides.levels import choose_level
    from ..solvers.plain import plain
    from ..strangers import provider_of

    chosen, factor = choose_level(pyramid)
    if pyramid.labels or max(factor) > 1:
        return {}
    if not stated and not provider_of(adapter):
        with contextlib.suppress(ValueError, OSError):
            level = pyramid.levels[chosen]
            if plain(level.read(tuple(slice(0, n) for n in level.grid.shape))):
                return {"no_data": dict.fromkeys(("nan", "nodata", "padded", "masked"), 0.0)}
    from ..data import Image
    from ..solvers.preparation import prepare

    try:
        image = adapter.open(path)
    except ValueError:  # damaged, or infinite somewhere: what reads the pixels says so
        return {}
    assert isinstance(image, Image)
    look = prepare(image)[1]
    shares = {name: getattr(look, f"{name}_fraction") for name in ("nan", "nodata", "padded", "masked")}
    value = {} if look.nodata_value is None else {"nodata_value": look.nodata_value}
    return {"no_data": {name: round(share, 6) for name, share in shares.items()} | value}


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

    from ..data import describe_grid

    with bad_input():
        result = regframe.load(path)
    metrics = result.metrics
    return {
        "kind": "result",
        "verdict": result.verdict,
        "confidence": result.confidence,
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
@click.option(
    "--kind", "kinds", metavar="KIND", multiple=True,
    help="What --new writes instead: metric, adapter, solver, start or format; may be repeated.",
)  # fmt: skip
@json_option
@verbose_option
@click.pass_context
def plugins(
    ctx: click.Context, names: tuple[str, ...], check: bool, new: str | None, kinds: tuple[str, ...], as_json: bool
) -> None:
    """List what plug-ins provide: adapters, metrics, solvers, starts, formats of maps; and what is wrong with those left out.

    With --check the kits of `regframe.testing` are run on them: on all, or on those of the NAMEs, each of a class, an
    entry point or a package. With --new a package to start from is written, which passes these checks.
    """
    if (check and new is not None) or (names and not check):
        raise BadInput("wanted either --check, with names or without, or --new NAME, got something else; see --help")
    if kinds and new is None:
        raise BadInput("wanted --new NAME beside --kind, got --kind alone; name the package to write")
    if new is not None:
        _new(new, kinds, as_json)
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
                for kind, entries in _provided()
            }
            | {"doors": [{"kind": kind, "name": name, "provider": provider} for kind, name, provider in _small_doors()]}
            | {
                "plugins": [
                    {"name": p.name, "distribution": p.distribution, "status": p.status, "problems": list(p.problems)}
                    for p in providers
                ]
            }
        )
        return
    for title, entries in _provided():
        click.echo(f"{title}:")
        if not entries:
            click.echo("  none")
        for entry in entries:
            click.echo(f"  {entry.name:<12} {entry.summary}")
            options = f"options: {', '.join(entry.options)}; " if entry.options else ""
            click.echo(f"  {'':<12} {options}from {entry.provider}")
    for kind, name, provider_of in _small_doors():
        click.echo(f"{kind}:  {name}, from {provider_of}")
    for provider in providers:
        if provider.status != "ok":
            click.echo(f"left out: {provider.name} of {provider.distribution} ({provider.status})")
            for problem in provider.problems:
                click.echo(f"  {problem}")


def _provided() -> Iterator[tuple[str, tuple[Entry, ...]]]:
    """Every kind of class that plug-ins provide, in the plural, and the classes."""
    from .. import plugins as found

    for kind in found.KINDS:
        yield f"{kind}s", found.entries(kind)


def _small_doors() -> Iterator[tuple[str, str, str]]:
    """What packages add by name alone: its kind (``commands``, ``back ends``, ``sections``), name and package."""
    from ..strangers import doors

    for kind, group in doors.GROUPS.items():
        for name, point in doors.points(group).items():
            yield kind, name, doors.package(point)


def _new(name: str, kinds: tuple[str, ...], as_json: bool) -> None:
    """Write a new plug-in package and print what to do with it."""
    from ..testing import scaffold

    with bad_input():
        folder = scaffold.new_plugin(name, Path.cwd(), kinds or scaffold.DEFAULT)
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
    """Run the kit and print a table; exit code 1 where a check has failed."""
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
@click.argument("folder", type=path_type, required=False)
@click.option("--clean", is_flag=True, help="Remove what interrupted runs left in FOLDER (here, where not given).")
@json_option
@verbose_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool, folder: Path | None, clean: bool) -> None:
    """Say which versions run, whether the compiled ops are there and right, and what the plug-ins are.

    Also named is what interrupted runs left in FOLDER; --clean removes what no process writes to any more. An unfinished
    slide (NAME.partial) is named, and kept: the command that began it goes on with it.
    """
    import torch

    from .. import devices, machine, ops
    from .. import plugins as found
    from ..io import outputs
    from ..versions import versions

    broken = [p for p in found.providers() if p.status == "broken"]
    check = _self_check()
    state: dict[str, Any] = {
        "versions": versions(*outputs.VERSIONS),
        "ops": {"built": ops.is_built(), **_build_facts()},
        "host": _importable("regframe._host"),
        "threads": torch.get_num_threads(),
        "cuda": {
            "torch": torch.version.cuda,
            "available": torch.cuda.is_available(),
            "devices": devices.found(),
            "ready": bool(devices.found()) and ops.is_built() and ops.has_kernel("cuda"),
        },
        **{kind: sorted({e.name for e in entries}) for kind, entries in _provided()},
        "broken_plugins": [f"{p.name} of {p.distribution}: {'; '.join(p.problems)}" for p in broken],
        "check": check,
        "extras": extras(),
        "cores": machine.cores(),
        "processor": {
            "machine": os.cpu_count(),
            "allowed": machine.allowed(),
            "quota": machine.quota(),
            "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
            "threads_wait": machine.waiting(),
        },
    }
    with bad_input():
        state["left_over"] = left_over(folder or Path(), clean)
    healthy = check["ok"] and not broken and ops.is_built()
    if as_json:
        emit_json({"healthy": healthy, **state})
    else:
        _print_state(state)
        click.echo("all is well" if healthy else "something is amiss: see above")
    if not check["ok"]:
        ctx.exit(1)


def _processor(found: dict[str, Any]) -> str:
    """What was found of the processor, in words."""
    words = [f"{found['machine']} cores, {found['allowed']} allowed"]
    words += [] if found["quota"] is None else [f"time for {found['quota']:g} of them (control group)"]
    words += [] if found["load"] is None else [f"load {found['load']:g}"]
    return ", ".join([*words, f"threads that wait are {found['threads_wait']}"])


def _build_facts() -> dict[str, Any]:
    """Which kernels of the compiled ops run on this machine."""
    import torch

    from .. import ops
    from ..testing.bench import instruction_set

    if not ops.is_built():
        return {}
    return {"isa": instruction_set(), "cuda": torch._C._dispatch_has_kernel_for_dispatch_key("regframe::warp", "CUDA")}


def _importable(name: str) -> bool:
    import importlib

    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def _self_check() -> dict[str, Any]:
    """Warp a small image by the ops and by their reference, and map points to the other side and back."""
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


def _gpus(cuda: dict[str, Any]) -> str:
    """What was found of GPUs, in words."""
    made = f"torch built for {cuda['torch'] or 'the CPU only'}"
    if not cuda["devices"]:
        return f"none ({made}): fits run on the CPU"
    named = ", ".join(f"cuda:{i} {name}" for i, name in enumerate(cuda["devices"]))
    kernels = (
        "with kernels" if cuda["ready"] else "WITHOUT kernels of this build, so that fits there are slow: build it anew"
    )
    return f"{named} ({made}), {kernels}; --device cuda or auto uses it"


def _print_state(state: dict[str, Any]) -> None:
    from .. import ops

    click.echo("versions   " + ", ".join(f"{name} {version}" for name, version in state["versions"].items()))
    if state["ops"]["built"]:
        kernels = f"{state['ops']['isa']} kernels{', CUDA kernels' if state['ops']['cuda'] else ''}"
        click.echo(f"ops        compiled, {kernels}")
    else:
        click.echo(f"ops        not compiled, the slow reference runs; build them with `{ops.BUILD_COMMAND}`")
    click.echo(
        f"host       {'compiled' if state['host'] else 'not compiled'}, {state['threads']} threads on {state['cores']} cores"
    )
    click.echo(f"processor  {_processor(state['processor'])}")
    cuda = state["cuda"]
    click.echo(f"cuda       {_gpus(cuda)}")
    click.echo(f"adapters   {', '.join(state['adapters']) or 'none'}")
    click.echo(f"metrics    {', '.join(state['metrics']) or 'none'}")
    click.echo(f"extras     {', '.join(name for name, there in state['extras'].items() if there) or 'none'}")
    for one in state["left_over"]:
        owner = f" of {one['owner']}" if one["owner"] else ""
        click.echo(f"left over  {one['path']}: {one['state']}{owner}, {one['action']}")
    for line in state["broken_plugins"]:
        click.echo(f"broken     {line}")
    check = state["check"]
    click.echo(
        f"check      {'ok' if check['ok'] else 'FAILED'}: warp against its reference {check['warp_error']:.1g}, "
        f"round trip {check['roundtrip_px']:.1g} px, {check['seconds']:.2g} s"
    )
