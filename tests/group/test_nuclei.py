"""Which nucleus is which: found in the pixels, matched one to one, how sure, and how many by chance."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from fake_rounds import MAPS, Register, as_path, rounds
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

import regframe as rf
from regframe.cli import main
from regframe.group import nuclei, pairs

Floats = NDArray[np.float64]


def apart(rng: np.random.Generator, n: int, least: float, size: int) -> Floats:
    """Up to ``n`` places of a square, no two nearer than ``least``."""
    kept: list[Floats] = []
    for place in rng.uniform(least, size - least, (n, 2)):
        if not kept or np.hypot(*(np.array(kept) - place).T).min() > least:
            kept.append(place)
    return np.array(kept)


def calibration(probability: list[float], right: list[bool]) -> float:
    """Mean difference between probability and the share that is right, over ten bins."""
    p, r = np.array(probability), np.array(right, dtype=float)
    bins = np.minimum((p * 10).astype(int), 9)
    return float(sum(abs(p[bins == b].mean() - r[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)))


@pytest.mark.parametrize("radius", [3.0, 6.0, 11.0])
def test_nuclei_are_found_in_the_pixels(radius: float) -> None:
    rng, size = np.random.default_rng(1), int(36 * radius)
    places = apart(rng, 400, 1.7 * radius, size)
    y, x = np.mgrid[:size, :size]
    values = np.zeros((size, size))
    for place in places:
        disc = (y - place[0]) ** 2 + (x - place[1]) ** 2 < radius**2
        values[disc] = np.maximum(values[disc], rng.uniform(0.3, 1))
    noisy = rng.poisson(ndimage.gaussian_filter(values, radius / 5) * 400 + 30).astype(np.uint16)
    found = nuclei.found(rf.Image.from_array(noisy, "yx", 0.5, unit="µm"))
    away, which = cKDTree(found.coords / 0.5).query(places)
    hit = away < 0.7 * radius
    assert hit.mean() > 0.9
    assert len(set(which[hit].tolist())) / len(found.ids) > 0.97
    assert found.size == pytest.approx(radius / 2 * 0.5, rel=0.35)


def test_the_ceiling_falls_with_the_light() -> None:
    rng = np.random.default_rng(2)
    points = np.zeros((200, 200))
    points[tuple(np.rint(apart(rng, 300, 11.0, 200)).astype(int).T)] = 1
    nucleus = ndimage.gaussian_filter(points, 3.0) * 2 * np.pi * 9
    shares = [
        nuclei.ceiling(rf.Image.from_array(rng.poisson(nucleus * light + 20).astype(np.uint16), "yx"))
        for light in (400, 12)
    ]
    assert shares[0] > 0.9
    assert shares[1] < shares[0] - 0.1


@pytest.mark.parametrize(("lost", "extra", "jitter"), [(0.1, 0.1, 0.75), (0.3, 0.3, 0.75), (0.5, 0.5, 0.5)])
def test_made_nuclei_are_matched_and_the_probability_is_right(lost: float, extra: float, jitter: float) -> None:
    probability: list[float] = []
    right: list[bool] = []
    hits = false = there = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        base = apart(rng, 600, 10.0, 400)
        alive = rng.random(len(base)) >= lost
        strewn = rng.uniform(0, 400, (int(extra * len(base)), 2))
        moved = np.vstack([base[alive] + rng.normal(0, jitter, (int(alive.sum()), 2)), strewn])
        ids = np.r_[np.flatnonzero(alive), np.full(len(strewn), -1)]
        found = nuclei.match(base, moved, np.ones(len(base), dtype=bool), 5.0)
        assert len(set(found.fixed.tolist())) == len(found.fixed)
        assert len(set(found.moving.tolist())) == len(found.moving)
        own, sure = ids[found.moving] == found.fixed, found.probability >= 0.5
        probability += found.probability.tolist()
        right += own.tolist()
        hits, false, there = hits + int((own & sure).sum()), false + int((~own & sure).sum()), there + int(alive.sum())
    assert hits / (hits + false) >= 0.98
    assert hits / there >= 0.95
    assert calibration(probability, right) < 0.03
    assert found.chance < 0.1 < found.share


def test_nuclei_of_another_section_are_not_matched() -> None:
    rng = np.random.default_rng(0)
    one, other = (apart(rng, 600, 10.0, 400) for _ in range(2))
    found = nuclei.match(one, other, np.ones(len(one), dtype=bool), 5.0)
    assert (found.probability >= 0.9).mean() < 0.05
    few = nuclei.match(one[:5], other, np.ones(5, dtype=bool), 5.0)
    assert (len(few.fixed), few.share, few.n) == (0, 0.0, 5)


def test_real_nuclei_between_two_made_rounds(data_dir: Path) -> None:
    masks = tifffile.imread(data_dir / "19_nuclei" / "mask2d.tif").astype(np.int32)
    rng, n = np.random.default_rng(3), masks.shape[0]
    at = np.stack(np.meshgrid(np.arange(n), np.arange(n), indexing="ij")).astype(float)
    bend = np.stack(
        [ndimage.zoom(ndimage.gaussian_filter(rng.standard_normal((32, 32)), 5), n / 32, order=1) for _ in range(2)]
    )
    bend *= 3 / np.linalg.norm(bend, axis=0).max()
    c, s = np.cos(np.deg2rad(0.8)), np.sin(np.deg2rad(0.8))
    turn, middle, shift = np.array([[c, -s], [s, c]]), (n - 1) / 2, np.array([14.0, -9.0])
    there = np.tensordot(turn, at + bend - middle, 1) + middle + shift[:, None, None]
    gone = rng.choice(np.arange(1, masks.max() + 1), masks.max() // 10, replace=False)
    warped = ndimage.map_coordinates(np.where(np.isin(masks, gone), 0, masks), there, order=0, mode="constant")
    one, other = (nuclei.of_labels(rf.Image.from_array(m.astype(np.int32), "yx", labels=True)) for m in (masks, warped))

    def forward(at: np.ndarray) -> np.ndarray:
        return np.stack([ndimage.map_coordinates(band, at.T, order=1, mode="nearest") for band in there], axis=1)

    def within(at: np.ndarray) -> np.ndarray:
        return np.asarray(((at >= 0) & (at <= n - 1)).all(axis=1))

    fixed = one.shared(lambda at: within((at - middle - shift) @ turn + middle))
    moved = forward(other.shared(lambda at: within(forward(at))))
    found = nuclei.match(fixed, moved, within((fixed - middle - shift) @ turn + middle), one.size)
    right, sure = one.ids[found.fixed] == other.ids[found.moving], found.probability >= 0.5
    seen = [set(np.flatnonzero(np.bincount(m.ravel()) >= 12)[1:].tolist()) for m in (masks, warped)]
    both = seen[0] & seen[1]  # those that a border cuts too
    assert (right & sure).sum() / sure.sum() >= 0.98
    assert (right & sure).sum() / len(both) >= 0.95
    assert calibration(found.probability.tolist(), right.tolist()) <= 0.03
    assert found.chance < 0.05


def test_a_nucleus_that_the_other_border_cuts_is_matched_by_the_part_that_both_show() -> None:
    values = np.zeros((40, 60), np.int32)
    values[4:10, 20:30] = 7  # on the other image as a whole
    values[14:20, 36:46] = 3  # the other image ends at column 39: four columns of it
    values[24:30, 39:59] = 9  # one column of twenty
    values[34:38, 50:54] = 2  # none
    image = rf.Image.from_array(values, "yx", (0.5, 0.5), (10.0, 0.0), "µm", labels=True)
    one = nuclei.of_labels(image)
    at = one.shared(lambda at: at[:, 1] <= 39 * 0.5)
    columns = dict(zip(one.ids.tolist(), (at[:, 1] / 0.5).tolist(), strict=True))
    assert columns == {7: 24.5, 3: 37.5, 9: 48.5, 2: 51.5}
    assert np.array_equal(at[:, 0], one.coords[:, 0])
    assert np.array_equal(one.shared(lambda at: np.ones(len(at), dtype=bool)), one.coords)
    bare = nuclei.Nuclei(one.coords, 1.0, one.ids)
    assert np.array_equal(bare.shared(lambda at: at[:, 1] <= 39 * 0.5), one.coords)


def test_the_command_writes_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "register", Register({name: MAPS[k] for k, name in enumerate("ab")}))
    files = [str(as_path(image, tmp_path)) for image in rounds(2)]
    arguments = ["rounds", *files, "-o", str(tmp_path / "OUT"), "--transform", "affine", "--reference", "a"]
    result = CliRunner().invoke(main, [*arguments, "--matches", str(tmp_path / "m.csv")])
    assert result.exit_code == 0, result.output
    assert "nuclei matched" in result.output
    assert "between halves of one image" in result.output
    with (tmp_path / "m.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == nuclei.COLUMNS
    assert len(rows) > 20
    assert np.median([float(row["residual"]) for row in rows]) < 1
    again: Any = CliRunner().invoke(main, [*arguments, "--matches", str(tmp_path / "m.csv")])
    assert again.exit_code == 0, again.output
    (tmp_path / "m.csv").write_text("mine")
    other = CliRunner().invoke(main, [*arguments, "--matches", str(tmp_path / "m.csv")])
    assert other.exit_code == 2
    assert (tmp_path / "m.csv").read_text() == "mine"
    for more, words in (
        (["--labels", "a=x.tif"], "wanted --matches FILE beside --labels"),
        (["--matches", str(tmp_path / "m.txt")], "wanted a table ending in .csv or .parquet"),
        (["--matches", str(tmp_path / "n.csv"), "--labels", "q=x.tif"], "wanted labels of a, b, got some of 'q'"),
    ):
        result = CliRunner().invoke(main, [*arguments, *more])
        assert result.exit_code == 2
        assert words in result.output
