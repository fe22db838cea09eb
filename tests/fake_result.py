"""A made-up `Result` with a smooth map, for tests of what is done with results rather than of how they are found."""

from __future__ import annotations

import math
from typing import Any

import torch

from regframe.config import Config
from regframe.data import Grid
from regframe.maps.affine import Affine
from regframe.maps.flow import Flow
from regframe.maps.sequence import Sequence
from regframe.result import Result


def smooth_velocity(grid: Grid, size: float, seed: int = 0) -> torch.Tensor:
    """``[1, D, *S]`` float64, at most ``size`` long."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn((1, grid.ndim, *(4,) * grid.ndim), generator=generator, dtype=torch.float64)
    mode = "bicubic" if grid.ndim == 2 else "trilinear"
    nodes = torch.nn.functional.interpolate(coarse, size=grid.shape, mode=mode, align_corners=True)
    return nodes * (size / torch.linalg.vector_norm(nodes, dim=1).max())


def fake_result(
    fixed: Grid,
    moving: Grid,
    affine: torch.Tensor | None = None,
    bend: float = 3.0,
    verdict: str = "pass",
    weight: bool = True,
    n_nodes: int = 2,
    **metrics: Any,
) -> Result:
    """A result between two canvases; ``bend`` is the largest displacement in moving pixels.

    Two velocity nodes a side keep the map without kinks, so that it is quick to store.
    """
    ndim = moving.ndim
    spacing = tuple(2 * e / (n_nodes - 1) for e in moving.extent)
    origin = tuple(c - e for c, e in zip(moving.center, moving.extent, strict=True))
    coarse = Grid((n_nodes,) * ndim, spacing, origin, moving.unit)
    flow = Flow(smooth_velocity(coarse, bend * moving.pixel), coarse)
    matrix = torch.eye(ndim + 1, dtype=torch.float64) if affine is None else affine
    linear = Affine(matrix, moving.unit, fixed.unit)
    weight_grid = fixed.resampled([2 * s for s in fixed.spacing]) if weight else None
    values = None
    if weight_grid is not None:
        away = torch.linalg.vector_norm(
            (weight_grid.coords() - torch.tensor(weight_grid.center)) / torch.tensor(weight_grid.extent), dim=-1
        )
        values = torch.sigmoid(4 - 8 * away).to(torch.float32)
    return Result(
        transform=Sequence((flow, linear)),
        fixed_grid=fixed,
        moving_grid=moving,
        metrics={
            "verdict": verdict,
            "reasons": [] if verdict == "pass" else ["12 % of the tissue has <no> counterpart."],
            "seconds": 1.83,
            "n_evaluations": 40,
            "energy": {"first": 1.2, "last": 0.31},
            "roundtrip_px": {"mean": 3e-4, "max": 2e-3},
            "jacobian_min": 0.61,
            "folding_fraction": 0.0,
            "matching_fraction": 0.88,
            "pose_margin": None,
            **metrics,
        },
        config=Config(),
        affine=linear,
        history=[
            {"stage": stage, "level": level, "iteration": i, "energy": start * (0.3 + 0.7 * math.exp(-i / 4))}
            for stage, level, start in (("affine", 1, 1.0), ("lddmm", 1, 0.6), ("lddmm", 0, 0.5))
            for i in range(12)
        ],
        weight=values,
        weight_grid=weight_grid,
    )
