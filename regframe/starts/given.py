"""Starts that the user gives: turns the argument ``init`` into a matrix in physical units."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import plugins, strangers
from ..config import Config
from ..contracts import Candidate, Task
from ..data import Grid, Image, PointSet, tensor_of
from ..fit.frames import affine_kind
from ..maps.affine import Affine
from ..maps.base import Transform
from ..maps.homogeneous import determinant
from .identity import unit_of
from .landmarks import Landmarks, fit_points, landmarks
from .pose import nearest_of_kind
from .scale import Scale

MARGIN = 0.1
"""Share of the extent of a cloud of points, on either side of it, within which a landmark still counts as on it: tissue goes on
beyond the last cell. A choice."""
SHARE = 0.5
"""Share of the landmarks of a side that have to lie outside a cloud, all being inside with both sides exchanged, before that is
said: a few may be set beside the cells on purpose. A choice."""


def given(fixed: Grid, moving: Grid, init: Any, config: Config) -> Tensor | None:
    """The start ``A`` ``[D+1, D+1]`` float64 that ``init`` states, moving → fixed in physical units; None for ``auto``.

    The start is of the model that is asked for; a given map of a richer model is replaced by the nearest one of that model.

    Args:
        fixed: canvas of the fixed side.
        moving: canvas of the moving side.
        init: ``"auto"``, `Landmarks` or an affine `Transform` from moving to fixed; starts with other names were replaced by what
            they found (`first_pose`).
        config: ``transform`` says which model is asked for.

    Raises:
        ValueError: where ``init`` determines no start, or a rigid map is asked for although the units do not give the scale.
    """
    scale = Scale.of(fixed, moving)
    if config.transform == "rigid" and scale.ratio is None:
        raise ValueError(
            f"wanted both sides in length units for a rigid map, got fixed in {fixed.unit} and moving in "
            f"{moving.unit}; state the missing spacing or unit (--fixed-mpp, --moving-mpp), or use transform='similarity'"
        )
    if isinstance(init, str) and init == "auto":
        return None
    if isinstance(init, Landmarks):
        matrix = _of_landmarks(init, scale, moving.ndim, config)
    else:
        matrix = _of_transform(init, fixed, moving)
    return nearest_of_kind(matrix, config.transform, scale.factor, moving.center)


def first_pose(name: str, options: dict[str, Any], task: Task) -> Any:
    """What the start called ``name`` finds for a pair, as `given` takes it: its first candidate.

    Raises ValueError where it finds none, or something that is no start, with its name.
    """
    asked = plugins.start(name, **options)
    whose = strangers.words(asked, "start")
    candidates = asked.find(task)
    if not isinstance(candidates, (list, tuple)) or not candidates:
        raise ValueError(
            f"wanted a place to begin from the start {name!r}, got {candidates!r}; take another one, or init='auto'"
        )
    best = candidates[0]
    if not isinstance(best, Candidate) or (best.matrix is None) == (best.landmarks is None):
        raise ValueError(f"wanted regframe.Candidate with a matrix or landmarks from {whose}, got {best!r}")
    return landmarks(*best.landmarks) if best.landmarks is not None else position_of(best, task, whose)


def position_of(candidate: Candidate, task: Task, whose: str = "a start") -> Affine:
    """The affine map of a candidate, moving → fixed; that of landmarks is fitted to them.

    Raises ValueError for a matrix of another dimension than the moving side, or that is not finite.
    """
    units = unit_of(task.moving), unit_of(task.fixed)
    if candidate.landmarks is not None:
        return Affine(fit_points(*candidate.landmarks)[0].matrix, *units)
    ndim = task.moving.grid.ndim if isinstance(task.moving, Image) else task.moving.ndim
    matrix = tensor_of(candidate.matrix, torch.float64)
    if tuple(matrix.shape) != (ndim + 1, ndim + 1) or not bool(matrix.isfinite().all()):
        raise ValueError(
            f"wanted a finite matrix {[ndim + 1] * 2} from {whose}, got {tuple(matrix.shape)}: {matrix.tolist()}"
        )
    return Affine(matrix, *units)


def _of_landmarks(pairs: Landmarks, scale: Scale, ndim: int, config: Config) -> Tensor:
    if pairs.moving.shape[1] != ndim:
        raise ValueError(f"wanted landmarks of {ndim} components, got {pairs.moving.shape[1]}")
    pairs = pairs.agreeing()
    fitted, _ = fit_points(pairs.moving * scale.factor, pairs.fixed, affine_kind(config.transform))
    matrix = fitted.matrix.clone()
    matrix[:-1, :-1] = matrix[:-1, :-1] * scale.factor
    if not float(determinant(matrix).abs()) > 0:
        raise ValueError("wanted landmarks that give an invertible map, got a singular one; check their pairing")
    return matrix


def _of_transform(init: Any, fixed: Grid, moving: Grid) -> Tensor:
    if not isinstance(init, Transform):
        names = ", ".join(repr(name) for name in ("auto", *(e.name for e in plugins.entries("start"))))
        matrix = "; an array says neither units nor order of axes: give regframe.Affine(matrix, unit, unit), (z,) y, x"
        hint = matrix if hasattr(init, "__array__") else ""
        raise ValueError(
            f"wanted init {names}, a file, landmarks, a Transform or a Result, got {' '.join(repr(init).split())}{hint}"
        )
    parts = init.parts()
    if len(parts) != 1 or not isinstance(parts[0], Affine) or init.ndim != moving.ndim:
        raise ValueError(
            f"wanted an affine map of {moving.ndim}D to start from, got {type(init).__name__} of {init.ndim}D; "
            "pass the .affine of a result"
        )
    if (init.source_unit, init.target_unit) != (moving.unit, fixed.unit):
        raise ValueError(
            f"wanted a start from {moving.unit} to {fixed.unit}, got one from {init.source_unit} to {init.target_unit}"
        )
    return parts[0].matrix


def check_sides(fixed: Image | PointSet, moving: Image | PointSet, pairs: Landmarks) -> None:
    """ValueError where landmarks lie beside their sides, and all on them with fixed and moving exchanged.

    Of an image, flat or a volume, one that lies outside of it is enough; of a cloud of points `SHARE` of them.
    """
    sides = {"fixed": (fixed, pairs.fixed), "moving": (moving, pairs.moving)}
    if any(coords.shape[1] != _ndim(data) for data, coords in sides.values()):
        return
    turned = bool(_on(fixed, pairs.moving).all() & _on(moving, pairs.fixed).all())
    for name, (data, coords) in sides.items():
        outside = int((~_on(data, coords)).sum())
        if turned and outside and (isinstance(data, Image) or outside >= SHARE * len(coords)):
            raise ValueError(
                f"wanted {name} landmarks inside the {name} side, got {outside} of {len(coords)} outside, and all inside with "
                "both sides exchanged; swap fixed and moving of the landmarks"
            )


def check_landmarks(pairs: Landmarks, fixed: Image, moving: Image) -> None:
    """Refuse landmarks of another dimension than their image, or outside it.

    Landmarks outside usually mean a wrong unit, or x and y exchanged.
    """
    check_sides(fixed, moving, pairs)
    for coords, image, side in ((pairs.fixed, fixed, "fixed"), (pairs.moving, moving, "moving")):
        if coords.shape[1] != image.grid.ndim:
            raise ValueError(f"wanted {side} landmarks of {image.grid.ndim} components, got {coords.shape[1]}")
        outside = int((~image.grid.contains(coords)).sum())
        if outside:
            raise ValueError(
                f"wanted {side} landmarks inside the {side} image, got {outside} of {len(coords)} outside; "
                "check their unit and the order of x and y"
            )


def _ndim(data: Image | PointSet) -> int:
    return data.grid.ndim if isinstance(data, Image) else data.ndim


def _on(data: Image | PointSet, coords: torch.Tensor) -> torch.Tensor:
    """Whether positions ``[N, D]`` lie on an image's canvas, or on the box of a cloud with its `MARGIN`, ``[N]`` bool."""
    if isinstance(data, Image):
        return data.grid.contains(coords)
    known = data.coords[data.coords.isfinite().all(dim=1)].to(torch.float64)
    if not len(known):
        return torch.zeros(len(coords), dtype=torch.bool)
    low, high = known.amin(dim=0), known.amax(dim=0)
    margin = MARGIN * (high - low)
    return ((coords >= low - margin) & (coords <= high + margin)).all(dim=1)
