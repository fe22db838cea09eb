"""A plan whose shards are small files, for workers that import it by name."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FakePlan:
    """Squares, one per shard; the second round sums those of the first."""

    path: Path
    n: int = 6
    broken: int | None = None
    deadly: int | None = None

    @property
    def shards(self) -> int:
        return self.n + 1

    @property
    def rounds(self) -> tuple[range, ...]:
        return range(self.n), range(self.n, self.n + 1)

    def run(self, index: int) -> None:
        target = self.path / f"{index}.txt"
        if target.exists():
            return
        if index == self.broken:
            raise ValueError(f"shard {index} cannot be read")
        if index == self.deadly and not (self.path / "died").exists():
            (self.path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)
        value = index**2 if index < self.n else sum(int((self.path / f"{i}.txt").read_text()) for i in range(self.n))
        (self.path / f"{index}.by").write_text(str(os.getpid()))
        target.write_text(str(value))

    def finish(self) -> None:
        (self.path / "finished").write_text((self.path / f"{self.n}.txt").read_text())


def run_shard(folder: str, n: int, index: int) -> None:
    """The same out of paths and numbers alone."""
    FakePlan(Path(folder), n).run(index)
