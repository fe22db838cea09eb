"""Results in a chain: the map is that of one after the other, exported and carried as one, with what the steps say of it."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner
from fake_result import fake_result

import regframe as rf
from regframe.cli import main
from regframe.data import Grid
from regframe.maps.affine import Affine
from regframe.report import results

A, B, C = Grid((40, 50)), Grid((44, 48), 0.5, (), "µm"), Grid((30, 36), 0.001, (), "mm")
TURN = torch.tensor([[0.96, -0.2, 4.0], [0.2, 0.96, -3.0], [0, 0, 1]], dtype=torch.float64)


def scaled(factor: float) -> torch.Tensor:
    return torch.diag(torch.tensor([factor, factor, 1.0], dtype=torch.float64)) @ TURN


def step(
    fixed: Grid, moving: Grid, factor: float, bend: float = 0.0, sd: float | None = None, **metrics: Any
) -> rf.Result:
    result = fake_result(fixed, moving, scaled(factor), bend or 1.0, **metrics)
    if not bend:
        result = dataclasses.replace(result, transform=result.affine)
    if sd is not None:
        result = dataclasses.replace(result, position_sd=torch.full(result.weight.shape, sd))  # type: ignore[union-attr]
    return result


def lattice(grid: Grid, n: int = 9) -> torch.Tensor:
    axes = [
        torch.linspace(o, o + s * (m - 1), n, dtype=torch.float64)
        for o, s, m in zip(grid.origin, grid.spacing, grid.shape, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 2)


BENDS = [(0.0, 0.0), (0.6, 0.0), (0.0, 0.6), (0.6, 0.8)]


@pytest.mark.parametrize("bends", BENDS)
def test_the_map_is_that_of_one_after_the_other(bends: tuple[float, float], tmp_path: Path) -> None:
    one, two = step(B, A, 0.5, bends[0]), step(C, Grid((44, 48), 0.0005, (), "mm"), 1.0, bends[1])
    whole = rf.compose(one, two)
    at = lattice(A)
    expected = two.to_fixed(one.to_fixed(at) / 1000)
    off = (whole.to_fixed(at) - expected).norm(dim=1).max() / C.pixel
    assert off < (0.005 if all(bends) else 1e-9)
    back = (whole.to_moving(expected) - at).norm(dim=1).max()
    assert back < (0.005 if all(bends) else 1e-6)
    assert (whole.moving_grid, whole.fixed_grid) == (A, C)
    assert sum(not isinstance(part, Affine) for part in whole.transform.parts()) == bool(sum(bends))
    torch.testing.assert_close(whole.affine.points(at), two.affine.points(one.affine.points(at) / 1000))
    whole.save(tmp_path / "w.ome.zarr")
    again = rf.load(tmp_path / "w.ome.zarr")
    torch.testing.assert_close(again.to_fixed(at), whole.to_fixed(at))
    assert again.metrics["model"] == "composed of 2 maps"
    rf.write_map(whole, tmp_path / "w.npz")
    torch.testing.assert_close(rf.read_map(tmp_path / "w.npz").to_fixed(at), whole.to_fixed(at))


def test_three_steps_and_backwards() -> None:
    one, two = step(B, A, 0.5, 0.5), step(B, B, 1.0, 0.5)
    there = rf.compose(one, two, one, inverse=[3])
    at = lattice(A)
    expected = one.to_moving(two.to_fixed(one.to_fixed(at)))
    assert float((there.to_fixed(at) - expected).norm(dim=1).max()) < 0.01
    assert (there.moving_grid, there.fixed_grid) == (A, A)
    assert [s["inverse"] for s in there.metrics["steps"]] == [False, False, True]
    nothing = rf.compose(one, one, inverse=[2])
    assert float((nothing.to_fixed(at) - at).norm(dim=1).max()) < 0.005


def test_doubts_add_up() -> None:
    one = step(B, A, 0.5, sd=0.3, confidence=0.9)
    two = step(Grid((44, 48), 1.0, (), "µm"), B, 2.0, sd=0.4, confidence=0.8, pose_margin=0.6)
    whole = rf.compose(one, two)
    size = 2.0 * math.sqrt(0.96**2 + 0.2**2)  # of a length of B in the last space
    assert whole.position_sd is not None
    torch.testing.assert_close(whole.position_sd, torch.full_like(whole.position_sd, math.hypot(0.3 * size, 0.4)))
    where = whole.fixed_grid.coords().reshape(-1, 2)
    between = two.to_moving(where)
    expected = rf.carry_points(two, rf.PointSet(where, "µm"), "moving").match_probability.nan_to_num(0)
    from regframe.evaluation import match_probability

    expected = expected * match_probability(one, between).nan_to_num(0)
    torch.testing.assert_close(whole.weight.reshape(-1).double(), expected, atol=1e-6, rtol=0)  # type: ignore[union-attr]
    assert whole.confidence == pytest.approx(0.72)
    assert whole.metrics["pose_margin"] == 0.6
    backwards = rf.compose(two, one, inverse=[1, 2])
    assert backwards.position_sd is not None
    turned = math.hypot(0.4 / size / (0.5 * size / 2), 0.3 / (0.5 * size / 2))
    torch.testing.assert_close(backwards.position_sd, torch.full_like(backwards.position_sd, turned), rtol=1e-5, atol=0)
    assert rf.compose(one, step(C, Grid((44, 48), 0.0005, (), "mm"), 1.0)).position_sd is None  # one does not know


def test_the_verdict_is_the_worst_or_worse() -> None:
    good = {"findings": [], "reasons": []}
    one, two = step(B, A, 0.5, **good), step(B, B, 1.0, **good)
    assert rf.compose(one, two).verdict == "pass"
    doubt = step(B, B, 1.0, verdict="warn")
    found = rf.compose(one, doubt)
    assert found.verdict == "warn"
    assert found.reasons == ("result 2: 12 % of the tissue has <no> counterpart.",)
    told = {"severity": "fail", "sentence": "no", "figure": 1.0, "threshold": 2.0, "remedy": "look"}
    bad = step(B, A, 0.5, verdict="fail", findings=[told])
    assert rf.compose(bad, two).reasons[0] == "result 1: no; look"
    unsure = [step(*sides, confidence=0.8, **good) for sides in ((B, A, 0.5), (B, B, 1.0))]
    assert "a confidence of 64 %" in rf.compose(*unsure).reasons[0]
    elsewhere = Grid((44, 48), 1.0, (-10.0, 0.0), "µm")
    assert "in common: do both show one image?" in rf.compose(one, step(B, elsewhere, 1.0, **good)).reasons[0]


@pytest.mark.parametrize(
    ("chain", "inverse", "message"),
    [
        ([(B, A, 0.5)], [], "wanted two results or more"),
        ([(B, A, 0.5), (B, B, 1.0)], [3], "wanted numbers from 1 to 2"),
        ([(B, A, 0.5), (B, A, 0.5)], [], "got px after µm; register both with the spacing"),
        ([(B, A, 0.5), (B, Grid((9, 9), 1.0, (900.0, 0.0), "µm"), 1.0)], [], "canvases that do not overlap"),
    ],
)
def test_what_is_no_chain(chain: list[Any], inverse: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rf.compose(*(step(*sides) for sides in chain), inverse=inverse)


def test_a_volume_after_a_plane() -> None:
    box = Grid((9, 9, 9), 1.0, (), "µm")
    with pytest.raises(ValueError, match="got 3D after 2D"):
        rf.compose(step(B, A, 0.5), fake_result(box, box))
    with pytest.raises(ValueError, match="a section in a volume"):
        rf.compose(step(B, A, 0.5), dataclasses.replace(step(B, B, 1.0), section=True))


def run(*args: object, code: int = 0) -> Any:
    outcome = CliRunner().invoke(main, [str(a) for a in args])
    assert outcome.exit_code == code, (outcome.exit_code, outcome.output, outcome.exception)
    return outcome


def test_the_command(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    grids = [Grid((40, 50)), Grid((44, 48)), Grid((36, 42))]
    for name, grid in zip("abc", grids, strict=True):
        PIL.Image.fromarray(random.integers(0, 255, grid.shape, dtype=np.uint8)).save(tmp_path / f"{name}.png")
    chain = []
    for one, other, bend in (("a", "b", 0.5), ("b", "c", 0.4)):
        fixed, moving = grids["abc".index(other)], grids["abc".index(one)]
        result = fake_result(fixed, moving, TURN, bend)
        about = {"fixed": {"path": tmp_path / f"{other}.png"}, "moving": {"path": tmp_path / f"{one}.png"}}
        results.write_run(tmp_path / f"{one}{other}", result, None, about)
        chain.append(result)
    out = tmp_path / "ac"
    said = run("compose", tmp_path / "ab", tmp_path / "bc", "-o", out)
    assert "composed of 2 maps" in said.stdout
    assert "is it one image" not in said.stderr
    assert (out / "report.html").stat().st_size > 10_000
    (tmp_path / "p.csv").write_text("id,x,y\np,20,15\nq,30,22\n")
    run("apply", "points", out, tmp_path / "p.csv", "--to", "fixed", "-o", tmp_path / "q.csv")
    at = torch.tensor([[15.0, 20.0], [22.0, 30.0]], dtype=torch.float64)
    expected = chain[1].to_fixed(chain[0].to_fixed(at))
    assert float((rf.read_points(tmp_path / "q.csv").coords - expected).abs().max()) < 0.01
    run("apply", "image", out, tmp_path / "a.png", "--to", "fixed", "-o", tmp_path / "a2.png")
    run("export", out, "-o", tmp_path / "m.npz")
    run("report", out)
    refused = run("compose", tmp_path / "ab", tmp_path / "bc", "-o", out, code=2)
    assert "exists" in refused.stderr
    said = run("compose", tmp_path / "ab", tmp_path / "ab", "--inverse", 2, "-o", tmp_path / "aa", "--json")
    assert json.loads(said.stdout)["steps"][1]["inverse"] is True
    said = run("compose", tmp_path / "bc", tmp_path / "ab", "-o", tmp_path / "no")
    assert "is it one image?" in said.stderr
    (tmp_path / "a.png").unlink()
    run("compose", tmp_path / "ab", tmp_path / "bc", "-o", out, "--overwrite")
    assert not (out / "report.html").exists()
