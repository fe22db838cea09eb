"""The search for a section in a volume: an oblique plane, with turn and size, without landmarks.

The volume, of labels or of intensities, is treated as a map of classes: its labels, or bins of its intensity. The likelihood of a
plane is that of the section's intensities under the random-effects model in which every class has a mean of its own; contrast,
polarity and stain need not be known. A plane is held as a matrix ``[3, 3]`` that takes homogeneous section positions (y, x, 1) in
the section's normalised frame to positions (z, y, x) in the volume's.

Sources: Searle et al. 1992, "Variance components", ch. 3 (marginal likelihood of a one-way random-effects model); Roche et
al. 1998 (the correlation ratio, its limit for many pixels).

Where a constant names no source, neither a paper nor a calibration is recorded for it; ``benchmarks/bench_atlas.py`` measures
what they achieve together.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Config
from ..data import Grid, Image
from ..fit.frames import Frame
from ..fit.halvings import Halvings
from ..fit.threads import threads_for
from ..maps.homogeneous import compose, inverse
from ..maps.plane import lifted, nearest
from .pose import Pose
from .scale import Scale

NORMALS = 320
"""Number of directions of the plane's normal that are scanned, over half the sphere: about one every 8 degrees."""
OFFSETS = 32
"""Number of planes scanned along each normal, spaced evenly over the volume's diagonal."""
TURNS = 24
"""Number of turns scanned in each plane (15 degrees apart), each seen from both sides."""
SCAN_SIZE = 28
"""Pixels along the longer side of the section in the scan."""
SCAN_VOXELS = 48
"""About how many voxels the volume has along its longest side in the scan."""
ROUNDS = ((28, 64, 400), (48, 96, 48), (80, 128, 8))
"""For each round of refinement: pixels along the section's longer side, voxels along the volume's longest side, and number of
planes that are refined."""
STEPS = 12
"""Gauss-Newton steps of one round of refinement."""
BINS = 24
"""Number of classes into which the intensities of a volume are binned."""
AREA = 4.0
"""Pixels of the section per independent observation, because neighbouring pixels resemble each other."""
RATIO = 3.0
"""Prior variance of a class' mean, over the variance within a class. Set on two sections of one brain."""
STRETCH = 0.15
"""Prior standard deviation of the logarithm of the section's stretch (ratio of its two singular values): sections are deformed
when they are cut, floated and mounted."""
APART = 0.1
"""Mean distance between the corners of a section under two planes, over its diagonal, from which the two are different planes."""
DOUBT = 28.0
"""Nats of advantage over the best different plane at which the margin is 1 - 1/e; at 10 nats the margin is 0.3, the threshold
`verdict.CLEAR`."""
TILT = 4.0
"""Half-width, in degrees, of the prior on the angle between the normal and the nearest axis of the volume: usual cuts are a few
degrees off. The prior is a Cauchy distribution, whose tails allow oblique cuts."""
UNLIKE = 0.35
"""Difference of a pixel from the section's rim, over that of the 95 % quantile of all pixels, above which the pixel shows
tissue."""
LEAST = 0.05
"""Least area of tissue in a plane, over that of the plane with the most tissue, for the plane to be scanned."""
DISTINCT = 0.05
"""Mean distance between the corners of a section under two planes, over its diagonal, below which only the better plane is
refined."""
SHAKES = 6
"""Number of rounds in which the best planes are perturbed at random and refined again, to leave local optima."""
SHAKEN = 24
"""Number of perturbed copies of each of these planes per round."""
SHAKE = 0.1
"""Standard deviation of the perturbation in the first round, relative to the section's size."""
GENTLER = 0.7
"""Factor on the standard deviation of the perturbation from one round to the next."""
SEARCH_WORK = 10_000_000
"""About how many values the search handles at once, which makes `threads_for` use every thread."""
TRUST = 7.5
"""Factor by which log-likelihoods are divided before they are compared with the prior, because the model is wrong in ways that
are no noise from pixel to pixel: no two brains are alike. Set on two sections of one brain."""
EQUAL = 0.02
"""Relative difference between the scores of the best planes of either side, below which it is not known from which side the
section is seen."""


@dataclass(frozen=True)
class Classes:
    """A volume as a map of classes, at one resolution.

    Args:
        codes: class of each voxel ``[*S]``, int64; class 0 is also the class of everything outside the volume.
        grid: grid of the voxels, in the volume's normalised frame.
        empty: whether each class ``[K]`` is not tissue: class 0, and the most frequent class on the volume's outer faces.
    """

    codes: Tensor
    grid: Grid
    empty: Tensor

    @classmethod
    def of(cls, side: Halvings, voxels: int) -> Classes:
        """The classes of a volume of about ``voxels`` along its longest side."""
        times = 0
        while max(side.grid.shape) / 2 ** (times + 1) >= voxels and min(side.grid.shape) / 2 ** (times + 1) >= 4:
            times += 1
        if side.image.labels:
            step = 2**times
            part = tuple(slice(step // 2, None, step) for _ in side.grid.shape)
            ids, inverted = np.unique(side.image.data[0][part].numpy(), return_inverse=True)
            others = np.flatnonzero(ids)  # the class of the id 0 is that of what lies beyond
            number = np.zeros(len(ids), dtype=np.int64)
            number[others] = np.arange(1, len(others) + 1)
            codes = torch.from_numpy(number[inverted].reshape(side.image.data[0][part].shape))
            full = Frame.of(side.grid).grid(side.grid)
            origin = tuple(o + s * (step // 2) for o, s in zip(full.origin, full.spacing, strict=True))
            grid = Grid(tuple(codes.shape), tuple(s * step for s in full.spacing), origin)
            return cls(codes, grid, _empty(codes, int(codes.max()) + 1))
        data, _, grid = side.at(times)
        values = data.mean(dim=0)
        low, high = (float(v) for v in torch.quantile(values.flatten()[:: max(1, values.numel() // 100_000)],
                                                      torch.tensor([0.01, 0.99])))  # fmt: skip
        codes = 1 + ((values - low) / max(high - low, 1e-9) * BINS).floor().clamp(0, BINS - 1).to(torch.int64)
        return cls(codes, grid, _empty(codes, BINS + 1))

    def corners(self, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The eight voxels around each position ``[..., 3]``.

        Returns their classes ``[..., 8]``, their linear weights ``[..., 8]``, and the weights' derivatives ``[..., 8, 3]``.
        """
        origin, spacing = (at.new_tensor(v) for v in (self.grid.origin, self.grid.spacing))
        index = (at - origin) / spacing
        low = index.floor()
        part = index - low  # [..., 3]
        both = torch.stack([1 - part, part], dim=-1)  # [..., 3, 2]
        shape = torch.tensor(self.codes.shape)
        classes, weights, slopes = [], [], []
        for corner in itertools.product((0, 1), repeat=3):
            place = low.to(torch.int64) + torch.tensor(corner)
            inside = ((place >= 0) & (place < shape)).all(dim=-1)
            place = place.clamp(min=0).minimum(shape - 1)
            flat = (place[..., 0] * shape[1] + place[..., 1]) * shape[2] + place[..., 2]
            classes.append(torch.where(inside, self.codes.reshape(-1)[flat], 0))
            w = [both[..., d, k] for d, k in enumerate(corner)]
            weights.append(w[0] * w[1] * w[2])
            sign = [1.0 if k else -1.0 for k in corner]
            slopes.append(
                torch.stack([sign[0] * w[1] * w[2], sign[1] * w[0] * w[2], sign[2] * w[0] * w[1]], dim=-1) / spacing
            )
        return torch.stack(classes, dim=-1), torch.stack(weights, dim=-1), torch.stack(slopes, dim=-2)

    def nearest(self, at: Tensor) -> Tensor:
        """Class ``[...]`` at positions ``[..., 3]``."""
        return nearest(self.codes, self.grid, at)


@dataclass(frozen=True)
class _Section:
    """The section at one resolution, as a list of n pixels.

    Args:
        values: intensity minus its mean ``[n]``, with variance 1.
        weight: independent observations that each pixel counts as ``[n]``.
        at: positions ``[n, 2]`` in its normalised frame.
    """

    values: Tensor
    weight: Tensor
    at: Tensor

    @classmethod
    def of(cls, side: Halvings, size: int) -> _Section:
        """The first principal component of the section's channels, at about ``size`` pixels along its longer side."""
        data, mask, grid = side.at(side.times_until(lambda grid: max(grid.shape) <= 2 * size))  # [C, H, W], [H, W]
        mask = torch.ones(grid.shape) if mask is None else mask
        rows, columns = (max(4, round(n * size / max(grid.shape))) for n in grid.shape)
        shape = (rows, columns)
        weight = F.adaptive_avg_pool2d(mask[None, None], shape)[0, 0]
        data = F.adaptive_avg_pool2d((data * mask)[None], shape)[0] / weight.clamp(min=1e-3)
        flat, w = data.flatten(1), weight.flatten()
        flat = flat - (flat * w).sum(dim=1, keepdim=True) / w.sum().clamp(min=1e-6)
        values = torch.linalg.eigh((flat * w) @ flat.T)[1][:, -1] @ flat
        values = values / ((values * values * w).sum() / w.sum().clamp(min=1e-6)).sqrt().clamp(min=1e-6)
        axes = [
            (torch.arange(n, dtype=torch.float32) - (n - 1) / 2) * (e / n)
            for n, e in zip(shape, grid.extent, strict=True)
        ]
        at = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
        return cls(values, w / AREA, at.reshape(-1, 2))


def _means(found: Tensor, weight: Tensor, values: Tensor, empty: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of each class ``[N, K]`` (shrunk to the mean of all tissue) and log-likelihood ``[N]``, for N planes.

    Args:
        found: class of each pixel ``[N, ...]``.
        weight: independent observations that each pixel counts as ``[N, ...]``.
        values: intensities minus their mean ``[N, ...]``.
        empty: whether each class ``[K]`` is not tissue; these classes share one mean.
    """
    count, n = len(found), len(empty)
    key = (found + torch.arange(count).reshape(-1, *(1,) * (found.ndim - 1)) * n).reshape(-1)
    mass = torch.zeros(count * n).index_add_(0, key, weight.reshape(-1)).reshape(count, n)
    total = torch.zeros(count * n).index_add_(0, key, (weight * values).reshape(-1)).reshape(count, n)
    mean = torch.empty_like(mass)
    explained = torch.zeros(count)
    for part in (empty, ~empty):
        middle = total[:, part].sum(dim=1) / mass[:, part].sum(dim=1).clamp(min=1e-6)
        explained += middle * total[:, part].sum(dim=1)
        mean[:, part] = middle[:, None]
    own = total - mass * mean
    shift = torch.where(empty, 0.0, RATIO * own / (1 + RATIO * mass))
    explained += (shift * own).sum(dim=1)
    every = weight.reshape(count, -1).sum(dim=1)
    square = (weight * values * values).reshape(count, -1).sum(dim=1)
    rest = (1 - explained / square).clamp(min=0) + 1e-3
    paid = torch.where(empty, 0.0, torch.log1p(RATIO * mass)).sum(dim=1)
    return mean + shift, -0.5 * every * rest.log() - 0.5 * paid


def _score(section: _Section, classes: Classes, planes: Tensor) -> Tensor:
    """Log-likelihood ``[N]`` of planes ``[N, 3, 3]``, relative to that of a section with a single class."""
    compiled = _compiled(section, classes, planes, 0)
    if compiled is not None:
        return compiled[1]
    scores = []
    for part in torch.split(planes, 512):
        found = classes.nearest(_positions(section, part))
        scores.append(
            _means(found, section.weight.expand(found.shape), section.values.expand(found.shape), classes.empty)[1]
        )
    return torch.cat(scores)


def _compiled(section: _Section, classes: Classes, planes: Tensor, steps: int) -> tuple[Tensor, Tensor] | None:
    """Planes after ``steps`` refinement steps and their scores, from the compiled loops; None where these are not built."""
    try:
        from .. import _host  # type: ignore[attr-defined]  # compiled
    except ImportError:
        return None
    grid = classes.grid
    moved, scores = _host.planes(
        classes.codes.to(torch.int32).numpy(), grid.origin, grid.spacing, classes.empty.to(torch.uint8).numpy(),
        section.at.numpy(), section.values.numpy(), section.weight.numpy(), planes.numpy(), RATIO, STRETCH, steps,
        torch.get_num_threads(),
    )  # fmt: skip
    return torch.from_numpy(moved).to(torch.float32), torch.from_numpy(scores).to(torch.float32)


def _positions(section: _Section, planes: Tensor) -> Tensor:
    """Positions ``[N, n, 3]`` of the section's pixels in the volume."""
    at: Tensor = torch.einsum("nab,pb->npa", planes[:, :, :2], section.at) + planes[:, None, :, 2]
    return at


def _stretched(planes: Tensor) -> Tensor:
    """Cost in nats ``[N]`` of the stretch of planes ``[N, 3, 3]``, from the prior `STRETCH`."""
    sizes: Tensor = torch.linalg.svdvals(planes[:, :, :2])
    cost: Tensor = 0.5 * ((sizes[:, 0] / sizes[:, 1].clamp(min=1e-6)).log() / STRETCH) ** 2
    return cost


def _refine(section: _Section, classes: Classes, planes: Tensor) -> tuple[Tensor, Tensor]:
    """Planes after `STEPS` damped Gauss-Newton steps, all refined together, and their scores ``[N]``."""
    compiled = _compiled(section, classes, planes, STEPS)
    if compiled is not None:
        return compiled
    radius = float(section.at.norm(dim=1).max())
    moves = torch.cat([section.at / radius, torch.ones((len(section.at), 1))], dim=1)  # [n, 3]

    def look(planes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Score ``[N]``, residual ``[N, n]`` and its derivative along the position ``[N, n, 3]``."""
        found, share, slope = classes.corners(_positions(section, planes))
        weight = share * section.weight[:, None]
        mean, score = _means(found, weight, section.values[:, None].expand(weight.shape), classes.empty)
        colour = mean.gather(1, found.flatten(1)).reshape(found.shape)  # [N, n, 8]
        return (
            score - _stretched(planes),
            section.values - (colour * share).sum(dim=-1),
            torch.einsum("npc,npcd->npd", colour, slope),
        )

    score, rest, slope = look(planes)
    damping = torch.full((len(planes),), 0.03)
    for _ in range(STEPS):
        jacobian = torch.einsum("npd,pk->npdk", slope, moves).flatten(2)  # [N, n, 9]
        weighed = jacobian * section.weight[:, None]
        hessian, descent = weighed.mT @ jacobian, (weighed.mT @ rest[:, :, None])[:, :, 0]
        diagonal = hessian.diagonal(dim1=1, dim2=2)
        hessian = hessian + torch.diag_embed(damping[:, None] * diagonal + 1e-3 * diagonal.mean(1, keepdim=True) + 1e-9)
        step = torch.linalg.solve(hessian, descent)
        most = 3 * max(classes.grid.spacing)
        step = (step / (step.abs().amax(dim=1, keepdim=True) / most).clamp(min=1)).reshape(-1, 3, 3)
        step = torch.cat([step[:, :, :2] / radius, step[:, :, 2:]], dim=2)
        trial = planes + step
        new = look(trial)
        wins = new[0] > score
        planes = torch.where(wins[:, None, None], trial, planes)
        score = torch.where(wins, new[0], score)
        rest = torch.where(wins[:, None], new[1], rest)
        slope = torch.where(wins[:, None, None], new[2], slope)
        damping = torch.where(wins, damping * 0.3, damping * 8)
    return planes, score


def _normals() -> Tensor:
    """`NORMALS` directions ``[N, 3]``, spread evenly over half a sphere (Fibonacci lattice)."""
    i = torch.arange(NORMALS, dtype=torch.float32) + 0.5
    height, angle = i / NORMALS, i * math.pi * (3 - math.sqrt(5))
    radius = (1 - height * height).sqrt()
    return torch.stack([height, radius * angle.cos(), radius * angle.sin()], dim=1)


def _scan(section: _Section, classes: Classes, size: float | None) -> tuple[Tensor, Tensor]:
    """Scores ``[N]`` and matrices ``[N, 3, 3]`` of the planes of all normals, offsets and turns, seen from both sides.

    For each plane, the section's tissue is put on the volume's tissue in that plane, with equal middles and equal areas.

    Args:
        section: the section.
        classes: the volume.
        size: volume lengths per section length where they are known; areas decide where None.
    """
    normal = _normals()
    least = F.one_hot(normal.abs().argmin(dim=1), 3).to(torch.float32)
    first = F.normalize(torch.linalg.cross(normal, least), dim=1)
    second = torch.linalg.cross(normal, first)
    reach = math.hypot(*classes.grid.extent)
    step = reach / SCAN_VOXELS
    line = (torch.arange(SCAN_VOXELS, dtype=torch.float32) - (SCAN_VOXELS - 1) / 2) * step
    lattice = torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=-1).reshape(-1, 2)
    inplane = lattice[:, :1] * first[:, None] + lattice[:, 1:] * second[:, None]  # [N, n, 3]
    tissue_f = _tissue(section)
    pixel = [float(torch.unique(section.at[:, d]).diff().min()) for d in range(2)]
    area_f = float(tissue_f.sum()) * pixel[0] * pixel[1]
    middle_f = (section.at * tissue_f[:, None]).sum(dim=0) / tissue_f.sum()
    found = []
    for offset in (torch.arange(OFFSETS) - (OFFSETS - 1) / 2) / OFFSETS * reach:
        at = offset * normal[:, None] + inplane
        tissue = (~classes.empty[classes.nearest(at)]).to(torch.float32)
        area = tissue.sum(dim=1) * step**2
        middle = (at * tissue[:, :, None]).sum(dim=1) / tissue.sum(dim=1, keepdim=True).clamp(min=1)
        found.append((area, middle))
    area, middle = torch.stack([f[0] for f in found]), torch.stack([f[1] for f in found])
    which = (area > LEAST * area.max()).nonzero()
    area, middle, which = area[which[:, 0], which[:, 1]], middle[which[:, 0], which[:, 1]], which[:, 1]
    scale = (area / area_f).sqrt() if size is None else torch.full_like(area, size)
    scores, planes = [], []
    for turn in range(TURNS):
        cos, sin = math.cos(2 * math.pi * turn / TURNS), math.sin(2 * math.pi * turn / TURNS)
        down = (cos * first[which] + sin * second[which]) * scale[:, None]
        right = (-sin * first[which] + cos * second[which]) * scale[:, None]
        for side in (right, -right):
            plane = torch.stack([down, side, middle - down * middle_f[0] - side * middle_f[1]], dim=2)
            planes.append(plane)
            scores.append(_score(section, classes, plane))
    return torch.cat(scores), torch.cat(planes)


def _tissue(section: _Section) -> Tensor:
    """Whether each pixel of a section shows tissue ``[n]`` (0 or 1): its intensity is unlike the section's rim."""
    y, x = section.at.unbind(dim=1)
    rim = (y == y.min()) | (y == y.max()) | (x == x.min()) | (x == x.max())
    apart = (section.values - section.values[rim].median()).abs()
    return (apart > UNLIKE * torch.quantile(apart, 0.95)).to(torch.float32)


def _empty(codes: Tensor, n: int) -> Tensor:
    rim = torch.cat([codes.select(d, i).flatten() for d in range(3) for i in (0, -1)])
    empty = torch.zeros(n, dtype=torch.bool)
    empty[0] = True
    empty[rim.mode().values] = True
    return empty


def search(fixed: Image, moving: Halvings, config: Config) -> Found:
    """Find a section in a volume: any plane, turn and size, and the side from which it is seen, where that can be told.

    The matrix of the pose maps positions of the volume to positions of the section, whose plane is z = 0. Where a symmetric
    volume looks the same from both sides, the pose is chosen whose z axis (of the section) grows with the volume's own axis.

    Args:
        fixed: the section, 2D.
        moving: the volume. The size is searched for where either side is in pixels.
        config: gives the seed of the random perturbations.
    """
    corners = _corners(Frame.of(fixed.grid).grid(fixed.grid))
    scale = Scale.of(
        moving.grid, fixed.grid
    )  # one section unit in volume units: the arguments are exchanged on purpose
    size = scale.factor * fixed.grid.pixel / moving.grid.pixel if scale.physical else None
    with threads_for(SEARCH_WORK):
        planes, scores = _searched(Halvings(fixed), moving, size, corners, config.seed)
    posterior = _posterior(planes, scores)
    score = float(posterior.max())
    own, both = _own_side(planes, posterior)
    best = int(torch.where(own, posterior, -torch.inf).argmax())
    laid = torch.einsum("nab,pb->npa", planes, corners)
    away = (laid - laid[best]).norm(dim=2).mean(dim=1) / (laid[best, 3] - laid[best, 0]).norm()
    near = own & (away < APART)
    share = torch.softmax(posterior[near], dim=0)  # neighbouring optima are averaged; their spread is the uncertainty
    mean = (planes[near] * share[:, None, None]).sum(dim=0)
    middle = laid[near].mul(share[:, None, None]).sum(dim=0)
    spread = (share[:, None] * ((laid[near] - middle) ** 2).sum(dim=2)).sum(dim=0)
    others = own & (away > APART)
    second, runner_up = None, None
    if bool(others.any()):
        second = float(posterior[others].max())
        runner_up = _physical(planes[others][posterior[others].argmax()], fixed.grid, moving.grid)
    margin = 1 - math.exp(min(0.0, (second or 0.0) - score) / DOUBT)
    pose = Pose(_physical(mean, fixed.grid, moving.grid), score, margin, runner_up, second)
    return Found(pose, both, float(spread.mean().sqrt()) * Frame.of(moving.grid).length)


@dataclass(frozen=True)
class Found:
    """The outcome of the search for a section.

    Args:
        pose: its matrix maps positions of the volume to positions of the section, whose plane is z = 0.
        either_side: whether the volume looks the same from the other side of the plane.
        sd: root mean square distance, at the section's corners, between the planes that fit about equally well and their mean, in
            the volume's unit.
    """

    pose: Pose
    either_side: bool
    sd: float


def _corners(grid: Grid) -> Tensor:
    """The corners ``[4, 3]`` of a section, homogeneous (y, x, 1), in its normalised frame; first and last are opposite."""
    half = [e / 2 for e in grid.extent]
    return torch.tensor([[y, x, 1.0] for y in (-half[0], half[0]) for x in (-half[1], half[1])])


def _searched(
    side: Halvings, moving: Halvings, size: float | None, corners: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    """Planes ``[N, 3, 3]`` found by scanning, refining and perturbing, and their scores ``[N]``.

    Args:
        side: the section.
        moving: the volume.
        size: volume lengths per section length where they are known, or None.
        corners: corners of the section ``[4, 3]`` (see `_corners`).
        seed: of the random perturbations.
    """
    scores, planes = _scan(_Section.of(side, SCAN_SIZE), Classes.of(moving, SCAN_VOXELS), size)
    for pixels, voxels, number in ROUNDS:
        chosen = _distinct(scores, planes, corners, number)
        section, classes = _Section.of(side, pixels), Classes.of(moving, voxels)
        planes, scores = _refine(section, classes, planes[chosen])
    generator = torch.Generator().manual_seed(seed)
    rough, coarse = _Section.of(side, ROUNDS[1][0]), Classes.of(moving, ROUNDS[1][1])
    for shake in range(SHAKES):
        ahead = _ahead(planes)
        posterior = _posterior(planes, scores)
        about = [planes[part][posterior[part].argmax()] for part in (ahead, ~ahead) if bool(part.any())]
        best = planes[posterior.argmax()]
        about += [
            _flipped(best, d) for d in range(3)
        ]  # mirror images across each axis: most organs are nearly symmetric
        far = SHAKE * GENTLER**shake
        shaken, guess = _refine(rough, coarse, torch.cat([_shaken(plane, corners, far, generator) for plane in about]))
        chosen = _distinct(_posterior(shaken, guess), shaken, corners, 2 * len(about), DISTINCT / 5)
        shaken, fine = _refine(section, classes, torch.cat([shaken[chosen], torch.stack(about)]))
        planes, scores = torch.cat([planes, shaken]), torch.cat([scores, fine])
    return planes, scores


def _own_side(planes: Tensor, posterior: Tensor) -> tuple[Tensor, bool]:
    """Whether each plane ``[N]`` sees the section from the better side, and whether both sides fit about equally well."""
    ahead = _ahead(planes)
    either = [float(posterior[part].max()) if bool(part.any()) else -math.inf for part in (ahead, ~ahead)]
    both = abs(either[0] - either[1]) < EQUAL * abs(float(posterior.max()))
    return (ahead if both or either[0] > either[1] else ~ahead), both


def _physical(plane: Tensor, fixed: Grid, moving: Grid) -> Tensor:
    """A plane ``[3, 3]`` of the frames as ``A`` ``[4, 4]`` float64, from the volume to the section in physical units."""
    pull = torch.eye(4, dtype=torch.float64)
    pull[:3, 1:] = plane.to(torch.float64)  # columns z, y, x, middle
    thick = (plane[:, 0].norm() * plane[:, 1].norm()).sqrt()
    pull[:3, 0] = F.normalize(torch.linalg.cross(plane[:, 0], plane[:, 1]), dim=0) * thick
    return compose(inverse(Frame.of(lifted(fixed)).matrix()), inverse(pull), Frame.of(moving).matrix())


def _posterior(planes: Tensor, scores: Tensor) -> Tensor:
    """Log-posterior ``[N]``, in nats, of planes ``[N, 3, 3]`` with these scores."""
    return scores / TRUST - _tilted(planes)


def _tilted(planes: Tensor) -> Tensor:
    """Cost in nats ``[N]`` of the tilt of planes ``[N, 3, 3]`` against the volume's axes, from the prior `TILT`."""
    normals = F.normalize(torch.linalg.cross(planes[:, :, 0], planes[:, :, 1]), dim=1)
    tilt = torch.rad2deg(torch.arccos(normals.abs().amax(dim=1).clamp(max=1.0)))
    return (1 + (tilt / TILT) ** 2).log()


def _ahead(planes: Tensor) -> Tensor:
    """Whether the normal of each plane ``[N, 3, 3]`` points along the positive direction of the axis it is nearest to."""
    normals = torch.linalg.cross(planes[:, :, 0], planes[:, :, 1])
    ahead: Tensor = normals.gather(1, normals.abs().argmax(dim=1, keepdim=True))[:, 0] > 0
    return ahead


def _flipped(plane: Tensor, axis: int) -> Tensor:
    """The plane ``[3, 3]`` mirrored across the volume's middle along one axis."""
    sign = torch.ones((3, 1))
    sign[axis] = -1.0
    return plane * sign


def _shaken(plane: Tensor, corners: Tensor, far: float, generator: torch.Generator) -> Tensor:
    """`SHAKEN` random perturbations ``[N, 3, 3]`` of a plane, with standard deviation ``far`` relative to the section's size."""
    reach = (plane[:, :2] @ (corners[3] - corners[0])[:2]).norm()
    turn = torch.eye(3) + far * torch.randn((SHAKEN, 3, 3), generator=generator)
    shift = far * reach / 2 * torch.randn((SHAKEN, 3, 1), generator=generator)
    return torch.cat([turn @ plane[:, :2], plane[:, 2:] + shift], dim=2)


def _distinct(scores: Tensor, planes: Tensor, corners: Tensor, number: int, apart: float = DISTINCT) -> list[int]:
    """Indices of the ``number`` best planes, of which no two lie within ``apart`` of the section's diagonal."""
    laid = torch.einsum("nab,pb->npa", planes, corners)
    diagonal = (laid[:, 3] - laid[:, 0]).norm(dim=1)
    chosen: list[int] = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        if len(chosen) == number:
            break
        away = (laid[chosen] - laid[i]).norm(dim=2).mean(dim=1)
        if not bool((away < apart * diagonal[i]).any()):
            chosen.append(i)
    return chosen
