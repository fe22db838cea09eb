"""Opens a stored alignment: ``OUT`` of ``regframe register``, or the ``transform.ome.zarr`` in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import regframe as rf

from . import lazy
from .places import indices, layer_place

LayerData = tuple[Any, dict[str, Any], str]
RESULT = "regframe"
"""Key in a layer's ``metadata`` under which its alignment lies, and ``"side"`` whose space the layer is in."""
_INSIDE = "transform.ome.zarr"
_SEEN = 1 << 22
"""Pixels of a level up to which it is read to choose contrasts: 4 million, some tenths of a second."""
_COLOURS = {"fixed": "magenta", "moving": "green"}
"""Colours of a side with one channel: white where both have the same."""


def reader_of(path: str | Sequence[str]) -> Callable[[Any], list[LayerData]] | None:
    """What napari asks: a function that makes the layers of ``path``, None where it is no stored alignment."""
    if not isinstance(path, str):
        return None
    folder = Path(path)
    return _read if (folder / _INSIDE).is_dir() or (folder.name == _INSIDE and folder.is_dir()) else None


def _read(path: str) -> list[LayerData]:
    return layers_of(rf.load(path))


def layers_of(result: rf.Result, fixed: Any = None, moving: Any = None) -> list[LayerData]:
    """The layers of a result: the fixed side, the moving side carried to it, and how sure each position is (hidden).

    Args:
        result: as `regframe.load` returns it.
        fixed: the fixed side, a `regframe.Pyramid` or `regframe.PointSet` in the result's space; opened from where the run
            recorded it if None.
        moving: the moving side, likewise.

    Raises what `regframe.open_sides` raises.
    """
    if fixed is None or moving is None:
        opened = rf.open_sides(result)
        fixed, moving = opened[0] if fixed is None else fixed, opened[1] if moving is None else moving
    grids = [level.grid for level in fixed.levels] if isinstance(fixed, rf.Pyramid) else None
    found = [_with(result, "fixed", layer) for layer in _shown(fixed, "fixed", grids)]
    if isinstance(moving, rf.PointSet):
        found.append(
            _with(result, "fixed", _dots(result.to_fixed(moving), f"{moving.name} (moved)", _COLOURS["moving"]))
        )
    else:
        found += [_with(result, "fixed", layer) for layer in carried(result, moving, "fixed", grids)]
    return found + _doubt(result)


def carried(result: rf.Result, pyramid: rf.Pyramid, to: str, grids: Sequence[rf.Grid] | None = None) -> list[LayerData]:
    """An image of one side as layers on the other, lazy.

    Args:
        result: the alignment.
        pyramid: the image.
        to: the side that it goes to, ``"fixed"`` or ``"moving"``.
        grids: canvases to fill, finest first; those of the side where None.
    """
    own = result.fixed_grid if to == "fixed" else result.moving_grid
    name = f"{pyramid.name} (on {to})"
    colour = _COLOURS["moving" if to == "fixed" else "fixed"]
    if own.ndim == 2 and pyramid.grid.ndim == 2:
        grids = list(grids or lazy.canvases(own))
        transform = result.transform if to == "fixed" else result.transform.inverse()
        arrays = lazy.warped(pyramid, transform, grids)
        return [_half_seen(layer) for layer in _layers(pyramid, arrays, grids[0], name, colour)]
    carry = result.to_fixed if to == "fixed" else result.to_moving
    if result.section and to == "fixed":
        own = rf.Grid(own.shape[1:], own.spacing[1:], own.origin[1:], own.unit)
    return _layers(pyramid, lazy.resampled(pyramid.image(), carry, own), own, name, colour)


def _half_seen(layer: LayerData) -> LayerData:
    """A layer in its own colours that lets the one below through."""
    data, how, kind = layer
    return data, {**how, "opacity": 0.5} if how.get("rgb") else how, kind


def _with(result: rf.Result, side: str, layer: LayerData) -> LayerData:
    data, how, kind = layer
    return data, {**how, "metadata": {RESULT: {"result": result, "side": side}}}, kind


def _shown(data: rf.Pyramid | rf.PointSet, side: str, grids: list[rf.Grid] | None) -> list[LayerData]:
    if isinstance(data, rf.PointSet):
        return [_dots(data, data.name, _COLOURS[side])]
    assert grids is not None
    return _layers(data, lazy.stored(data), grids[0], data.name, _COLOURS[side])


def _layers(pyramid: rf.Pyramid, arrays: list[Any], grid: rf.Grid, name: str, colour: str) -> list[LayerData]:
    """One layer of an image in its own colours or of ids, one per channel of another."""
    how: dict[str, Any] = {**layer_place(grid), "multiscale": len(arrays) > 1}
    if lazy.is_rgb(pyramid):
        return [(arrays if len(arrays) > 1 else arrays[0], {**how, "name": name, "rgb": True}, "image")]
    found: list[LayerData] = []
    limits = [None] * len(pyramid.channels) if pyramid.labels else _contrasts(pyramid)
    for number, channel in enumerate(pyramid.channels):
        levels = [array[number] for array in arrays]
        data = levels if len(levels) > 1 else levels[0]
        title = name if len(pyramid.channels) == 1 else f"{name} · {channel}"
        if pyramid.labels:
            found.append((data, {**how, "name": title}, "labels"))
            continue
        tint = f"#{pyramid.colors[number]}" if len(pyramid.colors) == len(pyramid.channels) > 1 else colour
        shown = {
            "name": title,
            "colormap": tint,
            "blending": "additive",
            "contrast_limits": limits[number],
            "rgb": False,
        }
        found.append((data, {**how, **shown}, "image"))
    return found


def _contrasts(pyramid: rf.Pyramid) -> list[tuple[float, float]]:
    """Low and high of each channel, from its coarsest level or the middle of that: 0.5 % of the pixels lie beyond either."""
    level = pyramid.levels[-1]
    shape = level.grid.shape
    room = max(1, round((_SEEN / math.prod(shape[:-2] or (1,))) ** 0.5))
    middle = tuple(
        slice(0, n) if i < len(shape) - 2 or n <= room else slice((n - room) // 2, (n + room) // 2)
        for i, n in enumerate(shape)
    )
    found = []
    for values in level.read(middle):
        finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
        low, high = np.percentile(finite, (0.5, 99.5)) if finite.size else (0.0, 1.0)
        found.append((float(low), float(high)) if high > low else (float(low), float(low) + 1.0))
    return found


def _dots(points: rf.PointSet, name: str, colour: str) -> LayerData:
    """Points as a layer in their own unit; their columns are its features."""
    unit = rf.Grid((1,) * points.ndim, unit=points.unit)
    coords = indices(points.coords.numpy(), unit)
    spread = np.ptp(coords[np.isfinite(coords).all(axis=1)], axis=0) if len(coords) else np.ones(points.ndim)
    size = max(float(np.prod(spread[-2:])) / max(1, len(points)), 1e-12) ** 0.5 / 2
    features = {key: list(column) for key, column in points.table.items()}
    how = {"name": name, "face_color": colour, "border_width": 0, "size": size, "features": features or None}
    return coords, {**layer_place(unit), **how}, "points"


def _doubt(result: rf.Result) -> list[LayerData]:
    """The standard deviation of each position as a hidden layer, where it is known."""
    if result.position_sd is None or result.weight_grid is None:
        return []
    how = {
        "name": f"standard deviation of a position ({result.fixed_grid.unit})",
        "colormap": "viridis",
        "visible": False,
        "metadata": {},
    }
    return [(result.position_sd.numpy(), {**layer_place(result.weight_grid), **how}, "image")]
