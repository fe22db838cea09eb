"""The mean of many images: a space that favours none of them, with the mean and the variance of what they show there."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import Grid, Image
from ..maps.affine import Affine
from ..maps.base import Transform
from ..maps.displacement import Displacement
from ..maps.resample import resample
from ..maps.sequence import in_a_row
from ..result import Result
from .pairs import Pair, nearest

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
        image: the mean of what they show, on the canvas of the image whose pose it has.
        variance: the variance of what they show, per pixel, in the same values squared, on the same canvas.
        results: one `Result` per image, from its own space to that of the mean; None for one that could not be placed.
        bias_px: root mean square, in pixels, of the mean displacement of all images: 0 where none is favoured.
        shape_px: how far the mean shape lies from that of the image whose pose it has, in pixels (root mean square).
    """

    image: Image
    variance: Image
    results: tuple[Result | None, ...]
    bias_px: float
    shape_px: float


def template(
    images: Sequence[Image], start: Sequence[Result | None], reference: int, pairs: Sequence[Pair]
) -> Template:
    """The mean of images all of which were registered to each other.

    Each image is brought to the mean of where its pairs say it lies in every other image, itself included, all of these in one
    pose. What a pair adds of its own, and what the noise of the other image does, averages out over the pairs; of a single
    reference both stay in every map. Then the mean of the maps' shapes is taken out of all of them, so that what is left over,
    averaged over the images, is the identity (Guimond et al. 2000). Turns, shifts and mirrors take no part in the mean: the pose
    is that of ``reference``. Sizes and shears do.

    Registering all images to the mean once more, as is often done, was tried: on known bends (`benchmarks/templates.py`) it made
    the maps worse, by 23 % with noise and 61 % without: the mean is smoother than any image, and holds some of the noise of each.

    Args:
        images: two or more of one unit.
        start: a result per image, to the space of ``reference``; None for one that takes no part. It also stands for pairs that
            there are not.
        reference: number of the image whose canvas and pose the mean gets.
        pairs: registrations of two of the images.
    """
    grid = images[reference].grid
    maps = {k: result.transform for k, result in enumerate(start) if result is not None}
    poses = {k: _nearest(at := _lattice(images[k].grid), each.points(at), True) for k, each in maps.items()}
    known: dict[tuple[int, int], Transform] = {}
    for pair in pairs:
        if pair.result is not None and pair.moving in maps and pair.fixed in maps:
            known.setdefault((pair.moving, pair.fixed), pair.result.transform)
            known.setdefault((pair.fixed, pair.moving), pair.result.transform.inverse())
    everywhere: dict[int, Transform] = {}
    for k, own in maps.items():
        to = [known.get((k, j)) or in_a_row([own, maps[j].inverse()]) for j in maps if j != k]
        same = Affine.identity(grid.ndim, grid.unit)
        everywhere[k] = _Mean((same, *to), (poses[k], *(poses[j] for j in maps if j != k)), grid.unit)
    found = [None if result is None else _with(result, everywhere[k], grid) for k, result in enumerate(start)]
    step = _step(found, grid)
    found = [None if result is None else _with(result, in_a_row([result.transform, step]), grid) for result in found]
    mean, variance = blended(images, found, grid)
    at = _lattice(grid)
    shape = _rms(everywhere[reference].points(at) - at) / grid.pixel
    return Template(mean, variance, tuple(found), bias(found, grid), shape)


def _with(result: Result, whole: Transform, grid: Grid) -> Result:
    """A result with another map, as an affine one and a field."""
    inside = _lattice(result.moving_grid)
    affine = Affine(_nearest(inside, there := whole.points(inside), False), result.moving_grid.unit, grid.unit)
    straight = float((affine.points(inside) - there).norm(dim=-1).max()) < EXACT * grid.pixel
    transform = affine if straight else in_a_row([affine, _field(whole, affine, grid)])
    return dataclasses.replace(result, transform=transform, affine=affine, fixed_grid=grid, history=[])


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


def _shape_of(results: Sequence[Result | None], grid: Grid) -> _Mean:
    """The mean shape of images, from the space that their maps lead to."""
    back = tuple(result.transform.inverse() for result in results if result is not None)
    at = _lattice(grid)
    return _Mean(back, tuple(_nearest(each.points(at), at, True) for each in back), grid.unit)


def _step(results: Sequence[Result | None], grid: Grid) -> Transform:
    """What takes the mean shape out of maps: an affine one where it is, else a field."""
    exact, at = _shape_of(results, grid), _lattice(grid)
    there = exact.points(at)
    straight = Affine(_nearest(at, there, False), grid.unit, grid.unit)
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
    return _rms(_shape_of(results, grid).points(at) - at) / grid.pixel


def _lattice(grid: Grid) -> Tensor:
    """Positions ``[N, D]`` evenly over a canvas, at most `NODES` per axis in 2D and as many in all in 3D."""
    most = NODES if grid.ndim == 2 else round(NODES ** (2 / 3))
    axes = [
        o + s * torch.linspace(0, n - 1, min(n, most), dtype=torch.float64)
        for o, s, n in zip(grid.origin, grid.spacing, grid.shape, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, grid.ndim)


def _nearest(source: Tensor, target: Tensor, rigid: bool) -> Tensor:
    return torch.from_numpy(nearest(source.numpy(), target.numpy(), rigid))


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
