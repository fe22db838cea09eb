"""The proving ground: its pairs are what they say they are."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial import cKDTree

import regframe as rf

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.proving import __main__ as command
from benchmarks.proving import judge, kinds, maps, pairs, sources

SEEDS = (0, 1, 2)
WRONG = 8.0
"""Pixels of the coarser side by which positions are put wrong on purpose."""


def shown(side: rf.Image, sigma: float) -> Callable[[np.ndarray], np.ndarray]:
    """What an image shows, blurred, at positions ``[N, D]``: ``[N, C]``."""
    data = side.data.float().numpy()
    top = np.percentile(data.ravel()[::17], 98)
    bands = [gaussian_filter(np.minimum(band, top), sigma) for band in data]

    def at(positions: np.ndarray) -> np.ndarray:
        index = (positions - np.array(side.grid.origin)) / np.array(side.grid.spacing)
        return np.stack([map_coordinates(b, index.T, order=1, mode="nearest") for b in bands], 1).astype(np.float64)

    return at


def unlikeness(made: pairs.Made) -> Callable[[np.ndarray], float]:
    """Of positions in ``moving``: the share of the variance of the fixed image at the true positions that the moving one there
    does not explain through polynomials of third order (stains and inversion are no matter); of points the share without a
    partner."""
    if isinstance(made.moving, rf.PointSet):
        tree = cKDTree(made.moving.coords.numpy())
        return lambda p: float(np.mean(tree.query(p)[0] / made.pixel > 0.35))
    sigma = 3.0 if made.kind in ("density", *kinds.CELLS) else 1.0  # counted cells are mostly noise
    want, moving = shown(made.fixed, sigma)(made.q), shown(made.moving, sigma)

    def unexplained(p: np.ndarray) -> float:
        given = moving(p)
        given = (given - given.mean(0)) / (given.std(0) + 1e-9)
        terms = np.column_stack([np.ones(len(given)), *(given**k for k in (1, 2, 3))])
        rest = want - terms @ np.linalg.lstsq(terms, want, rcond=None)[0]
        return float((rest**2).sum() / ((want - want.mean(0)) ** 2).sum())

    return unexplained


def same(a: object, b: object) -> bool:
    tensors = [side.coords if isinstance(side, rf.PointSet) else side.data for side in (a, b)]
    return tensors[0].dtype == tensors[1].dtype and bool(torch.equal(*tensors))


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_the_true_map_carries_moving_onto_fixed(kind: str, data_dir: Path) -> None:
    for seed in SEEDS if kind not in kinds.UNRELATED else ():
        made = kinds.made(kind, seed, data_dir)
        assert len(made.q) == len(made.p) >= 60
        assert np.isfinite(made.q).all()
        assert np.isfinite(made.p).all()
        unlike = unlikeness(made)
        at_truth = unlike(made.p)
        beside = [unlike(made.p + WRONG * made.pixel * way) for way in directions(made.p.shape[1])]
        assert at_truth < 0.9 * min(beside), (seed, at_truth, beside, made.story)


def directions(size: int) -> list[np.ndarray]:
    return [sign * np.eye(size)[d] for d in range(size) for sign in (-1, 1)]


@pytest.mark.parametrize("kind", ["mixture", "torn", "technologies", "points", "volume"])
def test_a_pair_is_a_function_of_kind_and_seed(kind: str, data_dir: Path) -> None:
    first, again, other = (kinds.made(kind, seed, data_dir) for seed in (5, 5, 6))
    assert same(first.fixed, again.fixed)
    assert same(first.moving, again.moving)
    assert np.array_equal(first.p, again.p)
    assert np.array_equal(first.q, again.q)
    assert first.story == again.story != other.story


def test_unrelated_pairs_share_no_tissue(data_dir: Path) -> None:
    tissue = {s.name: s.tissue for s in sources.pictures(data_dir)}
    for seed in SEEDS:
        names = kinds.made("unrelated", seed, data_dir).sources
        first, second = (tissue.get(name, f"{name.split()[0]} brain") for name in names)  # planes: "mouse 0:97"
        assert first != second


def test_strangers_are_of_different_tissues(data_dir: Path) -> None:
    tissue = {table.name: table.tissue for table in sources.tables(data_dir)}
    bare = set()
    for seed in range(6):
        made = kinds.made("strangers", seed, data_dir)
        assert not made.related
        assert len({tissue[name] for name in made.sources}) == 2
        bare.add(isinstance(made.fixed, rf.PointSet))
    assert bare == {True, False}
    assert set(kinds.made("strange-volumes", 0, data_dir).sources) == {"mouse", "human"}


def test_without_data_there_is_a_smaller_population() -> None:
    assert set(kinds.kinds(None)) == set(kinds.WITHOUT_DATA) < set(kinds.KINDS)
    assert len(kinds.made("bend", 0, None).q) > 500
    assert len(set(kinds.made("unrelated", 0, None).sources)) == 2


@pytest.mark.parametrize(
    "one",
    [
        maps.Pieces(np.array([50.0, 40.0]), np.array([0.6, 0.8]), 0.05, np.array([6.0, 9.0]), np.array([60.0, 55.0])),
        maps.Tear(np.array([50.0, 40.0]), 2.0, 0.05),
        maps.Fold(np.array([50.0, 40.0]), np.array([0.6, 0.8]), 7.0),
        maps.bend(np.random.default_rng(0), (100, 100), 9.0, 25.0),
    ],
    ids=["pieces", "tear", "fold", "bend"],
)
def test_maps_are_exact_in_both_directions(one: maps.Map) -> None:
    at = np.random.default_rng(1).uniform(5, 95, (500, 2))
    there = one.push(at)
    kept = np.isfinite(there).all(axis=1)
    assert kept.sum() > 350
    assert np.abs(one.pull(there[kept]) - at[kept]).max() < 1e-6
    assert np.abs(there[kept] - at[kept]).max() > 1


def fake(right: bool | None, verdict: str, median: float = 0.1) -> judge.Judged:
    return judge.Judged("bend", 3, verdict, right, median, median, median, 0.5, 0.0, float("nan"), 1.0)


def test_tables_count_what_was_said_of_right_and_of_wrong_ones() -> None:
    runs = [fake(True, "pass"), fake(True, "fail"), fake(False, "pass", 9.0), fake(None, "warn", float("nan"))]
    text = judge.tables(runs)
    assert "| bend | 4 | 67 % |" in text
    assert "wrong ones that pass: 1 of 1" in text
    assert "right ones that pass: 1 of 2" in text
    assert "unrelated ones that fail: 0 of 1" in text
    assert [run.failing for run in runs] == [False, True, True, True]
    assert runs[3].record()["median"] is None


def test_what_raises_is_an_error_and_wrong() -> None:
    flat = rf.Image.from_array(np.zeros((64, 64), np.uint8), "yx")
    at = np.full((3, 2), 20.0)
    judged, result = judge.judge(pairs.Made("bend", 0, flat, flat, at, at), transform="nonsense")
    assert (judged.verdict, judged.right, result) == ("error", False, None)
    assert "nonsense" in judged.reasons[0]


def test_the_command_judges_writes_and_draws(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REGFRAME_DATA", str(data_dir))
    threads = torch.get_num_threads()
    out = tmp_path / "out.json"
    runs = command.main(["--only", "points:1", "--draw", str(tmp_path), "--out", str(out), "--transform", "affine"])
    torch.set_num_threads(threads)
    assert (tmp_path / "proving-points-1.png").stat().st_size > 1000
    assert "points:1" in out.read_text()
    assert "| points | 1 |" in capsys.readouterr().out
    assert runs[0].kind == "points"
    with pytest.raises(SystemExit):
        command.main(["--only", "nobody:1"])
    assert "wanted KIND:SEED" in capsys.readouterr().err
    assert command.population(["a", "b"], 3, 7) == [("a", 7), ("b", 7), ("a", 8)]
