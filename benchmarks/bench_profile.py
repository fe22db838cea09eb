"""Where the time of `regframe.register` goes: seconds of its own per stage, the kernels' apart from what calls them;
and where that of the whole command goes beside it: what is imported, and of whom."""

from __future__ import annotations

import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
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
    ("kernels", ops, "correlation"),
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


COMMAND = """
import importlib._bootstrap as bootstrap, json, sys, time
own, open_, loading = {}, [], bootstrap._load_unlocked

def load(spec):
    began = time.process_time()
    open_.append(0.0)
    try:
        return loading(spec)
    finally:
        took = time.process_time() - began
        of = spec.name.split(".")[0]
        own[of] = own.get(of, 0.0) + took - open_.pop()
        if open_:
            open_[-1] += took

bootstrap._load_unlocked = load
import regframe.cli
sys.argv[1:] = ["register", *sys.argv[1:]]
from regframe import registration
register, fit = registration._registered, []

def registered(*args, **kwargs):
    began, before = time.process_time(), sum(own.values())
    try:
        return register(*args, **kwargs)
    finally:
        fit.append(time.process_time() - began - sum(own.values()) + before)

registration._registered = registered
try:
    regframe.cli.main(standalone_mode=False)
except SystemExit:
    pass
print(json.dumps({"all": time.process_time(), "fit": sum(fit), "own": own}))
"""
"""A command that registers two files in a process of its own, and says in its last line what took its processor's time."""


@pytest.mark.skipif("REGFRAME_DATA" not in os.environ, reason="needs the seed pair: set REGFRAME_DATA")
def test_command(small: bool, threads: int, report: Callable[[str], None], tmp_path: Path) -> None:
    """Prints the processor seconds of the whole command on the seed pair: fit, imports by package, and what is left."""
    folder = Path(os.environ["REGFRAME_DATA"]) / "01_seed_cells"
    sides = [str(folder / name) for name in ("cells.jpg", "cells2_crop.jpg")]
    found = []
    for _ in range(1 if small else 5):
        arguments = [sys.executable, "-c", COMMAND, *sides, "-o", str(tmp_path / "out"), "--overwrite"]
        run = subprocess.run(arguments, check=True, capture_output=True, text=True)
        found.append(json.loads(run.stdout.splitlines()[-1]))
    assert all(one["all"] > one["fit"] > 0 for one in found)
    if small:
        return

    def median(of: Callable[[dict[str, Any]], float]) -> float:
        return statistics.median(of(one) for one in found)

    whole, fit, imports = (
        median(lambda o: o["all"]),
        median(lambda o: o["fit"]),
        median(lambda o: sum(o["own"].values())),
    )
    report(
        f"register of the seed pair, processor seconds: {whole:.2f}, fit {fit:.2f}, imports {imports:.2f}; "
        f"fit + {whole - fit:.2f}"
    )
    names = sorted(found[0]["own"], key=lambda name: -found[0]["own"][name])[:12]
    for name in names:
        report(f"  {median(lambda o, n=name: o['own'].get(n, 0.0)):6.3f} s  {name}")
    record(bench="command", what="register, seed pair", threads=threads, seconds=whole, fit=fit, imports=imports)
