"""The smooth field that a refinement adds to a map: a Gaussian process through the displacements of the windows, on nodes.

Where a constant names no source, neither a paper nor a calibration is recorded for it; ``benchmarks/bench_refine.py`` measures
what they achieve together.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import splu
from torch import Tensor

from ..data import Grid
from ..maps import homogeneous
from ..maps.affine import Affine
from ..maps.base import Transform
from ..maps.bends import split_last
from ..maps.flow import Flow
from ..maps.sequence import Sequence

Array = NDArray[np.float64]
LENGTHS = (1.5, 3.0, 6.0, 12.0, 24.0, 48.0)
"""Correlation lengths of the field that are tried, in distances between windows: from hardly smooth to nearly affine."""
DEVIATIONS = (1.0, 4.0, 16.0)
"""Prior standard deviations of the field that are tried, over the robust root mean square of the measured displacements."""
FOLDS = 6
"""Number of parts into which the windows are divided for cross-validation; two of them are predicted, each from all other
windows."""
NODES = 3
"""Nodes per correlation length along each axis; the field is linear between two nodes."""
MOST_NODES = 60_000
"""Largest number of nodes of the field, to bound the time of a factorisation; correlation lengths that need more are skipped."""
STEEP = 0.3
"""Largest difference of the field between neighbouring nodes, over their distance. Below 1/2 every Euler step is invertible;
the margin allows for the map's own bend."""
FREEDOM = 4.0
"""Degrees of freedom of Student's t for the measured displacements: heavy tails, because some windows are found in a wrong
place."""


# ------------------------------------------------------------------------------------------------------------ the field


@dataclass(frozen=True)
class Field:
    """The displacement that a refinement adds: ``z -> z + d(z)``, in the space between the map's flow and its last affine part.

    It is directed from the fixed to the moving side: a fixed position first goes through the inverse affine part, then from
    ``z`` to ``z + d(z)``, then through the inverse flow.

    Args:
        values: ``d`` at the nodes ``[D, *S]``.
        grid: grid of the nodes.
    """

    values: Tensor
    grid: Grid

    def at(self, z: Array) -> Array:
        """``d`` at positions ``[N, D]``."""
        matrix = between_nodes(z, self.grid)
        return np.stack([matrix @ v.reshape(-1).numpy() for v in self.values.to(torch.float64)], axis=1)


def joined(transform: Transform, field: Field) -> Transform:
    """``transform`` with the field added: as one more time slice of its flow, or as a flow of its own where it has none."""
    head, tail = split_last(transform)
    added = Flow((-field.values)[None].to(torch.float32), field.grid)
    if not head:
        return Sequence((added, tail))
    base = head[-1]
    if not isinstance(base, Flow) or base.reverse:
        return Sequence((*head, added, tail))
    velocity, grid = _onto(base, field.grid)
    n, slices = base.n_steps or 1, base.velocity.shape[0]
    each = n // slices  # Euler steps per time slice
    steps = n + each
    share = steps / n  # factor on velocities: steps are shorter in time now, but have to displace as far as before
    values = field.values
    for _ in range(
        3 if each > 1 else 0
    ):  # adjust the velocity until several short steps together displace by the field
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
    """The velocity of a flow ``[T, D, *S]`` (float64) on finer nodes that include both its own nodes and ``nodes``; and their
    grid.

    The result is exact, because ``nodes`` divide the flow's own cells evenly (see `nodes_of`).
    """
    times = [max(1, round(c / s)) for c, s in zip(flow.grid.spacing, nodes.spacing, strict=True)]
    # add a node of zeros on every side: beyond its nodes the velocity fades to zero over one of its own cells
    padded = F.pad(flow.velocity.to(torch.float64), [1, 1] * flow.ndim)
    shape = [(n - 1) * t + 1 for n, t in zip(padded.shape[2:], times, strict=True)]
    mode = "bilinear" if flow.ndim == 2 else "trilinear"
    fine = F.interpolate(padded, size=shape, mode=mode, align_corners=True)
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


def nodes_of(head: tuple[Transform, ...], low: Array, high: Array, wanted: float, unit: str) -> Grid:
    """A grid of nodes at most ``wanted`` apart over a box, with two nodes to spare on each side.

    Where the map has a flow, the nodes divide the cells of its velocity evenly.
    """
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


def between_nodes(z: Array, grid: Grid) -> Any:
    """The sparse matrix ``[N, nodes]`` of multilinear interpolation from nodes to positions ``[N, D]``; zero off the grid."""
    index = (z - np.array(grid.origin)) / np.array(grid.spacing)
    shape = np.array(grid.shape)
    floor = np.floor(index).astype(np.int64)
    rows, columns, values = [], [], []
    for corner in itertools.product((0, 1), repeat=grid.ndim):
        node = floor + corner
        share = np.prod(np.where(np.array(corner) == 1, index - floor, 1 - (index - floor)), axis=1)
        inside = ((node >= 0) & (node < shape)).all(axis=1)
        rows.append(np.flatnonzero(inside))
        columns.append(np.ravel_multi_index(tuple(node[inside].T), grid.shape))
        values.append(share[inside])
    return sparse.csr_matrix(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=(len(z), int(shape.prod()))
    )


def _operator(grid: Grid, length: float) -> Any:
    """The operator ``L = id - a² Δ`` on the nodes, a sparse matrix ``[nodes, nodes]`` with no flow across the border."""
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
    """Displacements that the field should have at some positions.

    Args:
        z: the positions ``[N, D]``.
        d: the displacements ``[N, D]``.
        sd: their standard deviations ``[N, D]``.
        tile: number of the tile that each came from ``[N]``.
        held: whether each was set to keep the map as it is, rather than measured ``[N]``.
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
        """Several pieces of evidence joined into one."""
        given = list(parts)
        return cls(*(np.concatenate([getattr(p, f.name) for p in given]) for f in dataclasses.fields(cls)))


class Process:
    """The posterior mean of a Gaussian process given evidence, with the covariance that belongs to ``L⁻²`` (Matérn, ν = 1).

    It minimises ``Σ |d(z_i) - d_i|² w_i / s_i² + |L d|² h² / (4π a² σ²)``. The weights ``w`` follow from Student's distribution
    and give up windows that were found in a wrong place (Lange, Little & Taylor 1989).

    Args:
        head: the parts of the refined map before its last affine maps; the nodes divide the cells of a flow among them.
        low: lower corner ``[D]`` of the box that nodes cover.
        high: upper corner ``[D]`` of the box.
        unit: length unit of the box and of displacements.
        floor: least standard deviation of a window's displacement, in ``unit``.
    """

    def __init__(self, head: tuple[Transform, ...], low: Array, high: Array, unit: str, floor: float) -> None:
        self.head, self.low, self.high, self.unit, self.floor = head, low, high, unit, floor

    def choose(self, evidence: Evidence, pitch: float) -> tuple[float, float] | None:
        """The correlation length and prior deviation under which windows predict each other best; None where they predict
        nothing.

        Args:
            evidence: the measured displacements.
            pitch: distance between windows, the unit of `LENGTHS`.
        """
        spread = _spread(evidence.d)
        if not spread > 0:
            return None
        lengths = [
            k * pitch
            for k in LENGTHS
            if math.prod(nodes_of(self.head, self.low, self.high, k * pitch / NODES, self.unit).shape) <= MOST_NODES
        ] or [LENGTHS[-1] * pitch]
        middle = DEVIATIONS[len(DEVIATIONS) // 2]
        scores = [self._foretold(evidence, length, middle * spread) for length in lengths]
        length = lengths[int(np.argmin(scores))]
        others = [min(scores) if k == middle else self._foretold(evidence, length, k * spread) for k in DEVIATIONS]
        return length, DEVIATIONS[int(np.argmin(others))] * spread

    def gentle(self, evidence: Evidence, length: float, deviation: float) -> Field | None:
        """The field, with a longer correlation length where it would be steeper than `STEEP`; None where that does not help."""
        for _ in range(4):
            field, _noise = self.fit(evidence, length, deviation)
            if steepest(field) < STEEP:
                return field
            length *= 2
        return None

    def _foretold(self, evidence: Evidence, length: float, deviation: float) -> float:
        """Cross-validation error of a field: the summed distance between predicted and measured displacements (smaller is
        better).

        Every `FOLDS`-th window is predicted from all others, for two of the folds.
        """
        score = 0.0
        for fold in (0, FOLDS // 2):
            fitted = (np.arange(len(evidence.z)) % FOLDS != fold) | evidence.held
            if fitted.any() and not fitted.all():
                rest = evidence[~fitted]
                off = rest.d - self.fit(evidence[fitted], length, deviation, turns=2)[0].at(rest.z)
                score += float(np.linalg.norm(off, axis=1).sum())
        return score

    def fit(self, evidence: Evidence, length: float, deviation: float, turns: int = 6) -> tuple[Field, float]:
        """The field for a correlation length and prior deviation; and the estimated noise that exceeds the windows' own."""
        grid = nodes_of(self.head, self.low, self.high, length / NODES, self.unit)
        matrix = between_nodes(evidence.z, grid)
        operator = _operator(grid, length)
        prior = (operator.T @ operator) * (math.prod(grid.spacing) / (4 * math.pi * length**2 * deviation**2))
        noise = deviation
        weight, sd = np.ones(len(evidence.z)), evidence.sd.max(axis=1)
        values = np.zeros((2, math.prod(grid.shape)))
        for _ in range(turns):
            precision = weight / (sd**2 + np.where(evidence.held, 0.0, noise**2))
            normal = (matrix.T @ sparse.diags(precision) @ matrix + prior).tocsc()
            # the matrix is symmetric and positive definite, so no pivoting is needed
            solver = splu(normal, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
            values = solver.solve(matrix.T @ (precision[:, None] * evidence.d)).T
            rest = evidence.d - np.stack([matrix @ v for v in values], axis=1)
            free = ~evidence.held
            if free.any():
                noise = max(1.4826 * float(np.median(np.abs(rest[free]))), self.floor)
                square = (rest**2).sum(axis=1) / (sd**2 + noise**2)
                weight = np.where(free, (FREEDOM + 2) / (FREEDOM + square), 1.0)
        return Field(torch.from_numpy(values.reshape(2, *grid.shape)), grid), noise


def length_before(tail: Affine) -> float:
    """Source units per target unit of an affine map: the root of its change of area, or of volume in 3D, inverted."""
    volume = float(homogeneous.determinant(tail.matrix).abs())
    return math.exp(-math.log(volume) / tail.ndim)


def _spread(d: Array) -> float:
    """Robust root mean square of displacements ``[N, D]`` about zero."""
    return 1.4826 * float(np.median(np.abs(d)))


def steepest(field: Field) -> float:
    """Largest difference of any component of the field between neighbouring nodes, over their distance."""
    changes: list[float] = [
        float(field.values.diff(dim=1 + d).abs().amax()) / s for d, s in enumerate(field.grid.spacing)
    ]
    return max(changes)
