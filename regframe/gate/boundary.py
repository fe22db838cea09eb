"""The one boundary between a file and regframe: what a reader's library raises over a file becomes one sentence about the file.

What passes unchanged: sentences that a reader wrote itself, errors of the operating system, missing packages, and faults that no
file can cause (a name that does not exist in the code, an assertion of regframe's own, anything raised while a map is computed).
The original is kept as ``__cause__`` and logged to ``regframe.gate``.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from ..strangers import provider_of, slip_of, words
from .limits import MOST_BYTES
from .places import check_file

_LOG = logging.getLogger("regframe.gate")
_F = TypeVar("_F", bound=Callable[..., Any])
_OURS = ("regframe.", "regframe_")
"""Beginnings of the names of regframe's own modules and of its plug-ins."""
_COMPUTING = ("regframe.maps.", "regframe.fit.", "regframe.solvers.", "regframe.ops", "regframe.starts.")
"""Modules whose faults are their own, whatever file the numbers came from."""
_KEPT = 200
"""Lines of a library's log that are kept at most."""
_REASON = 200
"""Characters of a library's own words that are quoted."""

_inside: ContextVar[bool] = ContextVar("regframe_gate_inside", default=False)


class FileError(ValueError):
    """A file that cannot be read, in one sentence; ``__cause__`` is what its reader's library raised."""


@contextlib.contextmanager
def reading(source: Any, reader: str) -> Iterator[None]:
    """Read ``source``, where that is a path: `FileError` for whatever a library raises over it, ValueError for no regular file.

    Args:
        source: what is read. Errors over objects in memory pass unchanged: there is no file to blame.
        reader: what reads it, for the message: ``the adapter image``.
    """
    named = isinstance(source, (str, os.PathLike))
    if named and "://" not in str(source):
        check_file(source)
    if not named or _inside.get():
        yield
        return
    token = _inside.set(True)
    try:
        yield
    except SystemExit as error:
        raise FileError(
            f"wanted {reader} to read {str(source)!r}, got an exit of the program (sys.exit({error.code!r})) from inside it; "
            "report this to who wrote it, or leave the plug-in out"
        ) from error
    except MemoryError as error:
        raise FileError(
            f"wanted {str(source)!r} to fit into the memory, got more from it than there is; it is damaged, or cut it, or set a "
            f"limit with --max-bytes or {MOST_BYTES}"
        ) from error
    except Exception as error:
        fault = slip_of(error)
        if fault is not None:
            raise fault from error
        if passes(error):
            raise
        _LOG.debug("%s failed on %s", reader, source, exc_info=error)
        raise FileError(_sentence(str(source), reader, error)) from error
    finally:
        _inside.reset(token)


def guarded(method: _F) -> _F:
    """A method of an adapter whose first argument is a source, run inside `reading`."""

    @functools.wraps(method)
    def inner(self: Any, source: Any, *args: Any, **kwargs: Any) -> Any:
        with reading(source, _reader(self)):
            return method(self, source, *args, **kwargs)

    return inner  # type: ignore[return-value]


def _reader(adapter: Any) -> str:
    """An adapter in words, with its package where it is a stranger's."""
    if provider_of(adapter):
        return words(adapter)
    return f"the adapter {getattr(adapter, 'name', type(adapter).__name__)}"


def passes(error: BaseException) -> bool:
    """Whether an error is no matter of the file: see the head of this module."""
    if isinstance(error, (ImportError, NameError, NotImplementedError, KeyboardInterrupt, Warning)):
        return True
    modules = _modules(error.__traceback__)
    if isinstance(error, AssertionError) and modules[-1].startswith(_OURS):
        return True
    if any(name.startswith(_COMPUTING) for name in modules):
        return True
    if str(error).startswith(("wanted ", "cannot ")) or type(error).__module__.startswith(_OURS):
        return True
    if isinstance(error, OSError):  # those of libraries have no number, and are of the plain class or one of their own
        return error.errno is not None or (type(error) is not OSError and type(error).__module__ == "builtins")
    return False


def _modules(trace: TracebackType | None) -> list[str]:
    """Names of the modules that an error passed through, the one that raised it last."""
    names = [""]
    while trace is not None:
        names.append(str(trace.tb_frame.f_globals.get("__name__", "")))
        trace = trace.tb_next
    return names


def _sentence(source: str, reader: str, error: Exception) -> str:
    words = " ".join(str(error).split())[:_REASON]
    kind = "" if type(error) is ValueError else type(error).__name__
    reason = ": ".join(part for part in (kind, words) if part)
    own = _modules(error.__traceback__)[-1].startswith(_OURS)
    also = ", and report this where other programs read it (-v says where it happened)" if own else ""
    return (
        f"wanted a readable file, got {source!r}, which {reader} cannot read ({reason}); the file is damaged or not what its "
        f"name says: write it anew{also}"
    )


class _Collector(logging.Handler):
    """Keeps the first lines that libraries log, so that they are shown where they are asked for."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one record."""
        if len(self.lines) < _KEPT:
            self.lines.append(f"{record.name}: {' '.join(record.getMessage().split())}")


@contextlib.contextmanager
def chatter() -> Iterator[list[str]]:
    """Collect what libraries log while the block runs, instead of letting it out on stderr; yields the lines, which grow."""
    collector = _Collector()
    root = logging.getLogger()
    root.addHandler(collector)
    try:
        yield collector.lines
    finally:
        root.removeHandler(collector)


_MUTE = threading.Lock()


@contextlib.contextmanager
def muted() -> Iterator[Callable[[], str]]:
    """Keep what a C library prints on the process's own stderr, past Python; yields a function that returns it so far.

    It holds for all threads: only for short calls.
    """
    with _MUTE, tempfile.TemporaryFile() as kept:
        try:
            saved = os.dup(2)
        except OSError:  # there is no stderr
            yield lambda: ""
            return

        def said() -> str:
            kept.seek(0)
            return " ".join(kept.read(1 << 16).decode("utf-8", "replace").split())

        try:
            os.dup2(kept.fileno(), 2)
            yield said
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def same_file(path: Path) -> tuple[int, int, int]:
    """Inode, size and time of change of a file, by which it is known again."""
    found = path.stat()
    return (found.st_ino, found.st_size, found.st_mtime_ns)
