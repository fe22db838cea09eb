"""The metrics held against the formulas of their docstrings, written down slowly, and on data made for each."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_metrics import prepared, sides
from torch import Tensor

import regframe as rf


def value_and_gradient(metric: rf.Metric, warped: Tensor, fixed: Tensor, weight: Tensor) -> tuple[float, Tensor]:
    x = warped.clone().requires_grad_(True)
    value = metric(x, fixed, weight)
    value.backward()
    assert x.grad is not None
    return value.item(), x.grad


def texture(size: int = 48, seed: int = 0) -> Tensor:
    """A smooth random image ``[1, size, size]`` of mean 0 and deviation 1; it can be rolled, for it is periodic."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((size, size), generator=generator, dtype=torch.float64)
    k = torch.fft.fftfreq(size, dtype=torch.float64)
    blurred = torch.fft.ifft2(torch.fft.fft2(noise) * torch.exp(-100 * (k[:, None] ** 2 + k**2))).real
    return ((blurred - blurred.mean()) / blurred.std())[None]


def profile(name: str, moving: Tensor, fixed: Tensor, **options: object) -> dict[int, float]:
    """Values of a metric as the moving image is shifted along x; 0 is right."""
    metric, grid = rf.metric(name, **options), rf.Grid(tuple(fixed.shape[1:]))
    metric.prepare(rf.Image(fixed, grid), rf.Image(moving, grid))
    weight = torch.ones_like(fixed[0])
    return {shift: metric(moving.roll(shift, dims=-1), fixed, weight).item() for shift in range(-6, 7)}


def best(values: dict[int, float]) -> int:
    return min(values, key=lambda shift: values[shift])


# ---- mutual information ---------------------------------------------------------------------------------------------


def dense_information(m: Tensor, f: Tensor, weight: Tensor, bins: int) -> Tensor:
    """The joint histogram ``[bins, bins]`` of positions ``[N]`` in 0 … 1, with every pixel's weight for every bin."""
    at = torch.arange(bins, dtype=m.dtype)
    line = (1 - (f.clamp(0, 1)[:, None] * (bins - 1) - at).abs()).clamp_min(0)  # [N, bins]
    d = (1 + m.clamp(0, 1)[:, None] * (bins - 3) - at).abs()
    cubic = torch.where(d < 1, 2 / 3 - d**2 + d**3 / 2, (2 - d).clamp_min(0) ** 3 / 6)
    return torch.einsum("n,nf,nm->fm", weight / weight.sum(), line, cubic)


@pytest.mark.parametrize("name", ["mi", "nmi"])
def test_information_is_that_of_the_dense_histogram(name: str) -> None:
    warped, fixed, weight = sides(1, (20, 30))
    metric = prepared(name, warped, fixed)
    moved = (1.1 * warped).requires_grad_(True)  # some out of range
    low, high = warped.min(), warped.max()
    p = dense_information(
        ((moved - low) / (high - low)).flatten(),
        ((fixed - fixed.min()) / (fixed.max() - fixed.min())).flatten(), weight.flatten(), 12,
    )  # fmt: skip
    joint, of_fixed, of_moving = (-(q * q.clamp_min(1e-30).log()).sum() for q in (p, p.sum(1), p.sum(0)))
    expected = joint - of_fixed - of_moving if name == "mi" else 2 - (of_fixed + of_moving) / joint
    (slope,) = torch.autograd.grad(expected, moved)
    value, gradient = value_and_gradient(metric, moved.detach(), fixed, weight)
    assert value == pytest.approx(expected.item(), rel=1e-10)
    torch.testing.assert_close(gradient, slope, rtol=1e-7, atol=1e-10)
    beyond = (moved.detach() > high) | (moved.detach() < low)
    assert beyond.any()
    assert (gradient[beyond] == 0).all()


def test_information_in_chunks_and_in_float32() -> None:
    warped, fixed, weight = sides(1, (300, 310))  # more than two chunks
    exact, slope = value_and_gradient(rf.metric("mi"), warped, fixed, weight)
    value, gradient = value_and_gradient(rf.metric("mi"), warped.float(), fixed.float(), weight.float())
    assert value == pytest.approx(exact, rel=1e-5)
    edge = (gradient == 0) != (
        slope == 0
    )  # the pixel that sets an end of the range lies on it: inside or not by rounding
    assert edge.sum() <= 2
    assert (gradient - slope)[~edge].norm() < 1e-5 * slope.norm()


def test_information_of_a_relation_that_is_not_monotonic() -> None:
    moving = texture(seed=3)
    fixed = moving**2
    values = profile("mi", moving, fixed)
    assert best(values) == 0
    assert values[0] < min(v for shift, v in values.items() if shift) - 0.3
    assert best(profile("nmi", moving, fixed)) == 0
    assert best(profile("ncc", moving, fixed)) != 0


def test_information_does_not_count_outliers_into_the_range() -> None:
    moving = texture()
    spoilt = moving.clone()
    spoilt[0, 0, :2] = torch.tensor([1e6, -1e6])
    fixed = moving**2
    assert profile("mi", spoilt, fixed)[0] == pytest.approx(profile("mi", moving, fixed)[0], rel=0.1)


def test_information_of_an_image_that_is_almost_empty() -> None:
    """More pixels alike than the percentiles leave out: then the range is that of all."""
    moving = torch.zeros((1, 60, 60), dtype=torch.float64)
    moving[0, 30, 30] = 5.0
    values = profile("mi", moving, 3 - moving)
    assert best(values) == 0


def test_information_takes_the_principal_component() -> None:
    """Channels that are one image times different factors, and a weak other one."""
    image, other = texture(), texture(seed=1)
    moving = torch.cat([image, -2 * image, 3 * image + 0.3 * other])
    fixed = torch.cat([torch.exp(image), other * 0.2 + torch.exp(image)])
    together, alone = profile("mi", moving, fixed), profile("mi", image, torch.exp(image))
    assert best(together) == 0
    assert together[0] == pytest.approx(alone[0], rel=0.3)
    both = profile("mi", torch.cat([image, other]), torch.cat([other**2, image**2]), components=2)
    assert best(both) == 0


# ---- normalised gradient fields -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7, 8), (4, 5, 6)])
def test_gradient_fields_without_weights_are_those_of_the_paper(shape: tuple[int, ...]) -> None:
    warped, fixed, _ = sides(1, shape)
    metric = prepared("ngf", warped, fixed)
    both = []
    for image in (warped, fixed):
        standard = (image[0] - image.mean()) / image.std(correction=0)
        slope = torch.stack(torch.gradient(standard))  # [D, *S], one-sided at the border
        eta = slope.norm(dim=0).mean()
        both.append(slope / (slope.square().sum(dim=0) + eta**2).sqrt())
    expected = (1 - (both[0] * both[1]).sum(dim=0) ** 2).mean().item()
    assert metric(warped, fixed, torch.ones(shape, dtype=torch.float64)).item() == pytest.approx(expected, rel=1e-12)


def test_gradient_fields_of_one_channel_told_twice() -> None:
    warped, fixed, weight = sides(1)
    once = prepared("ngf", warped, fixed)(warped, fixed, weight).item()
    twice, other = warped.expand(2, -1, -1).clone(), torch.cat([fixed, -fixed, fixed])
    assert prepared("ngf", twice, other)(twice, other, weight).item() == pytest.approx(once, rel=1e-12)


def test_gradient_fields_know_the_spacing() -> None:
    """A volume of thick slices: a step along z is a steeper edge per pixel than per µm."""
    warped, fixed, weight = sides(1, (5, 6, 7))
    values = []
    for spacing in ((1.0, 1.0, 1.0), (5.0, 1.0, 1.0), (10.0, 2.0, 2.0)):
        metric, grid = rf.metric("ngf"), rf.Grid((5, 6, 7), spacing, (0.0, 0.0, 0.0))
        metric.prepare(rf.Image(fixed, grid), rf.Image(warped, grid))
        values.append(metric(warped, fixed, weight).item())
    assert values[1] != pytest.approx(values[0], rel=1e-3)
    assert values[2] == pytest.approx(values[1], rel=1e-12)


def test_gradient_fields_do_not_mind_a_polarity_that_changes() -> None:
    moving = texture()
    half = torch.arange(48) < 24
    fixed = torch.where(half[:, None] == half, moving, -moving)
    values = profile("ngf", moving, fixed)
    assert best(values) == 0
    assert values[0] < min(v for shift, v in values.items() if abs(shift) > 2) - 0.1
    assert best(profile("ncc", moving, fixed)) != 0


# ---- self-similarity ------------------------------------------------------------------------------------------------


def slow_mind(
    image: Tensor, weight: Tensor, floor: float, radius: int, dilation: int
) -> tuple[list[dict[tuple[int, ...], Tensor]], list[dict[tuple[int, ...], float]]]:
    """Components and their masses by pixel, one dictionary per pair of neighbours, by loops; ``image`` ``[C, *S]``."""
    shape, ndim = weight.shape, weight.ndim
    ends = [tuple(sign * dilation * (d == axis) for d in range(ndim)) for axis in range(ndim) for sign in (-1, 1)]
    pairs = [(a, b) for a, b in itertools.combinations(ends, 2) if sum(p * q for p, q in zip(a, b, strict=True)) == 0]
    assert len(pairs) == {2: 4, 3: 12}[ndim]
    patch = list(itertools.product(range(-radius, radius + 1), repeat=ndim))
    components: list[dict[tuple[int, ...], Tensor]] = [{} for _ in pairs]
    masses: list[dict[tuple[int, ...], float]] = [{} for _ in pairs]

    def inside(at: tuple[int, ...]) -> bool:
        return all(0 <= p < n for p, n in zip(at, shape, strict=True))

    def plus(*parts: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sum(p) for p in zip(*parts, strict=True))

    for x in itertools.product(*(range(n) for n in shape)):
        sums, mass = [], []
        for a, b in pairs:
            total, count = torch.zeros((), dtype=image.dtype), 0.0
            for p in patch if inside(plus(x, a)) and inside(plus(x, b)) else ():
                y, z = plus(x, a, p), plus(x, b, p)
                if inside(y) and inside(z):
                    w = float(weight[y] * weight[z])
                    total = total + w * ((image[(slice(None), *y)] - image[(slice(None), *z)]) ** 2).sum()
                    count += w
            sums.append(total)
            mass.append(count)
        v = sum(sums) / max(sum(mass), 1e-30) + floor
        for k, (total, count) in enumerate(zip(sums, mass, strict=True)):
            components[k][x] = torch.exp(-total / max(count, 1e-30) / v)
            masses[k][x] = count
    return components, masses


@pytest.mark.parametrize(
    ("shape", "radius", "dilation"), [((6, 7), 1, 2), ((5, 6), 0, 1), ((3, 4, 3), 1, 1)], ids=["2D", "no patch", "3D"]
)
def test_self_similarity_is_that_of_the_docstring(shape: tuple[int, ...], radius: int, dilation: int) -> None:
    warped, fixed, weight = sides(2, shape)
    weight[(1,) * len(shape)] = 0.0
    weight = weight / weight.max()
    metric = rf.metric("mind", radius=radius, dilation=dilation)
    grid = rf.Grid(shape)
    metric.prepare(rf.Image(fixed, grid), rf.Image(warped, grid))
    x = warped.clone().requires_grad_(True)
    described = []
    for image, floor in zip((fixed, x), metric._floors, strict=True):  # type: ignore[attr-defined]
        flat = image.detach().flatten(1)
        deviation = flat.std(dim=1, correction=0).reshape(-1, *(1,) * len(shape))
        described.append(slow_mind(image / deviation, weight, floor, radius, dilation))
    (target, masses), (component, _) = described
    above, below = torch.zeros((), dtype=torch.float64), 0.0
    for k, mass in enumerate(masses):
        for at, m in mass.items():
            above = above + weight[at] * m * (component[k][at] - target[k][at]) ** 2
            below += float(weight[at]) * m
    (slope,) = torch.autograd.grad(above / below, x)
    value, gradient = value_and_gradient(metric, warped, fixed, weight)
    assert value == pytest.approx((above / below).item(), rel=1e-9)
    torch.testing.assert_close(gradient, slope, rtol=1e-7, atol=1e-12)


def test_self_similarity_does_not_mind_local_contrast_and_bias() -> None:
    moving = texture(seed=2)
    y, x = torch.meshgrid(*[torch.linspace(0, 1, 48, dtype=torch.float64)] * 2, indexing="ij")
    fixed = (
        2 * torch.cos(6 * x + 3 * y) * moving + 8 * (x - 0.5) ** 2 + 3 * y
    )  # a contrast that changes its sign on the way
    values = profile("mind", moving, fixed, radius=2, dilation=2)
    assert best(values) == 0
    assert values[0] < 0.5 * min(v for shift, v in values.items() if abs(shift) > 2)
    assert best(profile("ncc", moving, fixed)) != 0
    assert best(profile("ssd", moving, fixed)) != 0


def test_self_similarity_where_the_canvas_is_narrower_than_the_neighbourhood() -> None:
    warped, fixed, weight = sides(1, (2, 9))
    value, gradient = value_and_gradient(rf.metric("mind", dilation=3), warped, fixed, weight)
    assert value == 0
    assert gradient.abs().max() == 0


# ---- boxes ----------------------------------------------------------------------------------------------------------


@given(shape=st.lists(st.integers(1, 9), min_size=1, max_size=3), radius=st.integers(0, 12))
@settings(max_examples=60)
def test_box_sums(shape: list[int], radius: int) -> None:
    from regframe_metrics._common import box_sum

    values = torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape).cos()
    out = box_sum(values, radius)
    assert out.shape == values.shape
    for at in itertools.product(*(range(n) for n in shape)):
        box = tuple(slice(max(0, p - radius), p + radius + 1) for p in at)
        assert float(out[at]) == pytest.approx(float(values[box].sum()), abs=1e-12)
