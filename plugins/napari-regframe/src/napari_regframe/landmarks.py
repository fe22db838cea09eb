"""Pairs of points as two points layers, row by row, and as files of both sides: the table that ``--landmarks`` takes."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import regframe as rf

from .places import Array, indices, layer_place, positions
from .reading import LayerData

_COLOURS = ("magenta", "lime")
_MOST = 1 << 22
"""Bytes of a file that is looked at: 4 MiB hold some 50 000 pairs, more than anybody clicks."""


def reader_of(path: str | Sequence[str]) -> Callable[[Any], list[LayerData]] | None:
    """What napari asks: a function that makes two points layers, None where the file holds no pairs."""
    if not isinstance(path, str) or not Path(path).is_file() or Path(path).stat().st_size > _MOST:
        return None
    try:
        rf.read_landmarks(path)
    except (ValueError, OSError):
        return None
    return layers_of


def layers_of(path: str) -> list[LayerData]:
    """The pairs of a file as two points layers, ``fixed landmarks`` and ``moving landmarks``, in the order of the file."""
    fixed, moving, units = rf.read_landmarks(path)
    found: list[LayerData] = []
    for side, coords, unit, colour in zip(("fixed", "moving"), (fixed, moving), units, _COLOURS, strict=True):
        place = rf.Grid((1,) * coords.shape[1], unit=unit or "px")
        how = {"name": f"{side} landmarks", "face_color": colour, "symbol": "cross", "size": 12}
        found.append((indices(coords.numpy(), place), {**layer_place(place), **how}, "points"))
    return found


def pairs(fixed: Any, moving: Any, fixed_grid: rf.Grid, moving_grid: rf.Grid) -> tuple[Array, Array]:
    """Two points layers as positions ``[N, D]`` of the fixed and of the moving side.

    ValueError for layers of different length or fewer than two pairs.
    """
    if len(fixed.data) != len(moving.data) or len(fixed.data) < 2:
        raise ValueError(
            f"wanted two points layers of as many points each, two or more, got {len(fixed.data)} in {fixed.name!r} and "
            f"{len(moving.data)} in {moving.name!r}; the first point of one belongs to the first of the other"
        )
    return positions(fixed, fixed.data, fixed_grid), positions(moving, moving.data, moving_grid)


def remarks(fixed: Any, moving: Any, result: rf.Result) -> str:
    """How far the pairs of two points layers lie apart under a result, in words; each distance becomes a feature of both layers.

    Raises what `pairs` raises.
    """
    q, p = pairs(fixed, moving, result.fixed_grid, result.moving_grid)
    found = rf.landmarks(torch.from_numpy(p), torch.from_numpy(q))
    off = np.linalg.norm(result.transform.points(found.moving).numpy() - q, axis=1)
    unit = result.fixed_grid.unit
    for layer in (fixed, moving):
        layer.features = layer.features.assign(off=off)
    odd = found.disagreement().sentences(1.0, unit)
    return f"{len(off)} landmarks lie {np.median(off):.3g} {unit} apart in the median" + "".join(f"; {s}" for s in odd)


def write(path: str, layers: list[LayerData]) -> list[str]:
    """What napari calls to save two points layers: the one named after the moving side is that, else the second.

    Positions are the layers' world coordinates, with the unit in the header where they have one.
    """
    if "moving" in str(layers[0][1].get("name", "")).lower():
        layers = layers[::-1]
    sides = [_world(data, how) for data, how, _ in layers]
    if len({coords.shape for coords, _ in sides}) != 1:
        raise ValueError(
            f"wanted as many points of one dimension in both layers, got {sides[0][0].shape} and {sides[1][0].shape}"
        )
    axes = ("z", "y", "x")[-sides[0][0].shape[1] :]
    header = [
        f"{side}_{axis}{unit}" for side, (_, unit) in zip(("fixed", "moving"), sides, strict=True) for axis in axes
    ]
    aside = Path(f"{path}.partial")
    with aside.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(header)
        table.writerows([*map(repr, f), *map(repr, m)] for f, m in zip(*(c.tolist() for c, _ in sides), strict=True))
    os.replace(aside, path)  # noqa: PTH105
    return [path]


def _world(data: Any, how: dict[str, Any]) -> tuple[Array, str]:
    """World coordinates of a points layer, and the suffix of its unit."""
    from napari.layers import Points

    keys = ("scale", "translate", "rotate", "shear", "affine", "units", "axis_labels", "name")
    layer = Points(np.asarray(data), **{key: how[key] for key in keys if key in how})
    unit = rf.canonical_unit(str(layer.units[-1]))
    return positions(layer, layer.data, rf.Grid((1,) * layer.ndim, unit=unit)), {"px": "", "µm": "_um"}.get(
        unit, f"_{unit}"
    )
