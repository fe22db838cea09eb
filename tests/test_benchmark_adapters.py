"""The harnesses of Learn2Reg and of slices: layouts read, what is scored written, metrics as theirs; fits are known maps."""

from __future__ import annotations

import csv
import json
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fake_result import fake_result

import regframe as rf
from benchmarks import entries, learn2reg, slices
from benchmarks.learn2reg import __main__ as learn2reg_command
from benchmarks.learn2reg import fields, made
from benchmarks.slices import __main__ as slices_command

SIZE = (12, 10, 14)
"""Voxels of the made volumes along x, y, z of the fixed file."""
SHIFT = np.array([2, -1, 1])
"""Voxels by which what is at v in the fixed volume lies on in the moving one, when both files lie alike."""


def job(folder: Path, state: str = "done") -> None:
    record = {"status": state, "verdict": "pass" if state == "done" else None, "seconds": 12.0}
    entries.write_json(folder / "job.json", record | {"reasons": [] if state == "done" else ["no such file"]})


# Learn2Reg


def volume(path: Path, numbers: np.ndarray, turned: bool = False) -> None:
    """Write ``[X, Y, Z]`` at 2 mm; ``turned`` stores the same volume with its axes in the order z, x, y, x from the other end."""
    sitk = pytest.importorskip("SimpleITK")
    direction, origin = np.diag([-1.0, -1.0, 1.0]), np.zeros(3)  # a NIfTI file with the identity matrix, in LPS
    if turned:
        origin = origin + direction[:, 0] * 2.0 * (numbers.shape[0] - 1)
        numbers = numbers[::-1].transpose(2, 0, 1)
        direction = np.stack([direction[:, 2], -direction[:, 0], direction[:, 1]], axis=1)
    image = sitk.GetImageFromArray(np.ascontiguousarray(numbers.transpose()))
    image.SetSpacing([2.0] * 3)
    image.SetDirection(direction.ravel().tolist())
    image.SetOrigin(origin.tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def in_turned(voxels: np.ndarray) -> np.ndarray:
    return np.stack([voxels[:, 2], SIZE[0] - 1 - voxels[:, 0], voxels[:, 1]], axis=1)


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """Three pairs: files that lie alike, a moving file that lies otherwise, and one whose moving volume is missing."""
    folder, rng = tmp_path / "Made", np.random.default_rng(0)
    labels = np.zeros(SIZE, np.uint8)
    labels[3:7, 3:7, 4:9] = 1
    labels[7:9, 4:8, 4:6] = 2
    moved = np.roll(labels, SHIFT, (0, 1, 2))
    marks = rng.uniform(3, 8, (5, 3))
    named = [("0001", "0000", False), ("0001", "0001", False), ("0002", "0000", False), ("0003", "0000", True)]
    for subject, modality, turned in named:
        far = (subject, modality) in (("0001", "0001"), ("0003", "0000"))
        name = f"Made_{subject}_{modality}"
        volume(folder / "imagesTr" / f"{name}.nii.gz", (moved if far else labels).astype(np.float32), turned)
        volume(folder / "labelsTr" / f"{name}.nii.gz", moved if far else labels, turned)
        places = marks + SHIFT if far else marks
        (folder / "landmarksTr").mkdir(exist_ok=True)
        np.savetxt(folder / "landmarksTr" / f"{name}.csv", in_turned(places) if turned else places, delimiter=",")
    pairs = [("0001_0000", "0001_0001"), ("0002_0000", "0003_0000"), ("0002_0000", "0009_0000")]
    listed = [{k: f"./imagesTr/Made_{n}.nii.gz" for k, n in zip(("fixed", "moving"), p, strict=True)} for p in pairs]
    (folder / "Made_dataset.json").write_text(json.dumps({"name": "Made", "registration_val": listed}))
    methods = [
        {"name": "LogJacDetStd", "metric": "sdlogj"},
        {"name": "TRE_lm", "metric": "tre", "dest": "landmarks"},
        {"name": "DSC", "metric": "dice", "labels": [1, 2, 3]},
    ]
    config = {"task_name": "Made", "evaluation_methods": methods, "expected_shape": [*SIZE, 3], "eval_pairs": listed}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def shifted(pairs: Sequence[entries.Pair], out: Path, arguments: Sequence[str] = ()) -> int:
    """In place of ``regframe batch``: the map of every pair is the shift in space, 2 mm a voxel of the fixed file, in LPS."""
    for pair in pairs:
        folder = out / entries.RUNS / pair.id
        if not pair.moving.is_file():
            job(folder, "failed")
            continue
        grids = [rf.open(path).grid for path in (pair.fixed, pair.moving)]
        matrix = torch.eye(4, dtype=torch.float64)
        matrix[:3, 3] = -2.0 * torch.tensor(
            (SHIFT * [-1, -1, 1])[::-1].copy()
        )  # from the moving to the fixed side, z, y, x
        fake_result(*grids, affine=matrix, bend=0.0, weight=False).save(folder / "transform.ome.zarr")
        job(folder)
    return 3


def test_a_task_of_learn2reg_becomes_a_submission(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(entries, "run", shifted)
    out = tmp_path / "out"
    assert learn2reg_command.main([str(task), "-o", str(out), "--config", str(task / "config.json")]) == 3
    said = capsys.readouterr().out
    assert (
        "0001_0000<--0001_0001: LogJacDetStd 0.0000 (before 0.0000), TRE_lm 0.0000 (before 4.8990), DSC 1.0000" in said
    )
    assert "failed: no such file" in said
    assert "3 pairs, 1 without a map" in said
    with zipfile.ZipFile(out / "submission.zip") as packed:
        names = set(packed.namelist()) - {"./"}
    full = {"disp_0002_0000_0003_0000.nii.gz", "disp_0002_0000_0009_0000.nii.gz"}
    assert names == {"disp_0001_0001.nii.gz", "disp_0002_0003.nii.gz", "disp_0002_0009.nii.gz", *full}
    alike = fields.numbers_of(out / "submission" / "disp_0001_0001.nii.gz")
    assert alike.shape == (*SIZE, 3)
    assert alike.dtype == np.float32
    np.testing.assert_allclose(alike, np.broadcast_to(SHIFT, alike.shape), atol=1e-4)
    turned = fields.numbers_of(out / "submission" / "disp_0002_0003.nii.gz")
    voxels = np.indices(SIZE).reshape(3, -1).T
    np.testing.assert_allclose(turned.reshape(-1, 3), in_turned(voxels + SHIFT) - voxels, atol=1e-4)
    assert not fields.numbers_of(out / "submission" / "disp_0002_0009.nii.gz").any()  # zeros for a pair without a map

    written = json.loads((out / "metrics.json").read_text())
    # cubic splines, as the evaluator's, meet a steep field's border 3 voxels away: 0.017 of 2 mm
    assert written["cases"]["0002_0000<--0003_0000"]["TRE_lm"] < 0.05
    assert written["cases"]["0002_0000<--0003_0000"]["DSC"] == 1.0
    assert written["aggregates"]["DSC"]["30"] == pytest.approx(1.0)
    with (out / "cases.csv").open() as file:
        assert [row["verdict"] for row in csv.DictReader(file)] == ["pass", "pass", "failed"]


def test_metrics_and_pairs_come_from_the_data_set_where_no_config_is_given(task: Path) -> None:
    read = learn2reg.read_task(task)
    assert [case.name for case in read.cases][:2] == ["0001_0000<--0001_0001", "0002_0000<--0003_0000"]
    assert [method["name"] for method in read.methods] == ["LogJacDetStd"]  # a volume without truth: scored by no truth
    listed = json.loads((task / "Made_dataset.json").read_text())
    listed["registration_test"] = listed["registration_val"][:2]
    (task / "Made_dataset.json").write_text(json.dumps(listed))
    read = learn2reg.read_task(task / "Made_dataset.json", "test")
    assert [method["name"] for method in read.methods] == ["LogJacDetStd", "TRE_lm", "DSC", "HD95"]
    assert read.methods[2]["labels"] == [1, 2]


def test_the_determinants_are_those_of_the_map() -> None:
    matrix = np.array([[1.2, 0.1, 0.0], [0.0, 0.9, 0.2], [0.3, 0.0, 1.1]])
    voxels = np.moveaxis(np.indices((9, 8, 7)), 0, -1).astype(float)
    field = voxels @ matrix.T - voxels
    np.testing.assert_allclose(learn2reg.determinants(field), np.linalg.det(matrix))
    assert learn2reg.sdlogj(field) < 1e-9
    bent = field + 0.3 * np.sin(voxels)
    mask = np.zeros((9, 8, 7))
    mask[3:6, 3:5, 3] = 1
    logs = np.log(learn2reg.determinants(bent) + learn2reg.SHIFT)
    assert learn2reg.sdlogj(bent) == pytest.approx(logs.std())
    assert learn2reg.sdlogj(bent, mask) == pytest.approx(logs[1:4, 1:3, 1].std())


def test_overlap_and_surfaces_of_labels() -> None:
    fixed = np.zeros((12, 12, 12))
    fixed[3:8, 3:8, 3:8] = 1
    fixed[9, 9, 9] = 2
    moving = np.roll(fixed, 1, 0)
    moving[moving == 2] = 0
    found = learn2reg.dice(fixed, moving, moving, [1, 2])
    assert found[0] == pytest.approx(0.8)
    assert np.isnan(found[1])
    pytest.importorskip("surface_distance")
    surfaces = learn2reg.hd95(fixed, moving, moving, [1, 2])
    assert surfaces is not None
    assert surfaces[0] == pytest.approx(1.0)
    assert np.isnan(surfaces[1])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{}", "wanted pairs"),
        ("[]", "wanted a JSON object"),
        ('{"registration_val": [{"fixed": "a.nii.gz", "moving": "b.nii.gz"}]}', "wanted a volume named"),
    ],
)
def test_a_folder_that_is_no_task_is_refused_in_a_sentence(
    tmp_path: Path, text: str, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "A_dataset.json").write_text(text)
    assert learn2reg_command.main([str(tmp_path), "-o", str(tmp_path / "out"), "--no-run"]) == 2
    assert wanted in capsys.readouterr().err


def test_a_made_task_has_the_maps_that_it_says(data_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK")
    task = learn2reg.read_task(made.lay_out(data_dir, tmp_path / "Made", pairs=1, step=5))
    [case] = task.cases
    assert {method["name"] for method in task.methods} >= {"LogJacDetStd", "TRE_lm", "DSC"}
    root = tmp_path / "Made"
    fixed, moving = (np.loadtxt(path, delimiter=",") for path in learn2reg.points_of(case, root, "landmarks"))
    assert 1 < np.linalg.norm(fixed - moving, axis=1).max() < made.SIZE
    here, there = (fields.numbers_of(root / name) for name in (case.fixed, case.moving))
    spread = there.std()
    seen, meant = (
        map_coordinates(volume, at.T, order=1) for volume, at in ((here, fixed), (there, moving))
    )  # the same tissue at both
    assert np.abs(seen - meant).mean() < 0.2 * spread
    assert np.abs(map_coordinates(here, moving.T, order=1) - meant).mean() > 0.3 * spread
    assert fields.spacing_of(root / case.fixed) == pytest.approx((0.25,) * 3)


# slices

STEP = 10.0
"""Distance of spots of the made slices."""


def spots(path: Path, turned: bool = False, **labels: Sequence[str]) -> None:
    """A lattice of 6 × 5 spots, types by column and regions by row; ``turned`` by a quarter, in another order of spots."""
    anndata = pytest.importorskip("anndata")
    pandas = pytest.importorskip("pandas")
    column, row = (index.ravel() for index in np.indices((6, 5)))
    obs = pandas.DataFrame({"cell_type": [f"t{c // 2}" for c in column], "layer_guess": [f"L{r // 2}" for r in row]})
    obs.index = [f"s{n}" for n in range(30)]
    positions = STEP * np.stack([column, row], axis=1).astype(float)
    data = anndata.AnnData(np.ones((30, 2), np.float32), obs=obs, obsm={"spatial": positions})
    if turned:
        data.obsm["spatial"] = positions @ np.array([[0.0, 1.0], [-1.0, 0.0]]) + 3.0
        data = data[np.random.default_rng(1).permutation(30)].copy()
    path.parent.mkdir(parents=True, exist_ok=True)
    data.write_h5ad(path)


def back_turned(error: float = 0.0, loses: str = "-") -> Callable[..., int]:
    """In place of ``regframe batch``: the query is turned back, and moved on in x by ``error``."""

    def run(pairs: Sequence[entries.Pair], out: Path, arguments: Sequence[str] = ()) -> int:
        import anndata

        for pair in pairs:
            folder = out / entries.RUNS / pair.id
            if loses in pair.id:
                job(folder, "failed")
                continue
            data = anndata.read_h5ad(pair.moving)
            back = (data.obsm["spatial"] - 3.0) @ np.array([[0.0, -1.0], [1.0, 0.0]]) + [error, 0.0]
            data.obsm["spatial_aligned"] = back
            (folder / "applied").mkdir(parents=True)
            data.write_h5ad(folder / "applied" / pair.moving.name)
            job(folder)
        return 3

    return run


def test_pairs_of_slat_are_matched_and_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "results", tmp_path / "out"
    for name in ("cells:0", "lost"):
        spots(folder / "made" / name / "adata1.h5ad")
        spots(folder / "made" / name / "adata2.h5ad", turned=True)
    monkeypatch.setattr(entries, "run", back_turned(error=STEP, loses="lost"))
    assert slices_command.main([str(folder), "-o", str(out), "--pi"]) == 3
    said = capsys.readouterr().out
    place = out / "submission" / "made" / "cells:0" / "regframe"
    metrics = dict(line.split(": ") for line in (place / "metrics.yaml").read_text().splitlines())
    # a column on: of 6 columns in threes of 2, columns 1 and 3 fall into the next type, the last is matched to itself
    assert float(metrics["celltype_score"]) == pytest.approx(4 / 6)
    assert float(metrics["global_score"]) == pytest.approx(4 / 6)
    assert float(metrics["region_score"]) == float(metrics["mapping_accuracy"]) == 1.0
    assert float(metrics["LTARI"]) == 1.0
    assert float(metrics["run_time"]) == 12.0
    matching = np.loadtxt(place / "matching.csv", dtype=np.int64)
    assert matching.shape == (2, 30)
    assert (matching[0] == np.arange(30)).all()
    pi = np.loadtxt(place / "pi.gz", delimiter=",")
    assert pi.shape == (30, 30)
    assert pi.sum() == pytest.approx(1.0)
    assert (pi.argmax(axis=0) == matching[1]).all()
    assert not (out / "submission" / "made" / "lost").exists()
    assert "failed: no such file" in said
    assert "means over pairs" in said


def test_a_folder_of_slices_is_aligned_slice_by_slice(tmp_path: Path) -> None:
    for name in ("151673", "151674", "151675"):
        spots(tmp_path / f"{name}.h5ad")
    cases = slices.read_cases(tmp_path, components=4)
    assert [(c.pair.fixed.stem, c.pair.moving.stem) for c in cases] == [("151673", "151674"), ("151674", "151675")]
    assert cases[0].pair.cells["fixed_set"] == f"genes=all;components=4;beside={tmp_path / '151674.h5ad'}"
    assert slices.read_cases(tmp_path)[0].pair.cells == {}  # regframe's defaults
    with pytest.raises(ValueError, match=r"wanted adata1\.h5ad"):
        slices.read_cases(tmp_path / "none")


def test_the_adjusted_rand_index() -> None:
    one = np.array(list("aabbcc"))
    assert slices.adjusted_rand(one, np.array(list("xxyyzz"))) == 1.0
    assert slices.adjusted_rand(one, np.array(list("xxxyyy"))) == pytest.approx(
        0.24242424
    )  # the example of Hubert's formula
    assert slices.adjusted_rand(one, np.array(["x"] * 6)) == 0.0
