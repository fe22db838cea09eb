"""The pieces of tissue on a slide: sections, cores of a microarray, torn parts; and the grid that cores lie on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu

from ..data import Grid, Image
from ..solvers.preparation import prepare

Floats = NDArray[np.float64]
Labels = NDArray[np.int32]

LOOKED_AT = 4_000_000
"""Pixels of the picture in which pieces are looked for, at most: a gap of a few pixels between two torn parts has to be seen."""
FAINT = 0.4
"""Distance from the background's colour, over Otsu's threshold between background and tissue, from which a pixel is tissue: the
palest made cores have 0.7 of that threshold, glass between two torn parts that are three pixels apart 0.2."""
NOISE = 5.0
"""The same in standard deviations of the background's own distances: below lies its noise."""
BIT = 0.06
"""Area under which a connected bit of tissue is no piece of its own, over that of the median piece that is larger than a tenth of
the largest. Debris beside the made and the real slides covers 2 % at most, the least core of a microarray that could be
registered an eighth."""
NEAR = 0.12
"""Distance up to which a bit belongs to the nearest piece, over that piece's diameter; farther ones are dropped."""
JOINED = 0.004
"""Radius by which fluorescent tissue is closed, over the picture's diagonal: nuclei that lie beside each other are one piece.
Sections in transmitted light are one anyway, and are not closed: a tear may be a few pixels wide."""
FEWEST = 6
"""Cores of the smallest grid that is found by itself: four sections on a slide may lie in a square."""
ASTRAY = 0.3
"""Distance from its node, over the pitch, up to which a core lies on a grid."""
TOUCHING = 12
"""Times that tissue is eroded by a 60th of its diameter until it falls into as many pieces as are asked for."""


@dataclass(frozen=True)
class Piece:
    """One piece of tissue.

    Args:
        number: from 1, in the order of reading.
        centre: of its tissue, ``(y, x)`` in the unit of its side.
        area: of its tissue, in that unit squared.
        box: around it, in pixels of `Found.labels`.
        place: row and column on the grid of cores, from 0; None where there is no grid.
    """

    number: int
    centre: tuple[float, float]
    area: float
    box: tuple[slice, slice]
    place: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """``R2C5`` on a grid, else the number."""
        return str(self.number) if self.place is None else place_name(self.place)

    @property
    def diameter(self) -> float:
        """Of a disc of its area."""
        return 2 * math.sqrt(self.area / math.pi)


@dataclass(frozen=True)
class Found:
    """The pieces of one side.

    Args:
        pieces: in the order of their numbers.
        labels: number of the piece ``[h, w]`` at each pixel, 0 beside all.
        grid: of ``labels``.
        density: distance from the background's colour ``[h, w]``, over that of the tissue; 0 where the side has no weight.
        background: colour ``[C]`` of the background.
        rows: of the grid of cores; 0 where there is none.
        columns: likewise.
    """

    pieces: tuple[Piece, ...]
    labels: Labels
    grid: Grid
    density: NDArray[np.float32]
    background: tuple[float, ...]
    rows: int = 0
    columns: int = 0

    def mask(self, number: int) -> NDArray[np.bool_]:
        """Pixels ``[h, w]`` of a piece."""
        return np.asarray(self.labels == number)


def place_name(place: tuple[int, int]) -> str:
    """``R2C5`` for row 1 and column 4."""
    return f"R{place[0] + 1}C{place[1] + 1}"


def find(image: Image, most: int | None = None, rows: int = 0, columns: int = 0) -> Found:
    """The pieces of tissue on a slide.

    Args:
        image: the slide, 2D.
        most: number of pieces to keep, the largest ones; None keeps all that are found. Where fewer are found, tissue that
        touches is parted at its narrowest places, as far as it falls into that many pieces.
        rows: of a grid of cores that is known to be there; 0 looks for one.
        columns: likewise.

    Raises ValueError for a slide without tissue, and where no grid is found that was said to be there.
    """
    mask, density, grid, background = tissue(image)
    labels = _pieces(mask, None if rows else most)
    number = int(labels.max())
    if number == 0:
        raise ValueError(
            f"wanted tissue on {image.name}, got none that differs from its background; crop it, or mask it"
        )
    pieces = _listed(labels, grid)
    laid = _laid(pieces, rows, columns) if most is None or rows else None
    if rows and laid is None:
        raise ValueError(
            f"wanted cores on a grid of {rows} x {columns} on {image.name}, got {len(pieces)} pieces that lie on none; "
            "take --pieces auto"
        )
    if laid is None:
        return Found(tuple(pieces), labels, grid, density, background)
    return _on_grid(Found(tuple(pieces), labels, grid, density, background), laid)


def tissue(image: Image) -> tuple[NDArray[np.bool_], NDArray[np.float32], Grid, tuple[float, ...]]:
    """Where there is tissue ``[h, w]``, its density ``[h, w]``, their grid of about `LOOKED_AT` pixels, the background's
    colour."""
    prepared, look = prepare(image)
    step = max(1, math.ceil(math.sqrt(math.prod(image.grid.shape) / LOOKED_AT)))
    data = prepared.data.to(torch.float32)
    # an even, pale core of a colour of its own looks like ink; a stroke of ink that is taken for a piece finds no partner
    trusted = image.weight if look.ink_fraction > 0 else prepared.weight
    weight = None if trusted is None else trusted.to(torch.float32)[None]
    grid = image.grid
    if step > 1:
        data, weight = _thinned(data, step), None if weight is None else _thinned(weight, step)
        grid = grid.in_blocks((step, step), ((step - 1) / 2,) * 2)
    background = torch.tensor(look.background)
    apart = (data - background[:, None, None]).norm(dim=0)
    if weight is not None:
        apart = apart * (weight[0] > 0.5)
    smooth = ndimage.gaussian_filter(apart.numpy(), 1.0)
    if not smooth.max() > smooth.min():
        return np.zeros(smooth.shape, dtype=bool), smooth, grid, look.background
    otsu = float(threshold_otsu(smooth))  # type: ignore[no-untyped-call]
    glass = smooth[smooth < otsu * FAINT]
    usual = float(np.median(glass)) if glass.size else 0.0
    noise = 1.4826 * float(np.median(np.abs(glass - usual))) if glass.size else 0.0
    mask = smooth > max(otsu * FAINT, min(usual + NOISE * noise, otsu))
    if not look.brightfield:
        radius = JOINED * math.hypot(*mask.shape)
        far = ndimage.distance_transform_edt(~mask)
        mask = ndimage.distance_transform_edt(far <= radius) > radius
    scale = max(float(np.quantile(smooth[mask], 0.95)), 1e-12) if mask.any() else 1.0
    return mask, (apart.numpy() / scale).astype(np.float32), grid, look.background


def _thinned(data: torch.Tensor, step: int) -> torch.Tensor:
    """Means over blocks of ``step`` pixels per axis of ``[C, H, W]``; the last block of an axis may be smaller."""
    out: torch.Tensor = torch.nn.functional.avg_pool2d(data[None], step, ceil_mode=True, count_include_pad=False)[0]
    return out


def _pieces(mask: NDArray[np.bool_], most: int | None) -> Labels:
    """Number of the piece at each pixel ``[h, w]``, in the order of reading, 0 beside all."""
    opened = ndimage.binary_opening(mask, np.ones((3, 3), dtype=bool))
    whole = ndimage.binary_fill_holes(opened)
    labels, _ = ndimage.label(whole)
    labels = _without_bits(labels.astype(np.int32))
    if most is not None and labels.max() < most:
        labels = _parted(labels, most)
    if most is not None and labels.max() > most:
        areas = np.bincount(labels.ravel())[1:]
        kept = np.sort(np.argsort(-areas, kind="stable")[:most]) + 1
        labels = _renumbered(labels, kept)
    return labels


def _without_bits(labels: Labels) -> Labels:
    """The labels with small bits joined to the piece that they lie beside, or dropped."""
    areas = np.bincount(labels.ravel()).astype(np.float64)
    areas[0] = 0
    if areas.max() == 0:
        return labels
    usual = float(np.median(areas[areas > areas.max() / 10]))
    large = np.flatnonzero(areas >= max(BIT * usual, 16))
    pieces = _renumbered(labels, large)
    if not large.size:
        return pieces
    bits = (labels > 0) & (pieces == 0)
    if not bits.any():
        return pieces
    away, nearest = ndimage.distance_transform_edt(pieces == 0, return_indices=True)
    beside = pieces[tuple(nearest)]
    reach = NEAR * 2 * np.sqrt(np.bincount(pieces.ravel())[beside] / math.pi)
    near = ndimage.minimum(away - reach, labels, np.arange(len(areas))) < 0
    joined = bits & np.asarray(near)[labels]
    pieces[joined] = beside[joined]
    return pieces


def _renumbered(labels: Labels, kept: NDArray[Any]) -> Labels:
    """The labels with those of ``kept`` numbered from 1 in their order, all others 0."""
    numbers = np.zeros(int(labels.max()) + 1, dtype=np.int32)
    numbers[kept] = np.arange(1, len(kept) + 1)
    return numbers[labels]


def _parted(labels: Labels, wanted: int) -> Labels:
    """The labels with tissue that touches parted at its narrowest places into ``wanted`` pieces; as they are where it does not
    fall apart so."""
    inside = ndimage.distance_transform_edt(labels > 0)
    step = 2 * math.sqrt(float(np.bincount(labels.ravel())[1:].max()) / math.pi) / 60
    for times in range(1, TOUCHING + 1):
        cores, _ = ndimage.label(inside > times * step)
        areas = np.bincount(cores.ravel())
        areas[0] = 0
        large = np.flatnonzero(areas > BIT * areas.max())
        if len(large) >= wanted:
            seeds = _renumbered(cores.astype(np.int32), large)
            _, nearest = ndimage.distance_transform_edt(seeds == 0, return_indices=True)
            return np.where(labels > 0, seeds[tuple(nearest)], 0).astype(np.int32)
    return labels


def _listed(labels: Labels, grid: Grid) -> list[Piece]:
    """The pieces of an image of labels."""
    number = int(labels.max())
    index = np.arange(1, number + 1)
    centres = ndimage.center_of_mass(labels > 0, labels, index)
    areas = np.bincount(labels.ravel(), minlength=number + 1)[1:] * math.prod(grid.spacing)
    boxes = ndimage.find_objects(labels)
    (y, x), (down, right) = grid.origin, grid.spacing
    return [
        Piece(k + 1, (y + down * float(at[0]), x + right * float(at[1])), float(area), (box[0], box[1]))
        for k, (at, area, box) in enumerate(zip(np.asarray(centres), areas, boxes, strict=True))
    ]


# ---- the grid of a microarray --------------------------------------------------------------------------------------------


def _laid(pieces: Sequence[Piece], rows: int = 0, columns: int = 0) -> list[tuple[int, int]] | None:
    """Row and column of each piece on a grid, which may be turned a little; None where they lie on none.

    ``rows`` and ``columns`` are those that are known; 0 where none are.
    """
    if len(pieces) < (4 if rows else FEWEST):
        return None
    at = np.array([piece.centre for piece in pieces])
    away = at[None] - at[:, None]  # [n, n, 2]
    distance = np.hypot(*np.moveaxis(away, -1, 0))
    np.fill_diagonal(distance, np.inf)
    usual = np.median([piece.diameter for piece in pieces])
    distance[distance < 0.6 * usual] = np.inf  # two bits of one core
    near = np.sort(distance, axis=1)[:, 0]
    pitch = float(np.median(near[np.isfinite(near)]))
    close = distance < 1.3 * pitch
    angles = np.arctan2(away[..., 0], away[..., 1])[close]
    if not angles.size:
        return None
    turn = float(np.angle(np.exp(4j * angles).mean()) / 4)  # directions repeat every 90 degrees
    c, s = math.cos(turn), math.sin(turn)
    lines = [_lines(values, pitch) for values in (at @ np.array([[c, -s], [s, c]])).T]
    # at @ R: the first column is y along the rows' normal, the second x along the rows
    if any(found is None for found in lines):
        return None
    (row, one), (column, other) = lines  # type: ignore[misc]
    good = (np.abs(one) < ASTRAY) & (np.abs(other) < ASTRAY)
    n_rows, n_columns = int(row.max()) + 1, int(column.max()) + 1
    nodes = len({(int(a), int(b)) for a, b in zip(row, column, strict=True)})
    if n_rows < 2 or n_columns < 2 or good.mean() < 0.85 or nodes < 0.5 * n_rows * n_columns:
        return None
    if rows and (n_rows > rows or n_columns > columns):
        return None
    return [(int(a), int(b)) for a, b in zip(row, column, strict=True)]


def _lines(values: Floats, pitch: float) -> tuple[NDArray[np.int64], Floats] | None:
    """The line that each position along one axis lies on, and how far off it lies, in pitches; None where there are no lines."""
    order = np.argsort(values)
    gaps = np.diff(values[order])
    group = np.zeros(len(values), dtype=np.int64)
    group[order[1:]] = np.cumsum(gaps > 0.4 * pitch)
    centres = np.array([np.median(values[group == k]) for k in range(group.max() + 1)])
    if len(centres) < 2:
        return None
    step = float(np.median(np.diff(centres)))
    number = np.round((centres - centres[0]) / step).astype(np.int64)
    slope, first = np.polyfit(number[group], values, 1)
    return number[group], (values - (first + slope * number[group])) / abs(slope)


def _on_grid(found: Found, laid: Sequence[tuple[int, int]]) -> Found:
    """The pieces with their places, in reading order; bits on one node are one core."""
    nodes = sorted(set(laid))
    number = {node: k + 1 for k, node in enumerate(nodes)}
    numbers = np.zeros(len(laid) + 1, dtype=np.int32)
    for piece, node in zip(found.pieces, laid, strict=True):
        numbers[piece.number] = number[node]
    labels = numbers[found.labels]
    pieces = [replace(piece, place=nodes[piece.number - 1]) for piece in _listed(labels, found.grid)]
    rows, columns = (max(node[d] for node in nodes) + 1 for d in range(2))
    return replace(found, pieces=tuple(pieces), labels=labels, rows=rows, columns=columns)
