"""Where the pixels and vertices of a layer lie, in the units of regframe, and where a layer has to lie.

napari puts pixel ``i`` of a layer at ``translate + scale * i``, and so does a `regframe.Grid` with the centre of its pixels: what
is whole is a centre on both sides. A layer whose unit is ``pixel`` lies where napari draws it: its world coordinates are taken in
the unit of the side that it belongs to.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import regframe as rf

Array = NDArray[Any]
Layer = Any
_LEVELS = 0.02
"""Relative difference up to which the ratio of two levels' pixels is taken for the whole number beside it: a level that was
halved loses up to one row, a fiftieth of one of 50."""


def unit_of(layer: Layer) -> str:
    """The length unit of a layer as regframe calls it, ``"px"`` where it has none; ValueError where its axes differ."""
    units = {str(unit) for unit in layer.units[-2:]}
    if len(units) > 1:
        raise ValueError(f"wanted one unit for all axes of the layer {layer.name!r}, got {' and '.join(sorted(units))}")
    return rf.canonical_unit(units.pop())


def grid_of(layer: Layer) -> rf.Grid:
    """The finest pixels of an image or labels layer.

    Raises ValueError, in one sentence, for a layer that is turned or sheared, or has other axes than (z, y, x).
    """
    ndim = layer.ndim
    if ndim not in (2, 3):
        raise ValueError(
            f"wanted a layer of the axes y, x or z, y, x, got {layer.name!r} with {ndim} axes; split it first"
        )
    matrix = _matrix(layer)
    linear = matrix[:-1, :-1]
    if (
        not np.allclose(linear, np.diag(np.diag(linear)), atol=1e-9 * np.abs(linear).max())
        or (np.diag(linear) <= 0).any()
    ):
        raise ValueError(
            f"wanted a layer that is only scaled and shifted, got {layer.name!r}, which is turned, mirrored or sheared; "
            "reset its rotate, shear and affine: the alignment finds them"
        )
    shape = (layer.data[0] if layer.multiscale else layer.data).shape[:ndim]
    spacing = tuple(float(s) for s in np.diag(linear))
    return rf.Grid(tuple(shape), spacing, tuple(float(v) for v in matrix[:-1, -1]), unit_of(layer))


def _matrix(layer: Layer) -> Array:
    """The homogeneous matrix ``[D+1, D+1]`` from data to world coordinates."""
    ends = np.vstack([np.zeros(layer.ndim), np.eye(layer.ndim)])
    seen = np.array([layer.data_to_world(end) for end in ends], dtype=np.float64)
    matrix = np.eye(layer.ndim + 1)
    matrix[:-1, :-1] = (seen[1:] - seen[0]).T
    matrix[:-1, -1] = seen[0]
    return matrix


def pyramid_of(layer: Layer) -> rf.Pyramid:
    """The pixels of an image or labels layer at every resolution, lazy, without their opacity; raises what `grid_of` does."""
    grid = grid_of(layer)
    arrays = list(layer.data) if layer.multiscale else [layer.data]
    labels = type(layer).__name__ == "Labels"
    rgb = bool(getattr(layer, "rgb", False))
    levels = []
    for array in arrays:
        factor = tuple(_factor(n, m) for n, m in zip(grid.shape, array.shape, strict=False))
        within = tuple(0.0 if labels else s * (f - 1) / 2 for s, f in zip(grid.spacing, factor, strict=True))
        origin = tuple(o + w for o, w in zip(grid.origin, within, strict=True))
        spacing = tuple(s * f for s, f in zip(grid.spacing, factor, strict=True))
        shape = tuple(array.shape[: grid.ndim])
        channels = 3 if rgb else 1
        chunk = _chunk(array, shape)
        levels.append(rf.Level(rf.Grid(shape, spacing, origin, grid.unit), (channels, *chunk), _Pixels(array, rgb)))
    dtype = np.dtype(arrays[0].dtype)
    dtype = np.dtype(np.uint8) if dtype == np.bool_ else np.dtype(np.float32) if dtype == np.float16 else dtype
    names = ("red", "green", "blue") if rgb else (layer.name,)
    return rf.Pyramid(tuple(levels), dtype, names, labels=labels, name=layer.name)


def _factor(fine: int, coarse: int) -> float:
    ratio = fine / coarse
    whole = round(ratio)
    return float(whole) if abs(ratio - whole) <= max(_LEVELS * whole, whole / coarse) else ratio


def _chunk(array: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Pixels per axis that are read together, of dask and zarr arrays; the whole of others."""
    known = getattr(array, "chunksize", None) or getattr(array, "chunks", None)
    if known is None or not all(isinstance(n, int) for n in known):
        return shape
    return tuple(min(n, m) for n, m in zip(known, shape, strict=False))


class _Pixels:
    """Reads a region of a layer's array as ``[C, *region]``."""

    def __init__(self, array: Any, rgb: bool) -> None:
        self._array, self._rgb = array, rgb

    def __call__(self, region: tuple[slice, ...]) -> Array:
        part = np.asarray(self._array[region])
        if part.dtype == np.bool_:
            part = part.astype(np.uint8)
        if part.dtype == np.float16:
            part = part.astype(np.float32)
        return np.ascontiguousarray(np.moveaxis(part[..., :3], -1, 0) if self._rgb else part[None])


# ---------------------------------------------------------------------------------------------------------- the way back


def layer_place(grid: rf.Grid) -> dict[str, Any]:
    """The arguments of a layer that put its pixels on ``grid``."""
    unit = "pixel" if grid.unit == "px" else rf.OME_UNITS[grid.unit]
    return {
        "scale": grid.spacing,
        "translate": grid.origin,
        "units": (unit,) * grid.ndim,
        "axis_labels": grid.axes,
    }


def ratio_to(layer: Layer, grid: rf.Grid) -> float:
    """Factor from a layer's world coordinates to positions in the unit of ``grid``; 1 where one of the two has no length unit."""
    return rf.unit_ratio(unit_of(layer), grid.unit) or 1.0


def positions(layer: Layer, data: Array, grid: rf.Grid) -> Array:
    """Vertices or points ``[N, D]`` of a layer as positions ``[N, D]`` of the side whose canvas is ``grid``.

    ValueError for a layer of another number of axes.
    """
    data = np.asarray(data, dtype=np.float64).reshape(-1, layer.ndim)
    if layer.ndim != grid.ndim:
        raise ValueError(
            f"wanted a layer of {grid.ndim} axes as this side has, got {layer.name!r} with {layer.ndim}; draw it anew in 2D or 3D"
        )
    matrix = _matrix(layer)
    moved: Array = data @ matrix[:-1, :-1].T + matrix[:-1, -1]
    return moved * ratio_to(layer, grid)


def indices(coords: Array, grid: rf.Grid) -> Array:
    """Positions ``[N, D]`` as the data of a layer that lies on ``grid`` (`layer_place`)."""
    found: Array = (np.asarray(coords, dtype=np.float64) - grid.origin) / grid.spacing
    return found
