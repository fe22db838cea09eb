"""Aligns two image layers, step by step, so that a viewer can show how far it is and stop it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch

import regframe as rf

from .landmarks import pairs
from .places import pyramid_of
from .reading import RESULT, LayerData, carried

MODELS = {
    "turned, scaled, sheared and bent": "lddmm",
    "turned, scaled and sheared": "affine",
    "turned and scaled": "similarity",
    "only turned": "rigid",
}
"""How the moving side may differ, in words, and the model of the map."""


class _Stopped(Exception):
    """The user stopped the alignment."""


@dataclass(frozen=True)
class Job:
    """One alignment, taken from layers before it begins.

    Args:
        fixed: the fixed image at every resolution.
        moving: the moving image likewise.
        transform: model of the map, as ``register`` takes it.
        pairs: fixed and moving landmarks ``[N, D]`` to begin from; None where the start is searched for.
    """

    fixed: rf.Pyramid
    moving: rf.Pyramid
    transform: str
    pairs: tuple[Any, Any] | None = None

    @classmethod
    def of(cls, fixed: Any, moving: Any, transform: str = "lddmm", points: tuple[Any, Any] | None = None) -> Job:
        """The alignment of two layers, with two points layers as landmarks; ValueError for layers that cannot be aligned."""
        if fixed is moving:
            raise ValueError(f"wanted two different layers, got {fixed.name!r} twice")
        one, other = pyramid_of(fixed), pyramid_of(moving)
        found = None if points is None else pairs(points[0], points[1], one.grid, other.grid)
        return cls(one, other, transform, found)


def steps(job: Job) -> Generator[rf.Progress, None, rf.Result]:
    """Run a job: yields its progress, returns the result.

    Closing the generator stops the fit at its next step. Raises what `regframe.register` raises.
    """
    told: queue.Queue[Any] = queue.Queue()
    stop = threading.Event()

    def step(progress: rf.Progress) -> None:
        if stop.is_set():
            raise _Stopped
        told.put(progress)

    def work() -> None:
        try:
            told.put(_register(job, step))
        except BaseException as error:  # noqa: BLE001  # raised again where the steps are taken
            told.put(error)

    thread = threading.Thread(target=work, name="regframe", daemon=True)
    thread.start()
    try:
        while True:
            item = told.get()
            if isinstance(item, BaseException):
                raise item
            if isinstance(item, rf.Result):
                return item
            yield item
    finally:
        stop.set()


def _register(job: Job, step: Any) -> rf.Result:
    sides = [rf.read_level(side, *rf.choose_level(side)) for side in (job.fixed, job.moving)]
    init: Any = "auto"
    if job.pairs is not None:
        q, p = (torch.from_numpy(side) for side in job.pairs)
        init = rf.landmarks(p, q)
    return rf.register(sides[0], sides[1], transform=job.transform, init=init, progress=step)


def layers_of(job: Job, result: rf.Result) -> list[LayerData]:
    """The moving layer carried onto the pixels of the fixed one, lazy, at the resolutions of the fixed one."""
    grids = [level.grid for level in job.fixed.levels]
    kept = {RESULT: {"result": result, "side": "fixed"}}
    found = carried(result, job.moving, "fixed", grids if result.fixed_grid.ndim == 2 else None)
    return [(data, {**how, "metadata": kept}, kind) for data, how, kind in found]
