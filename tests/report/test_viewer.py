"""The one script of a report: which one it is, and what it is given to show."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from fake_result import fake_result

import regframe as rf
from regframe.report import pictures, results
from regframe.report.page import digest, script


def page(name: str = "a") -> str:
    grid = rf.Grid((120, 140))
    values = torch.nn.functional.interpolate(
        torch.rand((1, 3, 30, 35), generator=torch.Generator().manual_seed(0)), size=(120, 140), mode="bilinear"
    )[0]
    image = rf.Image(values, grid, name=name)
    return results.render(fake_result(grid, grid, bend=1.0), image, image, 200, 60)


def test_exactly_this_script_may_run() -> None:
    text = page("</script><script>alert(1)</script>")
    found = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert found == [script()]
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy == (f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src '{digest(script())}'")
    assert "unsafe-inline" not in policy.partition("script-src")[2]


def test_the_script_reaches_for_nothing() -> None:
    own = script()
    assert own == (Path(results.__file__).parent / "viewer.js").read_text(encoding="utf-8")
    for word in ("fetch", "XMLHttp", "innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function(", "://",
                 "import(", "localStorage", "cookie", "postMessage", "</"):  # fmt: skip
        assert word not in own


def test_every_place_of_the_viewer_is_a_picture_of_the_page() -> None:
    text = page()
    wanted = re.findall(r'data-(?:fixed|moving)="([^"]*)"', text)
    assert len(wanted) == 2 * 5  # all of it, two places of most and two of least agreement
    assert all(text.count(f'<img id="{name}" ') == 1 for name in wanted)
    for title in ("All of it", "Most agreement 1", "Least agreement 2"):
        assert f">{title}</button>" in text


def test_places_of_most_and_least_agreement() -> None:
    generator = np.random.default_rng(0)
    ink = np.zeros((200, 200), dtype=np.float32)
    ink[20:180, 20:180] = generator.random((160, 160))
    moved = ink.copy()
    moved[100:160, 100:160] = generator.random((60, 60))  # other tissue
    most, least = pictures.spots(ink, moved, np.ones((200, 200), dtype=bool), 40, 2)
    assert min(spot.likeness for spot in most) > 0.99
    assert abs(least[0].likeness) < 0.1
    assert 95 <= least[0].top <= 125
    assert 95 <= least[0].left <= 125
    corners = [(spot.top, spot.left) for spot in most + least]
    assert all(max(abs(a - c), abs(b - d)) >= 40 for i, (a, b) in enumerate(corners) for c, d in corners[:i])
    unseen = np.ones((200, 200), dtype=bool)
    unseen[90:, 90:] = False
    assert min(s.likeness for s in pictures.spots(ink, moved, unseen, 40, 2)[1]) > 0.99
    assert pictures.spots(ink, moved, np.zeros((200, 200), dtype=bool), 40, 2) == ([], [])
    assert pictures.spots(ink * 0, moved, np.ones((200, 200), dtype=bool), 40, 2) == ([], [])
