"""A fit that ran out of iterations says less sure where its positions lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

import regframe as rf

SIDE = 48


def bent_noise(seed: int) -> tuple[rf.Image, rf.Image]:
    rng = np.random.default_rng(seed)
    wide = (SIDE + 40, SIDE + 40)
    texture = gaussian_filter(rng.random(wide), 1.5) + 2 * gaussian_filter(rng.random(wide), 5)
    texture = (texture - texture.min()) / (texture.max() - texture.min())
    shift = np.stack([gaussian_filter(rng.standard_normal((SIDE, SIDE)), 14, mode="wrap") for _ in range(2)])
    shift *= 5 / np.linalg.norm(shift, axis=0).max()
    places = np.mgrid[:SIDE, :SIDE] + 20.0
    sides = (map_coordinates(texture, at, order=3).astype(np.float32) for at in (places, places + shift))
    fixed, moving = (rf.Image(torch.from_numpy(side[None]), rf.Grid((SIDE, SIDE))) for side in sides)
    return fixed, moving


@pytest.mark.parametrize("seed", [3])
def test_positions_of_a_fit_that_was_still_moving_are_less_sure(seed: int) -> None:
    pair = bent_noise(seed)
    at = rf.Grid((9, 9), (4.0, 4.0), (8.0, 8.0)).coords().reshape(-1, 2)
    found = {}
    for most in (3, 150):
        config = rf.Config.model_validate({"transform": "lddmm", "optimizer": {"max_iter": most, "tolerance": 1e-3}})
        found[most] = rf.register(*pair, init="identity", config=config)
    stopped, ended = found[3], found[150]
    assert stopped.metrics["convergence"][-1] == "max_iter"
    assert stopped.metrics["position_sd"]["still_to_move"] > 0
    assert "still_to_move" not in ended.metrics["position_sd"]
    assert stopped.position_sd is not None
    assert ended.position_sd is not None
    assert stopped.metrics["position_sd"]["median"] > 2 * ended.metrics["position_sd"]["median"]
    left = (stopped.to_moving(at) - ended.to_moving(at)).square().mean(dim=-1).sqrt()
    sd = stopped.position_sd[tuple(at.round().long().T)]
    assert float((left <= 2 * sd).double().mean()) > 0.9
