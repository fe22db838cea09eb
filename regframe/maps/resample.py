"""Pulls images through a map, as a whole or tile by tile with the same pixels; moves points by a map."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from .. import ops, reference
from ..data import Grid, Image, PointSet
from . import homogeneous
from .affine import Affine
from .backdrop import backdrop_of
from .base import Transform
from .flow import Flow
from .pieces import Pieces

_CHUNK = 1 << 20
"""Number of positions mapped at once where a map is not one fused op: 16 to 24 MB of coordinates."""


def resample(image: Image, transform: Transform, grid: Grid, background: float | str | None = None) -> Image:
    """``image`` carried by ``transform`` (source: the image's space) onto ``grid`` (target space), in its own dtype.

    Intensities are interpolated linearly and rounded for integer dtypes; labels take the nearest pixel, ids kept.
    Target pixels that map outside the image get ``background``: a number; ``"auto"``, white around brightfield, else 0; or the
    nearest border value where None (labels: 0).
    """
    if isinstance(background, str):
        if background != "auto":
            raise ValueError(f"wanted background 'auto', a number or None, got {background!r}")
        background = backdrop_of(image)
    if transform.ndim != image.grid.ndim or transform.ndim != grid.ndim:
        raise ValueError(
            f"wanted an image, a map and a grid of one dimension, got {image.grid.ndim}, {transform.ndim}, {grid.ndim}"
        )
    if transform.source_unit != image.grid.unit or transform.target_unit != grid.unit:
        raise ValueError(
            f"wanted an image in {transform.source_unit} and a grid in {transform.target_unit} for this map, "
            f"got {image.grid.unit} and {grid.unit}; convert with Grid.to_unit or state the spacing"
        )
    pull = transform.inverse()
    start = (0,) * grid.ndim
    tile = Tile(grid, start, grid.shape)
    data = resample_part(Part(image.data, image.grid, start), pull, tile, image.labels, background)
    weight = None
    if image.weight is not None:
        mask = image.weight[None].to(torch.float32)
        weight = resample_part(Part(mask, image.grid, start), pull, tile, False, 0.0)[0]
    return image.replace(data=data, grid=grid, weight=weight, reading=None, things=None)


class Part(NamedTuple):
    """A part of an image that is in memory.

    Args:
        data: pixels of the part ``[C, *part]``.
        grid: grid of the whole image.
        offset: index of the part's first pixel in ``grid``.
    """

    data: Tensor
    grid: Grid
    offset: tuple[int, ...]


class Tile(NamedTuple):
    """A part of a target grid that is to be filled.

    Args:
        grid: grid of the whole target.
        offset: index of the tile's first pixel in ``grid``.
        shape: number of pixels of the tile per axis.
    """

    grid: Grid
    offset: tuple[int, ...]
    shape: tuple[int, ...]


def resample_part(
    part: Part,
    pull: Transform,
    tile: Tile,
    labels: bool = False,
    background: float | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """One tile of the result of `resample`, from the part of the image that it needs; bit for bit the same as from the whole.

    Args:
        part: the part of the image; it must hold every pixel that the tile needs.
        pull: map from target positions to image positions.
        tile: the tile to fill.
        labels: take the nearest pixel, so that ids are kept.
        background: value of target pixels outside the whole image; where None, the nearest border value (labels: 0).
        device: where intensities are carried, if the map is one op (an affine map and a flow); all else is on the CPU.

    Returns:
        ``[C, *tile.shape]`` in the part's dtype, on the CPU; from another device the same but for rounding.
    """
    source = part.data
    dtype = source.dtype
    if isinstance(pull, Pieces):
        return _in_pieces(part, pull, tile, labels, background)
    if labels and background is None:
        background = 0.0
    if background is not None and not dtype.is_floating_point:
        background = float(min(max(round(background), torch.iinfo(dtype).min), torch.iinfo(dtype).max))
    if not labels:
        if dtype in (torch.float64, torch.int32, torch.int64, torch.uint32, torch.uint64):
            working = torch.float64
        else:
            working = dtype if dtype in (torch.uint8, torch.uint16) else torch.float32
        fused = _fusible(pull)
        if fused is not None:
            out = _fused(part._replace(data=source.to(working).to(device)), fused, tile, background).cpu()
            return out if out.dtype == dtype else _rounded(out, dtype)
        working = torch.float64 if working == torch.float64 else torch.float32
        source = source.to(working)
    out = torch.empty((source.shape[0], *tile.shape), dtype=source.dtype)
    flat, stored = out.reshape(source.shape[0], -1), source.reshape(source.shape[0], -1)
    spacing = torch.tensor(part.grid.spacing, dtype=torch.float64)
    origin = torch.tensor(part.grid.origin, dtype=torch.float64)
    for rows, coords in _chunks(tile):
        at = pull.points(coords)
        index = (at - origin) / spacing  # [n, D], in pixels of the whole image
        if labels:
            address = torch.zeros(index.shape[0], dtype=torch.long)
            for d, n in enumerate(source.shape[1:]):
                nearest = index[:, d].round().nan_to_num(0.0).clamp(0, part.grid.shape[d] - 1).long()
                address = address * n + (nearest - part.offset[d]).clamp(0, n - 1)
            values = stored[:, address]
        else:
            values = reference.sample_part(source, index, part.grid.shape, part.offset)
        if background is not None:
            values = torch.where(part.grid.contains(at), values, torch.tensor(background).to(values.dtype))
        flat[:, rows] = values
    return out if labels else _rounded(out, dtype)


def _in_pieces(part: Part, pull: Pieces, tile: Tile, labels: bool, background: float | None) -> Tensor:
    """`resample_part` piece by piece; where a piece has no partner lies the background, 0 where the border is continued."""
    dtype = part.data.dtype
    beyond = 0.0 if background is None else background
    if not dtype.is_floating_point:
        beyond = min(max(round(beyond), torch.iinfo(dtype).min), torch.iinfo(dtype).max)
    out = torch.empty((part.data.shape[0], *tile.shape), dtype=dtype)
    out[:] = torch.tensor(beyond).to(dtype)
    for k, box, mask in pull.boxes(tile.grid, tile.offset, tile.shape):
        offset = tuple(o + s.start for o, s in zip(tile.offset, box, strict=True))
        shape = tuple(s.stop - s.start for s in box)
        found = resample_part(part, pull.maps[k], Tile(tile.grid, offset, shape), labels, background)
        here = (slice(None), *box)
        out[here] = torch.where(mask, found, out[here])
    return out


def move_points(points: PointSet, transform: Transform) -> PointSet:
    """``points`` mapped by ``transform``, in their order and with their table, in the target's unit.

    Raises ValueError for points of another dimension or unit than the map's source.
    """
    if points.ndim != transform.ndim:
        raise ValueError(
            f"wanted points of {transform.ndim} components for this map, got {points.ndim} ({', '.join(points.axes)}); "
            "choose their columns, or use a map of that dimension"
        )
    if points.unit != transform.source_unit:
        raise ValueError(f"wanted points in {transform.source_unit} for this map, got {points.unit}; state the spacing")
    return points.replace(coords=transform.points(points.coords), unit=transform.target_unit)


def _fused(part: Part, pull: _Fused, tile: Tile, background: float | None) -> Tensor:
    """`resample_part` of intensities by a single op."""
    affine, flow, after = pull
    ndim, device = tile.grid.ndim, part.data.device
    matrix = homogeneous.compose(affine, tile.grid.index_to_position())[:ndim]
    if flow is None:
        velocity, v_grid, n_steps = torch.zeros((1, ndim, *(1,) * ndim)), Grid((1,) * ndim), 1
    else:
        velocity, v_grid, n_steps = flow.velocity, flow.grid, flow.n_steps or 1
    return ops.warp_crop(
        part.data, velocity.to(device), matrix.to(device), tile.shape, tile.offset, part.grid.shape, part.offset,
        part.grid.spacing, part.grid.origin, v_grid.spacing, v_grid.origin, n_steps, background,
        None if after is None else after[:ndim].to(device),
    )  # fmt: skip


def _rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Floats converted to ``dtype``; rounded and clamped where it is an integer type."""
    if dtype.is_floating_point:
        return values.to(dtype)
    info = torch.iinfo(dtype)
    top = float(info.max)
    if (
        top > info.max
    ):  # the maximum of a 64-bit type rounds up to 2^63 or 2^64 as a double, which does not fit the type
        top = math.nextafter(top, 0.0)
    return values.round().clamp(info.min, top).to(dtype)


def _chunks(tile: Tile) -> Iterable[tuple[slice, Tensor]]:
    """Slices of a tile's flattened pixels, with their positions ``[n, D]``, in bands along the first axis to bound the memory.

    A position is computed from the pixel's index in the whole grid, so that it rounds alike in every tile.
    """
    grid, offset, shape = tile
    per_row = math.prod(shape[1:])
    band = max(1, _CHUNK // max(1, per_row))
    for start in range(0, shape[0], band):
        n = min(band, shape[0] - start)
        axes = [
            o + s * (torch.arange(m, dtype=torch.float64) + first)
            for o, s, m, first in zip(
                grid.origin, grid.spacing, (n, *shape[1:]), (offset[0] + start, *offset[1:]), strict=True
            )
        ]
        coords = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
        yield slice(start * per_row, (start + n) * per_row), coords.reshape(-1, grid.ndim)


_Fused = tuple[Tensor, Flow | None, Tensor | None]
"""Affine matrix ``[D+1, D+1]`` before a flow, the flow, and the matrix after it; the last two may be None."""


def _fusible(pull: Transform) -> _Fused | None:
    """``pull`` in the form that `ops.warp_crop` takes, or None where it has another form.

    The op takes an affine map followed by a reversed flow or none; or an affine map, a flow that is not reversed, and an
    affine map.
    """
    before = after = torch.eye(pull.ndim + 1, dtype=torch.float64)
    flow: Flow | None = None
    for part in pull.parts():
        if isinstance(part, Affine):
            if flow is None:
                before = homogeneous.compose(part.matrix, before)
            else:
                after = homogeneous.compose(part.matrix, after)
        elif isinstance(part, Flow) and flow is None:
            flow = part
        else:
            return None
    if flow is None or flow.reverse:
        return (before, flow, None) if torch.equal(after, torch.eye(pull.ndim + 1, dtype=torch.float64)) else None
    return before, flow, after
