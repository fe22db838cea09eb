"""Small parts that several kinds of fit share: closed forms, halvings, units, the step tried along a direction."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

import regframe as rf
from regframe import plugins
from regframe.fit.closed import turn_of
from regframe.fit.frames import Increment, zoom_of
from regframe.fit.halvings import Halvings
from regframe.fit.lbfgs import Descent
from regframe.fit.mapspace import MapSpace
from regframe.fit.precondition import Preconditioner, descend
from regframe.fit.prior import PICTURES, velocity_space
from regframe.fit.pyramid import Cuts, Fit, LevelRules, Pair, Recipe, build_levels, fit_level
from regframe.fit.steps import Stage
from regframe.fit.velocity import nodes_over
from regframe.solvers import recipes
from regframe.starts.given import given
from regframe.starts.scale import Scale


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("handed", [1.0, -1.0, None])
def test_a_turn_is_orthogonal_of_the_hand_that_is_asked_for(ndim: int, handed: float | None) -> None:
    cross = torch.randn((50, ndim, ndim), generator=torch.Generator().manual_seed(ndim), dtype=torch.float64)
    turn, values = turn_of(cross, handed)
    torch.testing.assert_close(turn @ turn.mT, torch.eye(ndim, dtype=torch.float64).expand_as(turn))
    wanted = torch.sign(torch.linalg.det(cross)) if handed is None else torch.full((50,), handed, dtype=torch.float64)
    torch.testing.assert_close(torch.linalg.det(turn), wanted)
    # the trace that an orthogonal matrix of this hand can reach at most
    torch.testing.assert_close(torch.einsum("nij,nij->n", turn, cross), values.sum(dim=1))
    again, same = turn_of(cross[0].numpy(), handed)
    np.testing.assert_allclose(again, turn[0].numpy(), atol=1e-12)
    np.testing.assert_allclose(same, values[0].numpy(), atol=1e-12)


def test_halvings_stop_where_they_are_small_enough_or_can_be_halved_no_more() -> None:
    side = Halvings(rf.Image(torch.rand((1, 100, 60)), rf.Grid((100, 60))))
    assert side.times_until(lambda grid: True) == 0
    assert side.times_until(lambda grid: max(grid.shape) <= 50) == 1
    assert side.times_until(lambda grid: math.prod(grid.shape) <= 400) == 2
    last = side.times_until(lambda grid: False)
    assert side.at(last + 1)[2] is side.at(last)[2]
    assert side.at(last - 1)[2] is not side.at(last)[2]


@pytest.mark.parametrize(
    ("units", "ratio", "settled"),
    [
        (("µm", "mm"), 1000.0, (True, True)),
        (("px", "px"), 1.0, (False, True)),
        (("px", "mm"), None, (False, False)),
    ],
)
def test_units_say_the_size_where_both_are_lengths(
    units: tuple[str, str], ratio: float | None, settled: tuple[bool, bool]
) -> None:
    scale = Scale.of(*(rf.Grid((9, 9), unit=unit) for unit in units))
    assert scale.ratio == (None if ratio is None else pytest.approx(ratio))
    assert scale.factor == pytest.approx(ratio or 1.0)
    assert (scale.settled("affine"), scale.settled("rigid")) == settled


def test_a_given_start_is_of_the_kind_that_is_asked_for() -> None:
    grids = rf.Grid((40, 50), unit="px"), rf.Grid((40, 50), unit="px")
    stretched = rf.Affine(torch.diag(torch.tensor([2.0, 3.0, 1.0], dtype=torch.float64)))
    assert given(*grids, "auto", rf.Config()) is None
    affine = given(*grids, stretched, rf.Config(transform="affine"))
    assert affine is not None
    assert torch.equal(affine, stretched.matrix)
    rigid = given(*grids, stretched, rf.Config(transform="rigid"))
    assert rigid is not None
    torch.testing.assert_close(rigid[:2, :2], torch.eye(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="wanted init 'auto', 'identity'"):
        given(*grids, "somewhere", rf.Config())


def test_nodes_are_moved_apart_until_there_are_few_enough() -> None:
    fine, coarse = nodes_over([100.0, 60.0], 2.0, 1e9, 1.5), nodes_over([100.0, 60.0], 2.0, 200, 1.5)
    assert fine.spacing == (2.0, 2.0)
    assert fine.shape == (50, 30)
    assert math.prod(coarse.shape) <= 200
    assert all(e >= w for e, w in zip(coarse.extent, (100, 60), strict=True))
    assert coarse.center == pytest.approx((0.0, 0.0))


def test_preconditioning_changes_the_way_and_not_the_end() -> None:
    space = velocity_space(rf.Grid((40, 40)), rf.Config())
    start = torch.eye(3, dtype=torch.float64)
    start[:2, :2] *= 0.5
    maps = MapSpace(start, Increment("affine", 2, 28.0), space)
    assert maps.zoom == zoom_of(start) == 2.0
    aim = 0.1 * torch.randn(maps.size, generator=torch.Generator().manual_seed(0))

    class Bowl:
        """A quadratic about ``aim``."""

        def __call__(self, x: torch.Tensor) -> tuple[float, torch.Tensor]:
            return float(((x - aim) ** 2).sum()) / 2, x - aim

        def movement(self, change: torch.Tensor) -> float:
            return float(change.abs().max())

    ends = [
        descend(Bowl(), torch.zeros(maps.size), Descent(200, 1e-6), change).x
        for change in (None, Preconditioner(maps, 100.0, 2.0))
    ]
    for end in ends:
        torch.testing.assert_close(end, aim, rtol=0, atol=1e-3)


def test_recipes_say_what_an_observation_counts() -> None:
    assert [recipes.STAINED.counts(shared) for shared in (0.0, 0.7, 0.95)] == pytest.approx([0.25, 0.5, 1.0])
    assert recipes.drawn(rf.PointSet(torch.rand(7, 2))).most == 28
    assert not recipes.PLANE.moves


@pytest.mark.parametrize(("sections", "weighed"), [(False, False), (True, False), (True, True)])
def test_between_two_cuts_the_weights_are_told_and_do_not_steer(sections: bool, weighed: bool) -> None:
    rng = np.random.default_rng(4)
    values = gaussian_filter(rng.standard_normal((64, 64)), 3.0)
    torn = values.copy()
    torn[20:40, 20:40] = 4 * values.max()  # has no partner on the moving side
    sides = [Halvings(rf.Image.from_array(a.astype(np.float32), "yx")) for a in (torn, values)]
    start = torch.eye(3, dtype=torch.float64)
    recipe = Recipe(cuts=Cuts(0.15, PICTURES, 0.0, weighed))
    pair = Pair(*sides, lambda level: plugins.metric("contrast"), rf.Config(), recipe=recipe)
    level = build_levels(*sides, start, pair.config)[-1]
    increment = Increment("still", 2, 45.0)
    fit = Fit(torch.zeros(0), MapSpace(start, increment), sections=sections)
    fit = fit_level(fit, level, pair, Stage("affine", 0, 1, 5), LevelRules())
    assert fit.matching is not None
    assert fit.weight is not None
    assert float(fit.matching[25:35, 25:35].mean()) < 0.1
    steers = weighed or not sections
    assert float(fit.weight[25:35, 25:35].mean()) == pytest.approx(
        float(fit.matching[25:35, 25:35].mean()) if steers else 1.0
    )
