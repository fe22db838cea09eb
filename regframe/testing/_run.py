"""Runs a kit without pytest: one outcome per check, for ``regframe plugins --check``."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import tempfile
import time
import traceback
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .. import plugins
from ..contracts import Known, Start
from ..gate import FileError
from ._adapters import AdapterTests
from ._base import PluginTests, SkipTest
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


def run(
    tests: type[PluginTests], only: Collection[str] = ()
) -> Iterator[tuple[str, Literal["ok", "failed", "skipped"], str, float]]:
    """Run every check of a kit's subclass (or those in ``only``), each on a new instance with a folder of its own.

    Yields name, status, message and seconds as in `Outcome`. Any exception makes a check fail, except ImportError (a missing
    extra), which skips it, and KeyboardInterrupt, which is raised. Warnings and output of the plug-in are not shown.
    """
    for name in _names(tests):
        if only and name.removeprefix("test_") not in only:
            continue
        status: Literal["ok", "failed", "skipped"] = "ok"
        message = ""
        began = time.perf_counter()
        try:
            with _silence():
                check = getattr(tests(), name)
                if "tmp_path" in inspect.signature(check).parameters:
                    with tempfile.TemporaryDirectory(prefix="regframe-check-", ignore_cleanup_errors=True) as folder:
                        check(tmp_path=Path(folder))
                else:
                    check()
        except SkipTest as reason:
            status, message = "skipped", str(reason)
        except ImportError as error:  # a missing extra; the adapter's message says which
            status, message = "skipped", " ".join(str(error).split())
        except AssertionError as error:
            status, message = "failed", " ".join(str(error).split()) or "an assertion failed"
        except (Exception, SystemExit) as error:  # noqa: BLE001 - third-party code, whose faults are to be reported
            status, message = "failed", _said(error)
        yield name.removeprefix("test_"), status, message, time.perf_counter() - began


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Suppresses warnings, logs and output: a plug-in's libraries report damaged files, which are damaged on purpose here."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _said(error: BaseException) -> str:
    """An error in words; of one that the gate took for a damaged file, what the plug-in raised, and in which line of it."""
    words = f"{type(error).__name__}: {' '.join(str(error).split())}"
    cause = error.__cause__
    if not isinstance(error, FileError) or cause is None or isinstance(cause, (ValueError, OSError)):
        return words
    *_, last = traceback.extract_tb(cause.__traceback__) or [None]
    where = f" in {Path(last.filename).name}, line {last.lineno}" if last is not None else ""
    return f"{type(cause).__name__}: {' '.join(str(cause).split())}{where}; to a user it reads: {words}"


def _names(tests: type[PluginTests]) -> list[str]:
    """The checks in the order in which they are written, those of the kit first, without those set to None."""
    names: dict[str, None] = {}
    for cls in reversed(tests.__mro__):
        names.update(dict.fromkeys(name for name in vars(cls) if name.startswith("test_")))
    return [name for name in names if callable(getattr(tests, name))]


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
