"""The harnesses of challenges: their layouts are read, their submissions written, their metrics computed as theirs are."""

from __future__ import annotations

import csv
import json
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.data import immunohistochemistry

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import acrobat, anhir, entries
from benchmarks.acrobat import __main__ as acrobat_command
from benchmarks.anhir import __main__ as anhir_command

Map = Callable[[np.ndarray], np.ndarray]
SHIFT = np.array([3.0, -2.0])
"""x and y by which the target lies from the source in the made folders, in the unit of their points."""


def table(path: Path, head: str, *rows: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([head, *rows]) + "\n")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def batch_that(carries: Map, loses: Sequence[str] = ()) -> Callable[..., int]:
    """In place of ``regframe batch``: every pair is mapped by ``carries``, those whose id has a text of ``loses`` fail."""

    def run(pairs: Sequence[entries.Pair], out: Path, arguments: Sequence[str] = ()) -> int:
        for pair in pairs:
            folder = out / entries.RUNS / pair.id
            lost = any(text in pair.id for text in loses)
            record = {"status": "failed" if lost else "done", "verdict": None if lost else "pass", "seconds": 90.0}
            entries.write_json(folder / "job.json", record | {"reasons": ["no such file"] if lost else []})
            if not lost:
                rows = entries.read_table(pair.points, pair.axes)
                moved = carries(entries.read_points(pair.points, pair.axes))
                head = [*rows[0], "in_canvas"]
                filled = [
                    [{**r, **dict(zip(pair.axes, p, strict=True))}.get(n, 1) for n in head]
                    for r, p in zip(rows, moved, strict=True)
                ]
                entries.write_table(folder / "applied" / pair.points.name, head, filled)
        return 3 if loses else 0

    return run


# ANHIR

POINTS = np.array([[10.0, 20.0], [30.0, 5.0], [50.5, 40.25]])
COVER = (
    ",Image diagonal [pixels],Image size [pixels],Source image,Source landmarks,Target image,Target landmarks,status,"
    "Warped target landmarks,Warped source landmarks,Execution time [minutes]"
)


def landmarks(path: Path, points: np.ndarray) -> None:
    table(path, " ,X,Y", *(f"{n},{x},{y}" for n, (x, y) in enumerate(points, 1)))


@pytest.fixture
def anhir_folder(tmp_path: Path) -> Path:
    """Three pairs: one with its truth, one whose truth is kept back, one without its source image."""
    folder = tmp_path / "dataset_ANHIR"
    names = [("S1", "HE", "training"), ("S2", "HE2", "evaluation"), ("S3", "S1", "training")]
    rows = [
        f'{10 * n},100,"(60, 80)",COAD_01/scale-25pc/{s}.jpg,COAD_01/scale-25pc/{s}.csv,'
        f"COAD_01/scale-25pc/{t}.jpg,COAD_01/scale-25pc/{t}.csv,{status},,,"
        for n, (s, t, status) in enumerate(names)
    ]
    table(folder / "images" / "dataset_medium.csv", COVER, *rows)
    for name in ("HE", "HE2", "S1", "S2"):
        suffix = ".jpg" if name != "S2" else ".png"  # as some unpacked it
        path = folder / "images" / "COAD_01" / "scale-25pc" / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(path)
    for name, points in (("S1", POINTS), ("S2", POINTS), ("S3", POINTS - SHIFT)):
        landmarks(folder / "landmarks" / "COAD_01" / "scale-25pc" / f"{name}.csv", points)
    landmarks(folder / "lnds_reference" / "COAD_01" / "scale-25pc" / "HE.csv", np.vstack([POINTS + SHIFT, [1.0, 1.0]]))
    return folder


def test_anhir_folder_becomes_a_submission(
    anhir_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(entries, "run", batch_that(lambda p: p + SHIFT + [0.6, 0.8], loses=["S3"]))
    computer = tmp_path / "computer.json"
    computer.write_text("{}")
    arguments = [str(anhir_folder), "-o", str(tmp_path / "out"), "--computer", str(computer)]
    assert anhir_command.main(arguments) == 3  # S3 has no image
    said = capsys.readouterr().out
    assert "AMrTRE 0.02303, MMrTRE 0.02303" in said
    assert "020_COAD_01_S3_to_S1: failed: no such file" in said

    rows = rows_of(tmp_path / "out" / "submission" / anhir.RESULTS)
    cover = rows_of(anhir_folder / "images" / "dataset_medium.csv")
    for row, given in zip(rows, cover, strict=True):  # the evaluator joins by these
        assert all(row[name] == given[name] for name in anhir.COVER)
    assert [row[""] for row in rows] == ["0", "10", "20"]
    assert [row[anhir.TIME] for row in rows] == ["1.500000", "1.500000", ""]
    assert rows[2][anhir.WARPED] == ""
    warped = tmp_path / "out" / "submission" / rows[1][anhir.WARPED]  # also where the truth is kept back
    assert warped.read_text().splitlines()[:2] == [",X,Y", "1,13.6000,18.8000"]
    with zipfile.ZipFile(tmp_path / "out" / "submission.zip") as packed:
        assert {anhir.RESULTS, anhir.COMPUTER, rows[0][anhir.WARPED]} <= set(packed.namelist())

    figures = json.loads((tmp_path / "out" / "metrics.json").read_text())
    after, before = 0.01, float(np.hypot(*SHIFT)) / 100  # the pair with a map, the one without
    assert figures["Average-Median-rTRE"] == pytest.approx((after + before) / 2)
    assert figures["Average-Median-rTRE-Robust"] == pytest.approx(after)
    assert figures["Average-Robustness"] == 0.5
    assert figures["Average-Max-rTRE_tissue_COAD"] == pytest.approx((after + before) / 2)
    assert "Average-Median-rTRE_evaluation" not in figures
    assert [row["verdict"] for row in rows_of(tmp_path / "out" / "cases.csv")] == ["pass", "pass", "failed"]


def test_anhir_takes_parts_and_scores_what_is_there(
    anhir_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(entries, "run", batch_that(lambda p: p + SHIFT))
    assert anhir_command.main([str(anhir_folder / "images"), "-o", str(out), "--only", "0"]) == 0
    monkeypatch.setattr(entries, "run", pytest.fail)
    assert anhir_command.main([str(anhir_folder), "-o", str(out), "--no-run", "--status", "training"]) == 3
    said = capsys.readouterr().out
    assert "020_COAD_01_S3_to_S1: not run" in said
    assert [row[anhir.WARPED] != "" for row in rows_of(out / "submission" / anhir.RESULTS)] == [True, False, False]
    assert anhir_command.main([str(anhir_folder), "-o", str(out), "--only", "5"]) == 2
    table(anhir_folder / "images" / "dataset_small.csv", COVER)
    assert anhir_command.main([str(anhir_folder), "-o", str(out)]) == 2
    assert "name the table instead of the folder" in capsys.readouterr().err


def test_anhir_scores_as_the_challenge_does() -> None:
    target = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [7.0, 7.0]])
    source = target + np.array([30.0, 40.0])  # 50 px each
    warped = target + np.array([[3.0, 4.0], [0.0, 0.0], [60.0, 80.0], [0.0, 5.0]])  # 5, 0, 100, 5 px
    one = anhir.score(source, target, warped, 1000.0)
    assert (one.median, one.mean, one.largest, one.before) == pytest.approx((0.005, 0.0275, 0.1, 0.05))
    assert one.robustness == 0.75
    assert one.complete
    for missing in (None, warped[:3]):  # counts as not registered
        lost = anhir.score(source, target, missing, 1000.0)
        assert (lost.median, lost.robustness, lost.complete) == (pytest.approx(0.05), 0.0, False)
    fewer = anhir.score(source, target[:2], warped, 1000.0)  # the landmarks that both have
    assert fewer.median == pytest.approx(0.0025)
    with pytest.raises(ValueError, match="wanted landmarks on both sides"):
        anhir.score(source[:0], target, None, 1000.0)


# ACROBAT

ACROBAT = (
    "anon_id,anon_filename_he,anon_filename_ihc,point_id,ihc_x,ihc_y,mpp_ihc_10X,mpp_he_10X,ihc_antibody,he_x,he_y"
)
IHC = np.column_stack([np.arange(10) * 10.0, np.arange(10) * 5.0])


@pytest.fixture
def acrobat_folder(tmp_path: Path) -> Path:
    """Two pairs of ten points; the second one's H&E slide is not there."""
    folder = tmp_path / "acrobat"
    rows = [
        f"{case},{case}_HE_val.ndpi,{case}_{stain}_val.ndpi,{10 * case + n},{x},{y},0.91,0.9,{stain},,"
        for case, stain in ((0, "KI67"), (1, "ER"))
        for n, (x, y) in enumerate(IHC)
    ]
    table(folder / "acrobat_validation_points_public_1_of_1.csv", ACROBAT, *rows)
    for name in ("0_HE_val", "0_KI67_val", "1_ER_val"):
        path = folder / "valid" / f"{name}.tif"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(path)
    return folder


def test_acrobat_folder_becomes_a_submission(
    acrobat_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(entries, "run", batch_that(lambda p: p + SHIFT, loses=["1_ER"]))
    head = "anon_id,point_id,ihc_x,ihc_y,max_he_x,max_he_y,he_0_x,he_0_y,he_1_x,he_1_y"
    truth = []
    for case in (0, 1):
        for n, (x, y) in enumerate(IHC + SHIFT):  # one annotator is right, the other n px off
            truth.append(f"{case},{10 * case + n},,,1000,1000,{x},{y},{x + n},{y}")
    table(tmp_path / "places.csv", head, *truth)
    out = acrobat_folder / "out"  # inside the folder that is read: not taken for the table of the challenge
    arguments = [str(acrobat_folder), "-o", str(out), "--truth", str(tmp_path / "places.csv")]
    assert acrobat_command.main(arguments) == 3
    assert acrobat_command.main([*arguments, "--no-run"]) == 3

    assert [path.name for path in (out / "submission").iterdir()] == [acrobat.RESULTS]  # the evaluator takes one table
    rows = rows_of(out / "submission" / acrobat.RESULTS)
    assert list(rows[0]) == ACROBAT.split(",")
    assert (rows[3]["point_id"], rows[3]["he_x"], rows[3]["he_y"]) == ("3", "33.0000", "13.0000")
    assert {(row["he_x"], row["he_y"]) for row in rows[10:]} == {("", "")}

    figures = json.loads((out / "metrics.json").read_text())
    lost = [(np.hypot(*SHIFT) + np.hypot(SHIFT[0] + n, SHIFT[1])) / 2 for n in range(10)]
    assert figures["p90-0"] == pytest.approx(4.05)  # of 0, 0.5 … 4.5
    assert figures["p90-1"] == pytest.approx(np.percentile(lost, 90))
    assert figures["medianp90s"] == pytest.approx((figures["p90-0"] + figures["p90-1"]) / 2)
    assert figures["variancep90s"] == pytest.approx((figures["p90-0"] - figures["p90-1"]) ** 2 / 4)
    assert "001_1_ER_val_to_1_HE_val: failed: no such file" in capsys.readouterr().out


def test_acrobat_clips_to_the_slide_and_refuses_what_is_no_table(
    acrobat_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = acrobat.Truth(np.array([[100.0, 50.0]]), np.array([100.0, 60.0]))
    case = acrobat.read_cases(acrobat_folder, tmp_path / "out")[0]
    fit = entries.Fit("pass", np.full((10, 2), [140.0, -7.0]))
    judged = acrobat.scores([case], {case.pair.id: fit}, {("0", "4"): truth})
    assert judged["0"].p90 == pytest.approx(50.0)  # at (100, 0)
    assert judged["0"].n == 1

    whole = (acrobat_folder / "acrobat_validation_points_public_1_of_1.csv").read_text()
    for text, words in (
        (whole.replace("0,0_HE_val.ndpi,0_KI67_val.ndpi,1,", "0,0_HE_val.ndpi,0_KI67_val.ndpi,0,"), "point_id 0 twice"),
        (whole.replace("10.0,5.0", "10.0,here"), "wanted numbers in the columns x_um and y_um"),
        (whole.replace("mpp_he_10X", "mpp"), "got none; name the table"),
    ):
        (acrobat_folder / "acrobat_validation_points_public_1_of_1.csv").write_text(text)
        assert acrobat_command.main([str(acrobat_folder), "-o", str(tmp_path / "out")]) == 2
        assert words in capsys.readouterr().err


# both, with the real `regframe batch`


def test_the_tables_are_manifests_of_a_batch(
    anhir_folder: Path, acrobat_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for cases, absent in (
        (anhir.read_cases(anhir_folder), "020_COAD_01_S3_to_S1: "),
        (acrobat.read_cases(acrobat_folder, tmp_path / "acro"), "001_1_ER_val_to_1_HE_val: "),
    ):
        assert entries.run([case.pair for case in cases], tmp_path / "out", ["--dry-run"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith(f"{len(cases)} jobs, 0 done already")
        assert [line.strip().startswith(f"not there: {absent}") for line in lines[1:]] == [True]
        with pytest.raises(ValueError, match="No such option"):
            entries.run([case.pair for case in cases], tmp_path / "out", ["--wokers", "2"])


@pytest.mark.slow
def test_pairs_are_really_registered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = immunohistochemistry()
    target, source = picture[40:360, 40:360], picture[60:380, 30:350]  # the source lies at (-10, 20) of it
    points = np.array([[60.0, 100.0], [200.0, 80.0], [150.0, 250.0]])
    folder = tmp_path / "anhir"
    table(
        folder / "dataset_small.csv",
        "Target image,Source image,Target landmarks,Source landmarks",
        "K_1/t.png,K_1/s.png,K_1/t.csv,K_1/s.csv",
    )
    landmarks(folder / "K_1" / "s.csv", points)
    landmarks(folder / "K_1" / "t.csv", points + np.array([-10.0, 20.0]))
    for name, image in (("t.png", target), ("s.png", source)):
        Image.fromarray(image).save(folder / "K_1" / name)
    arguments = [str(folder), "-o", str(tmp_path / "out"), "--workers", "1", "--threads", "1"]
    assert anhir_command.main(arguments) == 0
    figures = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert figures["Average-Max-rTRE"] < 0.5 / 320
    assert figures["Average-Robustness"] == 1.0
    stamp = (tmp_path / "out" / "runs" / "000_K_1_s_to_t" / "job.json").stat().st_mtime_ns
    assert anhir_command.main(arguments) == 0
    assert (tmp_path / "out" / "runs" / "000_K_1_s_to_t" / "job.json").stat().st_mtime_ns == stamp

    folder = tmp_path / "acrobat"
    rows = [f"7,7_HE_val.ndpi,7_ER_val.ndpi,{n},{x * 0.5},{y * 0.5},0.5,0.5,ER,," for n, (x, y) in enumerate(points)]
    table(folder / "points.csv", ACROBAT, *rows)
    for name, image in (("7_HE_val.tif", target), ("7_ER_val.tif", source)):
        Image.fromarray(image).save(folder / name)
    truth = [f"7,{n},{(x - 10) * 0.5},{(y + 20) * 0.5}" for n, (x, y) in enumerate(points)]
    table(tmp_path / "truth.csv", "anon_id,point_id,he_x,he_y", *truth)
    arguments = [str(folder), "-o", str(tmp_path / "out2"), "--truth", str(tmp_path / "truth.csv"), "--workers", "1"]
    assert acrobat_command.main([*arguments, "--threads", "1"]) == 0
    assert json.loads((tmp_path / "out2" / "metrics.json").read_text())["medianp90s"] < 0.25
