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
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse.linalg import splu
from skimage.filters import threshold_otsu
from torch import Tensor

from . import tiles
from .data import Grid, Level, Pyramid
from .fit.halvings import soften
from .fit.likeness import BESIDE, CORRELATION_LIMIT
from .fit.mixture import flattest
from .fit.uncertainty import FLOOR
from .fit.velocity import smooth_size
from .maps import homogeneous
from .maps.affine import Affine
from .maps.base import Transform
from .maps.flow import Flow
from .maps.sequence import Sequence
from .registration import CHANCE, Result
from .slide import place_pyramid

Array = NDArray[np.float64]

WINDOW = 128
"""Pixels along the sides of a window that is looked for."""
TILE = 8 * WINDOW
"""Pixels along the sides of a tile, the unit that is read at once, kept or rejected."""
SEARCH = 24
"""Pixels around its place in which a window is looked for."""
REACH = 3.0
"""Pixels of the level that was registered on by which its map may be off: that far is searched."""
STRIDE = 8
"""Times by which the resolution grows at most from one round to the next."""
BAND = 33
"""Pixels along the sides of the boxes whose mean is taken away from a window that is looked for: shading tells nothing."""
FINE = 9
"""The same of the windows that judge: fine structure alone, as in `likeness.shared_structure`."""
PEAK = 6.0
"""Standard deviations above the other places in its search range from which a window counts as found."""
GAIN = 3.0
"""Standard deviations above chance by which a tile's judges must be better for it to be kept, or worse for it to be held at
the map it came with."""
SLIGHT = 0.01
"""Rise of the correlation that a tile must gain besides, however certain it is."""
FEW = 2
"""Windows that must be found, and that must judge, for a tile to be kept."""
LENGTHS = (1.5, 3.0, 6.0, 12.0, 24.0, 48.0)
"""Correlation lengths of the field that are tried, in distances of windows."""
DEVIATIONS = (1.0, 4.0, 16.0)
"""Prior deviations of the field that are tried, in those of half of the windows."""
FOLDS = 6
"""Parts of the windows that are foretold, in turn, by the rest."""
NOISE = 0.1
"""Pixels by which a window is found elsewhere than its middle lies, at least: the map bends within it too."""
NODES = 3
"""Nodes per correlation length."""
MOST_NODES = 60_000
"""Nodes at most; longer correlations are tried alone where more were needed."""
STEEP = 0.3
"""Largest change of the field from node to node over their distance: every step stays invertible (1/2 is the limit)."""
LOOKED_AT = 24_000_000
"""Values of both sides that are looked at to choose how to look at them, at most."""
FREEDOM = 4.0
"""Degrees of freedom of the Student distribution that the evidence is taken to follow."""
Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Seen:
    """What one tile shows.

    Args:
        places: positions ``[N, D]`` of the middles of windows that were found, fixed space.
        shifts: ``[N, D]``, where the moving image's match lies from there, fixed unit.
        sd: ``[N, D]`` standard deviation per axis, fixed unit.
        judges: positions ``[M, D]`` of the middles of windows that judge.
        surfaces: ``[M, 2 SEARCH + 1, 2 SEARCH + 1]`` float16: their correlation by displacement in pixels of the level.
        chance: ``[M, 2]`` standard deviation of their correlation over all displacements, and of its change from one to the
            next pixel: what a displacement gains by chance.
        status: why there is nothing, or ``""``.
    """

    places: Array
    shifts: Array
    sd: Array
    judges: Array
    surfaces: NDArray[np.float16]
    chance: Array
    status: str = ""

    @classmethod
    def nothing(cls, status: str) -> Seen:
        """A tile that shows nothing, and why."""
        none, size = np.zeros((0, 2)), 2 * SEARCH + 1
        return cls(none, none, none, none, np.zeros((0, size, size), np.float16), none, status)


@dataclass(frozen=True)
class Look:
    """How both sides are looked at.

    Args:
        fixed: weight of each fixed channel ``[C_f]``.
        moving: weight of each moving channel ``[C_m]``; the two sums resemble each other most.
        tissue: mask ``[*S]`` of the fixed side.
        grid: of the mask.
    """

    fixed: Tensor
    moving: Tensor
    tissue: NDArray[np.bool_]
    grid: Grid


def refine(
    result: Result,
    fixed: Pyramid | Any,
    moving: Pyramid | Any,
    *,
    workers: int | None = None,
    progress: Report | None = None,
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
        progress: called with the round, the number of tiles looked at in it, and of all of them.

    Returns:
        The result with the refined map; ``metrics["refinement"]`` says what was done: ``rounds``, each with ``pixel`` (fixed
        unit), ``tiles``, ``kept``, ``rejected`` by reason, ``correlation`` of the held-out windows before and after,
        ``shift`` (median, p90 and largest; fixed unit) and ``seconds``.

    Raises:
        ValueError: for points and volumes, and for images that are not those of the result.
    """
    from . import plugins

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


def told(metrics: dict[str, Any]) -> list[str]:
    """What a refinement did, a sentence per round."""
    lines = []
    for entry in metrics["refinement"]["rounds"]:
        why = ", ".join(f"{n} {reason}" for reason, n in sorted(entry["rejected"].items()))
        line = f"pixels of {entry['pixel']:.4g}: {entry['kept']} of {entry['tiles']} tiles kept" + (
            f" ({why})" if why else ""
        )
        if entry["kept"]:
            before, after = entry["correlation"]
            line += (
                f"; fine structure of held-out windows {before:.2f} → {after:.2f}, "
                f"moved by {entry['shift']['median']:.3g} in the median"
            )
        lines.append(line)
    return lines


# ------------------------------------------------------------------------------------------------------------ the field


@dataclass(frozen=True)
class Field:
    """A displacement ``[D, *S]`` on nodes of the space between the map's flow and its affine part, against its direction.

    A fixed position first goes through the inverse affine part, then from ``z`` to ``z + d(z)``, then through the inverse flow.
    """

    values: Tensor
    grid: Grid

    def at(self, z: Array) -> Array:
        """``d`` at positions ``[N, D]``."""
        matrix = _weights(z, self.grid)
        return np.stack([matrix @ v.reshape(-1).numpy() for v in self.values.to(torch.float64)], axis=1)


def split(transform: Transform) -> tuple[tuple[Transform, ...], Affine]:
    """What comes before the last affine maps of a map (empty where it is nothing else), and these as one."""
    parts = transform.parts()
    head = list(parts)
    while head and isinstance(head[-1], Affine):
        head.pop()
    tail = Affine.identity(transform.ndim, transform.target_unit)
    if len(head) < len(parts):
        matrix = torch.eye(transform.ndim + 1, dtype=torch.float64)
        for part in parts[len(head) :]:
            assert isinstance(part, Affine)
            matrix = homogeneous.compose(part.matrix, matrix)
        tail = Affine(matrix, parts[len(head)].source_unit, transform.target_unit)
    return tuple(head), tail


def joined(transform: Transform, field: Field) -> Transform:
    """``transform`` with the field: one flow with a slice more where it has a flow, else with a flow of its own."""
    head, tail = split(transform)
    added = Flow((-field.values)[None].to(torch.float32), field.grid)
    if not head:
        return Sequence((added, tail))
    base = head[-1]
    if not isinstance(base, Flow) or base.reverse:
        return Sequence((*head, added, tail))
    velocity, grid = _onto(base, field.grid)
    n, slices = base.n_steps or 1, base.velocity.shape[0]
    each = n // slices  # steps of a slice
    steps = n + each
    share = steps / n  # the same displacement in a step that now is shorter
    values = field.values
    for _ in range(3 if each > 1 else 0):  # of several short steps, that end where the field says
        flow = Flow((-values)[None].to(torch.float32), field.grid, each, reverse=True)
        at = field.grid.coords()
        values = values + (field.values - (flow.points(at) - at).movedim(-1, 0))
    last = torch.zeros_like(velocity[0])
    first = [round((a - b) / s) for a, b, s in zip(field.grid.origin, grid.origin, grid.spacing, strict=True)]
    inner = tuple(slice(i, i + m) for i, m in zip(first, field.grid.shape, strict=True))
    last[(slice(None), *inner)] = -values * (steps / each)
    flow = Flow(torch.cat([velocity * share, last[None]]).to(torch.float32), grid, steps)
    return Sequence((*head[:-1], flow, tail))


def _onto(flow: Flow, nodes: Grid) -> tuple[Tensor, Grid]:
    """The velocity ``[T, D, *S]`` (float64) on nodes that hold both its own and ``nodes``, and these.

    Nothing is lost, as ``nodes`` divide the flow's own (`_nodes`).
    """
    times = [max(1, round(c / s)) for c, s in zip(flow.grid.spacing, nodes.spacing, strict=True)]
    # one more node of zeros on every side: the velocity fades over one of its own cells
    padded = F.pad(flow.velocity.to(torch.float64), [1, 1] * flow.ndim)
    shape = [(n - 1) * t + 1 for n, t in zip(padded.shape[2:], times, strict=True)]
    fine = F.interpolate(padded, size=shape, mode="bilinear", align_corners=True)
    origin = [o - s for o, s in zip(flow.grid.origin, flow.grid.spacing, strict=True)]
    spacing = flow.grid.spacing
    first = [round((o - a) / s) for o, a, s in zip(nodes.origin, origin, nodes.spacing, strict=True)]
    before = [max(0, -f) for f in first]
    after = [max(0, f + m - n) for f, m, n in zip(first, nodes.shape, shape, strict=True)]
    fine = F.pad(fine, [v for b, a in zip(reversed(before), reversed(after), strict=True) for v in (b, a)])
    own = tuple(s / t for s, t in zip(spacing, times, strict=True))
    grid = Grid(
        tuple(int(n) for n in fine.shape[2:]),
        own,
        tuple(o - s * b for o, s, b in zip(origin, own, before, strict=True)),
        flow.grid.unit,
    )
    return fine, grid


def _nodes(head: tuple[Transform, ...], low: Array, high: Array, wanted: float, unit: str) -> Grid:
    """Nodes no more than ``wanted`` apart that cover a box with two to spare; they divide those of the flow, if there is one."""
    base = head[-1] if head else None
    if isinstance(base, Flow) and not base.reverse:
        spacing = np.array([s / max(1, math.ceil(s / wanted)) for s in base.grid.spacing])
        origin = np.array(base.grid.origin)
    else:
        spacing, origin = np.full(len(low), wanted), low
    first = np.floor((low - origin) / spacing).astype(int) - 2
    last = np.ceil((high - origin) / spacing).astype(int) + 2
    return Grid(
        tuple(int(n) for n in last - first + 1),
        tuple(spacing.tolist()),
        tuple((origin + first * spacing).tolist()),
        unit,
    )


def _weights(z: Array, grid: Grid) -> Any:
    """Multilinear interpolation from the nodes to positions ``[N, 2]``, a sparse matrix ``[N, nodes]``; zero beyond them."""
    index = (z - np.array(grid.origin)) / np.array(grid.spacing)
    shape = np.array(grid.shape)
    floor = np.floor(index).astype(np.int64)
    rows, columns, values = [], [], []
    for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
        node = floor + corner
        share = np.prod(np.where(np.array(corner) == 1, index - floor, 1 - (index - floor)), axis=1)
        inside = ((node >= 0) & (node < shape)).all(axis=1)
        rows.append(np.flatnonzero(inside))
        columns.append(node[inside, 0] * shape[1] + node[inside, 1])
        values.append(share[inside])
    return sparse.csr_matrix(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=(len(z), int(shape.prod()))
    )


def _operator(grid: Grid, length: float) -> Any:
    """``L = id - a² Δ`` on the nodes ``[nodes, nodes]``, no flow across the rim."""
    lines: list[Any] = []
    for n, s in zip(grid.shape, grid.spacing, strict=True):
        diagonal: Any = np.full(n, 2.0)
        diagonal[[0, -1]] = 1.0
        lines.append(sparse.diags([diagonal, -np.ones(n - 1), -np.ones(n - 1)], [0, 1, -1]) * (length / s) ** 2)
    one, other = lines
    return (
        sparse.identity(math.prod(grid.shape))
        + sparse.kron(one, sparse.identity(grid.shape[1]))
        + sparse.kron(sparse.identity(grid.shape[0]), other)
    )


@dataclass(frozen=True)
class Evidence:
    """Displacements ``d`` ``[N, D]`` that the field should have at ``z`` ``[N, D]``, with standard deviations ``sd`` ``[N, D]``.

    ``tile`` ``[N]`` says where each came from, ``held`` ``[N]`` whether it is sure and was not measured.
    """

    z: Array
    d: Array
    sd: Array
    tile: NDArray[np.int64]
    held: NDArray[np.bool_]

    def __getitem__(self, rows: NDArray[Any]) -> Evidence:
        return Evidence(self.z[rows], self.d[rows], self.sd[rows], self.tile[rows], self.held[rows])

    @classmethod
    def of(cls, parts: Iterable[Evidence]) -> Evidence:
        """Several as one."""
        given = list(parts)
        return cls(*(np.concatenate([getattr(p, f.name) for p in given]) for f in dataclasses.fields(cls)))


class Process:
    """The posterior mean of a Gaussian process given evidence, with the covariance that belongs to ``L⁻²`` (Matérn, ν = 1).

    ``Σ |d(z_i) - d_i|² w_i / s_i² + |L d|² h² / (4π a² σ²)`` is least; the weights ``w`` are those of Student's distribution, so
    that windows which were found in a wrong place do not count (Lange, Little & Taylor 1989).

    Args:
        head: of the map, for where its nodes are.
        low: of the box that nodes cover.
        high: likewise.
        unit: of it.
        floor: noise that a window has at least.
    """

    def __init__(self, head: tuple[Transform, ...], low: Array, high: Array, unit: str, floor: float) -> None:
        self.head, self.low, self.high, self.unit, self.floor = head, low, high, unit, floor

    def choose(self, evidence: Evidence, pitch: float) -> tuple[float, float] | None:
        """The correlation length and prior deviation under which windows best foretell each other; None where they say nothing.

        Lengths are tried in units of ``pitch``, the distance of windows.
        """
        spread = _spread(evidence.d)
        if not spread > 0:
            return None
        lengths = [
            k * pitch
            for k in LENGTHS
            if math.prod(_nodes(self.head, self.low, self.high, k * pitch / NODES, self.unit).shape) <= MOST_NODES
        ] or [LENGTHS[-1] * pitch]
        middle = DEVIATIONS[len(DEVIATIONS) // 2]
        scores = [self._foretold(evidence, length, middle * spread) for length in lengths]
        length = lengths[int(np.argmin(scores))]
        others = [min(scores) if k == middle else self._foretold(evidence, length, k * spread) for k in DEVIATIONS]
        return length, DEVIATIONS[int(np.argmin(others))] * spread

    def gentle(self, evidence: Evidence, length: float, deviation: float) -> Field | None:
        """The field, of longer correlation where it would be too steep; None where even that does not help."""
        for _ in range(4):
            field, _noise = self.fit(evidence, length, deviation)
            if _steepest(field) < STEEP:
                return field
            length *= 2
        return None

    def _foretold(self, evidence: Evidence, length: float, deviation: float) -> float:
        """How badly a field foretells windows that it was not fitted to, every `FOLDS`-th: their distance, summed, twice."""
        score = 0.0
        for fold in (0, FOLDS // 2):
            fitted = (np.arange(len(evidence.z)) % FOLDS != fold) | evidence.held
            if fitted.any() and not fitted.all():
                rest = evidence[~fitted]
                off = rest.d - self.fit(evidence[fitted], length, deviation, turns=2)[0].at(rest.z)
                score += float(np.linalg.norm(off, axis=1).sum())
        return score

    def fit(self, evidence: Evidence, length: float, deviation: float, turns: int = 6) -> tuple[Field, float]:
        """The field of a correlation length and prior deviation, and the noise beyond the evidence's own that was found."""
        grid = _nodes(self.head, self.low, self.high, length / NODES, self.unit)
        matrix = _weights(evidence.z, grid)
        operator = _operator(grid, length)
        prior = (operator.T @ operator) * (math.prod(grid.spacing) / (4 * math.pi * length**2 * deviation**2))
        noise = deviation
        weight, sd = np.ones(len(evidence.z)), evidence.sd.max(axis=1)
        values = np.zeros((2, math.prod(grid.shape)))
        for _ in range(turns):
            precision = weight / (sd**2 + np.where(evidence.held, 0.0, noise**2))
            normal = (matrix.T @ sparse.diags(precision) @ matrix + prior).tocsc()
            # symmetric and positive: without pivoting
            solver = splu(normal, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
            values = solver.solve(matrix.T @ (precision[:, None] * evidence.d)).T
            rest = evidence.d - np.stack([matrix @ v for v in values], axis=1)
            free = ~evidence.held
            if free.any():
                noise = max(1.4826 * float(np.median(np.abs(rest[free]))), self.floor)
                square = (rest**2).sum(axis=1) / (sd**2 + noise**2)
                weight = np.where(free, (FREEDOM + 2) / (FREEDOM + square), 1.0)
        return Field(torch.from_numpy(values.reshape(2, *grid.shape)), grid), noise


def _zoom(tail: Affine) -> float:
    """Length before an affine map over that after it."""
    return 1 / math.sqrt(float(homogeneous.determinant(tail.matrix).abs()))


def _spread(d: Array) -> float:
    """Robust root mean square of displacements ``[N, D]`` about zero."""
    return 1.4826 * float(np.median(np.abs(d)))


def _steepest(field: Field) -> float:
    changes: list[float] = [
        float(field.values.diff(dim=1 + d).abs().amax()) / s for d, s in enumerate(field.grid.spacing)
    ]
    return max(changes)


# ---------------------------------------------------------------------------------------------------------- the rounds


def _rounds(
    result: Result, fixed: Pyramid, moving: Pyramid, coarse: float, workers: int, progress: Report | None
) -> tuple[Field | None, list[dict[str, Any]]]:
    """The field, or None where nothing was kept, and what was done.

    ``coarse`` is the pixel of the registration, in those of the finest level.
    """
    head, tail = split(result.transform)
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
        name = f"pixels of {level.grid.pixel:.4g} {level.grid.unit}"
        seen: list[Seen] = [Seen.nothing("")] * len(places)
        pull = transform.inverse()
        source = tiles.choose(moving, tiles.needed(moving, pull, level.grid.spacing))

        def task(index: int, level: Level = level, source: Level = source, pull: Transform = pull,
                 places: list[tuple[slice, slice]] = places) -> Seen:  # fmt: skip
            return _tile(level, source, moving.grid, pull, places[index], look)

        for done, (index, found) in enumerate(_spread_over(task, len(places), workers), start=1):
            seen[index] = found
            if progress is not None:
                progress(name, done, len(places))
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
    head, tail = split(original)
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


def _correlations(surfaces: NDArray[np.float16], moved: Array) -> tuple[Array, Array]:
    """Correlation of windows ``[M, R, R]`` without and with a displacement ``[M, 2]`` in pixels, that is held within `SEARCH`."""
    before = surfaces[:, SEARCH, SEARCH].astype(np.float64)
    after = np.empty(len(surfaces))
    for i, (surface, shift) in enumerate(zip(surfaces, moved, strict=True)):
        at = np.clip(SEARCH + shift, 0, 2 * SEARCH)
        first = np.clip(np.floor(at).astype(int) - 4, 0, 2 * SEARCH - 8)
        part = surface[first[0] : first[0] + 9, first[1] : first[1] + 9].astype(np.float64)
        after[i] = ndimage.map_coordinates(part, (at - first)[:, None], order=3, mode="nearest")[0]
    return before, after


# ----------------------------------------------------------------------------------------------------------- one tile


def _tile(level: Level, source: Level, moving: Grid, pull: Transform, region: tuple[slice, slice], look: Look) -> Seen:
    """What a tile of the fixed level shows of where the moving image lies."""
    grid = level.grid
    counts = [(r.stop - r.start) // WINDOW for r in region]
    wide = tuple(
        slice(max(0, r.start - SEARCH - BAND), min(n, r.stop + SEARCH + BAND))
        for r, n in zip(region, grid.shape, strict=True)
    )
    # windows as [row, column] of the tile, and whether both they and their search range lie on the moving image
    starts = np.array([(region[0].start + i * WINDOW, region[1].start + j * WINDOW)
                       for i in range(counts[0]) for j in range(counts[1])]).reshape(-1, 2)  # fmt: skip
    within = ((starts >= SEARCH) & (starts + WINDOW + SEARCH <= np.array(grid.shape))).all(axis=1)
    steps = np.array(
        [(a, b) for a in (-SEARCH, WINDOW // 2, WINDOW + SEARCH) for b in (-SEARCH, WINDOW // 2, WINDOW + SEARCH)]
    )
    at = (starts[:, None] + steps) * np.array(grid.spacing) + np.array(grid.origin)  # [N, 9, 2]
    within &= moving.contains(pull.points(torch.from_numpy(at))).all(dim=1).numpy()
    if not within.any():
        return Seen.nothing("at the rim of an image")
    pixels = tiles.warp_tile(source, pull, grid, wide, False, None)
    if pixels is None:
        return Seen.nothing("at the rim of an image")
    other = _projected(pixels, look.moving)
    one = _projected(level.read(wide), look.fixed)
    del pixels
    first = np.array([w.start for w in wide])
    middles = (starts + (WINDOW - 1) / 2) * np.array(grid.spacing) + np.array(grid.origin)
    parity = (starts // WINDOW).sum(axis=1) % 2 == 0
    places, shifts, sds = [], [], []
    chosen = np.flatnonzero(within & parity)
    a, b = (soften(_without_mean(image, BAND)[None])[0] for image in (one, other))
    for i, surface in zip(chosen, _surfaces(a, b, starts[chosen] - first), strict=True):
        found = _peak(surface)
        if found is not None:
            places.append(middles[i])
            shifts.append(found[0] * np.array(grid.spacing))
            sds.append(found[1] * np.array(grid.spacing))
    judging = np.flatnonzero(within & ~parity)
    a, b = (_without_mean(image, FINE) for image in (one, other))
    judges, tables, chances = [], [], []
    for i, surface in zip(judging, _surfaces(a, b, starts[judging] - first), strict=True):
        chance = _deviation(surface)
        if chance > 0:
            judges.append(middles[i])
            tables.append(surface.astype(np.float16))
            chances.append((chance, max(_deviation(np.diff(surface, axis=d)) for d in (0, 1))))
    size = 2 * SEARCH + 1
    return Seen(
        np.array(places).reshape(-1, 2),
        np.array(shifts).reshape(-1, 2),
        np.array(sds).reshape(-1, 2),
        np.array(judges).reshape(-1, 2),
        np.array(tables, dtype=np.float16).reshape(-1, size, size),
        np.array(chances).reshape(-1, 2),
    )


def _deviation(values: NDArray[np.float32]) -> float:
    """Standard deviation of values but for the few that stand out."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


def _projected(pixels: NDArray[Any], weight: Tensor) -> Tensor:
    """The weighted sum ``[H, W]`` of channels ``[C, H, W]``."""
    out = torch.zeros(pixels.shape[1:])
    for channel, w in zip(pixels, weight.tolist(), strict=True):
        out.add_(torch.from_numpy(channel.astype(np.float32)), alpha=w)
    return out


def _without_mean(image: Tensor, size: int) -> Tensor:
    """``[H, W]`` less its mean over boxes of ``size`` pixels about every one."""
    return image - torch.from_numpy(ndimage.uniform_filter(image.numpy(), size, mode="nearest"))


def _surfaces(one: Tensor, other: Tensor, starts: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
    """Normalised cross-correlation ``[2 R + 1, 2 R + 1]`` of windows of ``one`` with ``other``, by displacement of the latter."""
    n = smooth_size(WINDOW + 2 * SEARCH)
    span = 2 * SEARCH + 1
    for y, x in starts.tolist():
        f = one[y : y + WINDOW, x : x + WINDOW]
        m = other[y - SEARCH : y + WINDOW + SEARCH, x - SEARCH : x + WINDOW + SEARCH]
        f = f - f.mean()
        m = m - m.mean()
        product = torch.fft.irfft2(torch.fft.rfft2(f, s=(n, n)).conj() * torch.fft.rfft2(m, s=(n, n)), s=(n, n))[
            :span, :span
        ]
        sums = [F.pad(v.to(torch.float64), (1, 0, 1, 0)).cumsum(0).cumsum(1) for v in (m, m * m)]
        total, square = (
            s[WINDOW:, WINDOW:] - s[:-WINDOW, WINDOW:] - s[WINDOW:, :-WINDOW] + s[:-WINDOW, :-WINDOW] for s in sums
        )
        spread = (square - total**2 / WINDOW**2).clamp(min=0).sqrt() * float(f.norm())
        found = torch.where(spread > 1e-6 * WINDOW**2, product / spread.clamp(min=1e-12), 0.0)
        yield found.to(torch.float32).numpy()


def _peak(surface: NDArray[np.float32]) -> tuple[Array, Array] | None:
    """Displacement ``[2]`` of the highest place of a surface, to a fraction of a pixel, and its standard deviation per axis; None
    where it stands out too little or lies at the rim.

    From the parabola through the nine values there, and the Cramér–Rao bound of a shift: with ``n`` independent pixels, a
    correlation ``r`` that falls with the Hessian ``-H`` has the information ``n r (-H) / (1 - r²)``.
    """
    y, x = np.unravel_index(int(surface.argmax()), surface.shape)
    size = surface.shape[0]
    if min(y, x) < 1 or max(y, x) > size - 2:
        return None
    r = float(surface[y, x])
    rows, columns = np.ogrid[:size, :size]
    elsewhere = surface[(abs(rows - y) > BESIDE) | (abs(columns - x) > BESIDE)]
    if not elsewhere.std() > 0 or r - elsewhere.mean() < PEAK * elsewhere.std():
        return None
    p = surface[y - 1 : y + 2, x - 1 : x + 2].astype(np.float64)
    slope = np.array([(p[2] - p[0]).sum() / 6, (p[:, 2] - p[:, 0]).sum() / 6])
    cross = (p[2, 2] + p[0, 0] - p[2, 0] - p[0, 2]) / 4
    curve = np.array(
        [[(p[2] + p[0] - 2 * p[1]).sum() / 3, cross], [cross, (p[:, 2] + p[:, 0] - 2 * p[:, 1]).sum() / 3]]
    )
    if np.linalg.eigvalsh(curve)[-1] >= -1e-6:
        return None
    step = -np.linalg.solve(curve, slope)
    if np.abs(step).max() > 1:
        return None
    information = -curve * (WINDOW**2 / CORRELATION_LIMIT) * r / max(1 - r * r, 1e-3)
    deviation = np.sqrt(np.diag(np.linalg.inv(information)))
    return np.array([y - size // 2, x - size // 2]) + step, deviation


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
    _, tail = split(transform)
    area = (back.jacobian_determinant(grid) * abs(float(torch.linalg.det(tail.matrix[:2, :2]))))[seen]
    return {
        "roundtrip_px": {"mean": float(error.mean()), "max": float(error.max())},
        "jacobian_min": float(area.min()),
        "jacobian_max": float(area.max()),
        "folding_fraction": float((area <= 0).to(torch.float32).mean()),
    }


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
