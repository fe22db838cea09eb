"""The kit for plug-ins: what ships passes it, and whatever is broken is caught by the check that names it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from string import Template
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import regframe as rf
from regframe import plugins
from regframe.cli import main
from regframe.testing import AdapterTests, MetricTests, run, scaffold

# ---- what ships -----------------------------------------------------------------------------------------------------


class _OfImages(MetricTests):
    test_order_of_points = None


class _Plain(_OfImages):
    test_fused = None


class TestContrast(_OfImages):
    bad_options = ({"order": 4}, {"ridge": 0.0})

    def make(self):
        return rf.metric("contrast", order=2)


class TestSSD(_Plain):
    def make(self):
        return rf.metric("ssd")


class TestMixture(rf.testing.MetricTests):
    def make(self):
        return rf.metric("mixture")


class TestKernel(rf.testing.MetricTests):
    def make(self):
        return rf.metric("kernel")


class TestNCC(_Plain):
    def make(self):
        return rf.metric("ncc", signed=True)


class TestLNCC(_Plain):
    bad_options = ({"radius": 0},)

    def make(self):
        return rf.metric("lncc")


class TestMI(_Plain):
    bad_options = ({"bins": 4},)

    def make(self):
        return rf.metric("mi", components=2)


class TestNMI(_Plain):
    def make(self):
        return rf.metric("nmi")


class TestNGF(_Plain):
    bad_options = ({"edge": 0.0},)

    def make(self):
        return rf.metric("ngf")


class TestMIND(_Plain):
    bad_options = ({"dilation": 0}, {"radius": -1})

    def make(self):
        return rf.metric("mind")


class _Images(AdapterTests):
    test_apply_keeps_ids = None
    bad_options = ({"unit": "parsec"}, {"level": -1}, {"spacing": 0})
    suffix = ".png"
    shape = "yxc"

    def make(self):
        return rf.adapter("image")

    def sample(self, folder: Path):
        size = {"c": 3, "y": 20, "x": 24, "z": 6}
        array = np.random.default_rng(0).integers(0, 255, [size[a] for a in self.shape]).astype(np.uint8)
        physical = {"spacing": (0.5,), "unit": "µm"} if self.keeps_grid else {}
        path = folder / f"sample{self.suffix}"
        rf.adapter("image").save(rf.Image.from_array(array, self.shape, **physical), path)
        return path


class TestPNG(_Images):
    keeps_grid = False


class TestJPEG(_Images):
    suffix = ".jpg"
    keeps_grid = False
    tolerance = 0.7  # noise is the worst there is for it


class TestTIFF(_Images):
    suffix = ".ome.tif"
    shape = "cyx"


class TestZarr(_Images):
    suffix = ".ome.zarr"
    shape = "cyx"


class TestVolume(_Images):
    suffix = ".ome.zarr"
    shape = "zyx"


class TestLabels(_Images):
    suffix = ".tif"
    shape = "yx"
    test_apply_keeps_ids = AdapterTests.test_apply_keeps_ids

    def make(self):
        return rf.adapter("image", labels=True)


class TestPoints(AdapterTests):
    test_apply_keeps_ids = None

    def make(self):
        return rf.adapter("points")

    def sample(self, folder: Path):
        path = folder / "cells.csv"
        rows = [f"c{i},{3.5 * (i % 7)},{i / 3:.4f},type {i % 4}" for i in range(40)]
        path.write_text("id,x_um,y_um,kind\n" + "\n".join(rows) + "\n")
        return path


# ---- what is broken: a sound plug-in, one fault at a time -----------------------------------------------------------

SPACE: dict = {}
exec(
    Template(scaffold.files(scaffold.DEFAULT)["src/$module.py"]).substitute(
        name="a", module="a", title="A", suffix=".a"
    ),
    SPACE,
)
Sound, Positions = SPACE["AMetric"], SPACE["AAdapter"]


def distance(warped, fixed, weight):
    return (((warped - fixed) ** 2).mean(0) * weight).sum() / weight.sum().clamp_min(1e-30)


def correlation(warped, fixed, weight, floor):
    w = weight / weight.sum().clamp_min(1e-30)
    x, y = (t.mean(0) - (t.mean(0) * w).sum() for t in (warped, fixed))
    return (w * x * y).sum() / ((w * x * x).sum() * (w * y * y).sum() + floor).sqrt()


class Undocumented(rf.Metric):
    name = "undocumented"
    __call__ = staticmethod(distance)


class Flipped(torch.autograd.Function):
    """A backward pass with the wrong sign."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return -grad


def unchecked(self, blunt=0.01):
    self.blunt, self.scale = blunt, 1.0


def biased_fused(self, path, moving, fixed, weight):
    velocity, matrix = path.velocity.detach().requires_grad_(True), path.matrix.detach().requires_grad_(True)
    value = self(rf.ops.warp(moving, *path._replace(velocity=velocity, matrix=matrix)), fixed, weight)
    v, m = torch.autograd.grad(value, (velocity, matrix))
    return value.detach(), v, 1.1 * m


def accumulating(self, fixed, moving):
    self.scale = 0.5 * (self.scale + float(fixed.data.std()))


def writing(self, warped, fixed, weight):
    fixed -= fixed.mean()
    return distance(warped - warped.mean(), fixed, weight)


def counting(self, warped, fixed, weight):
    self.calls = getattr(self, "calls", 0) + 1
    return distance(warped, fixed, weight) + 1e-3 * self.calls


def calls(function):
    return {"__call__": lambda self, warped, fixed, weight: function(warped, fixed, weight)}


def seeding(self, warped, fixed, weight):
    torch.manual_seed(0)
    return distance(warped, fixed, weight)


def speaking(self, source):
    print("opened", source)
    return Positions().open(source)


METRICS = {
    "a seed for everybody": ("leaves_the_process_alone", {"__call__": seeding}),
    "no docstring": ("name_and_summary", {"__doc__": None}),
    "a name of two words": ("name_and_summary", {"name": "two words"}),
    "options that nobody looks at": ("options_are_validated", {"__init__": unchecked}),
    "a variant that cannot be made": ("variants", {"variants": ({"no_such": 1},)}),
    "higher is better": ("lower_where_aligned", calls(lambda x, y, w: -distance(x, y, w))),
    "one value per pixel": ("value_is_a_scalar", calls(lambda x, y, w: (x - y).square().mean(0) * w)),
    "a number and no tensor": ("value_is_a_scalar", calls(lambda x, y, w: 3.0)),
    "two dimensions only": (
        "value_is_a_scalar",
        calls(lambda x, y, w: distance(torch.nn.functional.avg_pool2d(x[None], 3, 1, 1)[0], y, w)),
    ),
    "no use of the weight": ("weight_zero_hides", calls(lambda x, y, w: (x - y).square().mean())),
    "a mean without the weight": ("weight_zero_hides", calls(lambda x, y, w: distance(x - x.mean(), y - y.mean(), w))),
    "a sum": ("weight_is_a_mean", calls(lambda x, y, w: ((x - y) ** 2 * w).sum())),
    "a weight that cancels": ("weight_is_a_mean", calls(lambda x, y, w: (x - y).square().mean() * w.sum() / w.sum())),
    "no floor under a division": (
        "constant_and_tiny_input",
        calls(lambda x, y, w: 1 - correlation(x, y, w, 0.0)),
    ),
    "no weight at all": (
        "constant_and_tiny_input",
        calls(lambda x, y, w: (((x - y) ** 2).mean(0) * w).sum() / w.sum()),
    ),
    "a logarithm of what may be negative": ("likelihood_is_honest", calls(lambda x, y, w: -correlation(x, y, w, 1.0))),
    "a likelihood that is none": ("likelihood_is_honest", {"likelihood": True, **calls(distance)}),
    "channels that do not fit": ("channels_that_differ", calls(distance)),
    "a scale held constant": (
        "gradient",
        calls(lambda x, y, w: distance(x, y, w) / x.detach().var()),
    ),
    "numpy in between": ("gradient", calls(lambda x, y, w: distance(torch.from_numpy(x.detach().numpy()), y, w))),
    "a backward pass with the wrong sign": ("gradient", calls(lambda x, y, w: distance(Flipped.apply(x), y, w))),
    "rounded intensities": ("gradient", calls(lambda x, y, w: distance(x.round(), y, w))),
    "a constant in double": (
        "float32",
        calls(lambda x, y, w: distance((torch.eye(2, dtype=torch.float64) @ x.flatten(1)).view_as(x), y, w)),
    ),
    "another value without a graph": (
        "without_a_gradient",
        calls(lambda x, y, w: distance(x, y, w) * (1.0 if x.requires_grad else 1.1)),
    ),
    "chance": ("deterministic", calls(lambda x, y, w: distance(x, y, w * torch.rand_like(w)))),
    "a memory": ("deterministic", {"__call__": counting}),
    "a hand in the inputs": ("inputs_are_left_alone", {"__call__": writing}),
    "levels that pile up": ("prepare_for_every_level", {"prepare": accumulating}),
    "a kernel that is a tenth off": ("fused", {"fused": biased_fused}),
    "a gradient that leads astray": ("aligns_a_pair", calls(lambda x, y, w: distance(Flipped.apply(x), y, w))),
}


def outcome(tests: type, check: str) -> tuple[str, str]:
    ((_, status, message, _),) = run(tests, [check])
    return status, message


@pytest.mark.parametrize("fault", METRICS)
def test_a_broken_metric_is_caught(fault: str) -> None:
    check, members = METRICS[fault]
    made = type("Broken", (Sound,), {"__doc__": "A metric.", **members})
    status, message = outcome(type("T", (MetricTests,), {"make": lambda self: made()}), check)
    assert status == "failed"
    assert message.startswith("wanted ") or fault in ("two dimensions only", "a constant in double"), message


class Paired(rf.Metric):
    """Points compared row by row, which they are not."""

    name = "paired"
    accepts = (rf.PointSet, rf.PointSet)

    def __call__(self, warped, fixed, weight):
        return ((warped - fixed[: len(warped)]).square().sum(1) * weight).sum() / weight.sum().clamp_min(1e-30)


class Nearest(Paired):
    """Mean squared distance to the nearest fixed point."""

    def __call__(self, warped, fixed, weight):
        squares = (warped[:, None] - fixed[None]).square().sum(2).amin(1)
        return (squares * weight).sum() / weight.sum().clamp_min(1e-30)


def test_metrics_of_points() -> None:
    assert outcome(type("T", (MetricTests,), {"make": lambda self: Paired()}), "order_of_points")[0] == "failed"
    found = {
        name: (status, message)
        for name, status, message, _ in run(type("T", (MetricTests,), {"make": lambda self: Nearest()}))
    }
    assert not [(name, *result) for name, result in found.items() if result[0] == "failed"]
    assert {name for name, result in found.items() if result[0] == "skipped"} >= {
        "channels_that_differ",
        "aligns_a_pair",
    }


def opens(function):
    return {"open": lambda self, source: function(Positions().open(source))}


def applies(function):
    def apply(self, source, transform, grid=None):
        return function(self.open(source), transform)

    return {"apply": apply}


def scribbling(self, source):
    Path(source).with_suffix(".cache").touch()
    return Positions().open(source)


def crashing(self, source):
    cells = [line.split() for line in Path(source).read_text(encoding="latin-1").splitlines()[1:]]
    return rf.PointSet(torch.tensor([[float(row[1]), float(row[0])] for row in cells]).reshape(-1, 2))


def misspelt(self, source):
    try:
        return Positions().open(source)
    except ValueError:
        raise ValueEror(f"wanted positions, got {source}") from None  # noqa: F821 - the fault


def littering(self, data, path):
    Positions().save(data, path)
    (Path(path).parent / "tmp123").touch()


def rounding(self, data, path):
    Positions().save(data.replace(coords=data.coords.round(decimals=1)), path)


def trusting(self, data, path):
    Path(path).write_text("a 1\n")
    Positions().save(rf.PointSet(data.coords, table=data.table), path)


class Kept(Positions):
    """Writes what it read, not what it is given."""

    def open(self, source):
        self.__class__.last = getattr(self.__class__, "last", None) or super().open(source)
        return super().open(source)

    def save(self, data, path):
        super().save(self.last, path)


def reads_all(self, source):
    return 0.9 if Positions().matches(source) and Path(source).read_bytes() else 0.0


def turned(points):
    return points.replace(coords=points.coords.flip(0))


ADAPTERS = {
    "words on standard output": ("leaves_the_process_alone", {"open": speaking}),
    "an unknown unit": ("options_are_validated", {"__init__": lambda self, unit="µm": setattr(self, "unit", unit)}),
    "a variant that cannot be made": ("variants", {"variants": ({"no_such": 1},)}),
    "no pyramid": ("pyramid", {"pyramid": lambda self, source: 3}),
    "more than sure": ("matches_its_own", {"matches": lambda self, source: 1.5}),
    "never sure": ("matches_its_own", {"matches": lambda self, source: 0.0}),
    "sure of everything": ("matches_nothing_else", {"matches": lambda self, source: 0.9}),
    "paths only": ("matches_nothing_else", {"matches": lambda self, source: float(source.suffix == ".a")}),
    "the suffix alone": ("matches_looks_at_the_content", {"matches": lambda self, source: 0.9 * str(source).endswith(".a")}),
    "a whole file read to tell": ("matches_reads_a_header", {"matches": reads_all}),
    "a pair of things": ("open", opens(lambda points: (points, 1))),
    "not a number": ("open", opens(lambda points: points.replace(coords=points.coords * float("nan")))),
    "a file left beside": ("open", {"open": scribbling}),
    "nothing for no file": ("open_what_is_not_there", {"open": lambda self, source: rf.PointSet(torch.zeros(0, 2))}),
    "foreign bytes taken": ("open_what_is_something_else", {"open": lambda self, source: rf.PointSet(torch.zeros(1, 2))}),
    "a NameError": ("open_what_is_damaged", {"open": misspelt}),
    "a row lost": ("apply_nothing", applies(lambda p, t: rf.PointSet(t.points(p.coords[1:]), p.unit))),
    "another order": ("apply_nothing", applies(lambda p, t: rf.move_points(turned(p), t))),
    "a column lost": ("apply_nothing", applies(lambda p, t: rf.move_points(p, t).replace(table={}))),
    "the inverse": ("apply_a_shift", applies(lambda p, t: rf.move_points(p, t.inverse()))),
    "x and y confused": (
        "apply_a_shift",
        applies(lambda p, t: p.replace(coords=t.points(p.coords.flip(1)).flip(1))),
    ),
    "rounded": ("save_then_open", {"save": rounding}),
    "a temporary file left": ("save_then_open", {"save": littering}),
    "an AttributeError": ("save_refuses_the_other_kind", {"save": trusting}),
}  # fmt: skip


@pytest.mark.parametrize("fault", ADAPTERS)
def test_a_broken_adapter_is_caught(fault: str) -> None:
    check, members = ADAPTERS[fault]
    made = type("Broken", (Positions,), {"__doc__": "An adapter.", **members})
    tests = type("T", (AdapterTests,), {"make": lambda self: made(), "bad_options": ({"unit": "parsec"},)})
    status, message = outcome(tests, check)
    assert status == "failed"
    assert message.startswith("wanted "), message


def test_an_adapter_that_writes_what_it_read_is_caught() -> None:
    tests = type("T", (AdapterTests,), {"make": lambda self: Kept()})
    assert outcome(tests, "save_what_was_moved")[0] == "failed"


def test_labels_that_are_averaged_are_caught() -> None:
    class Averaging(type(rf.adapter("image"))):
        def apply(self, source, transform, grid=None):
            image = self.open(source)
            return rf.resample(image.replace(labels=False), transform, grid or image.grid).replace(labels=True)

    tests = type("T", (TestLabels,), {"make": lambda self: Averaging(labels=True)})
    status, message = outcome(tests, "apply_keeps_ids")
    assert status == "failed"
    assert "never average labels" in message


def test_without_a_sample_the_kit_says_what_to_write() -> None:
    bare = type("Bare", (Positions,), {"sample": classmethod(lambda cls, folder: None)})
    status, message = outcome(type("T", (AdapterTests,), {"make": lambda self: bare()}), "open")
    assert status == "failed"
    assert "write a method sample(self, folder)" in message
    status, message = outcome(type("T", (MetricTests,), {}), "value_is_a_scalar")
    assert status == "failed"
    assert "wanted a method make()" in message


def test_a_package_that_is_not_there_is_no_fault() -> None:
    def needs(self, source):
        raise ImportError("wanted the package rings to read this; pip install rings")

    made = type("Needing", (Positions,), {"__doc__": "x", "open": needs})
    tests = type("T", (AdapterTests,), {"make": lambda self: made()})
    for check in ("open", "open_what_is_damaged", "save_then_open"):
        assert outcome(tests, check) == ("skipped", "wanted the package rings to read this; pip install rings")


def test_what_a_plugin_says_is_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    def talking(self, source):
        warnings.warn("old", UserWarning, stacklevel=1)
        logging.getLogger("rings").error("odd")
        print("read", source)
        print("read", source, file=sys.stderr)
        return Positions().open(source)

    made = type("Talking", (Positions,), {"__doc__": "x", "open": talking})
    assert outcome(type("T", (AdapterTests,), {"make": lambda self: made()}), "open") == ("ok", "")
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("rings").isEnabledFor(logging.ERROR)


def test_the_kit_needs_no_pytest() -> None:
    code = (
        "import sys; sys.modules['pytest'] = None; import regframe.testing as t; print(len(list(t.run(t.MetricTests))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 15


# ---- the command ----------------------------------------------------------------------------------------------------


def command(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["plugins", *arguments])
    return done.exit_code, done.output


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Put a fake entry point ``mine`` of ``stranger 2.0`` in the place of the real adapters and metrics."""
    monkeypatch.delenv(plugins.DISABLE, raising=False)

    def put(*classes: type, load: Callable[[], object] | None = None) -> None:
        made = ModuleType("stranger_module")
        made.regframe_metrics = rf.hookimpl(lambda: [c for c in classes if issubclass(c, rf.Metric)])
        made.regframe_adapters = rf.hookimpl(lambda: [c for c in classes if issubclass(c, rf.Adapter)])
        point = SimpleNamespace(
            name="mine", value="m", load=load or (lambda: made), dist=SimpleNamespace(name="stranger", version="2.0")
        )
        monkeypatch.setattr(plugins, "_entry_points", lambda: (point, *solvers))
        plugins.refresh()

    solvers = tuple(p for p in plugins._entry_points() if p.name in ("solvers", "starts"))  # a metric is tried
    yield put
    plugins.refresh()


def test_check_of_what_is_sound(install: Callable[..., None]) -> None:
    install(Sound, Positions)
    code, output = command("--check", "mine")
    assert code == 0, output
    assert "adapter a, from stranger 2.0 (mine)" in output
    assert "  ok       weight zero hides " in output
    assert ", 0 failed, " in output.splitlines()[-1]
    code, output = command("--check", "--json", "stranger")
    found = json.loads(output)
    assert found["healthy"]
    assert {(c["kind"], c["status"]) for c in found["checks"]} >= {
        ("metric", "ok"),
        ("adapter", "ok"),
        ("metric", "skipped"),
    }


def test_check_of_what_is_not(install: Callable[..., None]) -> None:
    check, members = ADAPTERS["the inverse"]
    needy = type("Needy", (Sound,), {"name": "needy", "__init__": lambda self, radius: None})
    bare = type("Bare", (Positions,), {"name": "bare", "__doc__": "x", "sample": rf.Adapter.__dict__["sample"]})
    install(type("Inverse", (Positions,), {"name": "inverse", "__doc__": "x", **members}), needy, bare)
    code, output = command("--check", "inverse")
    assert code == 1
    assert f"  FAILED   {check.replace('_', ' ')}" in output
    assert "wanted points moved by the shift" in output
    code, output = command("--check", "needy", "bare")
    assert code == 0
    assert "skipped  all: it cannot be made without radius" in output
    assert "checks: it offers no sample(cls, folder)" in output


def test_an_error_of_an_adapter_over_a_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    careless = type("Careless", (Positions,), {"name": "careless", "open": crashing})
    (tmp_path / "a.a").write_text("a 1\n7\n")
    with pytest.raises(
        ValueError, match=r"wanted a readable file, got .*a\.a.* the adapter careless cannot read \(IndexError"
    ):
        careless().open(tmp_path / "a.a")


def test_an_adapter_that_another_outbids_is_caught(install: Callable[..., None]) -> None:
    surer = type(
        "Surer", (Positions,), {"name": "surer", "matches": lambda self, source: 0.95 * Positions().matches(source)}
    )
    install(Positions, surer)
    tests = type("T", (AdapterTests,), {"make": lambda self: surer()})
    status, message = outcome(tests, "open_finds_it")
    assert status == "failed"
    assert "wanted regframe.open to take surer for its sample, got a" in message


def test_every_check_is_seen_to_fail() -> None:
    apart = {
        "order_of_points",
        "cuda",
        "save_what_was_moved",
        "apply_keeps_ids",
        "open_finds_it",
    }  # cuda: on a device only
    for kit, faults in ((MetricTests, METRICS), (AdapterTests, ADAPTERS)):
        checks = {name.removeprefix("test_") for name in dir(kit) if name.startswith("test_")}
        shared = {"name_and_summary"} if kit is AdapterTests else set()
        assert checks - apart - shared == {check for check, _ in faults.values()}


@pytest.mark.filterwarnings("ignore::regframe.PluginWarning")
def test_check_of_a_plugin_that_does_not_load(install: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> object:
        raise ImportError("no module named rings")

    install(load=load)
    code, output = command("--check", "mine")
    assert code == 1
    assert "plug-in mine, from stranger 2.0 (mine)" in output
    assert "it cannot be imported: ImportError: no module named rings" in output
    monkeypatch.setenv(plugins.DISABLE, "mine")
    plugins.refresh()
    assert "skipped  loads: REGFRAME_DISABLE_PLUGINS leaves it out" in command("--check", "mine")[1]


def test_check_and_new_are_asked_for_in_the_right_way() -> None:
    for arguments, says in [
        (
            ["--check", "nothing"],
            "wanted names of classes or plug-ins that are installed (ants, cells, contrast, csv",
        ),
        (["ssd"], "wanted either --check"),
        (["--check", "--new", "x"], "wanted either --check"),
    ]:
        code, output = command(*arguments)
        assert code == 2
        assert says in output


def test_new_writes_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, output = command("--new", "my-stain")
    assert code == 0, output
    files = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert files == [
        f"my-stain/{name}" for name in ("README.md", "pyproject.toml", "src/my_stain.py", "tests/test_my_stain.py")
    ]
    assert all(f"wrote {name}" in output for name in files)
    assert not [name for name in files if "$" in Path(name).read_text()]
    before = {name: Path(name).read_bytes() for name in files}
    for name, says in [
        ("my-stain", "got one that is there"),
        ("My-Stain", "wanted a name of small letters"),
        ("../up", "wanted a name of small letters"),
        ("a/b", "wanted a name of small letters"),
        ("", "wanted a name of small letters"),
        ("x" * 61, "of at most 60 characters"),
        ("class", "that Python does not use itself"),
        ("json", "there is a module json"),
        ("regframe", "there is a module regframe"),
        ("regframe-image", "there is a module regframe_image"),
        ("ssd", "wanted a name that no class of a plug-in bears"),
    ]:
        code, output = command("--new", name)
        assert code == 2, name
        assert says in output
    assert {name: Path(name).read_bytes() for name in files} == before
    monkeypatch.setattr(scaffold, "PYPROJECT", "$unknown")
    with pytest.raises(KeyError):
        scaffold.new_plugin("other", tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["my-stain"]
    with pytest.raises(NotADirectoryError, match="wanted a folder to write into"):
        scaffold.new_plugin("other", tmp_path / "none")
