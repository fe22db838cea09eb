"""Pictures that hold counts: which ones are taken for such, and what that gains."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import regframe as rf
from regframe.solvers.counts import SIGMA, counting

Array = NDArray[np.float64]


def drawn(seed: int, size: int = 160, most: float = 1.0) -> tuple[Array, Array, Array]:
    """Counts of other cells of one tissue, the second ones bent and turned; and the map, at places of the first."""
    rng, blobs = np.random.default_rng(seed), np.random.default_rng(7).uniform(0.15, 0.85, (25, 2)) * size
    at = rng.uniform(0, size, (int(6 * most * size**2), 2))
    near = np.exp(-((at[:, None] - blobs) ** 2).sum(axis=-1) / (2 * (0.05 * size) ** 2)).max(axis=1)
    at = at[rng.random(len(at)) < 0.03 + 0.3 * near]
    first = rng.random(len(at)) < 0.5

    def moved(p: Array) -> Array:
        bent = p + 4 * np.stack([np.sin(p[:, 1] / 25), np.cos(p[:, 0] / 30)], axis=1) - size / 2
        c, s = np.cos(0.4), np.sin(0.4)
        return np.asarray(bent @ np.array([[c, s], [-s, c]]) + 0.7 * size)

    def histogram(p: Array, shape: int) -> Array:
        return np.histogram2d(p[:, 0], p[:, 1], bins=shape, range=[(-0.5, shape - 0.5)] * 2)[0]

    places = rng.uniform(0.15 * size, 0.85 * size, (400, 2))
    truth = np.stack([places, moved(places)])
    return histogram(at[first], size), histogram(moved(at[~first]), int(1.4 * size)), truth


def image(values: Array, dtype: str = "float32") -> rf.Image:
    return rf.Image.from_array(values.astype(dtype), "yx")


@pytest.mark.parametrize(("one", "dtype"), [(1.0, "uint16"), (17.0, "uint8"), (0.13, "float32"), (1 / 3, "float64")])
def test_counts_are_recognised_in_any_unit(one: float, dtype: str) -> None:
    counts = drawn(0)[0]
    found = counting(image(np.minimum(np.round(counts * one, 8), 60.5 * one), dtype))
    assert found.counted == pytest.approx(4 * np.pi * SIGMA**2)
    assert float(found.data.sum()) == pytest.approx(counts.sum(), rel=0.01)


def test_the_end_of_a_scale_is_no_multiple() -> None:
    assert counting(image(np.minimum(drawn(0)[0], 2.6))).counted is not None


def test_what_holds_no_counts_stays_as_it_is() -> None:
    rng, y, x = np.random.default_rng(0), *np.mgrid[:120, :120]
    disc = (np.hypot(y - 60, x - 60) < 40).astype(float)
    few_greys = np.round(6 * np.exp(-((y - 60) ** 2 + (x - 60) ** 2) / 1800))
    bright = rng.poisson(40 * disc)
    offset = rng.poisson(1.0 * disc) + 100
    measured = rng.gamma(2.0, disc + 1e-9)
    for values in (disc, few_greys, bright, offset, measured, np.zeros((120, 120))):
        one = image(np.asarray(values, float))
        assert counting(one) is one
    lost = drawn(0)[0]
    lost[3, 3] = np.nan
    cells = rf.open(rng.uniform(0, 50, (300, 2)), adapter="cells", columns="y,x", unit="µm")
    colours = rf.Image.from_array(np.repeat(drawn(0)[0][..., None], 3, axis=2), "yxc")
    labels = image(drawn(0)[0], "int32").replace(labels=True)
    for other in (image(lost), cells, colours, labels):
        assert isinstance(other, rf.Image)
        assert counting(other) is other


def test_a_bend_is_found_in_counts() -> None:
    fixed, moving, (q, p) = drawn(2, size=140, most=3.0)
    result = rf.register(image(fixed), image(moving))
    assert result.metrics["counted"]
    off = result.to_moving(torch.from_numpy(q)).numpy() - p
    assert float(np.median(np.linalg.norm(off, axis=1))) < 0.8  # 0.96 by the counts of single pixels
