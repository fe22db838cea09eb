"""Broken plug-ins of every kind: each is named in one sentence, and none changes what happens without it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from odd_package import Install, offered

import regframe as rf
from regframe import plugins


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    yield from offered(monkeypatch)


METRIC = """
class Odd(rf.Metric):
    name = "odd"
    def __call__(self, warped, fixed, weight):
        m = (weight * (warped - fixed) ** 2).mean()
        {}
@rf.hookimpl
def regframe_metrics(): return [Odd]
"""
SOLVER = """
class Odd(rf.Solver):
    name = "odd"
    models = ("rigid",)
    def matches(self, fixed, moving): return 0.1
    def check(self, task): return []
    def fit(self, task): {}
    def judge(self, fitted): return []
@rf.hookimpl
def regframe_solvers(): return [Odd]
"""
START = """
class Odd(rf.Start):
    name = "odd"
    def find(self, task): {}
@rf.hookimpl
def regframe_starts(): return [Odd]
"""
HOOK = "@rf.hookimpl\ndef regframe_{}s(): {}\n"
SOUND = METRIC.format("return m")

LEFT_OUT = {
    "raises at import": "raise RuntimeError('no')",
    "divides by zero at import": "1 / 0",
    "needs what is not there": "import no_such_package_at_all",
    "exits at import": "raise SystemExit(3)",
    "recurses at import": "def f(): return f()\nf()",
    "is no hook": "x = 1",
    "is an unknown hook": SOUND + "@rf.hookimpl\ndef regframe_metric(): return []\n",
    **{f"{kind} hook raises": HOOK.format(kind, "raise KeyError('x')") for kind in plugins.KINDS},
    **{f"{kind} hook returns a word": HOOK.format(kind, "return 'Odd'") for kind in plugins.KINDS},
    **{f"{kind} hook returns a number in a list": HOOK.format(kind, "return [3]") for kind in plugins.KINDS},
    "hook is a generator": HOOK.format("metric", "yield 1"),
    "hook takes an argument": "@rf.hookimpl\ndef regframe_metrics(config): return []\n",
    "class is abstract": "class Odd(rf.Metric):\n    name = 'odd'\n" + HOOK.format("metric", "return [Odd]"),
    "class is of another kind": SOUND + HOOK.format("adapter", "return [Odd]"),
    "name is missing": SOUND.replace('name = "odd"', "pass"),
    "name is two words": SOUND.replace('"odd"', '"odd one"'),
    "name is that of a shipped one": SOUND.replace('"odd"', '"ssd"'),
    "api is a later one": SOUND.replace('name = "odd"', 'name = "odd"; api = 99'),
    "accepts a word": SOUND.replace('name = "odd"', 'name = "odd"; accepts = "images"'),
    "import seeds": "torch.manual_seed(1234567)\n" + SOUND,
    "import sets the dtype": "torch.set_default_dtype(torch.float64)\n" + SOUND,
    "solver rates 7": SOLVER.replace("return 0.1", "return 7").format("pass"),
    "solver rates NaN": SOLVER.replace("return 0.1", "return float('nan')").format("pass"),
    "solver rates None": SOLVER.replace("return 0.1", "return None").format("pass"),
    "solver raises when asked": SOLVER.replace("return 0.1", "return fixed.lost").format("pass"),
    "solver exits when asked": SOLVER.replace("return 0.1", "raise SystemExit(1)").format("pass"),
}
REFUSED = {
    **{
        f"metric: {line}": (METRIC.format(line), {"metric": "odd"})
        for line in (
            "return self.lost", "return 1 / 0", "assert False", "raise RuntimeError('x')", "return self(warped, fixed, weight)",
            "return warped.reshape(7, -1, 11)", "return torch.empty(10**15)",
        )
    },
    "metric: wrong signature": (SOUND.replace("fixed, weight)", "fixed)", 1), {"metric": "odd"}),
    "metric: wrong signature of prepare": (
        SOUND.replace("def __call__", "def prepare(self): pass\n    def __call__", 1),
        {"metric": "odd"},
    ),
    "metric: wrong signature, inherited": (
        SOUND.replace("fixed, weight)", "fixed)", 1).replace("class Odd(rf.Metric)", "class Base(rf.Metric)").replace(
            "@rf.hookimpl", "class Odd(Base): name = 'odd'\n@rf.hookimpl"
        ),
        {"metric": "odd"},
    ),
    "solver: wrong signature": (SOLVER.replace("fit(self, task)", "fit(self)").format("pass"), {"solver": "odd"}),
    "start: wrong signature": (START.replace("find(self, task)", "find(self)").format("pass"), {"init": "odd"}),
    "metric: fails when made": (
        SOUND.replace('name = "odd"', 'name = "odd"\n    def __init__(self): self.lost()'),
        {"metric": "odd"},
    ),
    **{
        f"solver: {line}": (SOLVER.format(line), {"solver": "odd"})
        for line in ("return None", "return task.lost", "yield 1", "return 1, 2", "raise KeyError('x')")
    },
    "solver: check returns a number": (SOLVER.replace("return []", "return 3", 1).format("pass"), {"solver": "odd"}),
    **{
        f"start: {line}": (START.format(line), {"init": "odd"})
        for line in ("return None", "return [3]", "return []", "return task.lost", "raise KeyError('x')")
    },
}  # fmt: skip


def image(shift: int = 0) -> rf.Image:
    """A smooth picture ``[1, 32, 32]``, shifted by so many pixels."""
    data = torch.rand((1, 44, 44), generator=torch.Generator().manual_seed(0))
    data = torch.nn.functional.avg_pool2d(data, 7, 1)
    return rf.Image(data[:, shift : 32 + shift, shift : 32 + shift].clone(), rf.Grid((32, 32)))


def bits() -> bytes:
    """The map of a small registration that names no plug-in: of points, which takes a twentieth of a second."""
    points = 100 * torch.rand((40, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = rf.register(rf.PointSet(points), rf.PointSet(points + 1), init="identity", transform="rigid")
    return found.affine.matrix.numpy().tobytes()


def bits_of_images() -> bytes:
    """Likewise of two pictures."""
    found = rf.register(image(), image(2), init="identity", transform="rigid")
    return found.affine.matrix.numpy().tobytes()


@pytest.fixture(scope="module")
def before() -> bytes:
    return bits()


@pytest.fixture(scope="module")
def before_of_images() -> bytes:
    return bits_of_images()


def test_there_are_forty() -> None:
    assert len(LEFT_OUT) + len(REFUSED) >= 40


@pytest.mark.parametrize("case", LEFT_OUT)
def test_named_once_and_left_out(install: Install, before: bytes, case: str) -> None:
    install(LEFT_OUT[case])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert bits() == before
    said = [str(w.message) for w in caught if issubclass(w.category, plugins.PluginWarning)]
    assert len(said) == 1, said
    assert "odd-pack 0.3" in said[0]
    assert "\n" not in said[0]
    assert "efect" not in said[0]


@pytest.mark.parametrize("case", ["import sets the dtype", "solver rates 7"])
def test_images_are_registered_as_without_it(install: Install, before_of_images: bytes, case: str) -> None:
    install(LEFT_OUT[case])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert bits_of_images() == before_of_images


@pytest.mark.parametrize("case", REFUSED)
def test_named_once_and_refused(install: Install, before: bytes, case: str) -> None:
    source, settings = REFUSED[case]
    install(source)
    named: dict[str, Any] = {"init": "identity"} | settings
    with pytest.raises(ValueError, match=r"odd-pack 0\.3|the metric 'odd'|the start 'odd'") as caught:
        rf.register(image(), image(2), config=rf.Config(transform="rigid", **named))
    assert "\n" not in str(caught.value)
    assert "efect" not in str(caught.value)
    assert bits() == before
