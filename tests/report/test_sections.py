"""Sections of the report from installed packages: shown as text, bounded, named where they fail; the page is always written."""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from pathlib import Path

import click.testing
import numpy as np
import pytest
import torch
from fake_result import fake_result
from test_injection import FORMULA, NAMES, Watched

import regframe as rf
from regframe import plugins
from regframe.cli import main
from regframe.report import results, sections
from regframe.report.page import script

CODE = '''
import random, time
import numpy as np, regframe, torch

class Told:
    """All that a section may hold."""
    def show(self, result):
        rows = [["a", 1, 2.5, None], [{title!r}, True, float("nan"), 0]]
        return regframe.Section({title!r}, [f"verdict {{result.verdict}}", {title!r}], rows, {picture!r}, "what is drawn")
class Silent:
    def show(self, result): return None
class Raises:
    def show(self, result): return result.metrics["no such figure"]
class Says:
    def show(self, result): raise ValueError("wanted two meshes, got a picture")
class Exits:
    def show(self, result): raise SystemExit(3)
class Breaks:
    def show(self, result): raise KeyboardInterrupt
class Wrong:
    def show(self, result): return "<b>text</b>"
class Takes:
    def show(self): return None
class Needs:
    def __init__(self, option): pass
    def show(self, result): return None
class Later:
    api = 99
    def show(self, result): return None
class Slow:
    def show(self, result):
        while True: time.sleep(0.001)
class Long:
    def show(self, result): return regframe.Section("a", ["x" * 601])
class Many:
    def show(self, result): return regframe.Section("a", table=[["x"]] * 51)
class Wide:
    def show(self, result): return regframe.Section("a", table=[["x"] * 9])
class Letters:
    def show(self, result): return regframe.Section("a", "letters")
class Untitled:
    def show(self, result): return regframe.Section(" ")
class Odd:
    def show(self, result): return regframe.Section("a", [{{"html": 1}}])
class Cut:
    def show(self, result): return regframe.Section("a", picture=b"\\x89PNG\\r\\n\\x1a\\n")
class Huge:
    data = b"\\x89PNG\\r\\n\\x1a\\n\\0\\0\\0\\rIHDR" + b"\\0\\0\\xff\\xff" * 2 + b"\\0" * 9
    def show(self, result): return regframe.Section("a", picture=self.data)
class Heavy:
    def show(self, result): return regframe.Section("a", picture="<svg>" + " " * 400_001 + "</svg>")
class Html:
    def show(self, result): return regframe.Section("a", picture="<html><script/></html>")
class Torn:
    def show(self, result): return regframe.Section("a", picture="<svg><g></svg>")
class Swells:
    def show(self, result): return regframe.Section("a", picture='<!DOCTYPE svg [<!ENTITY a "aa">]><svg>&a;</svg>')
class Meddles:
    """Changes what it is given and what the process shares."""
    def show(self, result):
        result.metrics["verdict"] = "fail"; result.history.clear()
        torch.set_default_dtype(torch.float64); np.random.seed(3); random.seed(3); torch.manual_seed(3)
        print("spoken")
        return regframe.Section("Meddled")
number = 3
'''
SVG = "<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><script>alert(1)</script><rect width='9' height='9'/></svg>"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """A function that installs sections of the package ``telling`` 0.3, by the names of their classes."""
    (tmp_path / "telling.py").write_text(CODE.format(title=" ".join((*NAMES, FORMULA)), picture=SVG))
    (tmp_path / "telling_lost.py").write_text("import no_such_thing")
    info = tmp_path / "telling-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: telling\nVersion: 0.3\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(*classes: str) -> None:
        lines = [f"{c.lower()} = telling{'_lost' if c == 'Lost' else ''}:{c}" for c in classes]
        (info / "entry_points.txt").write_text("\n".join(["[regframe.sections]", *lines]) + "\n")
        monkeypatch.delitem(sys.modules, "telling", raising=False)
        plugins.refresh()

    yield install
    monkeypatch.undo()
    plugins.refresh()


def page_of(tmp_path: Path, result: rf.Result | None = None) -> tuple[Watched, list[str]]:
    """The page of a pair, and what was warned of."""
    grid = rf.Grid((30, 34))
    image = rf.Image(torch.rand((1, 30, 34), generator=torch.Generator().manual_seed(0)), grid)
    path = tmp_path / "report.html"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results.write(result or fake_result(grid, grid), image, image, path)
    told = [str(w.message) for w in caught if isinstance(w.message, plugins.PluginWarning)]
    return Watched(path.read_text(encoding="utf-8")), told


def test_a_section_is_shown_as_text_at_the_end_of_the_page(package, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    package("Told", "Silent")
    page, told = page_of(tmp_path)
    assert not told
    assert page.runs == ["script"]
    assert page.scripts == [script()]
    title = " ".join((*NAMES, FORMULA))
    assert page.text.count(title) == 3
    assert page.text.index("Settings (config.resolved.yaml)") < page.text.index("verdict pass")
    for word in ("what is drawn", "2.5", "yes", "From telling 0.3."):
        assert word in page.text
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert SVG not in text  # it is an image's data, in which no script runs


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Raises", "KeyError: 'no such figure' in its Raises.show"),
        ("Says", "wanted two meshes, got a picture"),
        ("Exits", "it raised SystemExit"),
        ("Breaks", "it raised KeyboardInterrupt"),
        ("Wrong", "wanted a regframe.Section or None from show(result), got str"),
        ("Takes", "TypeError: Takes.show() takes 1 positional argument but 2 were given"),
        ("Needs", "TypeError: Needs.__init__() missing 1 required positional argument: 'option'"),
        ("Later", "wanted a class for api 1 or earlier, got api 99: update regframe"),
        ("Slow", "it took more than 0.3 s"),
        ("Long", "wanted a text of at most 600 characters, got 601"),
        ("Many", "wanted at most 20 sentences and a table of at most 50 rows of 8 cells, got 0 and 51 rows of up to 1"),
        ("Wide", "got 0 and 1 rows of up to 9"),
        ("Letters", "wanted lists of sentences and of rows, got text"),
        ("Untitled", "wanted a title, got none"),
        ("Odd", "wanted text, got dict"),
        ("Cut", "wanted a PNG of 1 to 4000000 pixels, got 0 × 0"),
        ("Huge", "wanted a PNG of 1 to 4000000 pixels, got 65535 × 65535"),
        ("Heavy", "wanted a picture of at most 400000 bytes, got 400012"),
        ("Html", "wanted a PNG or SVG file as picture, got an element 'html'"),
        ("Torn", "wanted a PNG or SVG file as picture, got something else (mismatched tag"),
        ("Swells", "wanted an SVG without a document type"),
        ("number", "wanted a class with a method show(result) from 'number' of telling 0.3, got int"),
        ("Lost", "got ModuleNotFoundError: No module named 'no_such_thing' at its import"),
    ],
)
def test_what_fails_is_named_in_a_sentence(  # type: ignore[no-untyped-def]
    package, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    monkeypatch.setattr(sections, "SECONDS", 0.3 if name == "Slow" else 5.0)
    package(name, "Told")
    grid = rf.Grid((30, 34))
    with pytest.warns(plugins.PluginWarning) as caught:
        shown, told = sections.gathered(fake_result(grid, grid))
    (line,) = told
    assert [str(w.message) for w in caught] == told
    assert [one.origin for one in shown] == ["telling 0.3"]  # the other section of the package is there
    assert line.startswith(f"the section {name.lower()!r} of telling 0.3 is left out: ")
    assert said in line
    assert line.endswith(f"; report this to who wrote it, or leave it out with REGFRAME_DISABLE_PLUGINS={name.lower()}")
    assert line.count("report this") == 1
    assert "defect" not in line.lower()


def test_the_page_names_what_is_left_out(package, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    package("Raises", "Told")
    page, (line,) = page_of(tmp_path)
    assert line[1:] in page.text
    assert "From telling 0.3." in page.text


def test_all_pictures_together_are_bounded(package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    package("Told", "Meddles")
    monkeypatch.setattr(sections, "TOTAL", 20)
    page, told = page_of(tmp_path)
    assert "wanted at most 20 bytes of pictures in all sections" in told[0]
    assert "Meddled" in page.text


def test_a_section_changes_nothing_for_others(package, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    package("Meddles")
    grid = rf.Grid((30, 34))
    result = fake_result(grid, grid)
    result = dataclasses.replace(result, history=[{"stage": "a", "energy": 1.0}])
    before = json.dumps(result.metrics), list(result.history), torch.initial_seed(), np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    page, told = page_of(tmp_path, result)
    assert not told
    assert "Meddled" in page.text
    after = json.dumps(result.metrics), list(result.history), torch.initial_seed(), np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    assert before == after
    assert torch.get_default_dtype() == torch.float32
    out, err = capsys.readouterr()
    assert out == ""
    assert "spoken" in err


@pytest.mark.parametrize("names", ["raises", "all"])
def test_a_section_is_left_out_when_it_is_disabled(  # type: ignore[no-untyped-def]
    package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str
) -> None:
    package("Raises")
    monkeypatch.setenv(plugins.DISABLE, names)
    plugins.refresh()
    page, told = page_of(tmp_path)
    assert not told
    assert "telling" not in page.text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plugins.providers()  # the name is known there too


def test_sections_are_listed(package) -> None:  # type: ignore[no-untyped-def]
    package("Told")
    done = click.testing.CliRunner().invoke(main, ["plugins"], catch_exceptions=False)
    assert "sections:  told, from telling 0.3" in done.stdout
    done = click.testing.CliRunner().invoke(main, ["plugins", "--json"], catch_exceptions=False)
    assert {"kind": "sections", "name": "told", "provider": "telling 0.3"} in json.loads(done.stdout)["doors"]
