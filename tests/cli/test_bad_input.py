"""Bad input: one sentence that says what is wrong, exit code 2, nothing computed that shows, nothing half-written."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import click.testing
import numpy as np
import PIL.Image
import pytest
import tifffile
import torch
from fake_result import fake_result

import regframe
from regframe.cli import main
from regframe.data import Grid, Image
from regframe.report import results

SIZE = (48, 52)


def pixels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (*SIZE, 3), dtype=np.uint8)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with two good images and a good landmark table."""
    PIL.Image.fromarray(pixels()).save(tmp_path / "fixed.png")
    PIL.Image.fromarray(pixels(1)).save(tmp_path / "moving.png")
    return tmp_path


def refused(place: Path, *args: object, says: str) -> str:
    """Run a command that must end with exit code 2 and one sentence, and leave the folder as it was."""
    before = listing(place)
    outcome = click.testing.CliRunner().invoke(main, [str(a) for a in args])
    assert outcome.exit_code == 2, (outcome.exit_code, outcome.stderr, outcome.exception)
    assert outcome.stdout == ""
    lines = outcome.stderr.strip().splitlines()
    errors = [line for line in lines if line.startswith("Error: ")]
    assert len(errors) == 1, outcome.stderr
    assert lines[-1] == errors[0]
    assert "Traceback" not in outcome.stderr
    assert "pydantic" not in outcome.stderr
    assert re.search(says, errors[0]), errors[0]
    assert listing(place) == before
    return errors[0]


def listing(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*"))}


def missing(path: Path) -> None:
    """No file at all."""


def truncated_jpeg(path: Path) -> None:
    PIL.Image.fromarray(np.tile(pixels(), (6, 6, 1))).save(path, "JPEG", quality=95)
    path.write_bytes(path.read_bytes()[:4000])


def text_as_png(path: Path) -> None:
    path.write_text("this is a shopping list\n" * 20)


def one_pixel(path: Path) -> None:
    PIL.Image.fromarray(pixels()[:1, :1]).save(path)


def constant(path: Path) -> None:
    PIL.Image.fromarray(np.full((*SIZE, 3), 200, dtype=np.uint8)).save(path)


def with_value(value: float) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        array = pixels()[..., 0].astype(np.float32)
        array[7, 9] = value
        tifffile.imwrite(path, array)

    return write


def mostly_nan(path: Path) -> None:
    array = pixels()[..., 0].astype(np.float32)
    array[2:] = np.nan
    tifffile.imwrite(path, array)


def single(*places: tuple[int, int]) -> Callable[[Path], None]:
    """Writes a black picture with these pixels white."""

    def write(path: Path) -> None:
        array = np.zeros((*SIZE, 3), np.uint8)
        array[tuple(np.transpose(places))] = 255
        PIL.Image.fromarray(array).save(path)

    return write


def empty(path: Path) -> None:
    path.write_bytes(b"")


IMAGES = {
    "missing file": ("a.png", missing, "does not exist"),
    "empty file": ("a.png", empty, "a.png"),
    "truncated JPEG": ("a.jpg", truncated_jpeg, "a.jpg"),
    "text renamed to .png": ("a.png", text_as_png, "a.png"),
    "1 x 1 image": ("a.png", one_pixel, r"1\D+1|pixel"),
    "constant image": ("a.png", constant, "constant|one value|same value"),
    "hardly anything but NaN": ("a.tif", mostly_nan, "NaN in 9"),
    "one bright pixel": ("a.png", single((20, 31)), "a single pixel differs from 0, 0, 0;"),
    "one row": ("a.png", single(*((20, x) for x in range(52))), "the 52 pixels that differ .* a strip one pixel wide"),
    "one column": (
        "a.png",
        single(*((y, 31) for y in range(48))),
        "the 48 pixels that differ .* a strip one pixel wide",
    ),
    "a diagonal": (
        "a.png",
        single(*((y, y) for y in range(48))),
        "the 48 pixels that differ .* a strip one pixel wide",
    ),
    "inf": ("a.tif", with_value(np.inf), "inf|finite"),
}


@pytest.mark.parametrize("side", ["fixed", "moving"])
@pytest.mark.parametrize("case", IMAGES)
def test_images(case: str, side: str, place: Path) -> None:
    name, write, says = IMAGES[case]
    write(place / name)
    good = place / ("moving.png" if side == "fixed" else "fixed.png")
    pair = (place / name, good) if side == "fixed" else (good, place / name)
    refused(place, "register", *pair, "-o", place / "out", says=says)


HEADER = "fixed_y,fixed_x,moving_y,moving_x\n"

LANDMARKS = {
    "collinear": (HEADER + "5,5,6,6\n20,20,22,22\n40,40,41,41\n", "line|collinear"),
    "collinear on one side": (HEADER + "5,5,6,6\n20,20,22,40\n40,40,41,3\n", "line|collinear"),
    "all in one place": (HEADER + "5,5,6,6\n5,5,6,6\n5,5,6,6\n", "line|collinear|place|distinct"),
    "outside the fixed image": (HEADER + "5,5,6,6\n20,200,22,22\n40,10,41,41\n", "inside the fixed image.* row 2"),
    "outside the moving image": (HEADER + "5,5,6,6\n20,20,22,22\n40,10,-8,41\n", "inside the moving image.* row 3"),
    "one side longer": (HEADER + "5,5,6,6\n20,20,22,22\n40,10,41,31\n30,12,,\n", "line 5"),
    "text for a number": (HEADER + "5,5,6,6\n20,here,22,22\n40,10,41,31\n", "line 3"),
    "other columns": ("a,b\n1,2\n", "fixed_y"),
    "no pairs": (HEADER, "at least one pair"),
    "nothing": ("", "empty"),
}


@pytest.mark.parametrize("case", LANDMARKS)
def test_landmarks(case: str, place: Path) -> None:
    text, says = LANDMARKS[case]
    (place / "p.csv").write_text(text)
    pair = (place / "fixed.png", place / "moving.png")
    refused(place, "register", *pair, "-o", place / "out", "--landmarks", place / "p.csv", says=says)


def test_missing_landmarks(place: Path) -> None:
    pair = (place / "fixed.png", place / "moving.png")
    refused(place, "register", *pair, "-o", place / "out", "--landmarks", place / "none.csv", says="none.csv")


def register_with(place: Path, *args: object, says: str, out: Path | None = None) -> str:
    pair = (place / "fixed.png", place / "moving.png")
    return refused(place, "register", *pair, "-o", out or place / "out", *args, says=says)


def test_unknown_metric_is_told_which_there_are(place: Path) -> None:
    register_with(place, "--metric", "telepathy", says="'telepathy'.*contrast")
    register_with(place, "--metric-set", "radios=4", says="--metric beside --metric-set")
    register_with(place, "--metric", "lncc", "--metric-set", "radios=4", says="'radios'")


def test_unknown_adapter_or_option(place: Path) -> None:
    register_with(place, "--fixed-adapter", "oracle", says="'oracle'.*image")
    register_with(place, "--moving-set", "colour=red", says="'colour'")
    register_with(place, "--moving-set", "spacing", says="KEY=VALUE")


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("sobolev.order=0.5", "'sobolev.order'.*got 0.5"),
        ("sobolv.order=2", "'sobolv'.*sobolev"),
        ("sobolev.power=2", "'sobolev.power'.*scale, order"),
        ("seed=-1", "'seed'.*got -1"),
        ("transform=wobbly", "'transform'.*rigid"),
        ("seed.more=1", "'seed'"),
        ("seed", "KEY=VALUE"),
        ("seed=[1", "YAML"),
    ],
)
def test_settings(setting: str, says: str, place: Path) -> None:
    register_with(place, "--set", setting, says=says)


def test_config_files(place: Path) -> None:
    (place / "c.yaml").write_text("optimizer: {max_iter: many}\n")
    register_with(place, "--config", place / "c.yaml", says="'optimizer.max_iter'.*'many'")
    (place / "c.yaml").write_text("a: [1\n")
    register_with(place, "--config", place / "c.yaml", says="YAML")
    (place / "c.yaml").write_text("- 1\n")
    register_with(place, "--config", place / "c.yaml", says="settings by name")
    (place / "c.yaml").write_text("!!python/object/apply:os.system ['true']\n")
    register_with(place, "--config", place / "c.yaml", says="YAML")
    register_with(place, "--config", place / "none.yaml", says="none.yaml")


def test_two_starts(place: Path) -> None:
    (place / "p.csv").write_text(HEADER + "5,5,6,6\n")
    register_with(place, "--init", "identity", "--landmarks", place / "p.csv", says="one start")


def test_unwritable_output(place: Path) -> None:
    (place / "file").write_text("x")
    register_with(place, out=place / "file" / "out", says="not a folder")
    register_with(place, out=place / "file" / "deep" / "out", says="not a folder")
    register_with(place, out=place / "file", says="exists")
    register_with(place, out=place / "fixed.png", says="which is an input itself")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_output_without_permission(place: Path) -> None:
    locked = place / "locked"
    locked.mkdir(mode=0o500)
    register_with(place, out=locked / "out", says="cannot write")


def test_a_file_system_that_refuses(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "mkdtemp", refuse)
        register_with(place, says="cannot write.*Read-only")


@pytest.mark.parametrize("kind", ["empty", "other", "file", "regframe"])
def test_existing_output(kind: str, place: Path, made: Path) -> None:
    out = place / "out"
    if kind == "file":
        out.write_text("x")
    elif kind == "regframe":
        shutil.copytree(made / "run", out)
    else:
        out.mkdir()
    if kind == "other":
        (out / "thesis.txt").write_text("x")
    register_with(place, says="exists.*--overwrite")
    if kind in ("other", "file"):
        register_with(place, "--overwrite", says="left alone")


# ---- results ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that tests get copies of: ``run`` in pixels, and ``micron`` whose sides are in µm, pixels 2 µm wide."""
    folder = tmp_path_factory.mktemp("made")
    for name, grid in (("run", Grid(SIZE)), ("micron", Grid(SIZE, (2.0, 2.0), unit="µm"))):
        blank = Image.from_array(pixels()) if name == "run" else Image(torch.rand((1, *SIZE)), grid)
        results.write_run(folder / name, fake_result(grid, grid, bend=0.3), (blank, blank), {})
    return folder


@pytest.fixture
def saved(place: Path, made: Path) -> Path:
    return shutil.copytree(made / "run", place / "run")


def evaluate(place: Path, fixed: str, moving: str, *args: object, says: str) -> str:
    (place / "f.csv").write_text(fixed)
    (place / "m.csv").write_text(moving)
    files = ("--fixed-landmarks", place / "f.csv", "--moving-landmarks", place / "m.csv")
    return refused(place, "evaluate", place / "run", *files, *args, says=says)


def test_one_landmark_file_longer_than_the_other(place: Path, saved: Path) -> None:
    evaluate(place, "y,x\n1,2\n3,4\n5,6\n", "y,x\n1,2\n3,4\n", says="3 and 2")
    evaluate(place, "id,y,x\na,1,2\nb,3,4\nc,5,6\n", "id,y,x\nb,1,2\na,3,4\n", says="id c")


def test_landmark_files(place: Path, saved: Path) -> None:
    evaluate(place, "1,2\n3,4\n", "y,x\n1,2\n", says="header")
    evaluate(place, "a,b\n3,4\n", "y,x\n1,2\n", says="y and x")
    evaluate(place, "y,x\n3,nan\n", "y,x\n1,2\n", says="line 2")
    evaluate(place, "y_um,x_um\n3,4\n", "y,x\n1,2\n", says="µm")
    evaluate(place, "y,x\n", "y,x\n", says="at least one pair")
    evaluate(place, "y,x\n1,2\n", "y,x\n1,2\n", "--fixed-spacing", 0, says="positive spacing")
    evaluate(place, "z,y,x\n1,2,3\n", "z,y,x\n1,2,3\n", says=r"\[N, 2\]")


def test_broken_results(place: Path, saved: Path) -> None:
    arguments = (place / "moving.png", "-o", place / "w.png", "--to", "fixed")
    refused(place, "apply", "image", place / "none", *arguments, says="does not exist")
    refused(place, "apply", "image", place / "moving.png", *arguments, says=".")
    (place / "hollow").mkdir()
    refused(place, "apply", "image", place / "hollow", *arguments, says="hollow")
    inner = saved / "transform.ome.zarr" / "zarr.json"
    inner.write_text(inner.read_text()[:200])
    refused(place, "apply", "image", saved, *arguments, says=".")
    refused(place, "info", saved, says=".")
    refused(place, "report", saved, says=".")


def test_apply(place: Path, saved: Path) -> None:
    out = place / "w.png"
    refused(place, "apply", "image", saved, place / "none.png", "-o", out, "--to", "fixed", says="none.png")
    (place / "small.png").write_bytes(b"")
    PIL.Image.fromarray(pixels()[:20]).save(place / "small.png")
    refused(place, "apply", "image", saved, place / "small.png", "-o", out, "--to", "fixed", says="--input-spacing")
    refused(place, "apply", "image", saved, place / "moving.png", "-o", place / "w.xyz", "--to", "fixed", says="xyz")
    refused(place, "apply", "image", saved, place / "moving.png", "-o", place / "moving.png" / "w.png", "--to", "fixed",
            says="not a folder")  # fmt: skip
    (place / "cells.csv").write_text("gene,count\na,1\n")
    refused(
        place, "apply", "points", saved, place / "cells.csv", "-o", place / "m.csv", "--to", "fixed", says="y and x"
    )
    refused(
        place, "apply", "points", saved, place / "moving.png", "-o", place / "m.csv", "--to", "fixed", says="moving.png"
    )
    (place / "cells.csv").write_text("x_um,y_um\n1,2\n")
    refused(place, "apply", "points", saved, place / "cells.csv", "-o", place / "m.csv", "--to", "fixed", says="µm")
    (place / "kept").mkdir()
    (place / "kept" / "thesis.txt").write_text("x")
    refused(place, "apply", "image", saved, place / "moving.png", "-o", place / "kept", "--to", "fixed", "--overwrite",
            says="left alone")  # fmt: skip


def test_a_traceback_is_there_for_who_asks(place: Path) -> None:
    arguments = ["register", str(place / "none.png"), str(place / "moving.png"), "-o", str(place / "out"), "-v"]
    outcome = click.testing.CliRunner().invoke(main, arguments)
    assert outcome.exit_code == 2
    assert "Traceback" in outcome.stderr
    assert outcome.stderr.strip().splitlines()[-1].startswith("Error: ")


# ---- tables of positions ------------------------------------------------------------------------------------------

ROWS = "".join(f"c{i},{7.3 * i % 41},{11.9 * i % 37}\n" for i in range(30))
SPACE = "".join(f"c{i},{7.3 * i % 41},{11.9 * i % 37},{5.1 * i % 29}\n" for i in range(30))

TABLES = {
    "no axis names": ("1,2\n3,4\n5,6\n7,9\n9,1\n", "header that names the columns"),
    "mixed units": ("id,x_um,y_mm\n" + ROWS, "one unit for the position columns.*x_um, y_mm"),
    "empty": ("id,x,y\n", "points on the moving side, got none"),
    "nothing": ("", "empty file"),
    "one cell": ("id,x,y\na,1,2\n", r"at least 4 distinct 2D points.*got 1 \(of 1 rows\)"),
    "one cell many times": ("id,x,y\n" + "a,1,2\n" * 9, r"at least 4 distinct 2D points.*got 1 \(of 9 rows\)"),
    "NaN": ("id,x,y\n" + ROWS + "z,nan,3\n", "finite number in y, x.*line 32"),
    "a word": ("id,x,y\n" + ROWS + "z,here,3\n", "finite number in y, x.*line 32"),
    "3D": ("id,x,y,z\n" + SPACE, "one dimension, got 2D fixed and 3D moving"),
}


@pytest.mark.parametrize("case", TABLES)
def test_points_to_register(case: str, tmp_path: Path) -> None:
    text, says = TABLES[case]
    (tmp_path / "fixed.csv").write_text("id,x,y\n" + ROWS)
    (tmp_path / "moving.csv").write_text(text)
    refused(tmp_path, "register", tmp_path / "fixed.csv", tmp_path / "moving.csv", "-o", tmp_path / "out", says=says)


@pytest.mark.parametrize("adapter", [None, "points", "cells"])
@pytest.mark.parametrize("case", ["no axis names", "mixed units", "nothing", "NaN", "3D"])
def test_points_to_apply(case: str, adapter: str | None, place: Path, saved: Path) -> None:
    text, says = TABLES[case]
    (place / "t.csv").write_text(text)
    says = "components.*got 3|cells in a plane, got 3" if case == "3D" else says
    more = () if adapter is None else ("--adapter", adapter)
    refused(place, "apply", "points", saved, place / "t.csv", "-o", place / "m.csv", "--to", "fixed", *more, says=says)


def test_rows_that_may_be_few_or_alike_are_carried(place: Path, saved: Path) -> None:
    """Carrying asks for less than aligning: no row, one row, or an id that several rows bear."""
    for text in ("id,x,y\n", "id,x,y\na,1,2\n", "id,x,y\na,1,2\na,3,4\na,1,2\n"):
        (place / "t.csv").write_text(text)
        arguments = ["apply", "points", saved, place / "t.csv", "-o", place / "m.csv", "--to", "fixed", "--overwrite"]
        outcome = click.testing.CliRunner().invoke(main, [str(a) for a in arguments])
        assert outcome.exit_code == 0, outcome.stderr
        lines = (place / "m.csv").read_text().splitlines()
        assert [line.split(",")[0] for line in lines] == [line.split(",")[0] for line in text.splitlines()]


def test_an_array_names_its_axes() -> None:
    array = np.random.default_rng(0).uniform(0, 50, (40, 2))
    with pytest.raises(ValueError, match="names of the axes of an array"):
        regframe.open(array, adapter="points")
    with pytest.raises(ValueError, match="names of the axes of an array"):
        regframe.open(array, adapter="points", columns="x,z")
    with pytest.raises(ValueError, match=r"array \[N, 2\] or \[N, 3\] of numbers"):
        regframe.open(array.astype(str), adapter="points", columns="y,x")
    with pytest.raises(ValueError, match=r"400 x 2; are these positions\?"):
        regframe.register(np.zeros((400, 2)), np.zeros((400, 2)))
    with pytest.raises(ValueError, match=r"tensor or numpy array of coordinates, got list; numpy\.asarray"):
        regframe.PointSet(array.tolist())
    with pytest.raises(ValueError, match="numeric array"):
        regframe.PointSet(array.astype(str))
    with pytest.raises(ValueError, match="tensor or numpy array of weights, got list"):
        regframe.PointSet(torch.zeros(2, 2), weights=["a", "b"])  # type: ignore[arg-type]
    swapped = regframe.open(array, adapter="points", columns="x,y", unit="um")
    assert swapped.unit == "µm"
    np.testing.assert_array_equal(swapped.coords.numpy(), array[:, ::-1])
    three = regframe.open(np.c_[array, array[:, :1]], adapter="points", columns="x,y,z")
    np.testing.assert_array_equal(three.coords.numpy(), np.c_[array[:, :1], array[:, ::-1]])


def test_a_position_that_is_missing_stays_missing(saved: Path) -> None:
    points = regframe.PointSet(torch.tensor([[float("nan"), 1.0], [20.0, 20.0]], dtype=torch.float64))
    carried = regframe.carry_points(regframe.load(saved), points)
    assert torch.isnan(carried.points.coords[0]).all()
    assert carried.in_canvas.tolist() == [False, True]
    assert torch.isnan(carried.match_probability[0])
    assert torch.isfinite(carried.match_probability[1])


@pytest.fixture
def micron(tmp_path: Path, made: Path) -> Path:
    """A result whose sides are in µm, pixels 2 µm wide."""
    return shutil.copytree(made / "micron", tmp_path / "micron")


def test_a_unit_is_never_taken_silently(place: Path, micron: Path) -> None:
    """Whichever way a table is read: what its columns declare is taken, and what is not declared is said."""
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")

    def carry(name: str, *more: object) -> click.testing.Result:
        arguments = [
            "apply",
            "points",
            micron,
            place / name,
            "-o",
            place / f"out_{name}",
            "--to",
            "fixed",
            "--overwrite",
        ]
        outcome = click.testing.CliRunner().invoke(main, [str(a) for a in (*arguments, *more)])
        assert outcome.exit_code == 0, outcome.stderr
        return outcome

    frame = pandas.DataFrame({"x": [10.0, 20, 55], "y": [5.0, 50, 7]})
    for suffix, names, said in (("", "unit", True), ("_um", "own", False), ("_px", "pixels", False)):
        table = frame.rename(columns=lambda name, end=suffix: name + end)
        table.to_csv(place / f"{names}.csv", index=False)
        table.to_parquet(place / f"{names}.parquet")
        for name in (f"{names}.csv", f"{names}.parquet"):
            assert ("declare no unit were taken in µm" in carry(name).stderr) is said, name
    assert "declare no unit" not in carry("unit.csv", "--input-spacing", 0.5).stderr
    text = pandas.read_csv(place / "out_own.csv")
    binary = pandas.read_parquet(place / "out_own.parquet")
    np.testing.assert_allclose(text[["x_um", "y_um"]], binary[["x_um", "y_um"]])
    doubled = pandas.read_csv(place / "out_pixels.csv")
    assert list(doubled.columns[:2]) == ["x_um", "y_um"]


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_ids_that_are_averaged_are_remarked_on(suffix: str, place: Path, saved: Path) -> None:
    rows, columns = np.indices(SIZE)
    kind = np.float32 if suffix == ".tif" else np.uint8
    pictures = {
        "mask": (rows > 20) & (columns > 30),
        "cells": rows // 8 * 10 + columns // 9,
        "grey": pixels()[..., 0],
        "ramp": rows + columns,
        "smooth": 100 + 90 * np.sin(rows / 40) * np.cos(columns / 35),
        "flat background": np.where(rows > 30, pixels()[..., 0], 0),
    }
    for name, picture in pictures.items():
        array = np.rint(picture).astype(kind)
        path = place / (name + suffix)
        PIL.Image.fromarray(array).save(path)
        arguments = ["apply", "image", saved, path, "-o", place / f"w{suffix}", "--to", "fixed", "--overwrite"]
        for more in ([], ["--labels"]):
            outcome = click.testing.CliRunner().invoke(main, [str(a) for a in (*arguments, *more)])
            assert outcome.exit_code == 0, outcome.stderr
            assert ("look like ids" in outcome.stderr) is (not more and name in ("mask", "cells")), (name, more)
    array = np.linspace(0, 1, SIZE[0] * SIZE[1], dtype=np.float32).reshape(SIZE)
    tifffile.imwrite(place / "half.tif", array)
    refused(place, "apply", "image", saved, place / "half.tif", "-o", place / "w2.tif", "--to", "fixed", "--labels",
            says="whole numbers for labels")  # fmt: skip


def test_where_pixels_count_from(place: Path, micron: Path) -> None:
    """Pixels of a table count from the middle of the first one, those of shapes from its corner; either help says so."""
    identity = fake_result(Grid(SIZE, (2.0, 2.0), unit="µm"), Grid(SIZE, (2.0, 2.0), unit="µm"), bend=0.0)
    blank = Image(torch.rand((1, *SIZE)), identity.fixed_grid)
    results.write_run(place / "same", identity, (blank, blank), {})
    (place / "p.csv").write_text("x,y\n40,10\n")
    (place / "p.geojson").write_text('{"type": "Point", "coordinates": [40, 10]}')
    for kind, name in (("points", "p.csv"), ("shapes", "p.geojson")):
        arguments = ["apply", kind, place / "same", place / name, "-o", place / f"o_{name}", "--to", "fixed"]
        outcome = click.testing.CliRunner().invoke(main, [str(a) for a in (*arguments, "--input-spacing", 0.5)])
        assert outcome.exit_code == 0, outcome.stderr
    row = (place / "o_p.csv").read_text().splitlines()[1].split(",")
    assert [float(v) for v in row[:2]] == pytest.approx([20.0, 5.0], abs=1e-6)
    drawn = json.loads((place / "o_p.geojson").read_text())["coordinates"]
    assert drawn == pytest.approx([19.0, 4.0], abs=1e-6)  # the corner lies at -1 µm
    said = {
        kind: " ".join(click.testing.CliRunner().invoke(main, ["apply", kind, "--help"]).stdout.split())
        for kind in ("points", "shapes")
    }
    assert "middle of the first pixel" in said["points"]
    assert "outer corner of the first pixel" in said["shapes"]
