"""How evenly the fields are lit, from the fields themselves: what all of them have in common, and what two show of one place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from ..slides import tiles
from ..slides.mosaicked import ORDER, POWERS, Flat
from ..stack.posegraph import Link, carry
from .fields import View
from .overlap import Floats

LOOKED_AT = 96
"""Pixels along the longer side of the pictures from which the light is told; a lamp is smooth over a tenth of a field."""
SAME = 16.0
"""Pixels of such a picture that show one piece of tissue, of which therefore no more is known than of one."""
ROUNDS = 6
"""Times the residuals are weighed anew, so that bright cells count no more than the tissue around them."""
RIDGE = 1e-3
"""Pull of a term towards 0, over what one observation says of it: of few fields the steepest terms are not known."""
MIN_PAIRS = 8
"""Positions per axis of an overlap at which two fields are compared."""


def flat_field(fields: Sequence[View], links: Sequence[Link]) -> Flat:
    """The brightness of a field, per channel.

    Two sorts of observations: the logarithm of each field, up to its own mean (the tissue differs from field to field, the light
    does not); and the difference of the logarithms of two fields at one place of their overlap, in which the tissue falls out.
    Each sort is weighed by what it leaves over.

    Args:
        fields: the fields.
        links: their overlaps; those of weight 0 are left out.
    """
    channels = len(fields[0].pyramid.channels)
    pictures = [_small(one) for one in fields]
    used = [link for link in links if link.weight > 0]
    terms = [
        _fit(_alone([one[c] for one in pictures]), _together([one[c] for one in pictures], fields, used))
        for c in range(channels)
    ]
    return Flat(np.stack(terms))


def _small(one: View) -> Floats:
    """The logarithm ``[C, h, w]`` of a field at about `LOOKED_AT` pixels."""
    factor = max(1, round(max(one.grid.shape) / LOOKED_AT))
    level = tiles.choose(one.pyramid, float(factor))
    values = np.asarray(level.read(tuple(slice(0, n) for n in level.grid.shape)), dtype=np.float64)
    least = np.maximum(np.quantile(values, 0.02, axis=(1, 2), keepdims=True), 1e-6 * np.abs(values).max() + 1e-12)
    return np.asarray(np.log(np.clip(np.nan_to_num(values), least, None)))


def _rows(at: Floats) -> Floats:
    """The terms ``[N, P]`` at positions ``[N, 2]`` from -1 to 1."""
    return np.stack([at[:, 0] ** i * at[:, 1] ** j for i, j in POWERS], axis=1)


def _alone(pictures: Sequence[Floats]) -> tuple[Floats, Floats]:
    """Rows and right-hand sides of single fields, the mean of each taken out."""
    rows, right = [], []
    for one in pictures:
        h, w = one.shape
        at = np.stack(
            np.meshgrid((2 * np.arange(h) + 1) / h - 1, (2 * np.arange(w) + 1) / w - 1, indexing="ij"), axis=-1
        ).reshape(-1, 2)
        own = _rows(at)
        rows.append(own - own.mean(axis=0))
        right.append(one.ravel() - np.median(one))
    return np.concatenate(rows), np.concatenate(right)


def _together(pictures: Sequence[Floats], fields: Sequence[View], links: Sequence[Link]) -> tuple[Floats, Floats]:
    """Rows and right-hand sides of places that two fields show."""
    rows, right = [np.zeros((0, len(POWERS)))], [np.zeros(0)]
    for link in links:
        assert link.probes is not None
        low, high = link.probes.min(axis=0), link.probes.max(axis=0)
        lines = [np.linspace(a, b, 2 * MIN_PAIRS + 1)[1::2] for a, b in zip(low, high, strict=True)]
        there = np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1).reshape(-1, 2)
        here = carry(link.matrix, there)
        sides = []
        for k, at in ((link.fixed, here), (link.moving, there)):
            shape, small = np.array(fields[k].grid.shape), pictures[k]
            scale = np.array(small.shape) / shape
            seen = ndimage.map_coordinates(small, ((at + 0.5) * scale - 0.5).T, order=1, mode="nearest")
            sides.append((_rows((2 * at + 1) / shape - 1), seen))
        rows.append(sides[0][0] - sides[1][0])
        right.append(sides[0][1] - sides[1][1])
    return np.concatenate(rows), np.concatenate(right)


def _fit(*sorts: tuple[Floats, Floats]) -> Floats:
    """The terms ``[P]`` that explain all sorts of observations, each weighed by its residuals."""
    terms: Floats = np.zeros(len(POWERS))
    for _ in range(ROUNDS):
        normal, known = RIDGE * np.eye(len(POWERS)), np.zeros(len(POWERS))
        for k, (rows, right) in enumerate(sorts):
            if not len(right):
                continue
            left = right - rows @ terms
            spread = max(1.4826 * float(np.median(np.abs(left))), 1e-3)
            weight = 1 / (1 + (left / (2 * spread)) ** 2) / spread**2 / (SAME if k == 0 else 1.0)
            normal += rows.T @ (rows * weight[:, None])
            known += rows.T @ (right * weight)
        terms = np.asarray(np.linalg.solve(normal, known), dtype=np.float64)
    assert terms.shape == (((ORDER + 1) * (ORDER + 2)) // 2 - 1,)
    return terms
