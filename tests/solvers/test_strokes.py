"""Strokes of a pen are found on pictures of any kind, and ordinary tissue is left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, gaussian_filter

import regframe as rf
from regframe.solvers import preparation
from regframe.solvers.strokes import strokes

SHAPE = (300, 340)


def tissue(number: int = 0) -> np.ndarray:
    """Brightness 0 … 1: grainy tissue with a few round vessels, beside empty glass of brightness 0.95."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    grain = gaussian_filter(rng.standard_normal(SHAPE), 1.5)
    inside = ((y - 150) / 120) ** 2 + ((x - 170) / 140) ** 2 < 1 + 0.2 * np.sin(x / 40)
    out = np.where(inside, 0.6 + 0.15 * grain / grain.std(), 0.95)
    for _ in range(5):
        centre, radius = rng.uniform(60, 240, 2), rng.uniform(6, 10)
        ring = np.abs(np.hypot(y - centre[0], x - centre[1]) - radius) < 2.5
        out = np.where(ring & inside, 0.35 + 0.12 * grain / grain.std(), out)
    return out.clip(0, 1)


def pen(wide: int, bow: float = 60.0) -> np.ndarray:
    """A curved stroke ``wide`` pixels across."""
    t = np.linspace(0, 1, 2000)
    at = np.stack([40 + 220 * t, 60 + 200 * t + bow * np.sin(3 * t)]).astype(int)
    line = np.zeros(SHAPE, bool)
    line[at[0], at[1]] = True
    return binary_dilation(line, iterations=(wide - 1) // 2)


def picture(kind: str, drawn: np.ndarray, ink: float = 0.06) -> np.ndarray:
    """Uint8 pixels of a picture that was drawn over: ``stained``, ``grey``, ``shaded`` (uneven light and noise) or ``dark``."""
    bright = tissue()
    if kind == "dark":  # light on a dark ground
        bright = 1 - bright
    if kind == "stained":
        rgb = np.stack([bright, bright**2, bright**0.7], axis=-1)
        rgb = np.where(drawn[..., None], np.array([0.1, 0.15, 0.5]), rgb)
        return np.round(255 * rgb).astype(np.uint8)
    bright = np.where(drawn, ink, bright)
    if kind == "shaded":
        x = np.linspace(0, 1, SHAPE[1])
        bright = gaussian_filter(bright * (1 - 0.5 * x), 1.2) + np.random.default_rng(1).normal(0, 0.02, SHAPE)
    return np.round(255 * bright.clip(0, 1)).astype(np.uint8)


@pytest.mark.parametrize("wide", [5, 11])
@pytest.mark.parametrize("kind", ["stained", "grey", "shaded"])
def test_a_stroke_does_not_count(kind: str, wide: int) -> None:
    drawn = pen(wide)
    out, look = preparation.prepare(rf.Image.from_array(picture(kind, drawn)))
    assert out.weight is not None
    hidden = out.weight.numpy() == 0
    assert hidden[drawn].mean() > 0.9
    assert (hidden & ~binary_dilation(drawn, iterations=12)).mean() < 0.01
    assert look.ink_fraction == pytest.approx(hidden.mean(), abs=1e-6)


@pytest.mark.parametrize("kind", ["stained", "grey", "shaded", "dark"])
def test_tissue_without_a_stroke_counts(kind: str) -> None:
    out, look = preparation.prepare(rf.Image.from_array(picture(kind, np.zeros(SHAPE, bool))))
    assert look.ink_fraction == 0
    assert out.weight is None


@pytest.mark.parametrize("many", [True, False])
def test_a_drawing_is_no_tissue_that_was_drawn_over(many: bool) -> None:
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    lines = ((y + 8 * np.sin(x / 25)) % 40 < 7) | ((x + 8 * np.sin(y / 25)) % 40 < 7) if many else pen(7)
    drawing = np.where(lines, 20, 240).astype(np.uint8)
    assert preparation.prepare(rf.Image.from_array(drawing))[1].ink_fraction == 0


def test_strokes_in_labels_are_content() -> None:
    labels = rf.Image.from_array(np.where(pen(9), 0, 7).astype(np.uint8), labels=True)
    assert preparation.prepare(labels)[1].ink_fraction == 0


@pytest.mark.parametrize("seen", [0.0, 1.0])
def test_nothing_is_found_in_nothing(seen: float) -> None:
    empty = np.zeros((1, 40, 50), np.float32)
    assert not strokes(empty, np.full((40, 50), seen > 0)).any()


@pytest.mark.parametrize(
    "name",
    [
        "11_sections_to_atlas/brainglobe/sample_hipp.tif",
        "16_mr_ct/mri_2d.tif",
        "19_nuclei/img2d.tif",
    ],
)
def test_real_tissue_counts(name: str, data_dir: Path) -> None:
    assert preparation.prepare(rf.open(data_dir / name))[1].ink_fraction == 0
