"""The base class of all maps of positions, and the direction of a map.

Direction is defined here once. A `Transform` maps a *position of its source space* to a *position of its target
space* (``points``). A registration's map ``Φ = A φ₁`` has the moving space as source and the fixed space as target. An
image of the source space is carried to the target space by pull-back: its value at a target position ``y`` is the
source image at ``transform.inverse().points(y)``. A map is used in no other way, and no flag reverses it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from ..data import AXES, Grid, tensor_of
from ..later import torch

if TYPE_CHECKING:
    from torch import Tensor


class Transform(ABC):
    """A map of positions; ``source_unit`` and ``target_unit`` are the length units of the positions it takes and gives."""

    source_unit: str
    target_unit: str

    @property
    @abstractmethod
    def ndim(self) -> int:
        """Number of components of a position, 2 or 3."""

    @property
    def axes(self) -> tuple[str, ...]:
        """Order of the components of a position."""
        return AXES[self.ndim]

    @abstractmethod
    def points(self, coords: Tensor) -> Tensor:
        """Target positions ``[..., D]`` (float64) of source positions ``[..., D]``; NaN stays NaN."""

    @abstractmethod
    def inverse(self) -> Transform:
        """The map from target to source; ``t.inverse().points(t.points(x))`` is ``x`` to rounding."""

    def jacobian_determinant(self, grid: Grid) -> Tensor:
        """Ratio of target to source area (volume in 3D) for each pixel of ``grid``, ``[*S]``; ≤ 0 where the map folds.

        It is computed from the mapped corners of each pixel, so that a fold between two pixel centres is seen. ``grid`` lies
        in the source space; the unit is (target unit / source unit) to the power D.
        """
        check_grid(self, grid)
        corners = Grid(
            tuple(n + 1 for n in grid.shape),
            grid.spacing,
            tuple(o - s / 2 for o, s in zip(grid.origin, grid.spacing, strict=True)),
            grid.unit,
        )
        mapped = self.points(corners.coords())  # [*(S+1), D]
        columns = []
        for d in range(grid.ndim):
            edge = mapped.diff(dim=d) / grid.spacing[d]
            for other in range(grid.ndim):
                if other != d:
                    n = edge.shape[other]
                    edge = (edge.narrow(other, 0, n - 1) + edge.narrow(other, 1, n - 1)) / 2
            columns.append(edge)
        determinant: Tensor = torch.linalg.det(torch.stack(columns, dim=-1))
        return determinant

    def parts(self) -> tuple[Transform, ...]:
        """The elementary maps of which this one consists, in the order in which they are applied."""
        return (self,)


class OnGrid(Transform):
    """A map of a space into itself that is defined by values on the nodes of ``grid``; both sides have the grid's unit."""

    grid: Grid

    @property
    def source_unit(self) -> str:  # type: ignore[override]  # noqa: D102
        return self.grid.unit

    @property
    def target_unit(self) -> str:  # type: ignore[override]  # noqa: D102
        return self.grid.unit

    @property
    def ndim(self) -> int:  # noqa: D102
        return self.grid.ndim


def finite_only(function: object, coords: Tensor) -> Tensor:
    """Apply a function of ``[N, D]`` to coordinates ``[..., D]``; rows that are not finite give NaN."""
    flat = coords.reshape(-1, coords.shape[-1])
    finite = torch.isfinite(flat).all(dim=-1)
    assert callable(function)
    if bool(finite.all()):
        return torch.as_tensor(function(flat)).reshape(coords.shape)
    out = torch.full_like(flat, float("nan"))
    out[finite] = function(flat[finite])
    return out.reshape(coords.shape)


def check_coords(coords: Tensor, ndim: int) -> Tensor:
    """``coords`` ``[..., D]`` in float64; ValueError where they do not have ``ndim`` components."""
    x = tensor_of(coords, torch.float64)
    if x.ndim < 1 or x.shape[-1] != ndim:
        raise ValueError(f"wanted coordinates [..., {ndim}] in the order {AXES[ndim]}, got {tuple(x.shape)}")
    return x


def check_grid(transform: Transform, grid: Grid) -> None:
    """Raise ValueError unless ``grid`` lies in the source space of ``transform``."""
    if grid.ndim != transform.ndim or grid.unit != transform.source_unit:
        raise ValueError(
            f"wanted a grid of {transform.ndim} axes in {transform.source_unit} (the map's source), "
            f"got {grid.ndim} axes in {grid.unit}"
        )
