"""Plug-ins: found, listed, isolated from each other, disabled; a stranger's package, really installed and used."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from fake_result import fake_result
from torch import Tensor

import regframe as rf
from regframe import hookspecs, plugins, testing
from regframe.testing import scaffold

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Distribution:
    name: str
    version: str


@dataclass(frozen=True)
class FakePoint:
    """An entry point whose module is made on the spot."""

    name: str
    load: Callable[[], Any]
    dist: Distribution | None = Distribution("stranger", "2.0")
    value: str = "stranger_module"


def metric_class(label: str, **members: Any) -> type[rf.Metric]:
    def call(self: rf.Metric, warped: Tensor, fixed: Tensor, weight: Tensor) -> Tensor:
        return (warped - fixed).square().mean()

    return type("M", (rf.Metric,), {"name": label, "__call__": call, **members})


def adapter_class(label: str, score: float, **members: Any) -> type[rf.Adapter]:
    body = {
        "name": label,
        "matches": lambda self, source: score,
        "open": lambda self, source: label,
        "apply": lambda self, source, transform, grid=None: source,
        "save": lambda self, data, path: None,
    }
    return type("A", (rf.Adapter,), body | members)


def module(**hooks: Any) -> Callable[[], ModuleType]:
    """A plug-in module whose hooks return (or, for an exception, raise) what is given."""

    def load() -> ModuleType:
        made = ModuleType("stranger_module")
        for name, answer in hooks.items():

            def hook(answer: Any = answer) -> Any:
                if isinstance(answer, BaseException):
                    raise answer
                return answer

            hook.__signature__ = inspect.Signature()  # type: ignore[attr-defined]
            setattr(made, name, rf.hookimpl(hook))
        return made

    return load


def broken(error: BaseException) -> Callable[[], Any]:
    def load() -> Any:
        raise error

    return load


Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put fake entry points beside the real ones."""
    real = plugins._entry_points()
    monkeypatch.delenv(plugins.DISABLE, raising=False)

    def put(*points: FakePoint) -> None:
        monkeypatch.setattr(plugins, "_entry_points", lambda: (*real, *points))
        plugins.refresh()

    put()
    yield put
    plugins.refresh()


def names(entries: tuple[plugins.Entry, ...]) -> list[str]:
    return [entry.name for entry in entries]


# ---- the hooks ------------------------------------------------------------------------------------------------------


def test_hook_regframe_adapters(install: Install) -> None:
    install(FakePoint("s", module(regframe_adapters=[adapter_class("rings", 0.0)])))
    entry = next(e for e in plugins.adapters() if e.name == "rings")
    assert entry.provider == "stranger 2.0 (s)"
    assert rf.open("anything://x", adapter="rings") == "rings"
    assert rf.adapter("rings").name == "rings"


def test_hook_regframe_metrics(install: Install) -> None:
    install(FakePoint("s", module(regframe_metrics=(metric_class("odd"),))))
    assert rf.metric("odd")(torch.zeros(1, 2, 2), torch.ones(1, 2, 2), torch.ones(2, 2)).item() == 1.0
    assert next(p for p in plugins.providers() if p.name == "s").metrics == ("odd",)


def test_hook_regframe_solvers(install: Install) -> None:
    class Turned(type(plugins.solver("images"))):  # type: ignore[misc]
        """Images, by somebody else."""

        name = "turned"

        def __init__(self, strength: float = 1.0) -> None:
            self.strength = strength

        def matches(self, fixed: Any, moving: Any) -> float:
            return 1.0

    install(FakePoint("s", module(regframe_solvers=[Turned])))
    image = rf.Image(torch.rand((1, 16, 18)), rf.Grid((16, 18)))
    assert plugins.find_solver(image, image, strength=2.0).options() == {"strength": 2.0}
    assert next(p for p in plugins.providers() if p.name == "s").solvers == ("turned",)


class Shifted(rf.Start):
    """A shift of so many pixels along y."""

    name = "shifted"

    def __init__(self, by: float = 3.0) -> None:
        self.by = by

    def find(self, task: rf.Task) -> list[rf.Candidate]:
        matrix = torch.eye(3, dtype=torch.float64)
        matrix[0, 2] = self.by
        return [rf.Candidate(matrix)] if self.by else []


def test_hook_regframe_starts(install: Install) -> None:
    install(FakePoint("s", module(regframe_starts=[Shifted])))
    field = torch.rand((1, 80, 90), generator=torch.Generator().manual_seed(3))
    smooth = torch.nn.functional.avg_pool2d(field, 9, 1, 4)
    fixed, moving = (rf.Image(smooth[:, 8 - s : 72 - s], rf.Grid((64, 90))) for s in (4, 0))
    config = rf.Config(init="shifted", init_options={"by": -4.0}, transform="rigid")
    result = rf.register(fixed, moving, config=config)
    assert result.config.init == "shifted"
    assert result.config.init_options == {"by": -4.0}
    with pytest.raises(ValueError, match=r"wanted a place to begin from the start 'shifted', got \[\]"):
        rf.register(fixed, moving, config=rf.Config(init="shifted", init_options={"by": 0}))
    with pytest.raises(ValueError, match=r"options of the start 'shifted' \(by\), got 'far'"):
        rf.register(fixed, moving, config=rf.Config(init="shifted", init_options={"far": 1}))


def test_hook_regframe_formats(install: Install) -> None:
    class Plain(rf.MapFormat):
        """.plain: nothing yet."""

        name = "plain"
        suffixes = (".plain",)

    install(FakePoint("s", module(regframe_formats=[Plain])))
    assert plugins.chosen_by_default("format")[-1].cls is Plain
    assert plugins.format_named("stranger/plain") is Plain


def test_every_hook_is_tested_and_documented() -> None:
    hooks = [name for name, f in vars(hookspecs).items() if hasattr(f, "regframe_spec")]
    assert set(hooks) == {hook for hook, _ in plugins._HOOKS.values()}
    guide, doors = ((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8") for page in ("plugins", "doors"))
    for hook in hooks:
        assert f"test_hook_{hook}" in globals(), f"no test of {hook}"
        assert hook in guide, f"docs/plugins.md does not mention {hook}"
        assert hook in ("regframe_adapters", "regframe_metrics", "regframe_formats") or f"def {hook}" in doors


def test_the_guide_shows_the_example() -> None:
    guide = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    entry = (ROOT / "plugins" / "example_mi" / "pyproject.toml").read_text(encoding="utf-8")
    assert '[project.entry-points.regframe]\nmi = "example_mi"' in guide
    assert '[project.entry-points.regframe]\nmi = "example_mi"' in entry
    for member in ("matches", "open", "apply", "save", "prepare", "__call__", "fused", "likelihood", "accepts"):
        assert f"`{member}" in guide
    assert plugins.DISABLE in guide


def test_the_code_of_the_guide_runs(tmp_path: Path) -> None:
    guide = "".join((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8") for page in ("plugins", "doors"))
    blocks = [block.partition("```")[0] for block in guide.split("```python\n")[1:]]
    space: dict[str, Any] = {}
    for block in blocks:
        if "class " in block:
            exec(block, space)
    metric = space["MyMetric"](power=1)
    assert metric(torch.zeros(1, 2, 2), torch.ones(1, 2, 2), torch.ones(2, 2)).item() == 1.0
    assert space["regframe_metrics"]() == [space["MyMetric"]]
    path = tmp_path / "a.grain"
    path.write_text("grains 1\n1.5 2.5\n3.0 4.0\n")
    grains = space["regframe_adapters"]()[0]()
    assert grains.matches(path) == 0.9
    points = grains.apply(path, rf.Affine.identity(2, "µm"))
    assert points.coords.tolist() == [[2.5, 1.5], [4.0, 3.0]]
    grains.save(points, path)
    assert path.read_text() == "grains 1\n1.5 2.5\n3.0 4.0\n"
    arrows = space["Arrows"](torch.tensor([[1.0, 2.0]]).double(), heading=torch.tensor([[0.0, 1.0]]).double())
    quarter = rf.Affine(torch.tensor([[0.0, -1, 5], [1, 0, 0], [0, 0, 1]]).double())
    assert space["carried"](arrows, quarter).heading.tolist() == [[-1.0, 0.0]]
    assert rf.move_points(arrows, quarter).heading is arrows.heading
    for tests in (space["TestMyMetric"], space["TestGrains"]):  # the guide's own code passes what the guide demands
        assert not [(name, said) for name, status, said, _ in testing.run(tests) if status == "failed"]
    assert space["regframe_solvers"]() == [space["ByMiddle"]]
    assert space["regframe_starts"]() == [space["Turned"]]
    turned = fake_result(
        rf.Grid((20, 24)), rf.Grid((20, 24)), torch.tensor([[0.0, -1, 21], [1, 0, 2], [0, 0, 1]]).double()
    )
    assert space["Turn"]().show(turned).sentences == ["The moving side was turned by 90.0 degrees."]
    failed = [kit_of_the_guide(space, kind, tmp_path) for kind in ("solver", "start", "slide")]
    assert failed == [[], [], []]


def kit_of_the_guide(space: dict[str, Any], kind: str, folder: Path) -> list[tuple[str, str]]:
    """The checks that the guide's solver, start or slide reader fails."""
    moving = rf.PointSet(
        torch.rand((60, 2), dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 30, "um"
    )
    shift = rf.Affine(torch.tensor([[1.0, 0, 5], [0, 1, -3], [0, 0, 1]], dtype=torch.float64), "um", "um")
    image = rf.Image(torch.rand((1, 20, 24)), rf.Grid((20, 24)))
    turned = torch.tensor([[0.0, -1, 21], [1, 0, 2], [0, 0, 1]], dtype=torch.float64)

    def sample(self: Any, place: Path) -> Path:
        fine = np.random.default_rng(0).integers(0, 255, (2, 40, 50), dtype=np.uint8)
        np.savez(place / "a.slide.npz", level_0=fine, level_1=fine[:, ::2, ::2])
        return place / "a.slide.npz"

    kit: dict[str, tuple[type, type, dict[str, Any]]] = {
        "solver": (
            testing.SolverTests,
            space["ByMiddle"],
            {"pair": lambda self: rf.Known(rf.move_points(moving, shift), moving, shift)},
        ),
        "start": (
            testing.StartTests,
            space["Turned"],
            {"pair": lambda self: rf.Known(image, image, rf.Affine(turned))},
        ),
        "slide": (testing.AdapterTests, space["Tiles"], {"sample": sample}),
    }
    base, cls, members = kit[kind]
    tests = type("Guide", (base,), {"make": lambda self: cls(), **members})
    return [(name, said) for name, status, said, _ in testing.run(tests) if status == "failed"]


def test_the_guide_names_every_check() -> None:
    guide, doors = ((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8") for page in ("plugins", "doors"))
    kits = (testing.MetricTests, testing.AdapterTests, testing.SolverTests, testing.StartTests, testing.FormatTests)
    checks = {name.removeprefix("test_") for kit in kits for name in dir(kit) if name.startswith("test_")}
    listed = {
        word
        for line in (guide + doors).splitlines()
        if line.startswith("| `")
        for word in re.findall(r"`(\w+)`", line.split(" | ")[0])
    }
    assert checks <= listed
    assert len(guide.split()) < 3000  # 15 minutes at 200 words per minute


# ---- what ships -----------------------------------------------------------------------------------------------------


def test_what_ships_comes_through_the_same_door(install: Install) -> None:
    own = {p.name: p for p in plugins.providers() if p.distribution.startswith("regframe ")}
    assert {"cells", "image", "points", "metrics"} <= set(own)
    assert all(p.status == "ok" for p in own.values())
    assert {"cells", "image", "points"} <= set(names(plugins.adapters()))
    assert {"contrast", "ssd", "ncc", "lncc"} <= set(names(plugins.metrics()))
    assert {"images", "points", "mixed", "section"} == set(names(plugins.entries("solver")))
    assert {"identity", "landmarks", "matrix", "stated"} == set(names(plugins.entries("start")))
    for entry in (entry for kind in plugins.KINDS for entry in plugins.entries(kind)):
        assert entry.summary, f"{entry.name} has no docstring"


@pytest.mark.parametrize("statement", ["import regframe", "import regframe; regframe.hookimpl; regframe.__version__"])
def test_importing_needs_no_torch(statement: str) -> None:
    check = f"{statement}; import sys; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_public_names() -> None:
    stub = (ROOT / "regframe" / "__init__.pyi").read_text(encoding="utf-8")
    declared = {line.split(" as ")[1] for line in stub.splitlines() if line.startswith("from .")}
    assert declared | {"__version__"} == set(rf.__all__)
    for line in stub.splitlines():
        if line.startswith("from ."):
            assert rf._HOME[line.split(" as ")[1]] == line.split()[1].lstrip("."), line
    missing = {name for name in rf.__all__ if not (ROOT / "regframe" / f"{rf._HOME.get(name, 'data')}.py").exists()}
    for name in set(rf.__all__) - missing:
        assert getattr(rf, name) is not None
    assert set(rf.__all__) <= set(dir(rf))
    with pytest.raises(AttributeError, match="no attribute 'registre'"):
        rf.registre  # noqa: B018


def test_mypy_covers_every_plugin() -> None:
    checked = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
    assert checked["strict"]
    shipped = {folder.name.replace("-", "_") for folder in (ROOT / "plugins").iterdir() if any(folder.rglob("*.py"))}
    assert shipped <= {*checked["packages"], *checked["modules"]}


# ---- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("load", "problem"),
    [
        (broken(ImportError("No module named 'rings'")), "cannot be imported: ImportError: No module named 'rings'"),
        (broken(SystemExit(3)), "cannot be imported: SystemExit: 3"),
        (module(regframe_metrics=RuntimeError("not\ntoday")), "hook regframe_metrics raised: RuntimeError: not today"),
        (module(regframe_metrics="contrast"), "returned 'contrast', not a list of classes"),
        (module(regframe_metrics=[3]), "returned 3, which is no subclass of regframe.Metric"),
        (module(regframe_metrics=[adapter_class("a", 0)]), "returned A, which is no subclass of regframe.Metric"),
        (module(regframe_adapters=[rf.Adapter]), "returned Adapter, which lacks apply, matches, open, save"),
        (module(regframe_metrics=[metric_class("two words")]), "whose name is 'two words' instead of one word"),
        (module(regframe_metrics=[metric_class("m", accepts=(str, str))]), "whose accepts is neither"),
        (module(regframe_metric=[]), "implements regframe_metric, which no hook is called; there is regframe_adapters"),
        (module(), "implements no hook: mark regframe_adapters or regframe_formats or"),
        (lambda: None, "implements no hook"),
    ],
)
def test_a_broken_plugin_is_named_and_kills_nothing(install: Install, load: Callable[[], Any], problem: str) -> None:
    install(FakePoint("bad", load), FakePoint("good", module(regframe_metrics=[metric_class("fine")])))
    with pytest.warns(plugins.PluginWarning, match=r"the plug-in 'bad' of stranger 2\.0 is left out") as caught:
        assert {"fine", "contrast"} <= set(names(plugins.metrics()))
    assert problem in str(caught[0].message)
    assert len(caught) == 1
    provider = next(p for p in plugins.providers() if p.name == "bad")
    assert provider.status == "broken"
    assert problem in provider.problems[0]


def test_half_a_plugin_is_better_than_none(install: Install) -> None:
    hooks = module(regframe_metrics=[metric_class("fine"), 7], regframe_adapters=ValueError("no"))
    install(FakePoint("half", hooks))
    with pytest.warns(plugins.PluginWarning):
        assert "fine" in names(plugins.metrics())
    assert len(next(p for p in plugins.providers() if p.name == "half").problems) == 2


def test_where_warnings_are_errors_the_rest_is_still_there(install: Install) -> None:
    install(FakePoint("bad", broken(ImportError("x"))))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(plugins.PluginWarning):
            plugins.metrics()
        warnings.simplefilter("ignore")
        assert "contrast" in names(plugins.metrics())


def test_a_clash_names_both_culprits_when_the_name_is_looked_up(install: Install) -> None:
    install(
        FakePoint("one", module(regframe_metrics=[metric_class("twice")])),
        FakePoint("two", module(regframe_metrics=[metric_class("twice")]), Distribution("other", "3")),
    )
    assert rf.metric("ssd").name == "ssd"
    message = (
        r"wanted one metric called 'twice', but other 3 \(two\) and stranger 2.0 \(one\) each provide one; take other/"
    )
    with pytest.raises(plugins.PluginError, match=message + r".*there is contrast, kernel"):
        rf.metric("twice")
    assert type(rf.metric("other/twice")) is not type(rf.metric("stranger/twice"))


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_a_shipped_name_stays_what_it_is(install: Install, kind: plugins.Kind) -> None:
    shipped = plugins.entries(kind)[0]
    stranger = type("Other", (shipped.cls,), {"name": shipped.name, "__doc__": "Another."})
    install(FakePoint("s", module(**{f"regframe_{kind}s": [stranger]})))
    message = rf"the {kind} '{shipped.name}' of stranger 2.0 \(s\) has the name .* regframe \S+ .*stranger/{shipped.name} picks"
    with pytest.warns(plugins.PluginWarning, match=message) as caught:
        assert stranger in {entry.cls for entry in plugins.entries(kind)}
    assert len(caught) == 1
    assert stranger not in {entry.cls for entry in plugins.chosen_by_default(kind)}
    assert plugins._lookup(kind, shipped.name).cls is shipped.cls
    assert plugins._lookup(kind, f"stranger/{shipped.name}").cls is stranger
    assert plugins._lookup(kind, f"regframe/{shipped.name}").cls is shipped.cls


def test_one_class_from_two_entry_points_is_no_clash(install: Install) -> None:
    same = metric_class("same")
    install(FakePoint("one", module(regframe_metrics=[same])), FakePoint("two", module(regframe_metrics=[same])))
    assert isinstance(rf.metric("same"), same)


def test_unknown_names_list_what_is_there(install: Install) -> None:
    message = r"wanted the name of a metric, got 'nccc'; there is contrast, kernel"
    with pytest.raises(ValueError, match=message):
        rf.metric("nccc")
    with pytest.raises(plugins.PluginError, match=r"wanted the name of an adapter, got 'cels'; there is cells, image"):
        rf.open(torch.zeros(2, 2), adapter="cels")
    install(FakePoint("bad", broken(ImportError("x"))))
    with (
        pytest.warns(plugins.PluginWarning),
        pytest.raises(plugins.PluginError, match=r"left out: bad of stranger 2\.0 \(broken\)"),
    ):
        rf.metric("bad")


def test_disabled(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(
        FakePoint("one", module(regframe_metrics=[metric_class("first")])),
        FakePoint("two", module(regframe_metrics=[metric_class("second")])),
    )
    others = [e.name for e in plugins.adapters() if not e.provider.endswith("(points)")]
    monkeypatch.setenv(plugins.DISABLE, " one, points")
    plugins.refresh()
    assert "second" in names(plugins.metrics())
    assert "first" not in names(plugins.metrics())
    assert {"cells", "image"} <= set(others)
    assert "points" not in others
    assert names(plugins.adapters()) == others
    with pytest.raises(plugins.PluginError, match=r"left out: .*one of stranger 2\.0 \(disabled\)"):
        rf.metric("first")
    monkeypatch.setenv(plugins.DISABLE, "all")
    plugins.refresh()
    assert not {"first", "second"} & set(names(plugins.metrics()))
    assert "contrast" in names(plugins.metrics())
    monkeypatch.setenv(plugins.DISABLE, "oen")
    plugins.refresh()
    with pytest.warns(
        plugins.PluginWarning, match="REGFRAME_DISABLE_PLUGINS names oen, but the plug-ins installed are"
    ):
        plugins.metrics()


def test_a_disabled_plugin_is_not_imported(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugins.DISABLE, "bad")
    install(FakePoint("bad", broken(AssertionError("imported"))))
    assert "contrast" in names(plugins.metrics())


def test_options(install: Install) -> None:
    assert rf.metric("lncc", radius=2).radius == 2  # type: ignore[attr-defined]
    with pytest.raises(
        plugins.PluginError, match=r"wanted options of the metric 'lncc' \(radius, signed\), got 'radus'"
    ):
        rf.metric("lncc", radus=2)
    with pytest.raises(plugins.PluginError, match="'ssd' \\(it has none\\), got 'radius'"):
        rf.metric("ssd", radius=2)

    def needs(self: Any, spacing: float, unit: str = "µm") -> None:
        self.spacing = spacing

    def takes_all(self: Any, **options: Any) -> None:
        self.options = options

    grains = adapter_class("grains", 1.0, __init__=needs)
    install(
        FakePoint("s", module(regframe_adapters=[grains], regframe_metrics=[metric_class("any", __init__=takes_all)]))
    )
    with pytest.raises(plugins.PluginError, match="wanted the options spacing for the adapter 'grains'; state them"):
        rf.adapter("grains")
    assert rf.metric("any", x=1).options == {"x": 1}  # type: ignore[attr-defined]
    assert next(e for e in plugins.adapters() if e.name == "grains").options == ("spacing", "unit")


def test_open_takes_the_surest_adapter(install: Install, tmp_path: Path) -> None:
    path = tmp_path / "x.rings"
    path.write_text("r")
    with pytest.raises(
        plugins.PluginError, match=r"wanted a source that an adapter knows, got '.*x\.rings'; there is cells"
    ):
        rf.open(path)

    def asks(self: Any, source: Any) -> float:
        raise OSError("no")

    install(
        FakePoint("s", module(regframe_adapters=[adapter_class("low", 0.2), adapter_class("high", 0.8)])),
        FakePoint("t", module(regframe_adapters=[adapter_class("rude", 1.0, matches=asks), adapter_class("mad", 7.0)])),
    )
    with pytest.warns(plugins.PluginWarning) as caught:
        assert rf.open(path) == "high"
    assert sorted(str(w.message).partition(" of ")[0] for w in caught) == ["the adapter 'mad'", "the adapter 'rude'"]
    assert rf.open(path, adapter="low") == "low"
    with pytest.raises(FileNotFoundError, match="which does not exist"):
        rf.open(tmp_path / "gone.rings", adapter="low")


def test_open_does_not_choose_between_equals(install: Install, tmp_path: Path) -> None:
    path = tmp_path / "x.rings"
    path.write_text("r")
    install(FakePoint("s", module(regframe_adapters=[adapter_class("left", 0.5), adapter_class("right", 0.5)])))
    with pytest.raises(plugins.PluginError, match=r"but left \(from .*\), right \(from .*\) are equally sure of it"):
        rf.open(path)


def test_open_judges_options_after_the_choice(install: Install, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x,y\n1,2\n")
    with pytest.raises(
        plugins.PluginError, match=r"wanted options of the adapter 'points' \(columns, unit\), got 'spacing'"
    ):
        rf.open(path, spacing=3)


# ---- strangers' packages, installed -----------------------------------------------------------------------------------

EXAMPLES = ("example_mi", "example_msi", "example_mesh", "example_start", "example_landmarks_format", "example_slide")
"""Packages of the source tree that are installed as a stranger's would be."""
LONG = ("TestSolver", "rough_and_partial", "another_object", "a_start_is_taken", "units_are_converted")
"""Fits of the mesh package's own tests, which the kit and `test_example_packages` make as well."""


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment of its own that sees this one's packages, beside the sources of what pip put into it.

    That is `EXAMPLES` and ``fresh-one``, which `regframe plugins --new` has just written.
    """
    folder = tmp_path_factory.mktemp("stranger")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    purelib = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    here = sysconfig.get_paths()["purelib"]
    # addsitedir, and not a plain path, so that an editable regframe is seen as well
    (Path(purelib) / "outer.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    for name in EXAMPLES:
        shutil.copytree(
            ROOT / "plugins" / name,
            folder / name,
            ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__", ".pytest_cache"),
        )
    scaffold.new_plugin("fresh-one", folder)
    done = subprocess.run(
        [
            str(python), "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index",
            "--disable-pip-version-check", *(str(folder / name) for name in (*EXAMPLES, "fresh-one")),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return python


VISITS = """
import json, os, sys
import regframe.cli.apply, regframe.cli.register, regframe.registration, regframe.report.results
for line in sys.stdin:
    folder, code = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(folder)
        said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        errors = os.open("errors.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(errors, 2)
        exec(code, {})
        sys.exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def visits(stranger: Path) -> Iterator[subprocess.Popen[str]]:
    """A process of the stranger's Python that has loaded the core, and forks one of its own for every code that it is told."""
    with subprocess.Popen(
        [str(stranger), "-c", VISITS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # a fork has the threads that it starts
    ) as process:  # fmt: skip
        yield process


def visit(visits: subprocess.Popen[str], folder: Path, code: str) -> str:
    """What the code prints that runs in a folder, in a process of the stranger's Python."""
    assert visits.stdin is not None
    assert visits.stdout is not None
    print(json.dumps([str(folder), code]), file=visits.stdin, flush=True)
    ended = visits.stdout.readline().strip()
    said, errors = (
        (folder / name).read_text(encoding="utf-8") if (folder / name).exists() else ""
        for name in ("said.txt", "errors.txt")
    )
    assert ended == "0", said + errors
    return said


def test_strangers_plugins_pass_the_kit(visits: subprocess.Popen[str], tmp_path: Path) -> None:
    names = [*(name.replace("_", "-") for name in EXAMPLES), "fresh-one"]
    code = f"from regframe.cli import main; main(['plugins', '--check', '--json', *{names!r}])"
    checks = json.loads(visit(visits, tmp_path, code))["checks"]
    provided = {"example_mi", "imzml", "mesh", "meshes", "viewer_matrix", "bigwarp", "rawslide", "fresh_one"}
    assert {check["name"] for check in checks} == provided
    allowed = {"cuda", "fused", "order_of_points", "apply_keeps_ids", "pyramid"}  # pyramid: of what is read as a whole
    only_reads = {("rawslide", "save_then_open"), ("rawslide", "save_what_was_moved")}
    skipped = {(check["name"], check["check"]) for check in checks if check["status"] != "ok"} - only_reads
    assert {check for _, check in skipped} <= allowed
    assert ("open_finds_it", "ok") in {
        (check["check"], check["status"]) for check in checks if check["name"] == "imzml"
    }


def test_strangers_plugins_pass_their_own_tests(stranger: Path) -> None:
    folder = stranger.parents[2]
    done = subprocess.run(
        [
            str(stranger), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c",
            str(folder / "fresh-one" / "pyproject.toml"),
            "--rootdir", str(folder), "-k", " and ".join(f"not {word}" for word in LONG),
            *(str(folder / name / "tests") for name in ("fresh-one", *EXAMPLES[1:])),
        ],
        capture_output=True, text=True, check=False, cwd=folder,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


MASS_SPECTROMETRY = """
import json, warnings
import numpy as np
import regframe as rf
from example_msi import write_imzml
from regframe.cli import main

texture = np.random.default_rng(0).random((80, 84))
for axis in (0, 1, 0, 1, 0, 1):
    texture = np.mean([np.roll(texture, k, axis) for k in (-2, -1, 0, 1, 2)], axis=0)
texture = (texture - texture.min()) / np.ptp(texture)
stain = rf.Image.from_array((255 * (1 - texture[6:70, 6:72])).astype("u1"), "yx", spacing=20.0, unit="µm")
rf.adapter("image").save(stain, "stain.ome.tif")
ions = [(y, x, np.array([100.0, 300.0]), np.array([v, 0.1])) for (y, x), v in np.ndenumerate(texture[3:67, 8:74] * 100)]
write_imzml(rf.adapter("imzml").sample("..").parent / "in" / "ions.imzML", ions, rf.Grid((64, 66), 20.0, (), "µm"))
main(["register", "stain.ome.tif", "ions.imzML", "-o", "run", "--moving-set", "mz=100", "--init", "identity", "--transform",
      "rigid"], standalone_mode=False)
main(["apply", "image", "run", "ions.imzML", "-o", "moved.imzML", "--to", "fixed", "--adapter-set", "mz=100,300"],
     standalone_mode=False)
"""


def test_mass_spectrometry_is_aligned_to_a_stain(visits: subprocess.Popen[str], tmp_path: Path) -> None:
    """A modality that the core has never seen, through the command line: opened, aligned, carried, written."""
    (tmp_path / "in").mkdir()
    visit(visits, tmp_path / "in", MASS_SPECTROMETRY)
    result = rf.load(tmp_path / "in" / "run")
    at = result.fixed_grid.coords()
    error = (result.to_moving(at) - (at + torch.tensor([60.0, -40.0]))).norm(dim=-1)
    assert float(error.mean()) < 10  # µm, half a pixel
    assert {"moved.imzML", "moved.ibd"} <= {path.name for path in (tmp_path / "in").iterdir()}


def test_a_strangers_metric_is_listed(visits: subprocess.Popen[str], tmp_path: Path) -> None:
    code = (
        "import json; from regframe import plugins; "
        "print(json.dumps({e.name: [e.provider, e.options] for e in plugins.metrics()}))"
    )
    listed = json.loads(visit(visits, tmp_path, code))
    assert listed["example_mi"] == ["example-mi 0.1.0 (mi)", ["bins"]]
    assert "contrast" in listed
    assert "example_mi" not in names(plugins.metrics())


def test_a_strangers_metric_is_listed_by_the_command(stranger: Path) -> None:
    code = "from regframe.cli import main; main(['plugins'])"
    done = subprocess.run([str(stranger), "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "example_mi" in done.stdout.split()
    assert "example-mi 0.1.0 (mi)" in done.stdout


def test_a_strangers_metric_aligns_a_pair(visits: subprocess.Popen[str], data_dir: Path, tmp_path: Path) -> None:
    folder = data_dir / "01_seed_cells"
    pairs = "fixed_y,fixed_x,moving_y,moving_x\n160,200,150,190\n100,50,100,60\n75,100,75,100\n"
    (tmp_path / "three.csv").write_text(pairs)
    arguments = [
        "register", str(folder / "cells2_crop.jpg"), str(folder / "cells.jpg"), "--landmarks", "three.csv",
        "--metric", "example_mi", "--metric-set", "bins=24", "--transform", "affine", "-o", "run",
    ]  # fmt: skip
    visit(visits, tmp_path, f"from regframe.cli import main; main({arguments!r})")
    assert yaml.safe_load((tmp_path / "run" / "config.resolved.yaml").read_text())["metric"] == "example_mi"
    result = rf.load(tmp_path / "run")  # the map needs no plug-in to be used
    at = result.fixed_grid.coords()
    error = (result.to_moving(at) - (111 + (at - 111) * 5 / 6)).norm(dim=-1)
    assert float(error.mean()) < 0.3  # px of the moving image; the start is off by 7.7
