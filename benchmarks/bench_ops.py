"""`warp`, forward and backward, against the best that eager torch can do with `grid_sample`, over a matrix of cases.

``row-split eager`` is the rival to beat (see `regframe.testing.bench`). ``REGFRAME_BENCH_FULL=1`` runs the whole matrix and adds
``torch.compile`` of the row-split code.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from records import record

from regframe import ops
from regframe.testing.bench import Case, check, eager, interleaved, kernel, make_case, with_gradient

Shape = tuple[int, int, int, int, str]

PUBLISHED: list[Shape] = [
    (2, 1024, 3, 3, "float32"),
    (2, 1024, 3, 10, "float32"),
    (2, 1024, 1, 3, "float32"),
    (3, 128, 1, 3, "float32"),
]
"""Axes, pixels per side, channels, time slices, dtype."""
MORE: list[Shape] = [
    (2, 256, 1, 3, "float32"),
    (2, 256, 3, 3, "float32"),
    (2, 2048, 3, 3, "float32"),
    (2, 1024, 8, 3, "float32"),
    (2, 1024, 32, 3, "float32"),
    (2, 1024, 3, 3, "float64"),
    (3, 64, 1, 3, "float32"),
    (3, 128, 3, 3, "float32"),
    (3, 128, 1, 10, "float32"),
    (3, 128, 1, 3, "float64"),
]
FULL = os.environ.get("REGFRAME_BENCH_FULL") == "1"
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def name_of(shape: Shape) -> str:
    ndim, side, channels, n_slices, dtype = shape
    return f"{side}{'²' if ndim == 2 else '³'}-C{channels}-T{n_slices}-{dtype}"


def sized(shape: Shape, small: bool) -> Case:
    ndim, side, channels, n_slices, dtype = shape
    nodes = 64 if ndim == 2 else 24
    if small:
        side, nodes = (64, 16) if ndim == 2 else (16, 8)
    image, velocity, matrix, geometry = make_case(ndim, side, channels, n_slices, nodes)
    kind = getattr(torch, dtype)
    return image.to(kind), velocity.detach().to(kind).requires_grad_(), matrix, geometry


@pytest.mark.skipif(not ops.is_built(), reason=f"build the ops with `{ops.BUILD_COMMAND}`")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", PUBLISHED + (MORE if FULL else []), ids=name_of)
def test_ratio(shape: Shape, device: str, small: bool, threads: int, report: Callable[[str], None]) -> None:
    """One interleaved run; prints how many times faster the kernel is, and fails below twice."""
    image, velocity, matrix, geometry = sized(shape, small)
    case = (
        image.to(device),
        velocity.detach().to(device).requires_grad_(),
        matrix.detach().to(device).requires_grad_(),
        geometry,
    )
    parts = 8 * threads
    grad = torch.randn(image.shape, generator=torch.Generator().manual_seed(1), dtype=image.dtype).to(device)
    check(case, parts, grad)
    sync = torch.cuda.synchronize if device == "cuda" else (lambda: None)

    def run(forward: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: (with_gradient(forward, case, grad), sync())

    runs = {
        "kernel": run(lambda: kernel(case)),
        "row-split eager": run(lambda: eager(case, parts)),
        "eager": run(lambda: eager(case, 1)),
    }
    if FULL and not small:
        compiled = torch.compile(eager)
        runs["compiled"] = run(lambda: compiled(case, parts))
    seconds = interleaved(runs, rounds=1 if small else 9)
    if small:
        return
    one, split, plain = seconds["kernel"], seconds["row-split eager"], seconds["eager"]
    ndim, side, channels, n_slices, dtype = shape
    report(
        f"{name_of(shape)}, {device}: kernel {one * 1e3:.1f} ms, row-split eager {split * 1e3:.0f} ms ({split / one:.1f} x), "
        f"eager {plain * 1e3:.0f} ms ({plain / one:.1f} x), {threads} threads"
    )
    record(
        bench="ops", op="warp + gradients", size=f"{side}{'²' if ndim == 2 else '³'}", channels=channels, T=n_slices,
        dtype=dtype, threads=threads, device=device, kernel_ms=one * 1e3, eager_ms=plain * 1e3, split_ms=split * 1e3,
        compiled_ms=seconds["compiled"] * 1e3 if "compiled" in seconds else None, ratio=split / one,
    )  # fmt: skip
    assert min(split, plain) >= 2 * one


@pytest.mark.skipif(not ops.is_built(), reason=f"build the ops with `{ops.BUILD_COMMAND}`")
def test_two_threads(small: bool, threads: int, report: Callable[[str], None]) -> None:
    """Prints how much a second thread gives."""
    case = sized(PUBLISHED[0], small)
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
    case = sized(PUBLISHED[0], small)
    grad = torch.randn(case[0].shape, generator=torch.Generator().manual_seed(1))
    run = (lambda: kernel(case)) if what == "kernel" else (lambda: eager(case, 8 * threads))
    benchmark.pedantic(with_gradient, args=(run, case, grad), rounds=1 if small else 7, warmup_rounds=0 if small else 1)
