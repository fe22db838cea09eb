"""regframe._host against dense numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

_host = pytest.importorskip("regframe._host", reason="the host module is not built")


def dense(points, weights, shape, origin, spacing, sigma):
    """Every point on every pixel, in float64: raster ``[C, H, W]``."""
    weights = np.asarray(weights, dtype=np.float64).reshape(len(points), -1)
    out = np.zeros((weights.shape[1], *shape))
    axes = [origin[d] + spacing[d] * np.arange(shape[d]) for d in range(2)]
    for (y, x), weight in zip(points, weights, strict=True):
        if not all(-0.5 <= (p - origin[d]) / spacing[d] <= shape[d] - 0.5 for d, p in enumerate((y, x))):
            continue
        kernel = np.exp(-0.5 * ((axes[0][:, None] - y) ** 2 + (axes[1][None] - x) ** 2) / sigma**2)
        out += weight[:, None, None] * (kernel / kernel.sum())
    return out


GRID = {"shape": (40, 52), "origin": (-3.0, 7.0), "spacing": (0.5, 0.7)}


def scattered(n, seed=0, margin=0.0):
    rng = np.random.default_rng(seed)
    low = np.array(GRID["origin"]) - np.array(GRID["spacing"]) / 2 - margin
    high = low + np.array(GRID["shape"]) * np.array(GRID["spacing"]) + 2 * margin
    return rng.uniform(low, high, (n, 2)), rng.uniform(0.5, 2.0, n)


@pytest.mark.parametrize("sigma", [0.12, 0.4, 0.9, 6.0])  # the first far below a pixel
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_splat_is_the_gaussian(sigma, dtype):
    points, weights = scattered(60)
    out, outside = _host.splat(points, weights.astype(dtype), **GRID, sigma=sigma)
    wanted = dense(points, weights, **GRID, sigma=sigma)
    assert out.shape == (1, *GRID["shape"])
    assert out.dtype == dtype
    assert outside == 0
    assert np.abs(out - wanted).max() < 1e-5 * wanted.max()
    np.testing.assert_allclose(out.sum(dtype=np.float64), weights.sum(), rtol=1e-6)


def test_splat_of_one_point_is_true_far_from_its_peak():
    out, _ = _host.splat(np.array([[5.2, 20.0]]), np.ones(1), **GRID, sigma=1.3)
    wanted = dense([[5.2, 20.0]], [1.0], **GRID, sigma=1.3)
    assert np.abs(out - wanted).max() < 1e-5 * wanted.max()


@settings(max_examples=30, deadline=None)
@given(
    y=st.floats(0, 1),
    x=st.floats(0, 1),
    sigma=st.floats(1e-3, 30.0),
    channels=st.integers(1, 3),
)
def test_every_point_on_the_canvas_keeps_its_weight(y, x, sigma, channels):
    low = np.array(GRID["origin"]) - np.array(GRID["spacing"]) / 2
    size = np.array(GRID["shape"]) * np.array(GRID["spacing"])
    point = low + size * np.clip([y, x], 1e-9, 1 - 1e-9)
    weights = np.arange(1.0, channels + 1)[None]
    out, outside = _host.splat(point[None], weights, **GRID, sigma=sigma)
    assert outside == 0
    np.testing.assert_allclose(out.sum(axis=(1, 2)), weights[0], rtol=1e-6)


def test_points_beyond_the_canvas_are_left_out_and_counted():
    points, weights = scattered(400, margin=3.0)
    index = (points - GRID["origin"]) / GRID["spacing"]
    inside = ((index >= -0.5) & (index <= np.array(GRID["shape"]) - 0.5)).all(axis=1)
    out, outside = _host.splat(points, weights, **GRID, sigma=0.8)
    assert outside == (~inside).sum() > 0
    np.testing.assert_allclose(out.sum(), weights[inside].sum(), rtol=1e-6)
    only, none = _host.splat(points[inside], weights[inside], **GRID, sigma=0.8)
    assert none == 0
    assert np.array_equal(out, only)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_threads_do_not_change_a_byte(dtype):
    points, _ = scattered(5000)
    weights = np.random.default_rng(1).normal(size=(5000, 2)).astype(dtype)
    one, _ = _host.splat(points, weights, shape=(100, 52), origin=(-3, 7), spacing=(0.2, 0.7), sigma=0.8, threads=1)
    for threads in (0, 2, 3):
        more, _ = _host.splat(points, weights, (100, 52), (-3, 7), (0.2, 0.7), 0.8, threads)
        assert np.array_equal(one, more)


def test_nothing_gives_an_empty_canvas():
    out, outside = _host.splat(np.zeros((0, 2)), np.zeros(0), **GRID, sigma=1.0)
    assert not out.any()
    assert outside == 0
    out, outside = _host.splat(np.zeros((1, 2)), np.ones(1), (0, 3), (0, 0), (1, 1), 1.0)
    assert out.shape == (1, 0, 3)
    assert outside == 1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"points": np.zeros((3, 3))}, ValueError, r"points must be \[N, 2\].*got \[3, 3\]"),
        ({"weights": np.zeros(2)}, ValueError, r"one row per point \(3\), got \[2\]"),
        ({"weights": np.zeros(3, dtype=np.int64)}, TypeError, r"weights must be float32 or float64, got int64"),
        ({"points": np.array([[1.0, 8.0], [np.nan, 8.0], [0.0, 0.0]])}, ValueError, r"points must be finite; row 1"),
        ({"points": np.array([[1.0, 8.0], [0.0, 8.0], [0.0, np.inf]])}, ValueError, r"points must be finite; row 2"),
        ({"weights": np.array([np.nan, 1, 1])}, ValueError, r"weights must be finite; row 0"),
        ({"sigma": 0.0}, ValueError, "sigma must be a finite length above 0"),
        ({"spacing": (1.0, -1.0)}, ValueError, "spacing needs two finite numbers above 0"),
        ({"shape": (-1, 3)}, ValueError, "shape needs sizes of 0 or more"),
        ({"threads": -1}, ValueError, "threads must be 0"),
    ],
)
def test_messages(changes, error, message):
    given = {"points": np.full((3, 2), 8.0), "weights": np.ones(3), **GRID, "sigma": 1.0, **changes}
    with pytest.raises(error, match=message):
        _host.splat(**given)
