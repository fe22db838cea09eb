"""Writes ``tests/promises/api.txt``: every public name of regframe with its signature, and every option of its commands.

Run it after a change that is meant, and say in the changelog what a user has to do. A test compares the file with the code.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

import regframe
from regframe.cli import main
from regframe.group.together import Together

SNAPSHOT = Path(__file__).resolve().parents[1] / "tests" / "promises" / "api.txt"


def lines() -> Iterator[str]:
    """The snapshot, line by line: names, then commands."""
    for name in sorted(regframe.__all__):
        if not name.startswith("_"):
            yield from _of(name, getattr(regframe, name))
    yield from _commands(main, "regframe")


def _of(name: str, value: Any) -> Iterator[str]:
    if inspect.ismodule(value):
        yield f"module {name}"
    elif inspect.isclass(value):
        bases = [
            base.__name__ for base in value.__bases__ if base is not object and base.__module__.startswith("regframe")
        ]
        yield f"class {name}{'(' + ', '.join(bases) + ')' if bases else ''}"
        yield from sorted(_members(name, value))
    elif callable(value):
        yield f"{name}{_signature(value)}"
    else:
        yield f"{name}: {type(value).__name__}"


def _members(name: str, cls: type[Any]) -> Iterator[str]:
    """Fields, methods and properties that ``cls`` or `Together` defines, and how it is made."""
    fields = {field.name for field in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
    if "__init__" in vars(cls) or fields:
        yield f"  {name}{_signature(cls)}"
    for key, field in getattr(cls, "model_fields", {}).items():  # of settings
        yield f"  {name}.{key} = {field.default!r}  [setting]"
    shared = vars(Together) if issubclass(cls, Together) else {}  # no name of the package, but its users' too
    for key, member in {**shared, **vars(cls)}.items():
        if (key.startswith("_") and key != "__call__") or key.startswith("model_"):
            continue
        if isinstance(member, (staticmethod, classmethod)):
            yield f"  {name}.{key}{_signature(member.__func__)}  [{type(member).__name__}]"
        elif isinstance(member, property) or hasattr(member, "func"):
            yield f"  {name}.{key}  [property]"
        elif inspect.isfunction(member):
            yield f"  {name}.{key}{_signature(member)}"
        elif key not in fields and not callable(member) and "pydantic" not in type(member).__module__:
            yield f"  {name}.{key}  [attribute]"


def _signature(value: Any) -> str:
    try:
        text = str(inspect.signature(value))
    except (TypeError, ValueError):
        return "(…)"
    return re.sub(r" at 0x[0-9a-f]+", "", text).replace("'", "")


def _commands(command: click.Command, path: str) -> Iterator[str]:
    """Arguments and options of ``command`` and of those below it; what other packages add is no promise of regframe's."""
    words = []
    for parameter in command.params:
        names = "/".join(parameter.opts) if isinstance(parameter, click.Option) else parameter.human_readable_name
        if not (isinstance(parameter, click.Option) and parameter.hidden):
            words.append(names)
    yield f"$ {path} {' '.join(words)}".rstrip()
    if isinstance(command, click.Group):
        for name, below in sorted(command.commands.items()):
            if not below.hidden:
                yield from _commands(below, f"{path} {name}")


if __name__ == "__main__":
    SNAPSHOT.write_text("\n".join(lines()) + "\n", encoding="utf-8")
    sys.stdout.write(f"wrote {SNAPSHOT}\n")
