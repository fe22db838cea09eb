"""Points against an image: the drawing, single nuclei, both directions, the command line, what is refused or doubted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

import regframe as rf
from regframe.cli import main
from regframe.solvers.mixed import drawing, nuclei

Array = NDArray[np.float64]
SIZE = 200
RADIUS = 6.0


def middles(seed: int = 0, count: int = 60) -> Array:
    """Places in a lopsided region at least 15 px apart."""
    rng, out = np.random.default_rng(seed), []
    while len(out) < count:
        at = rng.uniform(12, SIZE - 12, 2)
        if at[0] + at[1] < 330 and all(np.linalg.norm(at - other) > 15 for other in out):
            out.append(at)
    return np.array(out)


def moved(at: Array) -> Array:
    """A small turn and a bend of 5 px."""
    angle, centre = 0.06, SIZE / 2
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    bend = 5 * np.stack([np.sin(at[:, 1] / 45), np.cos(at[:, 0] / 55)], axis=1)
    out: Array = (at - centre) @ turn.T + centre + bend
    return out


def picture(at: Array, seed: int = 0, invert: bool = False) -> rf.Image:
    """Ellipses of unlike size and brightness, blurred, noisy."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE]
    data = np.zeros((SIZE, SIZE))
    for place in at:
        a, b = RADIUS * rng.uniform(0.8, 1.2, 2)
        data = np.maximum(data, rng.uniform(0.4, 1) * (((y - place[0]) / a) ** 2 + ((x - place[1]) / b) ** 2 < 1))
    data = gaussian_filter(data, 1) + rng.normal(size=data.shape) * 0.05
    return rf.Image.from_array(((1 - data) if invert else data).astype(np.float32))


def cloud(at: Array, unit: str = "px") -> rf.PointSet:
    return rf.PointSet(torch.from_numpy(at), unit)


def test_a_drawing_holds_its_points_and_knows_where_nobody_looked() -> None:
    points, image = cloud(middles()), picture(middles())
    drawn = drawing.draw(points, image, "moving")
    assert float(drawn.data.sum()) == pytest.approx(60, rel=0.01)
    at = (drawn.data[0, :, :, None] * drawn.grid.coords()).sum(dim=(0, 1)) / drawn.data.sum()
    assert torch.allclose(at, points.coords.mean(dim=0), atol=0.05)
    assert drawn.weight is not None
    inside = drawn.grid.coords()[drawn.weight > 0].reshape(-1, 2)
    assert float(inside.sum(dim=1).max()) < 350  # the empty corner is not known to be empty
    weighted = drawing.draw(points.replace(weights=torch.full((60,), 2.0)), image, "moving")
    assert torch.allclose(weighted.data, 2 * drawn.data)


@pytest.mark.parametrize(
    ("side", "invert", "init"),
    [("moving", False, "auto"), ("moving", True, "identity"), ("fixed", False, "identity"), ("fixed", True, "auto")],
)
def test_every_point_finds_its_own_nucleus(side: str, invert: bool, init: str) -> None:
    before = middles()
    after = moved(before)
    points, image = cloud(before), picture(after, invert=invert)
    sides = (image, points) if side == "moving" else (points, image)
    result = rf.register(*sides, init=init)
    at = result.to_fixed(points.coords) if side == "moving" else result.to_moving(points.coords)
    error = np.linalg.norm(at.numpy() - after, axis=1)
    assert error.mean() < 0.5
    assert error.max() < 3
    assert result.verdict == "pass"
    assert result.metrics["drawn"]["side"] == side
    assert result.metrics["nuclei"]["radius"] == pytest.approx(RADIUS, rel=0.25)
    back = result.to_moving(at) if side == "moving" else result.to_fixed(at)
    assert float((back - points.coords).norm(dim=1).max()) < 0.1


def test_looking_at_nuclei_beats_the_drawing_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = middles(1)
    after = moved(before)
    points, image = cloud(before), picture(after, 1)

    def error() -> float:
        at = rf.register(image, points, init="identity").to_fixed(points.coords).numpy()
        return float(np.linalg.norm(at - after, axis=1).mean())

    settled = error()
    monkeypatch.setattr(nuclei, "settle", lambda fit, *_: (fit, None))
    assert settled < 0.6 * error()


@pytest.mark.parametrize(("kind", "init"), [("rigid", "auto"), ("similarity", "identity"), ("affine", "identity")])
def test_straight_maps_settle_too(kind: str, init: str) -> None:
    before = middles(2)
    angle, centre = 0.1, SIZE / 2
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    after = (before - centre) @ turn.T + centre + [2, -3]
    result = rf.register(picture(after), cloud(before), transform=kind, init=init)
    assert np.linalg.norm(result.to_fixed(torch.from_numpy(before)).numpy() - after, axis=1).mean() < 0.4
    assert result.metrics["nuclei"] is not None


def test_a_strange_point_and_a_lost_one_change_little() -> None:
    before = middles(3)
    after = moved(before)
    rng = np.random.default_rng(3)
    dirty = np.concatenate([before[6:], rng.uniform(0, SIZE, (6, 2))])
    at = rf.register(picture(after), cloud(dirty), init="identity").to_fixed(torch.from_numpy(before)).numpy()
    assert np.linalg.norm(at - after, axis=1).mean() < 1.0


@pytest.mark.parametrize("side", ["moving", "fixed"])
def test_points_that_do_not_belong_do_not_pass(side: str) -> None:
    image, points = picture(middles(4)), cloud(middles(5))
    result = rf.register(image, points) if side == "moving" else rf.register(points, image)
    assert result.verdict != "pass"


def test_landmarks_start_a_mixed_pair() -> None:
    before = middles(6)
    after = moved(before)
    init = rf.landmarks(before[:6], after[:6])
    result = rf.register(picture(after), cloud(before), init=init)
    assert np.linalg.norm(result.to_fixed(torch.from_numpy(before)).numpy() - after, axis=1).mean() < 0.5
    assert len(result.metrics["landmark_residual_px"]) == 6


def test_a_lattice_is_doubted() -> None:
    y, x = np.mgrid[20:180:10, 20:180:10]
    lattice = np.stack([y.ravel(), x.ravel()], axis=1).astype(np.float64)
    assert drawing.regular(cloud(lattice))
    assert not drawing.regular(cloud(middles()))
    result = rf.register(picture(lattice), cloud(lattice), init="identity")
    assert result.verdict != "pass"
    assert any("lattice" in reason for reason in result.reasons)


def test_units_are_converted() -> None:
    before = middles()
    after = moved(before)
    image = picture(after)
    image = image.replace(grid=rf.Grid(image.grid.shape, 0.5, unit="um"))
    result = rf.register(image, cloud(before * 0.5e-3, "mm"))
    at = result.to_fixed(torch.from_numpy(before * 0.5e-3)).numpy() / 0.5
    assert np.linalg.norm(at - after, axis=1).mean() < 0.5


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (torch.zeros((0, 2)), "wanted points on the moving side, got none"),
        (torch.rand((7, 2)) * 100, "wanted more than 8 distinct points on the moving side"),
        (torch.rand((30, 3)) * 100, "got 3D points and a 2D image"),
        (torch.full((20, 2), torch.nan), "20 of 20 points with NaN or inf"),
        (torch.cat([torch.rand((40, 2)), torch.full((1, 2), 1e5)]), "leave out the stray ones"),
    ],
)
def test_what_cannot_be_drawn_is_refused(points: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rf.register(picture(middles()), rf.PointSet(points))


def test_the_command_line_takes_a_table_and_a_picture(tmp_path: Path) -> None:
    before = middles()
    after = moved(before)
    tifffile.imwrite(tmp_path / "dapi.tif", picture(after).data[0].numpy())
    rows = "".join(f"c{i},{x},{y}\n" for i, (y, x) in enumerate(before.tolist()))
    (tmp_path / "cells.csv").write_text(f"id,x,y\n{rows}", encoding="utf-8")
    files = [str(tmp_path / name) for name in ("dapi.tif", "cells.csv")]
    out = tmp_path / "out"
    done = CliRunner().invoke(
        main, ["register", *files, "-o", str(out), "--json", "--save-warped", "--init", "identity"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads((out / "metrics.json").read_text())["nuclei"]["seen"] > 40
    assert (out / "report.html").is_file()
    done = CliRunner().invoke(
        main, ["apply", "points", str(out), files[1], "-o", str(tmp_path / "m.csv"), "--to", "fixed"]
    )
    assert done.exit_code == 0, done.output
    table = rf.read_points(tmp_path / "m.csv")
    assert list(table.table["id"]) == [f"c{i}" for i in range(60)]
    assert np.linalg.norm(table.coords.numpy() - after, axis=1).mean() < 0.5


@pytest.mark.parametrize("init", ["identity", pytest.param("auto", marks=pytest.mark.slow)])
def test_volumes_have_nuclei_too(init: str) -> None:
    rng, out = np.random.default_rng(0), []
    while len(out) < 24:
        at = rng.uniform(6, 34, 3)
        if all(np.linalg.norm(at - other) > 10 for other in out):
            out.append(at)
    before = np.array(out)
    after = before + np.array([1.5, -2.0, 1.0])
    z = np.stack(np.mgrid[:40, :40, :40], axis=-1)
    data = np.zeros((40, 40, 40))
    for at in after:
        data = np.maximum(data, ((z - at) ** 2).sum(axis=-1) < 16)
    image = rf.Image.from_array(gaussian_filter(data, 0.7).astype(np.float32), axes="zyx")
    result = rf.register(image, cloud(before), init=init)
    assert np.linalg.norm(result.to_fixed(torch.from_numpy(before)).numpy() - after, axis=1).mean() < 0.5
