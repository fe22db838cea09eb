"""Stacks of serial sections: poses out of pairs, sections that are missing, torn, exchanged or turned over, what is written."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fake_result import fake_result
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import regframe as rf
from regframe.cli import main
from regframe.report import stacks
from regframe.stack import each, pairs, posegraph, sections, settle
from regframe.stack.posegraph import GUIDE, Link, Node

Floats = NDArray[np.float64]
H, W = 60, 72


def rigid(turn: float, y: float, x: float, mirror: bool = False) -> Floats:
    """Degrees about the middle of a section, then a shift."""
    c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    linear = np.array([[c, -s], [s, c]]) @ np.diag([1.0, -1.0 if mirror else 1.0])
    middle = np.array([H - 1, W - 1]) / 2
    out = np.eye(3)
    out[:2, :2] = linear
    out[:2, 2] = middle - linear @ middle + (y, x)
    return out


def random_poses(n: int, seed: int) -> list[Floats]:
    rng = np.random.default_rng(seed)
    return [rigid(rng.uniform(-10, 10), *rng.uniform(-6, 6, 2)) for _ in range(n)]


def nodes(n: int) -> dict[int, Node]:
    probes = np.array([[20.0, 36.0], [40.0, 36.0], [30.0, 16.0], [30.0, 56.0]])
    return {k: Node(probes, 18.0) for k in range(n)}


def links_of(poses: list[Floats], reach: int = 2, noise: float = 0.0, seed: int = 0) -> list[Link]:
    rng = np.random.default_rng(seed)
    out = []
    for d in range(1, reach + 1):
        for i in range(len(poses) - d):
            true = np.linalg.inv(poses[i]) @ poses[i + d]
            out.append(Link(i, i + d, true @ rigid(noise * rng.normal(), *(noise * rng.normal(size=2))), weight=1 / d))
    return out


def error(found: dict[int, Floats], truth: list[Floats], reference: int) -> float:
    """Mean distance of the probes from where they belong."""
    home = found[reference] @ np.linalg.inv(truth[reference])
    probes = nodes(1)[0].probes
    return float(
        np.mean(
            [posegraph.rms(posegraph.carry(found[k], probes) - posegraph.carry(home @ truth[k], probes)) for k in found]
        )
    )


# poses out of pairs


@settings(max_examples=15)
@given(
    seed=st.integers(0, 999),
    n=st.integers(3, 9),
    reference=st.integers(0, 2),
    kind=st.sampled_from(["rigid", "affine"]),
)
def test_pairs_without_error_give_the_poses(seed: int, n: int, reference: int, kind: str) -> None:
    truth = random_poses(n, seed)
    links = links_of(truth)
    start = posegraph.tree(links, nodes(n), reference)
    found = posegraph.reconcile(links, nodes(n), start, reference, kind)
    assert np.array_equal(found[reference], np.eye(3))
    assert error(found, truth, reference) < 1e-4


@settings(max_examples=10)
@given(seed=st.integers(0, 999), wrong=st.integers(0, 12))
def test_a_wrong_pair_moves_nothing(seed: int, wrong: int) -> None:
    n = 8
    truth = random_poses(n, seed)
    links = links_of(truth)
    # of two pairs that hold a section at the end and contradict each other, nothing but their likeness tells which is right
    links[wrong] = dataclasses.replace(links[wrong], matrix=links[wrong].matrix @ rigid(170, 9, -7), ncc=0.3)
    found = posegraph.reconcile(links, nodes(n), posegraph.tree(links, nodes(n), 3), 3)
    assert error(found, truth, 3) < 1e-2
    away = posegraph.rms(posegraph.residual(links[wrong], found, nodes(n)[0]))
    assert away > 10


def test_errors_do_not_add_up_as_in_a_chain() -> None:
    n, ratios = 24, []
    for seed in range(3):
        truth = random_poses(n, seed)
        links = links_of(truth, reach=4, noise=0.3, seed=seed)
        start = posegraph.tree([link for link in links if link.moving - link.fixed == 1], nodes(n), 12)
        found = posegraph.reconcile(links, nodes(n), start, 12)
        ratios.append(error(found, truth, 12) / error(start, truth, 12))
    assert np.median(ratios) < 0.75


def test_the_guide_pins_what_neighbours_drift_away_from() -> None:
    n = 20
    truth = random_poses(n, 1)
    drifting = [
        dataclasses.replace(link, matrix=link.matrix @ rigid(0.5 * (link.moving - link.fixed), 0, 0))
        for link in links_of(truth)
    ]
    free = posegraph.reconcile(drifting, nodes(n), posegraph.tree(drifting, nodes(n), 0), 0)
    pinned = [*drifting, *(Link(GUIDE, k, truth[k]) for k in range(n))]
    held = posegraph.reconcile(pinned, nodes(n), posegraph.tree(pinned, nodes(n), GUIDE), 0)
    assert error(held, truth, 0) < 0.35 * error(free, truth, 0)


def test_slow_stretch_stays_and_the_stretch_of_one_section_goes() -> None:
    n, scale = 25, [1.0] * 25
    scale[12] = 1.08  # a section that the knife has stretched
    truth = [np.diag([s, s, 1.0]) for s in scale]
    found = posegraph.reconcile(links_of(truth), nodes(n), posegraph.tree(links_of(truth), nodes(n), 0), 0, "affine")
    sizes = [math.sqrt(np.linalg.det(found[k][:2, :2])) for k in range(n)]
    assert sizes[12] / np.mean([sizes[11], sizes[13]]) == pytest.approx(1.08, abs=0.01)
    grown = [
        np.diag([1.02**k, 1.02**k, 1.0]) for k in range(n)
    ]  # an organ that grows along the stack: neighbours differ
    found = posegraph.reconcile(links_of(grown), nodes(n), posegraph.tree(links_of(grown), nodes(n), 0), 0, "affine")
    assert math.sqrt(np.linalg.det(found[n - 1][:2, :2])) < 1.02 ** (n - 1) / 1.2


def test_places_are_held_where_they_mean_something() -> None:
    n = 24
    truth = [rigid(0, 0.4 * k, 0) for k in range(n)]  # neighbours say: all straight; the canvas says: it leans
    leaning = [Link(link.fixed, link.moving, rigid(0, 0.4 * (link.moving - link.fixed), 0)) for link in links_of(truth)]
    start = posegraph.tree(leaning, nodes(n), 0)
    free = posegraph.reconcile(leaning, nodes(n), start, 0)
    held = posegraph.reconcile(leaning, nodes(n), start, 0, hold=2.0)
    assert free[n - 1][0, 2] == pytest.approx(0.4 * (n - 1), abs=1e-3)
    assert abs(held[n - 1][0, 2]) < 0.5 * 0.4 * (n - 1)
    assert np.allclose(held[0], np.eye(3))


# pairs settled


def density(values: NDArray[np.float32]) -> settle.Density:
    return settle.Density(values - 5, values > 15, np.ones(2), np.zeros(2))


def off_by(found: Floats, truth: Floats) -> float:
    probes = nodes(1)[0].probes
    return posegraph.rms(posegraph.carry(found, probes) - posegraph.carry(truth, probes))


@pytest.mark.parametrize("kind", ["rigid", "affine"])
@pytest.mark.parametrize("mirror", [False, True])
def test_a_pair_settles_where_it_belongs(kind: str, mirror: bool) -> None:
    truth = rigid(5, 2, -3, mirror) @ (np.diag([1.03, 0.98, 1.0]) if kind == "affine" else np.eye(3))
    fixed, moving = tissue(0), section(0, truth).data[0].numpy()
    start = truth @ rigid(2.5, 1.0, -1.2)
    found = settle.settle(density(fixed), density(moving), start, nodes(1)[0].probes, 18.0, kind)
    assert off_by(start, truth) > 1.0
    assert off_by(found, truth) < 0.05


def test_holes_are_not_drawn_onto_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    y, x = np.mgrid[:H, :W]
    fixed, moving = tissue(0), tissue(0)
    for values, at in ((fixed, (26, 30)), (moving, (30, 35))):
        values[(y - at[0]) ** 2 + (x - at[1]) ** 2 < 64] = 5.0
    found = [settle.settle(density(fixed), density(moving), np.eye(3), nodes(1)[0].probes, 18.0, "rigid")]
    monkeypatch.setattr(settle, "missing", lambda one, other, rim: np.zeros_like(one))
    found.append(settle.settle(density(fixed), density(moving), np.eye(3), nodes(1)[0].probes, 18.0, "rigid"))
    with_care, without = (off_by(matrix, np.eye(3)) for matrix in found)
    assert with_care < 0.1
    assert without > 3 * with_care


def test_what_an_edge_moves_by_is_not_missing() -> None:
    one = tissue(0) > 15
    assert not settle.missing(one, np.roll(one, 1, axis=0), 1.0).any()
    torn = one.copy()
    torn[:, 34:] = False
    assert settle.missing(one, torn, 1.0)[29, 40:56].all()


def test_too_little_in_common_leaves_a_pair_as_it_is() -> None:
    start = rigid(0, 500, 0)
    assert settle.settle(density(tissue(0)), density(tissue(0)), start, nodes(1)[0].probes, 18.0, "rigid") is start


def test_two_like_halves_are_not_turned_over(monkeypatch: pytest.MonkeyPatch) -> None:
    half = tissue(0)
    like = [half + half[:, ::-1], half + half[:, ::-1]]  # turned over, they are the same
    images = [rf.Image(torch.from_numpy(v)[None], rf.Grid((H, W)), name=f"l{k}") for k, v in enumerate(like)]
    over = np.diag([1.0, -1.0, 1.0])
    over[1, 2] = W - 1
    uneven = [image.replace(data=torch.from_numpy(half)[None]) for image in images]
    uneven[1] = uneven[1].replace(data=uneven[1].data.flip(2).contiguous())
    for pair, stays in ((images, False), (uneven, True)):
        work = pairs.Work(pair, (0, 1), rf.Config(), "rigid", lambda *_: None)
        work.links = [Link(0, 1, over, ncc=1.0)]
        work.retry()
        assert (np.linalg.det(work.links[0].matrix[:2, :2]) < 0) == stays
        if not stays:
            assert off_by(work.links[0].matrix, np.eye(3)) < 0.1


# whole stacks


def tissue(k: float, seed: int = 0) -> NDArray[np.float32]:
    """A section ``[H, W]`` of a made-up organ at height ``k``: no two parts of it are alike."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:H, :W].astype(np.float64)
    inside = ((y - 29) / 21) ** 2 + ((x - 34) / 27) ** 2 + 0.25 * ((x - 34) / 27) * ((y - 29) / 21) < 1
    value = np.full((H, W), 3.0)
    for _ in range(14):
        a, b, p = rng.uniform(-0.5, 0.5, 3)
        value += 0.7 * np.cos(a * y + b * x + 20 * p + 0.25 * k * rng.uniform(0.5, 1))
    return np.where(inside, 60 + 25 * value, 5.0).astype(np.float32)


def section(k: float, pose: Floats, name: str = "", shape: tuple[int, int] = (H, W)) -> rf.Image:
    whole = rf.Image.from_array(tissue(k), "yx")
    back = rf.Affine(torch.from_numpy(np.linalg.inv(pose)))
    return rf.resample(whole, back, rf.Grid(shape), background=5.0).replace(name=name or f"s{k:03.0f}")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """`register` that knows the truth: names carry it. Pairs of sections in ``broken`` come out wrong."""
    asked: list[tuple[str, str]] = []

    def fake(fixed: rf.Image, moving: rf.Image, **kwargs: Any) -> rf.Result:
        asked.append((fixed.name, moving.name))
        matrix = np.linalg.inv(TRUTH[fixed.name]) @ TRUTH[moving.name]
        verdict = "pass"
        if {fixed.name, moving.name} & BROKEN and (fixed.name, moving.name) not in SPARED:
            matrix, verdict = matrix @ rigid(180, 0, 0), "fail"
        matrix[2] = 0, 0, 1
        result = fake_result(fixed.grid, moving.grid, torch.from_numpy(matrix), bend=0.0, verdict=verdict)
        affine = rf.Affine(torch.from_numpy(matrix))
        return dataclasses.replace(result, transform=affine, affine=affine)

    TRUTH.clear()
    BROKEN.clear()
    SPARED.clear()
    TRUTH["image"] = np.eye(3)  # what is tried turned over
    monkeypatch.setattr(each, "register", fake)
    monkeypatch.setattr(each, "settle", lambda fixed, moving, start, *rest: start)
    monkeypatch.setattr(pairs.Work, "_prefer", lambda *_, **__: False)  # a second look finds nothing
    return asked


PREFER = pairs.Work._prefer
TRUTH: dict[str, Floats] = {}
BROKEN: set[str] = set()
SPARED: set[tuple[str, str]] = set()


def known(n: int, seed: int = 0) -> list[rf.Image]:
    """Sections of the organ whose true poses `quick` is told."""
    out = []
    for k, pose in enumerate(random_poses(n, seed)):
        image = section(k, pose, shape=(H + k % 3, W - k % 4))
        TRUTH[image.name] = pose
        out.append(image)
    return out


def off(found: rf.Stack, images: list[rf.Image]) -> dict[int, float]:
    """Distance of every placed section from where it belongs, after the reference's own pose."""
    probes = nodes(1)[0].probes
    first = found.metrics["reference"]["section"]
    home = np.linalg.inv(TRUTH[images[first].name])
    out = {}
    for k, result in enumerate(found.results):
        if result is not None:
            pose = result.affine.points(torch.from_numpy(probes)).numpy()
            out[k] = posegraph.rms(pose - posegraph.carry(home @ TRUTH[images[k].name], probes))
    return out


def test_sections_come_together(quick: list[tuple[str, str]]) -> None:
    images = known(7)
    found = rf.align_stack(images, spacing_z=3.0, options=rf.StackOptions(check_mirrors=False))
    assert max(off(found, images).values()) < 0.05
    assert found.verdict == "pass", found.reasons
    assert set(quick) == {(f"s{i:03d}", f"s{i + 1:03d}") for i in range(6)}  # two confirmed pairs lead to the third
    assert [(link.fixed, link.moving) for link in found.links] == [(i, i + d) for d in (1, 2) for i in range(7 - d)]
    m = found.metrics
    assert m["coherence"]["after"]["ncc"] > m["coherence"]["before"]["ncc"] + 0.2
    assert m["coherence"]["after"]["dice"] > 0.95
    assert m["drift"]["loops_px"]["n"] == 5
    assert m["drift"]["loops_px"]["max"] < 1e-6
    assert m["order"]["suggested"] is None
    corners = [found.results[k].transform.points(images[k].grid.corners()) for k in range(7)]  # type: ignore[union-attr]
    assert bool(found.plane_grid.contains(torch.cat(corners)).all())  # the union of all, nothing cut off
    volume = found.volume(images)
    assert volume.grid.spacing == (3.0, 1.0, 1.0)
    assert tuple(volume.data.shape) == (1, *found.grid.shape)
    assert abs(float(volume.data[0, 0, 0, 0]) - 5) < 1.5  # background where no section reaches


def test_a_blank_section_and_a_gap_are_bridged(quick: list[tuple[str, str]]) -> None:
    images = known(8)
    images[3] = images[3].replace(data=torch.full_like(images[3].data, 5.0))
    found = rf.align_stack(images, positions=[0, 1, 2, 3, 4, 5, 8, 9], options=rf.StackOptions(check_mirrors=False))
    assert found.results[3] is None
    assert max(off(found, images).values()) < 0.05
    assert found.verdict == "warn"
    assert found.grid.shape[0] == 10
    assert found.metrics["empty_positions"] == [6, 7]
    assert any("s003" in reason for reason in found.reasons)
    assert found.metrics["sections"][3]["verdict"] == "fail"
    volume = found.volume(images)
    assert len(volume.data[0, 3].unique()) == len(volume.data[0, 6].unique()) == 1


def test_a_neighbour_that_fails_is_replaced_by_the_one_behind_it(quick: list[tuple[str, str]]) -> None:
    images = known(8)
    BROKEN.add("s004")
    SPARED.update({("s004", "s006")})
    found = rf.align_stack(images, options=rf.StackOptions(check_mirrors=False))
    assert max(off(found, images).values()) < 0.05
    four = found.metrics["sections"][4]
    assert four["neighbours"] == [6]
    assert "placed by s006 instead" in " ".join(four["reasons"])
    assert ("s001", "s004") in quick  # what lies farther was tried, too


def test_a_pair_is_searched_for_itself_where_others_are_no_guide(
    quick: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = known(5)
    BROKEN.add("s001")  # its pairs fail
    rf.align_stack(images, options=rf.StackOptions(check_mirrors=False))
    assert ("s000", "s002") in quick
    assert ("s002", "s004") not in quick
    BROKEN.clear()
    quick.clear()
    monkeypatch.setattr(pairs, "FOLLOWED", 1.5)  # all are much less alike than that
    rf.align_stack(images, options=rf.StackOptions(check_mirrors=False))
    assert ("s002", "s004") in quick


def test_a_section_that_nothing_matches_is_left_out(
    quick: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = known(7)
    BROKEN.add("s003")
    monkeypatch.setattr(each, "ALIKE", 0.9)
    found = rf.align_stack(images, options=rf.StackOptions(check_mirrors=False))
    assert found.results[3] is None
    assert "none of its neighbours matched it" in found.metrics["sections"][3]["reasons"]
    assert max(off(found, images).values()) < 0.05


def test_a_pair_that_contradicts_the_others_gets_a_second_chance(
    quick: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def worst() -> tuple[float, Link]:
        found = rf.align_stack(images, options=rf.StackOptions(check_mirrors=False))
        assert max(off(found, images).values()) < 0.05  # it does not tear the stack, with or without
        link = next(link for link in found.links if (link.fixed, link.moving) == (2, 3))
        return found.metrics["drift"]["given_up"], link

    images = known(7)
    BROKEN.add("s003")
    SPARED.update({("s001", "s003"), ("s003", "s004"), ("s003", "s005")})
    given_up, link = worst()
    assert (given_up, link.weight) == (1, 0.0)
    monkeypatch.setattr(pairs.Work, "_prefer", PREFER)
    given_up, link = worst()
    assert given_up == 0
    assert off_by(link.matrix, np.linalg.inv(TRUTH["s002"]) @ TRUTH["s003"]) < 0.1


def test_half_a_section_is_named(quick: list[tuple[str, str]]) -> None:
    images = known(7)
    torn = images[3].data.clone()
    torn[:, 24:] = 5.0
    images[3] = images[3].replace(data=torn)
    found = rf.align_stack(images, options=rf.StackOptions(check_mirrors=False))
    assert "incomplete or torn" in " ".join(found.metrics["sections"][3]["reasons"])
    assert [s["verdict"] for s in found.metrics["sections"]].count("pass") == 6


def test_exchanged_sections_are_named(quick: list[tuple[str, str]]) -> None:
    images = known(9)
    images[3], images[5] = images[5], images[3]
    found = rf.align_stack(images, options=rf.StackOptions(check_mirrors=False))
    assert found.metrics["order"]["suggested"] == [f"s{k:03d}" for k in range(9)]
    assert set(found.metrics["order"]["moved"]) == {3, 5}
    assert found.verdict == "warn"


def test_a_chain_is_a_chain(quick: list[tuple[str, str]]) -> None:
    images = known(5)
    found = rf.align_stack(images, reference="chain", options=rf.StackOptions(check_mirrors=False))
    assert quick == [(f"s{k:03d}", f"s{k + 1:03d}") for k in range(4)]
    assert found.metrics["reference"]["section"] == 0
    assert max(off(found, images).values()) < 1e-6


def test_a_guide_says_where_all_of_them_lie(quick: list[tuple[str, str]]) -> None:
    images = known(5)
    guide = rf.Image(torch.from_numpy(np.stack([tissue(k) for k in range(10)])[None]), rf.Grid((10, H, W)), name="g")
    TRUTH.update({f"g plane {k}": np.eye(3) for k in range(10)})
    found = rf.align_stack(images, spacing_z=2.0, options=rf.StackOptions(guide=guide, check_mirrors=False))
    assert [pair for pair in quick if pair[0].startswith("g")] == [(f"g plane {2 * k}", f"s{k:03d}") for k in range(5)]
    for image, result in zip(images, found.results, strict=True):
        assert result is not None
        assert isinstance(result.affine, rf.Affine)
        assert np.allclose(result.affine.matrix, TRUTH[image.name], atol=1e-3)


def test_real_registrations_and_the_one_turned_over() -> None:
    poses = random_poses(4, 3)
    images = [section(0.6 * k, pose, f"r{k}") for k, pose in enumerate(poses)]
    images[2] = images[2].replace(data=images[2].data.flip(2).contiguous())
    found = rf.align_stack(images, transform="rigid")
    over = np.diag([1.0, -1.0, 1.0])
    over[1, 2] = W - 1
    truth = [pose @ over if k == 2 else pose for k, pose in enumerate(poses)]
    assert found.metrics["mirrored"] == ["r2"]
    probes, first = nodes(1)[0].probes, found.metrics["reference"]["section"]
    home = np.linalg.inv(truth[first])
    for k, result in enumerate(found.results):
        assert result is not None
        if k != 2 and first != 2:
            moved = result.transform.points(torch.from_numpy(probes)).numpy()
            assert posegraph.rms(moved - posegraph.carry(home @ truth[k], probes)) < 1.5


def bytes_of(found: rf.Stack) -> list[bytes]:
    """Poses and figures of a stack, whatever made it."""
    poses = [
        b"" if r is None else r.affine.points(torch.from_numpy(nodes(1)[0].probes)).numpy().tobytes()
        for r in found.results
    ]
    return [*poses, repr([(link.matrix.tolist(), link.weight, link.ncc) for link in found.links]).encode()]


def test_pairs_spread_over_workers_have_the_same_bytes_and_are_kept(
    quick: list[tuple[str, str]], tmp_path: Path
) -> None:
    images, options = known(5), rf.StackOptions(check_mirrors=False)
    alone = rf.align_stack(images, options=options)
    with ThreadPoolExecutor(2) as client:
        spread = rf.align_stack(images, options=options, client=client, folder=tmp_path)
    assert bytes_of(spread) == bytes_of(alone)
    quick.clear()
    assert bytes_of(rf.align_stack(images, options=options, folder=tmp_path)) == bytes_of(alone)
    assert not quick  # all pairs were kept
    (tmp_path / "store" / "pair-1-2.npz").unlink()
    assert bytes_of(rf.align_stack(images, options=options, folder=tmp_path)) == bytes_of(alone)
    assert quick == [("s001", "s002")]
    rf.align_stack(images, options=dataclasses.replace(options, reach=1), transform="affine", folder=tmp_path)
    assert len(quick) > 4  # of other settings nothing is taken over


def test_a_guide_and_bends_are_spread(quick: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each task gets from the folder what it has in this process: a plane of the guide, the maps of both neighbours."""
    monkeypatch.setattr(each.Each, "_bent_onto", lambda self, target, section: target.data.sum() and None)
    images = known(4)
    TRUTH.update({f"g plane {k}": np.eye(3) for k in range(8)})
    planes = torch.stack([torch.from_numpy(tissue(k)) for k in range(4)])[None]
    guide = rf.Image(planes, rf.Grid((4, H, W), (2.0, 1.0, 1.0)), name="g")
    options = rf.StackOptions(guide=guide, check_mirrors=False)
    found = [rf.align_stack(images, spacing_z=2.0, transform="lddmm", options=options)]
    with ThreadPoolExecutor(2) as client:
        found.append(rf.align_stack(images, spacing_z=2.0, transform="lddmm", options=options, client=client))
    assert bytes_of(found[0]) == bytes_of(found[1])


def test_bending_makes_neighbours_more_alike() -> None:
    images = []
    for k in range(3):
        y, x = np.mgrid[:H, :W].astype(np.float64)
        bend = 2.0 * np.sin(x / 11) if k == 1 else 0 * x
        whole = torch.from_numpy(tissue(0.2 * k))[None, None]
        at = np.stack([2 * x / (W - 1) - 1, 2 * (y + bend) / (H - 1) - 1], axis=-1)
        moved = torch.nn.functional.grid_sample(
            whole, torch.from_numpy(at.astype(np.float32))[None], padding_mode="border", align_corners=True
        )
        images.append(rf.Image(moved[0], rf.Grid((H, W)), name=f"b{k}"))
    config = rf.Config.model_validate({"optimizer": {"max_iter": 15}})
    found = rf.align_stack(images, transform="lddmm", options=rf.StackOptions(check_mirrors=False), config=config)
    stiff, bent = found.metrics["coherence"]["unbent"], found.metrics["coherence"]["after"]
    assert bent["ncc"] > stiff["ncc"] + 0.02
    assert found.results[1] is not None
    assert len(found.results[1].transform.parts()) > 1
    assert found.results[0] is not None
    assert len(found.results[0].transform.parts()) == 1  # it has a neighbour on one side only
    assert all(result is not None and result.metrics["folding_fraction"] == 0 for result in found.results)


# what is written


def test_what_is_saved_is_loaded_and_read(quick: list[tuple[str, str]], tmp_path: Path) -> None:
    images = [image.replace(name=f"a/..b{k}") for k, image in enumerate(known(4))]
    TRUTH.update({f"a/..b{k}": TRUTH[f"s{k:03d}"] for k in range(4)})
    images[2] = images[2].replace(data=torch.full_like(images[2].data, 5.0))
    found = rf.align_stack(images, spacing_z=2.0, options=rf.StackOptions(check_mirrors=False))
    found.save(tmp_path / "out", images)
    places = sorted(path.name for path in (tmp_path / "out" / "sections").iterdir())
    assert places == ["0000_a_..b0", "0001_a_..b1", "0003_a_..b3"]
    loaded = rf.load(tmp_path / "out" / "sections" / places[1])
    points = nodes(1)[0].probes
    assert found.results[1] is not None
    assert torch.equal(loaded.to_fixed(torch.from_numpy(points)), found.results[1].to_fixed(torch.from_numpy(points)))
    assert loaded.fixed_grid == found.plane_grid
    volume = rf.open(tmp_path / "out" / "volume.ome.zarr")
    assert volume.grid.shape == found.grid.shape
    assert volume.grid.spacing == (2.0, 1.0, 1.0)
    assert torch.allclose(volume.data, found.volume(images).data)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert len(metrics["sections"]) == 4
    with (tmp_path / "out" / "sections.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["map"] for row in rows] == ["0000_a_..b0", "0001_a_..b1", "", "0003_a_..b3"]
    rf.write_report(found, tmp_path / "page.html", images)
    page = (tmp_path / "page.html").read_text()
    assert page.count("<img") == 4 + 2 + 3  # cuts, charts, placed sections
    assert "http:" not in page
    assert "https:" not in page
    with pytest.raises(FileExistsError, match="exists"):
        found.save(tmp_path / "out", images)
    stacks.save(found, tmp_path / "out", images, overwrite=True)
    written = (tmp_path / "out" / "report.html").read_text()
    assert f"regframe apply image {tmp_path}/out/sections/0000_a_..b0 slide.svs" in written
    assert written.replace(f"{tmp_path}/out", "OUT") == page
    found.save(tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "report.html").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("x")
    with pytest.raises(FileExistsError, match="left alone"):
        found.save(tmp_path / "other", overwrite=True)


def test_labels_ride_along(quick: list[tuple[str, str]]) -> None:
    images = known(4)
    found = rf.align_stack(images, options=rf.StackOptions(check_mirrors=False))
    labels = [image.replace(data=(image.data > 60).to(torch.int32) * 7, labels=True) for image in images]
    volume = found.volume(labels)
    assert volume.labels
    assert set(volume.data.unique().tolist()) == {0, 7}
    with pytest.raises(ValueError, match="same channels and type"):
        found.volume([labels[0], *images[1:]])
    with pytest.raises(ValueError, match="wanted 4 sections, got 3"):
        found.volume(images[:3])


def test_order_of_files(tmp_path: Path) -> None:
    def names(*given: str) -> list[Path]:
        return [tmp_path / name for name in given]

    mixed = names("s10.png", "s9.png", "s1.png")
    assert [p.name for p in sections.sort_sections(mixed)[0]] == ["s1.png", "s9.png", "s10.png"]
    assert sections.sort_sections(mixed, "given") == (mixed, None)
    slides = names("A1_2_0304.jpg", "A1_1_0305.jpg", "A2_1_0308.jpg")
    found, positions = sections.sort_sections(slides, "number")
    assert [p.name[-8:-4] for p in found] == ["0304", "0305", "0308"]
    assert positions == [304, 305, 308]
    with pytest.raises(ValueError, match="different last numbers"):
        sections.sort_sections(names("a1.png", "b1.png"), "number")
    with pytest.raises(ValueError, match="a number in every file name"):
        sections.sort_sections(names("a.png", "b1.png"), "number")
    table = tmp_path / "order.csv"
    table.write_text("section,position\ns9.png,4\ns10.png,0\ns1.png,2\n")
    found, positions = sections.sort_sections(mixed, table)
    assert ([p.name for p in found], positions) == (["s10.png", "s1.png", "s9.png"], [0, 2, 4])
    for text, message in (
        ("name\ns1.png\n", "column 'section'"),
        ("section\ns1.png\ns9.png\n", "no single row for 's10.png'"),
        ("section\ns1.png\ns9.png\ns10.png\nx.png\n", "'x.png', which was not given"),
        ("section\ns1.png\ns9.png\ns10.png\ns10.png\n", "a row twice"),
        ("section,position\ns1.png,1\ns9.png,a\ns10.png,3\n", "whole numbers"),
    ):
        table.write_text(text)
        with pytest.raises(ValueError, match=message):
            sections.sort_sections(mixed, table)


def test_bad_input(quick: list[tuple[str, str]]) -> None:
    images = known(3)
    volume = rf.Image(torch.zeros((1, 3, H, W)), rf.Grid((3, H, W)))
    blank = [image.replace(data=torch.zeros_like(image.data)) for image in images]
    other = images[0].replace(grid=rf.Grid(images[0].grid.shape, 1.0, (), "µm"))
    for wrong, options, message in (
        (images[:1], {}, "at least two sections, got 1"),
        ([*images, volume], {}, "got 3D at place 3"),
        ([*images, other], {}, "sections in one unit, got px and µm"),
        (blank, {}, "at least two sections with tissue, got 0"),
        (images, {"positions": [0, 2]}, "wanted 3 whole numbers as positions"),
        (images, {"positions": [0, 2, 1]}, "wanted ascending positions"),
        (images, {"positions": [0, 0.5, 1]}, "whole numbers as positions"),
        (images, {"positions": [0, 20, 4000]}, "divide them by spacing_z"),
        (images, {"reference": 7}, "a reference from 0 to 2, got 7"),
        (images, {"reference": "first"}, "'middle' or 'chain'"),
        (images, {"transform": "similarity"}, "wanted transform rigid or affine or lddmm"),
        (images, {"spacing_z": -1.0}, "positive distance"),
        (images, {"options": rf.StackOptions(guide=images[0])}, "guide volume in px, got 2D"),
    ):
        with pytest.raises(ValueError, match=message):
            rf.align_stack(wrong, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="hold above 0"):
        rf.StackOptions(hold=0.0)


def test_the_command(quick: list[tuple[str, str]], tmp_path: Path) -> None:
    images = known(4)
    (tmp_path / "in").mkdir()
    for k, image in enumerate(images):
        whole = image.replace(data=image.data.round().clamp(0, 255).to(torch.uint8))
        rf.adapter("image").save(whole, tmp_path / "in" / f"s00{k}.png")
        TRUTH[f"s00{k}.png"] = TRUTH[f"s00{k}"]
    (tmp_path / "in" / "notes.txt").write_text("no section")
    runner, out = CliRunner(), tmp_path / "out"
    done = runner.invoke(main, ["stack", str(tmp_path / "in"), "-o", str(out), "--spacing-z", "2", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["n_placed"] == 4
    assert rf.open(out / "volume.ome.zarr").grid.spacing[0] == 2.0
    again = runner.invoke(main, ["stack", str(tmp_path / "in"), "-o", str(out)])
    assert again.exit_code == 2
    assert "exists" in again.output
    files = [str(path) for path in sorted((tmp_path / "in").glob("*.png"))]
    mapped = runner.invoke(
        main, ["stack", *files, "-o", str(out), "--order", "number", "--reference", "1", "--overwrite"]
    )
    assert mapped.exit_code == 0, mapped.output
    assert "4 of 4 sections placed" in mapped.output
    for arguments, message in (
        (["--order", "size"], "natural, number, given or a CSV file"),
        (["--reference", "9"], "a reference from 0 to 3"),
        (["--reference", "best"], "'middle' or 'chain'"),
    ):
        bad = runner.invoke(main, ["stack", *files, "-o", str(tmp_path / "new"), *arguments])
        assert bad.exit_code == 2, bad.output
        assert message in bad.output
    assert not (tmp_path / "new").exists()


def test_nissl_sections_come_together(data_dir: Path, tmp_path: Path) -> None:
    import zipfile

    images = []
    with zipfile.ZipFile(data_dir / "13_nissl_serial" / "nissl_contig_0300_0339.zip") as archive:
        for name in sorted((n for n in archive.namelist() if n.endswith(".jpg")), key=lambda n: n[-8:-4])[14:18]:
            path = tmp_path / Path(name).name
            path.write_bytes(archive.read(name))
            images.append(rf.open(path))
    found = rf.align_stack(images, options=rf.StackOptions(check_mirrors=False))
    before, after = (found.metrics["coherence"][when] for when in ("before", "after"))
    assert after["ncc"] > max(0.75, before["ncc"] + 0.3)
    assert after["dice"] > 0.93
    assert found.metrics["drift"]["loops_px"]["max"] < 1.0
    assert all(a.residual < 1.0 for a in found.links)
    assert len(list(itertools.chain(found.links))) == 5
