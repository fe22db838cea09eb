"""Pairs of images and volumes with known maps, by kind and seed, and pairs that do not belong together."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

import regframe as rf

from . import glass, looks, maps, serial, sources
from .looks import Look, Picture
from .sources import Array, Mask, Pixels, Source, Texture

Data = rf.Image | rf.PointSet
Rng = np.random.Generator
T = TypeVar("T")

TRUTHS = 1500
"""Positions, about, at which a pair of images is judged."""
SMOOTH = 15.0
"""Pixels over which a displacement is averaged to say what a smooth map can attain of a cut one: a bend with a detail of
15 px is what sections ask for (METHOD.md, the seed's smoothness of 50 px divided by its order and grid)."""

DETAIL = 30.0
"""Pixels: the least that drawn bends are correlated over, `Recipe.bend`."""

LARGEST, SMALLEST = 800, 40
"""Pixels that the longer side of a scaled texture has at most, and the shorter one at least: a pair should take seconds."""


@dataclass(frozen=True)
class Made:
    """A pair and what only the judge knows.

    Args:
        kind: of `kinds.KINDS`.
        seed: with the kind it says all.
        fixed: stays where it is.
        moving: is brought onto it.
        q: fixed positions ``[N, D]`` in its unit where both sides show the same tissue; none where the two are unrelated.
        p: where they lie in ``moving``, in its unit.
        pixel: edge of the coarser side's pixel (for points: the room one has), in the unit of ``moving``; errors count in it.
        attainable: error in these pixels that the best map of the kind fitted leaves: how far neighbouring planes' anatomy
            is apart, jitter, what a smooth map leaves of a cut one.
        story: what was done, in words.
        sources: names of the textures and tables.
    """

    kind: str
    seed: int
    fixed: Data
    moving: Data
    q: Array
    p: Array
    pixel: float = 1.0
    attainable: float = 0.0
    story: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    @property
    def related(self) -> bool:
        """Whether the two belong together."""
        return len(self.q) > 0

    def exchanged(self, ratio: float) -> Made:
        """Fixed and moving exchanged; ``ratio``: length in ``fixed`` of what has length 1 in ``moving``."""
        return dataclasses.replace(
            self, fixed=self.moving, moving=self.fixed, q=self.p, p=self.q, pixel=self.pixel * ratio,
            story=(*self.story, "exchanged"),
        )  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """Two textures pixel on pixel.

    Args:
        fixed: that of the fixed side.
        moving: that of the moving one.
        apart: pixels that their anatomy is apart, in the median.
        upscale: most that they may be enlarged.
    """

    fixed: Texture
    moving: Texture
    apart: float = 0.0
    upscale: float = 1.2


Draw = Callable[[Rng, Path | None], Drawn]


def any_source(rng: Rng, data: Path | None) -> Source:
    """Any picture; every fourth is a plane of a volume where there are volumes."""
    if data is None or rng.random() >= 0.25:
        return _choice(rng, sources.pictures(data))
    which = int(rng.integers(len(sources.PLANES)))
    name, axis, span = sources.PLANES[which]
    number = int(rng.integers(*span))
    return Source(f"{name} {axis}:{number}", f"{name} brain", lambda: sources.planes(data, which, number, 0)[0])


def any_picture(rng: Rng, data: Path | None) -> Drawn:
    """One picture on both sides."""
    texture = any_source(rng, data).read()
    return Drawn(texture, texture, upscale=1.2 if max(texture.shape) > 300 else 2.0)


def stained_picture(rng: Rng, data: Path | None) -> Drawn:
    """One picture of a stained section on both sides."""
    texture = _choice(rng, [s for s in sources.pictures(data) if s.stained]).read()
    return Drawn(texture, texture)


def neighbours(rng: Rng, data: Path | None, apart: tuple[int, int] = (1, 2)) -> Drawn:
    """Two planes of a volume, ``apart`` planes from each other; as far as that is what anatomy may move in the plane (slanting
    by 45° across it), so half of it is taken for the median."""
    assert data is not None
    which = int(rng.integers(len(sources.PLANES)))
    low, high = sources.PLANES[which][2]
    step = int(rng.integers(apart[0], apart[1] + 1))
    fixed, moving = sources.planes(data, which, int(rng.integers(low, high)), step)
    return Drawn(fixed, moving, step / 2, upscale=2.0)


def serial_sections(rng: Rng, data: Path | None) -> Drawn:
    """Two consecutive Nissl sections."""
    assert data is not None
    fixed, moving, apart = serial.draw(rng, data)
    return Drawn(fixed, moving, apart, upscale=2.0)


def density(rng: Rng, data: Path | None) -> Drawn:
    """The cell density of a mouse brain, on both sides."""
    assert data is not None
    texture = _choice(rng, sources.densities(data))
    return Drawn(texture, texture)


def section_on_glass(rng: Rng, data: Path | None) -> Drawn:
    """A whole section on its slide, on both sides."""
    texture = glass.section(rng, data)
    return Drawn(texture, texture, upscale=1.0)


def _choice(rng: Rng, of: Sequence[T]) -> T:
    return of[int(rng.integers(len(of)))]


@dataclass(frozen=True)
class Recipe:
    """How a kind of image pair is made. Ranges are drawn from uniformly.

    Args:
        draw: the textures.
        turn: most that the moving side is turned, degrees.
        mirror: chance of a mirrored one, where the texture can tell.
        scale: range of log2 of the moving side's pixels per fixed pixel.
        bend: range of the largest bend, px, correlated over 30–90 px; none where it is 0.
        cuts: names among ``pieces``, ``tear``, ``fold``; each with a chance of a half, but one at least.
        crop: whether the sides show different parts.
        fixed_looks: what happens to the fixed side.
        looks: what happens to the moving side.
        some: whether each of ``looks`` happens only with a chance of a half.
        declared: chance that both sides state their pixel size.
        side: range of the longer side of the fixed image, px.
        glass: whether the sides are slides of one format, with what is printed on them and lies on them.
    """

    draw: Draw = any_picture
    turn: float = 180.0
    mirror: float = 0.0
    scale: tuple[float, float] = (0.0, 0.0)
    bend: tuple[float, float] = (0.0, 0.0)
    cuts: tuple[str, ...] = ()
    crop: bool = False
    fixed_looks: tuple[Look, ...] = ()
    looks: tuple[Look, ...] = (looks.tone,)
    some: bool = False
    declared: float = 0.3
    side: tuple[int, int] = (320, 520)
    glass: bool = False


@dataclass
class _Scene:
    """An image pair under way."""

    rng: Rng
    recipe: Recipe
    data: Path | None
    story: list[str] = field(default_factory=list)

    def windows(self, drawn: Drawn) -> tuple[Drawn, tuple[Array, Array], tuple[Texture, Texture]]:
        """The textures at working size, where each side's window begins in them, and the windows."""
        rng = self.rng
        side = int(rng.integers(*self.recipe.side)) * (1.5 if self.recipe.crop else 1.0)
        whole = min(side / max(drawn.fixed.shape), drawn.upscale)
        factor = whole if whole >= 1 else float(np.exp(rng.uniform(math.log(whole), math.log(min(1.0, 2 * whole)))))
        same = drawn.fixed is drawn.moving
        fixed = drawn.fixed.resized(factor)
        size = tuple(min(n, round(side)) for n in fixed.shape)
        start = self.fullest(fixed, size)
        moving = None if same else drawn.moving.resized(factor).cropped(start, size)
        fixed = fixed.cropped(start, size)
        moving = moving or fixed
        drawn = Drawn(fixed, moving, drawn.apart * factor)
        self.story.append(f"{fixed.name} {'×'.join(map(str, size))} at {factor:.2f}")
        if not self.recipe.crop:
            nought = np.zeros(2)
            return drawn, (nought, nought), (fixed, moving)
        a, b, shapes = self.crops(fixed)
        return drawn, (np.array(a, float), np.array(b, float)), (
            fixed.cropped(a, shapes[0]), moving.cropped(b, shapes[1]),
        )  # fmt: skip

    def fullest(self, texture: Texture, size: tuple[int, ...]) -> tuple[int, ...]:
        """The start of that of six random windows that shows most tissue."""
        if size == texture.shape:
            return (0,) * len(size)
        mask = texture.tissue_mask()
        starts = [
            tuple(int(self.rng.integers(n - m + 1)) for n, m in zip(mask.shape, size, strict=True)) for _ in range(6)
        ]
        return max(starts, key=lambda s: mask[s[0] : s[0] + size[0], s[1] : s[1] + size[1]].sum())

    def crops(self, texture: Texture) -> tuple[tuple[int, ...], tuple[int, ...], tuple[tuple[int, ...], ...]]:
        """Two windows: a part (25–60 % of the area) and the whole, or two that share 35–75 % of theirs."""
        rng, size = self.rng, texture.shape
        if rng.random() < 0.5:
            part = tuple(round(n * math.sqrt(rng.uniform(0.25, 0.6))) for n in size)
            return (0,) * len(size), self.fullest(texture, part), (size, part)
        axis = int(rng.integers(2))
        share = rng.uniform(0.35, 0.75)
        part = tuple(round(n / (2 - share)) if d == axis else n for d, n in enumerate(size))
        self.story.append(f"shares {share:.2f}")
        start = tuple(n - m for n, m in zip(size, part, strict=True))
        return (0,) * len(size), start, (part, part)

    def moved(self, texture: Texture) -> tuple[maps.Chain, tuple[int, ...], float]:
        """The moving side's map from its texture, canvas and scale."""
        rng, recipe, out = self.rng, self.recipe, []
        if recipe.bend[1]:
            size, sigma = rng.uniform(*recipe.bend), rng.uniform(DETAIL, 3 * DETAIL)
            out.append(maps.bend(rng, texture.shape, size, sigma))
            self.story.append(f"bent by {size:.1f} px over {sigma:.0f}")
        out += self.cut(texture)
        turn, mirror = math.radians(rng.uniform(-recipe.turn, recipe.turn)), rng.random() < recipe.mirror
        mirror = mirror and not texture.symmetric
        scale = 2.0 ** rng.uniform(*recipe.scale)
        scale *= min(1.0, LARGEST / (scale * max(texture.shape)))
        scale = max(scale, min(1.0, SMALLEST / min(texture.shape)))
        matrix = scale * maps.rotation(turn) @ np.diag([1.0, -1.0 if mirror else 1.0])
        last, canvas = maps.pose(matrix, texture.shape, rng.uniform(-0.1, 0.1, 2))
        if recipe.glass:
            last, canvas = maps.held(matrix, texture.shape, rng.uniform(-0.08, 0.08, 2))
        self.story.append(f"{math.degrees(turn):.0f}°{' mirrored' if mirror else ''} ×{scale:.2f}")
        return maps.Chain((*out, last)), canvas, scale

    def cut(self, texture: Texture) -> list[maps.Map]:
        """Tears, folds and pieces: 4–20 px of gap and up to 4°, wedges of 1–4°, strips of 4–14 px."""
        rng, names = self.rng, self.recipe.cuts
        chosen = [n for n in names if rng.random() < 0.5] or list(names[:1])
        size, out = np.array(texture.shape, float), []
        for name in chosen:
            angle = rng.uniform(0, 2 * math.pi)
            normal = np.array([math.sin(angle), math.cos(angle)])
            point = size * rng.uniform(0.35, 0.65, 2)
            one: maps.Map
            if name == "pieces":
                shift = normal * rng.uniform(4, 20) + normal[::-1] * [-1, 1] * rng.uniform(-8, 8)
                one = maps.Pieces(
                    point, normal, math.radians(rng.uniform(-4, 4)), shift, point + normal * size.mean() / 4
                )
            elif name == "tear":
                one = maps.Tear(point, angle, math.radians(rng.uniform(1, 4)))
            else:
                one = maps.Fold(point, normal, rng.uniform(4, 14))
            out.append(one)
        self.story += chosen
        return out

    def picture(self, data: Pixels, seen: Mask, texture: Texture, which: tuple[Look, ...], some: bool) -> Picture:
        """What becomes of a rendered side."""
        other = None
        if looks.foreign in which:
            stranger = _choice(self.rng, [s for s in sources.pictures(self.data) if s.tissue != texture.tissue]).read()
            other = stranger.resized(min(1.0, 400 / max(stranger.shape)))
        picture = Picture(data, seen, texture.ground(), texture.stained, other)
        chosen = [look for look in which if not some or self.rng.random() < 0.5] or list(which[:1])
        for look in chosen:
            picture = look(self.rng, picture)
        self.story += [look.__name__ for look in chosen]
        return picture

    def make(self, kind: str, seed: int) -> Made:
        """The whole pair."""
        rng, recipe = self.rng, self.recipe
        source = recipe.draw(rng, self.data)
        while recipe.crop and source.fixed.symmetric:  # both halves of such a picture are right places for a crop
            source = recipe.draw(rng, self.data)
        drawn, (a, b), (first, second) = self.windows(source)
        chain, canvas, scale = self.moved(second)
        fixed = self.picture(first.data, np.ones(first.shape, bool), first, recipe.fixed_looks, False)
        raw, inside = maps.render(second, chain, canvas, 1 / scale)
        raw, inside = creased(raw, inside, chain)
        moving = self.picture(raw, inside, second, recipe.looks, recipe.some)
        if recipe.glass:
            fixed, moving, what = glass.on_glass(rng, fixed, moving)
            self.story.append(what)
        mask = drawn.fixed.tissue_mask()
        at = _lattice(mask if drawn.moving is drawn.fixed else mask & drawn.moving.tissue_mask())
        q, p = at - a, chain.push(at - b)
        with np.errstate(invalid="ignore"):
            back = np.linalg.norm(chain.pull(p) - (at - b), axis=1)
            fine = (back < 0.01) & shows(fixed.seen, q) & shows(moving.seen, p)
        apart = drawn.apart + counting_error(first, fixed.counts, moving.counts)
        attainable = (apart + (cut_residual(q[fine], p[fine]) / scale if chain.cut else 0.0)) * min(1.0, scale)
        declared = rng.random() < recipe.declared
        units = (first.spacing, first.spacing / scale) if declared else (1.0, 1.0)
        self.story += ["sizes stated"] if declared else []
        images = [
            _image(looks.depth(rng, picture.data), unit, declared)
            for picture, unit in zip((fixed, moving), units, strict=True)
        ]
        q, p = q[fine] * units[0], p[fine] * units[1]
        made = Made(kind, seed, images[0], images[1], q, p, units[1] * max(1.0, scale), attainable,
                    sources=tuple(dict.fromkeys((first.name, second.name))))  # fmt: skip
        swapped = made.exchanged(units[0] / (units[1] * scale)) if rng.random() < 0.5 else made
        return dataclasses.replace(swapped, story=(*self.story, *swapped.story))


def counting_error(texture: Texture, fixed: float, moving: float) -> float:
    """Median error (px) that counting leaves: the Cramér–Rao bound of a shift seen through a Gaussian window of `DETAIL`.

    Args:
        texture: the expected density, up to a factor.
        fixed: cells that a pixel of value 1 was expected to hold on the fixed side; 0 where nothing was counted.
        moving: that of the moving side.
    """
    if not fixed or not moving:
        return 0.0
    density = np.maximum(texture.data[0].astype(np.float64), 1e-3)
    slope = sum(g**2 for g in np.gradient(density)) / 2  # of one axis
    information = slope / density / (1 / fixed + 1 / moving)
    seen = gaussian_filter(information, DETAIL) * 2 * math.pi * DETAIL**2
    return float(1.177 * np.median(1 / np.sqrt(np.maximum(seen, 1e-6))[texture.tissue_mask()]))


def creased(data: Pixels, inside: Mask, chain: maps.Chain) -> tuple[Pixels, Mask]:
    """A rendered picture, darkened where folded tissue lies twice; that is no longer seen as it was."""
    for number, one in enumerate(chain.maps):
        if isinstance(one, maps.Fold):
            at = maps.Chain(chain.maps[number:]).pull(maps.indices(inside.shape))
            with np.errstate(invalid="ignore"):
                beyond = np.abs((at - one.point) @ one.normal - one.width / 2)
                twice = ((beyond >= one.width / 2) & (beyond < one.width)).reshape(inside.shape) & inside
            data, inside = np.where(twice, data**2, data), inside & ~twice
    return data, inside


def shows(seen: Mask, at: Array) -> Mask:
    """Whether the pixel nearest to each position ``[N, D]`` lies in the picture and shows its tissue."""
    index = np.round(np.nan_to_num(at, nan=-1e6)).astype(int)
    size = np.array(seen.shape)
    within = ((index >= 0) & (index < size)).all(axis=1)
    return np.asarray(within & seen[tuple(np.clip(index, 0, size - 1).T)])


def cut_residual(q: Array, p: Array) -> float:
    """What a map whose displacement varies over `SMOOTH` fixed pixels leaves of the truth, in the median: that against its
    Gaussian average, the best affine map taken out."""
    ones = np.column_stack([q, np.ones(len(q))])
    rest = p - ones @ np.linalg.lstsq(ones, p, rcond=None)[0]
    away = ((q[:, None] - q[None]) ** 2).sum(-1)
    weight = np.exp(-away / (2 * SMOOTH**2))
    smooth = weight @ rest / weight.sum(axis=1, keepdims=True)
    return float(np.median(np.linalg.norm(rest - smooth, axis=1)))


def _lattice(mask: Mask) -> Array:
    """About `TRUTHS` positions on a regular lattice within ``mask``."""
    step = max(1.0, (mask.sum() / TRUTHS) ** (1 / mask.ndim))
    ticks = [np.arange(step / 2, n - 1, step) for n in mask.shape]
    at = np.stack(np.meshgrid(*ticks, indexing="ij"), -1).reshape(-1, mask.ndim)
    return at[shows(mask, at)]


def _image(data: Array | Pixels, spacing: float, declared: bool) -> rf.Image:
    axes = "yxc" if len(data) == 3 else "yx"
    values = np.ascontiguousarray(np.moveaxis(data, 0, -1) if len(data) == 3 else data[0])
    if not declared:
        return rf.Image.from_array(values, axes)
    return rf.Image.from_array(values, axes, (spacing, spacing), (0.0, 0.0), "µm")


def seeded(kind: str, seed: int) -> Rng:
    """The random numbers of a pair."""
    return np.random.default_rng([zlib.crc32(kind.encode()), seed])


def image(kind: str, seed: int, data: Path | None, recipe: Recipe) -> Made:
    """A pair of images."""
    for attempt in range(20):  # of a draw that shares next to nothing another one is made
        made = _Scene(np.random.default_rng([zlib.crc32(kind.encode()), seed, attempt]), recipe, data).make(kind, seed)
        if len(made.q) >= 60:
            break
    return made


def volumes(kind: str, seed: int, data: Path | None, most: float) -> Made:
    """An MR volume of 45–66 voxels along its longest side and itself turned by up to ``most`` degrees about any axis, shifted
    by up to 8 % of its size, bent by 0.5–3 voxels, of another contrast, with noise; sizes not stated.
    """
    assert data is not None
    rng = seeded(kind, seed)
    name, factor = _choice(rng, [("mouse", 0.2), ("mouse", 0.25), ("human", 0.25)])
    texture = sources.small_volume(data, name, factor)
    size = rng.uniform(0.5, 3.0)
    bent = maps.bend(rng, texture.shape, size, rng.uniform(8, 20))
    matrix = maps.rotation3(rng, math.radians(most))
    last, _ = maps.pose(matrix, texture.shape, rng.uniform(-0.08, 0.08, 3))
    chain = maps.Chain((bent, last))
    canvas = tuple(int(n) for n in np.ceil(last.push(np.array([[n / 2 for n in texture.shape]]))[0] * 2))
    canvas = tuple(max(n, m) for n, m in zip(canvas, texture.shape, strict=True))
    raw, inside = maps.render(texture, chain, canvas, 1.0)
    moving = Picture(raw, inside, texture.ground(), False)
    for look in (looks.contrast, looks.noise):
        moving = look(rng, moving)
    at = _lattice(texture.tissue_mask())
    p = chain.push(at)
    fine = shows(moving.seen, p)
    angle = math.degrees(math.acos(np.clip((np.trace(matrix) - 1) / 2, -1, 1)))
    images = [rf.Image.from_array(values[0], "zyx") for values in (texture.data, moving.data)]
    story = (name, f"turned by {angle:.0f}°", f"bent by {size:.1f}")
    return Made(kind, seed, images[0], images[1], at[fine], p[fine], story=story, sources=(name,))


def strange_volumes(kind: str, seed: int, data: Path | None) -> Made:
    """The MR volumes of a mouse's and of a human's brain, of 45–66 voxels along their longest sides, one of them turned at
    random; either may be the fixed one; noise on the moving one; sizes not stated."""
    assert data is not None
    rng = seeded(kind, seed)
    textures = [sources.small_volume(data, "mouse", rng.choice([0.2, 0.25])), sources.small_volume(data, "human", 0.25)]
    fixed, other = textures if rng.random() < 0.5 else textures[::-1]
    last, canvas = maps.pose(maps.rotation3(rng, math.pi), other.shape, rng.uniform(-0.08, 0.08, 3))
    raw, inside = maps.render(other, maps.Chain((last,)), canvas, 1.0)
    moving = looks.noise(rng, Picture(raw, inside, other.ground(), False))
    images = [rf.Image.from_array(values[0], "zyx") for values in (fixed.data, moving.data)]
    none = np.zeros((0, 3))
    return Made(kind, seed, images[0], images[1], none, none, sources=(fixed.name, other.name))


def unrelated(kind: str, seed: int, data: Path | None) -> Made:
    """Two pictures of different tissues; in every second pair both stained or both not; every fourth side is turned."""
    rng = seeded(kind, seed)
    scene = _Scene(rng, Recipe(looks=(looks.tone, looks.noise), some=True), data)
    first, alike = any_source(rng, data), rng.random() < 0.5
    for _ in range(200):
        second = any_source(rng, data)
        if second.tissue != first.tissue and (not alike or second.stained == first.stained or data is None):
            break
    sides = []
    for texture in (first.read(), second.read()):
        window = scene.windows(Drawn(texture, texture))[2][0]
        chain, canvas, scale = scene.moved(window)
        raw, inside = maps.render(window, chain, canvas, 1 / scale) if rng.random() < 0.25 else (window.data, None)
        seen = np.ones(raw.shape[1:], bool) if inside is None else inside
        picture = scene.picture(raw, seen, window, scene.recipe.looks, True)
        sides.append(_image(looks.depth(rng, picture.data), 1.0, False))
    none = np.zeros((0, 2))
    return Made(kind, seed, sides[0], sides[1], none, none, story=tuple(scene.story), sources=(first.name, second.name))


def strange_slides(kind: str, seed: int, data: Path | None) -> Made:
    """Sections of different tissues, each turned on its slide; in most pairs both slides bear one print."""
    rng = seeded(kind, seed)
    scene = _Scene(rng, Recipe(glass=True, looks=(looks.stain, looks.tone)), data)
    first = second = glass.section(rng, data)
    while second.tissue == first.tissue:
        second = glass.section(rng, data)
    textures = (first, second.on(first.shape))
    pictures = []
    for texture in textures:
        chain, canvas, _ = scene.moved(texture)
        raw, inside = maps.render(texture, chain, canvas, 1.0)
        pictures.append(scene.picture(raw, inside, texture, scene.recipe.looks, False))
    fixed, moving, what = glass.on_glass(rng, *pictures)
    sides = [_image(looks.depth(rng, picture.data), 1.0, False) for picture in (fixed, moving)]
    none = np.zeros((0, 2))
    return Made(
        kind, seed, sides[0], sides[1], none, none, story=(*scene.story, what), sources=(first.name, second.name)
    )


def sampled(image: rf.Image, at: Array, sigma: float = 1.0) -> Array:
    """Values ``[N, C]`` of an image, blurred by ``sigma`` px, at positions ``[N, D]`` in its unit."""
    index = (at - np.array(image.grid.origin)) / np.array(image.grid.spacing)
    bands = image.data.double().numpy()
    return np.stack([map_coordinates(gaussian_filter(b, sigma), index.T, order=1, mode="nearest") for b in bands], 1)
