"""Groups of volumes: to one of them, and to the mean of all; tables of every animal carried into it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fake_rounds import Register
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

import regframe as rf
from regframe.cli import main
from regframe.group import pairs
from regframe.group.agreed import agreed
from regframe.stack.posegraph import Link, Node, carry

SHAPE = (20, 28, 24)
NAMES = "abcd"


def maps() -> list[NDArray[np.float64]]:
    """Map of each volume onto the first: a turn about the middle, a shift, a size of its own."""
    rng, out = np.random.default_rng(2), []
    middle = (np.array(SHAPE) - 1) / 2
    for k in range(4):
        matrix = np.eye(4)
        if k:
            matrix[:3, :3] = Rotation.from_rotvec(rng.uniform(-0.1, 0.1, 3)).as_matrix() * rng.uniform(0.95, 1.05)
            matrix[:3, 3] = middle + rng.uniform(-1.5, 1.5, 3) - matrix[:3, :3] @ middle
        out.append(matrix)
    return out


def animals() -> list[rf.Image]:
    rng = np.random.default_rng(0)
    base = gaussian_filter(rng.standard_normal(SHAPE), 2.0)
    base = (base / base.std() + 3) * gaussian_filter(np.pad(np.ones((10, 18, 14)), 5), 1.5)
    at = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1).reshape(-1, 3)
    out = []
    for k, matrix in enumerate(maps()):
        seen = map_coordinates(base, carry(matrix, at).T, order=3).reshape(SHAPE)
        noisy = (100 * seen + rng.normal(0, 3, SHAPE)).astype(np.float32)
        out.append(rf.Image.from_array(noisy, "zyx", name=NAMES[k], spacing=0.05, unit="mm"))
    return out


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Register:
    """`register` that knows the maps, in millimetres."""
    scale = np.diag([0.05, 0.05, 0.05, 1.0])
    stand_in = Register({name: scale @ m @ np.linalg.inv(scale) for name, m in zip(NAMES, maps(), strict=True)})

    def fit(fixed: rf.Image, moving: rf.Image, *, config: rf.Config) -> rf.Result:
        result = stand_in(fixed, moving, config=config)
        return dataclasses.replace(result, weight=None, weight_grid=None, position_sd=None)

    monkeypatch.setattr(pairs, "register", fit)
    return stand_in


def test_volumes_come_to_one_of_them(known: Register) -> None:
    group = rf.register_group(animals(), reference="a", transform="rigid")
    assert group.metrics["n_placed"] == 4
    assert group.metrics["images"][1]["drift"]["turn_degrees"] > 1
    assert "shift_z_px" in group.metrics["images"][1]["drift"]
    affine = rf.register_group(animals(), reference="a", transform="affine")
    for k, matrix in enumerate(maps()):
        found = affine[k].affine.matrix.numpy()  # type: ignore[attr-defined]
        assert np.allclose(found[:3, :3], matrix[:3, :3], atol=1e-6)


def test_a_pair_that_contradicts_the_others_is_left_out(known: Register) -> None:
    known.off = {("b", "c"): 0.6}  # mm: 12 voxels
    group = rf.register_group(animals(), reference="a", transform="affine")
    bad = next(pair for pair in group.metrics["pairs"] if (pair["fixed"], pair["moving"]) == ("b", "c"))
    assert not bad["used"]
    assert np.allclose(group["c"].affine.matrix[:3, 3], maps()[2][:3, 3] * 0.05, atol=1e-3)  # type: ignore[attr-defined]


def test_poses_are_the_mean_of_what_pairs_say() -> None:
    """Each pair is off by its own noise: over all pairs the poses are nearer to the truth than the direct pairs are."""
    rng, true = np.random.default_rng(4), maps()
    probes = rng.normal(0, 8, (40, 3))
    nodes = dict.fromkeys(range(4), Node(probes, 14.0))
    links = []
    for a in range(4):
        for b in range(a + 1, 4):
            matrix = np.linalg.inv(true[a]) @ true[b]
            matrix[:3, 3] += rng.normal(0, 0.05, 3)
            links.append(Link(a, b, matrix))
    start = {0: np.eye(4), **{link.moving: link.matrix for link in links if link.fixed == 0}}
    found = agreed(links, nodes, start, 0, rigid=False)

    def off(poses: dict[int, NDArray[np.float64]]) -> float:
        return sum(float(np.linalg.norm(carry(poses[k], probes) - carry(true[k], probes))) for k in range(4))

    assert off(found) < 0.9 * off(start)


def test_the_mean_of_a_cohort_and_the_tables_in_it(known: Register, tmp_path: Path) -> None:
    files = []
    for image in animals():
        files.append(tmp_path / f"{image.name}.ome.zarr")
        rf.find_adapter(image).save(image, files[-1])
    known.maps = {f"{name}": known.maps[name] for name in NAMES}
    out = tmp_path / "OUT"
    outcome = CliRunner().invoke(main, ["rounds", *map(str, files), "-o", str(out), "--reference", "none"])
    assert outcome.exit_code == 0, outcome.output
    group = rf.load_group(out)
    assert group.template is not None
    assert group.variance is not None
    assert group.template.grid.shape == SHAPE
    assert group.metrics["template"]["bias_px"] < 0.05
    inside = (0, slice(6, -6), slice(8, -8), slice(8, -8))
    assert float(group.variance.data[inside].mean()) < 0.1 * float(group.template.data[inside].var())
    # one place of the tissue, in every animal's own positions, comes to one place of the mean
    place, ends = np.array([9.0, 14.0, 12.0]), []
    for k, matrix in enumerate(maps()):
        own = carry(np.linalg.inv(matrix), place[None])[0] * 0.05
        table = tmp_path / f"cells{k}.csv"
        table.write_text("id,z_mm,y_mm,x_mm\nq,{:.6f},{:.6f},{:.6f}\n".format(*own))
        folder = next((out / "rounds").glob(f"{k:03d}_*"))
        moved = tmp_path / f"there{k}.csv"
        call = ["apply", "points", str(folder), str(table), "-o", str(moved), "--to", "fixed"]
        outcome = CliRunner().invoke(main, call)
        assert outcome.exit_code == 0, outcome.output
        ends.append(rf.read_points(moved).coords[0].numpy() / 0.05)
    assert float(np.linalg.norm(np.array(ends) - np.mean(ends, axis=0), axis=1).max()) < 0.05
    assert torch.isfinite(group.template.data).all()


def test_what_is_of_the_plane_alone_says_so(known: Register, tmp_path: Path) -> None:
    images = animals()
    flat = rf.Image.from_array(np.random.default_rng(0).random((40, 40)), "yx", spacing=0.05, unit="mm", name="flat")
    with pytest.raises(ValueError, match="images alone or volumes alone"):
        rf.register_group([*images, flat])
    group = rf.register_group(images, reference="a", transform="affine")
    with pytest.raises(ValueError, match="wanted images of two axes"):
        rf.merge_group(group, tmp_path / "x.ome.zarr", images=images)
    with pytest.raises(ValueError, match="wanted images of two axes"):
        rf.match_nuclei(group, images=images)
