"""The table of a batch while it runs, on stderr: a job has a state and not a number of steps, as `display.Bars` shows them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..display.bars import Screen

if TYPE_CHECKING:
    from ..batch import JobEvent, Outcome, Pool

_ENDED, _RUNNING = 8, 16
"""Rows in the table of a batch: for jobs that ended last, and for running jobs. With the header they fit a terminal of 30
lines."""
TONES = {"pass": "green", "warn": "yellow", "fail": "red", "failed": "red"}
"""Colour of each state of a finished job."""


class JobTable(Screen):
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
        """Print which pool runs the jobs, once it has started, and what it has to say later."""
        with pool as opened:
            if hasattr(opened, "say"):  # that of Dask, where it lost its scheduler
                opened.say = self.line
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
