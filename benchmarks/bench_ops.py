"""`warp`, forward and backward, against the best that eager torch can do with `grid_sample`.

torch's CPU `grid_sample` shares its work among threads by batch item, so an honest rival splits the rows of the image
into a batch: that is ``row-split eager``. The gradient is of the velocity and the matrix, not of the image, as in a
registration.
"""

import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from regframe import ops

Case = tuple[Tensor, Tensor, Tensor, tuple[Any, ...]]


def make_case(ndim: int, side: int, channels: int, n_slices: int, nodes: int = 64, turn: float = 0.2) -> Case:
    """A smooth image, bent by some 10 px and turned by ``turn`` radians, ``side`` pixels along each axis."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, channels, *(side // 4,) * ndim, generator=generator)
    image = F.interpolate(coarse, (side,) * ndim, mode={2: "bilinear", 3: "trilinear"}[ndim])[0]  # [C, *S]
    coarse = torch.rand(n_slices, ndim, *(max(4, nodes // 8),) * ndim, generator=generator) - 0.5
    velocity = F.interpolate(coarse, (nodes,) * ndim, mode={2: "bilinear", 3: "trilinear"}[ndim]) * (side / 32)
    rotation = torch.eye(ndim, dtype=torch.float64)
    rotation[-2:, -2:] = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    centre = torch.full((ndim,), side / 2, dtype=torch.float64)
    matrix = torch.cat([rotation, (centre - rotation @ centre)[:, None]], dim=1)  # [D, D+1]
    spacing = 1.2 * side / (nodes - 1)
    geometry = (
        (side,) * ndim,
        (0,) * ndim,
        (1.0,) * ndim,
        (0.0,) * ndim,
        (spacing,) * ndim,
        (-0.1 * side,) * ndim,
        n_slices,
    )
    return image, velocity.contiguous().requires_grad_(), matrix.requires_grad_(), geometry


def eager(case: Case, parts: int) -> Tensor:
    """What `warp` replaces: a chain of `grid_sample`, rows split into a batch of ``parts``; returns ``[C, *shape]``."""
    image, velocity, matrix, (shape, _, image_spacing, image_origin, spacing, origin, n_steps) = case
    ndim, channels = matrix.shape[0], image.shape[0]

    def normal(spacing: Sequence[float], origin: Sequence[float], sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
        # position -> a * position + b, the (x, y, z) coordinates in -1 ... 1 that grid_sample wants
        a = [2 / (s * (n - 1)) for s, n in zip(spacing, sizes, strict=True)]
        b = [-1 - o * k for o, k in zip(origin, a, strict=True)]
        return torch.tensor(a[::-1]), torch.tensor(b[::-1])

    flow_scale, flow_shift = normal(spacing, origin, velocity.shape[2:])
    image_scale, image_shift = normal(image_spacing, image_origin, image.shape[1:])
    axes = [torch.arange(n, dtype=torch.float32) for n in shape]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).view(-1, ndim)  # [N, D]
    turned = matrix.flip(0).float()  # rows x, y, z
    start = torch.addmm(turned[:, ndim] * flow_scale + flow_shift, index, (turned[:, :ndim] * flow_scale[:, None]).T)
    batched = (parts, shape[0] // parts, *shape[1:])
    u = start.view(*batched, ndim)
    # displacement per step in those coordinates, channels x, y, z
    v = velocity.flip(1) * (flow_scale / n_steps).view(1, ndim, *(1,) * ndim)
    for step in reversed(range(n_steps)):
        field = v[step * v.shape[0] // n_steps].expand(parts, *v.shape[1:])
        moved = F.grid_sample(field, u, padding_mode="zeros", align_corners=True)  # [B, D, rows, ...]
        u = u - moved.movedim(1, -1)
    where = u * (image_scale / flow_scale) + (image_shift - flow_shift * image_scale / flow_scale)
    out = F.grid_sample(image.expand(parts, *image.shape), where, padding_mode="border", align_corners=True)
    return out.movedim(1, 0).reshape(channels, *shape)


def kernel(case: Case) -> Tensor:
    """``[C, *shape]``."""
    image, velocity, matrix, geometry = case
    return ops.warp(image, velocity, matrix, *geometry)


def with_gradient(run: Callable[[], Tensor], case: Case, grad: Tensor) -> tuple[Tensor, ...]:
    """The gradients of velocity ``[T, D, *S_v]`` and matrix ``[D, D+1]``."""
    return torch.autograd.grad(run(), case[1:3], grad)


def relative(a: Tensor, b: Tensor) -> float:
    """Relative L2 distance."""
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def check(case: Case, parts: int, grad: Tensor) -> None:
    """Value and gradients agree, else no time is worth taking."""
    with torch.no_grad():
        assert relative(kernel(case), eager(case, parts)) < 1e-3
    ours = with_gradient(lambda: kernel(case), case, grad)
    theirs = with_gradient(lambda: eager(case, parts), case, grad)
    for a, b in zip(ours, theirs, strict=True):
        assert relative(a, b) < 1e-2  # eager float32 positions themselves are this rough at cell borders


def interleaved(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each, taken in turns so that a busy machine is unfair to all alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


SIZES = {
    "2d-1Mpx-C3-T3": (2, 1024, 3, 3),
    "2d-1Mpx-C3-T10": (2, 1024, 3, 10),
    "2d-1Mpx-C1-T3": (2, 1024, 1, 3),
    "3d-128-C1-T3": (3, 128, 1, 3),
}


def sized(name: str, small: bool) -> Case:
    ndim, side, channels, n_slices = SIZES[name]
    nodes = 64 if ndim == 2 else 24
    if small:
        side, nodes = (64, 16) if ndim == 2 else (16, 8)
    return make_case(ndim, side, channels, n_slices, nodes)


@pytest.mark.skipif(not ops.is_built(), reason=f"build the ops with `{ops.BUILD_COMMAND}`")
@pytest.mark.parametrize("name", list(SIZES))
def test_ratio(name: str, small: bool, threads: int, report: Callable[[str], None]) -> None:
    """One interleaved run; prints how many times faster the kernel is, and fails below twice."""
    case = sized(name, small)
    parts = 8 * threads
    grad = torch.randn(case[0].shape, generator=torch.Generator().manual_seed(1))
    check(case, parts, grad)
    runs = {
        "kernel": lambda: with_gradient(lambda: kernel(case), case, grad),
        "row-split eager": lambda: with_gradient(lambda: eager(case, parts), case, grad),
        "eager": lambda: with_gradient(lambda: eager(case, 1), case, grad),
    }
    seconds = interleaved(runs, rounds=1 if small else 9)
    if small:
        return
    one, split, plain = seconds.values()
    report(
        f"{name}: kernel {one * 1e3:.1f} ms, row-split eager {split * 1e3:.0f} ms ({split / one:.1f} x), "
        f"eager {plain * 1e3:.0f} ms ({plain / one:.1f} x), {threads} threads"
    )
    assert min(split, plain) >= 2 * one


@pytest.mark.skipif(not ops.is_built(), reason=f"build the ops with `{ops.BUILD_COMMAND}`")
def test_two_threads(small: bool, threads: int, report: Callable[[str], None]) -> None:
    """Prints how much a second thread gives."""
    case = sized("2d-1Mpx-C3-T3", small)
    grad = torch.randn(case[0].shape, generator=torch.Generator().manual_seed(1))

    def on(count: int) -> None:
        torch.set_num_threads(count)
        with_gradient(lambda: kernel(case), case, grad)

    seconds = interleaved({"1": lambda: on(1), "2": lambda: on(2)}, rounds=1 if small else 15)
    if not small:
        report(f"kernel, 1 thread {seconds['1'] * 1e3:.1f} ms, 2 threads {seconds['2'] * 1e3:.1f} ms")


MEMORY = """
import pathlib, sys, torch
sys.path.insert(0, sys.argv[1])
import bench_ops
torch.set_num_threads(2)
side = int(sys.argv[2])
status = pathlib.Path("/proc/self/status")
def kib(key):
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(key))
warm = bench_ops.make_case(2, 64, 3, 3, 16)
case = bench_ops.make_case(2, side, 3, 3)
for c in (warm, case):
    grad = torch.ones_like(c[0])
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = kib("VmRSS")
    out = bench_ops.kernel(c)
    grads = torch.autograd.grad(out, c[1:3], grad)
peak = (kib("VmHWM") - before) * 1024 - sum(t.numel() * t.element_size() for t in (out, *grads))
print(max(peak, 0) / side**2)
"""


@pytest.mark.skipif(not ops.is_built(), reason=f"build the ops with `{ops.BUILD_COMMAND}`")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
def test_memory(small: bool, report: Callable[[str], None]) -> None:
    """Prints the peak memory beyond inputs and outputs, in bytes per pixel; fails at 8."""
    side = 128 if small else 1024
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(Path(__file__).parent), str(side)],
        # large blocks go straight back to the system, so that the peak is not blurred by what the allocator keeps
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        check=True,
    )
    if small:
        return
    extra = float(done.stdout)
    report(f"kernel, 1 Mpx, C 3, T 3: {extra:.2f} bytes per pixel beyond inputs and outputs")
    assert extra < 8


@pytest.mark.skipif(not ops.is_built(), reason=f"build the ops with `{ops.BUILD_COMMAND}`")
@pytest.mark.parametrize("what", ["kernel", "row-split eager"])
def test_warp(benchmark: Any, what: str, small: bool, threads: int) -> None:
    """The table of pytest-benchmark; ratios are better read from `test_ratio`, whose runs take turns."""
    case = sized("2d-1Mpx-C3-T3", small)
    grad = torch.randn(case[0].shape, generator=torch.Generator().manual_seed(1))
    run = (lambda: kernel(case)) if what == "kernel" else (lambda: eager(case, 8 * threads))
    benchmark.pedantic(with_gradient, args=(run, case, grad), rounds=1 if small else 7, warmup_rounds=0 if small else 1)
