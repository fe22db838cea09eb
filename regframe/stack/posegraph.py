"""Poses that agree best with many pairwise maps at once, some of which are wrong.

A node ``k`` gets a pose ``A_k`` ``[3, 3]`` into one common space such that ``A_i⁻¹ A_k`` agrees with the map ``M_ik`` that
was found for each pair, in the least-squares sense over its tissue (pose graph; Grisetti et al. 2010), with weights that
give up pairs which contradict the others (Geman and McClure 1987). An error of one pair then neither ends up in all later
nodes, as it does in a chain, nor pulls the others along. All in 2D, in one unit, components in the order y, x.

Where a constant names no source, neither a paper nor a calibration is recorded for it; ``benchmarks/bench_stack.py`` measures
what they achieve together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse
from scipy.sparse import csgraph
from scipy.sparse.linalg import spsolve

Floats = NDArray[np.float64]

GUIDE = -1
"""Index of the node that never moves: the space of the guide volume."""
STRETCH_OVER = 8.0
"""Number of nodes over which a change of size or shear counts as caused by the cutting and is undone; changes that are slower
along the stack are anatomy and stay."""
ROUNDS = 60
"""Largest number of Gauss-Newton steps; the reconciliation ends earlier when a step is below 1e-5 of the tissue's size."""
CONTRADICTS = 3.0
"""Residual of a pair, in medians of all pairs' residuals, above which the pair contradicts the others."""
UNKNOWN = 0.25
"""Contradiction assumed for a pair that is part of no triangle, over the tissue's radius of gyration: more than any correct
pair has."""
UNLIKE = 0.1
"""Contradiction, over the tissue's radius of gyration, that costs a pair as much as a correlation of 0 instead of 1."""
LEAST_SCALE = 0.004
"""Smallest scale of the residuals, over the tissue's radius of gyration: smaller residuals do not tell pairs apart."""


@dataclass(frozen=True)
class Link:
    """A registered pair: its map from node ``moving`` to node ``fixed`` (`GUIDE` for the guide volume).

    Args:
        fixed: index of the fixed node.
        moving: index of the moving node.
        matrix: ``M`` ``[3, 3]``, from the moving node to the fixed one.
        ncc: correlation of the two tissues under ``matrix``.
        verdict: the verdict of `regframe.register` on the pair, or the reason why it failed.
        weight: weight of the pair; 0 where it is not used.
        residual: departure of the poses from ``matrix``: rms over the moving tissue, in the nodes' unit.
        probes: positions ``[N, 2]`` of the moving node at which the pair is known, where it shows a part of the node alone; those
            of the node's tissue where None.
    """

    fixed: int
    moving: int
    matrix: Floats
    ncc: float = 1.0
    verdict: str = "pass"
    weight: float = 1.0
    residual: float = 0.0
    probes: Floats | None = None

    def known_at(self, node: Node) -> Floats:
        """Positions ``[N, 2]`` of the moving node at which the pair is compared with the poses."""
        return node.probes if self.probes is None else self.probes


@dataclass(frozen=True)
class Node:
    """The tissue of a node.

    Args:
        probes: positions ``[N, 2]`` with the same first and second moments as the tissue.
        size: radius of gyration of the tissue.
    """

    probes: Floats
    size: float


def carry(matrix: Floats, points: Floats) -> Floats:
    """Positions ``[N, D]`` mapped by ``matrix`` ``[D+1, D+1]``."""
    moved: Floats = points @ matrix[:-1, :-1].T + matrix[:-1, -1]
    return moved


def rms(residual: Floats) -> float:
    """Root mean square length of ``residual`` ``[N, 2]``."""
    return float(np.sqrt((residual**2).sum(axis=1).mean()))


def residual(link: Link, poses: Mapping[int, Floats], node: Node) -> Floats:
    """Departure of the poses of a pair from its map, at the pair's probes ``[N, 2]``, in the fixed node's space."""
    here = np.eye(3) if link.fixed == GUIDE else poses[link.fixed]
    probes = link.known_at(node)
    away: Floats = carry(np.linalg.inv(here) @ poses[link.moving], probes) - carry(link.matrix, probes)
    return away


def loop(ab: Link, bc: Link, ac: Link, node: Node) -> float:
    """Contradiction between the maps ``a ← b ← c`` and ``a ← c``: rms over the tissue of ``c``."""
    return rms(carry(ab.matrix @ bc.matrix, node.probes) - carry(ac.matrix, node.probes))


def tree(links: Sequence[Link], nodes: Mapping[int, Node], root: int) -> dict[int, Floats]:
    """Poses (of volumes too) along the most trusted pairs from ``root``, whose pose is the identity; unreachable nodes have none.

    A pair is trusted where the triangles it is part of close, and where its correlation is high.
    """
    used = [link for link in links if link.weight > 0]
    size = float(np.median([node.size for node in nodes.values()]))
    loops = _loops(used, nodes)
    n = max(nodes) + 1  # the guide is node n
    cost = sparse.lil_matrix((n + 1, n + 1))
    by_nodes: dict[tuple[int, int], Link] = {}
    for link in used:
        i, j = link.fixed % (n + 1), link.moving
        contradiction = min(loops.get((link.fixed, link.moving), UNKNOWN * size), size) / size
        # cost of a pair: the smallest contradiction of its triangles; the correlation decides between equal ones
        cost[i, j] = 1e-3 + contradiction + UNLIKE * (1 - min(max(link.ncc, 0.0), 1.0))
        by_nodes[i, j] = link
    order, parents = csgraph.breadth_first_order(
        csgraph.minimum_spanning_tree(cost.tocsr()), root % (n + 1), directed=False
    )
    poses = {root % (n + 1): np.eye(len(links[0].matrix) if links else 3)}
    for child in order[1:].tolist():
        parent = int(parents[child])
        down = by_nodes.get((parent, child))
        step = down.matrix if down is not None else np.linalg.inv(by_nodes[child, parent].matrix)
        poses[child] = _exactly(poses[parent] @ step)
    poses.pop(n, None)
    return poses


def _loops(links: Sequence[Link], nodes: Mapping[int, Node]) -> dict[tuple[int, int], float]:
    """The smallest contradiction among the triangles that each pair is part of, by pair."""
    at = {(link.fixed, link.moving): link for link in links}
    after: dict[int, list[int]] = {}
    for a, b in at:
        after.setdefault(a, []).append(b)
    out: dict[tuple[int, int], float] = {}
    for a, b in at:
        for c in after.get(b, ()):
            if (a, c) in at:
                error = loop(at[a, b], at[b, c], at[a, c], nodes[c])
                for pair in ((a, b), (b, c), (a, c)):
                    out[pair] = min(out.get(pair, math.inf), error)
    return out


def reconcile(
    links: Sequence[Link],
    nodes: Mapping[int, Node],
    start: Mapping[int, Floats],
    reference: int,
    kind: str = "rigid",
    hold: float | None = None,
    stretch: float | None = STRETCH_OVER,
) -> dict[int, Floats]:
    """Poses that agree best with all pairs at once: Gauss-Newton on ``A_k ← A_k exp(ξ_k)``, pairs weighted anew each step.

    Args:
        links: the pairs; those with a node that has no start are ignored.
        nodes: the tissue of each node.
        start: poses to start from; a node without one is not placed.
        reference: the node whose pose is fixed; where any pair joins `GUIDE`, the guide is fixed instead.
        kind: ``rigid`` or ``affine``.
        hold: number of nodes over which a node's original place (its pose the identity) is trusted: shifts that vary more
            slowly along the stack are kept. In the end all poses are moved together so that the reference has its pose of
            ``start``.
        stretch: for ``affine``, number of nodes over which a change of size or shear is undone, while slower ones are kept; None
            where the nodes have no order, and each keeps the size that its pairs give it.
    """
    poses = {k: pose.copy() for k, pose in start.items()}
    links = [
        link
        for link in links
        if link.weight > 0 and link.moving in poses and (link.fixed == GUIDE or link.fixed in poses)
    ]
    guided = any(link.fixed == GUIDE for link in links)
    free = [k for k in sorted(poses) if guided or hold is not None or k != reference]
    if not free or not links:
        return poses
    size = float(np.median([nodes[k].size for k in poses]))
    column = {k: i for i, k in enumerate(free)}
    basis = {k: generators(nodes[k].probes.mean(axis=0), size, kind) for k in free}
    m = len(basis[free[0]])
    scale = math.inf
    for step in range(ROUNDS):
        residuals = [residual(link, poses, nodes[link.moving]) for link in links]
        lengths = np.array([rms(r) for r in residuals])
        settled = max(LEAST_SCALE * size, CONTRADICTS * float(np.median(lengths)))
        scale = max(
            settled, min(scale, 8 * settled) / 2
        )  # shrinks from wide to narrow, so that a wrong start can recover
        system = _System(m, len(free))
        for link, away, length in zip(links, residuals, lengths, strict=True):
            trust = math.sqrt(link.weight) / (1 + (length / scale) ** 2)
            probes = link.known_at(nodes[link.moving])
            here = np.eye(3) if link.fixed == GUIDE else poses[link.fixed]
            relative = np.linalg.inv(here) @ poses[link.moving]
            blocks = {}
            if link.moving in column:
                moves = [carry(g, probes) @ relative[:2, :2].T for g in basis[link.moving]]
                blocks[column[link.moving]] = trust * np.stack([v.ravel() for v in moves], axis=1)
            if link.fixed in column:
                at = carry(relative, probes)
                moves = [-carry(g, at) for g in basis[link.fixed]]
                blocks[column[link.fixed]] = trust * np.stack([v.ravel() for v in moves], axis=1)
            system.add(blocks, -trust * away.ravel())
        for k in free:
            if kind == "affine" and stretch is not None:
                system.add(*_stretch_prior(column[k], poses[k], basis[k], size / stretch))
            if hold is not None:
                moves = [carry(g, nodes[k].probes) @ poses[k][:2, :2].T for g in basis[k]]
                away = carry(poses[k], nodes[k].probes) - nodes[k].probes
                system.add({column[k]: np.stack([v.ravel() for v in moves], axis=1) / hold}, -away.ravel() / hold)
        change = system.solve()  # [n, m]
        for k in free:
            poses[k] = _exactly(poses[k] @ linalg.expm(np.tensordot(change[column[k]], basis[k], axes=1)))
        if scale <= settled * 1.001 and np.abs(change).max() < 1e-5 and step > 8:
            break
    if hold is not None and not guided:
        back = start[reference] @ np.linalg.inv(poses[reference])
        poses = {k: _exactly(back @ pose) for k, pose in poses.items()}
    return poses


class _System:
    """A sparse least-squares problem of ``n`` unknowns with ``m`` components each, built row by row."""

    def __init__(self, m: int, n: int) -> None:
        self._m, self._n, self._height = m, n, 0
        self._rows: list[NDArray[np.intp]] = []
        self._columns: list[NDArray[np.intp]] = []
        self._values: list[Floats] = []
        self._right: list[Floats] = []

    def add(self, blocks: Mapping[int, Floats], right: Floats) -> None:
        """Add rows: a block ``[r, m]`` for each unknown involved, and the right-hand sides ``[r]``."""
        for unknown, block in blocks.items():
            y, x = np.mgrid[: block.shape[0], : block.shape[1]]
            self._rows.append(self._height + y.ravel())
            self._columns.append(self._m * unknown + x.ravel())
            self._values.append(block.ravel())
        self._right.append(right)
        self._height += len(right)

    def solve(self) -> Floats:
        """The unknowns ``[n, m]``, by the normal equations."""
        where = np.concatenate(self._rows), np.concatenate(self._columns)
        matrix = sparse.csr_matrix((np.concatenate(self._values), where), (self._height, self._m * self._n))
        ridge = 1e-9 * max(float(np.abs(matrix.data).max(initial=0.0)) ** 2, 1e-300)
        normal = (matrix.T @ matrix + ridge * sparse.identity(self._m * self._n)).tocsc()
        found: Floats = np.atleast_1d(spsolve(normal, matrix.T @ np.concatenate(self._right)))
        return found.reshape(self._n, self._m)


def _stretch_prior(unknown: int, pose: Floats, generators: Floats, weight: float) -> tuple[dict[int, Floats], Floats]:
    """Rows that pull the strain ``(GᵀG - 1) / 2`` of a pose towards 0."""
    g = pose[:2, :2]
    strain = (g.T @ g - np.eye(2)) / 2
    changes = [g.T @ g @ generator[:2, :2] for generator in generators]
    pick = ((0, 0), (1, 1), (0, 1))
    rows = np.array([[(c + c.T)[i, j] / 2 for c in changes] for i, j in pick])
    return {unknown: weight * rows}, np.array([-weight * strain[i, j] for i, j in pick])


def _exactly(matrix: Floats) -> Floats:
    """``matrix`` with its last row set to zeros and a one, free of rounding."""
    matrix[-1], matrix[-1, -1] = 0.0, 1.0
    return matrix


def generators(center: Floats, size: float, kind: str) -> Floats:
    """Generators ``[G, 3, 3]`` of rigid or affine maps about ``center``; a unit of each moves the tissue by about ``size``."""
    linear = [[[0, -1], [1, 0]]]
    if kind == "affine":
        linear += [[[1, 0], [0, 1]], [[1, 0], [0, -1]], [[0, 1], [1, 0]]]
    out = np.zeros((2 + len(linear), 3, 3))
    out[0, 0, 2] = out[1, 1, 2] = size
    for i, block in enumerate(linear):
        out[2 + i, :2, :2] = block
        out[2 + i, :2, 2] = -np.array(block) @ center
    return out
