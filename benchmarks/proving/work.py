"""Pairs made, aligned and judged, each in a process of its own: a child finds this module by name, which it cannot `__main__`."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

import torch

from . import judge, kinds, sources
from .judge import Judged


def one(task: tuple[str, int, str | None]) -> Judged:
    """Make, align and judge a pair; for a process of its own."""
    kind, seed, transform = task
    torch.set_num_threads(1)
    made = kinds.made(kind, seed, sources.data_folder())
    return judge.judge(made, transform)[0]


def runs(tasks: Sequence[tuple[str, int, str | None]], workers: int) -> Iterator[Judged]:
    """The judged pairs in order."""
    if workers == 1:
        yield from map(one, tasks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(one, tasks)
