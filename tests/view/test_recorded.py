"""Both sides of a stored result, opened where the result puts them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from fake_result import fake_result

import regframe as rf
from regframe.cli import main


def test_both_sides_lie_where_the_result_puts_them(pair: tuple[Path, Path], tmp_path: Path) -> None:
    words = ["register", *map(str, pair), "-o", str(tmp_path / "run"), "--transform", "rigid"]
    words += ["--fixed-mpp", "0.5", "--moving-mpp", "0.5"]
    assert CliRunner().invoke(main, words).exit_code in (0, 3)
    result = rf.load(tmp_path / "run")
    assert result.headline.startswith(("Confirmed", "Not confirmed", "Contradicted"))
    for folder in (tmp_path / "run", tmp_path / "run" / "transform.ome.zarr"):
        fixed, moving = rf.open_sides(rf.load(folder))
        assert isinstance(fixed, rf.Pyramid)
        assert isinstance(moving, rf.Pyramid)
        assert (fixed.grid, moving.grid) == (result.fixed_grid, result.moving_grid)
        assert np.array_equal(fixed.image().data.numpy(), rf.open(pair[0]).data.numpy())
    elsewhere = shutil.copy(pair[1], tmp_path / "elsewhere.png")
    _, again = rf.open_sides(result, moving=elsewhere)
    assert again.name == "elsewhere.png"
    with pytest.raises(FileNotFoundError, match="wanted the fixed file at"):
        rf.open_sides(result, fixed=tmp_path / "gone.png")


def test_volumes_and_points_are_opened_as_they_were_registered(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).integers(0, 255, (4, 12, 14), dtype=np.uint8)
    import tifffile

    tifffile.imwrite(tmp_path / "v.ome.tif", volume, metadata={"axes": "ZYX"})
    (tmp_path / "p.csv").write_text("x,y\n1,2\n3,4\n")
    grid = rf.Grid((4, 12, 14))
    fixed, _ = rf.open_sides(fake_result(grid, grid), tmp_path / "v.ome.tif", tmp_path / "v.ome.tif")
    assert isinstance(fixed, rf.Pyramid)
    assert fixed.image().data.shape == (1, 4, 12, 14)
    flat = rf.Grid((9, 9))
    fixed, _ = rf.open_sides(fake_result(flat, flat), tmp_path / "p.csv", tmp_path / "p.csv")
    assert isinstance(fixed, rf.PointSet)
    assert fixed.coords.tolist() == [[2, 1], [4, 3]]
    with pytest.raises(ValueError, match="which nothing records; pass fixed="):
        rf.open_sides(fake_result(flat, flat))
