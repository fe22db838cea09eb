"""The minimiser, its prior, the pyramid, and a solver that does not know in which unit it works."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import regframe as rf
from regframe.config import Pyramid
from regframe.fit.frames import Frame, Increment
from regframe.fit.halvings import noise_share, soften
from regframe.fit.lbfgs import PATIENCE, Descent, Outcome, _History, minimize
from regframe.fit.mapspace import DEVIATION_FLOOR, MapSpace
from regframe.fit.prior import DEVIATION_MARGIN, velocity_space
from regframe.fit.pyramid import Fit, adapt_prior, build_levels
from regframe.fit.velocity import MOST_STEPS, STEEPEST, enough_steps

laws = settings(max_examples=25)

Evaluate = Callable[[Tensor], tuple[float, Tensor]]


def _largest(change: Tensor) -> float:
    return float(change.abs().max())


class _Recorder:
    """An energy that remembers where it was asked, and where the minimiser went."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function
        self.trials: list[Tensor] = []
        self.path: list[Tensor] = []
        self.energies: list[float] = []

    def __call__(self, x: Tensor) -> tuple[float, Tensor]:
        self.trials.append(x.clone())
        if not self.path:
            self.path.append(x.clone())
        x = x.detach().requires_grad_(True)
        value = self.function(x)
        (gradient,) = torch.autograd.grad(value, x)
        return float(value.detach()), gradient

    def step(self, iteration: int, energy: float) -> None:
        assert iteration >= len(self.path)
        self.path.append(self.trials[-1])
        self.energies.append(energy)


def _run(function: Callable[[Tensor], Tensor], x: Tensor, **options: float) -> tuple[Outcome, _Recorder]:
    recorder = _Recorder(function)
    descent = Descent(**({"max_iter": 200, "tolerance": 1e-6} | options))  # type: ignore[arg-type]
    return minimize(recorder, x, _largest, descent, recorder.step), recorder


def _quadratic(n: int, condition: float, seed: int) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A quadratic in turned axes and its minimum."""
    generator = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn((n, n), generator=generator, dtype=torch.float64))
    hessian = turn @ torch.diag(torch.logspace(0, math.log10(condition), n, dtype=torch.float64)) @ turn.T
    minimum = torch.randn(n, generator=generator, dtype=torch.float64)
    return lambda x: 0.5 * (x - minimum) @ hessian @ (x - minimum), minimum


def _rosenbrock(x: Tensor) -> Tensor:
    return ((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2).sum()


# ----------------------------------------------------------------------------------------------------------- minimize


@pytest.mark.parametrize(("n", "condition"), [(5, 1.0), (20, 1e2), (30, 1e4)])
def test_an_ill_conditioned_quadratic_is_solved(n: int, condition: float) -> None:
    function, minimum = _quadratic(n, condition, 0)
    outcome, recorder = _run(function, torch.zeros(n, dtype=torch.float64), max_iter=500, tolerance=1e-7)
    assert outcome.reason == "converged"
    torch.testing.assert_close(outcome.x, minimum, rtol=0, atol=1e-4)
    assert len(recorder.trials) < 600  # steepest descent would need tens of thousands


@laws
@given(seed=st.integers(0, 2**31), n=st.integers(1, 12), exponent=st.floats(0, 3))
def test_the_energy_never_rises_and_the_best_point_is_returned(seed: int, n: int, exponent: float) -> None:
    function, minimum = _quadratic(n, 10**exponent, seed)
    start = minimum + 3
    outcome, recorder = _run(function, start.clone())
    energies = [float(function(start)), *recorder.energies]
    assert all(after < before for before, after in itertools.pairwise(energies))
    assert outcome.energy == float(function(outcome.x)) == energies[-1]
    assert outcome.energy < 1e-6 * energies[0]
    assert outcome.iterations >= len(recorder.energies)


def test_a_direction_is_that_of_the_two_loops() -> None:
    generator = torch.Generator().manual_seed(3)
    hessian = torch.diag(torch.rand(9, generator=generator, dtype=torch.float64) + 0.1)
    history, pairs = _History(4, torch.zeros(9, dtype=torch.float64)), []
    for turn in range(11):
        step = torch.randn(9, generator=generator, dtype=torch.float64)
        history.add(step, -hessian @ step)  # curved downwards: not to be remembered
        history.add(step, hessian @ step)
        pairs = [*pairs, (step, hessian @ step)][-4:]
        gradient = torch.randn(9, generator=generator, dtype=torch.float64)
        q, alphas = gradient.clone(), []
        for s, y in reversed(pairs):
            alphas.append(s @ q / (s @ y))
            q -= alphas[-1] * y
        s, y = pairs[-1]
        q *= (s @ y) / (y @ y)
        for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
            q += (alpha - y @ q / (s @ y)) * s
        torch.testing.assert_close(history.direction(gradient), -q)
        if turn == 5:
            history.clear()
            pairs = []
            assert not history
            assert torch.equal(history.direction(gradient), -gradient)


def test_the_curved_valley_is_followed_to_its_end() -> None:
    outcome, recorder = _run(_rosenbrock, torch.tensor([-1.2, 1.0, -0.5, 0.8], dtype=torch.float64), max_iter=400)
    assert all(after < before for before, after in itertools.pairwise(recorder.energies))
    assert outcome.reason == "converged"
    torch.testing.assert_close(outcome.x, torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_start_without_an_energy_is_named_divergence(value: float) -> None:
    start = torch.ones(3)
    outcome = minimize(lambda x: (value, x), start, _largest, Descent(10, 0.1))
    assert outcome.reason == "diverged"
    assert outcome.iterations == 0
    assert torch.equal(outcome.x, start)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_trial_without_an_energy_is_backed_off(bad: float) -> None:
    # beyond the wall there is no energy; the first step, of one pixel, lands there
    def function(x: Tensor) -> Tensor:
        value = (x - 2.0).square().sum()
        return value if bool((x < 2.3).all()) else value * 0 + bad

    outcome, recorder = _run(function, torch.tensor([1.9, 1.0], dtype=torch.float64), first_move=4.0)
    assert any(bool((x >= 2.3).any()) for x in recorder.trials)
    assert all(bool((x < 2.3).all()) for x in recorder.path)
    assert outcome.reason == "converged"
    torch.testing.assert_close(outcome.x, torch.full((2,), 2.0, dtype=torch.float64), rtol=0, atol=1e-4)


@pytest.mark.parametrize("max_iter", [0, 1, 7])
def test_no_more_steps_than_allowed(max_iter: int) -> None:
    start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    outcome, recorder = _run(_rosenbrock, start, max_iter=max_iter)
    assert outcome.reason == "max_iter"
    assert outcome.iterations == max_iter
    assert len(recorder.energies) == max_iter
    assert torch.equal(outcome.x, recorder.path[-1])


@pytest.mark.parametrize("tolerance", [0.1, 1e-3])
def test_it_stops_when_three_steps_moved_less_than_the_tolerance(tolerance: float) -> None:
    function, minimum = _quadratic(12, 1e3, 3)
    outcome, recorder = _run(function, minimum + 5, tolerance=tolerance)
    assert outcome.reason == "converged"
    moves = [_largest(b - a) for a, b in itertools.pairwise(recorder.path)]
    assert max(moves[-3:]) < tolerance
    quiet = [m < tolerance for m in moves]
    assert not any(all(quiet[i : i + 3]) for i in range(len(quiet) - 3))  # and not a step later
    assert _largest(outcome.x - minimum) < 100 * tolerance


def test_it_stops_when_a_few_steps_gain_less_than_they_are_worth() -> None:
    start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    plain, recorder = _run(_rosenbrock, start, max_iter=PATIENCE)
    assert plain.reason == "max_iter"
    gain = float(_rosenbrock(start)) - recorder.energies[-1]
    outcome, _ = _run(_rosenbrock, start, worthwhile=2 * gain)
    assert (outcome.reason, outcome.iterations) == ("converged", PATIENCE)
    # out of iterations: whether it still got anywhere is said
    assert _run(_rosenbrock, start, max_iter=PATIENCE, worthwhile=gain / 5)[0].reason == "slow"
    assert _run(_rosenbrock, start, max_iter=PATIENCE, worthwhile=gain / 20)[0].reason == "max_iter"


def test_at_the_minimum_nothing_is_tried() -> None:
    function, minimum = _quadratic(4, 10, 4)
    outcome, recorder = _run(function, minimum.clone())
    assert (outcome.reason, outcome.iterations) == ("converged", 0)
    assert len(recorder.trials) == 1
    assert torch.equal(outcome.x, minimum)


def test_without_a_lower_point_it_says_flat() -> None:
    # a gradient that lies: nothing along it is lower
    outcome = minimize(
        lambda x: (float(x.abs().sum()), torch.ones_like(x)), torch.zeros(2), _largest, Descent(50, 0.01)
    )
    assert outcome.reason == "flat"
    assert outcome.energy == 0
    assert torch.equal(outcome.x, torch.zeros(2))


@pytest.mark.parametrize(("first_move", "max_move"), [(0.25, 0.5), (1.0, 8.0)])
def test_no_step_moves_more_than_its_bound(first_move: float, max_move: float) -> None:
    function, minimum = _quadratic(6, 50, 5)
    outcome, recorder = _run(function, minimum + 40, first_move=first_move, max_move=max_move)
    assert outcome.reason == "converged"
    at = 0
    for trial in recorder.trials[1:]:
        bound = first_move if at == 0 else max_move
        assert _largest(trial - recorder.path[at]) <= bound * (1 + 1e-9)
        if at + 1 < len(recorder.path) and torch.equal(trial, recorder.path[at + 1]):
            at += 1
    assert at == len(recorder.path) - 1


def test_the_minimiser_is_blind_to_the_scale_of_the_energy() -> None:
    start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    ends = [_run(lambda x, k=k: k * _rosenbrock(x), start)[0].x for k in (1.0, 2.0**20, 2.0**-20)]
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(ends[0], ends[2], rtol=0, atol=1e-6)


# --------------------------------------------------------------------------------------------------------- adapt_prior


@pytest.mark.parametrize("size", [0.0, 0.01, 3.0])
def test_adapting_the_prior_leaves_the_velocity_as_it_is(size: float) -> None:
    grid = rf.Grid((60, 80), (0.5, 0.5), unit="µm")
    space = velocity_space(grid, rf.Config())
    increment = Increment("affine", 2, 50.0)
    u = torch.randn(space.size, generator=torch.Generator().manual_seed(0))
    displacement = space.velocity(u).mean(dim=0)
    moving = Frame.of(grid).grid(grid)
    inside = moving.contains(space.grid.coords())
    rms = float((displacement**2)[:, inside].mean().sqrt())
    x = torch.cat([torch.arange(6.0), u * size / rms])
    fit = Fit(x, MapSpace(torch.eye(3, dtype=torch.float64), increment, space))
    before, old = fit.velocity, space.deviation
    adapt_prior(fit, moving, DEVIATION_MARGIN)
    assert fit.space is not None
    assert fit.velocity is not None
    assert torch.equal(fit.x[:6], x[:6])
    torch.testing.assert_close(fit.velocity, before, rtol=1e-4, atol=1e-5)
    assert fit.space.deviation == pytest.approx(max(DEVIATION_MARGIN * size, DEVIATION_FLOOR), rel=1e-4)
    assert space.deviation == old  # the space it came from is another's too


@pytest.mark.parametrize("size", [0.1, 3.0, 12.0])
def test_a_steep_velocity_gets_steps_enough_to_stay_invertible(size: float) -> None:
    space = velocity_space(rf.Grid((60, 80)), rf.Config())
    u = size * torch.randn(space.size, generator=torch.Generator().manual_seed(2)) / space.deviation
    finer = enough_steps(space, u)
    assert finer.n_steps % space.n_slices == 0
    assert space.n_steps <= finer.n_steps <= MOST_STEPS
    assert finer.steep(u) <= STEEPEST
    if finer.n_steps > space.n_steps:  # and no more than that
        assert space.with_steps(finer.n_steps - space.n_slices).steep(u) > STEEPEST
    else:
        assert size < 1
    flow = rf.Flow(space.velocity(u), space.grid, finer.n_steps)
    x = rf.Grid((60, 80), (1.0, 1.0), (-29.5, -39.5)).coords()
    # pixels small enough that their corners see the derivative, however much the map stretches them
    assert flow.jacobian_determinant(rf.Grid((100, 100), (0.02, 0.02), (3.0, 5.0))).min() > 0
    torch.testing.assert_close(flow.inverse().points(flow.points(x)), x, rtol=0, atol=1e-8)


def test_velocities_cover_the_canvas_and_a_margin_in_moving_pixels() -> None:
    for unit in (1.0, 5e-4):
        grid = rf.Grid((90, 120), (unit, unit), (7 * unit, 0.0))
        space = velocity_space(grid, rf.Config(n_slices=2, n_steps=6))
        assert (space.n_slices, space.n_steps) == (2, 6)
        assert space.scale == pytest.approx((90 * 120) ** 0.5 / 10)  # a tenth of the canvas' extent
        assert space.grid.spacing == pytest.approx((space.scale / 3,) * 2)  # three nodes to a scale
        assert space.grid.center == pytest.approx((0.0, 0.0), abs=1e-9)
        assert space.grid.extent[0] >= 180
        assert space.grid.extent[1] >= 240
    given_ = rf.Config.model_validate({"sobolev": {"scale": 20.0}, "sigma_regularizer": 6.0})
    space = velocity_space(rf.Grid((90, 120), (2.0, 2.0)), given_)
    assert (space.scale, space.deviation) == (10.0, 3.0)  # stated in the moving unit


# -------------------------------------------------------------------------------------------------------- build_levels


def _still(ndim: int, zoom: float = 1.0) -> Tensor:
    """``B_0`` for a moving pixel that measures ``zoom`` fixed ones."""
    start = torch.eye(ndim + 1, dtype=torch.float64)
    start[:ndim, :ndim] /= zoom
    return start


def _image(shape: tuple[int, ...], spacing: float = 1.0, channels: int = 1) -> rf.Image:
    data = torch.randn((channels, *shape), generator=torch.Generator().manual_seed(1))
    return rf.Image(data, rf.Grid(shape, (spacing,) * len(shape), unit="µm"))


def test_the_pyramid_halves_to_about_forty_pixels() -> None:
    fixed, moving = _image((200, 330), 0.5, 3), _image((190, 301), 0.5)
    levels = build_levels(fixed, moving, _still(2), rf.Config())
    assert [level.fixed_grid.shape for level in levels] == [(50, 82), (100, 165), (200, 330)]
    assert [level.moving_grid.shape for level in levels] == [(47, 75), (95, 150), (190, 301)]
    assert [level.fixed_grid.spacing[0] for level in levels] == pytest.approx([4, 2, 1])  # pixels, whatever the unit
    for level in levels:
        assert level.fixed.shape == (3, *level.fixed_grid.shape)
        assert level.moving.shape == (1, *level.moving_grid.shape)
        assert level.fixed.dtype == level.moving.dtype == torch.float32
        assert torch.equal(level.fixed_weight, torch.ones(level.fixed_grid.shape))
        assert level.moving_weight is None
    assert torch.allclose(levels[-1].fixed.mean(dim=(1, 2)), torch.zeros(3), atol=1e-2)


def test_noise_is_told_from_structure_and_softened_away() -> None:
    noise = torch.randn((1, 200, 300), generator=torch.Generator().manual_seed(0))
    assert noise_share(noise) == pytest.approx(1, abs=0.05)
    assert noise_share(torch.randn((2, 40, 30, 50), generator=torch.Generator().manual_seed(1))) == pytest.approx(
        1, abs=0.1
    )
    waves = torch.sin(torch.arange(300) / 3.0).expand(1, 200, 300)
    assert noise_share(waves) < 0.05
    assert 0.2 < noise_share(waves + 0.1 * noise) < noise_share(waves + noise) < 1.1
    assert noise_share(torch.ones((1, 9, 9))) == 0
    soft = soften(noise)
    assert float(soft.var()) == pytest.approx((6 / 16) ** 2, rel=0.05)
    assert torch.equal(soften(torch.full((1, 4, 1), 3.0)), torch.full((1, 4, 1), 3.0))
    grid = rf.Grid((200, 300))
    level = build_levels(*(rf.Image(data, grid) for data in (waves, noise)), _still(2), rf.Config())[-1]
    assert float(level.moving.std()) == pytest.approx(6 / 16, rel=0.05)
    level = build_levels(*(rf.Image(data, grid) for data in (noise, waves)), _still(2), rf.Config())[-1]
    assert float(level.fixed.std()) == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize(
    ("pyramid", "sizes"),
    [
        (Pyramid(levels=1), [128]),
        (Pyramid(levels=3), [32, 64, 128]),
        (Pyramid(finest=1), [64]),
        (Pyramid(finest=1, levels=2), [32, 64]),
        (Pyramid(max_pixels=4096, levels=1), [64]),
        (Pyramid(max_pixels=4095, levels=1), [32]),
        (Pyramid(levels=12), [4, 8, 16, 32, 64, 128]),  # no level twice, none of nothing
    ],
)
def test_the_pyramid_is_as_asked(pyramid: Pyramid, sizes: list[int]) -> None:
    image = _image((128, 128))
    levels = build_levels(image, image, _still(2), rf.Config(pyramid=pyramid))
    assert [level.fixed_grid.shape[0] for level in levels] == sizes


@pytest.mark.parametrize(
    ("shape", "most"),
    [((2000, 2000), 1_500_000), ((256, 256, 256), 2_200_000), ((1, 2000, 2000), 1_500_000)],
)
def test_a_volume_is_fitted_on_more_values_than_a_picture(shape: tuple[int, ...], most: int) -> None:
    assert rf.Config().most_of(shape) == most
    assert rf.Config(pyramid=Pyramid(max_pixels=4095)).most_of(shape) == 4095
    assert rf.Config(effort="low").most_of(shape) == 100_000


@pytest.mark.parametrize("shape", [(150, 211), (64, 70, 81), (5, 90, 100)])
def test_every_level_shows_the_same_thing_at_the_same_place(shape: tuple[int, ...]) -> None:
    ndim = len(shape)
    grid = rf.Grid(shape, (3.0,) * ndim, tuple(10.0 * d for d in range(ndim)), "µm")
    ramp = (grid.coords() @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)[:ndim])[None]
    image = rf.Image(ramp, grid, weight=torch.ones(shape))
    levels = build_levels(image, image, _still(ndim), rf.Config.model_validate({"pyramid": {"levels": 2}}))
    assert len(levels) == 2
    slope = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)[:ndim] * 3.0 / ramp.std(correction=0)
    for level in levels:
        for data, at in ((level.fixed, level.fixed_grid), (level.moving, level.moving_grid)):
            inner = tuple(slice(1, -1) if n > 2 else slice(None) for n in at.shape)
            expected = (at.coords() @ slope)[inner]  # zero in the middle of the canvas
            if shape[0] == 5:  # a thin stack is left whole: its planes are too few
                assert at.shape[0] == 5
            torch.testing.assert_close(data[0][inner].double(), expected, rtol=0, atol=1e-4)


def test_both_sides_are_halved_to_pixels_of_one_size() -> None:
    # a moving pixel as large as four fixed ones is halved twice less
    levels = build_levels(_image((256, 256)), _image((64, 64)), _still(2, 4.0), rf.Config())
    assert [level.fixed_grid.shape[0] for level in levels] == [64, 128, 256]
    assert [level.moving_grid.shape[0] for level in levels] == [64, 64, 64]
    levels = build_levels(_image((64, 64)), _image((256, 256)), _still(2, 0.25), rf.Config())
    assert [level.fixed_grid.shape[0] for level in levels] == [64]
    assert [level.moving_grid.shape[0] for level in levels] == [64]


def test_masks_are_halved_with_their_images() -> None:
    weight = torch.zeros((96, 96))
    weight[:, 48:] = 1
    image = _image((96, 96))
    image = image.replace(weight=weight)
    coarse = build_levels(image, image, _still(2), rf.Config())[0]
    for got in (coarse.fixed_weight, coarse.moving_weight):
        assert got is not None
        assert got.shape == (48, 48)
        assert (got[:, :22] == 0).all()
        assert (got[:, 26:] == 1).all()
        assert float(got.min()) >= 0
        assert float(got.max()) <= 1


# ------------------------------------------------------------------------------------------------------ the whole solver


def _texture(n: int) -> Tensor:
    """``[1, n, n]``: structure at two sizes, as tissue has."""
    generator = torch.Generator().manual_seed(0)
    out = torch.zeros((n, n), dtype=torch.float64)
    for sigma in (2.5, 6.0):
        noise = torch.from_numpy(
            scipy.ndimage.gaussian_filter(torch.randn((n, n), generator=generator, dtype=torch.float64).numpy(), sigma)
        )
        out += noise / noise.std()
    return out[None]


SIDE = 96


@pytest.fixture(scope="module")
def pair() -> tuple[Tensor, Tensor, rf.Transform]:
    """Fixed and moving pixels ``[1, 96, 96]`` and the true map between them, in px."""
    grid = rf.Grid((SIDE, SIDE))
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn((1, 2, 7, 7), generator=generator, dtype=torch.float64)
    nodes = torch.nn.functional.interpolate(coarse, size=(37, 37), mode="bicubic", align_corners=True)
    flow = rf.Flow(2.0 * nodes, rf.Grid((37, 37), (4.0, 4.0), (-24.0, -24.0)), n_steps=3)
    cos, sin = math.cos(0.12), math.sin(0.12)
    linear = torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)
    matrix = torch.eye(3, dtype=torch.float64)
    middle = torch.tensor(grid.center, dtype=torch.float64)
    matrix[:2, :2], matrix[:2, 2] = linear, middle - linear @ middle + torch.tensor([2.0, -3.0])
    truth = rf.Sequence((flow, rf.Affine(matrix)))
    moving = _texture(SIDE)
    fixed = 1 - 2 * rf.resample(rf.Image(moving, grid), truth, grid).data
    return fixed, moving, truth


def _solve(pair: tuple[Tensor, Tensor, rf.Transform], spacing: float, unit: str, **options: object) -> rf.Result:
    grid = rf.Grid((SIDE, SIDE), (spacing, spacing), unit=unit)
    return rf.register(rf.Image(pair[0], grid), rf.Image(pair[1], grid), init="identity", **options)  # type: ignore[arg-type]


def _back(result: rf.Result) -> Tensor:
    """Where the fixed pixels lie in the moving image, in its pixels."""
    return result.transform.inverse().points(result.fixed_grid.coords()) / result.moving_grid.pixel


@pytest.fixture(scope="module")
def in_pixels(pair: tuple[Tensor, Tensor, rf.Transform]) -> rf.Result:
    return _solve(pair, 1.0, "px")


def _errors(pair: tuple[Tensor, Tensor, rf.Transform], back: Tensor) -> Tensor:
    grid = rf.Grid((SIDE, SIDE))
    true = pair[2].inverse().points(grid.coords())
    return (back - true).norm(dim=-1)[grid.contains(true)]


def test_a_bent_pair_is_found(pair: tuple[Tensor, Tensor, rf.Transform], in_pixels: rf.Result) -> None:
    error = _errors(pair, _back(in_pixels))
    assert float(_errors(pair, rf.Grid((SIDE, SIDE)).coords()).mean()) > 4  # before
    assert float(error.mean()) < 0.2
    assert float(error.quantile(0.95)) < 0.6
    assert in_pixels.metrics["roundtrip_px"]["max"] < 1e-6
    assert in_pixels.metrics["folding_fraction"] == 0
    final = [h["energy"] for h in in_pixels.history if h["stage"] == "lddmm"]
    assert final
    assert in_pixels.verdict in ("pass", "warn")


@pytest.mark.parametrize(("spacing", "unit"), [(0.5, "µm"), (0.0005, "mm")])
def test_the_fit_does_not_know_its_unit(
    pair: tuple[Tensor, Tensor, rf.Transform], in_pixels: rf.Result, spacing: float, unit: str
) -> None:
    result = _solve(pair, spacing, unit)
    assert (result.transform.source_unit, result.transform.target_unit) == (unit, unit)
    assert float((_back(result) - _back(in_pixels)).norm(dim=-1).max()) < 1e-3
    assert result.metrics["n_evaluations"] == in_pixels.metrics["n_evaluations"]


@pytest.mark.parametrize("transform", ["rigid", "affine"])
def test_a_smaller_family_does_not_know_its_unit_either(
    pair: tuple[Tensor, Tensor, rf.Transform], transform: str
) -> None:
    found = [_solve(pair, s, u, transform=transform) for s, u in ((1.0, "px"), (0.0005, "mm"))]
    assert float((_back(found[0]) - _back(found[1])).norm(dim=-1).max()) < 1e-3
    before = float(_errors(pair, rf.Grid((SIDE, SIDE)).coords()).mean())
    assert float(_errors(pair, _back(found[0])).mean()) < 0.6 * before
    if transform == "rigid":
        assert isinstance(found[1].affine, rf.Affine)
        block = found[1].affine.matrix[:2, :2]
        torch.testing.assert_close(block @ block.T, torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-9)


def test_each_side_may_state_its_own_unit(pair: tuple[Tensor, Tensor, rf.Transform], in_pixels: rf.Result) -> None:
    fixed = rf.Image(pair[0], rf.Grid((SIDE, SIDE), (5e-4, 5e-4), unit="mm"))
    moving = rf.Image(pair[1], rf.Grid((SIDE, SIDE), (0.5, 0.5), unit="µm"))
    result = rf.register(fixed, moving, init="identity")
    assert (result.transform.source_unit, result.transform.target_unit) == ("µm", "mm")
    assert float((_back(result) - _back(in_pixels)).norm(dim=-1).max()) < 1e-3


def test_the_fit_does_not_know_where_the_origin_is(
    pair: tuple[Tensor, Tensor, rf.Transform], in_pixels: rf.Result
) -> None:
    # a section cut from a stage of ten centimetres, in µm
    origin = (43210.5, 98765.25)
    grid = rf.Grid((SIDE, SIDE), (0.5, 0.5), origin, "µm")
    result = rf.register(rf.Image(pair[0], grid), rf.Image(pair[1], grid), init="identity")
    at = (result.transform.inverse().points(grid.coords()) - torch.tensor(origin, dtype=torch.float64)) / 0.5
    assert float((at - _back(in_pixels)).norm(dim=-1).max()) < 1e-3


def test_the_fit_does_not_know_brightness_and_polarity(
    pair: tuple[Tensor, Tensor, rf.Transform], in_pixels: rf.Result
) -> None:
    grid = rf.Grid((SIDE, SIDE))
    result = rf.register(rf.Image(7 - 40 * pair[0], grid), rf.Image(300 + 0.1 * pair[1], grid), init="identity")
    assert float((_back(result) - _back(in_pixels)).norm(dim=-1).mean()) < 0.02


def test_the_same_input_gives_the_same_bytes(pair: tuple[Tensor, Tensor, rf.Transform], in_pixels: rf.Result) -> None:
    again = _solve(pair, 1.0, "px")
    for a, b in zip(again.transform.parts(), in_pixels.transform.parts(), strict=True):
        assert type(a) is type(b)
        if isinstance(a, rf.Flow):
            assert isinstance(b, rf.Flow)
            assert a.velocity.numpy().tobytes() == b.velocity.numpy().tobytes()
        else:
            assert isinstance(a, rf.Affine)
            assert isinstance(b, rf.Affine)
            assert a.matrix.numpy().tobytes() == b.matrix.numpy().tobytes()
    assert again.weight is not None
    assert in_pixels.weight is not None
    assert again.weight.numpy().tobytes() == in_pixels.weight.numpy().tobytes()
    assert [h["energy"] for h in again.history] == [h["energy"] for h in in_pixels.history]
