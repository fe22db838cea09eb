"""Maps and resampling: laws of the group, direction, Jacobians, units, and images pulled through."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import regframe as rf
from regframe import ops
from regframe.maps import resample

SIDE = 24.0  # length of the region the random maps live in
KINDS = ["affine", "flow", "displacement", "sequence"]

laws = settings(max_examples=15)
seeds = st.integers(0, 2**31)
ndims = st.sampled_from([2, 3])


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1


def _nodes(ndim: int, unit: str = "px") -> rf.Grid:
    return rf.Grid((7,) * ndim, (4.0,) * ndim, (0.5,) * ndim, unit)


def _affine(ndim: int, generator: torch.Generator, unit: str = "px") -> rf.Affine:
    skew = _uniform((ndim, ndim), generator)
    matrix = torch.eye(ndim + 1, dtype=torch.float64)
    # a turn, a shear and a size: any orientation, never near singular
    matrix[:ndim, :ndim] = torch.linalg.matrix_exp(2 * (skew - skew.T)) @ torch.linalg.matrix_exp(
        0.3 * _uniform((ndim, ndim), generator)
    )
    matrix[:ndim, ndim] = 10 * _uniform((ndim,), generator)
    return rf.Affine(matrix, unit, unit)


def _flow(ndim: int, generator: torch.Generator, unit: str = "px") -> rf.Flow:
    # slope per step at most 2 * ndim * 1.0 / 4 / 4 < 1: every step is a bijection
    return rf.Flow(_uniform((2, ndim, *(7,) * ndim), generator), _nodes(ndim, unit), n_steps=4)


def _displacement(ndim: int, generator: torch.Generator, unit: str = "px") -> rf.Displacement:
    return rf.Displacement(0.5 * _uniform((ndim, *(7,) * ndim), generator), _nodes(ndim, unit))


def _random(kind: str, ndim: int, generator: torch.Generator, unit: str = "px") -> rf.Transform:
    if kind == "affine":
        return _affine(ndim, generator, unit)
    if kind == "flow":
        return _flow(ndim, generator, unit)
    if kind == "displacement":
        return _displacement(ndim, generator, unit)
    return rf.Sequence(
        (_flow(ndim, generator, unit), _affine(ndim, generator, unit), _displacement(ndim, generator, unit))
    )


def _coords(n: int, ndim: int, generator: torch.Generator) -> Tensor:
    """Positions inside the nodes, on their rim and well outside."""
    return (1.6 * _uniform((n, ndim), generator) + 1) * SIDE / 2


# ---------------------------------------------------------------------------------------------------------- group laws


@pytest.mark.parametrize("kind", KINDS)
@laws
@given(seed=seeds, ndim=ndims)
def test_round_trip_is_the_identity_both_ways(kind: str, seed: int, ndim: int) -> None:
    generator = _generator(seed)
    t, x = _random(kind, ndim, generator), _coords(40, ndim, generator)
    y = t.points(x)
    assert y.dtype == torch.float64
    assert (y - x).abs().max() > 1e-3  # it does move something
    torch.testing.assert_close(t.inverse().points(y), x, rtol=0, atol=1e-9)
    torch.testing.assert_close(t.points(t.inverse().points(x)), x, rtol=0, atol=1e-9)
    assert torch.equal(t.inverse().inverse().points(x), y) or kind in ("affine", "sequence")
    torch.testing.assert_close(t.inverse().inverse().points(x), y, rtol=0, atol=1e-9)


@laws
@given(seed=seeds, ndim=ndims, kinds=st.tuples(*[st.sampled_from(KINDS)] * 3))
def test_a_sequence_is_associative_and_first_means_first(seed: int, ndim: int, kinds: tuple[str, ...]) -> None:
    generator = _generator(seed)
    a, b, c = (_random(kind, ndim, generator) for kind in kinds)
    x = _coords(20, ndim, generator)
    nested = rf.Sequence((rf.Sequence((a, b)), c))
    assert nested.parts() == rf.Sequence((a, rf.Sequence((b, c)))).parts()
    assert torch.equal(nested.points(x), c.points(b.points(a.points(x))))
    assert torch.equal(rf.Sequence((a, rf.Sequence((b, c)))).points(x), nested.points(x))


@laws
@given(seed=seeds, ndim=ndims, kinds=st.tuples(*[st.sampled_from(KINDS)] * 2))
def test_the_inverse_of_a_sequence_undoes_the_last_first(seed: int, ndim: int, kinds: tuple[str, ...]) -> None:
    generator = _generator(seed)
    a, b = (_random(kind, ndim, generator) for kind in kinds)
    x = _coords(20, ndim, generator)
    back = rf.Sequence((a, b)).inverse().points(x)
    torch.testing.assert_close(back, a.inverse().points(b.inverse().points(x)), rtol=0, atol=1e-12)
    around = rf.Sequence((a, b, b.inverse(), a.inverse()))
    torch.testing.assert_close(around.points(x), x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_neutral_maps_leave_every_position_where_it_is(ndim: int) -> None:
    x = _coords(20, ndim, _generator(0))
    grid = _nodes(ndim)
    still = [
        rf.Affine.identity(ndim),
        rf.Flow(torch.zeros((3, ndim, *grid.shape)), grid),
        rf.Displacement(torch.zeros((ndim, *grid.shape)), grid),
    ]
    for t in [*still, rf.Sequence(tuple(still))]:
        assert torch.equal(t.points(x), x)
        assert torch.equal(t.inverse().points(x), x)
        assert t.axes == ("z", "y", "x")[-ndim:]
        torch.testing.assert_close(t.jacobian_determinant(grid), torch.ones(grid.shape, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_points_take_any_leading_shape(kind: str) -> None:
    t, x = _random(kind, 2, _generator(3)), _coords(12, 2, _generator(4))
    torch.testing.assert_close(t.points(x.reshape(3, 4, 2)), t.points(x).reshape(3, 4, 2), rtol=0, atol=1e-12)
    torch.testing.assert_close(t.points(x[0]), t.points(x)[0], rtol=0, atol=1e-12)
    assert t.points(torch.zeros((0, 2))).shape == (0, 2)
    with pytest.raises(ValueError, match=r"wanted coordinates \[\.\.\., 2\]"):
        t.points(torch.zeros((5, 3)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_position_that_is_not_finite_becomes_nan_and_spares_the_others(kind: str, ndim: int, bad: float) -> None:
    generator = _generator(5)
    t, x = _random(kind, ndim, generator), _coords(6, ndim, generator)
    broken = x.clone()
    broken[1, 0] = bad
    broken[4] = bad
    for m in (t, t.inverse()):
        out, clean = m.points(broken), m.points(x)
        for row in (0, 2, 3, 5):
            torch.testing.assert_close(out[row], clean[row], rtol=0, atol=1e-12)
        if math.isnan(bad):
            assert out[[1, 4]].isnan().all()
        else:  # an affine map may keep infinity, none may make a number of it
            assert not out[[1, 4]].isfinite().any()


# ------------------------------------------------------------------------------------------ the discretisation of METHOD


def _interpolated(field: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Multilinear, zero outside, fading over one cell: ``[N, D]`` of ``[D, *S]``; scipy as an independent witness."""
    return np.stack(
        [scipy.ndimage.map_coordinates(f, index.T, order=1, mode="grid-constant", cval=0.0) for f in field], axis=-1
    )


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_inverse_flow_takes_the_pull_back_steps_of_the_method(ndim: int) -> None:
    generator = _generator(6)
    grid = rf.Grid((6, 7, 8)[:ndim], (3.0, 2.0, 4.0)[:ndim], (-1.0, 0.5, 2.0)[:ndim])
    velocity = _uniform((3, ndim, *grid.shape), generator)
    x = _coords(50, ndim, generator)
    expected, n_steps = x.numpy().copy(), 6
    for step in reversed(range(n_steps)):
        v = velocity[step // 2].numpy()
        index = (expected - np.array(grid.origin)) / np.array(grid.spacing)
        expected = expected - _interpolated(v, index) / n_steps
    actual = rf.Flow(velocity, grid, n_steps).inverse().points(x)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_displacement_adds_its_interpolated_field(ndim: int) -> None:
    generator = _generator(7)
    grid = rf.Grid((6, 7, 8)[:ndim], (3.0, 2.0, 4.0)[:ndim], (-1.0, 0.5, 2.0)[:ndim])
    field, x = 0.4 * _uniform((ndim, *grid.shape), generator), _coords(50, ndim, generator)
    index = (x.numpy() - np.array(grid.origin)) / np.array(grid.spacing)
    expected = x.numpy() + _interpolated(field.numpy(), index)
    np.testing.assert_allclose(rf.Displacement(field, grid).points(x).numpy(), expected, rtol=0, atol=1e-12)


def test_a_flow_moves_points_along_its_velocity() -> None:
    velocity = torch.zeros((4, 2, 9, 9), dtype=torch.float64)
    velocity[:, 0], velocity[:, 1] = 2.0, -3.0  # (y, x)
    flow = rf.Flow(velocity, rf.Grid((9, 9), (5.0, 5.0)))
    start = torch.tensor([[20.0, 20.0]])
    assert flow.points(start)[0].tolist() == pytest.approx([22.0, 17.0])
    assert flow.inverse().points(start)[0].tolist() == pytest.approx([18.0, 23.0])


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rf.Affine(torch.eye(2)), "homogeneous matrix"),
        (lambda: rf.Affine(torch.full((3, 3), float("nan"))), "finite matrix"),
        (lambda: rf.Affine(torch.ones((3, 3))), "last row"),
        (lambda: rf.Affine(torch.diag(torch.tensor([1.0, 0.0, 1.0]))).inverse(), "invertible"),
        (lambda: rf.Affine(torch.tensor([[1.0, 2, 0], [2, 4, 0], [0, 0, 1]])).inverse(), "invertible"),
        (lambda: rf.Flow(torch.zeros((1, 2, 4, 5)), rf.Grid((4, 4))), "wanted a velocity"),
        (lambda: rf.Flow(torch.zeros((1, 3, 4, 4)), rf.Grid((4, 4))), "2 components"),
        (lambda: rf.Flow(torch.zeros((3, 2, 4, 4)), rf.Grid((4, 4)), 4), "multiple of the 3"),
        (lambda: rf.Flow(torch.full((1, 2, 4, 4), float("inf")), rf.Grid((4, 4))), "finite velocity"),
        (lambda: rf.Displacement(torch.zeros((2, 4, 5)), rf.Grid((4, 4))), "wanted a field"),
        (lambda: rf.Displacement(torch.full((2, 4, 4), float("nan")), rf.Grid((4, 4))), "finite displacement"),
        (lambda: rf.Sequence(()), "at least one map"),
        (lambda: rf.Sequence((rf.Affine.identity(2), rf.Affine.identity(3))), "one dimension"),
        (lambda: rf.Sequence((rf.Affine.identity(2, "µm"), rf.Affine.identity(2, "mm"))), "units meet"),
        (lambda: rf.Sequence((_flow(2, _generator(0), "mm"), rf.Affine.identity(2))), "mm before px"),
        (lambda: rf.Affine.identity(2, "mm").jacobian_determinant(rf.Grid((4, 4))), "map's source"),
        (lambda: rf.Affine.identity(2).jacobian_determinant(rf.Grid((4, 4, 4))), "2 axes"),
        (lambda: rf.displacement_of(rf.Affine(torch.eye(3), "px", "mm"), rf.Grid((4, 4))), "within one unit"),
        (lambda: rf.Affine(torch.eye(3), "parsec"), "wanted a length unit"),
    ],
)
def test_maps_that_cannot_be(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_units_pass_through_a_sequence_and_turn_round_in_its_inverse() -> None:
    to_mm = rf.Affine(torch.diag(torch.tensor([1e-3, 1e-3, 1.0])), "micrometer", "mm")
    t = rf.Sequence((_flow(2, _generator(0), "um"), to_mm, _flow(2, _generator(1), "mm")))
    assert (t.source_unit, t.target_unit, t.ndim) == ("µm", "mm", 2)
    assert (t.inverse().source_unit, t.inverse().target_unit) == ("mm", "µm")


# ---------------------------------------------------------------------------------------------------------- Jacobians


@laws
@given(seed=seeds, ndim=ndims)
def test_the_jacobian_of_an_affine_map_is_its_determinant_everywhere(seed: int, ndim: int) -> None:
    t = _affine(ndim, _generator(seed))
    grid = rf.Grid((3, 5, 4)[:ndim], (0.5, 2.0, 3.0)[:ndim], (-7.0, 1.0, 4.0)[:ndim])
    expected = torch.linalg.det(t.matrix[:-1, :-1]).expand(grid.shape)
    torch.testing.assert_close(t.jacobian_determinant(grid), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_jacobian_of_a_mirror_is_negative_and_of_another_unit_counts_it(ndim: int) -> None:
    grid = rf.Grid((4,) * ndim, (2.0,) * ndim, unit="mm")
    mirror = torch.diag(torch.tensor([*[1e3] * (ndim - 1), -1e3, 1.0]))
    determinant = rf.Affine(mirror, "mm", "µm").jacobian_determinant(grid)
    torch.testing.assert_close(determinant, torch.full(grid.shape, -(1e3**ndim), dtype=torch.float64))


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_jacobian_of_a_linear_flow_is_that_of_its_euler_steps(ndim: int) -> None:
    # v = A (x - c) is multilinear, so every step is linear: I - hA towards the moving side, its inverse towards the fixed
    generator = _generator(8)
    rate = 0.2 * _uniform((ndim, ndim), generator) + 0.2 * torch.eye(ndim)
    nodes = rf.Grid((9,) * ndim, (4.0,) * ndim, (-16.0,) * ndim)
    velocity = (nodes.coords() @ rate.T).movedim(-1, 0)[None]
    flow = rf.Flow(velocity, nodes, n_steps=5)
    step = torch.eye(ndim, dtype=torch.float64) - rate / 5
    determinant = torch.linalg.det(torch.linalg.matrix_power(step, 5))
    grid = rf.Grid((4,) * ndim, (1.0,) * ndim, (-1.5,) * ndim)
    assert abs(float(determinant) - 1) > 0.2  # not the trivial case
    torch.testing.assert_close(flow.inverse().jacobian_determinant(grid), determinant.expand(grid.shape))
    torch.testing.assert_close(flow.jacobian_determinant(grid), (1 / determinant).expand(grid.shape))


@laws
@given(seed=seeds, ndim=ndims)
def test_a_small_smooth_flow_never_folds(seed: int, ndim: int) -> None:
    t = _flow(ndim, _generator(seed))
    grid = rf.Grid((13,) * ndim, (2.0,) * ndim)
    for m in (t, t.inverse()):
        assert m.jacobian_determinant(grid).min() > 0
    # where one side grows the other shrinks by as much: the same relation at corresponding positions, in the mean
    area = float((t.jacobian_determinant(grid) * math.prod(grid.spacing)).sum())
    assert 0 < area < 4 * math.prod(grid.extent)


def test_a_fold_between_two_nodes_shows_as_a_negative_determinant_there_only() -> None:
    grid = rf.Grid((8, 10), (2.0, 1.0))
    field = torch.zeros((2, 8, 10), dtype=torch.float64)
    field[1, :, 4], field[1, :, 5] = 0.9, -0.9  # neighbours one apart change places
    pixels = rf.Grid((7, 9), (2.0, 1.0), (1.0, 0.5))  # their corners are the nodes
    determinant = rf.Displacement(field, grid).jacobian_determinant(pixels)
    expected = torch.tensor([1.0, 1, 1, 1.9, -0.8, 1.9, 1, 1, 1], dtype=torch.float64).expand(7, 9)
    torch.testing.assert_close(determinant, expected)
    # a grid whose pixels hold the fold in their middle: the corners see it too
    assert rf.Displacement(1.2 * field, grid).jacobian_determinant(pixels).min() < -1


# ----------------------------------------------------------------------------------------------------- displacement_of


def _bump(ndim: int, spacing: float = 2.0) -> rf.Flow:
    """A smooth flow: one Gaussian bump of width 8 that moves 2."""
    nodes = rf.Grid((25,) * ndim, (spacing,) * ndim)
    distance = (nodes.coords() - torch.tensor(nodes.center)).norm(dim=-1)
    velocity = torch.zeros((1, ndim, *nodes.shape), dtype=torch.float64)
    velocity[0, 0] = 2 * torch.exp(-(distance**2) / (2 * 8.0**2))
    velocity[0, 1] = -velocity[0, 0] / 2
    return rf.Flow(velocity, nodes, n_steps=3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_sampled_displacement_agrees_at_its_nodes(kind: str, ndim: int) -> None:
    t = _random(kind, ndim, _generator(9), "µm")
    grid = rf.Grid((5, 6, 7)[:ndim], (3.0, 2.0, 4.0)[:ndim], (1.0, 2.0, 0.0)[:ndim], "µm")
    sampled = rf.displacement_of(t, grid)
    assert sampled.grid == grid
    assert (sampled.source_unit, sampled.target_unit) == ("µm", "µm")
    torch.testing.assert_close(sampled.points(grid.coords()), t.points(grid.coords()), rtol=0, atol=1e-10)


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_sampled_displacement_is_exact_between_nodes_for_an_affine_map(ndim: int) -> None:
    t, grid = _affine(ndim, _generator(10)), rf.Grid((4,) * ndim, (8.0,) * ndim)
    x = (_uniform((50, ndim), _generator(11)) + 1) * 12  # inside the nodes
    torch.testing.assert_close(rf.displacement_of(t, grid).points(x), t.points(x), rtol=0, atol=1e-10)


def test_a_sampled_displacement_errs_between_nodes_by_the_square_of_their_distance() -> None:
    flow = _bump(2, 0.5 * 2)
    x = (_uniform((400, 2), _generator(12)) + 1) * 10 + 2
    errors = []
    for h in (4.0, 2.0):
        n = round(24 / h) + 1
        sampled = rf.displacement_of(flow, rf.Grid((n, n), (h, h)))
        errors.append(float((sampled.points(x) - flow.points(x)).norm(dim=-1).max()))
        # linear interpolation: h²/8 times the sum of the two second derivatives, at most 2/8² each for this bump
        assert errors[-1] < h**2 / 8 * 2 * (2 / 8.0**2) * math.hypot(1, 0.5) * 1.5
    assert 2.5 < errors[0] / errors[1] < 6


# --------------------------------------------------------------------------------------------------------------- units


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("unit", "scale"), [("µm", 0.5), ("mm", 0.0005)])
def test_one_map_stated_in_another_unit_is_the_same_map_scaled(kind: str, unit: str, scale: float) -> None:
    def scaled(t: rf.Transform) -> rf.Transform:
        if isinstance(t, rf.Affine):
            matrix = t.matrix.clone()
            matrix[:-1, -1] *= scale
            return rf.Affine(matrix, unit, unit)
        assert isinstance(t, rf.Flow | rf.Displacement)
        g = t.grid
        grid = rf.Grid(g.shape, tuple(s * scale for s in g.spacing), tuple(o * scale for o in g.origin), unit)
        if isinstance(t, rf.Flow):
            return rf.Flow(t.velocity * scale, grid, t.n_steps)
        return rf.Displacement(t.field * scale, grid)

    pixels = _random(kind, 2, _generator(13))
    physical = rf.Sequence(tuple(scaled(t) for t in pixels.parts()))
    x = _coords(40, 2, _generator(14))
    for a, b in ((pixels, physical), (pixels.inverse(), physical.inverse())):
        torch.testing.assert_close(b.points(x * scale) / scale, a.points(x), rtol=0, atol=1e-9)
    grid = rf.Grid((12, 9), (2.0, 1.5), (1.0, 3.0))
    metric = rf.Grid(grid.shape, tuple(s * scale for s in grid.spacing), tuple(o * scale for o in grid.origin), unit)
    torch.testing.assert_close(
        physical.jacobian_determinant(metric), pixels.jacobian_determinant(grid), rtol=0, atol=1e-9
    )
    data = torch.rand((2, 12, 9), generator=_generator(15), dtype=torch.float64)
    torch.testing.assert_close(
        rf.resample(rf.Image(data, metric), physical, metric).data,
        rf.resample(rf.Image(data, grid), pixels, grid).data,
        rtol=0,
        atol=1e-9,
    )


# ------------------------------------------------------------------------------------------------------------ resample


def _unfusable(t: rf.Transform) -> rf.Sequence:
    """The same map, followed by a displacement by nothing, which no fused op knows."""
    return rf.Sequence((t, rf.Displacement(torch.zeros((t.ndim, *(2,) * t.ndim)), rf.Grid((2,) * t.ndim))))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry per use of the fused op."""
    seen: list[str] = []
    warp = ops.warp_crop

    def spy(*args: object, **kwargs: object) -> object:
        seen.append("warp")
        return warp(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(ops, "warp_crop", spy)
    return seen


@pytest.mark.parametrize("kind", [*KINDS, "flow then affine"])
@pytest.mark.parametrize("labels", [False, True])
def test_what_is_bright_lands_where_its_position_goes(kind: str, labels: bool) -> None:
    """The one test of direction: image map and point map are the same map, in (y, x), with unlike axes."""
    grid = rf.Grid((30, 80), (2.0, 0.5), (-30.0, 5.0))
    generator = _generator(16)
    turn = rf.Affine(torch.tensor([[0.8, 0.5, 6.0], [-0.6, 0.9, -4.0], [0, 0, 1]]))
    nodes = rf.Grid((8, 8), (10.0, 8.0), (-36.0, -4.0))
    flow = rf.Flow(1.5 * _uniform((2, 2, 8, 8), generator) + 3, nodes, n_steps=4)
    move = {
        "affine": turn,
        "flow": flow,
        "displacement": rf.Displacement(0.5 * _uniform((2, 8, 8), generator) + 3, nodes),
        "sequence": rf.Sequence((turn, flow)),
        "flow then affine": rf.Sequence((flow, turn)),
    }[kind]
    spot = torch.tensor([-8.0, 28.0], dtype=torch.float64)
    distance = (grid.coords() - spot).norm(dim=-1)
    target = rf.Grid((90, 90), (0.8, 0.7), (-40.0, -25.0))
    if labels:
        image = rf.Image((distance < 5).to(torch.int32)[None] * 70000, grid, labels=True)
    else:
        image = rf.Image(torch.exp(-(distance**2) / 8)[None], grid)
    out = rf.resample(image, move, target).data[0].to(torch.float64)
    out = out / out.sum()
    landed = (out[..., None] * target.coords()).sum(dim=(0, 1))
    expected = move.points(spot)
    assert (expected - spot).norm() > 3
    assert (landed - expected).norm() < 0.3  # a spot of this size bends a little with the map


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32, torch.float32, torch.float64])
@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("generic", [False, True])
def test_a_shift_by_whole_pixels_is_exact(dtype: torch.dtype, labels: bool, generic: bool) -> None:
    values = torch.randint(0, 256, (2, 7, 11), generator=_generator(17)).to(dtype)
    grid = rf.Grid((7, 11), (2.0, 0.25), (3.0, -1.0))
    shift = torch.eye(3)
    shift[0, 2], shift[1, 2] = 2 * 2.0, -3 * 0.25  # two rows down, three columns left
    move: rf.Transform = rf.Affine(shift)
    out = rf.resample(rf.Image(values, grid, labels=labels), _unfusable(move) if generic else move, grid, background=9)
    assert out.data.dtype == dtype
    assert torch.equal(out.data[:, 2:, :8], values[:, :5, 3:])
    assert (out.data[:, :2].to(torch.float64) == 9).all()
    assert (out.data[:, :, 8:].to(torch.float64) == 9).all()


def test_a_shift_by_whole_voxels_is_exact() -> None:
    values = torch.randint(0, 256, (1, 4, 5, 6), generator=_generator(18)).to(torch.uint8)
    matrix = torch.eye(4)
    matrix[:3, 3] = torch.tensor([1.0, -2.0, 3.0])
    out = rf.resample(rf.Image(values, rf.Grid((4, 5, 6))), rf.Affine(matrix), rf.Grid((4, 5, 6)))
    assert torch.equal(out.data[:, 1:, :3, 3:], values[:, :3, 2:, :3])


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-10), (torch.float32, 2e-4)])
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("background", [None, 5.0])
@pytest.mark.parametrize("kind", ["affine", "flow", "flow then affine", "flow then two affine"])
def test_the_fused_path_equals_the_generic_one(
    dtype: torch.dtype, atol: float, ndim: int, background: float | None, kind: str, calls: list[str]
) -> None:
    generator = _generator(19)
    grid = rf.Grid((11, 13, 9)[:ndim], (2.0, 1.5, 2.5)[:ndim], (0.3, -0.2, 1.0)[:ndim])
    target = rf.Grid((10, 14, 8)[:ndim], (1.8, 1.7, 2.2)[:ndim], (-1.0, 2.0, 0.5)[:ndim])
    image = rf.Image(torch.rand((2, *grid.shape), generator=generator, dtype=torch.float64).to(dtype), grid)
    small = torch.eye(ndim + 1, dtype=torch.float64)
    small[:ndim] += 0.1 * _uniform((ndim, ndim + 1), generator)
    parts = {"affine": [rf.Affine(small)], "flow": [_flow(ndim, generator)]}
    parts["flow then affine"] = parts["flow"] + parts["affine"]
    turned = rf.Affine(small.flip(0, 1).roll((-1, -1), (0, 1)))  # does not commute with the first
    parts["flow then two affine"] = [*parts["flow then affine"], turned]
    move = rf.Sequence(tuple(parts[kind]))
    fused = rf.resample(image, move, target, background)
    assert calls == ["warp"]
    generic = rf.resample(image, _unfusable(move), target, background)
    assert calls == ["warp"]
    torch.testing.assert_close(fused.data, generic.data, rtol=0, atol=atol)
    # and the other way, in which the flow is followed towards the fixed image and comes first
    if kind == "flow then affine":
        back = rf.Sequence((move.inverse(),))
        fused = rf.resample(image, back, target, background)
        assert calls == ["warp", "warp"]
        generic = rf.resample(image, _unfusable(back), target, background)
        assert calls == ["warp", "warp"]
        torch.testing.assert_close(fused.data, generic.data, rtol=0, atol=atol)


@pytest.mark.parametrize("generic", [False, True])
def test_an_image_far_from_the_origin_is_sampled_where_it_is(generic: bool) -> None:
    # a section on a stage: single precision would misplace it by a hundredth of a pixel or more
    here = rf.Grid((9, 12), (0.1, 0.1), (0.0, 0.0), "µm")
    there = rf.Grid((9, 12), (0.1, 0.1), (81234.567, 98765.432), "µm")
    data = torch.rand((1, 9, 12), generator=_generator(24), dtype=torch.float64)
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[:2, 2] = torch.tensor([0.03, -0.06])
    move: rf.Transform = rf.Affine(matrix, "µm", "µm")
    expected = rf.resample(rf.Image(data, here), move, here).data
    if generic:
        move = rf.Sequence((move, rf.Displacement(torch.zeros((2, 2, 2)), rf.Grid((2, 2), unit="µm"))))
    torch.testing.assert_close(rf.resample(rf.Image(data, there), move, there).data, expected, rtol=0, atol=1e-7)


def test_labels_keep_their_ids_exactly() -> None:
    ids = torch.tensor([0, 1, 2**24 + 1, 2**40 + 3, -7])
    labels = ids[torch.randint(0, 5, (1, 20, 30), generator=_generator(20))]
    image = rf.Image(labels, rf.Grid((20, 30), (1.0, 0.5)), labels=True)
    move = rf.Sequence((_flow(2, _generator(21)), rf.Affine(torch.tensor([[0.9, 0.2, 1], [-0.1, 1.1, 2], [0, 0, 1]]))))
    target = rf.Grid((25, 25), (1.1, 0.7))
    out = rf.resample(image, move, target).data[0]
    assert out.dtype == torch.int64
    assert set(out.unique().tolist()) <= set(ids.tolist())
    at = move.inverse().points(target.coords())
    index = (at / torch.tensor([1.0, 0.5])).round().long()
    inside = image.grid.contains(at)
    assert 100 < int(inside.sum()) < inside.numel()
    nearest = labels[0][index[..., 0].clamp(0, 19), index[..., 1].clamp(0, 29)]
    assert torch.equal(out, torch.where(inside, nearest, 0))
    assert (rf.resample(image, move, target, background=-7).data[0][~inside] == -7).all()


def test_integer_intensities_are_rounded_and_clamped() -> None:
    image = rf.Image(torch.tensor([[[10, 21, 255, 254]]], dtype=torch.uint8), rf.Grid((1, 4)))
    shift = torch.eye(3)
    shift[1, 2] = -0.25  # target x shows source x + 0.25
    out = rf.resample(image, rf.Affine(shift), rf.Grid((1, 4)))
    # 12.75 and 79.5 and 254.75 round; truncation would give 12, 79 and 254
    assert out.data.tolist() == [[[13, 80, 255, 254]]]
    far = rf.Grid((1, 1), (1.0, 1.0), (50.0, 50.0))
    for background, value in ((300.0, 255), (-5.0, 0), (12.6, 13)):
        assert rf.resample(image, rf.Affine(shift), far, background).data.tolist() == [[[value]]]


def test_outside_shows_the_border_or_the_background() -> None:
    image = rf.Image(
        torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), rf.Grid((2, 2)), weight=torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    )
    wide = rf.Grid((4, 4), (1.0, 1.0), (-1.0, -1.0))
    still = rf.Affine.identity(2)
    border = rf.resample(image, still, wide)
    assert border.data[0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
    filled = rf.resample(image, still, wide, background=-1.0)
    assert filled.data[0].tolist() == [[-1, -1, -1, -1], [-1, 1, 2, -1], [-1, 3, 4, -1], [-1, -1, -1, -1]]
    # trust is never extrapolated
    assert border.weight is not None
    assert border.weight.tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert border.grid == wide
    assert rf.resample(image.replace(weight=None), still, wide).weight is None


def test_large_grids_are_done_in_bands_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    image = rf.Image(torch.rand((1, 23, 17), generator=_generator(22)), rf.Grid((23, 17), (1.0, 1.4), (4.0, 0.0)))
    move = _unfusable(_flow(2, _generator(23)))
    ids = image.replace(data=(image.data * 100).to(torch.int32), labels=True)
    whole = rf.resample(image, move, image.grid, 0.0).data, rf.resample(ids, move, image.grid).data
    monkeypatch.setattr(resample, "_CHUNK", 40)
    bands = rf.resample(image, move, image.grid, 0.0).data, rf.resample(ids, move, image.grid).data
    torch.testing.assert_close(bands[0], whole[0], rtol=0, atol=1e-6)
    assert torch.equal(bands[1], whole[1])


def test_an_image_is_refused_where_units_or_dimensions_do_not_fit() -> None:
    image = rf.Image(torch.zeros((1, 4, 4)), rf.Grid((4, 4), unit="µm"))
    to_mm = rf.Affine(torch.diag(torch.tensor([1e-3, 1e-3, 1.0])), "µm", "mm")
    assert rf.resample(image, to_mm, rf.Grid((4, 4), (1e-3, 1e-3), unit="mm")).grid.unit == "mm"
    with pytest.raises(ValueError, match="image in µm and a grid in mm"):
        rf.resample(image, to_mm, image.grid)
    with pytest.raises(ValueError, match="image in mm"):
        rf.resample(image, to_mm.inverse(), image.grid)
    with pytest.raises(ValueError, match="one dimension"):
        rf.resample(image, rf.Affine.identity(3, "µm"), image.grid)


def test_points_move_in_order_with_their_table_untouched() -> None:
    points = rf.PointSet(
        torch.tensor([[1.0, 2.0], [float("nan"), 0.0], [3.0, 4.0]]),
        unit="µm",
        weights=torch.tensor([1.0, 2.0, 3.0]),
        table={"cell": ["a", "b", "c"]},
    )
    to_mm = rf.Affine(torch.tensor([[1e-3, 0, 1], [0, 1e-3, 0], [0, 0, 1]]), "µm", "mm")
    moved = rf.move_points(points, to_mm)
    assert moved.unit == "mm"
    assert moved.table == points.table
    torch.testing.assert_close(moved.coords[[0, 2]], torch.tensor([[1.001, 0.002], [1.003, 0.004]]).double())
    assert moved.coords[1].isnan().all()
    with pytest.raises(ValueError, match="wanted points in mm"):
        rf.move_points(points, to_mm.inverse())
    with pytest.raises(ValueError, match="3 components"):
        rf.move_points(points, rf.Affine.identity(3, "µm"))
