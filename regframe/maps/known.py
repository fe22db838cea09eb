"""Any map as one made of affine maps, flows and displacements: what store, tiles and formats know.

A map of another kind bends positions by a rule of its own. What is written or warped tile by tile must be bounded and read again
without that rule, so the part is sampled as a displacement field, as coarsely as a tolerance allows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..data import Grid
from .affine import Affine
from .base import Transform
from .displacement import Displacement
from .fields import coarsest_field
from .flow import Flow
from .sequence import in_a_row

KNOWN = (Affine, Flow, Displacement)
TOLERANCE_PX = 0.001
"""Largest error, in moving pixels, of a map of another kind that is sampled: a third of what stored fields may add besides."""
MARGIN = 0.25
"""How far beyond both canvases a sampled map reaches, over their extent; the displacement is zero farther out."""


def known(transform: Transform, moving: Grid, fixed: Grid, tolerance: float = TOLERANCE_PX) -> Transform:
    """``transform`` itself where all its parts are known; otherwise the others are sampled where the canvases lie.

    Args:
        transform: from the moving to the fixed space.
        moving: canvas that positions come from.
        fixed: canvas that they go to.
        tolerance: largest error of a sampled part at its test positions, in moving pixels.

    Raises ValueError for a part of an unknown kind that also changes the unit: a displacement between two units has no meaning.
    """
    parts = transform.parts()
    if all(isinstance(part, KNOWN) for part in parts):
        return transform
    out: list[Transform] = []
    before = _lattice(moving)  # [N, D], where the parts so far take the moving canvas
    pixel = torch.tensor(moving.spacing, dtype=torch.float64)
    for k, part in enumerate(parts):
        if not isinstance(part, KNOWN):
            if part.source_unit != part.target_unit:
                raise ValueError(
                    f"wanted a {type(part).__name__} within one unit, got {part.source_unit} → {part.target_unit}; "
                    "put the change of unit into an affine map before or after it"
                )
            after = _lattice(fixed)
            for later in reversed(parts[k:]):
                after = later.inverse().points(after)
            part = _sampled(part, torch.cat([before, after]), tuple(pixel.tolist()), tolerance)
        out.append(part)
        if isinstance(part, Affine):
            pixel = (part.matrix[:-1, :-1].abs() @ pixel).clamp(min=1e-12)
        before = part.points(before)
    return in_a_row(out)


def _sampled(part: Transform, seen: Tensor, pixel: tuple[float, ...], tolerance: float) -> Displacement:
    """A part as a displacement over the box of the positions ``seen`` ``[N, D]`` and a margin, linear between nodes.

    Around it lies one node of zeros, to which it fades within a cell.
    """
    seen = seen[torch.isfinite(seen).all(dim=1)]
    low, high = seen.amin(dim=0), seen.amax(dim=0)
    more = MARGIN * (high - low)
    box = torch.stack([low - more, high + more])
    shape = tuple(max(2, round(float(e) / p) + 1) for e, p in zip(box[1] - box[0], pixel, strict=True))
    base = Grid(shape, pixel, tuple(box[0].tolist()), part.source_unit)
    return coarsest_field(part, base, box, pixel, tolerance)[0]


def _lattice(grid: Grid, n: int = 33) -> Tensor:
    """Positions ``[N, D]`` evenly over a canvas, its corners among them."""
    corners = grid.corners()
    low, high = corners.amin(dim=0), corners.amax(dim=0)
    axes = [torch.linspace(float(a), float(b), n, dtype=torch.float64) for a, b in zip(low, high, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, grid.ndim)
