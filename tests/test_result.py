"""What a result carries and where it says what it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from fake_result import fake_result

import regframe as rf


def test_a_volume_of_one_plane_is_no_section(tmp_path: Path) -> None:
    """Whether the fixed side is a section is said by who placed it, never read off a shape."""
    grid = rf.Grid((1, 24, 20), (3.0, 1.0, 1.0), unit="µm")
    result = fake_result(grid, grid, bend=0.5)
    volume = rf.Image(torch.arange(480, dtype=torch.float32).reshape(1, 1, 24, 20), grid, ("a",))
    assert not result.section
    assert result.to_fixed(volume).grid.ndim == 3
    points = rf.PointSet(torch.tensor([[0.0, 4.0, 5.0]], dtype=torch.float64), "µm")
    assert result.to_moving(points).ndim == 3
    placed = dataclasses.replace(result, section=True)
    assert placed.to_fixed(volume).grid.ndim == 2
    for one in (result, placed):
        one.save(tmp_path / "a.ome.zarr", overwrite=True)
        assert rf.load(tmp_path / "a.ome.zarr").section == one.section
        rf.write_map(one, tmp_path / "a.npz", overwrite=True)
        assert rf.read_map(tmp_path / "a.npz").section == one.section
