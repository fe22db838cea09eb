"""How two fields of view overlap: every shift of one over the other is weighed, then the pose is settled to a part of a pixel.

All positions here are in pixels, counted from the middle of a field's first pixel, components in the order y, x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

Floats = NDArray[np.float64]

BAND = (1.2, 8.0)
"""Standard deviations, in pixels, of the finest and the coarsest structure that is compared: below the first is noise, above the
second the lamp's unevenness, which belongs to the camera and not to the tissue."""
EVEN = 32.0
"""Standard deviation, in pixels, of the surroundings by whose contrast a place is divided, so that one bright cell does not
decide."""
LEAST = 12
"""Pixels per axis that two fields must share for a shift to be weighed: twice the distance over which structure within `BAND`
hangs together."""
ODDS = 5.0
"""Log odds against an overlap before it is seen."""
CAP = 0.6
"""Log odds per unit of evidence beyond that of chance. Between 87 pairs of strips without a common place, of three tissues, the
evidence for the best shift exceeded the logarithm of the number of shifts by 0.6 in one of ten and by 4.5 at most
(``benchmarks/mosaics.py --null``): a confidence of 0.09; one of 0.9 asks for 12."""
AGAIN = 12
"""Steps of the settling at most; it ends earlier where the corners move by less than `STILL`."""
STILL = 2e-3
"""Movement of a corner of the overlap, in pixels, below which the settling ends."""
ASTRAY = 3.0
"""Movement of the middle of the overlap, in pixels, from the whole-pixel shift beyond which the settling has run away."""
MOST_TURN = math.radians(4.0)
"""Largest turn of two fields against each other: cameras are mounted once, stages do not turn."""
FLOOR = 0.02
"""Least standard deviation of a settled shift, in pixels, whatever its residuals promise: what interpolation leaves."""


@dataclass(frozen=True)
class Found:
    """How one field lies on another.

    Args:
        matrix: ``[3, 3]`` from the moving field's pixels to the fixed one's.
        confidence: 0 … 1, how sure it is that the two show one place there.
        likeness: correlation of their structure where they overlap.
        probes: positions ``[N, 2]`` in the moving field that span the overlap.
        sd: standard deviation of the shift in the overlap, in pixels.
        share: overlap over the area of the moving field.
        evidence: log likelihood of the overlap over that of none, per independent shift.
    """

    matrix: Floats
    confidence: float
    likeness: float
    probes: Floats
    sd: float
    share: float
    evidence: float


def texture(plane: NDArray[np.floating]) -> Floats:
    """The structure of a picture within `BAND`, evened out: mean 0, about 1 where there is as much as usual."""
    values = np.nan_to_num(np.asarray(plane, dtype=np.float32))
    band = ndimage.gaussian_filter(values, BAND[0]) - ndimage.gaussian_filter(values, BAND[1])
    side = round(EVEN * math.sqrt(6))  # of two boxes one after another, which spread as far and cost far less
    local = ndimage.uniform_filter(ndimage.uniform_filter(band**2, side), side)
    usual = float(local.mean())
    if usual <= 0:
        return np.zeros(values.shape)
    return np.asarray(band / np.sqrt(local + usual), dtype=np.float64)


# ---- whole pixels -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shifts:
    """The evidence for every shift of one picture over another.

    Args:
        evidence: log likelihood ratio of each shift, ``[2h, 2w]``; -inf where it is not asked for.
        first: shift of its first entry, in pixels.
        count: number of independent shifts among them.
        likeness: correlation at each shift.
        cell: pixels of the overlap per independent one.
    """

    evidence: Floats
    first: tuple[int, int]
    count: float
    likeness: Floats
    cell: float

    def best(self, n: int = 1) -> list[tuple[tuple[int, int], float]]:
        """The ``n`` likeliest shifts, apart from each other, with their evidence."""
        left, out = self.evidence.copy(), []
        apart = 2 * round(BAND[1])
        for _ in range(n):
            y, x = np.unravel_index(int(np.argmax(left)), left.shape)
            if not np.isfinite(left[y, x]):
                break
            out.append(((int(y) + self.first[0], int(x) + self.first[1]), float(left[y, x])))
            left[max(0, y - apart) : y + apart + 1, max(0, x - apart) : x + apart + 1] = -np.inf
        return out


def shifts(
    fixed: Floats, moving: Floats, low: tuple[int, int], high: tuple[int, int], most: float = math.inf
) -> Shifts | None:
    """Weigh every shift from ``low`` to ``high`` of ``moving`` over ``fixed``: moving pixel p lies on fixed pixel p + shift.

    ``most`` is the largest area of the overlap, in pixels. None where no shift leaves `LEAST` pixels per axis in common.
    """
    sides = tuple(a + b for a, b in zip(fixed.shape, moving.shape, strict=True))
    size = [fft.next_fast_len(n, real=True) for n in sides]

    def spectrum(values: Floats) -> NDArray[np.complexfloating]:
        found: NDArray[np.complexfloating] = fft.rfft2(values, size)
        return found

    def back(product: NDArray[np.complexfloating]) -> Floats:
        found: Floats = np.asarray(fft.irfft2(product, size), dtype=np.float64)
        rows = np.arange(low[0], high[0] + 1) % size[0]
        columns = np.arange(low[1], high[1] + 1) % size[1]
        return np.asarray(found[np.ix_(rows, columns)])

    fa, fb = spectrum(fixed), spectrum(moving).conj()
    sa, sb = spectrum(fixed**2), spectrum(moving**2).conj()
    tall, wide = (_common(a, b, lo, hi) for a, b, lo, hi in zip(fixed.shape, moving.shape, low, high, strict=True))
    area = tall[:, None] * wide[None, :]
    asked = (tall[:, None] >= LEAST) & (wide[None, :] >= LEAST) & (area <= most)
    if not asked.any():
        return None
    energy = np.sqrt(
        np.clip(back(sa * spectrum(np.ones(moving.shape)).conj()), 1e-9, None)
        * np.clip(back(spectrum(np.ones(fixed.shape)) * sb), 1e-9, None)
    )
    likeness = np.clip(back(fa * fb) / energy, -0.999, 0.999)
    cell = _cell(fa, fb, size) / min(_evenly(fixed), _evenly(moving))
    evidence = np.where(likeness > 0, -0.5 * area / cell * np.log1p(-(likeness**2)), 0.0)
    count = max(1.0, float(asked.sum()) / _cell(fa, fb, size))
    return Shifts(np.where(asked, evidence, -np.inf), low, count, likeness, cell)


def _common(a: int, b: int, low: int, high: int) -> Floats:
    """Pixels of an axis that sides of ``a`` and ``b`` pixels share at shifts from ``low`` to ``high``."""
    at = np.arange(low, high + 1)
    return np.asarray(np.clip(np.minimum(a, b + at) - np.maximum(0, at), 0, None), dtype=np.float64)


def _cell(fa: NDArray[np.complexfloating], fb: NDArray[np.complexfloating], size: list[int]) -> float:
    """Pixels that hang together in both pictures: the sum of the product of their autocorrelations."""
    own = [fft.irfft2(np.abs(f) ** 2, size) for f in (fa, fb)]
    if min(o[0, 0] for o in own) <= 0:
        return 1.0
    return max(1.0, float((own[0] / own[0][0, 0] * (own[1] / own[1][0, 0])).sum()))


def _evenly(values: Floats) -> float:
    """Share of a picture's pixels that bear its structure: 1 of noise, little where one cell does."""
    square = values**2
    fourth = float((square**2).mean())
    return min(1.0, 3 * float(square.mean()) ** 2 / fourth) if fourth > 0 else 1.0


# ---- parts of a pixel ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pose:
    """A turn about the middle of an overlap, in radians, and a shift, from fixed to moving pixels."""

    turn: float
    shift: tuple[float, float]

    def matrix(self, middle: Floats) -> Floats:
        """``[3, 3]`` from fixed to moving pixels."""
        c, s = math.cos(self.turn), math.sin(self.turn)
        out = np.eye(3)
        out[:2, :2] = [[c, -s], [s, c]]
        out[:2, 2] = middle + np.array(self.shift) - out[:2, :2] @ middle
        return out

    def moved(self, change: Floats) -> Pose:
        """The pose after a step ``[3]``: turn, then shift."""
        return Pose(self.turn + float(change[0]), (self.shift[0] + float(change[1]), self.shift[1] + float(change[2])))


@dataclass(frozen=True)
class Settled:
    """A pose that was settled.

    Args:
        matrix: ``[3, 3]`` from moving to fixed pixels.
        probes: corners ``[4, 2]`` of the overlap, in the moving picture.
        likeness: correlation of the two structures there.
        sd: standard deviation of the shift if every pixel were independent, in pixels.
        area: of the overlap, in pixels.
    """

    matrix: Floats
    probes: Floats
    likeness: float
    sd: float
    area: float


def settle(fixed: Floats, moving: Floats, shift: tuple[int, int], turning: bool) -> Settled | None:
    """The rigid pose in which two pictures are most alike, from a shift that is right to a few pixels; None where it runs away.

    In every step the structure of both is taken over just what they share: what lies beyond the border of one would otherwise
    change it on one side alone. Where fields may be turned the pose is settled on smoothed pictures first, because a turn moves
    the ends of a long overlap by several pixels.
    """
    pose, likeness, sd = Pose(0.0, (-float(shift[0]), -float(shift[1]))), 0.0, 0.0
    for blur in (2.0, 0.0) if turning else (0.0,):
        smooth, still = (ndimage.gaussian_filter(v, blur) if blur else v for v in (moving, fixed))
        coefficients = ndimage.spline_filter(smooth, order=3, mode="mirror")
        box = _shared(fixed.shape, moving.shape, pose)
        if box is None:
            return None
        at = np.stack(np.meshgrid(*(np.arange(s.start, s.stop) for s in box), indexing="ij"), axis=-1)
        middle, reach = at.mean(axis=(0, 1)), np.array(at.shape[:2]) / 2
        wanted = texture(still[box])
        for _ in range(AGAIN):
            found = _step(coefficients, wanted, at, middle, pose, turning)
            if found is None:
                return None
            change, likeness, sd = found
            pose = pose.moved(change)
            if math.hypot(change[1], change[2]) + abs(change[0]) * float(np.linalg.norm(reach)) < STILL:
                break
        if math.dist(pose.shift, (-shift[0], -shift[1])) > ASTRAY * (1 + turning) or abs(pose.turn) > MOST_TURN:
            return None
    pull = pose.matrix(middle)
    ends = middle + reach * np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]])
    probes = ends @ pull[:2, :2].T + pull[:2, 2]
    return Settled(np.asarray(np.linalg.inv(pull), dtype=np.float64), probes, likeness, sd, float(wanted.size))


def _shared(fixed: tuple[int, ...], moving: tuple[int, ...], pose: Pose) -> tuple[slice, slice] | None:
    """The part of the fixed picture on which the moving one lies; None where it is too narrow."""
    found = []
    for n, m, s in zip(fixed, moving, pose.shift, strict=True):
        a, b = max(0, math.ceil(-s)), min(n, math.floor(m - 1 - s) + 1)
        if b - a < LEAST:
            return None
        found.append(slice(a, b))
    return found[0], found[1]


def _step(
    coefficients: Floats, wanted: Floats, at: NDArray[np.intp], middle: Floats, pose: Pose, turning: bool
) -> tuple[Floats, float, float] | None:
    """One Gauss-Newton step ``[3]`` of turn and shift; the likeness before it, and the shift's standard deviation per pixel."""
    matrix = pose.matrix(middle)
    there = at @ matrix[:2, :2].T + matrix[:2, 2]
    inside = ((there >= 0) & (there <= np.array(coefficients.shape) - 1)).all(axis=-1)
    if inside.sum() < max(LEAST**2 / 2, 0.25 * inside.size):
        return None
    shown = ndimage.map_coordinates(
        coefficients, there.reshape(-1, 2).T, order=3, mode="mirror", prefilter=False
    ).reshape(inside.shape)
    carried = texture(shown)
    along = (
        np.stack([np.gradient(carried, axis=0), np.gradient(carried, axis=1)], axis=-1)[inside] @ matrix[:2, :2].T
    )  # by positions of the moving picture
    values, target, arms = carried[inside], wanted[inside], (at - middle)[inside]
    product, energy = float(values @ target), float(values @ values)
    norm = math.sqrt(energy * float(target @ target))
    if product <= 0 or norm <= 0:
        return None
    gain = product / energy
    spin = along[:, 1] * (arms @ matrix[0, :2]) - along[:, 0] * (arms @ matrix[1, :2])
    rows = gain * (np.column_stack([spin, along]) if turning else along)
    residual = target - gain * values
    try:
        spread = np.linalg.inv(rows.T @ rows)
    except np.linalg.LinAlgError:
        return None
    change = spread @ (rows.T @ residual)
    variance = float(residual @ residual) / max(1, len(residual) - 4)
    sd = math.sqrt(max(0.0, float(np.trace(spread[-2:, -2:]))) * variance)
    return (change if turning else np.array([0.0, *change])), product / norm, sd


# ---- both ---------------------------------------------------------------------------------------------------------------


def match(
    fixed: NDArray[np.floating],
    moving: NDArray[np.floating],
    low: tuple[int, int],
    high: tuple[int, int],
    turning: bool = True,
    most: float = math.inf,
) -> Found | None:
    """How a picture lies on another, among the shifts from ``low`` to ``high``; None where nothing fits.

    Args:
        fixed: ``[H, W]``, of one channel.
        moving: likewise.
        low: smallest shift that is weighed, in pixels along y and x: moving pixel p lies on fixed pixel p + shift.
        high: largest shift.
        turning: whether a small turn is looked for.
        most: largest area of an overlap, in pixels.
    """
    here, there = (np.nan_to_num(np.asarray(plane, dtype=np.float64)) for plane in (fixed, moving))
    one, other = texture(here), texture(there)
    weighed = shifts(one, other, low, high, most)
    if weighed is None:
        return None
    peaks = weighed.best(3)
    tried = [(found, rank) for rank, (shift, _) in enumerate(peaks) if (found := settle(here, there, shift, turning))]
    if not tried:
        return None
    cell = weighed.cell

    def evidence(found: Settled) -> float:
        return -0.5 * found.area / cell * math.log1p(-(min(found.likeness, 0.999) ** 2))

    best, rank = max(tried, key=lambda each: evidence(each[0]))
    rivals = [value for i, (_, value) in enumerate(peaks) if i != rank]
    own = evidence(best)
    beyond = CAP * (own - math.log(weighed.count)) - ODDS
    apart = min([beyond, *(CAP * (own - value) for value in rivals)])
    sd = math.hypot(best.sd * math.sqrt(cell), FLOOR)
    share = best.area / moving.size
    return Found(
        best.matrix, 1 / (1 + math.exp(-max(-50.0, min(50.0, apart)))), best.likeness, best.probes, sd, share, own
    )
