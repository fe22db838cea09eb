"""Runs the kits on what is installed: one outcome per check, for ``regframe plugins --check``."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .. import plugins
from ..contracts import Known, Start
from ._adapters import AdapterTests
from ._base import PluginTests, SkipTest, run
from ._formats import FormatTests
from ._metrics import MetricTests
from ._solvers import SolverTests, StartTests


@dataclass(frozen=True)
class Outcome:
    """The outcome of one check.

    Args:
        kind: ``"adapter"``, ``"metric"``, ``"solver"``, ``"start"`` or ``"format"``.
        name: name of the adapter or metric.
        provider: ``"distribution version (entry point)"``.
        check: name of the kit's method without ``test_``.
        status: ``"ok"``, ``"failed"`` or ``"skipped"``.
        message: what was wanted and what came, or why the check was skipped; empty for ``"ok"``.
        seconds: duration.
    """

    kind: str
    name: str
    provider: str
    check: str
    status: Literal["ok", "failed", "skipped"]
    message: str
    seconds: float


def check_installed(only: Collection[str] = ()) -> Iterator[Outcome]:
    """Run the kits on what plug-ins provide, each with its default options.

    Args:
        only: names of classes, entry points or packages to check; all where empty. ValueError for one that is
            not installed.

    A plug-in that is left out because it is broken is a failed check ``loads``. An adapter without a ``sample`` of its own
    has the checks skipped that need one, and what cannot be made without options is skipped as a whole.
    """
    entries = [entry for kind in plugins.KINDS for entry in plugins.entries(kind)]
    providers = plugins.providers()
    known = {e.name for e in entries} | {p.name for p in providers} | {_package(p.distribution) for p in providers}
    unknown = sorted(set(only) - known)
    if unknown:
        raise ValueError(
            f"wanted names of classes or plug-ins that are installed ({', '.join(sorted(known)) or 'none'}), "
            f"got {', '.join(unknown)}"
        )
    return _outcomes(entries, providers, set(only))


def _outcomes(
    entries: list[plugins.Entry], providers: tuple[plugins.Provider, ...], only: set[str]
) -> Iterator[Outcome]:
    for provider in providers:
        whole = f"{provider.distribution} ({provider.name})"
        if only and not only & {provider.name, _package(provider.distribution), *provider.names}:
            continue
        for problem in provider.problems:
            yield Outcome("plug-in", provider.name, whole, "loads", "failed", problem, 0.0)
        if provider.status == "disabled":
            yield Outcome("plug-in", provider.name, whole, "loads", "skipped", f"{plugins.DISABLE} leaves it out", 0.0)
    shipped = {(entry.kind, entry.name) for entry in entries if entry.shipped}
    for entry in entries:
        words = entry.provider.split(" (")[-1].rstrip(")")
        if only and not only & {entry.name, words, _package(entry.provider)}:
            continue
        if not entry.shipped and (entry.kind, entry.name) in shipped:
            reason = (
                f"regframe has a {entry.name!r}, which is used; rename it, or type {entry.distribution}/{entry.name}"
            )
            yield Outcome(entry.kind, entry.name, entry.provider, "has a name of its own", "failed", reason, 0.0)
        required = plugins.required_options(entry)
        if required and entry.kind != "start":
            reason = f"it cannot be made without {', '.join(required)}; test it with a subclass of the kit"
            yield Outcome(entry.kind, entry.name, entry.provider, "all", "skipped", reason, 0.0)
            continue
        for result in run(_kit(entry)):
            yield Outcome(entry.kind, entry.name, entry.provider, *result)


def _package(distribution: str) -> str:
    return distribution.partition(" ")[0]


_KITS: dict[str, type[PluginTests]] = {"metric": MetricTests, "solver": SolverTests, "format": FormatTests}
"""Kits that need nothing but an instance of the class."""


def _start_kit(entry: plugins.Entry) -> type[PluginTests]:
    """A subclass of the kit for one start, made with the options of its sample."""
    folder = tempfile.TemporaryDirectory(prefix="regframe-check-", ignore_cleanup_errors=True)
    sample = entry.cls.sample(Path(folder.name))  # type: ignore[attr-defined]

    class Installed(StartTests):
        kept = folder

        def make(self) -> Start:
            if sample is None and plugins.required_options(entry):
                raise SkipTest(
                    f"it cannot be made without {', '.join(plugins.required_options(entry))}, and has no sample(folder)"
                )
            start: Start = entry.cls(**({} if sample is None else sample[0]))
            return start

        def pair(self) -> Known:
            return super().pair() if sample is None else sample[1]

    return Installed


def _kit(entry: plugins.Entry) -> type[PluginTests]:
    """A subclass of the kit for one adapter or metric."""

    def make(self: PluginTests) -> Any:
        return entry.cls()

    if entry.kind in _KITS:
        return type("Installed", (_KITS[entry.kind],), {"make": make})
    if entry.kind == "start":
        return _start_kit(entry)

    def sample(self: AdapterTests, folder: Path) -> Any:
        source = entry.cls.sample(folder)  # type: ignore[attr-defined]
        if source is None:
            raise SkipTest("it offers no sample(cls, folder) to be tested with")
        return source

    return type("Installed", (AdapterTests,), {"make": make, "sample": sample})
