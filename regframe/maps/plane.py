"""A section as the plane z = 0 of a volume: its grid, its image, its points."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data import Grid, Image, PointSet


def lifted(grid: Grid) -> Grid:
    """The grid of a section ``[H, W]`` as one plane ``[1, H, W]`` of a volume, at z = 0 and one pixel thick."""
    return Grid((1, *grid.shape), (grid.pixel, *grid.spacing), (0.0, *grid.origin), grid.unit)


def lift(image: Image) -> Image:
    """A section as one plane of a volume (see `lifted`)."""
    weight = None if image.weight is None else image.weight[None]
    return image.replace(data=image.data[:, None], grid=lifted(image.grid), weight=weight)


def nearest(codes: Tensor, grid: Grid, at: Tensor, beyond: int = 0) -> Tensor:
    """Value ``[...]`` of the voxel of ``codes`` ``[*S]`` nearest to each position ``[..., D]``; ``beyond`` outside the volume.

    ``grid`` is the grid of the voxels, in the unit of the positions.
    """
    origin, spacing = (at.new_tensor(v) for v in (grid.origin, grid.spacing))
    place, shape = ((at - origin) / spacing).round().to(torch.int64), torch.tensor(codes.shape)
    inside = ((place >= 0) & (place < shape)).all(dim=-1)
    place = place.clamp(min=0).minimum(shape - 1)
    flat = place[..., 0]
    for d in range(1, len(shape)):
        flat = flat * shape[d] + place[..., d]
    return torch.where(inside, codes.reshape(-1)[flat], beyond)


def lift_points(points: PointSet) -> PointSet:
    """Points of a section ``[N, 2]`` as points of its plane ``[N, 3]``, at z = 0; their table gets a z column."""
    coords = torch.cat([torch.zeros((len(points), 1), dtype=torch.float64), points.coords], dim=1)
    if not points.columns:
        return points.replace(coords=coords)
    y = points.columns[0]
    letter, rest = ("Z", y[1:]) if y.startswith("Y") else ("z", y[1:])
    name = letter + (rest if rest[:1] in ("", "_") else "")
    name = name if name not in points.table else f"regframe_{name}"
    return points.replace(
        coords=coords, table={**points.table, name: ["0.0"] * len(points)}, columns=(name, *points.columns)
    )
