"""`register`: opens both sides, chooses the solver for this kind of pair, fits, judges the fit and returns a `Result`."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch

from . import devices, plugins, strangers, verdict
from .config import Config
from .contracts import Fitted, Metric, Progress, Solver, Task
from .data import Image, PointSet, unit_ratio
from .display.bars import shown
from .formats import starts
from .maps.affine import Affine
from .result import Result
from .solvers.far import brought_near, check_place
from .starts.exchanged import exchanged, fit_exchanged
from .starts.given import check_sides, first_pose, given
from .starts.identity import unit_of
from .starts.landmarks import Landmarks
from .starts.stated import RUNNER_UP
from .starts.stated import said as said_in
from .verdict import Finding
from .versions import versions


def register(
    fixed: Any,
    moving: Any,
    *,
    metric: Metric | str | None = None,
    transform: str | None = None,
    init: Any = None,
    config: Config | None = None,
    device: str | None = None,
    effort: str | None = None,
    progress: bool | Callable[[Progress], object] | None = None,
) -> Result:
    """Align ``moving`` to ``fixed``; nothing has to be set.

    Args:
        fixed: an `Image` or a `PointSet`, or anything `regframe.open` reads; it stays where it is. Points against an
            image are drawn as a density (see `regframe.solvers.mixed`).
        moving: an `Image` or a `PointSet`, or anything `regframe.open` reads; it is brought onto the fixed one.
        metric: a metric by name or as an instance; ``config.metric`` where None. The name ``auto`` leaves the choice to the
            solver: mutual information for two stained sections, `contrast` for other images, the `mixture` for two point sets.
            ``metrics["metric"]`` of the result says which metric was used and why.
        transform: model of the map, simplest first: ``rigid``, ``similarity``, ``affine`` or ``lddmm`` (affine plus a smooth
            bend); ``config.transform`` where None.
        init: where the fit begins: ``"auto"`` (a search over turn, mirror and shift), ``"runner-up"`` (the second best that this
            search found), ``"rotate=90"``, ``"mirror"``, ``"scale=2"`` or several (``"rotate=90,mirror"``; see
            `regframe.starts.stated`), the name of a start (``"identity"`` …), the path of a saved result or of an affine map that
            `regframe.read_map` reads, `regframe.landmarks`, an affine `Transform` from moving to fixed (`regframe.Affine` of a
            matrix), or an earlier `Result`. Of results only the affine part is used; ``config.init`` where None. The settings of
            the result state it in numbers, so that they repeat the run.
        config: all settings that have no argument here; the defaults where None.
        device: where the fit of images runs: ``cpu``, ``cuda``, ``cuda:N``, or ``auto`` (a GPU where there is one and the images
            are large enough to gain by it); ``config.device`` where None. Points are fitted on the CPU. ``metrics["device"]`` of
            the result says where it ran.
        effort: of the fit of images: ``low`` (a preview, whose finest level has at most `regframe.config.PREVIEW` pixels),
            ``full`` (every level), or ``auto``, which does what loses no accuracy: every level, too, so far; ``config.effort``
            where None. ``metrics["effort"]`` of the result says how fine the fit went, and how far its last level moved things.
        progress: True draws bars; None draws them in a notebook and at a Python prompt, and not in scripts; False never does. A
            function is called with a `Progress` after every step.

    Raises:
        ValueError: for data that cannot be registered, with one sentence that says what was wanted, what came, what to do.
        FileNotFoundError: for a path of nothing.
        ImportError: for a file whose reader is an extra; the message has the line that installs it.
    """
    with strangers.named(), shown(progress) as told:
        return _registered(
            fixed,
            moving,
            metric,
            init,
            settled(config, metric, transform=transform, device=device, effort=effort),
            told,
        )


def _registered(
    fixed: Any,
    moving: Any,
    metric: Metric | str | None,
    init: Any,
    config: Config,
    progress: Callable[[Progress], object] | None,
) -> Result:
    """`register`, with its arguments written into the settings."""
    began = time.perf_counter()
    plan = planned(fixed, moving, metric, init, config, progress)
    solver, task, start = plan.solver, plan.task, plan.named
    for doubt in plan.doubts:
        warnings.warn(f"regframe: {doubt.words}", UserWarning, stacklevel=3)
    near, back = brought_near(task)
    # the caller may be inside torch.no_grad() or inference_mode(); the fit needs gradients all the same
    with torch.inference_mode(False), torch.enable_grad():
        fitted, found = _fitted(solver, near)
        if verdict.worst(found) == "fail":
            fitted, found = _otherwise(solver, near, fitted, found)
        if isinstance(near.start, Landmarks):
            found = [*_of_sides(solver, near, fitted, near.start, verdict.worst(found)), *found]
    result = assembled(back(fitted), task, [*plan.doubts, *found, *plan.remarks], time.perf_counter() - began)
    begun = plugins.entry("start", start).cls if start is not None else None
    result.metrics["versions"] |= strangers.versions_of(solver, task.metric, begun, task.fixed, task.moving)
    return result


@dataclasses.dataclass(frozen=True)
class Plan:
    """A registration that may begin: both sides are open, and nothing of what was asked for contradicts them.

    Args:
        solver: what registers this kind of pair.
        task: what it is asked.
        doubts: remarks on what is doubtful but possible.
        named: name of the start that was asked for, or None.
        remarks: what is to be said of the start beside the findings of the fit.
    """

    solver: Solver
    task: Task
    doubts: tuple[Finding, ...]
    named: str | None
    remarks: tuple[Finding, ...]


def planned(
    fixed: Any,
    moving: Any,
    metric: Metric | str | None,
    init: Any,
    config: Config,
    progress: Callable[[Progress], object] | None = None,
) -> Plan:
    """All of `register` that comes before the fit: opens, reads and checks everything.

    Args:
        fixed: as `register` takes it.
        moving: as `register` takes it.
        metric: as `register` takes it.
        init: as `register` takes it.
        config: all settings, `settled`.
        progress: called after every step of the fit.

    Raises what `register` raises.
    """
    fixed, moving = _opened(fixed), _opened(moving)
    init, remark = starts.begun(init, fixed, moving)
    config, start = _started(config, init)
    task = Task(
        fixed=fixed,
        moving=moving,
        metric=_measure(metric, config),
        start=start,
        config=config,
        progress=progress,
    )
    named = start if isinstance(start, str) and start != "auto" else None
    if named is not None:
        task = dataclasses.replace(
            task, start=first_pose(named, config.init_options, dataclasses.replace(task, start="auto"))
        )
    if isinstance(task.start, Landmarks):
        check_sides(task.fixed, task.moving, task.start)
    if config.init == RUNNER_UP:
        _check_runner_up(task)
    solver = _solver(task)
    if config.transform not in solver.models and "transform" not in config.model_fields_set:
        config = config.model_copy(update={"transform": solver.models[-1]})  # nobody asked for the default of images
        task = dataclasses.replace(task, config=config)
    if config.transform not in solver.models:
        raise ValueError(
            f"wanted transform {' or '.join(solver.models)} for this kind of pair ({solver.name}), got {config.transform!r}; "
            "choose one of these"
        )
    doubts = (*_findings(solver.check(task), solver, "check"), *_of_landmarks(task), *_of_sizes(task))
    for side, data in (("fixed", task.fixed), ("moving", task.moving)):
        check_place(data, side)
    if (
        isinstance(task.fixed, Image)
        and isinstance(task.moving, Image)
        and task.fixed.grid.ndim == task.moving.grid.ndim
    ):
        given(task.fixed.grid, task.moving.grid, task.start, config)  # refuses what is no start of this pair
    return Plan(solver, task, doubts, named, (verdict.read_start(remark),) if remark else ())


def _fitted(solver: Solver, task: Task) -> tuple[Fitted, list[Finding]]:
    """The fit of a task that has passed the solver's `check`, and all remarks on it."""
    fitted = strangers.returned(solver.fit(task), Fitted, solver, "fit")
    return fitted, [*fitted.findings, *_findings(solver.judge(fitted), solver, "judge")]


def _findings(remarks: Any, solver: Solver, method: str) -> Iterable[Finding]:
    """The remarks that a method of a solver returned; `PluginFault` for anything else."""
    for remark in strangers.returned(remarks, Iterable, solver, method):
        yield strangers.returned(remark, Finding, solver, method)


def _otherwise(solver: Solver, task: Task, fitted: Fitted, found: list[Finding]) -> tuple[Fitted, list[Finding]]:
    """The fit of the pair in another form where the solver has one that is judged better; the fit that failed otherwise."""
    other = solver.otherwise(task)
    if other is None:
        return fitted, found
    instead = _solver(other.task)
    try:
        instead.check(other.task)
    except ValueError:  # what cannot be compared in the other form was registered in its own
        return fitted, found
    again, remarks = _fitted(instead, other.task)
    if verdict.worst(remarks) == "fail":
        return fitted, found
    return again, [other.finding, *remarks]


def settled(config: Config | None, metric: Metric | str | None, **changes: str | None) -> Config:
    """``config`` with the arguments of `register` written into it.

    Args:
        config: the settings; the defaults where None.
        metric: replaces ``config.metric`` (and its options) where not None.
        changes: other settings by name; each replaces the one in ``config`` where not None.

    Raises:
        ValueError: for a setting of a wrong type or value.
    """
    config = config or Config()
    if not isinstance(config, Config):
        raise ValueError(f"wanted a regframe.Config, got {type(config).__name__}; make one with Config.model_validate")
    if metric is not None and not isinstance(metric, (str, Metric)):
        raise ValueError(f"wanted a metric by name or as an instance, got {metric!r}; regframe.metric(name) makes one")
    said: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    if isinstance(metric, str):
        said["metric"] = metric
    elif metric is not None:
        said |= {"metric": type(metric).name, "metric_options": plugins.options_of(metric)}
    config = Config.model_validate(config.model_dump(exclude_unset=True) | said)  # which ones were set is kept
    named = {key: getattr(config, key) for key in ("metric", "init", "solver")}
    config = config.model_copy(update={k: strangers.absolute(v) for k, v in named.items() if strangers.in_file(v)})
    if config.transform not in models():
        raise ValueError(
            f"wanted for the setting 'transform' one of {', '.join(models())}, got {config.transform!r}; choose one of these"
        )
    devices.check(config.device)
    return config


def models() -> tuple[str, ...]:
    """Every model of a map that at least one solver offers: the words that ``transform`` accepts."""
    return tuple(dict.fromkeys(model for entry in plugins.chosen_by_default("solver") for model in entry.cls.models))  # type: ignore[attr-defined]


def _measure(metric: Metric | str | None, config: Config) -> Metric | None:
    """The metric that the settings name, or None where they say ``auto`` and the solver is to choose."""
    if isinstance(metric, Metric):
        return metric
    if config.metric != "auto":
        return plugins.metric(config.metric, **config.metric_options)
    if config.metric_options:
        raise ValueError(
            f"wanted a metric by name for the options {sorted(config.metric_options)}, got 'auto'; name one"
        )
    return None


def _opened(source: Any) -> Image | PointSet:
    if isinstance(source, (Image, PointSet)):
        return source
    reader = plugins.find_adapter(source)
    return strangers.returned(reader.open(source), (Image, PointSet), reader, "open")


def _solver(task: Task) -> Solver:
    """The solver that the settings name, or the one that is surest this is its kind of pair."""
    options = task.config.solver_options
    if task.config.solver != "auto":
        named = plugins.solver(task.config.solver, **options)
        if not named.matches(task.fixed, task.moving) > 0:
            raise ValueError(
                f"wanted a pair that the solver {task.config.solver!r} registers, got one that it does not take; "
                "leave the solver out, or open a side in another form (adapter=…)"
            )
        return named
    return plugins.find_solver(task.fixed, task.moving, **options)


def _check_runner_up(task: Task) -> None:
    """ValueError for a pair whose search names no second best placement to begin with."""
    sides = [f"{data.grid.ndim}D image" if isinstance(data, Image) else "points" for data in (task.fixed, task.moving)]
    if "points" in sides or sides[0] != sides[1]:
        raise ValueError(
            f"wanted two images of one dimension for init='runner-up', got {sides[0]} and {sides[1]}; take another start, e.g. "
            "init='identity'"
        )


def _started(config: Config, init: Any) -> tuple[Config, Any]:
    """The settings with the argument ``init`` written into them, and the start as `Task` has it, or the name of one.

    What a file of settings cannot name is written into them as numbers: an affine map, and pairs of landmarks.
    """
    if init is None:
        init = config.init
    if isinstance(init, str) and init != RUNNER_UP:
        options = said_in(init)
        if options is not None:
            return Config.model_validate(
                config.model_dump(exclude_unset=True) | {"init": "stated", "init_options": options}
            ), "stated"
    if isinstance(init, str) and init == config.init:
        return config, "auto" if init == RUNNER_UP else init
    if isinstance(init, Result):
        init = init.affine
    said: dict[str, Any] = {"init": strangers.absolute(init) if isinstance(init, str) else "given", "init_options": {}}
    if isinstance(init, str):
        said["init_options"] = config.init_options if strangers.absolute(init) == config.init else {}
    elif isinstance(init, Landmarks):
        said = {"init": "landmarks", "init_options": {"moving": init.moving.tolist(), "fixed": init.fixed.tolist()}}
    elif isinstance(init, Affine):
        said = {"init": "matrix", "init_options": {"rows": init.matrix.tolist()}}
    return Config.model_validate(config.model_dump() | said), "auto" if said["init"] == RUNNER_UP else init


def _of_landmarks(task: Task) -> list[Finding]:
    """A remark on each pair of landmarks that disagrees with the others, and on pairs that are too few for a turn."""
    if isinstance(task.start, Landmarks) and len(task.start.moving) < 3:
        return [verdict.few_landmarks(len(task.start.moving))]
    if not isinstance(task.start, Landmarks) or bool((task.start.weights > 0).all()):
        return []
    pixel, name = (task.fixed.grid.pixel, "px") if isinstance(task.fixed, Image) else (1.0, task.fixed.unit)
    found = task.start.disagreement()
    off = found.off[found.odd] / pixel
    return [
        verdict.odd_landmark(words, float(value))
        for words, value in zip(found.sentences(pixel, name), off.tolist(), strict=True)
    ]


def _of_sides(solver: Solver, task: Task, fitted: Fitted, pairs: Landmarks, word: str) -> list[Finding]:
    """What is to be said of landmarks whose fixed and moving sides look exchanged, after a fit that began from them.

    ``word`` is the verdict so far: where it is ``fail``, both sides are asked, clouds as densities.
    """
    if fitted.transform.ndim != pairs.fixed.shape[1] or fitted.transform.ndim != pairs.moving.shape[1]:
        return []
    if word == "fail":
        other = None if isinstance(task.fixed, Image) and isinstance(task.moving, Image) else solver.otherwise(task)
        fixed, moving = (task.fixed, task.moving) if other is None else (other.task.fixed, other.task.moving)
        images = isinstance(fixed, Image) and isinstance(moving, Image) and fixed.grid.ndim == moving.grid.ndim
        if images and exchanged(fixed, moving, pairs, task.config):  # type: ignore[arg-type]
            return [verdict.exchanged_landmarks()]
    found = fit_exchanged(fitted.transform, pairs)
    return [] if found is None else [verdict.landmarks_fit_exchanged(*found, unit_of(task.fixed))]


def _of_sizes(task: Task) -> list[Finding]:
    """A remark where, by their units, one side is so much larger than the other that a unit is likely to be wrong."""
    wide = []
    for data in (task.fixed, task.moving):
        unit = data.grid.unit if isinstance(data, Image) else data.unit
        extent = data.grid.extent if isinstance(data, Image) else (data.coords.amax(0) - data.coords.amin(0)).tolist()
        wide.append(max(extent) * (unit_ratio(unit, "mm") or 0.0))
    if min(wide) <= 0 or max(wide) <= verdict.OTHER_SIZES * min(wide):
        return []
    return [verdict.other_sizes(wide[0], wide[1])]


def _roundtrip(fitted: Fitted) -> dict[str, float]:
    """How far positions over the moving side end from where they began, there and back, in its pixels: ``mean`` and ``max``."""
    grid = fitted.moving_grid
    at = grid.resampled(tuple(extent / min(n, 9) for extent, n in zip(grid.extent, grid.shape, strict=True))).coords()
    away = (fitted.transform.inverse().points(fitted.transform.points(at)) - at).norm(dim=-1) / grid.pixel
    return {"mean": float(away.mean()), "max": float(away.max())}


def assembled(fitted: Fitted, task: Task, findings: Iterable[Finding], seconds: float) -> Result:
    """The `Result` made of what a solver returned.

    Args:
        fitted: maps, grids and figures from the solver.
        task: what the solver was asked; gives settings, seed and landmarks.
        findings: all remarks on this pair, from which the verdict is drawn.
        seconds: wall time of the whole call.
    """
    figures = fitted.figures | verdict.conclude(findings)
    figures.setdefault("n_evaluations", len(fitted.history))
    figures.setdefault("device", "cpu")
    figures.setdefault("roundtrip_px", _roundtrip(fitted))
    figures |= {"seconds": seconds, "versions": versions(), "seed": task.config.seed}
    if isinstance(task.start, Landmarks):
        figures["landmark_residual_px"] = task.start.residuals(fitted.transform, fitted.fixed_grid)
        figures["landmark_weight"] = task.start.weights.tolist()
    return Result(
        transform=fitted.transform,
        fixed_grid=fitted.fixed_grid,
        moving_grid=fitted.moving_grid,
        metrics=figures,
        config=task.config,
        affine=fitted.affine,
        history=fitted.history,
        weight=fitted.weight,
        weight_grid=fitted.weight_grid,
        position_sd=fitted.position_sd,
        section=fitted.section,
    )
