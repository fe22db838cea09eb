"""The kit on the adapter ``rawslide``, and what its files may say."""

import json

import numpy as np
import pytest
from example_slide import RawSlide, write

from regframe.testing import AdapterTests


class TestSlide(AdapterTests):
    def make(self):
        return RawSlide()


def made(folder):
    fine = np.arange(3 * 40 * 60, dtype=np.uint16).reshape(3, 40, 60)
    return fine, write(folder / "a.rawslide.json", [fine, fine[:, ::2, ::2], fine[:, ::4, ::4]], 0.25)


def test_levels_and_regions(tmp_path):
    fine, path = made(tmp_path)
    pyramid = RawSlide().pyramid(path)
    assert [level.grid.spacing for level in pyramid.levels] == [(0.25, 0.25), (0.5, 0.5), (1.0, 1.0)]
    assert [level.grid.origin for level in pyramid.levels] == [(0, 0), (0.125, 0.125), (0.375, 0.375)]
    assert np.array_equal(RawSlide().read(path, 1, (slice(3, 9), slice(5, 20))), fine[:, ::2, ::2][:, 3:9, 5:20])


@pytest.mark.parametrize(
    "change",
    [
        {"rawslide": "O"},
        {"um_per_pixel": "wide"},
        {"levels": []},
        {"levels": [{"file": "a.0.raw", "shape": [3, 40, 61]}]},
        {"levels": [{"file": "a.0.raw", "shape": [40, 180]}]},
        {"levels": [{"file": "../a.0.raw", "shape": [3, 40, 60]}]},
        {"levels": [{"file": "a.7.raw", "shape": [3, 40, 60]}]},
    ],
)
def test_what_is_damaged_is_refused(tmp_path, change):
    _, path = made(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        RawSlide().open(path)
    assert "defect" not in str(caught.value)
