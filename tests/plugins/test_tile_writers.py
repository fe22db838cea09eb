"""A slide format from outside is written tile by tile: the pixels of OME-Zarr, whole, in its own files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from odd_package import FakePoint

import regframe as rf
from regframe import plugins

ROOT = Path(__file__).resolve().parents[2]
LOST = "self.files[0].parent.rename(self.files[0].parent.with_name('tmp-x')); Path('/dev/null')"
"""A writer that leaves nothing under the name that it was given."""
SOURCE = (ROOT / "plugins/example_slide/src/example_slide.py").read_text()


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    real = plugins._entry_points()
    code = SOURCE.replace("from __future__ import annotations", "")
    monkeypatch.setattr(plugins, "_entry_points", lambda: (*real, FakePoint("rawslide", code)))
    plugins.refresh()
    yield
    sys.modules.pop("odd_pack", None)
    monkeypatch.undo()
    plugins.refresh()


def image(size: int = 700) -> rf.Image:
    pixels = np.random.default_rng(0).integers(1, 255, (2, size, size - 60), dtype=np.uint8)
    return rf.Image(torch.from_numpy(pixels), rf.Grid((size, size - 60), (0.5, 0.5), (3.0, 7.0), "µm"))


def turned() -> rf.Affine:
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[:2] = torch.tensor([[0.8, 0.6, 20.0], [-0.6, 0.8, 90.0]], dtype=torch.float64)
    return rf.Affine(matrix, "µm", "µm")


def carried(path: Path) -> Path:
    given = image()
    level = rf.Level(given.grid, (2, 64, 64), lambda region: given.data.numpy()[(slice(None), *region)])
    pyramid = rf.Pyramid((level,), np.dtype(np.uint8), ("a", "b"), name="given")
    options = rf.SlideOptions(chunk=64, shard=128)
    rf.warp_slide(pyramid, turned(), given.grid, path, options=options, workers=2)
    return path


def test_it_holds_what_zarr_holds(offer: None, tmp_path: Path) -> None:
    ours, theirs = (rf.open_pyramid(carried(tmp_path / name)) for name in ("a.ome.zarr", "a.rawslide"))
    assert [level.grid for level in theirs.levels] == [level.grid for level in ours.levels]
    for one, other in zip(theirs.levels, ours.levels, strict=True):
        whole = tuple(slice(0, n) for n in one.grid.shape)
        assert np.array_equal(one.read(whole), other.read(whole))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ome.zarr", "a.rawslide"]


def test_an_image_in_memory_is_saved(offer: None, tmp_path: Path) -> None:
    rf.adapter("rawslide").save(image(), tmp_path / "a.rawslide")
    again = rf.open_pyramid(tmp_path / "a.rawslide").levels
    assert again[0].grid == image().grid
    assert np.array_equal(again[0].read((slice(0, 700), slice(0, 640))), image().data.numpy())
    assert len(again) == 2


def test_a_name_nobody_writes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"wanted an output ending in \.zarr or \.ome\.tif, got 'a\.rawslide'"):
        carried(tmp_path / "a.rawslide")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("return _Writer(path", "return (path"), "wanted TileWriter from RawSlide.begin"),
        (("path.mkdir()", "self.lost"), "has no attribute 'lost'"),
        (("(self.files[0].parent / HEAD)", LOST), "got nothing there"),
        (("region: tuple[slice, ...], block: np.ndarray[Any, Any]) -> None:", ") -> None:"), "write\\(\\) takes"),
    ],
)  # fmt: skip
def test_its_faults_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: tuple[str, str], said: str
) -> None:
    real = plugins._entry_points()
    assert change[0] in SOURCE
    code = SOURCE.replace("from __future__ import annotations", "").replace(*change)
    monkeypatch.setattr(plugins, "_entry_points", lambda: (*real, FakePoint("rawslide", code)))
    plugins.refresh()
    try:
        with pytest.raises(ValueError, match=said) as caught:
            carried(tmp_path / "a.rawslide")
        assert "odd-pack 0.3" in str(caught.value)
        assert "efect" not in str(caught.value)
        assert not (tmp_path / "a.rawslide").exists()
    finally:
        sys.modules.pop("odd_pack", None)
        monkeypatch.undo()
        plugins.refresh()
