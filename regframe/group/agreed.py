"""Poses that agree best with all pairs of a group, in any number of dimensions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..stack import posegraph
from ..stack.posegraph import Floats, Link, Node, carry, rms
from .pairs import nearest

SWEEPS = 30
"""Times that every pose is brought to the mean of what its pairs say; with all pairs of a group the poses stand after ten."""
STANDS = 1e-4
"""Movement of a volume, over its radius of gyration, below which the sweeps end."""


def agreed(
    links: Sequence[Link], nodes: Mapping[int, Node], start: Mapping[int, Floats], reference: int, rigid: bool
) -> dict[int, Floats]:
    """Poses ``[D+1, D+1]`` that agree best with all pairs: each in turn is brought to the mean of where its pairs take it.

    Pairs that lie far from where the others take a volume count less (Geman and McClure 1987), as in
    `regframe.stack.posegraph.reconcile`, which knows the plane alone.
    """
    poses = dict(start)
    used = [link for link in links if link.weight > 0 and link.fixed in poses and link.moving in poses]
    size = float(np.median([nodes[k].size for k in poses]))
    for _ in range(SWEEPS):
        moved = 0.0
        for k in [k for k in sorted(poses) if k != reference]:
            probes, weights = nodes[k].probes, 0.0
            total: Any = 0.0
            here = carry(poses[k], probes)
            said = [(link.weight, _said(link, k, poses, probes)) for link in used if k in (link.fixed, link.moving)]
            scale = max(
                posegraph.LEAST_SCALE * size,
                posegraph.CONTRADICTS * float(np.median([rms(there - here) for _, there in said] or [0.0])),
            )
            for weight, there in said:
                trust = weight / (1 + (rms(there - here) / scale) ** 2) ** 2
                total, weights = total + trust * there, weights + trust
            if weights > 0:
                poses[k] = nearest(probes, total / weights, rigid)
                moved = max(moved, rms(carry(poses[k], probes) - here))
        if moved < STANDS * size:
            break
    return poses


def _said(link: Link, k: int, poses: Mapping[int, Floats], probes: Floats) -> Floats:
    """Where a pair takes positions of image ``k``, by the pose of the other image."""
    if link.moving == k:
        return carry(poses[link.fixed] @ link.matrix, probes)
    return carry(poses[link.moving] @ np.linalg.inv(link.matrix), probes)


def residual_of(link: Link, poses: Mapping[int, Floats], nodes: Mapping[int, Node]) -> Link:
    """A link with its residual; infinite where it joins nothing."""
    joined = link.weight > 0 and link.fixed in poses and link.moving in poses
    away = rms(posegraph.residual(link, poses, nodes[link.moving])) if joined else math.inf
    return dataclasses.replace(link, residual=away)
