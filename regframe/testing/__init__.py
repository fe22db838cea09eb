"""Tests for plug-ins: subclass the kit of a kind, write ``make``, and pytest runs every check of it.

::

    from regframe.testing import MetricTests

    class TestMine(MetricTests):
        def make(self):
            return Mine()

Every check is a method whose failure says what was wanted and what came. ``regframe plugins --check`` runs the same checks on
what is installed (`check_installed`), without pytest. ``docs/plugins.md`` lists them. ``scaffold`` writes a new plug-in that
passes them; ``demo`` makes a pair whose map is known, ``samples`` the inputs that README and docs name, ``lessons`` those of the
tutorials, ``parts`` fields and a microarray, ``visium`` two folders of Visium, all with ``tables``, ``cases`` a pair small
enough to send, ``bench`` measures kernels and a fit.
"""

from __future__ import annotations

from ._adapters import AdapterTests
from ._base import run
from ._formats import FormatTests
from ._metrics import MetricTests, Pair
from ._run import Outcome, check_installed
from ._solvers import SolverTests, StartTests

__all__ = [
    "AdapterTests",
    "FormatTests",
    "MetricTests",
    "Outcome",
    "Pair",
    "SolverTests",
    "StartTests",
    "check_installed",
    "run",
]
