"""Writes a new plug-in package: a working metric and a working adapter, their tests, and the packaging files."""

from __future__ import annotations

import importlib.util
import keyword
import os
import re
import shutil
import tempfile
from pathlib import Path
from string import Template

from .. import plugins

NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")
LONGEST = 60
"""Largest number of characters of a name, because it becomes the name of folders and modules."""


def new_plugin(name: str, parent: Path) -> Path:
    """Write the package ``name`` into the folder ``parent / name``, complete or not at all; returns that folder.

    Raises ValueError for a name that pip or Python cannot use, or that another module, adapter or metric has;
    FileExistsError where the folder exists; NotADirectoryError where ``parent`` is not a folder.
    """
    if not NAME.fullmatch(name) or len(name) > LONGEST:
        raise ValueError(
            f"wanted a name of small letters and digits, with - or _ between words, of at most {LONGEST} characters, "
            f"got {name!r}; choose another, e.g. 'my-stain'"
        )
    module = name.replace("-", "_")
    if keyword.iskeyword(module) or keyword.issoftkeyword(module) or module in ("test", "tests"):
        raise ValueError(f"wanted a name that Python does not use itself, got {name!r}; choose another")
    if not parent.is_dir():
        raise NotADirectoryError(f"wanted a folder to write into, got {str(parent)!r}; make it first")
    target = parent / name
    if os.path.lexists(target):
        raise FileExistsError(
            f"wanted to write a new folder {str(target)!r}, got one that is there; choose another name"
        )
    if importlib.util.find_spec(module) is not None:
        raise ValueError(f"wanted a name of your own, got {name!r}, but there is a module {module}; choose another")
    taken = [entry.provider for entry in (*plugins.adapters(), *plugins.metrics()) if entry.name == module]
    if taken:
        raise ValueError(f"wanted a name that no adapter or metric bears, got {name!r} (of {taken[0]}); choose another")
    words = {
        "name": name,
        "module": module,
        "title": "".join(part.capitalize() for part in module.split("_")),
        "suffix": "." + module.replace("_", ""),
    }
    aside = Path(tempfile.mkdtemp(prefix=f".{name}-", suffix=".partial", dir=parent))
    try:
        for path, text in FILES.items():
            file = aside / name / Template(path).substitute(words)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(Template(text).substitute(words), encoding="utf-8")
        (aside / name).rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


FILES: dict[str, str] = {
    "pyproject.toml": """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "$name"
version = "0.1.0"
description = "A metric and an adapter for regframe"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["regframe"]

[project.optional-dependencies]
test = ["pytest>=8"]

[project.entry-points.regframe]
$module = "$module"

[tool.setuptools]
package-dir = {"" = "src"}
py-modules = ["$module"]

[tool.pytest.ini_options]
testpaths = ["tests"]
pythonpath = ["src"]
""",
    "README.md": """\
# $name

A plug-in for regframe: the metric `$module`, the mean absolute difference of intensities, and the adapter `$module`, positions in
`$suffix` files. Keep the one you need, delete the other with its hook and its tests, and put your own in its place.

    pip install -e ".[test]"
    regframe plugins                     # lists what is in here
    regframe plugins --check $name
    python -m pytest

    regframe register fixed.png moving.png -o run --metric $module
    regframe info positions$suffix
""",
    "src/$module.py": '''\
"""A metric and an adapter for regframe."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import regframe

SUFFIX = "$suffix"
HEADER = "$module 1\\n"
"""The first line of a file, which tells it from others."""


# ---- a metric -------------------------------------------------------------------------------------------------------


class ${title}Metric(regframe.Metric):
    """Mean absolute difference of intensities, over the fixed image's deviation; ``blunt`` rounds off its corner at 0."""

    name = "$module"

    def __init__(self, blunt: float = 0.01) -> None:
        if isinstance(blunt, bool) or not isinstance(blunt, (int, float)) or not (math.isfinite(blunt) and blunt > 0):
            raise ValueError(f"wanted a positive number to blunt by, got {blunt!r}")
        self.blunt = float(blunt)
        self.scale = 1.0

    def prepare(self, fixed: regframe.Image, moving: regframe.Image) -> None:  # type: ignore[override]
        """Take the fixed image's standard deviation, once per pyramid level."""
        self.scale = float(fixed.data.double().std(correction=0)) or 1.0

    def __call__(self, warped: Tensor, fixed: Tensor, weight: Tensor) -> Tensor:
        """Weighted mean over pixels and channels; 0 for images that are the same."""
        if warped.shape != fixed.shape:
            raise ValueError(
                f"wanted moving and fixed images of one shape, got {list(warped.shape)} and {list(fixed.shape)}; choose channels"
            )
        difference = (warped - fixed) / self.scale  # [C, *S]
        blunted = ((difference**2 + self.blunt**2).sqrt() - self.blunt).mean(dim=0)  # [*S]
        return (blunted * weight).sum() / weight.sum().clamp_min(1e-30)


@regframe.hookimpl
def regframe_metrics() -> list[type[regframe.Metric]]:
    """The metrics of this plug-in."""
    return [${title}Metric]


# ---- an adapter -----------------------------------------------------------------------------------------------------


class ${title}Adapter(regframe.Adapter):
    """Positions in $suffix files: a first line ``$module 1``, then x, y and a name per line; ``unit`` says what they are in."""

    name = "$module"

    def __init__(self, unit: str = "µm") -> None:
        self.unit = regframe.canonical_unit(unit)  # ValueError for a word that is no unit

    def matches(self, source: Any) -> float:
        """0.9 for a file that begins with the header, 0.1 for the suffix alone."""
        if not isinstance(source, (str, os.PathLike)) or not str(source).endswith(SUFFIX) or not Path(source).is_file():
            return 0.0
        with Path(source).open("rb") as file:
            return 0.9 if file.read(len(HEADER)) == HEADER.encode() else 0.1

    def open(self, source: Any) -> regframe.PointSet:
        """The positions, (y, x) as everywhere in regframe, with the names as a table."""
        path = Path(source)
        head, *lines = path.read_text(encoding="utf-8").splitlines() or [""]
        if head != HEADER.strip():
            raise ValueError(f"wanted a file that begins with {HEADER.strip()!r}, got {path.name}; is it another format?")
        rows, names = [], []
        for number, line in enumerate(lines, start=2):
            cells = line.split(maxsplit=2)
            try:
                x, y = float(cells[0]), float(cells[1])
            except (ValueError, IndexError):
                x = math.nan
            if len(cells) < 3 or not (math.isfinite(x) and math.isfinite(y)):
                raise ValueError(f"wanted x, y and a name, got {line!r} in line {number} of {path.name}; mend it") from None
            rows.append([y, x])
            names.append(cells[2])
        coords = torch.tensor(rows, dtype=torch.float64).reshape(-1, 2)
        return regframe.PointSet(coords, self.unit, table={"name": names}, name=path.name)

    def apply(self, source: Any, transform: regframe.Transform, grid: regframe.Grid | None = None) -> regframe.PointSet:
        """The same positions in the same order, carried by ``transform``; ``grid`` plays no part."""
        return regframe.move_points(self.open(source), transform)

    def save(self, data: regframe.Image | regframe.PointSet, path: Path) -> None:
        """Write the positions, aside and then renamed."""
        if not isinstance(data, regframe.PointSet) or data.ndim != 2:
            raise ValueError(f"wanted points of two components to write, got {type(data).__name__}; use another adapter")
        names = data.table.get("name") or [str(i) for i in range(len(data))]
        lines = [f"{x!r} {y!r} {name}\\n" for (y, x), name in zip(data.coords.tolist(), names, strict=True)]
        path = Path(path)
        handle, aside = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.writelines([HEADER, *lines])
            os.replace(aside, path)
        except BaseException:
            os.unlink(aside)
            raise

    @classmethod
    def sample(cls, folder: Path) -> Path:
        """A small file, for `regframe plugins --check`."""
        path = Path(folder) / f"sample{SUFFIX}"
        path.write_text(HEADER + "1.5 2.5 first\\n3 4.25 second one\\n7 5 third\\n", encoding="utf-8")
        return path


@regframe.hookimpl
def regframe_adapters() -> list[type[regframe.Adapter]]:
    """The adapters of this plug-in."""
    return [${title}Adapter]
''',
    "tests/test_$module.py": '''\
"""The checks that every plug-in of regframe should pass, and what is special about this one."""

import pytest
import torch

import regframe
from regframe.testing import AdapterTests, MetricTests

from $module import ${title}Adapter, ${title}Metric


class TestMetric(MetricTests):
    bad_options = ({"blunt": 0.0}, {"blunt": -1})

    def make(self):
        return ${title}Metric()


class TestAdapter(AdapterTests):
    bad_options = ({"unit": "parsec"},)

    def make(self):
        return ${title}Adapter()


def test_value_of_a_known_difference():
    metric = ${title}Metric(blunt=1e-9)
    value = metric(torch.ones(1, 4, 5), torch.zeros(1, 4, 5), torch.ones(4, 5))
    assert value.item() == pytest.approx(1.0)


def test_positions_are_y_and_x(tmp_path):
    points = ${title}Adapter().open(${title}Adapter.sample(tmp_path))
    assert points.coords[0].tolist() == [2.5, 1.5]
    assert isinstance(points, regframe.PointSet)
''',
}
"""Content of the files, by path; ``$name``, ``$module``, ``$title`` and ``$suffix`` are replaced."""
