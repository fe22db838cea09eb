"""`regframe apply image` reads the file of a run as the run read it, says so, and leaves other files alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pytest
import tifffile
import torch
from fake_result import fake_result

import regframe as rf
from regframe.cli import main
from regframe.report import results

MM = torch.eye(3, dtype=torch.float64)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a file of two series, the second of which was read, with its axes and pixel size told by hand."""
    tmp_path = tmp_path_factory.mktemp("run")
    ramp = np.broadcast_to(np.arange(80, dtype=np.uint16)[:, None, None], (80, 60, 5))
    with tifffile.TiffWriter(tmp_path / "m.tif") as tif:
        tif.write(np.zeros((200, 200), np.uint8))
        tif.write(np.moveaxis(ramp, 2, 0), photometric="minisblack", metadata=None)
    tifffile.imwrite(tmp_path / "other.tif", np.moveaxis(ramp, 2, 0), photometric="minisblack", metadata=None)
    grid = rf.Grid((80, 60), 2.0, unit="µm")
    result = fake_result(grid, grid, MM, bend=0.0)
    side = {"path": tmp_path / "m.tif", "adapter": "image"}
    how = {"series": 1, "axes": "cyx", "spacing": [2.0, 2.0], "unit": "µm", "channels": 0, "level": 0, "nodata": 0.0}
    image = rf.Image.from_array(np.zeros((80, 60), np.uint8), "yx", 2.0, unit="µm")
    recorded: dict[str, Any] = {"fixed": side | {"options": {}}, "moving": side | {"options": how}}
    results.write_run(tmp_path / "run", result, (image, image), recorded | {"init": "auto", "landmarks": None}, False)
    return tmp_path / "run"


def apply(*arguments: object, code: int = 0) -> str:
    outcome = click.testing.CliRunner().invoke(main, ["apply", "image", *map(str, arguments)])
    assert outcome.exit_code == code, outcome.output
    return outcome.stderr


@pytest.mark.parametrize("suffix", [".nrrd", ".ome.zarr", ".ome.tif"])
def test_the_file_of_the_run_is_read_as_then(run: Path, suffix: str) -> None:
    out = run.parent / f"o{suffix}"
    said = apply(run, run.parent / "m.tif", "-o", out, "--to", "fixed")
    assert "Note: m.tif is read as it was registered, with series=1, axes=cyx, spacing=[2.0, 2.0], unit=µm;" in said
    image = rf.open(out)
    assert image.data.shape == (5, 80, 60)  # all channels, not the one that was registered
    assert torch.equal(image.data[0, :, 0].to(torch.int64), torch.arange(80))


def test_moved_files_and_others(run: Path) -> None:
    place, other = run.parent / "m.tif", run.parent / "other.tif"
    own = ("--adapter-set", "axes=cyx", "--input-spacing", "2")
    said = apply(run, other, "-o", run.parent / "a.tif", "--to", "fixed", *own)
    assert (
        "Note: other.tif is not the moving file that was registered (m.tif), whose options (series=1) are not" in said
    )
    assert "regist" not in apply(run, other, "-o", run.parent / "b.tif", "--to", "moving", *own)
    (run.parent / "elsewhere").mkdir()
    moved = run.parent / "elsewhere" / "m.tif"
    shutil.copy(other, moved)
    assert "m.tif is not the moving file" in apply(run, moved, "-o", run.parent / "c.tif", "--to", "fixed", *own)
    place.rename(run.parent / "gone.tif")
    shutil.copy(run.parent / "gone.tif", moved)
    try:
        assert "m.tif is read as it was registered" in apply(run, moved, "-o", run.parent / "d.tif", "--to", "fixed")
    finally:
        (run.parent / "gone.tif").rename(place)


def test_what_the_user_says_counts_more(run: Path) -> None:
    place = run.parent / "m.tif"
    own = ("--adapter-set", "series=1", "--adapter-set", "axes=cyx", "--input-spacing", "2")
    assert "regist" not in apply(run, place, "-o", run.parent / "e.tif", "--to", "fixed", *own)  # nothing is left
    said = apply(run, place, "-o", run.parent / "f.tif", "--to", "fixed", *own[:2], "--labels")
    assert "with axes=cyx, spacing=[2.0, 2.0], unit=µm;" in said
    bare = run / "transform.ome.zarr"
    assert "Note" not in apply(bare, place, "-o", run.parent / "g.tif", "--to", "fixed", *own)
