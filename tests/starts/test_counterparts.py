"""The other pose of what has two like halves."""

from __future__ import annotations

import numpy as np
import torch

import regframe as rf
from regframe.fit.halvings import Halvings
from regframe.starts import images


def with_two_halves() -> rf.Image:
    """Blobs ``[1, 96, 120]`` whose right half nearly repeats the left one."""
    rng = np.random.default_rng(4)
    y, x = np.mgrid[:96, :120].astype(float)
    out = np.zeros((96, 120))
    for _ in range(25):
        at, reach, height = rng.uniform((18, 18), (78, 58)), rng.uniform(3, 9), rng.uniform(0.3, 1)
        for side, weight in ((at[1], 1.0), (119 - at[1], rng.uniform(0.85, 1.0))):
            out += weight * height * np.exp(-((y - at[0]) ** 2 + (x - side) ** 2) / (2 * reach**2))
    return rf.Image(torch.from_numpy(out[None].astype(np.float32)), rf.Grid(out.shape, (1.0, 1.0)))


def test_the_counterpart_of_a_mirrored_pose_is_the_plain_one() -> None:
    sides = Halvings.of(with_two_halves()), Halvings.of(with_two_halves())
    views = [images.Views(side) for side in sides]
    plain = torch.eye(3, dtype=torch.float64)
    pair = images._Pair(*views, images.prior_of(*sides), plain, "affine")
    mirrored = torch.tensor([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    found = images._counterparts(pair, mirrored[None]).poses
    unmirrored = found[torch.linalg.det(found[:, :, :-1]) > 0]
    assert len(unmirrored)
    corners = torch.tensor([[-40.0, -50.0, 1.0], [40.0, 50.0, 1.0], [-40.0, 50.0, 1.0]])
    off = (corners @ (unmirrored.double() - plain[:2]).float().mT).norm(dim=-1).mean(dim=-1)
    assert float(off.min()) < 1.0
    assert float((corners @ (mirrored.double() - plain[:2]).float().mT).norm(dim=-1).mean()) > 50
