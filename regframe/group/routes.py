"""Which pairs lead from an image to the reference, which pairs contradict the others, and what the others say of a map."""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..maps import bends
from ..maps.base import Transform
from ..maps.sequence import in_a_row
from ..stack import posegraph
from ..stack.posegraph import CONTRADICTS, Floats, Link
from .agreed import agreed, residual_of
from .members import Member
from .pairs import Pair, matrix_of

STRAIGHT = 0.2
"""What a pair without a bend costs, in nats, where most pairs of the group are bent: two images that are bent against each other
may be too unlike for a bend to prove itself, and their affine map is then off by the bend."""
HOP = 0.1
"""What a further pair on the way to the reference costs, in nats of confidence: a way over two pairs is taken where it is by a
tenth more likely right than the direct pair. Each pair adds its error."""
AGREES = 0.02
"""Departure of the poses from a pair, over the tissue's radius of gyration, up to which the pair agrees with the others whatever
these leave: 8 px for a section of 400 px, far less than a wrong map is off, and more than the bends of neighbouring sections,
which no affine pose can follow, make of right ones."""
DOUBTED = 0.25
"""Weight of a pair that is not confirmed (``warn``), of one that is 1: four of them outvote a confirmed one."""


@dataclass(frozen=True)
class Step:
    """A pair on the way to the reference.

    Args:
        pair: the pair.
        backwards: whether the way leads from its fixed to its moving image.
    """

    pair: Pair
    backwards: bool

    @property
    def start(self) -> int:
        """The image where the step begins."""
        return self.pair.fixed if self.backwards else self.pair.moving

    @property
    def end(self) -> int:
        """The image where it ends."""
        return self.pair.moving if self.backwards else self.pair.fixed

    @property
    def transform(self) -> Transform:
        """The map from the first image to the second."""
        assert self.pair.result is not None
        return self.pair.result.transform.inverse() if self.backwards else self.pair.result.transform


@dataclass(frozen=True)
class Routes:
    """How the images hang together.

    Args:
        reference: the image that stays where it is.
        poses: pose ``[D+1, D+1]`` of every image that some pair joins to the reference, by number; reconciled over all loops.
        links: the pairs as links of the graph; weight 0 where a pair contradicts the others, or failed.
        ways: the pairs that lead from each image to the reference, in the order of application; empty for the reference.
    """

    reference: int
    poses: dict[int, Floats]
    links: tuple[Link, ...]
    ways: dict[int, tuple[Step, ...]]

    def link(self, pair: Pair) -> Link:
        """The link of a pair."""
        return next(link for link in self.links if (link.fixed, link.moving) == (pair.fixed, pair.moving))

    def used(self, pair: Pair) -> bool:
        """Whether a pair agrees with the others."""
        return self.link(pair).weight > 0


def found(members: Sequence[Member], pairs: Sequence[Pair], reference: int, rigid: bool) -> Routes:
    """The routes over all pairs that did not fail, those that contradict the others left out."""
    nodes = {k: member.node for k, member in enumerate(members)}
    size = float(np.median([node.size for node in nodes.values()]))
    links = [_link(pair, members[pair.moving].probes, rigid) for pair in pairs]
    start = posegraph.tree(links, nodes, reference)
    kind = "rigid" if rigid else "affine"
    if members[reference].image.grid.ndim == 2:
        poses = posegraph.reconcile(links, nodes, start, reference, kind, stretch=None)
    else:
        poses = agreed(links, nodes, start, reference, rigid)
    noted = [residual_of(link, poses, nodes) for link in links]
    usual = float(np.median([link.residual for link in noted if math.isfinite(link.residual)] or [0.0]))
    limit = max(AGREES * size, CONTRADICTS * CONTRADICTS * usual)
    kept = tuple(dataclasses.replace(link, weight=link.weight if link.residual <= limit else 0.0) for link in noted)
    routes = Routes(reference, poses, kept, {})
    used = [pair for pair in pairs if routes.used(pair)]
    bent = sum(map(is_bent, used)) > len(used) / 2
    return dataclasses.replace(routes, ways=_ways(used, reference, bent))


def is_bent(pair: Pair) -> bool:
    """Whether the map of a pair has a bend."""
    return pair.result is not None and bends.bent(pair.result.transform)


def _link(pair: Pair, probes: Floats, rigid: bool) -> Link:
    if pair.result is None or pair.confidence == 0:
        return Link(pair.fixed, pair.moving, np.eye(probes.shape[1] + 1), 0.0, pair.verdict, 0.0)
    weight = pair.confidence**2 * (1.0 if pair.verdict == "pass" else DOUBTED)
    return Link(pair.fixed, pair.moving, matrix_of(pair.result, probes, rigid), pair.confidence, pair.verdict, weight)


def _ways(pairs: Sequence[Pair], reference: int, bent: bool) -> dict[int, tuple[Step, ...]]:
    """The likeliest way of each image to the reference (Dijkstra), see `HOP`; ``bent``: most pairs have a bend."""
    beside: dict[int, list[Step]] = {}
    for pair in pairs:
        for step in (Step(pair, False), Step(pair, True)):
            beside.setdefault(step.end, []).append(step)
    ways: dict[int, tuple[Step, ...]] = {}
    heap: list[tuple[float, int, int, tuple[Step, ...]]] = [(0.0, 0, reference, ())]
    order = 0
    while heap:
        cost, _, k, way = heapq.heappop(heap)
        if k in ways:
            continue
        ways[k] = way
        for step in beside.get(k, ()):
            order += 1
            back = 1e-3 if step.backwards else 0.0  # of a pair that was registered both ways, the one that ends here
            back += STRAIGHT if bent and not is_bent(step.pair) else 0.0
            more = HOP + back - math.log(max(step.pair.confidence, 1e-6))
            heapq.heappush(heap, (cost + more, order, step.start, (step, *way)))
    return ways


# ---- what the other pairs say -------------------------------------------------------------------------------------------


def detours(
    k: int, routes: Routes, pairs: Sequence[Pair], maps: Mapping[int, Transform]
) -> list[tuple[Step, tuple[Transform, ...]]]:
    """Other ways of image ``k`` to the reference: a pair to another image, and that image's own map."""
    own = routes.ways[k][0] if routes.ways[k] else None
    out: list[tuple[Step, tuple[Transform, ...]]] = []
    for pair in pairs:
        if not routes.used(pair) or k not in (pair.fixed, pair.moving):
            continue
        step = Step(pair, pair.fixed == k)
        if (own is not None and step.pair is own.pair) or step.end not in maps:
            continue
        if any(k in (s.start, s.end) for s in routes.ways[step.end]):  # that image's map leads over this one
            continue
        out.append((step, (step.transform, maps[step.end])))
    return out


def in_order(steps: Sequence[Step]) -> Transform:
    """The map along a way of one step or more."""
    return in_a_row([step.transform for step in steps])


def through(maps: Sequence[Transform], points: Floats) -> Floats:
    """Positions ``[N, 2]`` carried by maps one after another."""
    at = torch.from_numpy(points)
    for each in maps:
        at = each.points(at)
    return np.asarray(at.numpy(), dtype=np.float64)
