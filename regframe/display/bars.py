"""Progress on stderr: live at the foot of a terminal and in a notebook's cell, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Protocol, Self

_FEW = 4
"""Number of steps below which a stage without a loss gets no plain lines; others get one for each quarter of their steps."""

STAGES = {"lddmm": "bend", "following": "bend", "pose": "placement", "straight": "no bend"}
"""What stages are called on the screen, in the words of docs/glossary.md; others, and all in ``log.jsonl``, by their names."""
_SHOWN: list[bool] = []
"""One entry for each call of regframe that is running in this process, and whether it draws bars."""


class Step(Protocol):
    """What is shown of a `regframe.Progress`."""

    @property
    def stage(self) -> str: ...  # noqa: D102
    @property
    def done(self) -> int: ...  # noqa: D102
    @property
    def total(self) -> int: ...  # noqa: D102
    @property
    def level(self) -> int: ...  # noqa: D102
    @property
    def n_levels(self) -> int: ...  # noqa: D102
    @property
    def loss(self) -> float | None: ...  # noqa: D102


class Screen(ABC):
    """A part of a terminal or of a notebook's cell that is redrawn continually; plain lines only, where stderr is neither."""

    def __init__(self) -> None:
        self.live: Any = None

    @abstractmethod
    def widget(self, console: Any) -> Any:
        """The object that rich draws on ``console``: a `rich.progress.Progress` or a `rich.live.Live`."""

    def __enter__(self) -> Self:
        console = _console()
        if console is not None:
            self.live = self.widget(console)
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop redrawing and leave the last state on the screen."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def line(self, text: str) -> None:
        """Print a line above the live part."""
        if self.live is not None:
            self.live.console.print(text, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)


class Bars(Screen):
    """A bar for each stage (and each of its pyramid levels, where there are several), with the energy where one is minimised.

    As plain lines: for a fit one line per finished level, because a level may converge long before its limit; for other stages
    one line per quarter of their steps.
    """

    def __init__(self) -> None:
        super().__init__()
        self._task: Any = None
        self._last: Step | None = None

    def widget(self, console: Any) -> Any:
        """The progress bars of rich."""
        from rich import progress as rich

        return rich.Progress(
            rich.TextColumn("{task.description}"),
            rich.BarColumn(bar_width=32),
            rich.TextColumn("{task.completed:>4.0f} / {task.total:.0f}"),
            rich.TextColumn("{task.fields[loss]}"),
            rich.TimeElapsedColumn(),
            console=console,
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._end(whole=error is None)
        super().__exit__(kind, error, where)

    def __call__(self, step: Step) -> None:
        """Show one step."""
        last = self._last
        again = last is not None and step.loss is None and step.done < last.done
        if last is None or again or (last.stage, last.level) != (step.stage, step.level):
            self._end(whole=True)
            last = None
            if self.live is not None:
                self._task = self.live.add_task(_name(step), total=max(step.total, 1), loss=_energy(step))
        self._last = step
        if self.live is not None:
            self.live.update(self._task, completed=step.done, loss=_energy(step))
        elif step.loss is None and step.total >= _FEW:
            before = 0 if last is None else last.done
            if step.done * 4 // step.total > before * 4 // step.total:
                self.line(f"{_name(step)}: {step.done} of {step.total}")

    def _end(self, whole: bool) -> None:
        """End the stage that is shown: draw its bar full, or print the line of a fit."""
        step, self._last = self._last, None
        if step is None:
            return
        if self.live is None:
            if step.loss is not None:
                self.line(f"{_name(step)}: {step.done} iteration{'' if step.done == 1 else 's'}, {_energy(step)}")
        elif whole:  # the stage converged before its limit, or reported every step before doing it
            n = max(step.done if step.loss is not None else step.total, 1)
            self.live.update(self._task, total=n, completed=n)


def _name(step: Step) -> str:
    stage = STAGES.get(step.stage, step.stage)
    return stage if step.n_levels == 1 else f"{stage:<11} level {step.level + 1} of {step.n_levels}"


def _energy(step: Step) -> str:
    return "" if step.loss is None else f"energy {step.loss:.5g}"


def _console() -> Any:
    """Where rich can draw: a terminal at stderr, or the cell of a notebook that has ipywidgets; else None."""
    if sys.stderr.isatty():
        from rich.console import Console

        return Console(stderr=True)
    if "ipykernel" in sys.modules and importlib.util.find_spec("ipywidgets") is not None:
        from rich.console import Console

        console = Console()
        return console if console.is_jupyter else None
    return None


def _asked() -> bool:
    """Whether somebody watches: a cell of a notebook, or a Python prompt on a terminal; not a script, a test, or a thread.

    Only the outermost of calls that are made by each other shows how far it is.
    """
    if _SHOWN or threading.current_thread() is not threading.main_thread():
        return False
    if _in_notebook():
        return True
    prompt = hasattr(sys, "ps1") or bool(sys.flags.interactive)
    return prompt and sys.stderr is not None and sys.stderr.isatty()


def _in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, and runs a cell."""
    kernel = sys.modules.get("IPython")
    shell = None if kernel is None else kernel.get_ipython()
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"


@contextlib.contextmanager
def shown(progress: Any) -> Iterator[Callable[[Any], object] | None]:
    """The callback of an argument ``progress``: True gives `Bars`, False nothing, a function itself, None what suits the place.

    With None there are bars in a notebook and at a Python prompt on a terminal, and nothing elsewhere. Calls of regframe
    within another show nothing of their own, unless they are told to.

    Raises ValueError for anything else.
    """
    if progress is not None and not isinstance(progress, bool) and not callable(progress):
        raise ValueError(f"wanted progress=True, False or a function of one step, got {progress!r}")
    drawn = progress is True or (progress is None and _asked())
    _SHOWN.append(drawn)
    try:
        if drawn:
            with Bars() as bars:
                yield bars
        else:
            yield progress if callable(progress) else None
    finally:
        _SHOWN.pop()
