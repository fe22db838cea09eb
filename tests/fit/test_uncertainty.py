"""How sure a map says it is: less where less is seen, the prior's where nothing is, and right nine times in ten."""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fake_result import fake_result

import regframe as rf
from regframe.cli import main
from regframe.config import Config
from regframe.data import Grid
from regframe.evaluation import position_sd as sd_at
from regframe.fit import uncertainty
from regframe.fit.energy import Energy
from regframe.fit.frames import Increment
from regframe.fit.halvings import Level
from regframe.fit.mapspace import MapSpace
from regframe.fit.prior import velocity_space
from regframe.fit.velocity import VelocitySpace
from regframe.report.results import render
from regframe.testing import demo


class Unused:
    likelihood = False


SIDE = 192


def energy_of(
    noise: float = 0.1, contrast: float = 1.0, flat: bool = False, hidden: bool = False, bent: bool = True
) -> tuple[Energy, torch.Tensor]:
    """A textured image against itself with noise; its right half ``flat``, or ``hidden`` from the fit."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn((1, 1, SIDE, SIDE), generator=generator)
    data = torch.nn.functional.avg_pool2d(data, 5, stride=1, padding=2)[0] * 5 * contrast
    weight = torch.ones((SIDE, SIDE))
    if flat:
        data[..., SIDE // 2 :] = 0
    if hidden:
        weight[:, SIDE // 2 :] = 0
    middle = -(SIDE - 1) / 2
    grid = Grid((SIDE, SIDE), (1.0, 1.0), (middle, middle))
    fixed = data + noise * torch.randn(data.shape, generator=generator)
    space: VelocitySpace | None = None
    if bent:
        space = velocity_space(Grid((SIDE, SIDE)), Config()).with_deviation(3.0)
    increment = Increment("affine", 2, math.hypot(SIDE, SIDE) / 2)
    level = Level(fixed, data, grid, grid, torch.ones((SIDE, SIDE)), None)
    energy = Energy(level, Unused(), MapSpace(torch.eye(3, dtype=torch.float64), increment, space), weight, 1.0)  # type: ignore[arg-type]
    return energy, torch.zeros(increment.size + (0 if space is None else space.size))


def test_less_contrast_is_less_sure() -> None:
    sharp, faint, fainter = (
        float(uncertainty.position_sd(*energy_of(contrast=c), False).median()) for c in (1.0, 0.3, 0.1)
    )
    assert uncertainty.FLOOR < sharp < faint < fainter < 3.0


@pytest.mark.parametrize("how", ["flat", "hidden"])
def test_what_is_not_seen_is_as_unsure_as_the_prior(how: str) -> None:
    sd = uncertainty.position_sd(*energy_of(**{how: True}), False)  # type: ignore[arg-type]
    assert sd.shape == (SIDE, SIDE)
    assert float(sd[:, : SIDE // 3].median()) < 0.3
    rows = sd[SIDE // 2, ::16]
    assert bool((rows[5:].diff() > -1e-3).all())  # ever less sure with the distance from what is seen
    assert float(sd[:, -3:].median()) == pytest.approx(3.0, rel=0.05)


def test_neighbouring_sections_are_less_sure() -> None:
    energy, x = energy_of()
    same, other = (uncertainty.position_sd(energy, x, sections) for sections in (False, True))
    wanted = (same**2 - uncertainty.FLOOR**2) * uncertainty.NEIGHBOURS**2 + uncertainty.FLOOR**2
    torch.testing.assert_close(other**2, wanted, rtol=1e-3, atol=1e-6)


def test_an_affine_map_is_less_sure_at_the_rim() -> None:
    energy, x = energy_of(noise=1.0, bent=False)
    sd = uncertainty.position_sd(energy, x, False)
    middle, corner = float(sd[SIDE // 2, SIDE // 2]), float(sd[0, 0])
    assert corner > 1.1 * middle
    assert corner < 0.5
    variance = (sd.double() ** 2 - uncertainty.FLOOR**2)[:: SIDE - 1, :: SIDE - 1]
    centre = (sd.double() ** 2 - uncertainty.FLOOR**2)[SIDE // 2, SIDE // 2]
    # evenly spread evidence on a square: 1 at the middle, 1 + 2 · 3 r² at a share r of the way to the corner block's middle
    share = 1 - uncertainty.BLOCK / SIDE
    assert float(variance.mean() / centre) == pytest.approx(1 + 6 * share**2, rel=0.1)


def test_white_noise_gives_the_curvature() -> None:
    """Where the residual is white noise the sandwich is the precision of the textbook."""
    energy, _ = energy_of(noise=0.5)
    level = energy.level
    hold, scatter = uncertainty.forces(level.moving, level.fixed, energy.weight, level.fixed_grid)
    assert float(scatter.mean() / hold.mean()) == pytest.approx(0.25, rel=0.2)


def test_the_prior_is_what_no_evidence_leaves() -> None:
    space = velocity_space(Grid((80, 120)), Config()).with_deviation(2.5)
    density = np.array([0.0, 1e-9, 1e-3, 1.0, 1e3])
    left = uncertainty.bending_variance(density, space)
    assert left[0] == pytest.approx(2.5**2, rel=1e-4)
    assert bool((np.diff(left) <= 0).all())
    area = math.prod(n * s for n, s in zip(space.waves.shape, space.waves.spacing, strict=True))
    waves = (space.symbol.double() ** 2 / (math.prod(space.waves.shape) * space.n_slices)).numpy()
    exact = (space.multiplicity.numpy() * waves / (1 + 1e-3 * area * waves)).sum()
    assert left[2] == pytest.approx(exact, rel=2e-2)


def test_three_dimensions() -> None:
    generator = torch.Generator().manual_seed(1)
    shape = (6, 40, 50)
    data = torch.randn((1, *shape), generator=generator)
    grid = Grid(shape, (1.0, 1.0, 1.0), tuple(-(n - 1) / 2 for n in shape))
    space = velocity_space(Grid(shape), Config()).with_deviation(1.0)
    level = Level(data + 0.1 * torch.randn(data.shape, generator=generator), data, grid, grid, torch.ones(shape), None)
    increment = Increment("similarity", 3, 30.0)
    energy = Energy(
        level, Unused(), MapSpace(torch.eye(4, dtype=torch.float64), increment, space), torch.ones(shape), 1.0
    )  # type: ignore[arg-type]
    sd = uncertainty.position_sd(energy, torch.zeros(increment.size + space.size), False)
    assert sd.shape == shape
    assert bool(torch.isfinite(sd).all())
    assert uncertainty.radius_90(3) == uncertainty.RADIUS_90_3D


@pytest.fixture(scope="module")
def known() -> tuple[demo.Pair, rf.Result]:
    pair = demo.make()
    return pair, rf.register(pair.fixed, pair.moving)


def test_nine_in_ten(known: tuple[demo.Pair, rf.Result]) -> None:
    pair, result = known
    y = pair.fixed.grid.resampled(8.0).coords().reshape(-1, 2)
    true = pair.truth.inverse().points(y)
    inside = pair.moving.grid.contains(true)
    y, true = y[inside], true[inside]
    error = (result.to_moving(y) - true).norm(dim=1)
    radius = uncertainty.RADIUS_90 * sd_at(result, y, "moving")
    assert 0.75 < float((error <= radius).double().mean()) <= 0.99
    assert float(radius.median()) < 1.0
    figures = result.metrics["position_sd"]
    assert 0 < figures["median"] <= figures["p90"]
    assert figures["unit"] == result.fixed_grid.unit


def test_saved_and_loaded(known: tuple[demo.Pair, rf.Result], tmp_path: Path) -> None:
    _, result = known
    result.save(tmp_path / "a.ome.zarr")
    again = rf.load(tmp_path / "a.ome.zarr")
    assert result.position_sd is not None
    assert again.position_sd is not None
    assert torch.equal(again.position_sd, result.position_sd)
    dataclasses.replace(result, position_sd=None).save(tmp_path / "b.ome.zarr")
    assert rf.load(tmp_path / "b.ome.zarr").position_sd is None


def with_sd(unit: str = "µm") -> rf.Result:
    """Fixed canvas in 2 µm pixels, moving in 1 µm; a fixed µm is half a moving one; the sd is 3 µm."""
    matrix = torch.diag(torch.tensor([2.0, 2.0, 1.0], dtype=torch.float64))
    result = fake_result(Grid((40, 50), (2.0, 2.0), (), unit), Grid((40, 50), (1.0, 1.0), (), unit), matrix, bend=0.1)
    assert result.weight_grid is not None
    return dataclasses.replace(result, position_sd=torch.full(result.weight_grid.shape, 3.0))


def test_it_is_in_the_unit_of_the_destination() -> None:
    result = with_sd()
    at = torch.tensor([[20.0, 30.0], [-50.0, 0.0]], dtype=torch.float64)
    assert sd_at(result, at, "fixed").tolist() == pytest.approx([3.0, math.nan], nan_ok=True)
    assert sd_at(result, at, "moving").tolist() == pytest.approx([1.5, math.nan], nan_ok=True)
    none = dataclasses.replace(result, position_sd=None)
    assert bool(sd_at(none, at, "fixed").isnan().all())


def test_points_get_the_column(tmp_path: Path) -> None:
    with_sd().save(tmp_path / "r.ome.zarr")
    (tmp_path / "in.csv").write_text("y_um,x_um\n10,15\n-90,0\n")
    for to, wanted in (("fixed", "3"), ("moving", "1.5")):
        out = tmp_path / f"{to}.csv"
        ran = CliRunner().invoke(
            main,
            ["apply", "points", str(tmp_path / "r.ome.zarr"), str(tmp_path / "in.csv"), "-o", str(out), "--to", to],
        )
        assert ran.exit_code == 0, ran.output
        rows = list(csv.DictReader(out.read_text(encoding="utf-8").splitlines()))
        assert list(rows[0])[-3:] == ["match_probability", "position_sd", "in_canvas"]
        assert [row["position_sd"] for row in rows] == [wanted, ""]


def test_a_wrong_shape_is_refused(tmp_path: Path) -> None:
    result = dataclasses.replace(with_sd(), position_sd=torch.ones(3, 3))
    with pytest.raises(ValueError, match="wanted a position_sd of shape"):
        result.save(tmp_path / "a.ome.zarr")
    with pytest.raises(ValueError, match="wanted a weight grid beside position_sd"):
        dataclasses.replace(result, weight=None, weight_grid=None).save(tmp_path / "a.ome.zarr")


def test_the_report_shows_it(known: tuple[demo.Pair, rf.Result]) -> None:
    pair, result = known
    page = render(result, pair.fixed, pair.moving, 200, 60)
    assert "Position uncertainty (90 % radius, " in page
    assert "position_sd.median" in page
    assert "Position uncertainty" not in render(
        dataclasses.replace(result, position_sd=None), pair.fixed, pair.moving, 200, 60
    )
