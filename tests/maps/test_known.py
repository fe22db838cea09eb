"""A map of a kind that the core has never heard of: stored, exported, warped tile by tile and drawn on shapes all the same."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_result import fake_result
from torch import Tensor

import regframe as rf
from regframe.maps.known import known

GRID = rf.Grid((60, 80), 2.0, unit="µm")


@dataclass(frozen=True)
class Swirl(rf.Transform):
    """A turn about a point that fades with the distance; a stranger's class, with an exact inverse."""

    angle: float
    middle: tuple[float, float] = (60.0, 80.0)
    reach: float = 30.0
    source_unit: str = "µm"
    target_unit: str = "µm"

    @property
    def ndim(self) -> int:
        return 2

    def points(self, coords: Tensor) -> Tensor:
        off = coords.to(torch.float64) - torch.tensor(self.middle, dtype=torch.float64)
        turn = self.angle * torch.exp(-(off**2).sum(dim=-1) / self.reach**2)
        cos, sin = turn.cos(), turn.sin()
        y, x = off.unbind(dim=-1)
        moved = torch.stack([cos * y - sin * x, sin * y + cos * x], dim=-1)
        return moved + torch.tensor(self.middle, dtype=torch.float64)

    def inverse(self) -> Swirl:
        return replace(self, angle=-self.angle)


def swirled(angle: float = 0.2) -> rf.Result:
    """A result whose bend is a stranger's, between two affine maps."""
    shift = torch.eye(3, dtype=torch.float64)
    shift[0, 2] = 4.0
    parts = (rf.Affine(shift, "µm", "µm"), Swirl(angle), rf.Affine(shift.inverse(), "µm", "µm"))
    return replace(fake_result(GRID, GRID), transform=rf.Sequence(parts))


def places(seed: int = 0) -> Tensor:
    """Positions ``[N, 2]`` on the canvas, in µm."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((500, 2), generator=generator, dtype=torch.float64) * torch.tensor([118.0, 158.0])


def test_what_is_known_stays_itself() -> None:
    transform = fake_result(GRID, GRID).transform
    assert known(transform, GRID, GRID) is transform


def test_both_directions_are_within_the_tolerance() -> None:
    exact = swirled().transform
    plain = known(exact, GRID, GRID)
    assert {type(part) for part in plain.parts()} == {rf.Affine, rf.Displacement}
    x = places()
    assert float((plain.points(x) - exact.points(x)).norm(dim=1).max()) < 0.002 * 2.0
    back = exact.inverse().points(x)
    assert float((plain.inverse().points(x) - back).norm(dim=1).max()) < 0.003 * 2.0


def test_a_change_of_unit_belongs_into_an_affine_map() -> None:
    with pytest.raises(ValueError, match="wanted a Swirl within one unit, got µm → mm; put the change of unit into"):
        known(replace(Swirl(0.1), target_unit="mm"), GRID, GRID)


def test_the_store_keeps_it(tmp_path: Path) -> None:
    result = swirled()
    result.save(tmp_path / "a.ome.zarr")
    found = rf.load(tmp_path / "a.ome.zarr")
    x = places(1)
    assert float((found.to_fixed(x) - result.to_fixed(x)).norm(dim=1).max()) < 0.005 * 2.0


def test_another_format_holds_it(tmp_path: Path) -> None:
    result = swirled()
    rf.write_map(result, tmp_path / "a.npz")
    x = places(2)
    found = rf.read_map(tmp_path / "a.npz")
    assert float((found.to_moving(x) - result.to_moving(x)).norm(dim=1).max()) < 0.005 * 2.0


def test_a_slide_is_warped_by_it(tmp_path: Path) -> None:
    y, x = np.mgrid[:60, :80]
    image = rf.Image.from_array(
        (100 + 50 * np.sin(y / 7) * np.cos(x / 9)).astype(np.uint8), axes="yx", spacing=2.0, unit="µm"
    )
    transform = swirled().transform
    from regframe.slides.levels import pyramid_of

    rf.warp_slide(pyramid_of(image), transform, GRID, tmp_path / "a.ome.zarr", workers=1)
    tiled = rf.open(tmp_path / "a.ome.zarr").data
    whole = rf.resample(image, transform, GRID).data
    assert int((tiled.to(torch.int16) - whole.to(torch.int16)).abs().max()) <= 1


def test_shapes_bend_with_it() -> None:
    square = {"type": "LineString", "coordinates": [[30.0, 30.0], [130.0, 90.0]]}
    shapes = rf.Shapes.from_geojson(square, "µm", "center")
    moved = rf.move_shapes(shapes, Swirl(0.5), GRID)
    off = Swirl(-0.5).points(moved.coords) - shapes.coords[0]
    along = torch.tensor([60.0, 100.0], dtype=torch.float64) / math.hypot(60, 100)
    assert len(moved.coords) > 10
    assert float((off - (off @ along)[:, None] * along).norm(dim=1).max()) < 1e-6
