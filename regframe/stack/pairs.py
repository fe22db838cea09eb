"""A stack while it is aligned: which pairs are registered and searched again, which sections bent, what is kept of it all.

Where a constant names no source, neither a paper nor a calibration is recorded for it; ``benchmarks/bench_stack.py`` measures
what they achieve together.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from ..config import Config
from ..contracts import Progress
from ..data import Grid, Image
from ..io.tasks import InTurn, Kept, Pool, answers
from ..maps.affine import Affine
from ..maps.base import Transform
from ..maps.resample import resample
from ..result import Result
from ..verdict import DIFFER
from . import posegraph
from .each import ALIKE, Each, Found, Onto, Place, Registered, ask, done, ncc_of, weight_of
from .posegraph import CONTRADICTS, GUIDE, LEAST_SCALE, Floats, Link, carry, rms
from .sections import LOOKED_AT, Flags, turned_over

T = TypeVar("T")
FARTHEST = 4
"""Largest distance along the stack, in places, at which a neighbour is searched for where nearer ones fail."""
DOUBTED = 0.5
"""Correlation of a pair, over the median of all pairs, below which the pair is searched for a second time."""
FOLLOWED = 0.75
"""Correlation of a pair settled from where two others put it, over the smaller one of these, from which it is kept; on clean
stacks the next but one is less alike than the next by a tenth."""
PARTIAL = 0.75
"""Ratio of a section's tissue area to that of its neighbours, below which only its tissue is compared and not the emptiness
beside it."""
BENDS = 2
"""Number of rounds in which every section is bent onto the average of its neighbours."""


@dataclass(frozen=True)
class Pictures:
    """Small pictures of the sections on one canvas, by place in the stack, ``[h, w]`` each.

    Args:
        density: departure of each pixel from the background.
        tissue: where there is tissue.
        grid: grid of the pictures.
    """

    density: dict[int, Floats]
    tissue: dict[int, Flags]
    grid: Grid

    def ncc(self, a: int, b: int) -> float:
        """Correlation of the densities of two sections, over the tissue of either and a rim of 6 % around it."""
        return ncc_of(self.density[a], self.density[b], self.tissue[a] | self.tissue[b])

    def pair(self, a: int, b: int) -> dict[str, float]:
        """All figures of likeness of two sections."""
        one, other = self.tissue[a], self.tissue[b]
        total = float(one.sum() + other.sum())
        return {
            "ncc": self.ncc(a, b),
            "nmi": _nmi(self.density[a], self.density[b], one | other),
            "dice": 2 * float((one & other).sum()) / total if total else 0.0,
        }


def _nmi(a: Floats, b: Floats, where: Flags, bins: int = 32) -> float:
    """Normalised mutual information ``(H(a) + H(b)) / H(a, b) - 1``, 0 … 1 (Studholme et al. 1999)."""
    if where.sum() < 16:
        return 0.0
    joint = np.histogram2d(a[where], b[where], bins=bins)[0]
    joint = joint / joint.sum()

    def entropy(p: Floats) -> float:
        p = p[p > 0]
        return float(-(p * np.log(p)).sum())

    together = entropy(joint.ravel())
    return (entropy(joint.sum(axis=0)) + entropy(joint.sum(axis=1))) / together - 1 if together > 0 else 0.0


class Bent(NamedTuple):
    """Sections after they were bent onto their neighbours.

    Args:
        maps: map of each section, from its own space to the common one, by section.
        figures: figures of the map of each bent section, as in a `Result`'s metrics, by section.
        rounds: one record per round: number of sections that were bent, and mean correlation of neighbours after the round.
    """

    maps: dict[int, Transform]
    figures: dict[int, dict[str, Any]]
    rounds: list[dict[str, Any]]


class Work:
    """A stack while it is being aligned: its sections, the pairs registered so far, and the steps that lead to poses and maps.

    Args:
        images: the sections, 2D, in stacking order.
        planes: plane of each section in the volume.
        config: settings of `register` for every pair.
        transform: ``rigid``, ``affine`` or ``lddmm``; pairs are affine for ``lddmm``.
        progress: called before each pair or section.
        guide: a volume of the organ; None without one.

    Attributes:
        pool: who does the tasks of `each`: this process, one after another, unless set.
        kept: answers of an earlier run.
        place: where the sections are for a pool of other processes; None for this one.

    Raises ValueError for fewer than two sections with tissue.
    """

    def __init__(
        self,
        images: list[Image],
        planes: tuple[int, ...],
        config: Config,
        transform: str,
        progress: Callable[[Progress], object] | None = None,
        guide: Image | None = None,
    ) -> None:
        self.images, self.planes = images, planes
        self._progress = progress
        self.names = tuple(image.name for image in images)
        self.kind = "rigid" if transform == "rigid" else "affine"
        self.config = config
        self.each = Each(images, planes, config, self.kind, guide)
        self.pool: Pool = InTurn()
        self.kept = Kept(None)
        self.place: Place | None = None
        self.sections = [self.each.section(k) for k in range(len(images))]
        self.good = [k for k, section in enumerate(self.sections) if not section.empty]
        if len(self.good) < 2:
            raise ValueError(f"wanted at least two sections with tissue, got {len(self.good)}; check files and channel")
        self.links: list[Link] = []
        self.pixel = images[0].grid.pixel
        self.each.partial = self._partial()
        self.nodes = {k: self.sections[k].node for k in self.good}
        self.size = float(np.median([node.size for node in self.nodes.values()]))
        self.units = self.each.units
        self.evaluations = 0

    def ask(self, stage: str, task: str, items: list[tuple[Any, ...]], kind: type[T] | None = None) -> list[T]:
        """The answers to a task of `Each`, one for every item, in their order.

        Args:
            stage: what progress calls it.
            task: name of the task.
            items: its arguments.
            kind: what the answers are kept as; None where they are not kept.
        """
        do = functools.partial(done, self.each, task)
        if self.place is not None:
            do = functools.partial(ask, self.place, task)
        kept = Kept(None) if kind is None else self.kept
        names = ["-".join([task, *(str(k) for k in item if isinstance(k, int))]) for item in items]
        found = answers(self.pool, do, items, kept, names, kind or object)
        out: dict[int, Any] = {}
        for number in range(len(items)):
            self.tell(stage, number, len(items))
            index, answer = next(found)
            out[index] = answer
        return [out[index] for index in range(len(items))]

    def tell(self, stage: str, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` pairs or sections of a stage are done."""
        if self._progress is not None:
            self._progress(Progress(stage, done, total))

    def _partial(self) -> frozenset[int]:
        """Sections with less tissue than `PARTIAL` of their neighbours: torn edges do not count."""
        area = {k: float(s.mask.sum()) * s.density.grid.pixel**2 for k, s in enumerate(self.sections)}
        out = set()
        for i, k in enumerate(self.good):
            around = [self.good[j] for j in range(max(0, i - 3), min(len(self.good), i + 4)) if j != i]
            if area[k] < PARTIAL * float(np.median([area[n] for n in around])):
                out.add(k)
        return frozenset(out)

    # pairs

    def link(self, reach: int, chained: bool) -> None:
        """Register every section to its neighbours within ``reach``; to farther ones where these fail."""
        order = self.good
        self._register("pairs", list(itertools.pairwise(order)))
        for d in range(2, reach + 1):
            self._follow(f"pairs {d} apart", [(order[i], order[i + 1], order[i + d]) for i in range(len(order) - d)])
        self.retry()
        if chained:
            return
        for d in range(reach + 1, FARTHEST + 1):
            tried = {(link.fixed, link.moving) for link in self.links}
            alone = self._alone()
            more = [
                (order[i], order[i + d])
                for i in range(len(order) - d)
                if (order[i], "after") in alone or (order[i + d], "before") in alone
            ]
            self._register(f"pairs {d} apart", [pair for pair in more if pair not in tried])

    def _register(self, stage: str, pairs: list[tuple[int, int]], task: str = "pair") -> None:
        """Add a link for each pair, registered by a task of `Each`."""
        for found in self.ask(stage, task, [*pairs], Registered):
            self.evaluations += found.n_evaluations
            if not found.verdict.startswith("blank"):
                self.links.append(found.link)

    def _follow(self, stage: str, threes: list[tuple[int, int, int]]) -> None:
        """Add a link from the first to the last of each three sections, in their order.

        Where both are joined to the one between them by pairs that pass, the link is settled from where these two put it, and
        kept unless it is much less alike than they are. Any other pair is registered: an error is never handed on unseen.
        """
        at = {(link.fixed, link.moving): link for link in self.links}
        ways = {(a, c): (at[a, b], at[b, c]) for a, b, c in threes if (a, b) in at and (b, c) in at}
        sure = [pair for pair, way in ways.items() if all(link.verdict == "pass" and link.weight > 0 for link in way)]
        starts = [(*pair, ways[pair][0].matrix @ ways[pair][1].matrix) for pair in sure]
        made: dict[tuple[int, int], Link] = {}
        for pair, found in zip(sure, self.ask(stage, "followed", [*starts], Found), strict=True):
            if found.ncc >= max(ALIKE, FOLLOWED * min(link.ncc for link in ways[pair])):
                weight = weight_of(found.ncc, self.planes[pair[1]] - self.planes[pair[0]], "pass")
                made[pair] = Link(*pair, found.matrix, found.ncc, "pass", weight)
        pairs = [(a, c) for a, _, c in threes]
        before = len(self.links)
        self._register(stage, [pair for pair in pairs if pair not in made])
        made |= {(link.fixed, link.moving): link for link in self.links[before:]}
        self.links[before:] = [made[pair] for pair in pairs]

    def retry(self) -> None:
        """Search again for pairs that are much less alike than most, or turned over: from all turns, hull middle on hull middle.

        Tissue of two equal halves fits turned over as well as it does as it lies. A pair is taken as turned over only where
        that makes the inside of the tissue clearly more alike.
        """
        usual = float(np.median([link.ncc for link in self.links] or [0.0]))
        poor = [i for i, link in enumerate(self.links) if link.ncc < DOUBTED * usual or turned_over(link.matrix)]
        again = [(self.links[i].fixed, self.links[i].moving) for i in poor]
        for i, best in zip(poor, self.ask("doubtful pairs", "searched", [*again], Found), strict=True):
            self._prefer(i, best.matrix, best.ncc)

    def _prefer(self, i: int, matrix: Floats, ncc: float, expected: bool = False) -> bool:
        """Give pair ``i`` another map where it is better by more than chance; returns whether it was given.

        A map that is ``expected``, or one that is not turned over where the pair's own is, need not be better: it is taken
        unless the inside of the tissue is less alike under it.
        """
        link = self.links[i]
        if expected or (turned_over(link.matrix) and not turned_over(matrix)):
            better = self.each.inside(link.fixed, link.moving, matrix) > (
                self.each.inside(link.fixed, link.moving, link.matrix) - 2 * DIFFER
            )
        else:
            better = ncc > max(link.ncc, 0.0) + DIFFER
        if better:
            verdict = link.verdict if link.verdict == "pass" else "warn"
            weight = weight_of(ncc, self.planes[link.moving] - self.planes[link.fixed], verdict)
            self.links[i] = dataclasses.replace(link, matrix=matrix, ncc=ncc, weight=weight)
        return better

    def second_chance(self, poses: Mapping[int, Floats]) -> bool:
        """Settle the pairs that contradict the poses again, starting from the poses; returns whether any pair has changed.

        A new map is kept where the sections are as alike under it.
        """
        self.weigh(poses, chained=True)
        limit, changed = self._limit(), False
        for i, link in enumerate(self.links):
            if link.fixed == GUIDE or (link.weight > 0 and link.residual <= limit):
                continue
            if link.fixed not in poses or link.moving not in poses:
                continue
            expected = np.linalg.inv(poses[link.fixed]) @ poses[link.moving]
            there = self.each.likeness(self.sections[link.fixed], link.fixed, link.moving, expected)
            found = self.each.settled(link.fixed, link.moving, expected, there)
            if found.ncc >= ALIKE:
                changed |= self._prefer(i, found.matrix, found.ncc, expected=True)
        return changed

    def _alone(self) -> set[tuple[int, str]]:
        """Sections, each with a side (``before`` or ``after``), that no trusted pair joins to any section on that side.

        The outer side of the first and of the last section is left out.
        """
        trusted = [link for link in self.links if link.weight > 0]
        held = {(link.fixed, "after") for link in trusted} | {(link.moving, "before") for link in trusted}
        ends = {(self.good[0], "before"), (self.good[-1], "after")}
        return {(k, side) for k in self.good for side in ("before", "after")} - held - ends

    def link_guide(self, guide: Image, spacing: float) -> None:
        """Register every section to the nearest plane of the guide; ``spacing`` is the distance of two planes of the stack."""
        heights = {k: (self.planes[k] - min(self.planes)) * spacing for k in self.good}
        near = [(k, round(z / guide.grid.spacing[0])) for k, z in heights.items()]
        self._register("guide", [(k, plane) for k, plane in near if 0 <= plane < guide.grid.shape[0]], "guided")

    # poses

    def reference(self, wanted: int | str) -> int:
        """The section that stays where it is: the wanted one, the first of a chain, or a well-joined one near the middle."""
        if wanted == "chain":
            return self.good[0]
        middle = wanted if isinstance(wanted, int) else len(self.images) // 2
        if isinstance(wanted, int) and wanted not in self.good:
            raise ValueError(f"wanted a reference with tissue, got section {wanted}: {self.sections[wanted].empty}")
        held = {k for link in self.links if link.weight > 0 for k in (link.fixed, link.moving)}
        return min(
            (k for k in self.good if k in held or k == wanted), key=lambda k: abs(k - middle), default=self.good[0]
        )

    def loop_residuals(self) -> list[float]:
        """Contradiction between two steps and one step, for each three sections in a row: rms over the tissue, in px."""
        at = {(link.fixed, link.moving): link for link in self.links if link.weight > 0}
        found = []
        for a, b, c in zip(self.good, self.good[1:], self.good[2:], strict=False):
            if all(pair in at for pair in ((a, b), (b, c), (a, c))):
                found.append(posegraph.loop(at[a, b], at[b, c], at[a, c], self.nodes[c]) / self.pixel)
        return found

    def weigh(self, poses: Mapping[int, Floats], chained: bool) -> None:
        """Record how far every pair departs from the poses; unless ``chained``, give weight 0 to pairs that contradict them."""
        noted = []
        for link in self.links:
            known = link.moving in poses and (link.fixed == GUIDE or link.fixed in poses)
            away = rms(posegraph.residual(link, poses, self.nodes[link.moving])) if known else math.inf
            noted.append(dataclasses.replace(link, residual=away, weight=link.weight if known else 0.0))
        self.links = noted
        limit = self._limit()
        self.links = [
            dataclasses.replace(link, weight=0.0) if link.residual > limit and not chained else link for link in noted
        ]

    def _limit(self) -> float:
        """Departure from the poses from which a pair is given up: rms over the tissue, in the images' unit."""
        usual = float(np.median([link.residual for link in self.links if link.weight > 0] or [0.0]))
        return CONTRADICTS * max(LEAST_SCALE * self.size, CONTRADICTS * usual)

    # the canvas and what lies on it

    def as_they_lie(self) -> dict[int, Transform]:
        """The stack before registration: maps under which the middles of all canvases coincide with the middle section's."""
        middle = np.array(self.images[self.good[len(self.good) // 2]].grid.center)
        return {k: _shift(middle - np.array(self.images[k].grid.center), self.units) for k in self.good}

    def canvas(self, poses: Mapping[int, Any]) -> Grid:
        """A grid over everything that the sections cover under their poses, with the finest spacing of all sections per axis.

        Raises ValueError where it is far larger than any section, which means that some pose is wrong.
        """
        matrices = {k: p if isinstance(p, np.ndarray) else p.matrix.numpy() for k, p in poses.items()}
        spacing = np.min([self.images[k].grid.spacing for k in poses], axis=0)
        corners = np.concatenate([carry(matrices[k], _edges(self.images[k].grid)) for k in poses])
        low, high = corners.min(axis=0), corners.max(axis=0)
        shape = np.maximum(np.ceil((high - low) / spacing - 1e-6), 1).astype(int)
        largest = np.max([self.images[k].grid.extent for k in poses], axis=0)
        if (shape * spacing > 8 * largest).any():
            raise ValueError(
                f"wanted sections that lie on each other, got a canvas of {shape[0]} × {shape[1]} px; some pair is far off: "
                "see which with reference='chain', and leave that section out"
            )
        return Grid(tuple(int(n) for n in shape), tuple(spacing), tuple(low + spacing / 2), self.units[0])

    def pictures(self, maps: Mapping[int, Transform], canvas: Grid) -> Pictures:
        """Density and tissue of every section that has a map, on the canvas, at most `LOOKED_AT` pixels along the longer side."""
        small = canvas.resampled(tuple(s * max(1.0, max(canvas.shape) / LOOKED_AT) for s in canvas.spacing))
        density, tissue = {}, {}
        for k, transform in maps.items():
            section = self.sections[k]
            density[k] = resample(section.density, transform, small, 0.0).data[0].numpy().astype(np.float64)
            mask = Image(torch.from_numpy(section.mask.astype(np.float32))[None], section.density.grid)
            tissue[k] = resample(mask, transform, small, 0.0).data[0].numpy() > 0.5
        return Pictures(density, tissue, small)

    def bend(self, maps: dict[int, Transform], canvas: Grid, poor: set[int]) -> Bent:
        """Bend every section but the first and the last onto the average of its neighbours, `BENDS` times.

        A steady change along the stack is kept, because the average of both neighbours lies where such a change puts the
        section. The first and the last section have one neighbour only and keep their pose. A section keeps its map where a
        neighbour is among the ``poor``, or where the bend makes it less like its neighbours.
        """
        order = [k for k in self.good if k in maps]
        current, figures, rounds = dict(maps), dict[int, dict[str, Any]](), list[dict[str, Any]]()
        for turn in range(BENDS):
            pictures = self.pictures(current, canvas)
            proposed, kept = dict(current), 0
            threes = [
                (a, k, b)
                for a, k, b in zip(order, order[1:], order[2:], strict=False)
                if a not in poor and b not in poor
            ]
            items: list[tuple[Any, ...]] = [
                (k, maps[k], ((a, current[a]), (b, current[b])), canvas) for a, k, b in threes
            ]
            found: list[Onto] = self.ask(f"bending, round {turn + 1}", "bent", items)
            for (a, k, b), onto in zip(threes, found, strict=True):
                if onto.transform is None:
                    continue
                there = self.pictures({k: onto.transform}, canvas)
                gain = np.mean(
                    [
                        ncc_of(there.density[k], pictures.density[n], there.tissue[k] | pictures.tissue[n])
                        - pictures.ncc(k, n)
                        for n in (a, b)
                    ]
                )
                if gain > 0:
                    proposed[k], kept = onto.transform, kept + 1
                    figures[k] = onto.figures
            current = proposed
            after_round = self.pictures(current, canvas)
            rounds.append({
                "round": turn + 1,
                "bent": kept,
                "ncc": float(np.mean([after_round.ncc(a, b) for a, b in itertools.pairwise(order)])),
            })  # fmt: skip
        return Bent(current, figures, rounds)

    def result(self, k: int, bent: Bent, pose: Floats, canvas: Grid, section: dict[str, Any]) -> Result:
        """Section ``k`` as a `Result`: its map, its pose, and its entry in the stack's metrics."""
        figures = bent.figures.get(k, {})
        metrics: dict[str, Any] = {
            "n_evaluations": 0,
            "roundtrip_px": {"mean": 0.0, "max": 0.0},
            "jacobian_min": 1.0,
            "jacobian_max": 1.0,
            "folding_fraction": 0.0,
            "seconds": 0.0,
            **figures,
            "model": "lddmm" if figures else self.kind,
            **section,
        }
        config = self.config.model_copy(update={"transform": "lddmm" if figures else self.kind})
        return Result(
            bent.maps[k], canvas, self.images[k].grid, metrics, config, Affine(torch.from_numpy(pose), *self.units)
        )


def _edges(grid: Grid) -> Floats:
    """The outer corners ``[4, 2]`` of the area that the pixels of a grid cover."""
    low = np.array(grid.origin) - np.array(grid.spacing) / 2
    high = low + np.array(grid.extent)
    return np.array([[a, b] for a in (low[0], high[0]) for b in (low[1], high[1])])


def _shift(by: Floats, units: tuple[str, str]) -> Affine:
    """The map that adds ``by`` ``[2]`` to every position."""
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[:2, 2] = torch.from_numpy(np.asarray(by, dtype=np.float64))
    return Affine(matrix, *units)
