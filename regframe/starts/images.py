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
from ..fit.frames import KINDS, Frame, affine_kind
from ..fit.halvings import Halvings, Level
from ..fit.threads import threads_for
from ..fit.velocity import smooth_size
from ..maps.homogeneous import compose, inverse
from . import priors
from .evidence import FINE_SIZE, Match, anywhere, compare, lattice, likeness, overlap, sample, seen
from .given import check_landmarks, given
from .landmarks import Landmarks
from .pose import APART, EQUAL, Pose, nearest_of_kind
from .scale import Scale
from .views import Views
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
STEPS = 8
"""Gauss-Newton steps of one refinement."""
UNMIRRORED = 0.3
"""Share by which an unmirrored pose may score less than a mirrored one and still win. Slides are turned every day and flipped
rarely, and the two halves of a brain resemble each other more than two brains do."""
MOST = 3.0
"""Largest movement of any pixel in one Gauss-Newton step, in pixels of the image: the linearisation does not reach farther."""
CHANCE = 60.0
"""Nats of likeness that unrelated images reach by chance: the margin of a pose is taken against this value at least, also where
there is no second pose."""


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
    scale = Scale.of(fixed.grid, moving.grid)
    prior = prior_of(fixed, moving)
    equal = prior.size or f.extent / m.extent
    # poses are pullbacks of the normalised frames, fixed → moving, [N, 2, 3]
    to_fixed, to_moving = Frame.of(fixed.grid).matrix(), Frame.of(moving.grid).matrix()
    lying = compose(to_moving, _scaled(scale.factor), inverse(to_fixed))
    found = _candidates(f, m, prior, lying, config)
    unit = priors.chance(compare(*seen(f, FINE_SIZE), m, anywhere(f, equal)).evidence())
    scores = found.evidence - unit * (prior.nats(found.poses[:, :, :2], found.overlap) + found.richness)
    favoured = torch.where(scores > 0, scores * found.favour, scores / found.favour)
    order = favoured.argsort(descending=True, stable=True).tolist()
    best, chosen = order[0], [order[0]]
    for i in order:
        if len(chosen) < FINALISTS and all(_apart(found.poses[i], found.poses[j], f, m) for j in chosen):
            chosen.append(i)

    def physical(pose: Tensor) -> Tensor:
        square = torch.eye(3, dtype=torch.float64)
        square[:2] = pose
        return nearest_of_kind(
            compose(inverse(to_fixed), inverse(square), to_moving), config.transform, scale.factor, moving.grid.center
        )

    score, others = float(scores[best]), scores[chosen[1:]]
    second = float(others.max()) if len(others) else 0.0
    margin = max(0.0, 1 - max(second, CHANCE) / max(score, 1e-9))
    matrix, decided = physical(found.poses[best]), _decided(found, scores, best, chosen[1:])
    if not len(others):
        return Pose(matrix, score, margin, decided=decided)
    runner_up = physical(found.poses[chosen[1 + int(others.argmax())]])
    return Pose(matrix, score, margin, runner_up, second, decided)


def prior_of(fixed: Halvings, moving: Halvings) -> priors.Prior:
    """What the units of two planes say of poses, in pullbacks of their normalised frames; pixels are taken one for one."""
    scale = Scale.of(fixed.grid, moving.grid)
    size = None if scale.ratio is None else scale.ratio * moving.grid.pixel / fixed.grid.pixel
    return priors.Prior(size, scale.physical)


@dataclass(frozen=True)
class _Candidates:
    """Refined poses of all models.

    Args:
        poses: pullbacks ``[N, 2, 3]``.
        evidence: raw, of fine structure and all ``[N]``.
        overlap: share of the smaller side's tissue that both show ``[N]``.
        richness: nats that the model of each pays ``[N]``.
        favour: what scores are multiplied by where poses are compared: plain ones, and those without a mirror ``[N]``.
    """

    poses: Tensor
    evidence: Tensor
    overlap: Tensor
    richness: Tensor
    favour: Tensor


def _candidates(f: Views, m: Views, prior: priors.Prior, lying: Tensor, config: Config) -> _Candidates:
    """Poses from nested models: as both lie, middle on middle, rigid at the stated size, of any size, and affine ones.

    What a simpler model finds is refined as a richer one too, and stays as it was beside that.
    """
    known = config.transform == "rigid" or prior.physical
    equal = prior.size or 1.0
    alike = f.extent / m.extent
    plain = [_scaled(zoom) for zoom in ([equal] if known else [equal, alike])]  # middle on middle
    if prior.size is not None and not torch.equal(lying, plain[0]):
        plain.insert(0, lying)
    stated = prior.size is not None or config.transform == "rigid"
    scans = [([equal], "rigid")] if stated else []
    if config.transform != "rigid":
        scans.append(([equal] if known else _ladder(alike, equal), "similarity"))
    still = torch.stack(plain)[:, :2].to(torch.float32)
    fit = compare(*seen(f, FINE_SIZE), m, still)
    shared = overlap(f, m, still, fit.count, seen(f, FINE_SIZE)[-1])
    free = torch.full((len(still),), priors.RICHER["as they lie"], dtype=torch.float32)
    made = [_Candidates(still, fit.evidence(), shared, free, torch.full_like(free, (1 + EQUAL) / (1 - UNMIRRORED)))]
    kinds = KINDS[: 1 + KINDS.index(affine_kind(config.transform))]
    f_spacing = seen(f, FINE_SIZE)[-1]
    scanned: dict[float, tuple[Tensor, Tensor]] = {}
    for zooms, kind in scans:
        for zoom in zooms:
            if zoom not in scanned:
                scanned[zoom] = _scan(f, m, zoom)
        scores, poses = (torch.cat(part) for part in zip(*(scanned[zoom] for zoom in zooms), strict=True))
        poses = poses[scores.argsort(descending=True, stable=True)[:SCANNED]]
        first = plain if kind != "rigid" else [p for p in plain if abs(_zoom(p) / equal - 1) < 1e-6]
        poses = torch.cat([torch.stack(first)[:, :2].to(torch.float32), poses])
        favour = torch.ones(len(poses), dtype=torch.float32)
        favour[: len(first)] += EQUAL
        favour[torch.linalg.det(poses[:, :, :2]) > 0] /= 1 - UNMIRRORED
        poses, fit = _refine(f, m, poses, COARSE_SIZE, kind)
        chosen: list[int] = []
        for i in (fit.score * favour).argsort(descending=True, stable=True).tolist():
            if len(chosen) < FINALISTS and all(_apart(poses[i], poses[j], f, m) for j in chosen):
                chosen.append(i)
        for model in kinds[kinds.index(kind) :]:
            refined, fit = _refine(f, m, poses[chosen], FINE_SIZE, model)
            pays = torch.full((len(chosen),), priors.RICHER[model], dtype=torch.float32)
            shared = overlap(f, m, refined, fit.count, f_spacing)
            made.append(_Candidates(refined, fit.evidence(), shared, pays, favour[chosen]))
    return _Candidates(*(torch.cat(part) for part in zip(*(vars(one).values() for one in made), strict=True)))


def _decided(found: _Candidates, scores: Tensor, best: int, rivals: list[int]) -> str:
    """What was decided by priors and not by the evidence, in words, or nothing."""
    if not rivals:
        return ""
    rival = rivals[int(found.evidence[rivals].argmax())]
    if not float(found.evidence[rival]) >= (1 - EQUAL) * float(found.evidence[best]):
        return ""
    hands = [float(torch.linalg.det(found.poses[i, :, :2])) for i in (best, rival)]
    if hands[0] > 0 > hands[1]:
        return "the mirrored pose fits as well: the pose that is not mirrored, as the files lie, was taken"
    sizes = [float(torch.linalg.svdvals(found.poses[i, :, :2]).log().mean()) for i in (best, rival)]
    if abs(sizes[0] - sizes[1]) > priors.SIZE * 2:
        return f"a pose {math.exp(sizes[0] - sizes[1]):.2g} times as large fits as well: the likelier size was taken"
    return "another pose fits as well: the likelier one, less turned, sheared or shifted, was taken"


def _zoom(pullback: Tensor) -> float:
    """How much larger a pullback makes the moving side."""
    return float(torch.linalg.det(pullback[:2, :2]).abs().pow(-0.5))


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


def _scan(fixed: Views, moving: Views, zoom: float) -> tuple[Tensor, Tensor]:
    """Scores ``[2 TURNS]`` and pullbacks ``[2 TURNS, 2, 3]`` of the best shift at each turn, without and with a mirror.

    The score of a shift is ``-n/2 Σ log(1 - ρ²)`` over n shared pixels, with ρ the weighted normalised cross-correlations.
    """
    spacing = math.sqrt(fixed.extent * zoom * moving.extent) / SCAN_SIZE
    f, m = fixed.at(spacing), moving.at(spacing / zoom)
    spacing = max(spacing, max(*f.grid.extent, *(zoom * e for e in m.grid.extent)) / (4 * SCAN_SIZE))
    f_shape = [max(4, round(e / spacing)) for e in f.grid.extent]
    f_at = lattice((f_shape[0], f_shape[1]), spacing)
    image, mask = (part[0] for part in sample(f, f_at[None]))
    side = math.ceil(math.hypot(*(e * zoom / spacing for e in m.grid.extent)))  # pixels: the diagonal fits at any turn
    angle = 2 * math.pi * torch.arange(TURNS, dtype=torch.float32) / TURNS
    cos, sin = angle.cos(), angle.sin()
    turns = torch.stack([cos, sin, -sin, cos], dim=1).reshape(-1, 2, 2)  # fixed frame → moving frame
    turns = torch.cat([turns, turns * turns.new_tensor([[1.0], [-1.0]])]) / zoom
    m_at = lattice((side, side), spacing)
    turned, covered = sample(m, torch.einsum("hwc,ndc->nhwd", m_at, turns))  # [N, 2, ...], [N, ...]
    shape = [smooth_size(n + side - 1) for n in f_shape]
    a = torch.fft.rfft2(
        torch.cat([torch.ones_like(mask)[None], image, image * image]) * mask, s=shape
    ).conj()  # [5, ...]
    b = torch.cat([torch.ones_like(covered)[:, None], turned, turned * turned], dim=1) * covered[:, None]
    b = torch.fft.rfft2(b, s=shape)  # [N, 5, ...]
    sums = torch.fft.irfft2(a[[0, 1, 2, 3, 4, 0, 0, 0, 0, 1, 2]] * b[:, [0, 0, 0, 0, 0, 1, 2, 3, 4, 1, 2]], s=shape)
    n = sums[:, :1].clamp(min=1e-3)
    s_f, s_ff, s_m, s_mm, s_fm = (sums[:, 1:] / n).unflatten(1, (5, 2)).unbind(dim=1)  # [N, 2, ...] each
    square, _, _ = likeness(s_fm - s_f * s_m, s_ff - s_f * s_f, s_mm - s_m * s_m)
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


def _refine(fixed: Views, moving: Views, poses: Tensor, size: int, kind: str) -> tuple[Tensor, Match]:
    """Refine N pullbacks ``[N, 2, 3]`` together by `STEPS` damped Gauss-Newton steps each; returns them and how they match.

    Minimises the sum of the logarithms of the two residual variances (intensity, edges). The linear regression between the
    sides is
    eliminated: derivatives are projected off the direction in which it changes (variable projection).
    """
    image, mask, at, spacing = seen(fixed, size)
    radius = max(mask.shape) / 2
    y, x = at.unbind(dim=-1)
    y, x, one, zero = y / (spacing * radius), x / (spacing * radius), torch.ones_like(y), torch.zeros_like(y)
    fields = [(one, zero), (zero, one), (-x, y), (y, x), (y, -x), (x, y)]  # two shifts, turn, size, two stretches
    fields = fields[: {"rigid": 3, "similarity": 4, "affine": 6}[kind]]
    moves = torch.stack([torch.stack(field) for field in fields])  # [K, 2, H, W], pixels
    now = compare(image, mask, at, spacing, moving, poses)
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
        now, wins = now.better(compare(image, mask, at, spacing, moving, trial))
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
