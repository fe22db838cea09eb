"""`regframe evaluate` says when x and y of a file of landmarks are exchanged, and is quiet when the map is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fake_result import fake_result

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
