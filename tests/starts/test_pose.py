"""Where a registration starts: maps of paired landmarks, and the search without any."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import regframe as rf
from regframe import verdict
from regframe.starts import images, landmarks, pose

laws = settings(max_examples=25)
seeds = st.integers(0, 2**31)
ndims = st.sampled_from([2, 3])

MOVING = torch.tensor([[150.0, 190.0], [100.0, 60.0], [75.0, 100.0]], dtype=torch.float64)
FIXED = torch.tensor([[160.0, 200.0], [100.0, 50.0], [75.0, 100.0]], dtype=torch.float64)


def _rotation(ndim: int, generator: torch.Generator) -> Tensor:
    q, _ = torch.linalg.qr(torch.randn((ndim, ndim), generator=generator, dtype=torch.float64))
    q[:, 0] *= torch.linalg.det(q)
    return q


def _map(linear: Tensor, generator: torch.Generator) -> rf.Affine:
    ndim = linear.shape[0]
    matrix = torch.eye(ndim + 1, dtype=torch.float64)
    matrix[:-1, :-1] = linear
    matrix[:-1, -1] = 100 * torch.randn(ndim, generator=generator, dtype=torch.float64)
    return rf.Affine(matrix)


def _points(n: int, ndim: int, generator: torch.Generator) -> Tensor:
    return 50 * torch.randn((n, ndim), generator=generator, dtype=torch.float64)


# --------------------------------------------------------------------------------------------------------- fit_points


def test_three_pairs_give_the_matrix_of_the_method_to_its_printed_digits() -> None:
    fitted, residuals = landmarks.fit_points(MOVING, FIXED, "affine")
    assert np.round(fitted.matrix.numpy(), 4).tolist() == [
        [1.0762, 0.0476, -10.4762],
        [-0.0952, 1.1905, -11.9048],
        [0, 0, 1],
    ]
    assert residuals.max() < 1e-9


@laws
@given(seed=seeds, ndim=ndims, kind=st.sampled_from(["translation", "rigid", "similarity", "affine"]))
def test_a_map_of_the_kind_is_recovered_exactly(seed: int, ndim: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    linear = torch.eye(ndim, dtype=torch.float64)
    if kind in ("rigid", "similarity"):
        linear = _rotation(ndim, generator)
    if kind == "similarity":
        linear = linear * (0.2 + 3 * float(torch.rand(1, generator=generator)))
    if kind == "affine":
        linear = _rotation(ndim, generator) @ torch.diag(torch.tensor([1.5, 0.7, 1.2])[:ndim].double())
    truth = _map(linear, generator)
    p = _points(8, ndim, generator)
    fitted, residuals = landmarks.fit_points(p, truth.points(p), kind)
    torch.testing.assert_close(fitted.matrix, truth.matrix, rtol=0, atol=1e-9)
    assert residuals.shape == (8,)
    assert residuals.max() < 1e-9


@laws
@given(seed=seeds, ndim=ndims, kind=st.sampled_from(["rigid", "similarity"]))
def test_mirrored_data_are_never_answered_with_a_mirror(seed: int, ndim: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    mirror = _rotation(ndim, generator)
    mirror[:, 0] *= -1
    p = _points(9, ndim, generator)
    q = _map(mirror, generator).points(p)
    fitted, residuals = landmarks.fit_points(p, q, kind)
    linear = fitted.matrix[:-1, :-1]
    size = float(torch.linalg.det(linear))
    assert size > 0
    unit = linear / size ** (1 / ndim)
    torch.testing.assert_close(unit @ unit.T, torch.eye(ndim, dtype=torch.float64), rtol=0, atol=1e-9)
    if kind == "rigid":
        assert size == pytest.approx(1)
    assert residuals.max() > 1  # and the misfit is said
    _is_least(fitted, p, q, kind)


@laws
@given(seed=seeds, ndim=ndims, kind=st.sampled_from(["translation", "rigid", "similarity", "affine"]))
def test_noisy_pairs_get_the_best_map_of_the_kind(seed: int, ndim: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    p = _points(7, ndim, generator)
    q = _map(_rotation(ndim, generator), generator).points(p) + 3 * torch.randn(p.shape, generator=generator).double()
    fitted, residuals = landmarks.fit_points(p, q, kind)
    torch.testing.assert_close(residuals, (fitted.points(p) - q).norm(dim=1))
    _is_least(fitted, p, q, kind)


def _is_least(fitted: rf.Affine, p: Tensor, q: Tensor, kind: str) -> None:
    """No small change within the kind lowers the sum of squares."""
    ndim = p.shape[1]
    centre = q.mean(dim=0)
    mapped = fitted.points(p)
    cost = ((mapped - q) ** 2).sum()
    changes = [torch.zeros((ndim, ndim), dtype=torch.float64)]  # with a shift alone
    for i in range(ndim):
        for j in range(ndim):
            e = torch.zeros((ndim, ndim), dtype=torch.float64)
            e[i, j] = 1
            if kind == "affine":
                changes.append(e)
            elif kind in ("rigid", "similarity") and i < j:
                changes.append(e - e.T)
    if kind == "similarity":
        changes.append(torch.eye(ndim, dtype=torch.float64))
    for change in changes:
        for sign in (-1e-3, 1e-3):
            moved = (mapped - centre) @ torch.linalg.matrix_exp(sign * change).T + centre
            assert ((moved - q) ** 2).sum() >= cost * (1 - 1e-12)
            assert ((moved + sign - q) ** 2).sum() > cost - 1e-9 or bool(change.any())


@pytest.mark.parametrize("kind", ["translation", "rigid", "similarity", "affine"])
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("ndim", [2, 3])
def test_fewer_than_three_pairs_give_a_translation(kind: str, n: int, ndim: int) -> None:
    p = _points(n, ndim, torch.Generator().manual_seed(0))
    q = p + torch.tensor([5.0, -3.0, 2.0])[:ndim]
    q[-1] += n - 1  # two pairs that a turn or a size would explain better
    fitted, residuals = landmarks.fit_points(p, q, kind)
    assert torch.equal(fitted.matrix[:-1, :-1], torch.eye(ndim, dtype=torch.float64))
    torch.testing.assert_close(fitted.matrix[:-1, -1], (q - p).mean(dim=0))
    assert residuals.tolist() == pytest.approx([(n - 1) / 2 * math.sqrt(ndim)] * n)


@pytest.mark.parametrize("flat", [False, True])
def test_pairs_that_do_not_determine_an_affine_volume_map_give_a_similarity(flat: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    p = _points(6 if flat else 3, 3, generator)
    if flat:
        p[:, 0] = 7.0
    truth = _map(1.3 * _rotation(3, generator), generator)
    fitted, residuals = landmarks.fit_points(p, truth.points(p), "affine")
    torch.testing.assert_close(fitted.matrix, truth.matrix, rtol=0, atol=1e-8)
    assert residuals.max() < 1e-8


# ---------------------------------------------------------------------------------------------------------- landmarks


def test_landmarks_keep_their_order_in_double_precision() -> None:
    pairs = rf.landmarks(MOVING.tolist(), rf.PointSet(FIXED))
    assert torch.equal(pairs.moving, MOVING)
    assert torch.equal(pairs.fixed, FIXED)
    assert pairs.moving.dtype == torch.float64
    # two pairs say nothing about lines: they are welcome
    assert len(rf.landmarks([[0.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [2.0, 2.0]]).moving) == 2


LINE = [[0.0, 0.0], [1.0, 2.0], [2.0, 4.0], [5.0, 10.0]]
CORNER = [[0.0, 0.0], [1.0, 2.0], [2.0, 0.0], [5.0, 1.0]]


@pytest.mark.parametrize(
    ("p", "q", "message"),
    [
        (LINE, CORNER, "moving landmarks that span .*collinear"),
        (CORNER, LINE, "fixed landmarks that span .*collinear"),
        ([[3.0, 3.0]] * 3, CORNER[:3], "collinear"),  # all at one place
        (np.array(LINE) * 1e6 + 1e9, CORNER, "collinear"),
        (CORNER, CORNER[:3], "3 fixed and 4 moving"),
        (CORNER, [[0.0, 0.0, 0.0]] * 4, "as many fixed as moving"),
        ([*CORNER[:3], [float("nan"), 1.0]], CORNER, "finite moving landmarks, got 1 "),
        (CORNER, [*CORNER[:3], [1.0, float("inf")]], "finite fixed landmarks, got 1 "),
        ([], [], "landmarks"),
        (torch.zeros((0, 2)), torch.zeros((0, 2)), "at least one pair"),
        ([1.0, 2.0], [1.0, 2.0], r"\[N, 2\] or \[N, 3\]"),
        ([[1.0]], [[1.0]], r"\[N, 2\] or \[N, 3\]"),
    ],
)
def test_landmarks_that_cannot_start_anything(p: object, q: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rf.landmarks(p, q)


@pytest.mark.parametrize("unit", [1.0, 1e-6, 1e6])
def test_whether_landmarks_span_does_not_depend_on_the_unit(unit: float) -> None:
    thin = torch.tensor([[0.0, 0.0], [100.0, 0.0], [50.0, 2.0]]) * unit
    landmarks.check_spread(thin, "moving")
    thinner = torch.tensor([[0.0, 0.0], [100.0, 0.0], [50.0, 0.01]]) * unit
    with pytest.raises(ValueError, match="collinear"):
        landmarks.check_spread(thinner, "moving")


# ---------------------------------------------------------------------------------------------------- nearest_of_kind


@laws
@given(seed=seeds, ndim=ndims, kind=st.sampled_from(["rigid", "similarity"]), mirrored=st.booleans())
def test_the_nearest_map_of_a_kind_keeps_the_middle_and_the_mirror(
    seed: int, ndim: int, kind: str, mirrored: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    linear = 1.4 * _rotation(ndim, generator) @ torch.diag(torch.tensor([1.2, 0.9, 1.1])[:ndim].double())
    if mirrored:
        linear[0] *= -1
    given_map = _map(linear, generator)
    center = tuple((10 * torch.randn(ndim, generator=generator)).tolist())
    found = rf.Affine(pose.nearest_of_kind(given_map.matrix, kind, 0.5, center))
    middle = torch.tensor(center, dtype=torch.float64)
    torch.testing.assert_close(found.points(middle), given_map.points(middle), rtol=0, atol=1e-9)
    block = found.matrix[:-1, :-1]
    gram = block.T @ block
    size = float(gram[0, 0].sqrt())
    torch.testing.assert_close(gram, size**2 * torch.eye(ndim, dtype=torch.float64), rtol=0, atol=1e-9)
    assert (torch.linalg.det(block) < 0) == (torch.linalg.det(linear) < 0)
    if kind == "rigid":
        assert size == pytest.approx(0.5)  # the known factor between the units
    # nearest: no other turn (and size) of the kind comes closer, in the Frobenius norm
    distance = (block - linear).norm()
    skew = torch.randn((ndim, ndim), generator=generator, dtype=torch.float64)
    for step in (1e-3, -1e-3):
        assert (torch.linalg.matrix_exp(step * (skew - skew.T)) @ block - linear).norm() >= distance - 1e-12
        if kind == "similarity":
            assert ((1 + step) * block - linear).norm() >= distance - 1e-12


@pytest.mark.parametrize("kind", ["affine", "lddmm"])
def test_other_kinds_take_an_affine_start_as_it_is(kind: str) -> None:
    matrix = _map(torch.tensor([[1.0, 0.5], [0.0, 2.0]]).double(), torch.Generator().manual_seed(0)).matrix
    assert torch.equal(pose.nearest_of_kind(matrix, kind, 1.0, (3.0, 4.0)), matrix)


# ------------------------------------------------------------------------------------------------------------- search


@pytest.fixture(scope="module")
def photograph() -> Tensor:
    """``[1, 128, 128]`` of the picture that scikit-image carries."""
    from skimage.data import camera

    return torch.from_numpy(camera()[::4, ::4].copy())[None].to(torch.float32)


@pytest.fixture(scope="module")
def section() -> Tensor:
    """``[3, 128, 128]`` of the stained section that scikit-image carries."""
    from skimage.data import immunohistochemistry

    return torch.from_numpy(immunohistochemistry()[::4, ::4].copy()).permute(2, 0, 1).to(torch.float32)


def _posed(
    moving: rf.Image, angle: float, mirror: int, shift: tuple[float, float], scale: float
) -> tuple[rf.Image, rf.Affine]:
    """A turned, mirrored, shifted, inverted copy on a smaller, oblong canvas, and the true map onto it."""
    cos, sin = scale * math.cos(math.radians(angle)), scale * math.sin(math.radians(angle))
    linear = torch.tensor([[cos, -sin * mirror], [sin, cos * mirror]], dtype=torch.float64)
    centre = torch.tensor(moving.grid.center, dtype=torch.float64)
    grid = rf.Grid((118, 126), (moving.grid.pixel,) * 2, (2 * moving.grid.pixel,) * 2, moving.grid.unit)
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[:2, :2] = linear
    matrix[:2, 2] = centre - linear @ centre + torch.tensor(shift, dtype=torch.float64) * moving.grid.pixel
    truth = rf.Affine(matrix, grid.unit, grid.unit)
    fixed = rf.resample(moving, truth, grid, background=float(moving.data.mean()))
    return fixed.replace(data=255 - fixed.data), truth


@pytest.mark.parametrize(
    ("picture", "angle", "mirror", "shift", "scale"),
    [
        ("photograph", 33, 1, (9.0, -6.0), 1.0),
        ("photograph", 147, -1, (-8.0, 12.0), 1.0),
        ("section", 265, 1, (0.0, 20.0), 1.08),
        ("section", 75, -1, (14.0, 0.0), 1.0),
    ],
)
def test_the_search_finds_a_copy_in_any_pose(
    picture: str, angle: float, mirror: int, shift: tuple[float, float], scale: float, request: pytest.FixtureRequest
) -> None:
    data = request.getfixturevalue(picture)
    moving = rf.Image(data, rf.Grid(data.shape[1:], (0.5, 0.5), (30.0, -10.0), "µm"))
    fixed, truth = _posed(moving, angle, mirror, shift, scale)
    found = images.search(fixed, moving, rf.Config())
    x = moving.grid.coords()
    inside = fixed.grid.contains(truth.points(x))
    error = (rf.Affine(found.matrix, "µm", "µm").points(x) - truth.points(x)).norm(dim=-1)[inside] / 0.5
    assert float(error.max()) < 3
    assert found.margin is not None
    assert found.margin > 0.1


def test_the_search_gives_one_answer_and_knows_the_ratio_of_two_units(photograph: Tensor) -> None:
    moving = rf.Image(photograph, rf.Grid((128, 128), (2.0, 2.0), unit="µm"))
    fixed, truth = _posed(moving, -60, 1, (5.0, 3.0), 1.0)
    small = fixed.replace(grid=fixed.grid.to_unit("mm"))
    found = [images.search(small, moving, rf.Config(transform="rigid")) for _ in range(2)]
    assert torch.equal(found[0].matrix, found[1].matrix)
    assert found[0].score == found[1].score
    x = moving.grid.coords()
    error = (rf.Affine(found[0].matrix).points(x) * 1e3 - truth.points(x)).norm(dim=-1) / 2
    assert float(error.max()) < 3
    block = found[0].matrix[:2, :2]  # rigid: exactly the ratio of the units, no size of its own
    torch.testing.assert_close(block @ block.T, 1e-6 * torch.eye(2, dtype=torch.float64), rtol=1e-9, atol=1e-15)


def _ring() -> rf.Image:
    axis = torch.arange(96.0) - 47.5
    radius = (axis[:, None] ** 2 + axis**2).sqrt()
    ring = torch.exp(-((radius - 25) ** 2) / 18) + 0.5 * torch.exp(-(radius**2) / 30)
    return rf.Image(ring[None], rf.Grid((96, 96)))


def test_the_search_says_when_another_pose_fits_as_well() -> None:
    image = _ring()
    found = images.search(image, image, rf.Config())
    assert found.margin is not None
    assert 0 <= found.margin < verdict.CLEAR
    middle = torch.tensor([47.5, 47.5])
    assert (rf.Affine(found.matrix).points(middle) - middle).norm() < 0.5  # the turn is anyone's guess, the place not
    assert torch.equal(found.matrix.round(decimals=2), torch.eye(3, dtype=torch.float64))  # and the plainest is as good


def _blobs(number: int, size: int = 160, halves: bool = False) -> Tensor:
    """``[1, size, size]``: a round section on a dark ground with spots inside; mirror images of each other, left and right."""
    rng = np.random.default_rng(number)
    index = np.stack(np.meshgrid(*[np.arange(float(size))] * 2, indexing="ij"))
    middle = (size - 1) / 2
    edge = np.linalg.norm(index - middle, axis=0) - 0.4 * size
    out = 1 / (1 + np.exp(np.clip(edge, -30, 30)))
    for _ in range(25):
        at, width, height = middle + rng.uniform(-0.3, 0.3, 2) * size, rng.uniform(2, 5), rng.uniform(0.4, 1)
        places = [at, np.array([at[0], 2 * middle - at[1]])] if halves else [at]
        for place in places:
            out += height * np.exp(-((index - place[:, None, None]) ** 2).sum(axis=0) / (2 * width**2))
    out += 0.01 * rng.standard_normal(out.shape)  # no background is quite constant
    return torch.from_numpy(out[None]).to(torch.float32)


def _redrawn(
    image: rf.Image, angle: float, mirror: bool, scale: float, fill: float, shape: tuple[int, int] | None = None
) -> tuple[rf.Image, Tensor]:
    """The image in another pose on a canvas that holds it all, in pixels of unknown size, and the map onto it ``[3, 3]``."""
    cos, sin = scale * math.cos(math.radians(angle)), scale * math.sin(math.radians(angle))
    sign = -1 if mirror else 1
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[:2, :2] = torch.tensor([[cos, -sin * sign], [sin, cos * sign]], dtype=torch.float64)
    reach = matrix[:2, :2].abs() @ torch.tensor(image.grid.extent, dtype=torch.float64)
    size = [math.ceil(float(n) * 1.05) for n in reach]
    grid = rf.Grid((size[0], size[1]) if shape is None else shape)
    matrix[:2, 2] = torch.tensor(grid.center, dtype=torch.float64)
    matrix[:2, 2] -= matrix[:2, :2] @ torch.tensor(image.grid.center, dtype=torch.float64)
    data = image.data
    if scale < 1:  # no finer than the new pixels
        reduced = torch.nn.functional.avg_pool2d(data[None], 3, 1, 1, count_include_pad=False)[0]
        data = reduced if scale > 0.4 else torch.nn.functional.avg_pool2d(reduced[None], 3, 1, 1)[0]
    return rf.resample(image.replace(data=data), rf.Affine(matrix), grid, background=fill), matrix


def _off(found: Tensor, truth: Tensor, image: rf.Image) -> float:
    """Mean error of a map onto the original image, over its diagonal; ``truth`` leads away from it."""
    y, x = image.grid.center
    at = image.grid.coords().reshape(-1, 2)
    at = at[(at - torch.tensor([y, x])).norm(dim=1) < 0.35 * min(image.grid.extent)]
    back = rf.Affine(found).points(rf.Affine(truth).points(at))
    return float((back - at).norm(dim=1).mean()) / image.grid.diagonal


def either_way(*cases: tuple[Any, ...]) -> list[Any]:
    """Each case with the copy as the moving side or, in turn, as the fixed one; the other way round it is slow."""
    ways = [(*case, k % 2 == 0) for k, case in enumerate(cases)]
    return [*ways, *(pytest.param(*case, not way, marks=pytest.mark.slow) for *case, way in ways)]


@pytest.mark.parametrize(
    ("angle", "scale", "mirror", "copy_moves"),
    either_way(
        (10, 0.25, False), (100, 4.0, True), (190, 0.6, False), (281, 1.7, True), (45, 1.0, True), (337, 2.6, False)
    ),
)
def test_any_turn_mirror_and_size_is_found(angle: float, scale: float, mirror: bool, copy_moves: bool) -> None:
    image = rf.Image(_blobs(1), rf.Grid((160, 160)))
    copy, truth = _redrawn(image, angle, mirror, scale, fill=0.0)
    found = images.search(*((image, copy) if copy_moves else (copy, image)), rf.Config())
    assert _off(found.matrix if copy_moves else torch.linalg.inv(found.matrix), truth, image) < 0.01
    assert (torch.linalg.det(found.matrix) < 0) == (torch.linalg.det(truth) < 0)
    assert found.margin is not None
    assert found.margin > verdict.CLEAR


@pytest.mark.parametrize("fill", [0.0, 255.0, 130.0, "mean"])
def test_what_fills_an_enlarged_canvas_does_not_matter(section: Tensor, fill: float | str) -> None:
    image = rf.Image(section, rf.Grid((128, 128)))
    colour = float(section.mean()) if fill == "mean" else float(fill)
    moving, truth = _redrawn(image, 118, True, 1.6, fill=colour)
    found = images.search(image, moving, rf.Config())
    assert _off(found.matrix, truth, image) < 0.02
    assert found.margin is not None
    assert found.margin > verdict.CLEAR


@pytest.mark.parametrize(("corner", "scale", "part_moves"), either_way(((0, 0), 1.0), ((0, 47), 0.5), ((47, 20), 1.5)))
def test_a_part_finds_its_place(section: Tensor, corner: tuple[int, int], scale: float, part_moves: bool) -> None:
    image = rf.Image(section, rf.Grid((128, 128)))
    part = section[:, corner[0] : corner[0] + 81, corner[1] : corner[1] + 81].contiguous()
    moving, truth = _redrawn(rf.Image(part, rf.Grid((81, 81))), 73, False, scale, fill=255.0)
    whole = torch.eye(3, dtype=torch.float64)
    whole[:2, 2] = -torch.tensor(corner, dtype=torch.float64)
    found = images.search(*((image, moving) if part_moves else (moving, image)), rf.Config()).matrix
    back = found if part_moves else torch.linalg.inv(found)
    at = rf.Grid((81, 81)).coords().reshape(-1, 2) + torch.tensor(corner)
    error = (rf.Affine(back @ truth @ whole).points(at) - at).norm(dim=1).mean()
    assert float(error) < 2.5


def test_the_inside_decides_where_the_outline_does_not() -> None:
    image = rf.Image(_blobs(2), rf.Grid((160, 160)))
    moving, truth = _redrawn(image, 200, True, 0.8, fill=0.0)
    found = images.search(image, moving, rf.Config())
    assert _off(found.matrix, truth, image) < 0.01
    assert found.margin is not None
    assert found.margin > verdict.CLEAR


@pytest.mark.parametrize(("number", "angle"), [(0, 20), (1, 130), (2, 260)])
def test_fine_structure_decides_where_shades_contradict(number: int, angle: float) -> None:
    """Two windows that share a part of one field of small spots, each under a shade of its own, stronger than the spots."""
    rng = np.random.default_rng(number)
    index = np.stack(np.meshgrid(*[np.arange(260.0)] * 2, indexing="ij"))
    field = np.zeros(index.shape[1:])
    for at in rng.uniform(0, 260, (700, 2)):
        field += rng.uniform(0.3, 1) * np.exp(-((index - at[:, None, None]) ** 2).sum(axis=0) / (2 * 2.5**2))
    shades = [
        sum(2 * np.sin((index * rng.normal(0, 0.03, (2, 1, 1))).sum(axis=0) + rng.uniform(0, 6)) for _ in range(4))
        for _ in range(2)
    ]
    one, other = (torch.from_numpy((field + shade)[None]).to(torch.float32) for shade in shades)
    fixed = rf.Image(one[:, :180, :180].contiguous(), rf.Grid((180, 180)))
    moving, truth = _redrawn(rf.Image(other, rf.Grid((260, 260))), angle, False, 1.0, 0.0, (180, 180))
    found = images.search(fixed, moving, rf.Config()).matrix
    at = moving.grid.coords().reshape(-1, 2)
    back = rf.Affine(torch.linalg.inv(truth)).points(at)
    error = (rf.Affine(found).points(at) - back).norm(dim=1)[fixed.grid.contains(back)]
    assert float(error.median()) < 2


def test_a_mirror_that_the_images_cannot_decide_is_not_taken() -> None:
    image = rf.Image(_blobs(3, halves=True), rf.Grid((160, 160)))
    moving, truth = _redrawn(image, 70, True, 1.3, fill=0.0)
    found = images.search(image, moving, rf.Config())
    assert found.margin is not None
    assert found.margin < verdict.CLEAR
    assert float(torch.linalg.det(found.matrix)) > 0
    assert found.runner_up is not None  # the other one is offered
    assert found.runner_up_score is not None
    assert _off(found.runner_up, truth, image) < 0.01
    assert found.runner_up_score > 0.5 * found.score


def test_what_does_not_belong_together_has_no_margin(photograph: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = rf.Image(torch.randn((1, 128, 128), generator=generator), rf.Grid((128, 128)))
    found = images.search(rf.Image(photograph, rf.Grid((128, 128))), noise, rf.Config())
    assert found.margin is not None
    assert found.margin < verdict.CLEAR


def test_the_search_gives_the_same_bytes_each_time(section: Tensor) -> None:
    image = rf.Image(section, rf.Grid((128, 128)))
    moving, _ = _redrawn(image, 250, True, 0.7, fill=0.0)
    first, second = (images.search(image, moving, rf.Config()) for _ in range(2))
    assert torch.equal(first.matrix, second.matrix)
    assert first.runner_up is not None
    assert second.runner_up is not None
    assert torch.equal(first.runner_up, second.runner_up)
    assert (first.score, first.margin) == (second.score, second.margin)


def test_a_known_size_is_not_searched(section: Tensor) -> None:
    image = rf.Image(section, rf.Grid((128, 128), (2.0, 2.0), unit="µm"))
    turned, truth = _redrawn(rf.Image(section, rf.Grid((128, 128))), 160, False, 1.5, fill=255.0)
    moving = turned.replace(grid=rf.Grid(turned.grid.shape, (2 / 1500, 2 / 1500), unit="mm"))
    found = images.search(image, moving, rf.Config()).matrix
    at = rf.Grid((128, 128)).coords().reshape(-1, 2)
    there = rf.Affine(truth).points(at) * (2 / 1500)
    assert float((rf.Affine(found).points(there) - 2 * at).norm(dim=1).mean()) < 4
    assert float(torch.linalg.det(found).sqrt()) == pytest.approx(1000, rel=0.03)


@pytest.mark.parametrize("data", ["one", "two"])
def test_tiny_and_thin_images_are_searched_too(data: str) -> None:
    generator = torch.Generator().manual_seed(4)
    shape = (8, 9) if data == "one" else (8, 300)
    image = rf.Image(torch.rand((2, *shape), generator=generator), rf.Grid(shape))
    found = images.search(image, image, rf.Config())
    assert bool(torch.isfinite(found.matrix).all())


def test_a_result_carries_the_runner_up(section: Tensor) -> None:
    image = rf.Image(section, rf.Grid((128, 128)))
    metrics = rf.register(image, image, transform="affine").metrics
    assert metrics["pose_score"] > metrics["runner_up"]["score"]
    assert np.array(metrics["runner_up"]["matrix"]).shape == (3, 3)
    assert metrics["runner_up"]["mirrored"] in (True, False)
    metrics = rf.register(image, image, transform="affine", init="identity").metrics
    assert metrics["pose_score"] is None
    assert metrics["runner_up"] is None


@pytest.fixture(scope="module")
def sections(data_dir: Path) -> tuple[rf.Image, rf.Image, Tensor]:
    """Two consecutive sections in pixels, and the pose of one on the other as they lie."""
    folder = data_dir / "02_histology_landmarks"
    if not folder.is_dir():
        pytest.skip(f"no histology at {folder}")
    with (folder / "pairs.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    fixed, moving = (
        image.replace(grid=rf.Grid(image.grid.shape))
        for image in (rf.open(folder / row["fixed_image"]), rf.open(folder / row["moving_image"]))
    )
    known = images.search(fixed, moving, rf.Config(transform="rigid")).matrix
    assert float((known - torch.eye(3)).abs()[:2, :2].max()) < 0.1  # they lie nearly alike, apart from a shift
    return fixed, moving.replace(data=moving.data.to(torch.float32)), known


@pytest.mark.parametrize(
    ("angle", "mirror", "scale", "fill"), [(77, True, 0.4, 230.0), (212, False, 1.1, 0.0), (301, True, 0.25, 120.0)]
)
def test_consecutive_sections_are_found(
    sections: tuple[rf.Image, rf.Image, Tensor], angle: float, mirror: bool, scale: float, fill: float
) -> None:
    fixed, moving, known = sections
    posed, truth = _redrawn(moving, angle, mirror, scale, fill)
    found = images.search(fixed, posed, rf.Config())
    at = moving.grid.resampled((40.0, 40.0)).coords().reshape(-1, 2)
    error = (rf.Affine(found.matrix @ truth).points(at) - rf.Affine(known).points(at)).norm(dim=1).mean()
    assert float(error) / fixed.grid.diagonal < 0.03
    assert found.margin is not None
    assert found.margin > verdict.CLEAR


def test_a_volume_starts_from_where_it_is_or_from_the_middles() -> None:
    grid = rf.Grid((16, 18, 20), (1.0, 1.0, 1.0))
    generator = torch.Generator().manual_seed(3)
    noise = torch.nn.functional.avg_pool3d(torch.randn((1, 1, 20, 22, 24), generator=generator), 5, 1)[0]
    image = rf.Image(noise, grid)
    apart = rf.Grid(grid.shape, grid.spacing, (500.0, -300.0, 70.0))
    for fixed_grid in (grid, apart):
        found = images.search(image.replace(grid=fixed_grid), image, rf.Config())
        x = grid.coords()
        expected = x + torch.tensor(fixed_grid.origin, dtype=torch.float64)
        assert (rf.Affine(found.matrix).points(x) - expected).norm(dim=-1).max() < 0.5
