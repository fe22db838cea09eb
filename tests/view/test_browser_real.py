"""The page over real pairs: the seed, two stains of a lung, two tables of cells, two volumes, a pyramid of 20 480 px.

Every control that the kind of pair has is operated, and what it does is seen in pixels.
"""

from __future__ import annotations

import csv
import gzip
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_browser import Page, browser

import regframe
from regframe.view.session import Setting
from regframe.view.source import Source

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from bench_view import pyramid

pytestmark = pytest.mark.slow
__all__ = ["browser"]  # a fixture
Sides = tuple[Source, Source]


def _seed(data: Path, folder: Path) -> Sides:
    return Source(data / "01_seed_cells" / "cells2_crop.jpg"), Source(data / "01_seed_cells" / "cells.jpg")


def _lung(data: Path, folder: Path) -> Sides:
    both = sorted((data / "02_histology_landmarks" / "lung-lesion_3").glob("*.jpg"))
    return Source(both[0]), Source(both[1])


def _cells(data: Path, folder: Path) -> Sides:
    """Cells of two sections of a heart, every third; a column is named like a script."""
    for name, section in (("fixed", "CN73_E1"), ("moving", "CN73_E2")):
        with gzip.open(data / "05_st_heart" / f"{section}.csv.gz", "rt", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))[::3]
        lines = "".join(f"{row['x']},{row['y']},1\n" for row in rows)
        (folder / f"{name}.csv").write_text(f"x,y,<script>window.hacked=1</script>\n{lines}", encoding="utf-8")
    return Source(folder / "fixed.csv"), Source(folder / "moving.csv")


def _volumes(data: Path, folder: Path) -> Sides:
    pytest.importorskip("SimpleITK", reason="needs SimpleITK (extra itk), which reads NIfTI")
    atlas = data / "10_3d_mouse_atlas" / "CIVM_mouse.ISO.nii.gz"
    return Source(atlas), Source(atlas)


def _pyramid(data: Path, folder: Path) -> Sides:
    path = pyramid(folder, 20_480)
    return Source(path), Source(path)


PAIRS: dict[str, Callable[[Path, Path], Sides]] = {
    "seed": _seed, "lung": _lung, "cells": _cells, "volumes": _volumes, "pyramid": _pyramid,
}  # fmt: skip


@pytest.fixture(params=list(PAIRS))
def page(request: pytest.FixtureRequest, browser: Any, data_dir: Path, tmp_path: Path) -> Iterator[Page]:
    config = regframe.Config.model_validate({"transform": "affine"})
    sides = PAIRS[request.param](data_dir, tmp_path)
    found = Page(browser, Setting(*sides, tmp_path / "out", config=config))
    yield found
    found.close()


def differ(one: Any, other: Any) -> float:
    return float(np.abs(one - other).mean())


def shown(page: Page, click: str) -> Any:
    """What is seen once a control has led to another map."""
    before = page.page.evaluate("() => window.regframe.ready")
    page.page.click(click)
    page.until(f"window.regframe.ready !== '{before}'", 60)
    return page.shot(wait=1)


def test_every_control(page: Page) -> None:
    planes = bool(page.session.planes)
    pixels = page.session.moving.pyramid is not None
    _modes(page, pixels)
    _zoom(page)
    _landmarks(page, planes)
    if planes:
        before = page.shot()
        page.page.keyboard.press("PageUp")
        assert differ(page.shot(wait=1), before) > 0.05
    else:
        _place(page)
    if not planes and page.session.fixed.pyramid is not None:
        _region(page)
    _look(page, pixels)
    assert page.page.evaluate("() => window.hacked") is None


def _modes(page: Page, pixels: bool) -> None:
    seen = {}
    if not page.session.planes and page.session.fixed.pyramid is not None and pixels:  # so that two pictures differ
        page.session.place(3.0, False, 1.0, (0.0, 0.0))
        page.until("window.regframe.maps().fresh && window.regframe.ready === window.regframe.maps().fresh.key", 60)
    for mode in ("overlay", "swipe", "checker", "difference", "side"):
        page.mode(mode)
        seen[mode] = page.shot(wait=1.2)
        assert seen[mode].std() > 1, mode
    if not pixels:
        return
    page.mode("overlay")
    page.amount(0)
    fixed = page.shot(wait=1)
    page.amount(100)
    moving = page.shot(wait=1)
    if not page.session.planes:
        assert differ(fixed, moving) > 1
        assert differ(seen["difference"], fixed) > 1
        for mode in ("swipe", "checker"):
            assert differ(seen[mode], fixed) > 0.3, mode
            assert differ(seen[mode], moving) > 0.3, mode
    else:  # a volume on itself: the difference is black
        middle = seen["difference"][200:-200, 400:-400]
        assert middle.mean() < 3
    page.mode("flicker")
    page.amount(90)
    page.page.wait_for_timeout(300)
    page.page.keyboard.press("m")
    page.until("window.regframe.pictures.mode === 'checker'")
    page.mode("overlay")
    page.amount(50)


def _zoom(page: Page) -> None:
    page.page.click("#fit")
    whole = page.shot(wait=1)
    page.page.click("#zoom-in")
    page.page.click("#zoom-in")
    near = page.shot(wait=1.5)
    assert differ(near, whole) > 0.3
    page.page.click("#zoom-out")
    page.page.click("#fit")
    assert differ(page.shot(wait=1.5), whole) < 1


def _landmarks(page: Page, planes: bool) -> None:
    height, width = page.page.evaluate(
        "() => [window.regframe.pictures.canvas.height, window.regframe.pictures.canvas.width]"
    )
    before = page.shot()
    page.page.click("#add")
    for n, (a, b) in enumerate(((0.3, 0.35), (0.35, 0.65), (0.6, 0.4), (0.65, 0.6)), 1):
        page.page.mouse.click(*page.at(height * a, width * b))
        page.count(n)
    page.page.keyboard.press("Escape")
    assert differ(page.shot(), before) > 0.02
    start = page.at(height * 0.3, width * 0.35)
    page.drag(start, (start[0] + 30, start[1] + 20))
    page.until("window.regframe.list().pairs[0].residual > 0 && !window.regframe.marks.held")
    page.page.click("#undo")
    page.until("window.regframe.list().redo")
    page.page.click("#redo")
    page.until("!window.regframe.list().redo")
    page.page.locator("#pairs input[type=checkbox]").first.click()
    page.until("window.regframe.list().pairs.some((pair) => !pair.on)")
    page.page.locator("#pairs button:has-text('×')").first.click()
    page.count(3)
    with page.page.expect_download() as got:
        page.page.click("#export-go")
    assert Path(got.value.path()).read_text(encoding="utf-8").count("\n") == 4


def _place(page: Page) -> None:
    page.page.click("details:has(#mirror) > summary")
    start = page.shot()
    for button in ("[data-turn='90']", "#mirror", "#turn-go", "#scale-go"):
        assert differ(shown(page, button), start) > 0.05, button
    again = shown(page, "#reset")
    page.page.click("#leave")
    page.until("!window.regframe.maps().fresh")
    assert np.isfinite(again).all()


def _region(page: Page) -> None:
    page.page.click("#region-part > summary")
    before = page.shot()
    page.page.click("#draw-rectangle")
    page.page.locator("#view-a .openseadragon-canvas").focus()
    page.page.keyboard.press("Enter")
    page.until("window.regframe.outline.closed")
    assert page.page.is_enabled("#region-go")
    assert differ(page.shot(), before) > 0.02
    page.page.click("#region-clear")
    assert differ(page.shot(), before) < 0.5


def _look(page: Page, pixels: bool) -> None:
    page.page.click("#channels-part > summary")
    boxes = page.page.locator("#channels input[type=checkbox]")
    if pixels and boxes.count():
        page.amount(100)
        before = page.shot(wait=1)
        boxes.last.uncheck()
        assert differ(page.shot(wait=2), before) > 0.5
        boxes.last.check()
    page.page.click("details:has(#layer) > summary")
    before = page.shot(wait=1)
    page.page.check("#grid")
    assert differ(page.shot(wait=1), before) > 0.1
    page.page.uncheck("#grid")
    drawn = page.page.locator("#drawings input")
    if drawn.count():
        drawn.first.uncheck()
        assert differ(page.shot(), before) > 0.1
        drawn.first.check()
    box = page.page.locator("#view-a").bounding_box()
    page.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.until("/x [-0-9]/.test(document.getElementById('under').textContent)")
