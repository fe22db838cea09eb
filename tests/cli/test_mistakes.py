"""Mistakes that people make, and the sentence that each is answered with: what was wanted, what came, what to do."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import regframe as rf
from regframe.cli import forecast, main


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    pixels = np.random.default_rng(0).integers(0, 255, (40, 90), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "fixed.png")
    (folder / "thesis.pdf").write_bytes(b"%PDF-1.4 rubbish")
    (folder / "cut.jpg").write_bytes((folder / "fixed.png").read_bytes()[:900])
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("x")
    (folder / "mm.csv").write_text("fixed_y_mm,fixed_x_mm,moving_y_mm,moving_x_mm\n1,2,3,4\n5,6,7,9\n8,3,2,2\n")
    (folder / "xy.csv").write_text("fixed_y,fixed_x,moving_y,moving_x\n80,10,80,11\n20,30,20,30\n70,39,70,39\n")
    (folder / "one.csv").write_text("fixed_y,fixed_x,moving_y,moving_x\n8,10,8,11\n")
    (folder / "noxy.csv").write_text("cell,area\n1,30\n2,40\n")
    (folder / "bad.geojson").write_text('{"type": "Point", "coordinates": [1, 2]')
    (folder / "german.csv").write_text("id;x;y\n" + "".join(f"{i};{i * 7 % 50},5;{i * 3 % 40},25\n" for i in range(30)))
    return folder


@pytest.fixture(autouse=True)
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder with the files is the current one."""
    monkeypatch.chdir(place)


def answer(place: Path, *args: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, list(args))
    return done.exit_code, " ".join(done.output.split())


PAIR = ("register", "fixed.png", "fixed.png", "-o", "none", "--dry-run")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (
            ("register", "fixed.png", "thesis.pdf", "-o", "none"),
            "it holds no image, table of positions or instrument's folder",
        ),
        (("register", "fixed.png", "notes", "-o", "none"), "check the path, convert the file (TIFF, PNG, CSV)"),
        (("register", "fixed.png", "cut.jpg", "-o", "none"), "is the copy complete?"),
        ((*PAIR, "--fixed-mpp", "0,5"), "wanted a number such as 0.5, got '0,5'; write 0.5 with a point"),
        ((*PAIR, "--fixed-mpp", "half"), "wanted a number such as 0.5, got 'half'"),
        ((*PAIR, "--level", "9"), "it has 1 resolution: leave it out"),
        ((*PAIR, "--metric", "lnc"), "did you mean 'lncc'?"),
        ((*PAIR, "--init", "identiy"), "did you mean 'identity'?"),
        ((*PAIR, "--set", "optimiser.max_iter=5"), "did you mean 'optimizer'?"),
        ((*PAIR, "--moving-set", "spaceing=5"), "did you mean 'spacing'?"),
        ((*PAIR, "--landmarks", "mm.csv"), "state the image's spacing (--fixed-mpp, --moving-mpp"),
        ((*PAIR, "--landmarks", "xy.csv"), "with x and y exchanged all lie inside: exchange the columns"),
        ((*PAIR, "--fixed-mpp", "0.5", "--transform", "rigid"), "(--fixed-mpp, --moving-mpp)"),
        ((*PAIR, "--fixed-mask", "no.png"), "wanted an existing file or folder, got"),
        ((*PAIR, "--config", "no.yaml"), "wanted an existing file or folder, got 'no.yaml', which does not exist"),
        (("info", "noxy.csv"), "--moving-set columns=x=NAME,y=NAME"),
        (
            ("apply", "points", "notes", "german.csv", "-o", "x.csv", "--to", "fixed"),
            "name the folder that `regframe register",
        ),
        (("evaluate", "notes", "--fixed-landmarks", "xy.csv"), "name the folder that `regframe register"),
    ],
)
def test_what_is_refused_says_what_to_do(place: Path, args: tuple[str, ...], says: str) -> None:
    code, output = answer(place, *args)
    assert code == 2, output
    assert says in output, output
    assert not (place / "none").exists()


@pytest.mark.parametrize("command", ["register", "rounds", "mosaic", "stack"])
def test_a_reader_that_is_not_installed_is_named(command: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    (place / "volume.nii").write_bytes(b"\x5c\x01\0\0" + bytes(340) + b"n+1\0" + bytes(100))
    code, output = answer(place, command, "volume.nii", "fixed.png", "-o", "none")
    assert code == 2, output
    assert "wanted the package SimpleITK to read" in output
    assert "get it with: pip install 'regframe[itk]'" in output


def test_one_side_of_landmarks_is_named(place: Path) -> None:
    from fake_result import fake_result

    fake_result(rf.Grid((40, 90)), rf.Grid((40, 90))).save(place / "map.ome.zarr", overwrite=True)
    code, output = answer(place, "evaluate", "map.ome.zarr", "--fixed-landmarks", "xy.csv")
    assert (code, "got --fixed-landmarks; give pairs in one file" in output) == (2, True), output
    code, output = answer(place, "apply", "shapes", "map.ome.zarr", "bad.geojson", "-o", "x.geojson", "--to", "fixed")
    assert (code, "export it again" in output) == (2, True), output


def test_what_is_doubtful_is_said_before_the_fit(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "probe", lambda: forecast.PROBE)
    _, output = answer(place, *PAIR, "--fixed-mpp", "500", "--moving-mpp", "0.5")
    assert "by their units the fixed side is 45 mm wide and the moving side 0.045 mm, a factor of 1000" in output
    assert "state the pixel sizes (--fixed-mpp, --moving-mpp)" in output
    _, output = answer(place, *PAIR, "--fixed-mpp", "0.5", "--moving-mpp", "0.25")
    assert "by their units" not in output
    _, output = answer(place, *PAIR, "--landmarks", "one.csv")
    assert "one pair of landmarks says where the fit begins, not how the tissue is turned; give three" in output


def test_german_decimals_are_read(place: Path) -> None:
    assert json.loads(answer(place, "info", "german.csv", "--json")[1])["n"] == 30
    points = rf.open(place / "german.csv")
    assert isinstance(points, rf.PointSet)
    assert points.coords[0].tolist() == [0.25, 0.5]
