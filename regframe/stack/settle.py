"""Settles pairs of sections: moves the pose that `register` found to where the two densities correlate best.

A "density" is the departure of each pixel from the background. Gauss-Newton minimises ``fixed - (gain · moving ∘ Φ⁻¹ +
offset)``, with gain and offset fitted too; this least-squares solution is where the correlation is highest. Among the measures
tried on planes of volumes (mutual information, local correlation, edges, outlier weights) this one mistakes least of the
change of the anatomy between sections for motion. Its weakness is that a hole in one section would be drawn onto a hole in the
other; missing tissue is therefore left out of the comparison. All in 2D.

Where a constant names no source, neither a paper nor a calibration is recorded for it; ``benchmarks/bench_stack.py`` measures
what they achieve together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, ndimage

from .posegraph import Floats, carry, generators, rms

Flags = NDArray[np.bool_]

BLURS = (3.0, 1.0)
"""Standard deviations of the Gaussian that blurs both densities, in pixels, coarse to fine: the first one corrects errors of a
few pixels."""
STEPS = 30
"""Largest number of Gauss-Newton steps per blur."""
STILL = 0.002
"""Length of a step (rms over the tissue), in pixels, below which the descent ends: pairs contradict each other by 0.05 px
anyway."""
RIM = 0.05
"""Half the thickness, over the tissue's radius of gyration, from which tissue that only one section shows counts as missing;
thinner differences are edges that have moved."""
MARGIN = 0.1
"""Width of the rim of background around the tissue that is compared too, over the tissue's radius of gyration; it shows the
outline."""
ENOUGH = 64
"""Least number of pixels that two sections must share to be settled; an affine map, a gain and an offset are 8 unknowns."""


@dataclass(frozen=True)
class Density:
    """What is compared of a section: the departure of each pixel from the background.

    Args:
        values: ``[h, w]``, in the units of the image's channels.
        tissue: where there is tissue ``[h, w]``.
        spacing: spacing of the pixels ``[2]``, in the section's unit.
        origin: position of the first pixel's centre ``[2]``.
        partial: True for a section that has lost tissue, which is compared only where it has some.
    """

    values: NDArray[np.float32]
    tissue: Flags
    spacing: Floats
    origin: Floats
    partial: bool = False

    def index(self, positions: Floats) -> Floats:
        """Pixel indices (fractional) of positions ``[N, 2]``."""
        found: Floats = (positions - self.origin) / self.spacing
        return found

    def blurred(self, width: float) -> Floats:
        """The blurred values and their slopes along y and x, per unit of length, ``[3, h, w]``."""
        smooth = ndimage.gaussian_filter(self.values.astype(np.float64), width, mode="nearest")
        return np.stack([smooth, *np.gradient(smooth, *self.spacing)])

    def near(self, reach: float) -> Flags:
        """The tissue and, unless the section is partial, everything within ``reach`` pixels of it."""
        found: Flags = self.tissue if self.partial else ndimage.distance_transform_edt(~self.tissue) <= reach
        return found


def settle(fixed: Density, moving: Density, start: Floats, probes: Floats, size: float, kind: str) -> Floats:
    """The map moving → fixed ``[3, 3]`` near ``start`` under which two densities correlate best, over the tissue of either.

    Args:
        fixed: the section that stays where it is.
        moving: the section that is moved.
        start: ``[3, 3]``, within a few pixels of the answer.
        probes: positions ``[N, 2]`` with the moments of the moving tissue (`regframe.stack.posegraph.Node`).
        size: radius of gyration of the moving tissue.
        kind: ``rigid`` (mirrored where ``start`` is) or ``affine``.
    """
    pixel = float(np.sqrt(fixed.spacing.prod()))
    moves = generators(probes.mean(axis=0), size, kind)
    everywhere: Floats = np.indices(fixed.values.shape).reshape(2, -1).T * fixed.spacing + fixed.origin  # [N, 2]
    reach = max(3.0, MARGIN * size / pixel)
    ours, theirs = fixed.near(reach).ravel(), moving.near(reach).astype(np.float32)
    pose = start
    for width in BLURS:
        index = moving.index(carry(_inverse(pose), everywhere)).T
        near = ndimage.map_coordinates(theirs, index, order=1) > 0.5
        where = ours & near if fixed.partial or moving.partial else ours | near
        tissue = ndimage.map_coordinates(moving.tissue.astype(np.float32), index, order=1) > 0.5
        where &= ~missing(fixed.tissue, tissue.reshape(fixed.tissue.shape), RIM * size / pixel).ravel()
        where &= ((index > -0.5) & (index < np.array(moving.values.shape)[:, None] - 0.5)).all(axis=0)
        if where.sum() < ENOUGH:
            return start
        target = fixed.blurred(width)[0].ravel()[where]
        pose = _descend(target, everywhere[where], moving, moving.blurred(width), pose, moves, probes, STILL * pixel)
    return pose


def missing(one: Flags, other: Flags, rim: float) -> Flags:
    """Where only one of two sections shows tissue; edges that have moved by less than twice ``rim`` pixels are left out."""
    core = ndimage.distance_transform_edt(one ^ other) > rim
    found: Flags = ndimage.distance_transform_edt(~core) <= 2 * rim + 1 if core.any() else core
    return found


def _descend(
    target: Floats,
    positions: Floats,
    moving: Density,
    layers: Floats,
    start: Floats,
    moves: Floats,
    probes: Floats,
    still: float,
) -> Floats:
    """Levenberg-Marquardt on ``M ← M exp(ξ)``, gain and offset; returns the map ``[3, 3]``.

    Args:
        target: values of the fixed density ``[N]``.
        positions: their positions ``[N, 2]``.
        moving: the moving density.
        layers: its blurred values and slopes ``[3, h, w]``.
        start: map to start from ``[3, 3]``.
        moves: generators of the map ``[G, 3, 3]``.
        probes: positions ``[P, 2]`` at which the length of a step is measured.
        still: length of a step, in the section's unit, below which the descent ends.
    """
    pose, trial, damp, before = start, start, 1e-3, math.inf
    normal, right = np.eye(len(moves) + 2), np.zeros(len(moves) + 2)
    for _ in range(STEPS):
        at = carry(_inverse(trial), positions)
        index = moving.index(at).T
        value, *slopes = (ndimage.map_coordinates(layer, index, order=1, mode="nearest") for layer in layers)
        shown = np.stack([value, np.ones_like(value)], axis=1)
        gain = np.linalg.lstsq(shown, target, rcond=None)[0]
        left = target - shown @ gain
        cost = float(left @ left)
        if cost <= before * (1 + 1e-9):
            pose, before, damp = trial, cost, max(damp / 5, 1e-6)
            slope = np.stack(slopes, axis=1)
            columns = [-gain[0] * (slope * carry(move, at)).sum(axis=1) for move in moves]  # at moves by -ξ
            jacobian = np.stack([*columns, value, shown[:, 1]], axis=1)
            normal, right = jacobian.T @ jacobian, jacobian.T @ left
        else:
            damp *= 10
        damped = normal + np.diag(damp * np.diag(normal) + 1e-12 * np.trace(normal))
        change = linalg.expm(np.tensordot(np.linalg.solve(damped, right)[: len(moves)], moves, axes=1))
        trial = pose @ change
        trial[2] = 0.0, 0.0, 1.0
        if rms(carry(change, probes) - probes) < still:
            break
    return pose


def _inverse(matrix: Floats) -> Floats:
    return np.asarray(np.linalg.inv(matrix), dtype=np.float64)
