"""Writes a new plug-in package: working classes of the kinds asked for, their tests, and the packaging files."""

from __future__ import annotations

import importlib.util
import keyword
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from .. import plugins

DEFAULT = ("metric", "adapter")
"""Kinds of classes of a new package where none are named: the two that most packages are about."""
NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")
LONGEST = 60
"""Largest number of characters of a name, because it becomes the name of folders and modules."""


def new_plugin(name: str, parent: Path, kinds: Sequence[str] = DEFAULT) -> Path:
    """Write the package ``name`` into the folder ``parent / name``, complete or not at all; returns that folder.

    Args:
        name: of the package, and of the classes in it.
        parent: the folder to write into.
        kinds: of `plugins.KINDS`, what the package provides.

    Raises ValueError for a kind that there is not, and for a name that pip or Python cannot use, or that another module or class
    of a plug-in has; FileExistsError where the folder exists; NotADirectoryError where ``parent`` is not a folder.
    """
    unknown = sorted(set(kinds) - set(PARTS))
    if unknown or not kinds:
        raise ValueError(f"wanted kinds out of {', '.join(PARTS)}, got {', '.join(unknown) or 'none'}")
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
    taken = [entry.provider for kind in plugins.KINDS for entry in plugins.entries(kind) if entry.name == module]
    if taken:
        raise ValueError(
            f"wanted a name that no class of a plug-in bears, got {name!r} (of {taken[0]}); choose another"
        )
    words = {
        "name": name,
        "module": module,
        "title": "".join(part.capitalize() for part in module.split("_")),
        "suffix": "." + module.replace("_", ""),
    }
    aside = Path(tempfile.mkdtemp(prefix=f".{name}-", suffix=".partial", dir=parent))
    try:
        for path, text in files([kind for kind in PARTS if kind in kinds]).items():
            file = aside / name / Template(path).substitute(words)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(Template(text).substitute(words), encoding="utf-8")
        (aside / name).rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


@dataclass(frozen=True)
class Part:
    """What one kind of class adds to a new package; `Template` texts in which the names of the package are put.

    Args:
        what: the kind with its article.
        does: what the class in the package does.
        imports: lines of imports of the module, without regframe.
        code: the class and its hook.
        tried: how it is used on the command line.
        test_imports: lines of imports of the tests, without those of the package.
        kit: name of the kit in `regframe.testing`.
        tests: the tests.
    """

    what: str
    does: str
    imports: tuple[str, ...]
    code: str
    tried: str
    test_imports: tuple[str, ...]
    kit: str
    tests: str


STANDARD = ("math", "os", "tempfile", "collections.abc", "pathlib", "typing")
"""Modules of Python's own library that the parts import: they stand first."""


def _imports(lines: Iterable[str]) -> str:
    """Lines of imports, each once: those of Python's own library first, plain ones before those from a module."""
    own = sorted(
        {line for line in lines if line.split()[1].partition(".")[0] in {s.partition(".")[0] for s in STANDARD}}
    )
    others = sorted(set(lines) - set(own))
    blocks = [sorted(block, key=lambda line: line.startswith("from")) for block in (own, others) if block]
    return "".join("\n".join(block) + "\n\n" for block in blocks)


def files(kinds: Sequence[str]) -> dict[str, str]:
    """Contents of the files of a package with classes of these kinds, by path."""
    parts = [PARTS[kind] for kind in kinds]
    what = " and ".join(part.what for part in parts)
    title = what[0].upper() + what[1:]
    several = "\nKeep what you need, delete the rest with its hook and its tests, and put your own in its place.\n"
    readme = [
        "# $name\n\nA plug-in for regframe. " + ". ".join(part.does for part in parts) + ".\n",
        (several if len(parts) > 1 else "") + "\n",
        '    pip install -e ".[test]"\n    regframe plugins                     # lists what is in here\n',
        "    regframe plugins --check $name\n    python -m pytest\n\n",
        *(f"    {part.tried}\n" for part in parts),
    ]
    source = [
        f'"""{title} for regframe."""\n\nfrom __future__ import annotations\n\n',
        _imports([i for p in parts for i in p.imports]),
    ]
    kits = ", ".join(sorted(part.kit for part in parts))
    classes = ", ".join(sorted("$${title}" + kind.capitalize() for kind in kinds)).replace("$$", "$")
    checks = "\n\n".join(part.tests for part in parts)
    tests = [
        '"""The checks that every plug-in of regframe should pass, and what is special about this one."""\n\n',
        _imports([i for p in parts for i in p.test_imports]),
        "import regframe\n" if "regframe." in checks else "",
        f"from regframe.testing import {kits}\n\nfrom $module import {classes}\n",
    ]
    return {
        "pyproject.toml": PYPROJECT.replace("$what", what[0].upper() + what[1:]),
        "README.md": "".join(readme),
        "src/$module.py": "".join(source) + "import regframe\n\n" + "\n\n".join(part.code for part in parts),
        "tests/test_$module.py": "".join(tests) + "\n\n" + checks,
    }


PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "$name"
version = "0.1.0"
description = "$what for regframe"
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
"""

PARTS: dict[str, Part] = {
    "metric": Part(
        "a metric",
        "The metric `$module` is the mean absolute difference of intensities",
        ("import math", "from torch import Tensor"),
        '''\
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
''',
        "regframe register fixed.png moving.png -o run --metric $module",
        ("import pytest", "import torch"),
        "MetricTests",
        """\
class TestMetric(MetricTests):
    bad_options = ({"blunt": 0.0}, {"blunt": -1})

    def make(self):
        return ${title}Metric()


def test_value_of_a_known_difference():
    metric = ${title}Metric(blunt=1e-9)
    value = metric(torch.ones(1, 4, 5), torch.zeros(1, 4, 5), torch.ones(4, 5))
    assert value.item() == pytest.approx(1.0)
""",
    ),
    "adapter": Part(
        "an adapter",
        "The adapter `$module` reads positions in `$suffix` files",
        (
            "import math",
            "import os",
            "import tempfile",
            "from pathlib import Path",
            "from typing import Any",
            "import torch",
        ),
        '''\
SUFFIX = "$suffix"
HEADER = "$module 1\\n"
"""The first line of a file, which tells it from others."""


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
        "regframe info positions$suffix",
        (),
        "AdapterTests",
        """\
class TestAdapter(AdapterTests):
    bad_options = ({"unit": "parsec"},)

    def make(self):
        return ${title}Adapter()


def test_positions_are_y_and_x(tmp_path):
    points = ${title}Adapter().open(${title}Adapter.sample(tmp_path))
    assert points.coords[0].tolist() == [2.5, 1.5]
    assert isinstance(points, regframe.PointSet)
""",
    ),
    "solver": Part(
        "a solver",
        "The solver `$module` registers point sets that are one shift apart",
        ("from typing import Any", "import torch"),
        '''\
class ${title}Solver(regframe.Solver):
    """Point sets that are one shift apart: by their middles, then by pairs that are nearest both ways."""

    name = "$module"
    models = ("rigid",)

    def __init__(self, rounds: int = 10) -> None:
        if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
            raise ValueError(f"wanted a whole number of rounds of at least 1, got {rounds!r}")
        self.rounds = rounds

    def matches(self, fixed: Any, moving: Any) -> float:
        """Less than regframe's own solver of points: it is used where it is named (``--solver $module``)."""
        return 0.1 if isinstance(fixed, regframe.PointSet) and isinstance(moving, regframe.PointSet) else 0.0

    def check(self, task: regframe.Task) -> list[regframe.Finding]:
        """Sides of one dimension and unit."""
        if task.fixed.ndim != task.moving.ndim or task.fixed.unit != task.moving.unit:
            raise ValueError(
                f"wanted both sides of one dimension and unit, got {task.fixed.ndim}D in {task.fixed.unit} and "
                f"{task.moving.ndim}D in {task.moving.unit}; convert one"
            )
        return []

    def fit(self, task: regframe.Task) -> regframe.Fitted:
        """The shift."""
        fixed, moving = task.fixed.coords, task.moving.coords
        shift = fixed.mean(dim=0) - moving.mean(dim=0)
        for _ in range(self.rounds):
            away = torch.cdist(moving + shift, fixed)
            near, back = away.argmin(dim=1), away.argmin(dim=0)
            both = back[near] == torch.arange(len(moving))
            shift = (fixed[near] - moving)[both].mean(dim=0)
        matrix = torch.eye(fixed.shape[1] + 1, dtype=torch.float64)
        matrix[:-1, -1] = shift
        found = regframe.Affine(matrix, task.moving.unit, task.fixed.unit)
        residual = float(away.amin(dim=1)[both].median())
        figures = {"model": "rigid", "paired": float(both.double().mean()), "residual": residual}
        grids = regframe.canvas(task.fixed), regframe.canvas(task.moving)
        return regframe.Fitted(found, found, *grids, figures=figures, history=[])

    def judge(self, fitted: regframe.Fitted) -> list[regframe.Finding]:
        """Half of the points have to have a partner."""
        paired = fitted.figures["paired"]
        return [regframe.Finding("fail", "Most points have no partner.", paired, 0.5)] if paired < 0.5 else []

    @classmethod
    def sample(cls) -> regframe.Known:
        """A small pair, for `regframe plugins --check`."""
        generator = torch.Generator().manual_seed(0)
        moving = regframe.PointSet(100 * torch.rand((50, 2), generator=generator, dtype=torch.float64), "µm")
        matrix = torch.tensor([[1.0, 0, 7], [0, 1, -4], [0, 0, 1]], dtype=torch.float64)
        known = regframe.Affine(matrix, "µm", "µm")
        return regframe.Known(regframe.move_points(moving, known), moving, known)


@regframe.hookimpl
def regframe_solvers() -> list[type[regframe.Solver]]:
    """The solvers of this plug-in."""
    return [${title}Solver]
''',
        "regframe register fixed.csv moving.csv -o run --solver $module",
        ("import pytest", "import torch"),
        "SolverTests",
        """\
class TestSolver(SolverTests):
    bad_options = ({"rounds": 0}, {"rounds": True})

    def make(self):
        return ${title}Solver()


def test_sides_of_two_units_are_refused():
    points = regframe.PointSet(torch.zeros((4, 2)), "µm"), regframe.PointSet(torch.zeros((4, 2)), "mm")
    with pytest.raises(ValueError, match="of one dimension and unit"):
        ${title}Solver().check(regframe.Task(*points, None, "auto", regframe.Config()))
""",
    ),
    "start": Part(
        "a start",
        "The start `$module` reads a shift from a file",
        ("from pathlib import Path", "from typing import Any", "import torch"),
        '''\
class ${title}Start(regframe.Start):
    """A shift read from a file: two numbers, along y and x, in the unit of the fixed side."""

    name = "$module"

    def __init__(self, path: str) -> None:
        self.path = str(path)

    def find(self, task: regframe.Task) -> list[regframe.Candidate]:
        """The shift as a matrix, moving → fixed, (y, x)."""
        words = Path(self.path).read_text(encoding="utf-8").split()
        try:
            y, x = map(float, words)
        except ValueError:
            raise ValueError(f"wanted two numbers in {self.path}, got {' '.join(words)[:40]!r}; write 'y x'") from None
        ndim = getattr(task.moving, "ndim", None) or task.moving.grid.ndim
        if ndim != 2:
            raise ValueError(f"wanted sides of two dimensions for a shift along y and x, got {ndim}; take another start")
        matrix = torch.tensor([[1.0, 0.0, y], [0.0, 1.0, x], [0.0, 0.0, 1.0]], dtype=torch.float64)
        return [regframe.Candidate(matrix, words=f"the shift that {Path(self.path).name} states")]

    @classmethod
    def sample(cls, folder: Path) -> tuple[dict[str, Any], regframe.Known]:
        """Options and a pair, for `regframe plugins --check`."""
        path = Path(folder) / "shift.txt"
        path.write_text("3.5 -2\\n", encoding="utf-8")
        image = regframe.Image(torch.rand((1, 20, 24)), regframe.Grid((20, 24)))
        matrix = torch.tensor([[1.0, 0, 3.5], [0, 1, -2], [0, 0, 1]], dtype=torch.float64)
        return {"path": str(path)}, regframe.Known(image, image, regframe.Affine(matrix))


@regframe.hookimpl
def regframe_starts() -> list[type[regframe.Start]]:
    """The starts of this plug-in."""
    return [${title}Start]
''',
        "regframe register fixed.png moving.png -o run --init $module --init-set path=shift.txt",
        ("import pytest", "import torch"),
        "StartTests",
        """\
class TestStart(StartTests):
    @pytest.fixture(autouse=True)
    def files(self, tmp_path):
        self.options, self.known = ${title}Start.sample(tmp_path)

    def make(self):
        return ${title}Start(**self.options)

    def pair(self):
        return self.known


def test_a_file_of_words_is_refused(tmp_path):
    (tmp_path / "shift.txt").write_text("left a bit")
    image = regframe.Image(torch.rand((1, 20, 24)), regframe.Grid((20, 24)))
    with pytest.raises(ValueError, match="wanted two numbers"):
        ${title}Start(tmp_path / "shift.txt").find(regframe.Task(image, image, None, "auto", regframe.Config()))
""",
    ),
    "format": Part(
        "a format of maps",
        "The format `$module` keeps affine maps as text in `$suffix` files",
        ("from pathlib import Path", "from typing import Any", "import torch"),
        '''\
class ${title}Format(regframe.MapFormat):
    """$suffix: an affine map as text, rows of numbers from moving to fixed positions, (z,) y, x."""

    name = "$module"
    suffixes = ("$suffix",)

    def __init__(self, digits: int = 17) -> None:
        if isinstance(digits, bool) or not isinstance(digits, int) or not 1 <= digits <= 17:
            raise ValueError(f"wanted 1 to 17 digits, got {digits!r}")
        self.digits = digits

    def write(self, result: Any, path: Path, *, to: Any, unit: str, tolerance: float) -> regframe.Written:
        """Write the map; one that bends is refused."""
        parts = result.transform.parts()
        if len(parts) != 1 or not isinstance(parts[0], regframe.Affine):
            raise ValueError(f"wanted an affine map for {path.name}, got one that bends; fit with --transform affine")
        rows = parts[0].matrix.tolist()
        path.write_text("".join(" ".join(f"{v:.{self.digits}g}" for v in row) + "\\n" for row in rows), encoding="ascii")
        units = (result.fixed_grid.unit, result.moving_grid.unit)
        return regframe.Written(self.name, (path,), "fixed", units, 0.0)

    def read(self, path: Path, fixed: Any, moving: Any, *, to: Any, unit: str) -> regframe.Transform:
        """The map in the file."""
        if fixed is None or moving is None:
            raise ValueError(f"wanted the canvases of both sides to read {path.name}, got none; give --fixed and --moving")
        try:
            rows = [[float(word) for word in line.split()] for line in path.read_text(encoding="ascii").splitlines()]
            matrix = torch.tensor(rows, dtype=torch.float64)
        except ValueError:  # UnicodeDecodeError is one
            raise ValueError(f"wanted rows of as many numbers in {path.name}, got something else; is it whole?") from None
        size = fixed.ndim + 1
        if tuple(matrix.shape) != (size, size) or matrix[-1].tolist() != [0.0] * (size - 1) + [1.0]:
            raise ValueError(f"wanted {size} rows of {size} numbers, the last 0 … 0 1, in {path.name}, got {matrix.tolist()}")
        return regframe.Affine(matrix, moving.unit, fixed.unit)


@regframe.hookimpl
def regframe_formats() -> list[type[regframe.MapFormat]]:
    """The formats of maps of this plug-in."""
    return [${title}Format]
''',
        "regframe export run -o map$suffix",
        ("import pytest",),
        "FormatTests",
        """\
class TestFormat(FormatTests):
    bad_options = ({"digits": 0}, {"digits": 99})

    def make(self):
        return ${title}Format()


def test_the_canvases_are_asked_for(tmp_path):
    (tmp_path / "a$suffix").write_text("1 0 0\\n0 1 0\\n0 0 1\\n")
    with pytest.raises(ValueError, match="canvases of both sides"):
        ${title}Format().read(tmp_path / "a$suffix", None, None, to="fixed", unit="mm")
""",
    ),
}
"""Parts of a package by kind, in the order in which they stand in its module."""
