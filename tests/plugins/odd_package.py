"""A stranger's package for tests: a module made of source text, offered through a fake entry point."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest

from regframe import plugins

HEAD = """
import numpy as np, torch, regframe as rf
from regframe import Image, Grid, PointSet
"""


@dataclass(frozen=True)
class Distribution:
    name: str
    version: str


@dataclass(frozen=True)
class FakePoint:
    """An entry point whose module is executed from source text."""

    name: str
    source: str
    dist: Distribution | None = Distribution("odd-pack", "0.3")
    value: str = "odd_pack"

    def load(self) -> Any:
        made = ModuleType(self.value)
        sys.modules[self.value] = made
        exec(compile(HEAD + self.source, f"{self.value}.py", "exec"), made.__dict__)
        return made


Install = Callable[[str], None]


def offered(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """For a fixture: offers a stranger's module, given as source text, beside what is installed."""
    real = plugins._entry_points()
    monkeypatch.delenv(plugins.DISABLE, raising=False)

    def put(source: str) -> None:
        monkeypatch.setattr(plugins, "_entry_points", lambda: (*real, FakePoint("odd", source)))
        plugins.refresh()

    yield put
    sys.modules.pop("odd_pack", None)
    monkeypatch.undo()
    plugins.refresh()
