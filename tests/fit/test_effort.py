"""How fine a fit of images goes."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner

import regframe as rf
from regframe import config as settings
from regframe.cli import main


def bent_pair(side: int = 96) -> tuple[rf.Image, rf.Image]:
    """A texture, and the same bent by two pixels."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand((1, 1, 14, 14), generator=generator)
    moving = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")[0]
    grid = rf.Grid((side, side))
    y, x = grid.coords().unbind(-1)
    bend = 2 * torch.stack([torch.sin(x / 15), torch.cos(y / 18)], dim=-1)
    where = (grid.coords() + bend) / (side - 1) * 2 - 1
    fixed = torch.nn.functional.grid_sample(
        moving[None], where.flip(-1)[None].float(), padding_mode="border", align_corners=True
    )
    return rf.Image(fixed[0], grid), rf.Image(moving, grid)


def fitted(effort: str) -> rf.Result:
    fixed, moving = bent_pair()
    config = rf.Config.model_validate({"optimizer": {"max_iter": 5}, "matching": {"rounds": 1}})
    return rf.register(fixed, moving, init="identity", effort=effort, config=config, metric="contrast")


@pytest.fixture(scope="module")
def full() -> rf.Result:
    return fitted("full")


def test_low_stops_at_a_preview(monkeypatch: pytest.MonkeyPatch, full: rf.Result) -> None:
    monkeypatch.setattr(settings, "PREVIEW", 3000)
    low = fitted("low")
    assert low.metrics["effort"]["finest_level"] == [48, 48]
    assert full.metrics["effort"]["finest_level"] == [96, 96]
    assert [run.config.effort for run in (low, full)] == ["low", "full"]
    at = bent_pair()[0].grid.coords().reshape(-1, 2)
    apart = (low.to_moving(at) - full.to_moving(at)).norm(dim=-1)
    assert 0 < float(apart.median()) < 1  # the same bend, less exact


def test_auto_is_as_exact_as_every_level(full: rf.Result) -> None:
    at = bent_pair()[0].grid.coords().reshape(-1, 2)
    auto = fitted("auto")
    assert torch.equal(auto.to_moving(at), full.to_moving(at))
    assert auto.metrics["effort"] == full.metrics["effort"]
    assert 0 < auto.metrics["effort"]["last_level_moved_px"] < 1


def test_other_words_are_refused() -> None:
    with pytest.raises(ValueError, match="'low', 'auto' or 'full'"):
        rf.register(*bent_pair(48), effort="high")
    said = CliRunner().invoke(main, ["register", "a.png", "b.png", "-o", "out", "--effort", "high"])
    assert said.exit_code == 2
    assert "'low', 'auto', 'full'" in said.output
