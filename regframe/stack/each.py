"""What is computed of one or two sections alone: pairs registered, searched again and settled, a section bent.

Nothing here looks at the rest of the stack, so that each call is a task that any process may do, in any order. `Each` does it;
`write` puts the sections in a folder, from which `ask` does a task in another process. Tasks run on one thread each, wherever
that is, so that their answers are equal to the last bit.

Where a constant names no source, neither a paper nor a calibration is recorded for it; ``benchmarks/bench_stack.py`` measures
what they achieve together.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from ..config import Config
from ..data import Grid, Image
from ..fit.threads import on_threads
from ..maps.affine import Affine
from ..maps.base import Transform
from ..maps.resample import resample
from ..maps.sequence import Sequence as Chain
from ..registration import register
from ..result import Result
from ..solvers.raster import check_image
from ..strangers import PluginFault
from ..verdict import DIFFER
from ..versions import version
from .posegraph import GUIDE, Floats, Link
from .sections import Flags, Section, hull_middle, placed
from .settle import RIM, missing, settle

SEARCHED_AT = 40_000
"""Pixels of the finest level at which pairs are registered; the remaining error is removed by `settle` (at `SETTLED_AT`), which
is cheaper."""
ALIKE = 0.15
"""Correlation of two densities from which a pair is used although `register` calls it a failure."""
TURNS = 36
"""Number of turns from which a second search starts: one every 10 degrees."""
BEST = 4
"""Number of these turns, those under which the sections correlate most, that are settled."""
INSIDE = (1.5, 6.0)
"""Standard deviations, in pixels of the small pictures, of the finest and the coarsest structure by which the insides of two
sections are compared."""
TRUST = {"pass": 1.0, "warn": 0.5}
"""Weight of a pair by the verdict of its registration."""
DISTRUST = 0.1
"""Weight of a pair with any other verdict: small enough to matter only where no other pair decides."""
FIGURES = ("roundtrip_px", "jacobian_min", "jacobian_max", "folding_fraction", "bending_px", "n_evaluations")
"""Figures of a registration that are kept for the map of a bent section."""


def ncc_of(a: Floats, b: Floats, where: Flags) -> float:
    """Pearson's correlation of two pictures ``[h, w]`` over ``where``; 0 for fewer than 16 pixels, or where one is constant."""
    if where.sum() < 16:
        return 0.0
    x, y = a[where] - a[where].mean(), b[where] - b[where].mean()
    norm = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / norm if norm > 0 else 0.0


def weight_of(ncc: float, apart: int, verdict: str) -> float:
    """Weight of a pair: (correlation / distance of the sections in the stack)², times the trust in its verdict.

    The error of a correct pair comes from the change of the anatomy, which grows with the distance.
    """
    trust = TRUST.get(verdict, DISTRUST)
    return (max(ncc, 0.05) / max(apart, 1)) ** 2 * trust


@dataclass(frozen=True)
class Found:
    """A map ``[3, 3]`` of one section onto another, and how alike they are under it."""

    matrix: Floats
    ncc: float


@dataclass(frozen=True)
class Registered:
    """A pair that was registered, as `Link` has it, and the number of evaluations that this took."""

    fixed: int
    moving: int
    matrix: Floats
    ncc: float
    verdict: str
    weight: float
    n_evaluations: int = 0

    @property
    def link(self) -> Link:
        """The pair."""
        return Link(self.fixed, self.moving, self.matrix, self.ncc, self.verdict, self.weight)


@dataclass(frozen=True)
class Onto:
    """A section bent onto its neighbours: the map from its own place on the canvas, and the figures of its registration."""

    transform: Transform | None
    figures: dict[str, Any]


class Each:
    """Sections of a stack, and what is computed of one or two of them.

    Args:
        images: the sections, 2D, in stacking order.
        planes: plane of each section in the volume.
        config: settings of `register` for every pair.
        kind: ``rigid`` or ``affine``: the model of a pair.
        guide: a volume of the organ; None without one.
        partial: sections of which only the tissue counts, because they have lost some.
    """

    def __init__(
        self,
        images: Sequence[Image],
        planes: tuple[int, ...],
        config: Config,
        kind: str,
        guide: Image | None = None,
        partial: frozenset[int] = frozenset(),
    ) -> None:
        self.images, self.planes, self.config, self.kind = images, planes, config, kind
        self.guide, self.partial = guide, partial
        unit = images[0].grid.unit
        self.units = (unit, unit)
        self._sections: dict[int, Section] = {}
        self._tissues: dict[int, Image] = {}

    def section(self, k: int) -> Section:
        """Section ``k``, reduced to what is compared."""
        if k not in self._sections:
            with on_threads(1):
                self._sections[k] = Section.of(self.images[k])
        return self._sections[k]

    def _compared(self, k: int) -> Image:
        """Section ``k``; where it has lost tissue, with weight 1 on its tissue and two pixels around it, 0 elsewhere."""
        if k not in self.partial:
            return self.images[k]
        if k not in self._tissues:
            section, image = self.section(k), self.images[k]
            near = ndimage.binary_dilation(section.mask, iterations=2).astype(np.float32)
            mask = Image(torch.from_numpy(near)[None], section.density.grid)
            weight = resample(mask, Affine.identity(2, image.grid.unit), image.grid).data[0]
            self._tissues[k] = image.replace(weight=weight if image.weight is None else weight * image.weight)
        return self._tissues[k]

    # pairs

    def pair(self, a: int, b: int) -> Registered:
        """The pair of section ``b`` (moving) registered to section ``a``."""
        return self._register(self._compared(a), self._compared(b), a, b)

    def guided(self, k: int, plane: int) -> Registered:
        """Section ``k`` registered to a plane of the guide; weight 0 where that shows nothing."""
        assert self.guide is not None
        grid = self.guide.grid
        flat = Grid(grid.shape[1:], grid.spacing[1:], grid.origin[1:], grid.unit)
        name = f"{self.guide.name} plane {plane}"
        image = Image(self.guide.data[:, plane].contiguous(), flat, self.guide.channels, name=name)
        try:
            check_image(image, "guide")
        except ValueError as error:
            return Registered(GUIDE, k, np.eye(3), 0.0, f"blank: {error}", 0.0)
        return self._register(image, self._compared(k), GUIDE, k)

    def followed(self, a: int, b: int, start: Floats) -> Found:
        """The pair of section ``b`` (moving) and ``a`` settled from ``start`` ``[3, 3]``, where other pairs put it."""
        return self.settled(a, b, start, self.likeness(self.section(a), a, b, start))

    def searched(self, a: int, b: int) -> Found:
        """A second search for a pair: from `TURNS` turns, hull middle on hull middle, the `BEST` of which are settled."""
        hulls = [hull_middle(self.section(k)) for k in (a, b)]
        trials: list[tuple[float, int, Floats]] = []
        for angle in np.linspace(0, 2 * math.pi, TURNS, endpoint=False):
            c, s = math.cos(angle), math.sin(angle)
            start = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
            start[:2, 2] = hulls[0] - start[:2, :2] @ hulls[1]
            trials.append((self.likeness(self.section(a), a, b, start), len(trials), start))
        peaks = sorted(
            (trial for k, trial in enumerate(trials) if trial[0] >= max(trials[k - 1][0], trials[k + 1 - TURNS][0])),
            reverse=True,
        )
        found = [self.settled(a, b, start, ncc) for ncc, _, start in peaks[:BEST]]
        return max(found, key=lambda pair: self.inside(a, b, pair.matrix))

    def _register(self, fixed: Image, moving: Image, a: int, b: int) -> Registered:
        """The pair of ``b`` and ``a``, from the images ``moving`` (section ``b``) and ``fixed``.

        ``fixed`` shows section ``a``, or a plane of the guide.
        """
        pyramid = self.config.pyramid
        if a != GUIDE:
            pyramid = pyramid.model_copy(update={"max_pixels": min(self.config.most_pixels, SEARCHED_AT)})
        config = self.config.model_copy(update={"transform": self.kind, "pyramid": pyramid})
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a missing pixel size is reported once for the whole stack
                result = register(fixed, moving, config=config)
        except PluginFault:  # it would fail on every pair
            raise
        except ValueError as error:
            return Registered(a, b, np.eye(3), 0.0, f"fail: {error}", 0.0)
        assert isinstance(result.affine, Affine)
        matrix = result.affine.matrix.numpy()
        one = self.section(a) if a != GUIDE else Section.of(fixed)
        ncc = self.likeness(one, a, b, matrix)
        if a != GUIDE:
            settled = self.settled(a, b, matrix, ncc)
            matrix, ncc = settled.matrix, settled.ncc
        apart = self.planes[b] - self.planes[a] if a != GUIDE else 1
        use = result.verdict != "fail" or ncc >= ALIKE
        return Registered(
            a,
            b,
            matrix,
            ncc,
            result.verdict,
            weight_of(abs(ncc) if a == GUIDE else ncc, apart, result.verdict) if use else 0.0,
            int(result.metrics["n_evaluations"]),
        )

    def likeness(self, one: Section, a: int, b: int, matrix: Floats) -> float:
        """Likeness, -1 … 1, of section ``b`` under ``matrix`` and ``one`` (section ``a``, or a plane of the guide).

        It is the correlation of their densities over the tissue of either, without what one of them has lost, times the share
        of the tissue that remains.
        """
        other, grid = self.section(b), one.density.grid
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

    def inside(self, a: int, b: int, matrix: Floats) -> float:
        """Correlation of structure of the widths `INSIDE` within the tissue of both, away from outlines and holes."""
        one, other, grid = self.section(a), self.section(b), self.section(a).density.grid
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

    def settled(self, a: int, b: int, matrix: Floats, ncc: float) -> Found:
        """The map and the likeness of a pair after settling.

        The given ones are returned where settling makes the two sections less alike by more than chance.
        """
        fixed, moving = (dataclasses.replace(self.section(k).fine, partial=k in self.partial) for k in (a, b))
        found = settle(fixed, moving, matrix, self.section(b).node.probes, self.section(b).node.size, self.kind)
        likeness = self.likeness(self.section(a), a, b, found)
        return Found(found, likeness) if likeness > ncc - DIFFER else Found(matrix, ncc)

    # bends

    def bent(self, k: int, own: Transform, near: tuple[tuple[int, Transform], ...], canvas: Grid) -> Onto:
        """Section ``k`` under the map ``own``, bent onto the average of its neighbours; no map where that fails or folds.

        Args:
            k: the section.
            own: the map that puts it on the canvas, without a bend.
            near: the section before and the one after, each with its map.
            canvas: the canvas of the stack.
        """
        flat = placed(self.images[k], own, canvas, self.section(k).background)
        shown = [placed(self.images[n], there, canvas, self.section(n).background) for n, there in near]
        before, after = (abs(self.planes[k] - self.planes[n]) for n, _ in near)
        share = after / (before + after)
        mean = share * shown[0].data.to(torch.float32) + (1 - share) * shown[1].data.to(torch.float32)
        result = self._bent_onto(shown[0].replace(data=mean, weight=None, name="neighbours"), flat)
        if result is None:
            return Onto(None, {})
        return Onto(Chain((own, result.transform)), {name: result.metrics[name] for name in FIGURES})

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


# ------------------------------------------------------------------------------------------------- for other processes


@dataclass(frozen=True)
class Place:
    """Where the sections of a stack are for other processes.

    Args:
        folder: the folder that `write` filled.
        token: differs between any two stacks, so that a process that holds one of an earlier call opens this one.
    """

    folder: str
    token: str


def write(each: Each, folder: Path) -> None:
    """Write the sections, the guide and the settings, from which `ask` does tasks in other processes."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {
        "images": [_image_out(image, folder, f"{k:05d}") for k, image in enumerate(each.images)],
        "guide": None if each.guide is None else _image_out(each.guide, folder, "guide"),
        "planes": list(each.planes),
        "config": each.config.model_dump(mode="json", exclude_unset=True),
        "kind": each.kind,
        "partial": sorted(each.partial),
    }
    aside = folder / "tmp-stack.json"
    aside.write_text(json.dumps(told), encoding="utf-8")
    aside.rename(folder / TOLD)


def ask(place: Place, task: str, *given: Any) -> Any:
    """Do a task of `Each` by its name, on one thread; the sections are opened once per process.

    Raises ValueError where the sections are not there: this process sees other files than the one that wrote them.
    """
    global _opened
    with _lock:
        if _opened is None or _opened[0] != place.token:
            _opened = (place.token, _open(Path(place.folder)))
        each = _opened[1]
    return done(each, task, *given)


def done(each: Each, task: str, *given: Any) -> Any:
    """Do a task of ``each`` in this process, on one thread."""
    with on_threads(1):
        return TASKS[task](each, *given)


def fingerprint(each: Each) -> str:
    """Hash of everything on which the answers of tasks depend."""
    sha = hashlib.sha256(repr((version(), each.planes, each.kind, sorted(each.partial))).encode())
    sha.update(each.config.model_dump_json().encode())
    for image in [*each.images, *([] if each.guide is None else [each.guide])]:
        sha.update(repr((image.name, image.grid, image.channels, image.labels, image.counted)).encode())
        for values in (image.data, image.weight, image.things):
            sha.update(b"-" if values is None else np.ascontiguousarray(values.cpu().numpy()).data)
    return sha.hexdigest()


TASKS: dict[str, Callable[..., Any]] = {
    "pair": Each.pair,
    "guided": Each.guided,
    "followed": Each.followed,
    "searched": Each.searched,
    "bent": Each.bent,
}
"""The tasks of a stack, by name."""
TOLD = "stack.json"
"""File beside the sections that says what they are; written last."""
_opened: tuple[str, Each] | None = None
"""The last stack of which this process did a task, by its token."""
_lock = threading.Lock()


def _image_out(image: Image, folder: Path, name: str) -> dict[str, Any]:
    """Write the arrays of an image; returns the rest of it as JSON."""
    for what, values in (("data", image.data), ("weight", image.weight), ("things", image.things)):
        if values is not None:
            np.save(folder / f"{name}-{what}.npy", values.cpu().numpy(), allow_pickle=False)
    grid = image.grid
    return {
        "file": name, "shape": grid.shape, "spacing": grid.spacing, "origin": grid.origin, "unit": grid.unit, "name": image.name,
        "channels": image.channels, "labels": image.labels, "counted": image.counted,
    }  # fmt: skip


def _image_in(folder: Path, told: dict[str, Any]) -> Image:
    """The image that `_image_out` wrote; its pixels stay on the disk until they are read, and are shared by processes."""
    name = Path(str(told["file"])).name
    arrays: dict[str, Any] = {}
    for what in ("data", "weight", "things"):
        path = folder / f"{name}-{what}.npy"
        arrays[what] = torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False)) if path.is_file() else None
    grid = Grid(tuple(told["shape"]), tuple(told["spacing"]), tuple(told["origin"]), told["unit"])
    return Image(
        grid=grid,
        channels=tuple(told["channels"]),
        labels=told["labels"],
        name=told["name"],
        counted=told["counted"],
        **arrays,
    )


def _open(folder: Path) -> Each:
    try:
        told = json.loads((folder / TOLD).read_text(encoding="utf-8"))
        images = [_image_in(folder, each) for each in told["images"]]
        guide = None if told["guide"] is None else _image_in(folder, told["guide"])
        config = Config.model_validate(told["config"])
        return Each(images, tuple(told["planes"]), config, told["kind"], guide, frozenset(told["partial"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"wanted the sections of the stack in {folder} on every worker, got none that can be read ({error}); workers have to "
            "see the same files under the same paths"
        ) from error
