"""`Result`: the map of a registration, which carries data both ways, with its figures and its verdict."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from . import plugins
from .config import Config
from .data import Grid, Image, PointSet
from .maps.base import Transform
from .maps.edges import move_shapes
from .maps.plane import lift_points
from .maps.resample import move_points, resample
from .maps.shapes import Shapes

Carried = Image | PointSet | Shapes | Tensor
"""What a map can carry: images, point sets, shapes, and plain positions ``[..., D]``."""


@dataclass(frozen=True)
class Result:
    """A registration: the map ``Φ`` (moving → fixed) with its inverse, weights, figures and verdict.

    Args:
        transform: ``Φ``, from positions of the moving space to positions of the fixed space, each in its own unit.
        fixed_grid: canvas of the fixed side.
        moving_grid: canvas of the moving side.
        metrics: the content of ``metrics.json``: ``verdict``, ``reasons``, ``seconds``, ``n_evaluations``, ``energy`` …
        config: the settings that were used.
        affine: the affine part of ``transform`` alone, moving → fixed.
        history: one entry per step of the fit: ``stage``, ``level``, ``iteration``, ``energy`` …
        weight: probability that a fixed pixel shows tissue that both sides have, ``[*S]`` on ``weight_grid``, or None.
        weight_grid: grid of ``weight`` and of ``position_sd``, in the fixed space.
        position_sd: standard deviation per axis of the position of each fixed pixel, ``[*S]`` on ``weight_grid``, in the fixed
            unit, or None.
        section: whether the fixed side is a section placed in a moving volume, where it is the plane z = 0.
    """

    transform: Transform
    fixed_grid: Grid
    moving_grid: Grid
    metrics: dict[str, Any]
    config: Config
    affine: Transform
    history: list[dict[str, Any]] = field(default_factory=list)
    weight: Tensor | None = None
    weight_grid: Grid | None = None
    position_sd: Tensor | None = None
    section: bool = False

    @property
    def verdict(self) -> str:
        """``pass``, ``warn`` or ``fail``."""
        return str(self.metrics["verdict"])

    @property
    def reasons(self) -> tuple[str, ...]:
        """The reasons for the verdict, one sentence each, with what to do about it where something is known to help."""
        return tuple(self.metrics["reasons"])

    @property
    def confidence(self) -> float | None:
        """Share of maps with such figures that are right, 0 … 1 (see `regframe.confidence`); None where that is not known."""
        value = self.metrics.get("confidence")
        return None if value is None else float(value)

    def __repr__(self) -> str:
        m = self.metrics
        sure = "" if self.confidence is None else f"confidence {self.confidence:.2f}, "
        return (
            f"Result({m['verdict']}, {sure}{m.get('model', 'map')}, {m['n_evaluations']} evaluations, {m['seconds']:.1f} s, "
            f"round trip {m['roundtrip_px']['mean']:.2g} px)"
        )

    @overload
    def to_fixed(self, data: Image) -> Image: ...
    @overload
    def to_fixed(self, data: PointSet) -> PointSet: ...
    @overload
    def to_fixed(self, data: Shapes) -> Shapes: ...
    @overload
    def to_fixed(self, data: Tensor) -> Tensor: ...
    def to_fixed(self, data: Carried) -> Carried:
        """Carry moving-space data to the fixed space.

        An `Image` is resampled on the fixed grid; beyond its pixels lies white where it is brightfield, else 0. A `PointSet`,
        `Shapes` or positions ``[..., D]`` are moved. The image of a volume in which a section was placed comes back as a 2D
        image.
        """
        moved = _carry(data, self.transform, self.fixed_grid)
        if self.section and isinstance(moved, Image):  # the grid is one plane [1, H, W]: return a 2D image
            g = self.fixed_grid
            grid = Grid(g.shape[1:], g.spacing[1:], g.origin[1:], g.unit)
            weight = None if moved.weight is None else moved.weight[0]
            return moved.replace(data=moved.data[:, 0], grid=grid, weight=weight)
        return moved

    @overload
    def to_moving(self, data: Image) -> Image: ...
    @overload
    def to_moving(self, data: PointSet) -> PointSet: ...
    @overload
    def to_moving(self, data: Shapes) -> Shapes: ...
    @overload
    def to_moving(self, data: Tensor) -> Tensor: ...
    def to_moving(self, data: Carried) -> Carried:
        """Carry fixed-space data to the moving space.

        An `Image` is resampled on the moving grid and filled as `to_fixed` does; a `PointSet`, `Shapes` or positions
        ``[..., D]`` are moved. Of a section in a volume only points and positions can be carried.
        """
        if self.section:
            data = _lifted(data)
        return _carry(data, self.transform.inverse(), self.moving_grid)

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write the map as one OME-Zarr 0.6 folder (see ``docs/format.md``).

        The folder is written under another name and renamed when complete.
        """
        plugins.store().save(self, Path(path), overwrite=overwrite)


def _lifted(data: Carried) -> Carried:
    """2D points of a section as 3D points of the plane z = 0; ValueError for images and shapes."""
    if isinstance(data, PointSet):
        return lift_points(data) if data.ndim == 2 else data
    if isinstance(data, Tensor):
        return torch.cat([torch.zeros_like(data[..., :1]), data], dim=-1) if data.shape[-1] == 2 else data
    raise ValueError(
        f"wanted points to move from a section into a volume, got {type(data).__name__}; a plane fills no volume: resample the "
        "volume onto the section with to_fixed, or the positions of what is drawn on it"
    )


def _carry(data: Carried, transform: Transform, grid: Grid) -> Carried:
    if isinstance(data, Image):
        return resample(data, transform, grid, "auto")
    if isinstance(data, Shapes):
        return move_shapes(data, transform, grid)
    if isinstance(data, PointSet):
        return move_points(data, transform)
    return transform.points(data)
