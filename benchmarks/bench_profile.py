"""Where the time of `regframe.register` goes: seconds of its own per stage, the kernels' apart from what calls them."""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import synthetic
from records import record

import regframe as rf
from regframe import ops
from regframe.fit import energy, mixture, precondition, pyramid, velocity
from regframe.solvers import images as solver_images
from regframe.solvers import raster
from regframe.starts import images

STAGES: list[tuple[str, object, str]] = [
    ("kernels", ops, "contrast"),
    ("kernels", ops, "information"),
    ("kernels", ops, "warp"),
    ("kernels", ops, "flow_points"),
    ("velocity and its adjoint (FFT)", velocity.VelocitySpace, "velocity"),
    ("velocity and its adjoint (FFT)", velocity.VelocitySpace, "adjoint"),
    ("energy, without kernels and FFT", energy.Energy, "__call__"),
    ("optimiser", precondition, "minimize"),
    ("contrast map, EM weights, correlation area", pyramid, "fit_contrast"),
    ("contrast map, EM weights, correlation area", pyramid, "correlation_area"),
    ("contrast map, EM weights, correlation area", mixture.Mixture, "update"),
    ("contrast map, EM weights, correlation area", mixture.Mixture, "start"),
    ("contrast map, EM weights, correlation area", pyramid, "precondition"),
    ("pyramids", pyramid, "build_levels"),
    ("pose search", images, "search"),
    ("figures and verdict", raster, "_figures"),
    ("figures and verdict", raster, "_coincidence"),
    ("uncertainty", raster, "_position_sd"),
    ("preparation", solver_images, "prepare"),
    ("rest", solver_images.Images, "fit"),
]


class Clock:
    """Time per stage, each second counted for the innermost stage that is running."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._stack: list[str] = []
        self._since = 0.0

    def _switch(self) -> None:
        now = time.perf_counter()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._since
        self._since = now

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, counted for ``stage``."""

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            self._switch()
            self._stack.append(stage)
            try:
                return function(*args, **kwargs)
            finally:
                self._switch()
                self._stack.pop()

        return run


def test_stages(small: bool, threads: int, report: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Prints a table; every stage is named, so that the shares add up to all of it."""
    side = 128 if small else 1024
    pair = synthetic.make(side)
    rf.register(pair.fixed, pair.moving)  # loads what is loaded once
    clock = Clock()
    for stage, owner, name in STAGES:
        function = owner.__dict__[name]
        if isinstance(function, classmethod):
            monkeypatch.setattr(owner, name, classmethod(clock.timed(stage, function.__func__)))
        else:
            monkeypatch.setattr(owner, name, clock.timed(stage, function))
    start = time.perf_counter()
    result = rf.register(pair.fixed, pair.moving)
    total = time.perf_counter() - start
    counted = sum(clock.seconds.values())
    assert counted <= total
    assert counted > 0.9 * total  # what is left is the checking of the input
    if small:
        return
    report(f"register, {side}², {threads} threads: {total:.2f} s, {result.metrics['n_evaluations']} evaluations")
    for stage, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1]):
        report(f"  {seconds / total:5.1%}  {seconds:6.3f} s  {stage}")
        record(
            bench="profile",
            what=f"register, {side}²",
            stage=stage,
            seconds=seconds,
            share=seconds / total,
            threads=threads,
        )
