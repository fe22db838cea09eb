"""The graph of a scene of OME-Zarr 0.6 (RFC-5): the way from one coordinate system to another, and transformations of axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .nodes import Json, item, mapping

Hop = tuple[Json, str, str, bool]
"""A transformation to take, the systems from which and to which the file states it, and whether it has to be inverted."""


def way(entries: list[Any], source: str, target: str) -> list[Hop]:
    """The transformations that lead from one coordinate system to another, the first applied first.

    The way of fewest transformations is taken, and among these one without an inversion where there is one. Of a bijection each
    direction is its own.

    Args:
        entries: ``coordinateTransformations`` of a scene.
        source: name of the system to start from.
        target: name of the system to end in.

    Raises:
        ValueError: where nothing leads there.
    """
    steps: list[Hop] = []
    for entry in entries:
        entry = mapping(entry, "coordinateTransformations")
        first, last = _end(entry, "input"), _end(entry, "output")
        if entry.get("type") == "bijection":
            forward, inverse = item(entry, "forward", dict), item(entry, "inverse", dict)
            steps += [(forward, first, last, False), (inverse, last, first, False)]
        else:
            steps += [(entry, first, last, False), (entry, first, last, True)]
    steps.sort(key=lambda hop: hop[3])  # stable: what need not be inverted comes first
    ways: dict[str, list[Hop]] = {source: []}
    new = [source]
    while new and target not in ways:
        reached: list[str] = []
        for here in new:
            for hop in steps:
                start, end = (hop[2], hop[1]) if hop[3] else (hop[1], hop[2])
                if start == here and end not in ways:
                    ways[end] = [*ways[here], hop]
                    reached.append(end)
        new = reached
    if target not in ways:
        raise ValueError(
            f"wanted a transformation between {source} and {target} in the scene, got none that leads to {target!r}"
        )
    return ways[target]


def _end(entry: Json, side: str) -> str:
    """The name of the coordinate system at one end of a transformation: an object with a name, as 0.6 has it, or the bare name of
    its drafts; empty for a system of an image, which has a path."""
    value = entry.get(side)
    if isinstance(value, str):
        return value
    value = item(entry, side, dict)
    return "" if "path" in value and "name" not in value else str(item(value, "name", str))


def permutation(step: Json, ndim: int) -> Tensor:
    """The matrix ``[D+1, D+1]`` of a ``mapAxis``: entry ``i`` of the result is entry ``mapAxis[i]`` of the input."""
    order = item(step, "mapAxis", list)
    if sorted(str(n) for n in order) != [str(n) for n in range(ndim)]:
        raise ValueError(f"wanted an order of {ndim} axes at 'mapAxis', got {order}")
    matrix = torch.zeros(ndim + 1, ndim + 1, dtype=torch.float64)
    for row, column in enumerate([*map(int, order), ndim]):
        matrix[row, column] = 1
    return matrix


def by_dimension(step: Json, ndim: int, read: Callable[[Json, int], Any]) -> Tensor:
    """The matrix ``[D+1, D+1]`` of a ``byDimension`` whose parts are matrices.

    Args:
        step: the transformation.
        ndim: its axes.
        read: a matrix ``[n+1, n+1]`` of an elementary transformation of ``n`` axes.

    Raises:
        ValueError: where an axis of the result has no part or two, and for parts that bend.
    """
    matrix = torch.zeros(ndim + 1, ndim + 1, dtype=torch.float64)
    matrix[ndim, ndim] = 1
    told: list[int] = []
    for part in item(step, "transformations", list):
        part = mapping(part, "transformations")
        inside = item(part, "transformation", dict) if "transformation" in part else part
        axes = [_axes(part, side, ndim) for side in ("input", "output")]
        if len(axes[0]) != len(axes[1]):
            raise ValueError(f"wanted as many output as input axes in 'byDimension', got {axes[1]} and {axes[0]}")
        found = read(inside, len(axes[0]))
        if not isinstance(found, Tensor):
            raise ValueError(f"wanted matrices in 'byDimension', got {inside.get('type')!r}, which bends")
        rows, columns = [*axes[1]], [*axes[0], ndim]
        matrix[torch.tensor(rows)[:, None], torch.tensor(columns)[None]] = found[:-1]
        told += rows
    if sorted(told) != list(range(ndim)):
        raise ValueError(f"wanted each of {ndim} output axes once in 'byDimension', got {told}")
    return matrix


def _axes(part: Json, side: str, ndim: int) -> list[int]:
    """The axes of a part of ``byDimension``, by number: under the name of 0.6, or that of its drafts."""
    key = next((k for k in (f"{side}Axes", f"{side}_axes") if k in part), f"{side}Axes")
    found = item(part, key, list)
    if not found or not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < ndim for n in found):
        raise ValueError(f"wanted numbers of axes below {ndim} at {key!r}, got {found}")
    if len(set(found)) < len(found):
        raise ValueError(f"wanted each axis once at {key!r}, got {found}")
    return list(found)
