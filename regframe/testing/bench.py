"""The measurements of `regframe bench`: the hot loop against eager torch, and a registration whose truth is known.

torch's CPU `grid_sample` distributes its work over threads by batch item. A fair competitor therefore splits the rows of the
image into a batch: "row-split eager". The gradient is that of velocity and matrix, not of the image, as in a registration.
"""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..versions import versions

Case = tuple[Tensor, Tensor, Tensor, tuple[Any, ...]]


def make_case(ndim: int, side: int, channels: int, n_slices: int, nodes: int = 64, turn: float = 0.2) -> Case:
    """A smooth image with ``side`` pixels along each axis, a flow of some 10 px, and a turn by ``turn`` radians."""
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
    """`warp` as a chain of `grid_sample`, rows split into a batch of ``parts``; returns ``[C, *shape]``."""
    image, velocity, matrix, (shape, _, image_spacing, image_origin, spacing, origin, n_steps) = case
    ndim, channels = matrix.shape[0], image.shape[0]

    def normal(spacing: Sequence[float], origin: Sequence[float], sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
        # a and b of position -> a * position + b, which gives the (x, y, z) coordinates in -1 ... 1 of grid_sample
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
    """The compiled `warp` of a case, ``[C, *shape]``."""
    image, velocity, matrix, geometry = case
    return ops.warp(image, velocity, matrix, *geometry)


def with_gradient(run: Callable[[], Tensor], case: Case, grad: Tensor) -> tuple[Tensor, ...]:
    """The gradients of velocity ``[T, D, *S_v]`` and matrix ``[D, D+1]``."""
    return torch.autograd.grad(run(), case[1:3], grad)


def relative(a: Tensor, b: Tensor) -> float:
    """Relative L2 distance of two tensors."""
    return float((a.double() - b.double()).norm() / b.double().norm())


def check(case: Case, parts: int, grad: Tensor) -> None:
    """Raise ArithmeticError where value and gradients of both ways do not agree: timing them would be pointless."""
    with torch.no_grad():
        worst = relative(kernel(case), eager(case, parts)) / 1e-3
    ours = with_gradient(lambda: kernel(case), case, grad)
    theirs = with_gradient(lambda: eager(case, parts), case, grad)
    for a, b in zip(
        ours, theirs, strict=True
    ):  # tolerant, because eager positions in float32 are inexact at cell borders
        worst = max(worst, relative(a, b) / 1e-2)
    if not worst < 1:
        raise ArithmeticError(
            f"wanted the kernel to agree with eager torch, got {worst:.2g} times the tolerance; run `make test`, and report it"
        )


def interleaved(runs: dict[str, Callable[[], Any]], rounds: int, in_a_row: int = 3) -> dict[str, float]:
    """Median seconds of each run, measured in turns, so that a busy machine slows all of them alike.

    In each turn a run is called ``in_a_row`` times and every call is timed: an optimiser too calls it repeatedly, with its
    data in the caches.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            for _ in range(in_a_row if turn else 1):
                start = time.perf_counter()
                run()
                if turn:  # the first turn is a warm-up
                    times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def instruction_sets() -> tuple[str, ...]:
    """Instruction sets that both the CPU kernels and this processor support, the oldest first; values for ``REGFRAME_ISA``."""
    known = ("baseline", "avx2", "avx512")
    best = torch.backends.cpu.get_cpu_capability().lower()  # the dispatch of the ops uses it too
    return known[: known.index(best) + 1] if best in known else known[:1]


def instruction_set() -> str:
    """The instruction set that the CPU kernels use here: the best one of the processor, or the value of ``REGFRAME_ISA``."""
    if not ops.is_built():
        return "none: the compiled ops are not built"
    here = instruction_sets()
    wish = os.environ.get("REGFRAME_ISA", here[-1])
    return wish if wish in here else here[-1]


def machine() -> dict[str, Any]:
    """Processor, instruction set, threads and versions."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {
        "processor": name,
        "cores": os.cpu_count(),
        "instruction_set": instruction_set(),
        "threads": torch.get_num_threads(),
        **versions("python", "torch", "regframe"),
    }


SIZES: dict[str, tuple[int, int, int, int]] = {
    "1 Mpx, C = 3, T = 3": (2, 1024, 3, 3),
    "1 Mpx, C = 3, T = 10": (2, 1024, 3, 10),
    "128³, C = 1, T = 3": (3, 128, 1, 3),
}
"""Cases of the short benchmark: number of axes, pixels per side, channels, time slices."""


def _beside(what: str, ours: Callable[[], Any], rival: str, theirs: Callable[[], Any], rounds: int) -> dict[str, Any]:
    """One measurement and its competitor's, in turns."""
    seconds = interleaved({"ours": ours, "theirs": theirs}, rounds)
    return {
        "what": what,
        "seconds": seconds["ours"],
        "rival": rival,
        "rival_seconds": seconds["theirs"],
        "ratio": seconds["theirs"] / seconds["ours"],
    }


def short(rounds: int = 5, scale: float = 1.0) -> Iterator[dict[str, Any]]:
    """The short benchmark; yields each measurement when it is made.

    Args:
        rounds: number of repetitions, of which the median is reported.
        scale: factor on the size of the cases, for a quick run.

    Yields:
        ``what``, ``seconds``, and where there is a competitor its name, ``rival_seconds`` and ``ratio``; for the registration
        ``error_px``.
    """
    threads = torch.get_num_threads()
    for name, (ndim, side, channels, n_slices) in SIZES.items():
        case = make_case(ndim, max(16, round(side * scale) // 16 * 16), channels, n_slices, 64 if ndim == 2 else 24)
        grad = torch.randn(case[0].shape, generator=torch.Generator().manual_seed(1))
        parts = 8 * threads if case[0].shape[1] % (8 * threads) == 0 else 1
        check(case, parts, grad)

        def ours(case: Case = case, grad: Tensor = grad) -> object:
            return with_gradient(lambda: kernel(case), case, grad)

        def theirs(case: Case = case, grad: Tensor = grad, parts: int = parts) -> object:
            return with_gradient(lambda: eager(case, parts), case, grad)

        yield _beside(f"warp and its gradients, {name}", ours, "eager torch, rows split", theirs, rounds)
        if threads > 1 and name == next(iter(SIZES)):

            def on_one() -> object:
                torch.set_num_threads(1)
                try:
                    return ours()
                finally:
                    torch.set_num_threads(threads)

            yield _beside(f"the same on {threads} threads", ours, "one thread", on_one, rounds)
    from ..registration import register
    from . import demo

    pair = demo.make()
    register(pair.fixed, pair.moving, transform="affine")  # a first call, so that one-time loading is not measured
    start = time.perf_counter()
    result = register(pair.fixed, pair.moving)
    yield {
        "what": "register: a real section, 512², RGB, against its bent and recoloured copy",
        "seconds": time.perf_counter() - start,
        "error_px": demo.errors(pair, result)["after"]["mean"],
        "n_evaluations": result.metrics["n_evaluations"],
    }
