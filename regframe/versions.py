"""Versions of Python and of packages, as results, stores and reports record them; and how what is public goes away."""

from __future__ import annotations

import functools
import platform
import warnings
from collections.abc import Callable
from importlib import metadata
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")

MAIN = ("python", "regframe", "torch", "numpy")
"""Names of the packages (and the interpreter) that decide the numbers of a fit; every result records their versions."""
UNKNOWN = "0+unknown"
"""Version reported for a package that is not installed, or for a source tree that was never installed: valid by PEP 440 and
lower than any release."""


def version(package: str = "regframe") -> str:
    """The version of an installed package; `UNKNOWN` where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return UNKNOWN


def versions(*names: str) -> dict[str, str]:
    """Versions by name, in the order given (``MAIN`` where no names are given); ``python`` is the interpreter's version."""
    return {name: platform.python_version() if name == "python" else version(name) for name in names or MAIN}


class Deprecated(FutureWarning):
    """Something of regframe's that a later version will not have; shown by default, once at each place that uses it."""


def deprecated(since: str, until: str, instead: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Decorate a public function that will go: each call warns (`Deprecated`) and does what it always did.

    Args:
        since: the version that first warns.
        until: the version that no longer has it: at least one minor version later, of a 1.x a major one.
        instead: what to write in its place.

    Raises ValueError, at import, where ``until`` is not later than ``since``.
    """
    _check_later(since, until)

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        name = function.__qualname__

        @functools.wraps(function)
        def warned(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            sentence = f"{name} is deprecated since regframe {since} and goes in {until}; write {instead}"
            warnings.warn(sentence, Deprecated, stacklevel=2)
            return function(*args, **kwargs)

        return warned

    return decorate


def renamed(since: str, until: str, **names: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Decorate a public function of which keyword arguments have new names, ``old="new"``: the old ones work and warn.

    A call that gives both raises TypeError. The other arguments are those of `deprecated`.
    """
    _check_later(since, until)

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        name = function.__qualname__

        @functools.wraps(function)
        def warned(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            for old, new in names.items():
                if old not in kwargs:
                    continue
                if new in kwargs:
                    raise TypeError(f"wanted {new}= of {name}, got {old}= too, its former name; leave that out")
                sentence = f"{old}= of {name} is {new}= since regframe {since}; the old name goes in {until}"
                warnings.warn(sentence, Deprecated, stacklevel=2)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return warned

    return decorate


def _check_later(since: str, until: str) -> None:
    first, last = (tuple(int(part) for part in text.split(".")) for text in (since, until))
    if last[:2] <= first[:2]:
        raise ValueError(f"wanted a minor version after {since} at which it goes, got {until}; people need time")
