"""`SolverTests` and `StartTests`: checks on a pair whose map is known."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..config import Config
from ..contracts import Candidate, Fitted, Known, Progress, Solver, Start, Task
from ..data import Grid, Image, PointSet
from ..io import store
from ..maps.base import Transform
from ..registration import assembled
from ..result import Result
from ..starts.given import position_of
from ..verdict import MEANING, Finding
from ._base import PluginTests, SkipTest, refusal, want
from ._state import unchanged

_PROBES = 9
"""Positions along each axis at which two maps are compared."""


def probes(side: Image | PointSet) -> Tensor:
    """Positions ``[N, D]`` over one side, in its unit."""
    if isinstance(side, PointSet):
        return side.coords[:: max(1, len(side) // _PROBES**2)]
    axes = [
        torch.linspace(low, high, _PROBES, dtype=torch.float64)
        for low, high in zip(
            side.grid.coords().flatten(0, -2).amin(0), side.grid.coords().flatten(0, -2).amax(0), strict=True
        )
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


def diagonal(side: Image | PointSet) -> float:
    """Length of the diagonal of one side's canvas, in its unit."""
    at = side.grid.coords().flatten(0, -2) if isinstance(side, Image) else side.coords
    return float((at.amax(0) - at.amin(0)).norm())


def off(found: Transform, known: Known) -> float:
    """Largest distance between a map and the known one, as a share of the diagonal of the fixed side."""
    at = probes(known.moving)
    return float((found.points(at) - known.transform.points(at)).norm(dim=1).max()) / diagonal(known.fixed)


class SolverTests(PluginTests):
    """Subclass it, write ``make`` and, where the class has no ``sample``, ``pair``; pytest runs every check on your solver.

    Attributes:
        settings: settings of `regframe.Config` under which the pair is registered, ``transform`` apart.
    """

    settings: ClassVar[Mapping[str, Any]] = {}
    told: ClassVar[list[Any]] = []
    _results: ClassVar[dict[str, Result]] = {}

    def make(self) -> Solver:
        """A new solver to test, with options of your choice."""
        solver: Solver = super().make()
        return solver

    def pair(self) -> Known:
        """A small pair of the solver's kind, and its map."""
        known = type(self.make()).sample()
        if known is None:
            raise SkipTest("it offers no sample() to be tested with")
        return known

    def _fitted(self, known: Known, transform: str) -> Result:
        """A new fit of a pair; what ``task.progress`` gets is kept in ``told``."""
        solver = self.make()
        config = Config(**{**self.settings, "transform": transform})
        task = Task(known.fixed, known.moving, None, "auto", config, self.told.append)
        with torch.enable_grad():
            doubts = solver.check(task)
            fitted = solver.fit(task)
        want(isinstance(fitted, Fitted), "regframe.Fitted from fit", type(fitted).__name__)
        judged = list(solver.judge(fitted))
        bad = [one for one in (*doubts, *judged) if not isinstance(one, Finding)]
        want(not bad, "regframe.Finding from check and judge", repr(bad[:1]))
        json.dumps(fitted.figures)
        return assembled(fitted, task, [*doubts, *fitted.findings, *judged], 0.0)

    def _result(self, transform: str) -> Result:
        """The fit of ``pair``, made once for all checks."""
        if transform not in self._results:
            self._results[transform] = self._fitted(self.pair(), transform)
        return self._results[transform]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._results, cls.told = {}, []

    def _used(self, folder: Path) -> None:
        known, solver = self.pair(), self.make()
        solver.matches(known.fixed, known.moving)
        config = Config(transform=type(solver).models[0])
        solver.check(Task(known.fixed, known.moving, None, "auto", config))

    def test_it_says_what_it_is_for(self) -> None:
        """``models`` are words, and ``matches`` is surest of the sample, says 0 … 1 of anything, and changes nothing."""
        known, solver = self.pair(), self.make()
        models = type(solver).models
        sound = (
            isinstance(models, tuple) and bool(models) and all(isinstance(m, str) and m.isidentifier() for m in models)
        )
        want(sound, "a tuple of words as models", repr(models), "they are what --transform accepts")
        sure = solver.matches(known.fixed, known.moving)
        want(0 < sure <= 1, "matches above 0, up to 1, for the sample", sure)
        sides: list[Image | PointSet] = [
            Image(torch.rand((1, 6, 7)), Grid((6, 7))),
            Image(torch.rand((1, 5, 6, 7)), Grid((5, 6, 7))),
            PointSet(torch.rand((8, 2))),
            PointSet(torch.rand((8, 3))),
        ]
        for fixed, moving in itertools.product(sides, sides):
            rated = solver.matches(fixed, moving)
            want(
                isinstance(rated, (int, float)) and 0 <= rated <= 1,
                "matches from 0 to 1 for any pair",
                f"{rated!r} for {type(fixed).__name__} and {type(moving).__name__}",
            )

    def test_it_finds_the_known_map(self) -> None:
        """The richest of its models ends within the sample's tolerance of the known map, both ways, and is not called wrong."""
        known = self.pair()
        result = self._result(type(self.make()).models[-1])
        away = off(result.transform, known)
        want(away <= known.tolerance, f"an error of at most {known.tolerance:.3g} of the diagonal", f"{away:.3g}")
        back = result.transform.inverse().points(result.transform.points(probes(known.moving)))
        trip = float((back - probes(known.moving)).norm(dim=1).max()) / diagonal(known.moving)
        want(trip <= 1e-3, "the way there and back to end where it began (0.001 of the diagonal)", f"{trip:.3g}")
        want(
            result.verdict != "fail", "a verdict other than fail on the known map", f"fail: {' '.join(result.reasons)}"
        )

    def test_every_model_is_fitted(self) -> None:
        """Each of ``models`` gives a map whose figures are plain numbers and words, with a verdict."""
        known = self.pair()
        for model in type(self.make()).models:
            result = self._result(model)
            want(result.verdict in MEANING, f"a verdict out of {', '.join(MEANING)} for {model}", result.verdict)
            moved = result.transform.points(probes(known.moving))
            want(bool(moved.isfinite().all()), f"finite positions under the map of {model}", "NaN or inf")
            want(result.verdict in str(result), "a result that can be printed, with its verdict", str(result))

    def test_the_same_twice(self) -> None:
        """Two fits give the same bits, leave both sides as they were, and do not change what the process shares."""
        known = self.pair()
        model = type(self.make()).models[0]
        kept = [
            side.data.clone() if isinstance(side, Image) else side.coords.clone()
            for side in (known.fixed, known.moving)
        ]
        with unchanged("the fit"):
            results = [self._result(model), self._fitted(known, model)]
        maps = [result.transform.points(probes(known.moving)) for result in results]
        want(
            torch.equal(*maps),
            "the same positions from the same pair",
            f"up to {float((maps[0] - maps[1]).abs().max()):.3g} apart",
        )
        now = [side.data if isinstance(side, Image) else side.coords for side in (known.fixed, known.moving)]
        same = all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))
        want(same, "both sides as they were", "changed values", "work on a copy")

    def test_the_result_is_kept(self, tmp_path: Path) -> None:
        """A saved result carries positions as the one that was saved, to 0.01 of a pixel."""
        known = self.pair()
        result = self._result(type(self.make()).models[-1])
        result.save(tmp_path / "kept.ome.zarr")
        at = probes(known.moving)
        apart = float((store.load(tmp_path / "kept.ome.zarr").to_fixed(at) - result.to_fixed(at)).norm(dim=1).max())
        want(
            apart <= 0.01 * result.fixed_grid.pixel,
            "the stored map within 0.01 px of the map",
            f"{apart / result.fixed_grid.pixel:.3g} px",
        )

    def test_progress_is_told(self) -> None:
        """``task.progress``, where it is called, gets `regframe.Progress`."""
        self._result(type(self.make()).models[0])
        bad = [one for one in self.told if not isinstance(one, Progress)]
        want(not bad, "regframe.Progress for task.progress", repr(bad[:1]))


class StartTests(PluginTests):
    """Subclass it, write ``make`` and, where the class has no ``sample``, ``pair``; pytest runs every check on your start."""

    def make(self) -> Start:
        """A new start to test, which finds the map of ``pair``."""
        start: Start = super().make()
        return start

    def pair(self) -> Known:
        """A pair, and the map from which a fit of it should begin."""
        raise SkipTest("it offers no sample(folder) to be tested with")

    def _used(self, folder: Path) -> None:
        known = self.pair()
        self.make().find(Task(known.fixed, known.moving, None, "auto", Config()))

    def test_it_finds_the_known_start(self) -> None:
        """``find`` lists candidates, best first, whose first one is the known map, and changes nothing."""
        known = self.pair()
        task = Task(known.fixed, known.moving, None, "auto", Config())
        start = self.make()
        with unchanged("find"):
            found = start.find(task)
        want(isinstance(found, list) and bool(found), "a list of candidates", repr(found)[:80])
        bad = [one for one in found if not isinstance(one, Candidate)]
        want(not bad, "regframe.Candidate from find", repr(bad[:1]))
        told = [one.evidence for one in found if one.evidence is not None]
        want(told == sorted(told, reverse=True), "candidates best first, by their evidence", told)
        away = off(position_of(found[0], task), known)
        want(away <= known.tolerance, f"a first candidate within {known.tolerance:.3g} of the diagonal", f"{away:.3g}")

    def test_other_pairs_are_no_defect(self) -> None:
        """For a pair of another dimension it finds a start, or refuses with a ValueError of one sentence."""
        known = self.pair()
        flat = known.moving.grid.ndim == 2 if isinstance(known.moving, Image) else known.moving.ndim == 2
        shape = (5, 6, 7) if flat else (6, 7)
        other = Image(torch.rand((1, *shape)), Grid(shape))
        task = dataclasses.replace(Task(known.fixed, known.moving, None, "auto", Config()), fixed=other, moving=other)
        refusal(lambda: self.make().find(task), "a pair of another dimension")
