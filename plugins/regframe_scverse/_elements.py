"""Elements of a SpatialData: found by name, and where they lie in a coordinate system; positions are (x, y) here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ._positions import Array

XY = ("x", "y")
"""The axes of a plane in SpatialData's order."""


def module() -> Any:
    """The module spatialdata; ImportError that names the extra where it is not installed."""
    try:
        import spatialdata
        import spatialdata.models
        import spatialdata.transformations
    except ImportError as error:
        raise ImportError(
            f"wanted spatialdata for elements of SpatialData, got no {error.name}; install regframe[spatialdata]"
        ) from error
    return spatialdata


def element_of(sdata: Any, name: str) -> tuple[str, Any]:
    """Kind (``images``, ``labels``, ``points``, ``shapes``) and element of a name; ValueError where there is none."""
    for kind in ("images", "labels", "points", "shapes"):
        held: Mapping[str, Any] = getattr(sdata, kind)
        if name in held:
            return kind, held[name]
    there = [n for kind in ("images", "labels", "points", "shapes") for n in getattr(sdata, kind)]
    raise ValueError(f"wanted an element of this SpatialData ({', '.join(there) or 'none'}), got {name!r}; name one")


def names_of(sd: Any, sdata: Any, elements: Iterable[str] | None, system: str) -> list[str]:
    """The names that the user gives, or those of all elements placed in the coordinate system; ValueError where none is."""
    if elements is not None:
        names = [elements] if isinstance(elements, str) else list(elements)
    else:
        everything = [n for kind in ("images", "labels", "points", "shapes") for n in getattr(sdata, kind)]
        held = sd.transformations.get_transformation
        names = [n for n in everything if system in held(element_of(sdata, n)[1], get_all=True)]
    if not names:
        raise ValueError(f"wanted elements placed in the coordinate system {system!r}, got none; name it")
    return names


def placed_in(sd: Any, element: Any, name: str, system: str) -> Array:
    """``[3, 3]`` from an element's own (x, y) to those of the coordinate system."""
    held = sd.transformations.get_transformation(element, get_all=True)
    if system not in held:
        raise ValueError(f"wanted {name!r} placed in the coordinate system {system!r}, got {', '.join(held)}; name one")
    axes = sd.models.get_axes_names(element)
    if "z" in axes and sd.models.get_model(element) is not sd.models.PointsModel:
        raise ValueError(
            f"wanted an element in a plane, got {name!r} with the axes {', '.join(axes)}; take a section of it"
        )
    matrix: Array = np.asarray(held[system].to_affine_matrix(XY, XY), dtype=np.float64)
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) == 0:
        raise ValueError(f"wanted an invertible map from {name!r} to {system!r}, got {matrix.tolist()}; mend it")
    return matrix


def mapped(matrix: Array, xy: Array) -> Array:
    """``[N, 2]`` through a homogeneous ``[3, 3]``."""
    moved: Array = xy @ matrix[:2, :2].T + matrix[:2, 2]
    return np.ascontiguousarray(moved)
