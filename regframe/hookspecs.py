"""The plug-in contract: two hooks, both return classes, both are called once, before any optimisation starts.

A plug-in is any module named by an entry point of the group ``regframe``::

    [project.entry-points.regframe]
    my_modality = "my_package"

and implements one or both of the functions below with the marker ``regframe.hookimpl``::

    import regframe

    @regframe.hookimpl
    def regframe_metrics():
        return [MyMetric]

A class's ``name`` is what users type (``--metric my_metric``), its ``__init__`` keywords are its options.
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
