"""Every start that the command line takes, in Python: files of maps, saved results, words, arrays; and the settings repeat it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from scipy.ndimage import gaussian_filter

import regframe as rf
from regframe.cli import main
from regframe.data import Reading
from regframe.formats.starts import begun

SHIFT = np.array([[1.0, 0.0, -2.0], [0.0, 1.0, -5.0], [0.0, 0.0, 1.0]])  # of x, y: two columns left, five rows up


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without their report, which is not the question here and takes most of the time."""
    monkeypatch.setattr("regframe.report.results.render", lambda *_, **__: "")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture, the same moved by five rows and two columns, and the map that undoes it, as several programs write it."""
    folder = tmp_path_factory.mktemp("starts")
    texture = gaussian_filter(np.random.default_rng(0).random((57, 54)), 2)
    texture = (255 * (texture - texture.min()) / np.ptp(texture)).astype(np.uint8)
    Image.fromarray(texture[5:53, 2:50]).save(folder / "fixed.png")
    Image.fromarray(texture[:48, :48]).save(folder / "moving.png")
    np.savetxt(folder / "affine.txt", SHIFT)
    np.savetxt(folder / "imagealignment.csv", SHIFT, delimiter=",")
    np.save(folder / "affine.npy", SHIFT)
    fixed, moving = rf.open(folder / "fixed.png"), rf.open(folder / "moving.png")
    assert isinstance(fixed, rf.Image)
    assert isinstance(moving, rf.Image)
    result = rf.register(fixed, moving, init="identity", config=quick())
    result.save(folder / "run.ome.zarr")
    return folder


def quick() -> rf.Config:
    """A rigid fit that takes no step, so that what comes out is what went in."""
    return rf.Config.model_validate({"transform": "rigid", "optimizer": {"max_iter": 0}})


def sides(place: Path) -> tuple[Any, Any]:
    return rf.open(place / "fixed.png"), rf.open(place / "moving.png")


@pytest.mark.parametrize("name", ["affine.txt", "imagealignment.csv", "affine.npy"])
@pytest.mark.parametrize("kind", [str, Path])
def test_a_matrix_in_a_file(place: Path, name: str, kind: type) -> None:
    start, said = begun(kind(place / name), *sides(place))
    np.testing.assert_allclose(start.affine.matrix, [[1, 0, -5], [0, 1, -2], [0, 0, 1]], atol=1e-9)
    assert f"the start was read from {name}: the matrix was taken from moving positions in px to fixed ones" in said


def test_a_path_begins_where_the_command_line_does(place: Path) -> None:
    files = [str(place / name) for name in ("fixed.png", "moving.png")]
    options = ["-o", str(place / "run"), "--init", str(place / "affine.txt"), "--transform", "rigid"]
    said = CliRunner().invoke(main, ["register", *files, *options, "--set", "optimizer.max_iter=0"])
    assert said.exit_code in (0, 3), said.output
    one = rf.load(place / "run")
    two = rf.register(*files, init=str(place / "affine.txt"), config=quick())
    np.testing.assert_allclose(two.affine.matrix[:2, 2], (-5, -2), atol=1e-6)
    assert torch.equal(one.affine.matrix, two.affine.matrix)
    assert one.config == two.config
    assert two.config.init == "matrix"
    (reason,) = [reason for reason in two.reasons if "affine.txt" in reason]
    assert "from moving positions in px to fixed ones in px, components x, y; regframe.read_map" in reason
    again = rf.register(*files, config=two.config)
    assert torch.equal(again.affine.matrix, two.affine.matrix)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_saved_result(place: Path, kind: type) -> None:
    start, _ = begun(kind(place / "run.ome.zarr"), *sides(place))
    assert torch.equal(start.affine.matrix, rf.load(place / "run.ome.zarr").affine.matrix)


@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor])
def test_a_bare_array_is_no_start_but_its_map_is(place: Path, make: Any) -> None:
    rows = [[1.0, 0.0, -5.0], [0.0, 1.0, -2.0], [0.0, 0.0, 1.0]]
    with pytest.raises(
        ValueError, match=r"wanted init 'auto', .* neither units nor order of axes: give regframe.Affine"
    ):
        rf.register(*sides(place), init=make(rows), config=quick())
    start, _ = begun(rf.Affine(make(rows)), *sides(place))
    assert torch.equal(start.matrix, torch.tensor(rows).double())


def test_pixels_count_on_the_level_that_was_not_reduced(place: Path) -> None:
    fixed, moving = (
        image.replace(grid=rf.Grid((48, 48), (1.0, 1.0), unit="µm"), reading=Reading(0, 1, (2, 2), full(image)))
        for image in sides(place)
    )
    (place / "map.qupath.txt").write_text(
        "1.0, 0.0, 4.0\n0.0, 1.0, 10.0\n"
    )  # QuPath's takes fixed pixels to moving ones
    start, _ = begun(place / "map.qupath.txt", fixed, moving)
    np.testing.assert_allclose(start.affine.matrix, [[1, 0, -5], [0, 1, -2], [0, 0, 1]], atol=1e-9)
    with pytest.raises(ValueError, match=r"wanted the unit of the numbers in .*affine.txt.*--init-unit um.*read_map"):
        rf.register(fixed, moving, init=place / "affine.txt", config=quick())


def full(image: Any) -> rf.Grid:
    return rf.Grid((96, 96), (0.5, 0.5), unit="µm")


@pytest.mark.parametrize(
    ("init", "error", "says"),
    [
        (
            "nowhere",
            ValueError,
            "wanted the name of a start, got 'nowhere', which does not exist as a file .* runner-up",
        ),
        ("nowhere.txt", FileNotFoundError, "'nowhere.txt', which does not exist"),
        (Path("nowhere"), ValueError, "which does not exist"),
        ("rotate=left", ValueError, "wanted a number in 'rotate=left'"),
        ("fixed.png", ValueError, "fixed.png"),
        (3, ValueError, "wanted init 'auto'"),
    ],
)
def test_what_is_no_start(place: Path, init: Any, error: type, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    with pytest.raises(error, match=says):
        rf.register(*sides(place), init=init, config=quick())
    if isinstance(init, str):
        done = CliRunner().invoke(main, ["register", "fixed.png", "moving.png", "--init", init, "-o", "none"])
        assert done.exit_code == 2, done.output
        assert says.split(" .* ")[0] in " ".join(done.output.split())
