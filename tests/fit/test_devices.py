"""A fit on a GPU, without a GPU: evaluations traced on tensors that say they are on one (`FakeTensorMode`).

Such tensors have a shape, a dtype and a device, and no values. An operation that mixes devices raises, and so does whatever would
read a value (``.item()``, ``.numpy()``, ``float()``, a truth value): on a GPU it would wait for it in every evaluation.
"""

from __future__ import annotations

import copy
import ctypes
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import regframe as rf
from regframe import ops, plugins
from regframe.fit import fluid, lbfgs
from regframe.fit.energy import Energy
from regframe.fit.frames import Increment
from regframe.fit.halvings import Level
from regframe.fit.mapspace import MapSpace, Standing
from regframe.fit.precondition import precondition
from regframe.fit.prior import velocity_space
from regframe.fit.pyramid import build_levels
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


GPU = torch.device("cuda:0")
HOST = {"start", "_index", "_rim", "_stated"}
"""Attributes whose tensors belong on the host: matrices of an affine map, corners, numbers of a metric."""


def _on_gpu(energy: Energy, x: Tensor, mode: FakeTensorMode) -> tuple[Energy, Tensor]:
    out = _faked(energy, mode, lambda name: name in HOST)
    out.device = GPU
    return out, torch.empty(x.shape, device="cpu" if energy.maps.space is None else GPU)


ENGINE = torch.autograd.grad


def _gradients(value: Tensor, leaves: Any, **options: Any) -> tuple[Tensor | None, ...]:
    """`torch.autograd.grad` of a scalar, node by node: torch's own engine asks for a GPU before it looks at the tensors."""
    if value.is_cpu:
        return ENGINE(value, leaves, **options)
    leaves = [leaves] if isinstance(leaves, Tensor) else list(leaves)
    assert value.grad_fn is not None
    order, seen = list[Any](), set[Any]()

    def visit(node: Any) -> None:
        if node not in seen:
            seen.add(node)
            for after, _ in node.next_functions:
                if after is not None:
                    visit(after)
            order.append(node)

    visit(value.grad_fn)
    came: dict[Any, dict[int, Tensor]] = {value.grad_fn: {0: torch.ones_like(value)}}
    found: dict[int, Tensor] = {}
    for node in reversed(order):
        if hasattr(node, "variable"):
            found[id(node.variable)] = came[node][0]
            continue
        run = node if callable(node) else node.apply
        with torch.no_grad():
            passed = run(*[came[node].get(i) for i in range(max(came[node]) + 1)])
        passed = passed if isinstance(passed, tuple) else (passed,)  # what is no tensor comes last, and gets None
        for (after, slot), grad in zip(node.next_functions, passed, strict=False):
            if after is not None and grad is not None:
                known, wanted = came.setdefault(after, {}), after._input_metadata[slot]
                if grad.shape != wanted.shape:
                    grad = grad.sum_to_size(wanted.shape)
                assert grad.device == wanted.device
                known[slot] = known[slot] + grad if slot in known else grad
    return tuple(found.get(id(leaf)) for leaf in leaves)


@pytest.fixture
def mode(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    """Tensors without values, and a build that is said to have kernels for a GPU: their fake twins run.

    A torch without CUDA lets no graph be made of tensors that say they are there, for want of what switches between GPUs. So it
    is lent what switches between "meta" devices, which does nothing.
    """
    monkeypatch.setattr(ops, "has_kernel", lambda device_type: True)
    monkeypatch.setattr(torch.autograd, "grad", _gradients)
    switches: Any = [None] * 15
    if not torch.backends.cuda.is_built():
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
        name = "_ZN3c104impl26device_guard_impl_registryE"
        if not hasattr(library, name):
            pytest.skip(f"torch {torch.__version__} keeps what switches between devices elsewhere")
        switches = (ctypes.c_void_p * 15).in_dll(library, name)
        switches[1] = switches[14]
    yield FakeTensorMode(allow_non_fake_inputs=True)
    switches[1] = None


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", METRICS)
def test_an_evaluation_stays_on_the_device(mode: FakeTensorMode, name: str, ndim: int) -> None:
    level = _level(ndim)
    metric = _prepared(rf.metric(name), level)
    for model in MODELS if name == "contrast" else list(MODELS)[:-1]:
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
