"""A fit on a GPU, without a GPU: evaluations traced on tensors that say they are on one (`FakeTensorMode`).

Such tensors have a shape, a dtype and a device, and no values. An operation that mixes devices raises, and so does whatever would
read a value (``.item()``, ``.numpy()``, ``float()``, a truth value): on a GPU it would wait for it in every evaluation.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from fake_gpu import GPU, Mixed, Pretended, lent
from scipy.ndimage import gaussian_filter, map_coordinates
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import regframe as rf
from regframe import devices, ops, plugins
from regframe.fit import fluid, further, lbfgs
from regframe.fit.energy import Energy
from regframe.fit.frames import Increment
from regframe.fit.halvings import Halvings, Level
from regframe.fit.mapspace import MapSpace, Standing
from regframe.fit.precondition import precondition
from regframe.fit.prior import PICTURES, velocity_space
from regframe.fit.pyramid import build_levels
from regframe.solvers import raster
from regframe.solvers.raster import _prepared

METRICS = sorted(entry.name for entry in plugins.entries("metric") if entry.cls.accepts == (rf.Image, rf.Image))
MODELS = {"rigid": False, "similarity": False, "affine": False, "lddmm": True, "rigid and bent": True}
"""Models of a map, and whether they bend; the last is what is left where a judge prefers a simpler affine part."""


def _level(ndim: int) -> Level:
    shape = (16, 12) if ndim == 2 else (10, 8, 9)
    generator = torch.Generator().manual_seed(0)
    images = [rf.Image(torch.rand((2, *shape), generator=generator), rf.Grid(shape)) for _ in range(2)]
    return build_levels(*images, torch.eye(ndim + 1, dtype=torch.float64), rf.Config())[-1]


def _energy(level: Level, metric: Any, model: str, landmarks: bool = False) -> tuple[Energy, Tensor]:
    """An energy of a prepared metric, and variables, on the CPU."""
    ndim = level.fixed_grid.ndim
    increment = Increment({"lddmm": "affine", "rigid and bent": "rigid"}.get(model, model), ndim, 10.0)
    fit = Standing(torch.zeros(increment.size), MapSpace(torch.eye(ndim + 1, dtype=torch.float64), increment))
    if MODELS[model]:
        config = rf.Config.model_validate({"sobolev": {"scale": 6.0}})
        fit.bend(velocity_space(rf.Grid(level.moving_grid.shape), config))
    pairs = (torch.rand(5, ndim, dtype=torch.float64), torch.rand(5, ndim, dtype=torch.float64), 1.0)
    energy = Energy(level, metric, fit.maps, level.fixed_weight, 50.0, None, pairs if landmarks else None)
    assert math.isfinite(float(energy.movement(fit.x)))
    energy.n_evaluations, energy.steep = 1, True  # a metric is looked at until it has a gradient
    return energy, fit.x


def _faked(thing: Any, mode: FakeTensorMode, host: Callable[[str], bool] = lambda name: False, name: str = "") -> Any:
    """A copy of something with all tensors in it on a GPU that is not there; those that ``host`` names are faked on the CPU."""
    if isinstance(thing, Tensor):
        return torch.empty_strided(thing.shape, thing.stride(), dtype=thing.dtype, device="cpu" if host(name) else GPU)
    if isinstance(thing, dict):
        return {key: _faked(value, mode, host, str(key)) for key, value in thing.items()}
    if isinstance(thing, (list, tuple)):
        made = [_faked(value, mode, host, name) for value in thing]
        return type(thing)(*made) if hasattr(thing, "_fields") else type(thing)(made)
    if type(thing).__module__.startswith(("regframe", "example")) and hasattr(thing, "__dict__"):
        out = copy.copy(thing)
        for key, value in vars(thing).items():
            object.__setattr__(out, key, _faked(value, mode, host, key))
        return out
    return thing


HOST = {"start", "_index", "_rim", "_stated"}
"""Attributes whose tensors belong on the host: matrices of an affine map, corners, numbers of a metric."""


def _on_gpu(energy: Energy, x: Tensor, mode: FakeTensorMode) -> tuple[Energy, Tensor]:
    out = _faked(energy, mode, lambda name: name in HOST)
    out.device = GPU
    return out, torch.empty(x.shape, device="cpu" if energy.maps.space is None else GPU)


@pytest.fixture
def mode(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    """Tensors without values, and a build that is said to have kernels for a GPU: their fake twins run."""
    monkeypatch.setattr(ops, "has_kernel", lambda device_type: True)
    with lent(monkeypatch):
        yield FakeTensorMode(allow_non_fake_inputs=True)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", METRICS)
def test_an_evaluation_stays_on_the_device(mode: FakeTensorMode, name: str, ndim: int) -> None:
    level = _level(ndim)
    metric = _prepared(rf.metric(name), level)
    for model in MODELS if name == "contrast" else ("affine", "lddmm"):
        energy, x = _energy(level, metric, model, name == "contrast")
        with mode:
            there, variables = _on_gpu(energy, x, mode)
            # the second one finds what some metrics remember of the fixed side
            for _ in range(2 if model == "lddmm" and hasattr(metric, "_memory") else 1):
                value, gradient = there(variables)
            moved = there.movement(gradient)
        assert value.device == GPU
        assert (value.dtype, value.shape, moved.shape) == (torch.float64, (), ())
        assert (gradient.device, gradient.dtype, gradient.shape) == (variables.device, x.dtype, x.shape)


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_step_stays_on_the_device(mode: FakeTensorMode, ndim: int) -> None:
    # what is around an evaluation: preconditioned variables there and back, the pair of the history
    level = _level(ndim)
    energy, x = _energy(level, _prepared(rf.metric("contrast"), level), "lddmm")
    change = precondition(energy, level.moving)
    with mode:
        there, variables = _on_gpu(energy, x, mode)
        scaled = _faked(change, mode)
        z = scaled.inverse(variables)
        _, gradient = there(scaled(z))
        curvature = lbfgs._shape(z, scaled(gradient))
        moved = there.movement(scaled(gradient))
    assert {v.device for v in (z, *curvature, moved)} == {GPU}


def test_a_step_that_follows_stays_on_the_device(mode: FakeTensorMode) -> None:
    level = _level(2)
    metric = _prepared(rf.metric("lncc"), level)
    pullback = torch.eye(3, dtype=torch.float64)
    with mode:
        there = _faked(level, mode)
        canvas = fluid._Canvas(there, pullback)
        force = fluid.force_of(_faked(metric, mode, lambda name: name in HOST))
        velocity = torch.zeros((2, *canvas.whole), device=GPU)
        warped, weight = canvas.seen_under(canvas._doubled(velocity))
        with pytest.raises(DataDependentOutputException):  # the one number that a step reads: the mismatch
            force(warped, there.fixed, weight)
        step = fluid.smoothed(velocity, 2.0)
    assert {v.device for v in (warped, weight, step)} == {GPU}


@pytest.mark.parametrize(
    "broken",
    [
        lambda value: value * float(value),
        lambda value: value * torch.ones(3),
        lambda value: torch.from_numpy(value.detach().numpy()) * value,
    ],
)
def test_what_would_wait_for_the_device_is_found(mode: FakeTensorMode, broken: Callable[[Tensor], Tensor]) -> None:
    class Waits(type(rf.metric("ssd"))):  # type: ignore[misc]
        def __call__(self, warped: Tensor, fixed: Tensor, weight: Tensor) -> Tensor:
            return broken(super().__call__(warped, fixed, weight)).sum()

    level = _level(2)
    energy, x = _energy(level, _prepared(Waits(), level), "affine")
    with mode, pytest.raises((DataDependentOutputException, RuntimeError, TypeError)):
        _on_gpu(energy, x, mode)[0](x)


def _bent(shape: tuple[int, ...], seed: int = 3) -> list[rf.Image]:
    """Two noisy images of one thing, the moving one bent by about a pixel."""
    rng = np.random.default_rng(seed)
    image = gaussian_filter(rng.standard_normal(shape), 1.5)
    at = np.meshgrid(*(np.arange(n, dtype=np.float64) for n in shape), indexing="ij")
    for axis in at:
        bend = gaussian_filter(rng.standard_normal(shape), min(shape) / 5)
        axis += 0.7 + bend / bend.std()
    moved = map_coordinates(image, at, order=3, mode="nearest")
    noise = rng.standard_normal((2, *shape)) / 20 * image.std()
    return [
        rf.Image.from_array((a + n).astype(np.float32), "zyx"[-len(shape) :])
        for a, n in zip((image, moved), noise, strict=True)
    ]


def _judged(to_moving: Callable[[Tensor], Tensor], pullback: Tensor) -> float:
    """A judge of maps that is on the host, as regframe's is, and takes less time: it prefers what moves more."""
    ndim = pullback.shape[0] - 1
    at = torch.full((3, ndim), 2.0, dtype=torch.float64)
    return 100.0 + float((to_moving(at) - at).norm())


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ((84, 80), {}),  # two levels
        ((40, 32), {"metric": "lncc", "transform": "rigid"}),
        ((12, 10, 11), {}),
    ],
    ids=["bent", "lncc, rigid", "volume"],
)
def test_a_whole_fit_keeps_to_its_device(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], settings: dict[str, Any]
) -> None:
    # the same kernels, so the same bytes: only what mixes devices, or never comes back, can go wrong
    sides = _bent(shape)
    config = rf.Config.model_validate({"optimizer": {"max_iter": 2}, "matching": {"rounds": 2}})
    monkeypatch.setattr(further, "STEPS", 1)
    monkeypatch.setattr(raster, "_judge", lambda *_: _judged)
    here = rf.register(*sides, init="identity", config=config, **settings)
    monkeypatch.setattr(devices, "chosen", lambda name, values: GPU)
    monkeypatch.setattr(ops, "has_kernel", lambda device_type: True)
    with lent(monkeypatch), Pretended() as pretended:
        there = rf.register(*sides, init="identity", config=config, **settings)
    assert (here.metrics["device"], there.metrics["device"]) == ("cpu", "cuda:0")
    at = sides[1].grid.coords()
    assert torch.equal(here.transform.points(at), there.transform.points(at))
    for name in ("weight", "position_sd"):
        assert torch.equal(getattr(here, name), getattr(there, name))
    assert here.metrics["n_evaluations"] == there.metrics["n_evaluations"]
    assert pretended.reads > there.metrics["n_evaluations"]


def test_devices_that_are_mixed_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with lent(monkeypatch), Pretended() as pretended:
        there = torch.ones(3, device=GPU)
        assert (there.device, (there * 2).device, there.cpu().device) == (GPU, GPU, torch.device("cpu"))
        assert float(there.sum()) == 3.0
        assert pretended.reads == 2
        with pytest.raises(Mixed):
            there + torch.ones(3)


def test_a_bend_that_follows_keeps_to_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = [Halvings(image) for image in _bent((96, 88))]
    pullback, how = torch.eye(3, dtype=torch.float64), fluid.Following(steps=(3, 2), most=96 * 88)

    def followed(one: Halvings, other: Halvings) -> tuple[Tensor, fluid.Gain]:
        levels = fluid.levels_to_follow(build_levels(one, other, pullback, rf.Config()), how)
        metric = functools.partial(_prepared, rf.metric("lncc"))
        choice = fluid.chosen(levels, pullback, metric, how)
        return fluid.follow(levels, pullback, [metric], PICTURES, choice.how).variables.cpu(), choice.gain

    here = followed(*sides)
    with lent(monkeypatch), Pretended():
        monkeypatch.setattr(ops, "has_kernel", lambda device_type: True)
        there = followed(*(side.on(GPU) for side in sides))
    # what it smooths is smoothed in float64 there; a thousandth of a bend of a pixel
    assert float((here[0] - there[0]).norm() / here[0].norm()) < 1e-3
    assert there[1].mean == pytest.approx(here[1].mean, rel=1e-4)
