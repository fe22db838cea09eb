"""The places of all fields at once, from pairs that overlap: contradicting ones are given up, unlinked fields have no place."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix, csgraph

from ..stack import posegraph
from ..stack.posegraph import Link, Node, carry, rms
from .fields import View
from .links import Overlap
from .overlap import Floats

BELIEVED = 0.5
"""Confidence of an overlap from which it takes part."""
SURE = 0.9
"""Confidence of an overlap from which it is confirmed."""
CONTRADICTS = 1.0
"""Residual of an overlap, in pixels, up to which it agrees with the others whatever these leave: distortion of an objective moves
the edges of fields by that much, a wrong match by tens of pixels."""
OUTLIES = 6.0
"""Residual of an overlap, in medians of all, beyond which it contradicts the others."""
TRUST = (0.05, 4.0)
"""Least and largest weight of an overlap, over that of one whose shift is as uncertain as the median one's."""


@dataclass(frozen=True)
class Solved:
    """The places of fields.

    Args:
        poses: ``[3, 3]`` from a field's pixels to those of the mosaic, by number; without those that hang on nothing.
        links: per overlap its link, with its residual in pixels; weight 0 where it is not believed or contradicts the others.
        islands: numbers of the fields that hang together, the largest group first; fields without any link are not among them.
    """

    poses: dict[int, Floats]
    links: tuple[Link, ...]
    islands: tuple[tuple[int, ...], ...]

    def used(self, k: int) -> list[Link]:
        """The overlaps of a field that agree with the others."""
        return [link for link in self.links if link.weight > 0 and k in (link.fixed, link.moving)]


def solve(
    fields: Sequence[View], overlaps: Sequence[Overlap], places: Sequence[Floats | None], turning: bool
) -> Solved:
    """Places in which overlaps agree best; each is taken where it was found, at the corners of what two fields share.

    The mean turn of all fields is 0. Where places are stated, the mosaic lies where they lie in the mean; else its first field
    that is placed lies where it is.
    """
    nodes = {k: _node(one) for k, one in enumerate(fields)}
    links = _links(overlaps)
    islands = _islands(len(fields), links)
    if not islands:
        return Solved({}, tuple(links), ())
    poses: dict[int, Floats] = {}
    for _ in range(len(links)):
        islands = _islands(len(fields), links)
        members = set(islands[0])
        own = [link for link in links if link.weight > 0 and link.fixed in members and link.moving in members]
        root = _root(own)
        start = posegraph.tree(own, {k: nodes[k] for k in members}, root)
        poses = posegraph.reconcile(own, nodes, start, root, "rigid")
        links = [_judged(link, poses, nodes) for link in links]
        worst = _worst(links)
        if worst is None:
            break
        links[worst] = dataclasses.replace(links[worst], weight=0.0)
    if not turning:
        for pose in poses.values():
            pose[:2, :2] = np.eye(2)
    return Solved(_levelled(poses, nodes, places), tuple(links), islands)


def _node(one: View) -> Node:
    """A field as its corners and edges' middles."""
    h, w = one.grid.shape
    middle, arms = np.array([(h - 1) / 2, (w - 1) / 2]), np.array([h, w]) / math.sqrt(12)
    probes = middle + arms * np.array([[1, 0], [-1, 0], [0, 1], [0, -1]]) * math.sqrt(2)
    return Node(probes, float(np.linalg.norm(arms)))


def _links(overlaps: Sequence[Overlap]) -> list[Link]:
    believed = [one.found for one in overlaps if one.found is not None and one.confidence >= BELIEVED]
    usual = float(np.median([found.sd for found in believed])) if believed else 1.0
    out = []
    for one in overlaps:
        if one.found is None or one.confidence < BELIEVED:
            out.append(Link(one.fixed, one.moving, np.eye(3), 0.0, "fail", 0.0, math.inf))
            continue
        weight = float(np.clip((usual / one.found.sd) ** 2, *TRUST))
        verdict = "pass" if one.confidence >= SURE else "warn"
        out.append(
            Link(one.fixed, one.moving, one.found.matrix, one.confidence, verdict, weight, math.inf, one.found.probes)
        )
    return out


def _islands(n: int, links: Sequence[Link]) -> tuple[tuple[int, ...], ...]:
    used = [link for link in links if link.weight > 0]
    rows, columns = (np.array([getattr(link, side) for link in used], dtype=np.intp) for side in ("fixed", "moving"))
    _, label = csgraph.connected_components(coo_matrix((np.ones(len(used)), (rows, columns)), (n, n)), directed=False)
    groups = [tuple(int(k) for k in np.flatnonzero(label == i)) for i in range(int(label.max()) + 1)]
    return tuple(sorted((group for group in groups if len(group) > 1), key=lambda group: (-len(group), group)))


def _root(links: Sequence[Link]) -> int:
    """The field with the most overlaps, the first of several."""
    counts: dict[int, int] = {}
    for link in links:
        for k in (link.fixed, link.moving):
            counts[k] = counts.get(k, 0) + 1
    return min(counts, key=lambda k: (-counts[k], k))


def _judged(link: Link, poses: dict[int, Floats], nodes: dict[int, Node]) -> Link:
    if link.weight <= 0 or link.fixed not in poses or link.moving not in poses:
        return link
    return dataclasses.replace(link, residual=rms(posegraph.residual(link, poses, nodes[link.moving])))


def _worst(links: Sequence[Link]) -> int | None:
    """The overlap that contradicts the others the most; None where all agree."""
    off = {k: link.residual for k, link in enumerate(links) if link.weight > 0 and math.isfinite(link.residual)}
    if not off:
        return None
    worst = max(off, key=lambda k: off[k])
    return worst if off[worst] > max(CONTRADICTS, OUTLIES * float(np.median(list(off.values())))) else None


def _levelled(poses: dict[int, Floats], nodes: dict[int, Node], places: Sequence[Floats | None]) -> dict[int, Floats]:
    """The poses, turned and shifted together: no mean turn, and where the stated places lie in the mean."""
    turns = [math.atan2(pose[1, 0], pose[0, 0]) for pose in poses.values()]
    mean = math.atan2(float(np.mean(np.sin(turns))), float(np.mean(np.cos(turns))))
    back = np.eye(3)
    back[:2, :2] = [[math.cos(mean), math.sin(mean)], [-math.sin(mean), math.cos(mean)]]
    turned = {k: back @ pose for k, pose in poses.items()}
    middles = {k: nodes[k].probes.mean(axis=0) for k in turned}
    known = [k for k in sorted(turned) if places[k] is not None]
    if known:
        away = [places[k] + middles[k] - carry(turned[k], middles[k][None])[0] for k in known]
        shift = np.mean(away, axis=0)
    else:
        first = min(turned)
        shift = middles[first] - carry(turned[first], middles[first][None])[0]
    for pose in turned.values():
        pose[:2, 2] += shift
    return turned
