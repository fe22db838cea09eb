"""Aligns anew in a process of its own, which has opened both sides beforehand and can be ended at any moment.

The process is started once the page is up, so that "Align" begins at once; after Stop, which ends it, another one is started. It
keeps both sides, prepared for comparison at every resolution, so that a landmark that was dragged is answered by a short fit
(`Touch`), which gives way as soon as anything else is asked for.
"""

from __future__ import annotations

import contextlib
import functools
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
from ..correction.images import Looked
from ..data import Image, PointSet
from ..maps.affine import Affine
from ..registration import register
from ..result import Result
from ..starts.landmarks import landmarks
from .bend import corrected_here, looked_at
from .pairs import Pair
from .source import Source

_QUIET = 1.0
"""Seconds without a question after which the process prepares both sides for short fits, so that the first one need not wait."""


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


@dataclass(frozen=True)
class Touch:
    """A short fit, as the landmarks are now, beginning with the map that there is.

    Args:
        number: returned with the answer, so that an answer to an older question is known as one.
        base: the map before any of the landmarks.
        pairs: the landmarks that count, as plain data.
        by_hand: whether ``base`` is a start by hand.
        rings: outlines of the region in which alone the map may change; None for all of it.
    """

    number: int
    base: Result
    pairs: list[dict[str, Any]]
    by_hand: bool
    rings: list[Any] | None = None


class GaveWay(Exception):
    """Something else was asked for meanwhile."""


def touched(touch: Touch, looked: Looked | None, report: Callable[[Progress], object] | None = None) -> Result | None:
    """The answer to a `Touch`; None where the images ask for nothing beyond the landmarks. ``looked``: both sides, if images."""
    pairs = [Pair.of(pair) for pair in touch.pairs]
    if touch.rings is not None:
        return corrected_here(touch.base, touch.rings, pairs, looked, report)
    return None if looked is None else looked_at(touch.base, pairs, touch.by_hand, looked, report)


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
    looked = functools.cache(lambda: Looked.of(*sides))
    if not pipe.poll(_QUIET):
        looked()
    while True:
        try:
            ask = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            if isinstance(ask, Touch):
                if not pipe.poll():
                    pipe.send(("touched", (ask.number, touched(ask, looked(), functools.partial(_give_way, pipe)))))
            else:
                found = aligned(sides, ask, lambda step: pipe.send(("progress", asdict(step))))
                pipe.send(("done", found))
        except GaveWay:
            continue
        except BrokenPipeError:
            return
        except Exception as error:  # noqa: BLE001 - one sentence in the page
            pipe.send(
                ("untouched", (ask.number, _words(error))) if isinstance(ask, Touch) else ("failed", _words(error))
            )


def _give_way(pipe: Connection, step: Progress) -> None:
    """End a short fit as soon as another question waits."""
    if pipe.poll():
        raise GaveWay


class Worker:
    """The process that aligns, from this side.

    Args:
        fixed: the fixed side.
        moving: the moving side.
        tell: called, from another thread, with ``progress`` and a dict, ``done`` and a `Result`, ``failed`` and a sentence,
            ``stopped`` and None, ``touched`` with the number of a `Touch` and a `Result` or None, or ``untouched`` with that
            number and a sentence.
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

    def touch(self, touch: Touch) -> bool:
        """Ask for a short fit, in place of the one that runs; False, and nothing is done, while an alignment runs."""
        if self.busy:
            return False
        self.warm()
        try:
            assert self._pipe is not None
            self._pipe.send(touch)
        except (OSError, AssertionError):
            return False
        return True

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
