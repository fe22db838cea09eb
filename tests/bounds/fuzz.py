"""Every op on odd sizes and wild numbers, between walls: run by ``test_bounds.py`` with ``guard_malloc.cpp`` preloaded.

Arguments: the first seed, how many, and the instruction sets (``REGFRAME_ISA``) to run them with, a child process for each.
The first access beyond a block ends it; what was asked for then is on stderr.
"""

import ctypes
import faulthandler
import itertools
import math
import os
import random
import signal
import sys
from collections.abc import Callable

import torch

from regframe import ops

try:
    import numpy as np

    from regframe import _host
except ImportError:
    _host = None

WILD = (math.nan, math.inf, -math.inf, 1e30, -1e30, 1e12, -1e12, 3e9, -3e9, 1e7, -1e7, 1e4, -1e4)
PIXELS = (torch.uint8, torch.uint16, torch.float32, torch.float64)
BEHIND, BEFORE = 1, 2  # where the walls are
set_guard = ctypes.CDLL(None).guard_mode


class Case:
    """Random arguments; ``wild`` of them are numbers that no caller should pass and some caller will."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.ndim = self.random.choice((2, 2, 3))
        self.dtype = self.random.choice((torch.float32, torch.float32, torch.float64))
        self.most = 40 if self.ndim == 2 else 11
        self.wild = self.random.random() < 0.5
        self.generator = torch.Generator().manual_seed(seed)

    def sizes(self, most: int = 0) -> list[int]:
        return [self.random.randint(1, most or self.most) for _ in range(self.ndim)]

    def numbers(self, low: float, high: float) -> list[float]:
        return [self.random.uniform(low, high) for _ in range(self.ndim)]

    def tensor(self, *size: int, dtype: torch.dtype | None = None, scale: float = 1.0) -> torch.Tensor:
        """Normal numbers, some of them wild; a tensor of its own, so that a wall is next to its last number."""
        out = scale * torch.randn(size, generator=self.generator, dtype=torch.float64)
        for _ in range(self.random.randint(1, 3) if self.wild and out.numel() else 0):
            out.view(-1)[self.random.randrange(out.numel())] = self.random.choice(WILD)
        if self.wild and self.random.random() < 0.1:
            out.fill_(self.random.choice(WILD))
        dtype = dtype or self.dtype
        if not dtype.is_floating_point:
            out = out.nan_to_num(0).abs().clamp(max=255)
        return out.to(dtype).clone()

    def geometry(self, image: list[int]) -> tuple:
        """Velocity, matrix, shape, offset, and image spacing … number of steps."""
        slices = self.random.randint(1, 3)
        velocity = self.tensor(slices, self.ndim, *self.sizes(9), scale=self.random.choice((0.0, 1.0, 10.0, 1000.0)))
        matrix = torch.eye(self.ndim, self.ndim + 1, dtype=torch.float64) * self.random.choice((1.0, 0.1, 4.0, -1.0))
        matrix += self.tensor(
            self.ndim, self.ndim + 1, dtype=torch.float64, scale=self.random.choice((0.05, 0.5, 20.0))
        )
        far = self.random.choice((0, 7, 100, 100_000))
        offset = [self.random.randint(-far, far) for _ in image]
        spacing, nodes = self.numbers(0.3, 3), self.numbers(1, 9)
        steps, shape = slices * self.random.randint(1, 4), self.sizes()
        if self.random.random() < 0.05:
            shape[self.random.randrange(self.ndim)] = 0
        return (
            velocity,
            matrix,
            self.sizes(),
            offset,
            spacing,
            self.numbers(-5, 5),
            nodes,
            self.numbers(-20, 5),
            steps,
        )


def warp(case: Case) -> None:
    image = case.tensor(case.random.randint(1, 4), *case.sizes())
    velocity, matrix, *geometry = case.geometry(list(image.shape[1:]))
    inputs = [image, velocity, matrix]
    wanted = [t.requires_grad_() for t in inputs if case.random.random() < 0.8] or [velocity.requires_grad_()]
    out = ops.warp(image, velocity, matrix, *geometry)
    torch.autograd.grad(out, wanted, case.tensor(*out.shape))


def warp_crop(case: Case) -> None:
    dtype = case.random.choice(PIXELS)
    part = [max(2, n) for n in case.sizes()]
    if case.random.random() < 0.2:
        part[case.random.randrange(case.ndim)] = 1
    image = case.tensor(case.random.randint(1, 3), *part, dtype=dtype, scale=50)
    velocity, matrix, shape, offset, *geometry = case.geometry(part)
    before, behind = ([case.random.choice((0, 3, 1000, 1 << 22)) * (n > 1) for n in part] for _ in range(2))
    whole = [a + n + b for a, n, b in zip(before, part, behind, strict=True)]
    after = case.tensor(case.ndim, case.ndim + 1, dtype=torch.float64) if case.random.random() < 0.5 else None
    background = case.random.choice((None, 7.0))
    ops.warp_crop(image, velocity, matrix, shape, offset, whole, before, *geometry, background, after)


def contrast(case: Case) -> None:
    draw = case.random.choice
    channels, targets, order = draw((1, 3, 2)), draw((1, 3, 2)), draw((1, 1, 2, 3))
    moving = case.tensor(channels, *case.sizes())
    velocity, matrix, shape, _, *geometry = case.geometry(list(moving.shape[1:]))
    fixed, weight = case.tensor(targets, *shape), case.tensor(*shape).abs()
    weight[torch.rand(weight.shape, generator=case.generator) < 0.3] = 0
    path = ops.Path(velocity, matrix, tuple(shape), (0,) * case.ndim, *geometry)
    scales = [case.tensor(2, n, dtype=torch.float64) for n in (channels, targets)]
    ops.contrast(path, moving, fixed, weight, *scales, order)


def flow_points(case: Case) -> None:
    velocity, *_, spacing, origin, steps = case.geometry([])
    points = case.tensor(case.random.choice((0, 1, 5, 17, 100, 2100)), case.ndim, scale=20).requires_grad_()
    velocity.requires_grad_()
    end = ops.flow_points(points, velocity, spacing, origin, steps, case.random.random() < 0.5)
    torch.autograd.grad(end, [points, velocity], case.tensor(*end.shape))


def splat(case: Case) -> None:
    draw = case.random.choice
    case.wild = False  # it refuses what is not finite
    n, channels = draw((0, 1, 30)), case.random.randint(1, 3)
    points = case.tensor(n, 2, dtype=torch.float64, scale=draw((20, 1e9))).abs().numpy()
    weights = case.tensor(n, channels).numpy()
    shape, sigma = [case.random.randint(0, 70) for _ in range(2)], draw((1e-9, 0.1, 1.0, 30.0, 1e9))
    spacing, threads = [case.random.uniform(0.3, 3) for _ in range(2)], case.random.randint(1, 3)
    _host.splat(points, weights, shape, (-3.0, 2.0), spacing, sigma, threads)


def planes(case: Case) -> None:
    draw = case.random.choice
    shape, classes = [case.random.randint(1, 9) for _ in range(3)], case.random.randint(1, 5)
    codes = torch.randint(classes, shape, generator=case.generator, dtype=torch.int32).numpy()
    n, count = draw((1, 2, 40)), draw((0, 1, 3, 300))
    sizes = ((n, 2), (n,), (n,), (count, 3, 3))
    at, values, weight, where = (case.tensor(*size, dtype=torch.float64, scale=3).numpy() for size in sizes)
    empty, threads = np.zeros(classes, np.uint8), case.random.randint(1, 3)
    grid = (codes, (0.0, 1.0, -1.0), (1.0, 0.7, 1.3), empty)
    _host.planes(*grid, at, values, abs(weight), where, 3.0, 0.15, draw((0, 2)), threads)


def edges() -> None:
    """What random numbers do not come by."""
    # lanes of one register in five cells, and one where no cell is: at what was once the mark of a lane that has none yet
    velocity = torch.randn((1, 2, 7, 7), generator=torch.Generator().manual_seed(0))
    at = torch.tensor([[1e30, 1e30], *([float(i), 6.0 - i] for i in range(7))])
    for points in (at, at.to(torch.float64)):
        for to_moving in (True, False):
            ops.flow_points(points, velocity.to(points.dtype), [1.0, 1.0], [2.0, 2.0], 1, to_moving)


def run(first: int, rounds: int) -> None:
    what = [warp, warp_crop, contrast, flow_points, *([splat, planes] if _host is not None else [])]
    for mode in (BEHIND, BEFORE):
        print(f"edges, walls of kind {mode}", file=sys.stderr)
        set_guard(mode)
        edges()
        set_guard(0)
    for seed, op in itertools.product(range(first, first + rounds), what):
        torch.set_num_threads(1 + seed % 2)
        print(f"{op.__name__} of seed {seed}", file=sys.stderr)
        set_guard(BEFORE if seed % 4 == 3 else BEHIND)
        try:
            op(Case(seed))
        finally:
            set_guard(0)


def trespass(mode: int) -> None:
    """Reads one number that is not there."""
    set_guard(mode)
    tensor = torch.zeros(3)
    ctypes.string_at(tensor.data_ptr() + (12 if mode == BEHIND else -1), 1)


def child(task: Callable[..., None], *args: int, quiet: bool = False) -> int:
    """The exit status of a child process that does this."""
    pid = os.fork()
    if pid == 0:
        if not quiet:
            faulthandler.enable()
        task(*args)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> int:
    first, rounds = (int(a) for a in sys.argv[1:3])
    for mode in (BEHIND, BEFORE):
        if child(trespass, mode, quiet=True) != -signal.SIGSEGV:
            print(f"walls of kind {mode} do not hold", file=sys.stderr)
            return 2
    for variant in sys.argv[3:]:
        os.environ["REGFRAME_ISA"] = variant  # every child looks for itself
        if child(run, first, rounds) != 0:
            print(f"the last of these did it, with {variant}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
