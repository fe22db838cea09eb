"""Windows that contradict a map in one place together, and what the verdict makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from regframe import verdict
from regframe.data import Grid
from regframe.fit.agreement import WINDOW, agreement
from regframe.fit.astray import ALIKE, together

SHOWN = torch.ones((4, 5), dtype=torch.bool)


def moves(there: dict[tuple[int, int], tuple[float, float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Moves ``[20, 2]`` of a lattice of 4 x 5 windows, and which of them contradict."""
    place, wrong = torch.zeros((4, 5, 2)), torch.zeros((4, 5), dtype=torch.bool)
    for at, move in there.items():
        place[at], wrong[at] = torch.tensor(move), True
    return place.reshape(-1, 2), wrong.flatten()


def test_neighbours_that_move_alike_are_one_group() -> None:
    near = {(0, 0): (6.0, 0.0), (1, 1): (7.0, 1.0), (1, 2): (9.0, 1.0)}
    at, move = together(*moves(near | {(3, 4): (6.0, 0.0)}), SHOWN)  # one is too far off to be a neighbour
    assert sorted(map(tuple, at.tolist())) == sorted(near)
    assert move[0].tolist() == [6.0, 0.0]


def test_neighbours_that_move_apart_are_not() -> None:
    at, _ = together(*moves({(0, 0): (6.0, 0.0), (0, 1): (6.0, ALIKE + 0.1), (1, 0): (-6.0, 0.0)}), SHOWN)
    assert len(at) == 1


def test_windows_that_are_not_shown_have_no_place() -> None:
    shown = SHOWN.clone()
    shown[0] = False
    at, _ = together(torch.full((15, 2), 5.0), torch.ones(15, dtype=torch.bool), shown)
    assert len(at) == 15
    assert at[:, 0].min() == 1
    none, move = together(torch.zeros((15, 2)), torch.zeros(15, dtype=torch.bool), shown)
    assert none.shape == move.shape == (0, 2)


def textures(flat: bool) -> tuple[Any, ...]:
    """A texture, and the same of which one corner lies 7 pixels further down; as two images for `agreement`."""
    base = gaussian_filter(np.random.default_rng(5).standard_normal((240, 264)), 2.0).astype(np.float32)
    moved = base.copy()
    moved[:120, :120] = np.roll(base, (7, 0), (0, 1))[:120, :120]
    shape = (1, *base.shape) if flat else base.shape
    grid = Grid(shape, (9.0, 0.5, 0.5)[-len(shape) :], (3.0, 10.0, 20.0)[-len(shape) :], "um")
    one, other = (torch.from_numpy(x.reshape(shape))[None] for x in (base, moved))
    return one, other, torch.ones(shape), grid


@pytest.mark.parametrize("flat", [False, True], ids=["plane", "one plane of a volume"])
def test_a_corner_that_lies_elsewhere_is_named(flat: bool) -> None:
    found = agreement(*textures(flat))
    assert found.together >= 12
    assert found.together <= found.against
    assert found.off == pytest.approx(7, abs=0.5)
    middle = (2.5 * WINDOW[2] - 0.5) * 0.5  # of 5 x 5 windows that lie wholly in it
    assert found.where[-2:] == pytest.approx((10 + middle, 20 + middle), abs=6)
    assert len(found.where) == (3 if flat else 2)


def test_images_that_agree_have_no_such_place() -> None:
    one, _, inside, grid = textures(False)
    found = agreement(one, one, inside, grid)
    assert (found.together, found.where, found.off) == (0, (), 0.0)


FIGURES: dict[str, Any] = {
    "agreement": {"together": verdict.TOGETHER, "where": [40.0, 41.5], "where_unit": "µm", "off": 5.0, "unit": 2.0},
}


@pytest.mark.parametrize(
    ("together_", "confidence", "ndim"), [(verdict.TOGETHER - 1, 0.95, 2), (9, 0.2, 2), (9, 0.95, 3)]
)
def test_few_of_them_or_a_map_that_is_not_confirmed_say_nothing(together_: int, confidence: float, ndim: int) -> None:
    figures = {"agreement": FIGURES["agreement"] | {"together": together_}}
    assert not list(verdict.in_one_place(figures, confidence, ndim))


def test_a_confirmed_map_that_is_wrong_in_one_place_is_left_for_a_look() -> None:
    (finding,) = verdict.in_one_place(FIGURES, 0.95, 2)
    assert finding.severity == "warn"
    assert "wrong near (40, 41.5) µm" in finding.sentence
    assert "10 px away" in finding.sentence
    assert not list(verdict.in_one_place({"agreement": {}}, 0.95, 2))  # what an older regframe has written
