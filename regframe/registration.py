"""`register`: one verb that opens two sides, chooses the solver of their kind, fits, judges and assembles a `Result`."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch

from . import plugins, verdict
from .config import Config
from .contracts import Fitted, Metric, Progress, Solver, Task
from .data import Image, PointSet
from .result import Result
from .solvers import BUILT_IN
from .starts.landmarks import Landmarks
from .verdict import Finding
from .versions import versions


def register(
    fixed: Any,
    moving: Any,
    *,
    metric: Metric | str | None = None,
    transform: str | None = None,
    init: Any = "auto",
    config: Config | None = None,
    device: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Align ``moving`` to ``fixed``; nothing has to be set.

    Args:
        fixed: an `Image` or a `PointSet`, or anything `regframe.open` reads; it stays where it is. Points against an
            image are drawn as a density (see `regframe.solvers.mixed`).
        moving: an `Image` or a `PointSet`, or anything `regframe.open` reads; it is brought onto the fixed one.
        metric: name or instance; ``config.metric`` where None. ``auto`` takes mutual information for two stained sections,
            `contrast` for other images and the `mixture` for points; ``metrics["metric"]`` says which and why.
        transform: ``rigid``, ``similarity``, ``affine`` or ``lddmm``; ``config.transform`` where None.
        init: ``"auto"`` (a search over turn, mirror and shift), ``"identity"``, `regframe.landmarks`, an affine
            `Transform` from moving to fixed, or an earlier `Result`, whose affine part is taken.
        config: every other setting.
        device: ``cpu``; ``config.device`` where None.
        progress: called after every step.

    Raises:
        ValueError: for data that cannot be registered, with one sentence that says what was wanted, what came, what to do.
    """
    began = time.perf_counter()
    config = settled(config, metric, transform=transform, device=device)
    task = Task(
        fixed=_opened(fixed),
        moving=_opened(moving),
        metric=_measure(metric, config),
        start=init.affine if isinstance(init, Result) else init,
        config=config,
        progress=progress,
    )
    solver = _solver(task)
    if config.transform not in solver.models:
        raise ValueError(
            f"wanted transform {' or '.join(solver.models)} for this kind of pair ({solver.name}), got {config.transform!r}; "
            "choose one of these"
        )
    doubts = solver.check(task)
    for doubt in doubts:
        warnings.warn(f"regframe: {doubt.sentence}; {doubt.remedy}", UserWarning, stacklevel=2)
    # the fit needs gradients, whatever the caller has switched off around it
    with torch.inference_mode(False), torch.enable_grad():
        fitted = solver.fit(task)
    findings = [*doubts, *fitted.findings, *solver.judge(fitted)]
    return assembled(fitted, task, findings, time.perf_counter() - began)


def settled(config: Config | None, metric: Metric | str | None, **changes: str | None) -> Config:
    """The settings with what was said beside them; ValueError for what is none."""
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
    config = Config.model_validate(config.model_dump() | said)
    if config.transform not in models():
        raise ValueError(
            f"wanted for the setting 'transform' one of {', '.join(models())}, got {config.transform!r}; choose one of these"
        )
    if config.device != "cpu":
        raise ValueError(f"wanted device 'cpu', got {config.device!r}; the solver does not run on other devices yet")
    return config


def models() -> tuple[str, ...]:
    """Every model of a map that some solver offers: what ``transform`` may say."""
    return tuple(dict.fromkeys(model for solver in BUILT_IN for model in solver.models))


def _measure(metric: Metric | str | None, config: Config) -> Metric | None:
    """The metric that was asked for, or None where the solver is to choose."""
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
    return source if isinstance(source, (Image, PointSet)) else plugins.open(source)


def _solver(task: Task) -> Solver:
    """The solver that is surest that this is its kind of pair."""
    solvers = [cls() for cls in BUILT_IN]
    sure = [solver.matches(task.fixed, task.moving) for solver in solvers]
    return solvers[sure.index(max(sure))]


def assembled(fitted: Fitted, task: Task, findings: Iterable[Finding], seconds: float) -> Result:
    """The result of what a solver found, with its verdict, what ran and how long it took."""
    figures = fitted.figures | verdict.conclude(findings)
    figures |= {"seconds": seconds, "versions": versions(), "seed": task.config.seed}
    if isinstance(task.start, Landmarks):
        figures["landmark_residual_px"] = task.start.residuals(fitted.transform, fitted.fixed_grid)
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
