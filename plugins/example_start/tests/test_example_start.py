"""The kit on the start ``viewer_matrix``, and which number means what."""

import json

import pytest
import torch
from example_start import ViewerMatrix, matrix_of

import regframe
from regframe.testing import StartTests


class TestStart(StartTests):
    bad_options = ({"path": "a.txt", "to": "left"}, {"path": "a.txt", "to": "fixed", "unit": "furlong"})

    @pytest.fixture(autouse=True)
    def files(self, tmp_path):
        self.options, self.known = ViewerMatrix.sample(tmp_path)

    def make(self):
        return ViewerMatrix(**self.options)

    def pair(self):
        return self.known


def image(shape, spacing=1.0, unit="px", **more):
    return regframe.Image(torch.zeros((1, *shape)), regframe.Grid(shape, spacing, (), unit), **more)


def task(fixed, moving):
    return regframe.Task(fixed, moving, None, "auto", regframe.Config())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "1.5, 0.25, 10\n-0.25, 1.5, 20\n"),
        ("b.csv", "1.5,0.25,10\n-0.25,1.5,20\n0,0,1\n"),
        (
            "c.json",
            json.dumps({"a": [{"b": {"m00": 1.5, "m10": -0.25, "m01": 0.25, "m11": 1.5, "m02": 10, "m12": 20}}]}),
        ),
        ("d.json", "[1.5, 0.25, 10, -0.25, 1.5, 20]"),
    ],
)
def test_layouts(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert matrix_of(tmp_path / name).tolist() == [[1.5, 0.25, 10], [-0.25, 1.5, 20], [0, 0, 1]]


@pytest.mark.parametrize("text", ["", "1 2 3", "one 0 0 0 1 0", "0 0 0 0 0 0", "1 0 nan 0 1 0", "1 0 0 0 1 0 0 1 1"])
def test_other_numbers_are_refused(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(ValueError, match="wanted the six numbers of an affine matrix"):
        matrix_of(tmp_path / "a.txt")
    (tmp_path / "a.json").write_text(text or "{}")
    with pytest.raises(ValueError, match="wanted the six numbers of an affine matrix"):
        matrix_of(tmp_path / "a.json")


def test_directions_are_inverse(tmp_path):
    (tmp_path / "a.txt").write_text("0 -1 24 1 0 2")
    pair = task(image((24, 20), 0.5, "µm"), image((24, 20), 2.0, "µm"))
    there, back = (ViewerMatrix(tmp_path / "a.txt", to).find(pair)[0].matrix for to in ("fixed", "moving"))
    turned = task(pair.moving, pair.fixed)
    again = ViewerMatrix(tmp_path / "a.txt", "moving").find(turned)[0].matrix
    assert torch.allclose(there @ again, torch.eye(3, dtype=torch.float64))
    assert not torch.allclose(there, back)


def test_pixels_are_those_of_the_finest_level(tmp_path):
    """A position of x = 8 px at full resolution is one, whatever was opened."""
    (tmp_path / "a.txt").write_text("1 0 8 0 1 0")
    full = regframe.Grid((80, 80), 0.5, (), "µm")
    coarse = image((20, 20), 2.0, "µm", reading=regframe.Reading(2, 3, (1, 1), full))
    coarse = coarse.replace(grid=regframe.Grid((20, 20), 2.0, (0.75, 0.75), "µm"))
    (found,) = ViewerMatrix(tmp_path / "a.txt", "fixed").find(task(coarse, coarse))
    assert torch.allclose(found.matrix, torch.tensor([[1.0, 0, 0], [0, 1, 4], [0, 0, 1]], dtype=torch.float64))
    (found,) = ViewerMatrix(tmp_path / "a.txt", "fixed", "mm").find(task(coarse, coarse))
    assert float(found.matrix[1, 2]) == pytest.approx(8000)


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("1 0 8 0 1 0")
    points = regframe.PointSet(torch.rand((4, 2)))
    with pytest.raises(ValueError, match="two dimensions on the moving side"):
        ViewerMatrix(tmp_path / "a.txt", "fixed").find(task(image((9, 9)), points))
    with pytest.raises(ValueError, match="a length unit on the fixed side"):
        ViewerMatrix(tmp_path / "a.txt", "fixed", "µm").find(task(image((9, 9)), image((9, 9))))
