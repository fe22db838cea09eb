"""Preparation of a picture of tissue: transmitted light or not, its background, and canvas that shows no tissue.

Weights of 0 are given to padding (canvas that was filled up), printed marks and ink. All sizes in pixels below refer to the
thinned picture of about `LOOKED_AT` pixels. "Light taken away" is the background's intensity minus the pixel's, per channel.

Where a constant names no source, neither a paper nor a calibration is recorded for it; the reasons stated are all that is
known.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu
from torch import Tensor

from ..data import Image
from ..fit.mixture import flattest
from .plain import CORNERS, LOOKED_AT, PADDED
from .strokes import strokes
from .unseen import filled, settled

APART = 0.1
"""Difference in intensity, as a fraction of the picture's range, from which two colours cannot be one background."""
RECTANGULAR = 0.95
"""Least share of its smallest enclosing rectangle (turned as need be), or of its convex hull, that the rest of the picture must
fill for one-coloured corners to be padding: a turned scan leaves a rectangle, a brain on black does not. The remaining 5 % allow
for a rough border."""
SIDES = 8
"""Sides of that hull at most: a turned rectangle that the canvas cuts off has up to eight."""
BOWED = 0.01
"""How far a side of the hull may be from straight, over the canvas' longer side: a disc then still has fifteen sides."""
SPECK = 6
"""Pixels that a printed mark must exceed: smaller spots are noise."""
SMALL = 0.01
"""Largest area of a printed mark, over that of the largest object in the picture (the tissue)."""
MARKS = 50
"""Least number of printed marks: fewer small objects may be anything."""
EVEN = 0.12
"""Largest relative deviation of a mark's distance to its nearest neighbour from the distance that most marks have. The areas of
neighbouring marks may differ three times as much."""
INKED = 30
"""Pixels that a spot of ink covers at least: smaller even spots occur in tissue too."""
EVENLY = 0.15
"""Largest local standard deviation of the light that ink takes away, over that light, within 5 x 5 pixels: ink is uniform,
tissue has cells."""
RIM = 5
"""Width in pixels of the rim of a stroke of ink, where ink and glass are mixed; the rim is hidden with the stroke."""
SPOTS = 8
"""Largest number of spots of ink that are examined, the largest first."""
DARKEST = 0.06
"""Transmitted share of the light, 0 … 1, below which dark colours are not told apart: the logarithm would magnify their noise."""
OWN_COLOUR = 0.25
"""Distance between two optical densities (3-vectors), over the length of the ink's, from which they are two colours."""
RARE = 0.005
"""Largest share of the remaining tissue that may have a colour for that colour to be ink."""
MOST_INK = 0.25
"""Largest share of everything but background that one ink may cover: what covers more is the tissue itself."""
BRIGHT = 0.8
"""Least brightness of the background of a picture in transmitted light, over that of the picture's brightest parts."""
NEUTRAL = 0.15
"""Largest difference between the channels of the background of transmitted light, over the brightness of the brightest parts."""
GLASS = 0.15
"""Largest colour of glass, over that of tissue, for stained tissue to be set apart from glass; colour is the range of the three
optical densities, glass and tissue what lies below and above Otsu's threshold of it, each by its median."""
BETWEEN = 0.15
"""Largest share of the glass whose colour is above half of Otsu's threshold, likewise: more is pale tissue. Of 24 pictures of
sections 15 whole ones on bare glass have 0.01 to 0.13, the others, among them all that tissue fills, 0.16 to 0.45."""
DARK = 0.1
"""Optical density in every channel, from which what lies on bare glass and is not stained is an object: print, dust."""
BAY = 0.06
"""Half the width of bays of the tissue, over the picture's shorter side, in which pale, grey tissue may lie: nothing there is
print."""
STAINED = 0.02
"""Least share of the picture that is stained tissue, for it to be set apart."""
GREY = 0.08
"""Largest colour of what is no stain, over its largest optical density: black ink on tinted glass."""
COLOURED = 2.0
"""Standard deviation in pixels of the smoothing of colours before tissue is set apart by them: dust is no tissue."""


@dataclass(frozen=True)
class Look:
    """What the preparation found in one picture.

    Args:
        brightfield: whether it is a stained section in transmitted light: three channels, background bright and nearly neutral.
        background: colour ``[C]`` of the background, in the picture's intensities.
        tissue_fraction: share of the canvas that differs from the background (Otsu's threshold).
        padded_fraction: share of the canvas that was filled up, not imaged; it gets weight 0.
        marks_fraction: share covered by printed marks, such as the fiducial frame of a Visium slide; they get weight 0.
        ink_fraction: share that was drawn over with a pen; it gets weight 0.
        masked_fraction: share that had no weight to begin with: a mask, or a stated value for no data.
        nan_fraction: share that is not a number; it gets weight 0.
        nodata_fraction: share that holds one value far off all others; it gets weight 0.
        nodata_value: that value, None where there is none.
        stray_fraction: share of single pixels and lines far off all others, replaced by their neighbours.
        stained: where a section in transmitted light is coloured ``[h, w]``, on about `LOOKED_AT` pixels; None where colour does
            not set tissue apart from glass.
    """

    brightfield: bool
    background: tuple[float, ...]
    tissue_fraction: float
    padded_fraction: float
    marks_fraction: float = 0.0
    ink_fraction: float = 0.0
    masked_fraction: float = 0.0
    nan_fraction: float = 0.0
    nodata_fraction: float = 0.0
    nodata_value: float | None = None
    stray_fraction: float = 0.0
    stained: Tensor | None = None

    def figures(self) -> dict[str, Any]:
        """What was found, for ``metrics.json``."""
        return {name: value for name, value in vars(self).items() if name != "stained"}


@dataclass(frozen=True)
class _Sample:
    """The thinned picture that is examined: every ``step``-th pixel along each axis.

    Args:
        data: ``[C, h, w]`` float32.
        trusted: ``[h, w]``, the picture's own weight.
        step: pixels of the picture per pixel of the sample, along each axis.
        low: lowest intensity.
        high: highest intensity; at least 255 in 8-bit pictures.
        brightest: brightness (mean of the channels) of the brightest half per cent of pixels, above ``low``.
    """

    data: Tensor
    trusted: Tensor
    step: int
    low: float
    high: float
    brightest: float

    @classmethod
    def of(cls, image: Image) -> _Sample:
        """The sample of a picture, of about `LOOKED_AT` pixels."""
        step = max(1, round((image.data[0].numel() / LOOKED_AT) ** 0.5))
        data = image.data[:, ::step, ::step].to(torch.float32)
        low, high = float(data.amin()), float(data.amax())
        high = max(high, 255.0) if image.data.dtype == torch.uint8 else high
        trusted = torch.ones(data.shape[1:]) if image.weight is None else image.weight[::step, ::step].to(torch.float32)
        brightest = max(float(torch.quantile(data.mean(dim=0).flatten()[:: max(1, step)], 0.995)) - low, 1e-12)
        return cls(data, trusted, step, low, high, brightest)

    @property
    def span(self) -> float:
        """The range of intensities, ``high - low``."""
        return max(self.high - self.low, 1e-12)

    def lit(self, background: Tensor) -> bool:
        """Whether a picture with this background colour ``[C]`` was taken in transmitted light."""
        return _lit(self.data, background, self.low, self.span, self.brightest)

    def apart(self, background: Tensor) -> Tensor:
        """Distance ``[h, w]`` of each pixel's colour from the background ``[C]``, in intensities."""
        distance: Tensor = (self.data - background[:, None, None]).square().sum(dim=0).sqrt()
        return distance


def prepare(image: Image) -> tuple[Image, Look]:
    """The image with weight 0 on padding, printed marks and ink, and what was found in it.

    Pixels that are no numbers, that stand for no data, or that lie far off all others by themselves are treated first
    (`unseen.settled`). Padding is a region of one exact colour that reaches in from a corner, is not the background's colour, and
    leaves a rectangle, turned or straight, whole or cut off by the canvas: the black wedges beside a turned scan on white glass.
    The empty glass itself is not padding, nor is the black around a brain, whose outline helps. Printed marks are many small
    objects of one size at one distance from each other; they belong to the slide and not to the tissue. Ink is a uniform colour
    on a stained section that nothing else has, or a long dark stroke of one width on any picture (`strokes`). Of volumes only
    the first step is done.
    """
    masked = 0.0 if image.weight is None else float((image.weight == 0).to(torch.float32).mean())
    image, unseen = settled(image)
    gone = dataclasses.asdict(unseen) | {"masked_fraction": masked}
    if image.grid.ndim != 2:
        return image, Look(False, (), 1.0, 0.0, **gone)
    sample = _Sample.of(image)
    data = sample.data  # [C, h, w]
    even = _even(data) & (sample.trusted > 0)
    if bool(even.any()) and not _cut_straight(~even):
        even = torch.zeros_like(even)  # no rectangle: this is background, such as the black around a brain
    background = _background(sample, even)
    padded = torch.zeros_like(even)
    for y, x in CORNERS:
        colour = data[:, y, x]
        if bool(even[y, x]) and float((colour - background).abs().amax()) > APART * sample.span:
            padded |= even & (data == colour[:, None, None]).all(dim=0)
    if bool(padded.any()):
        whole = _whole_padding(image, padded)
        image = _without(image, whole)
        if not image.labels:
            image = dataclasses.replace(
                image, data=filled(image.data, whole)
            )  # halved, it would mix with what lies beside it
    apart = sample.apart(background)
    marks = _marks(apart * ~padded)
    brightfield = sample.lit(background)
    known = (sample.trusted > 0) & ~padded & ~marks
    ink = torch.zeros_like(padded) if image.labels or image.counted is not None else _strokes(image, sample, known)
    stained = None
    if brightfield:
        dark = min(sample.low, 0.0)  # intensity without light: 0, or lower where intensities were shifted
        light = (background - dark) / (sample.high - dark)
        through = (data - dark) / (sample.high - dark)
        ink |= _ink(through, light, known)
        tint = _Colour.of(through, light, known & ~ink)
        if tint is not None:
            marks |= _printed(through, light, tint)
            set_apart = tint.stained()
            stained = None if set_apart is None else torch.from_numpy(set_apart)
    drawn = marks | ink
    if bool(drawn.any()):
        index = [torch.arange(n).div(sample.step, rounding_mode="floor").clamp(max=m - 1)
                 for n, m in zip(image.grid.shape, drawn.shape, strict=True)]  # fmt: skip
        image = _without(image, drawn[index[0]][:, index[1]])
    apart = apart[~padded]
    tissue = 0.0
    if float(apart.amax()) > float(apart.amin()):
        threshold = float(threshold_otsu(apart.numpy()))  # type: ignore[no-untyped-call]
        tissue = float((apart > threshold).to(torch.float32).mean())
    share, printed, inked = (float(mask.to(torch.float32).mean()) for mask in (padded, marks, ink))
    background_colour = tuple(background.tolist())
    return image, Look(
        brightfield, background_colour, tissue * (1 - share), share, printed, inked, **gone, stained=stained
    )


def _background(sample: _Sample, even: Tensor) -> Tensor:
    """Colour ``[C]`` of the background: where the picture changes least, outside one-coloured corners ``even`` ``[h, w]``."""
    data = sample.data
    rest = sample.trusted * ~even
    rest = rest if bool(rest.any()) else sample.trusted
    background = flattest(data, rest)
    if len(background) == 3 and bool((rest > 0).any()):
        # on a slide with ink the flattest part may be the ink, so the brighter half is searched as well
        brightness = data.mean(dim=0)
        light = flattest(data, rest * (brightness >= brightness[rest > 0].median()))
        if sample.lit(light):
            return light
    return background


def _whole_padding(image: Image, padded: Tensor) -> Tensor:
    """The padding ``[H, W]`` of the whole picture, grown from the corners where the sample has ``padded`` ``[h, w]``."""
    whole = torch.zeros(image.grid.shape, dtype=torch.bool)
    for y, x in CORNERS:
        if bool(padded[y, x]):
            whole |= _from_corner((image.data == image.data[:, y, x][:, None, None]).all(dim=0), y, x)
    # two more pixels: at its border padding was mixed with the picture
    return torch.from_numpy(ndimage.binary_dilation(whole.numpy(), iterations=2))


def _without(image: Image, hidden: Tensor) -> Image:
    """The image with weight 0 at ``hidden`` pixels ``[H, W]``."""
    weight = torch.ones(image.grid.shape) if image.weight is None else image.weight
    return dataclasses.replace(image, weight=weight * ~hidden)


def grey(image: Image) -> Image:
    """The mean of the channels as a single channel.

    Two stains of neighbouring sections have their density in common; their colours would only mislead.
    """
    return dataclasses.replace(image, data=image.data.to(torch.float32).mean(dim=0, keepdim=True), channels=("grey",))


def _lit(data: Tensor, background: Tensor, low: float, span: float, brightest: float) -> bool:
    """Whether ``[C, H, W]`` with this background is in transmitted light: bright, neutral, and hardly anything brighter."""
    level = (background - low) / brightest
    return (
        len(background) == 3
        and float(level.mean()) > BRIGHT
        and float(level.amax() - level.amin()) < NEUTRAL
        and float((data.mean(dim=0) > background.mean() + APART * span).to(torch.float32).mean()) < PADDED
    )


def _even(data: Tensor) -> Tensor:
    """Pixels ``[H, W]`` of one exact colour that reach in from a corner and fill more than `PADDED` of the canvas."""
    out = torch.zeros(data.shape[1:], dtype=torch.bool)
    for y, x in CORNERS:
        same = _from_corner((data == data[:, y, x][:, None, None]).all(dim=0), y, x)
        if float(same.to(torch.float32).mean()) > PADDED:
            out |= same
    return out


def _marks(apart: Tensor) -> Tensor:
    """Pixels ``[H, W]`` of printed marks, from each pixel's distance ``[H, W]`` to the background colour."""
    none = torch.zeros_like(apart, dtype=torch.bool)
    smooth = ndimage.gaussian_filter(apart.numpy(), 0.5)
    if not smooth.max() > smooth.min():
        return none
    mask = smooth > threshold_otsu(smooth) / 2  # type: ignore[no-untyped-call]
    labels, number = ndimage.label(mask)
    areas = np.bincount(labels.ravel(), minlength=number + 1).astype(np.float64)
    areas[0] = 0
    small = np.flatnonzero((areas > SPECK) & (areas < SMALL * areas.max()))
    if len(small) < MARKS:
        return none
    from scipy.spatial import cKDTree  # a tenth of a second, which few images need

    centres = np.array(ndimage.center_of_mass(mask, labels, small))
    found = cKDTree(centres).query(centres, k=2)
    distances, nearest = np.asarray(found[0]), np.asarray(found[1])
    near, own = distances[:, 1], areas[small]
    common = max(np.quantile(near, np.linspace(0.05, 0.95, 37)), key=lambda d: (np.abs(near / d - 1) < EVEN).sum())
    regular = (np.abs(near / common - 1) < EVEN) & (np.abs(own / own[nearest[:, 1]] - 1) < 3 * EVEN)
    if regular.sum() < MARKS or regular.mean() < 0.5:
        return none
    # also hide objects of up to three times a mark's area near a mark: marks that touch, or are cut off at the border
    rest = np.flatnonzero((areas > 0) & (areas < 3 * np.median(own[regular])))
    to_regular, _ = cKDTree(centres[regular]).query(np.array(ndimage.center_of_mass(mask, labels, rest)))
    own_kind = rest[to_regular < 2 * np.median(near[regular])]
    out = ndimage.binary_dilation(np.isin(labels, own_kind), iterations=2)
    return torch.from_numpy(out)


def _strokes(image: Image, sample: _Sample, seen: Tensor) -> Tensor:
    """Pixels ``[h, w]`` of the sample of a picture of any kind that a stroke runs through, among those that are ``seen``."""
    data = sample.data
    if sample.step > 1:  # of a thin stroke every pixel counts
        data = F.avg_pool2d(image.data.to(torch.float32)[None], sample.step, ceil_mode=True)[0]
    return torch.from_numpy(strokes((data - min(sample.low, 0.0)).numpy(), seen.numpy()))


def _ink(data: Tensor, background: Tensor, seen: Tensor) -> Tensor:
    """Pixels ``[H, W]`` of a stained section ``[3, H, W]`` (0 … 1) that were drawn over with a pen.

    Ink is uniform, and hardly any pixel elsewhere in the tissue has its colour.

    Args:
        data: transmitted light ``[3, H, W]``, 0 … 1.
        background: transmitted light ``[3]`` of the empty glass.
        seen: ``[H, W]``, pixels that may be ink.
    """
    none = torch.zeros_like(seen)
    # light taken away [3, H, W]: evenness is measured on it, because in optical densities dark pixels are noisy
    taken = (background[:, None, None] - data).numpy()
    mean = ndimage.uniform_filter(taken, (0, 5, 5))
    spread = np.sqrt(np.clip(ndimage.uniform_filter(taken**2, (0, 5, 5)) - mean**2, 0, None).sum(axis=0))
    size = np.linalg.norm(taken, axis=0)
    density = _density(data, background)  # colours are compared in it, because it tells dark inks apart
    known = seen.numpy()
    if not known.any() or not size[known].max() > size[known].min():
        return none
    tissue = (size > threshold_otsu(size[known]) / 2) & known  # type: ignore[no-untyped-call]
    even = tissue & (spread < EVENLY * np.linalg.norm(mean, axis=0))
    labels, number = ndimage.label(even)
    areas = np.bincount(labels.ravel(), minlength=number + 1)
    away = tissue & ~ndimage.binary_dilation(even, iterations=RIM)
    out = np.zeros_like(known)
    for k in np.argsort(areas[1:])[::-1][:SPOTS] + 1:
        if areas[k] < INKED:
            break
        spot = labels == k
        if out[spot].all():
            continue
        colour = np.median(density[:, spot], axis=1)
        near = np.linalg.norm(density - colour[:, None, None], axis=0) < OWN_COLOUR * np.linalg.norm(colour)
        if (near & away).sum() > RARE * tissue.sum():
            continue
        # this ink: every uniform spot of this colour, and the rim of its strokes, where ink and glass are mixed
        of_colour = np.bincount(labels.ravel(), near.ravel(), number + 1) > areas / 2
        of_colour[0] = False
        strokes = of_colour[labels]
        own = ndimage.binary_dilation(strokes, iterations=RIM)
        others = tissue & ~own
        if strokes.sum() < MOST_INK * tissue.sum() and (near & others).sum() < RARE * others.sum():
            out |= own
    return torch.from_numpy(out)


def _density(data: Tensor, background: Tensor) -> NDArray[np.float32]:
    """Optical density ``[3, H, W]`` of transmitted light ``[3, H, W]`` against that of the empty glass ``[3]``, both 0 … 1."""
    through = (data / background.clamp(min=DARKEST)[:, None, None]).clamp(min=DARKEST)
    return np.asarray(-through.log())


@dataclass(frozen=True)
class _Colour:
    """How coloured a stained section is, pixel by pixel; what is printed on glass, its dust, bubbles and the seams of its picture
    are grey, however dark: a stain is not.

    Args:
        colour: range of the three optical densities, smoothed, ``[H, W]``; 0 where it is no colour.
        known: ``[H, W]``, pixels that may be tissue.
        threshold: Otsu's, of ``colour``.
        glass: median of what lies below it.
        tissue: median of what lies above it.
    """

    colour: NDArray[np.float32]
    known: NDArray[np.bool_]
    threshold: float
    glass: float
    tissue: float

    @classmethod
    def of(cls, data: Tensor, background: Tensor, seen: Tensor) -> _Colour | None:
        """That of a picture; None where colour does not set tissue apart from glass.

        Args:
            data: transmitted light ``[3, H, W]``, 0 … 1.
            background: transmitted light ``[3]`` of the empty glass.
            seen: ``[H, W]``, pixels that may be tissue.
        """
        density = _density(data, background)
        most = ndimage.gaussian_filter(density.max(axis=0), COLOURED)
        colour = ndimage.gaussian_filter(density.max(axis=0) - density.min(axis=0), COLOURED)
        colour[colour < GREY * most] = 0.0  # black ink is never quite grey, and of pale tissue it would have the colour
        known = seen.numpy()
        if not known.any() or not colour[known].max() > colour[known].min():
            return None
        threshold = float(threshold_otsu(colour[known]))  # type: ignore[no-untyped-call]
        high = (colour > threshold) & known
        low = known & ~high
        if not low.any() or high.sum() < STAINED * known.sum():
            return None
        glass, tissue = float(np.median(colour[low])), float(np.median(colour[high]))
        return cls(colour, known, threshold, glass, tissue) if glass <= GLASS * tissue else None

    def stained(self) -> NDArray[np.bool_] | None:
        """Pixels ``[H, W]`` of stained tissue; None where too much of the rest may be pale tissue."""
        if (self.colour[self.known & (self.colour <= self.threshold)] > self.threshold / 2).mean() > BETWEEN:
            return None
        # pale tissue has less colour than Otsu's threshold
        between = math.sqrt(max(self.glass, GLASS**2 * self.tissue) * self.tissue)
        return (self.colour > between) & self.known

    def tinted(self) -> NDArray[np.bool_]:
        """Pixels ``[H, W]`` that may be stained tissue, however pale."""
        least = min(self.threshold / 2, math.sqrt(max(self.glass, GLASS**2 * self.tissue) * self.tissue))
        return (self.colour > least) & self.known


def _printed(data: Tensor, background: Tensor, colour: _Colour) -> Tensor:
    """Pixels ``[H, W]`` of objects on bare glass that are dark without being stained, such as print, dust and the edge of a cover
    slip, where stained tissue is set apart from glass; what touches the tissue, or lies in a bay or a hole of it, may be tissue.

    Args:
        data: transmitted light ``[3, H, W]``, 0 … 1.
        background: transmitted light ``[3]`` of the empty glass.
        colour: of the same picture.
    """
    tissue = colour.tinted()
    dark = (_density(data, background).min(axis=0) > DARK) & colour.known & ~tissue
    labels, number = ndimage.label(dark, np.ones((3, 3)))
    if not number:
        return torch.from_numpy(dark)
    touching = np.unique(labels[_closed(tissue, max(RIM, BAY * min(tissue.shape)))])
    alone = np.ones(number + 1, dtype=bool)
    alone[[0, *touching]] = False
    return torch.from_numpy(ndimage.binary_dilation(alone[labels], iterations=2))


def _closed(mask: NDArray[np.bool_], radius: float) -> NDArray[np.bool_]:
    """A mask ``[H, W]``, `RIM` wider, without holes and without bays narrower than ``radius`` on both sides."""
    if not mask.any():
        return mask
    coarse, wide = mask[::2, ::2], math.ceil(radius / 2) + 1
    grown = ndimage.distance_transform_edt(~np.pad(coarse, wide, mode="edge")) <= radius / 2
    kept = ndimage.distance_transform_edt(grown) > (radius - RIM) / 2
    whole = ndimage.binary_fill_holes(kept)[wide:-wide, wide:-wide]
    out: NDArray[np.bool_] = whole.repeat(2, axis=0).repeat(2, axis=1)[: mask.shape[0], : mask.shape[1]] | mask
    return out


def _cut_straight(mask: Tensor) -> bool:
    """Whether the pixels of a mask ``[H, W]`` are what a canvas shows of a picture with straight sides."""
    return _rectangular(mask) >= RECTANGULAR or _polygonal(mask)


def _polygonal(mask: Tensor) -> bool:
    """Whether the pixels of a mask ``[H, W]`` fill a convex polygon of few sides."""
    rows = mask.nonzero().numpy().astype(np.float64)
    if len(rows) < 16 or np.ptp(rows, axis=0).min() < 2:
        return False
    from scipy.spatial import ConvexHull, QhullError

    try:
        hull = ConvexHull(rows)
    except QhullError:  # on one slanting line, or so close to one that no triangle is certain
        return False
    corners = rows[hull.vertices]
    sides = _straight_pieces(np.vstack([corners, corners[:1]]), BOWED * max(mask.shape))
    return sides <= SIDES and len(rows) >= RECTANGULAR * hull.volume


def _straight_pieces(line: NDArray[np.float64], tolerance: float) -> int:
    """How many straight pieces follow a line of points ``[N, 2]`` to a tolerance (Douglas and Peucker 1973).

    scikit-image has this too, but takes half a second to load it.
    """
    offset, chord = line - line[0], line[-1] - line[0]
    length = float(chord @ chord)
    along = np.clip(offset @ chord / length, 0, 1) if length > 0 else np.zeros(len(line))
    away = np.linalg.norm(offset - along[:, None] * chord, axis=1)
    k = int(away.argmax())
    if away[k] <= tolerance:
        return 1
    return _straight_pieces(line[: k + 1], tolerance) + _straight_pieces(line[k:], tolerance)


def _rectangular(mask: Tensor) -> float:
    """Share of its smallest enclosing rectangle, turned as need be, that the pixels of a mask ``[H, W]`` fill."""
    rows = mask.nonzero().to(torch.float64)
    if len(rows) < 16 or float(rows.amax(dim=0).sub(rows.amin(dim=0)).amin()) < 2:
        return 0.0
    from scipy.spatial import ConvexHull

    corners = torch.cat([rows + torch.tensor([dy, dx]) for dy in (-0.5, 0.5) for dx in (-0.5, 0.5)]).numpy()
    hull = corners[ConvexHull(corners).vertices]
    areas = []
    for edge in np.diff(np.vstack([hull, hull[:1]]), axis=0):
        along = edge / np.linalg.norm(edge)
        areas.append(np.prod(np.ptp(hull @ np.array([along, [-along[1], along[0]]]).T, axis=0)))
    return len(rows) / float(min(areas))


def _from_corner(same: Tensor, y: int, x: int) -> Tensor:
    """The connected component of a mask ``[H, W]`` that contains the corner ``[y, x]``."""
    labels, _ = ndimage.label(same.numpy())
    return torch.from_numpy(np.asarray(labels == labels[y, x])) if labels[y, x] else torch.zeros_like(same)
