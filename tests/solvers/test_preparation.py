"""What is found out about an image before it is compared, and how neighbouring sections are told from one section."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform, gaussian_filter, rotate
from skimage.data import immunohistochemistry

import regframe as rf
from regframe.fit.likeness import BLOCK, coincidence, shared_structure
from regframe.solvers import preparation


def tissue(number: int, shape: tuple[int, int] = (160, 200), sigma: float = 2.0) -> np.ndarray:
    """Texture between 0 and 1."""
    rng = np.random.default_rng(number)
    out = gaussian_filter(rng.standard_normal(shape), sigma)
    return (out - out.min()) / np.ptp(out)


def slide(number: int = 0) -> np.ndarray:
    """A stained section ``[H, W, 3]`` uint8 on white glass."""
    y, x = np.mgrid[:160, :200]
    inside = ((y - 80) / 60) ** 2 + ((x - 100) / 80) ** 2 < 1
    stain = tissue(number)[..., None] * np.array([80, 160, 60])
    noise = np.random.default_rng(number).normal(0, 1, (160, 200, 1))
    return (np.where(inside[..., None], 240 - stain, 240.0) + noise).clip(0, 255).astype(np.uint8)


def image(array: np.ndarray) -> rf.Image:
    return rf.Image.from_array(array)


def test_a_stained_section_is_brightfield() -> None:
    same, look = preparation.prepare(image(slide()))
    assert look.brightfield
    assert same.weight is None
    assert np.allclose(look.background, 240, atol=3)
    assert look.tissue_fraction == pytest.approx(math.pi * 60 * 80 / (160 * 200), abs=0.12)
    assert look.padded_fraction == 0


@pytest.mark.parametrize("what", ["inverted", "one channel", "pink background", "volume"])
def test_what_is_not_brightfield(what: str) -> None:
    array = slide()
    if what == "inverted":
        array = 255 - array
    if what == "pink background":
        array[..., 1] //= 2
    chosen = image(array[..., 0]) if what == "one channel" else image(array)
    if what == "volume":
        chosen = rf.Image(torch.rand(1, 9, 10, 11), rf.Grid((9, 10, 11)))
    assert not preparation.prepare(chosen)[1].brightfield


def stroke(shape: tuple[int, int]) -> np.ndarray:
    """A pen's stroke across a slide, 1 where it is."""
    y, x = np.mgrid[: shape[0], : shape[1]] / min(shape)
    return (np.abs(y - 0.5 - 0.15 * np.sin(5 * x)) < 0.03).astype(np.float64)


@pytest.mark.parametrize("colour", [(20, 40, 160), (10, 120, 40), (15, 15, 15), (200, 30, 40)])
@pytest.mark.parametrize("cover", [1.0, 0.85])
def test_ink_does_not_count(colour: tuple[int, int, int], cover: float) -> None:
    plain = slide().astype(np.float64)
    drawn = stroke((160, 200))
    share = cover * (drawn if cover == 1 else gaussian_filter(drawn, 1.0))[..., None]
    inked = (plain * (1 - share) + np.array(colour) * share).clip(0, 255).astype(np.uint8)
    out, look = preparation.prepare(image(inked))
    assert look.brightfield
    assert out.weight is not None
    assert float(out.weight[drawn > 0].mean()) < 0.02
    assert drawn.mean() < look.ink_fraction < 2.2 * drawn.mean()


@pytest.mark.parametrize("shift", [0.0, -255.0, -1000.0])
def test_ink_is_found_whatever_stands_for_no_light(shift: float) -> None:
    drawn = stroke((160, 200))
    inked = np.where(drawn[..., None] > 0, np.array([20.0, 40.0, 160.0]), slide().astype(np.float64)) + shift
    assert preparation.prepare(image(inked.astype(np.float32)))[1].ink_fraction > drawn.mean()


def test_a_mask_that_hides_all_is_no_defect() -> None:
    hidden = rf.Image(image(slide()).data, rf.Grid((160, 200)), weight=torch.zeros(160, 200))
    assert preparation.prepare(hidden)[1].ink_fraction == 0


def test_smooth_dark_tissue_is_no_ink() -> None:
    y, x = np.mgrid[:160, :200]
    inside = gaussian_filter((((y - 80) / 60) ** 2 + ((x - 100) / 80) ** 2 < 1) * 1.0, 1.0)
    shade = 1 + 0.3 * np.sin(x / 30)
    noise = np.random.default_rng(0).normal(0, 1, (160, 200, 3))
    smooth = (240 - (inside * shade)[..., None] * np.array([60.0, 120.0, 40.0]) + noise).clip(0, 255).astype(np.uint8)
    out, look = preparation.prepare(image(smooth))
    assert look.ink_fraction == 0
    assert out.weight is None


PENS = (10, 120, 40), (20, 40, 160)


def averaged(picture: np.ndarray, step: int) -> np.ndarray:
    """``[H, W, 3]`` uint8 in pixels ``step`` times as wide."""
    height, width = (n // step * step for n in picture.shape[:2])
    tiles = picture[:height, :width].reshape(height // step, step, width // step, step, 3)
    return np.asarray(tiles.mean(axis=(1, 3)).astype(np.uint8))


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow), 4])
def test_pens_on_both_slides_change_nothing_much(step: int, data_dir: Path) -> None:
    """Lung sections that somebody has drawn on, each in another place; at full, half and quarter resolution."""
    folder = data_dir / "02_histology_landmarks" / "lung-lesion_3"
    names = ("29-041-Izd2-w35-He-les3", "29-041-Izd2-w35-Ki67-7-les3")
    plain = [averaged(rf.open(folder / f"{name}.jpg").data.permute(1, 2, 0).numpy(), step) for name in names]
    drawn = []
    for picture, colour, turn in zip(plain, PENS, (0, 2), strict=True):
        mask = np.rot90(stroke(picture.shape[:2]), turn)[..., None]
        drawn.append(image((picture * (1 - mask) + np.array(colour) * mask).astype(np.uint8)))
    clean, inked = (rf.register(*pair, transform="affine") for pair in ([image(p) for p in plain], drawn))
    looks = inked.metrics["preparation"]
    assert min(looks[side]["ink_fraction"] for side in ("fixed", "moving")) > 0.02
    # where there is tissue to see: the landmarks, at half of the full size on file, the pictures at a twentieth of it
    at, there = ((places(folder / "PS_scale-50pc" / f"{name}.csv") / 10 + 0.5) / step - 0.5 for name in names)
    where = [result.to_moving(at) for result in (clean, inked)]
    moved = (where[0] - where[1]).norm(dim=1)
    assert float(moved.median()) < 4 / step
    assert float(moved.max()) < 12 / step
    before, after = (float((w - there).norm(dim=1).median()) for w in where)
    assert after < 1.05 * before


def places(path: Path) -> torch.Tensor:
    """Landmarks ``[N, 2]`` of a file of the challenge, (y, x)."""
    return torch.from_numpy(np.loadtxt(path, delimiter=",", skiprows=1, usecols=(2, 1)))


@pytest.mark.parametrize("fill", [0, 128, 255])
@pytest.mark.parametrize("angle", [20.0, 45.0])
def test_padding_beside_a_turned_slide_does_not_count(fill: int, angle: float) -> None:
    array = (150 + 80 * tissue(1)).astype(np.uint8)
    turned = rotate(array, angle, order=1, cval=fill)
    whole = rotate(np.ones(array.shape), angle, order=1)
    found, look = preparation.prepare(image(turned))
    assert look.padded_fraction == pytest.approx((whole < 0.5).mean(), abs=0.02)
    assert found.weight is not None
    assert float(found.weight[torch.from_numpy(whole < 0.01)].max()) == 0
    assert float(found.weight[80:-80, 100:-100].min()) == 1


@pytest.mark.parametrize("shape", ["disc", "hand"])
def test_what_lies_on_an_even_background_is_not_cut_out(shape: str) -> None:
    y, x = np.mgrid[:160, :200]
    inside = (y - 80) ** 2 + (x - 100) ** 2 < 50**2
    if shape == "hand":
        inside |= (np.abs(x % 30 - 15) < 6) & (y > 20) & (y < 80)
    found, look = preparation.prepare(image(np.where(inside, 120 + 80 * tissue(0), 0).astype(np.uint8)))
    assert look.padded_fraction == 0
    assert found.weight is None


def test_printed_marks_do_not_count() -> None:
    """A frame of equal dots at equal distances, as on the slides of spatial transcriptomics, with tissue over some of them."""
    array = np.pad(slide(), ((60, 60), (60, 60), (0, 0)), constant_values=240).astype(float)
    y, x = np.mgrid[: array.shape[0], : array.shape[1]]
    ring = (np.minimum(y, array.shape[0] - 1 - y) < 40) | (np.minimum(x, array.shape[1] - 1 - x) < 40)
    dots = ((y % 9 - 4) ** 2 + (x % 9 - 4) ** 2 < 8) & ring
    array[dots] -= 60.0
    found, look = preparation.prepare(image(array.clip(0, 255).astype(np.uint8)))
    assert found.weight is not None
    assert float(found.weight[torch.from_numpy(dots)].mean()) < 0.05
    assert float(found.weight[80:-80, 80:-80].min()) == 1
    assert look.marks_fraction > 0.1
    assert preparation.prepare(image(slide()))[1].marks_fraction == 0


def printed(turn: float, shift: tuple[float, float], number: int) -> np.ndarray:
    """A stained section ``[360, 360, 3]``, turned by so many degrees and shifted, on a slide with printed blocks and an uneven
    glass, which stay where they are."""
    side, angle = 360, math.radians(turn)
    y, x = np.mgrid[:256, :256]
    inside = ((y - 128) / 95) ** 2 + ((x - 120) / 75) ** 2 < 1
    matrix = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    offset = 128 - matrix @ (side / 2 + np.array(shift))

    def laid(values: np.ndarray) -> np.ndarray:
        return affine_transform(values.astype(np.float64), matrix, offset, (side, side), order=1)

    picture = np.stack([laid(channel) for channel in immunohistochemistry()[::2, ::2].transpose(2, 0, 1)], axis=-1)
    y, x = np.mgrid[:side, :side]
    glass, blocks = 236 + 4 * np.sin(2 * np.pi * y / 24) * np.sin(2 * np.pi * x / 24), np.zeros((side, side))
    for k in range(6):
        for at in (4, side - 24):
            blocks[60 * k + 8 : 60 * k + 48, at : at + 20] = 90
            if k % 2:
                blocks[at : at + 20, 60 * k + 8 : 60 * k + 48] = 90
    cover = laid(inside)[..., None]
    out = (glass - gaussian_filter(blocks, 3))[..., None] * (1 - cover) + picture * cover
    return (out + np.random.default_rng(number).normal(0, 2, out.shape)).clip(0, 255).astype(np.uint8)


def test_stained_tissue_is_set_apart_from_what_is_printed_on_glass() -> None:
    array = printed(0, (0, 0), 0)
    stained = preparation.prepare(image(array))[1].stained
    assert stained is not None
    assert not bool(stained[:60].any() | stained[300:].any() | stained[:, :60].any() | stained[:, 300:].any())
    y, x = np.mgrid[:360, :360]
    inside = torch.from_numpy(((y - 180) / 95) ** 2 + ((x - 172) / 75) ** 2 < 0.8)
    assert float(stained[inside].to(torch.float32).mean()) > 0.6
    # tissue all over the picture has no glass to be set apart from
    assert preparation.prepare(image(immunohistochemistry()[::2, ::2]))[1].stained is None
    assert preparation.prepare(image(255 - array))[1].stained is None


@pytest.mark.parametrize("turn", [25.0, -140.0])
def test_the_tissue_is_aligned_and_not_what_is_printed_on_the_slide(turn: float) -> None:
    result = rf.register(printed(0, (0, 0), 0), printed(turn, (20, -25), 1), transform="rigid")
    linear = result.affine.matrix[:2, :2]
    found = math.degrees(math.atan2(float(linear[1, 0] - linear[0, 1]), float(linear[0, 0] + linear[1, 1])))
    assert found == pytest.approx(turn, abs=0.5)


def test_fragments_of_tissue_are_no_marks() -> None:
    rng = np.random.default_rng(0)
    array = np.pad(slide(), ((60, 60), (60, 60), (0, 0)), constant_values=240)
    for cy, cx, r in zip(rng.integers(3, 270, 300), rng.integers(3, 310, 300), rng.uniform(1.5, 5, 300), strict=True):
        y, x = np.mgrid[: array.shape[0], : array.shape[1]]
        array[(y - cy) ** 2 + (x - cx) ** 2 < r**2] = (170, 140, 165)  # stained, as the tissue is
    assert preparation.prepare(image(array))[1].marks_fraction == 0


def test_what_is_dark_and_grey_on_bare_glass_is_hidden_unless_it_touches_the_tissue() -> None:
    array = printed(0, (0, 0), 0)
    array[20:60, 100:104] = 60  # a bar
    array[300:303, 200:203] = 120  # a speck
    array[160:195, 70:115] = 60  # what lies across the edge of the tissue
    array[62:70, 180:181] = (170, 60, 150)  # a stained thread
    prepared, look = preparation.prepare(image(array))
    assert prepared.weight is not None
    hidden = prepared.weight == 0
    assert bool(hidden[20:60, 100:104].all())
    assert bool(hidden[300:303, 200:203].all())
    assert bool(hidden[16:40, 8:20].all())  # a printed block
    assert not bool(hidden[90:270, 110:230].any())  # the tissue
    assert not bool(hidden[160:195, 70:115].any())
    assert look.marks_fraction == pytest.approx(float(hidden.to(torch.float32).mean()), abs=1e-6)
    assert preparation.prepare(image(255 - array))[1].marks_fraction == 0


def test_a_mask_that_was_there_stays() -> None:
    weight = torch.rand(160, 200)
    found, _ = preparation.prepare(image(slide()).replace(weight=weight))
    assert found.weight is weight


def both(a: np.ndarray, b: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    one, other = (torch.from_numpy(np.ascontiguousarray(x)).float()[None] for x in (a, b))
    return one, other, torch.ones(one.shape[1:])


def test_shared_structure() -> None:
    a, b = tissue(0), tissue(1)
    assert shared_structure(*both(a, a)) == pytest.approx(1, abs=1e-5)
    assert shared_structure(*both(a, 3 * a + 1)) == pytest.approx(1, abs=1e-5)
    assert shared_structure(*both(a, b)) < 0.01
    assert shared_structure(*both(a, -a)) == 0  # the contrast map has seen to the sign
    steps = np.kron(np.random.default_rng(0).random((20, 25)), np.ones((BLOCK, BLOCK)))
    assert shared_structure(*both(a + 5 * steps, b + 5 * steps)) < 0.01  # what is larger than a block does not count


def test_shared_structure_ignores_hidden_pixels() -> None:
    a, b, w = both(tissue(0), tissue(0))
    w[:, :100] = 0
    assert shared_structure(a, torch.where(w > 0, b, torch.rand_like(b)), w) == pytest.approx(1, abs=1e-5)


def test_coincidence_tells_the_place() -> None:
    a = tissue(0)
    noisy = a + 0.3 * tissue(5, sigma=1.0)
    assert coincidence(*both(a, noisy)) > 20
    assert abs(coincidence(*both(a, np.roll(noisy, (9, 17), (0, 1))))) < 5
    assert abs(coincidence(*both(a, tissue(1)))) < 5
    assert coincidence(*both(a, noisy)) == pytest.approx(coincidence(*both(7 * a - 2, noisy)), rel=1e-3)
    empty = both(a, noisy)
    assert coincidence(empty[0], empty[1], torch.zeros_like(empty[2])) == 0


def test_coincidence_of_a_pattern_that_repeats_says_little() -> None:
    y, x = np.mgrid[:160, :200]
    waves = np.sin(y / 1.5) * np.sin(x / 1.5)
    assert coincidence(*both(waves, waves)) < 10


def test_sections_are_bent_with_mutual_information() -> None:
    """Two stains of tissue whose large structure is one and whose cells are others."""
    shape = (320, 400)
    large, cells = tissue(2, shape, 40.0), [tissue(n, shape, 3.0) for n in (3, 4)]
    large = (large > np.median(large)) * 1.0  # tissue and glass
    inside = gaussian_filter(large, 10.0)
    slides = [
        (240 - (inside * (400 * c - 160))[..., None] * np.array(stain)).clip(0, 255).astype(np.uint8)
        for c, stain in zip(cells, ([0.5, 1.0, 0.3], [0.9, 0.8, 0.6]), strict=True)
    ]
    result = rf.register(image(slides[0]), image(slides[1]), init="identity")
    assert result.metrics["metric"]["name"] == "mi"
    assert "densities" in result.metrics["metric"]["why"]
    assert result.config.metric == "auto"
    places = torch.tensor([[160.0, 200.0], [120.0, 140.0], [200.0, 280.0]])
    assert float((result.to_moving(places) - places).norm(dim=1).max()) < 6
    one = rf.register(image(slides[0]), image(255 - slides[0]), init="identity", transform="affine")
    assert one.metrics["metric"]["name"] == "contrast"
    named = rf.register(image(slides[0]), image(slides[1]), init="identity", metric="ncc", transform="affine")
    assert named.metrics["metric"] == {"name": "ncc", "why": "as asked for"}


def test_options_without_a_metric_are_refused() -> None:
    with pytest.raises(ValueError, match="wanted a metric by name for the options \\['radius'\\]"):
        rf.register(image(slide()), image(slide()), config=rf.Config(metric_options={"radius": 3}))


@pytest.mark.parametrize("seed", range(40))
def test_straight_pieces_are_those_of_an_independent_implementation(seed: int) -> None:
    from scipy.spatial import ConvexHull
    from skimage.measure import approximate_polygon

    from regframe.solvers.preparation import _straight_pieces

    rng = np.random.default_rng(seed)
    points = rng.normal(size=(40, 2)) * 20
    if seed % 2:
        points = points.round()
    corners = points[ConvexHull(points).vertices]
    ring, tolerance = np.vstack([corners, corners[:1]]), float(rng.uniform(0.05, 3))
    assert _straight_pieces(ring, tolerance) == len(approximate_polygon(ring, tolerance)) - 1


def test_a_registration_does_not_load_what_takes_half_a_second() -> None:
    """Libraries that one call of theirs would load: symbolic algebra, signals, statistics."""
    code = (
        "import sys, torch, regframe as rf; rng = torch.Generator().manual_seed(0); "
        "a = rf.Image(torch.rand((1, 64, 64), generator=rng), rf.Grid((64, 64), (1.0, 1.0))); "
        "rf.register(a, a); slow = 'sympy', 'scipy.signal', 'scipy.stats', 'pandas', 'matplotlib'; "
        "print([name for name in slow if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
