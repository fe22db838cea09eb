"""The store: same bits back, the standard's own map within its bar, nothing half-written, nothing believed."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from scipy.ndimage import map_coordinates

from regframe.config import Config
from regframe.data import Grid, Image
from regframe.io import replacing, scene, store
from regframe.maps import fields
from regframe.maps.affine import Affine
from regframe.maps.base import Transform
from regframe.maps.displacement import Displacement
from regframe.maps.flow import Flow
from regframe.maps.resample import resample
from regframe.maps.sequence import Sequence
from regframe.result import Result

DOC = Path(__file__).parents[2] / "docs" / "format.md"


def smooth_velocity(grid: Grid, inner: Grid, n_slices: int, size: float, width: float, seed: int = 0) -> torch.Tensor:
    """A sum of Gaussian bumps inside ``inner``, ``[T, D, *S]`` float32, of at most ``size``, each ``width`` wide."""
    generator = torch.Generator().manual_seed(seed)
    coords = grid.coords()
    low = torch.tensor(inner.origin, dtype=torch.float64)
    extent = torch.tensor(inner.extent, dtype=torch.float64)
    out = torch.zeros(n_slices, grid.ndim, *grid.shape, dtype=torch.float64)
    for t in range(n_slices):
        for d in range(grid.ndim):
            for _ in range(4):
                center = low + extent * torch.rand(grid.ndim, generator=generator, dtype=torch.float64)
                sign = 2 * torch.rand(1, generator=generator, dtype=torch.float64) - 1
                out[t, d] += sign * torch.exp(-((coords - center) ** 2).sum(-1) / (2 * width**2))
    return (out * size / out.norm(dim=1).max()).to(torch.float32)


def affine_2d(moving: str = "px", fixed: str = "px", ratio: float = 1.0) -> Affine:
    """A rotation by 0.2, a scale of 1.1 and a shift; ``ratio`` is the moving unit in fixed units."""
    c, s = 1.1 * math.cos(0.2), 1.1 * math.sin(0.2)
    matrix = torch.tensor([[c, -s, -12.0], [s, c, 7.0], [0, 0, 1]], dtype=torch.float64)
    matrix[:2] *= ratio
    return Affine(matrix, moving, fixed)


def make(transform: Transform, affine: Transform, fixed: Grid, moving: Grid, **changes: Any) -> Result:
    metrics = {
        "verdict": "warn",
        "reasons": ["a, b", "ungültig µ"],
        "n_evaluations": 12,
        "seconds": 0.1 + 0.2,
        "roundtrip_px": {"mean": 1e-17, "max": 0.1},
        "pose_margin": math.inf,
        "nested": [{"x": None, "nan": math.nan}],
    }
    values: dict[str, Any] = {
        "metrics": metrics,
        "config": Config(seed=7, metric_options={"radius": 4}, sigma_match=0.1),
        "history": [{"stage": "flow", "level": 0, "iteration": i, "energy": 1 / (i + 3)} for i in range(3)],
    }
    return Result(transform=transform, affine=affine, fixed_grid=fixed, moving_grid=moving, **{**values, **changes})


def bent_2d(scale: float = 1.0, unit: str = "px", fixed_unit: str = "px", ratio: float = 1.0) -> Result:
    """A 40 × 52 image bent by about 1.5 px, in pixels of ``scale`` ``unit``."""
    moving = Grid((40, 52), (scale, scale), (3 * scale, -2 * scale), unit)
    grid = Grid((16, 18), (6 * scale, 6 * scale), (-20 * scale, -25 * scale), unit)
    flow = Flow(smooth_velocity(grid, moving, 3, 1.5 * scale, 20 * scale), grid, 3)
    matrix = affine_2d(unit, fixed_unit).matrix.clone()
    matrix[:2, 2] *= scale
    matrix[:2] *= ratio
    affine = Affine(matrix, unit, fixed_unit)
    step = scale * ratio
    fixed = Grid((44, 50), (step, step), (-10 * step, 5 * step), fixed_unit)
    weight_grid = Grid((22, 25), (2 * step, 2 * step), fixed.origin, fixed_unit)
    weight = torch.rand(22, 25, generator=torch.Generator().manual_seed(1))
    return make(Sequence((flow, affine)), affine, fixed, moving, weight=weight, weight_grid=weight_grid)


def bent_3d() -> Result:
    moving = Grid((10, 14, 12), (2.0, 1.0, 1.0), (), "µm")
    grid = Grid((6, 8, 8), (6.0, 4.0, 4.0), (-6.0, -6.0, -8.0), "µm")
    flow = Flow(smooth_velocity(grid, moving, 2, 0.2, 9.0), grid, 4)
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[1:3, 1:3] = torch.tensor([[0.9, -0.2], [0.2, 0.9]], dtype=torch.float64)
    matrix[:3, 3] = torch.tensor([1.0, 2.0, -3.0])
    affine = Affine(matrix, "µm", "µm")
    return make(Sequence((flow, affine)), affine, Grid((11, 12, 13), (2.0, 1.0, 1.0), (), "µm"), moving)


def straight_2d() -> Result:
    return make(affine_2d("px", "px"), affine_2d("px", "px"), Grid((30, 31)), Grid((32, 33)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path, dict[str, store.FieldReport]]:
    """The 8 px bend of a 200 × 220 image, saved once."""
    moving, fixed = Grid((200, 220)), Grid((210, 200))
    grid = Grid((52, 54), (8.0, 8.0), (-100.0, -100.0))
    flow = Flow(smooth_velocity(grid, moving, 3, 8.0, 60.0), grid)
    result = make(Sequence((flow, affine_2d())), affine_2d(), fixed, moving)
    path = tmp_path_factory.mktemp("saved") / "big.ome.zarr"
    return result, path, store.save(result, path)


@pytest.fixture(scope="module")
def small_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bent result on disk, written once, not to be changed."""
    path = tmp_path_factory.mktemp("small") / "small.ome.zarr"
    store.save(bent_2d(), path)
    return path


@pytest.fixture
def small(small_once: Path, tmp_path: Path) -> Path:
    """A copy of it, to be tampered with."""
    path = tmp_path / "run" / "small.ome.zarr"
    shutil.copytree(small_once, path)
    return path


def positions(grid: Grid, n: int = 4000, seed: int = 5) -> torch.Tensor:
    """Random positions on the canvas of ``grid``, ``[N, D]``."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.tensor(grid.origin) - torch.tensor(grid.spacing) / 2
    return low + torch.rand(n, grid.ndim, generator=generator, dtype=torch.float64) * torch.tensor(grid.extent)


def same_json(a: Any, b: Any) -> bool:
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def assert_same(a: Result, b: Result) -> None:
    assert (a.fixed_grid, a.moving_grid, a.weight_grid) == (b.fixed_grid, b.moving_grid, b.weight_grid)
    assert a.config == b.config
    assert same_json(a.metrics, b.metrics)
    assert same_json(a.history, b.history)
    assert (a.weight is None) == (b.weight is None)
    if a.weight is not None and b.weight is not None:
        assert a.weight.dtype == b.weight.dtype
        assert torch.equal(a.weight, b.weight)
    for one, other in ((a.transform, b.transform), (a.affine, b.affine)):
        assert [type(p) for p in one.parts()] == [type(p) for p in other.parts()]
        assert (one.source_unit, one.target_unit) == (other.source_unit, other.target_unit)
    x, y = positions(a.moving_grid, 500), positions(a.fixed_grid, 500)
    assert torch.equal(a.transform.points(x), b.transform.points(x))
    assert torch.equal(a.transform.inverse().points(y), b.transform.inverse().points(y))
    assert torch.equal(a.affine.points(x), b.affine.points(x))


def edit(path: Path, node: str, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the attributes of one node of a store behind its back."""
    document = path / node / "zarr.json"
    content = json.loads(document.read_text())
    change(content)
    document.write_text(json.dumps(content))


def set_at(*keys: Any) -> Callable[[dict[str, Any]], None]:
    """A change that puts the last argument where the others lead."""

    def change(content: Any) -> None:
        *way, last, value = keys
        for key in way:
            content = content[key]
        content[last] = value

    return change


# ------------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize(
    "result",
    [
        bent_2d(),
        bent_3d(),
        straight_2d(),
        dataclasses.replace(straight_2d(), transform=Sequence((affine_2d(), affine_2d()))),
    ],
    ids=["2d", "3d", "affine", "two affines"],
)
def test_the_same_bits_come_back(result: Result, tmp_path: Path) -> None:
    path = tmp_path / "a.ome.zarr"
    reports = store.save(result, path)
    assert_same(result, store.load(path))
    flows = any(isinstance(p, Flow) for p in result.transform.parts())
    assert set(reports) == ({"to_fixed", "to_moving"} if flows else set())
    assert (path / "coordinateTransformations").exists() == flows


def test_a_reversed_double_flow_and_a_displacement_come_back(tmp_path: Path) -> None:
    base = bent_2d()
    flow = base.transform.parts()[0]
    assert isinstance(flow, Flow)
    double = dataclasses.replace(flow, velocity=flow.velocity.double() + 1e-12, n_steps=6, reverse=True)
    field = Displacement(flow.velocity[0], flow.grid, inverted=True)
    for bend in (double, field):
        result = dataclasses.replace(base, transform=Sequence((bend, base.affine)))
        store.save(result, tmp_path / "a.ome.zarr", overwrite=True)
        assert_same(result, store.load(tmp_path / "a.ome.zarr"))
        for to, exact in (("fixed", result.transform), ("moving", result.transform.inverse())):
            x = positions(result.moving_grid if to == "fixed" else result.fixed_grid)
            got = store.read_standard(tmp_path / "a.ome.zarr", to=to).points(x)
            assert (got - exact.points(x)).norm(dim=-1).max() <= 0.005


def test_the_output_folder_of_a_run_is_a_store_too(tmp_path: Path) -> None:
    store.save(straight_2d(), tmp_path / "run" / store.STORE_NAME)
    assert_same(straight_2d(), store.load(tmp_path / "run"))
    assert isinstance(store.read_standard(tmp_path / "run"), Affine)


def test_save_is_a_method_of_the_result_too(tmp_path: Path) -> None:
    straight_2d().save(tmp_path / "a.ome.zarr")
    assert store.load(tmp_path / "a.ome.zarr").verdict == "warn"


def test_versions_and_seed_are_written(small: Path) -> None:
    own = json.loads((small / "regframe" / "zarr.json").read_text())["attributes"]
    assert own["seed"] == 7
    assert set(own["versions"]) == {"regframe", "torch", "numpy", "zarr", "python"}
    assert own["versions"]["torch"] == str(torch.__version__)


def test_the_same_result_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        store.save(bent_2d(), tmp_path / name)
    files = [p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()]
    assert len(files) > 8
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


# -------------------------------------------------------------------------------------------------- the standard part


def by_hand(path: Path, steps: list[dict[str, Any]], points: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The transformations of a sequence with numpy and scipy alone, first applied first; points ``[N, D]``."""
    for step in steps:
        if step["type"] == "affine":
            matrix = np.array(step["affine"])
            points = points @ matrix[:, :-1].T + matrix[:, -1]
            continue
        group = zarr.open_group(path / step["path"], mode="r")
        dataset = group.attrs.asdict()["ome"]["multiscales"][0]["datasets"][0]
        scale, shift = (np.array(t[t["type"]][1:]) for t in dataset["coordinateTransformations"][0]["transformations"])
        index = ((points - shift) / scale).T
        data = np.asarray(group[dataset["path"]][...])
        assert (index >= 0).all()
        assert (np.array(data.shape[1:]) - 1 >= index.T).all()  # every position wanted lies on the field
        points = points + np.stack([map_coordinates(c.astype(float), index, order=1) for c in data], axis=1)
    return points


@pytest.mark.parametrize("to", ["fixed", "moving"])
def test_the_stored_field_is_within_its_bar(saved: tuple[Result, Path, dict[str, store.FieldReport]], to: str) -> None:
    result, path, reports = saved
    report = reports[f"to_{to}"]
    attributes = json.loads((path / "zarr.json").read_text())["attributes"]
    assert attributes["regframe"]["fields"][f"to_{to}"]["max_error_px"] == report.max_error_px
    assert report.reached
    assert 0 < report.mean_error_px < report.max_error_px <= (store.TOLERANCE_PX if to == "fixed" else 1e-5)
    flow = result.transform.parts()[0]
    exact = flow if to == "fixed" else flow.inverse()
    # where this field is used: the moving canvas, and the fixed canvas mapped back, before or after the bend
    canvas = positions(result.moving_grid, 20000)
    back = result.affine.inverse().points(positions(result.fixed_grid, 20000))
    extra = flow.inverse().points(back) if to == "fixed" else flow.points(canvas)
    where = torch.cat([canvas if to == "fixed" else back, extra])
    (whole,) = attributes["ome"]["scene"]["coordinateTransformations"]
    listed = whole["forward" if to == "fixed" else "inverse"]["transformations"]
    steps = [step for step in listed if step["type"] == "displacements"]
    assert (len(steps), len({step["path"] for step in steps})) == (report.steps, report.fields)
    error = np.linalg.norm(by_hand(path, steps, where.numpy()) - exact.points(where).numpy(), axis=1)
    assert error.max() <= (store.TOLERANCE_PX if to == "fixed" else 1e-5)
    assert error.max() > 0.1 * report.max_error_px  # and it was not made finer than needed by much


def test_the_standard_part_says_which_way_and_in_which_order(
    saved: tuple[Result, Path, dict[str, store.FieldReport]],
) -> None:
    result, path, _ = saved
    ome = json.loads((path / "zarr.json").read_text())["attributes"]["ome"]
    assert ome["version"] == "0.6"
    (whole,) = ome["scene"]["coordinateTransformations"]
    assert (whole["type"], whole["input"], whole["output"]) == ("bijection", {"name": "moving"}, {"name": "fixed"})
    assert [s["type"] for s in whole["forward"]["transformations"]] == ["displacements", "affine"]  # one field does it
    # the flow's own steps
    assert [s["type"] for s in whole["inverse"]["transformations"]] == ["affine", *["displacements"] * 3]
    x, y = positions(result.moving_grid), positions(result.fixed_grid)
    for points, steps, exact in (
        (x, whole["forward"]["transformations"], result.transform),
        (y, whole["inverse"]["transformations"], result.transform.inverse()),
    ):
        wanted = exact.points(points).numpy()
        assert np.linalg.norm(by_hand(path, steps, points.numpy()) - wanted, axis=1).max() <= 0.005
        with pytest.raises(AssertionError):  # the other order is another map
            np.testing.assert_allclose(by_hand(path, steps[::-1], points.numpy()), wanted, atol=0.5)


@pytest.mark.parametrize("to", ["fixed", "moving"])
def test_the_standard_part_alone_is_the_map(saved: tuple[Result, Path, dict[str, store.FieldReport]], to: Any) -> None:
    result, path, _ = saved
    exact = result.transform if to == "fixed" else result.transform.inverse()
    x = positions(result.moving_grid if to == "fixed" else result.fixed_grid)
    got = store.read_standard(path, to=to)
    assert [type(p) for p in got.parts()] == (
        [Displacement, Affine] if to == "fixed" else [Affine] + [Displacement] * 3
    )
    assert (got.points(x) - exact.points(x)).norm(dim=-1).max() <= 0.005
    assert (got.points(x.flip(-1)).flip(-1) - exact.points(x)).norm(dim=-1).max() > 1  # (y, x), not (x, y)


@pytest.mark.parametrize(
    ("scale", "unit", "fixed_unit", "ratio", "names"),
    [
        (0.5, "µm", "µm", 1.0, ("micrometer", "micrometer")),
        (0.0005, "mm", "µm", 1000.0, ("millimeter", "micrometer")),
        (1.0, "px", "px", 1.0, (None, None)),
        (2.0, "px", "nm", 40.0, (None, "nanometer")),
    ],
)
def test_units(
    small_once: Path,
    tmp_path: Path,
    scale: float,
    unit: str,
    fixed_unit: str,
    ratio: float,
    names: tuple[str | None, str | None],
) -> None:
    result = bent_2d(scale, unit, fixed_unit, ratio)
    reports = store.save(result, tmp_path / "a.ome.zarr")
    assert_same(result, store.load(tmp_path / "a.ome.zarr"))
    systems = json.loads((tmp_path / "a.ome.zarr" / "zarr.json").read_text())["attributes"]["ome"]["scene"]
    found = {s["name"]: s["axes"] for s in systems["coordinateSystems"]}
    for name, ome in (("moving", names[0]), ("fixed", names[1])):
        assert [a["name"] for a in found[name]] == ["y", "x"]
        assert [a.get("unit") for a in found[name]] == [ome, ome]
    for to, exact, grid in (
        ("fixed", result.transform, result.moving_grid),
        ("moving", result.transform.inverse(), result.fixed_grid),
    ):
        standard = store.read_standard(tmp_path / "a.ome.zarr", to=to)
        assert (standard.source_unit, standard.target_unit) == (exact.source_unit, exact.target_unit)
        x = positions(grid)
        pixel = result.fixed_grid.pixel if to == "fixed" else result.moving_grid.pixel
        assert (standard.points(x) - exact.points(x)).norm(dim=-1).max() / pixel <= 0.005
    # the error is in pixels, so it does not depend on the unit
    in_px = json.loads((small_once / "zarr.json").read_text())["attributes"]["regframe"]["fields"]["to_fixed"]
    assert reports["to_fixed"].max_error_px == pytest.approx(in_px["max_error_px"], rel=0.05)


def test_a_bend_away_from_both_images_needs_no_nodes(tmp_path: Path) -> None:
    base = bent_2d()
    grid = Grid((5, 5), (6.0, 6.0), (500.0, 500.0))
    far = Flow(torch.ones(1, 2, 5, 5), grid)
    result = dataclasses.replace(base, transform=Sequence((far, base.affine)))
    reports = store.save(result, tmp_path / "a")
    assert all(math.prod(r.shape) < 100 for r in reports.values())
    x = positions(result.moving_grid)
    assert torch.allclose(store.read_standard(tmp_path / "a").points(x), result.transform.points(x), atol=1e-9)


def test_too_much_bending_is_stored_as_well_as_it_can_be_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fields, "MAX_NODES", 60)
    with pytest.warns(UserWarning, match=r"px off at most where 0\.003 was wanted") as caught:
        reports = store.save(bent_2d(), tmp_path / "a", max_nodes=60)
    assert len(caught) == 1  # the other way is exact
    assert not reports["to_fixed"].reached
    assert reports["to_fixed"].nodes <= 60
    assert reports["to_moving"].reached
    said = json.loads((tmp_path / "a" / "zarr.json").read_text())["attributes"]["regframe"]["fields"]["to_fixed"]
    assert said["reached"] is False
    assert said["max_error_px"] > store.TOLERANCE_PX
    assert_same(bent_2d(), store.load(tmp_path / "a"))


def test_other_transformations_of_the_standard_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.zarr"
    store.save(straight_2d(), path)
    ends = {"input": {"name": "moving"}, "output": {"name": "fixed"}}
    steps = [
        {"type": "scale", "scale": [2.0, 3.0]},
        {"type": "rotation", "rotation": [[0.0, -1.0], [1.0, 0.0]]},
        {"type": "identity"},
        {"type": "sequence", "transformations": [{"type": "translation", "translation": [1.0, 10.0]}]},
    ]
    where = ("attributes", "ome", "scene", "coordinateTransformations")
    edit(path, "", set_at(*where, [{"type": "sequence", "transformations": steps, **ends}]))
    x = torch.tensor([[1.0, 1.0], [2.0, 5.0]], dtype=torch.float64)
    wanted = torch.tensor([[-3.0 + 1, 2.0 + 10], [-15.0 + 1, 4.0 + 10]], dtype=torch.float64)
    assert torch.allclose(store.read_standard(path).points(x), wanted)
    assert torch.allclose(store.read_standard(path, to="moving").points(wanted), x)
    edit(path, "", set_at(*where, [{"type": "coordinates", "path": "field", **ends}]))
    with pytest.raises(ValueError, match="got the transformation 'coordinates'"):
        store.read_standard(path)


def test_the_example_of_the_docs_runs(
    saved: tuple[Result, Path, dict[str, store.FieldReport]], monkeypatch: pytest.MonkeyPatch
) -> None:
    result, path, _ = saved
    (code,) = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), flags=re.DOTALL)
    monkeypatch.chdir(path.parent)
    names: dict[str, Any] = {}
    exec(code.replace("run/transform.ome.zarr", path.name), names)
    start = torch.tensor([[100.0, 80.0], [20.5, 31.0]], dtype=torch.float64)
    assert np.abs(names["points"] - result.transform.points(start).numpy()).max() <= 0.005


# ------------------------------------------------------------------------------------------------------------ writing


def test_an_existing_store_is_kept_unless_told_otherwise(small: Path) -> None:
    before = json.loads((small / "zarr.json").read_text())
    with pytest.raises(FileExistsError, match="--overwrite"):
        store.save(straight_2d(), small)
    assert json.loads((small / "zarr.json").read_text()) == before
    store.save(straight_2d(), small, overwrite=True)
    assert_same(straight_2d(), store.load(small))
    assert not (small / "coordinateTransformations").exists()  # nothing of the old store is left
    assert [p.name for p in small.parent.iterdir()] == [small.name]


@pytest.mark.parametrize("kind", ["file", "folder", "other zarr", "store with a stranger's file", "link"])
def test_what_is_not_a_store_is_never_replaced(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "mine"
    if kind == "file":
        target.write_text("thesis")
    elif kind == "folder":
        target.mkdir()
        (target / "thesis.txt").write_text("thesis")
    elif kind == "other zarr":
        zarr.create_group(target, attributes={"ome": {"version": "0.5"}})
    else:
        place = tmp_path / "real" if kind == "link" else target
        store.save(straight_2d(), place)
        (place / "thesis.txt").write_text("thesis")
        if kind == "link":
            target.symlink_to(place)
    before = sorted(p.name for p in tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match="not replaced"):
        store.save(straight_2d(), target, overwrite=True)
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(FileExistsError):
        store.save(straight_2d(), tmp_path / "a")
    store.save(straight_2d(), tmp_path / "a", overwrite=True)
    assert_same(straight_2d(), store.load(tmp_path / "a"))


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt(), OSError(28, "No space left on device")])
@pytest.mark.parametrize("existing", [False, True])
def test_a_write_that_dies_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, existing: bool
) -> None:
    target = tmp_path / "deep" / "er" / "a.ome.zarr"
    if existing:
        store.save(straight_2d(), target)

    def die(*args: Any) -> None:
        folders = [p for p in target.parent.iterdir() if p.name.endswith(".partial")]
        assert len(folders) == 1  # it was being written aside
        assert target.exists() == existing
        raise error

    monkeypatch.setattr(scene, "_write_field", die)
    with pytest.raises(type(error)) as caught:
        store.save(bent_2d(), target, overwrite=True)
    if isinstance(error, OSError):
        assert "No space left on device" in str(caught.value)
        assert str(target) in str(caught.value)
    if existing:
        assert [p.name for p in target.parent.iterdir()] == [target.name]
        assert_same(straight_2d(), store.load(target))
    else:
        assert list(tmp_path.iterdir()) == []


def test_the_old_store_comes_back_when_the_swap_fails(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(5, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setattr(replacing, "_renamed", lambda *_: False)  # a file system that cannot exchange two names
    with pytest.raises(OSError, match="Input/output error"):
        store.save(straight_2d(), small, overwrite=True)
    assert [p.name for p in small.parent.iterdir()] == [small.name]
    assert_same(bent_2d(), store.load(small))


def test_a_store_that_was_never_finished_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "copy"

    def die(*args: Any) -> None:
        (folder,) = tmp_path.glob(".a.*.partial")
        shutil.copytree(folder / "new", copy)  # what a killed process would have left
        raise RuntimeError

    monkeypatch.setattr(scene, "_write_field", die)
    with pytest.raises(RuntimeError):
        store.save(bent_2d(), tmp_path / "a")
    with pytest.raises(ValueError, match="unfinished"):
        store.load(copy)


def test_a_path_that_cannot_be_written_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(NotADirectoryError, match=r"file is a file, not a folder") as caught:
        store.save(straight_2d(), tmp_path / "file" / "a" / "b.ome.zarr")
    assert "\n" not in str(caught.value)

    def refuse(**kwargs: Any) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(PermissionError, match=r"cannot write .*b\.ome\.zarr: Permission denied"):
        store.save(straight_2d(), tmp_path / "new" / "b.ome.zarr")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_the_store_has_the_usual_permissions(tmp_path: Path) -> None:
    store.save(straight_2d(), tmp_path / "a")
    (tmp_path / "probe").mkdir()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "probe").stat().st_mode


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": {"verdict": object()}}, r"result\.metrics\.verdict, got object"),
        ({"history": [{1: 2}]}, r"result\.history\[0\], got dict"),
        ({"weight": torch.ones(3, 3)}, "got only one of them"),
        ({"weight": torch.ones(3, 3), "weight_grid": Grid((3, 4))}, r"wanted a weight of shape \(3, 4\)"),
        ({"weight": torch.full((3, 4), torch.nan), "weight_grid": Grid((3, 4))}, "wanted a finite weight"),
        ({"affine": bent_2d().transform}, "wanted a map made of Affine"),
    ],
)
def test_what_has_no_place_in_the_format_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        store.save(dataclasses.replace(straight_2d(), **changes), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------ reading


@pytest.mark.parametrize("name", ["nothing", "folder", "file"])
def test_no_store_there(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(
        FileNotFoundError, match=r"wanted a result of regframe, got .*which holds no map|got nothing at"
    ):
        store.load(tmp_path / name)


A = "attributes"
TAMPERED: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("", set_at(A, "regframe", "format", 2), "upgrade regframe"),
    ("", set_at(A, "regframe", "format", "1"), "wanted int at 'format', got str"),
    ("", set_at(A, "regframe", "format", True), "wanted int at 'format', got bool"),
    ("", set_at(A, "regframe", "format", 0), "format 1 or later"),
    ("", set_at(A, "regframe", "complete", False), "unfinished"),
    ("", set_at(A, "regframe", []), "wanted an object at 'regframe'"),
    ("", lambda c: c[A].pop("regframe"), "another OME-Zarr"),
    ("", lambda c: c.pop(A), "unfinished or foreign"),
    ("", set_at("zarr_format", 2), "wanted a Zarr 3 group"),
    ("", set_at("node_type", "array"), "wanted a Zarr 3 group"),
    ("regframe", lambda c: c[A].pop("moving_grid"), "wanted the key 'moving_grid'"),
    ("regframe", lambda c: c[A].pop("weight_grid"), "wanted the key 'weight_grid'"),
    ("regframe", lambda c: c[A].pop("history"), "wanted the key 'history'"),
    ("regframe", lambda c: c[A].pop("versions"), "wanted the key 'versions'"),
    ("regframe", set_at(A, "history", [1]), "per entry of 'history'"),
    ("regframe", set_at(A, "metrics", []), "wanted dict at 'metrics'"),
    ("regframe", set_at(A, "config", "seed", -1), "got seed: Input should be greater"),
    ("regframe", set_at(A, "config", "surprise", 1), "got surprise: Extra inputs"),
    ("regframe", set_at(A, "moving_grid", "shape", [40, 52.5]), "whole numbers"),
    ("regframe", set_at(A, "moving_grid", "shape", [10**30, 52]), "whole numbers"),
    ("regframe", set_at(A, "moving_grid", "shape", [40]), "2 or 3 axes"),
    ("regframe", set_at(A, "moving_grid", "spacing", [0.0, 1.0]), "positive spacing"),
    ("regframe", set_at(A, "moving_grid", "spacing", [1.0]), "spacing, origin and axes"),
    ("regframe", set_at(A, "moving_grid", "origin", [{"number": "nan"}, 1.0]), "wanted finite numbers"),
    ("regframe", set_at(A, "moving_grid", "origin", ["1", 1.0]), "wanted numbers"),
    ("regframe", set_at(A, "moving_grid", "origin", [10**400, 1.0]), "wanted finite numbers"),
    ("regframe", set_at(A, "moving_grid", "unit", "furlong"), "wanted a length unit"),
    ("regframe", set_at(A, "moving_grid", "unit", "micrometer"), "from the moving to the fixed grid"),
    ("regframe", set_at(A, "moving_grid", "axes", ["x", "y"]), "axes"),
    ("regframe", set_at(A, "transform", []), "at least one part"),
    ("regframe", set_at(A, "transform", 0, "type", "pickle"), "affine, flow or displacement, got 'pickle'"),
    ("regframe", set_at(A, "transform", 0, "n_steps", 10**9), "steps of the flow"),
    ("regframe", set_at(A, "transform", 0, "n_steps", 4), "multiple of the 3 time slices"),
    ("regframe", set_at(A, "transform", 0, "reverse", 1), "wanted bool at 'reverse'"),
    ("regframe", set_at(A, "transform", 0, "array", "../../secret"), "wanted the name of an array"),
    ("regframe", set_at(A, "transform", 0, "array", "nothing"), "wanted a Zarr array at 'regframe/nothing', got none"),
    ("regframe", set_at(A, "transform", 0, "grid", "shape", [16, 19]), "as its grid says"),
    ("regframe", set_at(A, "transform", 1, "matrix", [[1, 0], [0, 1, 2]]), "rows of one length"),
    ("regframe", set_at(A, "transform", 1, "matrix", [[1.0, 0.0], [0.0, 1.0]]), "homogeneous matrix"),
    ("regframe", set_at(A, "affine", 0, "type", "flow"), "wanted a part of type affine"),
    ("regframe/velocity", set_at("shape", [3, 2, 16, 10**12]), "as its grid says"),
    ("regframe/velocity", set_at("shape", [10**12, 2, 16, 18]), "elements in 'regframe/velocity'"),
    ("regframe/velocity", set_at("chunk_grid", "configuration", "chunk_shape", [10**12, 2, 16, 18]), "elements in"),
    ("regframe/velocity", set_at("chunk_grid", "configuration", "chunk_shape", [0, 2, 16, 18]), "positive sizes"),
    ("regframe/velocity", set_at("shape", [6, 2, 16, 18]), "a chunk is missing"),
    ("regframe/velocity", set_at("shape", []), "positive sizes"),
    ("regframe/velocity", set_at("data_type", "int32"), "wanted float32 or float64"),
    ("regframe/velocity", set_at("data_type", "complex64"), "wanted float32 or float64"),
    ("regframe/velocity", set_at("codecs", [{"name": "numcodecs.pickle"}]), "wanted the codecs"),
    ("regframe/velocity", set_at("node_type", "group"), "wanted a Zarr 3 array"),
    ("regframe/weight", set_at("shape", [22, 26]), "as its grid says"),
]


@pytest.mark.parametrize(("node", "change", "message"), TAMPERED, ids=[f"{n}-{m[:30]}" for n, _, m in TAMPERED])
def test_tampered_stores_are_refused(
    small_once: Path, tmp_path: Path, node: str, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    path = tmp_path / "a"
    shutil.copytree(small_once, path)
    edit(path, node, change)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        store.load(path)
    assert str(path) in str(caught.value)


FIELD = "coordinateTransformations/to_fixed"
MULTI = (A, "ome", "multiscales", 0)
WHOLE = (A, "ome", "scene", "coordinateTransformations", 0)
TAMPERED_STANDARD: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("", set_at(A, "ome", "version", "0.7"), "upgrade regframe"),
    ("", lambda c: c[A].pop("ome"), "wanted an object at 'ome'"),
    ("", lambda c: c[A]["ome"].pop("scene"), "wanted the key 'scene'"),
    ("", set_at(A, "ome", "scene", "coordinateSystems", []), "coordinate system named 'moving'"),
    ("", set_at(A, "ome", "scene", "coordinateSystems", 0, "axes", 0, "name", "q"), "wanted the axes"),
    ("", set_at(A, "ome", "scene", "coordinateSystems", 0, "axes", 0, "unit", "parsec"), "length unit"),
    ("", set_at(A, "ome", "scene", "coordinateSystems", 0, "axes", 0, "unit", "meter"), "one unit on all axes"),
    ("", set_at(*WHOLE, "input", {"name": "elsewhere"}), "none that leads to 'fixed'"),
    ("", set_at(*WHOLE, "forward", "transformations", 0, "path", "../outside"), "below the store"),
    ("", set_at(*WHOLE, "forward", "transformations", 0, "path", "/etc"), "below the store"),
    ("", set_at(*WHOLE, "forward", "transformations", 0, "path", "a\\..\\b"), "below the store"),
    ("", set_at(*WHOLE, "forward", "transformations", 0, "path", "%2e%2e/b"), "below the store"),
    ("", set_at(*WHOLE, "forward", "transformations", 0, "path", "C:/b"), "below the store"),
    ("", set_at(*WHOLE, "forward", "transformations", 0, "path", "regframe"), "wanted an object at 'regframe ome'"),
    ("", set_at(*WHOLE, "forward", "transformations", 0, "interpolation", "cubic"), "linearly"),
    ("", set_at(*WHOLE, "forward", "transformations", 1, "affine", [[1.0, 0.0], [0.0, 1.0]]), "wanted a matrix [2, 3]"),
    ("", set_at(*WHOLE, "forward", "transformations", 1, "affine", [[1, 0, 0], [0, 1, {"number": "nan"}]]), "numbers"),
    ("", set_at(*WHOLE, "forward", "transformations", 1, {"type": "scale", "scale": [1.0]}), "2 numbers of 'scale'"),
    (FIELD, lambda c: c[A].clear(), "wanted an object"),
    (FIELD, set_at(A, "ome", "multiscales", []), "one multiscale"),
    (FIELD, set_at(*MULTI, "datasets", []), "a dataset"),
    (FIELD, set_at(*MULTI, "datasets", 0, "path", "../../../secret"), "below the store"),
    (FIELD, set_at(*MULTI, "coordinateSystems", 0, "axes", 0, "type", "channel"), "one of displacement"),
    (FIELD, set_at(*MULTI, "datasets", 0, "coordinateTransformations", [{"type": "identity"}] * 2), "a scale and a"),
    (
        FIELD,
        set_at(*MULTI, "datasets", 0, "coordinateTransformations", [{"type": "scale", "scale": [1.0]}]),
        "wanted 3 numbers of 'scale'",
    ),
    (f"{FIELD}/0", set_at("shape", [2, 10**9, 10**9]), "elements in"),
    (f"{FIELD}/0", set_at("shape", [3, 20, 20]), "a chunk is missing"),
]


@pytest.mark.parametrize(
    ("node", "change", "message"), TAMPERED_STANDARD, ids=[f"{n}-{m[:30]}" for n, _, m in TAMPERED_STANDARD]
)
def test_tampered_standard_parts_are_refused(
    small_once: Path, tmp_path: Path, node: str, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    path = tmp_path / "a"
    shutil.copytree(small_once, path)
    edit(path, node, change)
    with pytest.raises(ValueError, match=re.escape(message)):
        store.read_standard(path)


def test_a_sequence_nested_for_ever_is_refused(small: Path) -> None:
    deep: dict[str, Any] = {"type": "identity"}
    for _ in range(20):
        deep = {"type": "sequence", "transformations": [deep]}
    edit(small, "", set_at(*WHOLE, "forward", deep))
    with pytest.raises(ValueError, match="nested 8 deep"):
        store.read_standard(small)
    (small / "zarr.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="cannot read"):
        store.load(small)


def test_damaged_files_are_refused(small: Path) -> None:
    chunk = small / "regframe" / "velocity" / "c" / "0" / "0" / "0" / "0"
    sound = chunk.read_bytes()
    middle = len(sound) // 2
    chunk.write_bytes(sound[:middle] + bytes([sound[middle] ^ 1]) + sound[middle + 1 :])
    with pytest.raises(ValueError, match="wanted sound data in 'regframe/velocity'"):
        store.load(small)
    chunk.write_bytes(sound[:-10])
    with pytest.raises(ValueError, match="wanted sound data"):
        store.load(small)
    chunk.unlink()
    with pytest.raises(ValueError, match="a chunk is missing"):
        store.load(small)
    chunk.write_bytes(sound)
    assert_same(bent_2d(), store.load(small))
    document = small / "regframe" / "zarr.json"
    text = document.read_text()
    for damaged in (text[: len(text) // 2], "[]", '{"x": NaN}', ""):
        document.write_text(damaged)
        with pytest.raises(ValueError, match="cannot read"):
            store.load(small)
    document.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match="not text"):
        store.load(small)
    document.unlink()
    with pytest.raises(ValueError, match="incomplete"):
        store.load(small)


def test_values_that_are_not_finite_are_refused(small: Path) -> None:
    group = zarr.open_group(small, mode="r+")
    for value in (np.nan, np.inf):
        group["regframe/velocity"][0, 0, 3, 3] = value
        with pytest.raises(ValueError, match="wanted finite values in 'regframe/velocity'"):
            store.load(small)
    group[f"{FIELD}/0"][0, 3, 3] = np.nan
    with pytest.raises(ValueError, match="wanted finite values"):
        store.read_standard(small)


def test_a_link_out_of_the_store_is_not_followed(small: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    shutil.move(small / "regframe", outside)
    (small / "regframe").symlink_to(outside)
    with pytest.raises(ValueError, match="leads out of it"):
        store.load(small)


# -------------------------------------------------------------------------------------------- somebody else's program

NGFF_SCRIPT = """
import json, sys
import dask.array as da
import numpy as np
import ngff_zarr as nz
from ngff_zarr.validate import validate

store, image, out, shape = sys.argv[1], np.load(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
attributes = lambda node: json.load(open(f"{store}/{node}/zarr.json"))["attributes"]
validate(attributes("."), version="0.6", model="scene")
scene = nz.from_ome_zarr(store, kind="scene", validate=True)
assert sorted(s.name for s in scene.coordinateSystems) == ["fixed", "moving"]
(whole,) = scene.coordinateTransformations
assert (whole.input.name, whole.output.name) == ("moving", "fixed")
units = {s.name: s.axes[0].unit for s in scene.coordinateSystems}

def itk(sequence):
    entries = []
    for step in reversed(sequence.transformations):  # a list for ITK is applied last entry first
        fields = {}
        if step.type == "displacements":
            for strict in (False, True):
                validate(attributes(step.path), version="0.6", model="image", strict=strict)
            fields[step.path] = nz.from_ome_zarr(f"{store}/{step.path}", validate=True)
        entries += nz.ngff_transform_to_itk_transform(step, ("y", "x"), fields=fields)
    return entries

def on_grid(array, grid):
    named = [dict(zip("yx", grid[key])) for key in ("spacing", "origin")]
    return nz.NgffImage(da.from_array(array, chunks=array.shape), ("y", "x"), *named)

grids = json.loads(sys.argv[4])
for name, sequence, target, source in (("to_fixed", whole.inverse, "fixed", "moving"),
                                       ("to_moving", whole.forward, "moving", "fixed")):
    pixels = image[source]
    empty = np.zeros(grids[target]["shape"], np.float32)
    result = nz.resample(itk(sequence), on_grid(empty, grids[target]), on_grid(pixels, grids[source]))
    np.save(f"{out}/{name}.npy", np.asarray(result.data))
print(json.dumps({"version": nz.__version__, "units": units}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "unit", "ome"), [(1.0, "px", None), (0.5, "µm", "micrometer")])
def test_ngff_zarr_validates_the_store_and_resamples_to_the_same_pixels(
    tmp_path: Path, ngff_python: Path, scale: float, unit: str, ome: str | None
) -> None:
    moving = Grid((200, 220), (scale, scale), (3 * scale, -5 * scale), unit)
    fixed = Grid((210, 200), (scale, scale), (), unit)
    grid = Grid((52, 54), (8 * scale, 8 * scale), (-100 * scale, -100 * scale), unit)
    flow = Flow(smooth_velocity(grid, moving, 3, 8.0 * scale, 60.0 * scale), grid)
    matrix = affine_2d().matrix.clone()
    matrix[:2, 2] *= scale
    affine = Affine(matrix, unit, unit)
    result = make(Sequence((flow, affine)), affine, fixed, moving)
    store.save(result, tmp_path / "a.ome.zarr")
    images = {}
    for name, on in (("moving", moving), ("fixed", fixed)):
        y, x = np.mgrid[: on.shape[0], : on.shape[1]]
        pattern = 127 + 60 * np.sin(y / 4) * np.cos(x / 5) + 40 * np.sin((x + 2 * y) / 15)
        images[name] = pattern.astype(np.float32)
    np.savez(tmp_path / "images.npz", **images)
    (tmp_path / "script.py").write_text(NGFF_SCRIPT)
    grids = json.dumps({"moving": dataclasses.asdict(moving), "fixed": dataclasses.asdict(fixed)})
    command = [ngff_python, tmp_path / "script.py", tmp_path / "a.ome.zarr", tmp_path / "images.npz", tmp_path, grids]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["units"] == {"moving": ome, "fixed": ome}
    for name, source, target, transform in (
        ("to_fixed", "moving", fixed, result.transform),
        ("to_moving", "fixed", moving, result.transform.inverse()),
    ):
        on = moving if source == "moving" else fixed
        pixels = torch.from_numpy(images[source])[None]
        ours = resample(Image(pixels, on), transform, target).data[0].numpy()
        theirs = np.load(tmp_path / f"{name}.npy")
        assert theirs.shape == ours.shape
        at = transform.inverse().points(target.coords())
        index = (at - torch.tensor(on.origin)) / torch.tensor(on.spacing)
        inside = ((index >= 0) & (index <= torch.tensor(on.shape) - 1)).all(-1).numpy()
        assert inside.mean() > 0.5
        worst = float(np.abs(ours - theirs)[inside].max()) / float(np.ptp(images[source]))
        print(
            f"ngff-zarr {said['version']}, {unit}, {name}: {worst:.2e} of the range, {inside.mean():.0%} of the pixels"
        )
        assert worst <= 1e-3


@pytest.fixture(scope="module")
def ngff_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment of its own with ngff-zarr ≥ 0.50 in it."""
    folder = tmp_path_factory.mktemp("ngff") / "env"
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / Path(sys.executable).name
    if not python.exists():
        python = python.with_name("python")
    command = [python, "-m", "pip", "install", "--quiet", "ngff-zarr[validate]>=0.50"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode != 0:
        pytest.skip(f"pip cannot install ngff-zarr: {done.stderr.strip().splitlines()[-1:]}")
    return python
