"""Progress on stderr: live at the foot of a terminal, plain lines elsewhere.

`Bars` shows every `regframe.Progress` of register, demo, refine, apply and stack; `JobTable` shows the events of a batch, in
which a job has a state and not a number of steps.
"""

from __future__ import annotations

import contextlib
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import click

if TYPE_CHECKING:
    from ..batch import JobEvent, Outcome, Pool
    from ..contracts import Progress

_FEW = 4
"""Number of steps below which a stage without a loss gets no plain lines; others get one for each quarter of their steps."""
_ENDED, _RUNNING = 8, 16
"""Rows in the table of a batch: for jobs that ended last, and for running jobs. With the header they fit a terminal of 30
lines."""
TONES = {"pass": "green", "warn": "yellow", "fail": "red", "failed": "red"}
"""Colour of each state of a finished job."""


class _Screen(ABC):
    """A part of the terminal that is redrawn continually; plain lines only, where stderr is no terminal."""

    def __init__(self) -> None:
        self.live: Any = None

    @abstractmethod
    def widget(self, console: Any) -> Any:
        """The object that rich draws on ``console``: a `rich.progress.Progress` or a `rich.live.Live`."""

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console

            self.live = self.widget(Console(stderr=True))
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
            click.echo(text, err=True)


class Bars(_Screen):
    """A bar for each stage (and each of its pyramid levels, where there are several), with the energy where one is minimised.

    As plain lines: for a fit one line per finished level, because a level may converge long before its limit; for other stages
    one line per quarter of their steps.
    """

    def __init__(self) -> None:
        super().__init__()
        self._task: Any = None
        self._last: Progress | None = None

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

    def __call__(self, step: Progress) -> None:
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
                self.line(f"{_name(step)}: {step.done} iterations, {_energy(step)}")
        elif whole:  # the stage converged before its limit, or reported every step before doing it
            n = max(step.done if step.loss is not None else step.total, 1)
            self.live.update(self._task, total=n, completed=n)


def _name(step: Progress) -> str:
    return step.stage if step.n_levels == 1 else f"{step.stage:<11} level {step.level} of {step.n_levels}"


def _energy(step: Progress) -> str:
    return "" if step.loss is None else f"energy {step.loss:.5g}"


class JobTable(_Screen):
    """The jobs of a batch: a table of running jobs and of those that ended last; as plain lines, one per finished job.

    Args:
        total: number of jobs.
    """

    def __init__(self, total: int) -> None:
        super().__init__()
        self.total = total
        self._running: dict[str, tuple[float, str]] = {}
        self._ended: list[Outcome] = []
        self._done = self._kept = 0
        self._began = time.monotonic()

    def widget(self, console: Any) -> Any:
        """The table, which rich redraws four times a second."""
        from rich.live import Live

        return Live(console=console, get_renderable=self._table, refresh_per_second=4)

    @contextlib.contextmanager
    def said(self, pool: contextlib.AbstractContextManager[Pool]) -> Iterator[Pool]:
        """Print which pool runs the jobs, once it has started."""
        with pool as opened:
            if opened.name == "one after another":
                self.line(f"running {opened.name} (pip install 'regframe[batch]' runs them side by side)")
            else:
                self.line(f"running on {opened.name}")
            yield opened

    def __call__(self, event: JobEvent) -> None:
        """Show one event of `regframe.batch.run_batch`."""
        if event.kind == "started":
            self._running[event.id] = (time.monotonic(), event.worker)
            return
        self._done = event.done
        if event.kind == "kept":
            self._kept += 1
            return
        self._running.pop(event.id, None)
        outcome = event.outcome
        assert outcome is not None
        self._ended.append(outcome)
        if self.live is None:
            width = len(str(event.total))
            why = f": {outcome.reasons[0]}" if outcome.reasons else ""
            self.line(
                f"[{event.done:>{width}}/{event.total}] {outcome.id}: {outcome.state}, {outcome.seconds:.1f} s{why}"
            )

    def _table(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", expand=True)
        for name, most in (("job", 32), ("state", 8), ("time", 9)):
            table.add_column(name, overflow="ellipsis", no_wrap=True, max_width=most)
        table.add_column("remark", overflow="ellipsis", no_wrap=True, ratio=1)
        for outcome in self._ended[-_ENDED:]:
            why = Text(outcome.reasons[0] if outcome.reasons else "")
            word = Text(outcome.state, style=TONES.get(outcome.state, ""))
            table.add_row(Text(outcome.id), word, f"{outcome.seconds:.1f} s", why)
        now = time.monotonic()
        for name, (began, worker) in list(self._running.items())[:_RUNNING]:
            table.add_row(Text(name), "running", f"{now - began:.0f} s", Text(f"on worker {worker}"))
        return Group(self._head(), table)

    def _head(self) -> Any:
        """Number of finished jobs by state, and the minutes left if the remaining jobs take as long as the finished ones."""
        from rich.text import Text

        head = Text(f"{self._done} of {self.total} jobs")
        if self._kept:
            head.append(f", {self._kept} of them done before", style="dim")
        for state, tone in TONES.items():
            count = sum(outcome.state == state for outcome in self._ended)
            if count:
                head.append(f"   {count} {state}", style=tone)
        ran, left = len(self._ended), self.total - self._done
        if ran and left:
            minutes = (time.monotonic() - self._began) / ran * left / 60
            head.append(f"   about {minutes:.0f} min left", style="dim")
        return head
