"""A bend as the flow of one stationary velocity that follows the images in small, smoothed steps and stops early.

Between two cuts of tissue, whose pieces move independently, every wave of a bend may be needed, and no energy with a prior on
waves says when to stop: its minimum is flat, so that noise in the seventh digit moves it by pixels. Here each step is the force
of a metric, smoothed over `Following.step_reach` and `Following.longest` long where it is longest; the velocity takes it up and
is smoothed over `Following.reach`. The number of steps is fixed, and is the prior: what has no force for it is smoothed away
again. The velocities of several metrics are averaged: what only one of them follows counts less.

Sources: Christensen et al. 1996 (fluids), Vercauteren et al. 2008 (demons of a stationary velocity), Arsigny et al. 2006 (mean
of velocities), Cachier et al. 2003 and Avants et al. 2008 (local correlation).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..data import Grid
from ..maps import homogeneous
from .energy import ImageMetric
from .halvings import Level
from .mapspace import DEVIATION_FLOOR
from .prior import Prior
from .velocity import VelocitySpace, nodes_over

HALVINGS = 4
"""Halvings of the velocity's unit of time: the flow is integrated in 2^4 = 16 Euler steps, here and in the map that is stored,
which keeps a step under 1 pixel for displacements up to 16 pixels."""
RIM = 32
"""Pixels of a level around its canvas over which the velocity fades: more than what 35 steps of smoothing carry outwards."""
FIELD = 32
"""Side in pixels of a field of the checkerboard by which pixels are held out: twice as wide as a box of the local correlation."""
NODE = 2.0
"""Distance of the velocity's nodes, in pixels of the last level: no more than the reach over which the velocity is smoothed."""


@dataclass(frozen=True)
class Following:
    """How a bend follows; lengths in pixels of a level. What each was set on stands in docs/method.md.

    Args:
        steps: number of steps on each level, the last one on the finest; there are as many levels as numbers.
        step_reach: standard deviation of the Gaussian that smooths a step.
        reach: standard deviation of the Gaussian that smooths the velocity after each step.
        smoother: the same, for pairs whose held-out pixels ask for it (`chosen`).
        margin: how many times the gain of held-out pixels under ``reach`` that under ``smoother`` has to be: up to the first
            number ``reach`` is taken, from the second on ``smoother``, in between a reach between both. The first is above 1
            because half of the pixels, with gaps, take a smoother velocity than all of them do.
        longest: length of a step where it is longest.
        most: pixels of the finest level at most: a bend needs no finer ones, and its boxes should hold tissue, not cells.
    """

    steps: tuple[int, ...] = (20, 15)
    step_reach: float = 5.0
    reach: float = 2.0
    smoother: float = 4.0
    margin: tuple[float, float] = (1.1, 1.2)
    longest: float = 1.0
    most: int = 200_000


@dataclass
class Followed:
    """What was found.

    Args:
        space: the space of the velocity, whose prior spreads displacements as large as the ones found.
        variables: the velocity's whitened variables ``[P]``.
        values: mismatch of each metric before every step: one list per level and metric.
    """

    space: VelocitySpace
    variables: Tensor
    values: list[list[float]] = field(default_factory=list)


Force = Callable[[Tensor, Tensor, Tensor], tuple[float, Tensor]]
"""From the warped image ``[C_m, *S]``, the fixed one ``[C_f, *S]`` and the weight ``[*S]`` to the mismatch and its derivative in
the warped image."""


def force_of(metric: ImageMetric) -> Force:
    """The force of a metric that was prepared for a level."""

    def force(warped: Tensor, fixed: Tensor, weight: Tensor) -> tuple[float, Tensor]:
        with torch.enable_grad():
            x = warped.detach().requires_grad_(True)
            value = metric(x, fixed, weight)
            (gradient,) = torch.autograd.grad(value, x)
        return float(value.detach()), gradient

    return force


def levels_to_follow(levels: Sequence[Level], how: Following) -> list[Level]:
    """The levels that a bend follows on, coarse to fine: the finest within ``how.most`` pixels and those before it."""
    small = [level for level in levels if level.fixed_weight.numel() <= how.most] or list(levels[:1])
    return small[-len(how.steps) :]


def follow(
    levels: Sequence[Level],
    pullback: Tensor,
    metrics: Sequence[Callable[[Level], ImageMetric]],
    prior: Prior,
    how: Following,
    share: float = 1.0,
) -> Followed:
    """Follow two images from an affine map on, coarse to fine; the affine map stays as it is.

    Args:
        levels: both sides, coarse to fine; `levels_to_follow` says which are used.
        pullback: the affine map ``[D+1, D+1]``, fixed frame → moving frame.
        metrics: functions that prepare a metric for a level and return it; each has a velocity of its own, and the mean of all is
            the result.
        prior: scale and order of the prior that the result is stored with, and judged by.
        how: steps and reaches.
        share: of the velocity that was found, which is the result.
    """
    used = levels_to_follow(levels, how)
    canvases = [_Canvas(level, pullback) for level in used]
    values, found = [], []
    for metric in metrics:
        velocity: Tensor | None = None
        for canvas, n in zip(canvases, how.steps[-len(used) :], strict=True):
            velocity, history = canvas.descend(velocity, force_of(metric(canvas.level)), n, how)
            values.append(history)
        assert velocity is not None
        found.append(velocity)
    space, variables = canvases[-1].stored(share * torch.stack(found).mean(dim=0), prior)
    return Followed(space, variables, values)


class Gain(NamedTuple):
    """By how much held-out pixels gain, in the metric's own unit.

    Args:
        mean: over all of them.
        error: standard error of the mean, from how the fields differ.
    """

    mean: float
    error: float

    @property
    def share(self) -> float:
        """The share of a bend that such a gain calls for, 0 … 1: a mean of which as much may be chance is shrunk by that."""
        return max(0.0, 1 - (self.error / self.mean) ** 2) if self.mean > 0 else 0.0


def held_out(levels: Sequence[Level], pullback: Tensor, metric: Callable[[Level], ImageMetric], how: Following) -> Gain:
    """By how much a bend that follows half of the pixels lowers the mismatch of the other half; the mean of both ways.

    The halves are the fields of a checkerboard of `FIELD` pixels on the level before the finest, which takes a quarter of the
    time of the finest.

    Args:
        levels: the levels that a bend follows on (`levels_to_follow`).
        pullback: the affine map ``[D+1, D+1]``, fixed frame → moving frame.
        metric: function that prepares the metric for a level and returns it.
        how: steps and reaches.
    """
    level = levels[-2] if len(levels) > 1 else levels[-1]
    device = level.fixed.device
    places = torch.meshgrid(*(torch.arange(n, device=device) // FIELD for n in level.fixed_grid.shape), indexing="ij")
    odd = (torch.stack(places).sum(dim=0) % 2).to(torch.float32)
    number = torch.zeros_like(places[0])
    for place in places:
        number = number * (int(place.max()) + 1) + place  # of the field that a pixel lies in
    measure = metric(level)
    force, canvas = force_of(measure), _Canvas(level, pullback)
    gains, masses = [], []
    for half in (odd, 1 - odd):
        seen = _Canvas(dataclasses.replace(level, fixed_weight=level.fixed_weight * half), pullback)
        velocity, _ = seen.descend(None, force, how.steps[0], how)
        before, after = (canvas.seen_under(v) for v in (0 * velocity, velocity))
        for field_ in torch.unique(number[half < 0.5]):
            inside = (number == field_).to(torch.float32)
            with torch.no_grad():
                values = [float(measure(image, level.fixed, weight * inside)) for image, weight in (before, after)]
            gains.append(values[0] - values[1])
            masses.append(float((before[1] * inside).sum()))
    return _mean(torch.tensor(gains, dtype=torch.float64), torch.tensor(masses, dtype=torch.float64))


def _mean(values: Tensor, masses: Tensor) -> Gain:
    """Weighted mean and its standard error of values ``[N]``; an error without end where nothing is weighed."""
    total = float(masses.sum())
    if total <= 0:
        return Gain(0.0, math.inf)
    mean = float((masses * values).sum()) / total
    return Gain(mean, float((masses * (values - mean)).square().sum().sqrt()) / total)


@dataclass(frozen=True)
class Choice:
    """How to follow one pair.

    Args:
        how: steps and reaches.
        gain: of pixels held out (`held_out`).
    """

    how: Following
    gain: Gain


def chosen(levels: Sequence[Level], pullback: Tensor, metric: Callable[[Level], ImageMetric], how: Following) -> Choice:
    """How to follow a pair, smoother where the pixels held out ask for it; arguments as in `held_out`.

    The reach changes without a jump as the gains change, so that noise in the images does not make another bend.
    """
    smoother = dataclasses.replace(how, reach=how.smoother)
    rough, smooth = (held_out(levels, pullback, metric, one) for one in (how, smoother))
    none, all_of_it = (smooth.mean - margin * rough.mean for margin in how.margin)
    weight = min(max(none, 0.0) / max(none - all_of_it, 1e-9), 1.0)
    gain = Gain(*((1 - weight) * a + weight * b for a, b in zip(rough, smooth, strict=True)))
    return Choice(dataclasses.replace(how, reach=how.reach * (how.smoother / how.reach) ** weight), gain)


class _Canvas:
    """One level under an affine map: images on the fixed grid, velocities on it and `RIM` pixels around it, in its pixels."""

    def __init__(self, level: Level, pullback: Tensor) -> None:
        self.level = level
        ndim = level.fixed_grid.ndim
        self.shape = level.fixed_grid.shape
        self.device = level.fixed.device
        self.matrix = homogeneous.compose(pullback, level.fixed_grid.index_to_position())  # index → moving frame
        still, one = torch.zeros((1, ndim, *(1,) * ndim), device=self.device), (1.0,) * ndim
        moving = level.moving_grid
        path = ops.Path(
            still,
            self.matrix[:ndim].to(self.device),
            self.shape,
            (0,) * ndim,
            moving.spacing,
            moving.origin,
            one,
            (0.0,) * ndim,
            1,
        )
        # the moving image and its mask under the affine map alone
        self.seen = torch.cat([ops.warp(level.moving, *path), ops.warp(level.trusted, *path)])
        self.whole = tuple(n + 2 * RIM for n in self.shape)
        self.inner = (slice(None), *(slice(RIM, RIM + n) for n in self.shape))
        axes = [torch.arange(float(n), device=self.device) for n in self.whole]
        self.coords = torch.stack(torch.meshgrid(*axes, indexing="ij"))

    def descend(self, velocity: Tensor | None, force: Force, steps: int, how: Following) -> tuple[Tensor, list[float]]:
        """The velocity ``[D, *whole]`` after so many steps of a force, from that of the level before on; and its mismatches."""
        still = torch.zeros((len(self.shape), *self.whole), device=self.device)
        velocity = still if velocity is None else self._doubled(velocity)
        values = []
        for _ in range(steps):
            warped, weight = self.seen_under(velocity)
            value, gradient = force(warped, self.level.fixed, weight)
            values.append(value)
            step = torch.zeros_like(velocity)
            for d, slope in enumerate(slopes(warped)):
                step[d][self.inner[1:]] = -(gradient * slope).sum(dim=0)
            step = smoothed(step, how.step_reach)
            length = float(step.square().sum(dim=0).amax().sqrt())
            if not (math.isfinite(length) and length > 0):
                break
            velocity = smoothed(velocity + step * (how.longest / length), how.reach)
        return velocity, values

    def seen_under(self, velocity: Tensor) -> tuple[Tensor, Tensor]:
        """The moving image ``[C_m, *S]`` on the fixed grid under the flow of a velocity, and its weight ``[*S]``."""
        displacement = self._flow(velocity)[self.inner]
        carried = sampled(self.seen, self.coords[self.inner] - RIM + displacement)
        return carried[:-1], carried[-1] * self.level.fixed_weight

    def _flow(self, velocity: Tensor) -> Tensor:
        """Displacement ``[D, *whole]`` of the flow of a velocity, in 2^`HALVINGS` Euler steps composed pairwise."""
        displacement: Tensor = velocity / 2**HALVINGS
        for _ in range(HALVINGS):
            displacement = displacement + sampled(displacement, self.coords + displacement)
        return displacement

    def _doubled(self, coarse: Tensor) -> Tensor:
        """A velocity of the level with half the resolution, in pixels of this one."""
        # pixel i of the coarser level covers the pixels 2 i and 2 i + 1 of this one
        return 2 * sampled(coarse, (self.coords - RIM - 0.5) / 2 + RIM, border=False)

    def stored(self, velocity: Tensor, prior: Prior) -> tuple[VelocitySpace, Tensor]:
        """The velocity in the moving frame, as a space and its variables; see `Followed`."""
        ndim = len(self.shape)
        linear = self.matrix[:ndim, :ndim]
        corners = Grid(self.whole, (1.0,) * ndim, (-float(RIM),) * ndim).corners()
        reach = (corners @ linear.T + self.matrix[:ndim, ndim]).abs().amax(dim=0)
        pixel = float(homogeneous.determinant(self.matrix).abs()) ** (1 / ndim)  # moving-frame lengths per pixel
        nodes = nodes_over([2 * float(r) for r in reach], NODE * pixel, prior.most / ndim, prior.widening)
        back = homogeneous.inverse(self.matrix)
        index = nodes.coords() @ back[:ndim, :ndim].T + back[:ndim, ndim] + RIM
        there = sampled(velocity, index.movedim(-1, 0).to(torch.float32).to(self.device), border=False)
        # a flow is followed backwards towards the moving image, hence the sign
        field_ = -torch.einsum("ij,j...->i...", linear.to(there), there)[None]
        rms = float(field_.square().mean().sqrt())
        extent = math.prod(self.level.moving_grid.extent) ** (1 / ndim)
        deviation = max(rms * (prior.adapts or 1.0), DEVIATION_FLOOR)
        space = VelocitySpace(nodes, 1, 2**HALVINGS, extent * prior.scale, prior.order, deviation).on(self.device)
        return space, space.whitened(field_)


def sampled(values: Tensor, at: Tensor, border: bool = True) -> Tensor:
    """``values`` ``[C, *S]`` at index positions ``[D, *T]``, multilinear; beyond the border its values, or zeros."""
    shape = values.shape[1:]
    unit = [2 * at[d] / max(n - 1, 1) - 1 for d, n in enumerate(shape)]
    grid = torch.stack(unit[::-1], dim=-1)[None]
    mode = "border" if border else "zeros"
    out: Tensor = F.grid_sample(values[None], grid, mode="bilinear", padding_mode=mode, align_corners=True)[0]
    return out


def slopes(values: Tensor) -> list[Tensor]:
    """Central differences of ``[C, *S]`` along each axis, 0 at the border."""
    out = []
    for d in range(1, values.ndim):
        slope, n = torch.zeros_like(values), values.shape[d]
        if n > 2:
            slope.narrow(d, 1, n - 2).copy_((values.narrow(d, 2, n - 2) - values.narrow(d, 0, n - 2)) / 2)
        out.append(slope)
    return out


def smoothed(values: Tensor, deviation: float) -> Tensor:
    """``[C, *S]`` under a Gaussian of this standard deviation in pixels, axis by axis, cut off at 3 of them; 0 outside."""
    if deviation <= 0:
        return values
    # another device may round what it multiplies in float32 to 10 bits (TF32)
    out = values.contiguous() if values.is_cpu else values.to(torch.float64)
    for d, n in enumerate(values.shape[1:], 1):
        band = _band(n, deviation).to(out)
        lines = out.reshape(-1, n, math.prod(values.shape[d + 1 :]))
        out = (lines[..., 0] @ band if lines.shape[2] == 1 else band @ lines).reshape(values.shape)
    return out.to(values.dtype)


def _band(n: int, deviation: float) -> Tensor:
    """The matrix ``[n, n]`` that smooths ``n`` values in a row. Most of it is 0, and yet to multiply with it is several times as
    fast as to convolve."""
    reach = max(1, math.ceil(3 * deviation))
    steps = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.exp(-(steps**2) / (2 * deviation**2))
    kernel = kernel / kernel.sum()
    near = min(reach, n - 1)
    row = torch.zeros(2 * n - 1)
    row[n - 1 - near : n + near] = kernel[reach - near : reach + near + 1]
    return row.unfold(0, n, 1).flip(0)  # row i has its middle at i
