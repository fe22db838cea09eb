"""The pose of one 2D image on another without landmarks: a search over turn, mirror, size and shift.

A pose is held as its pullback ``[2, 3]``: it takes a position of the fixed frame to the moving frame. "Nats of likeness" are
``-n/2 Σ log(1 - ρ²)`` over n shared pixels, ρ the correlations of intensities and of edges. Lengths in pixels refer to images in
which a square as large as the tissue (`Views.extent`) has the stated number of pixels along its side.

Sources: Padfield 2012 (masked normalised cross-correlation by FFT); Golub and Pereyra 1973 (variable projection).

Where a constant names no source, neither a paper nor a calibration is recorded for it; ``benchmarks/ACCURACY.md`` (any pose,
crops) shows what they achieve together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Config
from ..data import Image
from ..fit.energy import ImageMetric
from ..fit.frames import Frame
from ..fit.halvings import Halvings, Level
from ..fit.threads import threads_for
from ..fit.velocity import smooth_size
from ..maps.homogeneous import compose, inverse
from .given import check_landmarks, given
from .landmarks import Landmarks
from .pose import APART, EQUAL, Pose, nearest_of_kind
from .scale import Scale
from .views import View, Views
from .volumes import search_volume

SCAN_SIZE = 20
"""Pixels along the side of a square as large as the tissue, in the images on which all poses are scanned."""
TURNS = 16
"""Number of turns tried around the full circle, each with and without a mirror: 22.5 degrees apart; the refinement makes good
the half of that by which the nearest one is off."""
SIZES = 7
"""Number of sizes tried where the size is unknown, each √2 times the one before, centred on the size at which both sides have
tissue of equal area."""
SCANNED = 28
"""Number of poses of the scan, the best ones, that are refined as similarities."""
COARSE_SIZE = 28
"""Pixels along the side of a square as large as the tissue, in the images on which poses are refined as similarities."""
FINALISTS = 6
"""Number of distinct poses that are refined as affine maps and compared with each other."""
FINE_SIZE = 64
"""Pixels along the side of a square as large as the tissue, in the images on which finalists are refined."""
STEPS = 8
"""Gauss-Newton steps of one refinement."""
UNMIRRORED = 0.3
"""Share by which an unmirrored pose may score less than a mirrored one and still win. Slides are turned every day and flipped
rarely, and the two halves of a brain resemble each other more than two brains do."""
MOST = 3.0
"""Largest movement of any pixel in one Gauss-Newton step, in pixels of the image: the linearisation does not reach farther."""
LOCAL = 9
"""Width in pixels of the neighbourhood whose mean is subtracted to leave the fine structure by which finalists are judged."""
COARSE_AREA = 32.0
"""Pixels per independent observation of the images themselves, when finalists are judged; in their fine structure each pixel is
one observation."""
STRETCH = 0.05
"""Prior standard deviation of the logarithm of a pose's stretch, the ratio of the two singular values of its linear part."""
CHANCE = 60.0
"""Nats of likeness that unrelated images reach by chance: the margin of a pose is taken against this value at least, also where
there is no second pose."""
DULL = 0.1
"""Variance of a part of an image, over that of the whole image, below which its correlation is not believed because it is too
flat."""


def begin(
    fixed: Halvings, moving: Halvings, init: Any, metric: Callable[[Level], ImageMetric], config: Config
) -> tuple[Tensor, Pose | None]:
    """The start ``A`` ``[D+1, D+1]`` of two images, moving → fixed in physical units, and the outcome of a search, if there
    was one.

    Args:
        fixed: the fixed side.
        moving: the moving side.
        init: the user's argument, see `given.given`.
        metric: function that prepares the metric for a pyramid level; used for volumes only.
        config: all settings.
    """
    if isinstance(init, Landmarks):
        check_landmarks(init, fixed.image, moving.image)
    matrix = given(fixed.grid, moving.grid, init, config)
    if matrix is not None:
        return matrix, None
    found = search(fixed, moving, metric, config)
    factor = Scale.of(fixed.grid, moving.grid).factor
    return nearest_of_kind(found.matrix, config.transform, factor, moving.grid.center), found


def search(
    fixed: Image | Halvings, moving: Image | Halvings, metric: Callable[[Level], ImageMetric], config: Config
) -> Pose:
    """Find the pose of ``moving`` on ``fixed``: any turn, mirror and shift, and any size where the units do not state it.

    Images are compared by their intensity, of either sign, and by their edges, whatever the metric of the fit. All turns,
    mirrors, sizes and shifts are tried at a very low resolution; the best poses are refined as similarities, the best of these as
    affine maps. Volumes start from the identity or from their middles instead, refined with the metric (`volumes`).

    Args:
        fixed: the fixed side.
        moving: the moving side. Its size is unknown where either side is in pixels, unless a rigid map is asked for.
        metric: function that prepares the metric for a pyramid level; used for volumes only.
        config: ``transform`` says which model is asked for.
    """
    fixed, moving = Halvings.of(fixed), Halvings.of(moving)
    if fixed.grid.ndim != 2:
        return search_volume(fixed, moving, metric, config)
    with threads_for(TURNS * SCAN_SIZE**2 * 16):
        return search_plane(fixed, moving, config)


def search_plane(fixed: Halvings, moving: Halvings, config: Config) -> Pose:
    """`search` for two 2D images."""
    f, m = Views(fixed), Views(moving)
    scale, rigid = Scale.of(fixed.grid, moving.grid), config.transform == "rigid"
    # size (fixed pixels per moving pixel) that the units give, or 1 where they do not
    equal = 1.0 if scale.ratio is None else scale.ratio * moving.grid.pixel / fixed.grid.pixel
    known = scale.settled(config.transform)
    zooms = [equal] if known else _ladder(f.extent / m.extent, equal)
    # poses are pullbacks of the normalised frames, fixed → moving, [N, 2, 3]
    to_fixed, to_moving = Frame.of(fixed.grid).matrix(), Frame.of(moving.grid).matrix()
    plain = [_scaled(zoom) for zoom in ([equal] if known else [equal, f.extent / m.extent])]  # middle on middle
    if scale.ratio is not None:
        stay = compose(to_moving, _scaled(scale.ratio), inverse(to_fixed))
        if not torch.equal(stay, plain[0]):
            plain.insert(0, stay)
    found = [_scan(f, m, zoom) for zoom in zooms]
    scores, poses = (torch.cat(part) for part in zip(*found, strict=True))
    best = scores.argsort(descending=True, stable=True)[:SCANNED]
    poses = torch.cat([torch.stack(plain)[:, :2].to(torch.float32), poses[best]])
    favour = torch.ones(len(poses), dtype=torch.float32)
    favour[: len(plain)] += EQUAL
    favour[torch.linalg.det(poses[:, :, :2]) > 0] /= 1 - UNMIRRORED
    for size, kind in ((COARSE_SIZE, "similarity"), (FINE_SIZE, "affine")):
        poses, fit = _refine(f, m, poses, size, "rigid" if rigid else kind)
        scores = fit.score
        if size == FINE_SIZE:
            sizes = torch.linalg.svdvals(poses[:, :, :2])
            scores = fit.evidence() - 0.5 * ((sizes[:, 0] / sizes[:, 1]).log() / STRETCH) ** 2
        chosen: list[int] = []
        for i in (scores * favour).argsort(descending=True, stable=True).tolist():
            if len(chosen) < FINALISTS and all(_apart(poses[i], poses[j], f, m) for j in chosen):
                chosen.append(i)
        poses, scores, favour = poses[chosen], scores[chosen], favour[chosen]

    def physical(pose: Tensor) -> Tensor:
        square = torch.eye(3, dtype=torch.float64)
        square[:2] = pose
        return nearest_of_kind(
            compose(inverse(to_fixed), inverse(square), to_moving),
            "rigid" if rigid else "affine",
            scale.factor,
            moving.grid.center,
        )

    score, others = float(scores[0]), scores[1:]
    second = float(others.max()) if len(others) else 0.0
    margin = max(0.0, 1 - max(second, CHANCE) / max(score, 1e-9))
    if not len(others):
        return Pose(physical(poses[0]), score, margin)
    return Pose(physical(poses[0]), score, margin, physical(poses[1 + int(others.argmax())]), second)


def _scaled(zoom: float) -> Tensor:
    """The pullback ``[3, 3]`` that enlarges the moving side ``zoom``-fold."""
    return torch.diag(torch.tensor([1 / zoom, 1 / zoom, 1.0], dtype=torch.float64))


def _ladder(middle: float, equal: float) -> list[float]:
    """Sizes to try, in fixed pixels per moving pixel.

    They are spread about ``middle``, at which both sides have tissue of equal area; ``equal`` is added where it is not near one.
    """
    zooms = [middle * 2 ** (k / 2) for k in range(-(SIZES // 2), SIZES // 2 + 1)]
    if all(abs(math.log2(equal / zoom)) > 1 / 8 for zoom in zooms):
        zooms.append(equal)
    return zooms


def _apart(a: Tensor, b: Tensor, fixed: Views, moving: Views) -> bool:
    """Whether two pullbacks ``[2, 3]`` map the corners of the smaller side to different places (`APART`), in the mean."""
    if fixed.extent > moving.extent * float(torch.linalg.det(a[:, :2]).abs()) ** -0.5:
        a, b = _inverted(a), _inverted(b)
        fixed, moving = moving, fixed
    half = fixed.extent / 2
    corners = torch.tensor([[y, x, 1.0] for y in (-half, half) for x in (-half, half)], dtype=torch.float32)
    size = float(torch.linalg.det(a[:, :2]).abs()) ** 0.5
    return bool(float((corners @ (a - b).T).norm(dim=1).mean()) > APART * size * 2**1.5 * half)


def _inverted(pose: Tensor) -> Tensor:
    linear = torch.linalg.inv(pose[:, :2])
    return torch.cat([linear, -linear @ pose[:, 2:]], dim=1)


def _lattice(shape: tuple[int, int], spacing: float) -> Tensor:
    """Positions ``[H, W, 2]`` of a grid centred on the origin."""
    axes = [(torch.arange(n, dtype=torch.float32) - (n - 1) / 2) * spacing for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def _sample(view: View, at: Tensor) -> tuple[Tensor, Tensor]:
    """Data ``[N, 2, H, W]`` and weight ``[N, H, W]`` of a view at positions ``[N, H, W, 2]``; weight 0 outside the view."""
    shape = torch.tensor(view.grid.shape, dtype=torch.float32)
    spacing, origin = (torch.tensor(v, dtype=torch.float32) for v in (view.grid.spacing, view.grid.origin))
    unit = (2 * (at - origin) / spacing + 1) / shape - 1  # -1 and 1 at the outer borders
    stack = torch.cat([view.data, view.weight[None]])[None].expand(len(at), -1, -1, -1)
    out = F.grid_sample(stack, unit.flip(-1), padding_mode="border", align_corners=False)
    return out[:, :-1], out[:, -1] * (unit.abs() < 1).all(dim=-1)


def _likeness(
    cross: Tensor, f_variance: Tensor, m_variance: Tensor, least: float = DULL
) -> tuple[Tensor, Tensor, Tensor]:
    """Squared correlations of intensities and of edges (dimension 1), and the variances of both sides, raised to ``least``.

    Intensities may be inverted. Edge strengths may not: where one side has edges the other must have edges too.
    """
    f_variance, m_variance = f_variance.clamp(min=least), m_variance.clamp(min=least)
    square = cross * cross / (f_variance * m_variance)
    square[:, 1] *= cross[:, 1] > 0
    return square.clamp(max=0.98), f_variance, m_variance


def _scan(fixed: Views, moving: Views, zoom: float) -> tuple[Tensor, Tensor]:
    """Scores ``[2 TURNS]`` and pullbacks ``[2 TURNS, 2, 3]`` of the best shift at each turn, without and with a mirror.

    The score of a shift is ``-n/2 Σ log(1 - ρ²)`` over n shared pixels, with ρ the weighted normalised cross-correlations.
    """
    spacing = math.sqrt(fixed.extent * zoom * moving.extent) / SCAN_SIZE
    f, m = fixed.at(spacing), moving.at(spacing / zoom)
    spacing = max(spacing, max(*f.grid.extent, *(zoom * e for e in m.grid.extent)) / (4 * SCAN_SIZE))
    f_shape = [max(4, round(e / spacing)) for e in f.grid.extent]
    f_at = _lattice((f_shape[0], f_shape[1]), spacing)
    image, mask = (part[0] for part in _sample(f, f_at[None]))
    side = math.ceil(math.hypot(*(e * zoom / spacing for e in m.grid.extent)))  # pixels: the diagonal fits at any turn
    angle = 2 * math.pi * torch.arange(TURNS, dtype=torch.float32) / TURNS
    cos, sin = angle.cos(), angle.sin()
    turns = torch.stack([cos, sin, -sin, cos], dim=1).reshape(-1, 2, 2)  # fixed frame → moving frame
    turns = torch.cat([turns, turns * turns.new_tensor([[1.0], [-1.0]])]) / zoom
    m_at = _lattice((side, side), spacing)
    turned, covered = _sample(m, torch.einsum("hwc,ndc->nhwd", m_at, turns))  # [N, 2, ...], [N, ...]
    shape = [smooth_size(n + side - 1) for n in f_shape]
    a = torch.fft.rfft2(
        torch.cat([torch.ones_like(mask)[None], image, image * image]) * mask, s=shape
    ).conj()  # [5, ...]
    b = torch.cat([torch.ones_like(covered)[:, None], turned, turned * turned], dim=1) * covered[:, None]
    b = torch.fft.rfft2(b, s=shape)  # [N, 5, ...]
    sums = torch.fft.irfft2(a[[0, 1, 2, 3, 4, 0, 0, 0, 0, 1, 2]] * b[:, [0, 0, 0, 0, 0, 1, 2, 3, 4, 1, 2]], s=shape)
    n = sums[:, :1].clamp(min=1e-3)
    s_f, s_ff, s_m, s_mm, s_fm = (sums[:, 1:] / n).unflatten(1, (5, 2)).unbind(dim=1)  # [N, 2, ...] each
    square, _, _ = _likeness(s_fm - s_f * s_m, s_ff - s_f * s_f, s_mm - s_m * s_m)
    score = -0.5 * n[:, 0] * torch.log1p(-square).sum(dim=1)
    enough = 0.25 * torch.minimum(mask.sum(), covered.sum(dim=(1, 2)))
    score = torch.where(n[:, 0] > enough[:, None, None], score, 0.0)
    best, place = score.flatten(1).max(dim=1)
    # at lag r the fixed pixel i lies on the moving pixel i + r; lags wrap
    lag = torch.stack([place // shape[1], place % shape[1]], dim=1)
    size, last = torch.tensor(shape), torch.tensor(f_shape)
    lag = torch.where(lag > size - last, lag - size, lag)
    shift = spacing * (lag.to(torch.float32) - (side - 1) / 2) - f_at[0, 0]  # of a fixed position, before the turn
    return best, torch.cat([turns, torch.einsum("ndc,nc->nd", turns, shift)[:, :, None]], dim=2)


@dataclass(frozen=True)
class _Fit:
    """N poses compared on one grid of the fixed side: the values that the next step and the score need.

    Args:
        fixed: the fixed side minus its mean over the overlap ``[N, 2, H, W]``.
        moving: the moving side at the pose minus its mean over the overlap ``[N, 2, H, W]``.
        weight: weights of the pixels, with sum 1 ``[N, H, W]``.
        slope: regression coefficients of the fixed on the moving side ``[N, 2]``.
        spread: variances of the moving side ``[N, 2]``.
        rest: variances of the fixed side that the moving side does not explain ``[N, 2]``.
        count: number of shared pixels ``[N]``.
        score: nats of likeness ``[N]``.
    """

    fixed: Tensor
    moving: Tensor
    weight: Tensor
    slope: Tensor
    spread: Tensor
    rest: Tensor
    count: Tensor
    score: Tensor

    def better(self, other: _Fit) -> tuple[_Fit, Tensor]:
        """For each pose the fit with the higher score, and where (``[N]`` bool) that is the other one."""
        wins = other.score > self.score
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return _Fit(*(torch.where(wins.reshape(-1, *(1,) * (old.ndim - 1)), new, old) for old, new in pairs)), wins

    def evidence(self) -> Tensor:
        """Nats of likeness ``[N]`` of fine structure and, at a lower weight, of the images themselves.

        Fine structure decides, because different tissues can have similar outlines.
        """
        w = self.weight[:, None]
        near = F.avg_pool2d(w, LOCAL, 1, LOCAL // 2).clamp(min=1e-12)

        def fine(values: Tensor) -> Tensor:
            return values - F.avg_pool2d(values * w, LOCAL, 1, LOCAL // 2) / near

        f, m = fine(self.fixed), fine(self.moving)
        f, m = (side - (side * w).sum(dim=(2, 3), keepdim=True) for side in (f, m))
        cross, f_variance, m_variance = ((pair * w).sum(dim=(2, 3)) for pair in (f * m, f * f, m * m))
        square, _, _ = _likeness(cross, f_variance, m_variance, DULL / 5)
        return -0.5 * self.count * torch.log1p(-square).sum(dim=1) + self.score / COARSE_AREA


def _compare(image: Tensor, mask: Tensor, at: Tensor, spacing: float, moving: Views, poses: Tensor) -> _Fit:
    """Compare the fixed ``image`` ``[2, H, W]`` at positions ``[H, W, 2]`` with the moving side, at N pullbacks ``[N, 2, 3]``."""
    positions = torch.einsum("hwc,ndc->nhwd", at, poses[:, :, :2]) + poses[:, None, None, :, 2]
    views = [moving.at(spacing * float(size)) for size in torch.linalg.det(poses[:, :, :2]).abs().sqrt()]
    warped = image.new_empty((len(poses), *image.shape))
    weight = image.new_empty((len(poses), *mask.shape))
    for view in {id(view): view for view in views}.values():
        those = [i for i, other in enumerate(views) if other is view]
        warped[those], weight[those] = _sample(view, positions[those])
    weight = weight * mask
    n = weight.sum(dim=(1, 2)).clamp(min=1e-3)
    weight = weight / n[:, None, None]

    def mean(values: Tensor) -> Tensor:
        return (values * weight[:, None]).sum(dim=(2, 3))

    f = image - mean(image[None])[:, :, None, None]
    m = warped - mean(warped)[:, :, None, None]
    cross = mean(f * m)
    square, f_variance, m_variance = _likeness(cross, mean(f * f), mean(m * m))
    slope = cross / m_variance
    slope[:, 1] = slope[:, 1].clamp(min=0)
    score = -0.5 * n * torch.log1p(-square).sum(dim=1)
    return _Fit(f, m, weight, slope, m_variance, f_variance * (1 - square), n, score)


def _refine(fixed: Views, moving: Views, poses: Tensor, size: int, kind: str) -> tuple[Tensor, _Fit]:
    """Refine N pullbacks ``[N, 2, 3]`` together by `STEPS` damped Gauss-Newton steps each; returns them and their fits.

    Minimises the sum of the logarithms of the two residual variances (intensity, edges). The linear regression between the
    sides is
    eliminated: derivatives are projected off the direction in which it changes (variable projection).
    """
    spacing = fixed.extent / size
    view = fixed.at(spacing)
    spacing = max(spacing, max(view.grid.extent) / (3 * size))
    shape = [max(4, round(e / spacing)) for e in view.grid.extent]
    at = _lattice((shape[0], shape[1]), spacing)
    image, mask = (part[0] for part in _sample(view, at[None]))
    radius = max(shape) / 2
    y, x = at.unbind(dim=-1)
    y, x, one, zero = y / (spacing * radius), x / (spacing * radius), torch.ones_like(y), torch.zeros_like(y)
    fields = [(one, zero), (zero, one), (-x, y), (y, x), (y, -x), (x, y)]  # two shifts, turn, size, two stretches
    fields = fields[: {"rigid": 3, "similarity": 4, "affine": 6}[kind]]
    moves = torch.stack([torch.stack(field) for field in fields])  # [K, 2, H, W], pixels
    now = _compare(image, mask, at, spacing, moving, poses)
    damping = torch.full((len(poses),), 0.01, dtype=torch.float32)
    for _ in range(STEPS):
        slope = image.new_zeros((len(poses), 2, *image.shape))  # [N, 2 derivatives, 2, H, W]
        slope[:, 0, :, 1:-1] = (now.moving[:, :, 2:] - now.moving[:, :, :-2]) / 2
        slope[:, 1, :, :, 1:-1] = (now.moving[:, :, :, 2:] - now.moving[:, :, :, :-2]) / 2
        change = torch.einsum("ndphw,kdhw->nkphw", slope, moves)
        w = now.weight[:, None, None]
        change = change - (change * w).sum(dim=(3, 4), keepdim=True)
        along = (change * now.moving[:, None] * w).sum(dim=(3, 4), keepdim=True) / now.spread[:, None, :, None, None]
        change = (change - along * now.moving[:, None]) * now.slope[:, None, :, None, None]
        rest = now.fixed - now.slope[:, :, None, None] * now.moving
        weighed = (change * w / now.rest[:, None, :, None, None]).flatten(2)
        hessian, descent = weighed @ change.flatten(2).mT, (weighed @ rest.flatten(1)[:, :, None])[:, :, 0]
        diagonal = hessian.diagonal(dim1=1, dim2=2)
        hessian = hessian + torch.diag_embed(damping[:, None] * diagonal + 1e-3 * diagonal.mean(1, keepdim=True) + 1e-9)
        step = torch.linalg.solve(hessian, descent)
        step = step / (step.abs().amax(dim=1, keepdim=True) / MOST).clamp(min=1)
        trial = _stepped(poses, step, spacing, radius)
        now, wins = now.better(_compare(image, mask, at, spacing, moving, trial))
        poses = torch.where(wins[:, None, None], trial, poses)
        damping = torch.where(wins, damping * 0.3, damping * 10)
    return poses, now


def _stepped(poses: Tensor, step: Tensor, spacing: float, radius: float) -> Tensor:
    """Pullbacks ``[N, 2, 3]`` after an increment of the fixed side ``[N, 3, 4 or 6]``, in lattice pixels at ``radius`` pixels."""
    shift, rest = step[:, :2] * spacing, step[:, 2:] / radius
    turn, size, a, b = F.pad(rest, (0, 4 - rest.shape[1])).unbind(dim=1)
    linear = torch.stack([1 + size + a, b - turn, b + turn, 1 + size - a], dim=1).reshape(-1, 2, 2)
    if rest.shape[1] == 1:  # a turn keeps the size
        linear = linear / torch.linalg.det(linear).sqrt()[:, None, None]
    old = poses[:, :, :2]
    return torch.cat([old @ linear, old @ shift[:, :, None] + poses[:, :, 2:]], dim=2)
