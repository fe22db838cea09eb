"""Who may import whom: the table of the architecture, enforced on the imports as they are written."""

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
    1: {"hookspecs", "config", "reference", "ops", "versions"},
    2: {"data", "maps"},
    3: {"contracts", "plugins", "verdict"},
    4: {"fit"},
    5: {"starts", "result"},
    6: {"solvers", "slides", "io", "evaluation"},
    7: {"registration", "formats", "stack"},
    8: {"report", "batch", "testing", "cli"},
}
ROW = {module: row for row, modules in ROWS.items() for module in modules}

# The one door that opens downwards at run time: a result saves itself.
LAZY = {("result", "io")}

FILES = {"csv", "gzip", "io", "json", "pathlib", "shutil", "tempfile", "tifffile", "yaml", "zarr", "PIL", "imagecodecs"}
"""What a module of row 4 may not use: it never sees a file."""


@dataclass(frozen=True)
class Import:
    module: str
    line: int
    lazy: bool


def imports_of(path: Path, package: str) -> Iterator[Import]:
    """Absolute names of all that a module of ``package`` imports, in functions too, but not under TYPE_CHECKING."""
    names = {path.stem} if path.stem != "__init__" else set()
    own = [package, *names]

    def walk(node: ast.AST, lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.orelse:
                yield from walk(child, lazy)
            return
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, lazy)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                here = ".".join(own).split(".")
                if path.stem != "__init__":
                    here = here[:-1]
                base = ".".join(here[: len(here) - node.level + 1])
            else:
                base = ""
            module = ".".join(part for part in (base, node.module or "") if part)
            if node.module is None or module == "regframe":  # from . import ops; from regframe import reference
                for alias in node.names:
                    yield Import(f"{module}.{alias.name}", node.lineno, lazy)
            else:
                yield Import(module, node.lineno, lazy)
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


def core_imports() -> Iterator[tuple[str, str, Import]]:
    """Pairs of core modules, importer and imported, by their name below ``regframe``."""
    for path, package in modules(CORE, "regframe"):
        relative = path.relative_to(CORE)
        importer = relative.parts[0].removesuffix(".py")
        if importer == "__init__":
            continue
        for found in imports_of(path, package):
            head, _, rest = found.module.partition(".")
            if head == "regframe" and rest:
                target = rest.partition(".")[0]
                if target in ROW or (CORE / f"{target}.py").exists() or (CORE / target).is_dir():
                    yield importer, target, found
                else:
                    yield importer, PUBLIC[target], found  # a public name, through the lazy package
            elif head == "regframe":
                # attributes of the package are public names: their homes are below every module that may use them
                yield importer, "__init__", found


def _public() -> dict[str, str]:
    tree = ast.parse((CORE / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "_HOME":
            return {**ast.literal_eval(node.value), "__version__": "hookspecs"}
    raise AssertionError("no table of public names in regframe/__init__.py")


PUBLIC = _public()


def test_every_module_has_a_row() -> None:
    found = {p.stem for p in CORE.glob("*.py")} | {p.parent.name for p in CORE.glob("*/__init__.py")}
    assert found - {"__init__", "__main__"} <= set(ROW), "give the new module its row in ROWS"


def test_rows() -> None:
    wrong = [
        f"{importer} (row {ROW[importer]}) imports {target} (row {ROW[target]}), line {found.line}"
        for importer, target, found in core_imports()
        if target not in ("__init__", importer)
        and ROW[target] > ROW[importer]
        and not (found.lazy and (importer, target) in LAZY)
    ]
    assert not wrong


def test_the_package_itself_is_imported_by_row_8_alone() -> None:
    wrong = [
        f"{importer}, line {found.line}"
        for importer, target, found in core_imports()
        if target == "__init__" and ROW[importer] < 8
    ]
    assert not wrong


def test_no_circles() -> None:
    graph: dict[str, set[str]] = {}
    for importer, target, found in core_imports():
        if target not in ("__init__", importer) and not (found.lazy and (importer, target) in LAZY):
            graph.setdefault(importer, set()).add(target)
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert order


def test_the_package_imports_nothing_eagerly() -> None:
    eager = [found.module for found in imports_of(CORE / "__init__.py", "regframe") if not found.lazy]
    assert set(eager) <= {"__future__", "importlib", "typing"}


def test_config_imports_pydantic_only() -> None:
    outside = {found.module.partition(".")[0] for found in imports_of(CORE / "config.py", "regframe")}
    assert outside - sys.stdlib_module_names == {"pydantic"}


@pytest.mark.parametrize("module", sorted(ROWS[4]))
def test_the_optimiser_sees_no_file(module: str) -> None:
    path = CORE / f"{module}.py"
    files = [path] if path.exists() else list((CORE / module).glob("*.py"))
    used = {found.module.partition(".")[0] for path in files for found in imports_of(path, "regframe")}
    assert not used & FILES


def test_the_core_imports_no_plugin() -> None:
    names = {p.parent.name for p in PLUGINS.glob("*/__init__.py")} | {p.stem for p in PLUGINS.glob("example_*/**/*.py")}
    wrong = [
        f"{path.relative_to(ROOT)}, line {found.line}: {found.module}"
        for path, package in modules(CORE, "regframe")
        for found in imports_of(path, package)
        if found.module.partition(".")[0] in names
    ]
    assert not wrong


def test_plugins_import_the_public_package_alone() -> None:
    wrong = []
    for folder in sorted(PLUGINS.iterdir()):
        if not folder.is_dir():
            continue
        allowed = {"regframe", "regframe.testing", *(f"regframe.{name}" for name in (*PUBLIC, "hookimpl"))}
        if folder.name == "regframe_cells":
            allowed.add("regframe._host")
        for path, package in modules(folder, folder.name):
            for found in imports_of(path, package):
                head = found.module.partition(".")[0]
                others = {p.name for p in PLUGINS.iterdir() if p.is_dir()} - {folder.name}
                if (head == "regframe" and found.module not in allowed) or head in others:
                    wrong.append(f"{path.relative_to(ROOT)}, line {found.line}: {found.module}")
    assert not wrong


def test_the_walker_sees_what_it_should(tmp_path: Path) -> None:
    source = tmp_path / "lddmm.py"
    source.write_text(
        "from typing import TYPE_CHECKING\nfrom . import ops\nfrom .data import Grid\n"
        "from regframe import reference\nif TYPE_CHECKING:\n    from .store import save\n\n"
        "def f():\n    from .store import load\n    import regframe.cli\n"
    )
    found = [(i.module, i.lazy) for i in imports_of(source, "regframe")]
    assert found == [
        ("typing", False),
        ("regframe.ops", False),
        ("regframe.data", False),
        ("regframe.reference", False),
        ("regframe.store", True),
        ("regframe.cli", True),
    ]
    nested = tmp_path / "pictures.py"
    nested.write_text("from .. import data\nfrom ..store import load\nfrom .html import page\n")
    found_modules = [i.module for i in imports_of(nested, "regframe.report")]
    assert found_modules == ["regframe.data", "regframe.store", "regframe.report.html"]


def test_rows_do_not_overlap() -> None:
    assert all(not a & b for a, b in itertools.combinations(ROWS.values(), 2))
