"""Evidence that a bend has made of two volumes that the affine map did not match is no evidence."""

from __future__ import annotations

from typing import Any

import pytest

from regframe import confidence, verdict

SHAPE = (50, 60, 40)


def sure(**changes: Any) -> float:
    """The confidence of a map of two volumes."""
    figures = {"agreement": {"sure": 40, "against": 0, "windows": 48}, "evidence": 600.0} | changes
    value = confidence.of_images(figures, SHAPE)
    assert value is not None
    return value


def test_a_bend_makes_no_evidence_of_its_own() -> None:
    assert sure(evidence_affine=60.0) < verdict.NO_EVIDENCE
    assert sure(evidence_affine=-5.0) == pytest.approx(sure(evidence=0.0))


def test_what_the_affine_map_has_earned_counts_as_it_did() -> None:
    assert (
        sure(evidence_affine=400.0) == sure(evidence_affine=600.0) == sure()
    )  # an older regframe tells no such figure


def test_more_evidence_of_the_affine_map_never_lowers_it() -> None:
    values = [sure(evidence_affine=nats) for nats in (0.0, 50.0, 150.0, 250.0, 350.0)]
    assert values == sorted(values)
    assert values[0] < values[-1]
