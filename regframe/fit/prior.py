"""The prior of the velocity: how smooth it is, how large its displacements may be, on which nodes it is given.

A `Prior` is stated relative to the moving canvas, so that one serves pairs of any size; `velocity_space` makes the velocities of
one pair from it. What else than two pictures or two volumes is aligned has its prior with its solver.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import Config
from ..data import Grid
from .frames import Frame
from .velocity import VelocitySpace, nodes_over

FREE = 1.0
"""Nats by which the evidence must rise for each number that a richer model of a map may choose: one half is what a number gains
in the mean where there is nothing to gain (half a χ² of one degree), as much again for doubt."""
SCALE = 0.1
"""Length a of the Sobolev operator for two pictures, as a fraction of the moving canvas' extent (geometric mean of its
sides)."""
ORDER = 2.0
"""Power p of the Sobolev operator for two pictures; STalign's too (Clifton et al. 2023)."""
NODES = 3
"""Velocity nodes per length a for two pictures: with fewer, the kinks of the multilinear velocity cost accuracy and storage."""
SCALE_3D = 0.042
"""Length a for two volumes, as a fraction of the moving canvas' extent: organs fold in three directions. Set on one pair of
brain slabs, whose labels are reported."""
ORDER_3D = 1.0
"""Power p for two volumes; set on that pair too."""
NODES_3D = 2
"""Velocity nodes per length a for two volumes, where a node per axis more costs half as much again."""
MARGIN_3D = 2.5
"""Lengths a by which velocities reach beyond a volume: there the far end of the FFT's period is no longer felt."""
DEVIATION = 0.1
"""Prior standard deviation of a displacement before anything is known, as a fraction of the moving canvas' extent: so wide that
it holds back no bend that tissue goes through."""
DEVIATION_MARGIN = 3.0
"""The prior standard deviation of the next level over the rms displacement found so far: wide enough to leave room for more."""
MOST_VARIABLES = 6_000_000
"""Values of a velocity at most, a matter of memory (24 MB each in the pairs kept by L-BFGS); a finer one is given wider nodes."""


@dataclass(frozen=True)
class Prior:
    """What is believed of a bend before the data are looked at, relative to the moving canvas.

    Args:
        scale: length a of the Sobolev operator, as a fraction of the canvas' extent (geometric mean of its sides).
        order: power p of the Sobolev operator.
        nodes: velocity nodes per length a.
        deviation: standard deviation of a displacement at the start, as a fraction of that extent.
        slices: time slices T of the velocity where the user does not set them.
        margin: lengths a by which nodes reach beyond the canvas on every side, at least.
        beyond: what they reach beyond it at least, as a share of its side along that axis.
        adapts: the deviation of the next level over the rms displacement found so far; None where it stays as it is.
        across: for one plane placed in a volume, the deviation across the plane over that along it; None for all others. The
            extent then is that of the canvas' two longest sides.
        most: values of the velocity at most.
        widening: factor by which nodes are moved apart, again and again, where there would be more.
    """

    scale: float
    order: float
    nodes: float
    deviation: float = DEVIATION
    slices: int = 3
    margin: float = 2.0
    beyond: float = 0.0
    adapts: float | None = DEVIATION_MARGIN
    across: float | None = None
    most: int = MOST_VARIABLES
    widening: float = 1.25


PICTURES = Prior(SCALE, ORDER, NODES, beyond=0.5)
"""The prior of two pictures; its nodes cover twice the canvas."""
VOLUMES = Prior(SCALE_3D, ORDER_3D, NODES_3D, slices=1, margin=MARGIN_3D)
"""The prior of two volumes."""


def velocity_space(
    moving: Grid, config: Config, prior: Prior | None = None, pullback: Tensor | None = None
) -> VelocitySpace:
    """Velocities for a moving canvas under a prior.

    Args:
        moving: the moving canvas, in its physical unit.
        config: settings, which go before the prior's; lengths in the moving unit.
        prior: None: that of two pictures or two volumes.
        pullback: ``B`` ``[4, 4]`` of the normalised frames, for a prior that knows a direction ``across`` the fixed plane.
    """
    grid = Frame.of(moving).grid(moving)
    if prior is None:
        prior = PICTURES if grid.ndim == 2 else VOLUMES
    n_slices = config.n_slices or prior.slices
    extent = math.prod(grid.extent) ** (1 / grid.ndim)
    stiff = None
    if prior.across is not None:
        assert pullback is not None
        stiff = _stiffer_across(pullback, prior.across)
        extent = math.prod(sorted(grid.extent)[1:]) ** 0.5  # of the section, not of the slab's thickness
    scale = extent * prior.scale if config.sobolev.scale is None else config.sobolev.scale / moving.pixel
    deviation = extent * prior.deviation
    if config.sigma_regularizer is not None:
        deviation = config.sigma_regularizer / moving.pixel
    margins = [max(prior.beyond * e, prior.margin * scale) for e in grid.extent]
    nodes = nodes_over(
        [e + 2 * margin for e, margin in zip(grid.extent, margins, strict=True)],
        scale / prior.nodes,
        prior.most / (grid.ndim * n_slices),
        prior.widening,
    )
    order = config.sobolev.order or prior.order
    return VelocitySpace(nodes, n_slices, config.n_steps or n_slices, scale, order, deviation, stiff=stiff)


def _stiffer_across(pullback: Tensor, across: float) -> Tensor:
    """The matrix ``[3, 3]`` that leaves ``across`` of a displacement across the fixed plane z = 0, and all of one along it."""
    normal = torch.linalg.cross(pullback[:3, 1], pullback[:3, 2])
    normal = normal / normal.norm()
    return torch.eye(3, dtype=torch.float64) - (1 - across) * torch.outer(normal, normal)
