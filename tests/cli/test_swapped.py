"""`regframe evaluate` says when x and y of landmarks, or both sides, are exchanged, and is quiet when the map is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fake_result import fake_result
from PIL import Image as Picture

from regframe.cli import main
from regframe.data import Grid


def write(path: Path, coords: torch.Tensor) -> None:
    np.savetxt(path, coords.numpy(), delimiter=",", header="y,x", comments="")


@pytest.mark.parametrize(("fixed", "moving", "said"), [(0, 0, None), (0, 1, "m.csv"), (1, 0, "f.csv")])
def test_exchanged_columns_are_said(tmp_path: Path, fixed: int, moving: int, said: str | None) -> None:
    grid = Grid((90, 90), 2.0, unit="µm")
    result = fake_result(grid, grid)
    result.save(tmp_path / "run.ome.zarr")
    m = 20 + 130 * torch.rand(12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    f = result.to_fixed(m)
    for name, coords, turned in (("f.csv", f, fixed), ("m.csv", m, moving)):
        write(tmp_path / name, coords.flip(1) if turned else coords)
    done = CliRunner().invoke(
        main,
        ["evaluate", str(tmp_path / "run.ome.zarr"), "--fixed-landmarks", str(tmp_path / "f.csv"),
         "--moving-landmarks", str(tmp_path / "m.csv")],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert ("x and y of" in done.output) == (said is not None)
    if said is not None:
        assert f"{said} exchanged the median error is" in done.output.replace("\n", "")


def test_landmarks_that_fit_neither_way_say_nothing(tmp_path: Path) -> None:
    grid = Grid((90, 90), 2.0, unit="µm")
    fake_result(grid, grid).save(tmp_path / "run.ome.zarr")
    generator = torch.Generator().manual_seed(4)
    for name in ("f.csv", "m.csv"):
        write(tmp_path / name, 180 * torch.rand(12, 2, dtype=torch.float64, generator=generator) - 1)
    done = CliRunner().invoke(
        main,
        ["evaluate", str(tmp_path / "run.ome.zarr"), "--fixed-landmarks", str(tmp_path / "f.csv"),
         "--moving-landmarks", str(tmp_path / "m.csv")],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "exchanged" not in done.output


@pytest.mark.parametrize("one", [False, True])
def test_exchanged_sides_are_said(tmp_path: Path, one: bool) -> None:
    """Of two files, and of one with both sides; of volumes as well."""
    for ndim in (2, 3):
        grid = Grid((40,) * ndim)
        shift = torch.eye(ndim + 1, dtype=torch.float64)
        shift[:-1, -1] = torch.tensor([9.0, -7.0, 5.0][:ndim])
        result = fake_result(grid, grid, affine=shift, bend=0.0)
        result.save(tmp_path / f"{ndim}.ome.zarr")
        m = 10 + 20 * torch.rand(12, ndim, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        f, names = result.to_fixed(m), "zyx"[-ndim:]
        files = {"f.csv": (names, m), "m.csv": (names, f)}
        both = [f"{side}_{axis}" for side in ("fixed", "moving") for axis in names]
        for name, (header, coords) in (files | {"both.csv": (both, torch.cat([m, f], dim=1))}).items():
            np.savetxt(tmp_path / name, coords.numpy(), delimiter=",", header=",".join(header), comments="")
        two = ["--fixed-landmarks", str(tmp_path / "f.csv"), "--moving-landmarks", str(tmp_path / "m.csv")]
        words = ["--landmarks", str(tmp_path / "both.csv")] if one else two
        done = CliRunner().invoke(main, ["evaluate", str(tmp_path / f"{ndim}.ome.zarr"), *words])
        assert done.exit_code == 0, done.output
        assert "with both sides exchanged the median error is" in done.output
        assert ("exchange the columns fixed_…" if one else "exchange the two files") in done.output


def test_register_says_it_before_it_fits(tmp_path: Path) -> None:
    """Of two pictures of unlike size, one of which the landmarks fall off as they were given."""
    for name, shape in (("fixed", (60, 80)), ("moving", (200, 220))):
        pixels = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
        Picture.fromarray(pixels).save(tmp_path / f"{name}.png")
    rows = "120,150,20,30\n180,40,50,10\n30,100,10,70\n"
    (tmp_path / "p.csv").write_text(f"fixed_y,fixed_x,moving_y,moving_x\n{rows}", encoding="utf-8")
    files = [str(tmp_path / name) for name in ("fixed.png", "moving.png")]
    done = CliRunner().invoke(
        main, ["register", *files, "--landmarks", str(tmp_path / "p.csv"), "-o", str(tmp_path / "out")]
    )
    assert done.exit_code == 2
    assert "with both sides exchanged all lie inside: exchange the columns fixed_… and moving_…" in done.stderr
    assert not (tmp_path / "out").exists()


def test_landmarks_of_tables_are_taken_in_their_own_unit(tmp_path: Path) -> None:
    """Micrometres for tables in millimetres are converted, pixels are refused."""
    at = np.random.default_rng(1).uniform(0, 3, (60, 2))
    for name, shift in (("fixed", 0.0), ("moving", 1.5)):
        rows = "\n".join(f"{y + shift},{x}" for y, x in at)
        (tmp_path / f"{name}.csv").write_text(f"y_mm,x_mm\n{rows}\n", encoding="utf-8")
    pairs = "\n".join(f"{1e3 * y},{1e3 * x},{1e3 * (y + 1.5)},{1e3 * x}" for y, x in at[:4])
    for unit, code in (("um", (0, 3)), ("px", (2,))):
        header = ",".join(f"{side}_{axis}_{unit}" for side in ("fixed", "moving") for axis in "yx")
        (tmp_path / "p.csv").write_text(f"{header}\n{pairs}\n", encoding="utf-8")
        files = [str(tmp_path / f"{name}.csv") for name in ("fixed", "moving")]
        words = ["--landmarks", str(tmp_path / "p.csv"), "--transform", "rigid", "-o", str(tmp_path / unit), "--json"]
        done = CliRunner().invoke(main, ["register", *files, *words])
        assert done.exit_code in code, done.output
        if unit == "px":
            assert "wanted fixed landmarks" in done.stderr
            assert "got px" in done.stderr
            continue
        start = json.loads((tmp_path / unit / "metrics.json").read_text(encoding="utf-8"))
        assert max(start["landmark_residual_px"]) < 1e-6
