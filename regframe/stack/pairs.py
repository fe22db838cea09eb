"""Pairs of sections: registered, looked at again where they are doubtful, bent onto their neighbours."""

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
from ..verdict import DIFFER
from . import posegraph
from .posegraph import CONTRADICTS, GUIDE, LEAST_SCALE, Floats, Link, carry, rms
from .sections import LOOKED_AT, Flags, Section, hull_middle, placed, turned_over
from .settle import RIM, missing, settle

FARTHEST = 4
"""Places along the stack that the search for a neighbour goes where nearer ones fail."""
SEARCHED_AT = 40_000
"""Pixels of the finest level at which pairs are registered; what is left is settled (`SETTLED_AT`), which is cheaper."""
ALIKE = 0.15
"""Correlation of two densities from which a pair is used though `register` calls it a failure."""
DOUBTED = 0.5
"""Share of the pairs' median correlation below which a pair is searched for a second time."""
TURNS = 36
"""Turns that a second search begins from: every 10 degrees."""
BEST = 4
"""Of these turns, how many, the most alike, are settled."""
INSIDE = (1.5, 6.0)
"""Finest and coarsest structure, in pixels of the small pictures, that tells whether the inside of two sections is alike."""
PARTIAL = 0.75
"""Share of its neighbours' tissue below which only what is there of a section counts, not the emptiness beside it."""
TRUST = {"pass": 1.0, "warn": 0.5}
"""Weight of a pair by the verdict of its registration."""
DISTRUST = 0.1
"""Weight of a pair of any other verdict: it helps only where no other pair says anything."""
FIGURES = ("roundtrip_px", "jacobian_min", "jacobian_max", "folding_fraction", "bending_px", "n_evaluations")
"""Figures of a registration that the map of a bent section keeps."""
BENDS = 2
"""Rounds in which every section is bent onto the average of its neighbours."""


@dataclass(frozen=True)
class Pictures:
    """Sections on one canvas: density, tissue and where each was imaged, ``[h, w]`` each, by place in the stack."""

    density: dict[int, Floats]
    tissue: dict[int, Flags]
    grid: Grid

    def ncc(self, a: int, b: int) -> float:
        """Correlation of two densities over the tissue of either, and 6 % around it."""
        return ncc_of(self.density[a], self.density[b], self.tissue[a] | self.tissue[b])

    def pair(self, a: int, b: int) -> dict[str, float]:
        """All figures of two sections."""
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
        maps: by section, from its own space to the common one.
        figures: by section that was bent, the figures of its map as in a `Result`'s metrics.
        rounds: what every round did: how many sections it bent, and the mean correlation of neighbours after it.
    """

    maps: dict[int, Transform]
    figures: dict[int, dict[str, Any]]
    rounds: list[dict[str, Any]]


class Work:
    """A stack in the making: its sections, the pairs that were registered so far, and what turns them into poses and maps.

    Args:
        images: the sections, 2D, in stacking order.
        planes: the plane of each in the volume.
        config: settings of `register` for every pair.
        transform: ``rigid``, ``affine`` or ``lddmm``; pairs are affine for the last.
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
        """Say that ``done`` of ``total`` pairs or sections of a stage are done."""
        if self._progress is not None:
            self._progress(Progress(stage, done, total))

    def _partial(self) -> dict[int, Image]:
        """Sections with less tissue than `PARTIAL` of those around, weighted by it: their torn edges are no outlines."""
        area = {k: float(s.mask.sum()) * s.density.grid.pixel**2 for k, s in enumerate(self.sections)}
        out = {}
        for i, k in enumerate(self.good):
            around = [self.good[j] for j in range(max(0, i - 3), min(len(self.good), i + 4)) if j != i]
            if area[k] < PARTIAL * float(np.median([area[n] for n in around])):
                out[k] = self._tissue_of(k)
        return out

    def _tissue_of(self, k: int) -> Image:
        """Section ``k`` with a weight of 1 on its tissue and two pixels around it, 0 elsewhere."""
        section, image = self.sections[k], self.images[k]
        near = ndimage.binary_dilation(section.mask, iterations=2).astype(np.float32)
        mask = Image(torch.from_numpy(near)[None], section.density.grid)
        weight = resample(mask, Affine.identity(2, image.grid.unit), image.grid).data[0]
        return image.replace(weight=weight if image.weight is None else weight * image.weight)

    # pairs

    def link(self, reach: int, chained: bool) -> None:
        """Register every section to its neighbours; farther ones where nearer ones fail."""
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
        """Pairs much less alike than most, or turned over, are searched for again: all turns, from the middles of their hulls.

        Tissue of two like halves fits turned over as well as it does as it lies: a pair is turned over only where that
        makes what lies inside the tissue clearly more alike.
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
        """Take another map for pair ``i`` where it is better by more than chance; whether it was taken.

        A map that was ``expected``, or that is not turned over as the pair's own is, need not be better: it is taken unless
        what lies inside the tissue is less alike under it.
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
        """Settle the pairs that contradict the poses from where these put them, keep what is as alike; whether any changed."""
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
        """Sections that no trusted pair joins to a section ``before`` or ``after`` them, with that side; ends aside."""
        trusted = [link for link in self.links if link.weight > 0]
        held = {(link.fixed, "after") for link in trusted} | {(link.moving, "before") for link in trusted}
        ends = {(self.good[0], "before"), (self.good[-1], "after")}
        return {(k, side) for k in self.good for side in ("before", "after")} - held - ends

    def _pair(self, a: int, b: int) -> Link:
        """The pair of two sections, ``b`` registered to ``a``."""
        return self._register(self.partial.get(a, self.images[a]), self.partial.get(b, self.images[b]), a, b)

    def _register(self, fixed: Image, moving: Image, a: int, b: int) -> Link:
        """The pair of section ``b``, as ``moving`` shows it, and section ``a`` or a plane of the guide, as ``fixed``."""
        pyramid = self.config.pyramid
        if a != GUIDE:
            pyramid = pyramid.model_copy(update={"max_pixels": min(pyramid.max_pixels, SEARCHED_AT)})
        config = self.config.model_copy(update={"transform": self.kind, "pyramid": pyramid})
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that sides declare no pixel size is said once, for the stack
                result = register(fixed, moving, config=config)
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
        """How alike section ``b`` under ``matrix`` and ``one`` are, -1 … 1; ``one`` is section ``a`` or a plane of the guide.

        The correlation of their densities over the tissue of either, what one of them has lost aside, times the share of the
        tissue that is left.
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
        """Correlation of the structure of `INSIDE` widths within the tissue of both, away from outlines and holes."""
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
        """A pair's map and likeness after settling; those given where settling makes the two less alike by more than chance."""
        fixed, moving = (dataclasses.replace(self.sections[k].fine, partial=k in self.partial) for k in (a, b))
        found = settle(fixed, moving, matrix, self.nodes[b].probes, self.nodes[b].size, self.kind)
        likeness = self._likeness(self.sections[a], a, b, found)
        return (found, likeness) if likeness > ncc - DIFFER else (matrix, ncc)

    def link_guide(self, guide: Image, spacing: float) -> None:
        """Register every section to the plane of the guide nearest to it; ``spacing`` is the distance of two sections."""
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
        """The section that stays where it is: the wanted one, a chain's first, or one with a trusted pair near the middle."""
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
        """For three sections in a row, how far the maps over both steps and over one step contradict each other, rms in px."""
        at = {(link.fixed, link.moving): link for link in self.links if link.weight > 0}
        found = []
        for a, b, c in zip(self.good, self.good[1:], self.good[2:], strict=False):
            if all(pair in at for pair in ((a, b), (b, c), (a, c))):
                found.append(posegraph.loop(at[a, b], at[b, c], at[a, c], self.nodes[c]) / self.pixel)
        return found

    def weigh(self, poses: Mapping[int, Floats], chained: bool) -> None:
        """Note how far every pair departs from the poses, and, unless ``chained``, give up those that contradict them."""
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
        """Departure from the poses, rms over the tissue in the images' unit, beyond which a pair is given up."""
        usual = float(np.median([link.residual for link in self.links if link.weight > 0] or [0.0]))
        return CONTRADICTS * max(LEAST_SCALE * self.size, CONTRADICTS * usual)

    # the canvas and what lies on it

    def as_they_lie(self) -> dict[int, Transform]:
        """Maps that lay the middles of all canvases on that of the middle section: the stack before any registration."""
        middle = np.array(self.images[self.good[len(self.good) // 2]].grid.center)
        return {k: _shift(middle - np.array(self.images[k].grid.center), self.units) for k in self.good}

    def canvas(self, poses: Mapping[int, Any]) -> Grid:
        """A grid over all that any section covers under its pose, with the finest of the sections' spacings per axis.

        Raises ValueError where it is far larger than any section: some pose is wrong.
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
        """Density and tissue of every section with a map, on the canvas with at most `LOOKED_AT` pixels along its longer side."""
        small = canvas.resampled(tuple(s * max(1.0, max(canvas.shape) / LOOKED_AT) for s in canvas.spacing))
        density, tissue = {}, {}
        for k, transform in maps.items():
            section = self.sections[k]
            density[k] = resample(section.density, transform, small, 0.0).data[0].numpy().astype(np.float64)
            mask = Image(torch.from_numpy(section.mask.astype(np.float32))[None], section.density.grid)
            tissue[k] = resample(mask, transform, small, 0.0).data[0].numpy() > 0.5
        return Pictures(density, tissue, small)

    def bend(self, maps: dict[int, Transform], canvas: Grid, poor: set[int]) -> Bent:
        """Every section but the first and the last bent onto the average of its neighbours, `BENDS` times.

        The average of both sides lies where a steady change along the stack puts the section, so such a change stays; of
        the outermost only one neighbour is known, so these keep their pose. Where a neighbour is among the ``poor``, or the
        bend makes a section less like its neighbours, it keeps the map it had.
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
        """A section that lies on the canvas bent onto ``target``; None where that fails or folds."""
        config = self.config.model_copy(update={"transform": "lddmm"})
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what there is to say of the pair is said by its verdict
                result = register(target, section.replace(weight=None), init="identity", config=config)
        except ValueError:
            return None
        return None if result.metrics["folding_fraction"] > 0 or result.verdict == "fail" else result

    def result(self, k: int, bent: Bent, pose: Floats, canvas: Grid, section: dict[str, Any]) -> Result:
        """Section ``k`` as a `Result` like any other: its map, its pose, and what is said of it in the stack's metrics."""
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
    """What a pair counts: its correlation over the distance of its sections, squared, times the trust in its verdict.

    The anatomy's change, which is the error of a right pair, grows with the distance.
    """
    trust = TRUST.get(verdict, DISTRUST)
    return (max(ncc, 0.05) / max(apart, 1)) ** 2 * trust


def _edges(grid: Grid) -> Floats:
    """Corners ``[4, 2]`` of the area that the pixels cover."""
    low = np.array(grid.origin) - np.array(grid.spacing) / 2
    high = low + np.array(grid.extent)
    return np.array([[a, b] for a in (low[0], high[0]) for b in (low[1], high[1])])


def _shift(by: Floats, units: tuple[str, str]) -> Affine:
    """The map that moves every position by ``by`` ``[2]``."""
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[:2, 2] = torch.from_numpy(np.asarray(by, dtype=np.float64))
    return Affine(matrix, *units)
