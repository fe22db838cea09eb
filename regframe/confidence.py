"""How sure a map is: the share of maps with such figures that are right, from few figures by a logistic function.

A map's log-odds of being right are a constant and a sum of features times coefficients, which are stated below, each model with
the population it was fitted on. ``python -m benchmarks.proving.calibrate`` fits them again on another harvest. What a feature
may do is stated too: no confidence rises by a figure getting worse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Model:
    """A logistic function of the figures of one kind of pair.

    Args:
        features: takes the figures of a map (``metrics.json``) to the features by name, or to None where they are not there.
        signs: +1 where a feature can only raise the confidence, -1 where it can only lower it.
        constant: log-odds where all features are 0.
        coefficients: log-odds per unit of each feature.
        near: whether near misses count as right: the place is found, whatever the details.
    """

    features: Callable[[Figures], dict[str, float] | None]
    signs: Mapping[str, int]
    constant: float
    coefficients: Mapping[str, float]
    near: bool = False

    def __call__(self, figures: Figures) -> float | None:
        """The confidence, 0 … 1; None where the figures are not there."""
        found = self.features(figures)
        return None if found is None else logistic(self.log_odds(found))

    def log_odds(self, features: Mapping[str, float]) -> float:
        """Log-odds of a map with these features."""
        return self.constant + sum(self.coefficients[name] * value for name, value in features.items())


def logistic(x: float) -> float:
    """``1 / (1 + exp(-x))``."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


DRAWING = 0.06
"""Share of the pixels with contrast (`fit.agreement.textured`), of the side that has less, under which a pair is a drawing and
has no confidence: windows find nothing but outlines. Drawn discs and shapes have 0.02–0.057; 93 of 94 pairs of the proving
ground have more than 0.11, a sparse table of cells 0.07."""
MOST_NATS = 150.0
"""Nats of agreement from which more do not make a map likelier to be right."""
MOST_SURE = 60
"""Sure windows that agree, from which more do not make a map likelier to be right."""
MOST_DRIFT = 1.0
"""Pixels of the compared images by which neighbouring windows would be moved alike, from which more do not count."""
FEW = 8
"""Pairs of neighbouring windows that a drift counts half from: of few it is mostly noise."""


def of_images_features(figures: Figures) -> dict[str, float] | None:
    """Features of a map of two images: how windows agree with it (`fit.agreement`), and what it does to areas.

    * ``nats``: logarithm of 1 + the nats of agreement.
    * ``sure``: logarithm of 1 + the number of sure windows that agree.
    * ``against``: share of the sure windows that speak against the map.
    * ``drift``: pixels of the compared images by which neighbouring windows would be moved alike.
    * ``area``: logarithm of the largest change of an area by the bend.
    """
    found = figures.get("agreement")
    if not found:
        return None
    low, high = figures["jacobian_min"], figures["jacobian_max"]
    return {
        "nats": math.log1p(min(found["nats"], MOST_NATS)),
        "sure": math.log1p(min(found["sure"] - found["against"], MOST_SURE)),
        "against": (found["against"] + 0.5) / (found["sure"] + 1.0),
        "drift": min(found["drift"], MOST_DRIFT) * found["neighbours"] / (found["neighbours"] + FEW),
        "area": math.log(max(high, 1 / max(low, 1e-3), 1.0)),
    }


IMAGES = Model(
    of_images_features,
    {"nats": 1, "sure": 1, "against": -1, "drift": -1, "area": -1},
    -2.4,
    {"nats": 0.69, "sure": 0.74, "against": -5.4, "drift": -15.6, "area": -1.2},
)
"""Two images of a plane, cells drawn as densities among them. Population: 103 maps of ``benchmarks.proving`` (seeds 0–3 of 17
kinds, 26 pairs of `unrelated`, 9 of `strangers`), 54 of them right, 40 far off or unrelated. Cross-validated: expected
calibration error 0.04, area under the ROC 0.98. Right means there a median error within half a pixel or twice the best
attainable: of sections that lie further apart than those the confidence is too low."""


def of_place_features(figures: Figures) -> dict[str, float] | None:
    """Those of `of_images_features` that tell the place: ``nats``, ``sure`` and ``against``."""
    found = of_images_features(figures)
    return None if found is None else {name: found[name] for name in ("nats", "sure", "against")}


PLACE = Model(
    of_place_features,
    {"nats": 1, "sure": 1, "against": -1},
    -0.51,
    {"nats": 0.35, "sure": 0.70, "against": -13.7},
    near=True,
)
"""Whether the place is found. Population: that of `IMAGES`, its 9 near misses among the right ones: 63 of 103."""

MOST_LIKENESS = 3.0
"""Nats per point from which a greater likeness does not make a map likelier to be right."""


def of_points_features(figures: Figures) -> dict[str, float] | None:
    """Features of a map of two clouds.

    * ``likeness``: nats per point by which the moving cloud explains the fixed one better than a blur does.
    * ``scale``: logarithm of the standard deviation of the distance between partners, in fixed pixels.
    * ``partners``: share of the points with a partner, on the side that has fewer.
    """
    if figures.get("likeness") is None or not figures.get("scale_px"):
        return None
    return {
        "likeness": min(max(figures["likeness"], 0.0), MOST_LIKENESS),
        "scale": math.log(max(figures["scale_px"], 1e-2)),
        "partners": min(figures["matching_fraction"], figures["matching_fraction_moving"]),
    }


POINTS = Model(
    of_points_features,
    {"likeness": 1, "scale": -1, "partners": 1},
    -11.0,
    {"likeness": 2.5, "scale": -2.3, "partners": 10.0},
)
"""Two clouds of a plane. Population: 46 maps of ``benchmarks.proving`` (seeds 0–27 of `points`, the bare ones of `strangers`), 26
of them right: one set of cells measured twice, 100–1200 of them. Cross-validated: area under the ROC 1.00, expected
calibration error 0.07 (too few maps to know it better). Of clouds whose points are no longer the same ones, such as the
shapes of two individuals, the confidence is too low."""
MODELS = {"images": IMAGES, "place": PLACE, "points": POINTS}
"""Every model: of the two kinds of pairs, and ``place`` of images, too."""


def of_images(figures: Figures, shape: tuple[int, ...]) -> float | None:
    """Confidence of a map of two images, from its figures; ``shape`` is that of the fixed one.

    None for volumes and for a section in a volume, to a population of which no model was fitted yet, and for drawings.
    """
    drawn = figures.get("agreement", {}).get("textured", 1.0) < DRAWING
    return IMAGES(figures) if len(shape) == 2 and not drawn else None


def of_place(figures: Figures) -> float:
    """Confidence that a map of two images has found the place, near misses and rough bends included."""
    return PLACE(figures) or 0.0


def of_points(figures: Figures, ndim: int) -> float | None:
    """Confidence of a map of two clouds of ``ndim`` axes, from its figures; None in a volume, where no model was fitted."""
    return POINTS(figures) if ndim == 2 else None
