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
    """

    features: Callable[[Figures], dict[str, float] | None]
    signs: Mapping[str, int]
    constant: float
    coefficients: Mapping[str, float]

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


MOST_NATS = 150.0
"""Nats of agreement from which more do not make a map likelier to be right."""
MOST_DRIFT = 4.0
"""Fixed pixels by which neighbouring windows would be moved alike, from which more do not count."""
FEW = 8
"""Pairs of neighbouring windows that a drift counts half from: of few it is mostly noise."""


def of_images_features(figures: Figures) -> dict[str, float] | None:
    """Features of a map of two images: how windows agree with it (`fit.agreement`), and what it does to areas.

    * ``nats``: logarithm of 1 + the nats of agreement.
    * ``share``: log-odds of a window to agree.
    * ``against``: share of the sure windows that speak against the map.
    * ``drift``: fixed pixels by which neighbouring windows would be moved alike.
    * ``area``: logarithm of the largest change of an area by the bend.
    """
    found = figures.get("agreement")
    if not found:
        return None
    low, high = figures["jacobian_min"], figures["jacobian_max"]
    agree, windows = found["agree"], found["windows"]
    return {
        "nats": math.log1p(min(found["nats"], MOST_NATS)),
        "share": math.log((agree + 0.5) / (windows - agree + 0.5)),
        "against": (found["against"] + 0.5) / (found["sure"] + 1.0),
        "drift": min(found["drift"], MOST_DRIFT) * found["neighbours"] / (found["neighbours"] + FEW),
        "area": math.log(max(high, 1 / max(low, 1e-3), 1.0)),
    }


IMAGES = Model(
    of_images_features,
    {"nats": 1, "share": 1, "against": -1, "drift": -1, "area": -1},
    -4.0,
    {"nats": 1.5, "share": 1.0, "against": -3.0, "drift": -1.0, "area": -1.0},
)
"""Two images of a plane."""
VOLUMES = IMAGES
MODELS = {"images": IMAGES}
"""Every model, by the kind of pair."""


def of_images(figures: Figures, shape: tuple[int, ...]) -> float | None:
    """Confidence of a map of two images, from its figures; ``shape`` is that of the fixed one.

    None for a section in a volume: no population of known ones was there to fit a model to.
    """
    return IMAGES(figures) if len(shape) == 2 else None
