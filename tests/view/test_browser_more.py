"""Correct here and slices of volumes in a real browser, the effect seen in pixels; no error in the console."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from scipy import ndimage
from test_browser import Page, browser, opened, sides

import regframe
from regframe.report import results
from regframe.view.session import Setting
from regframe.view.source import Source

pytestmark = pytest.mark.slow
__all__ = ["browser", "opened", "sides"]  # fixtures


def test_correct_here(opened: Callable[..., Page]) -> None:
    page = opened()
    page.mode("overlay")
    page.amount(100)
    before = page.shot()
    page.page.click("#add")
    page.page.mouse.click(*page.at(500, 500))
    page.count(1)
    page.page.keyboard.press("Escape")
    page.drag(page.at(500, 500), page.at(506, 494))
    page.until("window.regframe.list().pairs[0].residual > 5")
    page.page.click("#region-part > summary")
    page.page.click("#draw-rectangle")
    page.drag(page.at(350, 350), page.at(650, 650))
    assert page.page.is_enabled("#region-go")
    page.page.click("#region-go")
    page.until("window.regframe.maps().fresh && window.regframe.ready === window.regframe.maps().fresh.key", 120)
    changed = np.abs(page.shot(wait=1) - before).max(axis=2)
    (left, top), (right, bottom) = page.at(350, 350), page.at(650, 650)
    box = page.page.locator("#view-a").bounding_box()
    inside = np.zeros(changed.shape, bool)
    inside[
        int(top - box["y"]) - 25 : int(bottom - box["y"]) + 25, int(left - box["x"]) - 25 : int(right - box["x"]) + 25
    ] = True
    assert (changed[inside] > 20).mean() > 0.05
    assert (changed[~inside] > 20).mean() < 0.002
    page.page.click("#region-clear")
    page.page.click("#draw-outline")
    page.page.locator("#view-a .openseadragon-canvas").focus()
    page.page.keyboard.press("Enter")  # by keys alone: the middle of the view
    page.until("window.regframe.outline.closed")


def test_a_saved_folder_opens_with_its_landmarks(
    opened: Callable[..., Page], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three pairs set, one named and one off, saved; the folder opened again shows them, and goes on from them."""
    monkeypatch.setattr(results, "write", lambda *_: None)  # the report is not what is looked at
    page = opened()
    page.mode("overlay")
    page.page.click("#add")
    for n, at in enumerate([(300, 300), (300, 700), (700, 500)], 1):
        page.page.mouse.click(*page.at(*at))
        page.count(n)
    page.page.keyboard.press("Escape")
    page.drag(page.at(700, 500), page.at(709, 486))
    page.until("window.regframe.list().pairs[2].residual > 5")
    name = page.page.locator("#pairs input[type=text]").first
    name.fill("<b>vessel</b>")
    name.press("Enter")
    page.until("window.regframe.list().pairs.some((pair) => pair.name === '<b>vessel</b>')")
    page.page.locator("#pairs input[type=checkbox]").last.uncheck()
    page.until("window.regframe.list().pairs.some((pair) => !pair.on)")
    page.page.click("#save")
    page.until("document.querySelector('#saved code')", 60)
    kept = page.pairs()

    folder = tmp_path / "out"
    again = opened(result=regframe.load(folder), folder=folder, output=tmp_path / "next")
    again.mode("overlay")
    again.count(3)
    assert "3 landmarks of out" in again.page.inner_text("#notice")
    same = ("id", "name", "fixed", "moving", "on", "trusted")
    assert [[pair[key] for key in same] for pair in again.pairs()] == [[pair[key] for key in same] for pair in kept]
    again.until("window.regframe.ready === window.regframe.maps().current.key")
    again.page.locator("#pairs input[type=checkbox]:not(:checked)").check()
    again.until("window.regframe.list().used === 3")
    seen = again.shot(wait=1)
    for n in (2, 1, 0):
        again.page.locator("#pairs button[aria-label^=Delete]").first.click()
        again.count(n)
    assert (np.abs(seen - again.shot(wait=1)).max(axis=2) > 20).sum() > 100  # their marks were drawn


def test_slices(browser: Any, tmp_path: Path) -> None:
    noise = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((30, 60, 90)), 3)
    whole = np.rint(255 * (noise - noise.min()) / np.ptp(noise)).astype(np.uint8)
    for name, x in (("fixed", 10), ("moving", 6)):
        tifffile.imwrite(tmp_path / f"{name}.ome.tif", whole[:, :, x : x + 70], metadata={"axes": "ZYX"})
    page = Page(browser, Setting(*(Source(tmp_path / f"{n}.ome.tif") for n in ("fixed", "moving")), tmp_path / "out"))
    try:
        page.mode("overlay")
        page.amount(0)
        seen = [page.shot(wait=1)]
        page.page.locator("#slice").fill("3")
        page.until("window.regframe.sliced === 'z:3'")
        seen.append(page.shot(wait=1))
        page.page.keyboard.press("PageUp")
        page.until("window.regframe.sliced === 'z:4'")
        page.page.select_option("#axis", "y")
        page.until("window.regframe.sliced === 'y:30'")
        seen.append(page.shot(wait=1))
        page.amount(100)
        seen.append(page.shot(wait=1))
        for one, other in itertools.pairwise(seen):
            assert np.abs(one - other).mean() > 1
        assert page.page.is_visible("#add")
        flat = page.page.locator(".flat")  # a region, placing by hand
        assert flat.count()
        assert not any(part.is_visible() for part in flat.all())
    finally:
        page.close()
