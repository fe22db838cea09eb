"""What results and clusters know of the strangers' plug-ins that took part."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from odd_package import Install, offered

import regframe as rf
from regframe.batch import pools

SOURCE = """
class Odd(rf.Metric):
    name = "odd"
    def __init__(self, power=2.0):
        self.power = power
    def __call__(self, warped, fixed, weight):
        return (weight * (warped - fixed).abs() ** self.power).mean()
class Read(rf.Adapter):
    name = "odd"
    def matches(self, source): return float(str(source).endswith(".odd"))
    def open(self, source): return Image(torch.load(source, weights_only=True), Grid((48, 48)))
    def apply(self, source, transform, grid=None): return self.open(source)
    def save(self, data, path): pass
class Begin(rf.Start):
    name = "odd"
    def find(self, task): return [rf.Candidate(torch.eye(3, dtype=torch.float64))]
@rf.hookimpl
def regframe_metrics(): return [Odd]
@rf.hookimpl
def regframe_adapters(): return [Read]
@rf.hookimpl
def regframe_starts(): return [Begin]
"""


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    yield from offered(monkeypatch)


def image() -> rf.Image:
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.avg_pool2d(torch.rand((1, 52, 52), generator=generator), 5, 1)
    return rf.Image(x, rf.Grid((48, 48)))


@pytest.mark.parametrize("part", ["metric", "start", "adapter", "none"])
def test_versions_name_the_strangers_that_took_part(install: Install, tmp_path: Path, part: str) -> None:
    install(SOURCE)
    torch.save(image().data, tmp_path / "a.odd")
    result = rf.register(
        tmp_path / "a.odd" if part == "adapter" else image(),
        image(),
        metric="odd" if part == "metric" else "ssd",
        init="odd" if part == "start" else "identity",
        transform="rigid",
    )
    versions = result.metrics["versions"]
    assert versions.get("odd-pack") == (None if part == "none" else "0.3")
    assert versions["torch"] == torch.__version__


def test_options_of_a_metrics_instance_are_recorded(install: Install) -> None:
    install(SOURCE)
    made = type(rf.metric("odd"))(power=1.5)  # type: ignore[call-arg]
    config = rf.register(image(), image(), metric=made, init="identity", transform="rigid").config
    assert (config.metric, config.metric_options) == ("odd", {"power": 1.5})


def points(*named: tuple[str, str]) -> Callable[..., Any]:
    """Entry points of the group ``regframe``, of packages with these names and versions."""
    found = [SimpleNamespace(name=f"{n}-point", dist=SimpleNamespace(name=n, version=v)) for n, v in named]
    return lambda group: found


@pytest.mark.parametrize(
    ("there", "told"),
    [
        ([], r"wanted the plug-in odd-pack 0.3 on every worker, got none at tcp://w; .*DISABLE_PLUGINS=odd-pack-point"),
        ([("odd-pack", "0.2")], r"odd-pack 0.3 on every worker, got odd-pack 0.2 at tcp://w"),
        ([("odd-pack", "0.3"), ("other", "1")], None),
    ],
)
def test_a_worker_without_a_plugin_is_found_first(
    monkeypatch: pytest.MonkeyPatch, there: Any, told: str | None
) -> None:
    monkeypatch.delenv("REGFRAME_DISABLE_PLUGINS", raising=False)
    monkeypatch.setattr(importlib.metadata, "entry_points", points(("regframe", "1"), ("odd-pack", "0.3")))
    here = pools.strangers_here()
    assert here == {"odd-pack": ("0.3", "odd-pack-point")}
    monkeypatch.setattr(importlib.metadata, "entry_points", points(*there))
    answers = {pools.version: {"tcp://w": pools.version()}, pools.strangers_here: {"tcp://w": pools.strangers_here()}}
    monkeypatch.setattr(importlib.metadata, "entry_points", points(("odd-pack", "0.3")))
    pool = object.__new__(pools.Cluster)
    pool._client = SimpleNamespace(run=lambda function, on_error: answers[function])
    if told is None:
        pool._check_versions()
        return
    with pytest.raises(ValueError, match=told):
        pool._check_versions()


def test_a_disabled_plugin_need_not_be_on_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "entry_points", points(("odd-pack", "0.3")))
    monkeypatch.setenv("REGFRAME_DISABLE_PLUGINS", "odd-pack-point")
    assert pools.strangers_here() == {}
