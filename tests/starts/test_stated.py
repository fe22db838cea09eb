"""Starts in words: turned, mirrored, resized, and the second best that the search found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom

import regframe as rf
from regframe.cli import main
from regframe.contracts import Task
from regframe.starts.stated import Stated, said


def picture() -> np.ndarray:
    """Blobs on an empty ground, without symmetry."""
    image = np.zeros((64, 64))
    random = np.random.default_rng(0)
    image[14:50, 16:42] = gaussian_filter(random.standard_normal((36, 26)), 1.5) * 3 + 2
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
def test_words_give_the_start(words: str, moved: Callable[[np.ndarray], np.ndarray]) -> None:
    fixed, moving = image(picture()), image(moved(picture()))
    options = said(words)
    assert options is not None
    (found,) = Stated(**options).find(Task(fixed, moving, None, "auto", rf.Config()))
    y, x = np.mgrid[:64, :64].astype(np.float32)
    marks = [
        torch.from_numpy(np.ascontiguousarray(moved(along))).double() for along in (y, x)
    ]  # where each pixel came from
    at = moving.grid.coords()
    assert found.matrix is not None
    matrix = torch.as_tensor(found.matrix)
    carried = at @ matrix[:2, :2].T + matrix[:2, 2]
    away = (carried - torch.stack(marks, dim=-1)).norm(dim=-1)
    assert float(away.max()) < 3  # a start; the middle of tissue is found coarsely


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without their report, which is not the question here and takes half of the time."""
    monkeypatch.setattr("regframe.report.results.render", lambda *_, **__: "")


def run(folder: Path, out: str, *options: str) -> rf.Result:
    if not (folder / "fixed.png").exists():
        pixels = (60 + 40 * picture()).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "fixed.png")
        Image.fromarray(np.ascontiguousarray(np.rot90(pixels, 1)[:, ::-1])).save(folder / "moving.png")
    files = [str(folder / "fixed.png"), str(folder / "moving.png"), "-o", str(folder / out), "--transform", "rigid"]
    done = CliRunner().invoke(main, ["register", *files, *options])
    assert done.exit_code in (0, 3), done.output  # 3: the map of a runner-up is not believed
    result: rf.Result = rf.load(folder / out / "transform.ome.zarr")
    return result


def test_words_on_the_command_line_and_again_from_the_settings(tmp_path: Path) -> None:
    one = run(tmp_path, "one", "--init", "rotate=-90,mirror")
    assert one.config.init == "stated"
    assert one.config.init_options == {"rotate": -90.0, "mirror": True}
    corners = torch.tensor([[0.0, 0.0], [63.0, 0.0], [0.0, 63.0]], dtype=torch.float64)
    y, x = corners.unbind(dim=1)
    assert torch.allclose(one.to_fixed(corners), torch.stack([63 - x, 63 - y], dim=1), atol=0.1)
    two = run(tmp_path, "two", "--config", str(tmp_path / "one" / "config.resolved.yaml"))
    assert torch.equal(one.affine.matrix, two.affine.matrix)


def test_runner_up_on_the_command_line_is_another_place(tmp_path: Path) -> None:
    other = run(tmp_path, "other", "--init", "runner-up")
    assert other.config.init == "runner-up"
    y, x = other.moving_grid.corners().unbind(dim=1)
    best = torch.stack([63 - x, 63 - y], dim=1)  # the map that the images were made with
    assert float((other.to_fixed(other.moving_grid.corners()) - best).norm(dim=1).mean()) > 10


def test_what_is_not_understood() -> None:
    assert said("identity") is None
    assert said("mirror=2") is None
    with pytest.raises(ValueError, match="wanted a number in 'rotate=left'"):
        said("rotate=left")
    points = rf.PointSet(torch.rand(50, 2, dtype=torch.float64))
    volume = rf.Image.from_array(np.random.default_rng(0).random((20, 24, 22), dtype=np.float32), axes="zyx")
    for fixed, moving in ((points, points), (volume, image(picture()))):
        with pytest.raises(ValueError, match="two images of one dimension for init='runner-up'"):
            rf.register(fixed, moving, init="runner-up")
