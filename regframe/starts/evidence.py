"""How much two planes have in common at a pose, in nats: what poses are chosen by, and an independent judge of fits.

It sees intensities up to a line and of either polarity, and edges, on one lattice of the fixed side; coarse structure and
outlines count little, fine structure counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..fit.halvings import Halvings
from .priors import Prior, chance
from .views import View, Views

JUDGED_SIZE = 128
"""Pixels along the side of a square as large as the tissue, where fits are judged: twice as fine as what poses are fitted to, so
that most of what it sees has had no say in them."""
FINE_SIZE = 64
"""Pixels along the side of a square as large as the tissue, where the finalists are refined."""
LOCAL = 9
"""Pixels across the neighbourhood whose mean is taken off where the fine structure decides between finalists."""
COARSE_AREA = 32.0
"""Pixels that one observation of the images as they are stands for, beside one of the fine structure for each."""
NOWHERE = 200
"""Poses that nobody believes in, by which a pair's evidence is measured (see `priors.chance`)."""
SPREAD = (0.8566748838545029, 0.7338918566271260, 0.6287067210378087, 0.5385972572236101, 0.4614027427763899)
"""Steps, of 1, of the sequence that spreads them: powers of the root of x⁶ = x + 1 (Roberts 2018)."""
STRAY = 0.8
"""Range of their shifts, of the fixed side's extent: they overlap by about one half in the mean."""
DULL = 0.1
"""Variance, over the whole image's, below which a part is too flat for its correlation to be believed."""


def lattice(shape: tuple[int, int], spacing: float) -> Tensor:
    """Positions ``[H, W, 2]`` of a grid about the origin."""
    axes = [(torch.arange(n, dtype=torch.float32) - (n - 1) / 2) * spacing for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def sample(view: View, at: Tensor) -> tuple[Tensor, Tensor]:
    """Data ``[N, 2, H, W]`` and weight ``[N, H, W]`` of a view at positions ``[N, H, W, 2]``; nothing counts outside."""
    shape = torch.tensor(view.grid.shape, dtype=torch.float32)
    spacing, origin = (torch.tensor(v, dtype=torch.float32) for v in (view.grid.spacing, view.grid.origin))
    unit = (2 * (at - origin) / spacing + 1) / shape - 1  # -1 and 1 at the outer borders
    stack = torch.cat([view.data, view.weight[None]])[None].expand(len(at), -1, -1, -1)
    out = F.grid_sample(stack, unit.flip(-1), padding_mode="border", align_corners=False)
    return out[:, :-1], out[:, -1] * (unit.abs() < 1).all(dim=-1)


def likeness(
    cross: Tensor, f_variance: Tensor, m_variance: Tensor, least: float = DULL
) -> tuple[Tensor, Tensor, Tensor]:
    """Squared correlation of intensities and of edges, dimension 1, and both variances, at the ``least``.

    Intensities may be inverted; where one side has edges the other has to have some, too.
    """
    f_variance, m_variance = f_variance.clamp(min=least), m_variance.clamp(min=least)
    square = cross * cross / (f_variance * m_variance)
    square[:, 1] *= cross[:, 1] > 0
    return square.clamp(max=0.98), f_variance, m_variance


@dataclass(frozen=True)
class Match:
    """A batch of N poses on one lattice of the fixed side: what the next step and the score need.

    Args:
        fixed: standardised about its mean over the overlap ``[N, 2, H, W]``.
        moving: at the pose, standardised about its mean over the overlap ``[N, 2, H, W]``.
        weight: that sums to 1 ``[N, H, W]``.
        slope: ``[N, 2]`` from moving to fixed.
        spread: variance of the moving side ``[N, 2]``.
        rest: variance of the fixed side that is not explained ``[N, 2]``.
        count: pixels that both sides share ``[N]``.
        score: ``-n/2 Σ log(1 - ρ²)`` ``[N]``.
    """

    fixed: Tensor
    moving: Tensor
    weight: Tensor
    slope: Tensor
    spread: Tensor
    rest: Tensor
    count: Tensor
    score: Tensor

    def better(self, other: Match) -> tuple[Match, Tensor]:
        """The better of two fits, one by one, and where it is the other."""
        wins = other.score > self.score
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Match(*(torch.where(wins.reshape(-1, *(1,) * (old.ndim - 1)), new, old) for old, new in pairs)), wins

    def evidence(self) -> Tensor:
        """Nats ``[N]`` of likeness, fine structure and all: outlines can be alike that hold different things."""
        w = self.weight[:, None]
        near = F.avg_pool2d(w, LOCAL, 1, LOCAL // 2).clamp(min=1e-12)

        def fine(values: Tensor) -> Tensor:
            return values - F.avg_pool2d(values * w, LOCAL, 1, LOCAL // 2) / near

        f, m = fine(self.fixed), fine(self.moving)
        f, m = (side - (side * w).sum(dim=(2, 3), keepdim=True) for side in (f, m))
        cross, f_variance, m_variance = ((pair * w).sum(dim=(2, 3)) for pair in (f * m, f * f, m * m))
        square, _, _ = likeness(cross, f_variance, m_variance, DULL / 5)
        return -0.5 * self.count * torch.log1p(-square).sum(dim=1) + self.score / COARSE_AREA


def seen(fixed: Views, size: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """The fixed side on a lattice of about ``size`` pixels along its tissue: image ``[2, H, W]``, weight ``[H, W]``, positions
    ``[H, W, 2]``, and their spacing."""
    spacing = fixed.extent / size
    view = fixed.at(spacing)
    spacing = max(spacing, max(view.grid.extent) / (3 * size))
    shape = [max(4, round(e / spacing)) for e in view.grid.extent]
    at = lattice((shape[0], shape[1]), spacing)
    image, mask = (part[0] for part in sample(view, at[None]))
    return image, mask, at, spacing


def compare(image: Tensor, mask: Tensor, at: Tensor, spacing: float, moving: Views, poses: Tensor) -> Match:
    """The fixed ``image`` ``[2, H, W]`` at positions ``[H, W, 2]`` against the moving side, at pullbacks ``[N, 2, 3]``."""
    positions = torch.einsum("hwc,ndc->nhwd", at, poses[:, :, :2]) + poses[:, None, None, :, 2]
    return compare_at(image, mask, positions, spacing, moving, poses)


def compare_at(image: Tensor, mask: Tensor, positions: Tensor, spacing: float, moving: Views, poses: Tensor) -> Match:
    """`compare` at moving positions ``[N, H, W, 2]`` that the lattice lies at; ``poses`` say how large its pixels are there."""
    views = [moving.at(spacing * float(size)) for size in torch.linalg.det(poses[:, :, :2]).abs().sqrt()]
    warped = image.new_empty((len(poses), *image.shape))
    weight = image.new_empty((len(poses), *mask.shape))
    for view in {id(view): view for view in views}.values():
        those = [i for i, other in enumerate(views) if other is view]
        warped[those], weight[those] = sample(view, positions[those])
    weight = weight * mask
    n = weight.sum(dim=(1, 2)).clamp(min=1e-3)
    weight = weight / n[:, None, None]

    def mean(values: Tensor) -> Tensor:
        return (values * weight[:, None]).sum(dim=(2, 3))

    f = image - mean(image[None])[:, :, None, None]
    m = warped - mean(warped)[:, :, None, None]
    cross = mean(f * m)
    square, f_variance, m_variance = likeness(cross, mean(f * f), mean(m * m))
    slope = cross / m_variance
    slope[:, 1] = slope[:, 1].clamp(min=0)
    score = -0.5 * n * torch.log1p(-square).sum(dim=1)
    return Match(f, m, weight, slope, m_variance, f_variance * (1 - square), n, score)


def overlap(f: Views, m: Views, poses: Tensor, count: Tensor, spacing: float) -> Tensor:
    """Share of the smaller side's trusted area ``[N]`` that both sides share, given ``count`` pixels of a lattice ``[N]``."""
    whole = m.at(spacing)
    own = float(whole.weight.sum()) * math.prod(whole.grid.spacing) / torch.linalg.det(poses[:, :, :2]).abs()
    view = f.at(spacing)
    less = own.clamp(max=float(view.weight.sum()) * math.prod(view.grid.spacing))
    share: Tensor = (count * spacing**2 / less.clamp(min=1e-6)).clamp(max=1)
    return share


def anywhere(f: Views, zoom: float) -> Tensor:
    """Pullbacks ``[NOWHERE, 2, 3]`` spread evenly over turns, mirrors, shifts and sizes about ``zoom``: none of them is meant."""
    number = torch.arange(1, NOWHERE + 1, dtype=torch.float64)
    spread = [(number * step % 1).to(torch.float32) for step in SPREAD]  # a Kronecker sequence
    angle, flip = 2 * math.pi * spread[0], 1 - 2 * (spread[1] < 0.5).to(torch.float32)
    size = zoom * 2 ** (spread[2] - 0.5)
    cos, sin = angle.cos() / size, angle.sin() / size
    linear = torch.stack([cos, -sin * flip, sin, cos * flip], dim=1).reshape(-1, 2, 2)
    shift = (torch.stack(spread[3:], dim=1) - 0.5) * f.extent * STRAY
    return torch.cat([linear, linear @ shift[:, :, None]], dim=2)


class Judge:
    """Evidence of two planes under any map, in honest nats less what its pose pays (see `priors`).

    It has no part in the metric that a fit descends, and sees finer structure than a pose was searched by.

    Args:
        fixed: stays where it is.
        moving: is brought onto it.
        prior: of poses.
        zoom: fixed pixels per moving pixel, about.
    """

    def __init__(self, fixed: Halvings, moving: Halvings, prior: Prior, zoom: float) -> None:
        self.fixed, self.moving, self.prior = Views(fixed), Views(moving), prior
        self._seen = seen(self.fixed, JUDGED_SIZE)
        self.unit = chance(compare(*self._seen, self.moving, anywhere(self.fixed, zoom)).evidence())

    def __call__(self, to_moving: Callable[[Tensor], Tensor], pullback: Tensor) -> float:
        """Nats, more is better.

        Args:
            to_moving: takes positions ``[N, 2]`` of the fixed frame to the moving one.
            pullback: the affine part of it ``[3, 3]``.
        """
        image, mask, at, spacing = self._seen
        positions = to_moving(at.reshape(-1, 2).to(torch.float64)).reshape(1, *at.shape).to(torch.float32)
        pose = pullback[None, :2].to(torch.float32)
        match = compare_at(image, mask, positions, spacing, self.moving, pose)
        shared = overlap(self.fixed, self.moving, pose, match.count, spacing)
        return float(match.evidence()[0]) / self.unit - float(self.prior.nats(pose[:, :, :2], shared)[0])
