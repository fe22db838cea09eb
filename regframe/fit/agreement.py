"""Whether windows of two aligned images find each other where the map puts them: evidence that needs no model of chance.

The overlap is cut into windows. Each looks for itself, with its fine structure, within `REACH` pixels on every side, and where it
fits best is where it would be moved. Of images that show one thing, most windows stay where they are; of images that do not,
each fits best somewhere, and next to none of them within `NEAR` pixels of where the map has put it. A fit cannot make it
otherwise: it has a few numbers for all windows, and a bend moves whole neighbourhoods. Windows that fit clearly best somewhere
else say that the map is wrong there, and by how much.

Nothing of the metric, of the search for a start or of the weights of the fit goes into it.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import Grid
from . import astray
from .halvings import halve
from .likeness import fit_contrast

WINDOW = {2: 24, 3: 12}
"""Pixels along the side of a window, by the number of axes: some cells wide where pixels show cells, and small against a bend."""
REACH = {2: 16, 3: 6}
"""Pixels on every side within which a window looks for itself, by the number of axes: a window fits by chance within `NEAR` of
its place with a probability of 2 % in a plane and 6 % in a volume."""
NEAR = 2.5
"""Pixels along every axis within which a window's best place is where the map has put it."""
ANOTHER = 3
"""Pixels along every axis from which on a second place is another one."""
DISTINCT = 0.1
"""Difference of correlation between the best place of a window and the second, from which the window is sure. Of 1300 windows of
unrelated pairs of ``benchmarks.proving`` (seeds 0–11) 3 % have it, of 1900 of right ones 71 %."""
SMOOTH = 9
"""Pixels across the neighbourhood whose mean is taken off: what remains is fine structure, not outlines."""
FLAT = 0.05
"""Variance, over that of all the overlap, that is added to a window's: flat windows correlate with nothing."""
CONTRAST = 0.05
"""Difference between neighbouring pixels, in standard deviations of the image, from which there is something to see."""
SEEN = 0.7
"""Share of a window that both sides have to show."""
TISSUE = 0.25
"""Share of a window that has to be tissue, where tissue is known from glass: outlines are evidence, bare glass is none."""
ENOUGH = 8
"""Windows that a coarser resolution has to have to speak for the map in place of a finer one that has them."""
LEAST = {2: 96, 3: 24}
"""Pixels along the shorter side below which no coarser resolution is looked at, by the number of axes."""


@dataclass(frozen=True)
class Agreement:
    """What windows say of a map, at the resolution that says most.

    Args:
        windows: how many were compared.
        agree: how many fit best where the map has put them.
        sure: how many fit clearly best in one place.
        against: how many of these fit best in another place than the map has put them.
        nats: ``n KL(k/n ‖ chance)``: the logarithm of how much likelier it is that so many agree if the map is right than by
            chance.
        pixel: size of a pixel at that resolution, in pixels of the finest.
        drift: by how much neighbouring windows would all be moved alike, in pixels of the finest resolution: the root of the
            median inner product of the moves of two sure neighbours, in which what each finds by itself averages out.
        neighbours: pairs of sure neighbours that this was taken from.
        together: windows that contradict the map in one place, neighbours that would all be moved alike (`fit.astray`).
        where: the middle of these on the fixed grid, in its unit; empty where none contradicts.
        off: by how much they would be moved, in pixels of the finest resolution, in the median.
    """

    windows: int
    agree: int
    sure: int
    against: int
    nats: float
    pixel: float
    drift: float
    neighbours: int
    together: int = 0
    where: tuple[float, ...] = ()
    off: float = 0.0


NONE = Agreement(0, 0, 0, 0, 0.0, 1.0, 0.0, 0)
"""Where the overlap holds no window, or an image is thinner than one."""


def agreement(target: Tensor, warped: Tensor, inside: Tensor, grid: Grid, tissue: Tensor | None = None) -> Agreement:
    """Compare windows of two aligned images at all resolutions, and report the one that says most; the drift is that of the
    resolution with most sure neighbours.

    Args:
        target: the fixed image ``[C_f, *S]``.
        warped: the moving image on its grid ``[C_m, *S]``.
        inside: weight ``[*S]``, 0 … 1; what is not fully seen does not count.
        grid: of ``target``; an axis of one pixel is left out.
        tissue: where either shows tissue ``[*S]``, 0 … 1; windows without it are not asked. None asks all.
    """
    asked = torch.ones_like(inside) if tissue is None else tissue
    best = steady = NONE
    pixel = 1.0
    while True:
        flat = [d for d, n in enumerate(grid.shape) if n == 1]
        seen, wanted = _flat(torch.stack([inside, asked]), flat)
        one = _windows(_flat(target, flat), _flat(warped, flat), seen, wanted, pixel)
        one = replace(one, where=_position(one.where, grid))
        enough = one.windows >= min(ENOUGH, max(best.windows, 1))  # a few windows lie on an outline by chance
        best = one if best is NONE or (enough and one.nats > best.nats) else best
        steady = one if one.neighbours > steady.neighbours else steady
        thick = [d for d in range(grid.ndim) if grid.shape[d] > 1]
        if min(grid.shape[d] for d in thick) < LEAST[2 if len(thick) == 2 else 3]:
            return replace(best, drift=steady.drift, neighbours=steady.neighbours)
        stacked, grid = halve(torch.cat([target, warped, inside[None], asked[None]]), grid, thick)
        target, warped, inside, asked = stacked[: len(target)], stacked[len(target) : -2], stacked[-2], stacked[-1]
        pixel *= 2


def _position(index: tuple[float, ...], grid: Grid) -> tuple[float, ...]:
    """The position on a grid, in its unit, of an index that leaves out its axes of one pixel; nowhere stays nowhere."""
    if not index:
        return ()
    rest = iter(index)
    full = [0.0 if n == 1 else next(rest) for n in grid.shape]
    return tuple(o + s * i for o, s, i in zip(grid.origin, grid.spacing, full, strict=True))


def _flat(data: Tensor, axes: list[int]) -> Tensor:
    """``data`` ``[C, *S]`` without these axes of one pixel."""
    return data.squeeze([d + 1 for d in axes]) if axes else data


def _windows(target: Tensor, warped: Tensor, inside: Tensor, asked: Tensor, pixel: float) -> Agreement:
    """`agreement` at one resolution, of ``pixel`` pixels of the finest, in windows of what is ``asked``; ``where`` is an index of
    it."""
    ndim = inside.ndim
    seen = (inside > 0.95).to(torch.float32)
    if ndim not in WINDOW or min(seen.shape) < WINDOW[ndim] or float(seen.sum()) < WINDOW[ndim] ** ndim:
        return NONE
    target, warped = target.to(torch.float32), warped.to(torch.float32)
    predicted = fit_contrast(warped, target, seen)
    axis = _principal(target, seen)
    fixed = torch.stack([(target * axis).sum(dim=0), edges(target)])
    moving = torch.stack([(predicted * axis).sum(dim=0), edges(warped)])
    shown, known = (_blocks(of, WINDOW[ndim], WINDOW[ndim], ndim).flatten(1).mean(dim=1) for of in (seen, asked))
    shown = (shown > SEEN) & (known >= TISSUE)
    if not bool(shown.any()):
        return NONE
    likeness = _everywhere(_fine(fixed, seen), _fine(moving, seen), seen, shown)
    best, second, place = _places(likeness, REACH[ndim])
    agree, sure = place.abs().amax(dim=1) <= NEAR, best - second > DISTINCT
    k, n = int(agree.sum()), len(likeness)
    lattice = shown.reshape([s // WINDOW[ndim] for s in inside.shape])
    drift, neighbours = _drift(place, sure, lattice)
    at, moves = astray.together(place, sure & ~agree, lattice)
    where = tuple((WINDOW[ndim] * (at.to(torch.float64).mean(dim=0) + 0.5) - 0.5).tolist()) if len(at) else ()
    off = float(moves.norm(dim=1).median()) * pixel if len(at) else 0.0
    nats = evidence(k, n, chance(ndim))
    against = int((sure & ~agree).sum())
    return Agreement(n, k, int(sure.sum()), against, nats, pixel, drift * pixel, neighbours, len(at), where, off)


def _drift(place: Tensor, sure: Tensor, shown: Tensor) -> tuple[float, int]:
    """How far neighbours move alike, in pixels, and the number of pairs.

    Args:
        place: moves ``[N, D]``.
        sure: which of them count ``[N]``.
        shown: where on the lattice of windows they are, ``[*lattice]`` with N true values.
    """
    moves = place.new_zeros((*shown.shape, place.shape[1]))
    counts = torch.zeros_like(shown)
    moves[shown], counts[shown] = place, sure
    products = []
    for step in itertools.product((0, 1), repeat=shown.ndim):
        if any(step):
            here = tuple(slice(0, n - s) for n, s in zip(shown.shape, step, strict=True))
            there = tuple(slice(s, n) for n, s in zip(shown.shape, step, strict=True))
            products.append((moves[here] * moves[there]).sum(dim=-1)[counts[here] & counts[there]])
    alike = torch.cat(products)
    return (math.sqrt(max(0.0, float(alike.median()))), len(alike)) if len(alike) else (0.0, 0)


def textured(data: Tensor, inside: Tensor) -> float:
    """Share of the pixels of an image ``[C, *S]``, weighed by ``inside`` ``[*S]``, that differ from their neighbours by more than
    `CONTRAST`: a few hundredths in drawings, which have outlines alone."""
    data, seen = data.to(torch.float32), (inside > 0.95).to(torch.float32)
    axes = tuple(range(1, data.ndim))
    total = seen.sum().clamp(min=1)
    middle = (data * seen).sum(dim=axes, keepdim=True) / total
    spread = ((data - middle).square() * seen).sum() / total
    return float(((edges(data) > CONTRAST * spread.sqrt()) * seen).sum() / total)


def chance(ndim: int) -> float:
    """Probability that a window which fits anywhere alike fits best within `NEAR` of its place."""
    return ((2 * math.floor(NEAR) + 1) / (2 * REACH[ndim] + 1)) ** ndim


def evidence(k: int, n: int, p: float) -> float:
    """``n KL(k/n ‖ p)`` in nats, 0 where no more than expected agree."""
    share = k / n
    if share <= p:
        return 0.0
    rest = 0.0 if k == n else (1 - share) * math.log((1 - share) / (1 - p))
    return n * (share * math.log(share / p) + rest)


def edges(data: Tensor) -> Tensor:
    """Magnitude of the gradient ``[*S]`` of ``data`` ``[C, *S]`` over all channels."""
    total = torch.zeros_like(data[0])
    for d in range(1, data.ndim):
        last = data.narrow(d, data.shape[d] - 1, 1)
        total = total + data.diff(dim=d, append=last).square().sum(dim=0)
    return total.sqrt()


def _principal(data: Tensor, weight: Tensor) -> Tensor:
    """The direction ``[C, 1, …]`` of the channels of ``data`` ``[C, *S]`` in which they vary most."""
    flat, w = data.flatten(1), weight.flatten()
    flat = (flat - (flat * w).sum(dim=1, keepdim=True) / w.sum()) * w
    axis: Tensor = torch.linalg.eigh(flat @ flat.T)[1][:, -1]
    return axis.reshape(-1, *(1,) * weight.ndim)


def _mean(data: Tensor) -> Tensor:
    """Mean of ``data`` ``[C, *S]`` over `SMOOTH` pixels along every axis."""
    pool = F.avg_pool2d if data.ndim == 3 else F.avg_pool3d
    return pool(data[None], SMOOTH, 1, SMOOTH // 2, count_include_pad=False)[0]


def _fine(data: Tensor, seen: Tensor) -> Tensor:
    """``data`` ``[C, *S]`` less the mean of its neighbourhood, 0 where it is not ``seen`` ``[*S]``."""
    return (data - _mean(data * seen) / _mean(seen[None]).clamp(min=1e-3)) * seen


def _blocks(data: Tensor, size: int, step: int, ndim: int) -> Tensor:
    """Blocks ``[N, *lead, size, …]`` of the last ``ndim`` axes of ``data`` ``[*lead, *S]``."""
    lead = data.ndim - ndim
    for d in range(lead, data.ndim):
        data = data.unfold(d, size, step)
    order = [*range(lead, lead + ndim), *range(lead), *range(lead + ndim, data.ndim)]
    return data.permute(order).flatten(0, ndim - 1)


def _everywhere(fixed: Tensor, moving: Tensor, seen: Tensor, chosen: Tensor) -> Tensor:
    """Correlation ``[N, 2R+1, …]`` of every chosen window of ``fixed`` with ``moving`` (``[C, *S]``, fine structure) at every
    shift, the mean over the features C. ``chosen`` tells which of all windows, in order."""
    ndim = seen.ndim
    size, reach = WINDOW[ndim], REACH[ndim]
    wide = size + 2 * reach
    around = (reach, reach) * ndim
    shown, here = _blocks(seen, size, size, ndim)[chosen][:, None], _blocks(fixed, size, size, ndim)[chosen]
    beyond = _blocks(F.pad(seen, around), wide, size, ndim)[chosen][:, None]
    there = _blocks(F.pad(moving, around), wide, size, ndim)[chosen]
    dims, shape = tuple(range(-ndim, 0)), (wide + wide % 2,) * ndim

    def waves(x: Tensor) -> Tensor:
        out: Tensor = torch.fft.rfftn(x, s=shape, dim=dims)
        return out

    def shifted(a: Tensor, b: Tensor) -> Tensor:
        full: Tensor = torch.fft.irfftn(a.conj() * b, s=shape, dim=dims)
        for d in dims:
            full = full.narrow(d, 0, 2 * reach + 1)
        return full

    w, x, xx = waves(shown), waves(here), waves(here * here)
    v, y, yy = waves(beyond), waves(there), waves(there * there)
    n = shifted(w, v).clamp(min=1)
    sx, sy = shifted(x, v), shifted(w, y)
    own, other = (shifted(xx, v) - sx * sx / n).clamp(min=0), (shifted(w, yy) - sy * sy / n).clamp(min=0)
    axes = (1, -1, *(1,) * ndim)
    least = [(FLAT * (side * side).flatten(1).sum(dim=1) / seen.sum()).reshape(axes) for side in (fixed, moving)]
    spread = ((own + least[0] * n) * (other + least[1] * n)).clamp(min=1e-20).sqrt()
    rho = torch.where(n > size**ndim / 2, (shifted(x, y) - sx * sy / n) / spread, 0.0)
    return rho.mean(dim=1)


def _places(likeness: Tensor, reach: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best likeness of each window ``[N]``, the best of another place ``[N]``, and the best place ``[N, D]``, between
    pixels by a parabola along every axis."""
    ndim, n, width = likeness.ndim - 1, len(likeness), 2 * reach + 1
    best, at = likeness.flatten(1).max(dim=1)
    index = torch.stack([at // width ** (ndim - 1 - d) % width for d in range(ndim)], dim=1)  # [N, D]
    along = torch.arange(width, device=at.device)
    axes = torch.stack(torch.meshgrid(*[along] * ndim, indexing="ij"), dim=-1).reshape(1, -1, ndim)
    away = (axes - index[:, None]).abs().amax(dim=2) > ANOTHER
    second = torch.where(away, likeness.flatten(1), -1.0).amax(dim=1)
    place = (index - reach).to(torch.float32)
    middle = index.clamp(1, width - 2)
    flat, rows = likeness.flatten(1), torch.arange(n, device=at.device)
    for d in range(ndim):
        stride = width ** (ndim - 1 - d)
        centre = (middle * middle.new_tensor([width ** (ndim - 1 - k) for k in range(ndim)])).sum(dim=1)
        low, mid, high = (flat[rows, centre + step] for step in (-stride, 0, stride))
        bend = low - 2 * mid + high
        place[:, d] += torch.where(bend < -1e-9, 0.5 * (low - high) / bend.clamp(max=-1e-9), 0.0).clamp(-0.5, 0.5)
    return best, second, place
