"""Starts in words: turned, mirrored, resized, and the second best that the search found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, zoom

import regframe as rf
from regframe.starts.stated import said


def picture() -> np.ndarray:
    """Blobs on an empty ground, without symmetry."""
    image = np.zeros((120, 120))
    random = np.random.default_rng(0)
    image[25:95, 30:80] = gaussian_filter(random.standard_normal((70, 50)), 2.5) * 5 + 2
    return np.asarray(gaussian_filter(image, 1)).astype(np.float32)


def image(values: np.ndarray) -> rf.Image:
    return rf.Image.from_array(np.ascontiguousarray(values), axes="yx")


@pytest.mark.parametrize(
    ("words", "moved"),
    [
        ("rotate=90", lambda x: np.rot90(x, -1)),
        ("mirror", lambda x: x[:, ::-1]),
        ("rotate=-90,mirror", lambda x: np.rot90(x, 1)[:, ::-1]),
        ("scale=2", lambda x: zoom(x, 0.5, order=1)),
        ("rotate=180,scale=2", lambda x: zoom(np.rot90(x, 2), 0.5, order=1)),
    ],
)
def test_words_give_the_start(words: str, moved: object) -> None:
    fixed = image(picture())
    moving = image(moved(picture()))  # type: ignore[operator]
    result = rf.register(fixed, moving, init=words, transform="similarity")
    assert result.config.init == "stated"
    warped = result.to_fixed(moving).data[0].numpy()
    inside = np.isfinite(warped)
    assert np.corrcoef(warped[inside], picture()[inside])[0, 1] > 0.98
    again = rf.register(fixed, moving, config=result.config)  # as the settings that are stored with the run
    assert torch.equal(again.affine.matrix, result.affine.matrix)


def test_runner_up_is_another_place() -> None:
    fixed, moving = image(picture()), image(picture())
    best = rf.register(fixed, moving, transform="rigid" if fixed.grid.unit != "px" else "similarity")
    other = rf.register(fixed, moving, transform="similarity", init="runner-up")
    assert other.config.init == "runner-up"
    corners = fixed.grid.corners()
    assert float((best.to_fixed(corners) - other.to_fixed(corners)).norm(dim=1).mean()) > 10


def test_what_is_not_understood() -> None:
    assert said("identity") is None
    assert said("mirror=2") is None
    with pytest.raises(ValueError, match="wanted a number in 'rotate=left'"):
        said("rotate=left")
    points = rf.PointSet(torch.rand(50, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match="two images for init='runner-up'"):
        rf.register(points, points, init="runner-up")
