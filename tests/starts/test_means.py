"""Means over neighbourhoods: those of plain windows to the bit, however they are handed to the kernel."""

from __future__ import annotations

import pytest
import torch

from regframe.starts.views import mean_around


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("width", [3, 5, 9, 21])
@pytest.mark.parametrize("shape", [(3, 2, 40, 33), (1, 1, 9, 64), (2, 2, 22, 24, 21)])
def test_means_are_those_of_plain_windows(shape: tuple[int, ...], width: int, inside: bool) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    plain, ndim = values, len(shape) - 2
    pool = torch.nn.functional.avg_pool2d if ndim == 2 else torch.nn.functional.avg_pool3d
    for d in range(ndim):
        size = tuple(width if k == d else 1 for k in range(ndim))
        plain = pool(plain, size, 1, tuple(n // 2 for n in size), count_include_pad=not inside)
    assert torch.equal(mean_around(values, width, inside), plain)
