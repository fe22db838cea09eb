"""A map in pieces: labels on both sides, one map per piece, through store, tiles, formats and shapes."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import regframe as rf
from regframe.evaluation import evaluate
from regframe.io import store
from regframe.maps.edges import move_shapes
from regframe.maps.known import known
from regframe.maps.pieces import NOWHERE, Cells, Pieces, as_displacement, fitted_affine
from regframe.maps.shapes import Shapes
from regframe.slides.warp import SlideOptions

GRID = rf.Grid((60, 90), unit="µm")


def turned(angle: float, shift: tuple[float, float], about: tuple[float, float]) -> rf.Affine:
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[:2, :2] = torch.tensor([[c, -s], [s, c]])
    middle = torch.tensor(about, dtype=torch.float64)
    matrix[:2, 2] = middle - matrix[:2, :2] @ middle + torch.tensor(shift)
    return rf.Affine(matrix, "µm", "µm")


@pytest.fixture(scope="module")
def phi() -> Pieces:
    """Two pieces side by side, one of which bends, and a third without a partner."""
    labels = torch.zeros(60, 90)
    labels[:, 30:] = 1
    labels[:, 60:] = NOWHERE
    bend = rf.Flow(
        torch.randn((1, 2, 6, 6), generator=torch.Generator().manual_seed(0)), rf.Grid((6, 6), 18.0, unit="µm"), 4
    )
    maps = (turned(6, (1, 2), (30, 15)), rf.Sequence((bend, turned(-4, (2, -1), (30, 45)))))
    return Pieces(maps, Cells(labels, GRID), Cells(labels.clone(), GRID))


@pytest.fixture(scope="module")
def result(phi: Pieces) -> rf.Result:
    figures = {
        "verdict": "warn",
        "reasons": [],
        "n_evaluations": 0,
        "seconds": 0.0,
        "roundtrip_px": {"mean": 0.0, "max": 0.0},
    }
    return rf.Result(phi, GRID, GRID, figures, rf.Config(), fitted_affine(phi, GRID))


def positions(n: int = 400) -> torch.Tensor:
    return torch.rand((n, 2), generator=torch.Generator().manual_seed(1), dtype=torch.float64) * torch.tensor(
        [60.0, 90.0]
    )


def test_each_position_takes_the_map_of_its_piece(phi: Pieces) -> None:
    at = positions()
    there = phi.points(at)
    for k, low, high in ((0, -1.0, 29.4), (1, 29.6, 59.4)):
        rows = (at[:, 1] > low) & (at[:, 1] < high)
        assert torch.equal(there[rows], phi.maps[k].points(at[rows]))
    assert bool(there[at[:, 1] > 59.6].isnan().all())
    inner = torch.tensor([[30.0, 15.0], [20.0, 45.0]])  # far from every seam, there and back
    assert torch.allclose(phi.inverse().points(phi.points(inner)), inner.to(torch.float64), atol=1e-6)
    assert bool(torch.isfinite(phi.filled().points(at)).all())


def test_the_change_of_area_is_not_taken_across_a_seam(phi: Pieces) -> None:
    area = phi.jacobian_determinant(GRID)
    assert torch.allclose(area[:, :30], torch.ones(60, 30, dtype=torch.float64))  # a turn
    assert 0.5 < float(area[:, 30:60].min()) <= float(area[:, 30:60].max()) < 2
    assert bool(area[:, 60:].isnan().all())


def test_the_store_keeps_it_to_the_last_bit(result: rf.Result, tmp_path: Path) -> None:
    result.save(tmp_path / "a.ome.zarr")
    again = rf.load(tmp_path / "a.ome.zarr")
    at = positions()
    for one, other in ((result, again), (result, rf.load(tmp_path / "a.ome.zarr"))):
        assert np.array_equal(one.to_fixed(at).numpy(), other.to_fixed(at).numpy(), equal_nan=True)
        assert np.array_equal(one.to_moving(at).numpy(), other.to_moving(at).numpy(), equal_nan=True)
    for side in ("fixed", "moving"):  # what other programs read: the same but beside the seams
        found = store.read_standard(tmp_path / "a.ome.zarr", side).points(at)
        exact = result.to_fixed(at) if side == "fixed" else result.to_moving(at)
        off = (found - exact).norm(dim=1)
        assert float((off[off.isfinite()] < 0.05).to(torch.float64).mean()) > 0.93


@pytest.mark.parametrize("labels", [False, True])
def test_tiles_have_the_pixels_of_the_whole(phi: Pieces, tmp_path: Path, labels: bool) -> None:
    pixels = torch.randint(
        0, 250, (1 if labels else 3, 60, 90), generator=torch.Generator().manual_seed(2), dtype=torch.uint8
    )
    image = rf.Image(pixels, GRID, labels=labels)
    whole = rf.resample(image, phi, GRID, 7.0 if not labels else None)
    assert set(torch.unique(whole.data[:, :, 60:]).tolist()) == {0 if labels else 7}
    level = rf.Level(GRID, (pixels.shape[0], 32, 32), lambda box: pixels.numpy()[(slice(None), *box)])
    pyramid = rf.Pyramid((level,), pixels.numpy().dtype, image.channels, labels=labels)
    options = SlideOptions(background="auto" if labels else 7.0, chunk=16, shard=32)
    path = rf.warp_slide(pyramid, phi, GRID, tmp_path / "out.zarr", options=options, workers=1)
    assert torch.equal(rf.open(path, labels=True).data if labels else rf.open(path).data, whole.data)


def test_formats_of_others_get_a_field_and_the_user_a_remark(result: rf.Result, tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK", reason="needs the extra 'itk'")
    with pytest.warns(UserWarning, match="jumps at the seams"):
        written = rf.write_map(result, tmp_path / "m.h5", to="moving")
    back = rf.read_map(written.files[0], GRID, GRID, to="moving")
    at = positions()
    off = (back.to_moving(at) - result.to_moving(at)).norm(dim=1)
    assert float((off[off.isfinite()] < 0.1).to(torch.float64).mean()) > 0.93
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rf.write_map(result, tmp_path / "m.csv")  # positions are exact


def test_shapes_cross_a_seam_in_a_straight_line(phi: Pieces) -> None:
    ring = [[15.0, 10.0], [15.0, 50.0], [40.0, 50.0], [40.0, 10.0], [15.0, 10.0]]
    shapes = _ring(ring)
    moved = move_shapes(shapes, phi, GRID)
    assert bool(torch.isfinite(moved.coords).all())
    steps = moved.coords.diff(dim=0).norm(dim=1)
    seam = torch.tensor([[15.0, 29.5]], dtype=torch.float64)
    jump = (phi.maps[0].points(seam) - phi.maps[1].points(seam)).norm()
    assert bool((steps - jump).abs().min() < 0.1)  # one edge as long as the map jumps
    with pytest.raises(ValueError, match="pieces that have none"):
        move_shapes(_ring([[10.0, 70.0], [10.0, 80.0], [20.0, 80.0], [10.0, 70.0]]), phi, GRID)


def _ring(at: list[list[float]]) -> Shapes:
    """A polygon through positions (y, x)."""
    document = {"type": "Polygon", "coordinates": [[[x, y] for y, x in at]]}
    return Shapes.from_geojson(document, "µm", "center")


def test_landmarks_on_a_piece_without_a_partner_have_no_error(result: rf.Result) -> None:
    fixed = torch.tensor([[30.0, 15.0], [20.0, 45.0], [20.0, 80.0]], dtype=torch.float64)
    moving = torch.cat([result.to_moving(fixed[:2]), torch.tensor([[20.0, 80.0]], dtype=torch.float64)])
    found = evaluate(result, fixed, moving)
    assert (found["n"], found["unplaced"]) == (2, 1)
    assert found["tre_px"]["max"] < 1e-6
    with pytest.raises(ValueError, match="without a partner"):
        evaluate(result, fixed[2:], moving[2:])


def test_known_and_field(phi: Pieces) -> None:
    assert known(phi, GRID, GRID) is phi
    at = positions()
    for to, exact in (("fixed", phi.points(at)), ("moving", phi.inverse().points(at))):
        sampled = as_displacement(phi, GRID, GRID, to)
        found = (sampled if to == "fixed" else sampled.inverse()).points(at)
        off = (found - exact).norm(dim=1)
        assert float((off[off.isfinite()] < 0.05).to(torch.float64).mean()) > 0.93


@pytest.mark.parametrize(
    ("maps", "labels", "said"),
    [
        ((), 0, "at least one map"),
        ((turned(0, (0, 0), (0, 0)),), 1, "a map for each label"),
        ((rf.Affine.identity(2, "px"),), 0, "between the spaces"),
    ],
)
def test_what_does_not_fit_is_refused(maps: tuple[rf.Affine, ...], labels: int, said: str) -> None:
    cells = Cells(torch.full((60, 90), labels), GRID)
    with pytest.raises(ValueError, match=said):
        Pieces(maps, cells, cells)


def test_it_is_not_refined(result: rf.Result) -> None:
    images = [
        rf.Image.from_array(np.zeros(grid.shape, np.uint8), "yx") for grid in (result.fixed_grid, result.moving_grid)
    ]
    with pytest.raises(ValueError, match="wanted one map to refine, got one in pieces"):
        rf.refine(result, *images)
