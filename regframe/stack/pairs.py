"""Registers pairs of sections, repeats doubtful ones, and bends sections onto their neighbours.

Where a constant names no source, neither a paper nor a calibration is recorded for it; ``benchmarks/bench_stack.py`` measures
what they achieve together.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from ..config import Config
from ..contracts import Progress
from ..data import Grid, Image
from ..maps.affine import Affine
from ..maps.base import Transform
from ..maps.resample import resample
from ..maps.sequence import Sequence as Chain
from ..registration import register
from ..result import Result
from ..solvers.raster import check_image
from ..strangers import PluginFault
from ..verdict import DIFFER
from . import posegraph
from .posegraph import CONTRADICTS, GUIDE, LEAST_SCALE, Floats, Link, carry, rms
from .sections import LOOKED_AT, Flags, Section, hull_middle, placed, turned_over
from .settle import RIM, missing, settle

FARTHEST = 4
"""Largest distance along the stack, in places, at which a neighbour is searched for where nearer ones fail."""
SEARCHED_AT = 40_000
"""Pixels of the finest level at which pairs are registered; the remaining error is removed by `settle` (at `SETTLED_AT`), which
is cheaper."""
ALIKE = 0.15
"""Correlation of two densities from which a pair is used although `register` calls it a failure."""
DOUBTED = 0.5
"""Correlation of a pair, over the median of all pairs, below which the pair is searched for a second time."""
TURNS = 36
"""Number of turns from which a second search starts: one every 10 degrees."""
BEST = 4
"""Number of these turns, those under which the sections correlate most, that are settled."""
INSIDE = (1.5, 6.0)
"""Standard deviations, in pixels of the small pictures, of the finest and the coarsest structure by which the insides of two
sections are compared."""
PARTIAL = 0.75
"""Ratio of a section's tissue area to that of its neighbours, below which only its tissue is compared and not the emptiness
beside it."""
TRUST = {"pass": 1.0, "warn": 0.5}
"""Weight of a pair by the verdict of its registration."""
DISTRUST = 0.1
"""Weight of a pair with any other verdict: small enough to matter only where no other pair decides."""
FIGURES = ("roundtrip_px", "jacobian_min", "jacobian_max", "folding_fraction", "bending_px", "n_evaluations")
"""Figures of a registration that are kept for the map of a bent section."""
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


def ncc_of(a: Floats, b: Floats, where: Flags) -> float:
    """Pearson's correlation of two pictures ``[h, w]`` over ``where``; 0 for fewer than 16 pixels, or where one is constant."""
    if where.sum() < 16:
        return 0.0
    x, y = a[where] - a[where].mean(), b[where] - b[where].mean()
    norm = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / norm if norm > 0 else 0.0


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

    Raises ValueError for fewer than two sections with tissue.
    """

    def __init__(
        self,
        images: list[Image],
        planes: tuple[int, ...],
        config: Config,
        transform: str,
        progress: Callable[[Progress], object] | None = None,
    ) -> None:
        self.images, self.planes = images, planes
        self._progress = progress
        self.names = tuple(image.name for image in images)
        self.kind = "rigid" if transform == "rigid" else "affine"
        self.config = config
        self.sections = [Section.of(image) for image in images]
        self.good = [k for k, section in enumerate(self.sections) if not section.empty]
        if len(self.good) < 2:
            raise ValueError(f"wanted at least two sections with tissue, got {len(self.good)}; check files and channel")
        self.links: list[Link] = []
        self.pixel = images[0].grid.pixel
        self.partial = self._partial()
        self.nodes = {k: self.sections[k].node for k in self.good}
        self.size = float(np.median([node.size for node in self.nodes.values()]))
        unit = images[0].grid.unit
        self.units = (unit, unit)
        self.evaluations = 0

    def tell(self, stage: str, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` pairs or sections of a stage are done."""
        if self._progress is not None:
            self._progress(Progress(stage, done, total))

    def _partial(self) -> dict[int, Image]:
        """Sections with less tissue than `PARTIAL` of their neighbours, weighted by their tissue: torn edges do not count."""
        area = {k: float(s.mask.sum()) * s.density.grid.pixel**2 for k, s in enumerate(self.sections)}
        out = {}
        for i, k in enumerate(self.good):
            around = [self.good[j] for j in range(max(0, i - 3), min(len(self.good), i + 4)) if j != i]
            if area[k] < PARTIAL * float(np.median([area[n] for n in around])):
                out[k] = self._tissue_of(k)
        return out

    def _tissue_of(self, k: int) -> Image:
        """Section ``k`` with weight 1 on its tissue and two pixels around it, 0 elsewhere."""
        section, image = self.sections[k], self.images[k]
        near = ndimage.binary_dilation(section.mask, iterations=2).astype(np.float32)
        mask = Image(torch.from_numpy(near)[None], section.density.grid)
        weight = resample(mask, Affine.identity(2, image.grid.unit), image.grid).data[0]
        return image.replace(weight=weight if image.weight is None else weight * image.weight)

    # pairs

    def link(self, reach: int, chained: bool) -> None:
        """Register every section to its neighbours within ``reach``; to farther ones where these fail."""
        order = self.good
        pairs = [(order[i], order[i + d]) for d in range(1, reach + 1) for i in range(len(order) - d)]
        for done, (a, b) in enumerate(pairs):
            self.tell("pairs", done, len(pairs))
            self.links.append(self._pair(a, b))
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
            for done, (a, b) in enumerate(pair for pair in more if pair not in tried):
                self.tell(f"pairs {d} apart", done, len(more))
                self.links.append(self._pair(a, b))

    def retry(self) -> None:
        """Search again for pairs that are much less alike than most, or turned over: from all turns, hull middle on hull middle.

        Tissue of two equal halves fits turned over as well as it does as it lies. A pair is taken as turned over only where
        that makes the inside of the tissue clearly more alike.
        """
        usual = float(np.median([link.ncc for link in self.links] or [0.0]))
        poor = [i for i, link in enumerate(self.links) if link.ncc < DOUBTED * usual or turned_over(link.matrix)]
        for done, i in enumerate(poor):
            self.tell("doubtful pairs", done, len(poor))
            a, b = self.links[i].fixed, self.links[i].moving
            hulls = [hull_middle(self.sections[k]) for k in (a, b)]
            trials: list[tuple[float, int, Floats]] = []
            for angle in np.linspace(0, 2 * math.pi, TURNS, endpoint=False):
                c, s = math.cos(angle), math.sin(angle)
                start = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
                start[:2, 2] = hulls[0] - start[:2, :2] @ hulls[1]
                trials.append((self._likeness(self.sections[a], a, b, start), len(trials), start))
            peaks = sorted(
                (
                    trial
                    for k, trial in enumerate(trials)
                    if trial[0] >= max(trials[k - 1][0], trials[k + 1 - TURNS][0])
                ),
                reverse=True,
            )
            found = [self._settled(a, b, start, ncc) for ncc, _, start in peaks[:BEST]]
            best = max(found, key=lambda pair: self._inside(a, b, pair[0]))
            self._prefer(i, *best)

    def _prefer(self, i: int, matrix: Floats, ncc: float, expected: bool = False) -> bool:
        """Give pair ``i`` another map where it is better by more than chance; returns whether it was given.

        A map that is ``expected``, or one that is not turned over where the pair's own is, need not be better: it is taken
        unless the inside of the tissue is less alike under it.
        """
        link = self.links[i]
        if expected or (turned_over(link.matrix) and not turned_over(matrix)):
            better = self._inside(link.fixed, link.moving, matrix) > (
                self._inside(link.fixed, link.moving, link.matrix) - 2 * DIFFER
            )
        else:
            better = ncc > max(link.ncc, 0.0) + DIFFER
        if better:
            verdict = link.verdict if link.verdict == "pass" else "warn"
            weight = _weight(ncc, self.planes[link.moving] - self.planes[link.fixed], verdict)
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
            there = self._likeness(self.sections[link.fixed], link.fixed, link.moving, expected)
            matrix, ncc = self._settled(link.fixed, link.moving, expected, there)
            if ncc >= ALIKE:
                changed |= self._prefer(i, matrix, ncc, expected=True)
        return changed

    def _alone(self) -> set[tuple[int, str]]:
        """Sections, each with a side (``before`` or ``after``), that no trusted pair joins to any section on that side.

        The outer side of the first and of the last section is left out.
        """
        trusted = [link for link in self.links if link.weight > 0]
        held = {(link.fixed, "after") for link in trusted} | {(link.moving, "before") for link in trusted}
        ends = {(self.good[0], "before"), (self.good[-1], "after")}
        return {(k, side) for k in self.good for side in ("before", "after")} - held - ends

    def _pair(self, a: int, b: int) -> Link:
        """The pair of section ``b`` (moving) registered to section ``a``."""
        return self._register(self.partial.get(a, self.images[a]), self.partial.get(b, self.images[b]), a, b)

    def _register(self, fixed: Image, moving: Image, a: int, b: int) -> Link:
        """The pair of ``b`` and ``a``, from the images ``moving`` (section ``b``) and ``fixed``.

        ``fixed`` shows section ``a``, or a plane of the guide.
        """
        pyramid = self.config.pyramid
        if a != GUIDE:
            pyramid = pyramid.model_copy(update={"max_pixels": min(pyramid.max_pixels, SEARCHED_AT)})
        config = self.config.model_copy(update={"transform": self.kind, "pyramid": pyramid})
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a missing pixel size is reported once for the whole stack
                result = register(fixed, moving, config=config)
        except PluginFault:  # it would fail on every pair
            raise
        except ValueError as error:
            return Link(a, b, np.eye(3), 0.0, f"fail: {error}", 0.0)
        self.evaluations += int(result.metrics["n_evaluations"])
        assert isinstance(result.affine, Affine)
        matrix = result.affine.matrix.numpy()
        one = self.sections[a] if a != GUIDE else Section.of(fixed)
        ncc = self._likeness(one, a, b, matrix)
        if a != GUIDE:
            matrix, ncc = self._settled(a, b, matrix, ncc)
        apart = self.planes[b] - self.planes[a] if a != GUIDE else 1
        use = result.verdict != "fail" or ncc >= ALIKE
        return Link(
            a,
            b,
            matrix,
            ncc,
            result.verdict,
            _weight(abs(ncc) if a == GUIDE else ncc, apart, result.verdict) if use else 0.0,
        )

    def _likeness(self, one: Section, a: int, b: int, matrix: Floats) -> float:
        """Likeness, -1 … 1, of section ``b`` under ``matrix`` and ``one`` (section ``a``, or a plane of the guide).

        It is the correlation of their densities over the tissue of either, without what one of them has lost, times the share
        of the tissue that remains.
        """
        other, grid = self.sections[b], one.density.grid
        onto = Affine(torch.from_numpy(matrix), *self.units)
        warped = resample(other.density, onto, grid, 0.0).data[0].numpy().astype(np.float64)
        mask = Image(torch.from_numpy(other.mask.astype(np.float32))[None], other.density.grid)
        tissue = resample(mask, onto, grid, 0.0).data[0].numpy() > 0.5
        where = one.mask | tissue
        for k, own in ((a, one.mask), (b, tissue)):
            where = where & own if k in self.partial else where
        whole = float(where.sum())
        where = where & ~missing(one.mask, tissue, RIM * other.node.size / grid.pixel)
        share = float(where.sum()) / whole if whole else 0.0
        return share * ncc_of(one.density.data[0].numpy().astype(np.float64), warped, where)

    def _inside(self, a: int, b: int, matrix: Floats) -> float:
        """Correlation of structure of the widths `INSIDE` within the tissue of both, away from outlines and holes."""
        one, other, grid = self.sections[a], self.sections[b], self.sections[a].density.grid
        onto = Affine(torch.from_numpy(matrix), *self.units)
        warped = resample(other.density, onto, grid, 0.0).data[0].numpy()
        mask = Image(torch.from_numpy(other.mask.astype(np.float32))[None], other.density.grid)
        both = one.mask & (resample(mask, onto, grid, 0.0).data[0].numpy() > 0.5)
        within = ndimage.binary_erosion(both, iterations=3)

        def fine(values: NDArray[np.float32]) -> Floats:
            weight = within.astype(np.float64)
            small, large = (
                ndimage.gaussian_filter(values * weight, width)
                / np.maximum(ndimage.gaussian_filter(weight, width), 1e-3)
                for width in INSIDE
            )
            return np.asarray(small - large)

        return ncc_of(fine(one.density.data[0].numpy()), fine(warped), within)

    def _settled(self, a: int, b: int, matrix: Floats, ncc: float) -> tuple[Floats, float]:
        """The map and the likeness of a pair after settling.

        The given ones are returned where settling makes the two sections less alike by more than chance.
        """
        fixed, moving = (dataclasses.replace(self.sections[k].fine, partial=k in self.partial) for k in (a, b))
        found = settle(fixed, moving, matrix, self.nodes[b].probes, self.nodes[b].size, self.kind)
        likeness = self._likeness(self.sections[a], a, b, found)
        return (found, likeness) if likeness > ncc - DIFFER else (matrix, ncc)

    def link_guide(self, guide: Image, spacing: float) -> None:
        """Register every section to the nearest plane of the guide; ``spacing`` is the distance of two planes of the stack."""
        for done, k in enumerate(self.good):
            self.tell("guide", done, len(self.good))
            z = (self.planes[k] - min(self.planes)) * spacing
            plane = round(z / guide.grid.spacing[0])
            if not 0 <= plane < guide.grid.shape[0]:
                continue
            flat = Grid(guide.grid.shape[1:], guide.grid.spacing[1:], guide.grid.origin[1:], guide.grid.unit)
            image = Image(guide.data[:, plane].contiguous(), flat, guide.channels, name=f"{guide.name} plane {plane}")
            try:
                check_image(image, "guide")
            except ValueError:
                continue
            self.links.append(self._register(image, self.partial.get(k, self.images[k]), GUIDE, k))

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
        flat = {k: placed(self.images[k], maps[k], canvas, self.sections[k].background) for k in order}
        current, figures, rounds = dict(maps), dict[int, dict[str, Any]](), list[dict[str, Any]]()
        for turn in range(BENDS):
            shown = flat if turn == 0 else {
                k: placed(self.images[k], current[k], canvas, self.sections[k].background) for k in order
            }  # fmt: skip
            pictures = self.pictures(current, canvas)
            proposed, kept = dict(current), 0
            for done, (a, k, b) in enumerate(zip(order, order[1:], order[2:], strict=False)):
                self.tell(f"bending, round {turn + 1}", done, max(len(order) - 2, 1))
                if a in poor or b in poor:
                    continue
                before, after = (self.planes[k] - self.planes[a]), (self.planes[b] - self.planes[k])
                share = after / (before + after)
                mean = share * shown[a].data.to(torch.float32) + (1 - share) * shown[b].data.to(torch.float32)
                result = self._bent_onto(shown[a].replace(data=mean, weight=None, name="neighbours"), flat[k])
                if result is None:
                    continue
                bent = Chain((maps[k], result.transform))
                there = self.pictures({k: bent}, canvas)
                gain = np.mean(
                    [
                        ncc_of(there.density[k], pictures.density[n], there.tissue[k] | pictures.tissue[n])
                        - pictures.ncc(k, n)
                        for n in (a, b)
                    ]
                )
                if gain > 0:
                    proposed[k], kept = bent, kept + 1
                    figures[k] = {name: result.metrics[name] for name in FIGURES}
            current = proposed
            after_round = self.pictures(current, canvas)
            rounds.append({
                "round": turn + 1,
                "bent": kept,
                "ncc": float(np.mean([after_round.ncc(a, b) for a, b in itertools.pairwise(order)])),
            })  # fmt: skip
        return Bent(current, figures, rounds)

    def _bent_onto(self, target: Image, section: Image) -> Result | None:
        """Register a section, as it lies on the canvas, to ``target`` with a bend; None where that fails or folds."""
        config = self.config.model_copy(update={"transform": "lddmm"})
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # remarks on the pair are in its verdict
                result = register(target, section.replace(weight=None), init="identity", config=config)
        except PluginFault:
            raise
        except ValueError:
            return None
        return None if result.metrics["folding_fraction"] > 0 or result.verdict == "fail" else result

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


def _weight(ncc: float, apart: int, verdict: str) -> float:
    """Weight of a pair: (correlation / distance of the sections in the stack)², times the trust in its verdict.

    The error of a correct pair comes from the change of the anatomy, which grows with the distance.
    """
    trust = TRUST.get(verdict, DISTRUST)
    return (max(ncc, 0.05) / max(apart, 1)) ** 2 * trust


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
