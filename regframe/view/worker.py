"""Aligns anew in a process of its own, which has opened both sides beforehand and can be ended at any moment.

The process is started once the page is up, so that "Align" begins at once; after Stop, which ends it, another one is started.
"""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import threading
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from ..config import Config
from ..contracts import Progress
from ..data import Image, PointSet
from ..maps.affine import Affine
from ..registration import register
from ..result import Result
from ..starts.landmarks import landmarks
from .source import Source


@dataclass(frozen=True)
class Ask:
    """One alignment, as plain data.

    Args:
        config: all settings, as `Config.model_validate` takes them.
        pairs: moving and fixed positions ``[N][2]`` to begin from; None where the fit begins elsewhere.
        matrix: affine map moving → fixed ``[3][3]`` to begin from; None likewise. Without either the start is searched for.
    """

    config: dict[str, Any]
    pairs: tuple[list[list[float]], list[list[float]]] | None = None
    matrix: list[list[float]] | None = None


def aligned(
    sides: tuple[Image | PointSet, Image | PointSet], ask: Ask, progress: Callable[[Progress], object] | None = None
) -> Result:
    """The registration that is asked for: exactly that of ``regframe register`` with the same start and settings."""
    fixed, moving = sides
    init: Any = "auto"
    if ask.pairs is not None:
        init = landmarks(*ask.pairs)
    elif ask.matrix is not None:
        units = (side.grid.unit if isinstance(side, Image) else side.unit for side in (moving, fixed))
        init = Affine(torch.tensor(ask.matrix, dtype=torch.float64), *units)
    config = Config.model_validate(ask.config)
    return register(fixed, moving, init=init, config=config, progress=progress)


def _work(pipe: Connection, fixed: Source, moving: Source, threads: int) -> None:
    """The other process: opens both sides, then answers one `Ask` after another."""
    import signal

    with contextlib.suppress(ValueError):
        signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # Ctrl-C reaches the whole group; the server ends this process itself
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    try:
        sides = fixed.data(), moving.data()
    except Exception as error:  # noqa: BLE001 - told to the page, whatever it is
        pipe.send(("failed", _words(error)))
        return
    pipe.send(("ready", None))
    while True:
        try:
            ask = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            found = aligned(sides, ask, lambda step: pipe.send(("progress", asdict(step))))
            pipe.send(("done", found))
        except BrokenPipeError:
            return
        except Exception as error:  # noqa: BLE001 - one sentence in the page
            pipe.send(("failed", _words(error)))


class Worker:
    """The process that aligns, from this side.

    Args:
        fixed: the fixed side.
        moving: the moving side.
        tell: called, from another thread, with ``progress`` and a dict, ``done`` and a `Result`, ``failed`` and a sentence, or
            ``stopped`` and None.
    """

    def __init__(self, fixed: Source, moving: Source, tell: Callable[[str, Any], None]) -> None:
        self._sides, self._tell = (fixed, moving), tell
        self._lock = threading.Lock()
        self._process: Any = None
        self._pipe: Connection | None = None
        self.busy = False
        self._ending = False

    def warm(self) -> None:
        """Start the process, where there is none, so that it has opened both sides when it is asked."""
        with self._lock:
            if self._ending or (self._process is not None and self._process.is_alive()):
                return
            context = mp.get_context("spawn")
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(theirs, *self._sides, os.cpu_count() or 1), name="regframe-align", daemon=True
            )
            process.start()
            theirs.close()
            self._process, self._pipe = process, ours
            threading.Thread(target=self._listen, args=(ours, process), daemon=True).start()

    def ask(self, ask: Ask) -> None:
        """Begin an alignment; ValueError while another one runs."""
        with self._lock:
            if self.busy:
                raise ValueError("wanted one alignment at a time, got another one while it runs; stop it first")
            self.busy = True
        self.warm()
        assert self._pipe is not None
        try:
            self._pipe.send(ask)
        except OSError as error:
            self.busy = False
            raise ValueError("the process that aligns has ended; try again") from error

    def stop(self, again: bool = True) -> None:
        """End what runs; ``again`` starts a fresh process for the next time."""
        with self._lock:
            process, self._process = self._process, None
            was, self.busy = self.busy, False
            self._ending = self._ending or not again
        if process is not None:
            process.kill()
            process.join(2)
        if was:
            self._tell("stopped", None)
        if again:
            self.warm()

    def _listen(self, pipe: Connection, process: Any) -> None:
        while True:
            try:
                word, value = pipe.recv()
            except (EOFError, OSError):
                break
            if self._process is not process:
                break
            if word in ("done", "failed"):
                self.busy = False
            if word != "ready":
                self._tell(word, value)
        if self._process is process and self.busy:  # it was killed: for memory, say
            self.busy = False
            self._tell(
                "failed", "the process that aligns ended by itself, for want of memory perhaps; try a coarser --level"
            )


def _words(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
