"""A drawing's fit settled on single nuclei, where the image resolves them.

A drawing of round, equal spots explains an image only so far: nuclei are neither, and what is left over of each is one
observation, however many pixels it covers. So the raster fit counts few observations a point (`drawing.PER_POINT`), and where
single nuclei are resolved its map is the start of another one: every point looks for the middle of its own nucleus, and a
smooth field is fitted through what they found, by its own likelihood.

Sources: Myronenko & Song 2010 (a mixture with a class for what has no partner; here of pixels, owned by points); Lange,
Little & Taylor 1989 (Student's t by reweighting); Rasmussen & Williams 2006, chapters 2 and 5 (Gaussian processes with a
trend, their marginal likelihood, leave-one-out residuals).
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
from scipy.optimize import minimize as simplex
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
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
"""Points up to which nuclei are looked at one by one: more of them leave a raster fit little to gain."""
LEAST_POINTS = 12
"""Nuclei that have to be seen at least."""


RESOLVED = (1.5, 0.45)
"""Radius of a nucleus: in pixels at least, and over the room of a point at most."""
SPREAD = 0.58
"""Standard deviation per axis of a nucleus over the radius at which its mean brightness has fallen to half."""
SMOOTHED = 1 / 7
"""Standard deviation that an image is smoothed with before nuclei are looked for, over that of a nucleus."""
REACH = 2.5
"""Standard deviations from which a pixel belongs to no nucleus rather than to this one."""
EDGE = 8.0
"""Steepness of what counts as nucleus, about half its own brightness."""
SHARED = 0.2
"""Weight of the common shape of nuclei, over that of the median nucleus' own pixels, in the shape of each."""
FAINT = 0.25
"""Brightness over the median nucleus' below which there is none."""
PASSES = 3
"""Times the nuclei are looked for again from where the field puts them."""
FREEDOM = 3.0
"""Degrees of freedom of Student's t for what a nucleus is off the field: overlapping nuclei are found far off now and then."""
LENGTH = (0.08, 2.0)
"""Length of the field's kernel at least and at most, over the extent of the points."""
LEARNT = 400
"""Nuclei that the field's length, strength and noise are learnt from, at most."""
EXACT = 0.05
"""Standard deviation, in pixels of the fixed frame, with which the map follows the field."""
BELIEVED = 0.5
"""Leave-one-out residual of the median nucleus, over a nucleus' radius, from which the field is not believed."""
CONTROLS = 1500
"""Places, beside the points, at which the map follows the field, at most."""
ROUNDS = 3
"""Descents onto the field: between them the Euler steps are chosen anew, as many as the velocity then needs."""
STEPS = 100
"""Steps of each at most."""


@dataclass(frozen=True)
class Nuclei:
    """What points saw of their nuclei in an image.

    Args:
        middle: of each ``[N, D]``, in the image's frame.
        trust: of each ``[N]``, 0 … 1: bright, its own, whole on the canvas.
        shape: covariance ``[N, D, D]``.
    """

    middle: Floats
    trust: Floats
    shape: Floats


@dataclass(frozen=True)
class Shown:
    """An image with nuclei bright, as arrays.

    Args:
        data: ``[*S]``, smoothed, background taken off.
        pixel: spacing in the frame ``[D]``.
        first: position of the first pixel in the frame ``[D]``.
        sigma: standard deviation of a nucleus per axis, in the frame.
        radius: of a nucleus, in the frame.
    """

    data: Floats
    pixel: Floats
    first: Floats
    sigma: float
    radius: float

    def index(self, at: Floats) -> NDArray[np.intp]:
        """The nearest pixels ``[N, D]`` of positions."""
        return np.rint((at - self.first) / self.pixel).astype(np.intp)

    def inside(self, at: Floats) -> NDArray[np.bool_]:
        """Whether positions lie on the canvas ``[N]``."""
        index = self.index(at)
        return np.asarray(((index >= 0) & (index < np.array(self.data.shape))).all(axis=1))

    def window(self, at: Floats, reach: float) -> tuple[NDArray[np.intp], NDArray[np.bool_], Floats]:
        """The pixels around positions ``[N, K, D]``, moved onto the canvas; which were on it; positions in the frame."""
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
        drawing: the points drawn on the image's grid where they are believed to lie ``[1, *S]``: it tells bright from dark.
        at: these places in the image's frame ``[N, D]``.
        room: of a point, in the frame.
    """
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
    """Positions of all pixels ``[*, D]``."""
    out: Floats = grid.coords().reshape(-1, grid.ndim).numpy()
    return out


def look(shown: Shown, at: Floats, shape: Floats | None, rounds: int) -> Nuclei:
    """The middle of the nucleus that each place ``[N, D]`` lies on: of its pixels, from half its own brightness on.

    Pixels are shared among the places like points among the components of a mixture, each an ellipse with a brightness of
    its own; what is far from all belongs to none.

    Args:
        shape: covariances ``[N, D, D]`` to begin with, or None.
        rounds: E and M steps.
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
    """A smooth map learnt from noisy positions: an affine trend and a Gaussian process.

    Args:
        at: where it was learnt ``[N, D]``.
        trend: ``[D+1, D]``.
        pull: ``[N, D]``.
        length: of the kernel, a Matérn kernel, in the frame.
        strength: its standard deviation per axis.
        noise: standard deviation per axis of a position of trust 1.
        missed: leave-one-out residual of each ``[N]``.
    """

    at: Floats
    trend: Floats
    pull: Floats
    length: float
    strength: float
    noise: float
    missed: Floats

    def __call__(self, at: Floats) -> Floats:
        """Where positions ``[M, D]`` go."""
        out: Floats = _rows(at, self.at) @ self.trend
        if self.strength > 0:
            out = out + self.strength**2 * _kernel(cdist(at, self.at) / self.length) @ self.pull
        return out


def _kernel(r: Floats) -> Floats:
    """The Matérn kernel of smoothness 7/2 in closed form, 1 at 0."""
    out: Floats = (1 + r + 0.4 * r**2 + r**3 / 15) * np.exp(-r)
    return out


def _rows(at: Floats, reference: Floats) -> Floats:
    """What the trend is linear in ``[N, D+1]``."""
    scale = np.ptp(reference, axis=0).max()
    return np.concatenate([np.ones((len(at), 1)), (at - reference.mean(axis=0)) / scale], axis=1)


def learn(at: Floats, found: Floats, trust: Floats, noise: float, seed: int) -> Field:
    """The field from ``at`` to ``found`` ``[N, D]``, its length, strength and noise those of the highest restricted likelihood,
    under Student's t.

    Args:
        trust: precision of each ``[N]`` over that of the best.
        noise: least standard deviation of a position.
        seed: of the draw that the three are learnt from.
    """
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
    """`learn` without a field: a map of ``kind`` after the one that leads from ``at`` to ``begin``, under Student's t."""
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
    """The metric of paired points: half the mean squared distance over `EXACT` squared."""

    likelihood: ClassVar[bool] = True

    def prepare(self, fixed: Any, moving: Any) -> None:
        """Nothing to look at."""

    def __call__(self, warped: Tensor, fixed: Tensor, weight: Tensor) -> Tensor:
        """Mismatch, a scalar."""
        return (weight * (warped - fixed).square().sum(dim=1)).sum() / weight.sum() / (2 * EXACT**2)


def settle(
    fit: Fit, fixed: Image, moving: Image, points: PointSet, side: str, config: Config
) -> tuple[Fit, dict[str, Any] | None]:
    """The fit of a drawing settled on single nuclei, and what was seen; the fit itself and None where none are resolved.

    Args:
        fit: of the drawing and the image.
        fixed: the fixed side as it was registered, one of both a drawing.
        moving: the moving side as it was registered.
        points: what was drawn.
        side: which side that is.
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
    """Gaussians at positions ``[N, D]``, on a grid of their frame ``[*S]`` float32."""
    index = np.rint((at - np.array(grid.origin)) / np.array(grid.spacing)).astype(np.intp)
    index = index[((index >= 0) & (index < np.array(grid.shape))).all(axis=1)]
    out = np.zeros(grid.shape)
    np.add.at(out, tuple(index.T), 1.0)
    return torch.from_numpy(gaussian_filter(out, sigma / np.array(grid.spacing), mode="constant")).to(torch.float32)


def _follow(fit: Fit, field: Field, drawing: Image, to_moving: bool, moving: Image, at: Floats, config: Config) -> Fit:
    """A fit of the kind of ``fit`` whose map follows the field, through its values over the canvas of the points."""
    grid = Frame.of(drawing.grid).grid(drawing.grid)
    step = max(field.length / 2, (math.prod(grid.extent) / CONTROLS) ** (1 / grid.ndim))
    control = grid.resampled(tuple(max(min(step, e / 3), s) for s, e in zip(grid.spacing, grid.extent, strict=True)))
    places = np.concatenate([where_all(control), at])
    there = field(places)
    p, q = (there, places) if to_moving else (places, there)
    now = dataclasses.replace(fit)
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
        now.last.maps = now.last.maps.with_space(now.space)
    now.reasons = [*fit.reasons, outcome.reason if outcome.reason == "diverged" else "converged"]
    return now
