"""What ``regframe register --dry-run`` says: everything read and checked that a run would read, its memory and its time."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._common import bad_input, open_levels

if TYPE_CHECKING:
    from ..contracts import Adapter, Task
    from ..data import Image, PointSet
    from ..registration import Plan
    from ..remote.address import Remote

SECONDS: dict[str, tuple[float, float]] = {
    "plane": (6.7, 2.7),
    "volume": (10.0, 70.0),
    "section": (11.0, 0.0),
    "points": (1.2, 20.0),
    "mixed": (6.7, 2.7),
}
"""Seconds of one processor for a fit by kind of pair: a constant, and what each million pixels of the finest level of the fit
(of points, each million points) adds. The middle, by ratio, between the quickest and the slowest of 35 made pairs with known
maps: ten kinds of the proving ground with seeds 1 and 2 (images 2.8 to 19 s, 0.01 to 0.5 million pixels; where a pair is doubted
it is fitted twice), volumes 1 to 3 (13 to 28 s), points up to 14 000 a side (0.6 to 2.4 s), and the files of ``regframe demo
--data`` (up to a million pixels)."""
AS_CELLS = 19.0
"""Seconds of one processor that are added where points of both sides are not the same points and are tried as densities of cells:
those of the slowest pair in a plane of `SECONDS`, which as a rule is fitted twice."""
BEFORE_AND_AFTER = 2.7
"""Seconds of one processor that a command takes beside its fit, for starting Python, figures and report (the seed pair in
benchmarks/RESULTS.md)."""
PROBE = 0.4
"""Seconds of one processor that the probe took on the machine on which `SECONDS` were measured: 180 transforms, there and back,
of 8 planes of 256 x 256."""
PARTS = 9
"""Parts of the probe, of which the median counts: what interrupts one of them is not what a run of many seconds meets."""
BYTES = (84.0, 20.0)
"""Bytes beyond the data that a fit needs for each pixel of its finest level, and for each pixel that was read (sizes of 1 and 64
million pixels in benchmarks/RESULTS.md)."""


def probe() -> float:
    """Seconds that a known piece of work (`PROBE`) takes here and now: more on a slow machine, and on a busy one."""
    import torch

    planes = torch.rand(8, 256, 256)
    parts = []
    for _ in range(PARTS):
        began = time.perf_counter()
        for _ in range(180 // PARTS):
            torch.fft.irfft2(torch.fft.rfft2(planes))
        parts.append(time.perf_counter() - began)
    return PARTS * statistics.median(parts)


def decode(place: Path | Remote, adapter: str, options: Mapping[str, Any], every: bool) -> int:
    """Decode one tile in the middle of the finest level of an image, or of each level; returns how many.

    `BadInput` for a tile that cannot be decoded.

    Args:
        place: the file.
        adapter: the name of what reads it.
        options: of the adapter.
        every: whether each level will be read.
    """
    whole = {name: value for name, value in options.items() if name not in ("level", "mask", "nodata", "channels")}
    pyramid, _ = open_levels(place, adapter, whole)
    if pyramid is None:
        return 0
    levels = pyramid.levels if every else pyramid.levels[:1]
    with bad_input():
        for number, level in enumerate(levels):
            chunk = level.chunk[-level.grid.ndim :]
            starts = [(n // 2) // c * c for n, c in zip(level.grid.shape, chunk, strict=True)]
            region = tuple(
                slice(start, min(start + c, n)) for start, c, n in zip(starts, chunk, level.grid.shape, strict=True)
            )
            try:
                level.read(region)
            except (ValueError, OSError) as error:
                raise ValueError(f"cannot read level {number} of {place}: {error}") from error
    return len(levels)


def seconds(task: Task, solver: str, slowness: float) -> float:
    """How long the whole command may take, from the kind and the size of a pair.

    Args:
        task: the pair.
        solver: name of what registers it.
        slowness: seconds here and now over seconds of one processor of the machine of `SECONDS`.
    """
    kind, millions = _kind(task, solver)
    constant, each = SECONDS[kind]
    return slowness * (constant + each * millions + BEFORE_AND_AFTER)


def memory(task: Task) -> float:
    """Bytes that the whole command may need, from what this process needs now and the size of the pair."""
    import resource
    import sys

    now: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    read = sum(_count(data) for data in (task.fixed, task.moving))
    return now + BYTES[0] * _finest(task) + BYTES[1] * read


def _kind(task: Task, solver: str) -> tuple[str, float]:
    """The row of `SECONDS` for a pair, and its millions of pixels or points."""
    from ..data import Image, PointSet

    if isinstance(task.fixed, PointSet) and isinstance(task.moving, PointSet):
        return "points", (len(task.fixed) + len(task.moving)) / 2e6
    if not (isinstance(task.fixed, Image) and isinstance(task.moving, Image)):
        return "mixed", _finest(task) / 1e6
    if solver == "section" or task.fixed.grid.ndim != task.moving.grid.ndim:
        return "section", 0.0
    return ("plane" if task.fixed.grid.ndim == 2 else "volume"), _finest(task) / 1e6


def _finest(task: Task) -> float:
    """Pixels of the finest level of the fit: of the fixed side where it is an image, halved until they are few enough."""
    from ..data import Image

    images = [data for data in (task.fixed, task.moving) if isinstance(data, Image)]
    if not images:
        return 0.0
    pyramid = task.config.pyramid
    grid = images[0].grid
    pixels = math.prod(grid.shape) / float(2 ** (grid.ndim * pyramid.finest))
    while pixels > task.config.most_of(grid.shape):
        pixels /= float(2**grid.ndim)
    return pixels


def _count(data: Image | PointSet) -> int:
    from ..data import Image

    return data.data.numel() if isinstance(data, Image) else data.coords.numel()


def spoken(length: float) -> str:
    """A length of time as people say it: 8 s, 3 min, 2 h."""
    if length < 90:
        return f"{max(1, round(length))} s"
    return f"{length / 60:.0f} min" if length < 5400 else f"{length / 3600:.1f} h"


def facts(plan: Plan) -> dict[str, float]:
    """``seconds`` and ``bytes`` that a run of ``plan`` may take; ``seconds_as_cells`` come on top where points fail as such."""
    slowness = probe() / PROBE
    found = {"seconds": seconds(plan.task, plan.solver.name, slowness), "bytes": memory(plan.task)}
    if _kind(plan.task, plan.solver.name)[0] == "points":
        found["seconds_as_cells"] = slowness * AS_CELLS
    return found


def check_writer(adapter: Adapter, data: Image | PointSet, source: Path | Remote, out: Path) -> None:
    """`BadInput` where the warped moving side cannot be written in its format."""
    from .. import plugins
    from ..data import Image

    name = "warped.ome.zarr" if isinstance(data, Image) else "warped" + "".join(source.suffixes[-2:])
    with bad_input():
        plugins.find_writer(adapter, data, out / name, source)
