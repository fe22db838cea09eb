"""A stranger's package for tests: a module made of source text, offered through a fake entry point."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

import regframe as rf
from regframe import plugins
from regframe.report.results import write_run

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


@dataclass(frozen=True)
class _Installed:
    """An entry point of an installed package whose name and version are read once, not at every search."""

    point: Any
    dist: Distribution

    def __getattr__(self, name: str) -> Any:
        return getattr(self.point, name)


@functools.cache
def _installed() -> tuple[_Installed, ...]:
    points = plugins._entry_points()
    return tuple(_Installed(point, Distribution(point.dist.name, point.dist.version)) for point in points)  # type: ignore[union-attr]


Install = Callable[[str], None]


def offered(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """For a fixture: offers a stranger's module, given as source text, beside what is installed."""
    real = _installed()
    monkeypatch.delenv(plugins.DISABLE, raising=False)

    def put(source: str) -> None:
        monkeypatch.setattr(plugins, "_entry_points", lambda: (*real, FakePoint("odd", source)))
        plugins.refresh()

    yield put
    sys.modules.pop("odd_pack", None)
    monkeypatch.undo()
    plugins.refresh()


def saved_run(folder: Path) -> Path:
    """The folder of a run of two small pictures, which lie beside it as ``fixed.png`` and ``moving.png``."""
    data = torch.nn.functional.avg_pool2d(torch.rand((1, 52, 52), generator=torch.Generator().manual_seed(0)), 5, 1)
    pixels = (255 * (data[0] - data.min()) / (data.max() - data.min())).numpy().astype(np.uint8)
    for side in ("fixed", "moving"):
        PIL.Image.fromarray(pixels).save(folder / f"{side}.png")
    image = rf.Image.from_array(pixels)
    found = rf.register(image, image, init="identity", transform="rigid")
    run = {side: {"path": folder / f"{side}.png", "adapter": "image", "options": {}} for side in ("fixed", "moving")}
    write_run(folder / "out", found, None, run)
    return folder / "out"
