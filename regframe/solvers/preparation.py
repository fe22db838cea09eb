"""What a picture of tissue needs before it is compared: how it was made, its background, and canvas that nobody imaged."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import ConvexHull, cKDTree
from skimage.filters import threshold_otsu
from skimage.measure import approximate_polygon
from torch import Tensor

from ..data import Image
from ..fit.mixture import flattest
from .unseen import filled, settled

LOOKED_AT = 300_000
"""Pixels that are looked at, about: larger images are thinned to them."""
PADDED = 0.005
"""Smallest share of a canvas that one exact colour from a corner on must fill to be padding."""
APART = 0.1
"""Share of the range of intensities from which two colours differ too much to be one background."""
RECTANGULAR = 0.95
"""How much of the least turned rectangle around it, or of its convex hull, an imaged area fills, when the rest of the canvas is
padding."""
SIDES = 8
"""Sides of that hull at most: a turned rectangle that the canvas cuts off has up to eight."""
BOWED = 0.01
"""How far a side of it may be from straight, over the canvas' longer side: a disc then still has fifteen sides."""
SPECK = 6
"""Pixels, of those looked at, that a printed mark covers at least."""
SMALL = 0.01
"""Largest area of a mark, over that of the largest thing in the picture."""
MARKS = 50
"""Marks at least: fewer small things may be anything."""
EVEN = 0.12
"""By how much the distances between marks differ at most, relatively; their areas by three times as much."""
INKED = 30
"""Pixels, of those looked at, that a spot of ink covers at least."""
EVENLY = 0.15
"""Largest local deviation of the light that ink takes away, over that light: ink lies evenly, tissue has cells."""
RIM = 5
"""Pixels around ink that are mixed with the glass beside it."""
SPOTS = 8
"""Colours of ink at most, beginning with the one that covers most."""
DARKEST = 0.06
"""Share of the light that passes the darkest colours which are still told apart."""
OWN_COLOUR = 0.25
"""Distance of two optical densities, over the length of one, from which they are two colours."""
RARE = 0.005
"""Share of the rest of the tissue that may have the colour of ink."""
MOST_INK = 0.25
"""Most that ink covers, as a share of what is not background: more than that is the tissue itself."""
BRIGHT = 0.8
"""Brightness of the background of transmitted light at least, over that of the picture's brightest parts."""
NEUTRAL = 0.15
"""Largest spread of that background's channels, over the brightness of the brightest parts."""
CORNERS = ((0, 0), (0, -1), (-1, 0), (-1, -1))
"""Indices of a picture's corner pixels, (y, x)."""


@dataclass(frozen=True)
class Look:
    """What was found out about one side.

    Args:
        brightfield: a stained section in transmitted light: three channels, background bright and nearly neutral.
        background: colour ``[C]`` of the background, in the image's intensities.
        tissue_fraction: share of the canvas that differs from the background (Otsu's threshold).
        padded_fraction: share of the canvas that was filled up, not imaged; it does not count.
        marks_fraction: share that printed marks cover, the fiducial frame of a Visium slide; they do not count.
        ink_fraction: share that somebody has drawn over with a pen; it does not count.
        masked_fraction: share that had no weight to begin with: a mask, or a stated value for no data.
        nan_fraction: share that is not a number; it does not count.
        nodata_fraction: share that holds one value far off all others; it does not count.
        nodata_value: that value, None where there is none.
        stray_fraction: share of single pixels and lines far off, replaced by their neighbours.
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


@dataclass(frozen=True)
class _Sample:
    """What is looked at of a picture: every ``step``-th pixel along each axis.

    Args:
        data: ``[C, h, w]`` float32.
        trusted: ``[h, w]``, the picture's own weight.
        step: pixels of the picture per pixel looked at.
        low: the darkest value.
        high: the brightest, at least 255 of 8-bit pictures.
        brightest: brightness (mean of the channels) of the brightest parts, above ``low``.
    """

    data: Tensor
    trusted: Tensor
    step: int
    low: float
    high: float
    brightest: float

    @classmethod
    def of(cls, image: Image) -> _Sample:
        """About `LOOKED_AT` pixels of a picture."""
        step = max(1, round((image.data[0].numel() / LOOKED_AT) ** 0.5))
        data = image.data[:, ::step, ::step].to(torch.float32)
        low, high = float(data.amin()), float(data.amax())
        high = max(high, 255.0) if image.data.dtype == torch.uint8 else high
        trusted = torch.ones(data.shape[1:]) if image.weight is None else image.weight[::step, ::step].to(torch.float32)
        brightest = max(float(torch.quantile(data.mean(dim=0).flatten()[:: max(1, step)], 0.995)) - low, 1e-12)
        return cls(data, trusted, step, low, high, brightest)

    @property
    def span(self) -> float:
        """The range of intensities."""
        return max(self.high - self.low, 1e-12)

    def lit(self, background: Tensor) -> bool:
        """Whether a picture of this background ``[C]`` is one of transmitted light."""
        return _lit(self.data, background, self.low, self.span, self.brightest)

    def apart(self, background: Tensor) -> Tensor:
        """How far the colour of each pixel is from the background ``[C]``: ``[h, w]``."""
        distance: Tensor = (self.data - background[:, None, None]).norm(dim=0)
        return distance


def prepare(image: Image) -> tuple[Image, Look]:
    """The image with weight 0 where its canvas was only filled up or printed on, and what it looks like.

    What is no number, stands for no data or lies far off by itself goes first (`unseen.settled`).
    Padding is a region of one exact colour that reaches from a corner inwards, is not the colour of the background and
    leaves a turned or straight rectangle, whole or cut off by the canvas: the black wedges beside a turned section on white
    glass, but neither the empty glass itself nor the black around a brain, whose outlines help. Marks are many small things of
    one size at one distance from each other: they stay with the slide, not with the tissue. So does ink, which lies evenly on a
    stained section in a colour that nothing else has.
    Of volumes nothing is looked for but what goes first.
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
        even = torch.zeros_like(even)  # the picture's own background: the black around a brain, whitened glass
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
    marks = _marks(sample.apart(background) * ~padded)
    brightfield = sample.lit(background)
    ink = torch.zeros_like(padded)
    if brightfield:
        dark = min(sample.low, 0.0)  # no light, or less than that in pictures that were shifted
        light = (background - dark) / (sample.high - dark)
        ink = _ink((data - dark) / (sample.high - dark), light, (sample.trusted > 0) & ~padded & ~marks)
    drawn = marks | ink
    if bool(drawn.any()):
        index = [torch.arange(n).div(sample.step, rounding_mode="floor").clamp(max=m - 1)
                 for n, m in zip(image.grid.shape, drawn.shape, strict=True)]  # fmt: skip
        image = _without(image, drawn[index[0]][:, index[1]])
    apart = sample.apart(background)[~padded]
    tissue = 0.0
    if float(apart.amax()) > float(apart.amin()):
        threshold = float(threshold_otsu(apart.numpy()))  # type: ignore[no-untyped-call]
        tissue = float((apart > threshold).to(torch.float32).mean())
    share, printed, inked = (float(mask.to(torch.float32).mean()) for mask in (padded, marks, ink))
    background_colour = tuple(background.tolist())
    return image, Look(brightfield, background_colour, tissue * (1 - share), share, printed, inked, **gone)


def _background(sample: _Sample, even: Tensor) -> Tensor:
    """Colour ``[C]`` of a picture's background: where it changes least, beside what one colour fills ``[h, w]``."""
    data = sample.data
    rest = sample.trusted * ~even
    rest = rest if bool(rest.any()) else sample.trusted
    background = flattest(data, rest)
    if len(background) == 3 and bool((rest > 0).any()):
        # on a slide that somebody has drawn over, the flattest part may be the ink: look among the brighter half too
        brightness = data.mean(dim=0)
        light = flattest(data, rest * (brightness >= brightness[rest > 0].median()))
        if sample.lit(light):
            return light
    return background


def _whole_padding(image: Image, padded: Tensor) -> Tensor:
    """The padding of a whole picture ``[H, W]``, where that of its thinned pixels ``[h, w]`` is known."""
    whole = torch.zeros(image.grid.shape, dtype=torch.bool)
    for y, x in CORNERS:
        if bool(padded[y, x]):
            whole |= _from_corner((image.data == image.data[:, y, x][:, None, None]).all(dim=0), y, x)
    # beside it lie pixels that were mixed with it
    return torch.from_numpy(ndimage.binary_dilation(whole.numpy(), iterations=2))


def _without(image: Image, hidden: Tensor) -> Image:
    """The image with weight 0 at ``hidden`` pixels ``[H, W]``."""
    weight = torch.ones(image.grid.shape) if image.weight is None else image.weight
    return dataclasses.replace(image, weight=weight * ~hidden)


def grey(image: Image) -> Image:
    """The mean of the channels as one channel: what two stains of neighbouring sections have in common is their
    density, and their colours only mislead."""
    return dataclasses.replace(image, data=image.data.to(torch.float32).mean(dim=0, keepdim=True), channels=("grey",))


def _lit(data: Tensor, background: Tensor, low: float, span: float, brightest: float) -> bool:
    """Whether ``[C, H, W]`` with this background ``[C]`` is a picture of transmitted light: bright, neutral, nothing beyond."""
    level = (background - low) / brightest
    return (
        len(background) == 3
        and float(level.mean()) > BRIGHT
        and float(level.amax() - level.amin()) < NEUTRAL
        and float((data.mean(dim=0) > background.mean() + APART * span).to(torch.float32).mean()) < PADDED
    )


def _even(data: Tensor) -> Tensor:
    """Pixels ``[H, W]`` of one exact colour that reach from a corner over a good part of ``[C, H, W]``."""
    out = torch.zeros(data.shape[1:], dtype=torch.bool)
    for y, x in CORNERS:
        same = _from_corner((data == data[:, y, x][:, None, None]).all(dim=0), y, x)
        if float(same.to(torch.float32).mean()) > PADDED:
            out |= same
    return out


def _marks(apart: Tensor) -> Tensor:
    """Pixels ``[H, W]`` of printed marks, given how far every pixel is from the background ``[H, W]``."""
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
    centres = np.array(ndimage.center_of_mass(mask, labels, small))
    found = cKDTree(centres).query(centres, k=2)
    distances, nearest = np.asarray(found[0]), np.asarray(found[1])
    near, own = distances[:, 1], areas[small]
    common = max(np.quantile(near, np.linspace(0.05, 0.95, 37)), key=lambda d: (np.abs(near / d - 1) < EVEN).sum())
    regular = (np.abs(near / common - 1) < EVEN) & (np.abs(own / own[nearest[:, 1]] - 1) < 3 * EVEN)
    if regular.sum() < MARKS or regular.mean() < 0.5:
        return none
    # with the marks, what lies among them and resembles them, cut off at the canvas' border or not
    rest = np.flatnonzero((areas > 0) & (areas < 3 * np.median(own[regular])))
    to_regular, _ = cKDTree(centres[regular]).query(np.array(ndimage.center_of_mass(mask, labels, rest)))
    own_kind = rest[to_regular < 2 * np.median(near[regular])]
    out = ndimage.binary_dilation(np.isin(labels, own_kind), iterations=2)
    return torch.from_numpy(out)


def _ink(data: Tensor, background: Tensor, seen: Tensor) -> Tensor:
    """Pixels ``[H, W]`` of a stained section ``[3, H, W]`` (0 … 1) that were drawn over with a pen.

    Ink is even, and its colour is nobody else's: no other tissue to speak of comes near it.
    """
    none = torch.zeros_like(seen)
    taken = (background[:, None, None] - data).numpy()  # [3, H, W]; its logarithm would magnify the noise of the dark
    mean = ndimage.uniform_filter(taken, (0, 5, 5))
    spread = np.sqrt(np.clip(ndimage.uniform_filter(taken**2, (0, 5, 5)) - mean**2, 0, None).sum(axis=0))
    size = np.linalg.norm(taken, axis=0)
    density = (
        -(data / background.clamp(min=DARKEST)[:, None, None]).clamp(min=DARKEST).log().numpy()
    )  # tells the dark apart
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
        # all that is even and of this colour is this ink, with the rim of its strokes, where it is mixed with the glass
        of_colour = np.bincount(labels.ravel(), near.ravel(), number + 1) > areas / 2
        of_colour[0] = False
        strokes = of_colour[labels]
        own = ndimage.binary_dilation(strokes, iterations=RIM)
        others = tissue & ~own
        if strokes.sum() < MOST_INK * tissue.sum() and (near & others).sum() < RARE * others.sum():
            out |= own
    return torch.from_numpy(out)


def _cut_straight(mask: Tensor) -> bool:
    """Whether the pixels of a mask ``[H, W]`` are what a canvas shows of a picture with straight sides."""
    return _rectangular(mask) >= RECTANGULAR or _polygonal(mask)


def _polygonal(mask: Tensor) -> bool:
    """Whether the pixels of a mask ``[H, W]`` fill a convex polygon of few sides."""
    rows = mask.nonzero().numpy().astype(np.float64)
    if len(rows) < 16 or np.ptp(rows, axis=0).min() < 2:
        return False
    hull = ConvexHull(rows)
    corners = rows[hull.vertices]
    ring = approximate_polygon(np.vstack([corners, corners[:1]]), BOWED * max(mask.shape))  # type: ignore[no-untyped-call]
    return len(ring) - 1 <= SIDES and len(rows) >= RECTANGULAR * hull.volume


def _rectangular(mask: Tensor) -> float:
    """How much of the least rectangle around it, turned as may be, the pixels of a mask ``[H, W]`` fill."""
    rows = mask.nonzero().to(torch.float64)
    if len(rows) < 16 or float(rows.amax(dim=0).sub(rows.amin(dim=0)).amin()) < 2:
        return 0.0
    corners = torch.cat([rows + torch.tensor([dy, dx]) for dy in (-0.5, 0.5) for dx in (-0.5, 0.5)]).numpy()
    hull = corners[ConvexHull(corners).vertices]
    areas = []
    for edge in np.diff(np.vstack([hull, hull[:1]]), axis=0):
        along = edge / np.linalg.norm(edge)
        areas.append(np.prod(np.ptp(hull @ np.array([along, [-along[1], along[0]]]).T, axis=0)))
    return len(rows) / float(min(areas))


def _from_corner(same: Tensor, y: int, x: int) -> Tensor:
    """The connected part of a mask ``[H, W]`` that holds its corner ``[y, x]``."""
    labels, _ = ndimage.label(same.numpy())
    return torch.from_numpy(np.asarray(labels == labels[y, x])) if labels[y, x] else torch.zeros_like(same)
