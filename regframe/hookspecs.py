"""The plug-in contract: five hooks, all return classes, each is called once, before any optimisation starts.

A plug-in is any module named by an entry point of the group ``regframe``::

    [project.entry-points.regframe]
    my_modality = "my_package"

and implements one or more of the functions below with the marker ``regframe.hookimpl``::

    import regframe

    @regframe.hookimpl
    def regframe_metrics():
        return [MyMetric]

A class's ``name`` is what users type (``--metric my_metric``), its ``__init__`` keywords are its options. What ships with
regframe comes through the same hooks. Where a plug-in takes a name that regframe has, regframe's class keeps it, with a warning,
and ``DISTRIBUTION/NAME`` picks the other one.
"""

from __future__ import annotations

from typing import Any

import pluggy

hookspec = pluggy.HookspecMarker("regframe")
hookimpl = pluggy.HookimplMarker("regframe")


@hookspec
def regframe_adapters() -> list[type[Any]]:  # type: ignore[empty-body]
    """Return the adapters this plug-in provides: subclasses of `regframe.Adapter`, each for one modality."""


@hookspec
def regframe_metrics() -> list[type[Any]]:  # type: ignore[empty-body]
    """Return the metrics this plug-in provides: subclasses of `regframe.Metric`."""


@hookspec
def regframe_solvers() -> list[type[Any]]:  # type: ignore[empty-body]
    """Return the solvers this plug-in provides: subclasses of `regframe.Solver`, each for one kind of pair."""


@hookspec
def regframe_starts() -> list[type[Any]]:  # type: ignore[empty-body]
    """Return the starts this plug-in provides: subclasses of `regframe.Start`, which ``init`` takes by name."""


@hookspec
def regframe_formats() -> list[type[Any]]:  # type: ignore[empty-body]
    """Return the formats of maps this plug-in provides: subclasses of `regframe.MapFormat`, for export and import."""
