"""``regframe register``: two files in, one folder out."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..display.bars import Bars
from . import forecast
from ._common import (
    BadInput,
    bad_input,
    device_option,
    emit_json,
    finest_grid,
    finish,
    folder_option,
    input_type,
    json_option,
    level_option,
    open_side,
    overwrite_option,
    parse_pairs,
    path_type,
    require_option,
    save_warped_option,
    say_notes,
    sentence,
    side_options,
    stated,
    verbose_option,
)
from .refine import levels, run_refinement, threads_option

if TYPE_CHECKING:
    from torch import Tensor

    from ..config import Config
    from ..contracts import Adapter
    from ..data import Image, PointSet
    from ..registration import Plan
    from ..remote.address import Remote
    from ..result import Result


@click.command(short_help="Align a moving file to a fixed one.")
@click.argument("fixed", type=input_type)
@click.argument("moving", type=input_type)
@folder_option()
@click.option("--landmarks", type=path_type, metavar="P.csv", help="Pairs: fixed_y, fixed_x, moving_y, moving_x.")
@click.option(
    "--moving-landmarks",
    type=path_type,
    metavar="M",
    help="Points of the moving side, where --landmarks has those of the fixed side alone (tables, .npy, ImageJ's .roi).",
)
@click.option(
    "--metric", metavar="NAME", help="Similarity metric: a name that `regframe plugins` lists, or FILE.py:CLASS."
)
@click.option("--metric-set", metavar="K=V", multiple=True, help="Option of the metric.")
@click.option(
    "--transform", metavar="NAME", help="rigid, similarity, affine or lddmm; the last one, the default, bends."
)
@click.option("--solver", metavar="NAME", help="What registers this kind of pair; chosen by the data otherwise.")
@click.option("--solver-set", metavar="K=V", multiple=True, help="Option of the solver.")
@click.option(
    "--init",
    metavar="auto|runner-up|rotate=90,mirror,scale=2|NAME|FILE",
    help="Start: auto searches, runner-up takes the second best of that search; rotate=90 (degrees counterclockwise), mirror "
    "(left and right), scale=2, or several of these, lay the tissue of both middle on middle; identity or another NAME is a "
    "start that `regframe plugins` lists; FILE is a saved result, or an affine map that `regframe import` reads, e.g. a bare "
    "matrix.  [default: auto]",
)
@click.option("--init-set", metavar="K=V", multiple=True, help="Option of the start.")
@click.option(
    "--init-to",
    type=click.Choice(["fixed", "moving"]),
    help="Side that the map in FILE takes positions to.  [default: fixed for a bare matrix, moving for other programs' files]",
)
@click.option("--init-unit", metavar="U", help="Unit of its numbers, where a side has a length unit: um, px …")
@click.option(
    "--pieces",
    metavar="auto|N|ROWSxCOLS",
    help="The slides lie in pieces (sections, torn parts, cores of a microarray): each gets a map of its own.",
)
@click.option(
    "--config", "config_file", type=path_type, metavar="F.yaml", help="Settings, e.g. a config.resolved.yaml."
)
@click.option("--set", "settings", metavar="A.B=C", multiple=True, help="One setting, e.g. optimizer.max_iter=50.")
@level_option("Pyramid level that is read of both files; chosen by size otherwise.")
@side_options("fixed")
@side_options("moving")
@device_option("Where images are fitted; auto: on a GPU where there is one and they are large.  [default: cpu]")
@click.option(
    "--effort",
    type=click.Choice(["low", "auto", "full"]),
    help="Of the fit of images; low: a preview, full: every level, auto: what loses no accuracy.  [default: auto]",
)
@click.option("--seed", type=click.IntRange(min=0), metavar="N", help="Seed of everything random.")
@click.option("--refine", "refined", is_flag=True, help="Then make the map exact at full resolution, tile by tile.")
@threads_option
@save_warped_option
@overwrite_option
@click.option(
    "--dry-run",
    is_flag=True,
    help="Read and check everything, say what would be done and how long it takes, write nothing.",
)
@require_option
@json_option
@verbose_option
@click.pass_context
def register(ctx: click.Context, /, **options: Any) -> None:
    """Align MOVING to FIXED and write a folder with the map, its figures, a log and a report.

    No landmark and no parameter is needed. FIXED stays where it is; the map takes moving positions to fixed positions
    and back.
    """
    out: Path = options["out"]
    as_json: bool = options["as_json"]
    config = resolved_config(options)
    metric = _metric(config)
    with bad_input():
        from ..io import outputs

        outputs.check_folder(out, options["overwrite"], _read(options))
    fixed, fixed_adapter, fixed_run = _open("fixed", options)
    moving, moving_adapter, moving_run = _open("moving", options)
    _say_dimensions(options["fixed"].name, fixed, options["moving"].name, moving)
    init = _init(options, fixed, moving)
    run: dict[str, Any] = {
        "fixed": fixed_run,
        "moving": moving_run,
        "landmarks": None if options["landmarks"] is None else options["landmarks"].resolve(),
        "init": options["init"] or config.init,
    }
    if options["moving_landmarks"] is not None:
        run["moving_landmarks"] = options["moving_landmarks"].resolve()
    if options["pieces"] is not None:
        run["pieces"] = _pieces(options)
    if options["workers"] is not None and not options["refined"]:
        raise BadInput("wanted --refine beside --workers, got --workers alone; leave it out")
    sides = levels(run) if options["refined"] else None
    import regframe

    from .. import strangers
    from ..registration import planned

    if options["dry_run"]:
        with bad_input(), strangers.named():
            plan = planned(fixed, moving, metric, init, config)
        if options["save_warped"]:
            forecast.check_writer(moving_adapter, moving, options["moving"], out)
        _dry_run(out, plan, (fixed_adapter, moving_adapter), run, options["refined"], as_json)
        return

    from ..report import results

    if not sys.stderr.isatty():
        click.echo(f"aligning {options['moving'].name} to {options['fixed'].name}", err=True)
    with Bars() as progress, bad_input():
        if options["pieces"] is not None:
            result = regframe.register_pieces(fixed, moving, pieces=options["pieces"], config=config, progress=progress)
        else:
            result = regframe.register(fixed, moving, metric=metric, init=init, config=config, progress=progress)
    if sides is not None:
        result = run_refinement(result, sides, options["workers"], config.device)
    with bad_input():
        warped = [_saver(moving_adapter, options["moving"], result)] if options["save_warped"] else []
        results.write_run(out, result, (fixed, moving), run, options["overwrite"], *warped)
    if as_json:
        emit_json({**result.metrics, "output": str(out)})
    else:
        _summary(result, out)
    finish(result.metrics, ctx, options["require"])


def _pieces(options: Mapping[str, Any]) -> str:
    """What ``--pieces`` says, checked, and that nothing beside it asks for one map of the whole."""
    from ..pieces.align import asked

    for name, value in (("--landmarks", options["landmarks"]), ("--init", options["init"])):
        if value is not None and value != "auto":
            raise BadInput(
                f"wanted --pieces alone, whose starts are found piece by piece, got {name} too; leave it out"
            )
    if options["refined"]:
        raise BadInput(
            "wanted --pieces without --refine, which mends one map of the whole slide, got both; leave one out"
        )
    with bad_input():
        asked(options["pieces"])
    return str(options["pieces"])


def _read(options: Mapping[str, Any]) -> list[Any]:
    """Every file that the options name to be read."""
    names = ("fixed", "moving", "landmarks", "moving_landmarks", "config_file", "fixed_mask", "moving_mask")
    return [options[name] for name in names if options.get(name) is not None]


def resolved_config(options: dict[str, Any]) -> Config:
    """The settings from the file, overridden by ``--set``, overridden by the options that have names of their own."""
    from .. import gate

    values: dict[str, Any] = {}
    path: Path | None = options["config_file"]
    if path is not None:
        with bad_input():
            values = gate.read_yaml(path) or {}
            if not isinstance(values, dict):
                raise BadInput(f"wanted settings by name in {path}, got {type(values).__name__}")
        for extra in ("versions", "run"):  # entries of config.resolved.yaml that are not settings
            values.pop(extra, None)
    for key, value in parse_pairs(options["settings"], "--set").items():
        section = values
        *parents, last = key.split(".")
        for parent in parents:
            child = section.setdefault(parent, {})
            if not isinstance(child, dict):
                raise BadInput(f"wanted a group of settings at {parent!r} for --set {key}, got the value {child!r}")
            section = child
        section[last] = value
    for name in ("metric", "transform", "device", "effort", "seed", "solver"):
        if options.get(name) is not None:
            if name in _WITH_OPTIONS and options[name] != values.get(name):
                values.pop(f"{name}_options", None)
            values[name] = options[name]
    named = options.get("init")
    if options.get("landmarks") is not None or (named is not None and named != values.get("init")):
        values.pop("init_options", None)
        values["init"] = named if named is not None and _names_start(named) else "auto"
    for name in _WITH_OPTIONS:
        if options.get(f"{name}_set"):
            said = parse_pairs(options[f"{name}_set"], f"--{name}-set")
            values[f"{name}_options"] = {**(values.get(f"{name}_options") or {}), **said}
    from ..config import Config
    from ..registration import settled

    with bad_input():
        return settled(Config.model_validate(values), None)


_WITH_OPTIONS = ("metric", "init", "solver")
"""Settings that name a class of a plug-in, whose options stand beside them: ``metric_options`` of ``metric``."""


def _names_start(init: str) -> bool:
    """Whether a value of ``--init`` names a start, and no file."""
    from ..formats import starts

    with bad_input():
        return starts.names_start(init)


def _metric(config: Config) -> Any:
    """The metric that was named; None where it is to be chosen from the data."""
    import regframe

    with bad_input():
        if config.metric == "auto":
            if config.metric_options:
                raise ValueError("wanted --metric beside --metric-set, got options alone; name the metric they are for")
            return None
        return regframe.metric(config.metric, **config.metric_options)


def _open(side: str, options: dict[str, Any]) -> tuple[Image | PointSet, Adapter, dict[str, Any]]:
    path: Path | Remote = options[side]
    name = options[f"{side}_adapter"]
    data, adapter, chosen = open_side(path, name, stated(side, options), options["level"])
    say_notes(adapter, path, side)
    reading = getattr(data, "reading", None)
    if reading is not None:
        click.echo(f"{side}: {path.name} read at {reading}: {describe(data)}", err=True)
    return data, adapter, {"path": path.resolve(), "adapter": adapter.name, "options": chosen}


def _say_dimensions(fixed_name: str, fixed: Image | PointSet, moving_name: str, moving: Image | PointSet) -> None:
    """Say on stderr, before a fit begins, that the fixed side is a plane and the moving one a volume."""
    from ..data import Image

    if not (isinstance(fixed, Image) and isinstance(moving, Image)) or fixed.grid.ndim >= moving.grid.ndim:
        return
    click.echo(
        f"the sides differ in dimension: {fixed_name} is one plane ({describe(fixed)}), {moving_name} a volume "
        f"({describe(moving)}), in which that plane is searched for; --moving-set z=K takes one of its planes instead",
        err=True,
    )


def _init(options: dict[str, Any], fixed: Image | PointSet, moving: Image | PointSet) -> Any:
    """The argument ``init`` of `regframe.register`: landmarks, a saved result, or a word."""
    init: str | None = options["init"]
    landmarks: Path | None = options["landmarks"]
    if landmarks is None and options["moving_landmarks"] is not None:
        raise BadInput("wanted --landmarks of the fixed side beside --moving-landmarks, got one side; give both")
    if landmarks is not None:
        if init not in (None, "auto"):
            raise BadInput(f"wanted one start, got --landmarks and --init {init}; leave one out")
        with bad_input():
            return _landmarks(landmarks, fixed, moving, options)
    stated = [name for name in ("init_to", "init_unit") if options[name] is not None]
    if stated and not (init is not None and Path(init).is_file()):
        raise BadInput(f"wanted --init FILE beside --{stated[0].replace('_', '-')}, got --init {init}; leave it out")
    return None if init is None or _names_start(init) else _start(init, options, fixed, moving)


def _start(init: str, options: dict[str, Any], fixed: Image | PointSet, moving: Image | PointSet) -> Any:
    """The start in a saved result or in another program's file; says how a bare matrix was taken."""
    from ..formats import starts

    path = Path(init)
    with bad_input():
        if not path.is_file():
            return starts.saved(path)
        try:
            result, said = starts.of_file(path, fixed, moving, to=options["init_to"], unit=options["init_unit"])
        except ImportError as error:
            raise BadInput(sentence(error)) from error
    if said:
        click.echo(f"start: {said}; --init-to and --init-unit say it is otherwise", err=True)
    return result


def _own_grid(side: str, options: dict[str, Any]) -> Any:
    return finest_grid(options[side], options[f"{side}_adapter"], stated(side, options))


def _landmarks(path: Path, fixed: Image | PointSet, moving: Image | PointSet, options: dict[str, Any]) -> Any:
    """The pairs of a table; pixels of an image with a length unit are those of its finest level."""
    import torch

    import regframe

    from ..data import Image, PointSet, describe_grid, unit_ratio
    from ..io.tables import to_unit_of

    fixed_points, moving_points, units = regframe.read_landmarks(path, options["moving_landmarks"])
    sides = {"fixed": fixed, "moving": moving}

    def placed(side: str, coords: Tensor, unit: str | None) -> Tensor:
        """Positions of a side in its unit."""
        data = sides[side]
        points = PointSet(coords, unit or (data.grid.unit if isinstance(data, Image) else data.unit))
        if not isinstance(data, Image):
            ratio = unit_ratio(points.unit, data.unit)
            if ratio is None:
                raise ValueError(
                    f"wanted {side} landmarks of {path} in {data.unit}, as the positions of {side}, got {points.unit}; convert "
                    f"them, or state the unit of the table (--{side}-set unit={points.unit})"
                )
            return points.coords * ratio
        of_file = points.unit == "px" != data.grid.unit
        return to_unit_of(points, (_own_grid(side, options) if of_file else None) or data.grid).coords

    def outside(side: str, coords: Tensor) -> list[int]:
        """Rows that lie outside of an image."""
        data = sides[side]
        inside = data.grid.contains(coords) if isinstance(data, Image) else torch.ones(len(coords), dtype=torch.bool)
        return [int(row) for row in (~inside).nonzero().flatten()]

    pairs = {"fixed": placed("fixed", fixed_points, units[0]), "moving": placed("moving", moving_points, units[1])}
    for side, data in sides.items():
        wrong = outside(side, pairs[side])
        if not wrong or not isinstance(data, Image):
            continue
        where = ", ".join(f"{v:.6g}" for v in pairs[side][wrong[0]].tolist())
        likely = ""
        if not outside(side, pairs[side].flip(1)):
            likely = "; with x and y exchanged all lie inside: exchange the columns"
        elif not outside("fixed", placed("fixed", moving_points, units[1])) and not outside(
            "moving", placed("moving", fixed_points, units[0])
        ):
            likely = "; with both sides exchanged all lie inside: exchange the columns fixed_… and moving_…"
        raise ValueError(
            f"wanted landmarks of {path} inside the {side} image ({describe_grid(data.grid)}), "
            f"got ({where}) in row {wrong[0] + 1}; check the order of the axes and the unit{likely}"
        )
    return regframe.landmarks(fixed=pairs["fixed"], moving=pairs["moving"])


def _saver(adapter: Adapter, source: Path | Remote, result: Result) -> Any:
    def save(folder: Path) -> None:
        from .. import plugins
        from ..data import Image

        data = adapter.apply(source, result.transform, result.fixed_grid)
        suffix = ".csv" if source.is_dir() else "".join(source.suffixes[-2:])
        name = "warped.ome.zarr" if isinstance(data, Image) else "warped" + suffix
        plugins.find_writer(adapter, data, folder / name, source).save(data, folder / name)

    return save


def _dry_run(
    out: Path, plan: Plan, adapters: tuple[Adapter, Adapter], run: dict[str, Any], refined: bool, as_json: bool
) -> None:
    from .inspect import facts

    task, config = plan.task, plan.task.config
    sides = {"fixed": task.fixed, "moving": task.moving}
    places = {"fixed": run["fixed"]["path"], "moving": run["moving"]["path"]}
    tiles = {side: forecast.decode(places[side], run[side]["adapter"], run[side]["options"], refined) for side in sides}
    estimated = forecast.facts(plan)
    if as_json:
        opened = {side: facts(data, adapter) for (side, data), adapter in zip(sides.items(), adapters, strict=True)}
        emit_json({
            "dry_run": True, "output": str(out), **opened, "config": config.model_dump(mode="json"), "run": run,
            "solver": plan.solver.name, "doubts": [doubt.words for doubt in plan.doubts], "estimated": estimated,
        })  # fmt: skip
        return
    for (side, data), adapter in zip(sides.items(), adapters, strict=True):
        reading = getattr(data, "reading", None)
        at = f", read at {reading}" if reading is not None else ""
        tile = (
            f"; a tile of {'each level' if refined else 'the finest level'} was decoded" if at and tiles[side] else ""
        )
        click.echo(f"{side:<7} {places[side]} ({adapter.name}): {describe(data)}{at}{tile}")
    click.echo(
        f"memory  {sum(map(_bytes, sides.values())) / 1e6:.3g} MB of pixels or positions were read; a run takes about "
        f"{estimated['bytes'] / 1e9:.1f} GB in all"
    )
    more = "; what --refine takes comes on top" if refined else ""
    if "seconds_as_cells" in estimated:
        more += f"; some {forecast.spoken(estimated['seconds_as_cells'])} more where they are not the same points on both sides"
    click.echo(
        f"time    about {forecast.spoken(estimated['seconds'])} (half or twice that as a rule), at the speed that this machine "
        f"has right now{more}"
    )
    start = f"landmarks of {run['landmarks']}" if run["landmarks"] else run["init"]
    click.echo(f"start   {start}")
    click.echo(
        f"map     {config.transform} by the solver {plan.solver.name}, metric {config.metric}, device {config.device}, seed "
        f"{config.seed}" + (f", effort {config.effort}" if config.effort != "auto" else "")
    )
    for doubt in plan.doubts:
        click.echo(f"doubt   {doubt.words}")
    click.echo(f"output  {out} (nothing was computed or written)")


def _bytes(data: Image | PointSet) -> int:
    from ..data import Image

    return (data.data if isinstance(data, Image) else data.coords).nbytes


def describe(data: Image | PointSet) -> str:
    """One side, in a few words."""
    from ..data import Image, describe_grid

    if isinstance(data, Image):
        n = len(data.channels)
        return f"{describe_grid(data.grid)}, {n} channel{'' if n == 1 else 's'}, {str(data.data.dtype)[6:]}"
    return f"{len(data)} points in {data.unit}"


def _summary(result: Result, out: Path) -> None:
    from ..verdict import headline

    click.echo(repr(result))
    for reason in result.reasons:
        click.echo(f"  {reason}")
    click.echo(f"wrote {out} (report: {out / 'report.html'})")
    click.echo(headline(result.verdict, result.confidence))
