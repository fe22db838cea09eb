"""The CUDA kernels without a GPU: the very sources, compiled as C++ and run fiber by fiber, against the reference.

What this cannot show is said in ``cuda_on_host/cuda_on_host.h``: it is about results, not about speed or memory models.
"""

import fcntl
import hashlib
import math
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from test_ops import DTYPES, cloud, contrast_case, layouts, reference_contrast, relative, sphere

from regframe import reference

ROOT = Path(__file__).resolve().parents[1]
HOST = ROOT / "tests" / "cuda_on_host"
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-11}
CXX = os.environ.get("CXX", "g++")

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the fibers are tried on Linux only"),
    pytest.mark.skipif(shutil.which(CXX) is None, reason=f"needs the C++ compiler {CXX}"),
]


def command():
    """The compiler and its flags, without what is compiled."""
    torch_folder = Path(torch.__file__).parent
    includes = [HOST, ROOT / "csrc", torch_folder / "include", torch_folder / "include/torch/csrc/api/include"]
    includes.append(Path(sysconfig.get_path("include")))
    flags = ["-std=c++17", "-O1", "-g0", "-fPIC", "-Wno-psabi", "-Wno-unknown-pragmas", "-U_FORTIFY_SOURCE"]
    flags += ["-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-include", "cuda_runtime.h"]
    return [CXX, *flags, *(f"-I{path}" for path in includes)]


def key():
    """What the library depends on, in one word: every source, the compiler, its flags and torch."""
    version = subprocess.run([CXX, "--version"], capture_output=True, text=True, check=True).stdout
    digest = hashlib.sha256(repr((command(), version, torch.__version__)).encode())
    for folder in (ROOT / "csrc", HOST):
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def build(folder):
    """Compiles everything into one library in ``folder``; returns its path."""
    sources = [*sorted((ROOT / "csrc" / "cuda").glob("*.cu")), ROOT / "csrc" / "library.cpp", HOST / "cuda_on_host.cpp"]
    objects = [folder / f"{source.name}.o" for source in sources]
    running = []
    for source, target in zip(sources, objects, strict=True):
        if len(running) == max(2, os.cpu_count() or 1):
            finish(running.pop(0))
        running.append(
            subprocess.Popen([*command(), "-x", "c++", "-c", source, "-o", target], stderr=subprocess.PIPE, text=True)
        )
    for process in running:
        finish(process)
    library, linked = folder / "cuda_on_host.so", folder / "linked.so"
    # the functions of torch that cuda_on_host.cpp stands in for must be its own, also where torch has them
    link = ["-shared", "-Wl,-Bsymbolic", f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu"]
    finish(subprocess.Popen([CXX, *objects, "-o", linked, *link], stderr=subprocess.PIPE, text=True))
    return linked.rename(library)


def finish(process):
    _, messages = process.communicate()
    assert process.returncode == 0, messages


@pytest.fixture(scope="session")
def library(tmp_path_factory, request):
    """The library, compiled once for all processes of a test run: the first one compiles with every core, others wait for it.

    It lies in pytest's cache, where there is one, and is compiled again once anything that it depends on has changed.
    """
    here, name = tmp_path_factory.getbasetemp(), key()
    kept = here.parent if "PYTEST_XDIST_WORKER" in os.environ else here
    if hasattr(request.config, "cache"):
        kept = request.config.cache.mkdir("cuda_on_host")
        for other in kept.iterdir():
            if other.name != name:
                shutil.rmtree(other, ignore_errors=True)
    folder = kept / name
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = folder / "cuda_on_host.so"
        torch.ops.load_library(str(found if found.exists() else build(folder)))
    return torch.ops.regframe_cuda_on_host


@pytest.fixture
def device(monkeypatch):
    """Sets up the device that the next calls run on."""

    def choose(seed=0, shared=98304, processors=2):
        monkeypatch.setenv("CUDA_ON_HOST_SEED", str(seed))
        monkeypatch.setenv("CUDA_ON_HOST_SHARED", str(shared))
        monkeypatch.setenv("CUDA_ON_HOST_PROCESSORS", str(processors))

    return choose


def twin_of_warp(grad, image, velocity, matrix, geometry):
    """Value and the three gradients of `reference.warp`."""
    inputs = [t.detach().clone().requires_grad_() for t in (image, velocity, matrix)]
    out = reference.warp(*inputs, *geometry)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


def check_warp(library, image, velocity, matrix, geometry):
    """Compares value and gradients with the reference; returns them."""
    shape = (image.shape[0], *geometry[0])
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(image)
    out = [library.warp(image, velocity, matrix, *geometry)]
    out += library._warp_backward(grad, image, velocity, matrix, *geometry, True, True, True)
    twin = twin_of_warp(grad, image, velocity, matrix, geometry)
    for name, a, b in zip(("value", "image", "velocity", "matrix"), out, twin, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert relative(a, b) < TOLERANCE[image.dtype], name
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("shared", [0, 98304])
@pytest.mark.parametrize(("channels", "n_slices", "n_steps"), [(1, 1, 1), (3, 3, 6), (5, 2, 20)])
def test_warp_agrees_with_the_reference(library, device, dtype, ndim, shared, channels, n_slices, n_steps):
    device(shared=shared, processors=1)  # one of them: few blocks, so that private sums are worth while
    check_warp(library, *sphere(ndim, dtype, "cpu", channels, n_slices, n_steps))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 70), (67, 1), (3, 3), (33, 65), (4, 8), (1, 1, 1), (17, 1, 33), (2, 19, 3)]
)
def test_odd_sizes(library, device, dtype, shape):
    device()
    image, velocity, matrix, geometry = sphere(len(shape), dtype, channels=2)
    check_warp(library, image, velocity, matrix, (list(shape), *geometry[1:]))
    thin = image[(slice(None), *(slice(0, 1 + d) for d in range(len(shape))))]  # [2, 1, 2, ...]: an axis of one pixel
    check_warp(library, thin, velocity, matrix, (list(shape), *geometry[1:]))


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_fine_grid_and_a_grid_of_one_node(library, device, ndim):
    # cells of a fraction of a pixel: no two lanes share one
    device()
    image, _, matrix, geometry = sphere(ndim)
    generator = torch.Generator().manual_seed(2)
    for nodes, spacing in ((40 if ndim == 2 else 24, 0.7), (1, 30.0)):
        velocity = torch.rand(3, ndim, *[nodes] * ndim, generator=generator) * spacing
        check_warp(library, image, velocity, matrix, (*geometry[:4], [spacing] * ndim, *geometry[5:]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("to_moving", [True, False])
@pytest.mark.parametrize(("shared", "n", "n_steps"), [(0, 200, 9), (98304, 700, 3), (98304, 1, 3), (0, 33, 21)])
def test_flow_points_agrees_with_the_reference(library, device, dtype, ndim, to_moving, shared, n, n_steps):
    device(shared=shared, processors=1)
    _, velocity, _, geometry = sphere(ndim, dtype, "cpu", 1, 3, n_steps)
    # a step that folds space has more than one inverse, and no twin need pick the same
    velocity = velocity * (n_steps / 21)
    points = cloud(ndim, dtype, n=n)
    inputs = [points.clone().requires_grad_(), velocity.clone().requires_grad_()]
    twin = reference.flow_points(*inputs, *geometry[4:], to_moving)
    out = library.flow_points(points, velocity, *geometry[4:], to_moving)
    assert relative(out, twin) < TOLERANCE[dtype]
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out)
    grads = library._flow_points_backward(grad, points, out, velocity, *geometry[4:], to_moving)
    for a, b in zip(grads, torch.autograd.grad(twin, inputs, grad), strict=True):
        assert relative(a, b) < 10 * TOLERANCE[dtype]


def contrast_arguments(case, order=1, ridge=1e-2):
    path, moving, fixed, weight, *scales = case
    return moving, fixed, weight, path.velocity, path.matrix, *path[4:], *scales, order, ridge


def run_contrast(library, case, order=1):
    return library.contrast(*contrast_arguments(case, order))


FEW = [(1, 1, 1), (1, 3, 1), (3, 1, 1), (3, 3, 1), (2, 3, 2), (1, 2, 3)]
MANY = [(32, 2, 1), (127, 1, 1), (42, 2, 3), (2, 300, 1)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("ndim", "channels", "targets", "order"), [(2, *n) for n in (*FEW, *MANY)] + [(3, *n) for n in FEW]
)
def test_contrast_agrees_with_the_reference(library, device, dtype, ndim, channels, targets, order):
    device(processors=1)
    case = contrast_case(ndim, dtype, "cpu", channels, targets)
    out, twin = run_contrast(library, case, order), reference_contrast(case, order, 1e-2)
    for name, a, b in zip(("value", "theta", "velocity", "matrix"), out, twin, strict=True):
        assert a.dtype == b.dtype, name
        assert a.shape == b.shape, name
        assert relative(a, b) < (2e-3 if dtype == torch.float32 else 1e-9), name


@pytest.mark.parametrize("channels", [2, 3])
def test_contrast_does_not_see_pixels_without_weight(library, device, channels):
    device()
    path, moving, fixed, weight, *scales = contrast_case(2, channels=channels, targets=3)
    weight[:, : weight.shape[1] // 2] = 0
    here = run_contrast(library, (path, moving, fixed, weight, *scales))
    dirty = torch.where(weight > 0, fixed, math.nan)
    for a, b in zip(here, run_contrast(library, (path, moving, dirty, weight, *scales)), strict=True):
        assert torch.equal(a, b)
    nothing = run_contrast(library, (path, moving, fixed, torch.zeros_like(weight), *scales))
    assert all(not t.any() for t in nothing)
    empty = path._replace(shape=(0, 5))
    nothing = run_contrast(library, (empty, moving, fixed[:, :0, :5], weight[:0, :5], *scales))
    assert all(not t.any() for t in nothing)


def gradient_calls(dtype=torch.float32, ndim=2, device="cpu"):
    """Name and arguments of calls that scatter: of warp, of the points both ways, of contrast by both kinds of kernels."""
    image, velocity, matrix, geometry = sphere(ndim, dtype, device, channels=2)
    grad = torch.randn(2, *geometry[0], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    calls = [("_warp_backward", (grad.to(image), image, velocity, matrix, *geometry, True, True, True))]
    points = cloud(ndim, dtype, device)
    calls += [
        ("_flow_points_backward", (points, points, points, velocity, *geometry[4:], to_moving))
        for to_moving in (True, False)
    ]
    calls += [("contrast", contrast_arguments(contrast_case(ndim, dtype, device, channels, 3))) for channels in (2, 3)]
    return calls


def run_all(library, calls):
    return [[name, *getattr(library, name)(*args)] for name, args in calls]


def same(a, b, names):
    return all(
        torch.equal(x, y)
        for one, other in zip(a, b, strict=True)
        if one[0] in names
        for x, y in zip(one[1:], other[1:], strict=True)
    )


SCATTERS = ("_warp_backward", "_flow_points_backward", "contrast")


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("shared", [0, 98304])
def test_who_comes_first_does_not_matter(library, device, ndim, shared):
    calls = gradient_calls(ndim=ndim)
    runs = []
    for seed in (0, 1, 2, 3):
        device(seed, shared, processors=1)
        runs.append(run_all(library, calls))
    assert all(same(runs[0], other, SCATTERS) for other in runs[1:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_device_does_not_matter_for_the_velocity(library, device, dtype):
    # neither how many blocks there are, nor where they sum up
    calls = gradient_calls(dtype)
    device(processors=1)
    first = run_all(library, calls)
    device(seed=2, shared=0, processors=7)
    second = run_all(library, calls)
    assert same([one[:3] for one in first], [one[:3] for one in second], SCATTERS[:2])
    for a, b in zip(first, second, strict=True):
        limit = (
            1e-12 if dtype == torch.float64 or a[0] != "contrast" else 1e-4
        )  # its sums of a few pixels are in float32
        assert all(relative(x, y) < limit for x, y in zip(a[1:], b[1:], strict=True))
    torch.use_deterministic_algorithms(True)  # torch then fills new memory with NaN: nobody may count on what is there
    try:
        assert same(second, run_all(library, calls), SCATTERS)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("shape", [(132, 264), (16, 32, 64)])
def test_large_tiles(library, device, shape):
    device(processors=1)
    image, velocity, matrix, geometry = sphere(len(shape), channels=1, n_slices=1, n_steps=1)
    check_warp(library, image, velocity, matrix * 0.2, (list(shape), *geometry[1:]))


def test_terms_that_the_probe_does_not_see(library, device):
    # 1089 patches, more than the 1024 of a probe. All is small but for one pixel of each of four patches in a corner
    device(processors=1)
    image, velocity, matrix, geometry = sphere(2, channels=1, n_slices=1, n_steps=1)
    shape = (4 * 33, 8 * 33)
    matrix = matrix * 0.1
    geometry = (list(shape), [0, 0], *geometry[2:])
    for place in range(0, 33, 8):
        grad = torch.full((1, *shape), 1e-9)
        grad[:, 4 * place : 4 * place + 4, 8 * 32] = 1.0
        out = library._warp_backward(grad, image, velocity, matrix, *geometry, True, True, True)
        twin = twin_of_warp(grad, image, velocity, matrix, geometry)[1:]
        assert all(relative(a, b) < TOLERANCE[torch.float32] for a, b in zip(out, twin, strict=True))


@pytest.mark.parametrize("factor", [0.0, 1e-25, 1e-9, 1e9, 1e25])
def test_gradients_of_any_size(library, device, factor):
    device()
    image, velocity, matrix, geometry = sphere(2)
    grad = torch.randn(3, *geometry[0], generator=torch.Generator().manual_seed(1))
    base = library._warp_backward(grad, image, velocity, matrix, *geometry, True, True, True)
    out = library._warp_backward(grad * factor, image, velocity, matrix, *geometry, True, True, True)
    for a, b in zip(out, base, strict=True):
        if factor == 0:
            assert not a.any()
        else:
            assert relative(a.double() / factor, b) < 1e-5


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("ndim", [2, 3])
def test_what_is_not_finite_stays_so(library, device, value, ndim):
    device()
    image, velocity, matrix, geometry = sphere(ndim)
    grad = torch.ones(3, *geometry[0])
    broken, wild = velocity.clone(), matrix.clone()
    broken[1, 0], wild[0, -1] = value, value
    library._warp_backward(grad, image, velocity, wild, *geometry, True, True, True)
    library.warp(image, velocity, wild, *geometry)
    for args in ((grad, image, broken), (grad * value, image, velocity), (grad, image * value, velocity)):
        out = library._warp_backward(*args, matrix, *geometry, True, True, True)
        assert not out[1].isfinite().any()
    points = cloud(ndim)
    points[3] = value
    for to_moving in (True, False):
        end = library.flow_points(points, velocity, *geometry[4:], to_moving)
        assert end[:3].isfinite().all()
        assert end[4:].isfinite().all()
        library._flow_points_backward(points, points, end, broken, *geometry[4:], to_moving)


def test_only_the_gradients_asked_for_are_made(library, device):
    device()
    image, velocity, matrix, geometry = sphere(2)
    args = (torch.ones(3, *geometry[0]), image, velocity, matrix, *geometry)
    full = library._warp_backward(*args, True, True, True)
    for i in range(3):
        part = library._warp_backward(*args, *[i == k for k in range(3)])
        assert [t.numel() > 0 for t in part] == [i == k for k in range(3)]
        assert torch.equal(part[i], full[i])


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_nothing_asked_nothing_given(library, device, shape):
    device()
    image, velocity, matrix, geometry = sphere(2)
    out = library.warp(image, velocity, matrix, shape, *geometry[1:])
    assert out.shape == (3, *shape)
    grads = library._warp_backward(out, image, velocity, matrix, shape, *geometry[1:], True, True, True)
    assert [g.shape for g in grads] == [image.shape, velocity.shape, matrix.shape]
    assert not any(g.any() for g in grads)
    points = cloud(2, n=0)
    assert library.flow_points(points, velocity, *geometry[4:], True).shape == (0, 2)
    assert not library._flow_points_backward(points, points, points, velocity, *geometry[4:], True)[1].any()


def test_strides_do_not_matter(library, device):
    device()
    image, velocity, matrix, geometry = sphere(2)
    other = layouts((image, velocity, matrix), "transposed")
    grad = torch.ones(()).expand(3, *geometry[0])
    assert torch.equal(library.warp(image, velocity, matrix, *geometry), library.warp(*other, *geometry))
    first = library._warp_backward(grad.contiguous(), image, velocity, matrix, *geometry, True, True, True)
    second = library._warp_backward(grad, *other, *geometry, True, True, True)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_tile_is_the_same_as_its_part_of_the_whole(library, device, ndim):
    device()
    image, velocity, matrix, geometry = sphere(ndim)
    whole = library.warp(image, velocity, matrix, [20, 45, 30][:ndim], [-3, -5, 0][:ndim], *geometry[2:])
    tile = library.warp(image, velocity, matrix, [9, 35, 11][:ndim], [1, 2, 7][:ndim], *geometry[2:])
    part = whole[(slice(None), *(slice(*ends) for ends in ((4, 13), (7, 42), (7, 18))[:ndim]))]
    assert torch.equal(tile, part)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ndim", [2, 3])
def test_on_a_real_device_and_in_a_graph(library, dtype, ndim):
    # the same bytes as before, in a captured graph too; and, rounding apart, what the fibers get
    calls = gradient_calls(dtype, ndim, "cuda")
    real = torch.ops.regframe
    first = run_all(real, calls)
    assert all(same(first, run_all(real, calls), SCATTERS) for _ in range(20))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run_all(real, calls)
    for _ in range(3):
        graph.replay()
        assert same(first, captured, SCATTERS)
    for a, b in zip(first, run_all(library, gradient_calls(dtype, ndim)), strict=True):
        for x, y in zip(a[1:], b[1:], strict=True):
            assert relative(x.cpu(), y) < (2e-3 if dtype == torch.float32 else 1e-9)
