"""A class out of a Python file, ``FILE.py:CLASS``: used without a package, recorded so that the run repeats."""

from __future__ import annotations

import sys
from pathlib import Path

import click.testing
import pytest
import torch
import yaml

import regframe as rf
from regframe import plugins
from regframe.cli import main

FILE = """
import torch
from pathlib import Path
import regframe as rf

def source_text(path): return Path(path).read_text()

class Mine(rf.Metric):
    '''Mean of squares.'''
    def __init__(self, power: float = 2.0): self.power = power
    def __call__(self, warped, fixed, weight):
        return (weight * (warped - fixed).abs() ** self.power).mean()

class Lost(rf.Metric):
    def __call__(self, warped, fixed, weight): return self.lost

class Begin(rf.Start):
    def find(self, task): return [rf.Candidate(torch.eye(3, dtype=torch.float64))]

class Middles(rf.Solver):
    models = ("rigid",)
    def matches(self, fixed, moving): return 0.1
    def check(self, task): return []
    def fit(self, task):
        matrix = torch.eye(3, dtype=torch.float64)
        matrix[:-1, -1] = task.fixed.coords.mean(0) - task.moving.coords.mean(0)
        found = rf.Affine(matrix, task.moving.unit, task.fixed.unit)
        grids = [rf.canvas(side) for side in (task.fixed, task.moving)]
        return rf.Fitted(found, found, *grids, figures={"model": "rigid"}, history=[])
    def judge(self, fitted): return []

class Words(rf.Adapter):
    '''Points, a line each.'''
    def matches(self, source): return 0.0
    def open(self, source):
        rows = [[float(n) for n in line.split(";")] for line in source_text(source).splitlines()]
        return rf.PointSet(torch.tensor(rows, dtype=torch.float64))
    def apply(self, source, transform, grid=None): return rf.move_points(self.open(source), transform)
    def save(self, data, path): raise ValueError("wanted nothing")

class Shift(rf.MapFormat):
    '''.shift: the shift in a line.'''
    def write(self, result, path, *, to, unit, tolerance):
        path.write_text(str(result.affine.matrix[:-1, -1].tolist()))
        return rf.Written("shift", (path,), to, ("px", "px"), 0.0)

number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(FILE)
    points = 100 * torch.rand((40, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for name, by in (("a", 0), ("b", 2)):
        (tmp_path / f"{name}.semi").write_text("\n".join(f"{y};{x}" for y, x in (points + by).tolist()))
    data = torch.nn.functional.avg_pool2d(torch.rand((1, 46, 46), generator=torch.Generator().manual_seed(0)), 7, 1)
    for name, shift in (("a", 0), ("b", 2)):
        image = rf.Image(data[:, shift : 32 + shift, shift : 32 + shift].clone(), rf.Grid((32, 32)))
        rf.adapter("image").save(image, tmp_path / f"{name}.tif")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments: object, code: int = 0) -> str:
    done = click.testing.CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == code, (done.exit_code, done.stdout, done.stderr)
    return done.stdout + done.stderr


def test_a_metric_and_a_start_by_the_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = ("--metric", "mine.py:Mine", "--metric-set", "power=1.5", "--init", "mine.py:Begin", "--transform", "rigid")
    command("register", "a.tif", "b.tif", "-o", "run", *own)
    settings = yaml.safe_load(Path("run/config.resolved.yaml").read_text())
    assert settings["metric"] == f"{folder}/mine.py:Mine"
    assert settings["metric_options"] == {"power": 1.5}
    assert settings["init"] == f"{folder}/mine.py:Begin"
    versions = rf.load("run").metrics["versions"]
    assert len(versions["mine.py"]) == 12  # the hash of what ran
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    command("register", "../a.tif", "../b.tif", "-o", "again", "--config", "../run/config.resolved.yaml")
    assert torch.equal(rf.load("again").affine.matrix, rf.load("../run").affine.matrix)


def test_an_adapter_a_solver_and_a_format_by_the_command(folder: Path) -> None:
    sides = [s for side in ("fixed", "moving") for s in (f"--{side}-adapter", "mine.py:Words")]
    command("register", "a.semi", "b.semi", "-o", "run", *sides, "--solver", "mine.py:Middles")
    assert torch.allclose(rf.load("run").affine.matrix[:-1, -1], torch.tensor(-2.0, dtype=torch.float64))
    assert yaml.safe_load(Path("run/config.resolved.yaml").read_text())["solver"] == f"{folder}/mine.py:Middles"
    command("export", "run", "-o", "map.shift", "--format", "mine.py:Shift")
    assert Path("map.shift").read_text().startswith("[-")


def test_an_edited_file_runs_anew(folder: Path) -> None:
    first = plugins.metric("mine.py:Mine")
    assert plugins.metric("mine.py:Mine").__class__ is first.__class__
    (folder / "mine.py").write_text(FILE.replace("power: float = 2.0", "power: float = 4.0"))
    assert plugins.metric("mine.py:Mine").power == 4.0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "source", "said"),
    [
        ("none.py:Mine", FILE, "which is no file"),
        ("mine.py:None", FILE, "got none of this name; there is Begin, Lost, Middles, Mine, Shift, Words, source_text"),
        ("mine.py:number", FILE, "wanted a class 'number' in .*, got int"),
        ("mine.py:", FILE, "wanted a class ''"),
        ("mine.py:Begin", FILE, "wanted a metric in .*mine.py:Begin, got Begin, which is no subclass of regframe.Metric"),
        ("mine.py:Mine", "1 / 0", "mine.py to run, got ZeroDivisionError: division by zero; mend the file"),
        ("mine.py:Mine", "def f(:", "mine.py to run, got SyntaxError"),
        ("mine.py:Mine", "raise SystemExit(3)", "mine.py to run, got SystemExit: 3"),
        ("mine.py:Lost", FILE, r"Lost' of mine.py \w{12} \(file\) to work, got AttributeError.*; mend the file"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_sentence(folder: Path, name: str, source: str, said: str) -> None:
    (folder / "mine.py").write_text(source)
    before = set(sys.modules)
    with pytest.raises(ValueError, match=said) as caught:
        rf.register("a.tif", "b.tif", metric=name, init="identity", transform="rigid")
    assert "\n" not in str(caught.value)
    assert "efect" not in str(caught.value)
    assert before <= set(sys.modules)
