"""Landmarks and layers of two volumes in a real browser: set, dragged to another slice, bent to, seen in pixels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from scipy import ndimage
from test_browser import Page, browser

import regframe
from regframe.view.session import Setting
from regframe.view.source import Source

pytestmark = pytest.mark.slow
__all__ = ["browser"]  # a fixture
MOVED = (2, 3, -4)
"""Voxels (z, y, x) by which the content of the moving volume lies elsewhere."""


@pytest.fixture
def volumes(browser: Any, tmp_path: Path) -> Iterator[Page]:
    noise = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((40, 90, 120)), 3)
    whole = np.rint(255 * (noise - noise.min()) / np.ptp(noise)).astype(np.uint8)
    for name, (z, y, x) in (
        ("fixed", (5, 10, 10)),
        ("moving", tuple(a - b for a, b in zip((5, 10, 10), MOVED, strict=True))),
    ):
        part = whole[z : z + 30, y : y + 70, x : x + 100]
        tifffile.imwrite(tmp_path / f"{name}.ome.tif", part, metadata={"axes": "ZYX"})
    sources = [Source(tmp_path / f"{name}.ome.tif") for name in ("fixed", "moving")]
    config = regframe.Config.model_validate({"transform": "affine"})
    page = Page(browser, Setting(*sources, tmp_path / "out", config=config))
    yield page
    page.close()


def test_landmarks_on_slices(volumes: Page, tmp_path: Path) -> None:
    page = volumes
    page.mode("overlay")
    page.amount(0)
    assert page.page.is_visible("#add")
    page.page.click("#add")
    spots = [(8, 15, 20), (20, 20, 80), (12, 55, 25), (22, 50, 75), (14, 35, 50)]
    for n, (z, y, x) in enumerate(spots, 1):
        page.page.locator("#slice").fill(str(z))
        page.until(f"window.regframe.sliced === 'z:{z}'")
        before = page.shot()
        page.page.mouse.click(*page.at(y, x))
        page.count(n)
        assert np.abs(page.shot() - before).max() > 100  # the mark is drawn
    page.page.keyboard.press("Escape")
    for n, ((z, y, x), pair) in enumerate(zip(spots, page.pairs(), strict=True), 1):
        assert pair["fixed"] == pytest.approx((z, y, x), abs=0.6)
        page.page.locator(f"#pairs tr[data-id='{n}'] button:has-text('◎')").click()  # to its slice
        page.until(f"window.regframe.sliced === 'z:{z}'")
        for k in range(1, MOVED[0] + 1):  # the same spot lies two slices on in the moving volume
            page.page.keyboard.press("PageUp")
            page.until(f"window.regframe.sliced === 'z:{z + k}'")
        page.page.wait_for_timeout(500)
        page.drag(page.at(y, x), page.at(y + MOVED[1], x + MOVED[2]))
        page.until(f"window.regframe.list().pairs[{n - 1}].residual > 4")
        assert np.subtract(page.pairs()[n - 1]["shown"], pair["fixed"]) == pytest.approx(MOVED, abs=0.8)
    assert ", cross on " in page.page.inner_text("#pairs")
    page.mode("difference")
    unlike = page.shot(wait=1)[120:-120, 300:-300].mean()
    page.page.check("#follow")
    page.until("window.regframe.maps().fresh && window.regframe.ready === window.regframe.maps().fresh.key")
    assert max(pair["residual"] for pair in page.pairs()) < 0.5
    assert page.shot(wait=1)[120:-120, 300:-300].mean() < 0.6 * unlike
    page.page.uncheck("#follow")
    page.page.click("#leave")
    page.until("!window.regframe.maps().fresh")
    page.page.select_option("#begin", "landmarks")
    page.page.click("#align")
    page.until("window.regframe.maps().fresh", 120)
    page.until("window.regframe.ready === window.regframe.maps().fresh.key")
    page.page.click("#take")
    page.until("!window.regframe.maps().fresh")
    assert page.shot(wait=1)[120:-120, 300:-300].mean() < 0.5 * unlike
    page.page.click("details:has(#layer) > summary")
    empty = page.shot()
    for layer in ("sd", "area", "bend"):
        page.page.select_option("#layer", layer)
        page.until("document.querySelector('#legend .ramp')")
        shown = page.shot()
        assert np.abs(shown - empty).mean() > 3, layer
    page.page.select_option("#axis", "x")
    page.until("window.regframe.sliced.startsWith('x:')")
    assert np.abs(page.shot(wait=1) - shown).mean() > 1
    page.page.select_option("#layer", "")
    empty = page.shot()
    page.page.check("#grid")
    assert np.abs(page.shot(wait=1) - empty).mean() > 0.3
    page.page.mouse.move(*page.at(15, 30))
    page.until("document.getElementById('under').textContent.includes('volume')")
    page.page.click("#save")
    page.until("document.querySelector('#saved code')", 60)
    assert "--landmarks" in page.page.inner_text("#saved code")
    assert regframe.load(tmp_path / "out").affine.ndim == 3
