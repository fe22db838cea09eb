"""`match_nuclei`: which nucleus of an image is which nucleus of the reference, one to one, with the probability that it is.

Nuclei are the bright blobs of the channel that the group is aligned by: round parts, above some level, of the picture sharpened
by a Laplacian of Gaussian; or the objects of label images. A pair of nearest nuclei is a match or chance: distances of matches
are Rayleigh, those of chance the distances of the nearest of points strewn as densely; both and their share are fitted to the
distances at hand (EM), and what is found on nuclei shifted against each other says whether chance is as assumed.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage.filters import threshold_otsu
from skimage.segmentation import watershed

from .. import plugins
from ..data import Grid, Image
from ..io import outputs
from ..io.spreadsheet import text_cell
from ..result import Result
from ..stack.posegraph import Floats
from .group import Group
from .together import options_of, sources_of

SMOOTHED = 1.0
"""Standard deviation, in pixels, of the smoothing before foreground and background are parted."""
RADII = (2.0, 40.0)
"""Least and largest radius of a nucleus in pixels: smaller ones are not resolved, larger ones are no nuclei of a section."""
SHARP = 0.37
"""Standard deviation of the Laplacian of Gaussian that sharpens the picture, over the radius of a nucleus: far below the 0.71 of
it at which a disc alone answers most (Lindeberg 1998), so that nuclei that touch answer apart; far lower still, even discs answer
at their rims. In the left half of a real picture (``19_nuclei``, 73 nuclei, two draws of noise) 0.3 finds 63 once and 4
twice, 0.37 finds 65 once and one twice, 0.45 finds 61 once and one twice; single maxima at `BLOB` find 54."""
NOISE = 1.2
"""Standard deviation in pixels that is added to it, squared: what is finer is noise. On made nuclei of 3, 6 and 11 pixels,
touching and of unlike brightness, 97, 100 and 99 % are found (92, 94 and 91 % by single maxima at `BLOB`)."""
DEEP = 0.05
"""How far a part must rise above the level at which it parts from its neighbours, over the usual answer: less is noise; 0.1 loses
nuclei of 3 pixels, 0.2 others too."""
BLOB = 0.55
"""Standard deviation of the blobs of which a nucleus holds one, over its radius: of answers within a radius only the strongest is
kept. In that picture 0.55 finds 54 and none twice."""
FAINT = 0.15
"""Answer of such a blob, over that of the median of the brighter half, below which it is none. On made nuclei, touching and of
unlike brightness, 0.1 to 0.3 give the same."""
LEVELS = 24
"""Number of levels, each higher than the one before by the same factor, at which the sharpened picture is cut; 16 and 40 find as
many nuclei of that picture to one."""
LOWEST = 0.2
"""The lowest level, over the answer that a tenth of the foreground exceeds; 0.1 finds more of the noise."""
ROUND = 0.9
"""Area of a part of the picture above a level, over that of the ellipse of the same second moments, from which it is one nucleus:
an ellipse has 1, one that the border halves 0.946, two that touch 0.894, of whatever shape."""
VISIBLE = 0.1
"""Share of a nucleus of a label image that the other image has to show, for it to be matched by that part."""
LEAST_AREA = 0.1
"""Area of such a part, over that of the usual nucleus, below which it is noise; 0.15 loses small nuclei."""
DIM = 0.8
"""Brightness (its root) over that at which foreground and background part, below which a blob is noise of the background."""


@dataclass(frozen=True)
class Nuclei:
    """The nuclei of an image.

    Args:
        coords: their middles ``[N, 2]``, in the image's unit.
        size: standard deviation of a nucleus, in that unit.
        ids: their labels ``[N]``; counted from 1 where they were found in the pixels.
        ceiling: share of the nuclei that are matched between two halves of the image's own pixels: what finding them in pixels
            leaves of a perfect match, 0 … 1; None of label images.
        labels: the label image that they are the objects of; None where they were found in the pixels.
    """

    coords: Floats
    size: float
    ids: NDArray[np.int64]
    ceiling: float | None = None
    labels: Image | None = None

    def shared(self, shown: Callable[[Floats], NDArray[np.bool_]]) -> Floats:
        """The middles ``[N, 2]`` of what both images show of each nucleus: where the border of the other image cuts one of a
        label image, that of the part on it, for there the other's part has its own.

        Args:
            shown: which positions ``[K, 2]``, in this image's unit, the other image shows ``[K]``.
        """
        if self.labels is None or not len(self.ids):
            return self.coords
        values, grid = self.labels.data[0].numpy(), self.labels.grid
        order = np.where(values != 0, np.searchsorted(self.ids, values) + 1, 0)
        boxes = ndimage.find_objects(order)
        ends = [[(r.start, r.stop - 1) for r in box] for box in boxes]
        corners = np.array([[(y, x) for y in rows for x in columns] for rows, columns in ends], dtype=np.float64)
        seen = shown(_physical(corners.reshape(-1, 2), grid)).reshape(-1, 4)
        out = self.coords.copy()
        for i in np.flatnonzero(seen.any(axis=1) & ~seen.all(axis=1)):
            at = np.argwhere(order[boxes[i]] == i + 1) + [r.start for r in boxes[i]]
            own = _physical(at.astype(np.float64), grid)
            inside = shown(own)
            if inside.sum() >= VISIBLE * len(own):
                out[i] = own[inside].mean(axis=0)
        return out


def found(image: Image) -> Nuclei:
    """The nuclei of one channel: its bright blobs about as large as most of its foreground."""
    values = image.data[0].to(torch.float32).nan_to_num().numpy()
    dark = float(np.quantile(values[:: max(1, values.shape[0] // 500)], 0.02))
    rooted = np.sqrt(np.clip(values - dark, 0, None))  # bright nuclei do not outvote dim ones
    smooth = ndimage.gaussian_filter(rooted, SMOOTHED)
    edge = float(threshold_otsu(smooth)) if smooth.max() > smooth.min() else math.inf  # type: ignore[no-untyped-call]
    radius = _radius(smooth > edge)
    if radius is None:
        return Nuclei(np.zeros((0, 2)), image.grid.pixel, np.zeros(0, np.int64))
    scale = math.hypot(SHARP * radius, NOISE)
    answer = -(scale**2) * ndimage.gaussian_laplace(rooted, scale)
    usual = float(np.quantile(answer[smooth > edge], 0.9))
    at = _blobs(answer, _tops(rooted, radius), usual, LEAST_AREA * math.pi * radius**2)
    if len(at):
        at = _grown(answer, at, LOWEST * usual)
        index = np.rint(at).astype(np.intp)
        at = at[smooth[index[:, 0], index[:, 1]] > DIM * edge]
    return Nuclei(_physical(at, image.grid), radius / 2 * image.grid.pixel, np.arange(1, len(at) + 1))


def ceiling(image: Image) -> float:
    """Share of the nuclei of one channel that are matched between two halves of its pixels, 0 … 1.

    The halves are the black and the white fields of a chessboard, each filled up by the mean of its four neighbours: the same
    nuclei, seen through noise that is not the same.
    """
    values = image.data[0].to(torch.float32).nan_to_num()
    beside = torch.nn.functional.pad(values[None, None], (1, 1, 1, 1), mode="reflect")[0, 0]
    beside = (beside[:-2, 1:-1] + beside[2:, 1:-1] + beside[1:-1, :-2] + beside[1:-1, 2:]) / 4
    rows, columns = (torch.arange(n) for n in values.shape)
    black = (rows[:, None] + columns) % 2 == 0
    halves = [found(image.replace(data=torch.where(own, values, beside)[None], weight=None)) for own in (black, ~black)]
    one, other = halves
    return match(one.coords, other.coords, np.ones(len(one.coords), dtype=bool), one.size).share


def _radius(foreground: NDArray[np.bool_]) -> float | None:
    """The usual radius of a nucleus in pixels: how deep the middles of the foreground lie in it, which touching neighbours change
    little; None where nothing stands out."""
    if not foreground.any():
        return None
    deep = ndimage.distance_transform_edt(foreground)
    deep = ndimage.gaussian_filter(deep, SMOOTHED)
    tops = deep[(deep == ndimage.maximum_filter(deep, size=5)) & (deep >= RADII[0])]
    if len(tops) < 4:
        return None
    order = np.sort(tops)
    area = np.cumsum(order**2)  # half of the foreground's area, not half of its specks
    return float(np.clip(order[np.searchsorted(area, area[-1] / 2)], *RADII))


def of_labels(labels: Image) -> Nuclei:
    """The objects of a label image: the middle of each."""
    values = labels.data[0].numpy()
    ids = np.unique(values)
    ids = ids[ids != 0]
    at = np.array(ndimage.center_of_mass(np.ones_like(values, dtype=np.uint8), values, ids)).reshape(-1, 2)
    area = np.bincount(np.searchsorted(ids, values[values != 0]), minlength=len(ids))
    size = math.sqrt(float(np.median(area)) / math.pi) / 2 if len(ids) else 1.0
    return Nuclei(_physical(at, labels.grid), size * labels.grid.pixel, ids.astype(np.int64), labels=labels)


def _physical(at: Floats, grid: Grid) -> Floats:
    return np.asarray(at * np.array(grid.spacing) + np.array(grid.origin), dtype=np.float64)


@dataclass(frozen=True)
class _Cut:
    """The connected parts of a picture above a level.

    Args:
        area: pixels of each ``[N]``.
        middle: their middles ``[N, 2]`` in pixels.
        roundness: area over that of the ellipse of the same second moments ``[N]``.
        height: the highest answer in each, above the level ``[N]``.
        tops: how many tops each holds ``[N]``.
        inside: the part of the cut below in which each lies ``[N]``; all 0 in the lowest.
    """

    area: Floats
    middle: Floats
    roundness: Floats
    height: Floats
    tops: NDArray[np.intp]
    inside: NDArray[np.intp]


def _tops(rooted: NDArray[Any], radius: float) -> NDArray[np.bool_]:
    """Where a picture ``[H, W]`` answers most, within a radius, to a blob a little smaller than a nucleus."""
    answer = -ndimage.gaussian_laplace(rooted, BLOB * radius)
    top = answer == ndimage.maximum_filter(answer, size=2 * max(1, round(radius)) + 1)
    high = answer[top & (answer > 0)]
    if not len(high):
        return np.zeros(answer.shape, dtype=bool)
    return np.asarray(top & (answer >= FAINT * np.median(high[high >= np.median(high)])))


def _blobs(answer: NDArray[Any], tops: NDArray[np.bool_], usual: float, least: float) -> Floats:
    """Middles ``[N, 2]`` in pixels of the nuclei in a sharpened picture ``[H, W]``.

    The parts of the picture above rising levels lie in each other like the nodes of a tree. The largest that are round and hold
    one top at most are the nuclei, each as whole as its neighbours allow. A part that is not round and falls into no others is
    taken too: nuclei that a border cuts, or that are not convex.

    Args:
        answer: the picture.
        tops: the middles of blobs of the usual size ``[H, W]``: a part with two of them is not one nucleus.
        usual: the answer of a nucleus, from which the lowest level is derived.
        least: pixels that a nucleus has at least.
    """
    top = float(answer.max())
    low = LOWEST * usual
    if not 0 < low < top:
        return np.zeros((0, 2))
    cuts = _cuts(answer, tops, np.geomspace(low, top, LEVELS, endpoint=False))
    taken = []
    within = np.zeros(0)
    for n in range(len(cuts) - 1, -1, -1):  # number of nuclei within each part, from the highest level down
        cut, held = cuts[n], np.zeros(len(cuts[n].area))
        if n + 1 < len(cuts):
            np.add.at(held, cuts[n + 1].inside, within)
        real = (cut.area >= least) & (cut.height >= DEEP * usual)
        own = real & ((cut.roundness >= ROUND) & (cut.tops <= 1) | (held == 0))
        within = np.where(own, 1, held)
        taken.append(own)
    out, hidden = [], np.zeros(1, dtype=bool)
    for cut, own in zip(cuts, reversed(taken), strict=True):
        within_another = hidden[cut.inside]
        out.append(cut.middle[own & ~within_another])
        hidden = own | within_another
    return np.concatenate(out)


def _grown(answer: NDArray[Any], seeds: Floats, level: float) -> Floats:
    """Middles ``[N, 2]`` of what belongs to each of some places in a picture, down to a level (watershed).

    What was found of a nucleus among others is its brightest part, which lies elsewhere in it in another round.
    """
    at = np.rint(seeds).astype(np.intp)
    markers = np.zeros(answer.shape, np.int32)
    markers[at[:, 0], at[:, 1]] = np.arange(1, len(at) + 1)
    basins = watershed(-answer, markers, mask=answer > level)  # type: ignore[no-untyped-call]
    flat = np.flatnonzero(basins)
    owner = basins.ravel()[flat] - 1
    area = np.bincount(owner, minlength=len(at))
    sums = [np.bincount(owner, axis, len(at)) for axis in np.divmod(flat, answer.shape[1])]
    middle = np.stack(sums, axis=1) / np.maximum(area, 1)[:, None]
    return np.where((area > 0)[:, None], middle, seeds)  # a middle that lies beside its nucleus stays


def _cuts(answer: NDArray[Any], tops: NDArray[np.bool_], levels: Floats) -> list[_Cut]:
    """The parts of a picture above each of rising levels."""
    out: list[_Cut] = []
    below: NDArray[Any] | None = None
    for level in levels:
        labels, n = ndimage.label(answer > level)
        at = np.flatnonzero(labels)
        part = labels.ravel()[at] - 1
        area = np.bincount(part, minlength=n).astype(np.float64)
        y, x = np.divmod(at, answer.shape[1])
        middle = np.stack([np.bincount(part, axis, n) / area for axis in (y, x)], axis=1)
        dy, dx = y - middle[part, 0], x - middle[part, 1]
        yy, xx, yx = (np.bincount(part, values, n) / area for values in (dy * dy, dx * dx, dy * dx))
        spread = (yy + 1 / 12) * (xx + 1 / 12) - yx**2  # a pixel has a moment of its own
        roundness = area / (4 * math.pi * np.sqrt(spread))
        inside = np.zeros(n, np.intp)
        if below is not None:
            inside[part] = below.ravel()[at] - 1
        held = np.bincount(part[tops.ravel()[at]], minlength=n)
        height = np.zeros(n)
        np.maximum.at(height, part, answer.ravel()[at] - level)
        out.append(_Cut(area, middle, roundness, height, held, inside))
        below = labels
    return out


# ---- which is which -----------------------------------------------------------------------------------------------------

LEAST = 8
"""Nuclei that both images must show at least for distances of matches and of chance to be told apart."""
NEIGHBOURS = 6
"""Nuclei by whose distance the density around a place is told."""
FARTHEST = 4.0
"""Largest distance of a match, in standard deviations of matches per axis; of 3000 right ones one lies farther."""
LISTED = 0.05
"""Least probability of a pair that is listed."""
NULL = (3.0, 5.0)
"""Least and largest length, in mean distances of neighbours, of the shifts under which chance is counted: farther than a match,
and near enough to have as many neighbours."""
SHIFTS = 8
"""Number of these shifts."""


@dataclass(frozen=True)
class Matches:
    """Nuclei of an image and of the reference that are one and the same, one to one.

    Args:
        fixed: places ``[K]`` of the nuclei in those of the reference.
        moving: places ``[K]`` in those of the image.
        probability: that a pair is one nucleus ``[K]``, given where all others lie.
        residual: distance ``[K]`` in the space of the reference, in its unit.
        sd: standard deviation of a match per axis, in that unit.
        share: of the reference's nuclei that lie on the image, how many have a partner with a probability of a half or more.
        chance: the same share where the nuclei are shifted against each other.
        n: number of the reference's nuclei that lie on the image.
    """

    fixed: NDArray[np.intp]
    moving: NDArray[np.intp]
    probability: Floats
    residual: Floats
    sd: float
    share: float
    chance: float
    n: int


def match(fixed: Floats, moved: Floats, on: NDArray[np.bool_], size: float) -> Matches:
    """The pairs among nuclei ``[N, 2]`` of the reference and ``[M, 2]`` of an image that was carried to it.

    Args:
        fixed: nuclei of the reference.
        moved: nuclei of the image, in the space of the reference.
        on: which of the reference's lie on the image ``[N]``.
        size: standard deviation of a nucleus, from which that of a match is first guessed.

    With fewer than `LEAST` nuclei on a side nothing is matched.
    """
    if on.sum() < LEAST or len(moved) < LEAST:
        nothing = np.zeros(0, np.intp)
        return Matches(nothing, nothing, np.zeros(0), np.zeros(0), math.nan, 0.0, 0.0, int(on.sum()))
    law = _fitted(fixed[on], moved, size)
    rows, columns, away, sure = _pairs(fixed, moved, on, law)
    spacing = math.sqrt(1 / float(np.median(law.density(fixed[on]))))
    rng, null = np.random.default_rng(0), []
    for turn in np.linspace(0, 2 * math.pi, SHIFTS, endpoint=False):
        by = rng.uniform(*NULL) * spacing * np.array([math.sin(turn), math.cos(turn)])
        null.append(float((_pairs(fixed, moved + by, on, law)[3] >= 0.5).sum()))
    n = int(on.sum())
    return Matches(
        rows, columns, sure, away, math.sqrt(law.variance), float((sure >= 0.5).sum()) / n, float(np.mean(null)) / n, n
    )


@dataclass(frozen=True)
class _Law:
    """How far matches, and chance, lie apart.

    Args:
        variance: of a match, per axis.
        share: how many nuclei of the reference have a partner.
        moved: nuclei of the image, which strew chance.
    """

    variance: float
    share: float
    moved: Floats

    def density(self, at: Floats) -> Floats:
        """Nuclei of the image per area around positions ``[N, 2]``."""
        return _density(self.moved, at)

    def probability(self, away: Floats, density: Floats) -> Floats:
        """That the nearest nucleus, at a distance, is the partner, and not chance, with a partner farther away or with none.

        Distances of the nearest of strewn points are those of a Poisson process of ``density`` per area.
        """
        near = np.exp(-(away**2) / (2 * self.variance))
        partner, chance = self.share * near / self.variance, 2 * math.pi * density
        return np.asarray(partner / (partner + chance * (self.share * near + 1 - self.share) + 1e-300))


def _density(points: Floats, at: Floats) -> Floats:
    k = min(NEIGHBOURS, len(points))
    reach = np.asarray(cKDTree(points).query(at, k=[k])[0])[:, 0]
    return np.asarray((k - 1) / (math.pi * np.maximum(reach, 1e-12) ** 2))


def _fitted(fixed: Floats, moved: Floats, size: float) -> _Law:
    """The law that explains the distances of nearest nuclei best (EM)."""
    away = np.asarray(cKDTree(moved).query(fixed)[0], dtype=np.float64)
    density = _density(moved, fixed)
    law = _Law((size / 2) ** 2, 0.5, moved)
    for _ in range(100):
        sure = law.probability(away, density)
        # of those with a partner, some have chance nearer than it
        hidden = (1 - sure) * _beyond(law, away)
        share = float(np.clip((sure + hidden).mean(), 1e-3, 1 - 1e-3))
        variance = float((sure * away**2).sum() / (2 * max(sure.sum(), 1e-9)))
        variance = min(max(variance, (1e-3 * size) ** 2), (2 * size) ** 2)
        done = abs(variance / law.variance - 1) < 1e-6 and abs(share - law.share) < 1e-6
        law = _Law(variance, share, moved)
        if done:
            break
    return law


def _beyond(law: _Law, away: Floats) -> Floats:
    """That there is a partner farther than the nearest nucleus, given that this is chance."""
    far = law.share * np.exp(-(away**2) / (2 * law.variance))
    return np.asarray(far / (far + 1 - law.share))


def _pairs(
    fixed: Floats, moved: Floats, on: NDArray[np.bool_], law: _Law
) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats, Floats]:
    """One-to-one pairs, nearest first: places on both sides, distances, probabilities."""
    reach = FARTHEST * math.sqrt(law.variance)
    found = cKDTree(fixed).sparse_distance_matrix(cKDTree(moved), reach, output_type="coo_matrix")
    order = np.argsort(found.data, kind="stable")
    free = [on.copy(), np.ones(len(moved), dtype=bool)]
    kept = []
    for e in order:
        i, j = int(found.row[e]), int(found.col[e])
        if free[0][i] and free[1][j]:
            free[0][i] = free[1][j] = False
            kept.append(e)
    picked = np.array(kept, dtype=np.intp)
    rows, columns, away = found.row[picked].astype(np.intp), found.col[picked].astype(np.intp), found.data[picked]
    sides = [_density(moved, fixed[rows]), _density(fixed, moved[columns])] if len(picked) else [np.zeros(0)] * 2
    sure = law.probability(away, np.maximum(*sides))
    good = sure >= LISTED
    return rows[good], columns[good], np.asarray(away[good]), np.asarray(sure[good])


# ---- a group ------------------------------------------------------------------------------------------------------------


def match_nuclei(
    group: Group, *, images: Sequence[Any] | None = None, labels: Mapping[str, Any] | None = None
) -> dict[str, tuple[Matches, Nuclei]]:
    """Which nuclei of each image are which of the reference.

    Args:
        group: the group.
        images: the images in the group's order, where they lie elsewhere now or were in memory; its own sources where None.
        labels: label images (paths or `Image` objects) by names of images: their objects are taken for the nuclei; of the others
            nuclei are found in the channel that was aligned by, at the resolution that was registered.

    Returns:
        For each image with a place, by name: its matches, and its nuclei; of the reference its nuclei, each its own match.

    Raises ValueError for labels of an image that there is not, or in another unit, and for images that cannot be opened.
    """
    labels = dict(labels or {})
    strangers = sorted(set(labels) - set(group.names))
    if strangers:
        raise ValueError(f"wanted labels of {', '.join(group.names)}, got some of {strangers[0]!r}; name one of these")
    sources = sources_of(group, images)
    if group[group.reference].fixed_grid.ndim != 2:
        raise ValueError(
            "wanted images of two axes to match nuclei in, got volumes; match tables of their cells instead"
        )
    every = {
        k: _nuclei(group, k, sources[k], labels.get(group.names[k]))
        for k, result in enumerate(group.results)
        if result is not None
    }
    base, middle = every[group.reference], group[group.reference]  # where it is: the mean may lie elsewhere
    out = {}
    for k, own in every.items():
        shown = _shown(middle, group[k])
        fixed, moving = base.shared(shown), own.shared(_shown(group[k], middle))
        there, moved = (
            result.transform.points(torch.from_numpy(at)).numpy()
            for result, at in ((middle, fixed), (group[k], moving))
        )
        out[group.names[k]] = (match(there, moved, shown(fixed), base.size), own)
    return out


def _shown(one: Result, other: Result) -> Callable[[Floats], NDArray[np.bool_]]:
    """Which positions of an image lie on another one; both by their maps to the space of the group."""
    back = other.transform.inverse()

    def shown(at: Floats) -> NDArray[np.bool_]:
        there = back.points(one.transform.points(torch.from_numpy(at)))
        return np.asarray(other.moving_grid.contains(there).numpy(), dtype=bool)

    return shown


def _nuclei(group: Group, k: int, source: Any, labels: Any) -> Nuclei:
    if labels is not None:
        image = labels if isinstance(labels, Image) else plugins.open(labels, labels=True)
        if not isinstance(image, Image) or image.grid.unit != group[k].moving_grid.unit:
            raise ValueError(
                f"wanted labels in {group[k].moving_grid.unit}, as {group.names[k]} is, got other ones; state their pixel size"
            )
        return of_labels(image)
    channels, wanted = group.metrics["images"][k]["channels"], group.metrics["images"][k]["channel"]
    index = channels.index(wanted) if wanted in channels else 0
    if isinstance(source, Image):
        image = source.replace(data=source.data[index : index + 1], channels=(source.channels[index],))
    else:
        one = options_of(group, k, source) | ({"channels": index} if len(channels) > 1 else {})
        image = plugins.open(source, **one)
        assert isinstance(image, Image)
    return dataclasses.replace(found(image), ceiling=ceiling(image))


def figures(group: Group, found_: Mapping[str, tuple[Matches, Nuclei]]) -> dict[str, dict[str, Any]]:
    """The figures of the matches of each image but the reference: shares, standard deviation, median distance (in its px).

    ``ceiling`` is the lower one of the two images, None where the nuclei of either are those of a label image.
    """
    pixel = group[group.reference].fixed_grid.pixel
    base = found_[group.names[group.reference]][1]
    out = {}
    for name, (matches, own) in found_.items():
        if name == group.names[group.reference]:
            continue
        sure = matches.probability >= 0.5
        away = float(np.median(matches.residual[sure])) / pixel if sure.any() else None
        sd = matches.sd / pixel if math.isfinite(matches.sd) else None
        out[name] = {"n": matches.n, "n_own": len(own.ids), "share": matches.share, "chance": matches.chance,
                     "ceiling": None if base.ceiling is None or own.ceiling is None else min(base.ceiling, own.ceiling),
                     "residual_px": away, "sd_px": sd}  # fmt: skip
    return out


COLUMNS = ("image", "fixed_id", "moving_id", "fixed_y", "fixed_x", "moving_y", "moving_x", "residual", "probability")
"""Columns of the table of matches; positions and residuals are in the unit of the images."""


def write_matches(
    path: str | Path, group: Group, found_: Mapping[str, tuple[Matches, Nuclei]], overwrite: bool = False
) -> Path:
    """Write the matches of all images but the reference as one table, CSV or Parquet (extra ``tables``), by its suffix.

    A table that is there and holds just these matches is left as it is. Raises ValueError for another suffix, or Parquet without
    its library, FileExistsError where ``path`` is another file.
    """
    target = Path(path)
    if target.suffix.lower() not in (".csv", ".parquet"):
        raise ValueError(f"wanted a table ending in .csv or .parquet, got {target.name!r}; choose one of these")
    base = found_[group.names[group.reference]][1]
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for name, (matches, own) in found_.items():
        if name == group.names[group.reference]:
            continue
        values = (
            [name] * len(matches.fixed), base.ids[matches.fixed].tolist(), own.ids[matches.moving].tolist(),
            *base.coords[matches.fixed].T.tolist(), *own.coords[matches.moving].T.tolist(),
            matches.residual.tolist(), matches.probability.tolist(),
        )  # fmt: skip
        for column, value in zip(columns.values(), values, strict=True):
            column.extend(value)
    text = _as_csv(columns) if target.suffix.lower() == ".csv" else _as_parquet(columns)
    if target.is_file() and target.read_bytes() == text:
        return target
    outputs.check_file(target, overwrite)
    with outputs.staged(target, overwrite) as aside:
        aside.write_bytes(text)
    return target


def _as_csv(columns: Mapping[str, list[Any]]) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(columns)
    writer.writerows([text_cell(value) for value in row] for row in zip(*columns.values(), strict=True))
    return file.getvalue().encode("utf-8", errors="surrogateescape")


def _as_parquet(columns: Mapping[str, list[Any]]) -> bytes:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(
            "wanted pyarrow to write Parquet, got none; pip install 'regframe[tables]', or write .csv"
        ) from error
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(dict(columns)), file)
    return file.getvalue()
