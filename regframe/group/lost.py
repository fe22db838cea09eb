"""Tissue that images have lost: where the others of their group show tissue and they do not.

What an image shows at a place is how far its pixels depart from its background (`regframe.stack.sections.Section`), carried into
the common space and scaled to the others; where the images are stained differently, whether there is tissue at all. What is
expected there is the second strongest of all images (of two images the stronger): tissue that one image alone shows is dirt
sooner than tissue that all others lost. Tissue is lost where an image shows less than half of what is expected. The matching
weights of the fits say less: they are low wherever nothing is to match, glass between nuclei too (``benchmarks/RESULTS.md``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu

from ..data import Grid, Image
from ..maps.resample import resample
from ..result import Result
from ..stack.sections import EDGE
from .channels import NUCLEAR

if TYPE_CHECKING:
    from .members import Member

Floats = NDArray[np.float64]
WIDE = 8.0
"""Standard deviation, in pixels of the map, of the smoothing that tells tissue from glass: gaps between cells are filled by it.
On made rounds (``benchmarks/rounds.py``, 1024 pixels) 6 and 8 find the tissue with Dice 0.98, 4 with 0.96, 2 with 0.80."""
NARROW = (1.0, 2.0, 4.0, 8.0)
"""Standard deviations of the smoothing, in pixels of the map, before tissue that is lost is told from tissue that is there; the
first that tells them apart is taken, see `APART`. On those rounds Dice with the known loss is 0.95 at 1, 0.92 at 2, 0.88 at 4."""
HALF = 0.5
"""Share of the expected signal below which tissue is lost: that of the border between lost and kept once both are smoothed."""
APART = HALF / 3
"""Largest standard deviation, over the tissue, of an image's share of the expected signal at which lost tissue is told from
tissue that is there: three of them lie between there and half there."""
TISSUE = "tissue"
"""Name of the first channel of the map: where tissue is expected."""


@dataclass(frozen=True)
class Lost:
    """Which tissue each image of a group has lost.

    Args:
        image: the map, on the canvas of the group at up to 512 pixels: the channel `TISSUE`, 1 where tissue is expected, then one
            channel per image with a place, 1 where its tissue is lost; uint8.
        fractions: the share of the tissue within each image's canvas that it has lost; None without a place, or without tissue.
    """

    image: Image
    fractions: tuple[float | None, ...]


def lost(members: Sequence[Member], results: Sequence[Result | None], reference: int) -> Lost | None:
    """The tissue that each image has lost; None of volumes, and where fewer than two images have a place.

    Args:
        members: the images.
        results: the map of each into the common space; None without a place.
        reference: number of the image whose canvas is that of the space.
    """
    placed = [k for k, result in enumerate(results) if result is not None]
    base = members[reference].density
    if base is None or len(placed) < 2:
        return None
    grid = Grid(base.values.shape, tuple(base.spacing), tuple(base.origin), members[reference].image.grid.unit)
    amounts = _comparable([members[k] for k in placed])
    carried = [_carried(members[k], results[k], grid, amounts) for k in placed]
    reach = np.stack([own for _, own in carried])  # [K, h, w]
    shown = np.stack([_smooth(values, own, NARROW[0]) for values, own in carried])
    if amounts:
        shown /= _gains(shown, reach, placed.index(reference))[:, None, None]
    expected = _expected(shown, reach)
    wide = ndimage.gaussian_filter(expected, WIDE)
    if wide.max() <= wide.min():
        return None
    tissue = wide > EDGE * float(threshold_otsu(wide))  # type: ignore[no-untyped-call]
    planes, fractions = [tissue], [None] * len(members)  # type: list[Any], list[float | None]
    for i, k in enumerate(placed):
        there = tissue & reach[i]
        gone = there & (_share(shown[i], expected, reach[i], there) < HALF)
        planes.append(gone)
        fractions[k] = float(gone.sum() / there.sum()) if there.any() else None
    names = (TISSUE, *(members[k].name for k in placed))
    data = torch.from_numpy(np.stack(planes).astype(np.uint8))
    return Lost(Image(data, grid, names, name="lost"), tuple(fractions))


def _comparable(members: Sequence[Member]) -> bool:
    """Whether all images show one stain, so that how much they show can be compared."""
    names = [member.choice.name.lower() for member in members]
    if any(member.colour for member in members):
        return False
    return len(set(names)) == 1 or all(NUCLEAR.search(name) for name in names)


def _carried(
    member: Member, result: Result | None, grid: Grid, amounts: bool
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """What an image shows on ``grid`` ``[h, w]``, and where it reaches."""
    density = member.density
    assert density is not None
    assert result is not None
    values = density.values if amounts else density.tissue.astype(np.float32)
    own = Grid(values.shape, tuple(density.spacing), tuple(density.origin), member.image.grid.unit)
    image = Image(torch.from_numpy(np.ascontiguousarray(values))[None], own, ("density",), weight=torch.ones(own.shape))
    there = resample(image, result.transform, grid, 0.0)
    assert there.weight is not None
    return there.data[0].numpy(), np.asarray(there.weight.numpy() > 0.999)


def _smooth(values: NDArray[Any], reach: NDArray[np.bool_], width: float) -> Floats:
    """Values smoothed over where an image reaches; 0 elsewhere."""
    known = reach.astype(np.float64)
    total, weight = (ndimage.gaussian_filter(one, width) for one in (values * known, known))
    return np.asarray(np.where(reach, total / np.maximum(weight, 1e-6), 0.0))


def _gains(shown: Floats, reach: NDArray[np.bool_], base: int) -> Floats:
    """How strong the signal of each image is over that of image ``base`` ``[K]``: the median over the latter's tissue."""
    wide = np.stack([_smooth(values, own, WIDE) for values, own in zip(shown, reach, strict=True)])
    if wide[base].max() <= wide[base].min():
        return np.ones(len(shown))
    tissue = wide[base] > EDGE * float(threshold_otsu(wide[base]))  # type: ignore[no-untyped-call]
    gains = []
    for values, own in zip(wide, reach, strict=True):
        both = tissue & own
        gains.append(float(np.median(values[both] / wide[base][both])) if both.any() else 1.0)
    return np.asarray(np.maximum(np.array(gains), 1e-9))


def _expected(shown: Floats, reach: NDArray[np.bool_]) -> Floats:
    """The second strongest signal of all images at each place ``[h, w]``; the stronger where only two reach."""
    order = np.sort(np.where(reach, shown, 0.0), axis=0)
    return np.asarray(np.where(reach.sum(axis=0) > 2, order[-2], order[-1]))


def _share(shown: Floats, expected: Floats, reach: NDArray[np.bool_], there: NDArray[np.bool_]) -> Floats:
    """Share of the expected signal that an image shows ``[h, w]``, smoothed as little as tells lost tissue from kept."""
    share = np.zeros_like(shown)
    for width in NARROW:
        share = _smooth(shown, reach, width) / np.maximum(_smooth(expected, reach, width), 1e-9)
        usual = share[there]
        if not len(usual) or 1.4826 * float(np.median(np.abs(usual - np.median(usual)))) <= APART:
            break
    return share
