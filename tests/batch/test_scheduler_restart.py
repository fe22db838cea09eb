"""A Dask scheduler that is lost while a batch runs: what has no answer is given to it again once it is back.

With real processes: ``python benchmarks/bench_endurance.py --jobs 200 --restarts``.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from regframe.batch import Limits, pools, read_manifest, work
from regframe.io import outputs

# ------------------------------------------------------------------------------------- a client without a cluster


class Future:
    """A task of `Client`, which ends when the test says so."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call, self.status, self.told = call, "pending", []

    told: list[Callable[[Any], object]]

    def add_done_callback(self, tell: Callable[[Any], object]) -> None:
        self.told.append(tell)

    def end(self, status: str = "finished") -> None:
        self.status = status
        for tell in self.told:
            tell(self)

    def result(self, timeout: float) -> Any:
        if self.status != "finished":
            raise RuntimeError(self.status)
        return self.call()

    def release(self) -> None:
        pass


class Client:
    """What `pools.Cluster` uses of Dask's client; ``ends`` is how many tasks end before its scheduler dies."""

    def __init__(self, ends: int, workers: int = 1) -> None:
        self.ends, self.workers, self.status = ends, workers, "running"
        self.given: list[int] = []
        self.topics: list[str] = []
        self.futures: list[Future] = []
        self.scheduler = self
        self.address = "tcp://there:1"

    def submit(self, told: Any, function: Any, item: Any, topic: str, index: int, **options: Any) -> Future:
        self.given.append(index)
        self.futures.append(Future(lambda: function(*item)))
        if len(self.futures) == 1:
            threading.Timer(0.01, self.work).start()
        return self.futures[-1]

    def work(self) -> None:
        time.sleep(0.02)
        for k, future in enumerate(self.futures):
            if k == self.ends:
                self.status = "connecting"
            future.end("finished" if k < self.ends else "cancelled")

    def subscribe_topic(self, topic: str, handler: Any) -> None:
        self.topics.append(topic)

    def unsubscribe_topic(self, topic: str) -> None:
        self.topics.remove(topic)

    def nthreads(self) -> dict[str, int]:
        return dict.fromkeys(map(str, range(self.workers)), 1)

    def run(self, function: Any, **options: Any) -> dict[str, Any]:
        return {"w": function()}

    def cancel(self, futures: Any, force: bool) -> None:
        pass

    def close(self, timeout: float = 1) -> None:
        self.status = "closed"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[pools.Cluster, list[str]]]:
    """A cluster whose clients follow one another as the schedulers die; None is a scheduler that does not answer."""
    pytest.importorskip("distributed")
    monkeypatch.setattr(pools, "BACK", 0.3)
    monkeypatch.setattr(pools, "_AGAIN", 0.01)

    def make(*clients: Client | None) -> tuple[pools.Cluster, list[str]]:
        following = iter(clients)

        def connect(self: pools.Cluster, client: Any, seconds: float | None = None) -> Client:
            found = next(following, None)
            if found is None:
                raise ValueError("no answer")
            return found

        monkeypatch.setattr(pools.Cluster, "_connect", connect)
        pool = pools.Cluster("tcp://there:1")
        said: list[str] = []
        pool.say = said.append
        return pool, said

    return make


def test_what_has_no_answer_is_given_to_the_scheduler_again(lost: Any) -> None:
    first, second, third = Client(2), Client(1), Client(9)
    pool, said = lost(first, None, second, third)
    started: list[Any] = []
    with pool:
        found = dict(pool.run(abs, [(-k,) for k in range(6)], lambda *event: started.append(event)))
    assert found == {k: k for k in range(6)}
    assert (first.given, second.given, third.given) == ([0, 1, 2, 3, 4, 5], [2, 3, 4, 5], [3, 4, 5])
    assert len(said) == 4
    assert "the Dask scheduler was lost" in said[0]
    assert "waiting up to 0.3 s for it and a worker; 4 tasks have no answer yet" in said[0]
    assert said[1] == "the Dask scheduler at tcp://there:1 answers again: it is given 4 tasks"
    assert (first.status, third.topics) == ("closed", [])


@pytest.mark.parametrize(("after", "words"), [(None, "it did not answer"), (Client(9, 0), "it had no worker")])
def test_a_scheduler_that_stays_away_ends_it_with_a_sentence(lost: Any, after: Any, words: str) -> None:
    pool, _ = lost(Client(1), after)
    with pool, pytest.raises(ConnectionError, match=f"{words} within 0.3 s; the same command goes on where it was"):
        list(pool.run(abs, [(-1,), (-2,)]))


def test_a_scheduler_that_is_lost_over_and_over_ends_it(lost: Any) -> None:
    pool, said = lost(*(Client(0) for _ in range(20)))
    with pool, pytest.raises(ConnectionError, match="11 times over"):
        list(pool.run(abs, [(-1,)]))
    assert len(said) == 2 * pools.LOST


# ------------------------------------------------------------------------------------------------ nothing done twice


def _pair(folder: Path, jobs: int) -> Path:
    """A manifest of so many equal small jobs."""
    y, x = np.mgrid[:48, :48] / 7
    for name, shift in (("f", 0.0), ("m", 0.1)):
        pixels = 120 + 60 * (y + shift) % 50 + 30 * x % 17
        PIL.Image.fromarray(pixels.clip(0, 255).astype("uint8")).save(folder / f"{name}.png")
    rows = [f"j{k},f.png,m.png,identity,transform=affine;optimizer.max_iter=2\n" for k in range(jobs)]
    path = folder / "jobs.csv"
    path.write_text("id,fixed,moving,init,set\n" + "".join(rows))
    return path


def test_a_job_whose_answer_was_lost_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (job,) = read_manifest(_pair(tmp_path, 1))
    out = tmp_path / "out"
    (out / job.id).mkdir(parents=True)
    inputs = {name: work.signature(path) for name, path in job.inputs.items()}
    outcome = work.Outcome(id=job.id, status="failed", reasons=("of a file",), options=job.options, inputs=inputs)
    values = dataclasses.asdict(outcome)
    del values["kept"]
    (out / job.id / work.RECORD).write_text(outputs.to_json(values))
    monkeypatch.setattr(work, "_attempt", lambda *args: pytest.fail("it ran"))

    (out / work.LOCK).touch()
    os.utime(out / work.LOCK, ns=(0, (out / job.id / work.RECORD).stat().st_mtime_ns - 1))
    assert work.run_job(job, out, Limits(memory=1 << 30)) == outcome  # it ended after the batch began
    os.utime(out / work.LOCK, ns=(0, (out / job.id / work.RECORD).stat().st_mtime_ns + 1))
    with pytest.raises(pytest.fail.Exception, match="it ran"):  # of an earlier batch, as for --retry-failed
        work.run_job(job, out, Limits(memory=1 << 30))
