"""That `bends` still runs, and that the truth of made pairs is true."""

from pathlib import Path

import bends
import made
import numpy as np
import torch
from scipy.ndimage import map_coordinates

import regframe as rf


def _blobs(seed: int = 3) -> made.Array:
    rng = np.random.default_rng(seed)
    return 128 + 60 * made.field((160, 200), rng, ((8.0, 1.0),))[:1].repeat(3, axis=0)


def test_the_truth_of_a_made_pair_is_where_its_moving_image_was_read() -> None:
    """Without other cells or dyes, the moving image is the fixed one at the positions that the truth says."""
    still = _blobs()
    pair = made.neighbour("blobs", still, still, 5, cells=False)
    at = np.array([[40.0, 60.0], [100.0, 150.0], [77.0, 33.0]])
    there = pair.moving.data[0].numpy().astype(float)[tuple(at.astype(int).T)]
    np.testing.assert_allclose(there, map_coordinates(still[0], pair.original(at).T, order=1), atol=0.51)
    assert np.median(pair.before()) > 1


def test_made_pairs_are_the_same_each_time() -> None:
    """A seed makes one pair, another seed another."""
    still = _blobs()
    one, same, other = (
        made.neighbour("", still, made.other_cells(still, np.random.default_rng(k)), k, True) for k in (5, 5, 6)
    )
    assert torch.equal(one.moving.data, same.moving.data)
    assert not torch.equal(one.moving.data, other.moving.data)


def test_settings_and_a_bend(tmp_path: Path) -> None:
    """Settings are read as in JSON, the affine map is found once, and a bend from it is nearer the truth."""
    config = bends.config_of(["metric=contrast", "matching.enabled=false", "sobolev.scale=20"])
    assert (config.metric, config.matching.enabled, config.sobolev.scale) == ("contrast", False, 20.0)
    still = _blobs()
    pair = made.neighbour("blobs", still, still, 5, cells=False)
    start = bends.affine(pair, "made", tmp_path)
    assert torch.equal(start, bends.affine(pair, "made", tmp_path))
    assert len(list(tmp_path.iterdir())) == 1
    straight = np.median(pair.errors(bends.through(start, pair.q)))
    result = bends.bent(pair, start, rf.Config())
    assert np.median(pair.judge(result)) < 0.3 * straight
    same = result.to_moving(bends.probes(pair)).numpy()
    assert bends.apart(pair, same, same).split() == ["0.0000", "0.0000"]
