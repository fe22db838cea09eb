"""Pairs of landmarks whose fixed and moving sides are exchanged are told from wrong ones by the images."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import ndimage

import regframe as rf
from regframe import registration
from regframe.contracts import Task
from regframe.maps.resample import resample
from regframe.starts.exchanged import exchanged


@pytest.fixture(scope="module")
def turned() -> tuple[rf.Image, rf.Image, rf.Affine]:
    """Tissue of 160 × 180 px, the same turned by 70° and shifted, and the map moving → fixed."""
    random = np.random.default_rng(3)
    noise = sum(ndimage.gaussian_filter(random.standard_normal((160, 180)), s) * s for s in (1.5, 4, 12))
    fixed = rf.Image(np.asarray(noise, dtype=np.float32)[None], rf.Grid((160, 180)))
    c, s = math.cos(math.radians(70)), math.sin(math.radians(70))
    matrix = torch.tensor([[c, -s, 120.0], [s, c, -30.0], [0, 0, 1]], dtype=torch.float64)
    true = rf.Affine(matrix, "px", "px")
    return fixed, resample(fixed, true.inverse(), fixed.grid, "auto"), true


def test_exchanged_pairs_are_told(turned: tuple[rf.Image, rf.Image, rf.Affine]) -> None:
    fixed, moving, true = turned
    q = torch.tensor([[40.0, 50.0], [40.0, 120.0], [110.0, 60.0], [100.0, 130.0]], dtype=torch.float64)
    p = true.inverse().points(q)
    right, wrong = rf.landmarks(fixed=q, moving=p), rf.landmarks(fixed=p, moving=q)
    assert exchanged(fixed, moving, wrong, rf.Config())
    assert not exchanged(fixed, moving, right, rf.Config())
    task = Task(fixed=fixed, moving=moving, metric=None, start=wrong, config=rf.Config(), progress=None)
    assert registration._exchanged(task)
    assert not registration._exchanged(dataclasses.replace(task, start="auto"))


def test_pairs_at_random_places_are_not_called_exchanged(turned: tuple[rf.Image, rf.Image, rf.Affine]) -> None:
    fixed, moving, _ = turned
    random = torch.Generator().manual_seed(1)
    for _ in range(3):
        q, p = (torch.rand((4, 2), generator=random, dtype=torch.float64) * 150 for _ in range(2))
        assert not exchanged(fixed, moving, rf.landmarks(fixed=q, moving=p), rf.Config())
