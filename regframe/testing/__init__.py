"""Tests for plug-ins: subclass `MetricTests` or `AdapterTests`, write ``make``, and pytest runs every check of the kit.

::

    from regframe.testing import MetricTests

    class TestMine(MetricTests):
        def make(self):
            return Mine()

Every check is a method whose failure says what was wanted and what came. ``regframe plugins --check`` runs the same
checks on what is installed (`check_installed`), without pytest. ``docs/plugins.md`` lists them. ``scaffold`` writes a
new plug-in that passes them; ``demo`` makes a pair whose map is known, ``bench`` measures kernels and a fit.
"""

from __future__ import annotations

from ._adapters import AdapterTests
from ._metrics import MetricTests, Pair
from ._run import Outcome, check_installed, run

__all__ = ["AdapterTests", "MetricTests", "Outcome", "Pair", "check_installed", "run"]
