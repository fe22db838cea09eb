"""Brings a layer of one side to the other: points, shapes, labels and images, as new layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import regframe as rf

from .places import Array, grid_of, indices, layer_place, positions, pyramid_of, ratio_to
from .reading import RESULT, LayerData, carried

_WHOLE = 1 << 26
"""Pixels of a canvas up to which carried labels are computed at once, so that they can be painted on: some seconds."""
_ELLIPSE = 96
"""Corners of the polygon that an ellipse becomes before it is carried: its edge is off by 0.05 % of its radius."""


def result_of(layer: Any) -> rf.Result | None:
    """The alignment that a layer came with, None where it has none."""
    found = layer.metadata.get(RESULT)
    return found["result"] if isinstance(found, dict) else None


def carry(layer: Any, result: rf.Result, to: str) -> list[LayerData]:
    """A layer as it lies on the side ``to``, ``"fixed"`` or ``"moving"``.

    Points keep their features, names of properties and colours; shapes their features and colours, rectangles and ellipses become
    polygons; labels keep their ids; images are warped when they are looked at.

    Raises ValueError, in one sentence, for a layer that the alignment cannot move.
    """
    kind = type(layer).__name__
    if kind == "Points":
        found = _points(layer, result, to)
    elif kind == "Shapes":
        found = _shapes(layer, result, to)
    elif kind in ("Image", "Labels"):
        found = _pixels(layer, result, to)
    else:
        raise ValueError(
            f"wanted points, shapes, labels or an image to move, got the {kind.lower()} layer {layer.name!r}"
        )
    kept = {RESULT: {"result": result, "side": to}}
    return [(data, {**how, "metadata": kept}, type_) for data, how, type_ in found]


def _sides(result: rf.Result, to: str) -> tuple[rf.Grid, rf.Grid]:
    """The canvas that is left, and that which is reached; of a section in a volume the plane, where it is left."""
    fixed = result.fixed_grid
    if result.section and to == "moving":
        fixed = rf.Grid(fixed.shape[1:], fixed.spacing[1:], fixed.origin[1:], fixed.unit)
    ends = (result.moving_grid, fixed)
    return ends if to == "fixed" else ends[::-1]


def _move(result: rf.Result, to: str, coords: Array) -> Array:
    given = torch.from_numpy(np.ascontiguousarray(coords))
    moved: Array = (result.to_fixed(given) if to == "fixed" else result.to_moving(given)).numpy()
    return moved


def _name(layer: Any, to: str) -> str:
    return f"{layer.name} (on {to})"


def _points(layer: Any, result: rf.Result, to: str) -> list[LayerData]:
    source, target = _sides(result, to)
    coords = positions(layer, layer.data, source)
    moved = _move(result, to, coords) if len(coords) else coords
    scale = float(np.mean(np.abs(layer.scale))) * ratio_to(layer, source)
    step = _enlarged(result, to) * scale / target.pixel
    how = {
        "name": _name(layer, to),
        "size": np.asarray(layer.size) * step,
        "face_color": layer.face_color,
        "border_color": layer.border_color,
        "border_width": 0,
        "symbol": layer.symbol,
        "features": layer.features.copy(),
        "shown": layer.shown,
    }
    return [(indices(moved, target), {**layer_place(target), **how}, "points")]


def _enlarged(result: rf.Result, to: str) -> float:
    """How much longer a length becomes on the side ``to``, by the affine part of the map."""
    source, _ = _sides(result, to)
    affine = result.affine if to == "fixed" else result.affine.inverse()
    origin = torch.zeros(1, affine.ndim, dtype=torch.float64)
    ends = torch.cat([origin, torch.eye(affine.ndim, dtype=torch.float64) * source.pixel])
    moved = affine.points(ends)
    return float(abs(torch.linalg.det(moved[1:] - moved[0])) ** (1 / affine.ndim)) / source.pixel


def _shapes(layer: Any, result: rf.Result, to: str) -> list[LayerData]:
    source, target = _sides(result, to)
    if source.ndim != 2 or target.ndim != 2:
        raise ValueError(f"wanted shapes of a plane, got {layer.name!r} beside a volume; move its corners as points")
    features = []
    for data, kind in zip(layer.data, layer.shape_type, strict=True):
        corners = _outline(np.asarray(data, dtype=np.float64), kind)
        xy = positions(layer, corners, source)[:, ::-1].tolist()
        closed = kind in ("polygon", "rectangle", "ellipse")
        shape = (
            {"type": "Polygon", "coordinates": [[*xy, xy[0]]]} if closed else {"type": "LineString", "coordinates": xy}
        )
        features.append({"type": "Feature", "geometry": shape, "properties": {}})
    if not features:
        return [([], {**layer_place(target), "name": _name(layer, to)}, "shapes")]
    drawn = rf.Shapes.from_geojson(
        {"type": "FeatureCollection", "features": features}, source.unit, "center", layer.name
    )
    moved = result.to_fixed(drawn) if to == "fixed" else result.to_moving(drawn)
    outlines, kinds = [], []
    for path in range(len(moved.kinds)):
        part = moved.coords[int(moved.offsets[path]) : int(moved.offsets[path + 1])].numpy()
        closed = layer.shape_type[path] in ("polygon", "rectangle", "ellipse")
        outlines.append(indices(part[:-1] if closed else part, target))
        kinds.append("polygon" if closed else "path")
    width = np.asarray(layer.edge_width) * _enlarged(result, to) * float(np.mean(np.abs(layer.scale))) / target.pixel
    how = {
        "name": _name(layer, to),
        "shape_type": kinds,
        "edge_color": layer.edge_color,
        "face_color": layer.face_color,
        "edge_width": width * ratio_to(layer, source),
        "features": layer.features.copy(),
    }
    return [(outlines, {**layer_place(target), **how}, "shapes")]


def _outline(corners: Array, kind: str) -> Array:
    """The corners of a shape; of an ellipse, which napari keeps as the box around it, points along it."""
    if kind != "ellipse":
        return corners
    centre = corners.mean(axis=0)
    along, across = (corners[1] - corners[0]) / 2, (corners[3] - corners[0]) / 2
    angle = np.linspace(0, 2 * np.pi, _ELLIPSE, endpoint=False)[:, None]
    ring: Array = centre + np.cos(angle) * along + np.sin(angle) * across
    return ring


def _pixels(layer: Any, result: rf.Result, to: str) -> list[LayerData]:
    source, target = _sides(result, to)
    if to == "moving" and result.section:
        raise ValueError(f"wanted points to move into a volume, got {layer.name!r}; a plane fills no volume")
    pyramid = _in_unit(pyramid_of(layer), grid_of(layer), source)
    name = _name(layer, to)
    found = []
    for data, how, kind in carried(result, pyramid, to):
        if kind == "labels" and np.prod(target.shape) <= _WHOLE:
            whole = data[0] if isinstance(data, list) else data
            data, how = np.asarray(whole), {**how, "multiscale": False}
        if kind == "image" and not how["rgb"]:
            how = {**how, "colormap": layer.colormap, "contrast_limits": tuple(layer.contrast_limits)}
        found.append((data, {**how, "name": name}, kind))
    return found


def _in_unit(pyramid: rf.Pyramid, own: rf.Grid, side: rf.Grid) -> rf.Pyramid:
    """The levels of a layer in the unit of its side; a layer without a length unit lies where napari draws it."""
    import dataclasses

    ratio = rf.unit_ratio(own.unit, side.unit) or 1.0
    levels = []
    for level in pyramid.levels:
        grid = level.grid
        moved = rf.Grid(
            grid.shape, tuple(s * ratio for s in grid.spacing), tuple(o * ratio for o in grid.origin), side.unit
        )
        levels.append(dataclasses.replace(level, grid=moved))
    return dataclasses.replace(pyramid, levels=tuple(levels))
