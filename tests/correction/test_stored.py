"""A map that bends several times is kept to the bit, and other programs read it within the tolerance, in both directions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import regframe
from regframe.data import Grid
from regframe.formats import exchange
from regframe.formats.exchange import Side
from regframe.formats.steps import apply_steps, steps_of
from regframe.io.scene import read_standard
from regframe.maps.affine import Affine
from regframe.maps.flow import Flow
from regframe.maps.sequence import Sequence
from regframe.result import Result


@pytest.fixture
def twice() -> Result:
    """A flow, an affine map, and a flow in the fixed space; both sides in µm."""
    nodes, far = Grid((4, 5), (12.0, 12.0), (-6.0, -6.0), "µm"), Grid((4, 4), (8.0, 8.0), (4.0, 4.0), "µm")
    random = np.random.default_rng(0)
    velocities = [
        torch.from_numpy(random.normal(0, 0.5, (1, 2, *grid.shape))).to(torch.float32) for grid in (nodes, far)
    ]
    turn = torch.tensor([[0.96, -0.28, 4.0], [0.28, 0.96, -3.0], [0, 0, 1]], dtype=torch.float64)
    affine = Affine(turn, "µm", "µm")
    map_ = Sequence((Flow(velocities[0], nodes, 2), affine, Flow(velocities[1], far)))
    return Result(map_, Grid((30, 36), unit="µm"), Grid((28, 34), unit="µm"), {}, regframe.Config(), affine)


def test_the_store(twice: Result, tmp_path: Path) -> None:
    twice.save(tmp_path / "run.zarr")
    at = twice.fixed_grid.coords().reshape(-1, 2)
    back = twice.transform.inverse().points(at)
    again = regframe.load(tmp_path / "run.zarr")
    assert torch.equal(again.transform.inverse().points(at), back)
    assert float((read_standard(tmp_path / "run.zarr", "moving").points(at) - back).norm(dim=1).max()) < 0.01
    assert float((read_standard(tmp_path / "run.zarr").points(back) - at).norm(dim=1).max()) < 0.01


@pytest.mark.parametrize("to", ["fixed", "moving"])
def test_other_formats(twice: Result, tmp_path: Path, to: Side) -> None:
    at = twice.fixed_grid.coords().reshape(-1, 2)[::7]
    at = at if to == "moving" else twice.transform.inverse().points(at)
    exact = (twice.transform.inverse() if to == "moving" else twice.transform).points(at)
    row = steps_of(twice, to, "µm", 0.003, 1 << 16)  # what ITK's files hold: x before y
    found = apply_steps(row, at.numpy()[:, ::-1])[:, ::-1]
    assert np.linalg.norm(found - exact.numpy(), axis=1).max() < 0.01
    with pytest.raises(ValueError, match="bends once for npz"):
        exchange.write_map(twice, tmp_path / "map.npz")


@pytest.mark.parametrize("to", ["fixed", "moving"])
@pytest.mark.parametrize("name", ["map.h5", "map.tfm"])
def test_its_own_itk_file_is_read(twice: Result, tmp_path: Path, to: Side, name: str) -> None:
    """Fields on nodes of their own come back as bends of their own: the map, its inverse, and what is saved of it."""
    pytest.importorskip("SimpleITK")
    exchange.write_map(twice, tmp_path / name, to=to, tolerance=0.015)
    again = exchange.read_map(tmp_path / name, twice.fixed_grid, twice.moving_grid, to=to, unit="mm")
    assert again.metrics["verdict"] == "warn"  # a map alone: nothing was compared
    again.save(tmp_path / "run.zarr")
    inner = twice.moving_grid.coords()[4:-4, 4:-4].reshape(-1, 2)
    for result in (again, regframe.load(tmp_path / "run.zarr")):
        there = result.to_fixed(inner)
        assert float((there - twice.to_fixed(inner)).norm(dim=1).max()) < 0.03
        assert float((result.to_moving(there) - inner).norm(dim=1).max()) < 0.03
