"""Confidence: between 0 and 1, never raised by a figure that gets worse, None where nothing is known of the kind of pair."""

from __future__ import annotations

from typing import Any

import pytest

from regframe import confidence, verdict

WINDOWS = {
    "windows": 60,
    "agree": 50,
    "sure": 40,
    "against": 1,
    "nats": 150.0,
    "drift": 0.0,
    "neighbours": 90,
    "unit": 1.0,
}
IMAGES: dict[str, Any] = {"agreement": WINDOWS, "jacobian_min": 0.9, "jacobian_max": 1.1, "evidence": 1000.0}
POINTS: dict[str, Any] = {"likeness": 2.0, "scale_px": 0.2, "matching_fraction": 0.9, "matching_fraction_moving": 0.8,
                         "jacobian_min": 0.9, "jacobian_max": 1.1}  # fmt: skip


def windows(**changes: float) -> dict[str, Any]:
    return IMAGES | {"agreement": WINDOWS | changes}


def sure(figures: dict[str, Any]) -> float:
    value = confidence.of_images(figures, (100, 100))
    assert value is not None
    return value


def test_every_coefficient_has_the_sign_that_is_stated() -> None:
    for model in confidence.MODELS.values():
        assert set(model.signs) == set(model.coefficients)
        assert all(model.coefficients[name] * sign >= 0 for name, sign in model.signs.items())


@pytest.mark.parametrize(
    "worse",
    [
        windows(nats=20.0),
        windows(sure=5, against=0),
        windows(against=20),
        windows(drift=0.5),
        IMAGES | {"jacobian_max": 8.0},
        IMAGES | {"evidence": 50.0},
    ],
)
def test_worse_figures_lower_the_confidence(worse: dict[str, Any]) -> None:
    assert 0 < sure(worse) < sure(IMAGES) < 1
    assert sure(IMAGES) > verdict.CONFIRMED


def test_no_window_is_no_evidence() -> None:
    none = windows(windows=0, agree=0, sure=0, against=0, nats=0.0, neighbours=0) | {"evidence": 0.0}
    assert sure(none) < verdict.NO_EVIDENCE
    assert confidence.of_place(none) < verdict.NO_EVIDENCE


def test_a_drift_says_nothing_of_the_place() -> None:
    drifting = windows(drift=0.8)
    assert sure(drifting) < 0.1
    assert confidence.of_place(drifting) == pytest.approx(confidence.of_place(windows()))
    assert confidence.of_place(drifting) > verdict.CONFIRMED
    few = windows(drift=0.8, neighbours=1)  # of one pair of neighbours it is mostly noise
    assert sure(drifting) < sure(few)


def test_a_drift_counts_less_where_few_windows_show_the_same() -> None:
    alike, neighbouring = (windows(drift=0.3, agree=agree) for agree in (55, 25))
    assert sure(alike) < verdict.CONFIRMED < sure(neighbouring)


def test_a_drift_counts_in_pixels_of_the_coarser_side() -> None:
    fine = windows(drift=0.3, coarse=8.0)
    assert sure(windows(drift=0.3, unit=2.0)) < sure(windows(drift=0.3)) < sure(fine) < sure(IMAGES)


def test_points() -> None:
    assert (confidence.of_points(POINTS, 2) or 0) > 0.9
    assert (confidence.of_points(POINTS | {"likeness": 0.05, "scale_px": 1.5, "matching_fraction": 0.5}, 2) or 1) < 0.1


def test_volumes() -> None:
    whole = (40, 50, 60)
    right, strange = IMAGES | {"evidence": 600.0}, IMAGES | {"evidence": 60.0}
    assert (confidence.of_images(right, whole) or 0) > verdict.CONFIRMED
    assert (confidence.of_images(strange, whole) or 1) < verdict.NO_EVIDENCE
    assert confidence.of_place(strange, 3) < verdict.NO_EVIDENCE
    assert confidence.of_images(right, (1, 50, 60)) is None  # a section in a volume


def test_evidence_that_no_judge_gave_counts_as_none() -> None:
    assert sure(IMAGES | {"evidence": None}) == sure(IMAGES | {"evidence": 0.0}) == sure(IMAGES | {"evidence": -9.0})


def test_a_map_that_tears_has_not_found_the_place() -> None:
    torn = IMAGES | {"jacobian_min": 0.02, "jacobian_max": 7.0, "evidence": 110.0}
    torn |= {"agreement": WINDOWS | {"nats": 69.0, "agree": 26, "sure": 12}}
    assert confidence.of_place(torn) < verdict.NO_EVIDENCE


def test_points_that_lie_on_each_other_by_chance_are_no_partners() -> None:
    few = POINTS | {"scale_px": 1e-9, "matching_fraction": 0.03, "matching_fraction_moving": 0.04, "likeness": 0.3}
    assert (confidence.of_points(few, 2) or 1) < verdict.DOUBTFUL


def test_of_other_kinds_nothing_is_known() -> None:
    assert confidence.of_images(IMAGES, (1, 100, 100)) is None
    unjudged = {name: value for name, value in IMAGES.items() if name != "evidence"}
    assert confidence.of_images(unjudged, (40, 40, 40)) is None  # volumes that no judge has seen
    assert confidence.of_images({"jacobian_min": 1.0, "jacobian_max": 1.0}, (100, 100)) is None
    assert confidence.of_points(POINTS, 3) is None
    assert confidence.of_images(windows(textured=0.03), (100, 100)) is None  # a drawing
    assert confidence.of_images(windows(textured=0.3), (100, 100)) is not None


def test_logistic_has_no_overflow() -> None:
    assert confidence.logistic(-1e4) == 0.0
    assert confidence.logistic(1e4) == 1.0
    assert confidence.logistic(0.0) == 0.5
