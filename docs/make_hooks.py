"""Writes ``docs/hooks.md`` from the hooks and contracts in the code: ``python docs/make_hooks.py``."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

HERE = Path(__file__).resolve().parent
CODE = HERE.parent / "regframe"
CLASSES = {
    "contracts.py": (
        "Configured", "Adapter", "Metric", "Solver", "Start", "MapFormat",
        "Task", "Fitted", "Otherwise", "Known", "Candidate", "Written", "Progress", "Section",
    ),
    "slides/reader.py": ("PyramidAdapter", "TileWriter"),
}  # fmt: skip
"""The classes of the page, by the file that they stand in."""
INTRO = """# Hooks and contracts

This page is made of the code by `python docs/make_hooks.py`; edit the docstrings there. [Write a plug-in](plugins.md) and
[the other doors](doors.md) lead through it with examples. All names are those of `regframe`.
"""


def page() -> str:
    """The text of ``docs/hooks.md``."""
    hooks = ast.parse((CODE / "hookspecs.py").read_text(encoding="utf-8"))
    parts = [INTRO, "## Hooks\n", _told(hooks), ""]
    for each in hooks.body:
        if isinstance(each, ast.FunctionDef) and each.name.startswith("regframe_"):
            parts.append(f"* `{each.name}()`: {_line(_told(each))}")
    for file, wanted in CLASSES.items():
        found = {
            each.name: each
            for each in ast.parse((CODE / file).read_text(encoding="utf-8")).body
            if isinstance(each, ast.ClassDef)
        }
        for name in wanted:
            parts += ["", *_of_class(found[name])]
    return "\n".join(parts).rstrip() + "\n"


def _of_class(node: ast.ClassDef) -> list[str]:
    """The section of one class: what it is, its attributes, its methods, `*` before those that must be there."""
    bases = ", ".join(b.id for b in node.bases if isinstance(b, ast.Name) and b.id != "ABC")
    lines = [f"## {node.name}\n", *([f"A `{bases}`.\n"] if bases else []), _told(node), ""]
    for each, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            told = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            value = f" = {ast.unparse(each.value)}" if each.value is not None else ""
            said = f": {_line(str(told))}" if told else ""
            lines.append(f"* `{each.target.id}: {ast.unparse(each.annotation)}{value}`{said}")
    for each in node.body:
        if isinstance(each, ast.FunctionDef) and (not each.name.startswith("_") or each.name == "__call__"):
            marks = {ast.unparse(mark) for mark in each.decorator_list}
            arguments, back = ast.unparse(each.args), f" -> {ast.unparse(each.returns)}" if each.returns else ""
            must = " (to be written)" if "abstractmethod" in marks else ""
            if "property" in marks:
                lines += ["", f"### `{node.name}.{each.name}`\n", _told(each)]
            else:
                lines += [
                    "",
                    f"### `{node.name}.{each.name}`{must}\n",
                    f"`{each.name}({arguments}){back}`\n",
                    _told(each),
                ]
    return lines


def _told(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> str:
    """A docstring as Markdown: ``code``, names of the code, and the list of arguments."""
    out: list[str] = []
    part = ""
    for line in (ast.get_docstring(node) or "").splitlines():
        if line in ("Args:", "Returns:", "Raises:"):
            part = line.rstrip(":")
            out += [f"**{part}**", ""]
        elif part in ("Args", "Raises") and line.startswith("    ") and not line.startswith("     "):
            name, _, rest = line.strip().partition(":")
            out.append(f"* `{name}`:{rest}")
        elif part and line.startswith("    "):
            out.append(f"  {line.strip()}" if part != "Returns" else line.strip())
        else:
            part = "" if line else part
            out.append(line)
    return "\n".join(out).replace("``", "`").replace("::\n", ":\n")


def _line(text: str) -> str:
    """A docstring in one line."""
    return " ".join(inspect.cleandoc(text).replace("``", "`").split())


if __name__ == "__main__":
    (HERE / "hooks.md").write_text(page(), encoding="utf-8")
