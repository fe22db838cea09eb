"""The viewer of a result in a notebook: what its model holds, and, in a real browser, what its controls do to pixels."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Picture

import regframe as rf

Array = np.ndarray[Any, Any]
MODULE = Path(rf.__file__).parent / "report" / "notebook.js"
CHROMIUM = Path("/usr/bin/chromium")
RED, BLUE = (200, 30, 40), (20, 60, 210)


def flat(colour: tuple[int, int, int], name: str, shape: tuple[int, int] = (120, 160)) -> rf.Image:
    data = np.broadcast_to(np.array(colour, np.uint8)[:, None, None], (3, *shape))
    return rf.Image(np.ascontiguousarray(data), rf.Grid(shape, 0.5, (), "µm"), name=name)


def result(shift: tuple[float, float] = (0.0, 0.0), ndim: int = 2) -> rf.Result:
    matrix = torch.eye(ndim + 1, dtype=torch.float64)
    matrix[-3:-1, -1] = torch.tensor(shift, dtype=torch.float64)
    grid = rf.Grid((4,) * (ndim - 2) + (120, 160), 0.5, (), "µm")
    figures = {"verdict": "pass", "reasons": [], "n_evaluations": 0, "seconds": 0.0, "roundtrip_px": {"mean": 0.0}}
    step = rf.Affine(matrix, "µm", "µm")
    return rf.Result(step, grid, grid, figures, rf.Config(), step)


def pixels(data: bytes) -> Array:
    return np.asarray(Picture.open(io.BytesIO(data)).convert("RGB"))


def test_the_model_holds_both_sides_on_one_canvas() -> None:
    pytest.importorskip("anywidget", reason="needs anywidget: pip install 'regframe[notebook]'")
    shown = result((20.0, 0.0)).viewer(flat(RED, "one"), flat(BLUE, "<b>two"), size=80)
    fixed, moving = pixels(shown.fixed), pixels(shown.moving)
    assert fixed.shape == moving.shape == (60, 80, 3)
    assert shown.width == 80
    assert (fixed == RED).all()
    assert (moving[21:] == BLUE).all()
    assert (moving[:19] == 255).all(), "beyond the moving image nothing is shown"
    assert (shown.mode, shown.amount, shown.headline) == ("swipe", 50, "Confirmed")
    assert shown.caption == "one, and over it <b>two, carried by the map"
    assert shown._esm == MODULE.read_text(encoding="utf-8") or str(shown._esm) == MODULE.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="wanted a size from 16"):
        result().viewer(flat(RED, "one"), flat(BLUE, "two"), size=5000)
    with pytest.raises(ValueError, match="which nothing records; pass fixed="):
        result().viewer()


def test_points_volumes_and_stored_runs_are_shown(tmp_path: Path) -> None:
    pytest.importorskip("anywidget", reason="needs anywidget: pip install 'regframe[notebook]'")
    dots = rf.PointSet(np.array([[20.0, 30.0], [40.0, 60.0]]), "µm", name="cells")
    shown = result().viewer(flat(RED, "one"), dots, size=160)
    dark = pixels(shown.moving).min(axis=-1)
    assert dark[40, 60] < 200 < dark[5, 5]
    volume = rf.Image(np.zeros((1, 4, 120, 160), np.uint8), result(ndim=3).fixed_grid, name="brain")
    assert "its middle plane" in result(ndim=3).viewer(volume, volume, size=40).caption
    for name, colour in (("a.png", RED), ("b.png", BLUE)):
        Picture.fromarray(np.moveaxis(flat(colour, name).data.numpy(), 0, -1)).save(tmp_path / name)
    px = rf.Affine(torch.eye(3, dtype=torch.float64), "px", "px")
    grid = rf.Grid((120, 160))
    plain = rf.Result(px, grid, grid, result().metrics, rf.Config(), px)
    again = plain.viewer(tmp_path / "a.png", tmp_path / "b.png", size=64)
    assert (pixels(again.moving) == BLUE).all()


def test_the_module_asks_no_network() -> None:
    text = MODULE.read_text(encoding="ascii")
    for word in ("http", "import ", "fetch(", "innerHTML", "eval("):
        assert word not in text


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    """The module in a browser, its model kept by a stand-in of anywidget's, over a red and a blue picture."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, which drives the browser")
    if not CHROMIUM.exists():
        pytest.skip(f"needs a browser at {CHROMIUM}: apt-get install chromium")
    state = {"width": 160, "headline": "Confirmed", "caption": "<b>one</b> and two", "mode": "swipe", "amount": 50}
    for name, colour in (("fixed", RED), ("moving", BLUE)):
        out = io.BytesIO()
        Picture.new("RGB", (160, 120), colour).save(out, "PNG")
        state[name] = base64.b64encode(out.getvalue()).decode()
    module = base64.b64encode(MODULE.read_bytes()).decode()
    script = """async ([state, module]) => {
      const bytes = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
      state.fixed = bytes(state.fixed); state.moving = bytes(state.moving);
      const heard = {};
      window.model = {
        get: (name) => state[name],
        set: (name, value) => { state[name] = value; for (const f of heard["change:" + name] || []) f(); },
        save_changes: () => { window.saved = (window.saved || 0) + 1; },
        on: (name, f) => { (heard[name] ||= []).push(f); },
        off: (name, f) => { heard[name] = (heard[name] || []).filter((g) => g !== f); },
      };
      const { default: widget } = await import("data:text/javascript;base64," + module);
      const el = document.body.appendChild(document.createElement("div"));
      window.end = widget.render({ model: window.model, el });
      await Promise.all([...el.querySelectorAll("img")].map((image) => image.decode()));
    }"""
    with playwright.sync_playwright() as drive:
        browser = drive.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": 500, "height": 400})
        shown.asked, shown.wrong = [], []
        shown.on("request", lambda request: shown.asked.append(request.url))
        shown.on("console", lambda message: shown.wrong.append(message.text) if message.type == "error" else None)
        shown.on("pageerror", lambda error: shown.wrong.append(str(error)))
        shown.set_content("<!doctype html><body>")
        shown.evaluate(script, [state, module])
        yield shown
        browser.close()


def seen(page: Any) -> Array:
    """The stage's pixels at a quarter and three quarters of its width, ``[2, 3]``."""
    picture = pixels(page.locator(".stage").screenshot())
    return picture[60, [40, 120]].astype(int)


def near(found: Array, *colours: tuple[int, int, int]) -> bool:
    return bool(np.abs(found - np.array(colours)).max() <= 3)


@pytest.mark.slow
def test_the_controls_change_pixels(page: Any) -> None:
    assert near(seen(page), RED, BLUE), "swipe: fixed on the left of the edge, moving on its right"
    box = page.locator(".stage").bounding_box()
    page.mouse.move(box["x"] + 80, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 8, box["y"] + 50)
    page.mouse.up()
    assert page.evaluate("model.get('amount')") == 5
    assert near(seen(page), BLUE, BLUE)
    page.get_by_role("button", name="Opacity").click()
    page.locator("input").fill("50")
    assert near(seen(page), *([tuple((a + b) // 2 for a, b in zip(RED, BLUE, strict=True))] * 2))
    page.get_by_role("button", name="Flicker").click()
    assert page.get_by_role("button", name="Flicker").get_attribute("aria-pressed") == "true"
    page.locator("input").fill("100")
    found = set()
    for _ in range(40):
        found.add("red" if near(seen(page), RED, RED) else "blue" if near(seen(page), BLUE, BLUE) else "")
        page.wait_for_timeout(60)
    assert found >= {"red", "blue"}
    page.evaluate("model.set('mode', 'swipe'); model.set('amount', 90)")
    assert near(seen(page), RED, RED), "the kernel may set it too"
    assert page.get_by_text("<b>one</b> and two").count() == 1, "a name is text, never markup"
    assert page.evaluate("saved") > 2
    page.evaluate("end()")
    assert not page.wrong
    assert all(url.startswith(("data:", "blob:", "about:")) for url in page.asked)
