"""Where a registration starts: from paired landmarks, or without any, by a search over turn, mirror and shift.

Sources: Umeyama 1991 (rigid and similarity maps of paired points, closed form); Padfield 2012 (masked normalised
cross-correlation by FFT).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .config import Config
from .data import Grid, Image, unit_ratio
from .homogeneous import carry, compose, inverse
from .lddmm import Frame, Halvings, ImageMetric, Increment, Level, halve, smooth_size
from .optimize import Fit, build_levels, fit_level, threads_for
from .transforms import Affine, resample

SEARCH_SIZE = 96
"""Pixels along the longer side of the images the search works on."""
ANGLES = 36
"""Turns tried around the full circle, each with and without a mirror."""
CANDIDATES = 6
"""Distinct poses that are refined and compared."""


CLEAR = 0.5
"""Share of the best peak's score below which a peak is not refined, once there is one rival to compare with."""
EQUAL = 0.02
"""Relative difference of two scores that says nothing about which pose is right."""


@dataclass(frozen=True)
class Landmarks:
    """Pairs ``p_i → q_i`` as a start.

    Args:
        moving: ``p`` ``[N, D]`` in the moving side's unit.
        fixed: ``q`` ``[N, D]`` in the fixed side's unit.
    """

    moving: Tensor
    fixed: Tensor


def landmarks(p: Any, q: Any) -> Landmarks:
    """Pairs of positions to start a registration from: moving ``p`` ``[N, D]`` and fixed ``q`` ``[N, D]``, ``(z,) y, x``.

    Three or more pairs give an affine start, fewer a translation. Raises ValueError for sides of unequal length,
    positions that are not finite, and three or more pairs that lie on one line.
    """
    sides = []
    for name, side in (("moving", p), ("fixed", q)):
        coords = torch.as_tensor(getattr(side, "coords", side), dtype=torch.float64)
        if coords.ndim != 2 or coords.shape[1] not in (2, 3):
            raise ValueError(f"wanted {name} landmarks [N, 2] or [N, 3], got {tuple(coords.shape)}")
        bad = int((~torch.isfinite(coords)).any(dim=1).sum())
        if bad:
            raise ValueError(f"wanted finite {name} landmarks, got {bad} with NaN or inf; leave them out on both sides")
        sides.append(coords)
    if sides[0].shape != sides[1].shape:
        raise ValueError(
            f"wanted as many fixed as moving landmarks, got {len(sides[1])} fixed and {len(sides[0])} moving; "
            "row i of one belongs to row i of the other"
        )
    if len(sides[0]) == 0:
        raise ValueError("wanted at least one pair of landmarks, got none")
    for name, coords in zip(("moving", "fixed"), sides, strict=True):
        if len(coords) >= 3:
            check_spread(coords, name)
    return Landmarks(sides[0], sides[1])


def check_spread(coords: Tensor, name: str) -> None:
    """Raise ValueError where positions ``[N, D]`` do not span a plane: no affine map follows from them."""
    values = torch.linalg.svdvals(coords - coords.mean(dim=0))
    if not float(values[1]) > 1e-3 * float(values[0]):
        raise ValueError(
            f"wanted {name} landmarks that span the tissue, got {len(coords)} on one line (collinear); add one off the line"
        )


def fit_points(p: Tensor, q: Tensor, kind: str = "affine") -> tuple[Affine, Tensor]:
    """Least-squares map of ``p`` onto ``q`` (``[N, D]`` each), and its residuals ``|A p_i - q_i|`` ``[N]``.

    Args:
        kind: ``translation``, ``rigid``, ``similarity`` or ``affine``. Where there are too few pairs for it (an affine map
            needs D + 1, a turn 2), the richest kind that they determine with certainty is fitted instead: a similarity is
            never guessed from two pairs, fewer than three give a translation.
    """
    p, q = p.to(torch.float64), q.to(torch.float64)
    ndim = p.shape[1]
    if len(p) < 3:
        kind = "translation"
    elif kind == "affine" and (len(p) < ndim + 1 or (ndim == 3 and _flat(p))):
        kind = "similarity"
    centre_p, centre_q = p.mean(dim=0), q.mean(dim=0)
    if kind == "translation":
        linear = torch.eye(ndim, dtype=torch.float64)
    elif kind == "affine":
        gram = torch.eye(ndim + 1, dtype=torch.float64)
        gram[:-1, :-1] = _products(p - centre_p, p - centre_p)
        linear = compose(_products(q - centre_q, p - centre_p), inverse(gram)[:-1, :-1])
    else:
        covariance = _products(q - centre_q, p - centre_p) / len(p)
        u, s, vh = torch.linalg.svd(covariance)
        sign = torch.ones(ndim, dtype=torch.float64)
        sign[-1] = torch.sign(torch.linalg.det(u) * torch.linalg.det(vh))
        linear = u @ torch.diag(sign) @ vh
        if kind == "similarity":
            linear = linear * float((s * sign).sum() / ((p - centre_p) ** 2).sum() * len(p))
    matrix = torch.eye(ndim + 1, dtype=torch.float64)
    matrix[:-1, :-1] = linear
    matrix[:-1, -1] = centre_q - linear @ centre_p
    fitted = Affine(matrix)
    return fitted, (fitted.points(p) - q).norm(dim=1)


def _products(a: Tensor, b: Tensor) -> Tensor:
    """``Σ_i a_i b_iᵀ`` ``[D, D]`` of ``[N, D]`` each, summed in one order (see `regframe.homogeneous`)."""
    return (a[:, :, None] * b[:, None, :]).sum(dim=0)


def _flat(p: Tensor) -> bool:
    values = torch.linalg.svdvals(p - p.mean(dim=0))
    return not float(values[-1]) > 1e-6 * float(values[0])


def nearest_of_kind(matrix: Tensor, kind: str, scale: float, center: tuple[float, ...]) -> Tensor:
    """The rigid (times the known ``scale`` between the units) or similarity matrix nearest to an affine one.

    ``center`` ``[D]`` of the moving space is mapped to where the affine map puts it; other kinds come back as they are.
    """
    if kind not in ("rigid", "similarity"):
        return matrix
    u, s, vh = torch.linalg.svd(matrix[:-1, :-1])
    out = matrix.clone()
    out[:-1, :-1] = u @ vh * (scale if kind == "rigid" else float(s.mean()))
    middle = torch.tensor(center, dtype=torch.float64)
    out[:-1, -1] = matrix[:-1, :-1] @ middle + matrix[:-1, -1] - out[:-1, :-1] @ middle
    return out


@dataclass(frozen=True)
class Pose:
    """A start found without landmarks.

    Args:
        matrix: ``A`` ``[D+1, D+1]``, moving → fixed, physical.
        score: mismatch after refinement, lower is better.
        margin: how much worse, relative to ``score``, the best truly different pose is; None where none was tried.
    """

    matrix: Tensor
    score: float
    margin: float | None


def search(
    fixed: Image | Halvings, moving: Image | Halvings, metric: Callable[[Level], ImageMetric], config: Config
) -> Pose:
    """Find the pose of ``moving`` on ``fixed`` over the full circle, both mirrors and all shifts.

    Candidates are the peaks of the masked normalised cross-correlation of gradient magnitudes, which do not depend on the
    polarity of a stain, beside the identity and the alignment of both centres; each is refined on a coarse level and the
    one with the lowest mismatch wins. Volumes start from the identity or from their centres.

    Args:
        fixed: in its unit.
        moving: in the fixed side's unit, or in pixels.
        metric: makes the similarity ready for a level.
    """
    fixed, moving = Halvings.of(fixed), Halvings.of(moving)
    ndim = fixed.grid.ndim
    ratio = unit_ratio(moving.grid.unit, fixed.grid.unit)
    zoom = ratio if ratio is not None else fixed.grid.diagonal / moving.grid.diagonal
    centred = torch.diag(torch.tensor([*[zoom] * ndim, 1.0], dtype=torch.float64))
    identity = centred.clone()
    middles = [torch.tensor(grid.center, dtype=torch.float64) for grid in (fixed.grid, moving.grid)]
    centred[:-1, -1] = middles[0] - zoom * middles[1]
    starts = [identity, centred] if ratio is not None and not torch.equal(identity, centred) else [centred]
    if ndim == 2:
        with threads_for(SEARCH_SIZE**2):
            starts += _correlation_peaks(fixed, moving, zoom)
    to_fixed, to_moving = Frame.of(fixed.grid).matrix(), Frame.of(moving.grid).matrix()
    kind = "rigid" if config.transform == "rigid" else "similarity"
    radius = math.hypot(*Frame.of(fixed.grid).grid(fixed.grid).extent) / 2
    scored: list[tuple[float, Tensor]] = []
    quick = config.model_copy(
        update={"optimizer": config.optimizer.model_copy(update={"max_iter": 30, "tolerance": 0.05})}
    )
    levels: list[Level] = []
    for matrix in starts:
        start = compose(to_moving, inverse(matrix), inverse(to_fixed))
        if not levels:
            levels = build_levels(fixed, moving, start, quick)[:1]
        increment = Increment(kind, ndim, radius)
        fit = Fit(torch.zeros(increment.size, dtype=torch.float32), start, increment, None)
        with threads_for(levels[0].work):
            fit = fit_level(fit, levels[0], metric(levels[0]), quick, stage="pose", number=0, constant_weights=True)
        if fit.overlap is None or not math.isfinite(fit.mismatch):
            continue
        share = float(fit.overlap.mean())
        # explained variance counts in proportion to the share of the fixed image it explains
        gain = -math.log(max(fit.mismatch, 1e-6)) * share
        found = compose(inverse(to_fixed), inverse(fit.pullback), to_moving)
        scored.append((-gain, found))
    if not scored:
        return Pose(starts[0], 0.0, None)
    lowest = min(score for score, _ in scored)
    # of poses that fit equally well (a disc fits at any turn) the plainest: identity and centres come first
    best_score, best = next(pair for pair in scored if pair[0] <= lowest + EQUAL * abs(lowest))
    rivals = [score for score, matrix in scored if _differs(matrix, best, moving.grid, fixed.grid)]
    rival = min(rivals, default=None)
    margin = None if rival is None else (rival - best_score) / max(abs(best_score), 1e-9)
    return Pose(best, best_score, margin)


def _differs(a: Tensor, b: Tensor, moving: Grid, fixed: Grid) -> bool:
    """Whether two poses put the moving canvas' corners further than a tenth of the fixed diagonal apart, in the mean."""
    apart = carry(a - b, moving.corners())
    return float(apart.norm(dim=1).mean()) > 0.1 * fixed.diagonal


def _feature(side: Halvings, spacing: float) -> tuple[Tensor, Grid]:
    """Gradient magnitude ``[H, W]`` of an image at about ``spacing``, standardised."""
    grid = side.grid.resampled(spacing)
    pixel, center = Frame.of(side.grid).length, side.grid.center
    times = 0
    while side.at(times + 1) is not side.at(times) and max(side.at(times + 1)[2].spacing) * pixel <= spacing:
        times += 1
    data, _, at = side.at(times)
    at = Grid(
        at.shape,
        tuple(s * pixel for s in at.spacing),
        tuple(o * pixel + c for o, c in zip(at.origin, center, strict=True)),
        grid.unit,
    )
    while True:  # low-pass before it is sampled
        axes = [d for d in range(at.ndim) if 2 * at.spacing[d] <= spacing and at.shape[d] >= 2]
        if not axes:
            break
        data, at = halve(data, at, axes)
    smooth = Image(data, at)
    small = resample(smooth, Affine.identity(2, at.unit), grid).data  # [C, H, W]
    dy = small.diff(dim=1, prepend=small[:, :1])
    dx = small.diff(dim=2, prepend=small[:, :, :1])
    magnitude = (dy**2 + dx**2).sum(dim=0).sqrt()
    return (magnitude - magnitude.mean()) / magnitude.std().clamp(min=1e-6), grid


def _correlation_peaks(fixed: Halvings, moving: Halvings, zoom: float) -> list[Tensor]:
    """Affine matrices of the best distinct (turn, mirror, shift), by masked normalised cross-correlation."""
    spacing = max(max(fixed.grid.extent), zoom * max(moving.grid.extent)) / SEARCH_SIZE
    f, f_grid = _feature(fixed, spacing)
    m, m_grid = _feature(moving, spacing / zoom)
    diagonal = math.ceil(math.hypot(*m.shape)) | 1
    canvas = Grid((diagonal, diagonal), (1.0, 1.0), (-(diagonal - 1) / 2,) * 2)  # moving pixels about their middle
    shape = [smooth_size(n + diagonal - 1) for n in f.shape]
    spectrum = torch.stack([torch.ones_like(f), f, f * f])
    spectrum = torch.fft.rfft2(spectrum, s=shape).conj()  # [3, ...] of the fixed mask, image, square
    enough = 0.3 * min(f.numel(), m.numel())
    about_middle = Grid(tuple(m.shape), (1.0, 1.0), tuple(-(n - 1) / 2 for n in m.shape))
    source = Image(torch.stack([m, torch.ones_like(m)]), about_middle)
    peaks: list[tuple[float, Tensor]] = []
    # a canvas looks the same mirrored, and the same again after half a turn: what depends on it alone is made once
    covered: dict[int, tuple[Tensor, Tensor]] = {}
    for mirror in (1.0, -1.0):
        for turn in range(ANGLES):
            angle = 2 * math.pi * turn / ANGLES
            c, s = math.cos(angle), math.sin(angle)
            linear = torch.tensor([[c, -s * mirror], [s, c * mirror]], dtype=torch.float64)
            matrix = torch.eye(3, dtype=torch.float64)
            matrix[:2, :2] = linear
            turned = resample(source, Affine(matrix), canvas, background=0.0).data
            half = turn % (ANGLES // 2)
            if half not in covered:
                mask = (turned[1] > 0.5).to(turned.dtype)
                covered[half] = mask, torch.fft.irfft2(spectrum * torch.fft.rfft2(mask, s=shape), s=shape)
            mask, (n, s_f, s_ff) = covered[half]
            image = turned[0] * mask
            other = torch.fft.rfft2(torch.stack([image, image * image]), s=shape)
            pairs = torch.stack([spectrum[0] * other[0], spectrum[0] * other[1], spectrum[1] * other[0]])
            s_m, s_mm, s_fm = torch.fft.irfft2(pairs, s=shape)
            n = n.clamp(min=1.0)
            top = s_fm - s_f * s_m / n
            bottom = ((s_ff - s_f**2 / n).clamp(min=1e-3) * (s_mm - s_m**2 / n).clamp(min=1e-3)).sqrt()
            ncc = torch.where(n > enough, (top / bottom).clamp(-0.999, 0.999), -1.0)
            # Fisher's z times the root of the sample size: how far from chance, so a large overlap counts
            score = torch.atanh(ncc) * n.sqrt()
            best = int(score.argmax())
            shift = [best // score.shape[1], best % score.shape[1]]
            # correlation at lag r compares f(i) with m(i + r): canvas index = fixed index + lag, lags wrap
            lag = [r - size if r > size - n_f else r for r, size, n_f in zip(shift, shape, f.shape, strict=True)]
            offset = torch.tensor(
                [-(diagonal - 1) / 2.0 + shift for shift in lag], dtype=torch.float64
            )  # canvas position of fixed index 0
            pose = torch.eye(3, dtype=torch.float64)
            pose[:2, :2] = linear * zoom
            f0 = torch.tensor(f_grid.origin, dtype=torch.float64)
            middle = torch.tensor(m_grid.center, dtype=torch.float64)
            # fixed index = turned position - offset; turned position = linear (x - middle) / moving spacing
            pose[:2, 2] = f0 - spacing * offset - zoom * (linear @ middle)
            peaks.append((float(score.reshape(-1)[best]), pose))
    peaks.sort(key=lambda pair: -pair[0])
    chosen: list[Tensor] = []
    for score, pose in peaks:
        if len(chosen) >= 2 and score < CLEAR * peaks[0][0]:
            break
        if all(_differs(pose, other, moving.grid, fixed.grid) for other in chosen):
            chosen.append(pose)
        if len(chosen) == CANDIDATES:
            break
    return chosen
