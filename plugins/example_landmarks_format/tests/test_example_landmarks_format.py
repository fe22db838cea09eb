"""The kit on the format ``bigwarp``, and what its tables look like."""

import csv

import pytest
import torch
from example_landmarks_format import BigWarp

import regframe
from regframe.testing import FormatTests


class TestFormat(FormatTests):
    bad_options = ({"landmarks": 1}, {"landmarks": 61}, {"landmarks": True})

    def make(self):
        return BigWarp()


class TestFew(FormatTests):
    def make(self):
        return BigWarp(landmarks=5)


def result(transform, fixed, moving):
    figures = {
        "verdict": "pass",
        "reasons": [],
        "roundtrip_px": {"mean": 0.0, "max": 0.0},
        "seconds": 0.0,
        "n_evaluations": 0,
    }
    return regframe.Result(transform, fixed, moving, figures, regframe.Config(), transform)


def test_the_layout(tmp_path):
    """Name, active, moving x, y, fixed x, y in µm, all in quotes."""
    fixed, moving = regframe.Grid((10, 20), 2.0, (), "µm"), regframe.Grid((10, 20), 1.0, (), "mm")
    shift = regframe.Affine(torch.tensor([[1000.0, 0, 5], [0, 1000, 7], [0, 0, 1]], dtype=torch.float64), "mm", "µm")
    written = BigWarp().write(
        result(shift, fixed, moving), tmp_path / "a.bigwarp.csv", to="moving", unit="µm", tolerance=0.001
    )
    rows = list(csv.reader(written.files[0].open()))
    assert written.files[0].read_text().startswith('"Pt-0","true","-7","-5","0","0"\n')
    assert rows[0][:2] == ["Pt-0", "true"]
    for row in rows:
        mx, my, fx, fy = map(float, row[2:])
        assert (mx + 7, my + 5) == pytest.approx((fx, fy))
    assert written.max_error_px < 1e-9
    assert BigWarp.recognises(written.files[0])


def test_inactive_landmarks_do_not_count(tmp_path):
    text = '"Pt-0","true","0","0","1","1"\n"Pt-1","true","9","0","10","1"\n"Pt-2","true","0","9","1","10"\n'
    (tmp_path / "a.csv").write_text(text + '"Pt-3","false","Infinity","Infinity","4","4"\n')
    grid = regframe.Grid((10, 10))
    found = BigWarp().read(tmp_path / "a.csv", grid, grid, to="moving", unit="µm")
    assert isinstance(found, regframe.Affine)
    assert found.points(torch.zeros((1, 2))).tolist() == [[pytest.approx(1), pytest.approx(1)]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('"Pt-0","true","0","0","1","1"\n', "at least 3 active landmarks"),
        ('"Pt-0","true","0","0","1","1"\n' * 4, "at least 3 active landmarks"),
        ('"Pt-0","true","0","0","0","1","1","0"\n', "a row of 8 entries"),
        ('"Pt-0","true","0","0","inf","1"\n', "on one side alone"),
        (
            '"a","true","0","0","1","1"\n"b","true","1","0","1","1"\n"c","true","0","1","0","1"\n"d","true","0","3","0","4"\n',
            "two at one",
        ),
    ],
)
def test_other_tables_are_refused(tmp_path, text, said):
    (tmp_path / "a.csv").write_text(text)
    grid = regframe.Grid((10, 10))
    with pytest.raises(ValueError, match=said):
        BigWarp().read(tmp_path / "a.csv", grid, grid, to="moving", unit="µm")


def test_more_landmarks_come_closer(tmp_path):
    grid = regframe.Grid((60, 80))
    wide = regframe.Grid((100, 120), (), (-20, -20))
    y, x = wide.coords().unbind(-1)
    bend = regframe.Displacement(torch.stack([2 * torch.sin(x / 15), 2 * torch.cos(y / 12)]), wide)
    errors = []
    for landmarks in (5, 12, 0):
        made = result(bend, grid, grid)
        path = tmp_path / f"{landmarks}.bigwarp.csv"
        errors.append(BigWarp(landmarks).write(made, path, to="moving", unit="µm", tolerance=0.001).max_error_px)
    assert errors[0] > 0.3 > errors[1] > errors[2]
    assert errors[2] < 0.1
