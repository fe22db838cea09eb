"""Bare matrices: read as their programs mean them, whatever wrote them, with direction, unit and axes as the user says."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from click.testing import CliRunner, Result
from fake_result import fake_result

import regframe as rf
from regframe.cli import main
from regframe.data import Grid
from regframe.formats import exchange
from regframe.maps.affine import Affine

CASE = Path("../shared/cases/25")
C, S = math.cos(0.3), math.sin(0.3)
TWO = np.array([[1.1 * C, -S, 40.0], [S, 0.9 * C, -7.5], [0.0, 0.0, 1.0]])  # x, y
SIDE = Grid((50, 60))
AT = np.array([[3.0, 5.0], [20.0, 11.0], [44.5, 30.25]])  # [N, 2], (x, y)


def there(matrix: np.ndarray, at: np.ndarray = AT) -> np.ndarray:
    return at @ matrix[:2, :2].T + matrix[:2, -1]


def text(matrix: np.ndarray, **how: Any) -> bytes:
    return pd.DataFrame(matrix).to_csv(header=False, index=False, **how).encode()


def array(path: Path, matrix: np.ndarray) -> None:
    np.save(path, matrix)


def solid(matrix: np.ndarray) -> np.ndarray:
    out = np.eye(4)
    out[np.ix_([0, 1, 3], [0, 1, 3])] = matrix
    return out


WRITTEN: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "xenium explorer": ("he_imagealignment.csv", lambda p: p.write_bytes(text(TWO))),
    "merscope": ("micron_to_mosaic_pixel_transform.csv", lambda p: p.write_bytes(text(TWO, sep=" "))),
    "opencv": ("warp.npy", lambda p: array(p, TWO[:2])),
    "opencv, text": ("warp.txt", lambda p: np.savetxt(p, TWO[:2], header="cv2.estimateAffine2D")),
    "numpy": ("m.npy", lambda p: array(p, TWO)),
    "numpy, single": ("m.npy", lambda p: array(p, solid(TWO))),
    "with z": ("m.csv", lambda p: p.write_bytes(text(solid(TWO)))),
    "tabs": ("m.tsv", lambda p: p.write_bytes(text(TWO, sep="\t"))),
    "decimal commas": ("m.csv", lambda p: p.write_bytes(b"sep=;\r\n" + text(TWO, sep=";", decimal=","))),
    "utf-16": ("m.txt", lambda p: p.write_bytes(text(TWO, sep="\t").decode().encode("utf-16"))),
    "mark": ("m.csv", lambda p: p.write_bytes(b"\xef\xbb\xbf" + text(TWO))),
    "pandas": ("m.csv", lambda p: pd.DataFrame(TWO).to_csv(p)),
    "pandas, 2 x 3": ("m.csv", lambda p: pd.DataFrame(TWO[:2]).to_csv(p)),
    "pandas, header": ("m.csv", lambda p: pd.DataFrame(TWO).to_csv(p, index=False)),
    "comment": ("m.csv", lambda p: p.write_bytes(b"# to the DAPI image\n" + text(TWO))),
}


@pytest.mark.parametrize("to", ["fixed", "moving"])
@pytest.mark.parametrize("kind", WRITTEN)
def test_every_way_to_write_a_matrix(kind: str, to: Any, tmp_path: Path) -> None:
    name, write = WRITTEN[kind]
    write(tmp_path / name)
    result = rf.read_map(tmp_path / name, SIDE, SIDE, to=to)
    at = torch.from_numpy(AT[:, ::-1].copy())
    found = (result.to_fixed(at) if to == "fixed" else result.to_moving(at)).numpy()[:, ::-1]
    np.testing.assert_allclose(found, there(TWO), atol=1e-9)
    source = "moving" if to == "fixed" else "fixed"
    assert result.metrics["imported"]["said"] == (
        f"the matrix was taken from {source} positions in px to {to} ones in px, components x, y"
    )
    assert result.verdict in ("warn", "fail")


def test_order_of_axes_and_space(tmp_path: Path) -> None:
    flipped = TWO[[1, 0, 2]][:, [1, 0, 2]]
    np.save(tmp_path / "m.npy", flipped)
    at = torch.from_numpy(AT[:, ::-1].copy())
    found = rf.read_map(tmp_path / "m.npy", SIDE, SIDE, to="fixed", axes="yx").to_fixed(at).numpy()[:, ::-1]
    np.testing.assert_allclose(found, there(TWO))
    matrix = np.random.default_rng(0).normal(size=(3, 4))
    np.savetxt(tmp_path / "m.csv", matrix, delimiter=",")
    volume = Grid((9, 9, 9), 2.0, (), "µm")
    where = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    result = rf.read_map(tmp_path / "m.csv", volume, volume, to="fixed", unit="um")
    expected = matrix[:, :3] @ np.array([3.0, 2.0, 1.0]) + matrix[:, 3]
    np.testing.assert_allclose(result.to_fixed(where).numpy()[0, ::-1], expected)


@pytest.mark.parametrize(
    ("unit", "options", "fixed", "moving"),
    [
        ("um", {}, 1.0, 1.0),
        ("mm", {}, 1000.0, 1000.0),
        ("px", {}, 0.5, 2.0),
        ("um", {"fixed_unit": "px"}, 0.5, 1.0),
        ("0.25um", {"moving_unit": "3 nm"}, 0.25, 0.003),
        (None, {"fixed_unit": "px", "moving_unit": "mm"}, 0.5, 1000.0),
    ],
)
def test_units_are_those_that_are_stated(
    unit: str | None, options: dict[str, Any], fixed: float, moving: float, tmp_path: Path
) -> None:
    np.save(tmp_path / "m.npy", TWO)
    grids = Grid((50, 60), 0.5, (), "µm"), Grid((50, 60), 2.0, (), "µm")
    result = rf.read_map(tmp_path / "m.npy", *grids, to="fixed", unit=unit, **options)
    at = torch.from_numpy(AT[:, ::-1].copy())
    found = result.to_fixed(at * moving).numpy()[:, ::-1]
    np.testing.assert_allclose(found, there(TWO) * fixed, rtol=1e-12)
    written = rf.write_map(result, tmp_path / "o.csv", "matrix", to="fixed", unit=unit, **options)
    assert written.max_error_px is not None
    assert written.max_error_px < 1e-9
    np.testing.assert_allclose(np.loadtxt(tmp_path / "o.csv", delimiter=","), TWO, rtol=1e-12, atol=1e-12)


def test_a_length_needs_a_unit(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", TWO)
    length = Grid((50, 60), 0.5, (), "µm")
    with pytest.raises(ValueError, match=r"on the fixed side, which is in µm, got none; state it with --unit px"):
        rf.read_map(tmp_path / "m.npy", length, SIDE)
    with pytest.raises(ValueError, match="wanted px for the moving side, which declares no pixel size, got 'um'"):
        rf.read_map(tmp_path / "m.npy", SIDE, SIDE, moving_unit="um")
    with pytest.raises(ValueError, match="wanted a unit such as px"):
        rf.read_map(tmp_path / "m.npy", SIDE, SIDE, moving_unit="?")


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (TWO.T, "transpose it"),
        (TWO + np.array([[0], [0], [0.01]]), "it is a projection"),
        (np.diag([1.0, 0.0, 1.0]), "singular|invert"),
        (np.full((3, 3), np.nan), "finite numbers|last row"),
        (np.eye(5), "got \\[5, 5\\]"),
        (solid(TWO) + np.outer([0, 0, 1, 0], [0.1, 0, 0, 0]), "leaves z alone"),
        (np.eye(3).astype(object), "Object arrays|allow_pickle|numbers"),
    ],
)
def test_refused(matrix: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", matrix)
    with pytest.raises(ValueError, match=message):
        rf.read_map(tmp_path / "m.npy", SIDE, SIDE, "matrix")


def test_tables_and_other_files_are_no_matrices(tmp_path: Path) -> None:
    from regframe.formats.elastix import Elastix

    (tmp_path / "t.csv").write_text("x,y,z\n1,2,3\n4,5,6\n")
    assert exchange.format_of(tmp_path / "t.csv").name == "csv"
    (tmp_path / "t.txt").write_text('(Transform "AffineTransform")\n')
    assert exchange.format_of(tmp_path / "t.txt") is Elastix
    np.savetxt(tmp_path / "m.csv", TWO, delimiter=",")
    assert exchange.format_of(tmp_path / "m.csv").name == "matrix"
    assert exchange.format_of(tmp_path / "m.csv", reading=False).name == "csv"
    bent = fake_result(SIDE, SIDE, bend=1.0)
    with pytest.raises(ValueError, match="got one that bends"):
        rf.write_map(bent, tmp_path / "o.npy")


# ---- the command line -----------------------------------------------------------------------------------------------


def run(*args: object, code: int | tuple[int, ...] = 0) -> Result:
    outcome = CliRunner().invoke(main, [str(a) for a in args])
    codes = code if isinstance(code, tuple) else (code,)
    assert outcome.exit_code in codes, (outcome.exit_code, outcome.output, outcome.exception)
    return outcome


def pyramid(path: Path, size: float) -> Path:
    """An OME-TIFF with two levels, whose finest pixel is ``size`` µm."""
    pixels = np.random.default_rng(1).integers(0, 255, (256, 320), dtype=np.uint8)
    with tifffile.TiffWriter(path, ome=True) as tif:
        about = {
            "axes": "YX",
            "PhysicalSizeX": size,
            "PhysicalSizeY": size,
            "PhysicalSizeXUnit": "µm",
            "PhysicalSizeYUnit": "µm",
        }
        tif.write(pixels, subifds=1, metadata=about, tile=(64, 64))
        tif.write(pixels[::2, ::2].copy(), subfiletype=1, tile=(64, 64))
    return path


def test_import_counts_pixels_of_the_finest_level(tmp_path: Path) -> None:
    fixed, moving = pyramid(tmp_path / "f.ome.tif", 0.2125), pyramid(tmp_path / "m.ome.tif", 0.25)
    (tmp_path / "m.csv").write_bytes(text(TWO))
    sides = ("--fixed", fixed, "--moving", moving, "--level", 1)
    said = run("import", tmp_path / "m.csv", *sides, "--to", "fixed", "-o", tmp_path / "out", code=2)
    assert "state it with --unit px" in said.stderr
    said = run(
        "import", tmp_path / "m.csv", *sides, "--to", "fixed", "--unit", "px", "-o", tmp_path / "out", code=(0, 3)
    )
    assert "from moving positions in px of 0.25 µm to fixed ones in px of 0.2125 µm, components x, y" in said.stderr
    found = rf.load(tmp_path / "out").to_fixed(torch.from_numpy(AT[:, ::-1] * 0.25)).numpy()[:, ::-1]
    np.testing.assert_allclose(found, there(TWO) * 0.2125, atol=1e-9)
    run("export", tmp_path / "out", "--format", "matrix", "--to", "fixed", "--unit", "px", "-o", tmp_path / "o.csv")
    np.testing.assert_allclose(np.loadtxt(tmp_path / "o.csv", delimiter=","), TWO, rtol=1e-9, atol=1e-9)
    moving.unlink()
    said = run("export", tmp_path / "out", "--to", "fixed", "--unit", "px", "-o", tmp_path / "o.npy", code=2)
    assert "--format-set moving_unit=0.25um" in said.stderr or "--format-set fixed_unit=0.25um" in said.stderr
    run("export", tmp_path / "out", "--to", "fixed", "--unit", "0.25um", "-o", tmp_path / "o.npy")
    assert np.load(tmp_path / "o.npy")[0, 0] == pytest.approx(TWO[0, 0] * 0.2125 / 0.25)


@pytest.mark.parametrize(
    ("extra", "to"), [((), "fixed"), (("--init-to", "fixed"), "fixed"), (("--init-to", "moving"), "moving")]
)
def test_a_matrix_as_start(extra: tuple[str, ...], to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []

    def register(fixed: Any, moving: Any, **how: Any) -> Any:
        taken.append(how["init"])
        return fake_result(fixed.grid, moving.grid)

    monkeypatch.setattr(rf, "register", register, raising=False)
    monkeypatch.setattr("regframe.report.results.write", lambda *args: Path(args[3]).write_text("<html>"))
    fixed, moving = pyramid(tmp_path / "f.ome.tif", 0.2125), pyramid(tmp_path / "m.ome.tif", 0.25)
    np.save(tmp_path / "m.npy", TWO)
    start = ("--init", tmp_path / "m.npy", "--init-unit", "px", *extra)
    said = run("register", fixed, moving, *start, "-o", tmp_path / "out")
    assert f"to {to} ones in px of" in said.stderr
    expected = Affine(taken[0].affine.matrix, "µm", "µm")
    at, after = torch.from_numpy(AT[:, ::-1].copy()), torch.from_numpy(there(TWO)[:, ::-1].copy())
    if to == "fixed":
        np.testing.assert_allclose(expected.points(at * 0.25), after * 0.2125)
    else:
        np.testing.assert_allclose(expected.points(after * 0.25), at * 0.2125)


def test_starts_of_other_programs_and_none(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK", reason="needs the extra itk")
    fixed = pyramid(tmp_path / "f.ome.tif", 0.2125)
    sitk.WriteTransform(sitk.TranslationTransform(2, (0.001, 0.002)), str(tmp_path / "t.tfm"))
    shown = run("register", fixed, fixed, "--init", tmp_path / "t.tfm", "--dry-run", "--json", "-o", tmp_path / "o")
    assert json.loads(shown.stdout)["run"]["init"] == str(tmp_path / "t.tfm")
    refused = run("register", fixed, fixed, "--init-to", "fixed", "--dry-run", "-o", tmp_path / "o", code=2)
    assert "wanted --init FILE beside --init-to" in refused.stderr


@pytest.mark.parametrize("name", ["imagealignment.csv", "micron_to_mosaic_pixel_transform.csv"])
def test_the_files_of_the_report(name: str, tmp_path: Path) -> None:
    if not (CASE / name).is_file():
        pytest.skip(f"{CASE / name} is not here")
    pytest.importorskip("SimpleITK", reason="needs the extra itk")
    sides = ("--fixed", CASE / "fixed.png", "--moving", CASE / "fixed.png")
    run("import", CASE / name, *sides, "--to", "fixed", "-o", tmp_path / "a")
    run("import", CASE / "known.tfm", *sides, "-o", tmp_path / "b")
    for out in "ab":
        marks = ("--fixed-landmarks", CASE / "f.csv", "--moving-landmarks", CASE / "m5.csv")
        found = json.loads(run("evaluate", tmp_path / out, *marks, "--json").stdout)
        assert found["tre_px"]["max"] < 1e-7
        assert found["paired_on"] == "label"
