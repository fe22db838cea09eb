"""File names of any bytes that a file system allows: all is written and read back, and a report never destroys a result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from fake_result import fake_result
from regframe_image.volume import write_volume

import regframe as rf
from regframe.cli import main
from regframe.io import outputs, paths
from regframe.report import results

NAMES = [b"caf\xe9", b"\xff\xfe", b"a\xe9 b\x80", "µ名".encode(), b"q'\"&<\n>%s\x01", b"-x\\", b"sp ace\t"]
"""Western and broken bytes, other alphabets, signs that mean something to HTML, shells, YAML or formats."""
TURN = torch.tensor([[0.96, -0.2, 9.0], [0.2, 0.96, -3.0], [0, 0, 1]], dtype=torch.float64)


@pytest.fixture(params=NAMES, ids=[name.hex() for name in NAMES])
def name(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    found = os.fsdecode(request.param)
    try:
        (tmp_path / found).touch()
    except (OSError, UnicodeError):
        pytest.skip("this file system does not allow such a name")
    (tmp_path / found).unlink()
    return found


def run(*args: object, code: int = 0) -> Result:
    outcome = CliRunner().invoke(main, [str(a) for a in args])
    assert outcome.exit_code == code, (outcome.exit_code, outcome.output, outcome.exception)
    return outcome


def picture(path: Path) -> Path:
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 44), dtype=np.uint8)).save(path, "PNG")
    return path


def test_a_run_and_all_that_follows(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / name
    folder.mkdir()
    fixed, moving = picture(folder / f"{name}.png"), picture(folder / f"{name}2.png")
    out = folder / f"{name}.out"
    monkeypatch.setattr(rf, "register", lambda f, m, **how: fake_result(f.grid, m.grid, TURN), raising=False)
    run("register", fixed, moving, "-o", out, "--save-warped")
    assert {p.name for p in out.iterdir()} >= {
        "transform.ome.zarr",
        "metrics.json",
        "config.resolved.yaml",
        "report.html",
    }
    found = yaml.safe_load((out / "config.resolved.yaml").read_text(encoding="utf-8"))["run"]
    assert found["fixed"]["path"] == str(fixed)
    (out / "report.html").unlink()
    run("report", out)
    assert (out / "report.html").stat().st_size > 10_000
    assert (
        str(fixed)
        in json.loads(run("register", fixed, moving, "-o", folder / "n", "--dry-run", "--json").stdout)["run"]["fixed"][
            "path"
        ]
    )
    for suffix in ("png", "ome.tif", "ome.zarr"):
        run("apply", "image", out, moving, "--to", "fixed", "-o", folder / f"{name}.w.{suffix}")
        assert rf.open(folder / f"{name}.w.{suffix}").grid.shape == (40, 44)
    table = folder / f"{name}.csv"
    table.write_text("id,x,y\na,3,4\nb,5,6.5\n")
    for suffix in ("csv", "tsv.gz", "pts"):
        run("apply", "points", out, table, "--to", "fixed", "-o", folder / f"{name}.o.{suffix}")
    marks = ("--fixed-landmarks", folder / f"{name}.o.csv", "--moving-landmarks", table)
    assert json.loads(run("evaluate", out, *marks, "--json").stdout)["tre_px"]["max"] < 1e-6
    assert not [p for p in folder.iterdir() if ".partial" in p.name]


FORMATS = """
import dataclasses, os, sys, traceback, torch, regframe as rf
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fake_result import fake_result
from regframe_image.volume import write_volume
import h5py, SimpleITK
matrix, grid = torch.tensor(eval(sys.argv[2]), dtype=torch.float64), rf.Grid((20, 24))

def there_and_back(folder):
    bent, affine = fake_result(grid, grid, matrix, 0.5), rf.Affine(matrix)
    straight = dataclasses.replace(bent, transform=affine, affine=affine)
    for suffix in sys.argv[3:]:
        path = folder / (folder.name if suffix == "ants" else f"{folder.name}.{suffix}")
        only = {"mat": (straight,), "txt": (straight,), "npy": (straight,), "nii": (bent,), "nii.gz": (bent,), "npz": (bent,)}
        for result in only.get(suffix, (straight, bent)):  # the others keep a straight map in another way than a bend
            rf.write_map(result, path, "ants" if suffix == "ants" else None, overwrite=True)
            back = rf.read_map(path, grid, grid, "ants" if suffix == "ants" else None)
            at = torch.tensor([[5.0, 7.0], [9.0, 11.0]], dtype=torch.float64)
            assert float((back.to_moving(at) - result.to_moving(at)).abs().max()) < 0.05, suffix

rf.write_map, rf.read_map, rf.adapter("image")
for line in sys.stdin.buffer:
    sys.stdout.flush()
    child = os.fork()
    if not child:
        try:
            there_and_back(Path(os.fsdecode(bytes.fromhex(line.decode()))))
        except BaseException:
            traceback.print_exc(file=sys.stdout)
            sys.stdout.flush()
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)
    print("ended", os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture(scope="module")
def formats() -> Iterator[subprocess.Popen[str]]:
    """A process that has loaded everything, and forks one of its own for every name that it is told."""
    pytest.importorskip("SimpleITK", reason="needs the extra itk")
    suffixes = ["h5", "tfm", "mat", "nii.gz", "nii", "txt", "npz", "ome.zarr", "npy", "ants"]
    command = [sys.executable, "-c", FORMATS, str(Path(__file__).parents[1]), str(TURN.tolist()), *suffixes]
    environment = {
        **os.environ,
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": "1",
    }  # a fork has the threads that it starts
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        encoding="utf-8", errors="replace", env=environment,
    ) as process:  # fmt: skip
        yield process
        assert process.stdin is not None
        process.stdin.close()


def test_maps_of_every_format(name: str, tmp_path: Path, formats: subprocess.Popen[str]) -> None:
    """In a process of its own: a library that is handed such a name may end it."""
    folder = tmp_path / name
    folder.mkdir()
    assert formats.stdin is not None
    assert formats.stdout is not None
    print(os.fsencode(folder).hex(), file=formats.stdin, flush=True)
    said = []
    for line in formats.stdout:
        said.append(line)
        if line.startswith("ended "):
            break
    assert said[-1:] == ["ended 0\n"], "".join(said)[-1500:]
    assert len(list(folder.iterdir())) >= 10
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("suffix", ["parquet", "h5ad", "csv"])
def test_tables_of_cells(name: str, suffix: str, tmp_path: Path) -> None:
    anndata = pytest.importorskip("anndata", reason="needs the extra anndata")
    pytest.importorskip("pyarrow", reason="needs the extra tables")
    places = np.random.default_rng(0).uniform(0, 90, (20, 2))
    path = tmp_path / f"{name}.{suffix}"
    with paths.native_path(path, write=True) as native:
        if suffix == "h5ad":
            anndata.AnnData(np.ones((20, 1), np.float32), obsm={"spatial": places}).write_h5ad(native)
        else:
            frame = pd.DataFrame(places, columns=["x", "y"])
            frame.to_parquet(native) if suffix == "parquet" else frame.to_csv(native, index=False)
    adapter = rf.adapter("cells")
    adapter.save(adapter.apply(path, rf.Affine.identity(2)), tmp_path / f"{name}.o.{suffix}")
    options: dict[str, Any] = {"columns": "spatial_aligned"} if suffix == "h5ad" else {}
    back = rf.adapter("cells", **options).read(tmp_path / f"{name}.o.{suffix}")
    np.testing.assert_array_equal(back.coords.numpy()[:, ::-1], places)
    assert len(list(tmp_path.iterdir())) == 2


def test_output_is_the_bytes_of_the_path(tmp_path: Path) -> None:
    """What a pipe gets is the name as the file system has it; JSON is text, from which the name is read back."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        folder.mkdir()
    except (OSError, UnicodeError):
        pytest.skip("this file system does not allow such a name")
    picture(folder / "a.png")
    code = (
        "import sys; from regframe.cli import main; main(sys.argv[1:], standalone_mode=False); "
        "print('----', flush=True); main([*sys.argv[1:], '--json'])"
    )
    command = [
        sys.executable,
        "-c",
        code,
        "register",
        folder / "a.png",
        folder / "a.png",
        "--dry-run",
        "-o",
        folder / "o",
    ]
    ended = subprocess.run([os.fsencode(part) for part in command], capture_output=True)
    assert ended.returncode == 0
    plain, told = ended.stdout.split(b"----\n")
    assert b"caf\xe9/a.png" in plain
    assert Path(json.loads(told)["run"]["fixed"]["path"]) == folder / "a.png"


def test_a_report_that_fails_leaves_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = rf.Grid((20, 24))
    result, image = fake_result(grid, grid, TURN), rf.Image(torch.rand((1, 20, 24)), grid)

    def broken(*_: Any) -> None:
        Path(_[3]).write_text("half a page")
        raise UnicodeEncodeError("utf-8", "\udce9", 0, 1, "surrogates not allowed")

    monkeypatch.setattr("regframe.report.results.write", broken)
    with pytest.warns(UserWarning, match="the result is written, but not its page"):
        results.write_run(tmp_path / "out", result, (image, image), {})
    assert outputs.is_output(tmp_path / "out")
    assert not (tmp_path / "out" / "report.html").exists()
    assert rf.load(tmp_path / "out").verdict == result.verdict
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_names_are_shown_and_handed_on() -> None:
    assert paths.shown("plain µ") == "plain µ"
    assert paths.shown(os.fsdecode(b"caf\xe9\xff")) == "caf\\xe9\\xff"
    with paths.native_path(Path("a.csv")) as path:
        assert path == Path("a.csv")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_volumes_of_any_name_are_read_and_written(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("SimpleITK")
    values = np.random.default_rng(0).integers(0, 255, (9, 10, 11)).astype(np.uint8)
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9" + suffix.encode()))
    write_volume(path, values[None], (2.0, 1.0, 1.5), (3.0, 2.0, 1.0), "mm")
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    image = rf.open(path)
    assert isinstance(image, rf.Image)
    assert np.array_equal(image.data[0].numpy(), values)
    assert image.grid.spacing == pytest.approx((2.0, 1.0, 1.5))
