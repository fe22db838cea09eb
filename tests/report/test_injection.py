"""Names that HTML or a spreadsheet would run stay text, wherever they come from."""

from __future__ import annotations

import csv
import dataclasses
import html.parser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_result import fake_result

import regframe as rf
from regframe.batch import summary, work
from regframe.batch.work import Outcome
from regframe.report import results
from regframe.report.page import script
from regframe.stack import align

NAMES = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}",
    "javascript:alert(1)",
)
FORMULA = '=HYPERLINK("http://x.y","click")'


class Watched(html.parser.HTMLParser):
    """What of a page a browser would run or fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.runs: list[str] = []
        self.text = ""
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "iframe", "object", "embed", "base", "form"):
            self.runs.append(tag)
        for name, value in attrs:
            plain = "".join((value or "").split()).lower()
            if name.startswith("on") or plain.startswith(("javascript:", "http:", "https:", "//")):
                self.runs.append(f"{tag} {name}={value}")

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and self.cdata_elem == "script":
            self.scripts.append(data)
            return
        self.text += data


def write_named(path: Path) -> str:
    """Write a report of sides whose every name is all of `NAMES`, and return that."""
    name, grid = " ".join((*NAMES, FORMULA)), rf.Grid((30, 34))
    generator = torch.Generator().manual_seed(0)
    fixed = rf.Image(torch.rand((2, 30, 34), generator=generator), grid, (name, f"{name}2"), name=name)
    points = rf.PointSet(torch.rand((50, 2), generator=generator) * 29, name=name, table={name: [name] * 50})
    result = fake_result(grid, grid)
    result = dataclasses.replace(result, metrics={**result.metrics, "reasons": [name], "note": name})
    results.write(result, fixed, points, path)
    return name


def test_names_of_files_and_channels_are_text_in_a_report(tmp_path: Path) -> None:
    name = write_named(tmp_path / "report.html")
    page = Watched((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.runs == ["script"]
    assert page.scripts == [script()]  # the package's own, to the byte, and nothing else
    assert name in page.text


@pytest.mark.parametrize("name", [*NAMES, FORMULA])
def test_names_are_text_in_the_summary_of_a_batch(tmp_path: Path, name: str) -> None:
    attempt = work.Attempt(work.AS_ASKED, "bad input", name, 3.0, 5 << 20)
    outcome = Outcome(name, "failed", None, (name,), attempts=(attempt,), applied=(f"applied/{name}",))
    page = Watched(summary.page([outcome], tmp_path))
    assert page.runs == []
    assert name in page.text
    (row,) = csv.DictReader(summary.table([outcome]).splitlines())
    assert not any(str(value).startswith(("=", "+", "@")) for value in row.values())


def test_names_of_sections_are_text_in_a_spreadsheet(tmp_path: Path) -> None:
    names = (FORMULA, "+1", "@SUM(A1)", "plain", "-3")
    stack: Any = SimpleNamespace(
        names=names, results=[None] * 5, metrics={"sections": [{"position": -1.5, "verdict": None}] * 5}
    )
    align.write_files(stack, tmp_path, None)
    with (tmp_path / "sections.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["section"] for row in rows] == [f"'{FORMULA}", "+1", "'@SUM(A1)", "plain", "-3"]
    assert {row["position"] for row in rows} == {"-1.5"}


@pytest.mark.slow
def test_names_run_nothing_in_a_browser(tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, which drives the browser")
    chromium = Path("/usr/bin/chromium")
    if not chromium.exists():
        pytest.skip(f"needs a browser at {chromium}: apt-get install chromium")
    name = write_named(tmp_path / "report.html")
    attempt = work.Attempt(work.AS_ASKED, "bad input", name, 3.0, 5 << 20)
    outcomes = [Outcome(one, "failed", None, (one,), attempts=(attempt,), applied=(f"applied/{one}",)) for one in NAMES]
    (tmp_path / "summary.html").write_text(summary.page(outcomes, tmp_path), encoding="utf-8")
    happened: list[str] = []
    with playwright.sync_playwright() as drive:
        browser = drive.chromium.launch(executable_path=str(chromium), args=["--no-sandbox"])
        for file in ("report.html", "summary.html"):
            page = browser.new_page()
            page.on("dialog", lambda dialog: (happened.append(dialog.message), dialog.dismiss()))
            page.on("console", lambda said: happened.append(said.text) if said.type == "error" else None)
            page.on("request", lambda asked: happened.append(asked.url) if asked.url.startswith("http") else None)
            page.goto((tmp_path / file).as_uri())
            for one in page.query_selector_all("summary, label, th, td, h1, h2"):
                one.dispatch_event("mouseover")
            page.wait_for_timeout(300)
            assert NAMES[0] in page.content().replace("&lt;", "<").replace("&gt;", ">")
            assert page.query_selector("img[src='x']") is None
        browser.close()
    assert happened == []
