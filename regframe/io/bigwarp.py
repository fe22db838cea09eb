"""Landmarks in the JSON files of BigWarp and Warpy (Fiji, QuPath); x before y in them.

| file | layout | positions |
|---|---|---|
| BigWarp's landmarks | ``{"type": "BigWarpLandmarks", "numDimensions": 2, "movingPoints": [[x, y]…], "fixedPoints": […], "active": […], "names": […]}`` | each side's own unit |
| BigWarp's transform | ``{"type": "Thin Plate Spline", "landmarks": …}``, the former inside | the same |
| BigWarp's project | ``{"Sources": …, "Transform": …}``, the former inside | the same |
| Warpy's registration | ``{"type": "RealTransformSequence", "realTransform_0": …}``: pixel sizes of the fixed side as an affine map, a ``ThinplateSplineTransform`` from ``srcPts`` (fixed, ``[[x…], [y…]]``) to ``tgtPts`` (moving), pixel sizes of the moving side | pixels of full resolution, the first one's middle at 0 |
"""  # noqa: E501

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_DEEPEST = 16
"""Transforms within transforms that are looked into: Warpy nests four."""


class Landmark(NamedTuple):
    """One pair: its name, positions ``((z,) y, x)`` on both sides, and whether it counts."""

    name: str
    fixed: tuple[float, ...]
    moving: tuple[float, ...]
    on: bool


class Landmarks(NamedTuple):
    """The pairs of a file, and their unit: ``px``, or None for each side's own."""

    pairs: list[Landmark]
    unit: str | None


def parsed(text: str) -> Landmarks | None:
    """The pairs of a text in one of these layouts; None for text that is no JSON object.

    ValueError, in one sentence, for a JSON object with another content, or a damaged one.
    """
    text = text.lstrip("\ufeff \t\r\n")
    if text[:1] != "{":
        return None
    try:
        document: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("wanted landmarks, got JSON that is cut off or damaged; save it anew") from error
    if "realTransform_0" in document or document.get("type") == "ThinplateSplineTransform":
        return _warpy(document)
    for key in ("Transform", "landmarks"):
        document = document[key] if isinstance(document, dict) and isinstance(document.get(key), dict) else document
    if not isinstance(document, dict) or document.get("type") != "BigWarpLandmarks":
        raise ValueError("wanted landmarks as BigWarp or Warpy write them in JSON, got JSON with another content")
    ndim, moving, fixed = (document.get(key) for key in ("numDimensions", "movingPoints", "fixedPoints"))
    if ndim not in (2, 3) or not isinstance(moving, list) or not isinstance(fixed, list) or len(moving) != len(fixed):
        raise ValueError(
            "wanted as many movingPoints as fixedPoints in 2 or 3 dimensions in BigWarp's JSON, got something else"
        )
    n = len(moving)
    p, q = _numbers(moving, (n, ndim)), _numbers(fixed, (n, ndim))
    active, names = document.get("active"), document.get("names")
    active = active if isinstance(active, list) and len(active) == n else [True] * n
    names = names if isinstance(names, list) and len(names) == n else [str(i) for i in range(1, n + 1)]
    return Landmarks(_paired(q, p, list(map(str, names)), [on is True for on in active]), None)


def written(pairs: Sequence[Landmark]) -> str:
    """The text of pairs as BigWarp's transform; numbers read back the same."""
    landmarks = {
        "type": "BigWarpLandmarks",
        "numDimensions": len(pairs[0].fixed) if pairs else 2,
        "movingPoints": [list(pair.moving[::-1]) for pair in pairs],
        "fixedPoints": [list(pair.fixed[::-1]) for pair in pairs],
        "active": [pair.on for pair in pairs],
        "names": [pair.name for pair in pairs],
    }
    return json.dumps({"type": "Thin Plate Spline", "landmarks": landmarks}, ensure_ascii=False, indent=1) + "\n"


def _warpy(document: dict[str, Any]) -> Landmarks:
    """The pairs of a spline between two affine maps, which take them to pixels."""
    if "realTransform_0" not in document:
        steps = [document]
    else:
        steps = [document[f"realTransform_{i}"] for i in range(len(document)) if f"realTransform_{i}" in document]
    sides: list[Array] = [np.eye(4), np.eye(4)]
    spline: dict[str, Any] | None = None
    for step in map(_unwrapped, steps):
        if "affinetransform3d" in step:
            matrix = np.vstack([_numbers(step["affinetransform3d"], (3, 4)), [0, 0, 0, 1]])
            after = int(spline is not None)
            sides[after] = matrix @ sides[after]
        elif "srcPts" in step and spline is None:
            spline = step
        else:
            raise ValueError("wanted one spline between affine maps in Warpy's JSON, got something else")
    if spline is None or not isinstance(spline["srcPts"], list) or not spline["srcPts"]:
        raise ValueError(
            "wanted a spline by landmarks in Warpy's JSON, got none; export the landmarks as BigWarp's table"
        )
    ndim, n = len(spline["srcPts"]), np.size(spline["srcPts"][0])
    if ndim not in (2, 3):
        raise ValueError(f"wanted landmarks in 2 or 3 dimensions in Warpy's JSON, got {ndim}")
    if abs(np.linalg.det(sides[0])) < 1e-300:
        raise ValueError("wanted pixel sizes in Warpy's JSON, got a map that has no inverse")
    p, q = _numbers(spline["tgtPts"], (ndim, n)).T, _numbers(spline["srcPts"], (ndim, n)).T
    back: Array = np.asarray(np.linalg.inv(sides[0]), dtype=np.float64)
    fixed, moving = _through(back, q), _through(sides[1], p)
    unit = "px" if len(steps) > 1 else None
    return Landmarks(_paired(fixed, moving, [str(i) for i in range(1, n + 1)], [True] * n), unit)


def _unwrapped(step: Any) -> dict[str, Any]:
    """The transform inside those that wrap it."""
    for _ in range(_DEEPEST):
        inner = step.get("wrappedTransform", step.get("realTransform")) if isinstance(step, dict) else None
        if inner is None:
            break
        step = inner
    if not isinstance(step, dict):
        raise ValueError("wanted transforms in Warpy's JSON, got something else")
    return step


def _through(matrix: Array, points: Array) -> Array:
    ndim = points.shape[1]
    placed: Array = points @ matrix[:ndim, :ndim].T + matrix[:ndim, 3]
    return placed


def _paired(fixed: Array, moving: Array, names: list[str], on: list[bool]) -> list[Landmark]:
    rows = zip(names, fixed[:, ::-1].tolist(), moving[:, ::-1].tolist(), on, strict=True)
    return [Landmark(name, tuple(f), tuple(m), counts) for name, f, m, counts in rows]


def _numbers(values: Any, shape: tuple[int, ...]) -> Array:
    """Finite numbers of a shape; ValueError for anything else."""
    try:
        array = np.array(values, dtype=np.float64).reshape(shape)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"wanted {' by '.join(map(str, shape))} numbers in the JSON of landmarks, got others"
        ) from error
    if not np.isfinite(array).all():
        raise ValueError(
            "wanted finite numbers in the JSON of landmarks, got others; leave points without a partner out"
        )
    return array
