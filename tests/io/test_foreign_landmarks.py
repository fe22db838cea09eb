"""Landmarks of BigWarp, Warpy, STalign and ImageJ, in the layouts that these programs document: read, written, read again."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fake_result import fake_result

import regframe as rf
from regframe.cli import main
from regframe.data import Grid
from regframe.io import bigwarp, imagej, stalign
from regframe.view import pairfiles, pairs

FIXED = np.array([[10.0, 20.5], [30.25, 5.0], [7.0, 8.0], [22.0, 31.0]])  # y, x
MOVING = FIXED + np.array([3.0, -2.0])
LANDMARKS = {
    "type": "BigWarpLandmarks",
    "numDimensions": 2,
    "movingPoints": MOVING[:, ::-1].tolist(),
    "fixedPoints": FIXED[:, ::-1].tolist(),
    "active": [True, True, False, True],
    "names": ["Pt-0", "Pt-1", "Pt-2", "a b"],
}


@pytest.mark.parametrize(
    "document",
    [
        LANDMARKS,
        {"type": "Thin Plate Spline", "landmarks": LANDMARKS},
        {"Sources": {}, "Viewer": {}, "Transform": {"type": "Affine", "landmarks": LANDMARKS}},
    ],
)
def test_bigwarp(tmp_path: Path, document: dict[str, object]) -> None:
    (tmp_path / "a.json").write_text(json.dumps(document))
    fixed, moving, units = rf.read_landmarks(tmp_path / "a.json")
    assert fixed.tolist() == FIXED[[0, 1, 3]].tolist()
    assert moving.tolist() == MOVING[[0, 1, 3]].tolist()
    assert units == (None, None)
    read = bigwarp.parsed(json.dumps(document))
    assert read is not None
    assert bigwarp.parsed(bigwarp.written(read.pairs)) == read
    sides = pairfiles.Sides(Grid((50, 50)), Grid((50, 50)))
    shown = pairfiles.read(json.dumps(document), sides)
    assert [(name, on) for name, _, _, on in shown] == list(zip(LANDMARKS["names"], LANDMARKS["active"], strict=True))  # type: ignore[call-overload]
    again = [pairs.Pair(i, name, at, to, on) for i, (name, at, to, on) in enumerate(shown)]
    assert pairfiles.read(pairfiles.WRITERS["bigwarp-json"][1](again, sides), sides) == shown


def test_warpy(tmp_path: Path) -> None:
    """Pixels of the fixed side in 0.5 µm, of the moving side in 0.25 µm, a spline between them."""
    fixed, moving = FIXED * 0.5 + 100, MOVING * 0.25 - 7
    document = {
        "type": "InvertibleRealTransformSequence",
        "size": 3,
        "realTransform_0": {
            "type": "AffineTransform3D",
            "affinetransform3d": [0.5, 0, 0, 100, 0, 0.5, 0, 100, 0, 0, 1, 0],
        },
        "realTransform_1": {
            "type": "WrappedIterativeInvertibleRealTransform",
            "wrappedTransform": {
                "type": "Wrapped2DTransformAs3D",
                "wrappedTransform": {
                    "type": "ThinplateSplineTransform",
                    "srcPts": fixed[:, ::-1].T.tolist(),
                    "tgtPts": moving[:, ::-1].T.tolist(),
                },
            },
        },
        "realTransform_2": {"type": "AffineTransform3D", "affinetransform3d": [4, 0, 0, 28, 0, 4, 0, 28, 0, 0, 1, 0]},
    }
    (tmp_path / "transform_1_0.json").write_text(json.dumps(document))
    one, other, units = rf.read_landmarks(tmp_path / "transform_1_0.json")
    assert torch.allclose(one, torch.from_numpy(FIXED))
    assert torch.allclose(other, torch.from_numpy(MOVING))
    assert units == ("px", "px")


def clicked(points: np.ndarray) -> dict[str, list[tuple[float, float]]]:
    """As STalign's point_annotator saves it: x, y, in matplotlib's numbers."""
    return {"cortex": [(x, y) for y, x in points[:2]], "edge": [(float(x), float(y)) for y, x in points[2:]]}


def test_stalign(tmp_path: Path) -> None:
    for name, points in (("target", FIXED), ("source", MOVING)):
        np.save(tmp_path / f"{name}_points.npy", clicked(points), allow_pickle=True)  # type: ignore[arg-type]
        np.save(tmp_path / f"{name}.npy", points)
    for suffix in ("_points.npy", ".npy"):
        fixed, moving, units = rf.read_landmarks(tmp_path / f"target{suffix}", tmp_path / f"source{suffix}")
        assert fixed.tolist() == FIXED.tolist()
        assert moving.tolist() == MOVING.tolist()
        assert units == (None, None)
    points = rf.read_points(tmp_path / "target_points.npy", unit="um")
    assert points.table["name"] == ["cortex0", "cortex1", "edge0", "edge1"]
    assert points.unit == "µm"
    stalign.write_npy(points, tmp_path / "again.npy")
    assert rf.read_points(tmp_path / "again.npy").coords.tolist() == FIXED.tolist()
    with pytest.raises(ValueError, match="--moving-landmarks"):
        rf.read_landmarks(tmp_path / "target.npy")


class Bad:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch ran",)


@pytest.mark.parametrize("content", [{"a": Bad()}, {"a": 3}, Bad(), ["x"], {}])
def test_nothing_in_a_pickled_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object) -> None:
    monkeypatch.chdir(tmp_path)
    array = np.empty((), dtype=object)
    array[()] = content
    np.save("bad_points.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=r"wanted (a dictionary of points|at least one point)"):
        rf.read_points("bad_points.npy")
    assert not Path("ran").exists()
    with Path("huge.npy").open("wb") as file:  # a header without numbers
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        file.write(pickle.PROTO + b"\x04" + pickle.LONG_BINPUT + b"\xff\xff\xff\x7f" + pickle.STOP)
    with pytest.raises(ValueError, match="dictionary of points"):
        rf.read_points("huge.npy")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"type": "FeatureCollection"}', "JSON with another content"),
        ('{"type": "BigWarpLandmarks", ', "cut off or damaged"),
        (json.dumps({**LANDMARKS, "fixedPoints": [[1, 2]]}), "as many movingPoints as fixedPoints"),
        (json.dumps({**LANDMARKS, "fixedPoints": [[float("inf"), 2]] * 4}), "finite numbers"),
        (json.dumps({**LANDMARKS, "active": [False] * 4}), "at least one active pair"),
        ('{"realTransform_0": {"affinetransform3d": [1]}}', "3 by 4 numbers"),
        ('{"realTransform_0": 3}', "wanted transforms"),
        ('{"type": "ThinplateSplineTransform", "srcPts": [[1]], "tgtPts": [[1]]}', "2 or 3 dimensions"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ValueError, match=says):
        rf.read_landmarks(tmp_path / "bad.json")


def test_evaluate_takes_pairs_in_one_file_or_two(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    fake_result(Grid((50, 50)), Grid((50, 50))).save(tmp_path / "run" / "transform.ome.zarr")
    (tmp_path / "pairs.json").write_text(json.dumps(LANDMARKS))
    np.save(tmp_path / "f.npy", FIXED[[0, 1, 3]])
    np.save(tmp_path / "m.npy", MOVING[[0, 1, 3]])
    sides = ["--fixed-landmarks", str(tmp_path / "f.npy"), "--moving-landmarks", str(tmp_path / "m.npy")]
    said = []
    for options in (["--landmarks", str(tmp_path / "pairs.json")], sides):
        done = CliRunner().invoke(main, ["evaluate", str(tmp_path / "run"), *options, "--json"])
        assert done.exit_code == 0, done.output
        said.append(json.loads(done.stdout))
    assert said[0] == said[1]
    done = CliRunner().invoke(main, ["evaluate", str(tmp_path / "run"), *sides[:2]])
    assert done.exit_code == 2
    assert "a file for each side" in done.output


def test_a_folder_of_the_live_page_can_be_refined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    fake_result(Grid((50, 50)), Grid((50, 50))).save(tmp_path / "run" / "transform.ome.zarr")
    for name in ("steps.json", "metrics.json"):
        (tmp_path / "run" / name).write_text("{}")
    sides = {side: {"path": str(tmp_path / side)} for side in ("fixed", "moving")}
    monkeypatch.setattr(sys.modules["regframe.cli.refine"], "recorded_run", lambda *_: sides)

    def reached(_: object) -> None:
        raise ValueError("reached the images")

    monkeypatch.setattr(sys.modules["regframe.cli.refine"], "levels", reached)
    done = CliRunner().invoke(main, ["refine", str(tmp_path / "run")])
    assert "reached the images" in f"{done.output} {done.exception}"


def selection(places: list[tuple[float, float]], name: str = "", kind: int = 10) -> bytes:
    """Points x, y as ImageJ's RoiEncoder lays them out: a header of 64 bytes, whole numbers from the box's corner, the same as
    floats, a second header that says where the name lies. 10 is a selection of points, 0 a polygon."""
    x, y = ([round(place[axis]) for place in places] for axis in (0, 1))
    n, left, top = len(places), min(x), min(y)
    end = 64 + 12 * n
    head = b"Iout" + struct.pack(">hBxhhhhH", 228, kind, top, left, max(y) + 1, max(x) + 1, n) + bytes(30)
    head += struct.pack(">hhBBhii", 0, 128, 0, 0, 0, 0, end)  # 128: there are positions between pixels
    whole = struct.pack(f">{2 * n}h", *(v - left for v in x), *(v - top for v in y))
    floats = struct.pack(f">{2 * n}f", *(p[0] for p in places), *(p[1] for p in places))
    second = bytes(16) + struct.pack(">ii", end + 64, len(name)) + bytes(40)
    return head + whole + floats + second + name.encode("utf-16-be")


@pytest.fixture
def roifile() -> None:
    pytest.importorskip("roifile", reason="needs roifile: pip install 'regframe[roi]'")


@pytest.mark.usefixtures("roifile")
def test_imagej(tmp_path: Path) -> None:
    (tmp_path / "f.roi").write_bytes(selection([(8.0, 7.0), (20.5, 10.25), (31.0, 22.0)]))
    found = rf.read_points(tmp_path / "f.roi")
    assert found.coords.tolist() == [[7.0, 8.0], [10.25, 20.5], [22.0, 31.0]]
    assert found.unit == "px"
    with zipfile.ZipFile(tmp_path / "m.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i, place in enumerate([(9.0, 7.0), (21.5, 10.25), (32.0, 22.0)]):
            archive.writestr(f"../../{i}.roi", selection([place], f"spot {i}"))
        archive.writestr("read me.txt", "no selection")
    moving = rf.read_points(tmp_path / "m.zip")
    assert moving.table["selection"] == ["spot 0", "spot 1", "spot 2"]
    fixed, to, units = rf.read_landmarks(tmp_path / "f.roi", tmp_path / "m.zip")
    assert units == ("px", "px")
    assert (to - fixed).tolist() == [[0.0, 1.0]] * 3
    with pytest.raises(ValueError, match=r"--moving-landmarks M\.roi"):
        rf.read_landmarks(tmp_path / "f.roi")
    again = imagej.parsed(imagej.written([(7.0, 8.0), (19_000.25, 12_345.5), (-3.5, 70_000.0)]))
    assert [at for _, at in again] == [(7.0, 8.0), (19_000.25, 12_345.5), (-3.5, 70_000.0)]


@pytest.mark.usefixtures("roifile")
def test_what_is_no_points_of_imagej_is_refused() -> None:
    sound = selection([(8.0, 7.0)])
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.roi", bytes(1 << 25))
    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    many = bytearray(sound)
    many[16:18] = b"\xff\xff"
    for data, words in (
        (selection([(8.0, 7.0), (1.0, 2.0), (3.0, 5.0)], kind=0), "type polygon"),
        (sound[:70], "damaged"),
        (bytes(many), "damaged"),
        (b"Iout" + bytes(80), "type polygon|got none|damaged"),
        (sound[:64] + b"\0" * 4 + struct.pack(">2f", float("nan"), 1), "finite"),
        (out.getvalue(), "MB of selections"),
        (out.getvalue()[:200], "RoiSet.zip"),
        (empty.getvalue(), "got none"),
    ):
        with pytest.raises(ValueError, match=words):
            imagej.parsed(data)
    with pytest.raises(ValueError, match="1 to"):
        imagej.written([])


def test_imagej_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagej, "can", lambda: False)
    with pytest.raises(ImportError, match=r"regframe\[roi\]"):
        imagej.parsed(b"Iout")
    assert not any("roi" in name for name in pairfiles.offered(flat=True))
    assert pairfiles.offered(flat=False) == list(pairfiles.OF_VOLUMES)
