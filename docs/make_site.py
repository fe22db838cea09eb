"""Builds the documentation as a site: ``python docs/make_site.py OUT``. No network; warnings are errors.

The pages are the Markdown files of ``docs/``, with README, changelog and the like beside them; links between them stay links,
what they name of the sources becomes plain text. Public names are documented from their docstrings, commands from ``--help``.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import click

import regframe
from regframe.cli import main as command

ROOT = Path(__file__).resolve().parents[1]

BESIDE = {
    "README.md": "readme.md",
    ".github/CHANGELOG.md": "changelog.md",
    ".github/CONTRIBUTING.md": "contributing.md",
    ".github/SECURITY.md": "security.md",
    ".github/CODE_OF_CONDUCT.md": "conduct.md",
    "benchmarks/RESULTS.md": "results.md",
    "benchmarks/ACCURACY.md": "accuracy.md",
}
"""Pages from outside ``docs/``, by their place in the repository, and their names on the site."""

PARTS = {
    "Begin": ["readme", "install", "wrong", "report", "view", "concepts", "glossary", "gallery"],
    "Tutorials": [
        "tutorial-stains",
        "tutorial-fluorescence",
        "tutorial-xenium",
        "tutorial-cells",
        "tutorial-atlas",
        "tutorial-rounds",
        "tutorial-slide",
        "tutorial-wrong",
    ],
    "Your data": [
        "files",
        "slides",
        "cells",
        "points",
        "vendors",
        "visium",
        "scverse",
        "shapes",
        "atlas",
        "stack",
        "rounds",
        "pieces",
        "mosaic",
        "batch",
        "workflows",
        "gpu",
        "shared",
    ],
    "Other programs": ["coming", "stalign", "interchange", "qupath", "napari", "format"],
    "How it works": ["method", "metrics", "untrusted", "results", "accuracy"],
    "Reference": ["api", "commands", "changelog"],
    "Change it": ["plugins", "doors", "hooks", "ARCHITECTURE", "contributing", "security", "conduct"],
}
"""The contents at the side, part by part."""

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"^(```.*?^```$)", re.MULTILINE | re.DOTALL)


def lay_out(source: Path) -> list[str]:
    """Write all pages into the empty folder ``source``; returns their names without suffix."""
    pages = {
        path.relative_to(ROOT).as_posix(): path.name for path in (ROOT / "docs").glob("*.md") if path.name != "index.md"
    }
    tutorials = (ROOT / "docs" / "tutorials").glob("*.md")
    pages |= {path.relative_to(ROOT).as_posix(): f"tutorial-{path.name}" for path in tutorials}
    pages |= BESIDE
    for place, name in pages.items():
        (source / name).write_text(_page(ROOT / place, pages), encoding="utf-8")
    shutil.copytree(ROOT / "docs" / "images", source / "images")
    shutil.copytree(ROOT / "docs" / "tutorials" / "images", source / "images" / "tutorials")
    shutil.copy(ROOT / "docs" / "site" / "conf.py", source / "conf.py")
    (source / "api.md").write_text(_api(), encoding="utf-8")
    (source / "commands.md").write_text("# Commands\n\n" + "\n".join(_commands(command, "regframe")), encoding="utf-8")
    (source / "index.md").write_text(_index(), encoding="utf-8")
    return sorted(path.stem for path in source.glob("*.md"))


def _page(path: Path, pages: dict[str, str]) -> str:
    """The text of a page with its links as the site has them, outside of blocks of code."""
    parts = FENCE.split(path.read_text(encoding="utf-8"))
    return "".join(part if part.startswith("```") else LINK.sub(_linker(path, pages), part) for part in parts)


def _linker(path: Path, pages: dict[str, str]) -> Callable[[re.Match[str]], str]:
    def link(match: re.Match[str]) -> str:
        mark, text, target = match.groups()
        if re.match(r"[a-z]+:", target) or target.startswith("#"):
            return match[0]
        name, _, anchor = target.partition("#")
        place = (path.parent / name).resolve().relative_to(ROOT).as_posix()
        if place == "docs/index.md":
            return f"{mark}[{text}](index.md)"
        if place in pages:
            return f"{mark}[{text}]({pages[place]}{'#' + anchor if anchor else ''})"
        if place.startswith("docs/images/"):
            return f"{mark}[{text}]({place.removeprefix('docs/')})"
        if place.startswith("docs/tutorials/images/"):
            return f"{mark}[{text}](images/tutorials/{Path(place).name})"
        return text  # of the sources, which the site has not

    return link


def _index() -> str:
    lines = [
        "# regframe",
        "",
        "Two images, tables of cells, volumes or point clouds of tissue in, a trusted map out.",
        "",
    ]
    for part, names in PARTS.items():
        lines += ["```{toctree}", f":caption: {part}", ":maxdepth: 1", "", *names, "```", ""]
    return "\n".join(lines)


def _api() -> str:
    """A page of all public names, functions first."""
    names = [name for name in regframe.__all__ if not name.startswith("_")]
    found = {name: getattr(regframe, name) for name in names}
    classes = [name for name in names if isinstance(found[name], type)]
    functions = [name for name in names if callable(found[name]) and name not in classes]
    lines = [
        "# Python",
        "",
        "`import regframe as rf`; positions are in the order (z,) y, x, lengths in the unit that a grid declares.",
        "",
    ]
    for title, members, how in (("Functions", functions, "autofunction"), ("Classes", classes, "autoclass")):
        lines += [f"## {title}", "", "```{eval-rst}"]
        for name in members:
            lines += [f".. {how}:: regframe.{name}", *(["   :members:"] if how == "autoclass" else []), ""]
        lines += ["```", ""]
    return "\n".join(lines)


def _commands(group: click.Command, path: str) -> list[str]:
    """A heading and the help of each command, those of groups under them."""
    context = click.Context(group, info_name=path, max_content_width=110, terminal_width=110)
    lines = [f"## {path}", "", "```text", group.get_help(context).rstrip(), "```", ""]
    if isinstance(group, click.Group):
        for name, below in sorted(group.commands.items()):
            if not below.hidden:
                lines += _commands(below, f"{path} {name}")
    return lines


def build(out: Path) -> int:
    """Build the site into ``out``; returns Sphinx's exit status, which is not 0 where there was a warning."""
    from sphinx.cmd.build import main

    source = out.with_name(f"{out.name}-source")
    for folder in (source, out):
        shutil.rmtree(folder, ignore_errors=True)
    source.mkdir(parents=True)
    lay_out(source)
    os.environ.setdefault("SOURCE_DATE_EPOCH", "1767225600")
    return int(main(["-b", "html", "-W", "--keep-going", "-q", str(source), str(out)]))


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1] if len(sys.argv) > 1 else "build/site").resolve()))
