"""Mutual information as one op: values and gradients against plain torch, against the metric without it, and what is refused."""

import copy
import math
import pickle

import pytest
import torch
from test_ops import DEVICES, DTYPES, TOLERANCE, contrast_case, relative

import regframe as rf
from regframe import ops, reference

pytestmark = pytest.mark.skipif(not ops.is_built(), reason=f"build the ops with `{ops.BUILD_COMMAND}`")


def case(ndim, dtype=torch.float32, device="cpu", lines=(1, 1), n_steps=6):
    """Arguments of `information`: generic, a third of the weights 0, some intensities beyond the bins' range at either end."""
    path, moving, fixed, weight, *_ = contrast_case(ndim, dtype, device, *lines, n_steps)
    return path, moving * 1.1 - 0.05, fixed * 1.1 - 0.05, weight


def twin(arguments, bins, normalized):
    path, moving, fixed, weight = arguments
    return reference.information(moving, fixed, weight, path.velocity, path.matrix, *path[4:], bins, normalized)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(("lines", "bins"), [((1, 1), 32), ((2, 3), 9), ((4, 1), 5)])
@pytest.mark.parametrize("normalized", [False, True])
def test_the_op_agrees_with_the_reference(device, dtype, ndim, lines, bins, normalized):
    arguments = case(ndim, dtype, device, lines)
    out = ops.information(*arguments, bins, normalized)
    for name, a, b in zip(out._fields, out, twin(arguments, bins, normalized), strict=True):
        assert a.dtype == b.dtype, name
        assert a.shape == b.shape, name
        assert relative(a, b) < TOLERANCE[dtype] / 10, name
    assert not out.value.requires_grad


@pytest.mark.parametrize("device", DEVICES)
def test_pixels_without_weight_are_not_seen(device):
    path, moving, fixed, weight = case(2, device=device)
    weight[:, : weight.shape[1] // 2] = 0
    here = ops.information(path, moving, fixed, weight)
    dirty = torch.where(weight > 0, fixed, math.nan)
    for a, b in zip(here, ops.information(path, moving, dirty, weight), strict=True):
        assert torch.equal(a, b)
    for normalized, nothing in ((False, 0.0), (True, 1.0)):
        out = ops.information(path, moving, fixed, torch.zeros_like(weight), 32, normalized)
        assert float(out.value) == nothing
        assert not out.velocity_grad.any()
        assert not out.matrix_grad.any()
        flat = ops.information(path, torch.full_like(moving, 0.3), torch.full_like(fixed, 0.3), weight, 32, normalized)
        assert all(bool(t.isfinite().all()) for t in flat)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_seen(value):
    path, moving, fixed, weight = case(2)
    moving[0, 3] = value
    assert not ops.information(path, moving, fixed, weight).velocity_grad.isfinite().all()


def test_the_same_bytes_again_and_almost_them_with_more_threads():
    arguments = case(2)
    first = ops.information(*arguments)
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            runs = [ops.information(*arguments) for _ in range(3)]
            assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))
            for a, b in zip(first, runs[0], strict=True):
                assert relative(a, b) < 1e-6  # sums in double, of terms in single precision
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda p, m, f, w: (p, m, f[:, 1:], w), ValueError, "whole grid"),
        (lambda p, m, f, w: (p, m, f.double(), w), TypeError, "fixed and velocity"),
        (lambda p, m, f, w: (p, m[:0], f, w), ValueError, "1 to 4 lines"),
        (lambda p, m, f, w: (p, m, f.expand(5, -1, -1), w), ValueError, "1 to 4 lines"),
        (lambda p, m, f, w: (p, m, f, w, 4), ValueError, "bins"),
        (lambda p, m, f, w: (p, m, f, w, 257), ValueError, "bins"),
    ],
)
def test_what_does_not_fit_is_said(change, error, says):
    with pytest.raises(error, match=says):
        ops.information(*change(*case(2)))


def pair(channels, size=(40, 52)):
    """Two images of some channels that share their structure, the moving one with an outlier beyond the bins."""
    generator = torch.Generator().manual_seed(7)
    coarse = torch.rand((1, 1, 8, 9), generator=generator)
    base = torch.nn.functional.interpolate(coarse, size, mode="bicubic")[0]
    mix = torch.rand((2, channels, 1, 1), generator=generator)
    fixed, moving = base * mix[0] + 0.05 * torch.rand((channels, *size), generator=generator), (1 - base**2) * mix[1]
    moving[0, 5, 5] = 40.0
    grid = rf.Grid(size)
    return rf.Image(fixed, grid), rf.Image(moving, grid), torch.rand(size, generator=generator)


def path_of(size):
    generator = torch.Generator().manual_seed(1)
    velocity = torch.rand((3, 2, 7, 8), generator=generator) * 3
    matrix = torch.tensor([[1.0, 0.02, 0.7], [-0.01, 0.98, 1.3]], dtype=torch.float64)
    return ops.Path(velocity, matrix, size, (0, 0), (1.0, 1.0), (0.0, 0.0), (8.0, 8.0), (-2.0, -2.0), 3)


@pytest.mark.parametrize("name", ["mi", "nmi"])
@pytest.mark.parametrize(("channels", "components"), [(1, 1), (3, 1), (3, 2)])
def test_the_metric_agrees_with_itself_on_the_warped_image(name, channels, components):
    fixed, moving, weight = pair(channels)
    metric = rf.metric(name, components=components)
    metric.prepare(fixed, moving)
    path = path_of(fixed.data.shape[1:])
    velocity, matrix = path.velocity.requires_grad_(), path.matrix.requires_grad_()
    value = metric(ops.warp(moving.data, *path), fixed.data, weight)
    grads = torch.autograd.grad(value, (velocity, matrix))
    got = metric.fused(path, moving.data, fixed.data, weight)
    assert relative(got[0], value.detach()) < 1e-5
    for a, b in zip(got[1:], grads, strict=True):
        assert relative(a, b) < 1e-4
    for other in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):  # noqa: S301 - made above
        assert all(
            torch.equal(a, b) for a, b in zip(got, other.fused(path, moving.data, fixed.data, weight), strict=True)
        )


def test_an_image_changed_in_place_is_looked_at_again():
    fixed, moving, weight = pair(1)
    metric = rf.metric("mi")
    metric.prepare(fixed, moving)
    path = path_of(fixed.data.shape[1:])
    first = metric.fused(path, moving.data, fixed.data, weight)[0]
    moving.data[:, :20] = moving.data.flip(-1)[:, :20]
    again = metric.fused(path, moving.data, fixed.data, weight)[0]
    fresh = metric.fused(path, moving.data.clone(), fixed.data.clone(), weight)[0]
    assert float(first) != float(again) == float(fresh)


@pytest.mark.parametrize("options", [{"bins": 300}, {"components": 5}])
def test_more_than_the_op_takes_goes_the_long_way(options):
    fixed, moving, weight = pair(5)
    metric = rf.metric("mi", **options)
    assert metric.fused(path_of(fixed.data.shape[1:]), moving.data, fixed.data, weight) is None  # not prepared
    metric.prepare(fixed, moving)
    assert metric.fused(path_of(fixed.data.shape[1:]), moving.data, fixed.data, weight) is None
    assert math.isfinite(float(metric(moving.data, fixed.data, weight)))


def test_channels_that_do_not_fit_are_said():
    fixed, moving, weight = pair(3)
    metric = rf.metric("mi")
    metric.prepare(fixed, moving)
    with pytest.raises(ValueError, match="3 channels as in prepare, got 2"):
        metric.fused(path_of(fixed.data.shape[1:]), moving.data[:2], fixed.data, weight)
