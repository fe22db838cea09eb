"""Which of two fits of a pair of images is taken: the second only after a doubtful first one, and only if it is likelier."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import regframe as rf
from regframe.solvers import images, raster
from regframe.solvers.images import GAIN, KEPT, SETTLED, Images
from regframe.verdict import CONFIRMED, TOGETHER

AGREE = {"together": 0, "nats": 100.0}
AGAINST = {"together": TOGETHER, "nats": 100.0}
IMAGE = rf.Image(torch.rand((1, 16, 18)), rf.Grid((16, 18)), ("a",))


def chosen(
    monkeypatch: pytest.MonkeyPatch, first: dict[str, Any], second: dict[str, Any], **pair: bool
) -> tuple[str, int]:
    """Which of two fits with these figures is taken, ``first`` or ``second``, and how many were made."""
    told = {"confidence": 0.9, "place_confidence": 0.9, "evidence": 100.0, "agreement": AGREE}
    fits = {"first": told | first, "second": told | second}
    made: list[str] = []

    def fitted(compared: Any, done: Any, grid: Any) -> Any:
        made.append(done.name)
        return SimpleNamespace(figures=fits[done.name], name=done.name)

    def done(name: str) -> Any:
        return SimpleNamespace(name=name, fit=SimpleNamespace(lost=False), cells=None)

    compared = SimpleNamespace(**{"stained": False, "counted": False} | pair)
    monkeypatch.setattr(Images, "compare", lambda self, task: compared)
    monkeypatch.setattr(Images, "otherwise_compared", lambda self, task, pair: compared)
    monkeypatch.setattr(images, "recipe_of", lambda pair: None)
    monkeypatch.setattr(raster, "run", lambda *_: done("first"))
    monkeypatch.setattr(raster, "by_cells", lambda done, *_: done)
    monkeypatch.setattr(raster, "again", lambda *_: done("second"))
    monkeypatch.setattr(raster, "fitted", fitted)
    task = SimpleNamespace(fixed=IMAGE, moving=IMAGE, metric=None)
    out: Any = Images().fit(task)  # type: ignore[arg-type]
    return out.name, len(made)


def test_a_settled_map_is_not_fitted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch, {"confidence": SETTLED}, {"confidence": 0.99}) == ("first", 1)


def test_a_doubtful_one_gives_way_to_a_likelier_one(monkeypatch: pytest.MonkeyPatch) -> None:
    doubtful = {"confidence": SETTLED - 0.01}
    assert chosen(monkeypatch, doubtful, {"confidence": SETTLED - 0.01 + 1.1 * GAIN}) == ("second", 2)
    assert chosen(monkeypatch, doubtful, {"confidence": SETTLED - 0.01 + 0.9 * GAIN}) == ("first", 2)  # as good
    assert chosen(monkeypatch, doubtful, {"confidence": SETTLED - 0.02}) == ("first", 2)


def test_a_little_evidence_may_be_lost_by_that_and_not_much(monkeypatch: pytest.MonkeyPatch) -> None:
    likelier = {"confidence": 0.98}
    assert chosen(monkeypatch, {"evidence": 100.0}, likelier | {"evidence": 100 * KEPT})[0] == "second"
    assert chosen(monkeypatch, {"evidence": 100.0}, likelier | {"evidence": 99 * KEPT})[0] == "first"
    neither = {"confidence": 0.1}, {"confidence": 0.3, "evidence": 99.0}  # none of it by a map that is not confirmed
    assert chosen(monkeypatch, *neither)[0] == "first"


@pytest.mark.parametrize("kind", ["stained", "counted"])
def test_other_kinds_are_fitted_again_where_they_are_not_confirmed(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    assert chosen(monkeypatch, {"confidence": CONFIRMED}, {"confidence": 0.98}, **{kind: True}) == ("first", 1)
    below = {"confidence": CONFIRMED - 0.01}
    assert chosen(monkeypatch, below, {"confidence": 0.98}, **{kind: True}) == ("second", 2)


@pytest.mark.parametrize("stained", [False, True])
def test_a_confirmed_map_that_windows_contradict_together_is_fitted_again(
    monkeypatch: pytest.MonkeyPatch, stained: bool
) -> None:
    first = {"confidence": 0.98, "agreement": AGAINST}
    second = {"confidence": 0.97, "agreement": {"together": 1, "nats": 101.0}}
    assert chosen(monkeypatch, first, second, stained=stained) == ("second", 2)
    assert chosen(monkeypatch, first, second | {"agreement": AGAINST | {"nats": 101.0}}, stained=stained)[0] == "first"
    assert chosen(monkeypatch, first, second | {"agreement": AGREE | {"nats": 99.0}}, stained=stained)[0] == "first"
    assert chosen(monkeypatch, first, second | {"confidence": CONFIRMED - 0.1}, stained=stained)[0] == "first"
    assert chosen(monkeypatch, first, second, counted=True) == ("first", 1)
