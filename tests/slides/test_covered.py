"""Which parts of a canvas surely lie within the image that is carried onto it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import regframe
from regframe.data import Grid, Image
from regframe.maps.affine import Affine
from regframe.maps.flow import Flow
from regframe.maps.sequence import Sequence
from regframe.slides.levels import pyramid_of
from regframe.slides.warp import SlideOptions, SlideWarp


def test_what_is_covered_has_no_background() -> None:
    grid = Grid((96, 128), (1.0, 1.0), (0.0, 0.0))
    random = np.random.default_rng(0)
    nodes = Grid((13, 17), (8.0, 8.0))
    velocity = torch.from_numpy(random.normal(0, 1.5, (1, 2, 13, 17))).to(torch.float32)
    matrix = torch.tensor([[0.98, -0.17, 9.0], [0.17, 0.98, -7.0], [0, 0, 1]], dtype=torch.float64)
    maps: list[regframe.Transform] = [
        Affine.identity(2),
        Affine(matrix),
        Sequence((Affine(matrix), Flow(velocity, nodes, 4))),
    ]
    image = Image(torch.full((1, 96, 128), 255, dtype=torch.uint8), grid, ("0",))
    for map_ in maps:
        plan = SlideWarp(pyramid_of(image), map_, grid, Path("never.zarr"), SlideOptions(background=0.0))
        found = []
        for row in range(0, 96, 16):
            for column in range(0, 128, 16):
                region = slice(row, row + 16), slice(column, column + 16)
                found.append((plan.covered(region), bool((plan.pixels(region) == 255).all())))
        assert all(whole for covered, whole in found if covered)
        assert sum(covered for covered, _ in found) >= 0.5 * sum(whole for _, whole in found)
