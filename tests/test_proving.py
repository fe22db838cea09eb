"""The proving ground: its pairs are what they say they are."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial import cKDTree

import regframe as rf
from regframe import confidence

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.proving import __main__ as command
from benchmarks.proving import calibrate, judge, kinds, maps, pairs, sources, work

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


@pytest.mark.parametrize("seeds", [SEEDS[:1], pytest.param(SEEDS[1:], marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("kind", [kind for kind in kinds.KINDS if kind not in kinds.UNRELATED])
def test_the_true_map_carries_moving_onto_fixed(kind: str, seeds: tuple[int, ...], data_dir: Path) -> None:
    for seed in seeds:
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


@pytest.mark.parametrize(
    ("kind", "seed", "said"),
    [
        ("bend", 0, "pass"),
        ("unrelated", 3, "fail"),
        pytest.param("unrelated", 5, "fail", marks=pytest.mark.slow),
    ],
)
def test_right_pairs_are_confirmed_and_unrelated_ones_fail(kind: str, seed: int, said: str, data_dir: Path) -> None:
    judged, result = judge.judge(kinds.made(kind, seed, data_dir))
    assert result is not None
    assert judged.verdict == said
    assert (result.confidence or 0) > 0.9 if said == "pass" else (result.confidence or 1) < 0.2
    assert judged.figures["confidence"] == result.confidence
    assert {"agreement.nats", "coincidence.affine", "explained_variance.start", "jacobian_max", "position_sd.median",
            "bending_px.max", "energy.last", "overlap_fraction", "matching_fraction"} <= set(judged.figures)  # fmt: skip


def test_figures_become_scalars() -> None:
    found = judge.scalars({"a": {"b": 1, "c": math.inf}, "d": ["x", "y"], "e": None, "f": True, "g": [[1]]})
    assert found == {"a.b": 1.0, "a.c": None, "d": "y", "e": None, "f": 1.0}
    assert calibrate.nested(found) == {"a": {"b": 1.0, "c": None}, "d": "y", "e": None, "f": 1.0}


def harvest(number: int, seed: int) -> dict[str, object]:
    """A made-up harvest: right with the probability that their figures say, on windows that speak clearly."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(number):
        good = rng.random() < 0.6
        nats, sure = (rng.uniform(20, 200), rng.integers(8, 60)) if good else (rng.uniform(0, 40), rng.integers(0, 12))
        figures = {"agreement.nats": nats, "agreement.sure": float(sure), "agreement.against": 0.0, "agreement.drift": 0.0,
                   "agreement.unit": 1.0, "agreement.agree": float(sure), "agreement.windows": 80.0,
                   "agreement.neighbours": 30.0, "jacobian_min": 0.9, "jacobian_max": 1.1, "confidence": 0.5}  # fmt: skip
        right = bool(good) if rng.random() < 0.95 else not good
        kind = "bend" if right or rng.random() < 0.5 else "unrelated"
        out.append({"kind": kind, "seed": i, "verdict": "warn", "median": 0.1 if right else 9.0, "bar": 0.5,
                    "right": None if kind == "unrelated" else right, "figures": figures})  # fmt: skip
    return {"pairs": out}


def test_calibration_on_a_made_up_harvest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, seed in (("set", 0), ("seen", 1)):
        (tmp_path / f"{name}.json").write_text(json.dumps(harvest(300, seed)))
    calibrate.main([str(tmp_path / "set.json"), "--check", str(tmp_path / "seen.json")])
    first = capsys.readouterr().out
    assert "## images: 300 pairs" in first
    assert "## points: no pairs" in first
    assert "agreement.nats: 0.9" in first
    assert "constants as they are" in first
    calibrate.main([str(tmp_path / "set.json"), "--check", str(tmp_path / "seen.json")])
    assert capsys.readouterr().out == first
    with pytest.raises(SystemExit):
        calibrate.main([])


def test_a_harvest_of_lines_goes_on_where_it_was_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[tuple[str, int, str | None]] = []

    def one(task: tuple[str, int, str | None]) -> judge.Judged:
        done.append(task)
        return dataclasses.replace(fake(True, "pass"), kind=task[0], seed=task[1])

    monkeypatch.setattr(work, "one", one)
    out = tmp_path / "set.jsonl"
    asked = ["--kinds", "bend", "pose", "--workers", "1", "--out", str(out)]
    command.main([*asked, "--n", "3"])
    command.main([*asked, "--n", "5"])
    command.main([*asked, "--n", "5"])
    assert done == [("bend", 0, None), ("pose", 0, None), ("bend", 1, None), ("pose", 1, None), ("bend", 2, None)]
    assert [(pair["kind"], pair["seed"]) for pair in calibrate.read([out])] == [task[:2] for task in done]
    assert "0 pairs" in capsys.readouterr().out


def test_a_model_is_described_by_kind() -> None:
    pairs: list[dict[str, Any]] = harvest(200, 3)["pairs"]  # type: ignore[assignment]
    text = calibrate.described("images", confidence.IMAGES, pairs)
    assert any(line.startswith("| bend |") for line in text)
    assert any(line.startswith("| unrelated |") and "| 0.00 |" in line for line in text)


def test_a_fitted_confidence_is_calibrated_and_keeps_its_signs() -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((4000, 2))
    right = rng.random(4000) < 1 / (1 + np.exp(-(0.5 + 2 * x[:, 0])))
    beta = calibrate.fitted(x, right, np.array([1.0, -1.0]))
    assert beta[:2] == pytest.approx([0.5, 2.0], abs=0.2)
    assert -0.2 < beta[2] <= 0
    assert calibrate.fitted(x, right, np.array([-1.0, 1.0]))[1] == 0  # not against what a figure may do
    sure = calibrate.predicted(beta, x)
    rows, error = calibrate.reliability(sure, right)
    assert error < 0.04
    assert sum(n for n, _, _ in rows) == 4000
    assert calibrate.reliability(np.full(100, 0.9), np.zeros(100, bool))[1] == pytest.approx(0.9)
    assert calibrate.separation(sure, right) > 0.85
    assert calibrate.separation(-sure, right) < 0.15


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


@pytest.mark.slow
def test_the_command_runs_in_several_processes(data_dir: Path) -> None:
    asked = ["--n", "2", "--kinds", "points", "--workers", "2", "--transform", "rigid"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.proving", *asked],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"REGFRAME_DATA": str(data_dir)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "2 pairs in" in done.stdout
