"""Poses are weighed by fine structure, too: what is strong and alike at a wrong place does not win."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

import regframe as rf
from regframe.fit.halvings import Halvings
from regframe.starts.evidence import FINE_SIZE, compare, seen
from regframe.starts.images import _ladder
from regframe.starts.views import Views
from regframe.starts.weighing import Weights

SIDE, AWAY, DISC = 160, (6, 10), 16
"""Pixels along each picture, shift of the tissue (y, x), radius of the disc."""


def with_disc(tissue: np.ndarray, centre: tuple[int, int]) -> np.ndarray:
    """A picture with a bright disc on it, which is no part of the tissue."""
    y, x = np.indices(tissue.shape)
    return (tissue + 12.0 * ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 < DISC**2)).astype(np.float32)


@pytest.fixture(scope="module")
def sides() -> tuple[Views, Views]:
    """The same tissue at a shift of `AWAY`, and on it a disc that did not move."""
    rng = np.random.default_rng(0)
    big = gaussian_filter(rng.standard_normal((SIDE + 40, SIDE + 40)), 2.0)
    big /= big.std()
    dy, dx = AWAY
    fixed, moving = big[20 : 20 + SIDE, 20 : 20 + SIDE], big[20 - dy : 20 - dy + SIDE, 20 - dx : 20 - dx + SIDE]
    a, b = (rf.Image.from_array(with_disc(side, (70, 90)), "yx") for side in (fixed, moving))
    return Views(Halvings(a)), Views(Halvings(b))


def test_fine_structure_leads_where_a_strong_shape_misleads(sides: tuple[Views, Views]) -> None:
    fixed, moving = sides
    right, wrong = torch.eye(3)[:2].repeat(2, 1, 1)
    right[:, 2] = torch.tensor(AWAY, dtype=torch.float32) * fixed.at(0.0).grid.spacing[0]
    poses = torch.stack([right, wrong])
    fit = compare(*seen(fixed, FINE_SIZE), moving, poses)
    most, both = Weights(fixed, moving, 1.0)(poses, fit)
    plain = fit.evidence()
    assert plain[1] > plain[0]  # the disc lies on itself where nothing else does
    assert most[0] > 2 * most[1]
    assert both[1] == 0.0  # and is not believed by itself
    assert both[0] > 0.0


def test_closer_sizes_span_the_same_range() -> None:
    once, twice = _ladder(1.0, 1.0, 7, 1), _ladder(1.0, 1.0, 7, 2)
    assert (min(once), max(once)) == pytest.approx((min(twice), max(twice)))
    assert len(twice) == 2 * len(once) - 1
    assert len(_ladder(1.0, 1.06, 7, 1)) == 7
    assert len(_ladder(1.0, 1.06, 7, 2)) == 14
