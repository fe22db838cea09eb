"""The prior of the velocity: its smoothness, the size of its displacements, and its nodes.

A `Prior` is stated relative to the moving canvas, so that one prior serves pairs of any size; `velocity_space` turns it into the
velocities of one pair. Priors for other pairs than two pictures or two volumes are defined by their solvers. "Extent" is the
geometric mean of the sides of the moving canvas.
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
"""Length a of the Sobolev operator for two pictures, as a fraction of the moving canvas' extent: deformations of tissue vary
over tenths of the picture."""
ORDER = 2.0
"""Power p of the Sobolev operator for two pictures, without unit; the value of STalign (Clifton et al. 2023)."""
NODES = 3
"""Velocity nodes per length a for two pictures: with fewer, the kinks of the multilinear velocity cost accuracy and storage."""
SCALE_3D = 0.042
"""Length a of the Sobolev operator for two volumes, as a fraction of the moving canvas' extent: shorter than for pictures,
because organs fold in three directions. Set on one pair of brain slabs, on whose labels results are reported."""
ORDER_3D = 1.0
"""Power p of the Sobolev operator for two volumes, without unit; set on the pair of `SCALE_3D`."""
DEVIATION_3D = 0.007
"""Prior standard deviation of a displacement of two volumes along each axis on the coarsest level, as a fraction of the moving
canvas' extent. It is far smaller than `SCALE_3D`, or nodes next to each other are nearly free, and as N/2 log m has no lower
bound they explain the noise; finer levels take theirs from what this one found. Population: five made volumes of 53 to 66 voxels,
which have one level, bent by up to 0.7 to 2.6 voxels (``benchmarks/proving``, `volume` 100, 104, 106, 107 and `turned-volume`
102); with 0.005 the pair of `SCALE_3D` loses 0.005 of Dice, and a bend of a twelfth of a small volume is followed less well."""
NODES_3D = 2
"""Velocity nodes per length a for two volumes: fewer than for pictures, because in 3D their number grows with the third power."""
MARGIN_3D = 2.5
"""Distance, in lengths a, by which nodes reach beyond a volume: far enough that the FFT's periodicity does not couple opposite
faces."""
DEVIATION = 0.1
"""Prior standard deviation of a displacement before anything is known, as a fraction of the moving canvas' extent: wider than
any bend of tissue, so that it restrains none."""
DEVIATION_MARGIN = 3.0
"""Prior standard deviation of the next level, over the rms displacement found so far: wide enough for larger displacements."""
LEAST_SCALE = 0.01
"""Smallest length of the Sobolev operator that may be stated, in pixels: shorter ones smooth nothing that pixels can show, and
the search for a spacing of nodes that can be held takes for ever."""
MOST_SCALE = 1000.0
"""Largest such length, in extents of the moving canvas: from ten on the map is as good as affine."""
MOST_VARIABLES = 6_000_000
"""Largest number of values of a velocity, a bound on memory (24 MB for each vector that L-BFGS keeps); a finer velocity is
given wider nodes."""


@dataclass(frozen=True)
class Prior:
    """What is believed about a bend before the data are looked at, relative to the moving canvas.

    Args:
        scale: length a of the Sobolev operator, as a fraction of the canvas' extent (geometric mean of its sides).
        order: power p of the Sobolev operator.
        nodes: velocity nodes per length a.
        deviation: standard deviation of a displacement at the start of the fit, as a fraction of the extent.
        slices: time slices T of the velocity, unless the user sets them.
        margin: least distance by which nodes reach beyond the canvas on every side, in lengths a.
        beyond: least distance by which nodes reach beyond the canvas, as a fraction of its side along that axis.
        adapts: deviation on the next level, over the rms displacement found so far; None to keep the first deviation.
        across: for a section in a volume, the deviation across its plane over that along it; the extent then is that of the two
            longest sides of the slab. None for all other pairs.
        most: largest number of values of the velocity.
        widening: factor by which nodes are moved apart, repeatedly, while there would be more than ``most`` values.
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
"""The prior of two pictures; its nodes cover at least twice the canvas along each axis."""
VOLUMES = Prior(SCALE_3D, ORDER_3D, NODES_3D, DEVIATION_3D, slices=1, margin=MARGIN_3D)
"""The prior of two volumes."""


def velocity_space(
    moving: Grid, config: Config, prior: Prior | None = None, pullback: Tensor | None = None
) -> VelocitySpace:
    """The velocities for a moving canvas under a prior.

    Args:
        moving: the moving canvas, in its physical unit.
        config: settings; where set, they override the prior. Lengths in the moving unit.
        prior: the prior; where None that of two pictures or two volumes.
        pullback: ``B`` ``[4, 4]`` of the normalised frames; needed for a prior with ``across``, to know the section's normal.
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
        extent = math.prod(sorted(grid.extent)[1:]) ** 0.5  # extent of the section: the slab's thickness is left out
    scale = extent * prior.scale if config.sobolev.scale is None else config.sobolev.scale / moving.pixel
    if not LEAST_SCALE <= scale <= MOST_SCALE * extent:
        raise ValueError(
            f"wanted for the setting 'sobolev.scale' {LEAST_SCALE * moving.pixel:.3g} to "
            f"{MOST_SCALE * extent * moving.pixel:.3g} {moving.unit}, got {config.sobolev.scale:g}; mind the unit"
        )
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
    """The matrix ``[3, 3]`` that scales the component of a displacement across the fixed plane z = 0 by ``across``."""
    normal = torch.linalg.cross(pullback[:3, 1], pullback[:3, 2])
    normal = normal / normal.norm()
    return torch.eye(3, dtype=torch.float64) - (1 - across) * torch.outer(normal, normal)
