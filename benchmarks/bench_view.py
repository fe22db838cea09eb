"""The live page in a real browser: first picture, warm tiles, a dragged landmark, memory of the server, faults by axe-core.

``python benchmarks/bench_view.py FIXED MOVING [--run OUT] [--drag]`` serves one pair with ``regframe view`` in a process of its
own, and drives Debian's Chromium by playwright. ``--made N`` makes a pair of N pixels square with a known shift instead,
``--pyramid N`` a tiled slide of N pixels square, shown on itself, or with ``--other`` on a bent, turned copy of it in other
colours, through the known map; all in ``--folder``. ``--axe FILE`` is axe.min.js; ``--shots DIR`` keeps
pictures of the page.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

CHROMIUM = "/usr/bin/chromium"
SHIFT = (9, -14)
"""Pixels (y, x) by which the second made picture is moved: more than the eye overlooks, less than the search needs help for."""
TILES = "performance.getEntriesByType('resource').filter((e) => e.name.includes('/tiles/'))"


def made(folder: Path, size: int) -> tuple[Path, Path]:
    """Two brightfield pictures of noise, the second one shifted by `SHIFT`."""
    from PIL import Image
    from scipy import ndimage

    random = np.random.default_rng(2)
    noise = np.stack(
        [ndimage.gaussian_filter(random.standard_normal((size + 60, size + 60)), s) for s in (3, 5, 8)], axis=-1
    )
    ink = (noise - noise.min(axis=(0, 1))) / np.ptp(noise, axis=(0, 1))
    whole = np.rint(255 - 200 * ink).astype(np.uint8)
    for name, (y, x) in (("fixed", (20, 20)), ("moving", (20 - SHIFT[0], 20 - SHIFT[1]))):
        Image.fromarray(whole[y : y + size, x : x + size]).save(folder / f"{name}.png")
    return folder / "fixed.png", folder / "moving.png"


def pyramid(folder: Path, size: int) -> Path:
    """A tiled slide of noise with five resolutions, JPEG inside."""
    import tifffile
    from scipy import ndimage

    random = np.random.default_rng(3)
    tiles = []
    for _ in range(6):
        noise = ndimage.gaussian_filter(random.standard_normal((256, 256, 3)), (3, 3, 0))
        tiles.append(np.rint(255 - 180 * (noise - noise.min()) / np.ptp(noise)).astype(np.uint8))

    def each(n: int) -> Iterator[np.ndarray[Any, Any]]:
        for k in range((-(-n // 256)) ** 2):
            yield tiles[(7 * k + k // 80) % 6]

    how: dict[str, Any] = {"tile": (256, 256), "photometric": "rgb", "compression": "jpeg", "dtype": np.uint8}
    path = folder / "slide.tif"
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        file.write(each(size), shape=(size, size, 3), subifds=4, metadata={"axes": "YXS"}, **how)
        for k in range(1, 5):
            file.write(each(size >> k), shape=(size >> k, size >> k, 3), subfiletype=1, **how)
    return path


def bent(folder: Path, slide: Path, size: int) -> Path:
    """A run whose fixed side is a copy of the slide as another stain and scanner would show it, bent and turned by regframe
    itself, with that map."""
    import regframe as rf
    from benchmarks.bench_refine import changed
    from benchmarks.bench_warp_slide import known_map
    from regframe.evaluation import map_figures
    from regframe.io import outputs
    from regframe.verdict import conclude

    run, other = folder / "run", folder / "other.ome.zarr"
    if run.exists():
        return run
    pyramid, map_ = changed(rf.open_pyramid(slide)), known_map(size)
    rf.warp_slide(pyramid, map_, pyramid.grid, other)
    result = rf.Result(map_, pyramid.grid, pyramid.grid, {}, rf.Config(), map_.parts()[-1])
    metrics = {"model": "lddmm", "n_evaluations": 0, "seconds": 0.0, **map_figures(result), **conclude([])}
    sides = {"fixed": other, "moving": slide}
    sources = {side: {"path": path, "adapter": "image", "options": {}} for side, path in sides.items()}
    outputs.write(run, dataclasses.replace(result, metrics=metrics), sources)
    return run


@contextmanager
def served(words: list[str], folder: Path) -> Iterator[tuple[str, int]]:
    """``regframe view`` in a process of its own; its address and number."""
    start = "from regframe.cli import main; main()"
    command = [sys.executable, "-c", start, "view", *words, "--no-browser", "-o", str(folder / "out"), "--overwrite"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield server.stdout.readline().strip(), server.pid
    finally:
        server.terminate()
        server.wait(20)


def peak(pid: int) -> int:
    """The most memory that a process has had, in MiB."""
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))
    return 0 if found is None else int(found[1]) >> 10


def spent() -> float:
    """Seconds of processor time so far of all that this process started: server, the process that aligns, browser."""
    found: dict[int, tuple[int, float]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        found[int(folder.name)] = int(fields[1]), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    ours, size = {os.getpid()}, 0
    while len(ours) > size:
        size = len(ours)
        ours |= {pid for pid, (parent, _) in found.items() if parent in ours}
    return sum(found[pid][1] for pid in ours if pid in found and pid != os.getpid())


class Seen:
    """A page in the browser.

    Args:
        page: as playwright has it.
    """

    def __init__(self, page: Any) -> None:
        self.page = page
        self.wrong: list[str] = []
        page.on("console", lambda said: said.type == "error" and self.wrong.append(said.text))
        page.on("pageerror", lambda error: self.wrong.append(str(error)))

    def until(self, what: str, seconds: float = 120) -> float:
        """Wait until an expression holds; returns the seconds waited."""
        from playwright.sync_api import Error

        began = time.monotonic()
        while True:
            try:
                if self.page.evaluate(f"() => Boolean({what})"):
                    return time.monotonic() - began
            except Error:
                pass  # the address with the token leads on to the page
            if time.monotonic() - began > seconds:
                raise TimeoutError(f"{what}: {self.page.inner_text('#notice')} {self.wrong}")
            time.sleep(0.05)

    def at(self, y: float, x: float) -> tuple[float, float]:
        """Where a pixel of the fixed picture is on the screen."""
        frame = self.page.evaluate("() => window.regframe.pictures.frame('a')")
        box = self.page.locator("#view-a").bounding_box()
        return box["x"] + frame["x"] + (x + 0.5) * frame["scale"], box["y"] + frame["y"] + (y + 0.5) * frame["scale"]


def warm(seen: Seen) -> float:
    """Median milliseconds of a tile, of those asked for while zooming in and out again after the first picture."""
    page = seen.page
    page.select_option("#mode", "overlay")
    before = page.evaluate("() => performance.now()")
    for button in ("#zoom-in", "#zoom-in", "#zoom-in", "#zoom-in", "#fit"):
        page.click(button)
        time.sleep(1.2)
    times = page.evaluate(f"() => {TILES}.map((e) => [e.startTime, e.responseEnd - e.requestStart])")
    later = [took for start, took in times if start > before] or [took for _, took in times]
    return float(statistics.median(later)) if later else float("nan")


def drag(page: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Press at one place of the screen, move to another one, let go."""
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*end, steps=4)
    page.mouse.up()


def dragged(seen: Seen, shift: tuple[int, int]) -> list[tuple[float, float, float]]:
    """Seconds from letting go of a landmark to the bend on the screen, and to the answer of the images on it, and the processor
    time of all processes until then; four times.

    Five pairs are set first, each partner (y, x) = ``shift`` fixed pixels from where it is expected.
    """
    page = seen.page
    width, height = page.evaluate(
        "() => [window.regframe.pictures.canvas.width, window.regframe.pictures.canvas.height]"
    )
    page.select_option("#mode", "overlay")
    page.click("#add")
    spots = [(height * a, width * b) for a, b in ((0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75), (0.5, 0.5))]
    for n, spot in enumerate(spots, 1):
        page.mouse.click(*seen.at(*spot))
        seen.until(f"window.regframe.list().pairs.length === {n}")
        time.sleep(0.4)
    page.keyboard.press("Escape")
    for y, x in spots if any(shift) else ():
        drag(page, seen.at(y, x), seen.at(y + shift[0], x + shift[1]))
        time.sleep(0.4)
    page.check("#follow")
    time.sleep(3)
    out = []
    for k in range(4):
        shown = page.evaluate("() => window.regframe.list().pairs")[k]["shown"]
        changes, settled = page.evaluate("() => [window.regframe.changes, window.regframe.settled]")
        start, end = seen.at(*shown), seen.at(shown[0] + 4, shown[1] + 3)
        drag(page, start, end)
        began, used = time.monotonic(), spent()
        ready = "window.regframe.ready === window.regframe.maps().fresh.key"
        seen.until(f"window.regframe.changes > {changes} && {ready}")
        bent = time.monotonic() - began
        seen.until(f"window.regframe.settled > {settled} && {ready}")
        out.append((bent, time.monotonic() - began, spent() - used))
    return out


def faults(seen: Seen, axe: Path | None) -> list[list[Any]]:
    """What axe-core finds serious or critical, with everything unfolded."""
    if axe is None:
        return []
    seen.page.evaluate("() => document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    seen.page.add_script_tag(path=str(axe))
    found = seen.page.evaluate(
        "async () => (await axe.run()).violations.map((v) => [v.id, v.impact, v.nodes[0].html.slice(0, 80)])"
    )
    return [one for one in found if one[1] in ("serious", "critical")]


def shots(seen: Seen, folder: Path | None, name: str) -> None:
    """Pictures of the page, 1400 and 390 px wide, light and dark."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for width, height in ((1400, 900), (390, 844)):
        for scheme in ("light", "dark"):
            seen.page.set_viewport_size({"width": width, "height": height})
            seen.page.emulate_media(color_scheme=scheme)
            time.sleep(1)
            seen.page.screenshot(path=str(folder / f"{name}-{width}-{scheme}.png"), full_page=width == 390)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--run", type=Path, help="a finished run of the pair, instead of its files")
    parser.add_argument("--made", type=int)
    parser.add_argument("--pyramid", type=int)
    parser.add_argument("--other", action="store_true")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--drag", action="store_true")
    parser.add_argument("--axe", type=Path)
    parser.add_argument("--shots", type=Path)
    parser.add_argument("--name", default="page")
    given = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as spare, sync_playwright() as drive:
        folder = given.folder or Path(spare)
        folder.mkdir(parents=True, exist_ok=True)
        words = [str(given.run)] if given.run else [str(path) for path in given.files]
        if given.made:
            words = [str(path) for path in made(folder, given.made)]
        if given.pyramid:
            slide = folder / "slide.tif"
            slide = slide if slide.exists() else pyramid(folder, given.pyramid)
            words = [str(bent(folder, slide, given.pyramid))] if given.other else [str(slide)] * 2
        browser = drive.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        with served(words, Path(spare)) as (address, pid):
            page = browser.new_context(viewport={"width": 1400, "height": 900}, bypass_csp=True).new_page()
            seen = Seen(page)
            page.goto(address)
            seen.until("window.regframe && window.regframe.ready")
            first = page.evaluate("() => window.regframe.first")
            time.sleep(8)  # the process that aligns opens both sides meanwhile
            tile = warm(seen)
            drags = dragged(seen, SHIFT if given.made else (0, 0)) if given.drag else []
            bad = faults(seen, given.axe)
            print(
                f"{given.name}: first picture {first or float('nan'):.0f} ms, warm tile {tile:.0f} ms, refit shown "
                + (", ".join(f"{a:.2f} and {b:.2f} s ({c:.2f} s of processors)" for a, b, c in drags) or "not asked")
                + f", server {peak(pid)} MiB, axe {bad}, console {seen.wrong}, load {os.getloadavg()[0]:.0f}",
                flush=True,
            )
            shots(seen, given.shots, given.name)
        browser.close()


if __name__ == "__main__":
    main()
