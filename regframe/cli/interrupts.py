"""How a command ends that is told to: SIGINT (Ctrl-C) and SIGTERM end it within a second, in one sentence.

The signal is raised as KeyboardInterrupt in the main thread, so that every block cleans up behind itself. Where that thread is
deep in a library and does not come back in time, a second thread does what is left: it ends the children, removes the hidden
folders of this process, and ends it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

PATIENCE = 0.6
"""Seconds that a command has to end by itself after a signal; what is done by force then takes some tenths."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_came, _said = threading.Event(), threading.Event()


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """SIGINT and SIGTERM end the block as described above; a signal that was ignored before stays so.

    Does nothing outside the main thread, and inside such a block.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is _raise:
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    if before[signal.SIGINT] is signal.SIG_IGN:  # as a shell starts what runs in its background
        del before[signal.SIGINT]
    _said.clear()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    watch = threading.Thread(target=_watch, args=(reading,), name="regframe-signals", daemon=True)
    woken = -1
    try:
        woken = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in before:
            signal.signal(number, _raise)
        watch.start()
        yield
    finally:
        if not _came.is_set():  # else the process is about to end, and the second thread sees to it
            signal.set_wakeup_fd(woken)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(writing)
            watch.join()
            os.close(reading)
        else:
            _end_children()
            from ..io import claims

            claims.sweep()
            if _said.is_set():
                _hush()


def code_of(stop: BaseException) -> int:
    """The exit code for a KeyboardInterrupt: 130, and 143 for SIGTERM."""
    return next((value for value in stop.args if isinstance(value, int)), 128 + signal.SIGINT)


def say(text: str) -> None:
    """Print on stderr how the command ended, once."""
    if not _said.is_set():
        _said.set()
        with contextlib.suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)


def _hush() -> None:
    """Stop what threads of libraries, which lose their children, would still print behind the last sentence."""
    sys.stderr.flush()
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)


def _raise(number: int, _: FrameType | None) -> None:
    for one in _SIGNALS:  # a second one would break off the cleaning up; the other thread ends what hangs
        signal.signal(one, signal.SIG_IGN)
    _came.set()
    raise KeyboardInterrupt(128 + number)


def _watch(reading: int) -> None:
    """Wait for a signal; end the process where it has not ended `PATIENCE` seconds later."""
    while number := os.read(reading, 1):
        if number[0] in _SIGNALS and signal.getsignal(number[0]) is not signal.SIG_DFL:
            break
    else:
        return
    time.sleep(PATIENCE)
    _end(128 + number[0])


def _end(code: int) -> None:
    from ..io import claims

    _end_children()
    for folder in list(claims.live):
        claims.remove(folder)
    say("interrupted; nothing that lay there before was changed: run the same command again")
    os._exit(code)


def _end_children() -> None:
    for child in children_of(os.getpid()):
        with contextlib.suppress(OSError):
            os.kill(child, signal.SIGKILL)


def children_of(process: int) -> list[int]:
    """Numbers of all processes that descend from one, as far as the system tells."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            text = (entry / "stat").read_text(encoding="utf-8", errors="replace")
            parents[int(entry.name)] = int(text.rpartition(")")[2].split()[1])
    found, fresh = set[int](), {process}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh and child not in found}
        found |= fresh
    return sorted(found)
