"""How much two planes or volumes have in common at a pose, in nats: what poses are chosen by, and an independent judge of fits.

It sees intensities up to a line and of either polarity, and edges, on one lattice of the fixed side; coarse structure and
outlines count little, fine structure counts. Sizes are stated by the number of axes, 2 or 3: a volume has far more pixels along
its side's third power.
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
from .views import View, Views, mean_around

JUDGED_SIZE = {2: 128, 3: 28}
"""Pixels along the side of a square or cube as large as the tissue, where fits are judged: finer than what poses are fitted
to, so that most of what it sees has had no say in them."""
FINE_SIZE = {2: 64, 3: 20}
"""Pixels along the side of a square or cube as large as the tissue, where the finalists are refined."""
LOCAL = {2: 9, 3: 5}
"""Pixels across the neighbourhood whose mean is taken off where the fine structure decides between finalists."""
COARSE_AREA = {2: 32.0, 3: 50.0}
"""Pixels that one observation of the images as they are stands for, beside one of the fine structure for each: about 0.4 of the
neighbourhood."""
NOWHERE = {2: 64, 3: 100}
"""Poses that nobody believes in, by which a pair's evidence is measured (see `priors.chance`)."""
AT_ONCE = 4_000_000
"""Values of a batch of poses that are held at once: 16 MB."""
STRAY = 0.8
"""Range of their shifts, of the fixed side's extent: they overlap by about one half in the mean."""
DULL = 0.1
"""Variance, over the whole image's, below which a part is too flat for its correlation to be believed."""


def lattice(shape: tuple[int, ...], spacing: float) -> Tensor:
    """Positions ``[*S, D]`` of a grid about the origin."""
    axes = [(torch.arange(n, dtype=torch.float32) - (n - 1) / 2) * spacing for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def sample(view: View, at: Tensor) -> tuple[Tensor, Tensor]:
    """Data ``[N, 2, *S]`` and weight ``[N, *S]`` of a view at positions ``[N, *S, D]``; nothing counts outside."""
    shape = torch.tensor(view.grid.shape, dtype=torch.float32)
    spacing, origin = (torch.tensor(v, dtype=torch.float32) for v in (view.grid.spacing, view.grid.origin))
    unit = (at - origin).mul_(2).div_(spacing).add_(1).div_(shape).sub_(1)  # -1 and 1 at the outer borders
    stack = torch.cat([view.data, view.weight[None]])[None].expand(len(at), *(-1,) * at.shape[-1], -1)
    out = F.grid_sample(stack, unit.flip(-1), padding_mode="border", align_corners=False)
    return out[:, :-1], out[:, -1] * (unit.abs_() < 1).all(dim=-1)


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
        fixed: standardised about its mean over the overlap ``[N, 2, *S]``.
        moving: at the pose, standardised about its mean over the overlap ``[N, 2, *S]``.
        weight: that sums to 1 ``[N, *S]``.
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
        w, ndim = self.weight[:, None], self.weight.ndim - 1
        dims, local = tuple(range(2, self.fixed.ndim)), LOCAL[ndim]
        near = mean_around(w, local).clamp(min=1e-12)

        def fine(values: Tensor) -> Tensor:
            return values - mean_around(values * w, local) / near

        f, m = fine(self.fixed), fine(self.moving)
        f, m = (side - (side * w).sum(dim=dims, keepdim=True) for side in (f, m))
        cross, f_variance, m_variance = ((pair * w).sum(dim=dims) for pair in (f * m, f * f, m * m))
        square, _, _ = likeness(cross, f_variance, m_variance, DULL / 5)
        return -0.5 * self.count * torch.log1p(-square).sum(dim=1) + self.score / COARSE_AREA[ndim]


def seen(fixed: Views, sizes: dict[int, int]) -> tuple[Tensor, Tensor, Tensor, float]:
    """The fixed side on a lattice of about ``sizes[D]`` pixels along its tissue: image ``[2, *S]``, weight ``[*S]``, positions
    ``[*S, D]``, and their spacing."""
    size = sizes[fixed.ndim]
    spacing = fixed.extent / size
    view = fixed.at(spacing)
    spacing = max(spacing, max(view.grid.extent) / (3 * size))
    at = lattice(tuple(max(4, round(e / spacing)) for e in view.grid.extent), spacing)
    image, mask = (part[0] for part in sample(view, at[None]))
    return image, mask, at, spacing


def compare(image: Tensor, mask: Tensor, at: Tensor, spacing: float, moving: Views, poses: Tensor) -> Match:
    """The fixed ``image`` ``[2, *S]`` at positions ``[*S, D]`` against the moving side, at pullbacks ``[N, D, D+1]``."""
    ndim = at.shape[-1]
    positions = torch.einsum("...c,ndc->n...d", at, poses[:, :, :ndim]) + poses[:, *(None,) * ndim, :, ndim]
    return compare_at(image, mask, positions, spacing, moving, poses)


def compare_at(image: Tensor, mask: Tensor, positions: Tensor, spacing: float, moving: Views, poses: Tensor) -> Match:
    """`compare` at moving positions ``[N, *S, D]`` that the lattice lies at; ``poses`` say how large its pixels are there."""
    ndim = mask.ndim
    dims, still = tuple(range(2, 2 + ndim)), (1,) * ndim
    views = [moving.at(spacing * float(size)) for size in torch.linalg.det(poses[:, :, :ndim]).abs() ** (1 / ndim)]
    if views and all(view is views[0] for view in views):
        warped, weight = sample(views[0], positions)
    else:
        warped = image.new_empty((len(poses), *image.shape))
        weight = image.new_empty((len(poses), *mask.shape))
        for view in {id(view): view for view in views}.values():
            those = [i for i, other in enumerate(views) if other is view]
            warped[those], weight[those] = sample(view, positions[those])
    weight = weight * mask
    n = weight.flatten(1).sum(dim=1).clamp(min=1e-3)
    weight.div_(n.reshape(-1, *still))

    def mean(values: Tensor) -> Tensor:
        return (values * weight[:, None]).sum(dim=dims)

    f = image - mean(image[None]).reshape(-1, 2, *still)
    m = warped - mean(warped).reshape(-1, 2, *still)
    cross = mean(f * m)
    square, f_variance, m_variance = likeness(cross, mean(f * f), mean(m * m))
    slope = cross / m_variance
    slope[:, 1] = slope[:, 1].clamp(min=0)
    score = -0.5 * n * torch.log1p(-square).sum(dim=1)
    return Match(f, m, weight, slope, m_variance, f_variance * (1 - square), n, score)


def evidence(seen: tuple[Tensor, Tensor, Tensor, float], moving: Views, poses: Tensor) -> Tensor:
    """`Match.evidence` ``[N]`` of any number of poses ``[N, D, D+1]``, a few at once."""
    few = max(1, AT_ONCE // (2 * seen[0].numel()))
    return torch.cat([compare(*seen, moving, part).evidence() for part in poses.chunk(-(-len(poses) // few))])


def overlap(f: Views, m: Views, poses: Tensor, count: Tensor, spacing: float) -> Tensor:
    """Share of the smaller side's trusted area or volume ``[N]`` that both share, given ``count`` pixels of a lattice ``[N]``."""
    whole, ndim = m.at(spacing), m.ndim
    own = float(whole.weight.sum()) * math.prod(whole.grid.spacing) / torch.linalg.det(poses[:, :, :ndim]).abs()
    view = f.at(spacing)
    less = own.clamp(max=float(view.weight.sum()) * math.prod(view.grid.spacing))
    share: Tensor = (count * spacing**ndim / less.clamp(min=1e-6)).clamp(max=1)
    return share


def anywhere(f: Views, zoom: float) -> Tensor:
    """Pullbacks ``[NOWHERE, D, D+1]`` spread evenly over turns, mirrors, shifts and sizes about ``zoom``: none is meant."""
    count = NOWHERE[f.ndim]
    number = torch.arange(1, count + 1, dtype=torch.float64)
    turns = 1 if f.ndim == 2 else 3
    root = 2.0
    for _ in range(64):
        root = (1 + root) ** (1 / (turns + 2 + f.ndim + 1))
    spread = [(number * root**-k % 1).to(torch.float32) for k in range(1, turns + 3 + f.ndim)]  # Roberts 2018
    flip = 1 - 2 * (spread[turns] < 0.5).to(torch.float32)
    size = zoom * 2 ** (spread[turns + 1] - 0.5)
    if f.ndim == 2:
        angle = 2 * math.pi * spread[0]
        turned = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).reshape(-1, 2, 2)
    else:
        turned = of_quaternions(uniform_quaternions(*spread[:3]))
    linear = turned / size[:, None, None]
    linear[:, :, -1] *= flip[:, None]
    shift = (torch.stack(spread[turns + 2 :], dim=1) - 0.5) * f.extent * STRAY
    return torch.cat([linear, linear @ shift[:, :, None]], dim=2)


def uniform_quaternions(first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """Quaternions ``[N, 4]``, spread over all turns as evenly as three coordinates ``[N]`` are over 0 … 1 (Shoemake 1992)."""
    one, other = (1 - first).sqrt(), first.sqrt()
    a, b = 2 * math.pi * second, 2 * math.pi * third
    return torch.stack([one * a.sin(), one * a.cos(), other * b.sin(), other * b.cos()], dim=1)


def of_quaternions(unit: Tensor) -> Tensor:
    """Rotation matrices ``[N, 3, 3]`` of unit quaternions ``[N, 4]``, scalar last."""
    x, y, z, w = unit.unbind(dim=1)
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)]
    rows += [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)]
    rows += [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]
    return torch.stack(rows, dim=1).reshape(-1, 3, 3)


class Judge:
    """Evidence of two planes, or two volumes, under any map, in honest nats less what its pose pays (see `priors`).

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
        self.unit = chance(evidence(self._seen, self.moving, anywhere(self.fixed, zoom)))

    def __call__(self, to_moving: Callable[[Tensor], Tensor], pullback: Tensor) -> float:
        """Nats, more is better.

        Args:
            to_moving: takes positions ``[N, D]`` of the fixed frame to the moving one.
            pullback: the affine part of it ``[D+1, D+1]``.
        """
        image, mask, at, spacing = self._seen
        positions = to_moving(at.flatten(0, -2).to(torch.float64)).reshape(1, *at.shape).to(torch.float32)
        pose = pullback[None, :-1].to(torch.float32)
        match = compare_at(image, mask, positions, spacing, self.moving, pose)
        shared = overlap(self.fixed, self.moving, pose, match.count, spacing)
        return float(match.evidence()[0]) / self.unit - float(self.prior.nats(pose[:, :, :-1], shared)[0])
