"""A stack of serial sections: neighbours aligned in pairs, the pairs reconciled over the whole stack, one canvas for all.

Every section is registered to several neighbours, not to the last one alone; `regframe.posegraph` reconciles the pairs.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import math
import re
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.morphology import convex_hull_image
from torch import Tensor

from . import outputs, plugins, posegraph
from .config import Config
from .data import Grid, Image
from .maps.affine import Affine
from .maps.base import Transform
from .maps.resample import resample
from .maps.sequence import Sequence as Chain
from .posegraph import CONTRADICTS, GUIDE, LEAST_SCALE, Floats, Link, Node, carry, rms
from .registration import Result, check_image, register
from .settle import RIM, Density, missing, settle
from .solvers import preparation

Flags = NDArray[np.bool_]

TRANSFORMS = ("rigid", "affine", "lddmm")
EDGE = 0.6
"""Of Otsu's threshold between background and tissue, what pale tissue reaches."""
REACH = 2
"""Neighbours on either side that each section is registered to."""
FARTHEST = 4
"""How far the search for a neighbour goes where nearer ones fail."""
LOOKED_AT = 256
"""Pixels along the longer side of the pictures that neighbours are compared on."""
SETTLED_AT = 512
"""Pixels along the longer side of the pictures that pairs are settled on."""
SEARCHED_AT = 40_000
"""Pixels of the finest level at which pairs are searched for; what is finer is settled."""
ALIKE = 0.15
"""Correlation from which a pair is used that `register` calls a failure."""
DOUBTED = 0.5
"""Of the usual correlation, below which a pair is searched for a second time."""
TURNS = 36
"""Turns that are tried then."""
BEST = 4
"""Of these, how many are settled."""
INSIDE = (1.5, 6.0)
"""Finest and coarsest structure, in pixels of the small pictures, that tells whether the inside of two sections is alike."""
CHANCES = 3
"""Rounds in which the poses are found and the pairs that contradict them looked at again."""
APART = 0.05
"""By how much correlations of neighbours differ before it is said that a section is poor or lies elsewhere."""
EVEN = 0.5
"""Mean deviation of a border, over the image's standard deviation, up to which it is background."""
PARTIAL = 0.75
"""Share of its neighbours' tissue below which only what is there of a section counts, not the emptiness beside it."""
HALF = 0.5
"""Share of its neighbours' tissue below which a section is said to be incomplete."""
BENDS = 2
"""Rounds in which every section is bent onto the average of its neighbours."""
MOST_BYTES = 4 << 30
"""Largest volume that is put together in memory."""
VOLUME = "volume.ome.zarr"
SECTIONS = "sections"


@dataclass(frozen=True)
class Stack:
    """Aligned sections.

    Args:
        results: one `Result` per section, from its own space to the common one; None where it could not be placed.
        grid: the volume's grid ``(z, y, x)``; sections lie at ``planes``.
        planes: plane of each section in the volume.
        names: what the sections are called.
        links: the pairs that were registered.
        metrics: what ``metrics.json`` holds: verdicts per section, coherence of neighbours before and after, drift, order.
        affines: the poses before bending.
    """

    results: tuple[Result | None, ...]
    grid: Grid
    planes: tuple[int, ...]
    names: tuple[str, ...]
    links: tuple[Link, ...]
    metrics: dict[str, Any]

    @property
    def verdict(self) -> str:
        """``pass``, ``warn`` or ``fail``."""
        return str(self.metrics["verdict"])

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why, one sentence each."""
        return tuple(self.metrics["reasons"])

    @property
    def plane_grid(self) -> Grid:
        """The common canvas of all sections."""
        return _plane(self.grid)

    def __repr__(self) -> str:
        placed = sum(result is not None for result in self.results)
        coherence = self.metrics["coherence"]
        return (
            f"Stack({self.verdict}, {placed} of {len(self.results)} sections placed, neighbours' correlation "
            f"{coherence['before']['ncc']:.2f} → {coherence['after']['ncc']:.2f}, {self.metrics['seconds']:.1f} s)"
        )

    def volume(self, images: Sequence[Image]) -> Image:
        """The sections ``images`` as one volume ``[C, Z, Y, X]``, in their dtype; the background where there is none.

        ``images`` are those that were aligned, or others on the same physical space (labels, another channel), one per
        section. ValueError where they differ in channels or type, or need more than `MOST_BYTES`.
        """
        return _volume(self, images)

    def save(self, path: str | Path, images: Sequence[Image] | None = None, overwrite: bool = False) -> None:
        """Write a folder: ``metrics.json``, ``sections/NAME/transform.ome.zarr`` (each for `regframe.load`), and, where
        ``images`` are given, ``volume.ome.zarr`` and ``report.html``. Aside first, then renamed."""
        _save(self, Path(path), images, overwrite)


def align_stack(
    images: Iterable[Any],
    *,
    positions: Sequence[float] | None = None,
    spacing_z: float | None = None,
    reference: int | str = "middle",
    transform: str = "rigid",
    guide: Image | None = None,
    hold: float | None = None,
    reach: int = REACH,
    check_mirrors: bool = True,
    config: Config | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Stack:
    """Align serial sections, given in order, into one stack.

    Args:
        images: 2D `Image` objects or anything `regframe.open` reads; sizes may differ, pixels have the same unit.
        positions: where each section lies along z, ascending, in units of ``spacing_z``; gaps stay empty. 0, 1, 2 … where None.
        spacing_z: distance of two sections, in the images' unit; one pixel where None, and then it is said.
        reference: place of the section that stays where it is, ``"middle"``, or ``"chain"``: each is hung on the one before
            it and nothing is reconciled, for comparison.
        transform: ``rigid`` (sections keep their size), ``affine`` (single sections' stretch is undone, the slow change of
            size along the stack stays), ``lddmm`` (the same, then bent onto the average of their neighbours).
        guide: a volume of the same organ in the same orientation, whose first plane lies at position 0: what neighbours
            alone cannot know, the curvature of the organ, comes from it.
        hold: sections over which the place on the canvas is believed where it came from (block face, stage): slower
            shifts then stay as they are. Not at all where None.
        reach: neighbours on either side that each section is registered to.
        check_mirrors: try every section turned over as well, and say where that fits better.
        config: settings of `register` for every pair.
        progress: called with the stage, what is done and how much there is.

    Raises:
        ValueError: fewer than two sections, volumes, several units, positions that do not ascend.
    """
    began = time.perf_counter()
    if transform not in TRANSFORMS:
        raise ValueError(f"wanted transform {' or '.join(TRANSFORMS)}, got {transform!r}; choose one of these")
    sections = _opened(images)
    planes = _planes(positions, len(sections))
    if not (isinstance(reference, int) or reference in ("middle", "chain")):
        raise ValueError(f"wanted a section's place, 'middle' or 'chain' as reference, got {reference!r}")
    if isinstance(reference, int) and not 0 <= reference < len(sections):
        raise ValueError(f"wanted a reference from 0 to {len(sections) - 1}, got {reference}; count from 0")
    if reach < 1 or (hold is not None and not hold > 0):
        raise ValueError(f"wanted a reach of at least 1 and a hold above 0, got {reach} and {hold}")
    work = Work(sections, planes, config or Config(), transform, progress or (lambda *_: None))
    if guide is not None and (guide.grid.ndim != 3 or guide.grid.unit != sections[0].grid.unit):
        raise ValueError(
            f"wanted a guide volume in {sections[0].grid.unit}, got {guide.grid.ndim}D in {guide.grid.unit}"
        )
    stated = spacing_z is not None
    spacing = float(spacing_z) if spacing_z is not None else sections[0].grid.pixel
    if not (math.isfinite(spacing) and spacing > 0):
        raise ValueError(f"wanted a positive distance of the sections, got {spacing_z}")

    chained = reference == "chain"
    work.link(1 if chained else reach, chained)
    if guide is not None and not chained:
        work.link_guide(guide, spacing)
    first = work.reference(reference)
    guided = any(link.fixed == GUIDE and link.weight > 0 for link in work.links)
    start = posegraph.tree(work.links, work.nodes, GUIDE if guided else first)
    poses = dict(start)
    for _ in range(0 if chained else CHANCES):
        poses = posegraph.reconcile(work.links, work.nodes, start, first, work.kind, hold)
        if not work.second_chance(poses):
            break
        start = posegraph.tree(work.links, work.nodes, GUIDE if guided else first)
    work.weigh(poses, chained)
    canvas = work.canvas(poses)
    before = work.pictures(work.as_they_lie(), work.canvas(work.as_they_lie()))
    after = work.pictures({k: Affine(torch.from_numpy(m), *work.units) for k, m in poses.items()}, canvas)
    judged = Judge(work, poses, before, after)
    mirrored = judged.mirrored(canvas) if check_mirrors else []
    maps: dict[int, Transform] = {k: Affine(torch.from_numpy(m), *work.units) for k, m in poses.items()}
    steps: list[dict[str, Any]] = []
    figures: dict[int, dict[str, Any]] = {}
    if transform == "lddmm":
        maps, figures, steps = work.bend(maps, canvas, judged.poor)
    final = work.pictures(maps, canvas) if transform == "lddmm" else after
    grid = Grid(
        (max(planes) - min(planes) + 1, *canvas.shape),
        (spacing, *canvas.spacing),
        (min(planes) * spacing, *canvas.origin),
        canvas.unit,
    )
    metrics = judged.metrics(final, mirrored, start, chained)
    if not stated:
        metrics["reasons"].append("no distance of the sections was stated: the planes lie one pixel apart")
    metrics |= {
        "transform": transform,
        "reference": {"kind": str(reference), "section": first, "name": work.names[first]},
        "spacing_z": {"value": spacing, "unit": canvas.unit, "stated": stated},
        "canvas": {"shape": list(grid.shape), "spacing": list(grid.spacing), "unit": grid.unit},
        "bending": steps,
        "seconds": time.perf_counter() - began,
        "versions": outputs.versions(),
    }
    results = tuple(
        work.result(k, maps[k], poses[k], canvas, metrics["sections"][k], figures.get(k, {})) if k in maps else None
        for k in range(len(sections))
    )
    return Stack(results, grid, tuple(p - min(planes) for p in planes), work.names, tuple(work.links), metrics)


def sort_sections(paths: Sequence[Path], order: str | Path = "natural") -> tuple[list[Path], list[int] | None]:
    """Files in stacking order, and their positions along z where these are known.

    Args:
        paths: the files, in any order.
        order: ``natural`` (by name, numbers as numbers), ``number`` (by the last number of the name, which is taken for the
            position, so that missing ones leave a gap), ``given``, or a CSV file with a column ``section`` (file names) in
            stacking order and, if it has one, a column ``position`` of whole numbers.
    """
    if order == "given":
        return list(paths), None
    if order == "natural":
        return sorted(
            paths, key=lambda p: [(int(t), "") if t.isdigit() else (-1, t) for t in re.split(r"(\d+)", p.name)]
        ), None
    if order == "number":
        found = []
        for path in paths:
            digits = re.findall(r"\d+", path.name[: len(path.name) - len("".join(path.suffixes[-1:]))])
            if not digits:
                raise ValueError(f"wanted a number in every file name, got {path.name!r}; use another order")
            found.append((int(digits[-1]), path))
        found.sort(key=lambda pair: pair[0])
        for (a, one), (b, other) in itertools.pairwise(found):
            if a == b:
                raise ValueError(f"wanted different last numbers in the names, got {a} in {one.name} and {other.name}")
        return [path for _, path in found], [number for number, _ in found]
    return _from_csv(paths, Path(order))


def _from_csv(paths: Sequence[Path], table: Path) -> tuple[list[Path], list[int] | None]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not reader.fieldnames or "section" not in reader.fieldnames:
            raise ValueError(f"wanted a column 'section' in {table}, got {reader.fieldnames or 'nothing'}; name it so")
        rows = list(reader)
    known = {path.name: path for path in paths}
    if len(known) != len(paths):
        raise ValueError("wanted files of different names beside a CSV order, got the same name twice")
    missing = [row["section"] for row in rows if row["section"] not in known]
    unnamed = sorted(known.keys() - {row["section"] for row in rows})
    if missing or unnamed or len(rows) != len(paths):
        what = (
            f"{missing[0]!r}, which was not given"
            if missing
            else f"no single row for {unnamed[0]!r}"
            if unnamed
            else "a row twice"
        )
        raise ValueError(f"wanted one row in {table} per section, got {what}")
    if "position" not in reader.fieldnames:
        return [known[row["section"]] for row in rows], None
    try:
        found = sorted((int(row["position"]), row["section"]) for row in rows)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"wanted whole numbers in the column 'position' of {table}, got another entry: {error}"
        ) from error
    return [known[name] for _, name in found], [number for number, _ in found]


def _opened(images: Iterable[Any]) -> list[Image]:
    sections: list[Image] = []
    for k, source in enumerate(images):
        image = source if isinstance(source, Image) else plugins.open(source)
        if not isinstance(image, Image) or image.grid.ndim != 2:
            what = f"{image.grid.ndim}D" if isinstance(image, Image) else type(image).__name__
            raise ValueError(f"wanted 2D images as sections, got {what} at place {k}; cut a volume into its planes")
        if sections and image.grid.unit != sections[0].grid.unit:
            raise ValueError(
                f"wanted sections in one unit, got {sections[0].grid.unit} and {image.grid.unit} (place {k}); "
                "state the pixel size of all of them"
            )
        sections.append(image)
    if len(sections) < 2:
        raise ValueError(f"wanted at least two sections, got {len(sections)}; name more files")
    return sections


def _planes(positions: Sequence[float] | None, n: int) -> tuple[int, ...]:
    if positions is None:
        return tuple(range(n))
    if len(positions) != n or any(float(p) != round(p) for p in positions):
        raise ValueError(f"wanted {n} whole numbers as positions, got {list(positions)[:5]}; count in spacing_z")
    found = tuple(round(p) for p in positions)
    if any(b <= a for a, b in itertools.pairwise(found)):
        raise ValueError(f"wanted ascending positions, got {list(found)[:8]}; sort the sections, each has its own")
    if found[-1] - found[0] + 1 > 50 * n:
        raise ValueError(
            f"wanted positions counted in sections, got {found[0]} to {found[-1]} for {n}; divide them by spacing_z"
        )
    return found


@dataclass(frozen=True)
class Section:
    """What is compared of a section: how far every pixel departs from the background, small."""

    density: Image
    mask: Flags
    background: Tensor  # [C]
    node: Node
    fine: Density
    empty: str = ""

    @classmethod
    def of(cls, image: Image) -> Section:
        """The section, or why it is none."""
        grid = image.grid
        nowhere = Node(np.tile(np.array(grid.center), (4, 1)), grid.diagonal)
        nothing = np.zeros(grid.shape, dtype=np.bool_)
        none = Density(np.zeros(grid.shape, np.float32), nothing, np.array(grid.spacing), np.array(grid.origin))
        try:
            check_image(image, "section")
        except ValueError as error:
            background = image.data.to(torch.float32).nan_to_num().flatten(1).median(dim=1).values
            blank = image.replace(data=torch.zeros((1, *grid.shape)), channels=("density",), weight=None)
            return cls(blank, nothing, background, nowhere, none, str(error))
        ready, look = preparation.prepare(image)
        background = _background(image, ready.weight, torch.tensor(look.background, dtype=torch.float32))
        apart = (image.data.to(torch.float32) - background[:, None, None]).norm(dim=0)
        weight = torch.ones(grid.shape) if ready.weight is None else ready.weight.to(torch.float32)
        apart = apart * (weight > 0)
        apart = apart.clamp(
            max=float(np.quantile(apart[:: max(1, len(apart) // 500)].numpy(), 0.995))
        )  # specks are not tissue
        density = Image(apart[None], grid, ("density",), weight=ready.weight, name=image.name)
        fine, density = (_smaller(density, most).replace(weight=None) for most in (SETTLED_AT, LOOKED_AT))
        values = density.data[0].numpy()
        mask, edge = np.zeros_like(values, dtype=np.bool_), math.inf
        if values.max() > values.min():
            edge = EDGE * float(threshold_otsu(values))  # type: ignore[no-untyped-call]
            mask = values > edge
        at = density.grid.coords().numpy()[mask]
        if len(at) < 16:
            return cls(density, mask, background, nowhere, none, "no tissue was found in it")
        middle = at.mean(axis=0)
        lengths, axes = np.linalg.eigh(np.cov(at.T))
        arms = axes * np.sqrt(2 * np.clip(lengths, 1e-12, None))  # the columns; ± both: the tissue's second moments
        probes = middle + np.concatenate([arms.T, -arms.T])
        sharp = fine.data[0].numpy()
        solid = ndimage.gaussian_filter(sharp, 1.0) > edge  # noise is not tissue
        settled = Density(sharp, solid, np.array(fine.grid.spacing), np.array(fine.grid.origin))
        return cls(density, mask, background, Node(probes, float(np.sqrt(lengths.sum()))), settled)


@dataclass(frozen=True)
class Pictures:
    """Sections on one canvas: density, tissue and where each was imaged, ``[h, w]`` each, by place in the stack."""

    density: dict[int, Floats]
    tissue: dict[int, Flags]
    grid: Grid

    def ncc(self, a: int, b: int) -> float:
        """Correlation of two densities over the tissue of either, and 6 % around it."""
        return _ncc(self.density[a], self.density[b], self.tissue[a] | self.tissue[b])

    def pair(self, a: int, b: int) -> dict[str, float]:
        """All figures of two sections."""
        one, other = self.tissue[a], self.tissue[b]
        total = float(one.sum() + other.sum())
        return {
            "ncc": self.ncc(a, b),
            "nmi": _nmi(self.density[a], self.density[b], one | other),
            "dice": 2 * float((one & other).sum()) / total if total else 0.0,
        }


def _ncc(a: Floats, b: Floats, where: Flags) -> float:
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


class Work:
    """The sections, the pairs found so far, and what is done with them."""

    def __init__(
        self,
        images: list[Image],
        planes: tuple[int, ...],
        config: Config,
        transform: str,
        progress: Callable[[str, int, int], None],
    ) -> None:
        self.images, self.planes, self.progress = images, planes, progress
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

    def _partial(self) -> dict[int, Image]:
        """Sections with clearly less tissue than those around, weighted by their tissue: torn edges are no outlines."""
        area = {k: float(s.mask.sum()) * s.density.grid.pixel**2 for k, s in enumerate(self.sections)}
        out = {}
        for i, k in enumerate(self.good):
            around = [self.good[j] for j in range(max(0, i - 3), min(len(self.good), i + 4)) if j != i]
            if area[k] < PARTIAL * float(np.median([area[n] for n in around])):
                out[k] = self._tissue_of(k)
        return out

    def _tissue_of(self, k: int) -> Image:
        """Section ``k`` weighted by its tissue."""
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
            self.progress("pairs", done, len(pairs))
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
                self.progress(f"pairs {d} apart", done, len(more))
                self.links.append(self._pair(a, b))

    def retry(self) -> None:
        """Pairs much less alike than most, or turned over, are searched for again: all turns, from the middles of their hulls.

        Tissue of two like halves fits turned over as well as it does as it lies: a pair is turned over only where that
        makes what lies inside the tissue clearly more alike.
        """
        usual = float(np.median([link.ncc for link in self.links] or [0.0]))
        poor = [i for i, link in enumerate(self.links) if link.ncc < DOUBTED * usual or _over(link.matrix)]
        for done, i in enumerate(poor):
            self.progress("doubtful pairs", done, len(poor))
            a, b = self.links[i].fixed, self.links[i].moving
            hulls = [_hull(self.sections[k]) for k in (a, b)]
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
        """Take another map for pair ``i`` where it is better, or as good and what was ``expected`` or not turned over."""
        link = self.links[i]
        if expected or (_over(link.matrix) and not _over(matrix)):
            better = self._inside(link.fixed, link.moving, matrix) > (
                self._inside(link.fixed, link.moving, link.matrix) - 2 * APART
            )
        else:
            better = ncc > max(link.ncc, 0.0) + APART
        if better:
            verdict = link.verdict if link.verdict == "pass" else "warn"
            weight = _weight(ncc, self.planes[link.moving] - self.planes[link.fixed], verdict)
            self.links[i] = dataclasses.replace(link, matrix=matrix, ncc=ncc, weight=weight)
        return better

    def second_chance(self, poses: Mapping[int, Floats]) -> bool:
        """Pairs that contradict the poses settled from where these put them; kept where the two are more alike there."""
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
        """Sections without a pair to be trusted on one side."""
        trusted = [link for link in self.links if link.weight > 0]
        held = {(link.fixed, "after") for link in trusted} | {(link.moving, "before") for link in trusted}
        ends = {(self.good[0], "before"), (self.good[-1], "after")}
        return {(k, side) for k in self.good for side in ("before", "after")} - held - ends

    def _pair(self, a: int, b: int) -> Link:
        """Section ``b`` registered to section ``a``."""
        return self._register(self.partial.get(a, self.images[a]), self.partial.get(b, self.images[b]), a, b)

    def _register(self, fixed: Image, moving: Image, a: int, b: int) -> Link:
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
        """Correlation of section ``b`` under ``matrix`` and ``one``, which is ``a`` or a plane of the guide, over what both
        show, times the share of that."""
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
        return share * _ncc(one.density.data[0].numpy().astype(np.float64), warped, where)

    def _inside(self, a: int, b: int, matrix: Floats) -> float:
        """Correlation of what lies inside the tissue of both, outlines, holes, noise and uneven light aside."""
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

        return _ncc(fine(one.density.data[0].numpy()), fine(warped), within)

    def _settled(self, a: int, b: int, matrix: Floats, ncc: float) -> tuple[Floats, float]:
        """A pair's map and correlation, settled; as they were where that makes the two less alike."""
        fixed, moving = (dataclasses.replace(self.sections[k].fine, partial=k in self.partial) for k in (a, b))
        found = settle(fixed, moving, matrix, self.nodes[b].probes, self.nodes[b].size, self.kind)
        likeness = self._likeness(self.sections[a], a, b, found)
        return (found, likeness) if likeness > ncc - APART else (matrix, ncc)

    def link_guide(self, guide: Image, spacing: float) -> None:
        """Register every section to the guide's plane nearest to it; its index as a node is -1."""
        for done, k in enumerate(self.good):
            self.progress("guide", done, len(self.good))
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
        """The section that stays where it is: the wanted one, or a good one near the middle."""
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
        """For every k → k+1 → k+2 against k → k+2, the contradiction in px."""
        at = {(link.fixed, link.moving): link for link in self.links if link.weight > 0}
        found = []
        for a, b, c in zip(self.good, self.good[1:], self.good[2:], strict=False):
            if all(pair in at for pair in ((a, b), (b, c), (a, c))):
                found.append(posegraph.loop(at[a, b], at[b, c], at[a, c], self.nodes[c]) / self.pixel)
        return found

    def weigh(self, poses: Mapping[int, Floats], chained: bool) -> None:
        """Note how far every pair departs from the poses, and give up those that contradict them."""
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
        """Departure from the poses beyond which a pair is given up."""
        usual = float(np.median([link.residual for link in self.links if link.weight > 0] or [0.0]))
        return CONTRADICTS * max(LEAST_SCALE * self.size, CONTRADICTS * usual)

    # the canvas and what lies on it

    def as_they_lie(self) -> dict[int, Transform]:
        """Sections laid on each other by the middle of their canvas."""
        middle = np.array(self.images[self.good[len(self.good) // 2]].grid.center)
        return {k: _shift(middle - np.array(self.images[k].grid.center), self.units) for k in self.good}

    def canvas(self, poses: Mapping[int, Any]) -> Grid:
        """The finest of the sections' spacings over all that any of them covers, on the first's lattice."""
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
        """Density and tissue of every placed section on a small version of the canvas."""
        small = canvas.resampled(tuple(s * max(1.0, max(canvas.shape) / LOOKED_AT) for s in canvas.spacing))
        density, tissue = {}, {}
        for k, transform in maps.items():
            section = self.sections[k]
            density[k] = resample(section.density, transform, small, 0.0).data[0].numpy().astype(np.float64)
            mask = Image(torch.from_numpy(section.mask.astype(np.float32))[None], section.density.grid)
            tissue[k] = resample(mask, transform, small, 0.0).data[0].numpy() > 0.5
        return Pictures(density, tissue, small)

    def bend(
        self, maps: dict[int, Transform], canvas: Grid, poor: set[int]
    ) -> tuple[dict[int, Transform], dict[int, dict[str, Any]], list[dict[str, Any]]]:
        """Every section but the first and the last bent onto the average of its neighbours, a few rounds.

        The average of both sides lies where a steady change along the stack puts the section, so such a change stays; of
        the outermost only one neighbour is known, so these keep their pose. A bend that makes a section less like its
        neighbours is dropped.
        """
        affine, figures, steps = dict(maps), {}, []
        order = [k for k in self.good if k in maps]
        config = self.config.model_copy(update={"transform": "lddmm"})
        flat = {k: _placed(self.images[k], affine[k], canvas, self.sections[k].background) for k in order}
        current = dict(maps)
        for turn in range(BENDS):
            shown = flat if turn == 0 else {
                k: _placed(self.images[k], current[k], canvas, self.sections[k].background) for k in order
            }  # fmt: skip
            pictures = self.pictures(current, canvas)
            proposed, kept = dict(current), 0
            for done, (a, k, b) in enumerate(zip(order, order[1:], order[2:], strict=False)):
                self.progress(f"bending, round {turn + 1}", done, max(len(order) - 2, 1))
                near = [n for n in (a, b) if n not in poor]
                if len(near) < 2:
                    continue
                before, after = (self.planes[k] - self.planes[a]), (self.planes[b] - self.planes[k])
                share = after / (before + after)
                mean = share * shown[a].data.to(torch.float32) + (1 - share) * shown[b].data.to(torch.float32)
                target = shown[a].replace(data=mean, weight=None, name="neighbours")
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        result = register(target, flat[k].replace(weight=None), init="identity", config=config)
                except ValueError:
                    continue
                if result.metrics["folding_fraction"] > 0 or result.verdict == "fail":
                    continue
                bent = Chain((affine[k], result.transform))
                there = self.pictures({k: bent}, canvas)
                gain = np.mean(
                    [
                        _ncc(there.density[k], pictures.density[n], there.tissue[k] | pictures.tissue[n])
                        - pictures.ncc(k, n)
                        for n in near
                    ]
                )
                if gain > 0:
                    proposed[k], kept = bent, kept + 1
                    names = (
                        "roundtrip_px",
                        "jacobian_min",
                        "jacobian_max",
                        "folding_fraction",
                        "bending_px",
                        "n_evaluations",
                    )
                    figures[k] = {name: result.metrics[name] for name in names}
            current = proposed
            after_round = self.pictures(current, canvas)
            steps.append({
                "round": turn + 1,
                "bent": kept,
                "ncc": float(np.mean([after_round.ncc(a, b) for a, b in itertools.pairwise(order)])),
            })  # fmt: skip
        return current, figures, steps

    def result(
        self, k: int, transform: Transform, pose: Floats, canvas: Grid, section: dict[str, Any], figures: dict[str, Any]
    ) -> Result:
        """Section ``k`` as a `Result` like any other."""
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
            transform, canvas, self.images[k].grid, metrics, config, Affine(torch.from_numpy(pose), *self.units)
        )


class Judge:
    """What is said of the sections and of the stack."""

    def __init__(self, work: Work, poses: Mapping[int, Floats], before: Pictures, after: Pictures) -> None:
        self.work, self.poses, self.before, self.after = work, poses, before, after
        self.order = [k for k in work.good if k in poses]
        self.area = {k: float(after.tissue[k].sum()) for k in self.order}
        self.poor, self.said = self._poor()

    def _poor(self) -> tuple[set[int], dict[int, str]]:
        """Sections that resemble their neighbours much less than these resemble each other, or show far less tissue."""
        poor: set[int] = set()
        said: dict[int, str] = {}
        for i, k in enumerate(self.order):
            near = [self.order[j] for j in (i - 1, i + 1) if 0 <= j < len(self.order)]
            around = [self.order[j] for j in range(max(0, i - 3), min(len(self.order), i + 4)) if j != i]
            usual = float(np.median([self.area[n] for n in around])) if around else self.area[k]
            if usual and self.area[k] < HALF * usual:
                poor.add(k)
                said[k] = f"shows {self.area[k] / usual:.0%} of the tissue of its neighbours: incomplete or torn"
            elif len(near) == 2:
                own = float(np.mean([self.after.ncc(k, n) for n in near]))
                across = self.after.ncc(near[0], near[1])
                if own < across - 2 * APART:
                    poor.add(k)
                    said[k] = (
                        f"resembles its neighbours less (correlation {own:.2f}) than these resemble each other ({across:.2f}): "
                        "damaged, or not from here"
                    )
        return poor, said

    def mirrored(self, canvas: Grid) -> list[int]:
        """Sections that fit both neighbours better when turned over."""
        work, found = self.work, []
        reference = [k for k in self.order if np.linalg.det(self.poses[k][:2, :2]) > 0]
        flipped = {k for k in self.order if np.linalg.det(self.poses[k][:2, :2]) < 0}
        if len(flipped) > len(reference):
            flipped = set(reference)
        config = work.config.model_copy(update={"transform": "rigid"})
        grid = self.after.grid
        usual = float(np.median([self.after.ncc(a, b) for a, b in itertools.pairwise(self.order)] or [1.0]))
        for i, k in enumerate(self.order):
            work.progress("turned over", i, len(self.order))
            near = [
                self.order[j] for j in (i - 1, i + 1) if 0 <= j < len(self.order) and self.order[j] not in self.poor
            ]
            if not near or k in flipped:
                continue
            density = torch.from_numpy(self.after.density[k].astype(np.float32))
            x = float(np.argwhere(self.after.tissue[k])[:, 1].mean()) if self.area[k] else 0.0
            shift = round(2 * x) - (density.shape[1] - 1)
            over = Image(torch.roll(density.flip(1), shift, dims=1)[None], grid)
            mean = np.mean([self.after.density[n] for n in near], axis=0)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    trial = register(
                        Image(torch.from_numpy(mean.astype(np.float32))[None], grid),
                        over,
                        init="identity",
                        config=config,
                    )
            except ValueError:
                continue
            there = trial.to_fixed(over).data[0].numpy().astype(np.float64)
            where = [self.after.tissue[k] | self.after.tissue[n] for n in near]
            gains = [
                _ncc(there, self.after.density[n], w) - self.after.ncc(k, n) for n, w in zip(near, where, strict=True)
            ]
            turned = np.mean([gain + self.after.ncc(k, n) for gain, n in zip(gains, near, strict=True)])
            if min(gains) > APART and turned > usual - 2 * APART:
                found.append(k)
        for k in flipped:
            self.said.setdefault(k, "lay turned over beside the others; its map turns it back")
        for k in found:
            self.said.setdefault(k, "fits its neighbours better when turned over: look at it")
        return sorted({*found, *flipped})

    def out_of_order(self) -> dict[str, Any]:
        """Whether another order of the sections would make neighbours more alike, by exchanges and single moves."""
        order, after = [k for k in self.order if k not in self.poor], self.after
        known: dict[tuple[int, int], float] = {}

        def unlike(a: int, b: int) -> float:
            pair = (min(a, b), max(a, b))
            if pair not in known:
                known[pair] = 1 - after.ncc(*pair)
            return known[pair]

        def length(path: list[int]) -> float:
            return sum(unlike(a, b) for a, b in itertools.pairwise(path))

        if len(order) < 4:
            return {"suggested": None, "moved": []}
        window = 8
        best, total = order, length(order)
        given = total
        while True:
            trials = []
            n = len(best)
            for i in range(n):
                for j in range(max(0, i - window), min(n, i + window + 1)):
                    if i != j:
                        moved = best[:i] + best[i + 1 :]
                        moved.insert(j, best[i])
                        trials.append(moved)
                    if j > i + 1:
                        trials.append(best[:i] + best[i : j + 1][::-1] + best[j + 1 :])
            scored = [(self._change(best, trial, unlike), trial) for trial in trials]
            change, trial = min(scored, key=lambda pair: pair[0])
            if change > -APART:  # of correlations summed: less is chance
                break
            best, total = trial, total + change
        if best == order:
            return {"suggested": None, "moved": []}
        moved = [k for k, other in zip(order, best, strict=True) if k != other]
        return {
            "suggested": [self.work.names[k] for k in best],
            "moved": moved,
            "ncc_gain": (given - total) / (len(order) - 1),
        }

    @staticmethod
    def _change(old: list[int], new: list[int], unlike: Callable[[int, int], float]) -> float:
        gone = {frozenset(pair) for pair in itertools.pairwise(old)}
        come = {frozenset(pair) for pair in itertools.pairwise(new)}
        return sum(unlike(*pair) for pair in come - gone) - sum(unlike(*pair) for pair in gone - come)

    def metrics(
        self, final: Pictures, mirrored: list[int], start: Mapping[int, Floats], chained: bool
    ) -> dict[str, Any]:
        """What ``metrics.json`` says."""
        work = self.work
        pairs: list[dict[str, Any]] = [
            {"sections": [a, b], "before": self.before.pair(a, b), "after": final.pair(a, b)}
            for a, b in itertools.pairwise(self.order)
        ]
        stiff = [self.after.pair(a, b) for a, b in itertools.pairwise(self.order)]
        order = self.out_of_order()
        sections = [self._section(k, order["moved"], final) for k in range(len(work.images))]
        unplaced = [s["name"] for s in sections if not s["placed"]]
        doubtful = [s["name"] for s in sections if s["placed"] and s["verdict"] != "pass"]
        reasons = []
        verdict = "pass"
        if unplaced:
            verdict = "fail" if len(unplaced) > len(sections) / 2 else "warn"
            reasons.append(f"{len(unplaced)} of {len(sections)} sections could not be placed: {_some(unplaced)}")
        if doubtful:
            verdict = "warn" if verdict == "pass" else verdict
            reasons.append(f"{len(doubtful)} of {len(sections)} sections want a look: {_some(doubtful)}")
        if order["suggested"]:
            verdict = "warn" if verdict == "pass" else verdict
            names = [work.names[k] for k in order["moved"]]
            reasons.append(f"neighbours would be more alike in another order of {len(names)} sections: {_some(names)}")
        gaps = [p for a, b in itertools.pairwise(work.planes) for p in range(a + 1, b)]
        if gaps:
            reasons.append(
                f"{len(gaps)} positions have no section: {_some([str(p) for p in gaps])}; their planes stay empty"
            )
        used = [link for link in work.links if link.weight > 0]
        given_up = [link for link in work.links if link.weight == 0]
        loops = work.loop_residuals()
        drift: dict[str, Any] = {
            "loops_px": _spread(loops),
            "pairs_px": _spread([link.residual / work.pixel for link in used]),
        }
        drift["n_pairs"], drift["given_up"] = len(work.links), len(given_up)
        if not chained:
            drift["chain_departs_px"] = self._departure()
        return {
            "verdict": verdict,
            "reasons": reasons,
            "n_sections": len(sections),
            "n_placed": len(self.order),
            "n_evaluations": work.evaluations,
            "coherence": {
                "before": {name: _mean(pair["before"][name] for pair in pairs) for name in ("ncc", "nmi", "dice")},
                "unbent": {name: _mean(pair[name] for pair in stiff) for name in ("ncc", "nmi", "dice")},
                "after": {name: _mean(pair["after"][name] for pair in pairs) for name in ("ncc", "nmi", "dice")},
                "pairs": pairs,
            },
            "drift": drift,
            "order": order,
            "mirrored": [work.names[k] for k in mirrored],
            "empty_positions": gaps,
            "sections": sections,
        }

    def _departure(self) -> float | None:
        """How far a plain chain of neighbours ends from the reconciled stack, in px, at its worst section."""
        at = {(link.fixed, link.moving): link.matrix for link in self.work.links if link.fixed != GUIDE}
        pose, worst = np.eye(3), 0.0
        first = self.order[0]
        back = np.linalg.inv(self.poses[first])
        for a, b in itertools.pairwise(self.order):
            if (a, b) not in at:
                return None
            pose = pose @ at[a, b]
            probes = self.work.nodes[b].probes
            worst = max(worst, rms(carry(pose, probes) - carry(back @ self.poses[b], probes)) / self.work.pixel)
        return worst

    def _section(self, k: int, moved: Sequence[int], final: Pictures) -> dict[str, Any]:
        work = self.work
        out: dict[str, Any] = {"index": k, "name": work.names[k], "position": work.planes[k], "placed": k in self.poses}
        if k not in self.poses:
            why = work.sections[k].empty or "none of its neighbours matched it"
            return out | {"verdict": "fail", "reasons": [why]}
        mine = [link for link in work.links if k in (link.fixed, link.moving) and link.fixed != GUIDE]
        used = [link for link in mine if link.weight > 0]
        others = sorted({link.fixed if link.moving == k else link.moving for link in used})
        i = self.order.index(k)
        near = [self.order[j] for j in (i - 1, i + 1) if 0 <= j < len(self.order)]
        reasons = [self.said[k]] if k in self.said else []
        if k in moved:
            reasons.append("neighbours would be more alike in another order")
        lost = [n for n in near if n not in others]
        if lost:
            instead = [n for n in others if n not in near]
            more = (
                f"placed by {_some([work.names[n] for n in instead])} instead"
                if instead
                else "placed by the other side alone"
            )
            reasons.append(f"does not match {_some([work.names[n] for n in lost])}; {more}")
        linear = self.poses[k][:2, :2]
        turned = linear @ np.diag([1.0, np.sign(np.linalg.det(linear))])
        return out | {
            "verdict": "warn" if reasons else "pass",
            "reasons": reasons,
            "neighbours": others,
            "given_up": sorted({link.fixed if link.moving == k else link.moving for link in mine if link.weight == 0}),
            "residual_px": _mean(link.residual / work.pixel for link in used),
            "tissue_px": self.area[k],
            "ncc": {
                "before": _mean(self.before.ncc(k, n) for n in near),
                "after": _mean(final.ncc(k, n) for n in near),
            },
            "pose": {
                "turn_degrees": math.degrees(math.atan2(turned[1, 0] - turned[0, 1], turned[0, 0] + turned[1, 1])),
                "scale": math.sqrt(abs(float(np.linalg.det(linear)))),
                "mirrored": bool(np.linalg.det(linear) < 0),
                "matrix": self.poses[k].tolist(),
            },
        }


# small parts


def _background(image: Image, weight: Tensor | None, flattest: Tensor) -> Tensor:
    """Colour ``[C]`` of the border where that is one colour, noise aside, else that of the flattest part."""
    data = image.data.to(torch.float32)
    known = torch.ones(image.grid.shape) if weight is None else weight
    rim, seen = (
        torch.cat([x[..., 0, :], x[..., -1, :], x[..., :, 0], x[..., :, -1]], dim=-1) for x in (data, known)
    )  # [C, n], [n]
    rim = rim[:, seen > 0]
    if rim.shape[1] < 16:
        return flattest
    middle = rim.median(dim=1).values
    spread = (rim - middle[:, None]).abs().mean(dim=1)
    even = bool((spread <= EVEN * data.flatten(1).std(dim=1).clamp(min=1e-12)).all())
    return middle if even else flattest


def _over(matrix: Floats) -> bool:
    """Whether a map turns over."""
    return bool(np.linalg.det(matrix[:2, :2]) < 0)


def _hull(section: Section) -> Floats:
    """Middle ``[2]`` of the tissue's convex hull, where holes and notches do not move it."""
    hull = convex_hull_image(ndimage.binary_opening(section.mask, iterations=2))  # type: ignore[no-untyped-call]
    if not hull.any():
        return np.asarray(section.node.probes.mean(axis=0))
    return np.asarray(section.density.grid.coords().numpy()[hull].mean(axis=0))


def _weight(ncc: float, apart: int, verdict: str) -> float:
    """What a pair counts: its correlation over its distance, squared: the anatomy's change grows with that."""
    trust = {"pass": 1.0, "warn": 0.5}.get(verdict, 0.1)
    return (max(ncc, 0.05) / max(apart, 1)) ** 2 * trust


def _smaller(density: Image, most: int) -> Image:
    """``density`` averaged over whole blocks of pixels, so that its longer side has at most ``most``."""
    grid = density.grid
    step = max(1, math.ceil(max(grid.shape) / most))
    if step == 1:
        return density
    small = torch.nn.functional.avg_pool2d(density.data[None], step, ceil_mode=True, count_include_pad=False)[0]
    origin = tuple(o + s * (step - 1) / 2 for o, s in zip(grid.origin, grid.spacing, strict=True))
    coarse = Grid(tuple(small.shape[1:]), tuple(s * step for s in grid.spacing), origin, grid.unit)
    return Image(small, coarse, density.channels, name=density.name)


def _edges(grid: Grid) -> Floats:
    """Corners ``[4, 2]`` of the area that the pixels cover."""
    low = np.array(grid.origin) - np.array(grid.spacing) / 2
    high = low + np.array(grid.extent)
    return np.array([[a, b] for a in (low[0], high[0]) for b in (low[1], high[1])])


def _shift(by: Floats, units: tuple[str, str]) -> Affine:
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[:2, 2] = torch.from_numpy(np.asarray(by, dtype=np.float64))
    return Affine(matrix, *units)


def _plane(grid: Grid) -> Grid:
    return Grid(grid.shape[1:], grid.spacing[1:], grid.origin[1:], grid.unit)


def _placed(image: Image, transform: Transform, canvas: Grid, background: Tensor | None) -> Image:
    """A section on the canvas in its own dtype; its background where it shows nothing (labels: 0)."""
    if image.labels:
        return resample(image, transform, canvas)
    seen = torch.ones(image.grid.shape)
    moved = resample(image.replace(weight=seen), transform, canvas)
    assert moved.weight is not None
    if background is None:
        background = image.data.to(torch.float32).flatten(1).median(dim=1).values
    colour = background.round() if not image.data.dtype.is_floating_point else background
    filled = torch.where(moved.weight > 0.999, moved.data, colour.to(image.data.dtype)[:, None, None])
    return moved.replace(data=filled, weight=None)


def _volume(stack: Stack, images: Sequence[Image]) -> Image:
    if len(images) != len(stack.results):
        raise ValueError(
            f"wanted {len(stack.results)} sections, got {len(images)}; give one for each, in the stack's order"
        )
    first = next((image for image, result in zip(images, stack.results, strict=True) if result is not None), images[0])
    for k, image in enumerate(images):
        if stack.results[k] is not None and (image.channels, image.data.dtype, image.labels) != (
            first.channels,
            first.data.dtype,
            first.labels,
        ):
            raise ValueError(
                f"wanted sections of the same channels and type, got {', '.join(first.channels)} of {first.data.dtype} and "
                f"{', '.join(image.channels)} of {image.data.dtype} (place {k}); choose a channel they share"
            )
    needed = len(first.channels) * math.prod(stack.grid.shape) * first.data.element_size()
    if needed > MOST_BYTES:
        raise ValueError(
            f"wanted a volume of at most {MOST_BYTES / 2**30:.3g} GiB, got {needed / 2**30:.3g} GiB; "
            "open the sections at a coarser level, or carry each at full size with its own map"
        )
    background = Section.of(first).background if not first.labels else None
    data = torch.zeros((len(first.channels), *stack.grid.shape), dtype=first.data.dtype)
    if background is not None:
        colour = background.round() if not first.data.dtype.is_floating_point else background
        data += colour.to(first.data.dtype)[:, None, None, None]
    for image, result, plane in zip(images, stack.results, stack.planes, strict=True):
        if result is not None:
            own = None if image.labels else Section.of(image).background
            data[:, plane] = _placed(image, result.transform, stack.plane_grid, own).data
    return Image(data, stack.grid, first.channels, labels=first.labels, name="stack")


def _save(stack: Stack, path: Path, images: Sequence[Image] | None, overwrite: bool) -> None:
    from .report import stacks

    check_output(path, overwrite)
    with outputs.staged(path, overwrite) as folder:
        folder.mkdir()
        (folder / outputs.METRICS).write_text(outputs.to_json(stack.metrics, indent=2) + "\n", encoding="utf-8")
        rows = []
        for k, result in enumerate(stack.results):
            name = section_folder(stack, k)
            rows.append({"section": stack.names[k], "position": stack.metrics["sections"][k]["position"],
                         "verdict": stack.metrics["sections"][k]["verdict"], "map": name if result else ""})  # fmt: skip
            if result is not None:
                place = folder / SECTIONS / name
                place.mkdir(parents=True)
                result.save(place / outputs.TRANSFORM)
                (place / outputs.METRICS).write_text(outputs.to_json(result.metrics, indent=2) + "\n", encoding="utf-8")
        with (folder / "sections.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        if images is not None:
            volume = stack.volume(images)
            plugins.adapter("image").save(volume, folder / VOLUME)
            stacks.write(stack, images, volume, folder / outputs.REPORT)


def section_folder(stack: Stack, k: int) -> str:
    """The folder of section ``k`` below ``sections``: its place, and what of its name a file system takes."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", stack.names[k]).strip("._")[:60]
    return f"{k:04d}_{plain}" if plain else f"{k:04d}"


def check_output(path: Path, overwrite: bool) -> None:
    """Refuse an output folder that could not be written at the end; only one of a stack is replaced."""
    if path.is_symlink() or path.exists():
        if not overwrite:
            raise FileExistsError(f"output {path} exists; choose another name, or pass --overwrite to replace it")
        own = path.is_dir() and not path.is_symlink()
        if not (
            own and (((path / SECTIONS).is_dir() and (path / outputs.METRICS).is_file()) or not any(path.iterdir()))
        ):
            raise FileExistsError(
                f"output {path} exists and is not a stack written by regframe; it is left alone: choose another name"
            )
    outputs.check_writable(path.parent)


def _some(names: Sequence[str], most: int = 6) -> str:
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return float(np.mean(found)) if found else 0.0


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return None
    return {
        "n": len(finite),
        "median": float(np.median(finite)),
        "p90": float(np.quantile(finite, 0.9)),
        "max": max(finite),
    }
