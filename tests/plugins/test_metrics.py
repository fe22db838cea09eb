"""The metrics that ship with regframe and the example's: values, gradients, weights, degenerate inputs."""

from __future__ import annotations

import copy
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import regframe as rf

ROOT = Path(__file__).resolve().parents[2]


def _example() -> rf.Metric:
    spec = importlib.util.spec_from_file_location("example_mi", ROOT / "plugins" / "example_mi" / "example_mi.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MutualInformation(bins=8)  # type: ignore[no-any-return]


METRICS: dict[str, Callable[[], rf.Metric]] = {
    "contrast": lambda: rf.metric("contrast"),
    "contrast, order 3": lambda: rf.metric("contrast", order=3),
    "ssd": lambda: rf.metric("ssd"),
    "ncc": lambda: rf.metric("ncc"),
    "ncc, signed": lambda: rf.metric("ncc", signed=True),
    "lncc": lambda: rf.metric("lncc", radius=2),
    "lncc, signed": lambda: rf.metric("lncc", radius=1, signed=True),
    "mi": lambda: rf.metric("mi", bins=12),
    "mi, 2 components": lambda: rf.metric("mi", bins=9, components=2),
    "nmi": lambda: rf.metric("nmi", bins=12),
    "ngf": lambda: rf.metric("ngf"),
    "mind": lambda: rf.metric("mind", radius=1, dilation=1),
    "mind, wide": lambda: rf.metric("mind", radius=2),
    "the example's mi": _example,
}


def sides(channels: int = 2, shape: tuple[int, ...] = (6, 7), dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Warped and fixed ``[C, *S]`` that have something to do with each other, and a weight ``[*S]``."""
    generator = torch.Generator().manual_seed(3)
    warped = 50 + 20 * torch.randn((channels, *shape), generator=generator, dtype=dtype)
    fixed = 3 - 0.02 * warped + 0.2 * torch.randn((channels, *shape), generator=generator, dtype=dtype)
    weight = torch.rand(shape, generator=generator, dtype=dtype)
    return warped, fixed, weight


def prepared(name: str, warped: Tensor, fixed: Tensor) -> rf.Metric:
    metric = METRICS[name]()
    grid = rf.Grid(tuple(warped.shape[1:]))
    metric.prepare(rf.Image(fixed, grid), rf.Image(warped.detach(), grid))
    return metric


@pytest.mark.parametrize("shape", [(6, 7), (4, 5, 3)], ids=["2D", "3D"])
@pytest.mark.parametrize("name", METRICS)
def test_gradient(name: str, shape: tuple[int, ...]) -> None:
    warped, fixed, weight = sides(shape=shape)
    metric = prepared(name, warped, fixed)
    moved = (0.9 * warped + 1).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: metric(x, fixed, weight), (moved,), eps=1e-5, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("shape", "hidden"),
    [((6, 7), (2, 3)), ((9, 9), (slice(3, 6), slice(4, 9))), ((5, 4, 6), (slice(0, 2), 1, slice(2, 4)))],
    ids=["a pixel", "a block", "3D"],
)
@pytest.mark.parametrize("name", METRICS)
def test_a_weight_of_zero_hides_pixels(
    name: str, shape: tuple[int, ...], hidden: tuple[int | slice, ...], dtype: torch.dtype
) -> None:
    warped, fixed, weight = sides(shape=shape, dtype=dtype)
    metric = prepared(name, warped, fixed)
    weight[hidden] = 0.0
    values, gradients = [], []
    for other in (False, True):
        x, y = warped.clone(), fixed.clone()
        if other:
            x[:, *hidden], y[:, *hidden] = 90.0, 9.0
        x.requires_grad_(True)
        value = metric(x, y, weight)
        value.backward()
        assert x.grad is not None
        assert x.grad[:, *hidden].abs().max() == 0
        values.append(value.item())
        gradients.append(x.grad)
    exact = dtype == torch.float64
    assert values[1] == pytest.approx(values[0], rel=1e-12 if exact else 1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9 if exact else 1e-3, atol=1e-12 if exact else 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["warped", "fixed", "both", "no weight", "one pixel"])
@pytest.mark.parametrize("name", METRICS)
def test_degenerate_inputs_stay_finite(name: str, case: str, dtype: torch.dtype) -> None:
    warped, fixed, weight = sides(dtype=dtype)
    if case == "one pixel":
        warped, fixed, weight = warped[:, :1, :1], fixed[:, :1, :1], weight[:1, :1]
    if case in ("warped", "both"):
        warped = torch.full_like(warped, 7.0)
    if case in ("fixed", "both"):
        fixed = torch.full_like(fixed, 7.0)
    if case == "no weight":
        weight = torch.zeros_like(weight)
    metric = prepared(name, warped, fixed)
    x = warped.clone().requires_grad_(True)
    value = metric(x, fixed, weight)
    value.backward()
    assert value.shape == ()
    assert value.dtype == dtype
    assert torch.isfinite(value)
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("name", METRICS)
def test_lower_is_better(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.nn.functional.avg_pool2d(torch.rand((1, 64, 64), generator=generator, dtype=torch.float64), 5, 1, 2)
    metric = prepared(name, image, image)
    weight = torch.ones(64, 64, dtype=torch.float64)
    values = [metric(image.roll(shift, dims=2), image, weight).item() for shift in (0, 1, 2, 4)]
    assert values == sorted(values)
    assert values[0] < values[1] - 1e-3


@pytest.mark.parametrize("name", [name for name in METRICS if name not in ("ssd", "the example's mi")])
def test_no_scale_matters(name: str) -> None:
    warped, fixed, weight = sides()
    value = prepared(name, warped, fixed)(0.9 * warped, fixed, weight)
    scaled = prepared(name, 1e3 * warped - 5, 1e-4 * fixed + 2)(1e3 * 0.9 * warped - 5, 1e-4 * fixed + 2, 7 * weight)
    assert scaled.item() == pytest.approx(value.item(), rel=1e-7)


@pytest.mark.parametrize("name", [name for name in METRICS if name not in ("ssd", "the example's mi")])
def test_polarity(name: str) -> None:
    warped, fixed, weight = sides()
    value = prepared(name, warped, fixed)(0.9 * warped, fixed, weight).item()
    inverted = prepared(name, -warped, fixed)(-0.9 * warped, fixed, weight).item()
    if name.endswith("signed"):
        assert inverted == pytest.approx(2 - value, rel=1e-9)
    else:
        assert inverted == pytest.approx(value, rel=1e-9)


def test_ncc_signed_minds_polarity() -> None:
    warped, _, weight = sides(1)
    assert prepared("ncc, signed", warped, -warped)(warped, -warped, weight).item() > 1.9
    assert prepared("ncc", warped, -warped)(warped, -warped, weight).item() < 1e-3


@given(
    name=st.sampled_from(sorted(set(METRICS) - {"ssd", "the example's mi"})),
    slopes=st.tuples(*[st.floats(0.01, 100.0)] * 2),
    shifts=st.tuples(*[st.floats(-100.0, 100.0)] * 2),
    mass=st.floats(0.01, 100.0),
)
@settings(max_examples=40)
def test_brightness_contrast_and_mass_do_not_matter(
    name: str, slopes: tuple[float, float], shifts: tuple[float, float], mass: float
) -> None:
    warped, fixed, weight = sides()
    other, target = slopes[0] * warped + shifts[0], slopes[1] * fixed + shifts[1]
    value = prepared(name, warped, fixed)(warped, fixed, weight).item()
    assert prepared(name, other, target)(other, target, mass * weight).item() == pytest.approx(
        value, rel=1e-5, abs=1e-6
    )


@given(
    seed=st.integers(0, 1000), shape=st.sampled_from([(1, 1), (2, 9), (8, 8), (3, 4, 5)]), channels=st.integers(1, 3)
)
@settings(max_examples=30)
def test_values_stay_in_their_range(seed: int, shape: tuple[int, ...], channels: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    warped, fixed = (torch.randn((c, *shape), generator=generator, dtype=torch.float64) for c in (channels, 2))
    weight = torch.rand(shape, generator=generator, dtype=torch.float64)
    ranges = {"ncc": (0, 1), "lncc": (0, 1), "mi": (-math.log(12), 0), "nmi": (0, 1), "ngf": (0, 1), "mind": (0, 1)}
    for name, (low, high) in ranges.items():
        assert low - 1e-9 <= prepared(name, warped, fixed)(warped, fixed, weight).item() <= high + 1e-9, name


@pytest.mark.parametrize("name", ["ngf", "mind"])
def test_what_is_remembered_of_the_fixed_side_is_never_stale(name: str) -> None:
    warped, fixed, weight = sides()
    metric = prepared(name, warped, fixed)
    before = metric(warped, fixed, weight).item()
    assert metric(warped, fixed, weight).item() == before
    fixed.numpy()[:, 2:4] += 0.3  # behind the back of any version counter
    changed = metric(warped, fixed, weight).item()
    assert changed != before
    fresh = METRICS[name]()
    fresh._scales, fresh._eta, fresh._floors = (  # type: ignore[attr-defined]
        metric._scales, getattr(metric, "_eta", None), getattr(metric, "_floors", None)  # type: ignore[attr-defined]
    )  # fmt: skip
    fresh._per_pixel = getattr(metric, "_per_pixel", ())  # type: ignore[attr-defined]
    fresh._stated, fresh._deviations = metric._stated, metric._deviations  # type: ignore[attr-defined]
    assert fresh(warped, fixed, weight).item() == changed
    weight.numpy()[0] = 0.0
    assert metric(warped, fixed, weight).item() == fresh(warped, fixed, weight.clone()).item()
    copied = copy.deepcopy(metric)
    assert copied._memory._kept is None  # type: ignore[attr-defined]
    assert copied(warped, fixed, weight).item() == metric(warped, fixed, weight).item()


@pytest.mark.parametrize("name", sorted(set(METRICS) - {"the example's mi"}))
def test_without_a_gradient_the_value_is_the_same(name: str) -> None:
    warped, fixed, weight = sides()
    metric = prepared(name, warped, fixed)
    with_gradient = metric(warped.clone().requires_grad_(True), fixed, weight)
    with torch.no_grad():
        without = metric(warped, fixed, weight)
    assert not without.requires_grad
    assert without.item() == with_gradient.item()
    unprepared = METRICS[name]()
    assert torch.isfinite(unprepared(warped, fixed, weight))


def test_contrast_explains_one_modality_by_another() -> None:
    warped, _, weight = sides(3, (12, 12))
    mixing = torch.tensor([[0.5, -1.0, 2.0], [1.0, 1.0, 0.0]], dtype=torch.float64)
    fixed = torch.einsum("fm,myx->fyx", mixing, warped) + 4  # [2, 12, 12]
    metric = rf.metric("contrast")
    assert metric(warped, fixed, weight).item() < 1e-5
    torch.testing.assert_close(metric.predict(warped), fixed, rtol=1e-4, atol=1e-3)  # type: ignore[attr-defined]
    assert metric.residual(warped, fixed).abs().max() < 1e-3  # type: ignore[attr-defined]
    square = (warped[:1] - 50) ** 2
    assert rf.metric("contrast", order=1)(warped, square, weight).item() > 0.5
    assert rf.metric("contrast", order=2)(warped, square, weight).item() < 1e-4


def test_contrast_is_the_weighted_ridge_minimum() -> None:
    warped, fixed, weight = sides()
    metric = rf.metric("contrast", ridge=0.1)
    value = metric(warped, fixed, weight)
    theta = metric.fit(warped, fixed, weight)  # type: ignore[attr-defined]
    x = metric._scales[1]  # type: ignore[attr-defined]
    y = metric._scales[0]  # type: ignore[attr-defined]
    z = ((warped - x[0][:, None, None]) / x[1][:, None, None]).reshape(2, -1)
    t = ((fixed - y[0][:, None, None]) / y[1][:, None, None]).reshape(2, -1)
    w = weight.reshape(-1) / weight.sum()

    def objective(candidate: Tensor) -> float:
        residual = candidate[:, :1] + candidate[:, 1:] @ z - t
        return ((w * residual**2).sum() + 0.1 * (candidate[:, 1:] ** 2).sum()).item() / 2

    assert objective(theta) == pytest.approx(value.item(), rel=1e-9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        step = 1e-2 * torch.randn(theta.shape, generator=generator, dtype=torch.float64)
        assert objective(theta + step) > value.item()


def test_lncc_is_the_correlation_of_each_box() -> None:
    warped, fixed, weight = sides(1, (5, 6))
    metric = prepared("lncc", warped, fixed)
    expected, total = 0.0, 0.0
    mean_f, mean_w = fixed.mean(), warped.mean()
    f = (fixed - mean_f) / fixed.std(correction=0)
    m = (warped - mean_w) / warped.std(correction=0)
    for i in range(5):
        for j in range(6):
            box = (slice(max(0, i - 2), i + 3), slice(max(0, j - 2), j + 3))
            w = weight[box] / weight[box].sum()
            a, b = m[0][box] - (w * m[0][box]).sum(), f[0][box] - (w * f[0][box]).sum()
            r2 = (w * a * b).sum() ** 2 / (((w * a * a).sum() + 1e-4) * ((w * b * b).sum() + 1e-4))
            expected += float(weight[i, j] * (1 - r2))
            total += float(weight[i, j])
    assert metric(warped, fixed, weight).item() == pytest.approx(expected / total, rel=1e-9)


def test_channels_that_differ() -> None:
    warped, fixed, weight = sides(3)
    for name in ("contrast", "ncc", "lncc", "mi", "mi, 2 components", "nmi", "ngf", "mind"):
        x = warped.clone().requires_grad_(True)
        value = prepared(name, warped, fixed[:1])(x, fixed[:1], weight)
        value.backward()
        assert torch.isfinite(value)
        assert x.grad is not None
        assert (x.grad.flatten(1).norm(dim=1) > 0).all()
    with pytest.raises(ValueError, match="wanted as many moving as fixed channels for ssd, got 3 and 1"):
        prepared("ssd", warped, fixed[:1])(warped, fixed[:1], weight)


def test_what_the_metrics_refuse() -> None:
    warped, fixed, weight = sides()
    with pytest.raises(ValueError, match="on one grid"):
        rf.metric("ncc")(warped, fixed[:, 1:], weight)
    with pytest.raises(ValueError, match="channels as in prepare"):
        prepared("contrast", warped, fixed)(warped[:1], fixed, weight)
    points = rf.PointSet(torch.zeros(2, 2))
    with pytest.raises(TypeError, match="wanted two images, got PointSet"):
        rf.metric("ncc").prepare(points, points)
    with pytest.raises(ValueError, match="wanted a fitted contrast map"):
        rf.metric("contrast").predict(warped)  # type: ignore[attr-defined]
    for name, options in [
        ("contrast", {"order": 4}),
        ("contrast", {"order": True}),
        ("contrast", {"ridge": 0.0}),
        ("lncc", {"radius": 0}),
        ("lncc", {"radius": 2.5}),
        ("ncc", {"signed": "yes"}),
        ("mi", {"bins": 4}),
        ("mi", {"bins": 32.0}),
        ("nmi", {"components": 0}),
        ("ngf", {"edge": 0.0}),
        ("ngf", {"edge": True}),
        ("ngf", {"edge": "high"}),
        ("mind", {"radius": -1}),
        ("mind", {"dilation": 0}),
        ("mind", {"radius": True}),
    ]:
        with pytest.raises(
            ValueError, match=r"^wanted (an? (order|positive|radius|dilation|number of)|signed).*, got "
        ):
            rf.metric(name, **options)


def test_only_once() -> None:
    """A second derivative is refused, not wrong."""
    warped, fixed, weight = sides()
    for name in ("lncc", "mi", "ngf", "mind"):
        x = warped.clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(prepared(name, warped, fixed)(x, fixed, weight) ** 2, x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            slope.sum().backward()


def test_likelihood() -> None:
    likely = {name for name, make in METRICS.items() if make().likelihood}
    assert likely == {"mi", "mi, 2 components", "the example's mi"}
