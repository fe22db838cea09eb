"""Checks of the kits on levels of an image, on sets of options, and what a metric is told of its sides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import regframe as rf
from regframe import testing


class Stairs(rf.Adapter):
    """Two levels of a picture made on the spot."""

    name = "stairs"
    order, dtype, shift = (0, 1), "u1", 0

    def matches(self, source: Any) -> float:
        return 1.0

    def open(self, source: Any) -> rf.Image:
        return self.pyramid(source).image()

    def apply(self, source: Any, transform: Any, grid: Any = None) -> rf.Image:
        return self.open(source)

    def save(self, data: Any, path: Path) -> None: ...

    def pyramid(self, source: Any) -> rf.Pyramid:
        def level(k: int) -> rf.Level:
            n = 24 >> k
            pixels = (np.arange(n * n).reshape(1, n, n) % 251).astype("u1")

            def read(region: tuple[slice, ...]) -> Any:
                moved = self.shift if region[0].start else 0
                y, x = region
                return pixels[:, y, slice(x.start - moved, x.stop - moved)]

            return rf.Level(rf.Grid((n, n), 1.0 * 2**k), (1, 8, 8), read)

        return rf.Pyramid(tuple(map(level, self.order)), np.dtype(self.dtype), ("grey",))

    @classmethod
    def sample(cls, folder: Path) -> Any:
        return "anything"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, None),
        ({"order": (1, 0)}, "wanted levels finest first"),
        ({"dtype": "u2"}, "wanted level 0 in the dtype that the pyramid states, uint16, got uint8"),
        ({"shift": 1}, r"wanted from level 0 in \[8:18, 8:18\] what the whole level holds there"),
    ],
)
def test_a_pyramid_is_checked(change: dict[str, Any], told: str | None) -> None:
    cls = type("Changed", (Stairs,), change)
    kit = type("Kit", (testing.AdapterTests,), {"make": lambda self: cls()})
    ((_, status, said, _),) = testing.run(kit, ["pyramid"])
    assert status == ("ok" if told is None else "failed")
    if told is not None:
        with pytest.raises(AssertionError, match=told):
            raise AssertionError(said)


class Power(rf.Metric):
    """Mean power of differences."""

    name = "power"

    def __init__(self, power: float = 2.0) -> None:
        if not isinstance(power, (int, float)):
            raise ValueError(f"wanted a number as power, got {power!r}")
        self.power = power

    def __call__(self, warped: torch.Tensor, fixed: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        total = weight.sum().clamp(min=1e-12) * len(warped)
        sign = -1 if self.power == 3 else 1
        return sign * (weight * ((warped - fixed).square() + 1e-9) ** (self.power / 2)).sum() / total


@pytest.mark.parametrize("of_class", [True, False])
def test_variants_are_checked_beside_the_defaults(of_class: bool) -> None:
    variants = {"variants": ({"power": 4.0}, {"power": 3})}
    cls = type("P", (Power,), {"__doc__": "Powers.", **(variants if of_class else {})})
    body = {"make": lambda self: cls(), **({} if of_class else variants)}
    leave = {f"test_{name}": None for name in ("channels_that_differ", "aligns_a_pair", "gradient", "float32")}
    kit = type("Kit", (testing.MetricTests,), {**body, **leave, "ndims": (2,)})
    assert [status for _, status, _, _ in testing.run(kit, ["lower_where_aligned"])] == ["ok"]
    ((_, status, said, _),) = testing.run(kit, ["variants"])
    assert status == "failed"
    assert said.startswith("wanted every check to pass with power=3 too, got a failure of ")


def test_prepare_is_told_what_the_sides_were() -> None:
    told: list[tuple[rf.Image, rf.Image]] = []

    class Told(Power):
        def prepare(self, fixed: Any, moving: Any) -> None:
            told.append((fixed, moving))

    generator = torch.Generator().manual_seed(0)
    data = torch.nn.functional.avg_pool2d(torch.rand((2, 46, 50), generator=generator), 7, 1)
    grid = rf.Grid((40, 44), 0.5, (10.0, 20.0), "µm")
    fixed = rf.Image(300 + 50 * data, grid, channels=("DAPI", "CD3"), name="blood")
    rf.register(fixed, fixed, metric=Told(), init="identity", transform="rigid")
    for side in told[-1]:
        was = side.before
        assert was is not None
        assert (was.unit, was.grid, was.name, side.channels) == ("µm", grid, "blood", ("DAPI", "CD3"))
        at = torch.tensor(was.center) + was.length * side.grid.coords()
        assert torch.allclose(at[0, 0], torch.tensor(grid.origin, dtype=torch.float64))
        mean, scale = (torch.tensor(v).reshape(-1, 1, 1) for v in (was.mean, was.scale))
        assert torch.allclose(mean + scale * side.data, fixed.data, atol=1e-2)


def test_prepare_is_told_what_points_were() -> None:
    told: list[rf.PointSet] = []

    class Told(rf.Metric):
        name = "told"
        accepts = (rf.PointSet, rf.PointSet)

        def prepare(self, fixed: Any, moving: Any) -> None:
            told.append(fixed)

        def __call__(self, warped: torch.Tensor, fixed: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return (weight * (warped - fixed[: len(warped)]).square().sum(dim=1)).sum() / weight.sum()

    coords = 100 + 50 * torch.rand((60, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points = rf.PointSet(coords, "µm")
    rf.register(points, points, metric=Told(), init="identity", transform="rigid")
    was = told[-1].before
    assert was is not None
    assert was.unit == "µm"
    back = torch.tensor(was.center) + was.length * told[-1].coords
    assert torch.allclose(back.sort(dim=0).values, coords.sort(dim=0).values)


@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_senseless_weights_are_refused_at_once(value: float) -> None:
    weight = torch.ones((4, 4))
    weight[1, 2] = value
    with pytest.raises(
        ValueError, match=r"wanted finite weights of at least 0 for the pixels of an image, got 1 others"
    ):
        rf.Image(torch.zeros((1, 4, 4)), rf.Grid((4, 4)), weight=weight)
    with pytest.raises(ValueError, match=r"wanted finite weights of at least 0 for points, got 1 others"):
        rf.PointSet(torch.zeros((4, 2)), weights=weight[1])
