"""Starts and solvers by name on the command line, and a file of settings that repeats a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from scipy.ndimage import gaussian_filter

import regframe as rf
from regframe.cli import main


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture and the same five pixels further down."""
    folder = tmp_path_factory.mktemp("starts")
    texture = gaussian_filter(np.random.default_rng(0).random((90, 84)), 2)
    texture = (255 * (texture - texture.min()) / np.ptp(texture)).astype(np.uint8)
    Image.fromarray(texture[5:85]).save(folder / "fixed.png")
    Image.fromarray(texture[:80]).save(folder / "moving.png")
    return folder


def register(place: Path, out: str, *options: str) -> Result:
    pair = (str(place / "fixed.png"), str(place / "moving.png"))
    return CliRunner().invoke(main, ["register", *pair, "-o", str(place / out), "--transform", "rigid", *options])


@pytest.mark.parametrize(
    "options",
    [
        ("--init", "identity"),
        ("--init", "matrix", "--init-set", "rows=[[1, 0, -5], [0, 1, 0], [0, 0, 1]]", "--solver", "images"),
    ],
)
def test_the_settings_of_a_run_repeat_it(place: Path, options: tuple[str, ...]) -> None:
    assert register(place, "one", "--overwrite", *options).exit_code == 0
    again = register(place, "two", "--overwrite", "--config", str(place / "one" / "config.resolved.yaml"))
    assert again.exit_code == 0, again.output
    one, two = (rf.load(place / name / "transform.ome.zarr") for name in ("one", "two"))
    assert one.affine.matrix.tolist() == two.affine.matrix.tolist()
    assert one.config == two.config
    assert one.config.init == options[1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--init", "nowhere"), "'nowhere', which does not exist"),
        (("--init", "identity", "--init-set", "far=1"), r"options of the start 'identity' (it has none), got 'far'"),
        (("--init", "matrix"), "wanted the options rows for the start 'matrix'"),
        (("--init", "matrix", "--init-set", "rows=[[1, 2]]"), "3 or 4 rows of as many finite numbers"),
        (("--solver", "meshes"), "wanted the name of a solver, got 'meshes'; there is images, "),
        (("--solver", "points"), "wanted a pair that the solver 'points' registers"),
    ],
)
def test_what_is_no_start_and_no_solver(place: Path, options: tuple[str, ...], says: str) -> None:
    done = register(place, "none", *options)
    assert done.exit_code == 2, done.output
    assert says in done.output
    assert not (place / "none").exists()
