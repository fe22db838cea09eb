"""What is carried whole (faces, fields of strangers' points), and settings that are refused before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import PIL.Image
import pytest
import torch
from odd_package import Install, offered, saved_run

import regframe as rf
from regframe import strangers
from regframe.batch import pools
from regframe.cli import main

TRIANGLE = """ply
format ascii 1.0
comment made by hand
element vertex 4
property float x
property float y
property float z
property uchar red
property double heat
element face 2
property list uchar int vertex_indices
end_header
1 2 3 200 0.5
4 2 3 100 1.5
1 5 3 50 2.5
1 2 6 0 3.5
3 0 1 2
3 0 2 3
"""


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    yield from offered(monkeypatch)


def run(*words: Any) -> click.testing.Result:
    return click.testing.CliRunner().invoke(main, [str(word) for word in words])


def test_faces_and_types_of_a_ply_survive(tmp_path: Path) -> None:
    plyfile = pytest.importorskip("plyfile")
    (tmp_path / "a.ply").write_text(TRIANGLE)
    reader = rf.adapter("ply")
    shift = torch.eye(4, dtype=torch.float64)
    shift[:3, 3] = torch.tensor([1.0, 2.0, 3.0])
    moved = reader.apply(tmp_path / "a.ply", rf.Affine(shift, "px", "px"))
    assert isinstance(moved, rf.PointSet)
    extra = moved.replace(table={**moved.table, "near": [1.0, 2.0, 3.0, 4.5]})
    reader.save(extra, tmp_path / "b.ply")
    found = plyfile.PlyData.read(str(tmp_path / "b.ply"))
    assert [element.name for element in found.elements] == ["vertex", "face"]
    assert [list(face[0]) for face in found["face"].data] == [[0, 1, 2], [0, 2, 3]]
    vertex = found["vertex"].data
    assert vertex.dtype["red"] == np.dtype("u1")
    assert vertex["x"].tolist() == [4.0, 7.0, 4.0, 4.0]
    assert vertex["heat"].tolist() == [0.5, 1.5, 2.5, 3.5]
    assert vertex["near"].tolist() == [1.0, 2.0, 3.0, 4.5]
    assert found.text
    assert list(found.comments) == ["made by hand"]
    fewer = moved.replace(coords=moved.coords[:2], table={k: v[:2] for k, v in moved.table.items()})
    reader.save(fewer, tmp_path / "c.ply")  # faces of other vertices mean nothing
    assert [element.name for element in plyfile.PlyData.read(str(tmp_path / "c.ply")).elements] == ["vertex"]


OWN_POINTS = """
from dataclasses import dataclass
from pathlib import Path
@dataclass(frozen=True)
class Grains(PointSet):
    sizes: tuple = ()
    def __len__(self): return len(self.coords)
class Odd(rf.Adapter):
    name = "odd"
    def matches(self, source): return float(str(source).endswith(".odd"))
    def open(self, source):
        rows = np.loadtxt(source, ndmin=2)
        words = [str(v) for v in rows[:, 0]]
        return Grains(torch.tensor(rows[:, :2]), table={"y": words, "x": words}, columns=("y", "x"), sizes=tuple(rows[:, 2]))
    def apply(self, source, transform, grid=None): return rf.move_points(self.open(source), transform)
    def save(self, data, path):
        Path(path).write_text(type(data).__name__ + repr([float(s) for s in data.sizes]) + ",".join(data.table))
@rf.hookimpl
def regframe_adapters(): return [Odd]
"""


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, with the moving picture beside it."""
    return saved_run(tmp_path_factory.mktemp("run"))


def test_fields_of_a_strangers_points_survive(install: Install, result: Path, tmp_path: Path) -> None:
    install(OWN_POINTS)
    (tmp_path / "a.odd").write_text("5 6 1.5\n20 30 2.5\n")
    done = run("apply", "points", result, tmp_path / "a.odd", "-o", tmp_path / "b.odd", "--to", "fixed")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "b.odd").read_text().startswith("Grains[1.5, 2.5]y,x")


# ---- stacks -------------------------------------------------------------------------------------------------------------


def sections(n: int = 3) -> list[rf.Image]:
    generator = torch.Generator().manual_seed(1)
    data = 255 - 200 * torch.nn.functional.avg_pool2d(torch.rand((1, 70, 70), generator=generator), 7, 1)
    data[:, :8], data[:, -8:] = 255, 255
    return [rf.Image(data.clone(), rf.Grid(tuple(data.shape[1:])), name=f"s{k}") for k in range(n)]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"metric": "nope"}, "wanted the name of a metric, got 'nope'"),
        ({"metric": "kernel"}, "wanted a metric for two images, got 'kernel'"),
        ({"metric": "ssd", "metric_options": {"no": 1}}, "wanted options of the metric 'ssd'"),
        ({"solver": "nope"}, "wanted the name of a solver, got 'nope'"),
        ({"init": "nope"}, "wanted the name of a start, got 'nope'"),
    ],
)
def test_a_stack_refuses_what_no_pair_could_use(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        rf.align_stack(sections(), config=rf.Config(**settings))


def test_a_metric_that_fails_ends_a_stack_by_its_name(install: Install) -> None:
    install(
        "class Odd(rf.Metric):\n    name = 'odd'\n    def __call__(self, warped, fixed, weight): return float(weight.sum())\n"
        "@rf.hookimpl\ndef regframe_metrics(): return [Odd]\n"
    )
    with pytest.raises(strangers.PluginFault, match=r"a scalar tensor from the metric 'odd' of odd-pack 0\.3"):
        rf.align_stack(sections(), config=rf.Config(metric="odd"))


def test_the_stack_command_takes_metric_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from regframe.stack import align

    asked: list[rf.Config] = []

    def instead(images: Any, **options: Any) -> Any:
        asked.append(options["config"])
        raise ValueError("enough")

    monkeypatch.setattr(align, "align_stack", instead)
    for k, image in enumerate(sections()):
        PIL.Image.fromarray(image.data[0].numpy().astype(np.uint8)).save(tmp_path / f"{k}.png")
    (tmp_path / "c.yaml").write_text("seed: 7\n")
    files = [tmp_path / f"{k}.png" for k in range(3)]
    done = run(
        "stack", *files, "-o", tmp_path / "out", "--metric", "mi", "--metric-set", "bins=16", "--config",
        tmp_path / "c.yaml", "--set", "pyramid.max_pixels=90000",
    )  # fmt: skip
    assert "enough" in done.output
    (config,) = asked
    assert (config.metric, config.metric_options, config.seed, config.pyramid.max_pixels) == (
        "mi",
        {"bins": 16},
        7,
        90000,
    )
    done = run("stack", *files, "-o", tmp_path / "out", "--metric-set", "bins=16")
    assert done.exit_code == 2
    assert "wanted --metric beside --metric-set" in done.output


# ---- clusters -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["zarr", "tif"])
def test_an_unknown_scheduler_is_refused_for_small_work_too(
    result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    if not pools.available():
        pytest.skip("needs the extra batch")
    monkeypatch.setattr(pools, "ANSWER", 0.2)
    done = run(
        "apply", "image", result, result.parent / "moving.png", "-o", tmp_path / f"w.{suffix}", "--to", "fixed",
        "--scheduler", "nope://nowhere",
    )  # fmt: skip
    assert done.exit_code == 2, done.output
    assert "wanted a Dask scheduler at nope://nowhere" in done.output
    assert not (tmp_path / f"w.{suffix}").exists()
