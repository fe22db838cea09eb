"""What is told of a fit while it runs: every step goes into its history and to whoever wants to know of progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..contracts import Progress
from .energy import Energy

Report = Callable[[Progress], None] | None
"""Who wants to know of every step, or None."""


@dataclass(frozen=True)
class Stage:
    """One level of one part of a fit.

    Args:
        name: what progress and history call it.
        level: index of the level, 0 the coarsest.
        n_levels: how many there are.
        total: steps at most.
    """

    name: str
    level: int
    n_levels: int
    total: int

    def tell(self, report: Report, done: int, loss: float) -> None:
        """Tell of the step number ``done``, where the energy is ``loss``."""
        if report is not None:
            report(Progress(self.name, done, self.total, self.level, self.n_levels, loss))


@dataclass(frozen=True)
class Steps:
    """The callback of one minimisation.

    Args:
        stage: what it belongs to.
        energy: what is minimised.
        history: gets one entry per step.
        report: who else wants to know.
        before: steps of this stage made by earlier minimisations.
    """

    stage: Stage
    energy: Energy
    history: list[dict[str, Any]]
    report: Report
    before: int = 0

    def __call__(self, iteration: int, value: float) -> None:
        """Note step ``iteration`` (from 1) and the energy after it."""
        stage, done = self.stage, self.before + iteration
        entry = {"stage": stage.name, "level": stage.level, "iteration": done, "energy": value, **self.energy.parts}
        self.history.append(entry)
        stage.tell(self.report, done, value)
