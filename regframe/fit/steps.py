"""Reports on a running fit: every step goes into its history and to the caller's ``progress`` function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..contracts import Progress
from .energy import Energy

Report = Callable[[Progress], object] | None
"""The function that is called with every step, or None."""


@dataclass(frozen=True)
class Stage:
    """One pyramid level of one part of a fit.

    Args:
        name: name of the part in progress reports and history.
        level: index of the level, 0 the coarsest.
        n_levels: number of levels.
        total: largest number of steps.
    """

    name: str
    level: int
    n_levels: int
    total: int

    def tell(self, report: Report, done: int, loss: float) -> None:
        """Report step ``done`` with energy ``loss``."""
        if report is not None:
            report(Progress(self.name, done, self.total, self.level, self.n_levels, loss))


@dataclass(frozen=True)
class Steps:
    """The callback of one minimisation, called after each of its steps.

    Args:
        stage: the stage that the minimisation belongs to.
        energy: the energy that is minimised.
        history: list to which one entry per step is appended.
        report: function to call with every step, or None.
        before: steps of this stage made by earlier minimisations.
    """

    stage: Stage
    energy: Energy
    history: list[dict[str, Any]]
    report: Report
    before: int = 0

    def __call__(self, iteration: int, value: float) -> None:
        """Record step ``iteration`` (from 1) and the energy ``value`` after it."""
        stage, done = self.stage, self.before + iteration
        entry = {"stage": stage.name, "level": stage.level, "iteration": done, "energy": value, **self.energy.parts}
        self.history.append(entry)
        stage.tell(self.report, done, value)
