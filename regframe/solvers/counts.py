"""Pictures that hold counts: few things (cells, molecules, photons) a pixel, as a histogram of positions has them.

The noise of a count is as large as its mean. A pixel with few things says next to nothing by itself, and the noise of one side
times that of the other is most of what is compared; so counts are summed over a small neighbourhood first, as a table of cells
is drawn with Gaussians, and the roots of these sums are compared (`evened`).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ..data import Image

FEW_COUNTED = 3 / 8
"""Number of things added to every count before its root is taken (Anscombe 1948):
the variance then is even down to few things."""
FEW = 10.0
"""Largest mean count of the pixels that hold anything; of more, the noise of a pixel is under a third of its value, and pictures
with few levels of grey are more likely."""
EMPTY = 0.05
"""Least share of pixels that hold nothing."""
LEVELS = 128
"""Largest number of different values above 0. With the other conditions none of 51 real pictures is taken for counts: as they
are, less their darkest value, cut to masks at the median, or in six greys."""
WHOLE = 0.1
"""Largest distance of a value (but for the largest one, where a scale may end) from a multiple of the smallest, over that one;
rounding to 8 bits leaves less."""
DISPERSION = (0.5, 2.0)
"""Range of the mean square difference of neighbours, over the mean of their sum. It is 1 of independent things (0.80 to
1.00 of `density` 500 to 503 of the proving ground); less of things that keep a distance, and more of clusters."""
SIGMA = 2.0
"""Standard deviation of the Gaussian that counts are summed with, pixels."""
LOOKED_AT = 1 << 22
"""Pixels that are looked at, at most."""


def counting(image: Image) -> Image:
    """A picture that holds counts as a density of counted things; any other image as it is.

    It holds counts where there is one channel whose values are few multiples of one number, many of them 0, and the noise of
    neighbours is that of counts. ``counted`` then is the number of things that have the same noise at a value of 1.

    Args:
        image: as it was opened; 2D.
    """
    if image.counted is not None or image.labels or image.grid.ndim != 2 or len(image.data) != 1:
        return image
    one = _one(image.data[0].numpy())
    if one is None:
        return image
    counts = image.data[0].numpy().astype(np.float32) / np.float32(one)
    summed = gaussian_filter(counts, SIGMA, mode="nearest")
    return image.replace(data=torch.from_numpy(summed)[None], counted=4 * math.pi * SIGMA**2)


def _one(values: NDArray[np.generic]) -> float | None:
    """The value of one thing in a picture of counts ``[H, W]``; None where it is no such picture."""
    rows = max(1, math.ceil(values.size / LOOKED_AT))
    seen = np.asarray(values[::rows], dtype=np.float64)  # whole rows, for neighbours are compared
    if not np.isfinite(seen).all() or seen.min() != 0 or np.count_nonzero(seen) > (1 - EMPTY) * seen.size:
        return None
    different = np.unique(seen)[1:]
    if not 0 < len(different) <= LEVELS:
        return None
    different = different[: max(1, len(different) - 1)]  # the largest may be where the scale ends
    multiples = np.round(different / different[0])
    one = float(different @ multiples / (multiples @ multiples))
    if np.abs(different / one - multiples).max() > WHOLE:
        return None
    counts = seen / one
    left, right = counts[:, :-1], counts[:, 1:]
    noise = float(np.square(left - right).mean()) / float((left + right).mean())
    few = float(counts[counts > 0].mean()) <= FEW
    return one if few and DISPERSION[0] <= noise <= DISPERSION[1] else None


def evened(image: Image) -> Image:
    """A density of counted things with noise that is even: the roots of its counts; other images as they are.

    A count has the variance of its mean, so that residuals would weigh dense tissue most, and take its chance for a misfit. The
    root of a count varies by one half wherever it is (Anscombe 1948). ``counted`` becomes 1: a value of about 1 is one thing, and
    an empty place stays known to be empty.
    """
    if image.counted is None:
        return image
    counts = image.data.to(torch.float32).clamp(min=0) * image.counted
    return image.replace(data=(counts + FEW_COUNTED).sqrt(), counted=1.0)
