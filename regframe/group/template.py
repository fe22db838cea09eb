"""The mean of many images: a space that favours none of them, with the mean and the variance of what they show there."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..config import Config
from ..contracts import Progress
from ..data import Grid, Image
from ..maps.affine import Affine
from ..maps.base import Transform
from ..maps.displacement import Displacement
from ..maps.resample import resample
from ..maps.sequence import in_a_row
from ..registration import register
from ..result import Result
from .pairs import Pair, timeless

ROUNDS = 4
"""Times at most that all images are registered to their mean."""
BETTER = 0.99
"""How far the maps are from pairs that they were not made of, over that of the round before, above which a round is not kept: the
mean is smoother than any image, and holds a share of the noise of each, so that maps onto it may be less exact than those onto a
sharp image that is near. What the images show says nothing of that: it grows more alike as noise is fitted."""
STILL = 0.05
"""Root mean square distance, in pixels, of the maps of two rounds up to which no other follows: less than a map is known by."""
EXACT = 0.02
"""Largest departure, in pixels, from an affine map up to which the mean shape is one: a fifth of what a map is known by."""
NODE = 2.0
"""Spacing, in pixels, of the field that a map and the mean shape are merged into: bends are smooth over several times that."""
MOST_NODES = 600_000
"""Nodes of such a field at most: a canvas of a million pixels with its margin; of larger ones the spacing grows."""
NODES = 64
"""Nodes per axis of the lattice at which the pose of a map is taken out of it."""
MARGIN = 0.25
"""How far the mean shape reaches beyond the canvas on every side, as a fraction of its extent."""
ENDS = (0.02, 0.98)
"""Quantiles of an image's values that are matched to those of the others before the mean is taken."""


@dataclass(frozen=True)
class Template:
    """The mean of many images.

    Args:
        image: the mean of what they show, on the canvas of the image that the search began with.
        variance: the variance of what they show, per pixel, in the same values squared, on the same canvas.
        results: one `Result` per image, from its own space to that of the mean; None for one that could not be placed.
        bias_px: root mean square, in pixels, of the mean displacement of all images: 0 where none is favoured.
        moved_px: by how much each round that was kept moved the maps, in pixels (root mean square, median over the images).
        shape_px: how far the mean shape lies from that of the image that the search began with, in pixels.
    """

    image: Image
    variance: Image
    results: tuple[Result | None, ...]
    bias_px: float
    moved_px: tuple[float, ...]
    shape_px: float


def template(
    images: Sequence[Image],
    start: Sequence[Result | None],
    reference: int,
    config: Config,
    pairs: Sequence[Pair] = (),
    progress: Callable[[Progress], object] | None = None,
) -> Template:
    """The mean of images that lie roughly on each other already.

    In every round each image is registered to the mean of what all show. Then the mean of the maps' shapes is taken out of all of
    them, so that what is left over, averaged over the images, is the identity (Guimond et al. 2000). Turns, shifts and mirrors
    take no part in that mean: the pose is that of ``reference``. Sizes and shears do.

    Args:
        images: two or more of one dimension and unit.
        start: a result per image, to the space of ``reference``; None for one that takes no part.
        reference: number of the image whose canvas and pose the mean gets.
        config: settings of every registration.
        pairs: registrations of two images that ``start`` is not made of, by which a round is judged: it is kept where its maps
            are nearer to them. Without any there are no rounds.
        progress: called before each registration; the stage is ``template``.
    """
    grid = images[reference].grid
    found, shape = _centred([None if result is None else (result,) for result in start], grid)
    mean, variance = blended(images, found, grid)
    moved: list[float] = []
    off = _off(found, pairs)
    for turn in range(0 if off is None else ROUNDS):
        onto: list[tuple[Result, ...] | None] = []
        for k, result in enumerate(found):
            if progress is not None:
                progress(Progress("template", turn * len(images) + k, ROUNDS * len(images)))
            onto.append(None if result is None else (_placed(mean, images[k], result, config),))
        again, _ = _centred(onto, grid)
        then = _off(again, pairs)
        if off is None or then is None or then > BETTER * off:
            break
        moved.append(_apart(found, again, grid))
        found, off = again, then
        mean, variance = blended(images, found, grid)
        if moved[-1] < STILL:
            break
    return Template(mean, variance, tuple(found), bias(found, grid), tuple(moved), shape)


def _off(results: Sequence[Result | None], pairs: Sequence[Pair]) -> float | None:
    """Mean over pairs of the median distance, in pixels, of the maps from what the pair says; None where none says anything."""
    found = []
    for pair in pairs:
        moving, fixed = results[pair.moving], results[pair.fixed]
        if pair.result is None or pair.verdict != "pass" or moving is None or fixed is None:
            continue
        at = _lattice(moving.moving_grid)
        there = fixed.transform.inverse().points(moving.transform.points(at))
        on = fixed.moving_grid.contains(there)
        away = (there - pair.result.transform.points(at))[on].norm(dim=-1)
        if len(away):
            found.append(float(away.median()) / fixed.moving_grid.pixel)
    return float(np.mean(found)) if found else None


def _placed(mean: Image, image: Image, last: Result, config: Config) -> Result:
    """An image on the mean, from the pose it has; as it was where nothing is found."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = register(mean, image, init=last.affine, config=config)
        except ValueError:
            return last
    return last if found.verdict == "fail" else timeless(dataclasses.replace(found, history=[]))


# ---- the mean shape -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Mean(Transform):
    """Each position where it is in the mean of all images, each of these turned and shifted onto the space it starts from.

    Args:
        maps: from that space to each image.
        poses: ``[D+1, D+1]`` each, rigid, from that image back.
        unit: of the space.
    """

    maps: tuple[Transform, ...]
    poses: tuple[Tensor, ...]
    unit: str

    @property
    def source_unit(self) -> str:  # type: ignore[override]
        return self.unit

    @property
    def target_unit(self) -> str:  # type: ignore[override]
        return self.unit

    @property
    def ndim(self) -> int:
        return self.maps[0].ndim

    def points(self, coords: Tensor) -> Tensor:
        total = torch.zeros_like(coords, dtype=torch.float64)
        for to_image, pose in zip(self.maps, self.poses, strict=True):
            total += to_image.points(coords) @ pose[:-1, :-1].T + pose[:-1, -1]
        return total / len(self.maps)

    def inverse(self) -> Transform:
        raise NotImplementedError  # it is sampled before it is inverted


def _mean_of(maps: Sequence[Transform], grid: Grid) -> _Mean:
    back = tuple(each.inverse() for each in maps)
    at = _lattice(grid)
    return _Mean(back, tuple(_pose(each.points(at), at) for each in back), grid.unit)


def _centred(chains: Sequence[tuple[Result, ...] | None], grid: Grid) -> tuple[list[Result | None], float]:
    """Results in a row as one each, the mean shape taken out of all, and how far that moved positions (in pixels)."""
    kept = [chain for chain in chains if chain is not None]
    exact = _mean_of([in_a_row([each.transform for each in chain]) for chain in kept], grid)
    at = _lattice(grid)
    step = _sampled(exact, grid, at)
    out: list[Result | None] = []
    for chain in chains:
        if chain is None:
            out.append(None)
            continue
        moving = chain[0].moving_grid
        whole = in_a_row([*(each.transform for each in chain), step])
        inside = _lattice(moving)
        affine = Affine(_affine(whole.points(inside), inside), moving.unit, grid.unit)
        straight = all(isinstance(part, Affine) for part in whole.parts())
        transform = affine if straight else in_a_row([affine, _field(whole, affine, grid)])
        out.append(
            dataclasses.replace(chain[-1], transform=transform, affine=affine, fixed_grid=grid, moving_grid=moving)
        )
    return out, _rms(step.points(at) - at) / grid.pixel


def _sampled(exact: _Mean, grid: Grid, at: Tensor) -> Transform:
    """The mean shape as a map that can be inverted: an affine one where it is, else a field."""
    there = exact.points(at)
    straight = Affine(_affine(there, at), grid.unit, grid.unit)
    if float((straight.points(at) - there).norm(dim=-1).max()) < EXACT * grid.pixel:
        return straight
    return _field(exact, Affine.identity(grid.ndim, grid.unit), grid)


def _field(whole: Transform, affine: Affine, grid: Grid) -> Displacement:
    """What a map does after its affine part, as displacements at nodes over ``grid`` and a margin around it."""
    step = [NODE * s for s in grid.spacing]
    wide = [(1 + 2 * MARGIN) * s * (n - 1) for s, n in zip(grid.spacing, grid.shape, strict=True)]
    many = math.prod(w / s + 1 for w, s in zip(wide, step, strict=True))
    step = [s * max(1.0, (many / MOST_NODES) ** (1 / grid.ndim)) for s in step]
    shape = tuple(max(2, math.ceil(w / s) + 1) for w, s in zip(wide, step, strict=True))
    origin = tuple(o - MARGIN * s * (n - 1) for o, s, n in zip(grid.origin, grid.spacing, grid.shape, strict=True))
    nodes = Grid(shape, tuple(step), origin, grid.unit)
    at = nodes.coords()
    return Displacement((whole.points(affine.inverse().points(at)) - at).movedim(-1, 0).contiguous(), nodes)


def bias(results: Sequence[Result | None], grid: Grid) -> float:
    """Root mean square over the canvas of the mean displacement of all images, poses taken out, in pixels."""
    at = _lattice(grid)
    exact = _mean_of([result.transform for result in results if result is not None], grid)
    return _rms(exact.points(at) - at) / grid.pixel


def _apart(before: Sequence[Result | None], after: Sequence[Result | None], grid: Grid) -> float:
    """Root mean square distance of two sets of maps, in pixels of ``grid``: the median over the images."""
    found = []
    for old, new in zip(before, after, strict=True):
        if old is not None and new is not None:
            at = _lattice(old.moving_grid)
            found.append(_rms(old.transform.points(at) - new.transform.points(at)) / grid.pixel)
    return float(np.median(found)) if found else 0.0


def _lattice(grid: Grid) -> Tensor:
    """Positions ``[N, D]`` evenly over a canvas, at most `NODES` per axis in 2D and as many in all in 3D."""
    most = NODES if grid.ndim == 2 else round(NODES ** (2 / 3))
    axes = [
        o + s * torch.linspace(0, n - 1, min(n, most), dtype=torch.float64)
        for o, s, n in zip(grid.origin, grid.spacing, grid.shape, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, grid.ndim)


def _pose(source: Tensor, target: Tensor) -> Tensor:
    """The rigid map ``[D+1, D+1]``, mirrored where that is nearer, that takes ``source`` ``[N, D]`` nearest to ``target``."""
    middle, onto = source.mean(dim=0), target.mean(dim=0)
    u, _, vh = torch.linalg.svd((target - onto).T @ (source - middle))
    linear = u @ vh
    out = torch.eye(source.shape[1] + 1, dtype=torch.float64)
    out[:-1, :-1], out[:-1, -1] = linear, onto - linear @ middle
    return out


def _affine(target: Tensor, source: Tensor) -> Tensor:
    """The affine map ``[D+1, D+1]`` that takes ``source`` ``[N, D]`` nearest to ``target``."""
    middle, onto = source.mean(dim=0), target.mean(dim=0)
    linear = torch.linalg.lstsq(source - middle, target - onto).solution.T
    out = torch.eye(source.shape[1] + 1, dtype=torch.float64)
    out[:-1, :-1], out[:-1, -1] = linear, onto - linear @ middle
    return out


def _rms(away: Tensor) -> float:
    return math.sqrt(float(away.square().sum(dim=-1).mean()))


# ---- the mean image -----------------------------------------------------------------------------------------------------


def blended(images: Sequence[Image], results: Sequence[Result | None], grid: Grid) -> tuple[Image, Image]:
    """Mean and variance of images carried onto ``grid``, each over those that reach there.

    Values are scaled so that every image has the quantiles `ENDS` of the first per channel: a stain that is stronger in one
    animal is no variance. Positions that no image reaches have weight 0.
    """
    total: tuple[Tensor, ...] | None = None
    ends: Tensor | None = None
    for image, result in zip(images, results, strict=True):
        if result is None:
            continue
        values = image.data.to(torch.float32)
        own = _ends(values)
        ends = own if ends is None else ends
        scale = (ends[1] - ends[0]) / (own[1] - own[0]).clamp(min=1e-12)
        plain = (values - _wide(own[0], values)) * _wide(scale, values) + _wide(ends[0], values)
        there = torch.ones(image.grid.shape) if image.weight is None else image.weight.to(torch.float32)
        carried = resample(image.replace(data=plain, weight=None), result.transform, grid).data
        reach = resample(image.replace(data=there[None], weight=None, channels=()), result.transform, grid, 0.0).data
        sums = (reach * carried, reach * carried**2, reach)
        total = sums if total is None else tuple(a + b for a, b in zip(total, sums, strict=True))
    assert total is not None
    summed, square, count = total
    safe = count.clamp(min=1e-6)
    mean = summed / safe
    variance = (square / safe - mean**2).clamp(min=0)
    first = next(image for image, result in zip(images, results, strict=True) if result is not None)
    weight = (count[0] > 0.5).to(torch.float32)
    plain_weight = None if bool((weight > 0).all()) else weight
    base = dataclasses.replace(
        first, data=mean, grid=grid, weight=plain_weight, reading=None, things=None, name="template"
    )
    return base, base.replace(data=variance, name="variance")


def _ends(values: Tensor) -> Tensor:
    """The quantiles `ENDS` ``[2, C]`` of the values ``[C, *S]``."""
    flat = values.reshape(values.shape[0], -1)
    flat = flat[:, :: max(1, flat.shape[1] // 100_000)]
    return torch.quantile(flat, torch.tensor(ENDS), dim=1)


def _wide(each: Tensor, values: Tensor) -> Tensor:
    return each.reshape(-1, *[1] * (values.ndim - 1))
