"""Whole sections on their slides: ragged pieces of stained tissue on bare glass, what is printed on the glass and lies on it.

Slides of one maker bear the same print in the same place (frames of dots, labels, codes), whatever way the tissue lies on them.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from scipy.ndimage import binary_dilation, gaussian_filter, map_coordinates

from . import sources
from .looks import Picture, blob
from .sources import Array, Mask, Pixels, Texture

Rng = np.random.Generator

LONGEST = (320, 560)
"""Pixels of the longer side of a slide."""

SHARED, OWN = 0.6, 0.85
"""Chance that both slides bear one print; that chance and the one that each bears its own. Else the glass is blank."""


def section(rng: Rng, data: Path | None) -> Texture:
    """A stained section on glass: a ragged outline of 40–95 % of a picture, on a slide 1.2–2 times as long and as wide."""
    pictures = [source for source in sources.pictures(data) if source.stained]
    whole = pictures[int(rng.integers(len(pictures)))].read()
    longest = int(rng.integers(*LONGEST))
    room = rng.uniform(1.2, 2.0, 2)
    texture = whole.resized(min(1.2, longest / max(n * r for n, r in zip(whole.shape, room, strict=True))))
    kept = blob(rng, texture.shape, 0.4, 0.95)
    ground = texture.ground()
    soft = gaussian_filter(kept.astype(np.float32), 0.7)
    data_ = texture.data * soft + ground[:, None, None] * (1 - soft)
    spare = [round(n * (r - 1)) for n, r in zip(texture.shape, room, strict=True)]
    before = [int(rng.integers(n // 4, n - n // 4 + 1)) for n in spare]
    shape = tuple(n + s for n, s in zip(texture.shape, spare, strict=True))
    laid = np.broadcast_to(ground[:, None, None], (len(ground), *shape)).copy()
    laid[:, *(slice(b, b + n) for b, n in zip(before, texture.shape, strict=True))] = data_
    return Texture(whole.name, whole.tissue, laid.astype(np.float32), texture.spacing, True, whole.symmetric)


def dots(rng: Rng, shape: tuple[int, ...]) -> Mask:
    """A frame of round dots, as capture areas are framed by."""
    out = np.zeros(shape, bool)
    size = min(shape)
    step, radius, inset = (size * rng.uniform(*span) for span in ((0.03, 0.07), (0.006, 0.014), (0.02, 0.08)))
    corners = np.array([[inset, inset], [inset, shape[1] - inset], [shape[0] - inset, shape[1] - inset],
                        [shape[0] - inset, inset]])  # fmt: skip
    at = np.indices(shape).reshape(2, -1).T
    for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        for t in np.arange(0, 1, step / np.linalg.norm(b - a)):
            if rng.random() < 0.9:
                centre = a + t * (b - a)
                low, high = np.maximum(centre - radius - 2, 0).astype(int), (centre + radius + 2).astype(int)
                box = tuple(slice(x, y) for x, y in zip(low, high, strict=True))
                near = at.reshape(*shape, 2)[box]
                out[box] |= np.linalg.norm(near - centre, axis=-1) <= max(radius, 1.2)
    return out


def label(rng: Rng, shape: tuple[int, ...]) -> Mask:
    """One to three lines of strokes like writing, along one border."""
    out = np.zeros(shape, bool)
    height = max(6, round(min(shape) * rng.uniform(0.03, 0.07)))
    top = int(rng.integers(2, max(3, shape[0] // 8))) if rng.random() < 0.5 else int(shape[0] * rng.uniform(0.82, 0.9))
    for line in range(int(rng.integers(1, 4))):
        x, y = int(shape[1] * rng.uniform(0.03, 0.2)), top + line * round(1.5 * height)
        for _ in range(int(rng.integers(5, 16))):
            glyph = rng.random((5, 3)) < 0.5
            big = np.kron(glyph, np.ones((max(1, height // 5), max(1, height // 6)), bool))
            part = out[y : y + big.shape[0], x : x + big.shape[1]]
            part |= big[: part.shape[0], : part.shape[1]]
            x += big.shape[1] + max(2, height // 4)
    return out


def code(rng: Rng, shape: tuple[int, ...]) -> Mask:
    """A square code of 8–16 cells a side in one corner, or a bar code along a border."""
    out = np.zeros(shape, bool)
    cells = int(rng.integers(8, 17))
    edge = max(2, round(min(shape) * rng.uniform(0.1, 0.2) / cells))
    pattern = rng.random((cells, cells)) < 0.5
    if rng.random() < 0.4:
        pattern = np.repeat(rng.random((1, 3 * cells)) < 0.5, cells, axis=0)
        edge = max(1, edge // 2)
    big = np.kron(pattern, np.ones((edge, edge), bool))[: shape[0] - 4, : shape[1] - 4]
    corner = [2 if rng.random() < 0.5 else n - m - 2 for n, m in zip(shape, big.shape, strict=True)]
    out[corner[0] : corner[0] + big.shape[0], corner[1] : corner[1] + big.shape[1]] = big
    return out


def line(rng: Rng, shape: tuple[int, ...]) -> Mask:
    """A rectangle around the middle of the slide, a few pixels wide: the edge of a coverslip or a printed window."""
    out = np.zeros(shape, bool)
    inset = [n * rng.uniform(0.01, 0.1) for n in shape]
    low, high = [int(i) for i in inset], [int(n - i) for n, i in zip(shape, inset, strict=True)]
    out[low[0] : high[0], [low[1], high[1] - 1]] = True
    out[[low[0], high[0] - 1], low[1] : high[1]] = True
    return binary_dilation(out, iterations=int(rng.integers(1, 3)))


def pattern(rng: Rng, shape: tuple[int, ...]) -> Mask:
    """One to three of `dots`, `label`, `code` and `line`."""
    made = [dots, label, code, line]
    chosen = rng.permutation(len(made))[: int(rng.integers(1, 4))]
    return np.logical_or.reduce([made[i](rng, shape) for i in chosen])


def stamped(rng: Rng, picture: Picture, where: Mask, colour: Array) -> Picture:
    """The picture with a print on it, that lies up to 2 px off its place, as slides do in their holders."""
    at = np.indices(where.shape) - rng.uniform(-2, 2, 2)[:, None, None]
    strength = map_coordinates(gaussian_filter(where.astype(np.float32), 0.5), at, order=1, mode="constant")
    data = picture.data * (1 - strength) + colour[:, None, None] * strength
    covered = picture.without(strength > 0.2, picture.data)
    return covered.with_data(data)


def dust(rng: Rng, picture: Picture) -> Picture:
    """0–12 specks of 1–3 px, and the glass' own light: a slope of up to 6 %, noise of 0.003–0.01."""
    shape = picture.seen.shape
    specks = np.zeros(shape, bool)
    number = int(rng.integers(0, 13))
    specks[tuple(rng.integers(n, size=number) for n in shape)] = True
    out = picture.without(
        binary_dilation(specks, iterations=int(rng.integers(1, 4))), np.float32(rng.uniform(0.1, 0.5))
    )
    angle, slope = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.06)
    y, x = (np.linspace(-1, 1, n) for n in shape)
    shade = 1 - slope * (1 + np.sin(angle) * y[:, None] + np.cos(angle) * x[None]) / 2
    return out.with_data(out.data * shade + rng.uniform(0.003, 0.01) * rng.standard_normal(out.data.shape))


def balanced(rng: Rng, picture: Picture) -> Picture:
    """As scanners do: glass becomes 0.9–0.97 of white, its channels up to 0.02 apart from that; a stain tints it otherwise."""
    glass = np.median(picture.data[:, *np.nonzero(rim(picture.seen.shape))], axis=1)
    white = rng.uniform(0.9, 0.97) + rng.uniform(-0.02, 0.02, 3)
    return picture.with_data(picture.data * (white / np.maximum(glass, 0.1))[:, None, None])


def rim(shape: tuple[int, ...]) -> Mask:
    """The outermost pixels."""
    out = np.ones(shape, bool)
    out[1:-1, 1:-1] = False
    return out


def on_glass(rng: Rng, fixed: Picture, moving: Picture) -> tuple[Picture, Picture, str]:
    """Both sides with their prints and dust, and what was done in a word."""
    fixed, moving = balanced(rng, fixed), balanced(rng, moving)
    chance = rng.random()
    what = "one print" if chance < SHARED else "own prints" if chance < OWN else "no print"
    if what != "no print":
        state = rng.spawn(1)[0] if what == "own prints" else None
        shape = tuple(max(n, m) for n, m in zip(fixed.seen.shape, moving.seen.shape, strict=True))
        first = pattern(rng, shape)
        second = first if state is None else pattern(state, shape)
        inks: list[Pixels] = [np.full(3, v, np.float32) for v in rng.uniform(0.05, 0.6, 2)]
        inks[1] = inks[0] if rng.random() < 0.7 else inks[1]
        fixed = stamped(rng, fixed, first[: fixed.seen.shape[0], : fixed.seen.shape[1]], inks[0])
        moving = stamped(rng, moving, second[: moving.seen.shape[0], : moving.seen.shape[1]], inks[1])
    return dust(rng, fixed), dust(rng, moving), what
