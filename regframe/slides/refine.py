"""`refine`: a map found on a coarse level, made exact at full resolution, where that can be shown to help.

Tile by tile the moving image is carried onto the fixed one by the map as it is, and windows of it are looked for where they
should be: the peak of the normalised cross-correlation says how far off the map is there, its curvature how surely. One smooth
field, the posterior mean of a Gaussian process, is fitted to what all windows say, so that there are no seams, and joins the
map's own flow as one more slice of its velocity. Every second window takes no part in this: it keeps its correlation as a
function of the displacement and judges, tile by tile, whether the field made it better.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import torch
from skimage.filters import threshold_otsu
from torch import Tensor

from ..contracts import Progress
from ..data import Grid, Level, Pyramid
from ..fit.mixture import flattest
from ..fit.uncertainty import FLOOR
from ..maps.base import Transform
from ..maps.bends import split_last
from ..result import Result
from ..verdict import CHANCE, FEW, GAIN, SLIGHT
from . import tiles
from .field import Array, Evidence, Field, Process, _zoom, joined
from .place import place_pyramid
from .windows import FINE, SEARCH, WINDOW, Look, Seen, _correlations, _tile, _without_mean

TILE = 8 * WINDOW
"""Pixels along the sides of a tile, the unit that is read at once, kept or rejected."""
REACH = 3.0
"""Pixels of the level that was registered on by which its map may be off: that far is searched."""
STRIDE = 8
"""Times by which the resolution grows at most from one round to the next."""
NOISE = 0.1
"""Pixels by which a window is found elsewhere than its middle lies, at least: the map bends within it too."""
LOOKED_AT = 24_000_000
"""Values of both sides that are looked at to choose how to look at them, at most."""


def refine(
    result: Result,
    fixed: Pyramid | Any,
    moving: Pyramid | Any,
    *,
    workers: int | None = None,
    progress: Callable[[Progress], object] | None = None,
) -> Result:
    """Make the map of two images exact at full resolution, tile by tile, where it can be shown to help.

    The field that is added is smooth, so that the map stays one-to-one, and becomes a slice of the map's own velocity
    (`Flow`). A tile whose held-out windows are not clearly better than before takes no part in it; where none is, the map
    comes back as it was. Memory does not grow with the images: a few tiles per worker, and 5 kB per window that judges.

    Args:
        result: of two 2D images.
        fixed: every resolution of the fixed image, or anything `regframe.open_pyramid` reads.
        moving: likewise.
        workers: threads; None takes one per core.
        progress: called after each tile; a round, whose pixels it names, is a stage.

    Returns:
        The result with the refined map; ``metrics["refinement"]`` says what was done: ``rounds``, each with ``pixel`` (fixed
        unit), ``tiles``, ``kept``, ``rejected`` by reason, ``correlation`` of the held-out windows before and after,
        ``shift`` (median, p90 and largest; fixed unit) and ``seconds``.

    Raises:
        ValueError: for points and volumes, and for images that are not those of the result.
    """
    from .. import plugins

    began = time.perf_counter()
    fixed = fixed if isinstance(fixed, Pyramid) else plugins.open_pyramid(fixed)
    moving = moving if isinstance(moving, Pyramid) else plugins.open_pyramid(moving)
    if result.fixed_grid.ndim != 2 or result.moving_grid.ndim != 2 or fixed.grid.ndim != 2 or moving.grid.ndim != 2:
        raise ValueError(
            f"wanted two 2D images to refine, got {fixed.grid.ndim} and {moving.grid.ndim} axes for a result of "
            f"{result.fixed_grid.ndim} and {result.moving_grid.ndim}; volumes are registered at full resolution"
        )
    if "drawn" in result.metrics or result.metrics.get("model") == "points" or fixed.labels or moving.labels:
        raise ValueError(
            "wanted the result of two images to refine, got one of points or labels; refine needs intensities"
        )
    workers = _cores() if workers is None else int(workers)
    if workers < 1:
        raise ValueError(f"wanted at least one worker, got {workers}")
    fixed, moving = place_pyramid(fixed, result.fixed_grid), place_pyramid(moving, result.moving_grid)
    coarse = (result.fixed_grid if result.weight_grid is None else result.weight_grid).pixel
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            field, rounds = _rounds(result, fixed, moving, coarse / fixed.grid.pixel, workers, progress)
    finally:
        torch.set_num_threads(threads)
    report: dict[str, Any] = {"kept": sum(r["kept"] for r in rounds), "rounds": rounds}
    metrics = dict(result.metrics)
    transform = result.transform
    if field is not None:
        transform = joined(result.transform, field)
        metrics |= _figures(transform, result)
        report["nodes"] = {"shape": list(field.grid.shape), "spacing": field.grid.pixel}
    report["seconds"] = time.perf_counter() - began
    return dataclasses.replace(result, transform=transform, metrics=metrics | {"refinement": report})


# ---------------------------------------------------------------------------------------------------------- the rounds


def _rounds(
    result: Result,
    fixed: Pyramid,
    moving: Pyramid,
    coarse: float,
    workers: int,
    progress: Callable[[Progress], object] | None,
) -> tuple[Field | None, list[dict[str, Any]]]:
    """The field, or None where nothing was kept, and what was done.

    ``coarse`` is the pixel of the registration, in those of the finest level.
    """
    head, tail = split_last(result.transform)
    ratio = tiles.needed(moving, result.transform.inverse(), fixed.grid.spacing)  # moving pixels per fixed one
    finest = 2 ** max(0, math.floor(math.log2(1 / ratio) + 0.25)) if ratio < 1 else 1
    factor = max(finest, 2 ** max(0, math.ceil(math.log2(max(1.0, coarse * REACH / SEARCH)))))
    look = _look(result, fixed, moving, max(coarse, factor))
    corners = tail.inverse().points(_rim(fixed.grid)).numpy()
    zoom = _zoom(tail)
    pool: list[Evidence] = []
    field: Field | None = None
    rounds: list[dict[str, Any]] = []
    while True:
        began = time.perf_counter()
        level = tiles.choose(fixed, factor)
        transform = result.transform if field is None else joined(result.transform, field)
        places = _tissue_tiles(level.grid, look)
        name = f"refining, pixels of {level.grid.pixel:.4g} {level.grid.unit}"
        seen: list[Seen] = [Seen.nothing("")] * len(places)
        pull = transform.inverse()
        source = tiles.choose(moving, tiles.needed(moving, pull, level.grid.spacing))

        def task(index: int, level: Level = level, source: Level = source, pull: Transform = pull,
                 places: list[tuple[slice, slice]] = places) -> Seen:  # fmt: skip
            return _tile(level, source, moving.grid, pull, places[index], look)

        for done, (index, found) in enumerate(_spread_over(task, len(places), workers), start=1):
            seen[index] = found
            if progress is not None:
                progress(Progress(name, done, len(places)))
        process = Process(
            head, corners.min(axis=0), corners.max(axis=0), tail.source_unit, NOISE * level.grid.pixel * zoom
        )
        new, entry = _settle(process, pool, field, transform, result.transform, seen, level.grid)
        entry |= {"seconds": time.perf_counter() - began}
        rounds.append(entry)
        field = new if new is not None else field
        if factor <= finest:
            return field, rounds
        factor = max(finest, factor // STRIDE)


def _settle(
    process: Process,
    pool: list[Evidence],
    field: Field | None,
    transform: Transform,
    original: Transform,
    seen: list[Seen],
    grid: Grid,
) -> tuple[Field | None, dict[str, Any]]:
    """The field of a round, or None where it is rejected, and what is said of it; what was kept joins ``pool``."""
    head, tail = split_last(original)
    back, undo = transform.inverse(), tail.inverse()
    zoom = _zoom(tail)

    def toward(places: Array, shifts: Array) -> tuple[Array, Array]:
        """Where in the field places lie, and what it should be there for ``places + shifts`` of the map to come to them."""
        z = undo.points(torch.from_numpy(places)).numpy()
        x = back.points(torch.from_numpy(places + shifts))
        for part in head:
            x = part.points(x)
        return z, x.numpy() - z

    status = {i: s.status for i, s in enumerate(seen)}
    measured: list[Evidence] = []
    held: list[Evidence] = []
    for i, tile in enumerate(seen):
        if not status[i] and (len(tile.places) < FEW or len(tile.judges) < FEW):
            status[i] = "without structure"
        if status[i]:
            continue
        z, d = toward(tile.places, tile.shifts)
        rows = len(z)
        floor = FLOOR * grid.pixel
        measured.append(
            Evidence(z, d, np.maximum(tile.sd, floor) * zoom, np.full(rows, i), np.zeros(rows, dtype=np.bool_))
        )
    count = sum(1 for v in status.values() if not v)
    entry: dict[str, Any] = {"pixel": grid.pixel, "tiles": len(seen), "kept": 0, "rejected": {}}
    pitch = math.sqrt(2) * WINDOW * grid.pixel * zoom

    def judge(new: Field) -> tuple[dict[int, float], dict[int, float], Array]:
        """Per tile by how many standard deviations the field is better, and by how much; sums of all windows."""
        joint = joined(original, new)
        z_of, gain_of, total = {}, {}, np.zeros(5)
        for i, tile in enumerate(seen):
            if len(tile.judges) < FEW:
                continue
            y = torch.from_numpy(tile.judges)
            moved = transform.points(joint.inverse().points(y)).numpy() - tile.judges
            before, after = _correlations(tile.surfaces, moved / np.array(grid.spacing))
            pixels = moved / np.array(grid.spacing)
            chance = np.minimum(2**0.5 * tile.chance[:, 0], np.linalg.norm(pixels, axis=1) * tile.chance[:, 1]) ** 2
            z_of[i] = float((after - before).sum()) / max(math.sqrt(chance.sum()), 1e-9)
            gain_of[i] = float((after - before).mean())
            total += [before.sum(), after.sum(), len(before), chance.sum(), (tile.chance[:, 0] ** 2).sum()]
        return z_of, gain_of, total

    new: Field | None = None
    choice: tuple[float, float] | None = None
    if measured:
        evidence = Evidence.of(pool + measured)
        choice = process.choose(evidence, pitch)
        new = None if choice is None else process.gentle(evidence, *choice)
    kept: list[int] = []
    if new is not None and choice is not None:
        better, gain, _ = judge(new)
        alive = [i for i in better if not status[i]]
        kept = [i for i in alive if better[i] >= GAIN and gain[i] >= SLIGHT]
        chosen = [m for m in measured if int(m.tile[0]) in set(kept)]
        new = process.gentle(Evidence.of([*pool, *chosen]), *choice) if chosen else None
        for _ in range(3):  # what others say must not harm
            if new is None:
                break
            better, gain, total = judge(new)
            worse = [
                i
                for i in better
                if better[i] <= -GAIN and gain[i] <= -SLIGHT and i not in {int(h.tile[0]) for h in held}
            ]
            if not worse:
                break
            kept = [i for i in kept if i not in worse]
            for i in worse:
                places = seen[i].judges
                z, d = toward(places, np.zeros_like(places))
                sd = np.full_like(d, 0.1 * grid.pixel * zoom)
                held.append(Evidence(z, d, sd, np.full(len(z), i), np.ones(len(z), dtype=np.bool_)))
                status[i] = "worse"
            chosen = [m for m in measured if int(m.tile[0]) in set(kept)]
            new = process.gentle(Evidence.of([*pool, *chosen, *held]), *choice) if chosen else None
    if new is not None:
        better, _, total = judge(new)
        kept = [i for i in kept if better[i] > 0]
        if total[1] - total[0] < CHANCE * math.sqrt(total[3]) or total[1] < CHANCE * math.sqrt(total[4]):
            kept, new = [], None
        else:
            moved = np.concatenate(
                [np.linalg.norm(m.d - (0 if field is None else field.at(m.z)), axis=1) for m in measured]
            )
            entry["correlation"] = [float(total[0] / total[2]), float(total[1] / total[2])]
            entry["shift"] = {
                "median": float(np.median(moved)) / zoom,
                "p90": float(np.quantile(moved, 0.9)) / zoom,
                "max": float(moved.max()) / zoom,
            }
    if new is not None:
        # what this resolution said gives way to a finer one, but stays where that sees nothing
        for item in (*[m for m in measured if int(m.tile[0]) in set(kept)], *held):
            pool.append(dataclasses.replace(item, sd=np.maximum(item.sd, 0.5 * grid.pixel * zoom)))
    for i, why in status.items():
        if i not in kept:
            reason = why or "not better"
            entry["rejected"][reason] = entry["rejected"].get(reason, 0) + 1
    entry["kept"], entry["looked_at"] = len(kept), count
    return new, entry


# ------------------------------------------------------------------------------------------------------------- before


def _look(result: Result, fixed: Pyramid, moving: Pyramid, coarse: float) -> Look:
    """How to look at both sides, from all of them at the resolution of the registration.

    The channels of each are summed such that what is finer than `FINE` pixels correlates most: the first pair of canonical
    variables (Hotelling 1936), which neither colours nor a turned contrast change.
    """
    channels = len(fixed.channels) + len(moving.channels)
    while math.prod(fixed.grid.shape) / coarse**2 * channels > LOOKED_AT:
        coarse *= 2
    level = tiles.choose(fixed, coarse)
    grid = level.grid
    whole = tuple(slice(0, n) for n in grid.shape)
    one = torch.from_numpy(np.asarray(level.read(whole)).astype(np.float32))
    pull = result.transform.inverse()
    source = tiles.choose(moving, tiles.needed(moving, pull, grid.spacing))
    pixels = tiles.warp_tile(source, pull, grid, whole, False, None)
    assert pixels is not None
    other = torch.from_numpy(pixels.astype(np.float32))
    inside = moving.grid.contains(pull.points(grid.coords()))
    background = flattest(one, torch.ones(grid.shape))
    apart = (one - background[:, None, None]).norm(dim=0).numpy()
    tissue = np.ones(grid.shape, dtype=np.bool_)
    if apart.max() > apart.min():
        tissue = apart > threshold_otsu(apart) / 2  # type: ignore[no-untyped-call]
    seen = (torch.from_numpy(tissue) & inside).to(torch.float32)
    x, y = (
        torch.stack([_without_mean(c, FINE) * seen for c in side]).reshape(len(side), -1).to(torch.float64)
        for side in (one, other)
    )
    roots = []
    for side in (x, y):
        values, vectors = torch.linalg.eigh(side @ side.T)
        top = float(values[-1].clamp(min=1e-12))
        roots.append(vectors @ torch.diag((values + 1e-3 * top) ** -0.5) @ vectors.T)
    u, _, v = torch.linalg.svd(roots[0] @ (x @ y.T) @ roots[1])
    weights = [roots[0] @ u[:, 0], roots[1] @ v[0]]
    weights = [w / w.norm().clamp(min=1e-12) for w in weights]
    return Look(weights[0], weights[1], tissue, grid)


def _tissue_tiles(grid: Grid, look: Look) -> list[tuple[slice, slice]]:
    """Tiles of a level in which there is tissue."""
    found = []
    for y in range(0, grid.shape[0], TILE):
        for x in range(0, grid.shape[1], TILE):
            region = slice(y, min(y + TILE, grid.shape[0])), slice(x, min(x + TILE, grid.shape[1]))
            if min(r.stop - r.start for r in region) < WINDOW:
                continue
            inner = []
            for r, o, s, oo, ss, n in zip(
                region, grid.origin, grid.spacing, look.grid.origin, look.grid.spacing, look.grid.shape, strict=True
            ):
                a, b = (r.start * s + o - oo) / ss, ((r.stop - 1) * s + o - oo) / ss
                inner.append(slice(min(max(0, math.floor(a)), n - 1), min(n, math.ceil(b) + 1)))
            if look.tissue[tuple(inner)].mean() > 0.02:
                found.append(region)
    return found


def _spread_over(run: Callable[[int], Seen], count: int, workers: int) -> Iterator[tuple[int, Seen]]:
    """Every index with what it gave, as it ends; no more than a few wait at once."""
    if workers == 1:
        for index in range(count):
            yield index, run(index)
        return
    with ThreadPoolExecutor(workers, "refine", initializer=torch.set_num_threads, initargs=(1,)) as pool:
        pending: dict[Future[Seen], int] = {}
        following = iter(range(count))
        try:
            while True:
                while len(pending) < 2 * workers and (after := next(following, None)) is not None:
                    pending[pool.submit(run, after)] = after
                if not pending:
                    return
                finished, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield pending.pop(future), future.result()
        except BaseException:
            for future in pending:
                future.cancel()
            raise


def _rim(grid: Grid) -> Tensor:
    """Positions ``[4, 2]`` of a canvas' corners."""
    low = [o - s / 2 for o, s in zip(grid.origin, grid.spacing, strict=True)]
    high = [a + e for a, e in zip(low, grid.extent, strict=True)]
    return torch.tensor([[y, x] for y in (low[0], high[0]) for x in (low[1], high[1])], dtype=torch.float64)


def _figures(transform: Transform, result: Result) -> dict[str, Any]:
    """What changes of ``metrics.json``: the round trip and the change of area of the refined map."""
    grid = result.fixed_grid
    if math.prod(grid.shape) > 150_000:
        factor = math.sqrt(math.prod(grid.shape) / 150_000)
        grid = grid.resampled(tuple(s * factor for s in grid.spacing))
    coords, back = grid.coords(), transform.inverse()
    at = back.points(coords)
    inside = result.moving_grid.contains(at)
    seen = inside if bool(inside.any()) else torch.ones_like(inside)
    error = ((transform.points(at) - coords).norm(dim=-1) / result.fixed_grid.pixel)[seen]
    _, tail = split_last(transform)
    area = (back.jacobian_determinant(grid) * abs(float(torch.linalg.det(tail.matrix[:2, :2]))))[seen]
    return {
        "roundtrip_px": {"mean": float(error.mean()), "max": float(error.max())},
        "jacobian_min": float(area.min()),
        "jacobian_max": float(area.max()),
        "folding_fraction": float((area <= 0).to(torch.float32).mean()),
    }


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
