"""Findings: the worst severity is the verdict, what matters most comes first, and every rule can fire."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest

from regframe import verdict
from regframe.verdict import Finding

IMAGES: dict[str, Any] = {
    "convergence": ["converged"],
    "overlap_fraction": 0.9,
    "coincidence": {"affine": 40.0, "final": 50.0},
    "explained_variance": {"start": 0.5, "affine": 0.6, "final": 0.7},
    "pose_margin": 0.8,
    "jacobian_min": 0.8,
    "jacobian_max": 1.2,
    "folding_fraction": 0.0,
    "roundtrip_px": {"mean": 0.001, "max": 0.01},
    "matching_fraction": 0.9,
}
"""Figures of a good map of two images."""
POINTS: dict[str, Any] = {
    "convergence": ["converged"],
    "likeness": 1.0,
    "matching_fraction": 0.9,
    "matching_fraction_moving": 0.9,
    "jacobian_min": 0.8,
    "jacobian_max": 1.2,
    "held_out": {"gain": 1.0, "error": 0.1},
    "model": "lddmm",
    "folding_fraction": 0.0,
    "roundtrip_px": {"mean": 0.001, "max": 0.01},
    "pose_margin": 0.8,
}
"""Figures of a good map of two clouds."""


def changed(figures: dict[str, Any], **changes: Any) -> dict[str, Any]:
    out = copy.deepcopy(figures)
    for key, value in changes.items():
        group, _, inner = key.partition("__")
        if inner:
            out[group][inner] = value
        else:
            out[group] = value
    return out


def test_conclusions() -> None:
    assert verdict.conclude([]) == {"verdict": "pass", "reasons": [], "findings": []}
    remark, look, wrong = Finding("pass", "a"), Finding("warn", "b", 1.0, 2.0), Finding("fail", "c", remedy="d")
    assert verdict.conclude([remark])["verdict"] == "pass"
    assert verdict.conclude([remark, look])["verdict"] == "warn"
    found = verdict.conclude([remark, look, wrong])
    assert found["verdict"] == "fail"
    assert found["reasons"] == ["c; d", "b", "a"]
    assert found["findings"][1] == {"severity": "warn", "sentence": "b", "figure": 1.0, "threshold": 2.0, "remedy": ""}


@pytest.mark.parametrize(
    ("changes", "severity", "says"),
    [
        ({"convergence": ["diverged"]}, "fail", "diverged"),
        ({"convergence": ["max_iter"]}, "warn", "iteration limit"),
        ({"overlap_fraction": 0.01}, "fail", "hardly overlap"),
        ({"overlap_fraction": 0.2}, "warn", "covers only 20%"),
        ({"explained_variance__final": 0.01, "explained_variance__start": 0.0, "coincidence__affine": 8.0},
         "fail", "nothing in common"),
        ({"coincidence__affine": 4.0, "coincidence__final": 6.0, "explained_variance__final": 0.3,
          "explained_variance__start": 0.2}, "fail", "no better here"),
        ({"coincidence__affine": 8.0, "coincidence__final": 12.0}, "warn", "hardly better here"),
        ({"explained_variance__start": 0.8}, "fail", "than its start"),
        ({"jacobian_max": 11.0}, "warn", "stretches tissue 11-fold"),
        ({"jacobian_min": 0.09}, "warn", "squeezes tissue 11-fold"),
        ({"jacobian_max": 101.0}, "fail", "stretches tissue 101-fold"),
        ({"jacobian_max": 3.5, "coincidence__affine": 12.0, "explained_variance__affine": 0.2}, "warn", "came from bending"),
        ({"folding_fraction": 0.01}, "warn", "folds over at 1.00% of the pixels"),
        ({"roundtrip_px__max": 0.2}, "warn", "disagree by up to 0.2 px"),
        ({"roundtrip_px__mean": math.inf, "roundtrip_px__max": math.inf}, "warn", "disagree by up to inf px"),
        ({"roundtrip_px__mean": math.nan}, "warn", "disagree"),
        ({"matching_fraction": 0.1}, "warn", "only 10%"),
        ({"pose_margin": 0.1}, "warn", "another placement"),
    ],
)  # fmt: skip
def test_rules_of_images(changes: dict[str, Any], severity: str, says: str) -> None:
    assert not list(verdict.of_images(IMAGES, 2))
    (finding,) = verdict.of_images(changed(IMAGES, **changes), 2)
    assert finding.severity == severity
    assert says in finding.sentence


SEEN: dict[str, Any] = IMAGES | {
    "confidence": 0.95,
    "place_confidence": 0.95,
    "counted": False,
    "evidence": 99.0,
    "agreement": {"agree": 50, "windows": 60, "against": 0, "sure": 40, "nats": 110.0, "drift": 0.0, "unit": 2.0},
}
"""Figures of a map that windows confirm."""


@pytest.mark.parametrize(
    ("changes", "severity", "says", "remedy"),
    [
        ({}, "pass", "confirmed (confidence 95 %): 50 of 60 windows", ""),
        ({"confidence": 0.999}, "pass", "over 99 %", ""),
        ({"pose_margin": 0.0}, "pass", "confirmed", ""),  # what windows decide needs no second pose
        ({"coincidence__affine": 1.0, "coincidence__final": 1.0, "explained_variance__final": 0.01,
          "explained_variance__start": 0.0}, "pass", "confirmed", ""),
        ({"confidence": 0.5, "place_confidence": 0.5, "agreement__against": 7}, "warn", "7 clearly best elsewhere", "landmarks"),
        ({"confidence": 0.3, "agreement__drift": 0.8}, "warn", "together 1.6 px off", "evaluate"),
        ({"confidence": 0.1, "place_confidence": 0.1}, "fail", "no evidence", "crop both"),
        ({"confidence": 0.1, "place_confidence": 0.1, "evidence": 301.0}, "warn", "not confirmed", "crop both"),
        ({"confidence": 0.1, "place_confidence": 0.1, "counted": True, "agreement__nats": 9.0}, "warn", "not confirmed", "crop"),
        ({"confidence": 0.1, "place_confidence": 0.1, "counted": True, "agreement__nats": 7.0}, "fail", "no evidence", "crop"),
        ({"confidence": 0.1, "place_confidence": 0.1, "counted": True, "agreement__sure": 1}, "fail", "no evidence", "crop"),
        ({"confidence": 0.01, "place_confidence": 0.01, "agreement__windows": 0, "agreement__nats": 0.0}, "fail", "too small",
         "pixel sizes"),
    ],
)  # fmt: skip
def test_what_windows_say_of_a_map(changes: dict[str, Any], severity: str, says: str, remedy: str) -> None:
    (finding,) = verdict.of_images(changed(SEEN, **changes), 2)
    assert finding.severity == severity
    assert says in finding.sentence
    assert remedy in finding.remedy
    assert (finding.figure, finding.threshold) != (None, None)


def test_another_pose_is_a_doubt_where_windows_do_not_decide() -> None:
    findings = verdict.of_images(changed(SEEN, confidence=0.75, pose_margin=0.0), 2)
    assert sorted(finding.severity for finding in findings) == ["pass", "warn"]


def test_what_confirms_a_map_does_not_excuse_what_contradicts_it() -> None:
    said = verdict.conclude(verdict.of_images(changed(SEEN, jacobian_max=101.0), 2))
    assert said["verdict"] == "fail"
    assert said["reasons"][0].endswith("which tissue does not do; try --transform affine")
    crop = list(verdict.of_images(changed(SEEN, overlap_fraction=0.2, matching_fraction=0.1), 2))
    assert {finding.severity for finding in crop} == {"pass"}  # a reminder, where windows confirm the map


def test_clouds_of_low_confidence_are_not_confirmed() -> None:
    assert not list(verdict.of_points(POINTS | {"confidence": 0.9}))
    (finding,) = verdict.of_points(POINTS | {"confidence": 0.3})
    assert finding.severity == "warn"
    assert "confidence 30 %" in finding.sentence


def test_clouds_without_evidence_fail() -> None:
    (finding,) = verdict.of_points(POINTS | {"confidence": 0.05})
    assert finding.severity == "fail"
    assert "no evidence" in finding.sentence
    assert "confidence 5 %" in finding.sentence


def test_another_pose_of_clouds_is_a_doubt_where_it_fits_as_well_or_the_map_is_not_sure() -> None:
    assert not list(verdict.of_points(POINTS | {"confidence": 0.95, "pose_margin": 0.15}))
    for doubtful in ({"confidence": 0.95, "pose_margin": 0.0}, {"confidence": 0.8, "pose_margin": 0.15}):
        (finding,) = verdict.of_points(POINTS | doubtful)
        assert finding.severity == "warn"
        assert "another placement" in finding.sentence


def test_of_volumes_a_mirrored_pose_is_a_remark_and_any_other_a_doubt() -> None:
    for mirrored, severity in ((True, "pass"), (False, "warn")):
        close = SEEN | {"pose_margin": 0.1, "runner_up": {"mirrored": mirrored}}
        said = [
            f
            for f in verdict.of_images(close, 3)
            if "mirror image fits" in f.sentence or "another placement" in f.sentence
        ]
        assert [finding.severity for finding in said] == [severity]
    unsure = SEEN | {"confidence": 0.5, "pose_margin": 0.1, "runner_up": {"mirrored": True}}
    assert "another placement" in " ".join(finding.sentence for finding in verdict.of_images(unsure, 3))


def test_evidence_counts_for_nothing_where_the_bend_tears() -> None:
    weak = changed(SEEN, confidence=0.1, place_confidence=0.1, evidence=500.0)
    assert verdict.conclude(verdict.of_images(weak, 2))["verdict"] == "warn"
    assert verdict.conclude(verdict.of_images(weak | {"jacobian_min": 0.03}, 2))["verdict"] == "fail"
    assert verdict.conclude(verdict.of_images(weak, 3))["verdict"] == "fail"  # of unlike volumes outlines give as much


def test_confidence_in_words() -> None:
    assert [verdict.spoken(x) for x in (0.0, 0.123, 0.98, 1.0)] == ["under 1 %", "12 %", "98 %", "over 99 %"]


def test_volumes_have_to_coincide_more_clearly_than_planes() -> None:
    figures = changed(IMAGES, coincidence__affine=12.0, coincidence__final=14.0)
    assert not list(verdict.of_images(figures, 2))
    assert [finding.severity for finding in verdict.of_images(figures, 3)] == ["warn"]


def test_fine_structure_that_the_bend_brings_home_is_believed_from_a_clear_pose_only() -> None:
    home = changed(IMAGES, coincidence__affine=4.0, coincidence__final=35.0)
    assert not list(verdict.of_images(home, 2))
    assert len(list(verdict.of_images(changed(home, pose_margin=0.1), 2))) == 2


@pytest.mark.parametrize(
    ("changes", "severity", "says"),
    [
        ({"convergence": ["diverged"]}, "fail", "diverged"),
        ({"likeness": 0.01}, "fail", "no structure in common"),
        ({"matching_fraction_moving": 0.05}, "fail", "only 5%"),
        ({"matching_fraction": 0.3}, "warn", "only 30%"),
        ({"jacobian_max": 12.0}, "warn", "changes areas 12-fold"),
        ({"held_out__gain": 0.1}, "warn", "not confirmed"),
        ({"jacobian_min": 0.3, "matching_fraction": 0.7}, "warn", "much bending brought only 70%"),
        ({"folding_fraction": 0.5}, "warn", "50.00% of the places"),
        ({"roundtrip_px__mean": 0.03}, "warn", "disagree"),
        ({"pose_margin": 0.2}, "warn", "another placement"),
    ],
)
def test_rules_of_points(changes: dict[str, Any], severity: str, says: str) -> None:
    assert not list(verdict.of_points(POINTS))
    (finding,) = verdict.of_points(changed(POINTS, **changes))
    assert finding.severity == severity
    assert says in finding.sentence


def test_an_import_is_never_passed() -> None:
    figures = {"overlap_fraction": 0.5, "folding_fraction": 0.0, "roundtrip_px": {"mean": 0.0, "max": 0.0}}
    assert verdict.conclude(verdict.of_import(figures, "a.h5 (itk)"))["verdict"] == "warn"
    assert verdict.conclude(verdict.of_import(figures | {"overlap_fraction": 0.0}, "a.h5 (itk)"))["verdict"] == "fail"


def test_a_stack_fails_where_most_of_it_has_no_place() -> None:
    section = {"name": "s", "placed": True, "verdict": "pass"}
    lost = section | {"placed": False, "verdict": "fail"}
    assert not list(verdict.of_stack([section] * 5, [], []))
    assert [f.severity for f in verdict.of_stack([section, lost, section], [], [])] == ["warn"]
    assert [f.severity for f in verdict.of_stack([section, lost, lost], [], [])] == ["fail"]
    found = verdict.of_stack([section, section | {"verdict": "warn"}], ["s"], [3, 4])
    assert [f.severity for f in found] == ["warn", "warn", "pass"]
