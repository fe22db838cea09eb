"""`refine`: improves a map that was found on a coarse level, at full resolution, wherever an improvement can be shown.

Each tile of the moving image is carried onto the fixed image by the map, and windows of it are searched for near their expected
places: the peak of the normalised cross-correlation tells how far off the map is, its curvature how precisely. One smooth field
(the posterior mean of a Gaussian process) is fitted to all windows together, so that there are no seams, and becomes one more
time slice of the map's own velocity. Every second window takes no part in the fit. It keeps its correlation as a function of the
displacement and judges, tile by tile, whether the field improves the match.

Where a constant names no source, neither a paper nor a calibration is recorded for it; ``benchmarks/bench_refine.py`` measures
what they achieve together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import math
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from skimage.filters import threshold_otsu
from torch import Tensor

from .. import devices
from ..contracts import Progress
from ..data import Grid, Pyramid
from ..display.bars import shown
from ..fit.mixture import flattest
from ..fit.threads import on_threads, workers_of
from ..fit.uncertainty import FLOOR
from ..io.tasks import Kept, Pool, Threads, check_size, pool_of
from ..maps.affine import Affine
from ..maps.base import Transform
from ..maps.bends import split_last
from ..maps.known import known
from ..maps.pieces import in_pieces
from ..result import Result
from ..verdict import CHANCE, FEW, GAIN, SLIGHT
from ..versions import version
from . import sweep, tiles
from .field import Array, Evidence, Field, Process, joined, length_before
from .place import place_pyramid
from .unfinished import going_on
from .warp import add_to_hash, middle_of
from .windows import FINE, SEARCH, WINDOW, Look, Seen, correlations, without_mean

REACH = 3.0
"""Largest error of the map that is searched for in the first round, in pixels of the level at which it was registered."""
STRIDE = 8
"""Largest factor by which the resolution grows from one round to the next: `SEARCH` (24) pixels of a round are then three of
the round before."""
NOISE = 0.1
"""Least standard deviation of a window's place, in pixels of the level: the map bends within a window too."""
HELD_SD = 0.1
"""Standard deviation, in pixels of the level, with which a tile that the field made worse is held at the unrefined map."""
COARSE_SD = 0.5
"""Least standard deviation, in pixels of its own level, with which a window of an earlier, coarser round counts in later
rounds."""
HOLDINGS = 3
"""Largest number of times that tiles which the field made worse are held and the field is fitted again."""
LOOKED_AT = 24_000_000
"""Largest number of values of both sides from which the weights of the channels are computed: 100 MB in float32."""
MOST_POSITIONS = 150_000
"""Largest number of positions at which round trip and change of area of a refined map are computed."""
Report = Callable[[Progress], object]


def refine(
    result: Result,
    fixed: Pyramid | Any,
    moving: Pyramid | Any,
    *,
    workers: int | None = None,
    progress: bool | Callable[[Progress], object] | None = None,
    device: str = "cpu",
    client: Any = None,
    folder: str | Path | None = None,
) -> Result:
    """Improve the map of two images at full resolution, tile by tile, wherever an improvement can be shown.

    The added field is smooth, so that the map stays one-to-one, and becomes a slice of the map's own velocity (`Flow`). A
    tile whose held-out windows do not match clearly better than before takes no part in it; where no tile improves, the map
    is returned unchanged. Memory does not grow with the images: a few tiles per worker, and 5 kB per judging window.

    Args:
        result: the registration of two 2D images.
        fixed: every resolution of the fixed image, or anything `regframe.open_pyramid` reads.
        moving: every resolution of the moving image, or anything `regframe.open_pyramid` reads.
        workers: threads; None takes one per core. Without effect beside a ``client``.
        progress: True draws bars (None does in a notebook and at a Python prompt); a function is called after every
            tile; the stage is the round (``pixels of 0.5 µm``), with the number of tiles done and in all.
        device: where tiles are carried and windows compared: ``cpu``, ``cuda`` or ``cuda:N``; ``auto`` is the CPU, because much
            of the time goes into reading. Another device changes the result by rounding alone.
        client: a ``dask.distributed.Client`` whose workers look at the tiles, one task each, or a
            ``concurrent.futures.Executor``. The result has the same bytes as one from threads. The workers see the same files
            under the same paths: the images, passed as paths or as pyramids that read from files, and ``folder``.
        folder: where the measurements are kept as they come, so that the same call goes on where it was interrupted; of
            another pair, map or version they are begun anew. It may be removed once the result is saved. None keeps them no
            longer than the call.

    Returns:
        The result with the refined map; ``metrics["refinement"]`` says what was done: ``rounds``, each with ``pixel`` (fixed
        unit), ``tiles``, ``kept``, ``rejected`` by reason, ``correlation`` of the held-out windows before and after,
        ``shift`` (median, p90 and largest; fixed unit) and ``seconds``.

    Raises:
        ValueError: for points and volumes, for images that are not those of the result, and for images in memory beside a
            ``client``.
        ConnectionError: the client lost its scheduler.
        BlockingIOError: another process uses ``folder``.
        OSError: ``folder`` cannot be written.
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
    if in_pieces(result.transform):
        raise ValueError("wanted one map to refine, got one in pieces; it is as fine as the level that was registered")
    if "drawn" in result.metrics or result.metrics.get("model") == "points" or fixed.labels or moving.labels:
        raise ValueError(
            "wanted the result of two images to refine, got one of points or labels; refine needs intensities"
        )
    count, where = workers_of(workers), devices.chosen(device, 0)
    fixed, moving = place_pyramid(fixed, result.fixed_grid), place_pyramid(moving, result.moving_grid)
    coarse = (result.fixed_grid if result.weight_grid is None else result.weight_grid).pixel
    pool = pool_of(client, lambda: Threads(count))
    with (
        on_threads(1),
        torch.no_grad(),
        shown(progress) as told,
        _kept(folder, not sweep.is_here(pool), result, fixed, moving, device) as kept,
    ):
        spread = _Spread(pool, kept, device, told)
        field, rounds = _rounds(result, fixed, moving, coarse / fixed.grid.pixel, spread, where)
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


@dataclass(frozen=True)
class _Spread:
    """Who looks at the tiles, and where their measurements are kept.

    Args:
        pool: the workers.
        kept: measurements of an earlier run; new ones are added.
        device: where tiles are carried, as the caller said it.
        told: called after every tile.
    """

    pool: Pool
    kept: Kept
    device: str
    told: Report | None

    def over(
        self,
        tiles_: sweep.Sweep,
        number: int,
        pair: tuple[Pyramid, Pyramid],
        result: Result,
        map_: Transform,
        factor: float,
    ) -> list[Seen]:
        """The measurements in each tile of a sweep, the round ``number``, under ``map_``."""
        task = None
        if not sweep.is_here(self.pool):
            assert self.kept.folder is not None
            task = sweep.SweepTask(*pair, str(self.kept.folder.absolute()), number, uuid.uuid4().hex)
            check_size(task.run, "pass the paths of the images, or pyramids that read from files")
            task.write(result, map_, factor, tiles_.look, self.device)
        return sweep.measured(tiles_, task, self.pool, self.kept, number, self.told)


@contextlib.contextmanager
def _kept(
    folder: str | Path | None, shared: bool, result: Result, fixed: Pyramid, moving: Pyramid, device: str
) -> Iterator[Kept]:
    """Where measurements are kept: ``folder``, a temporary one that is ``shared`` with other processes, or nowhere."""
    if folder is not None:
        what = f"refinement of {moving.name} on {fixed.name}"
        with going_on(Path(folder), _fingerprint(result, fixed, moving, device), what) as store:
            yield Kept(store)
    elif shared:
        with tempfile.TemporaryDirectory(prefix="regframe-refine-") as name:
            yield Kept(Path(name))
    else:
        yield Kept(None)


def _fingerprint(result: Result, fixed: Pyramid, moving: Pyramid, device: str) -> str:
    """Hash of everything on which measurements depend."""
    sha = hashlib.sha256(repr((version(), devices.chosen(device, 0).type, result.weight_grid)).encode())
    for part in result.transform.parts():
        add_to_hash(part, sha)
    for side, grid in ((fixed, result.fixed_grid), (moving, result.moving_grid)):
        facts = (side.name, str(side.dtype), side.channels, [level.grid for level in side.levels], grid)
        sha.update(repr(facts).encode())
        sha.update(np.ascontiguousarray(side.levels[-1].read(middle_of(side.levels[-1]))).tobytes())
    return sha.hexdigest()


def _rounds(
    result: Result,
    fixed: Pyramid,
    moving: Pyramid,
    coarse: float,
    spread: _Spread,
    device: torch.device,
) -> tuple[Field | None, list[dict[str, Any]]]:
    """The field, or None where nothing was kept; and the record of every round.

    ``coarse`` is the pixel size of the registration, in pixels of the finest fixed level.
    """
    head, tail = split_last(result.transform)
    ratio = tiles.needed(moving, result.transform.inverse(), fixed.grid.spacing)  # moving pixels per fixed one
    finest = 2 ** max(0, math.floor(math.log2(1 / ratio) + 0.25)) if ratio < 1 else 1
    factor = max(finest, 2 ** max(0, math.ceil(math.log2(max(1.0, coarse * REACH / SEARCH)))))
    look = dataclasses.replace(_look(result, fixed, moving, max(coarse, factor)), device=device)
    corners = tail.inverse().points(_rim(fixed.grid)).numpy()
    pool: list[Evidence] = []
    field: Field | None = None
    rounds: list[dict[str, Any]] = []
    while True:
        began = time.perf_counter()
        transform = result.transform if field is None else joined(result.transform, field)
        there = known(transform, result.moving_grid, result.fixed_grid)
        around = sweep.Sweep.of(fixed, moving, there, factor, look)
        seen = spread.over(around, len(rounds), (fixed, moving), result, there, factor)
        level = around.level
        noise = NOISE * level.grid.pixel * length_before(tail)
        process = Process(head, corners.min(axis=0), corners.max(axis=0), tail.source_unit, noise)
        new, stays, entry = _Round(result.transform, transform, field, seen, level.grid, process, pool).settle()
        pool += stays
        entry |= {"seconds": time.perf_counter() - began}
        rounds.append(entry)
        field = new if new is not None else field
        if factor <= finest:
            return field, rounds
        factor = max(finest, factor // STRIDE)


class _Judged(NamedTuple):
    """The verdict of held-out windows on a field.

    Args:
        sure: by tile, standard deviations above chance by which its windows correlate better than before.
        rise: by tile, mean rise of the correlation of its windows.
        before: sum of the correlations of all windows without the field.
        after: sum of the correlations of all windows with the field.
        windows: number of windows.
        chance: variance of the change of that sum by chance.
        level: variance of the sum itself by chance.
    """

    sure: dict[int, float]
    rise: dict[int, float]
    before: float
    after: float
    windows: float
    chance: float
    level: float


@dataclass(frozen=True)
class _Round:
    """One resolution of a refinement: its measurements, and the decisions drawn from them.

    Args:
        original: the map of the registration.
        transform: the map under which the tiles were examined: ``original`` with ``field``.
        field: the field of coarser rounds; None where they added nothing.
        seen: the measurements in each tile.
        grid: grid of the level that was examined.
        process: fits fields.
        pool: evidence kept from coarser rounds.
    """

    original: Transform
    transform: Transform
    field: Field | None
    seen: list[Seen]
    grid: Grid
    process: Process
    pool: list[Evidence]

    @functools.cached_property
    def _ends(self) -> tuple[tuple[Transform, ...], Affine]:
        return split_last(self.original)

    @functools.cached_property
    def _zoom(self) -> float:
        return length_before(self._ends[1])

    def settle(self) -> tuple[Field | None, list[Evidence], dict[str, Any]]:
        """The field of this round (None where it is rejected), the evidence to keep, and the record of the round."""
        status = {i: tile.status for i, tile in enumerate(self.seen)}
        measured = self._measured(status)
        looked_at = sum(1 for why in status.values() if not why)
        entry: dict[str, Any] = {"pixel": self.grid.pixel, "tiles": len(self.seen), "kept": 0, "rejected": {}}
        new, kept, held = self._proposed(measured, status)
        stays: list[Evidence] = []
        if new is not None:
            judged = self.judge(new)
            kept = [i for i in kept if judged.sure[i] > 0]
            rise = judged.after - judged.before
            if rise < CHANCE * math.sqrt(judged.chance) or judged.after < CHANCE * math.sqrt(judged.level):
                kept, new = [], None
            else:
                entry |= self._told(judged, measured)
                # in later rounds this evidence counts less than finer one, but remains where that is missing
                least = COARSE_SD * self.grid.pixel * self._zoom
                stays = [
                    dataclasses.replace(item, sd=np.maximum(item.sd, least))
                    for item in (*_of_tiles(measured, kept), *held)
                ]
        for i, why in status.items():
            if i not in kept:
                reason = why or "not better"
                entry["rejected"][reason] = entry["rejected"].get(reason, 0) + 1
        entry["kept"], entry["looked_at"] = len(kept), looked_at
        return new, stays, entry

    def judge(self, new: Field) -> _Judged:
        """The verdict of the held-out windows of every tile on the original map with the field ``new``."""
        joint = joined(self.original, new)
        spacing = np.array(self.grid.spacing)
        sure, rise, total = {}, {}, np.zeros(5)
        for i, tile in enumerate(self.seen):
            if len(tile.judges) < FEW:
                continue
            y = torch.from_numpy(tile.judges)
            moved = self.transform.points(joint.inverse().points(y)).numpy() - tile.judges
            pixels = moved / spacing
            before, after = correlations(tile.surfaces, pixels)
            chance = np.minimum(2**0.5 * tile.chance[:, 0], np.linalg.norm(pixels, axis=1) * tile.chance[:, 1]) ** 2
            sure[i] = float((after - before).sum()) / max(math.sqrt(chance.sum()), 1e-9)
            rise[i] = float((after - before).mean())
            total += [before.sum(), after.sum(), len(before), chance.sum(), (tile.chance[:, 0] ** 2).sum()]
        return _Judged(sure, rise, *total)

    def _measured(self, status: dict[int, str]) -> list[Evidence]:
        """The measurements of each tile, with errors of at least `FLOOR` pixels; tiles without structure get a status."""
        found = []
        for i, tile in enumerate(self.seen):
            if not status[i] and (len(tile.places) < FEW or len(tile.judges) < FEW):
                status[i] = "without structure"
            if status[i]:
                continue
            z, d = self._toward(tile.places, tile.shifts)
            sd = np.maximum(tile.sd, FLOOR * self.grid.pixel) * self._zoom
            found.append(Evidence(z, d, sd, np.full(len(z), i), np.zeros(len(z), dtype=np.bool_)))
        return found

    def _proposed(
        self, measured: list[Evidence], status: dict[int, str]
    ) -> tuple[Field | None, list[int], list[Evidence]]:
        """The field of the tiles that it improves, the numbers of these tiles, and evidence that holds the map elsewhere.

        Tiles that the field made worse are held at the unrefined map, and get a status.
        """
        kept: list[int] = []
        held: list[Evidence] = []
        if not measured:
            return None, kept, held
        everything = Evidence.of(self.pool + measured)
        choice = self.process.choose(everything, math.sqrt(2) * WINDOW * self.grid.pixel * self._zoom)
        new = None if choice is None else self.process.gentle(everything, *choice)
        if new is None or choice is None:
            return None, kept, held
        judged = self.judge(new)
        kept = [i for i, z in judged.sure.items() if not status[i] and z >= GAIN and judged.rise[i] >= SLIGHT]
        new = self._fitted(measured, kept, held, choice)
        for _ in range(HOLDINGS):
            if new is None:
                break
            judged = self.judge(new)
            at = {int(evidence.tile[0]) for evidence in held}
            worse = [i for i, z in judged.sure.items() if z <= -GAIN and judged.rise[i] <= -SLIGHT and i not in at]
            if not worse:
                break
            kept = [i for i in kept if i not in worse]
            held += [self._held(i) for i in worse]
            status |= dict.fromkeys(worse, "worse")
            new = self._fitted(measured, kept, held, choice)
        return new, kept, held

    def _fitted(
        self, measured: list[Evidence], kept: list[int], held: list[Evidence], choice: tuple[float, float]
    ) -> Field | None:
        """The field fitted to the tiles ``kept`` and to what is held; None without tiles.

        ``choice`` is the correlation length and the prior deviation.
        """
        chosen = _of_tiles(measured, kept)
        return self.process.gentle(Evidence.of([*self.pool, *chosen, *held]), *choice) if chosen else None

    def _held(self, i: int) -> Evidence:
        """Evidence that the map is right as it is, at the judging windows of tile ``i``."""
        places = self.seen[i].judges
        z, d = self._toward(places, np.zeros_like(places))
        sd = np.full_like(d, HELD_SD * self.grid.pixel * self._zoom)
        return Evidence(z, d, sd, np.full(len(z), i), np.ones(len(z), dtype=np.bool_))

    def _toward(self, places: Array, shifts: Array) -> tuple[Array, Array]:
        """Positions of ``places`` ``[N, D]`` in the space of the field, and the displacements it should have there ``[N, D]``.

        With these displacements the map takes to ``places`` what it now takes to ``places + shifts``.
        """
        head, tail = self._ends
        z = tail.inverse().points(torch.from_numpy(places)).numpy()
        x = self.transform.inverse().points(torch.from_numpy(places + shifts))
        for part in head:
            x = part.points(x)
        return z, x.numpy() - z

    def _told(self, judged: _Judged, measured: list[Evidence]) -> dict[str, Any]:
        """The record of a round: mean correlation of held-out windows before and after; errors of the map, in the fixed unit."""
        moved = np.concatenate(
            [np.linalg.norm(m.d - (0 if self.field is None else self.field.at(m.z)), axis=1) for m in measured]
        )
        return {
            "correlation": [float(judged.before / judged.windows), float(judged.after / judged.windows)],
            "shift": {
                "median": float(np.median(moved)) / self._zoom,
                "p90": float(np.quantile(moved, 0.9)) / self._zoom,
                "max": float(moved.max()) / self._zoom,
            },
        }


def _of_tiles(evidence: list[Evidence], tiles_: list[int]) -> list[Evidence]:
    """The evidence that came from the given tiles."""
    return [item for item in evidence if int(item.tile[0]) in set(tiles_)]


# ------------------------------------------------------------------------------------------------------------- before


def _look(result: Result, fixed: Pyramid, moving: Pyramid, coarse: float) -> Look:
    """The weights of the channels and the tissue mask, from the whole images at the resolution of the registration.

    The weights are those under which the structure finer than `FINE` pixels correlates most: the first pair of canonical
    variables (Hotelling 1936), which does not depend on colours or on an inverted contrast.
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
        torch.stack([without_mean(c, FINE) * seen for c in side]).reshape(len(side), -1).to(torch.float64)
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


def _rim(grid: Grid) -> Tensor:
    """Positions ``[4, 2]`` of a canvas' corners."""
    low = [o - s / 2 for o, s in zip(grid.origin, grid.spacing, strict=True)]
    high = [a + e for a, e in zip(low, grid.extent, strict=True)]
    return torch.tensor([[y, x] for y in (low[0], high[0]) for x in (low[1], high[1])], dtype=torch.float64)


def _figures(transform: Transform, result: Result) -> dict[str, Any]:
    """The entries of ``metrics.json`` that a refinement changes: round trip and change of area."""
    grid = result.fixed_grid
    if math.prod(grid.shape) > MOST_POSITIONS:
        factor = math.sqrt(math.prod(grid.shape) / MOST_POSITIONS)
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
