"""Whose code a plug-in is, so that its faults are called by its name: which package, class and method failed.

`regframe.plugins` claims every class that another distribution than regframe provides. What such a class raises without having
put it into words becomes a `PluginFault` at one of the boundaries (`named`): a sentence that names the plug-in, its package with
its version, and the method. What a plug-in raises itself as ValueError, OSError or ImportError are its own words, and pass.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import re
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from .files import OF_A_FILE

_T = TypeVar("_T")
_F = TypeVar("_F", bound=Callable[..., Any])
_OWN_WORDS = (ValueError, OSError, ImportError)
"""Errors by which a plug-in tells the user something, where it raises them itself."""
_CODING = (
    TypeError,
    AttributeError,
    NameError,
    AssertionError,
    ZeroDivisionError,
    NotImplementedError,
    UnboundLocalError,
)
"""Errors that a line of a plug-in's own raises by a fault of its own, whatever the file it reads holds."""
_CALL = re.compile(r"(?P<cls>[\w.<>]+)\.(?P<method>\w+)\(\) (takes|missing|got) ")
"""What Python says of a call whose arguments a method does not take; it names the method by its qualified name."""
_REASON = 200
"""Characters of an error's own words that are quoted."""


class PluginFault(ValueError):
    """A plug-in failed, or returned what it must not; the sentence names it, ``__cause__`` is what it raised, if anything."""


@dataclass(frozen=True)
class _Owner:
    """What a claimed class is.

    Args:
        kind: ``adapter``, ``metric`` …
        name: what users type.
        provider: ``"distribution version (entry point)"``.
    """

    kind: str
    name: str
    provider: str

    @property
    def words(self) -> str:
        """It in words: ``the metric 'ssd' of my-plugin 0.1 (my)``."""
        return f"the {self.kind} {self.name!r} of {self.provider}"


_classes: dict[type, _Owner] = {}
_packages: dict[str, str] = {}
"""Providers of the packages (first parts of the names of modules) that strangers' classes come from."""


_read: dict[int, tuple[Any, str]] = {}
"""Providers of the strangers' adapters that read data which is in use: a weak reference to it and the provider, by identity."""


def claim(kind: str, cls: type, provider: str) -> None:
    """Note that a class is a stranger's.

    Args:
        kind: ``adapter``, ``metric``, ``solver``, ``start`` or ``format``.
        cls: the class.
        provider: ``"distribution version (entry point)"``.
    """
    _classes[cls] = _Owner(kind, str(getattr(cls, "name", cls.__name__)), provider)
    _packages[cls.__module__.partition(".")[0]] = provider


def claim_package(module: str, provider: str) -> None:
    """Note that a module's package is a stranger's that provides no class: a command, say.

    Args:
        module: name of the module.
        provider: ``"distribution version (command NAME)"``.
    """
    _packages[module.partition(".")[0]] = provider


def forget() -> None:
    """Forget all claims, before plug-ins are searched for anew."""
    _classes.clear()
    _packages.clear()


def provider_of(what: Any) -> str:
    """``"distribution version (entry point)"`` of a stranger's class or instance; empty for any other."""
    owner = _owner(what)
    return "" if owner is None else owner.provider


def noting(method: _F) -> _F:
    """A method of an adapter that returns data, of which is noted whose adapter read it (see `versions_of`)."""

    @functools.wraps(method)
    def inner(self: Any, *args: Any, **kwargs: Any) -> Any:
        data = method(self, *args, **kwargs)
        provider = provider_of(self)
        if provider:
            with contextlib.suppress(TypeError):  # what cannot be referred to weakly is no data
                key = id(data)
                _read[key] = (weakref.ref(data, lambda _: _read.pop(key, None)), provider)
        return data

    return inner  # type: ignore[return-value]


def versions_of(*parts: Any) -> dict[str, str]:
    """Versions of the strangers' packages that took part in a registration, by the names of their distributions.

    Args:
        parts: classes or instances of plug-ins, and data, for the adapters that read them; others count for nothing.
    """
    found: dict[str, str] = {}
    for part in parts:
        kept = _read.get(id(part))
        provider = kept[1] if kept is not None and kept[0]() is part else provider_of(part)
        if provider:
            name, version = provider.partition(" (")[0].rsplit(" ", 1)
            found[name] = version
    return found


def words(what: Any, kind: str = "plug-in") -> str:
    """A class or instance of a plug-in in words, with its package where it is a stranger's.

    Args:
        what: the class or the instance.
        kind: what it is called where nobody claimed it.
    """
    owner = _owner(what)
    if owner is not None:
        return owner.words
    cls = what if isinstance(what, type) else type(what)
    return f"the {kind} {getattr(cls, 'name', cls.__name__)!r}"


def returned(value: _T, types: type | tuple[type, ...], who: Any, method: str) -> _T:
    """What a method of a plug-in returned; `PluginFault` where it is of none of these types.

    Args:
        value: what it returned.
        types: what it may be.
        who: the instance, or the class.
        method: name of the method.
    """
    if isinstance(value, types):
        return value
    cls = who if isinstance(who, type) else type(who)
    wanted = " or ".join(
        "None" if t is type(None) else t.__name__ for t in (types if isinstance(types, tuple) else (types,))
    )
    raise PluginFault(
        f"wanted {wanted} from {cls.__name__}.{method} of {words(who)}, got {_short(value)}; {_advice(who)}"
    )


def fault_of(error: BaseException) -> PluginFault | None:
    """The error as a `PluginFault`, where it comes out of a stranger's code and is not in words of its own; None otherwise."""
    if not isinstance(error, Exception) or isinstance(error, (PluginFault, MemoryError, Warning)):
        return None
    steps = list(_steps(error.__traceback__))
    theirs = [i for i, step in enumerate(steps) if _package(step)]
    if not theirs:
        return _not_callable_so(error)
    if _in_own_words(error, steps[-1]):
        return None
    package = _package(steps[theirs[-1]])
    run = [i for i in theirs if _package(steps[i]) == package]
    others = [i for i in theirs if _package(steps[i]) != package]
    run = [i for i in run if not others or i > others[-1]]
    owner, method = None, steps[run[-1]].tb_frame.f_code.co_qualname
    for i in run:  # the outermost of its methods is the one that regframe called
        owner = _owner_of_frame(steps[i])
        if owner is not None:
            method = steps[i].tb_frame.f_code.co_qualname.rpartition("<locals>.")[2]
            break
    who = _packages[package] if owner is None else owner.words
    told = " ".join(str(error).split())[:_REASON]
    reason = f"{type(error).__name__}: {told}" if told else type(error).__name__
    provider = _packages[package]
    return PluginFault(f"wanted {who} to work, got {reason} from its {method}; {_report(provider)}")


def _not_callable_so(error: Exception) -> PluginFault | None:
    """The fault of a method with the wrong parameters: the call fails before a line of it runs, so only the words name it."""
    told = " ".join(str(error).split())
    found = _CALL.match(told) if isinstance(error, TypeError) else None
    if found is None:
        return None
    owners = [
        owner
        for cls, owner in _classes.items()
        if any(c.__qualname__ == found["cls"] and c.__module__.partition(".")[0] in _packages for c in cls.__mro__)
    ]
    helpers = [
        provider
        for package, provider in _packages.items()
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] == package and isinstance(getattr(module, found["cls"], None), type)
    ]
    if owners:
        who, provider = owners[0].words, owners[0].provider
    elif helpers:
        who = provider = helpers[0]
    else:
        return None
    method = f"{found['cls']}.{found['method']}".rpartition("<locals>.")[2]
    return PluginFault(
        f"wanted {who} to work, got {type(error).__name__}: {told[:_REASON]} from its {method}, which must take what "
        f"docs/hooks.md lists; {_report(provider)}"
    )


@contextlib.contextmanager
def named() -> Iterator[None]:
    """Turn what a stranger's code raises in this block into a `PluginFault`; everything else passes as it is."""
    try:
        yield
    except Exception as error:
        fault = fault_of(error)
        if fault is None:
            raise
        raise fault from error


def slip_of(error: BaseException) -> PluginFault | None:
    """Like `fault_of`, for an error over a file: only a slip in the stranger's own line says that the file is not at fault."""
    steps = list(_steps(error.__traceback__))
    slipped = isinstance(error, _CODING) and bool(steps) and bool(_package(steps[-1]))
    return fault_of(error) if slipped else None


def _in_own_words(error: Exception, last: TracebackType) -> bool:
    """Whether an error is a sentence for the user: raised on purpose, or one of regframe's own."""
    here = str(last.tb_frame.f_globals.get("__name__", "")).startswith("regframe")
    if type(error).__module__.startswith("regframe") or (here and str(error).startswith(("wanted ", "cannot "))):
        return True
    code = last.tb_frame.f_code.co_code
    on_purpose = dis.opname[code[last.tb_lasti]] == "RAISE_VARARGS"
    return isinstance(error, _OWN_WORDS) and on_purpose and bool(_package(last))


def _steps(trace: TracebackType | None) -> Iterator[TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _package(step: TracebackType) -> str:
    """The stranger's package that a step of a traceback is in; empty for all others."""
    root = str(step.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
    return root if root in _packages else ""


def _owner_of_frame(step: TracebackType) -> _Owner | None:
    """The claimed class whose method a step of a traceback runs, by its first argument."""
    code = step.tb_frame.f_code
    first = code.co_varnames[0] if code.co_argcount else ""
    return _owner(step.tb_frame.f_locals.get(first)) if first in ("self", "cls") else None


def _owner(what: Any) -> _Owner | None:
    for cls in (what if isinstance(what, type) else type(what)).__mro__:
        if cls in _classes:
            return _classes[cls]
    return None


def _advice(who: Any) -> str:
    provider = provider_of(who)
    return _report(provider) if provider else "return one"


def _report(provider: str) -> str:
    if provider.endswith(OF_A_FILE):
        return "mend the file"
    if provider.endswith(")") and " " in provider.rpartition("(")[2]:  # a command: it is left out by not calling it
        return "report this to who wrote it"
    point = provider.rpartition("(")[2].rstrip(")")
    return f"report this to who wrote it, or leave it out with REGFRAME_DISABLE_PLUGINS={point}"


def _short(value: Any) -> str:
    text = f"{type(value).__name__} {value!r}" if value is not None else "None"
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:77] + "..."
