"""The report: one self-contained page, whatever the two sides are."""

from __future__ import annotations

import dataclasses
import html.parser
import io
import itertools
import re
import xml.etree.ElementTree
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from fake_result import fake_result

import regframe as rf
from regframe.data import Grid, Image, PointSet
from regframe.maps.affine import Affine
from regframe.registration import register
from regframe.report import dots, figures, pictures, results
from regframe.report.pictures import Array


def textured(channels: int, *shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((1, channels, *(max(2, n // 6) for n in shape)), generator=generator)
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    return torch.nn.functional.interpolate(coarse, size=shape, mode=mode)[0]


def image(channels: int, *shape: int, dtype: torch.dtype = torch.uint8, **kwargs: object) -> Image:
    data = textured(channels, *shape)
    data = (data * 255).to(torch.uint8) if dtype == torch.uint8 else data.to(dtype) * 4000
    unit = kwargs.pop("unit", "px")
    spacing = kwargs.pop("spacing", ())
    return Image(data, Grid(shape, spacing, (), unit), **kwargs)  # type: ignore[arg-type]


class Page(html.parser.HTMLParser):
    """What a page holds and refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(fixed: Image | PointSet, moving: Image | PointSet, tmp_path: Path, **kwargs: object) -> Page:
    def grid(data: Image | PointSet) -> Grid:
        return data.grid if isinstance(data, Image) else Grid((80, 90), unit=data.unit)

    result = fake_result(grid(fixed), grid(moving), n_nodes=13, **kwargs)  # type: ignore[arg-type]
    path = tmp_path / "report.html"
    results.write(result, fixed, moving, path)
    assert path.stat().st_size < results.MAX_BYTES
    return Page(path.read_text(encoding="utf-8"))


def test_it_is_self_contained_and_complete(tmp_path: Path) -> None:
    page = page_of(image(3, 90, 110), image(1, 100, 80), tmp_path, verdict="warn")
    assert page.sources
    assert all(source.startswith("data:image/") for source in page.sources)
    assert not {"link", "iframe", "object"} & set(page.tags)
    assert page.tags.count("script") == 1  # the package's own, see test_viewer.py
    assert page.tags.count("img") >= 15
    text = " ".join(page.text.split())
    assert "http" not in text
    for word in (
        "Not confirmed",
        "has <no> counterpart",
        "Overlay after",
        "Overlay before",
        "Checkerboard after",
    ):
        assert word in text
    for word in (
        "Matching weight",
        "Jacobian determinant",
        "Displacement",
        "Deformed grid",
        "Energy",
        "roundtrip_px.max",
    ):
        assert word in text
    for word in ("optimizer.max_iter", "rf.load", "Fixed", "Moving, as it came"):
        assert word in text


def test_text_from_files_is_escaped(tmp_path: Path) -> None:
    moving = image(1, 60, 60, name="<script>alert(1)</script>.png")
    page = page_of(image(1, 60, 60), moving, tmp_path)
    assert page.tags.count("script") == 1
    assert "<script>alert(1)</script>.png" in page.text


@pytest.mark.parametrize(
    ("fixed", "moving"),
    [
        (image(1, 70, 60, dtype=torch.float32), image(3, 60, 70)),
        (image(5, 64, 64, dtype=torch.int32), image(2, 64, 64, dtype=torch.float64)),
        (image(1, 20, 64, 56, dtype=torch.float32), image(1, 18, 60, 60, dtype=torch.float32)),
        (image(1, 1, 64, 56), image(1, 16, 60, 60)),
        (image(1, 30, 31, spacing=0.5, unit="µm"), image(1, 30, 31, spacing=0.0005, unit="mm")),
        (image(1, 40, 400), image(1, 400, 40)),
        (image(1, 8, 8), image(1, 9, 7)),
    ],
    ids=["grey-rgb", "channels", "volumes", "section-volume", "units", "narrow", "tiny"],
)
def test_kinds_of_images(fixed: Image, moving: Image, tmp_path: Path) -> None:
    affine = None
    if fixed.grid.unit != moving.grid.unit:
        affine = torch.diag(torch.tensor([1e3, 1e3, 1.0], dtype=torch.float64))
    page = page_of(fixed, moving, tmp_path, affine=affine, bend=1.0)
    assert page.tags.count("img") >= 12


def test_labels(tmp_path: Path) -> None:
    ids = (textured(1, 60, 60) * 12).to(torch.int32)
    labels = Image(ids, Grid((60, 60)), labels=True)
    assert page_of(labels, labels, tmp_path).tags.count("img") >= 12


def test_points(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    points = PointSet(torch.rand((4000, 2), generator=generator, dtype=torch.float64) * 80, name="cells.csv")
    page = page_of(points, points, tmp_path)
    assert "4,000 points in px" in page.text
    for word in ("fixed in blue, moving in orange", "Overlay before", "Close up", "Deformed grid"):
        assert word in page.text
    assert "Checkerboard" not in page.text
    assert page_of(image(1, 80, 90), points, tmp_path).tags.count("img") >= 12


def colours_at(png: bytes) -> tuple[Array, Array]:
    """Where a picture shows the fixed and the moving colour, ``[h, w]`` each."""
    pixels = np.asarray(PIL.Image.open(io.BytesIO(png)).convert("RGB"), dtype=np.float32)
    found = []
    for colour in (dots.FIXED, dots.MOVING):
        wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.float32)
        found.append(np.abs(pixels - wanted).max(axis=2) < 12)
    return found[0], found[1]


@pytest.mark.parametrize("ndim", [2, 3])
def test_dots_show_every_point_where_it_is(ndim: int) -> None:
    """Both sides whole, also where they lie far apart: as many separate spots as there are points."""
    from scipy.ndimage import label

    coords = np.stack(np.meshgrid(*[np.arange(4.0) * 10] * ndim, indexing="ij"), axis=-1).reshape(-1, ndim)
    one = dots.Cloud.of(PointSet(torch.from_numpy(coords)), "fixed", dots.FIXED)
    other = dots.Cloud.of(PointSet(torch.from_numpy(coords + 1000.0)), "moving", dots.MOVING)
    alone = colours_at(dots.picture((one,), 700))[0]
    assert label(alone)[1] == (16 if ndim == 2 else 32)  # along z and along y
    fixed, moving = colours_at(dots.picture((one, other), 900))
    assert fixed.any()
    assert moving.any()
    assert np.flatnonzero(fixed.any(axis=1)).max() < np.flatnonzero(moving.any(axis=1)).max()  # rows count downwards


def test_many_dots_are_a_sample_and_said_to_be() -> None:
    coords = torch.rand((dots.MOST_DOTS + 7, 2), dtype=torch.float64)
    coords[0, 0] = float("nan")
    cloud = dots.Cloud.of(PointSet(coords), "fixed", dots.FIXED)
    assert len(cloud.coords) == dots.MOST_DOTS
    assert f"{dots.MOST_DOTS:,} of {dots.MOST_DOTS + 6:,} points" in dots.remarks(cloud)
    few = dots.Cloud.of(PointSet(coords[:9]), "moving", dots.MOVING)
    assert dots.remarks(few) == ""


def test_close_ups_lie_where_both_sides_have_points() -> None:
    generator = np.random.default_rng(0)
    dense = generator.normal(20.0, 2.0, (400, 2))
    one = dots.Cloud.of(
        PointSet(torch.from_numpy(np.r_[dense, generator.uniform(0, 100, (100, 2))])), "fixed", dots.FIXED
    )
    two = dots.Cloud.of(
        PointSet(torch.from_numpy(np.r_[dense, generator.normal(80.0, 1.0, (400, 2))])), "moving", dots.MOVING
    )
    windows = dots.places((one, two), 3)
    low, high = windows[0]
    assert (low < 20).all()
    assert (high > 20).all()
    for (a, b), (c, d) in itertools.combinations(windows, 2):
        assert (np.minimum(b, d) <= np.maximum(a, c) + 0.3 * (b - a)).any()  # hardly any overlap
    assert len({low.tobytes() for low, _ in windows}) == len(windows)


def test_without_weights_and_history(tmp_path: Path) -> None:
    fixed = image(1, 64, 64)
    result = dataclasses.replace(fake_result(fixed.grid, fixed.grid, weight=False, verdict="fail"), history=[])
    results.write(result, fixed, fixed, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Contradicted, or no evidence" in text
    assert "Matching weight" not in text
    assert "Energy per evaluation" not in text


def test_a_large_image_is_shrunk_for_the_page(tmp_path: Path) -> None:
    large = image(3, 2400, 2000)
    assert page_of(large, large, tmp_path).tags.count("img") >= 15


def test_a_page_that_grows_too_large_is_coded_more_coarsely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def render(*args: object) -> str:
        assert isinstance(args[3], int)
        asked.append(args[3])
        return "x" * (args[3] * 10_000)

    monkeypatch.setattr(results, "render", render)
    small = image(1, 20, 20)
    page_of(small, small, tmp_path)
    assert asked == [results.MAX_PX, 700, 480]


def test_the_picture_shows_what_the_map_says() -> None:
    """A moved bright square lies in the picture where the map puts it."""
    data = torch.zeros((1, 100, 120))
    data[0, 40:50, 60:70] = 1
    moving = Image(data, Grid((100, 120), 0.5, (), "µm"))
    shift = torch.eye(3, dtype=torch.float64)
    shift[:2, 2] = torch.tensor([5.0, -10.0])  # µm: 10 px down, 20 px left
    canvas = pictures.canvas_of(moving.grid, 900)
    side = pictures.Side.of(moving, 900)
    picture = side.picture(pictures.View.of(canvas, Affine(shift, "µm", "µm")))
    rows, cols = np.nonzero(picture[0] > 0.5)
    assert (rows.mean(), cols.mean()) == pytest.approx((54.5, 44.5), abs=0.1)


@pytest.mark.parametrize("value", [np.nan, -9999.0])
def test_no_data_are_hatched_and_do_not_set_the_tones(value: float) -> None:
    data = textured(1, 100, 120).to(torch.float32)
    known, spoilt = Image(data, Grid((100, 120))), data.clone()
    spoilt[:, :40] = value
    canvas = pictures.canvas_of(known.grid, 900)
    view = pictures.View.of(canvas, Affine.identity(2))
    drawn = []
    for shown in (known, pictures.blanked(Image(spoilt, Grid((100, 120))))):
        side = pictures.Side.of(shown, 900)
        drawn.append((side.rgb(side.picture(view)), side.ink(side.picture(view))))
    (plain, _), (rgb, ink) = drawn
    assert np.isfinite(rgb).all()
    assert np.abs(rgb[45:] - plain[45:]).mean() < 0.05
    assert rgb[:38].min() > 0.9
    assert ink[:38].max() == 0


def test_shrinking_keeps_positions_and_means() -> None:
    grid = Grid((61, 80), (0.5, 0.5), (3.0, -2.0), "µm")
    ramp = grid.coords().movedim(-1, 0).to(torch.float32)  # values are positions
    small = pictures.shrink(Image(ramp, grid), 2.0)
    assert small.grid.spacing == (2.0, 2.0)
    inner = small.data[:, :-1, :-1].to(torch.float64)
    assert torch.allclose(inner, small.grid.coords().movedim(-1, 0)[:, :-1, :-1], atol=1e-5)


def test_cropping_keeps_positions() -> None:
    grid = Grid((50, 60), (0.5, 2.0), (3.0, -2.0), "µm")
    ramp = grid.coords().movedim(-1, 0)
    cut = pictures.crop(Image(ramp, grid), torch.tensor([[10.0, 20.0], [14.0, 50.0]], dtype=torch.float64), 1.0)
    assert torch.allclose(cut.data, cut.grid.coords().movedim(-1, 0))
    assert cut.grid.shape < grid.shape
    far = pictures.crop(Image(ramp, grid), torch.tensor([[1e6, 1e6]], dtype=torch.float64), 1.0)
    assert min(far.grid.shape) >= 1


def test_density_finds_its_points() -> None:
    points = PointSet(torch.tensor([[10.0, 30.0], [10.0, 30.0], [float("nan"), 1.0]]))
    out = pictures.density(points, Grid((40, 50)))
    assert np.unravel_index(int(out[0].argmax()), out[0].shape) == (10, 30)


def test_overlay_is_black_where_both_agree() -> None:
    ink = np.array([[0.0, 1.0]], dtype=np.float32)
    assert pictures.overlay(ink, ink).tolist() == [[[1, 1, 1], [0, 0, 0]]]


def test_an_inverted_stain_is_drawn_alike() -> None:
    """The ink of an inverted, gamma-changed copy equals the original's; unrelated data stay as they are."""
    fixed = image(1, 80, 80)
    values = fixed.data.to(torch.float32) / 255
    moving = fixed.replace(data=torch.cat([1 - values**2, torch.rand_like(values)]) * 100, channels=("a", "b"))
    view = pictures.View.of(fixed.grid, Affine.identity(2))
    f, m = pictures.Side.of(fixed, 900), pictures.Side.of(moving, 900)
    ink, seen = f.ink(f.picture(view)), np.ones((80, 80), dtype=bool)
    attuned = m.attuned(m.picture(view), ink, seen)
    assert np.abs(attuned.ink(m.picture(view)) - ink).mean() < 0.03
    noise = pictures.Side.of(fixed.replace(data=torch.rand_like(values)), 900)
    assert noise.attuned(noise.picture(view), ink, seen).look == noise.look


def test_energy_of_odd_histories() -> None:
    assert figures.energy([]) is None
    assert figures.energy([{"stage": "pose"}]) is None
    odd = [{"loss": 1.0}, {"loss": float("nan")}, {"loss": 0.0}]
    drawn = figures.energy(odd)
    assert drawn is not None
    assert xml.etree.ElementTree.fromstring(drawn).tag.endswith("svg")
    assert "nan" not in drawn


def test_the_page_names_no_place(tmp_path: Path) -> None:
    page = page_of(image(1, 60, 60), image(1, 60, 60), tmp_path)
    assert not re.search(r"/(tmp|home|work|root)/", page.text)


def test_the_other_pose_is_shown_where_it_came_close() -> None:
    """A disc with a faint mark fits at any turn."""
    y, x = np.mgrid[:96, :96]
    disc = ((y - 48) ** 2 + (x - 48) ** 2 < 30**2) * 200.0
    image = Image.from_array(disc.astype(np.float32))
    result = register(image, image, transform="similarity")
    other = {"matrix": [[-1, 0, 95], [0, -1, 95], [0, 0, 1]], "score": 1.0}
    close = dataclasses.replace(result, metrics=result.metrics | {"pose_margin": 0.05, "runner_up": other})
    assert "The other pose" in results.render(close, image, image)
    clear = dataclasses.replace(close, metrics=close.metrics | {"pose_margin": 0.9})
    assert "The other pose" not in results.render(clear, image, image)


def test_the_headline_says_how_sure_it_is() -> None:
    data = image(1, 40, 50)
    sure = fake_result(data.grid, data.grid, confidence=0.87)
    page = results.render(sure, data, data, 64, 60)
    assert "<h1>Confirmed · confidence 87 %</h1>" in page
    assert "start margin" not in page
    unknown = fake_result(data.grid, data.grid, confidence=None)
    assert "<h1>Confirmed</h1>" in results.render(unknown, data, data, 64, 60)
    assert "confidence 0.87" in repr(sure)
    assert "confidence" not in repr(unknown)


def test_the_public_function_writes_the_page(tmp_path: Path) -> None:
    data = image(1, 40, 50)
    result = fake_result(data.grid, data.grid, n_nodes=13)
    rf.write_report(result, tmp_path / "r.html", data, data)
    assert Page((tmp_path / "r.html").read_text(encoding="utf-8")).tags.count("img") > 5
    for given in ((data,), (data, data, data)):
        with pytest.raises(TypeError, match=f"got Result, the file and {len(given)} more"):
            rf.write_report(result, tmp_path / "r.html", *given)  # type: ignore[call-overload]
