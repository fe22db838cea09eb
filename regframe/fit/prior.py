"""The prior of the velocity of two images: smoothness, order, nodes and size, from what is aligned."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..config import Config
from ..data import Grid
from .frames import Frame
from .velocity import VelocitySpace, smooth_size

SCALE = 0.1
"""Default length a of the Sobolev operator, as a fraction of the moving canvas' extent (geometric mean of its sides)."""
ORDER = 2.0
"""Default power p of the Sobolev operator."""
SECTIONS_SCALE = 0.06
"""Length a where neighbouring sections are aligned: pieces of tissue move by themselves between the cuts."""
SECTIONS_ORDER = 1.0
"""Power p there."""
SECTIONS_NODES = 4
"""Velocity nodes per length a there."""
MOST_VARIABLES = 6_000_000
"""Values of a velocity at most; a finer one is given wider nodes, and more memory would not make it better."""
NODES = 3
"""Velocity nodes per length a: with fewer, the kinks of the multilinear velocity cost accuracy and storage."""
SCALE_3D = 0.042
"""Length a in a volume: organs fold in three directions."""
ORDER_3D = 1.0
"""Power p there."""
NODES_3D = 2
"""Velocity nodes per length a there, where they cost more."""
MARGIN_3D = 2.5
"""Lengths a by which velocities reach beyond a volume: there the far end of the period is no longer felt."""
PLANE_SCALE = 0.08
"""Length a where a section is placed in a volume, as a fraction of what is around it."""
PLANE_ORDER = 2.0
"""Power p there."""
PLANE_NODES = 2
"""Velocity nodes per length a there."""
PLANE_DEVIATION = 0.015
"""Prior standard deviation of a displacement there, as the same fraction; it is not adapted, for it would buy displacements
across the section that only fit noise."""
PLANE_ACROSS = 0.2
"""Deviation of a displacement across the section there, over that along it."""
DEVIATION = 0.1
"""Prior standard deviation of a displacement before anything is known, as the same fraction."""


def velocity_space(moving: Grid, config: Config, sections: bool = False, plane: Tensor | None = None) -> VelocitySpace:
    """Velocities for a moving canvas: smoothness from its extent, `NODES` nodes to a scale over twice the canvas.

    Args:
        moving: the moving canvas, in its physical unit.
        config: settings; lengths in the moving unit.
        sections: whether neighbouring sections are aligned, which needs rougher velocities.
        plane: where a section is placed in a slab of a volume, ``B`` ``[4, 4]`` of the normalised frames; else None.
    """
    grid = Frame.of(moving).grid(moving)
    extent = math.prod(grid.extent) ** (1 / grid.ndim)
    flat = grid.ndim == 2
    relative, order, per_scale = (SCALE, ORDER, NODES) if flat else (SCALE_3D, ORDER_3D, NODES_3D)
    n_slices = config.n_slices or (3 if flat else 1)
    if sections:
        relative, order, per_scale = SECTIONS_SCALE, SECTIONS_ORDER, SECTIONS_NODES
    stiff = None
    if plane is not None:
        normal = torch.linalg.cross(plane[:3, 1], plane[:3, 2])
        normal = normal / normal.norm()
        stiff = torch.eye(3, dtype=torch.float64) - (1 - PLANE_ACROSS) * torch.outer(normal, normal)
        extent = math.prod(sorted(grid.extent)[1:]) ** 0.5  # of the section, not of the slab's thickness
        relative, order, per_scale = PLANE_SCALE, PLANE_ORDER, PLANE_NODES
    scale = extent * relative if config.sobolev.scale is None else config.sobolev.scale / moving.pixel
    deviation = extent * (DEVIATION if plane is None else PLANE_DEVIATION)
    if config.sigma_regularizer is not None:
        deviation = config.sigma_regularizer / moving.pixel
    spacing = scale / per_scale
    while True:
        shape = []
        for d in range(grid.ndim):
            margin = max(grid.extent[d] / 2, 2 * scale) if flat and grid.shape[d] > 1 else MARGIN_3D * scale
            shape.append(smooth_size(max(4, math.ceil((grid.extent[d] + 2 * margin) / spacing))))
        if math.prod(shape) * grid.ndim * n_slices <= MOST_VARIABLES:
            break
        spacing *= 1.25
    origin = tuple(-(n - 1) / 2 * spacing for n in shape)
    nodes = Grid(tuple(shape), (spacing,) * grid.ndim, origin)
    return VelocitySpace(
        nodes, n_slices, config.n_steps or n_slices, scale, config.sobolev.order or order, deviation, stiff=stiff
    )
