"""Which solver takes which pair, and what it refuses."""

from __future__ import annotations

import pytest
import torch

import regframe as rf
from regframe import plugins
from regframe.contracts import Fitted, Solver
from regframe.solvers import regframe_solvers

BUILT_IN = regframe_solvers()
PLANE = rf.Image(torch.rand((1, 16, 18)), rf.Grid((16, 18)), ("a",))
VOLUME = rf.Image(torch.rand((1, 10, 16, 18)), rf.Grid((10, 16, 18)), ("a",))
FLAT = rf.PointSet(torch.rand((20, 2), dtype=torch.float64) * 16, "px")
SOLID = rf.PointSet(torch.rand((20, 3), dtype=torch.float64) * 16, "px")


@pytest.mark.parametrize(
    ("fixed", "moving", "name"),
    [
        (PLANE, PLANE, "images"),
        (VOLUME, VOLUME, "images"),
        (PLANE, VOLUME, "section"),
        (VOLUME, PLANE, "images"),  # which says that they are the wrong way round
        (FLAT, FLAT, "points"),
        (FLAT, SOLID, "points"),  # which says that they do not go together
        (FLAT, PLANE, "mixed"),
        (PLANE, FLAT, "mixed"),
        (VOLUME, SOLID, "mixed"),
    ],
)
def test_one_solver_is_surest(fixed: rf.Image | rf.PointSet, moving: rf.Image | rf.PointSet, name: str) -> None:
    sure = {solver.name: solver().matches(fixed, moving) for solver in BUILT_IN}
    assert max(sure, key=lambda key: sure[key]) == name
    assert sorted(sure.values())[-2] < sure[name]


def test_every_solver_says_what_it_is() -> None:
    names = [solver.name for solver in BUILT_IN]
    assert len(set(names)) == len(names)
    assert all(solver.models and solver.__doc__ for solver in BUILT_IN)


def test_sides_the_wrong_way_round_are_named_before_anything_is_fitted() -> None:
    with pytest.raises(ValueError, match="wanted the section as the fixed side and the volume as the moving one"):
        rf.register(VOLUME, PLANE)


def test_a_model_that_the_solver_does_not_offer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rigid(Solver):
        """Images, turned and shifted only."""

        name = "rigid_only"
        models = ("rigid",)

        def matches(self, fixed: object, moving: object) -> float:
            return 1.0

        def check(self, task: object) -> list[object]:  # type: ignore[override]
            raise AssertionError("not reached")

        def fit(self, task: object) -> Fitted:
            raise AssertionError("not reached")

        def judge(self, fitted: object) -> list[object]:  # type: ignore[override]
            raise AssertionError("not reached")

    real = plugins.entries("solver")
    monkeypatch.setattr(
        plugins, "entries", lambda kind: (*real, plugins.Entry("solver", "rigid_only", Rigid, "stranger 1 (s)"))
    )
    with pytest.raises(ValueError, match=r"wanted transform rigid for this kind of pair \(rigid_only\), got 'lddmm'"):
        rf.register(PLANE, PLANE, transform="lddmm")
    with pytest.raises(ValueError, match=r"there is images, .*rigid_only \(from stranger 1 \(s\)\)"):
        rf.register(PLANE, PLANE, config=rf.Config(solver="nobody"))
    with pytest.raises(ValueError, match=r"options of the solver 'rigid_only' \(it has none\), got 'power'"):
        rf.register(PLANE, PLANE, config=rf.Config(solver="rigid_only", solver_options={"power": 2}))


def test_a_pair_that_no_solver_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    left = tuple(entry for entry in plugins.entries("solver") if entry.name != "mixed")
    monkeypatch.setattr(plugins, "entries", lambda kind: left)
    with pytest.raises(
        plugins.PluginError, match=r"got 2D points as fixed and 2D image as moving side; there is images, .*own solvers"
    ):
        plugins.find_solver(FLAT, PLANE)
    assert plugins.find_solver(PLANE, PLANE).name == "images"


def test_a_word_that_is_no_model() -> None:
    with pytest.raises(ValueError, match="'transform' one of rigid, similarity, affine, lddmm, got 'bspline'"):
        rf.register(PLANE, PLANE, transform="bspline")
