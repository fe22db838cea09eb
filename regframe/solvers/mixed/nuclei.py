"""Refines the fit of points drawn as a density by finding the single nucleus of each point, where the image resolves nuclei.

A drawing of round, equal spots explains an image only in part: nuclei are neither round nor equal, and the misfit of one
nucleus is correlated over all its pixels. The fit of the drawing therefore counts only a few observations per point
(`drawing.PER_POINT`). Where the image resolves single nuclei, that fit is the start of a second one: around each point the
middle of its own nucleus is located, and a smooth field is fitted to the displacements, by the field's own likelihood.

"In the frame" below means in the normalised frame of a side, whose unit is its pixel (`fit.frames.Frame`).

Sources: Myronenko & Song 2010 (a mixture with a class for what has no partner; here the pixels are shared among the points);
Lange, Little & Taylor 1989 (Student's t by reweighting); Rasmussen & Williams 2006, chapters 2 and 5 (Gaussian processes with a
trend, their marginal likelihood, leave-one-out residuals).

Where a constant names no source, neither a paper nor a calibration is recorded for it; ``benchmarks/bench_mixed.py`` measures
what they achieve together.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from ...config import Config
from ...data import Grid, Image, PointSet
from ...fit.clouds import carried, distinct, fit_pairs
from ...fit.frames import Frame
from ...fit.lbfgs import Descent
from ...fit.likeness import fit_contrast
from ...fit.precondition import Preconditioner, descend
from ...fit.prior import velocity_space
from ...fit.pyramid import Fit
from ..points.metric import MetricEnergy
from .drawing import DRAWN, room_of

Floats = NDArray[np.float64]
MOST_POINTS = 3000
"""Points up to which nuclei are located one by one. The matrices of the field grow with the square of this number, and with
more points the fit of the drawing leaves little to gain."""
LEAST_POINTS = 12
"""Least number of nuclei that must be located for a field to be fitted."""


RESOLVED = (1.5, 0.45)
"""Bounds on the radius of a nucleus for nuclei to count as resolved: at least the first value, in pixels, and at most the
second value times the spacing of the points (`drawing.room_of`), so that neighbours do not merge."""
SPREAD = 0.58
"""Standard deviation per axis of a nucleus, over the radius at which its mean brightness has fallen to half. A uniform disc has
0.5 (half its radius); a blurred one is a little wider."""
SMOOTHED = 1 / 7
"""Standard deviation of the smoothing before nuclei are located, over the standard deviation of a nucleus: removes noise, keeps
shapes."""
REACH = 2.5
"""Distance from a nucleus, in its standard deviations, beyond which a pixel belongs to no nucleus rather than to this one."""
EDGE = 8.0
"""Steepness of the logistic function of brightness (over the nucleus' own) by which a pixel counts as nucleus; its middle is at
half the nucleus' brightness."""
SHARED = 0.2
"""Weight of the common shape of all nuclei in the estimated shape of each, as a fraction of the pixels of the median nucleus."""
FAINT = 0.25
"""Brightness, over that of the median nucleus, below which a point is taken to have no nucleus."""
PASSES = 3
"""Number of times that nuclei are located and the field is fitted; each pass starts from where the field puts the points."""
FREEDOM = 3.0
"""Degrees of freedom of Student's t for the distance between a located nucleus and the field: heavy tails, because overlapping
nuclei are sometimes located far off."""
LENGTH = (0.08, 2.0)
"""Smallest and largest length of the field's kernel, over the extent of the points."""
LEARNT = 400
"""Largest number of nuclei from which the field's length, strength and noise are estimated: a random subset bounds the time,
which grows with the third power."""
EXACT = 0.05
"""Standard deviation, in pixels of the fixed frame, with which the final map is made to follow the field."""
BELIEVED = 0.5
"""Leave-one-out residual of the median nucleus, over the radius of a nucleus, above which the field is discarded."""
CONTROLS = 1500
"""Largest number of grid positions, beside the points, at which the final map is made to follow the field."""
ROUNDS = 3
"""Number of descents that make the map follow the field; between them the number of Euler steps is adapted to the velocity."""
STEPS = 100
"""Steps of each of these descents at most."""


@dataclass(frozen=True)
class Nuclei:
    """The nuclei that were located in an image, one for each point.

    Args:
        middle: position of each nucleus ``[N, D]``, in the image's frame.
        trust: trust in each ``[N]``, 0 … 1: high where the nucleus is bright, not shared with another point, and whole on the
            canvas.
        shape: covariance of each nucleus ``[N, D, D]``, in the image's frame.
    """

    middle: Floats
    trust: Floats
    shape: Floats


@dataclass(frozen=True)
class Shown:
    """An image as arrays, in which nuclei are bright.

    Args:
        data: brightness ``[*S]``, smoothed, background subtracted.
        pixel: spacing of the pixels ``[D]``, in the frame.
        first: position of the first pixel ``[D]``, in the frame.
        sigma: standard deviation of a nucleus per axis, in the frame.
        radius: radius of a nucleus at half its brightness, in the frame.
    """

    data: Floats
    pixel: Floats
    first: Floats
    sigma: float
    radius: float

    def index(self, at: Floats) -> NDArray[np.intp]:
        """The index ``[N, D]`` of the pixel nearest to each position ``[N, D]``."""
        return np.rint((at - self.first) / self.pixel).astype(np.intp)

    def inside(self, at: Floats) -> NDArray[np.bool_]:
        """Whether each position ``[N, D]`` lies on the canvas, ``[N]``."""
        index = self.index(at)
        return np.asarray(((index >= 0) & (index < np.array(self.data.shape))).all(axis=1))

    def window(self, at: Floats, reach: float) -> tuple[NDArray[np.intp], NDArray[np.bool_], Floats]:
        """The pixels of a window around each position ``[N, D]``, K pixels per window.

        Returns their indices ``[N, K, D]``, clamped to the canvas; whether each lies on the canvas ``[N, K]``; and their
        positions in the frame ``[N, K, D]``.
        """
        half = [max(1, math.ceil(reach / p)) for p in self.pixel]
        offsets = np.stack(np.meshgrid(*[np.arange(-h, h + 1) for h in half], indexing="ij"), axis=-1)
        index = self.index(at)[:, None] + offsets.reshape(1, -1, at.shape[1])
        last = np.array(self.data.shape) - 1
        on = ((index >= 0) & (index <= last)).all(axis=2)
        return index.clip(0, last), on, index * self.pixel + self.first


def show(image: Image, drawing: Image, at: Floats, room: float) -> Shown | None:
    """The image with nuclei bright, or None where it does not resolve single ones.

    Args:
        image: any channels, either polarity.
        drawing: the points, drawn on the image's grid at their current positions ``[1, *S]``: from it follows whether nuclei
            are brighter or darker than their surroundings.
        at: current positions of the points in the image's frame ``[N, D]``.
        room: spacing of the points, in the image's frame.
    """
    from scipy.spatial import cKDTree

    grid = Frame.of(image.grid).grid(image.grid)
    weight = torch.ones(grid.shape) if image.weight is None else image.weight.to(torch.float32)
    data = image.data.to(torch.float32)
    spread = data.flatten(1).std(dim=1).reshape(-1, *(1,) * grid.ndim).clamp(min=1e-12)
    bright = fit_contrast(data / spread, drawing.data, weight)[0].numpy().astype(np.float64)
    pixel, first = np.array(grid.spacing), np.array(grid.origin)
    shown = Shown(bright, pixel, first, 0.0, 0.0)
    inside = shown.inside(at)
    if inside.sum() < LEAST_POINTS:
        return None
    index, on, where = shown.window(at[inside][:MOST_POINTS], room)
    distance = np.linalg.norm(where - at[inside][:MOST_POINTS, None], axis=2)
    ring = np.rint(distance[on] / pixel.min()).astype(np.intp)
    kept = ring <= room / pixel.min()
    values = bright[tuple(index[on].T)]
    total = np.bincount(ring[kept], values[kept])
    profile = total / np.bincount(ring[kept]).clip(min=1)
    half = (profile[:2].mean() + profile.min()) / 2
    below = np.flatnonzero(profile < half)
    if not len(below) or not profile[:2].mean() > profile.min() or below[0] == 0:
        return None
    k = int(below[0])
    radius = float(k - 1 + (profile[k - 1] - half) / max(profile[k - 1] - profile[k], 1e-30)) * float(pixel.min())
    if radius < RESOLVED[0] * pixel.max() or radius > RESOLVED[1] * room:
        return None
    sigma = SPREAD * radius
    bright = gaussian_filter(bright, SMOOTHED * sigma / pixel, mode="nearest")
    far = np.asarray(cKDTree(at).query(where_all(grid), distance_upper_bound=2 * radius)[0]).reshape(grid.shape)
    empty = ~np.isfinite(far) & (weight.numpy() > 0)
    background = np.median(bright[empty]) if empty.sum() > 100 else np.quantile(bright, 0.3)
    return Shown(bright - background, pixel, first, sigma, radius)


def where_all(grid: Grid) -> Floats:
    """Positions of all pixels of a grid, ``[n, D]``."""
    out: Floats = grid.coords().reshape(-1, grid.ndim).numpy()
    return out


def look(shown: Shown, at: Floats, shape: Floats | None, rounds: int) -> Nuclei:
    """Locate the nucleus around each position ``[N, D]``.

    A nucleus consists of the pixels above half its own brightness. Pixels are shared among the positions as points are among the
    components of a mixture: each component is an ellipse with its own brightness, and a pixel far from all belongs to none.

    Args:
        shown: the image.
        at: positions to begin at, in the image's frame.
        shape: covariances ``[N, D, D]`` to begin with; round nuclei of the mean size where None.
        rounds: number of E and M steps.
    """
    n, ndim = at.shape
    sigma = shown.sigma
    index, on, where = shown.window(at, 3 * sigma)
    rows = tuple(index.reshape(-1, ndim).T)
    data = shown.data[rows].reshape(n, -1) * on
    middle = at.copy()
    shape = np.tile(np.eye(ndim) * sigma**2, (n, 1, 1)) if shape is None else shape
    nobody = math.exp(-0.5 * REACH**2)
    dark = 1 / (1 + math.exp(EDGE / 2))
    for _ in range(rounds):
        off = where - middle[:, None]
        square = np.einsum("nki,nij,nkj->nk", off, np.linalg.inv(shape), off)
        near = np.exp(-0.5 * square) * on
        core = near**4
        bright = (core * data).sum(axis=1) / core.sum(axis=1).clip(min=1e-9)
        typical = max(float(np.median(bright)), 1e-12)
        own = near * bright.clip(min=FAINT * typical)[:, None]
        total = np.zeros(shown.data.shape)
        np.add.at(total, rows, own.reshape(-1))
        level = bright.clip(min=FAINT * typical)[:, None]
        share = own / (total[rows].reshape(n, -1) + nobody * level)
        solid = ((1 / (1 + np.exp(-EDGE * (data / level - 0.5).clip(-5, 5))) - dark).clip(min=0)) * on
        mass = share * solid
        amount = mass.sum(axis=1) + 1e-9
        middle = (mass[..., None] * where).sum(axis=1) / amount[:, None]
        off = where - middle[:, None]
        scatter = np.einsum("nk,nki,nkj->nij", mass, off, off)
        common = np.eye(ndim) * np.trace(scatter.sum(axis=0)) / amount.sum() / ndim
        prior = SHARED * float(np.median(amount))
        shape = (scatter + prior * common) / (amount + prior)[:, None, None]
    alone = amount / solid.sum(axis=1).clip(min=1e-9)
    whole = near.sum(axis=1) * float(np.prod(shown.pixel))
    whole = whole / ((2 * math.pi) ** (ndim / 2) * np.sqrt(np.linalg.det(shape)))
    trust = (alone**2 * whole.clip(0, 1) ** 2 * (amount / np.median(amount)).clip(0, 1)).clip(0, 1)
    trust = np.where((bright < FAINT * typical) | (alone < 0.2), 0.0, trust)
    return Nuclei(middle, trust, shape)


@dataclass(frozen=True)
class Field:
    """A smooth map learnt from noisy positions: an affine trend plus a Gaussian process.

    Args:
        at: positions at which it was learnt ``[N, D]``.
        trend: coefficients of the affine trend ``[D+1, D]`` (see `_rows`).
        pull: coefficients of the kernel functions ``[N, D]``.
        length: length of the kernel (Matérn 7/2), in the frame.
        strength: standard deviation per axis of the process, in the frame; 0 for a map that does not bend.
        noise: standard deviation per axis of a position of trust 1, in the frame.
        missed: leave-one-out residual of each position ``[N]``, in the frame.
    """

    at: Floats
    trend: Floats
    pull: Floats
    length: float
    strength: float
    noise: float
    missed: Floats

    def __call__(self, at: Floats) -> Floats:
        """The mapped positions of ``at`` ``[M, D]``."""
        from scipy.spatial.distance import cdist

        out: Floats = _rows(at, self.at) @ self.trend
        if self.strength > 0:
            out = out + self.strength**2 * _kernel(cdist(at, self.at) / self.length) @ self.pull
        return out


def _kernel(r: Floats) -> Floats:
    """The Matérn kernel of smoothness 7/2 in closed form, 1 at 0."""
    out: Floats = (1 + r + 0.4 * r**2 + r**3 / 15) * np.exp(-r)
    return out


def _rows(at: Floats, reference: Floats) -> Floats:
    """The regressors of the affine trend ``[N, D+1]``: a constant and the positions, centred and scaled by ``reference``."""
    scale = np.ptp(reference, axis=0).max()
    return np.concatenate([np.ones((len(at), 1)), (at - reference.mean(axis=0)) / scale], axis=1)


def learn(at: Floats, found: Floats, trust: Floats, noise: float, seed: int) -> Field:
    """Fit a `Field` that maps ``at`` to ``found``, both ``[N, D]``.

    Its length, strength and noise are those of the highest restricted likelihood; outliers are down-weighted by Student's t.

    Args:
        at: positions to map from.
        found: noisy positions to map to.
        trust: precision of each position ``[N]``, over that of the best ones.
        noise: least standard deviation of a position, in the frame.
        seed: of the random subset from which length, strength and noise are estimated.
    """
    from scipy.optimize import minimize as simplex
    from scipy.spatial.distance import cdist

    extent = float(np.prod(np.ptp(at, axis=0)) ** (1 / at.shape[1]))
    some = np.random.default_rng(seed).permutation(len(at))[:LEARNT]
    rows, distance = _rows(at, at), cdist(at[some], at[some])
    ndim = at.shape[1]
    low = np.log([LENGTH[0] * extent, 1e-3 * noise, noise])
    high = np.log([LENGTH[1] * extent, 0.5 * extent, 50 * noise])

    def worse(logs: Floats, weight: Floats) -> float:
        length, strength, sd = np.exp(logs.clip(low, high))
        try:
            root = np.linalg.cholesky(strength**2 * _kernel(distance / length) + np.diag(sd**2 / weight[some]))
        except np.linalg.LinAlgError:
            return 1e12
        y, h = np.linalg.solve(root, found[some]), np.linalg.solve(root, rows[some])
        gram = h.T @ h
        rest = y - h @ np.linalg.solve(gram, h.T @ y)
        value = ndim * np.log(np.diag(root)).sum() + 0.5 * (rest**2).sum() + 0.5 * ndim * np.linalg.slogdet(gram)[1]
        return float(value + 10 * ((logs - logs.clip(low, high)) ** 2).sum())

    weight = trust.copy()
    logs = np.log([0.15 * extent, 0.01 * extent, 3 * noise]).clip(low, high)
    for turn in range(6):
        if turn in (0, 1, 3):
            steps = logs + 0.5 * np.concatenate([np.zeros((1, 3)), np.eye(3)])
            options: Any = {"maxiter": 100, "xatol": 0.03, "fatol": 0.1, "initial_simplex": steps}
            logs = simplex(worse, logs, args=(weight,), method="Nelder-Mead", options=options).x.clip(low, high)
        length, strength, sd = (float(v) for v in np.exp(logs))
        inverse = np.linalg.inv(strength**2 * _kernel(cdist(at, at) / length) + np.diag(sd**2 / weight))
        projected = inverse @ rows
        gram = np.linalg.inv(rows.T @ projected)
        trend = gram @ projected.T @ found
        pull = inverse @ (found - rows @ trend)
        out = rows @ trend + strength**2 * _kernel(cdist(at, at) / length) @ pull
        square = ((found - out) ** 2).sum(axis=1) / sd**2
        weight = trust * ((FREEDOM + ndim) / (FREEDOM + trust * square))
    held = pull / (np.diag(inverse) - np.einsum("ni,ij,nj->n", projected, gram, projected))[:, None]
    return Field(at, trend, pull, length, strength, sd, np.linalg.norm(held, axis=1))


def straight(kind: str, at: Floats, begin: Floats, found: Floats, trust: Floats, noise: float) -> Field:
    """`learn` for a map that does not bend: a map of ``kind`` is fitted under Student's t.

    It is applied after the map of the first fit, which takes ``at`` to ``begin``; both together are affine.
    """
    weight = trust.copy()
    ndim = at.shape[1]
    for _ in range(20):
        matrix = fit_pairs(kind, begin, found, weight)
        square = ((carried(matrix, begin) - found) ** 2).sum(axis=1)
        sd = max(math.sqrt(float((weight * square).sum() / len(at) / ndim)), noise)
        weight = trust * (FREEDOM + ndim) / (FREEDOM + trust * square / sd**2)
    rows = _rows(at, at)
    trend = np.linalg.lstsq(rows, carried(matrix, begin), rcond=None)[0].astype(np.float64)
    return Field(at, trend, np.zeros_like(at), 1.0, 0.0, sd, np.sqrt(square))


class _Follow:
    """A metric of paired points: half the mean squared distance, over `EXACT` squared; in nats per point."""

    likelihood: ClassVar[bool] = True

    def prepare(self, fixed: Any, moving: Any) -> None:
        """Does nothing; the metric depends on no precomputed value."""

    def __call__(self, warped: Tensor, fixed: Tensor, weight: Tensor) -> Tensor:
        """Mismatch, a scalar."""
        return (weight * (warped - fixed).square().sum(dim=1)).sum() / weight.sum() / (2 * EXACT**2)


def settle(
    fit: Fit, fixed: Image, moving: Image, points: PointSet, side: str, config: Config
) -> tuple[Fit, dict[str, Any] | None]:
    """Refine the fit of a drawing on single nuclei.

    Args:
        fit: the fit of the drawing and the image.
        fixed: the fixed side as it was fitted; one of the two sides is the drawing.
        moving: the moving side as it was fitted.
        points: the points that were drawn.
        side: the side of the points, ``fixed`` or ``moving``.
        config: all settings.

    Returns:
        The refined fit and its figures; ``fit`` itself and None where nuclei are not resolved or the field is not believed.
    """
    image, drawing = (moving, fixed) if side == "fixed" else (fixed, moving)
    own, other = Frame.of(drawing.grid), Frame.of(image.grid)
    places = distinct(points)
    if len(places) > MOST_POINTS or len(places) < LEAST_POINTS:
        return fit, None
    at = carried(own.matrix().numpy(), places)  # in the frame of the drawing
    to_moving = side == "fixed"
    begin: Floats = (
        fit.maps.points(fit.x, torch.from_numpy(at), to_moving).detach().numpy()
    )  # in the frame of the image
    room = room_of(PointSet(torch.from_numpy(begin)))
    grid = other.grid(image.grid)
    drawn = _on(grid, begin, max(DRAWN * room, grid.pixel))
    shown = show(image, Image(drawn[None], grid), begin, room)
    if shown is None:
        return fit, None
    noise = 0.05 * shown.sigma
    now, shape = begin, np.tile(np.eye(at.shape[1]) * shown.sigma**2, (len(at), 1, 1))
    before = math.inf
    for turn in range(PASSES):
        inside = shown.inside(now)
        if inside.sum() < LEAST_POINTS:
            return fit, None
        seen = look(shown, now[inside], shape[inside], 3 if turn == 0 else 2)
        shape[inside] = seen.shape
        good = seen.trust > 0
        if good.sum() < max(LEAST_POINTS, 0.2 * inside.sum()):
            return fit, None
        trust = seen.trust[good].clip(min=1e-3)
        pairs = at[inside][good], seen.middle[good], trust / float(np.quantile(trust, 0.75))
        if turn == 0:
            before = float(np.median(np.linalg.norm(seen.middle - now[inside], axis=1)[good]))
        if config.transform == "lddmm":
            field = learn(*pairs, noise, config.seed)
        else:
            field = straight(config.transform, pairs[0], begin[inside][good], *pairs[1:], noise)
        now = field(at)
    after = float(np.median(field.missed))
    if after > BELIEVED * shown.radius:
        return fit, None
    figures = {
        "seen": int(good.sum()), "of": len(at), "radius": shown.radius * other.length, "unit": image.grid.unit,
        "moved_px": float(np.median(np.linalg.norm(now - begin, axis=1))), "residual_px": after, "before_px": before,
        "noise_px": field.noise, "field": {"length_px": field.length, "strength_px": field.strength},
    }  # fmt: skip
    return _follow(fit, field, drawing, to_moving, moving, at, config), figures


def _on(grid: Grid, at: Floats, sigma: float) -> Tensor:
    """The sum of Gaussians of width ``sigma`` at positions ``[N, D]``, on a grid of the same frame, ``[*S]`` float32."""
    index = np.rint((at - np.array(grid.origin)) / np.array(grid.spacing)).astype(np.intp)
    index = index[((index >= 0) & (index < np.array(grid.shape))).all(axis=1)]
    out = np.zeros(grid.shape)
    np.add.at(out, tuple(index.T), 1.0)
    return torch.from_numpy(gaussian_filter(out, sigma / np.array(grid.spacing), mode="constant")).to(torch.float32)


def _follow(fit: Fit, field: Field, drawing: Image, to_moving: bool, moving: Image, at: Floats, config: Config) -> Fit:
    """A copy of ``fit`` whose map is made to follow the field, at a grid of positions over the points' canvas and at the points.

    The number of grid positions is limited by `CONTROLS`.
    """
    grid = Frame.of(drawing.grid).grid(drawing.grid)
    step = max(field.length / 2, (math.prod(grid.extent) / CONTROLS) ** (1 / grid.ndim))
    control = grid.resampled(tuple(max(min(step, e / 3), s) for s, e in zip(grid.spacing, grid.extent, strict=True)))
    places = np.concatenate([where_all(control), at])
    there = field(places)
    p, q = (there, places) if to_moving else (places, there)
    now = dataclasses.replace(fit.on("cpu"))
    if config.transform == "lddmm" and fit.space is None:
        now.bend(velocity_space(moving.grid, config))
    extent = math.prod(Frame.of(moving.grid).grid(moving.grid).extent)
    for _ in range(ROUNDS):
        now.take_enough_steps(config)
        energy = MetricEnergy(p, q, np.ones(len(p)), _Follow(), now.maps)
        change = None
        if now.space is not None:
            nodes = max(extent / math.prod(now.space.waves.spacing), 1.0)
            change = Preconditioner(now.maps, nodes, len(p) / EXACT**2)
        outcome = descend(energy, now.x, Descent(STEPS, 1e-4 if change is None else 1e-3), change)
        now.x = outcome.x
        now.n_evaluations += energy.n_evaluations
    now.last = copy.copy(fit.last)
    if now.last is not None:
        now = now.on(now.last.device)
        assert now.last is not None
        now.last.maps = now.last.maps.with_space(now.space)
    now.reasons = [*fit.reasons, outcome.reason if outcome.reason == "diverged" else "converged"]
    return now
