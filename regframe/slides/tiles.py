"""Computes one tile of a warped large image: which level to read, which chunks of it, the warped pixels, their halving.

Nothing here depends on how the target is cut into tiles: every pixel is the one that `regframe.resample` of the whole image
gives.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data import Grid, Level, Pyramid
from ..maps.affine import Affine
from ..maps.base import Transform
from ..maps.bends import carried_length
from ..maps.displacement import Displacement
from ..maps.flow import Flow
from ..maps.pieces import Pieces
from ..maps.resample import Part, Tile, resample_part

Array = NDArray[Any]
_Slices = tuple[slice, ...]

_SPLIT = 8
"""Number of boxes per axis in which the source region of a tile is bounded. Smaller boxes have tighter bounds; 64 of them cost
far less than decoding one chunk."""
_NODES_AT_ONCE = 1 << 18
"""Nodes whose steps are looked at together."""
_MARGIN = 2
"""Width in pixels of the margin around the exact bounds: one pixel for interpolation, one for rounding."""
_BAND = 1 << 26
"""Bytes of a finer level, as float64, that are averaged at once; bounds the memory of a worker."""
_TOLERANCE = 1.01
"""Ratio of two pixel sizes below which they count as equal, because the sizes stated in files are rounded."""


def needed(pyramid: Pyramid, pull: Transform, spacing: tuple[float, ...]) -> float:
    """Distance of the target's pixels in the image, in pixels of its finest level.

    Args:
        pyramid: the image.
        pull: map from target positions to image positions.
        spacing: pixel size of the target, in its unit.
    """
    return carried_length(math.prod(spacing) ** (1 / len(spacing)), pull) / pyramid.grid.pixel


def choose(pyramid: Pyramid, step: float) -> Level:
    """The coarsest level whose pixels are at most ``step`` pixels of the finest level.

    It is averaged where its pixels are at most half of that.
    """
    relative = [level.grid.pixel / pyramid.grid.pixel for level in pyramid.levels]
    fitting = [i for i, size in enumerate(relative) if size <= step * _TOLERANCE]
    index = max(fitting, key=lambda i: relative[i]) if fitting else 0
    factor = math.floor(step / relative[index] * _TOLERANCE)
    return pyramid.levels[index] if factor < 2 else averaged(pyramid.levels[index], factor, pyramid.labels)


def averaged(level: Level, factor: int, labels: bool = False) -> Level:
    """A level with ``factor`` times fewer pixels per axis: the mean of each block, or its first pixel where values are ids.

    Blocks are counted from the first pixel of the level; the last block of an axis may be smaller.
    """
    ndim = level.grid.ndim
    coarse = level.grid.in_blocks((factor,) * ndim, (0.0 if labels else (factor - 1) / 2,) * ndim)
    chunk = (level.chunk[0], *(max(1, n // factor) for n in level.chunk[1:]))
    return Level(coarse, chunk, functools.partial(_read_averaged, level, factor, labels))


def _read_averaged(level: Level, factor: int, labels: bool, region: _Slices) -> Array:
    fine = [slice(r.start * factor, min(r.stop * factor, n)) for r, n in zip(region, level.grid.shape, strict=True)]
    row = math.prod(s.stop - s.start for s in fine[1:]) * 8 * level.chunk[0]
    band = max(1, _BAND // max(1, row * factor))  # number of coarse rows computed at once
    parts = []
    for start in range(region[0].start, region[0].stop, band):
        stop = min(start + band, region[0].stop)
        rows = slice(start * factor, min(stop * factor, level.grid.shape[0]))
        pixels = level.read((rows, *fine[1:]))
        parts.append(_block_mean(pixels, factor, labels))
    return np.concatenate(parts, axis=1)


def _block_mean(pixels: Array, factor: int, labels: bool) -> Array:
    """Block means of ``[C, *S]``, axis by axis in float64, so that they do not depend on how the image is cut into bands.

    Rounded to even for integer pixels. (Images for registration are averaged by `regframe.slides.levels`, with exact sums.)
    """
    if labels:
        return pixels[(slice(None), *(slice(None, None, factor),) * (pixels.ndim - 1))]
    out = pixels.astype(np.float64)
    for axis in range(1, pixels.ndim):
        starts = np.arange(0, out.shape[axis], factor)
        counts = np.diff(np.append(starts, out.shape[axis]))
        shape = [1] * out.ndim
        shape[axis] = -1
        out = np.add.reduceat(out, starts, axis=axis) / counts.reshape(shape)
    return (out if pixels.dtype.kind == "f" else np.rint(out)).astype(pixels.dtype)


# --------------------------------------------------------------------------------------------------------- source boxes


def source_boxes(pull: Transform, grid: Grid, region: _Slices, source: Grid) -> NDArray[np.int64]:
    """Boxes ``[N, 2, D]`` of first and last index in ``source`` that hold everything the pixels of ``region`` need.

    Each box belongs to one part of the region. Bounds follow by interval arithmetic over the map's nodes, plus `_MARGIN`
    pixels. Boxes may reach beyond the source.
    """
    edges = [
        np.unique(np.linspace(r.start, r.stop, min(_SPLIT, r.stop - r.start) + 1).astype(np.int64)) for r in region
    ]
    corners = np.stack(np.meshgrid(*[e[:-1] for e in edges], indexing="ij"), axis=-1).reshape(-1, grid.ndim)
    ends = np.stack(np.meshgrid(*[e[1:] - 1 for e in edges], indexing="ij"), axis=-1).reshape(-1, grid.ndim)
    spacing, origin = np.array(grid.spacing), np.array(grid.origin)
    low, high = origin + spacing * corners, origin + spacing * ends  # [N, D] positions
    for part in pull.parts():
        low, high = _carry_boxes(part, low, high)
    spacing, origin = np.array(source.spacing), np.array(source.origin)
    low, high = (low - origin) / spacing, (high - origin) / spacing
    far = 2.0**40  # beyond any image, and still a whole number in int64
    low, high = np.clip(np.floor(low), -far, far), np.clip(np.ceil(high), -far, far)
    return np.stack([low - _MARGIN, high + _MARGIN], axis=1).astype(np.int64)


def _carry_boxes(part: Transform, low: Array, high: Array) -> tuple[Array, Array]:
    """Boxes ``[N, D]`` (lower and upper corners) that contain the mapped boxes."""
    if isinstance(part, Affine):
        matrix = part.matrix.numpy()
        centre, half = (low + high) / 2, (high - low) / 2
        centre = centre @ matrix[:-1, :-1].T + matrix[:-1, -1]
        half = half @ np.abs(matrix[:-1, :-1]).T
        return centre - half, centre + half
    if isinstance(part, Pieces):
        return _boxes_of_pieces(part, low, high)
    if isinstance(part, Displacement):
        nodes = _Nodes(part.field.numpy(), part.grid, -1.0 if part.inverted else 1.0)
        return _step_boxes(nodes, low, high, implicit=part.inverted)
    if isinstance(part, Flow):
        steps = part.n_steps or 1
        n_slices = part.velocity.shape[0]
        sign = -1.0 if part.reverse else 1.0
        order = range(steps - 1, -1, -1) if part.reverse else range(steps)
        for step in order:
            nodes = _Nodes(part.velocity[step * n_slices // steps].numpy(), part.grid, sign / steps)
            low, high = _step_boxes(nodes, low, high, implicit=not part.reverse)
        return low, high
    raise ValueError(
        f"wanted a map made of Affine, Flow and Displacement, got {type(part).__name__}; take it to a displacement first"
    )


def _boxes_of_pieces(part: Pieces, low: Array, high: Array) -> tuple[Array, Array]:
    """Boxes that contain the mapped boxes: one for each piece that a box has a position of; none for a box without a map."""
    found: list[tuple[Array, Array]] = [(np.zeros((0, low.shape[1])), np.zeros((0, low.shape[1])))]
    for a, b in zip(low, high, strict=True):
        for k in part.source.present(torch.from_numpy(a), torch.from_numpy(b)):
            ends = a[None], b[None]
            for each in part.maps[k].parts():
                ends = _carry_boxes(each, *ends)
            found.append(ends)
    return np.concatenate([one for one, _ in found]), np.concatenate([other for _, other in found])


@dataclasses.dataclass(frozen=True)
class _Nodes:
    """The steps of a flow or displacement: ``factor`` times ``field`` ``[D, *S]`` on the nodes of ``grid``, zero off the grid."""

    field: Array
    grid: Grid
    factor: float

    def bounds(self, low: Array, high: Array) -> tuple[Array, Array]:
        """Smallest and largest step over boxes ``[N, D]``, each ``[N, D]``.

        Within a multilinear cell all values lie between those of its nodes.
        """
        spacing, origin = np.array(self.grid.spacing), np.array(self.grid.origin)
        shape = np.array(self.grid.shape)
        first = np.clip(np.floor((low - origin) / spacing - 1e-6), -1, shape).astype(np.int64)
        last = np.clip(np.ceil((high - origin) / spacing + 1e-6), -1, shape).astype(np.int64)
        spans = (last - first + 1).max(axis=0, initial=1)
        least, most = np.zeros_like(low), np.zeros_like(low)
        few = max(1, _NODES_AT_ONCE // int(spans.prod()))
        for i in range(0, len(low), few):
            some = slice(i, i + few)
            least[some], most[some] = self._extremes(first[some], last[some], spans)
        least, most = least * self.factor, most * self.factor
        return np.minimum(least, most), np.maximum(least, most)

    def _extremes(self, first: Array, last: Array, spans: Array) -> tuple[Array, Array]:
        """Smallest and largest value ``[N, D]`` of nodes ``first`` to ``last`` ``[N, D]``, at most ``spans`` ``[D]`` of them; off
        the grid they are zero."""
        known = np.ones((len(first), *(1,) * len(spans)), dtype=bool)
        places: list[Array] = []
        for d, (n, span) in enumerate(zip(self.grid.shape, spans, strict=True)):
            at = first[:, d, None] + np.arange(span)  # [N, K]
            wide = (len(at), *(span if axis == d else 1 for axis in range(len(spans))))
            known = known & ((at >= 0) & (at < n) & (at <= last[:, d, None])).reshape(wide)
            places.append(at.clip(0, n - 1).reshape(wide))
        values = np.stack([component[tuple(places)] for component in self.field]).astype(np.float64)  # [D, N, *K]
        axes = tuple(range(2, values.ndim))
        lo, hi = (
            extreme(np.where(known, values, of_none), axis=axes).T
            for extreme, of_none in ((np.min, np.inf), (np.max, -np.inf))
        )
        none = ~known.any(axis=tuple(range(1, known.ndim)))
        lo[none], hi[none] = 0.0, 0.0
        beyond = (first < 0).any(axis=1) | (last >= np.array(self.grid.shape)).any(axis=1)
        lo[beyond], hi[beyond] = np.minimum(lo[beyond], 0), np.maximum(hi[beyond], 0)
        return lo, hi


def _step_boxes(nodes: _Nodes, low: Array, high: Array, implicit: bool) -> tuple[Array, Array]:
    """Boxes that contain ``x + step(x)`` for x in the given boxes; where ``implicit``, the solutions of ``y - step(y) = x``."""
    if not implicit:
        least, most = nodes.bounds(low, high)
        return low + least, high + most
    extremes = nodes.field.reshape(low.shape[1], -1)
    ends = np.stack([np.minimum(0, extremes.min(axis=1)), np.maximum(0, extremes.max(axis=1))]) * nodes.factor
    a, b = low + ends.min(axis=0), high + ends.max(axis=0)
    for _ in range(3):  # every round starts from a box that contains the solution and shrinks it to another such box
        least, most = nodes.bounds(a, b)
        a, b = low + least, high + most
    return a, b


# ------------------------------------------------------------------------------------------------------------ one tile


def warp_tile(
    source: Level,
    pull: Transform,
    grid: Grid,
    region: _Slices,
    labels: bool,
    background: float | None,
    device: torch.device | str = "cpu",
) -> Array | None:
    """The pixels ``[C, *region]`` of the target, carried on ``device``, or None where all of them are background.

    Only those chunks of ``source`` are read that the boxes of the region touch.
    """
    shape = np.array(source.grid.shape)
    boxes = source_boxes(pull, grid, region, source.grid)  # [N, 2, D]
    if len(boxes) == 0:  # all of it belongs to pieces without a partner
        return None
    if background is not None or labels:
        boxes = boxes[((boxes[:, 1] >= 0) & (boxes[:, 0] < shape)).all(axis=1)]
        if len(boxes) == 0:
            return None
    boxes = np.clip(boxes, 0, shape - 1)
    boxes[:, 0] = np.minimum(
        boxes[:, 0], np.maximum(shape - 2, 0)
    )  # the kernel needs two pixels per axis where they exist
    boxes[:, 1] = np.maximum(boxes[:, 1], np.minimum(boxes[:, 0] + 1, shape - 1))
    part, start = read_boxes(source, boxes)
    tile = Tile(grid, tuple(r.start for r in region), tuple(r.stop - r.start for r in region))
    pixels = Part(torch.from_numpy(part), source.grid, start)
    return resample_part(pixels, pull, tile, labels, background, device).numpy()


def read_boxes(source: Level, boxes: NDArray[np.int64]) -> tuple[Array, tuple[int, ...]]:
    """The pixels of boxes ``[N, 2, D]`` (first and last index) in one array ``[C, *part]``; and the index of its first pixel.

    Chunks that no box touches are not read; the array is undefined there.
    """
    low, high = boxes[:, 0].min(axis=0), boxes[:, 1].max(axis=0) + 1
    start = tuple(int(v) for v in low)
    runs = list(_runs(boxes, low, np.array(source.chunk[1:])))
    if len(runs) == 1:
        region = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        return _writeable(source.read(region)), start
    part: Array | None = None
    for first, last in runs:
        a, b = np.maximum(first, low), np.minimum(last, high)
        pixels = source.read(tuple(slice(int(i), int(j)) for i, j in zip(a, b, strict=True)))
        if part is None:
            part = np.zeros((pixels.shape[0], *(high - low)), _native(pixels.dtype))
        part[(slice(None), *(slice(int(i), int(j)) for i, j in zip(a - low, b - low, strict=True)))] = pixels
    assert part is not None
    return part, start


def _runs(boxes: NDArray[np.int64], low: Array, chunk: Array) -> Iterator[tuple[Array, Array]]:
    """Rectangles of whole chunks (first and last-plus-one pixel) that cover the boxes.

    They are runs of chunks along the last axis; equal runs in neighbouring rows are merged.
    """
    first = low // chunk
    count = boxes[:, 1].max(axis=0) // chunk - first + 1
    wanted = np.zeros(tuple(count), dtype=bool)
    for box in boxes:
        a, b = box // chunk - first
        wanted[tuple(slice(int(i), int(j) + 1) for i, j in zip(a, b, strict=True))] = True
    if wanted.all():
        yield first * chunk, (first + count) * chunk
        return
    flat = wanted.reshape(-1, wanted.shape[-1])
    row = 0
    while row < len(flat):
        stop = row + 1
        if wanted.ndim == 2:  # in 3D, neighbours in the flat order need not be neighbours
            while stop < len(flat) and (flat[stop] == flat[row]).all():
                stop += 1
        lead = np.array(np.unravel_index(row, wanted.shape[:-1]))
        edges = np.flatnonzero(np.diff(np.concatenate([[0], flat[row].astype(np.int8), [0]])))
        for a, b in edges.reshape(-1, 2):
            begin = np.append(lead, a)
            end = np.append(lead + 1, b)
            end[0] += stop - row - 1
            yield (first + begin) * chunk, (first + end) * chunk
        row = stop


def _native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype == np.bool_:
        return np.dtype(np.uint8)
    return np.dtype(np.float32) if dtype == np.float16 else dtype.newbyteorder("=")


def _writeable(pixels: Array) -> Array:
    """The pixels as a writeable array, which torch requires."""
    out = np.ascontiguousarray(pixels.astype(_native(pixels.dtype), copy=False))
    return out if out.flags.writeable else out.copy()


# --------------------------------------------------------------------------------------------------------- the pyramid


def halved_grid(grid: Grid, labels: bool) -> Grid:
    """The grid of the pixels that `halved` computes from pixels on ``grid``."""
    return grid.in_blocks((2,) * grid.ndim, [0.0 if labels or n == 1 else 0.5 for n in grid.shape])


def halved(pixels: Array, labels: bool) -> Array:
    """Means over 2 × 2 pixels of ``[C, y, x]``, rounded to even for integers; of labels every second pixel.

    A last odd row or column is averaged by itself.
    """
    if labels:
        return np.ascontiguousarray(pixels[:, ::2, ::2])
    odd = [n % 2 for n in pixels.shape]
    if odd[1] or odd[2]:
        pixels = np.pad(pixels, [(0, 0), (0, odd[1]), (0, odd[2])], mode="edge")
    channels, height, width = pixels.shape
    out = np.empty((channels, height // 2, width // 2), pixels.dtype)
    if pixels.dtype not in (np.uint8, np.uint16):
        blocks = pixels.reshape(channels, height // 2, 2, width // 2, 2)
        for c in range(channels):
            mean = blocks[c].mean(axis=(1, 3), dtype=np.float64)
            out[c] = mean if pixels.dtype.kind == "f" else np.rint(mean)
        return out
    # read two neighbouring pixels as one integer of twice the bits, so that all arrays are contiguous
    bits = 8 * pixels.dtype.itemsize
    pairs: Any = np.ascontiguousarray(pixels).view(np.uint16 if bits == 8 else np.uint32)  # [C, y, x / 2]
    mask = pairs.dtype.type((1 << bits) - 1)
    rows = max(1, (1 << 15) // max(1, width))  # rows summed at once: few enough for the sums to stay in cache
    for c in range(channels):
        for start in range(0, height // 2, rows):
            block = pairs[c, 2 * start : 2 * (start + rows)]
            total = (block & mask) + (block >> bits)
            total = total[::2] + total[1::2]
            rounding = (total >> 2) & 1
            rounding += total
            rounding += 1  # half goes to even: 4q + 2 goes up for odd q only
            rounding >>= 2
            out[c, start : start + rows] = rounding
    return out
