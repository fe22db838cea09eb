"""Point clouds: the mixture, the pose, straight and bent maps, what is refused, and the files they come in."""

from __future__ import annotations

import csv
import json
import math
import struct
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

import regframe as rf
from regframe.cli import main
from regframe.fit import clouds
from regframe.solvers.points import bend, straight
from regframe.starts import points as starts_points

Floats = NDArray[np.float64]


def points(array: Floats, unit: str = "px") -> rf.PointSet:
    return rf.PointSet(torch.from_numpy(np.ascontiguousarray(array)), unit)


def shape(n: int, ndim: int, seed: int = 0) -> Floats:
    """Places along a bent, lopsided curve: no two poses of it look alike."""
    t = np.linspace(0, 1, n) ** 1.3
    axes = [np.sin(5 * t) + 0.8 * t, np.cos(3 * t) * (1 + t), 0.7 * np.sin(9 * t + 1) + t]
    rng = np.random.default_rng(seed)
    return 10 * np.stack(axes[:ndim], axis=1) + rng.normal(size=(n, ndim)) * 0.3


def turned(ndim: int, seed: int) -> Floats:
    if ndim == 3:
        return Rotation.random(random_state=seed).as_matrix()
    a = 2 * math.pi * np.random.default_rng(seed).random()
    return np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])


def error(result: rf.Result, moving: Floats, truth: Floats) -> float:
    return float(np.linalg.norm(result.to_fixed(torch.from_numpy(moving)).numpy() - truth, axis=1).mean())


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("kind", ["rigid", "similarity", "affine"])
def test_straight_maps_are_exact_from_any_pose(ndim: int, kind: str) -> None:
    q = shape(120, ndim)
    linear = turned(ndim, 5)
    if kind != "rigid":
        linear = 0.4 * linear
    if kind == "affine":
        linear = linear @ np.diag([1.15, 0.9, 1.05][:ndim])
    p = (q - 3.0) @ linear.T + 7.0
    result = rf.register(points(q), points(p), transform=kind)
    assert error(result, p, q) < 1e-6
    assert result.metrics["model"] == kind
    assert result.verdict == "pass"
    assert result.metrics["roundtrip_px"]["mean"] < 0.02
    assert result.metrics["matching_fraction"] > 0.99


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 1000), ndim=st.sampled_from([2, 3]))
def test_equivariance_and_row_order(seed: int, ndim: int) -> None:
    """Turning and shifting either side moves the map along; the order of the rows changes nothing at all."""
    rng = np.random.default_rng(seed)
    q = shape(60, ndim, seed % 5)
    p = q @ turned(ndim, seed).T + rng.normal(size=ndim)
    first = rf.register(points(q), points(p), transform="rigid")
    assert error(first, p, q) < 1e-6
    shuffled = rf.register(points(q[rng.permutation(60)]), points(p[rng.permutation(60)]), transform="rigid")
    matrices = [r.affine.parts()[0] for r in (first, shuffled)]
    assert all(isinstance(m, rf.Affine) for m in matrices)
    assert torch.equal(matrices[0].matrix, matrices[1].matrix)  # type: ignore[attr-defined]
    again, shift = turned(ndim, seed + 1), rng.normal(size=ndim) * 20
    other = rf.register(points(q @ again.T + shift), points(p), transform="rigid")
    assert error(other, p, q @ again.T + shift) < 1e-6


def test_rows_stay_in_their_order_and_partners_are_found() -> None:
    q = shape(80, 2)
    rng = np.random.default_rng(1)
    order = rng.permutation(80)
    p = (q @ turned(2, 3).T)[order]
    result = rf.register(points(q), points(p), transform="rigid")
    found = rf.match_points(result, points(q), points(p))
    assert torch.equal(found.row, torch.from_numpy(np.argsort(order)))
    assert float(found.probability.min()) > 0.9
    far = points(np.concatenate([q, q.max(axis=0, keepdims=True) + 5]))
    assert rf.match_points(result, far, points(p)).row[-1] == -1
    np.testing.assert_allclose(result.to_fixed(points(p)).coords.numpy(), q[order], atol=1e-6)


def bent(p: Floats, amount: float = 1.2) -> Floats:
    wave = [np.sin(p[:, (d + 1) % p.shape[1]] / 6 + d) for d in range(p.shape[1])]
    return p + amount * np.stack(wave, axis=1)


def test_a_bend_is_found_and_one_that_is_not_there_is_not() -> None:
    p = shape(80, 2)
    q = bent(p) @ turned(2, 4).T
    h = np.c_[p, np.ones(len(p))]
    affine = np.linalg.norm(h @ np.linalg.lstsq(h, q, rcond=None)[0] - q, axis=1).mean()
    result = rf.register(points(q), points(p))
    assert result.metrics["model"] == "lddmm"
    assert error(result, p, q) < 0.2 * affine
    assert result.metrics["roundtrip_px"]["max"] < 0.1
    assert result.metrics["folding_fraction"] == 0
    held = result.metrics["held_out"]
    assert held["gain"] > 2 * held["error"]
    noise = p + np.random.default_rng(0).normal(size=p.shape) * 0.02
    plain = rf.register(points(noise), points(p), init="identity")
    assert plain.metrics["model"] == "affine"


@pytest.mark.parametrize("ndim", [2, 3])
def test_outliers_and_a_missing_part(ndim: int) -> None:
    q = shape(160, ndim)
    p = q @ turned(ndim, 2).T
    rng = np.random.default_rng(0)
    low, high = p.min(axis=0), p.max(axis=0)
    dirty = np.concatenate([p, rng.uniform(low, high, (48, ndim))])
    result = rf.register(points(q[40:]), points(dirty), transform="rigid")
    assert error(result, p, q) < 1e-5
    assert result.metrics["matching_fraction_moving"] == pytest.approx(120 / 208, abs=0.05)


def test_a_mirrored_cloud_needs_a_map_that_may_mirror() -> None:
    q = shape(100, 2)
    p = q * np.array([1.0, -1.0])
    assert error(rf.register(points(q), points(p), transform="affine"), p, q) < 1e-6
    assert error(rf.register(points(q), points(p), transform="rigid"), p, q) > 0.5


def test_units_fix_the_size() -> None:
    q = shape(80, 2)
    p = q @ turned(2, 9).T / 1000
    result = rf.register(points(q, "µm"), points(p, "mm"), transform="rigid")
    assert error(result, p, q) < 1e-6
    assert result.transform.source_unit == "mm"
    with pytest.warns(UserWarning, match="declares no unit"):
        loose = rf.register(points(q, "µm"), points(p), transform="similarity")
    assert error(loose, p, q) < 1e-6
    with pytest.warns(UserWarning, match="declares no unit"), pytest.raises(ValueError, match="length units"):
        rf.register(points(q, "µm"), points(p), transform="rigid")


def test_starts() -> None:
    q = shape(80, 2)
    p = q @ turned(2, 9).T
    marks = rf.landmarks(p[::20], q[::20])
    by_hand = rf.register(points(q), points(p), init=marks, transform="rigid")
    assert error(by_hand, p, q) < 1e-6
    assert max(by_hand.metrics["landmark_residual_px"]) < 1e-4
    again = rf.register(points(q), points(p), init=by_hand, transform="rigid")
    assert error(again, p, q) < 1e-6
    assert error(rf.register(points(q), points(q + 0.01), init="identity", transform="rigid"), q + 0.01, q) < 1e-6
    with pytest.raises(ValueError, match="wanted the name of a start, got 'nonsense'"):
        rf.register(points(q), points(p), init="nonsense")


def test_unlike_clouds_fail() -> None:
    rng = np.random.default_rng(0)
    result = rf.register(points(rng.normal(size=(100, 2))), points(rng.uniform(size=(90, 2))), transform="similarity")
    assert result.verdict != "pass"
    assert result.reasons


@pytest.mark.parametrize("name", ["mixture", "kernel"])
def test_registering_with_a_named_metric(name: str) -> None:
    p = shape(80, 2)
    q = bent(p, 0.8) @ turned(2, 4).T
    result = rf.register(points(q), points(p), metric=name, init=rf.landmarks(p[::16], q[::16]))
    h = np.c_[p, np.ones(len(p))]
    affine = np.linalg.norm(h @ np.linalg.lstsq(h, q, rcond=None)[0] - q, axis=1).mean()
    assert error(result, p, q) < affine
    assert result.metrics["metric"]["name"] == name


REFUSED = [
    (np.zeros((0, 2)), "wanted points on the moving side, got none"),
    (np.array([[1.0, 2.0]]), "at least 4 distinct 2D points on the moving side, got 1"),
    (np.array([[1.0, 2.0]] * 9), "got 1 .of 9 rows"),
    (np.array([[0.0, 1.0], [np.nan, 1.0], [2.0, 5.0]]), "1 of 3 points with NaN or inf"),
    (np.outer(np.arange(9.0), [1.0, 2.0]), "on one line"),
    (shape(20, 3), "2D fixed and 3D moving"),
]


@pytest.mark.parametrize(("bad", "message"), REFUSED)
def test_what_is_refused(bad: Floats, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        rf.register(points(shape(20, 2)), points(bad))
    assert "\n" not in str(caught.value)


def test_a_plane_in_space_and_other_refusals() -> None:
    flat = np.c_[shape(30, 2), np.zeros(30)]
    with pytest.raises(ValueError, match="on one plane"):
        rf.register(points(flat), points(shape(30, 3)))
    image = rf.Image.from_array(np.random.default_rng(0).random((32, 32)).astype(np.float32))
    with pytest.raises(ValueError, match="got 3D points and a 2D image"):
        rf.register(points(shape(30, 3)), image)
    with pytest.raises(ValueError, match="metric for two point sets, got 'ncc'"):
        rf.register(points(shape(30, 2)), points(shape(30, 2)), metric="ncc")
    one = rf.PointSet(torch.from_numpy(shape(30, 2)), weights=torch.zeros(30))
    with pytest.raises(ValueError, match="not all 0"):
        rf.register(points(shape(30, 2)), one)
    result = rf.register(points(shape(30, 2)), points(shape(30, 2)), transform="rigid")
    with pytest.raises(ValueError, match="in px, got 2D ones in mm"):
        rf.match_points(result, points(shape(30, 2)), points(shape(30, 2), "mm"))
    del result.metrics["scale_px"]
    with pytest.raises(ValueError, match="got one of images"):
        rf.match_points(result, points(shape(30, 2)), points(shape(30, 2)))


def test_duplicates_count_once_and_weight_zero_not_at_all() -> None:
    q = shape(60, 2)
    p = q @ turned(2, 6).T
    once = rf.register(points(q), points(p), transform="rigid")
    twice = rf.register(points(np.concatenate([q, q[:30]])), points(np.concatenate([p, p[5:20]])), transform="rigid")
    one, other = once.affine.parts()[0], twice.affine.parts()[0]
    assert isinstance(one, rf.Affine)
    assert isinstance(other, rf.Affine)
    assert torch.equal(one.matrix, other.matrix)
    dirty = np.concatenate([p, np.full((1, 2), 1e6)])
    weights = torch.ones(61, dtype=torch.float64)
    weights[-1] = 0
    hidden = rf.register(points(q), rf.PointSet(torch.from_numpy(dirty), weights=weights), transform="rigid")
    assert error(hidden, p, q) < 1e-6
    far = rf.register(points(q), points(dirty), transform="rigid")  # and what is far beyond the rest takes no part
    assert error(far, p, q) < 1e-6
    assert far.metrics["points"]["moving_used"] == 60


def test_thinning_keeps_places_and_bounds_the_canvas() -> None:
    c = np.random.default_rng(0).random((5000, 3))
    few = clouds.thinned(c, 64)
    assert few.shape == (64, 3)
    np.testing.assert_allclose(few.mean(axis=0), c.mean(axis=0), atol=2e-3)
    assert clouds.thinned(c[:50], 64) is not None
    assert len(clouds.thinned(c[:50], 64)) == 50
    spread = np.concatenate([c, [[1e5, 1e5, 1e5]]])
    assert math.prod(clouds.canvas(points(spread)).shape) <= clouds.MOST_PIXELS


def test_turns_are_proper_and_spread() -> None:
    for ndim in (2, 3):
        r = starts_points.turns(ndim)
        eye = torch.eye(ndim, dtype=torch.float64)
        torch.testing.assert_close(r @ r.mT, eye.expand_as(r))
        assert bool((torch.linalg.det(r) > 0).all())
    probes = torch.from_numpy(Rotation.random(50, random_state=0).as_matrix())
    trace = torch.einsum("aij,bij->ab", probes, starts_points.turns(3)).amax(dim=1)
    assert float(torch.rad2deg(torch.arccos(((trace - 1) / 2).clamp(-1, 1))).max()) < 45


def test_energy_gradient() -> None:
    """The gradient of the bent energy against differences, in double the step's accuracy of float32."""
    p, q = shape(40, 2), shape(40, 2, 1)
    state = straight.State(np.eye(3), 2.0, 0.1)
    fit = bend.bent_start(state, bend.Clouds(p, q, 1.0, rf.Config()))
    assert fit.space is not None
    found = clouds.match(p, q, 2.0, 0.1, 400.0)
    energy = bend.CloudEnergy(p, q, found.rows, 2.0, 0.1, 400.0, fit.maps)
    generator = torch.Generator().manual_seed(0)
    x = fit.x + 0.05 * torch.randn(fit.x.shape, generator=generator)
    _, gradient = energy(x)
    for part in (slice(0, fit.increment.size), slice(fit.increment.size, None)):
        way = torch.zeros_like(x)
        way[part] = gradient[part] / gradient[part].norm()
        step = 0.03
        difference = (energy(x + step * way)[0] - energy(x - step * way)[0]) / (2 * step)
        assert difference == pytest.approx(float(gradient[part].norm()), rel=0.02)


@pytest.mark.parametrize("name", ["mixture", "kernel"])
def test_metric_gradients_tiles_and_hidden_points(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.from_numpy(shape(23, 2)).requires_grad_(True)
    y = torch.from_numpy(shape(31, 2, 2))
    weight = torch.rand(23, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    metric = rf.metric(name, scale=3.0)
    whole = metric(x, y, weight)
    assert torch.autograd.gradcheck(lambda v: metric(v, y, weight), (x,))
    monkeypatch.setattr(sys.modules[type(metric).__module__], "TILE", 7)
    torch.testing.assert_close(metric(x, y, weight), whole)
    assert torch.autograd.gradcheck(lambda v: metric(v, y, weight), (x,))
    hidden = weight.clone()
    hidden[3] = 0
    moved = x.detach().clone()
    moved[3] += 5
    torch.testing.assert_close(metric(moved, y, hidden), metric(x.detach(), y, hidden))
    assert float(metric(y, y, torch.ones(31, dtype=torch.float64))) < float(whole.detach())
    for bad in (0, -1, math.nan, "a"):
        with pytest.raises(ValueError, match="scale above 0"):
            rf.metric(name, scale=bad)
    with pytest.raises(ValueError, match="wanted warped"):
        metric(x, y[:, :1], weight)
    with pytest.raises(TypeError, match="two point sets"):
        metric.prepare(rf.Image.from_array(np.eye(9)), points(shape(9, 2)))


def test_the_mixture_says_what_its_formula_says() -> None:
    x, y = torch.from_numpy(shape(9, 2)), torch.from_numpy(shape(7, 2, 1))
    metric = rf.metric("mixture", scale=2.0, outliers=0.2)
    sigma = metric.sigma(y)  # type: ignore[attr-defined]
    normal = torch.exp(-(torch.cdist(y, x) ** 2) / (2 * sigma**2)) / (2 * math.pi * sigma**2)
    volume = (y.amax(0) - y.amin(0)).prod()
    expected = -(0.8 * normal.mean(dim=1) + 0.2 / volume).log().mean()
    torch.testing.assert_close(metric(x, y, torch.ones(9, dtype=torch.float64)), expected)


def write_csv(path: Path, array: Floats, rows: list[int]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "x", "y", "kind"])
        writer.writerows([i, float(array[i, 1]), float(array[i, 0]), f"k{i}"] for i in rows)


def test_command_line_from_tables_to_moved_tables(tmp_path: Path) -> None:
    q = shape(60, 2)
    p = q @ turned(2, 8).T
    rows = np.random.default_rng(0).permutation(60).tolist()
    write_csv(tmp_path / "fixed.csv", q, list(range(60)))
    write_csv(tmp_path / "moving.csv", p, rows)
    arguments = ["register", str(tmp_path / "fixed.csv"), str(tmp_path / "moving.csv"), "-o", str(tmp_path / "run")]
    done = CliRunner().invoke(main, [*arguments, "--transform", "rigid", "--save-warped"])
    assert done.exit_code == 0, done.output
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert figures["verdict"] == "pass"
    assert {"roundtrip_px", "jacobian_min", "folding_fraction", "pose_margin", "energy"} <= set(figures)
    assert "60 points" in (tmp_path / "run" / "report.html").read_text()
    moved = tmp_path / "moved.csv"
    apply = ["apply", "points", str(tmp_path / "run"), str(tmp_path / "moving.csv"), "--to", "fixed", "-o", str(moved)]
    done = CliRunner().invoke(main, apply)
    assert done.exit_code == 0, done.output
    with moved.open(newline="") as file:
        back = list(csv.DictReader(file))
    assert [int(row["id"]) for row in back] == rows
    assert [row["kind"] for row in back] == [f"k{i}" for i in rows]
    names = [next(name for name in back[0] if name.startswith(axis)) for axis in ("y", "x")]
    np.testing.assert_allclose([[float(row[n]) for n in names] for row in back], q[rows], atol=1e-5)
    assert all(float(row["match_probability"]) > 0.9 for row in back if row["match_probability"])
    loaded = rf.load(tmp_path / "run")
    assert error(loaded, p, q) < 1e-6


def test_position_sd_is_as_large_as_the_errors() -> None:
    """Shapes of known maps under noise, some points gone: two thirds of the errors within one sd, nearly all within two."""
    found: dict[str, list[Floats]] = {"rigid": [], "lddmm": []}
    for seed in range(3):
        rng = np.random.default_rng(seed)
        p = rng.uniform(0, 100, (900, 2))
        bent = p + 3 * np.sin(p[:, ::-1] / 20 + seed)
        for kind, truth in (("rigid", p @ turned(2, seed).T), ("lddmm", bent)):
            q = (truth + rng.normal(size=p.shape) * 0.3)[rng.random(len(p)) > 0.2]
            result = rf.register(points(q), points(p), transform=kind, init="auto" if kind == "rigid" else "identity")
            carried = rf.carry_points(result, points(p))
            inside = torch.isfinite(carried.position_sd).numpy()
            assert inside.mean() > 0.95
            off = np.abs(carried.points.coords.numpy() - truth) / carried.position_sd.numpy()[:, None]
            found[kind].append(off[inside])
            assert result.metrics["position_sd"]["unit"] == "px"
    for kind, relative in found.items():
        one, two = (float(np.mean([(r <= limit).mean() for r in relative])) for limit in (1, 2))
        assert 0.45 < one < 0.9, (kind, one, two)
        assert two > 0.85, (kind, one, two)


def test_position_sd_follows_what_is_known() -> None:
    """More noise: less sure; where no point is: least sure; what is exact is known exactly."""
    rng = np.random.default_rng(0)
    p = rng.uniform(0, 100, (900, 2))
    hole = np.abs(p - 50).max(axis=1) < 22
    bent = p + 3 * np.sin(p[:, ::-1] / 20)

    def sds(noise: float, keep: Floats) -> Floats:
        q = (bent + rng.normal(size=p.shape) * noise)[keep]
        result = rf.register(points(q), points(p), init="identity")
        assert result.metrics["model"] == "lddmm"
        return np.asarray(rf.carry_points(result, points(p)).position_sd.numpy())

    everything = rng.random(len(p)) > 0.1
    little, much = sds(0.1, everything), sds(0.5, everything)
    assert np.nanmedian(much) > 2 * np.nanmedian(little)
    torn = sds(0.1, everything & ~hole)
    middle = np.abs(p - 50).max(axis=1) < 10
    assert np.nanmedian(torn[middle]) > 2 * np.nanmedian(torn[~hole])
    exact = rf.register(points(p @ turned(2, 1).T), points(p), transform="rigid")
    assert exact.position_sd is not None
    assert float(exact.position_sd.max()) < 0.01 * exact.fixed_grid.pixel


def test_memory_and_time_of_large_clouds() -> None:
    """More points than are fitted: the result is as good, and no square of their number is ever held."""
    rng = np.random.default_rng(0)
    q = shape(12_000, 3) + rng.normal(size=(12_000, 3))
    p = q @ turned(3, 1).T
    result = rf.register(points(q), points(p), transform="rigid")
    assert error(result, p, q) < 1e-5


# ---- files -----------------------------------------------------------------------------------------------------------


def ply(path: Path, array: Floats, count: int | None = None) -> Path:
    head = f"ply\nformat ascii 1.0\nelement vertex {len(array) if count is None else count}\n"
    head += "property float x\nproperty float y\nproperty float z\nproperty int shade\nend_header\n"
    path.write_text(head + "".join(f"{z} {y} {x} {i}\n" for i, (x, y, z) in enumerate(array)))
    return path


class _Vertex:
    def __init__(self, data: NDArray[np.void]) -> None:
        self.data = data


def test_ply_through_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = shape(12, 3).round(3)
    path = ply(tmp_path / "a.ply", array)
    try:
        import plyfile  # noqa: F401
    except ImportError:
        stand_in = ModuleType("plyfile")
        table = np.zeros(12, dtype=[("x", "f4"), ("y", "f4"), ("z", "f4"), ("shade", "i4")])
        table["x"], table["y"], table["z"], table["shade"] = array[:, 2], array[:, 1], array[:, 0], np.arange(12)

        class PlyData:
            @staticmethod
            def read(source: str, mmap: bool) -> dict[str, _Vertex]:
                assert source == str(path)
                return {"vertex": _Vertex(table)}

        stand_in.PlyData = PlyData  # type: ignore[attr-defined]
        stand_in.__spec__ = __import__("importlib.machinery").machinery.ModuleSpec("plyfile", None)
        monkeypatch.setitem(sys.modules, "plyfile", stand_in)
    cloud = rf.open(path)
    assert isinstance(cloud, rf.PointSet)
    np.testing.assert_allclose(cloud.coords.numpy(), array, atol=1e-5)
    assert list(cloud.table["shade"]) == [str(i) for i in range(12)]
    rf.find_adapter(path).save(cloud, tmp_path / "out.csv")
    assert torch.equal(rf.read_points(tmp_path / "out.csv").coords, cloud.coords)
    with pytest.raises(ValueError, match="declares 999999999 points"):
        rf.open(ply(tmp_path / "b.ply", array, 999_999_999))


@pytest.mark.parametrize(("name", "reader"), [("a.ply", "plyfile"), ("a.las", "laspy")])
def test_a_missing_reader_names_its_extra(
    name: str, reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(b"LASF" if name.endswith("las") else b"ply\n")
    find = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None if module == reader else find(module))
    with pytest.raises(ImportError, match=r"regframe\[pointcloud\]"):
        rf.open(tmp_path / name)
    done = CliRunner().invoke(main, ["info", str(tmp_path / name)])
    assert done.exit_code == 2
    assert "pointcloud" in done.output


@pytest.mark.parametrize(("name", "reader"), [("a.ply", "plyfile"), ("a.las", "laspy")])
def test_what_is_written_is_read(tmp_path: Path, name: str, reader: str) -> None:
    pytest.importorskip(reader)
    rng = np.random.default_rng(0)
    coords = torch.from_numpy(rng.normal(0, 50, (40, 3)))
    table = {axis: [repr(v) for v in coords[:, k].tolist()] for k, axis in ((2, "x"), (1, "y"), (0, "z"))}
    table["intensity"] = [str(v) for v in rng.integers(0, 255, 40)]
    cloud = rf.PointSet(coords, "m", table=table, columns=("z", "y", "x"))
    adapter = rf.adapter(name[-3:], unit="m")
    adapter.save(cloud, tmp_path / name)
    back = adapter.open(tmp_path / name)
    assert torch.allclose(back.coords, coords, atol=1e-6)
    assert back.table["intensity"] == table["intensity"]
    worded = rf.PointSet(coords, "m", table=table | {"kind": ["a"] * 40}, columns=("z", "y", "x"))
    with pytest.raises(ValueError, match=r"got words in 'kind'; write a \.csv"):
        adapter.save(worded, tmp_path / name)


def test_las_through_its_reader(tmp_path: Path) -> None:
    laspy = pytest.importorskip("laspy")
    array = shape(10, 3)
    cloud = laspy.create(point_format=0)
    cloud.header.scales = [1e-4] * 3
    cloud.z, cloud.y, cloud.x = array.T
    cloud.write(str(tmp_path / "a.las"))
    found = rf.open(tmp_path / "a.las", unit="m")
    assert isinstance(found, rf.PointSet)
    assert found.unit == "m"
    np.testing.assert_allclose(found.coords.numpy(), array, atol=1e-3)
    broken = tmp_path / "b.las"
    broken.write_bytes(b"LASF" + struct.pack("<20I", *range(20)))
    with pytest.raises(ValueError, match="wanted a LAS point cloud"):
        rf.open(broken)


# ---- the data of the field ---------------------------------------------------------------------------------------------


def test_fish_and_bunny(data_dir: Path) -> None:
    folder = data_dir / "17_point_clouds"
    fish = [np.loadtxt(folder / "pycpd" / f"fish_{side}.txt") for side in ("source", "target")]
    assert error(rf.register(points(fish[1]), points(fish[0])), *fish) < 0.039
    bunny = [np.loadtxt(folder / "pycpd" / f"bunny_{side}.txt") for side in ("source", "target")]
    for seed in range(2):
        p = bunny[0] @ turned(3, seed).T
        assert error(rf.register(points(bunny[1]), points(p), transform="rigid"), p, bunny[1]) < 1e-4
