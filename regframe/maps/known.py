"""Replaces foreign parts of a map by displacement fields, so that store, tiles and formats can handle any map.

Store, tiles and formats know affine maps, flows and displacements. A map of another kind (a plug-in's, say) follows a rule of its
own; so that it can be stored and bounded without that rule, it is sampled as a displacement field, as coarsely as a tolerance
allows.
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
from .pieces import Pieces
from .sequence import in_a_row

KNOWN = (Affine, Flow, Displacement)
"""Kinds of elementary maps that store, tiles and formats handle themselves."""
TOLERANCE_PX = 0.001
"""Largest error, in moving pixels, by which a sampled map may differ from the exact one: a third of what the store may add by
sampling a flow (`io.fields.TOLERANCE_PX`)."""
MARGIN = 0.25
"""Distance by which a sampled map reaches beyond both canvases on every side, as a fraction of their extent; farther out the
displacement is zero."""


def known(transform: Transform, moving: Grid, fixed: Grid, tolerance: float = TOLERANCE_PX) -> Transform:
    """``transform`` with every part of a foreign kind sampled as a displacement; unchanged where there is none.

    Args:
        transform: from the moving to the fixed space.
        moving: canvas of the moving side.
        fixed: canvas of the fixed side.
        tolerance: largest error of a sampled part at its test positions, in moving pixels.

    Raises ValueError for a foreign part that also changes the unit: a displacement between two units has no meaning.
    """
    parts = tuple(_of_pieces(part, moving, fixed, tolerance) for part in transform.parts())
    if all(isinstance(part, (*KNOWN, Pieces)) for part in parts):
        return transform if all(a is b for a, b in zip(parts, transform.parts(), strict=True)) else in_a_row(parts)
    out: list[Transform] = []
    before = _lattice(moving)  # [N, D], positions of the moving canvas, mapped by the parts so far
    pixel = torch.tensor(moving.spacing, dtype=torch.float64)
    for k, part in enumerate(parts):
        if not isinstance(part, (*KNOWN, Pieces)):
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


def _of_pieces(part: Transform, moving: Grid, fixed: Grid, tolerance: float) -> Transform:
    """A map in pieces with the map of each piece as a known one; any other part as it is."""
    if not isinstance(part, Pieces):
        return part
    maps = tuple(known(one, moving, fixed, tolerance) for one in part.maps)
    return part if all(a is b for a, b in zip(maps, part.maps, strict=True)) else Pieces(maps, part.source, part.target)


def _sampled(part: Transform, seen: Tensor, pixel: tuple[float, ...], tolerance: float) -> Displacement:
    """A part as a displacement on a grid over the box of the positions ``seen`` ``[N, D]`` and a margin, linear between nodes.

    Beyond its outermost nodes it fades to zero within one cell.
    """
    seen = seen[torch.isfinite(seen).all(dim=1)]
    low, high = seen.amin(dim=0), seen.amax(dim=0)
    more = MARGIN * (high - low)
    box = torch.stack([low - more, high + more])
    shape = tuple(max(2, round(float(e) / p) + 1) for e, p in zip(box[1] - box[0], pixel, strict=True))
    base = Grid(shape, pixel, tuple(box[0].tolist()), part.source_unit)
    return coarsest_field(part, base, box, pixel, tolerance)[0]


def _lattice(grid: Grid, n: int = 33) -> Tensor:
    """Positions ``[N, D]`` on an even grid over a canvas, ``n`` along each axis, the corners included."""
    corners = grid.corners()
    low, high = corners.amin(dim=0), corners.amax(dim=0)
    axes = [torch.linspace(float(a), float(b), n, dtype=torch.float64) for a, b in zip(low, high, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, grid.ndim)
