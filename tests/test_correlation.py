"""Local correlation as one op: values and gradients against plain torch, against finite differences, and what is refused."""

import copy
import math
import pickle

import pytest
import torch
from test_information import pair, path_of
from test_ops import DEVICES, DTYPES, relative

import regframe as rf
from regframe import ops, reference

pytestmark = pytest.mark.skipif(not ops.is_built(), reason=f"build the ops with `{ops.BUILD_COMMAND}`")

FLOOR = 1e-4
CLOSE = {torch.float32: 1e-4, torch.float64: 1e-10}


def case(shape, dtype=torch.float32, device="cpu", channels=1):
    """Arguments of `correlation`: two sides that share something, some weights 0."""
    generator = torch.Generator().manual_seed(len(shape))
    fixed, noise = torch.randn((2, channels, *shape), generator=generator, dtype=torch.float64)
    weight = torch.rand(shape, generator=generator, dtype=torch.float64) - 0.2
    return [t.to(device, dtype) for t in (0.5 * fixed + 0.5 * noise + 0.3, fixed, weight.clamp(min=0))]


def check(arguments, *rules):
    out, twin = ops.correlation(*arguments, *rules), reference.correlation(*arguments, *rules, True)
    for name, a, b in zip(out._fields, out, twin, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        assert float((a - b).abs().max()) <= CLOSE[arguments[0].dtype] * max(float(b.abs().max()), 1e-12), name
    return out


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(37, 150), (9, 14, 20)])
@pytest.mark.parametrize(("channels", "radius"), [(1, 1), (1, 4), (3, 8), (1, 100)])
@pytest.mark.parametrize("signed", [False, True])
def test_the_op_agrees_with_the_reference(device, dtype, shape, channels, radius, signed):
    arguments = case(shape, dtype, device, channels)
    out = check(arguments, radius, FLOOR, signed)
    value, gradient = ops.correlation(*arguments, radius, FLOOR, signed, gradient=False)
    assert torch.equal(value, out.value)
    assert gradient.shape == (0,)
    layout = [t.transpose(-1, -2).contiguous().transpose(-1, -2) for t in arguments]  # not contiguous
    assert all(torch.equal(a, b) for a, b in zip(out, ops.correlation(*layout, radius, FLOOR, signed), strict=True))


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 70), (67, 1), (5, 3), (33, 257), (1, 5, 6), (3, 1, 40), (4, 7, 1), (0, 5)]
)
def test_odd_sizes(shape):
    arguments = case(shape, torch.float64)
    if 0 not in shape:
        check(arguments, 2, FLOOR, False)
    else:
        value, gradient = ops.correlation(*arguments, 2, FLOOR)
        assert float(value) == 0
        assert gradient.shape == (1, *shape)


@pytest.mark.parametrize("shape", [(6, 7), (3, 4, 5)])
@pytest.mark.parametrize("signed", [False, True])
def test_the_gradient_is_that_of_finite_differences(shape, signed):
    class Known(torch.autograd.Function):
        @staticmethod
        def forward(ctx, warped):
            out = ops.correlation(warped, fixed, weight, 2, 0.05, signed)
            ctx.save_for_backward(out.gradient)
            return out.value

        @staticmethod
        def backward(ctx, grad):
            return ctx.saved_tensors[0] * grad

    warped, fixed, weight = case(shape, torch.float64, channels=2)
    assert torch.autograd.gradcheck(Known.apply, warped.requires_grad_())


@pytest.mark.parametrize("axis", [-1, -2])
def test_sums_do_not_remember_what_left_their_box(axis):
    """Pixels a million times brighter leave no trace in the boxes that they are not in, as they would in running sums."""
    _, fixed, weight = case((64, 64))
    warped = fixed.flip(-1)
    bright, blank = (t.transpose(axis, -1) for t in (fixed.clone(), weight))
    bright[..., :20] *= 1e6
    blank[..., :20] = 1e-6  # counts for next to nothing itself
    blank[..., 20:26] = 0  # and shares no box with the rest
    clean, marked = (ops.correlation(warped, side, weight, 2, FLOOR) for side in (fixed, bright.transpose(axis, -1)))
    assert float(marked.value) == pytest.approx(float(clean.value), abs=2e-6)
    far = [out.gradient.transpose(axis, -1)[..., 26:] for out in (clean, marked)]
    assert relative(far[1], far[0]) < 1e-5


@pytest.mark.parametrize("device", DEVICES)
def test_pixels_without_weight_are_not_seen(device):
    warped, fixed, weight = case((30, 41), device=device)
    weight[:, :19] = 0
    here = ops.correlation(warped, fixed, weight, 4, FLOOR)
    dirty = [torch.where(weight > 0, side, math.nan) for side in (warped, fixed)]
    for a, b in zip(here, ops.correlation(*dirty, weight, 4, FLOOR), strict=True):
        assert torch.equal(a, b)
    assert not any(bool(t.any()) for t in ops.correlation(warped, fixed, torch.zeros_like(weight), 4, FLOOR))
    flat = ops.correlation(torch.full_like(warped, 0.3), torch.full_like(fixed, 0.3), weight, 4, FLOOR)
    assert float(flat.value) == pytest.approx(1, abs=1e-3)
    assert bool(flat.gradient.isfinite().all())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_what_is_not_finite_is_seen(value, side):
    arguments = case((12, 15))
    arguments[side][0, 3] = value
    out = ops.correlation(*arguments, 2, FLOOR)
    assert not out.value.isfinite()
    assert not out.gradient.isfinite().all()


@pytest.mark.parametrize("shape", [(130, 300), (17, 20, 31)])
def test_the_same_bytes_with_any_number_of_threads(shape):
    arguments = case(shape)
    threads = torch.get_num_threads()
    runs = []
    try:
        for n in (1, 1, 2, 3):
            torch.set_num_threads(n)
            runs.append(ops.correlation(*arguments, 4, FLOOR))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda x, y, w: (x, y[:, 1:], w, 4, FLOOR), ValueError, "of one shape"),
        (lambda x, y, w: (x, y, w[1:], 4, FLOOR), ValueError, "of one shape"),
        (lambda x, y, w: (x.expand(2, -1, -1), y, w, 4, FLOOR), ValueError, "mean channel"),
        (lambda x, y, w: (x[:, 0], y[:, 0], w[0], 4, FLOOR), ValueError, "of one shape"),
        (lambda x, y, w: (x, y.double(), w, 4, FLOOR), TypeError, "float32 or all float64"),
        (lambda x, y, w: (x.half(), y.half(), w.half(), 4, FLOOR), TypeError, "float32 or all float64"),
        (lambda x, y, w: (x, y, w, 0, FLOOR), ValueError, "radius"),
        (lambda x, y, w: (x, y, w, 4, 0.0), ValueError, "floor"),
        (lambda x, y, w: (x, y, w, 4, math.nan), ValueError, "floor"),
    ],
)
def test_what_does_not_fit_is_said(change, error, says):
    with pytest.raises(error, match=says):
        ops.correlation(*change(*case((9, 11))))


def test_calls_round_the_python_side_are_stopped():
    warped, fixed, weight = case((9, 11))
    for arguments in (
        (warped, fixed[:, 1:], weight, 4, FLOOR), (warped, fixed, weight.double(), 4, FLOOR), (warped, fixed, weight, 0, FLOOR),
    ):  # fmt: skip
        with pytest.raises(RuntimeError):
            torch.ops.regframe.correlation(*arguments, False, True)


@pytest.mark.parametrize(("channels", "options"), [((1, 1), {"radius": 8}), ((3, 3), {"signed": True}), ((3, 1), {})])
def test_the_metric_agrees_with_itself_on_the_warped_image(channels, options):
    fixed, moving, weight = pair(3)
    fixed, moving = (rf.Image(side.data[:c], side.grid) for side, c in zip((fixed, moving), channels, strict=True))
    metric = rf.metric("lncc", **options)
    path = path_of(fixed.data.shape[1:])
    assert metric.fused(path, moving.data, fixed.data, weight) is None  # not prepared
    metric.prepare(fixed, moving)
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
    moving.data[:, :20] = moving.data.flip(-1)[:, :20]  # an image changed in place is looked at again
    again = metric.fused(path, moving.data, fixed.data, weight)
    assert float(again[0]) != float(got[0])
    assert torch.equal(again[0], metric.fused(path, moving.data.clone(), fixed.data.clone(), weight)[0])
    with pytest.raises(ValueError, match="channels as in prepare"):
        metric.fused(path, moving.data[:1].expand(4, -1, -1), fixed.data, weight)
