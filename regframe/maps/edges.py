"""Carries shapes through a map, and adds vertices to edges where the map bends them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data import Grid
from .affine import Affine
from .base import Transform
from .displacement import Displacement
from .flow import Flow
from .pieces import Pieces, in_pieces
from .sequence import in_a_row
from .shapes import _CHUNK, MAX_VERTICES, POINTS, RING, Shapes, _Rounder, _runs

TOLERANCE = 0.1
"""Largest distance of a straight edge from the mapped edge, in pixels of the destination, unless the caller says otherwise: too
little to see."""
_ROUNDS = 24
"""Largest number of times that an interval of an edge is halved: an interval of a thousand pixels is then far shorter than a
thousandth of one."""


def move_shapes(
    shapes: Shapes,
    transform: Transform,
    grid: Grid,
    tolerance: float = TOLERANCE,
    max_vertices: int = MAX_VERTICES,
) -> Shapes:
    """``shapes`` carried by ``transform``: exact vertex positions in the target's unit; nothing else changes.

    Vertices are added to an edge where the straight chord would leave the mapped edge by more than ``tolerance``. An edge that
    two polygons share gets the same new vertices in both. An affine map needs none. A mirroring map reverses the orientation
    of rings; they are reversed back (keeping their first vertex), so that orientations stay as they were.

    Args:
        shapes: positions in the source space, in its unit; see `Shapes.to_positions`.
        transform: a map of two dimensions.
        grid: canvas of the target space; its pixel is the unit of the tolerance.
        tolerance: largest distance between chord and mapped edge, in pixels of ``grid``.
        max_vertices: largest number of vertices in the result, and of positions that are mapped along edges.

    Raises ValueError where dimensions or units do not fit or the limit is exceeded.
    """
    if transform.ndim != 2 or grid.ndim != 2:
        raise ValueError(f"wanted a map of 2 dimensions for shapes, got {transform.ndim}; move them as points instead")
    if shapes.unit != transform.source_unit or grid.unit != transform.target_unit:
        raise ValueError(
            f"wanted shapes in {transform.source_unit} and a grid in {transform.target_unit} for this map, "
            f"got {shapes.unit} and {grid.unit}; state the spacing"
        )
    if not (math.isfinite(tolerance) and tolerance > 0):
        raise ValueError(f"wanted a positive tolerance in pixels, got {tolerance}")
    if len(shapes.coords) > max_vertices:
        raise ValueError(f"wanted at most {max_vertices} vertices, got {len(shapes.coords)}; split {shapes.name!r}")
    moved = transform.points(shapes.coords)
    if in_pieces(transform):
        moved = _on_pieces(shapes, transform, moved)
        # an edge that crosses a seam goes straight from the one piece to the other; where it leaves the pieces, the nearest leads
        transform = in_a_row(part.filled() if isinstance(part, Pieces) else part for part in transform.parts())
    if not bool(torch.isfinite(moved).all()):
        raise ValueError(f"wanted vertices that the map takes somewhere, got NaN for some of {shapes.name!r}")
    out = shapes.replace(coords=moved, unit=transform.target_unit)
    step = _step(transform, shapes)
    if step is not None:
        out = _densified(shapes, out, transform, step, tolerance * grid.pixel, max_vertices)
    if not _keeps_boxes(transform):
        out = out.replace(document=_Rounder().document(out.document))
    return _closed(_turned_back(out, shapes.areas()))


def _on_pieces(shapes: Shapes, transform: Transform, moved: Tensor) -> Tensor:
    """The moved vertices ``[N, 2]``; ValueError, which names a place, where some lie on a piece without a partner."""
    lost = torch.nonzero(~torch.isfinite(moved).all(dim=1) & torch.isfinite(shapes.coords).all(dim=1))[:, 0]
    if len(lost):
        y, x = shapes.coords[lost[0]].tolist()
        raise ValueError(
            f"wanted shapes on pieces that have a partner, got {len(lost)} of {len(moved)} vertices of {shapes.name!r} on pieces "
            f"that have none, the first at y {y:.6g}, x {x:.6g} {shapes.unit}; leave these shapes out"
        )
    return moved


# ---- edges that bend ----------------------------------------------------------------------------------------------


class _Edges(NamedTuple):
    """Edges that are mapped together: their ends before and after the map, ``[E, 2]`` each."""

    start: Tensor
    end: Tensor
    moved_start: Tensor
    moved_end: Tensor


def _step(transform: Transform, shapes: Shapes) -> float | None:
    """Initial distance of positions along an edge, in the source unit; None for a map that does not bend.

    It is a quarter of the distance of the nodes that define the bend, so that no node is missed between two positions.
    """
    step, scale = math.inf, 1.0
    for part in transform.parts():
        if isinstance(part, Affine):
            scale *= float(torch.linalg.matrix_norm(part.matrix[:2, :2], ord=2))
        elif isinstance(part, (Flow, Displacement)):
            step = min(step, min(part.grid.spacing) / 4 / max(scale, 1e-300))
        elif isinstance(part, Pieces):  # a pixel of its labels, so that no piece is passed over
            inner = [found for one in part.maps if (found := _step(one, shapes)) is not None]
            step = min(step, min([*part.source.grid.spacing, *inner]) / max(scale, 1e-300))
        elif len(shapes.coords):  # a map of another kind has no nodes: a 1024th of the shapes' extent
            size = float((shapes.coords.amax(dim=0) - shapes.coords.amin(dim=0)).max())
            step = min(step, max(size, 1e-300) / 1024)
    return None if math.isinf(step) else step


def _densified(
    shapes: Shapes, moved: Shapes, transform: Transform, step: float, tolerance: float, max_vertices: int
) -> Shapes:
    """``moved`` with the vertices added that its edges need to follow the map within ``tolerance`` (target unit)."""
    n = shapes.offsets.diff()
    path = torch.repeat_interleave(torch.arange(len(n)), n)  # [N]
    edges = torch.nonzero((path[1:] == path[:-1]) & (shapes.kinds[path[:-1]] != POINTS))[
        :, 0
    ]  # [E] first vertex of each
    a, b = shapes.coords[edges], shapes.coords[edges + 1]
    pieces = (torch.linalg.vector_norm(b - a, dim=-1) / step).ceil().clamp(min=1.0)  # [E] intervals to begin with
    if float(pieces.sum()) > max_vertices:
        raise ValueError(
            f"wanted at most {max_vertices} positions to look at along the edges of {shapes.name!r}, "
            f"got {float(pieces.sum()):.3g}; check its unit, or raise the limit"
        )
    # an edge is always mapped in one direction, so that two neighbours that share it get equal vertices and no gap
    swapped = (a[:, 0] > b[:, 0]) | ((a[:, 0] == b[:, 0]) & (a[:, 1] > b[:, 1]))
    begin, end = edges + swapped.long(), edges + (~swapped).long()
    found: list[
        tuple[Tensor, Tensor, Tensor]
    ] = []  # per new vertex: vertex before it, place on the edge 0 … 1, position
    total, chunk = len(shapes.coords), (pieces.cumsum(0) / _CHUNK).long()
    for first, count in _runs(chunk):
        here = slice(first, first + count)
        part = _Edges(shapes.coords[begin[here]], shapes.coords[end[here]], moved.coords[begin[here]],
                      moved.coords[end[here]])  # fmt: skip
        edge, t, position = _bends(part, transform, pieces[here].long(), tolerance)
        total += len(edge)
        if total > max_vertices:
            raise ValueError(
                f"wanted at most {max_vertices} vertices, got more along the bends of {shapes.name!r}; "
                "raise the tolerance or the limit"
            )
        found.append((edges[here][edge], torch.where(swapped[here][edge], 1 - t, t), position))
    if total == len(shapes.coords):
        return moved
    before, t, position = (torch.cat(columns) for columns in zip(*found, strict=True))
    order = np.lexsort((t.numpy(), before.numpy()))
    before, position = before[torch.from_numpy(order)], position[torch.from_numpy(order)]
    added = torch.bincount(before, minlength=len(path))  # [N] vertices put behind each
    shift = added.cumsum(0) - added
    coords = torch.empty((total, 2), dtype=torch.float64)
    kept = torch.arange(len(path)) + shift
    coords[kept] = moved.coords
    coords[torch.arange(len(before)) + before + 1] = position
    offsets = torch.cat([shapes.offsets[:1], (added.cumsum(0) + torch.arange(1, len(path) + 1))])[shapes.offsets]
    extra = dict(shapes.extra)
    if extra:
        extra = _spread(shapes, moved.coords, coords, kept.tolist())
    return moved.replace(coords=coords, offsets=offsets, extra=extra)


def _spread(shapes: Shapes, moved: Tensor, coords: Tensor, kept: list[int]) -> dict[int, tuple[float, ...]]:
    """The extra coordinates (beyond x and y) by new vertex number.

    Old vertices keep theirs; new ones are interpolated along an edge that has extra coordinates at both ends.
    """
    extra = {kept[i]: values for i, values in shapes.extra.items()}
    for i, low in shapes.extra.items():
        high = shapes.extra.get(i + 1)
        if high is None or i + 1 >= len(kept) or len(high) != len(low) or kept[i + 1] == kept[i] + 1:
            continue
        line = coords[kept[i] : kept[i + 1] + 1]
        along = torch.linalg.vector_norm(line.diff(dim=0), dim=-1).cumsum(0)
        for k in range(kept[i] + 1, kept[i + 1]):
            t = float(along[k - kept[i] - 1] / along[-1].clamp_min(1e-300))
            extra[k] = tuple(p + t * (q - p) for p, q in zip(low, high, strict=True))
    return extra


def _bends(edges: _Edges, transform: Transform, pieces: Tensor, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """The new vertices of edges: number of the edge, place along it (0 … 1), mapped position; sorted by edge and place.

    Edges are sampled until the polyline through the mapped samples is within half of the tolerance everywhere. Then samples are
    dropped as long as every sample stays within the other half of the polyline through those that are kept.
    """

    def at(edge: Tensor, t: Tensor) -> Tensor:
        return transform.points(edges.start[edge] + t[:, None] * (edges.end - edges.start)[edge])

    interval = torch.repeat_interleave(torch.arange(len(pieces)), pieces)
    rank = torch.arange(len(interval)) - (pieces.cumsum(0) - pieces)[interval]
    t0, t1 = rank / pieces[interval], (rank + 1) / pieces[interval]
    t0, t1 = t0.to(torch.float64), t1.to(torch.float64)
    inner = rank > 0
    p0 = edges.moved_start[interval]
    p0[inner] = at(interval[inner], t0[inner])
    p1 = edges.moved_end[interval]
    p1[:-1][inner[1:]] = p0[1:][inner[1:]]
    samples = [(interval[inner], t0[inner], p0[inner])]
    for _ in range(_ROUNDS):
        middle = (t0 + t1) / 2
        p = at(interval, middle)
        samples.append((interval, middle, p))
        # a quarter, not half: a kink beside the middle can be twice as far from the chord as the middle is
        rough = _distance(p, p0, p1) > tolerance / 4
        if not bool(rough.any()):
            break
        interval, t0, t1, middle, p0, p1, p = (v[rough] for v in (interval, t0, t1, middle, p0, p1, p))
        interval = torch.cat([interval, interval])
        t0, t1, p0, p1 = torch.cat([t0, middle]), torch.cat([middle, t1]), torch.cat([p0, p]), torch.cat([p, p1])
    edge, t, p = (torch.cat(columns) for columns in zip(*samples, strict=True))
    far = torch.zeros(len(pieces), dtype=torch.bool)
    far[edge[_distance(p, edges.moved_start[edge], edges.moved_end[edge]) > tolerance / 2]] = True
    edge, t, p = edge[far[edge]], t[far[edge]], p[far[edge]]
    order = torch.from_numpy(np.lexsort((t.numpy(), edge.numpy())))
    edge, t, p = edge[order], t[order], p[order]
    keep = _fewest(edge, p, edges.moved_start, edges.moved_end, tolerance / 2)
    return edge[keep], t[keep], p[keep]


def _fewest(edge: Tensor, p: Tensor, start: Tensor, end: Tensor, tolerance: float) -> Tensor:
    """Which samples ``p`` ``[M, 2]`` to keep, ``[M]`` bool, so that all lie within ``tolerance`` of the line through these.

    Douglas-Peucker: each stretch is split at its farthest sample until all of it is close enough; all edges at once.
    """
    keep = torch.zeros(len(p), dtype=torch.bool)
    number = torch.arange(len(p))
    stretch, a, b = edge, start, end  # [M] number of the stretch that a sample is in; both ends of every stretch
    while len(number):
        distance = _distance(p[number], a[stretch], b[stretch])
        worst = torch.zeros(len(a), dtype=torch.float64).scatter_reduce(0, stretch, distance, "amax")
        active = worst[stretch] > tolerance
        number, stretch, distance = number[active], stretch[active], distance[active]
        if not len(number):
            break
        peak = distance == worst[stretch]
        first = torch.full((len(a),), len(p)).scatter_reduce(0, stretch[peak], number[peak], "amin")
        keep[first[first < len(p)]] = True
        at = first[stretch]  # where the stretch of each sample is split
        used, rank = torch.unique(stretch, return_inverse=True)
        behind = number > at
        rest = number != at
        middle = p[first[used]]
        a = torch.stack([a[used], middle], dim=1).reshape(-1, 2)
        b = torch.stack([middle, b[used]], dim=1).reshape(-1, 2)
        number, stretch = number[rest], (2 * rank + behind.long())[rest]
    return keep


def _distance(p: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Distance ``[N]`` of positions ``p`` from the segments ``a`` – ``b``, all ``[N, 2]``."""
    line = b - a
    t = ((p - a) * line).sum(dim=-1) / (line * line).sum(dim=-1).clamp_min(1e-300)
    distance: Tensor = torch.linalg.vector_norm(p - a - t.clamp(0, 1)[:, None] * line, dim=-1)
    return distance


def _turned_back(shapes: Shapes, areas: Tensor) -> Shapes:
    """Rings whose signed area has another sign than in ``areas`` ``[P]``, reversed while keeping their first vertex."""
    flipped = shapes.areas() * areas < 0
    if not bool(flipped.any()):
        return shapes
    path = torch.repeat_interleave(torch.arange(len(flipped)), shapes.offsets.diff())
    index = torch.arange(len(shapes.coords))
    mirrored = (shapes.offsets[:-1] + shapes.offsets[1:] - 1)[path] - index
    index = torch.where(flipped[path], mirrored, index)
    extra = {}
    if shapes.extra:
        extra = {new: shapes.extra[old] for new, old in enumerate(index.tolist()) if old in shapes.extra}
    return shapes.replace(coords=shapes.coords[index], extra=extra)


def _closed(shapes: Shapes) -> Shapes:
    """Rings with the last vertex equal to the first, to the bit."""
    ring = torch.nonzero((shapes.kinds == RING) & (shapes.offsets.diff() > 0))[:, 0]
    coords = shapes.coords.clone()
    coords[shapes.offsets[ring + 1] - 1] = coords[shapes.offsets[ring]]
    return shapes.replace(coords=coords)


def _keeps_boxes(transform: Transform) -> bool:
    """Whether upright boxes stay upright under the map: affine, without shear, turned by multiples of 90 degrees at most."""
    parts = [part for part in transform.parts() if isinstance(part, Affine)]
    if len(parts) < len(transform.parts()):
        return False
    linear = torch.eye(2, dtype=torch.float64)
    for part in parts:
        linear = part.matrix[:2, :2] @ linear
    size = float(linear.abs().max()) * 1e-9
    off, on = linear.flip(0).diagonal().abs(), linear.diagonal().abs()
    return bool((off < size).all() or (on < size).all())
