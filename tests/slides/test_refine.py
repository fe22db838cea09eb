"""Refinement at full resolution: a known residual comes back, nothing is kept that does not help, the map stays smooth."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pytest
import torch
import yaml
from fake_result import fake_result
from scipy.ndimage import gaussian_filter

import regframe as rf
from regframe import verdict
from regframe.cli import main
from regframe.data import Grid, Image, Pyramid
from regframe.io import outputs
from regframe.maps.affine import Affine
from regframe.maps.base import Transform
from regframe.maps.bends import split_last
from regframe.maps.flow import Flow
from regframe.maps.resample import _fusible
from regframe.maps.sequence import Sequence
from regframe.result import Result
from regframe.slides import field as slides_field
from regframe.slides import levels, sweep, windows
from regframe.slides.field import Evidence, Field, Process, joined

SIDE = 1024


def texture(seed: int, side: int = SIDE) -> torch.Tensor:
    """Cells ``[1, side, side]`` uint8 on glass: dark spots of about four pixels in a square."""
    noise = np.random.default_rng(seed).standard_normal((side, side)).astype(np.float32)
    cells = gaussian_filter(noise, 2.0)
    at = np.arange(side) - (side - 1) / 2
    inside = (abs(at) < 0.45 * side)[:, None] & (abs(at) < 0.45 * side)[None]
    pixels = 240 - inside * np.clip(70 + 45 * cells / cells.std(), 0, 230)
    return torch.from_numpy(pixels.astype(np.uint8))[None]


def bend(amount: float) -> Flow:
    """A bump of ``amount`` pixels a few hundred pixels wide."""
    nodes = Grid((9, 9), (SIDE / 4,) * 2, (-SIDE / 2,) * 2)
    z = nodes.coords()
    away = ((z - SIDE / 2) ** 2).sum(dim=-1) / (SIDE / 4) ** 2
    return Flow(amount * torch.stack([torch.exp(-away), -0.6 * torch.exp(-away)])[None], nodes)


@pytest.fixture(scope="module")
def coarse() -> Result:
    """A result that a registration at an eighth of the resolution could have left."""
    grid = Grid((SIDE, SIDE))
    matrix = torch.tensor([[1.0, 0.02, 3.0], [-0.02, 1.0, -5.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    made = fake_result(grid, grid, matrix, bend=6.0)
    return dataclasses.replace(made, weight_grid=grid.resampled((8.0, 8.0)), weight=torch.ones(SIDE // 8, SIDE // 8))


@pytest.fixture(scope="module")
def truth(coarse: Result) -> Transform:
    """The map that the images have: the coarse one with a bump before its affine part."""
    flow, affine = coarse.transform.parts()
    return Sequence((flow, bend(4.0), affine))


@pytest.fixture(scope="module")
def pair(truth: Transform) -> tuple[Pyramid, Pyramid]:
    moving = Image(texture(0), Grid((SIDE, SIDE)))
    fixed = rf.resample(moving, truth, Grid((SIDE, SIDE)), background=240.0)
    fixed = fixed.replace(data=(255 - 0.7 * fixed.data.to(torch.float32)).to(torch.uint8))  # another contrast
    return levels.pyramid_of(fixed), levels.pyramid_of(moving)


@pytest.fixture(scope="module")
def refined(coarse: Result, pair: tuple[Pyramid, Pyramid]) -> Result:
    return rf.refine(coarse, *pair, workers=1)


def middle(n: int = 40) -> torch.Tensor:
    """Positions on the tissue of the fixed side."""
    at = torch.linspace(0.2 * SIDE, 0.8 * SIDE, n, dtype=torch.float64)
    return torch.stack(torch.meshgrid(at, at, indexing="ij"), dim=-1).reshape(-1, 2)


def error(transform: Transform, truth: Transform) -> float:
    y = middle()
    return float((transform.inverse().points(y) - truth.inverse().points(y)).norm(dim=1).median())


def test_a_known_residual_comes_back(coarse: Result, refined: Result, truth: Transform) -> None:
    assert error(coarse.transform, truth) > 1.0
    assert error(refined.transform, truth) < 0.3
    (entry,) = refined.metrics["refinement"]["rounds"]
    assert entry["kept"] == entry["tiles"] == 1
    assert entry["correlation"][1] > entry["correlation"][0] + 0.1
    said = next(iter(verdict.of_refinement(refined.metrics["refinement"]["rounds"], "µm"))).sentence
    assert re.fullmatch(r"pixels of \S+ µm: 1 of 1 tiles kept; fine structure .*, moved by \S+ µm in the median", said)


def test_the_map_is_smooth_and_exactly_invertible(refined: Result) -> None:
    y = Grid((256, 256), (4.0, 4.0)).coords().reshape(-1, 2)
    back = refined.transform.inverse()
    assert float((refined.transform.points(back.points(y)) - y).norm(dim=1).max()) < 1e-6
    area = back.jacobian_determinant(Grid((256, 256), (4.0, 4.0)))
    assert 0.7 < float(area.min()) < float(area.max()) < 1.4
    assert float(area.diff(dim=0).abs().max()) < 0.05  # no seams
    assert float(area.diff(dim=1).abs().max()) < 0.05
    assert refined.metrics["folding_fraction"] == 0
    assert refined.metrics["roundtrip_px"]["mean"] < 0.02


def test_it_stays_one_flow_and_is_stored(refined: Result, coarse: Result, tmp_path: Path) -> None:
    assert [type(p) for p in refined.transform.parts()] == [Flow, Affine]
    assert _fusible(refined.transform.inverse()) is not None
    refined.save(tmp_path / "r.ome.zarr")
    again = rf.load(tmp_path / "r.ome.zarr")
    assert torch.equal(again.transform.points(middle()), refined.transform.points(middle()))
    assert again.metrics["refinement"]["kept"] == 1
    assert again.verdict == coarse.verdict


def test_it_is_the_same_on_any_number_of_workers(
    coarse: Result, pair: tuple[Pyramid, Pyramid], refined: Result
) -> None:
    seen: list[rf.Progress] = []
    other = rf.refine(coarse, *pair, workers=2, progress=seen.append)
    assert torch.equal(other.transform.points(middle()), refined.transform.points(middle()))
    assert [(step.done, step.total) for step in seen] == [(1, 1)]


@pytest.fixture(scope="module")
def stored(pair: tuple[Pyramid, Pyramid], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The pair in files, which other processes can read."""
    folder = tmp_path_factory.mktemp("pair")
    for name, side in zip(("fixed", "moving"), pair, strict=True):
        rf.warp_slide(side, Affine.identity(2), side.grid, folder / f"{name}.zarr", workers=1)
    return folder / "fixed.zarr", folder / "moving.zarr"


def test_it_has_the_same_bytes_from_the_workers_of_a_client(
    coarse: Result, stored: tuple[Path, Path], refined: Result, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(2) as client:
        other = rf.refine(coarse, *stored, client=client, folder=tmp_path / "kept")
    assert torch.equal(other.transform.points(middle()), refined.transform.points(middle()))
    assert (tmp_path / "kept" / "store" / "0-000000.npz").is_file()


def test_images_in_memory_are_not_sent_to_workers(coarse: Result, pair: tuple[Pyramid, Pyramid]) -> None:
    with ThreadPoolExecutor(1) as client, pytest.raises(ValueError, match=r"at most 65536 bytes, .*pass the paths"):
        rf.refine(coarse, *pair, client=client)
    with pytest.raises(ValueError, match=r"wanted a dask\.distributed\.Client .* as client, got str"):
        rf.refine(coarse, *pair, client="tcp://here:8786")


def test_an_interrupted_refinement_goes_on(
    coarse: Result, pair: tuple[Pyramid, Pyramid], refined: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: rf.Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rf.refine(coarse, *pair, workers=1, folder=tmp_path, progress=stop)
    look = sweep.look_at
    monkeypatch.setattr(sweep, "look_at", lambda *_: pytest.fail("the tile was looked at again"))
    other = rf.refine(coarse, *pair, workers=1, folder=tmp_path)
    assert torch.equal(other.transform.points(middle()), refined.transform.points(middle()))
    with pytest.raises(pytest.fail.Exception):  # of another map nothing is taken over
        rf.refine(dataclasses.replace(coarse, transform=refined.transform), *pair, workers=1, folder=tmp_path)
    monkeypatch.setattr(sweep, "look_at", look)
    place = tmp_path / "store" / "0-000000.npz"
    rf.refine(coarse, *pair, workers=1, folder=tmp_path)
    place.write_bytes(place.read_bytes()[:-9])  # what is damaged is measured again
    other = rf.refine(coarse, *pair, workers=1, folder=tmp_path)
    assert torch.equal(other.transform.points(middle()), refined.transform.points(middle()))


def test_slides_are_warped_by_it(refined: Result, pair: tuple[Pyramid, Pyramid], tmp_path: Path) -> None:
    rf.warp_slide(pair[1], refined.transform, refined.fixed_grid, tmp_path / "w.zarr", workers=1)
    found = rf.open(tmp_path / "w.zarr")
    assert isinstance(found, Image)
    whole = rf.resample(pair[1].image(), refined.transform, refined.fixed_grid, background=0.0)
    assert torch.equal(found.data, whole.data)


@pytest.mark.parametrize("seed", [1, 2])
def test_unlike_images_change_nothing(coarse: Result, pair: tuple[Pyramid, Pyramid], seed: int) -> None:
    other = levels.pyramid_of(Image(texture(seed), Grid((SIDE, SIDE))))
    found = rf.refine(coarse, pair[0], other, workers=1)
    assert found.transform is coarse.transform
    (entry,) = found.metrics["refinement"]["rounds"]
    assert entry["kept"] == 0
    assert sum(entry["rejected"].values()) == entry["tiles"]


def test_a_map_that_is_right_already_is_left_alone(
    coarse: Result, truth: Transform, pair: tuple[Pyramid, Pyramid]
) -> None:
    found = rf.refine(dataclasses.replace(coarse, transform=truth), *pair, workers=1)
    assert error(found.transform, truth) < 0.1


def test_glass_is_not_looked_at(coarse: Result) -> None:
    grid = Grid((3 * SIDE, 3 * SIDE))
    tissue = np.zeros((96, 96), dtype=np.bool_)
    tissue[40:50, 70:80] = True  # of the middle tile of the last column
    look = windows.Look(torch.ones(1), torch.ones(1), tissue, grid.resampled((32.0, 32.0)))
    assert sweep.tissue_tiles(grid, look) == [
        (slice(1024, 2048), slice(2048, 3072)),
    ]


@pytest.mark.parametrize("steps", [1, 2])
def test_a_field_joins_a_flow_exactly(coarse: Result, steps: int) -> None:
    flow, affine = coarse.transform.parts()
    assert isinstance(flow, Flow)
    base = Sequence((dataclasses.replace(flow, n_steps=steps), affine))
    head, tail = split_last(base)
    grid = slides_field.nodes_of(head, np.array([100.0, 200.0]), np.array([700.0, 900.0]), 90.0, "px")
    values = 0.2 * torch.randn(2, *grid.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values[:, [0, -1]] = values[:, :, [0, -1]] = 0
    field = Field(values, grid)
    y = middle()
    z = tail.inverse().points(y)
    apart = Sequence((tail.inverse(), Flow(-values[None], grid, reverse=True), head[0].inverse())).points(y)
    assert torch.allclose(apart, head[0].inverse().points(z + torch.from_numpy(field.at(z.numpy()))))
    assert torch.allclose(joined(base, field).inverse().points(y), apart, atol=1e-4 if steps == 1 else 0.01)


@pytest.mark.parametrize("transform", [Affine.identity(2), Sequence((bend(2.0).inverse(),))])
def test_maps_of_other_kinds_get_a_flow_of_their_own(transform: Transform) -> None:
    grid = slides_field.nodes_of((), np.array([0.0, 0.0]), np.array([700.0, 900.0]), 90.0, "px")
    field = Field(torch.ones(2, *grid.shape, dtype=torch.float64), grid)
    y = middle()
    found = joined(transform, field).inverse().points(y)
    assert torch.allclose(found, transform.inverse().points(y + 1), atol=1e-4)


def test_one_wrong_window_among_many_does_not_bend_the_field() -> None:
    rng = np.random.default_rng(0)
    z = rng.uniform(0, 2000, (200, 2))
    d = np.stack([np.sin(z[:, 0] / 600), np.cos(z[:, 1] / 600)], axis=1) + rng.normal(0, 0.02, (200, 2))
    right = d.copy()
    d[::20] += 15
    given = Evidence(z, d, np.full_like(d, 0.02), np.arange(200), np.zeros(200, dtype=np.bool_))
    process = Process((), np.zeros(2), np.full(2, 2000.0), "px", 0.05)
    chosen = process.choose(given, 180.0)
    assert chosen is not None
    field = process.gentle(given, *chosen)
    assert field is not None
    assert np.abs(field.at(z) - right).max() < 0.3


def test_what_cannot_be_refined_is_refused(coarse: Result, pair: tuple[Pyramid, Pyramid]) -> None:
    drawn = dataclasses.replace(coarse, metrics=coarse.metrics | {"drawn": {}})
    with pytest.raises(ValueError, match="points or labels"):
        rf.refine(drawn, *pair)
    with pytest.raises(ValueError, match="at least one worker"):
        rf.refine(coarse, *pair, workers=0)
    with pytest.raises(ValueError, match="wanted an image"):
        rf.refine(coarse, pair[0], levels.pyramid_of(Image(torch.zeros(1, 50, 70), Grid((50, 70)))))


def run(*args: object, code: int = 0) -> click.testing.Result:
    outcome = click.testing.CliRunner().invoke(main, [str(a) for a in args])
    assert outcome.exit_code == code, (outcome.exit_code, outcome.stdout, outcome.stderr, outcome.exception)
    return outcome


@pytest.fixture(scope="module")
def written(coarse: Result, pair: tuple[Pyramid, Pyramid], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs")
    sides: dict[str, Any] = {}
    for side, pyramid in zip(("fixed", "moving"), pair, strict=True):
        np.save(place / f"{side}.npy", pyramid.image().data.numpy()[0])
        sides[side] = {"path": str(place / f"{side}.npy"), "adapter": None, "options": {}}
    outputs.write(place / "OUT", coarse, sides)
    return place


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A run of its own, whose inputs lie where they did."""
    return Path(shutil.copytree(written / "OUT", tmp_path / "OUT"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, coarse: Result) -> None:
    """Stands for `regframe.refine` where only the command is looked at."""
    entry = {"pixel": 1.0, "tiles": 1, "kept": 0, "rejected": {"not better": 1}}
    metrics = coarse.metrics | {"refinement": {"kept": 0, "rounds": [entry]}}
    monkeypatch.setattr(rf, "refine", lambda *_, **__: dataclasses.replace(coarse, metrics=metrics))


def test_the_command_replaces_the_run(folder: Path) -> None:
    outcome = run("refine", folder, "--workers", 1)
    assert "1 of 1 tiles kept" in outcome.stderr
    assert {p.name for p in folder.iterdir()} >= {"transform.ome.zarr", "metrics.json", "report.html"}
    assert "run" in yaml.safe_load((folder / outputs.CONFIG).read_text())


def test_the_command_goes_on_where_it_was_interrupted(
    folder: Path, truth: Transform, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sweep, "look_at", stop)
        said = run("refine", folder, "--workers", 1, code=130).stderr
    kept = folder.with_name("OUT.partial")
    assert f"interrupted; 0 tiles are kept in {kept}: run the same command again to go on" in said
    assert "refinement" not in rf.load(folder).metrics
    run("refine", folder, "--workers", 1)
    assert error(rf.load(folder).transform, truth) < 0.3
    assert not kept.exists()


def test_the_command_says_what_it_wants(folder: Path, written: Path, tmp_path: Path, quick: None) -> None:
    (folder / "notes.txt").write_text("mine")
    assert "'notes.txt'" in run("refine", folder, code=2).stderr
    (folder / "notes.txt").unlink()
    settings = yaml.safe_load((folder / outputs.CONFIG).read_text())
    settings["run"]["moving"]["path"] = str(tmp_path / "gone.npy")
    (folder / outputs.CONFIG).write_text(yaml.safe_dump(settings))
    assert "--moving FILE" in run("refine", folder, code=2).stderr
    outcome = run("refine", folder, "--moving", written / "moving.npy", "-o", tmp_path / "NEW", "--json")
    assert json.loads(outcome.stdout)["refinement"]["kept"] == 0
    assert "0 of 1 tiles kept (1 not better)" in outcome.stderr
    assert torch.equal(rf.load(tmp_path / "NEW").transform.points(middle()), rf.load(folder).transform.points(middle()))
    assert "refinement" not in rf.load(folder).metrics


def test_register_and_refine_in_one(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, coarse: Result, quick: None
) -> None:
    paths = written / "fixed.npy", written / "moving.npy"
    monkeypatch.setattr(rf, "register", lambda *_, **__: coarse)
    run("register", *paths, "-o", tmp_path / "OUT", "--refine", "--workers", 1)
    assert rf.load(tmp_path / "OUT").metrics["refinement"]["kept"] == 0
    assert "--refine beside --workers" in run("register", *paths, "-o", tmp_path / "X", "--workers", 1, code=2).stderr


def test_points_are_not_refined(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("y,x\n" + "".join(f"{i},{i * i % 7}\n" for i in range(30)))
    assert "got points in p.csv" in run("register", path, path, "-o", tmp_path / "OUT", "--refine", code=2).stderr
