"""`Result`: the map of a registration, which carries data both ways, with its figures and its verdict."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from . import plugins, verdict
from .config import Config
from .data import Grid, Image, PointSet, describe_grid, tensor_of
from .display import notebook
from .fit.uncertainty import radius_90
from .maps.base import Transform
from .maps.edges import move_shapes
from .maps.gridlines import grid_lines
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
        folder: where the result was loaded from; None where it was made in memory.
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
    folder: Path | None = field(default=None, compare=False, repr=False)

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

    @property
    def headline(self) -> str:
        """The verdict in plain words, with the confidence where it is known."""
        return verdict.headline(self.verdict, self.confidence)

    def __repr__(self) -> str:
        m = self.metrics
        sure = "" if self.confidence is None else f"confidence {self.confidence:.2f}, "
        return (
            f"Result({m['verdict']}, {sure}{m.get('model', 'map')}, {m['n_evaluations']} evaluations, {m['seconds']:.1f} s, "
            f"round trip {m['roundtrip_px']['mean']:.2g} px)"
        )

    def _repr_html_(self) -> str:
        radius = self.expected_error
        shown = [*grid_lines(self.transform, self.moving_grid)]
        edges = notebook.edges(self.fixed_grid.shape, self.fixed_grid.spacing, self.fixed_grid.origin)
        unit = self.fixed_grid.unit
        facts = [
            ("fixed", describe_grid(self.fixed_grid)),
            ("moving", describe_grid(self.moving_grid)),
            ("map", str(self.metrics.get("model", "map"))),
            *(
                []
                if radius is None
                else [("expected error", f"{radius:.2g} {unit} if the map is right (90 % radius, median)")]
            ),
            *([("why", reason) for reason in self.reasons]),
        ]
        return notebook.table(self.headline, facts, notebook.lines(shown, edges))

    @property
    def expected_error(self) -> float | None:
        """Distance, in the fixed unit, within which nine positions in ten are expected to lie of where they belong.

        The median over the canvas, each pixel counted by how likely it shows matching tissue; None where ``position_sd`` is not
        known. It is what the fit expects if the map is right; whether it is right is what the verdict says.
        """
        if self.position_sd is None or self.weight_grid is None:
            return None
        sd = self.position_sd.to(torch.float64).flatten()
        weight = torch.ones_like(sd) if self.weight is None else self.weight.to(torch.float64).flatten()
        sure = torch.isfinite(sd) & (weight > 0)
        if not bool(sure.any()):
            return None
        order = sd[sure].argsort()
        total = weight[sure][order].cumsum(0)
        middle = int((total < total[-1] / 2).sum())
        return radius_90(self.fixed_grid.ndim) * float(sd[sure][order][middle])

    def plot(self, axes: Any = None) -> Any:
        """Draw the moving side's grid as the map bends it, over the 90 % radius of each fixed position where that is known.

        Args:
            axes: matplotlib axes to draw on; new ones where None.

        Returns:
            The axes, x and y in the fixed unit.
        """
        unit = self.fixed_grid.unit
        axes = notebook.axes_of(axes, self.headline, unit)
        values, label = self.position_sd, f"90 % radius of a position ({unit})"
        if values is not None:
            values = values * radius_90(self.fixed_grid.ndim)
        elif self.weight is not None:
            values, label = self.weight, "probability of matching tissue"
        if values is not None and self.weight_grid is not None:
            grid = self.weight_grid
            flat = values[values.shape[0] // 2] if values.ndim == 3 else values
            shown = axes.imshow(
                flat.numpy(), extent=notebook.edges(grid.shape, grid.spacing, grid.origin), cmap="cividis"
            )
            axes.figure.colorbar(shown, ax=axes, label=label)
        for line in grid_lines(self.transform, self.moving_grid):
            axes.plot(line[:, 1], line[:, 0], color="#1f5fae", linewidth=0.8)
        left, right, bottom, top = notebook.edges(
            self.fixed_grid.shape, self.fixed_grid.spacing, self.fixed_grid.origin
        )
        axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
        return axes

    def overlay(
        self,
        fixed: Image | PointSet | str | Path | None = None,
        moving: Image | PointSet | str | Path | None = None,
        axes: Any = None,
    ) -> Any:
        """Draw both sides in the fixed space, the moving one carried by the map.

        Images lie over each other, fixed in magenta, moving in green, both in black; points are blue and orange dots.

        Args:
            fixed: the fixed data, or a path to open; what the run recorded where None.
            moving: the moving data, as it came, likewise.
            axes: matplotlib axes to draw on; new ones where None.

        Returns:
            The axes, x and y in the fixed unit.

        Raises ValueError where nothing says what a side was.
        """
        if not (isinstance(fixed, (Image, PointSet)) and isinstance(moving, (Image, PointSet))):
            opened: tuple[Image | PointSet, Image | PointSet] = plugins.pages().sides(self, fixed, moving)
            fixed, moving = opened
        axes = notebook.axes_of(axes, f"{fixed.name} and {moving.name}", self.fixed_grid.unit)
        grid = self.fixed_grid
        left, right, bottom, top = notebook.edges(grid.shape, grid.spacing, grid.origin)
        inks: dict[str, Any] = {}
        sides = {"fixed": fixed, "moving": self.to_fixed(moving)}
        for name, data in sides.items():
            if isinstance(data, Image):
                inks[name] = notebook.ink(notebook.rgb(notebook.thinned(_flat(data), 1500), data.labels))
        if inks:
            height, width = next(iter(inks.values())).shape
            blank = np.zeros((height, width), dtype=np.float32)
            one, other = (notebook.fitted(inks.get(name, blank), (height, width)) for name in sides)
            axes.imshow(np.stack([1 - other, 1 - one, 1 - other], axis=-1), extent=(left, right, bottom, top))
        for data, colour in zip(sides.values(), ("#0072b2", "#e69f00"), strict=True):
            if isinstance(data, PointSet):
                data.plot(axes, color=colour)
        axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
        axes.set_title(f"{fixed.name} and {moving.name}")
        return axes

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

    def viewer(
        self,
        fixed: Image | PointSet | str | Path | None = None,
        moving: Image | PointSet | str | Path | None = None,
        size: int = 720,
    ) -> Any:
        """Both sides over each other in a notebook: a widget with swipe, flicker and opacity; needs the extra ``notebook``.

        Args:
            fixed: the fixed data, or a path to open; what the run recorded where None.
            moving: the moving data, likewise.
            size: pixels along the longer side of the pictures, which the notebook holds: some 2 MB of tissue at 720 pixels.

        Returns:
            The widget; its traits ``mode`` and ``amount`` may be read and set.

        Raises:
            ValueError: nothing says what a side was, or the size is none.
            ImportError: the extra is missing; the message has the line that installs it.
        """
        return plugins.pages().viewer(self, fixed, moving, size)

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write the map as one OME-Zarr 0.6 folder (see ``docs/format.md``).

        The folder is written under another name and renamed when complete.
        """
        plugins.store().save(self, Path(path), overwrite=overwrite)

    def report(
        self,
        path: str | Path | None = None,
        fixed: Image | PointSet | str | Path | None = None,
        moving: Image | PointSet | str | Path | None = None,
    ) -> Path:
        """Write the page of this result, one HTML file that needs no network.

        ``rf.load("OUT").report()`` draws ``OUT/report.html`` again, with the inputs that the run recorded.

        Args:
            path: the file, replaced if it exists; where None, ``report.html`` in the run's folder that this result was loaded
                from, or ``NAME.report.html`` beside a map ``NAME.ome.zarr`` that was saved alone.
            fixed: the fixed data, or a path to open; what the run recorded where None.
            moving: the moving data, likewise.

        Returns:
            The file.

        Raises:
            ValueError: neither ``path`` nor the result says where to write, or nothing says what a side was.
            OSError: a side cannot be read, or the page cannot be written.
        """
        written: Path = plugins.pages().write(self, None if path is None else Path(path), fixed, moving)
        return written


def _flat(image: Image) -> np.ndarray[Any, Any]:
    """Pixels ``[H, W, C]`` of an image, or of the middle plane of a volume."""
    pixels = image.numpy()
    return pixels[pixels.shape[0] // 2] if image.grid.ndim == 3 else pixels


def _lifted(data: Carried) -> Carried:
    """2D points of a section as 3D points of the plane z = 0; ValueError for images and shapes."""
    if isinstance(data, PointSet):
        return lift_points(data) if data.ndim == 2 else data
    if not isinstance(data, (Image, Shapes)):
        coords: Any = tensor_of(data)
        return torch.cat([torch.zeros_like(coords[..., :1]), coords], dim=-1) if coords.shape[-1] == 2 else coords
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
