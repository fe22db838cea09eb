"""Pairs of landmarks whose fixed and moving sides are exchanged: told by where both sides lie, by the data, by the map."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

import regframe as rf
from regframe import registration
from regframe.contracts import Fitted, Task
from regframe.maps.resample import resample
from regframe.starts.exchanged import exchanged, fit_exchanged
from regframe.starts.given import check_sides


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
    for pairs, words in ((wrong, ["both sides are alike"]), (right, [])):
        task = Task(fixed=fixed, moving=moving, metric=None, start=pairs, config=rf.Config(), progress=None)
        solver = registration._solver(task)
        fitted = Fitted(true, true, fixed.grid, moving.grid, {}, [])
        told = [finding.sentence for finding in registration._of_sides(solver, task, fitted, pairs, "fail")]
        assert len(told) == len(words)
        assert all(word in sentence for word, sentence in zip(words, told, strict=True))


def test_pairs_at_random_places_are_not_called_exchanged(turned: tuple[rf.Image, rf.Image, rf.Affine]) -> None:
    fixed, moving, _ = turned
    random = torch.Generator().manual_seed(1)
    for _ in range(3):
        q, p = (torch.rand((4, 2), generator=random, dtype=torch.float64) * 150 for _ in range(2))
        assert not exchanged(fixed, moving, rf.landmarks(fixed=q, moving=p), rf.Config())


def clouds(ndim: int = 2) -> tuple[rf.PointSet, rf.PointSet, rf.Affine]:
    """A long cloud of points, the same turned and shifted far away, and the map moving → fixed."""
    random = torch.Generator().manual_seed(2)
    size = torch.tensor([400.0, 900.0, 700.0][-ndim:], dtype=torch.float64)
    fixed = torch.rand((400, ndim), generator=random, dtype=torch.float64) ** 1.5 * size
    c, s = math.cos(math.radians(80)), math.sin(math.radians(80))
    matrix = torch.eye(ndim + 1, dtype=torch.float64)
    matrix[-3:-1, -3:-1] = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    matrix[:-1, -1] = torch.tensor([900.0, -2500.0, 2000.0][-ndim:])
    true = rf.Affine(matrix, "px", "px")
    return rf.PointSet(fixed, "px"), rf.PointSet(true.inverse().points(fixed), "px"), true


@pytest.mark.parametrize("ndim", [2, 3])
def test_clouds_that_lie_apart_tell_it_before_the_fit(ndim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed, moving, true = clouds(ndim)
    q = fixed.coords[[3, 50, 120, 300, 350]]
    p = true.inverse().points(q)
    monkeypatch.setattr(registration, "_fitted", None)  # it must not come to a fit
    with pytest.raises(ValueError, match=r"got 5 of 5 outside, and all inside with both sides exchanged; swap"):
        rf.register(fixed, moving, init=rf.landmarks(fixed=p, moving=q))
    check_sides(fixed, moving, rf.landmarks(fixed=q, moving=p))
    beside = q.clone()
    beside[0] += 3 * (fixed.coords.amax(0) - fixed.coords.amin(0))  # one beside the cells is allowed
    check_sides(fixed, moving, rf.landmarks(fixed=beside, moving=p))


def test_a_cloud_and_an_image_tell_it_before_the_fit() -> None:
    fixed, _, _ = clouds()
    image = rf.Image(np.zeros((1, 200, 300), np.float32), rf.Grid((200, 300)))
    at = torch.tensor([[50.0, 50.0], [60.0, 250.0], [150.0, 100.0]], dtype=torch.float64)
    q = fixed.coords[:3] * 0 + torch.tensor([[350.0, 600.0], [300.0, 500.0], [100.0, 650.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match="swap fixed and moving"):
        check_sides(fixed, image, rf.landmarks(fixed=at, moving=q))
    check_sides(fixed, image, rf.landmarks(fixed=q, moving=at))


def test_volumes_tell_it_by_their_content_and_their_canvas() -> None:
    random = np.random.default_rng(3)
    noise = sum(ndimage.gaussian_filter(random.standard_normal((40, 50, 60)), s) * s**1.5 for s in (1.5, 4, 9))
    fixed = rf.Image(np.asarray(noise, dtype=np.float32)[None], rf.Grid((40, 50, 60)))
    c, s = math.cos(0.6), math.sin(0.6)
    matrix = torch.tensor([[1, 0, 0, 3.0], [0, c, -s, 15], [0, s, c, -10], [0, 0, 0, 1]], dtype=torch.float64)
    true = rf.Affine(matrix, "px", "px")
    moving = resample(fixed, true.inverse(), fixed.grid, "auto")
    q = torch.tensor([[8, 15, 20], [32, 20, 45], [20, 35, 25], [15, 30, 45], [25, 25, 30.0]], dtype=torch.float64)
    p = true.inverse().points(q)
    assert exchanged(fixed, moving, rf.landmarks(fixed=p, moving=q), rf.Config())
    assert not exchanged(fixed, moving, rf.landmarks(fixed=q, moving=p), rf.Config())
    small = rf.Image(moving.data[:, :, :40], rf.Grid((40, 40, 60)))
    low = torch.cat([q[:2], torch.tensor([[20.0, 48.0, 25.0]], dtype=torch.float64)])
    with pytest.raises(ValueError, match="swap fixed and moving"):
        check_sides(fixed, small, rf.landmarks(fixed=q[:3], moving=low))


def test_a_map_that_fits_them_only_exchanged_says_so() -> None:
    fixed, _, true = clouds()
    centre = fixed.coords.mean(dim=0)
    near = rf.Affine(true.matrix.clone(), "px", "px")
    near.matrix[:-1, -1] = centre - true.matrix[:-1, :-1] @ centre  # both clouds in one place: nothing lies outside
    inner = centre + 0.2 * (fixed.coords - centre)
    q, p = inner[:6], near.inverse().points(inner[:6])
    sides = fixed, rf.PointSet(near.inverse().points(fixed.coords), "px")
    result = rf.register(*sides, init=rf.landmarks(fixed=p, moving=q))
    assert result.verdict != "pass"
    assert any("landmarks look exchanged" in reason for reason in result.reasons), result.reasons
    assert not any(
        "exchanged" in reason for reason in rf.register(*sides, init=rf.landmarks(fixed=q, moving=p)).reasons
    )
    assert fit_exchanged(near, rf.landmarks(fixed=p, moving=q)) is not None
    assert fit_exchanged(near, rf.landmarks(fixed=p[:2], moving=q[:2])) is None
