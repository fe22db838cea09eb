"""The mutual information's CUDA kernels without a GPU, as in ``test_cuda_on_host``, against the reference."""

import math

import pytest
import torch
from test_cuda_fit import bent_pair, exchanged  # noqa: F401  # a fixture
from test_cuda_on_host import device, library, pytestmark, relative  # noqa: F401  # fixtures, and what they need
from test_information import case, twin

import regframe as rf


def run(library, arguments, bins=12, normalized=False):  # noqa: F811
    path, moving, fixed, weight = arguments
    return library.information(moving, fixed, weight, path.velocity, path.matrix, *path[4:], bins, normalized)


@pytest.mark.parametrize(
    ("ndim", "dtype", "lines", "bins", "shared", "normalized"),
    [
        (2, torch.float32, (1, 1), 32, 98304, False),
        (2, torch.float64, (2, 3), 9, 98304, True),
        (3, torch.float32, (1, 1), 5, 0, True),
        (3, torch.float64, (1, 2), 6, 98304, False),
    ],
)
def test_it_agrees_with_the_reference(library, device, ndim, dtype, lines, bins, shared, normalized):  # noqa: F811
    device(shared=shared, processors=1)
    arguments = case(ndim, dtype, lines=lines)
    out = run(library, arguments, bins, normalized)
    for a, b in zip(out, twin(arguments, bins, normalized), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert relative(a, b) < (1e-4 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("shared", [0, 98304])
def test_who_comes_first_does_not_matter(library, device, shared):  # noqa: F811
    arguments = case(2)
    runs = []
    for seed, processors in ((0, 1), (1, 1), (2, 1), (3, 3)):
        device(seed, shared, processors)
        runs.append(run(library, arguments))
    for other in runs[1:3]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))
    assert torch.equal(runs[0][0], runs[3][0])  # the histogram does not even depend on the number of blocks
    assert relative(runs[3][2], runs[0][2]) < 1e-9


def test_pixels_without_weight_are_not_seen(library, device):  # noqa: F811
    device()
    path, moving, fixed, weight = case(2)
    weight[:, : weight.shape[1] // 2] = 0
    here = run(library, (path, moving, fixed, weight))
    dirty = torch.where(weight > 0, fixed, math.nan)
    for a, b in zip(here, run(library, (path, moving, dirty, weight)), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(here, run(library, (path, moving, fixed, weight * 1e-20)), strict=True):
        assert relative(a, b) < 1e-6  # the unit of the sums follows the weights
    nothing = run(library, (path, moving, fixed, torch.zeros_like(weight)))
    assert all(not t.any() for t in nothing)
    empty = (path._replace(shape=(0, 5)), moving, fixed[:, :0, :5], weight[:0, :5])
    assert all(not t.any() for t in run(library, empty))
    assert run(library, (path, moving, fixed, weight * math.nan))[0].isnan()


def test_an_affine_fit_gives_the_same_map(request):
    fixed, moving = bent_pair((40, 36))
    config = rf.Config.model_validate({"optimizer": {"max_iter": 8}})
    found = []
    for there in (False, True):
        calls = request.getfixturevalue("exchanged") if there else {"information": 99}
        found.append(rf.register(fixed, moving, metric="mi", init="identity", transform="affine", config=config))
        assert calls["information"] > 5
    here, on_fibers = found
    at = moving.grid.coords()
    a, b = (result.transform.points(at) for result in (here, on_fibers))
    assert float((a - at).norm(dim=-1).max()) > 0.5  # there was something to find
    assert float((a - b).norm(dim=-1).max()) < 1e-3
