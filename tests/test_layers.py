"""Who may import whom: the table of docs/ARCHITECTURE.md, enforced on every import as it is written.

Imports inside functions and under TYPE_CHECKING count like all others, and there is no list of exemptions.
"""

from __future__ import annotations

import ast
import graphlib
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "regframe"
PLUGINS = ROOT / "plugins"

ROWS: dict[int, set[str]] = {
    0: {"_C", "_host"},
    1: {
        "hookspecs",
        "config",
        "devices",
        "display",
        "gate",
        "later",
        "machine",
        "reference",
        "ops",
        "remote",
        "strangers",
        "versions",
    },
    2: {"data", "maps"},
    3: {"confidence", "contracts", "plugins", "verdict"},
    4: {"fit"},
    5: {"starts", "result"},
    6: {"solvers", "slides", "io", "evaluation"},
    7: {"composition", "correction", "registration", "formats", "stack", "group", "pieces", "mosaic"},
    8: {"report", "batch", "testing", "view", "cli", "__main__"},
}
"""Rooms by row: a module imports from its own row and from those above."""
ROW = {room: row for row, rooms in ROWS.items() for room in rooms}

FILES = {"csv", "gzip", "io", "json", "pathlib", "shutil", "tempfile", "tifffile", "yaml", "zarr", "PIL", "imagecodecs"}
"""What a module of row 4 or 5 may not use: it never sees a file."""


@dataclass(frozen=True)
class Import:
    """One name that a module imports.

    Args:
        module: absolute name of what is imported: a module, or a name in one.
        line: where it stands.
        lazy: whether it stands inside a function.
    """

    module: str
    line: int
    lazy: bool


def imports_of(path: Path, package: str) -> Iterator[Import]:
    """All that a module of ``package`` imports, in functions and under TYPE_CHECKING too."""

    def walk(node: ast.AST, lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, lazy)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            for alias in node.names:
                yield Import(f"{module}.{alias.name}", node.lineno, lazy)
        inside = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), False)


def modules(folder: Path, package: str) -> Iterator[tuple[Path, str]]:
    """Every Python file below ``folder`` with the dotted name of the package it lies in."""
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).parent.parts
        if not {"build", "__pycache__"} & set(parts):
            yield path, ".".join([package, *parts])


def name_of(path: Path, package: str) -> str:
    """The dotted name of a module."""
    return package if path.stem == "__init__" else f"{package}.{path.stem}"


def edges(folder: Path, package: str) -> Iterator[tuple[str, str, Import]]:
    """Pairs of modules below ``folder``, importer and imported, by their dotted names."""
    found = list(modules(folder, package))
    names = {name_of(path, where) for path, where in found} | {f"{package}._C", f"{package}._host"}
    for path, where in found:
        importer = name_of(path, where)
        for each in imports_of(path, where):
            target = each.module  # a module, or a name in a module, or a public name of the package
            while target and target not in names:
                target = target.rpartition(".")[0]
            if target and target != importer:
                yield importer, target, each


def room(module: str) -> str:
    """The room of a module of the core: the part of its name after ``regframe``."""
    return module.split(".")[1] if "." in module else "__init__"


def test_every_module_has_a_row() -> None:
    found = {p.stem for p in CORE.glob("*.py")} | {p.parent.name for p in CORE.glob("*/__init__.py")}
    assert found - {"__init__"} <= set(ROW), "give the new module its row in ROWS"
    assert set(ROW) - {"_C", "_host"} <= found, "take the room that is gone out of ROWS"


def test_every_room_names_its_modules() -> None:
    wrong = [
        f"regframe/{folder.parent.name}/__init__.py does not name ``{path.stem}``"
        for folder in sorted(CORE.glob("*/__init__.py"))
        for path in sorted(folder.parent.glob("[a-z]*.py"))
        if f"``{path.stem}``" not in (ast.get_docstring(ast.parse(folder.read_text(encoding="utf-8"))) or "")
    ]
    assert not wrong


def test_rows() -> None:
    wrong = [
        f"{importer} (row {ROW[room(importer)]}) imports {target} (row {ROW[room(target)]}), line {found.line}"
        for importer, target, found in edges(CORE, "regframe")
        if "__init__" not in (room(importer), room(target)) and ROW[room(target)] > ROW[room(importer)]
    ]
    assert not wrong


def test_the_package_itself_is_imported_by_row_8_alone() -> None:
    wrong = [
        f"{importer}, line {found.line}"
        for importer, target, found in edges(CORE, "regframe")
        if target == "regframe" and ROW[room(importer)] < 8
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("folder", "package"),
    [(CORE, "regframe"), *((p.parent, p.parent.name) for p in sorted(PLUGINS.glob("*/__init__.py")))],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_no_circles(folder: Path, package: str) -> None:
    graph: dict[str, set[str]] = {}
    for importer, target, _ in edges(folder, package):
        graph.setdefault(importer, set()).add(target)
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the circle


def test_no_private_name_crosses_a_room() -> None:
    wrong = [
        f"{importer}, line {found.line}: {found.module}"
        for importer, target, found in edges(CORE, "regframe")
        if room(target) not in ("_C", "_host")
        and room(importer) != room(target)
        and any(_private(part) for part in found.module.split("."))
    ]
    for path, package in modules(CORE, "regframe"):
        own = room(name_of(path, package))
        aliases = {
            each.module.rpartition(".")[2]
            for each in imports_of(path, package)
            if each.module.startswith("regframe.") and room(each.module) != own
        }
        wrong += [
            f"{path.relative_to(ROOT)}, line {node.lineno}: {ast.unparse(node)}"
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Attribute)
            and _private(node.attr)
            and isinstance(node.value, ast.Name)
            and node.value.id in aliases - {"_C", "_host"}
        ]
    assert not wrong


def _private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in ("_C", "_host")


def test_the_package_imports_nothing_eagerly() -> None:
    eager = [found.module.partition(".")[0] for found in imports_of(CORE / "__init__.py", "regframe") if not found.lazy]
    assert set(eager) <= {"__future__", "importlib", "typing"}


def test_config_imports_pydantic_only() -> None:
    outside = {found.module.partition(".")[0] for found in imports_of(CORE / "config.py", "regframe")}
    assert outside - sys.stdlib_module_names == {"pydantic"}


@pytest.mark.parametrize("folder", ["fit", "starts", "solvers"])
def test_what_fits_sees_no_file(folder: str) -> None:
    wrong = [
        f"{path.name}, line {found.line}: {found.module}"
        for path, package in modules(CORE / folder, f"regframe.{folder}")
        for found in imports_of(path, package)
        if found.module.partition(".")[0] in FILES
    ]
    assert not wrong


def test_the_core_imports_no_plugin() -> None:
    names = {p.parent.name for p in PLUGINS.glob("*/__init__.py")} | {p.stem for p in PLUGINS.glob("example_*/**/*.py")}
    wrong = [
        f"{path.relative_to(ROOT)}, line {found.line}: {found.module}"
        for path, package in modules(CORE, "regframe")
        for found in imports_of(path, package)
        if found.module.partition(".")[0] in names
    ]
    assert not wrong


def test_the_core_looks_nothing_up_by_a_literal_name() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}, line {node.lineno}: {ast.unparse(node)}"
        for path, _ in modules(CORE, "regframe")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("plugins.metric", "plugins.adapter", "regframe.metric", "regframe.adapter")
        and any(isinstance(argument, ast.Constant) for argument in node.args)
    ]
    assert not wrong


def _public() -> dict[str, str]:
    tree = ast.parse((CORE / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "_HOME":
            return dict(ast.literal_eval(node.value))
    raise AssertionError("no table of public names in regframe/__init__.py")


def test_plugins_import_the_public_package_alone() -> None:
    names = {p.name for p in PLUGINS.iterdir() if p.is_dir()}
    public = {"__version__", "testing", *_public()}
    wrong = []
    for folder in sorted(PLUGINS / name for name in names):
        allowed = public | ({"_host"} if folder.name == "regframe_cells" else set())
        for path, package in modules(folder, folder.name):
            for found in imports_of(path, package):
                head, _, rest = found.module.partition(".")
                foreign = head in names - {folder.name}
                if foreign or (head == "regframe" and rest and rest.partition(".")[0] not in allowed):
                    wrong.append(f"{path.relative_to(ROOT)}, line {found.line}: {found.module}")
    assert not wrong


def test_the_walker_sees_what_it_should(tmp_path: Path) -> None:
    folder = tmp_path / "house"
    (folder / "room").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "data.py").write_text("from __future__ import annotations\n")
    (folder / "room" / "__init__.py").write_text("from .a import f\n")
    (folder / "room" / "a.py").write_text(
        "from typing import TYPE_CHECKING\nfrom .. import data\nif TYPE_CHECKING:\n    from ..data import Grid\n\n"
        "def f():\n    from .b import g\n    import house.data\n"
    )
    (folder / "room" / "b.py").write_text("from house.room.a import f as g\nfrom house import f\n")
    found = {(importer, target, each.lazy) for importer, target, each in edges(folder, "house")}
    assert found == {
        ("house.room", "house.room.a", False),
        ("house.room.a", "house.data", False),
        ("house.room.a", "house.room.b", True),
        ("house.room.a", "house.data", True),
        ("house.room.b", "house.room.a", False),
        ("house.room.b", "house", False),
    }
    with pytest.raises(graphlib.CycleError):
        test_no_circles(folder, "house")


def test_rows_do_not_overlap() -> None:
    assert all(not a & b for a, b in itertools.combinations(ROWS.values(), 2))
