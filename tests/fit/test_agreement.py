"""Windows of two aligned images: they agree where the map is right, contradict it where it is not, and say by how much."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from regframe.data import Grid
from regframe.fit.agreement import NEAR, REACH, agreement, chance, evidence, textured


def texture(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Smooth noise, a few pixels wide."""
    return gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2.0).astype(np.float32)


def compared(fixed: np.ndarray, moving: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Grid]:
    one, other = (torch.from_numpy(np.ascontiguousarray(x))[None] for x in (fixed, moving))
    return one, other, torch.ones(fixed.shape), Grid(fixed.shape)


@pytest.mark.parametrize("shape", [(200, 230), (1, 200, 230), (40, 44, 48)], ids=["plane", "section", "volume"])
def test_windows_of_one_texture_agree_and_of_two_do_not(shape: tuple[int, ...]) -> None:
    noise = 0.3 * np.random.default_rng(9).standard_normal(shape).astype(np.float32) * texture(shape, 0).std()
    same = agreement(*compared(texture(shape, 0), 7 - 3 * texture(shape, 0) + noise))
    assert same.windows >= 27
    assert same.agree >= 0.9 * same.windows
    assert same.against == 0
    assert same.drift < 0.1
    assert same.nats > 50
    other = agreement(*compared(texture(shape, 0), texture(shape, 1)))
    assert other.agree <= 0.3 * other.windows
    assert other.nats < 8


def test_a_shift_is_told_and_is_seen_at_coarser_pixels_alone() -> None:
    base = texture((260, 260), 3)
    for shift in (1, 4):
        moved = np.roll(base, (shift, 0), (0, 1))
        found = agreement(*compared(base[20:-20, 20:-20], moved[20:-20, 20:-20]))
        assert found.drift == pytest.approx(shift, abs=0.2)
        assert found.neighbours > 100
        assert (found.pixel > 1) == (shift > NEAR)


def test_windows_that_found_another_place_contradict() -> None:
    base = texture((240, 240), 5)
    moved = base.copy()
    moved[:, :96] = np.roll(base, (7, 0), (0, 1))[:, :96]  # of ten columns of windows four are elsewhere
    found = agreement(*compared(base, moved))
    assert found.pixel == 1
    assert 0.25 < found.against / found.sure < 0.5


@pytest.mark.parametrize("shape", [(20, 200), (1, 200, 20), (18, 50, 60), (9, 50, 60)])
def test_what_is_thinner_than_a_window_holds_none_and_raises_nothing(shape: tuple[int, ...]) -> None:
    found = agreement(*compared(texture(shape, 4), texture(shape, 4)))
    assert (found.windows > 0) == (min(n for n in shape if n > 1) == 18)


def test_what_is_not_seen_does_not_count() -> None:
    base = texture((200, 200), 4)
    one, other, inside, grid = compared(base, base)
    other = other.clone()
    other[:, :, 100:] = 0
    inside[:, 100:] = 0
    found = agreement(one, other, inside, grid)
    assert found.agree == found.windows
    assert 0 < found.windows <= 32
    assert agreement(one, other, torch.zeros_like(inside), grid).windows == 0


def test_windows_of_bare_glass_are_not_asked() -> None:
    base, other = texture((192, 192), 6), texture((192, 192), 7)
    other[:, :96] = base[:, :96]  # tissue on the left; what lies on the glass beside it is not the same
    tissue = torch.zeros(192, 192)
    tissue[:, :96] = 1
    every, found = agreement(*compared(base, other)), agreement(*compared(base, other), tissue)
    assert (every.windows, found.windows) == (64, 32)
    assert found.agree == 32
    assert every.nats < found.nats


def test_a_drawing_has_outlines_alone() -> None:
    y, x = np.mgrid[:128, :128]
    disc = torch.from_numpy(((y - 64) ** 2 + (x - 64) ** 2 < 40**2).astype(np.float32))[None]
    tissue = torch.from_numpy(texture((128, 128), 6))[None]
    assert textured(disc, torch.ones(128, 128)) < 0.05
    assert textured(tissue, torch.ones(128, 128)) > 0.8
    assert textured(7 * tissue - 3, torch.ones(128, 128)) == pytest.approx(
        textured(tissue, torch.ones(128, 128)), abs=0.01
    )


def test_evidence_is_what_chance_does_not_give() -> None:
    p = chance(2)
    assert p == pytest.approx((5 / (2 * REACH[2] + 1)) ** 2)
    assert evidence(1, 50, p) == 0.0
    assert evidence(50, 50, p) == pytest.approx(-50 * math.log(p))
    assert evidence(10, 50, p) < evidence(20, 50, p) < evidence(40, 100, p)


def test_few_coarse_windows_do_not_speak_in_place_of_many() -> None:
    base = texture((130, 130), 7)
    moved = np.roll(base, (4, 0), (0, 1))  # at pixels of 2 it agrees, in four windows
    found = agreement(*compared(base[5:-5, 5:-5], moved[5:-5, 5:-5]))
    assert found.pixel == 1
    assert found.agree < 0.2 * found.windows
