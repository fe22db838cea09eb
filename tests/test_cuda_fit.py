"""Whole fits with the CUDA kernels in place of the CPU's: compiled as C++ and run fiber by fiber (see `test_cuda_on_host`)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from test_cuda_on_host import device, library, pytestmark  # noqa: F401

import regframe as rf

KERNELS = ("warp", "_warp_backward", "contrast", "information", "correlation", "flow_points", "_flow_points_backward")


@pytest.fixture
def exchanged(library: Any, device: Callable[..., None]) -> Iterator[dict[str, int]]:  # noqa: F811
    """Calls of each kernel while those of CUDA stand in for the CPU's; all that calls them stays as it is."""
    device(processors=1)
    calls = dict.fromkeys(KERNELS, 0)
    instead = torch.library.Library("regframe", "IMPL")

    def counted(name: str) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            calls[name] += 1
            return getattr(library, name)(*args)

        return run

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says once that a kernel is replaced
        for name in KERNELS:
            instead.impl(name, counted(name), "CPU", allow_override=True)
    yield calls
    instead._destroy()


def bent_pair(shape: tuple[int, ...]) -> tuple[rf.Image, rf.Image]:
    """Two noisy images of one thing, the moving one bent by about a pixel and shifted by one."""
    rng = np.random.default_rng(3)
    image = gaussian_filter(rng.standard_normal(shape), 1.5)
    image /= image.std()
    at = np.meshgrid(*(np.arange(n, dtype=np.float64) for n in shape), indexing="ij")
    for axis in at:
        bend = gaussian_filter(rng.standard_normal(shape), min(shape) / 5)
        axis += 0.7 + bend / bend.std()
    moving = map_coordinates(image, at, order=3, mode="nearest")
    noise = rng.standard_normal((2, *shape)) / 20
    sides = [
        rf.Image.from_array((a + n).astype(np.float32), "zyx"[-len(shape) :])
        for a, n in zip((image, moving), noise, strict=True)
    ]
    return sides[0], sides[1]


@pytest.mark.parametrize(
    ("shape", "metric", "steps", "used"),
    [
        # few steps of the first: what differs by rounding parts by itself after a dozen, as two instruction sets do
        ((48, 40), "contrast", 6, {"warp", "contrast", "flow_points"}),
        ((48, 40), "lncc", 12, {"warp", "_warp_backward", "correlation", "flow_points"}),
        ((14, 12, 13), "contrast", 12, {"warp", "contrast"}),  # so small a volume keeps no bend
    ],
    ids=["contrast", "lncc", "volume"],
)
def test_a_fit_by_the_kernels_of_cuda_gives_the_same_map(
    request: pytest.FixtureRequest, shape: tuple[int, ...], metric: str, steps: int, used: set[str]
) -> None:
    fixed, moving = bent_pair(shape)
    config = rf.Config.model_validate({"optimizer": {"max_iter": steps}, "matching": {"rounds": 2}})
    found = []
    for there in (False, True):
        calls = request.getfixturevalue("exchanged") if there else {}
        found.append(rf.register(fixed, moving, metric=metric, init="identity", config=config))
    assert {name for name, count in calls.items() if count} >= used
    here, on_fibers = found
    at = moving.grid.coords()
    off = (here.transform.points(at) - on_fibers.transform.points(at)).norm(dim=-1)
    moved = (here.transform.points(at) - at).norm(dim=-1)
    assert float(moved.max()) > 0.5  # there was something to find
    assert float(off.max()) < 1e-3
    assert here.metrics["model"] == on_fibers.metrics["model"]
