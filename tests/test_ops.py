"""The ops against their twins in plain torch: values, gradients, borders, tiles, strides and messages."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regframe import ops, reference

pytestmark = pytest.mark.skipif(not ops.is_built(), reason=f"build the ops with `{ops.BUILD_COMMAND}`")

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
    ),
]
DTYPES = [torch.float32, torch.float64]
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-8}


def relative(a, b):
    """Relative L2 distance of two tensors, in double."""
    return ((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30)).item()


def sphere(ndim, dtype=torch.float32, device="cpu", channels=3, n_slices=3, n_steps=None, seed=0, size=(23, 31, 9)):
    """Arguments of `warp` in generic position: bent paths across every border, spacings and origins all different."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape, dtype=dtype):
        return torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype).to(device)

    spatial = size[:2] if ndim == 2 else (9, 11, 13)
    nodes = (7, 8) if ndim == 2 else (5, 6, 7)
    image = rand(channels, *spatial)  # [C, *S]
    velocity = (rand(n_slices, ndim, *nodes) - 0.5) * 6  # [T, D, *S_v]
    turn = torch.eye(ndim, dtype=torch.float64, device=device) * 0.9 + 0.1 * rand(ndim, ndim, dtype=torch.float64)
    matrix = torch.cat([turn, rand(ndim, 1, dtype=torch.float64)], dim=1)  # [D, D+1]
    geometry = (
        [n + 3 for n in spatial],
        [1, -2, 3][:ndim],
        [1.1, 0.9, 1.2][:ndim],
        [0.3, 0.2, -0.4][:ndim],
        [4.0, 5.0, 3.0][:ndim],
        [-3.0, -4.0, -2.0][:ndim],
        n_steps or n_slices,
    )
    return image, velocity, matrix, geometry


def cloud(ndim, dtype=torch.float32, device="cpu", n=200, seed=0):
    """Points ``[N, D]`` in and around the velocity grid of `sphere`."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(n, ndim, generator=generator, dtype=torch.float64) * 30 - 4).to(dtype).to(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(("channels", "n_slices", "n_steps"), [(1, 1, 1), (2, 3, 3), (3, 3, 6), (5, 1, 4)])
def test_warp_agrees_with_the_reference(device, dtype, ndim, channels, n_slices, n_steps):
    image, velocity, matrix, geometry = sphere(ndim, dtype, device, channels, n_slices, n_steps)
    inputs = [t.requires_grad_() for t in (image, velocity, matrix)]
    out, twin = ops.warp(*inputs, *geometry), reference.warp(*inputs, *geometry)
    assert out.shape == twin.shape
    assert out.dtype == dtype
    assert relative(out, twin) < TOLERANCE[dtype] / 10
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out)
    grads, twins = torch.autograd.grad(out, inputs, grad), torch.autograd.grad(twin, inputs, grad)
    for name, a, b in zip(("image", "velocity", "matrix"), grads, twins, strict=True):
        assert a.dtype == b.dtype
        assert relative(a, b) < TOLERANCE[dtype], name


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("to_moving", [True, False])
@pytest.mark.parametrize(("n_slices", "n_steps"), [(1, 1), (3, 3), (3, 9)])
def test_flow_points_agrees_with_the_reference(device, dtype, ndim, to_moving, n_slices, n_steps):
    _, velocity, _, geometry = sphere(ndim, dtype, device, 1, n_slices, n_steps)
    # a step that folds space has more than one inverse, and no twin need pick the same
    velocity = velocity * (n_steps / 9)
    inputs = [cloud(ndim, dtype, device).requires_grad_(), velocity.requires_grad_()]
    out = ops.flow_points(*inputs, *geometry[4:], to_moving)
    twin = reference.flow_points(*inputs, *geometry[4:], to_moving)
    assert relative(out, twin) < TOLERANCE[dtype] / 100
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out)
    for a, b in zip(torch.autograd.grad(out, inputs, grad), torch.autograd.grad(twin, inputs, grad), strict=True):
        assert relative(a, b) < TOLERANCE[dtype]


def contrast_case(ndim, dtype=torch.float32, device="cpu", channels=3, targets=2, n_steps=6):
    """Arguments of `contrast` after the path: generic, with a third of the weights 0."""
    image, velocity, matrix, geometry = sphere(ndim, dtype, device, channels, 3, n_steps)
    shape, _, *rest = geometry
    path = ops.Path(velocity, matrix, tuple(shape), (0,) * ndim, *(tuple(v) for v in rest[:-1]), n_steps)
    generator = torch.Generator().manual_seed(4)

    def rand(*size):
        return torch.rand(*size, generator=generator, dtype=torch.float64)

    weight = (rand(*shape) * (rand(*shape) > 0.3)).to(dtype).to(device)
    fixed = rand(targets, *shape).to(dtype).to(device)
    scales = [torch.stack([rand(n), rand(n) + 0.5]) for n in (channels, targets)]
    return path, image, fixed, weight, *scales


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(
    ("channels", "targets", "order"), [(1, 1, 1), (1, 3, 1), (3, 1, 1), (3, 3, 1), (2, 3, 2), (1, 2, 3), (32, 2, 1)]
)
def test_contrast_agrees_with_the_reference(device, dtype, ndim, channels, targets, order):
    case = contrast_case(ndim, dtype, device, channels, targets)
    # in single precision the order of the sums is felt where channels explain each other: a ridge keeps them apart
    out, twin = ops.contrast(*case, order, 1e-2), reference_contrast(case, order, 1e-2)
    for name, a, b in zip(out._fields, out, twin, strict=True):
        assert a.dtype == b.dtype, name
        assert a.shape == b.shape, name
        assert relative(a, b) < 10 * TOLERANCE[dtype], name
    assert 0 < float(out.value) < 2


def reference_contrast(case, order, ridge):
    path, moving, fixed, weight, of_moving, of_fixed = case
    return reference.contrast(
        moving, fixed, weight, path.velocity, path.matrix, *path[4:], of_moving, of_fixed, order, ridge
    )


def test_contrast_is_what_the_warped_image_gives():
    # the same through ops.warp, lstsq and autograd, each step in plain sight
    path, moving, fixed, weight, of_moving, of_fixed = contrast_case(2, torch.float64)
    velocity, matrix = path.velocity.requires_grad_(), path.matrix.requires_grad_()
    x = (ops.warp(moving, *path).reshape(3, -1) - of_moving[0][:, None]) / of_moving[1][:, None]
    y = (fixed.reshape(2, -1) - of_fixed[0][:, None]) / of_fixed[1][:, None]
    phi = torch.cat([torch.ones_like(x[:1]), x])
    root = weight.reshape(-1).sqrt()
    theta = torch.linalg.lstsq((phi * root).T.detach(), (y * root).T).solution
    value = (((theta.T @ phi - y) * root) ** 2).sum() / weight.sum() / 2
    grads = torch.autograd.grad(value, (velocity, matrix))
    out = ops.contrast(path, moving, fixed, weight, of_moving, of_fixed, 1, 1e-12)
    torch.testing.assert_close(out.value, value.detach())
    torch.testing.assert_close(out.theta, theta.T)
    torch.testing.assert_close(out.velocity_grad, grads[0], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(out.matrix_grad, grads[1], rtol=1e-6, atol=1e-9)
    assert not out.value.requires_grad


@pytest.mark.parametrize("device", DEVICES)
def test_contrast_does_not_see_pixels_without_weight(device):
    path, moving, fixed, weight, *scales = contrast_case(2, torch.float32, device)
    weight[:, : weight.shape[1] // 2] = 0
    here = ops.contrast(path, moving, fixed, weight, *scales)
    dirty = torch.where(weight > 0, fixed, 1e3)
    for a, b in zip(here, ops.contrast(path, moving, dirty, weight, *scales), strict=True):
        assert torch.equal(a, b)
    nothing = ops.contrast(path, moving, fixed, torch.zeros_like(weight), *scales)
    assert float(nothing.value) == 0
    assert not nothing.velocity_grad.any()
    assert not nothing.matrix_grad.any()


def test_contrast_gives_the_same_bytes_again():
    case = contrast_case(2)
    first = ops.contrast(*case)
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, ops.contrast(*case), strict=True))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda p, m, f, w, a, b: (p, m, f[:, 1:], w, a, b), ValueError, "whole grid"),
        (lambda p, m, f, w, a, b: (p, m, f, w[1:], a, b), ValueError, "whole grid"),
        (lambda p, m, f, w, a, b: (p._replace(offset=(1, 0)), m, f, w, a, b), ValueError, "offset"),
        (lambda p, m, f, w, a, b: (p, m[0], f, w, a, b), ValueError, "axes"),
        (lambda p, m, f, w, a, b: (p, m, f.double(), w, a, b), TypeError, "fixed and velocity"),
        (lambda p, m, f, w, a, b: (p, m, f, w.double(), a, b), TypeError, "weight and velocity"),
        (lambda p, m, f, w, a, b: (p, m, f, w, a[:, 1:], b), ValueError, "moving_scale"),
        (lambda p, m, f, w, a, b: (p, m, f, w, a, b.float()), ValueError, "fixed_scale"),
        (lambda p, m, f, w, a, b: (p, m, f, w, a, b, 4), ValueError, "order"),
        (lambda p, m, f, w, a, b: (p, m, f, w, a, b, 1, 0.0), ValueError, "ridge"),
        (lambda p, m, f, w, a, b: (p._replace(matrix=p.matrix.float()), m, f, w, a, b), TypeError, "float64"),
        (lambda p, m, f, w, a, b: (p._replace(n_steps=4), m, f, w, a, b), ValueError, "n_steps"),
    ],
)
def test_contrast_says_what_does_not_fit(change, error, says):
    with pytest.raises(error, match=says):
        ops.contrast(*change(*contrast_case(2)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ndim", [2, 3])
def test_the_two_directions_of_the_flow_are_inverse(dtype, ndim):
    _, velocity, _, geometry = sphere(ndim, dtype, n_steps=6)
    points = cloud(ndim, dtype, n=3000)
    there = ops.flow_points(points, velocity, *geometry[4:], True)
    back = ops.flow_points(there, velocity, *geometry[4:], False)
    assert (there - points).norm(dim=1).max() > 1  # it does move
    assert (back - points).abs().max() < 200 * torch.finfo(dtype).eps * 30


def test_points_and_warp_follow_one_path():
    image, velocity, matrix, geometry = sphere(2, torch.float64)
    ramps = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in image.shape[1:]), indexing="ij"))
    out = ops.warp(ramps, velocity, matrix, *geometry)  # [2, *shape]: the image index each pixel lands on
    start = reference.pixel_positions(matrix, geometry[0], geometry[1]).reshape(-1, 2)
    end = ops.flow_points(start, velocity, *geometry[4:], True)
    index = (end - torch.tensor(geometry[3])) / torch.tensor(geometry[2])
    high = torch.tensor(image.shape[1:]) - 1.0
    inside = ((index >= 0) & (index <= high)).all(dim=1)
    assert inside.any()
    torch.testing.assert_close(out.reshape(2, -1).T[inside], index[inside].double())


@settings(max_examples=40, deadline=None)
@given(
    ndim=st.sampled_from([2, 3]),
    dtype=st.sampled_from(DTYPES),
    corner=st.tuples(*[st.integers(-40, 60)] * 3),
    size=st.tuples(*[st.integers(1, 40)] * 3),
    seed=st.integers(0, 1000),
)
def test_a_tile_is_the_same_as_its_part_of_the_whole(ndim, dtype, corner, size, seed):
    image, velocity, matrix, geometry = sphere(ndim, dtype, channels=2, seed=seed)
    lowest = [min(c, 0) for c in corner[:ndim]]
    whole_shape = [max(c, 0) + s - low for c, s, low in zip(corner, size, lowest, strict=False)]
    if ndim == 3:
        corner, size = (corner[0] % 5, *corner[1:]), (min(size[0], 3), *size[1:])
        lowest[0] = 0
        whole_shape[0] = corner[0] + size[0]
    whole = ops.warp(image, velocity, matrix, whole_shape, lowest, *geometry[2:])
    tile = ops.warp(image, velocity, matrix, size[:ndim], corner[:ndim], *geometry[2:])
    part = whole[(slice(None), *(slice(c - low, c - low + s) for c, low, s in zip(corner, lowest, size, strict=False)))]
    assert torch.equal(tile, part)


PIXELS = [torch.uint8, torch.uint16, torch.float32, torch.float64]


def pixels(ndim, dtype, n_steps=3):
    """Arguments of `warp_crop` for a whole image of ``dtype``, of `sphere`."""
    image, velocity, matrix, (shape, offset, *rest) = sphere(ndim, torch.float64, n_steps=n_steps)
    top = 255 if dtype == torch.uint8 else 65535
    image = image.to(dtype) if dtype.is_floating_point else (image * top).to(torch.int32).to(dtype)
    return image, velocity, matrix, shape, offset, rest


@pytest.mark.parametrize("background", [None, 7.0])
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("dtype", PIXELS)
def test_warp_crop_agrees_with_the_reference_and_with_warp(dtype, ndim, background):
    image, velocity, matrix, shape, offset, rest = pixels(ndim, dtype)
    whole = (image.shape[1:], [0] * ndim)
    out = ops.warp_crop(image, velocity, matrix, shape, offset, *whole, *rest, background)
    twin = reference.warp_crop(image, velocity, matrix, shape, offset, *whole, *rest, background)
    assert out.dtype == dtype
    if dtype.is_floating_point:
        assert relative(out, twin) < TOLERANCE[dtype] / 10
    else:
        assert (out.int() - twin.int()).abs().max() <= (1 if dtype == torch.uint8 else 8)
    if background is None:
        working = torch.float64 if dtype == torch.float64 else torch.float32
        plain = ops.warp(image.to(working), velocity.to(working), matrix, shape, offset, *rest)
        plain = plain if dtype.is_floating_point else plain.round().to(torch.int32).to(dtype)
        assert torch.equal(out, plain)
    else:
        assert (out == 7).any()


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("dtype", PIXELS)
def test_warp_crop_towards_the_fixed_image_agrees_with_the_reference(dtype, ndim):
    image, velocity, matrix, shape, offset, rest = pixels(ndim, dtype, n_steps=6)
    velocity = velocity * 0.3
    after = torch.cat([torch.eye(ndim) + 0.2 * torch.rand(ndim, ndim), torch.rand(ndim, 1)], dim=1).double()
    args = (velocity, matrix, shape, offset, image.shape[1:], [0] * ndim, *rest, 7.0, after)
    out, twin = ops.warp_crop(image, *args), reference.warp_crop(image, *args)
    differ = (out.double() - twin.double()).abs()
    top = {torch.uint8: 1, torch.uint16: 60}.get(dtype, 1e-3 if dtype == torch.float32 else 1e-10)
    edge = differ > top  # where a rounding decides whether a pixel is inside
    assert edge.double().mean() < 0.002
    assert (out == 7).any()
    assert (out != 7).any()
    low = [o + 1 for o in offset]
    part = ops.warp_crop(image, velocity, matrix, [n - 2 for n in shape], low, *args[4:])
    assert torch.equal(part, out[(slice(None), *(slice(1, n - 1) for n in shape))])


@settings(max_examples=40, deadline=None)
@given(
    ndim=st.sampled_from([2, 3]),
    dtype=st.sampled_from(PIXELS),
    background=st.sampled_from([None, 3.0]),
    corner=st.tuples(*[st.integers(0, 8)] * 3),
    size=st.tuples(*[st.integers(1, 12)] * 3),
    seed=st.integers(0, 9),
)
def test_a_part_of_the_image_gives_what_the_whole_gives(ndim, dtype, background, corner, size, seed):
    image, velocity, matrix, shape, offset, rest = pixels(ndim, dtype)
    velocity = velocity * (0.1 + 0.05 * seed)
    args = (velocity, matrix)
    whole = ops.warp_crop(image, *args, shape, offset, image.shape[1:], [0] * ndim, *rest, background)
    size = [min(n, s) for n, s in zip(size, shape, strict=False)]
    corner = [min(c, s - n) for c, s, n in zip(corner, shape, size, strict=False)]
    start = [o + c for o, c in zip(offset, corner, strict=True)]
    end = reference.flow_points(
        reference.pixel_positions(matrix, size, start).reshape(-1, ndim), velocity, *rest[2:], True
    )
    index = (end - torch.tensor(rest[1])) / torch.tensor(rest[0])  # [N, D]
    top = torch.tensor(image.shape[1:])
    low = (index.min(0).values.floor().long() - 1).clamp(min=0).minimum(top - 2)
    high = (index.max(0).values.floor().long() + 3).maximum(low + 2).minimum(top)
    low = low.minimum(high - 2)
    part = image[(slice(None), *(slice(int(a), int(b)) for a, b in zip(low, high, strict=True)))]
    tile = ops.warp_crop(part, *args, size, start, image.shape[1:], low.tolist(), *rest, background)
    window = (slice(None), *(slice(c, c + n) for c, n in zip(corner, size, strict=True)))
    assert torch.equal(tile, whole[window])


def test_a_part_that_does_not_hold_what_is_asked_stays_within_its_memory():
    image, velocity, matrix, shape, offset, rest = pixels(2, torch.uint8)
    for low in ([0, 0], [15, 20]):
        part = image[:, low[0] : low[0] + 4, low[1] : low[1] + 3].clone()
        out = ops.warp_crop(part, velocity * 100, matrix, shape, offset, image.shape[1:], low, *rest)
        assert out.shape == (3, *shape)


def test_messages_of_warp_crop():
    image, velocity, matrix, shape, offset, rest = pixels(2, torch.uint8)
    whole = (image.shape[1:], [0, 0])
    with pytest.raises(TypeError, match="uint8, uint16, float32 or float64"):
        ops.warp_crop(image.to(torch.int32), velocity, matrix, shape, offset, *whole, *rest)
    with pytest.raises(ValueError, match="must be a part"):
        ops.warp_crop(image, velocity, matrix, shape, offset, image.shape[1:], [1, 0], *rest)
    with pytest.raises(ValueError, match="after must be"):
        ops.warp_crop(image, velocity, matrix, shape, offset, *whole, *rest, after=matrix.float())
    with pytest.raises(ValueError, match="must be a part"):
        ops.warp_crop(image[:, :1], velocity, matrix, shape, offset, *whole, *rest)
    library = torch.ops.regframe
    with pytest.raises(RuntimeError, match="must be a part"):
        library.warp_crop(image, velocity.float(), matrix, None, shape, offset, image.shape[1:], [1, 0], *rest, None)
    with pytest.raises(RuntimeError, match="float32 for any other"):
        library.warp_crop(image, velocity, matrix, None, shape, offset, *whole, *rest, None)


def test_opcheck_of_warp_crop():
    image, velocity, matrix, shape, offset, rest = pixels(2, torch.uint8)
    args = (image, velocity.float(), matrix, None, shape, offset, list(image.shape[1:]), [0, 0], *rest, 3.0)
    torch.library.opcheck(torch.ops.regframe.warp_crop, args, test_utils=OPCHECKS)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ndim", [2, 3])
def test_gradcheck(device, ndim):
    # the difference step is far smaller than the distance of these positions from the borders of cells
    options = {"eps": 1e-7, "atol": 1e-4, "fast_mode": True}
    image, velocity, matrix, geometry = sphere(ndim, torch.float64, device, channels=2, n_slices=2, n_steps=4)
    geometry = ([5, 4, 3][:ndim], [3, 4, 2][:ndim], *geometry[2:])
    inputs = [t.requires_grad_() for t in (image, velocity, matrix)]
    assert torch.autograd.gradcheck(lambda *t: ops.warp(*t, *geometry), inputs, **options)
    points = cloud(ndim, torch.float64, device, n=12).requires_grad_()
    for to_moving in (True, False):
        assert torch.autograd.gradcheck(
            lambda *t, to_moving=to_moving: ops.flow_points(*t, *geometry[4:], to_moving), (points, velocity), **options
        )


def layouts(tensors, layout):
    """The same values with other strides."""
    if layout == "transposed":
        return [t.transpose(-1, -2).contiguous().transpose(-1, -2) for t in tensors]
    return list(tensors)


OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "expanded", "empty"])
def test_opcheck(device, dtype, layout):
    image, velocity, matrix, geometry = sphere(2, dtype, device, size=(6, 5))
    geometry = ([0, 4] if layout == "empty" else [5, 4], *geometry[1:])
    points = cloud(2, dtype, device, n=0 if layout == "empty" else 7)
    image, velocity, matrix, points = layouts((image, velocity, matrix, points), layout)
    grad = torch.ones((3, *geometry[0]), dtype=dtype, device=device)
    point_grad = torch.ones_like(points)
    if layout == "expanded":
        grad = torch.ones((), dtype=dtype, device=device).expand(grad.shape)
        point_grad = torch.ones((), dtype=dtype, device=device).expand(point_grad.shape)
    library = torch.ops.regframe
    inputs = [t.detach().requires_grad_() for t in (image, velocity, matrix)]
    torch.library.opcheck(library.warp, (*inputs, *geometry), test_utils=OPCHECKS)
    torch.library.opcheck(
        library._warp_backward, (grad, image, velocity, matrix, *geometry, True, True, True), test_utils=OPCHECKS
    )
    for to_moving in (True, False):
        torch.library.opcheck(
            library.flow_points,
            (points.detach().requires_grad_(), inputs[1], *geometry[4:], to_moving),
            test_utils=OPCHECKS,
        )
        torch.library.opcheck(
            library._flow_points_backward,
            (point_grad, points, points, velocity, *geometry[4:], to_moving),
            test_utils=OPCHECKS,
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ndim", [2, 3])
def test_strides_do_not_matter(dtype, ndim):
    image, velocity, matrix, geometry = sphere(ndim, dtype)
    plain = [t.clone().requires_grad_() for t in (image, velocity, matrix)]
    other = [t.detach().requires_grad_() for t in layouts((image, velocity, matrix), "transposed")]
    assert not other[0].is_contiguous()
    a, b = ops.warp(*plain, *geometry), ops.warp(*other, *geometry)
    assert torch.equal(a, b)
    grads = torch.autograd.grad(a.sum(), plain)  # a gradient whose strides are all 0
    twins = torch.autograd.grad((b * torch.ones_like(b)).sum(), other)
    assert all(torch.equal(x, y) for x, y in zip(grads, twins, strict=True))
    transposed = torch.randn(a.transpose(-1, -2).shape, dtype=dtype).transpose(-1, -2)
    grads = torch.ops.regframe._warp_backward(transposed, *plain, *geometry, True, True, True)
    twins = torch.ops.regframe._warp_backward(transposed.contiguous(), *plain, *geometry, True, True, True)
    assert all(torch.equal(x, y) for x, y in zip(grads, twins, strict=True))


def test_only_the_gradients_asked_for_are_made():
    image, velocity, matrix, geometry = sphere(2)
    full = torch.ops.regframe._warp_backward(
        torch.ones(3, 26, 34), image, velocity, matrix, *geometry, True, True, True
    )
    for i in range(3):
        wanted = [i == k for k in range(3)]
        part = torch.ops.regframe._warp_backward(torch.ones(3, 26, 34), image, velocity, matrix, *geometry, *wanted)
        assert [t.numel() > 0 for t in part] == wanted
        assert torch.equal(part[i], full[i])
    out = ops.warp(image, velocity.requires_grad_(), matrix, *geometry)
    out.sum().backward()
    assert image.grad is None
    assert torch.equal(velocity.grad, full[1])


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_nothing_asked_nothing_given(shape):
    image, velocity, matrix, geometry = sphere(2)
    inputs = [t.requires_grad_() for t in (image, velocity, matrix)]
    out = ops.warp(*inputs, shape, *geometry[1:])
    assert out.shape == (3, *shape)
    assert all(not g.any() for g in torch.autograd.grad(out.sum(), inputs))
    assert ops.warp(image[:0], velocity, matrix, *geometry).shape == (0, 26, 34)
    points = cloud(2, n=0).requires_grad_()
    out = ops.flow_points(points, inputs[1], *geometry[4:], False)
    assert out.shape == (0, 2)
    assert not torch.autograd.grad(out.sum(), inputs[1])[0].any()


def test_identity_gives_the_image_back_and_one_pixel_axes_work():
    image = torch.rand(2, 5, 7)
    still = torch.zeros(1, 2, 3, 3)
    eye = torch.eye(2, 3, dtype=torch.float64)
    unit = ([1.0, 1.0], [0.0, 0.0], [2.0, 2.0], [0.0, 0.0], 1)
    torch.testing.assert_close(ops.warp(image, still, eye, (5, 7), (0, 0), *unit), image, rtol=0, atol=1e-7)
    line = image[:, :1]  # [2, 1, 7]
    out = ops.warp(line, still, eye, (3, 7), (-1, 0), *unit)
    torch.testing.assert_close(out, line.expand(2, 3, 7), rtol=0, atol=1e-7)
    far = ops.warp(image, still, eye, (2, 2), (-(10**9), 10**9), *unit)
    torch.testing.assert_close(far, image[:, :1, -1:].expand(2, 2, 2), rtol=0, atol=1e-7)


def test_a_small_shift_in_a_large_image_is_not_lost_to_rounding():
    # float32 positions near 3e5 are 0.03 px apart; the path is kept as a displacement from the exact start instead
    line = torch.arange(300_000, dtype=torch.float32).reshape(1, 1, -1) % 2
    velocity = torch.zeros(1, 2, 2, 5)
    eye = torch.eye(2, 3, dtype=torch.float64)
    eye[1, 2] = 0.30517
    args = ([1.0, 1.0], [0.0, 0.0], [1.0, 1e5], [0.0, 0.0], 1)
    out = ops.warp(line, velocity, eye, (1, 4), (0, 299_900), *args)
    torch.testing.assert_close(out[0, 0], torch.tensor([0.30517, 1 - 0.30517] * 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("ndim", [2, 3])
def test_positions_that_are_not_numbers_stay_within_bounds(value, ndim):
    for dtype in DTYPES:
        image, velocity, matrix, geometry = sphere(ndim, dtype)
        broken = velocity.clone()
        broken[1, 0] = value
        inputs = [t.requires_grad_() for t in (image, broken, matrix)]
        torch.autograd.grad(ops.warp(*inputs, *geometry).sum(), inputs)
        wild = matrix.detach().clone()
        wild[0, -1] = value
        inputs = [t.requires_grad_() for t in (image, velocity, wild)]
        torch.autograd.grad(ops.warp(*inputs, *geometry).sum(), inputs)
        points = cloud(ndim, dtype)
        points[3] = value
        for to_moving in (True, False):
            out = ops.flow_points(points, velocity.detach(), *geometry[4:], to_moving)
            assert out[:3].isfinite().all()
            assert out[4:].isfinite().all()
            ops.flow_points(points, broken, *geometry[4:], to_moving).sum().backward()


def test_the_same_threads_give_the_same_bytes():
    image, velocity, matrix, geometry = sphere(2, size=(90, 70))
    grad = torch.randn(3, 93, 73)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            runs = [
                torch.ops.regframe._warp_backward(grad, image, velocity, matrix, *geometry, True, True, True)
                for _ in range(3)
            ]
            assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))
            if threads == 1:
                alone = runs[0]
        assert torch.equal(alone[0], runs[0][0])  # the image's gradient does not even depend on the threads
        assert relative(runs[0][1], alone[1]) < 1e-6
    finally:
        torch.set_num_threads(before)


def test_gradient_is_once_only():
    image, velocity, matrix, geometry = sphere(2)
    velocity.requires_grad_()
    (grad,) = torch.autograd.grad(ops.warp(image, velocity, matrix, *geometry).sum(), velocity, create_graph=True)
    with pytest.raises(RuntimeError, match=r"regframe\.warp has no second derivative.*REGFRAME_REFERENCE=1"):
        grad.sum().backward()
    points = cloud(2).requires_grad_()
    (grad,) = torch.autograd.grad(
        ops.flow_points(points, velocity, *geometry[4:], True).sum(), points, create_graph=True
    )
    with pytest.raises(RuntimeError, match=r"regframe\.flow_points has no second derivative"):
        grad.sum().backward()


def changed(base, **changes):
    names = ["image", "velocity", "matrix", "shape", "offset", "image_spacing", "image_origin"]
    names += ["velocity_spacing", "velocity_origin", "n_steps"]
    return [changes.get(name, value) for name, value in zip(names, base, strict=True)]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"matrix": torch.eye(3, dtype=torch.float64)},
            ValueError,
            r"matrix must be \[2, 3\] or \[3, 4\], got \[3, 3\]",
        ),
        ({"matrix": torch.eye(2, 3)}, TypeError, r"matrix must be float64.*matrix\.double\(\)"),
        ({"image": torch.rand(5, 5)}, ValueError, r"image must be \[C, y, x\].*got \[5, 5\]"),
        ({"image": torch.rand(1, 0, 5)}, ValueError, r"at least one pixel"),
        ({"image": torch.ones(1, 5, 5, dtype=torch.int32)}, TypeError, r"float32 or float64, got torch\.int32"),
        ({"image": torch.rand(1, 5, 5, dtype=torch.float64)}, TypeError, r"share one dtype"),
        ({"velocity": torch.rand(3, 3, 4, 4)}, ValueError, r"velocity must be \[T, 2, y, x\]"),
        ({"velocity": torch.rand(0, 2, 4, 4)}, ValueError, r"at least one node"),
        ({"velocity": torch.rand(3, 2, 4, 4, device="meta")}, ValueError, r"one device, got cpu and meta"),
        ({"n_steps": 4}, ValueError, r"multiple of the 3 time slices.*got 4"),
        ({"n_steps": 0}, ValueError, r"multiple of the 3 time slices.*got 0"),
        ({"shape": [4]}, ValueError, r"shape needs 2 numbers, one per axis, got 1"),
        ({"shape": [4, -1]}, ValueError, r"sizes of 0 or more, got \[4, -1\]"),
        ({"image_spacing": [1.0, 0.0]}, ValueError, r"image_spacing needs numbers above 0"),
        ({"velocity_origin": [1.0, math.nan]}, ValueError, r"velocity_origin needs finite numbers"),
    ],
)
def test_messages_of_warp(changes, error, message):
    image, velocity, matrix, geometry = sphere(2)
    with pytest.raises(error, match=message):
        ops.warp(*changed((image, velocity, matrix, *geometry), **changes))


def test_messages_of_flow_points():
    _, velocity, _, geometry = sphere(2)
    with pytest.raises(ValueError, match=r"points must be \[N, 2\] or \[N, 3\], got \[4\]"):
        ops.flow_points(torch.rand(4), velocity, *geometry[4:], True)
    with pytest.raises(TypeError, match=r"points and velocity must share one dtype"):
        ops.flow_points(cloud(2, torch.float64), velocity, *geometry[4:], True)
    with pytest.raises(ValueError, match=r"velocity must be \[T, 3, z, y, x\]"):
        ops.flow_points(cloud(3), velocity, [1.0] * 3, [0.0] * 3, 3, True)


def test_calls_that_come_round_the_wrapper_are_stopped_in_the_kernel():
    image, velocity, matrix, geometry = sphere(2)
    for args in [
        changed((image, velocity, matrix, *geometry), velocity=velocity.double()),
        changed((image, velocity, matrix, *geometry), matrix=matrix.float()),
        changed((image, velocity, matrix, *geometry), n_steps=5),
        changed((image, velocity, matrix, *geometry), shape=[3]),
        changed((image, velocity, matrix, *geometry), image=image[:, :0]),
    ]:
        with pytest.raises(RuntimeError):
            torch.ops.regframe.warp(*args)
    with pytest.raises(RuntimeError, match="grad must be"):
        torch.ops.regframe._warp_backward(torch.ones(1), image, velocity, matrix, *geometry, True, True, True)


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_plainer_machines_agree(isa):
    script = """
import torch
from regframe import ops, reference
import sys
sys.path.insert(0, sys.argv[1])
from test_ops import sphere, relative, cloud
for ndim in (2, 3):
    image, velocity, matrix, geometry = sphere(ndim)
    inputs = [t.requires_grad_() for t in (image, velocity, matrix)]
    a, b = ops.warp(*inputs, *geometry), reference.warp(*inputs, *geometry)
    assert relative(a, b) < 1e-4
    for x, y in zip(torch.autograd.grad(a.sum(), inputs), torch.autograd.grad(b.sum(), inputs), strict=True):
        assert relative(x, y) < 1e-3
    for to_moving in (True, False):
        a = ops.flow_points(cloud(ndim), velocity, *geometry[4:], to_moving)
        assert relative(a, reference.flow_points(cloud(ndim), velocity, *geometry[4:], to_moving)) < 1e-5
    from test_information import case, twin
    for lines in ((1, 1), (2, 1)):
        arguments = case(ndim, lines=lines)
        for x, y in zip(ops.information(*arguments, 12), twin(arguments, 12, False), strict=True):
            assert relative(x, y) < 1e-4
from test_correlation import case, check
for shape in ((37, 150), (9, 14, 20)):
    check(case(shape), 4, 1e-4, False)
"""
    environment = {**os.environ, "REGFRAME_ISA": isa}
    subprocess.run([sys.executable, "-c", script, str(Path(__file__).parent)], env=environment, check=True)
