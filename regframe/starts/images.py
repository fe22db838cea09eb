"""The pose of one image on another, or of two volumes, without landmarks: a search over turn, mirror, size and shift.

A pose is held as its pullback ``[D, D+1]``: it takes a position of the fixed frame to the moving frame. "Nats of likeness" are
``-n/2 Σ log(1 - ρ²)`` over n shared pixels, ρ the correlations of intensities and of edges. Lengths in pixels refer to images in
which a square or cube as large as the tissue (`Views.extent`) has the stated number of pixels along its side. Numbers that
differ between planes and volumes are stated by the number of axes.

Sources: Padfield 2012 (masked normalised cross-correlation by FFT); Golub and Pereyra 1973 (variable projection); Alexa 2022
(turns of space spread evenly along a spiral, "super-Fibonacci").

Where a constant names no source, neither a paper nor a calibration is recorded for it; ``benchmarks/ACCURACY.md`` (any pose,
crops) shows what they achieve together.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import Config
from ..data import Image
from ..fit.frames import KINDS, Frame, Increment, affine_kind
from ..fit.halvings import Halvings
from ..fit.threads import threads_for
from ..fit.velocity import smooth_size
from ..maps.homogeneous import compose, inverse
from . import priors
from .evidence import (
    AT_ONCE,
    FINE_SIZE,
    Match,
    compare,
    lattice,
    likeness,
    of_quaternions,
    overlap,
    sample,
    seen,
    uniform_quaternions,
)
from .given import check_landmarks, given
from .landmarks import Landmarks
from .pose import APART, EQUAL, Pose, nearest_of_kind
from .scale import Scale
from .views import View, Views
from .weighing import Weights

SCAN_SIZE = {2: 20, 3: 10}
"""Pixels along the side of a square or cube as large as the tissue, in the images on which all poses are scanned."""
TURNS = {2: 16, 3: 400}
"""Number of turns tried, each with and without a mirror. Around the full circle they are 22.5 degrees apart; those of space are
about as far from their nearest neighbours. The refinement makes good the half of that by which the nearest one is off."""
REACH = 0.3
"""Largest shift tried of volumes at each turn, from the middle of one's tissue to that of the other's, over the extent of tissue;
planes are tried at all."""
SIZES = {2: 7, 3: 1}
"""Number of sizes tried where the size is unknown, each √2 times the one before, centred on the size at which both sides have
tissue of equal area or volume; one for volumes, beside that of equal voxels, because each takes seconds."""
SCANNED = 28
"""Number of poses of the scan, the best ones, that are refined as similarities."""
COARSE_SIZE = {2: 28, 3: 14}
"""Pixels along the side of a square or cube as large as the tissue, in the images on which poses are refined as similarities."""
FINALISTS = 6
"""Number of distinct poses that are refined as affine maps and compared with each other."""
STEPS = 8
"""Gauss-Newton steps of one refinement."""
UNMIRRORED = 0.3
"""Share by which an unmirrored pose may score less than a mirrored one and still win. Slides are turned every day and flipped
rarely, and the two halves of a brain resemble each other more than two brains do."""
DOUBTED = {2: 100.0, 3: 50.0}
"""Nats of evidence, in the pair's own unit, under which nothing counts as found in a plane and both sides are scanned again, by
their fine structure, that many times as close and at as many times more turns and sizes; three times as close at the stated size
alone, because it takes long. Where outlines alone speak for the best pose it has none (`weighing.LEADS`). Half a step between two
turns then moves the border of the tissue by 2 pixels, and neighbourhoods of `LOCAL` pixels that lie so far apart are still alike.
Of 30 made pairs of `benchmarks.proving` (crop, mixture, block; seeds 300 to 309) two scans of coarse structure lost 7, each with
under 21 nats; with those of fine structure 1 is lost. By sizes √2 apart `mixture` 4, 1020 and 1040 were lost."""
HALVES = 1
"""Number of candidates, the best ones, whose counterparts are tried: what they become where a side that resembles its own mirror
image is replaced by it. Of 11 made pairs `mixture` (seeds from 30000 on, none of which set a constant) one brain with a hole
was confirmed in the mirrored pose; it is right now. This takes 0.1 to 0.4 s, 2 to 6 % of a registration."""
MOST = 3.0
"""Largest movement of any pixel in one Gauss-Newton step, in pixels of the image: the linearisation does not reach farther."""
CHANCE = 60.0
"""Nats of likeness that unrelated images reach by chance: the margin of a pose is taken against this value at least, also where
there is no second pose."""


def begin(fixed: Halvings, moving: Halvings, init: Any, config: Config) -> tuple[Tensor, Pose | None]:
    """The start ``A`` ``[D+1, D+1]`` of two images, moving → fixed in physical units, and the outcome of a search, if there
    was one.

    Args:
        fixed: the fixed side.
        moving: the moving side.
        init: the user's argument, see `given.given`.
        config: all settings.
    """
    if isinstance(init, Landmarks):
        check_landmarks(init, fixed.image, moving.image)
    matrix = given(fixed.grid, moving.grid, init, config)
    if matrix is not None:
        return matrix, None
    found = search(fixed, moving, config)
    if config.init == "runner-up":
        if found.runner_up is None:
            raise ValueError(
                "wanted a second placement to begin with, got one alone from the search; leave init='runner-up' out"
            )
        return found.runner_up, None
    factor = Scale.of(fixed.grid, moving.grid).factor
    return nearest_of_kind(found.matrix, config.transform, factor, moving.grid.center), found


def search(fixed: Image | Halvings, moving: Image | Halvings, config: Config) -> Pose:
    """Find the pose of ``moving`` on ``fixed``: any turn, mirror and shift, and any size where the units do not state it.

    Both are compared by their intensity, of either sign, and by their edges, whatever the metric of the fit. All turns, mirrors
    and shifts (of planes all sizes, too) are tried at a very low resolution; the best poses are refined as similarities, the best
    of these as affine maps.

    Args:
        fixed: the fixed side.
        moving: the moving side, with as many axes. Its size is unknown where either side is in pixels, unless a rigid map is
            asked for.
        config: ``transform`` says which model is asked for.
    """
    fixed, moving = Halvings.of(fixed), Halvings.of(moving)
    ndim = fixed.grid.ndim
    with threads_for(TURNS[2] * SCAN_SIZE[ndim] ** ndim * 16):
        return _search(fixed, moving, config)


def _search(fixed: Halvings, moving: Halvings, config: Config) -> Pose:
    f, m = Views(fixed), Views(moving)
    scale = Scale.of(fixed.grid, moving.grid)
    prior = prior_of(fixed, moving)
    # poses are pullbacks of the normalised frames, fixed → moving, [N, D, D+1]
    to_fixed, to_moving = Frame.of(fixed.grid).matrix(), Frame.of(moving.grid).matrix()
    lying = compose(to_moving, _scaled(scale.factor, f.ndim), inverse(to_fixed))
    counted = any(side.image.counted is not None for side in (fixed, moving))
    pair = _Pair(f, m, prior, lying, config.transform, counted)
    unit = pair.weights.unit

    def paid(found: _Candidates) -> Tensor:
        return unit * (prior.nats(found.poses[:, :, :-1], found.overlap) + found.richness)

    def scored(found: _Candidates) -> Tensor:
        return found.evidence - paid(found)

    def doubted(found: _Candidates, enough: float) -> bool:
        best = int(scored(found).argmax())
        return float((found.both - paid(found))[best]) < enough * unit

    def outlined(found: _Candidates) -> bool:
        best = int(scored(found).argmax())
        return float(found.both[best]) == 0 and float(scored(found)[best]) >= max(DOUBTED.values()) * unit

    found = functools.reduce(_Candidates.and_those, _candidates(pair), _unmoved(pair))
    for closer, enough in (DOUBTED if f.ndim == 2 else {}).items():
        more = _candidates(pair, closer)
        while doubted(found, enough) and (those := next(more, None)) is not None:
            found = found.and_those(those)
            if outlined(found):  # so are smooth pictures that are right, and all sizes take seconds
                break
    scores = scored(found)
    looked_for = len(scores)
    if f.ndim == 2:
        leading = found.poses[_distinct(found.poses, scores, f, m, HALVES)]
        found = found.and_those(_counterparts(pair, leading))
        scores = scored(found)
        best = int(scores.argmax())
        if best >= looked_for:  # refined from a better pose than the leading one was, which is owed the same
            found = found.and_those(_counterparts(pair, found.poses[[best]]))
            scores = scored(found)
    favoured = torch.where(scores > 0, scores * found.favour, scores / found.favour)
    chosen = _distinct(found.poses, favoured, f, m, FINALISTS)
    best = chosen[0]

    def physical(pose: Tensor) -> Tensor:
        square = torch.eye(f.ndim + 1, dtype=torch.float64)
        square[:-1] = pose
        return nearest_of_kind(
            compose(inverse(to_fixed), inverse(square), to_moving), config.transform, scale.factor, moving.grid.center
        )

    # that the two halves of an organ are alike is no doubt of the pose, unless the scan has met both
    rivals = [i for i in chosen[1:] if i < looked_for or best >= looked_for]
    score, others = float(scores[best]), scores[rivals]
    second = float(others.max()) if len(others) else 0.0
    margin = max(0.0, 1 - max(second, CHANCE) / max(score, 1e-9))
    matrix = physical(found.poses[best])
    image = _mirror_image(found, best, chosen[1:]) if f.ndim == 2 else None
    if image is not None:
        return Pose(matrix, score, margin, physical(found.poses[image]), float(scores[image]), MIRRORED, True)
    decided = _decided(found, best, rivals)
    if not len(others):
        return Pose(matrix, score, margin, decided=decided)
    runner_up = physical(found.poses[rivals[int(others.argmax())]])
    return Pose(matrix, score, margin, runner_up, second, decided)


def prior_of(fixed: Halvings, moving: Halvings) -> priors.Prior:
    """What the units of two sides say of poses, in pullbacks of their normalised frames; pixels are taken one for one."""
    scale = Scale.of(fixed.grid, moving.grid)
    size = None if scale.ratio is None else scale.ratio * moving.grid.pixel / fixed.grid.pixel
    return priors.Prior(size, scale.physical)


RESAMPLED = 0.2
"""Relative difference of evidence that a fraction of a pixel makes by the look that sees more, where the other look sees poses
as equal: 0.13 for a made picture of two mirrored halves, brought onto itself either way."""


@dataclass(frozen=True)
class _Candidates:
    """Refined poses of all models.

    Args:
        poses: pullbacks ``[N, D, D+1]``.
        evidence: raw, by that look at the pair which sees more (`Weights`) ``[N]``.
        both: raw, by both looks ``[N]``.
        overlap: share of the smaller side's tissue that both show ``[N]``.
        richness: nats that the model of each pays ``[N]``.
        favour: what scores are multiplied by where poses are compared: plain ones, and those without a mirror ``[N]``.
    """

    poses: Tensor
    evidence: Tensor
    both: Tensor
    overlap: Tensor
    richness: Tensor
    favour: Tensor

    def and_those(self, other: _Candidates) -> _Candidates:
        """Both, one after the other."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return _Candidates(*(torch.cat(pair) for pair in pairs))


@dataclass(frozen=True)
class _Pair:
    """Two sides between which poses are looked for.

    Args:
        fixed: stays where it is.
        moving: is brought onto it.
        prior: of poses.
        lying: the pullback ``[D+1, D+1]`` under which both stay as they lie.
        transform: the model that is asked for.
        counted: whether a side is a density of counted things.
    """

    fixed: Views
    moving: Views
    prior: priors.Prior
    lying: Tensor
    transform: str
    counted: bool = False

    @functools.cached_property
    def weights(self) -> Weights:
        """What poses are weighed by."""
        zoom = self.prior.size or self.fixed.extent / self.moving.extent
        return Weights(self.fixed, self.moving, zoom, self.fixed.ndim == 2 and not self.counted)

    @property
    def equal(self) -> float:
        """The stated size, or 1."""
        return self.prior.size or 1.0

    @property
    def known(self) -> bool:
        """Whether the size is not looked for."""
        return self.transform == "rigid" or self.prior.physical

    def plain(self) -> list[Tensor]:
        """Pullbacks ``[D+1, D+1]``: as both lie, and middle on middle."""
        ndim, alike = self.fixed.ndim, self.fixed.extent / self.moving.extent
        out = [_scaled(zoom, ndim) for zoom in ([self.equal] if self.known else [self.equal, alike])]
        if self.prior.size is not None and not torch.equal(self.lying, out[0]):
            out.insert(0, self.lying)
        return out

    def scans(self, closer: int = 1) -> list[tuple[list[float], str]]:
        """Sizes to try and as what their poses are refined first: rigid at the stated size, similarities of any.

        Sizes, too, lie ``closer`` than once.
        """
        out = [([self.equal], "rigid")] if self.prior.size is not None or self.transform == "rigid" else []
        if self.transform != "rigid":
            alike = self.fixed.extent / self.moving.extent
            sizes = [self.equal] if self.known else _ladder(alike, self.equal, SIZES[self.fixed.ndim], closer)
            out.append((sizes, "similarity"))
        return out

    def weighed(self, poses: Tensor, fit: Match, model: str, favour: Tensor) -> _Candidates:
        """Poses ``[N, D, D+1]`` of a model as candidates, given how they match at `FINE_SIZE`."""
        pays = torch.full((len(poses),), priors.richness(model, self.fixed.ndim), dtype=torch.float32)
        shared = overlap(self.fixed, self.moving, poses, fit.count, seen(self.fixed, FINE_SIZE)[-1])
        return _Candidates(poses, *self.weights(poses, fit), shared, pays, favour)


def _unmoved(pair: _Pair) -> _Candidates:
    """The pair as it lies, and middle on middle."""
    poses = torch.stack(pair.plain())[:, :-1].to(torch.float32)
    fit = compare(*seen(pair.fixed, FINE_SIZE), pair.moving, poses)
    favour = torch.full((len(poses),), (1 + EQUAL) / (1 - UNMIRRORED), dtype=torch.float32)
    return pair.weighed(poses, fit, "as they lie", favour)


def _candidates(pair: _Pair, closer: int = 1) -> Iterator[_Candidates]:
    """Poses from nested models: rigid at the stated size, then of any size, each refined as affine ones, too.

    What a simpler model finds is refined as a richer one, and stays as it was beside that. ``closer`` than once both planes are
    scanned and refined by their fine structure alone, that many times as close and at as many times more turns and sizes
    (`DOUBTED`).
    """
    f, m, fine = pair.fixed, pair.moving, closer > 1
    sizes = {f.ndim: closer * SCAN_SIZE[f.ndim]} if fine else COARSE_SIZE
    by, onto = pair.weights.fine if fine else (f, m)
    scans = pair.scans(closer)
    if closer == max(DOUBTED):
        scans = [scan for scan in scans if scan[0] == [pair.equal]][:1]
    scanned: dict[float, tuple[Tensor, Tensor]] = {}
    kinds = KINDS[: 1 + KINDS.index(affine_kind(pair.transform))]
    for zooms, kind in scans:
        for zoom in zooms:
            if zoom not in scanned:
                scanned[zoom] = _scan(by, onto, zoom, closer)
        scores, poses = (torch.cat(part) for part in zip(*(scanned[zoom] for zoom in zooms), strict=True))
        poses = poses[scores.argsort(descending=True, stable=True)[:SCANNED]]
        first = [p for p in pair.plain() if kind != "rigid" or abs(_zoom(p) / pair.equal - 1) < 1e-6]
        poses = torch.cat([torch.stack(first)[:, :-1].to(torch.float32), poses])
        favour = torch.ones(len(poses), dtype=torch.float32)
        favour[: len(first)] += EQUAL
        favour[torch.linalg.det(poses[:, :, :-1]) > 0] /= 1 - UNMIRRORED
        poses, fit = refine(by, onto, poses, sizes, kind)
        chosen = _distinct(poses, fit.score * favour, f, m, FINALISTS)
        made = []
        for model in kinds[kinds.index(kind) :]:
            refined, fit = refine(by, onto, poses[chosen], FINE_SIZE, model)
            fit = compare(*seen(f, FINE_SIZE), m, refined) if fine else fit
            made.append(pair.weighed(refined, fit, model, favour[chosen]))
        yield functools.reduce(_Candidates.and_those, made)


def _counterparts(pair: _Pair, poses: Tensor) -> _Candidates:
    """What poses ``[N, D, D+1]`` become where either side is replaced by its own mirror image, brought onto itself as well as can
    be; each refined.

    The two halves of an organ are alike, so that a pose and its counterpart fit nearly as well, and a scan that has seen one as
    the best of its turns may have missed the other, by a hole or a tear.
    """
    f, m = pair.fixed, pair.moving
    made = []
    for side in (f, m):
        scores, own = _scan(side, side, 1.0)
        mirrored = torch.linalg.det(own[:, :, :-1]) < 0
        one = own[mirrored][int(scores[mirrored].argmax())]
        made += [_after(pose, one) if side is f else _after(one, pose) for pose in poses]
    kinds, favour = KINDS[: 1 + KINDS.index(affine_kind(pair.transform))], torch.ones(len(made))
    first = "rigid" if (pair.known and pair.prior.size is not None) or pair.transform == "rigid" else "similarity"
    coarse, _ = refine(f, m, torch.stack(made), COARSE_SIZE, first)
    favour[torch.linalg.det(coarse[:, :, :-1]) > 0] /= 1 - UNMIRRORED
    out = []
    for model in kinds[kinds.index(first) :]:
        refined, fit = refine(f, m, coarse, FINE_SIZE, model)
        out.append(pair.weighed(refined, fit, model, favour))
    return functools.reduce(_Candidates.and_those, out)


def _after(second: Tensor, first: Tensor) -> Tensor:
    """The pullback ``[D, D+1]`` that follows ``first`` and then ``second``."""
    return torch.cat([second[:, :-1] @ first[:, :-1], second[:, :-1] @ first[:, -1:] + second[:, -1:]], dim=1)


def _distinct(poses: Tensor, scores: Tensor, fixed: Views, moving: Views, most: int) -> list[int]:
    """The best of ``[N, D, D+1]`` by scores ``[N]``, none of them near a better one: at most so many."""
    chosen: list[int] = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        if len(chosen) < most and all(_apart(poses[i], poses[j], fixed, moving) for j in chosen):
            chosen.append(i)
    return chosen


MIRRORED = "the mirror image fits about as well: the one that is not mirrored, as the files lie, was taken"
"""What is said where that was decided by what is likely and not by the data."""


def _mirror_image(found: _Candidates, best: int, others: list[int]) -> int | None:
    """The mirrored one of ``others`` that would have won if mirrored slides were as frequent as others; None where none would, or
    where the ``best`` pose is mirrored itself.

    Two halves of an organ differ by less than two animals do, so that what lies within `UNMIRRORED` of the best tells little.
    """
    hands = torch.linalg.det(found.poses[:, :, :-1])
    mirrored = [i for i in others if hands[i] < 0]
    if hands[best] < 0 or not mirrored:
        return None
    rival = mirrored[int(found.evidence[mirrored].argmax())]
    return rival if float(found.evidence[rival]) >= (1 - UNMIRRORED) * float(found.evidence[best]) > 0 else None


def _decided(found: _Candidates, best: int, rivals: list[int]) -> str:
    """What was decided by priors and not by the evidence, in words, or nothing."""
    if not rivals:
        return ""
    rival = rivals[int(found.evidence[rivals].argmax())]
    keener, duller = (float(look[rival] / look[best]) for look in (found.evidence, found.both))
    if not (keener >= 1 - EQUAL or (duller >= 1 - EQUAL and keener >= 1 - RESAMPLED)):  # 0 / 0 is no number
        return ""
    hands = [float(torch.linalg.det(found.poses[i, :, :-1])) for i in (best, rival)]
    if hands[0] > 0 > hands[1]:
        return MIRRORED
    sizes = [float(torch.linalg.svdvals(found.poses[i, :, :-1]).log().mean()) for i in (best, rival)]
    if abs(sizes[0] - sizes[1]) > priors.SIZE * 2:
        return (
            f"a placement {math.exp(sizes[0] - sizes[1]):.2g} times as large fits as well: the likelier size was taken"
        )
    return "another placement fits as well: the likelier one, less turned, sheared or shifted, was taken"


def _zoom(pullback: Tensor) -> float:
    """How much larger a pullback makes the moving side."""
    size: float = float(torch.linalg.det(pullback[:-1, :-1]).abs()) ** (-1 / (len(pullback) - 1))
    return size


def _scaled(zoom: float, ndim: int) -> Tensor:
    """The pullback ``[D+1, D+1]`` that enlarges the moving side ``zoom``-fold."""
    return torch.diag(torch.tensor([*[1 / zoom] * ndim, 1.0], dtype=torch.float64))


def _ladder(middle: float, equal: float, sizes: int, closer: int) -> list[float]:
    """Sizes to try, in fixed pixels per moving pixel, ``sizes`` of them or so many times ``closer`` ones over the same range.

    They are spread about ``middle``, at which both sides have tissue of equal area; ``equal`` is added where it is not near one.
    """
    half = closer * (sizes // 2)
    zooms = [middle * 2 ** (k / (2 * closer)) for k in range(-half, half + 1)]
    if all(abs(math.log2(equal / zoom)) > 1 / (8 * closer) for zoom in zooms):
        zooms.append(equal)
    return zooms


def _apart(a: Tensor, b: Tensor, fixed: Views, moving: Views) -> bool:
    """Whether two pullbacks ``[D, D+1]`` map the corners of the smaller side to different places (`APART`), in the mean."""
    ndim = len(a)
    if fixed.extent > moving.extent * float(torch.linalg.det(a[:, :-1]).abs()) ** (-1 / ndim):
        a, b = _inverted(a), _inverted(b)
        fixed, moving = moving, fixed
    half = fixed.extent / 2
    corners = torch.tensor([[*at, 1.0] for at in itertools.product((-half, half), repeat=ndim)], dtype=torch.float32)
    size = float(torch.linalg.det(a[:, :-1]).abs()) ** (1 / ndim)
    return bool(float((corners @ (a - b).T).norm(dim=1).mean()) > APART * size * 2 * half * math.sqrt(ndim))


def _inverted(pose: Tensor) -> Tensor:
    linear = torch.linalg.inv(pose[:, :-1])
    return torch.cat([linear, -linear @ pose[:, -1:]], dim=1)


def turns_of(ndim: int, closer: int = 1) -> Tensor:
    """`TURNS` turns ``[N, D, D]``, spread evenly."""
    count = closer * TURNS[ndim]
    if ndim == 2:
        angle = 2 * math.pi * torch.arange(count, dtype=torch.float32) / count
        cos, sin = angle.cos(), angle.sin()
        return torch.stack([cos, sin, -sin, cos], dim=1).reshape(-1, 2, 2)
    step = (torch.arange(count, dtype=torch.float64) + 0.5) / count  # Alexa 2022: φ = √2, ψ⁴ = ψ + 4
    first, second = count * step / math.sqrt(2), count * step / 1.533751168755204288118041
    return of_quaternions(uniform_quaternions(step, first % 1, second % 1)).to(torch.float32)


def _scan(fixed: Views, moving: Views, zoom: float, closer: int = 1) -> tuple[Tensor, Tensor]:
    """Scores ``[2 TURNS]`` and pullbacks ``[2 TURNS, D, D+1]`` of the best shift at each turn, without and with a mirror.

    The score of a shift is ``-n/2 Σ log(1 - ρ²)`` over n shared pixels, with ρ the weighted normalised cross-correlations.
    """
    ndim, size = fixed.ndim, SCAN_SIZE[fixed.ndim] * closer
    spacing = math.sqrt(fixed.extent * zoom * moving.extent) / size
    f, m = fixed.at(spacing), moving.at(spacing / zoom)
    spacing = max(spacing, max(*f.grid.extent, *(zoom * e for e in m.grid.extent)) / (4 * size))
    f_shape = [max(4, round(e / spacing)) for e in f.grid.extent]
    f_at = lattice(tuple(f_shape), spacing)
    image, mask = (part[0] for part in sample(f, f_at[None]))
    turns = turns_of(ndim, closer)  # fixed frame → moving frame
    flip = turns.new_tensor([*[1.0] * (ndim - 1), -1.0])
    turns = torch.cat([turns, turns * flip[:, None]]) / zoom
    reach = None if ndim == 2 else round(REACH * size)
    if reach is None:
        side = math.ceil(
            math.hypot(*(e * zoom / spacing for e in m.grid.extent))
        )  # pixels: the diagonal fits at any turn
        m_at, shape = lattice((side,) * ndim, spacing), [smooth_size(n + side - 1) for n in f_shape]
        middle = torch.zeros(ndim, dtype=torch.float32)
    else:
        shape, middle = [smooth_size(n + 2 * reach) for n in f_shape], middle_of_tissue(m)
        m_at = lattice(tuple(shape), spacing)
        m_at = m_at - m_at[(0,) * ndim] + f_at[(0,) * ndim] - middle_of_tissue(f) - reach * spacing
    sums = torch.cat([torch.ones_like(mask)[None], image, image * image]) * mask
    sums = torch.fft.rfftn(sums, s=shape, dim=list(range(1, ndim + 1))).conj()  # [5, ...]
    few = 64 // closer**2  # turns that are held at once
    where = _Lags(m, m_at, middle, shape, reach)
    found = [_best_lag(sums, float(mask.sum()), where, part) for part in turns.chunk(-(-len(turns) // few))]
    best, place = (torch.cat(part) for part in zip(*found, strict=True))
    # at lag r the fixed pixel i lies on the moving pixel i + r; lags wrap
    lag = torch.from_numpy(np.stack(np.unravel_index(place.numpy(), shape), axis=1))  # torch's takes 0.3 s to load
    whole, last = torch.tensor(shape), torch.tensor(f_shape)
    lag = torch.where(lag > whole - last, lag - whole, lag) if reach is None else lag
    first = m_at[(0,) * ndim]
    shift = spacing * lag.to(torch.float32) + first - f_at[(0,) * ndim]  # of a fixed position, before the turn
    moved = torch.einsum("ndc,nc->nd", turns, shift) + middle
    return best, torch.cat([turns, moved[:, :, None]], dim=2)


def middle_of_tissue(view: View) -> Tensor:
    """The middle ``[D]`` of a side's tissue: of its edges, above their least, where it is trusted."""
    weight = view.weight * view.outlines
    at = view.grid.coords().to(torch.float32)
    return (at * weight[..., None]).flatten(0, -2).sum(dim=0) / weight.sum().clamp(min=1e-6)


@dataclass(frozen=True)
class _Lags:
    """A moving side and the shifts at which it is tried.

    Args:
        moving: the side.
        at: positions ``[*S, D]`` of its lattice before the turn, about ``middle``.
        middle: about which it is turned ``[D]``.
        shape: of the transforms.
        reach: lags up to twice this are tried along each axis; None for all.
    """

    moving: View
    at: Tensor
    middle: Tensor
    shape: list[int]
    reach: int | None


def _best_lag(a: Tensor, area: float, lags: _Lags, turns: Tensor) -> tuple[Tensor, Tensor]:
    """The best score ``[N]`` of each turn ``[N, D, D]`` and its lag, an index of the flattened lags.

    Args:
        a: conjugate spectra ``[5, …]`` of the fixed side's weight, image and its square.
        area: sum of the fixed side's weights.
        lags: what is turned and where it is tried.
        turns: fixed frame → moving frame.
    """
    ndim, shape, reach = turns.shape[-1], lags.shape, lags.reach
    dims = list(range(2, ndim + 2))
    at = torch.einsum("...c,ndc->n...d", lags.at, turns) + lags.middle
    turned, covered = sample(lags.moving, at)  # [N, 2, ...], [N, ...]
    b = torch.cat([torch.ones_like(covered)[:, None], turned, turned * turned], dim=1) * covered[:, None]
    b = torch.fft.rfftn(b, s=shape, dim=dims)  # [N, 5, ...]
    sums = torch.fft.irfftn(
        a[[0, 1, 2, 3, 4, 0, 0, 0, 0, 1, 2]] * b[:, [0, 0, 0, 0, 0, 1, 2, 3, 4, 1, 2]], s=shape, dim=dims
    )
    n = sums[:, :1].clamp(min=1e-3)
    s_f, s_ff, s_m, s_mm, s_fm = sums[:, 1:].div_(n).unflatten(1, (5, 2)).unbind(dim=1)  # [N, 2, ...] each
    square, _, _ = likeness(s_fm.sub_(s_f * s_m), s_ff.sub_(s_f.mul_(s_f)), s_mm.sub_(s_m.mul_(s_m)))
    score = -0.5 * n[:, 0] * square.neg_().log1p_().sum(dim=1)
    enough = 0.25 * covered.flatten(1).sum(dim=1).clamp(max=area)
    score = torch.where(n[:, 0] > enough.reshape(-1, *(1,) * ndim), score, 0.0)
    if reach is not None:
        for d in range(1, ndim + 1):
            score.narrow(d, 2 * reach + 1, score.shape[d] - 2 * reach - 1).zero_()
    best, place = score.flatten(1).max(dim=1)
    return best, place


def refine(fixed: Views, moving: Views, poses: Tensor, sizes: dict[int, int], kind: str) -> tuple[Tensor, Match]:
    """Refine N pullbacks ``[N, D, D+1]`` by `STEPS` damped Gauss-Newton steps each; returns them and how they match.

    Minimises the sum of the logarithms of the two residual variances (intensity, edges). The linear regression between the sides
    is eliminated: derivatives are projected off the direction in which it changes (variable projection).
    """
    on = seen(fixed, sizes)
    few = max(1, AT_ONCE // (2 * fixed.ndim * on[0].numel()))  # as many as their derivatives take memory
    parts = [_refine_few(on, moving, part, kind) for part in poses.chunk(-(-len(poses) // few))]
    if len(parts) == 1:
        return parts[0]
    matches = zip(*(vars(match).values() for _, match in parts), strict=True)
    return torch.cat([part for part, _ in parts]), Match(*(torch.cat(part) for part in matches))


def _refine_few(
    on: tuple[Tensor, Tensor, Tensor, float], moving: Views, poses: Tensor, kind: str
) -> tuple[Tensor, Match]:
    """`refine` of as many poses as can be refined at once, on a lattice as `evidence.seen` gives it."""
    image, mask, at, spacing = on
    ndim = mask.ndim
    radius = max(mask.shape) / 2
    still = torch.zeros_like(at)
    moves = [still.index_fill(ndim, torch.tensor(d), 1.0) for d in range(ndim)]  # shifts
    ways = generators(ndim)[: Increment(kind, ndim, radius).size - ndim]
    moves += [torch.einsum("dc,...c->...d", way, at / (spacing * radius)) for way in ways]
    fields = torch.stack(moves).movedim(-1, 1)  # [K, D, *S], pixels
    now = compare(image, mask, at, spacing, moving, poses)
    damping = torch.full((len(poses),), 0.01, dtype=torch.float32)
    dims = tuple(range(3, 3 + ndim))
    for _ in range(STEPS):
        slope = image.new_zeros((len(poses), ndim, *image.shape))  # [N, D derivatives, 2, *S]
        for d, n in enumerate(mask.shape):
            change = now.moving.narrow(2 + d, 2, n - 2) - now.moving.narrow(2 + d, 0, n - 2)
            slope[:, d].narrow(2 + d, 1, n - 2).copy_(change / 2)
        change = torch.einsum("ndp...,kd...->nkp...", slope, fields)
        # [N, K, 2, *S] each: worked on in place, since fresh memory for every step takes as long as the sums
        w, moved = now.weight[:, None, None], now.moving[:, None]
        part = change * w
        change.sub_(part.sum(dim=dims, keepdim=True))
        spread, gain = (of.reshape(len(poses), 1, 2, *(1,) * ndim) for of in (now.spread, now.slope))
        along = torch.mul(change, moved, out=part).mul_(w).sum(dim=dims, keepdim=True) / spread
        change.sub_(torch.mul(along, moved, out=part)).mul_(gain)
        rest = now.fixed - gain[:, 0] * now.moving
        weighed = torch.mul(change, w, out=part).div_(now.rest.reshape(gain.shape)).flatten(2)
        hessian, descent = weighed @ change.flatten(2).mT, (weighed @ rest.flatten(1)[:, :, None])[:, :, 0]
        diagonal = hessian.diagonal(dim1=1, dim2=2)
        hessian = hessian + torch.diag_embed(damping[:, None] * diagonal + 1e-3 * diagonal.mean(1, keepdim=True) + 1e-9)
        step = torch.linalg.solve(hessian, descent)
        step = step / (step.abs().amax(dim=1, keepdim=True) / MOST).clamp(min=1)
        trial = _stepped(poses, step, spacing, radius, kind)
        now, wins = now.better(compare(image, mask, at, spacing, moving, trial))
        poses = torch.where(wins[:, None, None], trial, poses)
        damping = torch.where(wins, damping * 0.3, damping * 10)
    return poses, now


def generators(ndim: int) -> Tensor:
    """Small linear changes ``[D², D, D]``: turns, the size, stretches; in this order, so that the first ones are a model's."""
    pairs = list(itertools.combinations(range(ndim), 2))
    unit = torch.eye(ndim, dtype=torch.float32)
    turns = [torch.outer(unit[j], unit[i]) - torch.outer(unit[i], unit[j]) for i, j in pairs]
    stretches = [torch.diag(unit[d] - unit[d + 1]) for d in range(ndim - 1)]
    shears = [torch.outer(unit[j], unit[i]) + torch.outer(unit[i], unit[j]) for i, j in pairs]
    return torch.stack([*turns, unit, *stretches, *shears])


def _stepped(poses: Tensor, step: Tensor, spacing: float, radius: float, kind: str) -> Tensor:
    """Pullbacks ``[N, D, D+1]`` after an increment of the fixed side ``[N, K]``, in lattice pixels at ``radius`` pixels."""
    ndim = poses.shape[1]
    shift, rest = step[:, :ndim] * spacing, step[:, ndim:] / radius
    ways = generators(ndim)[: rest.shape[1]]
    linear = torch.eye(ndim, dtype=torch.float32) + torch.einsum("nk,kdc->ndc", rest, ways)
    if kind != "affine":  # a turn, times a size
        left, values, right = torch.linalg.svd(linear)
        linear = left @ right
        if kind == "similarity":
            linear = linear * values.log().mean(dim=1).exp()[:, None, None]
    old = poses[:, :, :-1]
    return torch.cat([old @ linear, old @ shift[:, :, None] + poses[:, :, -1:]], dim=2)
