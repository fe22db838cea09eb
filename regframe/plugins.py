"""Finds installed plug-ins, looks their classes up by name, and names the packages that clash; `open`, `open_pyramid`, `metric`.

A plug-in is a module named by an entry point of the group ``regframe`` (see `regframe.hookspecs`). The adapters and metrics that
ship with regframe are plug-ins too. All modules are imported when a name is first looked up. A module that cannot be imported,
whose hook raises, or whose hook returns something other than classes is left out with a `PluginWarning` that names it.

``REGFRAME_DISABLE_PLUGINS`` holds a comma-separated list of entry-point names to leave out; ``all`` stands for every
plug-in that another distribution than regframe provides.
"""

from __future__ import annotations

import functools
import inspect
import os
import warnings
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal

import pluggy

from . import gate, hookspecs
from .contracts import Adapter, Metric
from .data import Image, PointSet, Pyramid
from .remote.address import Remote, is_address, locate
from .remote.errors import RemoteError

GROUP = "regframe"
"""Name of the entry-point group of plug-ins, of the pluggy project, and of the distribution that is regframe itself."""

STORE = "regframe.store"
"""Name of the entry-point group of the module that saves and loads results (see `store`)."""

DISABLE = "REGFRAME_DISABLE_PLUGINS"
"""Name of the environment variable that lists the plug-ins to leave out."""

PARTIAL, PLAN = ".partial", "plan.json"
"""Suffix of the folder of an unfinished output (see `regframe.slides.warp`), and the file in it by which such a folder is
recognised."""

Kind = Literal["adapter", "metric"]

_HOOKS: dict[Kind, tuple[str, type]] = {
    "adapter": ("regframe_adapters", Adapter),
    "metric": ("regframe_metrics", Metric),
}


_options: weakref.WeakKeyDictionary[Any, dict[str, Any]] = (
    weakref.WeakKeyDictionary()
)  # options by instance, for options_of


class PluginError(ValueError):
    """A name that no plug-in or several plug-ins provide, or options that the plug-in's class does not accept."""


class PluginWarning(UserWarning):
    """A plug-in was left out; the message says which and why."""


@dataclass(frozen=True)
class Entry:
    """One class that a plug-in provides.

    Args:
        kind: ``"adapter"`` or ``"metric"``.
        name: what users type.
        cls: the class.
        provider: ``"distribution version (entry point)"``.
    """

    kind: Kind
    name: str
    cls: type
    provider: str

    @property
    def summary(self) -> str:
        """First line of the class's docstring, empty where it has none."""
        return (inspect.getdoc(self.cls) or "").partition("\n")[0]

    @property
    def options(self) -> tuple[str, ...]:
        """The keyword arguments its ``__init__`` takes."""
        return tuple(_parameters(self.cls)[0])


@dataclass(frozen=True)
class Provider:
    """One entry point of the group ``regframe``: whether it works, and which classes it provides.

    Args:
        name: entry-point name, as ``REGFRAME_DISABLE_PLUGINS`` takes it.
        distribution: name and version of the installed package.
        module: module that the entry point names.
        status: ``"ok"``, ``"disabled"`` or ``"broken"``.
        problems: one sentence for each fault; not empty for ``"broken"``.
        adapters: names of the adapters it provides.
        metrics: names of the metrics it provides.
    """

    name: str
    distribution: str
    module: str
    status: Literal["ok", "disabled", "broken"] = "ok"
    problems: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()


def providers() -> tuple[Provider, ...]:
    """Every installed plug-in, disabled and broken ones included."""
    return _discover()[0]


def adapters() -> tuple[Entry, ...]:
    """Every adapter that was found, sorted by name; a name that two packages provide has two entries."""
    return tuple(entry for entry in _discover()[1] if entry.kind == "adapter")


def metrics() -> tuple[Entry, ...]:
    """Every metric that was found, sorted by name; a name that two packages provide has two entries."""
    return tuple(entry for entry in _discover()[1] if entry.kind == "metric")


def store() -> Any:
    """The module that stores results: ``save(result, path, overwrite)`` writes a folder, ``load(path)`` reads it.

    It is found through the one entry point of the group `STORE`, so that `regframe.Result` can save itself without importing a
    file format. PluginError where there is not exactly one such entry point.
    """
    points = tuple(entry_points(group=STORE))
    if len(points) != 1:
        found = ", ".join(f"{point.name} of {_distribution(point)}" for point in points) or "none"
        raise PluginError(f"wanted one way to store results in the group {STORE!r}, got {found}; install regframe anew")
    return points[0].load()


def refresh() -> None:
    """Forget all plug-ins, so that the next look-up searches again (for packages installed while the process runs)."""
    _discover.cache_clear()


def adapter(name: str, **options: Any) -> Adapter:
    """The adapter called ``name`` with these options; PluginError where there is no such adapter or option."""
    return _build(_lookup("adapter", name), options)  # type: ignore[no-any-return]


def metric(name: str, **options: Any) -> Metric:
    """The metric called ``name`` with these options; PluginError where there is no such metric or option."""
    return _build(_lookup("metric", name), options)  # type: ignore[no-any-return]


def open(source: Any, adapter: str | None = None, **options: Any) -> Image | PointSet:
    """Read a path or an object with the adapter named, or else with the adapter that is surest it can read it.

    Raises FileNotFoundError where the path does not exist, PluginError where no adapter (or more than one with the same
    confidence) knows the source, and whatever the adapter says of a source it cannot read.
    """
    return find_adapter(source, adapter, **options).open(source)


def open_pyramid(source: Any, adapter: str | None = None, **options: Any) -> Pyramid:
    """Every resolution of an image, lazy: the pixels of a region are read when that region is asked for.

    Raises what `open` raises, and PluginError where the adapter reads no images of several resolutions.
    """
    reader = find_adapter(source, adapter, **options)
    pyramid = reader.pyramid(source)
    if pyramid is None:
        raise PluginError(
            f"wanted an image that is read level by level, got {_describe(source)}, which the adapter {reader.name!r} "
            "reads as a whole; use regframe.open"
        )
    return pyramid


def find_adapter(source: Any, adapter: str | None = None, **options: Any) -> Adapter:
    """The adapter instance that `open` would use, built with ``options``.

    Its ``apply`` and ``save`` map and write data in the source's own format. Raises what `open` raises before it reads the
    source; also PermissionError for a path that may not be read, and ValueError for an output that regframe left unfinished.
    """
    far = is_address(source)
    if far:
        source = locate(source)
        _check_remote(source)
    elif isinstance(source, (str, os.PathLike)) and "://" not in str(source):
        path = Path(source)
        if not path.exists():
            raise FileNotFoundError(f"wanted an existing file or folder, got {str(path)!r}, which does not exist")
        if not os.access(path, os.R_OK):
            raise PermissionError(f"wanted a readable file or folder, got {str(path)!r}, which may not be read")
        gate.check_file(path)
        if any(p.name.endswith(PARTIAL) and (p / PLAN).is_file() for p in (path, path.parent)):
            raise ValueError(
                f"wanted a finished image, got {str(path)!r}, which a run of regframe left unfinished; run the same command "
                "again, which goes on from there"
            )
    if adapter is not None:
        named = _lookup("adapter", adapter)
        if far and not getattr(named.cls, "remote", False):
            raise PluginError(
                f"wanted a file on this disk for the adapter {adapter!r}, got {str(source)!r}; download it"
            )
        return _build(named, options)  # type: ignore[no-any-return]
    found = tuple(entry for entry in adapters() if not far or getattr(entry.cls, "remote", False))
    scores = sorted(((_confidence(entry, source, options), entry) for entry in found), key=lambda pair: -pair[0])
    if not scores or scores[0][0] <= 0:
        raise PluginError(
            f"wanted a source that an adapter knows, got {_describe(source)}; "
            f"there is {_listing(found)}: name one with adapter=..., or convert the file"
        )
    best = [entry for score, entry in scores if score == scores[0][0]]
    if len({entry.name for entry in best}) > 1:
        raise PluginError(
            f"wanted one adapter for {_describe(source)}, but {_listing(best)} are equally sure of it; "
            "name one with adapter=..."
        )
    return _build(_lookup("adapter", best[0].name), options)  # type: ignore[no-any-return]


def _check_remote(where: Remote) -> None:
    """RemoteError where there is nothing that may be read under an address, ValueError for an output that is not finished."""
    begun = where.with_name(where.name + PARTIAL) / PLAN
    if where.name.endswith(".zarr") and where.lists and not (where / "zarr.json").is_file() and begun.is_file():
        raise ValueError(
            f"wanted a finished image, got {str(where)!r}, which a run of regframe left unfinished; run the same command again, "
            "which goes on from there"
        )
    where.check()


def _describe(source: Any) -> str:
    if isinstance(source, (str, os.PathLike, Remote)):
        return repr(str(source))
    return f"an object of type {type(source).__name__}"


def _confidence(entry: Entry, source: Any, options: dict[str, Any]) -> float:
    """The value of the adapter's ``matches`` for ``source``; 0 where the adapter cannot be built, or fails with a warning."""
    try:
        try:
            instance = entry.cls(**options)
        except (TypeError, ValueError):
            instance = (
                entry.cls()
            )  # wrong options must not hide the adapter here: `_build` reports them once it is chosen
    except (TypeError, ValueError):
        return 0.0  # a required option is missing: such an adapter is only used when it is named
    try:
        score = float(instance.matches(source))
    except RemoteError:  # no fault of the adapter
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - third-party code must not take the other plug-ins down
        _warn(f"the adapter {entry.name!r} of {entry.provider} failed to look at {_describe(source)}: {_reason(error)}")
        return 0.0
    if not 0 <= score <= 1:
        _warn(f"the adapter {entry.name!r} of {entry.provider} rates its confidence {score}, not from 0 to 1")
        return 0.0
    return score


def _lookup(kind: Kind, name: str) -> Entry:
    entries = [entry for entry in _discover()[1] if entry.kind == kind]
    found = [entry for entry in entries if entry.name == name]
    if not found:
        left_out = [p for p in providers() if p.status != "ok"]
        also = (
            f"; left out: {', '.join(f'{p.name} of {p.distribution} ({p.status})' for p in left_out)}"
            if left_out
            else ""
        )
        raise PluginError(f"wanted the name of {_article(kind)}, got {name!r}; there is {_listing(entries)}{also}")
    if len({entry.cls for entry in found}) > 1:
        culprits = " and ".join(entry.provider for entry in found)
        raise PluginError(
            f"wanted one {kind} called {name!r}, but {culprits} each provide one; "
            f"leave one out with {DISABLE}=ENTRY_POINT (there is {_listing(entries)})"
        )
    return found[0]


def _article(kind: Kind) -> str:
    return "an adapter" if kind == "adapter" else "a metric"


def _listing(entries: Iterable[Entry]) -> str:
    return ", ".join(f"{entry.name} (from {entry.provider})" for entry in entries) or "none"


def _parameters(cls: type) -> tuple[dict[str, inspect.Parameter], bool]:
    """Keyword parameters of ``__init__`` by name, and whether it has a ``**kwargs`` that takes any others."""
    try:
        parameters = inspect.signature(cls).parameters.values()
    except (TypeError, ValueError):
        return {}, True  # no signature (a C extension, say): pass all options and let __init__ refuse them
    named = {
        p.name: p
        for p in parameters
        if p.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    }
    return named, any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def required_options(entry: Entry) -> tuple[str, ...]:
    """The keyword arguments of the class's ``__init__`` that have no default."""
    return tuple(p.name for p in _parameters(entry.cls)[0].values() if p.default is inspect.Parameter.empty)


def _build(entry: Entry, options: dict[str, Any]) -> Any:
    """An instance of the class with ``options``; PluginError, listing the valid options, where one is unknown or missing."""
    named, open_ended = _parameters(entry.cls)
    unknown = [] if open_ended else [name for name in options if name not in named]
    if unknown:
        raise PluginError(
            f"wanted options of the {entry.kind} {entry.name!r} ({', '.join(named) or 'it has none'}), "
            f"got {', '.join(map(repr, unknown))}"
        )
    missing = [name for name in required_options(entry) if name not in options]
    if missing:
        raise PluginError(f"wanted the options {', '.join(missing)} for the {entry.kind} {entry.name!r}; state them")
    instance = entry.cls(**options)
    _options[instance] = dict(options)
    return instance


def options_of(instance: Any) -> dict[str, Any]:
    """The options with which `adapter` or `metric` built this instance; empty for an instance made in another way."""
    return dict(_options.get(instance, {}))


# ---- discovery ----------------------------------------------------------------------------------------------------


def _entry_points() -> tuple[EntryPoint, ...]:
    """The entry points of the group `GROUP`; a function of its own so that tests can replace it."""
    return tuple(entry_points(group=GROUP))


@functools.cache
def _discover() -> tuple[tuple[Provider, ...], tuple[Entry, ...]]:
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    found: list[Provider] = []
    entries: list[Entry] = []
    disabled = {name.strip() for name in os.environ.get(DISABLE, "").split(",") if name.strip()}
    seen: set[str] = {"all"}
    for point in sorted(_entry_points(), key=lambda p: (_package(p), p.name)):
        provider = Provider(point.name, _distribution(point), point.value)
        seen.add(point.name)
        if point.name in disabled or ("all" in disabled and _package(point) != GROUP):
            found.append(replace(provider, status="disabled"))
            continue
        problems, provided = _load(manager, point)
        entries += provided
        found.append(
            replace(
                provider,
                status="broken" if problems else "ok",
                problems=tuple(problems),
                adapters=tuple(e.name for e in provided if e.kind == "adapter"),
                metrics=tuple(e.name for e in provided if e.kind == "metric"),
            )
        )
    # warnings come last: where a filter turns the first one into an exception, the search is complete nevertheless
    messages = [
        f"the plug-in {p.name!r} of {p.distribution} is left out in part or in whole: {problem}"
        for p in found
        for problem in p.problems
    ]
    unknown = sorted(disabled - seen)
    if unknown:
        names = ", ".join(sorted(seen - {"all"})) or "none"
        messages.append(f"{DISABLE} names {', '.join(unknown)}, but the plug-ins installed are {names}")
    for message in messages:
        _warn(message)
    return tuple(found), tuple(sorted(entries, key=lambda e: (e.kind, e.name, e.provider)))


def _load(manager: pluggy.PluginManager, point: EntryPoint) -> tuple[list[str], list[Entry]]:
    """Import one plug-in and call its hooks; returns its faults, one sentence each, and the classes that it provides."""
    provider = f"{_distribution(point)} ({point.name})"
    problems: list[str] = []
    provided: list[Entry] = []
    try:
        module = point.load()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - third-party code must not take the other plug-ins down
        return [f"it cannot be imported: {_reason(error)}"], []
    hooks = {hook for hook, _ in _HOOKS.values()}
    try:
        implemented = {name for name in dir(module) if manager.parse_hookimpl_opts(module, name) is not None}
        manager.register(module, name=f"{_package(point)}:{point.name}")
    except Exception as error:  # noqa: BLE001 - as above
        return [f"it cannot be registered: {_reason(error)}"], []
    if implemented - hooks:
        problems.append(
            f"it implements {', '.join(sorted(implemented - hooks))}, which no hook is called; "
            f"there is {', '.join(sorted(hooks))}"
        )
    if not implemented:
        problems.append(f"it implements no hook: mark {' or '.join(sorted(hooks))} with @regframe.hookimpl")
    others = [plugin for plugin in manager.get_plugins() if plugin is not module]
    for kind, (hook, base) in _HOOKS.items():
        if hook not in implemented:
            continue
        try:
            answers = manager.subset_hook_caller(hook, others)()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - as above
            problems.append(f"its hook {hook} raised: {_reason(error)}")
            continue
        for answer in answers:
            if not isinstance(answer, (list, tuple)):
                problems.append(f"its hook {hook} returned {_short(answer)}, not a list of classes")
                continue
            for cls in answer:
                fault = _fault(cls, base)
                if fault:
                    problems.append(f"its hook {hook} returned {_short(cls)}, {fault}")
                else:
                    provided.append(Entry(kind, cls.name, cls, provider))
    return problems, provided


def _fault(cls: Any, base: type) -> str | None:
    """What is wrong with a class that a hook returned, as the end of a sentence; None for a sound class."""
    if not inspect.isclass(cls) or not issubclass(cls, base):
        return f"which is no subclass of regframe.{base.__name__}"
    missing: frozenset[str] = getattr(cls, "__abstractmethods__", frozenset())
    if missing:
        return f"which lacks {', '.join(sorted(missing))}"
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not name or any(c.isspace() or c in "=,:" for c in name):
        return f"whose name is {name!r} instead of one word"
    accepts = getattr(cls, "accepts", None)
    if base is Metric and accepts not in ((Image, Image), (PointSet, PointSet)):
        return "whose accepts is neither (Image, Image) nor (PointSet, PointSet)"
    return None


def _package(point: EntryPoint) -> str:
    return str(point.dist.name) if point.dist is not None else "an unknown package"


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else "an unknown package"


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _short(value: Any) -> str:
    text = getattr(value, "__qualname__", None) if isinstance(value, Callable) else None  # type: ignore[arg-type]
    text = text or repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _warn(message: str) -> None:
    warnings.warn(message, PluginWarning, stacklevel=4)
