"""Every control of the page in a real browser, its effect seen in pixels; no error in the console, no request to elsewhere."""

from __future__ import annotations

import io
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture
from scipy import ndimage

import regframe
from regframe.view.server import Running, application
from regframe.view.session import Session, Setting
from regframe.view.source import Source

pytestmark = pytest.mark.slow

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, which drives the browser")
CHROMIUM = Path("/usr/bin/chromium")
SHIFT = (9.0, -14.0)
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists():
        pytest.skip(f"needs a browser at {CHROMIUM}: apt-get install chromium")
    with playwright.sync_playwright() as drive:
        chromium = drive.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A megapixel of tissue, brightfield and as two channels of fluorescence, the moving side shifted."""
    import tifffile

    folder = tmp_path_factory.mktemp("sides")
    random = np.random.default_rng(2)
    noise = np.stack([ndimage.gaussian_filter(random.standard_normal((1060, 1060)), s) for s in (3, 5, 8)], axis=-1)
    ink = (noise - noise.min(axis=(0, 1))) / np.ptp(noise, axis=(0, 1))
    whole = np.rint(255 - 200 * ink).astype(np.uint8)
    moved = whole[20 - 9 : 1020 - 9, 20 + 14 : 1020 + 14]
    found = {
        "fixed": folder / "fixed <b>slide.png",
        "moving": folder / "moving.png",
        "cells": folder / "cells.ome.tif",
    }
    Picture.fromarray(whole[20:1020, 20:1020]).save(found["fixed"])
    Picture.fromarray(moved).save(found["moving"])
    planes = (255 - moved.transpose(2, 0, 1)[:2]).astype(np.uint16) * 50
    tifffile.imwrite(found["cells"], planes, metadata={"axes": "CYX", "Channel": {"Name": ["<i>DAPI</i>", "CD3"]}})
    return found


class Page:
    """A page in the browser, and what it did that it should not."""

    def __init__(self, browser: Any, setting: Setting, width: int = 1400, height: int = 900, **look: Any) -> None:
        gate, self.session = application(setting)  # the process that aligns starts where a test asks for it
        self.running = Running(gate)
        self.running.start()
        self.context = browser.new_context(viewport={"width": width, "height": height}, **look)
        self.page = self.context.new_page()
        self.wrong: list[str] = []
        home = f"http://127.0.0.1:{self.running.port}/"
        self.page.on("console", lambda said: said.type == "error" and self.wrong.append(said.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on(
            "request", lambda asked: asked.url.startswith((home, "data:", "blob:")) or self.wrong.append(asked.url)
        )
        self.page.goto(self.running.address)
        self.until("window.regframe && window.regframe.ready")

    def until(self, what: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not self.told(what):
            assert time.monotonic() < end, (what, self.wrong, self.page.inner_text("#notice"))
            time.sleep(0.01)

    def told(self, what: str) -> bool:
        try:
            return bool(self.page.evaluate(f"() => Boolean({what})"))
        except playwright.Error as error:
            if "navigation" not in str(error):
                raise
            return False

    def shot(self, view: str = "a", wait: float = 0.5) -> Array:
        time.sleep(wait)
        return np.asarray(
            Picture.open(io.BytesIO(self.page.locator(f"#view-{view}").screenshot())).convert("RGB")
        ).astype(int)

    def amount(self, value: int) -> None:
        self.page.locator("#amount").fill(str(value))

    def mode(self, value: str) -> None:
        self.page.select_option("#mode", value)

    def open_all(self) -> None:
        for i in range(self.page.locator("#panel details").count()):
            part = self.page.locator("#panel > details").nth(i)
            if i < self.page.locator("#panel > details").count() and part.get_attribute("open") is None:
                part.locator("> summary").click()

    def at(self, y: float, x: float, view: str = "a") -> tuple[float, float]:
        """Where a pixel of the fixed picture is on the screen."""
        frame = self.page.evaluate(f"() => window.regframe.pictures.frame('{view}')")
        box = self.page.locator(f"#view-{view}").bounding_box()
        return box["x"] + frame["x"] + (x + 0.5) * frame["scale"], box["y"] + frame["y"] + (y + 0.5) * frame["scale"]

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        mouse = self.page.mouse
        mouse.move(*start)
        mouse.down()
        for k in (0.3, 0.7, 1.0):
            mouse.move(start[0] + k * (end[0] - start[0]), start[1] + k * (end[1] - start[1]))
            time.sleep(0.03)
        mouse.up()

    def pairs(self) -> list[dict[str, Any]]:
        return list(self.page.evaluate("() => window.regframe.list().pairs"))

    def count(self, n: int) -> None:
        self.until(f"window.regframe.list().pairs.length === {n}")

    def as_first(self) -> None:
        """How a page looks that was just opened, but for what was kept."""
        self.page.set_viewport_size({"width": 1400, "height": 900})
        self.page.emulate_media(color_scheme="light")
        self.mode("overlay")
        self.amount(50)
        self.page.click("#fit")

    def close(self) -> None:
        self.context.close()
        self.session.close()
        self.running.stop()
        assert self.wrong == []


@pytest.fixture
def opened(browser: Any, sides: dict[str, Path], tmp_path: Path) -> Iterator[Callable[..., Page]]:
    pages: list[Page] = []

    def open_(moving: str = "moving", width: int = 1400, height: int = 900, look: Any = None, **changes: Any) -> Page:
        run = {
            side: {"path": sides[name].resolve(), "adapter": "image", "options": {}}
            for side, name in (("fixed", "fixed"), ("moving", moving))
        }
        given: dict[str, Any] = {"output": tmp_path / "out", "run": run, **changes}
        sources = Source(sides["fixed"], "image"), Source(sides[moving], "image")
        pages.append(Page(browser, Setting(*sources, **given), width, height, **(look or {})))
        return pages[-1]

    yield open_
    for page in pages:
        page.close()


@pytest.fixture(scope="module")
def one_page(browser: Any, sides: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    both = Source(sides["fixed"], "image"), Source(sides["moving"], "image")
    page = Page(browser, Setting(*both, tmp_path_factory.mktemp("shared") / "out"))
    yield page
    page.close()


@pytest.fixture
def shared(one_page: Page) -> Iterator[Page]:
    """A page of the pair for all tests of a module that change neither landmarks nor map."""
    one_page.as_first()
    yield one_page
    assert one_page.wrong == []
    assert one_page.pairs() == []


def test_the_ways_to_show_two_pictures(shared: Page) -> None:
    page = shared
    page.mode("overlay")
    page.amount(0)
    fixed = page.shot()
    page.amount(100)
    moving = page.shot()
    assert np.abs(fixed - moving).mean() > 5
    page.amount(50)
    assert np.abs(page.shot() - (fixed + moving) / 2).mean() < 2
    page.mode("swipe")
    half = page.shot()
    middle = half.shape[1] // 2
    assert np.abs(half[:, : middle - 4] - fixed[:, : middle - 4]).mean() < 1
    assert np.abs(half[:, middle + 4 :] - moving[:, middle + 4 :]).mean() < 1
    page.mode("checker")
    squares = page.shot()
    of_fixed = (np.abs(squares - fixed).max(axis=2) < 3) & (np.abs(fixed - moving).max(axis=2) > 8)
    of_moving = (np.abs(squares - moving).max(axis=2) < 3) & (np.abs(fixed - moving).max(axis=2) > 8)
    assert 0.5 < of_fixed.sum() / of_moving.sum() < 2
    page.mode("difference")
    assert np.abs(page.shot() - np.abs(fixed - moving))[100:-100, 200:-200].mean() < 3
    page.mode("flicker")
    page.amount(90)
    shots = [page.shot(wait=0.11) for _ in range(8)]
    assert min(np.abs(one - fixed).mean() for one in shots) < 1
    assert min(np.abs(one - moving).mean() for one in shots) < 1
    page.page.keyboard.press("m")
    page.until("window.regframe.pictures.mode === 'checker'")
    page.mode("side")
    page.until("document.getElementById('view-b').clientWidth > 100")
    time.sleep(1)
    page.page.click("#zoom-in")
    page.page.click("#zoom-in")
    time.sleep(0.8)
    frames = page.page.evaluate("() => ['a', 'b'].map((view) => window.regframe.pictures.frame(view))")
    assert frames[0]["scale"] == pytest.approx(frames[1]["scale"])
    assert frames[0]["x"] == pytest.approx(frames[1]["x"], abs=1)
    assert np.abs(page.shot("a") - page.shot("b")).mean() > 3
    page.page.click("#fit")
    time.sleep(0.8)
    assert page.page.evaluate("() => window.regframe.pictures.frame('a').scale") < frames[0]["scale"] / 2
    assert page.page.inner_text("#names").startswith("moving.png on fixed <b>slide.png")


def test_landmarks_from_the_first_to_the_map(opened: Callable[..., Page], tmp_path: Path) -> None:
    page = opened()
    page.mode("overlay")
    page.page.click("#add")
    spots = [(200, 250), (220, 760), (800, 240), (780, 800), (500, 520)]
    for n, (y, x) in enumerate(spots, 1):
        page.page.mouse.click(*page.at(y, x))
        page.count(n)
    page.page.keyboard.press("Escape")
    assert page.page.get_attribute("#add", "aria-pressed") == "false"
    for n, (y, x) in enumerate(spots, 1):  # the moving side shows the same spot elsewhere: drag each cross there
        page.drag(page.at(y, x), page.at(y + SHIFT[0], x + SHIFT[1]))
        page.until(f"window.regframe.list().pairs.find((pair) => pair.id === {n}).residual > 5")
    for pair in page.pairs():
        away = np.subtract(pair["shown"], pair["fixed"])
        assert away == pytest.approx(SHIFT, abs=2.5)
    page.page.check("#follow")
    page.until("window.regframe.maps().fresh")
    page.until("window.regframe.ready === window.regframe.maps().fresh.key")
    assert max(pair["residual"] for pair in page.pairs()) < 1
    before = page.page.evaluate("() => window.regframe.changes")
    target = page.pairs()[4]
    began = time.monotonic()
    page.drag(page.at(*target["fixed"]), page.at(target["fixed"][0] + 5, target["fixed"][1]))
    page.until(f"window.regframe.changes > {before} && window.regframe.ready === window.regframe.maps().fresh.key")
    print(f"refit after a dragged landmark, shown: {time.monotonic() - began - 0.1:.2f} s")
    page.page.click("#undo")
    page.until("window.regframe.list().redo")
    page.page.click("#redo")
    page.until("!window.regframe.list().redo")
    page.page.click("#undo")
    page.until("window.regframe.list().redo")
    page.page.uncheck("#follow")
    page.until("window.regframe.ready === window.regframe.maps().fresh.key")
    page.page.click("#take")
    page.until("!window.regframe.maps().fresh")
    page.page.click("#add")  # a wrong one: it is marked
    page.page.mouse.click(*page.at(400, 400))
    page.count(6)
    page.page.click("#add")
    page.drag(page.at(400, 400), page.at(620, 640))
    page.until("window.regframe.list().pairs[5].odd")
    assert "disagrees with the others" in page.page.inner_text("#pairs tr:first-child")
    page.page.click("#pairs tr:first-child button:has-text('Trust it')")
    page.until("window.regframe.list().pairs[5].trusted")
    evil = "<img src=x onerror=window.hacked=1>"
    page.page.fill("#pairs tr:first-child input[type=text]", evil)
    page.page.keyboard.press("Tab")
    page.until("window.regframe.list().pairs[5].name.startsWith('<img')")
    assert page.page.evaluate("() => window.hacked") is None
    page.page.locator("#pairs tr:first-child input[type=checkbox]").click()
    page.until("!window.regframe.list().pairs[5].on")
    page.page.locator("#pairs tr").last.locator("button:has-text('◎')").click()
    page.until("window.regframe.marks.chosen")
    page.page.locator("#view-a .openseadragon-canvas").focus()
    page.page.keyboard.press("Shift+ArrowRight")
    page.until("window.regframe.list().undo && !window.regframe.marks.held")
    page.page.keyboard.press("Delete")
    page.count(5)
    page.page.keyboard.press("Control+z")
    page.count(6)
    page.page.locator("#view-a .openseadragon-canvas").focus()
    page.page.keyboard.press("a")
    page.page.keyboard.press("Enter")
    page.count(7)
    with page.page.expect_download() as got:
        page.page.click("#export-go")
    text = Path(got.value.path()).read_text(encoding="utf-8")
    assert text.count("\n") == 8
    (tmp_path / "landmarks.csv").write_text(text, encoding="utf-8")
    page.page.set_input_files("#import", str(tmp_path / "landmarks.csv"))
    page.count(14)
    page.page.reload()
    page.until("window.regframe && window.regframe.ready")
    page.count(14)


def test_placing_aligning_saving(opened: Callable[..., Page], tmp_path: Path) -> None:
    page = opened(config=regframe.Config.model_validate({"transform": "affine"}))
    page.mode("overlay")
    page.amount(100)
    page.open_all()
    page.mode("difference")
    unlike = page.shot()[150:-150, 350:-350].mean()
    page.mode("overlay")
    start = page.shot()
    for button in ("[data-turn='90']", "#mirror", "#turn-go", "#scale-go", "[data-turn='-90']"):
        before = page.page.evaluate("() => window.regframe.ready")
        page.page.click(button)
        page.until(
            f"window.regframe.ready !== '{before}' && window.regframe.ready === window.regframe.maps().fresh.key"
        )
        assert np.abs(page.shot() - start).mean() > 5, button
    assert page.page.is_disabled("#save")
    page.page.click("#leave")
    page.until("!window.regframe.maps().fresh && window.regframe.ready === window.regframe.maps().current.key")
    assert np.abs(page.shot() - start).mean() < 1
    page.page.click("#drag")
    page.drag(page.at(500, 500), page.at(500 - SHIFT[0] + 3, 500 - SHIFT[1]))
    page.until("window.regframe.maps().fresh && window.regframe.ready === window.regframe.maps().fresh.key")
    page.page.click("#drag")
    page.page.click("#take")
    page.until("!window.regframe.maps().fresh")
    page.page.select_option("#begin", "search")
    page.page.click("#align")
    page.until("window.regframe.maps().busy")
    page.page.click("#stop")
    page.until("!window.regframe.maps().busy")
    page.page.select_option("#begin", "shown")
    page.page.click("#align")
    page.until("document.getElementById('progress').textContent.includes('level')", 120)
    page.until("window.regframe.maps().fresh", 120)
    page.page.locator("#fresh input").first.check()
    page.until("window.regframe.ready === window.regframe.maps().current.key")
    page.page.locator("#fresh input").last.check()
    page.until("window.regframe.ready === window.regframe.maps().fresh.key")
    page.page.click("#take")
    page.until("!window.regframe.maps().fresh")
    page.mode("difference")
    assert page.shot()[150:-150, 350:-350].mean() < unlike / 3
    empty = page.shot()
    for layer in ("weight", "sd", "area", "bend"):
        page.page.select_option("#layer", layer)
        page.until("document.querySelector('#legend .ramp')")
        assert np.abs(page.shot() - empty).mean() > 3, layer
    page.page.locator("#layer-amount").fill("5")
    assert np.abs(page.shot() - empty).mean() < 15
    page.page.select_option("#layer", "")
    page.page.check("#grid")
    assert np.abs(page.shot() - empty).mean() > 0.3
    page.page.uncheck("#grid")
    page.page.check("#arrows")
    page.page.uncheck("#arrows")
    page.page.mouse.move(*page.at(300, 300))
    page.until("document.getElementById('under').textContent.includes('matching')")
    assert "fixed: " in page.page.inner_text("#under")
    page.page.click("#save")
    page.until("document.querySelector('#saved code')", 60)
    assert "--init" in page.page.inner_text("#saved code")
    assert regframe.load(tmp_path / "out").metrics["model"] == "affine"
    assert json.loads((tmp_path / "out" / "steps.json").read_text())["steps"][0]["do"] == "align"
    page.page.click("#reset")
    page.until("window.regframe.maps().fresh")


def test_channels_and_many_points(opened: Callable[..., Page], tmp_path: Path) -> None:
    page = opened("cells")
    page.mode("overlay")
    page.amount(100)
    page.open_all()
    both = page.shot()
    assert page.page.inner_text("#channels").count("<i>DAPI</i>") == 1
    boxes = page.page.locator("#channels input[type=checkbox]")
    boxes.first.uncheck()
    one = page.shot(wait=1.5)
    assert one[300:500, 400:600].mean() < both[300:500, 400:600].mean() - 10
    page.page.locator("#channels input[type=color]").last.fill("#ff0000")
    red = page.shot(wait=1.5)[300:500, 400:600].mean(axis=(0, 1))
    assert red[0] > 20 + red[1]
    page.page.locator("#channels input[type=range]").last.fill("100000")
    assert page.shot(wait=1.5)[300:500, 400:600].mean() < red.mean()


def test_points_on_top_are_fluent(browser: Any, sides: dict[str, Path], tmp_path: Path) -> None:
    random = np.random.default_rng(0).uniform(0, 1000, (100_000, 2))
    table = tmp_path / "cells.csv"
    table.write_text("x,y\n" + "\n".join(f"{x:.3f},{y:.3f}" for x, y in random) + "\n", encoding="utf-8")
    session = Setting(Source(table), Source(sides["moving"], "image"), tmp_path / "out")
    page = Page(browser, session)
    try:
        page.until("window.regframe.marks.drawings[0].at")
        drawn = page.page.evaluate(
            """async () => { const { marks } = window.regframe; const began = performance.now();
            for (let i = 0; i < 20; i += 1) marks.draw("a"); return (performance.now() - began) / 20; }"""
        )
        print(f"100 000 points drawn in {drawn:.1f} ms")
        assert drawn < 100
    finally:
        page.close()


def test_two_tables(browser: Any, tmp_path: Path) -> None:
    random = np.random.default_rng(0).uniform(0, 1000, (500, 2))
    tables = []
    for name, size in (("fixed.csv", 1.0), ("moving.csv", 0.7)):
        tables.append(tmp_path / name)
        rows = "\n".join(f"{size * x:.3f},{y:.3f}" for x, y in random)
        tables[-1].write_text(f"x,y\n{rows}\n", encoding="utf-8")
    page = Page(browser, Setting(Source(tables[0]), Source(tables[1]), tmp_path / "out"))
    try:
        page.mode("overlay")
        page.until("window.regframe.marks.drawings.every((one) => one.at)")
        before = page.shot(wait=1)
        assert ((before[..., 0] > 200) & (before[..., 2] < 100)).sum() > 300  # the fixed points
        assert ((before[..., 0] < 100) & (before[..., 2] > 200)).sum() > 300  # the moving ones
        page.page.click("#zoom-in")
        assert np.abs(page.shot(wait=1) - before).mean() > 0.2
        page.page.click("#add")
        page.page.mouse.click(*page.at(900, 900))
        page.count(1)
    finally:
        page.close()


def test_small_and_dark(shared: Page) -> None:
    shared.open_all()
    for width, dark in itertools.product((1400, 390), (False, True)):
        shared.page.set_viewport_size({"width": width, "height": 850})
        shared.page.emulate_media(color_scheme="dark" if dark else "light")
        assert shared.page.evaluate("() => document.documentElement.scrollWidth") <= width
        back = shared.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        assert (int(back[4:].split(",")[0]) < 60) == dark


def test_how_fast(shared: Page) -> None:
    first = shared.page.evaluate("() => window.regframe.first")
    print(f"first picture after {first / 1000:.2f} s")
    own = Session(shared.session.setting)  # none of its tiles was made yet
    made = []
    for i in range(4):
        began = time.perf_counter()
        own.tile("moving", own.current.key, own.canvas.top, i % 2, i // 2, "")
        made.append(1000 * (time.perf_counter() - began))
    print(f"a tile is made in {statistics.median(made):.0f} ms in the median")
    key, top = shared.session.current.key, shared.session.canvas.top
    took = shared.page.evaluate(
        """async ([key, top]) => { const took = [];
        for (let i = 0; i < 16; i += 1) { const began = performance.now();
          await (await fetch(`/tiles/moving/${key}/${top}/${i % 2}/${Math.floor(i / 2) % 2}?style=`)).arrayBuffer();
          took.push(performance.now() - began); } return took; }""",
        [key, top],
    )
    print(f"a tile that is kept is fetched in {statistics.median(took):.0f} ms in the median")
    assert first < 10_000
    assert statistics.median(took) < 500


def test_a_second_window_and_a_stranger(opened: Callable[..., Page], browser: Any) -> None:
    page = opened()
    second = page.context.new_page()
    second.goto(f"http://127.0.0.1:{page.running.port}/")
    end = time.monotonic() + 20
    while not second.evaluate("() => Boolean(window.regframe && window.regframe.ready)") and time.monotonic() < end:
        time.sleep(0.05)
    page.mode("overlay")
    page.page.click("#add")
    page.page.mouse.click(*page.at(300, 300))
    page.count(1)
    while second.evaluate("() => window.regframe.list().pairs.length") != 1:
        assert time.monotonic() < end
        time.sleep(0.05)
    stranger = browser.new_context()
    other = stranger.new_page()
    assert other.goto(page.running.address).status == 403
    assert other.goto(f"http://localhost:{page.running.port}/").status == 403
    stranger.close()
    second.close()
