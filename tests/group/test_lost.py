"""Tissue that a round has lost: found where it was taken out, in the round that lost it alone, and kept with the group."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fake_rounds import MAPS, SIZE, Register, rounds

import regframe as rf
from regframe.data import Image
from regframe.group import pairs
from regframe.report import groups

HOLE = (52.0, 40.0)
"""Middle of the tissue that was taken out, (y, x) in pixels of the first round."""


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Register:
    """`register` that knows the maps of rounds named a to f."""
    stand_in = Register({name: MAPS[k] for k, name in enumerate("abcdef")})
    monkeypatch.setattr(pairs, "register", stand_in)
    return stand_in


def torn(image: Image, k: int, radius: float = 20.0) -> Image:
    """A round without the tissue around `HOLE`: the background's values lie there."""
    matrix = torch.from_numpy(MAPS[k])
    at = image.grid.coords() @ matrix[:2, :2].T + matrix[:2, 2]
    gone = (at - torch.tensor(HOLE, dtype=torch.float64)).norm(dim=-1) < radius
    dark = torch.from_numpy(np.random.default_rng(9).poisson(20, image.grid.shape).astype(np.uint16))
    return image.replace(data=torch.where(gone, dark, image.data[0])[None])


def dice(said: torch.Tensor, known: torch.Tensor) -> float:
    """Overlap of two areas, 0 … 1."""
    return float(2 * (said & known).sum() / (said.sum() + known.sum()))


@pytest.mark.parametrize("n", [2, 4])
def test_lost_tissue_is_mapped_where_it_was_taken_out(known: Register, tmp_path: Path, n: int) -> None:
    images = rounds(n)
    images[1] = torn(images[1], 1)
    group = rf.register_group(images, reference="a", transform="affine")
    assert group.lost is not None
    assert group.lost.channels == ("tissue", *"abcd"[:n])
    grid = group.lost.grid
    assert grid.shape == (SIZE, SIZE)
    where = (grid.coords() - torch.tensor(HOLE, dtype=torch.float64)).norm(dim=-1) < 20
    assert dice(group.lost.data[2] > 0, where) > 0.85
    lost = [image["lost_fraction"] for image in group.metrics["images"]]
    assert lost[1] == pytest.approx(np.pi * 20**2 / SIZE**2, rel=0.25)
    assert max(lost[:1] + lost[2:]) < 0.02
    group.save(tmp_path / "g")
    again = rf.load_group(tmp_path / "g")
    assert again.lost is not None
    assert torch.equal(again.lost.data, group.lost.data)
    assert again.lost.channels == group.lost.channels
    table = (tmp_path / "g" / "rounds.csv").read_text(encoding="utf-8").splitlines()
    column = table[0].split(",").index("lost_fraction")
    assert float(table[2].split(",")[column]) == pytest.approx(lost[1], rel=1e-5)


def test_the_reference_may_be_the_one_that_lost_it(known: Register) -> None:
    images = rounds(3)
    images[0] = torn(images[0], 0)
    group = rf.register_group(images, reference="a", transform="affine")
    lost = [image["lost_fraction"] for image in group.metrics["images"]]
    assert lost[0] > 0.08
    assert max(lost[1:]) < 0.02


def test_what_one_image_alone_shows_is_nobodys_loss(known: Register) -> None:
    images = [torn(image, k) if k else image for k, image in enumerate(rounds(4))]
    group = rf.register_group(images, reference="a", transform="affine")
    assert max(image["lost_fraction"] for image in group.metrics["images"]) < 0.04


def test_an_image_without_a_place_has_no_loss(known: Register) -> None:
    known.verdicts = {p: ("fail", 0.0) for x in "abc" for p in ((x, "d"), ("d", x))}
    images = rounds(4)
    group = rf.register_group(images, transform="affine")
    assert group.lost is not None
    assert group.lost.channels == ("tissue", "a", "b", "c")
    assert group.metrics["images"][3]["lost_fraction"] is None
    assert groups.render(group, images).count("lost tissue of") == 3


def test_a_dimmer_round_has_lost_nothing(known: Register) -> None:
    images = rounds(3)
    images[2] = images[2].replace(data=(images[2].data.to(torch.float32) * 0.3 + 40).round().to(torch.uint16))
    group = rf.register_group(images, reference="a", transform="affine")
    assert max(image["lost_fraction"] for image in group.metrics["images"]) < 0.02
