"""One evaluation of the energy of a bent fit with ``mi``, ``nmi`` or ``lncc``, value and gradient, by its op and without it.

The rival is the same metric on the warped image, with autograd through `ops.warp`: for ``mi`` and ``nmi`` two passes of torch
over chunks of pixels, for ``lncc`` its closed form in whole images of torch (`PlainLNCC`). Both get the same level, weights and
variables, and their values and gradients are compared before a time is taken.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from records import record
from regframe_metrics._common import box_sum, known
from regframe_metrics.local import _FLOOR, LNCC
from torch import Tensor

import regframe as rf
from regframe import ops
from regframe.config import Config
from regframe.fit.energy import Energy
from regframe.fit.frames import Increment
from regframe.fit.mapspace import MapSpace
from regframe.fit.prior import velocity_space
from regframe.fit.pyramid import build_levels
from regframe.testing.bench import relative

Evaluation = Callable[[], tuple[Tensor, Tensor]]


class PlainLNCC(LNCC):
    """``lncc`` by torch alone: six box sums a channel and evaluation, and those of the fixed side once for all of them."""

    def __call__(self, warped: Tensor, fixed: Tensor, weight: Tensor) -> Tensor:
        x, y = self._standardised(warped, fixed, weight)  # [C, *S]
        if not hasattr(self, "_kept"):
            per_mass = 1 / box_sum(weight, self.radius).clamp_min(1e-6 * float(2 * self.radius + 1) ** weight.ndim)
            means = [self._mean(weight * side, per_mass) for side in y]
            squares = [self._mean(weight * side * side, per_mass) for side in y]
            spreads = [(b - a**2).clamp_min(0) + _FLOOR for a, b in zip(means, squares, strict=True)]
            self._kept = per_mass, means, spreads
        return known(x, lambda asked: self._both(x.detach(), y, weight))

    def fused(self, *arguments: object) -> None:
        """None: this is what the op is compared with."""

    def _mean(self, values: Tensor, per_mass: Tensor) -> Tensor:
        return box_sum(values, self.radius) * per_mass

    def _both(self, data: Tensor, fixed: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Value and gradient ``[C, *S]``, one channel at a time."""
        per_mass, means, spreads = self._kept
        share = weight / (weight.sum(dtype=torch.float64) * data.shape[0]).to(weight)
        value, gradient = torch.zeros((), dtype=torch.float64), torch.empty_like(data)
        for c, (x, y) in enumerate(zip(data, fixed, strict=True)):
            moment = weight * x
            mean = self._mean(moment, per_mass)
            spread = self._mean(moment * x, per_mass).addcmul_(mean, mean, value=-1)
            covariance = self._mean(moment * y, per_mass).addcmul_(mean, means[c], value=-1)
            positive = spread > 0
            spread = spread.clamp_min_(0).add_(_FLOOR)
            slope = covariance / (spread * spreads[c])
            r = covariance * slope
            value += torch.dot(share.reshape(-1), (1 - r).reshape(-1))
            slope *= 2 * share * per_mass
            curve = -r / spread * (share * per_mass) * positive
            parts = (slope, curve, (slope * means[c]).addcmul_(curve, mean, value=2))
            a, b, of_mean = (box_sum(part, self.radius) for part in parts)
            torch.mul(torch.mul(y, a, out=a).addcmul_(x, b, value=2).sub_(of_mean), weight, out=gradient[c]).neg_()
        return value.to(data.dtype), gradient


def make_case(
    name: str, shape: tuple[int, ...], channels: int, options: dict[str, int]
) -> tuple[Evaluation, Evaluation]:
    """The energy of a smooth pair bent by a few pixels, whose metric has its kernel, and whose metric has none."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((1, channels, *(n // 12 for n in shape)), generator=generator)
    image = F.interpolate(coarse, shape, mode="bicubic" if len(shape) == 2 else "trilinear")[0]
    grid, config = rf.Grid(shape), Config()
    config = config.model_copy(update={"pyramid": config.pyramid.model_copy(update={"max_pixels": image[0].numel()})})
    moving = image.roll((1, 2), (1, 2)) + 0.02 * torch.randn(image.shape, generator=generator)
    ndim = len(shape)
    sides = rf.Image(1 - image, grid), rf.Image(moving, grid)
    level = build_levels(*sides, torch.eye(ndim + 1, dtype=torch.float64), config)[-1]
    space = velocity_space(grid, config)
    maps = MapSpace(torch.eye(ndim + 1, dtype=torch.float64), Increment("affine", ndim, 0.7 * shape[-1]), space)
    weight = 0.5 + 0.5 * torch.rand(shape, generator=generator)
    x = torch.cat([torch.zeros(ndim * (ndim + 1)), 0.01 * torch.randn(space.size, generator=generator)])
    energies = []
    for fused in (True, False):
        metric = PlainLNCC(**options) if name == "lncc" and not fused else rf.metric(name, **options)
        metric.prepare(rf.Image(level.fixed, level.fixed_grid), rf.Image(level.moving, level.moving_grid))
        if not fused and name != "lncc":
            metric.fused = lambda *arguments: None  # type: ignore[method-assign]
        energies.append(Energy(level, metric, maps, weight, 1e5))
    (value, gradient), (other, its) = (energy(x) for energy in energies)
    assert float(value) == pytest.approx(float(other), rel=1e-4)
    assert relative(gradient, its) < 1e-3
    return lambda: energies[0](x), lambda: energies[1](x)


def medians(runs: dict[str, Evaluation], rounds: int) -> dict[str, tuple[float, float]]:
    """Wall and processor seconds of each, the median over rounds in which one comes after the other."""
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            wall, processor = time.perf_counter(), time.process_time()
            run()
            seen[name].append((time.perf_counter() - wall, time.process_time() - processor))
    return {
        name: (statistics.median(a for a, _ in all_[1:]), statistics.median(b for _, b in all_[1:]))
        for name, all_ in seen.items()
    }


CASES: list[tuple[str, int, int, int, dict[str, int]]] = [
    ("mi", 1024, 2, 3, {}),
    ("mi", 1024, 2, 1, {}),
    ("nmi", 1024, 2, 3, {}),
    ("mi", 96, 3, 1, {}),
    ("lncc", 1024, 2, 3, {"radius": 8}),
    ("lncc", 1024, 2, 1, {"radius": 8}),
    ("lncc", 1024, 2, 1, {"radius": 4}),
    ("lncc", 96, 3, 1, {"radius": 4}),
]


@pytest.mark.skipif(not ops.is_built(), reason=f"build the ops with `{ops.BUILD_COMMAND}`")
@pytest.mark.parametrize(("name", "side", "ndim", "channels", "options"), CASES)
def test_information(
    name: str,
    side: int,
    ndim: int,
    channels: int,
    options: dict[str, int],
    small: bool,
    threads: int,
    report: Callable[[str], None],
) -> None:
    """Prints how many evaluations through torch one by the op is worth."""
    if small:
        side = 48 if ndim == 2 else 24
    ours, theirs = make_case(name, (side,) * ndim, channels, options)
    seconds = medians({"fused": ours, "torch": theirs}, rounds=1 if small else 9)
    if small:
        return
    what = ", ".join([name, *(f"{key} {value}" for key, value in options.items())])
    (wall, processor), (its_wall, its_processor) = seconds["fused"], seconds["torch"]
    report(
        f"{what}, energy and gradient, {side}^{ndim}, C = {channels}: {wall * 1e3:.1f} ms "
        f"({processor * 1e3:.1f} of the processor), through torch {its_wall * 1e3:.0f} ({its_processor * 1e3:.0f}): "
        f"{its_wall / wall:.1f} x ({its_processor / processor:.1f} x), "
        f"{threads} threads"
    )
    record(
        bench="information", what=f"{what}, {side}^{ndim}, C = {channels}", threads=threads, ms=wall * 1e3,
        rival_ms=its_wall * 1e3, ratio=its_processor / processor,
    )  # fmt: skip
