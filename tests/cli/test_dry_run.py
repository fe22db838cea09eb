"""`regframe register --dry-run`: what a run would trip over is found before, and what it will take is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner, Result
from PIL import Image
from scipy.ndimage import gaussian_filter

import regframe as rf
from regframe.cli import forecast, main


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures in µm as pyramids of tiles, one in pixels, a table, and files that are broken in a way each."""
    folder = tmp_path_factory.mktemp("dry")
    texture = gaussian_filter(np.random.default_rng(0).random((256, 256)), 2)
    texture = (255 * (texture - texture.min()) / np.ptp(texture)).astype(np.uint8)
    about = {
        "axes": "YX",
        "PhysicalSizeX": 0.5,
        "PhysicalSizeY": 0.5,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeYUnit": "µm",
    }
    for name in ("fixed", "broken"):
        with tifffile.TiffWriter(folder / f"{name}.ome.tif", ome=True) as file:
            file.write(texture, subifds=1, metadata=about, tile=(64, 64), compression="zlib")
            file.write(texture[::2, ::2].copy(), subfiletype=1, tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(folder / "broken.ome.tif") as file:
        page = file.pages[0]
        at, count = page.dataoffsets[10], page.databytecounts[10]  # the tile in the middle of the finest level
    with (folder / "broken.ome.tif").open("r+b") as file:
        file.seek(at)
        file.write(b"\xff" * count)
    Image.fromarray(texture).save(folder / "plain.png")
    (folder / "cells.csv").write_text("x_um,y_um\n" + "".join(f"{i * 7 % 50},{i * 3 % 40}\n" for i in range(60)))
    (folder / "outside.csv").write_text("fixed_y,fixed_x,moving_y,moving_x\n1,2,3,4\n9000,2,3,4\n5,6,7,90\n")
    np.savetxt(folder / "singular.txt", np.diag([1.0, 0.0, 1.0]))
    return folder


@pytest.fixture(autouse=True)
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder with the files is the current one."""
    monkeypatch.chdir(place)


@pytest.fixture(autouse=True)
def known_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine as fast as the one that the figures are of: measuring it takes half a second."""
    monkeypatch.setattr(forecast, "probe", lambda: forecast.PROBE)


def dry(place: Path, *options: str) -> Result:
    done = CliRunner().invoke(main, ["register", *options, "-o", "none", "--dry-run"])
    assert not (place / "none").exists()
    return done


def test_level_memory_and_time_are_said(place: Path) -> None:
    done = dry(place, "fixed.ome.tif", "fixed.ome.tif", "--level", "1")
    assert done.exit_code == 0, done.output
    assert "read at level 1 of 2, of 256 × 256 px; a tile of the finest level was decoded" in done.stdout
    assert "GB in all" in done.stdout
    assert "time    about " in done.stdout
    found = json.loads(dry(place, "fixed.ome.tif", "plain.png", "--json").stdout)
    assert found["estimated"]["seconds"] > 0
    assert found["estimated"]["bytes"] > 1e7
    assert "fixed in µm, moving in px" in " ".join(found["doubts"]) or found["doubts"]


def test_points_say_what_trying_them_as_cells_takes(place: Path) -> None:
    assert "more where they are not the same points on both sides" in dry(place, "cells.csv", "cells.csv").stdout


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("fixed.ome.tif", "plain.png", "--transform", "rigid"), "state the missing spacing or unit"),
        (("plain.png", "plain.png", "--landmarks", "outside.csv"), "inside the fixed image"),
        (("plain.png", "plain.png", "--init", "singular.txt"), "singular"),
        (("plain.png", "plain.png", "--init", "identity", "--init-set", "far=1"), "options of the start 'identity'"),
        (("broken.ome.tif", "fixed.ome.tif", "--level", "1"), "cannot read level 0"),
        (("cells.csv", "plain.png", "--init", "runner-up"), "wanted two images of one dimension"),
    ],
)
def test_bad_input_is_found_before_the_fit(place: Path, options: tuple[str, ...], says: str) -> None:
    done = dry(place, *options)
    assert done.exit_code == 2, done.output
    assert says in " ".join(done.output.split()), done.output


def test_the_estimate_grows_with_the_pair_and_with_a_slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = (rf.Image.from_array(np.zeros((n, n), np.float32), "yx") for n in (100, 1000))
    task = {n: rf.Task(image, image, None, "auto", rf.Config()) for n, image in (("small", small), ("large", large))}
    of = {name: forecast.seconds(each, "images", 1.0) for name, each in task.items()}
    assert of["small"] < of["large"] < 2 * of["small"]
    assert forecast.seconds(task["small"], "images", 3.0) == pytest.approx(3 * of["small"])
    huge = rf.Task(rf.Image.from_array(np.zeros((4000, 4000), np.uint8), "yx"), small, None, "auto", rf.Config())
    assert (
        forecast.seconds(huge, "images", 1.0) < forecast.seconds(task["large"], "images", 1.0) + 1
    )  # halved by the fit
    assert (forecast.spoken(0.2), forecast.spoken(89), forecast.spoken(600), forecast.spoken(9000)) == (
        "1 s", "89 s", "10 min", "2.5 h",
    )  # fmt: skip
