"""Maps for QuPath: six numbers for its image alignment, JSON for Warpy, read as their programs read them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from click.testing import CliRunner
from fake_result import fake_result
from scipy.spatial.distance import cdist

import regframe as rf
from regframe.cli import main
from regframe.formats.qupath import Alignment, Warpy
from regframe.testing import FormatTests

Array = np.ndarray[Any, Any]
FIXED, MOVING = rf.Grid((60, 80), 2.0, (3.0, 5.0), "µm"), rf.Grid((70, 75), 3.0, (-4.0, 0.0), "µm")
FINE = {"fixed_pixels": rf.Grid((240, 320), 0.5, (2.25, 4.25), "µm"), "moving_pixels": MOVING}
"""Finest pixels; those of the fixed side are four times as fine as the canvas, and share its corner."""


class TestAlignment(FormatTests):
    def make(self) -> Alignment:
        return Alignment()


class TestWarpy(FormatTests):
    def make(self) -> Warpy:
        return Warpy()


def result(bend: float = 0.0) -> rf.Result:
    turn = torch.tensor([[0.9, -0.3, 12.0], [0.3, 0.9, -7.0], [0, 0, 1]], dtype=torch.float64)
    made = fake_result(FIXED, MOVING, turn, bend or 1.0)
    return made if bend else rf.Result(made.affine, FIXED, MOVING, made.metrics, made.config, made.affine)


def java_affine(text: str) -> Array:
    """What ``GeometryTools.parseTransformMatrix`` makes of text: six numbers, split at lines, tabs, blanks, and commas where
    there is a period; ``NumberFormat.parse`` reads as far as a number goes, and knows no exponent in small letters."""
    words = [word for word in re.split(r"[\n\t ,]" if "." in text else r"[\n\t ]", text) if word]
    assert len(words) == 6
    return np.array([float(re.match(r"-?\d+(\.\d+)?", word)[0]) for word in words]).reshape(2, 3)  # type: ignore[index]


def imglib(step: dict[str, Any], at: Array) -> Array:
    """What ImgLib2 makes of positions ``[N, 3]``, from the JSON that its serialiser reads."""
    if step["type"] == "InvertibleRealTransformSequence":
        for i in range(step["size"]):
            at = imglib(step[f"realTransform_{i}"], at)
        return at
    if step["type"] == "AffineTransform3D":
        rows = np.array(step["affinetransform3d"]).reshape(3, 4)
        return at @ rows[:, :3].T + rows[:, 3]
    if step["type"] == "Wrapped2DTransformAs3D":
        return np.hstack([imglib(step["wrappedTransform"], at[:, :2]), at[:, 2:]])
    if step["type"] == "WrappedIterativeInvertibleRealTransform":
        return imglib(step["wrappedTransform"], at)
    assert step["type"] == "ThinplateSplineTransform"
    p, q = (np.array(step[key]).T for key in ("srcPts", "tgtPts"))  # r² log r and an affine part (Bookstein 1989)

    def kernel(a: Array) -> Array:
        r = cdist(a, p)
        return r**2 * np.log(np.where(r > 0, r, 1.0))

    ones = np.hstack([np.ones((len(p), 1)), p])
    system = np.block([[kernel(p), ones], [ones.T, np.zeros((3, 3))]])
    weights = np.linalg.solve(system, np.vstack([q, np.zeros((3, 2))]))
    return np.hstack([kernel(at), np.ones((len(at), 1)), at]) @ weights


def corners(grid: rf.Grid, at: Array) -> Array:
    """Positions (y, x) as pixels (x, y) counted from the corner of the first one."""
    return ((at - grid.origin) / grid.spacing + 0.5)[:, ::-1]


def ways(made: rf.Result, to: str) -> tuple[Array, Array]:
    """Positions on one side and where the map takes them, in QuPath's pixels."""
    where = (FIXED if to == "moving" else MOVING).coords().reshape(-1, 2)[::37]
    there = made.to_moving(where) if to == "moving" else made.to_fixed(where)
    ends = (FINE["fixed_pixels"], FINE["moving_pixels"])
    left, reached = ends if to == "moving" else ends[::-1]
    return corners(left, where.numpy()), corners(reached, there.numpy())


@pytest.mark.parametrize("to", ["moving", "fixed"])
def test_the_text_is_what_the_alignment_takes(tmp_path: Path, to: Any) -> None:
    written = rf.write_map(result(), tmp_path / "a.qupath.txt", to=to, **FINE)
    before, after = ways(result(), to)
    matrix = java_affine((tmp_path / "a.qupath.txt").read_text())
    assert np.allclose(before @ matrix[:, :2].T + matrix[:, 2], after, atol=1e-8)
    assert written.max_error_px is not None
    assert written.max_error_px < 1e-8
    back = rf.read_map(tmp_path / "a.qupath.txt", FIXED, MOVING, to=to, **FINE)
    assert torch.allclose(back.affine.matrix, result().affine.matrix, atol=1e-9)


@pytest.mark.parametrize("to", ["moving", "fixed"])
@pytest.mark.parametrize("bend", [0.0, 2.5])
def test_the_json_is_what_imglib_reads(tmp_path: Path, to: Any, bend: float) -> None:
    made = result(bend)
    path = tmp_path / "transform_4_17.json"
    written = rf.write_map(made, path, "warpy", to=to, tolerance=0.009, **FINE)
    before, after = ways(made, to)
    step = json.loads(path.read_text())
    found = imglib(step, np.hstack([before, np.full((len(before), 1), 5.0)]))
    assert np.allclose(found[:, 2], 5)
    finer = 4.0 if to == "fixed" else 1.0
    assert written.max_error_px is not None
    assert written.max_error_px < (0.009 if bend else 1e-9)
    assert np.linalg.norm(found[:, :2] - after, axis=1).max() <= 1.3 * written.max_error_px * finer + 1e-6
    back = rf.read_map(path, FIXED, MOVING, to=to, **FINE)
    where = (FIXED if to == "moving" else MOVING).coords().reshape(-1, 2)
    pair = [m.to_moving(where) if to == "moving" else m.to_fixed(where) for m in (back, made)]
    assert float((pair[0] - pair[1]).norm(dim=1).max()) < 0.1


def test_landmarks_of_a_bend_are_read_as_warpys(tmp_path: Path) -> None:
    rf.write_map(result(2.5), tmp_path / "a.warpy.json", **FINE)
    fixed, moving, units = rf.read_landmarks(tmp_path / "a.warpy.json")
    assert units == ("px", "px")
    assert len(fixed) == len(moving) >= 25


def test_what_it_cannot_hold_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got one that bends; write warpy"):
        rf.write_map(result(2.5), tmp_path / "a.qupath.txt", **FINE)
    bad = tmp_path / "transform_1_2.json"
    for text, words in (
        ('{"type": "InvertibleRealTransformSequence", "size": 0}', "without a transform"),
        ('{"affinetransform3d": [1, 2]}', "12 numbers"),
        ('{"affinetransform3d": [1, 0, 3, 0, 0, 1, 0, 0, 0, 0, 1, 0]}', "mixes it in"),
        ("[1]", "another document"),
        ('{"realTransform_0": {"type": "BoundedRealTransform"}}', "Warpy"),
    ):
        bad.write_text(text)
        with pytest.raises(ValueError, match=words):
            rf.read_map(bad, FIXED, MOVING)


@pytest.mark.parametrize(
    ("name", "format", "right"),
    [
        ("a.json", "qupath", r"take a\.qupath\.txt"),
        ("a.txt", "qupath", r"take a\.qupath\.txt"),
        ("a.json", "warpy", r"transform_2_1\.json"),
    ],
)
def test_a_name_under_which_it_would_be_read_otherwise_is_refused(
    tmp_path: Path, name: str, format: str, right: str
) -> None:
    with pytest.raises(ValueError, match=right):
        rf.write_map(result(), tmp_path / name, format, **FINE)
    assert list(tmp_path.iterdir()) == []


def test_the_command_counts_the_files_own_pixels(tmp_path: Path) -> None:
    """A run on the second level of a slide: the numbers are those of the first."""
    fine = np.kron(np.random.default_rng(0).integers(0, 255, (12, 12), dtype=np.uint8), np.ones((16, 16), np.uint8))
    paths = [str(tmp_path / f"{name}.ome.tif") for name in "ab"]
    size = {"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm"}
    for path in paths:
        with tifffile.TiffWriter(path, ome=True) as file:
            file.write(fine, subifds=1, tile=(64, 64), metadata={"axes": "YX", **size})
            file.write(fine[::2, ::2], subfiletype=1, tile=(64, 64))
    run, out = tmp_path / "run", tmp_path / "a.qupath.txt"
    words = ["register", *paths, "-o", str(run), "--init", "identity", "--transform", "rigid", "--level", "1"]
    assert CliRunner().invoke(main, words).exit_code in (0, 3)
    done = CliRunner().invoke(main, ["export", str(run), "-o", str(out)])
    assert done.exit_code == 0, done.output
    matrix = java_affine(out.read_text())
    assert np.allclose(matrix[:, :2], np.eye(2), atol=1e-3)
    result_ = rf.load(run)
    where = np.array([[10.0, 20.0]])
    exact = corners(rf.Grid((192, 192), 0.5), result_.to_moving(torch.from_numpy(where)).numpy())
    assert np.allclose(corners(rf.Grid((192, 192), 0.5), where) @ matrix[:, :2].T + matrix[:, 2], exact, atol=1e-6)
