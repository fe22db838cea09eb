"""Finds installed plug-ins, looks their classes up by name, and names the packages that clash; `open`, `open_pyramid`, `metric`.

A plug-in is a module named by an entry point of the group ``regframe`` (see `regframe.hookspecs`). What ships with regframe,
the adapters, metrics, solvers, starts and formats, are plug-ins too. All modules are imported when a name is first looked
up. A module that cannot be imported, whose hook raises, or whose hook returns something other than classes is left out with
a `PluginWarning` that names it. A class whose name regframe has already is used only as ``DISTRIBUTION/NAME``.

``REGFRAME_DISABLE_PLUGINS`` holds a comma-separated list of entry-point names to leave out; ``all`` stands for every
plug-in that another distribution than regframe provides.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import time
import warnings
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Literal

import pluggy

from . import gate, hookspecs, strangers
from .contracts import API, Adapter, Configured, MapFormat, Metric, Solver, Start
from .data import Image, PointSet, Pyramid
from .gate.meant import meant
from .remote.address import Remote, is_address, locate
from .remote.errors import RemoteError
from .strangers import doors

GROUP = "regframe"
"""Name of the entry-point group of plug-ins, of the pluggy project, and of the distribution that is regframe itself."""

STORE = "regframe.store"
"""Name of the entry-point group of the module that saves and loads results (see `store`)."""

PAGES = "regframe.pages"
"""Name of the entry-point group of the module that draws the page of a result (see `pages`)."""

DISABLE = "REGFRAME_DISABLE_PLUGINS"
"""Name of the environment variable that lists the plug-ins to leave out."""

PARTIAL, PLAN = ".partial", "plan.json"
"""Suffix of the folder of an unfinished output (see `regframe.slides.warp`), and the file in it by which such a folder is
recognised."""

SLOW = 5.0
"""Seconds that the import of a plug-in may take before it is named: every command waits for it."""

Kind = Literal["adapter", "metric", "solver", "start", "format"]

_HOOKS: dict[Kind, tuple[str, type]] = {
    "adapter": ("regframe_adapters", Adapter),
    "metric": ("regframe_metrics", Metric),
    "solver": ("regframe_solvers", Solver),
    "start": ("regframe_starts", Start),
    "format": ("regframe_formats", MapFormat),
}
KINDS: tuple[Kind, ...] = tuple(_HOOKS)
"""Kinds of classes that plug-ins provide, each through a hook of its own."""
_LATER: frozenset[Kind] = frozenset({"metric", "solver", "start", "format"})
"""Kinds whose hooks regframe's own modules are only asked when one is looked up: they import torch, the engine, and formats of
files."""


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
        kind: ``"adapter"``, ``"metric"``, ``"solver"``, ``"start"`` or ``"format"``.
        name: what users type.
        cls: the class.
        provider: ``"distribution version (entry point)"``.
    """

    kind: Kind
    name: str
    cls: type
    provider: str

    @property
    def distribution(self) -> str:
        """Name of the package that provides it."""
        return self.provider.partition(" ")[0]

    @property
    def shipped(self) -> bool:
        """Whether it comes with regframe."""
        return self.distribution == GROUP

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
        solvers: names of the solvers it provides.
        starts: names of the starts it provides.
        formats: names of the formats it provides.
    """

    name: str
    distribution: str
    module: str
    status: Literal["ok", "disabled", "broken"] = "ok"
    problems: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    solvers: tuple[str, ...] = ()
    starts: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all the classes it provides."""
        return (*self.adapters, *self.metrics, *self.solvers, *self.starts, *self.formats)


def providers() -> tuple[Provider, ...]:
    """Every installed plug-in, disabled and broken ones included."""
    found: list[Provider] = []
    asked = [entry for kind in _HOOKS for entry in entries(kind)]
    for provider in _discover().providers:
        whole = f"{provider.distribution} ({provider.name})"
        names = {f"{kind}s": tuple(e.name for e in asked if e.provider == whole and e.kind == kind) for kind in _HOOKS}
        problems = (*provider.problems, *_later_problems().get(whole, ()))
        found.append(replace(provider, **names, problems=problems, status="broken" if problems else provider.status))  # type: ignore[arg-type]
    return tuple(found)


def entries(kind: Kind) -> tuple[Entry, ...]:
    """Every class of a kind that was found, sorted by name; a name that two packages provide has two entries."""
    found = [entry for entry in _discover().entries if entry.kind == kind]
    if kind in _LATER:
        found += _own(kind)[1]
    return tuple(sorted(found, key=lambda e: (e.name, e.provider)))


def adapters() -> tuple[Entry, ...]:
    """Every adapter that was found, sorted by name; a name that two packages provide has two entries."""
    return entries("adapter")


def metrics() -> tuple[Entry, ...]:
    """Every metric that was found, sorted by name; a name that two packages provide has two entries."""
    return entries("metric")


def chosen_by_default(kind: Kind) -> tuple[Entry, ...]:
    """The classes of a kind that are used without being named: none whose name belongs to another one.

    Those that ship with regframe come first, in the order in which its hooks return them; strangers' follow by name.
    """
    found = [entry for entry in entries(kind) if _owner(entry) is entry]
    order = [entry.cls for entry in (_own(kind)[1] if kind in _LATER else _discover().entries)]
    return tuple(
        sorted(found, key=lambda e: (not e.shipped, order.index(e.cls) if e.shipped and e.cls in order else 0, e.name))
    )


def _owner(entry: Entry) -> Entry:
    """The one of all classes of this kind and name that the name alone stands for: the one that ships with regframe, if any."""
    return next((e for e in entries(entry.kind) if e.name == entry.name and e.shipped), entry)


def pages() -> Any:
    """The module that draws the page of a result: ``write(result, path, fixed, moving)`` returns the file that it wrote,
    ``viewer(result, fixed, moving, size)`` a widget of a notebook, ``sides(result, fixed, moving)`` both sides, opened.

    It is found through the entry point of the group `PAGES`, so that `regframe.Result` can show itself without importing a
    page; where the installed package is older than the group, it is regframe's own.
    """
    own = EntryPoint("html", "regframe.report.again", PAGES)
    return next(iter(doors.of_group(PAGES)), own).load()


def store() -> Any:
    """The module that stores results: ``save(result, path, overwrite)`` writes a folder, ``load(path)`` reads it.

    It is found through the one entry point of the group `STORE`, so that `regframe.Result` can save itself without importing a
    file format. PluginError where there is not exactly one such entry point.
    """
    points = doors.of_group(STORE)
    if len(points) != 1:
        found = ", ".join(f"{point.name} of {_distribution(point)}" for point in points) or "none"
        raise PluginError(f"wanted one way to store results in the group {STORE!r}, got {found}; install regframe anew")
    return points[0].load()


def disabled() -> frozenset[str]:
    """Names of entry points that the environment variable `DISABLE` leaves out."""
    return frozenset(name.strip() for name in os.environ.get(DISABLE, "").split(",") if name.strip())


def refresh() -> None:
    """Forget all plug-ins, so that the next look-up searches again (for packages installed while the process runs)."""
    importlib.invalidate_caches()  # folders are listed anew, even where they changed within the clock's grain
    doors.forget()
    _discover.cache_clear()
    _own.cache_clear()
    strangers.forget()


def adapter(name: str, **options: Any) -> Adapter:
    """The adapter called ``name`` with these options; PluginError where there is no such adapter or option."""
    return _build(_lookup("adapter", name), options)  # type: ignore[no-any-return]


def metric(name: str, **options: Any) -> Metric:
    """The metric called ``name`` with these options; PluginError where there is no such metric or option."""
    return _build(_lookup("metric", name), options)  # type: ignore[no-any-return]


def start(name: str, **options: Any) -> Start:
    """The start called ``name`` with these options; PluginError where there is no such start or option."""
    return _build(_lookup("start", name), options)  # type: ignore[no-any-return]


def solver(name: str, **options: Any) -> Solver:
    """The solver called ``name`` with these options; PluginError where there is no such solver or option."""
    return _build(_lookup("solver", name), options)  # type: ignore[no-any-return]


def entry(kind: Kind, name: str) -> Entry:
    """The class of a kind called ``name`` or ``DISTRIBUTION/NAME``; PluginError where there is none, or several are."""
    return _lookup(kind, name)


def format_named(name: str) -> type[MapFormat]:
    """The class of the format of maps called ``name``; PluginError where there is no such format."""
    return _lookup("format", name).cls


def find_solver(fixed: Image | PointSet, moving: Image | PointSet, **options: Any) -> Solver:
    """The solver that is surest a pair is of its kind; of equally sure ones the one that ships with regframe.

    Args:
        fixed: the side that stays where it is.
        moving: the side that is mapped onto ``fixed``.
        options: of the solver.

    Raises PluginError where no solver takes the pair, or strangers' solvers are equally sure of it.
    """
    rated = [(_rated(entry, fixed, moving), entry) for entry in chosen_by_default("solver")]
    best = max((score for score, _ in rated), default=0.0)
    pair = f"{_described(fixed)} as fixed and {_described(moving)} as moving side"
    if best <= 0:
        left_out = [p for p in providers() if p.status != "ok"]
        out = "".join(f"; left out is {p.name} of {p.distribution} ({p.status})" for p in left_out)
        raise PluginError(
            f"wanted a pair that a solver registers, got {pair}; there is {_listing(entry for _, entry in rated)}{out}: "
            f"{_who_could(fixed, moving)}install or enable a package that provides one for this kind of pair, or open a side in "
            "another form"
        )
    surest = [entry for score, entry in rated if score == best]
    surest = [entry for entry in surest if entry.shipped] or surest
    if len(surest) > 1 and not surest[0].shipped:
        raise PluginError(
            f"wanted one solver for {pair}, but {_listing(surest)} are equally sure of it; name one with solver=..."
        )
    return _build(surest[0], options)  # type: ignore[no-any-return]


def _who_could(fixed: Image | PointSet, moving: Image | PointSet) -> str:
    """Who registers a pair that no solver here takes, and how to get it, as the beginning of an advice; empty where nobody is
    known: regframe itself for images and points of one dimension, the package of the class for any other data."""
    own = [side for side in (fixed, moving) if type(side) not in (Image, PointSet)]
    if own:
        package = type(own[0]).__module__.partition(".")[0]
        return f"{type(own[0]).__name__} is of the package {package}, which may have one; "
    axes = [side.grid.ndim if isinstance(side, Image) else side.ndim for side in (fixed, moving)]
    if axes[0] == axes[1]:
        return f"{GROUP}'s own solvers register such pairs, so that one is missing here: install {GROUP} anew, or "
    return ""


def _rated(entry: Entry, fixed: Image | PointSet, moving: Image | PointSet) -> float:
    """How sure a solver is of a pair, 0 … 1; 0, with a warning, where it fails to say or cannot be built without options."""
    if required_options(entry):
        return 0.0
    try:
        score = float(entry.cls().matches(fixed, moving))
    except (Exception, SystemExit) as error:
        if entry.shipped:
            raise
        _warn(f"the solver {entry.name!r} of {entry.provider} failed to look at a pair: {_reason(error)}")
        return 0.0
    return _believed(entry, score)


def _believed(entry: Entry, score: float) -> float:
    """How sure a class says it is; 0, with a warning, where that is not from 0 to 1."""
    if 0 <= score <= 1:
        return score
    _warn(f"the {entry.kind} {entry.name!r} of {entry.provider} rates its confidence {score}, not from 0 to 1")
    return 0.0


def _described(side: Image | PointSet) -> str:
    """One side of a pair in a word or two."""
    if isinstance(side, Image):
        return f"{side.grid.ndim}D image"
    word = "points" if type(side) is PointSet else f"points ({type(side).__name__})"
    return f"{side.ndim}D {word}"


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
    found = tuple(entry for entry in chosen_by_default("adapter") if not far or getattr(entry.cls, "remote", False))
    scores = sorted(((_confidence(entry, source, options), entry) for entry in found), key=lambda pair: -pair[0])
    if not scores or scores[0][0] <= 0:
        raise PluginError(
            f"wanted a source that an adapter knows, got {_describe(source)}; "
            f"there is {_listing(found)}: it holds no image, table of positions or instrument's folder that any of these reads; "
            "check the path, convert the file (TIFF, PNG, CSV), or name its reader (adapter=..., --fixed-adapter, …)"
        )
    best = [entry for score, entry in scores if score == scores[0][0]]
    if len({entry.name for entry in best}) > 1:
        raise PluginError(
            f"wanted one adapter for {_describe(source)}, but {_listing(best)} are equally sure of it; "
            "name one with adapter=..."
        )
    return _build(best[0], options)  # type: ignore[no-any-return]


def find_writer(reader: Adapter, data: Image | PointSet, path: Path, source: Any) -> Adapter:
    """The adapter that writes what ``reader`` read: itself, or, where the file's name is not its own, the one that states it.

    Args:
        reader: the adapter that read and carried the data.
        data: what is to be written.
        path: the name to write under.
        source: what the reader read.

    Raises PluginError where the end of the name belongs to another kind of data, or nobody states it.
    """
    kind: type[Image] | type[PointSet] = Image if isinstance(data, Image) else PointSet
    name = path.name.lower()
    found = adapters()
    if any(entry.cls is type(reader) and entry.shipped for entry in found) or _states(type(reader), kind, name):
        return reader
    for entry in chosen_by_default("adapter"):
        if entry.cls is not type(reader) and _states(entry.cls, kind, name) and not required_options(entry):
            return _build(entry, {})  # type: ignore[no-any-return]
    suffix = "".join(Path(str(source)).suffixes[-1:]).lower() if isinstance(source, (str, os.PathLike)) else ""
    if not type(reader).writes and suffix and name.endswith(suffix):
        return reader
    stated = {end for entry in found for end in getattr(entry.cls, "writes", {}).get(kind, ())}
    ends = sorted(stated | ({suffix} if suffix else set()))
    word = "images" if kind is Image else "points"
    raise PluginError(
        f"wanted a name that {word} are written under ({', '.join(ends)}), got {path.name!r}; take one of these"
    )


def tile_writer(name: str) -> Adapter | None:
    """The adapter that writes images tile by tile (``writes_tiles``) under a file name of this end; None where none does."""
    for entry in chosen_by_default("adapter"):
        ends = tuple(getattr(entry.cls, "writes_tiles", ()))
        if ends and name.lower().endswith(ends) and not required_options(entry):
            return _build(entry, {})  # type: ignore[no-any-return]
    return None


def _states(cls: type, kind: type, name: str) -> bool:
    """Whether an adapter states that it writes this kind of data under this name."""
    ends = getattr(cls, "writes", {}).get(kind, ())
    return bool(ends) and name.endswith(tuple(ends))


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
    return _believed(entry, score)


def _lookup(kind: Kind, name: str) -> Entry:
    """The class called ``name``, ``DISTRIBUTION/NAME`` or ``FILE.py:CLASS``; PluginError where there is none, or several are."""
    if strangers.in_file(name):
        return _of_file(kind, name)
    known = entries(kind)
    package, _, word = name.rpartition("/")
    found = [entry for entry in known if entry.name == word and (not package or entry.distribution == package)]
    if not found:
        left_out = [p for p in providers() if p.status != "ok"]
        also = (
            f"; left out: {', '.join(f'{p.name} of {p.distribution} ({p.status})' for p in left_out)}"
            if left_out
            else ""
        )
        likely = meant(name, (entry.name for entry in known))
        raise PluginError(
            f"wanted the name of {_article(kind)}, got {name!r}; there is {_listing(known)}{also}{likely}"
        )
    own = [entry for entry in found if entry.shipped]
    if not own and len({entry.cls for entry in found}) > 1:
        culprits = " and ".join(entry.provider for entry in found)
        either = " or ".join(f"{entry.distribution}/{entry.name}" for entry in found)
        raise PluginError(
            f"wanted one {kind} called {name!r}, but {culprits} each provide one; take {either}, or "
            f"leave one out with {DISABLE}=ENTRY_POINT (there is {_listing(known)})"
        )
    return (own or found)[0]


def _of_file(kind: Kind, name: str) -> Entry:
    """The class that ``FILE.py:CLASS`` names; PluginError where it is none of this kind."""
    try:
        cls, provider = strangers.load(name)
    except ValueError as error:
        raise PluginError(str(error)) from error.__cause__
    fault = _fault(cls, _HOOKS[kind][1], named=False)
    if fault:
        raise PluginError(f"wanted {_article(kind)} in {name}, got {cls.__name__}, {fault}")
    strangers.claim(kind, cls, provider)
    return Entry(kind, cls.name, cls, provider)  # type: ignore[attr-defined]


def _article(kind: Kind) -> str:
    return f"an {kind}" if kind == "adapter" else f"a {kind}"


def _listing(entries: Iterable[Entry]) -> str:
    """Names, those of strangers with their package."""
    return ", ".join(e.name if e.shipped else f"{e.name} (from {e.provider})" for e in entries) or "none"


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
            f"got {', '.join(map(repr, unknown))}{meant(unknown[0], named)}"
        )
    missing = [name for name in required_options(entry) if name not in options]
    if missing:
        raise PluginError(f"wanted the options {', '.join(missing)} for the {entry.kind} {entry.name!r}; state them")
    with strangers.named():
        instance = entry.cls(**options)
    _options[instance] = dict(options)
    return instance


def options_of(instance: Any) -> dict[str, Any]:
    """The options with which this instance was built here; for one made in another way those that it says itself."""
    if instance in _options:
        return dict(_options[instance])
    said = instance.options() if isinstance(instance, Configured) and callable(instance.options) else {}
    return dict(said) if isinstance(said, dict) else {}


# ---- discovery ----------------------------------------------------------------------------------------------------


def _entry_points() -> tuple[EntryPoint, ...]:
    """The entry points of the group `GROUP`; a function of its own so that tests can replace it."""
    return doors.of_group(GROUP)


@dataclass(frozen=True)
class _Found:
    """What one search found.

    Args:
        providers: every entry point, without the names of the classes that are looked up later.
        entries: the classes, without those of regframe's own `_LATER` kinds.
        modules: regframe's own modules and the names of the hooks that they implement, with their provider.
        manager: the pluggy manager that all modules are registered with.
    """

    providers: tuple[Provider, ...]
    entries: tuple[Entry, ...]
    modules: tuple[tuple[Any, frozenset[str], str], ...]
    manager: pluggy.PluginManager


@functools.cache
def _discover() -> _Found:
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    found: list[Provider] = []
    entries: list[Entry] = []
    own: list[tuple[Any, frozenset[str], str]] = []
    left_out = disabled()
    seen: set[str] = {"all", *doors.points(doors.SECTIONS)}
    messages: list[str] = []
    for point in sorted(_entry_points(), key=lambda p: (_package(p), p.name)):
        provider = Provider(point.name, _distribution(point), point.value)
        seen.add(point.name)
        if point.name in left_out or ("all" in left_out and _package(point) != GROUP):
            found.append(replace(provider, status="disabled"))
            continue
        ours = _package(point) == GROUP
        module, hooks, problems, habits = _load(manager, point, ours)
        messages += habits
        whole = f"{provider.distribution} ({provider.name})"
        if ours and module is not None:
            own.append((module, hooks, whole))
        for kind, (hook, _) in _HOOKS.items():
            if hook in hooks and not (ours and kind in _LATER):
                faults, provided = _ask(manager, module, kind, whole)
                problems += faults
                entries += provided
        found.append(replace(provider, status="broken" if problems else "ok", problems=tuple(problems)))
    # warnings come last: where a filter turns the first one into an exception, the search is complete nevertheless
    messages += [
        f"the plug-in {p.name!r} of {p.distribution} is left out in part or in whole: {problem}"
        for p in found
        for problem in p.problems
    ]
    unknown = sorted(left_out - seen)
    if unknown:
        names = ", ".join(sorted(seen - {"all"})) or "none"
        messages.append(f"{DISABLE} names {', '.join(unknown)}, but the plug-ins installed are {names}")
    messages += _taken(
        entries, [e for kind in _LATER if _strange(entries, kind) for e in _asked(manager, own, kind)[1]]
    )
    for message in messages:
        _warn(message)
    return _Found(tuple(found), tuple(entries), tuple(own), manager)


def _strange(entries: Iterable[Entry], kind: Kind) -> bool:
    """Whether a stranger provides a class of this kind."""
    return any(entry.kind == kind and not entry.shipped for entry in entries)


def _taken(entries: Iterable[Entry], more: Iterable[Entry]) -> list[str]:
    """A sentence for every stranger's class that has the name of one of regframe's."""
    own = {(entry.kind, entry.name): entry for entry in (*entries, *more) if entry.shipped}
    return [
        f"the {one.kind} {one.name!r} of {one.provider} has the name of one of {own[one.kind, one.name].provider}, which is used;"
        f" {one.distribution}/{one.name} picks the other"
        for one in entries
        if not one.shipped and (one.kind, one.name) in own
    ]


def _asked(
    manager: pluggy.PluginManager, modules: Iterable[tuple[Any, frozenset[str], str]], kind: Kind
) -> tuple[dict[str, list[str]], list[Entry]]:
    """What modules provide of a kind: faults by provider, and the classes in the order in which the hooks return them."""
    faults: dict[str, list[str]] = {}
    provided: list[Entry] = []
    for module, hooks, whole in modules:
        if _HOOKS[kind][0] in hooks:
            problems, classes = _ask(manager, module, kind, whole)
            provided += classes
            if problems:
                faults[whole] = problems
    return faults, provided


@functools.cache
def _own(kind: Kind) -> tuple[dict[str, list[str]], list[Entry]]:
    """What regframe's own modules provide of a `_LATER` kind (see `_asked`)."""
    found = _discover()
    return _asked(found.manager, found.modules, kind)


def _later_problems() -> dict[str, tuple[str, ...]]:
    """Faults of regframe's own modules that only show when a `_LATER` kind is looked up, by provider."""
    out: dict[str, tuple[str, ...]] = {}
    for kind in _LATER:
        for whole, problems in _own(kind)[0].items():
            out[whole] = (*out.get(whole, ()), *problems)
    return out


def _imported(point: EntryPoint, habits: list[str]) -> Any:
    """The module of a stranger's plug-in; what its import changed for everybody is put back, and said in ``habits``."""
    who = f"the plug-in {point.name!r} of {_distribution(point)}"
    began = time.perf_counter()
    with strangers.restored() as changed:
        module = point.load()
    took = time.perf_counter() - began
    if changed:
        habits.append(
            f"the import of {who} changed {', '.join(changed)}; that was put back, for every plug-in would run under it: report "
            "this to who wrote it"
        )
    if took > SLOW:
        habits.append(
            f"the import of {who} took {took:.1f} s, for which every command waits; report this to who wrote it, or leave it out "
            f"with {DISABLE}={point.name}"
        )
    return module


def _load(
    manager: pluggy.PluginManager, point: EntryPoint, ours: bool
) -> tuple[Any, frozenset[str], list[str], list[str]]:
    """Import one plug-in.

    Returns its module or None, the hooks that it implements, its faults, and how its import troubles others, a sentence each.
    """
    habits: list[str] = []
    try:
        module = point.load() if ours else _imported(point, habits)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - third-party code must not take the other plug-ins down
        return None, frozenset(), [f"it cannot be imported: {_reason(error)}"], habits
    hooks = {hook for hook, _ in _HOOKS.values()}
    try:
        implemented = {name for name in dir(module) if manager.parse_hookimpl_opts(module, name) is not None}
        manager.register(module, name=f"{_package(point)}:{point.name}")
    except Exception as error:  # noqa: BLE001 - as above
        return None, frozenset(), [f"it cannot be registered: {_reason(error)}"], habits
    problems: list[str] = []
    if implemented - hooks:
        problems.append(
            f"it implements {', '.join(sorted(implemented - hooks))}, which no hook is called; "
            f"there is {', '.join(sorted(hooks))}"
        )
    if not implemented:
        problems.append(f"it implements no hook: mark {' or '.join(sorted(hooks))} with @regframe.hookimpl")
    return module, frozenset(implemented & hooks), problems, habits


def _ask(manager: pluggy.PluginManager, module: Any, kind: Kind, provider: str) -> tuple[list[str], list[Entry]]:
    """Call one hook of one module: its faults, one sentence each, and the classes that it returns."""
    hook, base = _HOOKS[kind]
    others = [plugin for plugin in manager.get_plugins() if plugin is not module]
    try:
        answers = manager.subset_hook_caller(hook, others)()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - third-party code must not take the other plug-ins down
        return [f"its hook {hook} raised: {_reason(error)}"], []
    problems: list[str] = []
    provided: list[Entry] = []
    for answer in answers:
        if not isinstance(answer, (list, tuple)):
            problems.append(f"its hook {hook} returned {_short(answer)}, not a list of classes")
            continue
        for cls in answer:
            fault = _fault(cls, base)
            if fault:
                problems.append(f"its hook {hook} returned {_short(cls)}, {fault}")
            else:
                entry = Entry(kind, cls.name, cls, provider)
                if not entry.shipped:
                    strangers.claim(kind, cls, provider)
                provided.append(entry)
    return problems, provided


def _fault(cls: Any, base: type, named: bool = True) -> str | None:
    """What is wrong with a class that a hook returned, as the end of a sentence; None for a sound class.

    ``named`` says that its name has to be one word.
    """
    if not inspect.isclass(cls) or not issubclass(cls, base):
        return f"which is no subclass of regframe.{base.__name__}"
    api = getattr(cls, "api", API)
    if not isinstance(api, int) or api > API:
        return f"which states api {api!r}, where this regframe has {API}: update regframe, or the plug-in"
    missing: frozenset[str] = getattr(cls, "__abstractmethods__", frozenset())
    if missing:
        return f"which lacks {', '.join(sorted(missing))}"
    name = getattr(cls, "name", None)
    if named and (not isinstance(name, str) or not name or any(c.isspace() or c in "=,:/" for c in name)):
        return f"whose name is {name!r} instead of one word"
    accepts = getattr(cls, "accepts", None)
    if base is Metric and accepts not in ((Image, Image), (PointSet, PointSet)):
        return "whose accepts is neither (Image, Image) nor (PointSet, PointSet)"
    return None


def _package(point: EntryPoint) -> str:
    return doors.named(point.dist)[0] if point.dist is not None else "an unknown package"


def _distribution(point: EntryPoint) -> str:
    return doors.package(point)


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _short(value: Any) -> str:
    text = getattr(value, "__qualname__", None) if isinstance(value, Callable) else None  # type: ignore[arg-type]
    text = text or repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _warn(message: str) -> None:
    warnings.warn(message, PluginWarning, stacklevel=4)
