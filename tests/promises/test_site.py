"""The documentation as a site: every page is in its contents, links lead to pages, and its search finds what people look for."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import click
import pytest

import regframe
from regframe.cli import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_site", ROOT / "docs" / "make_site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def laid(maker: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    maker.lay_out(folder)
    return folder


def test_every_page_is_in_the_contents_once(maker: ModuleType, laid: Path) -> None:
    listed = [name for names in maker.PARTS.values() for name in names]
    assert sorted([*listed, "index"]) == sorted(path.stem for path in laid.glob("*.md"))


def test_links_lead_to_pages_of_the_site(maker: ModuleType, laid: Path) -> None:
    for page in laid.glob("*.md"):
        for _, _, target in maker.LINK.findall(maker.FENCE.sub("", page.read_text(encoding="utf-8"))):
            if not re.match(r"[a-z]+:|#", target):
                assert (laid / target.partition("#")[0]).is_file(), f"{page.name} links to {target}"


def test_all_public_names_and_commands_are_on_a_page(laid: Path) -> None:
    api = (laid / "api.md").read_text(encoding="utf-8")
    names = [name for name in regframe.__all__ if callable(getattr(regframe, name))]
    assert not [name for name in names if f":: regframe.{name}\n" not in api]
    commands = (laid / "commands.md").read_text(encoding="utf-8")
    assert not [
        name for name, found in main.commands.items() if not found.hidden and f"## regframe {name}\n" not in commands
    ]


def test_options_that_the_pages_on_trouble_name_exist() -> None:
    known = {option for command in main.commands.values() for p in command.params for option in p.opts}
    assert isinstance(main.commands["apply"], click.Group)
    known |= {
        option for command in main.commands["apply"].commands.values() for p in command.params for option in p.opts
    }
    for page in ("wrong", "coming"):
        text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
        assert named <= known, f"{page}.md names {named - known}"


def broken_links(site: Path) -> list[tuple[str, str]]:
    """Page and target of every link within ``site`` to a file, or to a place on a page, that is not there."""
    texts = {path.resolve(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    places = {path: set(re.findall(r'\sid="([^"]+)"', text)) for path, text in texts.items()}
    broken = []
    for page, text in texts.items():
        for target in re.findall(r'\s(?:href|src)="([^"]+)"', text):
            name, _, anchor = unquote(target).partition("#")
            at = (page.parent / name.partition("?")[0]).resolve() if name else page
            if re.match(r"[a-z]+:|//", target) or (at.exists() and (not anchor or anchor in places.get(at, {anchor}))):
                continue
            broken.append((page.name, target))
    return broken


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<p id="here"><a href="#here"><a href="b.html#x"><a href="https://e.org/x"><img src="no.png">'
    )
    (tmp_path / "b.html").write_text('<a href="a.html?q=1#here"><a href="a.html#gone">')
    assert sorted(broken_links(tmp_path)) == [("a.html", "b.html#x"), ("a.html", "no.png"), ("b.html", "a.html#gone")]


@pytest.mark.slow
def test_the_site_is_built_and_its_search_finds(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="needs the extra docs")
    pytest.importorskip("furo", reason="needs the extra docs")
    script = ROOT / "docs" / "make_site.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "site")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    index = json.loads(
        (tmp_path / "site" / "searchindex.js").read_text().removeprefix("Search.setIndex(").removesuffix(")")
    )
    pages = index["docnames"]

    def holding(stem: str) -> set[str]:
        hits = [index[kind].get(stem, []) for kind in ("terms", "titleterms")]  # a word of a title stands there alone
        return {pages[i] for hit in hits for i in (hit if isinstance(hit, list) else [hit])}

    def found(*stems: str) -> set[str]:
        return set.intersection(*map(holding, stems))

    assert "wrong" in found("turn", "slide")
    assert "wrong" in found("wrong", "scale")
    assert {"shapes", "coming"} <= found("qupath")
    assert "visium" in found("visium", "neighbour")
    assert "concepts" in found("space", "direct")
    assert not broken_links(tmp_path / "site")
    for page in (tmp_path / "site").glob("*.html"):  # what the browser loads lies beside the page
        assert not re.findall(
            r'<(?:script|link)[^>]+(?:src|href)="https?://[^"]+\.(?:js|css)', page.read_text(encoding="utf-8")
        )
