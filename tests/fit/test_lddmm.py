"""The energy and its parts: gradients, increments, velocities, contrast map, EM weights, observations, pyramid step."""

from __future__ import annotations

import math

import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import regframe as rf
from regframe.fit import mixture as fit_mixture
from regframe.fit.energy import Energy
from regframe.fit.frames import Frame, Increment
from regframe.fit.halvings import Level, halve, standardized
from regframe.fit.likeness import CORRELATION_LIMIT, correlation_area, fit_contrast
from regframe.fit.mapspace import MapSpace
from regframe.fit.mixture import Mixture
from regframe.fit.velocity import VelocitySpace, smooth_size

laws = settings(max_examples=25)
KINDS = ["rigid", "similarity", "affine"]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _noise(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=_generator(seed), dtype=torch.float64)


def _smooth(shape: tuple[int, ...], sigma: float, seed: int) -> Tensor:
    """Gaussian-filtered white noise of variance about 1, without a border effect, ``[*shape]`` float64."""
    pad = math.ceil(4 * sigma)
    noise = _noise(tuple(n + 2 * pad for n in shape), seed).numpy()
    out = torch.from_numpy(scipy.ndimage.gaussian_filter(noise, sigma))
    out = out[tuple(slice(pad, -pad) for _ in shape)]
    return (out / out.std()).contiguous()


# -------------------------------------------------------------------------------------------------------------- Frame


@pytest.mark.parametrize("unit", [1.0, 5e-4, 3e5])
def test_a_frame_counts_pixels_from_the_middle_whatever_the_unit(unit: float) -> None:
    grid = rf.Grid((5, 9), (0.5 * unit, 2.0 * unit), (-3.0 * unit, 7.0 * unit))
    frame = Frame.of(grid)
    normal = frame.grid(grid)
    assert normal.spacing == pytest.approx((0.5, 2.0))
    assert normal.center == pytest.approx((0.0, 0.0), abs=1e-9)
    matrix = frame.matrix()
    expected = grid.coords() @ matrix[:-1, :-1].T + matrix[:-1, -1]
    torch.testing.assert_close(normal.coords(), expected, rtol=0, atol=1e-9)
    assert matrix[-1].tolist() == [0, 0, 1]


# ---------------------------------------------------------------------------------------------------------- Increment


@pytest.mark.parametrize(
    ("kind", "ndim", "size"),
    [("rigid", 2, 3), ("similarity", 2, 4), ("affine", 2, 6), ("rigid", 3, 6), ("similarity", 3, 7), ("affine", 3, 12)],
)
def test_an_increment_has_its_degrees_of_freedom_and_starts_at_the_identity(kind: str, ndim: int, size: int) -> None:
    increment = Increment(kind, ndim, 40.0)
    assert increment.size == size
    assert torch.equal(increment.matrix(torch.zeros(size)), torch.eye(ndim + 1, dtype=torch.float64))
    # every variable does something, and no two the same
    jacobian = torch.autograd.functional.jacobian(increment.matrix, torch.zeros(size, dtype=torch.float64))
    assert torch.linalg.matrix_rank(jacobian.reshape(-1, size)) == size


@laws
@given(seed=st.integers(0, 2**31), ndim=st.sampled_from([2, 3]), kind=st.sampled_from(KINDS))
def test_an_increment_stays_in_its_class(seed: int, ndim: int, kind: str) -> None:
    increment = Increment(kind, ndim, 20.0)
    q = 20 * _noise((increment.size,), seed)
    matrix = increment.matrix(q)
    block = matrix[:-1, :-1]
    assert matrix[-1].tolist() == [0.0] * ndim + [1.0]
    torch.testing.assert_close(matrix[:-1, -1], q[:ndim])
    if kind == "affine":
        return
    size = float(torch.linalg.det(block)) ** (1 / ndim)  # a mirror would make this complex
    torch.testing.assert_close(block @ block.T / size**2, torch.eye(ndim, dtype=torch.float64), rtol=0, atol=1e-9)
    assert size == pytest.approx(1.0 if kind == "rigid" else math.exp(float(q[-1]) / 20), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_unit_of_any_variable_moves_the_rim_by_a_pixel(kind: str, ndim: int) -> None:
    increment = Increment(kind, ndim, 50.0)
    rim = _noise((4000, ndim), 0)
    rim = 50 * rim / rim.norm(dim=1, keepdim=True)
    for k in range(increment.size):
        q = torch.zeros(increment.size)
        q[k] = 1
        matrix = increment.matrix(q)
        moved = (rim @ matrix[:-1, :-1].T + matrix[:-1, -1] - rim).norm(dim=1)
        assert float(moved.max()) == pytest.approx(1, abs=0.03)


# ------------------------------------------------------------------------------------------------------ VelocitySpace


def _space(ndim: int = 2, n_slices: int = 3, order: float = 2.0, deviation: float = 1.7, n: int = 36) -> VelocitySpace:
    shape = (n, n + 4, n - 2)[:ndim]
    grid = rf.Grid(shape, (2.0, 3.0, 2.5)[:ndim], tuple(-1.25 * m for m in shape))
    return VelocitySpace(grid, n_slices, 2 * n_slices, 5.0, order, deviation)


@pytest.mark.parametrize(
    ("ndim", "n_slices", "order", "n"), [(2, 1, 1.0, 36), (2, 3, 2.0, 36), (2, 4, 3.0, 36), (3, 2, 2.0, 14)]
)
def test_the_prior_deviation_is_that_of_the_displacement(ndim: int, n_slices: int, order: float, n: int) -> None:
    space = _space(ndim, n_slices, order, n=n)
    # exactly: the variance of a linear function of white variables is its gradient's square
    mean = torch.zeros((n_slices, ndim, *space.grid.shape))
    mean[:, 0].view(n_slices, -1)[:, 5] = 1 / n_slices
    assert float((space.adjoint(mean).double() ** 2).sum()) == pytest.approx(1.7**2, rel=1e-4)
    # and by experiment
    square, draws = 0.0, 20
    for seed in range(draws):
        u = torch.randn(space.size, generator=_generator(seed))
        square += float((space.velocity(u).mean(dim=0).double() ** 2).mean()) / draws
    assert math.sqrt(square) == pytest.approx(1.7, rel=0.06)


@pytest.mark.parametrize(("ndim", "n"), [(2, 24), (3, 12)])
def test_the_regulariser_is_the_sobolev_norm_of_the_velocity(ndim: int, n: int) -> None:
    # L v = σ u with L = (id - a²Δ)² in finite differences: what METHOD.md writes, without any FFT
    space = _space(ndim, 2, 2.0, n=n)
    # variables that no velocity depends on (a spectrum's second halves) are never moved: the gradient has nothing there
    us = [space.adjoint(torch.randn((2, ndim, *space.grid.shape), generator=_generator(i))).double() for i in (1, 2)]
    sobolev = []
    for u in us:
        v = space.velocity(u.float()).double()
        for _ in range(2):
            laplacian = sum(
                (v.roll(1, 2 + d) + v.roll(-1, 2 + d) - 2 * v) / space.grid.spacing[d] ** 2 for d in range(ndim)
            )
            v = v - space.scale**2 * laplacian
        sobolev.append(v)
    sigma = float((sobolev[0] ** 2).sum() / (us[0] ** 2).sum())
    assert sigma > 0
    assert float((sobolev[1] ** 2).sum() / (us[1] ** 2).sum()) == pytest.approx(sigma, rel=1e-3)
    scale = float((us[0] ** 2).sum() * (us[1] ** 2).sum()) ** 0.5
    assert float((sobolev[0] * sobolev[1]).sum()) / sigma == pytest.approx(
        float((us[0] * us[1]).sum()), abs=1e-3 * scale
    )


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("finer", [1, 2, 3])
def test_adjoint_is_the_transpose_of_velocity(ndim: int, finer: int) -> None:
    space = _space(ndim, n=10).with_finer(finer)
    u = torch.randn(space.size, generator=_generator(1), dtype=torch.float64)
    gradient = torch.randn((3, ndim, *space.grid.shape), generator=_generator(2), dtype=torch.float64)
    assert float((space.velocity(u) * gradient).sum()) == pytest.approx(
        float((u * space.adjoint(gradient)).sum()), rel=1e-5
    )


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_finer_grid_shows_the_same_velocity(ndim: int) -> None:
    space = _space(ndim, n=10)
    u = torch.randn(space.size, generator=_generator(1))
    finer = space.with_finer(3)
    assert finer.grid.shape == tuple(3 * n for n in space.grid.shape)
    every = (slice(None), slice(None), *[slice(None, None, 3)] * ndim)
    torch.testing.assert_close(finer.velocity(u)[every], space.velocity(u), rtol=0, atol=1e-5)
    torch.testing.assert_close(finer.grid.coords()[every[2:]], space.grid.coords())


def test_velocities_are_linear_in_their_variables_and_scale_with_the_deviation() -> None:
    space = _space()
    a, b = (torch.randn(space.size, generator=_generator(s)) for s in (1, 2))
    both = space.velocity(2 * a - 3 * b)
    assert both.shape == (3, 2, *space.grid.shape)
    torch.testing.assert_close(both, 2 * space.velocity(a) - 3 * space.velocity(b), rtol=0, atol=2e-5)
    wide = space.with_deviation(2 * 1.7)
    assert (wide.deviation, space.deviation) == (3.4, 1.7)
    torch.testing.assert_close(wide.velocity(a), 2 * space.velocity(a), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(_space(deviation=3.4).velocity(a), wide.velocity(a), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ndim", [2, 3])
def test_steepness_is_the_largest_slope_of_a_step(ndim: int) -> None:
    space = _space(ndim, n=10)
    u = torch.randn(space.size, generator=_generator(3))
    velocity = space.velocity(u)
    slopes = [
        float((velocity.narrow(2 + d, 1, n - 1) - velocity.narrow(2 + d, 0, n - 1)).abs().max()) / spacing
        for d, (n, spacing) in enumerate(zip(space.grid.shape, space.grid.spacing, strict=True))
    ]
    assert space.steep(u) == pytest.approx(max(slopes) / space.n_steps, rel=1e-4)
    finer = space.with_steps(4 * space.n_steps)
    assert finer.steep(u) == pytest.approx(space.steep(u) / 4, rel=1e-4)
    assert torch.equal(finer.velocity(u), velocity)
    assert space.n_steps == 6  # the space it came from is another's too


def test_smooth_size_is_the_next_number_of_small_primes() -> None:
    smooth = sorted(2**i * 3**j * 5**k for i in range(12) for j in range(8) for k in range(6))
    for n in range(1, 1500):
        assert smooth_size(n) == next(m for m in smooth if m >= n)


# ------------------------------------------------------------------------------------------------------------- Energy


class _Squares(rf.Metric):
    """The plainest metric, as a likelihood or not."""

    name = "squares"

    def __init__(self, likelihood: bool) -> None:
        self.likelihood = likelihood  # type: ignore[misc]

    def __call__(self, warped: Tensor, fixed: Tensor, weight: Tensor) -> Tensor:
        return ((warped - fixed) ** 2 * weight).sum() / (fixed.shape[0] * weight.sum())


def _level(ndim: int, dtype: torch.dtype = torch.float64) -> Level:
    shape = (22, 26) if ndim == 2 else (10, 12, 11)
    other = (24, 20) if ndim == 2 else (11, 10, 12)
    fixed = torch.stack([_smooth(shape, 2.5, s) for s in (1, 2)]).to(dtype)
    moving = torch.stack([_smooth(other, 2.5, s) for s in (3, 4, 5)]).to(dtype)
    grids = [rf.Grid(s, (2.0,) * ndim, tuple(-float(n - 1) for n in s)) for s in (shape, other)]
    weight = (_smooth(shape, 3, 6) > -0.5).to(dtype)
    return Level(fixed, moving, grids[0], grids[1], weight, None)


def _start(ndim: int) -> Tensor:
    start = torch.eye(ndim + 1, dtype=torch.float64)
    start[:ndim] += 0.08 * _noise((ndim, ndim + 1), 7)
    return start


def _velocities(ndim: int) -> VelocitySpace:
    n = 12 if ndim == 2 else 8
    grid = rf.Grid((n,) * ndim, (6.0,) * ndim, (-3.0 * (n - 1),) * ndim)
    return VelocitySpace(grid, 2, 4, 8.0, 2.0, 1.5)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(
    ("term", "kind"),
    [
        ("estimated", "affine"),
        ("estimated", "rigid"),
        ("sigma", "affine"),
        ("likelihood", "similarity"),
        ("landmarks", "affine"),
    ],
)
def test_the_gradient_is_the_slope_of_the_energy(ndim: int, term: str, kind: str) -> None:
    level, space = _level(ndim), _velocities(ndim)
    increment = Increment(kind, ndim, 30.0)
    pairs = None
    if term == "landmarks":
        p = 8 * _noise((5, ndim), 8)
        pairs = (p, p + _noise((5, ndim), 9), 0.3)
    metric: object = _Squares(likelihood=term == "likelihood") if term in ("likelihood", "sigma") else None
    if metric is None:
        metric = rf.metric("contrast")
    else:
        level.moving = level.moving[:2]
    energy = Energy(
        level, metric, MapSpace(_start(ndim), increment, space), level.fixed_weight, 130.0,
        sigma_match=0.7 if term == "sigma" else None, landmarks=pairs,
    )  # fmt: skip
    if term not in ("likelihood", "sigma"):
        metric.prepare(rf.Image(level.fixed, level.fixed_grid), rf.Image(level.moving, level.moving_grid))
    x = torch.cat([_noise((increment.size,), 10), 0.5 * _noise((space.size,), 11)])
    value, gradient = energy(x)
    assert math.isfinite(value)
    assert float(value) == pytest.approx(sum(energy.parts[k] for k in ("matching", "regularizer", "landmarks")))
    assert (energy.parts["landmarks"] > 0) == (term == "landmarks")
    assert gradient.shape == x.shape
    k = increment.size
    directions = []
    for block in (slice(0, k), slice(k, None)):
        along = torch.zeros_like(x)
        along[block] = gradient[block] / gradient[block].norm() + 0.3 * _noise((x.numel(),), 12)[block] / math.sqrt(
            x[block].numel()
        )
        directions.append(along)
    directions += [torch.eye(x.numel(), dtype=torch.float64)[i] for i in range(k)]
    h = 1e-5
    for along in directions:
        slope = (energy(x + h * along)[0] - energy(x - h * along)[0]) / (2 * h)
        # the multilinear image has kinks between pixels, which a step of this size hardly ever crosses
        assert float(slope) == pytest.approx(float(gradient @ along), rel=1e-4, abs=1e-4 * float(gradient.norm()))
    assert energy.n_evaluations == 1 + 2 * len(directions)


def test_the_gradient_without_velocities_and_in_single_precision() -> None:
    level = _level(2, torch.float32)
    metric = rf.metric("contrast")
    metric.prepare(rf.Image(level.fixed, level.fixed_grid), rf.Image(level.moving, level.moving_grid))
    increment = Increment("affine", 2, 30.0)
    energy = Energy(level, metric, MapSpace(_start(2), increment), level.fixed_weight, 130.0)
    x = _noise((6,), 13).to(torch.float32)
    value, gradient = energy(x)
    assert energy.parts["regularizer"] == 0
    along = gradient / gradient.norm()
    h = 0.02
    slope = (energy(x + h * along)[0] - energy(x - h * along)[0]) / (2 * h)
    assert float(slope) == pytest.approx(float(gradient.norm()), rel=0.03)
    assert energy(x - h * along)[0] < value


@pytest.mark.parametrize(
    ("likelihood", "sigma", "expected"),
    [(True, None, lambda m: 50 * m), (False, 0.5, lambda m: 100 * m), (False, None, lambda m: 25 * math.log(m + 1e-5))],
)
def test_the_matching_term_is_the_log_likelihood_of_n_observations(likelihood, sigma, expected) -> None:  # type: ignore[no-untyped-def]
    level = _level(2)
    level.moving = level.moving[:2]
    metric = _Squares(likelihood)
    maps = MapSpace(_start(2), Increment("rigid", 2, 30.0), _velocities(2))
    energy = Energy(level, metric, maps, level.fixed_weight, 50.0, sigma)
    u = _noise((_velocities(2).size,), 14)
    value, _ = energy(torch.cat([torch.zeros(3, dtype=torch.float64), u]))
    assert energy.parts["regularizer"] == pytest.approx(float((u**2).sum()) / 2)
    assert energy.parts["matching"] == pytest.approx(expected(energy.parts["mismatch"]))
    assert float(value) == pytest.approx(energy.parts["matching"] + energy.parts["regularizer"])


def test_the_landmark_term_is_the_squared_miss_of_the_forward_map() -> None:
    level, space = _level(2), _velocities(2)
    increment = Increment("affine", 2, 30.0)
    p, q = 8 * _noise((4, 2), 15), 8 * _noise((4, 2), 16)
    maps = MapSpace(_start(2), increment, space)
    energy = Energy(level, rf.metric("contrast"), maps, level.fixed_weight, 1.0, landmarks=(p, q, 0.4))
    x = torch.cat([_noise((6,), 17), _noise((space.size,), 18)])
    energy(x)
    # the same map through the public classes: first the flow, then the affine part
    flow = rf.Flow(space.velocity(x[6:]), space.grid, space.n_steps)
    back = torch.linalg.inv(energy.maps.pullback(x[:6]))
    back[-1] = torch.tensor([0.0, 0.0, 1.0])
    mapped = rf.Sequence((flow, rf.Affine(back))).points(p)
    assert energy.parts["landmarks"] == pytest.approx(float(((mapped - q) ** 2).sum()) / (2 * 0.4**2), rel=1e-5)


def test_movement_is_the_largest_way_a_fixed_pixel_goes() -> None:
    level, space = _level(2, torch.float32), _velocities(2)
    increment = Increment("affine", 2, 30.0)
    start = torch.eye(3, dtype=torch.float64)
    start[:2, :2] *= 0.5  # a moving pixel is two fixed ones
    energy = Energy(level, _Squares(True), MapSpace(start, increment, space), level.fixed_weight, 1.0)
    still = torch.zeros(increment.size + space.size)
    change = still.clone()
    change[:6] = 0.05 * _noise((6,), 19).float()
    # of the affine part, in pixels of the level (two full ones each): exact, the farthest pixel is a corner
    way = (energy.positions(change) - energy.positions(still)).norm(dim=-1) / 0.5 / 2
    assert float(energy.movement(change)) == pytest.approx(float(way.max()), rel=1e-3)
    # of the velocity: to first order never less than what the pixels do
    change = still.clone()
    change[6:] = 0.05 * _noise((space.size,), 20).float()
    way = (energy.positions(change) - energy.positions(still)).norm(dim=-1) / 0.5 / 2
    assert float(way.max()) <= energy.movement(change) * 1.02
    assert energy.movement(change) < 3 * float(way.max())
    assert float(energy.movement(2 * change)) == pytest.approx(2 * float(energy.movement(change)), rel=1e-5)


def test_overlap_counts_trusted_pixels_and_fades_over_the_border() -> None:
    grid = rf.Grid((8, 10), (1.0, 1.0), (-3.5, -4.5))
    ones = torch.ones((1, 8, 10))
    trust = torch.ones((8, 10))
    trust[3] = 0
    fixed_weight = torch.ones((8, 10))
    fixed_weight[:, 0] = 0
    level = Level(ones, ones, grid, grid, fixed_weight, None)
    shift = torch.eye(3, dtype=torch.float64)

    def overlap(x: float, level: Level = level) -> Tensor:
        shift[1, 2] = x  # fixed column j shows moving column j + x
        maps = MapSpace(shift.clone(), Increment("rigid", 2, 5.0))
        energy = Energy(level, _Squares(True), maps, fixed_weight, 1.0)
        return energy.overlap(torch.zeros(3))

    here = overlap(0.0)
    assert torch.equal(here[1:-1, 1:-1], torch.ones((6, 8)))
    assert (here[:, 0] == 0).all()  # the fixed mask
    assert (overlap(3.0)[3, 1:6] == 1).all()
    assert (overlap(3.0)[:, 7:] == 0).all()
    # what the last column shows fades out as it crosses the border, without a jump
    way = torch.stack([overlap(1.5 + step / 20)[3, 7] for step in range(41)])
    assert way[0] >= 0.5
    assert way[-1] == 0
    assert (way.diff() <= 0).all()
    assert way.diff().abs().max() < 0.051
    masked = overlap(0.0, Level(ones, ones, grid, grid, fixed_weight, trust))
    assert (masked[3] == 0).all()
    assert torch.equal(masked[4:], here[4:])
    assert torch.equal(masked[:3], here[:3])


# -------------------------------------------------------------------------------------------------------- fit_contrast


def test_a_contrast_map_undoes_an_affine_recolouring() -> None:
    moving = torch.stack([_smooth((40, 50), 2, s) for s in (1, 2, 3)]).float()
    mix = torch.tensor([[0.5, -2.0, 0.3], [1.0, 0.2, 3.0]])
    fixed = torch.einsum("ij,jyx->iyx", mix, moving) + torch.tensor([7.0, -100.0])[:, None, None]
    weight = torch.rand((40, 50), generator=_generator(4))
    predicted = fit_contrast(moving, fixed, weight)
    assert predicted.shape == fixed.shape
    # all that is left is the ridge, a ten-thousandth of the variance
    assert float((predicted - fixed).std()) < 1e-3 * float(fixed.std())
    torch.testing.assert_close(fit_contrast(moving, fixed, weight, ridge=1e-9), fixed, rtol=0, atol=1e-3)


def test_a_contrast_map_of_second_order_bends() -> None:
    moving = _smooth((1, 40, 50), 1, 5).float()
    fixed = 2 * moving**2 - moving + 1
    weight = torch.ones((40, 50))
    straight = float((fit_contrast(moving, fixed, weight) - fixed).std())
    bent = float((fit_contrast(moving, fixed, weight, order=2) - fixed).std())
    assert bent < 1e-3 * float(fixed.std()) < straight


@laws
@given(seed=st.integers(0, 2**31), junk=st.floats(-1e4, 1e4))
def test_pixels_without_weight_do_not_change_a_contrast_map(seed: int, junk: float) -> None:
    moving, fixed = torch.randn((2, 1, 12, 14), generator=_generator(seed))
    weight = torch.rand((12, 14), generator=_generator(seed + 1))
    weight[3:7] = 0
    expected = fit_contrast(moving, fixed, weight)
    dirty, stained = moving.clone(), fixed.clone()
    dirty[:, 3:7], stained[:, 3:7] = junk, -junk
    actual = fit_contrast(dirty, stained, weight)
    torch.testing.assert_close(actual[:, :3], expected[:, :3], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(actual[:, 7:], expected[:, 7:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["no weight", "constant moving", "twin channels"])
def test_a_contrast_map_of_nothing_stays_finite(case: str) -> None:
    moving, fixed = torch.randn((2, 2, 9, 9), generator=_generator(6))
    weight = torch.zeros((9, 9)) if case == "no weight" else torch.ones((9, 9))
    if case == "constant moving":
        moving = torch.full_like(moving, 3.0)
    if case == "twin channels":
        moving[1] = moving[0]
    predicted = fit_contrast(moving, fixed, weight)
    assert predicted.isfinite().all()
    if case == "constant moving":  # nothing to go by: the mean
        torch.testing.assert_close(predicted, fixed.mean(dim=(1, 2), keepdim=True).expand_as(fixed))


# ------------------------------------------------------------------------------------------------------------- Mixture


def _stained_section() -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Fixed image, what the moving one predicts of it, and where: tissue, missing tissue, a blot, empty glass."""
    shape = (80, 100)
    glass = torch.zeros(shape, dtype=torch.bool)
    glass[:, :25] = True
    missing, blot = torch.zeros_like(glass), torch.zeros_like(glass)
    missing[10:30, 40:60] = True
    blot[50:70, 65:90] = True
    tissue = ~(glass | missing | blot)
    predicted = torch.stack([_smooth(shape, 2, s) for s in (1, 2, 3)]).float()
    predicted[:, glass] = 3.0
    fixed = predicted + 0.15 * torch.randn((3, *shape), generator=_generator(4))
    # torn out: the fixed image shows glass where the moving one has tissue
    fixed[:, missing] = 3.0 + 0.05 * torch.randn((3, int(missing.sum())), generator=_generator(5))
    ink = torch.tensor([-5.0, 4.0, -6.0])[:, None]
    fixed[:, blot] = ink + 0.5 * torch.randn((3, int(blot.sum())), generator=_generator(6))
    return fixed, predicted, {"tissue": tissue, "missing": missing, "blot": blot, "glass": glass}


@pytest.mark.parametrize("rounds", [3, 12])
def test_the_mixture_tells_missing_tissue_and_blots_from_what_matches(rounds: int) -> None:
    fixed, predicted, where = _stained_section()
    weight = torch.ones(fixed.shape[1:])
    mixture = Mixture.start(fixed, predicted, weight)
    for _ in range(rounds):
        mixture.update(fixed, predicted, weight)
        posterior = mixture.matching(fixed, predicted)
        assert posterior.shape == weight.shape
        assert float(posterior.min()) >= 0
        assert float(posterior.max()) <= 1
        assert sum(mixture.fractions) == pytest.approx(1)
    assert len(mixture.history) == rounds
    assert float(posterior[where["tissue"]].mean()) > 0.9
    assert float(posterior[where["missing"]].mean()) < 0.05
    assert float(posterior[where["blot"]].mean()) < 0.05
    # the matching noise is that of the tissue, not of what was left out
    assert mixture.sigma_match == pytest.approx(0.15, rel=0.25)


def test_a_pair_that_matches_everywhere_is_believed_everywhere() -> None:
    predicted = torch.stack([_smooth((60, 60), 2, s) for s in (1, 2)]).float()
    fixed = predicted + 0.2 * torch.randn((2, 60, 60), generator=_generator(3))
    weight = torch.ones((60, 60))
    mixture = Mixture.start(fixed, predicted, weight)
    for _ in range(5):
        mixture.update(fixed, predicted, weight)
        posterior = mixture.matching(fixed, predicted)
    assert float(posterior.mean()) > 0.95
    assert mixture.fractions[0] > 0.9


@pytest.mark.parametrize("junk", ["noise", "a black frame"])
def test_pixels_without_weight_do_not_steer_the_mixture(junk: str) -> None:
    fixed, predicted, _ = _stained_section()
    weight = torch.ones(fixed.shape[1:])
    weight[:, 80:] = 0
    dirty = fixed.clone()
    if junk == "noise":
        dirty[:, :, 80:] += 4 * torch.randn((3, 80, 20), generator=_generator(7)) + 8
    else:  # flatter than any background, and masked out
        dirty[:, :, 80:] = -20.0
    found = []
    for image in (fixed, dirty):
        mixture = Mixture.start(image, predicted, weight)
        for _ in range(4):
            mixture.update(image, predicted, weight)
        posterior = mixture.matching(image, predicted)
        found.append((posterior[:, :80], torch.tensor([*mixture.fractions, mixture.sigma_match]), mixture.background))
    torch.testing.assert_close(found[0][1:], found[1][1:], rtol=0.01, atol=0.01)
    assert float((found[0][0] - found[1][0]).abs().mean()) < 0.01


def test_a_large_image_is_judged_by_a_sample_of_its_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed, predicted, where = _stained_section()
    weight = torch.ones(fixed.shape[1:])
    found = []
    for sample in (fit_mixture.SAMPLE, 1500):
        monkeypatch.setattr(fit_mixture, "SAMPLE", sample)
        mixture = Mixture.start(fixed, predicted, weight)
        for _ in range(4):
            mixture.update(fixed, predicted, weight)
        found.append(mixture.matching(fixed, predicted))
        assert found[-1].shape == weight.shape
    assert float((found[0] - found[1]).abs().mean()) < 0.02
    assert float(found[1][where["blot"]].mean()) < 0.05


@pytest.mark.parametrize("case", ["perfect", "constant", "no weight"])
def test_the_mixture_survives_pairs_with_nothing_to_estimate(case: str) -> None:
    fixed = _smooth((1, 20, 20), 1, 1).float()
    if case == "constant":
        fixed = torch.zeros_like(fixed)
    weight = torch.zeros((20, 20)) if case == "no weight" else torch.ones((20, 20))
    mixture = Mixture.start(fixed, fixed.clone(), weight)
    for _ in range(5):
        mixture.update(fixed, fixed.clone(), weight)
        posterior = mixture.matching(fixed, fixed.clone())
        assert posterior.isfinite().all()
        assert mixture.sigma_match > 0
    if case == "perfect":
        assert float(posterior.mean()) > 0.95


# ---------------------------------------------------------------------------------------------------- correlation_area


@pytest.mark.parametrize("shape", [(96, 80), (20, 24, 22)])
def test_white_noise_is_as_many_observations_as_pixels(shape: tuple[int, ...]) -> None:
    residual = torch.randn((2, *shape), generator=_generator(1))
    assert 1 <= correlation_area(residual, torch.ones(shape)) < 1.3


@pytest.mark.parametrize("sigma", [0.8, 1.2, 1.8])
def test_smooth_noise_is_fewer_observations_by_its_area(sigma: float) -> None:
    # the autocorrelation of noise filtered by a Gaussian is exp(-r²/4σ²): its square sums up to 2πσ²
    shape = (150, 140)
    areas = [correlation_area(_smooth(shape, sigma, seed)[None].float(), torch.ones(shape)) for seed in (1, 2, 3)]
    assert sum(areas) / 3 == pytest.approx(2 * math.pi * sigma**2, rel=0.15)


def test_the_correlation_area_is_bounded_and_scale_free() -> None:
    shape = (60, 60)
    weight = torch.ones(shape)
    slow = _smooth(shape, 6, 1)[None].float()
    assert correlation_area(slow, weight) == CORRELATION_LIMIT
    assert correlation_area(torch.zeros((1, *shape)), weight) == 1
    assert correlation_area(slow, torch.zeros(shape)) == 1
    fine = _smooth(shape, 1, 2)[None].float()
    assert correlation_area(1e-3 * fine + 5, weight) == pytest.approx(correlation_area(fine, weight), rel=1e-3)


def test_pixels_without_weight_do_not_change_the_correlation_area() -> None:
    shape = (90, 90)
    residual = _smooth(shape, 1, 3)[None].float()
    weight = torch.ones(shape)
    weight[:30] = 0
    dirty = residual.clone()
    dirty[:, :30] = 1000 * torch.rand((1, 30, 90), generator=_generator(4))
    area = correlation_area(residual, weight)
    assert correlation_area(dirty, weight) == pytest.approx(area, rel=1e-9)
    assert area == pytest.approx(correlation_area(residual, torch.ones(shape)), rel=0.2)


# -------------------------------------------------------------------------------------------------- halve, standardized


@laws
@given(
    shape=st.lists(st.integers(4, 13), min_size=2, max_size=3).map(tuple),
    slopes=st.lists(st.floats(-3, 3), min_size=3, max_size=3),
    data=st.data(),
)
def test_halving_leaves_positions_where_they_are(
    shape: tuple[int, ...], slopes: list[float], data: st.DataObject
) -> None:
    ndim = len(shape)
    axes = sorted(data.draw(st.sets(st.integers(0, ndim - 1), min_size=1)))
    grid = rf.Grid(shape, (0.5, 2.0, 1.0)[:ndim], (3.0, -5.0, 0.0)[:ndim], "µm")
    slope = torch.tensor(slopes[:ndim], dtype=torch.float64)
    half, coarse = halve((grid.coords() @ slope)[None] + 1, grid, axes)
    assert coarse.unit == "µm"
    assert tuple(half.shape[1:]) == coarse.shape
    assert coarse.shape == tuple(n // 2 if d in axes else n for d, n in enumerate(shape))
    assert coarse.spacing == tuple(s * (2 if d in axes else 1) for d, s in enumerate(grid.spacing))
    # a linear ramp is the same function of position; only at the rim the filter runs out of pixels
    inner = tuple(slice(1, -1) if d in axes else slice(None) for d in range(ndim))
    torch.testing.assert_close(half[0][inner], (coarse.coords() @ slope + 1)[inner], rtol=0, atol=1e-9)


def test_halving_averages_away_what_the_coarse_grid_cannot_show() -> None:
    stripes = torch.ones((1, 16, 16))
    stripes[:, :, ::2] = -1
    half, _ = halve(stripes, rf.Grid((16, 16)), (0, 1))
    assert half[:, :, 1:-1].abs().max() < 1e-6
    flat, grid = halve(torch.full((1, 5, 2), 7.0), rf.Grid((5, 2)), (0, 1))
    assert grid.shape == (2, 1)
    torch.testing.assert_close(flat, torch.full((1, 2, 1), 7.0))


@laws
@given(seed=st.integers(0, 2**31), gain=st.floats(1e-3, 1e3), offset=st.floats(-100, 100))
def test_standardized_images_do_not_know_their_brightness(seed: int, gain: float, offset: float) -> None:
    data = torch.randn((2, 9, 11), generator=_generator(seed), dtype=torch.float64)
    weight = torch.rand((9, 11), generator=_generator(seed + 1))
    image = rf.Image(data, rf.Grid((9, 11)), weight=weight)
    out = standardized(image)
    assert out.dtype == torch.float32
    mean = (out * weight).sum(dim=(1, 2)) / weight.sum()
    torch.testing.assert_close(mean, torch.zeros(2), rtol=0, atol=1e-4)
    variance = ((out - mean[:, None, None]) ** 2 * weight).sum(dim=(1, 2)) / weight.sum()
    torch.testing.assert_close(variance, torch.ones(2), rtol=1e-4, atol=0)
    # gain relative to the offset is limited by single precision
    other = standardized(image.replace(data=gain * (data + offset * 1e-2)))
    torch.testing.assert_close(other, out, rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32, torch.float64])
def test_standardized_takes_any_dtype_and_makes_a_constant_channel_nothing(dtype: torch.dtype) -> None:
    data = torch.full((2, 6, 6), 200).to(dtype)
    data[1, :3] = 100
    out = standardized(rf.Image(data, rf.Grid((6, 6))))
    assert (out[0] == 0).all()
    torch.testing.assert_close(out[1, :3], -torch.ones((3, 6)))
    torch.testing.assert_close(out[1, 3:], torch.ones((3, 6)))
