"""The local correlation's CUDA kernels without a GPU, as in ``test_cuda_on_host``, against the reference."""

import math

import pytest
import torch
from test_correlation import CLOSE, FLOOR, case
from test_cuda_on_host import device, library, pytestmark, relative  # noqa: F401  # fixtures, and what they need

from regframe import reference


@pytest.mark.parametrize(
    ("shape", "dtype", "channels", "radius", "signed"),
    [
        ((23, 37), torch.float32, 1, 8, False),
        ((12, 33), torch.float64, 3, 1, True),
        ((5, 9, 12), torch.float32, 1, 2, True),
        ((5, 1, 12), torch.float64, 2, 100, False),
    ],
)
def test_it_agrees_with_the_reference(library, device, shape, dtype, channels, radius, signed):  # noqa: F811
    device(processors=1)
    arguments = case(shape, dtype, channels=channels)
    out = library.correlation(*arguments, radius, FLOOR, signed, True)
    for a, b in zip(out, reference.correlation(*arguments, radius, FLOOR, signed, True), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert relative(a, b) < CLOSE[dtype]
    assert torch.equal(library.correlation(*arguments, radius, FLOOR, signed, False)[0], out[0])


def test_who_comes_first_does_not_matter(library, device):  # noqa: F811
    arguments = case((20, 31))
    runs = []
    for seed, processors in ((0, 1), (1, 1), (2, 3)):
        device(seed, processors=processors)
        runs.append(library.correlation(*arguments, 4, FLOOR, False, True))
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    for a, b in zip(runs[0], runs[2], strict=True):
        assert relative(a, b) < 1e-7


def test_pixels_without_weight_are_not_seen(library, device):  # noqa: F811
    device()
    warped, fixed, weight = case((20, 31))
    weight[:, :15] = 0
    here = library.correlation(warped, fixed, weight, 4, FLOOR, False, True)
    dirty = [torch.where(weight > 0, side, math.nan) for side in (warped, fixed)]
    for a, b in zip(here, library.correlation(*dirty, weight, 4, FLOOR, False, True), strict=True):
        assert torch.equal(a, b)
    assert all(not t.any() for t in library.correlation(warped, fixed, torch.zeros_like(weight), 4, FLOOR, False, True))
    assert all(not t.any() for t in library.correlation(warped[:, :0], fixed[:, :0], weight[:0], 4, FLOOR, False, True))
    assert library.correlation(warped, fixed, weight * math.nan, 4, FLOOR, False, True)[0].isnan()
