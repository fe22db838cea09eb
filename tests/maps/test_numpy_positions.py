"""Positions, fields and matrices as numpy arrays of any layout, and as tables of pandas, wherever a tensor is taken."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from fake_result import fake_result

import regframe as rf

XY = np.array([[3.0, 5.0], [20.0, 11.0], [30.5, 12.25]])  # x, y
GRID = rf.Grid((40, 60), 0.5, (), "µm")


def as_table(array: np.ndarray) -> Any:
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame(array)


LAYOUTS: dict[str, Callable[[np.ndarray], Any]] = {
    "turned round": lambda a: a[..., ::-1].copy()[..., ::-1],
    "big-endian": lambda a: a.astype(">f8"),
    "float32": lambda a: a.astype(np.float32),
    "columns first": np.asfortranarray,
    "read-only": lambda a: np.frombuffer(a.tobytes()).reshape(a.shape),
    "table": as_table,
    "lists": lambda a: a.tolist(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_positions_of_any_layout(layout: str) -> None:
    yx = np.ascontiguousarray(XY[:, ::-1])
    given, tensor = LAYOUTS[layout](yx), torch.from_numpy(yx)
    result = fake_result(GRID, GRID)
    for carry in (result.to_fixed, result.to_moving, result.transform.points):
        assert torch.equal(carry(given), carry(tensor))  # type: ignore[operator]
    assert torch.equal(GRID.contains(given), GRID.contains(tensor))
    marks = rf.landmarks(fixed=given, moving=given)
    assert torch.equal(marks.fixed, tensor)


def test_columns_exchanged_by_a_view() -> None:
    result = fake_result(GRID, GRID)
    expected = result.to_fixed(torch.from_numpy(XY[:, ::-1].copy()))
    assert torch.equal(result.to_fixed(XY[:, ::-1]), expected)  # type: ignore[call-overload]
    assert torch.equal(rf.landmarks(fixed=XY[:, ::-1], moving=XY[:, ::-1]).fixed, torch.from_numpy(XY[:, ::-1].copy()))
    assert GRID.contains(np.array([[1, 2], [100, 2]])).tolist() == [True, False]  # whole numbers


def test_fields_and_matrices() -> None:
    field = np.zeros((2, 4, 5), dtype=">f4")
    field[0] = 1.5
    grid = rf.Grid((4, 5))
    assert rf.Displacement(field, grid).points(np.array([[1.0, 2.0]])).tolist() == [[2.5, 2.0]]  # type: ignore[arg-type]
    assert rf.Flow(field[None].astype(np.float64), grid).velocity.shape == (1, 2, 4, 5)  # type: ignore[arg-type]
    matrix = np.eye(3)[::-1][::-1]
    assert torch.equal(rf.Affine(matrix).matrix, torch.eye(3, dtype=torch.float64))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="wanted a numeric array"):
        rf.Affine(np.array([["a"]]))  # type: ignore[arg-type]


def test_a_section_takes_them_in_its_plane() -> None:
    grid = rf.Grid((3, 40, 60), 0.5, (), "µm")
    section = dataclasses.replace(fake_result(grid, grid), section=True)
    at = XY[:, ::-1]
    found = section.to_moving(at)  # type: ignore[call-overload]
    assert torch.equal(found, section.to_moving(torch.from_numpy(at.copy())))
    assert found.shape == (3, 3)


def test_errors_at_places_in_the_plane_of_a_section() -> None:
    from regframe.evaluation import evaluate

    grid = rf.Grid((3, 40, 60), 0.5, (), "µm")
    section = dataclasses.replace(fake_result(grid, grid), section=True)
    flat = rf.PointSet(torch.from_numpy(XY[:, ::-1].copy()), "µm")
    assert evaluate(section, flat, section.to_moving(flat))["tre"]["max"] < 1e-6
