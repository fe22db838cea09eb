"""The faults of strangers' plug-ins: each is called by its name, in one sentence, and none reads as one of regframe."""

from __future__ import annotations

import json
import os
import re
import sys
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
from regframe import plugins, strangers
from regframe.cli import main


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    yield from offered(monkeypatch)


WHO = r"of odd-pack 0\.3 \(odd\)"
METRIC = """
class Odd(rf.Metric):
    name = "odd"
    def __call__(self, warped, fixed, weight):
        m = (weight * (warped - fixed) ** 2).mean()
        {}
@rf.hookimpl
def regframe_metrics():
    return [Odd]
"""


def smooth(seed: int = 0, n: int = 48) -> np.ndarray[Any, Any]:
    """A smooth random picture, 0 … 255."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand((1, 1, n + 12, n + 12), generator=generator)
    for _ in range(3):
        x = torch.nn.functional.avg_pool2d(x, 3, 1)
    x = x[0, 0, 2 : n + 2, 2 : n + 2]
    x = (x - x.min()) / (x.max() - x.min())
    return np.asarray((255 * x).numpy(), dtype=np.float32)


def image(shift: int = 0) -> rf.Image:
    data = torch.from_numpy(smooth(n=52))
    return rf.Image(data[None, shift : 48 + shift, shift : 48 + shift].clone(), rf.Grid((48, 48)))


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    paths = tuple(str(tmp_path / f"{side}.png") for side in ("fixed", "moving"))
    for path, shift in zip(paths, (0, 2), strict=True):
        PIL.Image.fromarray(image(shift).data[0].numpy().astype(np.uint8)).save(path)
    return paths  # type: ignore[return-value]


def run(*words: Any) -> click.testing.Result:
    return click.testing.CliRunner().invoke(main, [str(word) for word in words])


# ---- errors -----------------------------------------------------------------------------------------------------------


def test_a_metrics_error_names_it(install: Install) -> None:
    install(METRIC.format("return self.lost(m)"))
    with pytest.raises(
        strangers.PluginFault, match=f"the metric 'odd' {WHO} to work, got AttributeError.*Odd.__call__"
    ):
        rf.register(image(), image(2), metric="odd", init="identity", transform="rigid")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("return helper(m)", r"got KeyError: 'nothing' from its Odd.__call__"),
        ("return np.zeros(3).reshape(7)", r"got ValueError: cannot reshape.*Odd.__call__"),
        ("raise RuntimeError('no device')", r"got RuntimeError: no device"),
    ],
)
def test_it_is_named_wherever_in_its_package_it_fails(install: Install, line: str, told: str) -> None:
    install("def helper(m):\n    return {}['nothing']\n" + METRIC.format(line))
    with pytest.raises(ValueError, match=told) as caught:
        rf.register(image(), image(2), metric="odd", init="identity", transform="rigid")
    assert "REGFRAME_DISABLE_PLUGINS=odd" in str(caught.value) or "cannot reshape" in str(caught.value)


def test_its_own_sentence_stays_its_own(install: Install) -> None:
    install(METRIC.format("raise ValueError('stains needed')"))
    with pytest.raises(ValueError, match=r"^stains needed$"):
        rf.register(image(), image(2), metric="odd", init="identity", transform="rigid")


SOLVER = """
class Odd(rf.Solver):
    name = "odd"
    models = ("rigid",)
    def matches(self, fixed, moving): return 0.1
    def check(self, task): return []
    def fit(self, task): {}
    def judge(self, fitted): return []
@rf.hookimpl
def regframe_solvers():
    return [Odd]
"""
START = """
class Odd(rf.Start):
    name = "odd"
    def find(self, task): {}
@rf.hookimpl
def regframe_starts():
    return [Odd]
"""


@pytest.mark.parametrize(
    ("source", "settings", "told"),
    [
        (
            SOLVER.format("return None"),
            {"solver": "odd"},
            f"wanted Fitted from Odd.fit of the solver 'odd' {WHO}, got None",
        ),
        (
            SOLVER.format("return 1 / 0"),
            {"solver": "odd"},
            f"the solver 'odd' {WHO} to work, got ZeroDivisionError.*Odd.fit",
        ),
        (
            SOLVER.replace("return []", "return 3", 1).format("pass"),
            {"solver": "odd"},
            f"from Odd.check of .* {WHO}, got int 3",
        ),
        (START.format("return task.nothing"), {"init": "odd"}, f"the start 'odd' {WHO} to work, got AttributeError"),
        (START.format("return [3]"), {"init": "odd"}, f"matrix or landmarks from the start 'odd' {WHO}, got 3"),
    ],
)
def test_solvers_and_starts(install: Install, source: str, settings: dict[str, Any], told: str) -> None:
    install(source)
    config = rf.Config(transform="rigid", **settings)
    with pytest.raises(ValueError, match=told):
        rf.register(image(), image(2), config=config)


ADAPTER = """
class Odd(rf.Adapter):
    name = "odd"
    def matches(self, source): return float(str(source).endswith(".odd"))
    def open(self, source): {}
    def apply(self, source, transform, grid=None): return self.open(source)
    def save(self, data, path): {}
@rf.hookimpl
def regframe_adapters():
    return [Odd]
"""


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("return self.lost", f"the adapter 'odd' {WHO} to work, got AttributeError.*from its Odd.open"),
        ("return np.zeros((3, 3))", f"wanted Image or PointSet from Odd.open of the adapter 'odd' {WHO}, got ndarray"),
        ("return {}['header']".replace("{}", "dict()"), f"which the adapter 'odd' {WHO} cannot read \\(KeyError"),
    ],
)
def test_adapters_on_the_command_line(install: Install, tmp_path: Path, files: Any, line: str, told: str) -> None:
    install(ADAPTER.format(line, "pass"))
    (tmp_path / "a.odd").write_text("x")
    done = run("register", files[0], tmp_path / "a.odd", "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert "Defect" not in done.output
    assert "report it" not in done.output
    assert re.search(told, done.output), done.output


def test_a_writers_error_is_no_defect(install: Install, tmp_path: Path) -> None:
    install(ADAPTER.format("return Image(torch.rand(1, 48, 48), Grid((48, 48)))", "self.lost()"))
    (tmp_path / "a.odd").write_text("x")
    done = run("apply", "image", saved_run(tmp_path), tmp_path / "a.odd", "-o", tmp_path / "b.odd", "--to", "fixed")
    assert done.exit_code == 2, done.output
    assert "the adapter 'odd' of odd-pack 0.3 (odd) to work, got AttributeError" in done.output
    assert "Defect" not in done.output


def test_formats(install: Install, tmp_path: Path) -> None:
    install(
        """
class Odd(rf.MapFormat):
    name = "odd"
    suffixes = (".oddmap",)
    def write(self, result, path, *, to, unit, tolerance): return None
    def read(self, path, fixed, moving, *, to, unit): return {}["map"]
@rf.hookimpl
def regframe_formats():
    return [Odd]
"""
    )
    result = rf.register(image(), image(2), init="identity", transform="rigid")
    with pytest.raises(ValueError, match=f"wanted Written from Odd.write of the format 'odd' {WHO}, got None"):
        rf.write_map(result, tmp_path / "a.oddmap")
    (tmp_path / "a.oddmap").write_text("x")
    with pytest.raises(ValueError, match=f"the format 'odd' {WHO} to work, got KeyError"):
        rf.read_map(tmp_path / "a.oddmap", result.fixed_grid, result.moving_grid)


# ---- what a metric returns ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            "return m.detach().numpy()",
            r"wanted a scalar tensor from the metric 'odd' .*, got numpy.ndarray; compute it with torch",
        ),
        ("return float(m.detach())", r"wanted a scalar tensor from the metric 'odd' .*, got float"),
        ("return (warped - fixed) ** 2", r"got one of shape \[1, \d+, \d+\]; return the weighted mean"),
        (
            "return m.detach()",
            r"differentiable in warped from the metric 'odd' .*, got one without a gradient; use no .item",
        ),
        ("return torch.tensor(1.0)", r"one without a gradient"),
        ("return m * float('nan')", r"wanted a finite value where the fit begins from the metric 'odd' .*, got nan"),
        ("return m.round().long()", r"wanted a value of a floating dtype .* got torch.int64"),
        ("return -m - 1", r"wanted a value of at least 0, .* from the metric 'odd' .*; say likelihood = True"),
    ],
)
def test_what_a_metric_returns_is_told_in_its_words(install: Install, line: str, told: str) -> None:
    install(METRIC.format(line))
    with pytest.raises(ValueError, match=told):
        rf.register(image(), image(2), metric="odd", init="identity", transform="rigid")


def test_a_shape_of_one_element_is_a_scalar(install: Install) -> None:
    install(METRIC.format("return m.reshape(1)"))
    assert rf.register(image(), image(2), metric="odd", init="identity", transform="rigid").metrics["n_evaluations"] > 1


def test_a_metric_of_points_is_told_too(install: Install) -> None:
    source = METRIC.replace('name = "odd"', 'name = "odd"\n    accepts = (PointSet, PointSet)')
    points = rf.PointSet(torch.rand((60, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 50)
    for line, told in (
        ("return float(warped.detach().mean())", "got float"),
        ("return -warped.square().mean()", "likelihood = True"),
    ):
        install(source.replace("m = (weight * (warped - fixed) ** 2).mean()", "pass").format(line))
        with pytest.raises(ValueError, match=told):
            rf.register(points, points, metric="odd", init="identity", transform="rigid")


@pytest.mark.parametrize("transform", ["rigid", "lddmm"])
def test_a_constant_metric_confirms_nothing(install: Install, transform: str) -> None:
    install(METRIC.format("return 0 * m + 1"))
    result = rf.register(image(), image(), metric="odd", init="identity", transform=transform)
    assert result.verdict == "warn"
    assert any("the metric 'odd' has the same value wherever the moving side lies" in why for why in result.reasons)


def test_a_metric_at_its_minimum_is_not_constant(install: Install) -> None:
    install(METRIC.format("return m"))
    result = rf.register(image(), image(), metric="odd", init="identity", transform="rigid")
    assert not any("same value wherever" in why for why in result.reasons)


@pytest.mark.parametrize("transform", ["rigid", "lddmm"])
def test_a_constant_metric_of_points_confirms_nothing(install: Install, transform: str) -> None:
    source = METRIC.replace('name = "odd"', 'name = "odd"\n    accepts = (PointSet, PointSet)')
    install(source.replace("m = (weight * (warped - fixed) ** 2).mean()", "pass").format("return 0 * warped.sum() + 1"))
    points = rf.PointSet(torch.rand((60, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 50)
    result = rf.register(points, points, metric="odd", init="identity", transform=transform)
    assert result.verdict != "pass"
    assert any("same value wherever the moving side lies" in why for why in result.reasons)


# ---- the process that all share ----------------------------------------------------------------------------------------


def test_what_an_import_changes_is_put_back_and_named(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ODD_PACK", raising=False)
    before = (torch.get_num_threads(), torch.get_default_dtype(), Path.cwd(), torch.get_rng_state())
    install(
        "import os, random, sys\n"
        f"torch.set_num_threads({before[0] + 1})\n"
        "torch.set_default_dtype(torch.float64)\ntorch.set_grad_enabled(False)\ntorch.manual_seed(7)\nrandom.seed(1)\n"
        "np.random.seed(3)\nos.chdir('/')\nos.environ['ODD_PACK'] = '1'\n" + METRIC.format("return m")
    )
    with pytest.warns(plugins.PluginWarning, match="the import of the plug-in 'odd' of odd-pack 0.3 changed") as caught:
        assert "odd" in [entry.name for entry in plugins.metrics()]
    said = str(caught[0].message)
    for word in (
        "threads",
        "default dtype",
        "grad mode",
        "seed of torch",
        "numpy",
        "random.seed",
        "folder",
        "environment",
    ):
        assert word in said
    assert (torch.get_num_threads(), torch.get_default_dtype(), Path.cwd()) == before[:3]
    assert torch.equal(torch.get_rng_state(), before[3])
    assert torch.is_grad_enabled()
    assert "ODD_PACK" not in os.environ


def test_a_slow_import_is_named(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "SLOW", 0.05)
    install("import time; time.sleep(0.1)\n" + METRIC.format("return m"))
    with pytest.warns(
        plugins.PluginWarning, match=r"'odd' of odd-pack 0.3 took 0\.\d s, for which every command waits"
    ):
        plugins.metrics()


def test_what_plugins_print_does_not_break_json(install: Install, tmp_path: Path) -> None:
    line = "print('reading'); return Image(torch.rand(1, 48, 48), Grid((48, 48)))"
    install("print('importing')\n" + ADAPTER.format(line, "pass"))
    (tmp_path / "a.odd").write_text("x")
    done = run("info", tmp_path / "a.odd", "--json")
    assert json.loads(done.stdout)["adapter"] == "odd"
    assert "reading" in done.stderr


def test_json_stays_alone_on_the_descriptor_too(capfd: pytest.CaptureFixture[str]) -> None:
    from regframe.cli import streams

    with capfd.disabled():  # a plain process: sys.stdout is descriptor 1
        read, write = os.pipe()
        saved, stdout = os.dup(1), sys.stdout
        os.dup2(write, 1)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        try:
            with streams.apart():
                os.write(1, b"from C")
                print("from Python")
                with streams.own():
                    print("{}")
        finally:
            os.dup2(saved, 1)
            sys.stdout = stdout
            os.close(saved)
            os.close(write)
        assert os.read(read, 100) == b"{}\n"
        os.close(read)


@pytest.mark.parametrize(("api", "left_out"), [(1, False), (2, True), ("new", True)])
def test_a_class_for_a_later_interface_is_left_out(install: Install, api: Any, left_out: bool) -> None:
    install(METRIC.replace('name = "odd"', f'name = "odd"\n    api = {api!r}').format("return m"))
    if not left_out:
        assert rf.metric("odd").name == "odd"
        return
    with pytest.warns(
        plugins.PluginWarning, match=rf"Odd, which states api {api!r}, where this regframe has 1: update"
    ):
        assert "odd" not in [entry.name for entry in plugins.metrics()]
