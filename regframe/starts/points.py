"""The pose of one point cloud on another: many turns, both handednesses and several sizes, annealed together.

Each combination of turn, mirror and size starts its own EM on thinned clouds; all run as one batch while the scale σ shrinks.

Sources: Rose 1998 (deterministic annealing); Umeyama 1991 (closed forms); Alexa 2022 (super-Fibonacci spirals: turns spread
evenly over SO(3)).

Where a constant names no source, neither a paper nor a calibration is recorded for it; ``benchmarks/bench_points.py`` measures
what they achieve together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..fit.closed import turn_of
from ..fit.clouds import Floats, radius_of, thinned
from .priors import AS_THEY_LIE, TURN

TURNS_PLANE = 24
"""Number of turns tried around the full circle in 2D: 15 degrees apart, within reach of the annealing."""
TURNS_SPACE = 256
"""Number of turns tried over SO(3) in 3D: about 40 degrees apart."""
SIZES = {2: (0.8, 1.0, 1.25), 3: (1.0,)}
"""Sizes tried where the size is unknown, by dimension, as factors on the size at which both clouds have the same root mean
square radius."""
SCANNED = (64, (0.5, 0.4, 0.32, 0.25), 128)
"""First scan: places per side, scales σ (over the fixed cloud's root mean square radius), and number of poses that are kept."""
SIFTED = (128, (0.22, 0.18, 0.15, 0.12, 0.1), 8)
"""Second scan, in which sizes are fitted too: places per side, scales σ (as in `SCANNED`), and number of poses that are kept."""
SETTLED = (256, (0.1, 0.085, 0.07, 0.06, 0.05, 0.05), 8)
"""Last scan: places per side, scales σ (as in `SCANNED`), and number of poses that are kept."""
ALONE = 0.1
"""Share ω of points without a partner, held at this value during the pose search."""
UNMIRRORED = 0.3
"""Share by which the score of an unmirrored pose may be lower than that of a mirrored one and still win: halves of organs
resemble each other mirrored."""
ALONG = (-0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75)
"""Shifts along the longest axis of the fixed cloud, over its root mean square radius, from which each pose in space is tried
again: where one side shows more than the other, the middles of both do not belong together. A quarter of the radius is about
what the last scan can correct."""
MIRRORED = 4.0
"""Nats that a mirrored pose pays in space, where nothing but exchanged axes mirrors a body: one pair in fifty (stated, not
learned)."""
SLACK = 0.4
"""Nats per point (both sides together) by which a pose may score less than the best and still be passed on."""
RIVALS = 8
"""Largest number of poses that are passed on, from each of which the final map is tried."""
APART = 0.15
"""Mean distance of the mapped points under two poses, over the root mean square radius of the moving cloud, from which the two
are different poses."""


@dataclass(frozen=True)
class Found:
    """The outcome of the pose search of two clouds.

    Args:
        matrix: ``A`` ``[D+1, D+1]`` of the best pose, moving → fixed, both in fixed pixels.
        score: nats per point by which both clouds explain each other better than one broad Gaussian explains each.
        margin: how much lower the best different pose scores, relative to ``score``; None where there is none.
        runner_up: the matrix of that pose, or None.
        runner_up_score: the score of that pose, or None.
        rivals: matrices of further poses that score nearly as well (see `SLACK`), best first.
    """

    matrix: Floats
    score: float
    margin: float | None
    runner_up: Floats | None = None
    runner_up_score: float | None = None
    rivals: tuple[Floats, ...] = ()


def turns(ndim: int) -> Tensor:
    """Rotations ``[B, D, D]`` spread evenly: the circle, or super-Fibonacci spirals on SO(3) (Alexa 2022)."""
    if ndim == 2:
        angle = 2 * math.pi * torch.arange(TURNS_PLANE, dtype=torch.float64) / TURNS_PLANE
        return torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).reshape(-1, 2, 2)
    s = torch.arange(TURNS_SPACE, dtype=torch.float64) + 0.5
    r, big_r = (s / TURNS_SPACE).sqrt(), (1 - s / TURNS_SPACE).sqrt()
    alpha, beta = 2 * math.pi * s / math.sqrt(2.0), 2 * math.pi * s / 1.533751168755204288118041
    x, y, z, w = r * alpha.sin(), r * alpha.cos(), big_r * beta.sin(), big_r * beta.cos()
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
        2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
        2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    around = torch.stack(rows, dim=1).reshape(-1, 3, 3)
    return torch.cat([torch.eye(3, dtype=torch.float64)[None], around])


def search(p: Floats, q: Floats, known: bool, mirror: bool) -> Found:
    """The pose of ``p`` ``[N, D]`` on ``q`` ``[M, D]``: any turn and shift, any size unless ``known``, mirrored if ``mirror``.

    Every turn (with each mirror and size) starts an EM of its own from coinciding middles. All run as one batch on thinned
    clouds while σ shrinks; after each scan only the best distinct poses go on.
    """
    ndim = p.shape[1]
    mean_p, mean_q = p.mean(axis=0), q.mean(axis=0)
    radius_p, radius_q = radius_of(p), radius_of(q)
    unit = radius_q
    base = 1.0 if known else radius_q / radius_p
    sizes = [1.0] if known else [base * s for s in SIZES[ndim]]
    if not known and all(abs(math.log(s)) > 0.1 for s in sizes):
        sizes.append(1.0)
    around = turns(ndim)
    if mirror:
        flip = torch.eye(ndim, dtype=torch.float64)
        flip[-1, -1] = -1
        around = torch.cat([around, around @ flip])
    linear = torch.cat([around * s for s in sizes]).to(torch.float32)  # [B, D, D], of p in units
    shift = torch.zeros((len(linear), ndim), dtype=torch.float32)

    def side(c: Floats, mean: Floats, count: int) -> Tensor:
        return torch.from_numpy((thinned(c, count) - mean) / unit).to(torch.float32)

    volume = float(np.prod(np.ptp(q, axis=0) / unit))
    for number, (count, scales, keep) in enumerate((SCANNED, SIFTED, SETTLED)):
        ps, qs = side(p, mean_p, count), side(q, mean_q, count)
        for scale in scales:
            linear, shift = _batch_step(ps, qs, linear, shift, scale, volume, number > 0 and not known)
        score = _batch_score(ps, qs, linear, shift, scales[-1], volume)
        chosen = _distinct(ps, linear, shift, score, keep, 0.05 if number == 0 else APART)
        linear, shift, score = linear[chosen], shift[chosen], score[chosen]
    if ndim == 3:
        linear, shift = _slid(linear, shift, qs, (mean_p - mean_q) / unit)
        for scale in SETTLED[1]:
            linear, shift = _batch_step(ps, qs, linear, shift, scale, volume, not known)
        score = _batch_score(ps, qs, linear, shift, SETTLED[1][-1], volume) - unlikely(linear) * 4 / (len(ps) + len(qs))
        chosen = _distinct(ps, linear, shift, score, RIVALS, APART)
        linear, shift, score = linear[chosen], shift[chosen], score[chosen]
    score = score - _broad(ps, qs)
    mirrored = torch.linalg.det(linear) < 0
    best = int(score.argmax())
    if bool(mirrored[best]) and bool((~mirrored).any()):
        other = int(torch.where(mirrored, -torch.inf, score).argmax())
        if float(score[other]) >= (1 - UNMIRRORED) * float(score[best]):
            best = other
    moved = ps @ linear.mT + shift[:, None]
    apart = (moved - moved[best]).norm(dim=2).mean(dim=1) > APART * float(torch.linalg.det(linear[best]).abs()) ** (
        1 / ndim
    )

    def matrix(i: int) -> Floats:
        out = np.eye(ndim + 1)
        out[:-1, :-1] = linear[i].to(torch.float64).numpy()
        out[:-1, -1] = mean_q + unit * shift[i].to(torch.float64).numpy() - out[:-1, :-1] @ mean_p
        return out

    top = float(score[best])
    order = [i for i in score.argsort(descending=True).tolist() if i != best and float(score[i]) > top - SLACK]
    rivals = tuple(matrix(i) for i in order[: RIVALS - 1])
    if not bool(apart.any()):
        return Found(matrix(best), top, None, rivals=rivals)
    rival = int(torch.where(apart, score, -torch.inf).argmax())
    margin = max(0.0, (top - float(score[rival])) / max(abs(top), 1e-9))
    return Found(matrix(best), top, margin, matrix(rival), float(score[rival]), rivals)


def _slid(linear: Tensor, shift: Tensor, qs: Tensor, unmoved: Floats) -> tuple[Tensor, Tensor]:
    """Poses in space (``linear`` ``[B, 3, 3]``, ``shift`` ``[B, 3]``) and as the files lie, each shifted by each of `ALONG`.

    Args:
        linear: linear parts, of moving places about their middle.
        shift: shifts from the middle of the fixed places.
        qs: fixed places ``[M, 3]`` about their middle, in units of their radius.
        unmoved: the shift under which places stay where they lie ``[3]``.
    """
    size = float(torch.linalg.det(linear).abs().median()) ** (1 / 3)
    linear = torch.cat([linear, size * torch.eye(3)[None]])
    shift = torch.cat([shift, torch.from_numpy(unmoved).to(shift)[None]])
    axis = torch.linalg.eigh(torch.cov(qs.T))[1][:, -1]
    steps = torch.tensor(ALONG)[:, None] * axis  # [K, 3]
    return linear.repeat_interleave(len(steps), dim=0), (shift[:, None] + steps).reshape(-1, 3)


def unlikely(linear: Tensor) -> Tensor:
    """Nats ``[B]`` by which poses with linear parts ``[B, 3, 3]`` are less likely in space than as the files lie.

    Turned by at most a few `priors.TURN` about any axis, or anywhere (`priors.AS_THEY_LIE`); mirrored (`MIRRORED`).
    """
    handed = torch.linalg.det(linear).sign()
    turn, _ = turn_of(linear, handed)
    trace = (turn * handed[:, None, None]).diagonal(dim1=1, dim2=2).sum(dim=1)
    angle = ((trace - 1) / 2).clamp(-1, 1).acos()
    peak = AS_THEY_LIE / ((2 * math.pi) ** 1.5 * TURN**3)  # per volume of SO(3), which is 8 π²
    flat = (1 - AS_THEY_LIE) / (8 * math.pi**2)
    nats: Tensor = math.log(peak + flat) - (peak * (-0.5 * (angle / TURN) ** 2).exp() + flat).log()
    nats += MIRRORED * (handed < 0)
    return nats


def _squares(ps: Tensor, qs: Tensor, linear: Tensor, shift: Tensor) -> Tensor:
    """Squared distances ``[B, M, N]`` of all fixed from all mapped moving points, for each of B poses."""
    moved = ps @ linear.mT + shift[:, None]  # [B, N, D]
    cross = qs @ moved.mT
    return (qs.square().sum(1)[:, None] + moved.square().sum(2)[:, None, :] - 2 * cross).clamp_(min=0)


def _batch_step(
    ps: Tensor, qs: Tensor, linear: Tensor, shift: Tensor, sigma: float, volume: float, resize: bool
) -> tuple[Tensor, Tensor]:
    """One EM step of B poses at once: ``linear`` ``[B, D, D]``, ``shift`` ``[B, D]``."""
    ndim = ps.shape[1]
    share = _squares(ps, qs, linear, shift).mul_(-1 / (2 * sigma**2)).exp_()
    uniform = ALONE / (1 - ALONE) * len(ps) * (2 * math.pi * sigma**2) ** (ndim / 2) / volume
    share /= share.sum(dim=2, keepdim=True) + uniform
    by_p, by_q = share.sum(dim=1), share.sum(dim=2)  # [B, N], [B, M]
    total = by_p.sum(dim=1).clamp(min=1e-6)
    mean_p, mean_q = by_p @ ps / total[:, None], by_q @ qs / total[:, None]
    cross = (share @ ps).mT @ qs  # Σ p qᵀ, [B, D, D]
    cross = cross.mT / total[:, None, None] - mean_q[:, :, None] * mean_p[:, None, :]
    turn, values = turn_of(cross, torch.linalg.det(linear))  # a mirrored pose stays mirrored
    size = torch.linalg.det(linear).abs() ** (1 / ndim)
    if resize:
        spread = (by_p @ ps.square().sum(1)) / total - mean_p.square().sum(1)
        fitted = values.sum(1) / spread.clamp(min=1e-9)
        size = fitted.clamp(min=0.5 * size, max=2 * size)
    linear = turn * size[:, None, None]
    return linear, mean_q - (linear @ mean_p[:, :, None])[:, :, 0]


def _batch_score(ps: Tensor, qs: Tensor, linear: Tensor, shift: Tensor, sigma: float, volume: float) -> Tensor:
    """Score ``[B]`` of each pose, in nats per point.

    It is the mean log-density of the fixed points given the moving ones, plus that of the moving points given the fixed ones.
    """
    ndim = ps.shape[1]
    near = _squares(ps, qs, linear, shift).mul_(-1 / (2 * sigma**2)).exp_()
    constant = (1 - ALONE) * (2 * math.pi * sigma**2) ** (-ndim / 2)
    forth = (near.mean(dim=2) * constant + ALONE / volume).log().mean(dim=1)
    back = (near.mean(dim=1) * constant + ALONE / volume).log().mean(dim=1)
    score: Tensor = forth + back + torch.linalg.det(linear).abs().log()
    return score


def _broad(ps: Tensor, qs: Tensor) -> float:
    """The score that each cloud gets under one Gaussian of its own covariance: the value without any structure."""
    out = 0.0
    for c in (ps, qs):
        covariance = torch.cov(c.T)
        out -= 0.5 * float(torch.logdet(2 * math.pi * math.e * covariance))
    return out


def _distinct(ps: Tensor, linear: Tensor, shift: Tensor, score: Tensor, keep: int, apart: float) -> Tensor:
    """Indices of the ``keep`` best poses, of which no two map the cloud to within a mean distance of ``apart``."""
    moved = ps @ linear.mT + shift[:, None]
    order = score.argsort(descending=True)
    chosen: list[int] = []
    for i in order.tolist():
        if chosen and float((moved[chosen] - moved[i]).norm(dim=2).mean(dim=1).min()) < apart:
            continue
        chosen.append(i)
        if len(chosen) == keep:
            break
    return torch.tensor(chosen)
