"""How many threads a piece of work is worth."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

PIXELS_PER_THREAD = 150_000
"""Pixels (times channels) for each thread at least: with fewer, a further thread costs more in waiting than it brings."""


@contextlib.contextmanager
def threads_for(pixels: int) -> Iterator[None]:
    """Run on as many threads as the work is worth, never more than are set.

    Threads that wait for each other after every few microseconds of work stall for whole time slices as soon as another
    process wants a core: on a busy machine two threads on a small level are many times slower than one.
    """
    before = torch.get_num_threads()
    wanted = max(1, min(before, pixels // PIXELS_PER_THREAD))
    if wanted != before:
        torch.set_num_threads(wanted)
    try:
        yield
    finally:
        if wanted != before:
            torch.set_num_threads(before)
