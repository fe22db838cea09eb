"""Refinements and stacks on the workers of a real cluster on this machine, one of which is killed: the bytes of one process."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_result import fake_result
from scipy.ndimage import gaussian_filter

import regframe as rf
from regframe.batch import pools
from regframe.data import Grid, Image, Pyramid
from regframe.slides import levels

pytestmark = pytest.mark.slow
SIDE = 2300


@pytest.fixture(scope="module")
def pool() -> Iterator[pools.Cluster]:
    pytest.importorskip("distributed")
    with pools.Cluster(workers=2) as found:
        yield found


def slide(folder: Path, shift: float, name: str) -> Path:
    """Cells on glass, moved by ``shift`` pixels, as a store."""
    cells = gaussian_filter(np.random.default_rng(0).standard_normal((SIDE, SIDE)).astype(np.float32), 2.0)
    pixels = torch.from_numpy((200 - np.clip(70 + 45 * cells / cells.std(), 0, 190)).astype(np.uint8))[None]
    image = Image(pixels, Grid((SIDE, SIDE)))
    matrix = torch.tensor([[1.0, 0.0, shift], [0.0, 1.0, -shift], [0.0, 0.0, 1.0]], dtype=torch.float64)
    whole: Pyramid = levels.pyramid_of(image)
    rf.warp_slide(whole, rf.Affine(matrix), image.grid, folder / f"{name}.zarr", workers=1)
    return folder / f"{name}.zarr"


def test_a_refinement_survives_a_worker(pool: pools.Cluster, tmp_path: Path) -> None:
    fixed, moving = slide(tmp_path, 0.0, "fixed"), slide(tmp_path, 1.5, "moving")
    grid = Grid((SIDE, SIDE))
    coarse = dataclasses.replace(
        fake_result(grid, grid, torch.eye(3, dtype=torch.float64), bend=2.0),
        weight_grid=(small := grid.resampled((8.0, 8.0))),
        weight=torch.ones(small.shape),
    )
    killed: list[int] = []

    def kill(step: rf.Progress) -> None:
        if not killed:
            killed.extend(pool._client.run(os.getpid).values())
            os.kill(killed[0], signal.SIGKILL)

    alone = rf.refine(coarse, fixed, moving, workers=1)
    spread = rf.refine(coarse, fixed, moving, client=pool, progress=kill, folder=tmp_path / "kept")
    assert len(killed) == 2
    assert alone.metrics["refinement"]["kept"] > 0
    for one, other in zip(alone.transform.parts(), spread.transform.parts(), strict=True):
        if isinstance(one, rf.Flow):
            assert isinstance(other, rf.Flow)
            assert torch.equal(one.velocity, other.velocity)
    own = rf.refine(coarse, fixed, moving, client=pool._client)  # a distributed.Client
    assert torch.equal(own.transform.points(grid.corners()), alone.transform.points(grid.corners()))


def test_a_stack_is_spread(pool: pools.Cluster) -> None:
    y, x = np.mgrid[:72, :84].astype(np.float64)
    inside = ((y - 34) / 24) ** 2 + ((x - 40) / 30) ** 2 < 1
    values = np.where(inside, 90 + 25 * np.cos(x / 3 + y / 7) + 20 * np.sin(x * y / 90), 5.0).astype(np.float32)
    whole = Image(torch.from_numpy(values)[None], Grid((72, 84)))
    images = []
    for k in range(3):
        c, s = np.cos(0.05 * k), np.sin(0.05 * k)
        matrix = torch.tensor([[c, -s, 2.0 * k], [s, c, -k], [0.0, 0.0, 1.0]], dtype=torch.float64)
        images.append(rf.resample(whole, rf.Affine(matrix), whole.grid, background=5.0).replace(name=f"s{k}"))
    config = rf.Config.model_validate({"optimizer": {"max_iter": 5}})
    options = rf.StackOptions(check_mirrors=False)
    alone = rf.align_stack(images, transform="lddmm", options=options, config=config)
    spread = rf.align_stack(images, transform="lddmm", options=options, config=config, client=pool)
    for one, other in zip(alone.results, spread.results, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one.transform.points(whole.grid.corners()), other.transform.points(whole.grid.corners()))
